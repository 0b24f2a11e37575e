package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/server/admission"
	"github.com/joblet/joblet/internal/service"
	"github.com/joblet/joblet/internal/testenv"
)

// TestMethods: each method that is served does an operation that the service knows, and
// no other is in the table.
func TestMethods(t *testing.T) {
	t.Parallel()
	served := map[string]bool{}
	for _, method := range methods(newServer(slog.New(slog.DiscardHandler))) {
		served[method] = true
		op, ok := operations[method]
		if _, known := op.Needs(); !ok || !known {
			t.Errorf("%s does %q: a row in the table of operations is missing", method, op)
		}
	}
	for method := range operations {
		if !served[method] {
			t.Errorf("%s is not served", method)
		}
	}
}

// firstMessages are what methods need to get as far as their operation, if not an empty
// message.
var firstMessages = map[string]proto.Message{
	"SignalJob": &api.SignalJobRequest{Signal: 1},
	"AttachJob": &api.JobInput{Input: &api.JobInput_Attach{Attach: &api.AttachJobRequest{}}},
	"SubmitJob": &api.JobInput{Input: &api.JobInput_Run{Run: &api.RunJobRequest{}}},
	"ExecJob":   &api.ExecInput{Input: &api.ExecInput_Run{Run: &api.ExecJobRequest{}}},
}

// oneMessage is a stream with one message.
type oneMessage struct {
	grpc.ServerStream
	ctx     context.Context
	message func(any) error
}

func (s *oneMessage) Context() context.Context { return s.ctx }
func (s *oneMessage) RecvMsg(m any) error      { return s.message(m) }
func (s *oneMessage) SendMsg(any) error        { return io.ErrClosedPipe }

// TestEveryMethodDoesItsOperation: each method calls the operation of the table, and
// leaves authorization to the service.
func TestEveryMethodDoesItsOperation(t *testing.T) {
	t.Parallel()
	svc := service.New(nil, slog.New(slog.DiscardHandler), nil)
	eve, root := service.Caller{Name: "eve"}, service.Caller{Name: "uid:0", Role: service.Admin}
	check := func(name string, call func(context.Context, func(any) error) error) {
		method, _ := strings.CutPrefix(name, "/")
		_, method, _ = strings.Cut(method, "/")
		fill := func(m any) error {
			if first := firstMessages[method]; first != nil {
				proto.Merge(m.(proto.Message), first)
			}
			return nil
		}
		as := func(c service.Caller) context.Context { return context.WithValue(t.Context(), identityKey{}, c) }
		if err := call(as(eve), fill); joblet.KindOf(err) != joblet.PermissionDenied {
			t.Errorf("%s past the table of methods, by one without a role: got %v", name, err)
		}
		// There is no supervisor here, so the operation panics.
		err := svc.Call(as(root), service.Entry{Caller: root, Operation: operations[name]}, func(ctx context.Context) error { return call(ctx, fill) })
		if err != nil && strings.Contains(err.Error(), "within a call of") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, s := range []struct {
		desc *grpc.ServiceDesc
		impl any
	}{
		{jobServiceDesc(), &jobService{jobs: svc.Jobs, service: svc}}, {&api.RuntimeService_ServiceDesc, &runtimeService{runtimes: svc.Runtimes}},
		{&api.MonitoringService_ServiceDesc, &monitoringService{host: svc.Host}},
		{&api.NetworkService_ServiceDesc, &networkService{service: svc}}, {&api.VolumeService_ServiceDesc, &volumeService{service: svc}},
	} {
		for _, m := range s.desc.Methods {
			check("/"+s.desc.ServiceName+"/"+m.MethodName, func(ctx context.Context, fill func(any) error) error {
				_, err := m.Handler(s.impl, ctx, fill, nil)
				return err
			})
		}
		for _, m := range s.desc.Streams {
			check("/"+s.desc.ServiceName+"/"+m.StreamName, func(ctx context.Context, fill func(any) error) error {
				return m.Handler(s.impl, &oneMessage{ctx: ctx, message: fill})
			})
		}
	}
}

// newServer returns a server without a supervisor.
func newServer(log *slog.Logger) *Server {
	return New(service.New(nil, log, nil), log, Options{Limits: admission.DefaultLimits()})
}

// start serves without a supervisor: a handler that needs one panics.
func start(t *testing.T) (s *Server, path string, log *bytes.Buffer) {
	t.Helper()
	log = &bytes.Buffer{}
	s = newServer(slog.New(slog.NewTextHandler(log, nil)))
	// An abstract socket has no mode that keeps others out before we do.
	path = "@joblet-test-" + rand.Text()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Shutdown()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, path, log
}

func dial(t *testing.T, path string, uid int) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return connectAs(path, uid) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// connectAs connects from a thread of its own with another effective uid.
func connectAs(path string, uid int) (conn net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var fd int
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			err = errno
			return
		}
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err == nil {
			conn, err = net.FileConn(f)
		}
	}()
	<-done
	return conn, err
}

