package supervisor

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/events"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/queue"
	"github.com/joblet/joblet/internal/runtimes"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/schedule"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/keylock"
	"github.com/joblet/joblet/internal/supervisor/plan"
	"github.com/joblet/joblet/internal/supervisor/records"
	"github.com/joblet/joblet/internal/supervisor/staging"
)

// maxWaiting bounds how many jobs may wait: each is held in memory.
const maxWaiting = 20_000

// submitter accepts jobs.
type submitter struct {
	records  *records.Records
	engine   *native.Engine
	runtimes *runtimes.Store
	planner  *plan.Planner
	quota    *staging.Quota
	keys     *keylock.Lock

	table    *table
	lookup   *lookup
	waitlist *waitlist
	executor *executor
}

// Submit accepts a job and returns once that is durable: its command runs, or
// it waits. An error means that there is no such job and nothing of it is left;
// its kind says whether the command could not be found or executed. input is
// what Stage returned for the job, or nil; Submit takes it over.
func (s *Supervisor) Submit(ctx context.Context, spec joblet.Spec, owner string, input *staging.Upload) (joblet.Job, error) {
	return s.submitter.submitted(ctx, spec, owner, input, false)
}

// Record is Submit, but a job whose command cannot be run is accepted too, and FAILED.
func (s *Supervisor) Record(ctx context.Context, spec joblet.Spec, owner string, input *staging.Upload) (joblet.Job, error) {
	return s.submitter.submitted(ctx, spec, owner, input, true)
}

func (s *submitter) submitted(ctx context.Context, spec joblet.Spec, owner string, input *staging.Upload, keep bool) (joblet.Job, error) {
	job, err := s.submit(ctx, spec, owner, input, keep)
	if err != nil || input != nil && input.ID() != job.ID {
		err = outcome.WithCleanup(err, input.Discard()) // not used: a failure, or the job was there already
	}
	return job, err
}

func (s *submitter) submit(ctx context.Context, spec joblet.Spec, owner string, input *staging.Upload, keep bool) (joblet.Job, error) {
	id := joblet.NewID()
	if input != nil {
		id = input.ID()
		spec.Uploads = input.Tops()
	}
	if err := input.Check(spec); err != nil {
		return joblet.Job{}, err
	}
	if err := s.quota.Reserve(owner, id, 0); err != nil {
		return joblet.Job{}, err
	}
	if err := spec.Validate(); err != nil {
		return joblet.Job{}, err
	}
	if strings.HasPrefix(spec.IdempotencyKey, keyPrefix) {
		return joblet.Job{}, joblet.Errorf(joblet.InvalidArgument, "invalid idempotency key %s: keys that begin with %s are reserved for the daemon", spec.IdempotencyKey, keyPrefix)
	}
	if spec.WorkDir == "" {
		spec.WorkDir = joblet.DefaultWorkDir
	}
	if spec.Runtime != "" {
		rt, err := s.runtimes.Find(spec.Runtime)
		if err != nil {
			return joblet.Job{}, err
		}
		spec.Runtime = rt.Name
	}
	var err error
	if spec.Limits, err = s.planner.Grant(spec.Limits); err != nil {
		return joblet.Job{}, err
	}
	rec := store.Record{Job: joblet.Job{ID: id, Spec: spec, Owner: owner, Created: time.Now()}}
	if err := s.plan(ctx, &rec); err != nil {
		return joblet.Job{}, err
	}
	if spec.IdempotencyKey != "" {
		unlock, err := s.keys.Lock(ctx, owner+"\x00"+spec.IdempotencyKey)
		if err != nil {
			return joblet.Job{}, err
		}
		defer unlock()
		if known, err := s.records.ByKey(ctx, owner, spec.IdempotencyKey); err == nil {
			return s.sameJob(ctx, known.Job, rec.Spec)
		} else if joblet.KindOf(err) != joblet.NotFound {
			return joblet.Job{}, err
		}
	}
	return s.accept(ctx, rec, keep)
}

// sameJob returns the job of an idempotency key, if the new request is for the same
// command.
func (s *submitter) sameJob(ctx context.Context, known joblet.Job, asked joblet.Spec) (joblet.Job, error) {
	if known.Spec.CommandLine() != asked.CommandLine() || known.Spec.Runtime != asked.Runtime {
		return joblet.Job{}, joblet.Errorf(joblet.AlreadyExists, "idempotency key %s belongs to job %s, which is another: %.100s",
			asked.IdempotencyKey, joblet.ShortID(known.ID), known.Spec.CommandLine())
	}
	return s.lookup.current(ctx, known), nil
}

