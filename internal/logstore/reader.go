package logstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxChunk is the most that a Chunk holds, and so what a Reader needs.
	maxChunk = 32 << 10
	// mergeWithin is how far apart in time records may be that make one Chunk:
	// a flood of short lines costs a reader little then.
	mergeWithin = int64(time.Millisecond)

	recordsPerRead = 128

	// untilSlack is how long output that was read before a moment may take to be
	// published.
	untilSlack = 100 * time.Millisecond
)

// errOvertaken says that what r was to read next has been removed by the
// limit: r.off is before r.hdr.start now.
var errOvertaken = errors.New("the log has dropped the data at this offset (log-max)")

// Reader reads a log from a position of its own. It sees what is published at
// the time of each call, and it may be used by one goroutine at a time.
type Reader struct {
	log, idx int

	hdr       header
	haveHdr   bool // hdr was read
	noIndex   bool // the header is damaged: there is no index
	damaged   bool
	notStdout bool
	notStderr bool
	gone      bool  // the writer is
	left      int64 // size of log when it was gone
	atEnd     bool  // the record before next is END
	ended     bool  // and nothing is behind it
	until     time.Time
	untilNs   int64
	done      bool // what is next was read at until or later

	off     int64    // next byte
	next    int64    // next record to read from the index
	records []record // good ones before next
	at      int      // the first of them that is not used up

	gate func(yield func()) (int, error) // see Gate

	win    []byte // of log, from winOff on
	winOff int64
	buf    []byte
	raw    []byte
}

// Open opens the log in a job's directory, at its first byte. It is an error
// (ENOENT) when there is none, and ErrVersion when it is of another kind.
func Open(dir string) (*Reader, error) {
	r := &Reader{log: -1, idx: -1}
	for _, f := range []struct {
		fd   *int
		name string
	}{{&r.log, LogName}, {&r.idx, IndexName}} {
		fd, err := openRegular(dir + "/" + f.name)
		if err != nil {
			_ = r.Close()
			return nil, &opError{"open " + f.name, err}
		}
		*f.fd = fd
	}
	if err := r.loadHeader(); err != nil {
		_ = r.Close()
		return nil, err
	}
	return r, nil
}

func openRegular(path string) (int, error) {
	for {
		// Not blocking, should the path be a pipe.
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			_ = unix.Close(fd)
			return -1, unix.EINVAL
		}
		return fd, nil
	}
}

// Close closes the files.
func (r *Reader) Close() error {
	for _, fd := range []*int{&r.log, &r.idx} {
		if *fd >= 0 {
			_ = unix.Close(*fd) // only read from: there is nothing to lose
			*fd = -1
		}
	}
	r.yield()
	return nil
}

// Gate makes Next call gate before it takes in a piece, which is no longer than gate
// says. gate may wait; it calls yield first, so that a Reader holds no buffer while it
// waits for its consumer.
func (r *Reader) Gate(gate func(yield func()) (size int, err error)) { r.gate = gate }

var buffers = sync.Pool{New: func() any { return new([maxChunk]byte) }}

// yield gives back the memory for pieces. What was in it is read again.
func (r *Reader) yield() {
	if r.buf != nil {
		buffers.Put((*[maxChunk]byte)(r.buf))
	}
	r.win, r.buf, r.raw = nil, nil, nil
}

// IndexFd returns the descriptor of the index, which grows whenever something
// is published. It is the Reader's: it is closed with it.
func (r *Reader) IndexFd() int { return r.idx }

// Only makes Next pass over the other stream.
func (r *Reader) Only(s Stream) { r.notStdout, r.notStderr = s != Stdout, s != Stderr }

func (r *Reader) wants(s Stream) bool {
	if s == Stderr {
		return !r.notStderr
	}
	return !r.notStdout
}

// Until makes Next end before the first piece that was read at t or later; a
// zero t takes that back. It is best called before Tail, which then counts the
// lines before t.
func (r *Reader) Until(t time.Time) { r.until, r.untilNs, r.done = t, nanos(t), false }

// Done reports whether r has read everything up to the time given to Until, after which
// Next always returns io.EOF. It is false while that time is in the future and no later
// output exists.
func (r *Reader) Done() bool { return r.done }

