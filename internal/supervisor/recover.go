package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/monitor"
)

// maxRecord bounds an exit record; a real one has 200 bytes.
const maxRecord = 64 << 10

// readRecord reads the exit record in a job's directory. The error is
// fs.ErrNotExist when there is none, or only one that was being written when
// the host went down.
func readRecord(dir string) (*monitor.Record, error) {
	name := filepath.Join(dir, monitor.ExitName)
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxRecord {
		return nil, fmt.Errorf("%s: %d bytes is too much for an exit record", name, info.Size())
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var r monitor.Record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("%w: %s is incomplete: %w", fs.ErrNotExist, name, err)
	}
	return &r, nil
}

// conclude gives a job its final state: from its exit record, or, without one,
// LOST.
func conclude(job *joblet.Job, r *monitor.Record, dir string) {
	if r == nil {
		job.State = joblet.Lost
		job.Reason = "its monitor ended without an exit record: it was killed, or the host went down"
		job.Ended = time.Now()
		if info, err := logstore.Stat(dir); err == nil {
			job.LogBytes = info.Size
		}
		return
	}
	job.Exit = &joblet.Exit{Code: r.Code, Signal: r.Signal}
	job.Started = time.Unix(0, r.StartedNanos)
	job.Ended = time.Unix(0, r.EndedNanos)
	job.LogBytes = r.LogBytes
	switch {
	case r.Cause == monitor.CauseStop:
		job.State = joblet.Stopped
	case r.Cause == monitor.CauseTimeout:
		job.State = joblet.TimedOut
		job.Reason = fmt.Sprintf("its time was up after %v", job.Spec.Timeout)
	case r.Code == 0 && r.Signal == 0:
		job.State = joblet.Completed
	case r.Signal != 0:
		job.State = joblet.Failed
		job.Reason = fmt.Sprintf("killed by %s", unix.SignalName(syscall.Signal(r.Signal)))
	default:
		job.State = joblet.Failed
	}
	if r.LogError != "" {
		job.Reason = r.LogError
	}
}

// recover takes over from a former daemon, however that ended: it adopts the
// jobs that run, concludes those that ended meanwhile, and removes what belongs
// to no job.
func (s *Supervisor) recover(ctx context.Context) error {
	unfinished, err := s.store.Unfinished(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, job := range unfinished {
		known[job.ID] = true
		if err := s.recoverJob(ctx, job); err != nil {
			return err
		}
	}
	boxes, err := s.engine.Boxes()
	if err != nil {
		return err
	}
	for _, id := range boxes {
		if !known[id] { // a spare, or a job that nobody was promised
			if err := s.engine.Release(id, 0); err != nil {
				s.cfg.Log.Error("release what a former daemon left", "box", id, "error", err)
			}
		}
	}
	return s.sweep()
}

func (s *Supervisor) recoverJob(ctx context.Context, job joblet.Job) error {
	proc, err := s.engine.Adopt(job.ID)
	if err == nil {
		l := newLive(job)
		if err := s.admit(l); err != nil {
			return err
		}
		s.use(job.Spec.Runtime, 1)
		s.running(l, proc)
		s.cfg.Log.Info("job runs on", "job", job.ID, "pid", proc.PID)
		go s.watch(l)
		return nil
	}
	record, readErr := readRecord(s.jobDir(job.ID))
	if readErr != nil && !errors.Is(readErr, fs.ErrNotExist) {
		return fmt.Errorf("recover job %s: %w", job.ID, readErr)
	}
	conclude(&job, record, s.jobDir(job.ID))
	s.cfg.Log.Info("job ended while no daemon ran", "job", job.ID, "state", job.State, "monitor", err)
	if err := s.engine.Release(job.ID, job.IDBase); err != nil {
		s.cfg.Log.Error("release an ended job", "job", job.ID, "error", err)
	}
	return s.store.Update(ctx, job)
}

// sweep removes job directories without a record: jobs whose start or deletion
// was cut short. It looks at the directories that are there now, in the
// background; later ones belong to this daemon.
func (s *Supervisor) sweep() error {
	entries, err := os.ReadDir(s.jobsDir())
	if err != nil {
		return fmt.Errorf("list the jobs' directories: %w", err)
	}
	s.watchers.Go(func() {
		for _, e := range entries {
			if s.ctx.Err() != nil {
				return
			}
			if id := e.Name(); joblet.ValidID(id) && s.find(id) == nil {
				if _, err := s.store.Get(s.ctx, id); joblet.KindOf(err) == joblet.NotFound {
					if err := os.RemoveAll(s.jobDir(id)); err != nil {
						s.cfg.Log.Warn("remove the directory of no job", "job", id, "error", err)
					}
				}
			}
		}
	})
	return nil
}
