package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/joblet/joblet"
)

const (
	// batch is how many names of a directory are in memory at a time.
	batch = 1024
	// A walk in a deep directory holds few names of each above it.
	deepDepth, deepBatch = 100, 32
	// maxDeep is how many walks may be in deep directories at once, each with one or two
	// open files for each directory above.
	maxDeep = 8
)

// deepWalks has one for each walk of PackTree that is in a deep directory.
var deepWalks = make(chan struct{}, maxDeep)

// packer writes trees into an archive.
type packer struct {
	out    output
	tar    *tar.Writer // nil: nothing is written
	tree   *tree
	match  func(string) bool
	strict bool    // for a user's own files: what cannot go into the archive is an error
	visits int     // names that may still be looked at
	depth  int     // of the directory that is being read
	device *uint64 // of the tree, which is not left for what is mounted in it; nil: it may be
	above  []above
	names  map[inode]named // of files with several names, those in the archive

	// For a user's own files.
	leftOut func(file string, why error)
	ignore  ignore
	top     string // what ignore counts from
}

// inode tells a file from others.
type inode struct{ device, number uint64 }

// named is a file that is in the archive under a name.
type named struct {
	name string
	fi   fs.FileInfo
}

// above is a directory above the one being read. Its entry is written when the
// first below it is.
type above struct {
	name   string
	header *tar.Header // nil: it is written
}

// output keeps a writer's error apart from those of what is read.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil {
		o.err = err
	}
	return n, err
}

func newPacker(w io.Writer, lim Limits) *packer {
	p := &packer{out: output{w: w}, tree: newTree(lim), names: map[inode]named{}}
	p.tar = tar.NewWriter(newShowHoles(&p.out))
	return p
}

// PackTree writes all below root that match passes (nil: all), with the
// directories that lead there. It expects anything of the tree, which may
// change meanwhile: it never follows a link, never waits for a file, and stays out of
// what is mounted in the tree, as a job with a mount namespace of its own may do.
// What an archive cannot hold, and what goes beyond lim, is left out, counted
// and named at the end of the archive; Select takes what it writes. A file that several names lead to comes
// once, and its further names as hard links; one that is being written has the length that it had at
// first, with zeros for what has vanished. Holes stay holes, and take and count
// nothing. It looks at no more than ten times
// lim.Entries names.
func PackTree(w io.Writer, root *os.Root, match func(name string) bool, lim Limits) (Stats, error) {
	p := newPacker(w, lim)
	p.match, p.visits = match, maxVisits(lim)
	fi, err := root.Stat(".")
	if err != nil {
		return Stats{}, err
	}
	p.device = device(fi)
	if err := p.dir(root, "."); err != nil {
		return Stats{}, err
	}
	return p.close()
}

// Source is a local file or directory for an upload.
type Source struct {
	Path string // local
	Name string // in the archive, with slashes; "": a directory's contents go to the top, a file keeps its name
}

// Filter says what PackPaths leaves out.
type Filter struct {
	// Exclude holds patterns as an ignore file does, for each directory, after those
	// in its own IgnoreName.
	Exclude []string
	// LeftOut, if not nil, is told of each file that an archive cannot hold.
	LeftOut func(file string, why error)
}

// PackPaths writes local files. A directory stands for all below it; links in it
// stay links, wherever they lead. Links are followed where a Source's Path itself is
// one. Devices and the like in a directory are left out. Two files of one name, and
// going beyond lim are errors of kind InvalidArgument. Windows knows no
// permission to execute: from there, all files have it.
func PackPaths(w io.Writer, sources []Source, f Filter, lim Limits) (Stats, error) {
	return newPacker(w, lim).paths(sources, f)
}

// CheckPaths looks for what would be an error of PackPaths. It reads no content.
func CheckPaths(sources []Source, f Filter, lim Limits) (Stats, error) {
	p := &packer{tree: newTree(lim), names: map[inode]named{}}
	return p.paths(sources, f)
}

func (p *packer) paths(sources []Source, f Filter) (Stats, error) {
	exclude, err := parseIgnore("", f.Exclude)
	if err != nil {
		return Stats{}, err
	}
	p.strict, p.visits, p.leftOut = true, maxVisits(p.tree.lim), f.LeftOut
	for _, s := range sources {
		if err := p.source(s, exclude); err != nil {
			return Stats{}, err
		}
	}
	return p.close()
}

func maxVisits(lim Limits) int { return 10 * min(lim.Entries, 1<<26) }

func (p *packer) close() (Stats, error) {
	if p.tar == nil {
		return p.tree.result(), nil
	}
	var err error
	if !p.strict {
		err = writeLeftOut(p.tar, p.tree.stats.Skipped, p.tree.stats.LeftOut)
	}
	if err == nil {
		err = p.tar.Close()
	}
	if err != nil {
		return Stats{}, fmt.Errorf("cannot write the archive: %w", err)
	}
	return p.tree.result(), nil
}