// DoneAt returns when Next will find that r is Done if no output comes; ok is
// false without Until.
func (r *Reader) DoneAt() (t time.Time, ok bool) {
	return r.until.Add(untilSlack), !r.until.IsZero()
}

// beyond reports whether what was read at ns is not wanted.
func (r *Reader) beyond(ns int64) bool { return !r.until.IsZero() && ns >= r.untilNs }

// nanos is t's UnixNano, or the nearest that there is.
func nanos(t time.Time) int64 {
	switch {
	case t.Before(time.Unix(0, math.MinInt64)):
		return math.MinInt64
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	}
	return t.UnixNano()
}

// WriterGone tells r that the log has no writer any more. From then on, bytes without a
// record are part of the output too: bytes behind the last record, or all of them when
// the index is damaged, as Stdout.
func (r *Reader) WriterGone() {
	r.gone, r.left = true, math.MaxInt64
	if st, err := r.stat(); err == nil {
		r.left = st.Size // what comes later, another Writer publishes
	}
}

// Ended reports whether r has reached the end of a log that was closed: after
// it Next returns io.EOF until Resume.
func (r *Reader) Ended() bool { return r.ended }

// Resume makes r go on behind the end that it has reached, for a Writer that
// appends to the log: r has not Ended any more, and its writer is not gone. It
// is needed for an end that was the log's when Next came to it; others are
// passed over.
func (r *Reader) Resume() { r.gone, r.atEnd, r.ended = false, false, false }

// Damaged reports whether r had to do without a part of the index. The output
// is complete nevertheless, but some of it may be in the wrong stream.
func (r *Reader) Damaged() bool { return r.damaged }

// Offset returns the offset of the next byte to be read.
func (r *Reader) Offset() int64 { return r.off }

// Next returns the next piece of output, 32 KiB at most. Its Data is valid
// until the next call. Records of one stream that were read within a
// millisecond may come as one. The error is io.EOF when everything published
// was read: unless Ended or Done, more may come later.
func (r *Reader) Next() (Chunk, error) {
	for {
		if r.done {
			return Chunk{}, io.EOF
		}
		// Read before the log: what is published later is too late.
		late := false
		if at, ok := r.DoneAt(); ok {
			late = !time.Now().Before(at)
		}
		if gap := r.hdr.start - r.off; gap > 0 {
			r.off = r.hdr.start
			return Chunk{Offset: r.off, Dropped: gap}, nil
		}
		p, err := r.piece()
		if err == errOvertaken {
			continue
		}
		if err != nil {
			r.done = r.done || err == io.EOF && late
			return Chunk{}, err
		}
		if !r.wants(p.stream) {
			r.off = p.end()
			continue
		}
		if r.gate != nil {
			size, err := r.gate(r.yield)
			if err != nil {
				return Chunk{}, err
			}
			p.length = min(p.length, int64(size))
		}
		data, err := r.data(p)
		if err == errOvertaken {
			continue
		}
		if err != nil {
			return Chunk{}, err
		}
		c := Chunk{Offset: r.off, Stream: p.stream, Time: time.Unix(0, p.time), Data: data}
		r.off += int64(len(data))
		return c, nil
	}
}

// piece returns the origin of the bytes from r.off on, as far as one Chunk goes.
func (r *Reader) piece() (record, error) {
	for {
		if r.ended {
			return record{}, io.EOF
		}
		if r.at == len(r.records) {
			if err := r.fill(); err != nil {
				return record{}, err
			}
			if r.at == len(r.records) {
				return r.unpublished()
			}
		}
		rec := r.records[r.at]
		switch {
		case r.beyond(rec.time):
			r.done = true
			return record{}, io.EOF
		case rec.offset > r.off:
			// What is between was described by a record that is damaged.
			r.damaged = true
			return record{offset: r.off, length: rec.offset - r.off, stream: Stdout, time: rec.time}, nil
		case rec.end() <= r.off:
			r.pass(rec)
		default:
			return r.merged(rec), nil
		}
	}
}

// pass leaves rec, the next record, behind.
func (r *Reader) pass(rec record) {
	r.atEnd = rec.kind == kindEnd
	r.at++
}

