package supervisor

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/events"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/queue"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/plan"
	"github.com/joblet/joblet/internal/supervisor/records"
	"github.com/joblet/joblet/internal/supervisor/staging"
)

// waitlist has the jobs that wait for their time, for other jobs or for a slot. It also
// ends jobs without a run.
type waitlist struct {
	ctx     context.Context
	log     *slog.Logger
	records *records.Records
	quota   *staging.Quota
	planner *plan.Planner
	table   *table
}

// finish is the last step of a job, once its end is durable: jobs that wait for it go
// on. Earlier, one of them could be CANCELED because of an end that a crash takes
// back.
func (w *waitlist) finish(j *entry, rec store.Record) {
	w.planner.UseRuntime(rec.Spec.Runtime, -1)
	w.table.mu.Lock()
	w.table.remove(j) // from now on, its end is in the database only
	j.settled = true
	j.seq = w.table.events.Publish(events.Event{Kind: events.Settled, Job: rec.ID, To: rec.State})
	w.table.mu.Unlock()
	w.releaseWaiters(rec.Job)
	fault.Point("end.told")
}

func older(a, b *store.Record) bool {
	if !a.Created.Equal(b.Created) {
		return a.Created.Before(b.Created)
	}
	return a.ID < b.ID
}

// enqueue lets a job wait for its time, for other jobs, or for a slot.
func (w *waitlist) enqueue(j *entry) {
	for {
		unknown := w.tryEnqueue(j)
		if unknown == "" {
			return
		}
		rec, err := w.records.Get(w.ctx, unknown)
		if err == nil && rec.State == joblet.Completed {
			w.table.mu.Lock()
			j.completed = append(j.completed, unknown)
			w.table.mu.Unlock()
			continue
		}
		if w.ctx.Err() != nil {
			return // the next daemon's recovery enqueues it
		}
		reason := fmt.Sprintf("job %s, on which it depends, ", joblet.ShortID(unknown))
		if err != nil {
			reason += "is gone"
		} else {
			reason += "is " + rec.State.String()
		}
		w.cancelWaiting(j, reason)
		return
	}
}

// tryEnqueue returns the id of a dependency that is not in the table, if there is one:
// then it has done nothing.
func (w *waitlist) tryEnqueue(j *entry) (unknown string) {
	w.table.mu.Lock()
	defer w.table.mu.Unlock()
	rec := &j.rec
	if j.starting { // it is being ended
		return ""
	}
	switch rec.State {
	case joblet.Pending:
	case joblet.Scheduled:
		w.schedule(j)
		return ""
	default: // it was canceled on its way here
		return ""
	}
	if rec.Attempt > 0 { // what it depended on has completed
		w.makeReady(j)
		return ""
	}
	var on []queue.Dependency
	for _, id := range rec.Spec.DependsOn {
		other := w.table.jobs[id]
		switch {
		case slices.Contains(j.completed, id):
		case other == nil:
			return id
		case other.rec.State == joblet.Completed:
		default: // its end, too, counts once it is durable
			on = append(on, queue.Dependency{On: id})
		}
	}
	if before := w.runBefore(j); before != nil {
		on = append(on, queue.Dependency{On: before.rec.ID, AnyEnd: true})
	}
	if w.table.queue.Block(&j.item, on); len(on) > 0 {
		var names []string
		for _, d := range on[:min(len(on), 5)] {
			names = append(names, joblet.ShortID(d.On))
		}
		rec.Reason = "waits for " + strings.Join(names, ", ")
		w.table.changed(j)
		return ""
	}
	w.makeReady(j)
	return ""
}

// runBefore returns the latest run of the same repeating job that has not ended
// and is older than j, or nil.
func (w *waitlist) runBefore(j *entry) (before *entry) {
	if j.rec.Parent == "" {
		return nil
	}
	for _, other := range w.table.jobs {
		if other != j && other.rec.Parent == j.rec.Parent && !other.rec.State.Final() && older(&other.rec, &j.rec) &&
			(before == nil || older(&before.rec, &other.rec)) {
			before = other
		}
	}
	return before
}

