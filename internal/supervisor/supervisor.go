// Package supervisor owns the jobs: it accepts, queues, starts, watches, stops,
// retries, recovers and deletes them. It is the only composer: the store, the
// engine, the runtimes and the logs meet here and nowhere else.
//
// Truth is in two places, each with one writer. The database says what was
// asked; this package writes it. A job's directory says what happened (log and
// exit records); the job's shim writes it. What is in memory here can be lost
// at any instant: recover makes it again from those two.
//
// Every job that has not ended is a live one. It waits (PENDING, SCHEDULED) or
// runs; a run ends in settle, which either brings the job to its end or, to be
// tried again, back to waiting. Jobs that can run at once do so in the call that
// submits them (run.go); all others pass through the queue (queue.go).
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/events"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/logstore/follow"
	"github.com/joblet/joblet/internal/metrics"
	"github.com/joblet/joblet/internal/queue"
	"github.com/joblet/joblet/internal/runtimes"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/statedir"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/guard"
	"github.com/joblet/joblet/internal/supervisor/keylock"
	"github.com/joblet/joblet/internal/supervisor/plan"
	"github.com/joblet/joblet/internal/supervisor/proclist"
	"github.com/joblet/joblet/internal/supervisor/records"
	"github.com/joblet/joblet/internal/supervisor/retention"
	"github.com/joblet/joblet/internal/supervisor/sampling"
	"github.com/joblet/joblet/internal/supervisor/staging"
)

// Config says where the supervisor keeps things and what it grants.
type Config struct {
	StateDir string           // records, job directories, runtimes
	RunDir   string           // what a reboot may forget
	Log      *slog.Logger     // nil: nothing is logged
	Metrics  *metrics.Metrics // nil: nothing is counted

	MaxConcurrent int           // jobs that run at once; 0: any number
	MaxPerOwner   int           // jobs of one owner that have not ended, but for the runs of repeating ones; 0: any number
	RetainAge     time.Duration // how long ended jobs are kept; 0: for ever
	RetainBytes   int64         // what ended jobs may take on disk before the oldest go; 0: any size
	Defaults      joblet.Limits // of jobs that do not say otherwise
	Ceiling       joblet.Limits // what a job may ask for at most
	MaxOwnerBytes int64         // what the directories of one owner's jobs may take on disk; 0: any size
	Mirrors       []string      // where runtimes may be built from (runtimes.ValidMirror)
	BuildTimeout  time.Duration // how long the build of a runtime may take
	LogShrinks    bool          // on a full disk a job's log gives up its older half, instead of the job waiting
}

// warmSandboxes is how many boxes are kept ready. One serves runs that follow each
// other; two bridge the time it takes to build the next.
const warmSandboxes = 2

// Supervisor owns all jobs of one daemon.
type Supervisor struct {
	cfg       Config
	records   *records.Records
	engine    *native.Engine
	runtimes  *runtimes.Store
	watcher   *follow.Watcher
	planner   plan.Planner
	sampler   *sampling.Sampler
	lister    *proclist.Lister
	guard     guard.Guard
	retention retention.Retention
	quota     *staging.Quota
	uploads   staging.Area
	where     statedir.Whereabouts

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // the goroutines: one per running job, and the queue's
	events *events.Feed   // what happens to jobs; published to with or without mu
	keys   keylock.Lock   // by owner and idempotency key, and by what is done to one job at a time

	mu      sync.Mutex // protects what follows
	closing bool
	live    map[string]*live
	held    map[string]int // owner → bytes of the specs of his live jobs
	maxHeld int            // of one owner
	using   map[string]int // runtime → jobs that have it, or are about to
	queue   *queue.Queue[*live]

	onChange func(id string, from, to joblet.State) // for tests; called under mu
}

