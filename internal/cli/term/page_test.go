package term

import (
	"os"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestScreen(t *testing.T) {
	t.Parallel()
	page := strings.Repeat("line\n"+strings.Repeat("wide ", 30)+"\n", 20)
	for _, size := range [][2]int{{200, 60}, {80, 24}, {40, 10}, {20, 2}} {
		var b strings.Builder
		s := &Screen{W: &b, Size: func() (int, int) { return size[0], size[1] }}
		for range 2 {
			if err := s.Show(func(int) string { return page }); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
		text, ok := strings.CutPrefix(b.String(), hideCursor+clearAll)
		text, ended := strings.CutSuffix(text, showCursor)
		pages := strings.Split(text, clearAll)
		if !ok || !ended || len(pages) != 2 || pages[0] != pages[1] {
			t.Fatalf("%v: got %q", size, b.String())
		}
		lines := strings.Split(strings.TrimSuffix(pages[0], "\n"), "\n")
		if len(lines) > size[1]-1 {
			t.Errorf("%v: %d lines", size, len(lines))
		}
		for _, line := range lines {
			if n := utf8.RuneCountInString(line); n > size[0] || strings.ContainsRune(line, '\x1b') {
				t.Errorf("%v: %d columns: %q", size, n, line)
			}
		}
	}
	var b strings.Builder
	s := &Screen{W: &b, Size: func() (int, int) { return 0, 0 }}
	for range 2 {
		if err := s.Show(func(int) string { return "x\n" }); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	if b.String() != "x\n\nx\n" {
		t.Errorf("without a terminal: %q", b.String())
	}
	failing := &Screen{W: brokenWriter{}, Size: func() (int, int) { return 80, 24 }}
	if err := failing.Show(func(int) string { return "x\n" }); err == nil {
		t.Error("a write error is lost")
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }
