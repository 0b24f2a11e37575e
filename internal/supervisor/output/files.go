package output

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/archive"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// Files writes those files of a job's /work that match to w, as a tar archive: of a
// running job (proc) as they are now, of another (nil) as its latest run left them. dir
// is the job's directory.
func Files(w io.Writer, dir string, job joblet.Job, proc *native.Process, match *archive.Matcher) error {
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
		f, err := os.Open(filepath.Join(dir, protocol.WorkName))
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

// LogSize returns how many bytes of output the log in a job's directory has had so far.
func LogSize(dir string) (int64, error) {
	info, err := logstore.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // the job has not run yet
	}
	return info.Size, err
}
