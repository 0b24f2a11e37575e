package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/events"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/queue"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/schedule"
	"github.com/joblet/joblet/internal/store"
)

// maxWaiting bounds how many jobs may wait: each is held in memory.
const maxWaiting = 20_000

func older(a, b *store.Record) bool {
	if !a.Created.Equal(b.Created) {
		return a.Created.Before(b.Created)
	}
	return a.ID < b.ID
}

// freePlace gives back what a job has taken that does not run any more.
func (s *Supervisor) freePlace(l *live) {
	s.mu.Lock()
	s.queue.Release(&l.item)
	s.mu.Unlock()
	s.events.Publish(events.Event{Kind: events.Freed, Job: l.item.ID})
}

// plan finds out when a new job is to run, and puts the names in what it waits
// for into their final form.
func (s *Supervisor) plan(ctx context.Context, rec *store.Record) error {
	spec := &rec.Spec
	if spec.Schedule != "" {
		when, err := schedule.Parse(spec.Schedule, rec.Created)
		if err != nil {
			return err
		}
		if rec.Scheduled = when.Next(rec.Created.Add(-time.Nanosecond)); rec.Scheduled.IsZero() { // a moment ago
			rec.Scheduled = rec.Created
		}
		spec.Schedule = when.String()
		if err := spec.Validate(); err != nil { // it may turn out to repeat only now
			return err
		}
	}
	spec.DependsOn = slices.Clone(spec.DependsOn)
	for i, ref := range spec.DependsOn {
		job, err := s.Find(ctx, ref, rec.Owner)
		switch {
		case err != nil:
			return joblet.Errorf(joblet.KindOf(err), "depends on %.80s: %w", ref, err)
		case job.Spec.Repeats():
			return joblet.Errorf(joblet.InvalidArgument, "depends on %s: that job repeats and never completes", joblet.ShortID(job.ID))
		case job.State.Final() && job.State != joblet.Completed:
			return joblet.Errorf(joblet.FailedPrecondition, "depends on %s: that job is %v and will not complete", joblet.ShortID(job.ID), job.State)
		}
		spec.DependsOn[i] = job.ID
	}
	slices.Sort(spec.DependsOn)
	spec.DependsOn = slices.Compact(spec.DependsOn)
	return nil
}

// enqueueNew accepts a job that waits.
func (s *Supervisor) enqueueNew(ctx context.Context, l *live) (joblet.Job, error) {
	l.rec.State = joblet.Pending
	if !l.rec.Scheduled.IsZero() {
		l.rec.State = joblet.Scheduled
	}
	s.mu.Lock()
	full := len(s.live)-int(s.queue.Used(queue.Slots)) >= maxWaiting
	s.mu.Unlock()
	if full {
		return joblet.Job{}, joblet.Errorf(joblet.ResourceExhausted, "%d jobs wait already: try again when some have run", maxWaiting)
	}
	if err := s.admitNew(l); err != nil {
		return joblet.Job{}, err
	}
	err := s.records.WriteFile(l.rec)
	if err == nil {
		err = s.records.Insert(ctx, l.rec)
	}
	if err != nil {
		s.forget(l)
		return joblet.Job{}, joinKind(err, os.RemoveAll(s.records.Dir(l.rec.ID)))
	}
	fault.Point("queue.inserted")
	s.enqueue(l)
	return s.look(l).job, nil
}

// enqueue lets a live job wait for what it has to wait for: its time, other
// jobs, a place.
func (s *Supervisor) enqueue(l *live) {
	for {
		unknown := s.tryEnqueue(l)
		if unknown == "" {
			return
		}
		rec, err := s.records.Get(s.ctx, unknown)
		if err == nil && rec.State == joblet.Completed {
			s.mu.Lock()
			l.met = append(l.met, unknown)
			s.mu.Unlock()
			continue
		}
		if s.ctx.Err() != nil {
			return // the next daemon's recovery enqueues it
		}
		reason := fmt.Sprintf("job %s, on which it depends, ", joblet.ShortID(unknown))
		if err != nil {
			reason += "is gone"
		} else {
			reason += "is " + rec.State.String()
		}
		s.cancelWaiting(l, reason)
		return
	}
}

