package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func newDir(t *testing.T) (Dir, Bundle) {
	t.Helper()
	top := t.TempDir()
	d := Dir{Path: filepath.Join(top, "pki"), CA: filepath.Join(top, "elsewhere")}
	b, err := d.Init([]string{"node1.example.org", "192.0.2.7"}, "root", DefaultValid)
	if err != nil {
		t.Fatal(err)
	}
	return d, b
}

func open(t *testing.T, d Dir) *Server {
	t.Helper()
	s, err := Open(d.Path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// shake makes a connection with the client's certificate and returns what the
// two sides say of it.
func shake(t *testing.T, s *Server, b Bundle, name string) (client, server error) {
	t.Helper()
	conf := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: name, RootCAs: x509.NewCertPool(), NextProtos: []string{"h2"}}
	conf.RootCAs.AppendCertsFromPEM(b.CA)
	if b.Cert != nil {
		pair, err := tls.X509KeyPair(b.Cert, b.Key)
		if err != nil {
			t.Fatal(err)
		}
		// Whatever the server says that it takes.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return shakeWith(t, s, conf)
}

func shakeWith(t *testing.T, s *Server, conf *tls.Config) (client, server error) {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	done := make(chan error, 1)
	go func() {
		c := tls.Server(far, s.TLS())
		err := c.Handshake()
		if err == nil {
			_, err = c.Write([]byte("x"))
		}
		done <- err
	}()
	c := tls.Client(near, conf)
	if client = c.Handshake(); client == nil { // in TLS 1.3 the server's refusal comes behind it
		_, client = io.ReadFull(c, make([]byte, 1))
	}
	near.Close()
	return client, <-done
}

// wait lets what was read before be looked at again.
func wait() { time.Sleep(2 * lookEvery) }

func mustShake(t *testing.T, s *Server, b Bundle) {
	t.Helper()
	if client, server := shake(t, s, b, ServerName); client != nil || server != nil {
		t.Errorf("%s: client %v, server %v", b.Certificate.Name, client, server)
	}
}

func mustNotShake(t *testing.T, s *Server, b Bundle, why string) {
	t.Helper()
	_, server := shake(t, s, b, ServerName)
	if server == nil || !strings.Contains(server.Error(), why) {
		t.Errorf("%s: got %v, want %q", b.Certificate.Name, server, why)
	}
}

func TestInit(t *testing.T) {
	t.Parallel()
	d, b := newDir(t)
	for _, name := range []string{d.file(caName), d.file(serverName), d.file(indexName), filepath.Join(d.CA, caKeyName)} {
		if st, err := os.Stat(name); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	for _, dir := range []string{d.Path, d.CA} {
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, st, err)
		}
	}
	s := open(t, d)
	for _, name := range []string{ServerName, "localhost", "127.0.0.1", "::1", "node1.example.org", "192.0.2.7"} {
		if client, server := shake(t, s, b, name); client != nil || server != nil {
			t.Errorf("%s: client %v, server %v", name, client, server)
		}
	}
	if client, _ := shake(t, s, b, "other.example.org"); !errors.As(client, new(x509.HostnameError)) {
		t.Errorf("another name: %v", client)
	}
	if _, err := d.Init(nil, "root", DefaultValid); !errors.Is(err, ErrExists) {
		t.Errorf("again: %v", err)
	}
	mustShake(t, s, b) // and that has harmed nothing
	bad := Dir{Path: filepath.Join(t.TempDir(), "pki")}
	for _, names := range [][]string{{"a b"}, {"*.x"}, {strings.Repeat("a", 300)}, {""}} {
		if _, err := bad.Init(names, "root", DefaultValid); err == nil {
			t.Errorf("%q was taken", names)
		}
	}
	if _, err := os.Stat(filepath.Join(bad.Path, "ca")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

// TestInitUndone: a failure in the middle leaves nothing that counts.
func TestInitUndone(t *testing.T) {
	t.Parallel()
	d := Dir{Path: filepath.Join(t.TempDir(), "pki")}
	if err := os.MkdirAll(filepath.Join(d.Path, indexName, "x"), 0o700); err != nil { // cannot be replaced
		t.Fatal(err)
	}
	if _, err := d.Init(nil, "root", DefaultValid); err == nil {
		t.Fatal("no error")
	}
	var left []string
	for _, pattern := range []string{"*", ".*", "ca/*", "ca/.*"} {
		found, _ := filepath.Glob(filepath.Join(d.Path, pattern))
		for _, f := range found {
			left = append(left, filepath.Base(f))
		}
	}
	slices.Sort(left)
	if want := []string{"ca", indexName, lockName}; !slices.Equal(left, want) {
		t.Errorf("left: %q", left)
	}
}

func TestIssueRevokeRotate(t *testing.T) {
	t.Parallel()
	d, admin := newDir(t)
	s := open(t, d)
	alice, err := d.Issue("alice", "developer", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseCertificates(alice.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if got := c[0].Subject; got.CommonName != "alice" || !slices.Equal(got.OrganizationalUnit, []string{"developer"}) {
		t.Errorf("subject %v", got)
	}
	mustShake(t, s, alice)
	if _, err := d.Issue("alice", "admin", time.Hour); !errors.Is(err, ErrExists) {
		t.Errorf("a second one: %v", err)
	}
	again, err := d.Rotate("alice", 2*time.Hour)
	if err != nil || again.Certificate.Role != "developer" {
		t.Fatalf("%+v %v", again.Certificate, err)
	}
	wait()
	mustNotShake(t, s, alice, "was revoked on 2")
	mustShake(t, s, again)
	revoked, err := d.Revoke("alice")
	if err != nil || len(revoked) != 1 || revoked[0].Serial != again.Certificate.Serial {
		t.Errorf("%+v %v", revoked, err)
	}
	wait()
	mustNotShake(t, s, again, "was revoked on 2")
	if revoked, err := d.Revoke("alice"); err != nil || len(revoked) != 0 {
		t.Errorf("a second time: %v, %v", revoked, err)
	}
	if _, err := d.Rotate("alice", time.Hour); !errors.Is(err, ErrNotFound) {
		t.Errorf("rotate what is revoked: %v", err)
	}
	if _, err := d.Revoke("bob"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
	if revoked, err := d.Revoke(admin.Certificate.Serial); err != nil || len(revoked) != 1 {
		t.Errorf("by number: %v, %v", revoked, err)
	}
	if _, err := d.Issue("alice", "viewer", time.Hour); err != nil { // the name is free again
		t.Error(err)
	}
	if got, want := states(t, d), []string{"joblet valid", "root revoked", "alice revoked", "alice revoked", "alice valid"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	for _, bad := range []struct {
		name, role string
		valid      time.Duration
	}{{"", "admin", time.Hour}, {"a/b", "admin", time.Hour}, {"..", "admin", time.Hour}, {"x", "god", time.Hour}, {"x", "admin", 0}, {"x", "admin", 2 * MaxValid}, {"a\nb", "admin", time.Hour}} {
		if _, err := d.Issue(bad.name, bad.role, bad.valid); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

// TestStrangers: clients without a certificate of the authority are refused.
func TestStrangers(t *testing.T) {
	t.Parallel()
	d, admin := newDir(t)
	s := open(t, d)
	_, foreign := newDir(t)
	foreign.CA = admin.CA // it knows the server, but not the other way round
	mustNotShake(t, s, foreign, "unknown authority")

	self, err := sign(&x509.Certificate{
		Subject: c(t, admin.Cert).Subject, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustNotShake(t, s, Bundle{CA: admin.CA, Cert: self.cert, Key: self.key}, "unknown authority")
	mustNotShake(t, s, Bundle{CA: admin.CA}, "didn't provide a certificate")

	a, err := d.authority()
	if err != nil {
		t.Fatal(err)
	}
	old := &x509.Certificate{
		Subject: c(t, admin.Cert).Subject, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	expired, err := a.sign(old)
	if err != nil {
		t.Fatal(err)
	}
	mustNotShake(t, s, Bundle{CA: admin.CA, Cert: expired.cert, Key: expired.key}, "expired")

	text, err := os.ReadFile(d.file(serverName))
	if err != nil {
		t.Fatal(err)
	}
	mustNotShake(t, s, Bundle{CA: admin.CA, Cert: text, Key: text}, "incompatible key usage") // the server's own

	conf := &tls.Config{ServerName: ServerName, RootCAs: x509.NewCertPool(), MaxVersion: tls.VersionTLS12}
	conf.RootCAs.AppendCertsFromPEM(admin.CA)
	if client, _ := shakeWith(t, s, conf); client == nil {
		t.Error("TLS 1.2 was taken")
	}
}

func c(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	all, err := parseCertificates(text)
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

func TestRotateServer(t *testing.T) {
	t.Parallel()
	d, admin := newDir(t)
	s := open(t, d)
	before := s.current().pair.Leaf
	if _, err := d.RotateServer(nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	wait()
	after := s.current().pair.Leaf
	if before.Equal(after) || !slices.Equal(before.DNSNames, after.DNSNames) || len(after.IPAddresses) != len(before.IPAddresses) {
		t.Errorf("%v, then %v", before.DNSNames, after.DNSNames)
	}
	if left := time.Until(s.NotAfter()); left > time.Hour || left < 50*time.Minute {
		t.Errorf("valid for %v", left)
	}
	mustShake(t, s, admin)
	if _, err := d.RotateServer([]string{"new.example.org"}, time.Hour); err != nil {
		t.Fatal(err)
	}
	wait()
	if client, server := shake(t, s, admin, "new.example.org"); client != nil || server != nil {
		t.Errorf("client %v, server %v", client, server)
	}
}

// TestRotateCA: clients of the old authority go on until it is retired, also
// when the server's certificate is renewed in between.
func TestRotateCA(t *testing.T) {
	t.Parallel()
	d, old := newDir(t)
	s := open(t, d)
	if _, err := d.RotateCA(DefaultValid); err != nil {
		t.Fatal(err)
	}
	fresh, err := d.Issue("fresh", "reader", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	onlyNew := fresh
	onlyNew.CA = encode("CERTIFICATE", c(t, fresh.CA).Raw)
	for range 2 {
		wait()
		mustShake(t, s, old)
		mustShake(t, s, fresh)
		mustShake(t, s, onlyNew)
		if _, err := d.RotateServer(nil, DefaultValid); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.RotateCA(DefaultValid); err == nil {
		t.Error("a third authority beside two")
	}
	if r, err := d.RetireCA(false); !errors.Is(err, ErrLastAdmin) || len(r.Cut) != 1 || r.Cut[0].Name != "root" {
		t.Errorf("the last admin: %+v, %v", r, err)
	}
	if got := states(t, d); !slices.Equal(got, []string{"root valid", "fresh valid", "joblet valid"}) {
		t.Errorf("got %q", got)
	}
	if r, err := d.RetireCA(true); r.Authorities != 1 || len(r.Cut) != 1 || err != nil {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := d.RetireCA(false); r.Authorities != 0 || err != nil {
		t.Errorf("again: %+v, %v", r, err)
	}
	if got := states(t, d); !slices.Equal(got, []string{"root untrusted", "fresh valid", "joblet valid"}) {
		t.Errorf("got %q", got)
	}
	wait()
	mustNotShake(t, s, old, "unknown authority")
	if err := s.Check(c(t, old.Cert)); err == nil || !strings.Contains(err.Error(), "untrusted authority") {
		t.Errorf("a connection that is there: %v", err)
	}
	mustShake(t, s, onlyNew)
	if _, err := d.Issue("more", "reader", time.Hour); err != nil {
		t.Error(err)
	}
	if b, err := d.Rotate("root", time.Hour); err != nil || b.Certificate.Role != "admin" {
		t.Errorf("%+v, %v", b.Certificate, err)
	}
}

// states lists the certificates with what they count for.
func states(t *testing.T, d Dir) (all []string) {
	t.Helper()
	list, err := d.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		all = append(all, c.Name+" "+c.State(time.Now()))
	}
	return all
}

// TestIndexWithoutIssuer: an older index does not name the signer.
func TestIndexWithoutIssuer(t *testing.T) {
	t.Parallel()
	d, _ := newDir(t)
	time.Sleep(1100 * time.Millisecond) // times in certificates are whole seconds
	if _, err := d.RotateCA(DefaultValid); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Issue("boss", "admin", time.Hour); err != nil {
		t.Fatal(err)
	}
	all, err := d.List()
	if err != nil {
		t.Fatal(err)
	}
	for i := range all {
		all[i].Issuer = ""
	}
	if err := d.files().write(file{d.file(indexName), mustJSON(all)}); err != nil {
		t.Fatal(err)
	}
	if r, err := d.RetireCA(false); err != nil || len(r.Cut) != 1 || r.Cut[0].Name != "root" {
		t.Errorf("%+v, %v", r, err)
	}
	if got := states(t, d); !slices.Equal(got, []string{"root untrusted", "joblet valid", "boss valid"}) {
		t.Errorf("got %q", got)
	}
}

// killed runs change until the step, at which it dies as in a crash: nothing is
// cleaned up. Without such a step it returns all that there are.
func killed(d Dir, at string, change func(Dir) error) (steps []string, err error) {
	died := errors.New("died")
	defer func() {
		if p := recover(); p != nil && p != died {
			panic(p)
		}
	}()
	d.fail = func(step string) error {
		steps = append(steps, step)
		if step == at {
			panic(died)
		}
		return nil
	}
	return steps, change(d)
}

func rotateCA(d Dir) error {
	_, err := d.RotateCA(DefaultValid)
	return err
}

// TestRotateCABreaksOff: wherever a rotation fails or dies, all goes on, and
// another one completes it.
func TestRotateCABreaksOff(t *testing.T) {
	t.Parallel()
	d, _ := newDir(t)
	steps, err := killed(d, "", rotateCA)
	if err != nil || len(steps) < 9 {
		t.Fatalf("%q, %v", steps, err)
	}
	for i, step := range steps {
		for _, way := range []string{"fails", "dies"} {
			t.Run(step+" "+way, func(t *testing.T) {
				t.Parallel()
				d, admin := newDir(t)
				broken := d
				broken.fail = func(s string) error {
					if s == step {
						return io.ErrShortWrite
					}
					return nil
				}
				if way == "dies" {
					_, _ = killed(d, step, rotateCA)
				} else if err := rotateCA(broken); !errors.Is(err, io.ErrShortWrite) {
					t.Fatal(err)
				}
				s := open(t, d)
				mustShake(t, s, admin)
				for _, name := range []string{"a", "b"} { // before and after the server has another certificate
					b, err := d.Issue(name, "reader", time.Hour)
					if err != nil {
						t.Fatal(err)
					}
					mustShake(t, s, b)
					mustShake(t, s, admin)
					if _, err := d.RotateServer(nil, DefaultValid); err != nil {
						t.Fatal(err)
					}
					wait()
				}
				trusted, err := d.trusted()
				if err != nil {
					t.Fatal(err)
				}
				if r, err := d.RetireCA(true); r.Authorities != 0 || (err != nil) != (len(trusted) == 2) {
					t.Errorf("step %d: %+v, %v", i, r, err)
				}
				if err := rotateCA(d); err != nil {
					t.Fatal(err)
				}
				wait()
				mustShake(t, s, admin)
				fresh, err := d.Issue("fresh", "admin", time.Hour)
				if err != nil {
					t.Fatal(err)
				}
				mustShake(t, s, fresh)
				if r, err := d.RetireCA(false); r.Authorities != 1 || len(r.Cut) != 3 || err != nil {
					t.Errorf("%+v, %v", r, err)
				}
				wait()
				fresh.CA = encode("CERTIFICATE", c(t, fresh.CA).Raw)
				mustShake(t, s, fresh)
				mustNotShake(t, s, admin, "unknown authority")
				if _, err := os.Lstat(d.key() + newSuffix); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("left: %v", err)
				}
			})
		}
	}
}

// TestInitDies: another Init, or what it says, completes one that died.
func TestInitDies(t *testing.T) {
	t.Parallel()
	initialize := func(d Dir) error {
		_, err := d.Init(nil, "root", DefaultValid)
		return err
	}
	steps, err := killed(Dir{Path: filepath.Join(t.TempDir(), "pki")}, "", initialize)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range steps {
		d := Dir{Path: filepath.Join(t.TempDir(), "pki")}
		_, _ = killed(d, step, initialize)
		if err := initialize(d); err != nil && !errors.Is(err, ErrExists) {
			t.Errorf("%s: %v", step, err)
		}
		b, err := d.Rotate("root", DefaultValid)
		if err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		mustShake(t, open(t, d), b)
	}
}

// TestLostKey: an authority whose key is gone does not drive out the one that signs.
func TestLostKey(t *testing.T) {
	t.Parallel()
	d, admin := newDir(t)
	before, err := os.ReadFile(d.key())
	if err != nil {
		t.Fatal(err)
	}
	if err := rotateCA(d); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.key(), before, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{rotateCA(d), func() error { _, err := d.RetireCA(true); return err }()} {
		if err == nil || !strings.Contains(err.Error(), "not the key of the newest authority") {
			t.Errorf("got %v", err)
		}
	}
	if _, err := d.Issue("alice", "reader", time.Hour); err != nil {
		t.Error(err)
	}
	mustShake(t, open(t, d), admin)
}

// TestBadFiles: a daemon that cannot read its files goes on with what it knew,
// and does not start on them.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	d, admin := newDir(t)
	s := open(t, d)
	if _, err := d.Revoke("root"); err != nil {
		t.Fatal(err)
	}
	wait()
	mustNotShake(t, s, admin, "revoked")
	if err := os.WriteFile(d.file(indexName), []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	wait()
	mustNotShake(t, s, admin, "revoked")
	if _, err := Open(d.Path, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("opened")
	}
	if _, err := d.List(); err == nil {
		t.Error("listed")
	}
	if _, err := (Dir{Path: t.TempDir()}).List(); !errors.Is(err, ErrNotFound) {
		t.Errorf("nothing there: %v", err)
	}
	other, _ := newDir(t)
	if _, err := (Dir{Path: d.Path, CA: other.CA}).RotateServer(nil, time.Hour); err == nil || !strings.Contains(err.Error(), "not the key of an authority") {
		t.Errorf("another's key: %v", err)
	}
}
