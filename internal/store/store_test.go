package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	if err == nil {
		err = s.Vouch(t.Context())
	}
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
func jobN(n int) Record {
	return Record{Job: joblet.Job{
		ID:      fmt.Sprintf("%08x-0000-4000-8000-%012x", n, n),
		Spec:    joblet.Spec{Command: "true"},
		Owner:   "uid:0",
		State:   joblet.Pending,
		Created: epoch.Add(time.Duration(n) * time.Second),
	}}
}

func mustInsert(t testing.TB, s *Store, jobs ...Record) {
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

// fullJob returns a record none of whose fields is zero.
func fullJob(t *testing.T) Record {
	t.Helper()
	job := Record{Job: joblet.Job{
		ID: joblet.NewID(),
		Spec: joblet.Spec{
			Command: "sh", Args: []string{"-c", "a && b > 'c' \u2028 <ü>", "", "\xff"}, Name: "nightly", Runtime: "python-3.11", WorkDir: "/work/x",
			Env:       map[string]string{"A": "1", "B": "line\nline", "\xff": "\xfe"},
			SecretEnv: map[string]string{"TOKEN": "hunter2-in-clear", "EMPTY": ""},
			Timeout:   time.Minute + 1, Init: true,
			Labels:   map[string]string{"team/x": "vision \u2028 \"ü\" \\n", "empty": ""},
			Schedule: "*/5 * * * *", Overlap: joblet.OverlapQueue,
			Retries: 3, RetryDelay: time.Second, RetryOn: []int{1, 124}, RetryOnLost: true, MergeOutput: true, Warnings: []string{"max_cpu 900: 200"},
			DependsOn: []string{"a"}, Priority: -7, IdempotencyKey: "once ü",
			Stdin: joblet.StdinStream, Uploads: []string{"data", "\xff"}, LogMax: 1 << 20,
			Terminal: joblet.WindowSize{Rows: 24, Columns: 80},
			Security: joblet.Security{
				Profile: joblet.ProfileNested, AllowCalls: []string{"kcmp"}, DenyCalls: []string{"ptrace"},
				CapAdd: []string{"net_raw"}, CapDrop: []string{"chown"}, User: "1000:100", LogDenied: true,
			},
			Limits: joblet.Limits{
				CPUPercent: 150, CPUCores: "0-1", CPUWeight: 7, MemoryBytes: 1 << 33, MemoryHighBytes: 1 << 32, SwapBytes: 1 << 20, MaxPIDs: 99,
				IOBps: 1 << 20, ReadBps: 2 << 20, WriteBps: 3 << 20, IOps: 1000, DiskBytes: 1 << 28, ShmBytes: 1 << 27,
				Rlimits: map[string]joblet.Rlimit{"nofile": {Soft: 1, Hard: joblet.Unlimited}},
			},
		},
		Usage: joblet.Usage{
			CPUUser: 1, CPUSystem: 2, Throttled: 3, MemoryPeak: 4, PIDsPeak: 5, ReadBytes: 6, WriteBytes: 7, ReadOps: 8, WriteOps: 9,
			CPUStall: 10, MemoryStall: 11, IOStall: 12,
		}, OutOfMemory: true,
		Denied: []joblet.DeniedCall{
			{Call: "mount", Errno: "EPERM", Count: math.MaxUint64, Remedy: joblet.RemedyNested},
			{Call: "socket", Argument: "AF_ALG", Errno: "EAFNOSUPPORT", Count: 1},
		},
		Owner: "cert:alice", State: joblet.Failed,
		Created: epoch, Started: epoch.Add(1), Ended: epoch.Add(time.Hour),
		Exit: &joblet.Exit{Code: 3, Signal: 9}, Reason: "out of memory",
		PID: 4711, IDBase: 4294901760, LogBytes: 1 << 40,
		Scheduled: epoch.Add(time.Minute), Parent: joblet.NewID(), Attempt: 3, Failure: joblet.NotExecutable, WorkBytes: 1 << 41,
		Past: []joblet.Attempt{
			{Started: epoch.Add(2), Ended: epoch.Add(3), State: joblet.Failed, Exit: &joblet.Exit{Code: 1}, Reason: "a <b> \u2028"},
			{State: joblet.TimedOut},
		},
	}, Box: "b1", Leases: map[string]json.RawMessage{"ids": json.RawMessage(`{"base":1}`)}, Sealed: []byte("\x00\xff'"), DiskBytes: 1 << 42}
	requireFilled(t, "Record", reflect.ValueOf(job))
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
	check := func(s *Store, want ...Record) {
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

	// What became of the job changes, what was asked does not, but for its limits.
	ended := fullJob(t)
	ended.ID, ended.State = bare.ID, joblet.Stopped
	want := ended
	want.Spec, want.Owner, want.Created, want.Parent = bare.Spec, bare.Owner, bare.Created, ""
	want.Spec.Limits = ended.Spec.Limits
	if err := s.Update(t.Context(), ended); err != nil {
		t.Fatal(err)
	}
	check(s, stored, want)
	want.State, want.Exit, want.Ended, want.Sealed, want.Past = joblet.Running, nil, time.Time{}, nil, nil
	if err := s.UpdateUnsynced(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	check(s, stored, want)
	want.Sealed = []byte{} // empty is not none
	if err := s.Update(t.Context(), want); err != nil {
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
	with := func(change func(*Record)) Record {
		job := jobN(2)
		change(&job)
		return job
	}
	for _, tc := range []struct {
		name string
		job  Record
		kind joblet.Kind
	}{
		{"taken id", with(func(j *Record) { j.ID = jobN(1).ID }), joblet.AlreadyExists},
		{"taken id and time", jobN(1), joblet.AlreadyExists},
		{"no id", with(func(j *Record) { j.ID = "" }), joblet.InvalidArgument},
		{"no state", with(func(j *Record) { j.State = 0 }), joblet.InvalidArgument},
		{"no time", with(func(j *Record) { j.Created = time.Time{} }), joblet.InvalidArgument},
		{"time too far", with(func(j *Record) { j.Created = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC) }), joblet.InvalidArgument},
		{"start too early", with(func(j *Record) { j.Started = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC) }), joblet.InvalidArgument},
		{"scheduled too late", with(func(j *Record) { j.Scheduled = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) }), joblet.InvalidArgument},
		{"attempt without a state", with(func(j *Record) { j.Past = []joblet.Attempt{{}} }), joblet.InvalidArgument},
		{"attempt in no time", with(func(j *Record) {
			j.Past = []joblet.Attempt{{State: joblet.Failed, Ended: time.Date(10001, 1, 1, 0, 0, 0, 0, time.UTC)}}
		}), joblet.InvalidArgument},
		{"huge secrets", with(func(j *Record) { j.Sealed = make([]byte, maxSealedSize+1) }), joblet.InvalidArgument},
		{"not UTF-8", with(func(j *Record) { j.Spec.IdempotencyKey = "\xff" }), joblet.InvalidArgument},
		{"too large", with(func(j *Record) { j.Spec.Args = []string{strings.Repeat("x", maxSpecSize)} }), joblet.InvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) { wantKind(t, s.Insert(t.Context(), tc.job), tc.kind) })
	}
	wantKind(t, s.Update(t.Context(), jobN(3)), joblet.NotFound, "rnx job list")
	wantKind(t, s.Update(t.Context(), Record{Job: joblet.Job{ID: jobN(1).ID}}), joblet.InvalidArgument)
	wantKind(t, s.UpdateUnsynced(t.Context(), jobN(3)), joblet.NotFound)
	wantKind(t, s.Delete(t.Context(), jobN(3).ID), joblet.NotFound)
	_, err := s.Get(t.Context(), jobN(3).ID)
	wantKind(t, err, joblet.NotFound, jobN(3).ID)

	// U+FFFD itself, and its escape as text, are as good as any other.
	fine := with(func(j *Record) { j.Spec.Args = []string{"\ufffd", `\ufffd`} })
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

// passes says what Filter's fields mean, but for Limit and Before.
func passes(f joblet.Filter, j joblet.Job) bool {
	for _, m := range f.Labels {
		if value, ok := j.Spec.Labels[m.Name]; !ok || !m.Any && value != m.Value {
			return false
		}
	}
	return (len(f.States) == 0 || slices.Contains(f.States, j.State)) &&
		(f.Name == "" || j.Spec.Name == f.Name) && (f.Owner == "" || j.Owner == f.Owner) &&
		(f.Parent == "" || j.Parent == f.Parent) && !j.Created.Before(f.Since) &&
		(f.EndedBefore.IsZero() || j.State.Final() && !j.Ended.IsZero() && j.Ended.Before(f.EndedBefore))
}

// labels reads label matches.
func labels(texts ...string) (all []joblet.LabelMatch) {
	for _, text := range texts {
		m, err := joblet.ParseLabelMatch(text)
		if err != nil {
			panic(err)
		}
		all = append(all, m)
	}
	return all
}

// TestListFrom: a list in parts is the list, also when the last job of a part is
// gone before the next one; large jobs make small parts.
func TestListFrom(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	const small, large = 20, 5
	for n := range small + large {
		job := jobN(n)
		job.Owner = []string{"uid:0", "cert:bob"}[n%2]
		if n >= small {
			job.Spec.Env = map[string]string{"A": strings.Repeat("x", 100_000)}
		}
		mustInsert(t, s, job)
	}
	for _, f := range []joblet.Filter{{Limit: 8}, {Limit: 8, Owner: "cert:bob"}, {Limit: 100}, {}} {
		all := f
		all.Limit = 0
		want, err := s.List(t.Context(), all)
		if err != nil {
			t.Fatal(err)
		}
		var got []joblet.Job
		var parts []int
		for from := int64(0); ; {
			part, next, err := s.ListFrom(t.Context(), f, from, 250_000)
			if err != nil {
				t.Fatal(err)
			}
			got, parts = append(got, part...), append(parts, len(part))
			if next == 0 {
				break
			}
			from = next
		}
		if !slices.Equal(numbers(got), numbers(want)) {
			t.Errorf("%+v: got %v in parts of %v, want %v", f, numbers(got), parts, numbers(want))
		}
		if f.Owner == "" && parts[0] != 3 || f.Limit == 8 && slices.Max(parts) > 8 {
			t.Errorf("%+v: parts of %v", f, parts)
		}
	}
	part, next, err := s.ListFrom(t.Context(), joblet.Filter{}, 0, 1)
	if err != nil || len(part) != 1 {
		t.Fatalf("%d jobs, %v", len(part), err)
	}
	if err := s.Delete(t.Context(), part[0].ID); err != nil {
		t.Fatal(err)
	}
	if part, _, err = s.ListFrom(t.Context(), joblet.Filter{}, next, 1); err != nil || !slices.Equal(numbers(part), []int{small + large - 2}) {
		t.Errorf("%v, %v", numbers(part), err)
	}
	_, _, err = s.ListFrom(t.Context(), joblet.Filter{Limit: -1}, 0, 1)
	wantKind(t, err, joblet.InvalidArgument, "negative")
}

func TestList(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	var all []joblet.Job
	for n := range 264 {
		job := jobN(n)
		job.Owner = []string{"uid:0", "uid:1000", "", "cert:bob"}[n%4]
		job.Spec.Name = []string{"", "train", "eval"}[n/3%3]
		job.Parent = []string{"", jobN(0).ID, "", jobN(1).ID, ""}[n%5]
		if n >= 50 && n < 60 {
			job.Created = jobN(50).Created // they share one instant
		}
		switch n % 7 {
		case 0:
			job.Spec.Labels = map[string]string{"a": "b", "c": "d", "every/seventh": "ü \"x\""}
		case 1, 3:
			job.Spec.Labels = map[string]string{"a": "b", "run": fmt.Sprint(n)}
		case 2:
			job.Spec.Labels = map[string]string{"a": "", "c": "d"}
		case 4:
			job.Spec.Labels = map[string]string{"c": "b"}
		}
		state := joblet.States()[n%11]
		if n%2 == 0 { // every second is not born with its state
			mustInsert(t, s, job)
		}
		job.State = state
		if state.Final() {
			job.Ended = job.Created.Add(time.Duration(n%6) * time.Minute / 2)
			switch n % 13 {
			case 0:
				job.Ended = time.Time{} // unknown
			case 1:
				job.Ended = job.Created.Add(-time.Minute) // the clock was set
			}
		}
		if n%2 == 0 {
			if err := s.UpdateUnsynced(t.Context(), job); err != nil {
				t.Fatal(err)
			}
		} else {
			mustInsert(t, s, job)
		}
		if n%12 == 11 {
			if err := s.Delete(t.Context(), job.ID); err != nil {
				t.Fatal(err)
			}
			continue
		}
		all = append(all, job.Job)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	slices.Reverse(all)

	states := func(s ...joblet.State) []joblet.State { return s }
	filters := []joblet.Filter{
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
		{Parent: jobN(0).ID},
		{Parent: jobN(1).ID, States: states(joblet.Failed, joblet.Running)},
		{Parent: jobN(2).ID},
		{Labels: labels("a=b")},
		{Labels: labels("a")},
		{Labels: labels("a=")},
		{Labels: labels("A=b")},
		{Labels: labels("run=15")},
		{Labels: labels("run")},
		{Labels: labels(`every/seventh=ü "x"`)},
		{Labels: labels("a=b", "a=b", "a")},
		{Labels: labels("a=b", "a=")},
		{Labels: labels("a=b", "c=d")},
		{Labels: labels("c", "a", "every/seventh"), Owner: "uid:0"},
		{Labels: labels("a=b", "nothing")},
		{Labels: labels("a=b"), States: states(joblet.Running, joblet.TimedOut)},
		{Labels: labels("a", "c=d"), Name: "train", Parent: jobN(0).ID},
		{Parent: jobN(0).ID, Name: "eval", Owner: "cert:bob"},
	}
	// Random filters as well, different ones in each run: under the race detector a
	// list takes fourteen times as long, and nothing here happens at the same time.
	pick := func(n int) bool { return rand.IntN(n) == 0 }
	for range 15 {
		var f joblet.Filter
		for _, m := range labels("a", "a=b", "a=", "c=d", "c", "run=17") {
			if pick(4) {
				f.Labels = append(f.Labels, m)
			}
		}
		for _, state := range joblet.States() {
			if pick(3) {
				f.States = append(f.States, state)
			}
		}
		if pick(4) {
			f.Owner = "uid:0"
		}
		if pick(4) {
			f.Name = "train"
		}
		if pick(4) {
			f.Parent = jobN(0).ID
		}
		filters = append(filters, f)
	}
	passed := 0
	for _, f := range filters {
		future := time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC)
		for i, since := range []time.Time{{}, jobN(100).Created, jobN(50).Created.Add(3), epoch.Add(-time.Hour), future} {
			for k, endedBefore := range []time.Time{{}, jobN(50).Created.Add(1), jobN(200).Created, time.Unix(-1, 0), future} {
				if i > 2 && k > 0 || k > 2 && i > 0 { // what passes all or nothing is tried alone
					continue
				}
				if i+k > 0 && !pick(5) { // each filter meets some of the bounds
					continue
				}
				for _, limit := range []int{0, 7 + 20*i} {
					f.Since, f.EndedBefore, f.Limit = since, endedBefore, limit
					want := slices.DeleteFunc(slices.Clone(all), func(j joblet.Job) bool { return !passes(f, j) })
					passed += len(want)
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
						t.Fatalf("%+v: jobs %v, want %v", f, numbers(got), numbers(want))
					}
				}
			}
		}
	}
	t.Logf("%d jobs passed %d filters", passed, len(filters))
	_, err := s.List(t.Context(), joblet.Filter{Before: joblet.NewID()})
	wantKind(t, err, joblet.NotFound)
	_, err = s.List(t.Context(), joblet.Filter{Limit: -1})
	wantKind(t, err, joblet.InvalidArgument)
	_, err = s.List(t.Context(), joblet.Filter{Labels: make([]joblet.LabelMatch, joblet.MaxLabels+1)})
	wantKind(t, err, joblet.InvalidArgument)

	unfinished, err := s.Unfinished(t.Context())
	open := []joblet.Job{}
	for _, r := range unfinished {
		open = append(open, r.Job)
	}
	want := slices.DeleteFunc(slices.Clone(all), func(j joblet.Job) bool { return j.State.Final() })
	slices.Reverse(want)
	if err != nil || !reflect.DeepEqual(open, want) {
		t.Errorf("unfinished: jobs %v, %v, want %v", numbers(open), err, numbers(want))
	}

	want = slices.DeleteFunc(slices.Clone(all), func(j joblet.Job) bool { return !j.State.Final() })
	slices.SortStableFunc(want, func(a, b joblet.Job) int { return a.Ended.Compare(b.Ended) })
	for _, limit := range []int{0, 1, 20, 1000} {
		want := want
		if limit > 0 {
			want = want[:min(limit, len(want))]
		}
		ended, err := s.OldestEnded(t.Context(), limit)
		if err != nil || len(ended) != len(want) {
			t.Fatalf("OldestEnded(%d): %d jobs, %v, want %d", limit, len(ended), err, len(want))
		}
		for i := range want { // of equal times any may be first
			if !ended[i].State.Final() || !ended[i].Ended.Equal(want[i].Ended) {
				t.Errorf("OldestEnded(%d): job %d ended %v, want %v", limit, i, ended[i].Ended, want[i].Ended)
			}
		}
	}
	_, err = s.OldestEnded(t.Context(), -1)
	wantKind(t, err, joblet.InvalidArgument)
}

