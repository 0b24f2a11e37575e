package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/joblet/joblet"
)

const maxSeq = math.MaxInt64 // behind every row

// Get returns the record of the job with this id. An unknown id is of kind
// NotFound.
func (s *Store) Get(ctx context.Context, id string) (Record, error) {
	if id == "" {
		return Record{}, errNoRef
	}
	return s.one(ctx, id, recordByID, id)
}

// Unknown returns those of the sorted ids that have no record. It takes about two
// seconds for a million records.
func (s *Store) Unknown(ctx context.Context, ids []string) (unknown []string, err error) {
	err = s.read(ctx, "cannot compare the job records", func(c *sqlite.Conn) error {
		c.SetInterrupt(ctx.Done())
		defer c.SetInterrupt(nil)
		stmt, err := c.Prepare(allIDs)
		if err != nil {
			return err
		}
		unknown = nil
		rest := ids
		err = query(stmt, func(row *sqlite.Stmt) error {
			id := row.ColumnText(0)
			for len(rest) > 0 && rest[0] < id {
				unknown, rest = append(unknown, rest[0]), rest[1:]
			}
			for len(rest) > 0 && rest[0] == id {
				rest = rest[1:]
			}
			return nil
		})
		unknown = append(unknown, rest...)
		return err
	})
	return unknown, err
}

// ByKey returns the job that this owner submitted with this idempotency key.
// An unknown key is of kind NotFound.
func (s *Store) ByKey(ctx context.Context, owner, key string) (Record, error) {
	return s.one(ctx, "with the idempotency key "+key, recordByKey, owner, key)
}

// one returns the only record that a query finds; what names it if there is
// none.
func (s *Store) one(ctx context.Context, what, text string, args ...any) (Record, error) {
	var found []Record
	err := s.read(ctx, "cannot read the job records", func(c *sqlite.Conn) error {
		if err := records(c, appendTo(&found), text, args...); err != nil {
			return err
		}
		if len(found) == 0 {
			return notFound(what)
		}
		return nil
	})
	if err != nil {
		return Record{}, err
	}
	return found[0], nil
}

// shortIDLen is the length of what joblet.ShortID gives.
const shortIDLen = 8

// maxCandidates is how many jobs the error for an ambiguous reference lists.
const maxCandidates = 5

// Resolve returns the one job that ref names for owner:
//
//  1. the job with that id, or whose id starts with ref, if ref is as long as
//     the short ids that tables show;
//  2. the owner's own job with that name: of several the newest that has not
//     ended, else the newest;
//  3. the job whose id starts with ref, however short;
//  4. the job with that name of the one other owner who has any, chosen in the
//     same way, unless ref has the form of an id and at least the length of a
//     short one.
//
// So nobody gets at what another means by an id or a name of his own, whatever he
// calls his jobs; not even when the job with that id is gone.
//
// A prefix of several ids, or a name that several others have, is of kind
// InvalidArgument and lists some of the jobs; a reference to nothing is of kind
// NotFound.
func (s *Store) Resolve(ctx context.Context, ref, owner string) (Record, error) {
	if ref == "" {
		return Record{}, errNoRef
	}
	if len(ref) > joblet.MaxNameLen {
		return Record{}, notFound(ref)
	}
	var rec Record
	err := s.read(ctx, "cannot look up the job", func(c *sqlite.Conn) error {
		return snapshot(ctx, c, func() (err error) {
			rec, err = resolve(c, ref, owner)
			return err
		})
	})
	return rec, err
}

func resolve(c *sqlite.Conn, ref, owner string) (Record, error) {
	prefix := strings.ToLower(ref)
	byPrefix := func() (found []Record, err error) {
		// Every character of an id sorts before "g".
		err = records(c, appendTo(&found), recordsByPrefix, prefix, prefix+"g", int64(maxCandidates+1))
		if len(found) > 1 {
			err = severalIDs(ref, owner, found)
		}
		return found, err
	}
	own := func() ([]Record, error) { return newestOf(c, ref, owner) }
	others := func() ([]Record, error) {
		found, err := newestOfEach(c, ref)
		if len(found) > 1 {
			err = severalOwners(ref, found)
		}
		return found, err
	}
	var lookups []func() ([]Record, error)
	switch isHex := strings.Trim(prefix, "0123456789abcdef-") == ""; {
	case !isHex:
		lookups = append(lookups, own, others)
	case len(prefix) >= shortIDLen:
		lookups = append(lookups, byPrefix, own)
		if !idForm(prefix) {
			lookups = append(lookups, others)
		}
	default:
		lookups = append(lookups, own, byPrefix, others)
	}
	for _, lookup := range lookups {
		found, err := lookup()
		if err != nil {
			return Record{}, err
		}
		if len(found) > 0 {
			return found[0], nil
		}
	}
	return Record{}, notFound(ref)
}

