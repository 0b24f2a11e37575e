package admission

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/joblet/joblet/api"
)

// eventually waits until something is true.
func eventually(t *testing.T, what string, true func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !true(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// frames is a connection that is all there.
type frames struct {
	net.Conn
	bytes.Buffer
}

func (f *frames) Read(p []byte) (int, error)  { return f.Buffer.Read(p) }
func (f *frames) Write(p []byte) (int, error) { return f.Buffer.Write(p) }

// TestCounts: what a call takes, at each step.
func TestCounts(t *testing.T) {
	t.Parallel()
	in := newRequestBudget(func() int64 { return 10 << 20 })
	conn := &frames{}
	from := newConn(conn, in, newResponseBudget(func() int64 { return 64 << 20 }))
	conn.WriteString(http2.ClientPreface)
	f := http2.NewFramer(conn, nil)
	read := func() {
		t.Helper()
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{from}, make([]byte, 7)); err != nil { // in pieces
			t.Fatal(err)
		}
	}
	begin := func(ctx context.Context, stream uint32, limit time.Duration) (context.Context, *Request) {
		t.Helper()
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte("x"), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
		read()
		ctx = in.begin(ctx, from, "client", limit)
		return ctx, RequestOf(ctx)
	}
	data := func(stream uint32, sizes ...int) {
		t.Helper()
		for _, n := range sizes {
			if err := f.WriteData(stream, false, make([]byte, n)); err != nil {
				t.Fatal(err)
			}
		}
		read()
	}
	counted := func(want int64) {
		t.Helper()
		in.mu.Lock()
		defer in.mu.Unlock()
		sum := int64(0)
		for a := range in.calls {
			sum += a.taken
		}
		if in.total.all != want || sum != want {
			t.Errorf("counted %d, %d of calls, want %d", in.total.all, sum, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first, a := begin(ctx, 1, time.Minute)
	data(1, 5, 0, 1000, 1000)
	counted(2005 + 3*frameCost)
	_, b := begin(first, 3, time.Minute)
	data(3, 70<<10+5, 1, 1, 1)
	data(5, 1000) // of no call
	counted(2005 + 3*frameCost + 70<<10 + 8 + 4*frameCost)
	b.Handled(nil)
	b.unpack(70<<10, 70<<10) // the bytes after it still count
	counted(2005 + 3*frameCost + 70<<10 + 3 + 4*frameCost)
	a.unpack(2000, 2000)
	counted(70<<10 + 3 + 4*frameCost)
	b.Release()
	b.Release()
	counted(3 + 4*frameCost)
	data(3, 3+16)
	b.unpack(1, 1) // the frames before it are gone, the last one is not
	counted(16 + frameCost)
	cancel()
	eventually(t, "the stream is gone", func() bool { in.mu.Lock(); defer in.mu.Unlock(); return a.removed && b.gone })
	counted(16 + frameCost) // its handler is not
	b.Done()
	counted(0)
	if len(in.calls)+len(from.calls) != 0 {
		t.Errorf("%d and %d calls stay", len(in.calls), len(from.calls))
	}
	late, _ := begin(t.Context(), 7, time.Millisecond)
	<-late.Done() // a request that does not come
}

// TestUnpackRefused: what is refused while it waits to be unpacked is not.
func TestUnpackRefused(t *testing.T) {
	t.Parallel()
	in := newRequestBudget(func() int64 { return 10 << 20 })
	a := RequestOf(in.begin(t.Context(), newConn(nil, in, newResponseBudget(func() int64 { return 64 << 20 })), "client", time.Minute))
	a.refuse()
	data := mem.BufferSlice{mem.SliceBuffer(make([]byte, largeMessage+1))}
	m := &wrapperspb.BytesValue{}
	if err := NewCodec().Unmarshal(data, &incoming{a, m}); err != nil || len(m.GetValue())+len(m.ProtoReflect().GetUnknown()) != 0 {
		t.Errorf("got %d bytes, %v", proto.Size(m), err)
	}
}

// TestCollector: when much is free, it is given back though calls are under way.
func TestCollector(t *testing.T) {
	t.Parallel()
	rested := make(chan struct{}, 10)
	c := &collector{rest: time.AfterFunc(time.Hour, func() { rested <- struct{}{} })}
	c.freed(collectAfter / 2)
	if c.garbage.Load() != collectAfter/2 {
		t.Errorf("%d bytes are known of", c.garbage.Load())
	}
	c.freed(collectAfter / 2)
	select {
	case <-rested:
	case <-time.After(30 * time.Second):
		t.Error("nothing was collected")
	}
	if c.garbage.Load() != 0 {
		t.Errorf("%d bytes are still known of", c.garbage.Load())
	}
}

// TestSmallFields: a message of many empty parts counts as what they take.
func TestSmallFields(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]struct {
		proto.Message
		least int64
	}{
		"uploads": {&api.RunJobRequest{Uploads: slices.Repeat([]*api.FileUpload{{}}, 1000)}, 1000},
		"within":  {&api.JobInput{Input: &api.JobInput_Run{Run: &api.RunJobRequest{Args: make([]string, 1000)}}}, 1000},
		"numbers": {&api.RunJobRequest{RetryOn: make([]int32, fieldCost*100)}, 800},
	} {
		b, err := proto.Marshal(m.Message)
		if err != nil {
			t.Fatal(err)
		}
		d := m.ProtoReflect().Descriptor()
		if n := fields(d, b, maxDepth); n < m.least || n > m.least+10 {
			t.Errorf("%s: %d fields, want %d", name, n, m.least)
		}
		_ = fields(d, b[:len(b)-1], maxDepth) // damaged
	}
}

func TestHostOf(t *testing.T) {
	t.Parallel()
	for a, want := range map[string]string{
		"192.0.2.7:1": "192.0.2.7/32", "[::ffff:192.0.2.7]:1": "192.0.2.7/32",
		"[2001:db8:1:2:3:4:5:6]:1": "2001:db8:1:2::/64", "[fe80::1%lo]:1": "fe80::/64",
	} {
		if got := hostOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(a))).String(); got != want {
			t.Errorf("%s: got %s, want %s", a, got, want)
		}
	}
}
