package jobdir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// ReplaceFile durably replaces a file by one that root alone may read.
func ReplaceFile(path string, text []byte) (err error) {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp)
		}
	}()
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Overwrite replaces what is in a file without asking the disk for room.
func Overwrite(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	if _, err = f.Write(text); err == nil {
		err = f.Truncate(int64(len(text)))
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// SyncDir makes names in a directory survive a crash of the host.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ReadSealed reads a JSON object with a checksum, of at most limit bytes, into v.
// The error is fs.ErrNotExist when there is no such file, and ErrDamaged when it
// is not what was written.
func ReadSealed(name string, limit int64, v any) error {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: %s is not a regular file", ErrDamaged, filepath.Base(name))
	case err != nil:
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%w: %s is not a regular file", ErrDamaged, filepath.Base(name))
	case info.Size() > limit:
		return fmt.Errorf("%w: %s has %d bytes, which is too many", ErrDamaged, filepath.Base(name), info.Size())
	}
	data, err := io.ReadAll(io.LimitReader(f, limit))
	switch {
	case errors.Is(err, unix.EIO):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	case err != nil:
		return err
	case !protocol.Sealed(data):
		return fmt.Errorf("%w: the checksum of %s is wrong", ErrDamaged, filepath.Base(name))
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %s is incomplete or garbled: %w", ErrDamaged, filepath.Base(name), err)
	}
	return nil
}

// ErrDamaged says that a file in a job's directory is not what was written.
var ErrDamaged = errors.New("damaged")
