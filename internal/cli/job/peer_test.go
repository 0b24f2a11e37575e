package job

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/wire"
)

// peer speaks the API to rnx and does what the job's command says.
type peer struct {
	api.UnimplementedJobServiceServer
	host string

	mu    sync.Mutex
	calls []string // in short, what was asked
}

func (p *peer) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, fmt.Sprintf(format, args...))
}

func (p *peer) asked() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.calls, "; ")
}

func servePeer(t *testing.T) *peer {
	t.Helper()
	p := &peer{}
	p.host = serveJobs(t, p)
	return p
}

// serveJobs serves one side of the API until the test ends, and returns where.
func serveJobs(t *testing.T, jobs api.JobServiceServer) (host string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	api.RegisterJobServiceServer(s, jobs)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return "unix://" + socket
}

// rnx runs a command line against the peer.
func (p *peer) rnx(t *testing.T, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	a := &app.App{In: strings.NewReader(stdin), Out: &out, ErrOut: &errOut}
	status = a.Execute(t.Context(), newRootCommand(a), append([]string{"--host=" + p.host}, args...))
	return status, out.String(), errOut.String()
}

const (
	idA = "aaaaaaaa-0000-4000-8000-000000000000"
	idB = "bbbbbbbb-0000-4000-8000-000000000000"
	idC = "cccccccc-0000-4000-8000-000000000000"
)

func record(id string, s joblet.State, exit *joblet.Exit) *api.Job {
	j := joblet.Job{ID: id, State: s, Exit: exit, Spec: joblet.Spec{Command: "x"}}
	if s != joblet.Pending && s != joblet.Scheduled && s != joblet.Canceled {
		j.Started = time.Unix(1, 0)
	}
	return wire.JobToProto(j)
}

func (p *peer) RunJob(_ context.Context, r *api.RunJobRequest) (*api.RunJobResponse, error) {
	p.note("run %s %s %v", r.GetCommand(), r.GetSchedule(), r.GetSecretEnvironment())
	return &api.RunJobResponse{Job: record(idA, joblet.Scheduled, nil)}, nil
}

func outputEvent(t client.Stream, offset int64, text string) *api.JobEvent {
	return &api.JobEvent{Event: &api.JobEvent_Output{Output: &api.JobOutput{Stream: int32(t), Offset: offset, Data: []byte(text)}}}
}

func waitingEvent(j *api.Job) *api.JobEvent {
	return &api.JobEvent{Event: &api.JobEvent_Waiting{Waiting: j}}
}

func startedEvent(j *api.Job) *api.JobEvent {
	return &api.JobEvent{Event: &api.JobEvent_Started{Started: j}}
}

func endedEvent(j *api.Job) *api.JobEvent { return &api.JobEvent{Event: &api.JobEvent_Ended{Ended: j}} }

func sendAll(send func(*api.JobEvent) error, events ...*api.JobEvent) error {
	for _, e := range events {
		if err := send(e); err != nil {
			return err
		}
	}
	return nil
}

// RunJobAttached plays a job that waits, fails, and succeeds with its second
// attempt; "fails" one that ends with 3; "waits" one that waits to be canceled.
func (p *peer) RunJobAttached(r *api.RunJobRequest, out grpc.ServerStreamingServer[api.JobEvent]) error {
	p.note("attached %s", r.GetCommand())
	switch r.GetCommand() {
	case "dies": // and nobody knows what it has done
		return status.Error(codes.Unavailable, "error reading from server: EOF")
	case "refuses":
		err, _ := wire.ErrorToStatus(joblet.Errorf(joblet.Unavailable, "the daemon is stopping"))
		return err
	case "fails":
		return sendAll(out.Send, startedEvent(record(idA, joblet.Running, nil)), endedEvent(record(idA, joblet.Failed, &joblet.Exit{Code: 3})))
	case "cut":
		return sendAll(out.Send, waitingEvent(record(idA, joblet.Pending, nil)))
	}
	return sendAll(out.Send,
		waitingEvent(record(idA, joblet.Pending, nil)),
		startedEvent(record(idA, joblet.Running, nil)), outputEvent(client.Stdout, 0, "one\n"),
		waitingEvent(record(idA, joblet.Scheduled, nil)),
		startedEvent(record(idA, joblet.Running, nil)), outputEvent(client.Stderr, 4, "two\n"),
		endedEvent(record(idA, joblet.Completed, &joblet.Exit{})),
	)
}

