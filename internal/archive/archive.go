// Package archive carries a job's files as tar archives: from the client into a
// job's /work, and from there back. Whoever wrote an archive or a tree is not
// trusted: an archive holds only directories, regular files, symbolic links and further
// names of its files (hard links), with relative names, and no name of it leads outside.
// Nor does a symbolic link on its way back. Into a job, those go as they are: nothing but
// the job follows them. A further name is that of a file before it in the archive, whose
// content counts once.
//
// Names are bytes: what is not UTF-8 is carried exactly. Times of modification are
// carried in nanoseconds. Owners, other times and all mode bits but the permissions
// are left out.
package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/joblet/joblet"
)

// Limits bounds an archive.
type Limits struct {
	Bytes   int64 // of file content; holes in files count nothing
	Entries int   // of files, directories (also those that only names imply) and links
}

// DefaultLimits is enough for most jobs, and little enough to unpack anywhere.
var DefaultLimits = Limits{Bytes: 1 << 30, Entries: 100_000}

// Bounds on names, which every archive has to keep. Linux has the same.
const (
	maxName = 4095 // bytes of a name and of a link's target
	maxElem = 255  // bytes of one element
	maxTop  = 100  // of Stats.Top
)

// maxElems bounds the elements of a pattern.
const maxElems = 100

// Stats says what an archive holds.
type Stats struct {
	Bytes   int64    // of file content
	Entries int      // as Limits counts them
	Top     []string // the distinct first elements of names, sorted, at most 100
	// Skipped counts what was left out. PackTree: all that is not a directory,
	// a file or a link that stays inside, what vanished or cannot be read, what
	// goes beyond the limits. Select and Unpack: what the archive says that it lacks;
	// and links, where Windows does not allow them.
	Skipped int
	// Beyond counts those of them that the limits left out.
	Beyond int
	// LeftOut names some of them, at most 100.
	LeftOut []LeftOut
}

// errLimit marks what goes beyond the limits.
var errLimit = errors.New("limit")

type limitError struct{ text string }

func (e *limitError) Error() string        { return e.text }
func (e *limitError) Is(target error) bool { return target == errLimit }

// kind is what a name stands for.
type kind uint8

const (
	implied kind = iota // a directory without an entry of its own, so far
	directory
	file
	link
	hard // a further name of a file
)

// tree knows all names of an archive, so that no name comes twice or lies below
// a file or a link. It holds each element once: its size is bounded by
// Limits.Entries, however long the names are.
type tree struct {
	lim     Limits
	stats   Stats
	repeats int // entries that are not in stats
	index   map[child]int32
	nodes   []node
	dir     string // of the latest name, whose node is dirID
	dirID   int32
}

type child struct {
	parent int32
	elem   string
}

type node struct {
	child
	kind    kind
	mode    fs.FileMode
	mtime   int64
	done    bool // of a directory: written, or made
	created bool // of a directory: Unpack has made it
}

func newTree(lim Limits) *tree {
	return &tree{lim: lim, dir: ".", index: map[child]int32{}, nodes: []node{{kind: directory, done: true}}}
}

// add notes an entry. It returns the entry's node, and false for a directory
// that had an entry already.
func (t *tree) add(name string, k kind, mode fs.FileMode, mtime int64) (id int32, fresh bool, err error) {
	if dir := path.Dir(name); dir == t.dir { // as most are: a deep one has many elements
		id = t.dirID
	} else {
		rest := dir
		if below, ok := strings.CutPrefix(dir, t.dir+"/"); ok {
			id, rest = t.dirID, below
		}
		for elem := range strings.SplitSeq(rest, "/") {
			if elem == "." {
				break
			}
			if id, err = t.child(id, elem); err != nil {
				return 0, false, refuse(name, "%w", err)
			}
			if is := t.nodes[id].kind; is > directory {
				return 0, false, refuse(name, "its parent %.200q is not a directory in the archive", t.name(id))
			}
		}
		t.dir, t.dirID = dir, id
	}
	known := len(t.nodes)
	if id, err = t.child(id, path.Base(name)); err != nil {
		return 0, false, refuse(name, "%w", err)
	}
	n := &t.nodes[id]
	switch {
	case int(id) == known, n.kind == implied && k == directory:
		n.kind, n.mode, n.mtime = k, mode, mtime
		return id, true, nil
	case n.kind == directory && k == directory:
		return id, false, nil
	}
	return 0, false, refuse(name, "appears twice in the archive")
}

