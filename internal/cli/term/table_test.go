package term

import (
	"strings"
	"testing"
)

// TestWideTable: columns line up, and lines fit, also where characters are two columns
// wide or none.
func TestWideTable(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	rows := [][]string{{"NAME", "N", "TEXT"}, {"日本", "1", strings.Repeat("語", 20)}, {"e\u0301", "2", "plain"}}
	if err := WriteTable(&b, 24, rows); err != nil {
		t.Fatal(err)
	}
	want := "NAME  N  TEXT\n日本  1  " + strings.Repeat("語", 7) + "…\ne\u0301     2  plain\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
	for text, want := range map[string]string{"abcdef": "abc…", "abcd": "abcd", "日本語": "日…", "日本": "日本", "": ""} {
		if got := Cut(text, 4); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
