package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/secrets"
	"github.com/joblet/joblet/internal/statedir"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/records"
	"github.com/joblet/joblet/internal/supervisor/staging"
)

// recovery takes over from a former daemon. It is needed only until the daemon serves.
type recovery struct {
	ctx     context.Context
	log     *slog.Logger
	runDir  string
	where   statedir.Whereabouts
	records *records.Records
	engine  *native.Engine
	quota   *staging.Quota

	table    *table
	waitlist *waitlist
	executor *executor
}

// recover takes over from a former daemon, however that ended: it adopts running jobs,
// concludes jobs that ended meanwhile, enqueues waiting jobs, and removes what belongs to
// no job.
func (rv *recovery) recover(ctx context.Context) error {
	unrecorded, err := rv.records.Unrecorded(ctx)
	if err != nil {
		return err
	}
	boxes, foreign, err := rv.engine.Sandboxes()
	if err != nil {
		return err
	}
	unfinished, running, err := rv.records.RecoverUnfinished(ctx, unrecorded, records.Found{
		Boxes: boxes, JobDir: rv.engine.JobDir, RunDirs: rv.where.Now.RunDirs,
	})
	if err != nil {
		return err
	}
	if err := rv.records.CheckKey(unfinished); err != nil {
		return err
	}
	if foreign > 0 {
		rv.log.Warn("sandboxes of another state directory are left alone", "sandboxes", foreign, "run", rv.runDir)
	}
	if rv.where.Elsewhere != "" && len(unfinished) > 0 {
		rv.log.Warn("the recorded jobs are not adopted", "because", rv.where.Elsewhere)
	}
	all, held, err := rv.load(ctx, unfinished, running)
	if err != nil {
		return err
	}
	if err := rv.engine.Sweep(ctx, held); err != nil { // the warm pool, and jobs that were never accepted
		rv.log.Error("cannot release all sandboxes of a former daemon", "error", err)
	}
	waiting, over, err := rv.recoverJobs(all)
	if err != nil {
		return err
	}
	rv.settleAll(over)
	for _, j := range waiting {
		switch {
		case j.rec.Spec.Stdin == joblet.StdinStream:
			rv.waitlist.cancelWaiting(j, "its standard input was a stream, which was lost with the daemon")
		case len(j.rec.Sealed) > 0 && secrets.Masked(j.rec.Spec.SecretEnv):
			rv.waitlist.cancelWaiting(j, j.rec.Reason)
		default:
			rv.waitlist.enqueue(j)
		}
		fault.Point("recover.waits")
	}
	inDoubt := rv.records.InDoubt()
	if err := rv.records.Vouch(ctx); err != nil {
		rv.log.Warn("cannot mark the job records as complete; the next daemon compares them with the jobs' directories again", "error", err)
	}
	rv.table.work.Go(func() {
		rv.records.Sweep(rv.ctx, unrecorded, inDoubt, func(id string) bool { return rv.table.find(id) != nil })
	})
	return nil
}

// load puts the unfinished jobs into the table, and returns them with the leases that
// they hold, by box. running has the boxes of jobs that were found running, by job.
func (rv *recovery) load(ctx context.Context, unfinished []store.Record, running map[string]string) (all []*entry, held map[string]sandbox.Leases, err error) {
	held = map[string]sandbox.Leases{}
	for _, rec := range unfinished {
		if rec.Box == "" && rec.State.Alive() { // recorded by a version whose boxes had the jobs' ids
			rec.Box, rec.Attempt = rec.ID, max(rec.Attempt, 1)
		}
		if err := rv.records.CatchUp(ctx, &rec, running[rec.ID]); err != nil {
			return nil, nil, err
		}
		if rec.State.Final() {
			continue
		}
		held[rec.Box] = nil
		if rec.State.Alive() { // its processes may be there, found or not
			held[rec.Box] = outcome.LeasesOf(rec)
		}
		if err := rv.records.Unseal(&rec); err != nil {
			rv.log.Error("the secrets of a job are lost", "job", rec.ID, "error", err)
			rec.Reason = err.Error()
		}
		j := newEntry(rec)
		rv.executor.planner.UseRuntime(rec.Spec.Runtime, 1)
		if err := rv.table.admit(j); err != nil {
			return nil, nil, err
		}
		if rv.quota != nil {
			rv.quota.Restore(rec.Owner, rec.ID, jobdir.InputSize(rv.records.Dir(rec.ID)))
		}
		all = append(all, j)
	}
	return all, held, nil
}

const (
	// recoverWorkers is how many jobs are recovered at once: each may have to wait
	// for its shim.
	recoverWorkers = 64
	// recoverTime is how long the recovery waits for shims in all, and then for
	// ends to be recorded: what is not ready by then goes on beside the daemon.
	recoverTime = 3 * time.Second
)

