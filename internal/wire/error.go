package wire

import (
	"context"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/joblet/joblet"
)

// gRPC's codes by their numbers, which are fixed (grpc's doc/statuscodemd):
// package codes would load more of grpc-go than it is worth.
const (
	codeOK = iota
	codeCanceled
	_ // unknown
	codeInvalidArgument
	codeDeadlineExceeded
	codeNotFound
	codeAlreadyExists
	codePermissionDenied
	codeResourceExhausted
	codeFailedPrecondition
	codeAborted
	codeOutOfRange
	codeUnimplemented
	codeInternal
	codeUnavailable
	_ // data loss
	codeUnauthenticated
)

// Domain marks the google.rpc.ErrorInfo in an error's details as Joblet's.
const Domain = "joblet"

// codeOf maps each kind to the gRPC code that a client without knowledge of
// kinds sees. The two kinds of a command that cannot run share a code with
// another: the reason in the details tells them apart.
var codeOf = [...]uint32{
	joblet.Internal:           codeInternal,
	joblet.InvalidArgument:    codeInvalidArgument,
	joblet.NotFound:           codeNotFound,
	joblet.AlreadyExists:      codeAlreadyExists,
	joblet.FailedPrecondition: codeFailedPrecondition,
	joblet.PermissionDenied:   codePermissionDenied,
	joblet.ResourceExhausted:  codeResourceExhausted,
	joblet.Unavailable:        codeUnavailable,
	joblet.Unimplemented:      codeUnimplemented,
	joblet.CommandNotFound:    codeInvalidArgument,
	joblet.NotExecutable:      codeInvalidArgument,
}

// Code returns the gRPC code of a kind.
func Code(k joblet.Kind) uint32 {
	if int(k) < len(codeOf) {
		return codeOf[k]
	}
	return codeInternal
}

// Reason spells a kind as google.rpc.ErrorInfo wants it: COMMAND_NOT_FOUND.
func Reason(k joblet.Kind) string {
	return strings.ToUpper(strings.ReplaceAll(k.String(), " ", "_"))
}

// Message makes an error's text fit for the wire.
func Message(err error) string { return text(err.Error()) }

// kindOf is for errors that come without our details: from gRPC itself, or from
// another daemon.
func kindOf(c uint32) joblet.Kind {
	switch c {
	case codeOutOfRange:
		return joblet.InvalidArgument
	case codeAborted:
		return joblet.FailedPrecondition
	case codeUnauthenticated:
		return joblet.PermissionDenied
	}
	for k, code := range codeOf {
		if code == c {
			return joblet.Kind(k)
		}
	}
	return joblet.Internal
}

// ErrorFromStatus returns a call's error from its trailers: a *joblet.Error of
// the kind that the daemon gave it, with the daemon's message, or
// context.Canceled or context.DeadlineExceeded. details is a google.rpc.Status,
// or nil. It is read by hand, since the generated types cost each client's
// start more than all else here.
func ErrorFromStatus(code uint32, message string, details []byte) error {
	switch code {
	case codeOK:
		return nil
	case codeCanceled:
		return context.Canceled
	case codeDeadlineExceeded:
		return context.DeadlineExceeded
	default:
		kind := kindOf(code)
		fields(details, func(n protowire.Number, detail []byte) {
			if n != 3 { // Status.details
				return
			}
			var value []byte
			fields(detail, func(n protowire.Number, b []byte) {
				if n == 2 { // Any.value; what is in it shows by its domain
					value = b
				}
			})
			var reason, domain string
			fields(value, func(n protowire.Number, b []byte) {
				switch n {
				case 1: // ErrorInfo.reason
					reason = string(b)
				case 2: // ErrorInfo.domain
					domain = string(b)
				}
			})
			for k := range codeOf {
				if domain == Domain && reason == Reason(joblet.Kind(k)) {
					kind = joblet.Kind(k)
				}
			}
		})
		return joblet.Errorf(kind, "%s", message)
	}
}

// fields calls do with each field of a message that holds bytes, up to its end
// or to where it is damaged.
func fields(b []byte, do func(protowire.Number, []byte)) {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		b = b[n:]
		if kind == protowire.BytesType {
			value, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return
			}
			do(number, value)
			b = b[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return
		}
		b = b[n:]
	}
}
