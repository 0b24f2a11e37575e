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
	"strings"
	"time"

	"github.com/joblet/joblet"
)

// Check copies a received archive of a job's files, entry by entry: what arrives in w
// holds only directories, regular files, symbolic and hard links, with clean relative
// names. Symbolic links may lead anywhere. It reads r to its end. Anything else is an
// error of kind InvalidArgument that names the entry: absolute names, "..", names below
// a link or a file, a file that comes twice, hard links to anything but a file before
// them, devices, more than lim, and an archive that has been cut off. Errors of r and w
// are returned as they are, wrapped.
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
		err = joblet.Errorf(joblet.Internal, "cannot read the stored archive: %w", err) // not the caller's doing
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
			return Stats{}, fmt.Errorf("cannot write the archive: %w", err)
		}
		s.tree.nodes[e.id].done = true
		h := newHeader(e.name, e.kind, e.mode, e.mtime)
		h.Size, h.Linkname = e.size, e.target
		if e.extents != nil {
			h.PAXRecords = sparseRecords(e.length, e.extents)
		}
		if err := out.WriteHeader(h); err != nil {
			return Stats{}, fmt.Errorf("cannot write the archive: %w", err)
		}
		if err := s.copy(out, content, e.size); err != nil {
			return Stats{}, fmt.Errorf("cannot copy %.200q: %w", e.name, err)
		}
		stats.Bytes += e.size
	}
	stats.Skipped, stats.LeftOut = chosen(s.skipped, s.leftOut, match)
	if err := writeLeftOut(out, stats.Skipped, stats.LeftOut); err != nil {
		return Stats{}, fmt.Errorf("cannot write the archive: %w", err)
	}
	if err := out.Close(); err != nil {
		return Stats{}, fmt.Errorf("cannot write the archive: %w", err)
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
	defer u.leave()
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

	// trail ends with the directory in which something was made latest, so that not
	// each file of a deep one takes a walk there, and has some of those above.
	trail []place

	walked int // directories, for hard links
}

// place is an open directory.
type place struct {
	id    int32
	depth int
	dir   *os.Root
}

// stride is how many directories lie between two of a trail.
const stride = 32

// at returns a directory that has been made. It is good until the next call.
func (u *unpacker) at(id int32) (*os.Root, error) {
	if id == 0 {
		return u.root, nil
	}
	if n := len(u.trail); n > 0 && u.trail[n-1].id == id {
		return u.trail[n-1].dir, nil
	}
	var way []int32 // from the top to it
	for n := id; n != 0; n = u.tree.nodes[n].parent {
		way = append(way, n)
	}
	slices.Reverse(way)
	from := place{dir: u.root}
	for len(u.trail) > 0 {
		if last := u.trail[len(u.trail)-1]; last.depth <= len(way) && way[last.depth-1] == last.id {
			from = last
			break
		}
		u.drop()
	}
	for from.depth < len(way) {
		to := place{depth: min(len(way), (from.depth/stride+1)*stride)}
		var elems []string
		for _, n := range way[from.depth:to.depth] {
			elems = append(elems, u.tree.nodes[n].elem)
		}
		to.id = way[to.depth-1]
		var err error
		if to.dir, err = from.dir.OpenRoot(strings.Join(elems, "/")); err != nil {
			return nil, u.failed(to.id, err)
		}
		if from.depth%stride != 0 {
			u.drop()
		}
		u.trail = append(u.trail, to)
		from = to
	}
	return from.dir, nil
}

// drop closes the last of the trail.
func (u *unpacker) drop() {
	last := len(u.trail) - 1
	_ = u.trail[last].dir.Close()
	u.trail = u.trail[:last]
}

func (u *unpacker) leave() {
	for len(u.trail) > 0 {
		u.drop()
	}
}

// failed says of which entry something failed.
func (u *unpacker) failed(id int32, err error) error {
	return fmt.Errorf("cannot unpack %.200q: %w", u.tree.name(id), cause(err))
}

const hasModes = runtime.GOOS != "windows"

func (u *unpacker) entry(e entry) error {
	if e.kind == directory {
		return u.makeDir(e.id)
	}
	if e.kind == hard {
		e.target = u.tree.name(e.original)
	}
	n := u.tree.nodes[e.id]
	if err := u.makeDir(n.parent); err != nil {
		return err
	}
	dir, err := u.at(n.parent)
	if err != nil {
		return err
	}
	create := func() error { return u.createFile(dir, n.elem, e) }
	switch e.kind {
	case link:
		create = func() error { return dir.Symlink(filepath.FromSlash(e.target), n.elem) }
	case hard:
		create = func() error { return u.createLink(dir, n, e) }
	}
	err = create()
	if errors.Is(err, fs.ErrExist) {
		if err := u.clear(dir, n.elem, e); err != nil {
			return err
		}
		err = create()
	}
	if err != nil && e.kind == link && !hasModes {
		u.tree.stats.Skipped++
		u.tree.stats.note(e.name, errors.New("is a link, which this system does not support"))
		return nil
	}
	if err != nil {
		return u.failed(e.id, err)
	}
	return nil
}

