package native

import (
	"bytes"
	"context"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// orphanPause is how long a child of ours that has ended may wait for the goroutine that has
// started it, before it is looked at again.
const orphanPause = 100 * time.Millisecond

// inheritsOrphans reports whether processes whose parent dies become our children:
// as PID 1, of a container say, or as a subreaper (PR_SET_CHILD_SUBREAPER).
func inheritsOrphans() bool {
	var is int32
	_, _, errno := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&is)), 0)
	return os.Getpid() == 1 || errno == 0 && is != 0
}

// reapOrphans takes the status of processes of jobs whose shim was killed, as
// init does where there is one. Without that PID 1 of a job does not end: the
// kernel waits for all who were in its namespace (zap_pid_ns_processes in
// kernel/pid_namespace.c), those that joined it among them.
func reapOrphans(ctx context.Context) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	for {
		var again <-chan time.Time
		if !takeOrphans() {
			again = time.After(orphanPause)
		}
		select {
		case <-ctx.Done():
			return
		case <-ended:
		case <-again:
		}
	}
}

// takeOrphans takes the statuses there are, up to one that another goroutine waits
// for: then it returns false.
func takeOrphans() bool {
	for {
		pid, err := endedChild()
		switch {
		case err == unix.EINTR:
		case err != nil || pid == 0:
			return true
		case !inNamespaceBelow(pid):
			return false
		default:
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
}

// endedChild returns a child that has ended and leaves its status; 0: there is
// none.
func endedChild() (int, error) {
	var info struct { // siginfo_t
		signo, errno, code, _ int32
		pid                   int32
		_                     [108]byte
	}
	_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(info.pid), nil
}

// inNamespaceBelow reports whether a process has a number in a PID namespace below
// ours. None has that we have started: of jobs' processes others are the parents.
func inNamespaceBelow(pid int) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(status, []byte("\nNSpid:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return len(bytes.Fields(line)) > 1
}
