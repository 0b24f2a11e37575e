package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/joblet/joblet/internal/testenv"
)

func TestExitStatus(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	tests := []struct {
		name   string
		args   []string
		status int
		stderr string // regular expression over the whole of it
	}{
		{"success", []string{"true"}, 0, `^$`},
		{"failure", []string{"false"}, 1, `^$`},
		{"any status", []string{"sh", "-c", "exit 200"}, 200, `^$`},
		{"not found", []string{"no-such-command"}, 127, `^rnx: no-such-command: command not found in .*\n$`},
		{"not found by path", []string{"/no/such/command"}, 127, `^rnx: /no/such/command: command not found in .*\n$`},
		{"not executable", []string{"/etc/passwd"}, 126, `^rnx: cannot execute /etc/passwd: permission denied.*\n$`},
		{"a directory", []string{"/usr"}, 126, `^rnx: cannot execute /usr: permission denied: it is a directory.*\n$`},
		{"no command", nil, 125, `^rnx: .*command.*\n`},
		{"empty command", []string{""}, 125, `^rnx: no command given\n$`},
		{"unknown runtime", []string{"--runtime=nope", "true"}, 125, `^rnx: .*nope.*\n$`},
		{"runtime outside", []string{"--runtime=../x", "true"}, 125, `^rnx: runtime name "../x": .*\n$`},
		{"unknown flag", []string{"--frobnicate", "true"}, 125, `^rnx: unknown flag: --frobnicate`},
		{"relative workdir", []string{"--workdir=../..", "true"}, 125, `^rnx: workdir "../..": .*\n$`},
		{"workdir outside", []string{"--workdir=/../etc", "true"}, 125, `^rnx: workdir "/../etc": .*\n$`},
		{"workdir is a file", []string{"--workdir=/etc/passwd", "true"}, 125, `^rnx: cannot use working directory /etc/passwd: .*not a directory.*\n$`},
		{"workdir that cannot be", []string{"--workdir=/usr/nope", "true"}, 125, `^rnx: cannot use working directory /usr/nope: .*\n$`},
		{"bad variable", []string{"-e", "JOBLET_A=2", "true"}, 125, `^rnx: --env: environment variable name "JOBLET_A".*\n$`},
		{"timeout", []string{"--timeout=300ms", "sleep", "60"}, 124, `(?s)time.*`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := d.job(t, test.args...)
			if r.status != test.status || !regexp.MustCompile(test.stderr).MatchString(r.stderr) || r.stdout != "" {
				t.Errorf("%v\nwant status %d, stderr %s", r, test.status, test.stderr)
			}
		})
	}
}

// TestRefusedLeavesNothing: what could not be started has no record, no
// directory, no cgroup.
func TestRefusedLeavesNothing(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for _, args := range [][]string{
		{"no-such-command"}, {"/usr"}, {"--workdir=/usr/nope", "true"}, {"--runtime=nope", "true"},
		{"--idempotency-key=\xff\xfe", "true"},
	} {
		if r := d.job(t, args...); r.status < 125 || r.status > 127 || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%.40q: %.400v", args, r)
		}
	}
	if jobs, err := os.ReadDir(filepath.Join(d.state, "jobs")); err != nil || len(jobs) != 0 {
		t.Errorf("job directories left: %v %v", jobs, err)
	}
	if r := d.rnx(t.Context(), "job", "list", "-q"); r.stdout != "" || r.status != 0 {
		t.Errorf("records left: %v", r)
	}
}

