package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/joblet/joblet"
)

// Check copies an archive that somebody sent for a job, entry by entry: what arrives
// in w holds only directories, regular files, symbolic and hard links, with clean relative
// names. Symbolic links may lead anywhere. It reads r to its end. Anything else is an error of
// kind InvalidArgument that names the entry: absolute names, "..", names below a link
// or a file, a file that comes twice, hard links to anything but a file before them,
// devices, more than lim, and an archive that has been cut off. Errors of r and w are returned as they are, wrapped.
func Check(w io.Writer, r io.Reader, lim Limits) (Stats, error) {
	return copyEntries(w, newSource(r, lim, checkLink), nil, nil)
}

// Select copies those entries of one of our own archives that match passes
// (nil: all), with the directories above them. The result counts what was
// copied. Where a further name of a file is chosen and the file's first one is not, it
// comes with the content. An archive that Check would refuse is an error, and so is a link that leads
// outside, or could.
func Select(w io.Writer, r io.ReaderAt, match func(name string) bool) (Stats, error) {
	stats, err := copyEntries(w, ourSource(io.NewSectionReader(r, 0, math.MaxInt64), unbounded), match, r)
	if e, ok := errors.AsType[*joblet.Error](err); ok && e.Kind == joblet.InvalidArgument {
		err = joblet.Errorf(joblet.Internal, "stored archive: %w", err) // not the caller's doing
	}
	return stats, err
}

// unbounded is for archives that have been bounded before.
var unbounded = Limits{Bytes: math.MaxInt64, Entries: math.MaxInt32}

// Verify reads one of our own archives, of either direction, to its end.
func Verify(r io.Reader) error {
	s := newSource(r, unbounded, checkLink)
	s.comments = true
	_, err := copyEntries(io.Discard, s, nil, nil)
	return err
}

// ourSource returns a source of files on their way from a job.
func ourSource(r io.Reader, lim Limits) *source {
	s := newSource(r, lim, checkTarget)
	s.comments = true
	return s
}

// copyEntries needs stored only with match.
func copyEntries(w io.Writer, s *source, match func(string) bool, stored io.ReaderAt) (Stats, error) {
	out := tar.NewWriter(newShowHoles(w))
	var stats Stats
	passed := map[int32]entry{}  // files that were not chosen
	called := map[int32]string{} // the first of their further names that was
	for {
		e, err := s.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return Stats{}, err
		}
		if match != nil && !match(e.name) {
			if e.kind == file {
				passed[e.id] = e
			}
			continue
		}
		content := io.Reader(s)
		if e.kind == hard {
			e.target = s.tree.name(e.original)
			first, ok := passed[e.original]
			switch name := called[e.original]; {
			case ok && name == "":
				called[e.original] = e.name
				e.kind, e.mode, e.mtime = file, first.mode, first.mtime
				e.size, e.extents, e.length = first.size, first.extents, first.length
				content = io.NewSectionReader(stored, first.pos, first.size)
			case ok:
				e.target = name
			}
		}
		if err := s.tree.markAbove(e.id, func(name string, n node) error {
			return out.WriteHeader(newHeader(name, directory, n.mode, n.mtime))
		}); err != nil {
			return Stats{}, fmt.Errorf("write archive: %w", err)
		}
		s.tree.nodes[e.id].done = true
		h := newHeader(e.name, e.kind, e.mode, e.mtime)
		h.Size, h.Linkname = e.size, e.target
		if e.extents != nil {
			h.PAXRecords = sparseRecords(e.length, e.extents)
		}
		if err := out.WriteHeader(h); err != nil {
			return Stats{}, fmt.Errorf("write archive: %w", err)
		}
		if err := s.copy(out, content, e.size); err != nil {
			return Stats{}, fmt.Errorf("copy %.200q: %w", e.name, err)
		}
		stats.Bytes += e.size
	}
	stats.Skipped, stats.LeftOut = chosen(s.skipped, s.leftOut, match)
	if err := writeLeftOut(out, stats.Skipped, stats.LeftOut); err != nil {
		return Stats{}, fmt.Errorf("write archive: %w", err)
	}
	if err := out.Close(); err != nil {
		return Stats{}, fmt.Errorf("write archive: %w", err)
	}
	for _, n := range s.tree.nodes[1:] {
		if !n.done {
			continue
		}
		stats.Entries++
		if n.parent == 0 && len(stats.Top) < maxTop {
			stats.Top = append(stats.Top, n.elem)
		}
	}
	slices.Sort(stats.Top)
	return stats, nil
}

