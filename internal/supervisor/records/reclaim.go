package records

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/statedir"
	"github.com/joblet/joblet/internal/store"
)

// A database can lose records: by damage, with its write-ahead log, or when an old copy
// is restored. The jobs' directories still have them. This file makes records from
// directories again. It removes no directory that shows traces of a run, and ends no
// job: a lost record is not a request to end anything.

// InDoubt reports whether the records may lack jobs, so that a directory without a
// record is not a leftover.
func (r *Records) InDoubt() bool { return r.Behind() != "" || r.Fresh() }

// maxCompared is how many directories are compared with the records at every
// start, in a fraction of a second.
const maxCompared = 100_000

// Unrecorded completes interrupted deletions and returns the names of the directories
// of jobs without a record. If there are very many directories and the former daemon
// closed the records, it returns none: such a daemon leaves none.
func (r *Records) Unrecorded(ctx context.Context) ([]string, error) {
	names, err := r.names()
	if err != nil {
		return nil, err
	}
	names = r.completeDeletions(ctx, names)
	if r.Closed() && len(names) > maxCompared {
		return nil, nil
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !joblet.ValidID(name) })
	slices.Sort(names)
	return r.Unknown(ctx, slices.Compact(names))
}

// Found is what is known of running jobs from elsewhere.
type Found struct {
	Boxes   []string                                 // that exist on this host
	JobDir  func(box string) (dir string, err error) // asks the shim of a box for its job's directory
	RunDirs []string                                 // where the sockets of shims may be
}

// reclaimAll records jobs without a record again from their directories, before anything
// else is done. Waiting jobs are among them only if the records are in doubt; otherwise
// their acceptance was never confirmed. It returns the boxes of the jobs that run, by
// job, as their shims say.
func (r *Records) reclaimAll(ctx context.Context, unrecorded []string, found Found) (running map[string]string, err error) {
	running = map[string]string{}
	for _, box := range found.Boxes {
		dir, err := found.JobDir(box)
		if err == nil && filepath.Dir(dir) == r.JobsDir() {
			running[filepath.Base(dir)] = box
		}
	}
	reclaimed := 0
	for _, id := range unrecorded {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		switch ok, err := r.reclaim(ctx, id, running[id], found.RunDirs); {
		case err != nil:
			r.log.Error("cannot record a job again from its directory; the directory is left unchanged", "job", id, "error", err)
		case ok:
			reclaimed++
			fault.Point("lost.recorded")
		}
	}
	if reclaimed > 0 {
		r.log.Warn("jobs without a record were recorded again from their directories", "jobs", reclaimed)
	}
	return running, nil
}

// RecoverUnfinished returns the records of jobs that have not ended, with those that the
// database had lost, and the boxes of jobs that run without a record, by job.
func (r *Records) RecoverUnfinished(ctx context.Context, unrecorded []string, found Found) (recs []store.Record, running map[string]string, err error) {
	if recs, err = r.Unfinished(ctx); err != nil {
		return nil, nil, err
	}
	found.Boxes = slices.DeleteFunc(slices.Clone(found.Boxes), func(box string) bool {
		return slices.ContainsFunc(recs, func(rec store.Record) bool { return rec.Box == box || rec.Box == "" && rec.ID == box })
	})
	if running, err = r.reclaimAll(ctx, unrecorded, found); err != nil {
		return nil, nil, err
	}
	recs, err = r.Unfinished(ctx)
	return recs, running, err
}

