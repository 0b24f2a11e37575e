package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/testenv"
)

func readAudit(t *testing.T, path string) (lines []auditLine) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var l auditLine
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		lines = append(lines, l)
	}
	return lines
}

// newAudit opens an audit log of the test's own.
func newAudit(t *testing.T) (a *Audit, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "audit.log")
	a, err := OpenAudit(path, 1<<20, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a, path
}

// TestAuditDetails: the record says what a call asks for, and what was done.
func TestAuditDetails(t *testing.T) {
	t.Parallel()
	a, path := newAudit(t)
	p := New(nil, slog.New(slog.DiscardHandler), a).policy
	rlimits := map[string]joblet.Rlimit{}
	for i := range 1000 {
		rlimits[fmt.Sprint(i)] = joblet.Rlimit{}
	}
	ended := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	failed := joblet.Errorf(joblet.NotFound, "no such job")
	for _, tt := range []struct {
		op             Operation
		about          Subject
		made, done     string
		err            error
		target, detail string
		job            string
	}{
		{op: RerunJob, about: Subject{Job: "old", Detail: "rerun of old"}, made: "new", job: "new", detail: "rerun of old"},
		{op: RerunJob, about: Subject{Job: "old", Detail: "rerun of old"}, made: "new", err: failed, job: "old", detail: "rerun of old"},
		{op: SignalJob, about: Subject{Job: "j", Detail: signalName(10)}, job: "j", detail: "SIGUSR1"},
		{op: SignalJob, about: Subject{Job: "j", Detail: signalName(99)}, job: "j", detail: "signal 99"},
		{op: StopJob, about: Subject{Job: "j", Detail: stopDetail(joblet.StopOptions{Grace: -1})}, job: "j"},
		{op: StopJob, about: Subject{Detail: stopDetail(joblet.StopOptions{Signal: 2})}, detail: "SIGINT grace=0s"},
		{op: UpdateJob, about: Subject{Detail: limitsDetail(joblet.Limits{MemoryBytes: 1 << 30, MaxPIDs: 7, Rlimits: map[string]joblet.Rlimit{"nofile": {Soft: 1, Hard: 2}}})}, detail: "max-memory=1G max-pids=7 nofile=1:2"},
		{op: UpdateJob, about: Subject{Detail: limitsDetail(joblet.Limits{Rlimits: rlimits})}, detail: "1000 resource limits"},
		{op: PruneJobs, about: Subject{Detail: pruneDetail(joblet.Filter{EndedBefore: ended, States: []joblet.State{joblet.Failed}, Labels: []joblet.LabelMatch{{Name: "a", Value: "b"}}}, true)},
			done: pruned(3, 7), detail: "3 jobs, 7 bytes; dry-run ended-before=2026-01-02T03:04:05Z state=FAILED label=a=b"},
		{op: PruneJobs, about: Subject{Detail: pruneDetail(joblet.Filter{Labels: slices.Repeat([]joblet.LabelMatch{{Name: strings.Repeat("ä", 200), Any: true}}, 100)}, false)},
			done: pruned(0, 0), detail: "0 jobs, 0 bytes; " + strings.TrimSpace(strings.Repeat("label="+strings.Repeat("ä", 66)+"…"+strings.Repeat("ä", 25)+" ", 5))},
		{op: DeleteAllJobs, done: deletedAll(2, 1), detail: "2 jobs, 1 skipped"},
		{op: BuildRuntime, about: Subject{Target: "py", Detail: buildDetail(Build{Force: true})}, target: "py", detail: "force"},
		{op: BuildRuntime, about: Subject{Detail: buildDetail(Build{DryRun: true})}, detail: "dry-run"},
		{op: RemoveRuntime, about: Subject{Target: "py"}, target: "py"},
	} {
		before := len(readAudit(t, path))
		err := p.do(t.Context(), Caller{Name: "uid:0", Role: Admin, From: "pid 7"}, tt.op, tt.about, func(_ context.Context, open *call) error {
			open.made, open.done = tt.made, tt.done
			return tt.err
		})
		if err != tt.err {
			t.Errorf("%s: got %v", tt.op, err)
		}
		lines := readAudit(t, path)
		if len(lines) != before+1 {
			t.Fatalf("%s: %d lines", tt.op, len(lines)-before)
		}
		if l := lines[before]; l.Job != tt.job || l.Target != tt.target || l.Detail != tt.detail || l.Method != string(tt.op) || l.Caller != "uid:0" || l.From != "pid 7" || l.Role != "admin" {
			t.Errorf("%s: got %+v", tt.op, l)
		}
	}
}

// TestAuditTorn: a line that the disk did not hold as a whole, or that a daemon was
// killed at, does not take the next one with it.
func TestAuditTorn(t *testing.T) {
	t.Parallel()
	testenv.RequireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	path, ballast := filepath.Join(dir, "audit.log"), filepath.Join(dir, "ballast")
	open := func() *Audit {
		t.Helper()
		a, err := OpenAudit(path, 1<<20, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := open()
	a.write(auditLine{Method: "first"})
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	for range 3 { // more than the rest of a page
		a.write(auditLine{Method: "lost", Error: strings.Repeat("e", 100_000)})
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	a.write(auditLine{Method: "second"})
	a.write(auditLine{Method: "third"})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(`{"time":`)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	a = open()
	a.write(auditLine{Method: "fourth"})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var whole []string
	torn := 0
	for line := range bytes.Lines(text) {
		var l auditLine
		if err := json.Unmarshal(line, &l); err != nil {
			torn++
			continue
		}
		whole = append(whole, l.Method)
	}
	if !slices.Equal(whole, []string{"first", "second", "third", "fourth"}) || torn != 2 {
		t.Errorf("got %q and %d that are torn in %d bytes", whole, torn, len(text))
	}
}

func TestAuditRotation(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	const max = 1000
	n := 0
	for range 2 { // the second goes on where the first ended
		a, err := OpenAudit(path, max, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for range 40 {
			n++
			a.write(auditLine{Caller: "cert:x", Method: fmt.Sprint(n), Error: strings.Repeat("e", 100)})
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != auditKept+1 {
		t.Fatalf("%q %v", files, err)
	}
	next := n
	for i := 0; i <= auditKept; i++ { // the newest first
		name := path
		if i > 0 {
			name = fmt.Sprintf("%s.%d", path, i)
		}
		st, err := os.Stat(name)
		if err != nil || st.Mode() != 0o600 || st.Size() > max {
			t.Errorf("%s: %v %v", name, st, err)
		}
		lines := readAudit(t, name)
		for k := len(lines) - 1; k >= 0; k-- {
			if lines[k].Method != fmt.Sprint(next) {
				t.Fatalf("%s: got line %s, want %d", name, lines[k].Method, next)
			}
			next--
		}
	}
}

func TestAuditBadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/etc/passwd", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, link, filepath.Join(dir, "none", "x")} {
		if _, err := OpenAudit(path, 1000, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s was opened", path)
		}
	}
}