// live is a job that has not ended, or whose end is not in the database yet.
// Supervisor.mu protects it.
type live struct {
	saving sync.Mutex // held while the record is written; not under Supervisor.mu

	rec      store.Record // its spec has the secrets
	item     queue.Item[*live]
	size     int // of the spec
	proc     *native.Process
	sampled  *sampling.Run // of proc
	over     chan struct{} // closed when the latest run's output is complete
	seq      uint64        // number of the latest event that a user may have noticed
	starting bool          // it has a place and is about to run
	silent   bool          // it runs under a shim of a former daemon's that does not answer
	stop     *stopRequest  // of the latest run; nil: nobody has asked
	hurry    chan struct{} // stop is new
	asking   bool          // a goroutine waits to have it end
	stuck    error         // why its end cannot be recorded; nil: it can, or was not tried
	onDisk   bool          // its exit record, or the database, says how it ended
	settled  bool          // the database has its end
	gone     bool          // it could not be started, and there is no such job
	apart    string        // why its latest box was not looked for; empty: it was, or is this daemon's
	met      []string      // jobs that it depends on and that had completed before it waited

	// For the metrics: when it began to wait for a place, zero if it did not, and
	// when its start began, zero if another daemon did that.
	readied, begun time.Time
}

func newLive(rec store.Record) *live {
	l := &live{rec: rec, size: specSize(rec.Spec), over: make(chan struct{}), hurry: make(chan struct{}, 1)}
	l.item = queue.Item[*live]{
		Job: l, ID: rec.ID, Created: rec.Created, Priority: rec.Spec.Priority,
		Needs: queue.Amounts{queue.Slots: 1, queue.Memory: rec.Spec.Limits.MemoryBytes},
	}
	return l
}

// Open recovers what a former daemon left and returns a Supervisor ready to
// take jobs.
func Open(ctx context.Context, cfg Config) (_ *Supervisor, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Supervisor{
		cfg: cfg, live: map[string]*live{}, held: map[string]int{}, maxHeld: maxHeld, using: map[string]int{},
		queue: queue.New[*live](), lister: proclist.New(),
	}
	s.events = events.New(s.tap)
	s.queue.SetLimits(queue.Amounts{queue.Slots: int64(max(0, cfg.MaxConcurrent))})
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the state directory: %w", err)
	}
	if s.where, err = statedir.Locate(cfg.StateDir, cfg.RunDir, cfg.Log); err != nil {
		return nil, err
	}
	if s.records, err = records.Open(ctx, cfg.StateDir, cfg.Log); err != nil {
		return nil, err
	}
	s.work.Go(func() { s.records.Check(s.ctx) })
	if s.quota, err = staging.OpenQuota(ctx, cfg.MaxOwnerBytes, cfg.RetainBytes > 0, s.records.Store); err != nil {
		return nil, err
	}
	s.uploads = staging.Area{Dir: s.records.JobsDir(), Quota: s.quota, MaxStdin: staging.MaxStdin}
	if s.runtimes, err = runtimes.Open(filepath.Join(cfg.StateDir, "runtimes")); err != nil {
		return nil, err
	}
	if s.watcher, err = follow.NewWatcher(); err != nil {
		return nil, err
	}
	if s.engine, err = native.Open(native.Config{
		RunDir: cfg.RunDir, Warm: warmSandboxes, Log: cfg.Log,
		Tag: s.where.Now.Tag, FormerRunDirs: s.where.Now.RunDirs[1:],
	}); err != nil {
		return nil, err
	}
	s.planner.Engine, s.planner.Runtimes, s.planner.JobsDir, s.planner.LogShrinks = s.engine, s.runtimes, s.records.JobsDir(), cfg.LogShrinks
	s.planner.SetLimits(cfg.Defaults, cfg.Ceiling)
	s.retention = retention.Retention{
		Age: cfg.RetainAge, Bytes: cfg.RetainBytes, Records: s.records, Log: cfg.Log,
		Saved: s.quota.Saved, Each: s.EachJob, Delete: s.Delete,
	}
	s.guard = guard.Guard{Engine: s.engine, JobsDir: s.records.JobsDir(), Log: cfg.Log}
	s.sampler = sampling.New(sampling.Config{StateDir: cfg.StateDir, JobsDir: s.records.JobsDir(), Log: cfg.Log, Metrics: cfg.Metrics, Jobs: s.countJobs})
	if err := s.planner.CountIO(); err != nil {
		return nil, err
	}
	if err := s.recover(ctx); err != nil {
		return nil, err
	}
	s.countInput()
	if err := s.quota.RestoreShares(ctx, s.records.JobsDir(), s.records.Store); err != nil {
		return nil, err
	}
	fault.Point("recover.done")
	s.where.Now.RunDirs = append([]string{cfg.RunDir}, s.engine.UsedRunDirs()...)
	if err := s.where.Record(); err != nil {
		return nil, err
	}
	if cfg.Metrics != nil { // what is adopted is to be seen from the first scrape on
		s.sampler.Sample(true)
	}
	s.engine.StartPool()
	s.work.Go(s.runQueue)
	s.work.Go(func() { s.retention.Run(s.ctx) })
	s.work.Go(func() { s.sampler.Sampling(s.ctx) })
	return s, nil
}

