package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

// example prepares examples/NAME to run against the daemon, in a directory that has
// the given files.
func (d *daemon) example(t *testing.T, dir, name string, args ...string) *exec.Cmd {
	t.Helper()
	script, err := filepath.Abs("../../examples/" + name)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(patient(t), script, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "RNX_HOST="+d.host(), "PATH="+binDir+":"+os.Getenv("PATH"))
	return cmd
}

// shellScript writes an executable shell script.
func shellScript(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\nset -e\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// holds checks the content of a file.
func holds(t *testing.T, path, want string) {
	t.Helper()
	if have, err := os.ReadFile(path); err != nil || string(have) != want {
		t.Errorf("%s holds %q, %v; want %q", path, have, err, want)
	}
}

// TestExampleSweep: examples/sweep.sh runs a program once for each parameter,
// collects the results, reports failures, and starts no job a second time.
func TestExampleSweep(t *testing.T) {
	t.Parallel()
	d, dir := newDaemon(t, "--max-concurrent=2"), t.TempDir()
	shellScript(t, dir+"/double.sh", "mkdir out\necho $(($1 * 2)) >out/result\n[ $1 -ne 4 ] || { echo four >&2; exit 9; }\n")

	for range 2 {
		cmd := d.example(t, dir, "sweep.sh", "results", "./double.sh", "1", "2")
		cmd.Env = append(cmd.Env, "SWEEP=first")
		if r := finish(cmd); r.status != 0 {
			t.Fatalf("sweep.sh: %v", r)
		}
	}
	for i := 1; i <= 2; i++ {
		holds(t, fmt.Sprintf("%s/results/%d/result", dir, i), fmt.Sprintln(i*2))
	}
	if ids := strings.Fields(d.rnx(t.Context(), "job", "list", "-q", "--label=sweep=first").stdout); len(ids) != 2 {
		t.Errorf("two calls of sweep.sh with the same name made the jobs %q", ids)
	}

	r := finish(d.example(t, dir, "sweep.sh", "results2", "./double.sh", "4", "5"))
	if r.status != 1 || !strings.Contains(r.stderr, "ended with status 9\nfour\n") {
		t.Errorf("sweep.sh with a failing job: %v", r)
	}
	holds(t, dir+"/results2/5/result", "10\n")
}

// TestExampleCI: examples/ci.sh exits with the status of the job, fetches artifacts,
// and replaces the cache only after a success.
func TestExampleCI(t *testing.T) {
	t.Parallel()
	d, dir := newDaemon(t), t.TempDir()
	shellScript(t, dir+"/source/test.sh", `cat "$CACHE/runs" 2>/dev/null || true
echo run >>"$CACHE/runs"
mkdir /work/artifacts
echo "$1" >/work/artifacts/report
exit "$1"
`)
	for i, tt := range []struct{ status, output, cache string }{
		{"0", "", "run\n"},
		{"3", "run\n", "run\n"},
		{"0", "run\n", "run\nrun\n"},
	} {
		r := finish(d.example(t, dir, "ci.sh", "ci", "source", "./test.sh", tt.status))
		if fmt.Sprint(r.status) != tt.status || r.stdout != tt.output {
			t.Fatalf("run %d of ci.sh: %v; want status %s and %q", i, r, tt.status, tt.output)
		}
		holds(t, dir+"/ci/cache/runs", tt.cache)
		holds(t, dir+"/ci/artifacts/report", tt.status+"\n")
	}
	if left, _ := filepath.Glob(dir + "/ci/new.*"); len(left) > 0 {
		t.Errorf("ci.sh leaves %q", left)
	}
}

// TestExampleTrain: examples/train.sh copies checkpoints while the job runs, and
// continues a lost job from the newest copy.
func TestExampleTrain(t *testing.T) {
	t.Parallel()
	d, dir := newDaemon(t), t.TempDir()
	shellScript(t, dir+"/train.sh", `if [ -e checkpoint/step ]; then
	echo "from $(cat checkpoint/step) to $1" >checkpoint/step
	exit 7
fi
echo one >checkpoint/step.new
mv checkpoint/step.new checkpoint/step
sleep 1000
`)
	cmd := d.example(t, dir, "train.sh", "model", "./train.sh", "two")
	cmd.Env = append(cmd.Env, "INTERVAL=0.2s")
	done := make(chan result, 1)
	go func() { done <- finish(cmd) }()

	saved := func() bool { _, err := os.Stat(dir + "/model/checkpoint/step"); return err == nil }
	if !eventually(patience, saved) {
		t.Fatal("train.sh saves no checkpoint")
	}
	id := strings.TrimSpace(d.rnx(t.Context(), "job", "list", "-q", "--name=train").stdout)
	if err := unix.Kill(d.shimOf(t, id), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r := <-done
	if r.status != 7 || !strings.HasSuffix(r.stdout, ": FAILED\n") || !strings.Contains(r.stdout, "attempt 2: ") {
		t.Errorf("train.sh: %v", r)
	}
	holds(t, dir+"/model/checkpoint/step", "from one to two\n")
	d.becomes(t, id, joblet.Lost)
}
