package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/archive"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// Staged is what comes along with a job that is not submitted yet.
type Staged struct {
	sup   *Supervisor
	id    string
	owner string
	tops  []string
	stdin bool
}

// Stage begins to take what comes along with a job of an owner. It ends with Submit
// or with Discard. What a crash leaves of it, the next daemon removes.
func (s *Supervisor) Stage(owner string) *Staged {
	return &Staged{sup: s, id: joblet.NewID(), owner: owner}
}

// check reports whether what came along is what the spec speaks of.
func (st *Staged) check(spec joblet.Spec) error {
	if spec.Stdin == joblet.StdinFile && (st == nil || !st.stdin) {
		return joblet.Errorf(joblet.InvalidArgument, "standard input as a file, and none was sent")
	}
	return nil
}

// Files takes a tar archive for the job's /work.
func (st *Staged) Files(r io.Reader) error {
	return st.take(jobdir.FilesName, "the job's files", func(w io.Writer) error {
		stats, err := archive.Check(w, r, archive.DefaultLimits)
		st.tops = stats.Top
		return err
	})
}

// Stdin takes the job's standard input.
func (st *Staged) Stdin(r io.Reader) error {
	return st.take(jobdir.StdinName, "the job's standard input", func(w io.Writer) error {
		most := st.sup.maxStdin
		n, err := io.Copy(w, io.LimitReader(r, most+1))
		if err == nil && n > most {
			err = joblet.Errorf(joblet.ResourceExhausted, "standard input as a file is limited to %s: pipe more to a job that is not detached", joblet.FormatSize(most))
		}
		st.stdin = true
		return err
	})
}

func (st *Staged) take(name, what string, fill func(io.Writer) error) error {
	dir := st.sup.jobDir(st.id)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("take %s: %w", what, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("take %s: %w", what, err)
	}
	err = fill(&charged{f, st})
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = jobdir.SyncDir(dir)
	}
	fault.Point("stage.taken")
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return joblet.Errorf(joblet.ResourceExhausted, "take %s: %w", what, err)
	}
	return err
}

// charged writes what is staged, as long as its owner may have more.
type charged struct {
	w  io.Writer
	st *Staged
}

func (c *charged) Write(p []byte) (int, error) {
	if err := c.st.sup.quota.reserve(c.st.owner, c.st.id, int64(len(p))); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// Discard removes what was taken.
func (st *Staged) Discard() error {
	if st == nil {
		return nil
	}
	if err := os.RemoveAll(st.sup.jobDir(st.id)); err != nil {
		return fmt.Errorf("remove what came along with a job: %w", err)
	}
	st.sup.quota.release(st.id)
	return nil
}

// linkInput gives one job what came along with another: further names of the same files,
// which nobody changes. The last of the jobs that is deleted takes them along. They count
// for the new job's owner as well, unless he has them already.
func (s *Supervisor) linkInput(from joblet.Job, to, owner string, spec joblet.Spec) error {
	var names []string
	if len(spec.Uploads) > 0 {
		names = append(names, jobdir.FilesName)
	}
	if spec.Stdin == joblet.StdinFile {
		names = append(names, jobdir.StdinName)
	}
	if len(names) == 0 {
		return nil
	}
	if err := os.Mkdir(s.jobDir(to), 0o700); err != nil {
		return err
	}
	for _, name := range names {
		kept := filepath.Join(s.jobDir(from.ID), name)
		if err := s.quota.link(kept, from.ID, from.Owner, to, owner); err != nil {
			return err
		}
		if err := os.Link(kept, filepath.Join(s.jobDir(to), name)); err != nil {
			return fmt.Errorf("pass on what came along with job %s: %w", joblet.ShortID(from.ID), err)
		}
	}
	return jobdir.SyncDir(s.jobDir(to))
}

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
		f, err := os.Open(filepath.Join(s.jobDir(job.ID), protocol.WorkName))
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
