package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"zombiezen.com/go/sqlite"
)

// A write-ahead log that is cut short or has a flipped byte, a missing file, an
// old copy: SQLite takes each for the database as it is. So each commit that is
// on disk is counted twice: by a trigger in the table "ledger", and after the
// commit in a small file beside the database. The file may be behind the table,
// after a crash of the host, and is never ahead of it, unless the database has
// lost what it held.

// ledgerPath returns the name of the file that counts along with the database
// at path.
func ledgerPath(path string) string { return strings.TrimSuffix(path, ".db") + ".seq" }

// The SQL of the table "ledger", whose one row a trigger counts up.
const (
	ledgerRow  = `SELECT identity, seq FROM ledger`
	ledgerSeq  = `SELECT seq FROM ledger`
	bumpLedger = `UPDATE ledger SET seq = ?`
)

// ledgerVersion is the first version of the schema with the table.
const ledgerVersion = 5

const (
	ledgerMagic = "JOBLTSEQ"
	ledgerClean = "JOBLTEND" // the same, of records that were closed
	ledgerSize  = 32
)

// ledger is a count of changes: the table's or the file's.
type ledger struct {
	identity, seq int64
	closed        bool // the file's alone
}

func (l ledger) encode() []byte {
	magic := ledgerMagic
	if l.closed {
		magic = ledgerClean
	}
	b := append(make([]byte, 0, ledgerSize), magic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(l.identity))
	b = binary.LittleEndian.AppendUint64(b, uint64(l.seq))
	return binary.LittleEndian.AppendUint64(b, ledgerSum(b))
}

func ledgerSum(b []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(b)
	return h.Sum64()
}

var errLedger = errors.New("its checksum is wrong")

// readLedger reads the file that counts along. The error is fs.ErrNotExist when
// there is none.
func readLedger(path string) (ledger, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return ledger{}, err
	}
	if !info.Mode().IsRegular() || info.Size() != ledgerSize {
		return ledger{}, errLedger
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return ledger{}, err
	}
	closed := len(b) == ledgerSize && string(b[:8]) == ledgerClean
	if len(b) != ledgerSize || string(b[:8]) != ledgerMagic && !closed || binary.LittleEndian.Uint64(b[24:]) != ledgerSum(b[:24]) {
		return ledger{}, errLedger
	}
	return ledger{int64(binary.LittleEndian.Uint64(b[8:])), int64(binary.LittleEndian.Uint64(b[16:])), closed}, nil
}

// behind says why a database with this ledger may lack changes that were on
// disk once; empty: it has them all. fresh: it is new, or of a version that did
// not count.
func behind(path string, have ledger) (why string, fresh bool) {
	name := filepath.Base(ledgerPath(path))
	switch known, err := readLedger(ledgerPath(path)); {
	case errors.Is(err, fs.ErrNotExist) && have.seq == 0:
		return "", true
	case errors.Is(err, fs.ErrNotExist):
		return name + ", which counts the changes of the job records, is missing", false
	case err != nil:
		return fmt.Sprintf("%s, which counts the changes of the job records, cannot be read: %v", name, err), false
	case known.identity != have.identity:
		return "they are new, or another copy than the daemon used last", have.seq == 0
	case known.seq > have.seq:
		return fmt.Sprintf("the last %d changes are missing", known.seq-have.seq), false
	}
	return "", false
}

// readTable reads the database's own count.
func readTable(c *sqlite.Conn) (l ledger, err error) {
	found := false
	stmt, _, err := c.PrepareTransient(ledgerRow)
	if err != nil {
		return l, err
	}
	err = query(stmt, func(row *sqlite.Stmt) error {
		l, found = ledger{identity: row.ColumnInt64(0), seq: row.ColumnInt64(1)}, true
		return nil
	})
	if err = errors.Join(err, stmt.Finalize()); err == nil && !found {
		err = sqlite.ResultCorrupt.ToError()
	}
	return l, err
}

// openLedger compares both counts. Where they agree the file goes on counting;
// otherwise it stays as it is until Vouch.
func (s *Store) openLedger() error {
	have, err := readTable(s.w.conn)
	if err != nil {
		return err
	}
	if s.behind, s.fresh = behind(s.path, have); s.behind != "" || s.fresh {
		return nil
	}
	if known, err := readLedger(ledgerPath(s.path)); err == nil {
		s.closed = known.closed && known.seq == have.seq
	}
	return s.w.startLedger(s.path, have)
}

// startLedger begins to count in the file.
func (w *writer) startLedger(path string, have ledger) error {
	name := ledgerPath(path)
	if info, err := os.Lstat(name); err == nil && (!info.Mode().IsRegular() || info.Size() != ledgerSize) {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(have.encode(), 0); err != nil {
		return errors.Join(err, f.Close())
	}
	w.ledgerFile, w.counted = f, have
	return nil
}

// count publishes the number of changes that are on disk. A failure leaves the
// file behind, which is harmless.
func (w *writer) count() {
	if w.ledgerFile == nil {
		return
	}
	seq := w.counted.seq
	if err := query(w.seq, func(row *sqlite.Stmt) error { seq = row.ColumnInt64(0); return nil }); err != nil || seq == w.counted.seq {
		return
	}
	w.counted.seq = seq
	_, _ = w.ledgerFile.WriteAt(w.counted.encode(), 0)
}

// Behind says why the records may lack changes that were on disk once: a lost
// or damaged write-ahead log, an old copy of the database. It is empty if they
// have them all.
func (s *Store) Behind() string { return s.behind }

// Fresh reports whether the records are new, or were written by a version that
// did not count changes: Behind does not know what they lack.
func (s *Store) Fresh() bool { return s.fresh }

// Closed reports whether the previous acknowledged session closed the records, so that
// nothing was interrupted.
func (s *Store) Closed() bool { return s.closed }

// Vouch says that what the records lack has been made up for. Until then each
// Open finds them behind, or fresh.
func (s *Store) Vouch(ctx context.Context) error {
	s.vouched.Store(true)
	if s.behind == "" && !s.fresh {
		return nil
	}
	return s.do(ctx, &change{kind: vouch, path: s.path})
}

// execVouch moves the database's count beyond the file's and starts the file
// again.
func (w *writer) execVouch(path string) error {
	have, err := readTable(w.conn)
	if err != nil {
		return err
	}
	if known, err := readLedger(ledgerPath(path)); err == nil {
		have.seq = max(have.seq, known.seq)
	}
	have.seq++
	w.bump.BindInt64(1, have.seq)
	if err := step(w.bump); err != nil {
		return err
	}
	return w.startLedger(path, have)
}
