package admission

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/joblet/joblet"
)

// What the daemon sends is bounded as well as what it receives. gRPC queues up to
// 64 KiB and a message for each stream whose client does not read, whatever that
// costs, and a whole answer for each call that is no stream. So a message is only
// made when there is room for it:
//
//   - in the windows of its stream and its connection (HTTP/2 flow control), which
//     are followed here as well: an unread stream waits with nothing in memory;
//   - on its connection, for a client that opens its windows and does not read;
//   - in the share of the client and the memory for all (response-memory), where a
//     message counts until it is written or its connection is closed.
//
// Nothing is dropped. A connection whose client takes what was sent too slowly is
// cut when others wait for the memory.

const (
	// clientShare of the limit is what one client may hold.
	clientShare = 4

	// clientFloor is what each client may hold however much the others do.
	clientFloor = 64 << 10

	// maxBacklog is what waits on one connection to be written, but for one message.
	maxBacklog = 256 << 10

	// A message is to be written after stallTime, and a second for each minRate bytes.
	stallTime = 30 * time.Second
	minRate   = 16 << 10

	// pressTime is how long a call waits for memory before stalled connections are
	// looked for.
	pressTime = time.Second

	// answerCost is what gRPC keeps for a message, and for a call that it answers.
	answerCost = 512

	// maxPiece is the most that a stream sends of a file or a log in one message.
	maxPiece = 32 << 10

	// PieceHead is more than what is around a piece in its message.
	PieceHead = 256

	// listReserve is what an answer with a list takes before it is known how long it is.
	listReserve = 256 << 10
)

// responseBudget counts what is sent to clients until it is written.
type responseBudget struct {
	limit func() int64
	press *time.Timer // runs while calls wait for memory

	mu      sync.Mutex // protects all that follows, and what says so of connections and calls
	total   int64
	clients map[string]*clientResponses
	hungry  []*clientResponses // that have calls waiting for memory, longest first
}

func newResponseBudget(limit func() int64) *responseBudget {
	r := &responseBudget{limit: limit, clients: map[string]*clientResponses{}}
	r.press = time.AfterFunc(time.Hour, r.relieve)
	r.press.Stop()
	return r
}

// clientResponses is what one client has not taken yet. It is kept as long as it has
// connections with calls.
type clientResponses struct {
	name    string
	held    int64
	conns   map[*Conn]struct{}
	waiting []*sending // for memory
}

// Response is what goes out for one call, until its end is written.
type Response struct {
	responses *responseBudget
	conn      *Conn
	stream    uint32
	ended     func() // called once, when it is over

	credit   int64 // what the client has granted beside the initial window, less what is sent
	backlog  int64 // what was made, or may be, and is not written
	due      time.Time
	reserved message // that may be made; zero: none
	waits    *sending
	over     bool
}

type responseKey struct{}

func ResponseOf(ctx context.Context) *Response {
	r, _ := ctx.Value(responseKey{}).(*Response)
	return r
}

// message is the size of one.
type message struct {
	wire int64 // bytes of the stream
	cost int64 // of memory
}

func sized(n int) message { return message{int64(n) + messageHead, int64(bufferSize(n)) + answerCost} }

// place is what a message waits for.
type place uint8

const (
	nowhere    place = iota // it need not wait
	streamRoom              // in the stream's window
	connRoom                // in the connection's window, or its backlog
	memoryRoom
)

// sending is a message that waits.
type sending struct {
	message
	response *Response
	stream   bool // it waits for windows as well
	where    place
	since    time.Time     // in where
	ready    chan struct{} // closed when it may be made
}

// begin notes a call that the connection begins just now; ended is called when its
// end is written, or will never be.
func (r *responseBudget) begin(ctx context.Context, conn *Conn, client string, ended func()) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &Response{responses: r, conn: conn, stream: conn.stream, ended: ended}
	if conn.closed {
		p.over = true
		ended()
		return context.WithValue(ctx, responseKey{}, p)
	}
	if conn.client == nil {
		c := r.clients[client]
		if c == nil {
			c = &clientResponses{name: client, conns: map[*Conn]struct{}{}}
			r.clients[client] = c
		}
		c.conns[conn] = struct{}{}
		conn.client = c
	}
	conn.open[p.stream] = p
	return context.WithValue(ctx, responseKey{}, p)
}

// finish forgets a call of which nothing more will be written. mu is held.
func (r *responseBudget) finish(p *Response) {
	if p.over {
		return
	}
	p.over = true
	delete(p.conn.open, p.stream)
	if p.waits != nil { // what it would be granted nothing would give back
		r.leave(p.waits)
	}
	p.conn.backlog -= p.backlog
	p.backlog = 0
	p.ended()
}

