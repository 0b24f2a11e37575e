package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRuntimeCommands(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	rnx := func(args ...string) result { return d.rnx(t.Context(), append([]string{"runtime"}, args...)...) }
	if r := rnx("list"); r.status != 0 || !strings.Contains(r.stdout, "python-3.11-ml") {
		t.Errorf("list: %v", r)
	}
	if r := rnx("info", "python-3.11-ml"); r.status != 0 || !strings.Contains(r.stdout, "bookworm") {
		t.Errorf("info: %v", r)
	}
	if r := rnx("test", "python-3.11-ml"); r.status != 0 {
		t.Errorf("test: %v", r)
	}
	if r := rnx("info", "nope"); r.status == 0 || !strings.Contains(r.stderr, "nope") {
		t.Errorf("info of none: %v", r)
	}
	id := strings.TrimSpace(d.must(t, "-d", runtime, "sleep", "60"))
	if r := rnx("remove", "python-3.11-ml"); r.status == 0 || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("removal of a runtime in use: %v", r)
	}
	if r := d.rnx(t.Context(), "job", "kill", id); r.status != 0 {
		t.Errorf("kill: %v", r)
	}
}

// TestBadRecipes: a recipe that is wrong is refused before anything is built.
func TestBadRecipes(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	before, err := os.ReadDir(runtimes)
	if err != nil {
		t.Fatal(err)
	}
	const good = "name: x\nversion: \"1\"\ndescription: d\npackages: [bash]\n"
	for name, recipe := range map[string]string{
		"unknown key":         good + "frobnicate: 1\n",
		"name outside":        strings.Replace(good, "name: x", "name: ../x", 1),
		"option as a package": strings.Replace(good, "[bash]", "[--hook]", 1),
		"path outside":        good + "exclude: [/usr/../../etc]\n",
		"not YAML":            "\x00\x01",
		"empty":               "",
	} {
		file := filepath.Join(t.TempDir(), "recipe.yaml")
		if err := os.WriteFile(file, []byte(recipe), 0o644); err != nil {
			t.Fatal(err)
		}
		if r := d.rnx(t.Context(), "runtime", "build", file); r.status == 0 || r.stderr == "" {
			t.Errorf("%s: %v", name, r)
		}
	}
	after, err := os.ReadDir(runtimes)
	if err != nil || len(after) != len(before) {
		t.Errorf("%d entries in the runtimes' directory, before %d: %v", len(after), len(before), err)
	}
}
