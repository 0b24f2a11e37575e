// Package store keeps the record of every job in one SQLite file: what was
// asked and how it ended.
//
// One goroutine owns the only connection that writes. It takes whatever
// changes wait at that moment and commits them in one transaction, so that
// many callers share one fsync(2) and a lone caller waits for nobody. Readers
// have connections of their own and, in WAL mode, neither wait for the writer
// nor hold it up.
//
// A Store is the only user of its file in its process: SQLite's locks are
// POSIX record locks, which a second open and close of the file would drop.
package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/joblet/joblet"
)

// maxReaders is how many reads may run at once; more wait. A connection is
// opened when it is first needed and costs about 100 KiB.
const maxReaders = 4

// maxSpecSize bounds a spec as JSON, in bytes. A valid spec holds at most
// joblet.MaxArgEnvSize bytes of text, and JSON makes at most six of one.
const maxSpecSize = 16 << 20

// maxSealedSize bounds encrypted secrets, in bytes: they are part of what
// maxSpecSize bounds.
const maxSealedSize = maxSpecSize

// Store is an open file of job records. Its methods may be called from any
// goroutine.
type Store struct {
	path    string
	changes chan *change
	quit    chan struct{} // closed by Close
	writer  chan struct{} // closed when the writer has ended

	// A reader holds a token, and with it the right to one connection: an idle
	// one, or one more.
	tokens chan struct{}
	idle   chan *sqlite.Conn

	behind string // see Behind
	fresh  bool   // see Fresh
	closed bool   // see Closed

	vouched atomic.Bool // Vouch was called

	closeOnce sync.Once
	closeErr  error

	w       writer // the writer goroutine's alone
	reserve reserve
}

// syncData makes SQLite call fdatasync(2) where its transpiled form calls
// fsync(2), as builds of SQLite for Linux do: the same durability without
// forcing the file's time stamps through the journal.
var syncData = sync.OnceFunc(func() {
	tls := libc.NewTLS()
	defer tls.Close()
	sqlite3.Xmodernc_fdatasync(tls, 1)
})

// Open opens the job records in the file path, whose directory must exist. It
// creates the file with mode 0600 when there is none and brings an older
// schema forward. It refuses, with an error of kind FailedPrecondition that
// names the path and says what to do, a file that is damaged, is not ours or
// has a newer schema, and a place where it cannot write.
func Open(ctx context.Context, path string) (*Store, error) {
	all, err := steps()
	if err != nil {
		return nil, fmt.Errorf("cannot read the schema: %w", err)
	}
	return open(ctx, path, all)
}

func open(ctx context.Context, path string, steps []string) (_ *Store, err error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("cannot open the job records %s: %w", path, err)
	}
	syncData()
	created, err := prepareFile(path)
	if err != nil {
		return nil, err
	}
	s := &Store{
		path:    path,
		changes: make(chan *change),
		quit:    make(chan struct{}),
		writer:  make(chan struct{}),
		tokens:  make(chan struct{}, maxReaders),
		idle:    make(chan *sqlite.Conn, maxReaders),
		reserve: reserve{path: path},
	}
	defer func() {
		if err == nil {
			return
		}
		if s.w.conn != nil {
			_ = s.w.conn.Close()
		}
		if s.w.ledgerFile != nil {
			_ = s.w.ledgerFile.Close()
		}
		if created {
			for _, suffix := range []string{"", "-wal", "-shm"} {
				_ = os.Remove(path + suffix)
			}
		}
	}()
	err = s.connect(steps)
	if joblet.KindOf(err) == joblet.ResourceExhausted && s.reserve.spend() {
		err = s.connect(steps)
	}
	if err != nil {
		return nil, err
	}
	if scarceOn(path) {
		_, _ = s.growWAL() // before others take what is free
	}
	s.reserve.keep()
	go s.write()
	return s, nil
}

// connect makes the writer's connection.
func (s *Store) connect(steps []string) (err error) {
	if s.w.conn != nil { // of an attempt before
		_ = s.w.conn.Close()
		if s.w.ledgerFile != nil {
			_ = s.w.ledgerFile.Close()
		}
		s.w = writer{}
	}
	if s.w.conn, err = sqlite.OpenConn(s.path, sqlite.OpenReadWrite); err != nil {
		return s.explain("cannot open the job records", err)
	}
	s.w.conn.SetBusyTimeout(busyTimeout)
	version, err := s.inspect(len(steps))
	if err != nil {
		return err
	}
	if err := s.setUp(version, steps); err != nil {
		return s.explain("cannot open the job records", err)
	}
	if err := s.openLedger(); err != nil {
		return s.explain("cannot open the job records", err)
	}
	return nil
}

// busyTimeout is how long a transaction waits for another process that has
// the file open, such as an administrator's sqlite3.
const busyTimeout = 5 * time.Second

