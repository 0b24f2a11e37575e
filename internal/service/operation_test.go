package service

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/joblet/joblet"
)

// TestOperations: each operation has a row in the table, which says who may, and there
// is no other row. One that changes a job needs more than a reader.
func TestOperations(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "operation.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	known := map[Operation]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); !ok || kind.Name != "Operation" {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		known[Operation(text)] = true
		if row, ok := operations[Operation(text)]; !ok || row.role == Nobody {
			t.Errorf("%s has no row in the table of operations, or nobody's role", spec.Names[0])
		}
		return true
	})
	if len(known) < 30 || len(known) != len(operations) {
		t.Errorf("%d operations, %d rows", len(known), len(operations))
	}
	for op, row := range operations {
		if row.access == controls && row.role < Developer {
			t.Errorf("%s changes jobs and needs %v only", op, row.role)
		}
	}
}

// TestCalls: an operation is done in the call that is open for it, and in no other; what
// panics is an internal error.
func TestCalls(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	p := New(nil, slog.New(slog.NewTextHandler(&log, nil)), nil).policy
	eye, eve := Caller{Name: "eye", Role: Reader}, Caller{Name: "eve"}
	done := 0
	do := func(ctx context.Context, c Caller, op Operation) error {
		return p.do(ctx, c, op, Subject{}, func(context.Context, *call) error { done++; return nil })
	}
	in := func(c Caller, op Operation, act func(context.Context) error) error {
		return p.Call(t.Context(), Entry{Caller: c, Operation: op}, act)
	}
	for name, tt := range map[string]struct {
		err  error
		kind joblet.Kind
		done int
	}{
		"without a call":   {err: do(t.Context(), eye, ListJobs), done: 1},
		"in a call":        {err: in(eye, ListJobs, func(ctx context.Context) error { return do(ctx, eye, ListJobs) }), done: 1},
		"of another":       {err: in(eye, ListJobs, func(ctx context.Context) error { return do(ctx, eve, ListJobs) }), kind: joblet.Internal},
		"in another call":  {err: in(eye, ListJobs, func(ctx context.Context) error { return do(ctx, eye, WaitJob) }), kind: joblet.Internal},
		"more than a role": {err: do(t.Context(), eye, StopJob), kind: joblet.PermissionDenied},
		"by nobody":        {err: do(t.Context(), eve, ListJobs), kind: joblet.PermissionDenied},
		"unknown":          {err: do(t.Context(), Caller{Name: "uid:0", Role: Admin}, "make coffee"), kind: joblet.PermissionDenied},
		"that is let in no more": {err: p.Call(t.Context(), Entry{Caller: eye, Operation: ListJobs, Check: func() error { return joblet.Errorf(joblet.PermissionDenied, "revoked") }},
			func(ctx context.Context) error { return do(ctx, eye, ListJobs) }), kind: joblet.PermissionDenied},
		"that panics": {err: in(eye, ListJobs, func(context.Context) error { panic("oh") }), kind: joblet.Internal},
	} {
		done -= tt.done
		if (tt.err == nil) != (tt.done == 1) || tt.err != nil && joblet.KindOf(tt.err) != tt.kind {
			t.Errorf("%s: got %v", name, tt.err)
		}
	}
	if done != 0 {
		t.Errorf("%d operations too many were done", done)
	}
	if !strings.Contains(log.String(), "panic in a call") || !strings.Contains(log.String(), "call failed") {
		t.Errorf("log: %s", log.String())
	}
}

func TestAuthorize(t *testing.T) {
	t.Parallel()
	root, user, member := Caller{Name: "uid:0", Role: Admin}, Caller{Name: "uid:1000"}, Caller{Name: "uid:1000", Role: Developer}
	for _, tt := range []struct {
		caller Caller
		op     Operation
		denied string
	}{
		{root, SubmitJob, ""},
		{root, "unknown", `operation "unknown" is unknown, and therefore refused`},
		{user, ListJobs, "uid:1000 may not use this daemon: only root may, and members of its group"},
		{Caller{Name: "unknown"}, ListJobs, "unknown may not use this daemon: only root may, and members of its group"},
		{member, SubmitJob, ""},
		{member, BuildRuntime, "uid:1000 is developer, and this call needs maintainer"},
		{root, "", `operation "" is unknown, and therefore refused`},
	} {
		err := authorize(tt.caller, tt.op)
		if tt.denied == "" && err != nil || tt.denied != "" && (joblet.KindOf(err) != joblet.PermissionDenied || err.Error() != tt.denied) {
			t.Errorf("%+v %s: got %v", tt.caller, tt.op, err)
		}
	}
}

