package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/pki"
)

// access is what a call does with a job of somebody.
type access uint8

const (
	free     access = iota // nothing
	reads                  // shows what it does, writes and leaves
	controls               // ends or changes it, or makes another like it
)

// accesses says what the methods of JobService do with the job that their
// request names. One that is not listed controls it.
var accesses = map[string]access{
	api.JobService_RunJob_FullMethodName:         free,
	api.JobService_RunJobAttached_FullMethodName: free,
	api.JobService_SubmitJob_FullMethodName:      free, // it shares its messages with AttachJob, and takes none that names a job
	api.JobService_ListJobs_FullMethodName:       free, // others' jobs are shown in outline
	api.JobService_QueryJobs_FullMethodName:      free,
	api.JobService_DeleteAllJobs_FullMethodName:  free, // the caller's own
	api.JobService_PruneJobs_FullMethodName:      free,

	api.JobService_GetJobStatus_FullMethodName:        reads,
	api.JobService_GetJobLogs_FullMethodName:          reads,
	api.JobService_FollowJob_FullMethodName:           reads,
	api.JobService_WaitJob_FullMethodName:             reads,
	api.JobService_GetJobFiles_FullMethodName:         reads,
	api.JobService_StreamJobMetrics_FullMethodName:    reads,
	api.JobService_GetJobMetrics_FullMethodName:       reads,
	api.JobService_ListJobProcesses_FullMethodName:    reads,
	api.JobService_StreamJobTelematics_FullMethodName: reads,
	api.JobService_GetJobTelematics_FullMethodName:    reads,

	api.JobService_StopJob_FullMethodName:   controls,
	api.JobService_CancelJob_FullMethodName: controls,
	api.JobService_SignalJob_FullMethodName: controls,
	api.JobService_DeleteJob_FullMethodName: controls,
	api.JobService_RerunJob_FullMethodName:  controls,
	api.JobService_AttachJob_FullMethodName: controls, // it types
	api.JobService_ExecJob_FullMethodName:   controls,
	api.JobService_PauseJob_FullMethodName:  controls,
	api.JobService_ResumeJob_FullMethodName: controls,
	api.JobService_UpdateJob_FullMethodName: controls,
}

func (a access) String() string {
	return map[access]string{reads: "see", controls: "change"}[a]
}

// commands are the methods that have a job that is there run what the caller says,
// or run it again: as far shut in as that job is, whoever submitted it.
var commands = map[string]bool{
	api.JobService_RerunJob_FullMethodName:  true,
	api.JobService_AttachJob_FullMethodName: true,
	api.JobService_ExecJob_FullMethodName:   true,
}

const jobServicePrefix = "/joblet.JobService/"

func accessOf(method string) access {
	if a, ok := accesses[method]; ok {
		return a
	}
	if strings.HasPrefix(method, jobServicePrefix) {
		return controls
	}
	return free
}

// Rule grants developers something with the jobs of others.
type Rule struct {
	who, owner string // "cert:NAME", "uid:N"; empty: everybody
	may        access
}

