package term

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/joblet/joblet"
)

// FormatTime shows a time in the local zone, or "-" if it is zero.
func FormatTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// FormatDuration shows three digits or two units: 1.23s, 45s, 3m12s, 2h5m, 4d3h.
func FormatDuration(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 24*time.Hour:
		d = d.Round(time.Minute)
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		d = d.Round(time.Hour)
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	}
}

// FormatDue says when something is going to happen: "in 5m", "in 2h5m", or the
// time when that is more than a day away.
func FormatDue(t, now time.Time) string {
	d := t.Sub(now).Round(time.Second)
	switch {
	case t.IsZero():
		return "-"
	case d <= 0:
		return "now"
	case d >= 24*time.Hour:
		return FormatTime(t)
	}
	if d >= time.Hour {
		d = d.Round(time.Minute)
	}
	return "in " + joblet.ReadableDuration(d)
}

// FormatPercent shows 12.3%.
func FormatPercent(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) + "%" }

// FormatRate shows bytes per second.
func FormatRate(v float64) string { return joblet.ReadableSize(int64(v)) + "/s" }

// FormatCount shows a plain number.
func FormatCount(n int64) string { return strconv.FormatInt(n, 10) }

// Width returns the columns of the terminal that w is, or 0.
func Width(w io.Writer) int {
	width, _ := Size(w)
	return width
}

// Colors reports whether w is a terminal that shows colors, and the environment does not
// object to them: https://no-color.org.
func Colors(w io.Writer) bool {
	return IsTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// Color is the parameter of the escape sequence that sets a color (SGR).
type Color int

// The colors of text.
const (
	Red     Color = 31
	Green   Color = 32
	Yellow  Color = 33
	Blue    Color = 34
	Magenta Color = 35
	Cyan    Color = 36
)

// Paint returns text in a color; 0: as it is.
func (c Color) Paint(text string) string {
	if c == 0 {
		return text
	}
	return "\x1b[" + strconv.Itoa(int(c)) + "m" + text + "\x1b[m"
}
