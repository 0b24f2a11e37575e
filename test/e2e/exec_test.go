package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestExec: a further process is one of the job's own.
func TestExec(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := strings.TrimSpace(d.must(t, "-d", "--name=box", runtime, "-e", "A=job", "-e", "B=job", "-s", "S=secret", "--workdir=/work/here",
		"bash", "-c", `sleep 601 & while :; do for f in see-*; do [ -e "$f" ] && ps ax -o args= | grep -c "[s]leep 602" > "$f.seen"; done; sleep 0.1; done`))
	run := func(args ...string) result {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return d.rnx(ctx, append([]string{"job", "exec"}, args...)...)
	}

	t.Run("statuses", func(t *testing.T) {
		for _, test := range []struct {
			args   []string
			status int
			stderr string
		}{
			{[]string{"box", "true"}, 0, ""},
			{[]string{id[:8], "sh", "-c", "exit 200"}, 200, ""},
			{[]string{"box", "sh", "-c", "kill -TERM $$"}, 143, ""},
			{[]string{"box", "no-such-command"}, 127, "command not found"},
			{[]string{"box", "/usr"}, 126, "permission denied"},
			{[]string{"-w", "/etc/passwd", "box", "true"}, 125, "working directory /etc/passwd: not a directory"},
			{[]string{"-w", "../x", "box", "true"}, 125, "workdir"},
			{[]string{"-e", "JOBLET_A=2", "box", "true"}, 125, "environment variable"},
			{[]string{"nope", "true"}, 125, "nope"},
			{[]string{"box"}, 125, "command"},
			{[]string{"box", ""}, 125, "no command"},
		} {
			r := run(test.args...)
			if r.status != test.status || !strings.Contains(r.stderr, test.stderr) || (test.stderr == "") != (r.stderr == "") || r.stdout != "" {
				t.Errorf("%q: %v", test.args, r)
			}
		}
	})

	t.Run("is inside", func(t *testing.T) {
		// Everything that says where a process is and what it may, of PID 1 and of
		// ours. Of the limits, the bounding set, the filters and the namespaces.
		facts := `for ns in user pid mnt net ipc uts cgroup; do readlink /proc/PID/ns/$ns; done; cat /proc/PID/limits /proc/PID/cgroup /proc/PID/uid_map;
			grep -E '^(Cap|Seccomp|NoNewPrivs|Uid|Gid|Groups|Cpus_allowed_list)' /proc/PID/status; readlink /proc/PID/root; cat /proc/PID/oom_score_adj`
		one := run("box", "sh", "-c", strings.ReplaceAll(facts, "PID", "1"))
		own := run("box", "sh", "-c", strings.ReplaceAll(facts, "PID", "self"))
		if one.stdout != own.stdout || len(own.stdout) < 500 || own.status != 0 {
			t.Errorf("PID 1 and a further process differ:\n%v\n%v", one, own)
		}
		if r := run("box", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"); strings.Count(r.stdout, "\t0000000000000000\n") != 2 {
			t.Errorf("signals: %v", r)
		}
		if r := run("box", "sh", "-c", "umask; pwd; ls -l /proc/self/fd | wc -l; echo $A $B $S $JOBLET_JOB_ID"); r.stdout != "0022\n/work/here\n5\njob job secret "+id+"\n" {
			t.Errorf("%v", r)
		}
		if r := run("-e", "B=mine", "-e", "S=other", "-w", "/tmp", "box", "sh", "-c", "pwd; echo $A $B $S"); r.stdout != "/tmp\njob mine other\n" {
			t.Errorf("%v", r)
		}
		// Also of the host's side: the cgroups.
		cmd := d.command(patient(t), "job", "exec", "box", "sleep", "603")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		var groups []string
		if !eventually(patience, func() bool {
			groups = nil
			job, process := hostProcesses("sleep\x00601\x00"), hostProcesses("sleep\x00603\x00")
			for _, name := range append(job, process...) {
				data, _ := os.ReadFile("/proc/" + name + "/cgroup")
				groups = append(groups, string(data))
			}
			return len(job) == 1 && len(process) == 1
		}) || groups[0] != groups[1] || !strings.Contains(groups[0], "joblet") {
			t.Errorf("cgroups:\n%s", strings.Join(groups, "\n"))
		}
	})

	t.Run("sees and is seen", func(t *testing.T) {
		if r := run("box", "ps", "ax", "-o", "pid=,ppid=,args="); !strings.Contains(r.stdout, " sleep 601\n") || !strings.Contains(r.stdout, "    1       0 /usr/bin/bash") {
			t.Errorf("processes: %v", r)
		}
		cmd := d.command(patient(t), "job", "exec", "box", "sleep", "602")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		if !eventually(patience, func() bool {
			return run("box", "sh", "-c", "touch see-it; sleep 0.3; cat see-it.seen; rm see-it").stdout == "1\n"
		}) {
			t.Error("PID 1 does not see the process")
		}
		// It may be ended from within.
		if r := run("box", "sh", "-c", `kill -USR1 $(ps ax -o pid=,args= | awk '$3 == "602" {print $1}')`); r.status != 0 {
			t.Errorf("kill: %v", r)
		}
		_ = cmd.Wait()
		if cmd.ProcessState.ExitCode() != 128+int(syscall.SIGUSR1) {
			t.Errorf("status %d", cmd.ProcessState.ExitCode())
		}
	})

	t.Run("streams", func(t *testing.T) {
		data := make([]byte, 3<<20)
		_, _ = rand.Read(data)
		cmd := d.command(patient(t), "job", "exec", "-i", "box", "sh", "-c", "tee /dev/stderr")
		cmd.Stdin = bytes.NewReader(data)
		if r := finish(cmd); r.stdout != string(data) || r.stderr != string(data) || r.status != 0 {
			t.Errorf("status %d, %d and %d bytes of %d", r.status, len(r.stdout), len(r.stderr), len(data))
		}
		if r := run("box", "cat"); r.status != 0 || r.stdout != "" {
			t.Errorf("without -i: %v", r)
		}
		// What is left in the background holds nobody up, and nothing is lost.
		if r := run("box", "sh", "-c", "sleep 604 & head -c 50000 /dev/zero"); len(r.stdout) != 50000 || r.status != 0 {
			t.Errorf("%d bytes, %s", len(r.stdout), r.stderr)
		}
		if r := d.rnx(t.Context(), "job", "log", "box"); r.stdout != "" {
			t.Errorf("it is in the job's log: %.100q", r.stdout)
		}
	})

	t.Run("a reader that goes away", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), "bash", "-c", binDir+"/rnx job exec box yes | head -1")
		cmd.Env = append(os.Environ(), "RNX_HOST="+d.host())
		if r := finish(cmd); r.stdout != "y\n" || r.stderr != "" {
			t.Errorf("%v", r)
		}
		d.goneFromBox(t, "yes")
	})

	t.Run("signals", func(t *testing.T) {
		cmd := d.command(patient(t), "job", "exec", "box", "bash", "-c", "trap 'echo got it; exit 3' INT; echo ready; while :; do sleep 0.05; done")
		out := startReady(t, cmd)
		_ = cmd.Process.Signal(syscall.SIGINT)
		rest, _ := io.ReadAll(out)
		_ = cmd.Wait()
		if string(rest) != "got it\n" || cmd.ProcessState.ExitCode() != 3 {
			t.Errorf("%q, status %d", rest, cmd.ProcessState.ExitCode())
		}
	})

	t.Run("its caller is killed", func(t *testing.T) {
		cmd := d.command(patient(t), "job", "exec", "box", "sh", "-c", "trap ': >/work/hup' HUP; trap '' TERM; : >/work/armed; while :; do sleep 0.1; done; : marked")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if !eventually(patience, func() bool { return run("box", "ls", "/work/armed").status == 0 }) {
			t.Error("it does not run")
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		d.goneFromBox(t, ": marked")
		if r := run("box", "ls", "/work/hup"); r.status != 0 {
			t.Errorf("it was not hung up: %v", r)
		}
	})

	t.Run("the daemon is killed", func(t *testing.T) {
		cmd := d.command(patient(t), "job", "exec", "box", "sleep", "605")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if !eventually(patience, func() bool { return strings.Contains(run("box", "ps", "ax", "-o", "args=").stdout, "sleep 605") }) {
			t.Error("it does not run")
		}
		d.kill(t)
		_ = cmd.Wait()
		if cmd.ProcessState.ExitCode() != 125 || !strings.Contains(stderr.String(), "lost the connection to the daemon") {
			t.Errorf("status %d: %s", cmd.ProcessState.ExitCode(), stderr.String())
		}
		if err := d.start(); err != nil {
			t.Fatal(err)
		}
		d.goneFromBox(t, "sleep 605")
	})

	t.Run("the job ends", func(t *testing.T) {
		cmd := d.command(patient(t), "job", "exec", "box", "sleep", "606")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if !eventually(patience, func() bool { return strings.Contains(run("box", "ps", "ax", "-o", "args=").stdout, "sleep 606") }) {
			t.Error("it does not run")
		}
		if r := d.rnx(t.Context(), "job", "kill", "box"); r.status != 0 {
			t.Errorf("kill: %v", r)
		}
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != 137 {
			t.Errorf("status %d", got)
		}
		if r := run("box", "true"); r.status != 125 || !strings.Contains(r.stderr, "has ended") {
			t.Errorf("in an ended job: %v", r)
		}
	})
	waiting := strings.TrimSpace(d.must(t, "-d", "--schedule=+1h", "true"))
	if r := run(waiting, "true"); r.status != 125 || !strings.Contains(r.stderr, "does not run") {
		t.Errorf("in a job that waits: %v", r)
	}
}

