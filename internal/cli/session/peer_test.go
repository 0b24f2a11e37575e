package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/wire"
)

const (
	idA = "aaaaaaaa-0000-4000-8000-000000000000"
	idB = "bbbbbbbb-0000-4000-8000-000000000000"
)

// peer is a daemon that takes note of what it is asked.
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

func record(id string, s joblet.State, exit *joblet.Exit) *api.Job {
	j := joblet.Job{ID: id, State: s, Exit: exit, Spec: joblet.Spec{Command: "x"}}
	if s != joblet.Pending && s != joblet.Scheduled && s != joblet.Canceled {
		j.Started = time.Unix(1, 0)
	}
	return wire.JobToProto(j)
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