// idForm reports whether ref, of hexadecimal digits and hyphens, may be part of an id,
// with its hyphens or without.
func idForm(ref string) bool {
	for i, c := range ref {
		if hyphen := i == 8 || i == 13 || i == 18 || i == 23; hyphen != (c == '-') {
			return !strings.Contains(ref, "-")
		}
	}
	return true
}

// newestOf returns the owner's newest job with this name that has not ended, else
// the newest, or none.
func newestOf(c *sqlite.Conn, name, owner string) (found []Record, err error) {
	if owner == "" { // to a filter that is everybody
		return nil, nil
	}
	for _, states := range [][]joblet.State{unfinished, joblet.States()} {
		seqs, err := merged(c, joblet.Filter{Name: name, Owner: owner, States: states}, seqRange{end: maxSeq, endedBefore: maxSeq, limit: 1})
		if err != nil {
			return nil, err
		}
		if len(seqs) > 0 {
			err = records(c, appendTo(&found), recordBySeq, seqs[0])
			return found, err
		}
	}
	return nil, nil
}

// newestOfEach returns newestOf each owner, of more than maxCandidates but one
// more.
func newestOfEach(c *sqlite.Conn, name string) (found []Record, err error) {
	owners, err := sources(joblet.Filter{Name: name})[0].owners(c, maxCandidates+1)
	if err != nil {
		return nil, err
	}
	for _, owner := range owners {
		one, err := newestOf(c, name, owner)
		if err != nil {
			return nil, err
		}
		found = append(found, one...)
	}
	return found, nil
}

var errNoRef = joblet.Errorf(joblet.InvalidArgument, "no job given: name a job by its id, the start of its id, or its name")

func notFound(ref string) error {
	return joblet.Errorf(joblet.NotFound, "no job %s: see rnx job list", joblet.PrintableStart(ref, 80))
}

// severalIDs shows the commands of the owner's jobs, and of others whose they are:
// not everybody may see what those do.
func severalIDs(ref, owner string, found []Record) error {
	return joblet.Errorf(joblet.InvalidArgument, "job %s is ambiguous: use more characters of the id: %s", ref, candidates(found, func(r Record) string {
		id := joblet.ShortID(r.ID)
		if len(ref) >= shortIDLen {
			id = r.ID // the short one would not tell them apart
		}
		what := joblet.PrintableStart(r.Owner, 80)
		if r.Owner == owner {
			what = joblet.PrintableStart(r.Spec.CommandLine(), 60)
		}
		return fmt.Sprintf("%s (%s, %s)", id, r.State, what)
	}))
}

func severalOwners(ref string, found []Record) error {
	return joblet.Errorf(joblet.InvalidArgument, "job %s is ambiguous, as several other owners have one: use its id: %s", joblet.PrintableStart(ref, 80), candidates(found, func(r Record) string {
		return fmt.Sprintf("%s (%s, %s)", joblet.ShortID(r.ID), r.State, joblet.PrintableStart(r.Owner, 80))
	}))
}

// candidates lists the first of several jobs.
func candidates(found []Record, show func(Record) string) string {
	var all []string
	for _, r := range found[:min(len(found), maxCandidates)] {
		all = append(all, show(r))
	}
	text := strings.Join(all, ", ")
	if len(found) > maxCandidates {
		text += " and more"
	}
	return text
}

// List returns the jobs that f passes, newest first by their time of creation, and of
// equal times the later recorded first. If f.Before is not the id of a job, the error
// is of kind NotFound.
func (s *Store) List(ctx context.Context, f joblet.Filter) ([]joblet.Job, error) {
	if err := validList(f); err != nil {
		return nil, err
	}
	var found []joblet.Job
	err := s.read(ctx, "cannot list jobs", func(c *sqlite.Conn) error {
		return list(ctx, c, f, jobBySeq, appendJob(&found))
	})
	return found, err
}

func validList(f joblet.Filter) error {
	if f.Limit < 0 {
		return joblet.Errorf(joblet.InvalidArgument, "cannot list jobs: limit %d: must not be negative", f.Limit)
	}
	if len(f.Labels) > joblet.MaxLabels {
		return joblet.Errorf(joblet.InvalidArgument, "cannot list jobs: %d labels: at most %d are possible", len(f.Labels), joblet.MaxLabels)
	}
	return nil
}

// errEnough ends a list early.
var errEnough = errors.New("enough")

