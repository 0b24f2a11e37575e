package queue

import (
	"context"
	"time"
)

// ClockCheck is how often Run looks at the clock when nothing is due: an
// administrator may have set it.
const ClockCheck = time.Minute

// Run calls start, which starts what may run now and returns the time until it has
// to look again, at most ClockCheck. It does so at once, whenever wake receives,
// and when that time is over, until ctx ends.
func Run(ctx context.Context, wake <-chan struct{}, start func(now time.Time) (again time.Duration)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(min(start(time.Now()), ClockCheck))
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-timer.C:
		}
	}
}
