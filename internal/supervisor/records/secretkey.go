package records

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

// CheckKey returns an error if there is a key, and it decrypts the secrets of none of the
// unfinished jobs: the key is damaged, or another one. Otherwise the waiting jobs would
// be canceled and their secrets erased. A missing key is not an error: an operator
// removes it to give these secrets up.
func (r *Records) CheckKey(unfinished []store.Record) error {
	sealed := 0
	var failure error
	for _, rec := range unfinished {
		if len(rec.Sealed) == 0 {
			continue
		}
		if _, err := os.Lstat(r.secrets.Path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		sealed++
		if _, err := r.secrets.Open(rec.ID, rec.Sealed); err == nil {
			return nil
		} else if failure == nil {
			failure = err
		}
	}
	if sealed == 0 {
		return r.setKeyAside()
	}
	return joblet.Errorf(joblet.FailedPrecondition,
		"cannot open the secrets of %d jobs that have not ended: %w: restore %s from a backup, or move it away to give up these secrets and the jobs that wait for them",
		sealed, failure, r.secrets.Path)
}

// setKeyAside moves a damaged key away, so that new secrets can be sealed. No job needs
// it: see CheckKey.
func (r *Records) setKeyAside() error {
	info, err := os.Lstat(r.secrets.Path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().IsRegular() && info.Size() == secrets.KeySize {
		return nil
	}
	dir := filepath.Join(r.stateDir, statedir.DamagedName, time.Now().UTC().Format("20060102T150405.000Z-key"))
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = os.Rename(r.secrets.Path, filepath.Join(dir, secrets.KeyName))
	}
	if err != nil {
		return fmt.Errorf("cannot set the damaged key of the jobs' secrets aside: %w", err)
	}
	r.log.Error("the key of the jobs' secrets was damaged, and no job needs it: a new one is made when one does", "kept", dir)
	return nil
}
