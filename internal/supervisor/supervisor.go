// Package supervisor owns the jobs: it accepts, starts, watches, stops,
// recovers and deletes them. It is the only composer: the store, the engine,
// the runtimes and the logs meet here and nowhere else.
//
// Truth is in two places, each with one writer. The database says what was
// asked; this package writes it. A job's directory says what happened (log and
// exit record); the job's monitor writes it. What is in memory here can be lost
// at any instant: recover makes it again from those two.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/engine"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/logstore/follow"
	"github.com/joblet/joblet/internal/runtimes"
	"github.com/joblet/joblet/internal/store"
)

// Config says where the supervisor keeps things.
type Config struct {
	StateDir string       // records, job directories, runtimes
	RunDir   string       // what a reboot may forget
	Log      *slog.Logger // nil: nothing is logged
}

// spareBoxes is how many boxes are kept ready. One serves runs that follow each
// other; two bridge the time it takes to build the next.
const spareBoxes = 2

// Supervisor owns all jobs of one daemon.
type Supervisor struct {
	cfg      Config
	store    *store.Store
	engine   *engine.Engine
	runtimes *runtimes.Store
	watcher  *follow.Watcher

	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	watchers sync.WaitGroup // one goroutine per running job

	mu      sync.Mutex // protects what follows
	closing bool
	live    map[string]*live
	using   map[string]int // runtime → jobs that have it, or are about to
}

// live is a job that has not ended, or whose end is not in the database yet.
type live struct {
	job     joblet.Job // Supervisor.mu protects it
	proc    *engine.Process
	started chan struct{} // closed when proc is set, or the start has failed
	ended   chan struct{} // closed when job is final
	settled chan struct{} // closed when the database says so too
}

func newLive(job joblet.Job) *live {
	return &live{job: job, started: make(chan struct{}), ended: make(chan struct{}), settled: make(chan struct{})}
}

// Open recovers what a former daemon left and returns a Supervisor ready to
// take jobs.
func Open(ctx context.Context, cfg Config) (_ *Supervisor, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Supervisor{cfg: cfg, live: map[string]*live{}, using: map[string]int{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := os.MkdirAll(s.jobsDir(), 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	if s.store, err = store.Open(ctx, filepath.Join(cfg.StateDir, "joblet.db")); err != nil {
		return nil, err
	}
	if s.runtimes, err = runtimes.Open(filepath.Join(cfg.StateDir, "runtimes")); err != nil {
		return nil, err
	}
	if s.watcher, err = follow.NewWatcher(); err != nil {
		return nil, err
	}
	if s.engine, err = engine.Open(engine.Config{RunDir: cfg.RunDir, Spares: spareBoxes, Log: cfg.Log}); err != nil {
		return nil, err
	}
	if err := s.recover(ctx); err != nil {
		return nil, err
	}
	s.engine.StartSpares()
	return s, nil
}

// Close stops taking jobs and leaves the running ones running.
func (s *Supervisor) Close() error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.cancel()
	s.watchers.Wait()
	var errs []error
	if s.engine != nil {
		errs = append(errs, s.engine.Close())
	}
	if s.watcher != nil {
		errs = append(errs, s.watcher.Close())
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	return errors.Join(errs...)
}

func (s *Supervisor) jobsDir() string         { return filepath.Join(s.cfg.StateDir, "jobs") }
func (s *Supervisor) jobDir(id string) string { return filepath.Join(s.jobsDir(), id) }

// Runtimes returns the installed runtimes.
func (s *Supervisor) Runtimes() *runtimes.Store { return s.runtimes }

// RuntimeInUse reports whether a job that has not ended uses the runtime. It is
// what the runtimes' store asks before it takes a tree away.
func (s *Supervisor) RuntimeInUse(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.using[name] > 0
}

// use counts a job in (1) or out (-1) of its runtime. A job counts from before
// its runtime is looked up, so that the tree can't go in between.
func (s *Supervisor) use(name string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.using[name] += n; s.using[name] == 0 {
		delete(s.using, name)
	}
}

// Active returns how many jobs have not ended.
func (s *Supervisor) Active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}

// Run starts a job and returns once its command runs. An error means that
// nothing of the job is left; its kind says whether the command could not be
// found or executed.
func (s *Supervisor) Run(ctx context.Context, spec joblet.Spec, owner string) (_ joblet.Job, err error) {
	if err := spec.Validate(); err != nil {
		return joblet.Job{}, err
	}
	if spec.WorkDir == "" {
		spec.WorkDir = joblet.DefaultWorkDir
	}
	s.use(spec.Runtime, 1)
	defer func() {
		if err != nil {
			s.use(spec.Runtime, -1)
		}
	}()
	run, err := s.resolve(spec)
	if err != nil {
		return joblet.Job{}, err
	}
	box, err := s.engine.Take()
	if err != nil {
		return joblet.Job{}, err
	}
	l := newLive(joblet.Job{
		ID: box.ID, Spec: spec, Owner: owner, State: joblet.Initializing, Created: time.Now(), IDBase: box.IDBase,
	})
	if err := s.admit(l); err != nil {
		return joblet.Job{}, errors.Join(err, box.Discard())
	}
	return s.start(context.WithoutCancel(ctx), l, box, run)
}

// refillDelay is how long a job has the processors to itself before the next box
// is built; a job that ends sooner is out of the way by then.
const refillDelay = 20 * time.Millisecond

func (s *Supervisor) admit(l *live) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return joblet.Errorf(joblet.Unavailable, "the daemon is stopping")
	}
	s.live[l.job.ID] = l
	s.watchers.Add(1) // watch, or the failure of start, gives it back
	return nil
}

