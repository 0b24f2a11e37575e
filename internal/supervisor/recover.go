package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/records"
	"github.com/joblet/joblet/internal/supervisor/sampling"
)

// recover takes over from a former daemon, however that ended: it adopts the
// jobs that run, concludes those that ended meanwhile, lets those wait that
// waited, and removes what belongs to no job.
func (s *Supervisor) recover(ctx context.Context) error {
	unrecorded, err := s.records.Unrecorded(ctx)
	if err != nil {
		return err
	}
	boxes, foreign, err := s.engine.Sandboxes()
	if err != nil {
		return err
	}
	unfinished, running, err := s.unfinished(ctx, unrecorded, boxes)
	if err != nil {
		return err
	}
	if err := s.records.CheckKey(unfinished); err != nil {
		return err
	}
	if foreign > 0 {
		s.cfg.Log.Warn("boxes of another state directory are left alone", "boxes", foreign, "run", s.cfg.RunDir)
	}
	if s.where.Elsewhere != "" && len(unfinished) > 0 {
		s.cfg.Log.Warn("no recorded job is taken for a running one", "because", s.where.Elsewhere)
	}
	held := map[string]sandbox.Leases{} // by box
	var all []*live
	for _, rec := range unfinished {
		if rec.Box == "" && rec.State.Alive() { // recorded by a version whose boxes had the jobs' ids
			rec.Box, rec.Attempt = rec.ID, max(rec.Attempt, 1)
		}
		l := newLive(rec)
		if err := s.records.CatchUp(ctx, &l.rec, running[rec.ID]); err != nil {
			return err
		}
		if rec = l.rec; rec.State.Final() {
			continue
		}
		held[rec.Box] = nil
		if rec.State.Alive() { // its processes may be there, found or not
			held[rec.Box] = outcome.LeasesOf(rec)
		}
		if err := s.records.Unseal(&l.rec); err != nil {
			s.cfg.Log.Error("a job's secrets are lost", "job", rec.ID, "error", err)
			l.rec.Reason = err.Error()
		}
		l.size = specSize(l.rec.Spec)
		s.use(rec.Spec.Runtime, 1)
		if err := s.admit(l); err != nil {
			return err
		}
		all = append(all, l)
	}
	if err := s.engine.Sweep(ctx, held); err != nil { // spares, and jobs that nobody was promised
		s.cfg.Log.Error("release what a former daemon left", "error", err)
	}
	waiting, over, err := s.recoverJobs(all)
	if err != nil {
		return err
	}
	s.settleAll(over)
	for _, l := range waiting {
		switch {
		case l.rec.Spec.Stdin == joblet.StdinStream:
			s.lostInput(l)
		case len(l.rec.Sealed) > 0 && masked(l.rec.Spec.SecretEnv):
			s.cancelWaiting(l, l.rec.Reason)
		default:
			s.enqueue(l)
		}
		fault.Point("recover.waits")
	}
	inDoubt := s.records.InDoubt()
	if err := s.records.Vouch(ctx); err != nil {
		s.cfg.Log.Warn("note that the job records are complete again; the next daemon looks through the jobs' directories, too", "error", err)
	}
	s.work.Go(func() {
		s.records.Sweep(s.ctx, unrecorded, inDoubt, func(id string) bool { return s.find(id) != nil })
	})
	return nil
}

// unfinished returns the records of jobs that have not ended, with those that the
// database had lost, and the boxes of jobs that were found running without one.
func (s *Supervisor) unfinished(ctx context.Context, lost, boxes []string) (found []store.Record, running map[string]string, err error) {
	if found, err = s.records.Unfinished(ctx); err != nil {
		return nil, nil, err
	}
	unknown := slices.DeleteFunc(slices.Clone(boxes), func(box string) bool {
		return slices.ContainsFunc(found, func(r store.Record) bool { return r.Box == box || r.Box == "" && r.ID == box })
	})
	known := records.Found{Boxes: unknown, JobDir: s.engine.JobDir, RunDirs: s.where.Now.RunDirs}
	if running, err = s.records.Reclaim(ctx, lost, known); err != nil {
		return nil, nil, err
	}
	found, err = s.records.Unfinished(ctx)
	return found, running, err
}

const (
	// recoverWorkers is how many jobs are recovered at once: each may have to wait
	// for its shim.
	recoverWorkers = 64
	// recoverTime is how long the recovery waits for shims in all, and then for
	// ends to be recorded: what is not ready by then goes on beside the daemon.
	recoverTime = 3 * time.Second
)

// inParallel calls fn for all items, for some of them at once.
func inParallel[T any](items []T, fn func(T)) {
	next := make(chan T)
	var workers sync.WaitGroup
	for range min(recoverWorkers, len(items)) {
		workers.Go(func() {
			for item := range next {
				fn(item)
			}
		})
	}
	for _, item := range items {
		next <- item
	}
	close(next)
	workers.Wait()
}

// recoverJobs is recoverJob for all, and returns those that wait and those that
// are over.
func (s *Supervisor) recoverJobs(all []*live) (waiting, over []*live, err error) {
	by := time.Now().Add(recoverTime)
	var mu sync.Mutex // protects the results
	inParallel(all, func(l *live) {
		is, jobErr := s.recoverJob(l, by)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case jobErr != nil:
			err = errors.Join(err, jobErr)
		case is == recoveredWaits:
			waiting = append(waiting, l)
		case is == recoveredOver:
			over = append(over, l)
		}
	})
	return waiting, over, err
}

