package logstore

import (
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxPiece bounds one splice and thus one record. It is what a pipe may
	// hold by default at most (fs.pipe-max-size).
	maxPiece = 1 << 20
	// copySize is the size of the buffer for a source or a file system that
	// cannot splice.
	copySize = 64 << 10
	minSlack = 64 << 10
	// maxRecord bounds what one record speaks of, below what its length can say.
	maxRecord = 1 << 30
	// minFreed is the least for which Shrink gives up output.
	minFreed = 4 * blockSize
)

// ErrNoHoles is what Create returns when a size limit or MayShrink is asked for
// and the file system cannot give back the beginning of a file
// (FALLOC_FL_PUNCH_HOLE). Nothing is created or changed; the caller decides
// whether to do without.
var ErrNoHoles = errors.New("cannot limit the size of a log: the file system does not support punching holes")

// ErrEnded is what a Writer returns for output after End.
var ErrEnded = errors.New("the log has ended")

// Options of a Writer.
type Options struct {
	// MaxBytes limits the log to the newest MaxBytes bytes; 0 means no limit.
	// At times up to a sixteenth more, at least 64 KiB, is kept. The index is
	// limited to as much again: it needs 32 bytes for a piece of output, so of
	// a job that writes in smaller pieces less is kept.
	MaxBytes int64
	// MayShrink makes a log of which Shrink can drop the older half.
	MayShrink bool
	// Append continues the log that exists, whatever its former Writer and a
	// crash have left of it; without one, a log is created. A log that was
	// created with neither MaxBytes nor MayShrink stays without both: its readers
	// rely on its beginning.
	Append bool
}

// Writer appends to a log. It is for one goroutine, and the only one of its log
// at a time. The caller should have SIGXFSZ ignored, should the process have a
// limit on file sizes.
//
// An error of Drain, Append or End leaves the Writer usable. When the disk is
// full (ENOSPC, EDQUOT), the caller waits and calls again: nothing that was
// taken is lost, and what was not taken waits in the pipe, whose writer then
// waits as well.
type Writer struct {
	log, idx int
	hdr      header
	max      int64
	slack    int64

	size    int64 // of log
	records int64 // whole ones in idx
	last    int64 // time of the newest record

	// What a call could not finish, in the order in which settle does.
	trim    bool   // hdr is not written, or what is before its start not given back
	pending record // its data is in log; no length: none
	held    []byte // read from a source that cannot splice, not yet in log
	heldBy  record // stream and time of held

	punchedLog, punchedIdx int64 // where the holes end; the index keeps its first block

	copies             bool // splice does not work here
	ended              bool
	dirtyLog, dirtyIdx bool
	buf                []byte
	raw                [recordSize]byte
}

// Create creates an empty log in the directory that dirfd stands for. It is an
// error if there is one already (EEXIST), unless opt has Append. The error is
// ErrVersion for a log to continue that a newer Joblet wrote.
func Create(dirfd int, opt Options) (_ *Writer, err error) {
	if opt.MaxBytes < 0 {
		return nil, &opError{"create log with a negative limit", unix.EINVAL}
	}
	w := &Writer{log: -1, idx: -1, max: opt.MaxBytes, slack: max(opt.MaxBytes/16, minSlack), punchedIdx: blockSize}
	var newLog, newIdx bool
	defer func() {
		if err == nil {
			return
		}
		_ = w.Close()
		if newIdx {
			_ = unix.Unlinkat(dirfd, IndexName, 0)
		}
		if newLog {
			_ = unix.Unlinkat(dirfd, LogName, 0)
		}
	}()
	if w.log, newLog, err = create(dirfd, LogName, opt.Append); err != nil {
		return nil, err
	}
	capped := opt.MaxBytes > 0 || opt.MayShrink
	if capped {
		if err := w.probeHoles(); err != nil {
			return nil, err
		}
	}
	if w.idx, newIdx, err = create(dirfd, IndexName, opt.Append); err != nil {
		return nil, err
	}
	if err := w.adopt(capped); err != nil {
		return nil, err
	}
	return w, nil
}

// create creates a file, or opens the one there is if that is wanted as well.
func create(dirfd int, name string, exists bool) (fd int, created bool, err error) {
	// Not O_APPEND: splice(2) refuses to write to such a file.
	const flags = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	for {
		fd, err = unix.Openat(dirfd, name, flags|unix.O_CREAT|unix.O_EXCL, 0o600)
		if err == nil {
			return fd, true, nil
		}
		if err == unix.EEXIST && exists {
			if fd, err = unix.Openat(dirfd, name, flags, 0); err == nil {
				break
			}
		}
		if err != unix.EINTR {
			return -1, false, &opError{"create " + name, err}
		}
	}
	st, err := stat(fd, name)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = &opError{"open " + name, unix.EINVAL}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, false, err
	}
	return fd, false, nil
}