// ParseRule reads "WHO read|control OWNER": names of clients, or "*" for all of
// them; an owner may be "uid:0" as well. Who may control may read.
func ParseRule(s string) (Rule, error) {
	words := strings.Fields(s)
	if len(words) != 3 {
		return Rule{}, joblet.Errorf(joblet.InvalidArgument, "rule %.200q: must be WHO read|control OWNER", s)
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
		return strings.TrimPrefix(name, certPrefix)
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
	s = strings.TrimPrefix(s, certPrefix)
	return certPrefix + s, pki.ValidName(s)
}

func (r Rule) grants(who string, a access, owner string) bool {
	return a <= r.may && (r.who == "" || r.who == who) && (r.owner == "" || r.owner == owner)
}

// mayAll reports whether the caller has this access to everybody's jobs.
func mayAll(c caller, a access) bool {
	has := c.role()
	return has != developer && has >= reader && a <= reads || has >= maintainer
}

// may reports whether the caller has this access to the jobs of an owner.
func (s *Server) may(c caller, a access, owner string) bool {
	return mayAll(c, a) || c.name() == owner ||
		slices.ContainsFunc(s.settings.Load().Allow, func(r Rule) bool { return r.grants(c.name(), a, owner) })
}

// checkJob finds the job that a request names, and reports whether the caller may
// do with it what the method does. named: the request has to name one. The name
// becomes the job's id: what it means depends on the caller, and it is this job
// with which that is done, and of which the audit log tells.
func (s *Server) checkJob(ctx context.Context, c caller, method string, request any, named bool) error {
	a := accessOf(method)
	if a == free {
		return nil
	}
	all := mayAll(c, a)
	ref, set, ok := jobRef(request)
	switch {
	case !ok && named && !all:
		return joblet.Errorf(joblet.InvalidArgument, "the call names no job of which it could be known whose it is")
	case !ok, ref == "" && all: // the call itself says what is wrong
		return nil
	}
	find := s.sup.Find
	if method == api.JobService_CancelJob_FullMethodName {
		find = s.sup.Cancelable
	}
	job, err := find(ctx, ref, c.name())
	if err != nil {
		return err
	}
	if !all && c.name() != job.Owner {
		s.ruled.add(ctx, use{access: a, job: job.ID, owner: job.Owner}) // before the rules are asked: they may change just then
	}
	if !s.may(c, a, job.Owner) {
		return deniedJob(c, a, job)
	}
	if commands[method] {
		if err := mayHave(c, job.Spec.Security); err != nil {
			return err
		}
	}
	set(job.ID)
	return nil
}

func deniedJob(c caller, a access, job joblet.Job) error {
	return joblet.Errorf(joblet.PermissionDenied, "job %s belongs to %s: %s may not %s it (the daemon's configuration can allow it)",
		joblet.ShortID(job.ID), job.Owner, c.name(), a)
}

// checkDependencies reports whether the caller may read the jobs on which a new one
// depends: it tells how they end. Their names become their ids.
func (s *Server) checkDependencies(ctx context.Context, spec *joblet.Spec) error {
	if len(spec.DependsOn) == 0 {
		return nil
	}
	if err := spec.Validate(); err != nil { // there may be too many
		return err
	}
	c := callerOf(ctx)
	spec.DependsOn = slices.Clone(spec.DependsOn)
	for i, ref := range spec.DependsOn {
		job, err := s.sup.Find(ctx, ref, c.name())
		if err == nil && !s.may(c, reads, job.Owner) {
			err = deniedJob(c, reads, job)
		}
		if err != nil {
			return joblet.Errorf(joblet.KindOf(err), "depends on %.80s: %w", ref, err)
		}
		spec.DependsOn[i] = job.ID
	}
	return nil
}

// ruledCalls are the calls under way that are about jobs of others, which a rule
// allows: when there is none any more they end.
type ruledCalls struct {
	mu   sync.Mutex // protects what follows
	uses map[*openCall][]use
}

// openCall is a call under way.
type openCall struct {
	caller caller
	end    context.CancelCauseFunc
}

type openCallKey struct{}

// use is what a call does with a job.
type use struct {
	access     access
	job, owner string
}

// withdrawnError is why a call ended that was allowed when it began.
type withdrawnError struct{ error }

func (e withdrawnError) Unwrap() error { return e.error }

// withdrawn returns why a call has ended that was allowed when it began, or nil.
func withdrawn(ctx context.Context) error {
	if ctx.Err() != nil {
		if err, ok := errors.AsType[withdrawnError](context.Cause(ctx)); ok {
			return err
		}
	}
	return nil
}

func (r *ruledCalls) add(ctx context.Context, u use) {
	call, ok := ctx.Value(openCallKey{}).(*openCall)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.ContainsFunc(r.uses[call], func(other use) bool { return other.owner == u.owner && other.access == u.access }) {
		return // what holds for one job of an owner does for all
	}
	if r.uses == nil {
		r.uses = map[*openCall][]use{}
	}
	r.uses[call] = append(r.uses[call], u)
}

func (r *ruledCalls) remove(call *openCall) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.uses, call)
}

// check ends the calls that are not allowed any more, and returns the reasons.
func (r *ruledCalls) check(may func(caller, access, string) bool) (ended []error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for call, uses := range r.uses {
		for _, u := range uses {
			if may(call.caller, u.access, u.owner) {
				continue
			}
			err := joblet.Errorf(joblet.PermissionDenied, "job %s belongs to %s: %s may not %s it any more (the daemon's configuration has changed)",
				joblet.ShortID(u.job), u.owner, call.caller.name(), u.access)
			call.end(withdrawnError{err})
			ended = append(ended, err)
			break
		}
	}
	return ended
}

// jobRef returns the job that a message names, itself or in a message that it
// holds, and how to change that.
func jobRef(message any) (ref string, set func(string), ok bool) {
	m, isProto := message.(proto.Message)
	if !isProto || m == nil {
		return "", nil, false
	}
	return jobRefIn(m.ProtoReflect(), true)
}

func jobRefIn(m protoreflect.Message, deeper bool) (string, func(string), bool) {
	fields := m.Descriptor().Fields()
	for _, name := range []protoreflect.Name{"uuid", "job_uuid"} {
		if f := fields.ByName(name); f != nil && f.Kind() == protoreflect.StringKind && !f.IsList() {
			return m.Get(f).String(), func(id string) { m.Set(f, protoreflect.ValueOfString(id)) }, true
		}
	}
	if !deeper {
		return "", nil, false
	}
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.Message() == nil || f.IsList() || f.IsMap() || !m.Has(f) {
			continue
		}
		if ref, set, ok := jobRefIn(m.Get(f).Message(), false); ok {
			return ref, set, true
		}
	}
	return "", nil, false
}

// shown returns a job that passed a filter as the caller may see it in a list:
// somebody else's, which he may not read, in outline. A filter by what an outline
// does not show passes none of these (ok is false): it would tell.
func (s *Server) shown(ctx context.Context, f joblet.Filter, job joblet.Job) (_ joblet.Job, ok bool) {
	if c := callerOf(ctx); mayAll(c, reads) || s.may(c, reads, job.Owner) {
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
func own(ctx context.Context, f joblet.Filter) joblet.Filter {
	if c := callerOf(ctx); !mayAll(c, controls) {
		f.Owner = c.name()
	}
	return f
}