// inParallel calls fn for all items, for recoverWorkers of them at once.
func inParallel[T any](items []T, fn func(T)) {
	slots := make(chan struct{}, recoverWorkers)
	var workers sync.WaitGroup
	for _, item := range items {
		slots <- struct{}{}
		workers.Go(func() {
			defer func() { <-slots }()
			fn(item)
		})
	}
	workers.Wait()
}

// recoverJobs is recoverJob for all jobs, and returns those that wait and those that
// have ended.
func (rv *recovery) recoverJobs(all []*entry) (waiting, over []*entry, err error) {
	by := time.Now().Add(recoverTime)
	var mu sync.Mutex // protects the results
	inParallel(all, func(j *entry) {
		is, jobErr := rv.recoverJob(j, by)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case jobErr != nil:
			err = errors.Join(err, jobErr)
		case is == recoveredWaits:
			waiting = append(waiting, j)
		case is == recoveredOver:
			over = append(over, j)
		}
	})
	return waiting, over, err
}

// settleAll settles jobs that are over, and returns when that is done or has taken
// too long, as on a full disk: then it goes on.
func (rv *recovery) settleAll(over []*entry) {
	done := make(chan struct{})
	rv.table.background(func() {
		defer close(done)
		inParallel(over, func(j *entry) {
			rv.executor.settle(j)
			fault.Point("recover.concluded")
		})
	})
	late := time.NewTimer(recoverTime)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
	}
}

type recovered int

const (
	recoveredRuns  recovered = iota // its shim runs it
	recoveredWaits                  // it is to run
	recoveredOver                   // it has ended
)

// recoverJob determines what happened to a job while no daemon ran. It waits for its
// shim until by at most.
func (rv *recovery) recoverJob(j *entry, by time.Time) (recovered, error) {
	rec := j.rec
	if !rec.State.Alive() {
		return recoveredWaits, nil
	}
	rv.table.mu.Lock()
	rv.table.queue.Occupy(&j.item)
	j.elsewhere = rv.where.Elsewhere
	rv.table.mu.Unlock()
	proc, err := rv.adopt(rec.Box, by)
	if err == nil {
		rv.executor.adopted(j, proc)
		fault.Point("recover.adopted")
		rv.table.background(func() { rv.executor.watch(j) })
		return recoveredRuns, nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		rv.table.mu.Lock()
		j.silent = true
		if rec.State == joblet.Stopping { // the shim may not have received the request
			j.setStop(joblet.StopOptions{Signal: int(syscall.SIGTERM), Grace: joblet.DefaultGrace})
		}
		rv.table.mu.Unlock()
		rv.table.background(func() { rv.executor.adoptLater(j) })
		return recoveredRuns, nil
	}
	dir := rv.records.Dir(rec.ID)
	if _, readErr := jobdir.ReadExit(dir, rec.Attempt); readErr != nil && !errors.Is(readErr, fs.ErrNotExist) && !errors.Is(readErr, jobdir.ErrDamaged) {
		return 0, fmt.Errorf("cannot recover job %s: %w", rec.ID, readErr)
	}
	if rec.State == joblet.Initializing && !jobdir.Begun(dir, rec.Attempt) {
		rv.log.Info("the start of a job was interrupted before it ran", "job", rec.ID)
		if err := rv.executor.release(j); err != nil {
			rv.log.Error("cannot release a sandbox that never ran its job", "job", rec.ID, "error", err)
		}
		rv.table.mu.Lock()
		rv.table.queue.Release(&j.item)
		rv.table.mu.Unlock()
		rv.table.become(j, joblet.Pending, func(r *store.Record) { r.Attempt--; r.Box, r.IDBase, r.Leases = "", 0, nil })
		if err := rv.table.save(j, true); err != nil { // on a full disk, say; it is recorded again before it runs
			rv.log.Error("cannot record that a job waits", "job", rec.ID, "error", err)
		}
		fault.Point("recover.requeued")
		return recoveredWaits, nil
	}
	rv.log.Info("a job ended while no daemon ran", "job", rec.ID, "shim", err)
	if rec.State == joblet.Initializing { // no daemon observed its start
		rv.table.become(j, joblet.Running, nil)
	}
	fault.Point("recover.over")
	return recoveredOver, nil
}

// adopt is native.Adopt for a job that may run on this host for this state directory.
func (rv *recovery) adopt(box string, by time.Time) (*native.Process, error) {
	if rv.where.Elsewhere != "" {
		return nil, errors.New(rv.where.Elsewhere)
	}
	return rv.engine.Adopt(box, by)
}