// child returns the node of elem in a directory, a new one if need be.
func (t *tree) child(parent int32, elem string) (int32, error) {
	key := child{parent, elem}
	if id, ok := t.index[key]; ok {
		return id, nil
	}
	if err := t.count(); err != nil {
		return 0, err
	}
	key.elem = strings.Clone(elem) // not the whole name
	id := int32(len(t.nodes))
	t.index[key] = id
	t.nodes = append(t.nodes, node{child: key, mode: 0o755})
	if parent == 0 && len(t.stats.Top) < maxTop {
		t.stats.Top = append(t.stats.Top, key.elem)
	}
	return id, nil
}

func (t *tree) count() error {
	if t.stats.Entries+t.repeats >= min(t.lim.Entries, math.MaxInt32-1) {
		return &limitError{fmt.Sprintf("too many files: at most %d files, directories and links are possible", t.lim.Entries)}
	}
	t.stats.Entries++
	return nil
}

// find returns the node of a clean name.
func (t *tree) find(name string) (id int32, ok bool) {
	for elem := range strings.SplitSeq(name, "/") {
		if id, ok = t.index[child{id, elem}]; !ok {
			return 0, false
		}
	}
	return id, true
}

// repeat notes an entry that adds nothing, so that a stream of them ends.
func (t *tree) repeat(name string) error {
	if err := t.count(); err != nil {
		return refuse(name, "%w", err)
	}
	t.stats.Entries--
	t.repeats++
	return nil
}

// grow notes a file's content.
func (t *tree) grow(name string, size int64) error {
	if size > t.lim.Bytes-t.stats.Bytes {
		return refuse(name, "%w", &limitError{fmt.Sprintf("too large: at most %d bytes are possible in all, and this file has %d", t.lim.Bytes, size)})
	}
	t.stats.Bytes += size
	return nil
}

// name is what leads to a node.
func (t *tree) name(id int32) string {
	var elems []string
	for ; id != 0; id = t.nodes[id].parent {
		elems = append(elems, t.nodes[id].elem)
	}
	slices.Reverse(elems)
	return strings.Join(elems, "/")
}

func (t *tree) result() Stats {
	slices.Sort(t.stats.Top)
	return t.stats
}

func refuse(name, format string, args ...any) error {
	return joblet.Errorf(joblet.InvalidArgument, "%s%w", entryPrefix(name), fmt.Errorf(format, args...))
}

func entryPrefix(name string) string { return fmt.Sprintf("archive entry %.200q: ", name) }

// cleanName returns a name without "." and superfluous slashes, "." for the top
// itself.
func cleanName(name string) (string, error) {
	clean := path.Clean(name)
	switch {
	case name == "":
		return "", refuse(name, "has no name")
	case strings.IndexByte(name, 0) >= 0:
		return "", refuse(name, "contains a NUL byte")
	case path.IsAbs(name):
		return "", refuse(name, "must be a relative path")
	case slices.Contains(strings.Split(name, "/"), ".."):
		return "", refuse(name, "must not contain \"..\"")
	case len(clean) > maxName:
		return "", refuse(name, "%d bytes long: at most %d are possible", len(clean), maxName)
	}
	for elem := range strings.SplitSeq(clean, "/") {
		if len(elem) > maxElem {
			return "", refuse(name, "a path element is %d bytes long: at most %d are possible", len(elem), maxElem)
		}
	}
	if !fitsSystem(clean) {
		return "", refuse(name, "this name is not possible on %s", runtime.GOOS)
	}
	return clean, nil
}

// checkLink reports whether a link can be made.
func checkLink(name, target string) error {
	switch {
	case target == "":
		return refuse(name, "the link has no target")
	case strings.IndexByte(target, 0) >= 0:
		return refuse(name, "the target of the link contains a NUL byte")
	case len(target) > maxName:
		return refuse(name, "the target of the link is %d bytes long: at most %d are possible", len(target), maxName)
	case !fitsSystem(target):
		return refuse(name, "the link's target %.200q: this name is not possible on %s", target, runtime.GOOS)
	}
	return nil
}

