// Package pki makes the certificates by which a daemon and its remote clients
// know each other, and tells the daemon which of them count.
//
// A directory holds what the daemon needs: ca.crt, the authorities that it
// trusts, the newest first; server.pem, its own certificate and key; index.json,
// what was issued and what is revoked. The key that signs (ca.key, with its
// certificate) is in a directory of its own, which the daemon never reads and
// which may be on another medium. Each file is replaced as a whole, so that a daemon that
// reads one at any moment finds a good one.
package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ServerName is what a daemon is called in its certificate, whatever the name
// of its host.
const ServerName = "joblet"

// Names of the files.
const (
	caName     = "ca.crt"
	caKeyName  = "ca.key"
	newSuffix  = ".new" // of the key of an authority that is being made
	serverName = "server.pem"
	indexName  = "index.json"
	lockName   = "lock"
)

const (
	caValid    = 10 * 365 * 24 * time.Hour
	clockError = 5 * time.Minute // between the clocks of two machines

	// MaxValid is how long a certificate may be valid.
	MaxValid = caValid
	// DefaultValid is how long it is if nothing else is said.
	DefaultValid = 365 * 24 * time.Hour

	keepExpired = 90 * 24 * time.Hour // in the list

	maxFile  = 16 << 20
	maxNames = 100
)

// Dir is where the files are.
type Dir struct {
	Path string // what the daemon reads
	CA   string // the key that signs; empty: "ca" in Path

	fail func(step string) error // for tests
}

func (d Dir) ca() string {
	if d.CA == "" {
		return filepath.Join(d.Path, "ca")
	}
	return d.CA
}

func (d Dir) file(name string) string { return filepath.Join(d.Path, name) }

func (d Dir) key() string { return filepath.Join(d.ca(), caKeyName) }

