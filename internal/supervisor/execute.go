package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/events"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/statedir"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/guard"
	"github.com/joblet/joblet/internal/supervisor/plan"
	"github.com/joblet/joblet/internal/supervisor/records"
	"github.com/joblet/joblet/internal/supervisor/sampling"
	"github.com/joblet/joblet/internal/supervisor/staging"
)

// executor runs jobs: it starts their attempts, watches them, and brings them to their
// ends (end.go).
type executor struct {
	ctx     context.Context
	log     *slog.Logger
	where   statedir.Whereabouts
	records *records.Records
	engine  *native.Engine
	planner *plan.Planner
	sampler *sampling.Sampler
	guard   guard.Guard
	quota   *staging.Quota

	table    *table
	waitlist *waitlist
}

// adopted marks a job of a former daemon as running.
func (x *executor) adopted(j *entry, proc *native.Process) {
	x.table.mu.Lock()
	begins := j.rec.State == joblet.Initializing
	j.silent = false
	x.table.mu.Unlock()
	x.log.Info("adopted a running job", "job", j.rec.ID, "pid", proc.PID)
	if begins {
		x.running(j, proc)
		return
	}
	x.table.mu.Lock()
	j.proc = proc
	j.rec.PID, j.rec.Started = proc.PID, proc.Started
	j.sampled = x.sampler.Start(j.rec.Job, proc, sampling.Unknown)
	x.table.changed(j)
	stopping := j.rec.State == joblet.Stopping
	if stopping && j.stop == nil {
		j.setStop(joblet.StopOptions{Signal: int(syscall.SIGTERM), Grace: joblet.DefaultGrace})
	}
	stop := j.stop
	x.table.mu.Unlock()
	x.pausedAs(j, proc)
	if stopping { // the shim may not have received the request
		if err := proc.Stop(syscall.Signal(stop.Options.Signal), stop.Options.Grace); err != nil {
			x.log.Debug("a job ended while its stop was requested again", "job", j.rec.ID, "error", err)
		}
	}
}

// becomeStarting marks the job's next attempt as about to run in box.
func (x *executor) becomeStarting(j *entry, box *native.Sandbox) store.Record {
	return x.table.become(j, joblet.Initializing, func(r *store.Record) {
		r.Attempt++
		r.Box, r.IDBase, r.Leases = box.ID, box.IDBase, box.Leases
		r.Started, r.Ended, r.Exit, r.Reason, r.PID, r.WorkBytes = time.Time{}, time.Time{}, nil, "", 0, 0
		r.Usage, r.OutOfMemory, r.Denied = joblet.Usage{}, false, nil
		j.over = make(chan struct{})
		j.proc, j.stop = nil, nil
	})
}

// start makes the job's record durable while its sandbox gets its command: the two are
// independent, and a job is accepted when both are done. A crash between them leaves a
// job whose acceptance was not confirmed, which recovery ends.
func (x *executor) start(ctx context.Context, j *entry, box *native.Sandbox, run *native.Run, keep bool) (joblet.Job, error) {
	x.table.mu.Lock()
	record := j.rec
	x.table.mu.Unlock()
	inserted := make(chan error, 1)
	go func() {
		err := x.records.Insert(ctx, record)
		fault.Point("start.inserted")
		inserted <- err
	}()
	proc, err := x.runIn(box, run, record)
	fault.Point("start.running")
	insertErr := <-inserted
	fault.Point("start.accepted")
	if _, ok := errors.AsType[*commandError](err); ok && keep && insertErr == nil {
		return x.keepUnrunnable(j, box, err)
	}
	if err != nil || insertErr != nil {
		if err == nil {
			err = insertErr
		}
		discardErr, withdrawal := box.Discard(), x.records.Withdraw(record.ID)
		deleteErr := withdrawal.Delete(ctx, insertErr)
		fault.Point("start.undone")
		x.engine.Refill()
		if deleteErr != nil {
			cancelErr := withdrawal.Cancel()
			x.keepFailed(j, err)
			return joblet.Job{}, outcome.WithCleanup(err, discardErr, deleteErr, cancelErr)
		}
		removeErr := withdrawal.Finish()
		x.table.forget(j)
		x.table.freeSlot(j)
		x.table.notStarted(j, joblet.KindOf(err))
		return joblet.Job{}, outcome.WithCleanup(err, discardErr, removeErr)
	}
	job := x.running(j, proc)
	x.table.background(func() { x.watch(j) })
	return job, nil
}

