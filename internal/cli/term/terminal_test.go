package term

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/joblet/joblet"
)

func TestParseKeys(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "", "ctrl-p,ctrl-q": "\x10\x11", "Ctrl-A,d": "\x01d", "ctrl-]": "\x1d", "ctrl-@": "\x00", "ctrl-[,ctrl-_": "\x1b\x1f", "~,.": "~.",
	} {
		if got, err := ParseKeys(text); string(got) != want || err != nil {
			t.Errorf("%q: %q %v", text, got, err)
		}
	}
	for _, text := range []string{",", "ctrl-", "ctrl-1", "ctrl-pp", "ab", "ctrl-p,", "ä", " ", "alt-x"} {
		if got, err := ParseKeys(text); joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("%q: %q %v", text, got, err)
		}
	}
}

func TestMatcher(t *testing.T) {
	t.Parallel()
	const pq = "\x10\x11"
	for _, test := range []struct {
		keys     string
		pieces   []string // typed; "" is a pause
		want     string
		detached bool
	}{
		{pq, []string{"abc"}, "abc", false},
		{pq, []string{"abc" + pq + "def"}, "abc", true},
		{pq, []string{"a\x10", "\x11b"}, "a", true},
		{pq, []string{"\x10x"}, "\x10x", false},
		{pq, []string{"\x10\x10\x11"}, "\x10", true},
		{pq, []string{"\x10", "", "\x11"}, "\x10", true},
		{pq, []string{"\x10", "", "x"}, "\x10x", false},
		{pq, []string{"\x10", "", "\x10", "\x11"}, "\x10", true},
		{"aab", []string{"aaab"}, "a", true},
		{"aab", []string{"aa", "", "ab"}, "aa", true},
		{"aab", []string{"aac"}, "aac", false},
		{"abac", []string{"ababac"}, "ab", true},
		{"", []string{pq}, pq, false},
		{"x", []string{"ax"}, "a", true},
	} {
		m := matcher{keys: []byte(test.keys)}
		var got []byte
		detached := false
		for _, piece := range test.pieces {
			if piece == "" {
				got = append(got, m.flush()...)
				continue
			}
			var pass []byte
			if pass, detached = m.next([]byte(piece)); pass != nil {
				got = append(got, pass...)
			}
		}
		if string(got) != test.want || detached != test.detached {
			t.Errorf("keys %q, typed %q: got %q, detached %v; want %q", test.keys, test.pieces, got, detached, test.want)
		}
	}
}

// TestMatcherPassesAll: without the keys all that is typed arrives, in order, as
// soon as there is a pause.
func TestMatcherPassesAll(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		m := matcher{keys: []byte("aba")}
		var typed, got []byte
		for range 30 {
			if rng.IntN(4) == 0 {
				got = append(got, m.flush()...)
				if !bytes.Equal(typed, got) {
					t.Fatalf("typed %q, after a pause %q", typed, got)
				}
			}
			c := "abc"[rng.IntN(3)]
			pass, detached := m.next([]byte{c})
			typed, got = append(typed, c), append(got, pass...)
			if detached != bytes.HasSuffix(typed, []byte("aba")) {
				t.Fatalf("typed %q: detached %v", typed, detached)
			}
			if detached {
				break
			}
		}
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ written, reset, again string }{
		{"plain \x1b[31mred\x1b[m text", "", ""},
		{"\x1b[?1049h\x1b[?25l\x1b[?1;2004h\x1b=", "\x1b[?1l\x1b[?25h\x1b[?1049l\x1b[?2004l\x1b>\x1b[m", "\x1b[?1049h\x1b[?1h\x1b[?25l\x1b[?2004h\x1b="},
		{"\x1b[?1049h text \x1b[?1049l", "", ""},
		{"\x1b[?7l\x1b[?7h\x1b[?25l\x1bc", "", ""},
		{"\x1b[?1000", "", ""},
		{"\x1b\x1b[?1000h", "\x1b[?1000l\x1b[m", "\x1b[?1000h"},
		{"\x1b[1;?5h\x1b[?;h\x1b[?x5h\x1b[?99999999999h", "", ""},
		{"\x1b[?6n\x1b[c\x1b[>4;2m", "", ""},
	} {
		for _, piece := range []int{1, 3, 1000} { // however it is cut
			var m modes
			for chunk := range chunks(test.written, piece) {
				m.write(chunk)
			}
			again := m.again()
			if reset := m.reset(); reset != test.reset || again != test.again || m.reset() != "" {
				t.Errorf("%q in pieces of %d: reset %q, again %q", test.written, piece, reset, again)
			}
		}
	}
	var m modes
	for n := range 100000 { // a job cannot make it grow
		m.write([]byte("\x1b[?" + strings.Repeat("1", n%80) + "h\x1b[?" + string(rune('0'+n%10)) + "0" + string(rune('0'+n/10%10)) + "1h"))
	}
	if len(m.changed) > 300 || cap(m.params) > 1024 {
		t.Errorf("%d modes, %d bytes", len(m.changed), cap(m.params))
	}
}