func TestOutputIsExact(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	// Random bytes through the job's work directory, both streams, checked by hash.
	out := d.job(t, "bash", "-c", "head -c 3000000 /dev/urandom > f; sha256sum f | cut -c1-64 > sum; cat f; cat sum >&2")
	if sum := fmt.Sprintf("%x\n", sha256.Sum256([]byte(out.stdout))); sum != out.stderr || len(out.stdout) != 3000000 {
		t.Errorf("%d bytes with hash %s, the job says %s", len(out.stdout), sum, out.stderr)
	}
	r := d.job(t, "bash", "-c", "echo out; echo err >&2; printf 'no newline'; echo to-stdout >/dev/stdout; echo to-stderr >/dev/stderr")
	if r.stdout != "out\nno newlineto-stdout\n" || r.stderr != "err\nto-stderr\n" || r.status != 0 {
		t.Errorf("streams: %v", r)
	}
}

// TestOutputIsLive: output arrives while the job runs.
func TestOutputIsLive(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	cmd := d.command(t.Context(), "job", "run", "bash", "-c", "trap 'echo got it; exit 3' INT; echo ready; while :; do sleep 0.05; done")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 6)
	if _, err := io.ReadFull(stdout, line); err != nil || string(line) != "ready\n" {
		t.Fatalf("first line %q %v", line, err)
	}
	// One interrupt reaches the job, which handles it.
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(stdout)
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() != 3 || string(rest) != "got it\n" {
		t.Errorf("status %d, then %q, stderr %q", cmd.ProcessState.ExitCode(), rest, stderr.String())
	}
}

func TestSecondInterruptKills(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	cmd := d.command(t.Context(), "job", "run", "bash", "-c", "trap '' INT TERM; echo ready; sleep 60; echo never")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 6)
	if _, err := io.ReadFull(stdout, line); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	said := make([]byte, 512)
	n, err := stderr.Read(said) // what the first does is said at once
	if err != nil || !strings.Contains(string(said[:n]), "again") {
		t.Errorf("after the first Ctrl-C: %q %v", said[:n], err)
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	rest, _ := io.ReadAll(stderr)
	_, _ = io.ReadAll(stdout)
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() != 137 || len(rest) == 0 {
		t.Errorf("status %d, want 137; said %q", cmd.ProcessState.ExitCode(), rest)
	}
}

func TestClosedPipeEndsQuietly(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", binDir+"/rnx job run sh -c 'while :; do echo line; done' | head -1")
	cmd.Env = append(os.Environ(), "RNX_HOST="+d.host())
	if r := finish(cmd); r.stdout != "line\n" || r.stderr != "" || ctx.Err() != nil {
		t.Errorf("%v %v", r, ctx.Err())
	}
	// As in a shell's pipeline, the writer does not go on for ever.
	if !eventually(20*time.Second, func() bool { return d.rnx(t.Context(), "job", "list", "-q", "--status", "RUNNING").stdout == "" }) {
		t.Error("the job runs on")
	}
}

func TestFlagsStopAtTheCommand(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	if out := d.must(t, "-e", "A=1", "echo", "--help", "-e", "B=2", "--runtime=x", "--", "-d"); out != "--help -e B=2 --runtime=x -- -d\n" {
		t.Errorf("got %q", out)
	}
	if out := d.must(t, "--", "echo", "x"); out != "x\n" {
		t.Errorf("got %q", out)
	}
}

func TestEnvironmentAndWorkDir(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	out := d.must(t, "-e", "A=1", "--env=B=two words", "--workdir=/work/a/b", "bash", "-c", `pwd -P; env | grep -c .; echo "$A,$B,$PWD,$HOME,$PATH"`)
	// Behind the usual directories come those of the host.
	if want := "1,two words,/work/a/b,/root,/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"; !strings.HasPrefix(out, "/work/a/b\n") || !strings.Contains(out, "\n"+want) {
		t.Errorf("got %q", out)
	}
	if r := d.job(t, "-e", "NOT_SET_HERE", "env"); r.status != 125 || !strings.Contains(r.stderr, "NOT_SET_HERE") {
		t.Errorf("a variable that the caller does not have: %v", r)
	}
	if out := d.must(t, "env"); strings.Contains(out, "RNX_HOST") || strings.Contains(out, "GOPATH") {
		t.Errorf("the caller's or the daemon's environment leaks: %q", out)
	}
}

