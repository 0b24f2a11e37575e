package archive

import (
	"path"
	"slices"
	"strings"

	"github.com/joblet/joblet"
)

// Bounds on patterns.
const (
	maxPatterns = 100
	maxPattern  = 4096 // bytes
)

// Matcher selects names by patterns. It is not for use by several goroutines at
// a time.
type Matcher struct {
	patterns []pattern
}

type pattern struct {
	text  string
	elems []string
	hit   bool
}

// NewMatcher returns what matches slash-separated relative names with any of
// the patterns; without patterns, all names. The elements of a pattern are
// those of path.Match, and "**" for any number of directories. A pattern that
// matches a directory matches all below it. "/work/" and "./" before a pattern
// are cut off. At most 100 patterns of 4096 bytes and 100 elements are
// possible; other absolute ones, "..", and malformed ones are InvalidArgument.
func NewMatcher(patterns []string) (*Matcher, error) {
	if len(patterns) > maxPatterns {
		return nil, joblet.Errorf(joblet.InvalidArgument, "%d patterns: at most %d are possible", len(patterns), maxPatterns)
	}
	m := &Matcher{}
	for _, text := range patterns {
		elems, err := parsePattern(text)
		if err != nil {
			return nil, err
		}
		m.patterns = append(m.patterns, pattern{text: text, elems: elems})
	}
	return m, nil
}

func parsePattern(text string) ([]string, error) {
	bad := func(reason string) ([]string, error) {
		return nil, joblet.Errorf(joblet.InvalidArgument, "pattern %.200q: %s", text, reason)
	}
	if text == "" {
		return bad("is empty; \".\" stands for all files")
	}
	if len(text) > maxPattern {
		return bad("is too long: at most 4096 bytes are possible")
	}
	p := text
	if rest, ok := strings.CutPrefix(p, joblet.DefaultWorkDir); ok && (rest == "" || rest[0] == '/') {
		p = rest
	} else if p[0] == '/' {
		return bad("must be relative to " + joblet.DefaultWorkDir)
	}
	var elems []string
	for elem := range strings.SplitSeq(p, "/") {
		switch {
		case elem == "" || elem == ".":
			continue
		case elem == "..":
			return bad("must not contain \"..\"")
		case elem == "**":
			if len(elems) > 0 && elems[len(elems)-1] == elem {
				continue
			}
		default:
			if _, err := path.Match(elem, ""); err != nil {
				return bad("is not a valid pattern; escape a literal *, ?, [ or \\ with a backslash")
			}
		}
		elems = append(elems, elem)
	}
	if len(elems) > maxElems {
		return bad("has too many elements: at most 100 are possible")
	}
	return elems, nil
}

// Match reports whether a pattern matches name or a directory above it.
func (m *Matcher) Match(name string) bool {
	any := len(m.patterns) == 0
	for i := range m.patterns {
		p := &m.patterns[i]
		if any && p.hit {
			continue
		}
		if p.match(name) {
			any, p.hit = true, true
		}
	}
	return any
}

// match follows all ways through the pattern at once, so that many "**" cost
// no more than their number: at[i] says that the elements before i have matched.
func (p *pattern) match(name string) bool {
	at := make([]bool, len(p.elems)+1)
	at[0] = true
	for i, elem := range p.elems {
		if elem == "**" {
			at[i+1] = at[i+1] || at[i]
		} else {
			break
		}
	}
	end := len(p.elems)
	for elem := range strings.SplitSeq(name, "/") {
		if at[end] {
			return true
		}
		if !slices.Contains(at, true) {
			return false
		}
		// Backwards, since each place depends on those before.
		for i := end; i >= 0; i-- {
			stays := i < end && at[i] && p.elems[i] == "**"
			comes := false
			if i > 0 && at[i-1] && p.elems[i-1] != "**" {
				comes, _ = path.Match(p.elems[i-1], elem)
			}
			at[i] = stays || comes
		}
		for i := range end {
			if at[i] && p.elems[i] == "**" {
				at[i+1] = true
			}
		}
	}
	return at[end]
}

// Unmatched returns the patterns that have matched nothing so far.
func (m *Matcher) Unmatched() []string {
	var texts []string
	for _, p := range m.patterns {
		if !p.hit {
			texts = append(texts, p.text)
		}
	}
	return texts
}
