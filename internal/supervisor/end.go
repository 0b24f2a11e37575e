package supervisor

import (
	"errors"
	"io/fs"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/secrets"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/sampling"
)

// ending is the end of a run on its way through endSteps.
type ending struct {
	j       *entry
	rec     store.Record     // the job's: as it was when the run ended, then as concluded
	sampled *sampling.Run    // of the run; nil: it ended while no daemon ran
	record  *protocol.Record // as the shim wrote it to the job's directory; nil: there is none to be used
	damage  error            // why the record cannot be used; nil: it can, or is missing
	run     joblet.Job       // the job with the outcome of the run
	again   bool             // the job is tried again
}

// endStep is one step of an end. It returns false when the daemon stops before it is
// done: then the rest is left to the next daemon, which goes through all steps again.
type endStep struct {
	name string
	do   func(*executor, *ending) bool
}

// endSteps complete a run that is over: the outcome in memory, where all that wait for it
// see it at once (the exit record is on disk already), then the release of what the run
// had on the host, then its record in the database. Each step may run twice, by one
// daemon after the other.
var endSteps = []endStep{
	{"read the exit record", (*executor).readEnd},
	{"conclude the run", (*executor).concludeEnd},
	{"count the run", (*executor).countRun},
	{"release the box", (*executor).releaseEnd},
	{"record the end", (*executor).recordEnd},
	{"let the job go on", (*executor).leaveRun},
}

// settle takes a run that is over through endSteps.
func (x *executor) settle(j *entry) {
	e := &ending{j: j}
	for _, step := range endSteps {
		if !step.do(x, e) {
			x.log.Debug("the end of a run is left to the next daemon", "job", j.item.ID, "step", step.name)
			return
		}
	}
}

// readEnd reads how the run ended. The shim writes the exit record before it tells
// the daemon: the file is the only source, for this daemon and the next.
func (x *executor) readEnd(e *ending) bool {
	x.table.mu.Lock()
	e.rec, e.sampled = e.j.rec, e.j.sampled
	x.table.mu.Unlock()
	var err error
	e.record, err = jobdir.ReadExit(x.records.Dir(e.rec.ID), e.rec.Attempt)
	if errors.Is(err, jobdir.ErrDamaged) {
		e.damage = err
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		x.log.Error("cannot read an exit record", "job", e.rec.ID, "error", err)
	}
	return true
}

// concludeEnd determines the outcome of the run, and whether the job is tried again.
func (x *executor) concludeEnd(e *ending) bool {
	j, dir := e.j, x.records.Dir(e.rec.ID)
	seen := x.sampler.End(e.rec.ID, e.sampled)
	diskBytes := jobdir.Size(dir)
	x.table.mu.Lock()
	defer x.table.mu.Unlock()
	rec := j.rec // whether it was asked to stop counts up to this moment
	asked := rec.State == joblet.Stopping
	outcome.Conclude(&rec.Job, e.record, dir)
	switch {
	case e.damage != nil:
		rec.Reason = outcome.DamagedReason(e.damage)
	case e.record == nil && j.elsewhere != "":
		rec.Reason = j.elsewhere
	}
	rec.Usage = rec.Usage.Max(seen)
	e.run = rec.Job
	// However it ended. Without its secrets it would be another job. A copy of a state
	// directory does not retry: the run of the original job continues.
	e.again = outcome.Retries(rec.Job) && !asked && !secrets.Masked(rec.Spec.SecretEnv) &&
		!(e.run.State == joblet.Lost && j.elsewhere != "" && x.where.Copied)
	if e.again {
		outcome.Retry(&rec.Job)
	} else {
		rec.Sealed, rec.DiskBytes = nil, diskBytes
		x.quota.End(rec.Owner, rec.ID, diskBytes)
	}
	e.rec = x.table.becomeLocked(j, rec.State, func(r *store.Record) {
		*r = rec
		j.proc, j.sampled = nil, nil
		j.onDisk = e.record != nil && !e.again
		j.endRun()
	})
	return true
}

// countRun tells the metrics of the run.
func (x *executor) countRun(e *ending) bool {
	x.sampler.Count(e.run, e.sampled, e.again)
	fault.Point("end.concluded")
	return true
}

