package cli

import (
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
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
// the last column gets what is left of it, but some, for which the columns in
// drop are left out, one after the other, as long as they have to be.
func writeTable(w io.Writer, width int, rows [][]string, drop ...int) error {
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

// formatDue says when something is going to happen: "in 5m", "in 2h5m", or the
// time when that is more than a day away.
func formatDue(t, now time.Time) string {
	d := t.Sub(now).Round(time.Second)
	switch {
	case t.IsZero():
		return "-"
	case d <= 0:
		return "now"
	case d >= 24*time.Hour:
		return formatTime(t)
	}
	text := formatDuration(d)
	for _, zero := range []string{"m0s", "h0m"} {
		if whole, ok := strings.CutSuffix(text, zero); ok {
			text = whole + zero[:1]
		}
	}
	return "in " + text
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

// attempts returns all runs of a job that has been started, the latest one
// last.
func attempts(j joblet.Job) []joblet.Attempt {
	all := slices.Clone(j.Past)
	if j.Attempt > len(j.Past) {
		all = append(all, joblet.Attempt{Started: j.Started, Ended: j.Ended, State: j.State, Exit: j.Exit, Reason: j.Reason})
	}
	return all
}

// exitWords says how PID 1 ended, or "".
func exitWords(e *joblet.Exit) string {
	switch {
	case e == nil:
		return ""
	case e.Signal != 0:
		return "killed by " + signalName(e.Signal)
	}
	return fmt.Sprintf("exit code %d", e.Code)
}

// exitText is a job's end as a shell shows it, or "-".
func exitText(j joblet.Job) string {
	if status, ended := j.Status(); ended && (j.Exit != nil || j.State == joblet.TimedOut || notRun(j)) {
		return strconv.Itoa(status)
	}
	return "-"
}

// notRun reports whether the command of a FAILED job could not be executed.
func notRun(j joblet.Job) bool {
	return j.State == joblet.Failed && j.Exit == nil && (j.Failure == joblet.CommandNotFound || j.Failure == joblet.NotExecutable)
}

// jobJSON is a job as --json shows it, and what --format templates get. JSON texts are
// UTF-8: what is not has U+FFFD there, and stands in Base64 as well.
type jobJSON struct {
	UUID           string              `json:"uuid"`
	Name           string              `json:"name,omitempty"`
	Status         joblet.State        `json:"status"`
	Command        string              `json:"command"`
	Args           []string            `json:"args"`
	Runtime        string              `json:"runtime,omitempty"`
	WorkDir        string              `json:"work_dir,omitempty"`
	Env            map[string]string   `json:"environment,omitempty"`
	SecretEnv      map[string]string   `json:"secret_environment,omitempty"`
	TimeoutMS      int64               `json:"timeout_ms,omitempty"`
	Init           bool                `json:"init,omitempty"`
	Labels         map[string]string   `json:"labels,omitempty"`
	Owner          string              `json:"owner"`
	Created        time.Time           `json:"created_time,omitzero"`
	Started        time.Time           `json:"start_time,omitzero"` // of the latest attempt
	Ended          time.Time           `json:"end_time,omitzero"`
	ExitCode       *int                `json:"exit_code"`        // as a shell shows it; null until it has ended
	Signal         int                 `json:"signal,omitempty"` // that ended it
	Reason         string              `json:"reason,omitempty"`
	Failure        string              `json:"failure,omitempty"` // the kind of error for which it could not be run
	HostPID        int                 `json:"host_pid,omitempty"`
	LogBytes       int64               `json:"log_bytes"`
	LogMaxBytes    int64               `json:"log_max_bytes,omitempty"`
	WorkBytes      int64               `json:"work_bytes,omitempty"`
	DurationMS     int64               `json:"duration_ms,omitempty"`
	Schedule       string              `json:"schedule,omitempty"`
	Overlap        joblet.Overlap      `json:"overlap,omitempty"`
	Scheduled      time.Time           `json:"scheduled_time,omitzero"` // next, as long as it waits
	Parent         string              `json:"parent,omitempty"`
	Attempt        int                 `json:"attempt,omitempty"` // number of the latest
	Past           []attemptJSON       `json:"past,omitempty"`    // the attempts before that
	Retries        int                 `json:"retries,omitempty"`
	RetryDelayMS   int64               `json:"retry_delay_ms,omitempty"`
	RetryOn        []int               `json:"retry_on,omitempty"`
	RetryOnLost    bool                `json:"retry_on_lost,omitempty"`
	DependsOn      []string            `json:"depends_on,omitempty"`
	Priority       int                 `json:"priority,omitempty"`
	IdempotencyKey string              `json:"idempotency_key,omitempty"`
	Stdin          joblet.Stdin        `json:"stdin,omitempty"`
	Uploads        []string            `json:"uploads,omitempty"`
	Terminal       joblet.WindowSize   `json:"terminal,omitzero"` // its size at first
	MergeOutput    bool                `json:"merge_output,omitempty"`
	Warnings       []string            `json:"warnings,omitempty"` // on limits
	Limits         joblet.Limits       `json:"limits,omitzero"`
	Security       joblet.Security     `json:"security,omitzero"`
	OutOfMemory    bool                `json:"out_of_memory,omitempty"`
	Usage          *usageJSON          `json:"usage,omitempty"` // of the latest attempt, so far or in all
	Denied         []joblet.DeniedCall `json:"denied,omitempty"`
	Base64         *bytesJSON          `json:"base64,omitempty"`
}

// bytesJSON is what of a job is not UTF-8, exactly: lists as a whole, variables as
// NAME=VALUE.
type bytesJSON struct {
	Command   []byte   `json:"command,omitempty"`
	Args      [][]byte `json:"args,omitempty"`
	WorkDir   []byte   `json:"work_dir,omitempty"`
	Env       [][]byte `json:"environment,omitempty"`
	SecretEnv [][]byte `json:"secret_environment,omitempty"`
	Uploads   [][]byte `json:"uploads,omitempty"`
}

func newBytesJSON(s joblet.Spec) *bytesJSON {
	b := bytesJSON{
		Command: joblet.RawText(s.Command), Args: joblet.RawTexts(s.Args), WorkDir: joblet.RawText(s.WorkDir),
		Env: joblet.RawEnv(s.Env), SecretEnv: joblet.RawEnv(s.Redacted().SecretEnv), Uploads: joblet.RawTexts(s.Uploads),
	}
	if reflect.ValueOf(b).IsZero() {
		return nil
	}
	return &b
}

// usageJSON is what a job took. What the host does not count is 0.
type usageJSON struct {
	CPUUserMS   float64 `json:"cpu_user_ms"`
	CPUSystemMS float64 `json:"cpu_system_ms"`
	ThrottledMS float64 `json:"throttled_ms"` // it waited because its processor time was used up
	MemoryPeak  int64   `json:"memory_peak_bytes"`
	PIDsPeak    int     `json:"pids_peak"`
	ReadBytes   int64   `json:"read_bytes"`
	WriteBytes  int64   `json:"write_bytes"`
	ReadOps     int64   `json:"read_ops"`
	WriteOps    int64   `json:"write_ops"`

	CPUStallMS    float64 `json:"cpu_stall_ms"` // at least one process waited for it
	MemoryStallMS float64 `json:"memory_stall_ms"`
	IOStallMS     float64 `json:"io_stall_ms"`
}

func newUsageJSON(u joblet.Usage) *usageJSON {
	if u == (joblet.Usage{}) {
		return nil
	}
	v := makeUsageJSON(u)
	return &v
}

func makeUsageJSON(u joblet.Usage) usageJSON {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return usageJSON{
		CPUUserMS: ms(u.CPUUser), CPUSystemMS: ms(u.CPUSystem), ThrottledMS: ms(u.Throttled), MemoryPeak: u.MemoryPeak, PIDsPeak: u.PIDsPeak,
		ReadBytes: u.ReadBytes, WriteBytes: u.WriteBytes, ReadOps: u.ReadOps, WriteOps: u.WriteOps,
		CPUStallMS: ms(u.CPUStall), MemoryStallMS: ms(u.MemoryStall), IOStallMS: ms(u.IOStall),
	}
}

// attemptJSON is a run of a job that was followed by another.
type attemptJSON struct {
	Status   joblet.State `json:"status"`
	Started  time.Time    `json:"start_time,omitzero"`
	Ended    time.Time    `json:"end_time,omitzero"`
	ExitCode *int         `json:"exit_code"`
	Signal   int          `json:"signal,omitempty"`
	Reason   string       `json:"reason,omitempty"`
	Usage    *usageJSON   `json:"usage,omitempty"`
}

func newJobJSON(j joblet.Job) jobJSON {
	s := j.Spec
	out := jobJSON{
		UUID: j.ID, Name: s.Name, Status: j.State, Command: s.Command, Args: s.Args,
		Runtime: s.Runtime, WorkDir: s.WorkDir, Env: s.Env, SecretEnv: s.Redacted().SecretEnv,
		TimeoutMS: s.Timeout.Milliseconds(), Init: s.Init, Labels: s.Labels, Owner: j.Owner,
		Created: j.Created, Started: j.Started, Ended: j.Ended,
		Reason: j.Reason, HostPID: j.PID, LogBytes: j.LogBytes, LogMaxBytes: s.LogMax, WorkBytes: j.WorkBytes,
		Schedule: s.Schedule, Overlap: s.Overlap, Scheduled: j.Scheduled, Parent: j.Parent, Attempt: j.Attempt,
		Retries: s.Retries, RetryDelayMS: s.RetryDelay.Milliseconds(), RetryOn: s.RetryOn, RetryOnLost: s.RetryOnLost,
		DependsOn: s.DependsOn, Priority: s.Priority, IdempotencyKey: s.IdempotencyKey, Stdin: s.Stdin, Uploads: s.Uploads,
		Limits: s.Limits, Security: s.Security, OutOfMemory: j.OutOfMemory, Usage: newUsageJSON(j.Usage), Denied: j.Denied,
		Terminal: s.Terminal, MergeOutput: s.MergeOutput, Warnings: s.Warnings, Base64: newBytesJSON(s),
	}
	if out.Args == nil {
		out.Args = []string{}
	}
	if status, ended := j.Status(); ended {
		out.ExitCode = &status
	}
	if j.Exit != nil {
		out.Signal = j.Exit.Signal
	}
	if j.State == joblet.Failed && j.Exit == nil {
		out.Failure = j.Failure.String()
	}
	if !j.Started.IsZero() && !j.Ended.IsZero() {
		out.DurationMS = j.Ended.Sub(j.Started).Milliseconds()
	}
	for _, p := range j.Past {
		a := attemptJSON{Status: p.State, Started: p.Started, Ended: p.Ended, Reason: p.Reason, Usage: newUsageJSON(p.Usage)}
		if status, ended := (joblet.Job{State: p.State, Exit: p.Exit}).Status(); ended {
			a.ExitCode = &status
		}
		if p.Exit != nil {
			a.Signal = p.Exit.Signal
		}
		out.Past = append(out.Past, a)
	}
	return out
}
