// Package records keeps the durable state of jobs: a record in the database, which says
// what was asked, and a directory, which says what happened. It writes the two in the
// order that a crash needs, and reconciles them when a daemon starts.
//
// It knows nothing of the jobs that run, and starts and ends none.
package records

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/secrets"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/statedir"
	"github.com/joblet/joblet/internal/store"
)

// Records are the records and directories of all jobs below one state directory.
type Records struct {
	*store.Store // the database

	stateDir string
	log      *slog.Logger
	secrets  secrets.Sealer
	check    bool // the database is not checked yet
}

// Open opens the records below stateDir, or what can be saved of them.
func Open(ctx context.Context, stateDir string, log *slog.Logger) (*Records, error) {
	r := &Records{stateDir: stateDir, log: log, secrets: secrets.Sealer{Path: filepath.Join(stateDir, secrets.KeyName)}}
	if err := os.MkdirAll(r.JobsDir(), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the state directory: %w", err)
	}
	db, cond, err := store.Rescue(ctx, filepath.Join(stateDir, "joblet.db"), filepath.Join(stateDir, statedir.DamagedName))
	if err != nil {
		return nil, err
	}
	r.Store, r.check = db, cond.Unchecked
	if cond.Damage != nil {
		log.Error("the job records were damaged: they are rebuilt from what could be read and from the jobs' directories",
			"damage", cond.Damage, "records", cond.Salvaged, "kept", cond.Kept)
	} else if cond.Behind != "" {
		log.Error("the job records lack changes: they are restored from the jobs' directories", "because", cond.Behind, "kept", cond.Kept)
	}
	return r, nil
}

// Check reads the whole database for damage if Open has not done that, and logs what it
// finds.
func (r *Records) Check(ctx context.Context) {
	if !r.check {
		return
	}
	if err := r.Store.Check(ctx); err != nil && ctx.Err() == nil {
		r.log.Error("the job records are damaged: stop the daemon and run joblet fsck --repair", "error", err)
	}
}

// JobsDir returns the directory of the jobs' directories.
func (r *Records) JobsDir() string { return filepath.Join(r.stateDir, "jobs") }

// Dir returns the directory of the job with this id.
func (r *Records) Dir(id string) string { return filepath.Join(r.JobsDir(), id) }

// WriteFile writes the job's file, from which the record can be made again. It makes
// the job's directory if there is none.
func (r *Records) WriteFile(rec store.Record) error {
	return jobdir.WriteFile(r.Dir(rec.ID), outcome.FileOf(rec))
}

// Seal encrypts the secrets of the job into its record.
func (r *Records) Seal(rec *store.Record) (err error) {
	rec.Sealed, err = r.secrets.Seal(rec.ID, rec.Spec.SecretEnv)
	return err
}

// Unseal decrypts the secrets in a record into its spec.
func (r *Records) Unseal(rec *store.Record) error {
	if len(rec.Sealed) == 0 {
		return nil
	}
	opened, err := r.secrets.Open(rec.ID, rec.Sealed)
	if err != nil {
		return err
	}
	rec.Spec.SecretEnv = opened
	return nil
}

// Written reports whether a write of a record that returned err need not be repeated:
// the record was written, or deleted before.
func Written(err error) bool { return err == nil || joblet.KindOf(err) == joblet.NotFound }

// IsFull reports whether an error is that of a full disk.
func IsFull(err error) bool {
	return err != nil && (joblet.KindOf(err) == joblet.ResourceExhausted || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT))
}