// merged returns the rest of rec from r.off on, with the records after it that
// belong to it.
func (r *Reader) merged(rec record) record {
	p := record{offset: r.off, length: rec.end() - r.off, stream: rec.stream, time: rec.time}
	for _, next := range r.records[r.at+1:] {
		if p.length >= maxChunk || next.kind != kindData || next.stream != p.stream || next.offset != p.end() ||
			next.time-p.time > mergeWithin || next.time < p.time || r.beyond(next.time) {
			break
		}
		p.length += next.length
	}
	return p
}

// unpublished returns what is behind the last record once the writer is gone.
func (r *Reader) unpublished() (record, error) {
	if !r.gone && !r.atEnd {
		return record{}, io.EOF
	}
	st, err := r.stat()
	if err != nil {
		return record{}, err
	}
	switch size := min(st.Size, r.left); {
	case r.atEnd && st.Size <= r.off:
		r.ended = true
	case !r.gone || size <= r.off:
	case r.beyond(st.Mtim.Nano()):
		r.done = true
	default:
		r.atEnd = false
		return record{offset: r.off, length: size - r.off, stream: Stdout, time: st.Mtim.Nano()}, nil
	}
	return record{}, io.EOF
}

// fill reads records until there is a good one or no more.
func (r *Reader) fill() error {
	r.records, r.at = r.records[:0], 0
	if !r.haveHdr {
		if err := r.loadHeader(); err != nil || !r.haveHdr {
			return err
		}
	}
	if r.raw == nil {
		r.raw = make([]byte, recordsPerRead*recordSize)
	}
	for len(r.records) == 0 {
		n, err := pread(r.idx, r.raw, recordPos(r.next))
		if err != nil {
			return &opError{"read log index", err}
		}
		n /= recordSize
		if n == 0 {
			return nil
		}
		// After the records: their data was there before them. And the header:
		// what lies in a hole by now is before its start.
		size, err := r.reload()
		if err != nil {
			return err
		}
		if skip := r.hdr.first - r.next; skip > 0 {
			r.next = r.hdr.first
			if r.off < r.hdr.start {
				return errOvertaken
			}
			continue
		}
		for i := range n {
			rec, ok := decodeRecord(r.raw[i*recordSize : (i+1)*recordSize])
			// An end behind the end of the log: a crash has truncated the log.
			cut := rec.kind == kindEnd && rec.offset > size
			ok = ok && fits(&rec, size)
			r.damaged = r.damaged || cut || !ok
			if !ok {
				continue
			}
			r.records = append(r.records, rec)
		}
		r.next += int64(n)
	}
	return nil
}

// fits reports whether rec can be true of a log of this size, and cuts what is
// not there.
func fits(rec *record, size int64) bool {
	if rec.kind == kindEnd {
		rec.offset = min(rec.offset, size)
		return true
	}
	rec.length = min(rec.length, size-rec.offset)
	return rec.length > 0
}

// data returns a first part of p's bytes.
func (r *Reader) data(p record) ([]byte, error) {
	if r.off < r.winOff || r.off >= r.winOff+int64(len(r.win)) {
		if r.buf == nil {
			r.buf = buffers.Get().(*[maxChunk]byte)[:]
		}
		// As much as is known to be published: short pieces of both streams
		// then take one read.
		end := p.end()
		for _, rec := range r.records[r.at:] {
			end = max(end, rec.end())
		}
		n, err := pread(r.log, r.buf[:min(end-r.off, maxChunk)], r.off)
		if err != nil {
			return nil, &opError{"read log", err}
		}
		if n == 0 {
			return nil, &opError{"read log", io.ErrUnexpectedEOF} // it was truncated meanwhile
		}
		r.win, r.winOff = r.buf[:n], r.off
		if _, err := r.reload(); err != nil {
			return nil, err
		}
		if r.off < r.hdr.start {
			return nil, errOvertaken
		}
	}
	w := r.win[r.off-r.winOff:]
	return w[:min(int64(len(w)), p.length)], nil
}

// reload looks at what a writer may have changed: it returns the size of log,
// and learns the new start of a log with a limit.
func (r *Reader) reload() (size int64, err error) {
	if r.hdr.flags&flagCapped != 0 {
		if err := r.loadHeader(); err != nil {
			return 0, err
		}
	}
	return sizeOf(r.log, LogName)
}

