package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/joblet/joblet"
)

// errDamaged is in the chain of errors that say that the file is damaged.
var errDamaged = errors.New("damaged")

// Condition says how sound the files of job records are.
type Condition struct {
	Damage error  // what is wrong with the database, so that it cannot be used; nil: nothing
	Behind string // why it may lack changes that were on disk once; empty: it does not
	// Unchecked: the records are so many that not all of them were looked at.
	Unchecked bool

	Kept     string // directory with the damaged files; empty: none were
	Salvaged int    // records that were taken over from a damaged database
}

// checkTime bounds how long Examine reads records. It is enough for some hundred
// thousand of them.
const checkTime = 2 * time.Second

// Examine looks at the records at path and changes nothing. An error means that
// they are not to be opened by this program, damaged or not.
func Examine(ctx context.Context, path string) (Condition, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().IsRegular() && info.Size() == 0 {
		return missing(path)
	}
	if _, err := prepareFile(path); errors.Is(err, errDamaged) {
		return Condition{Damage: err}, nil
	} else if err != nil {
		return Condition{}, err
	}
	c, err := probe(ctx, path)
	if errors.Is(err, errDamaged) {
		return Condition{Damage: err}, nil
	}
	return c, err
}

// missing is the condition of a database that is not there, or empty.
func missing(path string) (Condition, error) {
	var c Condition
	// Without its database the log is of no use to SQLite, which would remove it.
	if info, err := os.Lstat(path + "-wal"); err == nil && info.Size() > 0 {
		c.Damage = damaged(path, errors.New("the database is missing or empty, but its write-ahead log exists"))
	}
	if _, err := os.Lstat(ledgerPath(path)); err == nil {
		c.Behind = "the database is missing or empty"
	} else if !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	return c, nil
}

// probe reads the records through a connection that cannot write, so that a
// write-ahead log stays as it is.
func probe(ctx context.Context, path string) (cond Condition, err error) {
	s := &Store{path: path}
	c, err := sqlite.OpenConn(path, sqlite.OpenReadOnly)
	if err != nil {
		return cond, s.explain("cannot examine the job records", err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	c.SetBusyTimeout(busyTimeout)
	if err := tune(c); err != nil {
		return cond, s.explain("cannot examine the job records", err)
	}
	all, err := steps()
	if err != nil {
		return cond, err
	}
	s.w.conn = c
	version, err := s.inspect(len(all))
	if err != nil {
		return cond, err
	}
	if version >= ledgerVersion {
		have, err := readTable(c)
		if err != nil {
			return cond, s.explainSchema(err)
		}
		cond.Behind, _ = behind(path, have)
	} else if _, err := os.Lstat(ledgerPath(path)); err == nil {
		cond.Behind = "they are empty, or an earlier version's copy"
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	switch err := s.checkConn(ctx, c, version == len(all)); {
	case err == nil:
	case ctx.Err() != nil:
		cond.Unchecked = true
	default:
		return cond, s.explainSchema(err)
	}
	return cond, nil
}

// explainSchema is explain for queries that fail only where the schema is not
// ours any more.
func (s *Store) explainSchema(err error) error {
	if sqlite.ErrCode(err).ToPrimary() == sqlite.ResultError {
		return damaged(s.path, err)
	}
	return s.explain("cannot examine the job records", err)
}

// Rescue opens the records at path whatever has happened to them. Damaged files
// it moves to a new directory below keep, and then makes a database of what can
// be read of them; of a database that has lost changes it keeps a copy of what
// the write-ahead log holds. What cannot be opened by this program at all stays
// an error.
func Rescue(ctx context.Context, path, keep string) (*Store, Condition, error) {
	cond, err := Examine(ctx, path)
	// A reader, too, needs the log and its index.
	if joblet.KindOf(err) == joblet.ResourceExhausted && (&reserve{path: path}).spend() {
		cond, err = Examine(ctx, path)
	}
	if err != nil {
		return nil, cond, err
	}
	wal, _ := os.Stat(path + "-wal")
	switch {
	case cond.Damage != nil:
		if cond.Kept, err = setAside(path, keep, os.Rename); err != nil {
			return nil, cond, fmt.Errorf("cannot keep the damaged job records: %w", err)
		}
	case cond.Behind != "" && wal != nil && wal.Size() > 0:
		if cond.Kept, err = setAside(path, keep, copyFile); err != nil {
			return nil, cond, fmt.Errorf("cannot keep a copy of the incomplete job records: %w", err)
		}
	}
	s, err := Open(ctx, path)
	if cond.Damage == nil && errors.Is(err, errDamaged) { // what only a connection that writes can see
		cond.Damage = err
		if cond.Kept, err = setAside(path, keep, os.Rename); err != nil {
			return nil, cond, fmt.Errorf("cannot keep the damaged job records: %w", err)
		}
		s, err = Open(ctx, path)
	}
	if err != nil {
		return nil, cond, err
	}
	if cond.Damage != nil {
		if s.behind == "" {
			s.behind = "the database was damaged"
		}
		cond.Behind = s.behind
		cond.Salvaged, err = s.salvage(ctx, filepath.Join(cond.Kept, filepath.Base(path)))
		if err != nil {
			return nil, cond, errors.Join(fmt.Errorf("cannot copy the records from %s: %w", cond.Kept, err), s.Close())
		}
	}
	return s, cond, nil
}

// setAside moves or copies the database's files to a new directory below keep.
func setAside(path, keep string, pass func(from, to string) error) (dir string, err error) {
	if err := os.MkdirAll(keep, 0o700); err != nil {
		return "", err
	}
	dir = filepath.Join(keep, time.Now().UTC().Format("20060102T150405.000Z"))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		err := pass(path+suffix, filepath.Join(dir, filepath.Base(path)+suffix))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	for _, d := range []string{dir, keep, filepath.Dir(path)} {
		if err := syncDir(d); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// salvage copies all records that can be read from a damaged database: from its
// beginning and its end as far as the damage, and in between from where an index
// leads. It reports how many those are.
func (s *Store) salvage(ctx context.Context, from string) (n int, err error) {
	if info, err := os.Stat(from); err != nil || info.Size() == 0 {
		return 0, nil
	}
	c, err := sqlite.OpenConn(from, sqlite.OpenReadOnly)
	if err != nil {
		return 0, nil // it is not a database
	}
	defer c.Close()
	if tune(c) != nil {
		return 0, nil
	}
	var failure error // of writing, which ends all
	take := func(e entry) error {
		err := s.InsertUnsynced(ctx, e.Record)
		switch joblet.KindOf(err) {
		case joblet.AlreadyExists, joblet.InvalidArgument: // it was read before, or makes no sense
			return nil
		}
		if err != nil {
			failure = err
			return err
		}
		n++
		return nil
	}
	read := map[int64]bool{}
	for _, list := range []string{
		`SELECT seq FROM job NOT INDEXED ORDER BY seq`,
		`SELECT seq FROM job NOT INDEXED ORDER BY seq DESC`,
		`SELECT seq FROM job INDEXED BY job_owner ORDER BY owner, state, seq`,
		`SELECT seq FROM job INDEXED BY job_owner ORDER BY owner DESC, state DESC, seq DESC`,
	} {
		seqs, _ := column(c, nil, (*sqlite.Stmt).ColumnInt64, list)
		for _, seq := range seqs {
			if read[seq] {
				continue
			}
			read[seq] = true
			_ = records(c, take, recordBySeq, seq) // damage costs this record alone
			if failure != nil || ctx.Err() != nil {
				return n, errors.Join(failure, ctx.Err())
			}
		}
	}
	return n, nil
}
