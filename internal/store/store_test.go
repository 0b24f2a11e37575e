package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/joblet/joblet"
)

// epoch is when the tests' first job was created.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// openTest opens fresh job records and closes them after the test.
func openTest(t testing.TB) *Store {
	t.Helper()
	return reopen(t, filepath.Join(t.TempDir(), "joblet.db"))
}

func reopen(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// jobN is the nth job of a test; n is part of its id.
func jobN(n int) joblet.Job {
	return joblet.Job{
		ID:      fmt.Sprintf("%08x-0000-4000-8000-%012x", n, n),
		Spec:    joblet.Spec{Command: "true"},
		Owner:   "uid:0",
		State:   joblet.Pending,
		Created: epoch.Add(time.Duration(n) * time.Second),
	}
}

func mustInsert(t testing.TB, s *Store, jobs ...joblet.Job) {
	t.Helper()
	for _, job := range jobs {
		if err := s.Insert(context.Background(), job); err != nil {
			t.Fatal(err)
		}
	}
}

func wantKind(t testing.TB, err error, kind joblet.Kind, parts ...string) {
	t.Helper()
	if err == nil || joblet.KindOf(err) != kind {
		t.Fatalf("error %v is of kind %v, want %v", err, joblet.KindOf(err), kind)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q lacks %q", err, part)
		}
	}
}

// fullJob returns a job none of whose fields is zero.
func fullJob(t *testing.T) joblet.Job {
	t.Helper()
	job := joblet.Job{
		ID: joblet.NewID(),
		Spec: joblet.Spec{
			Command: "sh", Args: []string{"-c", "a && b > 'c' \u2028 <ü>", ""}, Name: "nightly", Runtime: "python-3.11", WorkDir: "/work/x",
			Env:       map[string]string{"A": "1", "B": "line\nline"},
			SecretEnv: map[string]string{"TOKEN": "hunter2-in-clear", "EMPTY": ""},
			Timeout:   time.Minute + 1, Init: true,
		},
		Owner: "cert:alice", State: joblet.Failed,
		Created: epoch, Started: epoch.Add(1), Ended: epoch.Add(time.Hour),
		Exit: &joblet.Exit{Code: 3, Signal: 9}, Reason: "out of memory",
		PID: 4711, IDBase: 4294901760, LogBytes: 1 << 40,
	}
	requireFilled(t, "Job", reflect.ValueOf(job))
	return job
}

