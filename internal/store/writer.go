package store

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/joblet/joblet"
)

const (
	// maxBatch is how many changes go into one transaction at most.
	maxBatch = 128

	// walSize is the size in bytes to which the write-ahead log is filled with
	// zeros while there is nothing else to do. An fsync of bytes that lie
	// inside the file spares the file system a new extent and a new size, and
	// so about a third of a durable Insert. SQLite takes zeros behind the last
	// frame for the end of the log: a frame counts by its salt and checksum
	// (https://sqlite.org/fileformat2.html, section 4).
	walSize  = 4 << 20
	walChunk = 256 << 10 // bytes in one go: about 1 ms

	// minFree is the free space in bytes below which walSize is not taken in
	// advance.
	minFree = 64 * walSize

	// A checkpoint is due after idleFrames pages in the log as soon as nobody
	// waits, and at once after mustFrames, before the log outgrows walSize.
	idleFrames = 256
	mustFrames = 768
)

// changeKind says what a change does.
type changeKind uint8

const (
	insert changeKind = iota
	update
	remove
)

// change is one caller's wish and its outcome.
type change struct {
	kind     changeKind
	job      joblet.Job // for remove, the ID alone
	spec     string     // for insert: job.Spec as JSON
	unsynced bool
	err      error
	done     chan struct{} // closed once err is final
}

// writer is the state of the goroutine that writes.
type writer struct {
	conn                          *sqlite.Conn
	insert, successor, update, rm *sqlite.Stmt
	begin, commit, rollback       *sqlite.Stmt

	unsynced bool // the connection is set to commit without fsync
	frames   int  // pages in the log since the last checkpoint, about
	walReady bool // the log is as large as it shall be
}

// prepare compiles what the writer runs.
func (w *writer) prepare() error {
	for _, p := range []struct {
		stmt  **sqlite.Stmt
		query string
	}{
		{&w.insert, `INSERT INTO job (seq, id, state, owner, name, created, started, ended, exit_code, exit_signal,
			reason, pid, id_base, log_bytes, spec) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`},
		{&w.successor, `SELECT max(seq) + 1 FROM job WHERE seq BETWEEN ?1 AND ?1 + 999`},
		{&w.update, `UPDATE job SET state = ?, started = ?, ended = ?, exit_code = ?, exit_signal = ?,
			reason = ?, pid = ?, id_base = ?, log_bytes = ? WHERE id = ?`},
		{&w.rm, `DELETE FROM job WHERE id = ?`},
		{&w.begin, `BEGIN IMMEDIATE`},
		{&w.commit, `COMMIT`},
		{&w.rollback, `ROLLBACK`},
	} {
		var err error
		if *p.stmt, err = w.conn.Prepare(p.query); err != nil {
			return err
		}
	}
	return nil
}

// check compiles what readers will ask, so that a table or an index that is
// missing is found at once.
func (w *writer) check() error {
	for _, text := range []string{jobByID, jobsByPrefix, newestJobs, ownersFrom, namedOwnersFrom, seqs, namedSeqs} {
		stmt, _, err := w.conn.PrepareTransient(text)
		if err != nil {
			return err
		}
		if err := stmt.Finalize(); err != nil {
			return err
		}
	}
	return nil
}

// Insert records a new job. It is on the disk, safe from a crash of the
// machine, when Insert returns. Secrets are masked first: their values never
// reach the disk. An id that is taken is of kind AlreadyExists, a full disk of
// kind ResourceExhausted.
//
// ctx counts until the writer has taken the record, which is at most one
// transaction later; after an error of ctx nothing has been recorded.
func (s *Store) Insert(ctx context.Context, job joblet.Job) error {
	if !joblet.ValidID(job.ID) {
		return joblet.Errorf(joblet.InvalidArgument, "record job: %.64q is not a job id", job.ID)
	}
	if job.State < joblet.Pending || job.State > joblet.Lost {
		return joblet.Errorf(joblet.InvalidArgument, "record job %s: %v is not a state", job.ID, job.State)
	}
	if job.Created.Before(time.Unix(0, 1)) || job.Created.After(time.Unix(0, maxSeq-1)) {
		return joblet.Errorf(joblet.InvalidArgument, "record job %s: time of creation %v is out of range", job.ID, job.Created)
	}
	spec, err := encodeSpec(job.Spec)
	if err != nil {
		return fmt.Errorf("record job %s: %w", job.ID, err)
	}
	return s.do(ctx, &change{kind: insert, job: job, spec: spec})
}

// Update records what has become of a job: everything but what was asked
// (Spec, Owner, Created), which stays as it was inserted. It is as durable as
// Insert. An unknown id is of kind NotFound.
func (s *Store) Update(ctx context.Context, job joblet.Job) error {
	return s.do(ctx, &change{kind: update, job: job})
}

// UpdateUnsynced is Update without the fsync: the change is there for every
// reader at once and outlives this process, but a crash of the machine may
// take it back unless another change was synced later. It suits what the
// job's directory knows better, such as that the job runs.
func (s *Store) UpdateUnsynced(ctx context.Context, job joblet.Job) error {
	return s.do(ctx, &change{kind: update, job: job, unsynced: true})
}

