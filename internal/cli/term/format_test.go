package term

import (
	"testing"
	"time"

	"github.com/joblet/joblet"
)

func TestFormats(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		123456: "123µs", 4567 * time.Microsecond: "5ms", 59 * time.Second: "59s", 192 * time.Second: "3m12s",
		125 * time.Minute: "2h5m", 99 * time.Hour: "4d3h",
	} {
		if got := FormatDuration(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	for d, want := range map[time.Duration]string{
		-time.Hour: "now", time.Millisecond: "now", 2 * time.Second: "in 2s", 90 * time.Second: "in 1m30s", 5 * time.Minute: "in 5m",
		2 * time.Hour: "in 2h", 125 * time.Minute: "in 2h5m", 48 * time.Hour: "2026-01-04 03:04:05",
	} {
		if got := FormatDue(now.Add(d), now); got != want {
			t.Errorf("due in %v: got %s, want %s", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 12 << 20: "12 MiB", 1 << 50: "1024 TiB"} {
		if got := joblet.ReadableSize(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("plain")
	f.Add("a\x1b]0;x\a\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		p := joblet.Printable(s)
		for _, r := range p {
			if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\u202e' {
				t.Fatalf("%q gives %q", s, p)
			}
		}
	})
}
