package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

// dial returns a client of the daemon, closed when the test ends.
func (d *daemon) dial(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), d.host())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// detach runs a job with "rnx job run -d" and returns its id.
func (d *daemon) detach(t *testing.T, args ...string) string {
	t.Helper()
	id := strings.TrimSpace(d.must(t, append([]string{"-d"}, args...)...))
	if !joblet.ValidID(id) {
		t.Fatalf("rnx job run -d %q printed %q", args, id)
	}
	return id
}

// get returns a job.
func (d *daemon) get(t *testing.T, id string) joblet.Job {
	t.Helper()
	c, err := client.Dial(t.Context(), d.host())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	job, err := c.Job(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return job
}

// await polls the job until ok, and fails the test when that takes too long.
func (d *daemon) await(t *testing.T, id, what string, ok func(joblet.Job) bool) (job joblet.Job) {
	t.Helper()
	if !eventually(patience, func() bool { job = d.get(t, id); return ok(job) }) {
		t.Fatalf("job %s is not %s: %+v", id, what, job)
	}
	return job
}

// wrote polls until the standard output of a job is this, and reports whether it became so.
func (d *daemon) wrote(t *testing.T, id, want string) bool {
	t.Helper()
	return eventually(patience, func() bool { return d.stdout(t, id) == want })
}

// stdout returns what a job has written to its standard output so far.
func (d *daemon) stdout(t *testing.T, id string) string {
	t.Helper()
	stdout, _ := d.output(t, id)
	return stdout
}

// output returns what a job has written so far, as far as the daemon answers. Unlike
// "rnx job log" it starts no program.
func (d *daemon) output(t *testing.T, id string) (stdout, stderr string) {
	t.Helper()
	c, err := client.Dial(t.Context(), d.host())
	if err != nil {
		return "", ""
	}
	defer c.Close()
	var out [2]strings.Builder
	for event, err := range c.Follow(t.Context(), id, joblet.LogOptions{}) {
		if err != nil {
			break
		}
		if o, ok := event.(client.Output); ok {
			out[o.Stream-client.Stdout].Write(o.Data)
		}
	}
	return out[0].String(), out[1].String()
}

// becomes polls until the job is in the state.
func (d *daemon) becomes(t *testing.T, id string, state joblet.State) joblet.Job {
	t.Helper()
	return d.await(t, id, state.String(), func(j joblet.Job) bool { return j.State == state })
}

// ends polls until the job has ended and checks how.
func (d *daemon) ends(t *testing.T, id string, state joblet.State) joblet.Job {
	t.Helper()
	job := d.await(t, id, "over", func(j joblet.Job) bool { return j.State.Final() })
	if job.State != state {
		t.Errorf("job %s (%s) ended as %v, want %v: %+v", joblet.ShortID(id), job.Spec.CommandLine(), job.State, state, job)
	}
	return job
}

// says runs rnx and checks its status, stdout and stderr (regular expressions
// over the whole of each).
func (d *daemon) says(t *testing.T, status int, stdout, stderr string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	r := d.rnx(ctx, args...)
	if r.status != status || !regexp.MustCompile(`^(?:`+stdout+`)$`).MatchString(r.stdout) || !regexp.MustCompile(`^(?:`+stderr+`)$`).MatchString(r.stderr) {
		t.Errorf("rnx %q: %v\nwant status %d, stdout %s, stderr %s", args, r, status, stdout, stderr)
	}
	return r
}

// ids returns what "rnx job list -q" prints with the flags.
func (d *daemon) ids(t *testing.T, flags ...string) []string {
	t.Helper()
	r := d.rnx(t.Context(), append([]string{"job", "list", "-q"}, flags...)...)
	if r.status != 0 || r.stderr != "" {
		t.Fatalf("rnx job list %q: %v", flags, r)
	}
	return strings.Fields(r.stdout)
}

// wasDue moves the time of a SCHEDULED job while no daemon runs, as if that had
// been away since then.
func (d *daemon) wasDue(t *testing.T, id string, at time.Time) {
	t.Helper()
	conn, err := sqlite.OpenConn(filepath.Join(d.state, "joblet.db"), sqlite.OpenReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = sqlitex.Execute(conn, `UPDATE job SET scheduled = ? WHERE id = ? AND state = 'SCHEDULED'`, &sqlitex.ExecOptions{Args: []any{at.UnixNano(), id}})
	if err != nil || conn.Changes() != 1 {
		t.Fatalf("%d rows changed: %v", conn.Changes(), err)
	}
}

// restart starts a daemon after the former one was killed.
func (d *daemon) restart(t *testing.T) {
	t.Helper()
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
}

func TestLifeSchedule(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	t.Run("a time from now", func(t *testing.T) {
		t.Parallel()
		before := time.Now()
		id := d.detach(t, "--schedule=+3s", "echo", "then")
		after := time.Now()
		job := d.get(t, id)
		if (job.State != joblet.Scheduled || job.Attempt != 0) && time.Now().Before(job.Scheduled) ||
			job.Scheduled.Before(before.Add(3*time.Second)) || job.Scheduled.After(after.Add(4*time.Second)) {
			t.Errorf("accepted at %v as %+v", before, job)
		}
		d.says(t, 0, `(?s).*\nStatus: +SCHEDULED\n.*\nNext run: +\d{4}-.* \(in [1-4]s\)\n.*|(?s).*\nStatus: +SCHEDULED\n.*\nNext run: +\d{4}-.* \(now\)\n.*`, ``, "job", "status", id)
		d.says(t, 0, "0\n", ``, "job", "wait", id)
		d.says(t, 0, "then\n", ``, "job", "log", id)
		if job := d.ends(t, id, joblet.Completed); job.Started.Before(job.Scheduled) || job.Started.After(job.Scheduled.Add(30*time.Second)) {
			t.Errorf("due at %v, started at %v", job.Scheduled, job.Started)
		}
	})
	t.Run("a time from now without a plus", func(t *testing.T) {
		t.Parallel()
		for text, ahead := range map[string]time.Duration{"30min": 30 * time.Minute, "1hour": time.Hour, "45s": 45 * time.Second, "2h30m": 150 * time.Minute, "1 hour 30 minutes 5 seconds": 90*time.Minute + 5*time.Second} {
			from := time.Now().Add(ahead)
			job := d.get(t, d.detach(t, "--schedule="+text, "true"))
			if to := time.Now().Add(ahead + time.Second); job.Scheduled.Before(from) || job.Scheduled.After(to) {
				t.Errorf("%s: due at %v, want %v to %v", text, job.Scheduled, from, to)
			}
		}
	})
	t.Run("a moment", func(t *testing.T) {
		t.Parallel()
		at := time.Now().Add(7 * time.Second).Truncate(time.Second).UTC()
		id := strings.TrimSpace(d.must(t, "--schedule="+at.Format(time.RFC3339), "true")) // detached without -d
		if job := d.get(t, id); !job.Scheduled.Equal(at) || job.State != joblet.Scheduled && time.Now().Before(at) {
			t.Errorf("%+v, want it due at %v", job, at)
		}
		// A follower waits with it.
		d.says(t, 0, ``, ``, "job", "log", "-f", id)
		if job := d.ends(t, id, joblet.Completed); job.Started.Before(at) {
			t.Errorf("due at %v, started at %v", at, job.Started)
		}
	})
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		for _, schedule := range []string{"2020-01-01T00:00:00Z", "2020-01-01 09:00", "+-1h", "61 * * * *", "* * * *", "0 0 31 2 *", "soon"} {
			d.says(t, 125, ``, `rnx: schedule ".*": .+\n`, "job", "run", "--schedule="+schedule, "true")
		}
		d.says(t, 125, ``, `rnx: schedule "2020-01-01T00:00:00Z": is in the past: .*\n`, "job", "run", "--schedule=2020-01-01T00:00:00Z", "true")
		d.says(t, 127, ``, `rnx: nope: .*\n|.*`, "job", "run", "nope")
		d.says(t, 125, ``, `rnx: .*nope.*\n`, "job", "run", "--schedule=+1h", "--runtime=nope", "true") // told now, not in an hour
	})
	t.Run("cancel", func(t *testing.T) {
		t.Parallel()
		id := d.detach(t, "--schedule=+1h", "true")
		d.says(t, 0, id+"\n", ``, "job", "cancel", id)
		job := d.ends(t, id, joblet.Canceled)
		if job.Reason != "it was canceled before it ran" || !job.Started.IsZero() || job.Attempt != 0 || job.Exit != nil {
			t.Errorf("%+v", job)
		}
		d.says(t, 125, "125\n", ``, "job", "wait", id)
		d.says(t, 1, ``, `rnx: job \S+ has ended: CANCELED\n`, "job", "cancel", id)
		running := d.detach(t, "sleep", "60")
		d.says(t, 1, ``, `rnx: job \S+ runs: only a job that waits can be canceled .*\n`, "job", "cancel", running)
	})
}

