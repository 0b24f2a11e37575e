package shim

import (
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/shim/setup"
)

// output moves what a job writes into its log.
type output struct {
	pipes    [2]int // read ends of stdout and stderr, or a terminal's master and -1; -1 once at their end
	arrivals arrivals
	log      *logstore.Writer
	shrinks  bool   // the log gives up its older half to make room on a full disk
	terminal bool   // pipes[0] is a terminal's master
	ended    bool   // PID 1 has ended, and with it all processes of the job
	lost     string // why output was lost; "": none was

	syncAt   time.Time // output waits for fsync until then; zero: none does
	retryAt  time.Time // the disk was full: output waits in the pipes until then
	reopenAt time.Time // no process has the terminal open: it is looked at again then
	giveUpAt time.Time // once the job has ended: output that finds no room until then is lost
}

const (
	// syncDelay bounds how old output may be that a crash of the host loses.
	syncDelay = time.Second
	// logRetry is how often a full disk is tried again.
	logRetry = 100 * time.Millisecond
	// reopenRetry is how often a terminal that no process has open is looked at again.
	reopenRetry = 100 * time.Millisecond
)

// makePipes makes the pipes of a sandbox, whose first id is given, and returns their
// write ends.
func (o *output) makePipes(idBase uint32) (ends [2]int, err error) {
	for i := range o.pipes {
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			return ends, setup.Step("make a pipe", err)
		}
		_ = unix.SetNonblock(pipe[0], true)
		// So that the job may open /dev/stdout, which leads to the pipe's inode: also a
		// process that has changed its user.
		err := unix.Fchown(pipe[1], int(idBase), int(idBase))
		if err == nil {
			err = unix.Fchmod(pipe[1], protocol.OutputMode)
		}
		if err != nil {
			return ends, setup.Step("give the job its pipe", err)
		}
		o.pipes[i], ends[i] = pipe[0], pipe[1]
	}
	o.arrivals, err = newArrivals(o.pipes)
	return ends, err
}

// openLog makes the log of a run in the job's directory.
func (o *output) openLog(dir int, run *protocol.Run) (err error) {
	o.shrinks = run.LogShrinks
	options := logstore.Options{MaxBytes: run.LogMaxBytes, MayShrink: run.LogShrinks, Append: run.Attempt > 1}
	o.log, err = logstore.Create(dir, options)
	if errors.Is(err, logstore.ErrNoHoles) { // then its size is the disk's
		o.shrinks = false
		o.log, err = logstore.Create(dir, logstore.Options{Append: options.Append})
	}
	if err != nil {
		return setup.Step("create the log in "+run.Dir, err)
	}
	return nil
}

// takeTerminal puts a terminal's master in the place of the pipes.
func (o *output) takeTerminal(master int) {
	for _, pipe := range o.pipes {
		unix.Close(pipe)
	}
	o.pipes, o.terminal = [2]int{master, -1}, true
}