// markAbove marks the directories above a node as done, and calls do, from the
// top, for those that have an entry and were not yet.
func (t *tree) markAbove(id int32, do func(name string, n node) error) error {
	var todo []int32
	for id = t.nodes[id].parent; !t.nodes[id].done; id = t.nodes[id].parent {
		todo = append(todo, id)
	}
	for _, id := range slices.Backward(todo) {
		n := &t.nodes[id]
		n.done = true
		if n.kind != directory {
			continue
		}
		if err := do(t.name(id), *n); err != nil {
			return err
		}
	}
	return nil
}

// Unpack creates what an archive holds below root, where things may exist
// already: directories are merged and keep their modes, a file or link is
// replaced by a new one, and never written through. What stands in the way
// otherwise is an error of kind AlreadyExists. It refuses what Select refuses;
// what came before that in the archive has been unpacked then. New files and
// directories have the archive's permission bits, those that no entry describes
// 0755, without what the umask takes away; on Windows, which has no such bits,
// they are left out, and links are skipped where the user may not create any.
// New files and directories have the archive's times, where it has any and the
// file system takes them.
func Unpack(root *os.Root, r io.Reader, lim Limits) (Stats, error) {
	return unpack(root, ourSource(r, lim))
}

// UnpackForJob is Unpack for an archive that Check has passed, below a job's root:
// links may lead anywhere.
func UnpackForJob(root *os.Root, r io.Reader, lim Limits) (Stats, error) {
	return unpack(root, newSource(r, lim, checkLink))
}

func unpack(root *os.Root, s *source) (Stats, error) {
	u := &unpacker{root: root, source: s}
	for {
		e, err := u.next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = u.entry(e)
		}
		if err != nil {
			return Stats{}, err
		}
	}
	if err := u.finishDirs(); err != nil {
		return Stats{}, err
	}
	stats := u.tree.result()
	stats.Skipped, stats.LeftOut = stats.Skipped+u.skipped, append(u.leftOut, stats.LeftOut...)
	return stats, nil
}

type unpacker struct {
	*source
	root *os.Root
}

const hasModes = runtime.GOOS != "windows"

func (u *unpacker) entry(e entry) error {
	if e.kind == directory {
		return u.makeDir(e.id)
	}
	if e.kind == hard {
		e.target = u.tree.name(e.original)
	}
	if err := u.makeDir(u.tree.nodes[e.id].parent); err != nil {
		return err
	}
	create := func() error { return u.createFile(e) }
	switch e.kind {
	case link:
		create = func() error { return u.root.Symlink(filepath.FromSlash(e.target), e.name) }
	case hard:
		create = func() error { return u.createLink(e) }
	}
	err := create()
	if errors.Is(err, fs.ErrExist) {
		if err := u.clear(e.name); err != nil {
			return err
		}
		err = create()
	}
	if err != nil && e.kind == link && !hasModes {
		u.tree.stats.Skipped++
		u.tree.stats.note(e.name, errors.New("is a link, which this system does not allow"))
		return nil
	}
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}

// clear removes a file or link that is in an entry's place.
func (u *unpacker) clear(name string) error {
	fi, err := u.root.Lstat(name)
	if err == nil && fi.IsDir() {
		return joblet.Errorf(joblet.AlreadyExists, "unpack %q: there is a directory of that name already", name)
	}
	if err == nil {
		err = u.root.Remove(name)
	}
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}

