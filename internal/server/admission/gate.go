package admission

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Bounds on connections of remote clients, so that refused and silent connections do
// not exclude other clients.
const (
	MaxUnidentified        = 512 // connections that have not shown a certificate yet
	MaxUnidentifiedPerHost = 64
	maxPerClient           = 256

	// lingerTime is how long a client that is refused has to read why.
	lingerTime = 500 * time.Millisecond

	// sweepEvery is how often the certificates of connections are looked at again.
	sweepEvery = time.Second

	// refusalEvery is how often the log tells of a refused connection at most.
	refusalEvery = time.Second
)

// gate counts the connections of remote clients and lets in no more than it may.
type gate struct {
	log *slog.Logger
	max func() int

	mu      sync.Mutex // protects what follows
	conns   map[*RemoteConn]struct{}
	entered int64                          // connections so far
	unknown map[netip.Prefix][]*RemoteConn // by host, oldest first: those that have no certificate yet
	total   int                            // how many these are
	clients map[string]int                 // by name
	told    time.Time                      // when the log told of a refusal
	untold  int                            // refusals since
}

func newGate(log *slog.Logger, max func() int) *gate {
	return &gate{log: log, max: max, conns: map[*RemoteConn]struct{}{}, unknown: map[netip.Prefix][]*RemoteConn{}, clients: map[string]int{}}
}

// RemoteConn is a connection that is counted until it is closed.
type RemoteConn struct {
	net.Conn
	gate   *gate
	host   netip.Prefix
	number int64             // of all that entered
	client string            // empty: not known yet
	cert   *x509.Certificate // of the client
	once   sync.Once
}

func (c *RemoteConn) Close() error {
	c.once.Do(func() { c.gate.leave(c) })
	return c.Conn.Close()
}

// remoteListener hands out the connections that the gate lets in.
type remoteListener struct {
	net.Listener
	gate *gate
}

func (l remoteListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c, err := l.gate.enter(conn)
		if err == nil {
			return c, nil
		}
		l.gate.refused(conn.RemoteAddr(), err)
		_ = conn.Close()
	}
}

// enter counts a connection. If there are too many that have shown no certificate
// yet, one of them has to go: a client that means well has shown his after some
// milliseconds.
func (g *gate) enter(conn net.Conn) (*RemoteConn, error) {
	c := &RemoteConn{Conn: conn, gate: g, host: hostOf(conn.RemoteAddr())}
	gone, why, err := g.add(c)
	if gone != nil {
		_ = gone.Close()
		g.refused(gone.RemoteAddr(), why)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// add returns the connection that has to go, and why.
func (g *gate) add(c *RemoteConn) (gone *RemoteConn, why, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch own := g.unknown[c.host]; {
	case len(own) >= MaxUnidentifiedPerHost:
		gone, why = own[0], fmt.Errorf("%d connections of this host have not presented a certificate", len(own))
	case g.total >= MaxUnidentified:
		gone, why = g.crowd(), fmt.Errorf("%d connections have not presented a certificate, most of them of this host", g.total)
	case len(g.conns) >= g.max():
		why = fmt.Errorf("the daemon has %d connections, the maximum (max-connections)", len(g.conns))
		if gone = g.crowd(); gone == nil {
			return nil, nil, why
		}
	}
	if gone != nil {
		g.remove(gone)
	}
	g.entered++
	c.number = g.entered
	g.conns[c] = struct{}{}
	g.unknown[c.host] = append(g.unknown[c.host], c)
	g.total++
	return gone, why, nil
}

// crowd returns the oldest unknown connection of the host that has most of them; nil
// if there is none. gate.mu is held.
func (g *gate) crowd() (oldest *RemoteConn) {
	most := 0
	for _, conns := range g.unknown {
		if n := len(conns); n > most || n == most && conns[0].number < oldest.number {
			most, oldest = n, conns[0]
		}
	}
	return oldest
}

// hostOf returns the network that stands for one host: an IPv4 address, or the /64 of
// an IPv6 address.
func hostOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap()
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	host, err := ip.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return host
}

// admit notes whose connection it is.
func (g *gate) admit(c *RemoteConn, cert *x509.Certificate) error {
	name := cert.Subject.CommonName
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.clients[name] >= maxPerClient {
		return fmt.Errorf("%.80q has %d connections, the maximum per client", name, g.clients[name])
	}
	if _, there := g.conns[c]; !there || name == "" {
		return fmt.Errorf("the certificate has no name, or the connection is closed")
	}
	g.known(c)
	c.client, c.cert = name, cert
	g.clients[name]++
	return nil
}

// known ends a connection's time as an unknown one. gate.mu is held.
func (g *gate) known(c *RemoteConn) {
	g.total--
	own := g.unknown[c.host]
	i := slices.Index(own, c)
	if g.unknown[c.host] = slices.Delete(own, i, i+1); len(own) == 1 {
		delete(g.unknown, c.host)
	}
}

func (g *gate) leave(c *RemoteConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remove(c)
}

// remove takes a connection out of all that are counted. gate.mu is held.
func (g *gate) remove(c *RemoteConn) {
	if _, there := g.conns[c]; !there {
		return
	}
	delete(g.conns, c)
	if c.client == "" {
		g.known(c)
		return
	}
	if g.clients[c.client]--; g.clients[c.client] == 0 {
		delete(g.clients, c.client)
	}
}

// refused logs a refusal, at most once every refusalEvery.
func (g *gate) refused(from net.Addr, err error) {
	g.mu.Lock()
	g.untold++
	n := g.untold
	tell := time.Since(g.told) >= refusalEvery
	if tell {
		g.told, g.untold = time.Now(), 0
	}
	g.mu.Unlock()
	if tell {
		g.log.Info("connection refused", "from", from.String(), "error", err, "refused", n)
	}
}

// linger lets a refused client read the reason: closing while something of it is
// unread would reset the connection and take that away.
func linger(conn net.Conn) {
	c, ok := conn.(*net.TCPConn)
	if !ok || c.CloseWrite() != nil || c.SetDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(c, 64<<10))
}

// sweep cuts connections whose certificate counts no more, until ctx is done.
func (g *gate) sweep(ctx context.Context, check func(*x509.Certificate) error) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var known []*RemoteConn
		g.mu.Lock()
		for c := range g.conns {
			if c.client != "" {
				known = append(known, c)
			}
		}
		g.mu.Unlock()
		for _, c := range known {
			if err := check(c.cert); err != nil {
				g.log.Info("connection closed: its certificate is not valid any more", "client", c.client, "from", c.RemoteAddr().String(), "error", err)
				_ = c.Close()
			}
		}
	}
}

// localUsers counts the connections of users other than root, so that no user excludes
// others.
type localUsers struct {
	mu    sync.Mutex
	conns map[uint32]int
}

func (u *localUsers) enter(conn net.Conn, uid uint32) (net.Conn, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conns[uid] >= maxPerClient {
		return nil, fmt.Errorf("uid:%d has %d connections, the maximum per user", uid, u.conns[uid])
	}
	u.conns[uid]++
	return &userConn{Conn: conn, leave: sync.OnceFunc(func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.conns[uid]--; u.conns[uid] == 0 {
			delete(u.conns, uid)
		}
	})}, nil
}

type userConn struct {
	net.Conn
	leave func()
}

func (c *userConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
