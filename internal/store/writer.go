package store

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
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
	//
	// It is also the room for changes on a full disk, when a checkpoint lets the log
	// begin again inside the file: a small disk has smallWAL for that.
	walSize  = 4 << 20
	smallWAL = 256 << 10
	walChunk = 256 << 10 // bytes in one go: about 1 ms

	// minFree is the free space in bytes below which walSize is not taken in
	// advance.
	minFree = 64 * walSize

	// A checkpoint is due after idleFrames pages in the log as soon as the writer is
	// idle, and at once after mustFrames, before the log outgrows walSize.
	idleFrames = 256
	mustFrames = 768
	// The same for smallWAL, and how many changes go into one transaction then.
	smallIdleFrames = 8
	smallMustFrames = 24
	smallBatch      = 4
)

// changeKind says what a change does.
type changeKind uint8

const (
	insert changeKind = iota
	update
	remove
	vouch // see Store.Vouch
)

// change is one caller's wish and its outcome.
type change struct {
	kind     changeKind
	rec      Record // for remove, the ID alone
	path     string // for vouch: of the database
	spec     string // for insert: rec.Spec as JSON
	past     string // rec.Past as JSON; empty: none
	limits   string // rec.Spec.Limits as JSON; empty: none
	usage    string // rec.Usage as JSON; empty: none
	denied   string // rec.Denied as JSON; empty: none
	leases   string // rec.Leases as JSON; empty: none
	unsynced bool
	err      error
	done     chan struct{} // closed once err is final
}

// writer is the state of the goroutine that writes.
type writer struct {
	conn                     *sqlite.Conn
	insert, taken, successor *sqlite.Stmt
	update, rm               *sqlite.Stmt
	begin, commit, rollback  *sqlite.Stmt
	seq, bump                *sqlite.Stmt

	ledgerFile *os.File // nil: nothing is counted
	counted    ledger   // what it says

	unsynced bool // the connection is set to commit without fsync
	frames   int  // pages in the log since the last checkpoint, about
	walReady bool // the log is as large as it shall be
	small    bool // which is smallWAL
}

