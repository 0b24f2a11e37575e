package supervisor

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// identityName is the file in the state directory that tells a copy of it from
// the original, and a state directory from before a restart of the host from one
// whose jobs may still run.
const identityName = "identity.json"

// maxIdentity bounds that file.
const maxIdentity = 64 << 10

// identity says which state directory this is, and where and when it was last
// served. A copy (cp -a, a backup, a file system of another machine) has the same
// content in another place; after a restart of the host no job of it runs.
type identity struct {
	// Tag is part of the name of each box that was built for this state
	// directory, so that daemons that use one run directory after the other
	// leave each other's boxes alone.
	Tag     string `json:"tag"`
	Machine string `json:"machine,omitempty"` // machine-id(5)
	Boot    string `json:"boot,omitempty"`
	Device  uint64 `json:"device"` // of the directory itself
	Inode   uint64 `json:"inode"`
	// RunDirs are the run directories below whose cgroups its boxes may be, the
	// latest first.
	RunDirs []string `json:"run_dirs"`
}

// whereabouts are what a daemon finds out about its state directory before it
// touches any job.
type whereabouts struct {
	path string
	now  identity
	last *identity // as the file has it; nil: there is none that can be read

	// elsewhere says why the jobs that are recorded as running are not this
	// daemon's to adopt; empty: they are.
	elsewhere string
	// copied: they may run nevertheless, for the original of this directory.
	copied bool
}

// locate compares a state directory with what is written down in it.
func locate(stateDir, runDir string, log *slog.Logger) (whereabouts, error) {
	w := whereabouts{path: filepath.Join(stateDir, identityName)}
	info, err := os.Stat(stateDir)
	if err != nil {
		return w, fmt.Errorf("identify the state directory: %w", err)
	}
	w.now = identity{Machine: hostLine("/etc/machine-id"), Boot: hostLine("/proc/sys/kernel/random/boot_id"), RunDirs: []string{runDir}}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		w.now.Device, w.now.Inode = uint64(st.Dev), st.Ino
	}
	switch w.last, err = readIdentity(w.path); {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist): // it is new, or of a version that had no such file
	case errors.Is(err, errDamaged):
		log.Warn("cannot tell whether the state directory is a copy: its identity is replaced", "error", err)
	default:
		return w, fmt.Errorf("identify the state directory: %w", err)
	}
	if w.last == nil {
		w.now.Tag = newTag()
		return w, nil
	}
	w.now.Tag = w.last.Tag
	for _, dir := range w.last.RunDirs {
		if !slices.Contains(w.now.RunDirs, dir) {
			w.now.RunDirs = append(w.now.RunDirs, dir)
		}
	}
	here := w.last.Device == w.now.Device && w.last.Inode == w.now.Inode
	switch {
	case w.last.Boot == w.now.Boot && here:
		return w, nil
	case w.last.Boot == w.now.Boot:
		w.copied = true
		w.elsewhere = "the state directory is a copy, made while the job ran; the job belongs to the original"
	case w.last.Machine != w.now.Machine:
		w.copied = true
		w.elsewhere = "the state directory was copied from another machine while the job ran"
	default:
		w.elsewhere = "the host was restarted while the job ran"
	}
	if w.copied || !here {
		w.now.Tag, w.now.RunDirs = newTag(), w.now.RunDirs[:1]
	}
	return w, nil
}

func readIdentity(path string) (*identity, error) {
	var id identity
	if err := readSealed(path, maxIdentity, &id); err != nil {
		return nil, err
	}
	if !validTag(id.Tag) || len(id.RunDirs) == 0 {
		return nil, fmt.Errorf("%w: %s names no directory", errDamaged, identityName)
	}
	return &id, nil
}

func newTag() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func validTag(tag string) bool {
	b, err := hex.DecodeString(tag)
	return err == nil && len(b) == 6 && tag == strings.ToLower(tag)
}

// hostLine returns the one line of a file of the host's; empty: there is none.
func hostLine(path string) string {
	text, _ := os.ReadFile(path)
	return strings.TrimSpace(string(text))
}

// record makes the present whereabouts the ones that the next daemon compares
// with. It comes after the jobs of before are dealt with durably, so that a crash
// on the way leaves the next daemon with the same question.
func (w *whereabouts) record() error {
	if w.last != nil && w.now.equal(w.last) {
		return nil
	}
	text, err := json.Marshal(w.now)
	if err != nil {
		return err
	}
	text = protocol.Seal(text)
	err = replaceFile(w.path, text)
	if w.last != nil && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		err = overwrite(w.path, text) // in the room that it has
	}
	if err != nil {
		return fmt.Errorf("record the identity of the state directory: %w", err)
	}
	now := w.now
	w.last = &now
	return nil
}

func (id *identity) equal(other *identity) bool {
	return id.Tag == other.Tag && id.Machine == other.Machine && id.Boot == other.Boot &&
		id.Device == other.Device && id.Inode == other.Inode && slices.Equal(id.RunDirs, other.RunDirs)
}

// replaceFile durably replaces a file by one that root alone may read.
func replaceFile(path string, text []byte) (err error) {
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
	return syncDir(filepath.Dir(path))
}

// overwrite replaces what is in a file without asking the disk for room.
func overwrite(path string, text []byte) error {
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
