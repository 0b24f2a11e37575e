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

// files changes files one after the other: after a failure nothing further is
// changed, and what was not there before can be taken away again.
type files struct {
	made []string
	fail func(step string) error
}

// file is one to be written.
type file struct {
	name string
	text []byte
}

func (d Dir) files() *files { return &files{fail: d.fail} }

// step is where tests break off.
func (f *files) step(format string, args ...any) error {
	if f.fail == nil {
		return nil
	}
	return f.fail(fmt.Sprintf(format, args...))
}

// write replaces files, in this order, by durable ones that only their owner may
// read. Readers see the old one or the new one.
func (f *files) write(all ...file) error {
	for _, one := range all {
		base := filepath.Base(one.name)
		if err := f.step("before %s", base); err != nil {
			return err
		}
		if err := f.replace(one.name, one.text); err != nil {
			return err
		}
		if err := f.step("behind %s", base); err != nil {
			return err
		}
	}
	return nil
}

func (f *files) replace(name string, text []byte) (err error) {
	f.making(name)
	dir := filepath.Dir(name)
	t, err := os.CreateTemp(dir, "."+filepath.Base(name)+"-*") // 0600
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = t.Close()
			_ = os.Remove(t.Name())
			err = fmt.Errorf("cannot write %s: %w", name, err)
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
	return syncDir(dir)
}

// rename gives a file another name, durably.
func (f *files) rename(from, to string) error {
	f.making(to)
	if err := f.step("before rename"); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

func (f *files) making(name string) {
	if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		f.made = append(f.made, name)
	}
}

func syncDir(name string) error {
	d, err := os.Open(name)
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
		err = fmt.Errorf("cannot read %s: longer than %d bytes", name, maxFile)
	}
	return text, err
}
