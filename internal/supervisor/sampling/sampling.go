package supervisor

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/history"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/metrics"
	"github.com/joblet/joblet/internal/sandbox/native"
)

// sampleEvery is how often each running job is looked at for its history.
const sampleEvery = time.Second

// logEvery is at which of these samples the size of a job's log is looked at for
// the metrics: that costs about as much as the sample.
const logEvery = 10

// gauge reads what a run of a job takes, and keeps its history.
type gauge struct {
	mu      sync.Mutex // protects what follows
	meter   *cgroup.Meter
	history *history.Writer
	last    joblet.Sample
	closed  bool

	countedCPU time.Duration // in the metrics, or unknown
	countedLog int64         // in the metrics, or unknown
}

// unknown is how much another daemon has counted of a run.
const unknown = -1

// newGauge returns the gauge of a run at whose start the job's log had so many
// bytes, from attempts before; unknown for a run that another daemon has started.
func newGauge(proc *native.Process, dir string, logBytes int64) *gauge {
	g := &gauge{meter: proc.Meter(), history: history.NewWriter(dir), countedLog: logBytes}
	if logBytes == unknown {
		g.countedCPU = unknown
	}
	return g
}

// sample takes one for the history. It returns false when the run is over.
func (g *gauge) sample(memoryLimit int64) (joblet.Sample, bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return joblet.Sample{}, false, nil
	}
	g.last = g.meter.Sample()
	g.last.MemoryLimit = memoryLimit
	return g.last, true, g.history.Add(g.last)
}

// uncounted returns how much of what the run has taken and logged so far is new
// to the metrics, which count it now. What was taken before this daemon is not.
func (g *gauge) uncounted(cpu time.Duration, logBytes int64) (newCPU time.Duration, newLog int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.countedCPU != unknown {
		newCPU = max(0, cpu-g.countedCPU) // the end may have been counted just before
	}
	if g.countedLog != unknown && logBytes != unknown {
		newLog = max(0, logBytes-g.countedLog)
	}
	g.countedCPU, g.countedLog = max(g.countedCPU, cpu), max(g.countedLog, logBytes)
	return newCPU, newLog
}

// usage returns what the run has taken so far.
func (g *gauge) usage() joblet.Usage {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.last = g.meter.Total()
	}
	return g.last.Usage
}

// close ends the history of a run that is over, or that another daemon goes on
// watching, and returns what is known of its use.
func (g *gauge) close() (joblet.Usage, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return g.last.Usage, nil
	}
	g.closed = true
	g.meter.Close()
	return g.last.Usage, g.history.Flush()
}

// seen ends the history of a run that is over, and returns what was sampled of
// its use: the kernel may not have kept all of the peaks, and a job that is LOST
// has no record of them. g is nil if it ended while no daemon ran.
func (s *Supervisor) seen(id string, g *gauge) joblet.Usage {
	if g == nil {
		if all, err := history.Read(s.records.Dir(id)); err == nil && len(all) > 0 {
			return all[len(all)-1].Usage
		}
		return joblet.Usage{}
	}
	usage, err := g.close()
	if err != nil {
		s.cfg.Log.Warn("keep a job's metrics", "job", id, "error", err)
	}
	return usage
}

// collect is the goroutine that samples all running jobs.
func (s *Supervisor) collect() {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for n := 1; ; n++ {
		select {
		case <-s.ctx.Done():
			runs, _ := s.runs()
			for _, r := range runs {
				if _, err := r.gauge.close(); err != nil {
					s.cfg.Log.Warn("keep a job's metrics", "job", r.id, "error", err)
				}
			}
			return
		case <-ticker.C:
			s.sampleAll(n%logEvery == 0)
		}
	}
}

