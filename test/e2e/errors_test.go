package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/joblet/joblet/internal/testenv"
)

// TestErrorsAreNotInternal: what the user has asked too much or too little for is
// said, and is no internal error.
func TestErrorsAreNotInternal(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	deep := "/" + strings.Repeat("x/", 2046) + "xx" // PATH_MAX bytes with the NUL: it can be made
	tooDeep := deep + "x"
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--rlimit=cpu=0:0", "true"}, "at least 1 second"},
		{[]string{"--rlimit=cpu=0:9", "true"}, "at least 1 second"},
		{[]string{"--rlimit=cpu=0", "--init", "true"}, "at least 1 second"},
		{[]string{"--max-pids=1", "--init", "true"}, "--max-pids"},
		{[]string{"--rlimit=nproc=0", "--init", "true"}, "nproc"},
		{[]string{"--workdir=" + tooDeep, "true"}, "at most 4095"},
	} {
		t.Run(strings.Join(test.args[:len(test.args)-1], " ")[:14], func(t *testing.T) {
			t.Parallel()
			r := d.job(t, test.args...)
			if r.status != 125 || !strings.Contains(r.stderr, test.want) || strings.Contains(r.stderr, "internal") {
				t.Errorf("want %q: status %d, %.500s", test.want, r.status, r.stderr)
			}
		})
	}
	t.Run("deep", func(t *testing.T) {
		t.Parallel()
		if r := d.job(t, "--workdir="+deep, "pwd"); r.status != 0 || r.stdout != deep+"\n" {
			t.Errorf("status %d, %.500s", r.status, r)
		}
	})
	t.Run("exec", func(t *testing.T) {
		t.Parallel()
		id := d.detach(t, "sleep", "1000")
		r := d.rnx(t.Context(), "job", "exec", "--workdir="+tooDeep, id, "true")
		if r.status != 125 || !strings.Contains(r.stderr, "at most 4095") {
			t.Errorf("status %d, %.500s", r.status, r.stderr)
		}
	})
}

// TestLongSearchPath: a command is found however many directories come before its
// own, and behind a name that is too long for a file.
func TestLongSearchPath(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	var many strings.Builder
	for i := range 6000 {
		fmt.Fprintf(&many, "/opt/%d:", i)
	}
	id := d.detach(t, "sleep", "1000")
	for name, before := range map[string]string{
		"many":     many.String(),
		"repeated": strings.Repeat("/opt:", 20000),
		"too long": "/" + strings.Repeat("x", 300) + ":/" + strings.Repeat("x/", 2100) + ":",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := "--env=PATH=" + before + "/usr/bin"
			if r := d.job(t, path, "env"); r.status != 0 || !strings.Contains(r.stdout, "\nPATH="+before) && !strings.HasPrefix(r.stdout, "PATH="+before) {
				t.Errorf("run: status %d, %.500s", r.status, r.stderr)
			}
			if r := d.rnx(t.Context(), "job", "exec", path, id, "true"); r.status != 0 {
				t.Errorf("exec: status %d, %.500s", r.status, r.stderr)
			}
			if r := d.job(t, path, "no-such"); r.status != 127 || !strings.Contains(r.stderr, "command not found") {
				t.Errorf("a command that there is not: status %d, %.500s", r.status, r.stderr)
			}
		})
	}
}

