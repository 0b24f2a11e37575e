// Package term writes to the user's terminal and reads from it: tables, pages, raw mode,
// window sizes, detach keys, and the emulated screen of a job.
package term

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/rawio"
)

// Terminal is the user's own, connected to that of a job or of a process in
// one. While it is raw every key is the other side's, Ctrl-C too.
//
// In the background, where another has the user's terminal, it is neither made raw
// nor read: the kernel stops a process that does so (SIGTTOU, SIGTTIN).
//
// Whatever happens, end puts it back: it is deferred in the goroutine that
// follows the job, and every other goroutine of ours runs under guard.
type Terminal struct {
	in   io.Reader
	Out  io.Writer
	TTY  *os.File // in, if that and out are a terminal; nil: nothing to make raw, and in is typed as it is
	keys []byte   // that detach; none: nothing does
	Mute bool     // nothing is typed

	screen io.Writer     // out, and non-blocking if that could be
	paper  *os.File      // what screen writes to, if it is that
	ready  chan struct{} // closed at the first connect: before that nothing is read
	other  chan struct{} // has one at each connect: the window may have changed before

	mu    sync.Mutex // protects what follows
	cut   bool       // nothing is shown any more
	stuck bool       // it did not
	line  *Line      // to where what is typed goes; nil: to nowhere just now
	saved *term.State
	asked bool // to be raw: it is while we are in its foreground
	raw   bool
	rawAt time.Time
	looks bool  // whether we are in the foreground: a goroutine does
	modes modes // that the other side has set here
}

// Line is a connection to a terminal on the other side.
type Line struct {
	Typed  func([]byte) error
	Resize func(joblet.WindowSize) error
	Size   joblet.WindowSize // that it has been told last
}

// New returns the user's terminal, which may be none.
func New(in io.Reader, out io.Writer, keys []byte) *Terminal {
	t := &Terminal{in: in, Out: out, screen: out, keys: keys, ready: make(chan struct{}), other: make(chan struct{}, 1)}
	if IsTerminal(in) && IsTerminal(out) {
		t.TTY, _ = in.(*os.File)
		if f, w := reopen(out, os.O_WRONLY); w != nil {
			t.paper, t.screen = f, w
		}
	}
	return t
}

// IsTerminal reports whether a stream is a terminal.
func IsTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Window returns the size of the user's window, or the default.
func (t *Terminal) Window() joblet.WindowSize {
	if f, ok := t.Out.(*os.File); ok {
		if columns, rows, err := term.GetSize(int(f.Fd())); err == nil && rows > 0 && columns > 0 {
			return joblet.WindowSize{Rows: min(rows, joblet.MaxWindow), Columns: min(columns, joblet.MaxWindow)}
		}
	}
	return joblet.DefaultWindow
}

// Guard runs f in a goroutine that does not leave the terminal raw when it
// panics.
func (t *Terminal) Guard(f func()) {
	go func() {
		defer func() {
			if p := recover(); p != nil {
				t.End()
				panic(p)
			}
		}()
		f()
	}()
}

// Connect says where what is typed goes from now on; nil: nowhere.
func (t *Terminal) Connect(l *Line) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.line = l; l == nil {
		return
	}
	select {
	case <-t.ready:
	default:
		close(t.ready)
	}
	t.moved()
}

// moved has the line told of the window's size.
func (t *Terminal) moved() {
	select {
	case t.other <- struct{}{}:
	default:
	}
}

func (t *Terminal) connected() *Line {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.line
}

// MakeRaw hands the terminal over, in the background as soon as we are in its
// foreground. It may be called again.
func (t *Terminal) MakeRaw() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked = t.TTY != nil; !t.asked || t.raw {
		return nil
	}
	return t.take()
}

// take makes the terminal raw, or has that done once we are in its foreground. t.mu is
// held.
func (t *Terminal) take() error {
	if !foreground(t.TTY) {
		t.raw = false
		if !t.looks {
			t.looks = true
			t.Guard(t.awaitForeground)
		}
		return nil
	}
	saved, err := term.MakeRaw(int(t.TTY.Fd()))
	if err != nil {
		return err
	}
	if t.saved == nil {
		t.saved = saved
	}
	t.raw, t.rawAt = true, time.Now()
	return nil
}

// foregroundPause is between two looks for the foreground: a shell that gives it to
// a process which was not stopped does not tell that.
const foregroundPause = 100 * time.Millisecond

