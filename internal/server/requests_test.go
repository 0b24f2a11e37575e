package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/pki"
	"github.com/joblet/joblet/internal/server/admission"
	"github.com/joblet/joblet/internal/service"
)

const (
	reflectionMethod = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
	statusMethod     = api.JobService_GetJobStatus_FullMethodName
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

// nothingCounted waits until all calls have ended.
func (r *remote) nothingCounted(t *testing.T) {
	t.Helper()
	eventually(t, "nothing is counted", func() bool {
		use := r.admission.Usage()
		return use.RequestBytes == 0 && use.Leaving == 0 && use.Calls == 0
	})
}

// rawClient speaks HTTP/2 as no good client does.
type rawClient struct {
	t       *testing.T
	framer  *http2.Framer
	headers bytes.Buffer
	encoder *hpack.Encoder
	next    uint32

	mu    sync.Mutex
	ended map[uint32]string // streams that the server has ended, and how
	got   map[uint32]int    // frames of answers
}

func (r *remote) raw(t *testing.T, b pki.Bundle) *rawClient {
	t.Helper()
	conn, err := tls.Dial("tcp", r.address, config(t, b))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &rawClient{t: t, framer: http2.NewFramer(conn, conn), next: 1, ended: map[uint32]string{}, got: map[uint32]int{}}
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.encoder = hpack.NewEncoder(&c.headers)
	if _, err = io.WriteString(conn, http2.ClientPreface); err == nil {
		err = c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	}
	if err == nil {
		err = c.framer.WriteWindowUpdate(0, 1<<30)
	}
	if err != nil {
		t.Fatal(err)
	}
	go c.read()
	return c
}

func (c *rawClient) read() {
	for {
		f, err := c.framer.ReadFrame()
		if err != nil {
			return
		}
		c.mu.Lock()
		switch f := f.(type) {
		case *http2.RSTStreamFrame:
			if _, told := c.ended[f.StreamID]; !told {
				c.ended[f.StreamID] = "reset: " + f.ErrCode.String()
			}
		case *http2.DataFrame:
			c.got[f.StreamID]++
		case *http2.MetaHeadersFrame:
			if f.StreamEnded() {
				for _, h := range f.Fields {
					if h.Name == "grpc-status" {
						c.ended[f.StreamID] = h.Value
					}
				}
			}
		}
		c.mu.Unlock()
	}
}

// howEnded returns how many of these streams the server has ended, and one's status.
func (c *rawClient) howEnded(streams ...uint32) (n int, how string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range streams {
		if text, ended := c.ended[s]; ended {
			n, how = n+1, text
		}
	}
	return n, how
}

func (c *rawClient) call(method string) (stream uint32) {
	c.t.Helper()
	c.headers.Reset()
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", method}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := c.encoder.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			c.t.Fatal(err)
		}
	}
	stream = c.next
	c.next += 2
	if err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: c.headers.Bytes(), EndHeaders: true}); err != nil {
		c.t.Fatal(err)
	}
	return stream
}

// head is what is in front of a message.
func head(size int) []byte { return binary.BigEndian.AppendUint32([]byte{0}, uint32(size)) }

func (c *rawClient) send(stream uint32, p []byte) {
	c.t.Helper()
	for len(p) > 0 {
		n := min(len(p), 16<<10)
		if err := c.framer.WriteData(stream, false, p[:n]); err != nil {
			c.t.Fatal(err)
		}
		p = p[n:]
	}
}

