package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/metrics"
	"github.com/joblet/joblet/internal/server"
	"github.com/joblet/joblet/internal/supervisor"
)

const (
	socketName = "joblet.sock"
	lockName   = "joblet.lock"

	// newSuffix is behind a socket's name until it has its place.
	newSuffix = ".new"

	// maxSocketPath: sun_path of unix(7) holds 108 bytes, the last one NUL.
	maxSocketPath = 107

	// lockWait is how long a daemon waits for its predecessor, which stops
	// within five seconds, to let go of the run directory.
	lockWait = 10 * time.Second
)

// serveOptions is the daemon's configuration.
type serveOptions struct {
	StateDir  string
	RunDir    string
	IdleExit  time.Duration
	ReadyFD   int
	LogLevel  string
	LogFormat string

	MaxConcurrent int
	RetainAge     time.Duration
	RetainSize    byteSize
	LogFull       string
	Defaults      joblet.Limits
	Ceiling       joblet.Limits

	MetricsAddr   string
	MetricsRemote bool
}

// What a job's log does when the disk is full.
const (
	logFullWait   = "wait"
	logFullShrink = "shrink"
)

func defaultServeOptions() serveOptions {
	return serveOptions{
		StateDir:  cmp.Or(os.Getenv("JOBLET_STATE_DIR"), "/var/lib/joblet"),
		RunDir:    cmp.Or(os.Getenv("JOBLET_RUN_DIR"), "/run/joblet"),
		ReadyFD:   -1,
		LogLevel:  "info",
		LogFormat: "text",
		LogFull:   logFullWait,
	}
}

