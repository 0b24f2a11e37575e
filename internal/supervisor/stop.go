package supervisor

import (
	"context"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/records"
	"github.com/joblet/joblet/internal/supervisor/staging"
)

// StopWithin is Stop, but returns after a time at the latest. A job that has not ended
// by then ends as soon as it can be asked to.
func (s *Supervisor) StopWithin(ctx context.Context, id string, opt joblet.StopOptions, within time.Duration) (joblet.Job, error) {
	waiting, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	asking, abandon := context.WithCancel(s.ctx)
	asked := make(chan error, 1)
	s.table.background(func() {
		defer abandon()
		asked <- s.requestStop(asking, id, opt)
	})
	select {
	case err := <-asked:
		if err != nil {
			return joblet.Job{}, err
		}
	case <-waiting.Done():
		if ctx.Err() != nil || !s.table.claimStop(id) {
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

// Stop ends a job and returns it once it has ended. A job that ends by itself
// after it was asked to is STOPPED whatever its status; one that waits to run
// for the first time is CANCELED.
func (s *Supervisor) Stop(ctx context.Context, id string, opt joblet.StopOptions) (joblet.Job, error) {
	if err := s.requestStop(ctx, id, opt); err != nil {
		return joblet.Job{}, err
	}
	return s.awaitEnd(ctx, id)
}

// requestStop ends a job: at once if it waits, otherwise as opt says.
func (s *Supervisor) requestStop(ctx context.Context, id string, opt joblet.StopOptions) error {
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
		j, v, err := s.steady(ctx, id, true)
		if err != nil {
			return err
		}
		if v.proc == nil && !v.silent {
			if s.waitlist.cancelWaiting(j, outcome.CanceledReason) {
				return nil
			}
			continue // it has begun to run meanwhile
		}
		fault.Point("stop.begin")
		if err := s.executor.sendStop(j, v.proc, opt); err != nil {
			return err
		}
		fault.Point("stop.sent")
		return nil
	}
}

// Cancelable is Find for Cancel: a name that a repeating job shares with its runs means
// the repeating job until it has ended.
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
		j, v, err := s.steady(ctx, id, true)
		if err != nil {
			return joblet.Job{}, err
		}
		if v.proc != nil || v.silent {
			return joblet.Job{}, joblet.Errorf(joblet.FailedPrecondition, "job %s runs: only a job that waits can be canceled (rnx job stop %[1]s ends it)", joblet.ShortID(v.job.ID))
		}
		if s.waitlist.cancelWaiting(j, outcome.CanceledReason) {
			return s.awaitEnd(ctx, v.job.ID)
		}
	}
}

// Signal sends a signal to the job's PID 1. With defaultAction, a signal that PID 1 does
// not handle ends the job.
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

// Rerun submits a job like the one with this id, with its files, at once. Its secrets
// must be passed again: ended jobs have none.
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
	if j := s.table.find(job.ID); j != nil {
		if err := s.awaitSettled(ctx, j); err != nil {
			return err
		}
	}
	if other := s.table.dependent(job); other != "" {
		return joblet.Errorf(joblet.FailedPrecondition, "cannot delete job %s: job %s depends on it and has not run yet", joblet.ShortID(job.ID), joblet.ShortID(other))
	}
	// One deletion at a time: another would restore the directory that this one removes.
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

// awaitSettled waits until the end of a job is recorded, before the job is deleted. If a
// full disk prevents that, the removal of the job's files makes room.
func (s *Supervisor) awaitSettled(ctx context.Context, j *entry) error {
	v, err := s.table.await(ctx, j, func(v snapshot) bool { return v.settled || v.saveErr != nil })
	if err != nil || v.settled {
		return err
	}
	if records.IsFull(v.saveErr) {
		jobdir.ClearOutput(s.records.Dir(v.job.ID))
	}
	limited, cancel := context.WithTimeout(ctx, roomTime)
	defer cancel()
	v, err = s.table.await(limited, j, func(v snapshot) bool { return v.settled })
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return s.table.snapshot(j).unrecorded()
	}
	return err
}

// Prune deletes the ended jobs that pass the filter, and returns how many those
// are and what they took on disk, in bytes. With dryRun it only counts them.
func (s *Supervisor) Prune(ctx context.Context, f joblet.Filter, dryRun bool) (deleted int, freed int64, err error) {
	return s.retention.Prune(ctx, f, dryRun)
}
