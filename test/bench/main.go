// Command bench measures what it costs to run a command as a job of Joblet,
// side by side with other ways to run a command in a box of its own: fork and
// exec, unshare, bwrap, crun, runc and podman. It needs root.
//
//	make build && go run ./test/bench > table.md
//
// The contenders take turns within one run, in an order that is shuffled in
// each round, so that a busy moment of the machine hits all alike. Joblet runs
// with directories of its own, and all that a run makes it removes again.
//
// # How it works
//
// The bench starts every program from a lane, an operating system thread that
// may enter the mount namespace made for the peers (peers.go), and times from
// before the fork until the program has been waited for. It is a child
// subreaper: what a contender leaves running becomes its child, which it waits
// for between two measurements and kills at the end.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/client"
)

type options struct {
	runs     int
	idleRuns int
	warmup   int
	idle     time.Duration
	duration time.Duration
	memJobs  int
	keys     int
	peers    []string
	json     bool
	joblet   string
	rnx      string
}

func parseOptions(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.IntVar(&o.runs, "n", 100, "measured `runs` of each contender")
	fs.IntVar(&o.idleRuns, "idle-n", 30, "measured `runs` of each contender after idleness (0: leave the table out)")
	fs.IntVar(&o.warmup, "warmup", 5, "`runs` of each contender before the measured ones, not counted")
	fs.DurationVar(&o.idle, "idle", 100*time.Millisecond, "idle `time` before each run of the second table")
	fs.DurationVar(&o.duration, "duration", 3*time.Second, "`time` for each figure of jobs per second (0: leave the table out)")
	fs.IntVar(&o.memJobs, "jobs", 20, "running `jobs` when memory is measured (0: leave the table out)")
	fs.IntVar(&o.keys, "keys", 200, "`keys` typed in each way of the table of echoes (0: leave the table out)")
	peers := fs.String("peers", "", "comma-separated `contenders` to measure (default all: "+strings.Join(contenderNames(), ",")+")")
	fs.BoolVar(&o.json, "json", false, "print JSON instead of Markdown")
	fs.StringVar(&o.joblet, "joblet", "", "`path` of joblet (default: bin/joblet after make build)")
	fs.StringVar(&o.rnx, "rnx", "", "`path` of rnx (default: bin/rnx after make build)")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if o.runs < 1 || o.idleRuns < 0 || o.warmup < 0 || o.idle < 0 || o.duration < 0 || o.memJobs < 0 || o.memJobs > 1000 || o.keys < 0 {
		return o, errors.New("-n must be at least 1, -jobs at most 1000, and no number negative")
	}
	if *peers != "" {
		o.peers = strings.Split(*peers, ",")
	}
	for _, p := range o.peers {
		if !slices.Contains(contenderNames(), p) {
			return o, fmt.Errorf("-peers: unknown contender %q (one of %s)", p, strings.Join(contenderNames(), ", "))
		}
	}
	return o, nil
}

func (o *options) wants(name string) bool {
	return len(o.peers) == 0 || slices.Contains(o.peers, name)
}