func (p *peer) FollowJob(r *api.FollowJobRequest, out grpc.ServerStreamingServer[api.JobEvent]) error {
	p.note("follow %.4s from %d", r.GetUuid(), r.GetOffset())
	if r.GetUuid() == "cut" && r.GetOffset() == 0 { // a name, and the connection breaks
		if err := sendAll(out.Send, startedEvent(record(idA, joblet.Running, nil)), outputEvent(client.Stdout, 0, "begun\n")); err != nil {
			return err
		}
		err, _ := wire.ErrorToStatus(joblet.Errorf(joblet.Unavailable, "the daemon is stopping"))
		return err
	}
	return sendAll(out.Send, startedEvent(record(r.GetUuid(), joblet.Running, nil)), outputEvent(client.Stdout, 0, "again\n"),
		endedEvent(record(r.GetUuid(), joblet.Failed, &joblet.Exit{Code: 5})))
}

// SubmitJob echoes what it got.
func (p *peer) SubmitJob(stream grpc.BidiStreamingServer[api.JobInput, api.JobEvent]) error {
	var files, stdin bytes.Buffer
	var r *api.RunJobRequest
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		switch in := in.GetInput().(type) {
		case *api.JobInput_Run:
			r = in.Run
		case *api.JobInput_Files:
			files.Write(in.Files)
		case *api.JobInput_Stdin:
			stdin.Write(in.Stdin)
		}
	}
	var names []string
	for h, err := range entries(&files) {
		if err != nil {
			return err
		}
		names = append(names, h.Name)
	}
	p.note("submit %s stdin=%q %q files=%v detach=%v", r.GetCommand(), r.GetStdin(), stdin.String(), names, r.GetDetach())
	return sendAll(stream.Send, startedEvent(record(idA, joblet.Running, nil)), outputEvent(client.Stdout, 0, stdin.String()),
		endedEvent(record(idA, joblet.Completed, &joblet.Exit{})))
}

func entries(r io.Reader) func(func(*tar.Header, error) bool) {
	return func(yield func(*tar.Header, error) bool) {
		for t := tar.NewReader(r); ; {
			h, err := t.Next()
			if errors.Is(err, io.EOF) || !yield(h, err) || err != nil {
				return
			}
		}
	}
}

func (p *peer) CancelJob(_ context.Context, r *api.CancelJobRequest) (*api.CancelJobResponse, error) {
	p.note("cancel %.4s", r.GetUuid())
	if r.GetUuid() == idB {
		err, _ := wire.ErrorToStatus(joblet.Errorf(joblet.FailedPrecondition, "it runs"))
		return nil, err
	}
	return &api.CancelJobResponse{Job: record(r.GetUuid(), joblet.Canceled, nil)}, nil
}

func (p *peer) StopJob(_ context.Context, r *api.StopJobRequest) (*api.StopJobResponse, error) {
	p.note("stop %.4s with %d", r.GetUuid(), r.GetSignal())
	return &api.StopJobResponse{Job: record(r.GetUuid(), joblet.Stopped, nil)}, nil
}

func (p *peer) SignalJob(_ context.Context, r *api.SignalJobRequest) (*api.SignalJobResponse, error) {
	verb := "signal"
	if r.GetDefaultAction() {
		verb = "interrupt"
	}
	p.note("%s %.4s with %d", verb, r.GetUuid(), r.GetSignal())
	return &api.SignalJobResponse{}, nil
}

func (p *peer) RerunJob(_ context.Context, r *api.RerunJobRequest) (*api.RunJobResponse, error) {
	p.note("rerun %.4s %v", r.GetUuid(), r.GetSecretEnvironment())
	return &api.RunJobResponse{Job: record(idB, joblet.Running, nil)}, nil
}

func (p *peer) PruneJobs(_ context.Context, r *api.PruneJobsRequest) (*api.PruneJobsResponse, error) {
	p.note("prune %v %v before=%v dry=%v", r.GetStates(), r.GetLabels(), r.GetEndedBefore() != "", r.GetDryRun())
	return &api.PruneJobsResponse{DeletedCount: 2, FreedBytes: 2048}, nil
}

