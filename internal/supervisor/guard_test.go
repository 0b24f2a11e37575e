package supervisor

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/testenv"
)

// TestRecoverSilent: a daemon does not wait for one shim after the other that does
// not answer before it serves, and its jobs can be ended.
func TestRecoverSilent(t *testing.T) {
	t.Parallel()
	testenv.RequireRoot(t)
	s := newSite(t)
	e, err := native.Open(native.Config{RunDir: s.cfg.RunDir})
	s.check(err)
	const n = 16
	ids := make([]string, n)
	var boxes []*native.Sandbox
	for i := range n {
		box, err := e.Take(t.Context(), nil)
		s.check(err)
		boxes = append(boxes, box)
		ids[i] = joblet.NewID()
		s.check(os.Mkdir(s.path("jobs", ids[i]), 0o700))
		s.write("", "jobs", ids[i], "exit.json.tmp") // it has begun
	}
	for _, box := range boxes {
		s.check(unix.Kill(shimOf(t, box.ID), unix.SIGSTOP))
	}
	now := time.Now()
	s.records(func(db *store.Store) {
		for i, box := range boxes {
			s.check(db.Insert(t.Context(), store.Record{Box: box.ID, Job: joblet.Job{
				ID: ids[i], Owner: "uid:0", State: joblet.Running, IDBase: box.IDBase, Created: now, Started: now, Attempt: 1,
				Spec: joblet.Spec{Command: "sleep", Args: []string{"600"}, WorkDir: "/work"},
			}}))
		}
	})
	t.Cleanup(func() {
		for _, box := range boxes {
			_ = box.Discard() // released already if all went well
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	sup, err := Open(t.Context(), s.cfg)
	s.check(err)
	if took := time.Since(began); took > n*time.Second/2 {
		t.Errorf("the daemon served after %v", took)
	}
	if _, err := sup.Exec(t.Context(), ids[0], joblet.ExecSpec{Command: "true"}); !errors.Is(err, native.ErrSilent) {
		t.Errorf("a further process: %v", err)
	}
	var ending sync.WaitGroup
	for _, id := range ids {
		ending.Go(func() {
			job, err := sup.Stop(t.Context(), id, joblet.StopOptions{})
			if err != nil || job.State != joblet.Stopped {
				t.Errorf("stop: %v %v", job.State, err)
			}
		})
	}
	ending.Wait()
	s.check(sup.Close())
	for _, box := range boxes {
		if native.HasShim([]string{s.cfg.RunDir}, box.ID) {
			t.Errorf("the shim of box %s is left", box.ID)
		}
	}
}
