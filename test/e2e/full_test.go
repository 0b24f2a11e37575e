package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// atOnce is how long something may take on a full disk that takes a moment on
// another: two seconds, on a machine that has nothing else to do.
const atOnce = 8 * time.Second

// fillDisk takes the last byte, or the last inode, of the disk with the daemon's
// state.
func (d *daemon) fillDisk(t *testing.T, inodes bool) {
	t.Helper()
	dir, err := os.MkdirTemp(d.state, "ballast-")
	if errors.Is(err, unix.ENOSPC) {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(n)))
		if errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		for err == nil && !inodes {
			_, err = f.Write(make([]byte, 4096))
		}
		if f.Close(); err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		if !inodes {
			return
		}
	}
}

func freeBytes(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Bfree
}

// soon is rnx for what must not take long.
func (d *daemon) soon(t *testing.T, status int, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began := time.Now()
	r := d.rnx(ctx, args...)
	if took := time.Since(began); r.status != status || took > atOnce {
		t.Errorf("rnx %q, after %v: %v\nwant status %d", args, took, r, status)
	}
	return r
}

// TestFullDiskEnds: on a disk on which nothing is left, every job can be ended and
// deleted, by this daemon and by the next, and none is accepted.
func TestFullDiskEnds(t *testing.T) {
	t.Parallel()
	for _, inodes := range []bool{false, true} {
		t.Run(map[bool]string{false: "bytes", true: "inodes"}[inodes], func(t *testing.T) {
			t.Parallel()
			d := withState(t)
			mount(t, d.state, "")
			if err := unix.Mount("", d.state, "", unix.MS_REMOUNT, "nr_inodes=400"); err != nil {
				t.Fatal(err)
			}
			d.serve(t)
			var ended []string
			for range 6 {
				ended = append(ended, strings.TrimSpace(d.must(t, "-d", "seq", "1000")))
			}
			for _, id := range ended {
				d.says(t, 0, `.*\n`, ``, "job", "wait", id)
			}
			var naps []string
			for range 4 {
				id, _, _ := d.sleeper(t)
				naps = append(naps, id)
			}
			floods := []string{"", ""}
			for i := range floods { // each leaves something in /work, too
				floods[i] = strings.TrimSpace(d.must(t, "-d", "sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.1; done; head -c 300000 /dev/zero > /work/file; yes"))
			}
			later := strings.TrimSpace(d.must(t, "-d", "--schedule=+1h", "true"))
			retried := strings.TrimSpace(d.must(t, "-d", "--retry=1", "--retry-delay=1h", "false"))
			if !eventually(patience, func() bool { return strings.Contains(d.rnx(t.Context(), "job", "status", retried).stdout, "SCHEDULED") }) {
				t.Fatal("no retry")
			}
			for _, id := range floods {
				d.says(t, 0, ``, ``, "job", "exec", id, "touch", "/tmp/go")
			}
			d.fillDisk(t, inodes)
			if !eventually(patience, func() bool { return inodes || freeBytes(t, d.state) == 0 }) {
				t.Fatal("the disk is not full")
			}

			before, err := os.ReadDir(filepath.Join(d.state, "jobs"))
			if err != nil {
				t.Fatal(err)
			}
			if r := d.soon(t, 125, "job", "run", "true"); strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "space") {
				t.Errorf("a new job: %v", r)
			}
			if after, err := os.ReadDir(filepath.Join(d.state, "jobs")); err != nil || len(after) != len(before) {
				t.Errorf("a job that was refused has left something: %d directories, %d before, %v", len(after), len(before), err)
			}

			d.soon(t, 0, "job", "kill", floods[0])
			d.soon(t, 0, "job", "stop", "--grace=1s", naps[0])
			d.soon(t, 0, "job", "kill", naps[1])
			d.soon(t, 0, "job", "cancel", later)
			d.fillDisk(t, inodes)
			d.soon(t, 0, "job", "delete", ended[0])
			d.fillDisk(t, inodes)
			for _, force := range []bool{true, false} {
				if force {
					d.kill(t)
				} else {
					_ = d.cmd.Process.Signal(syscall.SIGTERM)
					_ = d.cmd.Wait()
				}
				d.fillDisk(t, inodes)
				began := time.Now()
				if err := d.start(); err != nil {
					t.Fatalf("start on a full disk: %v", err)
				}
				if took := time.Since(began); took > patience {
					t.Errorf("the daemon took %v to start", took)
				}
				d.fillDisk(t, inodes)
				if r := d.soon(t, 0, "job", "list", "-q"); !strings.Contains(r.stdout, floods[1]) {
					t.Errorf("list: %v", r)
				}
			}
			d.soon(t, 0, "job", "delete", ended[1])
			d.soon(t, 0, "job", "kill", floods[1])
			d.soon(t, 0, "job", "kill", naps[2], naps[3])
			d.soon(t, 0, "job", "stop", retried)
			d.fillDisk(t, inodes)
			d.soon(t, 0, "job", "prune", "--all", "--status=completed")
			d.fillDisk(t, inodes)
			d.soon(t, 0, "job", "delete-all")
			if r := d.soon(t, 0, "job", "list", "-q"); r.stdout != "" {
				t.Errorf("left: %v", r)
			}
			if left, err := os.ReadDir(filepath.Join(d.state, "jobs")); err != nil || len(left) > 0 {
				t.Errorf("directories are left: %v %v", left, err)
			}
		})
	}
}

// TestReadOnlyDisk: when the disk has become read-only, jobs can be ended all the
// same, and what cannot be done says why.
func TestReadOnlyDisk(t *testing.T) {
	t.Parallel()
	d := newDaemonOnDisk(t)
	ended := strings.TrimSpace(d.must(t, "-d", "true"))
	d.says(t, 0, `.*\n`, ``, "job", "wait", ended)
	id, _, cmdline := d.sleeper(t)
	later := strings.TrimSpace(d.must(t, "-d", "--schedule=+1h", "true"))
	// A mount beside, because files are open for writing in this one.
	if err := unix.Mount(d.state, d.state, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	writable := sync.OnceFunc(func() {
		if err := unix.Unmount(d.state, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(writable)
	if err := unix.Mount("", d.state, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"job", "run", "true"}, {"job", "delete", ended}} {
		if r := d.soon(t, map[bool]int{true: 125, false: 1}[args[1] == "run"], args...); strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "read-only") {
			t.Errorf("%q: %v", args, r)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if r := d.rnx(ctx, "job", "kill", id); r.status == -1 {
		t.Errorf("kill: %v", r)
	}
	if !eventually(patience, func() bool { return !running(cmdline) }) {
		t.Error("the job runs on")
	}
	if r := d.rnx(ctx, "job", "cancel", later); r.status == -1 {
		t.Errorf("cancel: %v", r)
	}
	writable()
	d.says(t, 0, `.*\n`, `(?s).*`, "job", "list", "-q", "--status=stopped")
}
