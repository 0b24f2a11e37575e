// Package runtimes owns the installed runtimes: read-only trees of programs
// that jobs share. In the directory of a [Store],
//
//	NAME/rootfs/       the tree, ready to be a job's read-only root
//	NAME/runtime.yaml  what was built, when and from which recipe
//	.build-NAME/       a build under way, for root alone; its builder holds a flock on it
//	.trash-RANDOM/     a tree on its way out
//
// A runtime appears and disappears by one rename, so a name stands for a whole
// tree or for none. What an interrupted build or removal left behind goes when
// a Store is opened.
package runtimes

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

const (
	metaFile    = "runtime.yaml"
	rootFSName  = "rootfs"
	buildPrefix = ".build-"
	trashPrefix = ".trash-"

	maxMetaSize = 1 << 20

	// format is the version of the layout of trees and of runtime.yaml.
	format = 1
)

// Runtime is an installed runtime. Its maps and slices are shared between
// callers and must not be changed.
type Runtime struct {
	Format          int    `yaml:"format"`
	Name            string `yaml:"name"`
	Version         string `yaml:"version,omitempty"`
	Description     string `yaml:"description,omitempty"`
	Language        string `yaml:"language,omitempty"`
	LanguageVersion string `yaml:"language_version,omitempty"`

	Suite        string            `yaml:"suite"`
	Architecture string            `yaml:"architecture"` // as Debian spells it
	Environment  map[string]string `yaml:"environment,omitempty"`
	Test         []string          `yaml:"test,omitempty"`

	BuiltAt   time.Time     `yaml:"built_at"`
	BuiltWith string        `yaml:"built_with"`
	BuildTime time.Duration `yaml:"build_time"`
	SizeBytes int64         `yaml:"size_bytes"` // on disk
	Files     int           `yaml:"files"`

	Packages  []string `yaml:"packages"`  // those that the recipe asks for, as "name=version"
	Installed []string `yaml:"installed"` // all of them, as "name=version"

	RecipeSHA256 string `yaml:"recipe_sha256"`
	Recipe       string `yaml:"recipe"` // its text

	RootFS string `yaml:"-"` // absolute path of the tree
	// Err says why an entry of List is not usable; all but Name may then be empty.
	Err error `yaml:"-"`
}

// Store is the directory of installed runtimes. It may be used by several
// goroutines at once.
type Store struct {
	dir string
	ids buildIDs

	// mu is held for writing while a name comes to stand for another tree, from
	// the question whether the old one is in use to the rename.
	mu sync.RWMutex

	cacheMu sync.Mutex // protects cache; taken after mu
	cache   map[string]cached
}

type cached struct {
	stamp stamp
	rt    Runtime
}

// stamp tells one runtime.yaml from another without reading it.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// Open returns the Store in dir, which it creates when missing, and removes
// what interrupted builds and removals left there.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open the runtimes: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot open the runtimes: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil { // mountinfo knows real paths only
		return nil, fmt.Errorf("cannot open the runtimes: %w", err)
	}
	s := &Store{dir: dir, cache: map[string]cached{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open the runtimes: %w", err)
	}
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), trashPrefix):
			err = removeTree(p)
		case strings.HasPrefix(e.Name(), buildPrefix):
			err = removeAbandoned(p)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot remove leftovers of builds: %w", err)
		}
	}
	return s, nil
}

