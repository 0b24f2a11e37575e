package guard

import (
	"context"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// Stop is a request to end a run.
type Stop struct {
	Options joblet.StopOptions
	By      time.Time // when the run must have ended
}

// Request returns the earlier of two requests: one that is made now, and one that was
// made before, or nil.
func Request(opt joblet.StopOptions, before *Stop) *Stop {
	by := time.Now().Add(opt.Grace + LateEnd)
	if before != nil && !by.Before(before.By) {
		return before
	}
	return &Stop{opt, by}
}

// Deadline returns when the run of a job must have ended, and why; the zero time: it may
// go on. runs says that the job's timeout counts; stop may be nil.
func Deadline(job joblet.Job, runs bool, stop *Stop) (by time.Time, cause protocol.Cause) {
	if limit := job.Spec.Timeout; limit > 0 && runs {
		began := job.Started
		if began.IsZero() { // the daemon that started it died before it recorded when
			began = job.Created
		}
		by, cause = began.Add(limit+joblet.DefaultGrace+LateEnd), protocol.CauseTimeout
	}
	if stop != nil && (by.IsZero() || stop.By.Before(by)) {
		by, cause = stop.By, protocol.CauseStop
	}
	return by, cause
}

// endingTime is how long it may take until the daemon sees the end of a job that another
// process has seen.
const endingTime = time.Second

// EndsNow reports whether a run has ended, or ends within a moment.
func EndsNow(ctx context.Context, proc *native.Process) bool {
	late := time.NewTimer(endingTime)
	defer late.Stop()
	select {
	case <-proc.Done():
		return true
	case <-late.C:
	case <-ctx.Done():
	}
	return false
}
