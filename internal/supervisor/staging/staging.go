// Package staging receives the input of jobs, which is an archive of files for /work
// and standard input as a file, and accounts for the disk space of each owner.
//
// An upload is written into the directory of the job that it will belong to. What a
// crash leaves of one is a directory without a record, which the next daemon removes.
package staging

import (
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
	"github.com/joblet/joblet/internal/outcome"
)

// MaxStdin is how many bytes standard input as a file may have, as
// archive.DefaultLimits bounds a job's files.
const MaxStdin = 1 << 30

// Area is where uploads are received.
type Area struct {
	Dir      string // of the jobs' directories
	Quota    *Quota
	MaxStdin int64 // bytes of standard input as a file
}

// Upload is the input of a job that is not submitted yet. Its methods must not be
// called at the same time.
type Upload struct {
	area  *Area
	id    string
	owner string
	tops  []string
	stdin bool
}

// Begin returns an empty upload of an owner. It ends with the acceptance of the job, or
// with Discard.
func (a *Area) Begin(owner string) *Upload {
	return &Upload{area: a, id: joblet.NewID(), owner: owner}
}

// Link returns an upload that shares the input of another job with this spec: further
// names of the same files, which nothing changes. The last of the jobs that is deleted
// removes the files. They count for the new job's owner as well, unless the quota
// counts them for that owner already.
func (a *Area) Link(from joblet.Job, owner string, spec joblet.Spec) (_ *Upload, err error) {
	u := a.Begin(owner)
	u.tops, u.stdin = spec.Uploads, spec.Stdin == joblet.StdinFile
	defer func() {
		if err != nil {
			err = outcome.WithCleanup(err, u.Discard())
		}
	}()
	var names []string
	if len(spec.Uploads) > 0 {
		names = append(names, jobdir.FilesName)
	}
	if u.stdin {
		names = append(names, jobdir.StdinName)
	}
	if len(names) == 0 {
		return u, nil
	}
	if err := os.Mkdir(u.dir(), 0o700); err != nil {
		return nil, err
	}
	for _, name := range names {
		kept := filepath.Join(a.Dir, from.ID, name)
		if err := a.Quota.link(kept, from.ID, from.Owner, u.id, owner); err != nil {
			return nil, err
		}
		if err := os.Link(kept, filepath.Join(u.dir(), name)); err != nil {
			return nil, fmt.Errorf("cannot reuse the input of job %s: %w", joblet.ShortID(from.ID), err)
		}
	}
	return u, jobdir.SyncDir(u.dir())
}

// ID returns the id of the job that the upload is for.
func (u *Upload) ID() string { return u.id }

// Tops returns the names at the top of the uploaded files.
func (u *Upload) Tops() []string { return u.tops }

func (u *Upload) dir() string { return filepath.Join(u.area.Dir, u.id) }

// Check returns an error if the spec needs input that was not uploaded. The upload may
// be nil: then there is none.
func (u *Upload) Check(spec joblet.Spec) error {
	if spec.Stdin == joblet.StdinFile && (u == nil || !u.stdin) {
		return joblet.Errorf(joblet.InvalidArgument, "the job has standard input as a file, but no file was sent")
	}
	return nil
}

// Files receives a tar archive for the job's /work.
func (u *Upload) Files(r io.Reader) error {
	return u.receive(jobdir.FilesName, "the job's files", func(w io.Writer) error {
		stats, err := archive.Check(w, r, archive.DefaultLimits)
		u.tops = stats.Top
		return err
	})
}

// Stdin receives the job's standard input.
func (u *Upload) Stdin(r io.Reader) error {
	return u.receive(jobdir.StdinName, "the job's standard input", func(w io.Writer) error {
		limit := u.area.MaxStdin
		n, err := io.Copy(w, io.LimitReader(r, limit+1))
		if err == nil && n > limit {
			err = joblet.Errorf(joblet.ResourceExhausted, "standard input as a file is limited to %s: pipe more to a job that is not detached", joblet.FormatSize(limit))
		}
		u.stdin = true
		return err
	})
}

func (u *Upload) receive(name, what string, fill func(io.Writer) error) error {
	if err := os.Mkdir(u.dir(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot receive %s: %w", what, err)
	}
	f, err := os.OpenFile(filepath.Join(u.dir(), name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("cannot receive %s: %w", what, err)
	}
	err = fill(&charged{f, u})
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = jobdir.SyncDir(u.dir())
	}
	fault.Point("stage.taken")
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return joblet.Errorf(joblet.ResourceExhausted, "cannot receive %s: %w", what, err)
	}
	return err
}

// charged writes an upload as long as the owner's quota allows it.
type charged struct {
	w io.Writer
	u *Upload
}

func (c *charged) Write(p []byte) (int, error) {
	if err := c.u.area.Quota.Reserve(c.u.owner, c.u.id, int64(len(p))); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// Discard removes the upload. The upload may be nil.
func (u *Upload) Discard() error {
	if u == nil {
		return nil
	}
	if err := os.RemoveAll(u.dir()); err != nil {
		return fmt.Errorf("cannot remove the uploaded input of a job: %w", err)
	}
	u.area.Quota.release(u.id)
	return nil
}
