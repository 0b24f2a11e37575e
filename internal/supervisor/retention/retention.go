// Package retention deletes ended jobs: those that pass a filter, and those that are
// older or larger than the daemon is configured to keep.
package retention

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/supervisor/records"
)

// Retention deletes ended jobs. Age and Bytes must not change while it runs.
type Retention struct {
	Age     time.Duration // how long ended jobs are kept; 0: for ever
	Bytes   int64         // what ended jobs may take on disk; 0: any size
	Records *records.Records
	Log     *slog.Logger

	Saved  func() int64 // how many bytes the jobs' files take less because jobs share them
	Each   func(ctx context.Context, f joblet.Filter, ready func() (int, error), fn func(joblet.Job) error) error
	Delete func(ctx context.Context, id string) error
}

// pruneBatch is how many jobs are read at a time to be deleted.
const pruneBatch = 500

// Prune deletes the ended jobs that pass the filter, and returns how many those
// are and what they took on disk, in bytes. With dryRun it only counts them.
func (r *Retention) Prune(ctx context.Context, f joblet.Filter, dryRun bool) (deleted int, freed int64, err error) {
	if len(f.States) == 0 {
		f.States = slices.DeleteFunc(joblet.States(), func(st joblet.State) bool { return !st.Final() })
	}
	for _, st := range f.States {
		if !st.Final() {
			return 0, 0, joblet.Errorf(joblet.InvalidArgument, "cannot prune jobs that are %v: only ended jobs can be deleted", st)
		}
	}
	var ids []string
	f.Limit = 0
	if err := r.Each(ctx, f, nil, func(job joblet.Job) error {
		ids = append(ids, job.ID)
		return nil
	}); err != nil {
		return 0, 0, err
	}
	for _, id := range ids {
		size := jobdir.Size(r.Records.Dir(id))
		if !dryRun {
			if err := r.Delete(ctx, id); notDeletable(err) {
				continue
			} else if err != nil {
				return deleted, freed, err
			}
		}
		deleted++
		freed += size
	}
	return deleted, freed, nil
}

// notDeletable reports whether a job was not deleted because it is gone or still
// needed.
func notDeletable(err error) bool {
	return err != nil && (joblet.KindOf(err) == joblet.NotFound || joblet.KindOf(err) == joblet.FailedPrecondition)
}

// runEvery is how often old jobs are deleted.
const runEvery = 10 * time.Minute

// Run deletes old jobs as the configuration says, until ctx ends.
func (r *Retention) Run(ctx context.Context) {
	if r.Age <= 0 && r.Bytes <= 0 {
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		n, err := r.Now(ctx)
		if err != nil && ctx.Err() == nil {
			r.Log.Error("cannot delete old jobs", "error", err)
		} else if n > 0 {
			r.Log.Info("old jobs were deleted", "jobs", n)
		}
		timer.Reset(runEvery)
	}
}

// Now deletes the jobs that are too old or too large now.
func (r *Retention) Now(ctx context.Context) (deleted int, err error) {
	if r.Age > 0 {
		n, _, err := r.Prune(ctx, joblet.Filter{EndedBefore: time.Now().Add(-r.Age)}, false)
		if deleted += n; err != nil {
			return deleted, err
		}
	}
	if r.Bytes <= 0 {
		return deleted, nil
	}
	size, err := r.Records.DiskBytes(ctx)
	if err != nil {
		return deleted, err
	}
	size -= r.Saved()
	for size > r.Bytes {
		jobs, err := r.Records.OldestEnded(ctx, pruneBatch)
		if err != nil {
			return deleted, err
		}
		before := deleted
		for _, job := range jobs {
			if size <= r.Bytes {
				break
			}
			bytes, saved := jobdir.Size(r.Records.Dir(job.ID)), r.Saved()
			if err := r.Delete(ctx, job.ID); notDeletable(err) {
				continue
			} else if err != nil {
				return deleted, err
			}
			size -= bytes - (saved - r.Saved()) // what others share stays
			deleted++
		}
		if deleted == before {
			return deleted, nil // all that is left is needed
		}
	}
	return deleted, nil
}
