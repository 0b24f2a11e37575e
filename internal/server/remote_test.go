package server

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/pki"
	"github.com/joblet/joblet/internal/server/admission"
	"github.com/joblet/joblet/internal/service"
)

// remote is a server without jobs for clients with certificates.
type remote struct {
	*Server
	dir     pki.Dir
	admin   pki.Bundle
	address string
	log     *bytes.Buffer
}

func startRemote(t *testing.T, opt Options, more ...func(*Server)) *remote {
	t.Helper()
	return startAudited(t, opt, nil, more...)
}

// startAudited is startRemote with an audit log, if there is one.
func startAudited(t *testing.T, opt Options, audit *service.Audit, more ...func(*Server)) *remote {
	t.Helper()
	r := &remote{dir: pki.Dir{Path: filepath.Join(t.TempDir(), "pki")}, log: &bytes.Buffer{}}
	var err error
	if r.admin, err = r.dir.Init(nil, "root", pki.DefaultValid); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(r.log, nil))
	if opt.PKI, err = pki.Open(r.dir.Path, log); err != nil {
		t.Fatal(err)
	}
	limits := admission.DefaultLimits()
	if opt.Limits.MaxConnections == 0 {
		opt.Limits = limits
	}
	opt.Limits.RequestMemory = cmp.Or(opt.Limits.RequestMemory, limits.RequestMemory)
	opt.Limits.ResponseMemory = cmp.Or(opt.Limits.ResponseMemory, limits.ResponseMemory)
	r.Server = New(service.New(nil, log, audit), log, opt)
	for _, f := range more {
		f(r.Server)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- r.ServeTLS(l) }()
	t.Cleanup(func() {
		r.Shutdown()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *remote) issue(t *testing.T, name, role string) pki.Bundle {
	t.Helper()
	b, err := r.dir.Issue(name, role, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// config is a client's that shows b's certificate, if it has one.
func config(t *testing.T, b pki.Bundle) *tls.Config {
	t.Helper()
	conf := &tls.Config{ServerName: pki.ServerName, RootCAs: x509.NewCertPool(), NextProtos: []string{"h2"}}
	conf.RootCAs.AppendCertsFromPEM(b.CA)
	if b.Cert != nil {
		pair, err := tls.X509KeyPair(b.Cert, b.Key)
		if err != nil {
			t.Fatal(err)
		}
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return conf
}

func (r *remote) dial(t *testing.T, b pki.Bundle) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+r.address, grpc.WithTransportCredentials(credentials.NewTLS(config(t, b))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask calls a method of any kind with an empty message and returns the status
// of its first answer.
func ask(ctx context.Context, conn *grpc.ClientConn, method string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if err := s.SendMsg(&emptypb.Empty{}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return s.RecvMsg(&emptypb.Empty{})
}

func methods(s *Server) (all []string) {
	for service, info := range s.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			all = append(all, "/"+service+"/"+m.Name)
		}
	}
	return all
}

// TestEveryMethodEveryRole: each method of each service admits exactly the roles of the
// table, by certificate.
func TestEveryMethodEveryRole(t *testing.T) {
	t.Parallel()
	r := startRemote(t, Options{})
	if n := len(methods(r.Server)); n < 45 {
		t.Fatalf("only %d methods", n)
	}
	for _, tt := range []struct {
		ou  string
		has service.Role
	}{
		{"reader", service.Reader}, {"viewer", service.Reader}, {"developer", service.Developer},
		{"maintainer", service.Maintainer}, {"admin", service.Admin},
	} {
		t.Run(tt.ou, func(t *testing.T) {
			t.Parallel()
			conn := r.dial(t, r.issue(t, "a-"+tt.ou, tt.ou))
			for _, method := range methods(r.Server) {
				err := ask(t.Context(), conn, method)
				needs, _ := operations[method].Needs()
				// What is allowed gets to a handler, which has no jobs here and panics.
				switch denied := status.Code(err) == codes.PermissionDenied; {
				case denied != (tt.has < needs):
					t.Errorf("%s: %v", method, err)
				case denied && !strings.Contains(err.Error(), fmt.Sprintf("has the role %v, and this call requires %v", tt.has, needs)):
					t.Errorf("%s: %v does not say what is needed", method, err)
				case status.Code(err) == codes.Unavailable || status.Code(err) == codes.DeadlineExceeded:
					t.Errorf("%s: %v", method, err)
				}
			}
		})
	}
}

// TestNobodyElse: a client with an expired, foreign, revoked, self-signed or no
// certificate, the server's own, or one without a role, calls nothing.
func TestNobodyElse(t *testing.T) {
	t.Parallel()
	r := startRemote(t, Options{})
	revoked := r.issue(t, "revoked", "admin")
	if _, err := r.dir.Revoke("revoked"); err != nil {
		t.Fatal(err)
	}
	foreign, err := (pki.Dir{Path: filepath.Join(t.TempDir(), "pki")}).Init(nil, "root", pki.DefaultValid)
	if err != nil {
		t.Fatal(err)
	}
	foreign.CA = r.admin.CA
	server, err := os.ReadFile(filepath.Join(r.dir.Path, "server.pem"))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // until the files are looked at again
	for name, b := range map[string]pki.Bundle{
		"none": {CA: r.admin.CA}, "foreign": foreign, "revoked": revoked, "the server's": {CA: r.admin.CA, Cert: server, Key: server},
		"self-signed": r.forge(t, nil, time.Now().Add(time.Hour), "admin"), "expired": r.forge(t, &r.dir, time.Now().Add(-time.Hour), "admin"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := r.dial(t, b)
			for _, method := range methods(r.Server) {
				if err := ask(t.Context(), conn, method); status.Code(err) != codes.Unavailable {
					t.Errorf("%s: got %v", method, err)
				}
			}
		})
	}
	for name, units := range map[string][]string{"no role": nil, "an unknown role": {"god"}, "two roles": {"reader", "admin"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := r.dial(t, r.forge(t, &r.dir, time.Now().Add(time.Hour), units...))
			for _, method := range methods(r.Server) {
				if err := ask(t.Context(), conn, method); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "has no role") {
					t.Errorf("%s: got %v", method, err)
				}
			}
		})
	}
}

// forge makes a certificate of a kind that package pki never makes, signed by the
// authority in dir, or by itself.
func (r *remote) forge(t *testing.T, dir *pki.Dir, until time.Time, units ...string) pki.Bundle {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "eve", OrganizationalUnit: units},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	parent, signer := template, any(key)
	if dir != nil {
		text, err := os.ReadFile(filepath.Join(dir.Path, "ca", "ca.key"))
		if err != nil {
			t.Fatal(err)
		}
		ca, err := tls.X509KeyPair(text, text)
		if err != nil {
			t.Fatal(err)
		}
		parent, signer = ca.Leaf, ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pki.Bundle{CA: r.admin.CA, Cert: encodePEM("CERTIFICATE", der), Key: encodePEM("PRIVATE KEY", pkcs8)}
}

// TestRevokedInTheMiddle: revoking a certificate closes the client's open streams.
func TestRevokedInTheMiddle(t *testing.T) {
	t.Parallel()
	r := startRemote(t, Options{})
	conn := r.dial(t, r.issue(t, "bob", "reader"))
	stream, err := api.NewMonitoringServiceClient(conn).StreamSystemMetrics(t.Context(), &api.StreamMetricsRequest{IntervalSeconds: 1})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.dir.Revoke("bob"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for err == nil {
		_, err = stream.Recv()
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("cut after %v", took)
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}

// TestAbout: what a message is about is found in it, or in one that it holds.
func TestAbout(t *testing.T) {
	t.Parallel()
	for _, m := range []any{
		&api.StopJobRequest{Uuid: "a"}, &api.GetJobMetricsRequest{JobUuid: "a"}, &api.ExecInput{Input: &api.ExecInput_Run{Run: &api.ExecJobRequest{Uuid: "a"}}},
	} {
		if s := about(m); s.Job != "a" || s.Target != "" {
			t.Errorf("%T: %+v", m, s)
		}
	}
	for _, m := range []any{nil, (*api.Job)(nil), &api.EmptyRequest{}, &api.JobInput{}} {
		if s := about(m); s != (service.Subject{}) {
			t.Errorf("%T: %+v", m, s)
		}
	}
	recipe := "name: py\nversion: \"1\"\nlanguage: python\nlanguage_version: \"3\"\npackages: [bash]\n"
	for _, m := range []any{
		&api.RunJobRequest{Command: "py", Name: "x"}, &api.JobInput{Input: &api.JobInput_Run{Run: &api.RunJobRequest{Command: "py"}}},
		&api.RemoveRuntimeRequest{Runtime: "py"}, &api.CreateNetworkRequest{Name: "py"}, &api.BuildRuntimeRequest{YamlContent: recipe},
	} {
		if s := about(m); s.Target != "py" {
			t.Errorf("%T: %+v", m, s)
		}
	}
}

// TestRate: a client above its rate learns when to retry, and other clients are not
// affected.
func TestRate(t *testing.T) {
	t.Parallel()
	r := startRemote(t, Options{Limits: admission.Limits{ClientRate: 5, ClientCalls: 3, MaxConnections: 100}})
	greedy, other := r.dial(t, r.issue(t, "greedy", "reader")), r.dial(t, r.issue(t, "other", "reader"))
	const health = "/grpc.health.v1.Health/Check"
	begin, granted := time.Now(), 0
	for {
		err := ask(t.Context(), greedy, health)
		if status.Code(err) == codes.ResourceExhausted {
			if len(status.Convert(err).Details()) != 2 || !strings.Contains(err.Error(), "client-rate") {
				t.Errorf("got %v", err)
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if granted++; time.Since(begin) > 20*time.Second {
			t.Fatalf("%d calls and none is refused", granted)
		}
	}
	// The burst is 10; meanwhile there were more.
	if took := time.Since(begin); granted < 10 || granted > 11+int(5*took.Seconds()) {
		t.Errorf("%d calls granted in %v", granted, took)
	}
	if err := ask(t.Context(), other, health); err != nil {
		t.Errorf("another client: %v", err)
	}
	// Calls under way, of a third one.
	watcher := r.dial(t, r.issue(t, "watcher", "reader"))
	ctx, cancel := context.WithCancel(t.Context())
	watch := func() error {
		s, err := api.NewMonitoringServiceClient(watcher).StreamSystemMetrics(ctx, &api.StreamMetricsRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	for range 3 {
		if err := watch(); err != nil {
			t.Fatal(err)
		}
	}
	if err := watch(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "client-calls") {
		t.Errorf("got %v", err)
	}
	cancel()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if err := ask(t.Context(), watcher, health); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("calls that ended still count: %v", err)
		}
	}
}

// TestSilentClients: silent connections are bounded and closed, and other clients still
// connect.
func TestSilentClients(t *testing.T) {
	t.Parallel()
	r := startRemote(t, Options{Limits: admission.Limits{ClientRate: 100, ClientCalls: 100, MaxConnections: admission.MaxUnidentifiedPerHost + 10}})
	var silent []net.Conn
	defer func() {
		for _, c := range silent {
			c.Close()
		}
	}()
	begin := time.Now()
	for range admission.MaxUnidentifiedPerHost + 5 {
		c, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
	}
	// The oldest make room at once; the others are not closed before begin+handshakeTime.
	for i, c := range silent[:5] {
		_ = c.SetReadDeadline(begin.Add(handshakeTime - time.Second))
		_, err := c.Read(make([]byte, 1))
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Since(begin) < handshakeTime { // else the machine was paused
			t.Errorf("connection %d stays", i+1)
		}
	}
	if err := ask(t.Context(), r.dial(t, r.admin), "/grpc.health.v1.Health/Check"); err != nil {
		t.Errorf("one who means well: %v", err)
	}
	deadline := time.Now().Add(handshakeTime + 20*time.Second)
	for {
		use := r.admission.Usage()
		if use.Connections <= 2 && use.Unidentified == 0 && use.Hosts == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("counted: %+v", use)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// TestLockedOut: clients without a certificate do not exclude others, from any number
// of hosts.
func TestLockedOut(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ connections, hosts int }{"unknown": {1000, 8}, "all": {100, 4}} {
		t.Run(name, func(t *testing.T) {
			set := admission.DefaultLimits()
			set.MaxConnections = tt.connections
			r := startRemote(t, Options{Limits: set})
			full := min(tt.connections, admission.MaxUnidentified)
			var silent []net.Conn
			defer func() {
				for _, c := range silent {
					c.Close()
				}
			}()
			stalled := time.Now().Add(handshakeTime / 2) // until then none of them has had its time
			for i := range full {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%tt.hosts))}}
				c, err := d.DialContext(t.Context(), "tcp", r.address)
				if err != nil {
					t.Fatal(err)
				}
				silent = append(silent, c)
			}
			for total := 0; total < full && time.Now().Before(stalled); time.Sleep(time.Millisecond) {
				total = r.admission.Usage().Unidentified
			}
			if err := ask(t.Context(), r.dial(t, r.admin), "/grpc.health.v1.Health/Check"); err != nil {
				t.Errorf("with a certificate: %v", err)
			}
			// The oldest of the first host has made room.
			_ = silent[0].SetReadDeadline(stalled.Add(handshakeTime))
			if _, err := silent[0].Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("it stays")
			}
		})
	}
}

// TestManyConnections: the bound on all connections holds, and closed ones do not
// count.
func TestManyConnections(t *testing.T) {
	t.Parallel()
	r := startRemote(t, Options{Limits: admission.Limits{ClientRate: 1000, ClientCalls: 100, MaxConnections: 3}})
	for range 2 {
		var conns []*grpc.ClientConn
		for range 3 {
			c := r.dial(t, r.admin)
			conns = append(conns, c)
			deadline := time.Now().Add(20 * time.Second)
			for err := errors.New("none yet"); err != nil; time.Sleep(50 * time.Millisecond) {
				if err = ask(t.Context(), c, "/grpc.health.v1.Health/Check"); err != nil && time.Now().After(deadline) {
					t.Fatal(err)
				}
			}
		}
		fourth := r.dial(t, r.admin)
		if err := ask(t.Context(), fourth, "/grpc.health.v1.Health/Check"); status.Code(err) != codes.Unavailable {
			t.Errorf("a fourth: %v", err)
		}
		fourth.Close() // it would go on to try, and take the place of one below
		for _, c := range conns {
			c.Close()
		}
	}
}

// TestLargeHeaders: headers beyond the bound end the call, not the daemon.
func TestLargeHeaders(t *testing.T) {
	t.Parallel()
	r := startRemote(t, Options{})
	conn := r.dial(t, r.admin)
	ctx := metadataWith(t.Context(), "x", strings.Repeat("a", 2*maxHeaders))
	if err := ask(ctx, conn, "/grpc.health.v1.Health/Check"); err == nil {
		t.Error("they were taken")
	}
	if err := ask(t.Context(), conn, "/grpc.health.v1.Health/Check"); err != nil {
		t.Errorf("then: %v", err)
	}
}

// TestNothingLeft: after many clients there are no more goroutines, connections or
// calls than before.
func TestNothingLeft(t *testing.T) {
	r := startRemote(t, Options{})
	before := runtime.NumGoroutine()
	for range 3 {
		var work sync.WaitGroup
		for range 50 {
			conn := r.dial(t, r.admin)
			work.Go(func() {
				defer conn.Close()
				for _, method := range []string{"/grpc.health.v1.Health/Check", "/joblet.JobService/RunJob", "/joblet.Nope/Nope", "/joblet.JobService/SubmitJob"} {
					_ = ask(t.Context(), conn, method)
				}
				// One that is left in the middle.
				ctx, cancel := context.WithCancel(t.Context())
				s, err := api.NewMonitoringServiceClient(conn).StreamSystemMetrics(ctx, &api.StreamMetricsRequest{MetricTypes: []string{"memory"}})
				if err == nil {
					_, err = s.Recv()
				}
				if err != nil {
					t.Error(err)
				}
				cancel()
			})
		}
		work.Wait()
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		conns := r.admission.Usage().Connections
		now := runtime.NumGoroutine()
		if now <= before+5 && conns == 0 && r.Idle() > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before; %d connections", now, before, conns)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestProcessArguments: the arguments of the host's processes, which may belong to a
// job, are visible only to roles that see all jobs.
func TestProcessArguments(t *testing.T) {
	t.Parallel()
	r := startRemote(t, Options{})
	loop := exec.Command("sh", "-c", "while :; do :; done # private")
	if err := loop.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = loop.Process.Kill()
		_ = loop.Wait() // killed
	}()
	for _, tt := range []struct {
		role, command string
	}{{"developer", "sh"}, {"reader", "sh -c while :; do :; done # private"}} {
		c := api.NewMonitoringServiceClient(r.dial(t, r.issue(t, "a-"+tt.role, tt.role)))
		stream, err := c.StreamSystemMetrics(t.Context(), &api.StreamMetricsRequest{IntervalSeconds: 1, MetricTypes: []string{"process"}})
		if err != nil {
			t.Fatal(err)
		}
		for found, deadline := false, time.Now().Add(30*time.Second); !found; {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range slices.Concat(m.GetProcesses().GetTopByCpu(), m.GetProcesses().GetTopByMemory()) {
				if int(p.GetPid()) != loop.Process.Pid || p.GetCommand() == "[sh]" { // not read in time
					continue
				}
				if found = true; p.GetCommand() != tt.command {
					t.Errorf("%s sees %q", tt.role, p.GetCommand())
				}
			}
			if time.Now().After(deadline) {
				t.Fatal("the loop is not there")
			}
		}
	}
}

// slowConn stops sending in the middle, until it may go on.
type slowConn struct {
	net.Conn
	left int
	more chan struct{}
}

func (c *slowConn) Write(p []byte) (int, error) {
	if c.left -= len(p); c.left < 0 {
		<-c.more
	}
	return c.Conn.Write(p)
}

// TestRequestMemory: what clients send at once is bounded; the client that has sent
// most is refused, the others are not, and the count returns to zero.
func TestRequestMemory(t *testing.T) {
	t.Parallel()
	set := admission.DefaultLimits()
	set.RequestMemory = 64 << 20
	r := startRemote(t, Options{Limits: set})
	upload := func(conn *grpc.ClientConn, mib int) error {
		_, err := api.NewJobServiceClient(conn).RunJob(t.Context(), &api.RunJobRequest{
			Command: "true", Uploads: []*api.FileUpload{{Path: "x", Content: make([]byte, mib<<20)}},
		})
		return err
	}
	// What gets through comes to a handler that has no jobs here and panics.
	through := func(what string, err error) {
		t.Helper()
		if status.Code(err) != codes.Internal {
			t.Errorf("%s: got %v", what, err)
		}
	}
	refused := func(what string, err error) {
		t.Helper()
		if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "request-memory") || len(status.Convert(err).Details()) != 2 {
			t.Errorf("%s: got %v", what, err)
		}
	}
	other := r.dial(t, r.issue(t, "other", "developer"))
	through("one that fits", upload(other, 40))
	refused("one that does not", upload(other, 70))
	r.nothingCounted(t)

	more := make(chan struct{})
	conf := config(t, r.issue(t, "slow", "developer"))
	slow, err := grpc.NewClient("passthrough:///"+r.address, grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			return &slowConn{Conn: conn, left: 45 << 20, more: more}, err
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	answer := make(chan error, 1)
	go func() { answer <- upload(slow, 60) }()
	eventually(t, "most of it has come", func() bool { return r.admission.Usage().RequestBytes > 44<<20 })
	through("a small one beside it", upload(other, 1))
	through("one with which it is too much", upload(other, 30))
	select {
	case err := <-answer: // though it has not sent all
		refused("the one that sent most", err)
	case <-time.After(20 * time.Second):
		t.Error("the one that sent most goes on")
	}
	close(more)
	r.nothingCounted(t)
}
