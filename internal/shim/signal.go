package shim

import (
	"bytes"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// statusOf reads the proc_pid_status(5) of a process.
func statusOf(pid int) ([]byte, error) {
	return os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
}

// handles reports whether a process catches sig or waits for it (SigCgt and SigBlk
// in proc_pid_status(5)).
func handles(pid int, sig syscall.Signal) bool {
	status, err := statusOf(pid)
	if err != nil {
		return true
	}
	mask := statusMask(status, "SigCgt:\t") | statusMask(status, "SigBlk:\t")
	return mask&(1<<(sig-1)) != 0
}

// endingSignals has a bit for each signal whose default action ends a process
// (signal(7)).
const endingSignals = ^uint64(1<<(unix.SIGCHLD-1) | 1<<(unix.SIGCONT-1) | 1<<(unix.SIGSTOP-1) | 1<<(unix.SIGTSTP-1) |
	1<<(unix.SIGTTIN-1) | 1<<(unix.SIGTTOU-1) | 1<<(unix.SIGURG-1) | 1<<(unix.SIGWINCH-1) | 1<<(unix.SIGKILL-1))

// spares reports whether the kernel drops a signal for PID 1 that would end any other
// process (pid_namespaces(7)): PID 1 neither handles nor blocks nor ignores it.
func spares(pid int, sig syscall.Signal) bool {
	status, err := statusOf(pid)
	return err == nil && endsBy(status, sig)
}

// endsBy is spares for a proc_pid_status(5).
func endsBy(status []byte, sig syscall.Signal) bool {
	if !bytes.Contains(status, []byte("SigIgn:\t")) {
		return false
	}
	mask := statusMask(status, "SigCgt:\t") | statusMask(status, "SigBlk:\t") | statusMask(status, "SigIgn:\t")
	return endingSignals&^mask&(1<<(sig-1)) != 0
}

func statusMask(status []byte, field string) (mask uint64) {
	for i := 0; i+len(field) <= len(status); i++ {
		if string(status[i:i+len(field)]) != field {
			continue
		}
		for _, c := range status[i+len(field):] {
			switch {
			case c >= '0' && c <= '9':
				mask = mask<<4 | uint64(c-'0')
			case c >= 'a' && c <= 'f':
				mask = mask<<4 | uint64(c-'a'+10)
			default:
				return mask
			}
		}
	}
	return mask
}
