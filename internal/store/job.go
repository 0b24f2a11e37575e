package store

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/joblet/joblet"
)

// This file has the SQL of the table "job". Its columns have names here: what a query
// reads is a constant's, and what a change writes is in changing or fixed.

// The columns of a query that begins with selectJob or selectRecord.
const (
	colID = iota
	colState
	colOwner
	colCreated
	colStarted
	colEnded
	colExitCode
	colExitSignal
	colReason
	colPID
	colIDBase
	colLogBytes
	colSpec
	colScheduled
	colParent
	colAttempt
	colPast
	colFailure
	colWorkBytes
	colBox
	colDiskBytes
	colLimits
	colUsage
	colOutOfMemory
	colDenied
	colSeq
	colLeases
	colSealed
)

var columnNames = [...]string{
	colID:          "id",
	colState:       "state",
	colOwner:       "owner",
	colCreated:     "created",
	colStarted:     "started",
	colEnded:       "ended",
	colExitCode:    "exit_code",
	colExitSignal:  "exit_signal",
	colReason:      "reason",
	colPID:         "pid",
	colIDBase:      "id_base",
	colLogBytes:    "log_bytes",
	colSpec:        "spec",
	colScheduled:   "scheduled",
	colParent:      "parent",
	colAttempt:     "attempt",
	colPast:        "past",
	colFailure:     "failure",
	colWorkBytes:   "work_bytes",
	colBox:         "box",
	colDiskBytes:   "disk_bytes",
	colLimits:      "limits",
	colUsage:       "usage",
	colOutOfMemory: "out_of_memory",
	colDenied:      "denied",
	colSeq:         "seq",
	colLeases:      "leases",
	colSealed:      "sealed",
}

// readColumns lists the columns of a query, with what it has for the secrets.
func readColumns(sealed string) string {
	names := slices.Clone(columnNames[:])
	names[colSealed] = sealed
	return strings.Join(names, ", ")
}

var (
	selectJob    = `SELECT ` + readColumns(`NULL`) + ` FROM job `
	selectRecord = `SELECT ` + readColumns(`sealed`) + ` FROM job `

	recordByID      = selectRecord + `WHERE id = ?`
	recordBySeq     = selectRecord + `WHERE seq = ?`
	recordsByPrefix = selectRecord + `WHERE id >= ? AND id < ? ORDER BY id LIMIT ?`
	jobBySeq        = selectJob + `WHERE seq = ?`
	newestJobs      = selectJob + `WHERE seq >= ? AND seq < ? ORDER BY seq DESC LIMIT ?`

	takenID      = `SELECT id FROM job WHERE id = ?`
	successorSeq = `SELECT max(seq) + 1 FROM job WHERE seq BETWEEN ?1 AND ?1 + 999`
	deleteJob    = `DELETE FROM job WHERE id = ?`

	allIDs  = `SELECT id FROM job ORDER BY id`
	seqByID = `SELECT seq FROM job WHERE id = ?`

	// The indexes are named so that no statistics, or their absence, can lead
	// the planner elsewhere.
	recordByKey = selectRecord + `INDEXED BY job_key WHERE owner = ? AND idem_key = ?`

	// As the partial index job_ended has it, letter by letter.
	isFinal     = `state IN ('COMPLETED', 'FAILED', 'STOPPED', 'CANCELED', 'TIMEOUT', 'LOST')`
	oldestEnded = selectJob + `INDEXED BY job_ended WHERE ` + isFinal + ` ORDER BY ended LIMIT ?`
	ownerBytes  = `SELECT owner, sum(disk_bytes) FROM job WHERE ` + isFinal + ` GROUP BY owner`
	diskBytes   = `SELECT coalesce(sum(disk_bytes), 0) FROM job INDEXED BY job_ended WHERE ` + isFinal

	lastBackwards = `SELECT coalesce(max(seq), 0) FROM job INDEXED BY job_backwards WHERE ended < created AND ended < ?`
)

// written is a column that a change writes, and how its value is bound to a parameter.
type written struct {
	name string
	bind func(stmt *sqlite.Stmt, param int, ch *change)
}

