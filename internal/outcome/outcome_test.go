package outcome

import (
	"testing"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/shim/protocol"
)

func TestConclude(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		state  joblet.State
		record *protocol.Record
		want   joblet.State
		status int
	}{
		{"success", joblet.Running, &protocol.Record{}, joblet.Completed, 0},
		{"failure", joblet.Running, &protocol.Record{Code: 3}, joblet.Failed, 3},
		{"signal", joblet.Running, &protocol.Record{Signal: 11}, joblet.Failed, 139},
		{"stop", joblet.Stopping, &protocol.Record{Signal: 15, Cause: protocol.CauseStop}, joblet.Stopped, 143},
		{"stop, noted by the shim alone", joblet.Running, &protocol.Record{Code: 1, Cause: protocol.CauseStop}, joblet.Stopped, 1},
		{"asked to stop and ended by itself", joblet.Stopping, &protocol.Record{Code: 1}, joblet.Stopped, 1},
		{"timeout", joblet.Running, &protocol.Record{Signal: 9, Cause: protocol.CauseTimeout}, joblet.TimedOut, 124},
		{"timeout before the stop", joblet.Stopping, &protocol.Record{Signal: 9, Cause: protocol.CauseTimeout}, joblet.TimedOut, 124},
		{"lost", joblet.Running, nil, joblet.Lost, 125},
		{"never run", joblet.Running, &protocol.Record{Failure: &protocol.Failure{IsExec: true, Errno: 2}}, joblet.Failed, 127},
		{"not executable", joblet.Running, &protocol.Record{Failure: &protocol.Failure{IsExec: true, Errno: 13}}, joblet.Failed, 126},
	} {
		job := joblet.Job{State: tt.state}
		Conclude(&job, tt.record, t.TempDir())
		status, ended := job.Status()
		if job.State != tt.want || status != tt.status || !ended {
			t.Errorf("%s: %v, status %d; want %v, %d", tt.name, job.State, status, tt.want, tt.status)
		}
		if !tt.state.MayBecome(job.State) {
			t.Errorf("%s: from %v to %v", tt.name, tt.state, job.State)
		}
	}
}

func TestRetry(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	failed := func(attempt, retries int, on ...int) joblet.Job {
		return joblet.Job{
			State: joblet.Failed, Attempt: attempt, Exit: &joblet.Exit{Code: 7},
			Spec: joblet.Spec{Retries: retries, RetryOn: on, RetryDelay: 100 * time.Second},
		}
	}
	for name, tt := range map[string]struct {
		job  joblet.Job
		want bool
	}{
		"none wanted":     {failed(1, 0), false},
		"first":           {failed(1, 1), true},
		"used up":         {failed(2, 1), false},
		"status listed":   {failed(1, 1, 3, 7), true},
		"status unlisted": {failed(1, 1, 3), false},
		"never run":       {joblet.Job{State: joblet.Failed, Attempt: 1, Spec: joblet.Spec{Retries: 5}}, false},
		"timeout":         {joblet.Job{State: joblet.TimedOut, Attempt: 1, Exit: &joblet.Exit{Signal: 9}, Spec: joblet.Spec{Retries: 5, RetryOn: []int{124}}}, true},
		"lost":            {joblet.Job{State: joblet.Lost, Attempt: 1, Spec: joblet.Spec{Retries: 1}}, false},
		"lost, status":    {joblet.Job{State: joblet.Lost, Attempt: 1, Spec: joblet.Spec{Retries: 1, RetryOn: []int{125}}}, false},
		"lost, asked for": {joblet.Job{State: joblet.Lost, Attempt: 1, Spec: joblet.Spec{Retries: 1, RetryOnLost: true}}, true},
		"lost, used up":   {joblet.Job{State: joblet.Lost, Attempt: 2, Spec: joblet.Spec{Retries: 1, RetryOnLost: true}}, false},
		"lost alone":      {joblet.Job{State: joblet.Failed, Attempt: 1, Exit: &joblet.Exit{Code: 7}, Spec: joblet.Spec{Retries: 1, RetryOnLost: true}}, false},
		"lost or status":  {joblet.Job{State: joblet.Failed, Attempt: 1, Exit: &joblet.Exit{Code: 7}, Spec: joblet.Spec{Retries: 1, RetryOn: []int{7}, RetryOnLost: true}}, true},
		"stopped":         {joblet.Job{State: joblet.Stopped, Attempt: 1, Exit: &joblet.Exit{Signal: 9}, Spec: joblet.Spec{Retries: 5}}, false},
	} {
		if got := Retries(tt.job); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	for attempt, want := range map[int]time.Duration{1: 100 * time.Second, 2: 200 * time.Second, 3: 300 * time.Second, 9: 300 * time.Second} {
		job := failed(attempt, 10)
		job.Ended = now
		Retry(&job)
		if job.State != joblet.Scheduled || job.Scheduled.Sub(now) != want || job.Exit != nil || len(job.Past) != 1 || job.Past[0].Exit.Code != 7 {
			t.Errorf("attempt %d: %+v", attempt, job)
		}
	}
}
