// Package output reads what jobs have written: their logs, while they run and after,
// and the files in /work.
package output

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/logstore/follow"
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

// Status is a job that has not ended, or whose end is not durable yet, at one moment.
type Status struct {
	Job      joblet.Job
	Over     <-chan struct{} // closed when the output of the latest run is complete
	Seq      uint64          // of the latest change
	Ended    bool            // and no crash takes that back
	Starting bool            // the job is about to run
}

// Await waits until done accepts the job's status, and returns that.
type Await func(ctx context.Context, done func(Status) bool) (Status, error)

// Follower is one reader of a job's log.
type Follower struct {
	Dir     string // the job's directory
	ID      string // of the job
	Watcher *follow.Watcher
	Options joblet.LogOptions
	Gate    Gate              // nil: nothing bounds what is read
	Emit    func(Event) error // receives what is read

	reader *logstore.Reader
}

// Read hands the present output of a job to Emit, and returns the job.
func (f *Follower) Read(ctx context.Context, job joblet.Job) (joblet.Job, error) {
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
func (f *Follower) whole(job joblet.Job) error {
	info, err := logstore.Stat(f.Dir)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return fmt.Errorf("cannot read the log of job %s: %w", joblet.ShortID(job.ID), err)
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

// Close closes the log.
func (f *Follower) Close() {
	if f.reader != nil {
		f.reader.Close()
	}
}

func (f *Follower) chunk(c logstore.Chunk) error { return f.Emit(Event{Chunk: c}) }

// open opens the log and goes to where the options say. It is an error
// (fs.ErrNotExist) when there is none.
func (f *Follower) open(ctx context.Context) error {
	if f.reader != nil {
		return nil
	}
	r, err := logstore.Open(f.Dir)
	if err != nil {
		return fmt.Errorf("cannot open the log of job %s: %w", joblet.ShortID(f.ID), err)
	}
	f.reader = r
	r.Gate(f.Gate)
	opt := f.Options
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

// rest hands on the output that there is.
func (f *Follower) rest(ctx context.Context, ended bool) error {
	if err := f.open(ctx); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it never ran
		}
		return err
	}
	if ended {
		f.reader.Resume() // it may be at the end of a run that others have followed meanwhile
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

// Follow hands the output of all runs of a job to Emit, until the job has ended.
func (f *Follower) Follow(ctx context.Context, await Await) (joblet.Job, error) {
	told, started := "", 0
	for {
		v, err := await(ctx, func(v Status) bool {
			return v.Ended || !v.Starting && v.Job.State != joblet.Initializing && !v.Job.State.Final()
		})
		if err != nil {
			return joblet.Job{}, err
		}
		job := v.Job
		switch {
		case job.State.Final():
			if err := f.rest(ctx, true); err != nil {
				return job, err
			}
			return job, f.whole(job)
		case job.State == joblet.Pending || job.State == joblet.Scheduled:
			if now := job.State.String() + job.Scheduled.String() + job.Reason; now != told {
				told = now
				if err := f.Emit(Event{Job: &job}); err != nil {
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
				if err := f.Emit(Event{Job: &job}); err != nil {
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
			if err := f.Watcher.Follow(ctx, f.reader, v.Over, f.chunk); err != nil {
				return joblet.Job{}, err
			}
			if f.reader.Done() { // no more is wanted
				now, err := await(ctx, func(Status) bool { return true })
				return now.Job, err
			}
			// The log of this run is at its end; what becomes of the job is told
			// in a moment.
			if _, err := await(ctx, func(w Status) bool { return w.Job.State.Final() || w.Over != v.Over || isClosed(w.Over) }); err != nil {
				return joblet.Job{}, err
			}
			continue
		}
		if _, err := await(ctx, func(w Status) bool { return w.Seq != v.Seq }); err != nil {
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
