package term

import (
	"context"
	"os"
	"time"
)

// foreground reports that there is no background: Windows has no job control.
func foreground(*os.File) bool { return true }

func readable(uintptr, bool) bool { return true }

// windowChanges returns a channel that tells that the window may have another
// size now; it is closed when ctx ends. Windows has no signal for it.
func windowChanges(ctx context.Context, t *Terminal) <-chan struct{} {
	changes := make(chan struct{})
	t.Guard(func() {
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

const nonblocking = 0