// Delete removes a job's record, durably. An unknown id is of kind NotFound.
func (s *Store) Delete(ctx context.Context, id string) error {
	return s.do(ctx, &change{kind: remove, job: joblet.Job{ID: id}})
}

// do hands ch to the writer and waits for its outcome. The channel has no
// buffer: a change is either taken, and then has an outcome soon, or it never
// was.
func (s *Store) do(ctx context.Context, ch *change) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", ch.what(), err)
	}
	ch.done = make(chan struct{})
	select {
	case s.changes <- ch:
	case <-s.quit:
		return errClosed
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", ch.what(), ctx.Err())
	}
	<-ch.done
	return s.explain(ch.what(), ch.err)
}

func (ch *change) what() string {
	return [...]string{"record job ", "update the record of job ", "delete the record of job "}[ch.kind] + joblet.ShortID(ch.job.ID)
}

// write is the writer goroutine: changes first, housekeeping when there are
// none.
func (s *Store) write() {
	defer close(s.writer)
	batch := make([]*change, 0, maxBatch)
	for {
		select {
		case ch := <-s.changes:
			batch = append(batch[:0], ch)
		case <-s.quit:
			return
		default:
			if s.tidy() {
				continue
			}
			select {
			case ch := <-s.changes:
				batch = append(batch[:0], ch)
			case <-s.quit:
				return
			}
		}
	gather:
		for len(batch) < maxBatch {
			select {
			case ch := <-s.changes:
				batch = append(batch, ch)
			default:
				break gather
			}
		}
		if s.w.frames >= mustFrames {
			s.w.checkpoint()
		}
		if err := s.w.apply(batch); err != nil && len(batch) > 1 {
			// One of them may be to blame, such as a huge record on a nearly
			// full disk: each on its own.
			for i, ch := range batch {
				if err := s.w.apply(batch[i : i+1]); err != nil {
					ch.err = err
				}
			}
		} else if err != nil {
			batch[0].err = err
		}
		for _, ch := range batch {
			close(ch.done)
		}
		clear(batch)
	}
}

// apply commits batch in one transaction and sets each change's own error. An
// error returned means that nothing of the batch was done.
func (w *writer) apply(batch []*change) error {
	unsynced := true
	for _, ch := range batch {
		unsynced = unsynced && ch.unsynced
		w.frames += 7 + (len(ch.spec)+len(ch.job.Reason))/4096
	}
	if err := w.setUnsynced(unsynced); err != nil {
		return err
	}
	if len(batch) == 1 { // a statement alone is a transaction
		batch[0].err = w.exec(batch[0])
		return nil
	}
	if err := step(w.begin); err != nil {
		return err
	}
	for _, ch := range batch {
		ch.err = w.exec(ch)
		if w.conn.AutocommitEnabled() { // the error was such that SQLite has rolled back
			return ch.err
		}
	}
	if err := step(w.commit); err != nil {
		if !w.conn.AutocommitEnabled() {
			_ = step(w.rollback)
		}
		return err
	}
	return nil
}

// setUnsynced chooses whether the next transactions are synced. In WAL mode
// NORMAL leaves out the fsync of a commit and nothing else; the next one that
// is synced takes the whole log along.
func (w *writer) setUnsynced(unsynced bool) error {
	if w.unsynced == unsynced {
		return nil
	}
	query := "PRAGMA synchronous = FULL"
	if unsynced {
		query = "PRAGMA synchronous = NORMAL"
	}
	// Not a prepared statement: this pragma works while it is compiled.
	if err := sqlitex.ExecuteTransient(w.conn, query, nil); err != nil {
		return err
	}
	w.unsynced = unsynced
	return nil
}

func (w *writer) exec(ch *change) error {
	switch ch.kind {
	case insert:
		return w.execInsert(ch)
	case update:
		return w.execUpdate(ch)
	default:
		w.rm.BindText(1, ch.job.ID)
		return w.changeOne(w.rm, ch.job.ID)
	}
}

