package supervisor

import (
	"context"
	"io"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/archive"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/supervisor/guard"
	"github.com/joblet/joblet/internal/supervisor/output"
	"github.com/joblet/joblet/internal/supervisor/sampling"
	"github.com/joblet/joblet/internal/supervisor/staging"
)

// Keyboard returns a writer to the terminal of the job with this id, once the
// job runs.
func (s *Supervisor) Keyboard(ctx context.Context, id string) (*native.Keyboard, error) {
	proc, err := s.onceRunning(ctx, id)
	if err != nil {
		return nil, err
	}
	return proc.OpenKeyboard()
}

// Resize gives the terminal of the job with this id another size, once the job
// runs; zero leaves the one it has. With redraw the program that has the screen
// receives SIGWINCH in any case.
func (s *Supervisor) Resize(ctx context.Context, id string, size joblet.WindowSize, redraw bool) error {
	proc, err := s.onceRunning(ctx, id)
	if err != nil {
		return err
	}
	return proc.Resize(native.WindowSize{Rows: uint16(size.Rows), Columns: uint16(size.Columns)}, redraw)
}

// Exec runs a further process in the job with this id.
func (s *Supervisor) Exec(ctx context.Context, id string, e joblet.ExecSpec) (*native.Exec, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	j, v, err := s.steady(ctx, id, false)
	if err != nil {
		return nil, err
	}
	if v.proc == nil {
		return nil, joblet.Errorf(joblet.FailedPrecondition, "job %s does not run: it is %s", joblet.ShortID(v.job.ID), v.job.State)
	}
	s.table.mu.Lock()
	spec := j.rec.Spec // with its secrets, which are in the environment of the job's other processes
	s.table.mu.Unlock()
	run, spec, err := s.planner.Exec(v.job, spec, e)
	if err != nil {
		return nil, err
	}
	x, err := s.engine.Exec(ctx, v.proc, run)
	if err != nil {
		return nil, outcome.ExecError(v.job, spec, err, func() bool { return guard.EndsNow(ctx, v.proc) })
	}
	return x, nil
}

// Stage begins to receive the input of a job of an owner. It ends with Submit or with
// Discard.
func (s *Supervisor) Stage(owner string) *staging.Upload { return s.uploads.Begin(owner) }

// OpenStdin returns a writer to the standard input of a job that has a stream there,
// once it runs.
func (s *Supervisor) OpenStdin(ctx context.Context, id string) (*native.Stdin, error) {
	proc, err := s.onceRunning(ctx, id)
	if err != nil {
		return nil, err
	}
	return proc.OpenStdin()
}

// Event is something that happens to a followed job.
type Event = output.Event

// Gate bounds how much of the output is read ahead.
type Gate = output.Gate

// Follow hands the job's output to emit, in order, and returns the job as it
// is at the end: ended, when opt.Follow is set. gate may be nil.
func (s *Supervisor) Follow(ctx context.Context, id string, opt joblet.LogOptions, gate Gate, emit func(Event) error) (joblet.Job, error) {
	job, err := s.Job(ctx, id)
	if err != nil {
		return joblet.Job{}, err
	}
	f := output.Follower{Dir: s.records.Dir(job.ID), ID: job.ID, Watcher: s.watcher, Options: opt, Gate: gate, Emit: emit}
	defer f.Close()
	if j := s.table.find(job.ID); j != nil && opt.Follow {
		return f.Follow(ctx, func(ctx context.Context, done func(output.Status) bool) (output.Status, error) {
			v, err := s.table.await(ctx, j, func(v snapshot) bool { return done(v.status()) })
			return v.status(), err
		})
	}
	return f.Read(ctx, s.current(ctx, job))
}

// status returns what a follower sees of a job.
func (v snapshot) status() output.Status {
	return output.Status{Job: v.job, Over: v.over, Seq: v.seq, Ended: v.ended, Starting: v.starting}
}

// LogSize returns how many bytes the job with this id has written so far.
func (s *Supervisor) LogSize(id string) (int64, error) { return output.LogSize(s.records.Dir(id)) }

// Files writes those files of the job's /work that match the patterns (see
// archive.NewMatcher) to w, as a tar archive: of a running job as they are, of
// another as its latest run left them.
func (s *Supervisor) Files(ctx context.Context, id string, patterns []string, w io.Writer) error {
	match, err := archive.NewMatcher(patterns)
	if err != nil {
		return err
	}
	job, err := s.Job(ctx, id)
	if err != nil {
		return err
	}
	var proc *native.Process
	if j := s.table.find(job.ID); j != nil {
		v, err := s.table.awaitRun(ctx, j, func(v snapshot) bool {
			return v.proc != nil || !v.silent && !v.starting && v.job.State != joblet.Initializing
		})
		if err != nil {
			return err
		}
		job, proc = v.job, v.proc
	}
	return output.Files(w, s.records.Dir(job.ID), job, proc, match)
}

// History returns the samples that were taken of a job between two moments
// (zero: no bound), the newest limit of them (0: all), oldest first.
func (s *Supervisor) History(ctx context.Context, id string, from, to time.Time, limit int) ([]joblet.Sample, error) {
	if _, err := s.Job(ctx, id); err != nil {
		return nil, err
	}
	var run *sampling.Run
	if j := s.table.find(id); j != nil {
		s.table.mu.Lock()
		run = j.sampled
		s.table.mu.Unlock()
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
	j := s.table.find(job.ID)
	for j != nil {
		v, err := s.table.await(ctx, j, func(v snapshot) bool { return v.job.State.Final() || v.proc != nil })
		if err != nil || v.proc == nil {
			return err
		}
		memoryLimit := func() int64 { return s.table.snapshot(j).job.Spec.Limits.MemoryBytes }
		if err := sampling.Watch(watching, v.proc, interval, memoryLimit, func(sample joblet.Sample) error { return emit(v.job.ID, sample) }); err != nil {
			return err
		}
		if _, err := s.table.await(ctx, j, func(now snapshot) bool { return now.proc != v.proc || now.job.State.Final() }); err != nil {
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
