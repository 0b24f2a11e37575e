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

// background runs f in a goroutine, unless the daemon is stopping: then the next daemon
// does the work of f.
func (t *table) background(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closing {
		t.work.Go(f)
	}
}

// freeSlot gives back the slot of a job that has ended its run.
func (t *table) freeSlot(j *entry) {
	t.mu.Lock()
	t.queue.Release(&j.item)
	t.mu.Unlock()
	t.events.Publish(events.Event{Kind: events.Freed, Job: j.item.ID})
}

// claimStop reports whether no goroutine waits to stop the job yet. One does from then
// on.
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

// dependent returns the id of a job of the same owner that waits and depends on this
// one, or "". Dependent jobs of other owners do not prevent a deletion: they are canceled
// when they need the job.
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

// admit adds a job.
func (t *table) admit(j *entry) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing {
		return errClosing
	}
	t.add(j)
	return nil
}

// add and remove change the table. table.mu is held.
func (t *table) add(j *entry) {
	t.jobs[j.rec.ID] = j
	t.specs.Add(j.rec.Owner, j.size)
}

func (t *table) remove(j *entry) {
	if t.jobs[j.rec.ID] != j { // it was never added
		return
	}
	delete(t.jobs, j.rec.ID)
	t.specs.Add(j.rec.Owner, -j.size)
}

// admitNew is admit for a new job, for which the limits of its owner count.
func (t *table) admitNew(j *entry) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closing:
		return errClosing
	case t.hasMany(j):
		return joblet.Errorf(joblet.ResourceExhausted, "%s has %d unended jobs, the maximum for one owner (max-per-owner)", j.rec.Owner, t.maxPerOwner)
	case t.holdsMuch(j):
		return joblet.Errorf(joblet.ResourceExhausted, "with this job, the arguments and environments of the unended jobs of %s exceed %d MiB, the maximum for one owner: pass large data in files",
			j.rec.Owner, t.specs.Max>>20)
	}
	t.add(j)
	return nil
}

// holdsMuch reports whether the job exceeds the byte budget of its owner. table.mu
// is held.
func (t *table) holdsMuch(j *entry) bool {
	return j.rec.Parent == "" && !t.specs.Fits(j.rec.Owner, j.size)
}

// hasMany reports whether the job's owner has the maximum of jobs. table.mu
// is held.
func (t *table) hasMany(j *entry) bool {
	return t.maxPerOwner > 0 && j.rec.Parent == "" && t.activeOf(j.rec.Owner) >= t.maxPerOwner
}

// forget undoes admit: the job was never accepted.
func (t *table) forget(j *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.remove(j)
	j.withdrawn = true
	t.changed(j)
}

// changed publishes that a detail of the job has changed. table.mu is held.
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

// become gives the job its next state, and lets change set what else is new. All changes
// of state pass through it.
func (t *table) become(j *entry, next joblet.State, change func(*store.Record)) store.Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.becomeLocked(j, next, change)
}

func (t *table) becomeLocked(j *entry, next joblet.State, change func(*store.Record)) store.Record {
	from := j.rec.State
	if !from.MayBecome(next) {
		t.log.Error("a job changed its state in an invalid way", "job", j.rec.ID, "from", from, "to", next)
	}
	j.rec.State = next
	if change != nil {
		change(&j.rec)
	}
	j.seq = t.events.Publish(events.Event{Kind: events.State, Job: j.rec.ID, From: from, To: next})
	return j.rec
}

// find returns the unended job with this id, or nil.
func (t *table) find(id string) *entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.jobs[id]
}

// compareAndSetState changes the state of a run if it still is from.
func (t *table) compareAndSetState(j *entry, proc *native.Process, from, to joblet.State) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j.proc != proc || j.rec.State != from {
		return false
	}
	t.becomeLocked(j, to, nil)
	return true
}

// saveState records the state of a job, not durably: the truth is its cgroup, which
// recovery reads.
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
