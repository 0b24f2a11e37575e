package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/help"
	"github.com/joblet/joblet/internal/metrics"
	"github.com/joblet/joblet/internal/server"
	"github.com/joblet/joblet/internal/service"
	"github.com/joblet/joblet/internal/supervisor"
)

// NewServeCommand returns joblet serve.
func NewServeCommand() *cobra.Command {
	opt := DefaultOptions()
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long: `Run the daemon in the foreground. It listens on RUN-DIR/` + socketName + ` for root, and
for members of the group that --group names, who are developers. With --listen it
also accepts clients with certificates (joblet pki).

On SIGTERM and SIGINT it stops within five seconds. Jobs continue without it, and
the next daemon adopts them. On SIGHUP it reads its configuration again.

Each flag is also a key of the configuration file and an environment variable
(joblet config).`,
		Example: `  joblet serve
  joblet serve --listen=:50051
  joblet serve --state-dir=/srv/joblet --run-dir=/run/joblet-test`,
		Args: help.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			set := given(cmd.Flags())
			return opt.serve(ctx, cmd.ErrOrStderr(), func() (Options, error) {
				o, _, err := opt.Load(set)
				return o, err
			})
		},
	}
	opt.flags(cmd.Flags())
	return cmd
}

func (o Options) supervisor(log *slog.Logger) supervisor.Config {
	return supervisor.Config{
		StateDir: o.StateDir, RunDir: o.RunDir, Log: log,
		MaxConcurrent: o.MaxConcurrent, MaxPerOwner: o.MaxPerOwner,
		RetainAge: o.RetainAge, RetainBytes: int64(o.RetainSize), LogShrinks: o.LogFull == logFullShrink,
		Defaults: o.Defaults, Ceiling: o.Ceiling,
		Mirrors: o.Mirrors, BuildTimeout: o.BuildTimeout, MaxOwnerBytes: int64(o.MaxOwnerSize),
	}
}

// daemon is one run of joblet serve.
type daemon struct {
	opt   Options
	load  func() (Options, error)
	ready *readiness

	level  slog.LevelVar // of log
	log    *slog.Logger
	counts *metrics.Metrics // nil: metrics are off

	listeners listeners
	sup       *supervisor.Supervisor
	svc       *service.Service
	srv       *server.Server

	// served gets the end of each of the serving listeners.
	served  chan error
	serving int

	undo []func() error // what close does, the last first
}

// serve runs the daemon until ctx is done or it has been idle for long enough. load
// returns the options with what the configuration says then.
func (o Options) serve(ctx context.Context, stderr io.Writer, load func() (Options, error)) (err error) {
	d := &daemon{load: load}
	if d.ready, err = o.ready(); err != nil {
		return err
	}
	defer func() { d.ready.tell(err) }()
	hangup := make(chan os.Signal, 1) // from now on it does not end us
	signal.Notify(hangup, unix.SIGHUP)
	defer signal.Stop(hangup)

	defer func() { err = errors.Join(err, d.close()) }()
	for _, step := range []func(context.Context) error{
		func(context.Context) error { return d.configure(stderr) },
		d.prepareProcess,
		d.lockRun,
		d.listenMetrics,
		d.lockState,
		d.openSupervisor,
		d.listen,
		d.startServer,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	d.announce(ctx)
	return d.run(ctx, hangup)
}

// onClose has close call what undoes a step.
func (d *daemon) onClose(undo func() error) { d.undo = append(d.undo, undo) }

// close undoes the steps that were taken, the last first.
func (d *daemon) close() error {
	var errs []error
	for _, undo := range slices.Backward(d.undo) {
		errs = append(errs, undo())
	}
	d.undo = nil
	return errors.Join(errs...)
}

// configure reads the configuration and sets up logging and metrics by it.
func (d *daemon) configure(stderr io.Writer) (err error) {
	if d.opt, err = d.load(); err != nil {
		return err
	}
	if err := d.opt.validate(); err != nil {
		return err
	}
	level, err := d.opt.level()
	if err != nil {
		return err
	}
	d.level.Set(level)
	if d.log, err = d.opt.loggerAt(stderr, &d.level); err != nil {
		return err
	}
	scraped, err := d.opt.metricsAddr()
	if err != nil {
		return err
	}
	if !scraped.isZero() {
		d.counts = metrics.New()
		d.log = slog.New(d.counts.LogHandler(d.log.Handler()))
	}
	slog.SetDefault(d.log)
	for name, nearest := range unknownVariables() {
		d.log.Warn("unknown environment variable ignored", "variable", name, "nearest", nearest)
	}
	return nil
}

// prepareProcess gives up what the daemon does not need of root's privileges.
func (d *daemon) prepareProcess(context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("cannot serve: the daemon must run as root, which namespaces, mounts and cgroups require")
	}
	if err := dropPrivileges(); err != nil { // a container may not let us; jobs are walled off all the same
		d.log.Warn("cannot drop privileges", "error", err)
	}
	// Jobs have ids of their own and must be able to read the files made for them, so
	// the daemon does not inherit its parent's umask.
	syscall.Umask(0o022)
	return nil
}

