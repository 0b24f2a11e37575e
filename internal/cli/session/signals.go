package session

import (
	"os"
	"os/signal"
	"time"
)

// notifyEnd returns a channel that gets the signals that end rnx, but for those that
// it was started to ignore: as nohup and the background jobs of scripts are.
func notifyEnd() chan os.Signal {
	signals := make(chan os.Signal, 8)
	for _, sig := range endSignals {
		if !signal.Ignored(sig) {
			signal.Notify(signals, sig)
		}
	}
	return signals
}

const (
	secondInterrupt = 2 * time.Second        // Ctrl-C again within it kills
	reattachFor     = 15 * time.Second       // how long a daemon may be away
	reattachPause   = 200 * time.Millisecond // between two tries
)