func newServeCommand() *cobra.Command {
	opt := defaultServeOptions()
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long: `Run the daemon in the foreground. It listens on RUN-DIR/` + socketName + ` and admits root.

On SIGTERM and SIGINT it stops within five seconds. Jobs go on without it, and
the next daemon finds them.`,
		Example: `  joblet serve
  joblet serve --state-dir=/srv/joblet --run-dir=/run/joblet-test --log-format=json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			return opt.serve(ctx, cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&opt.StateDir, "state-dir", opt.StateDir, "records, logs and runtimes (default from $JOBLET_STATE_DIR)")
	f.StringVar(&opt.RunDir, "run-dir", opt.RunDir, "socket and lock (default from $JOBLET_RUN_DIR)")
	f.DurationVar(&opt.IdleExit, "idle-exit", 0, "exit when for so long no job was alive and no call came; 0: never")
	f.IntVar(&opt.ReadyFD, "ready-fd", opt.ReadyFD, `descriptor that gets "ok" and a newline once calls are answered, or the error`)
	f.IntVar(&opt.MaxConcurrent, "max-concurrent", 0, "jobs that run at once, the others wait in a queue; 0: any number")
	f.DurationVar(&opt.RetainAge, "retain-age", 0, "delete jobs that ended so long ago, such as 720h; 0: never")
	f.Var(&opt.RetainSize, "retain-size", "delete the oldest ended jobs when all take more on disk, such as 20G; 0: never")
	f.StringVar(&opt.LogFull, "log-full", opt.LogFull, "on a full disk, a job's output waits (and the job with it), or its log gives up the older half: wait or shrink")
	f.Var(limitsFlag{&opt.Defaults}, "default", "a limit for jobs that do not say otherwise, by the name that \"rnx job run\" has for it, such as max-memory=1G; may be given again")
	f.Var(limitsFlag{&opt.Ceiling}, "ceiling", "what a job may ask for at most, and gets if it asks for nothing, such as max-memory=8G; may be given again")
	f.StringVar(&opt.MetricsAddr, "metrics-addr", "", "serve /metrics for Prometheus here: an address of this host alone, such as 127.0.0.1:9090, or unix:PATH, a socket for root; empty: nowhere")
	f.BoolVar(&opt.MetricsRemote, "metrics-remote", false, "--metrics-addr may be one that other machines reach; nobody is asked who he is")
	f.StringVar(&opt.LogLevel, "log-level", opt.LogLevel, "debug, info, warn or error")
	f.StringVar(&opt.LogFormat, "log-format", opt.LogFormat, "text or json")
	return cmd
}

// validate reports the first option that can't work, before anything starts.
func (o serveOptions) validate() error {
	for name, dir := range map[string]string{"state-dir": o.StateDir, "run-dir": o.RunDir} {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("--%s %q: must be an absolute path", name, dir)
		}
	}
	if p := o.socket(); len(p) > maxSocketPath {
		return fmt.Errorf("--run-dir %q: %s would be longer than the %d bytes of a socket's path", o.RunDir, p, maxSocketPath)
	}
	if o.IdleExit < 0 {
		return fmt.Errorf("--idle-exit %v: must not be negative", o.IdleExit)
	}
	if o.MaxConcurrent < 0 {
		return fmt.Errorf("--max-concurrent %d: must not be negative", o.MaxConcurrent)
	}
	if o.RetainAge < 0 {
		return fmt.Errorf("--retain-age %v: must not be negative", o.RetainAge)
	}
	if o.LogFull != logFullWait && o.LogFull != logFullShrink {
		return fmt.Errorf("--log-full %q: must be %s or %s", o.LogFull, logFullWait, logFullShrink)
	}
	if err := o.Defaults.Validate(); err != nil {
		return fmt.Errorf("--default: %w", err)
	}
	if err := o.Ceiling.Validate(); err != nil {
		return fmt.Errorf("--ceiling: %w", err)
	}
	if err := o.Defaults.Capped(o.Ceiling).Within(o.Ceiling); err != nil {
		return fmt.Errorf("--default is more than --ceiling: %w", err)
	}
	if _, err := o.metricsAddr(); err != nil {
		return err
	}
	_, err := o.logger(io.Discard)
	return err
}

// limitsFlag is NAME=VALUE, again and again.
type limitsFlag struct{ limits *joblet.Limits }

func (f limitsFlag) String() string { return "" }
func (f limitsFlag) Type() string   { return "LIMIT=VALUE" }

func (f limitsFlag) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		return fmt.Errorf("%q: give a limit and its value, such as max-memory=1G", s)
	}
	return f.limits.Set(name, value)
}

func (o serveOptions) socket() string { return filepath.Join(o.RunDir, socketName) }

func (o serveOptions) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.LogLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q: must be debug, info, warn or error", o.LogLevel)
	}
	h := &slog.HandlerOptions{Level: level}
	switch o.LogFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, h)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, h)), nil
	}
	return nil, fmt.Errorf("--log-format %q: must be text or json", o.LogFormat)
}

// serve runs the daemon until ctx is done or it has been idle for long enough.
func (o serveOptions) serve(ctx context.Context, stderr io.Writer) (err error) {
	ready, err := o.ready()
	if err != nil {
		return err
	}
	defer func() { ready.tell(err) }()
	if err := o.validate(); err != nil {
		return err
	}
	log, err := o.logger(stderr)
	if err != nil {
		return err
	}
	scraped, err := o.metricsAddr()
	if err != nil {
		return err
	}
	var counts *metrics.Metrics // nil: metrics are off
	if !scraped.isZero() {
		counts = metrics.New()
		log = slog.New(counts.LogHandler(log.Handler()))
	}
	slog.SetDefault(log)
	if os.Geteuid() != 0 {
		return errors.New("the daemon must run as root: jobs need namespaces, mounts and cgroups")
	}
	// Jobs, with ids of their own, must be able to read what is made for them:
	// every file's mode is ours to choose, whatever whoever started us prefers.
	syscall.Umask(0o022)
	if err := os.MkdirAll(o.RunDir, 0o755); err != nil {
		return fmt.Errorf("create run directory: %w", err)
	}
	lock, err := o.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()

	var scrapes net.Listener
	if counts != nil { // before anything is recovered: the port may be taken
		var cleanup func()
		if scrapes, cleanup, err = scraped.listen(); err != nil {
			return err
		}
		defer cleanup()
	}
	sup, err := supervisor.Open(ctx, supervisor.Config{
		StateDir: o.StateDir, RunDir: o.RunDir, Log: log, Metrics: counts,
		MaxConcurrent: o.MaxConcurrent, RetainAge: o.RetainAge, RetainBytes: int64(o.RetainSize), LogShrinks: o.LogFull == logFullShrink,
		Defaults: o.Defaults, Ceiling: o.Ceiling,
	})
	if err != nil {
		return fmt.Errorf("open %s: %w", o.StateDir, err)
	}
	defer func() { err = errors.Join(err, sup.Close()) }()
	l, err := listen(o.socket())
	if err != nil {
		return err
	}
	defer os.Remove(o.socket())

	srv := server.New(sup, log, counts)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	log.Info("serving", "version", joblet.Build().Version, "socket", o.socket(), "state", o.StateDir, "jobs", sup.Active())
	if counts != nil {
		defer serveMetrics(counts, scrapes, log)()
		log.Info("serving metrics", "address", scraped.of(scrapes))
	}
	ready.tell(nil)
	if err := notify("READY=1"); err != nil {
		log.Warn("tell systemd that the daemon is ready", "error", err)
	}

	idle := o.idle(ctx, srv, sup)
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
		log.Info("stopping", "jobs", sup.Active())
	case <-idle:
		log.Info("stopping: idle", "for", o.IdleExit)
	}
	srv.Shutdown()
	return <-served
}

// idle returns a channel that is closed once the daemon has had nothing to do
// for IdleExit.
func (o serveOptions) idle(ctx context.Context, srv *server.Server, sup *supervisor.Supervisor) <-chan struct{} {
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

// lock makes this the only daemon of the run directory for as long as the file
// is open. A daemon that is stopping is waited for, one that serves is not.
func (o serveOptions) lock(ctx context.Context) (*os.File, error) {
	name := filepath.Join(o.RunDir, lockName)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		conn, dialErr := net.Dial("unix", o.socket())
		if dialErr == nil {
			conn.Close()
		}
		if dialErr != nil || holderDied(f) {
			err = waitLock(ctx, f)
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder := make([]byte, 20)
		n, _ := f.ReadAt(holder, 0)
		f.Close()
		return nil, fmt.Errorf("another daemon (process %s) uses %s", cmp.Or(strings.TrimSpace(string(holder[:n])), "unknown"), o.RunDir)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	if err = f.Truncate(0); err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write lock: %w", err)
	}
	return f, nil
}

// holderDied reports whether the daemon that wrote its number into the lock is
// gone. A daemon that is killed while it starts a monitor leaves a child that,
// until its execve, still has the lock and the socket.
func holderDied(f *os.File) bool {
	holder := make([]byte, 20)
	n, _ := f.ReadAt(holder, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(holder[:n])))
	return err == nil && pid > 0 && unix.Kill(pid, 0) == unix.ESRCH
}

// waitLock waits for the lock for lockWait and then returns EWOULDBLOCK; the
// goroutine that still waits then ends with the process.
func waitLock(ctx context.Context, f *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	fd := int(f.Fd())
	locked := make(chan error, 1)
	go func() { locked <- unix.Flock(fd, unix.LOCK_EX) }()
	select {
	case err := <-locked:
		return err
	case <-ctx.Done():
		return unix.EWOULDBLOCK
	}
}

// listen returns a listener on the socket at path, in place of what a dead
// daemon left there. The caller holds the lock. The socket gets its place by
// rename, so that there is none that others may open or that is not yet listened to.
func listen(path string) (net.Listener, error) {
	private := path + newSuffix
	if err := os.Remove(private); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: private, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(private, 0o660)
	if err == nil {
		err = os.Rename(private, path)
	}
	if err != nil {
		l.Close()
		os.Remove(private)
		return nil, fmt.Errorf("put socket in place: %w", err)
	}
	return l, nil
}

// readiness is the pipe to the process that started this one.
type readiness struct{ pipe *os.File }

func (o serveOptions) ready() (*readiness, error) {
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

// notify tells systemd about the daemon, sd_notify(3), if it wants to know
// (Type=notify).
func notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"}) // "@…" is abstract, here as there
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
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
	// Nobody may be reading any more, and that is not this daemon's concern.
	_, _ = fmt.Fprintln(r.pipe, text)
	_ = r.pipe.Close()
	r.pipe = nil
}
