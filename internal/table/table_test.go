package table

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
	if err := Write(&b, 24, rows); err != nil {
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

// TestFit: a table that does not fit loses columns, then has narrower ones.
func TestFit(t *testing.T) {
	t.Parallel()
	rows := [][]string{
		{"NODE", "STATUS", "JOBS", "ROLE"},
		{"local *", "cannot connect to the daemon: no such file or directory", "", "administrator"},
		{"a-rather-long-name-of-a-node", "ok", "3", ""},
	}
	for _, tt := range []struct {
		name  string
		table Table
		want  string
	}{
		{"unlimited", Table{Rows: rows}, `
NODE                          STATUS                                                   JOBS  ROLE
local *                       cannot connect to the daemon: no such file or directory        administrator
a-rather-long-name-of-a-node  ok                                                       3
`},
		{"narrow", Table{Rows: rows, Width: 60, Drop: []int{2}, Narrow: []int{0, 1}}, `
NODE                    STATUS                  ROLE
local *                 cannot connect to the…  administrat…
a-rather-long-name-of…  ok
`},
		{"wrap", Table{Rows: rows, Width: 60, Narrow: []int{0, 1}, Wrap: true}, `
NODE                STATUS               JOBS  ROLE
local *             cannot connect to          administrator
                    the daemon: no such
                    file or directory
a-rather-long-name  ok                   3
-of-a-node
`},
		{"painted", Table{Rows: rows[:1:1], Width: 60, Paint: func(int, string) string { return "x" }}, `
NODE  STATUS  JOBS  ROLE
`},
		{"painted", Table{Rows: append(rows[:1:1], rows[2]), Paint: func(c int, text string) string { return "<" + text + ">" }}, `
NODE                          STATUS  JOBS  ROLE
<a-rather-long-name-of-a-node>  <ok>      <3>
`},
	} {
		var b strings.Builder
		if err := tt.table.Write(&b); err != nil {
			t.Fatal(err)
		}
		if got := "\n" + b.String(); got != tt.want {
			t.Errorf("%s: got%swant%s", tt.name, got, tt.want)
		}
		for line := range strings.Lines(b.String()) {
			if n := columns(strings.TrimSuffix(line, "\n")); tt.table.Width > 0 && n > tt.table.Width {
				t.Errorf("%s: %d columns: %s", tt.name, n, line)
			}
		}
	}
}
