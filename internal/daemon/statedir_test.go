package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joblet/joblet/internal/testenv"
	"golang.org/x/sys/unix"
)

// TestStateDirectory: what is the daemon's becomes root's alone, and what is not
// stays as it is.
func TestStateDirectory(t *testing.T) {
	t.Parallel()
	testenv.RequireRoot(t)
	for _, test := range []struct {
		name, inside string
		mode, want   uint32
		uid          int
		err          string
	}{
		{"missing", "", 0, 0o700, 0, ""},
		{"empty", "", 0o755, 0o700, 0, ""},
		{"of an older version", "joblet.db", 0o755, 0o700, 0, ""},
		{"with certificates alone", "pki", 0o711, 0o700, 0, ""},
		{"a disk of its own", "lost+found", 0o755, 0o700, 0, ""},
		{"private, with other files", "x", 0o700, 0o700, 0, ""},
		{"with other files", "x", 0o755, 0o755, 0, "choose another directory"},
		{"for all", "jobs", 0o1777, 0o1777, 0, "choose another directory"},
		{"of another user", "jobs", 0o700, 0o700, 61001, "belongs to user 61001"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "state")
			if test.mode != 0 {
				if err := os.MkdirAll(filepath.Join(dir, test.inside), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Chown(dir, test.uid, 0); err != nil {
					t.Fatal(err)
				}
				if err := unix.Chmod(dir, test.mode); err != nil {
					t.Fatal(err)
				}
			}
			err := keepStatePrivate(dir)
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("got %v, want %q", err, test.err)
			}
			var st unix.Stat_t
			if err := unix.Stat(dir, &st); err != nil || st.Mode&0o7777 != test.want {
				t.Errorf("mode %04o, %v, want %04o", st.Mode&0o7777, err, test.want)
			}
		})
	}
}