// tryEnqueue returns the id of a job that l depends on and that is not live, if
// there is one: then nothing was done.
func (s *Supervisor) tryEnqueue(l *live) (unknown string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := &l.rec
	if l.starting { // somebody ends it just now
		return ""
	}
	switch rec.State {
	case joblet.Pending:
	case joblet.Scheduled:
		s.schedule(l)
		return ""
	default: // it was canceled on its way here
		return ""
	}
	if rec.Attempt > 0 { // what it depended on has completed
		s.makeReady(l)
		return ""
	}
	var on []queue.Dependency
	for _, id := range rec.Spec.DependsOn {
		other := s.live[id]
		switch {
		case slices.Contains(l.met, id):
		case other == nil:
			return id
		case other.rec.State == joblet.Completed:
		default: // its end, too, counts once it is durable
			on = append(on, queue.Dependency{On: id})
		}
	}
	if before := s.runBefore(l); before != nil {
		on = append(on, queue.Dependency{On: before.rec.ID, AnyEnd: true})
	}
	if s.queue.Block(&l.item, on); len(on) > 0 {
		var names []string
		for _, d := range on[:min(len(on), 5)] {
			names = append(names, joblet.ShortID(d.On))
		}
		rec.Reason = "waits for " + strings.Join(names, ", ")
		s.changed(l)
		return ""
	}
	s.makeReady(l)
	return ""
}

// runBefore returns the latest run of the same repeating job that has not ended
// and is older than l, or nil.
func (s *Supervisor) runBefore(l *live) (before *live) {
	if l.rec.Parent == "" {
		return nil
	}
	for _, other := range s.live {
		if other != l && other.rec.Parent == l.rec.Parent && !other.rec.State.Final() && older(&other.rec, &l.rec) &&
			(before == nil || older(&before.rec, &other.rec)) {
			before = other
		}
	}
	return before
}

// makeReady lets the job wait for a place. Supervisor.mu is held.
func (s *Supervisor) makeReady(l *live) {
	l.readied = time.Now()
	l.rec.Reason = ""
	if _, lacking := s.queue.Lacks(&l.item); lacking { // slots are all that is limited
		l.rec.Reason = fmt.Sprintf("waits in the queue: %d jobs run, which is the limit", s.queue.Used(queue.Slots))
	}
	s.queue.Ready(&l.item)
	s.changed(l)
	s.events.Publish(events.Event{Kind: events.Queued, Job: l.rec.ID})
}

// schedule lets the job wait for its time. Supervisor.mu is held.
func (s *Supervisor) schedule(l *live) {
	s.queue.Schedule(&l.item, l.rec.Scheduled)
	s.events.Publish(events.Event{Kind: events.Queued, Job: l.rec.ID})
}

// releaseWaiters tells the jobs that wait for one that it has ended.
func (s *Supervisor) releaseWaiters(job joblet.Job) {
	s.mu.Lock()
	freed, canceled := s.queue.Finished(job.ID, job.State == joblet.Completed)
	for _, l := range freed {
		s.makeReady(l)
	}
	s.mu.Unlock()
	for _, l := range canceled {
		s.cancelWaiting(l, fmt.Sprintf("job %s, on which it depends, is %v", joblet.ShortID(job.ID), job.State))
	}
}

// cancelWaiting ends a job that waits, and reports whether it still did.
func (s *Supervisor) cancelWaiting(l *live, reason string) bool {
	s.mu.Lock()
	if state := l.rec.State; l.starting || state != joblet.Pending && state != joblet.Scheduled {
		s.mu.Unlock()
		return false
	}
	l.starting = true // nobody else may end or run it
	s.queue.Remove(&l.item)
	end := l.rec
	s.mu.Unlock()
	end.State = joblet.Canceled
	if end.Attempt > 0 { // it has run, and was to run again
		end.State = joblet.Stopped
		if reason == canceledReason {
			reason = stoppedReason
		}
		if n := len(end.Past); n > 0 {
			end.Exit = end.Past[n-1].Exit
		}
	}
	end.Reason = reason
	done := make(chan struct{})
	s.background(func() {
		defer close(done)
		s.endWithoutRun(l, end)
	})
	changes := s.events.Subscribe(s.events.Last(), events.Filter{Job: l.item.ID, Kinds: events.Changed})
	defer changes.Close()
	for s.look(l).stuck == nil { // on a full disk not until it is recorded
		select {
		case <-done:
			return true
		case <-changes.Ready():
			drain(changes)
		case <-s.ctx.Done():
			return true
		}
	}
	return true
}

