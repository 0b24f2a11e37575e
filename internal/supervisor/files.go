package supervisor

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/archive"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/supervisor/staging"
)

// Stage begins to receive the input of a job of an owner. It ends with Submit or with
// Discard.
func (s *Supervisor) Stage(owner string) *staging.Upload { return s.uploads.Begin(owner) }

// OpenStdin returns a writer to the standard input of a job that has a stream
// there, once it runs.
func (s *Supervisor) OpenStdin(ctx context.Context, id string) (*native.Stdin, error) {
	l := s.find(id)
	if l == nil {
		return nil, joblet.Errorf(joblet.FailedPrecondition, "job %s has ended", joblet.ShortID(id))
	}
	v, err := s.awaitRun(ctx, l, func(v view) bool { return v.proc != nil || v.job.State.Final() })
	if err != nil {
		return nil, err
	}
	if v.proc == nil {
		return nil, joblet.Errorf(joblet.FailedPrecondition, "job %s has ended: %v", joblet.ShortID(id), v.job.State)
	}
	return v.proc.OpenStdin()
}

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
	switch {
	case proc != nil:
		root, err := proc.OpenWork()
		if err != nil {
			return err
		}
		defer root.Close()
		if _, err := archive.PackTree(w, root, match.Match, archive.DefaultLimits); err != nil {
			return err
		}
	case job.Attempt == 0:
		return joblet.Errorf(joblet.FailedPrecondition, "job %s has not run: it is %v", joblet.ShortID(job.ID), job.State)
	default:
		f, err := os.Open(filepath.Join(s.records.Dir(job.ID), protocol.WorkName))
		if errors.Is(err, fs.ErrNotExist) {
			return joblet.Errorf(joblet.NotFound, "job %s left no files in /work", joblet.ShortID(job.ID))
		}
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := archive.Select(w, f, match.Match); err != nil {
			return err
		}
	}
	if missing := match.Unmatched(); len(missing) > 0 {
		return joblet.Errorf(joblet.NotFound, "job %s: there is no %q in /work", joblet.ShortID(job.ID), missing[0])
	}
	return nil
}
