package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/wire"
)

// received is err as a client gets it.
func received(t *testing.T, err error) error {
	t.Helper()
	sent, _ := toStatus(err)
	s := status.Convert(sent)
	details, err := proto.Marshal(s.Proto())
	if err != nil {
		t.Fatal(err)
	}
	return wire.ErrorFromStatus(uint32(s.Code()), s.Message(), details)
}

func TestErrorRoundTrip(t *testing.T) {
	t.Parallel()
	k := joblet.Internal
	for ; !strings.HasPrefix(k.String(), "kind "); k++ {
		got := received(t, fmt.Errorf("run job: %w", joblet.Errorf(k, "no %s", "way")))
		if joblet.KindOf(got) != k || got.Error() != "run job: no way" {
			t.Errorf("%v: got %v %q", k, joblet.KindOf(got), got)
		}
		if (wire.Code(k) == uint32(codes.Internal)) != (k == joblet.Internal) {
			t.Errorf("%v has no code of its own", k)
		}
	}
	// Each code has the number that wire gives it.
	for code, kind := range map[codes.Code]joblet.Kind{
		codes.InvalidArgument: joblet.InvalidArgument, codes.NotFound: joblet.NotFound, codes.AlreadyExists: joblet.AlreadyExists,
		codes.PermissionDenied: joblet.PermissionDenied, codes.ResourceExhausted: joblet.ResourceExhausted,
		codes.FailedPrecondition: joblet.FailedPrecondition, codes.Aborted: joblet.FailedPrecondition,
		codes.OutOfRange: joblet.InvalidArgument, codes.Unimplemented: joblet.Unimplemented, codes.Internal: joblet.Internal,
		codes.Unavailable: joblet.Unavailable, codes.Unauthenticated: joblet.PermissionDenied, codes.Unknown: joblet.Internal,
	} {
		if got := joblet.KindOf(wire.ErrorFromStatus(uint32(code), "x", nil)); got != kind {
			t.Errorf("%v: got %v, want %v", code, got, kind)
		}
	}
	if err := wire.ErrorFromStatus(uint32(codes.DeadlineExceeded), "", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("deadline: got %v", err)
	}
	if err := received(t, context.Canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: got %v", err)
	}
}

func TestErrorsWithoutKind(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err     error
		code    codes.Code
		message string
		forLog  bool
	}{
		{errors.New("secret inner part"), codes.Internal, errInternal.Error(), true},
		{fmt.Errorf("append: %w", syscall.ENOSPC), codes.ResourceExhausted, "append: " + syscall.ENOSPC.Error(), true},
		{fmt.Errorf("open: %w", syscall.EROFS), codes.FailedPrecondition, "open: " + syscall.EROFS.Error(), true},
		{context.Canceled, codes.Canceled, "the call was canceled", false},
		{status.Error(codes.Unavailable, "transport"), codes.Unavailable, "transport", false},
	} {
		got, forLog := toStatus(tt.err)
		if s := status.Convert(got); s.Code() != tt.code || s.Message() != tt.message || forLog != tt.forLog {
			t.Errorf("%v: got %v %q %v", tt.err, s.Code(), s.Message(), forLog)
		}
	}
	if err := wire.ErrorFromStatus(uint32(codes.Unauthenticated), "x", []byte("\x1a\xffdamaged")); joblet.KindOf(err) != joblet.PermissionDenied {
		t.Errorf("unauthenticated: got %v", err)
	}
}
