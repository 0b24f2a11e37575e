package shim

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// terminal is the job's pseudo-terminal, of its own devpts, seen from the
// master's side: output goes from there into the log like that of a pipe, and
// what is typed the daemon writes there itself, into a duplicate. The job never
// has anybody else's terminal, so there is none into which it could push input,
// or that it could keep.
type terminal struct {
	master  int       // -1: the job has no terminal
	retryAt time.Time // see hungUp
}

const (
	hungUpRetry  = 100 * time.Millisecond
	devptsMaster = 5<<8 | 2 // device number of ptmx, as Stat_t has small ones
)

// openTerminal makes a pseudo-terminal in the job's devpts, as the job's root
// and in its root, sends the master to the shim and makes the other side
// standard input, output and error. No other code of the job runs in this
// process before.
func openTerminal(p *program, run *protocol.Run) {
	const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
	p.openIn("open /dev/pts/ptmx", "/dev/pts/ptmx", flags, jobPath|unix.RESOLVE_NO_SYMLINKS).into(slotMaster)
	p.call("unlock the terminal", unix.SYS_IOCTL, slotMaster, unix.TIOCSPTLCK, p.alloc(4)).slot(0)
	p.call("open the terminal", unix.SYS_IOCTL, slotMaster, unix.TIOCGPTPEER, flags).slot(0).into(slotTerminal)
	p.call("set the size of the terminal", unix.SYS_IOCTL, slotMaster, unix.TIOCSWINSZ, put(p, unix.Winsize{Row: run.Terminal.Rows, Col: run.Terminal.Columns})).slot(0)
	p.call("set the terminal's modes", unix.SYS_IOCTL, slotTerminal, unix.TCSETS, put(p, saneModes())).slot(0)
	if run.UID != 0 {
		p.call("give the user the terminal", unix.SYS_FCHOWN, slotTerminal, uintptr(run.UID), ttyGroup).slot(0)
	}
	p.call("let all users write to the terminal", unix.SYS_FCHMOD, slotTerminal, protocol.OutputMode).slot(0) // /dev/stdout leads there
	p.add("send the terminal to the shim", op{kind: opSend, save: slotMaster})
	for fd := range uintptr(3) {
		p.call("connect the terminal", unix.SYS_DUP3, slotTerminal, fd, 0).slot(0)
	}
	for _, slot := range []uintptr{slotMaster, slotTerminal} {
		p.call("close the terminal", unix.SYS_CLOSE, slot).slot(0)
	}
}

// controlTerminal makes the terminal that is standard input the controlling one
// of the session that the process leads.
func controlTerminal(p *program) {
	p.call("make the terminal the controlling one", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
}

// saneModes are the modes of a new terminal as everybody expects them: the
// kernel's own, and UTF-8, so that erasing takes away whole characters.
func saneModes() (t unix.Termios) {
	t.Iflag = unix.ICRNL | unix.IXON | unix.IUTF8
	t.Oflag = unix.OPOST | unix.ONLCR
	t.Cflag = unix.B38400 | unix.CS8 | unix.CREAD | unix.HUPCL
	t.Lflag = unix.ISIG | unix.ICANON | unix.ECHO | unix.ECHOE | unix.ECHOK | unix.ECHOCTL | unix.ECHOKE | unix.IEXTEN
	for i, c := range map[int]uint8{
		unix.VINTR: 'C' & 0x1f, unix.VQUIT: '\\' & 0x1f, unix.VERASE: 0x7f, unix.VKILL: 'U' & 0x1f, unix.VEOF: 'D' & 0x1f,
		unix.VMIN: 1, unix.VSTART: 'Q' & 0x1f, unix.VSTOP: 'S' & 0x1f, unix.VSUSP: 'Z' & 0x1f, unix.VREPRINT: 'R' & 0x1f,
		unix.VDISCARD: 'O' & 0x1f, unix.VWERASE: 'W' & 0x1f, unix.VLNEXT: 'V' & 0x1f,
	} {
		t.Cc[i] = c
	}
	return t
}

// send sends the descriptor in a slot, with one byte, to the shim.
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) send(slot uintptr) syscall.Errno {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&a.control))
	h.Len = unix.SizeofCmsghdr + 4
	h.Level = unix.SOL_SOCKET
	h.Type = unix.SCM_RIGHTS
	*(*int32)(unsafe.Pointer(uintptr(unsafe.Pointer(h)) + unix.SizeofCmsghdr)) = int32(a.slots[slot])
	a.msg.Controllen = unix.SizeofCmsghdr + 8
	_, _, errno := syscall.RawSyscall(unix.SYS_SENDMSG, a.slots[slotSocket], uintptr(unsafe.Pointer(&a.msg)), unix.MSG_NOSIGNAL)
	return errno
}

