// Package escape tries to get out of jobs. Each attempt is a small program that runs
// in a job with the default profile, through the real rnx and joblet, and must
// fail; and that runs as an ordinary child of the test, where it must get through:
// an attempt that fails everywhere proves nothing.
package escape

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/joblet/joblet/internal/testenv"
)

// Exit statuses of testdata/probe.c.
const (
	through = 0
	refused = 10
	absent  = 11
)

// binDir holds joblet, rnx and probe. JOBLET_TEST_BIN names a directory in which
// they are already, for machines without compilers.
var binDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if status, skip := testenv.SkipSuite("escape"); skip {
			return status
		}
		if binDir = os.Getenv("JOBLET_TEST_BIN"); binDir != "" {
			return m.Run()
		}
		dir, err := os.MkdirTemp("", "joblet-escape-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binDir = dir
		if err := testenv.Build("../..", dir, false); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		out, err := exec.Command("gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", probe(), "testdata/probe.c").CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "compile the attempts: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

func probe() string { return filepath.Join(binDir, "probe") }

// world is a host with a daemon, and things on it that jobs must not reach.
type world struct {
	t      *testing.T
	run    string
	daemon *exec.Cmd
	stderr testenv.Output

	secret string // a file that everybody on the host may read
	mark   string // a word in the arguments and the environment of the victims
	key    string // of System V objects
	name   string // of POSIX objects, and behind "/" of an abstract socket
	victim *exec.Cmd
	pid    string // the victim's
}

func newWorld(t *testing.T, args ...string) *world {
	t.Helper()
	return newWorldOf(t, filepath.Join(binDir, "joblet"), args...)
}

// newWorldOf is newWorld with another program for the daemon.
func newWorldOf(t *testing.T, program string, args ...string) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "joblet-escape-host-") // t.TempDir is nobody else's to enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := rand.Uint32()
	w := &world{
		t: t, run: filepath.Join(dir, "run"), secret: filepath.Join(dir, "secret"),
		mark: fmt.Sprintf("victim-%08x", n), key: fmt.Sprintf("0x%x", n&0x7fffffff|1), name: fmt.Sprintf("/joblet-escape-%08x", n),
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(w.secret, []byte(w.mark), 0o644)); err != nil {
		t.Fatal(err)
	}
	w.victim = exec.Command(probe(), "hold", w.key, w.name, w.mark)
	w.victim.Env = []string{"MARK=" + w.mark}
	in, err := w.victim.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := w.victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.victim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close() // it removes what it made, and ends
		if err := w.victim.Wait(); err != nil {
			t.Errorf("the victim on the host: %v", err)
		}
	})
	if b := make([]byte, 64); readWord(out, b) != "held" {
		t.Fatalf("the victim on the host: %s", b)
	}
	w.pid = strconv.Itoa(w.victim.Process.Pid)

	w.daemon = exec.Command(program,
		append([]string{"serve", "--state-dir", filepath.Join(dir, "state"), "--run-dir", w.run}, args...)...)
	w.daemon.Stderr = &w.stderr
	if err := testenv.Serve(w.daemon); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if ids := strings.Fields(w.rnx(context.Background(), "job", "list", "-q", "--status", "PENDING,SCHEDULED,INITIALIZING,RUNNING,STOPPING").stdout); len(ids) > 0 {
			w.rnx(context.Background(), append([]string{"job", "kill"}, ids...)...)
		}
		_ = w.daemon.Process.Signal(syscall.SIGTERM)
		_ = w.daemon.Wait()
		for _, bad := range []string{"DATA RACE", "panic"} {
			if strings.Contains(w.stderr.String(), bad) {
				t.Errorf("the daemon said %q", bad)
			}
		}
		if t.Failed() {
			t.Logf("the daemon said:\n%s", w.stderr.String())
		}
		testenv.CheckLeaks(t, w.run)
	})
	return w
}

func readWord(r interface{ Read([]byte) (int, error) }, b []byte) string {
	n, _ := r.Read(b)
	return strings.TrimSpace(string(b[:n]))
}

type result struct {
	stdout, stderr string
	status         int
}

func (r result) String() string {
	return fmt.Sprintf("status %d: %s%s", r.status, r.stdout, r.stderr)
}

func finish(cmd *exec.Cmd) result {
	stdout, stderr, status := testenv.Run(cmd)
	return result{stdout, stderr, status}
}

func (w *world) rnx(ctx context.Context, args ...string) result {
	cmd := exec.CommandContext(ctx, filepath.Join(binDir, "rnx"), args...)
	cmd.Env = append(os.Environ(), "RNX_HOST=unix://"+w.run+"/joblet.sock")
	return finish(cmd)
}

// job runs "rnx job run" with the arguments.
func (w *world) job(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return w.rnx(ctx, append([]string{"job", "run"}, args...)...)
}

// try runs an attempt in a job; flags are those of rnx job run.
func (w *world) try(t *testing.T, flags []string, args ...string) result {
	t.Helper()
	flags = append(flags, "--upload="+probe(), "/work/probe")
	return w.job(t, append(flags, args...)...)
}

// start runs a job that goes on until the test ends, and returns its id and the
// number of its PID 1 on the host once it has said the word.
func (w *world) start(t *testing.T, word string, args ...string) (id string, pid int) {
	t.Helper()
	r := w.job(t, append([]string{"-d"}, args...)...)
	if r.status != 0 {
		t.Fatalf("start a job: %v", r)
	}
	id = strings.TrimSpace(r.stdout)
	t.Cleanup(func() { w.rnx(context.Background(), "job", "kill", id) })
	if !testenv.Eventually(30*time.Second, func() bool {
		return strings.Contains(w.rnx(t.Context(), "job", "log", id).stdout, word)
	}) {
		t.Fatalf("the job does not say %q", word)
	}
	r = w.rnx(t.Context(), "job", "status", "--format={{.HostPID}}", id)
	if pid, _ = strconv.Atoi(strings.TrimSpace(r.stdout)); pid == 0 {
		t.Fatalf("no pid: %v", r)
	}
	return id, pid
}

// control runs an attempt as a child of the test, in mount and further namespaces
// of its own.
func control(t *testing.T, a attempt, args []string) result {
	t.Helper()
	cmd := exec.Command(probe(), args...)
	if a.prepare != "" {
		cmd = exec.Command("sh", append([]string{"-ec", a.prepare + "\nexec " + probe() + ` "$@"`, "sh"}, args...)...)
	}
	cmd.Dir = t.TempDir()
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | a.namespaces}
	if a.chroot {
		program, err := os.ReadFile(probe())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(cmd.Dir, "probe"), program, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd.Path, cmd.SysProcAttr.Chroot, cmd.Dir = "/probe", cmd.Dir, "/"
	}
	if a.leak {
		f, err := os.Open("/")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = []*os.File{f}
	}
	return finish(cmd)
}
