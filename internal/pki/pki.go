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
}

func (d Dir) ca() string {
	if d.CA == "" {
		return filepath.Join(d.Path, "ca")
	}
	return d.CA
}

func (d Dir) file(name string) string { return filepath.Join(d.Path, name) }

// Certificate is one that was issued.
type Certificate struct {
	Serial    string    `json:"serial"`
	Name      string    `json:"name"`
	Role      string    `json:"role,omitempty"` // of a client
	Server    bool      `json:"server,omitempty"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Revoked   time.Time `json:"revoked,omitzero"`
}

// State says whether the certificate counts at a moment: valid, expired or
// revoked.
func (c Certificate) State(now time.Time) string {
	switch {
	case !c.Revoked.IsZero():
		return "revoked"
	case now.After(c.NotAfter):
		return "expired"
	}
	return "valid"
}

// Bundle is what a client needs, in PEM.
type Bundle struct {
	CA, Cert, Key []byte
	Certificate   Certificate
}

// ErrExists says that there is a certificate, or a directory of them, already.
var ErrExists = errors.New("exists already")

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
		return fmt.Errorf("valid for %v: must be between an hour and %d days", valid, MaxValid/(24*time.Hour))
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
	for _, name := range []string{d.file(caName), d.file(serverName), filepath.Join(d.ca(), caKeyName)} {
		if _, err := os.Lstat(name); err == nil {
			return Bundle{}, fmt.Errorf("%s %w: see joblet pki rotate", name, ErrExists)
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
	files := newFiles()
	defer func() {
		if err != nil {
			err = errors.Join(err, files.undo())
		}
	}()
	if err := os.MkdirAll(d.ca(), 0o700); err != nil {
		return Bundle{}, fmt.Errorf("make the authority's directory: %w", err)
	}
	index := []Certificate{describe(server.x509, true), b.Certificate}
	return b, errors.Join(
		files.write(filepath.Join(d.ca(), caKeyName), slices.Concat(a.key, a.cert)),
		files.write(d.file(indexName), mustJSON(index)),
		files.write(d.file(serverName), slices.Concat(server.cert, server.key)),
		files.write(d.file(caName), a.cert),
	)
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
			return Bundle{}, fmt.Errorf("a certificate for %s %w, until %s: rotate or revoke it", name, ErrExists, c.NotAfter.Format(time.DateOnly))
		}
	}
	if instead && role == "" {
		return Bundle{}, fmt.Errorf("certificate for %.80q: %w", name, ErrNotFound)
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
	return b, newFiles().write(d.file(indexName), mustJSON(append(forget(index, now), b.Certificate)))
}

// forget drops what expired long ago: it does not count, whatever the index says.
func forget(index []Certificate, now time.Time) []Certificate {
	return slices.DeleteFunc(index, func(c Certificate) bool { return now.Sub(c.NotAfter) > keepExpired })
}

// List returns all certificates that were issued, the oldest first.
func (d Dir) List() ([]Certificate, error) {
	if _, err := os.Stat(d.file(caName)); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("certificates in %s: %w: make them with joblet pki init", d.Path, ErrNotFound)
	}
	return readIndex(d.file(indexName))
}

func readIndex(name string) ([]Certificate, error) {
	text, err := readFile(name)
	if err != nil {
		return nil, err
	}
	var index []Certificate
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
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
		return nil, fmt.Errorf("client certificate %.80q: %w", name, ErrNotFound)
	}
	return revoked, newFiles().write(d.file(indexName), mustJSON(index))
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
		return Certificate{}, fmt.Errorf("read %s: %w", d.file(serverName), err)
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
	text := server.cert
	for _, c := range chain[1:] { // they vouch for a
		if bytes.Equal(c.RawSubject, a.x509.RawSubject) {
			text = append(text, encode("CERTIFICATE", c.Raw)...)
		}
	}
	if a.cross != nil {
		text = append(text, a.cross...)
	}
	index, err := d.List()
	if err != nil {
		return Certificate{}, err
	}
	c := describe(server.x509, true)
	index = slices.DeleteFunc(index, func(old Certificate) bool { return old.Server }) // nobody shows it any more
	files := newFiles()
	err = errors.Join(
		files.write(d.file(indexName), mustJSON(append(forget(index, time.Now()), c))),
		files.write(d.file(serverName), append(text, server.key...)),
	)
	return c, err
}

// RotateCA makes a new authority, by which all is signed from now on, and a new
// certificate for the server. The old authority stays trusted, so that clients go
// on with what they have: it has signed the new one as well, and the server
// shows that. RetireCA ends it.
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
	trusted, err := readFile(d.file(caName))
	if err != nil {
		return Certificate{}, err
	}
	if all, err := parseCertificates(trusted); err != nil || len(all) > 1 {
		return Certificate{}, fmt.Errorf("there are %d authorities: retire the old one first", len(all))
	}
	a, err := newAuthority()
	if err != nil {
		return Certificate{}, err
	}
	// The same name and key as a's own certificate, but signed by the old one.
	template := *a.x509
	template.SerialNumber, template.AuthorityKeyId, template.SignatureAlgorithm = serial(), nil, 0
	template.NotAfter = old.x509.NotAfter
	template.MaxPathLen, template.MaxPathLenZero = 0, true
	cross, err := x509.CreateCertificate(rand.Reader, &template, old.x509, a.x509.PublicKey, old.signer)
	if err != nil {
		return Certificate{}, fmt.Errorf("sign the new authority: %w", err)
	}
	a.cross = encode("CERTIFICATE", cross)
	// Clients of the new one are trusted before there are any.
	files := newFiles()
	err = errors.Join(
		files.write(d.file(caName), append(slices.Clone(a.cert), trusted...)),
		files.write(filepath.Join(d.ca(), caKeyName), slices.Concat(a.key, a.cert)),
	)
	if err != nil {
		return Certificate{}, err
	}
	return d.newServer(a, nil, valid)
}

// RetireCA ends the trust in all authorities but the newest. Certificates that
// those signed count no more, and clients that know no other do not know the
// server any more. It returns how many they were.
func (d Dir) RetireCA() (int, error) {
	unlock, err := d.lock()
	if err != nil {
		return 0, err
	}
	defer unlock()
	text, err := readFile(d.file(caName))
	if err != nil {
		return 0, err
	}
	all, err := parseCertificates(text)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", d.file(caName), err)
	}
	if len(all) == 1 {
		return 0, nil
	}
	return len(all) - 1, newFiles().write(d.file(caName), encode("CERTIFICATE", all[0].Raw))
}

// lock keeps others from changing the directory at the same time.
func (d Dir) lock() (unlock func(), err error) {
	if err := os.MkdirAll(d.Path, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of certificates: %w", err)
	}
	f, err := os.OpenFile(d.file(lockName), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
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
	cross []byte // its certificate as the authority before it signed it, while it is new
}

func (d Dir) authority() (*authority, error) {
	name := filepath.Join(d.ca(), caKeyName)
	text, err := readFile(name)
	if err != nil {
		return nil, fmt.Errorf("the authority's key (--ca-dir says where it is): %w", err)
	}
	both, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	signer, ok := both.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("read %s: a %T cannot sign", name, both.PrivateKey)
	}
	if time.Now().After(both.Leaf.NotAfter) {
		return nil, fmt.Errorf("the authority expired on %s: make another with joblet pki init and --dir", both.Leaf.NotAfter.Format(time.DateOnly))
	}
	if text, err = readFile(d.file(caName)); err != nil {
		return nil, err
	}
	trusted, err := parseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.file(caName), err)
	}
	if !slices.ContainsFunc(trusted, both.Leaf.Equal) {
		return nil, fmt.Errorf("%s is the key of another authority than the daemon trusts (%s)", name, d.file(caName))
	}
	return &authority{pair: pair{x509: both.Leaf, signer: signer}}, nil
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
	return Bundle{Cert: p.cert, Key: p.key, Certificate: describe(p.x509, false)}, nil
}

// serverTemplate is a server's certificate under its usual names and others.
func serverTemplate(names []string, valid time.Duration) (*x509.Certificate, error) {
	if err := validTime(valid); err != nil {
		return nil, err
	}
	if len(names) > maxNames {
		return nil, fmt.Errorf("%d names of the server: at most %d are possible", len(names), maxNames)
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
			return nil, fmt.Errorf("name %.80q of the server: must be a host name or an address", name)
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
		return nil, fmt.Errorf("make a key: %w", err)
	}
	template.SerialNumber = serial()
	parent, signer := template, crypto.Signer(key)
	if a != nil {
		parent, signer = a.x509, a.signer
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
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

// serial returns a number that nobody guesses and that is 16 bytes long.
func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}

// SerialOf returns a certificate's serial number as the index has it.
func SerialOf(c *x509.Certificate) string { return hex.EncodeToString(c.SerialNumber.Bytes()) }

func describe(c *x509.Certificate, server bool) Certificate {
	out := Certificate{Serial: SerialOf(c), Name: c.Subject.CommonName, Server: server, NotBefore: c.NotBefore, NotAfter: c.NotAfter}
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
		return nil, errors.New("no certificate in it")
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