// keepUnrunnable ends a job whose command cannot be run.
func (x *executor) keepUnrunnable(j *entry, box *native.Sandbox, cause error) (joblet.Job, error) {
	if err := box.Discard(); err != nil {
		x.log.Error("cannot discard a sandbox", "job", x.table.snapshot(j).job.ID, "error", err)
	}
	x.engine.Refill()
	x.failLaunch(j, cause)
	job := x.table.snapshot(j).job
	if !job.State.Final() { // the daemon stops; the next one sees why in the exit record
		return joblet.Job{}, cause
	}
	return job, nil
}

// keepFailed ends a job that could not be started and whose record cannot be deleted, as
// on a full disk: it stays, as FAILED. Its exit record says so at once, because the next
// daemon would start a job whose record still says INITIALIZING.
func (x *executor) keepFailed(j *entry, cause error) {
	if err := x.records.MarkFailed(x.table.snapshot(j).job, cause); err != nil {
		x.log.Error("cannot write the exit record of a job that could not be started", "job", x.table.snapshot(j).job.ID, "error", err)
	}
	end := x.table.become(j, joblet.Failed, func(r *store.Record) {
		r.Reason, r.Failure, r.Ended, r.Sealed = cause.Error(), joblet.KindOf(cause), time.Now(), nil
		j.onDisk = true
		j.endRun()
	})
	x.table.freeSlot(j)
	x.table.notStarted(j, end.Failure)
	x.planner.UseRuntime(end.Spec.Runtime, 1) // as an accepted job does, until its end
	x.table.background(func() {
		if x.table.persist(j, func() error { return x.table.save(j, true) }) {
			x.waitlist.finish(j, end)
		}
	})
}

// runIn runs the job in the sandbox.
func (x *executor) runIn(box *native.Sandbox, run *native.Run, rec store.Record) (*native.Process, error) {
	job := rec.Job
	if err := x.planner.Prepare(run, job); err != nil {
		return nil, fmt.Errorf(outcome.StartTheJob+"%w", err)
	}
	if err := x.records.WriteFile(rec); err != nil {
		return nil, err
	}
	fault.Point("sandbox.prepared")
	proc, err := box.Start(run)
	if se, ok := errors.AsType[*native.StartError](err); ok {
		if err = outcome.StartError(job.Spec, se.Failure); outcome.OfCommand(se.Failure) {
			err = &commandError{err}
		}
		return nil, err
	}
	return proc, err
}

// commandError is a failure because of the job's command.
type commandError struct{ error }

func (e *commandError) Unwrap() error { return e.error }

// running marks the job's command as running.
func (x *executor) running(j *entry, proc *native.Process) joblet.Job {
	started := events.Event{Kind: events.Started, Job: j.item.ID}
	job := x.table.become(j, joblet.Running, func(r *store.Record) {
		j.proc, j.starting = proc, false
		r.PID, r.IDBase = proc.PID, proc.IDBase
		r.Started = proc.Started
		j.sampled = x.sampler.Start(r.Job, proc, r.LogBytes)
		if j.startedAt.IsZero() {
			return // another daemon has counted it
		}
		if started.Starting = time.Since(j.startedAt); !j.queuedAt.IsZero() {
			started.Queued = j.startedAt.Sub(j.queuedAt)
		}
	}).Job
	if started.Starting > 0 {
		x.table.events.Publish(started)
	}
	job.Spec = job.Spec.Redacted()
	return job
}

// refillDelay is how long a job has the processors to itself before the warm pool is
// refilled; a short job has ended by then.
const refillDelay = 20 * time.Millisecond

// watch waits for the end of a run and settles it.
func (x *executor) watch(j *entry) {
	x.table.mu.Lock()
	id, proc := j.rec.ID, j.proc
	x.table.mu.Unlock()
	// Not durable: after a crash the job's shim says that it runs.
	if err := x.table.save(j, false); err != nil && x.ctx.Err() == nil {
		x.log.Warn("cannot record that a job runs", "job", id, "error", err)
	}
	fault.Point("run.recorded")
	refill := time.AfterFunc(refillDelay, x.engine.Refill)
	if !x.guard.Watch(x.ctx, x.guarded(j), proc) {
		return
	}
	fault.Point("run.ended")
	x.settle(j)
	if refill.Stop() {
		x.engine.Refill()
	}
}

const (
	launchTries = 60
	launchPause = time.Second
)