// start makes the job's record durable while its box gets its command: the two
// need nothing of each other, and a job is accepted when both are done. A crash
// between them leaves a job that nobody was promised, which recover removes.
func (s *Supervisor) start(ctx context.Context, l *live, box *engine.Box, run *engine.Run) (_ joblet.Job, err error) {
	id := l.job.ID
	inserted := make(chan error, 1)
	record := l.job
	go func() { inserted <- s.store.Insert(ctx, record) }()

	run.Dir = s.jobDir(id)
	run.Files = append(run.Files, engine.IdentityFiles(joblet.ShortID(id))...)
	run.Env = append(run.Env, "JOBLET_JOB_ID="+id)
	var proc *engine.Process
	if err = os.Mkdir(run.Dir, 0o700); err == nil {
		proc, err = box.Start(run)
	}
	insertErr := <-inserted
	if err != nil || insertErr != nil {
		undo := []error{box.Discard(), os.RemoveAll(run.Dir)}
		if insertErr == nil {
			undo = append(undo, s.store.Delete(ctx, id))
		}
		if err = startError(l.job.Spec, err); err == nil {
			err = insertErr
		}
		s.mu.Lock()
		delete(s.live, id)
		s.mu.Unlock()
		close(l.started)
		close(l.ended)
		close(l.settled)
		s.watchers.Done()
		s.engine.Refill()
		return joblet.Job{}, joinKind(err, undo...)
	}
	job := s.running(l, proc)
	go s.watch(l)
	return job, nil
}

// joinKind adds what went wrong while a failed start was undone, and keeps the
// kind of the failure itself.
func joinKind(err error, more ...error) error {
	if undo := errors.Join(more...); undo != nil {
		return joblet.Errorf(joblet.KindOf(err), "%w (and what was made could not be removed: %w)", err, undo)
	}
	return err
}

// running notes that the job's command runs.
func (s *Supervisor) running(l *live, proc *engine.Process) joblet.Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.proc = proc
	l.job.State = joblet.Running
	l.job.PID = proc.PID
	l.job.Started = proc.Started
	close(l.started)
	return l.job
}

