package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/joblet/joblet/internal/pki"
	"github.com/joblet/joblet/internal/server/admission"
)

// transport authenticates callers: on a unix socket by SO_PEERCRED, on others by
// certificate.
type transport struct {
	peerCredentials
	pki *pki.Server // nil: unix sockets only
}

// certInfo identifies a client by its certificate.
type certInfo struct {
	credentials.TLSInfo
	cert *x509.Certificate
	conn *admission.Conn
}

// ServerHandshake implements credentials.TransportCredentials.
func (t transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	known, ok := raw.(*admission.RemoteConn)
	if !ok {
		return t.peerCredentials.ServerHandshake(raw)
	}
	conn := tls.Server(raw, t.pki.TLS())
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	err := conn.HandshakeContext(ctx)
	var cert *x509.Certificate
	if err == nil {
		state := conn.ConnectionState()
		if cert = state.PeerCertificates[0]; state.NegotiatedProtocol != "h2" {
			err = errors.New("the client does not speak HTTP/2")
		} else {
			err = t.admission.Identify(known, cert)
		}
	}
	if err != nil {
		t.admission.Refuse(known, err)
		return nil, nil, err
	}
	from := t.admission.Remote(conn)
	return from, certInfo{
		TLSInfo: credentials.TLSInfo{
			State:          conn.ConnectionState(),
			CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		},
		cert: cert,
		conn: from,
	}, nil
}

// Clone implements credentials.TransportCredentials.
func (t transport) Clone() credentials.TransportCredentials { return t }