// accept makes the job durable, and runs it if it can run at once. keep says what to do
// if its command cannot be run: see Record.
func (s *submitter) accept(ctx context.Context, rec store.Record, keep bool) (_ joblet.Job, err error) {
	spec := rec.Spec
	s.planner.UseRuntime(spec.Runtime, 1)
	defer func() {
		if err != nil {
			s.planner.UseRuntime(spec.Runtime, -1)
			return
		}
		s.table.events.Publish(events.Event{Kind: events.Accepted, Job: rec.ID})
	}()
	run, err := s.planner.Run(spec) // also for a job that runs later, to report errors now
	if err != nil {
		return joblet.Job{}, err
	}
	if err := s.records.Seal(&rec); err != nil {
		return joblet.Job{}, err
	}
	fault.Point("accept.planned")
	j := newEntry(rec)
	if !s.mayStart(j) {
		return s.enqueueNew(context.WithoutCancel(ctx), j)
	}
	defer s.table.work.Done()
	box, err := s.engine.Take(context.WithoutCancel(ctx), run)
	if err != nil {
		s.table.forget(j)
		s.table.freeSlot(j)
		s.table.notStarted(j, joblet.KindOf(err))
		return joblet.Job{}, err
	}
	s.executor.becomeStarting(j, box)
	return s.executor.start(context.WithoutCancel(ctx), j, box, run, keep)
}

// mayStart reports whether the job can run at once. Then the table has it, with a slot,
// and Close waits for the caller. A job with an idempotency key is never started while it
// is being recorded: a crash could leave a run without a record, and the same request
// would run the job twice. The same is true of a job with secrets that may run again: only
// its record has them.
func (s *submitter) mayStart(j *entry) bool {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	secrets := len(j.rec.Spec.SecretEnv) > 0 && j.rec.Spec.Retries > 0
	if s.table.closing || !j.rec.Scheduled.IsZero() || secrets || j.rec.Spec.IdempotencyKey != "" || len(j.rec.Spec.DependsOn) > 0 ||
		s.table.hasMany(j) || s.table.holdsMuch(j) || !s.table.queue.Admit(&j.item) {
		return false
	}
	j.startedAt = j.rec.Created
	s.table.add(j)
	s.table.work.Add(1)
	return true
}

// plan determines when a new job is to run, and replaces the names of its dependencies
// by ids.
func (s *submitter) plan(ctx context.Context, rec *store.Record) error {
	spec := &rec.Spec
	if spec.Schedule != "" {
		when, err := schedule.Parse(spec.Schedule, rec.Created)
		if err != nil {
			return err
		}
		if rec.Scheduled = when.Next(rec.Created.Add(-time.Nanosecond)); rec.Scheduled.IsZero() { // a moment ago
			rec.Scheduled = rec.Created
		}
		spec.Schedule = when.String()
		if err := spec.Validate(); err != nil { // it may turn out to repeat only now
			return err
		}
	}
	spec.DependsOn = slices.Clone(spec.DependsOn)
	for i, ref := range spec.DependsOn {
		job, err := s.lookup.Find(ctx, ref, rec.Owner)
		switch {
		case err != nil:
			return joblet.Errorf(joblet.KindOf(err), "cannot depend on job %.80s: %w", ref, err)
		case job.Spec.Repeats():
			return joblet.Errorf(joblet.InvalidArgument, "cannot depend on job %s: that job repeats and never completes", joblet.ShortID(job.ID))
		case job.State.Final() && job.State != joblet.Completed:
			return joblet.Errorf(joblet.FailedPrecondition, "cannot depend on job %s: that job is %v and will not complete", joblet.ShortID(job.ID), job.State)
		}
		spec.DependsOn[i] = job.ID
	}
	slices.Sort(spec.DependsOn)
	spec.DependsOn = slices.Compact(spec.DependsOn)
	return nil
}

// enqueueNew accepts a job that waits.
func (s *submitter) enqueueNew(ctx context.Context, j *entry) (joblet.Job, error) {
	j.rec.State = joblet.Pending
	if !j.rec.Scheduled.IsZero() {
		j.rec.State = joblet.Scheduled
	}
	s.table.mu.Lock()
	full := len(s.table.jobs)-int(s.table.queue.Used(queue.Slots)) >= maxWaiting
	s.table.mu.Unlock()
	if full {
		return joblet.Job{}, joblet.Errorf(joblet.ResourceExhausted, "%d jobs wait already: try again when some have run", maxWaiting)
	}
	if err := s.table.admitNew(j); err != nil {
		return joblet.Job{}, err
	}
	err := s.records.WriteFile(j.rec)
	if err == nil {
		err = s.records.Insert(ctx, j.rec)
	}
	if err != nil {
		s.table.forget(j)
		return joblet.Job{}, outcome.WithCleanup(err, os.RemoveAll(s.records.Dir(j.rec.ID)))
	}
	fault.Point("queue.inserted")
	s.waitlist.enqueue(j)
	return s.table.snapshot(j).job, nil
}