func chunks(s string, n int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(s) > 0 {
			k := min(n, len(s))
			if !yield([]byte(s[:k])) {
				return
			}
			s = s[k:]
		}
	}
}

func TestRepaint(t *testing.T) {
	t.Parallel()
	window := joblet.WindowSize{Rows: 4, Columns: 20}
	draw := func(window joblet.WindowSize, pieces ...string) (string, string) {
		t.Helper()
		all := strings.Join(pieces, "")
		until := int64(len(all))
		if i := strings.Index(all, "|"); i >= 0 {
			until = int64(i)
		}
		r := NewRepaint(joblet.WindowSize{Rows: 4, Columns: 20}, until)
		var rest strings.Builder
		at, done := int64(0), until == 0
		for _, p := range pieces {
			if done {
				rest.WriteString(p)
				continue
			}
			var more []byte
			if more, done = r.Write(at, []byte(p)); done {
				rest.Write(more)
			}
			at += int64(len(p))
		}
		if !done {
			t.Errorf("%q: not complete", pieces)
		}
		return r.Paint(window), rest.String()
	}
	const begin, end = "\x1b[m\x1b[H\x1b[2J\x1b[?7l", "\x1b[?7h"
	for _, test := range []struct {
		window joblet.WindowSize
		pieces []string
		want   string
		rest   string
	}{
		{window, []string{"one\r\n", "two"}, begin + "\x1b[1Hone\x1b[m\x1b[2Htwo\x1b[m" + end + "\x1b[2;4H", ""},
		{window, []string{"$ ls|", "new"}, begin + "\x1b[1H$ ls\x1b[m" + end + "\x1b[1;5H", "|new"},
		// Questions and bells are not asked and rung again.
		{window, []string{"a\x1b[6n\x1b[c\x07\x1b]52;c;eA==\x07b"}, begin + "\x1b[1Hab\x1b[m" + end + "\x1b[1;3H", ""},
		{window, []string{"\x1b[?1049h\x1b[?25l\x1b[2J\x1b[3;5Hx"}, "\x1b[?1049h\x1b[?25l" + begin + "\x1b[3H    x\x1b[m" + end + "\x1b[3;6H", ""},
		// A window less high shows what is around the cursor.
		{joblet.WindowSize{Rows: 2, Columns: 20}, []string{"1\r\n2\r\n3\r\n4"}, begin + "\x1b[1H3\x1b[m\x1b[2H4\x1b[m" + end + "\x1b[2;2H", ""},
	} {
		got, rest := draw(test.window, test.pieces...)
		if got != test.want || rest != test.rest {
			t.Errorf("%q: painted %q, then %q\nwant %q, then %q", test.pieces, got, rest, test.want, test.rest)
		}
	}
	// Anything may come, cut anywhere.
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		junk := make([]byte, 4096)
		for i := range junk {
			if junk[i] = byte(rng.IntN(256)); rng.IntN(3) == 0 {
				junk[i] = "\x1b[];?0123456789hlHJKmrPM\x9b\x90"[rng.IntN(26)]
			}
		}
		draw(window, string(junk))
	}
}
