package supervisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// A job's shim ends it: when it is to stop, and when its time is over. But a
// shim can be stopped itself, or wait in the kernel for a disk that does not
// answer. So each run has a guard beside it, which ends the job through its cgroup
// when its shim has not done so shortly after it should have.

const (
	// lateEnd is how late a shim may be.
	lateEnd = time.Second
	// stallEvery is how often it is looked at whether a job has ended and its
	// shim takes no note of it.
	stallEvery = 5 * time.Second
	// silentTime is how long a call waits for a shim that does not answer.
	silentTime = 3 * time.Second
	// adoptEvery is how often such a shim of a former daemon's is asked again.
	adoptEvery = time.Second
)

// stopRequest is a user's wish that a run ends.
type stopRequest struct {
	opt joblet.StopOptions
	by  time.Time // when it must have ended
}

// demand notes that a run is to end. Supervisor.mu is held.
func (l *live) demand(opt joblet.StopOptions) {
	by := time.Now().Add(opt.Grace + lateEnd)
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
		by, cause = began.Add(t+joblet.DefaultGrace+lateEnd), protocol.CauseTimeout
	}
	if l.stop != nil && (by.IsZero() || l.stop.by.Before(by)) {
		by, cause = l.stop.by, protocol.CauseStop
	}
	return by, cause
}

// guard waits until the run in a live job's box is over, and if its shim does
// not end it when it must, does that itself. It reports whether it is over; else
// the daemon stops.
func (s *Supervisor) guard(l *live, proc *native.Process) bool {
	stalls := 0
	for {
		by, cause := s.mustEnd(l)
		wait := stallEvery
		if !by.IsZero() {
			wait = max(0, min(wait, time.Until(by)))
		}
		timer := time.NewTimer(wait)
		select {
		case <-s.ctx.Done():
			timer.Stop()
			return false // the job goes on; the next daemon adopts it
		case <-proc.Done():
			timer.Stop()
			return true
		case <-l.hurry:
			timer.Stop()
			continue
		case <-timer.C:
		}
		switch {
		case !by.IsZero() && !time.Now().Before(by):
			s.force(l, cause, proc.PID, proc.Done())
			return s.ctx.Err() == nil
		case !proc.Stalled():
			stalls = 0
		case stalls == 0:
			s.engine.Wake(proc.ID)
			stalls++
		default: // waking it was no use
			s.force(l, "", proc.PID, proc.Done())
			return s.ctx.Err() == nil
		}
	}
}

// force ends a run through its cgroup, and writes down how it ended if its shim
// does not.
func (s *Supervisor) force(l *live, cause protocol.Cause, pid int, over <-chan struct{}) {
	rec := s.look(l).job
	s.mu.Lock()
	box := l.rec.Box
	s.mu.Unlock()
	s.cfg.Log.Warn("a job's shim did not end it in time; the job is ended through its cgroup", "job", rec.ID, "cause", cause)
	forced, err := s.engine.Force(s.ctx, box, pid, over)
	if s.ctx.Err() != nil {
		return
	}
	if err != nil {
		s.cfg.Log.Error("end a job through its cgroup", "job", rec.ID, "error", err)
	}
	fault.Point("force.killed")
	if !forced.Stuck {
		s.amend(rec, cause)
		return
	}
	if cause == "" && forced.Taken {
		s.killShims(rec.ID, box)
		return // its end is unknown: it is LOST
	}
	now := time.Now()
	if rec.Started.IsZero() {
		rec.Started = now
	}
	end := protocol.Record{
		Signal: int(unix.SIGKILL), Cause: cause, StartedNanos: rec.Started.UnixNano(), EndedNanos: now.UnixNano(),
		LogError: "its shim was stopped or stuck, and the job was ended without it: its last output and what it left in /work may be missing",
	}
	if status := forced.Exit; status != nil && !rec.Spec.Init { // with --init, the status is not the command's
		if end.Signal = 0; status.Signaled() {
			end.Signal = int(status.Signal())
		} else {
			end.Code = status.ExitStatus()
		}
	}
	if info, err := logstore.Stat(s.records.Dir(rec.ID)); err == nil {
		end.LogBytes = info.Size
	}
	if err := jobdir.PutExit(s.records.Dir(rec.ID), rec.Attempt, end); err != nil {
		s.cfg.Log.Error("write a job's exit record in place of its shim", "job", rec.ID, "error", err)
	}
	fault.Point("force.written")
	// Only now: a daemon that is killed before finds the shim, and does all this again.
	s.killShims(rec.ID, box)
	_ = os.Remove(filepath.Join(s.records.Dir(rec.ID), protocol.WorkName+".tmp")) // what it was packing
}

// amend writes into an exit record why the job was ended, if its shim came back
// only to see that it was.
func (s *Supervisor) amend(job joblet.Job, cause protocol.Cause) {
	dir := s.records.Dir(job.ID)
	r, err := jobdir.ReadExit(dir, job.Attempt)
	if err != nil || cause == "" || r.Cause != "" || r.Failure != nil || r.Signal != int(unix.SIGKILL) {
		return
	}
	r.Cause = cause
	if err := jobdir.WriteExit(filepath.Join(dir, protocol.ExitName(job.Attempt)), *r); err != nil {
		s.cfg.Log.Error("write into a job's exit record why it was ended", "job", job.ID, "error", err)
	}
}

func (s *Supervisor) killShims(id, box string) {
	if err := s.engine.KillShims(box); err != nil {
		s.cfg.Log.Error("kill a job's shim", "job", id, "error", err)
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
			s.force(l, cause, l.rec.PID, nil)
			if s.ctx.Err() != nil {
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
