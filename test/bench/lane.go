package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runTimeout bounds one run of one contender: far above any sane figure.
const runTimeout = 30 * time.Second

// lane is an operating system thread of its own that starts programs. A child
// gets the namespaces of the thread that forks it, so switching the thread to
// the peers' mount namespace before the clock starts costs a contender nothing,
// where a wrapping program would.
type lane struct {
	calls  chan func()
	stderr *os.File // of the programs, read when one fails
	null   *os.File
	ns     *os.File // that the thread is in
	b      *bench
}

func (b *bench) newLane() (*lane, error) {
	stderr, err := os.CreateTemp(b.dir, "stderr-")
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	l := &lane{calls: make(chan func()), stderr: stderr, null: null, ns: b.host, b: b}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the lane
		// A thread that shares its root and working directory with others may
		// not change mount namespaces, setns(2).
		ready <- os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_FS))
		for f := range l.calls {
			f()
		}
	}()
	return l, <-ready
}

func (l *lane) close() {
	close(l.calls)
	l.stderr.Close()
	l.null.Close()
}

// run runs a program in the mount namespace ns and returns how long that took,
// from before the fork until after the wait.
func (l *lane) run(ctx context.Context, ns *os.File, argv []string) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), runTimeout)
	defer cancel()
	l.do(func() {
		var cmd *exec.Cmd
		if cmd, err = l.command(ctx, ns, argv); err != nil {
			return
		}
		start := time.Now()
		err = cmd.Run()
		took = time.Since(start)
		if err != nil {
			err = l.explain(cmd, err)
		}
	})
	return took, err
}

// start starts a program in the mount namespace ns.
func (l *lane) start(ctx context.Context, ns *os.File, argv []string) (cmd *exec.Cmd, err error) {
	l.do(func() {
		if cmd, err = l.command(ctx, ns, argv); err != nil {
			return
		}
		if err = cmd.Start(); err != nil {
			err = l.explain(cmd, err)
		}
	})
	return cmd, err
}

func (l *lane) do(f func()) {
	done := make(chan struct{})
	l.calls <- func() { defer close(done); f() }
	<-done
}

func (l *lane) command(ctx context.Context, ns *os.File, argv []string) (*exec.Cmd, error) {
	if l.ns != ns {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return nil, os.NewSyscallError("setns", err)
		}
		l.ns = ns
	}
	if err := l.stderr.Truncate(0); err != nil {
		return nil, err
	}
	if _, err := l.stderr.Seek(0, 0); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = l.b.env
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = l.null, l.null, l.stderr
	// Out of reach of the terminal's Ctrl-C: the bench ends its programs itself.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd, nil
}

// explain adds what the program said to its failure.
func (l *lane) explain(cmd *exec.Cmd, err error) error {
	said := make([]byte, 64<<10)
	n, _ := l.stderr.ReadAt(said, 0)
	if text := bytes.TrimSpace(said[:n]); len(text) > 0 {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, lastLine(text))
	}
	return fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err)
}

// children returns the direct children of a process.
func children(pid int) ([]int, error) {
	// Orphans become children of some thread of the subreaper, not of the first.
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range files {
		data, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // the thread or the process has ended
		}
		if err != nil {
			return nil, err
		}
		for field := range strings.FieldsSeq(string(data)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f, err)
			}
			pids = append(pids, child)
		}
	}
	return pids, nil
}

// waitOrphans waits for the processes that ended programs have left to the
// bench, such as podman's conmon with its clean-up: they would slow down
// whatever is measured next. One that outstays runTimeout is killed. known are
// children that may stay.
func waitOrphans(known ...int) error {
	for {
		pids, err := children(os.Getpid())
		if err != nil {
			return err
		}
		pids = slices.DeleteFunc(pids, func(pid int) bool { return slices.Contains(known, pid) })
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			kill := time.AfterFunc(runTimeout, func() { _ = unix.Kill(pid, unix.SIGKILL) })
			err := reap(pid)
			kill.Stop()
			if err != nil {
				return err
			}
		}
	}
}

// killOrphans kills and reaps all children, and theirs as they become ours. It
// kills all before it waits for one: the first process of a PID namespace ends
// only when every other in it has been reaped, which may be ours to do.
func killOrphans() error {
	for {
		pids, err := children(os.Getpid())
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		if err := reap(-1); err != nil { // whichever is first
			return err
		}
	}
}

func reap(pid int) error {
	for {
		_, err := unix.Wait4(pid, nil, 0, nil)
		if err == nil || err == unix.ECHILD {
			return nil
		}
		if err != unix.EINTR {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
	}
}