// receiveDescriptor takes what the first process has sent; what names it for the
// error.
func receiveDescriptor(socket int, what string) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, step(what, err)
	}
	fd, err := protocol.OneDescriptor(oob[:n])
	if err != nil {
		return -1, step(what, err)
	}
	return fd, nil
}

// receiveMaster takes the master that openTerminal has sent.
func receiveMaster(socket int) (int, error) {
	fd, err := receiveDescriptor(socket, "receive the terminal")
	if err != nil {
		return -1, err
	}
	// It was opened where the job may have its hands: look at what it is.
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Fstat(fd, &st) != nil || unix.Fstatfs(fd, &fs) != nil ||
		fs.Type != unix.DEVPTS_SUPER_MAGIC || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != devptsMaster {
		unix.Close(fd)
		return -1, step("receive the terminal: the job's /dev/pts is not what it was", unix.ENODEV)
	}
	return fd, unix.SetNonblock(fd, true)
}

// sendDescriptor sends a descriptor to the daemon.
func sendDescriptor(socket, fd int) error { return sendDescriptors(socket, fd) }

// sendDescriptors sends them with one byte.
func sendDescriptors(socket int, fds ...int) error {
	if _, err := unix.SendmsgN(socket, []byte{1}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL); err != nil {
		return step("hand a descriptor over", err)
	}
	return nil
}

// takeTerminal puts the terminal of a job that was just started in the place of
// its pipes.
func (m *shim) takeTerminal() error {
	fd, err := receiveMaster(m.goSocket)
	if err != nil {
		return err
	}
	for _, pipe := range m.output {
		unix.Close(pipe)
	}
	m.terminal.master = fd
	m.output = [2]int{fd, -1}
	return nil
}

// window returns the size of the job's terminal, or nil without one.
func (m *shim) window() *protocol.WindowSize {
	if m.terminal.master < 0 {
		return nil
	}
	ws, err := unix.IoctlGetWinsize(m.terminal.master, unix.TIOCGWINSZ)
	if err != nil {
		return nil
	}
	return &protocol.WindowSize{Rows: ws.Row, Columns: ws.Col}
}

// resize gives the terminal another size, of which the kernel tells the
// foreground processes (SIGWINCH). With redraw they are told in any case: the
// screen on which they drew is another.
func (m *shim) resize(r *protocol.Resize) {
	t := &m.terminal
	if t.master < 0 {
		return
	}
	before := m.window()
	if r.Size != (protocol.WindowSize{}) {
		_ = unix.IoctlSetWinsize(t.master, unix.TIOCSWINSZ, &unix.Winsize{Row: r.Size.Rows, Col: r.Size.Columns})
	}
	if after := m.window(); r.Redraw && before != nil && after != nil && *before == *after {
		if group, err := unix.IoctlGetInt(t.master, unix.TIOCGPGRP); err == nil && group > 1 {
			_ = unix.Kill(-group, unix.SIGWINCH)
		}
	}
}

// hungUp reports whether the end of the output is no more than that nobody has
// the terminal open just now, as after a program that has closed it and may
// open it again. It is looked at again after a while.
func (m *shim) hungUp() bool {
	if m.terminal.master < 0 || m.record.EndedNanos != 0 {
		return false
	}
	m.terminal.retryAt = time.Now().Add(hungUpRetry)
	return true
}

// interrupt ends a job whose PID 1 would be ended by a key like Ctrl-C, were it
// not PID 1: nobody expects "sleep 60" in a terminal to survive Ctrl-C.
func (m *shim) interrupt(sig syscall.Signal) {
	if m.terminal.master < 0 || m.record.EndedNanos != 0 {
		return
	}
	group, err := unix.IoctlGetInt(m.terminal.master, unix.TIOCGPGRP)
	if err != nil || group != m.child { // PID 1 leads a session and so its own group
		return
	}
	if m.endedBy == 0 && m.spares(sig) {
		m.settleTyped()
		m.endAs(sig)
	}
}

// settleTyped returns once the terminal has taken in what was typed, and shown it
// ("^C"): a worker of the kernel's does that some time after the write, and what
// it has not come to when the last process is gone is dropped. To poll the other
// side waits for the worker (n_tty_poll in drivers/tty/n_tty.c).
func (m *shim) settleTyped() {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(m.terminal.master), unix.TIOCGPTPEER, unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	unix.Close(int(fd))
}
