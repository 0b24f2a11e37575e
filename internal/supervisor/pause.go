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
	l, v, err := s.standing(ctx, id, false)
	if err != nil {
		return joblet.Job{}, err
	}
	if v.job.State == joblet.Paused {
		return v.job, nil
	}
	if v.proc == nil || v.job.State != joblet.Running {
		return joblet.Job{}, joblet.Errorf(joblet.FailedPrecondition, "job %s is %s: only a job that runs can be paused", joblet.ShortID(v.job.ID), v.job.State)
	}
	if err := v.proc.Pause(ctx); err != nil {
		return joblet.Job{}, failed(v, err)
	}
	if !s.turn(l, v.proc, joblet.Running, joblet.Paused) { // it ended, or is asked to
		if err := v.proc.Resume(); err != nil {
			s.cfg.Log.Debug("a job ended as it was paused", "job", v.job.ID, "error", err)
		}
		return joblet.Job{}, joblet.Errorf(joblet.FailedPrecondition, "job %s ended as it was paused", joblet.ShortID(v.job.ID))
	}
	return s.turned(l)
}

// Resume lets a paused job go on.
func (s *Supervisor) Resume(ctx context.Context, id string) (joblet.Job, error) {
	l, v, err := s.standing(ctx, id, false)
	if err != nil {
		return joblet.Job{}, err
	}
	if v.job.State != joblet.Paused || v.proc == nil {
		return joblet.Job{}, joblet.Errorf(joblet.FailedPrecondition, "job %s is %s, not paused", joblet.ShortID(v.job.ID), v.job.State)
	}
	if err := v.proc.Resume(); err != nil {
		return joblet.Job{}, failed(v, err)
	}
	s.turn(l, v.proc, joblet.Paused, joblet.Running)
	return s.turned(l)
}

// failed says why a run's cgroup could not be changed: in most cases it is gone.
func failed(v view, err error) error {
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

// turn changes the state of a run if it still is what the caller thinks.
func (s *Supervisor) turn(l *live, proc *native.Process, from, to joblet.State) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.proc != proc || l.rec.State != from {
		return false
	}
	s.becomeLocked(l, to, nil)
	return true
}

// turned records what has become of a live job; the truth is its cgroup, which
// recovery looks at.
func (s *Supervisor) turned(l *live) (joblet.Job, error) {
	if err := s.save(l, false); err != nil {
		return joblet.Job{}, err
	}
	return s.look(l).job, nil
}

// Update changes those limits of a job that has not ended which l sets. All are
// changed or none.
func (s *Supervisor) Update(ctx context.Context, id string, l joblet.Limits) (joblet.Job, error) {
	if l.IsZero() {
		return joblet.Job{}, joblet.Errorf(joblet.InvalidArgument, "no limit to change was given")
	}
	live, v, err := s.standing(ctx, id, false)
	if err != nil {
		return joblet.Job{}, err
	}
	short := joblet.ShortID(v.job.ID)
	if v.proc != nil && len(l.Rlimits) > 0 {
		return joblet.Job{}, joblet.Errorf(joblet.FailedPrecondition, "job %s runs: limits of each process can be set at its start only", short)
	}
	// One update after the other: each begins with what the one before has set.
	unlock, err := s.keys.Lock(ctx, "limits\x00"+v.job.ID)
	if err != nil {
		return joblet.Job{}, err
	}
	defer unlock()
	old := s.look(live).job.Spec.Limits
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
	s.mu.Lock()
	if live.proc != v.proc || live.starting && v.proc == nil || live.rec.State.Final() {
		s.mu.Unlock()
		return joblet.Job{}, joblet.Errorf(joblet.FailedPrecondition, "job %s began or ended to run as its limits were changed: try again", short)
	}
	live.rec.Spec.Limits = granted
	live.item.Needs[queue.Memory] = granted.MemoryBytes
	if live.sampled != nil {
		live.sampled.SetMemoryLimit(granted.MemoryBytes)
	}
	s.changed(live)
	s.mu.Unlock()
	if err := s.save(live, true); err != nil {
		return joblet.Job{}, err
	}
	return s.look(live).job, nil
}

// pausedAs brings the state of an adopted job in line with its cgroup: the former
// daemon may have died between the two.
func (s *Supervisor) pausedAs(l *live, proc *native.Process) {
	paused, err := proc.Paused()
	if err != nil {
		s.cfg.Log.Debug("see whether a job is paused", "job", l.rec.ID, "error", err)
		return
	}
	if paused {
		s.turn(l, proc, joblet.Running, joblet.Paused)
	} else {
		s.turn(l, proc, joblet.Paused, joblet.Running)
	}
}
