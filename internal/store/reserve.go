package store

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// On a full disk nothing could be deleted: to record that a job is gone takes room,
// too. So room is kept for that. The write-ahead log is filled with zeros in
// advance, and beside the database lie two files with nothing in them. One is given
// up when the database has to grow. Both are given up when it is opened on a full
// disk, for the log and its index to be made. They are made again once there is room.
const (
	reserveFiles = 2         // the log and its index: so many inodes
	reserveSize  = 128 << 10 // of each, in bytes: both have room where smallWAL and the index had
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

func (r *reserve) name(n int) string {
	return r.path + [reserveFiles]string{"-reserve1", "-reserve2"}[n]
}

// keep makes what is missing of the files, if there is enough room for others.
func (r *reserve) keep() {
	if r.whole {
		return
	}
	if f, ok := freeOn(r.path); ok && f.bytes >= reserveFrom && f.files >= 2*reserveFiles {
		r.restore()
	}
}

// restore makes what is missing of the files, as far as there is room.
func (r *reserve) restore() {
	r.whole = true
	for n := range reserveFiles {
		if err := makeReserve(r.name(n)); err != nil {
			r.whole = false
		}
	}
}

func makeReserve(name string) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Size == reserveSize && st.Blocks*512 >= reserveSize {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, reserveSize)
	if err == unix.EOPNOTSUPP {
		_, err = f.WriteAt(make([]byte, reserveSize), 0)
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

// giveUp removes the files, and reports whether there were any.
func (r *reserve) giveUp() (were bool) {
	r.whole = false
	for n := range reserveFiles {
		if os.Remove(r.name(n)) == nil {
			were = true
		}
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
