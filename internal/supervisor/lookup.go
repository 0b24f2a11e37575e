package supervisor

import (
	"context"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/supervisor/records"
)

// lookup finds jobs: those that have not ended in the table, the others in the records.
type lookup struct {
	table   *table
	records *records.Records
}

// steady returns an unended job once it either waits or runs, and is not in between. A
// caller that ends the job does not need its shim: then the job may be one whose shim is
// silent, without a process.
func (l *lookup) steady(ctx context.Context, id string, ending bool) (*entry, snapshot, error) {
	job, err := l.Job(ctx, id)
	if err != nil {
		return nil, snapshot{}, err
	}
	if j := l.table.find(job.ID); j != nil {
		v, err := l.table.awaitRun(ctx, j, func(v snapshot) bool {
			return v.job.State.Final() || v.proc != nil || !v.starting && !v.job.State.Alive() ||
				v.silent && ending || v.unrecorded() != nil
		})
		if err == nil && !v.job.State.Final() {
			err = v.unrecorded() // another goroutine is about to end it
		}
		if err != nil || !v.job.State.Final() {
			return j, v, err
		}
		job = v.job
	}
	return nil, snapshot{}, joblet.Errorf(joblet.FailedPrecondition, "job %s has ended: %s", joblet.ShortID(job.ID), l.current(ctx, job).State)
}

// process returns the running job with this id, once it runs.
func (l *lookup) process(ctx context.Context, id string) (*native.Process, error) {
	_, v, err := l.steady(ctx, id, false)
	if err == nil && v.proc == nil {
		err = joblet.Errorf(joblet.FailedPrecondition, "job %s does not run: it is %s", joblet.ShortID(v.job.ID), v.job.State)
	}
	return v.proc, err
}

// onceRunning returns the running job with this id, once it runs.
func (l *lookup) onceRunning(ctx context.Context, id string) (*native.Process, error) {
	j := l.table.find(id)
	if j == nil {
		return nil, joblet.Errorf(joblet.FailedPrecondition, "job %s has ended", joblet.ShortID(id))
	}
	v, err := l.table.awaitRun(ctx, j, func(v snapshot) bool { return v.proc != nil || v.job.State.Final() })
	if err == nil && v.proc == nil {
		err = joblet.Errorf(joblet.FailedPrecondition, "job %s has ended: %v", joblet.ShortID(id), v.job.State)
	}
	return v.proc, err
}

// current returns the job as it is now: the database, from which it was read, lacks the
// latest changes of unended jobs.
func (l *lookup) current(ctx context.Context, job joblet.Job) joblet.Job {
	l.table.mu.Lock()
	j := l.table.jobs[job.ID]
	if j != nil {
		job = j.rec.Job
	}
	l.table.mu.Unlock()
	if j == nil && !job.State.Final() { // it has ended since it was read
		if rec, err := l.records.Get(ctx, job.ID); err == nil {
			job = rec.Job
		}
	}
	job.Spec = job.Spec.Redacted()
	return job
}

// Find returns the job that an owner means by ref: an id, the beginning of one, or a
// name, where the owner's own jobs take precedence. All other methods need the whole id,
// so that they cannot affect another owner's job of the same name.
func (l *lookup) Find(ctx context.Context, ref, owner string) (joblet.Job, error) {
	if j := l.table.find(ref); j != nil {
		return l.table.snapshot(j).job, nil
	}
	rec, err := l.records.Resolve(ctx, ref, owner)
	if err != nil {
		return joblet.Job{}, err
	}
	return l.current(ctx, rec.Job), nil
}

// Job returns the job with this id.
func (l *lookup) Job(ctx context.Context, id string) (joblet.Job, error) {
	if j := l.table.find(id); j != nil {
		return l.table.snapshot(j).job, nil
	}
	rec, err := l.records.Get(ctx, id)
	if err != nil {
		return joblet.Job{}, err
	}
	return l.current(ctx, rec.Job), nil
}

// Measured is Job with the present resource usage of a running job.
func (l *lookup) Measured(ctx context.Context, id string) (joblet.Job, error) {
	job, err := l.Job(ctx, id)
	if err != nil {
		return job, err
	}
	if j := l.table.find(job.ID); j != nil {
		l.table.mu.Lock()
		run := j.sampled
		l.table.mu.Unlock()
		if run != nil {
			job.Usage = job.Usage.Max(run.Usage())
		}
	}
	return job, nil
}

// EachJob calls fn on the jobs that pass the filter, newest first, until it fails.
// It holds only some of them at a time, however large they are. Parent and Before are
// ids.
func (l *lookup) EachJob(ctx context.Context, f joblet.Filter, ready func() (size int, err error), fn func(joblet.Job) error) error {
	if f.Limit < 0 {
		return joblet.Errorf(joblet.InvalidArgument, "cannot list jobs: limit %d is negative", f.Limit)
	}
	if f.Parent != "" {
		parent, err := l.Job(ctx, f.Parent)
		if err != nil {
			return err
		}
		if parent.Parent != "" { // a run has its parent's name
			f.Parent = parent.Parent
		}
	}
	return l.records.Each(ctx, f, ready, func(job joblet.Job) joblet.Job { return l.current(ctx, job) }, fn)
}

// Wait returns the job once it has ended.
func (l *lookup) Wait(ctx context.Context, id string) (joblet.Job, error) {
	job, err := l.Job(ctx, id)
	if err != nil {
		return job, err
	}
	return l.awaitEnd(ctx, job.ID)
}

// awaitEnd waits for the end of the job with this id.
func (l *lookup) awaitEnd(ctx context.Context, id string) (joblet.Job, error) {
	j := l.table.find(id)
	if j == nil { // it ended a moment ago
		return l.Job(ctx, id)
	}
	v, err := l.table.await(ctx, j, func(v snapshot) bool { return v.ended || v.unrecorded() != nil })
	if err == nil && !v.ended {
		err = v.unrecorded()
	}
	return v.job, err
}
