package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"syscall"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

// DefaultPort is the port of a daemon that listens for remote clients.
const DefaultPort = "50051"

// serverName is what a daemon is called in its certificate, wherever it runs.
const serverName = "joblet"

const (
	// handshakeTime bounds how long a daemon may take to answer a connection.
	handshakeTime = 10 * time.Second

	// A connection with calls under way is asked so often whether it lives; a
	// host that went down without a word is noticed after both.
	keepaliveTime    = 20 * time.Second
	keepaliveTimeout = 10 * time.Second
)

// DialTLS connects to the daemon at address, "HOST:PORT" or "HOST", over TLS 1.3. conf
// has the client's certificate, which identifies the caller, and the authorities that
// the client trusts. Without a ServerName in it the daemon must have the certificate of
// a joblet, whatever the name of its host.
//
// Calls that change nothing are made again, a few times, when the connection
// breaks.
func DialTLS(ctx context.Context, address string, conf *tls.Config) (*Client, error) {
	address, err := hostPort(address)
	if err != nil {
		return nil, err
	}
	conf = conf.Clone()
	conf.MinVersion = max(conf.MinVersion, tls.VersionTLS13)
	conf.NextProtos = []string{"h2"}
	conf.ServerName = cmp.Or(conf.ServerName, serverName)
	if len(conf.Certificates) > 0 && conf.GetClientCertificate == nil {
		own := conf.Certificates[0]
		if leaf := own.Leaf; leaf != nil && time.Now().After(leaf.NotAfter) {
			return nil, joblet.Errorf(joblet.PermissionDenied, "the certificate of %q expired on %s: get a new one (joblet pki rotate)",
				leaf.Subject.CommonName, leaf.NotAfter.Format(time.RFC3339))
		}
		// Also to a daemon that does not trust its issuer, which then reports that.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	}
	c := &Client{remote: true, dialer: dialer{network: "tcp", address: address}}
	return c.open(ctx, &handshaker{conf: conf, dialer: &c.dialer},
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}))
}

// hostPort returns the address with the default port if it has none.
func hostPort(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(address, "["), "]"), DefaultPort
	}
	_, notIP := netip.ParseAddr(host)
	if host == "" || port == "" || strings.ContainsAny(host, "/[] \x00") || strings.Contains(host, ":") && notIP != nil {
		return "", joblet.Errorf(joblet.InvalidArgument, "address %.200q: must be HOST:PORT or HOST", address)
	}
	return net.JoinHostPort(host, port), nil
}

// handshaker is the TLS of gRPC's own credentials, and says what went wrong.
type handshaker struct {
	conf   *tls.Config
	dialer *dialer
}

// ClientHandshake implements credentials.TransportCredentials.
func (h *handshaker) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	conn := tls.Client(raw, h.conf)
	err := conn.HandshakeContext(ctx)
	if err == nil && conn.ConnectionState().NegotiatedProtocol != "h2" {
		err = joblet.Errorf(joblet.FailedPrecondition, "cannot connect to %s: the server does not speak gRPC", h.dialer.address)
	}
	if err != nil {
		conn.Close()
		return nil, nil, h.failed(err)
	}
	info := credentials.TLSInfo{
		State:          conn.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}
	return &watchedConn{Conn: conn, h: h}, info, nil
}

// watchedConn notices the daemon's refusal, which in TLS 1.3 comes behind the
// handshake.
type watchedConn struct {
	*tls.Conn
	h *handshaker
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && alert(err) != 0 {
		err = c.h.failed(err)
	}
	return n, err
}

// failed keeps and returns what err means.
func (h *handshaker) failed(err error) error {
	err = h.explain(err)
	h.dialer.last.Store(&err)
	return err
}

// alert returns the number of the alert (RFC 8446, 6.2) with which the other side
// ended a connection, or 0. Its type is not exported.
func alert(err error) uint64 {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return 0
	}
	if v := reflect.ValueOf(op.Err); v.Kind() == reflect.Uint8 {
		return v.Uint()
	}
	return 0
}

