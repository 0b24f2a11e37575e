package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/joblet/joblet/internal/server/admission"
	"github.com/joblet/joblet/internal/service"
)

// caller identifies the maker of a call: a process on this host, or a client with a
// certificate.
type caller struct {
	known  bool
	uid    uint32
	pid    int32
	member bool // of the group whose members may use the daemon
	cert   *x509.Certificate
	from   string // where the call comes from
	conn   *admission.Conn
}

// name is what records and logs call the caller.
func (c caller) name() string {
	switch {
	case c.cert != nil:
		return service.CertPrefix + c.cert.Subject.CommonName
	case c.known:
		return fmt.Sprintf("uid:%d", c.uid)
	}
	return "unknown"
}

func (c caller) role() service.Role {
	switch {
	case c.cert != nil:
		return certRole(c.cert)
	case c.known && c.uid == 0:
		return service.Admin
	case c.known && c.member: // more would be a way to the host's root
		return service.Developer
	}
	return service.Nobody
}

// certRole returns the role in a certificate: its one organizational unit, in
// upper or lower case.
func certRole(cert *x509.Certificate) service.Role {
	units := cert.Subject.OrganizationalUnit
	if len(units) != 1 {
		return service.Nobody
	}
	if strings.EqualFold(units[0], "viewer") { // as older certificates have it
		return service.Reader
	}
	for r := service.Reader; r <= service.Admin; r++ {
		if strings.EqualFold(units[0], r.String()) {
			return r
		}
	}
	return service.Nobody
}

// identity is what the service knows of the caller.
func (c caller) identity() service.Caller {
	return service.Caller{Name: c.name(), Role: c.role(), Certificate: c.cert != nil, From: c.from}
}

type identityKey struct{}

// identityOf returns the caller in the service's form.
func identityOf(ctx context.Context) service.Caller {
	if c, ok := ctx.Value(identityKey{}).(service.Caller); ok {
		return c
	}
	return callerOf(ctx).identity()
}