// endWithoutRun ends a job that this goroutine has claimed (live.starting). There
// is no exit record to say so, so its end is durable before anybody sees it.
func (s *Supervisor) endWithoutRun(l *live, end store.Record) {
	end.Ended, end.Sealed, end.DiskBytes = time.Now(), nil, jobdir.Size(s.records.Dir(end.ID))
	become := func() {
		fault.Point("cancel.recorded")
		s.become(l, end.State, func(r *store.Record) {
			*r = end
			l.starting, l.onDisk = false, true
			l.endRun()
			s.quota.End(end.Owner, end.ID, end.DiskBytes)
		})
	}
	if s.persist(l, func() error { return s.saveEnd(l, end, become) }) {
		s.records.Tidy(end.ID)
		// Not before: it says more than the database only if that has lost it.
		if err := s.records.WriteFile(end); err != nil {
			s.cfg.Log.Warn("write down how a job ended", "job", end.ID, "error", err)
		}
		s.finish(l, end)
	} // else the daemon stops, and the next one has the job as it was
}

// runQueue is the goroutine that starts what waits, when it may.
func (s *Supervisor) runQueue() {
	changes := s.events.Subscribe(s.events.Last(), events.Filter{Kinds: events.Queued | events.Freed})
	defer changes.Close()
	queue.Run(s.ctx, changes.Ready(), func(now time.Time) time.Duration {
		drain(changes)
		return s.startDue(now)
	})
}

// startDue starts what may run now and returns when to look again.
func (s *Supervisor) startDue(now time.Time) time.Duration {
	for {
		s.mu.Lock()
		if s.closing {
			s.mu.Unlock()
			return queue.ClockCheck
		}
		if l, ok := s.queue.Due(now); ok {
			s.mu.Unlock()
			s.due(l, now)
			continue
		}
		if l, ok := s.queue.Next(); ok {
			l.starting, l.begun = true, time.Now()
			s.work.Go(func() { s.launch(l) })
			s.mu.Unlock()
			continue
		}
		next, ok := s.queue.NextDue()
		s.mu.Unlock()
		if !ok {
			return queue.ClockCheck
		}
		return next.Sub(now)
	}
}

// due lets a job whose time has come wait for its turn, or, if it repeats, makes
// one run of it.
func (s *Supervisor) due(l *live, now time.Time) {
	if !s.look(l).job.Spec.Repeats() {
		s.mu.Lock()
		waits := l.rec.State == joblet.Scheduled && !l.starting // it was not canceled just now
		if waits {
			// Not recorded: a daemon that comes next finds that its time has come.
			s.becomeLocked(l, joblet.Pending, nil)
		}
		s.mu.Unlock()
		if waits {
			fault.Point("due.pending")
			s.enqueue(l)
		}
		return
	}
	s.fire(l, now)
}

