package job

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/testenv/peer"
	"github.com/joblet/joblet/internal/wire"
)

func clock(seconds float64) time.Time {
	return time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local).Add(time.Duration(seconds * float64(time.Second)))
}

func someSamples() []joblet.Sample {
	return []joblet.Sample{
		{Time: clock(0), CPUPercent: 12.345, Memory: 5 << 20, PIDs: 1, Usage: joblet.Usage{CPUUser: time.Second, ReadBytes: 1 << 20}},
		{Time: clock(2), CPUPercent: 1600, Memory: 64 << 20, MemoryLimit: 128 << 20, PIDs: 1000, Usage: joblet.Usage{CPUUser: 5 * time.Second, ReadBytes: 5 << 20, WriteBytes: 1 << 10, Throttled: 1500 * time.Millisecond}},
		// Another attempt: all counts begin again.
		{Time: clock(3), CPUPercent: 1, Memory: 1 << 20, PIDs: 1, Usage: joblet.Usage{CPUUser: time.Second}},
	}
}

func TestSampleTable(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	table := &sampleTable{w: &b, page: 2}
	for _, s := range someSamples() {
		if err := table.add(s); err != nil {
			t.Fatal(err)
		}
	}
	header := "TIME                    CPU%     MEMORY    MEM%   PIDS      READ/s     WRITE/s  THROTTLED\n"
	want := header +
		"2026-01-02 03:04:05     12.3    5.0 MiB       -      1           -           -          -\n" +
		"2026-01-02 03:04:07   1600.0     64 MiB    50.0   1000   2.0 MiB/s     512 B/s       1.5s\n" +
		header +
		"2026-01-02 03:04:08      1.0    1.0 MiB       -      1           -           -          -\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
	table = &sampleTable{w: brokenWriter{}}
	if err := table.add(joblet.Sample{}); err == nil {
		t.Error("a failure to write is not told")
	}
}

const idD = "dddddddd-0000-4000-8000-000000000000"

// watched is a daemon with jobs that are looked at: A runs, B ends before there
// is a sample of it, C has ended, D has ended and left no samples, E waits.
type watched struct {
	api.UnimplementedJobServiceServer
	host  string
	calls peer.Calls
	looks int
}

func serveWatched(t *testing.T) *watched {
	t.Helper()
	w := &watched{}
	w.host = peer.ServeJobs(t, w)
	return w
}

func (w *watched) GetJobStatus(_ context.Context, r *api.GetJobStatusRequest) (*api.GetJobStatusResponse, error) {
	job := joblet.Job{ID: r.GetUuid(), State: joblet.Running, Started: clock(-90), Spec: joblet.Spec{Command: "sh\x1b[2J", Name: "web", Limits: joblet.Limits{CPUPercent: 200, MaxPIDs: 64}}}
	for _, id := range []string{peer.IDA, peer.IDB, peer.IDC, idD} {
		if strings.HasPrefix(id, r.GetUuid()) {
			job.ID = id
		}
	}
	if job.ID == peer.IDC || job.ID == idD {
		job.State, job.Exit, job.Ended = joblet.Completed, &joblet.Exit{}, clock(0)
	}
	return wire.StatusToProto(wire.JobToProto(job)), nil
}

func (w *watched) StreamJobMetrics(r *api.StreamJobMetricsRequest, out grpc.ServerStreamingServer[api.JobMetricsEvent]) error {
	w.calls.Note("stream %.4s %d", r.GetJobUuid(), r.GetIntervalMs())
	if r.GetJobUuid() == peer.IDB {
		return nil
	}
	for _, s := range someSamples() {
		if err := out.Send(wire.SampleToProto(r.GetJobUuid(), s)); err != nil {
			return err
		}
	}
	return nil
}

func (w *watched) GetJobMetrics(r *api.GetJobMetricsRequest, out grpc.ServerStreamingServer[api.JobMetricsEvent]) error {
	w.calls.Note("history %.4s %d %d %d", r.GetJobUuid(), r.GetStartTime(), r.GetEndTime(), r.GetLimit())
	if r.GetJobUuid() == idD {
		return nil
	}
	return out.Send(wire.SampleToProto(r.GetJobUuid(), someSamples()[1]))
}

// ListJobProcesses answers for A, whose first process takes more each time.
func (w *watched) ListJobProcesses(_ context.Context, r *api.ListJobProcessesRequest) (*api.ListJobProcessesResponse, error) {
	if r.GetUuid() != peer.IDA {
		err, _ := wire.ErrorToStatus(joblet.Errorf(joblet.FailedPrecondition, "job %.8s has ended: COMPLETED", r.GetUuid()))
		return nil, err
	}
	p := someProcesses()
	p.Time = clock(float64(w.looks))
	p.All[0].CPUTime += time.Duration(w.looks) * 250 * time.Millisecond
	w.looks++
	return wire.ProcessesToProto(p), nil
}