// TestLifeZones is about what TZ says here and CRON_TZ in a schedule.
func TestLifeZones(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	in := func(tz string, args ...string) result {
		cmd := d.command(t.Context(), args...)
		cmd.Env = append(cmd.Env, "TZ="+tz)
		return finish(cmd)
	}
	const posix = "XXX-9:30" // half past nine is midnight in UTC
	r := in(posix, "job", "run", "--schedule=30 9 * * *", "true")
	job := d.get(t, strings.TrimSpace(r.stdout))
	if r.status != 0 || job.Spec.Schedule != "CRON_TZ="+posix+" 30 9 * * *" || job.Scheduled.UTC().Format("15:04") != "00:00" {
		t.Errorf("%v\n%+v", r, job)
	}
	if r := in(posix, "job", "status", job.ID); !strings.Contains(r.stdout, " 09:30:00 (in ") {
		t.Errorf("times are not in the zone: %v", r)
	}
	r = in(posix, "job", "run", "--schedule=tomorrow 09:30", "true")
	if job := d.get(t, strings.TrimSpace(r.stdout)); r.status != 0 || job.Scheduled.UTC().Format("15:04") != "00:00" {
		t.Errorf("%v\n%+v", r, job)
	}
	job = d.get(t, d.detach(t, "--schedule=CRON_TZ=CET-1CEST,M3.5.0,M10.5.0/3 0 9 1 7 *", "true"))
	if job.Scheduled.UTC().Format("01-02 15:04") != "07-01 07:00" {
		t.Errorf("%+v", job)
	}
	for _, tz := range []string{"Mars/Base", "CET-1CEST,M3.5.0"} {
		for _, schedule := range []string{"30 9 * * *", "tomorrow 09:30", "2100-01-01 00:00"} {
			r := in(tz, "job", "run", "--schedule="+schedule, "true")
			if r.status != 125 || !strings.Contains(r.stderr, "cannot use TZ="+tz+" as the time zone") || !strings.Contains(r.stderr, "; set TZ to ") {
				t.Errorf("TZ=%s, %s: %v", tz, schedule, r)
			}
		}
		for _, schedule := range []string{"+1h", "2100-01-01T00:00:00Z", "CRON_TZ=UTC @daily"} {
			if r := in(tz, "job", "run", "--schedule="+schedule, "true"); r.status != 0 {
				t.Errorf("TZ=%s, %s: %v", tz, schedule, r)
			}
		}
	}
	d.says(t, 125, ``, `rnx: schedule ".*": "CET-1CEST,M3.5.0" is not a time zone, and not a POSIX time zone either: it ends where a comma and a day is expected; use for example .*\n`,
		"job", "run", "--schedule=CRON_TZ=CET-1CEST,M3.5.0 @daily", "true")
}

// TestLifeCron waits for the minute.
func TestLifeCron(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := d.detach(t, "--schedule=* * * * *", "--name=tick", "sh", "-c", "echo $JOBLET_ATTEMPT; while [ ! -e end ]; do sleep 0.1; done")
	job := d.get(t, id)
	next := job.Created.Add(time.Minute - 1).Truncate(time.Minute) // from the moment of its making on
	if job.State != joblet.Scheduled || !job.Scheduled.Equal(next) && time.Now().Before(next) {
		t.Fatalf("%+v, want it due at %v", job, next)
	}
	d.says(t, 0, `(?s).*\nNext run: +\d{4}-\d\d-\d\d \d\d:\d\d:00.*\n.*`, ``, "job", "status", id)
	if !eventually(time.Until(next)+patience, func() bool { time.Sleep(200 * time.Millisecond); return len(d.ids(t, "--parent="+id)) > 0 }) {
		t.Fatal("it does not run")
	}
	runs := d.ids(t, "--parent=tick")
	if len(runs) != 1 {
		t.Fatalf("runs %q", runs)
	}
	d.await(t, id, "due again", func(j joblet.Job) bool {
		return j.State == joblet.Scheduled && j.Scheduled.Equal(next.Add(time.Minute))
	})
	d.becomes(t, runs[0], joblet.Running)
	// The name is that of its run as well, which goes on.
	d.says(t, 0, id+"\n", ``, "job", "cancel", "tick")
	d.ends(t, id, joblet.Canceled)
	d.rnx(patient(t), "job", "exec", "tick", "touch", "end") // which may end with the job
	run := d.ends(t, runs[0], joblet.Completed)
	if run.Parent != id || run.Created.Before(next) || run.Created.After(next.Add(30*time.Second)) || run.Spec.Schedule != "" {
		t.Errorf("run %+v, due at %v", run, next)
	}
	d.says(t, 0, "1\n", ``, "job", "log", runs[0])
}

// TestLifeOverlap: times that pass without a daemon count as one run, and a run
// that is due too early is left out or waits.
func TestLifeOverlap(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	now := time.Now()
	hourly := fmt.Sprintf("--schedule=%d * * * *", now.Add(30*time.Minute).Minute())
	skip := d.detach(t, hourly, "sleep", "600")
	queue := d.detach(t, hourly, "--overlap=queue", "sleep", "600")
	d.says(t, 125, ``, `rnx: overlap skip: requires a repeating job .*\n`, "job", "run", "--overlap=skip", "true")
	due := func(ago time.Duration) {
		d.kill(t)
		for _, id := range []string{skip, queue} {
			d.wasDue(t, id, now.Add(-ago))
		}
		d.restart(t)
		for _, id := range []string{skip, queue} {
			d.await(t, id, "due again", func(j joblet.Job) bool { return j.State == joblet.Scheduled && j.Scheduled.After(now) })
		}
	}
	due(10 * time.Hour)
	skipped, queued := d.ids(t, "--parent="+skip), d.ids(t, "--parent="+queue)
	if len(skipped) != 1 || len(queued) != 1 {
		t.Fatalf("after ten hours: runs %q and %q, want one of each", skipped, queued)
	}
	d.becomes(t, skipped[0], joblet.Running)
	first := d.becomes(t, queued[0], joblet.Running)
	for _, ago := range []time.Duration{5 * time.Hour, 4 * time.Hour} {
		due(ago)
		skipped, queued = d.ids(t, "--parent="+skip), d.ids(t, "--parent="+queue)
		if len(skipped) != 1 || len(queued) != 2 || queued[1] != first.ID {
			t.Fatalf("while one runs: runs %q and %q, want one and two", skipped, queued)
		}
		second := d.get(t, queued[0])
		if second.State != joblet.Pending || second.Reason != "waits for "+joblet.ShortID(first.ID) {
			t.Errorf("the second: %+v", second)
		}
	}
	d.says(t, 0, first.ID+"\n", ``, "job", "kill", first.ID)
	if second := d.becomes(t, queued[0], joblet.Running); second.Started.Before(d.get(t, first.ID).Ended) {
		t.Errorf("it started at %v, before the first had ended", second.Started)
	}
	// Runs under way go on without the repetition.
	d.says(t, 0, queue+"\n", ``, "job", "cancel", queue)
	d.ends(t, queue, joblet.Canceled)
	d.becomes(t, queued[0], joblet.Running)
}

