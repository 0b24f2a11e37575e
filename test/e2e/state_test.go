package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/testenv"
)

// beside returns a daemon, to be started, with the state directory of d or another
// one, and a run directory of its own unless one is given.
func (d *daemon) beside(t *testing.T, state, run string) *daemon {
	t.Helper()
	if run == "" {
		run = filepath.Join(t.TempDir(), "run")
		t.Cleanup(func() { testenv.CheckLeaks(t, run) })
	}
	return &daemon{state: state, run: run, args: d.args}
}

// TestStateLocked: one state directory has one daemon, whatever its run directory,
// its namespaces and the path to it, and whatever becomes of the lock file.
func TestStateLocked(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(d.state, link); err != nil {
		t.Fatal(err)
	}
	serving := fmt.Sprintf("another daemon (process %d", d.cmd.Process.Pid)
	for _, test := range []struct {
		name    string
		state   string
		sys     *syscall.SysProcAttr
		prepare func() error
		want    string
	}{
		{name: "another run directory", state: d.state, want: serving},
		{name: "a symbolic link", state: link, want: serving},
		{name: "other mount and PID namespaces", state: d.state, sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}, want: serving},
		{name: "the lock file is gone", state: d.state, want: "another daemon (process unknown",
			prepare: func() error { return os.Remove(filepath.Join(d.state, "daemon.lock")) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.prepare != nil {
				if err := test.prepare(); err != nil {
					t.Fatal(err)
				}
			}
			other := d.beside(t, test.state, "")
			if other.sys = test.sys; test.sys != nil { // with a /proc of its own, as a container has
				other.bin = filepath.Join(t.TempDir(), "joblet")
				script := "#!/bin/sh\nset -e\nmount --make-rprivate /\nmount -t proc proc /proc\nexec " + binDir + "/joblet \"$@\"\n"
				if err := os.WriteFile(other.bin, []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			err := other.start()
			if err == nil {
				other.stop()
				t.Fatal("two daemons serve one state directory")
			}
			if !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "state directory") {
				t.Errorf("said %q, want %q", err, test.want)
			}
		})
	}
	fsck := finish(exec.Command(binDir+"/joblet", "fsck", "--state-dir", d.state, "--run-dir", filepath.Join(t.TempDir(), "run")))
	if fsck.status != 8 || !strings.Contains(fsck.stderr, "another daemon") {
		t.Errorf("fsck beside the daemon: %v", fsck)
	}
	d.must(t, "true")
	d.kill(t)
	if err := d.start(); err != nil {
		t.Errorf("after a crash: %v", err)
	}
}

// copyState copies the state directory of a daemon, as cp -a does.
func copyState(t *testing.T, d *daemon) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("cp", "-a", d.state, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	return to
}

// untilFile is a job that runs until a file is made in it, and then ends with 7.
const untilFile = "while [ ! -e /tmp/end ]; do sleep 0.1; done; echo ended; exit 7"

func (d *daemon) letEnd(t *testing.T, id string) {
	t.Helper()
	d.rnx(patient(t), "job", "exec", id, "touch", "/tmp/end") // which may end with the job
	if r := d.rnx(t.Context(), "job", "wait", id); r.status != 7 {
		t.Errorf("the job: %v", r)
	}
	if r := d.rnx(t.Context(), "job", "log", id); r.stdout != "ended\n" {
		t.Errorf("its log: %v", r)
	}
}

// isLost checks that the daemon has given up a job, and has said why.
func (d *daemon) isLost(t *testing.T, id, why string) {
	t.Helper()
	if r := d.rnx(t.Context(), "job", "status", id); !strings.Contains(r.stdout, "LOST") || !strings.Contains(r.stdout, why) {
		t.Errorf("want it LOST because %q: %v", why, r)
	}
}

