package runtimes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joblet/joblet"
)

func TestParseRecipe(t *testing.T) {
	t.Parallel()
	r, err := ParseRecipe([]byte("name: a\npackages: [bash, g++, 'libc6=2.36-9+deb12u1']\nlanguage_version: 3.10\n"))
	if err != nil {
		t.Fatal(err)
	}
	if r.Suite != "bookworm" || len(r.Components) != 1 || r.Components[0] != "main" {
		t.Errorf("defaults: suite %q, components %q", r.Suite, r.Components)
	}
	if r.LanguageVersion != "3.10" {
		t.Errorf("language_version: %q, want the text as written", r.LanguageVersion)
	}

	const ok = "name: a\npackages: [bash]\n"
	for _, tt := range []struct{ name, in, want string }{
		{"empty", "", "empty"},
		{"comment", "# nothing", "empty"},
		{"not a mapping", "- a", "line 1"},
		{"unknown key", ok + "postinstall: rm -rf /\n", "line 3: unknown key postinstall"},
		{"unknown keys", ok + "x: 1\ny: 2\n", "line 4: unknown key y"},
		{"same key twice", ok + "name: b\n", "already defined"},
		{"many unknown keys", ok + "{}: 1\na: 1\nb: 1\nc: 1\nd: 1\ne: 1\nf: 1\n", "and 2 more errors"},
		{"long value", ok + "description: [" + strings.Repeat("x", 60000) + "]", "line 3"},
		{"control character in a key", ok + "\"a\\e[2J\": 1\n", "unknown key a\\x1b[2J"},
		{"two documents", ok + "---\n" + ok, "more than one document"},
		{"syntax", "name: [", "yaml"},
		{"too long", ok + "#" + strings.Repeat("x", maxRecipeSize), "at most"},
		{"no name", "packages: [bash]", "name is empty"},
		{"name leaves the directory", "name: ../a\npackages: [bash]", "name"},
		{"name of a hidden file", "name: .build-a\npackages: [bash]", "name"},
		{"no packages", "name: a", "packages"},
		{"package is an option", "name: a\npackages: [--mode=chrootless]", "packages: entry 1"},
		{"package is removed", "name: a\npackages: [bash, dpkg-]", "packages: entry 2"},
		{"package is a file", "name: a\npackages: [/tmp/x.deb]", "packages: entry 1"},
		{"package is a pattern", "name: a\npackages: ['?essential']", "packages: entry 1"},
		{"packages in one string", "name: a\npackages: ['bash,dash']", "packages: entry 1"},
		{"package with a line break", "name: a\npackages: [\"bash\\ndash\"]", "packages: entry 1"},
		{"suite is an option", ok + "suite: --help", "suite"},
		{"suite has a path", ok + "suite: ../x", "suite"},
		{"suite adds a field", ok + "suite: \"sid\\nTrusted: yes\"", "suite"},
		{"component", ok + "components: ['main contrib']", "components: entry 1"},
		{"architecture", ok + "architectures: [-x]", "architectures: entry 1"},
		{"mirror scheme", ok + "mirror: file:///etc", "mirror"},
		{"mirror option", ok + "mirror: '[trusted=yes] http://x/'", "mirror"},
		{"mirror adds a field", ok + "mirror: \"http://x/\\nTrusted: yes\"", "mirror"},
		{"omit adds a field", ok + "omit: [\"a\\nEssential: yes\"]", "omit: entry 1"},
		{"omit version", ok + "omit: [a1=2]", "version"},
		{"omit a package", ok + "omit: [bash]", "both"},
		{"exclude relative", ok + "exclude: [usr/share/doc]", "exclude: entry 1"},
		{"exclude leaves", ok + "exclude: [/usr/../../etc]", "exclude"},
		{"exclude is an expression", ok + "exclude: ['/(a|b)']", "exclude: entry 1"},
		{"link relative", ok + "links: {usr/bin/x: /bin/sh}", "link"},
		{"link leaves", ok + "links: {/usr/../../x: /bin/sh}", "link"},
		{"link is the root", ok + "links: {/.: /bin/sh}", "link"},
		{"target leaves", ok + "links: {/usr/bin/x: /../../x}", "target"},
		{"environment name", ok + "environment: {'A=B': c}", "environment"},
		{"environment NUL", ok + "environment: {A: \"b\\0\"}", "NUL"},
		{"test command", ok + "test: ['', x]", "no command"},
		{"description", ok + "description: \"a\\e[2J\"", "control character"},
		{"version", ok + "version: 'a b'", "version"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, err := ParseRecipe([]byte(tt.in))
			if err == nil {
				t.Fatalf("accepted: %+v", r)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not mention %q", err, tt.want)
			}
			if joblet.KindOf(err) != joblet.InvalidArgument {
				t.Errorf("kind %v", joblet.KindOf(err))
			}
			if len(err.Error()) > 1500 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			if strings.Contains(err.Error(), "runtimes.") {
				t.Errorf("error %q names a Go type", err)
			}
		})
	}
}

// recipes are the recipes that ship.
func recipes(t testing.TB) []string {
	files, err := filepath.Glob("../../recipes/*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatalf("recipes: %v, %v", files, err)
	}
	return files
}

func TestShippedRecipes(t *testing.T) {
	t.Parallel()
	for _, file := range recipes(t) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		r, err := ParseRecipe(data)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if r.Name+".yaml" != filepath.Base(file) {
			t.Errorf("%s builds runtime %s", file, r.Name)
		}
		if len(r.Test) == 0 {
			t.Errorf("%s has no test", file)
		}
		if string(r.Source()) != string(data) {
			t.Errorf("%s: Source differs from the file", file)
		}
	}
}

func TestExcludePattern(t *testing.T) {
	t.Parallel()
	re := excludePattern([]string{"/usr/lib/*/tests", "/a.b", "/etc/x?"})
	for p, want := range map[string]bool{
		"/usr/lib/python3/numpy/tests": true, "/usr/lib/tests": false, "/usr/lib/a/tests/b": false,
		"/a.b": true, "/axb": false, "/etc/x1": true, "/etc/x": false, "/": false,
	} {
		if re.MatchString(p) != want {
			t.Errorf("%s: match %v", p, !want)
		}
	}
}

func FuzzRecipe(f *testing.F) {
	for _, file := range recipes(f) {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("name: a\npackages: [&x bash, *x]\nomit: [dash]\nmirror: http://a/\nlinks: {/a: /b}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRecipe(data)
		if err != nil {
			if joblet.KindOf(err) != joblet.InvalidArgument {
				t.Errorf("kind %v of %v", joblet.KindOf(err), err)
			}
			return
		}
		// What goes to a command line, a file name or an apt source can't be
		// taken for anything else.
		if strings.ContainsAny(r.Name, "/\n") || strings.HasPrefix(r.Name, ".") {
			t.Errorf("name %q", r.Name)
		}
		for _, p := range append(append(r.Packages, r.Suite, r.Mirror), r.Omit...) {
			if strings.HasPrefix(p, "-") || strings.HasSuffix(p, "-") && p != r.Suite && p != r.Mirror || strings.ContainsAny(p, " ,\n\t[]") {
				t.Errorf("word %q", p)
			}
		}
		sources := sourcesText(sourcesFor(r, t.TempDir()), r.Components)
		for line := range strings.Lines(sources) {
			if key, _, _ := strings.Cut(line, ":"); !strings.Contains("\n Types URIs Suites Components Signed-By", key) {
				t.Errorf("apt source line %q", line)
			}
		}
		excludePattern(r.Exclude)
	})
}
