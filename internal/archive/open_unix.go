//go:build !windows

package archive

import (
	"io/fs"
	"syscall"
)

// nonblock lets open(2) return from a fifo without a writer.
const nonblock = syscall.O_NONBLOCK

// inodeOf returns what tells a file from others, if it has several names.
func inodeOf(fi fs.FileInfo) (id inode, several bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Nlink < 2 {
		return inode{}, false
	}
	return inode{uint64(st.Dev), st.Ino}, true //nolint:unconvert // of another type on other systems
}

// device returns the number of the file system that has the file, or nil if that is not
// known.
func device(fi fs.FileInfo) *uint64 {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	dev := uint64(st.Dev) //nolint:unconvert // of another type on other systems
	return &dev
}
