package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

// protocol1 is the commit of the last release whose shims speak version 1 of the
// protocol (internal/shim/protocol).
const protocol1 = "ae9344f7cf94c459ba38fb6931560d25e44b1007"

// previousRelease builds the daemon of a commit from the repository's history.
func previousRelease(t *testing.T, commit string) (program string) {
	t.Helper()
	git := func(args ...string) *exec.Cmd {
		// The repository may belong to another user than root.
		return exec.CommandContext(t.Context(), "git", append([]string{"-c", "safe.directory=*", "-C", "../.."}, args...)...)
	}
	if err := git("cat-file", "-e", commit+"^{commit}").Run(); err != nil {
		t.Skipf("requires commit %.8s in the history of a git clone (git fetch --unshallow): %v", commit, err)
	}
	source, archive := t.TempDir(), filepath.Join(t.TempDir(), "source.tar")
	run := func(cmd *exec.Cmd) {
		t.Helper()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	run(git("archive", "--output", archive, commit))
	run(exec.CommandContext(t.Context(), "tar", "-xf", archive, "-C", source))
	program = filepath.Join(source, "joblet")
	for _, args := range [][]string{
		{"-o", "internal/engine/embed/joblet-monitor", "./cmd/joblet-monitor"},
		{"-o", program, "./cmd/joblet"},
	} {
		cmd := exec.CommandContext(t.Context(), "go", append([]string{"build", "-trimpath"}, args...)...)
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		run(cmd)
	}
	return program
}

// TestAdoptPrevious: a daemon adopts the jobs of the previous release's daemon, whose
// shims speak an earlier version of the protocol. All that such a shim can do works,
// and a request for what it cannot do is refused.
func TestAdoptPrevious(t *testing.T) {
	t.Parallel()
	d := withState(t)
	d.bin = previousRelease(t, protocol1)
	d.serve(t)
	d.bin = ""

	ctx := t.Context()
	const counts = `echo begun >&2; trap 'echo usr1' USR1; trap 'echo stopped > result; exit 7' TERM; while :; do sleep 0.1; done`
	plain := d.detach(t, "--name=plain", "bash", "-c", counts)
	killed := d.detach(t, "--name=killed", "--max-pids=100", "bash", "-c", "sleep infinity & setsid sleep infinity & wait")
	timed := d.detach(t, "--name=timed", "--timeout=2h", "sleep", "infinity")
	terminal := d.detach(t, "--name=terminal", "-t", "bash", "--norc")
	gone := d.detach(t, "--name=gone", "bash", "-c", "trap 'echo bye; exit 0' TERM; while :; do sleep 0.1; done")

	after := d.detach(t, "--name=after", "--depends-on=gone", "echo", "at last")
	for _, id := range []string{plain, killed, timed, terminal, gone} {
		d.becomes(t, id, joblet.Running)
	}
	pid := d.get(t, gone).PID

	d.kill(t)
	// One ends while there is no daemon.
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(d.state, "jobs", gone, "exit.json")
	if !eventually(patience, func() bool { _, err := os.Stat(record); return err == nil }) {
		t.Fatal("no exit record")
	}
	d.restart(t)

	for _, id := range []string{plain, killed, timed, terminal} {
		if job := d.get(t, id); job.State != joblet.Running {
			t.Errorf("%s is %v after the upgrade: %+v", job.Spec.Name, job.State, job)
		}
	}
	d.ends(t, gone, joblet.Completed)
	d.says(t, 0, "bye\n", "", "job", "log", gone)

	d.says(t, 0, "bash\n", "", "job", "exec", "plain", "cat", "/proc/1/comm")
	d.says(t, 0, "(?s).*sleep.*", "", "job", "top", "--once", "plain")
	d.says(t, 0, "(?s).*", "", "job", "signal", "plain", "USR1")
	if !d.wrote(t, plain, "usr1\n") {
		t.Errorf("the signal did not arrive: %v", d.rnx(ctx, "job", "log", plain))
	}
	d.says(t, 0, "(?s).*", "", "job", "update", "--max-pids=50", "killed")
	if job := d.get(t, killed); job.Spec.Limits.MaxPIDs != 50 {
		t.Errorf("limit of processes: %d, want 50", job.Spec.Limits.MaxPIDs)
	}
	d.says(t, 1, "", `rnx: .*--shm-size: the job was started by an earlier version.*\n`, "job", "update", "--shm-size=16M", "plain")

	s := newScreen(t, d, 100, 40)
	s.line("rnx job attach terminal")
	s.line("echo $((6 * 7))")
	s.wait(`^42`)
	s.line("stty size")
	s.wait(`^40 100`)
	s.line("exit 4")
	s.wait(`here\$\z`)
	s.status(4)

	d.says(t, 0, "(?s).*", "(?s).*", "job", "stop", "plain")
	if job := d.ends(t, plain, joblet.Stopped); job.Exit.Code != 7 {
		t.Errorf("exit status %d, want 7", job.Exit.Code)
	}
	results := t.TempDir()
	d.says(t, 0, "(?s).*", "(?s).*", "job", "cp", "plain:result", results)
	if text, err := os.ReadFile(filepath.Join(results, "result")); string(text) != "stopped\n" {
		t.Errorf("the job left %q: %v", text, err)
	}
	d.ends(t, after, joblet.Completed)
	d.says(t, 0, "at last\n", "", "job", "log", after)
	d.says(t, 0, "(?s).*", "(?s).*", "job", "kill", "killed", "timed")
	d.ends(t, killed, joblet.Stopped)
	d.ends(t, timed, joblet.Stopped)

	if left, _ := os.ReadDir(filepath.Join(d.run, "monitors")); len(left) != 0 {
		t.Errorf("sockets of the previous release are left: %v", left)
	}
}
