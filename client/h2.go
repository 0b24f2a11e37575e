package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/wire"
)

// This file is gRPC over HTTP/2 for one call at a time on a connection, with a
// pool of connections in place of multiplexing. Why not grpc-go: it takes a
// process 6 ms of CPU time to load it and to make its first call, more than a
// whole job costs. What is spoken is RFC 9113 and gRPC's PROTOCOL-HTTP2.md;
// what a joblet daemon's server never does (push, compressed messages) is an
// error.

const (
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

	frameHeaderLen = 9
	maxFrame       = 16384 // SETTINGS_MAX_FRAME_SIZE that we leave at its default, both ways
	maxHeaderBlock = 256 << 10
	defaultWindow  = 65535

	frameData         = 0x0
	frameHeaders      = 0x1
	frameRSTStream    = 0x3
	frameSettings     = 0x4
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9

	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20

	settingEnablePush        = 0x2
	settingInitialWindowSize = 0x4

	// maxCalls is after how many calls a connection is given up: stream numbers
	// are 31 bits.
	maxCalls = 1 << 30

	// trusted is for how long an unused connection is taken for alive; after it
	// a ping asks.
	trusted = time.Second
	maxIdle = 16 // connections kept
)

// pool holds connections that no call uses.
type pool struct {
	dial func(context.Context) (net.Conn, error)

	mu     sync.Mutex // protects what follows
	closed bool
	idle   []*conn
}

// get returns a connection for one call.
func (p *pool) get(ctx context.Context) (*conn, error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, joblet.Errorf(joblet.FailedPrecondition, "the client is closed")
		}
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			break
		}
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if time.Since(c.used) < trusted || c.ping() == nil {
			return c, nil
		}
		c.net.Close()
	}
	nc, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	return newConn(nc), nil
}

func (p *pool) put(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle) == maxIdle {
		c.net.Close()
		return
	}
	c.used = time.Now()
	p.idle = append(p.idle, c)
}

func (p *pool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	for _, c := range p.idle {
		errs = append(errs, c.net.Close())
	}
	p.idle = nil
	return errors.Join(errs...)
}

// conn is one connection. One goroutine uses it at a time.
type conn struct {
	net    net.Conn
	in     *bufio.Reader
	out    []byte // frames to be written with the next flush
	used   time.Time
	header [frameHeaderLen]byte
	hpack  *hpack.Decoder
	fields []hpack.HeaderField // of the block being decoded

	stream      uint32 // of the call under way, or of the last one
	goingAway   bool   // no more calls
	sendWindow  int64  // what the server takes on the connection
	firstWindow int64  // with which it begins each stream
	unacked     int64  // received and not yet given back to the server's window
}

func newConn(nc net.Conn) *conn {
	c := &conn{
		net: nc, in: bufio.NewReaderSize(nc, 2*(maxFrame+frameHeaderLen)),
		sendWindow: defaultWindow, firstWindow: defaultWindow,
	}
	c.hpack = hpack.NewDecoder(4096, func(f hpack.HeaderField) { c.fields = append(c.fields, f) })
	c.hpack.SetMaxStringLength(maxHeaderBlock)
	c.out = append(c.out, preface...)
	c.frame(frameSettings, 0, 0, 12)
	c.out = binary.BigEndian.AppendUint16(c.out, settingEnablePush)
	c.out = binary.BigEndian.AppendUint32(c.out, 0)
	c.out = binary.BigEndian.AppendUint16(c.out, settingInitialWindowSize)
	c.out = binary.BigEndian.AppendUint32(c.out, window)
	c.windowUpdate(0, window-defaultWindow)
	return c
}

// frame begins a frame; its n bytes are appended next.
func (c *conn) frame(kind, flags byte, stream uint32, n int) {
	c.out = append(c.out, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	c.out = binary.BigEndian.AppendUint32(c.out, stream)
}

func (c *conn) windowUpdate(stream uint32, n int64) {
	c.frame(frameWindowUpdate, 0, stream, 4)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(n))
}

func (c *conn) flush() error {
	_, err := c.net.Write(c.out)
	c.out = c.out[:0]
	return err
}

// ping asks whether the server is still there.
func (c *conn) ping() error {
	if err := c.net.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	c.frame(framePing, 0, 0, 8)
	c.out = append(c.out, "joblet??"...)
	for err := c.flush(); ; {
		if err != nil {
			return err
		}
		var f frame
		f, err = c.read()
		if err == nil && f.kind == framePing && f.flags&flagAck != 0 {
			if c.goingAway {
				return net.ErrClosed
			}
			return c.net.SetDeadline(time.Time{})
		}
	}
}

type frame struct {
	kind, flags byte
	stream      uint32
	body        []byte // valid until the next read
}

