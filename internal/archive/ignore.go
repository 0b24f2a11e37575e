package archive

import (
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
)

// IgnoreName is the file that says what of its directory is not uploaded.
const IgnoreName = ".jobletignore"

// Bounds on what is ignored.
const (
	maxIgnoreFile = 256 << 10 // bytes
	maxIgnore     = 1000      // patterns
)

// ignore holds patterns in gitignore(5)'s form. The last that matches decides. What
// is below a directory that is ignored is not looked at.
type ignore []ignorePattern

type ignorePattern struct {
	elems []string
	dir   bool // matches directories only
	keep  bool // the pattern begins with "!"
}

// parseIgnore reads lines of a file, or patterns of the command line.
func parseIgnore(file string, lines []string) (ignore, error) {
	var all ignore
	for i, line := range lines {
		bad := func(reason string) error {
			if file == "" {
				return joblet.Errorf(joblet.InvalidArgument, "exclude pattern %.200q: %s", line, reason)
			}
			return joblet.Errorf(joblet.InvalidArgument, "%s, line %d: pattern %.200q: %s", file, i+1, line, reason)
		}
		text := line
		if file != "" {
			text = strings.TrimSuffix(text, "\r")
			if strings.HasPrefix(text, "#") {
				continue
			}
		}
		for strings.HasSuffix(text, " ") && !strings.HasSuffix(text, `\ `) {
			text = strings.TrimSuffix(text, " ")
		}
		if text == "" && file != "" {
			continue
		}
		var p ignorePattern
		text, p.keep = strings.CutPrefix(text, "!")
		switch {
		case len(text) > maxPattern:
			return nil, bad("is too long: at most 4096 bytes are possible")
		case len(all) == maxIgnore:
			return nil, bad("exceeds the maximum of 1000 patterns")
		}
		text, p.dir = strings.CutSuffix(text, "/")
		if !strings.Contains(text, "/") { // at any depth
			p.elems = append(p.elems, "**")
		}
		for elem := range strings.SplitSeq(text, "/") {
			switch {
			case elem == "" || elem == ".":
				continue
			case elem == "..":
				return nil, bad("must not contain \"..\"")
			case elem == "**" && len(p.elems) > 0 && p.elems[len(p.elems)-1] == elem:
				continue
			}
			if _, err := path.Match(elem, ""); err != nil {
				return nil, bad("is not a valid pattern; escape a literal *, ?, [ or \\ with a backslash")
			}
			p.elems = append(p.elems, elem)
		}
		switch n := len(p.elems); {
		case n > maxElems:
			return nil, bad("has too many elements: at most 100 are possible")
		case n == 0 || n == 1 && p.elems[0] == "**" && !strings.Contains(text, "**"):
			return nil, bad("matches nothing")
		case p.elems[n-1] == "**": // all that is in a directory, without itself
			p.elems = append(p.elems, "*")
		}
		all = append(all, p)
	}
	return all, nil
}

// readIgnore reads a directory's ignore file, if it has one.
func readIgnore(root *os.Root) (ignore, error) {
	file := filepath.Join(root.Name(), IgnoreName)
	f, err := root.OpenFile(IgnoreName, os.O_RDONLY|nonblock, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, joblet.Errorf(joblet.InvalidArgument, "cannot read %s: %w", file, cause(err))
	}
	defer f.Close()
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("is a %s", typeName(fi.Mode()))
	}
	var data []byte
	if err == nil {
		data, err = io.ReadAll(io.LimitReader(f, maxIgnoreFile+1))
	}
	if err == nil && len(data) > maxIgnoreFile {
		err = fmt.Errorf("is longer than %d bytes", maxIgnoreFile)
	}
	if err != nil {
		return nil, joblet.Errorf(joblet.InvalidArgument, "cannot read %s: %w", file, cause(err))
	}
	return parseIgnore(file, strings.Split(strings.TrimPrefix(string(data), "\uFEFF"), "\n"))
}

// match reports whether a name, relative to the directory, is ignored.
func (ig ignore) match(name string, dir bool) bool {
	for _, p := range slices.Backward(ig) {
		if (dir || !p.dir) && p.match(name) {
			return !p.keep
		}
	}
	return false
}

// match follows all ways through the pattern at once: at[i] says that the elements
// before i have matched the path so far.
func (p ignorePattern) match(name string) bool {
	end := len(p.elems)
	at := make([]bool, end+1)
	at[0] = true
	skip := func() { // "**" may stand for nothing
		for i, elem := range p.elems {
			at[i+1] = at[i+1] || elem == "**" && at[i]
		}
	}
	skip()
	for elem := range strings.SplitSeq(name, "/") {
		for i := end; i >= 0; i-- {
			stays := i < end && at[i] && p.elems[i] == "**"
			comes := false
			if i > 0 && at[i-1] && p.elems[i-1] != "**" {
				comes, _ = path.Match(p.elems[i-1], elem)
			}
			at[i] = stays || comes
		}
		skip()
	}
	return at[end]
}
