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
)

// ErrNoHoles is what Create returns when a size limit is asked for and the file
// system cannot give back the beginning of a file (FALLOC_FL_PUNCH_HOLE).
// Nothing is created; the caller decides whether to do without the limit.
var ErrNoHoles = errors.New("file system cannot punch holes: a log's size cannot be limited")

// ErrEnded is what a Writer returns for output after End.
var ErrEnded = errors.New("log has ended")

// Options of a Writer.
type Options struct {
	// MaxBytes limits the log to the newest MaxBytes bytes; 0 means no limit.
	// At times up to a sixteenth more, at least 64 KiB, is kept. The index is
	// limited to as much again: it needs 32 bytes for a piece of output, so of
	// a job that writes in smaller pieces less is kept.
	MaxBytes int64
}

// Writer appends to a log. It is for one goroutine. The caller should have
// SIGXFSZ ignored, should the process have a limit on file sizes.
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
	pending record // its data is in log; no length: none
	held    []byte // read from a source that cannot splice, not yet in log
	heldBy  record // stream and time of held
	trim    bool   // the limit is passed

	punchedLog, punchedIdx int64 // where the holes end; the index keeps its first block

	copies             bool // splice does not work here
	ended              bool
	dirtyLog, dirtyIdx bool
	buf                []byte
	raw                [recordSize]byte
}

// Create creates an empty log in the directory that dirfd stands for. It is an
// error if there is one already (EEXIST).
func Create(dirfd int, opt Options) (_ *Writer, err error) {
	if opt.MaxBytes < 0 {
		return nil, &opError{"create log with a negative limit", unix.EINVAL}
	}
	w := &Writer{log: -1, idx: -1, max: opt.MaxBytes, slack: max(opt.MaxBytes/16, minSlack), punchedIdx: blockSize}
	if w.log, err = create(dirfd, LogName); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = w.Close()
			_ = unix.Unlinkat(dirfd, LogName, 0)
		}
	}()
	if w.max > 0 {
		w.hdr.flags |= flagCapped
		if err := punch(w.log, 0, blockSize); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
				return nil, ErrNoHoles
			}
			return nil, err
		}
	}
	if w.idx, err = create(dirfd, IndexName); err != nil {
		return nil, err
	}
	if err := w.writeHeader(); err != nil {
		_ = unix.Unlinkat(dirfd, IndexName, 0)
		return nil, err
	}
	return w, nil
}

func create(dirfd int, name string) (int, error) {
	// Not O_APPEND: splice(2) refuses to write to such a file.
	const flags = unix.O_RDWR | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	for {
		fd, err := unix.Openat(dirfd, name, flags, 0o600)
		switch err {
		case nil:
			return fd, nil
		case unix.EINTR:
		default:
			return -1, &opError{"create " + name, err}
		}
	}
}

// Size returns how many bytes of output the log has taken, those included that
// the limit has removed since.
func (w *Writer) Size() int64 { return w.size }

// Drain moves what fd holds now, at most 1 MiB of it, to the log and returns
// how much that was: n is 0 without an error when there is nothing now, and the
// error is io.EOF at fd's end. now is the time of the bytes.
//
// fd is best the read end of a pipe, whose bytes then go to the file without
// passing through this process (splice(2)). That is not faster than copying,
// but no byte is ever in neither place: the process may be killed and the disk
// be full at any moment. fd may also be another descriptor, non-blocking then,
// such as the master of a pseudo-terminal, whose EIO after hang-up counts as
// the end. n > 0 may come with an error.
func (w *Writer) Drain(fd int, s Stream, now time.Time) (n int, err error) {
	if err := w.settle(); err != nil {
		return 0, err
	}
	if w.copies {
		return w.drainCopy(fd, s, now)
	}
	for {
		off := w.size
		n, err := unix.Splice(fd, nil, w.log, &off, maxPiece, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
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
			return w.drainCopy(fd, s, now)
		case err != unix.EINTR:
			return 0, &opError{"splice to log", err}
		}
	}
}

func (w *Writer) drainCopy(fd int, s Stream, now time.Time) (int, error) {
	if w.buf == nil {
		w.buf = make([]byte, copySize)
	}
	for {
		n, err := unix.Read(fd, w.buf)
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
	if w.pending.length > 0 {
		if err := w.publish(); err != nil {
			return err
		}
	}
	if w.trim {
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
	if err := w.putRecord(w.pending); err != nil {
		return err
	}
	w.pending = record{}
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

// limit removes the oldest bytes when there are too many: it publishes the new
// start first, so that a reader that finds zeros can learn that they are none
// of the job's.
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
		r, err := w.record(hdr.first)
		if err != nil {
			return err
		}
		hdr.start = max(hdr.start, r.offset)
	}
	if hdr == w.hdr && !w.trim {
		return nil
	}
	w.trim = true // until all of it is done
	w.hdr = hdr
	if err := w.writeHeader(); err != nil {
		return err
	}
	if err := punchTo(w.log, &w.punchedLog, hdr.start&^(blockSize-1)); err != nil {
		return err
	}
	if err := punchTo(w.idx, &w.punchedIdx, recordPos(hdr.first)&^(blockSize-1)); err != nil {
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

// find returns the number of the record that covers offset, which the log has.
func (w *Writer) find(offset int64) (int64, error) {
	lo, hi := w.hdr.first, w.records // the answer is in [lo, hi)
	for hi-lo > 1 {
		mid := lo + (hi-lo)/2
		r, err := w.record(mid)
		if err != nil {
			return 0, err
		}
		if r.offset <= offset {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo, nil
}

func (w *Writer) record(n int64) (record, error) {
	k, err := pread(w.idx, w.raw[:], recordPos(n))
	if err != nil {
		return record{}, &opError{"read log index", err}
	}
	r, ok := decodeRecord(w.raw[:k])
	if !ok {
		return record{}, &opError{"read log index", unix.EUCLEAN}
	}
	return r, nil
}

// End marks the log as complete. It may be called again: after an error to try
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
