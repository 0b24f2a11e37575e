package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/wire"
)

// peer answers what tries the client out.
type peer struct {
	api.UnimplementedJobServiceServer
	server *grpc.Server
	path   string
	begun  chan struct{} // one for each endless call
	left   chan struct{} // one for each call that the client left
	cut    chan error    // how the input of a call ended that did not end by itself
	wake   chan struct{} // ends a job that sleeps
}

func (p *peer) RunJob(_ context.Context, r *api.RunJobRequest) (*api.RunJobResponse, error) {
	if r.GetCommand() == "fail" {
		for k := joblet.Internal; ; k++ {
			if k.String() == r.GetArgs()[0] {
				err, _ := wire.ErrorToStatus(joblet.Errorf(k, "%s", r.GetArgs()[1]))
				return nil, err
			}
		}
	}
	return &api.RunJobResponse{Job: &api.Job{Uuid: "x", Status: "RUNNING", Command: r.GetCommand(), Args: r.GetArgs()}}, nil
}

const pieces, pieceSize = 300, 40_000

func piece(i int) []byte { return bytes.Repeat([]byte{byte(i)}, pieceSize) }

func (p *peer) FollowJob(r *api.FollowJobRequest, out grpc.ServerStreamingServer[api.JobEvent]) error {
	switch r.GetUuid() {
	case "endless":
		p.begun <- struct{}{}
		<-out.Context().Done()
		p.left <- struct{}{}
		return out.Context().Err()
	case "short":
		return nil
	case "scheduled":
		return out.Send(waiting(&api.Job{Status: "SCHEDULED"}))
	case "stopping":
		err, _ := wire.ErrorToStatus(joblet.Errorf(joblet.Unavailable, "the daemon is stopping"))
		return err
	}
	for i := range pieces {
		err := out.Send(&api.JobEvent{Event: &api.JobEvent_Output{Output: &api.JobOutput{
			Stream: int32(1 + i%2), Offset: int64(i * pieceSize), TimeNs: int64(i), Data: piece(i),
		}}})
		if err != nil {
			p.left <- struct{}{}
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

// listen serves p's calls on its socket.
func (p *peer) listen(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", p.path)
	if err != nil {
		t.Fatal(err)
	}
	p.server = grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage))
	api.RegisterJobServiceServer(p.server, p)
	served := make(chan error, 1)
	go func() { served <- p.server.Serve(l) }()
	t.Cleanup(func() {
		p.server.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
}

func serve(t *testing.T) (*Client, *peer) {
	t.Helper()
	p := &peer{
		path: filepath.Join(t.TempDir(), "100% s?#ü"), begun: make(chan struct{}, 10), left: make(chan struct{}, 10),
		cut: make(chan error, 10), wake: make(chan struct{}),
	}
	p.listen(t)
	c, err := Dial(t.Context(), "unix://"+p.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, p
}

func TestCalls(t *testing.T) {
	t.Parallel()
	c, _ := serve(t)
	big := strings.Repeat("x", 5<<20) // more than the windows and than gRPC's own limit of 4 MiB
	for i := range 2 {
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
}

func TestErrors(t *testing.T) {
	t.Parallel()
	c, _ := serve(t)
	for k := joblet.Internal; k <= joblet.NotExecutable; k++ {
		for _, message := range []string{"no such command: 100% wrong ü\n+", "", strings.Repeat("long ", 500)} {
			_, err := c.Run(t.Context(), joblet.Spec{Command: "fail", Args: []string{k.String(), message}})
			if joblet.KindOf(err) != k || err.Error() != message {
				t.Errorf("%v: got %v %.50q", k, joblet.KindOf(err), err)
			}
		}
	}
	for _, err := range c.Follow(t.Context(), "stopping", joblet.LogOptions{}) {
		if joblet.KindOf(err) != joblet.Unavailable || err.Error() != "the daemon is stopping" {
			t.Errorf("stream: got %v %v", joblet.KindOf(err), err)
		}
	}
	if _, err := c.Job(t.Context(), "x"); joblet.KindOf(err) != joblet.Unimplemented {
		t.Errorf("method: got %v", err)
	}
	if _, err := c.Runtimes(t.Context()); joblet.KindOf(err) != joblet.Unimplemented {
		t.Errorf("service: got %v", err)
	}
	if err := c.Delete(t.Context(), "a\xff"); joblet.KindOf(err) != joblet.InvalidArgument {
		t.Errorf("not UTF-8: got %v", err)
	}
	for _, err := range c.Follow(t.Context(), "a\xff", joblet.LogOptions{}) {
		if joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("not UTF-8, stream: got %v", err)
		}
	}
}

func TestRequestTooLarge(t *testing.T) {
	t.Parallel()
	c, _ := serve(t)
	_, err := c.BuildRuntime(t.Context(), strings.Repeat("x", maxMessage), false, nil)
	if want := fmt.Sprintf("at most %d are possible", maxMessage); joblet.KindOf(err) != joblet.InvalidArgument || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v", err)
	}
	if err := sendable(&api.BuildRuntimeRequest{YamlContent: strings.Repeat("x", 1000)}); err != nil {
		t.Error(err)
	}
}

func TestFollow(t *testing.T) {
	t.Parallel()
	c, _ := serve(t)
	var wg sync.WaitGroup
	for range 4 { // at once on one connection
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
		wg.Go(func() {
			if _, err := c.Run(t.Context(), joblet.Spec{Command: "x"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestLeave leaves calls early: the daemon must come to know, no goroutine may
// stay, and the client stays usable. It counts all goroutines, so it runs alone.
func TestLeave(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("calls", func(t *testing.T) {
		c, p := serve(t)
		for range c.Follow(t.Context(), "x", joblet.LogOptions{}) {
			break
		}
		<-p.left
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-p.begun
			cancel()
		}()
		for _, err := range c.Follow(ctx, "endless", joblet.LogOptions{}) {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		}
		<-p.left
		if _, err := c.Run(ctx, joblet.Spec{Command: "x"}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		late, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		for _, err := range c.Follow(late, "endless", joblet.LogOptions{}) {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		}
		if _, err := c.Run(t.Context(), joblet.Spec{Command: "x"}); err != nil {
			t.Errorf("after it: %v", err)
		}
	})
	for deadline := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// TestDaemonGoes: a call that is interrupted, one to a stopped daemon, and one to its
// successor.
func TestDaemonGoes(t *testing.T) {
	t.Parallel()
	c, p := serve(t)
	go func() {
		<-p.begun
		p.server.Stop()
	}()
	for _, err := range c.Follow(t.Context(), "endless", joblet.LogOptions{}) {
		if joblet.KindOf(err) != joblet.Unavailable {
			t.Errorf("cut: got %v", err)
		}
	}
	_, err := c.Run(t.Context(), joblet.Spec{Command: "x"})
	if joblet.KindOf(err) != joblet.Unavailable || !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), p.path) {
		t.Errorf("gone: got %v", err)
	}
	p.listen(t)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err = c.Run(t.Context(), joblet.Spec{Command: "x"}); err == nil {
			return
		}
		if joblet.KindOf(err) != joblet.Unavailable || time.Now().After(deadline) {
			t.Fatalf("back: got %v", err)
		}
	}
}

func TestEndOfStream(t *testing.T) {
	t.Parallel()
	c, _ := serve(t)
	n := 0
	for _, err := range c.Follow(t.Context(), "short", joblet.LogOptions{}) {
		n++
		if joblet.KindOf(err) != joblet.Unavailable {
			t.Errorf("got %v", err)
		}
	}
	if n != 1 {
		t.Errorf("%d events", n)
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	c, p := serve(t)
	go func() {
		<-p.begun
		c.Close()
	}()
	for _, err := range c.Follow(t.Context(), "endless", joblet.LogOptions{}) {
		if joblet.KindOf(err) != joblet.FailedPrecondition {
			t.Errorf("under way: got %v", err)
		}
	}
	if _, err := c.Run(t.Context(), joblet.Spec{Command: "x"}); joblet.KindOf(err) != joblet.FailedPrecondition {
		t.Errorf("got %v", err)
	}
}

func TestDialErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	dead, mute, foreign := filepath.Join(dir, "dead"), filepath.Join(dir, "mute"), filepath.Join(dir, "foreign")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	silent, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", foreign)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := other.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("220 mail.example ESMTP\r\n"))
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		silent.Close()
		other.Close()
	})
	for _, tt := range []struct {
		host  string
		kind  joblet.Kind
		cause error
	}{
		{"", joblet.InvalidArgument, nil},
		{"/run/x", joblet.InvalidArgument, nil},
		{"unix://x", joblet.InvalidArgument, nil},
		{"tcp://localhost:1", joblet.InvalidArgument, nil},
		{"unix://" + filepath.Join(dir, "none"), joblet.Unavailable, syscall.ENOENT},
		{"unix://" + dead, joblet.Unavailable, syscall.ECONNREFUSED},
		{"unix://" + mute, joblet.Unavailable, context.DeadlineExceeded},
		{"unix://" + foreign, joblet.Unavailable, nil},
	} {
		ctx, cancel := t.Context(), context.CancelFunc(func() {})
		if tt.cause == context.DeadlineExceeded {
			ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
		}
		c, err := Dial(ctx, tt.host)
		cancel()
		if err == nil {
			c.Close()
		}
		if joblet.KindOf(err) != tt.kind || tt.cause != nil && !errors.Is(err, tt.cause) {
			t.Errorf("%q: got %v %v", tt.host, joblet.KindOf(err), err)
		}
		if path, ok := strings.CutPrefix(tt.host, "unix:///"); ok && !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v does not name the socket", tt.host, err)
		}
	}
}
