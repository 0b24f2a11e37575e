package pki

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/joblet/joblet/internal/testenv"
)

// fill mounts a small tmpfs at a new directory and returns what fills it and what
// makes room again.
func fill(t *testing.T, dir string) (fill, free func()) {
	t.Helper()
	testenv.RequireRoot(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	stuffing := filepath.Join(dir, "stuffing")
	return func() {
			f, err := os.Create(stuffing)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := io.Copy(f, zeros{}); !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
		}, func() {
			if err := os.Remove(stuffing); err != nil {
				t.Fatal(err)
			}
		}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestRotateCAFull: a full disk, of the daemon's files or of the key, costs nothing.
func TestRotateCAFull(t *testing.T) {
	t.Parallel()
	for _, full := range []string{"pki", "ca"} {
		t.Run(full, func(t *testing.T) {
			t.Parallel()
			top := t.TempDir()
			fill, free := fill(t, filepath.Join(top, full))
			d := Dir{Path: filepath.Join(top, "pki"), CA: filepath.Join(top, "ca")}
			admin, err := d.Init(nil, "root", DefaultValid)
			if err != nil {
				t.Fatal(err)
			}
			fill()
			for range 2 {
				if err := rotateCA(d); !errors.Is(err, syscall.ENOSPC) {
					t.Fatal(err)
				}
			}
			if full == "pki" {
				if _, err := d.RotateServer(nil, DefaultValid); !errors.Is(err, syscall.ENOSPC) {
					t.Error(err)
				}
			}
			s := open(t, d)
			mustShake(t, s, admin)
			free()
			b, err := d.Issue("alice", "reader", time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			mustShake(t, s, b)
			if r, err := d.RetireCA(true); r.Authorities != 0 || err != nil {
				t.Errorf("%+v, %v", r, err)
			}
			if err := rotateCA(d); err != nil {
				t.Fatal(err)
			}
			wait()
			mustShake(t, s, admin)
			b, err = d.Rotate("root", time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			mustShake(t, s, b)
			if r, err := d.RetireCA(false); r.Authorities != 1 || err != nil {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}
