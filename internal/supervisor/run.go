package supervisor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/events"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/records"
	"github.com/joblet/joblet/internal/supervisor/staging"
)

// Submit accepts a job and returns once that is durable: its command runs, or
// it waits. An error means that there is no such job and nothing of it is left;
// its kind says whether the command could not be found or executed. input is
// what Stage returned for the job, or nil; Submit takes it over.
func (s *Supervisor) Submit(ctx context.Context, spec joblet.Spec, owner string, input *staging.Upload) (joblet.Job, error) {
	return s.submitted(ctx, spec, owner, input, false)
}

// Record is Submit, but a job whose command cannot be run is accepted too, and FAILED.
func (s *Supervisor) Record(ctx context.Context, spec joblet.Spec, owner string, input *staging.Upload) (joblet.Job, error) {
	return s.submitted(ctx, spec, owner, input, true)
}

func (s *Supervisor) submitted(ctx context.Context, spec joblet.Spec, owner string, input *staging.Upload, keep bool) (joblet.Job, error) {
	job, err := s.submit(ctx, spec, owner, input, keep)
	if err != nil || input != nil && input.ID() != job.ID {
		err = joinKind(err, input.Discard()) // not used: a failure, or the job was there already
	}
	return job, err
}

func (s *Supervisor) submit(ctx context.Context, spec joblet.Spec, owner string, input *staging.Upload, keep bool) (joblet.Job, error) {
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
		return joblet.Job{}, joblet.Errorf(joblet.InvalidArgument, "idempotency key %s: those that begin with %s are the daemon's own", spec.IdempotencyKey, keyPrefix)
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

// sameJob returns the job that an idempotency key stands for, if it is the one
// that is asked for again.
func (s *Supervisor) sameJob(ctx context.Context, known joblet.Job, asked joblet.Spec) (joblet.Job, error) {
	if known.Spec.CommandLine() != asked.CommandLine() || known.Spec.Runtime != asked.Runtime {
		return joblet.Job{}, joblet.Errorf(joblet.AlreadyExists, "idempotency key %s belongs to job %s, which is another: %.100s",
			asked.IdempotencyKey, joblet.ShortID(known.ID), known.Spec.CommandLine())
	}
	return s.current(ctx, known), nil
}

// accept makes the job durable, and runs it if it can run at once. keep says what to do
// if its command cannot be run: see Record.
func (s *Supervisor) accept(ctx context.Context, rec store.Record, keep bool) (_ joblet.Job, err error) {
	spec := rec.Spec
	s.use(spec.Runtime, 1)
	defer func() {
		if err != nil {
			s.use(spec.Runtime, -1)
			return
		}
		s.events.Publish(events.Event{Kind: events.Accepted, Job: rec.ID})
	}()
	run, err := s.planner.Run(spec) // also for a job that runs later: better told now
	if err != nil {
		return joblet.Job{}, err
	}
	if err := s.records.Seal(&rec); err != nil {
		return joblet.Job{}, err
	}
	fault.Point("accept.planned")
	l := newLive(rec)
	if !s.mayStart(l) {
		return s.enqueueNew(context.WithoutCancel(ctx), l)
	}
	defer s.work.Done()
	box, err := s.engine.Take(context.WithoutCancel(ctx), run)
	if err != nil {
		s.forget(l)
		s.freePlace(l)
		s.notStarted(l, joblet.KindOf(err))
		return joblet.Job{}, err
	}
	s.becomeStarting(l, box)
	return s.start(context.WithoutCancel(ctx), l, box, run, keep)
}

// mayStart reports whether the job can run at once, and then makes it a live one
// with a place, and the caller one that Close waits for. A job with an idempotency
// key is never started beside being recorded: a crash could leave a run without
// a record, and asking again would run it twice. Nor is one with secrets that may run
// again: they are in its record alone.
func (s *Supervisor) mayStart(l *live) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	secrets := len(l.rec.Spec.SecretEnv) > 0 && l.rec.Spec.Retries > 0
	if s.closing || !l.rec.Scheduled.IsZero() || secrets || l.rec.Spec.IdempotencyKey != "" || len(l.rec.Spec.DependsOn) > 0 ||
		s.hasMany(l) || s.holdsMuch(l) || !s.queue.Admit(&l.item) {
		return false
	}
	l.begun = l.rec.Created
	s.keep(l)
	s.work.Add(1)
	return true
}

