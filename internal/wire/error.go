package wire

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet"
)

// domain marks the error details that are Joblet's.
const domain = "joblet"

// codeOf maps each kind to the gRPC code that a client without knowledge of
// kinds sees. The two kinds of a command that cannot run share codes with
// others: the reason in the details tells them apart.
var codeOf = map[joblet.Kind]codes.Code{
	joblet.Internal:           codes.Internal,
	joblet.InvalidArgument:    codes.InvalidArgument,
	joblet.NotFound:           codes.NotFound,
	joblet.AlreadyExists:      codes.AlreadyExists,
	joblet.FailedPrecondition: codes.FailedPrecondition,
	joblet.PermissionDenied:   codes.PermissionDenied,
	joblet.ResourceExhausted:  codes.ResourceExhausted,
	joblet.Unavailable:        codes.Unavailable,
	joblet.Unimplemented:      codes.Unimplemented,
	joblet.CommandNotFound:    codes.InvalidArgument,
	joblet.NotExecutable:      codes.InvalidArgument,
}

// kindOf is for errors that come without our details: from gRPC itself, or from
// another daemon.
var kindOf = map[codes.Code]joblet.Kind{
	codes.InvalidArgument:    joblet.InvalidArgument,
	codes.OutOfRange:         joblet.InvalidArgument,
	codes.NotFound:           joblet.NotFound,
	codes.AlreadyExists:      joblet.AlreadyExists,
	codes.FailedPrecondition: joblet.FailedPrecondition,
	codes.Aborted:            joblet.FailedPrecondition,
	codes.PermissionDenied:   joblet.PermissionDenied,
	codes.Unauthenticated:    joblet.PermissionDenied,
	codes.ResourceExhausted:  joblet.ResourceExhausted,
	codes.Unavailable:        joblet.Unavailable,
	codes.DeadlineExceeded:   joblet.Unavailable,
	codes.Unimplemented:      joblet.Unimplemented,
}

// reason spells a kind as google.rpc.ErrorInfo wants it: COMMAND_NOT_FOUND.
func reason(k joblet.Kind) string {
	return strings.ToUpper(strings.ReplaceAll(k.String(), " ", "_"))
}

var kindByReason = func() map[string]joblet.Kind {
	m := make(map[string]joblet.Kind, len(codeOf))
	for k := range codeOf {
		m[reason(k)] = k
	}
	return m
}()

// ErrorToStatus returns err as a gRPC status error that carries its kind. An
// error without a kind is internal: its text is for the daemon's log, which the
// second result asks for, and the client gets a sentence that names no inner
// parts.
func ErrorToStatus(err error) (_ error, forLog bool) {
	if err == nil {
		return nil, false
	}
	if e, ok := errors.AsType[*joblet.Error](err); ok {
		return statusOf(e.Kind, err.Error()), e.Kind == joblet.Internal
	}
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the call was canceled"), false
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the call's time was up"), false
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return statusOf(joblet.ResourceExhausted, err.Error()), true
	case errors.Is(err, syscall.EROFS):
		return statusOf(joblet.FailedPrecondition, err.Error()), true
	}
	if s, ok := status.FromError(err); ok { // gRPC's own: a broken stream
		return s.Err(), false
	}
	return statusOf(joblet.Internal, "internal error: the daemon's log has the detail"), true
}

func statusOf(kind joblet.Kind, message string) error {
	s := status.New(codeOf[kind], text(message))
	if detailed, err := s.WithDetails(&errdetails.ErrorInfo{Domain: domain, Reason: reason(kind)}); err == nil {
		s = detailed
	}
	return s.Err()
}

// ErrorFromStatus is the other way: it returns a *joblet.Error of the same kind
// with the daemon's message, or context.Canceled or context.DeadlineExceeded.
// Errors that are not gRPC's it returns as they are.
func ErrorFromStatus(err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	switch s.Code() {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	}
	kind := kindOf[s.Code()]
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			if k, known := kindByReason[info.GetReason()]; known {
				kind = k
			}
		}
	}
	return joblet.Errorf(kind, "%s", s.Message())
}
