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
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/store"
)

// What the database has lost, by damage, with a write-ahead log, or because
// somebody put back an old copy, the jobs' directories still know. This file
// makes records from directories again. Nothing in it removes a directory or
// ends a job: whoever lost the records did not ask for that.

// damagedName is the directory in the state directory to which damaged files of
// the database go.
const damagedName = "damaged"

// lostOwner owns jobs of which nobody knows any more whose they were: root, so
// that no other gets at their output.
const lostOwner = rootOwner

const lostReason = "its record was lost, and its directory does not say whose it was and what it ran"

// openStore opens the job records, or what can be saved of them.
func (s *Supervisor) openStore(ctx context.Context) error {
	db, cond, err := store.Rescue(ctx, filepath.Join(s.cfg.StateDir, "joblet.db"), filepath.Join(s.cfg.StateDir, damagedName))
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
	rec, began, err := fromDir(s.jobDir(id))
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
	return true, insertReclaimed(ctx, s.store, rec, s.jobDir(id), s.where.now.RunDirs)
}

// insertReclaimed records a job again as fromDir has made it. Where another has
// taken its idempotency key by now, it is without one.
func insertReclaimed(ctx context.Context, db *store.Store, rec store.Record, dir string, runDirs []string) error {
	switch {
	case rec.State == joblet.Running && !begunOnly(dir, rec):
	case rec.State == joblet.Running && (rec.Box == "" || !native.HasShim(runDirs, rec.Box)):
		lost, run := rec.Reason, rec.Job
		if conclude(&run, nil, dir); rec.Box != "" && retries(run) { // recovery concludes it, and lets it wait for its next attempt
			break
		}
		rec.Job = run
		rec.Reason = strings.TrimSuffix(rec.Reason+"; "+lost, "; ")
		rec.DiskBytes = dirBytes(dir)
	case !rec.State.Final() && !rec.State.Alive() && len(rec.Spec.SecretEnv) > 0:
		rec.State, rec.Ended, rec.Reason = joblet.Canceled, time.Now(), "its secrets were lost with its record: submit it again"
	}
	err := db.InsertUnsynced(ctx, rec)
	if joblet.KindOf(err) == joblet.AlreadyExists && rec.Spec.IdempotencyKey != "" {
		rec.Spec.IdempotencyKey = ""
		err = db.InsertUnsynced(ctx, rec)
	}
	if err == nil && rec.State == joblet.Lost { // what was reserved for its end
		err = os.Remove(filepath.Join(dir, protocol.ExitName(rec.Attempt)+".tmp"))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return err
}

// fromDir makes the record of a job as far as its directory tells: with its end,
// if it has ended, RUNNING if its latest attempt has begun and nothing says how
// that ended, else waiting. began reports whether there is any trace of a run. The
// id is empty when the directory tells of no job.
func fromDir(dir string) (rec store.Record, began bool, err error) {
	seen, err := tracesIn(dir)
	if err != nil {
		return rec, false, err
	}
	began = seen.attempts > 0 || seen.output
	f, err := readJobFile(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDamaged) {
		return rec, began, err
	}
	known := err == nil
	if !known && !began {
		return rec, false, nil
	}
	rec.ID, rec.Owner, rec.Created, rec.Scheduled, rec.Parent, rec.Spec = f.ID, f.Owner, f.Created, f.Scheduled, f.Parent, f.Spec
	if !known {
		rec.ID, rec.Owner, rec.Spec = filepath.Base(dir), lostOwner, joblet.Spec{Command: "unknown", WorkDir: joblet.DefaultWorkDir}
		if info, err := os.Stat(dir); err == nil {
			rec.Created = info.ModTime()
		}
	}
	rec.Attempt = max(seen.attempts, 1)
	switch {
	case !began && f.End == nil:
		rec.Attempt, rec.State = 0, joblet.Pending
		if !rec.Scheduled.IsZero() {
			rec.State = joblet.Scheduled
		}
		return rec, false, nil
	case !began:
		rec.Attempt = f.Attempt
		endAs(&rec, f.End)
		return rec, false, nil
	}
	if known && f.Attempt == rec.Attempt {
		rec.Box = f.Box
		rec.Leases, rec.IDBase = f.held()
	}
	if err := rerunHistory(&rec.Job, dir); err != nil {
		return rec, true, err
	}
	switch {
	case f.End != nil && f.Attempt == rec.Attempt: // it ended while it waited for its next attempt, say
		endAs(&rec, f.End)
	case known && rec.Box != "" && retries(rec.Job): // recovery concludes it, and lets it wait for its next attempt
		rec.State, rec.Exit, rec.Reason, rec.Ended = joblet.Running, nil, "", time.Time{}
	}
	if rec.State.Final() {
		rec.DiskBytes = dirBytes(dir)
	}
	if !known {
		rec.Reason = strings.TrimPrefix(rec.Reason+"; "+lostReason, "; ")
	}
	return rec, true, nil
}

func endAs(rec *store.Record, end *jobEnd) {
	rec.State, rec.Ended, rec.Reason, rec.Failure, rec.Exit = end.State, end.Ended, end.Reason, end.Failure, end.Exit
}

// begunOnly reports whether an attempt has begun and nothing says how it ended.
func begunOnly(dir string, rec store.Record) bool {
	_, err := readRecord(dir, rec.Attempt)
	return errors.Is(err, fs.ErrNotExist)
}

// rerunHistory gives a job the ends of its attempts, of which job.Attempt is the
// latest, as the exit records in its directory have them. A latest attempt without
// a record leaves the job RUNNING.
func rerunHistory(job *joblet.Job, dir string) error {
	job.Past = nil
	for n := 1; n <= job.Attempt; n++ {
		r, err := readRecord(dir, n)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDamaged) {
			return err
		}
		run := joblet.Job{ID: job.ID, Spec: job.Spec, State: joblet.Running, Attempt: n}
		missing := errors.Is(err, fs.ErrNotExist)
		if n < job.Attempt || !missing {
			conclude(&run, r, dir)
			if errors.Is(err, errDamaged) {
				run.Reason = damagedReason(err)
			}
		}
		if n < job.Attempt {
			job.Past = append(job.Past, joblet.Attempt{Started: run.Started, Ended: run.Ended, State: run.State, Exit: run.Exit, Reason: run.Reason, Usage: run.Usage})
			continue
		}
		job.State, job.Started, job.Ended, job.Exit, job.Reason, job.Failure = run.State, run.Started, run.Ended, run.Exit, run.Reason, run.Failure
		job.LogBytes, job.WorkBytes, job.Usage, job.OutOfMemory, job.Denied = run.LogBytes, run.WorkBytes, run.Usage, run.OutOfMemory, run.Denied
	}
	return nil
}

