// Package daemon is the program joblet at work: its configuration, locks, listeners,
// readiness, reload and shutdown. The other commands of joblet are in command.
package daemon

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/runtimes"
	"github.com/joblet/joblet/internal/server/admission"
	"github.com/joblet/joblet/internal/service"
	"github.com/joblet/joblet/internal/spelling"
	"github.com/spf13/pflag"
)

const (
	socketName = "joblet.sock"
	lockName   = "joblet.lock"

	// stateLockName is the file that names the daemon of the state directory. It
	// differs from lockName, as one directory may be both.
	stateLockName = "daemon.lock"

	// newSuffix is behind a socket's name until it has its place.
	newSuffix = ".new"

	// maxSocketPath: sun_path of unix(7) holds 108 bytes, the last one NUL.
	maxSocketPath = 107

	// lockWait is how long a daemon waits for its predecessor, which stops
	// within five seconds, to let go of the run directory.
	lockWait = 10 * time.Second
)

// Options is the daemon's configuration.
type Options struct {
	Reloadable

	StateDir  string
	RunDir    string
	Group     string
	IdleExit  time.Duration
	ReadyFD   int
	LogFormat string

	RetainAge    time.Duration
	RetainSize   byteSize
	MaxOwnerSize byteSize
	LogFull      string

	MetricsAddr   string
	MetricsRemote bool

	Config   string
	Listen   string
	PKIDir   string
	AuditLog string
	AuditMax byteSize
}

