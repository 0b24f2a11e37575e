package service

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/joblet/joblet"
)

// errInternal is all that a caller learns of an error without a kind.
var errInternal = joblet.Errorf(joblet.Internal, "internal error: see the daemon's log for details")

// classify returns the error of a call under ctx with its kind, if it has one, and
// whether it is for the daemon's log as well. A call that ended because the daemon stops,
// or because it is not allowed any more, has that error.
func classify(ctx context.Context, err error) (_ error, forLog bool) {
	if ctx.Err() != nil {
		if cause := context.Cause(ctx); hasKind(cause) {
			return cause, false
		}
	}
	switch {
	case hasKind(err):
		return err, joblet.KindOf(err) == joblet.Internal
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err, false
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return joblet.Errorf(joblet.ResourceExhausted, "%w", err), true
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return joblet.Errorf(joblet.ResourceExhausted, "%w: the daemon has reached its limit of open files: try again when some jobs have ended, or raise the limit (LimitNOFILE= in its unit)", err), true
	case noFork(err):
		return joblet.Errorf(joblet.ResourceExhausted, "%w: the host is out of memory or processes: try again when some jobs have ended", err), true
	case errors.Is(err, syscall.EROFS):
		return joblet.Errorf(joblet.FailedPrecondition, "%w", err), true
	}
	return err, true
}

// public returns what the caller may learn of a classified error: an error without a
// kind has a text for the daemon's log only, which may name inner parts.
func public(err error) error {
	if hasKind(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return errInternal
}

func hasKind(err error) bool {
	_, ok := errors.AsType[*joblet.Error](err)
	return ok
}

// noFork reports whether a process could not be started for lack of room for it.
func noFork(err error) bool {
	failed, ok := errors.AsType[*fs.PathError](err)
	return ok && failed.Op == "fork/exec" && (errors.Is(failed, syscall.EAGAIN) || errors.Is(failed, syscall.ENOMEM))
}

// resultNames are what the audit log calls the kinds. Those of a command that cannot run
// are invalid arguments to it.
var resultNames = [...]string{
	joblet.Internal:           "Internal",
	joblet.InvalidArgument:    "InvalidArgument",
	joblet.NotFound:           "NotFound",
	joblet.AlreadyExists:      "AlreadyExists",
	joblet.FailedPrecondition: "FailedPrecondition",
	joblet.PermissionDenied:   "PermissionDenied",
	joblet.ResourceExhausted:  "ResourceExhausted",
	joblet.Unavailable:        "Unavailable",
	joblet.Unimplemented:      "Unimplemented",
	joblet.CommandNotFound:    "InvalidArgument",
	joblet.NotExecutable:      "InvalidArgument",
}

// result returns what the audit log says of an error that a caller gets: the name of
// its kind and its text.
func result(err error) (name, text string) {
	switch {
	case err == nil:
		return "OK", ""
	case hasKind(err):
		if k := int(joblet.KindOf(err)); k < len(resultNames) {
			name = resultNames[k]
		}
		return name, joblet.ShortenWords(err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return "DeadlineExceeded", "the call timed out"
	default:
		return "Canceled", "the call was canceled"
	}
}