// TestLifeCronInput: each run has what came along with the job that repeats, and
// outlives it.
func TestLifeCronInput(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	up := filepath.Join(t.TempDir(), "up")
	if err := os.WriteFile(up, []byte("sent along\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	id := d.detach(t, "--schedule=@yearly", "--secret-env=TOKEN=s3cret", "--upload="+up, "--stdin="+fileWith(t, "input\n"), "--retry=1", "--retry-delay=10ms",
		"sh", "-c", `cat up -; rm up; echo ${#TOKEN}; [ $JOBLET_ATTEMPT = 2 ]`)
	for i := range 2 {
		d.kill(t)
		d.wasDue(t, id, time.Now().Add(-time.Duration(2-i)*time.Hour))
		d.restart(t)
		if !eventually(patience, func() bool { return len(d.ids(t, "--parent="+id)) == i+1 }) {
			t.Fatalf("runs %q", d.ids(t, "--parent="+id))
		}
		d.ends(t, d.ids(t, "--parent="+id)[0], joblet.Completed)
	}
	if !eventually(patience, func() bool { return sealed(t, d) == 1 }) {
		t.Errorf("%d jobs have sealed secrets, want that which repeats", sealed(t, d))
	}
	d.says(t, 0, id+"\n", ``, "job", "cancel", id)
	d.says(t, 0, ``, ``, "job", "delete", id)
	runs := d.ids(t)
	if len(runs) != 2 || sealed(t, d) != 0 {
		t.Fatalf("left %q, %d with secrets", runs, sealed(t, d))
	}
	const once = "sent along\ninput\n6\n"
	for _, run := range runs {
		d.says(t, 0, once+once, ``, "job", "log", run)
	}
	d.says(t, 0, once+once, ``, "job", "rerun", "-f", "--secret-env=TOKEN=s3cret", runs[1])
}

func TestLifeDependsOn(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	short := joblet.ShortID
	const untilTold = "while [ ! -e end ]; do sleep 0.1; done"
	a := d.detach(t, "--name=first", "sh", "-c", untilTold)
	b := d.detach(t, "--depends-on=first", "echo", "b")
	c := d.detach(t, "--depends-on="+b, "echo", "c")
	both := d.detach(t, "--depends-on="+a+","+c, "echo", "both")
	if job := d.get(t, b); job.State != joblet.Pending || job.Reason != "waits for "+short(a) || !slices.Equal(job.Spec.DependsOn, []string{a}) {
		t.Errorf("it waits as %+v", job)
	}
	attached := make(chan result, 1)
	go func() { attached <- d.rnx(t.Context(), "job", "run", "--depends-on="+both, "echo", "attached") }()

	fails := d.detach(t, "sh", "-c", untilTold+"; exit 3")
	f1 := d.detach(t, "--depends-on="+fails, "true")
	f2 := d.detach(t, "--depends-on="+f1, "true")
	stopped := d.detach(t, "sleep", "60")
	s1 := d.detach(t, "--depends-on="+stopped, "true")
	d.says(t, 0, stopped+"\n", ``, "job", "kill", stopped)
	for _, id := range []string{a, fails} {
		d.rnx(patient(t), "job", "exec", id, "touch", "end") // which may end with the job
	}

	chain := []joblet.Job{}
	for _, id := range []string{a, b, c, both} {
		chain = append(chain, d.ends(t, id, joblet.Completed))
	}
	for i, job := range chain[1:] {
		if job.Started.Before(chain[i].Ended) {
			t.Errorf("%s started at %v, and what it depends on ended at %v", job.Spec.CommandLine(), job.Started, chain[i].Ended)
		}
	}
	if r := <-attached; r.stdout != "attached\n" || r.status != 0 || !regexp.MustCompile(`^(rnx: job \S+ waits for \S+\n)?$`).MatchString(r.stderr) {
		t.Errorf("attached: %v", r)
	}
	for _, bad := range []struct{ id, other, state string }{{f1, fails, "FAILED"}, {f2, f1, "CANCELED"}, {s1, stopped, "STOPPED"}} {
		job := d.ends(t, bad.id, joblet.Canceled)
		if want := fmt.Sprintf("job %s, on which it depends, is %s", short(bad.other), bad.state); job.Reason != want || !job.Started.IsZero() {
			t.Errorf("%+v, want the reason %q", job, want)
		}
	}
	d.says(t, 125, ``, `rnx: cannot depend on job nope: no job nope: .*\n`, "job", "run", "--depends-on=nope", "true")
	d.says(t, 125, ``, `rnx: cannot depend on job \S+: that job is FAILED and will not complete\n`, "job", "run", "--depends-on="+fails, "true")
	d.says(t, 0, "at once\n", ``, "job", "run", "--depends-on="+a, "echo", "at once")
	cron := d.detach(t, "--schedule=@yearly", "true")
	d.says(t, 125, ``, `rnx: cannot depend on job \S+: that job repeats and never completes\n`, "job", "run", "--depends-on="+cron, "true")

	// What a job waits for cannot be deleted, ended or not.
	blocker := d.detach(t, "sleep", "60")
	waits := d.detach(t, "--depends-on="+a+","+blocker, "true")
	d.says(t, 1, ``, `rnx: cannot delete job `+short(a)+`: job `+short(waits)+` depends on it and has not run yet\n`, "job", "delete", a)
	// Nor after a restart, and prune leaves it as well.
	d.kill(t)
	d.restart(t)
	d.says(t, 0, `\d+ jobs deleted, .*\n`, ``, "job", "prune", "--all")
	if job := d.get(t, a); job.State != joblet.Completed {
		t.Errorf("%+v", job)
	}
	if job := d.get(t, waits); job.State != joblet.Pending {
		t.Errorf("%+v", job)
	}
	d.says(t, 0, waits+"\n", ``, "job", "stop", waits)
	d.ends(t, waits, joblet.Canceled)
	d.says(t, 0, ``, ``, "job", "delete", a)
}

func TestLifeRetry(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	up := filepath.Join(t.TempDir(), "up")
	if err := os.WriteFile(up, []byte("sent along\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Run("until it completes", func(t *testing.T) {
		t.Parallel()
		const script = `echo attempt $JOBLET_ATTEMPT; cat up; ls; read line; echo $line; echo no $JOBLET_ATTEMPT >&2; echo x > left; echo y > up; [ $JOBLET_ATTEMPT = 3 ]`
		cmd := d.command(t.Context(), "job", "run", "--name=third", "--retry=5", "--retry-delay=300ms", "--upload="+up, "--stdin", "sh", "-c", script)
		cmd.Stdin = strings.NewReader("input\n")
		r := finish(cmd)
		want, wantErr := "", ""
		for i := range 3 {
			want += fmt.Sprintf("attempt %d\nsent along\nup\ninput\n", i+1)
			wantErr += fmt.Sprintf("no %d\n", i+1)
		}
		if r.stdout != want || r.stderr != wantErr || r.status != 0 {
			t.Errorf("attached: %v", r)
		}
		if r := d.rnx(t.Context(), "job", "log", "third"); r.stdout != want || r.stderr != wantErr {
			t.Errorf("log: %v", r)
		}
		job := d.ends(t, "third", joblet.Completed)
		if job.Attempt != 3 || len(job.Past) != 2 || job.Exit.Code != 0 {
			t.Fatalf("%+v", job)
		}
		starts := []time.Time{job.Past[0].Started, job.Past[1].Started, job.Started}
		for i, p := range job.Past {
			if p.State != joblet.Failed || p.Exit == nil || p.Exit.Code != 1 {
				t.Errorf("attempt %d: %+v", i+1, p)
			}
			pause, want := starts[i+1].Sub(p.Ended), 300*time.Millisecond<<i
			if pause < want || pause > want+30*time.Second {
				t.Errorf("the pause after attempt %d was %v, want %v", i+1, pause, want)
			}
		}
		d.says(t, 0, `(?s).*\nAttempt: +1: FAILED \(exit code 1\).*\nAttempt: +2: FAILED \(exit code 1\).*\nAttempt: +3: COMPLETED \(exit code 0\).*`, ``, "job", "status", "third")
		var shown struct {
			Attempt int
			Past    []struct {
				Status string
				Code   int `json:"exit_code"`
			}
		}
		if err := json.Unmarshal([]byte(d.rnx(t.Context(), "job", "status", "--json", "third").stdout), &shown); err != nil ||
			shown.Attempt != 3 || len(shown.Past) != 2 || shown.Past[0].Status != "FAILED" || shown.Past[1].Code != 1 {
			t.Errorf("status --json: %+v %v", shown, err)
		}
	})
	t.Run("counts", func(t *testing.T) {
		t.Parallel()
		retry := func(n int, args ...string) []string {
			return append([]string{fmt.Sprintf("--retry=%d", n), "--retry-delay=10ms"}, args...)
		}
		for _, test := range []struct {
			args     []string
			status   int
			attempts int
			state    joblet.State
		}{
			{retry(2, "sh", "-c", "exit 7"), 7, 3, joblet.Failed},
			{retry(2, "true"), 0, 1, joblet.Completed},
			{retry(5, "--retry-on=1,75", "sh", "-c", "[ $JOBLET_ATTEMPT = 2 ] && exit 3; exit 75"), 3, 2, joblet.Failed},
			{retry(1, "--timeout=300ms", "sleep", "60"), 124, 2, joblet.TimedOut},
			{retry(1, "--timeout=300ms", "--retry-on=124", "sleep", "60"), 124, 2, joblet.TimedOut},
			{retry(1, "--timeout=300ms", "--retry-on=1", "sleep", "60"), 124, 1, joblet.TimedOut},
			{retry(1, "--init", "--retry-on=143", "sh", "-c", "kill -TERM $$"), 143, 2, joblet.Failed},
		} {
			id := d.detach(t, test.args...)
			d.says(t, test.status, fmt.Sprintf("%d\n", test.status), ``, "job", "wait", id)
			job := d.ends(t, id, test.state)
			if job.Attempt != test.attempts || len(job.Past) != test.attempts-1 {
				t.Errorf("%q: %d attempts, want %d: %+v", test.args, job.Attempt, test.attempts, job)
			}
			for _, p := range job.Past {
				if want := map[bool]joblet.State{true: joblet.TimedOut, false: joblet.Failed}[test.status == 124]; p.State != want {
					t.Errorf("%q: past attempt %+v", test.args, p)
				}
			}
		}
	})
	t.Run("followed", func(t *testing.T) {
		t.Parallel()
		// The attempts are over before a follower has seen each of them begin.
		var wg sync.WaitGroup
		for range 12 {
			wg.Go(func() {
				if r := d.job(t, "--retry=6", "--retry-delay=1ms", "sh", "-c", "echo $JOBLET_ATTEMPT; exit 5"); r.stdout != "1\n2\n3\n4\n5\n6\n7\n" || r.status != 5 {
					t.Errorf("%v", r)
				}
			})
		}
		wg.Wait()
	})
	t.Run("ended in the pause", func(t *testing.T) {
		t.Parallel()
		for _, how := range []string{"stop", "cancel", "kill"} {
			id := d.detach(t, "--retry=3", "--retry-delay=1h", "sh", "-c", "echo once; exit 4")
			job := d.becomes(t, id, joblet.Scheduled)
			if job.Attempt != 1 || len(job.Past) != 1 || job.Reason != "attempt 1 of 4 ended with status 4" || time.Until(job.Scheduled) < 59*time.Minute {
				t.Errorf("in the pause: %+v", job)
			}
			if how == "cancel" { // between two attempts there is the log of the first
				d.says(t, 0, "once\n", ``, "job", "log", id)
			}
			d.says(t, 0, id+"\n", ``, "job", how, id)
			if job := d.ends(t, id, joblet.Stopped); job.Exit == nil || job.Exit.Code != 4 || job.Attempt != 1 {
				t.Errorf("%s: %+v", how, job)
			}
			d.says(t, 4, "4\n", ``, "job", "wait", id)
			d.says(t, 0, "once\n", ``, "job", "log", "-f", id)
		}
	})
	t.Run("a stop is no failure", func(t *testing.T) {
		t.Parallel()
		id := d.detach(t, "--retry=3", "--retry-delay=10ms", "sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done")
		if !d.wrote(t, id, "up\n") {
			t.Fatal("no output")
		}
		d.says(t, 0, id+"\n", ``, "job", "stop", id)
		if job := d.ends(t, id, joblet.Stopped); job.Attempt != 1 || job.Exit.Code != 9 {
			t.Errorf("%+v", job)
		}
	})
}

func TestLifeQueue(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "--max-concurrent=1")
	blocker := d.detach(t, "sleep", "600")
	submit := func(priority int, args ...string) string {
		return d.detach(t, append([]string{fmt.Sprintf("--priority=%d", priority)}, args...)...)
	}
	last := submit(-1, "sleep", "0.1")
	low := []string{submit(0, "sleep", "0.1"), submit(0, "sleep", "0.1")}
	canceled := submit(7, "echo", "never")
	high := []string{submit(5, "sleep", "0.1"), submit(5, "sleep", "0.1")}
	notFound, notExecutable := submit(0, "no-such-command"), submit(0, "/etc/passwd")
	badDir := submit(0, "--workdir=/usr/nope", "true")
	if job := d.get(t, low[0]); job.State != joblet.Pending || job.Reason != "waits in the queue: 1 jobs run, which is the limit" {
		t.Errorf("%+v", job)
	}
	d.says(t, 0, `(?s).*\nStatus: +PENDING\nReason: +waits in the queue.*`, ``, "job", "status", low[0])
	if got := d.ids(t, "--status=pending"); len(got) != 9 {
		t.Errorf("%d jobs are PENDING: %q", len(got), got)
	}

	// Attached runs wait as well: one is interrupted, the others run.
	interrupted := d.command(t.Context(), "job", "run", "--name=interrupted", "echo", "never")
	var said bytes.Buffer
	interrupted.Stderr = &said
	if err := interrupted.Start(); err != nil {
		t.Fatal(err)
	}
	if !eventually(patience, func() bool { return len(d.ids(t, "--name=interrupted", "--status=pending")) == 1 }) {
		t.Fatal("it does not wait")
	}
	time.Sleep(200 * time.Millisecond) // rnx has heard that, too
	_ = interrupted.Process.Signal(syscall.SIGINT)
	_ = interrupted.Wait()
	if interrupted.ProcessState.ExitCode() != 130 || !strings.Contains(said.String(), "canceling job") {
		t.Errorf("status %d, said %q", interrupted.ProcessState.ExitCode(), said.String())
	}
	d.ends(t, "interrupted", joblet.Canceled)
	var wg sync.WaitGroup
	attached := func(want result, args ...string) {
		wg.Go(func() {
			r := d.job(t, args...)
			if r.status != want.status || r.stdout != want.stdout || !regexp.MustCompile(want.stderr).MatchString(r.stderr) {
				t.Errorf("attached %q: %v", args, r)
			}
		})
	}
	attached(result{"ran\n", `^rnx: job \S+ waits in the queue: [^\n]*\n$`, 5}, "sh", "-c", "echo ran; exit 5")
	attached(result{"", `^rnx: job \S+ waits in the queue: [^\n]*\nrnx: job \S+: no-such: command not found in .*\n$`, 127}, "no-such")
	attached(result{"from stdin\n", `^rnx: job \S+ waits in the queue: [^\n]*\n$`, 0}, "--stdin="+fileWith(t, "from stdin\n"), "cat")
	if !eventually(patience, func() bool { return len(d.ids(t, "--status=pending")) == 12 }) {
		t.Errorf("%q", d.ids(t, "--status=pending"))
	}

	d.says(t, 0, canceled+"\n", ``, "job", "stop", canceled)
	if job := d.ends(t, canceled, joblet.Canceled); job.Reason != "it was canceled before it ran" || !job.Started.IsZero() {
		t.Errorf("%+v", job)
	}
	d.says(t, 125, "125\n", ``, "job", "wait", canceled)
	d.says(t, 0, ``, ``, "job", "log", canceled)
	d.says(t, 0, blocker+"\n", ``, "job", "kill", blocker)

	before := d.ends(t, blocker, joblet.Stopped)
	for _, id := range slices.Concat(high, low, []string{last}) {
		job := d.ends(t, id, joblet.Completed)
		if job.Started.Before(before.Ended) {
			t.Errorf("%s began at %v, before %s ended at %v", short(job), job.Started, short(before), before.Ended)
		}
		before = job
	}
	for _, test := range []struct {
		id, reason string
		status     int
		kind       joblet.Kind
	}{
		{notFound, "no-such-command: command not found in the host's programs (no --runtime was given)", 127, joblet.CommandNotFound},
		{notExecutable, "cannot execute /etc/passwd: permission denied: it is a directory or not marked executable", 126, joblet.NotExecutable},
		{badDir, "cannot use working directory /usr/nope: ", 125, joblet.InvalidArgument},
	} {
		d.says(t, test.status, fmt.Sprintf("%d\n", test.status), ``, "job", "wait", test.id)
		job := d.ends(t, test.id, joblet.Failed)
		if !strings.HasPrefix(job.Reason, test.reason) || job.Exit != nil || job.Failure != test.kind {
			t.Errorf("%+v, want the reason %q", job, test.reason)
		}
	}
	wg.Wait()
}