// TestExecSignalsInput: signals get past input that the process does not read, or
// end rnx, and the process with it.
func TestExecSignalsInput(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.must(t, "-d", "--name=box", "sleep", "600")
	for _, test := range []struct {
		input  int64
		sig    syscall.Signal
		status int
	}{
		{0, syscall.SIGINT, 7}, // at its end
		{200 << 10, syscall.SIGINT, 7},
		{200 << 10, syscall.SIGTERM, 7},
		{200 << 10, syscall.SIGQUIT, 7},
		{1 << 40, syscall.SIGINT, 130},
		{1 << 40, syscall.SIGHUP, 129},
		{1 << 40, syscall.SIGTERM, 143},
	} {
		cmd := d.command(patient(t), "job", "exec", "-i", "box", "sh", "-c", "trap 'exit 7' INT TERM HUP QUIT; echo ready; while :; do sleep 0.05; done; : marked")
		source := &zeros{}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		copied := make(chan struct{})
		go func() { _, _ = io.Copy(in, io.LimitReader(source, test.input)); _ = in.Close(); close(copied) }()
		startReady(t, cmd)
		endless := test.input == 1<<40
		if !endless {
			<-copied
		}
		for before := int64(-1); endless && before != source.n.Load(); time.Sleep(300 * time.Millisecond) {
			before = source.n.Load() // until it is stuck, or so it seems: then the signal may still get past
		}
		_ = cmd.Process.Signal(test.sig)
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != test.status && !(endless && got == 7) {
			t.Errorf("%d bytes of input, %v: status %d, want %d", test.input, test.sig, got, test.status)
		}
		d.goneFromBox(t, ": marked")
		<-copied
	}
}