// prepare compiles what the writer runs.
func (w *writer) prepare() error {
	for _, p := range []struct {
		stmt  **sqlite.Stmt
		query string
	}{
		{&w.insert, insertJob()},
		{&w.taken, takenID},
		{&w.successor, successorSeq},
		{&w.update, updateJob()},
		{&w.rm, deleteJob},
		{&w.begin, `BEGIN IMMEDIATE`},
		{&w.commit, `COMMIT`},
		{&w.rollback, `ROLLBACK`},
		{&w.seq, ledgerSeq},
		{&w.bump, bumpLedger},
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
	texts := []string{recordByID, recordsByPrefix, recordByKey, newestJobs, oldestEnded, diskBytes, lastBackwards}
	for _, src := range sources(joblet.Filter{Name: "a", Parent: "a", Labels: []joblet.LabelMatch{{}, {Any: true}}}) {
		texts = append(texts, src.nextOwner(), src.seqs())
	}
	for _, text := range append(texts, everyJob.nextOwner(), everyJob.seqs()) {
		stmt, _, err := w.conn.PrepareTransient(text)
		if err != nil {
			return err
		}
		if err := stmt.Finalize(); err != nil {
			return err
		}
	}
	return w.triggers()
}

// triggers reports whether those are there that keep the table of labels and
// the ledger.
func (w *writer) triggers() error {
	n, err := pragma(w.conn, `SELECT count(*) FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'job'`)
	if err == nil && n < 6 {
		err = sqlite.ResultError.ToError()
	}
	return err
}

// Record is a job with what only the daemon needs to know of it.
type Record struct {
	joblet.Job
	Box       string                     // id of the engine's box of the latest attempt; empty: none
	Leases    map[string]json.RawMessage // what the latest attempt holds of the host, by resource; nil: of an earlier version, or nothing
	Sealed    []byte                     // the job's secrets, encrypted; nil: none
	DiskBytes int64                      // what the job's directory takes on disk; 0 until it has ended
}

// Insert records a new job. It is on the disk, safe from a crash of the
// machine, when Insert returns. The spec's secrets are masked first: their
// values reach the disk in r.Sealed or not at all. An id that is taken is of
// kind AlreadyExists, and so is an idempotency key that another job of the
// same owner has; a full disk is of kind ResourceExhausted.
//
// ctx counts until the writer has taken the record, which is at most one
// transaction later; after an error of ctx nothing has been recorded.
func (s *Store) Insert(ctx context.Context, r Record) error {
	ch, err := newInsert(r)
	if err != nil {
		return err
	}
	// The last room is for what becomes of the jobs that there are: it would fit
	// into the log still, which then had none for that.
	if f, ok := freeOn(s.path); ok && !f.readOnly && f.bytes < leastFree+uint64(len(ch.spec)) {
		return joblet.Errorf(joblet.ResourceExhausted, "%s: the disk is full: free space in %s", ch.what(), filepath.Dir(s.path))
	}
	return s.do(ctx, ch)
}

// InsertUnsynced is Insert without the fsync, as UpdateUnsynced is Update. It
// suits what is copied from elsewhere and can be copied again.
func (s *Store) InsertUnsynced(ctx context.Context, r Record) error {
	ch, err := newInsert(r)
	if err != nil {
		return err
	}
	ch.unsynced = true
	return s.do(ctx, ch)
}

func newInsert(r Record) (*change, error) {
	ch := &change{kind: insert, rec: r}
	if !joblet.ValidID(r.ID) {
		return nil, joblet.Errorf(joblet.InvalidArgument, "cannot record the job: %.64q is not a job id", r.ID)
	}
	if r.Created.Before(firstTime) || r.Created.After(lastTime) {
		return nil, joblet.Errorf(joblet.InvalidArgument, "%s: time of creation %v is out of range", ch.what(), r.Created)
	}
	var err error
	if ch.spec, err = encodeSpec(r.Spec); err != nil {
		return nil, fmt.Errorf("%s: %w", ch.what(), err)
	}
	return ch, ch.encode()
}

// Update records what has become of a job: everything but what was asked
// (Spec, Owner, Created, Parent), of which only Spec.Limits may change. It is as
// durable as Insert. An unknown id is of kind NotFound.
func (s *Store) Update(ctx context.Context, r Record) error {
	return s.update(ctx, r, false)
}

// UpdateUnsynced is Update without the fsync: the change is there for every
// reader at once and outlives this process, but a crash of the machine may
// take it back unless another change was synced later. It suits what the
// job's directory knows better, such as that the job runs.
func (s *Store) UpdateUnsynced(ctx context.Context, r Record) error {
	return s.update(ctx, r, true)
}

func (s *Store) update(ctx context.Context, r Record, unsynced bool) error {
	ch := &change{kind: update, rec: r, unsynced: unsynced}
	if err := ch.encode(); err != nil {
		return err
	}
	return s.do(ctx, ch)
}

// Delete removes a job's record, durably. An unknown id is of kind NotFound.
func (s *Store) Delete(ctx context.Context, id string) error {
	return s.do(ctx, &change{kind: remove, rec: Record{Job: joblet.Job{ID: id}}})
}

// The times that the database can hold.
var firstTime, lastTime = time.Unix(0, 1), time.Unix(0, maxSeq-1)

// encode checks and encodes what insert and update have in common.
func (ch *change) encode() error {
	r := &ch.rec
	if r.State < joblet.Pending || r.State > joblet.Lost {
		return joblet.Errorf(joblet.InvalidArgument, "%s: %v is not a valid state", ch.what(), r.State)
	}
	for _, t := range []time.Time{r.Started, r.Ended, r.Scheduled} {
		if !t.IsZero() && (t.Before(firstTime) || t.After(lastTime)) {
			return joblet.Errorf(joblet.InvalidArgument, "%s: time %v is out of range: it must be after 1970 and before %d", ch.what(), t, lastTime.Year())
		}
	}
	if len(r.Sealed) > maxSealedSize {
		return joblet.Errorf(joblet.InvalidArgument, "%s: the secrets take %d bytes: at most %d are possible", ch.what(), len(r.Sealed), maxSealedSize)
	}
	for i, a := range r.Past {
		if a.State < joblet.Pending || a.State > joblet.Lost { // it could not be read back
			return joblet.Errorf(joblet.InvalidArgument, "%s: attempt %d: %v is not a valid state", ch.what(), i+1, a.State)
		}
	}
	if len(r.Past) > 0 {
		var err error
		if ch.past, err = toJSON(r.Past); err != nil {
			return joblet.Errorf(joblet.InvalidArgument, "%s: cannot encode the past attempts: %w", ch.what(), err)
		}
	}
	for _, part := range []struct {
		text *string
		from any
		none bool
	}{{&ch.limits, r.Spec.Limits, r.Spec.Limits.IsZero()}, {&ch.usage, r.Usage, r.Usage == joblet.Usage{}}, {&ch.denied, r.Denied, len(r.Denied) == 0}, {&ch.leases, r.Leases, len(r.Leases) == 0}} {
		if part.none {
			continue
		}
		var err error
		if *part.text, err = toJSON(part.from); err != nil {
			return joblet.Errorf(joblet.InvalidArgument, "%s: cannot encode limits, usage, denied calls and leases: %w", ch.what(), err)
		}
	}
	return nil
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
	return [...]string{"cannot record job ", "cannot update the record of job ", "cannot delete the record of job ", "cannot count the changes of the job records "}[ch.kind] + joblet.ShortID(ch.rec.ID)
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
		most, must := maxBatch, mustFrames
		if s.w.small {
			most, must = smallBatch, smallMustFrames
		}
	gather:
		for len(batch) < most {
			select {
			case ch := <-s.changes:
				batch = append(batch, ch)
			default:
				break gather
			}
		}
		if s.w.frames >= must {
			s.w.checkpoint()
		}
		err := s.w.apply(batch)
		for i, ch := range batch {
			switch {
			case err != nil && len(batch) > 1:
				// One of them may be to blame, such as a huge record on a nearly
				// full disk: each on its own.
				ch.err = s.w.one(batch[i : i+1])
			case err != nil:
				ch.err = err
			}
			if ch.kind != insert && s.isFull(ch.err) {
				s.reserve.grow()
				s.w.checkpoint() // so that the log begins again
				ch.err = s.w.one(batch[i : i+1])
			}
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
		w.frames += 8 + 6*len(ch.rec.Spec.Labels) + (len(ch.spec)+len(ch.rec.Reason)+len(ch.past)+len(ch.rec.Sealed))/4096
	}
	if err := w.setUnsynced(unsynced); err != nil {
		return err
	}
	if !unsynced {
		defer w.count()
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

// one is apply for one change, whose error it returns.
func (w *writer) one(batch []*change) error {
	batch[0].err = nil
	if err := w.apply(batch); err != nil {
		return err
	}
	return batch[0].err
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
	case vouch:
		return w.execVouch(ch.path)
	default:
		w.rm.BindText(1, ch.rec.ID)
		return w.changeOne(w.rm, ch.rec.ID)
	}
}

func (w *writer) execInsert(ch *change) error {
	r, stmt := &ch.rec, w.insert
	// A spec may be large and would stay bound until the next one comes.
	defer func() { _ = stmt.ClearBindings() }()
	bind(stmt, 1, changing, ch)
	bind(stmt, len(changing)+1, fixed, ch)
	for seq := r.Created.UnixNano(); ; {
		stmt.BindInt64(insertSeq, seq)
		err := step(stmt)
		switch sqlite.ErrCode(err) {
		case sqlite.ResultConstraintUnique:
			return w.collision(r)
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

// collision says what of r another job has already.
func (w *writer) collision(r *Record) error {
	err := joblet.Errorf(joblet.AlreadyExists, "cannot record the job: %s already has a job with the idempotency key %s", r.Owner, joblet.PrintableStart(r.Spec.IdempotencyKey, 80))
	if lookupErr := query(w.taken, func(*sqlite.Stmt) error {
		err = joblet.Errorf(joblet.AlreadyExists, "cannot record the job: a job with the id %s already exists", r.ID)
		return nil
	}, r.ID); lookupErr != nil {
		return lookupErr
	}
	return err
}

func (w *writer) execUpdate(ch *change) error {
	defer func() { _ = w.update.ClearBindings() }() // of Sealed
	bind(w.update, 1, changing, ch)
	w.update.BindText(updateID, ch.rec.ID)
	return w.changeOne(w.update, ch.rec.ID)
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
	idle := idleFrames
	if s.w.small {
		idle = smallIdleFrames
	}
	switch {
	case s.w.frames >= idle:
		s.w.checkpoint()
	case !s.w.walReady:
		more, err := s.growWAL()
		s.w.walReady = err != nil || !more // it only saves time
	default:
		s.reserve.keep()
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
	size := int64(walSize)
	switch f, ok := freeOn(s.path); {
	case !ok:
		return false, nil
	case f.bytes < minFree:
		size, s.w.small = smallWAL, true
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
	if err != nil || info.Size() >= size {
		return false, err
	}
	if _, err := f.WriteAt(make([]byte, min(walChunk, size-info.Size())), info.Size()); err != nil {
		return false, err // on a full disk a part is better than nothing
	}
	return true, f.Sync()
}

// encodeSpec returns spec as JSON, with its secrets masked.
func encodeSpec(spec joblet.Spec) (string, error) {
	text, err := toJSON(spec.Redacted())
	if err != nil {
		return "", fmt.Errorf("cannot encode the spec: %w", err)
	}
	if len(text) > maxSpecSize {
		return "", joblet.Errorf(joblet.InvalidArgument, "the job's spec takes %d bytes: at most %d are possible", len(text), maxSpecSize)
	}
	// The encoder writes \ufffd for a byte that is not UTF-8: another job than
	// the one asked for. Read back and written again it is U+FFFD itself.
	if strings.Contains(text, `\ufffd`) {
		var back joblet.Spec
		if err := json.Unmarshal([]byte(text), &back); err != nil {
			return "", fmt.Errorf("cannot encode the spec: %w", err)
		}
		if again, err := toJSON(back); err != nil || again != text {
			return "", joblet.Errorf(joblet.InvalidArgument, "the job's spec contains text that is not UTF-8")
		}
	}
	return text, nil
}

func toJSON(v any) (string, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // "&&" stays "&&", which keeps the file readable
	err := enc.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// step runs a statement that returns no rows.
func step(stmt *sqlite.Stmt) error {
	if _, err := stmt.Step(); err != nil {
		return err // Step has reset it
	}
	return stmt.Reset()
}