func (p *peer) QueryJobs(r *api.QueryJobsRequest, out grpc.ServerStreamingServer[api.Jobs]) error {
	p.note("query limit=%d before=%.4s parent=%.4s labels=%v since=%v", r.GetLimit(), r.GetBefore(), r.GetParent(), r.GetLabels(), r.GetSince() != "")
	all := []*api.Job{record(idC, joblet.Running, nil), record(idB, joblet.Failed, &joblet.Exit{Code: 1}), record(idA, joblet.Completed, &joblet.Exit{})}
	if n := int(r.GetLimit()); n > 0 {
		all = all[:min(n, len(all))]
	}
	return out.Send(&api.Jobs{Jobs: all})
}

func (p *peer) GetJobStatus(_ context.Context, r *api.GetJobStatusRequest) (*api.GetJobStatusResponse, error) {
	for _, id := range []string{idA, idB, idC} {
		if strings.HasPrefix(id, r.GetUuid()) {
			return wire.StatusToProto(wire.JobToProto(joblet.Job{ID: id, State: joblet.Completed, Exit: &joblet.Exit{}, Spec: joblet.Spec{Command: "x"}})), nil
		}
	}
	err, _ := wire.ErrorToStatus(joblet.Errorf(joblet.NotFound, "no job %q", r.GetUuid()))
	return nil, err
}

// GetJobFiles sends what a job has left: all of it, or what is at or below the
// first pattern, which is no pattern here, with the directories above it.
func (p *peer) GetJobFiles(r *api.GetJobFilesRequest, out grpc.ServerStreamingServer[api.DataChunk]) error {
	p.note("files %.4s %q", r.GetUuid(), r.GetPatterns())
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	found := false
	for _, h := range []tar.Header{
		{Name: "out/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "out/a.txt", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "out/deep/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "out/deep/b.txt", Typeflag: tar.TypeReg, Mode: 0o600},
		{Name: "out/deep/in", Typeflag: tar.TypeSymlink, Linkname: "b.txt"},
		{Name: "out/deep/up", Typeflag: tar.TypeSymlink, Linkname: "../../top.txt"},
		{Name: "top.txt", Typeflag: tar.TypeReg, Mode: 0o644},
	} {
		name := strings.TrimSuffix(h.Name, "/")
		if len(r.GetPatterns()) > 0 {
			want := r.GetPatterns()[0]
			below := name == want || strings.HasPrefix(name, want+"/")
			if found = found || below; !below && !strings.HasPrefix(want, h.Name) {
				continue
			}
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(name))
		}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, name); err != nil {
				return err
			}
		}
	}
	if len(r.GetPatterns()) > 0 && !found {
		err, _ := wire.ErrorToStatus(joblet.Errorf(joblet.NotFound, "nothing matches %q", r.GetPatterns()[0]))
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	for piece := range slices.Chunk(b.Bytes(), 700) {
		if err := out.Send(&api.DataChunk{Payload: piece}); err != nil {
			return err
		}
	}
	return nil
}

