package wire

import (
	"context"
	"errors"
	"strings"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/joblet/joblet"
)

// domain marks the google.rpc.ErrorInfo in an error's details as Joblet's.
const domain = "joblet"

// codeOf maps each kind to the gRPC code that a client without knowledge of
// kinds sees. The two kinds of a command that cannot run share a code with
// another: the reason in the details tells them apart.
var codeOf = [...]codes.Code{
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
func kindOf(c codes.Code) joblet.Kind {
	switch c {
	case codes.OutOfRange:
		return joblet.InvalidArgument
	case codes.Aborted:
		return joblet.FailedPrecondition
	case codes.Unauthenticated:
		return joblet.PermissionDenied
	}
	for k, code := range codeOf {
		if code == c {
			return joblet.Kind(k)
		}
	}
	return joblet.Internal
}

// reason spells a kind as google.rpc.ErrorInfo wants it: COMMAND_NOT_FOUND.
func reason(k joblet.Kind) string {
	return strings.ToUpper(strings.ReplaceAll(k.String(), " ", "_"))
}

func kindFromReason(s string) (_ joblet.Kind, known bool) {
	for k := range codeOf {
		if s == reason(joblet.Kind(k)) {
			return joblet.Kind(k), true
		}
	}
	return joblet.Internal, false
}

// ErrInternal is all that a client learns of an error without a kind.
var ErrInternal = joblet.Errorf(joblet.Internal, "internal error: see the daemon's log for details")

// ErrorToStatus returns err as a gRPC status error that carries its kind. An
// error without a kind is internal: its text is for the daemon's log, which the
// second result asks for, and the client gets a sentence that names no inner
// parts.
func ErrorToStatus(err error) (_ error, forLog bool) {
	if err == nil {
		return nil, false
	}
	if e, ok := err.(interface{ GRPCStatus() *status.Status }); ok { // it has details of its own
		return bounded(e.GRPCStatus().Proto()), false
	}
	if e, ok := errors.AsType[*joblet.Error](err); ok {
		return statusOf(e.Kind, err), e.Kind == joblet.Internal
	}
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the call was canceled"), false
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the call timed out"), false
	}
	if s, ok := status.FromError(err); ok { // gRPC's own: a broken stream
		return bounded(s.Proto()), false
	}
	return statusOf(joblet.Internal, ErrInternal), true
}

func statusOf(kind joblet.Kind, err error) error {
	code := codes.Internal
	if int(kind) < len(codeOf) {
		code = codeOf[kind]
	}
	s := status.New(code, short(joblet.ShortenWords(text(err.Error()))))
	if detailed, err := s.WithDetails(&errdetails.ErrorInfo{Domain: domain, Reason: reason(kind)}); err == nil {
		s = detailed
	}
	return s.Err()
}

// A status travels in headers, of which many clients take 8 KiB: its text once with
// escapes, and once more beside the details in base64.
const (
	maxText    = 3 << 10 // with its escapes
	maxDetails = 1 << 10
)

// bounded returns a status that is not ours as an error that a client can take.
func bounded(s *spb.Status) error {
	s.Message = short(text(s.GetMessage()))
	size := 0
	for _, d := range s.GetDetails() {
		size += proto.Size(d)
	}
	if size > maxDetails {
		s.Details = nil
	}
	return status.ErrorProto(s)
}

// short returns s without its middle if it is too long for a header.
func short(s string) string {
	const gap = "…"
	if len(s) <= maxText/3 || escaped(s) <= maxText {
		return s
	}
	half := (maxText - escaped(gap)) / 2
	head, tail := 0, len(s)
	for left := half; ; {
		_, n := utf8.DecodeRuneInString(s[head:])
		if left -= escaped(s[head : head+n]); left < 0 {
			break
		}
		head += n
	}
	for left := half; ; {
		_, n := utf8.DecodeLastRuneInString(s[:tail])
		if left -= escaped(s[tail-n : tail]); left < 0 {
			break
		}
		tail -= n
	}
	return s[:head] + gap + s[tail:]
}

// escaped is how long s is in the header grpc-message.
func escaped(s string) int {
	n := len(s)
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' || s[i] == '%' {
			n += 2
		}
	}
	return n
}

// ErrorFromStatus is the other way: it returns a *joblet.Error of the kind that
// the daemon gave the error, with the daemon's message, or context.Canceled or
// context.DeadlineExceeded. Errors that are not gRPC's it returns as they are.
func ErrorFromStatus(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	switch s.Code() {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	}
	kind := kindOf(s.Code())
	for _, d := range s.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != domain {
			continue
		}
		if k, ok := kindFromReason(info.GetReason()); ok {
			kind = k
		}
	}
	return joblet.Errorf(kind, "%s", s.Message())
}
