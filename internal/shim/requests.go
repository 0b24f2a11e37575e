package shim

import (
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/shim/setup"
)

const maxConns = 64 // most are short-lived

// conn is a connection to a daemon.
type conn struct{ fd int }

func (c *conn) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(c.fd, p)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (c *conn) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		n, err := unix.SendmsgN(c.fd, p[written:], nil, nil, unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

// tell sends an event to every daemon; those that do not take it are dropped.
func (s *shim) tell(e protocol.Event) {
	kept := s.conns[:0]
	for _, c := range s.conns {
		if err := protocol.WriteMessage(c, e); err != nil {
			unix.Close(c.fd)
			continue
		}
		kept = append(kept, c)
	}
	s.conns = kept
}

// serve reads the requests that have come.
func (s *shim) serve(fds []unix.PollFd) {
	kept := s.conns[:0]
	for i, c := range s.conns {
		if i < len(fds) && fds[i].Revents != 0 {
			var req protocol.Request
			if err := protocol.ReadMessage(c, &req); err != nil {
				unix.Close(c.fd) // the daemon is gone; another will come
				continue
			}
			if req.StdinBegin {
				s.stdin.take(c.fd)
				continue
			}
			if req.Terminal || req.Work {
				fd := s.process.Work
				if req.Terminal {
					fd = s.terminal.master
				}
				if fd >= 0 {
					_ = sendDescriptor(c.fd, fd) // or the end tells the daemon
				}
				unix.Close(c.fd)
				continue
			}
			s.handle(&req)
		}
		kept = append(kept, c)
	}
	s.conns = kept
}

func (s *shim) handle(req *protocol.Request) {
	if sig := syscall.Signal(req.Signal); sig > 0 && req.DefaultAction && s.record.EndedNanos == 0 && spares(s.process.PID, sig) {
		s.endAs(sig)
	} else if sig > 0 {
		s.signal(sig)
	}
	if req.Interrupt > 0 {
		s.interrupt(syscall.Signal(req.Interrupt))
	}
	if req.Resize != nil {
		s.terminal.resize(req.Resize)
	}
	if req.StdinEnd != nil {
		s.stdin.endAt(*req.StdinEnd)
	}
	if stop := req.Stop; stop != nil {
		s.hurry = true
		if at := time.Now().Add(stopPatience); s.out.giveUpAt.After(at) {
			s.out.giveUpAt = at
		}
		if s.record.EndedNanos == 0 { // it has not ended by itself meanwhile
			s.stop(protocol.CauseStop, syscall.Signal(stop.Signal), time.Duration(stop.GraceNanos))
		}
	}
	if err := s.process.Resize(req.DiskBytes, req.ShmBytes); err != nil {
		os.Stderr.WriteString("joblet-shim: " + err.Error() + "\n")
	}
}

// listenFor does what daemons ask for for some time, once the job has ended.
func (s *shim) listenFor(d time.Duration) {
	for deadline := time.Now().Add(d); ; {
		left := time.Until(deadline)
		if left <= 0 || s.hurry {
			return
		}
		fds := []unix.PollFd{{Fd: int32(s.listen), Events: unix.POLLIN}}
		for _, c := range s.conns {
			fds = append(fds, unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN})
		}
		if n, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil || n == 0 {
			continue
		}
		s.serve(fds[1:])
		if fds[0].Revents != 0 {
			s.accept()
		}
	}
}

// accept takes a later daemon's connection and greets it.
func (s *shim) accept() {
	fd, _, err := unix.Accept4(s.listen, unix.SOCK_CLOEXEC)
	if err != nil {
		return
	}
	if peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil || peer.Uid != 0 {
		unix.Close(fd) // no other user can reach the socket; to be sure
		return
	}
	// A request that stops half-way must not stop the job's output.
	timeout := unix.Timeval{Sec: 1}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)
	c := &conn{fd: fd}
	s.started.StdinBytes, s.started.Window = s.stdin.taken, s.terminal.window()
	if len(s.conns) == maxConns || protocol.WriteMessage(c, protocol.Event{Started: &s.started}) != nil {
		unix.Close(fd)
		return
	}
	s.conns = append(s.conns, c)
}

// sendDescriptor sends a descriptor to the daemon.
func sendDescriptor(socket, fd int) error { return sendDescriptors(socket, fd) }

// sendDescriptors sends them with one byte.
func sendDescriptors(socket int, fds ...int) error {
	if _, err := unix.SendmsgN(socket, []byte{1}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL); err != nil {
		return setup.Step("hand a descriptor over", err)
	}
	return nil
}
