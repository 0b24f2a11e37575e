package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/testenv"
)

// TestDaemonKilled: jobs go on without the daemon, and the next one has their
// complete output and statuses.
func TestDaemonKilled(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const n = 20
	var ids []string
	for i := range n {
		ids = append(ids, strings.TrimSpace(d.must(t, "-d", "bash", "-c",
			fmt.Sprintf("for k in $(seq 30); do echo job %d line $k; sleep 0.05; done; echo end >&2; exit %d", i, i))))
	}
	d.kill(t)
	// Half of them end while no daemon runs, the others under the next one.
	time.Sleep(time.Second)
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		var want strings.Builder
		for k := range 30 {
			fmt.Fprintf(&want, "job %d line %d\n", i, k+1)
		}
		if r := d.rnx(t.Context(), "job", "wait", id); r.status != i {
			t.Errorf("job %d: %v", i, r)
		}
		r := d.rnx(t.Context(), "job", "log", id)
		if r.stdout != want.String() || r.stderr != "end\n" {
			t.Errorf("job %d: the log is not whole: %v", i, r)
		}
	}
}

// TestDaemonKilledLater: jobs that ended while there was no daemon.
func TestDaemonKilledLater(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := strings.TrimSpace(d.must(t, "-d", "sh", "-c", "sleep 0.5; echo alone; exit 3"))
	d.kill(t)
	exit := filepath.Join(d.state, "jobs", id, "exit.json")
	if !eventually(20*time.Second, func() bool { _, err := os.Stat(exit); return err == nil }) {
		t.Fatal("no exit record")
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	if r := d.rnx(t.Context(), "job", "log", "-f", id); r.stdout != "alone\n" {
		t.Errorf("%v", r)
	}
	if r := d.rnx(t.Context(), "job", "wait", id); r.status != 3 {
		t.Errorf("%v", r)
	}
}

// shimOf returns the pid of a running job's shim: the parent of PID 1.
func (d *daemon) shimOf(t *testing.T, id string) int {
	t.Helper()
	var job struct {
		PID int `json:"host_pid"`
	}
	r := d.rnx(t.Context(), "job", "status", "--json", id)
	if err := json.Unmarshal([]byte(r.stdout), &job); err != nil || job.PID == 0 {
		t.Fatalf("job %s has no process: %v", id, r)
	}
	shim := shimOf(job.PID)
	if shim == 0 {
		t.Fatalf("process %d of job %s is gone", job.PID, id)
	}
	return shim
}

// shimOf returns the shim of a job's process, which is its parent; 0: the
// process is gone.
func shimOf(pid int) (parent int) {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(fields) > 1 {
		parent, _ = strconv.Atoi(fields[1])
	}
	return parent
}

// TestShimKilled: the job dies with its shim and is LOST, with a reason.
func TestShimKilled(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for i, daemonToo := range []bool{false, true} {
		nap := fmt.Sprint(100000*(i+1) + os.Getpid()%100000) // a number that no other job sleeps for
		id := strings.TrimSpace(d.must(t, "-d", "bash", "-c", "echo before; (setsid sleep "+nap+" &); sleep "+nap))
		if !d.wrote(t, id, "before\n") {
			t.Fatal("no output")
		}
		pid := d.shimOf(t, id)
		if daemonToo {
			d.kill(t)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if daemonToo {
			if err := d.start(); err != nil {
				t.Fatal(err)
			}
		}
		if r := d.rnx(t.Context(), "job", "wait", id); r.status != 125 {
			t.Errorf("wait: %v", r)
		}
		if r := d.rnx(t.Context(), "job", "status", id); !strings.Contains(r.stdout, "LOST") || !strings.Contains(r.stdout, "shim") {
			t.Errorf("status: %v", r)
		}
		if r := d.rnx(t.Context(), "job", "log", id); r.stdout != "before\n" {
			t.Errorf("log: %v", r)
		}
		if !eventually(patience, func() bool {
			left, _ := filepath.Glob(filepath.Join(d.state, "jobs", id, "*.tmp"))
			return len(left) == 0
		}) {
			t.Error("an unfinished file of the shim is left in the job's directory")
		}
		if !eventually(patience, func() bool { return !running("sleep\x00" + nap + "\x00") }) {
			t.Error("processes of the job are left")
		}
	}
}

func running(cmdline string) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if argv, _ := os.ReadFile(f); string(argv) == cmdline {
			return true
		}
	}
	return false
}