func (r *Reader) stat() (unix.Stat_t, error) { return stat(r.log, LogName) }

// loadHeader reads the header. There is none for a moment in a new log, and none
// that a crash has lost until a Writer that appends makes a new one: without it
// there are no records.
func (r *Reader) loadHeader() error {
	var b [headerSize]byte
	for try := 0; ; try++ {
		n, err := pread(r.idx, b[:], 0)
		if err != nil {
			return &opError{"read log index header", err}
		}
		hdr, err := decodeHeader(&b)
		switch {
		case n < headerSize && !r.haveHdr && !r.gone:
			return nil
		case n == headerSize && err == nil:
			size, err := sizeOf(r.log, LogName)
			if err != nil {
				return err
			}
			hdr.start = min(hdr.start, size)
			r.hdr, r.haveHdr, r.noIndex = hdr, true, false
			return nil
		case n == headerSize && err == ErrVersion:
			return &opError{"read log index header", err}
		case n < headerSize || r.noIndex || try == 20 || !torn(&b):
			st, err := r.stat()
			if err != nil {
				return err
			}
			r.damaged, r.noIndex, r.haveHdr = true, true, false
			r.hdr = header{start: dataStart(r.log, st.Size)}
			return nil
		}
		// A read of a file is not atomic against a write: this may be half of
		// the old header and half of the new one.
		time.Sleep(time.Millisecond)
	}
}

// From moves r to the byte at offset. A byte that the limit has removed is
// reported as dropped by Next; one that is not there yet may be waited for.
func (r *Reader) From(offset int64) error {
	if offset < 0 {
		return &opError{"seek in log to a negative offset", unix.EINVAL}
	}
	n, err := r.search(func(rec record) bool { return rec.offset > offset })
	if err != nil {
		return err
	}
	r.moveTo(offset, n-1)
	return nil
}

// Since moves r to the first piece that was read at t or later.
func (r *Reader) Since(t time.Time) error {
	ns := nanos(t)
	n, err := r.search(func(rec record) bool { return rec.time >= ns })
	if err != nil {
		return err
	}
	r.moveTo(r.hdr.start, n-1)
	for {
		if r.at == len(r.records) {
			switch err := r.fill(); {
			case err == errOvertaken:
				r.off = r.hdr.start
				continue
			case err != nil || r.at == len(r.records):
				return err
			}
		}
		rec := r.records[r.at]
		if rec.time >= ns {
			r.off = max(r.off, rec.offset)
			return nil
		}
		r.off = max(r.off, rec.end())
		r.pass(rec)
	}
}

// Tail moves r to the last so many lines of what is published, counted in the
// stream that Only chose or in both as they arrived. An unfinished last line
// counts as one.
func (r *Reader) Tail(ctx context.Context, lines int64) error {
	n, size, err := r.count()
	if err != nil {
		return err
	}
	t := tail{r: r, ctx: ctx, left: lines, last: true, pos: -1}
	if r.gone {
		t.pos = min(size, r.left)
	}
	if !r.until.IsZero() {
		k, err := r.search(func(rec record) bool { return r.beyond(rec.time) })
		if err != nil {
			return err
		}
		if k < n {
			n, t.pos = k, -1
		}
	}
	newest := true
	raw := make([]byte, recordsPerRead*recordSize)
	for n > r.hdr.first && t.left >= 0 && (t.pos < 0 || t.pos > r.hdr.start) {
		from := max(r.hdr.first, n-recordsPerRead)
		k, err := pread(r.idx, raw[:(n-from)*recordSize], recordPos(from))
		if err != nil {
			return &opError{"read log index", err}
		}
		for i := k/recordSize - 1; i >= 0; i-- {
			rec, ok := decodeRecord(raw[i*recordSize : (i+1)*recordSize])
			if !ok || !fits(&rec, size) {
				continue
			}
			if newest {
				t.pos, newest = max(t.pos, rec.end()), false
			}
			if err := t.back(rec.end(), Stdout); err != nil { // not described by a record
				return err
			}
			if err := t.back(rec.offset, rec.stream); err != nil {
				return err
			}
		}
		n = from
	}
	if err := t.back(r.hdr.start, Stdout); err != nil {
		return err
	}
	return r.From(max(t.pos, r.hdr.start))
}

