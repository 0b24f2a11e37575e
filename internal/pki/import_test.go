package pki

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestImport: what another directory holds serves its clients from a new one.
func TestImport(t *testing.T) {
	t.Parallel()
	from, b := newDir(t)
	read := func(name string) []byte {
		text, err := os.ReadFile(from.file(name))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	ca, server := read(caName), string(read(serverName))
	at := strings.Index(server, "-----BEGIN PRIVATE KEY") // certificate, then key
	if at <= 0 {
		t.Fatalf("no key in %s", server)
	}
	cert, key := []byte(strings.TrimSpace(server[:at])), []byte(server[at:])

	to := Dir{Path: filepath.Join(t.TempDir(), "pki")}
	c, err := to.Import(ca, cert, key)
	if err != nil || !c.Server || c.Name != ServerName {
		t.Fatalf("got %+v, %v", c, err)
	}
	for _, name := range []string{caName, serverName, indexName} {
		if st, err := os.Stat(to.file(name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if near, far := shake(t, open(t, to), b, ServerName); near != nil || far != nil {
		t.Errorf("client %v, server %v", near, far)
	}
	if all, err := to.List(); err != nil || len(all) != 1 || !all[0].Server || all[0].untrusted {
		t.Errorf("got %+v, %v", all, err)
	}
	if _, err := to.Issue("alice", "developer", DefaultValid); err == nil || !strings.Contains(err.Error(), "the authority's key") {
		t.Errorf("issue: %v", err)
	}
	if _, err := to.Import(ca, cert, key); !errors.Is(err, ErrExists) {
		t.Errorf("again: %v", err)
	}

	_, stranger := newDir(t)
	for _, tt := range []struct {
		ca, cert, key []byte
		want          string
	}{
		{nil, cert, key, "the authority's certificate: it contains no certificate"},
		{cert, cert, key, "may not sign"},
		{ca, nil, key, "the server's certificate and key"},
		{ca, cert, nil, "the server's certificate and key"},
		{ca, cert, b.Key, "the server's certificate and key"},
		{stranger.CA, cert, key, "unknown authority"},
		{ca, b.Cert, b.Key, "not valid for any names, but wanted to match joblet"},
	} {
		dir := Dir{Path: filepath.Join(t.TempDir(), "pki")}
		if _, err := dir.Import(tt.ca, tt.cert, tt.key); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %s", err, tt.want)
		}
		if _, err := os.Lstat(dir.Path); err == nil {
			t.Errorf("%s: something is left", tt.want)
		}
	}

	// A step that fails leaves nothing that counts.
	broken := Dir{Path: filepath.Join(t.TempDir(), "pki"), fail: func(step string) error {
		if step == "before "+caName {
			return errors.New("full")
		}
		return nil
	}}
	if _, err := broken.Import(ca, cert, key); err == nil {
		t.Error("no error")
	}
	for _, name := range []string{caName, serverName, indexName} {
		if _, err := os.Lstat(broken.file(name)); err == nil {
			t.Errorf("%s is left", name)
		}
	}
}