// lockRun makes this the only daemon of its run directory.
func (d *daemon) lockRun(ctx context.Context) error {
	if err := os.MkdirAll(d.opt.RunDir, 0o755); err != nil {
		return fmt.Errorf("cannot create the run directory: %w", err)
	}
	if err := checkOwn(d.opt.RunDir); err != nil {
		return err
	}
	lock, err := d.opt.lock(ctx)
	if err != nil {
		return err
	}
	d.onClose(func() error { lock.Close(); return nil })
	return nil
}

// listenMetrics takes the address of metrics before anything is made or recovered:
// another program may have it.
func (d *daemon) listenMetrics(context.Context) error {
	if d.counts == nil {
		return nil
	}
	at, err := d.opt.metricsAddr()
	if err != nil {
		return err
	}
	l, cleanup, err := at.listen()
	if err != nil {
		return err
	}
	d.listeners.metrics = l
	d.onClose(func() error { cleanup(); return nil })
	return nil
}

// lockState makes this the only daemon of its state directory.
func (d *daemon) lockState(ctx context.Context) error {
	if err := keepStatePrivate(d.opt.StateDir); err != nil {
		return fmt.Errorf("cannot use the state directory: %w", err)
	}
	lock, err := d.opt.lockState(ctx)
	if err != nil {
		return err
	}
	d.onClose(func() error { lock.Close(); return nil })
	return nil
}

// openSupervisor recovers the jobs.
func (d *daemon) openSupervisor(ctx context.Context) error {
	cfg := d.opt.supervisor(d.log)
	cfg.Metrics = d.counts
	sup, err := supervisor.Open(ctx, cfg)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", d.opt.StateDir, err)
	}
	d.sup = sup
	d.onClose(sup.Close)
	return nil
}

// listen takes the addresses of clients, or those that systemd has passed.
func (d *daemon) listen(ctx context.Context) error {
	group, err := d.opt.group()
	if err != nil {
		return err
	}
	passed, err := d.opt.activated()
	if err != nil {
		return err
	}
	l := passed
	if l == nil {
		if l, err = listen(d.opt.socket(), group); err != nil {
			return err
		}
		d.onClose(func() error { os.Remove(d.opt.socket()); return nil })
	}
	d.listeners.local = l
	d.onClose(func() error { l.Close(); return nil })
	if d.listeners.remote, err = d.opt.remote(ctx, d.log); err != nil {
		return err
	}
	if r := d.listeners.remote.listener; r != nil {
		d.onClose(func() error { r.Close(); return nil })
	}
	return nil
}

