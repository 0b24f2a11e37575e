package escape

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSwapRace fetches files from a job that exchanges them all the while with
// links to the host's (CVE-2018-15664, CVE-2019-14271).
func TestSwapRace(t *testing.T) {
	w := newWorld(t)
	id, pid := w.start(t, "swapping", "--upload="+probe(), "/work/probe", "swap-names", w.secret, filepath.Dir(w.secret))

	// The control: who opens a name after a look at it gets there.
	work := fmt.Sprintf("/proc/%d/root/work/", pid)
	led := false
	for deadline := time.Now().Add(20 * time.Second); !led && time.Now().Before(deadline); {
		if info, err := os.Lstat(work + "d/file"); err == nil && info.Mode().IsRegular() {
			data, _ := os.ReadFile(work + "d/file")
			led = string(data) == w.mark
		}
	}
	if !led {
		t.Error("nobody is led to the host's file: the race proves nothing")
	}

	to := t.TempDir()
	fetched := 0
	for i := range 15 {
		for _, name := range []string{"d/file", "link", "e/secret", "dirlink/secret", "."} {
			dir := filepath.Join(to, strconv.Itoa(i))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if r := w.rnx(t.Context(), "job", "cp", id+":"+name, dir); r.status == 0 {
				fetched++
			}
			// As a link it may come; what it leads to may not.
			_ = filepath.WalkDir(dir, func(p string, entry os.DirEntry, err error) error {
				if err != nil || !entry.Type().IsRegular() {
					return nil
				}
				if data, _ := os.ReadFile(p); bytes.Contains(data, []byte(w.mark)) {
					t.Errorf("%s of the host was fetched as %s", w.secret, name)
				}
				return nil
			})
			_ = os.RemoveAll(dir)
		}
	}
	if fetched == 0 {
		t.Error("nothing could be fetched at all")
	}
}

// TestLinksLeftBehind: what a job leaves in /work leads nobody out of it, when it
// is kept, fetched, or given to the next (CVE-2017-1002101).
func TestLinksLeftBehind(t *testing.T) {
	w := newWorld(t)
	to := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	script := `ln -s ` + w.secret + ` link; ln -s ` + filepath.Dir(outside) + ` dir; ln -s ../../../../../../etc/passwd up; ln -s /proc/1/root/etc/passwd proc; mkdir real; echo fine > real/file`
	r := w.job(t, "--download=**", "--download-to="+to, "sh", "-c", script)
	if data, err := os.ReadFile(filepath.Join(to, "real", "file")); err != nil || string(data) != "fine\n" {
		t.Fatalf("the control: %v %v", err, r)
	}
	for _, name := range []string{"link", "dir", "up", "proc"} {
		if _, err := os.Lstat(filepath.Join(to, name)); err == nil {
			if _, err := os.Stat(filepath.Join(to, name)); err == nil {
				t.Errorf("%s leads out", name)
			}
		}
	}
	// A directory of the user's in which such a link waits is not written through.
	trap := t.TempDir()
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(trap, "real")); err != nil {
		t.Fatal(err)
	}
	w.job(t, "--download=**", "--download-to="+trap, "sh", "-c", "mkdir real; echo bad > real/outside")
	if _, err := os.Stat(outside); err == nil {
		t.Error("a download was written through a link")
	}
}

// TestMountsInWork: what a job has mounted over its /work, or in it, is not read by the
// daemon, which may read more of a file system than the job may.
func TestMountsInWork(t *testing.T) {
	w := newWorld(t)
	for name, script := range map[string]string{
		"over /work": "mount -t tmpfs x /work && mkdir /work/p && echo hidden > /work/p/inner",
		"in /work":   "mkdir /work/p && mount -t tmpfs x /work/p && echo hidden > /work/p/inner",
		"of /proc":   "mkdir /work/p && mount --rbind /proc /work/p && ln -s /work /work/q",
	} {
		t.Run(name, func(t *testing.T) {
			id, pid := w.start(t, "ready", "--security=nested", "sh", "-c", "echo real > /work/real; exec unshare -Urm sh -ec '"+script+"; echo ready; exec sleep 1000'")
			below := map[bool]string{true: "p/version", false: "p/inner"}[name == "of /proc"]
			if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/work/%s", pid, below)); err != nil {
				t.Fatalf("the control: the job has mounted nothing: %v", err)
			}
			to := t.TempDir()
			if r := w.rnx(t.Context(), "job", "cp", id+":real", to); r.status != 0 {
				t.Errorf("the control: %v", r)
			}
			for _, path := range []string{below, "p", "."} {
				w.rnx(t.Context(), "job", "cp", id+":"+path, to)
			}
			w.rnx(t.Context(), "job", "kill", id)
			w.rnx(t.Context(), "job", "wait", id)
			w.rnx(t.Context(), "job", "cp", id+":.", to)
			_ = filepath.WalkDir(to, func(path string, entry os.DirEntry, err error) error {
				if err == nil && !entry.IsDir() && entry.Name() != "real" && entry.Type().IsRegular() {
					t.Errorf("%s was fetched", path)
				}
				return nil
			})
		})
	}
}

