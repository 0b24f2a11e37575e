package admission

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A message is in memory as a whole before it can be inspected, and gRPC bounds single
// messages only. So what clients send, all but this host's root, is counted for each
// call: what its frames bring until the message that they make is there, and a message
// that is not small until the call has done with it. When it is too much, calls of the
// client that has most end.

const (
	// smallMessage is one that is not counted any more once it is there.
	smallMessage = 64 << 10

	// largeMessage is one that is unpacked while no other such is: that takes twice
	// its size beside what was received.
	largeMessage = 1 << 20

	// plainMessage is so small that what it can become when it is unpacked does not
	// matter.
	plainMessage = 1 << 10

	messageHead = 5   // of each message of a stream
	fieldCost   = 128 // of a field of a message that is unpacked, beside what it holds
	frameCost   = 128 // what gRPC needs to keep a frame, beside what it brings

	// roomShare of the limit is free when calls had to end, so that not each frame
	// ends one.
	roomShare = 16

	// refuseTime is how long a refused call may take to send its status before its
	// connection is closed.
	refuseTime = time.Second
)

// ErrTooMuch is the error of a call that has to end because of what clients send.
var ErrTooMuch = tooMuch(requestRetry, "the byte budget for requests is used up (request-memory): send less, or try again later")

// requestRetry is after what time to try again.
const requestRetry = time.Second

// requestBudget counts what clients send.
type requestBudget struct {
	limit     func() int64
	unpacking sync.Mutex // held while a large message is
	collector collector

	mu    sync.Mutex // protects what follows, and what is of connections and calls
	total taken
	begun int64 // calls
	calls map[*Request]struct{}
}

func newRequestBudget(limit func() int64) *requestBudget {
	return &requestBudget{limit: limit, calls: map[*Request]struct{}{}}
}

// taken is a number of bytes.
type taken struct {
	all     int64
	leaving int64 // of them, those of calls that were told to end
}

// stays is what will be there when these have ended.
func (t taken) stays() int64 { return t.all - t.leaving }

// Request is a call.
type Request struct {
	requests *requestBudget
	client   string // its name
	conn     *Conn
	stream   uint32
	cancel   context.CancelFunc
	timer    *time.Timer

	refused chan struct{} // closed when what it sends is too much

	// What follows is protected by requestBudget.mu.
	number  int64                   // of all that begun
	end     context.CancelCauseFunc // of a stream's handler; nil: there is none
	running bool                    // the handler
	gone    bool                    // the stream, or soon
	removed bool                    // no more is counted
	leaving bool                    // it was told to end

	taken    int64
	arrived  int64    // of taken and before: what frames brought
	unpacked int64    // of this
	held     int64    // of taken: messages that are there
	frames   [2]int64 // of taken: what frames cost, those up to mark and those behind it
	mark     int64    // of arrived: up to here frames[0] counts
}

type requestKey struct{}

// RequestOf returns the call to which a context belongs; nil if it is root's.
func RequestOf(ctx context.Context) *Request {
	a, _ := ctx.Value(requestKey{}).(*Request)
	return a
}

// begin notes a call that the connection begins just now, and gives its request so
// long to arrive.
func (in *requestBudget) begin(ctx context.Context, conn *Conn, client string, limit time.Duration) context.Context {
	ctx, cancel := context.WithCancel(ctx) // ends with its parent, as each call does
	a := &Request{requests: in, client: client, conn: conn, stream: conn.stream, cancel: cancel, refused: make(chan struct{})}
	a.timer = time.AfterFunc(limit, cancel)
	in.mu.Lock()
	in.begun++
	a.number = in.begun
	in.calls[a] = struct{}{}
	conn.calls[a.stream] = a
	in.mu.Unlock()
	context.AfterFunc(ctx, func() {
		a.timer.Stop()
		in.mu.Lock()
		defer in.mu.Unlock()
		a.gone = true
		in.remove(a)
	})
	return context.WithValue(ctx, requestKey{}, a)
}

// add counts bytes. in.mu is held.
func (in *requestBudget) add(a *Request, n int64) {
	a.taken += n
	if in.total.all += n; a.leaving {
		in.total.leaving += n
	}
}

// remove forgets a call that has ended: what it sent is there as long as its handler
// or its stream. in.mu is held.
func (in *requestBudget) remove(a *Request) {
	if a.running || !a.gone || a.removed {
		return
	}
	a.removed = true
	in.collector.freed(a.taken)
	in.add(a, -a.taken)
	delete(a.conn.calls, a.stream)
	delete(in.calls, a)
}