// TestRunning: what rnx asks for, what it prints and how it ends.
func TestRunning(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"up/a.txt", "up/sub/b.txt"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("text"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	up, in := filepath.Join(dir, "up"), filepath.Join(dir, "up", "a.txt")
	for _, tt := range []struct {
		args           []string
		status         int
		stdout, stderr string
		asked          string
	}{
		{[]string{"run", "x"}, 0, "one\n", "two\n", "attached x"},
		{[]string{"run", "fails"}, 3, "", "", "attached fails"},
		{[]string{"run", "cut"}, 5, "again\n", "", "attached cut; follow aaaa from 0"},
		{[]string{"run", "dies"}, 125, "", "rnx: cannot tell whether the job was accepted: the connection to the daemon broke (error reading from server: EOF): " +
			"look for it with \"rnx job list\" before you submit it again; with an --idempotency-key the same command never makes a second job\n", "attached dies"},
		{[]string{"run", "refuses"}, 125, "", "rnx: the daemon is stopping\n", "attached refuses"},
		{[]string{"run", "--schedule=2099-01-02T03:04:05Z", "x"}, 0, idA + "\n", "", "run x 2099-01-02T03:04:05Z map[]"},
		{[]string{"run", "--stdin", "x"}, 0, "input", "", `submit x stdin="stream" "input" files=[] detach=false`},
		{[]string{"run", "--stdin=" + in, "--retry=1", "x"}, 0, "text", "", `submit x stdin="file" "text" files=[] detach=false`},
		{[]string{"run", "-d", "--stdin", "x"}, 0, idA + "\n", "", `submit x stdin="file" "input" files=[] detach=true`},
		{[]string{"run", "--upload=" + up, "x"}, 0, "", "", `submit x stdin="" "" files=[up/ up/a.txt up/sub/ up/sub/b.txt] detach=false`},
		{[]string{"run", "--upload=" + in, "--upload-dir=" + filepath.Join(up, "sub"), "x"}, 0, "", "", `submit x stdin="" "" files=[a.txt b.txt] detach=false`},
		{[]string{"cancel", idA}, 0, idA + "\n", "", "cancel aaaa"},
		{[]string{"rerun", "-sT=hunter2", idA}, 0, idB + "\n", "", "rerun aaaa map[T:hunter2]"},
		{[]string{"rerun", "-f", idA}, 5, "again\n", "", "rerun aaaa map[]; follow bbbb from 0"},
		{[]string{"prune", "--older-than=1d", "--status=failed", "-l", "a=b"}, 0, "2 jobs deleted, 2.0 KiB freed\n", "", "prune [FAILED] [a=b] before=true dry=false"},
		{[]string{"prune", "--all", "--dry-run", "--json"}, 0, `{"deleted_count":2,"freed_bytes":2048,"dry_run":true}` + "\n", "", "prune [] [] before=false dry=true"},
		{[]string{"list", "-q", "--limit=2", "--before=cc", "--parent=" + idB, "-l", "a", "--since=1h"}, 0, idC + "\n" + idB + "\n", "", "query limit=3 before=cccc parent=bbbb labels=[a] since=true"},
		{[]string{"list", "--format={{short .UUID}} {{.Status}}"}, 0, "cccccccc RUNNING\nbbbbbbbb FAILED\naaaaaaaa COMPLETED\n", "", "query limit=0 before= parent= labels=[] since=false"},
		{[]string{"list", "--before=dd"}, 1, "", "rnx: --before: no job \"dd\"\n", ""},
		{[]string{"status", "--format={{.UUID}}", "aa", "cc"}, 0, idA + "\n" + idC + "\n", "", ""},
	} {
		p := servePeer(t)
		status, stdout, stderr := p.rnx(t, "input", append([]string{"job"}, tt.args...)...)
		if status != tt.status || stdout != tt.stdout || stderr != tt.stderr || p.asked() != tt.asked {
			t.Errorf("rnx %q: got %d, %q, %q, asked for %s\nwant %d, %q, %q, %s", tt.args, status, stdout, stderr, p.asked(), tt.status, tt.stdout, tt.stderr, tt.asked)
		}
	}
}

func TestRunEvents(t *testing.T) {
	t.Parallel()
	p := servePeer(t)
	status, stdout, _ := p.rnx(t, "", "--json", "job", "run", "x")
	var got []string
	for line := range strings.Lines(stdout) {
		var e struct{ Event string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Event)
	}
	if want := "waiting started output waiting started output ended"; status != 0 || strings.Join(got, " ") != want {
		t.Errorf("got %d, %s", status, got)
	}
}

// tree lists what is below a directory: names, and what is in files.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		switch {
		case d.IsDir():
			rel += "/"
		case d.Type().IsRegular():
			text, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			rel += "=" + string(text)
		}
		all = append(all, filepath.ToSlash(rel))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