func TestInitReaps(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	// One whose grandchild is slow shows it as well: another may not.
	var out string
	if !eventually(patience, func() bool {
		out = d.must(t, "--init", "bash", "-c", `(setsid sleep 0.1 & ) ; sleep 0.5; ps -o pid=,stat=,comm= ax`)
		return regexp.MustCompile(`^ *1 S\S* +joblet-init\n *2 R\S* +ps\n$`).MatchString(out)
	}) {
		t.Errorf("process table %q", out)
	}
	if out := d.must(t, "--init", "ps", "-o", "args=", "-p", "1"); out != "joblet-init\n" {
		t.Errorf("PID 1 shows as %q", out)
	}
	if r := d.job(t, "--init", "sh", "-c", "exit 9"); r.status != 9 {
		t.Errorf("%v", r)
	}
	if r := d.job(t, "--init", "sh", "-c", "kill -TERM $$"); r.status != 143 {
		t.Errorf("%v", r)
	}
	if r := d.job(t, "--init", "no-such-command"); r.status != 127 {
		t.Errorf("%v", r)
	}
}

func TestDetachedLife(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := strings.TrimSpace(d.must(t, "-d", "--name=web", "bash", "-c", "trap 'echo bye; exit 5' TERM; echo hello; echo oops >&2; while :; do sleep 0.05; done"))
	if !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(id) {
		t.Fatalf("id %q", id)
	}
	rnx := func(args ...string) result { return d.rnx(t.Context(), args...) }
	for _, ref := range []string{id, id[:8], "web"} {
		if r := rnx("job", "status", ref); r.status != 0 || !strings.Contains(r.stdout, "RUNNING") || !strings.Contains(r.stdout, id) {
			t.Errorf("status %s: %v", ref, r)
		}
	}
	if r := rnx("job", "list"); !strings.Contains(r.stdout, id[:8]) || !strings.Contains(r.stdout, "RUNNING") || !strings.Contains(r.stdout, "web") {
		t.Errorf("list: %v", r)
	}
	if !eventually(patience, func() bool { r := rnx("job", "log", id); return r.stdout == "hello\n" && r.stderr == "oops\n" }) {
		t.Errorf("log: %v", rnx("job", "log", id))
	}
	// A follower sees what comes later too, and the end.
	follower := make(chan result, 1)
	go func() { follower <- rnx("job", "log", "-f", id) }()
	if r := rnx("job", "stop", id); r.status != 0 {
		t.Errorf("stop: %v", r)
	}
	select {
	case r := <-follower:
		if r.stdout != "hello\nbye\n" || r.stderr != "oops\n" {
			t.Errorf("follower: %v", r)
		}
	case <-time.After(20 * time.Second):
		t.Error("the follower does not end")
	}
	if r := rnx("job", "status", "--json", id); !strings.Contains(r.stdout, "STOPPED") || r.status != 0 {
		t.Errorf("status: %v", r)
	}
	if r := rnx("job", "wait", id); r.status != 5 {
		t.Errorf("wait: %v", r)
	}
	for line := range strings.Lines(rnx("job", "list", "--json").stdout) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %q", line)
		}
	}
	if r := rnx("job", "stop", id); r.status == 0 || !strings.Contains(r.stderr, "has ended") {
		t.Errorf("stop of an ended job: %v", r)
	}
	if r := rnx("job", "delete", id); r.status != 0 {
		t.Errorf("delete: %v", r)
	}
	if r := rnx("job", "status", id); r.status == 0 || !strings.Contains(r.stderr, "no job") {
		t.Errorf("status of a deleted job: %v", r)
	}
}

