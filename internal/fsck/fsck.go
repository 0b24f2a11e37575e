// Package fsck checks a state directory while no daemon uses it: the job records, the
// jobs' directories, and what is left on the host.
package fsck

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/archive"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/secrets"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/statedir"
	"github.com/joblet/joblet/internal/store"
)

// Config says what is checked.
type Config struct {
	StateDir string       // records, job directories
	RunDir   string       // what a reboot may forget
	Log      *slog.Logger // nil: nothing is logged
}

// Options says how thorough a check is.
type Options struct {
	Repair bool // repair what can be repaired without losing anything
	Deep   bool // read all logs and archives, too
}

// ProblemStatus says what became of a Problem.
type ProblemStatus string

// The ways in which a Problem is told.
const (
	ProblemNote       ProblemStatus = "note"       // no problem, but good to know
	ProblemRepaired   ProblemStatus = "repaired"   // it is no more
	ProblemRepairable ProblemStatus = "repairable" // Options.Repair repairs it
	ProblemLeft       ProblemStatus = "left"       // it cannot be repaired: see Why
)

// Problem is something that a check has found.
type Problem struct {
	Job    string        `json:"job,omitempty"` // id of the job that it concerns; empty: none
	What   string        `json:"problem"`
	Status ProblemStatus `json:"status"`
	Why    string        `json:"why,omitempty"` // why it is left, and what to do
}

// String returns the problem on one line, for people.
func (p Problem) String() string {
	line := p.What
	if p.Job != "" {
		line = "job " + joblet.ShortID(p.Job) + ": " + line
	}
	switch p.Status {
	case ProblemNote:
		return "note: " + line
	case ProblemRepaired:
		return line + " [repaired]"
	case ProblemRepairable:
		return line + " [can be repaired with --repair]"
	}
	return line + " [cannot be repaired: " + p.Why + "]"
}

// Summary counts what a check has looked at and found.
type Summary struct {
	Jobs     int   `json:"jobs"`
	Bytes    int64 `json:"bytes"` // what the directories of these jobs take on disk
	Problems int   `json:"problems"`
	Repaired int   `json:"repaired"`
}

// Run checks what is on disk and what is left on the host, and calls report
// for each thing that it finds. No daemon may run: the caller holds its lock.
//
// Without opt.Repair it changes nothing but what opening the job records does:
// that brings an older schema forward and takes away others' rights to the
// file. An error means that not all could be checked; what was reported before
// holds nevertheless.
func Run(ctx context.Context, cfg Config, opt Options, report func(Problem)) (Summary, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &checker{
		ctx: ctx, cfg: cfg, opt: opt, report: report,
		secrets: secrets.Sealer{Path: filepath.Join(cfg.StateDir, secrets.KeyName)},
	}
	err := f.run()
	return f.sum, err
}

// fsckPage is how many records are looked at at a time: there may be a million.
const fsckPage = 500

// checker is one check. Its check methods return an error where they cannot go on.
type checker struct {
	ctx     context.Context
	cfg     Config
	opt     Options
	report  func(Problem)
	sum     Summary
	store   *store.Store // nil: the records cannot be used
	secrets secrets.Sealer
	noKey   string // why no secret can be opened; empty: there is a key
	where   statedir.Whereabouts

	boxes map[string]bool // that belong to a job that has not ended
	// keepDirs says why no directory without a record may go; empty: it may.
	keepDirs string
	doubted  bool // the records may lack jobs that were accepted
}

func (f *checker) jobsDir() string         { return filepath.Join(f.cfg.StateDir, "jobs") }
func (f *checker) jobDir(id string) string { return filepath.Join(f.jobsDir(), id) }
func (f *checker) database() string        { return filepath.Join(f.cfg.StateDir, "joblet.db") }
func (f *checker) lostFound() string       { return filepath.Join(f.cfg.StateDir, statedir.LostFound) }