// received counts what a frame brings.
func (in *requestBudget) received(conn *Conn, stream uint32, n int64) {
	in.mu.Lock()
	a := conn.calls[stream]
	if a == nil { // gRPC has no such stream either, and drops it
		in.mu.Unlock()
		return
	}
	a.arrived += n
	a.frames[1] += frameCost
	in.add(a, n+frameCost)
	ending := in.tooMany()
	in.mu.Unlock()
	for _, a := range ending {
		a.refuse()
	}
}

// tooMany returns the calls that have to end because there is too much: of the client
// that has most the newest of which something is here, so that the older ones get
// through. in.mu is held.
func (in *requestBudget) tooMany() (ending []*Request) {
	limit := in.limit()
	if in.total.stays() <= limit {
		return nil
	}
	sums := map[string]int64{}
	var newest []*Request
	for a := range in.calls {
		if !a.leaving && a.taken > 0 {
			sums[a.client] += a.taken
			newest = append(newest, a)
		}
	}
	slices.SortFunc(newest, func(a, b *Request) int { return cmp.Compare(b.number, a.number) })
	for in.total.stays() > limit-limit/roomShare && len(newest) > 0 {
		most := newest[0].client
		for client, sum := range sums {
			if sum > sums[most] {
				most = client
			}
		}
		i := slices.IndexFunc(newest, func(a *Request) bool { return a.client == most })
		a := newest[i]
		newest = slices.Delete(newest, i, i+1)
		sums[most] -= a.taken
		in.leave(a)
		ending = append(ending, a)
	}
	return ending
}

// leave says that a call has to end. in.mu is held.
func (in *requestBudget) leave(a *Request) {
	a.leaving = true
	in.total.leaving += a.taken
}

// refuse ends a call: a stream's handler, which tells the client why, and whatever
// does not end by that.
func (a *Request) refuse() {
	close(a.refused)
	a.requests.mu.Lock()
	end := a.end
	a.requests.mu.Unlock()
	if end == nil {
		a.cancel()
		return
	}
	end(ErrTooMuch)
	time.AfterFunc(refuseTime, a.cancel) // it waits for a client that does not read, say
}

func (a *Request) Refused() bool {
	if a == nil {
		return false
	}
	select {
	case <-a.refused:
		return true
	default:
		return false
	}
}

// handled says that the call has a handler, which end ends if it is a stream's, until
// done is called.
func (a *Request) Handled(end context.CancelCauseFunc) {
	if a == nil {
		return
	}
	a.requests.mu.Lock()
	defer a.requests.mu.Unlock()
	a.running, a.end = true, end
}

func (a *Request) Done() {
	if a == nil {
		return
	}
	a.requests.mu.Lock()
	defer a.requests.mu.Unlock()
	a.running = false
	a.drop()
	a.requests.remove(a)
}

// release says that the call has done with the messages that it has got.
func (a *Request) Release() {
	if a == nil {
		return
	}
	a.requests.mu.Lock()
	defer a.requests.mu.Unlock()
	a.drop()
}

// drop is release while requestBudget.mu is held.
func (a *Request) drop() {
	if a.held > 0 && !a.removed {
		a.requests.collector.freed(a.held)
		a.requests.add(a, -a.held)
		a.held = 0
	}
}

// incoming is a message that the codec is to unpack into, and of which call it is.
type incoming struct {
	call    *Request
	message any
}

// receive waits for a message, or until the caller has sent too much.
func (a *Request) Receive(s grpc.ServerStream, m any) error {
	if a == nil {
		return s.RecvMsg(m)
	}
	// gRPC answers by itself if RecvMsg fails: so it goes on, and fails when the
	// handler has returned.
	got := make(chan error, 1)
	go func() { got <- s.RecvMsg(&incoming{a, m}) }()
	select {
	case err := <-got:
		if a.Refused() {
			return ErrTooMuch
		}
		return err
	case <-a.refused:
		return ErrTooMuch
	}
}

// codec is gRPC's, which tells each call what its messages take. One of a call that is
// refused stays empty: an error here would be the answer.
type codec struct{ encoding.CodecV2 }

func NewCodec() codec { return codec{encoding.GetCodecV2(protocodec.Name)} }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*incoming)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	size := int64(data.Len())
	if size <= plainMessage {
		err := c.CodecV2.Unmarshal(data, in.message)
		in.call.unpack(size, size)
		return err
	}
	message, ok := in.message.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is not a message", in.message)
	}
	if size > largeMessage {
		in.call.requests.unpacking.Lock()
		defer in.call.requests.unpacking.Unlock()
		defer in.call.requests.collector.freed(2 * size)
	}
	if in.call.Refused() {
		return nil
	}
	whole := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer whole.Free()
	weight := size + fieldCost*fields(message.ProtoReflect().Descriptor(), whole.ReadOnlyData(), maxDepth)
	if !in.call.unpack(size, weight) {
		return nil
	}
	return proto.Unmarshal(whole.ReadOnlyData(), message)
}