func (w *writer) execInsert(ch *change) error {
	job, stmt := &ch.job, w.insert
	// A spec may be large and would stay bound until the next one comes.
	defer func() { _ = stmt.ClearBindings() }()
	stmt.BindText(2, job.ID)
	stmt.BindText(3, job.State.String())
	stmt.BindText(4, job.Owner)
	if job.Spec.Name == "" {
		stmt.BindNull(5)
	} else {
		stmt.BindText(5, job.Spec.Name)
	}
	stmt.BindInt64(6, job.Created.UnixNano())
	bindTime(stmt, 7, job.Started)
	bindTime(stmt, 8, job.Ended)
	bindExit(stmt, 9, job.Exit)
	stmt.BindText(11, job.Reason)
	stmt.BindInt64(12, int64(job.PID))
	stmt.BindInt64(13, int64(job.IDBase))
	stmt.BindInt64(14, job.LogBytes)
	stmt.BindText(15, ch.spec)
	for seq := job.Created.UnixNano(); ; {
		stmt.BindInt64(1, seq)
		err := step(stmt)
		switch sqlite.ErrCode(err) {
		case sqlite.ResultConstraintUnique:
			return joblet.Errorf(joblet.AlreadyExists, "record job: a job with the id %s exists", job.ID)
		case sqlite.ResultConstraintPrimaryKey, sqlite.ResultConstraintRowID:
			if err := query(w.successor, func(row *sqlite.Stmt) error {
				seq = row.ColumnInt64(0)
				return nil
			}, seq); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

func (w *writer) execUpdate(ch *change) error {
	job, stmt := &ch.job, w.update
	if job.State < joblet.Pending || job.State > joblet.Lost {
		return joblet.Errorf(joblet.InvalidArgument, "%s: %v is not a state", ch.what(), job.State)
	}
	stmt.BindText(1, job.State.String())
	bindTime(stmt, 2, job.Started)
	bindTime(stmt, 3, job.Ended)
	bindExit(stmt, 4, job.Exit)
	stmt.BindText(6, job.Reason)
	stmt.BindInt64(7, int64(job.PID))
	stmt.BindInt64(8, int64(job.IDBase))
	stmt.BindInt64(9, job.LogBytes)
	stmt.BindText(10, job.ID)
	return w.changeOne(stmt, job.ID)
}

func (w *writer) changeOne(stmt *sqlite.Stmt, id string) error {
	if err := step(stmt); err != nil {
		return err
	}
	if w.conn.Changes() == 0 {
		return notFound(id)
	}
	return nil
}

// tidy does one small piece of housekeeping and reports whether there may be
// more.
func (s *Store) tidy() bool {
	switch {
	case s.w.frames >= idleFrames:
		s.w.checkpoint()
	case !s.w.walReady:
		more, err := s.growWAL()
		s.w.walReady = err != nil || !more // it only saves time
	default:
		return false
	}
	return true
}

// checkpoint moves what the log holds to the database as far as no reader
// needs it there. It may fail, on a full disk for example, and loses nothing:
// the log goes on growing until the next one.
func (w *writer) checkpoint() {
	_ = w.setUnsynced(false)
	_ = sqlitex.ExecuteTransient(w.conn, "PRAGMA wal_checkpoint(PASSIVE)", nil)
	w.frames = 0
}

// growWAL adds one chunk of zeros to the log and reports whether more may
// follow. A write transaction keeps every other process from appending to the
// log at the same time.
func (s *Store) growWAL() (more bool, err error) {
	if free, ok := freeSpace(s.path); !ok || free < minFree {
		return false, nil
	}
	if err := step(s.w.begin); err != nil {
		return false, err
	}
	defer func() { _ = step(s.w.rollback) }()
	f, err := os.OpenFile(s.path+"-wal", os.O_WRONLY, 0)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || info.Size() >= walSize {
		return false, err
	}
	if _, err := f.WriteAt(make([]byte, walChunk), info.Size()); err != nil {
		_ = f.Truncate(info.Size())
		return false, err
	}
	return true, f.Sync()
}

// encodeSpec returns spec as JSON, with its secrets masked.
func encodeSpec(spec joblet.Spec) (string, error) {
	text, err := toJSON(spec.Redacted())
	if err != nil {
		return "", fmt.Errorf("encode spec: %w", err)
	}
	if len(text) > maxSpecSize {
		return "", joblet.Errorf(joblet.InvalidArgument, "the job's spec takes %d bytes: at most %d are possible", len(text), maxSpecSize)
	}
	// The encoder writes \ufffd for a byte that is not UTF-8: another job than
	// the one asked for. Read back and written again it is U+FFFD itself.
	if strings.Contains(text, `\ufffd`) {
		var back joblet.Spec
		if err := json.Unmarshal([]byte(text), &back); err != nil {
			return "", fmt.Errorf("encode spec: %w", err)
		}
		if again, err := toJSON(back); err != nil || again != text {
			return "", joblet.Errorf(joblet.InvalidArgument, "the job's spec holds text that is not UTF-8")
		}
	}
	return text, nil
}

func toJSON(spec joblet.Spec) (string, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // "&&" stays "&&" for whoever looks into the file
	err := enc.Encode(spec)
	return strings.TrimSuffix(b.String(), "\n"), err
}

func bindTime(stmt *sqlite.Stmt, param int, t time.Time) {
	if t.IsZero() {
		stmt.BindNull(param)
	} else {
		stmt.BindInt64(param, t.UnixNano())
	}
}

// bindExit binds two parameters: code and signal.
func bindExit(stmt *sqlite.Stmt, param int, exit *joblet.Exit) {
	if exit == nil {
		stmt.BindNull(param)
		stmt.BindNull(param + 1)
	} else {
		stmt.BindInt64(param, int64(exit.Code))
		stmt.BindInt64(param+1, int64(exit.Signal))
	}
}

// step runs a statement that returns no rows.
func step(stmt *sqlite.Stmt) error {
	if _, err := stmt.Step(); err != nil {
		return err // Step has reset it
	}
	return stmt.Reset()
}
