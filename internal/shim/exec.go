package shim

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// hangUpGrace is how long a further process whose caller is gone has between SIGHUP
// and SIGKILL.
const hangUpGrace = 2 * time.Second

// exec is the life of the shim of a further process.
func (s *shim) exec(x *protocol.Exec) error {
	daemon := s.conns[0]
	for fd := protocol.ExecTerminalFD; fd <= protocol.ExecStderrFD; fd++ {
		unix.CloseOnExec(fd)
	}
	err := s.process.Join(x)
	if err == nil && x.Run.Terminal != nil {
		err = s.handOverTerminal()
	}
	if err != nil {
		s.process.Kill()
		return protocol.WriteMessage(daemon, protocol.Event{Failed: s.failure(err)})
	}
	now := time.Now().UnixNano()
	s.record.StartedNanos = now
	if err := protocol.WriteMessage(daemon, protocol.Event{Started: &protocol.Started{PID: s.process.PID, IDBase: x.IDBase, UnixNanos: now}}); err != nil {
		s.process.Kill()
		return nil // no daemon waits for it
	}
	s.watchExec(daemon)
	s.reap()
	_ = protocol.WriteMessage(daemon, protocol.Event{Ended: &protocol.Exit{Code: s.record.Code, Signal: s.record.Signal}})
	return nil
}

// handOverTerminal sends the master to the daemon, which then alone has it:
// whatever ends the daemon hangs the process up.
func (s *shim) handOverTerminal() error {
	fd, err := s.process.ReceiveTerminal()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return sendDescriptor(protocol.ExecTerminalFD, fd)
}

// watchExec passes signals on until the process has ended. When the daemon is
// gone, its output has no reader: it is hung up, then killed.
func (s *shim) watchExec(daemon *conn) {
	pidfd := s.process.PIDFD
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}, {Fd: int32(daemon.fd), Events: unix.POLLIN}}
	timeout := -1
	for {
		n, err := unix.Poll(fds, timeout)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return // no descriptor of ours can be bad
		case fds[0].Revents != 0:
			return
		case n == 0:
			_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		default:
			var req protocol.Request
			if err := protocol.ReadMessage(daemon, &req); err != nil {
				fds[1].Fd = -1
				timeout = int(hangUpGrace.Milliseconds())
				for _, sig := range []syscall.Signal{unix.SIGHUP, unix.SIGCONT} {
					_ = unix.PidfdSendSignal(pidfd, sig, nil, 0)
				}
			} else if req.Signal > 0 {
				_ = unix.PidfdSendSignal(pidfd, syscall.Signal(req.Signal), nil, 0)
			}
		}
	}
}