// found tells of a problem that repair can end, and has it do so if wanted.
func (f *checker) found(job, what string, repair func() error) {
	p := Problem{Job: job, What: what, Status: ProblemRepairable}
	if f.opt.Repair {
		if err := repair(); err != nil {
			p.Status, p.Why = ProblemLeft, err.Error()
		} else {
			p.Status = ProblemRepaired
		}
	}
	f.tell(p)
}

// left tells of a problem that only a person can end.
func (f *checker) left(job, what, why string) {
	f.tell(Problem{Job: job, What: what, Status: ProblemLeft, Why: why})
}

func (f *checker) note(job, what string) {
	f.report(Problem{Job: job, What: what, Status: ProblemNote})
}

func (f *checker) tell(p Problem) {
	f.sum.Problems++
	if p.Status == ProblemRepaired {
		f.sum.Repaired++
	}
	f.report(p)
}

func (f *checker) run() (err error) {
	if _, err := os.Stat(f.cfg.StateDir); err != nil {
		return joblet.Errorf(joblet.FailedPrecondition, "cannot open the state directory: %w", err)
	}
	if f.where, err = statedir.Locate(f.cfg.StateDir, f.cfg.RunDir, f.cfg.Log); err != nil {
		return err
	}
	for _, check := range []func() error{f.checkModes, f.checkKey, f.openStore} {
		if err := check(); err != nil {
			return err
		}
	}
	if f.store != nil {
		defer func() { err = errors.Join(err, f.store.Close()) }()
		for _, check := range []func() error{f.checkUnfinished, f.checkEnded} {
			if err := check(); err != nil {
				return err
			}
		}
		// The host before the directories: it shows whether one may be in use.
		if hostErr := f.checkHost(); hostErr != nil {
			f.keepDirs = "the host could not be checked for the job to which it may belong"
			err = fmt.Errorf("cannot check the leftovers on the host: %w", hostErr)
		}
		err = errors.Join(err, f.checkDirs())
	}
	return errors.Join(err, f.noteLostFound())
}

// checkModes looks for what others than root may read.
func (f *checker) checkModes() error {
	for _, p := range []struct {
		path string
		mode fs.FileMode
	}{
		{f.cfg.StateDir, 0o700}, {f.jobsDir(), 0o700}, {f.lostFound(), 0o700},
		{f.where.Path, 0o600}, {f.database(), 0o600}, {f.database() + "-wal", 0o600}, {f.database() + "-shm", 0o600},
	} {
		info, err := os.Stat(p.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		perm := info.Mode().Perm()
		if perm&0o077 == 0 {
			continue
		}
		what := fmt.Sprintf("%s: others have rights to it (mode %04o)", p.path, perm)
		chmod := func() error { return os.Chmod(p.path, p.mode) }
		if !info.IsDir() { // opening it, for the check, does that anyway
			if err := chmod(); err != nil {
				return err
			}
			f.tell(Problem{What: what, Status: ProblemRepaired})
			continue
		}
		f.found("", what, chmod)
	}
	return nil
}

// checkKey looks at the key of the jobs' secrets, and at what making one may
// have left.
func (f *checker) checkKey() error {
	path := f.secrets.Path
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		f.noKey = path + " is missing"
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Size() != secrets.KeySize:
		f.noKey = path + " is damaged"
		f.left("", fmt.Sprintf("%s: not a file of %d bytes", path, secrets.KeySize),
			"restore it from a backup, or move it away: what jobs that wait have of secrets is lost then")
	case info.Mode().Perm() != 0o600:
		f.found("", fmt.Sprintf("%s: its mode is %04o and not 0600", path, info.Mode().Perm()), func() error { return os.Chmod(path, 0o600) })
	}
	if _, err := os.Lstat(path + ".new"); err == nil {
		f.found("", path+".new: it is left of an attempt to make a key", func() error { return os.Remove(path + ".new") })
	}
	return nil
}

