package session

import (
	"testing"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cli/app"
)

func TestVerdict(t *testing.T) {
	t.Parallel()
	job := func(s joblet.State, e *joblet.Exit, reason string) joblet.Job {
		return joblet.Job{ID: "12345678-x", State: s, Exit: e, Reason: reason, Spec: joblet.Spec{Timeout: time.Second}}
	}
	failed := func(k joblet.Kind, reason string) joblet.Job {
		j := job(joblet.Failed, nil, reason)
		j.Failure = k
		return j
	}
	for _, tt := range []struct {
		job    joblet.Job
		status int
		text   string
	}{
		{job(joblet.Completed, &joblet.Exit{}, ""), 0, ""},
		{job(joblet.Failed, &joblet.Exit{Code: 3}, ""), 3, ""},
		{job(joblet.Failed, &joblet.Exit{Signal: 9}, ""), 137, ""},
		{job(joblet.Failed, &joblet.Exit{Signal: 9}, "out of memory"), 137, "job 12345678: out of memory"},
		{job(joblet.Stopped, &joblet.Exit{Signal: 15}, ""), 143, ""},
		{job(joblet.TimedOut, &joblet.Exit{Signal: 9}, ""), 124, "job 12345678: timed out after 1s"},
		{job(joblet.Lost, nil, "its shim was killed"), 125, "job 12345678: its shim was killed"},
		{job(joblet.Canceled, nil, ""), 125, "job 12345678 was canceled before it ran"},
		{job(joblet.Canceled, nil, "canceled by uid:0"), 125, "job 12345678: canceled by uid:0"},
		{failed(joblet.CommandNotFound, "no such command: x"), 127, "job 12345678: no such command: x"},
		{failed(joblet.NotExecutable, ""), 126, "job 12345678 could not be run: not executable"},
		{failed(joblet.Internal, ""), 125, "job 12345678 could not be run"},
		{job(joblet.Running, nil, ""), 125, "job 12345678 is RUNNING at the end of its output"},
	} {
		status, err := verdict(tt.job)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if status != tt.status || text != tt.text {
			t.Errorf("%v %v: got %d %q", tt.job.State, tt.job.Exit, status, text)
		}
	}
	for kind, want := range map[joblet.Kind]int{joblet.CommandNotFound: 127, joblet.NotExecutable: 126, joblet.NotFound: 125, joblet.Internal: 125} {
		if got := app.RunStatus(joblet.Errorf(kind, "x")); got != want {
			t.Errorf("%v: got %d", kind, got)
		}
	}
}