// startReady starts a command that says "ready" once it is, and returns what it
// writes after that.
func startReady(t *testing.T, cmd *exec.Cmd) io.Reader {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	return out
}

// zeros reads like /dev/zero, and counts.
type zeros struct{ n atomic.Int64 }

func (z *zeros) Read(p []byte) (int, error) {
	clear(p)
	z.n.Add(int64(len(p)))
	return len(p), nil
}

// TestExecEnding: into a job that ends just now there is a sentence, and no fault
// of the daemon's.
func TestExecEnding(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for range 4 {
		id := strings.TrimSpace(d.must(t, "-d", "sleep", "600"))
		results := make(chan result, 4)
		for range cap(results) {
			go func() {
				r := result{}
				for r.status == 0 {
					r = d.rnx(t.Context(), "job", "exec", id, "true")
				}
				for r.status == 137 { // it had begun
					r = d.rnx(t.Context(), "job", "exec", id, "true")
				}
				results <- r
			}()
		}
		if r := d.rnx(t.Context(), "job", "kill", id); r.status != 0 {
			t.Errorf("kill: %v", r)
		}
		for range cap(results) {
			if r := <-results; r.status != 125 || !strings.Contains(r.stderr, "has ended") {
				t.Errorf("%v", r)
			}
		}
	}
}