// startError gives a failed start its kind and words for the user; nil stays nil.
func startError(spec joblet.Spec, err error) error {
	se, ok := errors.AsType[*engine.StartError](err)
	if !ok {
		return err
	}
	errno := se.Failure.Errno
	switch {
	case se.Failure.IsExec:
		switch errno {
		case syscall.ENOENT, syscall.ENOTDIR:
			where := "runtime " + spec.Runtime
			if spec.Runtime == "" {
				where = "the host's programs (no --runtime was given)"
			}
			return joblet.Errorf(joblet.CommandNotFound, "%s: command not found in %s", spec.Command, where)
		case syscall.ELIBACC:
			return joblet.Errorf(joblet.NotExecutable, "%s: exists, but its interpreter or loader does not", spec.Command)
		case syscall.EACCES:
			return joblet.Errorf(joblet.NotExecutable, "%s: permission denied: it is a directory or not marked executable", spec.Command)
		case syscall.ENOEXEC:
			return joblet.Errorf(joblet.NotExecutable, "%s: not a program for this machine, nor a script that begins with #!", spec.Command)
		case syscall.E2BIG:
			return joblet.Errorf(joblet.InvalidArgument, "%s: arguments and environment are too large: pass large data in a file", spec.Command)
		}
		return joblet.Errorf(joblet.NotExecutable, "%s: %w", spec.Command, errno)
	case se.Failure.Step == engine.StepWorkDir:
		return joblet.Errorf(joblet.InvalidArgument, "workdir %s: %w in the job", spec.WorkDir, errno)
	case errno == syscall.ENOSPC || errno == syscall.EDQUOT:
		return joblet.Errorf(joblet.ResourceExhausted, "start the job: %w", err)
	}
	return fmt.Errorf("start the job: %w", err)
}

// watch waits for the end of a job and settles it.
func (s *Supervisor) watch(l *live) {
	defer s.watchers.Done()
	s.mu.Lock()
	record := l.job
	s.mu.Unlock()
	// Not durable: after a crash the job's monitor says that it runs.
	if err := s.store.UpdateUnsynced(s.ctx, record); err != nil && s.ctx.Err() == nil {
		s.cfg.Log.Warn("record that a job runs", "job", record.ID, "error", err)
	}
	refill := time.AfterFunc(refillDelay, s.engine.Refill)
	select {
	case <-s.ctx.Done():
		return // the job goes on; the next daemon adopts it
	case <-l.proc.Done():
	}
	s.settle(l)
	if refill.Stop() {
		s.engine.Refill()
	}
}

// settle brings an ended job to rest: its final state in memory, where who
// waits for it sees it at once (the exit record is on disk already), then what
// it had on the host released, then its record in the database.
func (s *Supervisor) settle(l *live) {
	ctx := context.WithoutCancel(s.ctx)
	s.mu.Lock()
	job := l.job
	s.mu.Unlock()

	record, err := readRecord(s.jobDir(job.ID))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.cfg.Log.Warn("read an exit record", "job", job.ID, "error", err)
	}
	conclude(&job, record, s.jobDir(job.ID))
	s.mu.Lock()
	l.job = job
	s.mu.Unlock()
	close(l.ended)

	if err := s.engine.Release(job.ID, job.IDBase); err != nil {
		s.cfg.Log.Error("release an ended job", "job", job.ID, "error", err)
	}
	s.use(job.Spec.Runtime, -1)
	for {
		err := s.store.Update(ctx, job)
		if err == nil || joblet.KindOf(err) == joblet.NotFound {
			break
		}
		// A full disk, say. The exit record is safe, and the job stays in
		// memory until its end is in the database too.
		s.cfg.Log.Error("record the end of a job; it is tried again", "job", job.ID, "error", err)
		select {
		case <-s.ctx.Done():
			return // recover does it
		case <-time.After(time.Second):
		}
	}
	s.mu.Lock()
	delete(s.live, job.ID)
	s.mu.Unlock()
	close(l.settled)
}