// countInput has the quota know what came along with jobs that a former daemon
// accepted.
func (s *Supervisor) countInput() {
	if s.quota == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, l := range s.live {
		if !l.rec.State.Final() {
			s.quota.Restore(l.rec.Owner, id, jobdir.InputSize(s.records.Dir(id)))
		}
	}
}

// Close stops taking jobs and leaves the running ones running.
func (s *Supervisor) Close() error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.cancel()
	s.work.Wait()
	var errs []error
	if s.engine != nil {
		errs = append(errs, s.engine.Close())
	}
	if s.watcher != nil {
		errs = append(errs, s.watcher.Close())
	}
	if s.records != nil {
		errs = append(errs, s.records.Close())
	}
	return errors.Join(errs...)
}

// Runtimes returns the installed runtimes.
func (s *Supervisor) Runtimes() *runtimes.Store { return s.runtimes }

// buildMemory is what the build of a runtime may have, page cache included.
const buildMemory = 4 << 30

// BuildRuntime builds a runtime as this daemon is configured to: from the mirrors
// that it allows, with limits on time, memory and processes.
func (s *Supervisor) BuildRuntime(ctx context.Context, recipe runtimes.Recipe, opt runtimes.BuildOptions) (runtimes.Runtime, error) {
	opt.InUse = s.RuntimeInUse
	opt.Contain = func(pid int) (func() error, error) {
		return s.engine.Contain(pid, joblet.Limits{MemoryBytes: buildMemory})
	}
	s.mu.Lock()
	opt.Mirrors, opt.Timeout = s.cfg.Mirrors, s.cfg.BuildTimeout
	s.mu.Unlock()
	return s.runtimes.Build(ctx, recipe, opt)
}

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

// ActiveOf returns how many jobs of an owner have not ended; without one, of all.
func (s *Supervisor) ActiveOf(owner string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.activeOf(owner)
}

func (s *Supervisor) activeOf(owner string) (n int) {
	if owner == "" {
		return len(s.live)
	}
	for _, l := range s.live {
		if l.rec.Owner == owner && !l.rec.State.Final() {
			n++
		}
	}
	return n
}

var errClosing = joblet.Errorf(joblet.Unavailable, "the daemon is stopping")

// admit makes the job a live one.
func (s *Supervisor) admit(l *live) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errClosing
	}
	s.keep(l)
	return nil
}

// keep and drop change what is live. Supervisor.mu is held.
func (s *Supervisor) keep(l *live) {
	s.live[l.rec.ID] = l
	s.held[l.rec.Owner] += l.size
}

func (s *Supervisor) drop(l *live) {
	if s.live[l.rec.ID] != l { // it was never kept
		return
	}
	delete(s.live, l.rec.ID)
	if s.held[l.rec.Owner] -= l.size; s.held[l.rec.Owner] == 0 {
		delete(s.held, l.rec.Owner)
	}
}

// admitNew is admit for a job that is submitted.
func (s *Supervisor) admitNew(l *live) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return errClosing
	case s.hasMany(l):
		return joblet.Errorf(joblet.ResourceExhausted, "%s has %d unended jobs, the maximum for one owner (max-per-owner)", l.rec.Owner, s.cfg.MaxPerOwner)
	case s.holdsMuch(l):
		return joblet.Errorf(joblet.ResourceExhausted, "with this one, the arguments and environments of %s's jobs that have not ended would take more than the %d MiB that one owner has: pass large data in files",
			l.rec.Owner, s.maxHeld>>20)
	}
	s.keep(l)
	return nil
}