// becomeStarting notes that the job's next attempt is about to run in box.
func (s *Supervisor) becomeStarting(l *live, box *native.Sandbox) store.Record {
	return s.become(l, joblet.Initializing, func(r *store.Record) {
		r.Attempt++
		r.Box, r.IDBase, r.Leases = box.ID, box.IDBase, box.Leases
		r.Started, r.Ended, r.Exit, r.Reason, r.PID, r.WorkBytes = time.Time{}, time.Time{}, nil, "", 0, 0
		r.Usage, r.OutOfMemory, r.Denied = joblet.Usage{}, false, nil
		l.over = make(chan struct{})
		l.proc, l.stop = nil, nil
	})
}

// start makes the job's record durable while its box gets its command: the two
// need nothing of each other, and a job is accepted when both are done. A crash
// between them leaves a job that nobody was promised, which recover ends.
func (s *Supervisor) start(ctx context.Context, l *live, box *native.Sandbox, run *native.Run, keep bool) (joblet.Job, error) {
	s.mu.Lock()
	record := l.rec
	s.mu.Unlock()
	inserted := make(chan error, 1)
	go func() {
		err := s.records.Insert(ctx, record)
		fault.Point("start.inserted")
		inserted <- err
	}()
	proc, err := s.boxed(box, run, record)
	fault.Point("start.running")
	insertErr := <-inserted
	fault.Point("start.accepted")
	if _, ok := errors.AsType[*commandError](err); ok && keep && insertErr == nil {
		return s.keepUnrunnable(l, box, err)
	}
	if err != nil || insertErr != nil {
		if err == nil {
			err = insertErr
		}
		discardErr, withdrawal := box.Discard(), s.records.Withdraw(record.ID)
		deleteErr := withdrawal.Delete(ctx, insertErr)
		fault.Point("start.undone")
		s.engine.Refill()
		if deleteErr != nil {
			cancelErr := withdrawal.Cancel()
			s.keepFailed(l, err)
			return joblet.Job{}, joinKind(err, discardErr, deleteErr, cancelErr)
		}
		removeErr := withdrawal.Finish()
		s.forget(l)
		s.freePlace(l)
		s.notStarted(l, joblet.KindOf(err))
		return joblet.Job{}, joinKind(err, discardErr, removeErr)
	}
	job := s.running(l, proc)
	s.background(func() { s.watch(l) })
	return job, nil
}

// keepUnrunnable ends a job whose command cannot be run.
func (s *Supervisor) keepUnrunnable(l *live, box *native.Sandbox, cause error) (joblet.Job, error) {
	if err := box.Discard(); err != nil {
		s.cfg.Log.Error("give up a box", "job", s.look(l).job.ID, "error", err)
	}
	s.engine.Refill()
	s.failLaunch(l, cause)
	job := s.look(l).job
	if !job.State.Final() { // the daemon stops; the next one sees why in the exit record
		return joblet.Job{}, cause
	}
	return job, nil
}

// keepFailed ends a job that could not be started and whose record cannot be
// deleted, on a full disk say: it stays, as FAILED. Its exit record says so at
// once, for a record that still says INITIALIZING would have the next daemon start
// the job.
func (s *Supervisor) keepFailed(l *live, cause error) {
	if err := s.records.MarkFailed(s.look(l).job, cause); err != nil {
		s.cfg.Log.Error("write the exit record of a job that could not be started", "job", s.look(l).job.ID, "error", err)
	}
	end := s.become(l, joblet.Failed, func(r *store.Record) {
		r.Reason, r.Failure, r.Ended, r.Sealed = cause.Error(), joblet.KindOf(cause), time.Now(), nil
		l.onDisk = true
		l.endRun()
	})
	s.freePlace(l)
	s.notStarted(l, end.Failure)
	s.use(end.Spec.Runtime, 1) // as a job that was accepted has, until its end
	s.background(func() {
		if s.persist(l, func() error { return s.save(l, true) }) {
			s.finish(l, end)
		}
	})
}

// boxed has the box run the job.
func (s *Supervisor) boxed(box *native.Sandbox, run *native.Run, rec store.Record) (*native.Process, error) {
	job := rec.Job
	if err := s.planner.Prepare(run, job); err != nil {
		return nil, fmt.Errorf("start the job: %w", err)
	}
	if err := s.records.WriteFile(rec); err != nil {
		return nil, err
	}
	fault.Point("sandbox.prepared")
	proc, err := box.Start(run)
	if se, ok := errors.AsType[*native.StartError](err); ok {
		if err = outcome.StartError(job.Spec, se.Failure); ofCommand(se.Failure) {
			err = &commandError{err}
		}
		return nil, err
	}
	return proc, err
}