// TestDaemonOutOfFiles: a daemon that has as many open files as it may have says
// so, and can still be asked to end jobs.
func TestDaemonOutOfFiles(t *testing.T) {
	t.Parallel()
	d := withState(t)
	d.bin = filepath.Join(t.TempDir(), "few-files")
	if err := os.WriteFile(d.bin, []byte("#!/bin/sh\nulimit -n 120\nexec "+binDir+"/joblet \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	d.serve(t)
	var ids []string
	for range 60 {
		r := d.job(t, "-d", "sleep", "1000")
		if r.status == 0 {
			ids = append(ids, strings.TrimSpace(r.stdout))
			continue
		}
		if r.status != 125 || !strings.Contains(r.stderr, "open files") || strings.Contains(r.stderr, "internal") {
			t.Errorf("%v", r)
		}
		break
	}
	if len(ids) == 0 || len(ids) == 60 {
		t.Fatalf("%d jobs run", len(ids))
	}
	if r := d.rnx(t.Context(), append([]string{"job", "kill"}, ids...)...); r.status != 0 {
		t.Errorf("kill: %v", r)
	}
	d.must(t, "true")
}

// TestLogLost: output that somebody has taken away is no shorter output.
func TestLogLost(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const lost = `(?s).*is incomplete.*`
	for name, harm := range map[string]func(dir string) error{
		"removed": func(dir string) error { return os.Remove(filepath.Join(dir, "log")) },
		"removed with its index": func(dir string) error {
			if err := os.Remove(filepath.Join(dir, "log.idx")); err != nil {
				return err
			}
			return os.Remove(filepath.Join(dir, "log"))
		},
		"truncated":          func(dir string) error { return os.Truncate(filepath.Join(dir, "log"), 3) },
		"its end is cut off": func(dir string) error { return os.Truncate(filepath.Join(dir, "log"), 7) },
		"emptied":            func(dir string) error { return os.Truncate(filepath.Join(dir, "log"), 0) },
		"emptied with its index": func(dir string) error {
			if err := os.Truncate(filepath.Join(dir, "log.idx"), 0); err != nil {
				return err
			}
			return os.Truncate(filepath.Join(dir, "log"), 0)
		},
		"the directory is gone": os.RemoveAll,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := d.detach(t, "echo", "output!")
			d.says(t, 0, `0\n`, ``, "job", "wait", id)
			d.says(t, 0, `output!\n`, ``, "job", "log", id)
			if err := harm(filepath.Join(d.state, "jobs", id)); err != nil {
				t.Fatal(err)
			}
			for _, flags := range [][]string{nil, {"-f"}, {"--tail=1"}, {"--json"}, {"--stderr"}} {
				r := d.rnx(t.Context(), append([]string{"job", "log", id}, flags...)...)
				if all := r.stdout + r.stderr; r.status == 0 || !strings.Contains(all, "is incomplete") {
					t.Errorf("rnx job log %v: %v", flags, r)
				}
			}
		})
	}
	t.Run("nothing was written", func(t *testing.T) {
		t.Parallel()
		id := d.detach(t, "true")
		d.says(t, 0, `0\n`, ``, "job", "wait", id)
		d.says(t, 0, ``, ``, "job", "log", id)
	})
	t.Run("while it runs", func(t *testing.T) {
		t.Parallel()
		for i, cut := range []func(string) error{os.Remove, func(name string) error { return os.Truncate(name, 2) }} {
			name := fmt.Sprint("cut-", i) // other jobs of this daemon run meanwhile
			cmd := d.command(t.Context(), "job", "run", "--name="+name, "sh", "-c", "echo output!; while [ ! -e /tmp/end ]; do sleep 0.1; done")
			var out, errOut testenv.Output
			cmd.Stdout, cmd.Stderr = &out, &errOut
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if !eventually(patience, func() bool { return out.String() == "output!\n" }) {
				t.Fatalf("no output: %s", errOut.String())
			}
			id := strings.TrimSpace(d.rnx(t.Context(), "job", "list", "-q", "--name="+name).stdout)
			if err := cut(filepath.Join(d.state, "jobs", id, "log")); err != nil {
				t.Fatal(err)
			}
			d.says(t, 1, `(?s).*`, lost, "job", "log", id)
			d.rnx(patient(t), "job", "exec", id, "touch", "/tmp/end") // which may end with the job
			if err := cmd.Wait(); err == nil || !strings.Contains(errOut.String(), "is incomplete") || strings.Contains(errOut.String(), "detached") {
				t.Errorf("the attached run: %v, %s", err, errOut.String())
			}
		}
	})
}

