package session

import (
	"errors"
	"fmt"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/jobview"
)

// Unanswered says what to do when the daemon went away and a submission got no
// answer: only the daemon's records tell whether there is a job.
func Unanswered(err error) error {
	if !errors.Is(err, client.ErrLost) {
		return err
	}
	return joblet.Errorf(joblet.Unavailable, "cannot tell whether the job was accepted: %w: look for it with \"rnx job list\" before you submit it again; with an --idempotency-key the same command never makes a second job", err)
}

// verdict is the status that the end of a job gives rnx, and what there is to say of it.
func verdict(j joblet.Job) (status int, why error) {
	status, ended := j.Status()
	if !ended {
		return joblet.StatusFailure, joblet.Errorf(joblet.Internal, "job %s is %v at the end of its output", joblet.ShortID(j.ID), j.State)
	}
	switch {
	case j.State == joblet.TimedOut:
		why = fmt.Errorf("job %s: timed out after %s", joblet.ShortID(j.ID), joblet.ReadableDuration(j.Spec.Timeout))
	case j.Reason != "":
		why = fmt.Errorf("job %s: %s", joblet.ShortID(j.ID), j.Reason)
	case j.State == joblet.Canceled:
		why = fmt.Errorf("job %s was canceled before it ran", joblet.ShortID(j.ID))
	case j.State == joblet.Failed && j.Exit == nil:
		why = fmt.Errorf("job %s %s", joblet.ShortID(j.ID), jobview.NotRunWords(j))
	case j.Exit == nil || j.State == joblet.Lost:
		why = fmt.Errorf("job %s is %v and left no exit status", joblet.ShortID(j.ID), j.State)
	}
	return status, why
}

// writeError is a failure to write the job's output here.
type writeError struct{ err error }

func (e *writeError) Error() string { return "write output: " + e.err.Error() }

func (e *writeError) Unwrap() error { return e.err }

// ExitAsRun makes rnx end with the status that "rnx job run" has for err.
func ExitAsRun(err error) error {
	if _, ok := errors.AsType[*app.ExitError](err); ok {
		return err
	}
	return &app.ExitError{Status: app.RunStatus(err), Err: err}
}

const maxDeniedNotes = 10

// noteDenied tells of the calls that a job was refused.
func noteDenied(a *app.App, j joblet.Job) {
	for i, c := range j.Denied {
		if i == maxDeniedNotes {
			a.Note("and %d more: rnx job status %s", len(j.Denied)-i, joblet.ShortID(j.ID))
			return
		}
		a.Note("denied %s", joblet.Printable(jobview.DeniedWords(c)))
	}
}
