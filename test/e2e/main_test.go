// Package e2e drives the real rnx and the real joblet, as a user does. It needs
// root, builds both programs itself, and leaves nothing on the host.
package e2e

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/joblet/joblet/internal/testenv"
)

var (
	binDir   string // joblet and rnx
	runtimes string // a directory with python-3.11-ml built in it
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		// The signals that we may have been started to ignore, as nohup does it: what we
		// start does not ignore them.
		signals := make(chan os.Signal, 1)
		for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
			if signal.Ignored(sig) {
				signal.Notify(signals, sig)
			}
		}
		if status, skip := testenv.SkipSuite("e2e"); skip {
			return status
		}
		dir, err := os.MkdirTemp("", "joblet-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil { // tests run rnx as other users too
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if err := build(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// build builds the programs and the runtime that the specification uses, unless
// they are there already: JOBLET_TEST_BIN names a directory with joblet, rnx and
// perhaps joblet-race, JOBLET_TEST_RUNTIMES one of runtimes, or "none" to run only
// tests that need no runtime.
func build(dir string) error {
	top, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	if binDir = os.Getenv("JOBLET_TEST_BIN"); binDir == "" {
		binDir = filepath.Join(dir, "bin")
		if err := testenv.Build(top, binDir, os.Getenv("JOBLET_TEST_NORACE") == ""); err != nil {
			return err
		}
	}
	switch runtimes = os.Getenv("JOBLET_TEST_RUNTIMES"); runtimes {
	case "":
	case "none":
		runtimes = filepath.Join(dir, "no-runtimes")
		return os.Mkdir(runtimes, 0o755)
	default:
		return nil
	}
	d := &daemon{state: filepath.Join(dir, "build-state"), run: filepath.Join(dir, "build-run")}
	if err := d.start(); err != nil {
		return err
	}
	defer d.stop()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	if r := d.rnx(ctx, "runtime", "build", filepath.Join(top, "recipes/python-3.11-ml.yaml")); r.status != 0 {
		return fmt.Errorf("build the runtime: %v", r)
	}
	runtimes = filepath.Join(d.state, "runtimes")
	return nil
}

const runtime = "--runtime=python-3.11-ml"

// concurrent matches the tests whose daemon has the race detector: those in which many
// clients, jobs that end, and the daemon's own goroutines meet. The other tests prove
// what the kernel does, or a file, a terminal or a message, and the detector would cost
// much there. Measured: a daemon that starts, runs two jobs and stops
// takes 2.2 s of processor time with it and 1.0 s without, and what the database does
// takes 14 times as long.
var concurrent = regexp.MustCompile(`^Test(Background|Daemon(Killed|Stops)|Exec(Ending|Stuck|Terminal|$)|FilesStdin|ForeignDependency|` +
	`FuzzAPI|Life|Load$|Log(Bytes|Order|Max|Gap|Flood)|ManyAt|Merge|Metrics(Live|Log|$)|Order|OutputIsLive|ProcessesMany|PublicStop|` +
	`Remote(Life|Restart|Terminal|Attach)|RuleWithdrawn|Shim|Signal|SpareBoxes|Stop|Terminal(Attach|Gone|SurvivesCrash|NetworkCut))`)

// daemonFor returns the program of a test's daemon.
func daemonFor(t *testing.T) string {
	t.Helper()
	name, _, _ := strings.Cut(t.Name(), "/")
	if race := binDir + "/joblet-race"; concurrent.MatchString(name) {
		if _, err := os.Stat(race); err == nil {
			return race
		}
	}
	return binDir + "/joblet"
}

// daemon is a joblet of a test's own.
type daemon struct {
	state, run string
	args       []string
	bin        string   // the program; empty: joblet in binDir
	env        []string // beside ours
	sys        *syscall.SysProcAttr
	cmd        *exec.Cmd
	stderr     testenv.Output
}

// newDaemon starts a daemon with directories of its own, stops it when the test
// ends, and fails the test if anything is left then.
func newDaemon(t *testing.T, args ...string) *daemon {
	t.Helper()
	d := withState(t, args...)
	if err := os.Symlink(runtimes, filepath.Join(d.state, "runtimes")); err != nil {
		t.Fatal(err)
	}
	d.serve(t)
	return d
}

// newDaemonOnDisk is newDaemon with its state on a small disk, without runtimes.
func newDaemonOnDisk(t *testing.T, args ...string) *daemon {
	t.Helper()
	d := withState(t, args...)
	mount(t, d.state, "")
	d.serve(t)
	return d
}

// withState returns a daemon to be started, with an empty state directory.
func withState(t *testing.T, args ...string) *daemon {
	t.Helper()
	dir := t.TempDir()
	d := &daemon{state: filepath.Join(dir, "state"), run: filepath.Join(dir, "run"), args: args, bin: daemonFor(t)}
	if err := os.Mkdir(d.state, 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

// serve starts a daemon that is stopped when the test ends.
func (d *daemon) serve(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if d.cmd == nil && t.Failed() { // in the middle of something
			if err := d.start(); err != nil {
				t.Logf("start the daemon to end its jobs: %v", err)
			}
		}
		if d.cmd != nil {
			d.stop()
		}
		for _, bad := range []string{"DATA RACE", "panic", "changed its state in an invalid way"} {
			if strings.Contains(d.stderr.String(), bad) {
				t.Errorf("the daemon said %q", bad)
			}
		}
		if t.Failed() {
			t.Logf("the daemon said:\n%s", d.stderr.String())
		}
		testenv.CheckLeaks(t, d.run)
	})
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
}

func (d *daemon) host() string { return "unix://" + d.run + "/joblet.sock" }

// start starts the daemon and waits until it says that it is ready.
func (d *daemon) start() error {
	d.cmd = exec.Command(cmp.Or(d.bin, binDir+"/joblet"), append([]string{"serve", "--state-dir", d.state, "--run-dir", d.run}, d.args...)...)
	// By default a program with the detector sleeps for a second when it ends.
	d.cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=50"), d.env...)
	d.cmd.SysProcAttr = d.sys
	d.cmd.Stderr = &d.stderr
	if err := testenv.Serve(d.cmd); err != nil {
		d.cmd = nil
		return err
	}
	return nil
}

// stop ends the daemon's jobs and then the daemon, as an operator would: first
// those that wait, so that none takes the place of one that ends.
func (d *daemon) stop() {
	for _, states := range []string{"PENDING,SCHEDULED", "PENDING,SCHEDULED,INITIALIZING,RUNNING,STOPPING"} {
		if ids := strings.Fields(d.rnx(context.Background(), "job", "list", "-q", "--status", states).stdout); len(ids) > 0 {
			d.rnx(context.Background(), append([]string{"job", "kill"}, ids...)...)
		}
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	_ = d.cmd.Wait()
	d.cmd = nil
}

// kill ends the daemon with SIGKILL.
func (d *daemon) kill(t *testing.T) {
	t.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = d.cmd.Wait()
	d.cmd = nil
}

// result is what a program did.
type result struct {
	stdout, stderr string
	status         int
}

func (r result) String() string {
	return fmt.Sprintf("status %d\n--- stdout\n%s--- stderr\n%s", r.status, r.stdout, r.stderr)
}

// rnx runs rnx against the daemon.
func (d *daemon) rnx(ctx context.Context, args ...string) result {
	return finish(d.command(ctx, args...))
}

func (d *daemon) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, binDir+"/rnx", args...)
	cmd.Env = append(os.Environ(), "RNX_HOST="+d.host())
	return cmd
}

// finish runs a command to its end.
func finish(cmd *exec.Cmd) result {
	stdout, stderr, status := testenv.Run(cmd)
	return result{stdout, stderr, status}
}

// job runs "rnx job run" with the arguments and a time limit.
func (d *daemon) job(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	return d.rnx(ctx, append([]string{"job", "run"}, args...)...)
}

// must is job for a run that has to succeed.
func (d *daemon) must(t *testing.T, args ...string) string {
	t.Helper()
	r := d.job(t, args...)
	if r.status != 0 {
		t.Fatalf("rnx job run %q: %v", args, r)
	}
	return r.stdout
}

// eventually polls until ok, at most for the given time.
func eventually(limit time.Duration, ok func() bool) bool { return testenv.Eventually(limit, ok) }
