package fsck

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
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
	"github.com/joblet/joblet/internal/supervisor"
	"github.com/joblet/joblet/internal/supervisor/staging"
	"github.com/joblet/joblet/internal/testenv"
)

// site is a state directory that a test makes by hand.
type site struct {
	t   *testing.T
	cfg Config

	empty string // the database, without jobs
}

func newSite(t *testing.T) *site {
	t.Helper()
	testenv.RequireRoot(t)
	dir := t.TempDir()
	s := &site{t: t, cfg: Config{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run")}}
	s.check(os.MkdirAll(s.path("jobs"), 0o700))
	s.records(func(*store.Store) {})
	empty, err := os.ReadFile(s.path("joblet.db"))
	s.check(err)
	s.empty = string(empty)
	return s
}

func (s *site) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) path(name ...string) string {
	return filepath.Join(append([]string{s.cfg.StateDir}, name...)...)
}

// records lends fn the opened database.
func (s *site) records(fn func(*store.Store)) {
	s.t.Helper()
	db, err := store.Open(s.t.Context(), s.path("joblet.db"))
	s.check(err)
	s.check(db.Vouch(s.t.Context()))
	fn(db)
	s.check(db.Close())
}

// insert records a job, which change may make another one than usual.
func (s *site) insert(rec store.Record, change func(*store.Record)) store.Record {
	s.t.Helper()
	if change != nil {
		change(&rec)
	}
	s.records(func(db *store.Store) { s.check(db.Insert(s.t.Context(), rec)) })
	return rec
}

func (s *site) get(id string) (rec store.Record) {
	s.t.Helper()
	s.records(func(db *store.Store) {
		var err error
		rec, err = db.Get(s.t.Context(), id)
		s.check(err)
	})
	return rec
}

func (s *site) write(data string, name ...string) {
	s.t.Helper()
	s.check(os.MkdirAll(filepath.Dir(s.path(name...)), 0o700))
	s.check(os.WriteFile(s.path(name...), []byte(data), 0o600))
}

func (s *site) remove(name ...string) {
	s.t.Helper()
	s.check(os.Remove(s.path(name...)))
}

// change writes over a part of a file.
func (s *site) change(off int64, data []byte, name ...string) {
	s.t.Helper()
	f, err := os.OpenFile(s.path(name...), os.O_WRONLY, 0)
	s.check(err)
	_, err = f.WriteAt(data, off)
	s.check(err)
	s.check(f.Close())
}

const siteLog = "one\ntwo\nthree\n"

// endedJob is a job that has FAILED with 3, all of it: record, log, files, exit record.
func (s *site) endedJob(change func(*store.Record)) string {
	s.t.Helper()
	id := joblet.NewID()
	dir := s.path("jobs", id)
	s.check(os.Mkdir(dir, 0o700))
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	s.check(err)
	defer unix.Close(fd)
	w, err := logstore.Create(fd, logstore.Options{})
	s.check(err)
	for i, line := range slices.Collect(strings.Lines(siteLog)) {
		_, err := w.Append([]byte(line), logstore.Stream(1+i%2), time.Unix(int64(i), 0))
		s.check(err)
	}
	s.check(w.End(time.Unix(9, 0)))
	s.check(w.Close())
	s.write(tarOf(s.t, "result"), "jobs", id, protocol.WorkName)
	record := protocol.Record{Code: 3, StartedNanos: 1e9, EndedNanos: 9e9, LogBytes: int64(len(siteLog)), WorkBytes: 6}
	s.exitRecord(id, record)
	rec := s.insert(store.Record{Job: joblet.Job{
		ID: id, Spec: joblet.Spec{Command: "x"}, Owner: "test", State: joblet.Failed, Created: time.Unix(0, 1), Started: time.Unix(1, 0), Ended: time.Unix(9, 0),
		Attempt: 1, Exit: &joblet.Exit{Code: 3}, LogBytes: record.LogBytes, WorkBytes: record.WorkBytes,
	}}, change)
	rec.State = joblet.Running // as it was noted when it began
	s.check(jobdir.WriteFile(s.path("jobs", id), outcome.FileOf(rec)))
	return id
}

func (s *site) exitRecord(id string, r protocol.Record) {
	s.t.Helper()
	data, err := json.Marshal(r)
	s.check(err)
	s.write(string(data), "jobs", id, protocol.ExitName(1))
}

func (s *site) waitingJob(change func(*store.Record)) string {
	s.t.Helper()
	return s.insert(store.Record{Job: joblet.Job{
		ID: joblet.NewID(), Spec: joblet.Spec{Command: "x"}, Owner: "test", State: joblet.Pending, Created: time.Unix(0, 1),
	}}, change).ID
}

func (s *site) sealed(id string) []byte {
	s.t.Helper()
	key := secrets.Sealer{Path: s.path(secrets.KeyName)}
	sealed, err := key.Seal(id, map[string]string{"TOKEN": "hunter2"})
	s.check(err)
	return sealed
}

// withSecret gives a job a sealed secret.
func (s *site) withSecret(r *store.Record) {
	r.Spec.SecretEnv = map[string]string{"TOKEN": joblet.Mask}
	r.Sealed = s.sealed(r.ID)
}

// fsck checks and returns what was found.
func (s *site) fsck(opt Options) (found []Problem, sum Summary) {
	s.t.Helper()
	sum, err := Run(s.t.Context(), s.cfg, opt, func(p Problem) { found = append(found, p) })
	s.check(err)
	problems, repaired := 0, 0
	for _, p := range found {
		if p.Status != ProblemNote {
			problems++
		}
		if p.Status == ProblemRepaired {
			repaired++
		}
	}
	if sum.Problems != problems || sum.Repaired != repaired {
		s.t.Errorf("%+v of %v", sum, found)
	}
	return found, sum
}

func tarOf(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte("result"), 0o600); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := archive.PackPaths(&b, []archive.Source{{Path: path, Name: name}}, archive.Filter{}, archive.DefaultLimits); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestFsckDamage makes one thing wrong at a time. What can be repaired is told
// first, then repaired, and then gone; what cannot is told each time, and
// nothing of it changes.
func TestFsckDamage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		damage func(s *site) (job string)
		want   string // in what is told
		status ProblemStatus
		deep   bool
		after  func(s *site, job string) // looks at what a repair has made of it
	}{
		{"nothing", func(s *site) string { return s.endedJob(nil) }, "", "", true, nil},
		{"state directory", func(s *site) string { s.check(os.Chmod(s.path(), 0o755)); return "" },
			"others have rights to it (mode 0755)", ProblemRepairable, false, nil},
		{"jobs' directory", func(s *site) string { s.check(os.Chmod(s.path("jobs"), 0o710)); return "" },
			"/jobs: others have rights to it (mode 0710)", ProblemRepairable, false, nil},
		{"key's mode", func(s *site) string { s.sealed("x"); s.check(os.Chmod(s.path(secrets.KeyName), 0o640)); return "" },
			"its mode is 0640 and not 0600", ProblemRepairable, false, nil},
		{"key's size", func(s *site) string { s.write("short", secrets.KeyName); return "" },
			"not a file of 32 bytes", ProblemLeft, false, nil},
		{"key that was being made", func(s *site) string { s.write("", secrets.KeyName+".new"); return "" },
			"left of an attempt to make a key", ProblemRepairable, false, nil},

		{"ended without an end", func(s *site) string {
			return s.endedJob(func(r *store.Record) { r.Ended = time.Time{} })
		}, "it is FAILED and has no time of its end", ProblemRepairable, false, func(s *site, job string) {
			if got := s.get(job).Ended; !got.Equal(time.Unix(9, 0)) {
				s.t.Errorf("ended %v", got)
			}
		}},
		{"lost without an end", func(s *site) string {
			return s.waitingJob(func(r *store.Record) { r.State = joblet.Lost })
		}, "it is LOST and has no time of its end", ProblemLeft, false, nil},
		{"waits with an end", func(s *site) string {
			return s.waitingJob(func(r *store.Record) { r.Ended = time.Unix(5, 0) })
		}, "it is PENDING and has the time of an end", ProblemRepairable, false, nil},
		{"another exit status", func(s *site) string {
			return s.endedJob(func(r *store.Record) { r.State, r.Exit = joblet.Completed, &joblet.Exit{} })
		}, "it is COMPLETED (exit status 0), which is not what its exit record says (exit status 3)", ProblemRepairable, false, func(s *site, job string) {
			if got := s.get(job); got.State != joblet.Failed || got.Exit.Code != 3 || !got.Ended.Equal(time.Unix(9, 0)) {
				s.t.Errorf("%+v", got.Job)
			}
		}},
		{"lost with an exit record", func(s *site) string {
			return s.endedJob(func(r *store.Record) { r.State, r.Exit, r.Reason = joblet.Lost, nil, "its shim is gone" })
		}, "it is LOST (no exit status)", ProblemRepairable, false, func(s *site, job string) {
			if got := s.get(job); got.State != joblet.Failed || got.Exit.Code != 3 || got.Reason != "" {
				s.t.Errorf("%+v", got.Job)
			}
		}},
		{"stopped with another status", func(s *site) string {
			return s.endedJob(func(r *store.Record) { r.State, r.Exit = joblet.Stopped, &joblet.Exit{Signal: 15} })
		}, "it is STOPPED (signal 15)", ProblemRepairable, false, func(s *site, job string) {
			if got := s.get(job); got.State != joblet.Stopped || got.Exit.Code != 3 || got.Exit.Signal != 0 {
				s.t.Errorf("%+v", got.Job)
			}
		}},
		{"never ran and has a status", func(s *site) string {
			id := s.endedJob(nil)
			s.exitRecord(id, protocol.Record{LogBytes: int64(len(siteLog)), Failure: &protocol.Failure{IsExec: true, Errno: unix.ENOENT}})
			return id
		}, "exit record says (never ran)", ProblemRepairable, false, func(s *site, job string) {
			if got := s.get(job); got.Exit != nil || got.Failure != joblet.CommandNotFound || !got.Ended.Equal(time.Unix(9, 0)) {
				s.t.Errorf("%+v", got.Job)
			}
		}},
		{"no exit record", func(s *site) string {
			id := s.endedJob(nil)
			s.remove("jobs", id, "exit.json")
			return id
		}, "its exit record is missing", ProblemLeft, false, nil},
		{"half an exit record", func(s *site) string {
			id := s.endedJob(nil)
			s.write(`{"code":`, "jobs", id, "exit.json")
			return id
		}, "exit.json is incomplete or garbled", ProblemLeft, false, nil},
		{"changed exit record", func(s *site) string {
			id := s.endedJob(nil)
			s.write(string(protocol.Seal([]byte(`{"code":3,"ended_nanos":9000000000}`)))[1:], "jobs", id, "exit.json")
			return id
		}, "the checksum of exit.json is wrong", ProblemLeft, false, nil},
		{"another exit record", func(s *site) string {
			id := s.endedJob(nil)
			s.write("{}", "jobs", id, "exit.json")
			return id
		}, "exit.json has no end", ProblemLeft, false, nil},
		{"huge exit record", func(s *site) string {
			id := s.endedJob(nil)
			s.check(os.Truncate(s.path("jobs", id, "exit.json"), jobdir.MaxExit+1))
			return id
		}, "its exit record cannot be read", ProblemLeft, false, nil},
		{"no directory", func(s *site) string {
			id := s.endedJob(nil)
			s.check(os.RemoveAll(s.path("jobs", id)))
			return id
		}, "its directory is missing", ProblemLeft, false, nil},
		{"file for a directory", func(s *site) string {
			id := s.endedJob(nil)
			s.check(os.RemoveAll(s.path("jobs", id)))
			s.write("", "jobs", id)
			return id
		}, "its directory cannot be read", ProblemLeft, false, nil},

		{"no log", func(s *site) string {
			id := s.endedJob(nil)
			s.remove("jobs", id, logstore.LogName)
			return id
		}, "its log is missing", ProblemLeft, false, nil},
		{"log cut short", func(s *site) string {
			id := s.endedJob(nil)
			s.check(os.Truncate(s.path("jobs", id, logstore.LogName), 5))
			return id
		}, "its log has 5 bytes, and it has written 14", ProblemLeft, false, nil},
		{"log is a link", func(s *site) string {
			id := s.endedJob(nil)
			s.remove("jobs", id, logstore.LogName)
			s.check(os.Symlink("/etc/passwd", s.path("jobs", id, logstore.LogName)))
			return id
		}, "its log cannot be read", ProblemLeft, false, nil},
		{"log index: header", func(s *site) string {
			id := s.endedJob(nil)
			s.change(20, []byte("?"), "jobs", id, logstore.IndexName)
			return id
		}, "the index of its log is damaged", ProblemLeft, false, nil},
		{"log index: a record", func(s *site) string {
			id := s.endedJob(nil)
			s.change(64+32+3, []byte("?"), "jobs", id, logstore.IndexName)
			return id
		}, "the index of its log is damaged", ProblemLeft, false, nil},
		{"log index: the end", func(s *site) string {
			id := s.endedJob(nil)
			s.check(os.Truncate(s.path("jobs", id, logstore.IndexName), 64+2*32))
			return id
		}, "the index of its log is damaged", ProblemLeft, false, nil},

		{"no files", func(s *site) string {
			id := s.endedJob(nil)
			s.remove("jobs", id, protocol.WorkName)
			return id
		}, "the files that it left in /work are missing (work.tar)", ProblemLeft, false, nil},
		{"files cut short", func(s *site) string {
			id := s.endedJob(nil)
			s.check(os.Truncate(s.path("jobs", id, protocol.WorkName), 700))
			return id
		}, "the files that it left in /work cannot be read", ProblemLeft, true, nil},
		{"files being written", func(s *site) string {
			id := s.endedJob(nil)
			s.write("x", "jobs", id, "work.tar.tmp")
			return id
		}, `"work.tar.tmp" is left`, ProblemRepairable, false, func(s *site, job string) {
			if _, err := os.Stat(s.path("jobs", job, protocol.WorkName)); err != nil {
				s.t.Error(err)
			}
		}},
		{"exit record being written", func(s *site) string {
			id := s.waitingJob(func(r *store.Record) { r.State, r.Ended, r.Attempt = joblet.Lost, time.Unix(9, 0), 2 })
			s.write("", "jobs", id, "exit-2.json.tmp")
			return id
		}, `"exit-2.json.tmp" is left`, ProblemRepairable, false, nil},

		{"secrets after the end", func(s *site) string { return s.endedJob(s.withSecret) },
			"its secrets are still in its record", ProblemRepairable, false, func(s *site, job string) {
				if got := s.get(job); got.Sealed != nil || got.Exit == nil {
					s.t.Errorf("%+v", got)
				}
			}},
		{"another key", func(s *site) string {
			id := s.waitingJob(s.withSecret)
			s.write(strings.Repeat("k", secrets.KeySize), secrets.KeyName)
			return id
		}, "its secrets cannot be opened", ProblemLeft, false, nil},
		{"no key", func(s *site) string {
			id := s.waitingJob(s.withSecret)
			s.remove(secrets.KeyName)
			return id
		}, "secrets.key is missing", ProblemLeft, false, nil},
		{"no secrets", func(s *site) string {
			return s.waitingJob(func(r *store.Record) { r.Spec.SecretEnv = map[string]string{"TOKEN": joblet.Mask} })
		}, "its secrets are missing in its record", ProblemLeft, false, nil},
		{"no files came along", func(s *site) string {
			return s.waitingJob(func(r *store.Record) { r.Spec.Uploads = []string{"src"} })
		}, "the files that came along with it are missing (files.tar)", ProblemLeft, false, nil},
		{"no files for the next attempt", func(s *site) string {
			return s.waitingJob(func(r *store.Record) {
				r.State, r.Attempt, r.Spec.Retries, r.Spec.Uploads = joblet.Scheduled, 1, 3, []string{"src"}
				r.Past = []joblet.Attempt{{State: joblet.Failed}}
			})
		}, "the files that came along with it are missing", ProblemLeft, false, nil},
		{"damaged files came along", func(s *site) string {
			id := s.waitingJob(func(r *store.Record) { r.Spec.Uploads = []string{"src"} })
			s.write("no archive", "jobs", id, jobdir.FilesName)
			return id
		}, "the files that came along with it cannot be read", ProblemLeft, true, nil},
		{"no standard input", func(s *site) string {
			return s.waitingJob(func(r *store.Record) { r.Spec.Stdin = joblet.StdinFile })
		}, "its standard input is missing", ProblemLeft, false, nil},
		{"dependency", func(s *site) string {
			return s.waitingJob(func(r *store.Record) { r.Spec.DependsOn = []string{joblet.NewID()} })
		}, "on which it depends, is gone", ProblemLeft, false, nil},

		{"start without a record", func(s *site) string {
			id := joblet.NewID()
			s.write("", "jobs", id, "exit.json.tmp")
			s.write("", "jobs", id, jobdir.FilesName)
			s.write("", "jobs", id, logstore.LogName)
			return id
		}, "that tells of the job, which can be recorded again", ProblemRepairable, false, func(s *site, job string) {
			if got := s.get(job); got.State != joblet.Lost || got.Attempt != 1 || !strings.Contains(got.Reason, outcome.LostReason) {
				s.t.Errorf("%+v", got.Job)
			}
		}},
		{"files without a record", func(s *site) string {
			id := joblet.NewID()
			s.write("", "jobs", id, jobdir.FilesName)
			return id
		}, "without output or exit record, which is of no use", ProblemRepairable, false, func(s *site, job string) {
			if _, err := os.Stat(s.path("jobs", job)); err == nil {
				s.t.Error("it is still there")
			}
		}},
		{"not a job's", func(s *site) string { s.write("mine", "jobs", "my\x1bfile"); return "" },
			`"my\x1bfile" is not a job's`, ProblemLeft, false, nil},
		{"file named as a job", func(s *site) string {
			id := joblet.NewID()
			s.write("mine", "jobs", id)
			return id
		}, "its directory is something else", ProblemLeft, false, nil},
		{"output without a log", func(s *site) string {
			return s.waitingJob(func(r *store.Record) {
				r.State, r.Ended, r.Attempt, r.LogBytes = joblet.Lost, time.Unix(9, 0), 1, 5
			})
		}, "its directory is missing", ProblemLeft, false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			job := tt.damage(s)
			before := snapshotDir(t, s.cfg.StateDir)
			for _, step := range []struct {
				repair bool
				want   ProblemStatus
			}{
				{false, tt.status},
				{true, map[ProblemStatus]ProblemStatus{ProblemRepairable: ProblemRepaired}[tt.status]},
				{true, ""},
			} {
				if tt.status == ProblemLeft {
					step.want = ProblemLeft
				}
				found, _ := s.fsck(Options{Repair: step.repair, Deep: tt.deep})
				found = slices.DeleteFunc(found, func(p Problem) bool { return p.Status == ProblemNote })
				if step.want == "" && len(found) == 0 {
					continue
				}
				if len(found) != 1 || found[0].Status != step.want || found[0].Job != job || !strings.Contains(found[0].String(), tt.want) {
					t.Fatalf("repair %v: found %v; want %q, %s", step.repair, found, tt.want, step.want)
				}
				if !step.repair || tt.status == ProblemLeft {
					if after := snapshotDir(t, s.cfg.StateDir); after != before {
						t.Errorf("it has changed\n%s\nto\n%s", before, after)
					}
				}
			}
			if tt.after != nil {
				tt.after(s, job)
			}
		})
	}
}