// catchUp brings the record of an unfinished job forward where its directory
// tells of more: the database is an older copy. Otherwise an attempt would run
// twice, over the exit record and the log of the first time. box is where the
// job was found running, or empty.
func (s *Supervisor) catchUp(l *live, box string) error {
	rec := &l.rec
	dir := s.jobDir(rec.ID)
	seen, err := tracesIn(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("recover job %s: %w", rec.ID, err)
	}
	f, fileErr := readJobFile(dir)
	known := fileErr == nil
	switch {
	case known && f.End != nil && f.Attempt >= seen.attempts && f.Attempt >= rec.Attempt:
		s.cfg.Log.Warn("a job's directory has its end, and its record lacks it", "job", rec.ID, "state", f.End.State)
		rec.Attempt = max(f.Attempt, seen.attempts)
		endAs(rec, f.End)
		rec.Sealed, rec.DiskBytes = nil, dirBytes(dir)
		return s.store.Update(s.ctx, *rec)
	case seen.attempts > rec.Attempt:
		s.cfg.Log.Warn("a job's directory has attempts that its record lacks", "job", rec.ID, "attempt", seen.attempts, "recorded", rec.Attempt)
		secrets := rec.Spec.SecretEnv
		rec.Attempt = seen.attempts
		if err := rerunHistory(&rec.Job, dir); err != nil {
			return fmt.Errorf("recover job %s: %w", rec.ID, err)
		}
		rec.Spec.SecretEnv = secrets
		// Its latest run is concluded as one that ended while no daemon ran.
		rec.State, rec.Exit, rec.Reason, rec.Ended = joblet.Running, nil, "", time.Time{}
		rec.Box, rec.IDBase, rec.Leases = joblet.NewID(), 0, nil // of which there is no shim
		if known && f.Attempt == rec.Attempt {
			rec.Box = f.Box
			rec.Leases, rec.IDBase = f.held()
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
	_, began, err := fromDir(s.jobDir(id))
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

// lostFound is where directories go that nobody can make a job of.
const lostFound = "lost+found"

func (s *Supervisor) keepLost(id string) error {
	dir := filepath.Join(s.cfg.StateDir, lostFound)
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
	id, deleting := strings.CutSuffix(name, deletingSuffix)
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
		seen, err := tracesIn(going)
		_, noFile := os.Lstat(filepath.Join(going, jobFileName))
		if err != nil || seen.attempts > 0 || seen.output || noFile == nil {
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
		id, deleting := strings.CutSuffix(name, deletingSuffix)
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

// damagedReason says why it is not known how a job ended.
func damagedReason(err error) string {
	return fmt.Sprintf("nobody knows how it ended: its exit record is %v", err)
}

// unsetDeleting takes setDeleting back.
func (s *Supervisor) unsetDeleting(id string) error {
	err := os.Rename(s.jobDir(id)+deletingSuffix, s.jobDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// setDeleting gives the directory of a job that was not accepted the name of a
// deletion: what a crash leaves of it is then no job's.
func (s *Supervisor) setDeleting(id string) error {
	err := os.Rename(s.jobDir(id), s.jobDir(id)+deletingSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