// ListFrom is List for a list in parts: it returns no more jobs than f.Limit, and
// none behind the one with which they have come to size bytes on the disk. The next
// part begins at next, which is 0 at the end; the first one at 0. It does not matter
// what has become of the jobs of a part meanwhile.
func (s *Store) ListFrom(ctx context.Context, f joblet.Filter, from int64, size int) (found []joblet.Job, next int64, err error) {
	if err := validList(f); err != nil {
		return nil, 0, err
	}
	err = s.read(ctx, "cannot list jobs", func(c *sqlite.Conn) error {
		err := listFrom(ctx, c, f, from, jobBySeq, func(r entry) error {
			found = append(found, r.Job)
			if size -= r.size; size <= 0 || len(found) == f.Limit {
				next = r.seq
				return errEnough
			}
			return nil
		})
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	})
	return found, next, err
}

var unfinished = slices.DeleteFunc(joblet.States(), joblet.State.Final)

// Unfinished returns the jobs that have not ended, oldest first.
func (s *Store) Unfinished(ctx context.Context) ([]Record, error) {
	var found []Record
	err := s.read(ctx, "cannot list jobs", func(c *sqlite.Conn) error {
		return list(ctx, c, joblet.Filter{States: unfinished}, recordBySeq, appendTo(&found))
	})
	slices.Reverse(found)
	return found, err
}

// OldestEnded returns at most limit of the jobs that have ended, by the time
// of their end, oldest first; 0 means no limit.
func (s *Store) OldestEnded(ctx context.Context, limit int) ([]joblet.Job, error) {
	if limit < 0 {
		return nil, joblet.Errorf(joblet.InvalidArgument, "cannot list ended jobs: limit %d: must not be negative", limit)
	}
	var found []joblet.Job
	err := s.read(ctx, "cannot list ended jobs", func(c *sqlite.Conn) error {
		c.SetInterrupt(ctx.Done())
		defer c.SetInterrupt(nil)
		return records(c, appendJob(&found), oldestEnded, sqlLimit(limit))
	})
	return found, err
}

// DiskBytes returns what the directories of all ended jobs take on disk. It
// reads an entry of an index for each of them: a fraction of a second for a
// million.
func (s *Store) DiskBytes(ctx context.Context) (int64, error) {
	var sum int64
	err := s.read(ctx, "cannot add up the job records", func(c *sqlite.Conn) error {
		c.SetInterrupt(ctx.Done())
		defer c.SetInterrupt(nil)
		sums, err := column(c, nil, (*sqlite.Stmt).ColumnInt64, diskBytes)
		if err == nil {
			sum = sums[0]
		}
		return err
	})
	return sum, err
}

// OwnerBytes returns what the directories of each owner's ended jobs take on disk.
// It reads all records.
func (s *Store) OwnerBytes(ctx context.Context) (map[string]int64, error) {
	all := map[string]int64{}
	err := s.read(ctx, "cannot add up the job records", func(c *sqlite.Conn) error {
		c.SetInterrupt(ctx.Done())
		defer c.SetInterrupt(nil)
		stmt, err := c.Prepare(ownerBytes)
		if err != nil {
			return err
		}
		return query(stmt, func(row *sqlite.Stmt) error {
			all[row.ColumnText(0)] = row.ColumnInt64(1)
			return nil
		})
	})
	return all, err
}

// sqlLimit is a limit as SQL has it: there a negative one is none.
func sqlLimit(limit int) int64 {
	if limit == 0 {
		return -1
	}
	return int64(limit)
}

// snapshot runs fn in a read transaction, so that it sees one state of the
// records, and interrupts it when ctx ends.
func snapshot(ctx context.Context, c *sqlite.Conn, fn func() error) (err error) {
	if err := run(c, "BEGIN"); err != nil {
		return err
	}
	c.SetInterrupt(ctx.Done())
	defer func() {
		c.SetInterrupt(nil)
		if endErr := run(c, "ROLLBACK"); err == nil {
			err = endErr
		}
	}()
	return fn()
}

// list calls add on what f passes, newest first. bySeq is the query for one
// row. In one snapshot: a job that changes state in between would be seen in
// two ranges or in none.
func list(ctx context.Context, c *sqlite.Conn, f joblet.Filter, bySeq string, add func(entry) error) error {
	return listFrom(ctx, c, f, 0, bySeq, add)
}

