package jobview

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cli/flags"
	"github.com/joblet/joblet/internal/cli/term"
)

// WriteStatus writes the page of "rnx job status".
func WriteStatus(w io.Writer, j joblet.Job, now time.Time) error {
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-11s %s\n", name+":", joblet.Printable(value))
		}
	}
	number := func(name string, n int) {
		if n != 0 {
			line(name, strconv.Itoa(n))
		}
	}
	s := j.Spec
	line("Job", j.ID)
	line("Name", s.Name)
	line("Status", StateWords(j))
	line("Reason", j.Reason)
	line("Note", abortNote(j))
	line("Command", s.CommandLine())
	line("Runtime", s.Runtime)
	line("Work dir", s.WorkDir)
	if s.Timeout > 0 {
		line("Timeout", s.Timeout.String())
	}
	if s.Init {
		line("Init", "yes")
	}
	line("Limits", limitWords(s.Limits))
	for _, w := range s.Warnings {
		line("Warning", w)
	}
	line("Security", securityWords(s.Security))
	for _, name := range slices.Sorted(maps.Keys(s.Labels)) {
		line("Label", name+"="+s.Labels[name])
	}
	number("Priority", s.Priority)
	line("Key", s.IdempotencyKey)
	line("Depends on", strings.Join(s.DependsOn, " "))
	line("Schedule", scheduleWords(s))
	line("Parent", j.Parent)
	line("Retry", retryWords(s))
	line("Stdin", stdinWords(s.Stdin))
	if s.Terminal != (joblet.WindowSize{}) {
		line("Terminal", "yes")
	}
	if s.MergeOutput {
		line("Output", "merged")
	}
	line("Uploads", strings.Join(s.Uploads, " "))
	line("Owner", j.Owner)
	line("Created", term.FormatTime(j.Created))
	switch at := term.FormatTime(j.Scheduled); {
	case j.Scheduled.IsZero():
	case j.State == joblet.Scheduled:
		if due := term.FormatDue(j.Scheduled, now); due != at {
			at += " (" + due + ")"
		}
		line("Next run", at)
	case len(j.Past) == 0: // of another attempt the time says nothing
		line("Was due", at)
	}
	if runs := Attempts(j); len(runs) > 1 {
		for i, run := range runs {
			line("Attempt", attemptLine(i+1, run, now))
		}
	}
	if !j.Started.IsZero() {
		line("Started", term.FormatTime(j.Started))
	}
	if !j.Ended.IsZero() {
		line("Ended", term.FormatTime(j.Ended))
	}
	if d := Duration(j, now); d != "-" {
		line("Duration", d)
	}
	if j.PID != 0 && j.State.Alive() {
		line("Host PID", fmt.Sprint(j.PID))
	}
	if j.IDBase != 0 {
		line("Host ids", fmt.Sprintf("%d to %d", j.IDBase, j.IDBase+65535))
	}
	line("CPU", cpuWords(j.Usage))
	line("Memory", memoryWords(j))
	line("I/O", ioWords(j.Usage))
	if j.Usage.PIDsPeak > 0 {
		line("Processes", fmt.Sprintf("%d at most", j.Usage.PIDsPeak))
	}
	for _, c := range j.Denied {
		line("Denied", DeniedWords(c))
	}
	line("Output", outputWords(j))
	if j.WorkBytes > 0 {
		line("Files", joblet.ReadableSize(j.WorkBytes)+" in "+joblet.DefaultWorkDir)
	}
	for _, env := range []map[string]string{s.Env, s.Redacted().SecretEnv} {
		for _, name := range slices.Sorted(maps.Keys(env)) {
			line("Env", name+"="+env[name])
		}
	}
	line("Next", strings.Join(nextCommands(j), ", "))
	_, err := io.WriteString(w, b.String())
	return err
}

// abortNote tells of another cause that the signal of a PID 1 may have. The kernel
// ignores SIGABRT that PID 1 sends itself, and abort(3) goes on to an instruction that
// ends the process: SIGSEGV on amd64, SIGTRAP on arm64.
func abortNote(j joblet.Job) string {
	if j.Exit == nil || j.Spec.Init {
		return ""
	}
	switch flags.SignalName(j.Exit.Signal) {
	case "SIGSEGV", "SIGTRAP":
		return "abort() and a failed assertion of PID 1 end it like this too; with --init it is SIGABRT"
	}
	return ""
}

