// Package sampling measures the resource usage of running jobs: it keeps a history of
// each run in the job's directory, counts usage for the metrics of the daemon, and
// answers what a run has used so far.
package sampling

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/history"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/metrics"
	"github.com/joblet/joblet/internal/sandbox/native"
)

// sampleEvery is how often each running job is sampled.
const sampleEvery = time.Second

// logEvery is at which of these samples the size of a job's log is measured for the
// metrics: that costs about as much as the sample.
const logEvery = 10

// Run measures one run of a job, and keeps its history.
type Run struct {
	id, name    string
	started     time.Time
	memoryLimit atomic.Int64 // bytes; 0: none

	mu      sync.Mutex // protects what follows
	meter   *cgroup.Meter
	history *history.Writer
	last    joblet.Sample
	closed  bool

	countedCPU time.Duration // in the metrics, or Unknown
	countedLog int64         // in the metrics, or Unknown
}

// Unknown is how much another daemon has counted of a run.
const Unknown = -1

// sample adds a sample to the history. It returns false when the run is over.
func (r *Run) sample() (joblet.Sample, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return joblet.Sample{}, false, nil
	}
	r.last = r.meter.Sample()
	r.last.MemoryLimit = r.memoryLimit.Load()
	return r.last, true, r.history.Add(r.last)
}

// uncounted returns how much of what the run has used and logged so far is new to the
// metrics, which count it now. Usage before this daemon is not.
func (r *Run) uncounted(cpu time.Duration, logBytes int64) (newCPU time.Duration, newLog int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.countedCPU != Unknown {
		newCPU = max(0, cpu-r.countedCPU) // the end may have been counted just before
	}
	if r.countedLog != Unknown && logBytes != Unknown {
		newLog = max(0, logBytes-r.countedLog)
	}
	r.countedCPU, r.countedLog = max(r.countedCPU, cpu), max(r.countedLog, logBytes)
	return newCPU, newLog
}

// SetMemoryLimit says that the job has another memory limit.
func (r *Run) SetMemoryLimit(bytes int64) { r.memoryLimit.Store(bytes) }

// Usage returns what the run has used so far.
func (r *Run) Usage() joblet.Usage {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.last = r.meter.Total()
	}
	return r.last.Usage
}

// close ends the history of a run that is over, or that another daemon will sample, and
// returns the usage that is known.
func (r *Run) close() (joblet.Usage, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return r.last.Usage, nil
	}
	r.closed = true
	r.meter.Close()
	return r.last.Usage, r.history.Flush()
}

// Config says what a Sampler works with.
type Config struct {
	StateDir string // whose disk space is published
	JobsDir  string
	Log      *slog.Logger
	Metrics  *metrics.Metrics    // nil: nothing is counted
	Jobs     func() metrics.Jobs // counts the jobs by state
}

// Sampler samples the running jobs. Its methods may be called from any goroutine.
type Sampler struct {
	cfg Config

	mu   sync.Mutex // protects what follows
	runs map[*Run]struct{}
}

// New returns a Sampler without runs.
func New(cfg Config) *Sampler { return &Sampler{cfg: cfg, runs: map[*Run]struct{}{}} }

func (s *Sampler) dir(id string) string { return filepath.Join(s.cfg.JobsDir, id) }