// fire makes one run of a job that repeats. The run's idempotency key names the
// moment, so that a crash before the next one is recorded does not make it run
// twice. Moments that passed while no daemon ran count as one.
func (s *Supervisor) fire(l *live, now time.Time) {
	s.mu.Lock()
	parent := l.rec
	if parent.State != joblet.Scheduled || l.starting { // canceled just now
		s.mu.Unlock()
		return
	}
	latest, waiting := s.runsOf(parent.ID)
	s.mu.Unlock()
	skip := latest != nil && (parent.Spec.Overlap != joblet.OverlapQueue || waiting)
	if skip {
		s.cfg.Log.Info("a repeated job's run is left out: the one before it has not ended", "job", parent.ID, "due", parent.Scheduled)
	} else if err := s.makeRun(parent); err != nil {
		s.cfg.Log.Error("a repeated job's run could not be made", "job", parent.ID, "due", parent.Scheduled, "error", err)
		if s.ctx.Err() != nil {
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
		s.cancelWaiting(l, "its schedule has no further time")
		return
	}
	s.mu.Lock()
	if l.rec.State != joblet.Scheduled || l.starting { // canceled meanwhile
		s.mu.Unlock()
		return
	}
	l.rec.Scheduled = next
	s.schedule(l)
	s.changed(l)
	s.mu.Unlock()
	if err := s.save(l, false); err != nil && s.ctx.Err() == nil {
		s.cfg.Log.Error("record a repeated job's next time", "job", parent.ID, "error", err)
	}
	fault.Point("fire.recorded")
}

// runsOf returns the latest run of a repeating job that has not ended, and
// whether one waits. Supervisor.mu is held.
func (s *Supervisor) runsOf(parent string) (latest *live, waiting bool) {
	for _, other := range s.live {
		if other.rec.Parent == parent && !other.rec.State.Final() {
			waiting = waiting || other.rec.State == joblet.Pending && !other.starting
			if latest == nil || older(&latest.rec, &other.rec) {
				latest = other
			}
		}
	}
	return latest, waiting
}

func (s *Supervisor) makeRun(parent store.Record) error {
	spec := parent.Spec
	spec.Schedule, spec.Overlap = "", ""
	spec.IdempotencyKey = runKey(parent.Job)
	switch _, err := s.records.ByKey(s.ctx, parent.Owner, spec.IdempotencyKey); {
	case err == nil:
		return nil
	case joblet.KindOf(err) != joblet.NotFound:
		return err
	}
	input, err := s.uploads.Link(parent.Job, parent.Owner, spec)
	if err != nil {
		return err
	}
	fault.Point("fire.linked")
	rec := store.Record{Job: joblet.Job{ID: input.ID(), Spec: spec, Owner: parent.Owner, Parent: parent.ID, Created: time.Now()}}
	if _, err := s.accept(s.ctx, rec, false); err != nil {
		return joinKind(err, input.Discard())
	}
	return nil
}

// keyPrefix marks the idempotency keys that are the daemon's own.
const keyPrefix = "joblet:"

func runKey(parent joblet.Job) string {
	return keyPrefix + parent.ID + "@" + parent.Scheduled.UTC().Format(time.RFC3339)
}

const (
	launchTries = 60
	launchPause = time.Second
)

// launch runs a job that has waited and has a place. That its attempt begins is
// durable before it does, so that after a crash nobody runs it twice.
func (s *Supervisor) launch(l *live) {
	for try := 1; ; try++ {
		box, err := s.tryLaunch(l)
		if err == nil {
			s.watch(l)
			return
		}
		if box != nil {
			if discardErr := box.Discard(); discardErr != nil {
				s.cfg.Log.Error("give up a box", "job", l.rec.ID, "error", discardErr)
			}
		}
		if s.ctx.Err() != nil {
			return
		}
		var transient *transientError
		if !errors.As(err, &transient) || try == launchTries {
			s.failLaunch(l, err)
			return
		}
		s.cfg.Log.Warn("a job could not be started; it is tried again", "job", l.rec.ID, "error", err)
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(launchPause):
		}
	}
}

// transientError is a failure that is the host's, and may pass.
type transientError struct{ error }

func (e *transientError) Unwrap() error { return e.error }

func (s *Supervisor) tryLaunch(l *live) (*native.Sandbox, error) {
	s.mu.Lock()
	spec, again := l.rec.Spec, l.rec.State == joblet.Initializing
	s.mu.Unlock()
	run, err := s.planner.Run(spec)
	if err != nil {
		return nil, err
	}
	box, err := s.engine.Take(s.ctx, run)
	if err != nil {
		return nil, &transientError{err}
	}
	if again {
		s.become(l, joblet.Pending, func(r *store.Record) { r.Attempt-- })
	}
	rec := s.becomeStarting(l, box)
	fault.Point("launch.begin")
	if err := s.save(l, true); err != nil {
		return box, &transientError{err}
	}
	fault.Point("launch.recorded")
	proc, err := s.boxed(box, run, rec)
	if err != nil {
		return box, err
	}
	fault.Point("launch.running")
	s.running(l, proc)
	return nil, nil
}

// failLaunch ends a job that cannot be run.
func (s *Supervisor) failLaunch(l *live, cause error) {
	s.mu.Lock()
	end := l.rec
	s.mu.Unlock()
	end.State, end.Reason, end.Failure = joblet.Failed, joblet.Shorten(cause.Error()), joblet.KindOf(cause)
	s.freePlace(l)
	s.notStarted(l, end.Failure)
	s.endWithoutRun(l, end)
}