// TestMayHave: io_uring takes the role admin, in whatever profile and beside whatever else.
func TestMayHave(t *testing.T) {
	t.Parallel()
	root, member := Caller{Name: "uid:0", Role: Admin}, Caller{Name: "uid:1000", Role: Developer}
	for _, s := range []joblet.Security{
		{AllowCalls: []string{"io_uring_setup"}},
		{AllowCalls: []string{"read", "io_uring_enter"}},
		{Profile: joblet.ProfileStrict, AllowCalls: []string{"io_uring_register"}},
	} {
		if err := mayHave(root, s); err != nil {
			t.Errorf("root, %+v: %v", s, err)
		}
		if err := mayHave(member, s); joblet.KindOf(err) != joblet.PermissionDenied || !strings.Contains(err.Error(), "takes the role admin") {
			t.Errorf("a member of the group, %+v: %v", s, err)
		}
	}
	for _, s := range []joblet.Security{{}, {Profile: joblet.ProfileNested}, {AllowCalls: []string{"io_setup", "kcmp"}, DenyCalls: []string{"io_uring_setup"}}} {
		if err := mayHave(member, s); err != nil {
			t.Errorf("a member of the group, %+v: %v", s, err)
		}
	}
	for op, row := range operations {
		if row.commands && row.access != controls {
			t.Errorf("%s controls no job", op)
		}
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	p := New(nil, slog.New(slog.DiscardHandler), nil).policy
	var set []Rule
	for _, text := range []string{"alice read bob", "carol control *", "* read shared", "dave control uid:0"} {
		r, err := ParseRule(text)
		if err != nil || r.String() != text {
			t.Fatalf("%q: %v %v", text, r, err)
		}
		set = append(set, r)
	}
	p.Configure(set)
	who := func(name string, role Role) Caller {
		return Caller{Name: CertPrefix + name, Role: role, Certificate: true}
	}
	for _, tt := range []struct {
		who   Caller
		may   access
		owner string
		want  bool
	}{
		{who("alice", Developer), controls, "cert:alice", true},
		{who("alice", Developer), reads, "cert:bob", true},
		{who("alice", Developer), controls, "cert:bob", false},
		{who("alice", Developer), reads, "cert:carol", false},
		{who("alice", Developer), reads, "cert:shared", true},
		{who("alice", Developer), controls, "cert:shared", false},
		{who("alice", Developer), reads, "uid:0", false},
		{who("carol", Developer), controls, "cert:bob", true},
		{who("carol", Developer), controls, "uid:0", true},
		{who("dave", Developer), controls, "uid:0", true},
		{who("uid:0", Developer), reads, "uid:0", false}, // its name is cert:uid:0
		{who("eve", Reader), reads, "cert:bob", true},
		{who("eve", Reader), controls, "cert:bob", false},
		{who("mona", Maintainer), controls, "cert:bob", true},
		{who("root", Admin), controls, "uid:0", true},
		{who("x", Nobody), reads, "cert:bob", false},
		{Caller{Name: "unknown"}, reads, "cert:bob", false},
		{Caller{Name: "uid:0", Role: Admin}, controls, "cert:bob", true},
	} {
		if got := p.may(tt.who, tt.may, tt.owner); got != tt.want {
			t.Errorf("%s (%v), %d, %s: %v", tt.who.Name, tt.who.Role, tt.may, tt.owner, got)
		}
	}
	for _, bad := range []string{"", "alice", "alice reads bob", "alice read bob carol", "a/b read bob", "alice read ../x"} {
		if _, err := ParseRule(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestErrors: what has no kind is classified, or its text stays in the daemon's log.
func TestErrors(t *testing.T) {
	t.Parallel()
	stopping, cancel := context.WithCancelCause(t.Context())
	cancel(joblet.Errorf(joblet.Unavailable, "stopping"))
	for _, tt := range []struct {
		ctx    context.Context
		err    error
		result string
		text   string
		forLog bool
	}{
		{t.Context(), errors.New("secret inner part"), "Internal", errInternal.Error(), true},
		{t.Context(), fmt.Errorf("append: %w", syscall.ENOSPC), "ResourceExhausted", "append: " + syscall.ENOSPC.Error(), true},
		{t.Context(), fmt.Errorf("cannot build a sandbox: %w", os.NewSyscallError("socketpair", syscall.EMFILE)), "ResourceExhausted",
			"cannot build a sandbox: socketpair: too many open files: the daemon has as many open files as it may have: try again when some jobs have ended, or raise its limit (LimitNOFILE= in its unit)", true},
		{t.Context(), &fs.PathError{Op: "fork/exec", Path: "/proc/self/fd/64", Err: syscall.EAGAIN}, "ResourceExhausted",
			"fork/exec /proc/self/fd/64: resource temporarily unavailable: this host has no memory or no process left for it: try again when some jobs have ended", true},
		{t.Context(), fmt.Errorf("open: %w", syscall.EROFS), "FailedPrecondition", "open: " + syscall.EROFS.Error(), true},
		{t.Context(), joblet.Errorf(joblet.CommandNotFound, "no such command"), "InvalidArgument", "no such command", false},
		{t.Context(), joblet.Errorf(joblet.Internal, "broken"), "Internal", "broken", true},
		{t.Context(), context.Canceled, "Canceled", "the call was canceled", false},
		{t.Context(), fmt.Errorf("wait: %w", context.DeadlineExceeded), "DeadlineExceeded", "the call timed out", false},
		{stopping, context.Canceled, "Unavailable", "stopping", false},
	} {
		err, forLog := classify(tt.ctx, tt.err)
		if name, text := result(public(err)); name != tt.result || text != tt.text || forLog != tt.forLog {
			t.Errorf("%v: got %s %q %v", tt.err, name, text, forLog)
		}
	}
}