// commandError is a failure of what a job was to run.
type commandError struct{ error }

func (e *commandError) Unwrap() error { return e.error }

// background runs f beside the caller, unless the daemon is stopping: the next
// one takes up what f was to look after.
func (s *Supervisor) background(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.work.Go(f)
	}
}

// joinKind adds what went wrong while a failed start was undone, and keeps the
// kind of the failure itself.
func joinKind(err error, more ...error) error {
	undo := errors.Join(more...)
	switch {
	case undo == nil:
		return err
	case err == nil:
		return undo
	}
	return joblet.Errorf(joblet.KindOf(err), "%w; cleanup also failed: %w", err, undo)
}

// running notes that the job's command runs.
func (s *Supervisor) running(l *live, proc *native.Process) joblet.Job {
	started := events.Event{Kind: events.Started, Job: l.item.ID}
	job := s.become(l, joblet.Running, func(r *store.Record) {
		l.proc, l.starting = proc, false
		r.PID, r.IDBase = proc.PID, proc.IDBase
		r.Started = proc.Started
		l.sampled = s.sampler.Start(r.Job, proc, r.LogBytes)
		if l.begun.IsZero() {
			return // another daemon has counted it
		}
		if started.Starting = time.Since(l.begun); !l.readied.IsZero() {
			started.Queued = l.begun.Sub(l.readied)
		}
	}).Job
	if started.Starting > 0 {
		s.events.Publish(started)
	}
	job.Spec = job.Spec.Redacted()
	return job
}

// refillDelay is how long a job has the processors to itself before the next box
// is built; a job that ends sooner is out of the way by then.
const refillDelay = 20 * time.Millisecond

// watch waits for the end of a run and settles it.
func (s *Supervisor) watch(l *live) {
	s.mu.Lock()
	id, proc := l.rec.ID, l.proc
	s.mu.Unlock()
	// Not durable: after a crash the job's shim says that it runs.
	if err := s.save(l, false); err != nil && s.ctx.Err() == nil {
		s.cfg.Log.Warn("record that a job runs", "job", id, "error", err)
	}
	fault.Point("run.recorded")
	refill := time.AfterFunc(refillDelay, s.engine.Refill)
	if !s.guard.Watch(s.ctx, s.guarded(l), proc) {
		return
	}
	fault.Point("run.ended")
	s.settle(l)
	if refill.Stop() {
		s.engine.Refill()
	}
}

// releaseEvery is how often the release of a box is tried again that a process
// does not leave: one that waits in the kernel for a disk, say.
const releaseEvery = 10 * time.Second

// releaseLater reports whether it could before the daemon stops.
func (s *Supervisor) releaseLater(rec store.Record) bool {
	for {
		select {
		case <-s.ctx.Done():
			return false // the next daemon does it
		case <-time.After(releaseEvery):
		}
		if s.engine.Release(rec.Box, outcome.LeasesOf(rec)) == nil {
			return true
		}
	}
}

// finish is the last of a job, once its end is durable: jobs that wait for it go
// on. Before, one of them could be CANCELED for good for an end that a crash
// takes back.
func (s *Supervisor) finish(l *live, rec store.Record) {
	s.use(rec.Spec.Runtime, -1)
	s.mu.Lock()
	s.drop(l) // who comes from now on to wait for it looks into the database
	l.settled = true
	l.seq = s.events.Publish(events.Event{Kind: events.Settled, Job: rec.ID, To: rec.State})
	s.mu.Unlock()
	s.releaseWaiters(rec.Job)
	fault.Point("end.told")
}

// persist makes a live job's record durable, however long that takes: on a full
// disk, say. Until then the truth is in memory and in the job's directory. It
// reports whether it could before the daemon stops.
func (s *Supervisor) persist(l *live, save func() error) bool {
	for tries := 1; ; tries++ {
		err := save()
		if records.Written(err) {
			s.setStuck(l, nil)
			return true
		}
		if tries == persistTold {
			s.setStuck(l, err)
		}
		s.cfg.Log.Error("record what became of a job; it is tried again", "job", s.look(l).job.ID, "error", err)
		select {
		case <-s.ctx.Done():
			return false
		case <-time.After(min(time.Duration(tries)*persistEvery, time.Second)):
		}
	}
}

const (
	// persistEvery is how often it is tried, at first.
	persistEvery = 100 * time.Millisecond
	// persistTold is after how many tries those who wait for the end are told.
	persistTold = 4
)

func (s *Supervisor) setStuck(l *live, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.stuck != err {
		l.stuck = err
		s.changed(l)
	}
}
