package admission

import (
	"bufio"
	"encoding/binary"
	"net"
	"time"
)

// Of HTTP/2, RFC 9113.
const (
	prefaceSize   = 24
	frameHeadSize = 9

	frameData     = 0x0
	frameHeaders  = 0x1
	frameReset    = 0x3
	frameSettings = 0x4
	frameWindow   = 0x8

	flagEndStream = 0x1 // of data and headers
	flagAck       = 0x1 // of settings

	settingInitialWindow = 0x4
	settingSize          = 6
	windowSize           = 4

	defaultWindow = 1<<16 - 1
)

// readBuffer is as large as gRPC's own, in place of which it is.
const readBuffer = 32 << 10

// Of a connection whose client does not read, no more frames than these are taken in:
// most of them have an answer, and a call that begins takes memory.
const (
	maxUnread  = 256 << 10
	unreadCost = 512 // of a frame, beside what it brings

	// unreadPerByte is how much of them is done with when a byte is written.
	unreadPerByte = 8
)

// Conn is a connection whose frames are looked at when gRPC reads them, which it
// does one by one: so the last headers are those of the call that begins. Those that
// gRPC writes are looked at for how much of what the client allows is used up.
type Conn struct {
	net.Conn
	in        *bufio.Reader
	requests  *requestBudget  // nil: what is sent is not counted
	responses *responseBudget // what goes out is

	read, written frameScanner
	stream        uint32 // whose headers were read last

	calls map[uint32]*Request // by their streams; protected by requestBudget.mu

	// What follows is protected by responseBudget.mu.
	open    map[uint32]*Response // by their streams
	client  *clientResponses     // nil: no call yet
	closed  bool
	initial int64 // the window of a stream at first
	credit  int64 // what may be written on all streams
	backlog int64 // what was made, or may be, and is not written
	held    int64 // what it costs
	waiting []*sending
	writing time.Time     // since when; zero: it does not
	unread  int64         // what was read while it writes
	resume  chan struct{} // closed when more may be read; nil: no reader waits
}

func newConn(conn net.Conn, in *requestBudget, out *responseBudget) *Conn {
	return &Conn{
		Conn: conn, in: bufio.NewReaderSize(conn, readBuffer), requests: in, responses: out, read: frameScanner{skip: prefaceSize},
		calls: map[uint32]*Request{}, open: map[uint32]*Response{}, initial: defaultWindow, credit: defaultWindow,
	}
}

func (c *Conn) Read(p []byte) (int, error) {
	c.hold()
	n, err := c.in.Read(p)
	c.read.scan(p[:n], c.received, c.receivedUnit)
	return n, err
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.responses.closed(c)
	return c.Conn.Close()
}

// hold waits while the client sends much and takes nothing.
func (c *Conn) hold() {
	r := c.responses
	r.mu.Lock()
	for !c.writing.IsZero() && c.unread > maxUnread && !c.closed {
		if c.resume == nil {
			c.resume = make(chan struct{})
		}
		resume := c.resume
		r.mu.Unlock()
		<-resume
		r.mu.Lock()
	}
	if c.writing.IsZero() {
		c.unread = 0
	}
	r.mu.Unlock()
}

// countUnread counts what a client sends while it does not read.
func (c *Conn) countUnread(n int) {
	c.responses.mu.Lock()
	defer c.responses.mu.Unlock()
	if !c.writing.IsZero() {
		c.unread += int64(n) + unreadCost
	}
}

// received counts a frame that the client sends, and reports of how many bytes the
// units of its payload are, if they matter. The padding of data counts as long as its
// call.
func (c *Conn) received(f frameHead) (unit int) {
	if f.kind != frameData {
		c.countUnread(f.size)
	}
	switch f.kind {
	case frameHeaders:
		c.stream = f.stream
	case frameData:
		if f.size > 0 && c.requests != nil {
			c.requests.received(c, f.stream, int64(f.size))
		}
	case frameReset:
		c.responses.reset(c, f.stream)
	case frameWindow:
		return windowSize
	case frameSettings:
		if f.flags&flagAck == 0 {
			return settingSize
		}
	}
	return 0
}

// receivedUnit takes in a unit of a payload that matters: a window, or a setting.
func (c *Conn) receivedUnit(f frameHead, unit []byte) {
	switch f.kind {
	case frameWindow:
		c.responses.windowed(c, f.stream, int64(binary.BigEndian.Uint32(unit)&^(1<<31)))
	case frameSettings:
		if binary.BigEndian.Uint16(unit) == settingInitialWindow {
			c.responses.initialWindow(c, int64(binary.BigEndian.Uint32(unit[2:])))
		}
	}
}

// Write implements net.Conn. What is handed to it counts as written: a client that has
// seen the end of a call may make the next one.
func (c *Conn) Write(p []byte) (int, error) {
	r := c.responses
	r.mu.Lock()
	c.writing = time.Now()
	c.written.scan(p, c.sent, nil)
	r.next(c)
	r.mu.Unlock()
	n, err := c.Conn.Write(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	c.writing = time.Time{}
	if c.unread = max(0, c.unread-unreadPerByte*int64(n)); c.resume != nil {
		close(c.resume)
		c.resume = nil
	}
	return n, err
}

// sent counts a frame that is written. responseBudget.mu is held.
func (c *Conn) sent(f frameHead) (unit int) {
	end := f.flags&flagEndStream != 0
	switch f.kind {
	case frameData:
		c.responses.wrote(c, f.stream, int64(f.size), end)
	case frameHeaders:
		if end {
			c.responses.wrote(c, f.stream, 0, true)
		}
	case frameReset:
		c.responses.wrote(c, f.stream, 0, true)
	}
	return 0
}

// frameHead is what precedes the payload of a frame.
type frameHead struct {
	size        int // of the payload, in bytes
	kind, flags byte
	stream      uint32
}

// frameScanner finds the frames in a stream of bytes that comes in pieces of any size.
type frameScanner struct {
	skip int // bytes of a payload that do not matter
	raw  [frameHeadSize]byte
	have int // bytes of raw

	head frameHead // of the payload that matters
	unit int       // bytes of one of its units
	left int       // bytes of the payload that have not come yet
	part []byte    // of a unit
}

// scan calls frame with the head of each frame. If that returns the size of a unit, unit
// is called with each of these in the payload; it may be nil if frame returns 0 always.
func (s *frameScanner) scan(p []byte, frame func(frameHead) int, unit func(frameHead, []byte)) {
	for len(p) > 0 {
		switch {
		case s.left > 0:
			n := min(s.unit-len(s.part), s.left, len(p))
			s.part = append(s.part, p[:n]...)
			s.left -= n
			p = p[n:]
			if len(s.part) == s.unit {
				unit(s.head, s.part)
			}
			if len(s.part) == s.unit || s.left == 0 {
				s.part = s.part[:0]
			}
		case s.skip > 0:
			n := min(s.skip, len(p))
			s.skip -= n
			p = p[n:]
		default:
			n := copy(s.raw[s.have:], p)
			s.have += n
			p = p[n:]
			if s.have < frameHeadSize {
				return
			}
			s.have = 0
			h := frameHead{
				size: int(s.raw[0])<<16 | int(s.raw[1])<<8 | int(s.raw[2]), kind: s.raw[3], flags: s.raw[4],
				stream: binary.BigEndian.Uint32(s.raw[5:]) &^ (1 << 31),
			}
			if s.unit = frame(h); s.unit > 0 {
				s.head, s.left = h, h.size
			} else {
				s.skip = h.size
			}
		}
	}
}