// makeReady lets the job wait for a slot. table.mu is held.
func (w *waitlist) makeReady(j *entry) {
	j.queuedAt = time.Now()
	j.rec.Reason = ""
	if _, lacking := w.table.queue.Lacks(&j.item); lacking { // slots are all that is limited
		j.rec.Reason = fmt.Sprintf("waits in the queue: %d jobs run, which is the limit", w.table.queue.Used(queue.Slots))
	}
	w.table.queue.Ready(&j.item)
	w.table.changed(j)
	w.table.events.Publish(events.Event{Kind: events.Queued, Job: j.rec.ID})
}

// schedule lets the job wait for its time. table.mu is held.
func (w *waitlist) schedule(j *entry) {
	w.table.queue.Schedule(&j.item, j.rec.Scheduled)
	w.table.events.Publish(events.Event{Kind: events.Queued, Job: j.rec.ID})
}

// releaseWaiters tells the jobs that wait for one that it has ended.
func (w *waitlist) releaseWaiters(job joblet.Job) {
	w.table.mu.Lock()
	freed, canceled := w.table.queue.Finished(job.ID, job.State == joblet.Completed)
	for _, j := range freed {
		w.makeReady(j)
	}
	w.table.mu.Unlock()
	for _, j := range canceled {
		w.cancelWaiting(j, fmt.Sprintf("job %s, on which it depends, is %v", joblet.ShortID(job.ID), job.State))
	}
}

// cancelWaiting ends a job that waits, and reports whether it still did.
func (w *waitlist) cancelWaiting(j *entry, reason string) bool {
	w.table.mu.Lock()
	if state := j.rec.State; j.starting || state != joblet.Pending && state != joblet.Scheduled {
		w.table.mu.Unlock()
		return false
	}
	j.starting = true // no other goroutine may end or run it
	w.table.queue.Remove(&j.item)
	end := j.rec
	w.table.mu.Unlock()
	outcome.Cancel(&end.Job, reason)
	done := make(chan struct{})
	w.table.background(func() {
		defer close(done)
		w.endWithoutRun(j, end)
	})
	changes := w.table.events.Subscribe(w.table.events.Last(), events.Filter{Job: j.item.ID, Kinds: events.Changed})
	defer changes.Close()
	for w.table.snapshot(j).saveErr == nil { // on a full disk not until it is recorded
		select {
		case <-done:
			return true
		case <-changes.Ready():
			drain(changes)
		case <-w.ctx.Done():
			return true
		}
	}
	return true
}

// endWithoutRun ends a job that this goroutine has claimed (entry.starting). No exit
// record says so, so the end is durable before it is visible.
func (w *waitlist) endWithoutRun(j *entry, end store.Record) {
	end.Ended, end.Sealed, end.DiskBytes = time.Now(), nil, jobdir.Size(w.records.Dir(end.ID))
	become := func() {
		fault.Point("cancel.recorded")
		w.table.become(j, end.State, func(r *store.Record) {
			*r = end
			j.starting, j.onDisk = false, true
			j.endRun()
			w.quota.End(end.Owner, end.ID, end.DiskBytes)
		})
	}
	if w.table.persist(j, func() error { return w.table.saveEnd(j, end, become) }) {
		w.records.Tidy(end.ID)
		// Not before: it says more than the database only if that has lost it.
		if err := w.records.WriteFile(end); err != nil {
			w.log.Warn("cannot write the end of a job to its directory", "job", end.ID, "error", err)
		}
		w.finish(j, end)
	} // otherwise the daemon stops, and the next one finds the job as it was
}

// runsOf returns the latest run of a repeating job that has not ended, and
// whether one waits. table.mu is held.
func (w *waitlist) runsOf(parent string) (latest *entry, waiting bool) {
	for _, other := range w.table.jobs {
		if other.rec.Parent == parent && !other.rec.State.Final() {
			waiting = waiting || other.rec.State == joblet.Pending && !other.starting
			if latest == nil || older(&latest.rec, &other.rec) {
				latest = other
			}
		}
	}
	return latest, waiting
}
