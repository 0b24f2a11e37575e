package archive

import (
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet"
)

func TestMatcher(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pattern  string
		yes, not string // names
	}{
		{"a", "a a/b a/b/c", "b b/a ab"},
		{"a/", "a a/b", "b"},
		{"./a", "a a/b", "b"},
		{"/work/a", "a a/b", "work/a"},
		{"/work", "a work", ""},
		{"/work/", "a a/b", ""},
		{".", "a a/b", ""},
		{"work/a", "work/a", "a"},
		{"*.csv", "x.csv x.csv/y", "a/x.csv x.csvs"},
		{"**", "a a/b", ""},
		{"**/*.csv", "x.csv a/x.csv a/b/x.csv a/x.csv/y", "x.txt a/x.txt"},
		{"a/**/b", "a/b a/x/b a/x/y/b a/x/b/z", "a b a/x x/b"},
		{"a/**", "a a/b a/b/c", "b"},
		{"**/a/**/b/**", "a/b x/a/y/b/z a/a/b/b", "b/a a"},
		{"**/**/a", "a x/a x/y/a", "b"},
		{"a/*/c", "a/b/c a/b/c/d", "a/c a/b/b/c"},
		{"[a-c]?", "ab b1/x", "a da"},
		{`\*`, "* */a", "a"},
		{"a**", "a abc", "ba"},
		{"ü*/\xff", "üx/\xff", "üx/y"},
	} {
		m, err := NewMatcher([]string{tt.pattern})
		if err != nil {
			t.Fatal(err)
		}
		for name := range strings.FieldsSeq(tt.not) {
			if m.Match(name) {
				t.Errorf("%q matches %q", tt.pattern, name)
			}
		}
		if got := m.Unmatched(); !slices.Equal(got, []string{tt.pattern}) {
			t.Errorf("%q: unmatched: got %q", tt.pattern, got)
		}
		for name := range strings.FieldsSeq(tt.yes) {
			if !m.Match(name) {
				t.Errorf("%q does not match %q", tt.pattern, name)
			}
		}
		if got := m.Unmatched(); len(got) != 0 {
			t.Errorf("%q: unmatched: got %q", tt.pattern, got)
		}
	}
	m, err := NewMatcher(nil)
	if err != nil || !m.Match("any/thing") || m.Unmatched() != nil {
		t.Errorf("no patterns: %v %v", m, err)
	}
	m, err = NewMatcher([]string{"*", "a", "b"})
	if err != nil || !m.Match("a") || !slices.Equal(m.Unmatched(), []string{"b"}) {
		t.Errorf("each pattern is to be noted: %v %v", m.Unmatched(), err)
	}
}

func TestBadPatterns(t *testing.T) {
	t.Parallel()
	for _, patterns := range [][]string{
		{""}, {"/"}, {"/etc"}, {"/workshop"}, {".."}, {"a/.."}, {"../a"}, {"/work/../etc"}, {"[a"}, {"a/[]b"}, {`a\`}, {`a\/b`},
		{strings.Repeat("x", 4097)}, {strings.Repeat("x/", 101)}, slices.Repeat([]string{"a"}, 101), {"a", "[b"},
	} {
		if _, err := NewMatcher(patterns); joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("%.100q: got %v", patterns, err)
		}
	}
}

// TestMatcherCost matches what takes backtracking matchers years.
func TestMatcherCost(t *testing.T) {
	t.Parallel()
	m, err := NewMatcher([]string{strings.Repeat("**/a*/", 50)[:299] + "b"})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	name := strings.Repeat("aaaaaaaa/", 99) + "c"
	for range 20 {
		if m.Match(name) {
			t.Fatal("matches")
		}
	}
	if took := time.Since(start); took > 60*time.Second {
		t.Errorf("took %v", took)
	}
}

func FuzzMatcher(f *testing.F) {
	for _, p := range []string{"a", "**/*.csv", "a/**/b", "/work/[a-c]?/", `\*/**`, "**/a/**/b/**", "./x//y/."} {
		f.Add(p, "a/x/b")
		f.Add(p, "x/y/a.csv")
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		m, err := NewMatcher([]string{pattern})
		if err != nil {
			if joblet.KindOf(err) != joblet.InvalidArgument {
				t.Errorf("%q: %v", pattern, err)
			}
			return
		}
		got := m.Match(name)
		if got == (len(m.Unmatched()) == 1) {
			t.Errorf("%q, %q: %v, unmatched %q", pattern, name, got, m.Unmatched())
		}
		if got && !m.Match(name+"/below") {
			t.Errorf("%q matches %q and nothing below", pattern, name)
		}
		if elems := strings.Split(name, "/"); len(elems) < 6 && strings.Count(pattern, "**") < 4 {
			if want := slow(m.patterns[0].elems, elems); got != want {
				t.Errorf("%q, %q: got %v, want %v", pattern, name, got, want)
			}
		}
	})
}

// slow is what the documentation says, literally.
func slow(pattern, name []string) bool {
	switch {
	case len(pattern) == 0:
		return true // what is left lies below
	case pattern[0] == "**":
		return slow(pattern[1:], name) || len(name) > 0 && slow(pattern, name[1:])
	case len(name) == 0:
		return false
	}
	ok, err := path.Match(pattern[0], name[0])
	return err == nil && ok && slow(pattern[1:], name[1:])
}