// listFrom is list for what comes behind the row from, if that is not 0.
func listFrom(ctx context.Context, c *sqlite.Conn, f joblet.Filter, from int64, bySeq string, add func(entry) error) error {
	r := seqRange{oldest: 0, end: maxSeq, endedBefore: maxSeq, limit: sqlLimit(f.Limit)}
	if f.Since.After(lastTime) {
		return nil
	} else if f.Since.After(firstTime) {
		r.oldest = f.Since.UnixNano()
	}
	f.States = slices.Compact(slices.Sorted(slices.Values(f.States)))
	if len(f.States) == 0 {
		f.States = joblet.States()
	}
	all := f.Name == "" && f.Owner == "" && f.Parent == "" && len(f.Labels) == 0 && slices.Equal(f.States, joblet.States())
	if !f.EndedBefore.IsZero() {
		if f.EndedBefore.Before(firstTime) {
			return nil
		}
		all, r.ended = false, true
		f.States = slices.DeleteFunc(f.States, func(s joblet.State) bool { return !s.Final() })
		if !f.EndedBefore.After(lastTime) {
			r.endedBefore = f.EndedBefore.UnixNano()
		}
	}
	return snapshot(ctx, c, func() error {
		if from > 0 {
			r.end = from
		} else if f.Before != "" {
			before, err := column(c, nil, (*sqlite.Stmt).ColumnInt64, seqByID, f.Before)
			if err != nil {
				return err
			}
			if len(before) == 0 {
				return notFound(f.Before)
			}
			r.end = before[0]
		}
		// seq may be some nanoseconds ahead of the time of creation.
		addYoung := func(found entry) error {
			if found.Created.Before(f.Since) {
				return nil
			}
			return add(found)
		}
		if all {
			return records(c, addYoung, newestJobs, r.oldest, r.end, r.limit)
		}
		if r.ended {
			// What ended before a moment was created before it, unless the clock
			// was set back. seq is ahead of that by less than a second: it moves
			// on by one for each job of the same instant.
			last, err := column(c, nil, (*sqlite.Stmt).ColumnInt64, lastBackwards, r.endedBefore)
			if err != nil {
				return err
			}
			created := min(r.endedBefore, maxSeq-int64(time.Second)) + int64(time.Second)
			r.end = min(r.end, max(created, last[0]+1))
		}
		found, err := merged(c, f, r)
		if err != nil {
			return err
		}
		for _, seq := range found {
			if err := records(c, addYoung, bySeq, seq); err != nil {
				return err
			}
		}
		return nil
	})
}

// seqRange says which part of an index's range is wanted.
type seqRange struct {
	oldest, end int64 // oldest <= seq < end
	ended       bool  // only jobs that ended before endedBefore
	endedBefore int64
	limit       int64 // at most so many, the newest; negative: all
}

// source is an index whose entries are some columns that a filter fixes, then
// owner, state, seq and ended: one range, in the order of lists, for each
// owner and state. A filter thus reads no more entries of a range than the
// list may get, however many jobs there are.
type source struct {
	from  string // table and index
	where string // the columns that are fixed
	args  []any  // their values
}

// everyJob is the source of filters that fix neither name nor parent nor
// label.
var everyJob = source{from: `job INDEXED BY job_owner`}

// sources returns the sources that f narrows a list to: a job must be in all.
func sources(f joblet.Filter) []source {
	var all []source
	for i, m := range f.Labels {
		switch {
		case slices.Contains(f.Labels[:i], m):
		case m.Any:
			all = append(all, source{labelByName, labelNameIs, []any{m.Name}})
		default:
			all = append(all, source{labelByValue, labelNameIs + labelValueIs, []any{m.Name, m.Value}})
		}
	}
	if f.Parent != "" {
		all = append(all, source{`job INDEXED BY job_parent`, `parent = ? AND `, []any{f.Parent}})
	}
	if f.Name != "" {
		all = append(all, source{`job INDEXED BY job_name`, `name = ? AND `, []any{f.Name}})
	}
	if len(all) == 0 {
		all = append(all, everyJob)
	}
	return all
}

// nextOwner is the query for the first owner in s from one on.
func (s source) nextOwner() string {
	return `SELECT owner FROM ` + s.from + ` WHERE ` + s.where + `owner >= ? ORDER BY owner LIMIT 1`
}

// seqs is the query for a part of the range of an owner and a state.
func (s source) seqs() string {
	return `SELECT seq FROM ` + s.from + ` WHERE ` + s.where + `owner = ? AND state = ? AND seq >= ? AND seq < ?
		AND (? OR ended < ?) ORDER BY seq DESC LIMIT ?`
}

// owners returns the owners of jobs in s, at most limit of them, by jumping from
// one to the next.
func (s source) owners(c *sqlite.Conn, limit int) (all []string, err error) {
	for from := ""; len(all) < limit; from = all[len(all)-1] + "\x00" {
		n := len(all)
		all, err = column(c, all, (*sqlite.Stmt).ColumnText, s.nextOwner(), append(slices.Clone(s.args), from)...)
		if err != nil || len(all) == n {
			break
		}
	}
	return all, err
}