// cpuWords says how much processor time a job took.
func cpuWords(u joblet.Usage) string {
	if u.CPU() == 0 {
		return ""
	}
	text := fmt.Sprintf("%s (user %s, system %s)", term.FormatDuration(u.CPU()), term.FormatDuration(u.CPUUser), term.FormatDuration(u.CPUSystem))
	if u.Throttled > 0 {
		text += ", held back for " + term.FormatDuration(u.Throttled) + " by its limit"
	}
	return text
}

func memoryWords(j joblet.Job) string {
	if j.Usage.MemoryPeak == 0 {
		return ""
	}
	return joblet.ReadableSize(j.Usage.MemoryPeak) + " at most"
}

// ioWords says what a job read from and wrote to devices.
func ioWords(u joblet.Usage) string {
	if u.ReadOps+u.WriteOps+u.ReadBytes+u.WriteBytes == 0 {
		return ""
	}
	return fmt.Sprintf("read %s (%d operations), written %s (%d operations)", joblet.ReadableSize(u.ReadBytes), u.ReadOps, joblet.ReadableSize(u.WriteBytes), u.WriteOps)
}

func scheduleWords(s joblet.Spec) string {
	if s.Repeats() && s.Overlap == joblet.OverlapQueue {
		return s.Schedule + " (a run that is due too early waits)"
	}
	return s.Schedule
}

func retryWords(s joblet.Spec) string {
	if s.Retries == 0 {
		return ""
	}
	delay := s.RetryDelay
	if delay == 0 {
		delay = joblet.DefaultRetryDelay
	}
	text := fmt.Sprintf("up to %d times, after %v, doubled each time", s.Retries, delay)
	switch statuses := flags.FormatStatuses(slices.Sorted(slices.Values(s.RetryOn))); {
	case s.RetryOnLost && statuses != "":
		text += ", on status " + statuses + " and when lost"
	case s.RetryOnLost:
		text += ", when lost"
	case statuses != "":
		text += ", on status " + statuses
	}
	return text
}

func stdinWords(s joblet.Stdin) string {
	switch s {
	case joblet.StdinStream:
		return "from the caller that ran the job"
	case joblet.StdinFile:
		return "sent along with the job"
	}
	return ""
}

// attemptLine is one run of several.
func attemptLine(number int, a joblet.Attempt, now time.Time) string {
	text := fmt.Sprintf("%d: %v", number, a.State)
	if words := exitWords(a.Exit); words != "" {
		text += " (" + words + ")"
	}
	text += ", " + term.FormatTime(a.Started)
	if d := Duration(joblet.Job{State: a.State, Started: a.Started, Ended: a.Ended}, now); d != "-" {
		text += ", " + d
	}
	if a.Reason != "" {
		text += ", " + a.Reason
	}
	return text
}

// outputWords says how much the job wrote and how much of that can still be
// read.
func outputWords(j joblet.Job) string {
	limit := j.Spec.LogMax
	if limit == 0 {
		limit = joblet.DefaultLogMax
	}
	switch {
	case j.LogBytes > limit:
		return fmt.Sprintf("%s, the newest %s kept", joblet.ReadableSize(j.LogBytes), joblet.ReadableSize(limit))
	case j.Spec.LogMax != 0:
		return fmt.Sprintf("%s, at most %s are kept", joblet.ReadableSize(j.LogBytes), joblet.ReadableSize(limit))
	}
	return joblet.ReadableSize(j.LogBytes)
}

// nextCommands are what one may want to do with the job now.
func nextCommands(j joblet.Job) []string {
	id := joblet.ShortID(j.ID)
	switch {
	case j.Spec.Repeats() && !j.State.Final():
		return []string{"rnx job list --parent=" + id, "rnx job cancel " + id}
	case (j.State == joblet.Pending || j.State == joblet.Scheduled) && len(j.Past) == 0:
		return []string{"rnx job wait " + id, "rnx job cancel " + id}
	case j.State == joblet.Paused:
		return []string{"rnx job resume " + id, "rnx job stop " + id}
	case !j.State.Final():
		return []string{"rnx job log -f " + id, "rnx job stop " + id}
	case j.Spec.Repeats():
		return []string{"rnx job list --parent=" + id, "rnx job delete " + id}
	}
	next := []string{"rnx job log " + id}
	if j.WorkBytes > 0 {
		next = append(next, "rnx job cp "+id+":. DIRECTORY")
	}
	if j.State != joblet.Completed {
		next = append(next, "rnx job rerun "+id)
	}
	return append(next, "rnx job delete "+id)
}
