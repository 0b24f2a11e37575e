package runtimes

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestRecipeReference: docs/RUNTIMES.md has a row for every key of a recipe, in the
// order of Recipe, and its example is a recipe.
func TestRecipeReference(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/RUNTIMES.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## Recipes\n")
	if !ok {
		t.Fatal("docs/RUNTIMES.md has no section Recipes")
	}
	section, _, _ = strings.Cut(section, "\n#")

	var want, have []string
	for f := range reflect.TypeFor[Recipe]().Fields() {
		if key := f.Tag.Get("yaml"); key != "" {
			want = append(want, key)
		}
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|.*\\|$").FindAllStringSubmatch(section, -1) {
		have = append(have, row[1])
		if cells := strings.Count(row[0], " |"); cells != 6 {
			t.Errorf("%s: the row has %d cells, want 6", row[1], cells)
		}
	}
	if !slices.Equal(have, want) {
		t.Errorf("docs/RUNTIMES.md has the keys %q, a recipe has %q", have, want)
	}

	var example strings.Builder
	for line := range strings.Lines(section) {
		if code, ok := strings.CutPrefix(line, "    "); ok {
			example.WriteString(code)
		}
	}
	if _, err := ParseRecipe([]byte(example.String())); err != nil {
		t.Errorf("the example is not a recipe: %v\n%s", err, example.String())
	}
}