func main() {
	o, err := parseOptions(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, o, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, stdout, progress io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("root is needed")
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	b, err := newBench(o, progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()

	phases := []func(context.Context){
		b.prepare, b.warmUp, b.measureLatency, b.measureIdleLatency, b.measureThroughput, b.measureMemory, b.measureEcho,
	}
	for _, phase := range phases {
		if phase(ctx); ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}

	r := b.result()
	if o.json {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(r)
	} else {
		_, err = io.WriteString(stdout, r.markdown())
	}
	if err != nil {
		return fmt.Errorf("cannot write the result: %w", err)
	}
	for _, c := range b.contenders {
		if c.failures > 0 {
			err = errors.Join(err, fmt.Errorf("%s failed %d times, last: %w", c.name, c.failures, c.lastErr))
		}
	}
	return err
}

// bench is one run of the program.
type bench struct {
	options
	progress   io.Writer
	dir        string // everything the run puts on disk
	prefix     string // of container ids and cgroups, unlike any other run's
	host       *os.File
	peersNS    *os.File // the peers' mount namespace
	undo       []func() error
	env        []string
	lanes      []*lane
	contenders []*contender
	daemon     *daemon
	daemonErr  error // why there is none
	client     *client.Client
	daemonPSS  []daemonMemory
	echo       []echoRow
	echoJob    string // in which rnx exec runs; empty: none
	load       string // average of the machine when the run began
}

func newBench(o options, progress io.Writer) (_ *bench, err error) {
	b := &bench{
		options:  o,
		progress: progress,
		prefix:   fmt.Sprintf("joblet-bench-%d-", os.Getpid()),
		env:      []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/nonexistent"},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	b.dir, err = os.MkdirTemp("", "joblet-bench-")
	if err != nil {
		return b, fmt.Errorf("make a directory for the run: %w", err)
	}
	// The job's root is walked by ids that are nobody on the host.
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return b, err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return b, err
	}
	b.load, _, _ = strings.Cut(string(load), " ")
	b.host, err = os.Open("/proc/self/ns/mnt")
	if err != nil {
		return b, fmt.Errorf("open the host's mount namespace: %w", err)
	}
	if err := b.makePeersNamespace(); err != nil {
		return b, fmt.Errorf("make the peers' mount namespace: %w", err)
	}
	for range slices.Max(workerCounts) {
		l, err := b.newLane()
		if err != nil {
			return b, err
		}
		b.lanes = append(b.lanes, l)
	}
	if err := b.makeRoot(); err != nil {
		return b, fmt.Errorf("make the root directory of the boxes: %w", err)
	}
	for _, c := range contenders() {
		if o.wants(c.name) {
			b.contenders = append(b.contenders, c)
		}
	}
	return b, nil
}

// prepare makes ready what each contender needs. One that cannot run here
// keeps its row, with the reason.
func (b *bench) prepare(ctx context.Context) {
	for _, c := range b.contenders {
		if ctx.Err() != nil {
			return
		}
		if c.reason = c.prepare(ctx, b, c); c.reason != nil {
			b.note("%s: %v", c.name, c.reason)
		}
	}
}

// able returns the contenders that can run here.
func (b *bench) able() []*contender {
	return slices.DeleteFunc(slices.Clone(b.contenders), func(c *contender) bool { return c.reason != nil })
}

func (b *bench) note(format string, args ...any) {
	fmt.Fprintf(b.progress, "bench: "+format+"\n", args...)
}

// close ends what still runs and removes all that the run has made.
func (b *bench) close() error {
	var errs []error
	if b.client != nil {
		errs = append(errs, b.client.Close())
	}
	if b.daemon != nil {
		errs = append(errs, b.daemon.stop())
	}
	errs = append(errs, killOrphans())
	for _, f := range slices.Backward(b.undo) {
		errs = append(errs, f())
	}
	for _, l := range b.lanes {
		l.close()
	}
	for _, f := range []*os.File{b.host, b.peersNS} {
		if f != nil {
			f.Close()
		}
	}
	errs = append(errs, removeCgroups(b.prefix))
	if b.dir != "" {
		errs = append(errs, os.RemoveAll(b.dir))
	}
	return errors.Join(errs...)
}

// programs returns the paths of joblet and rnx, built from this checkout
// unless they were given.
func (b *bench) programs(ctx context.Context) (joblet, rnx string, err error) {
	joblet, rnx = b.joblet, b.rnx
	if joblet == "" || rnx == "" {
		if _, err := os.Stat("Makefile"); err != nil {
			return "", "", errors.New("no Makefile here to build it with: run from the top of the checkout, or give -joblet and -rnx")
		}
		b.note("make build")
		if out, err := exec.CommandContext(ctx, "make", "build").CombinedOutput(); err != nil {
			return "", "", fmt.Errorf("make build: %w: %s", err, lastLine(out))
		}
	}
	for _, p := range []struct {
		path *string
		std  string
	}{{&joblet, "bin/joblet"}, {&rnx, "bin/rnx"}} {
		if *p.path == "" {
			*p.path = p.std
		}
		if *p.path, err = filepath.Abs(*p.path); err != nil {
			return "", "", err
		}
		if _, err := os.Stat(*p.path); err != nil {
			return "", "", err
		}
	}
	return joblet, rnx, nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
