// Package server serves the gRPC API: it authenticates callers, translates requests for
// the service and answers of it, and knows the transport. It decides nothing.
package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/tap"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/metrics"
	"github.com/joblet/joblet/internal/pki"
	"github.com/joblet/joblet/internal/server/admission"
	"github.com/joblet/joblet/internal/service"
)

// Bounds on what a caller may send.
const (
	maxMessage = 128 << 20 // the API's limit
	maxHeaders = 16 << 10
	maxStreams = 10_000 // calls at once on one connection
)

// window is how many bytes of output may be under way unread on one stream.
const window = 4 << 20

// handshakeTime bounds how long a connection may take to become one.
const handshakeTime = 10 * time.Second

// Connections on which nothing happens.
const (
	idleTime         = 30 * time.Minute // without a call, until it is ended
	keepaliveTime    = time.Minute      // without a word, until it is asked whether it lives
	keepaliveTimeout = 20 * time.Second // for the answer
	minPing          = 10 * time.Second // connections of clients that ping more often are closed
)

// shutdownTime is how long calls in flight may take to end when the daemon stops,
// before they are canceled.
const shutdownTime = 4 * time.Second

// restTime is how long no call has been under way when the daemon is taken to rest.
const restTime = 2 * time.Second

var errStopping = joblet.Errorf(joblet.Unavailable, "the daemon is stopping; jobs keep running")

// Options say what a server is made of beside its jobs.
type Options struct {
	PKI     *pki.Server      // for clients with certificates; nil: there are none
	Metrics *metrics.Metrics // counts the calls; nil: nothing does
	Limits  admission.Limits
	Group   int // on this host's socket its members are developers; 0: root alone
}

// Server serves one service.
type Server struct {
	service    *service.Service
	operations map[string]service.Operation // by the full names of methods
	pki        *pki.Server
	admission  *admission.Admission
	metrics    *metrics.Metrics
	limits     atomic.Pointer[admission.Limits]
	grpc       *grpc.Server
	health     *health.Server
	activity   activity
	stopping   context.Context // done when the daemon stops
	stop       context.CancelCauseFunc
}

// New returns a server of what svc does that serves nothing yet.
func New(svc *service.Service, log *slog.Logger, opt Options) *Server {
	s := &Server{service: svc, operations: operations, pki: opt.PKI, metrics: opt.Metrics, health: health.NewServer()}
	s.Configure(opt.Limits)
	s.admission = admission.New(log, restTime, func() admission.Limits { return *s.limits.Load() })
	s.activity.last = time.Now()
	s.activity.rest = time.AfterFunc(restTime, func() {
		if s.activity.idle() >= restTime {
			admission.GiveBack() // Go does that slowly after a burst of calls, and never with all of it
		}
	})
	s.stopping, s.stop = context.WithCancelCause(context.Background())
	s.grpc = grpc.NewServer(
		grpc.ForceServerCodecV2(admission.NewCodec()),
		grpc.ReadBufferSize(0), // each connection has its own
		grpc.Creds(transport{peerCredentials: peerCredentials{opt.Group, s.admission}, pki: opt.PKI}),
		grpc.InTapHandle(s.enter),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTime, Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
	)
	services := admission.Registrar{Server: s.grpc, Memory: map[string]int{api.JobService_ListJobs_FullMethodName: maxList}}
	services.RegisterService(jobServiceDesc(), &jobService{jobs: svc.Jobs, service: svc})
	api.RegisterRuntimeServiceServer(services, &runtimeService{runtimes: svc.Runtimes})
	api.RegisterMonitoringServiceServer(services, &monitoringService{host: svc.Host})
	api.RegisterNetworkServiceServer(services, &networkService{service: svc})
	api.RegisterVolumeServiceServer(services, &volumeService{service: svc})
	healthgrpc.RegisterHealthServer(services, s.health)
	reflection.Register(services)
	return s
}

// Serve answers the calls that come through l, which it closes, until Shutdown.
func (s *Server) Serve(l net.Listener) error {
	err := s.grpc.Serve(l)
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// ServeTLS is Serve for clients with certificates.
func (s *Server) ServeTLS(l net.Listener) error {
	if s.pki == nil {
		return errors.New("cannot serve remote clients without certificates")
	}
	go s.admission.Sweep(s.stopping, s.pki.Check)
	return s.Serve(s.admission.Listen(l))
}

// enter decides on a call before anything of its request is read.
func (s *Server) enter(ctx context.Context, _ *tap.Info) (context.Context, error) {
	c := callerOf(ctx)
	return s.admission.Enter(ctx, c.conn, c.name(), c.cert == nil && c.uid == 0)
}

// Configure changes the limits while the server serves.
func (s *Server) Configure(l admission.Limits) { s.limits.Store(&l) }

// Shutdown takes no more calls, ends those that follow or wait, and returns
// when all are gone: within five seconds.
func (s *Server) Shutdown() {
	s.health.Shutdown()
	s.activity.rest.Stop()
	s.admission.Rest()
	s.stop(errStopping)
	defer s.admission.Close()
	cut := time.AfterFunc(shutdownTime, s.grpc.Stop)
	defer cut.Stop()
	s.grpc.GracefulStop()
}

// Idle reports how long no call has been under way: 0 while one is.
func (s *Server) Idle() time.Duration { return s.activity.idle() }

// activity counts the calls under way.
type activity struct {
	mu    sync.Mutex
	calls int
	last  time.Time // when calls became 0
	rest  *time.Timer
}

func (a *activity) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls++
}

func (a *activity) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.calls--; a.calls == 0 {
		a.last = time.Now()
		a.rest.Reset(restTime)
	}
}

func (a *activity) idle() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.calls > 0 {
		return 0
	}
	return time.Since(a.last)
}
