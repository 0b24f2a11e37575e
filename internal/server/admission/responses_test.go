package admission

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"
)

// outlet is a connection of a client that never reads, on which calls begin.
func outlet(t *testing.T, r *responseBudget, client string, streams ...uint32) (*Conn, []*Response) {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	conn := newConn(ours, nil, r)
	var all []*Response
	for _, id := range streams {
		conn.stream = id
		all = append(all, ResponseOf(r.begin(t.Context(), conn, client, func() {})))
	}
	return conn, all
}

// waits starts to wait for room and returns where the result comes, once it waits.
func waits(t *testing.T, ctx context.Context, p *Response, n int, where place) <-chan error {
	t.Helper()
	got := make(chan error, 1)
	yielded := make(chan struct{})
	go func() { got <- p.room(ctx, sized(n), true, func() { close(yielded) }) }()
	select {
	case <-yielded:
	case err := <-got:
		t.Fatalf("it does not wait: %v", err)
	}
	p.responses.mu.Lock()
	defer p.responses.mu.Unlock()
	if p.waits == nil || p.waits.where != where {
		t.Errorf("it waits for %+v, want %d", p.waits, where)
	}
	return got
}

func mustGo(t *testing.T, got <-chan error) {
	t.Helper()
	select {
	case err := <-got:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it waits for ever")
	}
}

