package secrets

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSecrets(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key")
	a := Sealer{Path: path}
	secrets := map[string]string{"TOKEN": "hunter2", "EMPTY": ""}
	sealed, err := a.Seal("one", secrets)
	if err != nil || bytes.Contains(sealed, []byte("hunter2")) {
		t.Fatalf("%q %v", sealed, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 || info.Size() != KeySize {
		t.Errorf("key: %v %v", info, err)
	}
	b := Sealer{Path: path} // the next daemon
	if got, err := b.Open("one", sealed); err != nil || got["TOKEN"] != "hunter2" || len(got) != 2 {
		t.Errorf("%v %v", got, err)
	}
	odd := map[string]string{"A": "\xff", "\xfe": "b", "C": ""}
	if sealed, err := a.Seal("one", odd); err != nil {
		t.Error(err)
	} else if got, err := b.Open("one", sealed); err != nil || !maps.Equal(got, odd) {
		t.Errorf("not UTF-8: %q %v", got, err)
	}
	if _, err := b.Open("two", sealed); err == nil {
		t.Error("another job's secrets could be opened")
	}
	sealed[len(sealed)-1] ^= 1
	if _, err := b.Open("one", sealed); err == nil {
		t.Error("changed secrets could be opened")
	}
	if sealed, err := a.Seal("one", nil); sealed != nil || err != nil {
		t.Errorf("nothing: %v %v", sealed, err)
	}
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Sealer{Path: path}
	if _, err := c.Seal("one", secrets); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a damaged key: %v", err)
	}
}
