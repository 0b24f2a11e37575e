package daemon

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/fsck"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/testenv"
)

// newFsck returns options for a state directory with one job, which is LOST and
// left a file behind.
func newFsck(t *testing.T) (o fsckOptions, leftover string) {
	t.Helper()
	dir := t.TempDir()
	o = fsckOptions{Options: DefaultOptions()}
	o.StateDir, o.RunDir = filepath.Join(dir, "state"), filepath.Join(dir, "run")
	id := joblet.NewID()
	leftover = filepath.Join(o.StateDir, "jobs", id, "exit.json.tmp")
	if err := os.MkdirAll(filepath.Dir(leftover), 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), filepath.Join(o.StateDir, "joblet.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Vouch(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = db.Insert(t.Context(), store.Record{Job: joblet.Job{
		ID: id, Spec: joblet.Spec{Command: "x"}, Owner: "test", State: joblet.Lost, Created: time.Unix(1, 0), Ended: time.Unix(2, 0), Attempt: 1,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(leftover, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return o, leftover
}

// fsckRun checks and fails the test unless the exit status is want.
func fsckRun(t *testing.T, o fsckOptions, want int) (stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	if got := o.run(t.Context(), &out, &err); got != want {
		t.Fatalf("exit status %d, want %d\n%s%s", got, want, &out, &err)
	}
	return out.String(), err.String()
}

func TestFsckStatus(t *testing.T) {
	t.Parallel()
	testenv.RequireRoot(t)
	o, leftover := newFsck(t)
	short := filepath.Base(filepath.Dir(leftover))[:8]
	out, _ := fsckRun(t, o, fsckLeft)
	if want := "job " + short + `: "exit.json.tmp" is left in its directory [can be repaired with --repair]` + "\nchecked 1 job, 0 B: 1 problem, 0 repaired\n"; out != want {
		t.Errorf("got %s, want %s", out, want)
	}
	o.Fsck.Repair = true
	out, _ = fsckRun(t, o, fsckRepaired)
	if !strings.HasSuffix(out, "[repaired]\nchecked 1 job, 0 B: 1 problem, 1 repaired\n") {
		t.Errorf("got %s", out)
	}
	out, _ = fsckRun(t, o, fsckClean)
	if want := "checked 1 job, 0 B: no problems\n"; out != want {
		t.Errorf("got %s, want %s", out, want)
	}
	if err := os.WriteFile(filepath.Join(o.StateDir, "jobs", "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ = fsckRun(t, o, fsckLeft)
	if !strings.Contains(out, `"mine" is not a job's [cannot be repaired: move it away]`) {
		t.Errorf("got %s", out)
	}
}

func TestFsckJSON(t *testing.T) {
	t.Parallel()
	testenv.RequireRoot(t)
	o, leftover := newFsck(t)
	o.JSON = true
	out, _ := fsckRun(t, o, fsckLeft)
	lines := slices.Collect(strings.Lines(out))
	if len(lines) != 2 {
		t.Fatalf("got %s", out)
	}
	var p fsck.Problem
	if err := json.Unmarshal([]byte(lines[0]), &p); err != nil || p.Job != filepath.Base(filepath.Dir(leftover)) || p.Status != fsck.ProblemRepairable {
		t.Errorf("got %s: %v", lines[0], err)
	}
	if want := `{"summary":{"jobs":1,"bytes":0,"problems":1,"repaired":0}}` + "\n"; lines[1] != want {
		t.Errorf("got %s, want %s", lines[1], want)
	}
}

// TestFsckLock shows that a daemon keeps a check away, and what can't be checked
// has a status of its own.
func TestFsckLock(t *testing.T) {
	t.Parallel()
	testenv.RequireRoot(t)
	o, leftover := newFsck(t)
	o.Fsck.Repair = true
	if err := os.MkdirAll(o.RunDir, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := o.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l, err := listen(o.socket(), 0)
	if err != nil {
		t.Fatal(err)
	}
	out, stderr := fsckRun(t, o, fsckFailed)
	if out != "" || !strings.Contains(stderr, "cannot check while a daemon runs: another daemon (process ") {
		t.Errorf("got %s%s", out, stderr)
	}
	if _, err := os.Stat(leftover); err != nil {
		t.Error(err)
	}
	l.Close()
	lock.Close()
	fsckRun(t, o, fsckRepaired)

	o.StateDir += "-not"
	if _, stderr := fsckRun(t, o, fsckFailed); !strings.Contains(stderr, o.StateDir) {
		t.Errorf("got %s", stderr)
	}
	o.RunDir = "relative"
	if _, stderr := fsckRun(t, o, fsckFailed); !strings.Contains(stderr, "--run-dir") {
		t.Errorf("got %s", stderr)
	}
}

func TestFormatBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 5 << 19: "2.5 MiB", 9 << 29: "4.5 GiB", 1 << 40: "1.0 TiB", 1 << 60: "1048576 TiB",
	} {
		if got := joblet.ReadableSize(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}
