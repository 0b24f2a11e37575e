package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/testenv"
)

// crashPath, in the environment, makes the test binary insert into the job
// records there until it is killed, and say so of each.
const crashPath = "STORE_TEST_CRASH_PATH"

func TestMain(m *testing.M) {
	if path := os.Getenv(crashPath); path != "" {
		insertForever(path)
	}
	os.Exit(m.Run())
}

func withSQL(t *testing.T, path string, flags sqlite.OpenFlags, script string) {
	t.Helper()
	c, err := sqlite.OpenConn(path, flags)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sqlitex.ExecuteScript(c, script, nil), c.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	records := filepath.Join(t.TempDir(), "joblet.db")
	s := reopen(t, records)
	for n := range 200 {
		job := jobN(n)
		job.Spec.Args = []string{strings.Repeat("x", 1000)}
		mustInsert(t, s, job)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(records)
	if err != nil {
		t.Fatal(err)
	}
	random := make([]byte, len(good))
	_, _ = rand.Read(random)
	damagedAt := func(from, to int) []byte {
		b := bytes.Clone(good)
		copy(b[from:to], random)
		return b
	}
	content := func(b []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	script := func(text string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			content(good)(t, path)
			withSQL(t, path, sqlite.OpenReadWrite, text)
		}
	}
	for _, tc := range []struct {
		name string
		make func(*testing.T, string)
		want string
	}{
		{"random bytes", content(random), "damaged"},
		{"text", content([]byte("hello\n")), "damaged"},
		{"long text", content(bytes.Repeat([]byte("hello\n"), 10000)), "damaged"},
		{"cut in half", content(good[:len(good)/2]), "damaged"},
		{"header alone", content(good[:100]), "damaged"},
		{"half a header", content(good[:50]), "damaged"},
		{"one page", content(good[:4096]), "damaged"},
		{"schema overwritten", content(damagedAt(100, 4096)), "damaged"},
		{"all but the header overwritten", content(damagedAt(4096, len(good))), "damaged"},
		{"no table", script("DROP TABLE job"), "damaged"},
		{"no index", script("DROP INDEX job_owner"), "damaged"},
		{"no index of labels", script("DROP INDEX label_value"), "damaged"},
		{"no index of ends", script("DROP INDEX job_ended"), "damaged"},
		{"no trigger", script("DROP TRIGGER job_updated"), "damaged"},
		{"no version", script("PRAGMA user_version = 0"), "another program"},
		{"newer schema", script("PRAGMA user_version = 99"), "version is 99"},
		{"another program's", func(t *testing.T, path string) {
			withSQL(t, path, sqlite.OpenReadWrite|sqlite.OpenCreate, "CREATE TABLE t (a); PRAGMA user_version = 1")
		}, "another program"},
		{"directory", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "is a directory"},
		{"fifo", func(t *testing.T, path string) {
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a regular file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "joblet.db")
			tc.make(t, path)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			var before []byte
			if info.Mode().IsRegular() {
				if before, err = os.ReadFile(path); err != nil {
					t.Fatal(err)
				}
			}
			_, err = Open(t.Context(), path)
			wantKind(t, err, joblet.FailedPrecondition, path, tc.want)
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %q", err)
			}
			if before == nil {
				return
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
				t.Errorf("Open changed the file, %v", err)
			}
		})
	}

	missing := filepath.Join(t.TempDir(), "nowhere", "joblet.db")
	_, err = Open(t.Context(), missing)
	wantKind(t, err, joblet.FailedPrecondition, missing, "create "+filepath.Dir(missing))
}

// Damage that Open cannot see is an error of the query that meets it.
func TestDamageFoundLater(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "joblet.db")
	s := reopen(t, path)
	for n := range 500 {
		mustInsert(t, s, jobN(n))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for page := info.Size() / 4096 / 4; page < info.Size()/4096*3/4; page++ {
		if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, 4096), page*4096); err != nil {
			t.Fatal(err)
		}
	}
	_ = f.Close()
	if s, err = Open(t.Context(), path); err == nil {
		wantKind(t, s.Check(t.Context()), joblet.FailedPrecondition, path, "damaged")
		_, err = s.List(t.Context(), joblet.Filter{})
		_ = s.Close()
	}
	wantKind(t, err, joblet.FailedPrecondition, path, "damaged")
}