// awaitForeground takes the terminal once we are in its foreground.
func (t *Terminal) awaitForeground() {
	tick := time.NewTicker(foregroundPause)
	defer tick.Stop()
	for range tick.C {
		if t.found() {
			return
		}
	}
}

// found reports whether there is nothing more to wait for in awaitForeground.
func (t *Terminal) found() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked && !t.raw {
		if !foreground(t.TTY) {
			return false
		}
		_ = t.take()
		t.moved()
	}
	t.looks = false
	return true
}

// rawAgo is how long a signal that a key has sent may take to be seen.
const rawAgo = time.Second

// Pressed reports whether a signal is that of a key which was pressed before
// the terminal became raw.
func (t *Terminal) Pressed(sig syscall.Signal) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.TTY == nil || keyOf(sig) == 0 || !foreground(t.TTY) {
		return false
	}
	return !t.raw || time.Since(t.rawAt) < rawAgo
}

// Press types the key for a signal, and reports whether there was one to type.
func (t *Terminal) Press(sig syscall.Signal) bool {
	l := t.connected()
	return t.Pressed(sig) && l != nil && l.Typed([]byte{keyOf(sig)}) == nil
}

// keyOf returns the key that sends a signal, or 0.
func keyOf(sig syscall.Signal) byte {
	switch sig {
	case syscall.SIGINT:
		return ctrlC
	case syscall.SIGQUIT:
		return '\\' & 0x1f
	}
	return 0
}

// IsRaw reports whether keys are the other side's just now.
func (t *Terminal) IsRaw() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.raw && foreground(t.TTY) // and not that a shell, which has stopped us, took it back
}

// resetTime is how long the terminal may take to be switched back. One that takes
// no output, as that of a window whose program is stopped, keeps nobody here.
const resetTime = 500 * time.Millisecond

// End takes the terminal back: its modes, and what the other side has switched
// on and not off again, such as the alternate screen. It may be called again,
// and the terminal handed over again.
func (t *Terminal) End() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.TTY == nil {
		return
	}
	if t.raw && foreground(t.TTY) {
		_ = term.Restore(int(t.TTY.Fd()), t.saved)
	}
	t.asked, t.raw = false, false
	reset := t.modes.reset()
	if reset == "" {
		return
	}
	if t.paper != nil {
		_ = t.paper.SetWriteDeadline(time.Now().Add(resetTime))
	}
	if _, err := io.WriteString(t.screen, reset); errors.Is(err, os.ErrDeadlineExceeded) {
		t.stuck = true
	}
	if t.paper != nil && !t.cut {
		_ = t.paper.SetWriteDeadline(time.Time{})
	}
}

// CutOff has no Write wait any longer for the user's terminal to take output.
func (t *Terminal) CutOff() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cut = true; t.paper != nil {
		_ = t.paper.SetWriteDeadline(time.Now().Add(resetTime))
	}
}

// IsStuck reports whether the user's terminal did not take what it was to show. A
// message would not get there either, and would wait for ever.
func (t *Terminal) IsStuck() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stuck
}

// again makes the terminal raw again after a shell had it, which has put its own
// modes back (SIGCONT). In the background it leaves the terminal to the shell. One that
// has hung up, which sends SIGCONT too, stays as it is: its keys were the other side's
// to the end.
func (t *Terminal) again() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked {
		_ = t.take()
	}
}

// HungUp reports whether a stream is a terminal that has gone away: its window is
// closed, the connection to it is lost.
func HungUp(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := term.GetState(int(f.Fd()))
	return errors.Is(err, syscall.EIO)
}

// awaitReady waits for the first connect, or for f, a terminal for which Go's poller
// waits, to hang up; not ready: it has, or ctx has ended. What is typed is left there.
func (t *Terminal) awaitReady(ctx context.Context, f *os.File) (ready bool) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	t.Guard(func() {
		select {
		case <-ctx.Done():
		case <-t.ready:
		}
		_ = f.SetReadDeadline(time.Now()) // ends the wait
	})
	_ = raw.Read(func(uintptr) bool { return HungUp(t.TTY) })
	select {
	case <-t.ready:
		_ = f.SetReadDeadline(time.Time{})
		return ctx.Err() == nil
	default:
		return false
	}
}

// Write shows what the other side writes.
func (t *Terminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	cut := t.cut
	if !cut {
		t.modes.write(p)
	}
	t.mu.Unlock()
	if cut {
		return 0, os.ErrDeadlineExceeded
	}
	n, err := t.screen.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.mu.Lock()
		t.stuck = true
		t.mu.Unlock()
	}
	return n, err
}

