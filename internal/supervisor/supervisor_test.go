package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/queue"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/testenv"
)

// open starts a supervisor in dir, which the test closes.
func open(t testing.TB, dir string, change func(*Config)) *Supervisor {
	t.Helper()
	testenv.RequireRoot(t)
	cfg := Config{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run")}
	if change != nil {
		change(&cfg)
	}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// closing closes s and fails the test if that fails.
func closing(t testing.TB, s *Supervisor) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// transitions collects the states of all jobs, in order.
type transitions struct {
	mu  sync.Mutex
	all map[string][]joblet.State
	bad []string
}

func (tr *transitions) note(id string, from, to joblet.State) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	seen := tr.all[id]
	if len(seen) > 0 && seen[len(seen)-1] != from {
		// A daemon that comes next begins with what is on disk: the state at
		// which the former one was closed, or an earlier one that is not recorded.
		if last := seen[len(seen)-1]; last.Final() {
			tr.bad = append(tr.bad, fmt.Sprintf("%s: %v after its end as %v", id, from, last))
		}
	}
	if !from.MayBecome(to) {
		tr.bad = append(tr.bad, fmt.Sprintf("%s: from %v to %v", id, from, to))
	}
	tr.all[id] = append(seen, from, to)
}

// crowd is the jobs that several users share.
type crowd struct {
	mu       sync.Mutex
	accepted []string
	deleted  map[string]bool
}

// anyJob returns one of the latest jobs.
func (c *crowd) anyJob(r *rand.Rand) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.accepted) == 0 {
		return "none"
	}
	return c.accepted[max(0, len(c.accepted)-1-r.IntN(8))]
}

// step does one random thing to a job.
func (c *crowd) step(t *testing.T, s *Supervisor, r *rand.Rand) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var err error
	switch r.IntN(10) {
	case 0:
		id := c.anyJob(r)
		if r.IntN(2) == 0 { // one that surely has not ended by itself
			job, err := s.Submit(ctx, joblet.Spec{Command: "sleep", Args: []string{"100"}, Retries: r.IntN(2), Priority: 10}, "test", nil)
			if err != nil {
				t.Error(err)
			}
			id = job.ID
			eventually(func() bool {
				job, err := s.Job(ctx, id)
				return err != nil || job.State == joblet.Running
			})
		}
		_, err = s.Stop(ctx, id, joblet.StopOptions{Grace: time.Duration(r.IntN(3)) * 10 * time.Millisecond})
	case 1:
		_, err = s.Cancel(ctx, c.anyJob(r))
	case 2:
		err = s.Signal(ctx, c.anyJob(r), 9, false)
	case 3:
		id := c.anyJob(r)
		if err = s.Delete(ctx, id); err == nil {
			c.mu.Lock()
			c.deleted[id] = true
			c.mu.Unlock()
		}
	default:
		var job joblet.Job
		if job, err = s.Submit(ctx, randomSpec(r, c.anyJob(r)), "test", nil); err == nil {
			c.mu.Lock()
			c.accepted = append(c.accepted, job.ID)
			c.mu.Unlock()
		}
	}
	switch kind := joblet.KindOf(err); {
	case err == nil, kind == joblet.NotFound, kind == joblet.FailedPrecondition, kind == joblet.CommandNotFound:
	default:
		t.Errorf("%v (%v)", err, kind)
	}
}

