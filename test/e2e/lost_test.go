package e2e

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

// TestLostRetry: a job whose shim is killed runs again if it was asked for, and
// nothing of its lost attempt does.
func TestLostRetry(t *testing.T) {
	t.Parallel()
	for i, tt := range []struct {
		name      string
		flags     []string
		daemonToo bool
		kills     int
		state     joblet.State
		attempts  int
	}{
		{"asked for", []string{"--retry=2", "--retry-on=lost"}, false, 1, joblet.Completed, 2},
		{"beside statuses", []string{"--retry=2", "--retry-on=75,lost"}, false, 1, joblet.Completed, 2},
		{"with the daemon", []string{"--retry=2", "--retry-on=lost"}, true, 1, joblet.Completed, 2},
		{"twice", []string{"--retry=2", "--retry-on=LOST"}, false, 2, joblet.Completed, 3},
		{"used up", []string{"--retry=1", "--retry-on=lost"}, false, 2, joblet.Lost, 2},
		{"with a reaper", []string{"--init", "--retry=1", "--retry-on=lost"}, false, 1, joblet.Completed, 2},
		{"not asked for", []string{"--retry=2"}, false, 1, joblet.Lost, 1},
		{"statuses alone", []string{"--retry=2", "--retry-on=1-255"}, false, 1, joblet.Lost, 1},
		{"not asked for, with the daemon", []string{"--retry=2"}, true, 1, joblet.Lost, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t)
			nap := fmt.Sprint(1000000*(i+1) + os.Getpid()) // a number that no other job sleeps for
			script := fmt.Sprintf(`echo attempt $JOBLET_ATTEMPT; [ $JOBLET_ATTEMPT -gt %d ] && until [ -e /tmp/end ]; do sleep 0.05; done && exit; (setsid sleep %s &); sleep %[2]s`, tt.kills, nap)
			id := d.detach(t, append(append([]string{"--name=lost", "--retry-delay=100ms"}, tt.flags...), "bash", "-c", script)...)
			want := ""
			begins := func(attempt int) {
				t.Helper()
				want += fmt.Sprintf("attempt %d\n", attempt)
				if !d.wrote(t, id, want) {
					t.Fatalf("attempt %d does not begin: %v", attempt, d.rnx(t.Context(), "job", "status", id))
				}
			}
			begins(1)
			for kill := range tt.kills {
				d.becomes(t, id, joblet.Running)
				pid := d.shimOf(t, id)
				if tt.daemonToo {
					d.kill(t)
				}
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if tt.daemonToo {
					if err := d.start(); err != nil {
						t.Fatal(err)
					}
				}
				if kill+1 < tt.attempts {
					begins(kill + 2)
					if kill+1 == tt.kills && running("sleep\x00"+nap+"\x00") {
						t.Error("the lost attempt runs beside the next")
					}
				}
			}
			if tt.state == joblet.Completed {
				d.rnx(patient(t), "job", "exec", id, "touch", "/tmp/end") // which may end with the job
			}
			job := d.ends(t, id, tt.state)
			if job.Attempt != tt.attempts || len(job.Past) != tt.attempts-1 {
				t.Errorf("attempt %d after %d", job.Attempt, len(job.Past))
			}
			for _, past := range job.Past {
				if past.State != joblet.Lost || past.Exit != nil || past.Reason == "" {
					t.Errorf("a past attempt: %+v", past)
				}
			}
		})
	}
	t.Run("an exit status", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		for flag, attempts := range map[string]int{"lost": 1, "lost,3": 2} {
			id := d.detach(t, "--retry=1", "--retry-delay=1ms", "--retry-on="+flag, "sh", "-c", "exit 3")
			if job := d.ends(t, id, joblet.Failed); job.Attempt != attempts {
				t.Errorf("--retry-on=%s: %d attempts", flag, job.Attempt)
			}
		}
	})
	t.Run("shown and run again", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		id := d.detach(t, "--retry=2", "--retry-on=lost,75", "true")
		d.ends(t, id, joblet.Completed)
		again := strings.TrimSpace(d.rnx(t.Context(), "job", "rerun", id).stdout)
		for _, id := range []string{id, again} {
			d.says(t, 0, `(?s).*, on status 75 and when lost\n.*`, ``, "job", "status", id)
			d.says(t, 0, `(?s).*"retry_on":\[75\],"retry_on_lost":true.*`, ``, "job", "status", "--json", id)
		}
		d.says(t, 125, ``, `rnx: --retry-on: "lots" is not a list of exit statuses: .* or "lost"\n`, "job", "run", "--retry=1", "--retry-on=lots", "true")
		d.says(t, 125, ``, `rnx: .* need --retry=N\n`, "job", "run", "--retry-on=lost", "true")
	})
}

// TestWaitingSaid: without a terminal, too, rnx says once that and why a job waits.
func TestWaitingSaid(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "--max-concurrent=1")
	d.says(t, 0, `at once\n`, ``, "job", "run", "echo", "at once")
	d.says(t, 0, `at once\n`, ``, "job", "run", "--idempotency-key=k", "echo", "at once")
	d.says(t, 1, `12`, ``, "job", "run", "--retry=1", "--retry-delay=50ms", "sh", "-c", `printf $JOBLET_ATTEMPT; exit 1`)
	first := d.detach(t, "sh", "-c", "until [ -e /tmp/end ]; do sleep 0.05; done")
	short := joblet.ShortID(first)
	var waiting sync.WaitGroup
	for _, tt := range []struct {
		stdout, stderr string
		args           []string
	}{
		{`place\n`, `rnx: job \S+ waits in the queue: 1 jobs run, which is the limit\n`, []string{"job", "run", "--label=w", "echo", "place"}},
		{`depends\n`, `rnx: job \S+ waits for ` + short + `\n`, []string{"job", "run", "--label=w", "--depends-on=" + first, "echo", "depends"}},
		{`(?s).*"waiting".*`, ``, []string{"--json", "job", "run", "--label=w", "echo", "json"}},
	} {
		waiting.Go(func() { d.says(t, 0, tt.stdout, tt.stderr, tt.args...) })
	}
	if !eventually(patience, func() bool { return len(d.ids(t, "--label=w")) == 3 }) {
		t.Error("not all wait")
	}
	d.rnx(patient(t), "job", "exec", first, "touch", "/tmp/end") // which may end with the job
	waiting.Wait()
	d.says(t, 0, `(?s).*--timeout .*SIGTERM .* SIGKILL 10s later.*`, ``, "job", "run", "--help")
}
