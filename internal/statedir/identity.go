package statedir

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

	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// IdentityName is the file in the state directory that tells a copy of it from
// the original, and a state directory from before a restart of the host from one
// whose jobs may still run.
const IdentityName = "identity.json"

// MaxIdentity bounds that file.
const MaxIdentity = 64 << 10

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

// Whereabouts are what a daemon finds out about its state directory before it
// touches any job.
type Whereabouts struct {
	Path string // of the file with the identity
	Now  identity
	last *identity // as the file has it; nil: there is none that can be read

	// Elsewhere says why the jobs that are recorded as running are not this
	// daemon's to adopt; empty: they are.
	Elsewhere string
	// Copied: they may run nevertheless, for the original of this directory.
	Copied bool
}

// Locate compares a state directory with what is written down in it.
func Locate(stateDir, runDir string, log *slog.Logger) (Whereabouts, error) {
	w := Whereabouts{Path: filepath.Join(stateDir, IdentityName)}
	info, err := os.Stat(stateDir)
	if err != nil {
		return w, fmt.Errorf("cannot identify the state directory: %w", err)
	}
	w.Now = identity{Machine: hostLine("/etc/machine-id"), Boot: hostLine("/proc/sys/kernel/random/boot_id"), RunDirs: []string{runDir}}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		w.Now.Device, w.Now.Inode = uint64(st.Dev), st.Ino
	}
	switch w.last, err = readIdentity(w.Path); {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist): // it is new, or of a version that had no such file
	case errors.Is(err, jobdir.ErrDamaged):
		log.Warn("cannot determine whether the state directory is a copy: its identity is replaced", "error", err)
	default:
		return w, fmt.Errorf("cannot identify the state directory: %w", err)
	}
	if w.last == nil {
		w.Now.Tag = newTag()
		return w, nil
	}
	w.Now.Tag = w.last.Tag
	for _, dir := range w.last.RunDirs {
		if !slices.Contains(w.Now.RunDirs, dir) {
			w.Now.RunDirs = append(w.Now.RunDirs, dir)
		}
	}
	here := w.last.Device == w.Now.Device && w.last.Inode == w.Now.Inode
	switch {
	case w.last.Boot == w.Now.Boot && here:
		return w, nil
	case w.last.Boot == w.Now.Boot:
		w.Copied = true
		w.Elsewhere = "the state directory is a copy, made while the job ran; the job belongs to the original"
	case w.last.Machine != w.Now.Machine:
		w.Copied = true
		w.Elsewhere = "the state directory was copied from another machine while the job ran"
	default:
		w.Elsewhere = "the host was restarted while the job ran"
	}
	if w.Copied || !here {
		w.Now.Tag, w.Now.RunDirs = newTag(), w.Now.RunDirs[:1]
	}
	return w, nil
}

func readIdentity(path string) (*identity, error) {
	var id identity
	if err := jobdir.ReadSealed(path, MaxIdentity, &id); err != nil {
		return nil, err
	}
	if !validTag(id.Tag) || len(id.RunDirs) == 0 {
		return nil, fmt.Errorf("%w: %s names no directory", jobdir.ErrDamaged, IdentityName)
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

// Record makes the present Whereabouts the ones that the next daemon compares
// with. It comes after the jobs of before are dealt with durably, so that a crash
// on the way leaves the next daemon with the same question.
func (w *Whereabouts) Record() error {
	if w.last != nil && w.Now.equal(w.last) {
		return nil
	}
	text, err := json.Marshal(w.Now)
	if err != nil {
		return err
	}
	text = protocol.Seal(text)
	err = jobdir.ReplaceFile(w.Path, text)
	if w.last != nil && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		err = jobdir.Overwrite(w.Path, text) // in the room that it has
	}
	if err != nil {
		return fmt.Errorf("cannot record the identity of the state directory: %w", err)
	}
	now := w.Now
	w.last = &now
	return nil
}

func (id *identity) equal(other *identity) bool {
	return id.Tag == other.Tag && id.Machine == other.Machine && id.Boot == other.Boot &&
		id.Device == other.Device && id.Inode == other.Inode && slices.Equal(id.RunDirs, other.RunDirs)
}