// Get returns an installed runtime. Its errors are of kind InvalidArgument for
// an impossible name, NotFound, with the installed names in its text, and
// FailedPrecondition for a damaged runtime.
//
// It is on the way of every job's start: as long as runtime.yaml is the same
// file it is not read again.
func (s *Store) Get(name string) (Runtime, error) {
	if err := joblet.ValidName("runtime name", name); err != nil {
		return Runtime{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	rt, err := s.get(name)
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Lstat(filepath.Join(s.dir, name)); errors.Is(statErr, fs.ErrNotExist) {
			return Runtime{}, s.notFound(name)
		}
	}
	if err != nil {
		return Runtime{}, joblet.Errorf(joblet.FailedPrecondition,
			"runtime %s is damaged: %w; rebuild it: rnx runtime build --force recipes/%s.yaml", name, err, name)
	}
	return rt, nil
}

// Find returns the installed runtime that ref names, as joblet.SplitRuntime has it:
// LANGUAGE:VERSION is the runtime LANGUAGE-VERSION, or else the only one with that version
// of the language. Its errors are those of Get.
func (s *Store) Find(ref string) (Runtime, error) {
	name, version, err := joblet.SplitRuntime(ref)
	if err != nil {
		return Runtime{}, err
	}
	language, of, isLanguage := strings.Cut(name, ":")
	if isLanguage {
		return s.findLanguage(language, of)
	}
	rt, err := s.Get(name)
	if err == nil && version != "" && version != latest && (rt.Version == "" || !sameVersion(version, rt.Version)) {
		has := "version " + rt.Version
		if rt.Version == "" {
			has = "no version"
		}
		return Runtime{}, joblet.Errorf(joblet.NotFound, "runtime %s is not installed: the installed %s has %s", ref, name, has)
	}
	return rt, err
}

// latest is the version of whatever is installed.
const latest = "latest"

// sameVersion reports whether two versions are one: 1.0.0 is 1.0.
func sameVersion(a, b string) bool {
	for _, v := range []*string{&a, &b} {
		for strings.HasSuffix(*v, ".0") {
			*v = strings.TrimSuffix(*v, ".0")
		}
	}
	return a == b
}

func (s *Store) findLanguage(language, version string) (Runtime, error) {
	if name := language + "-" + version; joblet.ValidName("", name) == nil {
		if rt, err := s.Get(name); joblet.KindOf(err) != joblet.NotFound {
			return rt, err
		}
	}
	all, err := s.List()
	if err != nil {
		return Runtime{}, err
	}
	var names []string
	var found Runtime
	for _, rt := range all {
		if rt.Err == nil && rt.Language == language && (rt.LanguageVersion == version || version == latest) {
			names, found = append(names, rt.Name), rt
		}
	}
	switch len(names) {
	case 0:
		return Runtime{}, s.notFound(language + ":" + version)
	case 1:
		return found, nil
	}
	return Runtime{}, joblet.Errorf(joblet.InvalidArgument, "runtime %s:%s is ambiguous: name one of %s", language, version, strings.Join(names[:min(len(names), maxNamed)], ", "))
}

// maxNamed is how many runtimes an error names.
const maxNamed = 20

func (s *Store) notFound(name string) error {
	installed := "none is"
	if names := s.names(); len(names) > 0 {
		more := ""
		if len(names) > maxNamed {
			more = fmt.Sprintf(" and %d more", len(names)-maxNamed)
			names = names[:maxNamed]
		}
		installed = strings.Join(names, ", ") + more
	}
	return joblet.Errorf(joblet.NotFound, "runtime %s is not installed (installed: %s); build it: rnx runtime build recipes/%s.yaml", name, installed, strings.Replace(name, ":", "-", 1))
}

func (s *Store) names() []string {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && joblet.ValidName("", e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names
}

// get is Get for a valid name, with mu held.
func (s *Store) get(name string) (Runtime, error) {
	meta := filepath.Join(s.dir, name, metaFile)
	var st unix.Stat_t
	if err := unix.Lstat(meta, &st); err != nil {
		return Runtime{}, &fs.PathError{Op: "stat", Path: meta, Err: err}
	}
	now := stamp{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}
	s.cacheMu.Lock()
	c, ok := s.cache[name]
	s.cacheMu.Unlock()
	if ok && c.stamp == now {
		return c.rt, nil
	}
	rt, err := s.load(name, meta)
	if err != nil {
		return Runtime{}, err
	}
	s.cacheMu.Lock()
	s.cache[name] = cached{now, rt}
	s.cacheMu.Unlock()
	return rt, nil
}

func (s *Store) load(name, meta string) (Runtime, error) {
	dir := filepath.Join(s.dir, name)
	rootfs := filepath.Join(dir, rootFSName)
	for _, p := range []string{dir, rootfs} {
		if fi, err := os.Lstat(p); err != nil {
			return Runtime{}, err
		} else if !fi.IsDir() {
			return Runtime{}, fmt.Errorf("%s is not a directory", p)
		}
	}
	if fi, err := os.Lstat(meta); err != nil {
		return Runtime{}, err
	} else if !fi.Mode().IsRegular() {
		return Runtime{}, fmt.Errorf("%s is not a regular file", meta)
	} else if fi.Size() > maxMetaSize {
		return Runtime{}, fmt.Errorf("%s is %d bytes long: at most %d are possible", meta, fi.Size(), maxMetaSize)
	}
	data, err := os.ReadFile(meta)
	if err != nil {
		return Runtime{}, err
	}
	var rt Runtime
	if err := decodeStrict(data, &rt); err != nil {
		return Runtime{}, fmt.Errorf("cannot read %s: %w", meta, err)
	}
	if rt.Format != format {
		return Runtime{}, fmt.Errorf("%s has format %d, and this version of joblet reads format %d", meta, rt.Format, format)
	}
	if rt.Name != name {
		return Runtime{}, fmt.Errorf("%s belongs to runtime %.100q", meta, rt.Name)
	}
	env := joblet.Spec{Command: "true", Env: rt.Environment}
	if err := env.Validate(); err != nil {
		return Runtime{}, fmt.Errorf("cannot read %s: %w", meta, err)
	}
	rt.RootFS = rootfs
	return rt, nil
}

// List returns all entries of the store by name. An entry that is not a usable
// runtime has its Err set.
func (s *Store) List() ([]Runtime, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("cannot list the runtimes: %w", err)
	}
	var list []Runtime
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || name == "lost+found" {
			continue
		}
		if err := joblet.ValidName("runtime name", name); err != nil {
			// Quoted without its quotes: it goes to terminals.
			quoted := strconv.QuoteToASCII(name)
			list = append(list, Runtime{Name: quoted[1 : len(quoted)-1], Err: err})
			continue
		}
		rt, err := s.get(name)
		if errors.Is(err, fs.ErrNotExist) {
			if _, statErr := os.Lstat(filepath.Join(s.dir, name)); errors.Is(statErr, fs.ErrNotExist) {
				continue // removed since ReadDir
			}
		}
		if err != nil {
			rt = Runtime{Name: name, Err: err}
		}
		list = append(list, rt)
	}
	return list, nil
}

