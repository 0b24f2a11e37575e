package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

// fillDisk takes the last byte, or the last inode, of the file system of dir.
func fillDisk(t *testing.T, dir string, inodes bool) {
	t.Helper()
	for n := 0; ; n++ {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("filler%d", n)))
		if errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		for err == nil && !inodes {
			_, err = f.Write(make([]byte, 4096))
		}
		if f.Close(); err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		if !inodes {
			return
		}
	}
}

// TestFullDiskChanges: on a disk on which nothing is left, what becomes of jobs is
// recorded, they are deleted, and the records can be opened; new ones are refused.
func TestFullDiskChanges(t *testing.T) {
	t.Parallel()
	for _, inodes := range []bool{false, true} {
		t.Run(map[bool]string{false: "bytes", true: "inodes"}[inodes], func(t *testing.T) {
			t.Parallel()
			dir := mountTmpfs(t, 4<<20)
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "nr_inodes=64"); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "joblet.db")
			s, err := Open(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Vouch(t.Context()); err != nil {
				t.Fatal(err)
			}
			const n = 200
			for i := range n {
				mustInsert(t, s, jobN(i))
			}
			fillDisk(t, dir, inodes)
			if err := s.Insert(t.Context(), jobN(n)); !inodes && joblet.KindOf(err) != joblet.ResourceExhausted {
				t.Errorf("a new job on a full disk: %v", err)
			}
			change := func(from, to int) {
				t.Helper()
				for i := from; i < to; i++ {
					job := jobN(i)
					job.State, job.Reason = joblet.Failed, "it was not to be, for a reason that takes some room to be told"
					if err := s.Update(t.Context(), job); err != nil {
						t.Fatalf("the end of job %d: %v", i, err)
					}
				}
				for i := from; i < to; i++ {
					if err := s.Delete(t.Context(), jobN(i).ID); err != nil {
						t.Fatalf("delete job %d: %v", i, err)
					}
				}
			}
			change(0, n/2)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			// What Close has given back goes, too.
			if err := os.Rename(filepath.Join(dir, "filler0"), filepath.Join(dir, "old")); err != nil {
				t.Fatal(err)
			}
			fillDisk(t, dir, inodes)
			if s, _, err = Rescue(t.Context(), path, filepath.Join(dir, "damaged")); err != nil { // as the daemon does
				t.Fatal(err)
			}
			defer func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}()
			change(n/2, n)
			if all, err := s.List(t.Context(), joblet.Filter{}); err != nil || len(all) > 1 {
				t.Errorf("%d jobs are left, %v", len(all), err)
			}
		})
	}
}