// TestShimBusy: a shim that does not answer the next daemon at once, as
// while it packs a job's files, is waited for; its job is not given up.
func TestShimBusy(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := strings.TrimSpace(d.must(t, "-d", "sh", "-c", "while [ ! -e /tmp/end ]; do sleep 0.1; done; echo done; exit 3"))
	pid := d.shimOf(t, id)
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	d.kill(t)
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	if r := d.rnx(t.Context(), "job", "list", "-q", "--status=running"); r.stdout != id+"\n" {
		t.Errorf("while the shim does not answer: %v", r)
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	d.rnx(patient(t), "job", "exec", id, "touch", "/tmp/end") // which may end with the job
	if r := d.rnx(t.Context(), "job", "wait", id); r.status != 3 {
		t.Errorf("wait: %v", r)
	}
	if r := d.rnx(t.Context(), "job", "log", id); r.stdout != "done\n" {
		t.Errorf("log: %v", r)
	}
}

// TestDaemonStopsGracefully: SIGTERM ends the daemon within 5 s and no job.
func TestDaemonStopsGracefully(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := strings.TrimSpace(d.must(t, "-d", "sh", "-c", "sleep 2; echo survived"))
	follower := d.command(t.Context(), "job", "log", "-f", id)
	if err := follower.Start(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := d.cmd.Wait()
	d.cmd = nil
	if took := time.Since(start); err != nil || took > 20*time.Second { // five, and what else this machine does
		t.Errorf("the daemon ended after %v: %v", took, err)
	}
	_ = follower.Wait()
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	if r := d.rnx(t.Context(), "job", "log", "-f", id); r.stdout != "survived\n" {
		t.Errorf("%v", r)
	}
}

func TestDaemonRefusesToStart(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		prepare func(t *testing.T, d *daemon)
		want    string
	}{
		{"another program's database", func(t *testing.T, d *daemon) {
			if err := d.start(); err != nil {
				t.Fatal(err)
			}
			d.stop()
			f, err := os.OpenFile(filepath.Join(d.state, "joblet.db"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("MINE"), 68); err != nil { // its application id
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}, "joblet.db"},
		{"read-only file system", func(t *testing.T, d *daemon) {
			mount(t, d.state, "ro")
		}, "read-only file system"},
		{"a file in its place", func(t *testing.T, d *daemon) {
			if err := os.RemoveAll(d.state); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(d.state, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a directory"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := withState(t)
			t.Cleanup(func() { testenv.CheckLeaks(t, d.run) })
			test.prepare(t, d)
			err := d.start()
			if err == nil {
				d.stop()
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("said %q, want %q", err, test.want)
			}
		})
	}
}

// mount mounts a small tmpfs on dir until the test ends.
func mount(t *testing.T, dir, options string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755,size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	if options == "ro" {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFullDisk: a new job is refused; a running one waits and loses nothing.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	d := newDaemonOnDisk(t)
	id := strings.TrimSpace(d.must(t, "-d", "sh", "-c", "read x < /work/go 2>/dev/null; sleep 1; seq 300000; exit 4"))
	ballast := filepath.Join(d.state, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close()
	if r := d.job(t, "true"); r.status != 125 || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "space") {
		t.Errorf("a job on a full disk: %v", r)
	}
	time.Sleep(2 * time.Second) // the job writes more than there is room for
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if r := d.rnx(t.Context(), "job", "wait", id); r.status != 4 {
		t.Errorf("wait: %v", r)
	}
	out := d.rnx(t.Context(), "job", "log", id).stdout
	if lines := strings.Count(out, "\n"); lines != 300000 || !strings.HasSuffix(out, "\n300000\n") {
		t.Errorf("%d lines of 300000", lines)
	}
	if r := d.job(t, "true"); r.status != 0 {
		t.Errorf("a job once there is room: %v", r)
	}
}

// TestSpareBoxesKilled: a box that died while it waited for a job costs no job.
func TestSpareBoxesKilled(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.must(t, "true") // the daemon has begun to keep boxes ready
	spares := func() (pids []int) {
		// A file for each of the daemon's threads, with the children that it made.
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			children, _ := os.ReadFile(f)
			for field := range strings.FieldsSeq(string(children)) {
				pid, err := strconv.Atoi(field)
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, pid)
			}
		}
		return pids
	}
	if !eventually(patience, func() bool { return len(spares()) >= 2 }) {
		t.Fatal("no box waits for a job")
	}
	killed := 0
	for _, pid := range spares() {
		switch err := unix.Kill(pid, unix.SIGKILL); err {
		case nil:
			killed++
		case unix.ESRCH: // the shim of the job before
			continue
		default:
			t.Fatal(err)
		}
		if !eventually(patience, func() bool { return unix.Kill(pid, 0) == unix.ESRCH }) {
			t.Fatalf("process %d does not die", pid)
		}
	}
	if killed == 0 {
		t.Error("no box was there")
	}
	for range 3 {
		d.must(t, "true")
	}
}
