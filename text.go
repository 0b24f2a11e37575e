package joblet

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Printable returns s with everything that a terminal might obey, or that is not UTF-8,
// escaped as Go does it: a name or a command line must not move the cursor.
func Printable(s string) string {
	if isPrintable(s) {
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

// PrintableStart is Printable of the first most characters of s, with "…" behind them if
// there are more.
func PrintableStart(s string, most int) string {
	n := 0
	for i := range s {
		if n++; n > most {
			return Printable(s[:i]) + "…"
		}
	}
	return Printable(s)
}

func isPrintable(s string) bool {
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// ReadableDuration shows a duration to people, exactly: 1m, 2h5m, 1h0m3s.
func ReadableDuration(d time.Duration) string {
	text := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if whole, ok := strings.CutSuffix(text, zero); ok {
			text = whole + zero[:1]
		}
	}
	return text
}

// ParseDuration reads a duration of zero or more as time.ParseDuration does, and in days
// and weeks: "90s", "2h30m", "3d", "1w2d".
func ParseDuration(s string) (time.Duration, error) {
	bad := Errorf(InvalidArgument, "%.40q is not a valid duration; examples: 90s, 2h30m, 3d", s)
	rest, total := s, time.Duration(0)
	for _, unit := range []struct {
		letter string
		span   time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		number, after, ok := strings.Cut(rest, unit.letter)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 63)
		if err != nil || n > uint64(math.MaxInt64/4/unit.span) {
			return 0, bad
		}
		total += time.Duration(n) * unit.span
		rest = after
	}
	if rest != "" || s == "" {
		d, err := time.ParseDuration(rest)
		if err != nil || d < 0 || d > math.MaxInt64/4 {
			return 0, bad
		}
		total += d
	}
	return total, nil
}

// ReadableSize shows a number of bytes to people: 1023 B, 1.0 KiB, 12 MiB. It rounds:
// FormatSize does not.
func ReadableSize(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), 0
	for v >= 1024 && unit < 4 {
		v /= 1024
		unit++
	}
	if v < 10 {
		return fmt.Sprintf("%.1f %ciB", v, "KMGT"[unit-1])
	}
	return fmt.Sprintf("%.0f %ciB", v, "KMGT"[unit-1])
}
