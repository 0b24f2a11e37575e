package server

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

// sender is a connection whose frames are looked at when gRPC reads them, which it
// does one by one: so the last headers are those of the call that begins. Those that
// gRPC writes are looked at for how much of what the client allows is used up.
type sender struct {
	net.Conn
	in      *bufio.Reader
	intake  *intake    // nil: what is sent is not counted
	replies *responses // what goes out is

	// Of what is read.
	skip   int // bytes of a frame, which do not matter
	head   [frameHeadSize]byte
	have   int    // of head
	stream uint32 // whose headers were the last
	kind   byte   // of a frame whose content matters, of which a part of so many bytes is collected
	part   []byte
	unit   int
	left   int // bytes of it

	// Of what is written.
	outSkip int
	outHead [frameHeadSize]byte
	outHave int

	calls map[uint32]*arrival // by their streams; protected by intake.mu

	// What follows is protected by replies.mu.
	open    map[uint32]*reply // by their streams
	client  *clientReplies    // nil: no call yet
	closed  bool
	initial int64 // the window of a stream at first
	credit  int64 // what may be written on all streams
	backlog int64 // what was made, or may be, and is not written
	held    int64 // what it costs
	waiting []*sending
	writing time.Time     // since when; zero: it does not
	unread  int64         // what was read while it writes
	resume  chan struct{} // closed when more may be read; nil: nobody waits for that
}

func newSender(conn net.Conn, in *intake, out *responses) *sender {
	return &sender{
		Conn: conn, in: bufio.NewReaderSize(conn, readBuffer), intake: in, replies: out, skip: prefaceSize,
		calls: map[uint32]*arrival{}, open: map[uint32]*reply{}, initial: defaultWindow, credit: defaultWindow,
	}
}

func (c *sender) Read(p []byte) (int, error) {
	c.hold()
	n, err := c.in.Read(p)
	c.look(p[:n])
	return n, err
}

// Close implements net.Conn.
func (c *sender) Close() error {
	c.replies.closed(c)
	return c.Conn.Close()
}

// hold waits while the client sends much and takes nothing.
func (c *sender) hold() {
	r := c.replies
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

// came counts what a client sends while it may not read.
func (c *sender) came(n int) {
	c.replies.mu.Lock()
	defer c.replies.mu.Unlock()
	if !c.writing.IsZero() {
		c.unread += int64(n) + unreadCost
	}
}

// look finds the frames in what is read. The padding of one stays counted as long as
// its call: nobody needs any.
func (c *sender) look(p []byte) {
	for len(p) > 0 {
		if c.left > 0 {
			p = c.collect(p)
			continue
		}
		if c.skip > 0 {
			n := min(c.skip, len(p))
			c.skip -= n
			p = p[n:]
			continue
		}
		n := copy(c.head[c.have:], p)
		c.have += n
		p = p[n:]
		if c.have < frameHeadSize {
			return
		}
		c.have = 0
		size, stream := frameOf(&c.head)
		c.skip = size
		if c.head[3] != frameData {
			c.came(size)
		}
		switch c.head[3] {
		case frameHeaders:
			c.stream = stream
		case frameData:
			if c.skip > 0 && c.intake != nil {
				c.intake.took(c, stream, int64(c.skip))
			}
		case frameReset:
			c.replies.reset(c, stream)
		case frameWindow:
			c.kind, c.unit, c.left, c.skip = frameWindow, windowSize, size, 0
		case frameSettings:
			if c.head[4]&flagAck == 0 {
				c.kind, c.unit, c.left, c.skip = frameSettings, settingSize, size, 0
			}
		}
	}
}

func frameOf(head *[frameHeadSize]byte) (size int, stream uint32) {
	return int(head[0])<<16 | int(head[1])<<8 | int(head[2]), binary.BigEndian.Uint32(head[5:]) &^ (1 << 31)
}

// collect takes in the content of a frame that matters, and returns what is behind it.
func (c *sender) collect(p []byte) []byte {
	n := min(c.unit-len(c.part), c.left, len(p))
	c.part = append(c.part, p[:n]...)
	c.left -= n
	if len(c.part) == c.unit {
		switch c.kind {
		case frameWindow:
			_, stream := frameOf(&c.head)
			c.replies.windowed(c, stream, int64(binary.BigEndian.Uint32(c.part)&^(1<<31)))
		case frameSettings:
			if binary.BigEndian.Uint16(c.part) == settingInitialWindow {
				c.replies.initialWindow(c, int64(binary.BigEndian.Uint32(c.part[2:])))
			}
		}
	}
	if len(c.part) == c.unit || c.left == 0 {
		c.part = c.part[:0]
	}
	return p[n:]
}

// Write implements net.Conn. What is handed to it counts as written: a client that has
// seen the end of a call may make the next one.
func (c *sender) Write(p []byte) (int, error) {
	r := c.replies
	r.mu.Lock()
	c.writing = time.Now()
	c.wrote(p)
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

// wrote finds the frames in what is written. replies.mu is held.
func (c *sender) wrote(p []byte) {
	for len(p) > 0 {
		if c.outSkip > 0 {
			n := min(c.outSkip, len(p))
			c.outSkip -= n
			p = p[n:]
			continue
		}
		n := copy(c.outHead[c.outHave:], p)
		c.outHave += n
		p = p[n:]
		if c.outHave < frameHeadSize {
			return
		}
		c.outHave = 0
		size, stream := frameOf(&c.outHead)
		c.outSkip = size
		end := c.outHead[4]&flagEndStream != 0
		switch c.outHead[3] {
		case frameData:
			c.replies.wrote(c, stream, int64(size), end)
		case frameHeaders:
			if end {
				c.replies.wrote(c, stream, 0, true)
			}
		case frameReset:
			c.replies.wrote(c, stream, 0, true)
		}
	}
}
