package jobview

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet"
)

// TestJobJSON: all that a job has is there, secrets without their values.
func TestJobJSON(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	text, err := json.Marshal(NewJSON(joblet.Job{
		ID: "i", State: joblet.Failed, Failure: joblet.CommandNotFound, Scheduled: now, Parent: "p", Attempt: 2, WorkBytes: 5,
		Past:   []joblet.Attempt{{Started: now, Ended: now, State: joblet.Failed, Exit: &joblet.Exit{Signal: 9}, Reason: "oom"}},
		Denied: []joblet.DeniedCall{{Call: "mount", Errno: "EPERM", Count: 3, Remedy: joblet.RemedyNested}},
		Spec: joblet.Spec{
			Command: "x", Labels: map[string]string{"l": "v"}, Schedule: "0 3 * * *", Overlap: joblet.OverlapSkip, Retries: 3, RetryDelay: time.Second, RetryOn: []int{1},
			DependsOn: []string{"d"}, Priority: 7, IdempotencyKey: "k", Stdin: joblet.StdinFile, Uploads: []string{"u"}, LogMax: 1 << 20, SecretEnv: map[string]string{"T": "hunter2"},
		},
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"labels":{"l":"v"}`, `"schedule":"0 3 * * *"`, `"overlap":"skip"`, `"scheduled_time":"2026-01-02T03:04:05Z"`, `"parent":"p"`, `"attempt":2`,
		`"past":[{"status":"FAILED","start_time":"2026-01-02T03:04:05Z","end_time":"2026-01-02T03:04:05Z","exit_code":137,"signal":9,"reason":"oom"}]`,
		`"retries":3`, `"retry_delay_ms":1000`, `"retry_on":[1]`, `"depends_on":["d"]`, `"priority":7`, `"idempotency_key":"k"`, `"stdin":"file"`,
		`"uploads":["u"]`, `"log_max_bytes":1048576`, `"work_bytes":5`, `"failure":"command not found"`, `"exit_code":127`, `"secret_environment":{"T":"***"}`,
		`"denied":[{"call":"mount","errno":"EPERM","count":3,"remedy":"nested"}]`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}

func TestWaitingNote(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	failed := func(e *joblet.Exit) joblet.Attempt { return joblet.Attempt{State: joblet.Failed, Exit: e} }
	soon := now.Add(2 * time.Second)
	spec := joblet.Spec{Retries: 3}
	for i, tt := range []struct {
		job  joblet.Job
		want string
	}{
		{joblet.Job{State: joblet.Pending, Reason: "busy\x1b"}, `job 3f2a waits: busy\x1b`},
		{joblet.Job{State: joblet.Pending, Reason: "waits for 1234"}, "job 3f2a waits for 1234"},
		{joblet.Job{State: joblet.Pending}, "job 3f2a waits in the queue"},
		{joblet.Job{State: joblet.Scheduled, Scheduled: soon}, "job 3f2a runs at 2026-01-02 03:04:07, in 2s"},
		{joblet.Job{State: joblet.Scheduled, Scheduled: now.Add(96 * time.Hour), Spec: joblet.Spec{Schedule: "0 3 * * *"}}, "job 3f2a runs next at 2026-01-06 03:04:05"},
		{joblet.Job{State: joblet.Scheduled, Scheduled: soon, Spec: spec, Attempt: 1, Past: []joblet.Attempt{failed(&joblet.Exit{Code: 3})}}, "job 3f2a: attempt 1 of 4 failed with status 3; next in 2s"},
		{joblet.Job{State: joblet.Scheduled, Scheduled: soon, Spec: spec, Attempt: 1, Exit: &joblet.Exit{Code: 3}}, "job 3f2a: attempt 1 of 4 failed with status 3; next in 2s"},
		{joblet.Job{State: joblet.Scheduled, Scheduled: now, Spec: spec, Attempt: 2, Past: []joblet.Attempt{failed(nil), failed(&joblet.Exit{Signal: 9})}}, "job 3f2a: attempt 2 of 4 was killed by SIGKILL; next now"},
		{joblet.Job{State: joblet.Scheduled, Scheduled: soon, Spec: spec, Attempt: 1, Past: []joblet.Attempt{{State: joblet.TimedOut, Exit: &joblet.Exit{Signal: 9}}}}, "job 3f2a: attempt 1 of 4 ran out of time; next in 2s"},
		{joblet.Job{State: joblet.Pending, Reason: "busy", Spec: spec, Attempt: 1, Past: []joblet.Attempt{failed(nil)}}, "job 3f2a waits: busy"},
	} {
		tt.job.ID = "3f2a"
		if got := WaitingNote(tt.job, now); got != tt.want {
			t.Errorf("%d: got %q, want %q", i, got, tt.want)
		}
	}
}
