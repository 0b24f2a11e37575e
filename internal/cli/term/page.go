package term

import (
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/joblet/joblet/internal/table"
)

const (
	showCursor = "\x1b[?25h"
	hideCursor = "\x1b[?25l"
	clearAll   = "\x1b[H\x1b[2J"
)

// Screen shows one page after the other: on a terminal in the same place.
type Screen struct {
	W     io.Writer
	Size  func() (width, height int) // 0, 0: no terminal
	Raw   bool                       // a terminal that takes us literally: lines end with \r\n
	drawn bool                       // something is shown
	inUse bool                       // a terminal, whose cursor is hidden
}

// Show shows a page in place of the last one.
func (s *Screen) Show(page func(width int) string) error {
	width, height := s.Size()
	text := Fit(page(width), width, height)
	switch {
	case width > 0 && !s.inUse:
		s.inUse = true
		text = hideCursor + clearAll + text
	case width > 0:
		text = clearAll + text
	case s.drawn:
		text = "\n" + text
	}
	s.drawn = true
	if s.Raw {
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	_, err := io.WriteString(s.W, text)
	return err
}

// Close gives the terminal back. A failure to write to it was told by show.
func (s *Screen) Close() {
	if s.inUse {
		_, _ = io.WriteString(s.W, showCursor)
	}
}

// Size returns the size of the terminal that w is, or 0, 0.
func Size(w io.Writer) (width, height int) {
	f, ok := w.(*os.File)
	if !ok {
		return 0, 0
	}
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0, 0
	}
	return width, height
}

// Fit cuts a page to a terminal; 0 is no limit. The last row stays free for the
// cursor.
func Fit(page string, width, height int) string {
	var b strings.Builder
	n := 0
	for line := range strings.Lines(page) {
		if n++; height > 1 && n == height {
			break
		}
		line = strings.TrimSuffix(line, "\n")
		if width > 0 {
			line = table.Cut(line, width)
		}
		b.WriteString(strings.TrimRight(line, " "))
		b.WriteByte('\n')
	}
	return b.String()
}