func someProcesses() joblet.Processes {
	process := func(pid, ppid int, name, command string) joblet.Process {
		return joblet.Process{
			PID: pid, HostPID: 1000 + pid, PPID: ppid, UID: pid, State: "S", Name: name, Command: command, Threads: pid,
			Started: clock(-60), CPUTime: time.Duration(pid) * time.Second, CPUPercent: float64(10 * pid), Memory: int64(10-pid) << 20,
		}
	}
	return joblet.Processes{Time: clock(0), Omitted: 7, All: []joblet.Process{
		process(1, 0, "sh", "sh -c x"), process(2, 1, "a\nb", "a\x1b[2Jb\nc \u202e\uFFFD"), process(3, 0, "put in", "put in"), process(4, 2, "zz", "[zz]"),
	}}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	row := "2026-01-02 03:04:07   1600.0     64 MiB    50.0   1000           -           -          -\n"
	var live strings.Builder
	table := &sampleTable{w: &live}
	for _, s := range someSamples() {
		if err := table.add(s); err != nil {
			t.Fatal(err)
		}
	}
	header, _, _ := strings.Cut(live.String(), "\n")
	header += "\n"
	since := time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local)
	for _, tt := range []struct {
		args           []string
		stdout, stderr string
		asked          string
	}{
		{[]string{peer.IDA}, live.String(), "", "stream aaaa 1000"},
		{[]string{"-i", "250ms", "aaaa"}, live.String(), "", "stream aaaa 250"},
		{[]string{"--history", peer.IDA}, header + row, "", "history aaaa 0 0 0"},
		{[]string{"--limit=5", peer.IDA}, header + row, "", "history aaaa 0 0 5"},
		{[]string{"--since=2026-01-02", "--until=2026-01-02T00:01", peer.IDA}, header + row, "", fmt.Sprintf("history aaaa %d %d 0", since.UnixNano(), since.Add(time.Minute).UnixNano())},
		{[]string{peer.IDB}, header + row, "", "stream bbbb 1000; history bbbb 0 0 0"},
		{[]string{peer.IDC}, header + row, "", "history cccc 0 0 0"},
		{[]string{idD}, "", "rnx: no samples of job dddddddd: it did not run in that time, or not for long enough\n", "history dddd 0 0 0"},
		{[]string{"--json", idD}, "", "", "history dddd 0 0 0"},
	} {
		w := serveWatched(t)
		status, stdout, stderr := rnxAt(t, w.host, append([]string{"job", "metrics"}, tt.args...)...)
		if status != 0 || stdout != tt.stdout || stderr != tt.stderr || w.calls.Asked() != tt.asked {
			t.Errorf("%q: got %d, %q, %q, asked for %s\nwant %q, %q, %s", tt.args, status, stdout, stderr, w.calls.Asked(), tt.stdout, tt.stderr, tt.asked)
		}
	}
}

// TestMetricsJSON: every figure is there, also those that are 0, by the names
// that job status uses.
func TestMetricsJSON(t *testing.T) {
	t.Parallel()
	status, stdout, stderr := rnxAt(t, serveWatched(t).host, "job", "metrics", "--json", peer.IDA)
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	if status != 0 || stderr != "" || len(lines) != 3 {
		t.Fatalf("got %d, %q, %q", status, stdout, stderr)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(lines[1]), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"uuid": peer.IDA, "cpu_percent": 1600.0, "memory_bytes": 64.0 * (1 << 20), "memory_limit_bytes": 128.0 * (1 << 20), "swap_bytes": 0.0, "pids": 1000.0,
		"cpu_user_ms": 5000.0, "cpu_system_ms": 0.0, "throttled_ms": 1500.0, "memory_peak_bytes": 0.0, "pids_peak": 0.0,
		"read_bytes": 5.0 * (1 << 20), "write_bytes": 1024.0, "read_ops": 0.0, "write_ops": 0.0,
		"cpu_stall_ms": 0.0, "memory_stall_ms": 0.0, "io_stall_ms": 0.0,
	}
	if when, err := time.Parse(time.RFC3339Nano, got["time"].(string)); err != nil || !when.Equal(clock(2)) {
		t.Errorf("time %v, %v", got["time"], err)
	}
	delete(got, "time")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
}

// TestMetricsClosedPipe: that nobody reads any more is no failure to tell of.
func TestMetricsClosedPipe(t *testing.T) {
	t.Parallel()
	var errOut bytes.Buffer
	a := &app.App{Out: closedPipeWriter{}, ErrOut: &errOut}
	status := a.Execute(t.Context(), newRootCommand(a), []string{"--host=" + serveWatched(t).host, "job", "metrics", peer.IDA})
	if status != 128+int(syscall.SIGPIPE) || errOut.String() != "" {
		t.Errorf("got %d, %q", status, errOut.String())
	}
}

type closedPipeWriter struct{}

func (closedPipeWriter) Write([]byte) (int, error) { return 0, fmt.Errorf("write: %w", syscall.EPIPE) }
