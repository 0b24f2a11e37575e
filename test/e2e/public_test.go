package e2e

import (
	"context"
	"errors"
	"io"
	"slices"
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