// releaseEnd kills and removes what the run had on the host.
func (x *executor) releaseEnd(e *ending) bool {
	lost := e.again && e.run.State == joblet.Lost
	if lost {
		x.guard.KillShims(e.rec.ID, e.rec.Box) // those without a cgroup of the box, too
	}
	if err := x.release(e.j); err != nil {
		x.log.Error("cannot release the sandbox of an ended job", "job", e.rec.ID, "error", err)
		if lost {
			// Nothing of an attempt whose end was not observed may run beside the next.
			if !x.releaseLater(e.rec) {
				return false
			}
		} else {
			x.table.background(func() { x.releaseLater(e.rec) })
		}
	}
	fault.Point("end.released")
	return true
}

// recordEnd makes the end durable. If the job is tried again, the launch of its next
// attempt does that; another job may have the slot at once.
func (x *executor) recordEnd(e *ending) bool {
	save := func() error { return x.table.save(e.j, true) }
	if e.again {
		x.table.persist(e.j, save)
		fault.Point("retry.recorded")
		x.table.freeSlot(e.j)
		return true
	}
	x.table.freeSlot(e.j)
	if !x.table.persist(e.j, save) {
		return false
	}
	fault.Point("end.recorded")
	return true
}

// leaveRun lets the job wait for its next attempt, or ends it.
func (x *executor) leaveRun(e *ending) bool {
	if e.again {
		x.waitlist.enqueue(e.j)
		return true
	}
	x.records.Tidy(e.rec.ID)
	x.waitlist.finish(e.j, e.rec)
	return true
}

// release is native.Release of the job's latest box, unless that belongs to the job of
// which this one is a copy.
func (x *executor) release(j *entry) error {
	x.table.mu.Lock()
	box, leases, apart := j.rec.Box, outcome.LeasesOf(j.rec), j.elsewhere
	j.elsewhere = "" // this daemon makes its next box
	x.table.mu.Unlock()
	if apart != "" && x.where.Copied {
		return nil
	}
	return x.engine.Release(box, leases)
}

// releaseEvery is the pause before the release of a box is tried again, which a process
// does not leave, because it waits in the kernel for a disk, for example.
const releaseEvery = 10 * time.Second

// releaseLater reports whether it succeeded before the daemon stops.
func (x *executor) releaseLater(rec store.Record) bool {
	for {
		select {
		case <-x.ctx.Done():
			return false // the next daemon does it
		case <-time.After(releaseEvery):
		}
		if x.engine.Release(rec.Box, outcome.LeasesOf(rec)) == nil {
			return true
		}
	}
}

// sendStop asks the job's shim to end the run, and records that before: an end in between
// is one on request. A job that has ended already keeps its state. If the shim does not
// end the run, or does not exist (then proc is nil), the run's guard does.
func (x *executor) sendStop(j *entry, proc *native.Process, opt joblet.StopOptions) error {
	x.table.mu.Lock()
	if j.proc != proc || !j.rec.State.Alive() {
		defer x.table.mu.Unlock()
		return joblet.Errorf(joblet.FailedPrecondition, "job %s has ended: %s", joblet.ShortID(j.rec.ID), j.rec.State)
	}
	if j.rec.State.MayBecome(joblet.Stopping) {
		x.table.becomeLocked(j, joblet.Stopping, nil)
	}
	j.setStop(opt)
	box := j.rec.Box
	x.table.mu.Unlock()
	// Recorded before, so that the next daemon knows the cause of an end that comes now,
	// and sends the request again.
	if err := x.table.save(j, false); err != nil && x.ctx.Err() == nil {
		x.log.Warn("cannot record that a job is to end", "job", x.table.snapshot(j).job.ID, "error", err)
	}
	fault.Point("stop.recorded")
	if proc == nil {
		x.engine.Wake(box) // once it is adopted, it receives the request
		return nil
	}
	err := proc.Stop(syscall.Signal(opt.Signal), opt.Grace)
	if errors.Is(err, native.ErrSilent) || err != nil && joblet.KindOf(err) == joblet.FailedPrecondition {
		return nil // the guard ends it; or it ended just now, and is STOPPED
	}
	return err
}
