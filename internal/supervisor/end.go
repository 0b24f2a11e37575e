package supervisor

import (
	"errors"
	"io/fs"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/sampling"
)

// ending is the end of a run on its way through endSteps.
type ending struct {
	l       *live
	rec     store.Record     // the job's: as it was when the run ended, then as concluded
	sampled *sampling.Run    // of the run; nil: it ended while no daemon ran
	record  *protocol.Record // as the shim wrote it to the job's directory; nil: there is none to be used
	damage  error            // why the record cannot be used; nil: it can, or is missing
	run     joblet.Job       // what became of the run
	again   bool             // the job is tried again
}

// endStep is one step of an end. It returns false when the daemon stops before it is
// done: then the rest is left to the next daemon, which goes through all steps again.
type endStep struct {
	name string
	do   func(*Supervisor, *ending) bool
}

// endSteps bring a run that is over to rest: what became of it in memory, where all
// that wait for it see it at once (the exit record is on disk already), then what it
// had on the host released, then its record in the database. Each step may run twice,
// by one daemon after the other.
var endSteps = []endStep{
	{"read the exit record", (*Supervisor).readEnd},
	{"conclude the run", (*Supervisor).concludeEnd},
	{"count the run", (*Supervisor).countRun},
	{"release the box", (*Supervisor).releaseEnd},
	{"record the end", (*Supervisor).recordEnd},
	{"let the job go on", (*Supervisor).leaveRun},
}

// settle takes a run that is over through endSteps.
func (s *Supervisor) settle(l *live) {
	e := &ending{l: l}
	for _, step := range endSteps {
		if !step.do(s, e) {
			s.cfg.Log.Debug("the end of a run is left to the next daemon", "job", l.item.ID, "step", step.name)
			return
		}
	}
}

// readEnd reads how the run ended. The shim writes the exit record before it tells
// the daemon: the file is the only source, for this daemon and the next.
func (s *Supervisor) readEnd(e *ending) bool {
	s.mu.Lock()
	e.rec, e.sampled = e.l.rec, e.l.sampled
	s.mu.Unlock()
	var err error
	e.record, err = jobdir.ReadExit(s.records.Dir(e.rec.ID), e.rec.Attempt)
	if errors.Is(err, jobdir.ErrDamaged) {
		e.damage = err
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.cfg.Log.Error("read an exit record", "job", e.rec.ID, "error", err)
	}
	return true
}

// concludeEnd says what became of the run, and whether the job is tried again.
func (s *Supervisor) concludeEnd(e *ending) bool {
	l, dir := e.l, s.records.Dir(e.rec.ID)
	seen := s.sampler.End(e.rec.ID, e.sampled)
	diskBytes := jobdir.Size(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := l.rec // whether it was asked to stop counts up to this moment
	asked := rec.State == joblet.Stopping
	outcome.Conclude(&rec.Job, e.record, dir)
	switch {
	case e.damage != nil:
		rec.Reason = outcome.DamagedReason(e.damage)
	case e.record == nil && l.apart != "":
		rec.Reason = l.apart
	}
	rec.Usage = rec.Usage.Max(seen)
	e.run = rec.Job
	// Whatever it was that ended it. Without the secrets that it had it would be another
	// job. The run of the job of which this one is a copy goes on.
	e.again = outcome.Retries(rec.Job) && !asked && !(len(rec.Spec.SecretEnv) > 0 && masked(rec.Spec.SecretEnv)) &&
		!(e.run.State == joblet.Lost && l.apart != "" && s.where.Copied)
	if e.again {
		outcome.Retry(&rec.Job)
	} else {
		rec.Sealed, rec.DiskBytes = nil, diskBytes
		s.quota.End(rec.Owner, rec.ID, diskBytes)
	}
	e.rec = s.becomeLocked(l, rec.State, func(r *store.Record) {
		*r = rec
		l.proc, l.sampled = nil, nil
		l.onDisk = e.record != nil && !e.again
		l.endRun()
	})
	return true
}

// countRun tells the metrics of the run.
func (s *Supervisor) countRun(e *ending) bool {
	s.sampler.Count(e.run, e.sampled, e.again)
	fault.Point("end.concluded")
	return true
}

// releaseEnd kills and removes what the run had on the host.
func (s *Supervisor) releaseEnd(e *ending) bool {
	lost := e.again && e.run.State == joblet.Lost
	if lost {
		s.guard.KillShims(e.rec.ID, e.rec.Box) // what has no cgroup of the box, too
	}
	if err := s.release(e.l); err != nil {
		s.cfg.Log.Error("release an ended job", "job", e.rec.ID, "error", err)
		if lost {
			// Nothing of an attempt whose end nobody saw may run beside the next.
			if !s.releaseLater(e.rec) {
				return false
			}
		} else {
			s.background(func() { s.releaseLater(e.rec) })
		}
	}
	fault.Point("end.released")
	return true
}

// recordEnd makes the end durable. Of a job that is tried again the launch of its next
// attempt sees to that; another job may have the room at once.
func (s *Supervisor) recordEnd(e *ending) bool {
	save := func() error { return s.save(e.l, true) }
	if e.again {
		s.persist(e.l, save)
		fault.Point("retry.recorded")
		s.freePlace(e.l)
		return true
	}
	s.freePlace(e.l)
	if !s.persist(e.l, save) {
		return false
	}
	fault.Point("end.recorded")
	return true
}

// leaveRun lets the job wait for its next attempt, or ends it.
func (s *Supervisor) leaveRun(e *ending) bool {
	if e.again {
		s.enqueue(e.l)
		return true
	}
	s.records.Tidy(e.rec.ID)
	s.finish(e.l, e.rec)
	return true
}