func short(job joblet.Job) string { return joblet.ShortID(job.ID) }

// fileWith returns a new file with the content.
func fileWith(t *testing.T, content string) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "file")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func TestLifeIdempotencyKey(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	args := []string{"--idempotency-key=k 1", "--upload=" + fileWith(t, "x"), "sh", "-c", "echo ran; sleep 1"}
	ids := make([]string, 20)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() { ids[i] = strings.TrimSpace(d.job(t, append([]string{"-d"}, args...)...).stdout) })
	}
	wg.Wait()
	if all := slices.Compact(slices.Sorted(slices.Values(ids))); len(all) != 1 || !joblet.ValidID(all[0]) {
		t.Fatalf("asked 20 times at once: %q", all)
	}
	id := ids[0]
	if r := d.job(t, args...); r.stdout != "ran\n" || r.status != 0 { // attached to the same one
		t.Errorf("attached: %v", r)
	}
	d.ends(t, id, joblet.Completed)
	if again := d.detach(t, args...); again != id {
		t.Errorf("asked after its end: %s and not %s", again, id)
	}
	d.says(t, 0, "ran\n", ``, "job", "log", id)
	if all := d.ids(t); len(all) != 1 {
		t.Errorf("jobs %q", all)
	}
	if dirs, err := os.ReadDir(filepath.Join(d.state, "jobs")); err != nil || len(dirs) != 1 {
		t.Errorf("directories %v %v", dirs, err)
	}
	d.says(t, 125, ``, `rnx: idempotency key k 1 belongs to job `+joblet.ShortID(id)+`, which is another: .*\n`, "job", "run", "--idempotency-key=k 1", "echo", "other")
	d.says(t, 125, ``, `rnx: invalid idempotency key joblet:x: .* are reserved for the daemon\n`, "job", "run", "--idempotency-key=joblet:x", "true")
	d.kill(t)
	d.restart(t)
	if again := d.detach(t, args...); again != id {
		t.Errorf("asked another daemon: %s and not %s", again, id)
	}
	d.says(t, 0, ``, ``, "job", "delete", id)
	if again := d.detach(t, args...); again == id {
		t.Error("the job is deleted and its key is not")
	}
}