// maxHeld bounds the specs of one owner's jobs that have not ended, in bytes: they
// are held in memory.
const maxHeld = 64 << 20

// rootOwner is root on this host, who could do anything else to it as well.
const rootOwner = "uid:0"

// holdsMuch reports whether the job's owner would hold more than he may. Supervisor.mu
// is held.
func (s *Supervisor) holdsMuch(l *live) bool {
	return l.rec.Owner != rootOwner && l.rec.Parent == "" && s.held[l.rec.Owner]+l.size > s.maxHeld
}

// specSize returns about how much memory a spec takes.
func specSize(spec joblet.Spec) int {
	const each = 32 // for a string itself
	n := len(spec.Command)
	for _, list := range [][]string{spec.Args, spec.DependsOn, spec.Uploads} {
		for _, s := range list {
			n += len(s) + each
		}
	}
	for _, m := range []map[string]string{spec.Env, spec.SecretEnv, spec.Labels} {
		for k, v := range m {
			n += len(k) + len(v) + 2*each
		}
	}
	return n
}

// hasMany reports whether the job's owner has as many as he may. Supervisor.mu
// is held.
func (s *Supervisor) hasMany(l *live) bool {
	return s.cfg.MaxPerOwner > 0 && l.rec.Parent == "" && s.activeOf(l.rec.Owner) >= s.cfg.MaxPerOwner
}

// Configure changes those settings that can be changed while jobs run:
// MaxConcurrent, MaxPerOwner, Defaults, Ceiling, Mirrors and BuildTimeout. Jobs that there are keep what
// they got.
func (s *Supervisor) Configure(cfg Config) {
	s.mu.Lock()
	s.cfg.MaxConcurrent, s.cfg.MaxPerOwner = cfg.MaxConcurrent, cfg.MaxPerOwner
	s.cfg.Mirrors, s.cfg.BuildTimeout = cfg.Mirrors, cfg.BuildTimeout
	s.queue.SetLimits(queue.Amounts{queue.Slots: int64(max(0, cfg.MaxConcurrent))})
	s.mu.Unlock()
	s.planner.SetLimits(cfg.Defaults, cfg.Ceiling)
	s.events.Publish(events.Event{Kind: events.Freed})
}

// forget takes back admit: the job was never accepted.
func (s *Supervisor) forget(l *live) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(l)
	l.gone = true
	s.changed(l)
}

// changed publishes that something about the job is new. Supervisor.mu is held.
func (s *Supervisor) changed(l *live) {
	l.seq = s.events.Publish(events.Event{Kind: events.Detail, Job: l.rec.ID})
}

// tap counts an event for the metrics. The feed calls it for each one.
func (s *Supervisor) tap(e events.Event) {
	switch e.Kind {
	case events.State:
		if s.onChange != nil {
			s.onChange(e.Job, e.From, e.To)
		}
	case events.Accepted:
		s.cfg.Metrics.Accepted()
	case events.Started:
		s.cfg.Metrics.Started(e.Queued, e.Starting)
	case events.NotStarted:
		s.cfg.Metrics.NotStarted(e.Failure)
	case events.Settled:
		s.cfg.Metrics.Ended(e.To)
	}
}

// notStarted publishes that the job's command could not be run.
func (s *Supervisor) notStarted(l *live, cause joblet.Kind) {
	s.events.Publish(events.Event{Kind: events.NotStarted, Job: l.item.ID, Failure: cause})
}

// endRun says that the latest run's output is complete. Supervisor.mu is held.
func (l *live) endRun() {
	select {
	case <-l.over:
	default:
		close(l.over)
	}
}

// become gives the job its next state, and change whatever else is new with it.
// All that happens to a job passes through here.
func (s *Supervisor) become(l *live, next joblet.State, change func(*store.Record)) store.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.becomeLocked(l, next, change)
}