// prepareFile makes sure, before SQLite opens it, that path is a writable regular file
// that is empty or looks like a database, and that only the owner can read it.
func prepareFile(path string) (created bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if created = err == nil; errors.Is(err, fs.ErrExist) {
		f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	switch {
	case errors.Is(err, syscall.EROFS):
		return false, joblet.Errorf(joblet.FailedPrecondition, "cannot open the job records: %w: choose a state directory that can be written", err)
	case errors.Is(err, fs.ErrPermission):
		return false, joblet.Errorf(joblet.FailedPrecondition, "cannot open the job records: %w: run as the owner of %s, or make it writable", err, filepath.Dir(path))
	case errors.Is(err, fs.ErrNotExist):
		return false, joblet.Errorf(joblet.FailedPrecondition, "cannot open the job records: %w: create %s first", err, filepath.Dir(path))
	case errors.Is(err, syscall.EISDIR):
		return false, joblet.Errorf(joblet.FailedPrecondition, "cannot open the job records: %w: move the directory away", err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return false, joblet.Errorf(joblet.ResourceExhausted, "cannot open the job records: %w: free space there", err)
	case err != nil:
		return false, fmt.Errorf("cannot open the job records: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return created, fmt.Errorf("cannot open the job records: %w", err)
	}
	if !info.Mode().IsRegular() {
		return created, joblet.Errorf(joblet.FailedPrecondition, "cannot open the job records %s: it is not a regular file: move it away", path)
	}
	if info.Size() == 0 {
		return created, nil
	}
	// https://sqlite.org/fileformat2.html, section 1.3: the magic string, and
	// the page size at 16, in which 1 means 65536.
	var header [100]byte
	if _, err := io.ReadFull(f, header[:]); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return created, fmt.Errorf("cannot open the job records: %w", err)
	}
	pageSize := int64(binary.BigEndian.Uint16(header[16:]))
	if pageSize == 1 {
		pageSize = 65536
	}
	if string(header[:16]) != "SQLite format 3\x00" || info.Size() < pageSize {
		return created, damaged(path, errors.New("it is not a database"))
	}
	return created, nil
}

// inspect reads what kind of database the file is, changing nothing, and
// returns its schema version.
func (s *Store) inspect(newest int) (int, error) {
	var id, version, objects int64
	for _, q := range []struct {
		query string
		into  *int64
	}{
		{"PRAGMA application_id", &id},
		{"PRAGMA user_version", &version},
		{"SELECT count(*) FROM sqlite_schema", &objects},
	} {
		var err error
		if *q.into, err = pragma(s.w.conn, q.query); err != nil {
			return 0, s.explain("cannot open the job records", err)
		}
	}
	switch {
	case id == 0 && version == 0 && objects == 0: // empty
	case id != applicationID || version < 1:
		return 0, joblet.Errorf(joblet.FailedPrecondition,
			"cannot open the job records %s: it is the database of another program: move it away or choose another state directory", s.path)
	case version > int64(newest):
		return 0, joblet.Errorf(joblet.FailedPrecondition,
			"cannot open the job records %s: its schema version is %d and this program knows up to %d: run the newer joblet that wrote it",
			s.path, version, newest)
	}
	return int(version), nil
}

// setUp makes the writer's connection ready, migrates, and reads a row from
// either end, so that the commonest damage is found now and not by a user.
func (s *Store) setUp(version int, steps []string) error {
	if err := secureFiles(s.path); err != nil {
		return err
	}
	c := s.w.conn
	var mode string
	err := sqlitex.ExecuteTransient(c, "PRAGMA journal_mode = WAL", &sqlitex.ExecOptions{
		ResultFunc: func(stmt *sqlite.Stmt) error { mode = stmt.ColumnText(0); return nil },
	})
	if err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("this file system does not support a write-ahead log (journal mode %s): use a local file system", mode)
	}
	if err := tune(c,
		"PRAGMA synchronous = FULL",
		// The writer goroutine checkpoints when it is idle.
		"PRAGMA wal_autocheckpoint = 0",
		fmt.Sprintf("PRAGMA journal_size_limit = %d", 4*walSize),
	); err != nil {
		return err
	}
	if err := migrate(c, version, steps); err != nil {
		return err
	}
	if err := errors.Join(s.w.prepare(), s.w.check()); err != nil {
		if code := sqlite.ErrCode(err).ToPrimary(); code != sqlite.ResultError {
			return err
		}
		return damaged(s.path, fmt.Errorf("a table or an index of schema version %d is missing", len(steps)))
	}
	if _, err := pragma(c, "SELECT count(*) FROM (SELECT id FROM job ORDER BY id LIMIT 1)"); err != nil {
		return err
	}
	return records(c, func(entry) error { return nil }, newestJobs, int64(0), int64(maxSeq), int64(1))
}

// tune applies what every connection has, then more.
func tune(c *sqlite.Conn, more ...string) error {
	for _, query := range append([]string{
		"PRAGMA cache_size = -512", // KiB
		"PRAGMA temp_store = MEMORY",
		"PRAGMA trusted_schema = OFF",
		"PRAGMA cell_size_check = ON",
	}, more...) {
		if err := sqlitex.ExecuteTransient(c, query, nil); err != nil {
			return err
		}
	}
	return nil
}

// secureFiles takes everybody else's rights to the database's files away: a
// job's arguments and environment are its owner's business.
func secureFiles(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(path + suffix)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			err = os.Chmod(path+suffix, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Close commits what the writer has taken, ends the writer and waits for
// reads that are under way. Every later call fails with kind Unavailable.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.quit)
		<-s.writer
		for range maxReaders {
			s.tokens <- struct{}{}
		}
		close(s.idle)
		for c := range s.idle {
			s.closeErr = errors.Join(s.closeErr, c.Close())
		}
		// The last connection to go checkpoints and removes the log.
		s.w.count()
		last := s.keepLog()
		s.closeErr = errors.Join(s.closeErr, s.w.conn.Close())
		if f := s.w.ledgerFile; f != nil {
			s.w.counted.closed = s.closeErr == nil && (s.closed || s.vouched.Load())
			_, err := f.WriteAt(s.w.counted.encode(), 0)
			s.closeErr = errors.Join(s.closeErr, err, f.Sync(), f.Close())
		}
		if s.closeErr != nil {
			s.closeErr = fmt.Errorf("cannot close the job records %s: %w", s.path, s.closeErr)
		}
		s.reserve.restore() // for the next start, even if it takes what the log had
		if last != nil {
			_ = last.Close()
		}
	})
	return s.closeErr
}

