package supervisor

import (
	"context"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/metrics"
	"github.com/joblet/joblet/internal/supervisor/sampling"
)

// countJobs counts the jobs for the metrics.
func (s *Supervisor) countJobs() (jobs metrics.Jobs) {
	s.mu.Lock()
	defer s.mu.Unlock()
	jobs.Ready, jobs.Scheduled, jobs.Blocked = s.queue.Counts()
	for _, l := range s.live {
		jobs.States[l.rec.State]++
	}
	return jobs
}

// History returns the samples that were taken of a job between two moments
// (zero: no bound), the newest limit of them (0: all), oldest first.
func (s *Supervisor) History(ctx context.Context, id string, from, to time.Time, limit int) ([]joblet.Sample, error) {
	if _, err := s.Job(ctx, id); err != nil {
		return nil, err
	}
	var run *sampling.Run
	if l := s.find(id); l != nil {
		s.mu.Lock()
		run = l.sampled
		s.mu.Unlock()
	}
	return s.sampler.History(id, run, from, to, limit)
}

// Watch hands a sample of the job to emit at once and after each interval, until
// the job has ended. It waits for a job that waits.
func (s *Supervisor) Watch(ctx context.Context, id string, interval time.Duration, emit func(id string, sample joblet.Sample) error) error {
	job, err := s.Job(ctx, id)
	if err != nil {
		return err
	}
	watching, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(s.ctx, func() { stop(errClosing) })()
	l := s.find(job.ID)
	for l != nil {
		v, err := s.await(ctx, l, func(v view) bool { return v.job.State.Final() || v.proc != nil })
		if err != nil || v.proc == nil {
			return err
		}
		memoryLimit := func() int64 { return s.look(l).job.Spec.Limits.MemoryBytes }
		if err := sampling.Watch(watching, v.proc, interval, memoryLimit, func(sample joblet.Sample) error { return emit(v.job.ID, sample) }); err != nil {
			return err
		}
		if _, err := s.await(ctx, l, func(now view) bool { return now.proc != v.proc || now.job.State.Final() }); err != nil {
			return err
		}
	}
	return nil
}

// Processes returns the processes of a running job.
func (s *Supervisor) Processes(ctx context.Context, id string) (joblet.Processes, error) {
	proc, err := s.process(ctx, id)
	if err != nil {
		return joblet.Processes{}, err
	}
	return s.lister.List(ctx, proc)
}
