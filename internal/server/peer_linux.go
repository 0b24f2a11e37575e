package server

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/joblet/joblet/internal/rawio"
)

// peerCredentials authenticates callers on a unix socket: the kernel says which
// process connected (SO_PEERCRED, unix(7)), as it was at connect(2).
type peerCredentials struct{}

// peerInfo is who connected.
type peerInfo struct {
	credentials.CommonAuthInfo
	uid, gid uint32
	pid      int32
}

// AuthType implements credentials.AuthInfo.
func (peerInfo) AuthType() string { return "SO_PEERCRED" }

// ServerHandshake implements credentials.TransportCredentials.
func (peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("authenticate peer: %T is not a unix socket", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, nil, fmt.Errorf("authenticate peer: %w", err)
	}
	var cred *unix.Ucred
	var optErr error
	err = raw.Control(func(fd uintptr) {
		cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err == nil {
		err = optErr
	}
	if err != nil {
		return nil, nil, fmt.Errorf("authenticate peer: %w", err)
	}
	return rawio.Conn(conn), peerInfo{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, // it never leaves the kernel
		uid:            cred.Uid, gid: cred.Gid, pid: cred.Pid,
	}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fmt.Errorf("authenticate peer: for servers only")
}

// Info implements credentials.TransportCredentials.
func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: peerInfo{}.AuthType()}
}

// Clone implements credentials.TransportCredentials.
func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (peerCredentials) OverrideServerName(string) error { return nil }

// callerOf returns who makes the call.
func callerOf(ctx context.Context) caller {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return caller{}
	}
	info, ok := p.AuthInfo.(peerInfo)
	if !ok {
		return caller{}
	}
	return caller{known: true, uid: info.uid, pid: info.pid}
}
