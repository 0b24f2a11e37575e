package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/testenv"
)

// endTime is how long it may take to end a job whose shim does nothing.
const endTime = 20 * time.Second

// sleeper starts a job that sleeps, and returns it with its shim and the command
// line of its process, which no other on this host has.
func (d *daemon) sleeper(t *testing.T, flags ...string) (id string, shim int, cmdline string) {
	t.Helper()
	nap := fmt.Sprint(time.Now().UnixNano() / 1000)
	id = strings.TrimSpace(d.must(t, append(append([]string{"-d"}, flags...), "sleep", nap)...))
	return id, d.shimOf(t, id), "sleep\x00" + nap + "\x00"
}

// keepStopped stops a process whenever it goes on, until goOn is called: to whoever
// waits for it, that is one that waits in the kernel.
func keepStopped(t *testing.T, pid int) (goOn func()) {
	t.Helper()
	handle, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return func() {} // it has ended
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil && unix.PidfdSendSignal(handle, unix.SIGSTOP, nil, 0) == nil {
			time.Sleep(time.Millisecond)
		}
	}()
	return func() {
		cancel()
		<-done
		_ = unix.PidfdSendSignal(handle, unix.SIGCONT, nil, 0)
		unix.Close(handle)
	}
}

// stopForGood is keepStopped until the test ends.
func stopForGood(t *testing.T, pid int) {
	t.Helper()
	t.Cleanup(keepStopped(t, pid))
}

// TestShimStuck: a job ends when it is to, and its box is released, whatever its
// shim does.
func TestShimStuck(t *testing.T) {
	t.Parallel()
	stop := func(t *testing.T, pid int) {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	kill := func(id string) []string { return []string{"job", "kill", id} }
	for _, test := range []struct {
		name  string
		stop  func(t *testing.T, pid int)
		flags []string
		end   func(id string) []string // nil: its time is over
		again bool                     // another daemon finds it so
		state string
	}{
		{name: "kill", stop: stop, end: kill, state: "STOPPED"},
		{name: "kill, for good", stop: stopForGood, end: kill, state: "STOPPED"},
		{name: "stop", stop: stopForGood, end: func(id string) []string { return []string{"job", "stop", "--grace=1s", id} }, state: "STOPPED"},
		{name: "timeout", stop: stopForGood, flags: []string{"--timeout=1s"}, state: "TIMEOUT"},
		{name: "kill by another daemon", stop: stop, end: kill, again: true, state: "STOPPED"},
		{name: "kill by another daemon, for good", stop: stopForGood, end: kill, again: true, state: "STOPPED"},
		{name: "timeout under another daemon", stop: stopForGood, flags: []string{"--timeout=1s"}, again: true, state: "TIMEOUT"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t)
			id, shim, cmdline := d.sleeper(t, test.flags...)
			test.stop(t, shim)
			if test.again {
				d.kill(t)
				if err := d.start(); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), endTime+15*time.Second)
			defer cancel()
			began := time.Now()
			if test.end != nil {
				if r := d.rnx(ctx, test.end(id)...); r.status != 0 || time.Since(began) > endTime {
					t.Errorf("after %v: %v", time.Since(began), r)
				}
			} else if r := d.rnx(ctx, "job", "wait", id); r.status == -1 {
				t.Errorf("after %v: %v", time.Since(began), r)
			}
			if r := d.rnx(t.Context(), "job", "status", id); !strings.Contains(r.stdout, test.state) {
				t.Errorf("want %s: %v", test.state, r)
			}
			if !eventually(patience, func() bool { return !running(cmdline) && unix.Kill(shim, 0) == unix.ESRCH }) {
				t.Error("processes are left")
			}
			d.says(t, 0, `.*`, ``, "job", "delete", id)
		})
	}
}

// TestShimStuckEnd: that a job has ended is seen although its shim is stopped.
func TestShimStuckEnd(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(*testing.T, int){"for good": stopForGood, "once": func(t *testing.T, pid int) {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t)
			id := strings.TrimSpace(d.must(t, "-d", "sh", "-c", "while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 3"))
			shim := d.shimOf(t, id)
			stop(t, shim)
			d.says(t, 0, ``, ``, "job", "exec", id, "touch", "/tmp/end")
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			r := d.rnx(ctx, "job", "wait", id)
			if lost := name == "for good" && r.status == 125; r.status != 3 && !lost { // the shim may have taken the status with it
				t.Errorf("wait: %v", r)
			}
		})
	}
}