// closed forgets a connection and what was to be sent through it.
func (r *responseBudget) closed(conn *Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if conn.closed {
		return
	}
	conn.closed = true
	if conn.resume != nil {
		close(conn.resume)
		conn.resume = nil
	}
	for _, p := range conn.open {
		r.finish(p)
	}
	c := conn.client
	if c == nil {
		return
	}
	delete(c.conns, conn)
	r.freed(conn, conn.held)
	if len(c.conns) == 0 {
		delete(r.clients, c.name)
	}
}

// lacks returns what a message waits for. mu is held.
func (r *responseBudget) lacks(s *sending) place {
	p, conn := s.response, s.response.conn
	if s.stream {
		window := conn.initial + p.credit - p.backlog
		if least := conn.initial / 4; s.wire <= least {
			if window < s.wire { // clients grant more when half is used up: it will be there as a whole
				return streamRoom
			}
		} else if p.backlog > 0 || window < max(least, 1) {
			return streamRoom
		}
		switch {
		case conn.credit-conn.backlog < min(s.wire, maxPiece/2), conn.backlog > 0 && conn.backlog+s.wire > maxBacklog,
			s.where != connRoom && len(conn.waiting) > 0: // others were first
			return connRoom
		}
	}
	held, limit := conn.client.held, r.limit()
	share := limit / clientShare
	cost := min(s.cost, share)
	switch {
	case held+cost <= clientFloor:
		return nowhere
	case held+cost > share && (held > clientFloor || cost <= share-clientFloor), r.total+cost > limit:
		return memoryRoom
	case s.where != memoryRoom && len(conn.client.waiting) > 0, s.where == memoryRoom && conn.client.waiting[0] != s:
		return memoryRoom // others were first
	}
	return nowhere
}

// room waits until the call may make a message. yield, unless it is nil, is called
// before it waits. The room stays the call's if keep is set, and otherwise is what the
// next message takes.
func (p *Response) room(ctx context.Context, m message, stream bool, yield func()) error {
	r := p.responses
	r.mu.Lock()
	if p.over {
		r.mu.Unlock()
		return gone(ctx)
	}
	s := &sending{message: m, response: p, stream: stream}
	if s.where = r.lacks(s); s.where == nowhere {
		r.grant(s)
		r.mu.Unlock()
		return nil
	}
	s.ready = make(chan struct{})
	r.wait(s)
	r.mu.Unlock()
	if yield != nil {
		yield()
	}
	select {
	case <-s.ready:
		return nil
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-s.ready:
		r.giveBack(p, m)
	default:
		r.leave(s)
		r.next(s.response.conn)
	}
	return gone(ctx)
}

// gone is the error of a call that has ended.
func gone(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return joblet.Errorf(joblet.Unavailable, "the client has closed the connection")
}

// grant takes the room for a message. mu is held.
func (r *responseBudget) grant(s *sending) {
	p, conn := s.response, s.response.conn
	p.backlog += s.wire
	conn.backlog += s.wire
	p.due = time.Now().Add(stallTime + time.Duration(p.backlog/minRate)*time.Second)
	conn.held += s.cost
	conn.client.held += s.cost
	r.total += s.cost
}

// giveBack is the reverse of grant. mu is held.
func (r *responseBudget) giveBack(p *Response, m message) {
	if !p.over {
		p.backlog -= m.wire
		p.conn.backlog -= m.wire
	}
	r.freed(p.conn, m.cost)
	r.next(p.conn)
}

// freed says that memory is not needed any more. mu is held.
func (r *responseBudget) freed(conn *Conn, cost int64) {
	if cost = min(cost, conn.held); cost == 0 { // all is, since it was closed
		return
	}
	conn.held -= cost
	conn.client.held -= cost
	r.total -= cost
	r.feed(conn.client)
	for _, c := range slices.Clone(r.hungry) { // a call that waits for others
		r.feed(c)
	}
}

// feed lets those of a client go on that have memory now. mu is held.
func (r *responseBudget) feed(c *clientResponses) {
	for len(c.waiting) > 0 && r.advance(c.waiting[0]) {
	}
}

// advance lets a message go on, and reports whether it has left its place. mu is held.
func (r *responseBudget) advance(s *sending) bool {
	where := r.lacks(s)
	if where == s.where {
		return false
	}
	r.leave(s)
	if s.where = where; where == nowhere {
		r.grant(s)
		close(s.ready)
	} else {
		r.wait(s)
	}
	return true
}

// wait puts a message where it waits. mu is held.
func (r *responseBudget) wait(s *sending) {
	s.response.waits = s
	s.since = time.Now()
	switch s.where {
	case connRoom:
		s.response.conn.waiting = append(s.response.conn.waiting, s)
	case memoryRoom:
		c := s.response.conn.client
		if c.waiting = append(c.waiting, s); len(c.waiting) == 1 {
			if r.hungry = append(r.hungry, c); len(r.hungry) == 1 {
				r.press.Reset(pressTime)
			}
		}
	}
}

