package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/metrics"
)

// metricsAddr is where /metrics is served: a TCP address or a unix socket. The
// zero value is nowhere.
type metricsAddr struct {
	tcp  netip.AddrPort
	unix string // path
}

func (a metricsAddr) isZero() bool { return a == metricsAddr{} }

func (a metricsAddr) String() string {
	if a.unix != "" {
		return "unix:" + a.unix
	}
	return a.tcp.String()
}

// of returns the address at which l, which listens there, can be reached.
func (a metricsAddr) of(l net.Listener) string {
	if a.unix != "" {
		return a.String() // l has another name for it
	}
	return l.Addr().String()
}

// metricsAddr reads --metrics-addr. Every client that can connect can read, so an
// address that other hosts can reach requires --metrics-remote.
func (o Options) metricsAddr() (metricsAddr, error) {
	text := o.MetricsAddr
	bad := func(format string, args ...any) (metricsAddr, error) {
		return metricsAddr{}, fmt.Errorf("--metrics-addr %q: "+format, append([]any{text}, args...)...)
	}
	if text == "" {
		if o.MetricsRemote {
			return metricsAddr{}, errors.New("--metrics-remote: requires --metrics-addr")
		}
		return metricsAddr{}, nil
	}
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		path = strings.TrimPrefix(path, "//")
		switch {
		case !filepath.IsAbs(path):
			return bad("the socket's path must be absolute, such as unix:/run/joblet-metrics.sock")
		case len(path+newSuffix) > maxSocketPath:
			return bad("the path of a socket must be at most %d bytes long", maxSocketPath-len(newSuffix))
		case filepath.Clean(path) == filepath.Clean(o.socket()):
			return bad("this is the socket of the API: choose another path")
		}
		return metricsAddr{unix: filepath.Clean(path)}, nil
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return bad("must be HOST:PORT, such as 127.0.0.1:9090, or unix:PATH")
	}
	switch host {
	case "":
		host = "::" // all of this host's addresses, of IPv4 too
	case "localhost": // not what some resolver makes of it
		host = "127.0.0.1"
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return bad("%s must be an IP address of this host, or localhost", host)
	}
	full, err := netip.ParseAddrPort(net.JoinHostPort(addr.String(), port))
	if err != nil {
		return bad("port %s: must be a number up to 65535", port)
	}
	if !addr.Unmap().IsLoopback() && !o.MetricsRemote {
		return bad("other machines could read the names of jobs without authentication: use 127.0.0.1, or add --metrics-remote")
	}
	return metricsAddr{tcp: full}, nil
}

// listen begins to listen at the address. close ends that, whether the listener
// is closed already or not.
func (a metricsAddr) listen() (l net.Listener, cleanup func(), err error) {
	if a.unix == "" {
		l, err = net.Listen("tcp", a.tcp.String())
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			err = fmt.Errorf("--metrics-addr %s: another program listens there (ss -ltnp shows which): choose another port", a)
		case errors.Is(err, unix.EADDRNOTAVAIL):
			err = fmt.Errorf("--metrics-addr %s: this host does not have that address", a)
		case err != nil:
			err = fmt.Errorf("--metrics-addr %s: %w", a, err)
		}
		if err != nil {
			return nil, nil, err
		}
		return l, func() { l.Close() }, nil
	}
	// A dead daemon's socket is replaced; nothing else is.
	switch info, err := os.Lstat(a.unix); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, nil, fmt.Errorf("--metrics-addr %s: %w", a, err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, nil, fmt.Errorf("--metrics-addr %s: the file there is not a socket: remove it or choose another path", a)
	default:
		if conn, err := net.Dial("unix", a.unix); err == nil {
			conn.Close()
			return nil, nil, fmt.Errorf("--metrics-addr %s: another program listens there: choose another path", a)
		}
	}
	if l, err = listen(a.unix, 0); err != nil {
		return nil, nil, fmt.Errorf("--metrics-addr %s: %w", a, err)
	}
	return l, func() { l.Close(); os.Remove(a.unix) }, nil
}

// serveMetrics answers scrapes that come through l in the background. The daemon
// goes on when that fails: it is there for jobs.
func serveMetrics(m *metrics.Metrics, l net.Listener, log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := m.Serve(ctx, l, log); err != nil {
			log.Error("cannot serve metrics any more", "error", err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}