// openStore opens the job records. Those that are missing or damaged are a
// problem, and f.store stays nil.
func (f *checker) openStore() error {
	path := f.database()
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) { // opening it would make it
		return f.noRecords()
	}
	if pid, err := openedBy(path); err != nil {
		return fmt.Errorf("cannot determine which process uses %s: %w", path, err)
	} else if pid != 0 {
		return joblet.Errorf(joblet.FailedPrecondition, "process %d has %s open: if it is a daemon (with another run directory), stop it first", pid, path)
	}
	cond, err := store.Examine(f.ctx, path)
	if err != nil {
		if joblet.KindOf(err) != joblet.FailedPrecondition {
			return err
		}
		f.left("", "the job records cannot be used, so that jobs, their directories and the host were not checked", err.Error())
		return nil
	}
	if cond.Damage == nil && cond.Behind == "" {
		if f.store, err = store.Open(f.ctx, path); err != nil {
			return err
		}
		return f.checkRecords()
	}
	what := "the job records lack changes: " + cond.Behind
	if cond.Damage != nil {
		what = cond.Damage.Error()
	}
	return f.rescue(what)
}

// rescue opens job records that are damaged or lack changes, if they are to be
// repaired.
func (f *checker) rescue(what string) error {
	p := Problem{What: what + " (jobs, their directories and the host were not checked)", Status: ProblemRepairable}
	if !f.opt.Repair {
		f.tell(p)
		return nil
	}
	db, cond, err := store.Rescue(f.ctx, f.database(), filepath.Join(f.cfg.StateDir, statedir.DamagedName))
	if err != nil {
		return err
	}
	f.store = db
	f.tell(Problem{What: what, Status: ProblemRepaired})
	if cond.Kept != "" {
		f.note("", fmt.Sprintf("the files of the job records are kept in %s; %d records were taken over from a damaged database", cond.Kept, cond.Salvaged))
	}
	return f.checkRecords()
}

// checkRecords reads all records: Examine may have had no time for that.
func (f *checker) checkRecords() error {
	f.doubted = f.store.Behind() != "" || f.store.Fresh()
	err := f.store.Check(f.ctx)
	if err == nil {
		return nil
	}
	err = errors.Join(err, f.store.Close())
	f.store = nil
	if joblet.KindOf(err) != joblet.FailedPrecondition {
		return err
	}
	f.left("", "the job records cannot be used, so that jobs, their directories and the host were not checked", err.Error())
	return nil
}

// noRecords deals with records that are missing.
func (f *checker) noRecords() error {
	dirs := 0
	err := eachEntry(f.jobsDir(), func(e fs.DirEntry) error {
		if joblet.ValidID(e.Name()) {
			dirs++
		}
		return f.ctx.Err()
	})
	if err != nil {
		return err
	}
	if dirs == 0 {
		f.note("", fmt.Sprintf("there are no job records in %s: nothing to check", f.cfg.StateDir))
		return nil
	}
	return f.rescue(fmt.Sprintf("%s: the job records are missing, and directories of %d jobs are there", f.database(), dirs))
}

// openedBy returns the process that has the database open, or 0. As long as it
// has, SQLite holds a read lock on one byte of the shared index ("DMS", at
// UNIX_SHM_BASE + SQLITE_SHM_NLOCK in os_unix.c). A process's own locks do not
// show, and do not survive that this closes the file: it comes before store.Open.
func openedBy(database string) (pid int, err error) {
	const dms = 128
	shm, err := os.Open(database + "-shm")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer shm.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: dms, Len: 1}
	if err := unix.FcntlFlock(shm.Fd(), unix.F_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK {
		return 0, err
	}
	return int(lock.Pid), nil
}