func (s *Supervisor) becomeLocked(l *live, next joblet.State, change func(*store.Record)) store.Record {
	from := l.rec.State
	if !from.MayBecome(next) {
		s.cfg.Log.Error("a job changes its state in a way that it should not", "job", l.rec.ID, "from", from, "to", next)
	}
	l.rec.State = next
	if change != nil {
		change(&l.rec)
	}
	l.seq = s.events.Publish(events.Event{Kind: events.State, Job: l.rec.ID, From: from, To: next})
	return l.rec
}

// save writes a live job's record as it is now, durably or not. It is the only
// way by which a record is updated: nobody writes an older one over it.
func (s *Supervisor) save(l *live, durable bool) error {
	l.saving.Lock()
	defer l.saving.Unlock()
	s.mu.Lock()
	rec := l.rec
	s.mu.Unlock()
	ctx := context.WithoutCancel(s.ctx)
	if durable {
		return s.records.Update(ctx, rec)
	}
	return s.records.UpdateUnsynced(ctx, rec)
}

// saveEnd makes durable what a live job is about to become, and makes it so before
// anybody can write the record again.
func (s *Supervisor) saveEnd(l *live, rec store.Record, become func()) error {
	l.saving.Lock()
	defer l.saving.Unlock()
	err := s.records.Update(context.WithoutCancel(s.ctx), rec)
	if records.Written(err) {
		become()
	}
	return err
}

// find returns the live job with this id, or nil.
func (s *Supervisor) find(id string) *live {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[id]
}

// view is a live job at one moment.
type view struct {
	job     joblet.Job // secrets masked
	proc    *native.Process
	over    <-chan struct{}
	seq     uint64 // of the latest event that a user may have noticed
	at      uint64 // of the latest event of all
	ended   bool   // and no crash takes that back
	settled bool
	gone    bool
	// starting: it neither waits nor runs, but is about to.
	starting bool
	silent   bool
	stuck    error
}

func (s *Supervisor) look(l *live) view {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := view{ended: l.rec.State.Final() && (l.onDisk || l.settled), job: l.rec.Job, proc: l.proc, over: l.over, seq: l.seq, at: s.events.Last(), settled: l.settled, gone: l.gone, starting: l.starting, silent: l.silent, stuck: l.stuck}
	v.job.Spec = v.job.Spec.Redacted()
	return v
}

