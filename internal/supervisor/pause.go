package supervisor

import (
	"context"
	"errors"
	"fmt"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/queue"
	"github.com/joblet/joblet/internal/sandbox/native"
)

// Fit returns limits of the public API as this host can give them, and says what it has
// changed.
func (s *Supervisor) Fit(l joblet.Limits) (joblet.Limits, []string, error) {
	return s.engine.FitLimits(l)
}

// Pause freezes a running job: none of its processes goes on until Resume.
func (s *Supervisor) Pause(ctx context.Context, id string) (joblet.Job, error) {
	j, v, err := s.steady(ctx, id, false)
	if err != nil {
		return joblet.Job{}, err
	}
	if v.job.State == joblet.Paused {
		return v.job, nil
	}
	if v.proc == nil || v.job.State != joblet.Running {
		return joblet.Job{}, joblet.Errorf(joblet.FailedPrecondition, "cannot pause job %s: it is %s, and only running jobs can be paused", joblet.ShortID(v.job.ID), v.job.State)
	}
	if err := v.proc.Pause(ctx); err != nil {
		return joblet.Job{}, failed(v, err)
	}
	if !s.table.compareAndSetState(j, v.proc, joblet.Running, joblet.Paused) { // it ended, or is asked to
		if err := v.proc.Resume(); err != nil {
			s.cfg.Log.Debug("a job ended while it was being paused", "job", v.job.ID, "error", err)
		}
		return joblet.Job{}, joblet.Errorf(joblet.FailedPrecondition, "cannot pause job %s: it ended meanwhile", joblet.ShortID(v.job.ID))
	}
	return s.table.saveState(j)
}

// Resume lets a paused job go on.
func (s *Supervisor) Resume(ctx context.Context, id string) (joblet.Job, error) {
	j, v, err := s.steady(ctx, id, false)
	if err != nil {
		return joblet.Job{}, err
	}
	if v.job.State != joblet.Paused || v.proc == nil {
		return joblet.Job{}, joblet.Errorf(joblet.FailedPrecondition, "cannot resume job %s: it is %s, not paused", joblet.ShortID(v.job.ID), v.job.State)
	}
	if err := v.proc.Resume(); err != nil {
		return joblet.Job{}, failed(v, err)
	}
	s.table.compareAndSetState(j, v.proc, joblet.Paused, joblet.Running)
	return s.table.saveState(j)
}

// failed says why a run's cgroup could not be changed: in most cases it is gone.
func failed(v snapshot, err error) error {
	if errors.Is(err, native.ErrSilent) {
		return err
	}
	select {
	case <-v.proc.Done():
		return joblet.Errorf(joblet.FailedPrecondition, "job %s has ended meanwhile (%w)", joblet.ShortID(v.job.ID), err)
	default:
		return fmt.Errorf("job %s: %w", joblet.ShortID(v.job.ID), err)
	}
}

// Update changes those limits of a job that has not ended which l sets. All are
// changed or none.
func (s *Supervisor) Update(ctx context.Context, id string, l joblet.Limits) (joblet.Job, error) {
	if l.IsZero() {
		return joblet.Job{}, joblet.Errorf(joblet.InvalidArgument, "cannot update the job: no limit was given")
	}
	j, v, err := s.steady(ctx, id, false)
	if err != nil {
		return joblet.Job{}, err
	}
	short := joblet.ShortID(v.job.ID)
	if v.proc != nil && len(l.Rlimits) > 0 {
		return joblet.Job{}, joblet.Errorf(joblet.FailedPrecondition, "cannot update job %s: it runs, and the limits of each process can be set at its start only", short)
	}
	// One update after the other: each begins with what the one before has set.
	unlock, err := s.keys.Lock(ctx, "limits\x00"+v.job.ID)
	if err != nil {
		return joblet.Job{}, err
	}
	defer unlock()
	old := s.table.snapshot(j).job.Spec.Limits
	granted, err := s.planner.Grant(l.Or(old))
	if err != nil {
		return joblet.Job{}, err
	}
	if v.proc != nil {
		devices, err := s.planner.Devices(v.job.Spec, granted)
		if err != nil {
			return joblet.Job{}, err
		}
		if err := v.proc.Update(old, granted, devices); err != nil {
			return joblet.Job{}, failed(v, err)
		}
	}
	s.table.mu.Lock()
	if j.proc != v.proc || j.starting && v.proc == nil || j.rec.State.Final() {
		s.table.mu.Unlock()
		return joblet.Job{}, joblet.Errorf(joblet.FailedPrecondition, "cannot update job %s: it started or ended meanwhile: try again", short)
	}
	j.rec.Spec.Limits = granted
	j.item.Needs[queue.Memory] = granted.MemoryBytes
	if j.sampled != nil {
		j.sampled.SetMemoryLimit(granted.MemoryBytes)
	}
	s.table.changed(j)
	s.table.mu.Unlock()
	if err := s.table.save(j, true); err != nil {
		return joblet.Job{}, err
	}
	return s.table.snapshot(j).job, nil
}
