package e2e

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet/api"
)

// Calls as existing clients make them, with nothing but the fields of the public API.

// public returns a connection with the options of a client that sets none.
func (d *daemon) public(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(d.host(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// runToEnd runs a job and returns its status at the end.
func runToEnd(ctx context.Context, t *testing.T, jobs api.JobServiceClient, r *api.RunJobRequest) *api.GetJobStatusResponse {
	t.Helper()
	run, err := jobs.RunJob(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jobs.WaitJob(ctx, &api.WaitJobRequest{Uuid: run.GetJobUuid()}); err != nil {
		t.Fatal(err)
	}
	job, err := jobs.GetJobStatus(ctx, &api.GetJobStatusRequest{Uuid: run.GetJobUuid()})
	if err != nil {
		t.Fatal(err)
	}
	return job
}

func TestPublicTimeout(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	jobs := api.NewJobServiceClient(d.public(t))
	job := runToEnd(t.Context(), t, jobs, &api.RunJobRequest{Command: "sleep", Args: []string{"1000"}, Timeout: "300ms"})
	if job.GetStatus() != "TIMEOUT" || job.GetExitCode() != 124 || job.GetTimeout() != "300ms" {
		t.Errorf("got %v", job)
	}
	list, err := jobs.ListJobs(t.Context(), &api.EmptyRequest{})
	if err != nil || len(list.GetJobs()) != 1 || list.GetJobs()[0].GetTimeout() != "300ms" {
		t.Errorf("got %v, %v", list, err)
	}
	if _, err := jobs.RunJob(t.Context(), &api.RunJobRequest{Command: "true", Timeout: "soon"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("timeout soon: %v", err)
	}
}

// events reads a stream of samples to its end, or until it has seen enough, and
// returns their times.
func events(t *testing.T, stream grpc.ServerStreamingClient[api.JobMetricsEvent], err error, enough func(times []int64) bool) (times []int64) {
	t.Helper()
	for err == nil && (enough == nil || !enough(times)) {
		var e *api.JobMetricsEvent
		if e, err = stream.Recv(); err == nil {
			times = append(times, e.GetTimestamp())
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return times
}

func TestPublicMetrics(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	jobs := api.NewJobServiceClient(d.public(t))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	begin := time.Now()
	run, err := jobs.RunJob(ctx, &api.RunJobRequest{Command: "sleep", Args: []string{"1000"}})
	if err != nil {
		t.Fatal(err)
	}
	id := run.GetJobUuid()
	kept := func(r *api.GetJobMetricsRequest) []int64 {
		t.Helper()
		r.JobUuid = id
		stream, err := jobs.GetJobMetrics(ctx, r)
		return events(t, stream, err, nil)
	}
	var before []int64
	if !eventually(patience, func() bool {
		before = kept(&api.GetJobMetricsRequest{})
		return len(before) >= 3
	}) {
		t.Fatalf("only %d samples were kept", len(before))
	}
	if first, last := time.Unix(0, before[0]), time.Unix(0, before[len(before)-1]); first.Before(begin) || last.After(time.Now()) {
		t.Errorf("samples from %v to %v, now it is %v", first, last, time.Now())
	}
	if got := kept(&api.GetJobMetricsRequest{StartTime: before[1], EndTime: before[2]}); !slices.Equal(got, before[1:3]) {
		t.Errorf("from %d to %d there are %d", before[1], before[2], got)
	}

	stream, err := jobs.StreamJobMetrics(ctx, &api.StreamJobMetricsRequest{JobUuid: id})
	since := time.Now().UnixNano()
	got := events(t, stream, err, func(times []int64) bool { return len(times) > 0 && times[len(times)-1] > since })
	if len(got) <= len(before) || !slices.Equal(got[:len(before)], before) || !slices.IsSorted(got) {
		t.Errorf("a running job: got %d, %d had been kept", got, before)
	}
	live, err := jobs.StreamJobMetrics(ctx, &api.StreamJobMetricsRequest{JobUuid: id, NoReplay: true})
	if got := events(t, live, err, func(times []int64) bool { return len(times) == 1 }); got[0] < since {
		t.Errorf("without replay: got %d, asked at %d", got[0], since)
	}
	if _, err := jobs.StopJob(ctx, &api.StopJobRequest{Uuid: id}); err != nil {
		t.Fatal(err)
	}
	events(t, stream, nil, nil)
	events(t, live, nil, nil)

	want := kept(&api.GetJobMetricsRequest{})
	stream, err = jobs.StreamJobMetrics(ctx, &api.StreamJobMetricsRequest{JobUuid: id})
	if got := events(t, stream, err, nil); !slices.Equal(got, want) || len(got) < len(before) {
		t.Errorf("an ended job: got %d, %d are kept", got, want)
	}
}

// TestPublicStop: StopJob answers before existing clients, which wait for 10 s, give
// up; rnx waits for the end.
func TestPublicStop(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	jobs := api.NewJobServiceClient(d.public(t))
	var ids []string
	for range 2 {
		run, err := jobs.RunJob(t.Context(), &api.RunJobRequest{Command: "sh", Args: []string{"-c", "trap : TERM; echo ready; while :; do sleep 1000; done"}, OldName: "stubborn"})
		if err != nil {
			t.Fatal(err)
		}
		if run.GetCommand() != "sh" || len(run.GetArgs()) != 2 || run.GetStartTime() == "" {
			t.Errorf("got %v", run)
		}
		ids = append(ids, run.GetJobUuid())
		if !eventually(patience, func() bool { return d.rnx(t.Context(), "job", "log", run.GetJobUuid()).stdout == "ready\n" }) {
			t.Fatal("the job is not ready")
		}
	}
	waited := make(chan result, 1)
	go func() { waited <- d.rnx(t.Context(), "job", "stop", "--json", "--grace=9s", ids[1]) }()
	grace := time.Minute.Milliseconds() // longer than the default, for a host that is slow
	stopped, err := jobs.StopJob(t.Context(), &api.StopJobRequest{Uuid: ids[0], GraceMs: &grace})
	if err != nil || stopped.GetStatus() != "STOPPING" {
		t.Errorf("got %v, %v", stopped, err)
	}
	if r := <-waited; r.status != 0 || !strings.Contains(r.stdout, `"STOPPED"`) {
		t.Errorf("rnx job stop: got %v", r)
	}
	if _, err := jobs.SignalJob(t.Context(), &api.SignalJobRequest{Uuid: ids[0], Signal: 9}); err != nil {
		t.Fatal(err)
	}
	end, err := jobs.WaitJob(t.Context(), &api.WaitJobRequest{Uuid: ids[0]})
	if err != nil || end.GetJob().GetStatus() != "STOPPED" || end.GetJob().GetOldName() != "stubborn" {
		t.Errorf("got %v, %v", end, err)
	}
	host, err := api.NewMonitoringServiceClient(d.public(t)).GetSystemStatus(t.Context(), &api.EmptyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	status, err := jobs.GetJobStatus(t.Context(), &api.GetJobStatusRequest{Uuid: ids[0]})
	if err != nil || status.GetNodeId() != host.GetHost().GetNodeId() || end.GetJob().GetNodeId() != status.GetNodeId() {
		t.Errorf("node of the host %q, of the job %q: %v", host.GetHost().GetNodeId(), status.GetNodeId(), err)
	}
}