// TestExecUser: a further process is of the job's user, whose terminal it has and
// whose processes it may signal, as they may it; and is shut in as they are.
func TestExecUser(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.must(t, "-d", "--name=box", "--user=1000:100", "--workdir=/work/here", "sh", "-c",
		"sleep 604 & while :; do pkill -f '[s]leep 605'; sleep 0.1; done")
	run := func(command string, flags ...string) string {
		t.Helper()
		r := d.rnx(patient(t), append(append([]string{"job", "exec"}, flags...), "box", "sh", "-c", command)...)
		if r.status != 0 {
			t.Errorf("%s: %v", command, r)
		}
		return r.stdout
	}
	if got := run("id -u; id -g; grep ^CapEff /proc/self/status; echo x > file; stat -c %u:%g . file; echo out > /dev/stdout; echo $HOME"); got !=
		"1000\n100\nCapEff:\t0000000000000000\n1000:100\n1000:100\nout\n/home/user1000\n" {
		t.Errorf("%q", got)
	}
	if got := run(": < $(tty); stat -c %u:%g $(tty)", "-t"); got != "1000:5\r\n" {
		t.Errorf("terminal: %q", got)
	}
	if got := run("chroot / true || mkdir /etc/x || stat -c %u /tmp /work", "-w", "/tmp"); got != "0\n1000\n" {
		t.Errorf("privileges: %q", got)
	}
	run("kill -0 1 && pkill -f '[s]leep 604'")
	if r := d.rnx(patient(t), "job", "exec", "box", "sleep", "605"); r.status != 143 {
		t.Errorf("a signal of PID 1's: %v", r)
	}
}

// hostProcesses returns the ids of the processes whose arguments, each with a NUL
// behind it, end in one of the given.
func hostProcesses(endings ...string) (pids []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, ending := range endings {
		for _, name := range dirs {
			if data, err := os.ReadFile(name); err == nil && strings.HasSuffix(string(data), ending) && !strings.Contains(string(data), "rnx") {
				pids = append(pids, filepath.Base(filepath.Dir(name)))
			}
		}
	}
	return pids
}

// goneFromBox waits until no process of the job "box" has the text among its
// arguments.
func (d *daemon) goneFromBox(t *testing.T, args string) {
	t.Helper()
	if !eventually(patience, func() bool {
		r := d.rnx(t.Context(), "job", "exec", "box", "ps", "ax", "-o", "args=")
		return r.status == 0 && !strings.Contains(r.stdout, args)
	}) {
		t.Errorf("%s runs on", args)
	}
}

// TestExecTerminal: a process has a terminal of its own, in the job's devpts.
func TestExecTerminal(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	s := newScreen(t, d, 100, 30)
	before := s.modes()
	d.must(t, "-dt", "--name=box", runtime, "sleep", "600")
	s.clear()
	s.line("rnx job shell box")
	s.wait(`root@\S+:/work#\z`)
	for _, step := range []struct{ line, shows, runs string }{ // runs: what a key is for
		{"tty; echo $(stty size)", `^/dev/pts/1\n30 100`, ""},
		{"ps ax -o tty=,args=", `(?s)^pts/0 +\S*sleep 600\n.*pts/1 +\S*bash\n`, ""},
		{"sleep 61", ``, ""},
		{"C-z", `Stopped +sleep 61`, "sleep 61"},
		{"kill %1; sleep 62", ``, ""},
		{"C-c", `\^C[^#]*root\S+#\z`, "sleep 62"},
		{"echo status=$?.", `^status=130\.`, ""},
	} {
		if step.runs != "" {
			d.foreground(t, "box", step.runs)
			s.keys(step.line)
		} else {
			s.line(step.line)
		}
		if step.shows != "" {
			s.wait(step.shows)
		}
	}
	s.resize(80, 20)
	if !eventually(patience, func() bool { s.line("echo size=$(stty size)"); return strings.Contains(s.text(), "size=20 80") }) {
		t.Errorf("the size does not follow:\n%s", s.text())
	}
	if text := s.text(); strings.Contains(text, "cannot set terminal process group") {
		t.Errorf("bash complains:\n%s", text)
	}
	s.line("exit 9")
	s.wait(`here\$\z`)
	s.status(9)
	s.resize(100, 30)
	// Ctrl-C ends what is not PID 1 by the kernel's own means.
	s.clear()
	s.line("rnx job exec box sleep 60")
	if !eventually(patience, func() bool { return s.rawMode() }) {
		t.Fatal("the terminal does not get raw")
	}
	s.keys("C-c")
	s.wait(`here\$\z`)
	s.status(130)
	s.clear()
	s.line("rnx job exec box seq 1 100000 | tail -1")
	s.wait(`^100000$`)
	// Nobody is left who could answer: the terminal is given back.
	s.clear()
	s.line("rnx job shell box")
	s.wait(`root@\S+:/work#\z`)
	d.kill(t)
	s.wait(`lost the connection to the daemon`)
	s.status(125)
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	d.goneFromBox(t, "bash")
	s.clear()
	s.line("rnx job shell box")
	s.wait(`root@\S+:/work#\z`)
	if r := d.rnx(t.Context(), "job", "kill", "box"); r.status != 0 {
		t.Errorf("kill: %v", r)
	}
	s.wait(`here\$\z`)
	s.status(137)
	if after := s.modes(); after != before {
		t.Errorf("terminal modes: %q, were %q", after, before)
	}
	// The last bytes arrive.
	d.must(t, "-d", "--name=again", "sleep", "600")
	if r := d.rnx(patient(t), "job", "exec", "-t", "again", "sh", "-c", "exec < /dev/null > /dev/null 2>&1; sleep 0.5; exec > /dev/tty; echo back"); r.stdout != "back\r\n" || r.status != 0 {
		t.Errorf("a terminal that is closed and opened again: %v", r)
	}
	cmd := d.command(patient(t), "job", "exec", "-it", "again", "cat")
	cmd.Stdin = strings.NewReader("no line")
	if r := finish(cmd); r.status != 0 || !strings.Contains(r.stdout, "no line") {
		t.Errorf("-it with an unfinished line: %v", r)
	}
	for range 20 {
		if r := d.rnx(t.Context(), "job", "exec", "-t", "again", "sh", "-c", `printf "%050000d" 5`); len(r.stdout) != 50000 {
			t.Fatalf("%d bytes of 50000: %s", len(r.stdout), r.stderr)
		}
	}
}

