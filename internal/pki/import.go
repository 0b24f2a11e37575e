package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Import makes a directory of certificates that another program has made, in PEM:
// of the authorities, and of the server with its key. Clients that these authorities
// know are known from then on. The index lists none of them, and without the
// authority's key there will be no further ones. Half of it is never left.
func (d Dir) Import(ca, cert, key []byte) (_ Certificate, err error) {
	roots, err := parseCertificates(ca)
	if err != nil {
		return Certificate{}, fmt.Errorf("cannot use the authority's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	for _, c := range roots {
		if !c.IsCA {
			return Certificate{}, fmt.Errorf("the authority's certificate: %.80q is not an authority: it may not sign certificates", c.Subject.CommonName)
		}
		pool.AddCert(c)
	}
	own, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return Certificate{}, fmt.Errorf("cannot use the server's certificate and key: %w", err)
	}
	between := x509.NewCertPool()
	for _, der := range own.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return Certificate{}, fmt.Errorf("cannot use the server's certificate: %w", err)
		}
		between.AddCert(c)
	}
	chains, err := own.Leaf.Verify(x509.VerifyOptions{DNSName: ServerName, Roots: pool, Intermediates: between})
	if err != nil {
		return Certificate{}, fmt.Errorf("cannot use the server's certificate: %w", err)
	}
	by := chains[0][min(1, len(chains[0])-1)]

	unlock, err := d.lock()
	if err != nil {
		return Certificate{}, err
	}
	defer unlock()
	for _, name := range []string{d.file(caName), d.file(serverName), d.file(indexName), d.key()} {
		if _, err := os.Lstat(name); err == nil {
			return Certificate{}, fmt.Errorf("%s %w", name, ErrExists)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return Certificate{}, err
		}
	}
	files := d.files()
	defer func() {
		if err != nil {
			err = errors.Join(err, files.undo())
		}
	}()
	c := describe(own.Leaf, &authority{pair: pair{x509: by}}, true)
	// As in Init, ca.crt comes last.
	return c, files.write(
		file{d.file(indexName), mustJSON([]Certificate{c})},
		file{d.file(serverName), slices.Concat(line(cert), line(key))},
		file{d.file(caName), line(ca)},
	)
}

// line returns a text that ends in a newline.
func line(text []byte) []byte {
	return []byte(strings.TrimRight(string(text), "\n") + "\n")
}
