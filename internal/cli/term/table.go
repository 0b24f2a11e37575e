package term

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// Printable returns s with everything that a terminal might obey, or that is
// not UTF-8, escaped as Go does it: a job's name or command line must not move
// the cursor.
func Printable(s string) string {
	clean := true
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
		s = s[n:]
	}
	return b.String()
}

// Cut shortens s to n runes, the last one then being "…".
func Cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	runes := []rune(s)
	return string(runes[:max(0, n-1)]) + "…"
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
			widths[c] = max(widths[c], utf8.RuneCountInString(row[c]))
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
			for range widths[c] - utf8.RuneCountInString(row[c]) + 2 {
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
	return Cut(Printable(s), n)
}
