package supervisor

import (
	"context"
	"io"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/archive"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/supervisor/output"
	"github.com/joblet/joblet/internal/supervisor/staging"
)

// Stage begins to receive the input of a job of an owner. It ends with Submit or with
// Discard.
func (s *Supervisor) Stage(owner string) *staging.Upload { return s.uploads.Begin(owner) }

// OpenStdin returns a writer to the standard input of a job that has a stream there,
// once it runs.
func (s *Supervisor) OpenStdin(ctx context.Context, id string) (*native.Stdin, error) {
	proc, err := s.onceRunning(ctx, id)
	if err != nil {
		return nil, err
	}
	return proc.OpenStdin()
}

// Event is something that happens to a followed job.
type Event = output.Event

// Gate bounds how much of the output is read ahead.
type Gate = output.Gate

// Follow hands the job's output to emit, in order, and returns the job as it
// is at the end: ended, when opt.Follow is set. gate may be nil.
func (s *Supervisor) Follow(ctx context.Context, id string, opt joblet.LogOptions, gate Gate, emit func(Event) error) (joblet.Job, error) {
	job, err := s.Job(ctx, id)
	if err != nil {
		return joblet.Job{}, err
	}
	f := output.Follower{Dir: s.records.Dir(job.ID), ID: job.ID, Watcher: s.watcher, Options: opt, Gate: gate, Emit: emit}
	defer f.Close()
	if l := s.find(job.ID); l != nil && opt.Follow {
		return f.Follow(ctx, func(ctx context.Context, done func(output.Status) bool) (output.Status, error) {
			v, err := s.await(ctx, l, func(v view) bool { return done(v.status()) })
			return v.status(), err
		})
	}
	return f.Read(ctx, s.current(ctx, job))
}

// status returns what a follower sees of a job.
func (v view) status() output.Status {
	return output.Status{Job: v.job, Over: v.over, Seq: v.seq, Ended: v.ended, Starting: v.starting}
}

// LogSize returns how many bytes the job with this id has written so far.
func (s *Supervisor) LogSize(id string) (int64, error) { return output.LogSize(s.records.Dir(id)) }

// Files writes those files of the job's /work that match the patterns (see
// archive.NewMatcher) to w, as a tar archive: of a running job as they are, of
// another as its latest run left them.
func (s *Supervisor) Files(ctx context.Context, id string, patterns []string, w io.Writer) error {
	match, err := archive.NewMatcher(patterns)
	if err != nil {
		return err
	}
	job, err := s.Job(ctx, id)
	if err != nil {
		return err
	}
	var proc *native.Process
	if l := s.find(job.ID); l != nil {
		v, err := s.awaitRun(ctx, l, func(v view) bool {
			return v.proc != nil || !v.silent && !v.starting && v.job.State != joblet.Initializing
		})
		if err != nil {
			return err
		}
		job, proc = v.job, v.proc
	}
	return output.Files(w, s.records.Dir(job.ID), job, proc, match)
}
