package server

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// A message is in memory as a whole before anybody can look at it, and gRPC knows
// no bound but that of one message. So what clients send, all but this host's root,
// is counted where it comes in, for each connection on which something is still to come, until the
// messages that it makes are there; and these until their calls have done with
// them. When it is too much, the calls end of the connection that has sent most.

const (
	// smallMessage is one that is not counted any more once it is there.
	smallMessage = 64 << 10

	// A message on its way is so much larger: frames, records, headers.
	frameShare = 64 // one part of
	frameBytes = 1 << 10
)

var errIntake = tooMuch(intakeRetry, "clients are sending more than the daemon allows at once (request-memory): send less, or later")

// intakeRetry is after what time to try again.
const intakeRetry = time.Second

// intake counts what clients send.
type intake struct {
	limit func() int64

	mu    sync.Mutex // protects what follows, and each sender's arrivals and sent
	taken int64      // bytes on all connections and held
	open  map[*sender]struct{}
}

// sender is a connection.
type sender struct {
	intake   *intake
	arrivals map[*arrival]struct{}
	counts   *atomic.Bool // there are arrivals
	sent     int64        // bytes that came while there were, of messages that are not there yet
}

func newSender(in *intake) sender {
	return sender{intake: in, arrivals: map[*arrival]struct{}{}, counts: &atomic.Bool{}}
}

// arrival is a call of which something is still to come.
type arrival struct {
	intake  *intake
	conn    *sender
	kind    grpc.MethodInfo
	refused chan struct{} // closed when what it sends is too much
	cancel  context.CancelFunc
	timer   *time.Timer
}

type arrivalKey struct{}

// begin notes a call, and gives its request so long to arrive.
func (in *intake) begin(ctx context.Context, conn *sender, kind grpc.MethodInfo, limit time.Duration) context.Context {
	ctx, cancel := context.WithCancel(ctx) // ends with its parent, as each call does
	a := &arrival{intake: in, conn: conn, kind: kind, refused: make(chan struct{}), cancel: cancel}
	a.timer = time.AfterFunc(limit, cancel)
	in.mu.Lock()
	in.open[conn] = struct{}{}
	conn.arrivals[a] = struct{}{}
	conn.counts.Store(true)
	in.mu.Unlock()
	context.AfterFunc(ctx, func() {
		a.timer.Stop()
		in.mu.Lock()
		defer in.mu.Unlock()
		in.ended(a)
	})
	return context.WithValue(ctx, arrivalKey{}, a)
}

// ended says that nothing more comes of a call. in.mu is held.
func (in *intake) ended(a *arrival) {
	c := a.conn
	delete(c.arrivals, a)
	if len(c.arrivals) == 0 {
		c.counts.Store(false)
		in.taken -= c.sent
		c.sent = 0
		delete(in.open, c)
	}
}

// took counts bytes that a connection has sent.
func (c *sender) took(n int) {
	if n <= 0 || !c.counts.Load() {
		return
	}
	in := c.intake
	in.mu.Lock()
	if len(c.arrivals) > 0 {
		c.sent += int64(n)
		in.taken += int64(n)
	}
	ending := in.tooMany()
	in.mu.Unlock()
	for _, a := range ending {
		a.refuse()
	}
}

// refuse ends a call. One that waits for its message in receive is told why.
func (a *arrival) refuse() {
	if close(a.refused); !a.kind.IsClientStream && !a.kind.IsServerStream {
		a.cancel()
	}
}

// receive waits for a message, or until the caller has sent too much, and holds it
// as received does.
func receive(s grpc.ServerStream, m any) (release func(), err error) {
	a, ok := s.Context().Value(arrivalKey{}).(*arrival)
	if !ok {
		return nil, s.RecvMsg(m)
	}
	// gRPC answers by itself if RecvMsg fails: so it goes on, and fails when the
	// handler has returned.
	got := make(chan error, 1)
	go func() { got <- s.RecvMsg(m) }()
	select {
	case err := <-got:
		if err != nil {
			return nil, err
		}
		return received(s.Context(), m)
	case <-a.refused:
		return nil, errIntake
	}
}

// tooMany returns the calls that have to end because there is too much. in.mu is
// held.
func (in *intake) tooMany() (ending []*arrival) {
	for in.taken > in.limit() {
		var most *sender
		for c := range in.open {
			if most == nil || c.sent > most.sent {
				most = c
			}
		}
		if most == nil || most.sent == 0 { // all of it is held: what comes now is refused when it is there
			break
		}
		for a := range most.arrivals {
			ending = append(ending, a)
			in.ended(a)
		}
	}
	return ending
}

// received says that a message of a call is here, and holds it until release is
// called.
func received(ctx context.Context, m any) (release func(), err error) {
	a, ok := ctx.Value(arrivalKey{}).(*arrival)
	if !ok {
		return func() {}, nil // this host's root
	}
	a.timer.Stop()
	size := int64(0)
	if m, ok := m.(proto.Message); ok {
		size = int64(proto.Size(m))
	}
	in := a.intake
	in.mu.Lock()
	defer in.mu.Unlock()
	came := min(a.conn.sent, size+size/frameShare+frameBytes)
	a.conn.sent -= came
	in.taken -= came
	if !a.kind.IsClientStream {
		in.ended(a)
	}
	if size <= smallMessage {
		return func() {}, nil
	}
	if in.taken+size > in.limit() {
		return func() {}, errIntake
	}
	in.taken += size
	return sync.OnceFunc(func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		in.taken -= size
	}), nil
}
