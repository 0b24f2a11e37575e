package supervisor

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

// What the database has lost, by damage, with a write-ahead log, or because
// somebody put back an old copy, the jobs' directories still know. This file
// makes records from directories again. Nothing in it removes a directory or
// ends a job: whoever lost the records did not ask for that.

// openStore opens the job records, or what can be saved of them.
func (s *Supervisor) openStore(ctx context.Context) error {
	db, cond, err := store.Rescue(ctx, filepath.Join(s.cfg.StateDir, "joblet.db"), filepath.Join(s.cfg.StateDir, statedir.DamagedName))
	if err != nil {
		return err
	}
	s.store = db
	if cond.Damage != nil {
		s.cfg.Log.Error("the job records were damaged: they are rebuilt from what could be read and from the jobs' directories",
			"damage", cond.Damage, "records", cond.Salvaged, "kept", cond.Kept)
	} else if cond.Behind != "" {
		s.cfg.Log.Error("the job records lack changes: what the jobs' directories know is put back", "because", cond.Behind, "kept", cond.Kept)
	}
	if cond.Unchecked {
		s.work.Go(func() {
			if err := db.Check(s.ctx); err != nil && s.ctx.Err() == nil {
				s.cfg.Log.Error("the job records are damaged: stop the daemon and run joblet fsck --repair", "error", err)
			}
		})
	}
	return nil
}

// doubted reports whether the records may lack jobs, so that no directory can be
// taken for a leftover because there is no record of it.
func (s *Supervisor) doubted() bool { return s.store.Behind() != "" || s.store.Fresh() }

// reclaimAll records again, before anything else is done, the jobs without a
// record whose directories tell of them. Those that wait are among them only if
// the database is in doubt; otherwise nobody was told that they are accepted. It
// returns the boxes of jobs that it has found running by asking their shims.
func (s *Supervisor) reclaimAll(ctx context.Context, unknown, boxes []string) (running map[string]string, err error) {
	running = map[string]string{}
	for _, box := range boxes {
		dir, err := s.engine.JobDir(box)
		if err == nil && filepath.Dir(dir) == s.jobsDir() {
			running[filepath.Base(dir)] = box
		}
	}
	reclaimed := 0
	for _, id := range unknown {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		switch ok, err := s.reclaim(ctx, id, running[id]); {
		case err != nil:
			s.cfg.Log.Error("record a job again that only its directory knows of; it is left as it is", "job", id, "error", err)
		case ok:
			reclaimed++
			fault.Point("lost.recorded")
		}
	}
	if reclaimed > 0 {
		s.cfg.Log.Warn("jobs without a record were recorded again from their directories", "jobs", reclaimed)
	}
	return running, nil
}

// reclaim makes the record of a job again from its directory; box, if not empty,
// is where it runs. It reports whether there was a job.
func (s *Supervisor) reclaim(ctx context.Context, id, box string) (bool, error) {
	rec, began, err := outcome.FromDir(s.jobDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || !began && (!s.doubted() || rec.ID == "") {
		return false, err
	}
	if box != "" {
		rec.Box = box
	}
	s.cfg.Log.Warn("a job without a record is recorded again from its directory", "job", id)
	return true, outcome.InsertReclaimed(ctx, s.store, rec, s.jobDir(id), s.where.Now.RunDirs)
}

// catchUp brings the record of an unfinished job forward where its directory
// tells of more: the database is an older copy. Otherwise an attempt would run
// twice, over the exit record and the log of the first time. box is where the
// job was found running, or empty.
func (s *Supervisor) catchUp(l *live, box string) error {
	rec := &l.rec
	dir := s.jobDir(rec.ID)
	seen, err := jobdir.TracesIn(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("recover job %s: %w", rec.ID, err)
	}
	f, fileErr := jobdir.ReadFile(dir)
	known := fileErr == nil
	switch {
	case known && f.End != nil && f.Attempt >= seen.Attempts && f.Attempt >= rec.Attempt:
		s.cfg.Log.Warn("a job's directory has its end, and its record lacks it", "job", rec.ID, "state", f.End.State)
		rec.Attempt = max(f.Attempt, seen.Attempts)
		outcome.EndAs(rec, f.End)
		rec.Sealed, rec.DiskBytes = nil, jobdir.Size(dir)
		return s.store.Update(s.ctx, *rec)
	case seen.Attempts > rec.Attempt:
		s.cfg.Log.Warn("a job's directory has attempts that its record lacks", "job", rec.ID, "attempt", seen.Attempts, "recorded", rec.Attempt)
		secrets := rec.Spec.SecretEnv
		rec.Attempt = seen.Attempts
		if err := outcome.RerunHistory(&rec.Job, dir); err != nil {
			return fmt.Errorf("recover job %s: %w", rec.ID, err)
		}
		rec.Spec.SecretEnv = secrets
		// Its latest run is concluded as one that ended while no daemon ran.
		rec.State, rec.Exit, rec.Reason, rec.Ended = joblet.Running, nil, "", time.Time{}
		rec.Box, rec.IDBase, rec.Leases = joblet.NewID(), 0, nil // of which there is no shim
		if known && f.Attempt == rec.Attempt {
			rec.Box = f.Box
			rec.Leases, rec.IDBase = outcome.Held(f)
		}
		if box != "" {
			rec.Box = box
		}
		return s.store.Update(s.ctx, *rec)
	}
	return nil
}

// sweepOne deals with a directory without a record after jobs were recorded again:
// what is left shows no trace of a run. It is what came along with a job that was
// never accepted; where the records are in doubt, it is kept all the same.
func (s *Supervisor) sweepOne(id string, doubted bool) error {
	_, began, err := outcome.FromDir(s.jobDir(id))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case began: // the next daemon looks at it again
		return errors.New("it holds what a run has left")
	case doubted:
		return s.keepLost(id)
	}
	return os.RemoveAll(s.jobDir(id))
}

