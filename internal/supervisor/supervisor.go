// Package supervisor owns the jobs: it accepts, queues, starts, watches, stops,
// retries, recovers and deletes them. It is the only composer: the store, the
// engine, the runtimes and the logs meet here and nowhere else.
//
// Truth is in two places, each with one writer. The database says what was
// asked; this package writes it. A job's directory says what happened (log and
// exit records); the job's shim writes it. What is in memory here can be lost
// at any instant: recover makes it again from those two.
//
// A table has the jobs that have not ended. Such a job waits (PENDING, SCHEDULED) or
// runs; a run ends in settle, which either brings the job to its end or, to be
// tried again, back to waiting. Jobs that can run at once do so in the call that
// submits them (submit.go); all others pass through the queue (dispatch.go).
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/events"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/logstore/follow"
	"github.com/joblet/joblet/internal/metrics"
	"github.com/joblet/joblet/internal/queue"
	"github.com/joblet/joblet/internal/runtimes"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/statedir"
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
	Defaults      joblet.Limits // see plan.Settings
	Ceiling       joblet.Limits
	MaxOwnerBytes int64 // what the directories of one owner's jobs may take on disk; 0: any size
	Mirrors       []string
	BuildTimeout  time.Duration
	LogShrinks    bool // on a full disk a job's log gives up its older half, instead of the job waiting
}

func (c Config) settings() plan.Settings {
	return plan.Settings{Defaults: c.Defaults, Ceiling: c.Ceiling, Mirrors: c.Mirrors, BuildTimeout: c.BuildTimeout}
}

// warmSandboxes is the size of the warm pool. One sandbox serves runs that follow each
// other; two bridge the time it takes to build the next.
const warmSandboxes = 2

// Supervisor owns all jobs of one daemon. Its parts are layers: each uses those before
// it, and none of those after it.
type Supervisor struct {
	cfg       Config
	where     statedir.Whereabouts
	records   *records.Records
	engine    *native.Engine
	runtimes  *runtimes.Store
	watcher   *follow.Watcher
	planner   plan.Planner
	sampler   *sampling.Sampler
	lister    *proclist.Lister
	retention retention.Retention
	quota     *staging.Quota
	uploads   staging.Area
	keys      keylock.Lock // by owner and idempotency key, and by what is done to one job at a time

	table      *table      // the jobs that have not ended
	*lookup                // finds jobs, ended or not
	waitlist   *waitlist   // jobs that wait, and ends without a run
	executor   *executor   // runs, from their start to their end
	submitter  *submitter  // accepts jobs
	dispatcher *dispatcher // starts what waits

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
}

// Open recovers the jobs of a former daemon and returns a Supervisor that is ready to
// accept jobs.
func Open(ctx context.Context, cfg Config) (_ *Supervisor, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Supervisor{cfg: cfg, lister: proclist.New()}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.table = newTable(s.ctx, cfg)
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
	s.table.records = s.records
	s.table.work.Go(func() { s.records.Check(s.ctx) })
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
	s.planner.Configure(cfg.settings())
	s.sampler = sampling.New(sampling.Config{StateDir: cfg.StateDir, JobsDir: s.records.JobsDir(), Log: cfg.Log, Metrics: cfg.Metrics, Jobs: s.table.countJobs})
	if err := s.planner.CountIO(); err != nil {
		return nil, err
	}
	s.assemble()
	recovery := &recovery{
		ctx: s.ctx, log: cfg.Log, runDir: cfg.RunDir, where: s.where, records: s.records, engine: s.engine, quota: s.quota,
		table: s.table, waitlist: s.waitlist, executor: s.executor,
	}
	if err := recovery.recover(ctx); err != nil {
		return nil, err
	}
	if err := s.quota.RestoreShares(ctx, s.records.JobsDir(), s.records.Store); err != nil {
		return nil, err
	}
	fault.Point("recover.done")
	s.where.Now.RunDirs = append([]string{cfg.RunDir}, s.engine.UsedRunDirs()...)
	if err := s.where.Record(); err != nil {
		return nil, err
	}
	if cfg.Metrics != nil { // adopted jobs are in the first scrape
		s.sampler.Sample(true)
	}
	s.engine.StartPool()
	s.table.work.Go(s.dispatcher.runQueue)
	s.table.work.Go(func() { s.retention.Run(s.ctx) })
	s.table.work.Go(func() { s.sampler.Sampling(s.ctx) })
	return s, nil
}

// assemble makes the layers above the table.
func (s *Supervisor) assemble() {
	s.lookup = &lookup{table: s.table, records: s.records}
	s.waitlist = &waitlist{ctx: s.ctx, log: s.cfg.Log, records: s.records, quota: s.quota, planner: &s.planner, table: s.table}
	s.executor = &executor{
		ctx: s.ctx, log: s.cfg.Log, where: s.where, records: s.records, engine: s.engine, planner: &s.planner,
		sampler: s.sampler, guard: guard.Guard{Engine: s.engine, JobsDir: s.records.JobsDir(), Log: s.cfg.Log},
		quota: s.quota, table: s.table, waitlist: s.waitlist,
	}
	s.submitter = &submitter{
		records: s.records, engine: s.engine, runtimes: s.runtimes, planner: &s.planner, quota: s.quota, keys: &s.keys,
		table: s.table, lookup: s.lookup, waitlist: s.waitlist, executor: s.executor,
	}
	s.dispatcher = &dispatcher{
		ctx: s.ctx, log: s.cfg.Log, records: s.records, uploads: &s.uploads,
		table: s.table, waitlist: s.waitlist, executor: s.executor, submitter: s.submitter,
	}
	s.retention = retention.Retention{
		Age: s.cfg.RetainAge, Bytes: s.cfg.RetainBytes, Records: s.records, Log: s.cfg.Log,
		Saved: s.quota.Saved, Each: s.EachJob, Delete: s.Delete,
	}
}

// Close stops taking jobs and leaves the running ones running.
func (s *Supervisor) Close() error {
	s.table.mu.Lock()
	s.table.closing = true
	s.table.mu.Unlock()
	s.cancel()
	s.table.work.Wait()
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

// BuildRuntime builds a runtime as this daemon is configured to.
func (s *Supervisor) BuildRuntime(ctx context.Context, recipe runtimes.Recipe, opt runtimes.BuildOptions) (runtimes.Runtime, error) {
	return s.planner.BuildRuntime(ctx, recipe, opt)
}

// RuntimeInUse reports whether a job that has not ended uses the runtime.
func (s *Supervisor) RuntimeInUse(name string) bool { return s.planner.RuntimeInUse(name) }

// Active returns how many jobs have not ended.
func (s *Supervisor) Active() int {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	return len(s.table.jobs)
}

// ActiveOf returns how many jobs of an owner have not ended; without one, of all.
func (s *Supervisor) ActiveOf(owner string) (n int) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	return s.table.activeOf(owner)
}

// Configure changes those settings that can be changed while jobs run:
// MaxConcurrent, MaxPerOwner, Defaults, Ceiling, Mirrors and BuildTimeout. Present jobs
// keep what they were granted.
func (s *Supervisor) Configure(cfg Config) {
	s.table.mu.Lock()
	s.table.maxPerOwner = cfg.MaxPerOwner
	s.table.queue.SetLimits(queue.Amounts{queue.Slots: int64(max(0, cfg.MaxConcurrent))})
	s.table.mu.Unlock()
	s.planner.Configure(cfg.settings())
	s.table.events.Publish(events.Event{Kind: events.Freed})
}
