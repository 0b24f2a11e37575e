package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSparseFiles: a terabyte of holes costs neither disk nor time, on its way into
// a job, out of a running one, out of an ended one, and on the daemon's own disk.
func TestSparseFiles(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const size = 1 << 40
	local := t.TempDir()
	f, err := os.Create(filepath.Join(local, "huge"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("in the middle"), size/2); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	small := func(path string, length int64) {
		t.Helper()
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Error(err)
		} else if length >= 0 && st.Size != length || st.Blocks*512 > 1<<20 {
			t.Errorf("%s: %d bytes, %d on disk, want %d and little", path, st.Size, st.Blocks*512, length)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // zeros for it all would take longer
	defer cancel()
	copied := func(id string) {
		t.Helper()
		to := filepath.Join(t.TempDir(), "copy")
		if r := d.rnx(ctx, "job", "cp", id+":huge", to); r.status != 0 {
			t.Fatal(r)
		}
		small(to, size)
		c, err := os.Open(to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		text := make([]byte, 13)
		if _, err := c.ReadAt(text, size/2); string(text) != "in the middle" {
			t.Errorf("the copy holds %q, %v", text, err)
		}
	}
	r := d.rnx(ctx, "job", "run", "-d", "--upload="+filepath.Join(local, "huge"), "sh", "-c", "stat -c %s huge; du -k huge | cut -f1; while [ ! -e /work/go ]; do sleep 0.1; done")
	if r.status != 0 {
		t.Fatal(r)
	}
	id := strings.TrimSpace(r.stdout)
	copied(id)
	if r := d.rnx(ctx, "job", "exec", id, "touch", "/work/go"); r.status != 0 {
		t.Fatal(r)
	}
	if r := d.rnx(ctx, "job", "wait", id); r.status != 0 {
		t.Fatal(r)
	}
	copied(id)
	if r := d.rnx(ctx, "job", "log", id); !strings.HasPrefix(r.stdout, "1099511627776\n") || len(r.stdout) > len("1099511627776\n1024\n") {
		t.Errorf("the job saw %v", r)
	}
	for _, name := range []string{"files.tar", "work.tar"} {
		small(filepath.Join(d.state, "jobs", id, name), -1)
	}
}