func TestLifeEnvFile(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	file := fileWith(t, "# comment\n\nA=1\nB=two words \"quoted\"  \r\n  C=x=y\nPASSED\nD=file\nEMPTY=\n")
	cmd := d.command(t.Context(), "job", "run", "--env-file="+file, "-e", "D=flag", "sh", "-c", `printf '%s|' "$A" "$B" "$C" "$PASSED" "$D" "${EMPTY-unset}"`)
	cmd.Env = append(cmd.Env, "PASSED=from here")
	if r := finish(cmd); r.stdout != `1|two words "quoted"  |x=y|from here|flag||` || r.status != 0 {
		t.Errorf("%v", r)
	}
	bad := fileWith(t, "OK=1\nnot a variable hunter2\n")
	for _, flag := range []string{"--env-file", "--secret-env-file"} {
		r := d.says(t, 125, ``, `rnx: `+flag+`: .*:2: not NAME=VALUE.*\n`, "job", "run", flag+"="+bad, "true")
		if strings.Contains(r.stderr, "hunter2") {
			t.Errorf("the error shows the line: %v", r)
		}
		d.says(t, 125, ``, `rnx: `+flag+`: .*no such file.*\n`, "job", "run", flag+"=/no/such", "true")
	}
}

func TestLifeList(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	a1 := d.detach(t, "--name=one", "-l", "team=a", "--label=example.com/x=1", "sh", "-c", "exit 0")
	a2 := d.detach(t, "--name=two", "-l", "team=a", "sh", "-c", "exit 3")
	d.ends(t, a1, joblet.Completed)
	d.ends(t, a2, joblet.Failed)
	middle := time.Now()
	b := d.detach(t, "-l", "team=b", "-l", "flag", "true")
	later := d.detach(t, "--schedule=+1h", "true")
	d.ends(t, b, joblet.Completed)
	d.kill(t) // filters work on what is on disk as well
	d.restart(t)
	for _, test := range []struct {
		flags string
		want  []string
	}{
		{"", []string{later, b, a2, a1}},
		{"--label team=a", []string{a2, a1}},
		{"--label team", []string{b, a2, a1}},
		{"--label flag=", []string{b}},
		{"--label team=a --label example.com/x=1", []string{a1}},
		{"--label team=a --label flag", nil},
		{"--label team=A", nil},
		{"--status failed", []string{a2}},
		{"--status completed,failed", []string{b, a2, a1}},
		{"--status COMPLETED --label team=a", []string{a1}},
		{"--status scheduled", []string{later}},
		{"--since " + middle.Format(time.RFC3339Nano), []string{later, b}},
		{"--since 1h", []string{later, b, a2, a1}},
		{"--name two", []string{a2}},
		{"--limit 3", []string{later, b, a2}},
		{"--limit 2 --before " + b, []string{a2, a1}},
		{"--limit 1 --before two", []string{a1}},
		{"--before " + a1, nil},
		{"--limit 2 --status completed,failed --before " + joblet.ShortID(b), []string{a2, a1}},
	} {
		if got := d.ids(t, strings.Fields(test.flags)...); !slices.Equal(got, test.want) {
			t.Errorf("list %s: %q, want %q", test.flags, got, test.want)
		}
		r := d.rnx(t.Context(), append([]string{"job", "list", "--json"}, strings.Fields(test.flags)...)...)
		var got []string
		for line := range strings.Lines(r.stdout) {
			var job struct{ UUID, Status string }
			if err := json.Unmarshal([]byte(line), &job); err != nil || job.Status == "" {
				t.Errorf("list --json %s: %q: %v", test.flags, line, err)
			}
			got = append(got, job.UUID)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("list --json %s: %q, want %q", test.flags, got, test.want)
		}
	}
	d.says(t, 0, regexp.QuoteMeta(fmt.Sprintf("%s two FAILED 3 {\"team\":\"a\"}\n", joblet.ShortID(a2))), ``,
		"job", "list", "--name=two", "--format={{short .UUID}} {{.Name}} {{.Status}} {{.ExitCode}} {{json .Labels}}")
	d.says(t, 0, "TWO\n", ``, "job", "status", "--format={{upper .Name}}", a2)
	d.says(t, 1, ``, `rnx: .*Nope.*\n`, "job", "list", "--format={{.Nope}}")
	d.says(t, 1, ``, `rnx: .*unknown state "nope".*\n`, "job", "list", "--status=nope")
	d.says(t, 1, ``, `rnx: --label: label .*\n`, "job", "list", "--label=a b")
	d.says(t, 1, ``, `rnx: --since: .*\n`, "job", "list", "--since=yesterday-ish")
	d.says(t, 1, ``, `rnx: --parent: no job nope: .*\n`, "job", "list", "--parent=nope")
	// The table: a header and a line for each.
	r := d.rnx(t.Context(), "job", "list")
	if lines := strings.Split(strings.TrimSpace(r.stdout), "\n"); len(lines) != 5 || !strings.HasPrefix(lines[0], "ID ") ||
		!regexp.MustCompile(`^`+joblet.ShortID(a2)+` +two +FAILED +3 +\d{4}-.* sh -c 'exit 3'$`).MatchString(lines[3]) ||
		!regexp.MustCompile(`^`+joblet.ShortID(later)+` +- +SCHEDULED +- +in .* true$`).MatchString(lines[1]) {
		t.Errorf("table: %v", r)
	}
}