// checkTarget reports whether a link stays inside: its target may begin with
// "..", as often as the link is deep, and hold none later. Then it leads
// through directories that are real ones up, and down through links that stay
// inside themselves; "x/.." would lead above what the link x leads to.
func checkTarget(name, target string) error {
	if err := checkLink(name, target); err != nil {
		return err
	}
	if path.IsAbs(target) {
		return refuse(name, "the link's target %.200q: must be relative", target)
	}
	depth, down := strings.Count(name, "/"), false
	for elem := range strings.SplitSeq(target, "/") {
		switch {
		case elem == "" || elem == ".":
		case elem != "..":
			down = true
		case down:
			return refuse(name, "the link's target %.200q: \"..\" is allowed only at the beginning", target)
		case depth == 0:
			return refuse(name, "the link's target %.200q is outside the archive", target)
		default:
			depth--
		}
	}
	return nil
}

// toNanos returns a time as nanoseconds since 1970, which reach from 1678 to 2262:
// beyond that, the first or last second. 0 stands for an unknown time: archives that
// were made without times have it in every entry.
func toNanos(t time.Time) int64 {
	const most = math.MaxInt64/int64(time.Second) - 1
	switch seconds := t.Unix(); {
	case seconds > most:
		return most * int64(time.Second)
	case seconds < -most:
		return -most * int64(time.Second)
	}
	return t.UnixNano()
}

// mtimeOf is toNanos for a file, which always has a time.
func mtimeOf(fi fs.FileInfo) int64 {
	if n := toNanos(fi.ModTime()); n != 0 {
		return n
	}
	return 1
}

// newHeader returns an entry's header.
func newHeader(name string, k kind, mode fs.FileMode, mtime int64) *tar.Header {
	h := &tar.Header{
		Name: name, Mode: int64(mode.Perm()), ModTime: time.Unix(0, mtime),
		Format: tar.FormatPAX, // the others have full seconds
	}
	switch k {
	case directory:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case file:
		h.Typeflag = tar.TypeReg
	case link:
		h.Typeflag = tar.TypeSymlink
	case hard:
		h.Typeflag = tar.TypeLink
	}
	return h
}

// fitsSystem reports whether this system sees a path in a slash-separated name
// as we do: Windows also knows \, drives, streams (a:b), devices, and cuts dots
// and spaces.
func fitsSystem(name string) bool {
	if filepath.Separator == '/' {
		return true
	}
	for elem := range strings.SplitSeq(name, "/") {
		if elem == "" || elem == "." || elem == ".." {
			continue
		}
		if strings.ContainsAny(elem, `\:`) || strings.TrimRight(elem, ". ") != elem || !filepath.IsLocal(elem) {
			return false
		}
	}
	return true
}

// source reads an archive that is not trusted.
type source struct {
	in    input
	tar   *tar.Reader
	tree  *tree
	inErr error // of the content's reader
	links func(name, target string) error

	originals map[int32]int32 // the files of further names

	comments bool // the archive may say what it lacks
	skipped  int
	leftOut  []LeftOut
}

// input counts, and keeps the error of a reader apart from those of the
// archive's form.
type input struct {
	r    io.Reader
	n    int64
	last [tarBlock]byte // of the bytes read
	err  error
}

func (in *input) Read(p []byte) (int, error) {
	n, err := in.r.Read(p)
	in.n += int64(n)
	if n >= len(in.last) {
		copy(in.last[:], p[n-len(in.last):n])
	} else {
		copy(in.last[:], in.last[n:])
		copy(in.last[len(in.last)-n:], p[:n])
	}
	if err != nil && err != io.EOF {
		in.err = err
	}
	return n, err
}

// newSource returns a source with what checks its links.
func newSource(r io.Reader, lim Limits, links func(name, target string) error) *source {
	s := &source{in: input{r: r}, tree: newTree(lim), links: links, originals: map[int32]int32{}}
	s.tar = tar.NewReader(newHideHoles(&s.in))
	return s
}

// entry is one that may be used.
type entry struct {
	id     int32 // in the tree
	name   string
	kind   kind
	mode   fs.FileMode
	mtime  int64
	size   int64 // of its content in the archive
	pos    int64 // of its content in the archive
	target string

	original int32 // in the tree: the file that this is another name of

	extents []extent // where the content belongs, in a file with holes; nil: there are none
	length  int64    // of that file
}