func (s *Supervisor) keepLost(id string) error {
	dir := filepath.Join(s.cfg.StateDir, statedir.LostFound)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	s.cfg.Log.Warn("the job records know nothing of what came along with a job: it is kept", "job", id, "in", dir)
	return os.Rename(s.jobDir(id), filepath.Join(dir, id))
}

// undelete finishes a deletion that was cut short, or takes it back: if the
// record is still there, or if the records are in doubt and the directory still
// tells of a job.
func (s *Supervisor) undelete(name string, doubted bool) error {
	id, deleting := strings.CutSuffix(name, jobdir.DeletingSuffix)
	if !deleting || !joblet.ValidID(id) {
		return nil
	}
	going := filepath.Join(s.jobsDir(), name)
	_, err := s.store.Get(s.ctx, id)
	switch {
	case err == nil:
		return os.Rename(going, s.jobDir(id))
	case joblet.KindOf(err) != joblet.NotFound:
		return err
	case doubted:
		seen, err := jobdir.TracesIn(going)
		_, noFile := os.Lstat(filepath.Join(going, jobdir.FileName))
		if err != nil || seen.Attempts > 0 || seen.Output || noFile == nil {
			return errors.Join(err, os.Rename(going, s.jobDir(id)))
		}
	}
	return os.RemoveAll(going)
}

// undeleteAll is undelete for all names in the jobs' directory, which it returns
// as they are then.
func (s *Supervisor) undeleteAll(names []string) []string {
	doubted := s.doubted()
	for i, name := range names {
		id, deleting := strings.CutSuffix(name, jobdir.DeletingSuffix)
		if !deleting {
			continue
		}
		if err := s.undelete(name, doubted); err != nil {
			s.cfg.Log.Error("end a deletion that was cut short", "job", id, "error", err)
			continue
		}
		names[i] = id
	}
	return names
}

// jobNames lists the jobs' directories.
func (s *Supervisor) jobNames() ([]string, error) {
	d, err := os.Open(s.jobsDir())
	if err != nil {
		return nil, fmt.Errorf("list the jobs' directories: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1) // a million are some 60 MiB, for a moment
	if err != nil {
		return nil, fmt.Errorf("list the jobs' directories: %w", err)
	}
	slices.Sort(names)
	return names, nil
}

// unsetDeleting takes setDeleting back.
func (s *Supervisor) unsetDeleting(id string) error {
	err := os.Rename(s.jobDir(id)+jobdir.DeletingSuffix, s.jobDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// setDeleting gives the directory of a job that was not accepted the name of a
// deletion: what a crash leaves of it is then no job's.
func (s *Supervisor) setDeleting(id string) error {
	err := os.Rename(s.jobDir(id), s.jobDir(id)+jobdir.DeletingSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