// requireFilled fails for a field that is zero: one that is newer than
// fullJob.
func requireFilled(t *testing.T, name string, v reflect.Value) {
	t.Helper()
	if v.IsZero() {
		t.Fatalf("%s is zero: give it a value in the test, and a place in the schema", name)
	}
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[time.Time]() {
		for field, value := range v.Fields() {
			requireFilled(t, name+"."+field.Name, value)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "joblet.db")
	s := reopen(t, path)
	full, bare := fullJob(t), jobN(1)
	mustInsert(t, s, full, bare)
	stored := full
	stored.Spec = full.Spec.Redacted()
	check := func(s *Store, want ...joblet.Job) {
		t.Helper()
		for _, w := range want {
			if got, err := s.Get(t.Context(), w.ID); err != nil || !reflect.DeepEqual(got, w) {
				t.Errorf("Get: %+v, %v\nwant %+v", got, err, w)
			}
		}
	}
	check(s, stored, bare)
	if full.Spec.SecretEnv["TOKEN"] != "hunter2-in-clear" {
		t.Error("Insert changed its caller's spec")
	}

	// What became of the job changes, what was asked does not.
	ended := fullJob(t)
	ended.ID, ended.State = bare.ID, joblet.Stopped
	want := ended
	want.Spec, want.Owner, want.Created = bare.Spec, bare.Owner, bare.Created
	if err := s.Update(t.Context(), ended); err != nil {
		t.Fatal(err)
	}
	check(s, stored, want)
	want.State, want.Exit, want.Ended = joblet.Running, nil, time.Time{}
	if err := s.UpdateUnsynced(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	check(s, stored, want)

	for _, suffix := range []string{"", "-wal", "-shm"} {
		content, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content, []byte("hunter2")) {
			t.Errorf("the secret is in joblet.db%s", suffix)
		}
		if info, err := os.Stat(path + suffix); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("joblet.db%s: %v, %v", suffix, info.Mode(), err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check(reopen(t, path), stored, want)
}

func TestRefusedChanges(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	mustInsert(t, s, jobN(1))
	with := func(change func(*joblet.Job)) joblet.Job {
		job := jobN(2)
		change(&job)
		return job
	}
	for _, tc := range []struct {
		name string
		job  joblet.Job
		kind joblet.Kind
	}{
		{"taken id", with(func(j *joblet.Job) { j.ID = jobN(1).ID }), joblet.AlreadyExists},
		{"taken id and time", jobN(1), joblet.AlreadyExists},
		{"no id", with(func(j *joblet.Job) { j.ID = "" }), joblet.InvalidArgument},
		{"no state", with(func(j *joblet.Job) { j.State = 0 }), joblet.InvalidArgument},
		{"no time", with(func(j *joblet.Job) { j.Created = time.Time{} }), joblet.InvalidArgument},
		{"time too far", with(func(j *joblet.Job) { j.Created = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC) }), joblet.InvalidArgument},
		{"not UTF-8", with(func(j *joblet.Job) { j.Spec.Args = []string{"\xff"} }), joblet.InvalidArgument},
		{"too large", with(func(j *joblet.Job) { j.Spec.Args = []string{strings.Repeat("x", maxSpecSize)} }), joblet.InvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) { wantKind(t, s.Insert(t.Context(), tc.job), tc.kind) })
	}
	wantKind(t, s.Update(t.Context(), jobN(3)), joblet.NotFound, "rnx job list")
	wantKind(t, s.Update(t.Context(), joblet.Job{ID: jobN(1).ID}), joblet.InvalidArgument)
	wantKind(t, s.UpdateUnsynced(t.Context(), jobN(3)), joblet.NotFound)
	wantKind(t, s.Delete(t.Context(), jobN(3).ID), joblet.NotFound)
	_, err := s.Get(t.Context(), jobN(3).ID)
	wantKind(t, err, joblet.NotFound, jobN(3).ID)

	// U+FFFD itself, and its escape as text, are as good as any other.
	fine := with(func(j *joblet.Job) { j.Spec.Args = []string{"\ufffd", `\ufffd`} })
	mustInsert(t, s, fine)
	if got, err := s.Get(t.Context(), fine.ID); err != nil || !reflect.DeepEqual(got, fine) {
		t.Errorf("Get: %+v, %v", got, err)
	}
	if all, err := s.List(t.Context(), joblet.Filter{}); err != nil || len(all) != 2 {
		t.Errorf("%d jobs, %v: a refused one is there", len(all), err)
	}
}

func TestLargeSpec(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	job := jobN(1)
	for len(job.Spec.Args) < 16 {
		job.Spec.Args = append(job.Spec.Args, strings.Repeat("<\x01", joblet.MaxStringLen/2))
	}
	mustInsert(t, s, job)
	if got, err := s.Get(t.Context(), job.ID); err != nil || !reflect.DeepEqual(got, job) {
		t.Errorf("the job differs, %v", err)
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	mustInsert(t, s, jobN(1), jobN(2))
	if err := s.Delete(t.Context(), jobN(1).ID); err != nil {
		t.Fatal(err)
	}
	_, err := s.Get(t.Context(), jobN(1).ID)
	wantKind(t, err, joblet.NotFound)
	mustInsert(t, s, jobN(1))
	if all, err := s.List(t.Context(), joblet.Filter{}); err != nil || len(all) != 2 {
		t.Errorf("%d jobs, %v", len(all), err)
	}
}

// numbers returns the jobs' n of jobN.
func numbers(jobs []joblet.Job) []int {
	ns := []int{}
	for _, job := range jobs {
		var n int
		_, _ = fmt.Sscanf(job.ID, "%x-", &n)
		ns = append(ns, n)
	}
	return ns
}

func TestList(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	var all []joblet.Job
	for n := range 132 {
		job := jobN(n)
		job.State = joblet.States()[n%11]
		job.Owner = []string{"uid:0", "uid:1000", "", "cert:bob"}[n%4]
		job.Spec.Name = []string{"", "train", "eval"}[n/3%3]
		if n >= 50 && n < 60 {
			job.Created = jobN(50).Created // they share one instant
		}
		all = append(all, job)
	}
	mustInsert(t, s, all...)
	slices.Reverse(all)

	states := func(s ...joblet.State) []joblet.State { return s }
	for _, f := range []joblet.Filter{
		{},
		{States: states(joblet.Running)},
		{States: states(joblet.Running, joblet.Failed, joblet.Running)},
		{States: states(joblet.State(0), joblet.State(200))},
		{States: joblet.States()},
		{Name: "train"},
		{Name: "tra"},
		{Name: "eval", States: states(joblet.Completed, joblet.Lost)},
		{Owner: "uid:1000"},
		{Owner: "nobody"},
		{Owner: "cert:bob", States: states(joblet.Pending)},
		{Owner: "uid:0", Name: "train"},
		{Owner: "uid:0", Name: "train", States: states(joblet.Stopped, joblet.Canceled, joblet.TimedOut)},
	} {
		for _, since := range []time.Time{{}, epoch.Add(-time.Hour), jobN(100).Created, jobN(50).Created.Add(3), time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC)} {
			for _, limit := range []int{0, 7, 1000} {
				f.Since, f.Limit = since, limit
				want := slices.DeleteFunc(slices.Clone(all), func(j joblet.Job) bool {
					return len(f.States) > 0 && !slices.Contains(f.States, j.State) ||
						f.Name != "" && j.Spec.Name != f.Name || f.Owner != "" && j.Owner != f.Owner || j.Created.Before(f.Since)
				})
				// Page through all of it.
				got, f := []joblet.Job{}, f
				for {
					page, err := s.List(t.Context(), f)
					if err != nil {
						t.Fatalf("%+v: %v", f, err)
					}
					got = append(got, page...)
					if limit == 0 || len(page) < limit {
						break
					}
					f.Before = page[len(page)-1].ID
				}
				if !reflect.DeepEqual(got, want) {
					t.Errorf("%+v: jobs %v, want %v", f, numbers(got), numbers(want))
				}
			}
		}
	}
	_, err := s.List(t.Context(), joblet.Filter{Before: joblet.NewID()})
	wantKind(t, err, joblet.NotFound)
	_, err = s.List(t.Context(), joblet.Filter{Limit: -1})
	wantKind(t, err, joblet.InvalidArgument)

	open, err := s.Unfinished(t.Context())
	want := slices.DeleteFunc(slices.Clone(all), func(j joblet.Job) bool { return j.State.Final() })
	if err != nil || !reflect.DeepEqual(open, want) {
		t.Errorf("unfinished: jobs %v, %v, want %v", numbers(open), err, numbers(want))
	}
}

// More jobs of one instant than the search for a free row number takes in at
// once.
func TestOneInstant(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	var wg sync.WaitGroup
	for n := range 1200 {
		job := jobN(n)
		job.Created = epoch
		wg.Go(func() {
			if err := s.Insert(context.Background(), job); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if all, err := s.List(t.Context(), joblet.Filter{Since: epoch}); err != nil || len(all) != 1200 {
		t.Errorf("%d jobs, %v", len(all), err)
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	add := func(id, name string, state joblet.State, second int) {
		job := jobN(second)
		job.ID, job.Spec.Name, job.State = id, name, state
		job.Spec.Args = []string{"\x1b[31m", strings.Repeat("x", 200)}
		mustInsert(t, s, job)
	}
	add("aaaaaaaa-0000-4000-8000-000000000001", "train", joblet.Completed, 1)
	add("aaaaaaaa-0000-4000-8000-000000000002", "train", joblet.Running, 2)
	add("aabbbbbb-0000-4000-8000-000000000003", "train", joblet.Running, 3)
	add("aabbbbbc-0000-4000-8000-000000000004", "train", joblet.Failed, 4)
	add("bbbbbbbb-0000-4000-8000-000000000005", "eval", joblet.Failed, 5)
	add("cccccccc-0000-4000-8000-000000000006", "eval", joblet.Completed, 6)
	add("dddddddd-0000-4000-8000-000000000007", "bbbb", joblet.Completed, 7)     // a name like a prefix
	add("eeeeeeee-0000-4000-8000-000000000008", "cccccccc", joblet.Completed, 8) // a name like a short id
	add("ffffffff-0000-4000-8000-000000000009", "10000000", joblet.Completed, 9) // ... of no job
	add("f0000000-0000-4000-8000-00000000000a", "Train", joblet.Completed, 10)
	add("aac00000-0000-4000-8000-00000000000b", "", joblet.Completed, 11)
	add("aad00000-0000-4000-8000-00000000000c", "", joblet.Completed, 12)

	for _, tc := range []struct {
		ref  string
		want string // the id's last digit, or
		kind joblet.Kind
		err  []string
	}{
		{ref: "aaaaaaaa-0000-4000-8000-000000000001", want: "1"},
		{ref: "AAAAAAAA-0000-4000-8000-000000000002", want: "2"},
		{ref: "aabbbbbb", want: "3"},
		{ref: "d", want: "7"},
		{ref: "aaaaaaaa-0000-4000-8000-00000000000", kind: joblet.InvalidArgument, err: []string{
			"  aaaaaaaa-0000-4000-8000-000000000001  COMPLETED     true '?[31m' xxx", "000002  RUNNING ", "x…"}},
		{ref: "aa", kind: joblet.InvalidArgument, err: []string{"\n  aaaaaaaa  ", "\n  aabbbbbb  ", "\n  aac00000  ", "and more"}},
		{ref: "aabbbbb", kind: joblet.InvalidArgument, err: []string{"\n  aabbbbbb  ", "\n  aabbbbbc  "}},
		{ref: "train", want: "3"},
		{ref: "Train", want: "a"},
		{ref: "eval", want: "6"},
		{ref: "bbbb", want: "7"},
		{ref: "bbbbb", want: "5"},
		{ref: "cccccccc", want: "6"},
		{ref: "10000000", want: "9"},
		{ref: "0", kind: joblet.NotFound, err: []string{"no job 0", "rnx job list"}},
		{ref: "aaaaaaaag", kind: joblet.NotFound},
		{ref: "trai", kind: joblet.NotFound},
		{ref: "%", kind: joblet.NotFound},
		{ref: "a\x00", kind: joblet.NotFound, err: []string{"no job a?"}},
		{ref: strings.Repeat("a", 1000), kind: joblet.NotFound, err: []string{"a…"}},
		{ref: "", kind: joblet.InvalidArgument},
	} {
		job, err := s.Resolve(t.Context(), tc.ref)
		switch {
		case tc.want == "":
			wantKind(t, err, tc.kind, tc.err...)
			if strings.ContainsRune(err.Error(), '\x1b') {
				t.Errorf("%q: a control character in %q", tc.ref, err)
			}
		case err != nil || !strings.HasSuffix(job.ID, tc.want):
			t.Errorf("%q: %s, %v, want …%s", tc.ref, job.ID, err, tc.want)
		}
	}
}

// Writers, readers and lists at once; afterwards every change is there.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	const workers, each = 8, 30
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				job := jobN(w*each + i)
				mustDo := func(err error) {
					if err != nil {
						t.Error(err)
					}
				}
				mustDo(s.Insert(t.Context(), job))
				if err := s.Insert(t.Context(), job); joblet.KindOf(err) != joblet.AlreadyExists {
					t.Errorf("second Insert: %v", err)
				}
				job.State = joblet.Running
				mustDo(s.UpdateUnsynced(t.Context(), job))
				if got, err := s.Get(t.Context(), job.ID); err != nil || got.State != joblet.Running {
					t.Errorf("%v after Update, %v", got.State, err)
				}
				_, err := s.List(t.Context(), joblet.Filter{States: []joblet.State{joblet.Running, joblet.Completed}, Limit: 5})
				mustDo(err)
				job.State = joblet.Completed
				mustDo(s.Update(t.Context(), job))
				if i%3 == 0 {
					mustDo(s.Delete(t.Context(), job.ID))
				}
			}
		})
	}
	wg.Wait()
	done, err := s.List(t.Context(), joblet.Filter{States: []joblet.State{joblet.Completed}})
	if want := workers * each * 2 / 3; err != nil || len(done) != want {
		t.Errorf("%d jobs, %v, want %d", len(done), err, want)
	}
}