// MarkFailed makes sure that an exit record says that the command never ran. It gives
// up all other files of the job.
func (r *Records) MarkFailed(job joblet.Job, cause error) error {
	dir := r.Dir(job.ID)
	if rec, err := jobdir.ReadExit(dir, job.Attempt); err == nil && rec.Failure != nil { // the shim has written it
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	text, err := json.Marshal(protocol.Record{Failure: &protocol.Failure{Text: strings.TrimPrefix(cause.Error(), outcome.StartTheJob)}})
	if err != nil {
		return err
	}
	name := filepath.Join(dir, protocol.ExitName(job.Attempt))
	// An empty one, for which there may be room when there is none for the text, says
	// that the attempt has begun: the job is LOST then, and not started.
	err = errors.Join(jobdir.ReplaceFile(name, text), jobdir.SyncDir(r.JobsDir()))
	if err != nil {
		begun, beginErr := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
		if beginErr == nil {
			beginErr = errors.Join(begun.Close(), jobdir.SyncDir(dir), jobdir.SyncDir(r.JobsDir()))
		}
		err = errors.Join(err, beginErr)
	}
	return err
}

// Tidy removes from the directory of an ended job the files that killed shims did not
// finish, and the space reserved for exit records.
func (r *Records) Tidy(id string) {
	entries, err := os.ReadDir(r.Dir(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Warn("cannot look for unfinished files of a job's shims", "job", id, "error", err)
	}
	for _, e := range entries {
		if !jobdir.IsLeftover(e.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(r.Dir(id), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.log.Warn("cannot remove an unfinished file of a job's shim", "job", id, "error", err)
		}
	}
}

// Withdrawal undoes the acceptance of a job that was not started. Until the record is
// deleted, the directory has the name of a deletion: a crash leaves the rest of a
// deletion, and never a job with half of its directory.
type Withdrawal struct {
	r   *Records
	id  string
	err error // from renaming the directory
}

// Withdraw begins a withdrawal.
func (r *Records) Withdraw(id string) *Withdrawal {
	return &Withdrawal{r: r, id: id, err: ignoreMissing(os.Rename(r.Dir(id), r.Dir(id)+jobdir.DeletingSuffix))}
}

// Delete deletes the record, whose insertion gave insertErr. An error means that the
// record is still there.
func (w *Withdrawal) Delete(ctx context.Context, insertErr error) error {
	if insertErr != nil {
		if _, err := w.r.Get(ctx, w.id); joblet.KindOf(err) == joblet.NotFound {
			return nil
		}
	}
	if err := w.r.Store.Delete(ctx, w.id); !Written(err) {
		return err
	}
	return nil
}

// Finish removes the directory after Delete has succeeded.
func (w *Withdrawal) Finish() error {
	return errors.Join(w.err, os.RemoveAll(w.r.Dir(w.id)+jobdir.DeletingSuffix))
}

// Cancel gives the directory its name back after Delete has failed.
func (w *Withdrawal) Cancel() error {
	return errors.Join(w.err, ignoreMissing(os.Rename(w.r.Dir(w.id)+jobdir.DeletingSuffix, w.r.Dir(w.id))))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

const (
	// roomTries is how often a deletion is repeated after the job's files were removed.
	roomTries = 5
	// roomPause is the pause in between.
	roomPause = 100 * time.Millisecond
)

// Delete removes the record and the directory of a job that has ended. It calls deleted
// with the record once that is gone.
func (r *Records) Delete(ctx context.Context, id string, deleted func(store.Record)) error {
	rec, recErr := r.Get(ctx, id)
	// A name that says that the job is being deleted, so that the next daemon knows how
	// to treat a directory without a record.
	dir, deleting := r.Dir(id), r.Dir(id)+jobdir.DeletingSuffix
	err := os.Rename(dir, deleting)
	if IsFull(err) {
		jobdir.ClearOutput(dir)
		err = os.Rename(dir, deleting)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot delete job %s: %w", joblet.ShortID(id), err)
	}
	fault.Point("delete.renamed")
	err = r.Store.Delete(ctx, id)
	for tries := 1; IsFull(err) && tries <= roomTries; tries++ {
		// The job's files take the missing room, but another writer may take what
		// becomes free first.
		jobdir.ClearOutput(deleting)
		time.Sleep(roomPause)
		err = r.Store.Delete(ctx, id)
	}
	if err != nil {
		if back := os.Rename(deleting, dir); back != nil && !errors.Is(back, fs.ErrNotExist) {
			err = outcome.WithCleanup(err, back)
		}
		return err
	}
	if recErr == nil {
		deleted(rec)
	}
	fault.Point("delete.record")
	if err := os.RemoveAll(deleting); err != nil {
		return fmt.Errorf("cannot remove the directory of job %s: %w", joblet.ShortID(id), err)
	}
	fault.Point("delete.done")
	return nil
}

// A listing reads so many jobs, or so many bytes of them, at a time.
const (
	listBatch = 500
	listBytes = 4 << 20
)

// Each calls fn with the jobs that pass the filter, newest first, until fn fails. It
// holds only some of them at a time, however large they are. current returns a job of
// the database as it is now: the database may be a moment behind, so that a filter by
// state reads all jobs that have not ended according to it. ready, if not nil, says
// before each batch how many bytes to read, or waits.
func (r *Records) Each(ctx context.Context, f joblet.Filter, ready func() (size int, err error), current func(joblet.Job) joblet.Job, fn func(joblet.Job) error) error {
	wanted, left := f.States, f.Limit
	if len(wanted) > 0 {
		f.States = slices.DeleteFunc(joblet.States(), func(st joblet.State) bool { return st.Final() && !slices.Contains(wanted, st) })
	}
	for from := int64(0); ; {
		f.Limit = listBatch
		if left > 0 && len(wanted) == 0 {
			f.Limit = min(left, listBatch)
		}
		size := listBytes
		if ready != nil {
			var err error
			if size, err = ready(); err != nil {
				return err
			}
		}
		jobs, next, err := r.ListFrom(ctx, f, from, size)
		if err != nil {
			return err
		}
		for _, job := range jobs {
			if job = current(job); len(wanted) > 0 && !slices.Contains(wanted, job.State) {
				continue
			}
			if err := fn(job); err != nil {
				return err
			}
			if left--; left == 0 {
				return nil
			}
		}
		if next == 0 {
			return nil
		}
		from = next
	}
}