// Certificate is one that was issued.
type Certificate struct {
	Serial    string    `json:"serial"`
	Name      string    `json:"name"`
	Role      string    `json:"role,omitempty"` // of a client
	Server    bool      `json:"server,omitempty"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Revoked   time.Time `json:"revoked,omitzero"`
	Issuer    string    `json:"issuer,omitempty"` // serial number of the authority's certificate

	untrusted bool // its authority was retired
}

// State says whether the certificate counts at a moment: valid, expired, revoked,
// or untrusted, which is one of an authority that was retired.
func (c Certificate) State(now time.Time) string {
	switch {
	case !c.Revoked.IsZero():
		return "revoked"
	case now.After(c.NotAfter):
		return "expired"
	case c.untrusted:
		return "untrusted"
	}
	return "valid"
}

// signedBy reports whether one of these authorities, the newest first, has signed the
// certificate. An older index does not name the signer: then it is the newest authority
// of that time.
func (c Certificate) signedBy(all ...*x509.Certificate) bool {
	return slices.ContainsFunc(all, func(a *x509.Certificate) bool {
		return c.Issuer == SerialOf(a) || c.Issuer == "" && !c.NotBefore.Before(a.NotBefore)
	})
}

// Bundle is what a client needs, in PEM.
type Bundle struct {
	CA, Cert, Key []byte
	Certificate   Certificate
}

// ErrExists says that there is a certificate, or a directory of them, already.
var ErrExists = errors.New("already exists")

// ErrNotFound says that there is none.
var ErrNotFound = errors.New("not found")

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// ValidName reports whether a client may be called so: it becomes the owner of
// jobs, and part of file names.
func ValidName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("name %.80q: must be 1 to 64 letters, digits, dots, dashes, @ and _, the first a letter or digit", name)
	}
	return nil
}

// Roles are the words for a client's role, as its certificate has them (OU); the
// last is another word for the first.
func Roles() []string { return []string{"reader", "developer", "maintainer", "admin", "viewer"} }

// validate checks what a certificate is to be made of.
func validate(name, role string, valid time.Duration) error {
	if err := ValidName(name); err != nil {
		return err
	}
	if !slices.Contains(Roles(), role) {
		return fmt.Errorf("role %.40q: must be one of %s", role, strings.Join(Roles(), ", "))
	}
	return validTime(valid)
}

func validTime(valid time.Duration) error {
	if valid < time.Hour || valid > MaxValid {
		return fmt.Errorf("validity %v: must be between an hour and %d days", valid, MaxValid/(24*time.Hour))
	}
	return nil
}

// Init makes an authority, a certificate for the server under its usual names and
// the given ones (host names and addresses), and one for a client that may do
// everything. Half of it is never left.
func (d Dir) Init(names []string, client string, valid time.Duration) (_ Bundle, err error) {
	if err := validate(client, "admin", valid); err != nil {
		return Bundle{}, err
	}
	template, err := serverTemplate(names, valid)
	if err != nil {
		return Bundle{}, err
	}
	unlock, err := d.lock()
	if err != nil {
		return Bundle{}, err
	}
	defer unlock()
	taken := []string{d.file(caName), d.key()}
	if _, err := os.Lstat(d.key() + newSuffix); err != nil { // else an Init that did not end may have left it
		taken = append(taken, d.file(serverName))
	}
	for _, name := range taken {
		if _, err := os.Lstat(name); err == nil {
			return Bundle{}, fmt.Errorf("%s %w: replace it with joblet pki rotate", name, ErrExists)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return Bundle{}, err
		}
	}
	a, err := newAuthority()
	if err != nil {
		return Bundle{}, err
	}
	server, err := a.sign(template)
	if err != nil {
		return Bundle{}, err
	}
	b, err := a.client(client, "admin", valid)
	if err != nil {
		return Bundle{}, err
	}
	b.CA = a.cert
	files := d.files()
	defer func() {
		if err != nil {
			err = errors.Join(err, files.undo())
		}
	}()
	if err := os.MkdirAll(d.ca(), 0o700); err != nil {
		return Bundle{}, fmt.Errorf("cannot create the authority's directory: %w", err)
	}
	for _, dir := range []string{d.Path, d.ca()} { // they may be new
		if err := syncDir(filepath.Dir(dir)); err != nil {
			return Bundle{}, err
		}
	}
	// Nothing counts before ca.crt is there: what a crash leaves before that,
	// another Init writes anew.
	if err := files.write(
		file{d.key() + newSuffix, a.text()},
		file{d.file(indexName), mustJSON([]Certificate{describe(server.x509, a, true), b.Certificate})},
		file{d.file(serverName), slices.Concat(server.cert, server.key)},
		file{d.file(caName), a.cert},
	); err != nil {
		return Bundle{}, err
	}
	return b, files.rename(d.key()+newSuffix, d.key())
}

// Issue makes a certificate for a client that has none that counts.
func (d Dir) Issue(name, role string, valid time.Duration) (Bundle, error) {
	return d.issue(name, role, valid, false)
}

// Rotate makes a new certificate for a client, with the role that it had, and
// revokes those before it.
func (d Dir) Rotate(name string, valid time.Duration) (Bundle, error) {
	return d.issue(name, "", valid, true)
}

func (d Dir) issue(name, role string, valid time.Duration, instead bool) (Bundle, error) {
	unlock, err := d.lock()
	if err != nil {
		return Bundle{}, err
	}
	defer unlock()
	index, err := d.List()
	if err != nil {
		return Bundle{}, err
	}
	now := time.Now()
	for i := len(index) - 1; i >= 0; i-- {
		c := &index[i]
		if c.Server || c.Name != name || c.State(now) == "revoked" {
			continue
		}
		switch {
		case instead:
			if role == "" {
				role = c.Role
			}
			c.Revoked = now.UTC().Truncate(time.Second)
		case c.State(now) == "valid":
			return Bundle{}, fmt.Errorf("a certificate for %s %w and is valid until %s: rotate or revoke it", name, ErrExists, c.NotAfter.Format(time.DateOnly))
		}
	}
	if instead && role == "" {
		return Bundle{}, fmt.Errorf("certificate for %.80q %w", name, ErrNotFound)
	}
	if err := validate(name, role, valid); err != nil {
		return Bundle{}, err
	}
	a, err := d.authority()
	if err != nil {
		return Bundle{}, err
	}
	b, err := a.client(name, role, valid)
	if err != nil {
		return Bundle{}, err
	}
	if b.CA, err = readFile(d.file(caName)); err != nil {
		return Bundle{}, err
	}
	return b, d.files().write(file{d.file(indexName), mustJSON(append(forget(index, now), b.Certificate))})
}

// forget drops what expired long ago: it does not count, whatever the index says.
func forget(index []Certificate, now time.Time) []Certificate {
	return slices.DeleteFunc(index, func(c Certificate) bool { return now.Sub(c.NotAfter) > keepExpired })
}

// List returns all certificates that were issued, the oldest first.
func (d Dir) List() ([]Certificate, error) {
	trusted, err := d.trusted()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("certificates in %s %w: create them with joblet pki init", d.Path, ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	index, err := readIndex(d.file(indexName))
	for i := range index {
		index[i].untrusted = !index[i].signedBy(trusted...)
	}
	return index, err
}

// trusted returns the authorities, the newest first.
func (d Dir) trusted() ([]*x509.Certificate, error) {
	text, err := readFile(d.file(caName))
	if err != nil {
		return nil, err
	}
	all, err := parseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", d.file(caName), err)
	}
	return all, nil
}

func readIndex(name string) ([]Certificate, error) {
	text, err := readFile(name)
	if err != nil {
		return nil, err
	}
	var index []Certificate
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", name, err)
	}
	return index, nil
}

// Revoke takes back the certificates of a client, by its name, or one, by its
// serial number.
func (d Dir) Revoke(name string) ([]Certificate, error) {
	unlock, err := d.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	index, err := d.List()
	if err != nil {
		return nil, err
	}
	var revoked []Certificate
	known := false
	for i := range index {
		c := &index[i]
		if c.Server || c.Name != name && c.Serial != name {
			continue
		}
		known = true
		if c.Revoked.IsZero() {
			c.Revoked = time.Now().UTC().Truncate(time.Second)
			revoked = append(revoked, *c)
		}
	}
	if !known {
		return nil, fmt.Errorf("client certificate %.80q %w", name, ErrNotFound)
	}
	return revoked, d.files().write(file{d.file(indexName), mustJSON(index)})
}

// RotateServer makes a new key and certificate for the server. Without names it
// keeps those that it had.
func (d Dir) RotateServer(names []string, valid time.Duration) (Certificate, error) {
	unlock, err := d.lock()
	if err != nil {
		return Certificate{}, err
	}
	defer unlock()
	a, err := d.authority()
	if err != nil {
		return Certificate{}, err
	}
	return d.newServer(a, names, valid)
}

// newServer writes a certificate of the server's, signed by a. What stands behind
// the old one, the authorities between, stays if a was the signer of that.
func (d Dir) newServer(a *authority, names []string, valid time.Duration) (Certificate, error) {
	old, err := readFile(d.file(serverName))
	if err != nil {
		return Certificate{}, err
	}
	chain, err := parseCertificates(old)
	if err != nil {
		return Certificate{}, fmt.Errorf("cannot read %s: %w", d.file(serverName), err)
	}
	if len(names) == 0 {
		names = chain[0].DNSNames
		for _, ip := range chain[0].IPAddresses {
			names = append(names, ip.String())
		}
	}
	template, err := serverTemplate(names, valid)
	if err != nil {
		return Certificate{}, err
	}
	server, err := a.sign(template)
	if err != nil {
		return Certificate{}, err
	}
	text := slices.Concat(server.cert, a.cross)
	for _, c := range chain[1:] { // their issuer's cross-certificate, for keys made before a was trusted
		if a.cross == nil && bytes.Equal(c.RawSubject, a.x509.RawSubject) {
			text = append(text, encode("CERTIFICATE", c.Raw)...)
		}
	}
	index, err := d.List()
	if err != nil {
		return Certificate{}, err
	}
	c := describe(server.x509, a, true)
	index = slices.DeleteFunc(index, func(old Certificate) bool { return old.Server }) // it is not presented any more
	return c, d.files().write(
		file{d.file(indexName), mustJSON(append(forget(index, time.Now()), c))},
		file{d.file(serverName), append(text, server.key...)},
	)
}

// RotateCA makes a new authority, by which all is signed from now on, and a new
// certificate for the server. The old authority stays trusted, so that clients go
// on with what they have: it has signed the new one as well, and the server
// shows that. RetireCA ends it.
//
// Wherever it breaks off, the old authority goes on to sign, and another RotateCA
// completes what this one began: the new key is on the disk, beside the old one,
// before anybody trusts it, and takes its place when all else is done.
func (d Dir) RotateCA(valid time.Duration) (Certificate, error) {
	unlock, err := d.lock()
	if err != nil {
		return Certificate{}, err
	}
	defer unlock()
	if err := validTime(valid); err != nil {
		return Certificate{}, err
	}
	old, err := d.authority()
	if err != nil {
		return Certificate{}, err
	}
	trusted, err := d.trusted()
	if err != nil {
		return Certificate{}, err
	}
	files := d.files()
	a, err := d.begun(trusted[0])
	if err != nil {
		return Certificate{}, err
	}
	if a == nil {
		if err := d.isNewest(old, trusted); err != nil {
			return Certificate{}, err
		}
		if len(trusted) > 1 {
			return Certificate{}, fmt.Errorf("there are %d authorities: retire the old ones first with joblet pki rotate --retire-ca", len(trusted))
		}
		if a, err = old.successor(); err != nil {
			return Certificate{}, err
		}
		// Clients of the new one are trusted before there are any.
		if err := files.write(
			file{d.key() + newSuffix, a.text()},
			file{d.file(caName), slices.Concat(a.cert, encode("CERTIFICATE", trusted[0].Raw))},
		); err != nil {
			return Certificate{}, err
		}
	}
	c, err := d.newServer(a, nil, valid)
	if err != nil {
		return Certificate{}, err
	}
	return c, files.rename(d.key()+newSuffix, d.key())
}

// begun returns the newest of the trusted authorities if its key has not got its
// name yet, because what made it did not end; else nil.
func (d Dir) begun(newest *x509.Certificate) (*authority, error) {
	a, err := readAuthority(d.key() + newSuffix)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !a.x509.Equal(newest): // it was never trusted
		return nil, nil
	}
	return a, nil
}

// isNewest returns nil if a is the newest of the trusted authorities, or else what
// to do about it.
func (d Dir) isNewest(a *authority, trusted []*x509.Certificate) error {
	if a.x509.Equal(trusted[0]) {
		return nil
	}
	if next, err := d.begun(trusted[0]); err != nil || next != nil {
		return errors.Join(errors.New("the rotation of the authority is incomplete: repeat joblet pki rotate --ca"), err)
	}
	return fmt.Errorf("%s is not the key of the newest authority, %s: name the directory of its key with --ca-dir; if that key is lost, remove the first certificate from %s",
		d.key(), trusted[0].Subject.CommonName, d.file(caName))
}

// Retired is what RetireCA has done, or would do.
type Retired struct {
	Authorities int           // that are not trusted any more
	Cut         []Certificate // of clients, which were valid
}

// ErrLastAdmin reports that no client with the role admin would be left.
var ErrLastAdmin = errors.New("no client with the role admin would be left")

// RetireCA ends the trust in all authorities but the newest. Certificates that
// those signed count no more, and clients that know no other do not know the
// server any more. If that cuts off the last admin, it is only done by force.
func (d Dir) RetireCA(force bool) (r Retired, err error) {
	unlock, err := d.lock()
	if err != nil {
		return r, err
	}
	defer unlock()
	trusted, err := d.trusted()
	if err != nil || len(trusted) == 1 {
		return r, err
	}
	a, err := d.authority()
	if err != nil {
		return r, err
	}
	if err := d.isNewest(a, trusted); err != nil { // the signing key would be lost
		return r, err
	}
	index, err := d.List()
	if err != nil {
		return r, err
	}
	r.Authorities = len(trusted) - 1
	var lost, left bool
	for _, c := range index {
		if c.Server || c.State(time.Now()) != "valid" {
			continue
		}
		if c.signedBy(trusted[0]) {
			left = left || c.Role == "admin"
			continue
		}
		lost = lost || c.Role == "admin"
		r.Cut = append(r.Cut, c)
	}
	if lost && !left && !force {
		return r, ErrLastAdmin
	}
	return r, d.files().write(file{d.file(caName), encode("CERTIFICATE", trusted[0].Raw)})
}

// lock keeps others from changing the directory at the same time.
func (d Dir) lock() (unlock func(), err error) {
	if err := os.MkdirAll(d.Path, 0o700); err != nil {
		return nil, fmt.Errorf("cannot create the directory of certificates: %w", err)
	}
	f, err := os.OpenFile(d.file(lockName), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", f.Name(), err)
	}
	return func() { _ = f.Close() }, nil
}

// pair is a certificate and its key.
type pair struct {
	x509      *x509.Certificate
	signer    crypto.Signer
	cert, key []byte // PEM
}

// authority signs.
type authority struct {
	pair
	cross []byte // its certificate as the authority before it signed it
}

// authority returns the one that signs.
func (d Dir) authority() (*authority, error) {
	trusted, err := d.trusted()
	if err != nil {
		return nil, err
	}
	a, err := readAuthority(d.key())
	if errors.Is(err, fs.ErrNotExist) {
		// An Init that did not end may have got as far as that.
		if first, firstErr := d.begun(trusted[0]); first != nil || firstErr != nil {
			if a, err = first, firstErr; err == nil {
				err = d.files().rename(d.key()+newSuffix, d.key())
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the authority's key: %w (if it is elsewhere, name its directory with --ca-dir)", err)
	}
	if time.Now().After(a.x509.NotAfter) {
		return nil, fmt.Errorf("the authority expired on %s: create a new one with joblet pki init --dir", a.x509.NotAfter.Format(time.DateOnly))
	}
	if !slices.ContainsFunc(trusted, a.x509.Equal) {
		return nil, fmt.Errorf("%s is not the key of an authority that the daemon trusts (%s)", d.key(), d.file(caName))
	}
	return a, nil
}

// readAuthority reads what authority.text has written.
func readAuthority(name string) (*authority, error) {
	text, err := readFile(name)
	if err != nil {
		return nil, err
	}
	all, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", name, err)
	}
	signer, ok := all.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("cannot use the key in %s: a %T cannot sign", name, all.PrivateKey)
	}
	a := &authority{pair: pair{x509: all.Leaf, signer: signer}}
	for _, der := range all.Certificate[1:] {
		a.cross = append(a.cross, encode("CERTIFICATE", der)...)
	}
	return a, nil
}

// text is the authority's file. a.key must be known: a is new.
func (a *authority) text() []byte { return slices.Concat(a.key, a.cert, a.cross) }

// successor makes an authority for which a vouches.
func (a *authority) successor() (*authority, error) {
	next, err := newAuthority()
	if err != nil {
		return nil, err
	}
	// The same name and key as in its own certificate, but signed by a.
	template := *next.x509
	template.SerialNumber, template.AuthorityKeyId, template.SignatureAlgorithm = serial(), nil, 0
	template.NotAfter = a.x509.NotAfter
	template.MaxPathLen, template.MaxPathLenZero = 0, true
	cross, err := x509.CreateCertificate(rand.Reader, &template, a.x509, next.x509.PublicKey, a.signer)
	if err != nil {
		return nil, fmt.Errorf("cannot sign the new authority: %w", err)
	}
	next.cross = encode("CERTIFICATE", cross)
	return next, nil
}

func newAuthority() (*authority, error) {
	template := &x509.Certificate{
		// A name of its own, so that two authorities are told apart.
		Subject:               pkix.Name{CommonName: "joblet CA " + serial().Text(16)[:8], Organization: []string{"joblet"}},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1, // the next authority
	}
	setTime(template, caValid)
	p, err := sign(template, nil)
	if err != nil {
		return nil, err
	}
	return &authority{pair: *p}, nil
}

func (a *authority) client(name, role string, valid time.Duration) (Bundle, error) {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name, OrganizationalUnit: []string{role}, Organization: []string{"joblet"}},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	setTime(template, valid)
	p, err := a.sign(template)
	if err != nil {
		return Bundle{}, err
	}
	return Bundle{Cert: p.cert, Key: p.key, Certificate: describe(p.x509, a, false)}, nil
}

// serverTemplate is a server's certificate under its usual names and others.
func serverTemplate(names []string, valid time.Duration) (*x509.Certificate, error) {
	if err := validTime(valid); err != nil {
		return nil, err
	}
	if len(names) > maxNames {
		return nil, fmt.Errorf("%d server names: at most %d are possible", len(names), maxNames)
	}
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: ServerName, Organization: []string{"joblet"}},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	setTime(t, valid)
	all := []string{ServerName, "localhost", "127.0.0.1", "::1"}
	if host, err := os.Hostname(); err == nil {
		all = append(all, host)
	}
	for _, name := range append(all, names...) {
		if ip := net.ParseIP(name); ip != nil {
			if !slices.ContainsFunc(t.IPAddresses, ip.Equal) {
				t.IPAddresses = append(t.IPAddresses, ip)
			}
			continue
		}
		if len(name) > 253 || !validHost.MatchString(name) {
			return nil, fmt.Errorf("server name %.80q: must be a host name or an address", name)
		}
		if !slices.Contains(t.DNSNames, name) {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	return t, nil
}

var validHost = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*$`)