// snapshotDir lists what is in a directory, with modes and sizes, but for the
// database, which is opened by a check.
func snapshotDir(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if !strings.HasPrefix(e.Name(), "joblet.db") {
			fmt.Fprintf(&b, "%s %v %d\n", path, info.Mode(), info.Size())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestFsckOthersRights shows what a check changes even without Repair.
func TestFsckOthersRights(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.check(os.Chmod(s.path("joblet.db"), 0o644))
	found, _ := s.fsck(Options{})
	if len(found) != 1 || found[0].Status != ProblemRepaired || !strings.Contains(found[0].What, "joblet.db: others have rights to it (mode 0644)") {
		t.Errorf("found %v", found)
	}
	if found, _ := s.fsck(Options{}); len(found) != 0 {
		t.Errorf("then found %v", found)
	}
}

// TestFsckRecords damages the job records. All that the directories know is in the
// new ones, and the damaged files are kept.
func TestFsckRecords(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		damage func(s *site)
		want   string
		keeps  bool // damaged files
	}{
		{"missing", func(s *site) { s.remove("joblet.db") }, "the job records are missing, and directories of 2 jobs are there", false},
		{"missing, all of it", func(s *site) { s.remove("joblet.db"); s.remove("joblet.seq") }, "the job records are missing", false},
		{"empty", func(s *site) { s.write("", "joblet.db") }, "missing or empty", false},
		{"log without a database", func(s *site) { s.remove("joblet.db"); s.write("frames", "joblet.db-wal") }, "the job records are missing", true},
		{"rubbish", func(s *site) { s.write(strings.Repeat("x", 8192), "joblet.db") }, "are damaged", true},
		{"cut short", func(s *site) { s.check(os.Truncate(s.path("joblet.db"), 3*4096)) }, "are damaged", true},
		{"a page is gone", func(s *site) { s.change(4096, make([]byte, 4096), "joblet.db") }, "are damaged", true},
		{"old copy", func(s *site) { s.write(s.empty, "joblet.db") }, "the last 2 changes are missing", false},
		{"no count", func(s *site) { s.remove("joblet.seq") }, "joblet.seq, which counts the changes of the job records, is missing", false},
		{"damaged count", func(s *site) { s.change(10, []byte("?"), "joblet.seq") }, "its checksum is wrong", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			id, other := s.endedJob(nil), s.endedJob(nil)
			tt.damage(s)
			before := snapshotDir(t, s.cfg.StateDir)
			found, _ := s.fsck(Options{})
			if len(found) != 1 || found[0].Status != ProblemRepairable || !strings.Contains(found[0].What, tt.want) {
				t.Errorf("found %v, want %q", found, tt.want)
			}
			if after := snapshotDir(t, s.cfg.StateDir); after != before {
				t.Errorf("it has changed\n%s\nto\n%s", before, after)
			}
			found, sum := s.fsck(Options{Repair: true})
			if sum.Problems == 0 || sum.Repaired != sum.Problems {
				t.Errorf("repaired: %v", found)
			}
			found, _ = s.fsck(Options{})
			if len(found) != 0 {
				t.Errorf("then found %v", found)
			}
			for _, id := range []string{id, other} {
				got := s.get(id)
				if got.State != joblet.Failed || got.Exit == nil || got.Exit.Code != 3 || got.Owner != "test" || got.Spec.Command != "x" || got.Attempt != 1 ||
					!got.Ended.Equal(time.Unix(9, 0)) || !got.Started.Equal(time.Unix(1, 0)) || !got.Created.Equal(time.Unix(0, 1)) || got.LogBytes != int64(len(siteLog)) {
					t.Errorf("the record is %+v", got.Job)
				}
				if data, err := os.ReadFile(s.path("jobs", id, logstore.LogName)); err != nil || string(data) != siteLog {
					t.Errorf("its log is %q: %v", data, err)
				}
			}
			if kept, _ := filepath.Glob(s.path(statedir.DamagedName, "*", "joblet.db*")); len(kept) > 0 != tt.keeps {
				t.Errorf("kept %v", kept)
			}
		})
	}
}