// probeHoles makes a hole where nothing is.
func (w *Writer) probeHoles() error {
	st, err := stat(w.log, LogName)
	if err != nil {
		return err
	}
	err = punch(w.log, (st.Size+blockSize-1)&^(blockSize-1), blockSize)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return ErrNoHoles
	}
	return err
}

// adopt continues with the files as they are: empty, or left by a former Writer
// that may have been killed at any moment, also by a crash of the host.
func (w *Writer) adopt(capped bool) error {
	log, err := stat(w.log, LogName)
	if err != nil {
		return err
	}
	idx, err := stat(w.idx, IndexName)
	if err != nil {
		return err
	}
	w.size = log.Size
	// Records keep their numbers, which readers hold on to, also those behind a
	// header that is lost. A last one that is there by half is written over.
	w.records = max(idx.Size-headerSize, 0) / recordSize

	var b [headerSize]byte
	if _, err := pread(w.idx, b[:], 0); err != nil {
		return &opError{"read log index header", err}
	}
	hdr, err := decodeHeader(&b)
	switch err {
	case nil:
		w.hdr = hdr
	case ErrVersion:
		return &opError{"read log index header", err}
	default:
		w.hdr = header{start: dataStart(w.log, w.size)}
		if capped || w.hdr.start > 0 {
			w.hdr.flags = flagCapped
		}
	}
	w.hdr.start, w.hdr.first = min(w.hdr.start, w.size), min(w.hdr.first, w.records)
	if err != nil || w.hdr != hdr {
		if err := w.writeHeader(); err != nil {
			return err
		}
	}
	if w.hdr.flags&flagCapped == 0 {
		w.max = 0
	} else {
		w.trim = w.hdr.start > 0 || w.hdr.first > 0 // the former Writer may not have come to it
	}
	if err := w.adoptRecords(time.Unix(0, log.Mtim.Nano())); err != nil {
		return err
	}
	_ = w.settle() // a disk that is full now may have room later: the next call tells
	return nil
}

// adoptRecords finds out what the newest records speak of, and takes what is in
// log behind it, written last at mtime, for Stdout's.
func (w *Writer) adoptRecords(mtime time.Time) error {
	end := w.hdr.start
	for n := w.records - 1; n >= w.hdr.first; n-- {
		r, ok, err := w.record(n)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		w.last = max(w.last, r.time)
		if r.end() <= w.size {
			end = max(end, r.end())
			break
		}
		// A crash of the host has lost what it speaks of, or a part: it must not
		// come to speak of what is written next. Its number stays.
		if r.length = w.size - r.offset; r.length > 0 {
			end = w.size
			r.encode(&w.raw)
		} else {
			clear(w.raw[:])
		}
		if err := writeFull(w.idx, w.raw[:], recordPos(n)); err != nil {
			return &opError{"write log index", err}
		}
		w.dirtyIdx = true
		if r.length > 0 {
			break
		}
	}
	if w.size > end {
		if now := time.Now(); mtime.After(now) {
			mtime = now
		}
		w.pending = record{offset: end, length: w.size - end, stream: Stdout, kind: kindData, time: w.clock(mtime)}
		w.dirtyLog = true
	}
	return nil
}

// Size returns how many bytes of output the log has taken, those included that
// the limit has removed since.
func (w *Writer) Size() int64 { return w.size }

