package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/cgroup"
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
		if !d.wrote(t, run.GetJobUuid(), "ready\n") {
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

// TestPublicLimits: what the host cannot give is changed and said when it is asked for in
// fields of the public API; in those of our own it is an error.
func TestPublicLimits(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for _, limit := range []string{"--max-cpu=100", "--cpu-cores=0", "--max-memory=64M"} {
		d.needs(t, limit)
	}
	jobs := api.NewJobServiceClient(d.public(t))
	online, err := cgroup.OnlineCPUs()
	if err != nil {
		t.Fatal(err)
	}
	most := int32(100 * len(online))
	for _, test := range []struct {
		r        *api.RunJobRequest
		cpu, mem int32
		warnings []string
	}{
		{&api.RunJobRequest{MaxCpu: 100, MaxMemory: 64, CpuCores: "0"}, 100, 64, nil},
		{&api.RunJobRequest{MaxCpu: most + 1}, most, 0, []string{"max_cpu"}},
		{&api.RunJobRequest{MaxCpu: 1 << 30, MaxMemory: 64, CpuCores: "0,8000-8190"}, most, 64, []string{"max_cpu", "cpu_cores"}},
		{&api.RunJobRequest{MaxMemory: 64, CpuCores: "8000"}, 0, 64, []string{"cpu_cores 8000"}},
		{&api.RunJobRequest{MaxMemory: 1}, 0, joblet.MinMemory >> 20, []string{"max_memory 1: the least is 4; the job gets that"}},
		{&api.RunJobRequest{MaxCpu: 1 << 30, Limits: &api.JobLimits{CpuPercent: 100}}, 100, 0, nil}, // not asked for
	} {
		test.r.Command = "true"
		job := runToEnd(t.Context(), t, jobs, test.r)
		if !job.GetLimits().ProtoReflect().IsValid() || job.GetMaxCpu() != test.cpu || job.GetMaxMemory() != test.mem || len(job.GetWarnings()) != len(test.warnings) {
			t.Errorf("%v: got max_cpu %d, max_memory %d, cpu_cores %q, warnings %q", test.r, job.GetMaxCpu(), job.GetMaxMemory(), job.GetCpuCores(), job.GetWarnings())
			continue
		}
		if cores, err := joblet.ParseCPUs(job.GetCpuCores()); job.GetCpuCores() != "" && (err != nil || slices.Max(cores) >= 8000) {
			t.Errorf("%v: got cpu_cores %q", test.r, job.GetCpuCores())
		}
		text := d.rnx(t.Context(), "job", "status", job.GetUuid()).stdout
		for i, want := range test.warnings {
			if !strings.HasPrefix(job.GetWarnings()[i], want) || !strings.Contains(text, "Warning:    "+job.GetWarnings()[i]) {
				t.Errorf("%v: warnings %q, status\n%s", test.r, job.GetWarnings(), text)
			}
		}
		if len(test.warnings) == 0 && strings.Contains(text, "Warning") {
			t.Errorf("%v: status\n%s", test.r, text)
		}
	}
	for _, r := range []*api.RunJobRequest{{MaxCpu: -1}, {CpuCores: "first"}, {MaxMemory: -1}, {Limits: &api.JobLimits{CpuCores: "8000"}}, {Limits: &api.JobLimits{CpuPercent: int64(most) + 1}}} {
		r.Command = "true"
		if _, err := jobs.RunJob(t.Context(), r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", r, err)
		}
	}
	d.says(t, 125, ``, `rnx: --max-cpu \d+: this host has .*\n`, "job", "run", fmt.Sprintf("--max-cpu=%d", most+1), "true")
	d.says(t, 125, ``, `rnx: --cpu-cores 8000: this host has no processor 8000 .*\n`, "job", "run", "--cpu-cores=8000", "true")
	d.says(t, 125, ``, `rnx: --max-memory: 1M: must be between 4M and .*\n`, "job", "run", "--max-memory=1M", "true")
}

// TestPublicMissingCommand: RunJob accepts a job whose command cannot be run, which is
// FAILED; rnx gets an error, and leaves nothing behind.
func TestPublicMissingCommand(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for command, want := range map[string]struct {
		failure, reason string
		code            int32
	}{
		"no-such-command": {"COMMAND_NOT_FOUND", "no-such-command: command not found in the host's programs", 127},
		"/etc/passwd":     {"NOT_EXECUTABLE", "permission denied", 126},
	} {
		run, err := api.NewJobServiceClient(d.public(t)).RunJob(t.Context(), &api.RunJobRequest{Command: command, Uploads: []*api.FileUpload{{Path: "in.txt", Content: []byte("x")}}})
		if err != nil || run.GetStatus() != "FAILED" || len(run.GetJobUuid()) != 36 {
			t.Errorf("%s: %v, %v", command, run, err)
			continue
		}
		for range 2 {
			jobs := api.NewJobServiceClient(d.public(t))
			job, err := jobs.GetJobStatus(t.Context(), &api.GetJobStatusRequest{Uuid: run.GetJobUuid()})
			if err != nil || job.GetStatus() != "FAILED" || job.GetFailure() != want.failure || job.GetExitCode() == 0 || job.GetEndTime() == "" || !strings.Contains(job.GetReason(), want.reason) {
				t.Errorf("%s: %v, %v", command, job, err)
			}
			if got := d.publicLog(t, run.GetJobUuid()); got != "" {
				t.Errorf("%s: output %q", command, got)
			}
			d.says(t, int(want.code), `\d+\n`, ``, "job", "wait", run.GetJobUuid())
			d.kill(t)
			d.restart(t) // for the next daemon it is the same
		}
		jobs := api.NewJobServiceClient(d.public(t))
		if done, err := jobs.DeleteJob(t.Context(), &api.DeleteJobRequest{Uuid: run.GetJobUuid()}); err != nil || !done.GetSuccess() {
			t.Errorf("%s: %v, %v", command, done, err)
		}
		for _, flags := range [][]string{{"-T"}, {"-d"}, {"-d", "--upload=/etc/hostname"}} {
			d.says(t, int(want.code), ``, `rnx: .*`+regexp.QuoteMeta(want.reason)+`.*\n`, slices.Concat([]string{"job", "run"}, flags, []string{command})...)
		}
	}
	d.nothing(t)
}

// TestPublicRuntime: a runtime may be named with its version, and by its language.
func TestPublicRuntime(t *testing.T) {
	t.Parallel()
	d := withState(t) // with runtimes of its own
	tree := filepath.Join(d.state, "runtimes", "python-3.11-ml")
	if err := os.MkdirAll(filepath.Join(tree, "rootfs/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "runtime.yaml"), []byte("format: 1\nname: python-3.11-ml\nversion: 1.0.0\nlanguage: python\nlanguage_version: '3.11'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.serve(t)
	jobs, runtimes := api.NewJobServiceClient(d.public(t)), api.NewRuntimeServiceClient(d.public(t))
	for _, ref := range []string{"python-3.11-ml", "python-3.11-ml@1.0.0", "python-3.11-ml@latest", "python:3.11-ml", "python:3.11"} {
		run, err := jobs.RunJob(t.Context(), &api.RunJobRequest{Command: "python", Runtime: ref})
		if err != nil || run.GetJob().GetRuntime() != "python-3.11-ml" || run.GetJob().GetReason() != "python: command not found in runtime python-3.11-ml" {
			t.Errorf("%s: %v, %v", ref, run, err)
		}
		info, err := runtimes.GetRuntimeInfo(t.Context(), &api.GetRuntimeInfoRequest{Runtime: ref})
		if err != nil || !info.GetFound() || info.GetRuntime().GetName() != "python-3.11-ml" {
			t.Errorf("%s: %v, %v", ref, info, err)
		}
		d.says(t, 127, ``, `rnx: python: command not found in runtime python-3.11-ml\n`, "job", "run", "--runtime="+ref, "python")
	}
	for ref, want := range map[string]codes.Code{"python-3.11-ml@2.0.0": codes.NotFound, "python:3.12": codes.NotFound, "a@b@c": codes.InvalidArgument} {
		if _, err := jobs.RunJob(t.Context(), &api.RunJobRequest{Command: "python", Runtime: ref}); status.Code(err) != want {
			t.Errorf("%s: %v", ref, err)
		}
	}
	d.says(t, 125, ``, `rnx: runtime python-3.11-ml@2.0.0 is not installed: the installed python-3.11-ml has version 1.0.0\n`, "job", "run", "--runtime=python-3.11-ml@2.0.0", "python")
	if r, err := runtimes.RemoveRuntime(t.Context(), &api.RemoveRuntimeRequest{Runtime: "python-3.11-ml@1.0.0"}); err != nil || !r.GetSuccess() {
		t.Errorf("remove: %v, %v", r, err)
	}
}
