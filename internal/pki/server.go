package pki

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"
)

// Server is what a daemon knows of certificates. It looks at the files again
// whenever it is asked, so that what is issued, revoked or rotated counts at
// once.
type Server struct {
	dir Dir
	log *slog.Logger

	mu     sync.Mutex // protects what follows
	looked time.Time
	stamps [3]stamp
	now    *trust
}

// trust is what the files say.
type trust struct {
	roots   *x509.CertPool
	pair    tls.Certificate
	revoked map[string]time.Time // by serial number
	good    sync.Map             // SHA-256 of certificates whose signature was looked at
}

// stamp tells one version of a file from another: each is a file of its own.
type stamp struct {
	inode   uint64
	size    int64
	changed int64
}

// lookEvery is how long what was read counts without a look at the files.
const lookEvery = 100 * time.Millisecond

// Open reads a daemon's certificates.
func Open(path string, log *slog.Logger) (*Server, error) {
	s := &Server{dir: Dir{Path: path}, log: log}
	stamps, err := s.look()
	if err != nil {
		return nil, fmt.Errorf("cannot read the certificates: %w: create them with joblet pki init", err)
	}
	if s.now, err = s.read(); err != nil {
		return nil, err
	}
	s.stamps, s.looked = stamps, time.Now()
	return s, nil
}

func (s *Server) look() (stamps [3]stamp, err error) {
	for i, name := range [...]string{caName, serverName, indexName} {
		st, err := os.Lstat(s.dir.file(name))
		if err != nil {
			return stamps, err
		}
		stamps[i] = stamp{inode(st), st.Size(), st.ModTime().UnixNano()}
	}
	return stamps, nil
}

func (s *Server) read() (*trust, error) {
	t := &trust{roots: x509.NewCertPool(), revoked: map[string]time.Time{}}
	text, err := readFile(s.dir.file(caName))
	if err != nil {
		return nil, err
	}
	roots, err := parseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", s.dir.file(caName), err)
	}
	for _, c := range roots {
		t.roots.AddCert(c)
	}
	if text, err = readFile(s.dir.file(serverName)); err != nil {
		return nil, err
	}
	if t.pair, err = tls.X509KeyPair(text, text); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", s.dir.file(serverName), err)
	}
	index, err := readIndex(s.dir.file(indexName))
	if err != nil {
		return nil, err
	}
	for _, c := range index {
		if !c.Revoked.IsZero() {
			t.revoked[c.Serial] = c.Revoked
		}
	}
	return t, nil
}

// current returns what the files say now. When they cannot be read, what they
// said before goes on to count, and the log says so.
func (s *Server) current() *trust {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.looked) < lookEvery {
		return s.now
	}
	s.looked = time.Now()
	stamps, err := s.look()
	if err == nil && stamps == s.stamps {
		return s.now
	}
	var t *trust
	if err == nil {
		t, err = s.read()
	}
	if err != nil {
		s.log.Error("cannot reload the certificates; the previous ones stay in use", "error", err)
		return s.now
	}
	s.now, s.stamps = t, stamps
	s.log.Info("certificates reloaded", "revoked", len(t.revoked))
	return t
}

// NotAfter returns when the server's own certificate expires.
func (s *Server) NotAfter() time.Time { return s.current().pair.Leaf.NotAfter }

// TLS returns the configuration for connections of clients: TLS 1.3, with a
// certificate that an authority has signed and that is not revoked.
func (s *Server) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			t := s.current()
			return &tls.Config{
				MinVersion:             tls.VersionTLS13,
				Certificates:           []tls.Certificate{t.pair},
				ClientAuth:             tls.RequireAndVerifyClientCert,
				ClientCAs:              t.roots,
				NextProtos:             []string{"h2"},
				SessionTicketsDisabled: true, // each connection is looked at
				VerifyConnection: func(c tls.ConnectionState) error {
					return s.Check(c.PeerCertificates[0])
				},
			}, nil
		},
	}
}

// Check reports why a client's certificate, which was good when its connection
// was made, counts no more.
func (s *Server) Check(c *x509.Certificate) error {
	t := s.current()
	if at, ok := t.revoked[SerialOf(c)]; ok {
		return fmt.Errorf("the certificate of %.80q was revoked on %s", c.Subject.CommonName, at.Format(time.RFC3339))
	}
	if time.Now().After(c.NotAfter) {
		return fmt.Errorf("the certificate of %.80q expired on %s", c.Subject.CommonName, c.NotAfter.Format(time.RFC3339))
	}
	sum := sha256.Sum256(c.Raw)
	if _, known := t.good.Load(sum); known {
		return nil
	}
	_, err := c.Verify(x509.VerifyOptions{Roots: t.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if errors.As(err, new(x509.UnknownAuthorityError)) {
		return fmt.Errorf("the certificate of %.80q is signed by an untrusted authority", c.Subject.CommonName)
	}
	if err == nil {
		t.good.Store(sum, nil)
	}
	return err
}

func inode(st fs.FileInfo) uint64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Ino
	}
	return 0
}
