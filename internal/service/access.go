package service

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/pki"
)

// access is what a call does with another owner's job.
type access uint8

const (
	free     access = iota // nothing
	reads                  // shows what it does, writes and leaves
	controls               // ends or changes it, or makes another like it
)

func (a access) String() string {
	return map[access]string{reads: "see", controls: "change"}[a]
}

// CertPrefix is before the names of clients with a certificate.
const CertPrefix = "cert:"

// Rule grants developers something with the jobs of others.
type Rule struct {
	who, owner string // "cert:NAME", "uid:N"; empty: everybody
	may        access
}

// ParseRule reads "CLIENT read|control OWNER": names of clients, or "*" for all; an
// owner may be "uid:0" as well. The access control includes read.
func ParseRule(s string) (Rule, error) {
	words := strings.Fields(s)
	if len(words) != 3 {
		return Rule{}, joblet.Errorf(joblet.InvalidArgument, "rule %.200q: must be CLIENT read|control OWNER", s)
	}
	var r Rule
	switch words[1] {
	case "read":
		r.may = reads
	case "control":
		r.may = controls
	default:
		return Rule{}, joblet.Errorf(joblet.InvalidArgument, "rule %.200q: %.40q must be read or control", s, words[1])
	}
	var err error
	if r.who, err = ruleName(words[0]); err == nil {
		r.owner, err = ruleName(words[2])
	}
	if err != nil {
		return Rule{}, joblet.Errorf(joblet.InvalidArgument, "rule %.200q: %w", s, err)
	}
	return r, nil
}

// String returns what ParseRule reads.
func (r Rule) String() string {
	show := func(name string) string {
		if name == "" {
			return "*"
		}
		return strings.TrimPrefix(name, CertPrefix)
	}
	return show(r.who) + map[access]string{reads: " read ", controls: " control "}[r.may] + show(r.owner)
}

func ruleName(s string) (string, error) {
	if s == "*" {
		return "", nil
	}
	if strings.HasPrefix(s, "uid:") {
		return s, nil
	}
	s = strings.TrimPrefix(s, CertPrefix)
	return CertPrefix + s, pki.ValidName(s)
}

func (r Rule) grants(who string, a access, owner string) bool {
	return a <= r.may && (r.who == "" || r.who == who) && (r.owner == "" || r.owner == owner)
}

// mayAll reports whether the caller has this access to everybody's jobs.
func mayAll(c Caller, a access) bool {
	return c.Role != Developer && c.Role >= Reader && a <= reads || c.Role >= Maintainer
}

// may reports whether the caller has this access to the jobs of an owner.
func (p *policy) may(c Caller, a access, owner string) bool {
	return mayAll(c, a) || c.Name == owner ||
		slices.ContainsFunc(*p.rules.Load(), func(r Rule) bool { return r.grants(c.Name, a, owner) })
}

// find returns the id of the job that ref names, if the caller may do with it what the
// operation does.
func (p *policy) find(ctx context.Context, open *call, ref string) (id string, err error) {
	c, op := open.Caller, operations[open.Operation]
	find := p.sup.Find
	if open.Operation == CancelJob {
		find = p.sup.Cancelable
	}
	job, err := find(ctx, ref, c.Name)
	if err != nil {
		return "", err
	}
	if !mayAll(c, op.access) && c.Name != job.Owner {
		p.ruled.add(open, use{access: op.access, job: job.ID, owner: job.Owner}) // before the rules are asked: they may change just then
	}
	if !p.may(c, op.access, job.Owner) {
		return "", deniedJob(c, op.access, job)
	}
	if op.commands {
		if err := mayHave(c, job.Spec.Security); err != nil {
			return "", err
		}
	}
	return job.ID, nil
}

func deniedJob(c Caller, a access, job joblet.Job) error {
	return joblet.Errorf(joblet.PermissionDenied, "job %s belongs to %s: %s may not %s it; a rule in the daemon's configuration (allow) can permit that",
		joblet.ShortID(job.ID), job.Owner, c.Name, a)
}