// TestExecHostile: a job cannot use what joins it to get at more than it has.
func TestExecHostile(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	// PID 1 has another root, in which things are called as in the real one; and
	// it looks at every process that appears.
	script := `
import ctypes, os, sys, threading
os.makedirs("/work/jail/dev/pts", exist_ok=True)
os.symlink("/dev/pts/ptmx", "/work/jail/dev/pts/ptmx")
def spy():
    libc = ctypes.CDLL(None, use_errno=True)
    seen = set()
    while True:
        for p in os.listdir("/proc"):
            if not p.isdigit() or p in ("1",) or p in seen: continue
            for what in "exe", "fd", "mem", "root":
                try:
                    if what == "mem": os.close(os.open("/proc/%s/mem" % p, os.O_RDWR)); got = "opened"
                    elif what == "fd": got = [os.readlink("/proc/%s/fd/%s" % (p, f)) for f in os.listdir("/proc/%s/fd" % p)]
                    else: got = os.readlink("/proc/%s/%s" % (p, what))
                except OSError as e: continue
                if "joblet" in str(got) or "memfd" in str(got): print("caught", p, what, got, flush=True)
threads = [threading.Thread(target=spy, daemon=True) for _ in range(2)]
for t in threads: t.start()
print("ready", flush=True)
import time
time.sleep(600)
`
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "spy.py"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(d.must(t, "-d", "--name=box", runtime, "--upload="+filepath.Join(dir, "spy.py"), "python3", "spy.py"))
	if !d.wrote(t, id, "ready\n") {
		t.Fatalf("%v", d.rnx(t.Context(), "job", "log", id))
	}
	for range 30 {
		if r := d.rnx(t.Context(), "job", "exec", "-t", id, "tty"); r.stdout != "/dev/pts/0\r\n" && r.stdout != "/dev/pts/1\r\n" { // that before is just given back
			t.Fatalf("%v", r)
		}
	}
	if r := d.rnx(t.Context(), "job", "log", id); r.stdout != "ready\n" {
		t.Errorf("the job has seen into a process that joined it: %v", r)
	}
	// A PID 1 in a jail of its own: the process is in the job's root all the same,
	// and its terminal the job's.
	jail := strings.TrimSpace(d.must(t, "-d", runtime, "python3", "-c", `
import os, time
os.makedirs("/tmp/jail/dev/pts")
os.symlink("/dev/pts/ptmx", "/tmp/jail/dev/pts/ptmx")
os.chroot("/tmp/jail"); os.chdir("/")
time.sleep(600)`))
	if !eventually(patience, func() bool {
		return d.rnx(t.Context(), "job", "exec", "-t", jail, "sh", "-c", "tty; ls -d /usr").stdout == "/dev/pts/0\r\n/usr\r\n"
	}) {
		t.Errorf("%v", d.rnx(t.Context(), "job", "exec", "-t", jail, "sh", "-c", "tty; ls -d /usr"))
	}
	// At the limit of processes the answer is a sentence.
	full := strings.TrimSpace(d.must(t, "-d", "--max-pids=32", runtime, "python3", "-c", `
import os, time
n = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(600)
        n += 1
except OSError: print("full", n, flush=True)
time.sleep(600)`))
	if !eventually(patience, func() bool { return strings.HasPrefix(d.stdout(t, full), "full") }) {
		t.Fatalf("%v", d.rnx(t.Context(), "job", "log", full))
	}
	if r := d.rnx(t.Context(), "job", "exec", full, "true"); r.status != 125 || !strings.Contains(r.stderr, "has reached its limit of processes") {
		t.Errorf("%v", r)
	}
}