// Remove deletes a runtime, damaged ones too, and returns how many bytes of
// disk that freed. It is refused with FailedPrecondition when inUse says that
// jobs use the runtime. inUse, which may be nil, is called with the store's
// lock held, so that no Get falls between its answer and the removal: a caller
// that records a use before it calls Get can't lose the tree.
func (s *Store) Remove(name string, inUse func(name string) bool) (freed int64, err error) {
	if err := joblet.ValidName("runtime name", name); err != nil {
		return 0, err
	}
	p := filepath.Join(s.dir, name)
	trash, err := func() (string, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, err := os.Lstat(p); errors.Is(err, fs.ErrNotExist) {
			return "", s.notFound(name)
		}
		if err := refuseInUse(name, inUse); err != nil {
			return "", err
		}
		if mounts, err := mountsBelow(p); err != nil {
			return "", fmt.Errorf("cannot remove runtime %s: %w", name, err)
		} else if len(mounts) > 0 {
			return "", joblet.Errorf(joblet.FailedPrecondition, "cannot remove runtime %s: %s is a mount point: unmount it first", name, mounts[0])
		}
		trash := s.trashPath()
		if err := os.Rename(p, trash); err != nil {
			return "", fmt.Errorf("cannot remove runtime %s: %w", name, err)
		}
		s.forget(name)
		return trash, nil
	}()
	if err != nil {
		return 0, err
	}
	freed, _, err = measure(trash)
	if err != nil {
		return 0, fmt.Errorf("cannot remove runtime %s: %w", name, err)
	}
	if err := removeTree(trash); err != nil {
		return 0, fmt.Errorf("cannot remove runtime %s: %w", name, err)
	}
	return freed, nil
}