// TestSmallBesideIncomplete: messages that are read take only their own bytes out of
// the count, not those of requests beside them that never become whole.
func TestSmallBesideIncomplete(t *testing.T) {
	t.Parallel()
	set := admission.DefaultLimits()
	set.RequestMemory = 1 << 20
	r := startRemote(t, Options{Limits: set})
	c := r.raw(t, r.issue(t, "eve", "reader"))
	small := c.call(reflectionMethod)
	var incomplete []uint32
	refused := func() bool { n, _ := c.howEnded(incomplete...); return n > 0 }
	for sent := 0; sent < 4096; {
		stream := c.call(statusMethod)
		incomplete = append(incomplete, stream)
		c.send(stream, head(127<<20))
		for range 256 {
			c.send(stream, make([]byte, 512))
			c.send(small, append(head(3), "\x1a\x01x"...)) // a file that there is not
			sent++
		}
		eventually(t, "the small ones are answered", func() bool {
			c.mu.Lock()
			got := c.got[small]
			c.mu.Unlock()
			return got >= sent || refused()
		})
	}
	eventually(t, "the others are refused", refused)
	for _, stream := range incomplete {
		if err := c.framer.WriteRSTStream(stream, http2.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.framer.WriteRSTStream(small, http2.ErrCodeCancel); err != nil {
		t.Fatal(err)
	}
	r.nothingCounted(t)
}

// TestManyConnectionsOfOne: it is the client that has sent most who is refused, however
// many connections it has, and not one that sends more on its only one.
func TestManyConnectionsOfOne(t *testing.T) {
	t.Parallel()
	set := admission.DefaultLimits()
	set.RequestMemory = 4 << 20
	r := startRemote(t, Options{Limits: set})
	eve := r.issue(t, "eve", "reader")
	var conns []*rawClient
	var streams []uint32
	for range 10 {
		c := r.raw(t, eve)
		conns = append(conns, c)
		streams = append(streams, c.call(statusMethod))
		c.send(streams[len(streams)-1], append(head(127<<20), make([]byte, 300<<10)...))
	}
	eventually(t, "all has come", func() bool { return r.admission.Usage().RequestBytes > 10*300<<10-1 })
	_, err := api.NewJobServiceClient(r.dial(t, r.issue(t, "alice", "developer"))).RunJob(t.Context(), &api.RunJobRequest{
		Command: "true", Uploads: []*api.FileUpload{{Path: "x", Content: make([]byte, 2<<20)}},
	})
	if status.Code(err) != codes.Internal { // there is no supervisor, so the handler panics
		t.Errorf("the other client: %v", err)
	}
	eventually(t, "calls of the one end", func() bool {
		n := 0
		for i, c := range conns {
			ended, _ := c.howEnded(streams[i])
			n += ended
		}
		return n > 3
	})
}

// TestBusyCalls: calls that have to end because of what they sent do, whatever they are
// about; what they sent is counted until then; and the client learns why.
func TestBusyCalls(t *testing.T) {
	t.Parallel()
	set := admission.DefaultLimits()
	set.RequestMemory = 1 << 20
	const calls, size = 3, 300 << 10
	busy, ended, proceed := make(chan struct{}, calls), make(chan error, calls), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(proceed) })
	r := startRemote(t, Options{Limits: set}, func(s *Server) {
		s.operations = maps.Clone(s.operations)
		s.operations["/joblet.Busy/Type"], s.operations["/joblet.Busy/Flood"] = service.ReadAPI, service.ReadAPI
		s.grpc.RegisterService(&grpc.ServiceDesc{ServiceName: "joblet.Busy", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{{
			StreamName: "Type", ClientStreams: true, ServerStreams: true,
			Handler: func(_ any, call grpc.ServerStream) error {
				if err := call.RecvMsg(&wrapperspb.BytesValue{}); err != nil {
					return err
				}
				busy <- struct{}{}
				<-call.Context().Done() // as one that writes to a job that does not read
				ended <- context.Cause(call.Context())
				<-proceed
				return errors.New("the job is gone")
			},
		}, {
			StreamName: "Flood", ClientStreams: true, ServerStreams: true,
			Handler: func(_ any, call grpc.ServerStream) error {
				if err := call.RecvMsg(&wrapperspb.BytesValue{}); err != nil {
					return err
				}
				for { // until the client's window is full, and then for ever
					if err := call.SendMsg(&wrapperspb.BytesValue{Value: make([]byte, 64<<10)}); err != nil {
						return err
					}
				}
			},
		}}}, struct{}{})
	})
	conn := r.dial(t, r.admin)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	open := func(method string, client bool) grpc.ClientStream {
		t.Helper()
		s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: client, ServerStreams: true}, method)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	defer goOn()
	var streams []grpc.ClientStream
	for range calls {
		s := open("/joblet.Busy/Type", true)
		streams = append(streams, s)
		if err := s.SendMsg(&wrapperspb.BytesValue{Value: make([]byte, size)}); err != nil {
			t.Fatal(err)
		}
		<-busy
	}
	if err := streams[0].SendMsg(&wrapperspb.BytesValue{Value: make([]byte, size)}); err != nil { // it is not read
		t.Fatal(err)
	}
	select {
	case cause := <-ended:
		if cause != admission.ErrTooMuch {
			t.Errorf("ended by %v", cause)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("none is told to end")
	}
	eventually(t, "all has come", func() bool { return r.admission.Usage().RequestBytes > (calls+1)*size })
	if use := r.admission.Usage(); use.Leaving < size || use.Leaving > size+1<<10 {
		t.Errorf("counted: %+v", use)
	}
	goOn()
	for i, s := range slices.Backward(streams) {
		err := s.RecvMsg(&wrapperspb.BytesValue{})
		if refused := status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "request-memory"); refused != (i == calls-1) {
			t.Errorf("call %d: %v", i, err) // the newest one had to go
		}
		cancel() // the others
	}
	r.nothingCounted(t)

	// A call that waits for its client to read is refused when an older one sends more.
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	older := open("/joblet.Busy/Type", true)
	if err := older.SendMsg(&wrapperspb.BytesValue{Value: make([]byte, size)}); err != nil {
		t.Fatal(err)
	}
	<-busy
	flood := open("/joblet.Busy/Flood", true)
	if err := flood.SendMsg(&wrapperspb.BytesValue{}); err != nil {
		t.Fatal(err)
	}
	if err := flood.RecvMsg(&wrapperspb.BytesValue{}); err != nil {
		t.Fatal(err)
	}
	if err := flood.SendMsg(&wrapperspb.BytesValue{Value: make([]byte, size)}); err != nil { // it is not read
		t.Fatal(err)
	}
	eventually(t, "both are counted", func() bool { return r.admission.Usage().RequestBytes > 2*size })
	if err := older.SendMsg(&wrapperspb.BytesValue{Value: make([]byte, 2*size)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the newer one is cut", func() bool { use := r.admission.Usage(); return use.Calls == 1 && use.Leaving == 0 })
	cancel()
	r.nothingCounted(t)
}

// TestManyFields: a message of many empty parts that is too much is refused.
func TestManyFields(t *testing.T) {
	t.Parallel()
	set := admission.DefaultLimits()
	set.RequestMemory = 16 << 20
	r := startRemote(t, Options{Limits: set})
	conn := r.dial(t, r.issue(t, "eve", "developer"))
	request := &api.RunJobRequest{Uploads: slices.Repeat([]*api.FileUpload{{}}, 1<<20)} // 2 MiB
	if _, err := api.NewJobServiceClient(conn).RunJob(t.Context(), request); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "request-memory") {
		t.Errorf("a stream: %v", err)
	}
	if err := conn.Invoke(t.Context(), statusMethod, request, &emptypb.Empty{}); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "request-memory") {
		t.Errorf("a call that is none: %v", err)
	}
	r.nothingCounted(t)
}
