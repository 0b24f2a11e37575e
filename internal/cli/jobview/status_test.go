package jobview

import (
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet"
)

func TestStatusText(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	status := func(j joblet.Job) string {
		var b strings.Builder
		if err := WriteStatus(&b, false, j, now); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	tests := map[string]struct {
		job   joblet.Job
		want  []string
		never []string
	}{
		"failed": {
			joblet.Job{
				ID: "11111111-a", State: joblet.Failed, Reason: "bad\x1b[0m", Exit: &joblet.Exit{Signal: 11}, LogBytes: 2048, WorkBytes: 4096,
				Spec: joblet.Spec{Command: "x", SecretEnv: map[string]string{"TOKEN": "hunter2"}},
			},
			[]string{
				"Status:     FAILED (killed by SIGSEGV)\n", "Note:       abort() and a failed assertion of PID 1 end it like this too; with --init it is SIGABRT\n", `bad\x1b[0m`, "TOKEN=***", "Output:     2.0 KiB\n", "Files:      4.0 KiB in /work\n",
				"Next:       rnx job log 11111111, rnx job cp 11111111:. DIRECTORY, rnx job rerun 11111111, rnx job delete 11111111\n",
			},
			[]string{"hunter2", "Attempt:", "Labels:", "Stdin:"},
		},
		"everything": {
			joblet.Job{
				ID: "11111111-a", State: joblet.Completed, Exit: &joblet.Exit{}, Attempt: 2, LogBytes: 3 << 20,
				Started: now.Add(-2 * time.Minute), Ended: now.Add(-time.Minute), Scheduled: now.Add(-time.Hour), Parent: "33333333-b",
				Past: []joblet.Attempt{{
					State: joblet.Failed, Exit: &joblet.Exit{Code: 3}, Started: now.Add(-4 * time.Minute), Ended: now.Add(-3 * time.Minute), Reason: "why",
				}},
				Spec: joblet.Spec{
					Command: "x", Labels: map[string]string{"team": "a", "b": ""}, Priority: 5, IdempotencyKey: "k1", DependsOn: []string{"aa", "bb"},
					Retries: 3, RetryOn: []int{3, 1, 2, 9}, Stdin: joblet.StdinFile, Uploads: []string{"data", "x.csv"}, LogMax: 1 << 20,
				},
			},
			[]string{
				"Label:      b=\nLabel:      team=a\n", "Priority:   5\n", "Key:        k1\n", "Depends on: aa bb\n", "Parent:     33333333-b\n",
				"Retry:      up to 3 times, after 1s, doubled each time, on status 1-3,9\n", "Stdin:      sent along", "Uploads:    data x.csv\n",
				"Attempt:    1: FAILED (exit code 3), 2026-01-02 03:00:05, 1m0s, why\nAttempt:    2: COMPLETED (exit code 0), 2026-01-02 03:02:05, 1m0s\n",
				"Output:     3.0 MiB, the newest 1.0 MiB kept\n",
				"Next:       rnx job log 11111111, rnx job delete 11111111\n",
			},
			nil,
		},
		"denied calls": {
			joblet.Job{
				ID: "11111111-a", State: joblet.Completed, Exit: &joblet.Exit{}, Spec: joblet.Spec{Command: "x", Security: joblet.Security{Profile: joblet.ProfileStrict, LogDenied: true}},
				Denied: []joblet.DeniedCall{
					{Call: "ptrace", Errno: "EPERM", Count: 12, Remedy: joblet.RemedyAllow}, {Call: "socket", Argument: "AF_ALG", Errno: "EAFNOSUPPORT", Count: 2},
					{Call: "mount", Errno: "EPERM", Count: 1, Remedy: joblet.RemedyNested}, {Call: "kill", Errno: "EPERM", Count: 1, Remedy: joblet.RemedyDeny},
				},
			},
			[]string{
				"Security:   --security=strict --log-denied\n",
				"Denied:     ptrace: 12 × EPERM, allowed by \"allow ptrace\" in a --security=FILE\nDenied:     socket(AF_ALG): 2 × EAFNOSUPPORT, no profile allows it\n",
				"Denied:     mount: 1 × EPERM, allowed by --security=nested\nDenied:     kill: 1 × EPERM, its own profile says \"deny kill\"\n",
			},
			nil,
		},
		"repeats": {
			joblet.Job{
				ID: "11111111-a", State: joblet.Scheduled, Scheduled: now.Add(90 * time.Second),
				Spec: joblet.Spec{Command: "x", Schedule: "0 3 * * *", Overlap: joblet.OverlapQueue},
			},
			[]string{
				"Schedule:   0 3 * * * (a run that is due too early waits)\n", "Next run:   2026-01-02 03:05:35 (in 1m30s)\n",
				"Next:       rnx job list --parent=11111111, rnx job cancel 11111111\n",
			},
			nil,
		},
		"was due": {
			joblet.Job{ID: "11111111-a", State: joblet.Running, Scheduled: now.Add(-time.Hour), Started: now, Spec: joblet.Spec{Command: "x"}},
			[]string{"Was due:    2026-01-02 02:04:05\n", "Next:       rnx job log -f 11111111, rnx job stop 11111111\n"},
			nil,
		},
		"waits": {
			joblet.Job{ID: "11111111-a", State: joblet.Pending, Reason: "waits for a place", Spec: joblet.Spec{Command: "x"}},
			[]string{"Status:     PENDING\nReason:     waits for a place\n", "Next:       rnx job wait 11111111, rnx job cancel 11111111\n"},
			nil,
		},
		"could not be run": {
			joblet.Job{ID: "11111111-a", State: joblet.Failed, Failure: joblet.CommandNotFound, Spec: joblet.Spec{Command: "x"}},
			[]string{"Status:     FAILED (could not be run: command not found)\n"},
			nil,
		},
	}
	for name, tt := range tests {
		got := status(tt.job)
		for _, want := range tt.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", name, want, got)
			}
		}
		for _, never := range tt.never {
			if strings.Contains(got, never) {
				t.Errorf("%s: %q in\n%s", name, never, got)
			}
		}
	}
}