// Jobs that share labels in every other place: the intersection reads ahead.
func TestIntersection(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	var wg sync.WaitGroup
	next := make(chan int)
	for range maxBatch {
		wg.Go(func() {
			for n := range next {
				job := jobN(n)
				job.Spec.Labels = map[string]string{[]string{"even", "odd"}[n%2]: "", fmt.Sprint("block-", n/1500): ""}
				if n%1000 == 999 {
					job.Spec.Labels["even"] = ""
				}
				if err := s.Insert(t.Context(), job); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := range 4000 {
		next <- n
	}
	close(next)
	wg.Wait()
	for _, tc := range []struct {
		labels []string
		limit  int
		want   []int
	}{
		{[]string{"even", "odd"}, 0, []int{3999, 2999, 1999, 999}},
		{[]string{"odd", "even"}, 3, []int{3999, 2999, 1999}},
		{[]string{"even", "odd", "block-1"}, 0, []int{2999, 1999}},
		{[]string{"block-0", "odd", "even"}, 0, []int{999}},
		{[]string{"block-0", "block-1"}, 0, []int{}},
		{[]string{"block-0", "even"}, 2, []int{1498, 1496}},
	} {
		got, err := s.List(t.Context(), joblet.Filter{Labels: labels(tc.labels...), Limit: tc.limit})
		if err != nil || !slices.Equal(numbers(got), tc.want) {
			t.Errorf("%v: jobs %v, %v, want %v", tc.labels, numbers(got), err, tc.want)
		}
	}
	for _, label := range []string{"even", "odd"} {
		both, err := s.List(t.Context(), joblet.Filter{Labels: labels("block-2", label)})
		if err != nil || len(both) < 500 {
			t.Errorf("%s in block 2: %d jobs, %v", label, len(both), err)
		}
	}
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	keyed := func(n int, owner, key string) Record {
		job := jobN(n)
		job.Owner, job.Spec.IdempotencyKey, job.Sealed = owner, key, []byte{byte(n)}
		return job
	}
	first := keyed(1, "uid:1", "once")
	mustInsert(t, s, first, keyed(2, "uid:2", "once"), keyed(3, "uid:1", "twice"), keyed(4, "uid:1", ""), keyed(5, "uid:1", ""))
	wantKind(t, s.Insert(t.Context(), keyed(6, "uid:1", "once")), joblet.AlreadyExists, "uid:1", "key once")
	wantKind(t, s.Insert(t.Context(), keyed(1, "uid:1", "once")), joblet.AlreadyExists, "the id "+first.ID)
	wantKind(t, s.Insert(t.Context(), keyed(1, "uid:1", "new")), joblet.AlreadyExists, "the id "+first.ID)

	if got, err := s.ByKey(t.Context(), "uid:1", "once"); err != nil || !reflect.DeepEqual(got, first) {
		t.Errorf("ByKey: %+v, %v", got, err)
	}
	for _, unknown := range [][2]string{{"uid:1", "ONCE"}, {"uid:3", "once"}, {"uid:1", ""}, {"", "once"}} {
		_, err := s.ByKey(t.Context(), unknown[0], unknown[1])
		wantKind(t, err, joblet.NotFound, "idempotency key "+unknown[1])
	}

	// An ended job keeps its key, one that is deleted does not.
	first.State = joblet.Completed
	if err := s.Update(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.Insert(t.Context(), keyed(6, "uid:1", "once")), joblet.AlreadyExists)
	if err := s.Delete(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	mustInsert(t, s, keyed(6, "uid:1", "once"))

	// Of many at once one is first, and the others do not spoil its batch.
	var wg sync.WaitGroup
	var inserted atomic.Int64
	for n := 100; n < 150; n++ {
		wg.Go(func() {
			job := keyed(n, "uid:1", "race")
			job.Spec.Labels = map[string]string{"a": "b"}
			switch err := s.Insert(t.Context(), job); {
			case err == nil:
				inserted.Add(1)
			case joblet.KindOf(err) != joblet.AlreadyExists:
				t.Error(err)
			}
			if err := s.Insert(t.Context(), keyed(n+1000, "uid:1", "")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all, err := s.List(t.Context(), joblet.Filter{Labels: labels("a=b")})
	if err != nil || len(all) != 1 || inserted.Load() != 1 {
		t.Errorf("%d jobs with one key, %d inserted, %v", len(all), inserted.Load(), err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDiskBytes(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	want := int64(0)
	for n, state := range joblet.States() {
		job := jobN(n)
		job.State, job.DiskBytes = state, 1<<(40+n)
		if state.Final() {
			want += job.DiskBytes
		}
		mustInsert(t, s, job)
	}
	check := func() {
		t.Helper()
		if got, err := s.DiskBytes(t.Context()); err != nil || got != want {
			t.Errorf("%#x bytes, %v, want %#x", got, err, want)
		}
	}
	check()
	job := jobN(0)
	job.State, job.DiskBytes = joblet.Canceled, 1
	want++
	if err := s.Update(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	check()
	if err := s.Delete(t.Context(), job.ID); err != nil {
		t.Fatal(err)
	}
	want--
	check()
	if got, err := openTest(t).DiskBytes(t.Context()); err != nil || got != 0 {
		t.Errorf("%d bytes of no jobs, %v", got, err)
	}
}

// A kind's number is in databases out there.
func TestKindNumbers(t *testing.T) {
	t.Parallel()
	for number, kind := range []joblet.Kind{
		joblet.Internal, joblet.InvalidArgument, joblet.NotFound, joblet.AlreadyExists, joblet.FailedPrecondition,
		joblet.PermissionDenied, joblet.ResourceExhausted, joblet.Unavailable, joblet.Unimplemented,
		joblet.CommandNotFound, joblet.NotExecutable,
	} {
		if int(kind) != number {
			t.Errorf("%v is %d, and %d in the records", kind, kind, number)
		}
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
			": aaaaaaaa-0000-4000-8000-000000000001 (COMPLETED, true '\\x1b[31m' xxx", "000002 (RUNNING, ", "x…)"}},
		{ref: "aa", kind: joblet.InvalidArgument, err: []string{": aaaaaaaa (", ", aabbbbbb (", ", aac00000 (", " and more"}},
		{ref: "aabbbbb", kind: joblet.InvalidArgument, err: []string{": aabbbbbb (", ", aabbbbbc ("}},
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
		{ref: "a\x00", kind: joblet.NotFound, err: []string{"no job a\\x00"}},
		{ref: strings.Repeat("a", 1000), kind: joblet.NotFound, err: []string{"a…"}},
		{ref: "", kind: joblet.InvalidArgument},
	} {
		job, err := s.Resolve(t.Context(), tc.ref, "uid:0")
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

// The meaning of a name depends on the caller.
func TestResolveOwners(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	second := 0
	add := func(n int, id, owner, name string, state joblet.State) {
		second++
		job := jobN(second)
		job.ID = fmt.Sprintf("%s-0000-4000-8000-%012x", id, n)
		job.Owner, job.Spec.Name, job.State = owner, name, state
		job.Spec.Args = []string{"--password=x"}
		mustInsert(t, s, job)
	}
	add(1, "10000000", "uid:2001", "nn", joblet.Completed)
	add(2, "20000000", "uid:2001", "nn", joblet.Running)
	add(3, "30000000", "uid:2002", "nn", joblet.Running)
	add(4, "40000000", "uid:2002", "nn", joblet.Completed)
	add(5, "50000000", "uid:2001", "ended", joblet.Failed)
	add(6, "60000000", "uid:2002", "ended", joblet.Running)
	add(7, "70000000", "uid:2002", "alone", joblet.Running)
	add(8, "80000000", "uid:2002", "alone", joblet.Completed)
	add(9, "abc00000", "uid:0", "", joblet.Running)
	add(10, "90000000", "uid:2001", "abc", joblet.Running) // as a prefix of root's
	add(11, "91000000", "uid:2001", "abc00000", joblet.Running)
	add(12, "92000000", "uid:2001", "bed", joblet.Running) // of none
	add(13, "93000000", "uid:2001", "abc00000-0000-4000-8000-000000000009", joblet.Running)
	add(15, "95000000", "uid:2001", "fff00000", joblet.Running) // as the short id of a job that is gone
	add(16, "96000000", "uid:2001", "fff0000000004000", joblet.Running)
	add(17, "97000000", "uid:2001", "fff00000-0000", joblet.Running)
	add(18, "98000000", "uid:2001", "2026-03-01", joblet.Running) // digits and hyphens, but not as in an id
	add(14, "94000000", "uid:2001", "abc00000-0000-4000-8000-00000000ffff", joblet.Running)
	for n := range 8 {
		add(20+n, fmt.Sprintf("a%d000000", n), fmt.Sprintf("cert:user%d", n), "many", joblet.Running)
	}

	for _, tc := range []struct {
		owner, ref string
		want       int // 0: an error, of
		kind       joblet.Kind
		err        []string
	}{
		{owner: "uid:2001", ref: "nn", want: 2},
		{owner: "uid:2002", ref: "nn", want: 3},
		{owner: "uid:2001", ref: "ended", want: 5}, // before another's that runs
		{owner: "uid:2002", ref: "ended", want: 6},
		{owner: "uid:0", ref: "alone", want: 7},
		{owner: "uid:2001", ref: "alone", want: 7},
		{owner: "", ref: "alone", want: 7},
		{owner: "uid:0", ref: "nn", kind: joblet.InvalidArgument, err: []string{"job nn is ambiguous", "20000000 (RUNNING, uid:2001), 30000000 (RUNNING, uid:2002)"}},
		{owner: "", ref: "nn", kind: joblet.InvalidArgument},
		{owner: "uid:0", ref: "many", kind: joblet.InvalidArgument, err: []string{"a0000000 (RUNNING, cert:user0), ", "cert:user4) and more"}},
		{owner: "cert:user7", ref: "many", want: 27},
		{owner: "uid:0", ref: "a", kind: joblet.InvalidArgument, err: []string{"a0000000 (RUNNING, cert:user0), ", " and more"}}, // no commands of others

		{owner: "uid:0", ref: "abc", want: 9},
		{owner: "uid:0", ref: "ABC", want: 9},
		{owner: "uid:2001", ref: "abc", want: 10},
		{owner: "uid:2002", ref: "abc", want: 9},
		{owner: "uid:2001", ref: "abc00000", want: 9},
		{owner: "uid:0", ref: "bed", want: 12},
		{owner: "uid:2001", ref: "bed", want: 12},
		{owner: "uid:2001", ref: "abc00000-0000-4000-8000-000000000009", want: 9},
		{owner: "uid:0", ref: "abc00000-0000-4000-8000-00000000ffff", kind: joblet.NotFound}, // a job that is gone
		{owner: "uid:2001", ref: "abc00000-0000-4000-8000-00000000ffff", want: 14},
		{owner: "uid:0", ref: "fff00000", kind: joblet.NotFound},
		{owner: "uid:0", ref: "FFF00000", kind: joblet.NotFound},
		{owner: "uid:2002", ref: "fff0000000004000", kind: joblet.NotFound},
		{owner: "uid:2002", ref: "fff00000-0000", kind: joblet.NotFound},
		{owner: "uid:2001", ref: "fff00000", want: 15},
		{owner: "uid:2001", ref: "fff0000000004000", want: 16},
		{owner: "uid:2001", ref: "fff00000-0000", want: 17},
		{owner: "uid:2002", ref: "2026-03-01", want: 18},
		{owner: "uid:0", ref: "none", kind: joblet.NotFound},
	} {
		job, err := s.Resolve(t.Context(), tc.ref, tc.owner)
		switch {
		case tc.want == 0:
			wantKind(t, err, tc.kind, tc.err...)
			if strings.Contains(err.Error(), "password") {
				t.Errorf("%s of %s: %v", tc.ref, tc.owner, err)
			}
		case err != nil || !strings.HasSuffix(job.ID, fmt.Sprintf("-%012x", tc.want)):
			t.Errorf("%s of %s: %s, %v, want %x", tc.ref, tc.owner, job.ID, err, tc.want)
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
				job.Spec.Labels = map[string]string{"worker": fmt.Sprint(w), "odd": fmt.Sprint(i % 2)}
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
				mine, err := s.List(t.Context(), joblet.Filter{States: []joblet.State{joblet.Running}, Labels: labels(fmt.Sprint("worker=", w), "odd")})
				mustDo(err)
				if len(mine) != 1 || mine[0].ID != job.ID {
					t.Errorf("running jobs of worker %d: %v, want %d", w, numbers(mine), w*each+i)
				}
				job.State = joblet.Completed
				mustDo(s.Update(t.Context(), job))
				if i%3 == 0 {
					mustDo(s.Delete(t.Context(), job.ID))
				}
			}
		})
	}
	wg.Wait()
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	done, err := s.List(t.Context(), joblet.Filter{States: []joblet.State{joblet.Completed}, Labels: labels("worker")})
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
	_, endedErr := s.OldestEnded(ctx, 0)
	_, sumErr := s.DiskBytes(ctx)
	_, keyErr := s.ByKey(ctx, "a", "b")
	_, openErr := Open(ctx, filepath.Join(t.TempDir(), "joblet.db"))
	for _, err := range []error{getErr, listErr, endedErr, sumErr, keyErr, openErr, s.Check(ctx), s.Insert(ctx, jobN(2)), s.Update(ctx, jobN(1)), s.Delete(ctx, jobN(1).ID)} {
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