func TestContext(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	mustInsert(t, s, jobN(1))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, getErr := s.Get(ctx, jobN(1).ID)
	_, listErr := s.List(ctx, joblet.Filter{})
	_, openErr := Open(ctx, filepath.Join(t.TempDir(), "joblet.db"))
	for _, err := range []error{getErr, listErr, openErr, s.Insert(ctx, jobN(2)), s.Update(ctx, jobN(1)), s.Delete(ctx, jobN(1).ID)} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	}
	if all, err := s.List(t.Context(), joblet.Filter{}); err != nil || len(all) != 1 {
		t.Errorf("%d jobs, %v", len(all), err)
	}
}

// Close while callers are at it: each has an answer, which is true.
func TestClose(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "joblet.db")
	s := reopen(t, path)
	var acknowledged [4]int
	var wg sync.WaitGroup
	started := make(chan struct{}, len(acknowledged))
	for w := range acknowledged {
		wg.Go(func() {
			for n := w * 1_000_000; ; n++ {
				err := s.Insert(context.Background(), jobN(n))
				if err == nil {
					_, err = s.Get(context.Background(), jobN(n).ID)
					acknowledged[w]++
				}
				if err != nil {
					if joblet.KindOf(err) != joblet.Unavailable {
						t.Error(err)
					}
					return
				}
				if acknowledged[w] == 5 {
					started <- struct{}{}
				}
			}
		})
	}
	for range acknowledged {
		<-started
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if _, err := os.Stat(path + "-wal"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the log is left: %v", err)
	}
	all, err := reopen(t, path).List(t.Context(), joblet.Filter{})
	if want := acknowledged[0] + acknowledged[1] + acknowledged[2] + acknowledged[3]; err != nil || len(all) != want {
		t.Errorf("%d jobs, %v, want %d", len(all), err, want)
	}
}