// holding returns the files below dir, and the argument lists of processes of
// ours, that hold text.
func (d *daemon) holding(t *testing.T, text string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(d.state, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil // it went away, or is the link to the runtimes
		}
		if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(text)) {
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	lists, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lists {
		if argv, _ := os.ReadFile(name); bytes.Contains(argv, []byte(text)) {
			found = append(found, fmt.Sprintf("%s: %q", name, argv))
		}
	}
	return found
}

func TestLifeSecrets(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	var b [24]byte
	for i := range b {
		b[i] = byte('a' + rand.IntN(26))
	}
	secret := string(b[:])
	// The job shows that it has the secret without saying it.
	const script = `test ${#TOKEN} = 24 && printf %s "$TOKEN" | sed 's/./&-/g'; echo; until [ -e end ] || [ $JOBLET_ATTEMPT = 2 ]; do sleep 0.1; done; echo never-in-clear > left`
	shown := strings.Join(strings.Split(secret, ""), "-") + "-\n"
	nowhere := func(when string, ids ...string) {
		t.Helper()
		if found := d.holding(t, secret); len(found) > 0 {
			t.Errorf("%s: the secret is in %q", when, found)
		}
		for _, id := range ids {
			for _, args := range [][]string{{"job", "status", id}, {"job", "status", "--json", id}, {"job", "list", "--json"}, {"job", "log", "--json", id}, {"job", "list", "--format={{json .}}"}} {
				if r := d.rnx(t.Context(), args...); r.status != 0 || strings.Contains(r.stdout+r.stderr, secret) {
					t.Errorf("%s: rnx %q shows it: %v", when, args, r)
				}
			}
			if r := d.rnx(t.Context(), "job", "status", id); !strings.Contains(r.stdout, "TOKEN=***\n") {
				t.Errorf("%s: the name is not there: %v", when, r)
			}
		}
	}
	start := func(args ...string) *exec.Cmd {
		cmd := d.command(t.Context(), append([]string{"job", "run"}, args...)...)
		cmd.Env = append(cmd.Env, "TOKEN="+secret)
		return cmd
	}
	// On the command line, in the environment, in a file; at once and later.
	argv := start("--name=argv", "--secret-env=TOKEN="+secret, "sh", "-c", script)
	var out bytes.Buffer
	argv.Stdout = &out
	if err := argv.Start(); err != nil {
		t.Fatal(err)
	}
	if !eventually(patience, func() bool { return len(d.ids(t, "--name=argv", "--status=running")) == 1 }) {
		t.Fatal("it does not run")
	}
	if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", argv.Process.Pid)); err != nil || !bytes.Contains(line, []byte("--secret-env=TOKEN")) {
		t.Fatalf("rnx shows %q %v", line, err)
	}
	nowhere("RUNNING", "argv")
	later := strings.TrimSpace(finish(start("-d", "--schedule=+3s", "--retry=1", "--secret-env=TOKEN", "sh", "-c", script+"; [ $JOBLET_ATTEMPT = 2 ]")).stdout)
	fromFile := strings.TrimSpace(d.must(t, "-d", "--schedule=+1h", "--secret-env-file="+fileWith(t, "TOKEN="+secret+"\n"), "true"))
	nowhere("SCHEDULED", later, fromFile)
	if n := sealed(t, d); n < 2 {
		t.Errorf("%d jobs have sealed secrets", n)
	}
	d.rnx(patient(t), "job", "exec", "argv", "touch", "end") // which may end with the job
	if err := argv.Wait(); err != nil || out.String() != shown {
		t.Errorf("the job has %q: %v", out.String(), err)
	}
	nowhere("ended", "argv")
	// It survives the daemon.
	d.kill(t)
	nowhere("no daemon")
	d.restart(t)
	nowhere("restarted", later, fromFile)
	d.becomes(t, later, joblet.Running)
	nowhere("RUNNING later", later)
	d.rnx(patient(t), "job", "exec", later, "touch", "end") // which may end with the job
	d.says(t, 0, "0\n", ``, "job", "wait", later)
	if r := d.rnx(t.Context(), "job", "log", later); r.stdout != shown+shown {
		t.Errorf("the later job has %q", r.stdout)
	}
	nowhere("ended later", later)
	d.says(t, 0, fromFile+"\n", ``, "job", "cancel", fromFile)
	d.ends(t, fromFile, joblet.Canceled)
	if !eventually(patience, func() bool { return sealed(t, d) == 0 }) {
		t.Errorf("%d ended jobs still have their secrets", sealed(t, d))
	}
	if info, err := os.Stat(filepath.Join(d.state, "secrets.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v %v", info, err)
	}
	// Again: not without the secret.
	d.says(t, 1, ``, `rnx: job \S+ had a secret TOKEN, which is not kept: .*\n`, "job", "rerun", "argv")
	again := d.command(t.Context(), "job", "rerun", "--follow", "--secret-env=TOKEN", "argv")
	again.Env = append(again.Env, "TOKEN="+secret)
	var rerun bytes.Buffer
	again.Stdout = &rerun
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	runs := func() []string { return d.ids(t, "--name=argv", "--status=running") }
	if !eventually(patience, func() bool { return len(runs()) == 1 }) {
		t.Fatal("it does not run again")
	}
	d.rnx(patient(t), "job", "exec", runs()[0], "touch", "end") // which may end with the job
	if err := again.Wait(); err != nil || rerun.String() != shown {
		t.Errorf("rerun: %q: %v", rerun.String(), err)
	}
	nowhere("rerun")
}

