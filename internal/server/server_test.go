package server

import (
	"bytes"
	"context"
	"crypto/rand"
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

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/testenv"
)

// TestRoleTable: each method that is served has a role, and each role a method.
func TestRoleTable(t *testing.T) {
	t.Parallel()
	s := New(nil, slog.New(slog.DiscardHandler), Options{Settings: DefaultSettings()})
	served := map[string]bool{}
	for service, info := range s.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			served["/"+service+"/"+m.Name] = true
		}
	}
	for method := range served {
		if _, ok := roles[method]; !ok {
			t.Errorf("%s has no role", method)
		}
	}
	for method := range roles {
		if !served[method] {
			t.Errorf("%s is not served", method)
		}
	}
}

func TestAuthorize(t *testing.T) {
	t.Parallel()
	root, user, member := caller{known: true}, caller{known: true, uid: 1000}, caller{known: true, uid: 1000, member: true}
	for _, tt := range []struct {
		caller caller
		method string
		denied string
	}{
		{root, api.JobService_RunJob_FullMethodName, ""},
		{root, "/joblet.Unknown/Method", ""},
		{user, api.JobService_ListJobs_FullMethodName, "uid:1000 may not use this daemon: only root may, and members of its group"},
		{caller{}, api.JobService_ListJobs_FullMethodName, "unknown may not use this daemon: only root may, and members of its group"},
		{member, api.JobService_RunJob_FullMethodName, ""},
		{member, api.RuntimeService_BuildRuntime_FullMethodName, "uid:1000 is developer, and this call needs maintainer"},
		{member, "/joblet.Unknown/Method", "uid:1000 is developer, and this call needs admin"},
	} {
		err := authorize(tt.caller, tt.method)
		if tt.denied == "" && err != nil || tt.denied != "" && (joblet.KindOf(err) != joblet.PermissionDenied || err.Error() != tt.denied) {
			t.Errorf("%+v %s: got %v", tt.caller, tt.method, err)
		}
	}
}

// TestMayHave: io_uring takes the role admin, in whatever profile and beside whatever else.
func TestMayHave(t *testing.T) {
	t.Parallel()
	root, member := caller{known: true}, caller{known: true, uid: 1000, member: true}
	for _, s := range []joblet.Security{
		{AllowCalls: []string{"io_uring_setup"}},
		{AllowCalls: []string{"read", "io_uring_enter"}},
		{Profile: joblet.ProfileStrict, AllowCalls: []string{"io_uring_register"}},
	} {
		if err := mayHave(root, s); err != nil {
			t.Errorf("root, %+v: %v", s, err)
		}
		if err := mayHave(member, s); joblet.KindOf(err) != joblet.PermissionDenied || !strings.Contains(err.Error(), "takes the role admin") {
			t.Errorf("a member of the group, %+v: %v", s, err)
		}
	}
	for _, s := range []joblet.Security{{}, {Profile: joblet.ProfileNested}, {AllowCalls: []string{"io_setup", "kcmp"}, DenyCalls: []string{"io_uring_setup"}}} {
		if err := mayHave(member, s); err != nil {
			t.Errorf("a member of the group, %+v: %v", s, err)
		}
	}
	for method := range commands {
		if accessOf(method) != controls { // checkJob looks at no others for maintainers
			t.Errorf("%s controls no job", method)
		}
	}
}

// start serves without a supervisor: a handler that needs one panics.
func start(t *testing.T) (s *Server, path string, log *bytes.Buffer) {
	t.Helper()
	log = &bytes.Buffer{}
	s = New(nil, slog.New(slog.NewTextHandler(log, nil)), Options{Settings: DefaultSettings()})
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
			if !strings.Contains(err.Error(), "this version of joblet cannot do that yet") {
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