// settleAll settles jobs that are over, and returns when that is done or has taken
// too long, as on a full disk: then it goes on.
func (s *Supervisor) settleAll(over []*live) {
	done := make(chan struct{})
	s.background(func() {
		defer close(done)
		inParallel(over, func(l *live) {
			s.settle(l)
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
	recoveredRuns  recovered = iota // its shim has it
	recoveredWaits                  // it is to run
	recoveredOver                   // it has ended
)

// recoverJob finds out what became of a job while no daemon ran. It waits for its
// shim until by at most.
func (s *Supervisor) recoverJob(l *live, by time.Time) (recovered, error) {
	rec := l.rec
	if !rec.State.Alive() {
		return recoveredWaits, nil
	}
	s.mu.Lock()
	s.queue.Occupy(&l.item)
	l.apart = s.where.Elsewhere
	s.mu.Unlock()
	proc, err := s.adopt(rec.Box, by)
	if err == nil {
		s.adopted(l, proc)
		fault.Point("recover.adopted")
		s.background(func() { s.watch(l) })
		return recoveredRuns, nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.mu.Lock()
		l.silent = true
		if rec.State == joblet.Stopping { // the shim may not have been asked
			l.demand(joblet.StopOptions{Signal: int(syscall.SIGTERM), Grace: joblet.DefaultGrace})
		}
		s.mu.Unlock()
		s.background(func() { s.adoptLater(l) })
		return recoveredRuns, nil
	}
	dir := s.records.Dir(rec.ID)
	if _, readErr := jobdir.ReadExit(dir, rec.Attempt); readErr != nil && !errors.Is(readErr, fs.ErrNotExist) && !errors.Is(readErr, jobdir.ErrDamaged) {
		return 0, fmt.Errorf("recover job %s: %w", rec.ID, readErr)
	}
	if rec.State == joblet.Initializing && !jobdir.Begun(dir, rec.Attempt) {
		s.cfg.Log.Info("a job's start was cut short before it ran", "job", rec.ID)
		if err := s.release(l); err != nil {
			s.cfg.Log.Error("release a box that never ran its job", "job", rec.ID, "error", err)
		}
		s.mu.Lock()
		s.queue.Release(&l.item)
		s.mu.Unlock()
		s.become(l, joblet.Pending, func(r *store.Record) { r.Attempt--; r.Box, r.IDBase, r.Leases = "", 0, nil })
		if err := s.save(l, true); err != nil { // on a full disk, say; it is recorded again before it runs
			s.cfg.Log.Error("record that a job waits", "job", rec.ID, "error", err)
		}
		fault.Point("recover.requeued")
		return recoveredWaits, nil
	}
	s.cfg.Log.Info("job ended while no daemon ran", "job", rec.ID, "shim", err)
	if rec.State == joblet.Initializing { // it was seen to start by nobody
		s.become(l, joblet.Running, nil)
	}
	fault.Point("recover.over")
	return recoveredOver, nil
}

// adopt is native.Adopt for a job that may run here and be ours.
func (s *Supervisor) adopt(box string, by time.Time) (*native.Process, error) {
	if s.where.Elsewhere != "" {
		return nil, errors.New(s.where.Elsewhere)
	}
	return s.engine.Adopt(box, by)
}

// release is native.Release of the job's latest box, unless that is the box of the
// job of which this one is a copy.
func (s *Supervisor) release(l *live) error {
	s.mu.Lock()
	box, leases, apart := l.rec.Box, outcome.LeasesOf(l.rec), l.apart
	l.apart = "" // its next box is ours
	s.mu.Unlock()
	if apart != "" && s.where.Copied {
		return nil
	}
	return s.engine.Release(box, leases)
}

// adopted notes that a former daemon's job runs.
func (s *Supervisor) adopted(l *live, proc *native.Process) {
	s.mu.Lock()
	begins := l.rec.State == joblet.Initializing
	l.silent = false
	s.mu.Unlock()
	s.cfg.Log.Info("job runs on", "job", l.rec.ID, "pid", proc.PID)
	if begins {
		s.running(l, proc)
		return
	}
	s.mu.Lock()
	l.proc = proc
	l.rec.PID, l.rec.Started = proc.PID, proc.Started
	l.sampled = s.sampler.Start(l.rec.Job, proc, sampling.Unknown)
	s.changed(l)
	stopping := l.rec.State == joblet.Stopping
	if stopping && l.stop == nil {
		l.demand(joblet.StopOptions{Signal: int(syscall.SIGTERM), Grace: joblet.DefaultGrace})
	}
	stop := l.stop
	s.mu.Unlock()
	s.pausedAs(l, proc)
	if stopping { // the shim may not have been asked
		if err := proc.Stop(syscall.Signal(stop.opt.Signal), stop.opt.Grace); err != nil {
			s.cfg.Log.Debug("a job ended as it was asked to again", "job", l.rec.ID, "error", err)
		}
	}
}

// masked reports whether a job's secrets are what the database shows of them.
func masked(secrets map[string]string) bool {
	for value := range maps.Values(secrets) {
		if value != joblet.Mask {
			return false
		}
	}
	return true
}