func setTime(t *x509.Certificate, valid time.Duration) {
	now := time.Now()
	t.NotBefore, t.NotAfter = now.Add(-clockError), now.Add(valid)
}

func (a *authority) sign(template *x509.Certificate) (*pair, error) {
	if template.NotAfter.After(a.x509.NotAfter) {
		template.NotAfter = a.x509.NotAfter
	}
	return sign(template, a)
}

// sign makes a key and a certificate for it, signed by a, or by itself. P-256 is
// what every TLS library knows.
func sign(template *x509.Certificate, a *authority) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cannot generate a key: %w", err)
	}
	template.SerialNumber = serial()
	parent, signer := template, crypto.Signer(key)
	if a != nil {
		parent, signer = a.x509, a.signer
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("cannot create a certificate: %w", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &pair{c, key, encode("CERTIFICATE", der), encode("PRIVATE KEY", pkcs8)}, nil
}

// serial returns a random number of 16 bytes.
func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}

// SerialOf returns a certificate's serial number as the index has it.
func SerialOf(c *x509.Certificate) string { return hex.EncodeToString(c.SerialNumber.Bytes()) }

func describe(c *x509.Certificate, by *authority, server bool) Certificate {
	out := Certificate{Serial: SerialOf(c), Name: c.Subject.CommonName, Server: server, NotBefore: c.NotBefore, NotAfter: c.NotAfter, Issuer: SerialOf(by.x509)}
	if len(c.Subject.OrganizationalUnit) > 0 {
		out.Role = c.Subject.OrganizationalUnit[0]
	}
	return out
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// parseCertificates reads all certificates in a text of PEM; it is an error if
// there is none.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errors.New("it contains no certificate")
	}
	return all, nil
}

func mustJSON(index []Certificate) []byte {
	b, err := json.MarshalIndent(index, "", " ")
	if err != nil {
		panic(err) // plain values always can be
	}
	return append(b, '\n')
}
