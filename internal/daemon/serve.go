package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/metrics"
	"github.com/joblet/joblet/internal/pki"
	"github.com/joblet/joblet/internal/runtimes"
	"github.com/joblet/joblet/internal/server"
	"github.com/joblet/joblet/internal/server/admission"
	"github.com/joblet/joblet/internal/service"
	"github.com/joblet/joblet/internal/spelling"
	"github.com/joblet/joblet/internal/supervisor"
)

const (
	socketName = "joblet.sock"
	lockName   = "joblet.lock"

	// stateLockName says who serves the state directory; another name than
	// lockName, for one directory may be both.
	stateLockName = "daemon.lock"

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
	Group     string
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

	Mirrors      []string
	BuildTimeout time.Duration

	MetricsAddr   string
	MetricsRemote bool

	Config         string
	Listen         string
	PKIDir         string
	AuditLog       string
	AuditMax       byteSize
	Allow          []string
	MaxPerOwner    int
	MaxOwnerSize   byteSize
	ClientRate     int
	ClientCalls    int
	MaxConnections int
	RequestMemory  byteSize
	ResponseMemory byteSize
}

// What a job's log does when the disk is full.
const (
	logFullWait   = "wait"
	logFullShrink = "shrink"
)

const (
	minRequestMemory  = 256 << 20
	minResponseMemory = 64 << 20
)

// auditOff is the audit log's name when there is none.
const auditOff = "off"

// builtinServeOptions are the defaults, whatever the environment says.
func builtinServeOptions() serveOptions {
	set := admission.DefaultLimits()
	return serveOptions{
		StateDir:       "/var/lib/joblet",
		RunDir:         "/run/joblet",
		ReadyFD:        -1,
		LogLevel:       "info",
		LogFormat:      "text",
		LogFull:        logFullWait,
		Mirrors:        runtimes.DefaultMirrors(),
		BuildTimeout:   runtimes.DefaultBuildTimeout,
		AuditMax:       64 << 20,
		ClientRate:     set.ClientRate,
		ClientCalls:    set.ClientCalls,
		MaxConnections: set.MaxConnections,
		RequestMemory:  byteSize(set.RequestMemory),
		ResponseMemory: byteSize(set.ResponseMemory),
	}
}

func defaultServeOptions() serveOptions {
	o := builtinServeOptions()
	o.StateDir = cmp.Or(os.Getenv("JOBLET_STATE_DIR"), o.StateDir)
	o.RunDir = cmp.Or(os.Getenv("JOBLET_RUN_DIR"), o.RunDir)
	return o
}