// changing are the columns that say what becomes of a job.
var changing = []written{
	{"state", func(s *sqlite.Stmt, p int, ch *change) { s.BindText(p, ch.rec.State.String()) }},
	{"started", func(s *sqlite.Stmt, p int, ch *change) { bindTime(s, p, ch.rec.Started) }},
	{"ended", func(s *sqlite.Stmt, p int, ch *change) { bindTime(s, p, ch.rec.Ended) }},
	{"exit_code", func(s *sqlite.Stmt, p int, ch *change) {
		if s.BindNull(p); ch.rec.Exit != nil {
			s.BindInt64(p, int64(ch.rec.Exit.Code))
		}
	}},
	{"exit_signal", func(s *sqlite.Stmt, p int, ch *change) {
		if s.BindNull(p); ch.rec.Exit != nil {
			s.BindInt64(p, int64(ch.rec.Exit.Signal))
		}
	}},
	{"reason", func(s *sqlite.Stmt, p int, ch *change) { s.BindText(p, ch.rec.Reason) }},
	{"pid", func(s *sqlite.Stmt, p int, ch *change) { s.BindInt64(p, int64(ch.rec.PID)) }},
	{"id_base", func(s *sqlite.Stmt, p int, ch *change) { s.BindInt64(p, int64(ch.rec.IDBase)) }},
	{"log_bytes", func(s *sqlite.Stmt, p int, ch *change) { s.BindInt64(p, ch.rec.LogBytes) }},
	{"scheduled", func(s *sqlite.Stmt, p int, ch *change) { bindTime(s, p, ch.rec.Scheduled) }},
	{"attempt", func(s *sqlite.Stmt, p int, ch *change) { s.BindInt64(p, int64(ch.rec.Attempt)) }},
	{"past", func(s *sqlite.Stmt, p int, ch *change) { s.BindText(p, ch.past) }},
	{"failure", func(s *sqlite.Stmt, p int, ch *change) { s.BindInt64(p, int64(ch.rec.Failure)) }},
	{"work_bytes", func(s *sqlite.Stmt, p int, ch *change) { s.BindInt64(p, ch.rec.WorkBytes) }},
	{"box", func(s *sqlite.Stmt, p int, ch *change) { s.BindText(p, ch.rec.Box) }},
	{"sealed", func(s *sqlite.Stmt, p int, ch *change) {
		if s.BindNull(p); ch.rec.Sealed != nil {
			s.BindBytes(p, ch.rec.Sealed)
		}
	}},
	{"disk_bytes", func(s *sqlite.Stmt, p int, ch *change) { s.BindInt64(p, ch.rec.DiskBytes) }},
	{"limits", func(s *sqlite.Stmt, p int, ch *change) { s.BindText(p, ch.limits) }},
	{"usage", func(s *sqlite.Stmt, p int, ch *change) { s.BindText(p, ch.usage) }},
	{"out_of_memory", func(s *sqlite.Stmt, p int, ch *change) { s.BindBool(p, ch.rec.OutOfMemory) }},
	{"denied", func(s *sqlite.Stmt, p int, ch *change) { s.BindText(p, ch.denied) }},
	{"leases", func(s *sqlite.Stmt, p int, ch *change) { s.BindText(p, ch.leases) }},
}

// fixed are the columns that say what was asked. They come behind changing.
var fixed = []written{
	{"id", func(s *sqlite.Stmt, p int, ch *change) { s.BindText(p, ch.rec.ID) }},
	{"owner", func(s *sqlite.Stmt, p int, ch *change) { s.BindText(p, ch.rec.Owner) }},
	{"name", func(s *sqlite.Stmt, p int, ch *change) { bindOptional(s, p, ch.rec.Spec.Name) }},
	{"created", func(s *sqlite.Stmt, p int, ch *change) { s.BindInt64(p, ch.rec.Created.UnixNano()) }},
	{"spec", func(s *sqlite.Stmt, p int, ch *change) { s.BindText(p, ch.spec) }},
	{"parent", func(s *sqlite.Stmt, p int, ch *change) { bindOptional(s, p, ch.rec.Parent) }},
	{"idem_key", func(s *sqlite.Stmt, p int, ch *change) { bindOptional(s, p, ch.rec.Spec.IdempotencyKey) }},
	{"labels", func(s *sqlite.Stmt, p int, ch *change) { s.BindInt64(p, int64(len(ch.rec.Spec.Labels))) }},
}

// The parameters of insertJob and updateJob that follow those of columns.
var (
	insertSeq = len(changing) + len(fixed) + 1
	updateID  = len(changing) + 1
)

// insertJob is the statement that makes a row, and updateJob the one that changes one.
func insertJob() string {
	names, params := make([]string, insertSeq), make([]string, insertSeq)
	for i, col := range append(slices.Clone(changing), fixed...) {
		names[i] = col.name
	}
	names[insertSeq-1] = "seq"
	for i := range params {
		params[i] = "?" + strconv.Itoa(i+1)
	}
	return `INSERT INTO job (` + strings.Join(names, ", ") + `) VALUES (` + strings.Join(params, ", ") + `)`
}

func updateJob() string {
	var sets []string
	for i, col := range changing {
		sets = append(sets, col.name+" = ?"+strconv.Itoa(i+1))
	}
	return `UPDATE job SET ` + strings.Join(sets, ", ") + ` WHERE id = ?` + strconv.Itoa(updateID)
}

// bind binds the values of columns to the parameters from first on.
func bind(stmt *sqlite.Stmt, first int, columns []written, ch *change) {
	for i, col := range columns {
		col.bind(stmt, first+i, ch)
	}
}

