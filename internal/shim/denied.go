package shim

import (
	"cmp"
	"os"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// denied has the calls that the job's filter has refused, of a job that is to know
// them. Such a job's filter asks the shim wherever it would refuse
// (SECCOMP_RET_USER_NOTIF), the shim runs the plain filter over the same call,
// counts, and answers with the error that it gives. It never lets a call through,
// never looks at the job's memory, and when it is gone the kernel refuses in its
// place (ENOSYS). Kills stay the kernel's.
type denied struct {
	listener int // of seccomp(2); -1: none
	filter   []unix.SockFilter
	calls    map[protocol.DeniedKey]*tally
	tokens   float64   // answers that may be given now
	filledAt time.Time // tokens are of then
	retryAt  time.Time // there are none until then
}

type tally struct {
	count uint64
	args  [6]uint32 // of the first
}

const (
	// An answer costs the shim, which the job's CPU limit does not bind, 15 µs in a
	// row and 35 µs alone. So, after a burst, a flood has to wait: 200 answers in a
	// second are 1 % of a processor.
	deniedBurst    = 2000
	deniedPerSec   = 200
	deniedRetry    = 50 * time.Millisecond
	deniedAtOnce   = 64  // then the loop looks at what else there is
	deniedDetailed = 128 // kinds of which the arguments are told apart
	deniedNumbers  = 600 // beyond the highest number of a call, by far

	// deniedRecordSize is more than a Record with all kinds takes.
	deniedRecordSize = 64 << 10
)

// seccompNotif and seccompNotifResp are those of linux/seccomp.h.
type seccompNotif struct {
	id    uint64
	pid   uint32
	flags uint32
	data  protocol.SeccompData
}

type seccompNotifResp struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

// takeListener takes the listener of the job's filter.
func (s *shim) takeListener(run *protocol.Run) error {
	fd, err := s.process.ReceiveListener()
	if err != nil {
		return err
	}
	s.denied = denied{
		listener: fd, filter: run.Instructions(), calls: make(map[protocol.DeniedKey]*tally),
		tokens: deniedBurst, filledAt: time.Now(),
	}
	return nil
}

// pollFd says what to wait for.
func (d *denied) pollFd(now time.Time) unix.PollFd {
	fd := unix.PollFd{Fd: int32(d.listener), Events: unix.POLLIN}
	if now.Before(d.retryAt) {
		fd.Fd = -1
	}
	return fd
}

// answer answers calls that wait.
func (d *denied) answer() {
	for i := range deniedAtOnce {
		if d.listener < 0 || !d.mayAnswer(time.Now()) {
			return
		}
		fds := []unix.PollFd{{Fd: int32(d.listener), Events: unix.POLLIN}} // to receive would wait for one
		if n, _ := unix.Poll(fds, 0); n != 1 {
			if i > 0 { // but a job that takes its calls back shall not wake us for nothing
				d.tokens++
			}
			return
		}
		if fds[0].Revents&unix.POLLIN == 0 { // no process is left that has the filter
			d.close()
			return
		}
		var call seccompNotif
		switch err := listenerIoctl(d.listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&call)); err {
		case nil:
			d.refuse(&call)
		case unix.ENOENT, unix.EINTR: // whose process has gone
		default: // never; the kernel refuses in our place
			os.Stderr.WriteString("joblet-shim: receive a denied call: " + err.Error() + "\n")
			d.close()
		}
	}
}

// mayAnswer takes a token, if there is one.
func (d *denied) mayAnswer(now time.Time) bool {
	d.tokens = min(deniedBurst, d.tokens+now.Sub(d.filledAt).Seconds()*deniedPerSec)
	d.filledAt = now
	if d.tokens < 1 {
		d.retryAt = now.Add(deniedRetry)
		return false
	}
	d.tokens--
	return true
}

func (d *denied) refuse(call *seccompNotif) {
	verdict, looked, pointers := protocol.RunFilter(d.filter, &call.data)
	errno := verdict & unix.SECCOMP_RET_DATA
	if verdict&unix.SECCOMP_RET_ACTION_FULL != unix.SECCOMP_RET_ERRNO || errno == 0 { // never
		errno = uint32(unix.EPERM)
	}
	answer := seccompNotifResp{id: call.id, errno: -int32(errno)}
	if listenerIoctl(d.listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&answer)) != nil {
		return // ENOENT: a signal has interrupted the call; if it is made again, it comes again
	}
	for i := range call.data.Args { // what a pointer leads to is private, and would make a kind of each
		if pointers&(1<<i) != 0 && call.data.Args[i] != 0 {
			call.data.Args[i] = 1
		}
	}
	d.count(&call.data, errno, looked)
}

// count keeps the number of kinds in bounds: those of ordinary numbers are few, and
// beyond deniedDetailed neither arguments nor made-up numbers are told apart.
func (d *denied) count(call *protocol.SeccompData, errno uint32, looked uint8) {
	key := protocol.DeniedKey{Number: call.Number, Errno: errno, Looked: looked}
	var args [6]uint32
	for i := range args {
		if looked&(1<<i) != 0 {
			args[i] = uint32(call.Args[i])
		}
	}
	key.Args = args
	if d.calls[key] == nil && len(d.calls) >= deniedDetailed {
		key.Looked, key.Args = 0, [6]uint32{}
		if key.Number >= deniedNumbers {
			key.Number = protocol.OtherCalls
		}
	}
	t := d.calls[key]
	if t == nil {
		t = &tally{args: args}
		d.calls[key] = t
	}
	t.count++
}

// list returns what was counted, the most frequent first.
func (d *denied) list() (all []protocol.Denied) {
	for key, t := range d.calls {
		key.Args = t.args
		all = append(all, protocol.Denied{DeniedKey: key, Count: t.count})
	}
	slices.SortFunc(all, func(a, b protocol.Denied) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Number, b.Number), cmp.Compare(a.Errno, b.Errno), slices.Compare(a.Args[:], b.Args[:]))
	})
	return all
}

func (d *denied) close() {
	if d.listener >= 0 {
		unix.Close(d.listener)
		d.listener = -1
	}
}

func listenerIoctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