// read returns the next frame. It deals with those that are about the
// connection.
func (c *conn) read() (frame, error) {
	if _, err := io.ReadFull(c.in, c.header[:]); err != nil {
		return frame{}, err
	}
	n := int(c.header[0])<<16 | int(c.header[1])<<8 | int(c.header[2])
	f := frame{kind: c.header[3], flags: c.header[4], stream: binary.BigEndian.Uint32(c.header[5:]) &^ (1 << 31)}
	if n > maxFrame {
		return f, fmt.Errorf("HTTP/2 frame of %d bytes", n)
	}
	// The reader's buffer holds two frames: Peek does not fail for lack of room.
	body, err := c.in.Peek(n)
	if err != nil {
		return f, err
	}
	f.body = body
	if _, err := c.in.Discard(n); err != nil { // what Peek returned stays until the next read
		return f, err
	}
	switch {
	case f.kind == frameSettings && f.flags&flagAck == 0:
		for s := f.body; len(s) >= 6; s = s[6:] {
			if binary.BigEndian.Uint16(s) == settingInitialWindowSize {
				c.firstWindow = int64(binary.BigEndian.Uint32(s[2:]))
			}
		}
		c.frame(frameSettings, flagAck, 0, 0)
		return f, c.flush()
	case f.kind == framePing && f.flags&flagAck == 0 && n == 8:
		c.frame(framePing, flagAck, 0, 8)
		c.out = append(c.out, f.body...)
		return f, c.flush()
	case f.kind == frameGoAway && n >= 8:
		c.goingAway = true
		if last := binary.BigEndian.Uint32(f.body) &^ (1 << 31); c.stream > last {
			return f, errors.New("the daemon takes no more calls")
		}
	case f.kind == frameWindowUpdate && f.stream == 0 && n == 4:
		c.sendWindow += int64(binary.BigEndian.Uint32(f.body) &^ (1 << 31))
	case f.kind == frameData:
		// Given back as soon as half is used up, whether the call still wants it or not.
		if c.unacked += int64(n); c.unacked >= window/2 {
			c.windowUpdate(0, c.unacked)
			c.unacked = 0
			return f, c.flush()
		}
	}
	return f, nil
}

// call is one call on a connection.
type call struct {
	ctx     context.Context
	pool    *pool
	conn    *conn
	release func() bool // stops ctx from breaking the connection

	window  int64 // what the server takes on the stream
	unacked int64
	half    bytes.Buffer // received and not yet returned
	handed  int          // bytes at its start that next has returned
	block   []byte       // header block so far
	ended   bool         // the server has sent its last frame
	status  error        // once ended; nil: OK
}

// begin makes a call with its one request, which is at most maxMessage long.
func (p *pool) begin(ctx context.Context, method string, request []byte) (*call, error) {
	if len(request) > maxMessage {
		return nil, joblet.Errorf(joblet.InvalidArgument, "the request is %d bytes long: at most %d are possible", len(request), maxMessage)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := p.get(ctx)
	if err != nil {
		return nil, err
	}
	if c.stream == 0 {
		c.stream = 1
	} else {
		c.stream += 2
	}
	// A canceled call breaks its connection, by which the server knows.
	k := &call{ctx: ctx, pool: p, conn: c, window: c.firstWindow}
	k.release = context.AfterFunc(ctx, func() { _ = c.net.SetDeadline(time.Unix(1, 0)) })
	if err := k.send(method, request); err != nil {
		return nil, k.fail(err)
	}
	return k, nil
}

func (k *call) send(method string, request []byte) error {
	c := k.conn
	var block []byte
	for _, h := range [...][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "joblet"},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"user-agent", "joblet/" + joblet.Build().Version},
	} {
		// A literal field without indexing, without Huffman code: RFC 7541, 6.2.2.
		block = append(block, 0)
		for _, s := range h {
			block = append(block, byte(len(s))) // all are shorter than 127 bytes
			block = append(block, s...)
		}
	}
	c.frame(frameHeaders, flagEndHeaders, c.stream, len(block))
	c.out = append(c.out, block...)

	prefix := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request))) // not compressed
	for rest := append(prefix, request...); ; {
		n := min(len(rest), maxFrame, int(min(k.window, c.sendWindow)))
		if n <= 0 && !k.ended {
			if err := c.flush(); err != nil {
				return err
			}
			if err := k.receive(); err != nil {
				return err
			}
			continue
		}
		if k.ended { // refused before it was all sent
			return c.flush()
		}
		flags := byte(0)
		if n == len(rest) {
			flags = flagEndStream
		}
		c.frame(frameData, flags, c.stream, n)
		c.out = append(c.out, rest[:n]...)
		k.window -= int64(n)
		c.sendWindow -= int64(n)
		if rest = rest[n:]; len(rest) == 0 {
			return c.flush()
		}
	}
}