// leave is the reverse of wait. mu is held.
func (r *responseBudget) leave(s *sending) {
	s.response.waits = nil
	without := func(all []*sending) []*sending {
		if i := slices.Index(all, s); i >= 0 {
			return slices.Delete(all, i, i+1)
		}
		return all
	}
	switch s.where {
	case connRoom:
		s.response.conn.waiting = without(s.response.conn.waiting)
	case memoryRoom:
		c := s.response.conn.client
		if c.waiting = without(c.waiting); len(c.waiting) == 0 {
			if i := slices.Index(r.hungry, c); i >= 0 {
				r.hungry = slices.Delete(r.hungry, i, i+1)
			}
		}
	}
}

// next lets those go on for which the connection has room now. mu is held.
func (r *responseBudget) next(conn *Conn) {
	for len(conn.waiting) > 0 && r.advance(conn.waiting[0]) {
	}
	if conn.client != nil {
		r.feed(conn.client)
	}
}

// windowed says that the client grants more on a stream, or on all together (0). An
// initial window that it sets is that of all streams.
func (r *responseBudget) windowed(conn *Conn, stream uint32, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if stream == 0 {
		conn.credit += n
		r.next(conn)
	} else if p := conn.open[stream]; p != nil {
		p.credit += n
		if p.waits != nil && p.waits.where == streamRoom {
			r.advance(p.waits)
		}
	}
}

func (r *responseBudget) initialWindow(conn *Conn, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	conn.initial = n
	for _, p := range conn.open {
		if p.waits != nil && p.waits.where == streamRoom {
			r.advance(p.waits)
		}
	}
}

// reset says that the client has ended a stream.
func (r *responseBudget) reset(conn *Conn, stream uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := conn.open[stream]; p != nil {
		r.finish(p)
		r.next(conn)
	}
}

// wrote says that bytes of a stream, or its end, are written. mu is held.
func (r *responseBudget) wrote(conn *Conn, stream uint32, n int64, end bool) {
	conn.credit -= n
	p := conn.open[stream]
	if p == nil {
		return
	}
	p.credit -= n
	sent := min(n, p.backlog)
	p.backlog -= sent
	conn.backlog -= sent
	if p.waits != nil && p.waits.where == streamRoom {
		r.advance(p.waits)
	}
	if end {
		r.finish(p)
	}
}

// relieve cuts a connection that holds what others wait for.
func (r *responseBudget) relieve() {
	r.mu.Lock()
	now := time.Now()
	var cut *Conn
	for _, c := range r.hungry {
		if len(c.waiting) == 0 || now.Sub(c.waiting[0].since) < pressTime {
			continue
		}
		// It waits for its own share, or for the largest holder.
		from := []*clientResponses{c}
		if c.held <= r.limit()/clientShare/2 {
			from = slices.SortedFunc(maps.Values(r.clients), func(a, b *clientResponses) int { return int(b.held - a.held) })
		}
		if cut = stalled(from, now); cut != nil {
			break
		}
	}
	if len(r.hungry) > 0 {
		r.press.Reset(pressTime)
	}
	r.mu.Unlock()
	if cut != nil {
		_ = cut.Close()
	}
}

// stalled returns the connection that holds most of those which do not take what is
// sent, of the first of the clients that has such.
func stalled(clients []*clientResponses, now time.Time) (most *Conn) {
	for _, c := range clients {
		for conn := range c.conns {
			if conn.held > 0 && !conn.writing.IsZero() && now.Sub(conn.writing) > stallTime && (most == nil || conn.held > most.held) {
				most = conn
			}
			for _, p := range conn.open {
				if p.backlog > 0 && now.After(p.due) && (most == nil || conn.held > most.held) {
					most = conn
				}
			}
		}
		if most != nil {
			return most
		}
	}
	return nil
}

// stop ends the timer.
func (r *responseBudget) stop() { r.press.Stop() }

// reserve waits until the call, a stream, may make a message of so many bytes, and
// keeps the room for the next one. yield is called before it waits.
func (p *Response) Reserve(ctx context.Context, n int, yield func()) error {
	if p == nil || p.reserved != (message{}) {
		return nil
	}
	m := sized(n)
	err := p.room(ctx, m, true, yield)
	if err == nil {
		p.reserved = m
	}
	return err
}

// release gives back what was reserved and not used.
func (p *Response) Release() {
	if p == nil || p.reserved == (message{}) {
		return
	}
	p.responses.mu.Lock()
	defer p.responses.mu.Unlock()
	p.responses.giveBack(p, p.reserved)
	p.reserved = message{}
}

