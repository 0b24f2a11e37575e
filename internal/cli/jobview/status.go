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
func WriteStatus(w io.Writer, colors bool, j joblet.Job, now time.Time) error {
	p := statusPage{job: j, now: now, colors: colors}
	p.spec()
	p.times()
	p.usage()
	for _, env := range []map[string]string{j.Spec.Env, j.Spec.Redacted().SecretEnv} {
		for _, name := range slices.Sorted(maps.Keys(env)) {
			p.line("Env", name+"="+env[name])
		}
	}
	p.line("Next", strings.Join(nextCommands(j), ", "))
	_, err := io.WriteString(w, p.text.String())
	return err
}

// statusPage is the page of a job, under construction.
type statusPage struct {
	job    joblet.Job
	now    time.Time
	colors bool
	text   strings.Builder
}

// line adds a line, unless the value is empty.
func (p *statusPage) line(name, value string) {
	if value == "" {
		return
	}
	value = joblet.Printable(value)
	if name == "Status" && p.colors {
		state, rest, _ := strings.Cut(value, " ")
		value = strings.TrimSuffix(PaintState(state)+" "+rest, " ")
	}
	fmt.Fprintf(&p.text, "%-11s %s\n", name+":", value)
}

// flag adds a line when something is set.
func (p *statusPage) flag(name, value string, set bool) {
	if set {
		p.line(name, value)
	}
}

// spec adds what the user asked for, and the state.
func (p *statusPage) spec() {
	j, s := p.job, p.job.Spec
	p.line("Job", j.ID)
	p.line("Name", s.Name)
	p.line("Status", StateWords(j))
	p.line("Reason", j.Reason)
	p.line("Note", abortNote(j))
	p.line("Command", s.CommandLine())
	p.line("Runtime", s.Runtime)
	p.line("Work dir", s.WorkDir)
	p.flag("Timeout", s.Timeout.String(), s.Timeout > 0)
	p.flag("Init", "yes", s.Init)
	p.line("Limits", limitWords(s.Limits))
	for _, w := range s.Warnings {
		p.line("Warning", w)
	}
	p.line("Security", securityWords(s.Security))
	for _, name := range slices.Sorted(maps.Keys(s.Labels)) {
		p.line("Label", name+"="+s.Labels[name])
	}
	p.flag("Priority", strconv.Itoa(s.Priority), s.Priority != 0)
	p.line("Key", s.IdempotencyKey)
	p.line("Depends on", strings.Join(s.DependsOn, " "))
	p.line("Schedule", scheduleWords(s))
	p.line("Parent", j.Parent)
	p.line("Retry", retryWords(s))
	p.line("Stdin", stdinWords(s.Stdin))
	p.flag("Terminal", "yes", s.Terminal != (joblet.WindowSize{}))
	p.flag("Output", "merged", s.MergeOutput)
	p.line("Uploads", strings.Join(s.Uploads, " "))
	p.line("Owner", j.Owner)
}

// times adds when the job was created and ran, and its attempts if there are several.
func (p *statusPage) times() {
	j := p.job
	p.line("Created", term.FormatTime(j.Created))
	switch at := term.FormatTime(j.Scheduled); {
	case j.Scheduled.IsZero():
	case j.State == joblet.Scheduled:
		if due := term.FormatDue(j.Scheduled, p.now); due != at {
			at += " (" + due + ")"
		}
		p.line("Next run", at)
	case len(j.Past) == 0: // of another attempt the time says nothing
		p.line("Was due", at)
	}
	if runs := Attempts(j); len(runs) > 1 {
		for i, run := range runs {
			p.line("Attempt", attemptLine(i+1, run, p.now))
		}
	}
	p.flag("Started", term.FormatTime(j.Started), !j.Started.IsZero())
	p.flag("Ended", term.FormatTime(j.Ended), !j.Ended.IsZero())
	d := Duration(j, p.now)
	p.flag("Duration", d, d != "-")
}

// usage adds what the job used, and where the host shows it.
func (p *statusPage) usage() {
	j := p.job
	p.flag("Host PID", strconv.Itoa(j.PID), j.PID != 0 && j.State.Alive())
	p.flag("Host ids", fmt.Sprintf("%d to %d", j.IDBase, j.IDBase+65535), j.IDBase != 0)
	p.line("CPU", cpuWords(j.Usage))
	p.line("Memory", memoryWords(j))
	p.line("I/O", ioWords(j.Usage))
	p.flag("Processes", fmt.Sprintf("%d at most", j.Usage.PIDsPeak), j.Usage.PIDsPeak > 0)
	for _, c := range j.Denied {
		p.line("Denied", DeniedWords(c))
	}
	p.line("Output", outputWords(j))
	p.flag("Files", joblet.ReadableSize(j.WorkBytes)+" in "+joblet.DefaultWorkDir, j.WorkBytes > 0)
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