// Drain moves what fd holds now, most bytes and 1 MiB of it at most, to the log and
// returns how much that was: n is 0 without an error when there is nothing now, and the
// error is io.EOF at fd's end. now is the time of the bytes.
//
// fd is best the read end of a pipe, whose bytes then go to the file without
// passing through this process (splice(2)). That is not faster than copying,
// but no byte is ever in neither place: the process may be killed and the disk
// be full at any moment. fd may also be another descriptor, non-blocking then,
// such as the master of a pseudo-terminal, whose EIO after hang-up counts as
// the end. n > 0 may come with an error.
func (w *Writer) Drain(fd int, s Stream, most int, now time.Time) (n int, err error) {
	if err := w.settle(); err != nil {
		return 0, err
	}
	if w.copies {
		return w.drainCopy(fd, s, most, now)
	}
	for {
		off := w.size
		n, err := unix.Splice(fd, nil, w.log, &off, min(most, maxPiece), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		switch {
		case n > 0:
			return int(n), w.took(n, s, now)
		case err == nil:
			return 0, io.EOF
		case err == unix.EAGAIN:
			return 0, nil
		case err == unix.EINVAL:
			// Neither end is a pipe, or the file system has no splice_write.
			w.copies = true
			return w.drainCopy(fd, s, most, now)
		case err != unix.EINTR:
			return 0, &opError{"splice to log", err}
		}
	}
}

func (w *Writer) drainCopy(fd int, s Stream, most int, now time.Time) (int, error) {
	if w.buf == nil {
		w.buf = make([]byte, copySize)
	}
	for {
		n, err := unix.Read(fd, w.buf[:min(most, copySize)])
		switch {
		case n > 0:
			w.held, w.heldBy = w.buf[:n], record{stream: s, time: now.UnixNano()}
			return n, w.settle()
		case err == nil, err == unix.EIO:
			return 0, io.EOF
		case err == unix.EAGAIN:
			return 0, nil
		case err != unix.EINTR:
			return 0, &opError{"read output", err}
		}
	}
}

// Append adds p to the log and returns how many bytes of it were taken: fewer
// than len(p) only with an error.
func (w *Writer) Append(p []byte, s Stream, now time.Time) (n int, err error) {
	if err := w.settle(); err != nil {
		return 0, err
	}
	for len(p) > 0 {
		k, err := w.write(p, s, now)
		n += k
		p = p[k:]
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// write puts a first part of p into the log, with a record.
func (w *Writer) write(p []byte, s Stream, now time.Time) (int, error) {
	n, err := pwrite(w.log, p[:min(len(p), maxPiece)], w.size)
	if n == 0 {
		if err == nil {
			err = unix.EIO // a write of nothing without a reason
		}
		return 0, &opError{"write log", err}
	}
	return n, w.took(int64(n), s, now)
}

// took accounts for n bytes that are in log at w.size now, and publishes them.
func (w *Writer) took(n int64, s Stream, now time.Time) error {
	w.pending = record{offset: w.size, length: n, stream: s, kind: kindData, time: w.clock(now)}
	w.size += n
	w.dirtyLog = true
	if err := w.publish(); err != nil {
		return err
	}
	return w.limit()
}

// clock keeps the times in the index in order, so that it can be searched by
// time even though the host's clock may be set back.
func (w *Writer) clock(now time.Time) int64 {
	w.last = max(w.last, now.UnixNano())
	return w.last
}

// settle finishes what an earlier call could not.
func (w *Writer) settle() error {
	if w.ended {
		return ErrEnded
	}
	if w.trim { // first: the rest may need the room
		if err := w.giveBack(); err != nil {
			return err
		}
	}
	if w.pending.length > 0 {
		if err := w.publish(); err != nil {
			return err
		}
		if err := w.limit(); err != nil {
			return err
		}
	}
	for len(w.held) > 0 {
		n, err := w.write(w.held, w.heldBy.stream, time.Unix(0, w.heldBy.time))
		w.held = w.held[n:]
		if err != nil {
			return err
		}
	}
	return nil
}

// publish appends the pending record to the index. A record that went in by
// half is written again at the same place.
func (w *Writer) publish() error {
	for w.pending.length > 0 {
		r := w.pending
		r.length = min(r.length, maxRecord)
		if err := w.putRecord(r); err != nil {
			return err
		}
		w.pending.offset += r.length
		w.pending.length -= r.length
	}
	return nil
}

func (w *Writer) putRecord(r record) error {
	r.encode(&w.raw)
	if err := writeFull(w.idx, w.raw[:], recordPos(w.records)); err != nil {
		return &opError{"write log index", err}
	}
	w.records++
	w.dirtyIdx = true
	return nil
}

func (w *Writer) writeHeader() error {
	var b [headerSize]byte
	w.hdr.encode(&b)
	if err := writeFull(w.idx, b[:], 0); err != nil {
		return &opError{"write log index header", err}
	}
	w.dirtyIdx = true
	return nil
}

func writeFull(fd int, p []byte, off int64) error {
	n, err := pwrite(fd, p, off)
	if err == nil && n < len(p) {
		err = unix.ENOSPC // what cuts a write to a regular file short
	}
	return err
}

// limit removes the oldest bytes when there are too many.
func (w *Writer) limit() error {
	if w.max == 0 {
		return nil
	}
	hdr := w.hdr
	if w.size-hdr.start > w.max+w.slack {
		hdr.start = max(hdr.start, (w.size-w.max)&^(blockSize-1))
		first, err := w.find(hdr.start)
		if err != nil {
			return err
		}
		hdr.first = first
	}
	if (w.records-hdr.first)*recordSize > w.max+w.slack {
		hdr.first = w.records - max(w.max/recordSize, 1)
		for ; hdr.first < w.records; hdr.first++ {
			r, ok, err := w.record(hdr.first)
			if err != nil {
				return err
			}
			if ok {
				hdr.start = max(hdr.start, min(r.offset, w.size))
				break
			}
		}
	}
	if hdr == w.hdr {
		return nil
	}
	w.hdr, w.trim = hdr, true
	return w.giveBack()
}

// Shrink drops the older half of what is kept, so that a disk that is full has
// room for the newest output: after ENOSPC or EDQUOT, the caller calls again
// what gave it. freed is false when little would be gained (less than 16 KiB),
// or the log was created with neither MayShrink nor MaxBytes: then there is
// nothing but to wait. After an error, it may be called again.
func (w *Writer) Shrink() (freed bool, err error) {
	if w.ended || w.hdr.flags&flagCapped == 0 {
		return false, nil
	}
	if !w.trim {
		hdr := w.hdr
		half := hdr.start + (w.size-hdr.start)/2
		hdr.start = max(hdr.start, half&^(blockSize-1))
		if hdr.start == w.hdr.start {
			hdr.start = half // of little output, the index may be large
		}
		if hdr.first, err = w.find(hdr.start); err != nil {
			return false, err
		}
		log := hdr.start&^(blockSize-1) - w.punchedLog
		idx := recordPos(hdr.first)&^(blockSize-1) - w.punchedIdx
		if max(log, 0)+max(idx, 0) < minFreed {
			return false, nil
		}
		w.hdr, w.trim = hdr, true
	}
	err = w.giveBack()
	return err == nil, err
}

// giveBack removes what is before hdr's start. It publishes that first, so that
// a reader that finds zeros can learn that they are none of the job's.
func (w *Writer) giveBack() error {
	if err := w.writeHeader(); err != nil { // in place: it needs no room
		return err
	}
	if err := punchTo(w.log, &w.punchedLog, w.hdr.start&^(blockSize-1)); err != nil {
		return err
	}
	if err := punchTo(w.idx, &w.punchedIdx, recordPos(w.hdr.first)&^(blockSize-1)); err != nil {
		return err
	}
	w.trim = false
	return nil
}

// punchTo makes a hole from *from to to and moves *from there.
func punchTo(fd int, from *int64, to int64) error {
	if to <= *from {
		return nil
	}
	if err := punch(fd, *from, to-*from); err != nil {
		return err
	}
	*from = to
	return nil
}

func punch(fd int, off, n int64) error {
	for {
		err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return &opError{"punch hole into log", err}
		}
	}
}

// find returns the number of the record that covers offset, or of an earlier one
// when records are damaged.
func (w *Writer) find(offset int64) (int64, error) {
	lo, hi := w.hdr.first, w.records // the answer is in [lo, hi), if there are any
	for hi-lo > 1 {
		mid := lo + (hi-lo)/2
		r, ok, err := w.record(mid)
		if err != nil {
			return 0, err
		}
		if ok && r.offset <= offset {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo, nil
}

// record returns record number n. It is not ok if a crash has damaged it.
func (w *Writer) record(n int64) (r record, ok bool, err error) {
	k, err := pread(w.idx, w.raw[:], recordPos(n))
	if err != nil {
		return record{}, false, &opError{"read log index", err}
	}
	r, ok = decodeRecord(w.raw[:k])
	return r, ok, nil
}

// End marks the log as complete, until another Writer appends to it. It may be called again: after an error to try
// again, after success to no effect.
func (w *Writer) End(now time.Time) error {
	if w.ended {
		return nil
	}
	if err := w.settle(); err != nil {
		return err
	}
	if err := w.putRecord(record{offset: w.size, kind: kindEnd, time: w.clock(now)}); err != nil {
		return err
	}
	w.ended = true
	return nil
}

// Dirty reports whether Sync has something to do.
func (w *Writer) Dirty() bool { return w.dirtyLog || w.dirtyIdx }

// Sync makes what the log has taken survive a crash of the host: the data
// first, so that no record speaks of bytes that are not there.
func (w *Writer) Sync() error {
	if w.dirtyLog {
		if err := unix.Fdatasync(w.log); err != nil {
			return &opError{"sync log", err}
		}
		w.dirtyLog = false
	}
	if w.dirtyIdx {
		if err := unix.Fdatasync(w.idx); err != nil {
			return &opError{"sync log index", err}
		}
		w.dirtyIdx = false
	}
	return nil
}

// Close closes the files and no more: a log that is complete was given End
// before, and Sync if it is to be safe. Nothing else may be called after it.
func (w *Writer) Close() error {
	var err error
	for _, fd := range []*int{&w.log, &w.idx} {
		if *fd >= 0 {
			if e := unix.Close(*fd); e != nil && err == nil {
				err = &opError{"close log", e}
			}
			*fd = -1
		}
	}
	return err
}