// checkUnfinished looks at the jobs that wait or run, as far as that can be
// done without taking them over.
func (f *checker) checkUnfinished() error {
	unfinished, err := f.store.Unfinished(f.ctx)
	if err != nil {
		return err
	}
	f.boxes = map[string]bool{}
	for _, rec := range unfinished {
		if err := f.ctx.Err(); err != nil {
			return err
		}
		f.countJob(rec.ID)
		if rec.State.Alive() {
			f.noteAlive(rec)
		}
		f.checkNotEnded(rec)
		if !rec.State.Alive() || rec.Attempt <= rec.Spec.Retries { // it runs, once or again
			f.checkSealed(rec)
			f.checkInput(rec.Job)
		}
		if !rec.State.Alive() && rec.Attempt == 0 {
			if err := f.checkDependencies(rec.Job); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *checker) countJob(id string) {
	f.sum.Jobs++
	f.sum.Bytes += jobdir.Size(f.jobDir(id))
}

// noteAlive says what the next daemon will find of a job that ran.
func (f *checker) noteAlive(rec store.Record) {
	box := rec.Box
	if box == "" { // recorded by a version whose boxes had the jobs' ids
		box = rec.ID
	}
	f.boxes[box] = true
	switch {
	case f.where.Elsewhere != "":
		f.note(rec.ID, f.where.Elsewhere+"; the next daemon concludes it, or starts it if it never began")
	case native.HasShim(f.where.Now.RunDirs, box):
		f.note(rec.ID, "it runs")
	case rec.State == joblet.Initializing && !jobdir.Begun(f.jobDir(rec.ID), rec.Attempt):
		f.note(rec.ID, "its start was cut short; the next daemon starts it")
	default:
		f.note(rec.ID, "it ended while no daemon ran; the next daemon concludes it")
	}
}

// checkNotEnded looks for the time of an end.
func (f *checker) checkNotEnded(rec store.Record) {
	if rec.Ended.IsZero() {
		return
	}
	f.found(rec.ID, fmt.Sprintf("it is %v and has the time of an end", rec.State), func() error {
		return f.update(rec.ID, func(r *store.Record) { r.Ended = time.Time{} })
	})
}

// update changes a job's record.
func (f *checker) update(id string, change func(*store.Record)) error {
	rec, err := f.store.Get(f.ctx, id)
	if err != nil {
		return err
	}
	change(&rec)
	return f.store.Update(f.ctx, rec)
}

const cancelIt = "cancel the job (rnx job cancel) and submit it again"

// checkSealed looks at whether the secrets that a job will need are there.
func (f *checker) checkSealed(rec store.Record) {
	switch {
	case len(rec.Sealed) == 0 && len(rec.Spec.SecretEnv) > 0:
		f.left(rec.ID, "its secrets are missing in its record", cancelIt)
	case len(rec.Sealed) == 0:
	case f.noKey != "":
		f.left(rec.ID, "its secrets cannot be opened: "+f.noKey, "restore that file from a backup, or "+cancelIt)
	default: // there is a key, so that this makes none
		if _, err := f.secrets.Open(rec.ID, rec.Sealed); err != nil {
			f.left(rec.ID, "its secrets cannot be opened: "+err.Error(), "restore that file from a backup, or "+cancelIt)
		}
	}
}

// checkInput looks at what came along with a job that is to run.
func (f *checker) checkInput(job joblet.Job) {
	if len(job.Spec.Uploads) > 0 {
		f.checkArchive(job.ID, jobdir.FilesName, "the files that came along with it", cancelIt)
	}
	if job.Spec.Stdin == joblet.StdinFile {
		if info, err := os.Lstat(filepath.Join(f.jobDir(job.ID), jobdir.StdinName)); err != nil || !info.Mode().IsRegular() {
			f.left(job.ID, "its standard input is missing", cancelIt)
		}
	}
}

// checkArchive looks at an archive in a job's directory that has to be there.
func (f *checker) checkArchive(id, name, what, todo string) {
	path := filepath.Join(f.jobDir(id), name)
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		f.left(id, what+" are missing ("+name+")", todo)
		return
	}
	if !f.opt.Deep {
		return
	}
	file, err := os.Open(path)
	if err == nil {
		err = archive.Verify(file)
		file.Close()
	}
	if err != nil {
		f.left(id, what+" cannot be read: "+err.Error(), todo)
	}
}

func (f *checker) checkDependencies(job joblet.Job) error {
	for _, id := range job.Spec.DependsOn {
		switch _, err := f.store.Get(f.ctx, id); {
		case joblet.KindOf(err) == joblet.NotFound:
			f.left(job.ID, fmt.Sprintf("job %s, on which it depends, is gone", joblet.ShortID(id)), "the next daemon cancels it: submit it again")
		case err != nil:
			return err
		}
	}
	return nil
}

// checkEnded looks at all jobs that have ended.
func (f *checker) checkEnded() error {
	for page := (joblet.Filter{Limit: fsckPage}); ; {
		jobs, err := f.store.List(f.ctx, page)
		if err != nil {
			return err
		}
		for _, job := range jobs {
			if !job.State.Final() {
				continue
			}
			if err := f.ctx.Err(); err != nil {
				return err
			}
			f.countJob(job.ID)
			if err := f.checkJob(job); err != nil {
				return err
			}
		}
		if len(jobs) < fsckPage {
			return nil
		}
		page.Before = jobs[len(jobs)-1].ID
	}
}

const deleteIt = "delete the job (rnx job delete) when it is not needed any more"

// checkJob looks at a job that has ended: its record, and then its directory.
func (f *checker) checkJob(job joblet.Job) error {
	if len(job.Spec.SecretEnv) > 0 { // without those there is nothing to be sealed
		if err := f.checkErased(job.ID); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(f.jobDir(job.ID))
	if errors.Is(err, fs.ErrNotExist) {
		if job.Exit != nil || job.LogBytes > 0 || job.WorkBytes > 0 {
			f.left(job.ID, "its directory is missing, and with it its output", deleteIt)
		}
		f.checkEnd(job, nil)
		return nil
	}
	if err != nil {
		f.left(job.ID, "its directory cannot be read: "+err.Error(), deleteIt)
		return nil
	}
	record, err := jobdir.ReadExit(f.jobDir(job.ID), max(job.Attempt, 1))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if job.Exit != nil {
			f.left(job.ID, "its exit record is missing", deleteIt)
		}
	case err != nil:
		f.left(job.ID, "its exit record cannot be read: "+err.Error(), deleteIt)
	}
	f.checkEnd(job, record)
	f.checkLog(job, record)
	if job.WorkBytes > 0 {
		f.checkArchive(job.ID, protocol.WorkName, "the files that it left in /work", deleteIt)
	}
	f.checkLeftovers(job.ID, entries)
	return f.ctx.Err()
}

// checkErased looks for secrets that a job does not need any more.
func (f *checker) checkErased(id string) error {
	rec, err := f.store.Get(f.ctx, id)
	if err != nil {
		return err
	}
	if rec.Sealed != nil {
		f.found(id, "it has ended, and its secrets are still in its record", func() error {
			return f.update(id, func(r *store.Record) { r.Sealed = nil })
		})
	}
	return nil
}

// checkEnd compares what the record says of the end with the exit record, nil
// if there is none.
func (f *checker) checkEnd(job joblet.Job, r *protocol.Record) {
	if r != nil && !agrees(job, r, f.jobDir(job.ID)) {
		f.found(job.ID, fmt.Sprintf("it is %v (%s), which is not what its exit record says (%s)", job.State, describe(job.Exit), describeRecord(r)), func() error {
			return f.update(job.ID, func(rec *store.Record) { reconclude(&rec.Job, r, f.jobDir(job.ID)) })
		})
	}
	if !job.Ended.IsZero() {
		return
	}
	what := fmt.Sprintf("it is %v and has no time of its end", job.State)
	if r == nil || r.EndedNanos == 0 {
		f.left(job.ID, what, deleteIt)
		return
	}
	f.found(job.ID, what, func() error {
		return f.update(job.ID, func(rec *store.Record) { rec.Ended = time.Unix(0, r.EndedNanos) })
	})
}

// agrees reports whether an ended job is what conclude makes of its exit record.
func agrees(job joblet.Job, r *protocol.Record, dir string) bool {
	if job.Attempt > 0 && len(job.Past) >= job.Attempt {
		return true // its latest run is in the past: it ended while it waited for another
	}
	// Whether it was asked to stop is not known any more.
	for _, state := range []joblet.State{joblet.Running, joblet.Stopping} {
		want := job
		want.State, want.Exit = state, nil
		outcome.Conclude(&want, r, dir)
		same := (want.Exit == nil) == (job.Exit == nil) && (want.Exit == nil || *want.Exit == *job.Exit)
		if same && want.State == job.State {
			return true
		}
	}
	return false
}

// reconclude gives an ended job the end that its exit record tells.
func reconclude(job *joblet.Job, r *protocol.Record, dir string) {
	ended := job.Ended
	if job.State == joblet.Stopped {
		job.State = joblet.Stopping
	} else {
		job.State = joblet.Running
	}
	job.Exit, job.Reason, job.Failure = nil, "", 0
	outcome.Conclude(job, r, dir)
	if r.Failure != nil && !ended.IsZero() { // such a record has no time
		job.Ended = ended
	}
}

func describe(e *joblet.Exit) string {
	switch {
	case e == nil:
		return "no exit status"
	case e.Signal != 0:
		return fmt.Sprintf("signal %d", e.Signal)
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

func describeRecord(r *protocol.Record) string {
	if r.Failure != nil {
		return "never ran"
	}
	text := describe(&joblet.Exit{Code: r.Code, Signal: r.Signal})
	if r.Cause != "" {
		text += fmt.Sprintf(", %.20q", r.Cause)
	}
	return text
}

// checkLog looks at the log of an ended job; record is its exit record or nil.
func (f *checker) checkLog(job joblet.Job, record *protocol.Record) {
	dir := f.jobDir(job.ID)
	r, err := logstore.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if job.LogBytes > 0 {
			f.left(job.ID, "its log is missing: "+err.Error(), deleteIt)
		}
		return
	}
	if errors.Is(err, logstore.ErrVersion) {
		f.left(job.ID, "its log cannot be read: "+err.Error(), "run the newer joblet that wrote it")
		return
	}
	if err != nil {
		f.left(job.ID, "its log cannot be read: "+err.Error(), deleteIt)
		return
	}
	defer r.Close()
	info, err := logstore.Stat(dir)
	if err == nil {
		err = f.passLog(r)
	}
	if err != nil {
		f.left(job.ID, "its log cannot be read: "+err.Error(), deleteIt)
		return
	}
	if info.Size < job.LogBytes {
		f.left(job.ID, fmt.Sprintf("its log has %d bytes, and it has written %d", info.Size, job.LogBytes), deleteIt)
	}
	// A shim that could not mark the end of the log in its index says so.
	complete := record != nil && record.Failure == nil && record.LogError == ""
	if info.Size >= max(job.LogBytes, 1) && (r.Damaged() || complete && !info.Ended) {
		f.left(job.ID, "the index of its log is damaged: of some output it is not known when it came, and on which stream", "the output itself is there; "+deleteIt)
	}
}

// passLog goes through a log: its index alone, or, for a deep check, all of it.
func (f *checker) passLog(r *logstore.Reader) error {
	r.WriterGone()
	if !f.opt.Deep {
		r.Only(0) // neither stream: no data is read
	}
	for f.ctx.Err() == nil {
		if _, err := r.Next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil // checkJob tells
}

// checkLeftovers looks for files that a shim was writing when it was killed.
// Of an ended job nobody needs them.
func (f *checker) checkLeftovers(id string, entries []fs.DirEntry) {
	for _, e := range entries {
		name := e.Name()
		if !jobdir.IsLeftover(name) {
			continue
		}
		f.found(id, fmt.Sprintf("%q is left in its directory", name), func() error { return os.Remove(filepath.Join(f.jobDir(id), name)) })
	}
}

// checkHost looks for boxes that belong to no job.
func (f *checker) checkHost() (err error) {
	e, err := native.Open(native.Config{
		RunDir: f.cfg.RunDir, Log: f.cfg.Log,
		Tag: f.where.Now.Tag, FormerRunDirs: f.where.Now.RunDirs[1:],
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	boxes, foreign, err := e.Sandboxes()
	if err != nil {
		return err
	}
	if foreign > 0 {
		f.note("", fmt.Sprintf("boxes of another state directory are in the cgroups of %s: %d", f.cfg.RunDir, foreign))
	}
	for _, id := range boxes {
		switch {
		case f.boxes[id]:
		case native.HasShim(f.where.Now.RunDirs, id):
			f.keepDirs = "a job without a record runs, and it may be its: start a daemon, which takes it over"
			f.left("", fmt.Sprintf("box %s: its shim runs, and no job has it", joblet.ShortID(id)), "the next daemon takes its job over, or ends it")
		default:
			f.found("", fmt.Sprintf("box %s: its cgroups are left, and no job has it", joblet.ShortID(id)), func() error { return e.Release(id, nil) })
		}
	}
	return f.ctx.Err()
}

// checkDirs looks for directories of jobs without a record, and for what is
// none of ours.
func (f *checker) checkDirs() error {
	deletions := false
	var orphans []string // dealt with when the listing is over
	err := eachEntry(f.jobsDir(), func(e fs.DirEntry) error {
		name := e.Name()
		if id, deleting := strings.CutSuffix(name, jobdir.DeletingSuffix); deleting && joblet.ValidID(id) {
			f.note(id, "its deletion was cut short; the next daemon ends that, or takes it back")
			deletions = true
			return nil
		}
		if !joblet.ValidID(name) {
			f.left("", fmt.Sprintf("%s: %q is not a job's", f.jobsDir(), name), "move it away")
			return nil
		}
		_, err := f.store.Get(f.ctx, name)
		switch {
		case err == nil || joblet.KindOf(err) != joblet.NotFound:
			return err
		case !e.IsDir():
			f.left(name, "it has no record, and its directory is something else", "move "+f.jobDir(name)+" away")
		default:
			orphans = append(orphans, name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range orphans {
		f.checkOrphan(id)
	}
	if f.opt.Repair && !deletions && f.ctx.Err() == nil { // else the next daemon is to know of the doubt
		return f.store.Vouch(f.ctx)
	}
	return nil
}

// checkOrphan deals with a directory without a record.
func (f *checker) checkOrphan(id string) {
	const what = "it has no record, but a directory "
	rec, began, err := outcome.FromDir(f.jobDir(id))
	switch {
	case err != nil:
		f.left(id, what+"that cannot be read", err.Error())
	case began && rec.State == joblet.Running && rec.Box != "" && native.HasShim(f.where.Now.RunDirs, rec.Box):
		f.note(id, "it has no record, and runs; the next daemon adopts it")
	case f.keepDirs != "" && rec.State != joblet.Lost && rec.Exit == nil:
		f.left(id, what+"without an exit record", f.keepDirs)
	case began || f.doubted && rec.ID != "":
		f.found(id, what+"that tells of the job, which can be recorded again", func() error {
			return outcome.InsertReclaimed(f.ctx, f.store, rec, f.jobDir(id), f.where.Now.RunDirs)
		})
	case f.doubted:
		f.found(id, what+"with what came along with a job, which belongs into "+f.lostFound(), func() error { return f.keep(id) })
	default:
		f.found(id, what+"without output or exit record, which is of no use", func() error { return os.RemoveAll(f.jobDir(id)) })
	}
}

// keep moves the directory of a job without a record to LostFound.
func (f *checker) keep(id string) error {
	if err := os.MkdirAll(f.lostFound(), 0o700); err != nil {
		return err
	}
	return os.Rename(f.jobDir(id), filepath.Join(f.lostFound(), id))
}

// noteLostFound tells how much is kept of jobs without a record.
func (f *checker) noteLostFound() error {
	n, size := 0, int64(0)
	err := eachEntry(f.lostFound(), func(e fs.DirEntry) error {
		n++
		size += jobdir.Size(filepath.Join(f.lostFound(), e.Name()))
		return f.ctx.Err()
	})
	if err == nil && n > 0 {
		f.note("", fmt.Sprintf("%s keeps %d directories of jobs without a record, %d bytes: remove what is not needed", f.lostFound(), n, size))
	}
	return err
}

// eachEntry calls fn for each entry of a directory, in any order, without
// holding all of them; one that does not exist has none.
func eachEntry(dir string, fn func(fs.DirEntry) error) error {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		entries, err := d.ReadDir(1024)
		for _, e := range entries {
			if err := fn(e); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
