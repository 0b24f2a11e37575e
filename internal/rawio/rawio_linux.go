// Package rawio makes the system calls on the way of a key to its echo without
// telling Go's scheduler.
//
// To tell it is there for calls that block. When a process that was idle makes
// one, the runtime wakes a thread to watch over it (sysmon), which then looks for
// work in vain every 20 µs: with a shell in a terminal that was a fifth of the
// time from key to echo, over all the processes in between. What is here does
// not block: the descriptors are non-blocking, or the call says that it is not
// to wait for a disk. Waiting is left to Go's poller.
package rawio

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read is read(2).
func Read(fd int, p []byte) (int, error) { return call(unix.SYS_READ, fd, p) }

// Write is write(2).
func Write(fd int, p []byte) (int, error) { return call(unix.SYS_WRITE, fd, p) }

func call(trap uintptr, fd int, p []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// Termios returns the modes of a terminal.
func Termios(fd int) (t unix.Termios, err error) {
	if _, _, errno := syscall.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.TCGETS, uintptr(unsafe.Pointer(&t))); errno != 0 {
		return t, errno
	}
	return t, nil
}

// File is a descriptor for which Go's poller waits.
type File struct {
	raw         syscall.RawConn
	read, write transfer
}

// transfer is one direction of a File. Its try is made once, for a closure
// would be allocated for each call.
type transfer struct {
	mu  sync.Mutex // held during a call
	p   []byte
	n   int
	err error
	try func(fd uintptr) (done bool)
}

// NewFile returns a File of f, which stays what is to be closed.
func NewFile(f syscall.Conn) (*File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &File{raw: raw}
	r.read.try = func(fd uintptr) bool {
		t := &r.read
		t.n, t.err = Read(int(fd), t.p)
		return t.err != unix.EAGAIN
	}
	r.write.try = func(fd uintptr) bool {
		t := &r.write
		for t.n < len(t.p) {
			n, err := Write(int(fd), t.p[t.n:])
			if t.n += n; err != nil {
				t.err = err
				return err != unix.EAGAIN
			}
		}
		t.err = nil
		return true
	}
	return r, nil
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	n, err := f.read.run("read", f.raw.Read, p)
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return n, err
}

// Write implements io.Writer.
func (f *File) Write(p []byte) (int, error) { return f.write.run("write", f.raw.Write, p) }

func (t *transfer) run(name string, wait func(func(uintptr) bool) error, p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.p, t.n, t.err = p, 0, nil
	err := wait(t.try)
	if t.p = nil; err == nil && t.err != nil {
		err = os.NewSyscallError(name, t.err)
	}
	return t.n, err
}

// conn is a net.Conn that reads and writes as a File.
type conn struct {
	net.Conn
	file *File
}

// Conn returns a connection that is c and reads and writes as a File.
func Conn(c net.Conn) net.Conn {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return c
	}
	f, err := NewFile(sc)
	if err != nil {
		return c
	}
	return &conn{c, f}
}

func (c *conn) Read(p []byte) (int, error)  { return c.file.Read(p) }
func (c *conn) Write(p []byte) (int, error) { return c.file.Write(p) }