// TestUploadThroughLink: an upload is unpacked beside a program of the job's at no
// time, and a name in it that is a link is no way out (CVE-2018-15664).
func TestUploadThroughLink(t *testing.T) {
	w := newWorld(t)
	src := t.TempDir()
	if err := os.Symlink(w.secret, filepath.Join(src, "out")); err != nil {
		t.Fatal(err)
	}
	r := w.job(t, "--upload-dir="+src, "cat", "out") // in the job, it leads nowhere
	if r.status != 1 || r.stdout != "" {
		t.Errorf("a link led out: %v", r)
	}
	if err := os.Remove(filepath.Join(src, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("in", filepath.Join(src, "ok")); err != nil {
		t.Fatal(err)
	}
	if r := w.job(t, "--upload-dir="+src, "readlink", "ok"); r.stdout != "in\n" {
		t.Errorf("the control: %v", r)
	}
}

// TestTerminalEscapes: a job's words do not reach the terminal of whoever lists it
// (CVE-2003-0063; CWE-150).
func TestTerminalEscapes(t *testing.T) {
	w := newWorld(t)
	const evil = "\x1b]0;pwned\x07\x1b[2J\u202egnp.exe\u009b31m\r\n9999 FORGED"
	r := w.job(t, "-d", "--env=EVIL="+evil, "sh", "-c", ": "+"'"+evil+"'")
	if r.status != 0 {
		t.Fatal(r)
	}
	id := strings.TrimSpace(r.stdout)
	w.rnx(t.Context(), "job", "wait", id)
	if r := w.rnx(t.Context(), "job", "list", "--json"); !strings.Contains(r.stdout, "pwned") {
		t.Errorf("the control: %v", r)
	}
	missing := w.job(t, evil)
	outputs := map[string]result{"an error": missing}
	for _, args := range [][]string{{"job", "list"}, {"job", "status", id}, {"job", "list", "--format={{.Command}}"}, {"job", "rm\x1b[2J"}, {"job", "status", evil}} {
		outputs[strings.Join(args, " ")] = w.rnx(t.Context(), args...)
	}
	for what, r := range outputs {
		for _, bad := range []string{"\x1b", "\x07", "\u202e", "\u009b", "\r"} {
			if strings.Contains(r.stdout+r.stderr, bad) {
				t.Errorf("%q: %q reaches the terminal: %q", what, bad, r.stdout+r.stderr)
			}
		}
		if strings.Contains(r.stdout+r.stderr, "\n9999 FORGED") {
			t.Errorf("%q: a line is forged", what)
		}
	}
}

// TestPreload: the environment of a job has a say in its command and not in the
// set-up, nor in its shim (CVE-2010-3847).
func TestPreload(t *testing.T) {
	w := newWorld(t)
	lib := filepath.Join(binDir, "preload.so")
	if _, err := os.Stat(lib); err != nil {
		out, err := exec.Command("gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", lib, "testdata/preload.c").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	r := w.job(t, "--upload="+lib, "--env=LD_PRELOAD=/work/preload.so", "--env=LD_AUDIT=/work/preload.so", "--env=GODEBUG=inittrace=1,schedtrace=1",
		"--env=GOTRACEBACK=crash", "--env=GCONV_PATH=/work", "--env=MARK="+w.mark,
		"sh", "-c", "cat /work/loaded")
	if !strings.Contains(r.stdout, "pid 1 ") {
		t.Fatalf("the library was not loaded into the command: the test proves nothing: %v", r)
	}
	for line := range strings.Lines(r.stdout) {
		if !strings.Contains(line, "NoNewPrivs:\t1") || !strings.Contains(line, "Seccomp:\t2") || !strings.Contains(line, "CapEff:\t00000000000405fb") {
			t.Errorf("loaded into a program that was not confined yet: %s", line)
		}
	}
	if strings.Contains(r.stderr, "SCHED") || strings.Contains(r.stderr, "init ") {
		t.Errorf("the set-up heeds GODEBUG: %v", r)
	}
	_, pid := w.start(t, "on", "--env=MARK="+w.mark, "--env=LD_PRELOAD=/work/x", "sh", "-c", "echo on; exec sleep 1000")
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, who := range []string{strconv.Itoa(pid), fields[1]} { // it and its parent, the shim
		env, err := os.ReadFile("/proc/" + who + "/environ")
		if err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Contains(string(env), w.mark), who == strconv.Itoa(pid); got != want {
			t.Errorf("the job's environment is that of process %s: %v, want %v", who, got, want)
		}
	}
}

// TestBornLimited: no process of a job's lives before its limits hold.
func TestBornLimited(t *testing.T) {
	w := newWorld(t)
	if r := w.try(t, nil, "fork"); r.status != through {
		t.Fatalf("the control: %v", r)
	}
	for range 12 {
		if r := w.try(t, []string{"--max-pids=1"}, "fork"); r.status != refused {
			t.Fatalf("a second process where one is allowed: %v", r)
		}
	}
}

// TestPools: what the kernel gives each user of the host so many of is not used up by
// a job for the host's root and for other jobs.
func TestPools(t *testing.T) {
	w := newWorld(t)
	w.start(t, "holding", "--upload="+probe(), "/work/probe", "pools", "all")
	if r := w.try(t, nil, "pools", "5"); r.status != through {
		t.Errorf("another job: %v", r)
	}
	if r := finish(exec.Command(probe(), "pools", "5")); r.status != through {
		t.Errorf("the host: %v", r)
	}
}

// TestStopAfterReuse: a job is stopped, not whatever process has its number by now.
func TestStopAfterReuse(t *testing.T) {
	if _, err := os.Stat("/proc/sys/kernel/ns_last_pid"); errors.Is(err, os.ErrNotExist) {
		t.Skip("requires a kernel with CONFIG_CHECKPOINT_RESTORE, to choose a process number")
	}
	w := newWorld(t)
	var id string
	var pid int
	var victim *exec.Cmd
	for range 10 { // somebody else may have got its number, and keep it
		id, pid = w.start(t, "on", "sh", "-c", "echo on; exec sleep 1000")
		if r := w.rnx(t.Context(), "job", "kill", id); r.status != 0 {
			t.Fatal(r)
		}
		w.rnx(t.Context(), "job", "wait", id)
		if victim = reuse(t, pid); victim != nil {
			break
		}
	}
	if victim == nil {
		t.Fatal("no process got the number of a job that has ended")
	}
	for _, args := range [][]string{{"job", "stop", "--grace=0s", id}, {"job", "kill", id}, {"job", "cp", id + ":.", t.TempDir()}, {"job", "delete", id}} {
		w.rnx(context.Background(), args...)
	}
	if err := victim.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a process with the job's former number was ended: %v", err)
	}
	// The control: by number it would have been.
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := victim.Wait(); err == nil {
		t.Error("the process with the job's number was not the victim")
	}
}

// reuse starts a process of the host with this number; nil: it could not be had.
func reuse(t *testing.T, pid int) *exec.Cmd {
	t.Helper()
	for range 200 {
		cmd := exec.Command("sleep", "1000")
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Fatalf("choose a process number: %v", err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if cmd.Process.Pid == pid {
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			return cmd
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	return nil
}

// TestOwnProgram: a job whose command is /proc/self/exe runs what executes it, the
// set-up's program, and gains nothing (CVE-2019-5736).
func TestOwnProgram(t *testing.T) {
	w := newWorld(t)
	r := w.job(t, "--init", "--timeout=10s", "/proc/self/exe")
	if r.status == 0 {
		t.Errorf("%v", r)
	}
	if r := w.job(t, "true"); r.status != 0 {
		t.Errorf("the next job: %v", r)
	}
}
