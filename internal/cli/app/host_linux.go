package app

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

const (
	idleExit     = "10m"
	startTimeout = 60 * time.Second // recovery of many jobs takes its time
	maxDaemonLog = 10 << 20
)

// startDaemon starts the daemon of this machine and connects to it. Of several
// rnx that come here at once one starts it and the others find it.
func startDaemon(ctx context.Context, host string) (*client.Client, error) {
	if os.Geteuid() != 0 {
		return nil, errNoDaemon(host, `start one as root with "joblet serve", or name another with --host or RNX_HOST`)
	}
	if err := os.MkdirAll(runDir(), 0o755); err != nil {
		return nil, fmt.Errorf("cannot create the run directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(runDir(), "start.lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the start lock: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("cannot take the start lock: %w", err)
	}
	c, err := client.Dial(ctx, host)
	if err == nil || !silent(err) {
		return c, err
	}
	program, err := daemonProgram()
	if err != nil {
		return nil, errNoDaemon(host, err.Error())
	}
	log, err := openDaemonLog()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if err := spawnDaemon(ctx, program, log); err != nil {
		return nil, joblet.Errorf(joblet.Unavailable, "start %s: %w (its log: %s)", program, err, log.Name())
	}
	return client.Dial(ctx, host)
}

// daemonProgram finds joblet beside rnx, or in PATH.
func daemonProgram() (string, error) {
	if self, err := os.Executable(); err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			beside := filepath.Join(filepath.Dir(self), "joblet")
			if unix.Access(beside, unix.X_OK) == nil {
				return beside, nil
			}
		}
	}
	program, err := exec.LookPath("joblet")
	if err != nil {
		return "", errors.New(`the program "joblet" is neither beside rnx nor in PATH`)
	}
	return program, nil
}

// openDaemonLog opens the log of a daemon that rnx starts, which keeps one
// older file.
func openDaemonLog() (*os.File, error) {
	dir := cmp.Or(os.Getenv("JOBLET_STATE_DIR"), "/var/lib/joblet")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot create the state directory: %w", err)
	}
	name := filepath.Join(dir, "joblet.log")
	if st, err := os.Lstat(name); err == nil && st.Size() > maxDaemonLog {
		if err := os.Rename(name, name+".1"); err != nil {
			return nil, fmt.Errorf("cannot rename the old daemon log: %w", err)
		}
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the daemon log: %w", err)
	}
	return f, nil
}

// spawnDaemon starts the daemon in a session of its own and returns once it
// answers calls, which it says through a pipe.
func spawnDaemon(ctx context.Context, program string, log *os.File) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(program, "serve", "--idle-exit="+idleExit, "--ready-fd=3")
	cmd.Dir = "/"
	cmd.Stderr = log
	cmd.Stdout = log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(0, 1)) })()
	answer, err := bufio.NewReader(io.LimitReader(r, 64<<10)).ReadString('\n')
	answer = strings.TrimSpace(answer)
	switch {
	case answer == "ok":
		return cmd.Process.Release() // init looks after it from now on
	case err == nil:
		_ = cmd.Wait() // it said why, and is ending
		return errors.New(answer)
	case errors.Is(err, os.ErrDeadlineExceeded):
		// It may still come to answer; the next rnx then finds it.
		_ = cmd.Process.Release()
		return fmt.Errorf("it was not ready after %v", startTimeout)
	default:
		return fmt.Errorf("it exited without an error message: %w", cmp.Or(cmd.Wait(), err))
	}
}