// checkDependencies reports whether the caller may read the jobs on which a new one
// depends: it tells how they end. Their names become their ids.
func (p *policy) checkDependencies(ctx context.Context, c Caller, spec *joblet.Spec) error {
	if len(spec.DependsOn) == 0 {
		return nil
	}
	if err := spec.Validate(); err != nil { // there may be too many
		return err
	}
	spec.DependsOn = slices.Clone(spec.DependsOn)
	for i, ref := range spec.DependsOn {
		job, err := p.sup.Find(ctx, ref, c.Name)
		if err == nil && !p.may(c, reads, job.Owner) {
			err = deniedJob(c, reads, job)
		}
		if err != nil {
			return joblet.Errorf(joblet.KindOf(err), "cannot depend on job %.80s: %w", ref, err)
		}
		spec.DependsOn[i] = job.ID
	}
	return nil
}

// ruledCalls are the calls under way that are about jobs of others, which a rule
// allows: when there is none any more they end.
type ruledCalls struct {
	mu   sync.Mutex // protects what follows
	uses map[*call][]use
}

// use is what a call does with a job.
type use struct {
	access     access
	job, owner string
}

// withdrawnError is why a call ended that was allowed when it began.
type withdrawnError struct{ error }

func (e withdrawnError) Unwrap() error { return e.error }

// Withdrawn returns why a call has ended that was allowed when it began, or nil. A
// transport asks before it hands on what a caller sends, or sends it something: the
// operation perhaps waits for the caller and has not noticed.
func Withdrawn(ctx context.Context) error {
	if ctx.Err() != nil {
		if err, ok := errors.AsType[withdrawnError](context.Cause(ctx)); ok {
			return err
		}
	}
	return nil
}

func (r *ruledCalls) add(open *call, u use) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.ContainsFunc(r.uses[open], func(other use) bool { return other.owner == u.owner && other.access == u.access }) {
		return // what holds for one job of an owner does for all
	}
	if r.uses == nil {
		r.uses = map[*call][]use{}
	}
	r.uses[open] = append(r.uses[open], u)
}

func (r *ruledCalls) remove(open *call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.uses, open)
}

// check ends the calls that are not allowed any more, and returns the reasons.
func (r *ruledCalls) check(may func(Caller, access, string) bool) (ended []error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for open, uses := range r.uses {
		for _, u := range uses {
			if may(open.Caller, u.access, u.owner) {
				continue
			}
			err := joblet.Errorf(joblet.PermissionDenied, "job %s belongs to %s: %s may not %s it any more, as the daemon's configuration has changed",
				joblet.ShortID(u.job), u.owner, open.Caller.Name, u.access)
			open.end(withdrawnError{err})
			ended = append(ended, err)
			break
		}
	}
	return ended
}

// shown returns a job that passed a filter as the caller may see it in a list: another
// owner's job, without permission to read it, as a summary. A filter by a field that the
// summary hides matches none of these jobs (ok is false): a match would reveal the field.
func (p *policy) shown(c Caller, f joblet.Filter, job joblet.Job) (_ joblet.Job, ok bool) {
	if p.may(c, reads, job.Owner) {
		return job, true
	}
	return outline(job), len(f.Labels) == 0
}

// outline is what everybody sees of a job: whose it is and how it does.
func outline(j joblet.Job) joblet.Job {
	return joblet.Job{
		ID: j.ID, Owner: j.Owner, State: j.State, Created: j.Created, Scheduled: j.Scheduled, Started: j.Started, Ended: j.Ended, Exit: j.Exit,
		Attempt: j.Attempt, Parent: j.Parent, Spec: joblet.Spec{Name: j.Spec.Name, Command: joblet.Mask},
	}
}

// own narrows a filter of jobs that are to be deleted to those that the caller may
// delete without asking whose they are.
func own(c Caller, f joblet.Filter) joblet.Filter {
	if !mayAll(c, controls) {
		f.Owner = c.Name
	}
	return f
}