// Reloadable are the options that SIGHUP changes while the daemon serves. Changes
// of the others hold after a restart.
type Reloadable struct {
	LogLevel string

	MaxConcurrent int
	MaxPerOwner   int
	Defaults      joblet.Limits
	Ceiling       joblet.Limits

	Mirrors      []string
	BuildTimeout time.Duration

	Allow          []string
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

// builtinOptions are the defaults, whatever the environment says.
func builtinOptions() Options {
	set := admission.DefaultLimits()
	return Options{
		Reloadable: Reloadable{
			LogLevel:       "info",
			Mirrors:        runtimes.DefaultMirrors(),
			BuildTimeout:   runtimes.DefaultBuildTimeout,
			ClientRate:     set.ClientRate,
			ClientCalls:    set.ClientCalls,
			MaxConnections: set.MaxConnections,
			RequestMemory:  byteSize(set.RequestMemory),
			ResponseMemory: byteSize(set.ResponseMemory),
		},
		StateDir:  "/var/lib/joblet",
		RunDir:    "/run/joblet",
		ReadyFD:   -1,
		LogFormat: "text",
		LogFull:   logFullWait,
		AuditMax:  64 << 20,
	}
}

// DefaultOptions are the defaults with the directories that the environment names.
func DefaultOptions() Options {
	o := builtinOptions()
	o.StateDir = cmp.Or(os.Getenv("JOBLET_STATE_DIR"), o.StateDir)
	o.RunDir = cmp.Or(os.Getenv("JOBLET_RUN_DIR"), o.RunDir)
	return o
}

// flags adds a flag for each option, with its present value as the default. They
// are the keys of the configuration file as well.
func (o *Options) flags(f *pflag.FlagSet) {
	f.StringVar(&o.Config, "config", o.Config, "configuration `FILE` (default $JOBLET_CONFIG, then "+configPath+" if it is there)")
	f.StringVar(&o.StateDir, "state-dir", o.StateDir, "records, logs and runtimes (default from $JOBLET_STATE_DIR)")
	f.StringVar(&o.RunDir, "run-dir", o.RunDir, "socket and lock (default from $JOBLET_RUN_DIR)")
	f.StringVar(&o.Group, "group", o.Group, "group of this host whose members may use the socket as developers, such as joblet; empty: root alone")
	f.Var((*duration)(&o.IdleExit), "idle-exit", "exit after this time without live jobs and calls; 0: never")
	f.IntVar(&o.ReadyFD, "ready-fd", o.ReadyFD, `file descriptor to write "ok" and a newline to when the daemon is ready, or the error`)
	o.Reloadable.flags(f)
	f.Var(&o.MaxOwnerSize, "max-owner-size", "disk quota per owner for uploads, inputs, logs and results, such as 50G; beyond it, new jobs are refused; 0: unlimited")
	f.Var((*duration)(&o.RetainAge), "retain-age", "delete jobs this long after their end, such as 30d; 0: never")
	f.Var(&o.RetainSize, "retain-size", "delete the oldest ended jobs when all jobs take more disk space than this, such as 20G; 0: never")
	f.StringVar(&o.LogFull, "log-full", o.LogFull, "on a full disk, block a job that writes output, or drop the older half of its log: wait or shrink")
	f.StringVar(&o.MetricsAddr, "metrics-addr", o.MetricsAddr, "address for Prometheus /metrics: loopback, such as 127.0.0.1:9090, or unix:PATH, a socket for root; empty disables")
	f.BoolVar(&o.MetricsRemote, "metrics-remote", o.MetricsRemote, "allow --metrics-addr to be reachable from other machines, without authentication")
	f.StringVar(&o.LogFormat, "log-format", o.LogFormat, "text or json")
	f.StringVar(&o.Listen, "listen", o.Listen, "address for remote clients with certificates, such as :50051 (the default port); empty disables")
	f.StringVar(&o.PKIDir, "pki-dir", o.PKIDir, "directory of certificates, as created by joblet pki (default STATE-DIR/pki)")
	f.StringVar(&o.AuditLog, "audit-log", o.AuditLog, "audit log `FILE` of mutating and refused calls (default STATE-DIR/audit.log), or off")
	f.Var(&o.AuditMax, "audit-max", "size at which the audit log is rotated; five older files are kept")
}

func (r *Reloadable) flags(f *pflag.FlagSet) {
	f.IntVar(&r.MaxConcurrent, "max-concurrent", r.MaxConcurrent, "maximum of jobs running at once; others wait in a queue; 0: unlimited")
	f.IntVar(&r.MaxPerOwner, "max-per-owner", r.MaxPerOwner, "maximum of unended jobs per owner; more are refused; 0: unlimited")
	f.Var(limitsFlag{&r.Defaults}, "default", "default limit of jobs, by its flag of \"rnx job run\", such as max-memory=1G (repeatable)")
	f.Var(limitsFlag{&r.Ceiling}, "ceiling", "upper bound of a limit, also the limit of jobs that set none, such as max-memory=8G (repeatable)")
	f.StringArrayVar(&r.Mirrors, "mirror", r.Mirrors, "allowed mirror for recipes of runtimes: HOST, HOST:PORT, a URL prefix, or \"host\" for the mirrors of this host's apt (repeatable)")
	f.Var((*duration)(&r.BuildTimeout), "build-timeout", "time limit of a runtime build")
	f.StringVar(&r.LogLevel, "log-level", r.LogLevel, "debug, info, warn or error")
	f.StringArrayVar(&r.Allow, "allow", r.Allow, "rule for access to other owners' jobs, such as \"alice read bob\" or \"carol control *\" (repeatable)")
	f.IntVar(&r.ClientRate, "client-rate", r.ClientRate, "maximum of calls per second per remote client")
	f.IntVar(&r.ClientCalls, "client-calls", r.ClientCalls, "maximum of concurrent calls per remote client")
	f.Var(&r.RequestMemory, "request-memory", "byte budget for requests in flight of all clients except local root")
	f.Var(&r.ResponseMemory, "response-memory", "byte budget for responses that clients have not read yet; one client gets at most a quarter")
	f.IntVar(&r.MaxConnections, "max-connections", r.MaxConnections, "maximum of connections of remote clients")
}

// reloadableNames returns the names of the reloadable options' flags, sorted.
func reloadableNames() (names []string) {
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	new(Reloadable).flags(f)
	f.VisitAll(func(flag *pflag.Flag) { names = append(names, flag.Name) })
	return names
}

// problem is why an option cannot be used.
type problem struct {
	option string
	err    error // begins with "--" and the option
}

// validate reports the first option that cannot be used, before anything starts.
func (o Options) validate() error {
	if all := o.problems(); len(all) > 0 {
		return all[0].err
	}
	return nil
}

// problems returns all options that cannot be used.
func (o Options) problems() (all []problem) {
	add := func(option string, err error) {
		if err != nil {
			all = append(all, problem{option, err})
		}
	}
	bad := func(option, format string, args ...any) {
		add(option, fmt.Errorf("--"+option+format, args...))
	}
	for _, dir := range []struct{ option, path string }{
		{"state-dir", o.StateDir}, {"run-dir", o.RunDir}, {"pki-dir", o.PKIPath()}, {"audit-log", o.auditLog()},
	} {
		if !filepath.IsAbs(dir.path) && (dir.option != "audit-log" || dir.path != auditOff) {
			bad(dir.option, " %q: must be an absolute path", dir.path)
		}
	}
	if p := o.socket(); len(p) > maxSocketPath {
		bad("run-dir", " %q: the path of the socket, %s, exceeds %d bytes: choose a shorter directory", o.RunDir, p, maxSocketPath)
	}
	for _, n := range []struct {
		option    string
		value     int
		low, high int
	}{
		{"max-concurrent", o.MaxConcurrent, 0, math.MaxInt}, {"max-per-owner", o.MaxPerOwner, 0, math.MaxInt},
		{"client-rate", o.ClientRate, 1, 1_000_000}, {"client-calls", o.ClientCalls, 1, 1_000_000}, {"max-connections", o.MaxConnections, 1, 1_000_000},
	} {
		switch {
		case n.value < n.low && n.high == math.MaxInt:
			bad(n.option, " %d: must not be negative", n.value)
		case n.value < n.low || n.value > n.high:
			bad(n.option, " %d: must be between %d and %d", n.value, n.low, n.high)
		}
	}
	for option, d := range map[string]time.Duration{"idle-exit": o.IdleExit, "retain-age": o.RetainAge} {
		if d < 0 {
			bad(option, " %v: must not be negative", d)
		}
	}
	if o.BuildTimeout <= 0 {
		bad("build-timeout", " %v: must be greater than 0", o.BuildTimeout)
	}
	if o.LogFull != logFullWait && o.LogFull != logFullShrink {
		bad("log-full", " %q: must be %s or %s", o.LogFull, logFullWait, logFullShrink)
	}
	if err := o.Defaults.Validate(); err != nil {
		bad("default", ": %w", err)
	}
	if err := o.Ceiling.Validate(); err != nil {
		bad("ceiling", ": %w", err)
	}
	if err := o.Defaults.Capped(o.Ceiling).Within(o.Ceiling); err != nil {
		bad("default", " exceeds --ceiling: %w", err)
	}
	for _, m := range o.Mirrors {
		if err := runtimes.ValidMirror(m); err != nil {
			bad("mirror", " %w", err)
		}
	}
	for _, size := range []struct {
		option      string
		value, low  byteSize
		explanation string
	}{
		{"request-memory", o.RequestMemory, minRequestMemory, "256M, two of the largest messages"},
		{"response-memory", o.ResponseMemory, minResponseMemory, "64M, four of the longest lists"},
		{"audit-max", o.AuditMax, 4096, "4K"},
	} {
		if size.value < size.low {
			bad(size.option, " %s: must be at least %s", size.value.String(), size.explanation)
		}
	}
	_, err := o.listenAddress()
	add("listen", err)
	_, err = o.group()
	add("group", err)
	_, err = o.metricsAddr()
	add("metrics-addr", err)
	_, err = o.rules()
	add("allow", err)
	_, err = o.level()
	add("log-level", err)
	_, err = o.loggerAt(io.Discard, slog.LevelInfo)
	add("log-format", err)
	return all
}

// PKIPath returns the directory of certificates.
func (o Options) PKIPath() string { return cmp.Or(o.PKIDir, filepath.Join(o.StateDir, "pki")) }

func (o Options) auditLog() string {
	return cmp.Or(o.AuditLog, filepath.Join(o.StateDir, "audit.log"))
}

// listenAddress returns where clients with certificates are served, with the usual
// port if none is named; empty: nowhere.
func (o Options) listenAddress() (string, error) {
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
func (r *Reloadable) limits() admission.Limits {
	return admission.Limits{
		ClientRate: r.ClientRate, ClientCalls: r.ClientCalls, MaxConnections: r.MaxConnections,
		RequestMemory: int64(r.RequestMemory), ResponseMemory: int64(r.ResponseMemory),
	}
}

// rules returns what developers may do with the jobs of others.
func (r *Reloadable) rules() (rules []service.Rule, err error) {
	for _, text := range r.Allow {
		rule, err := service.ParseRule(text)
		if err != nil {
			return nil, fmt.Errorf("--allow: %w", err)
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

// duration is a flag's value that may be in days and weeks. It is never negative.
type duration time.Duration

func (d *duration) String() string { return joblet.ReadableDuration(time.Duration(*d)) }

func (d *duration) Type() string { return "duration" }

func (d *duration) Set(s string) error {
	span, err := joblet.ParseDuration(s)
	if err == nil {
		*d = duration(span)
	}
	return err
}

// limitsFlag is a repeatable LIMIT=VALUE.
type limitsFlag struct{ limits *joblet.Limits }

func (f limitsFlag) String() string { return "" }

func (f limitsFlag) Type() string { return "LIMIT=VALUE" }

func (f limitsFlag) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		return fmt.Errorf("%q must be LIMIT=VALUE, such as max-memory=1G", s)
	}
	if names := limitNames(); !slices.Contains(names, name) {
		return fmt.Errorf("unknown limit %.40q%s", name, spelling.Meant(name, slices.Values(names)))
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

func (o Options) socket() string { return filepath.Join(o.RunDir, socketName) }

// level reads the option log-level.
func (o Options) level() (level slog.Level, err error) {
	if err := level.UnmarshalText([]byte(o.LogLevel)); err != nil {
		return level, fmt.Errorf("--log-level %q: must be debug, info, warn or error", o.LogLevel)
	}
	return level, nil
}

func (o Options) logger(w io.Writer) (*slog.Logger, error) {
	level, err := o.level()
	if err != nil {
		return nil, err
	}
	return o.loggerAt(w, level)
}

func (o Options) loggerAt(w io.Writer, level slog.Leveler) (*slog.Logger, error) {
	h := &slog.HandlerOptions{Level: level}
	switch o.LogFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, h)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, h)), nil
	}
	return nil, fmt.Errorf("--log-format %q: must be text or json", o.LogFormat)
}

// group returns the number of the group whose members may use the socket, 0 for
// root's. There is no default: a group of any name may have members who know
// nothing of this daemon, so the administrator names it.
func (o Options) group() (int, error) {
	if o.Group == "" {
		return 0, nil
	}
	g, err := user.LookupGroup(o.Group)
	if err != nil {
		return 0, fmt.Errorf("--group %q: this host has no such group: create it with groupadd --system %[1]s", o.Group)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0, fmt.Errorf("--group %q: cannot read its number: %w", o.Group, err)
	}
	return gid, nil
}
