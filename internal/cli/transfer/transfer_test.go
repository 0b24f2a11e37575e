package transfer

import (
	"strings"
	"testing"
)

func TestCopySource(t *testing.T) {
	t.Parallel()
	for from, want := range map[string]struct {
		source Source
		above  string
	}{
		"j:out.csv":         {Source{"j", "out.csv", false}, ""},
		"j:a/b/c":           {Source{"j", "a/b/c", false}, "a/b"},
		"j:/work/a/b":       {Source{"j", "a/b", false}, "a"},
		"j:a/":              {Source{"j", "a", false}, ""},
		"j:a/.":             {Source{"j", "a", true}, ""},
		"j:./a//b/./.":      {Source{"j", "a/b", true}, "a"},
		"j:":                {Source{"j", "", true}, ""},
		"j:.":               {Source{"j", "", true}, ""},
		"j:/work":           {Source{"j", "", true}, ""},
		"j:/work/":          {Source{"j", "", true}, ""},
		"j:out/**/*.png":    {Source{"j", "out/**/*.png", false}, "out"},
		"j:*.txt":           {Source{"j", "*.txt", false}, ""},
		"j:a/b?c/d":         {Source{"j", "a/b?c/d", false}, "a"},
		"j:a:b":             {Source{"j", "a:b", false}, ""},
		"my.job:work/x":     {Source{"my.job", "work/x", false}, "work"},
		"j:worker":          {Source{"j", "worker", false}, ""},
		"j:/work/../work/x": {},
		"j:/workers/x":      {},
		"j:/":               {},
		":x":                {},
		"x":                 {},
		"./j:x":             {},
	} {
		got, err := ParseSource(from, ".")
		if (err != nil) != (want.source.ref == "") || err == nil && (got != want.source || got.above() != want.above) {
			t.Errorf("%s: got %+v, above %q, %v", from, got, got.above(), err)
		}
	}
	for _, to := range []string{"3f2a:", "web:/work/x"} {
		if _, err := ParseSource("x", to); err == nil || !strings.Contains(err.Error(), "--upload=x") {
			t.Errorf("to %s: got %v", to, err)
		}
	}
}
