package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/joblet/joblet/internal/rawio"
	"github.com/joblet/joblet/internal/server/admission"
)

// peerCredentials authenticates callers on a unix socket: the kernel says which
// process connected (SO_PEERCRED, unix(7)), as it was at connect(2).
type peerCredentials struct {
	group     int // whose members, and root, may use the daemon; 0: root only
	admission *admission.Admission
}

// peerInfo identifies the process on the other side of a socket.
type peerInfo struct {
	credentials.CommonAuthInfo
	uid, gid uint32
	pid      int32
	member   bool // of the group
	conn     *admission.Conn
}

// AuthType implements credentials.AuthInfo.
func (peerInfo) AuthType() string { return "SO_PEERCRED" }

// ServerHandshake implements credentials.TransportCredentials.
func (p peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("cannot authenticate the peer: %T is not a unix socket", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, nil, fmt.Errorf("cannot authenticate the peer: %w", err)
	}
	var cred *unix.Ucred
	member := false
	var optErr error
	err = raw.Control(func(fd uintptr) {
		if cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); optErr == nil && cred.Uid != 0 && p.group > 0 {
			member, optErr = isMember(int(fd), cred.Gid, uint32(p.group))
		}
	})
	if err == nil {
		err = optErr
	}
	if err != nil {
		return nil, nil, fmt.Errorf("cannot authenticate the peer: %w", err)
	}
	from, err := p.admission.Local(rawio.Conn(conn), cred.Uid)
	if err != nil {
		return nil, nil, err
	}
	return from, peerInfo{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, // it never leaves the kernel
		uid:            cred.Uid, gid: cred.Gid, pid: cred.Pid, member: member, conn: from,
	}, nil
}

// isMember reports whether the peer had the group when it connected, as its own or a
// supplementary group (SO_PEERGROUPS).
func isMember(fd int, own, group uint32) (bool, error) {
	if own == group {
		return true, nil
	}
	list := make([]uint32, 32)
	for {
		size := uint32(4 * len(list))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&list[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return slices.Contains(list[:size/4], group), nil
		case errno == unix.ERANGE && int(size) > 4*len(list) && size <= 4*(64<<10): // NGROUPS_MAX
			list = make([]uint32, size/4)
		default:
			return false, fmt.Errorf("cannot read the caller's groups: %w", errno)
		}
	}
}

// ClientHandshake implements credentials.TransportCredentials.
func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("cannot authenticate a peer as a client")
}

// Info implements credentials.TransportCredentials.
func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: peerInfo{}.AuthType()}
}

// Clone implements credentials.TransportCredentials.
func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (peerCredentials) OverrideServerName(string) error { return nil }

// callerOf returns the caller.
func callerOf(ctx context.Context) caller {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return caller{}
	}
	switch info := p.AuthInfo.(type) {
	case peerInfo:
		return caller{known: true, uid: info.uid, pid: info.pid, member: info.member, from: fmt.Sprintf("pid %d", info.pid), conn: info.conn}
	case certInfo:
		return caller{known: true, cert: info.cert, from: p.Addr.String(), conn: info.conn}
	}
	return caller{}
}
