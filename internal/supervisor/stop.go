package supervisor

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/records"
	"github.com/joblet/joblet/internal/supervisor/staging"
)

// standing returns a live job at a moment when it either waits or runs, and not
// in between. It has not ended. To end it, its shim is not needed: then it may
// be one without a process, and silent.
func (s *Supervisor) standing(ctx context.Context, id string, ending bool) (*live, view, error) {
	job, err := s.Job(ctx, id)
	if err != nil {
		return nil, view{}, err
	}
	if l := s.find(job.ID); l != nil {
		v, err := s.awaitRun(ctx, l, func(v view) bool {
			return v.job.State.Final() || v.proc != nil || !v.starting && !v.job.State.Alive() ||
				v.silent && ending || v.unrecorded() != nil
		})
		if err == nil && !v.job.State.Final() {
			err = v.unrecorded() // somebody else is about to end it
		}
		if err != nil || !v.job.State.Final() {
			return l, v, err
		}
		job = v.job
	}
	return nil, view{}, joblet.Errorf(joblet.FailedPrecondition, "job %s has ended: %s", joblet.ShortID(job.ID), s.current(ctx, job).State)
}

// process returns the running job with this id, once it runs.
func (s *Supervisor) process(ctx context.Context, id string) (*native.Process, error) {
	_, v, err := s.standing(ctx, id, false)
	if err == nil && v.proc == nil {
		err = joblet.Errorf(joblet.FailedPrecondition, "job %s does not run: it is %s", joblet.ShortID(v.job.ID), v.job.State)
	}
	return v.proc, err
}

// StopWithin is Stop, but returns after a time at the latest. A job that has not ended
// by then ends as soon as it can be asked to.
func (s *Supervisor) StopWithin(ctx context.Context, id string, opt joblet.StopOptions, within time.Duration) (joblet.Job, error) {
	waiting, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	asking, abandon := context.WithCancel(s.ctx)
	asked := make(chan error, 1)
	s.background(func() {
		defer abandon()
		asked <- s.askToEnd(asking, id, opt)
	})
	select {
	case err := <-asked:
		if err != nil {
			return joblet.Job{}, err
		}
	case <-waiting.Done():
		if ctx.Err() != nil || !s.keepAsking(id) {
			abandon()
		}
	case <-s.ctx.Done():
		abandon()
		return joblet.Job{}, joblet.Errorf(joblet.Unavailable, "the daemon is stopping; job %s goes on", joblet.ShortID(id))
	}
	job, err := s.awaitEnd(waiting, id)
	if err != nil && waiting.Err() != nil && ctx.Err() == nil {
		return s.Job(ctx, id)
	}
	return job, err
}

// keepAsking reports whether the job lacks a goroutine that waits to have it end. It
// has one from then on.
func (s *Supervisor) keepAsking(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.live[id]
	if l == nil || l.asking {
		return false
	}
	l.asking = true
	return true
}

// Stop ends a job and returns it once it has ended. A job that ends by itself
// after it was asked to is STOPPED whatever its status; one that waits to run
// for the first time is CANCELED.
func (s *Supervisor) Stop(ctx context.Context, id string, opt joblet.StopOptions) (joblet.Job, error) {
	if err := s.askToEnd(ctx, id, opt); err != nil {
		return joblet.Job{}, err
	}
	return s.awaitEnd(ctx, id)
}

// askToEnd has a job end: at once if it waits, otherwise as opt says.
func (s *Supervisor) askToEnd(ctx context.Context, id string, opt joblet.StopOptions) error {
	if opt.Signal == 0 {
		opt.Signal = int(syscall.SIGTERM)
	}
	if opt.Grace < 0 {
		opt.Grace = joblet.DefaultGrace
	}
	if err := validSignal(opt.Signal); err != nil {
		return err
	}
	for {
		l, v, err := s.standing(ctx, id, true)
		if err != nil {
			return err
		}
		if v.proc == nil && !v.silent {
			if s.cancelWaiting(l, canceledReason) {
				return nil
			}
			continue // it has begun to run meanwhile
		}
		fault.Point("stop.begin")
		if err := s.stopping(l, v.proc, opt); err != nil {
			return err
		}
		fault.Point("stop.sent")
		return nil
	}
}

