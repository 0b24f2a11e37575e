package jobview

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cli/flags"
	"github.com/joblet/joblet/internal/cli/term"
)

// WaitingNote says what a job waits for.
func WaitingNote(j joblet.Job, now time.Time) string {
	runs := Attempts(j)
	switch {
	case j.State == joblet.Scheduled && len(runs) > 0:
		return fmt.Sprintf("job %s: attempt %d of %d %s; next %s", joblet.ShortID(j.ID),
			len(runs), max(len(runs), j.Spec.Retries)+1, attemptWords(runs[len(runs)-1]), term.FormatDue(j.Scheduled, now))
	case j.State == joblet.Scheduled:
		return ScheduledNote(j, now)
	}
	reason := cmp.Or(j.Reason, "waits in the queue")
	if !strings.HasPrefix(reason, "waits ") {
		reason = "waits: " + reason
	}
	return fmt.Sprintf("job %s %s", joblet.ShortID(j.ID), joblet.Printable(reason))
}

// ScheduledNote says when a job runs.
func ScheduledNote(j joblet.Job, now time.Time) string {
	verb := "runs"
	if j.Spec.Repeats() {
		verb = "runs next"
	}
	due := term.FormatDue(j.Scheduled, now)
	if at := term.FormatTime(j.Scheduled); at != due {
		due = "at " + at + ", " + due
	} else {
		due = "at " + at
	}
	return fmt.Sprintf("job %s %s %s", joblet.ShortID(j.ID), verb, due)
}

// attemptWords says how an attempt that is followed by another ended.
func attemptWords(a joblet.Attempt) string {
	switch {
	case a.State == joblet.TimedOut:
		return "ran out of time"
	case a.State == joblet.Lost:
		return "was lost"
	case a.Exit != nil && a.Exit.Signal != 0:
		return "was killed by " + flags.SignalName(a.Exit.Signal)
	case a.Exit != nil:
		return fmt.Sprintf("failed with status %d", a.Exit.Code)
	case a.Reason != "":
		return "failed: " + joblet.Printable(a.Reason)
	}
	return "failed"
}

// Duration is how long the job ran, so far or in all.
func Duration(j joblet.Job, now time.Time) string {
	switch {
	case j.Started.IsZero():
		return "-"
	case !j.Ended.IsZero():
		return term.FormatDuration(j.Ended.Sub(j.Started))
	case j.State.Alive():
		return term.FormatDuration(now.Sub(j.Started))
	}
	return "-"
}

// Attempts returns all runs of a job that has been started, the latest one
// last.
func Attempts(j joblet.Job) []joblet.Attempt {
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
		return "killed by " + flags.SignalName(e.Signal)
	}
	return fmt.Sprintf("exit code %d", e.Code)
}

// ExitText is a job's end as a shell shows it, or "-".
func ExitText(j joblet.Job) string {
	if status, ended := j.Status(); ended && (j.Exit != nil || j.State == joblet.TimedOut || notRun(j)) {
		return strconv.Itoa(status)
	}
	return "-"
}

// notRun reports whether the command of a FAILED job could not be executed.
func notRun(j joblet.Job) bool {
	return j.State == joblet.Failed && j.Exit == nil && (j.Failure == joblet.CommandNotFound || j.Failure == joblet.NotExecutable)
}

// stateColors are the colors of states.
var stateColors = map[joblet.State]term.Color{
	joblet.Pending: term.Cyan, joblet.Scheduled: term.Cyan, joblet.Initializing: term.Blue,
	joblet.Running: term.Yellow, joblet.Paused: term.Yellow, joblet.Stopping: term.Magenta,
	joblet.Completed: term.Green, joblet.Failed: term.Red, joblet.TimedOut: term.Red, joblet.Lost: term.Red,
	joblet.Stopped: term.Magenta, joblet.Canceled: term.Magenta,
}

// PaintState returns the name of a state in its color, and other text as it is.
func PaintState(name string) string {
	state, err := joblet.ParseState(name)
	if err != nil {
		return name
	}
	return stateColors[state].Paint(name)
}

// StateWords is the state with how the job came to its end.
func StateWords(j joblet.Job) string {
	words := exitWords(j.Exit)
	if words == "" && j.State == joblet.Failed {
		words = NotRunWords(j)
	}
	if words == "" {
		return j.State.String()
	}
	return j.State.String() + " (" + words + ")"
}

// NotRunWords says why a FAILED job without an exit could not be run.
func NotRunWords(j joblet.Job) string {
	if j.Failure == joblet.Internal {
		return "could not be run"
	}
	return "could not be run: " + j.Failure.String()
}

// limitWords are a job's limits, as flags.
func limitWords(l joblet.Limits) string {
	var words []string
	l.Each(func(name, value string) { words = append(words, "--"+name+"="+value) })
	return strings.Join(words, " ")
}

// securityWords are how far a job is shut in, as flags; a profile of the user's own
// as what it holds.
func securityWords(s joblet.Security) string {
	var words []string
	if s.Profile != "" {
		words = append(words, "--security="+string(s.Profile))
	}
	if s.User != "" {
		words = append(words, "--user="+s.User)
	}
	for _, list := range []struct {
		word  string
		names []string
	}{{"--cap-add=", s.CapAdd}, {"--cap-drop=", s.CapDrop}, {"allow ", s.AllowCalls}, {"deny ", s.DenyCalls}} {
		if len(list.names) > 0 {
			words = append(words, list.word+strings.Join(list.names, ","))
		}
	}
	if s.LogDenied {
		words = append(words, "--log-denied")
	}
	return strings.Join(words, " ")
}

// DeniedWords is a kind of call that a job was refused, how often and with which
// error, and what would let the job make it.
func DeniedWords(c joblet.DeniedCall) string {
	call := c.Call
	if c.Argument != "" {
		call += "(" + c.Argument + ")"
	}
	var remedy string
	switch c.Remedy {
	case joblet.RemedyAllow:
		remedy = fmt.Sprintf(`allowed by "allow %s" in a --security=FILE`, c.Call)
		if slices.Contains(joblet.AdminCalls(), c.Call) {
			remedy += ", which takes the role admin"
		}
	case joblet.RemedyDeny:
		remedy = fmt.Sprintf(`its own profile says "deny %s"`, c.Call)
	case joblet.RemedyNested:
		remedy = "allowed by --security=nested"
	default:
		remedy = "no profile allows it"
	}
	return fmt.Sprintf("%s: %d × %s, %s", call, c.Count, c.Errno, remedy)
}
