package supervisor

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/outcome"
	"github.com/joblet/joblet/internal/sandbox/native"
)

// Keyboard returns what types at the terminal of the job with this id, once the
// job runs.
func (s *Supervisor) Keyboard(ctx context.Context, id string) (*native.Keyboard, error) {
	proc, err := s.onceRunning(ctx, id)
	if err != nil {
		return nil, err
	}
	return proc.OpenKeyboard()
}

// Resize gives the terminal of the job with this id another size, once the job
// runs; zero leaves the one it has. With redraw the program that has the screen
// is told in any case.
func (s *Supervisor) Resize(ctx context.Context, id string, size joblet.WindowSize, redraw bool) error {
	proc, err := s.onceRunning(ctx, id)
	if err != nil {
		return err
	}
	return proc.Resize(native.WindowSize{Rows: uint16(size.Rows), Columns: uint16(size.Columns)}, redraw)
}

// onceRunning returns the running job with this id, once it runs.
func (s *Supervisor) onceRunning(ctx context.Context, id string) (*native.Process, error) {
	l := s.find(id)
	if l == nil {
		return nil, joblet.Errorf(joblet.FailedPrecondition, "job %s has ended", joblet.ShortID(id))
	}
	v, err := s.awaitRun(ctx, l, func(v view) bool { return v.proc != nil || v.job.State.Final() })
	if err == nil && v.proc == nil {
		err = joblet.Errorf(joblet.FailedPrecondition, "job %s has ended: %v", joblet.ShortID(id), v.job.State)
	}
	return v.proc, err
}

// Exec runs a further process in the job with this id.
func (s *Supervisor) Exec(ctx context.Context, id string, e joblet.ExecSpec) (*native.Exec, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	l, v, err := s.standing(ctx, id, false)
	if err != nil {
		return nil, err
	}
	if v.proc == nil {
		return nil, joblet.Errorf(joblet.FailedPrecondition, "job %s does not run: it is %s", joblet.ShortID(v.job.ID), v.job.State)
	}
	s.mu.Lock()
	spec := l.rec.Spec // with its secrets, which are in the environment of the job's other processes
	s.mu.Unlock()
	run, spec, err := s.planner.Exec(v.job, spec, e)
	if err != nil {
		return nil, err
	}
	x, err := s.engine.Exec(ctx, v.proc, run)
	se, ok := errors.AsType[*native.StartError](err)
	switch {
	case err == nil:
		return x, nil
	case ok && se.Failure.Errno == syscall.EAGAIN:
		return nil, joblet.Errorf(joblet.ResourceExhausted, "job %s has as many processes as it may have", joblet.ShortID(v.job.ID))
	case ok && se.Failure.Step == native.StepJoin && se.Failure.Errno != 0,
		!errors.Is(err, native.ErrPaused) && !(ok && ofCommand(se.Failure)) && endsNow(ctx, v.proc):
		return nil, joblet.Errorf(joblet.FailedPrecondition, "job %s has ended", joblet.ShortID(v.job.ID))
	case !ok:
		return nil, err
	}
	err = outcome.StartError(spec, se.Failure)
	if joblet.KindOf(err) == joblet.Internal {
		err = fmt.Errorf("run %s in job %s: %s", e.Command, joblet.ShortID(v.job.ID), se.Failure.Text)
	}
	return nil, err
}

// ofCommand reports whether a process could not be started because of what it was
// to be.
func ofCommand(f native.Failure) bool {
	return f.IsExec || f.OutOfMemory || f.Step == native.StepWorkDir
}

// endingTime is how long it may take until a job whose end a process has met is
// seen to have ended.
const endingTime = time.Second

// endsNow reports whether a run of a job has ended, or does so just now.
func endsNow(ctx context.Context, proc *native.Process) bool {
	late := time.NewTimer(endingTime)
	defer late.Stop()
	select {
	case <-proc.Done():
		return true
	case <-late.C:
	case <-ctx.Done():
	}
	return false
}