// await waits until done says so of a live job, and returns it as it is then.
func (s *Supervisor) await(ctx context.Context, l *live, done func(view) bool) (view, error) {
	var changes *events.Subscription
	for {
		v := s.look(l)
		if v.gone {
			return v, joblet.Errorf(joblet.NotFound, "job %s could not be started", joblet.ShortID(v.job.ID))
		}
		if done(v) {
			return v, nil
		}
		if changes == nil {
			changes = s.events.Subscribe(v.at, events.Filter{Job: l.item.ID, Kinds: events.Changed})
			defer changes.Close()
		}
		select {
		case <-changes.Ready():
			drain(changes)
		case <-ctx.Done():
			return v, ctx.Err()
		case <-s.ctx.Done():
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

// current returns the job as it is now: the database, where it was read, does
// not know of the latest changes of live ones.
func (s *Supervisor) current(ctx context.Context, job joblet.Job) joblet.Job {
	s.mu.Lock()
	l := s.live[job.ID]
	if l != nil {
		job = l.rec.Job
	}
	s.mu.Unlock()
	if l == nil && !job.State.Final() { // it has come to rest since it was read
		if rec, err := s.records.Get(ctx, job.ID); err == nil {
			job = rec.Job
		}
	}
	job.Spec = job.Spec.Redacted()
	return job
}

// Find returns the job that ref means when owner says it: an id, the start of one,
// or a name, of which the owner's own go first. All else here wants the whole id,
// so that nothing is done with the job of somebody who uses the same name.
func (s *Supervisor) Find(ctx context.Context, ref, owner string) (joblet.Job, error) {
	if l := s.find(ref); l != nil {
		return s.look(l).job, nil
	}
	rec, err := s.records.Resolve(ctx, ref, owner)
	if err != nil {
		return joblet.Job{}, err
	}
	return s.current(ctx, rec.Job), nil
}

// Job returns the job with this id.
func (s *Supervisor) Job(ctx context.Context, id string) (joblet.Job, error) {
	if l := s.find(id); l != nil {
		return s.look(l).job, nil
	}
	rec, err := s.records.Get(ctx, id)
	if err != nil {
		return joblet.Job{}, err
	}
	return s.current(ctx, rec.Job), nil
}

// Measured is Job with what a running one has taken up to now.
func (s *Supervisor) Measured(ctx context.Context, id string) (joblet.Job, error) {
	job, err := s.Job(ctx, id)
	if err != nil {
		return job, err
	}
	if l := s.find(job.ID); l != nil {
		s.mu.Lock()
		run := l.sampled
		s.mu.Unlock()
		if run != nil {
			job.Usage = job.Usage.Max(run.Usage())
		}
	}
	return job, nil
}

// What is read of a list at a time: so many jobs, or their first bytes.
const (
	listBatch = 500
	listBytes = 4 << 20
)

// EachJob calls fn on the jobs that pass the filter, newest first, until it fails.
// It holds only some of them at a time, however large they are. With a filter by
// state, those that have not ended as far as the database knows are looked at as
// well: it may be a moment behind. Parent and Before are ids.
func (s *Supervisor) EachJob(ctx context.Context, f joblet.Filter, ready func() (size int, err error), fn func(joblet.Job) error) error {
	if f.Limit < 0 {
		return joblet.Errorf(joblet.InvalidArgument, "list jobs: limit %d is negative", f.Limit)
	}
	if f.Parent != "" {
		parent, err := s.Job(ctx, f.Parent)
		if err != nil {
			return err
		}
		if parent.Parent != "" { // a run has its parent's name
			f.Parent = parent.Parent
		}
	}
	wanted, left := f.States, f.Limit
	if len(wanted) > 0 {
		f.States = slices.DeleteFunc(joblet.States(), func(st joblet.State) bool { return st.Final() && !slices.Contains(wanted, st) })
	}
	for from := int64(0); ; {
		f.Limit = listBatch
		if left > 0 && len(wanted) == 0 {
			f.Limit = min(left, listBatch)
		}
		size := listBytes
		if ready != nil {
			var err error
			if size, err = ready(); err != nil {
				return err
			}
		}
		jobs, next, err := s.records.ListFrom(ctx, f, from, size)
		if err != nil {
			return err
		}
		for _, job := range jobs {
			if job = s.current(ctx, job); len(wanted) > 0 && !slices.Contains(wanted, job.State) {
				continue
			}
			if err := fn(job); err != nil {
				return err
			}
			if left--; left == 0 {
				return nil
			}
		}
		if next == 0 {
			return nil
		}
		from = next
	}
}

// Wait returns the job once it has ended.
func (s *Supervisor) Wait(ctx context.Context, id string) (joblet.Job, error) {
	job, err := s.Job(ctx, id)
	if err != nil {
		return job, err
	}
	return s.awaitEnd(ctx, job.ID)
}

// awaitEnd waits for the end of the job with this id.
func (s *Supervisor) awaitEnd(ctx context.Context, id string) (joblet.Job, error) {
	l := s.find(id)
	if l == nil { // it ended a moment ago
		return s.Job(ctx, id)
	}
	v, err := s.await(ctx, l, func(v view) bool { return v.ended || v.unrecorded() != nil })
	if err == nil && !v.ended {
		err = v.unrecorded()
	}
	return v.job, err
}

// unrecorded says why the end of a job, which has come, cannot be recorded; nil: it
// can, or has not come.
func (v view) unrecorded() error {
	if v.stuck == nil || !v.starting && !v.job.State.Final() {
		return nil
	}
	return joblet.Errorf(joblet.KindOf(v.stuck), "job %s has ended, which cannot be recorded yet: %w", joblet.ShortID(v.job.ID), v.stuck)
}