// TestExecInterrupted: Ctrl-C ends rnx also while the process has not begun.
func TestExecInterrupted(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	// A job that stops each new process.
	id := d.detach(t, "bash", "-c", "while :; do kill -STOP -1; done")
	seen := map[string]bool{}
	for _, args := range [][]string{{"job", "exec", id, "true"}, {"job", "shell", id}} {
		cmd := d.command(t.Context(), args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		stderr := testenv.Output{}
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if !eventually(patience, func() bool { return begun(d, seen) }) {
			t.Fatal("no process begins")
		}
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		select {
		case <-ended:
			if status := cmd.ProcessState.ExitCode(); status != 130 || !strings.Contains(stderr.String(), "interrupted") {
				t.Errorf("%v: status %d, %s", args, status, stderr.String())
			}
		case <-ctx.Done():
			t.Errorf("%v: it goes on after SIGINT", args)
			_ = cmd.Process.Kill()
			<-ended
		}
		cancel()
	}
}

// begun reports whether another process than those that were seen is on its way
// into the job.
func begun(d *daemon, seen map[string]bool) bool {
	out, _ := exec.Command("sh", "-c", "cat /proc/"+strconv.Itoa(d.cmd.Process.Pid)+"/task/*/children").Output()
	for pid := range strings.FieldsSeq(string(out)) {
		if argv, _ := os.ReadFile("/proc/" + pid + "/cmdline"); strings.HasSuffix(string(argv), "\x00exec\x00") && !seen[pid] {
			seen[pid] = true
			return true
		}
	}
	return false
}

// TestDescriptorsTellNothing: no descriptor of a job's processes, and nothing
// else about them in /proc, says where on the host the daemon has its files.
func TestDescriptorsTellNothing(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	dir := t.TempDir()
	input := filepath.Join(dir, "input")
	if err := os.WriteFile(input, []byte("some input\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const look = `for p in /proc/[0-9]* /proc/self; do
	readlink $p/fd/* $p/cwd $p/root $p/exe; cat $p/fdinfo/* $p/maps $p/cmdline $p/environ; done 2>&1; echo; echo looked`
	check := func(t *testing.T, r result) {
		t.Helper()
		out := r.stdout + r.stderr
		if r.status != 0 || !strings.Contains(out, "looked") || !strings.Contains(out, "pos:") {
			t.Fatalf("it did not look: %v", r)
		}
		for _, secret := range []string{d.state, d.run, dir, "/jobs/", "stdin\n"} {
			for line := range strings.Lines(out) {
				if strings.Contains(line, secret) {
					t.Errorf("it tells of %q: %s", secret, line)
				}
			}
		}
	}
	for name, flags := range map[string][]string{
		"nothing":           nil,
		"a file":            {"--stdin=" + input, "--retry=1"}, // taken whole, as it is for each attempt
		"a file and --init": {"--stdin=" + input, "--retry=1", "--init"},
		"a file, a user":    {"--stdin=" + input, "--retry=1", "--user=1000"},
		"a stream":          {"--stdin"},
		"an upload":         {"--upload=" + input},
		"a terminal":        {"-t"},
		"a typed terminal":  {"-t", "-i"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := d.command(t.Context(), append(append([]string{"job", "run"}, flags...), "sh", "-c", look)...)
			cmd.Stdin = strings.NewReader("typed\n")
			check(t, finish(cmd))
		})
	}
	t.Run("further processes", func(t *testing.T) {
		t.Parallel()
		id := d.detach(t, "--stdin="+input, "--init", "sleep", "1000")
		for _, flags := range [][]string{nil, {"-i"}, {"-t"}, {"-it"}} {
			cmd := d.command(t.Context(), append(append([]string{"job", "exec"}, flags...), id, "sh", "-c", look)...)
			cmd.Stdin = strings.NewReader("typed\n")
			check(t, finish(cmd))
		}
	})
	t.Run("it is still a file", func(t *testing.T) {
		t.Parallel()
		out := d.must(t, "--stdin="+input, "--retry=1", "sh", "-c", "stat -Lc %F:%s /dev/stdin; head -c 5; cat; ls /dev/fd/0/..; readlink /proc/self/fd/0")
		if want := "regular file:11\nsome input\n"; !strings.HasPrefix(out, want) || !strings.HasSuffix(out, "/\n") {
			t.Errorf("got %q", out)
		}
	})
}