// find returns the live job with this id, or nil.
func (s *Supervisor) find(id string) *live {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[id]
}

// current returns the job as it is now: the database does not know of the
// latest changes of live ones.
func (s *Supervisor) current(job joblet.Job) joblet.Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.live[job.ID]; l != nil {
		job = l.job
	}
	job.Spec = job.Spec.Redacted()
	return job
}

// Job returns the job that ref names: an id, an unambiguous prefix of one, or a
// name.
func (s *Supervisor) Job(ctx context.Context, ref string) (joblet.Job, error) {
	if l := s.find(ref); l != nil {
		return s.current(joblet.Job{ID: ref}), nil
	}
	job, err := s.store.Resolve(ctx, ref)
	if err != nil {
		return joblet.Job{}, err
	}
	return s.current(job), nil
}

// Jobs lists jobs, newest first. A filter by state goes by the database, which
// may be a moment behind: a job that has moved on since is left out, and the
// next one takes its place.
func (s *Supervisor) Jobs(ctx context.Context, f joblet.Filter) ([]joblet.Job, error) {
	var all []joblet.Job
	for limit := f.Limit; ; {
		jobs, err := s.store.List(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, job := range jobs {
			if job = s.current(job); len(f.States) == 0 || slices.Contains(f.States, job.State) {
				all = append(all, job)
			}
		}
		if limit == 0 || len(jobs) < f.Limit || len(all) == limit {
			return all, nil
		}
		f.Before, f.Limit = jobs[len(jobs)-1].ID, limit-len(all)
	}
}

// process returns the running job that ref names, once it runs.
func (s *Supervisor) process(ctx context.Context, ref string) (*live, joblet.Job, error) {
	job, err := s.Job(ctx, ref)
	if err != nil {
		return nil, joblet.Job{}, err
	}
	l := s.find(job.ID)
	if l != nil {
		select {
		case <-l.started:
		case <-ctx.Done():
			return nil, joblet.Job{}, ctx.Err()
		}
		job = s.current(job)
	}
	if l == nil || l.proc == nil || job.State.Final() {
		return nil, joblet.Job{}, joblet.Errorf(joblet.FailedPrecondition, "job %s has ended: %s", joblet.ShortID(job.ID), job.State)
	}
	return l, job, nil
}

// Stop ends a job and returns it once it has ended. A job that ends by itself
// after it was asked to is STOPPED whatever its status.
func (s *Supervisor) Stop(ctx context.Context, ref string, opt joblet.StopOptions) (joblet.Job, error) {
	if opt.Signal == 0 {
		opt.Signal = int(syscall.SIGTERM)
	}
	if opt.Grace < 0 {
		opt.Grace = joblet.DefaultGrace
	}
	if err := validSignal(opt.Signal); err != nil {
		return joblet.Job{}, err
	}
	l, job, err := s.process(ctx, ref)
	if err != nil {
		return joblet.Job{}, err
	}
	if err := l.proc.Stop(syscall.Signal(opt.Signal), opt.Grace); err != nil {
		return joblet.Job{}, err
	}
	s.mu.Lock()
	if l.job.State.MayBecome(joblet.Stopping) {
		l.job.State = joblet.Stopping
	}
	s.mu.Unlock()
	return s.await(ctx, l, job)
}

// Signal sends a signal to the job's PID 1.
func (s *Supervisor) Signal(ctx context.Context, ref string, sig syscall.Signal) error {
	if err := validSignal(int(sig)); err != nil {
		return err
	}
	l, _, err := s.process(ctx, ref)
	if err != nil {
		return err
	}
	return l.proc.Signal(sig)
}

func validSignal(sig int) error {
	if sig < 1 || sig > 64 {
		return joblet.Errorf(joblet.InvalidArgument, "signal %d: must be between 1 and 64", sig)
	}
	return nil
}

// Wait returns the job once it has ended.
func (s *Supervisor) Wait(ctx context.Context, ref string) (joblet.Job, error) {
	job, err := s.Job(ctx, ref)
	if err != nil || job.State.Final() {
		return job, err
	}
	return s.await(ctx, s.find(job.ID), job)
}

// await waits for the end of a live job.
func (s *Supervisor) await(ctx context.Context, l *live, job joblet.Job) (joblet.Job, error) {
	if l == nil { // it ended a moment ago
		return s.Job(ctx, job.ID)
	}
	select {
	case <-l.ended:
		s.mu.Lock()
		defer s.mu.Unlock()
		job = l.job
		job.Spec = job.Spec.Redacted()
		return job, nil
	case <-ctx.Done():
		return joblet.Job{}, ctx.Err()
	case <-s.ctx.Done():
		return joblet.Job{}, joblet.Errorf(joblet.Unavailable, "the daemon is stopping; job %s goes on", joblet.ShortID(job.ID))
	}
}

// Delete removes an ended job: record, log and directory.
func (s *Supervisor) Delete(ctx context.Context, ref string) error {
	job, err := s.Job(ctx, ref)
	if err != nil {
		return err
	}
	if !job.State.Final() {
		return joblet.Errorf(joblet.FailedPrecondition, "job %s is %s: stop it first (rnx job stop %[1]s)", joblet.ShortID(job.ID), job.State)
	}
	// The end must be in the database before the record may go.
	if l := s.find(job.ID); l != nil {
		select {
		case <-l.settled:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return joblet.Errorf(joblet.Unavailable, "the daemon is stopping")
		}
	}
	if err := s.store.Delete(ctx, job.ID); err != nil {
		return err
	}
	if err := os.RemoveAll(s.jobDir(job.ID)); err != nil {
		return fmt.Errorf("remove the directory of job %s: %w", joblet.ShortID(job.ID), err)
	}
	return nil
}

// Follow hands the job's output to emit, in order, and returns the job as it
// is at the end: ended, when opt.Follow is set. The chunk is valid during the
// call only.
func (s *Supervisor) Follow(ctx context.Context, ref string, opt joblet.LogOptions, emit func(logstore.Chunk) error) (joblet.Job, error) {
	job, err := s.Job(ctx, ref)
	if err != nil {
		return joblet.Job{}, err
	}
	l := s.find(job.ID)
	gone := closed
	if l != nil {
		gone = l.ended
		select {
		case <-l.started:
		case <-ctx.Done():
			return joblet.Job{}, ctx.Err()
		}
	}
	r, err := logstore.Open(s.jobDir(job.ID))
	if err != nil {
		if l != nil && errors.Is(err, fs.ErrNotExist) {
			return joblet.Job{}, joblet.Errorf(joblet.NotFound, "job %s could not be started", joblet.ShortID(job.ID))
		}
		return joblet.Job{}, fmt.Errorf("open the log of job %s: %w", joblet.ShortID(job.ID), err)
	}
	defer r.Close()
	if opt.Stdout != opt.Stderr {
		r.Only(map[bool]logstore.Stream{true: logstore.Stdout, false: logstore.Stderr}[opt.Stdout])
	}
	if opt.Tail > 0 {
		err = r.Tail(ctx, opt.Tail)
	} else if opt.Offset > 0 {
		err = r.From(opt.Offset)
	}
	if err != nil {
		return joblet.Job{}, err
	}
	if opt.Follow {
		if err := s.watcher.Follow(ctx, r, gone, emit); err != nil {
			return joblet.Job{}, err
		}
		return s.await(ctx, l, job)
	}
	for {
		chunk, err := r.Next()
		if errors.Is(err, io.EOF) {
			return s.current(job), nil
		}
		if err != nil {
			return joblet.Job{}, err
		}
		if err := emit(chunk); err != nil {
			return joblet.Job{}, err
		}
	}
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()
