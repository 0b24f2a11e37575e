package outcome

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/store"
)

// lostOwner owns jobs of which nobody knows any more whose they were: root, so
// that no other gets at their output.
const lostOwner = "uid:0"

const LostReason = "its record was lost, and its directory does not say whose it was and what it ran"

// InsertReclaimed records a job again as FromDir has made it. Where another has
// taken its idempotency key by now, it is without one.
func InsertReclaimed(ctx context.Context, db *store.Store, rec store.Record, dir string, runDirs []string) error {
	switch {
	case rec.State == joblet.Running && !begunOnly(dir, rec):
	case rec.State == joblet.Running && (rec.Box == "" || !native.HasShim(runDirs, rec.Box)):
		lost, run := rec.Reason, rec.Job
		if Conclude(&run, nil, dir); rec.Box != "" && Retries(run) { // recovery concludes it, and lets it wait for its next attempt
			break
		}
		rec.Job = run
		rec.Reason = strings.TrimSuffix(rec.Reason+"; "+lost, "; ")
		rec.DiskBytes = jobdir.Size(dir)
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

// FromDir makes the record of a job as far as its directory tells: with its end,
// if it has ended, RUNNING if its latest attempt has begun and nothing says how
// that ended, else waiting. began reports whether there is any trace of a run. The
// id is empty when the directory tells of no job.
func FromDir(dir string) (rec store.Record, began bool, err error) {
	seen, err := jobdir.TracesIn(dir)
	if err != nil {
		return rec, false, err
	}
	began = seen.Attempts > 0 || seen.Output
	f, err := jobdir.ReadFile(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, jobdir.ErrDamaged) {
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
	rec.Attempt = max(seen.Attempts, 1)
	switch {
	case !began && f.End == nil:
		rec.Attempt, rec.State = 0, joblet.Pending
		if !rec.Scheduled.IsZero() {
			rec.State = joblet.Scheduled
		}
		return rec, false, nil
	case !began:
		rec.Attempt = f.Attempt
		EndAs(&rec, f.End)
		return rec, false, nil
	}
	if known && f.Attempt == rec.Attempt {
		rec.Box = f.Box
		rec.Leases, rec.IDBase = Held(f)
	}
	if err := RerunHistory(&rec.Job, dir); err != nil {
		return rec, true, err
	}
	switch {
	case f.End != nil && f.Attempt == rec.Attempt: // it ended while it waited for its next attempt, say
		EndAs(&rec, f.End)
	case known && rec.Box != "" && Retries(rec.Job): // recovery concludes it, and lets it wait for its next attempt
		rec.State, rec.Exit, rec.Reason, rec.Ended = joblet.Running, nil, "", time.Time{}
	}
	if rec.State.Final() {
		rec.DiskBytes = jobdir.Size(dir)
	}
	if !known {
		rec.Reason = strings.TrimPrefix(rec.Reason+"; "+LostReason, "; ")
	}
	return rec, true, nil
}

func EndAs(rec *store.Record, end *jobdir.End) {
	rec.State, rec.Ended, rec.Reason, rec.Failure, rec.Exit = end.State, end.Ended, end.Reason, end.Failure, end.Exit
}

// begunOnly reports whether an attempt has begun and nothing says how it ended.
func begunOnly(dir string, rec store.Record) bool {
	_, err := jobdir.ReadExit(dir, rec.Attempt)
	return errors.Is(err, fs.ErrNotExist)
}

// RerunHistory gives a job the ends of its attempts, of which job.Attempt is the
// latest, as the exit records in its directory have them. A latest attempt without
// a record leaves the job RUNNING.
func RerunHistory(job *joblet.Job, dir string) error {
	job.Past = nil
	for n := 1; n <= job.Attempt; n++ {
		r, err := jobdir.ReadExit(dir, n)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, jobdir.ErrDamaged) {
			return err
		}
		run := joblet.Job{ID: job.ID, Spec: job.Spec, State: joblet.Running, Attempt: n}
		missing := errors.Is(err, fs.ErrNotExist)
		if n < job.Attempt || !missing {
			Conclude(&run, r, dir)
			if errors.Is(err, jobdir.ErrDamaged) {
				run.Reason = DamagedReason(err)
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

// Held returns what the latest attempt of a job holds of the host, as the job's file
// has it.
func Held(f jobdir.File) (leases sandbox.Leases, idBase uint32) {
	if f.Leases == nil {
		return nil, f.IDBase
	}
	return f.Leases, native.IDBase(f.Leases)
}

// LeasesOf returns what a record's latest attempt holds of the host. Records of earlier
// versions have no leases but the first of its ids.
func LeasesOf(rec store.Record) sandbox.Leases {
	if rec.Leases == nil {
		return native.IDLease(rec.IDBase)
	}
	return rec.Leases
}

// FileOf returns what a job's directory is to say of the job, from which FromDir
// makes the record again.
func FileOf(rec store.Record) jobdir.File {
	f := jobdir.File{
		ID: rec.ID, Owner: rec.Owner, Created: rec.Created, Scheduled: rec.Scheduled, Parent: rec.Parent, Spec: rec.Spec.Redacted(),
		Attempt: rec.Attempt, Box: rec.Box, Leases: rec.Leases,
	}
	if rec.State.Final() {
		f.End = &jobdir.End{State: rec.State, Ended: rec.Ended, Reason: rec.Reason, Failure: rec.Failure, Exit: rec.Exit}
	}
	return f
}
