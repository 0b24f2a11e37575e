package outcome

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/sandbox/native"
)

// StartTheJob begins the reason of a job that could not be started for no fault of
// its own.
const StartTheJob = "cannot start the job: "

// StartError gives a failed start its kind and words for the user.
func StartError(spec joblet.Spec, f native.Failure) error {
	errno := f.Errno
	switch {
	case f.IsExec && !f.OutOfMemory:
		if f.Why != "" {
			return joblet.Errorf(joblet.NotExecutable, "cannot execute %s: %s", spec.Command, f.Why)
		}
		switch errno {
		case syscall.ENOENT, syscall.ENOTDIR:
			where := "runtime " + spec.Runtime
			if spec.Runtime == "" {
				where = "the host's programs (no --runtime was given)"
			}
			return joblet.Errorf(joblet.CommandNotFound, "%s: command not found in %s", spec.Command, where)
		case syscall.ELIBACC:
			return joblet.Errorf(joblet.NotExecutable, "cannot execute %s: it exists, but its interpreter or loader does not", spec.Command)
		case syscall.EACCES:
			return joblet.Errorf(joblet.NotExecutable, "cannot execute %s: permission denied: it is a directory or not marked executable", spec.Command)
		case syscall.ENOEXEC:
			return joblet.Errorf(joblet.NotExecutable, "cannot execute %s: neither a program for this machine nor a script that begins with #!", spec.Command)
		case syscall.ELOOP:
			return joblet.Errorf(joblet.NotExecutable, "cannot execute %s: it leads through a link such as /proc/self/fd/3 or /proc/self/exe, or through too many: name the program itself", spec.Command)
		case syscall.E2BIG:
			return joblet.Errorf(joblet.InvalidArgument, "cannot execute %s: arguments and environment are too large: pass large data in a file", spec.Command)
		}
		return joblet.Errorf(joblet.NotExecutable, "cannot execute %s: %w", spec.Command, errno)
	case f.Step == native.StepWorkDir && (errno == syscall.ELOOP || errno == syscall.EXDEV):
		return joblet.Errorf(joblet.InvalidArgument, "cannot use working directory %s: it leads through a link such as /proc/self/fd/3 or /proc/self/cwd, or through too many: name the directory itself", spec.WorkDir)
	case f.Step == native.StepWorkDir:
		return joblet.Errorf(joblet.InvalidArgument, "cannot use working directory %s: %w in the job", spec.WorkDir, errno)
	case f.OutOfMemory:
		return joblet.Errorf(joblet.ResourceExhausted, "cannot execute %s: out of memory before the command ran: increase --max-memory %s", spec.Command, joblet.FormatSize(spec.Limits.MemoryBytes))
	case f.Step == native.StepArguments && errno == syscall.E2BIG:
		return joblet.Errorf(joblet.InvalidArgument, "cannot execute %s: arguments, environment and working directory are too large together: pass large data in a file", spec.Command)
	case f.Step == native.StepReaper && errno == syscall.EAGAIN:
		return joblet.Errorf(joblet.ResourceExhausted, "cannot execute %s: the job may not have the second process that --init needs: allow at least two (--max-pids, --rlimit nproc)", spec.Command)
	case f.Step == native.StepKilled && spec.Limits.Rlimits["cpu"] != (joblet.Rlimit{}):
		return joblet.Errorf(joblet.ResourceExhausted, "cannot execute %s: killed before the command ran: --rlimit cpu=%v may be too small", spec.Command, spec.Limits.Rlimits["cpu"])
	case errno == syscall.EAGAIN:
		return joblet.Errorf(joblet.ResourceExhausted, StartTheJob+"%s: this host or the job has reached its limit of processes", f.Text)
	case errno == syscall.EMFILE || errno == syscall.ENFILE:
		return joblet.Errorf(joblet.ResourceExhausted, StartTheJob+"%s", f.Text)
	case f.Step == native.StepFiles && errno == syscall.ENOSPC:
		return joblet.Errorf(joblet.ResourceExhausted, "the uploaded files do not fit into the job's /work")
	case errno == syscall.ENOSPC || errno == syscall.EDQUOT:
		return joblet.Errorf(joblet.ResourceExhausted, StartTheJob+"%s", f.Text)
	}
	return fmt.Errorf(StartTheJob+"%s", f.Text)
}

// OfCommand reports whether a process could not be started because of its command.
func OfCommand(f native.Failure) bool {
	return f.IsExec || f.OutOfMemory || f.Step == native.StepWorkDir
}

// ExecError gives the failed start of a further process in a job its kind and words for
// the user. spec is that of the process. ended reports whether the job has ended.
func ExecError(job joblet.Job, spec joblet.Spec, err error, ended func() bool) error {
	se, ok := errors.AsType[*native.StartError](err)
	switch {
	case ok && se.Failure.Errno == syscall.EAGAIN:
		return joblet.Errorf(joblet.ResourceExhausted, "job %s has reached its limit of processes", joblet.ShortID(job.ID))
	case ok && se.Failure.Step == native.StepJoin && se.Failure.Errno != 0,
		!errors.Is(err, native.ErrPaused) && !(ok && OfCommand(se.Failure)) && ended():
		return joblet.Errorf(joblet.FailedPrecondition, "job %s has ended", joblet.ShortID(job.ID))
	case !ok:
		return err
	}
	if err = StartError(spec, se.Failure); joblet.KindOf(err) == joblet.Internal {
		err = fmt.Errorf("cannot run %s in job %s: %s", spec.Command, joblet.ShortID(job.ID), se.Failure.Text)
	}
	return err
}