func (h *handshaker) explain(err error) error {
	own := "no certificate"
	if h.conf.GetClientCertificate != nil {
		if c, err := h.conf.GetClientCertificate(nil); err == nil && c.Leaf != nil {
			own = fmt.Sprintf("the certificate of %q", c.Leaf.Subject.CommonName)
		}
	}
	at := h.dialer.address
	if _, ok := errors.AsType[*joblet.Error](err); ok {
		return err
	}
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		by := "another authority"
		if e.Cert != nil {
			by = fmt.Sprintf("%q", e.Cert.Issuer.CommonName)
		}
		return joblet.Errorf(joblet.FailedPrecondition, "cannot connect to %s: its certificate is signed by %s, not by the authority (ca) of your configuration: it is another daemon, or its authority was replaced and you need a new certificate", at, by)
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return joblet.Errorf(joblet.FailedPrecondition, "cannot connect to %s: its certificate is for %s, not for %q", at, strings.Join(e.Certificate.DNSNames, ", "), e.Host)
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		when := fmt.Sprintf("expired on %s", e.Cert.NotAfter.Format(time.RFC3339))
		if time.Now().Before(e.Cert.NotBefore) {
			when = fmt.Sprintf("is not valid before %s: check your clock", e.Cert.NotBefore.Format(time.RFC3339))
		}
		return joblet.Errorf(joblet.FailedPrecondition, "cannot connect to %s: the daemon's certificate %s", at, when)
	}
	if errors.As(err, new(tls.RecordHeaderError)) {
		return joblet.Errorf(joblet.FailedPrecondition, "cannot connect to %s: the server does not speak TLS", at)
	}
	switch alert(err) {
	case 0:
	case 42, 44, 46: // bad_certificate, certificate_revoked, certificate_unknown
		return joblet.Errorf(joblet.PermissionDenied, "cannot connect to %s: the daemon refuses %s, which is probably revoked", at, own)
	case 45: // certificate_expired
		return joblet.Errorf(joblet.PermissionDenied, "cannot connect to %s: the daemon refuses %s: it has expired, or a clock is wrong", at, own)
	case 48: // unknown_ca
		return joblet.Errorf(joblet.PermissionDenied, "cannot connect to %s: the daemon refuses %s: it is not signed by the daemon's authority", at, own)
	case 116: // certificate_required
		return joblet.Errorf(joblet.PermissionDenied, "cannot connect to %s: the daemon requires a certificate: see rnx login", at)
	default:
		return joblet.Errorf(joblet.PermissionDenied, "cannot connect to %s: the daemon refuses the connection: %w", at, err)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return joblet.Errorf(joblet.Unavailable, "cannot connect to %s: the connection was closed at once: the server is not joblet, or has too many connections", at)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return joblet.Errorf(joblet.Unavailable, "cannot connect to %s: no answer within %v", at, handshakeTime)
	}
	return joblet.Errorf(joblet.Unavailable, "cannot connect to %s: %w", at, err)
}

// ServerHandshake implements credentials.TransportCredentials.
func (h *handshaker) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("for clients only")
}

// Info implements credentials.TransportCredentials.
func (h *handshaker) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (h *handshaker) Clone() credentials.TransportCredentials {
	return &handshaker{conf: h.conf.Clone(), dialer: h.dialer}
}

// OverrideServerName implements credentials.TransportCredentials.
func (h *handshaker) OverrideServerName(string) error { return nil }

// repeatable are the calls that can be made again: asking twice is asking once.
var repeatable = map[string]bool{
	api.JobService_GetJobStatus_FullMethodName:            true,
	api.JobService_ListJobs_FullMethodName:                true,
	api.JobService_WaitJob_FullMethodName:                 true,
	api.JobService_ListJobProcesses_FullMethodName:        true,
	api.MonitoringService_GetSystemStatus_FullMethodName:  true,
	api.MonitoringService_GetServerVersion_FullMethodName: true,
	api.RuntimeService_ListRuntimes_FullMethodName:        true,
	api.RuntimeService_GetRuntimeInfo_FullMethodName:      true,
	api.NetworkService_ListNetworks_FullMethodName:        true,
	api.VolumeService_ListVolumes_FullMethodName:          true,
}

const (
	tries     = 4
	firstWait = 100 * time.Millisecond // doubled each time, less or more by half
	maxWait   = 2 * time.Second        // of those that a daemon asks for
)

// again says how long to wait before a call is made again that failed, if it may
// be: when the connection broke and the call changes nothing, or when the daemon
// took too many of us and says when there is room.
func again(method string, try int, err error) (time.Duration, bool) {
	s, ok := status.FromError(err)
	if !ok || try >= tries {
		return 0, false
	}
	switch s.Code() {
	case codes.Unavailable:
		wait := firstWait << (try - 1)
		return wait/2 + rand.N(wait), repeatable[method]
	case codes.ResourceExhausted:
		for _, d := range s.Details() {
			if info, ok := d.(*errdetails.RetryInfo); ok {
				wait := info.GetRetryDelay().AsDuration()
				return wait + rand.N(firstWait), wait <= maxWait
			}
		}
	}
	return 0, false
}