// TestStopKillsTheTree: whatever the processes of a job do, none outlives it.
func TestStopKillsTheTree(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := strings.TrimSpace(d.must(t, "-d", "bash", "-c", `
		trap : TERM INT HUP
		for i in 1 2 3; do (trap '' TERM; setsid sh -c 'trap "" TERM; (sleep 98765 &) ; sleep 98765' &) ; done
		echo ready; while :; do sleep 98765; done`))
	if !d.wrote(t, id, "ready\n") {
		t.Fatal("not ready")
	}
	start := time.Now()
	if r := d.rnx(t.Context(), "job", "stop", "--grace=1s", id); r.status != 0 {
		t.Errorf("stop: %v", r)
	}
	if took := time.Since(start); took < time.Second || took > 30*time.Second {
		t.Errorf("stop took %v, want the grace period", took)
	}
	if out, _ := exec.Command("pgrep", "-f", "sleep 98765").Output(); len(out) > 0 {
		t.Errorf("left: %s", out)
	}
}

// TestStopDoesNotWaitInVain: PID 1 without a handler never gets the signal.
func TestStopDoesNotWaitInVain(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := strings.TrimSpace(d.must(t, "-d", "sleep", "60"))
	start := time.Now()
	if r := d.rnx(t.Context(), "job", "stop", "--grace=60s", id); r.status != 0 || time.Since(start) > 30*time.Second {
		t.Errorf("after %v: %v", time.Since(start), r)
	}
	if r := d.rnx(t.Context(), "job", "wait", id); r.status != 137 {
		t.Errorf("wait: %v", r)
	}
}

// TestEmbeddedDefault: with no daemon, rnx starts one; several at once start one
// between them.
func TestEmbeddedDefault(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := &daemon{state: filepath.Join(dir, "state"), run: filepath.Join(dir, "run")}
	t.Cleanup(func() { testenv.CheckLeaks(t, d.run) })
	env := append(os.Environ(), "JOBLET_STATE_DIR="+d.state, "JOBLET_RUN_DIR="+d.run, "RNX_HOST=")
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			cmd := exec.CommandContext(t.Context(), binDir+"/rnx", "job", "run", "echo", fmt.Sprint(i))
			cmd.Env = env
			if r := finish(cmd); r.status != 0 || r.stdout != fmt.Sprintln(i) || r.stderr != "" {
				t.Errorf("run %d: %v", i, r)
			}
		})
	}
	wg.Wait()
	var list []string
	if !eventually(patience, func() bool { // a child of the daemon has its arguments and environment until its execve
		pids, err := exec.Command("pgrep", "-f", "joblet serve.*"+regexp.QuoteMeta(d.run)).Output()
		if err != nil {
			// The directories may have come through the environment.
			pids = nil
			all, _ := exec.Command("pgrep", "-f", "joblet serve").Output()
			for pid := range strings.FieldsSeq(string(all)) {
				if e, _ := os.ReadFile("/proc/" + pid + "/environ"); bytes.Contains(e, []byte("JOBLET_RUN_DIR="+d.run)) {
					pids = append(pids, pid+"\n"...)
				}
			}
		}
		list = strings.Fields(string(pids))
		return len(list) == 1
	}) {
		t.Errorf("daemons: %q", list)
	}
	for _, pid := range list {
		_ = exec.Command("kill", pid).Run()
		eventually(patience, func() bool { _, err := os.Stat("/proc/" + pid); return err != nil })
	}
}

func TestUnprivilegedCaller(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	cmd := d.command(t.Context(), "job", "run", "true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if r := finish(cmd); r.status != 125 || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("%v", r)
	}
}

// TestManyAtOnce: jobs side by side do not mix.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			var token [16]byte
			_, _ = rand.Read(token[:])
			want := fmt.Sprintf("%x", token)
			if r := d.job(t, "sh", "-c", "echo "+want+"; ps ax | wc -l"); !strings.HasPrefix(r.stdout, want+"\n") || r.status != 0 {
				t.Errorf("%v", r)
			}
		})
	}
	wg.Wait()
}
