package supervisor

import (
	"bytes"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/supervisor/staging"
)

// random is a reader of n bytes, which no file system stores in less.
func random(n int) io.Reader {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return bytes.NewReader(b)
}

// TestStdinBound: standard input that is a file is bounded, and what is too long
// leaves nothing.
func TestStdinBound(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	defer closing(t, s)
	if s.uploads.MaxStdin != staging.MaxStdin {
		t.Errorf("bound %d", s.uploads.MaxStdin)
	}
	s.uploads.MaxStdin = 1 << 20
	for _, tt := range []struct {
		size int
		kind joblet.Kind
		ok   bool
	}{{1 << 20, 0, true}, {1<<20 + 1, joblet.ResourceExhausted, false}} {
		st := s.Stage("uid:1000")
		err := st.Stdin(random(tt.size))
		if (err == nil) != tt.ok || err != nil && (joblet.KindOf(err) != tt.kind || !strings.Contains(err.Error(), "limited to 1")) {
			t.Errorf("%d bytes: %v", tt.size, err)
		}
		if err := st.Discard(); err != nil {
			t.Error(err)
		}
	}
}

// TestQuota: what an owner stages and keeps is bounded, through a restart as well,
// and comes back when it is deleted. Others are not concerned.
func TestQuota(t *testing.T) {
	dir := t.TempDir()
	const alice, bob = "uid:61001", "uid:61002"
	limited := func(c *Config) { c.MaxOwnerBytes = 4 << 20 }
	s := open(t, dir, limited)
	used := func(owner string) int64 { return s.quota.Used(owner) }
	full := func(err error) {
		t.Helper()
		if joblet.KindOf(err) != joblet.ResourceExhausted || !strings.Contains(err.Error(), "max-owner-size") {
			t.Errorf("got %v", err)
		}
	}
	spec := func(script string) joblet.Spec {
		return joblet.Spec{Command: "sh", Args: []string{"-c", script}}
	}
	wait := func(id string) {
		t.Helper()
		if _, err := s.Follow(t.Context(), id, joblet.LogOptions{Follow: true}, nil, func(Event) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}

	// Too much in one, and what is discarded.
	st := s.Stage(alice)
	full(st.Stdin(random(5 << 20)))
	if err := st.Discard(); err != nil || used(alice) != 0 {
		t.Errorf("discarded: %d bytes, %v", used(alice), err)
	}

	// What came along with a job that waits, and with a rerun of it.
	later := spec("wc -c")
	later.Stdin, later.Schedule = joblet.StdinFile, "+1h"
	st = s.Stage(alice)
	if err := st.Stdin(random(3 << 20)); err != nil {
		t.Fatal(err)
	}
	job, err := s.Submit(t.Context(), later, alice, st)
	if err != nil || used(alice) != 3<<20 {
		t.Fatalf("%d bytes, %v", used(alice), err)
	}
	st = s.Stage(alice)
	full(st.Stdin(random(2 << 20)))
	if err := st.Discard(); err != nil {
		t.Error(err)
	}
	st = s.Stage(bob)
	if err := st.Stdin(random(3 << 20)); err != nil {
		t.Errorf("another owner: %v", err)
	}
	if err := st.Discard(); err != nil {
		t.Error(err)
	}
	// It is on the disk once, and counts once, for each owner who has it.
	again, err := s.Rerun(t.Context(), job.ID, alice, nil)
	if err != nil {
		t.Fatal(err)
	}
	wait(again.ID)
	if n := used(alice); n < 3<<20 || n > 3<<20+100<<10 {
		t.Errorf("after a rerun: %d bytes", n)
	}
	others, err := s.Rerun(t.Context(), again.ID, bob, nil)
	if err != nil {
		t.Fatal(err)
	}
	wait(others.ID)
	closing(t, s)
	s = open(t, dir, limited)
	for owner, ids := range map[string][]string{alice: {again.ID}, bob: {others.ID}} {
		if n := used(owner); n < 3<<20 || n > 3<<20+100<<10 {
			t.Errorf("after a rerun, for %s: %d bytes", owner, n)
		}
		for _, id := range ids {
			if err := s.Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	}
	if used(alice) != 3<<20 || used(bob) != 0 || s.quota.Shared() != 1 || s.quota.Saved() != 0 {
		t.Errorf("reruns deleted: %d and %d bytes, %d shared", used(alice), used(bob), s.quota.Shared())
	}

	// A restart counts the same.
	closing(t, s)
	s = open(t, dir, limited)
	if used(alice) != 3<<20 {
		t.Errorf("after a restart: %d bytes", used(alice))
	}
	if _, err := s.Cancel(t.Context(), job.ID); err != nil {
		t.Fatal(err)
	}
	if !eventually(func() bool { return used(alice) >= 3<<20 && used(alice) < 4<<20 }) {
		t.Errorf("canceled: %d bytes", used(alice))
	}

	// What a job leaves counts; beyond the limit nothing more is accepted.
	made, err := s.Submit(t.Context(), spec("head -c 2000000 /dev/urandom > result"), alice, nil)
	if err != nil {
		t.Fatal(err)
	}
	wait(made.ID)
	if !eventually(func() bool { return used(alice) > 4<<20 }) {
		t.Errorf("with a result: %d bytes", used(alice))
	}
	_, err = s.Submit(t.Context(), spec("true"), alice, nil)
	full(err)
	closing(t, s)
	s = open(t, dir, limited)
	defer func() { closing(t, s) }()
	_, err = s.Submit(t.Context(), spec("true"), alice, nil)
	full(err)
	if _, err := s.Submit(t.Context(), spec("true"), "uid:0", nil); err != nil {
		t.Errorf("root: %v", err)
	}

	for _, id := range []string{job.ID, made.ID} {
		if err := s.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if used(alice) != 0 {
		t.Errorf("all deleted: %d bytes", used(alice))
	}
	last, err := s.Submit(t.Context(), spec("true"), alice, nil)
	if err != nil {
		t.Fatal(err)
	}
	wait(last.ID)
}

// TestRetainShared: what several jobs share counts once for retention, which deletes no
// more than it has to.
func TestRetainShared(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), func(c *Config) { c.RetainBytes = 8 << 20 })
	defer closing(t, s)
	end := func(job joblet.Job, err error) string {
		t.Helper()
		if err == nil {
			_, err = s.Wait(t.Context(), job.ID)
		}
		if err != nil {
			t.Fatal(err)
		}
		return job.ID
	}
	count := joblet.Spec{Command: "wc", Args: []string{"-c"}, Stdin: joblet.StdinFile}
	submit := func() string {
		t.Helper()
		st := s.Stage("uid:61001")
		if err := st.Stdin(random(3 << 20)); err != nil {
			t.Fatal(err)
		}
		return end(s.Submit(t.Context(), count, "uid:61001", st))
	}
	first := submit()
	for range 3 {
		end(s.Rerun(t.Context(), first, "uid:61001", nil))
	}
	recorded := func(least int64) func() bool { // a moment after the job has ended
		return func() bool {
			size, err := s.records.DiskBytes(t.Context())
			return err == nil && size > least
		}
	}
	if !eventually(recorded(12 << 20)) {
		t.Fatal("what the jobs have is not recorded")
	}
	if n, err := s.retention.Now(t.Context()); n != 0 || err != nil {
		t.Errorf("one file of 3 MiB for four jobs: %d were deleted, %v", n, err)
	}
	submit()
	submit()
	if !eventually(recorded(18 << 20)) {
		t.Fatal("what the jobs have is not recorded")
	}
	// 9 MiB: the four go, which have one file.
	if n, err := s.retention.Now(t.Context()); n != 4 || err != nil {
		t.Errorf("three files: %d jobs were deleted, %v", n, err)
	}
	if n := s.quota.Shared(); n != 0 || s.quota.Saved() != 0 {
		t.Errorf("%d files are said to be shared", n)
	}
}
