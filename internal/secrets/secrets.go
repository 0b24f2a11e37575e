package supervisor

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/store"
)

// sealer encrypts the secrets of jobs that wait, so that neither the database
// nor a copy of it has them in clear (AES-256-GCM, bound to the job's id). The
// key is a file beside it that only root may read; a job's secrets are erased
// from its record when it ends.
type sealer struct {
	path string
	mu   sync.Mutex
	gcm  cipher.AEAD
}

const keySize = 32

// cipher returns the cipher; the key file is made when there is none.
func (s *sealer) cipher() (cipher.AEAD, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gcm != nil {
		return s.gcm, nil
	}
	key, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = s.makeKey()
	}
	if err != nil {
		return nil, fmt.Errorf("key of the jobs' secrets: %w", err)
	}
	if len(key) != keySize {
		return nil, fmt.Errorf("key of the jobs' secrets: %s has %d bytes and not %d", s.path, len(key), keySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	s.gcm, err = cipher.NewGCM(block)
	return s.gcm, err
}

// makeKey makes a key that survives a crash before anything is sealed with it.
func (s *sealer) makeKey() ([]byte, error) {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	f, err := os.OpenFile(s.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(s.path+".new", s.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(s.path))
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(s.path+".new"))
	}
	return key, nil
}

// seal returns nil for no secrets.
func (s *sealer) seal(id string, secrets map[string]string) ([]byte, error) {
	if len(secrets) == 0 {
		return nil, nil
	}
	gcm, err := s.cipher()
	if err != nil {
		return nil, err
	}
	var v any = secrets
	if raw := joblet.RawEnv(secrets); raw != nil {
		v = raw
	}
	plain, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, gcm.NonceSize())
	_, _ = rand.Read(nonce)
	return gcm.Seal(nonce, nonce, plain, []byte(id)), nil
}

func (s *sealer) open(id string, sealed []byte) (map[string]string, error) {
	gcm, err := s.cipher()
	if err != nil {
		return nil, err
	}
	if len(sealed) < gcm.NonceSize() {
		return nil, errors.New("open a job's secrets: too short")
	}
	n := gcm.NonceSize()
	plain, err := gcm.Open(nil, sealed[:n], sealed[n:], []byte(id))
	if err != nil {
		return nil, fmt.Errorf("open a job's secrets with the key %s: %w", s.path, err)
	}
	var secrets map[string]string
	var raw [][]byte
	if bytes.HasPrefix(plain, []byte("[")) { // not all of it is UTF-8
		err = json.Unmarshal(plain, &raw)
	} else {
		err = json.Unmarshal(plain, &secrets)
	}
	if err != nil {
		return nil, fmt.Errorf("open a job's secrets: %w", err)
	}
	return joblet.FromRawEnv(secrets, raw), nil
}

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
		if _, err := os.Lstat(s.secrets.path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		sealed++
		if _, err := s.secrets.open(rec.ID, rec.Sealed); err == nil {
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
		sealed, failure, s.secrets.path)
}

// setKeyAside moves a key that cannot be one out of the way, so that new secrets
// can be sealed. No job has any: see checkKey.
func (s *Supervisor) setKeyAside() error {
	info, err := os.Lstat(s.secrets.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().IsRegular() && info.Size() == keySize {
		return nil
	}
	dir := filepath.Join(s.cfg.StateDir, damagedName, time.Now().UTC().Format("20060102T150405.000Z-key"))
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = os.Rename(s.secrets.path, filepath.Join(dir, keyName))
	}
	if err != nil {
		return fmt.Errorf("cannot set the damaged key of the jobs' secrets aside: %w", err)
	}
	s.cfg.Log.Error("the key of the jobs' secrets was damaged, and no job needs it: a new one is made when one does", "kept", dir)
	return nil
}

// syncDir makes names in a directory survive a crash of the host.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
