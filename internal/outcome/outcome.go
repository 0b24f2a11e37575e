// Package outcome says what became of a job: it reads the exit records of the job's
// attempts, puts failed starts into words, decides whether the job runs again, and
// makes a record again from the job's directory when the database has lost it.
package outcome

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/sandbox/native/seccomp"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// Conclude gives a job whose run is over its final state: from its exit record,
// or, without one, LOST.
func Conclude(job *joblet.Job, r *protocol.Record, dir string) {
	asked := job.State == joblet.Stopping
	if r == nil {
		job.State = joblet.Lost
		job.Reason = "its shim ended without an exit record: it was killed, or the host went down"
		job.Ended = time.Now()
		if info, err := logstore.Stat(dir); err == nil {
			job.LogBytes = info.Size
		}
		return
	}
	if r.Failure != nil {
		err := StartError(job.Spec, *r.Failure)
		job.State, job.Reason, job.Failure, job.Ended = joblet.Failed, joblet.Shorten(err.Error()), joblet.KindOf(err), time.Now()
		return
	}
	job.Exit = &joblet.Exit{Code: r.Code, Signal: r.Signal}
	job.Started = time.Unix(0, r.StartedNanos)
	job.Ended = time.Unix(0, r.EndedNanos)
	job.LogBytes = r.LogBytes
	job.WorkBytes = r.WorkBytes
	job.Usage, job.OutOfMemory = r.Usage, r.OutOfMemory
	job.Denied = seccomp.DeniedCalls(job.Spec.Security, r.Denied)
	switch {
	case r.Cause == protocol.CauseStop, asked && r.Cause == "":
		job.State = joblet.Stopped
	case r.Cause == protocol.CauseTimeout:
		job.State = joblet.TimedOut
		job.Reason = "timed out after " + joblet.ReadableDuration(job.Spec.Timeout)
	case r.OutOfMemory:
		job.State = joblet.Failed
		job.Reason = oomReason(r.Usage.MemoryPeak, job.Spec.Limits.MemoryBytes)
	case r.Code == 0 && r.Signal == 0:
		job.State = joblet.Completed
	case r.Signal != 0:
		job.State = joblet.Failed
		job.Reason = fmt.Sprintf("killed by %s", unix.SignalName(syscall.Signal(r.Signal)))
	default:
		job.State = joblet.Failed
	}
	switch {
	case r.LogError != "":
		job.Reason = r.LogError
	case r.WorkError != "":
		job.Reason = r.WorkError
	case r.WorkBeyond > 0 && job.Reason == "":
		job.Reason = fmt.Sprintf("%d files in /work could not be kept: they are too many or too large", r.WorkBeyond)
	}
	job.Reason = joblet.Shorten(job.Reason)
}

// oomReason says why a job was ended that used up its memory, with the figures.
func oomReason(peak, limit int64) string {
	reason := "out of memory"
	if peak > 0 {
		reason += fmt.Sprintf(": it used %s at most", formatMiB(peak))
	}
	if limit > 0 {
		return reason + fmt.Sprintf(", its limit was %s", formatMiB(limit))
	}
	return reason + ", it had no limit of its own: the host had none left"
}

func formatMiB(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// DamagedReason says why it is not known how a job ended.
func DamagedReason(err error) string {
	return fmt.Sprintf("its end is unknown: its exit record is %v", err)
}

// Retries reports whether a job that was concluded so is to run again.
func Retries(job joblet.Job) bool {
	switch {
	case job.Attempt > job.Spec.Retries:
		return false
	case job.State == joblet.Lost:
		return job.Spec.RetryOnLost
	case job.State != joblet.Failed && job.State != joblet.TimedOut || job.Exit == nil:
		return false
	}
	status, _ := job.Status()
	return len(job.Spec.RetryOn) == 0 && !job.Spec.RetryOnLost || slices.Contains(job.Spec.RetryOn, status)
}

// maxBackoff bounds the pause between two attempts, unless the user's first one
// is longer.
const maxBackoff = 5 * time.Minute

// Retry turns a job whose attempt has failed into one that waits for the next.
// The pause begins with the end: a crash on the way does not make it longer.
func Retry(job *joblet.Job) {
	delay := cmp.Or(job.Spec.RetryDelay, joblet.DefaultRetryDelay)
	limit := max(delay, maxBackoff)
	for range job.Attempt - 1 {
		delay = min(2*delay, limit)
	}
	status, _ := job.Status()
	job.Past = append(slices.Clone(job.Past), joblet.Attempt{
		Started: job.Started, Ended: job.Ended, State: job.State, Exit: job.Exit, Reason: job.Reason, Usage: job.Usage,
	})
	how := fmt.Sprintf("ended with status %d", status)
	if job.State == joblet.Lost {
		how = "was lost"
	}
	job.Reason = fmt.Sprintf("attempt %d of %d %s", job.Attempt, job.Spec.Retries+1, how)
	job.State, job.Scheduled = joblet.Scheduled, job.Ended.Add(delay)
	job.Exit, job.PID, job.Ended = nil, 0, time.Time{}
}

const (
	// CanceledReason is why a job ended that was canceled on request.
	CanceledReason = "it was canceled before it ran"
	stoppedReason  = "it was stopped before its next attempt"
)

// Cancel ends a job that waits, for this reason: it is CANCELED, or STOPPED if it has run
// and waited for another attempt.
func Cancel(job *joblet.Job, reason string) {
	job.State = joblet.Canceled
	if job.Attempt > 0 {
		job.State = joblet.Stopped
		if reason == CanceledReason {
			reason = stoppedReason
		}
		if n := len(job.Past); n > 0 {
			job.Exit = job.Past[n-1].Exit
		}
	}
	job.Reason = reason
}

// WithCleanup adds the errors of undoing a failed operation to its own, whose kind it
// keeps.
func WithCleanup(err error, cleanup ...error) error {
	undo := errors.Join(cleanup...)
	switch {
	case undo == nil:
		return err
	case err == nil:
		return undo
	}
	return joblet.Errorf(joblet.KindOf(err), "%w; cleanup also failed: %w", err, undo)
}
