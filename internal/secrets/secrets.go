// Package secrets encrypts the secrets of jobs, with a key that is a file of the state
// directory.
package secrets

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/jobdir"
)

// Sealer encrypts the secrets of jobs that wait, so that neither the database
// nor a copy of it has them in clear (AES-256-GCM, bound to the job's id). The
// key is a file beside it that only root may read; a job's secrets are erased
// from its record when it ends.
type Sealer struct {
	Path string // of the file with the key
	mu   sync.Mutex
	gcm  cipher.AEAD
}

const KeySize = 32

// cipher returns the cipher; the key file is made when there is none.
func (s *Sealer) cipher() (cipher.AEAD, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gcm != nil {
		return s.gcm, nil
	}
	key, err := os.ReadFile(s.Path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = s.makeKey()
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read or make the key of the jobs' secrets: %w", err)
	}
	if len(key) != KeySize {
		return nil, fmt.Errorf("cannot use the key of the jobs' secrets: %s has %d bytes instead of %d", s.Path, len(key), KeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	s.gcm, err = cipher.NewGCM(block)
	return s.gcm, err
}

// makeKey makes a key that survives a crash before anything is sealed with it.
func (s *Sealer) makeKey() ([]byte, error) {
	key := make([]byte, KeySize)
	_, _ = rand.Read(key) // never fails
	f, err := os.OpenFile(s.Path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(s.Path+".new", s.Path)
	}
	if err == nil {
		err = jobdir.SyncDir(filepath.Dir(s.Path))
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(s.Path+".new"))
	}
	return key, nil
}

// Seal returns nil for no secrets.
func (s *Sealer) Seal(id string, secrets map[string]string) ([]byte, error) {
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

func (s *Sealer) Open(id string, sealed []byte) (map[string]string, error) {
	gcm, err := s.cipher()
	if err != nil {
		return nil, err
	}
	if len(sealed) < gcm.NonceSize() {
		return nil, errors.New("cannot open a job's secrets: the record is too short")
	}
	n := gcm.NonceSize()
	plain, err := gcm.Open(nil, sealed[:n], sealed[n:], []byte(id))
	if err != nil {
		return nil, fmt.Errorf("cannot open a job's secrets with the key %s: %w", s.Path, err)
	}
	var secrets map[string]string
	var raw [][]byte
	if bytes.HasPrefix(plain, []byte("[")) { // not all of it is UTF-8
		err = json.Unmarshal(plain, &raw)
	} else {
		err = json.Unmarshal(plain, &secrets)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open a job's secrets: %w", err)
	}
	return joblet.FromRawEnv(secrets, raw), nil
}

// KeyName is the file with the key of the jobs' secrets.
const KeyName = "secrets.key"

// Masked reports whether the values of secrets are what the database shows of them:
// then the secrets themselves are lost.
func Masked(secrets map[string]string) bool {
	for value := range maps.Values(secrets) {
		if value != joblet.Mask {
			return false
		}
	}
	return len(secrets) > 0
}
