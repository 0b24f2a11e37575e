package wire

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/joblet/joblet"
)

// received is err as a client gets it.
func received(t *testing.T, err error) error {
	t.Helper()
	sent, _ := ErrorToStatus(err)
	return ErrorFromStatus(status.FromProto(overWire(t, status.Convert(sent).Proto())).Err())
}

func TestErrorRoundTrip(t *testing.T) {
	t.Parallel()
	k := joblet.Internal
	for ; !strings.HasPrefix(k.String(), "kind "); k++ {
		got := received(t, fmt.Errorf("run job: %w", joblet.Errorf(k, "no %s", "way")))
		if joblet.KindOf(got) != k || got.Error() != "run job: no way" {
			t.Errorf("%v: got %v %q", k, joblet.KindOf(got), got)
		}
	}
	if int(k) != len(codeOf) {
		t.Errorf("%d kinds, of which %d have a code", k, len(codeOf))
	}
	for kind, code := range codeOf {
		if (code == codes.Internal) != (joblet.Kind(kind) == joblet.Internal) {
			t.Errorf("%v has no code of its own", joblet.Kind(kind))
		}
	}
	if got := received(t, joblet.Errorf(k, "a kind to come")); joblet.KindOf(got) != joblet.Internal {
		t.Errorf("unknown kind: got %v", joblet.KindOf(got))
	}
	if got := received(t, joblet.Errorf(joblet.NotFound, "no \xff")); got.Error() != "no \ufffd" {
		t.Errorf("not UTF-8: got %q", got)
	}
	for _, want := range []error{context.Canceled, context.DeadlineExceeded} {
		if err := received(t, fmt.Errorf("wait: %w", want)); !errors.Is(err, want) {
			t.Errorf("%v: got %v", want, err)
		}
	}
	if err := received(t, nil); err != nil {
		t.Errorf("nil: got %v", err)
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
		{errors.New("secret inner part"), codes.Internal, ErrInternal.Error(), true},
		{context.Canceled, codes.Canceled, "the call was canceled", false},
		{status.Error(codes.Unavailable, "transport"), codes.Unavailable, "transport", false},
	} {
		got, forLog := ErrorToStatus(tt.err)
		if s := status.Convert(got); s.Code() != tt.code || s.Message() != tt.message || forLog != tt.forLog {
			t.Errorf("%v: got %v %q %v", tt.err, s.Code(), s.Message(), forLog)
		}
	}
}

// TestForeignErrors: what comes without our details, or with those of others.
func TestForeignErrors(t *testing.T) {
	t.Parallel()
	for code, kind := range map[codes.Code]joblet.Kind{
		codes.InvalidArgument: joblet.InvalidArgument, codes.NotFound: joblet.NotFound, codes.AlreadyExists: joblet.AlreadyExists,
		codes.PermissionDenied: joblet.PermissionDenied, codes.ResourceExhausted: joblet.ResourceExhausted,
		codes.FailedPrecondition: joblet.FailedPrecondition, codes.Aborted: joblet.FailedPrecondition,
		codes.OutOfRange: joblet.InvalidArgument, codes.Unimplemented: joblet.Unimplemented, codes.Internal: joblet.Internal,
		codes.Unavailable: joblet.Unavailable, codes.Unauthenticated: joblet.PermissionDenied, codes.Unknown: joblet.Internal,
	} {
		if got := joblet.KindOf(ErrorFromStatus(status.Error(code, "x"))); got != kind {
			t.Errorf("%v: got %v, want %v", code, got, kind)
		}
	}
	for name, info := range map[string]*errdetails.ErrorInfo{
		"other domain":   {Domain: "other", Reason: "NOT_FOUND"},
		"unknown reason": {Domain: domain, Reason: "TO_COME"},
	} {
		s, err := status.New(codes.Unavailable, "x").WithDetails(info)
		if err != nil {
			t.Fatal(err)
		}
		if got := joblet.KindOf(ErrorFromStatus(s.Err())); got != joblet.Unavailable {
			t.Errorf("%s: got %v", name, got)
		}
	}
	damaged := status.FromProto(&spb.Status{Code: int32(codes.NotFound), Details: []*anypb.Any{{TypeUrl: "?", Value: []byte{0xff}}}})
	if got := joblet.KindOf(ErrorFromStatus(damaged.Err())); got != joblet.NotFound {
		t.Errorf("damaged: got %v", got)
	}
	if err := ErrorFromStatus(io.EOF); err != io.EOF {
		t.Errorf("not gRPC's: got %v", err)
	}
}

// TestLongErrors: what names a request of any size still fits into the headers that
// clients take, 8 KiB of them.
func TestLongErrors(t *testing.T) {
	t.Parallel()
	padded, err := status.New(codes.Unknown, strings.Repeat("y", 50<<10)).WithDetails(&errdetails.ErrorInfo{Reason: strings.Repeat("x", 50<<10)})
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"ASCII":     joblet.Errorf(joblet.CommandNotFound, "begin %s end", strings.Repeat("x", 100<<10)),
		"runes":     joblet.Errorf(joblet.CommandNotFound, "begin %s end", strings.Repeat("日本€ä", 20<<10)),
		"escapes":   joblet.Errorf(joblet.CommandNotFound, "begin %s end", strings.Repeat("%\n", 50<<10)),
		"not UTF-8": joblet.Errorf(joblet.CommandNotFound, "begin %s end", strings.Repeat("\xffx", 50<<10)),
		"gRPC's":    padded.Err(),
	} {
		sent, _ := ErrorToStatus(err)
		s := status.Convert(sent)
		details, err := proto.Marshal(s.Proto())
		if err != nil {
			t.Fatal(err)
		}
		if n := len(url.PathEscape(s.Message())) + base64.StdEncoding.EncodedLen(len(details)); n > 7<<10+512 || n < 512 {
			t.Errorf("%s: %d bytes of headers", name, n)
		}
		if m := s.Message(); !utf8.ValidString(m) || strings.Count(m, "…") != 1 || name != "gRPC's" && (!strings.HasPrefix(m, "begin ") || !strings.HasSuffix(m, " end")) {
			t.Errorf("%s: got %.40q…%q", name, m, m[len(m)-40:])
		}
		if name != "gRPC's" && joblet.KindOf(ErrorFromStatus(sent)) != joblet.CommandNotFound {
			t.Errorf("%s: got %v", name, joblet.KindOf(ErrorFromStatus(sent)))
		}
	}
	for _, s := range []string{"", "short", strings.Repeat("x", maxText), strings.Repeat("ä", maxText/6)} {
		if short(s) != s {
			t.Errorf("%.20q, %d bytes, was cut", s, len(s))
		}
	}
}
