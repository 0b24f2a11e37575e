// Package testenv is what the tests that drive the real rnx and joblet have in
// common: building the programs, starting a daemon, and looking for what it left
// behind.
package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Build builds joblet and rnx into dir, and with race also joblet-race, the daemon with
// the race detector; top is the module's directory.
func Build(top, dir string, race bool) error {
	commands := [][]string{
		{"build", "-tags", "grpcnotrace", "-o", filepath.Join(dir, "rnx"), "./cmd/rnx"},
		{"build", "-tags", "grpcnotrace", "-o", filepath.Join(dir, "joblet"), "./cmd/joblet"},
	}
	if race {
		commands = append(commands, []string{"build", "-race", "-o", filepath.Join(dir, "joblet-race"), "./cmd/joblet"})
	}
	for _, args := range commands {
		cmd := exec.Command("go", args...)
		cmd.Dir = top
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// Output collects what a program writes, while others may look at it.
type Output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// Reset forgets what was written.
func (o *Output) Reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf.Reset()
}

// Run runs a command to its end. Its status is -1 if it could not be started, and
// stderr then says why.
func Run(cmd *exec.Cmd) (stdout, stderr string, status int) {
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.String(), errOut.String(), exit.ExitCode()
	} else if err != nil {
		return out.String(), errOut.String() + err.Error(), -1
	}
	return out.String(), errOut.String(), 0
}

// ErrDied says that a daemon ended while it started, without a word.
var ErrDied = errors.New("the daemon died while it started")

// Serve starts cmd, a daemon that has no --ready-fd yet, and waits until it says
// that it is ready. After an error nothing of it is left.
func Serve(cmd *exec.Cmd) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd.Args = append(cmd.Args, "--ready-fd", "3")
	cmd.ExtraFiles = []*os.File{w}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	if err := r.SetReadDeadline(time.Now().Add(3 * time.Minute)); err != nil {
		return err
	}
	said := make([]byte, 4096)
	n, err := r.Read(said)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w (%w): %v", ErrDied, cmd.Wait(), cmd.Stderr)
	}
	if string(said[:n]) != "ok\n" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return fmt.Errorf("the daemon did not start: %s%v", said[:n], cmd.Stderr)
	}
	return nil
}

// CheckLeaks fails the test if something of the daemon with this run directory is
// left: a mount, a box, a cgroup. What is about to go has a moment.
func CheckLeaks(t *testing.T, run string) {
	t.Helper()
	var left []string
	ok := Eventually(30*time.Second, func() bool {
		left = nil
		if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil && bytes.Contains(mounts, []byte(run)) {
			left = append(left, "a mount below "+run)
		}
		boxes, _ := os.ReadDir(filepath.Join(run, "jobs"))
		for _, b := range boxes {
			left = append(left, "run directory "+b.Name())
		}
		sockets, _ := os.ReadDir(filepath.Join(run, "shims"))
		for _, s := range sockets {
			left = append(left, "socket "+s.Name())
		}
		for _, group := range Groups(run) {
			boxes, _ := filepath.Glob(group + "/*-*")
			for _, b := range boxes {
				left = append(left, "cgroup "+b)
			}
		}
		return len(left) == 0
	})
	if !ok {
		t.Errorf("left on the host: %s", strings.Join(left, ", "))
	}
	// A daemon that was killed leaves its own cgroups, empty, for its next start.
	for _, g := range Groups(run) {
		_ = syscall.Rmdir(g)
	}
}

// Groups returns the own cgroup, in each hierarchy, of the daemon with this run
// directory; those of its boxes are in there.
func Groups(run string) (dirs []string) {
	sum := fnv.New32a()
	sum.Write([]byte(run))
	for _, pattern := range []string{"/sys/fs/cgroup/*/joblet-%08x", "/sys/fs/cgroup/joblet-%08x"} {
		found, _ := filepath.Glob(fmt.Sprintf(pattern, sum.Sum32()))
		dirs = append(dirs, found...)
	}
	return dirs
}

// Eventually polls until ok, at most for the given time: first every 10 ms, then less and
// less often, because many tests start a program to look.
func Eventually(limit time.Duration, ok func() bool) bool {
	const least, most = 10 * time.Millisecond, 250 * time.Millisecond
	for begun := time.Now(); ; time.Sleep(min(max(time.Since(begun)/16, least), most)) {
		late := time.Since(begun) > limit // before the look: this process may be the one that is slow
		if ok() {
			return true
		}
		if late {
			return false
		}
	}
}