const (
	canceledReason = "it was canceled before it ran"
	stoppedReason  = "it was stopped before its next attempt"
)

// stopping asks the job's shim to end the run, and notes that before: an end
// that comes in between is one on request. A job that has ended already keeps
// the state that it has. Should the shim not do it, or not be there to be asked
// (proc is nil then), the run's guard does.
func (s *Supervisor) stopping(l *live, proc *native.Process, opt joblet.StopOptions) error {
	s.mu.Lock()
	if l.proc != proc || !l.rec.State.Alive() {
		defer s.mu.Unlock()
		return joblet.Errorf(joblet.FailedPrecondition, "job %s has ended: %s", joblet.ShortID(l.rec.ID), l.rec.State)
	}
	if l.rec.State.MayBecome(joblet.Stopping) {
		s.becomeLocked(l, joblet.Stopping, nil)
	}
	l.demand(opt)
	box := l.rec.Box
	s.mu.Unlock()
	// Recorded before, so that a daemon that comes next knows how an end that
	// comes now is to be called, and asks again if the shim was not asked.
	if err := s.save(l, false); err != nil && s.ctx.Err() == nil {
		s.cfg.Log.Warn("record that a job is to end", "job", s.look(l).job.ID, "error", err)
	}
	fault.Point("stop.recorded")
	if proc == nil {
		s.engine.Wake(box) // once it is adopted, it is asked
		return nil
	}
	err := proc.Stop(syscall.Signal(opt.Signal), opt.Grace)
	if errors.Is(err, native.ErrSilent) || err != nil && joblet.KindOf(err) == joblet.FailedPrecondition {
		return nil // the guard ends it; or it ended just now, and is STOPPED
	}
	return err
}

// Cancelable is Find for Cancel: a name that a repeating job shares with its runs
// means the repeating one, as long as that goes on.
func (s *Supervisor) Cancelable(ctx context.Context, ref, owner string) (joblet.Job, error) {
	job, err := s.Find(ctx, ref, owner)
	if err != nil || job.Parent == "" || ref != job.Spec.Name {
		return job, err
	}
	if parent, err := s.Job(ctx, job.Parent); err == nil && !parent.State.Final() {
		return parent, nil
	}
	return job, nil
}

// Cancel ends a job that waits. One that runs is an error.
func (s *Supervisor) Cancel(ctx context.Context, id string) (joblet.Job, error) {
	for {
		l, v, err := s.standing(ctx, id, true)
		if err != nil {
			return joblet.Job{}, err
		}
		if v.proc != nil || v.silent {
			return joblet.Job{}, joblet.Errorf(joblet.FailedPrecondition, "job %s runs: only a job that waits can be canceled (rnx job stop %[1]s ends it)", joblet.ShortID(v.job.ID))
		}
		if s.cancelWaiting(l, canceledReason) {
			return s.awaitEnd(ctx, v.job.ID)
		}
	}
}

// Signal sends a signal to the job's PID 1. With defaultAction one that PID 1 is spared
// ends the job.
func (s *Supervisor) Signal(ctx context.Context, id string, sig syscall.Signal, defaultAction bool) error {
	if err := validSignal(int(sig)); err != nil {
		return err
	}
	proc, err := s.process(ctx, id)
	if err != nil {
		return err
	}
	return proc.Signal(sig, defaultAction)
}

func validSignal(sig int) error {
	if sig < 1 || sig > 64 {
		return joblet.Errorf(joblet.InvalidArgument, "signal %d: must be between 1 and 64", sig)
	}
	return nil
}

