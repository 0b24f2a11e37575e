package store

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// On a full disk nothing could be deleted: to record that a job is gone takes room,
// too. So room is kept for that. The write-ahead log is filled with zeros in
// advance, and beside the database lie two files with nothing in them. One is given
// up when the database has to grow. When the database is opened on a full disk they
// become the log and its index: renamed, not removed, since jobs that write logs
// take what is free at once. They are made again once there is room.
var reserveFiles = [...]struct {
	name, becomes string // suffixes of the database's name
	size          int64  // in bytes
}{
	{"-reserve1", "-wal", smallWAL},
	{"-reserve2", "-shm", 32 << 10},
}

const (
	// reserveFrom is the free space in bytes from which on room is kept.
	reserveFrom = 1 << 20
	// leastFree is the free space in bytes below which a disk counts as full for
	// new jobs. What is left is for those that there are.
	leastFree = 128 << 10
)

// reserve is the room that is kept.
type reserve struct {
	path  string // of the database
	whole bool
}

func (r *reserve) name(n int) string { return r.path + reserveFiles[n].name }

// keep makes what is missing of the files, if there is enough room for others.
func (r *reserve) keep() {
	if !r.whole && !scarceOn(r.path) {
		r.restore()
	}
}

// scarceOn reports whether a disk has so little left that all of it is for others.
func scarceOn(path string) bool {
	f, ok := freeOn(path)
	return !ok || f.bytes < reserveFrom || f.files < 2*uint64(len(reserveFiles))
}

// restore makes what is missing of the files, as far as there is room.
func (r *reserve) restore() {
	r.whole = true
	for n, file := range reserveFiles {
		if err := makeReserve(r.name(n), file.size); err != nil {
			r.whole = false
		}
	}
}

func makeReserve(name string, size int64) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Size == size && st.Blocks*512 >= size {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	if err == unix.EOPNOTSUPP {
		_, err = f.WriteAt(make([]byte, size), 0)
	}
	if err != nil {
		err = errors.Join(err, f.Truncate(0)) // the inode alone is worth something
	}
	return err
}

// grow gives up what is for the database to grow.
func (r *reserve) grow() {
	r.whole = false
	_ = os.Truncate(r.name(0), 0)
}

// spend gives the files up for the log and its index, and reports whether there
// were any. SQLite takes a log of zeros for an empty one, and makes the index anew.
func (r *reserve) spend() (were bool) {
	r.whole = false
	for n, file := range reserveFiles {
		to := r.path + file.becomes
		info, err := os.Lstat(to)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
			err = os.Rename(r.name(n), to)
		} else {
			err = os.Remove(r.name(n))
		}
		were = were || err == nil
	}
	return were
}

// free is what is left on a file system.
type free struct {
	bytes    uint64 // for root
	files    uint64
	readOnly bool
}

// freeOn returns what is left on the file system of path.
func freeOn(path string) (f free, ok bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return f, false
	}
	f = free{bytes: st.Bfree * uint64(st.Bsize), files: st.Ffree, readOnly: st.Flags&unix.ST_RDONLY != 0}
	if st.Files == 0 { // it makes inodes as they are needed
		f.files = 1 << 32
	}
	return f, true
}