// maxDepth is how deep fields are counted; no message of ours is so deep.
const maxDepth = 16

// fields counts what a message is made of: an empty field takes two bytes here, and
// fifty times as much unpacked.
func fields(d protoreflect.MessageDescriptor, b []byte, depth int) (n int64) {
	for len(b) > 0 {
		number, kind, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			break // unpacking it says what is wrong
		}
		size := protowire.ConsumeFieldValue(number, kind, b[tag:])
		if size < 0 {
			break
		}
		n++
		if f := d.Fields().ByNumber(number); f != nil && kind == protowire.BytesType {
			content, _ := protowire.ConsumeBytes(b[tag:])
			switch f.Kind() {
			case protoreflect.StringKind, protoreflect.BytesKind:
			case protoreflect.MessageKind:
				if depth > 0 {
					n += fields(f.Message(), content, depth-1)
				}
			default: // numbers, of a byte or more here and of eight then
				n += int64(len(content)) * 8 / fieldCost
			}
		}
		b = b[tag+size:]
	}
	return n
}

// unpack records that a message is complete, and its decoded size. If that exceeds the
// budget, the call is refused.
func (a *Request) unpack(size, weight int64) bool {
	a.timer.Stop()
	in := a.requests
	in.mu.Lock()
	if a.removed {
		in.mu.Unlock()
		return true
	}
	a.unpacked += size + messageHead
	n := -(size + messageHead)
	switch {
	case a.unpacked == a.arrived:
		n -= a.frames[0] + a.frames[1]
		a.frames = [2]int64{}
	case a.unpacked >= a.mark:
		n -= a.frames[0]
		a.frames, a.mark = [2]int64{a.frames[1], 0}, a.arrived
	}
	if weight > smallMessage {
		n += weight
		a.held += weight
	}
	fits := n <= 0 || in.total.stays()+n <= in.limit()
	if !fits {
		n -= a.held
		a.held = 0
	}
	in.add(a, n)
	refuse := !fits && !a.leaving
	if refuse {
		in.leave(a)
	}
	in.mu.Unlock()
	if refuse {
		close(a.refused)
	}
	return fits
}

// Registrar registers services whose requests and answers are counted.
type Registrar struct {
	*grpc.Server

	// Memory is how many bytes are taken for the answers of some methods, by their full
	// names, before it is known how long they are. Those of other methods that hold a
	// list take a default.
	Memory map[string]int
}

// RegisterService implements grpc.ServiceRegistrar.
func (r Registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	counted := *desc
	counted.Methods = slices.Clone(desc.Methods)
	for i, m := range counted.Methods {
		method := "/" + desc.ServiceName + "/" + m.MethodName
		reserve, ok := r.Memory[method]
		if !ok {
			reserve = reserveOf(method)
		}
		counted.Methods[i].Handler = func(srv any, ctx context.Context, unpack func(any) error, through grpc.UnaryServerInterceptor) (any, error) {
			into := unpack
			if a := RequestOf(ctx); a != nil {
				into = func(m any) error { return unpack(&incoming{a, m}) }
			}
			return answer(srv, ctx, into, through, reserve, m.Handler)
		}
	}
	r.Server.RegisterService(&counted, impl)
}

// collectAfter is how much memory that requests took is not needed any more when it
// is collected.
const collectAfter = 64 << 20

// collector sees to it that memory that requests took is free soon: Go waits until as
// much again is taken, and gives nothing back to the host for minutes.
type collector struct {
	garbage atomic.Int64 // since the last collection
	busy    atomic.Bool
	idle    time.Duration
	rest    *time.Timer // gives memory back after idle; may be nil
}

// freed says that so much is not needed any more, or soon is not.
func (c *collector) freed(n int64) {
	if n == 0 || c.garbage.Add(n) < collectAfter || c.rest == nil || !c.busy.CompareAndSwap(false, true) {
		return
	}
	go func() {
		for c.garbage.Swap(0) >= collectAfter {
			runtime.GC()
		}
		c.busy.Store(false)
		c.rest.Reset(c.idle)
	}()
}

// GiveBack returns to the host the memory that is free: the second time also what was
// in pools.
func GiveBack() {
	debug.FreeOSMemory()
	debug.FreeOSMemory()
}
