package cli

import (
	"context"
	"os"
	"syscall"
	"time"
)

// foreground reports that there is no background: Windows has no job control.
func foreground(*os.File) bool { return true }

func readable(uintptr, bool) bool { return true }

// windowChanges returns a channel that tells that the window may have another
// size now; it is closed when ctx ends. Windows has no signal for it.
func windowChanges(ctx context.Context, t *terminal) <-chan struct{} {
	changes := make(chan struct{})
	t.guard(func() {
		defer close(changes)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
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

var (
	endSignals      = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}
	terminalSignals []os.Signal
)

const nonblocking = 0
