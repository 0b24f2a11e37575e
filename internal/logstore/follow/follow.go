// Package follow waits for logs to grow. It is apart from package logstore
// because that is linked into the shim, which should not pay for this.
package follow

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/rawio"
)

// pollInterval is how often a log is looked at that cannot be watched.
const pollInterval = 250 * time.Millisecond

// ErrClosed is what Follow returns when its Watcher was closed meanwhile.
var ErrClosed = errors.New("the watcher of logs is closed")

// Watcher tells followers that their logs have grown. It is one inotify
// instance, of which a user may have few (fs.inotify.max_user_instances, 128),
// with one watch for each log that is waited for. A log for which the kernel
// has no watch left (fs.inotify.max_user_watches) is looked at every 250 ms
// instead.
type Watcher struct {
	file *os.File
	fd   int
	done chan struct{} // the goroutine has ended

	mu      sync.Mutex
	closed  bool
	deaf    bool                           // no more events will come
	watches map[int32]map[*waiter]struct{} // by watch descriptor: one per file, however many wait
}

// waiter is one follower that waits. wake holds one token at most and is closed
// when no more will come.
type waiter struct {
	wd   int32
	wake chan struct{}
}

// NewWatcher returns a Watcher, whose goroutine Close ends.
func NewWatcher() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot watch logs: %w", os.NewSyscallError("inotify_init1", err))
	}
	file := os.NewFile(uintptr(fd), "inotify") // not blocking: reads wait in Go's poller
	w := &Watcher{
		file:    file,
		fd:      fd,
		done:    make(chan struct{}),
		watches: make(map[int32]map[*waiter]struct{}),
	}
	events, err := rawio.NewFile(file)
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("cannot watch logs: %w", err)
	}
	go w.run(events)
	return w, nil
}

// Close ends every Follow that waits with ErrClosed, and the goroutine.
func (w *Watcher) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.closed = true
	for wd := range w.watches {
		w.drop(wd)
	}
	err := w.file.Close()
	w.mu.Unlock()
	<-w.done
	return err
}

// run hands the kernel's events to the waiters.
func (w *Watcher) run(events io.Reader) {
	defer close(w.done)
	buf := make([]byte, 4096)
	for {
		n, err := events.Read(buf)
		if err != nil {
			w.mu.Lock()
			w.deaf = true
			for wd := range w.watches { // nothing, if this is Close
				w.drop(wd)
			}
			w.mu.Unlock()
			return
		}
		w.mu.Lock()
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(b[0:]))
			mask := binary.NativeEndian.Uint32(b[4:])
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
			switch {
			case mask&unix.IN_Q_OVERFLOW != 0: // some events were lost: anyone's
				for wd := range w.watches {
					w.wake(wd)
				}
			case mask&unix.IN_IGNORED != 0: // the watch is gone, with its file system
				w.drop(wd)
			default:
				w.wake(wd)
			}
			b = b[min(size, len(b)):]
		}
		w.mu.Unlock()
	}
}

func (w *Watcher) wake(wd int32) {
	for f := range w.watches[wd] {
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
}

func (w *Watcher) drop(wd int32) {
	for f := range w.watches[wd] {
		close(f.wake)
	}
	delete(w.watches, wd)
}

// add registers a waiter for the file that fd stands for. The waiter is nil
// when the file cannot be watched.
func (w *Watcher) add(fd int) (*waiter, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, ErrClosed
	}
	if w.deaf {
		return nil, nil
	}
	// By descriptor, for that the file is the one that is read, whatever its
	// name is by now. The kernel gives the same watch for the same inode.
	wd, err := unix.InotifyAddWatch(w.fd, fmt.Sprintf("/proc/self/fd/%d", fd), unix.IN_MODIFY)
	if err != nil {
		return nil, nil //nolint:nilerr // out of watches, or no /proc: the follower looks by itself
	}
	f := &waiter{wd: int32(wd), wake: make(chan struct{}, 1)}
	if w.watches[f.wd] == nil {
		w.watches[f.wd] = make(map[*waiter]struct{})
	}
	w.watches[f.wd][f] = struct{}{}
	return f, nil
}

func (w *Watcher) remove(f *waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all, ok := w.watches[f.wd]
	if _, mine := all[f]; !ok || !mine {
		return
	}
	delete(all, f)
	if len(all) == 0 {
		delete(w.watches, f.wd)
		// What is queued for it is passed over: the kernel gives numbers out
		// in a circle, so this one does not come again soon.
		_, _ = unix.InotifyRmWatch(w.fd, uint32(f.wd))
	}
}

// Follow hands emit all output of r from its position on, as it comes, and returns nil
// once the log has ended, once r is Done, or once gone is closed and all that the
// writer left was read. After r's Resume it may be called again. gone signals that the
// log has no writer any more; it may be nil. An error of emit ends Follow and is
// returned as it is; so is the cause of ctx. A Chunk is valid during the call only, and
// emit may take its time: what comes meanwhile is in the log.
func (w *Watcher) Follow(ctx context.Context, r *logstore.Reader, gone <-chan struct{}, emit func(logstore.Chunk) error) error {
	var wake <-chan struct{} // nil: not watched yet, or not to be watched
	var tick *time.Ticker
	var ticks <-chan time.Time
	poll := func() {
		if tick == nil {
			tick = time.NewTicker(pollInterval)
			ticks = tick.C
		}
		wake = nil
	}
	defer func() {
		if tick != nil {
			tick.Stop()
		}
	}()
	var timer *time.Timer // for the moment that r's Until gave
	var late <-chan time.Time
	doneAt, ok := r.DoneAt()
	if ok {
		timer = time.NewTimer(time.Until(doneAt))
		defer timer.Stop()
		late = timer.C
	}
	for final := false; ; {
		if err := readAll(ctx, r, emit); err != nil {
			return err
		}
		if final || r.Ended() || r.Done() {
			return nil
		}
		if wake == nil && tick == nil {
			f, err := w.add(r.IndexFd())
			if err != nil {
				return err
			}
			if f == nil {
				poll()
			} else {
				defer w.remove(f)
				wake = f.wake
			}
			continue // output that was written before the watch existed
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-gone:
			r.WriterGone()
			final = true
		case <-late:
			// Should it not be late yet: the clock was set back.
			timer.Reset(max(time.Until(doneAt), time.Millisecond))
		case _, ok := <-wake:
			if !ok {
				if w.isClosed() {
					return ErrClosed
				}
				poll()
			}
		case <-ticks:
			if w.isClosed() {
				return ErrClosed
			}
		}
	}
}

func (w *Watcher) isClosed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}

// readAll hands emit what is there.
func readAll(ctx context.Context, r *logstore.Reader, emit func(logstore.Chunk) error) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := emit(c); err != nil {
			return err
		}
	}
}
