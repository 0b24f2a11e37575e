package shim

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// terminal is the job's pseudo-terminal, of its own devpts, seen from the
// master's side: output goes from there into the log like that of a pipe, and
// what is typed the daemon writes there itself, into a duplicate. The job never
// has another terminal, so there is none into which it could push input,
// or that it could keep.
type terminal struct {
	master int // -1: the job has no terminal
}

// takeTerminal puts the terminal of a job that was just started in the place of
// its pipes.
func (s *shim) takeTerminal() error {
	fd, err := s.process.ReceiveTerminal()
	if err != nil {
		return err
	}
	s.terminal.master = fd
	s.out.takeTerminal(fd)
	return nil
}

// window returns the size of the terminal, or nil without one.
func (t *terminal) window() *protocol.WindowSize {
	if t.master < 0 {
		return nil
	}
	ws, err := unix.IoctlGetWinsize(t.master, unix.TIOCGWINSZ)
	if err != nil {
		return nil
	}
	return &protocol.WindowSize{Rows: ws.Row, Columns: ws.Col}
}

// resize gives the terminal another size, of which the kernel tells the
// foreground processes (SIGWINCH). With redraw they are told in any case: the
// screen on which they drew is another.
func (t *terminal) resize(r *protocol.Resize) {
	if t.master < 0 {
		return
	}
	before := t.window()
	if r.Size != (protocol.WindowSize{}) {
		_ = unix.IoctlSetWinsize(t.master, unix.TIOCSWINSZ, &unix.Winsize{Row: r.Size.Rows, Col: r.Size.Columns})
	}
	if after := t.window(); r.Redraw && before != nil && after != nil && *before == *after {
		if group, err := unix.IoctlGetInt(t.master, unix.TIOCGPGRP); err == nil && group > 1 {
			_ = unix.Kill(-group, unix.SIGWINCH)
		}
	}
}

// interrupt ends a job whose PID 1 would be ended by a key like Ctrl-C, were it
// not PID 1: nobody expects "sleep 60" in a terminal to survive Ctrl-C.
func (s *shim) interrupt(sig syscall.Signal) {
	if s.terminal.master < 0 || s.record.EndedNanos != 0 {
		return
	}
	group, err := unix.IoctlGetInt(s.terminal.master, unix.TIOCGPGRP)
	if err != nil || group != s.process.PID { // PID 1 leads a session and so its own group
		return
	}
	if s.endedBy == 0 && spares(s.process.PID, sig) {
		s.terminal.settle()
		s.endAs(sig)
	}
}

// settle returns once the terminal has taken in what was typed, and shown it
// ("^C"): a worker of the kernel's does that some time after the write, and what
// it has not come to when the last process is gone is dropped. To poll the other
// side waits for the worker (n_tty_poll in drivers/tty/n_tty.c).
func (t *terminal) settle() {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(t.master), unix.TIOCGPTPEER, unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	unix.Close(int(fd))
}
