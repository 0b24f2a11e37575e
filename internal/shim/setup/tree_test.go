package setup

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// TestOpenTreeLinks: a link that took the place of a directory since the paths of
// a runtime were looked at does not lead out of it.
func TestOpenTreeLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tree := filepath.Join(dir, "runtime", "usr")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"last": "runtime/usr", "between": "runtime"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		source string
		idmap  bool // it is of a runtime
		want   error
	}{
		{tree, true, nil},
		{dir + "/last", true, unix.ELOOP},
		{dir + "/between/usr", true, unix.ELOOP},
		{dir + "/between/usr", false, nil}, // the run directory may be where a link leads
		{"/proc/self/root" + tree, false, unix.ELOOP},
		{tree + "/none", false, unix.ENOENT},
	} {
		fd, err := openTree(protocol.Tree{Source: protocol.Name(test.source), IDMap: test.idmap}, unix.MOUNT_ATTR_RDONLY, -1)
		if fd >= 0 {
			unix.Close(fd)
		}
		if !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.source, err, test.want)
		}
	}
}