// Rerun submits a job like the one with this id, with its files, at once. What
// that had of secrets must be given again: ended jobs have none.
func (s *Supervisor) Rerun(ctx context.Context, id, owner string, secrets map[string]string) (joblet.Job, error) {
	job, err := s.Job(ctx, id)
	if err != nil {
		return joblet.Job{}, err
	}
	spec := job.Spec
	for name := range spec.SecretEnv {
		if _, ok := secrets[name]; !ok {
			return joblet.Job{}, joblet.Errorf(joblet.InvalidArgument, "job %s had a secret %s, which is not kept: pass it again (--secret-env %[2]s)", joblet.ShortID(job.ID), name)
		}
	}
	if spec.Stdin == joblet.StdinStream {
		return joblet.Job{}, joblet.Errorf(joblet.FailedPrecondition, "job %s had a stream as its standard input, which is not kept: run it again with --stdin", joblet.ShortID(job.ID))
	}
	spec.SecretEnv = secrets
	spec.Schedule, spec.Overlap, spec.DependsOn, spec.IdempotencyKey = "", "", nil, ""
	var input *staging.Upload
	if len(spec.Uploads) > 0 || spec.Stdin != joblet.StdinNone {
		if input, err = s.uploads.Link(job, owner, spec); err != nil {
			return joblet.Job{}, err
		}
	}
	return s.Submit(ctx, spec, owner, input)
}

// Delete removes an ended job: record, log and directory.
func (s *Supervisor) Delete(ctx context.Context, id string) error {
	job, err := s.Job(ctx, id)
	if err != nil {
		return err
	}
	if !job.State.Final() {
		return joblet.Errorf(joblet.FailedPrecondition, "job %s is %s: stop it first (rnx job stop %[1]s)", joblet.ShortID(job.ID), job.State)
	}
	// The end must be in the database before the record may go.
	if l := s.find(job.ID); l != nil {
		if err := s.awaitSettled(ctx, l); err != nil {
			return err
		}
	}
	if other := s.dependent(job); other != "" {
		return joblet.Errorf(joblet.FailedPrecondition, "job %s is what job %s depends on, which has not run yet", joblet.ShortID(job.ID), joblet.ShortID(other))
	}
	// One of two at once: the other would put back the directory that this one is removing.
	unlock, err := s.keys.Lock(ctx, "delete\x00"+job.ID)
	if err != nil {
		return err
	}
	defer unlock()
	fault.Point("delete.begin")
	return s.records.Delete(ctx, job.ID, func(rec store.Record) { s.quota.Delete(rec.Owner, rec.ID, rec.DiskBytes) })
}

// roomTime is how long a deletion waits for the job's end to be recorded after it has
// removed the job's files.
const roomTime = 2 * time.Second

// awaitSettled waits until the end of a job that is to be deleted is recorded. When
// a full disk keeps it from being that, the job's files make room.
func (s *Supervisor) awaitSettled(ctx context.Context, l *live) error {
	v, err := s.await(ctx, l, func(v view) bool { return v.settled || v.stuck != nil })
	if err != nil || v.settled {
		return err
	}
	if records.IsFull(v.stuck) {
		jobdir.ClearOutput(s.records.Dir(v.job.ID))
	}
	limited, cancel := context.WithTimeout(ctx, roomTime)
	defer cancel()
	v, err = s.await(limited, l, func(v view) bool { return v.settled })
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return s.look(l).unrecorded()
	}
	return err
}

// dependent returns a job of the same owner that waits and depends on this one, or
// "". Those of others do not hold it, whoever deletes it: they are canceled when
// they look for it.
func (s *Supervisor) dependent(job joblet.Job) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.live {
		if l.rec.Attempt == 0 && l.rec.Owner == job.Owner && slices.Contains(l.rec.Spec.DependsOn, job.ID) && !l.rec.State.Final() {
			return l.rec.ID
		}
	}
	return ""
}

// Prune deletes the ended jobs that pass the filter, and returns how many those
// are and what they took on disk, in bytes. With dryRun it only counts them.
func (s *Supervisor) Prune(ctx context.Context, f joblet.Filter, dryRun bool) (deleted int, freed int64, err error) {
	return s.retention.Prune(ctx, f, dryRun)
}

// lostInput ends a job that waited, found by recovery, whose standard input was a
// stream of a former daemon's.
func (s *Supervisor) lostInput(l *live) {
	s.cancelWaiting(l, "its standard input was a stream, which was lost with the daemon")
}
