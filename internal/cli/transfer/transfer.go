// Package transfer unpacks files of jobs: for "rnx job cp" and "rnx job run --download".
package transfer

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/archive"
	"github.com/joblet/joblet/internal/cli/app"
)

// Source is what "rnx job cp" copies.
type Source struct {
	ref      string
	path     string // relative to /work, clean; "": all of it
	contents bool   // what is in the directory, without itself
}

const patternSigns = `*?[\`

// pattern reports whether several files may be meant.
func (s Source) pattern() bool { return strings.ContainsAny(s.path, patternSigns) }

// above returns the directory whose name is left out of what is copied.
func (s Source) above() string {
	fixed := s.path
	if i := strings.IndexAny(fixed, patternSigns); i >= 0 {
		fixed = fixed[:i] + "x" // of what a sign may stand for, the directory alone is certain
	}
	return strings.TrimPrefix(path.Dir("/"+fixed), "/")
}

// ParseSource reads JOB:PATH. Other directions are errors that say what to
// do instead.
func ParseSource(from, to string) (Source, error) {
	ref, file, ok := strings.Cut(from, ":")
	switch {
	case !ok || ref == "" || strings.ContainsAny(ref, `/\`) || app.IsWindows && len(ref) == 1:
		if job, _, ok := strings.Cut(to, ":"); ok && job != "" && !strings.ContainsAny(job, `/\`) {
			return Source{}, joblet.Errorf(joblet.InvalidArgument,
				"files go into a job before it starts: rnx job run --upload=%s; cp only copies out of jobs", from)
		}
		return Source{}, joblet.Errorf(joblet.InvalidArgument, "%q names no job: give JOB:PATH, such as 3f2a:out.csv", from)
	case to == "":
		return Source{}, joblet.Errorf(joblet.InvalidArgument, "DEST is empty; \".\" is the current directory")
	case slices.Contains(strings.Split(file, "/"), ".."):
		return Source{}, joblet.Errorf(joblet.InvalidArgument, "%s: must not contain \"..\"", from)
	}
	s := Source{ref: ref, contents: file == "" || file == "." || strings.HasSuffix(file, "/.")}
	clean := path.Clean("/" + file)
	if path.IsAbs(file) {
		if clean != joblet.DefaultWorkDir && !strings.HasPrefix(clean, joblet.DefaultWorkDir+"/") {
			return s, joblet.Errorf(joblet.InvalidArgument, "%s: only files in %s can be copied", from, joblet.DefaultWorkDir)
		}
		clean = strings.TrimPrefix(clean, joblet.DefaultWorkDir)
		s.contents = s.contents || clean == ""
	}
	s.path = strings.TrimPrefix(clean, "/")
	return s, nil
}

// Copy copies files of a job to a path here, or with "-" to standard output.
func Copy(ctx context.Context, a *app.App, c *client.Client, from Source, to string) error {
	var patterns []string
	if from.path != "" {
		patterns = []string{from.path}
	}
	r, err := c.Files(ctx, from.ref, patterns)
	if err != nil {
		return err
	}
	defer r.Close()
	if to == "-" {
		return copyArchive(a, r)
	}
	stats, err := unpackAs(r, from, to)
	if err != nil {
		return fmt.Errorf("cannot copy to %s: %w", to, err)
	}
	noteLeftOut(a, "copy", stats)
	if a.JSON {
		left := []leftOutJSON{}
		for _, l := range stats.LeftOut {
			left = append(left, leftOutJSON(l))
		}
		err = a.WriteJSON(struct {
			Entries int           `json:"entries"`
			Bytes   int64         `json:"bytes"`
			Skipped int           `json:"skipped,omitempty"`
			LeftOut []leftOutJSON `json:"left_out,omitempty"` // some of them
		}{stats.Entries, stats.Bytes, stats.Skipped, left})
	}
	if err == nil && stats.Entries == 0 && stats.Skipped > 0 && !from.contents {
		return joblet.Errorf(joblet.FailedPrecondition, "nothing was copied: all that matches was left out")
	}
	return err
}

// MaxLeftOutNotes is how many files that do not come along are named.
const MaxLeftOutNotes = 10

type leftOutJSON struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// noteLeftOut says what does not come with a job's files.
func noteLeftOut(a *app.App, from string, stats archive.Stats) {
	named := stats.LeftOut[:min(len(stats.LeftOut), MaxLeftOutNotes)]
	for _, l := range named {
		a.Note("left out of the %s: %s %s", from, joblet.Printable(l.Name), joblet.Printable(l.Why))
	}
	if more := stats.Skipped - len(named); more > 0 {
		a.Note("left out of the %s: %d more", from, more)
	}
}

// copyArchive writes an archive to stdout, and says what it lacks.
func copyArchive(a *app.App, r io.Reader) error {
	var lacks archive.Stats
	out := io.TeeReader(r, a.Out)
	for archived := archive.NewReader(out); ; {
		h, err := archived.Next()
		if err != nil { // the rest tells whether it was cut off
			break
		}
		if skipped, files, ok := archive.ReadLeftOut(h); ok {
			lacks.Skipped, lacks.LeftOut = skipped, files
		}
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		return err
	}
	noteLeftOut(a, "archive", lacks)
	return nil
}

// unpackAs unpacks an archive of from to where a copy belongs: into the
// directory to, or as it.
func unpackAs(r io.Reader, from Source, to string) (archive.Stats, error) {
	archived := archive.NewReader(r)
	h, err := archived.Next()
	dest := placement{dir: to, strip: from.above()}
	info, statErr := os.Stat(to)
	isDir := statErr == nil && info.IsDir()
	switch {
	case statErr != nil && !errors.Is(statErr, fs.ErrNotExist):
		return archive.Stats{}, statErr
	case from.contents:
		dest.strip = from.path
	case isDir || from.pattern() || strings.HasSuffix(to, "/") || os.IsPathSeparator(to[len(to)-1]):
	default: // one thing, with a new name: what it is decides where that is
		for err == nil && path.Clean(h.Name) != from.path {
			h, err = archived.Next() // the directories above it
		}
		if err == nil && h.Typeflag == tar.TypeDir {
			dest.strip = from.path
		} else {
			dest = placement{dir: filepath.Dir(to), file: from.path, name: filepath.Base(to)}
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return archive.Stats{}, err
	}
	if statErr == nil && !isDir && dest.file == "" {
		return archive.Stats{}, joblet.Errorf(joblet.AlreadyExists, "there is a file of that name, and a directory is needed")
	}
	if dest.file == "" {
		if err := os.MkdirAll(dest.dir, 0o777); err != nil {
			return archive.Stats{}, err
		}
	}
	root, err := os.OpenRoot(dest.dir)
	if err != nil {
		return archive.Stats{}, err
	}
	defer root.Close()
	return dest.unpack(root, archived, h)
}

// placement says where entries of an archive go.
type placement struct {
	dir   string
	strip string // what names lose; what is not below it is left out

	file, name string // or: this one alone, under that name
}

// place returns an entry's new name, false when it is left out.
func (p placement) place(name string) (string, bool) {
	switch {
	case p.file != "":
		return p.name, name == p.file
	case p.strip == "":
		return name, name != "."
	}
	return strings.CutPrefix(name, p.strip+"/")
}

// unpack creates what archived holds, from the entry h on, below root. The
// entries get their new names on the way to archive.Unpack, which trusts none of
// them.
func (p placement) unpack(root *os.Root, archived archive.Reader, h *tar.Header) (archive.Stats, error) {
	in, out := io.Pipe()
	left := make(chan archive.Stats, 1)
	go func() {
		stats, err := p.rename(tar.NewWriter(out), archived, h)
		left <- stats
		out.CloseWithError(err) // for the reader: io.EOF without an error
	}()
	stats, err := archive.Unpack(root, in, archive.DefaultLimits)
	in.Close() // always nil; the writer's next write fails
	if err == nil {
		more := <-left
		stats.Skipped, stats.LeftOut = stats.Skipped+more.Skipped, append(more.LeftOut, stats.LeftOut...)
	}
	return stats, err
}

// rename copies entries and returns what is left out: what the archive lacks, and links
// that with their new names would lead outside.
func (p placement) rename(w *tar.Writer, archived archive.Reader, h *tar.Header) (left archive.Stats, err error) {
	for ; h != nil && err == nil; h, err = archived.Next() {
		if skipped, files, ok := archive.ReadLeftOut(h); ok {
			left.Skipped, left.LeftOut = left.Skipped+skipped, append(left.LeftOut, files...)
			continue
		}
		clean := path.Clean(h.Name)
		if p.file == "" && p.strip == clean && h.Typeflag != tar.TypeDir {
			return left, joblet.Errorf(joblet.InvalidArgument, "%s is not a directory", clean)
		}
		name, ok := p.place(clean)
		if !ok {
			continue
		}
		if h.Typeflag == tar.TypeSymlink && outside(path.Join(path.Dir(name), h.Linkname)) {
			left.Skipped++
			left.LeftOut = append(left.LeftOut, archive.LeftOut{Name: clean, Why: fmt.Sprintf("is a link to %.200q, which leads out of what is copied", h.Linkname)})
			continue
		}
		target := h.Linkname
		if h.Typeflag == tar.TypeLink { // a name in the archive
			if target, ok = p.place(path.Clean(target)); !ok {
				return left, joblet.Errorf(joblet.Internal, "%s is a further name of %s, which is not copied", clean, h.Linkname)
			}
		}
		renamed := tar.Header{
			Typeflag: h.Typeflag, Name: name, Linkname: target, Size: h.Size, Mode: h.Mode, ModTime: h.ModTime,
			Format: tar.FormatPAX, PAXRecords: h.PAXRecords,
		}
		if err := w.WriteHeader(&renamed); err != nil {
			return left, err
		}
		if _, err := io.Copy(w, archived); err != nil {
			return left, err
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return left, err
	}
	return left, w.Close()
}

// outside reports whether a clean relative path leads above where it begins.
func outside(clean string) bool { return clean == ".." || strings.HasPrefix(clean, "../") }

// Download is what "rnx job run" fetches at the end.
type Download struct {
	Patterns []string
	Dir      string // "": the current one
	Root     *os.Root
}

// Open makes sure that the patterns are possible and that there is a place for the
// files, before the job runs.
func (d *Download) Open() error {
	if _, err := archive.NewMatcher(d.Patterns); err != nil {
		return joblet.Errorf(joblet.InvalidArgument, "--download: %w", err)
	}
	dir := cmp.Or(d.Dir, ".")
	err := os.MkdirAll(dir, 0o777)
	if err == nil {
		d.Root, err = os.OpenRoot(dir)
	}
	if err != nil {
		return joblet.Errorf(joblet.InvalidArgument, "--download-to: %w", err)
	}
	return nil
}

// Fetch fetches the files.
func (d *Download) Fetch(ctx context.Context, a *app.App, c *client.Client, id string) error {
	r, err := c.Files(ctx, id, d.Patterns)
	if err == nil {
		defer r.Close()
		var stats archive.Stats
		if stats, err = archive.Unpack(d.Root, r, archive.DefaultLimits); err == nil {
			noteLeftOut(a, "download", stats)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot download from job %s: %w", joblet.ShortID(id), err)
	}
	return nil
}
