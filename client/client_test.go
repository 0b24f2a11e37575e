package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/api/jobletgrpc"
	"github.com/joblet/joblet/internal/wire"
)

// peer is grpc-go's server with answers that try the transport out.
type peer struct {
	jobletgrpc.UnimplementedJobServiceServer
	canceled chan struct{} // one for each call that the client left
}

func (p *peer) RunJob(_ context.Context, r *api.RunJobRequest) (*api.RunJobResponse, error) {
	if r.GetCommand() == "fail" {
		s, err := status.New(codes.InvalidArgument, r.GetArgs()[0]).WithDetails(
			&errdetails.ErrorInfo{Domain: "other", Reason: "INTERNAL"},
			&errdetails.ErrorInfo{Domain: wire.Domain, Reason: wire.Reason(joblet.CommandNotFound)})
		if err != nil {
			return nil, err
		}
		return nil, s.Err()
	}
	return &api.RunJobResponse{Job: &api.Job{Uuid: "x", Status: "RUNNING", Command: r.GetCommand(), Args: r.GetArgs()}}, nil
}

const pieces, pieceSize = 300, 40_000

func piece(i int) []byte { return bytes.Repeat([]byte{byte(i)}, pieceSize) }

func (p *peer) FollowJob(r *api.FollowJobRequest, out grpc.ServerStreamingServer[api.JobEvent]) error {
	if r.GetUuid() == "endless" {
		<-out.Context().Done()
		p.canceled <- struct{}{}
		return out.Context().Err()
	}
	for i := range pieces {
		err := out.Send(&api.JobEvent{Event: &api.JobEvent_Output{Output: &api.JobOutput{
			Stream: int32(1 + i%2), Offset: int64(i * pieceSize), TimeNs: int64(i), Data: piece(i),
		}}})
		if err != nil {
			p.canceled <- struct{}{}
			return err
		}
	}
	if err := out.Send(&api.JobEvent{Event: &api.JobEvent_Gap{Gap: &api.JobLogGap{Offset: 1, Length: 2}}}); err != nil {
		return err
	}
	if err := out.Send(&api.JobEvent{}); err != nil { // an event of a later version
		return err
	}
	return out.Send(&api.JobEvent{Event: &api.JobEvent_Ended{Ended: &api.Job{Uuid: r.GetUuid(), Status: "COMPLETED"}}})
}

func (p *peer) QueryJobs(_ *api.QueryJobsRequest, out grpc.ServerStreamingServer[api.Jobs]) error {
	for i := range 3 {
		if err := out.Send(&api.Jobs{Jobs: []*api.Job{{Uuid: fmt.Sprint(2 * i), Status: "LOST"}, {Uuid: fmt.Sprint(2*i + 1), Status: "LOST"}}}); err != nil {
			return err
		}
	}
	return nil
}

func serve(t *testing.T) (*Client, *peer, *grpc.Server) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{canceled: make(chan struct{}, 10)}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage))
	jobletgrpc.RegisterJobServiceServer(s, p)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c, err := Dial(t.Context(), "unix://"+path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		s.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return c, p, s
}

func TestCalls(t *testing.T) {
	t.Parallel()
	c, _, _ := serve(t)
	big := strings.Repeat("x", 10<<20) // many times the server's window
	for i := range 3 {
		want := joblet.Spec{Command: fmt.Sprint(i), Args: []string{big}}
		j, err := c.Run(t.Context(), want)
		if err != nil || j.Spec.Command != want.Command || len(j.Spec.Args) != 1 || j.Spec.Args[0] != big {
			t.Fatalf("got %s %d, %v", j.Spec.Command, len(j.Spec.Args), err)
		}
	}
	var ids []string
	for j, err := range c.Jobs(t.Context(), joblet.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, j.ID)
	}
	if got := strings.Join(ids, ""); got != "012345" {
		t.Errorf("jobs: got %s", got)
	}
	if n := len(c.pool.idle); n != 1 {
		t.Errorf("%d connections for calls that came one after the other", n)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	c, _, _ := serve(t)
	for _, message := range []string{"no such command: 100% wrong ü\n+", "", strings.Repeat("long ", 2000)} {
		_, err := c.Run(t.Context(), joblet.Spec{Command: "fail", Args: []string{message}})
		if joblet.KindOf(err) != joblet.CommandNotFound || err.Error() != message {
			t.Errorf("got %v %.50q", joblet.KindOf(err), err)
		}
	}
	if _, err := c.Job(t.Context(), "x"); joblet.KindOf(err) != joblet.Unimplemented {
		t.Errorf("got %v", err)
	}
	if _, err := c.Runtimes(t.Context()); joblet.KindOf(err) != joblet.Unimplemented {
		t.Errorf("got %v", err)
	}
	if _, err := c.Run(t.Context(), joblet.Spec{Command: "a\xff"}); joblet.KindOf(err) != joblet.InvalidArgument {
		t.Errorf("got %v", err)
	}
	if n := len(c.pool.idle); n != 1 {
		t.Errorf("%d connections after errors of calls", n)
	}
}