func TestFilesArePrivate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "joblet.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	mustInsert(t, reopen(t, path), jobN(1))
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if info, err := os.Stat(path + suffix); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("joblet.db%s: %v, %v", suffix, info, err)
		}
	}
}

// From every earlier schema, and from an interrupted migration, to one that
// does not exist yet.
func TestMigrate(t *testing.T) {
	t.Parallel()
	released, err := steps()
	if err != nil || len(released) == 0 {
		t.Fatalf("%d steps, %v", len(released), err)
	}
	future := append(released, `ALTER TABLE job ADD COLUMN label TEXT NOT NULL DEFAULT 'none'; -- comment`,
		`CREATE INDEX job_label ON job (label); UPDATE job SET label = 'moved';`)
	for version := 0; version <= len(released); version++ {
		t.Run(fmt.Sprint("from ", version), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "joblet.db")
			c, err := sqlite.OpenConn(path, sqlite.OpenReadWrite|sqlite.OpenCreate)
			if err != nil {
				t.Fatal(err)
			}
			if err := migrate(c, 0, released[:version]); err != nil {
				t.Fatal(err)
			}
			if version > 0 {
				// A row as the first version wrote it.
				err := sqlitex.ExecuteScript(c, fmt.Sprintf(`INSERT INTO job (seq, id, state, owner, created, reason, pid, id_base, log_bytes, spec)
					VALUES (1, '%s', 'RUNNING', 'uid:0', 1, '', 0, 0, 0, '{"command":"true"}')`, jobN(1).ID), nil)
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}

			broken := append(future[:len(future)-1:len(future)-1], "CREATE TABLE half (a); nonsense;")
			if _, err := open(t.Context(), path, broken); err == nil || !strings.Contains(err.Error(), fmt.Sprint("version ", len(future))) {
				t.Fatalf("a broken step: %v", err)
			}
			s, err := open(t.Context(), path, future)
			if err != nil {
				t.Fatal(err)
			}
			mustInsert(t, s, jobN(2))
			all, err := s.List(t.Context(), joblet.Filter{})
			if want := 1 + min(version, 1); err != nil || len(all) != want {
				t.Errorf("%d jobs, %v, want %d", len(all), err, want)
			}
			var moved int64
			err = s.read(t.Context(), "count", func(c *sqlite.Conn) (err error) {
				moved, err = pragma(c, "SELECT count(*) FROM job WHERE label = 'moved'")
				return err
			})
			if err != nil || moved != int64(min(version, 1)) {
				t.Errorf("%d rows moved, %v", moved, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			_, err = Open(t.Context(), path)
			wantKind(t, err, joblet.FailedPrecondition, path, "newer joblet")
		})
	}
}

