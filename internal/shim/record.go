package shim

import (
	"encoding/json"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/shim/setup"
)

// recordSize is more than a Record without denied calls takes as JSON.
const recordSize = 4096

// recordFile is the file of a run's exit record.
type recordFile struct {
	dir     int // the job's directory
	name    string
	fd      int // name+".tmp" in dir; 0: there is none yet
	renamed bool
}

// reserve makes room for the exit record before there is a job, so that
// a full disk cannot keep it from being written.
func (f *recordFile) reserve(dir int, run *protocol.Run) error {
	f.dir, f.name = dir, protocol.ExitName(run.Attempt)
	fd, err := unix.Openat(dir, f.name+".tmp", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return setup.Step("create the exit record", err)
	}
	f.fd = fd
	size := int64(recordSize)
	if run.LogDenied {
		size = deniedRecordSize
	}
	if err := unix.Fallocate(fd, 0, 0, size); err != nil && err != unix.EOPNOTSUPP {
		return setup.Step("reserve room for the exit record", err)
	}
	return nil
}

// write writes the exit record into the reserved file and renames it.
// Rename before fsync: a reader takes an incomplete record for none, and one
// fsync then commits both (the second, of the directory, says so to file
// systems other than ext4).
func (f *recordFile) write(record *protocol.Record) error {
	body, err := json.Marshal(record)
	if err != nil {
		return err
	}
	body = protocol.Seal(body)
	if _, err := unix.Pwrite(f.fd, body, 0); err != nil {
		return setup.Step("write the exit record", err)
	}
	if err := unix.Ftruncate(f.fd, int64(len(body))); err != nil {
		return setup.Step("write the exit record", err)
	}
	if !f.renamed {
		if err := unix.Renameat(f.dir, f.name+".tmp", f.dir, f.name); err != nil {
			return setup.Step("rename the exit record", err)
		}
		f.renamed = true
	}
	for _, fd := range []int{f.fd, f.dir} {
		if err := unix.Fsync(fd); err != nil {
			return setup.Step("sync the exit record", err)
		}
	}
	return nil
}