// launch runs a job that has waited and has a slot. The beginning of its attempt is
// durable before it begins, so that it does not run twice after a crash.
func (x *executor) launch(j *entry) {
	for try := 1; ; try++ {
		box, err := x.tryLaunch(j)
		if err == nil {
			x.watch(j)
			return
		}
		if box != nil {
			if discardErr := box.Discard(); discardErr != nil {
				x.log.Error("cannot discard a sandbox", "job", j.rec.ID, "error", discardErr)
			}
		}
		if x.ctx.Err() != nil {
			return
		}
		var transient *transientError
		if !errors.As(err, &transient) || try == launchTries {
			x.failLaunch(j, err)
			return
		}
		x.log.Warn("cannot start a job; the daemon tries again", "job", j.rec.ID, "error", err)
		select {
		case <-x.ctx.Done():
			return
		case <-time.After(launchPause):
		}
	}
}

// transientError is a failure of the host, which may pass.
type transientError struct{ error }

func (e *transientError) Unwrap() error { return e.error }

func (x *executor) tryLaunch(j *entry) (*native.Sandbox, error) {
	x.table.mu.Lock()
	spec, again := j.rec.Spec, j.rec.State == joblet.Initializing
	x.table.mu.Unlock()
	run, err := x.planner.Run(spec)
	if err != nil {
		return nil, err
	}
	box, err := x.engine.Take(x.ctx, run)
	if err != nil {
		return nil, &transientError{err}
	}
	if again {
		x.table.become(j, joblet.Pending, func(r *store.Record) { r.Attempt-- })
	}
	rec := x.becomeStarting(j, box)
	fault.Point("launch.begin")
	if err := x.table.save(j, true); err != nil {
		return box, &transientError{err}
	}
	fault.Point("launch.recorded")
	proc, err := x.runIn(box, run, rec)
	if err != nil {
		return box, err
	}
	fault.Point("launch.running")
	x.running(j, proc)
	return nil, nil
}

// failLaunch ends a job that cannot be run.
func (x *executor) failLaunch(j *entry, cause error) {
	x.table.mu.Lock()
	end := j.rec
	x.table.mu.Unlock()
	end.State, end.Reason, end.Failure = joblet.Failed, joblet.Shorten(cause.Error()), joblet.KindOf(cause)
	x.table.freeSlot(j)
	x.table.notStarted(j, end.Failure)
	x.waitlist.endWithoutRun(j, end)
}

// pausedAs brings the state of an adopted job in line with its cgroup: the former
// daemon may have died between the two.
func (x *executor) pausedAs(j *entry, proc *native.Process) {
	paused, err := proc.Paused()
	if err != nil {
		x.log.Debug("cannot determine whether a job is paused", "job", j.rec.ID, "error", err)
		return
	}
	if paused {
		x.table.compareAndSetState(j, proc, joblet.Running, joblet.Paused)
	} else {
		x.table.compareAndSetState(j, proc, joblet.Paused, joblet.Running)
	}
}

const (
	// silentTime is how long a call waits for a shim that does not answer.
	silentTime = 3 * time.Second
	// adoptEvery is how often the shim of a former daemon that does not answer is asked
	// again.
	adoptEvery = time.Second
)

// guarded returns the latest run of a job for its guard.
func (x *executor) guarded(j *entry) guard.Run {
	x.table.mu.Lock()
	defer x.table.mu.Unlock()
	return guard.Run{
		Box: j.rec.Box, Changed: j.deadlineChanged,
		Job:      func() joblet.Job { return x.table.snapshot(j).job },
		Deadline: func() (time.Time, protocol.Cause) { return x.table.mustEnd(j) },
	}
}

// adoptLater adopts a job whose shim exists and does not answer, because it packs the
// job's results or is stopped, for example.
func (x *executor) adoptLater(j *entry) {
	for x.ctx.Err() == nil {
		proc, err := x.engine.Adopt(j.rec.Box, time.Time{})
		switch {
		case err == nil:
			x.adopted(j, proc)
			x.watch(j)
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			by, cause := x.table.mustEnd(j)
			if by.IsZero() || time.Now().Before(by) {
				select {
				case <-x.ctx.Done():
				case <-j.deadlineChanged:
				case <-time.After(adoptEvery):
				}
				continue
			}
			if !x.guard.Force(x.ctx, x.guarded(j), cause, j.rec.PID, nil) {
				return
			}
		}
		x.table.mu.Lock()
		j.silent = false
		x.table.mu.Unlock()
		if x.table.snapshot(j).job.State == joblet.Initializing {
			x.table.become(j, joblet.Running, nil)
		}
		x.settle(j)
		return
	}
}
