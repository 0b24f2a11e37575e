package supervisor

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/engine"
	"github.com/joblet/joblet/internal/history"
)

// sampleEvery is how often each running job is looked at for its history.
const sampleEvery = time.Second

// gauge reads what a run of a job takes, and keeps its history.
type gauge struct {
	mu      sync.Mutex // protects what follows
	meter   *cgroup.Meter
	history *history.Writer
	last    joblet.Sample
	closed  bool
}

func newGauge(proc *engine.Process, dir string) *gauge {
	return &gauge{meter: proc.Meter(), history: history.NewWriter(dir)}
}

// sample takes one for the history.
func (g *gauge) sample(memoryLimit int64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.last = g.meter.Sample()
	g.last.MemoryLimit = memoryLimit
	return g.history.Add(g.last)
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
		if all, err := history.Read(s.jobDir(id)); err == nil && len(all) > 0 {
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
	for {
		select {
		case <-s.ctx.Done():
			s.eachGauge(func(id string, g *gauge, _ int64) {
				if _, err := g.close(); err != nil {
					s.cfg.Log.Warn("keep a job's metrics", "job", id, "error", err)
				}
			})
			return
		case <-ticker.C:
			s.sampleAll()
		}
	}
}

func (s *Supervisor) sampleAll() {
	s.eachGauge(func(id string, g *gauge, memoryLimit int64) {
		if err := g.sample(memoryLimit); err != nil {
			s.cfg.Log.Debug("keep a job's metrics", "job", id, "error", err) // a full disk: it comes again each second
		}
	})
}

// eachGauge calls do for each run, without Supervisor.mu.
func (s *Supervisor) eachGauge(do func(id string, g *gauge, memoryLimit int64)) {
	type run struct {
		id    string
		gauge *gauge
		limit int64
	}
	var runs []run
	s.mu.Lock()
	for id, l := range s.live {
		if l.gauge != nil {
			runs = append(runs, run{id, l.gauge, l.rec.Spec.Limits.MemoryBytes})
		}
	}
	s.mu.Unlock()
	for _, r := range runs {
		do(r.id, r.gauge, r.limit)
	}
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
func (s *Supervisor) History(ctx context.Context, ref string, from, to time.Time, limit int) (id string, all []joblet.Sample, err error) {
	job, err := s.Job(ctx, ref)
	if err != nil {
		return "", nil, err
	}
	if l := s.find(job.ID); l != nil {
		s.mu.Lock()
		g := l.gauge
		s.mu.Unlock()
		if g != nil {
			if err := g.flush(); err != nil {
				return "", nil, err
			}
		}
	}
	samples, err := history.Read(s.jobDir(job.ID))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", nil, err
	}
	for _, sample := range samples {
		if (from.IsZero() || !sample.Time.Before(from)) && (to.IsZero() || !sample.Time.After(to)) {
			all = append(all, sample)
		}
	}
	if limit > 0 && len(all) > limit {
		all = all[len(all)-limit:]
	}
	return job.ID, all, nil
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
func (s *Supervisor) Watch(ctx context.Context, ref string, interval time.Duration, emit func(id string, sample joblet.Sample) error) error {
	job, err := s.Job(ctx, ref)
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