// pollFds says what to wait for.
func (o *output) pollFds(now time.Time) (fds [2]unix.PollFd) {
	for i, fd := range o.pipes {
		fds[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
		if now.Before(o.retryAt) {
			fds[i].Fd = -1
		}
	}
	if !o.ended && now.Before(o.reopenAt) {
		fds[0].Fd = -1
	}
	return fds
}

// done reports whether all output is in the log, or lost.
func (o *output) done() bool { return o.pipes[0] < 0 && o.pipes[1] < 0 }

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
		return arrivals{}, setup.Step("watch the job's pipes", err)
	}
	for i, pipe := range pipes {
		// Not level-triggered: that would keep the place of a pipe that was emptied.
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(i)}
		if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, pipe, &event); err != nil {
			return arrivals{}, setup.Step("watch the job's pipes", err)
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

// drainAll moves what the job has written into the log.
func (o *output) drainAll() {
	// Not for ever: a job that floods must not keep us from hearing that it is to stop.
	for range maxDrain {
		if o.pipes[0] < 0 || o.pipes[1] < 0 { // one stream is always in order
			o.drain(0, maxMoved)
			o.drain(1, maxMoved)
			return
		}
		n := held(o.pipes)
		order := o.arrivals.order
		if o.retryAt.IsZero() { // otherwise both still hold what there was no room for
			order = o.arrivals.next()
		}
		for _, i := range order {
			if !o.drain(i, n[i]) {
				return
			}
		}
		if n == [2]int{} {
			o.drainEnded()
			return
		}
	}
}

// drainEnded closes the pipes that nothing can write to any more.
func (o *output) drainEnded() {
	fds := []unix.PollFd{{Fd: int32(o.pipes[0])}, {Fd: int32(o.pipes[1])}}
	if n, err := unix.Poll(fds, 0); err != nil || n == 0 {
		return
	}
	for i, fd := range fds {
		if fd.Revents&unix.POLLHUP != 0 {
			o.drain(i, maxMoved)
		}
	}
}

// drain moves what a pipe holds, most bytes of it, into the log. It returns false when
// there is no room: until a full disk has some again, the bytes stay in the pipe and the
// job waits. Nothing that it could write is lost.
func (o *output) drain(i, most int) bool {
	stream := [2]logstore.Stream{logstore.Stdout, logstore.Stderr}[i]
	for round := 0; o.pipes[i] >= 0 && most > 0 && round < maxDrain; round++ {
		n, err := o.log.Drain(o.pipes[i], stream, most, time.Now())
		most -= n
		switch {
		case err == nil && n == 0:
			return true
		case err == nil:
			o.retryAt = time.Time{}
		case errors.Is(err, io.EOF) && o.mayReopen():
			return true
		case errors.Is(err, io.EOF):
			unix.Close(o.pipes[i])
			o.pipes[i] = -1
		case o.shrinks && o.shrink(err):
		default:
			o.retryAt = time.Now().Add(logRetry)
			if !o.giveUpAt.IsZero() && time.Now().After(o.giveUpAt) {
				o.lost = "the last output was lost: " + err.Error()
				unix.Close(o.pipes[i])
				o.pipes[i] = -1
			}
			return false
		}
	}
	return true
}

// mayReopen reports whether the end of the output is no more than that no process has
// the terminal open just now, as after a program that has closed it and may open it
// again.
func (o *output) mayReopen() bool {
	if !o.terminal || o.ended {
		return false
	}
	o.reopenAt = time.Now().Add(reopenRetry)
	return true
}

// shrink makes room for new output on a full disk, if it is one, by giving up
// the oldest.
func (o *output) shrink(err error) bool {
	if !isFull(err) {
		return false
	}
	freed, err := o.log.Shrink()
	return freed && err == nil
}

// isFull reports whether an error says that the disk is full.
func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// sync makes output survive a crash of the host, a second after it came.
func (o *output) sync(now time.Time) {
	switch {
	case !o.log.Dirty():
	case o.syncAt.IsZero():
		o.syncAt = now.Add(syncDelay)
	case !now.Before(o.syncAt):
		o.syncAt = time.Time{}
		if err := o.log.Sync(); err != nil {
			o.syncAt = now.Add(syncDelay)
		}
	}
}

// close closes the pipes, and completes the log and makes it durable.
func (o *output) close() {
	for _, fd := range o.pipes {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if err := o.endLog(); err != nil && o.lost == "" {
		o.lost = "close the log: " + err.Error()
	}
}

// endLog completes the log and makes it durable. An empty one needs no fsync:
// the exit record says that it is empty.
func (o *output) endLog() error {
	err := o.log.End(time.Now())
	for o.shrinks && err != nil && o.shrink(err) {
		err = o.log.End(time.Now())
	}
	if o.log.Size() > 0 {
		err = errors.Join(err, o.log.Sync())
	}
	return errors.Join(err, o.log.Close())
}
