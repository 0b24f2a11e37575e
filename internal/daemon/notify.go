package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

// readiness is the pipe to the process that started this one.
type readiness struct{ pipe *os.File }

func (o Options) ready() (*readiness, error) {
	if o.ReadyFD < 0 {
		return &readiness{}, nil
	}
	if o.ReadyFD < 3 {
		return nil, fmt.Errorf("--ready-fd %d: must be 3 or more", o.ReadyFD)
	}
	if _, err := unix.FcntlInt(uintptr(o.ReadyFD), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("--ready-fd %d: %w", o.ReadyFD, err)
	}
	return &readiness{pipe: os.NewFile(uintptr(o.ReadyFD), "ready")}, nil
}

// notify tells systemd about the daemon, sd_notify(3), if it asked for that
// (Type=notify). The daemon works without.
func notify(log *slog.Logger, state string) {
	if _, err := sdnotify.SdNotify(false, state); err != nil {
		log.Warn("cannot notify systemd", "state", state, "error", err)
	}
}

// watchdog pings systemd's watchdog, if the unit has one (WatchdogSec=), until ctx
// is done: twice in its time, and only when the daemon works.
func (d *daemon) watchdog(ctx context.Context) {
	interval, err := sdnotify.SdWatchdogEnabled(false)
	if err != nil {
		d.log.Warn("cannot use systemd's watchdog", "error", err)
	}
	if interval <= 0 {
		return
	}
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(done)
		keepAlive(ctx, interval/2, d.works, func() { notify(d.log, sdnotify.SdNotifyWatchdog) }, d.log)
	}()
	d.onClose(func() error { cancel(); <-done; return nil })
}

// keepAlive calls ping every period, until ctx is done, unless works reports an
// error. A check may take the whole period.
func keepAlive(ctx context.Context, period time.Duration, works func(context.Context) error, ping func(), log *slog.Logger) {
	ticks := time.NewTicker(period)
	defer ticks.Stop()
	for {
		check, cancel := context.WithTimeout(ctx, period)
		err := works(check)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			ping()
		} else {
			log.Error("cannot ping systemd's watchdog", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}

// works asks for a job that does not exist. The answer takes the supervisor's lock
// and a read of the job records.
func (d *daemon) works(ctx context.Context) error {
	_ = d.sup.Active()
	if _, err := d.sup.Job(ctx, "00000000-0000-0000-0000-000000000000"); err != nil && joblet.KindOf(err) != joblet.NotFound {
		return err
	}
	return ctx.Err()
}

// tell says once how the start went.
func (r *readiness) tell(err error) {
	if r.pipe == nil {
		return
	}
	text := "ok"
	if err != nil {
		text = err.Error()
	}
	// The reader may have closed the pipe, which does not concern this daemon.
	_, _ = fmt.Fprintln(r.pipe, text)
	_ = r.pipe.Close()
	r.pipe = nil
}