// reclaim makes the record of a job again from its directory; box, if not empty,
// is where it runs. It reports whether there was a job.
func (r *Records) reclaim(ctx context.Context, id, box string, runDirs []string) (bool, error) {
	rec, began, err := outcome.FromDir(r.Dir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || !began && (!r.InDoubt() || rec.ID == "") {
		return false, err
	}
	if box != "" {
		rec.Box = box
	}
	r.log.Warn("a job without a record is recorded again from its directory", "job", id)
	return true, outcome.InsertReclaimed(ctx, r.Store, rec, r.Dir(id), runDirs)
}

// CatchUp updates the record of an unfinished job where its directory is ahead: the
// database is an older copy. Otherwise an attempt would run twice, and overwrite the
// exit record and the log of the first time. box is where the job was found running,
// or empty.
func (r *Records) CatchUp(ctx context.Context, rec *store.Record, box string) error {
	dir := r.Dir(rec.ID)
	seen, err := jobdir.TracesIn(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot recover job %s: %w", rec.ID, err)
	}
	f, fileErr := jobdir.ReadFile(dir)
	known := fileErr == nil
	switch {
	case known && f.End != nil && f.Attempt >= seen.Attempts && f.Attempt >= rec.Attempt:
		r.log.Warn("a job's directory has its end, and its record lacks it", "job", rec.ID, "state", f.End.State)
		rec.Attempt = max(f.Attempt, seen.Attempts)
		outcome.EndAs(rec, f.End)
		rec.Sealed, rec.DiskBytes = nil, jobdir.Size(dir)
		return r.Update(ctx, *rec)
	case seen.Attempts > rec.Attempt:
		r.log.Warn("a job's directory has attempts that its record lacks", "job", rec.ID, "attempt", seen.Attempts, "recorded", rec.Attempt)
		secrets := rec.Spec.SecretEnv
		rec.Attempt = seen.Attempts
		if err := outcome.RerunHistory(&rec.Job, dir); err != nil {
			return fmt.Errorf("cannot recover job %s: %w", rec.ID, err)
		}
		rec.Spec.SecretEnv = secrets
		// Its latest run is concluded as one that ended while no daemon ran.
		rec.State, rec.Exit, rec.Reason, rec.Ended = joblet.Running, nil, "", time.Time{}
		rec.Box, rec.IDBase, rec.Leases = joblet.NewID(), 0, nil // no shim has this id
		if known && f.Attempt == rec.Attempt {
			rec.Box = f.Box
			rec.Leases, rec.IDBase = outcome.Held(f)
		}
		if box != "" {
			rec.Box = box
		}
		return r.Update(ctx, *rec)
	}
	return nil
}

// Sweep removes directories that had no record when the daemon started and show no
// trace of a run: they hold the input of jobs that were never accepted. If the records
// were in doubt then, it keeps them in the lost and found. It also tidies the
// directories of ended jobs; unended reports whether a job has not ended.
func (r *Records) Sweep(ctx context.Context, unrecorded []string, inDoubt bool, unended func(id string) bool) {
	for _, id := range unrecorded {
		if ctx.Err() != nil {
			return
		}
		if _, err := r.Get(ctx, id); joblet.KindOf(err) != joblet.NotFound {
			continue
		}
		if err := r.sweep(id, inDoubt); err != nil {
			r.log.Warn("cannot remove a directory without a job", "job", id, "error", err)
		}
		fault.Point("recover.swept")
	}
	r.tidyAll(ctx, unended)
}

func (r *Records) sweep(id string, inDoubt bool) error {
	_, began, err := outcome.FromDir(r.Dir(id))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case began: // the next daemon looks at it again
		return errors.New("it has the files of a run")
	case !inDoubt:
		return os.RemoveAll(r.Dir(id))
	}
	dir := filepath.Join(r.stateDir, statedir.LostFound)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	r.log.Warn("the uploaded input of a job without a record is kept", "job", id, "in", dir)
	return os.Rename(r.Dir(id), filepath.Join(dir, id))
}

// maxTidied is how many directories are tidied at every start, in the background.
const maxTidied = 10_000

// tidyAll tidies the directories of all ended jobs: the former daemon may have died
// just before it did that. If there are very many, it does so only if that daemon died.
func (r *Records) tidyAll(ctx context.Context, unended func(id string) bool) {
	names, err := r.names()
	if err != nil {
		r.log.Warn("cannot look for unfinished files of the shims of ended jobs", "error", err)
	}
	if r.Closed() && len(names) > maxTidied {
		return
	}
	for _, id := range names {
		if ctx.Err() != nil {
			return
		}
		if !joblet.ValidID(id) || unended(id) {
			continue
		}
		if rec, err := r.Get(ctx, id); err == nil && rec.State.Final() {
			r.Tidy(id)
		}
	}
}

// completeDeletions completes the interrupted deletions among the names in the jobs'
// directory, or takes them back. It returns the names as they are then.
func (r *Records) completeDeletions(ctx context.Context, names []string) []string {
	inDoubt := r.InDoubt()
	for i, name := range names {
		id, deleting := strings.CutSuffix(name, jobdir.DeletingSuffix)
		if !deleting {
			continue
		}
		if joblet.ValidID(id) {
			if err := r.completeDeletion(ctx, id, inDoubt); err != nil {
				r.log.Error("cannot complete an interrupted deletion", "job", id, "error", err)
				continue
			}
		}
		names[i] = id
	}
	return names
}

// completeDeletion takes a deletion back if the record is still there, or if the
// records are in doubt and the directory still tells of a job.
func (r *Records) completeDeletion(ctx context.Context, id string, inDoubt bool) error {
	deleting := r.Dir(id) + jobdir.DeletingSuffix
	_, err := r.Get(ctx, id)
	switch {
	case err == nil:
		return os.Rename(deleting, r.Dir(id))
	case joblet.KindOf(err) != joblet.NotFound:
		return err
	case inDoubt:
		seen, err := jobdir.TracesIn(deleting)
		_, noFile := os.Lstat(filepath.Join(deleting, jobdir.FileName))
		if err != nil || seen.Attempts > 0 || seen.Output || noFile == nil {
			return errors.Join(err, os.Rename(deleting, r.Dir(id)))
		}
	}
	return os.RemoveAll(deleting)
}

// names lists the jobs' directories.
func (r *Records) names() ([]string, error) {
	d, err := os.Open(r.JobsDir())
	if err != nil {
		return nil, fmt.Errorf("cannot list the jobs' directories: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1) // a million are some 60 MiB, for a moment
	if err != nil {
		return nil, fmt.Errorf("cannot list the jobs' directories: %w", err)
	}
	slices.Sort(names)
	return names, nil
}
