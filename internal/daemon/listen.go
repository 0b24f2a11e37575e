package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/joblet/joblet/internal/pki"
)

// listeners are where the daemon serves.
type listeners struct {
	local   net.Listener // the unix socket
	remote  remote
	metrics net.Listener // nil: metrics are off
}

// activated returns the unix socket that systemd listens to for the daemon,
// sd_listen_fds(3), or nil when it passed none. systemd keeps the socket in its
// place when the daemon ends, so that no call is refused during a restart.
func (o Options) activated() (net.Listener, error) {
	passed, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("cannot take the sockets that systemd passed: %w", err)
	}
	if len(passed) == 0 {
		return nil, nil
	}
	l, ok := passed[0].(*net.UnixListener)
	switch {
	case len(passed) > 1:
		err = fmt.Errorf("it passed %d sockets; only ListenStream=%s is possible", len(passed), o.socket())
	case !ok:
		err = fmt.Errorf("it is not a listening unix socket: set ListenStream=%s", o.socket())
	case l.Addr().String() != o.socket():
		err = fmt.Errorf("it is %s and must be %s: set ListenStream= or --run-dir", l.Addr(), o.socket())
	}
	if err != nil {
		for _, l := range passed {
			if l != nil {
				l.Close()
			}
		}
		return nil, fmt.Errorf("cannot serve on the socket that systemd passed: %w", err)
	}
	return l, nil
}

// remote is where clients with certificates are served.
type remote struct {
	listener net.Listener
	pki      *pki.Server
}

func (o Options) remote(ctx context.Context, log *slog.Logger) (r remote, err error) {
	address, err := o.listenAddress()
	if address == "" || err != nil {
		return r, err
	}
	if r.pki, err = pki.Open(o.PKIPath(), log); err != nil {
		return r, fmt.Errorf("--listen: %w", err)
	}
	if left := time.Until(r.pki.NotAfter()); left < expiryWarning {
		log.Warn("the daemon's certificate expires soon: replace it with joblet pki rotate --server", "expires", r.pki.NotAfter())
	}
	var tcp net.ListenConfig
	if r.listener, err = tcp.Listen(ctx, "tcp", address); err != nil {
		return r, fmt.Errorf("--listen: %w", err)
	}
	return r, nil
}

// expiryWarning is how long before its end a certificate is spoken of.
const expiryWarning = 30 * 24 * time.Hour

// listen returns a listener on the socket at path, in place of what a dead
// daemon left there. The caller holds the lock. The socket gets its place by
// rename, so that there is none that others may open or that is not yet listened to.
func listen(path string, group int) (net.Listener, error) {
	private := path + newSuffix
	if err := os.Remove(private); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot remove the stale socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: private, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cannot listen on the socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	// First the group, then its right to open it.
	if err = os.Chown(private, 0, group); err == nil {
		err = os.Chmod(private, 0o660)
	}
	if err == nil {
		err = os.Rename(private, path)
	}
	if err != nil {
		l.Close()
		os.Remove(private)
		return nil, fmt.Errorf("cannot publish the socket: %w", err)
	}
	return l, nil
}