// startServer serves clients, and metrics if they are on.
func (d *daemon) startServer(context.Context) error {
	rules, err := d.opt.rules()
	if err != nil {
		return err
	}
	group, err := d.opt.group()
	if err != nil {
		return err
	}
	var audit *service.Audit
	if d.opt.auditLog() != auditOff {
		if audit, err = service.OpenAudit(d.opt.auditLog(), int64(d.opt.AuditMax), d.log); err != nil {
			return err
		}
		d.onClose(audit.Close)
	}
	remote := d.listeners.remote
	d.svc = service.New(d.sup, d.log, audit)
	d.svc.Configure(rules)
	d.srv = server.New(d.svc, d.log, server.Options{PKI: remote.pki, Metrics: d.counts, Limits: d.opt.limits(), Group: group})
	d.served = make(chan error, 2)
	d.serving = 1
	go func() { d.served <- d.srv.Serve(d.listeners.local) }()
	if remote.listener != nil {
		d.serving++
		go func() { d.served <- d.srv.ServeTLS(remote.listener) }()
		d.log.Info("serving clients with certificates", "address", remote.listener.Addr().String(), "certificate_expires", remote.pki.NotAfter())
	}
	d.log.Info("serving", "version", joblet.Build().Version, "socket", d.opt.socket(), "state", d.opt.StateDir, "jobs", d.sup.Active())
	if l := d.listeners.metrics; l != nil {
		at, err := d.opt.metricsAddr()
		if err != nil {
			return err
		}
		stop := serveMetrics(d.counts, l, d.log)
		d.onClose(func() error { stop(); return nil })
		d.log.Info("serving metrics", "address", at.of(l))
	}
	return nil
}

// announce tells the process that started the daemon, and systemd, that it is ready.
func (d *daemon) announce(ctx context.Context) {
	d.ready.tell(nil)
	notify(d.log, sdnotify.SdNotifyReady)
	d.watchdog(ctx)
}

// run serves until ctx is done or the daemon has been idle for long enough, and
// then shuts down. A hangup reloads the configuration.
func (d *daemon) run(ctx context.Context, hangup <-chan os.Signal) (err error) {
	idle := d.opt.idle(ctx, d.srv, d.sup)
	for stop := false; !stop; {
		select {
		case err := <-d.served:
			return fmt.Errorf("cannot serve: %w", err)
		case <-hangup:
			d.reload()
		case <-ctx.Done():
			d.log.Info("stopping", "jobs", d.sup.Active())
			stop = true
		case <-idle:
			d.log.Info("stopping: idle", "for", d.opt.IdleExit)
			stop = true
		}
	}
	notify(d.log, sdnotify.SdNotifyStopping)
	d.srv.Shutdown()
	for range d.serving {
		err = errors.Join(err, <-d.served)
	}
	return err
}

// reload reads the configuration again. What is wrong with it leaves that from
// before as it was.
func (d *daemon) reload() {
	next, err := d.load()
	if err == nil {
		err = d.apply(next)
	}
	if err != nil {
		d.log.Error("cannot reload the configuration; the previous one stays in use", "error", err)
	}
}

// apply makes the reloadable options of next hold.
func (d *daemon) apply(next Options) error {
	if err := next.validate(); err != nil {
		return err
	}
	held := d.opt
	held.Reloadable = next.Reloadable
	if later := changed(held, next); len(later) > 0 {
		d.log.Warn("some configuration changes require a restart", "keys", later)
	}
	rules, err := held.rules()
	if err != nil {
		return err
	}
	level, err := held.level()
	if err != nil {
		return err
	}
	d.level.Set(level)
	d.svc.Configure(rules)
	d.srv.Configure(held.limits())
	d.sup.Configure(held.supervisor(nil))
	d.log.Info("configuration reloaded", "changed", changed(d.opt, held))
	d.opt = held
	return nil
}

// idle returns a channel that is closed once the daemon has had nothing to do
// for IdleExit.
func (o Options) idle(ctx context.Context, srv *server.Server, sup *supervisor.Supervisor) <-chan struct{} {
	if o.IdleExit == 0 {
		return nil
	}
	idle := make(chan struct{})
	go func() {
		timer := time.NewTimer(o.IdleExit)
		defer timer.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
			left := o.IdleExit - srv.Idle()
			if sup.Active() > 0 {
				left = o.IdleExit
			}
			if left <= 0 {
				close(idle)
				return
			}
			timer.Reset(left)
		}
	}()
	return idle
}
