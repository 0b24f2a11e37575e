package supervisor

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/events"
	"github.com/joblet/joblet/internal/metrics"
	"github.com/joblet/joblet/internal/queue"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/budget"
	"github.com/joblet/joblet/internal/supervisor/guard"
	"github.com/joblet/joblet/internal/supervisor/records"
)

// table holds the jobs that have not ended, and the order in which those that wait may
// run. Every change of a job's state, and every write of its record, passes through it.
type table struct {
	ctx     context.Context // ends with Supervisor.Close
	work    sync.WaitGroup  // the goroutines: one per running job, and the daemon's own
	log     *slog.Logger
	records *records.Records
	events  *events.Feed // what happens to jobs; published to with or without mu
	metrics *metrics.Metrics

	mu          sync.Mutex // protects what follows
	closing     bool
	jobs        map[string]*entry
	specs       budget.Bytes // of the jobs of each owner
	maxPerOwner int          // jobs; 0: any number
	queue       *queue.Queue[*entry]

	onChange func(id string, from, to joblet.State) // for tests; called under mu
}

func newTable(ctx context.Context, cfg Config) *table {
	t := &table{
		ctx: ctx, log: cfg.Log, metrics: cfg.Metrics,
		jobs: map[string]*entry{}, specs: budget.Bytes{Max: budget.Default}, maxPerOwner: cfg.MaxPerOwner,
		queue: queue.New[*entry](),
	}
	t.events = events.New(t.tap)
	t.queue.SetLimits(queue.Amounts{queue.Slots: int64(max(0, cfg.MaxConcurrent))})
	return t
}

// background runs f beside the caller, unless the daemon is stopping: the next
// one takes up what f was to look after.
func (t *table) background(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closing {
		t.work.Go(f)
	}
}

// freePlace gives back what a job has taken that does not run any more.
func (t *table) freeSlot(j *entry) {
	t.mu.Lock()
	t.queue.Release(&j.item)
	t.mu.Unlock()
	t.events.Publish(events.Event{Kind: events.Freed, Job: j.item.ID})
}

// keepAsking reports whether the job lacks a goroutine that waits to have it end. It
// has one from then on.
func (t *table) claimStop(id string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	j := t.jobs[id]
	if j == nil || j.stopPending {
		return false
	}
	j.stopPending = true
	return true
}

// dependent returns a job of the same owner that waits and depends on this one, or
// "". Those of others do not hold it, whoever deletes it: they are canceled when
// they look for it.
func (t *table) dependent(job joblet.Job) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, j := range t.jobs {
		if j.rec.Attempt == 0 && j.rec.Owner == job.Owner && slices.Contains(j.rec.Spec.DependsOn, job.ID) && !j.rec.State.Final() {
			return j.rec.ID
		}
	}
	return ""
}

// countJobs counts the jobs for the metrics.
func (t *table) countJobs() (jobs metrics.Jobs) {
	t.mu.Lock()
	defer t.mu.Unlock()
	jobs.Ready, jobs.Scheduled, jobs.Blocked = t.queue.Counts()
	for _, j := range t.jobs {
		jobs.States[j.rec.State]++
	}
	return jobs
}

func (t *table) activeOf(owner string) (n int) {
	if owner == "" {
		return len(t.jobs)
	}
	for _, j := range t.jobs {
		if j.rec.Owner == owner && !j.rec.State.Final() {
			n++
		}
	}
	return n
}

var errClosing = joblet.Errorf(joblet.Unavailable, "the daemon is stopping")

// admit makes the job a live one.
func (t *table) admit(j *entry) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing {
		return errClosing
	}
	t.add(j)
	return nil
}

// keep and drop change what is live. Supervisor.mu is held.
func (t *table) add(j *entry) {
	t.jobs[j.rec.ID] = j
	t.specs.Add(j.rec.Owner, j.size)
}

func (t *table) remove(j *entry) {
	if t.jobs[j.rec.ID] != j { // it was never kept
		return
	}
	delete(t.jobs, j.rec.ID)
	t.specs.Add(j.rec.Owner, -j.size)
}

