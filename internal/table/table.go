// Package table lays out text in columns and fits it to the width of a terminal.
package table

import (
	"io"
	"strings"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"

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

// columns returns the number of terminal columns that s takes.
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

// MaxNameColumn is the widest that a column of names gets.
const MaxNameColumn = 24

// Dash returns s, printable and at most n columns wide, or "-" if it is empty.
func Dash(s string, n int) string {
	if s == "" {
		return "-"
	}
	return Cut(joblet.Printable(s), n)
}

// gap separates columns.
const gap = 2

// minLast and minNarrow are the least widths of the last column and of one in Narrow.
const (
	minLast   = 12
	minNarrow = 8
)

// Table is text in columns that are as wide as their content. A table that is wider than
// Width first loses the columns in Drop, then narrows those in Narrow, then cuts the last
// column.
type Table struct {
	Rows   [][]string // the first one is the header; all have the same length
	Width  int        // columns of the terminal; 0: no limit
	Drop   []int      // columns to leave out, one after the other, but not the last
	Narrow []int      // columns to narrow, the widest first
	Wrap   bool       // continue the text of narrowed columns and of the last on further lines instead of cutting it

	// Paint adds escape sequences to a cell below the header, which has its final width
	// without them. Nil: none.
	Paint func(column int, cell string) string
}

// Write writes the rows to w, cut to width columns if that is not 0; drop are the columns
// to leave out of a table that does not fit.
func Write(w io.Writer, width int, rows [][]string, drop ...int) error {
	return Table{Rows: rows, Width: width, Drop: drop}.Write(w)
}

// Write writes the table to w, in one piece.
func (t Table) Write(w io.Writer) error {
	if len(t.Rows) == 0 {
		return nil
	}
	widths, dropped := t.fit()
	var b strings.Builder
	for i, row := range t.Rows {
		cells := make([][]string, len(row))
		lines := 1
		for c, text := range row {
			if !dropped[c] {
				cells[c] = t.fold(text, widths[c])
				lines = max(lines, len(cells[c]))
			}
		}
		for n := range lines {
			t.writeLine(&b, cells, n, widths, i > 0)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeLine writes line n of a row's cells; dropped columns have none.
func (t Table) writeLine(b *strings.Builder, cells [][]string, n int, widths []int, paint bool) {
	blanks := 0
	for c, lines := range cells {
		if lines == nil {
			continue
		}
		text := ""
		if n < len(lines) {
			text = lines[n]
		}
		if text != "" {
			b.WriteString(strings.Repeat(" ", blanks))
			blanks = 0
		}
		blanks += widths[c] - columns(text) + gap
		if paint && t.Paint != nil && text != "" {
			text = t.Paint(c, text)
		}
		b.WriteString(text)
	}
	b.WriteByte('\n')
}

// fold returns the lines of a cell that is at most width columns wide; 0: no limit.
func (t Table) fold(text string, width int) []string {
	switch {
	case width == 0 || columns(text) <= width:
		return []string{text}
	case !t.Wrap:
		return []string{Cut(text, width)}
	}
	return Wrap(text, width)
}

// fit returns the width of each column, 0 for the last one of a table without a limit, and
// the columns that are left out.
func (t Table) fit() (widths []int, dropped []bool) {
	last := len(t.Rows[0]) - 1
	widths, dropped = make([]int, last+1), make([]bool, last+1)
	for c := range widths {
		for _, row := range t.Rows {
			widths[c] = max(widths[c], columns(row[c]))
		}
	}
	if t.Width == 0 {
		return widths, dropped
	}
	left := min(widths[last], minLast) // what the last column needs at least
	used := 0
	for _, w := range widths[:last] {
		used += w + gap
	}
	for _, c := range t.Drop {
		if used+left <= t.Width {
			break
		}
		dropped[c] = true
		used -= widths[c] + gap
	}
	if t.Wrap {
		left = min(widths[last], max(minLast, t.Width/3))
	}
	for used+left > t.Width {
		widest := -1
		for _, c := range t.Narrow {
			if !dropped[c] && c != last && widths[c] > minNarrow && (widest < 0 || widths[c] > widths[widest]) {
				widest = c
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
		used--
	}
	widths[last] = max(minLast, t.Width-used)
	return widths, dropped
}

// Wrap breaks text into lines of at most width columns, between words where it can.
func Wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && columns(line)+1+columns(word) <= width {
			line += " " + word
			continue
		}
		if line != "" {
			lines = append(lines, line)
		}
		for columns(word) > width {
			head := runewidth.Truncate(word, width, "")
			if head == "" {
				break
			}
			lines = append(lines, head)
			word = word[len(head):]
		}
		line = word
	}
	return append(lines, line)
}