// Typing hands what is typed to the line until ctx ends; detach is called when
// the detach keys are, giveUp when Ctrl-C is while there is no line, gone when the
// terminal hangs up. Where the input is no terminal its end is typed as Ctrl-D. A Read
// that cannot be ended may outlive ctx: then it ends with the process.
func (t *Terminal) Typing(ctx context.Context, detach, giveUp, gone func()) {
	if t.Mute {
		return
	}
	in, polled := t.in, false
	if IsTerminal(t.in) {
		k := NewKeyboard(ctx, t.in.(*os.File))
		in = k
		if k.anew != nil {
			polled = true
			defer k.anew.Close()
			defer context.AfterFunc(ctx, func() { _ = k.anew.Close() })()
			if t.TTY != nil && !t.awaitReady(ctx, k.anew) {
				if ctx.Err() == nil {
					gone()
				}
				return
			}
		}
	}
	select {
	case <-ctx.Done():
		return
	case <-t.ready:
	}
	var mu sync.Mutex // protects match, and keeps what is typed in order
	match := matcher{keys: t.keys}
	last := byte('\n') // that was sent
	send := func(p []byte) {
		if l := t.connected(); l != nil && len(p) > 0 && ctx.Err() == nil {
			last = p[len(p)-1]
			_ = l.Typed(p) // the one who follows the job learns why it is cut
		}
	}
	flush := func() {
		mu.Lock()
		defer mu.Unlock()
		send(match.flush())
	}
	pause := time.AfterFunc(time.Hour, func() { t.Guard(flush) })
	defer pause.Stop()
	typed := func(p []byte) (leave func()) {
		mu.Lock()
		defer mu.Unlock()
		if t.connected() == nil && t.TTY != nil && bytes.IndexByte(p, ctrlC) >= 0 {
			return giveUp
		}
		pass, detached := match.next(p)
		if send(pass); match.held() {
			pause.Reset(keyPause)
		}
		if detached {
			return detach
		}
		return nil
	}
	buf := make([]byte, 4096)
	for {
		n, err := in.Read(buf)
		if ctx.Err() != nil {
			return
		}
		if n > 0 {
			if leave := typed(bytes.Clone(buf[:n])); leave != nil { // a copy, for gRPC may keep it
				leave()
				return
			}
		}
		if err != nil {
			if flush(); t.TTY == nil {
				mu.Lock()
				defer mu.Unlock()
				send(endOfInput(last))
			} else if HungUp(t.TTY) {
				gone()
			}
			return
		}
		if !polled {
			// Until it is on its way: with one processor (main) a Read that blocks
			// keeps that from gRPC's writer until the runtime notices, which takes
			// longer than all the rest. And that writer gives way once, too.
			runtime.Gosched()
			runtime.Gosched()
		}
	}
}

// endOfInput returns what is typed for the end of input whose last byte is given:
// behind an unfinished line the first Ctrl-D does no more than end that.
func endOfInput(last byte) []byte {
	switch last {
	case '\n', '\r', ctrlD:
		return []byte{ctrlD}
	}
	return []byte{ctrlD, ctrlD}
}

// reopen returns a terminal opened anew, or nothing. That one may be non-blocking,
// which the one that we share with the shell must not become: Go's poller waits
// for it then, a Read holds up no thread, and can be ended. It need not work: /proc
// is Linux's, and the terminal may be another user's.
func reopen(stream any, mode int) (*os.File, io.ReadWriter) {
	tty, ok := stream.(*os.File)
	if !ok {
		return nil, nil
	}
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(tty.Fd())), mode|nonblocking, 0)
	if err != nil {
		return nil, nil
	}
	// The poller may not take it.
	if err := f.SetDeadline(time.Time{}); err == nil {
		if rw, err := rawio.NewFile(f); err == nil {
			return f, rw
		}
	}
	_ = f.Close()
	return nil, nil
}

// WatchWindow tells the line of changes of the window's size until ctx ends, also
// of those that came before there was one.
func (t *Terminal) WatchWindow(ctx context.Context) {
	changes := windowChanges(ctx, t)
	for {
		select {
		case <-t.other:
		case _, ok := <-changes:
			if !ok {
				return
			}
		}
		if l, w := t.connected(), t.Window(); l != nil && w != l.Size && l.Resize(w) == nil {
			l.Size = w
		}
	}
}
