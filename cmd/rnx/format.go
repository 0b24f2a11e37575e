package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/joblet/joblet"
)

// printable returns s with everything that a terminal might obey, or that is
// not UTF-8, escaped as Go does it: a job's name or command line must not move
// the cursor.
func printable(s string) string {
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

// cut shortens s to n runes, the last one then being "…".
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	runes := []rune(s)
	return string(runes[:max(0, n-1)]) + "…"
}

// terminalWidth returns the columns of the terminal that w is, or 0.
func terminalWidth(w io.Writer) int {
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

// writeTable prints rows in columns as wide as their content. With a width
// the last column gets what is left of it, but some.
func writeTable(w io.Writer, width int, rows [][]string) error {
	if len(rows) == 0 {
		return nil
	}
	last := len(rows[0]) - 1
	widths := make([]int, last)
	used := 0
	for c := range widths {
		for _, row := range rows {
			widths[c] = max(widths[c], utf8.RuneCountInString(row[c]))
		}
		used += widths[c] + 2
	}
	var b strings.Builder
	for _, row := range rows {
		for c := range widths {
			b.WriteString(row[c])
			for range widths[c] - utf8.RuneCountInString(row[c]) + 2 {
				b.WriteByte(' ')
			}
		}
		text := row[last]
		if width > 0 {
			text = cut(text, max(minLastColumn, width-used))
		}
		b.WriteString(text)
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// formatDuration shows three digits or two units: 1.23s, 45s, 3m12s, 2h5m, 4d3h.
func formatDuration(d time.Duration) string {
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

// jobDuration is how long the job ran, so far or in all.
func jobDuration(j joblet.Job, now time.Time) string {
	switch {
	case j.Started.IsZero():
		return "-"
	case !j.Ended.IsZero():
		return formatDuration(j.Ended.Sub(j.Started))
	case j.State.Alive():
		return formatDuration(now.Sub(j.Started))
	}
	return "-"
}

// formatBytes shows 1023 B, 1.0 KiB, 12 MiB.
func formatBytes(n int64) string {
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

// exitText is a job's end as a shell shows it, or "-".
func exitText(j joblet.Job) string {
	if status, ended := jobStatus(j); ended && (j.Exit != nil || j.State == joblet.TimedOut) {
		return strconv.Itoa(status)
	}
	return "-"
}

// jobStatus returns the status that rnx gives for a job that has ended.
func jobStatus(j joblet.Job) (status int, ended bool) {
	switch {
	case !j.State.Final():
		return 0, false
	case j.State == joblet.TimedOut:
		return joblet.StatusTimeout, true
	case j.State == joblet.Lost || j.Exit == nil:
		return joblet.StatusFailure, true
	}
	return j.Exit.Status(), true
}

// jobJSON is a job as --json shows it.
type jobJSON struct {
	UUID       string            `json:"uuid"`
	Name       string            `json:"name,omitempty"`
	Status     joblet.State      `json:"status"`
	Command    string            `json:"command"`
	Args       []string          `json:"args"`
	Runtime    string            `json:"runtime,omitempty"`
	WorkDir    string            `json:"work_dir,omitempty"`
	Env        map[string]string `json:"environment,omitempty"`
	SecretEnv  map[string]string `json:"secret_environment,omitempty"`
	TimeoutMS  int64             `json:"timeout_ms,omitempty"`
	Init       bool              `json:"init,omitempty"`
	Owner      string            `json:"owner"`
	Created    time.Time         `json:"created_time,omitzero"`
	Started    time.Time         `json:"start_time,omitzero"`
	Ended      time.Time         `json:"end_time,omitzero"`
	ExitCode   *int              `json:"exit_code"`        // as a shell shows it; null until it has ended
	Signal     int               `json:"signal,omitempty"` // that ended it
	Reason     string            `json:"reason,omitempty"`
	HostPID    int               `json:"host_pid,omitempty"`
	LogBytes   int64             `json:"log_bytes"`
	DurationMS int64             `json:"duration_ms,omitempty"`
}

func newJobJSON(j joblet.Job) jobJSON {
	out := jobJSON{
		UUID: j.ID, Name: j.Spec.Name, Status: j.State, Command: j.Spec.Command, Args: j.Spec.Args,
		Runtime: j.Spec.Runtime, WorkDir: j.Spec.WorkDir, Env: j.Spec.Env, SecretEnv: j.Spec.Redacted().SecretEnv,
		TimeoutMS: j.Spec.Timeout.Milliseconds(), Init: j.Spec.Init, Owner: j.Owner,
		Created: j.Created, Started: j.Started, Ended: j.Ended,
		Reason: j.Reason, HostPID: j.PID, LogBytes: j.LogBytes,
	}
	if out.Args == nil {
		out.Args = []string{}
	}
	if status, ended := jobStatus(j); ended {
		out.ExitCode = &status
	}
	if j.Exit != nil {
		out.Signal = j.Exit.Signal
	}
	if !j.Started.IsZero() && !j.Ended.IsZero() {
		out.DurationMS = j.Ended.Sub(j.Started).Milliseconds()
	}
	return out
}
