package archive

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// LeftOut is a file that an archive does not hold although it was to.
type LeftOut struct {
	Name string // of the archive
	Why  string // "is a socket"
}

// Bounds on what is said of files that are left out.
const (
	maxLeftOut     = 100      // files that are named
	maxLeftOutText = 64 << 10 // bytes of their names and reasons
	maxWhy         = 400      // bytes of a reason
)

// note names a file that is left out, unless there are many already.
func (s *Stats) note(name string, why error) {
	if len(s.LeftOut) == maxLeftOut {
		return
	}
	size := 0
	for _, l := range s.LeftOut {
		size += len(l.Name) + len(l.Why)
	}
	text := whyText(name, why)
	if size+len(name)+len(text) <= maxLeftOutText {
		s.LeftOut = append(s.LeftOut, LeftOut{name, text})
	}
}

// whyText says behind a file's name why it is left out.
func whyText(name string, why error) string {
	text := strings.TrimPrefix(cause(why).Error(), entryPrefix(name))
	switch {
	case errors.Is(why, errLimit):
		text = "does not fit: " + text
	case !strings.HasPrefix(text, "is "):
		text = "cannot be kept: " + text
	}
	if len(text) > maxWhy {
		text = text[:maxWhy]
	}
	return strings.ToValidUTF8(text, "\ufffd")
}

// The archive of a job's files ends with a comment that says what it leaves out: a
// global extended header, which other programs pass over.
const (
	keyComment    = "comment"
	commentPrefix = "left out by joblet: "
	commentName   = "left-out"
)

type comment struct {
	Skipped int         `json:"skipped"`
	Files   [][2][]byte `json:"files"`
}

// writeLeftOut writes the comment, if something is left out.
func writeLeftOut(w *tar.Writer, skipped int, files []LeftOut) error {
	if len(files) == 0 {
		return nil
	}
	c := comment{Skipped: skipped}
	for _, l := range files {
		c.Files = append(c.Files, [2][]byte{[]byte(l.Name), []byte(l.Why)})
	}
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeXGlobalHeader, Name: commentName, PAXRecords: map[string]string{keyComment: commentPrefix + string(text)},
	})
}

// ReadLeftOut returns what such a comment says, and false for another header. The
// header is untrusted input.
func ReadLeftOut(h *tar.Header) (skipped int, files []LeftOut, ok bool) {
	if h.Typeflag != tar.TypeXGlobalHeader || len(h.PAXRecords) != 1 {
		return 0, nil, false
	}
	text, ok := strings.CutPrefix(h.PAXRecords[keyComment], commentPrefix)
	var c comment
	if !ok || json.Unmarshal([]byte(text), &c) != nil || len(c.Files) == 0 || len(c.Files) > maxLeftOut || c.Skipped < len(c.Files) || c.Skipped > math.MaxInt32 {
		return 0, nil, false
	}
	for _, f := range c.Files {
		name, why := string(f[0]), string(f[1])
		if len(name) > maxName+maxElem+1 || len(why) > maxWhy || !utf8.ValidString(why) {
			return 0, nil, false
		}
		files = append(files, LeftOut{name, why})
	}
	return c.Skipped, files, true
}

// chosen returns those that match passes, and how many there are: those that are not
// named only if all are chosen that are.
func chosen(skipped int, files []LeftOut, match func(string) bool) (int, []LeftOut) {
	if match == nil {
		return skipped, files
	}
	some := slices.DeleteFunc(slices.Clone(files), func(l LeftOut) bool { return !match(l.Name) })
	if len(some) < len(files) {
		skipped = len(some)
	}
	return skipped, some
}

// noteSkip notes what PackTree leaves out. What has vanished is none of that.
func (p *packer) noteSkip(name string, err error) {
	if !errors.Is(err, fs.ErrNotExist) {
		p.tree.stats.note(name, err)
	}
}
