package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/logstore"
)

// Event is something that happens to a followed job: a piece of its output, or,
// when Job is set, that it waits (PENDING, SCHEDULED) or that a run of it has
// started. A chunk is valid during the call only.
type Event struct {
	Chunk logstore.Chunk
	Job   *joblet.Job
}

// Gate says how much of the output may come next, and waits until any may. It calls
// yield before it waits; see logstore.Reader.Gate.
type Gate func(yield func()) (size int, err error)

// Follow hands the job's output to emit, in order, and returns the job as it
// is at the end: ended, when opt.Follow is set. Nothing of the output is read before
// gate lets it, unless that is nil.
func (s *Supervisor) Follow(ctx context.Context, id string, opt joblet.LogOptions, gate Gate, emit func(Event) error) (joblet.Job, error) {
	job, err := s.Job(ctx, id)
	if err != nil {
		return joblet.Job{}, err
	}
	f := follower{s: s, id: job.ID, opt: opt, gate: gate, emit: emit}
	defer f.close()
	l := s.find(job.ID)
	if l != nil && opt.Follow {
		return f.live(ctx, l)
	}
	job = s.current(ctx, job)
	if job.Attempt == 0 && !job.State.Final() {
		return job, nil // it has not run yet
	}
	if err := f.rest(ctx, job.State.Final()); err != nil {
		return job, err
	}
	return job, f.whole(job)
}

// whole reports whether the log of a job has all that was written to it: of one
// that has ended its record says how much that is, and of any job the log's index.
// (What --log-max has given up counts as written, and is told as a gap.)
func (f *follower) whole(job joblet.Job) error {
	info, err := logstore.Stat(f.s.records.Dir(job.ID))
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return fmt.Errorf("look at the log of job %s: %w", joblet.ShortID(job.ID), err)
	}
	written := info.Published
	if job.State.Final() {
		written = max(written, job.LogBytes)
	}
	switch {
	case info.Size < written:
		return joblet.Errorf(joblet.FailedPrecondition, "the log of job %s is incomplete: it has %d of the %d bytes that were written: it was truncated or removed in the daemon's state directory",
			joblet.ShortID(job.ID), info.Size, written)
	case missing && !job.State.Final() && job.State.Alive() && job.State != joblet.Initializing:
		return joblet.Errorf(joblet.FailedPrecondition, "the log of job %s is incomplete: it was removed in the daemon's state directory while the job runs", joblet.ShortID(job.ID))
	}
	return nil
}

// follower is one reader of a job's log.
type follower struct {
	s      *Supervisor
	id     string
	opt    joblet.LogOptions
	gate   Gate // may be nil
	emit   func(Event) error
	reader *logstore.Reader
}

func (f *follower) close() {
	if f.reader != nil {
		f.reader.Close()
	}
}

func (f *follower) chunk(c logstore.Chunk) error { return f.emit(Event{Chunk: c}) }

// open opens the log and goes to where the options say. It is an error
// (fs.ErrNotExist) when there is none.
func (f *follower) open(ctx context.Context) error {
	if f.reader != nil {
		return nil
	}
	r, err := logstore.Open(f.s.records.Dir(f.id))
	if err != nil {
		return fmt.Errorf("open the log of job %s: %w", joblet.ShortID(f.id), err)
	}
	f.reader = r
	r.Gate(f.gate)
	opt := f.opt
	if opt.Stdout != opt.Stderr {
		r.Only(map[bool]logstore.Stream{true: logstore.Stdout, false: logstore.Stderr}[opt.Stdout])
	}
	if !opt.Until.IsZero() { // before Tail, which counts back from there
		r.Until(opt.Until)
	}
	switch {
	case opt.Tail > 0:
		err = r.Tail(ctx, opt.Tail)
	case opt.Offset > 0:
		err = r.From(opt.Offset)
	}
	if err == nil && !opt.Since.IsZero() {
		at := r.Offset()
		if err = r.Since(opt.Since); err == nil && r.Offset() < at {
			err = r.From(at)
		}
	}
	return err
}

// rest hands on what there is.
func (f *follower) rest(ctx context.Context, ended bool) error {
	if err := f.open(ctx); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it never ran
		}
		return err
	}
	if ended {
		f.reader.Resume() // it may stand at the end of a run that was followed by others meanwhile
		f.reader.WriterGone()
	}
	for ctx.Err() == nil {
		c, err := f.reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = f.chunk(c)
		}
		if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// live follows a job through all its runs.
func (f *follower) live(ctx context.Context, l *live) (joblet.Job, error) {
	told, started := "", 0
	for {
		v, err := f.s.await(ctx, l, func(v view) bool {
			return v.ended || !v.starting && v.job.State != joblet.Initializing && !v.job.State.Final()
		})
		if err != nil {
			return joblet.Job{}, err
		}
		job := v.job
		switch {
		case job.State.Final():
			if err := f.rest(ctx, true); err != nil {
				return job, err
			}
			return job, f.whole(job)
		case job.State == joblet.Pending || job.State == joblet.Scheduled:
			if now := job.State.String() + job.Scheduled.String() + job.Reason; now != told {
				told = now
				if err := f.emit(Event{Job: &job}); err != nil {
					return joblet.Job{}, err
				}
			}
			// What is left of the run before.
			if job.Attempt > 0 {
				if err := f.rest(ctx, true); err != nil {
					return joblet.Job{}, err
				}
			}
		default:
			if job.Attempt != started {
				started = job.Attempt
				if err := f.emit(Event{Job: &job}); err != nil {
					return joblet.Job{}, err
				}
			}
			if f.reader != nil {
				f.reader.Resume()
			}
			if err := f.open(ctx); errors.Is(err, fs.ErrNotExist) {
				return joblet.Job{}, cmp.Or(f.whole(job), err)
			} else if err != nil {
				return joblet.Job{}, err
			}
			if err := f.s.watcher.Follow(ctx, f.reader, v.over, f.chunk); err != nil {
				return joblet.Job{}, err
			}
			if f.reader.Done() { // no more is wanted
				return f.s.look(l).job, nil
			}
			// The log of this run is at its end; what becomes of the job is told
			// in a moment.
			if _, err := f.s.await(ctx, l, func(w view) bool { return w.job.State.Final() || w.over != v.over || isClosed(w.over) }); err != nil {
				return joblet.Job{}, err
			}
			continue
		}
		if _, err := f.s.await(ctx, l, func(w view) bool { return w.seq != v.seq }); err != nil {
			return joblet.Job{}, err
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
