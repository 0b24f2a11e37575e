// Package supervisor owns the jobs: it accepts, starts, watches, stops, recovers and deletes them.
package supervisor

import (
	"context"
	"errors"
	"syscall"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/runtimes"
)

// Config says where the supervisor keeps things.
type Config struct {
	StateDir string // records, job directories, runtimes
	RunDir   string // what a reboot may forget
}

// Supervisor owns all jobs of one daemon.
type Supervisor struct{}

var errTODO = errors.New("not built")

// Open recovers what a former daemon left and returns a Supervisor ready to take jobs.
func Open(ctx context.Context, cfg Config) (*Supervisor, error) { return nil, errTODO }

// Close stops taking jobs and leaves the running ones running.
func (s *Supervisor) Close() error { return errTODO }

// Run starts a job and returns once its command runs. An error means that nothing of the job is left.
func (s *Supervisor) Run(ctx context.Context, spec joblet.Spec, owner string) (joblet.Job, error) {
	return joblet.Job{}, errTODO
}

// Job returns the job that ref names: an id, an unambiguous prefix of one, or a name.
func (s *Supervisor) Job(ctx context.Context, ref string) (joblet.Job, error) {
	return joblet.Job{}, errTODO
}

// Jobs lists jobs, newest first.
func (s *Supervisor) Jobs(ctx context.Context, f joblet.Filter) ([]joblet.Job, error) {
	return nil, errTODO
}

// Stop ends a job and returns it once it has ended.
func (s *Supervisor) Stop(ctx context.Context, ref string, opt joblet.StopOptions) (joblet.Job, error) {
	return joblet.Job{}, errTODO
}

// Signal sends a signal to the job's PID 1.
func (s *Supervisor) Signal(ctx context.Context, ref string, sig syscall.Signal) error {
	return errTODO
}

// Wait returns the job once it has ended.
func (s *Supervisor) Wait(ctx context.Context, ref string) (joblet.Job, error) {
	return joblet.Job{}, errTODO
}

// Delete removes an ended job: record, log and directory.
func (s *Supervisor) Delete(ctx context.Context, ref string) error { return errTODO }

// Follow hands the job's output to emit, in order, and returns the job as it
// is at the end: ended, when opt.Follow is set. The chunk is valid during the
// call only.
func (s *Supervisor) Follow(ctx context.Context, ref string, opt joblet.LogOptions, emit func(logstore.Chunk) error) (joblet.Job, error) {
	return joblet.Job{}, errTODO
}

// Active returns how many jobs have not ended.
func (s *Supervisor) Active() int { return 0 }

// Runtimes returns the installed runtimes.
func (s *Supervisor) Runtimes() *runtimes.Store { return nil }
