package term

import (
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"

	"github.com/joblet/joblet"
)

// Cut shortens s to n columns of a terminal, the last one then being "…".
func Cut(s string, n int) string {
	n = max(n, 1)
	switch {
	case !isASCII(s):
		return runewidth.Truncate(s, n, "…")
	case len(s) > n:
		return s[:n-1] + "…"
	}
	return s
}

// columns is how many columns of a terminal s takes.
func columns(s string) int {
	if isASCII(s) {
		return len(s)
	}
	return runewidth.StringWidth(s)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// Width returns the columns of the terminal that w is, or 0.
func Width(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

const minLastColumn = 12

// WriteTable prints rows in columns as wide as their content. With a width
// the last column gets what is left of it, but some, for which the columns in
// drop are left out, one after the other, as long as they have to be.
func WriteTable(w io.Writer, width int, rows [][]string, drop ...int) error {
	if len(rows) == 0 {
		return nil
	}
	last := len(rows[0]) - 1
	widths := make([]int, last+1)
	used := 0
	for c := range widths {
		for _, row := range rows {
			widths[c] = max(widths[c], columns(row[c]))
		}
		if c < last {
			used += widths[c] + 2
		}
	}
	left := make([]bool, last)
	for _, c := range drop {
		if width == 0 || used+min(widths[last], minLastColumn) <= width {
			break
		}
		left[c] = true
		used -= widths[c] + 2
	}
	var b strings.Builder
	for _, row := range rows {
		for c := range last {
			if left[c] {
				continue
			}
			b.WriteString(row[c])
			for range widths[c] - columns(row[c]) + 2 {
				b.WriteByte(' ')
			}
		}
		text := row[last]
		if width > 0 {
			text = Cut(text, max(minLastColumn, width-used))
		}
		b.WriteString(text)
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// MaxNameColumn is how many columns a name may take in a table.
const MaxNameColumn = 24

// Dash is s fit for a column, or "-".
func Dash(s string, n int) string {
	if s == "" {
		return "-"
	}
	return Cut(joblet.Printable(s), n)
}