// window is a frame that grants n on a stream, or on all of them (0).
func windowFrame(stream uint32, n uint32) []byte {
	return []byte{0, 0, 4, frameWindow, 0, 0, 0, 0, byte(stream), byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

// dataHead is the head of a frame of data that is written.
func dataHead(stream uint32, n int) []byte {
	return append([]byte{byte(n >> 16), byte(n >> 8), byte(n), frameData, 0, 0, 0, 0, byte(stream)}, make([]byte, n)...)
}

func (c *Conn) wroteFrames(frames ...[]byte) {
	c.responses.mu.Lock()
	defer c.responses.mu.Unlock()
	for _, f := range frames {
		c.written.scan(f, c.sent, nil)
	}
	c.responses.next(c)
}

// TestReplyWindows: a message waits for the windows of its stream and its connection,
// and goes on when the client grants more, in frames of any size.
func TestReplyWindows(t *testing.T) {
	t.Parallel()
	r := newResponseBudget(func() int64 { return 64 << 20 })
	conn, p := outlet(t, r, "client", 1, 3, 5)
	conn.read.skip = 0
	const n = 16000
	for range 4 { // 64,020 bytes of the 65,535
		if err := p[0].room(t.Context(), sized(n), true, nil); err != nil {
			t.Fatal(err)
		}
	}
	got := waits(t, t.Context(), p[0], n, streamRoom)
	other := waits(t, t.Context(), p[1], n, connRoom) // its own window is open
	for range 4 {
		conn.wroteFrames(dataHead(1, n+messageHead))
	}
	grant := append(windowFrame(1, 1<<20), windowFrame(0, 1<<20)...)
	for i := range grant { // byte by byte
		conn.readFrames(grant[i : i+1])
	}
	mustGo(t, got)
	mustGo(t, other)

	// An initial window counts for all streams, also those that are there.
	conn.readFrames([]byte{0, 0, 6, frameSettings, 0, 0, 0, 0, 0, 0, settingInitialWindow, 0, 0, 0, 0})
	got = waits(t, t.Context(), p[2], n, streamRoom)
	conn.readFrames([]byte{0, 0, 6, frameSettings, 0, 0, 0, 0, 0, 0, settingInitialWindow, 0x7f, 0xff, 0xff, 0xff})
	mustGo(t, got)

	// However much the client grants, little waits on one connection.
	conn.readFrames(windowFrame(0, 1<<30))
	for conn.backlog+n < maxBacklog {
		if err := p[2].room(t.Context(), sized(n), true, nil); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	got = waits(t, ctx, p[2], n, connRoom)
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	conn.readFrames([]byte{0, 0, 4, frameReset, 0, 0, 0, 0, 5, 0, 0, 0, 8})
	if conn.open[5] != nil || conn.backlog != 2*(n+messageHead) {
		t.Errorf("the client ended a stream, and %d bytes wait", conn.backlog)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if r.total != 0 || len(r.clients) != 0 || len(conn.open) != 0 {
		t.Errorf("%d bytes, %d clients and %d calls stay", r.total, len(r.clients), len(conn.open))
	}
}

// TestReplyReset: a call whose client ends it while its message waits is granted
// nothing, since it would never be returned.
func TestReplyReset(t *testing.T) {
	t.Parallel()
	for _, where := range []place{connRoom, streamRoom, memoryRoom} {
		limit := int64(64 << 20)
		r := newResponseBudget(func() int64 { return limit })
		conn, p := outlet(t, r, "client", 1, 3)
		conn.read.skip = 0
		n := 16000
		switch where {
		case connRoom:
			conn.readFrames(windowFrame(1, 1<<20))
			for range 4 {
				if err := p[0].room(t.Context(), sized(n), true, nil); err != nil {
					t.Fatal(err)
				}
			}
		case streamRoom:
			n = 60000
			conn.readFrames(windowFrame(0, 1<<20))
			if err := p[1].room(t.Context(), sized(n), true, nil); err != nil {
				t.Fatal(err)
			}
		case memoryRoom:
			limit = 2 * clientFloor
			conn.readFrames(append(windowFrame(0, 1<<20), windowFrame(1, 1<<20)...))
			for range 4 {
				if err := p[0].room(t.Context(), sized(n), true, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		got := waits(t, ctx, p[1], n, where)
		conn.readFrames([]byte{0, 0, 4, frameReset, 0, 0, 0, 0, 3, 0, 0, 0, 8})
		r.mu.Lock()
		r.freed(conn, conn.held) // and what would let it go on
		conn.credit += 1 << 20
		r.next(conn)
		held, backlog := conn.held, conn.backlog-p[0].backlog
		r.mu.Unlock()
		cancel()
		if err := <-got; err == nil {
			t.Errorf("%v: a call that has ended goes on", where)
		}
		if held != 0 || backlog != 0 {
			t.Errorf("%v: %d bytes are held and %d wait for a call that has ended", where, held, backlog)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReplyMemory: one client gets no more than its share, others are served, and what
// is freed goes to those that wait.
func TestReplyMemory(t *testing.T) {
	t.Parallel()
	const limit = 4 << 20
	r := newResponseBudget(func() int64 { return limit })
	defer r.stop()
	_, eve := outlet(t, r, "eve", 1, 3)
	_, bob := outlet(t, r, "bob", 1, 3, 5)
	p := eve[0]
	big := message{cost: limit / clientShare}
	if err := p.room(t.Context(), big, false, nil); err != nil {
		t.Fatal(err)
	}
	got := waits(t, t.Context(), eve[1], 100, memoryRoom)
	if err := bob[0].room(t.Context(), sized(30<<10), true, nil); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.giveBack(p, big)
	r.mu.Unlock()
	mustGo(t, got)
	if want := sized(100).cost + sized(30<<10).cost; r.total != want || len(r.hungry) != 0 {
		t.Errorf("%d bytes, want %d; %d clients wait", r.total, want, len(r.hungry))
	}
	// However much others hold, a client has a little.
	r.mu.Lock()
	r.total += limit
	r.mu.Unlock()
	if err := bob[1].room(t.Context(), sized(100), true, nil); err != nil {
		t.Fatal(err)
	}
	_ = waits(t, t.Context(), bob[2], 30<<10, memoryRoom)
}

// TestReplyStalled: a connection that does not take what others wait for is closed, and
// only such a one.
func TestReplyStalled(t *testing.T) {
	t.Parallel()
	const limit = 4 << 20
	r := newResponseBudget(func() int64 { return limit })
	defer r.stop()
	slow, a := outlet(t, r, "eve", 1)
	quick, b := outlet(t, r, "eve", 1, 3)
	half := message{wire: 1 << 10, cost: limit / clientShare / 2}
	for _, p := range []*Response{a[0], b[0]} {
		if err := p.room(t.Context(), half, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	got := waits(t, t.Context(), b[1], 15<<10, memoryRoom)
	r.mu.Lock()
	a[0].due = time.Now().Add(-time.Second)
	r.mu.Unlock()
	mustGo(t, got)
	if !slow.closed || quick.closed {
		t.Errorf("closed: %v and %v", slow.closed, quick.closed)
	}
	if _, err := slow.Conn.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
}

// TestReplyBuffers: a message counts until gRPC needs it no more, and has a buffer that
// is not much larger.
func TestReplyBuffers(t *testing.T) {
	t.Parallel()
	r := newResponseBudget(func() int64 { return 64 << 20 })
	_, p := outlet(t, r, "client", 1)
	for _, n := range []int{0, 1, 1 << 10, 16 << 10, maxPiece, maxPiece + 100, 1 << 20} {
		out, err := p[0].Outgoing(t.Context(), &wrapperspb.BytesValue{Value: make([]byte, n)}, false)
		if err != nil {
			t.Fatal(err)
		}
		data, err := NewCodec().Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		if held := r.total; held < int64(n) || held > max(4<<10, 2*int64(n)+1<<10) {
			t.Errorf("%d bytes count as %d", n, held)
		}
		data.Free()
		if r.total != 0 {
			t.Errorf("%d bytes: %d stay", n, r.total)
		}
	}
	// One for which room was kept takes no more than itself.
	_, p = outlet(t, r, "client", 1) // nothing of the first was written
	if err := p[0].Reserve(t.Context(), 1<<14, nil); err != nil {
		t.Fatal(err)
	}
	out, err := p[0].Outgoing(t.Context(), &wrapperspb.BytesValue{}, true)
	if err != nil || r.total != sized(0).cost {
		t.Errorf("%d bytes, %v", r.total, err)
	}
	out.Discard()
	out.Discard()
	p[0].Release()
	if r.total != 0 {
		t.Errorf("%d stay", r.total)
	}
}

// TestHoldsUnread: from a client that does not read not everything is taken in.
func TestHoldsUnread(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	conn := newConn(ours, nil, newResponseBudget(func() int64 { return 64 << 20 }))
	conn.read.skip = 0
	wrote := make(chan error, 1)
	go func() { _, err := conn.Write(make([]byte, 100)); wrote <- err }()
	eventually(t, "it writes", func() bool {
		conn.responses.mu.Lock()
		defer conn.responses.mu.Unlock()
		return !conn.writing.IsZero()
	})
	conn.countUnread(maxUnread)
	read := make(chan error, 1)
	go func() { _, err := conn.Read(make([]byte, 1)); read <- err }()
	eventually(t, "it waits", func() bool {
		conn.responses.mu.Lock()
		defer conn.responses.mu.Unlock()
		return conn.resume != nil
	})
	if _, err := io.ReadFull(theirs, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if _, err := theirs.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	mustGo(t, read)
}

// readFrames takes in what the client sends.
func (c *Conn) readFrames(p []byte) { c.read.scan(p, c.received, c.receivedUnit) }
