package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestDaemonIsInit: a daemon that is PID 1, as in a container, inherits what the
// shims of killed jobs and processes leave, and takes their statuses. Without
// that PID 1 of a job waits for ever for a process that joined it.
func TestDaemonIsInit(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.stop()
	d.bin = filepath.Join(t.TempDir(), "init")
	script := fmt.Sprintf("#!/bin/sh\nmount --make-rprivate / && mount -t proc proc /proc && exec %s \"$@\"\n", binDir+"/joblet")
	if err := os.WriteFile(d.bin, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	d.sys = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		killed []bool // the job's own shim, that of the process
	}{
		{"the shim of a process", []bool{false, true}},
		{"that of the job", []bool{true, false}},
		{"both", []bool{true, true}},
	} {
		id := strings.TrimSpace(d.must(t, "-d", "sleep", "600"))
		x := d.command(patient(t), "job", "exec", id, "sleep", "608")
		if err := x.Start(); err != nil {
			t.Fatal(err)
		}
		var shims [2]int
		if !eventually(patience, func() bool {
			shims = d.shimsOf(t)
			out := d.rnx(t.Context(), "job", "exec", id, "ps", "-eo", "args").stdout
			return shims[0] > 0 && shims[1] > 0 && strings.Contains(out, "sleep 608")
		}) {
			t.Fatalf("%s: shims %v", test.name, shims)
		}
		for i, pid := range slices.Backward(shims[:]) { // with the job's own the other ends by itself
			if test.killed[i] {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = x.Wait() // it says that its shim died
		d.rnx(t.Context(), "job", "kill", id)
		if r := d.rnx(patient(t), "job", "wait", id); r.status == 0 || strings.Contains(r.stderr, "context") {
			t.Fatalf("%s: %v", test.name, r)
		}
		if !eventually(patience, func() bool { return len(d.zombies(t)) == 0 }) {
			t.Fatalf("%s: nobody has taken the status of %v", test.name, d.zombies(t))
		}
	}
	// Those that the daemon has started itself are waited for where they were.
	if r := d.rnx(t.Context(), "job", "run", "true"); r.status != 0 {
		t.Errorf("%v", r)
	}
}

// shimsOf returns the shims of the only job and of the only process in it, 0
// for none.
func (d *daemon) shimsOf(t *testing.T) (found [2]int) {
	t.Helper()
	out, _ := exec.Command("pgrep", "-P", strconv.Itoa(d.cmd.Process.Pid)).Output()
	for _, field := range strings.Fields(string(out)) {
		pid, _ := strconv.Atoi(field)
		line, _ := os.ReadFile("/proc/" + field + "/cmdline")
		args := bytes.Split(bytes.TrimRight(line, "\x00"), []byte{0})
		children, _ := exec.Command("pgrep", "-P", field, "-x", "sleep").Output()
		if len(children) == 0 { // a spare one
			continue
		}
		if len(args) == 3 {
			found[1] = pid
		} else {
			found[0] = pid
		}
	}
	return found
}

// zombies returns the children of the daemon that nobody has waited for.
func (d *daemon) zombies(t *testing.T) []string {
	t.Helper()
	out, _ := exec.Command("ps", "--ppid", strconv.Itoa(d.cmd.Process.Pid), "-o", "pid=,stat=,args=").Output()
	var found []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], "Z") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}
