package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/secrets"
	"github.com/joblet/joblet/internal/statedir"
	"github.com/joblet/joblet/internal/store"
)

// checkKey refuses to go on when no secret of the jobs can be opened although
// there is a key: it is damaged, or another one. The jobs that wait would be
// canceled, and what they had of secrets erased. A key that is missing somebody
// has taken away.
func (s *Supervisor) checkKey(unfinished []store.Record) error {
	sealed := 0
	var failure error
	for _, rec := range unfinished {
		if len(rec.Sealed) == 0 {
			continue
		}
		if _, err := os.Lstat(s.secrets.Path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		sealed++
		if _, err := s.secrets.Open(rec.ID, rec.Sealed); err == nil {
			return nil
		} else if failure == nil {
			failure = err
		}
	}
	if sealed == 0 {
		return s.setKeyAside()
	}
	return joblet.Errorf(joblet.FailedPrecondition,
		"cannot open the secrets of %d jobs that have not ended: %w: restore %s from a backup, or move it away to give up these secrets and the jobs that wait for them",
		sealed, failure, s.secrets.Path)
}

// setKeyAside moves a key that cannot be one out of the way, so that new secrets
// can be sealed. No job has any: see checkKey.
func (s *Supervisor) setKeyAside() error {
	info, err := os.Lstat(s.secrets.Path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().IsRegular() && info.Size() == secrets.KeySize {
		return nil
	}
	dir := filepath.Join(s.cfg.StateDir, statedir.DamagedName, time.Now().UTC().Format("20060102T150405.000Z-key"))
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = os.Rename(s.secrets.Path, filepath.Join(dir, secrets.KeyName))
	}
	if err != nil {
		return fmt.Errorf("cannot set the damaged key of the jobs' secrets aside: %w", err)
	}
	s.cfg.Log.Error("the key of the jobs' secrets was damaged, and no job needs it: a new one is made when one does", "kept", dir)
	return nil
}