func (p *packer) source(s Source, exclude ignore) error {
	fi, err := os.Stat(s.Path)
	if err != nil {
		return p.skip(s.Path, s.Name, err)
	}
	name := s.Name
	if name == "" && !fi.IsDir() {
		name = filepath.Base(s.Path)
	}
	if name == "" {
		name = "."
	}
	if name, err = cleanName(name); err != nil {
		return err
	}
	p.above = nil
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		p.above = append(p.above, above{dir, newHeader(dir, directory, 0o755, 0)})
	}
	slices.Reverse(p.above)
	if !fi.IsDir() {
		f, err := os.OpenFile(s.Path, os.O_RDONLY|nonblock, 0)
		if err != nil {
			return p.skip(s.Path, s.Name, err)
		}
		defer f.Close()
		if fi, err = f.Stat(); err != nil {
			return p.skip(s.Path, s.Name, err)
		}
		return p.file(s.Path, f, name, fi)
	}
	root, err := os.OpenRoot(s.Path)
	if err != nil {
		return p.skip(s.Path, s.Name, err)
	}
	defer root.Close()
	own, err := readIgnore(root)
	if err != nil {
		return err
	}
	p.ignore, p.top = slices.Concat(own, exclude), name
	if name != "." {
		if err := p.entry(header(name, directory, fi)); err != nil {
			return p.skip(s.Path, s.Name, err)
		}
		p.above = append(p.above, above{name, nil})
	}
	return p.dir(root, name)
}

// dir writes what is in a directory, which is called name in the archive.
func (p *packer) dir(root *os.Root, name string) error {
	d, err := root.Open(".")
	if err != nil {
		return p.skip(root.Name(), name, err)
	}
	defer d.Close()
	size := batch
	if p.depth > deepDepth {
		size = deepBatch
	}
	for {
		elems, err := d.Readdirnames(size)
		if err == nil && len(elems) < size { // all, most likely: then it is not kept open meanwhile
			var more []string
			if more, err = d.Readdirnames(size); err == io.EOF {
				_ = d.Close()
			}
			elems = append(elems, more...)
		}
		slices.Sort(elems)
		for _, elem := range elems {
			if p.visits--; p.visits < 0 {
				return p.skip(root.Name(), name, &limitError{fmt.Sprintf("too many files: at most %d are possible", p.tree.lim.Entries)})
			}
			if err := p.visit(root, elem, path.Join(name, elem)); err != nil {
				return err
			}
		}
		if err == io.EOF || len(elems) == 0 && err == nil {
			return nil
		}
		if err != nil {
			return p.skip(root.Name(), name, err)
		}
	}
}

func (p *packer) visit(root *os.Root, elem, name string) error {
	local := filepath.Join(root.Name(), elem)
	fi, err := root.Lstat(elem)
	if err != nil {
		return p.skip(local, name, err)
	}
	if p.device != nil && *device(fi) != *p.device {
		return p.skip(local, name, errors.New("is on another file system"))
	}
	if p.ignore.match(strings.TrimPrefix(name, p.top+"/"), fi.IsDir()) {
		return nil
	}
	wanted := p.match == nil || p.match(name)
	switch {
	case fi.IsDir():
		return p.subdir(root, elem, name, fi, wanted)
	case !wanted:
		return nil
	case fi.Mode().Type() == fs.ModeSymlink:
		target, err := root.Readlink(elem)
		if err != nil {
			return p.skip(local, name, err)
		}
		target = filepath.ToSlash(target)
		check := checkTarget
		if p.strict {
			check = checkLink
		}
		if err := check(name, target); err != nil {
			if !p.strict {
				err = fmt.Errorf("is a link to %.200q, which may be outside the directory", target)
			}
			return p.leave(local, name, err)
		}
		h := header(name, link, fi)
		h.Linkname = target
		if err := p.entry(h); err != nil {
			return p.skip(local, name, err)
		}
		return nil
	case !fi.Mode().IsRegular():
		return p.leave(local, name, fmt.Errorf("is a %s", typeName(fi.Mode())))
	}
	// The file may be replaced at any time. Only the file that was seen without
	// following a link is read; a few attempts, since programs replace files by
	// renaming others.
	for range 3 {
		f, err := root.OpenFile(elem, os.O_RDONLY|nonblock, 0)
		if err != nil {
			return p.skip(local, name, err)
		}
		opened, err := f.Stat()
		if err == nil && os.SameFile(fi, opened) {
			defer f.Close()
			return p.file(local, f, name, opened)
		}
		f.Close()
		if fi, err = root.Lstat(elem); err != nil || !fi.Mode().IsRegular() {
			break
		}
	}
	return p.skip(local, name, errors.New("was replaced while it was read"))
}