func TestFollow(t *testing.T) {
	t.Parallel()
	c, _, _ := serve(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			i, gap, ended := 0, false, false
			for event, err := range c.Follow(t.Context(), "x", joblet.LogOptions{}) {
				if err != nil {
					t.Error(err)
					return
				}
				switch e := event.(type) {
				case Output:
					if e.Stream != Stream(1+i%2) || e.Offset != int64(i*pieceSize) || e.Time.UnixNano() != int64(i) || !bytes.Equal(e.Data, piece(i)) {
						t.Errorf("piece %d: got %v %v %v", i, e.Stream, e.Offset, e.Time)
					}
					i++
				case Gap:
					gap = e == Gap{1, 2}
				case Ended:
					ended = e.Job.ID == "x" && e.Job.State == joblet.Completed
				}
			}
			if i != pieces || !gap || !ended {
				t.Errorf("got %d pieces, gap %v, ended %v", i, gap, ended)
			}
		})
	}
	wg.Wait()
}

// TestLeave leaves the loop early: the server must come to know, and the client
// stays usable.
func TestLeave(t *testing.T) {
	t.Parallel()
	c, p, _ := serve(t)
	for range c.Follow(t.Context(), "x", joblet.LogOptions{}) {
		break
	}
	<-p.canceled
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	for _, err := range c.Follow(ctx, "endless", joblet.LogOptions{}) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	<-p.canceled
	if _, err := c.Run(ctx, joblet.Spec{Command: "x"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Run(t.Context(), joblet.Spec{Command: "x"}); err != nil {
		t.Errorf("after it: %v", err)
	}
}

func TestDaemonGoes(t *testing.T) {
	t.Parallel()
	c, _, s := serve(t)
	if _, err := c.Run(t.Context(), joblet.Spec{Command: "x"}); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, s.Stop)
	for _, err := range c.Follow(t.Context(), "endless", joblet.LogOptions{}) {
		if joblet.KindOf(err) != joblet.Unavailable {
			t.Errorf("got %v", err)
		}
	}
	if _, err := c.Run(t.Context(), joblet.Spec{Command: "x"}); joblet.KindOf(err) != joblet.Unavailable {
		t.Errorf("got %v", err)
	}
}

// TestIdleConnection: an old connection is asked before it is used, and replaced
// when it is dead.
func TestIdleConnection(t *testing.T) {
	t.Parallel()
	c, _, _ := serve(t)
	for _, kill := range []bool{false, true} {
		conn := c.pool.idle[0]
		conn.used = time.Now().Add(-time.Hour)
		if kill {
			conn.net.Close()
		}
		if _, err := c.Run(t.Context(), joblet.Spec{Command: "x"}); err != nil {
			t.Fatal(err)
		}
		if same := c.pool.idle[0] == conn; same == kill {
			t.Errorf("killed %v: the same connection %v", kill, same)
		}
	}
}

func TestDialErrors(t *testing.T) {
	t.Parallel()
	for host, kind := range map[string]joblet.Kind{
		"":                  joblet.InvalidArgument,
		"/run/x":            joblet.InvalidArgument,
		"unix://x":          joblet.InvalidArgument,
		"tcp://localhost:1": joblet.Unimplemented,
		"unix://" + filepath.Join(t.TempDir(), "none"): joblet.Unavailable,
	} {
		_, err := Dial(t.Context(), host)
		if joblet.KindOf(err) != kind {
			t.Errorf("%q: got %v", host, err)
		}
		if kind == joblet.Unavailable && !errors.Is(err, syscall.ENOENT) {
			t.Errorf("%q: %v does not hold ENOENT", host, err)
		}
	}
}

// TestMethods: the paths that the client calls are the API's.
func TestMethods(t *testing.T) {
	t.Parallel()
	for path, method := range map[string]string{
		jobService + "RunJobAttached":         jobletgrpc.JobService_RunJobAttached_FullMethodName,
		jobService + "DeleteAllJobs":          jobletgrpc.JobService_DeleteAllJobs_FullMethodName,
		jobService + "StopJob":                jobletgrpc.JobService_StopJob_FullMethodName,
		jobService + "SignalJob":              jobletgrpc.JobService_SignalJob_FullMethodName,
		jobService + "WaitJob":                jobletgrpc.JobService_WaitJob_FullMethodName,
		jobService + "DeleteJob":              jobletgrpc.JobService_DeleteJob_FullMethodName,
		jobService + "GetJobStatus":           jobletgrpc.JobService_GetJobStatus_FullMethodName,
		runtimeService + "ListRuntimes":       jobletgrpc.RuntimeService_ListRuntimes_FullMethodName,
		runtimeService + "GetRuntimeInfo":     jobletgrpc.RuntimeService_GetRuntimeInfo_FullMethodName,
		runtimeService + "BuildRuntime":       jobletgrpc.RuntimeService_BuildRuntime_FullMethodName,
		runtimeService + "TestRuntime":        jobletgrpc.RuntimeService_TestRuntime_FullMethodName,
		runtimeService + "RemoveRuntime":      jobletgrpc.RuntimeService_RemoveRuntime_FullMethodName,
		monitoringService + "GetSystemStatus": jobletgrpc.MonitoringService_GetSystemStatus_FullMethodName,
	} {
		if path != method {
			t.Errorf("%s: the API has %s", path, method)
		}
	}
}

// scripted is a connection whose server has said all it will say.
type scripted struct {
	net.Conn
	in io.Reader
}

func (s scripted) Read(b []byte) (int, error)  { return s.in.Read(b) }
func (s scripted) Write(b []byte) (int, error) { return len(b), nil }
func (s scripted) Close() error                { return nil }
func (s scripted) SetDeadline(time.Time) error { return nil }

// FuzzAnswer feeds the client whatever a server may send.
func FuzzAnswer(f *testing.F) {
	message, err := proto.Marshal(&api.RunJobResponse{Job: &api.Job{Uuid: "x", Status: "RUNNING"}})
	if err != nil {
		f.Fatal(err)
	}
	good := new(conn)
	good.frame(frameSettings, 0, 0, 6)
	good.out = append(good.out, 0, settingInitialWindowSize, 0, 1, 0, 0)
	good.frame(frameHeaders, flagEndHeaders, 1, 1)
	good.out = append(good.out, 0x88) // :status 200
	good.frame(frameData, 0, 1, 5+len(message))
	good.out = append(append(good.out, 0, 0, 0, 0, byte(len(message))), message...)
	good.frame(frameHeaders, flagEndHeaders|flagEndStream, 1, 15)
	good.out = append(good.out, "\x00\x0bgrpc-status\x010"...)
	f.Add(good.out)
	f.Add(good.out[:40])
	f.Add([]byte{0, 0, 4, frameRSTStream, 0, 0, 0, 0, 1, 0, 0, 0, 2})
	f.Add([]byte{0, 0, 8, frameGoAway, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &Client{pool: pool{dial: func(context.Context) (net.Conn, error) { return scripted{in: bytes.NewReader(b)}, nil }}}
		defer c.Close()
		j, err := c.Run(t.Context(), joblet.Spec{Command: "x"})
		if bytes.Equal(b, good.out) && (err != nil || j.ID != "x") {
			t.Errorf("good answer: got %q, %v", j.ID, err)
		}
	})
}
