package pki

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// files writes files of which either all are left or none that was not there
// before.
type files struct{ made []string }

func newFiles() *files { return &files{} }

// write replaces a file by a durable one that only its owner may read. Readers
// see the old one or the new one.
func (f *files) write(name string, text []byte) (err error) {
	if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		f.made = append(f.made, name)
	}
	dir := filepath.Dir(name)
	t, err := os.CreateTemp(dir, "."+filepath.Base(name)+"-*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = t.Close()
			_ = os.Remove(t.Name())
			err = fmt.Errorf("write %s: %w", name, err)
		}
	}()
	if _, err := t.Write(text); err != nil {
		return err
	}
	if err := t.Sync(); err != nil {
		return err
	}
	if err := t.Close(); err != nil {
		return err
	}
	if err := os.Rename(t.Name(), name); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// undo removes those files that were not there before.
func (f *files) undo() error {
	var errs []error
	for _, name := range f.made {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// readFile reads a regular file of a sane size.
func readFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("read %s: longer than %d bytes", name, maxFile)
	}
	return text, err
}
