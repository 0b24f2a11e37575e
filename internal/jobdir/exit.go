package jobdir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// MaxExit bounds an exit record; a real one has 200 bytes, or 50 KiB with denied
// calls of all kinds.
const MaxExit = 128 << 10

// ReadExit reads the exit record of an attempt in a job's directory. The error
// is fs.ErrNotExist when there is none, and ErrDamaged when it is not what a
// shim wrote, such as one that was being written when the host went down.
func ReadExit(dir string, attempt int) (*protocol.Record, error) {
	var r protocol.Record
	if err := ReadSealed(filepath.Join(dir, protocol.ExitName(attempt)), MaxExit, &r); err != nil {
		return nil, err
	}
	if r.Failure == nil && r.EndedNanos <= 0 {
		return nil, fmt.Errorf("%w: %s has no end", ErrDamaged, protocol.ExitName(attempt))
	}
	return &r, nil
}

// Begun reports whether a shim has begun an attempt: then it may have run.
func Begun(dir string, attempt int) bool {
	name := filepath.Join(dir, protocol.ExitName(attempt))
	for _, n := range []string{name, name + ".tmp"} {
		if _, err := os.Lstat(n); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// PutExit writes the exit record of an attempt whose shim is gone, where that
// has reserved the room, unless there is one.
func PutExit(dir string, attempt int, r protocol.Record) error {
	name := filepath.Join(dir, protocol.ExitName(attempt))
	if _, err := ReadExit(dir, attempt); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return WriteExit(name, r)
}

func WriteExit(name string, r protocol.Record) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name+".tmp", os.O_WRONLY|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(body, 0)
	if err == nil {
		err = f.Truncate(int64(len(body)))
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(name+".tmp", name); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(name))
}
