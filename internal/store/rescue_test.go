package store

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"zombiezen.com/go/sqlite"

	"github.com/joblet/joblet"
)

const rescueJobs = 10 // so few that none is in the database before it is closed

// killed returns the path of records as a process that was killed leaves them:
// all changes in the write-ahead log.
func killed(t *testing.T, files map[string][]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "joblet.db")
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func readFiles(t *testing.T, path string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, name := range []string{"joblet.db", "joblet.db-wal", "joblet.seq"} {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(path), name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = data
	}
	return files
}

// TestRescue damages records, or takes files of theirs away. Damage and missing changes
// are reported until they are acknowledged; readable records survive; damaged files are
// kept.
func TestRescue(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "joblet.db")
	s := reopen(t, path)
	fresh := readFiles(t, path)
	for n := range rescueJobs {
		job := jobN(n)
		job.Spec.Args = []string{strings.Repeat("x", 1000)}
		job.Spec.Labels = map[string]string{"a": "b"}
		job.Sealed = []byte("sealed")
		mustInsert(t, s, job)
	}
	logged := readFiles(t, path)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	closed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	used := len(bytes.TrimRight(logged["joblet.db-wal"], "\x00"))
	flip := func(name string, at int) func(map[string][]byte) {
		return func(files map[string][]byte) { files[name][at] ^= 4 }
	}
	without := func(names ...string) func(map[string][]byte) {
		return func(files map[string][]byte) {
			for _, name := range names {
				delete(files, name)
			}
		}
	}
	const lacks, damage, neither = "lacks changes", "damaged", "sound"
	for _, tt := range []struct {
		name   string
		change func(files map[string][]byte)
		want   string
		least  int  // how many records are there
		kept   bool // files
	}{
		{"nothing", func(map[string][]byte) {}, neither, rescueJobs, false},
		{"closed", func(f map[string][]byte) { f["joblet.db"] = closed; delete(f, "joblet.db-wal") }, neither, rescueJobs, false},
		{"no log", without("joblet.db-wal"), lacks, 0, false},
		{"empty log", func(f map[string][]byte) { f["joblet.db-wal"] = nil }, lacks, 0, false},
		{"header of the log", flip("joblet.db-wal", 17), lacks, 0, true},
		{"first frame", flip("joblet.db-wal", 32+24+100), lacks, 0, true},
		{"half of the log", flip("joblet.db-wal", used/2), lacks, 1, true},
		{"last frame", flip("joblet.db-wal", used-10), lacks, rescueJobs - 1, true},
		{"log cut in half", func(f map[string][]byte) { f["joblet.db-wal"] = f["joblet.db-wal"][:used/2] }, lacks, 1, true},
		{"new database", func(f map[string][]byte) { f["joblet.db"] = fresh["joblet.db"]; delete(f, "joblet.db-wal") }, lacks, 0, false},
		{"no database", without("joblet.db", "joblet.db-wal"), lacks, 0, false},
		{"log without a database", without("joblet.db"), damage, 0, true},
		{"empty database", func(f map[string][]byte) { f["joblet.db"] = nil; delete(f, "joblet.db-wal") }, lacks, 0, false},
		{"no count", without("joblet.seq"), lacks, rescueJobs, true},
		{"damaged count", flip("joblet.seq", 18), lacks, rescueJobs, true},
		{"identity of the count", func(f map[string][]byte) {
			f["joblet.seq"] = ledger{identity: 1, seq: 5}.encode()
		}, lacks, rescueJobs, true},
		{"count from before", func(f map[string][]byte) { f["joblet.seq"] = fresh["joblet.seq"] }, neither, rescueJobs, false},
		{"no count, never one", func(f map[string][]byte) {
			delete(f, "joblet.seq")
			f["joblet.db"] = fresh["joblet.db"]
			delete(f, "joblet.db-wal")
		}, neither, 0, false},
		{"rubbish", func(f map[string][]byte) {
			f["joblet.db"] = bytes.Repeat([]byte("x"), 9000)
			delete(f, "joblet.db-wal")
		}, damage, 0, true},
		{"schema", func(f map[string][]byte) {
			f["joblet.db"] = bytes.Clone(closed)
			clear(f["joblet.db"][100:4096])
			delete(f, "joblet.db-wal")
		}, damage, 0, true},
		{"a page with records", func(f map[string][]byte) {
			f["joblet.db"] = bytes.Clone(closed)
			at := bytes.LastIndex(closed, []byte("xxxxxxxxxxxx")) &^ 4095
			clear(f["joblet.db"][at : at+4096])
			delete(f, "joblet.db-wal")
		}, damage, rescueJobs - 4, true},
		{"cut in half", func(f map[string][]byte) {
			f["joblet.db"] = closed[:len(closed)/2&^4095]
			delete(f, "joblet.db-wal")
		}, damage, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			files := map[string][]byte{}
			for name, data := range logged {
				files[name] = bytes.Clone(data)
			}
			tt.change(files)
			path := killed(t, files)
			says := func(cond Condition) string {
				switch {
				case cond.Damage != nil:
					return damage
				case cond.Behind != "":
					return lacks
				}
				return neither
			}
			for range 2 { // looking changes nothing
				cond, err := Examine(t.Context(), path)
				if err != nil || says(cond) != tt.want || cond.Unchecked {
					t.Fatalf("%+v, %v; want %s", cond, err, tt.want)
				}
			}
			for name, data := range files {
				if now, err := os.ReadFile(filepath.Join(filepath.Dir(path), name)); err != nil || !bytes.Equal(now, data) {
					t.Errorf("%s has changed: %v", name, err)
				}
			}
			keep := filepath.Join(filepath.Dir(path), "damaged")
			for round, want := range []string{tt.want, map[bool]string{true: lacks, false: neither}[tt.want != neither], neither} {
				s, cond, err := Rescue(t.Context(), path, keep)
				if err != nil || says(cond) != want || (s.Behind() != "") != (want != neither) {
					t.Fatalf("round %d: %+v, %v; want %s", round, cond, err, want)
				}
				if round == 0 {
					if cond.Kept != "" != tt.kept {
						t.Errorf("kept in %q, want it to be: %v", cond.Kept, tt.kept)
					} else if tt.kept {
						for name, data := range files {
							if kept, err := os.ReadFile(filepath.Join(cond.Kept, name)); name != "joblet.seq" && (err != nil || !bytes.Equal(kept, data)) {
								t.Errorf("%s was not kept as it was: %v", name, err)
							}
						}
					}
				}
				all, err := s.List(t.Context(), joblet.Filter{})
				if err != nil || len(all) < tt.least || len(all) > rescueJobs {
					t.Errorf("round %d: %d records, %v; want at least %d", round, len(all), err, tt.least)
				}
				for _, job := range all {
					if rec, err := s.Get(t.Context(), job.ID); err != nil || rec.Spec.Labels["a"] != "b" || string(rec.Sealed) != "sealed" {
						t.Errorf("%+v, %v", rec, err)
					}
				}
				if err := s.Check(t.Context()); err != nil {
					t.Error(err)
				}
				if round == 1 {
					if err := s.Vouch(t.Context()); err != nil {
						t.Error(err)
					}
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestCount: the file beside the database counts each change that is on disk, and
// is never ahead of the database.
func TestCount(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "joblet.db")
	s := reopen(t, path)
	counts := func() (file, table int64) {
		t.Helper()
		l, err := readLedger(ledgerPath(path))
		if err != nil {
			t.Fatal(err)
		}
		err = s.read(t.Context(), "count", func(c *sqlite.Conn) (err error) {
			table, err = pragma(c, "SELECT seq FROM ledger")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return l.seq, table
	}
	first, _ := counts()
	check := func(what string, wantFile, wantTable int64) {
		t.Helper()
		if file, table := counts(); file != first+wantFile || table != first+wantTable {
			t.Errorf("%s: counted %d and %d beyond %d, want %d and %d", what, file-first, table-first, first, wantFile, wantTable)
		}
	}
	job := jobN(1)
	mustInsert(t, s, job)
	check("inserted", 1, 1)
	job.State = joblet.Running
	if err := s.UpdateUnsynced(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	check("a change that need not be on disk", 1, 2)
	if err := s.Update(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	if err := s.Insert(t.Context(), job); joblet.KindOf(err) != joblet.AlreadyExists {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), job.ID); err != nil {
		t.Fatal(err)
	}
	check("deleted", 4, 4)
}
