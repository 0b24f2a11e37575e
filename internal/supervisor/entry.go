package supervisor

import (
	"context"
	"sync"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/events"
	"github.com/joblet/joblet/internal/queue"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/budget"
	"github.com/joblet/joblet/internal/supervisor/guard"
	"github.com/joblet/joblet/internal/supervisor/records"
	"github.com/joblet/joblet/internal/supervisor/sampling"
)

// persist makes a live job's record durable, however long that takes: on a full
// disk, say. Until then the truth is in memory and in the job's directory. It
// reports whether it could before the daemon stops.
func (t *table) persist(j *entry, save func() error) bool {
	for tries := 1; ; tries++ {
		err := save()
		if records.Written(err) {
			t.setSaveError(j, nil)
			return true
		}
		if tries == persistTold {
			t.setSaveError(j, err)
		}
		t.log.Error("record what became of a job; it is tried again", "job", t.snapshot(j).job.ID, "error", err)
		select {
		case <-t.ctx.Done():
			return false
		case <-time.After(min(time.Duration(tries)*persistEvery, time.Second)):
		}
	}
}

const (
	// persistEvery is how often it is tried, at first.
	persistEvery = 100 * time.Millisecond
	// persistTold is after how many tries those who wait for the end are told.
	persistTold = 4
)

func (t *table) setSaveError(j *entry, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j.saveErr != err {
		j.saveErr = err
		t.changed(j)
	}
}

// live is a job that has not ended, or whose end is not in the database yet.
// Supervisor.mu protects it.
type entry struct {
	saving sync.Mutex // held while the record is written; not under Supervisor.mu

	rec             store.Record // its spec has the secrets
	item            queue.Item[*entry]
	size            int // of the spec
	proc            *native.Process
	sampled         *sampling.Run // of proc
	over            chan struct{} // closed when the latest run's output is complete
	seq             uint64        // number of the latest event that a user may have noticed
	starting        bool          // it has a place and is about to run
	silent          bool          // it runs under a shim of a former daemon's that does not answer
	stop            *guard.Stop   // of the latest run; nil: nobody has asked
	deadlineChanged chan struct{} // stop is new
	stopPending     bool          // a goroutine waits to have it end
	saveErr         error         // why its end cannot be recorded; nil: it can, or was not tried
	onDisk          bool          // its exit record, or the database, says how it ended
	settled         bool          // the database has its end
	withdrawn       bool          // it could not be started, and there is no such job
	elsewhere       string        // why its latest box was not looked for; empty: it was, or is this daemon's
	completed       []string      // jobs that it depends on and that had completed before it waited

	// For the metrics: when it began to wait for a place, zero if it did not, and
	// when its start began, zero if another daemon did that.
	queuedAt, startedAt time.Time
}

func newEntry(rec store.Record) *entry {
	j := &entry{rec: rec, size: budget.Size(rec.Spec), over: make(chan struct{}), deadlineChanged: make(chan struct{}, 1)}
	j.item = queue.Item[*entry]{
		Job: j, ID: rec.ID, Created: rec.Created, Priority: rec.Spec.Priority,
		Needs: queue.Amounts{queue.Slots: 1, queue.Memory: rec.Spec.Limits.MemoryBytes},
	}
	return j
}

// endRun says that the latest run's output is complete. Supervisor.mu is held.
func (j *entry) endRun() {
	select {
	case <-j.over:
	default:
		close(j.over)
	}
}

// save writes a live job's record as it is now, durably or not. It is the only
// way by which a record is updated: nobody writes an older one over it.
func (t *table) save(j *entry, durable bool) error {
	j.saving.Lock()
	defer j.saving.Unlock()
	t.mu.Lock()
	rec := j.rec
	t.mu.Unlock()
	ctx := context.WithoutCancel(t.ctx)
	if durable {
		return t.records.Update(ctx, rec)
	}
	return t.records.UpdateUnsynced(ctx, rec)
}

// saveEnd makes durable what a live job is about to become, and makes it so before
// anybody can write the record again.
func (t *table) saveEnd(j *entry, rec store.Record, become func()) error {
	j.saving.Lock()
	defer j.saving.Unlock()
	err := t.records.Update(context.WithoutCancel(t.ctx), rec)
	if records.Written(err) {
		become()
	}
	return err
}

// view is a live job at one moment.
type snapshot struct {
	job       joblet.Job // secrets masked
	proc      *native.Process
	over      <-chan struct{}
	seq       uint64 // of the latest event that a user may have noticed
	latest    uint64 // of the latest event of all
	ended     bool   // and no crash takes that back
	settled   bool
	withdrawn bool
	// starting: it neither waits nor runs, but is about to.
	starting bool
	silent   bool
	saveErr  error
}

func (t *table) snapshot(j *entry) snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := snapshot{ended: j.rec.State.Final() && (j.onDisk || j.settled), job: j.rec.Job, proc: j.proc, over: j.over, seq: j.seq, latest: t.events.Last(), settled: j.settled, withdrawn: j.withdrawn, starting: j.starting, silent: j.silent, saveErr: j.saveErr}
	v.job.Spec = v.job.Spec.Redacted()
	return v
}

// await waits until done says so of a live job, and returns it as it is then.
func (t *table) await(ctx context.Context, j *entry, done func(snapshot) bool) (snapshot, error) {
	var changes *events.Subscription
	for {
		v := t.snapshot(j)
		if v.withdrawn {
			return v, joblet.Errorf(joblet.NotFound, "job %s could not be started", joblet.ShortID(v.job.ID))
		}
		if done(v) {
			return v, nil
		}
		if changes == nil {
			changes = t.events.Subscribe(v.latest, events.Filter{Job: j.item.ID, Kinds: events.Changed})
			defer changes.Close()
		}
		select {
		case <-changes.Ready():
			drain(changes)
		case <-ctx.Done():
			return v, ctx.Err()
		case <-t.ctx.Done():
			return v, joblet.Errorf(joblet.Unavailable, "the daemon is stopping; job %s goes on", joblet.ShortID(v.job.ID))
		}
	}
}

// drain takes all events that there are: the caller looks at everything anew, which
// makes up for a gap as well.
func drain(changes *events.Subscription) {
	for ok := true; ok; _, ok = changes.Next() {
	}
}

// demand notes that a run is to end. Supervisor.mu is held.
func (j *entry) setStop(opt joblet.StopOptions) {
	j.stop = guard.Request(opt, j.stop)
	select {
	case j.deadlineChanged <- struct{}{}:
	default:
	}
}

// awaitRun is await for what a run's shim brings about: it ends with
// native.ErrSilent when that does not answer.
func (t *table) awaitRun(ctx context.Context, j *entry, done func(snapshot) bool) (snapshot, error) {
	v, err := t.await(ctx, j, func(v snapshot) bool { return v.silent || done(v) })
	if err != nil || done(v) {
		return v, err
	}
	limited, cancel := context.WithTimeout(ctx, silentTime)
	defer cancel()
	v, err = t.await(limited, j, done)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = native.ErrSilent
	}
	return v, err
}