func refuseInUse(name string, inUse func(string) bool) error {
	if inUse != nil && inUse(name) {
		return joblet.Errorf(joblet.FailedPrecondition, "runtime %s is in use: wait for its jobs to end, or stop them", name)
	}
	return nil
}

func (s *Store) trashPath() string { return filepath.Join(s.dir, trashPrefix+rand.Text()) }

func (s *Store) forget(name string) {
	s.cacheMu.Lock()
	delete(s.cache, name)
	s.cacheMu.Unlock()
}

// claim creates and locks the build directory of name. The holder of its flock owns it;
// the kernel releases the lock when that process ends.
func (s *Store) claim(name string) (dir string, lock *os.File, err error) {
	dir = filepath.Join(s.dir, buildPrefix+name)
	for range 10 {
		// Only root sees an incomplete tree.
		err := os.Mkdir(dir, 0o700)
		leftover := errors.Is(err, fs.ErrExist)
		if err != nil && !leftover {
			return "", nil, err
		}
		lock, err := lockDir(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // a clean-up has removed it as abandoned
		case errors.Is(err, unix.EWOULDBLOCK):
			return "", nil, joblet.Errorf(joblet.FailedPrecondition, "another build of this runtime is running")
		case err != nil:
			return "", nil, err
		}
		if !leftover {
			return dir, lock, nil
		}
		err = discard(dir)
		_ = lock.Close()
		if err != nil {
			return "", nil, err
		}
	}
	return "", nil, joblet.Errorf(joblet.Unavailable, "%s keeps changing", dir)
}

// lockDir takes the flock of the directory that path names at its return. Its error is
// fs.ErrNotExist when there is none, or no longer the same, and EWOULDBLOCK when the
// lock is held.
func lockDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
	}
	locked, err1 := f.Stat()
	named, err2 := os.Lstat(path)
	if err := errors.Join(err1, err2); err != nil {
		_ = f.Close()
		return nil, err
	}
	if !os.SameFile(locked, named) {
		_ = f.Close()
		return nil, fs.ErrNotExist
	}
	return f, nil
}

// removeAbandoned removes a build directory unless a live builder holds it.
func removeAbandoned(dir string) error {
	fi, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return os.Remove(dir)
	}
	lock, err := lockDir(dir)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	return discard(dir)
}

// discard unmounts what a build may have mounted below dir and removes dir.
func discard(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return &fs.PathError{Op: "unmount", Path: m, Err: err}
		}
	}
	return removeTree(dir)
}

// removeTree removes path and what is below it. It follows no symbolic link
// and refuses to start when anything is mounted there.
func removeTree(path string) error {
	mounts, err := mountsBelow(path)
	if err != nil {
		return fmt.Errorf("cannot remove %s: %w", path, err)
	}
	if len(mounts) > 0 {
		return joblet.Errorf(joblet.FailedPrecondition, "cannot remove %s: %s is a mount point: unmount it first", path, mounts[0])
	}
	return os.RemoveAll(path)
}

// mountsBelow returns the mount points at or below path, in the order in which
// they were mounted.
func mountsBelow(path string) ([]string, error) {
	table, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return nil, err
	}
	var mounts []string
	for _, info := range table {
		mounts = append(mounts, info.Mountpoint)
	}
	return mounts, nil
}

// measure returns the disk space and the number of files below path.
func measure(path string) (bytes int64, files int, err error) {
	linked := map[uint64]bool{}
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return &fs.PathError{Op: "stat", Path: p, Err: err}
		}
		files++
		if st.Nlink > 1 && !d.IsDir() {
			if linked[st.Ino] {
				return nil
			}
			linked[st.Ino] = true
		}
		bytes += st.Blocks * 512
		return nil
	})
	return bytes, files, err
}