func (p *packer) subdir(root *os.Root, elem, name string, fi fs.FileInfo, wanted bool) error {
	local := filepath.Join(root.Name(), elem)
	if _, err := cleanName(name); err != nil {
		return p.skip(local, name, err)
	}
	h := header(name, directory, fi)
	if wanted {
		if err := p.entry(h); err != nil {
			return p.skip(local, name, err)
		}
		h = nil
	}
	// With "/." os.Root opens nothing but directories on the way, so that a
	// fifo in its place does not make us wait.
	sub, err := root.OpenRoot(elem + "/.")
	if err != nil {
		return p.skip(local, name, err)
	}
	defer sub.Close()
	opened, err := sub.Stat(".")
	if err != nil || !os.SameFile(fi, opened) {
		return p.skip(local, name, errors.New("was replaced while it was read"))
	}
	if p.depth++; p.depth == deepDepth && !p.strict {
		select {
		case deepWalks <- struct{}{}:
			defer func() { <-deepWalks }()
		default:
			return joblet.Errorf(joblet.ResourceExhausted, "%d other copies of trees more than %d directories deep are running: try again later", maxDeep, deepDepth)
		}
	}
	p.above = append(p.above, above{name, h})
	defer func() { p.above, p.depth = p.above[:len(p.above)-1], p.depth-1 }()
	return p.dir(sub, name)
}

// header returns an entry's header for what fi describes.
func header(name string, k kind, fi fs.FileInfo) *tar.Header {
	mode := fi.Mode()
	switch {
	case k == link:
		mode = 0o777
	case runtime.GOOS == "windows":
		mode = mode&0o755 | 0o111
	}
	return newHeader(name, k, mode, mtimeOf(fi))
}

// entry writes a header, after those of the directories above.
func (p *packer) entry(h *tar.Header) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	for i := range p.above {
		if a := &p.above[i]; a.header != nil {
			if err := p.put(a.name, a.header); err != nil {
				return err
			}
			a.header = nil
		}
	}
	return p.put(name, h)
}

func (p *packer) put(name string, h *tar.Header) error {
	k := file
	switch h.Typeflag {
	case tar.TypeDir:
		k = directory
	case tar.TypeSymlink:
		k = link
	case tar.TypeLink:
		k = hard
	}
	_, fresh, err := p.tree.add(name, k, 0, 0)
	if err != nil || !fresh || p.tar == nil {
		return err
	}
	return p.tar.WriteHeader(h)
}

// file writes an open file.
func (p *packer) file(local string, f *os.File, name string, fi fs.FileInfo) error {
	if !fi.Mode().IsRegular() {
		return p.skip(local, name, fmt.Errorf("is a %s: only directories, regular files and symbolic links are possible", typeName(fi.Mode())))
	}
	id, several := inodeOf(fi)
	// One that has changed since may be another with the same number.
	if first, ok := p.names[id]; several && ok && first.fi.Size() == fi.Size() && first.fi.ModTime().Equal(fi.ModTime()) {
		h := header(name, hard, fi)
		h.Linkname = first.name
		if err := p.entry(h); err != nil {
			return p.skip(local, name, err)
		}
		return nil
	}
	size := fi.Size()
	h := header(name, file, fi)
	extents := dataOf(f, size)
	if extents != nil {
		h.PAXRecords = sparseRecords(size, extents)
		size = 0
		for _, e := range extents {
			size += e.length
		}
	} else {
		extents = []extent{{0, size}}
	}
	if err := p.tree.grow(name, size); err != nil {
		return p.skip(local, name, err)
	}
	h.Size = size
	if err := p.entry(h); err != nil {
		p.tree.stats.Bytes -= size
		return p.skip(local, name, err)
	}
	if several {
		p.names[id] = named{name, fi}
	}
	if p.tar == nil {
		return nil
	}
	for _, e := range extents {
		n, err := copyN(p.tar, io.NewSectionReader(f, e.offset, e.length), e.length)
		if err == io.EOF && p.out.err == nil { // it is shorter now
			if p.strict {
				return joblet.Errorf(joblet.FailedPrecondition, "%s: became shorter while it was read", local)
			}
			_, err = copyN(p.tar, zeros{}, e.length-n)
		}
		switch {
		case p.out.err != nil:
			return fmt.Errorf("cannot write the archive: %w", p.out.err)
		case err != nil:
			return fmt.Errorf("%s: %w", local, cause(err))
		}
	}
	return nil
}

// skip counts what is left out, or makes an error of it.
func (p *packer) skip(local, name string, err error) error {
	switch {
	case p.out.err != nil:
		return fmt.Errorf("cannot write the archive: %w", p.out.err)
	case p.strict && errors.Is(err, errLimit):
		return joblet.Errorf(joblet.InvalidArgument, "%s: %w; leave files out with --exclude or %s", local, cause(err), IgnoreName)
	case p.strict:
		return joblet.Errorf(joblet.InvalidArgument, "%s: %w", local, cause(err))
	}
	p.tree.stats.Skipped++
	p.noteSkip(name, err)
	if errors.Is(err, errLimit) {
		p.tree.stats.Beyond++
	}
	return nil
}

// leave counts what an archive cannot hold, and tells of a user's own files.
func (p *packer) leave(local, name string, err error) error {
	if !p.strict {
		return p.skip(local, name, err)
	}
	p.tree.stats.Skipped++
	if p.leftOut != nil {
		p.leftOut(local, cause(err))
	}
	return nil
}

// cause is what a system call said, without the name, which we know better.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

func typeName(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