// read appends the row numbers in r of the jobs in s with this owner and state
// to buf, newest first.
func (s source) read(c *sqlite.Conn, buf []int64, owner string, state joblet.State, r seqRange) ([]int64, error) {
	var whenever int64
	if !r.ended {
		whenever = 1
	}
	args := append(slices.Clone(s.args), owner, state.String(), r.oldest, r.end, whenever, r.endedBefore, r.limit)
	return column(c, buf, (*sqlite.Stmt).ColumnInt64, s.seqs(), args...)
}

// merged returns the row numbers in r of the jobs that f passes, newest first.
func merged(c *sqlite.Conn, f joblet.Filter, r seqRange) (all []int64, err error) {
	from := sources(f)
	owners := []string{f.Owner}
	if f.Owner == "" {
		if owners, err = from[0].owners(c, math.MaxInt); err != nil {
			return nil, err
		}
	}
	newestFirst := func(a, b int64) int { return cmp.Compare(b, a) }
	for _, owner := range owners {
		for _, state := range f.States {
			n := len(all)
			if len(from) == 1 {
				all, err = from[0].read(c, all, owner, state, r)
			} else {
				all, err = intersection(c, all, from, owner, state, r)
			}
			if err != nil {
				return nil, err
			}
			if r.limit >= 0 && len(all) > n && int64(len(all)) >= r.limit {
				slices.SortFunc(all, newestFirst)
				all = all[:r.limit]
				r.oldest = all[r.limit-1] + 1 // what is older cannot get into the list any more
			}
		}
	}
	slices.SortFunc(all, newestFirst)
	return all, nil
}

// intersection appends the row numbers in r of the jobs with this owner and state that
// are in all sources, newest first: each source jumps to the newest job that is not
// newer than where the others are. That takes no more jumps than the smallest source
// has entries.
func intersection(c *sqlite.Conn, all []int64, from []source, owner string, state joblet.State, r seqRange) ([]int64, error) {
	cursors := make([]cursor, len(from))
	for i, src := range from {
		cursors[i] = cursor{source: src, owner: owner, state: state, r: r}
	}
	at, agree, left := r.end-1, 0, r.limit
	for i := 0; left != 0; i = (i + 1) % len(cursors) {
		seq, err := cursors[i].seek(c, at)
		if err != nil || seq < 0 {
			return all, err
		}
		if seq < at {
			at, agree = seq, 0
		}
		if agree++; agree == len(cursors) {
			all = append(all, at)
			at, agree = at-1, 0
			left--
		}
	}
	return all, nil
}

// A cursor reads so many entries at once: few after a jump over nearly all that
// it had, because the next one may be as far, many if enough were needed.
const minAhead, maxAhead = 4, 1024

// cursor goes down a source's range.
type cursor struct {
	source
	owner string
	state joblet.State
	r     seqRange
	ahead []int64 // read, not yet passed
	buf   []int64 // ahead's memory
	used  int     // seeks that buf has answered
	end   bool    // ahead is the rest of the range
}

// seek returns the newest entry that is not newer than at, or -1. at never
// grows.
func (cur *cursor) seek(c *sqlite.Conn, at int64) (int64, error) {
	i, _ := slices.BinarySearchFunc(cur.ahead, at, func(seq, at int64) int { return cmp.Compare(at, seq) })
	cur.ahead = cur.ahead[i:]
	if len(cur.ahead) == 0 && !cur.end {
		n := int64(minAhead)
		if cur.used > len(cur.buf)/8 { // a jump costs as much as ten entries or so
			n = min(4*int64(len(cur.buf)), maxAhead)
		}
		cur.r.end, cur.r.limit = at+1, n
		var err error
		if cur.buf, err = cur.read(c, cur.buf[:0], cur.owner, cur.state, cur.r); err != nil {
			return -1, err
		}
		cur.ahead, cur.used, cur.end = cur.buf, 0, int64(len(cur.buf)) < n
	}
	if len(cur.ahead) == 0 {
		return -1, nil
	}
	cur.used++
	return cur.ahead[0], nil
}

// appendTo returns a function that appends to all.
func appendTo(all *[]Record) func(entry) error {
	return func(r entry) error {
		*all = append(*all, r.Record)
		return nil
	}
}

func appendJob(all *[]joblet.Job) func(entry) error {
	return func(r entry) error {
		*all = append(*all, r.Job)
		return nil
	}
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