// keepLog returns, on a disk with little room, a connection to be closed after the
// writer's: it cannot write and so leaves the log and its index where they are.
// Otherwise jobs would take their room before the next start.
func (s *Store) keepLog() *sqlite.Conn {
	if !scarceOn(s.path) {
		return nil
	}
	s.w.checkpoint()
	c, err := sqlite.OpenConn(s.path, sqlite.OpenReadOnly)
	if err != nil {
		return nil
	}
	if _, err := pragma(c, "SELECT count(*) FROM sqlite_schema"); err != nil { // it opens the log only to read
		_ = c.Close()
		return nil
	}
	return c
}

var errClosed = joblet.Errorf(joblet.Unavailable, "cannot use the job records: they are closed")

// read lends fn a connection for reading.
func (s *Store) read(ctx context.Context, what string, fn func(*sqlite.Conn) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	select {
	case <-s.quit:
		return errClosed
	default:
	}
	select {
	case s.tokens <- struct{}{}:
	case <-s.quit:
		return errClosed
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
	defer func() { <-s.tokens }()
	var c *sqlite.Conn
	select {
	case c = <-s.idle:
	default:
		var err error
		if c, err = sqlite.OpenConn(s.path, sqlite.OpenReadWrite); err != nil {
			return s.explain(what, err)
		}
		c.SetBusyTimeout(busyTimeout)
		if err := tune(c, "PRAGMA query_only = ON"); err != nil {
			_ = c.Close()
			return s.explain(what, err)
		}
	}
	// The token is returned after the connection, so that a token guarantees an idle
	// connection or the right to open one.
	defer func() { s.idle <- c }()
	err := fn(c)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
	return s.explain(what, err)
}

// explain turns an error of SQLite into one that names the attempt and, where possible,
// a remedy. Errors with a kind are returned unchanged.
func (s *Store) explain(what string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*joblet.Error](err); ok {
		return err
	}
	switch code := sqlite.ErrCode(err); {
	case s.isFull(err):
		return joblet.Errorf(joblet.ResourceExhausted, "%s: the disk is full: free space in %s: %w", what, filepath.Dir(s.path), err)
	case code.ToPrimary() == sqlite.ResultIOErr && readOnly(s.path):
		return joblet.Errorf(joblet.FailedPrecondition, "%s: the file system of %s is read-only: make it writable: %w", what, s.path, err)
	case code.ToPrimary() == sqlite.ResultCorrupt, code.ToPrimary() == sqlite.ResultNotADB:
		return damaged(s.path, err)
	case code.ToPrimary() == sqlite.ResultReadOnly:
		return joblet.Errorf(joblet.FailedPrecondition, "%s: %s is read-only: make it writable or choose another state directory: %w", what, s.path, err)
	case code.ToPrimary() == sqlite.ResultBusy:
		return joblet.Errorf(joblet.Unavailable, "%s: another program has locked %s: %w", what, s.path, err)
	}
	return fmt.Errorf("%s: %s: %w", what, s.path, err)
}

func damaged(path string, err error) error {
	return joblet.Errorf(joblet.FailedPrecondition,
		"the job records in %s are %w (%w): restart the daemon, or stop it and run joblet fsck --repair, to set the files aside and rebuild the records",
		path, errDamaged, err)
}

// isFull reports whether an error is that of a full disk. SQLite says "full" when
// write(2) does; where fsync(2) or the shared index runs out of space it speaks of
// an I/O error, and where a file cannot be made, that it cannot be opened.
func (s *Store) isFull(err error) bool {
	f, ok := freeOn(s.path)
	switch code := sqlite.ErrCode(err); code.ToPrimary() {
	case sqlite.ResultFull:
		return true
	case sqlite.ResultIOErr:
		return ok && f.bytes < 4096
	case sqlite.ResultCantOpen:
		return ok && (f.bytes < 4096 || f.files == 0)
	}
	return false
}

func readOnly(path string) bool {
	f, ok := freeOn(path)
	return ok && f.readOnly
}
