package server

import (
	"context"
	"errors"
	"syscall"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/wire"
)

var errInternal = joblet.Errorf(joblet.Internal, "internal error: the daemon's log has the detail")

// toStatus returns err as a gRPC status error that carries its kind. An error
// without a kind is internal: its text is for the daemon's log, which the
// second result asks for, and the client gets a sentence that names no inner
// parts.
func toStatus(err error) (_ error, forLog bool) {
	if e, ok := errors.AsType[*joblet.Error](err); ok {
		return statusOf(e.Kind, err), e.Kind == joblet.Internal
	}
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the call was canceled"), false
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the call's time was up"), false
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return statusOf(joblet.ResourceExhausted, err), true
	case errors.Is(err, syscall.EROFS):
		return statusOf(joblet.FailedPrecondition, err), true
	}
	if s, ok := status.FromError(err); ok { // gRPC's own: a broken stream
		return s.Err(), false
	}
	return statusOf(joblet.Internal, errInternal), true
}

func statusOf(kind joblet.Kind, err error) error {
	s := status.New(codes.Code(wire.Code(kind)), wire.Message(err))
	if detailed, err := s.WithDetails(&errdetails.ErrorInfo{Domain: wire.Domain, Reason: wire.Reason(kind)}); err == nil {
		s = detailed
	}
	return s.Err()
}