// TestTransitions lets several users do random things at once to a daemon that
// is closed and opened again meanwhile, and looks at every change of every job.
func TestTransitions(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dir := t.TempDir()
	tr := &transitions{all: map[string][]joblet.State{}}
	c := crowd{deleted: map[string]bool{}}
	const lives, users, steps = 4, 4, 25
	for life := range lives {
		s := open(t, dir, func(c *Config) { c.MaxConcurrent = 3 })
		s.table.mu.Lock()
		s.table.onChange = tr.note
		s.table.mu.Unlock()
		var wg sync.WaitGroup
		for user := range users {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(life*users+user)))
				for range steps {
					c.step(t, s, r)
				}
			})
		}
		wg.Wait()
		if life < lives-1 {
			closing(t, s) // with jobs in every state
			continue
		}
		for _, id := range c.accepted {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			job, err := s.Wait(ctx, id)
			cancel()
			if c.deleted[id] && joblet.KindOf(err) == joblet.NotFound {
				continue
			}
			if err != nil || !job.State.Final() || job.Attempt > job.Spec.Retries+1 || len(job.Past) != max(0, job.Attempt-1) && job.State != joblet.Stopped {
				t.Errorf("job %s: %v, %d attempts, %d past: %v", id, job.State, job.Attempt, len(job.Past), err)
			}
		}
		left := ""
		if !eventually(func() bool {
			jobs := s.Active()
			s.table.mu.Lock()
			defer s.table.mu.Unlock()
			ready, timed, blocked := s.table.queue.Counts()
			busy := int(s.table.queue.Used(queue.Slots))
			left = fmt.Sprintf("%d jobs, %d places, %d ready, %d timed, %d blocked, %d runtimes", jobs, busy, ready, timed, blocked, s.planner.UsedRuntimes())
			return jobs+busy+ready+timed+blocked+s.planner.UsedRuntimes() == 0
		}) {
			t.Errorf("left after all have ended: %s", left)
		}
		closing(t, s)
	}
	for _, bad := range tr.bad {
		t.Error(bad)
	}
	kinds := map[joblet.State]int{}
	for _, states := range tr.all {
		kinds[states[len(states)-1]]++
	}
	t.Logf("%d jobs, by their last state: %v", len(c.accepted), kinds)
	for _, want := range []joblet.State{joblet.Completed, joblet.Failed, joblet.Stopped, joblet.Canceled, joblet.TimedOut} {
		if kinds[want] == 0 {
			t.Errorf("no job ended as %v: the test does too little", want)
		}
	}
}