func (u *unpacker) createFile(e entry) error {
	if !hasModes {
		e.mode = 0o600 // without the bit to write it would be read-only
	}
	f, err := u.root.OpenFile(e.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, e.mode)
	if err != nil {
		return err
	}
	err = u.fill(f, e)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = u.root.Remove(e.name) // half of a file helps nobody
		return err
	}
	u.setTime(e.name, e.mtime)
	return nil
}

// createLink gives a file a further name. Where that cannot be, it copies the file.
func (u *unpacker) createLink(e entry) error {
	err := u.root.Link(filepath.FromSlash(e.target), filepath.FromSlash(e.name))
	if errors.Is(err, fs.ErrExist) {
		return err
	}
	if err == nil {
		fi, err := u.root.Lstat(e.name)
		if err != nil || fi.Mode().IsRegular() {
			return err
		}
		return errors.Join(fmt.Errorf("%q was replaced meanwhile", e.target), u.root.Remove(e.name))
	}
	before, statErr := u.root.Lstat(e.target)
	if statErr != nil || !before.Mode().IsRegular() { // another one has taken it away
		return err
	}
	f, openErr := u.root.OpenFile(e.target, os.O_RDONLY|nonblock, 0)
	if openErr != nil {
		return err
	}
	defer f.Close()
	if fi, statErr := f.Stat(); statErr != nil || !os.SameFile(fi, before) {
		return err
	}
	if err := u.tree.grow(e.name, before.Size()); err != nil { // it takes room now
		return err
	}
	to, err := u.root.OpenFile(e.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, before.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(to, f)
	if err = errors.Join(err, to.Close()); err != nil {
		_ = u.root.Remove(e.name)
		return err
	}
	u.setTime(e.name, toNanos(before.ModTime()))
	return nil
}

// setTime sets a time of modification. Where that cannot be, the content still counts.
func (u *unpacker) setTime(name string, mtime int64) {
	if mtime != 0 {
		_ = u.root.Chtimes(name, time.Time{}, time.Unix(0, mtime))
	}
}

// fill writes a file's content, and no holes.
func (u *unpacker) fill(f *os.File, e entry) error {
	if e.extents == nil {
		return u.copy(f, u, e.size)
	}
	for _, piece := range e.extents {
		if err := u.copy(io.NewOffsetWriter(f, piece.offset), u, piece.length); err != nil {
			return err
		}
	}
	return f.Truncate(e.length)
}

// makeDir makes a directory and those above it. Until all is unpacked, the user may
// use it whatever its mode is to be; of one whose entry is still to come the umask
// alone decides, so that finishDirs can tell what that leaves.
func (u *unpacker) makeDir(id int32) error {
	if u.tree.nodes[id].done {
		return nil
	}
	if err := u.makeDir(u.tree.nodes[id].parent); err != nil {
		return err
	}
	name, mode := u.tree.name(id), fs.FileMode(0o777)
	if n := u.tree.nodes[id]; n.kind == directory {
		mode = n.mode | 0o700
	}
	err := u.root.Mkdir(name, mode)
	created := err == nil
	if errors.Is(err, fs.ErrExist) {
		var fi fs.FileInfo
		if fi, err = u.root.Lstat(name); err == nil && !fi.IsDir() {
			return joblet.Errorf(joblet.AlreadyExists, "unpack %q: there is a file or link of that name already, where a directory must be", name)
		}
	}
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	u.tree.nodes[id].done, u.tree.nodes[id].created = true, created
	return nil
}

// finishDirs gives new directories their times, which nothing in them changes any
// more, and takes from them what they have beyond their modes; those below first:
// they cannot be reached any more when one above is closed.
func (u *unpacker) finishDirs() error {
	for id, n := range slices.Backward(u.tree.nodes) {
		if !n.created {
			continue
		}
		name := u.tree.name(int32(id))
		u.setTime(name, n.mtime)
		if !hasModes {
			continue
		}
		fi, err := u.root.Lstat(name)
		if err == nil && fi.Mode().Perm()&^n.mode != 0 {
			err = u.root.Chmod(name, fi.Mode()&(n.mode|^fs.ModePerm))
		}
		if err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
	}
	return nil
}