// bindOptional binds a text, or NULL for an empty one.
func bindOptional(stmt *sqlite.Stmt, param int, text string) {
	if text == "" {
		stmt.BindNull(param)
	} else {
		stmt.BindText(param, text)
	}
}

func bindTime(stmt *sqlite.Stmt, param int, t time.Time) {
	if t.IsZero() {
		stmt.BindNull(param)
	} else {
		stmt.BindInt64(param, t.UnixNano())
	}
}

// entry is a record as it was found.
type entry struct {
	Record
	seq  int64
	size int // of its long columns
}

// records calls add, until that fails, on what a query finds that
// begins with selectJob or selectRecord.
func records(c *sqlite.Conn, add func(entry) error, text string, args ...any) error {
	stmt, err := c.Prepare(text)
	if err != nil {
		return err
	}
	var buf []byte
	decode := func(row *sqlite.Stmt, col int, into any) error {
		buf = slices.Grow(buf[:0], row.ColumnLen(col))
		buf = buf[:row.ColumnBytes(col, buf[:cap(buf)])]
		return json.Unmarshal(buf, into)
	}
	return query(stmt, func(row *sqlite.Stmt) error {
		r := Record{
			Job: joblet.Job{
				ID:        row.ColumnText(colID),
				Owner:     row.ColumnText(colOwner),
				Created:   columnTime(row, colCreated),
				Started:   columnTime(row, colStarted),
				Ended:     columnTime(row, colEnded),
				Reason:    row.ColumnText(colReason),
				PID:       row.ColumnInt(colPID),
				IDBase:    uint32(row.ColumnInt64(colIDBase)),
				LogBytes:  row.ColumnInt64(colLogBytes),
				Scheduled: columnTime(row, colScheduled),
				Parent:    row.ColumnText(colParent),
				Attempt:   row.ColumnInt(colAttempt),
				Failure:   joblet.Kind(row.ColumnInt(colFailure)),
				WorkBytes: row.ColumnInt64(colWorkBytes),

				OutOfMemory: row.ColumnBool(colOutOfMemory),
			},
			Box:       row.ColumnText(colBox),
			DiskBytes: row.ColumnInt64(colDiskBytes),
		}
		if !row.ColumnIsNull(colExitCode) {
			r.Exit = &joblet.Exit{Code: row.ColumnInt(colExitCode), Signal: row.ColumnInt(colExitSignal)}
		}
		if !row.ColumnIsNull(colSealed) {
			r.Sealed = make([]byte, row.ColumnLen(colSealed))
			row.ColumnBytes(colSealed, r.Sealed)
		}
		var err error
		if r.State, err = joblet.ParseState(row.ColumnText(colState)); err != nil {
			return fmt.Errorf("cannot read the record of job %s: unknown state %q", r.ID, row.ColumnText(colState))
		}
		if err := decode(row, colSpec, &r.Spec); err != nil {
			return fmt.Errorf("cannot read the record of job %s: %w", r.ID, err)
		}
		if row.ColumnLen(colLimits) > 0 {
			r.Spec.Limits = joblet.Limits{}
			if err := decode(row, colLimits, &r.Spec.Limits); err != nil {
				return fmt.Errorf("cannot read the limits of job %s: %w", r.ID, err)
			}
		}
		if row.ColumnLen(colUsage) > 0 {
			if err := decode(row, colUsage, &r.Usage); err != nil {
				return fmt.Errorf("cannot read the usage of job %s: %w", r.ID, err)
			}
		}
		if row.ColumnLen(colDenied) > 0 {
			if err := decode(row, colDenied, &r.Denied); err != nil {
				return fmt.Errorf("cannot read the denied calls of job %s: %w", r.ID, err)
			}
		}
		if row.ColumnLen(colLeases) > 0 {
			if err := decode(row, colLeases, &r.Leases); err != nil {
				return fmt.Errorf("cannot read the leases of job %s: %w", r.ID, err)
			}
		}
		if row.ColumnLen(colPast) > 0 {
			if err := decode(row, colPast, &r.Past); err != nil {
				return fmt.Errorf("cannot read the past attempts of job %s: %w", r.ID, err)
			}
			for i := range r.Past {
				r.Past[i].Started, r.Past[i].Ended = r.Past[i].Started.UTC(), r.Past[i].Ended.UTC()
			}
		}
		size := 0
		for _, col := range []int{colSpec, colPast, colSealed} {
			size += row.ColumnLen(col)
		}
		return add(entry{Record: r, seq: row.ColumnInt64(colSeq), size: size})
	}, args...)
}

// columnTime returns a time, or the zero one for NULL.
func columnTime(row *sqlite.Stmt, col int) time.Time {
	if row.ColumnIsNull(col) {
		return time.Time{}
	}
	return time.Unix(0, row.ColumnInt64(col)).UTC()
}