// TestFsckPages has more jobs than one page, with problems on each.
func TestFsckPages(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const n = 2*fsckPage + 1
	s.records(func(db *store.Store) {
		for i := range n {
			s.check(db.Insert(t.Context(), store.Record{Job: joblet.Job{
				ID: fmt.Sprintf("%08x-0000-4000-8000-000000000000", i), Spec: joblet.Spec{Command: "x"}, Owner: "test", Created: time.Unix(0, 1),
				State: joblet.Completed, Attempt: 1, Exit: &joblet.Exit{}, Ended: time.Unix(1, 0),
			}}))
		}
	})
	if found, sum := s.fsck(Options{}); len(found) != n || sum.Jobs != n {
		t.Errorf("%d problems, %+v", len(found), sum)
	}
}

// TestFsckHealthy checks what real jobs leave, whatever becomes of them.
func TestFsckHealthy(t *testing.T) {
	testenv.RequireRoot(t)
	dir := t.TempDir()
	s := &site{t: t, cfg: Config{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run")}}
	sup, err := supervisor.Open(t.Context(), supervisor.Config{StateDir: s.cfg.StateDir, RunDir: s.cfg.RunDir})
	s.check(err)
	submit := func(spec joblet.Spec, input *staging.Upload) joblet.Job {
		t.Helper()
		job, err := sup.Submit(t.Context(), spec, "test", input)
		s.check(err)
		return job
	}
	sh := func(script string) joblet.Spec { return joblet.Spec{Command: "sh", Args: []string{"-c", script}} }
	wait := func(id string, want joblet.State) {
		t.Helper()
		job, err := sup.Wait(t.Context(), id)
		s.check(err)
		if job.State != want {
			t.Fatalf("%v: %s", job.State, job.Reason)
		}
	}

	wait(submit(sh("echo hello; echo bad >&2; echo x >/work/y"), nil).ID, joblet.Completed)
	failing := sh("echo again; echo z >/work/z; exit 3")
	failing.Retries, failing.RetryDelay = 2, time.Millisecond
	wait(submit(failing, nil).ID, joblet.Failed)
	slow := sh("echo slow; sleep 60")
	slow.Timeout = 50 * time.Millisecond
	wait(submit(slow, nil).ID, joblet.TimedOut)
	killed := submit(sh("kill -9 $$; sleep 60"), nil)
	_, err = sup.Stop(t.Context(), killed.ID, joblet.StopOptions{Grace: 0})
	s.check(err)
	retried := failing
	retried.RetryDelay = time.Hour
	between := submit(retried, nil).ID
	if !eventually(func() bool {
		job, err := sup.Job(t.Context(), between)
		return err == nil && job.State == joblet.Scheduled
	}) {
		t.Fatal("no retry")
	}
	_, err = sup.Cancel(t.Context(), between)
	s.check(err)
	wait(between, joblet.Stopped)
	missing := sh("")
	missing.Command, missing.Schedule = "no-such-command", "+1s"
	never := submit(missing, nil).ID

	later := sh("true")
	later.Schedule, later.SecretEnv, later.Stdin = "+1h", map[string]string{"TOKEN": "hunter2"}, joblet.StdinFile
	input := sup.Stage("uid:0")
	s.check(input.Files(strings.NewReader(tarOf(t, "src"))))
	s.check(input.Stdin(strings.NewReader("input")))
	first := submit(later, input).ID
	next := sh("true")
	next.DependsOn = []string{first}
	waits := submit(next, nil).ID
	waitsAgain := submit(retried, nil).ID
	running := submit(sh("echo up; sleep 600"), nil)
	secret := later
	secret.Stdin = joblet.StdinNone
	canceled := submit(secret, nil).ID
	_, err = sup.Cancel(t.Context(), canceled)
	s.check(err)
	wait(never, joblet.Failed)
	if !eventually(func() bool {
		job, err := sup.Job(t.Context(), waitsAgain)
		return err == nil && job.State == joblet.Scheduled
	}) {
		t.Fatal("no retry")
	}
	s.check(sup.Close())

	found, sum := s.fsck(Options{Deep: true})
	if len(found) != 1 || found[0].Status != ProblemNote || found[0].Job != running.ID || found[0].What != "it runs" || sum.Jobs != 11 || sum.Bytes == 0 {
		t.Errorf("%v, %+v", found, sum)
	}

	// The check has left the running job alone, and tells when it is over.
	if err := unix.Kill(running.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !eventually(func() bool { _, err := jobdir.ReadExit(s.path("jobs", running.ID), 1); return err == nil }) {
		t.Fatal("no exit record")
	}
	if !eventually(func() bool { return !native.HasShim([]string{s.cfg.RunDir}, s.get(running.ID).Box) }) {
		t.Fatal("its shim stays")
	}
	if found, _ := s.fsck(Options{Repair: true, Deep: true}); len(found) != 1 || !strings.Contains(found[0].String(), "ended while no daemon ran") {
		t.Errorf("%v", found)
	}
	sup, err = supervisor.Open(t.Context(), supervisor.Config{StateDir: s.cfg.StateDir, RunDir: s.cfg.RunDir})
	s.check(err)
	wait(running.ID, joblet.Failed)
	for _, id := range []string{waits, first, waitsAgain} {
		_, err := sup.Cancel(t.Context(), id)
		if err != nil && joblet.KindOf(err) != joblet.FailedPrecondition { // canceled with what it depends on
			t.Error(err)
		}
	}
	s.check(sup.Close())
	if found, _ := s.fsck(Options{Deep: true}); len(found) != 0 {
		t.Errorf("%v", found)
	}
}

// TestFsckHost has a box that no job has: its shim lives at first.
func TestFsckHost(t *testing.T) {
	t.Parallel()
	testenv.RequireRoot(t)
	s := newSite(t)
	e, err := native.Open(native.Config{RunDir: s.cfg.RunDir})
	s.check(err)
	box, err := e.Take(t.Context(), nil)
	s.check(err)
	t.Cleanup(func() { _ = e.Release(box.ID, box.Leases) })
	orphan := joblet.NewID()
	s.write("", "jobs", orphan, "exit.json.tmp")
	found, _ := s.fsck(Options{Repair: true})
	if len(found) != 2 || found[0].Status != ProblemLeft || !strings.Contains(found[0].What, "its shim runs, and no job has it") ||
		found[1].Status != ProblemLeft || found[1].Job != orphan {
		t.Errorf("found %v", found)
	}

	s.check(unix.Kill(shimOf(t, box.ID), unix.SIGKILL))
	if !eventually(func() bool { return !native.HasShim([]string{s.cfg.RunDir}, box.ID) }) {
		t.Fatal("the shim stays")
	}
	for _, want := range []ProblemStatus{ProblemRepairable, ProblemRepaired} {
		found, _ := s.fsck(Options{Repair: want == ProblemRepaired})
		if len(found) != 2 || found[0].Status != want || !strings.Contains(found[0].What, "its cgroups are left, and no job has it") || found[1].Status != want {
			t.Errorf("found %v, want %s", found, want)
		}
	}
	s.check(e.Close())
	if found, _ := s.fsck(Options{}); len(found) != 0 {
		t.Errorf("then found %v", found)
	}
}

// eventually waits until ok is true, for 20 s.
func eventually(ok func() bool) bool {
	for range 2000 {
		if ok() {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// shimOf returns the process that is a box's shim.
func shimOf(t *testing.T, box string) int {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		line, _ := os.ReadFile(name) // many end meanwhile
		if string(line) != "joblet-shim\x00"+box+"\x00" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			t.Fatal(err)
		}
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(name), "stat"))
		if err == nil && strings.Contains(string(parent), ") ") { // the first process has the same arguments
			if fields := strings.Fields(string(parent)[strings.LastIndex(string(parent), ") ")+2:]); fields[1] == strconv.Itoa(os.Getpid()) {
				return pid
			}
		}
	}
	t.Fatal("no shim")
	return 0
}

// TestFsckInUse has another process, which is this program again, hold the
// records open.
func TestFsckInUse(t *testing.T) {
	const variable = "JOBLET_TEST_HOLD_RECORDS"
	if path := os.Getenv(variable); path != "" {
		db, err := store.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("open")
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the other closes it
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Parallel()
	s := newSite(t)
	holder := exec.Command(os.Args[0], "-test.run=^TestFsckInUse$")
	holder.Env = append(os.Environ(), variable+"="+s.path("joblet.db"))
	in, err := holder.StdinPipe()
	s.check(err)
	out, err := holder.StdoutPipe()
	s.check(err)
	s.check(holder.Start())
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	_, err = Run(t.Context(), s.cfg, Options{Repair: true}, func(p Problem) { t.Error(p) })
	if want := fmt.Sprintf("process %d has ", holder.Process.Pid); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s…", err, want)
	}
	s.check(in.Close())
	_, _ = out.Read(make([]byte, 100))
	s.check(holder.Wait())
	if found, _ := s.fsck(Options{}); len(found) != 0 {
		t.Errorf("then found %v", found)
	}
}

func TestFsckNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := Run(t.Context(), Config{StateDir: filepath.Join(dir, "none"), RunDir: dir}, Options{}, func(p Problem) { t.Error(p) }); err == nil {
		t.Error("no state directory: no error")
	}
	s := &site{t: t, cfg: Config{StateDir: dir, RunDir: dir}}
	s.check(os.Chmod(dir, 0o700))
	if found, _ := s.fsck(Options{Repair: true}); len(found) != 1 || found[0].Status != ProblemNote || !strings.Contains(found[0].What, "no job records") {
		t.Errorf("found %v", found)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("made %v: %v", entries, err)
	}
}
