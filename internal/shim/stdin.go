package shim

import (
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/shim/setup"
)

// stdin is the job's standard input as a stream: bytes go from a connection of
// the daemon's into a pipe. The shim holds the pipe, so that a daemon that is
// killed does not look to the job like the end of its input.
type stdin struct {
	pipe  int   // write end; -1: none, or the input has ended
	conn  int   // where it comes from; -1: from nowhere just now
	full  bool  // the pipe is what to wait for
	taken int64 // bytes that are in the pipe, or were
	end   int64 // how many there are in all; -1: not known yet
}

var noStdin = stdin{pipe: -1, conn: -1, end: -1}

// openStdin returns the descriptor that becomes the job's standard input, or -1
// for /dev/null.
func (s *shim) openStdin(run *protocol.Run) (int, error) {
	switch {
	case run.StdinPath != "":
		fd, err := openApart(run.StdinPath)
		if err != nil {
			return -1, setup.Step("open the standard input "+run.StdinPath, err)
		}
		return fd, nil
	case run.StdinStream:
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			return -1, setup.Step("make a pipe", err)
		}
		_ = unix.SetNonblock(pipe[1], true)
		s.stdin.pipe = pipe[1]
		// So that the job may open /dev/stdin.
		err := unix.Fchown(pipe[0], int(s.idBase+run.UID), int(s.idBase+run.GID))
		if err == nil {
			err = unix.Fchmod(pipe[0], protocol.InputMode)
		}
		if err != nil {
			unix.Close(pipe[0])
			return -1, setup.Step("give the job its pipe", err)
		}
		return pipe[0], nil
	}
	return -1, nil
}

// openApart opens a file of the host for reading, on a mount that consists of that
// file alone: in /proc/PID/fd a job sees "/" for it, and not where on the host it is.
func openApart(path string) (int, error) {
	file, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(file)
	var st unix.Stat_t
	if err := unix.Fstat(file, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return -1, unix.EINVAL
	}
	mount, err := unix.OpenTree(file, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, err
	}
	defer unix.Close(mount) // the open file keeps the mount
	return unix.Open("/proc/self/fd/"+strconv.Itoa(mount), unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

// take makes a connection the source of the input, in place of an earlier one.
func (s *stdin) take(conn int) {
	if s.conn >= 0 {
		unix.Close(s.conn)
	}
	if s.conn = conn; s.pipe < 0 { // the job reads no more: the daemon learns it when it writes
		unix.Close(conn)
		s.conn = -1
		return
	}
	_ = unix.SetNonblock(conn, true)
	s.full = false
}

// endAt says how long the input is.
func (s *stdin) endAt(n int64) {
	s.end = n
	s.checkEnd()
}

func (s *stdin) checkEnd() {
	if s.end >= 0 && s.taken >= s.end {
		s.close()
	}
}

// close gives the job the end of its input.
func (s *stdin) close() {
	for _, fd := range []*int{&s.pipe, &s.conn} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// pollFd returns what has to happen before feed can do something: bytes that
// come, or room for them. A pipe that no process reads any more is an error, which
// poll reports whatever it was asked for.
func (s *stdin) pollFd() unix.PollFd {
	switch {
	case s.pipe >= 0 && s.full:
		return unix.PollFd{Fd: int32(s.pipe), Events: unix.POLLOUT}
	case s.pipe >= 0 && s.conn >= 0:
		return unix.PollFd{Fd: int32(s.conn), Events: unix.POLLIN}
	default:
		return unix.PollFd{Fd: -1}
	}
}

// feed moves what there is and has room.
func (s *stdin) feed() {
	if s.pipe < 0 || s.conn < 0 {
		s.full = false
		return
	}
	const piece = 1 << 20
	n, err := unix.Splice(s.conn, nil, s.pipe, nil, piece, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
	switch {
	case n > 0:
		s.taken += n
		s.full = false
		s.checkEnd()
	case err == unix.EINTR:
	case err == unix.EAGAIN:
		s.full = !s.writable()
	case err == nil: // the daemon has said all, or was killed
		unix.Close(s.conn)
		s.conn = -1
		s.checkEnd()
	default: // EPIPE: the job has closed its input
		s.close()
	}
}

func (s *stdin) writable() bool {
	fds := []unix.PollFd{{Fd: int32(s.pipe), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}