// versionOne makes a database as the first released version left it, with a
// job in each state, and returns what is in it, newest first.
func versionOne(t *testing.T, path string) []Record {
	t.Helper()
	released, err := steps()
	if err != nil {
		t.Fatal(err)
	}
	script := released[0] + fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = 1; PRAGMA journal_mode = WAL;", applicationID)
	var all []Record
	for n, state := range joblet.States() {
		job := jobN(n)
		job.State, job.Owner = state, []string{"uid:0", "cert:bob"}[n%2]
		job.Reason, job.PID, job.IDBase, job.LogBytes = "it's so", 100+n, 0x70000000, int64(n)<<20
		name, spec := "NULL", `{"command":"sh","args":["-c","a && b"],"env":{"A":"1"},"secret_env":{"TOKEN":"***"},"timeout":60000000000}`
		job.Spec = joblet.Spec{
			Command: "sh", Args: []string{"-c", "a && b"}, Env: map[string]string{"A": "1"},
			SecretEnv: map[string]string{"TOKEN": joblet.Mask}, Timeout: time.Minute,
		}
		if n%3 == 0 {
			name, spec = "'train'", `{"command":"python","name":"train","runtime":"python-3.11","init":true}`
			job.Spec = joblet.Spec{Command: "python", Name: "train", Runtime: "python-3.11", Init: true}
		}
		started, ended, code, signal := "NULL", "NULL", "NULL", "NULL"
		if n > 2 {
			job.Started = job.Created.Add(1)
			started = fmt.Sprint(job.Started.UnixNano())
		}
		if state.Final() {
			job.Ended = job.Created.Add(time.Hour)
			ended = fmt.Sprint(job.Ended.UnixNano())
		}
		if state == joblet.Completed || state == joblet.Failed {
			job.Exit = &joblet.Exit{Code: n, Signal: n - 5}
			code, signal = fmt.Sprint(n), fmt.Sprint(n-5)
		}
		script += fmt.Sprintf(`INSERT INTO job (seq, id, state, owner, name, created, started, ended, exit_code, exit_signal,
			reason, pid, id_base, log_bytes, spec) VALUES (%d, '%s', '%v', '%s', %s, %d, %s, %s, %s, %s, 'it''s so', %d, %d, %d, '%s');`,
			job.Created.UnixNano(), job.ID, state, job.Owner, name, job.Created.UnixNano(), started, ended, code, signal,
			job.PID, job.IDBase, job.LogBytes, spec)
		all = append(all, job)
	}
	c, err := sqlite.OpenConn(path, sqlite.OpenReadWrite|sqlite.OpenCreate)
	if err != nil {
		t.Fatal(err)
	}
	for text := strings.TrimSpace(script); text != ""; text = strings.TrimSpace(text) {
		stmt, trailing, err := c.PrepareTransient(text)
		if err == nil {
			_, err = stmt.Step()
			err = errors.Join(err, stmt.Finalize())
		}
		if err != nil {
			t.Fatal(err)
		}
		text = text[len(text)-trailing:]
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(all)
	return all
}

// Records of the first released version: all are there afterwards, and what
// is new works for them, too.
func TestFromVersionOne(t *testing.T) {
	t.Parallel()
	released, err := steps()
	if err != nil {
		t.Fatal(err)
	}
	for _, interrupted := range []bool{false, true} {
		t.Run(fmt.Sprint("interrupted ", interrupted), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "joblet.db")
			all := versionOne(t, path)
			if interrupted {
				_, err := open(t.Context(), path, []string{released[0], released[1] + "nonsense;"})
				if err == nil || !strings.Contains(err.Error(), "version 2") {
					t.Fatalf("a broken step: %v", err)
				}
				withSQL(t, path, sqlite.OpenReadWrite, `SELECT seq FROM job INDEXED BY job_owner WHERE owner = '' AND state = '';
					CREATE TABLE label (a); DROP TABLE label;`) // nothing of version 2 is left
			}
			s := reopen(t, path)
			if err := s.Check(t.Context()); err != nil {
				t.Error(err)
			}
			for _, want := range all {
				if got, err := s.Get(t.Context(), want.ID); err != nil || !reflect.DeepEqual(got, want) {
					t.Errorf("Get: %+v, %v\nwant %+v", got, err, want)
				}
			}
			for _, f := range []joblet.Filter{
				{}, {Name: "train"}, {Owner: "cert:bob"}, {States: []joblet.State{joblet.Failed, joblet.Running}},
				{Name: "train", Owner: "uid:0", States: []joblet.State{joblet.Stopped}},
				{EndedBefore: jobN(8).Created.Add(time.Hour)}, {Parent: all[0].ID}, {Labels: labels("a")}, {Since: jobN(3).Created},
			} {
				want := []int{}
				for _, r := range all {
					if passes(f, r.Job) {
						want = append(want, numbers([]joblet.Job{r.Job})...)
					}
				}
				if got, err := s.List(t.Context(), f); err != nil || !slices.Equal(numbers(got), want) {
					t.Errorf("%+v: jobs %v, %v, want %v", f, numbers(got), err, want)
				}
			}
			if got, err := s.Resolve(t.Context(), "train", "cert:bob"); err != nil || got.ID != jobN(3).ID {
				t.Errorf("train is %s, %v", got.ID, err)
			}
			if got, err := s.Unfinished(t.Context()); err != nil || len(got) != 6 || got[0].ID != jobN(0).ID {
				t.Errorf("%d unfinished, %v", len(got), err)
			}
			if got, err := s.OldestEnded(t.Context(), 2); err != nil || !slices.Equal(numbers(got), []int{6, 7}) {
				t.Errorf("oldest ended: %v, %v", numbers(got), err)
			}

			// They can end and go as others do.
			rec := all[len(all)-1]
			rec.State, rec.Ended, rec.DiskBytes, rec.Sealed, rec.Attempt = joblet.Canceled, rec.Created.Add(1), 7, []byte("x"), 1
			if err := s.Update(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Get(t.Context(), rec.ID); err != nil || !reflect.DeepEqual(got, rec) {
				t.Errorf("Get: %+v, %v\nwant %+v", got, err, rec)
			}
			if got, err := s.DiskBytes(t.Context()); err != nil || got != 7 {
				t.Errorf("%d bytes, %v", got, err)
			}
			for _, r := range all {
				if err := s.Delete(t.Context(), r.ID); err != nil {
					t.Error(err)
				}
			}
			if err := s.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// Check finds what is too expensive for Open.
func TestCheck(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, script, want string }{
		{"nothing", "", ""},
		{"orphan", "INSERT INTO label VALUES (17, 'a', 'b', '', 'RUNNING', NULL)", "labels without a job, in row 17"},
		{"state of a label", "UPDATE label SET state = 'RUNNING' WHERE name = 'c'", "labels out of step with job " + jobN(1).ID},
		{"end of a label", "UPDATE label SET ended = 1", "labels out of step with job " + jobN(1).ID},
		{"label missing", "DELETE FROM label WHERE name = 'a'", "the number of labels is wrong of job " + jobN(1).ID},
		{"label too many", "UPDATE job SET labels = 0", "the number of labels is wrong of job " + jobN(1).ID},
		{"other label", "UPDATE label SET value = 'x' WHERE name = 'a'", "the labels are not the spec's of job " + jobN(1).ID},
		{"state", "UPDATE job SET state = 'BORED' WHERE name = 'name'", "the state is unknown of job " + jobN(1).ID},
		{"spec", "UPDATE job SET spec = '{' WHERE name = 'name'", "the spec is not JSON of job " + jobN(1).ID},
		{"past", "UPDATE job SET past = '{' WHERE name = 'name'", "the past attempts are not JSON of job " + jobN(1).ID},
		{"name", "UPDATE job SET name = 'x' WHERE name = 'name'", "the name is not the spec's of job " + jobN(1).ID},
		{"key", "UPDATE job SET idem_key = id", "the idempotency key is not the spec's of job " + jobN(1).ID},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "joblet.db")
			s := reopen(t, path)
			job := jobN(1)
			job.Spec.Labels = map[string]string{"c": "d", "a": "ü \"\u2028"}
			job.Spec.Name, job.Spec.IdempotencyKey = "name", "key"
			mustInsert(t, s, job, jobN(2))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			withSQL(t, path, sqlite.OpenReadWrite, tc.script)
			s = reopen(t, path)
			err := s.Check(t.Context())
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantKind(t, err, joblet.FailedPrecondition, path, tc.want)
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %q", err)
			}
		})
	}
}

