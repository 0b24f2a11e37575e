// Package server serves the gRPC API: who calls, what they may, and handlers
// that hand over to the supervisor.
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
	"github.com/joblet/joblet/internal/supervisor"
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
	minPing          = 10 * time.Second // a client that asks more often is cut
)

// shutdownTime is how long calls under way may take to end when the daemon
// stops; then they are cut.
const shutdownTime = 4 * time.Second

// restTime is how long no call has been under way when the daemon is taken to rest.
const restTime = 2 * time.Second

var errStopping = joblet.Errorf(joblet.Unavailable, "the daemon is stopping; jobs go on")

// Options say what a server is made of beside its jobs.
type Options struct {
	PKI      *pki.Server      // for clients with certificates; nil: there are none
	Audit    *Audit           // nil: no audit log
	Metrics  *metrics.Metrics // counts the calls; nil: nothing does
	Settings Settings
	Group    int // on this host's socket its members are developers; 0: root alone
}

// Settings can be changed while the server serves.
type Settings struct {
	Allow []Rule
	admission.Limits
}

// DefaultSettings allow what a client needs who means well.
func DefaultSettings() Settings { return Settings{Limits: admission.DefaultLimits()} }

// Server serves one supervisor's jobs.
type Server struct {
	log       *slog.Logger
	sup       *supervisor.Supervisor
	pki       *pki.Server
	admission *admission.Admission
	audit     *Audit
	metrics   *metrics.Metrics
	settings  atomic.Pointer[Settings]
	ruled     ruledCalls
	grpc      *grpc.Server
	methods   map[string]grpc.MethodInfo // by their full names
	health    *health.Server
	activity  activity
	stopping  context.Context // done when the daemon stops
	stop      context.CancelCauseFunc
}

// New returns a server of sup's jobs that serves nothing yet.
func New(sup *supervisor.Supervisor, log *slog.Logger, opt Options) *Server {
	s := &Server{log: log, sup: sup, pki: opt.PKI, audit: opt.Audit, metrics: opt.Metrics, health: health.NewServer()}
	s.Configure(opt.Settings)
	s.admission = admission.New(log, restTime, func() admission.Limits { return s.settings.Load().Limits })
	s.methods = map[string]grpc.MethodInfo{}
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
	services.RegisterService(jobServiceDesc(), &jobService{sup: sup, srv: s})
	api.RegisterRuntimeServiceServer(services, &runtimeService{sup: sup, log: log})
	api.RegisterMonitoringServiceServer(services, &monitoringService{sup: sup})
	api.RegisterNetworkServiceServer(services, &networkService{})
	api.RegisterVolumeServiceServer(services, &volumeService{})
	healthgrpc.RegisterHealthServer(services, s.health)
	reflection.Register(services)
	for service, info := range s.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			s.methods["/"+service+"/"+m.Name] = m
		}
	}
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
		return errors.New("there are no certificates to serve with")
	}
	go s.admission.Sweep(s.stopping, s.pki.Check)
	return s.Serve(s.admission.Listen(l))
}

// enter decides on a call before anything of its request is read.
func (s *Server) enter(ctx context.Context, _ *tap.Info) (context.Context, error) {
	c := callerOf(ctx)
	return s.admission.Enter(ctx, c.conn, c.name(), c.cert == nil && c.uid == 0)
}

// Configure changes the settings. Calls under way that they do not allow any more
// end.
func (s *Server) Configure(set Settings) {
	s.settings.Store(&set)
	for _, err := range s.ruled.check(s.may) {
		s.log.Info("call ended", "error", err)
	}
}

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