// TestStateCopied: who serves a copy of a state directory gets at no job of the
// original, whether that is served or not.
func TestStateCopied(t *testing.T) {
	t.Parallel()
	t.Run("beside the original", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		id := strings.TrimSpace(d.must(t, "-d", "--retry=3", "--retry-on=lost", "sh", "-c", untilFile))
		ended := strings.TrimSpace(d.must(t, "-d", "echo", "kept"))
		d.says(t, 0, `0\n`, ``, "job", "wait", ended)
		other := d.beside(t, copyState(t, d), "")
		if err := other.start(); err != nil {
			t.Fatal(err)
		}
		other.isLost(t, id, "copy")
		if r := other.rnx(t.Context(), "job", "log", ended); r.stdout != "kept\n" {
			t.Errorf("what had ended: %v", r)
		}
		other.says(t, 0, ``, ``, "job", "delete", id)
		other.must(t, "true")
		other.stop()
		if r := d.rnx(t.Context(), "job", "list", "-q", "--status=running"); r.stdout != id+"\n" {
			t.Errorf("the original's job: %v", r)
		}
	})
	t.Run("in place of the original", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		id := strings.TrimSpace(d.must(t, "-d", "sh", "-c", untilFile))
		d.kill(t)
		other := d.beside(t, copyState(t, d), d.run)
		fsck := finish(exec.Command(binDir+"/joblet", "fsck", "--repair", "--state-dir", other.state, "--run-dir", other.run))
		if fsck.status == 8 || !strings.Contains(fsck.stdout, "copy") {
			t.Errorf("fsck of the copy: %v", fsck)
		}
		for range 2 { // the second time it is no copy any more, and the boxes are still not its own
			if err := other.start(); err != nil {
				t.Fatal(err)
			}
			other.isLost(t, id, "copy")
			other.stop()
		}
		if err := d.start(); err != nil {
			t.Fatal(err)
		}
		d.letEnd(t, id)
	})
	t.Run("a directory that never saw it", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		id := strings.TrimSpace(d.must(t, "-d", "sh", "-c", untilFile))
		d.kill(t)
		other := d.beside(t, filepath.Join(t.TempDir(), "new"), d.run)
		if err := other.start(); err != nil {
			t.Fatal(err)
		}
		other.must(t, "true")
		other.stop()
		if err := d.start(); err != nil {
			t.Fatal(err)
		}
		d.letEnd(t, id)
	})
	t.Run("moved, and still the original", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		id := strings.TrimSpace(d.must(t, "-d", "sh", "-c", untilFile))
		d.kill(t)
		moved := d.state + "-moved"
		if err := os.Rename(d.state, moved); err != nil {
			t.Fatal(err)
		}
		d.state = moved
		if err := d.start(); err != nil {
			t.Fatal(err)
		}
		d.letEnd(t, id)
	})
}

// TestStateOtherRunDir: a daemon with another run directory has its jobs
// nevertheless, with their limits and their end.
func TestStateOtherRunDir(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	ends := strings.TrimSpace(d.must(t, "-d", "sh", "-c", untilFile))
	killed := strings.TrimSpace(d.must(t, "-d", "--max-memory=64M", "sleep", "1000"))
	d.kill(t)
	first := d.run
	d.run = filepath.Join(t.TempDir(), "run")
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	d.says(t, 0, killed+`\n`, ``, "job", "update", "--max-memory=128M", killed)
	d.says(t, 0, killed+`\n`, ``, "job", "pause", killed)
	d.says(t, 0, killed+`\n`, ``, "job", "resume", killed)
	d.says(t, 0, killed+`\n`, ``, "job", "kill", killed)
	d.kill(t)
	if err := d.start(); err != nil { // and the one after it still finds the other
		t.Fatal(err)
	}
	d.letEnd(t, ends)
	testenv.CheckLeaks(t, first)
}

// TestStateOtherBoot: after a restart of the host nobody is asked for a job of
// before, whoever listens in the place of its shim.
func TestStateOtherBoot(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := strings.TrimSpace(d.must(t, "-d", "sleep", "1000"))
	again := d.detach(t, "--retry=1", "--retry-delay=1ms", "--retry-on=lost", "sh", "-c", "[ $JOBLET_ATTEMPT = 2 ] || sleep 1000")
	d.kill(t)
	name := filepath.Join(d.state, "identity.json")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var identity map[string]any
	if err := json.Unmarshal(text, &identity); err != nil {
		t.Fatal(err)
	}
	identity["boot"] = "another"
	if text, err = json.Marshal(identity); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	d.isLost(t, id, "restarted")
	if job := d.ends(t, again, joblet.Completed); job.Attempt != 2 || !strings.Contains(job.Past[0].Reason, "restarted") {
		t.Errorf("%+v", job)
	}
	d.must(t, "true")
}