// outgoing returns a message that may be made now. Only one of a stream waits for the
// windows.
func (p *Response) Outgoing(ctx context.Context, m any, stream bool) (*Outgoing, error) {
	pm, ok := m.(proto.Message)
	if !ok {
		return nil, joblet.Errorf(joblet.Internal, "%T is not a message", m)
	}
	size := proto.Size(pm)
	need := sized(size)
	if p.reserved == (message{}) {
		if err := p.room(ctx, need, stream, nil); err != nil {
			return nil, err
		}
	} else {
		r := p.responses
		r.mu.Lock()
		if !p.over {
			r.grant(&sending{message: need, response: p})
		}
		r.giveBack(p, p.reserved)
		r.mu.Unlock()
		p.reserved = message{}
	}
	return &Outgoing{response: p, message: pm, size: size, need: need}, nil
}

// Outgoing is a message with room for it. It is the pool of its own buffer, so that
// it is told when gRPC needs that no more.
type Outgoing struct {
	response *Response
	message  proto.Message
	size     int
	need     message
	made     bool
}

// Discard gives the room back of a message that was not made.
func (o *Outgoing) Discard() {
	if o.made {
		return
	}
	o.made = true
	r := o.response.responses
	r.mu.Lock()
	defer r.mu.Unlock()
	r.giveBack(o.response, o.need)
}

func (o *Outgoing) marshal() (mem.BufferSlice, error) {
	buf := getBuffer(o.size)
	out, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend((*buf)[:0], o.message)
	if err != nil {
		putBuffer(buf)
		o.Discard()
		return nil, err
	}
	*buf, o.made, o.message = out, true, nil
	return mem.BufferSlice{mem.NewBuffer(buf, o)}, nil
}

// Get implements mem.BufferPool; it is not called.
func (o *Outgoing) Get(n int) *[]byte { return getBuffer(n) }

// Put implements mem.BufferPool.
func (o *Outgoing) Put(buf *[]byte) {
	putBuffer(buf)
	r := o.response.responses
	r.mu.Lock()
	defer r.mu.Unlock()
	r.freed(o.response.conn, o.need.cost)
}

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if o, ok := v.(*Outgoing); ok {
		return o.marshal()
	}
	return c.CodecV2.Marshal(v)
}

// bufferSizes are of messages. The largest takes a piece and what is around it: of the
// sizes that gRPC has, one of 1 MiB would. The least is more than what gRPC frees
// without telling.
var bufferSizes = [...]int{2 << 10, 4 << 10, 9 << 10, 17 << 10, maxPiece + 2<<10}

var bufferPools [len(bufferSizes)]sync.Pool

func bufferSize(n int) int {
	for _, size := range bufferSizes {
		if n <= size {
			return size
		}
	}
	return n
}

func getBuffer(n int) *[]byte {
	for i, size := range bufferSizes {
		if n <= size {
			if buf, ok := bufferPools[i].Get().(*[]byte); ok {
				return buf
			}
			buf := make([]byte, 0, size)
			return &buf
		}
	}
	buf := make([]byte, 0, n)
	return &buf
}

func putBuffer(buf *[]byte) {
	if i := slices.Index(bufferSizes[:], cap(*buf)); i >= 0 {
		*buf = (*buf)[:0]
		bufferPools[i].Put(buf)
	}
}

// piece is how much of a file or a log one message of the call carries, so that it
// fits into the windows that clients have.
func (p *Response) Piece() int {
	if p == nil {
		return maxPiece
	}
	p.responses.mu.Lock()
	defer p.responses.mu.Unlock()
	return int(min(max(p.conn.initial/4-PieceHead, 1<<10), maxPiece))
}

// answer is a service's method without streams whose answers are counted. Before one
// makes a list there is room for it: what it is made of takes more than the answer.
func answer(srv any, ctx context.Context, unpack func(any) error, through grpc.UnaryServerInterceptor, reserve int, handler grpc.MethodHandler) (any, error) {
	p := ResponseOf(ctx)
	if p == nil {
		return handler(srv, ctx, unpack, through)
	}
	into := unpack
	if reserve > 0 {
		into = func(m any) error {
			if err := unpack(m); err != nil {
				return err
			}
			room := message{cost: int64(reserve)}
			err := p.room(ctx, room, false, nil)
			if err == nil {
				p.reserved = room
			}
			return err
		}
		defer p.Release()
	}
	out, err := handler(srv, ctx, into, through)
	if err != nil {
		return nil, err
	}
	return p.Outgoing(ctx, out, false)
}

// reserveOf returns how much an answer of a method takes before it is known how long
// it is: much, if it holds a list.
func reserveOf(method string) int {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(method[1:], "/", ".")))
	if err != nil {
		return 0
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok || m.IsStreamingServer() {
		return 0
	}
	fields := m.Output().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); f.IsList() && f.Message() != nil {
			return listReserve
		}
	}
	return 0
}