// next returns the next message, valid until the next call, or io.EOF after
// the last, or how the call failed.
func (k *call) next() ([]byte, error) {
	for {
		k.half.Next(k.handed)
		k.handed = 0
		if b := k.half.Bytes(); len(b) >= 5 {
			n := binary.BigEndian.Uint32(b[1:])
			if b[0] != 0 || n > maxMessage {
				return nil, k.fail(fmt.Errorf("gRPC message with flags %d and %d bytes", b[0], n))
			}
			if len(b)-5 >= int(n) {
				k.handed = 5 + int(n)
				return b[5 : 5+n], nil
			}
		}
		if k.ended {
			if k.status == nil && k.half.Len() > 0 {
				return nil, k.fail(io.ErrUnexpectedEOF)
			}
			k.finish()
			if k.status == nil {
				return nil, io.EOF
			}
			return nil, k.status
		}
		if err := k.receive(); err != nil {
			return nil, k.fail(err)
		}
	}
}

// receive deals with the next frame.
func (k *call) receive() error {
	c := k.conn
	before := c.firstWindow
	f, err := c.read()
	if err != nil {
		return err
	}
	k.window += c.firstWindow - before // a new setting changes streams that are open (RFC 9113, 6.9.2)
	if f.stream != c.stream {
		return nil
	}
	body := f.body
	if f.kind == frameData || f.kind == frameHeaders {
		if body, err = unpad(f); err != nil {
			return err
		}
	}
	switch f.kind {
	case frameData:
		k.half.Write(body)
		if k.unacked += int64(len(f.body)); k.unacked >= window/2 && f.flags&flagEndStream == 0 {
			c.windowUpdate(c.stream, k.unacked)
			k.unacked = 0
			if err := c.flush(); err != nil {
				return err
			}
		}
		if f.flags&flagEndStream != 0 {
			return errors.New("gRPC call that ended without a status")
		}
	case frameHeaders, frameContinuation:
		if f.kind == frameHeaders {
			k.block = k.block[:0]
			k.ended = f.flags&flagEndStream != 0
		}
		if k.block = append(k.block, body...); len(k.block) > maxHeaderBlock {
			return fmt.Errorf("HTTP/2 header block of more than %d bytes", maxHeaderBlock)
		}
		if f.flags&flagEndHeaders == 0 {
			if len(body) == 0 { // each frame must bring the end nearer
				return errors.New("empty part of an HTTP/2 header block")
			}
			return k.receive()
		}
		return k.headers()
	case frameRSTStream:
		k.ended = true
		k.status = joblet.Errorf(joblet.Unavailable, "the daemon cut the call")
	case frameWindowUpdate:
		if len(body) == 4 {
			k.window += int64(binary.BigEndian.Uint32(body) &^ (1 << 31))
		}
	}
	return nil
}

func unpad(f frame) ([]byte, error) {
	body, pad := f.body, 0
	if f.flags&flagPadded != 0 && len(body) > 0 {
		pad, body = int(body[0]), body[1:]
	}
	if f.kind == frameHeaders && f.flags&flagPriority != 0 && len(body) >= 5 {
		body = body[5:]
	}
	if pad > len(body) {
		return nil, errors.New("HTTP/2 frame with more padding than bytes")
	}
	return body[:len(body)-pad], nil
}

// headers reads a header block: the answer's, or the trailers that hold the
// status.
func (k *call) headers() error {
	c := k.conn
	c.fields = c.fields[:0]
	if _, err := c.hpack.Write(k.block); err != nil {
		return err
	}
	if err := c.hpack.Close(); err != nil {
		return err
	}
	code, message, details := -1, "", []byte(nil)
	for _, f := range c.fields {
		var err error
		switch f.Name {
		case ":status":
			if f.Value != "200" {
				err = fmt.Errorf("HTTP status %.20q", f.Value)
			}
		case "grpc-status":
			code, err = strconv.Atoi(f.Value)
		case "grpc-message":
			if message, err = url.PathUnescape(f.Value); err != nil {
				message, err = f.Value, nil
			}
		case "grpc-status-details-bin":
			details, err = base64.RawStdEncoding.DecodeString(f.Value)
		}
		if err != nil {
			return fmt.Errorf("gRPC header %s: %w", f.Name, err)
		}
	}
	if !k.ended {
		return nil
	}
	if code < 0 {
		return errors.New("gRPC call that ended without a status")
	}
	k.status = wire.ErrorFromStatus(uint32(code), message, details)
	return nil
}

// fail ends the call because of err, and the connection with it.
func (k *call) fail(err error) error {
	k.release()
	k.conn.net.Close()
	k.conn = nil
	if ctxErr := k.ctx.Err(); ctxErr != nil {
		return ctxErr
	}
	if _, ok := errors.AsType[*joblet.Error](err); ok {
		return err
	}
	return joblet.Errorf(joblet.Unavailable, "connection to the daemon: %w", err)
}

// finish gives the connection back; one whose call has not ended it breaks.
// Calling it again does nothing.
func (k *call) finish() {
	c := k.conn
	if c == nil {
		return
	}
	k.conn = nil
	if !k.release() || !k.ended || c.goingAway || c.stream > maxCalls {
		c.net.Close()
		return
	}
	k.pool.put(c)
}
