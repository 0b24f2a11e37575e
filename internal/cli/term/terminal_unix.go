//go:build unix

package term

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// foreground reports whether we may read a terminal and set its modes: we are in its
// foreground process group, or it controls no session of ours and stops nobody.
func foreground(tty *os.File) bool {
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err != nil || group == unix.Getpgrp()
}

// readable reports whether a read would not wait, and waits for that if it is to.
func readable(fd uintptr, wait bool) bool {
	timeout := 0
	if wait {
		timeout = -1
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, timeout)
		if err != unix.EINTR {
			return n > 0 || err != nil
		}
	}
}

// windowChanges returns a channel that tells that the window may have another
// size now; it is closed when ctx ends. Coming back after having been stopped
// counts, and makes the terminal raw again.
func windowChanges(ctx context.Context, t *Terminal) <-chan struct{} {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGWINCH, syscall.SIGCONT)
	changes := make(chan struct{})
	t.Guard(func() {
		defer close(changes)
		defer signal.Stop(signals)
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-signals:
				if s == syscall.SIGCONT {
					t.again()
				}
			}
			select {
			case <-ctx.Done():
				return
			case changes <- struct{}{}:
			}
		}
	})
	return changes
}

// nonblocking opens a terminal so that Go's poller waits for it.
const nonblocking = syscall.O_NONBLOCK | syscall.O_NOCTTY
