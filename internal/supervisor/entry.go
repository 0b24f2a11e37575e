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

// entry is a job that has not ended, or whose end is not in the database yet. table.mu
// protects it.
type entry struct {
	saving sync.Mutex // held while the record is written; not under table.mu

	rec             store.Record // its spec has the secrets
	item            queue.Item[*entry]
	size            int // of the spec
	proc            *native.Process
	sampled         *sampling.Run // of proc
	over            chan struct{} // closed when the latest run's output is complete
	seq             uint64        // number of the latest event that users can see
	starting        bool          // it has a slot and is about to run, or is about to end without a run
	silent          bool          // the shim of a former daemon that runs it does not answer
	stop            *guard.Stop   // of the latest run; nil: none was requested
	deadlineChanged chan struct{} // receives a value when stop is new
	stopPending     bool          // a goroutine waits until it can be stopped
	saveErr         error         // why its end cannot be recorded; nil: it can, or was not tried
	onDisk          bool          // its exit record, or the database, says how it ended
	settled         bool          // the database has its end
	withdrawn       bool          // it could not be started, and there is no such job
	elsewhere       string        // why its latest sandbox is not adopted; empty: it is, or this daemon made it
	completed       []string      // dependencies that were completed before it waited

	// For the metrics: when it began to wait for a slot (zero: it did not), and when its
	// start began (zero: another daemon started it).
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

// endRun marks the output of the latest run as complete. table.mu is held.
func (j *entry) endRun() {
	select {
	case <-j.over:
	default:
		close(j.over)
	}
}

// save writes a job's record as it is now, durably or not. All updates of records pass
// through it, so that no older version overwrites a newer one.
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

// saveEnd makes the end of a job durable and then calls become, before the record can be
// written again.
func (t *table) saveEnd(j *entry, rec store.Record, become func()) error {
	j.saving.Lock()
	defer j.saving.Unlock()
	err := t.records.Update(context.WithoutCancel(t.ctx), rec)
	if records.Written(err) {
		become()
	}
	return err
}

// snapshot is an entry at one moment.
type snapshot struct {
	job       joblet.Job // secrets masked
	proc      *native.Process
	over      <-chan struct{}
	seq       uint64 // of the latest event that users can see
	latest    uint64 // of the latest event of all
	ended     bool   // and no crash takes that back
	settled   bool
	withdrawn bool
	starting  bool // it neither waits nor runs, but is about to
	silent    bool
	saveErr   error
}

func (t *table) snapshot(j *entry) snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := snapshot{ended: j.rec.State.Final() && (j.onDisk || j.settled), job: j.rec.Job, proc: j.proc, over: j.over, seq: j.seq, latest: t.events.Last(), settled: j.settled, withdrawn: j.withdrawn, starting: j.starting, silent: j.silent, saveErr: j.saveErr}
	v.job.Spec = v.job.Spec.Redacted()
	return v
}

// unrecorded returns why the end of a job that has ended cannot be recorded; nil: it
// can, or the job has not ended.
func (v snapshot) unrecorded() error {
	if v.saveErr == nil || !v.starting && !v.job.State.Final() {
		return nil
	}
	return joblet.Errorf(joblet.KindOf(v.saveErr), "cannot record the end of job %s yet: %w", joblet.ShortID(v.job.ID), v.saveErr)
}

// await waits until done accepts a job's snapshot, and returns that.
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

// drain discards all events: the caller takes a new snapshot, which covers a gap as
// well.
func drain(changes *events.Subscription) {
	for ok := true; ok; _, ok = changes.Next() {
	}
}

// setStop requests that the run ends. table.mu is held.
func (j *entry) setStop(opt joblet.StopOptions) {
	j.stop = guard.Request(opt, j.stop)
	select {
	case j.deadlineChanged <- struct{}{}:
	default:
	}
}

// awaitRun is await for what depends on a run's shim: it returns native.ErrSilent if the
// shim does not answer.
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

// persist makes a job's record durable, however long that takes, as on a full disk.
// Until then the truth is in memory and in the job's directory. It reports whether it
// succeeded before the daemon stops.
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
		t.log.Error("cannot record the state of a job; the daemon tries again", "job", t.snapshot(j).job.ID, "error", err)
		select {
		case <-t.ctx.Done():
			return false
		case <-time.After(min(time.Duration(tries)*persistEvery, time.Second)):
		}
	}
}

const (
	// persistEvery is the first pause between two tries.
	persistEvery = 100 * time.Millisecond
	// persistTold is after how many tries clients that wait for the end receive the error.
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