// tail walks back from the end of a log and counts lines.
type tail struct {
	r    *Reader
	ctx  context.Context
	pos  int64 // where the walk has come to; -1: not begun
	left int64 // lines to go; -1: done
	last bool  // no byte was seen yet
}

// back walks to offset to, over bytes of stream s.
func (t *tail) back(to int64, s Stream) error {
	r := t.r
	to = max(to, r.hdr.start)
	if t.left == 0 {
		t.left = -1
	}
	if to < t.pos && t.left >= 0 && !r.wants(s) {
		t.pos = to
	}
	r.win = nil
	if r.buf == nil {
		r.buf = buffers.Get().(*[maxChunk]byte)[:]
	}
	for to < t.pos && t.left >= 0 {
		if err := context.Cause(t.ctx); err != nil {
			return err
		}
		from := max(to, t.pos-maxChunk)
		n, err := pread(r.log, r.buf[:t.pos-from], from)
		if err != nil {
			return &opError{"read log", err}
		}
		b := r.buf[:n]
		if t.last && n > 0 && b[n-1] == '\n' {
			b = b[:n-1] // it ends the last line and begins none
		}
		t.last = t.last && n == 0
		for t.left >= 0 {
			i := bytes.LastIndexByte(b, '\n')
			if i < 0 {
				break
			}
			b = b[:i]
			if t.left--; t.left == 0 {
				t.pos, t.left = from+int64(i)+1, -1
				return nil
			}
		}
		t.pos = from
	}
	return nil
}

// moveTo continues at offset off, described by record n or a later one.
func (r *Reader) moveTo(off, n int64) {
	r.off, r.next = off, max(n, r.hdr.first)
	r.records, r.at = r.records[:0], 0
	r.atEnd, r.ended, r.done = false, false, false
}

// count returns how many records the index has and the size of log.
func (r *Reader) count() (n, size int64, err error) {
	if err := r.loadHeader(); err != nil {
		return 0, 0, err
	}
	idx, err := stat(r.idx, IndexName)
	if err != nil {
		return 0, 0, err
	}
	log, err := r.stat()
	if err != nil {
		return 0, 0, err
	}
	if r.haveHdr {
		n = max(idx.Size-headerSize, 0) / recordSize
	}
	return n, log.Size, nil
}

// search returns the number of the first record that is beyond, given that all
// after it are as well. A damaged record counts as beyond: too early a result
// costs time, too late a one would lose streams and times.
func (r *Reader) search(beyond func(record) bool) (int64, error) {
	n, _, err := r.count()
	if err != nil {
		return 0, err
	}
	lo, hi := r.hdr.first, max(n, r.hdr.first)
	var b [recordSize]byte
	for lo < hi {
		mid := lo + (hi-lo)/2
		k, err := pread(r.idx, b[:], recordPos(mid))
		if err != nil {
			return 0, &opError{"read log index", err}
		}
		if rec, ok := decodeRecord(b[:k]); !ok || beyond(rec) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo, nil
}

// Info is what Stat learns.
type Info struct {
	Size  int64     // bytes of output, those included that the limit has removed
	Start int64     // the first byte still kept
	Ended bool      // the log was closed: Size is final, unless another Writer appends
	Last  time.Time // of the newest record; zero without one
	// Published is where the output of the newest record ends: Size is less when
	// the log was truncated by others than its writer.
	Published int64
}

// Stat looks at the log in a job's directory without reading it.
func Stat(dir string) (Info, error) {
	r, err := Open(dir)
	if err != nil {
		return Info{}, err
	}
	defer r.Close()
	n, size, err := r.count()
	if err != nil {
		return Info{}, err
	}
	info := Info{Size: size, Start: r.hdr.start}
	if n > r.hdr.first {
		var b [recordSize]byte
		k, err := pread(r.idx, b[:], recordPos(n-1))
		if err != nil {
			return Info{}, &opError{"read log index", err}
		}
		rec, ok := decodeRecord(b[:k])
		if ok {
			info.Published = rec.end()
		}
		if ok && fits(&rec, size) {
			info.Ended, info.Last = rec.kind == kindEnd && rec.offset == size, time.Unix(0, rec.time)
		}
	}
	return info, nil
}
