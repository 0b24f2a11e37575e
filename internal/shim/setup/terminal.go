package setup

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

const devptsMaster = 5<<8 | 2 // device number of ptmx, as Stat_t has small ones

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

// ReceiveListener takes the listener of the system call filter, which the process has
// sent. Nothing in the job has it: the process's own went with execve.
func (p *Process) ReceiveListener() (int, error) {
	return p.receiveDescriptor("receive the listener of the system call filter")
}

// receiveDescriptor takes what the process has sent; what names it for the error.
func (p *Process) receiveDescriptor(what string) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(p.socket, make([]byte, 1), oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, Step(what, err)
	}
	fd, err := protocol.OneDescriptor(oob[:n])
	if err != nil {
		return -1, Step(what, err)
	}
	return fd, nil
}

// ReceiveTerminal takes the master that openTerminal has sent, which does not block.
func (p *Process) ReceiveTerminal() (int, error) {
	fd, err := p.receiveDescriptor("receive the terminal")
	if err != nil {
		return -1, err
	}
	// It was opened where the job may have its hands: look at what it is.
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Fstat(fd, &st) != nil || unix.Fstatfs(fd, &fs) != nil ||
		fs.Type != unix.DEVPTS_SUPER_MAGIC || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != devptsMaster {
		unix.Close(fd)
		return -1, Step("receive the terminal: the job's /dev/pts is not what it was", unix.ENODEV)
	}
	return fd, unix.SetNonblock(fd, true)
}