func TestCopy(t *testing.T) {
	t.Parallel()
	const whole = "out/ out/a.txt=out/a.txt out/deep/ out/deep/b.txt=out/deep/b.txt out/deep/in out/deep/up top.txt=top.txt"
	for _, tt := range []struct {
		from, to string
		want     string // what is in the directory then
		err      string
	}{
		{"aa:.", ".", "f=old " + whole, ""},
		{"aa:", "new", "f=old new/ new/out/ new/out/a.txt=out/a.txt new/out/deep/ new/out/deep/b.txt=out/deep/b.txt new/out/deep/in new/out/deep/up new/top.txt=top.txt", ""},
		{"aa:out/a.txt", ".", "a.txt=out/a.txt f=old", ""},
		{"aa:/work/out/a.txt", "./", "a.txt=out/a.txt f=old", ""},
		{"aa:out/a.txt", "b.txt", "b.txt=out/a.txt f=old", ""},
		{"aa:out/a.txt", "f", "f=out/a.txt", ""},
		{"aa:out/a.txt", "new/", "f=old new/ new/a.txt=out/a.txt", ""},
		{"aa:out/a.txt", "no/b.txt", "f=old", "copy to no/b.txt: "},
		{"aa:out/deep", ".", "deep/ deep/b.txt=out/deep/b.txt deep/in f=old", ""},
		{"aa:out/deep", "new", "f=old new/ new/b.txt=out/deep/b.txt new/in", ""},
		{"aa:out/deep/.", ".", "b.txt=out/deep/b.txt f=old in", ""},
		{"aa:out", "new", "f=old new/ new/a.txt=out/a.txt new/deep/ new/deep/b.txt=out/deep/b.txt new/deep/in", ""},
		{"aa:out/deep", "f", "f=old", "copy to f: there is a file of that name"},
		{"aa:top.txt/.", ".", "f=old", "top.txt is not a directory"},
		{"aa:nope", ".", "f=old", `nothing matches "nope"`},
	} {
		p := servePeer(t)
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte("old"), 0o666); err != nil {
			t.Fatal(err)
		}
		to := dir + "/" + tt.to
		status, stdout, stderr := p.rnx(t, "", "job", "cp", tt.from, to)
		stderr = strings.ReplaceAll(stderr, dir+"/", "")
		if got := tree(t, dir); got != tt.want || stdout != "" || (status != 0) != (tt.err != "") || tt.err != "" && !strings.Contains(stderr, tt.err) {
			t.Errorf("cp %s %s: got %d, %q, %q, tree\n%s, want %q, tree\n%s", tt.from, tt.to, status, stdout, stderr, got, tt.err, tt.want)
		}
		if links := strings.Contains(tt.want, "deep/b.txt") && !strings.Contains(tt.want, "deep/up"); links != strings.Contains(stderr, "left out of the copy: out/deep/up is a link to ") {
			t.Errorf("cp %s %s: got %q", tt.from, tt.to, stderr)
		}
	}
	p := servePeer(t)
	status, stdout, stderr := p.rnx(t, "", "job", "cp", "aa:out/a.txt", "-")
	var names []string
	for h, err := range entries(strings.NewReader(stdout)) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if status != 0 || stderr != "" || strings.Join(names, " ") != "out/ out/a.txt" {
		t.Errorf("cp to stdout: got %d, %q, %s", status, names, stderr)
	}
}

// TestDownload: files are fetched however the job ended, and a job's own failure
// is what rnx ends with.
func TestDownload(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		command, pattern string
		status           int
		tree, stderr     string
	}{
		{"x", "out/a.txt", 0, "out/ out/a.txt=out/a.txt", ""},
		{"fails", "top.txt", 3, "top.txt=top.txt", ""},
		{"x", "nope", 125, "", "rnx: download from job aaaaaaaa: nothing matches"},
		{"fails", "nope", 3, "", "rnx: download from job aaaaaaaa: nothing matches"},
	} {
		p := servePeer(t)
		dir := filepath.Join(t.TempDir(), "to", "here")
		status, _, stderr := p.rnx(t, "", "job", "run", "--download="+tt.pattern, "--download-to="+dir, tt.command)
		if got := tree(t, dir); status != tt.status || got != tt.tree || !strings.Contains(stderr, tt.stderr) {
			t.Errorf("%s %s: got %d, %s, %q", tt.command, tt.pattern, status, got, stderr)
		}
	}
}

// TestLogAgain: a log that is taken up again is the same job's, whatever has its name
// by then.
func TestLogAgain(t *testing.T) {
	t.Parallel()
	p := servePeer(t)
	status, stdout, stderr := p.rnx(t, "", "job", "log", "-f", "cut")
	if want := "follow cut from 0; follow aaaa from 6"; status != 0 || stdout != "begun\nagain\n" || p.asked() != want {
		t.Errorf("%d %q %q, asked %.300q, want %q", status, stdout, stderr, p.asked(), want)
	}
}
