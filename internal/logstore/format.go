package logstore

import (
	"encoding/binary"
	"errors"
	"math"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The names of a log's two files in the job's directory.
const (
	LogName   = "log"
	IndexName = "log.idx"
)

// The index is one header and then records, all little-endian. A record never
// straddles a page, so a reader sees it whole or not at all.
//
//	header  magic [8], version u32, flags u32, start u64, first u64, 0…, checksum u32
//	record  offset u64, time i64, length u32, stream u8, kind u8, 0…, checksum u32
const (
	headerSize = 64
	recordSize = 32
	version    = 1

	flagCapped = 1 << 0 // start and first may grow

	kindData = 1
	kindEnd  = 2 // a Writer has closed the log; offset was its size. What follows is another's

	// blockSize is the unit in which space is given back: file systems free
	// whole blocks of (mostly) this size.
	blockSize = 4096
)

const magic = "JOBLTLOG"

// ErrVersion says that an index was written by a newer Joblet.
var ErrVersion = errors.New("the log index has an unknown version")

// errDamaged says that a header is not one. It does not leave the package: a
// Reader does without the header.
var errDamaged = errors.New("the header of the log index is damaged")

type header struct {
	flags uint32
	start int64 // first byte of log still kept
	first int64 // number of the first record still kept: the one that covers start
}

type record struct {
	offset int64
	time   int64 // ns since 1970
	length int64
	stream Stream
	kind   uint8
}

func (r record) end() int64 { return r.offset + r.length }

// recordPos returns where record number n stands in the index.
func recordPos(n int64) int64 { return headerSize + n*recordSize }

func (h header) encode(b *[headerSize]byte) {
	clear(b[:])
	copy(b[:], magic)
	binary.LittleEndian.PutUint32(b[8:], version)
	binary.LittleEndian.PutUint32(b[12:], h.flags)
	binary.LittleEndian.PutUint64(b[16:], uint64(h.start))
	binary.LittleEndian.PutUint64(b[24:], uint64(h.first))
	seal(b[:])
}

func decodeHeader(b *[headerSize]byte) (header, error) {
	if string(b[:len(magic)]) != magic || !sealed(b[:]) {
		return header{}, errDamaged
	}
	if binary.LittleEndian.Uint32(b[8:]) != version {
		return header{}, ErrVersion
	}
	start, first := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	if start > math.MaxInt64 || first > math.MaxInt64/recordSize-headerSize {
		return header{}, errDamaged
	}
	return header{binary.LittleEndian.Uint32(b[12:]), int64(start), int64(first)}, nil
}

// torn reports whether b may be a header that its writer is just writing again.
// What it looks at for that never changes.
func torn(b *[headerSize]byte) bool {
	return !sealed(b[:]) && string(b[:len(magic)]) == magic && binary.LittleEndian.Uint32(b[12:])&flagCapped != 0
}

func (r record) encode(b *[recordSize]byte) {
	clear(b[:])
	binary.LittleEndian.PutUint64(b[0:], uint64(r.offset))
	binary.LittleEndian.PutUint64(b[8:], uint64(r.time))
	binary.LittleEndian.PutUint32(b[16:], uint32(r.length))
	b[20] = byte(r.stream)
	b[21] = r.kind
	seal(b[:])
}

// decodeRecord returns ok only for a record that a Writer can have written.
func decodeRecord(b []byte) (r record, ok bool) {
	if len(b) != recordSize || !sealed(b) {
		return record{}, false
	}
	offset := binary.LittleEndian.Uint64(b[0:])
	r = record{
		offset: int64(offset),
		time:   int64(binary.LittleEndian.Uint64(b[8:])),
		length: int64(binary.LittleEndian.Uint32(b[16:])),
		stream: Stream(b[20]),
		kind:   b[21],
	}
	if offset > math.MaxInt64-math.MaxUint32 {
		return record{}, false
	}
	switch r.kind {
	case kindData:
		return r, r.length > 0 && (r.stream == Stdout || r.stream == Stderr)
	case kindEnd:
		return r, r.length == 0
	}
	return record{}, false
}

// seal puts a checksum into the last four bytes of b: FNV-1a, whose value for
// zeros, which a crash of the host may leave, is not zero.
func seal(b []byte) { binary.LittleEndian.PutUint32(b[len(b)-4:], sum(b[:len(b)-4])) }

func sealed(b []byte) bool {
	return binary.LittleEndian.Uint32(b[len(b)-4:]) == sum(b[:len(b)-4])
}

func sum(b []byte) uint32 {
	h := uint32(2166136261)
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}

// opError is an os.SyscallError without package os, which costs a shim
// start-up time.
type opError struct {
	op  string
	err error
}

func (e *opError) Error() string { return e.op + ": " + e.err.Error() }
func (e *opError) Unwrap() error { return e.err }

// pread reads up to len(p) bytes; fewer are before the end of the file.
func pread(fd int, p []byte, off int64) (int, error) {
	n, all := preadCached(fd, p, off)
	if all {
		return n, nil
	}
	for {
		k, err := unix.Pread(fd, p[n:], off+int64(n))
		if err != unix.EINTR {
			return n + max(k, 0), err
		}
	}
}

// preadCached reads what is available without waiting for a disk: all of it, or a first
// part. The Go scheduler need not be told of such a read, which would wake threads of
// an idle daemon for each followed line (package rawio).
func preadCached(fd int, p []byte, off int64) (n int, all bool) {
	for n < len(p) {
		iov := unix.Iovec{Base: &p[n]}
		iov.SetLen(len(p) - n)
		k, _, errno := syscall.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off)+uintptr(n), 0, unix.RWF_NOWAIT)
		if errno != 0 { // EAGAIN, or EOPNOTSUPP of a file system that can't tell
			return n, false
		}
		if k == 0 {
			break
		}
		n += int(k)
	}
	return n, true
}

// sizeOf returns the size of a file, without waiting either: not for a server.
func sizeOf(fd int, name string) (int64, error) {
	var st unix.Statx_t
	_, _, errno := syscall.RawSyscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(&[1]byte{})),
		unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_SIZE, uintptr(unsafe.Pointer(&st)), 0)
	if errno != 0 {
		return 0, &opError{"stat " + name, errno}
	}
	return int64(st.Size), nil
}

func pwrite(fd int, p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pwrite(fd, p, off)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

func stat(fd int, name string) (st unix.Stat_t, err error) {
	for {
		switch err := unix.Fstat(fd, &st); err {
		case nil:
			return st, nil
		case unix.EINTR:
		default:
			return st, &opError{"stat " + name, err}
		}
	}
}

// dataStart returns where a log of this size begins when its header is lost: a
// hole in the beginning is what was removed.
func dataStart(fd int, size int64) int64 {
	for {
		off, err := unix.Seek(fd, 0, unix.SEEK_DATA)
		switch err {
		case nil:
			return min(off, size)
		case unix.ENXIO: // nothing but a hole
			return size
		case unix.EINTR:
		default:
			return 0 // the file system has no holes
		}
	}
}
