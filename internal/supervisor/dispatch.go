package supervisor

import (
	"context"
	"log/slog"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/events"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/queue"
	"github.com/joblet/joblet/internal/schedule"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/records"
	"github.com/joblet/joblet/internal/supervisor/staging"
)

// dispatcher starts the jobs that wait when they may run, and makes the runs of
// repeating jobs.
type dispatcher struct {
	ctx     context.Context
	log     *slog.Logger
	records *records.Records
	uploads *staging.Area

	table     *table
	waitlist  *waitlist
	executor  *executor
	submitter *submitter
}

// runQueue starts waiting jobs when they may run, until the daemon stops.
func (d *dispatcher) runQueue() {
	changes := d.table.events.Subscribe(d.table.events.Last(), events.Filter{Kinds: events.Queued | events.Freed})
	defer changes.Close()
	queue.Run(d.ctx, changes.Ready(), func(now time.Time) time.Duration {
		drain(changes)
		return d.startDue(now)
	})
}

// startDue starts the jobs that may run now and returns the time until the next.
func (d *dispatcher) startDue(now time.Time) time.Duration {
	for {
		d.table.mu.Lock()
		if d.table.closing {
			d.table.mu.Unlock()
			return queue.ClockCheck
		}
		if j, ok := d.table.queue.Due(now); ok {
			d.table.mu.Unlock()
			d.due(j, now)
			continue
		}
		if j, ok := d.table.queue.Next(); ok {
			j.starting, j.startedAt = true, time.Now()
			d.table.work.Go(func() { d.executor.launch(j) })
			d.table.mu.Unlock()
			continue
		}
		next, ok := d.table.queue.NextDue()
		d.table.mu.Unlock()
		if !ok {
			return queue.ClockCheck
		}
		return next.Sub(now)
	}
}

// due lets a job whose time has come wait for a slot, or, if it repeats, makes one run
// of it.
func (d *dispatcher) due(j *entry, now time.Time) {
	if !d.table.snapshot(j).job.Spec.Repeats() {
		d.table.mu.Lock()
		waits := j.rec.State == joblet.Scheduled && !j.starting // it is not being canceled
		if waits {
			// Not recorded: a daemon that comes next finds that its time has come.
			d.table.becomeLocked(j, joblet.Pending, nil)
		}
		d.table.mu.Unlock()
		if waits {
			fault.Point("due.pending")
			d.waitlist.enqueue(j)
		}
		return
	}
	d.fire(j, now)
}

// fire makes one run of a job that repeats. The run's idempotency key names the
// moment, so that a crash before the next one is recorded does not make it run
// twice. Moments that passed while no daemon ran count as one.
func (d *dispatcher) fire(j *entry, now time.Time) {
	d.table.mu.Lock()
	parent := j.rec
	if parent.State != joblet.Scheduled || j.starting { // canceled just now
		d.table.mu.Unlock()
		return
	}
	latest, waiting := d.waitlist.runsOf(parent.ID)
	d.table.mu.Unlock()
	skip := latest != nil && (parent.Spec.Overlap != joblet.OverlapQueue || waiting)
	if skip {
		d.log.Info("skipped a run of a repeating job: its previous run has not ended", "job", parent.ID, "due", parent.Scheduled)
	} else if err := d.makeRun(parent); err != nil {
		d.log.Error("cannot make a run of a repeating job", "job", parent.ID, "due", parent.Scheduled, "error", err)
		if d.ctx.Err() != nil {
			return // the next daemon does it
		}
	}
	fault.Point("fire.made")
	next := time.Time{}
	when, err := schedule.Parse(parent.Spec.Schedule, now)
	if err == nil {
		next = when.Next(now)
	}
	if next.IsZero() {
		d.waitlist.cancelWaiting(j, "its schedule has no further time")
		return
	}
	d.table.mu.Lock()
	if j.rec.State != joblet.Scheduled || j.starting { // canceled meanwhile
		d.table.mu.Unlock()
		return
	}
	j.rec.Scheduled = next
	d.waitlist.schedule(j)
	d.table.changed(j)
	d.table.mu.Unlock()
	if err := d.table.save(j, false); err != nil && d.ctx.Err() == nil {
		d.log.Error("cannot record the next time of a repeating job", "job", parent.ID, "error", err)
	}
	fault.Point("fire.recorded")
}

func (d *dispatcher) makeRun(parent store.Record) error {
	spec := parent.Spec
	spec.Schedule, spec.Overlap = "", ""
	spec.IdempotencyKey = runKey(parent.Job)
	switch _, err := d.records.ByKey(d.ctx, parent.Owner, spec.IdempotencyKey); {
	case err == nil:
		return nil
	case joblet.KindOf(err) != joblet.NotFound:
		return err
	}
	input, err := d.uploads.Link(parent.Job, parent.Owner, spec)
	if err != nil {
		return err
	}
	fault.Point("fire.linked")
	rec := store.Record{Job: joblet.Job{ID: input.ID(), Spec: spec, Owner: parent.Owner, Parent: parent.ID, Created: time.Now()}}
	if _, err := d.submitter.accept(d.ctx, rec, false); err != nil {
		return outcome.WithCleanup(err, input.Discard())
	}
	return nil
}

// keyPrefix marks the idempotency keys that are the daemon's own.
const keyPrefix = "joblet:"

func runKey(parent joblet.Job) string {
	return keyPrefix + parent.ID + "@" + parent.Scheduled.UTC().Format(time.RFC3339)
}
