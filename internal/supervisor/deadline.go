package supervisor

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/supervisor/guard"
)

const (
	// silentTime is how long a call waits for a shim that does not answer.
	silentTime = 3 * time.Second
	// adoptEvery is how often the shim of a former daemon that does not answer is asked
	// again.
	adoptEvery = time.Second
)

// stopRequest is a user's wish that a run ends.
type stopRequest struct {
	opt joblet.StopOptions
	by  time.Time // when it must have ended
}

// demand notes that a run is to end. Supervisor.mu is held.
func (l *live) demand(opt joblet.StopOptions) {
	by := time.Now().Add(opt.Grace + guard.LateEnd)
	if l.stop == nil || by.Before(l.stop.by) {
		l.stop = &stopRequest{opt, by}
	}
	select {
	case l.hurry <- struct{}{}:
	default:
	}
}

// mustEnd returns when the run must have ended, and why; the zero time: it may go on.
func (s *Supervisor) mustEnd(l *live) (by time.Time, cause protocol.Cause) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := l.rec.Spec.Timeout; t > 0 && (l.silent || l.proc != nil) {
		began := l.rec.Started
		if began.IsZero() { // the daemon that started it did not get to record when
			began = l.rec.Created
		}
		by, cause = began.Add(t+joblet.DefaultGrace+guard.LateEnd), protocol.CauseTimeout
	}
	if l.stop != nil && (by.IsZero() || l.stop.by.Before(by)) {
		by, cause = l.stop.by, protocol.CauseStop
	}
	return by, cause
}

// guarded returns the latest run of a job for its guard.
func (s *Supervisor) guarded(l *live) guard.Run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return guard.Run{
		Box: l.rec.Box, Changed: l.hurry,
		Job:      func() joblet.Job { return s.look(l).job },
		Deadline: func() (time.Time, protocol.Cause) { return s.mustEnd(l) },
	}
}

// adoptLater adopts a job whose shim is there and does not answer: it packs
// what the job has left, say, or is stopped.
func (s *Supervisor) adoptLater(l *live) {
	for s.ctx.Err() == nil {
		proc, err := s.engine.Adopt(l.rec.Box, time.Time{})
		switch {
		case err == nil:
			s.adopted(l, proc)
			s.watch(l)
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			by, cause := s.mustEnd(l)
			if by.IsZero() || time.Now().Before(by) {
				select {
				case <-s.ctx.Done():
				case <-l.hurry:
				case <-time.After(adoptEvery):
				}
				continue
			}
			if !s.guard.Force(s.ctx, s.guarded(l), cause, l.rec.PID, nil) {
				return
			}
		}
		s.mu.Lock()
		l.silent = false
		s.mu.Unlock()
		if s.look(l).job.State == joblet.Initializing {
			s.become(l, joblet.Running, nil)
		}
		s.settle(l)
		return
	}
}

// awaitRun is await for what a run's shim brings about: it ends with
// native.ErrSilent when that does not answer.
func (s *Supervisor) awaitRun(ctx context.Context, l *live, done func(view) bool) (view, error) {
	v, err := s.await(ctx, l, func(v view) bool { return v.silent || done(v) })
	if err != nil || done(v) {
		return v, err
	}
	limited, cancel := context.WithTimeout(ctx, silentTime)
	defer cancel()
	v, err = s.await(limited, l, done)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = native.ErrSilent
	}
	return v, err
}