// clear removes a file or link that is in an entry's place.
func (u *unpacker) clear(dir *os.Root, elem string, e entry) error {
	fi, err := dir.Lstat(elem)
	if err == nil && fi.IsDir() {
		return joblet.Errorf(joblet.AlreadyExists, "cannot unpack %q: a directory of that name exists", e.name)
	}
	if err == nil {
		err = dir.Remove(elem)
	}
	if err != nil {
		return u.failed(e.id, err)
	}
	return nil
}

func (u *unpacker) createFile(dir *os.Root, elem string, e entry) error {
	if !hasModes {
		e.mode = 0o600 // without the bit to write it would be read-only
	}
	f, err := dir.OpenFile(elem, os.O_WRONLY|os.O_CREATE|os.O_EXCL, e.mode)
	if err != nil {
		return err
	}
	err = u.fill(f, e)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = dir.Remove(elem) // half a file is useless
		return err
	}
	setTime(dir, elem, e.mtime)
	return nil
}

// maxLinkWalk bounds the directories that all hard links of an archive are walked
// through, of which each costs about a microsecond.
const maxLinkWalk = 10 << 20

// createLink gives a file a further name, in dir. Where that cannot be, it copies the
// file.
func (u *unpacker) createLink(dir *os.Root, n node, e entry) error {
	from, target, name := dir, u.tree.nodes[e.original].elem, n.elem
	if u.tree.nodes[e.original].parent != n.parent {
		from, target, name = u.root, filepath.FromSlash(e.target), filepath.FromSlash(e.name)
		if u.walked += strings.Count(e.target, "/") + strings.Count(e.name, "/"); u.walked > maxLinkWalk {
			return joblet.Errorf(joblet.InvalidArgument, "too many hard links between deep directories")
		}
	}
	err := from.Link(target, name)
	if errors.Is(err, fs.ErrExist) {
		return err
	}
	if err == nil {
		fi, err := dir.Lstat(n.elem)
		if err != nil || fi.Mode().IsRegular() {
			return err
		}
		return errors.Join(fmt.Errorf("%.200q was replaced while it was linked", e.target), dir.Remove(n.elem))
	}
	before, statErr := from.Lstat(target)
	if statErr != nil || !before.Mode().IsRegular() { // another one has taken it away
		return err
	}
	f, openErr := from.OpenFile(target, os.O_RDONLY|nonblock, 0)
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
	to, err := dir.OpenFile(n.elem, os.O_WRONLY|os.O_CREATE|os.O_EXCL, before.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(to, f)
	if err = errors.Join(err, to.Close()); err != nil {
		_ = dir.Remove(n.elem)
		return err
	}
	setTime(dir, n.elem, toNanos(before.ModTime()))
	return nil
}

// setTime sets a time of modification. Where that cannot be, the content still counts.
func setTime(dir *os.Root, elem string, mtime int64) {
	if mtime != 0 {
		_ = dir.Chtimes(elem, time.Time{}, time.Unix(0, mtime))
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
	n, mode := u.tree.nodes[id], fs.FileMode(0o777)
	dir, err := u.at(n.parent)
	if err != nil {
		return err
	}
	if n.kind == directory {
		mode = n.mode | 0o700
	}
	err = dir.Mkdir(n.elem, mode)
	created := err == nil
	if errors.Is(err, fs.ErrExist) {
		var fi fs.FileInfo
		if fi, err = dir.Lstat(n.elem); err == nil && !fi.IsDir() {
			return joblet.Errorf(joblet.AlreadyExists, "cannot unpack %q: a file or link of that name exists where a directory is needed", u.tree.name(id))
		}
	}
	if err != nil {
		return u.failed(id, err)
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
		dir, err := u.at(n.parent)
		if err != nil {
			return err
		}
		setTime(dir, n.elem, n.mtime)
		if !hasModes {
			continue
		}
		fi, err := dir.Lstat(n.elem)
		if err == nil && fi.Mode().Perm()&^n.mode != 0 {
			err = dir.Chmod(n.elem, fi.Mode()&(n.mode|^fs.ModePerm))
		}
		if err != nil {
			return u.failed(int32(id), err)
		}
	}
	return nil
}