// sealed counts the jobs whose record has secrets.
func sealed(t *testing.T, d *daemon) (n int) {
	t.Helper()
	conn, err := sqlite.OpenConn(filepath.Join(d.state, "joblet.db"), sqlite.OpenReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetBusyTimeout(5 * time.Second)
	err = sqlitex.Execute(conn, `SELECT count(*) FROM job WHERE sealed IS NOT NULL`, &sqlitex.ExecOptions{
		ResultFunc: func(row *sqlite.Stmt) error { n = row.ColumnInt(0); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestLifeRerun(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	up := filepath.Join(t.TempDir(), "up")
	if err := os.WriteFile(up, []byte("sent along\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	id := d.detach(t, "--upload="+up, "--stdin="+fileWith(t, "input\n"), "-e", "A=1", "-l", "team=a", "--schedule=+1s", "--idempotency-key=once",
		"sh", "-c", "cat up -; echo $A; stat -c %a up; ls; exit 6")
	const want = "sent along\ninput\n1\n600\nup\n"
	d.says(t, 6, "6\n", ``, "job", "wait", id)
	d.says(t, 0, want, ``, "job", "log", id)
	d.says(t, 6, want, ``, "job", "rerun", "--follow", id)
	again := strings.TrimSpace(d.says(t, 0, `\S{36}\n`, ``, "job", "rerun", id).stdout)
	d.says(t, 0, ``, ``, "job", "delete", id) // what came along does not go with the first
	d.says(t, 6, "6\n", ``, "job", "wait", again)
	d.says(t, 6, want, ``, "job", "rerun", "-f", again)
	job := d.get(t, again)
	if again == id || job.Spec.Schedule != "" || job.Spec.IdempotencyKey != "" || job.Spec.Labels["team"] != "a" || job.State != joblet.Failed {
		t.Errorf("%+v", job)
	}
	if left := d.ids(t); len(left) != 3 {
		t.Errorf("jobs %q", left)
	}
	d.says(t, 1, ``, `rnx: no job nope: .*\n`, "job", "rerun", "nope")
	cmd := d.command(t.Context(), "job", "run", "--name=streamed", "--stdin", "cat")
	cmd.Stdin = strings.NewReader("x")
	if r := finish(cmd); r.stdout != "x" || r.status != 0 {
		t.Errorf("%v", r)
	}
	d.says(t, 1, ``, `rnx: job \S+ had a stream as its standard input, which is not kept: .*\n`, "job", "rerun", "streamed")
}

func TestLifePrune(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	ok := d.detach(t, "-l", "team=a", "sh", "-c", "head -c 1000000 /dev/zero; echo x > f")
	bad := d.detach(t, "sh", "-c", "exit 1")
	runs := d.detach(t, "sleep", "60")
	waits := d.detach(t, "--schedule=+1h", "true")
	d.ends(t, ok, joblet.Completed)
	d.ends(t, bad, joblet.Failed)
	all := []string{waits, runs, bad, ok}
	left := func(want ...string) {
		t.Helper()
		if got := d.ids(t); !slices.Equal(got, want) {
			t.Errorf("left %q, want %q", got, want)
		}
	}
	for _, args := range [][]string{{"--older-than=1h"}, {"--older-than=1h", "--status=completed"}, {"--all", "--label=team=b"}, {"--all", "--status=stopped"}} {
		d.says(t, 0, "0 jobs deleted, 0 B freed\n", ``, append([]string{"job", "prune"}, args...)...)
	}
	d.says(t, 0, `2 jobs would be deleted, (?:9\d\d|1\d{3}) KiB freed\n`, ``, "job", "prune", "--all", "--dry-run")
	d.says(t, 0, "1 job would be deleted, .* freed\n", ``, "job", "prune", "--all", "--label=team=a", "--dry-run")
	d.says(t, 1, ``, `rnx: which jobs\? .*\n`, "job", "prune")
	d.says(t, 1, ``, `rnx: --status: a job that is RUNNING has not ended\n`, "job", "prune", "--all", "--status=running")
	left(all...)
	time.Sleep(1100 * time.Millisecond)
	d.says(t, 0, "1 job deleted, .*\n", ``, "job", "prune", "--older-than=1s", "--status=completed")
	left(waits, runs, bad)
	if _, err := os.Stat(filepath.Join(d.state, "jobs", ok)); !os.IsNotExist(err) {
		t.Errorf("its directory is left: %v", err)
	}
	d.says(t, 0, `\{"deleted_count":1,"freed_bytes":\d+\}\n`, ``, "job", "prune", "--older-than=1s", "--json")
	left(waits, runs)
	d.says(t, 0, "0 jobs deleted, 2 skipped as they have not ended\n", ``, "job", "delete-all")
	d.says(t, 1, ``, `rnx: job \S+ is RUNNING: stop it first .*\n`, "job", "delete", runs)
	d.says(t, 1, ``, `rnx: job \S+ is SCHEDULED: .*\n`, "job", "delete", waits)
}

func TestLifeReferences(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	a := d.detach(t, "sh", "-c", "sleep 0.5; exit 3")
	b := d.detach(t, "sh", "-c", "exit 4")
	c := d.detach(t, "true")
	d.says(t, 4, "3\n0\n4\n", ``, "job", "wait", a, c, b) // the last one's
	d.says(t, 0, "4\n3\n0\n", ``, "job", "wait", b, a, c)
	d.says(t, 1, "3\n0\n", `rnx: nope: no job nope: .*\n`, "job", "wait", a, "nope", c)
	for _, status := range []string{"3", "0"} {
		if r := d.rnx(t.Context(), "job", "wait", "--json", map[string]string{"3": a, "0": c}[status]); !strings.Contains(r.stdout, `"exit_code":`+status+`,`) {
			t.Errorf("wait --json: %v", r)
		}
	}
	// Of seventeen jobs, two begin with the same digit.
	ids := []string{a, b, c}
	for len(ids) < 17 {
		ids = append(ids, d.detach(t, "--schedule=+1h", "true"))
	}
	byDigit := map[string][]string{}
	for _, id := range ids {
		byDigit[id[:1]] = append(byDigit[id[:1]], id)
	}
	for digit, same := range byDigit {
		if len(same) < 2 {
			continue
		}
		r := d.says(t, 1, ``, `rnx: job `+digit+` is ambiguous: use more characters of the id: .*\n`, "job", "status", digit)
		for _, id := range same[:min(len(same), 5)] {
			if len(same) <= 5 && !regexp.MustCompile(`[:,] `+joblet.ShortID(id)+` \((SCHEDULED|FAILED|COMPLETED), .+\)`).MatchString(r.stderr) {
				t.Errorf("%s is not in %q", joblet.ShortID(id), r.stderr)
			}
		}
	}
}

// TestLifeStopRace stops jobs in the moment in which they end.
func TestLifeStopRace(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.dial(t)
	seen := map[joblet.State]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 40 {
				code := (worker + i) % 3
				job, err := c.Run(t.Context(), joblet.Spec{Command: "sh", Args: []string{"-c", fmt.Sprintf("trap : TERM; sleep 0.02; exit %d", code)}, Retries: i % 2})
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Duration(15+rand.IntN(20)) * time.Millisecond)
				_, stopErr := c.Stop(t.Context(), job.ID, joblet.StopOptions{Grace: 10 * time.Second})
				if stopErr != nil && joblet.KindOf(stopErr) != joblet.FailedPrecondition {
					t.Errorf("stop: %v", stopErr)
				}
				if job, err = c.Job(t.Context(), job.ID); err != nil {
					t.Error(err)
					return
				}
				want := joblet.Stopped
				if stopErr != nil { // it had ended before
					want = map[bool]joblet.State{true: joblet.Completed, false: joblet.Failed}[code == 0]
				}
				// A shell that has not come to its trap is killed.
				kept := job.Exit != nil && (*job.Exit == joblet.Exit{Code: code} || want == joblet.Stopped && *job.Exit == joblet.Exit{Signal: 9})
				if job.State != want || !kept {
					t.Errorf("stop said %v, and the job that exits with %d is %v, %+v: %+v", stopErr, code, job.State, job.Exit, job)
				}
				mu.Lock()
				seen[job.State]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("ends: %v", seen)
}

func TestLifeSignalsApart(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.says(t, 137, ``, ``, "job", "run", "--name=exit", "sh", "-c", "exit 137")
	killed := d.detach(t, "--name=killed", "sleep", "60")
	d.says(t, 0, killed+"\n", ``, "job", "kill", killed)
	term := d.detach(t, "--init", "--name=term", "sleep", "60")
	d.says(t, 0, ``, ``, "job", "kill", "--signal=TERM", term)
	d.says(t, 143, "143\n", ``, "job", "wait", term)
	d.says(t, 0, `(?s).*"status":"FAILED".*"exit_code":137,.*`, ``, "job", "status", "--json", "exit")
	d.says(t, 0, `(?s).*\nStatus: +FAILED \(exit code 137\)\n.*`, ``, "job", "status", "exit")
	d.says(t, 0, `(?s).*\nStatus: +STOPPED \(killed by SIGKILL\)\n.*`, ``, "job", "status", "killed")
	d.says(t, 0, `(?s).*"status":"FAILED".*"exit_code":143,"signal":15,"reason":"killed by SIGTERM".*`, ``, "job", "status", "--json", "term")
	if exit := d.get(t, "exit").Exit; *exit != (joblet.Exit{Code: 137}) {
		t.Errorf("%+v", exit)
	}
	if exit := d.get(t, "killed").Exit; *exit != (joblet.Exit{Signal: 9}) {
		t.Errorf("%+v", exit)
	}
}

// TestLifeRestart: what waits goes on to wait for the same.
func TestLifeRestart(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "--max-concurrent=2")
	timed := d.detach(t, "--timeout=4s", "sleep", "60")
	timedLater := d.detach(t, "--timeout=1s", "sleep", "60") // its time is up with no daemon
	d.becomes(t, timed, joblet.Running)
	pending := d.detach(t, "--priority=1", "true")
	dependent := d.detach(t, "--depends-on="+pending, "true")
	scheduled := d.detach(t, "--schedule=+5s", "true")
	missed := d.detach(t, "--schedule=+1s", "true")
	due, missedDue := d.get(t, scheduled).Scheduled, d.get(t, missed).Scheduled
	d.kill(t)
	if !eventually(patience, func() bool {
		_, err := os.Stat(filepath.Join(d.state, "jobs", timedLater, "exit.json"))
		return err == nil && time.Now().After(missedDue)
	}) {
		t.Error("a job does not end when its time is up and there is no daemon")
	}
	d.restart(t)
	if job := d.get(t, scheduled); !job.Scheduled.Equal(due) || job.State != joblet.Scheduled && time.Now().Before(due) {
		t.Errorf("%+v, want it due at %v", job, due)
	}
	d.ends(t, timedLater, joblet.TimedOut)
	first, second := d.ends(t, pending, joblet.Completed), d.ends(t, dependent, joblet.Completed)
	if second.Started.Before(first.Ended) {
		t.Errorf("the dependent one began at %v, before %v", second.Started, first.Ended)
	}
	d.ends(t, missed, joblet.Completed)

	failing := d.detach(t, "--retry=1", "--retry-delay=8s", "sh", "-c", "echo $JOBLET_ATTEMPT; exit 2")
	again := d.becomes(t, failing, joblet.Scheduled).Scheduled
	d.kill(t)
	d.restart(t)
	if job := d.get(t, failing); time.Now().Before(again) && (job.State != joblet.Scheduled || !job.Scheduled.Equal(again) || job.Attempt != 1 || len(job.Past) != 1) {
		t.Errorf("in the pause: %+v, want the next attempt at %v", job, again)
	}
	if job := d.ends(t, failing, joblet.Failed); job.Attempt != 2 || job.Started.Before(again) || job.Started.After(again.Add(30*time.Second)) {
		t.Errorf("%+v, want the second attempt at %v", job, again)
	}
	d.says(t, 0, "1\n2\n", ``, "job", "log", failing)
	if job := d.ends(t, timed, joblet.TimedOut); job.Ended.Sub(job.Started) < 4*time.Second || job.Ended.Sub(job.Started) > 20*time.Second {
		t.Errorf("%+v", job)
	}
	if job := d.ends(t, scheduled, joblet.Completed); job.Started.Before(due) {
		t.Errorf("due at %v: %+v", due, job)
	}
}

func TestLifeRetain(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	var ids []string
	for range 4 {
		id := d.detach(t, "sh", "-c", "head -c 1000000 /dev/zero; exit 1")
		d.ends(t, id, joblet.Failed)
		ids = append([]string{id}, ids...)
	}
	runs := d.detach(t, "sleep", "600")
	restart := func(args ...string) {
		t.Helper()
		d.kill(t)
		d.args = args
		d.restart(t)
	}
	left := func(want ...string) {
		t.Helper()
		if !eventually(patience, func() bool { return slices.Equal(d.ids(t), append([]string{runs}, want...)) }) {
			t.Errorf("left %q, want %q and the running one", d.ids(t), want)
		}
		for _, id := range ids {
			if _, err := os.Stat(filepath.Join(d.state, "jobs", id)); slices.Contains(want, id) != (err == nil) {
				t.Errorf("directory of %s: %v", id, err)
			}
		}
	}
	restart("--retain-size=2500K")
	left(ids[:2]...) // the oldest go first
	restart("--retain-age=1h")
	time.Sleep(200 * time.Millisecond)
	left(ids[:2]...)
	time.Sleep(time.Second)
	restart("--retain-age=1s")
	left()
}

// TestLifeSIGTERM: a daemon that is told to stop does so within five seconds,
// takes no more calls, and forgets nothing that it has accepted.
func TestLifeSIGTERM(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "--max-concurrent=2")
	c := d.dial(t)
	var mu sync.Mutex
	var accepted []string
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				job, err := c.Run(t.Context(), joblet.Spec{Command: "true"})
				if err != nil {
					if joblet.KindOf(err) != joblet.Unavailable {
						t.Errorf("refused with %v (%v)", err, joblet.KindOf(err))
					}
					return
				}
				mu.Lock()
				accepted = append(accepted, job.ID)
				mu.Unlock()
			}
		})
	}
	time.Sleep(500 * time.Millisecond)
	follower := d.detach(t, "sleep", "600")
	wg.Go(func() {
		for _, err := range c.Follow(t.Context(), follower, joblet.LogOptions{Follow: true}) {
			if err != nil && joblet.KindOf(err) != joblet.Unavailable {
				t.Errorf("the follower's end: %v", err)
			}
		}
	})
	start := time.Now()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := d.cmd.Wait()
	d.cmd = nil
	if took := time.Since(start); err != nil || took > 20*time.Second { // five, and what else this machine does
		t.Errorf("the daemon ended after %v: %v", took, err)
	}
	wg.Wait()
	if r := d.job(t, "true"); r.status != 125 {
		t.Errorf("with no daemon: %v", r)
	}
	d.restart(t)
	known := d.ids(t)
	for _, id := range accepted {
		if !slices.Contains(known, id) {
			t.Errorf("job %s was accepted and is not known", id)
		}
	}
	d.says(t, 0, follower+"\n", ``, "job", "kill", follower)
	if !eventually(patience+time.Duration(len(known))*500*time.Millisecond, func() bool { return len(d.ids(t, "--status=completed")) == len(known)-1 }) {
		t.Errorf("%d of %d accepted jobs are COMPLETED", len(d.ids(t, "--status=completed")), len(known)-1)
	}
	t.Logf("%d jobs accepted, %d known", len(accepted), len(known))
}