// mountTmpfs mounts a tmpfs of size bytes for the test's duration.
func mountTmpfs(t *testing.T, size int) string {
	t.Helper()
	testenv.RequireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unlessBusy(func() error { return unix.Unmount(dir, 0) }); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// unlessBusy does something to a file system once it is unused: a child of a test that
// runs at the same time has our open files until it executes its program.
func unlessBusy(do func() error) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err := do(); !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

func TestReadOnlyFileSystem(t *testing.T) {
	t.Parallel()
	dir := mountTmpfs(t, 1<<20)
	path := filepath.Join(dir, "joblet.db")
	remount := func(flags uintptr) {
		t.Helper()
		if err := unlessBusy(func() error { return unix.Mount("", dir, "", unix.MS_REMOUNT|flags, "") }); err != nil {
			t.Fatal(err)
		}
	}
	for _, existing := range []bool{false, true} {
		remount(unix.MS_RDONLY)
		_, err := Open(t.Context(), path)
		wantKind(t, err, joblet.FailedPrecondition, path, "read-only file system", "choose a state directory")
		remount(0)
		if entries, err := os.ReadDir(dir); err != nil || (len(entries) != 0) != existing {
			t.Errorf("left behind: %v, %v", entries, err)
		}
		s, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir := mountTmpfs(t, 2<<20)
	path := filepath.Join(dir, "joblet.db")
	filler := filepath.Join(dir, "filler")
	fill := func() {
		t.Helper()
		f, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		for chunk := make([]byte, 4096); ; {
			if _, err := f.Write(chunk); errors.Is(err, unix.ENOSPC) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}

	fill()
	_, err := Open(t.Context(), path)
	wantKind(t, err, joblet.ResourceExhausted, dir, "free space")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file is left: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}

	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	acknowledged := 0
	insertUntilFull := func() {
		t.Helper()
		for {
			job := jobN(acknowledged)
			job.Spec.Args = []string{strings.Repeat("x", 2000)}
			if err := s.Insert(t.Context(), job); err != nil {
				wantKind(t, err, joblet.ResourceExhausted, "disk is full", dir)
				return
			}
			acknowledged++
		}
	}
	check := func() {
		t.Helper()
		if all, err := s.List(t.Context(), joblet.Filter{}); err != nil || len(all) != acknowledged {
			t.Errorf("%d jobs, %v, want %d", len(all), err, acknowledged)
		}
	}
	mustInsert(t, s, jobN(acknowledged))
	acknowledged++
	for range 3 {
		fill()
		insertUntilFull()
		check()
		// A batch on the full disk: each has an answer, and only true ones.
		outcomes := make(chan error)
		for n := range 20 {
			job := jobN(1_000_000 + n)
			job.Spec.Args = []string{strings.Repeat("x", 100_000)}
			go func() { outcomes <- s.Insert(t.Context(), job) }()
		}
		for range 20 {
			wantKind(t, <-outcomes, joblet.ResourceExhausted)
		}
		check()
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		mustInsert(t, s, jobN(acknowledged))
		acknowledged++
		check()
	}
	for acknowledged > 1 { // what is left must fit for the checkpoint of Close
		acknowledged--
		if err := s.Delete(t.Context(), jobN(acknowledged).ID); err != nil {
			t.Fatal(err)
		}
	}
	check()
}

func insertForever(path string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	s, err := Open(ctx, path)
	fail(err)
	all, err := s.List(ctx, joblet.Filter{Limit: 1})
	fail(err)
	first := 0
	if len(all) > 0 {
		first = numbers(all)[0] + 1000
	}
	for worker := range 4 {
		go func() {
			for n := first + worker; ; n += 4 {
				job := jobN(n)
				job.Spec.Labels = map[string]string{"worker": fmt.Sprint(worker)}
				fail(s.Insert(ctx, job))
				job.State = joblet.Running
				fail(s.UpdateUnsynced(ctx, job))
				job.State = joblet.Completed
				fail(s.Update(ctx, job))
				if n%5 == 4 {
					fail(s.Delete(ctx, job.ID))
				}
				fmt.Println(n)
			}
		}()
	}
	select {}
}

// Killed with -9 in the middle of a stream of changes, again and again: every
// change that was acknowledged is there.
func TestKill(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "joblet.db")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	acknowledged := map[int]bool{}
	for kill := range 12 {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), crashPath+"="+path)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for seen := 0; lines.Scan(); seen++ {
			var n int
			if _, err := fmt.Sscanf(lines.Text(), "%d", &n); err != nil {
				t.Fatal(err)
			}
			acknowledged[n] = true
			if seen == 20+kill*15 { // then read on to what was said before the end
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || stderr.Len() > 0 {
			t.Fatalf("the child: %v: %s", err, stderr.String())
		}

		if kill%2 == 0 {
			continue // the next child finds the log as the crash left it
		}
		s, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		for n := range acknowledged {
			job, err := s.Get(t.Context(), jobN(n).ID)
			if n%5 == 4 {
				wantKind(t, err, joblet.NotFound)
			} else if err != nil || job.State != joblet.Completed {
				t.Errorf("job %d: %v, %v", n, job.State, err)
			}
		}
		if err := s.Check(t.Context()); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("12 kills, %d acknowledged jobs", len(acknowledged))
}
