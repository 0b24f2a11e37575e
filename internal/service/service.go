// Package service is what the daemon does for its callers, whatever way they come: each
// operation is a plain method, which decides who may do it, finds the job, checks whose
// it is, acts, and writes the audit log. It knows no transport. What goes wrong has one
// of joblet's error kinds, or is context.Canceled or context.DeadlineExceeded.
package service

import (
	"cmp"
	"context"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/supervisor"
)

// Service does the operations on one supervisor's jobs.
type Service struct {
	Jobs     *Jobs
	Runtimes *Runtimes
	Host     *Host

	*policy
}

// New returns a service for the jobs of sup. A nil audit log disables auditing.
func New(sup *supervisor.Supervisor, log *slog.Logger, audit *Audit) *Service {
	p := &policy{log: log, sup: sup, audit: audit}
	p.Configure(nil)
	return &Service{
		policy: p, Jobs: &Jobs{policy: p, sup: sup}, Runtimes: &Runtimes{policy: p, sup: sup, log: log}, Host: &Host{policy: p, sup: sup},
	}
}

// policy decides about all operations.
type policy struct {
	log   *slog.Logger
	sup   *supervisor.Supervisor
	audit *Audit
	rules atomic.Pointer[[]Rule]
	ruled ruledCalls
}

// Configure sets the rules. Calls under way that they do not allow any more end.
func (p *policy) Configure(rules []Rule) {
	p.rules.Store(&rules)
	for _, err := range p.ruled.check(p.may) {
		p.log.Info("call ended", "error", err)
	}
}

// Entry describes a call as the transport received it.
type Entry struct {
	Caller    Caller
	Operation Operation

	// Name is what the logs call the call; the operation's name if it is empty.
	Name string

	// Check returns the reason to refuse a caller that was accepted before; nil: there
	// is none.
	Check func() error

	// Subject returns what the request is about, as far as the transport knows: for calls
	// that end before the operation begins. It may be nil.
	Subject func() Subject
}

// call is a call under way.
type call struct {
	Entry
	start    time.Time
	end      context.CancelCauseFunc
	begun    bool    // the operation
	subject  Subject // once it has begun
	made     string  // the job that it has made
	done     string  // how much it did, in words
	recorded bool    // the audit log has its line
}

type callKey struct{}

// Call runs act, which is to do one operation, if the caller may do that. A transport
// calls it around all that belongs to a call, so that what goes wrong in reading the
// request, or after the operation, is judged and recorded as well. The operation's method
// must get the context that act gets.
func (p *policy) Call(ctx context.Context, e Entry, act func(context.Context) error) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := &call{Entry: e, start: time.Now(), end: cancel}
	c.Name = cmp.Or(c.Name, string(c.Operation))
	defer p.ruled.remove(c)
	defer func() { p.record(c, err) }()
	defer func() {
		if v := recover(); v != nil {
			p.log.Error("panic in a call", "method", c.Name, "panic", v, "stack", string(debug.Stack()))
			err = errInternal
		}
	}()
	if e.Check != nil {
		err = e.Check()
	}
	if err == nil {
		err = authorize(e.Caller, e.Operation)
	}
	if err == nil {
		err = act(context.WithValue(ctx, callKey{}, c))
	}
	if err == nil {
		return nil
	}
	err, forLog := classify(ctx, err)
	if forLog {
		p.log.LogAttrs(ctx, slog.LevelError, "call failed",
			slog.String("method", c.Name), slog.String("caller", c.Caller.Name), slog.Any("error", err))
	}
	return public(err)
}

// do does an operation in the call that the context carries, or in one of its own.
func (p *policy) do(ctx context.Context, c Caller, op Operation, about Subject, act func(context.Context, *call) error) error {
	open, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return p.Call(ctx, Entry{Caller: c, Operation: op}, func(ctx context.Context) error { return p.do(ctx, c, op, about, act) })
	}
	if open.Operation != op || open.Caller != c {
		return joblet.Errorf(joblet.Internal, "operation %s of %s within a call of %s of %s", op, c.Name, open.Operation, open.Caller.Name)
	}
	open.begun, open.subject = true, about
	return act(ctx, open)
}

// onJob does an operation on the job that ref names, if the caller may do that with it.
// act gets the job's id: what the name means depends on the caller, and it is this job
// with which that is done, and of which the audit log tells.
func (p *policy) onJob(ctx context.Context, c Caller, op Operation, ref string, about Subject, act func(ctx context.Context, open *call, id string) error) error {
	about.Job = clip(ref)
	return p.do(ctx, c, op, about, func(ctx context.Context, open *call) error {
		id, err := p.find(ctx, open, ref)
		if err != nil {
			return err
		}
		open.subject.Job = id
		return act(ctx, open, id)
	})
}