// TestShimDeaf: requests that a shim does not take do not wait for it.
func TestShimDeaf(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id, shim, _ := d.sleeper(t)
	if err := unix.Kill(shim, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if !eventually(patience, func() bool {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", shim))
		return bytes.Contains(status, []byte("\nState:\tT"))
	}) {
		t.Fatal("the shim does not stop")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	c, err := client.Dial(ctx, d.host())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for what, err := range map[string]error{
		"signal":   c.Signal(ctx, id, int(unix.SIGURG)),
		"max-disk": errOf(c.Update(ctx, id, joblet.Limits{DiskBytes: 64 << 20})),
	} {
		if joblet.KindOf(err) != joblet.Unavailable || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("%s, of a job whose shim is stopped: %v", what, err)
		}
	}
	if r := d.rnx(ctx, "job", "kill", id); r.status != 0 {
		t.Errorf("kill: %v", r)
	}
}

func errOf(_ joblet.Job, err error) error { return err }

// TestExecStuck: a further process ends with its caller, and that it has ended is
// seen, when its shim is stopped.
func TestExecStuck(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id, _, _ := d.sleeper(t)
	for _, ends := range []bool{false, true} {
		nap := fmt.Sprint(time.Now().UnixNano() / 1000)
		cmd := d.command(t.Context(), "job", "exec", id, "sh", "-c", "echo on; exec sleep "+nap)
		var out testenv.Output
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		process := 0
		if !eventually(patience, func() bool {
			if out.String() == "" { // the daemon has not heard from the shim
				return false
			}
			names := hostProcesses("sleep\x00" + nap + "\x00")
			if len(names) == 1 {
				fmt.Sscan(names[0], &process)
			}
			return process != 0
		}) {
			t.Fatal("the process does not run")
		}
		shim := shimOf(process)
		stopForGood(t, shim)
		if ends {
			if err := unix.Kill(process, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		} else if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if !eventually(patience, func() bool { return !running("sleep\x00"+nap+"\x00") && unix.Kill(shim, 0) == unix.ESRCH }) {
			t.Error("processes are left")
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = cmd.Wait()
		}()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("rnx still waits")
			_ = cmd.Process.Kill()
		}
	}
	d.says(t, 0, `.*\n`, ``, "job", "kill", id)
}

// boxOf returns the box of the job that a shim has.
func boxOf(t *testing.T, shim int) string {
	t.Helper()
	argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", shim))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(argv), "\x00")[1]
}

// TestSocketTaken: users of the host who listen in the place of a shim that is
// gone, and take no connection, do not keep the daemon from starting, nor fsck.
func TestSocketTaken(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id, shim, _ := d.sleeper(t)
	box := boxOf(t, shim)
	d.kill(t)
	if err := unix.Kill(shim, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !eventually(patience, func() bool { return unix.Kill(shim, 0) == unix.ESRCH }) {
		t.Fatal("the shim stays")
	}
	fds, err := listenAs(65534, "@joblet/"+box)
	t.Cleanup(func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	check := exec.CommandContext(ctx, binDir+"/joblet", "fsck", "--state-dir", d.state, "--run-dir", d.run)
	if out, err := check.CombinedOutput(); ctx.Err() != nil || !strings.Contains(string(out), "it ended while no daemon ran") {
		t.Errorf("fsck: %v\n%s", err, out)
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	var job struct {
		State string `json:"status"`
	}
	r := d.rnx(t.Context(), "job", "status", "--json", id)
	if err := json.Unmarshal([]byte(r.stdout), &job); err != nil || job.State != "LOST" {
		t.Errorf("want LOST: %v", r)
	}
}

// listenAs listens at an address as another user, and fills the queue of those that
// wait to be accepted.
func listenAs(uid int, name string) (fds []int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		goruntime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			err = errno
			return
		}
		addr := &unix.SockaddrUnix{Name: name}
		socket := func() (fd int) {
			if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err == nil {
				fds = append(fds, fd)
			}
			return fd
		}
		fd := socket()
		if err != nil {
			return
		}
		if err = unix.Bind(fd, addr); err == nil {
			err = unix.Listen(fd, 0)
		}
		for err == nil {
			if fd := socket(); err == nil {
				err = unix.Connect(fd, addr)
			}
		}
		if err == unix.EAGAIN {
			err = nil
		}
	}()
	<-done
	return fds, err
}

// TestSocketsPrivate: no other user can get at the sockets of shims, and none is
// left when its box is gone.
func TestSocketsPrivate(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id, shim, _ := d.sleeper(t)
	box := boxOf(t, shim)
	dir := filepath.Join(d.run, "shims")
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("%v %v", info, err)
	}
	if info, err := os.Stat(filepath.Join(dir, box)); err != nil || info.Mode().Type() != os.ModeSocket {
		t.Errorf("%v %v", info, err)
	}
	if data, err := os.ReadFile("/proc/net/unix"); err != nil || bytes.Contains(data, []byte("@@joblet/"+box)) || bytes.Contains(data, []byte("@joblet/"+box)) {
		t.Errorf("the shim listens for everybody: %v", err)
	}
	// A run directory on disk survives what the boxes do not.
	stale := filepath.Join(dir, "00000000-0000-4000-8000-000000000000")
	d.kill(t)
	if err := unix.Mknod(stale, unix.S_IFSOCK|0o755, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	d.says(t, 0, `.*\n`, ``, "job", "kill", id)
	if !eventually(patience, func() bool {
		_, err := os.Lstat(filepath.Join(dir, box))
		return os.IsNotExist(err)
	}) {
		t.Error("the socket of a job that has ended is left")
	}
	if _, err := os.Lstat(stale); !os.IsNotExist(err) {
		t.Errorf("the socket of no box is left: %v", err)
	}
}

// TestLongRunDirectory: sun_path is shorter than a path may be.
func TestLongRunDirectory(t *testing.T) {
	t.Parallel()
	d := withState(t)
	d.run = filepath.Join(t.TempDir(), strings.Repeat("r", 90-len(t.TempDir())%40))
	for len(d.run)+len("/joblet.sock") > 107 { // what the daemon's own socket can have
		d.run = d.run[:len(d.run)-1]
	}
	d.serve(t)
	id, _, _ := d.sleeper(t)
	d.kill(t)
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	d.says(t, 0, id+"\n", ``, "job", "list", "-q", "--status=running")
	d.says(t, 0, `.*\n`, ``, "job", "kill", id)
}
