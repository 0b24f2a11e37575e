package archive

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/joblet/joblet"
)

func TestIgnore(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ lines, ignored, kept string }{ // names of directories end in a slash
		{"*.o", "a.o d/a.o d/e.o/", "a.c o a.o.c"},
		{"/*.o", "a.o", "d/a.o"},
		{"d/*.o", "d/a.o", "a.o e/d/a.o d/e/a.o"},
		{"node_modules/", "node_modules/ a/b/node_modules/", "node_modules a/node_modules node_modules2/"},
		{"build", "build build/ a/build/", "builds"},
		{"d/**", "d/a d/e/ d/e/a", "d d/"},
		{"**/x", "x a/x a/b/x", "xx"},
		{"a/**/x", "a/x a/b/x a/b/c/x", "x b/a/x"},
		{"**", "a d/ d/a", ""},
		{"*\n!keep\n!/d/", "a e/ e/a d/a d/e/", "keep d/keep d/"},
		{"*.log\n!a.log\na.log", "a.log", "x"},
		{"# comment\n\n  \nx \r\ny\\ \r\n\\#z\n\\!w", "x #z !w", "# comment"},
		{"[ab]?", "ax b1", "cx a"},
		{"\uFEFFx", "x", ""},
		{"ä*", "äb", "ab"},
	} {
		dir := t.TempDir()
		write(t, 0o644, tt.lines, dir, IgnoreName)
		ig, err := readIgnore(openRoot(t, dir))
		if err != nil {
			t.Errorf("%q: %v", tt.lines, err)
			continue
		}
		for want, list := range map[bool]string{true: tt.ignored, false: tt.kept} {
			for _, name := range strings.Split(list, " ") {
				clean, isDir := strings.CutSuffix(name, "/")
				if tt.lines[0] == '#' && name == "#" || name == "" {
					continue
				}
				if got := ig.match(clean, isDir); got != want {
					t.Errorf("%q: %q: got %v", tt.lines, name, got)
				}
			}
		}
	}
}

func TestBadIgnore(t *testing.T) {
	t.Parallel()
	for lines, want := range map[string]string{
		"x\n[":                               "line 2: pattern \"[\": is not a valid pattern",
		"a/../b":                             `".."`,
		"/":                                  "matches nothing",
		"!":                                  "matches nothing",
		strings.Repeat("x", 4097):            "too long",
		strings.Repeat("x/", 101) + "x":      "at most 100",
		strings.Repeat("x\n", 1001):          "maximum of 1000",
		strings.Repeat("#", maxIgnoreFile):   "",
		strings.Repeat("#", maxIgnoreFile+1): "is longer than",
	} {
		dir := t.TempDir()
		write(t, 0o644, lines, dir, IgnoreName)
		_, err := readIgnore(openRoot(t, dir))
		if want == "" && err != nil || want != "" && (joblet.KindOf(err) != joblet.InvalidArgument || !strings.Contains(fmt.Sprint(err), want) || !strings.Contains(fmt.Sprint(err), dir)) {
			t.Errorf("%.20q: got %v, want %q", lines, err, want)
		}
	}
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, IgnoreName)); err != nil {
		t.Fatal(err)
	}
	if _, err := readIgnore(openRoot(t, dir)); joblet.KindOf(err) != joblet.InvalidArgument {
		t.Errorf("a link to the outside: got %v", err)
	}
	if _, err := PackPaths(&bytes.Buffer{}, nil, Filter{Exclude: []string{""}}, generous); joblet.KindOf(err) != joblet.InvalidArgument {
		t.Errorf("an empty pattern: got %v", err)
	}
}

// TestPackFilter packs what cannot and what shall not go.
func TestPackFilter(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"src/main.c", "src/main.o", "src/sub/x.tmp", "src/sub/x", "src/node_modules/m/index.js", "other/main.o", "other/sub/x.tmp"} {
		write(t, 0o644, "12345", dir, name)
	}
	write(t, 0o644, "*.o\nnode_modules/\n", dir, "src", IgnoreName)
	for name, target := range map[string]string{"src/python": "/usr/bin/python3", "src/up": "../../..", "src/sub/odd": "x/../.."} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	sources := []Source{{filepath.Join(dir, "src"), ""}, {filepath.Join(dir, "other"), "other"}, {filepath.Join(dir, "src/main.o"), "named.tmp"}}
	filter := Filter{Exclude: []string{"*.tmp"}, LeftOut: func(file string, why error) { t.Errorf("%s: %v", file, why) }}
	const want = ".jobletignore main.c named.tmp other/ other/main.o other/sub/ python sub/ sub/odd sub/x up"
	var b bytes.Buffer
	stats, err := PackPaths(&b, sources, filter, generous)
	got := names(t, b.Bytes())
	slices.Sort(got)
	if strings.Join(got, " ") != want || err != nil {
		t.Errorf("got %q %v, want %q", got, err, want)
	}
	checked, err := CheckPaths(sources, filter, generous)
	if fmt.Sprint(checked) != fmt.Sprint(stats) || err != nil {
		t.Errorf("CheckPaths: got %+v %v, want %+v", checked, err, stats)
	}
	for _, lim := range []Limits{{10, 100}, {100, 3}} {
		if _, err := CheckPaths(sources, filter, lim); joblet.KindOf(err) != joblet.InvalidArgument || !errors.Is(err, errLimit) || !strings.Contains(err.Error(), "--exclude") {
			t.Errorf("%+v: got %v", lim, err)
		}
	}
	if err := Verify(bytes.NewReader(b.Bytes())); err != nil {
		t.Errorf("Verify: %v", err)
	}
	// Links that lead outside come back from no job.
	if _, err := Unpack(openRoot(t, t.TempDir()), bytes.NewReader(b.Bytes()), generous); joblet.KindOf(err) != joblet.InvalidArgument {
		t.Errorf("Unpack: got %v", err)
	}
	to := t.TempDir()
	if _, err := UnpackForJob(openRoot(t, to), bytes.NewReader(b.Bytes()), generous); err != nil {
		t.Errorf("UnpackForJob: %v", err)
	}
	if target, err := os.Readlink(filepath.Join(to, "python")); target != "/usr/bin/python3" {
		t.Errorf("got %q %v", target, err)
	}
}

func FuzzIgnore(f *testing.F) {
	f.Add("*.o\n!/a/**/x\nd/", "a/b/x")
	f.Add("**\n!**/[a-c]?", "d")
	f.Fuzz(func(t *testing.T, lines, name string) {
		ig, err := parseIgnore("file", strings.Split(lines, "\n"))
		if err != nil {
			if joblet.KindOf(err) != joblet.InvalidArgument {
				t.Error(err)
			}
			return
		}
		if ig.match(name, false) && !ig.match(name, true) && !strings.Contains(lines, "!") {
			t.Errorf("%q ignores the file %q and not the directory", lines, name)
		}
	})
}
