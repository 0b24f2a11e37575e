package supervisor

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/joblet/joblet/internal/store"
)

// site is a state directory that a test makes by hand.
type site struct {
	t   *testing.T
	cfg Config
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, cfg: Config{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run")}}
	s.check(os.MkdirAll(s.path("jobs"), 0o700))
	s.records(func(*store.Store) {})
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

func (s *site) write(data string, name ...string) {
	s.t.Helper()
	s.check(os.MkdirAll(filepath.Dir(s.path(name...)), 0o700))
	s.check(os.WriteFile(s.path(name...), []byte(data), 0o600))
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