// admitNew is admit for a job that is submitted.
func (t *table) admitNew(j *entry) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closing:
		return errClosing
	case t.hasMany(j):
		return joblet.Errorf(joblet.ResourceExhausted, "%s has %d unended jobs, the maximum for one owner (max-per-owner)", j.rec.Owner, t.maxPerOwner)
	case t.holdsMuch(j):
		return joblet.Errorf(joblet.ResourceExhausted, "with this one, the arguments and environments of %s's jobs that have not ended would take more than the %d MiB that one owner has: pass large data in files",
			j.rec.Owner, t.specs.Max>>20)
	}
	t.add(j)
	return nil
}

// holdsMuch reports whether the job's owner would hold more than he may. Supervisor.mu
// is held.
func (t *table) holdsMuch(j *entry) bool {
	return j.rec.Parent == "" && !t.specs.Fits(j.rec.Owner, j.size)
}

// hasMany reports whether the job's owner has as many as he may. Supervisor.mu
// is held.
func (t *table) hasMany(j *entry) bool {
	return t.maxPerOwner > 0 && j.rec.Parent == "" && t.activeOf(j.rec.Owner) >= t.maxPerOwner
}

// forget takes back admit: the job was never accepted.
func (t *table) forget(j *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.remove(j)
	j.withdrawn = true
	t.changed(j)
}

// changed publishes that something about the job is new. Supervisor.mu is held.
func (t *table) changed(j *entry) {
	j.seq = t.events.Publish(events.Event{Kind: events.Detail, Job: j.rec.ID})
}

// tap counts an event for the metrics. The feed calls it for each one.
func (t *table) tap(e events.Event) {
	switch e.Kind {
	case events.State:
		if t.onChange != nil {
			t.onChange(e.Job, e.From, e.To)
		}
	case events.Accepted:
		t.metrics.Accepted()
	case events.Started:
		t.metrics.Started(e.Queued, e.Starting)
	case events.NotStarted:
		t.metrics.NotStarted(e.Failure)
	case events.Settled:
		t.metrics.Ended(e.To)
	}
}

// notStarted publishes that the job's command could not be run.
func (t *table) notStarted(j *entry, cause joblet.Kind) {
	t.events.Publish(events.Event{Kind: events.NotStarted, Job: j.item.ID, Failure: cause})
}

// become gives the job its next state, and change whatever else is new with it.
// All that happens to a job passes through here.
func (t *table) become(j *entry, next joblet.State, change func(*store.Record)) store.Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.becomeLocked(j, next, change)
}

func (t *table) becomeLocked(j *entry, next joblet.State, change func(*store.Record)) store.Record {
	from := j.rec.State
	if !from.MayBecome(next) {
		t.log.Error("a job changes its state in a way that it should not", "job", j.rec.ID, "from", from, "to", next)
	}
	j.rec.State = next
	if change != nil {
		change(&j.rec)
	}
	j.seq = t.events.Publish(events.Event{Kind: events.State, Job: j.rec.ID, From: from, To: next})
	return j.rec
}

// find returns the live job with this id, or nil.
func (t *table) find(id string) *entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.jobs[id]
}

// turn changes the state of a run if it still is what the caller thinks.
func (t *table) compareAndSetState(j *entry, proc *native.Process, from, to joblet.State) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j.proc != proc || j.rec.State != from {
		return false
	}
	t.becomeLocked(j, to, nil)
	return true
}

// turned records what has become of a live job; the truth is its cgroup, which
// recovery looks at.
func (t *table) saveState(j *entry) (joblet.Job, error) {
	if err := t.save(j, false); err != nil {
		return joblet.Job{}, err
	}
	return t.snapshot(j).job, nil
}

// mustEnd returns when the run must have ended, and why; the zero time: it may go on.
func (t *table) mustEnd(j *entry) (by time.Time, cause protocol.Cause) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return guard.Deadline(j.rec.Job, j.silent || j.proc != nil, j.stop)
}