// next returns the next entry, or io.EOF after a complete archive.
func (s *source) next() (entry, error) {
	for {
		pos := s.in.n
		h, err := s.tar.Next()
		if err == io.EOF {
			return entry{}, s.end(pos)
		}
		if err != nil {
			return entry{}, s.damaged(err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader && s.comments && s.leftOut == nil {
			var ok bool
			if s.skipped, s.leftOut, ok = ReadLeftOut(h); ok {
				continue
			}
		}
		e := entry{mode: fs.FileMode(h.Mode) & 0o777, mtime: toNanos(h.ModTime)}
		if e.length, e.extents, err = readSparse(h); err != nil {
			return entry{}, refuse(h.Name, "%w", err)
		}
		if e.name, err = cleanName(h.Name); err != nil {
			return entry{}, err
		}
		switch {
		case h.Typeflag == tar.TypeDir:
			e.kind = directory
		case strings.HasSuffix(h.Name, "/"):
			return entry{}, refuse(h.Name, "the name ends in a slash, but the entry is not a directory")
		case h.Typeflag == tar.TypeReg:
			e.kind, e.size = file, h.Size
			err = s.tree.grow(e.name, e.size)
		case h.Typeflag == tar.TypeSymlink:
			e.kind, e.target = link, h.Linkname
			err = s.links(e.name, e.target)
		case h.Typeflag == tar.TypeLink:
			e.kind = hard
			e.original, err = s.original(h)
		default:
			err = refuse(h.Name, "type %q: only directories, regular files and links are possible", h.Typeflag)
		}
		if err != nil {
			return entry{}, err
		}
		if e.name == "." {
			if e.kind != directory {
				return entry{}, refuse(h.Name, "has no name")
			}
			if err := s.tree.repeat(h.Name); err != nil {
				return entry{}, err
			}
			continue
		}
		id, fresh, err := s.tree.add(e.name, e.kind, e.mode, e.mtime)
		if err != nil {
			return entry{}, err
		}
		if fresh {
			e.id, e.pos = id, s.in.n
			if e.kind == hard {
				s.originals[id] = e.original
			}
			return e, nil
		}
		if err := s.tree.repeat(h.Name); err != nil {
			return entry{}, err
		}
	}
}

// original returns the file that an entry is another name of.
func (s *source) original(h *tar.Header) (int32, error) {
	target, err := cleanName(h.Linkname)
	if err != nil {
		return 0, refuse(h.Name, "the hard link's target %.200q is not a valid name", h.Linkname)
	}
	id, ok := s.tree.find(target)
	switch {
	case ok && s.tree.nodes[id].kind == file:
		return id, nil
	case ok && s.tree.nodes[id].kind == hard:
		return s.originals[id], nil
	}
	return 0, refuse(h.Name, "the hard link's target %.200q is not an earlier file of the archive", h.Linkname)
}

// end makes sure that the archive is not truncated at the end of an entry, and reads
// its padding. pos is where the last entry's content ended.
func (s *source) end(pos int64) error {
	const padding = 1 << 20
	// A block of zeros ends it. After a truncated extended header there is none.
	if s.in.n < (pos+tarBlock-1)/tarBlock*tarBlock+tarBlock || s.in.last != [tarBlock]byte{} {
		return s.damaged(io.ErrUnexpectedEOF)
	}
	buf := make([]byte, 4096)
	for rest := padding; ; {
		n, err := s.in.Read(buf)
		rest -= n
		if rest < 0 || bytes.Trim(buf[:n], "\x00") != nil {
			return joblet.Errorf(joblet.InvalidArgument, "the archive has data after its end")
		}
		if err == io.EOF {
			return io.EOF
		}
		if err != nil {
			return s.damaged(err)
		}
	}
}

// Read reads an entry's content.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.tar.Read(p)
	if err != nil && err != io.EOF {
		s.inErr = s.damaged(err)
	}
	return n, err
}

// copyN is io.CopyN with a small buffer: many archives may wait for their readers.
func copyN(w io.Writer, r io.Reader, size int64) (int64, error) {
	n, err := io.CopyBuffer(w, io.LimitReader(r, size), make([]byte, min(size+1, copySize)))
	if err == nil && n < size {
		err = io.EOF
	}
	return n, err
}

const copySize = 8 << 10

// copy copies an entry's content, which r reads.
func (s *source) copy(w io.Writer, r io.Reader, size int64) error {
	_, err := copyN(w, r, size)
	if s.inErr != nil {
		return s.inErr
	}
	return err
}

func (s *source) damaged(err error) error {
	switch {
	case s.in.err != nil:
		return fmt.Errorf("cannot read the archive: %w", s.in.err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return joblet.Errorf(joblet.InvalidArgument, "the archive is truncated after %d bytes", s.in.n)
	}
	return joblet.Errorf(joblet.InvalidArgument, "the archive is damaged or not a tar archive, at byte %d: %w", s.in.n, err)
}