func TestPeers(t *testing.T) {
	testenv.RequireRoot(t)
	s, path, _ := start(t)
	root := api.NewMonitoringServiceClient(dial(t, path, 0))
	out, err := root.GetSystemStatus(t.Context(), &api.EmptyRequest{})
	if err != nil || out.GetServerVersion().GetVersion() != joblet.Build().Version || out.GetHost().GetKernelVersion() == "" {
		t.Errorf("root: got %v, %v", out, err)
	}
	user := dial(t, path, 65534)
	_, err = api.NewMonitoringServiceClient(user).GetSystemStatus(t.Context(), &api.EmptyRequest{})
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "uid:65534") {
		t.Errorf("call: got %v", err)
	}
	stream, err := api.NewJobServiceClient(user).FollowJob(t.Context(), &api.FollowJobRequest{Uuid: "x"})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("stream: got %v", err)
	}
	if s.Idle() > time.Minute {
		t.Errorf("idle for %v right after calls", s.Idle())
	}
}

// TestUnbuilt: what is not built says so, and docs/REMOTE.md lists it.
func TestUnbuilt(t *testing.T) {
	t.Parallel()
	s, path, _ := start(t)
	text, err := os.ReadFile("../../docs/REMOTE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "## Not built yet\n")
	if !ok {
		t.Fatal("no section")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	listed := regexp.MustCompile("`([A-Za-z_.]+)`").FindAllStringSubmatch(section, -1)
	var docs, have []string
	for _, name := range listed {
		docs = append(docs, name[1])
	}
	c := dial(t, path, 0)
	for _, method := range methods(s) {
		if err := ask(t.Context(), c, method); status.Code(err) == codes.Unimplemented {
			if !strings.Contains(err.Error(), "not supported by this version of joblet") {
				t.Errorf("%s: %v", method, err)
			}
			have = append(have, strings.Replace(strings.TrimPrefix(method, "/joblet."), "/", ".", 1))
		}
	}
	for name, r := range map[string]*api.RunJobRequest{
		"gpu_count": {GpuCount: 1}, "gpu_memory_mb": {GpuMemoryMb: 1}, "network": {Network: "x"}, "volumes": {Volumes: []string{"x"}},
	} {
		r.Command = "true"
		if _, err := api.NewJobServiceClient(c).RunJob(t.Context(), r); status.Code(err) == codes.Unimplemented && strings.Contains(err.Error(), name+":") {
			have = append(have, name)
		}
	}
	slices.Sort(have)
	if slices.Sort(docs); !slices.Equal(docs, have) {
		t.Errorf("the daemon says %q, docs/REMOTE.md %q", have, docs)
	}
}

func TestPanic(t *testing.T) {
	t.Parallel()
	s, path, log := start(t)
	_, err := api.NewJobServiceClient(dial(t, path, 0)).GetJobStatus(t.Context(), &api.GetJobStatusRequest{Uuid: "x"})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "nil pointer") {
		t.Errorf("got %v", err)
	}
	s.Shutdown()
	if !strings.Contains(log.String(), "nil pointer") || !strings.Contains(log.String(), "GetJobStatus") {
		t.Errorf("log: %s", log)
	}
}

// TestShutdown ends streams that would go on for ever, and tells their callers.
func TestShutdown(t *testing.T) {
	t.Parallel()
	s, path, _ := start(t)
	stream, err := grpc_health_v1.NewHealthClient(dial(t, path, 0)).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Fatalf("got %v, %v", m, err)
	}
	if s.Idle() != 0 {
		t.Errorf("idle for %v during a call", s.Idle())
	}
	start := time.Now()
	s.Shutdown()
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}