// TestLifeManyJobs submits 500 jobs at once to a daemon that runs four at a time.
func TestLifeManyJobs(t *testing.T) {
	t.Parallel()
	const slots, jobs = 4, 250
	d := newDaemon(t, fmt.Sprintf("--max-concurrent=%d", slots))
	c := d.dial(t)
	var blockers []string
	for range slots {
		blockers = append(blockers, d.detach(t, "sleep", "600"))
	}
	var mu sync.Mutex
	var all []joblet.Job
	var wg sync.WaitGroup
	for i := range jobs {
		wg.Go(func() {
			job, err := c.Run(t.Context(), joblet.Spec{Command: "true", Priority: i % 3})
			if err != nil || job.State != joblet.Pending {
				t.Errorf("job %d: %+v %v", i, job, err)
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, job)
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	d.says(t, 0, `(?:\S{36}\n){4}`, ``, append([]string{"job", "kill"}, blockers...)...)
	for i := range all {
		job, err := c.Wait(t.Context(), all[i].ID)
		if err != nil || job.State != joblet.Completed {
			t.Fatalf("%+v %v", job, err)
		}
		all[i] = job
	}
	if done := d.ids(t, "--status=completed"); len(done) != jobs {
		t.Errorf("%d jobs are COMPLETED", len(done))
	}
	// They start in the order of acceptance for each priority. Those that have
	// places together start side by side, and one of them may be overtaken while
	// its box is built.
	slices.SortFunc(all, func(a, b joblet.Job) int {
		if a.Spec.Priority != b.Spec.Priority {
			return b.Spec.Priority - a.Spec.Priority
		}
		return a.Created.Compare(b.Created)
	})
	byStart := slices.Clone(all)
	slices.SortFunc(byStart, func(a, b joblet.Job) int { return a.Started.Compare(b.Started) })
	place := map[string]int{}
	for i, job := range byStart {
		place[job.ID] = i
	}
	var astray []string
	for i, job := range all {
		if off := place[job.ID] - i; off > 8*slots || off < -8*slots {
			astray = append(astray, fmt.Sprintf("job %d in the queue (priority %d) started as number %d", i, job.Spec.Priority, place[job.ID]))
		}
	}
	if len(astray) > 2*slots { // each place may have been held up by a busy machine once or twice
		t.Errorf("%q", astray)
	}
	// Never more than four at once.
	for i := slots; i < len(byStart); i++ {
		running := 0
		for _, other := range byStart[max(0, i-50):i] {
			if other.Ended.After(byStart[i].Started) {
				running++
			}
		}
		if running >= slots {
			t.Errorf("%d jobs ran when the job at %v started", running, byStart[i].Started)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	peak, err := strconv.Atoi(regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindStringSubmatch(string(status))[1])
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the daemon's memory peaked at %d MiB", peak>>10)
	if !strings.HasSuffix(d.bin, "-race") && peak > 100<<10 {
		t.Errorf("the daemon's memory peaked at %d KiB", peak)
	}
}
