// Package guard ends runs whose shims do not.
//
// A job's shim ends it: when it is asked to stop, and when its time is over. But a shim
// can be stopped itself, or wait in the kernel for a disk that does not answer. So each
// run has a guard beside it, which ends the job through its cgroup if its shim has not
// done so shortly after it should have.
package guard

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim/protocol"
)

const (
	// LateEnd is how late a shim may be.
	LateEnd = time.Second
	// stallEvery is how often a guard checks whether a job has ended and its shim does
	// not notice.
	stallEvery = 5 * time.Second
)

// Guard watches the runs of an engine.
type Guard struct {
	Engine  *native.Engine
	JobsDir string
	Log     *slog.Logger
}

// Run is a run that is guarded.
type Run struct {
	Box string
	// Job returns the job as it is now.
	Job func() joblet.Job
	// Deadline returns when the run must have ended, and why; the zero time: it may go on.
	Deadline func() (by time.Time, cause protocol.Cause)
	// Changed receives a value when there is another deadline.
	Changed <-chan struct{}
}

func (g *Guard) dir(id string) string { return filepath.Join(g.JobsDir, id) }

// Watch waits until the run of a process is over, and ends it if its shim does not when
// it must. It reports whether the run is over; otherwise ctx has ended, and the job goes
// on.
func (g *Guard) Watch(ctx context.Context, r Run, proc *native.Process) bool {
	stalls := 0
	for {
		by, cause := r.Deadline()
		wait := stallEvery
		if !by.IsZero() {
			wait = max(0, min(wait, time.Until(by)))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-proc.Done():
			timer.Stop()
			return true
		case <-r.Changed:
			timer.Stop()
			continue
		case <-timer.C:
		}
		switch {
		case !by.IsZero() && !time.Now().Before(by):
			return g.Force(ctx, r, cause, proc.PID, proc.Done())
		case !proc.Stalled():
			stalls = 0
		case stalls == 0:
			g.Engine.Wake(proc.ID)
			stalls++
		default: // waking the shim did not help
			return g.Force(ctx, r, "", proc.PID, proc.Done())
		}
	}
}

// Force ends a run through its cgroup, and writes the exit record if its shim does not.
// over is closed when the shim has ended the run; nil: nobody knows. It reports whether
// the run is over; otherwise ctx has ended.
func (g *Guard) Force(ctx context.Context, r Run, cause protocol.Cause, pid int, over <-chan struct{}) bool {
	rec, box := r.Job(), r.Box
	g.Log.Warn("a job's shim did not end it in time; the job is ended through its cgroup", "job", rec.ID, "cause", cause)
	forced, err := g.Engine.Force(ctx, box, pid, over)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		g.Log.Error("cannot end a job through its cgroup", "job", rec.ID, "error", err)
	}
	fault.Point("force.killed")
	if !forced.NoRecord {
		g.amend(rec, cause)
		return ctx.Err() == nil
	}
	if cause == "" && forced.Taken {
		g.KillShims(rec.ID, box)
		return ctx.Err() == nil // its end is unknown: it is LOST
	}
	now := time.Now()
	if rec.Started.IsZero() {
		rec.Started = now
	}
	end := protocol.Record{
		Signal: int(unix.SIGKILL), Cause: cause, StartedNanos: rec.Started.UnixNano(), EndedNanos: now.UnixNano(),
		LogError: "its shim was stopped or stuck, and the job was ended without it: its last output and what it left in /work may be missing",
	}
	if status := forced.Exit; status != nil && !rec.Spec.Init { // with --init, the status is not the command's
		if end.Signal = 0; status.Signaled() {
			end.Signal = int(status.Signal())
		} else {
			end.Code = status.ExitStatus()
		}
	}
	if info, err := logstore.Stat(g.dir(rec.ID)); err == nil {
		end.LogBytes = info.Size
	}
	if err := jobdir.PutExit(g.dir(rec.ID), rec.Attempt, end); err != nil {
		g.Log.Error("cannot write a job's exit record in place of its shim", "job", rec.ID, "error", err)
	}
	fault.Point("force.written")
	// Only now: a daemon that is killed before finds the shim, and does all this again.
	g.KillShims(rec.ID, box)
	_ = os.Remove(filepath.Join(g.dir(rec.ID), protocol.WorkName+".tmp")) // what it was packing
	return ctx.Err() == nil
}

// amend adds to an exit record why the job was ended, if its shim woke up only after
// that.
func (g *Guard) amend(job joblet.Job, cause protocol.Cause) {
	dir := g.dir(job.ID)
	r, err := jobdir.ReadExit(dir, job.Attempt)
	if err != nil || cause == "" || r.Cause != "" || r.Failure != nil || r.Signal != int(unix.SIGKILL) {
		return
	}
	r.Cause = cause
	if err := jobdir.WriteExit(filepath.Join(dir, protocol.ExitName(job.Attempt)), *r); err != nil {
		g.Log.Error("cannot add to a job's exit record why the job was ended", "job", job.ID, "error", err)
	}
}

// KillShims kills the shims of a job's box.
func (g *Guard) KillShims(id, box string) {
	if err := g.Engine.KillShims(box); err != nil {
		g.Log.Error("cannot kill a job's shim", "job", id, "error", err)
	}
}