func eventually(ok func() bool) bool {
	for range 2000 { // 20 s
		if ok() {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

func randomSpec(r *rand.Rand, other string) joblet.Spec {
	spec := joblet.Spec{Command: "sh", Args: []string{"-c", []string{
		"exit 0", "exit 3", "sleep 0.03", "sleep 0.03; exit 4", "trap '' TERM; sleep 0.2", "sleep 5", "kill -9 $$",
	}[r.IntN(7)]}}
	if strings.Contains(spec.Args[1], "sleep 5") {
		spec.Timeout = time.Duration(20+r.IntN(100)) * time.Millisecond
	}
	switch r.IntN(8) {
	case 0, 1:
		spec.Retries, spec.RetryDelay = 1+r.IntN(3), time.Duration(1+r.IntN(40))*time.Millisecond
	case 2:
		spec.Schedule = "+1s"
	case 3:
		spec.DependsOn = []string{other}
	case 4:
		spec.Command = "no-such-command"
	case 5:
		spec.SecretEnv = map[string]string{"TOKEN": "x"}
	}
	spec.Priority = r.IntN(3)
	return spec
}

// TestStopWins: a job that was asked to stop is not tried again, whatever ends
// it, and one that somebody is about to end does not come into the queue.
func TestStopWins(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), nil)
	defer closing(t, s)
	spec := joblet.Spec{Command: "sh", Args: []string{"-c", "trap 'echo asked' TERM; while :; do sleep 0.01; done"}, Retries: 3, RetryDelay: time.Millisecond, Timeout: 500 * time.Millisecond}
	job, err := s.Submit(t.Context(), spec, "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	// Its time is up, and it heeds the signal: until the grace period is over it
	// stays with this attempt.
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	asked := errors.New("asked to end")
	_, err = s.Follow(ctx, job.ID, joblet.LogOptions{Follow: true}, nil, func(e Event) error {
		if len(e.Chunk.Data) > 0 {
			return asked
		}
		return nil
	})
	if !errors.Is(err, asked) {
		t.Fatalf("followed: %v", err)
	}
	before, err := s.Job(t.Context(), job.ID) // not the first attempt if that was too slow for its trap
	if err != nil {
		t.Fatal(err)
	}
	job, err = s.Stop(t.Context(), job.ID, joblet.StopOptions{Grace: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if job.State != joblet.TimedOut || job.Attempt != before.Attempt {
		t.Errorf("%v after attempt %d of which %d was asked to end", job.State, job.Attempt, before.Attempt)
	}
	j := newEntry(store.Record{Job: joblet.Job{ID: joblet.NewID(), State: joblet.Pending}})
	j.starting = true
	s.waitlist.enqueue(j)
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	if j.item.Waits() {
		t.Error("a job that is being ended waits in the queue")
	}
}

// TestStopWithin: a stop that does not wait is carried out all the same, asked for once
// or many times.
func TestStopWithin(t *testing.T) {
	s := open(t, t.TempDir(), nil)
	defer closing(t, s)
	job, err := s.Submit(t.Context(), joblet.Spec{Command: "true", Schedule: "+1h"}, "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	// Between waiting and running, nothing can ask it to end.
	j := s.table.find(job.ID)
	setStarting(s, j, true)
	for range 3 {
		if job, err := s.StopWithin(t.Context(), job.ID, joblet.StopOptions{}, 0); err != nil || job.State.Final() {
			t.Errorf("got %v, %v", job.State, err)
		}
	}
	setStarting(s, j, false)
	if job, err := s.Wait(t.Context(), job.ID); err != nil || job.State != joblet.Canceled {
		t.Errorf("got %v, %v", job.State, err)
	}
	if _, err := s.StopWithin(t.Context(), job.ID, joblet.StopOptions{}, time.Minute); joblet.KindOf(err) != joblet.FailedPrecondition {
		t.Errorf("an ended job: %v", err)
	}
}

// setStarting has a waiting job look as if it were about to run, or not.
func setStarting(s *Supervisor, j *entry, starting bool) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	j.starting = starting
	s.table.changed(j)
}

// TestEndStays: between the moment when a job's end is in the database and that when
// the job is what it says, nobody else can write its record: it would be that of a
// job that waits.
func TestEndStays(t *testing.T) {
	s := open(t, t.TempDir(), nil)
	defer closing(t, s)
	for range 100 { // until we are in time
		job, err := s.Submit(t.Context(), joblet.Spec{Command: "true", Schedule: "+1h"}, "test", nil)
		if err != nil {
			t.Fatal(err)
		}
		j := s.table.find(job.ID)
		canceled := make(chan error, 1)
		go func() {
			_, err := s.Cancel(t.Context(), job.ID)
			canceled <- err
		}()
		inTime, over := false, false
		for !inTime && !over {
			s.table.mu.Lock() // cancel takes it too, before and after
			rec, err := s.records.Get(t.Context(), job.ID)
			if err != nil {
				t.Fatal(err)
			}
			over = j.rec.State.Final()
			inTime = !over && rec.State == joblet.Canceled
			for n := 0; inTime && n < 50; n++ {
				if j.saving.TryLock() {
					j.saving.Unlock()
					t.Error("its record may be written while it still waits")
					break
				}
				time.Sleep(time.Millisecond)
			}
			s.table.mu.Unlock()
		}
		if err := <-canceled; err != nil {
			t.Fatal(err)
		}
		if inTime {
			return
		}
	}
	t.Fatal("never in time")
}

// TestDeleteTwice: of several that delete a job one does, and nothing is left.
func TestDeleteTwice(t *testing.T) {
	s := open(t, t.TempDir(), nil)
	defer closing(t, s)
	for range 30 {
		job, err := s.Submit(t.Context(), joblet.Spec{Command: "true"}, "test", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Wait(t.Context(), job.ID); err != nil {
			t.Fatal(err)
		}
		var deleted atomic.Int32
		var callers sync.WaitGroup
		for range 4 {
			callers.Go(func() {
				switch err := s.Delete(t.Context(), job.ID); {
				case err == nil:
					deleted.Add(1)
				case joblet.KindOf(err) != joblet.NotFound:
					t.Error(err)
				}
			})
		}
		callers.Wait()
		if left, _ := os.ReadDir(s.records.JobsDir()); deleted.Load() != 1 || len(left) > 0 {
			t.Fatalf("%d have deleted it; left: %v", deleted.Load(), left)
		}
	}
}

// TestHeldSpecs: what waits is in memory, so that nobody but root may have any
// amount of it there.
func TestHeldSpecs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, nil)
	s.table.specs.Max = 2 << 20
	spec := joblet.Spec{
		Command: "true", Args: []string{strings.Repeat("a", 100_000)}, Schedule: "+1h",
		Env: map[string]string{"V": strings.Repeat("x", 100_000)}, SecretEnv: map[string]string{"S": strings.Repeat("s", 100_000)},
	}
	submit := func(owner string) (joblet.Job, error) { return s.Submit(t.Context(), spec, owner, nil) }
	full := func(owner string) {
		t.Helper()
		if _, err := submit(owner); joblet.KindOf(err) != joblet.ResourceExhausted || !strings.Contains(err.Error(), "2 MiB") {
			t.Errorf("%s: got %v", owner, err)
		}
	}
	must := func(owner string) joblet.Job {
		t.Helper()
		job, err := submit(owner)
		if err != nil {
			t.Fatal(err)
		}
		return job
	}
	var jobs []joblet.Job
	for range s.table.specs.Max / 300_500 {
		jobs = append(jobs, must("cert:alice"))
	}
	full("cert:alice")
	now := spec
	now.Schedule = ""
	if _, err := s.Submit(t.Context(), now, "cert:alice", nil); joblet.KindOf(err) != joblet.ResourceExhausted {
		t.Errorf("one that can run at once: %v", err)
	}
	must("cert:bob")
	for range len(jobs) + 1 {
		must("uid:0")
	}
	closing(t, s)
	s = open(t, dir, nil)
	defer closing(t, s)
	s.table.specs.Max = 2 << 20
	full("cert:alice")
	if _, err := s.Cancel(t.Context(), jobs[0].ID); err != nil {
		t.Fatal(err)
	}
	must("cert:alice")
	full("cert:alice")
	n := 0
	if err := s.EachJob(t.Context(), joblet.Filter{}, nil, func(joblet.Job) error { n++; return nil }); err != nil || n != 2*len(jobs)+3 {
		t.Errorf("%d jobs of %d, %v", n, 2*len(jobs)+3, err)
	}
	for _, f := range []joblet.Filter{{Limit: 5}, {Limit: 5, States: []joblet.State{joblet.Scheduled}}, {Owner: "cert:bob", Limit: 5}} {
		n := 0
		err := s.EachJob(t.Context(), f, nil, func(joblet.Job) error { n++; return nil })
		if want := map[bool]int{false: 5, true: 1}[f.Owner != ""]; err != nil || n != want {
			t.Errorf("%+v: %d jobs, %v", f, n, err)
		}
	}
}

// TestStartNotUndone: a job whose start fails and whose record can be neither
// deleted nor changed, as on a full disk, is not started by the next daemon.
func TestStartNotUndone(t *testing.T) {
	for _, test := range []struct {
		name   string
		begins bool // the shim hears of it
		want   joblet.Kind
	}{{"the shim wrote it down", true, joblet.CommandNotFound}, {"before the shim heard of it", false, joblet.Internal}} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, nil)
			const full = "CREATE TRIGGER no_%[1]s BEFORE %[1]s ON job BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END;"
			db := filepath.Join(s.cfg.StateDir, "joblet.db")
			script(t, db, fmt.Sprintf(full, "delete")+fmt.Sprintf(full, "update"))
			id := ""
			s.table.mu.Lock()
			s.table.onChange = func(job string, _, to joblet.State) {
				if id = job; to == joblet.Initializing && !test.begins {
					if err := os.WriteFile(s.records.Dir(job), nil, 0o600); err != nil { // where its directory should go
						t.Error(err)
					}
				}
			}
			s.table.mu.Unlock()
			if _, err := s.Submit(t.Context(), joblet.Spec{Command: "no-such-command"}, "test", nil); joblet.KindOf(err) != test.want || !strings.Contains(err.Error(), "cleanup also failed: cannot delete the record") {
				t.Errorf("the submission: %v", err)
			}
			if job, err := s.Job(t.Context(), id); err != nil || job.State != joblet.Failed {
				t.Errorf("afterwards: %v, %v", job.State, err)
			}
			closing(t, s)
			script(t, db, "DROP TRIGGER no_delete; DROP TRIGGER no_update")
			var log bytes.Buffer
			s = open(t, dir, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
			job, err := s.Wait(t.Context(), id)
			if err != nil || job.State != joblet.Failed || job.Exit != nil || job.Reason == "" {
				t.Errorf("the next daemon: %v, %v", job, err)
			}
			closing(t, s)
			if text := log.String(); strings.Contains(text, "was interrupted") {
				t.Errorf("it was started again: %s", text)
			}
		})
	}
}

// script runs SQL on a database beside whoever has it open.
func script(t *testing.T, db, text string) {
	t.Helper()
	c, err := sqlite.OpenConn(db, sqlite.OpenReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetBusyTimeout(10 * time.Second)
	if err := sqlitex.ExecuteScript(c, text, nil); err != nil {
		t.Fatal(err)
	}
}

// TestLeftovers: what a daemon that died did not remove of a job that had ended,
// the next one does.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	job, err := s.Submit(t.Context(), joblet.Spec{Command: "true"}, "test", nil)
	if err == nil {
		_, err = s.Wait(t.Context(), job.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	closing(t, s)
	for _, name := range []string{"exit.json.tmp", "exit-2.json.tmp", "work.tar.tmp", "other.tmp"} {
		if err := os.WriteFile(filepath.Join(s.records.Dir(job.ID), name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir, nil)
	defer closing(t, s)
	var left []string
	if !eventually(func() bool {
		left, err = filepath.Glob(filepath.Join(s.records.Dir(job.ID), "*.tmp"))
		return err == nil && len(left) == 1
	}) || filepath.Base(left[0]) != "other.tmp" {
		t.Errorf("left: %q, %v", left, err)
	}
}
