package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"

	"zombiezen.com/go/sqlite"

	"github.com/joblet/joblet"
)

const maxSeq = math.MaxInt64 // behind every row

const selectJob = `SELECT id, state, owner, created, started, ended, exit_code, exit_signal,
	reason, pid, id_base, log_bytes, spec FROM job `

const (
	jobByID      = selectJob + `WHERE id = ?`
	jobBySeq     = selectJob + `WHERE seq = ?`
	jobsByPrefix = selectJob + `WHERE id >= ? AND id < ? ORDER BY id LIMIT ?`
	newestJobs   = selectJob + `WHERE seq >= ? AND seq < ? ORDER BY seq DESC LIMIT ?`

	seqByID = `SELECT seq FROM job WHERE id = ?`

	// The indexes are named so that no statistics, or their absence, can lead
	// the planner elsewhere.
	ownersFrom      = `SELECT owner FROM job INDEXED BY job_owner WHERE owner >= ? ORDER BY owner LIMIT 1`
	namedOwnersFrom = `SELECT owner FROM job INDEXED BY job_name WHERE name = ? AND owner >= ? ORDER BY owner LIMIT 1`
	seqs            = `SELECT seq FROM job INDEXED BY job_owner
		WHERE owner = ? AND state = ? AND seq >= ? AND seq < ? ORDER BY seq DESC LIMIT ?`
	namedSeqs = `SELECT seq FROM job INDEXED BY job_name
		WHERE name = ? AND owner = ? AND state = ? AND seq >= ? AND seq < ? ORDER BY seq DESC LIMIT ?`
)

// Get returns the record of the job with this id. An unknown id is of kind
// NotFound.
func (s *Store) Get(ctx context.Context, id string) (joblet.Job, error) {
	var job joblet.Job
	err := s.read(ctx, "read job records", func(c *sqlite.Conn) error {
		found, err := jobs(c, jobByID, id)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return notFound(id)
		}
		job = found[0]
		return nil
	})
	return job, err
}

// shortIDLen is the length of what joblet.ShortID gives.
const shortIDLen = 8

// maxCandidates is how many jobs the error for an ambiguous reference lists.
const maxCandidates = 5

// Resolve returns the one job that ref means:
//
//  1. the job with that id;
//  2. the job whose id starts with ref, if ref is as long as the short ids
//     that tables show (so that nobody can shadow another's job by a name);
//  3. the job with that name: of several the newest that has not ended, else
//     the newest;
//  4. the job whose id starts with ref, however short.
//
// A prefix of several ids is of kind InvalidArgument and lists some of them;
// a reference to nothing is of kind NotFound.
func (s *Store) Resolve(ctx context.Context, ref string) (joblet.Job, error) {
	if ref == "" {
		return joblet.Job{}, joblet.Errorf(joblet.InvalidArgument, "no job given: name one by its id, the start of its id, or its name")
	}
	if len(ref) > joblet.MaxNameLen {
		return joblet.Job{}, notFound(ref)
	}
	var job joblet.Job
	err := s.read(ctx, "look up job", func(c *sqlite.Conn) error {
		prefix := strings.ToLower(ref)
		lookups := []func() ([]joblet.Job, error){
			func() ([]joblet.Job, error) {
				return list(ctx, c, joblet.Filter{Name: ref, States: unfinished, Limit: 1})
			},
			func() ([]joblet.Job, error) { return list(ctx, c, joblet.Filter{Name: ref, Limit: 1}) },
		}
		if strings.Trim(prefix, "0123456789abcdef-") == "" {
			// Every character of an id sorts before "g".
			byPrefix := func() ([]joblet.Job, error) {
				return jobs(c, jobsByPrefix, prefix, prefix+"g", int64(maxCandidates+1))
			}
			if len(prefix) >= shortIDLen {
				lookups = slices.Insert(lookups, 0, byPrefix)
			} else {
				lookups = append(lookups, byPrefix)
			}
		}
		for _, lookup := range lookups {
			found, err := lookup()
			if err != nil {
				return err
			}
			switch len(found) {
			case 0:
			case 1:
				job = found[0]
				return nil
			default:
				return ambiguous(ref, found)
			}
		}
		return notFound(ref)
	})
	return job, err
}

func notFound(ref string) error {
	return joblet.Errorf(joblet.NotFound, "no job %s: see `rnx job list`", printable(ref, 80))
}