// TestSignal sends signals by name and number.
func TestSignal(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := strings.TrimSpace(d.must(t, "-d", "bash", "-c", "trap 'echo one' USR1; trap 'echo two; exit 2' USR2; echo ready; while :; do sleep 0.05; done"))
	shows := func(want string) {
		t.Helper()
		if !d.wrote(t, id, want) {
			t.Errorf("log %q, want %q", d.rnx(t.Context(), "job", "log", id).stdout, want)
		}
	}
	shows("ready\n")
	for _, args := range [][]string{{id, "SIGUSR1"}, {id, "12"}} {
		if r := d.rnx(t.Context(), append([]string{"job", "signal"}, args...)...); r.status != 0 || r.stdout != "" {
			t.Errorf("%q: %v", args, r)
		}
		if args[1] == "SIGUSR1" {
			shows("ready\none\n")
		}
	}
	shows("ready\none\ntwo\n")
	if r := d.rnx(t.Context(), "job", "wait", id); r.status != 2 {
		t.Errorf("wait: %v", r)
	}
	for _, args := range [][]string{{id, "USR1"}, {id, "NOPE"}, {id}, {"nope", "HUP"}} {
		if r := d.rnx(t.Context(), append([]string{"job", "signal"}, args...)...); r.status != 1 || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%q: %v", args, r)
		}
	}
}

// TestSignalQuit: Ctrl-\ is passed on as other signals are.
func TestSignalQuit(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	cmd := d.command(patient(t), "job", "run", "-T", "bash", "-c", "trap 'exit 5' QUIT; echo ready; while :; do sleep 0.05; done")
	startReady(t, cmd)
	_ = cmd.Process.Signal(syscall.SIGQUIT)
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 5 {
		t.Errorf("status %d", got)
	}
}

// TestInteractiveInput: -i is --stdin, exact and with backpressure.
// JOBLET_TEST_INPUT_MB says how much goes through it.
func TestInteractiveInput(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	size := int64(64)
	if text := os.Getenv("JOBLET_TEST_INPUT_MB"); text != "" {
		var err error
		if size, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	sum := sha256.New()
	cmd := d.command(patient(t), "job", "run", "-i", "sha256sum")
	cmd.Stdin = io.TeeReader(io.LimitReader(rand.Reader, size<<20), sum)
	begin := time.Now()
	r := finish(cmd)
	if want := fmt.Sprintf("%x  -\n", sum.Sum(nil)); r.stdout != want || r.status != 0 {
		t.Errorf("%v\nwant %s", r, want)
	}
	t.Logf("%d MiB in %v", size, time.Since(begin).Round(time.Millisecond))
	// Read slowly, it is sent slowly: no more is on its way than fits into the
	// pipe, the sockets and the window of the stream.
	source := &countingReader{r: io.LimitReader(rand.Reader, 256<<20)}
	cmd = d.command(patient(t), "job", "run", "-i", "sh", "-c", "sleep 2; head -c 1")
	cmd.Stdin = source
	if r := finish(cmd); r.status != 0 || len(r.stdout) != 1 {
		t.Errorf("%v", r)
	}
	if source.n > 64<<20 {
		t.Errorf("%d bytes were taken of which the job has read one", source.n)
	}
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
