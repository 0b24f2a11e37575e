package native

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/rawio"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// WindowSize is the size of a terminal in characters.
type WindowSize = protocol.WindowSize

// Window returns the size of the job's terminal when we connected to its
// shim; nil: it has none.
func (p *Process) Window() *WindowSize { return p.window }

// Resize gives the job's terminal another size, zero for the one that it has.
// With redraw the program that has the screen is told in any case.
func (p *Process) Resize(size WindowSize, redraw bool) error {
	return p.request(protocol.Request{Resize: &protocol.Resize{Size: size, Redraw: redraw}})
}

// Keyboard types at a job's terminal. Any number of them may be there at once.
// What is typed goes into the terminal's master right away, and not by way of
// the shim, which would have to wake up for each key.
type Keyboard struct {
	Window WindowSize // the terminal's size when this was opened

	process *Process
	master  *os.File // not blocking: writes wait in Go's poller
	close   sync.Once
	closed  chan struct{} // by Close
	quoted  bool          // the last byte typed was VLNEXT: the next one is no more than itself
}

// OpenKeyboard connects to the job's terminal.
func (p *Process) OpenKeyboard() (*Keyboard, error) {
	c, err := p.engine.connect(p.ID, time.Time{})
	if err != nil {
		return nil, joblet.Errorf(joblet.FailedPrecondition, "cannot open the job's terminal: %w", err)
	}
	defer c.conn.Close()
	if c.window == nil {
		return nil, joblet.Errorf(joblet.FailedPrecondition, "the job has no terminal")
	}
	_ = c.conn.SetDeadline(time.Now().Add(greetTimeout))
	var master *os.File
	if err = protocol.WriteMessage(c.conn, protocol.Request{Terminal: true}); err == nil {
		master, err = receiveTerminal(c.conn)
	}
	if err != nil {
		return nil, joblet.Errorf(joblet.FailedPrecondition, "cannot open the job's terminal: %w; perhaps the job has ended", err)
	}
	k := &Keyboard{Window: *c.window, process: p, master: master, closed: make(chan struct{})}
	go func() { // an ended job's terminal goes on to take what is typed, and no caller may keep it
		select {
		case <-p.done:
			_ = k.master.Close()
		case <-k.closed:
		}
	}()
	return k, nil
}

// Write types; one call at a time. It waits as long as the job does not read. It
// fails when the job has ended.
func (k *Keyboard) Write(b []byte) (written int, err error) {
	raw, err := k.master.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Write(func(fd uintptr) (done bool) {
		for written < len(b) {
			modes, _ := rawio.Termios(int(fd)) // as they are for these bytes
			n, err := rawio.Write(int(fd), b[written:])
			switch {
			case n > 0:
				k.interrupt(b[written:written+n], &modes)
				written += n
			case err == nil || err == unix.EAGAIN:
				return false
			default:
				failed = os.NewSyscallError("type", err)
				return true
			}
		}
		return true
	})
	return written, errors.Join(err, failed)
}

// interrupt tells the shim of keys that send a signal, which PID 1 would not
// get.
func (k *Keyboard) interrupt(typed []byte, modes *unix.Termios) {
	if modes.Lflag&unix.ISIG == 0 {
		k.quoted = false
		return
	}
	for _, c := range typed {
		var sig syscall.Signal
		switch {
		case k.quoted:
			k.quoted = false
		case c == 0: // _POSIX_VDISABLE
		case c == modes.Cc[unix.VINTR]:
			sig = syscall.SIGINT
		case c == modes.Cc[unix.VQUIT]:
			sig = syscall.SIGQUIT
		case c == modes.Cc[unix.VLNEXT] && modes.Lflag&(unix.ICANON|unix.IEXTEN) == unix.ICANON|unix.IEXTEN:
			k.quoted = true
		}
		if sig != 0 {
			_ = k.process.request(protocol.Request{Interrupt: int(sig)}) // it has ended
		}
	}
}

// Close takes the keyboard away, and ends a Write. It may be called again.
func (k *Keyboard) Close() error {
	k.close.Do(func() { close(k.closed) })
	return k.master.Close()
}

// receiveTerminal takes the master that a shim sends. conn is not blocking.
func receiveTerminal(conn *os.File) (*os.File, error) {
	master, err := receiveDescriptor(conn, "terminal")
	if err != nil {
		return nil, fmt.Errorf("cannot receive the terminal: %w", err)
	}
	return master, nil
}

// receiveDescriptor is receiveDescriptors for one.
func receiveDescriptor(conn *os.File, name string) (*os.File, error) {
	files, err := receiveDescriptors(conn, name)
	if err != nil {
		return nil, err
	}
	return files[0], nil
}

// receiveDescriptors takes descriptors from a shim, as many as there are names, which it
// gives them. conn is not blocking.
func receiveDescriptors(conn *os.File, names ...string) ([]*os.File, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	oob := make([]byte, unix.CmsgSpace(4*len(names)))
	n := 0
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		for failed = unix.EINTR; failed == unix.EINTR; {
			_, n, _, _, failed = unix.Recvmsg(int(fd), make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
		}
		return failed != unix.EAGAIN
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	fds, err := protocol.Descriptors(oob[:n], len(names))
	if err != nil {
		return nil, fmt.Errorf("unexpected message: %w", err)
	}
	files := make([]*os.File, 0, len(fds))
	for i, fd := range fds {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			_ = unix.SetNonblock(fd, true) // so that os.File waits in the poller
		}
		files = append(files, os.NewFile(uintptr(fd), names[i]))
	}
	return files, nil
}