// Start begins to sample a run of a job. logBytes is the size of the job's log at the
// start of the run; Unknown for a run that another daemon has started.
func (s *Sampler) Start(job joblet.Job, proc *native.Process, logBytes int64) *Run {
	r := &Run{
		id: job.ID, name: job.Spec.Name, started: job.Started,
		meter: proc.Meter(), history: history.NewWriter(s.dir(job.ID)), countedLog: logBytes,
	}
	r.memoryLimit.Store(job.Spec.Limits.MemoryBytes)
	if logBytes == Unknown {
		r.countedCPU = Unknown
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs[r] = struct{}{}
	return r
}

// End ends the history of a run that is over, and returns the usage that was sampled:
// the kernel may not have kept all of the peaks, and a job that is LOST has no record of
// them. r is nil if the run ended while no daemon ran.
func (s *Sampler) End(id string, r *Run) joblet.Usage {
	if r == nil {
		if all, err := history.Read(s.dir(id)); err == nil && len(all) > 0 {
			return all[len(all)-1].Usage
		}
		return joblet.Usage{}
	}
	s.mu.Lock()
	delete(s.runs, r)
	s.mu.Unlock()
	return s.close(r)
}

func (s *Sampler) close(r *Run) joblet.Usage {
	usage, err := r.close()
	if err != nil {
		s.cfg.Log.Warn("cannot keep the history of a job's resource usage", "job", r.id, "error", err)
	}
	return usage
}

// Count tells the metrics of a run that has ended. r is nil if it ended while no daemon
// ran; again says that the job is tried again.
func (s *Sampler) Count(job joblet.Job, r *Run, again bool) {
	if s.cfg.Metrics == nil {
		return
	}
	if r != nil {
		s.cfg.Metrics.Used(r.uncounted(job.Usage.CPU(), job.LogBytes))
	}
	s.cfg.Metrics.RunEnded(job, again)
}

// Sampling samples all runs each second, until ctx ends. The runs go on then, and
// another daemon goes on sampling them.
func (s *Sampler) Sampling(ctx context.Context) {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			for _, r := range s.all() {
				s.close(r)
			}
			return
		case <-ticker.C:
			s.Sample(n%logEvery == 0)
		}
	}
}

func (s *Sampler) all() []*Run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.runs))
}

// Sample samples each run, and publishes the metrics. With logs it measures the sizes of
// the logs, too.
func (s *Sampler) Sample(logs bool) {
	var jobs metrics.Jobs
	if s.cfg.Metrics != nil {
		jobs = s.cfg.Jobs()
	}
	for _, r := range s.all() {
		sample, ok, err := r.sample()
		if err != nil {
			s.cfg.Log.Debug("cannot keep the history of a job's resource usage", "job", r.id, "error", err) // a full disk: each second
		}
		if !ok || s.cfg.Metrics == nil {
			continue
		}
		jobs.Runs = append(jobs.Runs, metrics.Run{ID: r.id, Name: r.name, Started: r.started, Sample: sample})
		logBytes := int64(Unknown)
		if logs {
			if info, err := logstore.Stat(s.dir(r.id)); err == nil {
				logBytes = info.Size
			}
		}
		s.cfg.Metrics.Used(r.uncounted(sample.CPU(), logBytes))
	}
	if s.cfg.Metrics == nil {
		return
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(s.cfg.StateDir, &disk); err == nil {
		unit := cmp.Or(disk.Frsize, disk.Bsize)
		jobs.DiskFree, jobs.DiskSize = int64(disk.Bavail)*unit, int64(disk.Blocks)*unit
	}
	s.cfg.Metrics.Publish(jobs)
}

// History returns the samples that were taken of a job between two moments (zero: no
// bound), the newest limit of them (0: all), oldest first. r is the present run, if there
// is one.
func (s *Sampler) History(id string, r *Run, from, to time.Time, limit int) (all []joblet.Sample, err error) {
	if r != nil {
		if err := r.flush(); err != nil { // a full disk: earlier samples can be read
			s.cfg.Log.Debug("cannot keep the history of a job's resource usage", "job", id, "error", err)
		}
	}
	samples, err := history.Read(s.dir(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, sample := range samples {
		if (from.IsZero() || !sample.Time.Before(from)) && (to.IsZero() || !sample.Time.After(to)) {
			all = append(all, sample)
		}
	}
	if limit > 0 && len(all) > limit {
		all = all[len(all)-limit:]
	}
	return all, nil
}

// Watch hands a sample of a running job to emit at once and after each interval, until
// the run has ended or ctx ends, which is an error.
func Watch(ctx context.Context, proc *native.Process, interval time.Duration, memoryLimit func() int64, emit func(joblet.Sample) error) error {
	meter := proc.Meter() // of its own: the usage between two samples depends on the interval
	defer meter.Close()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for first := true; ; first = false {
		sample := meter.Total()
		sample.MemoryLimit = memoryLimit()
		if ran := sample.Time.Sub(proc.Started); first && ran > 0 {
			sample.CPUPercent = 100 * float64(sample.CPU()) / float64(ran)
		}
		select {
		case <-proc.Done(): // the sample may be of a cgroup that is being removed
			return nil
		default:
		}
		if err := emit(sample); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-proc.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (r *Run) flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	return r.history.Flush()
}
