package shim

import (
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/logstore"
)

// The two pipes of a job go into one log, in the order of arrival as far as the kernel
// tells it:
//
//   - What a pipe holds at one moment comes before what the other gets later. So no
//     more is moved in a round than both pipes held at one moment (FIONREAD).
//   - Of two pipes that hold something, the one that was written to first comes first:
//     epoll lists descriptors in the order in which they became readable.
//
// How writes to both alternated before the shim got to look is not known.

// arrivals tells which pipe comes first.
type arrivals struct {
	epoll int
	order [2]int
}

func newArrivals(pipes [2]int) (arrivals, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return arrivals{}, step("watch the job's pipes", err)
	}
	for i, pipe := range pipes {
		// Not level-triggered: that would keep the place of a pipe that was emptied.
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(i)}
		if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, pipe, &event); err != nil {
			return arrivals{}, step("watch the job's pipes", err)
		}
	}
	return arrivals{epoll: fd, order: [2]int{0, 1}}, nil
}

// next returns the pipes in the order in which they were written to since the last
// call. One without an event held what it holds before.
func (a *arrivals) next() [2]int {
	var events [2]unix.EpollEvent
	switch n, _ := unix.EpollWait(a.epoll, events[:], 0); n {
	case 1:
		a.order = [2]int{1 - int(events[0].Fd), int(events[0].Fd)}
	case 2:
		a.order = [2]int{int(events[0].Fd), int(events[1].Fd)}
	}
	return a.order
}

// held returns how much both pipes held at one moment, unless they are written to
// without a pause.
func held(pipes [2]int) (n [2]int) {
	n[0] = pending(pipes[0])
	for range 3 {
		n[1] = pending(pipes[1])
		before := n[0]
		if n[0] = pending(pipes[0]); n[0] == before {
			break
		}
	}
	return n
}

// pending returns how many bytes a pipe holds.
func pending(pipe int) int {
	n, err := unix.IoctlGetUint32(pipe, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return int(n)
}

const (
	maxDrain = 64 // pieces of output that are moved in a row
	maxMoved = 1 << 30
)

// drainOutput moves what the job has written into the log.
func (m *shim) drainOutput() {
	// Not for ever: a job that floods must not keep us from hearing that it is to stop.
	for range maxDrain {
		if m.output[0] < 0 || m.output[1] < 0 { // one stream is always in order
			m.drain(0, maxMoved)
			m.drain(1, maxMoved)
			return
		}
		n := held(m.output)
		order := m.arrivals.order
		if m.retryLogAt.IsZero() { // otherwise both still hold what there was no room for
			order = m.arrivals.next()
		}
		for _, i := range order {
			if !m.drain(i, n[i]) {
				return
			}
		}
		if n == [2]int{} {
			m.drainEnded()
			return
		}
	}
}

// drainEnded closes the pipes that nothing can write to any more.
func (m *shim) drainEnded() {
	fds := []unix.PollFd{{Fd: int32(m.output[0])}, {Fd: int32(m.output[1])}}
	if n, err := unix.Poll(fds, 0); err != nil || n == 0 {
		return
	}
	for i, fd := range fds {
		if fd.Revents&unix.POLLHUP != 0 {
			m.drain(i, maxMoved)
		}
	}
}

// drain moves what a pipe holds, most bytes of it, into the log. It returns false when
// there is no room: until a full disk has some again, the bytes stay in the pipe and the
// job waits. Nothing that it could write is lost.
func (m *shim) drain(i, most int) bool {
	stream := [2]logstore.Stream{logstore.Stdout, logstore.Stderr}[i]
	for round := 0; m.output[i] >= 0 && most > 0 && round < maxDrain; round++ {
		n, err := m.log.Drain(m.output[i], stream, most, time.Now())
		most -= n
		switch {
		case err == nil && n == 0:
			return true
		case err == nil:
			m.retryLogAt = time.Time{}
		case errors.Is(err, io.EOF) && m.hungUp():
			return true
		case errors.Is(err, io.EOF):
			unix.Close(m.output[i])
			m.output[i] = -1
		case m.logShrinks && m.shrinkLog(err):
		default:
			m.retryLogAt = time.Now().Add(logRetry)
			if !m.logGiveUpAt.IsZero() && time.Now().After(m.logGiveUpAt) {
				m.record.LogError = "the last output was lost: " + err.Error()
				unix.Close(m.output[i])
				m.output[i] = -1
			}
			return false
		}
	}
	return true
}
