// Package admission bounds what clients may take at once: connections, calls under way
// and their rate, and the memory of requests and answers (byte budgets). It sits below
// gRPC, which has no bound but that of one message, and reads the frames of HTTP/2.
package admission

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"time"
)

// Limits are the bounds. They can be changed while connections are open.
type Limits struct {
	ClientRate     int   // calls a second of one client other than this host's root, twice as many at once
	ClientCalls    int   // of one client under way
	MaxConnections int   // of all clients with certificates
	RequestMemory  int64 // bytes of requests that are under way or held, of all but this host's root
	ResponseMemory int64 // bytes of what clients have not taken yet
}

// DefaultLimits allow what a client needs that means well.
func DefaultLimits() Limits {
	return Limits{ClientRate: 500, ClientCalls: 1000, MaxConnections: 1000, RequestMemory: 1 << 30, ResponseMemory: 64 << 20}
}

// Admission bounds the clients of one server.
type Admission struct {
	gate      *gate
	users     *localUsers
	calls     *limiter
	requests  *requestBudget
	responses *responseBudget
}

// New returns the admission of a server without clients. It asks limits at each
// decision. When much memory was freed, it is given back to the host after rest.
func New(log *slog.Logger, rest time.Duration, limits func() Limits) *Admission {
	a := &Admission{
		gate:      newGate(log, func() int { return limits().MaxConnections }),
		users:     &localUsers{conns: map[uint32]int{}},
		calls:     &limiter{limits: limits, clients: map[string]*clientLimit{}},
		requests:  newRequestBudget(func() int64 { return limits().RequestMemory }),
		responses: newResponseBudget(func() int64 { return limits().ResponseMemory }),
	}
	a.requests.collector.idle = rest
	a.requests.collector.rest = time.AfterFunc(rest, GiveBack)
	a.requests.collector.rest.Stop()
	return a
}

// Rest ends the timer that gives memory back, once calls are taken no more.
func (a *Admission) Rest() { a.requests.collector.rest.Stop() }

// Close ends the timers.
func (a *Admission) Close() {
	a.Rest()
	a.responses.stop()
}

// Local counts a connection of a user of this host until it is closed. Root's are not
// counted, nor is what it sends.
func (a *Admission) Local(conn net.Conn, uid uint32) (*Conn, error) {
	if uid == 0 {
		return newConn(conn, nil, a.responses), nil
	}
	conn, err := a.users.enter(conn, uid)
	if err != nil {
		return nil, err
	}
	return newConn(conn, a.requests, a.responses), nil
}

// Listen returns a listener that hands out [RemoteConn]s: connections of l, no more than
// there may be.
func (a *Admission) Listen(l net.Listener) net.Listener { return remoteListener{l, a.gate} }

// Identify says whose connection it is, by its certificate. It is an error if the client
// has too many.
func (a *Admission) Identify(raw *RemoteConn, cert *x509.Certificate) error {
	return a.gate.admit(raw, cert)
}

// Remote returns the connection over raw, which has been identified: conn has what raw
// carries.
func (a *Admission) Remote(conn net.Conn) *Conn { return newConn(conn, a.requests, a.responses) }

// Refuse tells the log why a connection is refused, and lets the client read that.
func (a *Admission) Refuse(raw *RemoteConn, why error) {
	a.gate.refused(raw.RemoteAddr(), why)
	linger(raw.Conn)
}

// Sweep cuts connections whose certificate does not pass check any more, until ctx is
// done.
func (a *Admission) Sweep(ctx context.Context, check func(*x509.Certificate) error) {
	a.gate.sweep(ctx, check)
}

// Enter decides on a call that begins on conn before anything of its request is read.
// The context holds its [Request] and its [Response]. Of root only the answers are
// counted.
func (a *Admission) Enter(ctx context.Context, conn *Conn, client string, root bool) (context.Context, error) {
	if root {
		return a.responses.begin(ctx, conn, client, func() {}), nil
	}
	limit, err := a.calls.enter(client)
	if err != nil {
		return ctx, err
	}
	ctx = a.responses.begin(ctx, conn, client, func() { a.calls.leave(limit) })
	return a.requests.begin(ctx, conn, client, receiveTime), nil
}

// Usage is what clients take just now.
type Usage struct {
	Calls        int   // of clients other than root
	RequestBytes int64 // of their requests
	Leaving      int64 // of these, bytes of calls that were told to end
	Connections  int   // of remote clients
	Unidentified int   // of them, without a certificate yet
	Hosts        int   // from which these come
}

// Usage returns what clients take just now.
func (a *Admission) Usage() (u Usage) {
	a.requests.mu.Lock()
	u.Calls, u.RequestBytes, u.Leaving = len(a.requests.calls), a.requests.total.all, a.requests.total.leaving
	a.requests.mu.Unlock()
	a.gate.mu.Lock()
	defer a.gate.mu.Unlock()
	u.Connections, u.Unidentified, u.Hosts = len(a.gate.conns), a.gate.total, len(a.gate.unknown)
	return u
}
