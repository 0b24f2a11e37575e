// Package peer is a small daemon for tests of clients: it speaks the API, and records
// what it is asked for.
package peer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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
	"github.com/joblet/joblet/internal/wire"
)

// Peer serves the API to a client and does what the job's command says.
type Peer struct {
	api.UnimplementedJobServiceServer
	Host string // as --host takes it

	Calls
}

// Calls records in short what a service is asked.
type Calls struct {
	mu   sync.Mutex
	list []string
}

// Note records a call.
func (c *Calls) Note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, fmt.Sprintf(format, args...))
}

// Asked returns the calls so far.
func (c *Calls) Asked() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.list, "; ")
}

// Serve starts a Peer that ends with the test.
func Serve(t *testing.T) *Peer {
	t.Helper()
	p := &Peer{}
	p.Host = ServeJobs(t, p)
	return p
}

// ServeJobs serves a job service until the test ends and returns its address.
func ServeJobs(t *testing.T, jobs api.JobServiceServer) (host string) {
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

// The jobs of a Peer.
const (
	IDA = "aaaaaaaa-0000-4000-8000-000000000000"
	IDB = "bbbbbbbb-0000-4000-8000-000000000000"
	IDC = "cccccccc-0000-4000-8000-000000000000"
)

// Record returns a job in state s.
func Record(id string, s joblet.State, exit *joblet.Exit) *api.Job {
	j := joblet.Job{ID: id, State: s, Exit: exit, Spec: joblet.Spec{Command: "x"}}
	if s != joblet.Pending && s != joblet.Scheduled && s != joblet.Canceled {
		j.Started = time.Unix(1, 0)
	}
	return wire.JobToProto(j)
}

func (p *Peer) RunJob(_ context.Context, r *api.RunJobRequest) (*api.RunJobResponse, error) {
	p.Note("run %s %s %v", r.GetCommand(), r.GetSchedule(), r.GetSecretEnvironment())
	return &api.RunJobResponse{Job: Record(IDA, joblet.Scheduled, nil)}, nil
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
func (p *Peer) RunJobAttached(r *api.RunJobRequest, out grpc.ServerStreamingServer[api.JobEvent]) error {
	p.Note("attached %s", r.GetCommand())
	switch r.GetCommand() {
	case "dies": // and nobody knows what it has done
		return status.Error(codes.Unavailable, "error reading from server: EOF")
	case "refuses":
		err, _ := wire.ErrorToStatus(joblet.Errorf(joblet.Unavailable, "the daemon is stopping"))
		return err
	case "fails":
		return sendAll(out.Send, startedEvent(Record(IDA, joblet.Running, nil)), endedEvent(Record(IDA, joblet.Failed, &joblet.Exit{Code: 3})))
	case "cut":
		return sendAll(out.Send, waitingEvent(Record(IDA, joblet.Pending, nil)))
	}
	return sendAll(out.Send,
		waitingEvent(Record(IDA, joblet.Pending, nil)),
		startedEvent(Record(IDA, joblet.Running, nil)), outputEvent(client.Stdout, 0, "one\n"),
		waitingEvent(Record(IDA, joblet.Scheduled, nil)),
		startedEvent(Record(IDA, joblet.Running, nil)), outputEvent(client.Stderr, 4, "two\n"),
		endedEvent(Record(IDA, joblet.Completed, &joblet.Exit{})),
	)
}

func (p *Peer) FollowJob(r *api.FollowJobRequest, out grpc.ServerStreamingServer[api.JobEvent]) error {
	p.Note("follow %.4s from %d", r.GetUuid(), r.GetOffset())
	if r.GetUuid() == "cut" && r.GetOffset() == 0 { // a name, and the connection breaks
		if err := sendAll(out.Send, startedEvent(Record(IDA, joblet.Running, nil)), outputEvent(client.Stdout, 0, "begun\n")); err != nil {
			return err
		}
		err, _ := wire.ErrorToStatus(joblet.Errorf(joblet.Unavailable, "the daemon is stopping"))
		return err
	}
	return sendAll(out.Send, startedEvent(Record(r.GetUuid(), joblet.Running, nil)), outputEvent(client.Stdout, 0, "again\n"),
		endedEvent(Record(r.GetUuid(), joblet.Failed, &joblet.Exit{Code: 5})))
}

// SubmitJob echoes what it got.
func (p *Peer) SubmitJob(stream grpc.BidiStreamingServer[api.JobInput, api.JobEvent]) error {
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
	for h, err := range Entries(&files) {
		if err != nil {
			return err
		}
		names = append(names, h.Name)
	}
	p.Note("submit %s stdin=%q %q files=%v detach=%v", r.GetCommand(), r.GetStdin(), stdin.String(), names, r.GetDetach())
	return sendAll(stream.Send, startedEvent(Record(IDA, joblet.Running, nil)), outputEvent(client.Stdout, 0, stdin.String()),
		endedEvent(Record(IDA, joblet.Completed, &joblet.Exit{})))
}

// Entries returns the headers of a tar archive.
func Entries(r io.Reader) func(func(*tar.Header, error) bool) {
	return func(yield func(*tar.Header, error) bool) {
		for t := tar.NewReader(r); ; {
			h, err := t.Next()
			if errors.Is(err, io.EOF) || !yield(h, err) || err != nil {
				return
			}
		}
	}
}

func (p *Peer) CancelJob(_ context.Context, r *api.CancelJobRequest) (*api.CancelJobResponse, error) {
	p.Note("cancel %.4s", r.GetUuid())
	if r.GetUuid() == IDB {
		err, _ := wire.ErrorToStatus(joblet.Errorf(joblet.FailedPrecondition, "it runs"))
		return nil, err
	}
	return &api.CancelJobResponse{Job: Record(r.GetUuid(), joblet.Canceled, nil)}, nil
}

func (p *Peer) StopJob(_ context.Context, r *api.StopJobRequest) (*api.StopJobResponse, error) {
	p.Note("stop %.4s with %d", r.GetUuid(), r.GetSignal())
	return &api.StopJobResponse{Job: Record(r.GetUuid(), joblet.Stopped, nil)}, nil
}

func (p *Peer) SignalJob(_ context.Context, r *api.SignalJobRequest) (*api.SignalJobResponse, error) {
	verb := "signal"
	if r.GetDefaultAction() {
		verb = "interrupt"
	}
	p.Note("%s %.4s with %d", verb, r.GetUuid(), r.GetSignal())
	return &api.SignalJobResponse{}, nil
}

func (p *Peer) RerunJob(_ context.Context, r *api.RerunJobRequest) (*api.RunJobResponse, error) {
	p.Note("rerun %.4s %v", r.GetUuid(), r.GetSecretEnvironment())
	return &api.RunJobResponse{Job: Record(IDB, joblet.Running, nil)}, nil
}

func (p *Peer) PruneJobs(_ context.Context, r *api.PruneJobsRequest) (*api.PruneJobsResponse, error) {
	p.Note("prune %v %v before=%v dry=%v", r.GetStates(), r.GetLabels(), r.GetEndedBefore() != "", r.GetDryRun())
	return &api.PruneJobsResponse{DeletedCount: 2, FreedBytes: 2048}, nil
}

func (p *Peer) QueryJobs(r *api.QueryJobsRequest, out grpc.ServerStreamingServer[api.Jobs]) error {
	p.Note("query limit=%d before=%.4s parent=%.4s labels=%v since=%v", r.GetLimit(), r.GetBefore(), r.GetParent(), r.GetLabels(), r.GetSince() != "")
	all := []*api.Job{Record(IDC, joblet.Running, nil), Record(IDB, joblet.Failed, &joblet.Exit{Code: 1}), Record(IDA, joblet.Completed, &joblet.Exit{})}
	if n := int(r.GetLimit()); n > 0 {
		all = all[:min(n, len(all))]
	}
	return out.Send(&api.Jobs{Jobs: all})
}

func (p *Peer) GetJobStatus(_ context.Context, r *api.GetJobStatusRequest) (*api.GetJobStatusResponse, error) {
	for _, id := range []string{IDA, IDB, IDC} {
		if strings.HasPrefix(id, r.GetUuid()) {
			return wire.StatusToProto(wire.JobToProto(joblet.Job{ID: id, State: joblet.Completed, Exit: &joblet.Exit{}, Spec: joblet.Spec{Command: "x"}})), nil
		}
	}
	err, _ := wire.ErrorToStatus(joblet.Errorf(joblet.NotFound, "no job %q", r.GetUuid()))
	return nil, err
}

// GetJobFiles sends what a job has left: all of it, or what is at or below the
// first pattern, which is no pattern here, with the directories above it.
func (p *Peer) GetJobFiles(r *api.GetJobFilesRequest, out grpc.ServerStreamingServer[api.DataChunk]) error {
	p.Note("files %.4s %q", r.GetUuid(), r.GetPatterns())
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