// sampleAll takes a sample of each run, and tells the metrics, with logs also of
// the logs' sizes.
func (s *Supervisor) sampleAll(logs bool) {
	runs, jobs := s.runs()
	for _, r := range runs {
		sample, ok, err := r.gauge.sample(r.memoryLimit)
		if err != nil {
			s.cfg.Log.Debug("keep a job's metrics", "job", r.id, "error", err) // a full disk: it comes again each second
		}
		if !ok || s.cfg.Metrics == nil {
			continue
		}
		jobs.Runs = append(jobs.Runs, metrics.Run{ID: r.id, Name: r.name, Started: r.started, Sample: sample})
		logBytes := int64(unknown)
		if logs {
			if info, err := logstore.Stat(s.records.Dir(r.id)); err == nil {
				logBytes = info.Size
			}
		}
		s.cfg.Metrics.Used(r.gauge.uncounted(sample.CPU(), logBytes))
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

// run is one that can be sampled.
type run struct {
	id, name    string
	started     time.Time
	gauge       *gauge
	memoryLimit int64
}

// runs returns the runs, to be looked at without Supervisor.mu, and counts the
// jobs on the way.
func (s *Supervisor) runs() (runs []run, jobs metrics.Jobs) {
	s.mu.Lock()
	defer s.mu.Unlock()
	jobs.Ready, jobs.Scheduled, jobs.Blocked = s.queue.Counts()
	for id, l := range s.live {
		rec := &l.rec
		jobs.States[rec.State]++
		if l.gauge != nil {
			runs = append(runs, run{id, rec.Spec.Name, rec.Started, l.gauge, rec.Spec.Limits.MemoryBytes})
		}
	}
	return runs, jobs
}

// countEnd tells the metrics of a run that is over. g is nil if it ended while no
// daemon ran.
func (s *Supervisor) countEnd(job joblet.Job, g *gauge, again bool) {
	if s.cfg.Metrics == nil {
		return
	}
	if g != nil {
		s.cfg.Metrics.Used(g.uncounted(job.Usage.CPU(), job.LogBytes))
	}
	s.cfg.Metrics.RunEnded(job, again)
}

// measured returns the job with what it has taken up to now, if it runs.
func (s *Supervisor) measured(l *live, job joblet.Job) joblet.Job {
	s.mu.Lock()
	g := l.gauge
	s.mu.Unlock()
	if g != nil {
		job.Usage = job.Usage.Max(g.usage())
	}
	return job
}

// History returns the samples that were taken of a job between two moments
// (zero: no bound), the newest limit of them (0: all), oldest first.
func (s *Supervisor) History(ctx context.Context, id string, from, to time.Time, limit int) (all []joblet.Sample, err error) {
	if _, err := s.Job(ctx, id); err != nil {
		return nil, err
	}
	if l := s.find(id); l != nil {
		s.mu.Lock()
		g := l.gauge
		s.mu.Unlock()
		if g != nil {
			if err := g.flush(); err != nil { // a full disk: what was kept before can be read
				s.cfg.Log.Debug("keep a job's metrics", "job", id, "error", err)
			}
		}
	}
	samples, err := history.Read(s.records.Dir(id))
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

func (g *gauge) flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	return g.history.Flush()
}

// Watch hands a sample of the job to emit at once and after each interval, until
// the job has ended. One that waits is waited for.
func (s *Supervisor) Watch(ctx context.Context, id string, interval time.Duration, emit func(id string, sample joblet.Sample) error) error {
	job, err := s.Job(ctx, id)
	if err != nil {
		return err
	}
	l := s.find(job.ID)
	for l != nil {
		v, err := s.await(ctx, l, func(v view) bool { return v.job.State.Final() || v.proc != nil })
		if err != nil || v.proc == nil {
			return err
		}
		if err := s.watchRun(ctx, l, v, interval, emit); err != nil {
			return err
		}
		if _, err := s.await(ctx, l, func(now view) bool { return now.proc != v.proc || now.job.State.Final() }); err != nil {
			return err
		}
	}
	return nil
}

func (s *Supervisor) watchRun(ctx context.Context, l *live, v view, interval time.Duration, emit func(string, joblet.Sample) error) error {
	meter := v.proc.Meter() // of its own: what is used between two samples depends on who asks
	defer meter.Close()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for first := true; ; first = false {
		sample := meter.Total()
		sample.MemoryLimit = s.look(l).job.Spec.Limits.MemoryBytes
		if ran := sample.Time.Sub(v.proc.Started); first && ran > 0 {
			sample.CPUPercent = 100 * float64(sample.CPU()) / float64(ran)
		}
		select {
		case <-v.proc.Done(): // what was read may be of a group that is going
			return nil
		default:
		}
		if err := emit(v.job.ID, sample); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return errClosing
		case <-v.proc.Done():
			return nil
		case <-ticker.C:
		}
	}
}