func newServeCommand() *cobra.Command {
	opt := defaultServeOptions()
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long: `Run the daemon in the foreground. It listens on RUN-DIR/` + socketName + ` and admits root,
and as developers the members of the group that --group names; with --listen also
clients with certificates (joblet pki).

On SIGTERM and SIGINT it stops within five seconds. Jobs go on without it, and
the next daemon finds them. On SIGHUP it reads its configuration again.

Each flag is a key of the configuration file and a variable of the environment as
well (joblet config).`,
		Example: `  joblet serve
  joblet serve --listen=:50051
  joblet serve --state-dir=/srv/joblet --run-dir=/run/joblet-test --log-format=json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			set := given(cmd.Flags())
			return opt.serve(ctx, cmd.ErrOrStderr(), func() (serveOptions, error) {
				o, _, err := opt.load(set)
				return o, err
			})
		},
	}
	opt.flags(cmd.Flags())
	return cmd
}

// flags adds a flag for each option, with its present value as the default. They
// are the keys of the configuration file as well.
func (o *serveOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.Config, "config", o.Config, "configuration `FILE` (default $JOBLET_CONFIG, then "+configPath+" if it is there)")
	f.StringVar(&o.StateDir, "state-dir", o.StateDir, "records, logs and runtimes (default from $JOBLET_STATE_DIR)")
	f.StringVar(&o.RunDir, "run-dir", o.RunDir, "socket and lock (default from $JOBLET_RUN_DIR)")
	f.StringVar(&o.Group, "group", o.Group, "group of this host whose members may use the socket as developers, such as joblet; empty: root alone")
	f.DurationVar(&o.IdleExit, "idle-exit", o.IdleExit, "exit after this time without live jobs and calls; 0: never")
	f.IntVar(&o.ReadyFD, "ready-fd", o.ReadyFD, `file descriptor to write "ok" and a newline to when the daemon is ready, or the error`)
	f.IntVar(&o.MaxConcurrent, "max-concurrent", o.MaxConcurrent, "maximum of jobs running at once; others wait in a queue; 0: unlimited")
	f.IntVar(&o.MaxPerOwner, "max-per-owner", o.MaxPerOwner, "maximum of unended jobs per owner; more are refused; 0: unlimited")
	f.Var(&o.MaxOwnerSize, "max-owner-size", "disk quota per owner for uploads, inputs, logs and results, such as 50G; beyond it, new jobs are refused; 0: unlimited")
	f.DurationVar(&o.RetainAge, "retain-age", o.RetainAge, "delete jobs this long after their end, such as 720h; 0: never")
	f.Var(&o.RetainSize, "retain-size", "delete the oldest ended jobs when all jobs take more disk space than this, such as 20G; 0: never")
	f.StringVar(&o.LogFull, "log-full", o.LogFull, "on a full disk, block a job that writes output, or drop the older half of its log: wait or shrink")
	f.Var(limitsFlag{&o.Defaults}, "default", "default limit of jobs, by its flag of \"rnx job run\", such as max-memory=1G (repeatable)")
	f.Var(limitsFlag{&o.Ceiling}, "ceiling", "upper bound of a limit, also the limit of jobs that set none, such as max-memory=8G (repeatable)")
	f.StringArrayVar(&o.Mirrors, "mirror", o.Mirrors, "allowed mirror for recipes of runtimes: HOST, HOST:PORT, a URL prefix, or \"host\" for the mirrors of this host's apt (repeatable)")
	f.DurationVar(&o.BuildTimeout, "build-timeout", o.BuildTimeout, "time limit of a runtime build")
	f.StringVar(&o.MetricsAddr, "metrics-addr", o.MetricsAddr, "address for Prometheus /metrics: loopback, such as 127.0.0.1:9090, or unix:PATH, a socket for root; empty disables")
	f.BoolVar(&o.MetricsRemote, "metrics-remote", o.MetricsRemote, "allow --metrics-addr to be reachable from other machines, without authentication")
	f.StringVar(&o.LogLevel, "log-level", o.LogLevel, "debug, info, warn or error")
	f.StringVar(&o.LogFormat, "log-format", o.LogFormat, "text or json")
	f.StringVar(&o.Listen, "listen", o.Listen, "address for remote clients with certificates, such as :50051 (the default port); empty disables")
	f.StringVar(&o.PKIDir, "pki-dir", o.PKIDir, "directory of certificates, as created by joblet pki (default STATE-DIR/pki)")
	f.StringArrayVar(&o.Allow, "allow", o.Allow, "rule for access to other owners' jobs, such as \"alice read bob\" or \"carol control *\" (repeatable)")
	f.StringVar(&o.AuditLog, "audit-log", o.AuditLog, "audit log `FILE` of mutating and refused calls (default STATE-DIR/audit.log), or off")
	f.Var(&o.AuditMax, "audit-max", "size at which the audit log is rotated; five older files are kept")
	f.IntVar(&o.ClientRate, "client-rate", o.ClientRate, "maximum of calls per second per remote client")
	f.IntVar(&o.ClientCalls, "client-calls", o.ClientCalls, "maximum of concurrent calls per remote client")
	f.Var(&o.RequestMemory, "request-memory", "byte budget for requests in flight of all clients except local root")
	f.Var(&o.ResponseMemory, "response-memory", "byte budget for responses that clients have not read yet; one client gets at most a quarter")
	f.IntVar(&o.MaxConnections, "max-connections", o.MaxConnections, "maximum of connections of remote clients")
}

// reloadable are the options that SIGHUP can change.
var reloadable = []string{"allow", "build-timeout", "ceiling", "client-calls", "client-rate", "default", "log-level", "max-concurrent", "max-connections", "max-per-owner", "mirror", "request-memory", "response-memory"}

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
	if o.MaxPerOwner < 0 {
		return fmt.Errorf("--max-per-owner %d: must not be negative", o.MaxPerOwner)
	}
	for _, m := range o.Mirrors {
		if err := runtimes.ValidMirror(m); err != nil {
			return fmt.Errorf("--mirror %w", err)
		}
	}
	if o.BuildTimeout <= 0 {
		return fmt.Errorf("--build-timeout %v: must be more than 0", o.BuildTimeout)
	}
	for name, n := range map[string]int{"client-rate": o.ClientRate, "client-calls": o.ClientCalls, "max-connections": o.MaxConnections} {
		if n < 1 || n > 1_000_000 {
			return fmt.Errorf("--%s %d: must be between 1 and 1000000", name, n)
		}
	}
	if o.RequestMemory < minRequestMemory {
		return fmt.Errorf("--request-memory %s: must be at least 256M, two of the largest messages", o.RequestMemory.String())
	}
	if o.ResponseMemory < minResponseMemory {
		return fmt.Errorf("--response-memory %s: must be at least 64M, four of the longest lists", o.ResponseMemory.String())
	}
	if o.AuditMax < 4096 {
		return fmt.Errorf("--audit-max %s: must be at least 4K", o.AuditMax.String())
	}
	for name, path := range map[string]string{"audit-log": o.auditLog(), "pki-dir": o.pkiDir()} {
		if path != auditOff && !filepath.IsAbs(path) {
			return fmt.Errorf("--%s %q: must be an absolute path", name, path)
		}
	}
	if _, err := o.listenAddress(); err != nil {
		return err
	}
	if _, err := o.group(); err != nil {
		return err
	}
	if _, err := o.metricsAddr(); err != nil {
		return err
	}
	if _, err := o.rules(); err != nil {
		return err
	}
	_, err := o.logger(io.Discard)
	return err
}

func (o serveOptions) pkiDir() string { return cmp.Or(o.PKIDir, filepath.Join(o.StateDir, "pki")) }

func (o serveOptions) auditLog() string {
	return cmp.Or(o.AuditLog, filepath.Join(o.StateDir, "audit.log"))
}

// listenAddress returns where clients with certificates are served, with the usual
// port if none is named; empty: nowhere.
func (o serveOptions) listenAddress() (string, error) {
	if o.Listen == "" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil {
		host, port = strings.Trim(o.Listen, "[]"), ""
	}
	port = cmp.Or(port, client.DefaultPort)
	if _, err := strconv.ParseUint(port, 10, 16); err != nil || !isHost(host) {
		return "", fmt.Errorf("--listen %q: must be HOST:PORT, such as :%s or 0.0.0.0:%[2]s", o.Listen, client.DefaultPort)
	}
	return net.JoinHostPort(host, port), nil
}

// isHost reports whether s can be where to listen: nothing for everywhere, an
// address, or a name. A number alone is a port, and true what YAML makes of yes.
func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil || s == "" {
		return true
	}
	labels := strings.Split(strings.TrimSuffix(s, "."), ".")
	if slices.Contains(labels, "") || strings.Trim(labels[len(labels)-1], "0123456789") == "" || slices.Contains([]string{"true", "false", "yes", "no", "on", "off"}, strings.ToLower(s)) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r != '.' && r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

// limits returns what clients may take at once.
func (o serveOptions) limits() admission.Limits {
	return admission.Limits{
		ClientRate: o.ClientRate, ClientCalls: o.ClientCalls, MaxConnections: o.MaxConnections,
		RequestMemory: int64(o.RequestMemory), ResponseMemory: int64(o.ResponseMemory),
	}
}

// rules returns what developers may do with the jobs of others.
func (o serveOptions) rules() (rules []service.Rule, err error) {
	for _, text := range o.Allow {
		rule, err := service.ParseRule(text)
		if err != nil {
			return nil, fmt.Errorf("--allow: %w", err)
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

func (o serveOptions) supervisor(log *slog.Logger) supervisor.Config {
	return supervisor.Config{
		StateDir: o.StateDir, RunDir: o.RunDir, Log: log,
		MaxConcurrent: o.MaxConcurrent, MaxPerOwner: o.MaxPerOwner,
		RetainAge: o.RetainAge, RetainBytes: int64(o.RetainSize), LogShrinks: o.LogFull == logFullShrink,
		Defaults: o.Defaults, Ceiling: o.Ceiling,
		Mirrors: o.Mirrors, BuildTimeout: o.BuildTimeout, MaxOwnerBytes: int64(o.MaxOwnerSize),
	}
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
	if names := limitNames(); !slices.Contains(names, name) {
		return fmt.Errorf("no limit is called %.40q%s", name, spelling.Meant(name, slices.Values(names)))
	}
	return f.limits.Set(name, value)
}

func limitNames() []string {
	names := joblet.RlimitNames()
	for _, doc := range joblet.LimitDocs() {
		names = append(names, doc.Name)
	}
	return names
}

func (o serveOptions) socket() string { return filepath.Join(o.RunDir, socketName) }

// level reads the option log-level.
func (o serveOptions) level() (level slog.Level, err error) {
	if err := level.UnmarshalText([]byte(o.LogLevel)); err != nil {
		return level, fmt.Errorf("--log-level %q: must be debug, info, warn or error", o.LogLevel)
	}
	return level, nil
}

func (o serveOptions) logger(w io.Writer) (*slog.Logger, error) {
	level, err := o.level()
	if err != nil {
		return nil, err
	}
	return o.loggerAt(w, level)
}

func (o serveOptions) loggerAt(w io.Writer, level slog.Leveler) (*slog.Logger, error) {
	h := &slog.HandlerOptions{Level: level}
	switch o.LogFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, h)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, h)), nil
	}
	return nil, fmt.Errorf("--log-format %q: must be text or json", o.LogFormat)
}

// serve runs the daemon until ctx is done or it has been idle for long enough. load
// returns the options with what the configuration says then.
func (o serveOptions) serve(ctx context.Context, stderr io.Writer, load func() (serveOptions, error)) (err error) {
	ready, err := o.ready()
	if err != nil {
		return err
	}
	defer func() { ready.tell(err) }()
	hangup := make(chan os.Signal, 1) // from now on it does not end us
	signal.Notify(hangup, unix.SIGHUP)
	defer signal.Stop(hangup)
	if o, err = load(); err != nil {
		return err
	}
	if err := o.validate(); err != nil {
		return err
	}
	var level slog.LevelVar
	now, err := o.level()
	if err != nil {
		return err
	}
	level.Set(now)
	log, err := o.loggerAt(stderr, &level)
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
	for name, nearest := range unknownVariables() {
		log.Warn("a variable of the environment is unknown and passed over", "variable", name, "nearest", nearest)
	}
	if os.Geteuid() != 0 {
		return errors.New("the daemon must run as root: jobs need namespaces, mounts and cgroups")
	}
	if err := dropPrivileges(); err != nil { // a container may not let us; jobs are walled off all the same
		log.Warn("the daemon keeps privileges that it does not need", "error", err)
	}
	// Jobs, with ids of their own, must be able to read what is made for them:
	// every file's mode is ours to choose, whatever whoever started us prefers.
	syscall.Umask(0o022)
	if err := os.MkdirAll(o.RunDir, 0o755); err != nil {
		return fmt.Errorf("create run directory: %w", err)
	}
	if err := checkOwn(o.RunDir); err != nil {
		return err
	}
	lock, err := o.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	var scrapes net.Listener
	if counts != nil { // before anything is made or recovered: the port may be taken
		var cleanup func()
		if scrapes, cleanup, err = scraped.listen(); err != nil {
			return err
		}
		defer cleanup()
	}
	if err := keepStatePrivate(o.StateDir); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	stateLock, err := o.lockState(ctx)
	if err != nil {
		return err
	}
	defer stateLock.Close()

	cfg := o.supervisor(log)
	cfg.Metrics = counts
	sup, err := supervisor.Open(ctx, cfg)
	if err != nil {
		return fmt.Errorf("open %s: %w", o.StateDir, err)
	}
	defer func() { err = errors.Join(err, sup.Close()) }()
	group, err := o.group()
	if err != nil {
		return err
	}
	l, err := listen(o.socket(), group)
	if err != nil {
		return err
	}
	defer os.Remove(o.socket())

	defer l.Close()
	remote, err := o.remote(ctx, log)
	if err != nil {
		return err
	}
	if remote.listener != nil {
		defer remote.listener.Close()
	}
	rules, err := o.rules()
	if err != nil {
		return err
	}
	var audit *service.Audit
	if o.auditLog() != auditOff {
		if audit, err = service.OpenAudit(o.auditLog(), int64(o.AuditMax), log); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, audit.Close()) }()
	}

	svc := service.New(sup, log, audit)
	svc.Configure(rules)
	srv := server.New(svc, log, server.Options{PKI: remote.pki, Metrics: counts, Limits: o.limits(), Group: group})
	served := make(chan error, 2)
	serving := 1
	go func() { served <- srv.Serve(l) }()
	if remote.listener != nil {
		serving++
		go func() { served <- srv.ServeTLS(remote.listener) }()
		log.Info("serving clients with certificates", "address", remote.listener.Addr().String(), "certificate_expires", remote.pki.NotAfter())
	}
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
	for stop := false; !stop; {
		select {
		case err := <-served:
			return fmt.Errorf("serve: %w", err)
		case <-hangup:
			next, err := load()
			if err == nil {
				err = o.reload(&next, sup, svc, srv, &level)
			}
			if err != nil {
				log.Error("read the configuration again; that from before still holds", "error", err)
				continue
			}
			o = next
		case <-ctx.Done():
			log.Info("stopping", "jobs", sup.Active())
			stop = true
		case <-idle:
			log.Info("stopping: idle", "for", o.IdleExit)
			stop = true
		}
	}
	srv.Shutdown()
	for range serving {
		err = errors.Join(err, <-served)
	}
	return err
}

// reload makes hold what can of a configuration that was read again, and leaves in
// next what does.
func (o serveOptions) reload(next *serveOptions, sup *supervisor.Supervisor, svc *service.Service, srv *server.Server, level *slog.LevelVar) error {
	if err := next.validate(); err != nil {
		return err
	}
	names := changed(o, *next)
	if later := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(reloadable, name) }); len(later) > 0 {
		slog.Warn("some changes of the configuration hold after a restart", "keys", later)
	}
	rules, err := next.rules()
	if err != nil {
		return err
	}
	now, err := next.level()
	if err != nil {
		return err
	}
	level.Set(now)
	svc.Configure(rules)
	srv.Configure(next.limits())
	sup.Configure(next.supervisor(nil))
	held := o
	held.Allow, held.Ceiling, held.Defaults, held.LogLevel = next.Allow, next.Ceiling, next.Defaults, next.LogLevel
	held.ClientCalls, held.ClientRate, held.MaxConnections = next.ClientCalls, next.ClientRate, next.MaxConnections
	held.MaxConcurrent, held.MaxPerOwner, held.RequestMemory = next.MaxConcurrent, next.MaxPerOwner, next.RequestMemory
	held.Mirrors, held.BuildTimeout = next.Mirrors, next.BuildTimeout
	held.ResponseMemory = next.ResponseMemory
	slog.Info("configuration read again", "changed", slices.DeleteFunc(names, func(name string) bool { return !slices.Contains(reloadable, name) }))
	*next = held
	return nil
}

// remote is where clients with certificates are served.
type remote struct {
	listener net.Listener
	pki      *pki.Server
}

func (o serveOptions) remote(ctx context.Context, log *slog.Logger) (r remote, err error) {
	address, err := o.listenAddress()
	if address == "" || err != nil {
		return r, err
	}
	if r.pki, err = pki.Open(o.pkiDir(), log); err != nil {
		return r, fmt.Errorf("--listen: %w", err)
	}
	if left := time.Until(r.pki.NotAfter()); left < expiryWarning {
		log.Warn("the daemon's certificate expires soon: joblet pki rotate --server", "expires", r.pki.NotAfter())
	}
	var tcp net.ListenConfig
	if r.listener, err = tcp.Listen(ctx, "tcp", address); err != nil {
		return r, fmt.Errorf("--listen: %w", err)
	}
	return r, nil
}

// expiryWarning is how long before its end a certificate is spoken of.
const expiryWarning = 30 * 24 * time.Hour

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

// holder is the process that has a directory locked, as its lock file says. The
// file is for error messages: what counts is the lock.
type holder struct {
	pid    string
	runDir string
	pidNS  string // its PID namespace: elsewhere its number means nothing
}

func readHolder(f *os.File) (h holder) {
	text := make([]byte, 2*unix.PathMax)
	n, _ := f.ReadAt(text, 0)
	lines := strings.Split(string(text[:n]), "\n")
	for i, field := range []*string{&h.pid, &h.runDir, &h.pidNS} {
		if i < len(lines) {
			*field = strings.TrimSpace(lines[i])
		}
	}
	return h
}

func (h holder) String() string {
	text := "process " + cmp.Or(h.pid, "unknown")
	if h.pidNS != "" && h.pidNS != ownPIDNS() {
		text += " of another PID namespace"
	}
	return text
}

// serves reports whether the holder answers on its socket.
func (h holder) serves(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return !h.died()
}

// died reports whether the daemon that wrote its number into the lock is gone. A
// daemon that is killed while it starts a shim leaves a child that, until its
// execve, still has the lock and the socket.
func (h holder) died() bool {
	if h.pidNS != "" && h.pidNS != ownPIDNS() {
		return false
	}
	pid, err := strconv.Atoi(h.pid)
	return err == nil && pid > 0 && unix.Kill(pid, 0) == unix.ESRCH
}

// ownPIDNS names the PID namespace of this process, or is empty.
func ownPIDNS() string {
	name, _ := os.Readlink("/proc/self/ns/pid")
	return name
}

// checkOwn reports whether nobody else can put something into the run directory, or
// in the place of what is there.
func checkOwn(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("look at run directory %s: %w", dir, err)
	}
	if st.Uid != uint32(os.Geteuid()) || st.Mode&0o022 != 0 {
		return fmt.Errorf("run directory %s belongs to uid %d and has mode %04o: others can change what is in it: choose another, or make it root's (chown root %[1]s, chmod go-w %[1]s)", dir, st.Uid, st.Mode&0o7777)
	}
	return nil
}

// lock makes this the only daemon of the run directory for as long as the file
// is open. A daemon that is stopping is waited for, one that serves is not.
func (o serveOptions) lock(ctx context.Context) (*os.File, error) {
	name := filepath.Join(o.RunDir, lockName)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	err = lockFile(ctx, f, func() bool { return readHolder(f).serves(o.socket()) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		by := readHolder(f)
		f.Close()
		return nil, fmt.Errorf("another daemon (%v) uses %s", by, o.RunDir)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	o.writeHolder(f)
	return f, nil
}

// lockState makes this the only process that changes the state directory, for as
// long as the returned file is open: whatever its run directory, its mount and PID
// namespaces, and the name by which it reaches the directory. What is locked is
// the directory itself, so that nobody ends the lock by removing a file.
func (o serveOptions) lockState(ctx context.Context) (_ *os.File, err error) {
	dir, err := os.Open(o.StateDir)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	info, err := os.OpenFile(filepath.Join(o.StateDir, stateLockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	lock, other := dir, info
	defer func() {
		if other.Close(); err != nil {
			lock.Close()
		}
	}()
	serves := func() bool {
		h := readHolder(info)
		return h.runDir != "" && h.serves(filepath.Join(h.runDir, socketName))
	}
	err = lockFile(ctx, lock, serves)
	if errors.Is(err, unix.EBADF) { // NFS locks only what is open for writing
		lock, other = info, dir
		err = lockFile(ctx, lock, serves)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		h := readHolder(info)
		return nil, fmt.Errorf("another daemon (%v, run directory %s) uses the state directory %s: stop it first, or choose another --state-dir",
			h, cmp.Or(h.runDir, "unknown"), o.StateDir)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	o.writeHolder(info)
	return lock, nil
}

// lockFile locks f. As long as another has the lock, it waits, unless that serves.
func lockFile(ctx context.Context, f *os.File, serves func() bool) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) && !serves() {
		err = waitLock(ctx, f)
	}
	return err
}

// writeHolder says who has the lock. That it cannot be said, on a full disk, does
// not end the lock.
func (o serveOptions) writeHolder(f *os.File) {
	text := fmt.Sprintf("%d\n%s\n%s\n", os.Getpid(), o.RunDir, ownPIDNS())
	if _, err := f.WriteAt([]byte(text), 0); err == nil {
		_ = f.Truncate(int64(len(text)))
	}
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
func listen(path string, group int) (net.Listener, error) {
	private := path + newSuffix
	if err := os.Remove(private); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: private, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
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
		return nil, fmt.Errorf("put socket in place: %w", err)
	}
	return l, nil
}

// group returns the number of the group whose members may use the socket, 0 for
// root's. There is no default: a group of any name may have members who know
// nothing of this daemon, so the administrator names it.
func (o serveOptions) group() (int, error) {
	if o.Group == "" {
		return 0, nil
	}
	g, err := user.LookupGroup(o.Group)
	if err != nil {
		return 0, fmt.Errorf("--group %q: %w; make it: groupadd --system %s", o.Group, err, o.Group)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0, fmt.Errorf("--group %q: its number: %w", o.Group, err)
	}
	return gid, nil
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