func ambiguous(ref string, found []joblet.Job) error {
	var b strings.Builder
	for _, job := range found[:min(len(found), maxCandidates)] {
		id := joblet.ShortID(job.ID)
		if len(ref) >= shortIDLen {
			id = job.ID // the short one would not tell them apart
		}
		fmt.Fprintf(&b, "\n  %s  %-12s  %s", id, job.State, printable(job.Spec.CommandLine(), 60))
	}
	if len(found) > maxCandidates {
		b.WriteString("\n  and more")
	}
	return joblet.Errorf(joblet.InvalidArgument, "several jobs' ids start with %s, give more of it:%s", ref, b.String())
}

// printable returns s on one line, cut to at most width characters.
func printable(s string, width int) string {
	var b strings.Builder
	for _, r := range s {
		if width--; width < 0 {
			return b.String() + "…"
		}
		if !unicode.IsPrint(r) {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// List returns the jobs that f passes, newest first by their time of
// creation, and of equal times the later recorded first. An f.Before that is
// no job's id is of kind NotFound.
func (s *Store) List(ctx context.Context, f joblet.Filter) ([]joblet.Job, error) {
	if f.Limit < 0 {
		return nil, joblet.Errorf(joblet.InvalidArgument, "list jobs: limit %d is negative", f.Limit)
	}
	var found []joblet.Job
	err := s.read(ctx, "list jobs", func(c *sqlite.Conn) error {
		var err error
		found, err = list(ctx, c, f)
		return err
	})
	return found, err
}

var unfinished = slices.DeleteFunc(joblet.States(), joblet.State.Final)

// Unfinished returns the jobs that have not ended, newest first.
func (s *Store) Unfinished(ctx context.Context) ([]joblet.Job, error) {
	return s.List(ctx, joblet.Filter{States: unfinished})
}

// list answers f from ranges of an index, each in the order of the list: one
// for every owner and state asked for. A filter thus reads no more entries of
// each range than the list may get, however many jobs there are.
func list(ctx context.Context, c *sqlite.Conn, f joblet.Filter) (found []joblet.Job, err error) {
	// One snapshot: a job that changes state in between would be seen in two
	// ranges or in none.
	if err := run(c, "BEGIN"); err != nil {
		return nil, err
	}
	c.SetInterrupt(ctx.Done())
	defer func() {
		c.SetInterrupt(nil)
		if endErr := run(c, "ROLLBACK"); err == nil {
			err = endErr
		}
	}()

	oldest, end, limit := int64(0), int64(maxSeq), int64(-1)
	if f.Since.After(time.Unix(0, maxSeq)) {
		return nil, nil
	} else if f.Since.After(time.Unix(0, 0)) {
		oldest = f.Since.UnixNano()
	}
	if f.Limit > 0 {
		limit = int64(f.Limit)
	}
	if f.Before != "" {
		before, err := column(c, nil, (*sqlite.Stmt).ColumnInt64, seqByID, f.Before)
		if err != nil {
			return nil, err
		}
		if len(before) == 0 {
			return nil, notFound(f.Before)
		}
		end = before[0]
	}

	f.States = slices.Compact(slices.Sorted(slices.Values(f.States)))
	if len(f.States) == 0 {
		f.States = joblet.States()
	}
	if f.Name == "" && f.Owner == "" && slices.Equal(f.States, joblet.States()) {
		found, err = jobs(c, newestJobs, oldest, end, limit)
	} else {
		found, err = merged(c, f, oldest, end, limit)
	}
	// seq may be some nanoseconds ahead of the time of creation.
	tooOld := func(j joblet.Job) bool { return j.Created.Before(f.Since) }
	for len(found) > 0 && tooOld(found[len(found)-1]) {
		found = found[:len(found)-1]
	}
	return found, err
}

// merged is list for the jobs with oldest <= seq < end, at most limit of them
// unless it is negative.
func merged(c *sqlite.Conn, f joblet.Filter, oldest, end, limit int64) ([]joblet.Job, error) {
	owners := []string{f.Owner}
	if f.Owner == "" {
		var err error
		if owners, err = allOwners(c, f.Name); err != nil {
			return nil, err
		}
	}
	var all []int64
	for _, owner := range owners {
		for _, state := range f.States {
			var err error
			if f.Name == "" {
				all, err = column(c, all, (*sqlite.Stmt).ColumnInt64, seqs, owner, state.String(), oldest, end, limit)
			} else {
				all, err = column(c, all, (*sqlite.Stmt).ColumnInt64, namedSeqs, f.Name, owner, state.String(), oldest, end, limit)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(all, func(a, b int64) int { return cmp.Compare(b, a) })
	if limit >= 0 {
		all = all[:min(int64(len(all)), limit)]
	}
	found := make([]joblet.Job, 0, len(all))
	for _, seq := range all {
		one, err := jobs(c, jobBySeq, seq)
		if err != nil {
			return nil, err
		}
		found = append(found, one...)
	}
	return found, nil
}

// allOwners returns every owner of a job, or of a job with this name, by
// jumping in an index from one to the next.
func allOwners(c *sqlite.Conn, name string) ([]string, error) {
	var all []string
	for from := ""; ; from = all[len(all)-1] + "\x00" {
		n := len(all)
		var err error
		if name == "" {
			all, err = column(c, all, (*sqlite.Stmt).ColumnText, ownersFrom, from)
		} else {
			all, err = column(c, all, (*sqlite.Stmt).ColumnText, namedOwnersFrom, name, from)
		}
		if err != nil || len(all) == n {
			return all, err
		}
	}
}

// jobs returns what a query that starts with selectJob finds.
func jobs(c *sqlite.Conn, text string, args ...any) ([]joblet.Job, error) {
	stmt, err := c.Prepare(text)
	if err != nil {
		return nil, err
	}
	var found []joblet.Job
	var buf []byte
	err = query(stmt, func(row *sqlite.Stmt) error {
		job := joblet.Job{
			ID:       row.ColumnText(0),
			Owner:    row.ColumnText(2),
			Created:  columnTime(row, 3),
			Started:  columnTime(row, 4),
			Ended:    columnTime(row, 5),
			Reason:   row.ColumnText(8),
			PID:      row.ColumnInt(9),
			IDBase:   uint32(row.ColumnInt64(10)),
			LogBytes: row.ColumnInt64(11),
		}
		if !row.ColumnIsNull(6) {
			job.Exit = &joblet.Exit{Code: row.ColumnInt(6), Signal: row.ColumnInt(7)}
		}
		var err error
		if job.State, err = joblet.ParseState(row.ColumnText(1)); err != nil {
			return fmt.Errorf("record of job %s: unknown state %q", job.ID, row.ColumnText(1))
		}
		buf = slices.Grow(buf[:0], row.ColumnLen(12))
		buf = buf[:row.ColumnBytes(12, buf[:cap(buf)])]
		if err := json.Unmarshal(buf, &job.Spec); err != nil {
			return fmt.Errorf("record of job %s: %w", job.ID, err)
		}
		found = append(found, job)
		return nil
	}, args...)
	return found, err
}

// column appends the first column of a query's rows to all.
func column[T any](c *sqlite.Conn, all []T, get func(*sqlite.Stmt, int) T, text string, args ...any) ([]T, error) {
	stmt, err := c.Prepare(text)
	if err != nil {
		return nil, err
	}
	err = query(stmt, func(row *sqlite.Stmt) error {
		all = append(all, get(row, 0))
		return nil
	}, args...)
	return all, err
}

// query runs stmt with args, which are strings and int64s, and calls row on
// each of its rows. It leaves the statement reset, and so no read transaction
// open.
func query(stmt *sqlite.Stmt, row func(*sqlite.Stmt) error, args ...any) error {
	for i, arg := range args {
		switch arg := arg.(type) {
		case string:
			stmt.BindText(i+1, arg)
		case int64:
			stmt.BindInt64(i+1, arg)
		default:
			panic(fmt.Sprintf("store: query argument of type %T", arg))
		}
	}
	for {
		more, err := stmt.Step()
		if err != nil {
			return err // Step has reset it
		}
		if !more {
			return stmt.Reset()
		}
		if err := row(stmt); err != nil {
			_ = stmt.Reset()
			return err
		}
	}
}

func run(c *sqlite.Conn, text string) error {
	stmt, err := c.Prepare(text)
	if err != nil {
		return err
	}
	return step(stmt)
}

func columnTime(row *sqlite.Stmt, col int) time.Time {
	if row.ColumnIsNull(col) {
		return time.Time{}
	}
	return time.Unix(0, row.ColumnInt64(col)).UTC()
}
