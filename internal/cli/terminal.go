package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/rawio"
)

// terminal is the user's own, connected to that of a job or of a process in
// one. While it is raw every key is the other side's, Ctrl-C too.
//
// In the background, where another has the user's terminal, it is neither made raw
// nor read: the kernel stops a process that does so (SIGTTOU, SIGTTIN).
//
// Whatever happens, end puts it back: it is deferred in the goroutine that
// follows the job, and every other goroutine of ours runs under guard.
type terminal struct {
	in   io.Reader
	out  io.Writer
	tty  *os.File // in, if that and out are a terminal; nil: nothing to make raw, and in is typed as it is
	keys []byte   // that detach; none: nothing does
	mute bool     // nothing is typed

	screen io.Writer     // out, and non-blocking if that could be
	paper  *os.File      // what screen writes to, if it is that
	ready  chan struct{} // closed at the first connect: before that nothing is read
	other  chan struct{} // has one at each connect: the window may have changed before

	mu    sync.Mutex // protects what follows
	cut   bool       // nothing is shown any more
	stuck bool       // it did not
	line  *line      // to where what is typed goes; nil: to nowhere just now
	saved *term.State
	asked bool // to be raw: it is while we are in its foreground
	raw   bool
	rawAt time.Time
	looks bool  // whether we are in the foreground: a goroutine does
	modes modes // that the other side has set here
}

// line is a connection to a terminal on the other side.
type line struct {
	typed  func([]byte) error
	resize func(joblet.WindowSize) error
	size   joblet.WindowSize // that it has been told last
}

// terminal returns the user's terminal, which may be none.
func (a *app) terminal(keys []byte) *terminal {
	t := &terminal{in: a.in, out: a.out, screen: a.out, keys: keys, ready: make(chan struct{}), other: make(chan struct{}, 1)}
	if isTerminal(a.in) && isTerminal(a.out) {
		t.tty, _ = a.in.(*os.File)
		if f, w := reopen(a.out, os.O_WRONLY); w != nil {
			t.paper, t.screen = f, w
		}
	}
	return t
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// window returns the size of the user's window, or the default.
func (t *terminal) window() joblet.WindowSize {
	if f, ok := t.out.(*os.File); ok {
		if columns, rows, err := term.GetSize(int(f.Fd())); err == nil && rows > 0 && columns > 0 {
			return joblet.WindowSize{Rows: min(rows, joblet.MaxWindow), Columns: min(columns, joblet.MaxWindow)}
		}
	}
	return joblet.DefaultWindow
}

// guard runs f in a goroutine that does not leave the terminal raw when it
// panics.
func (t *terminal) guard(f func()) {
	go func() {
		defer func() {
			if p := recover(); p != nil {
				t.end()
				panic(p)
			}
		}()
		f()
	}()
}

// connect says where what is typed goes from now on; nil: nowhere.
func (t *terminal) connect(l *line) {
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
func (t *terminal) moved() {
	select {
	case t.other <- struct{}{}:
	default:
	}
}

func (t *terminal) connected() *line {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.line
}

// makeRaw hands the terminal over, in the background as soon as we are in its
// foreground. It may be called again.
func (t *terminal) makeRaw() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked = t.tty != nil; !t.asked || t.raw {
		return nil
	}
	return t.take()
}

// take makes the terminal raw, or has that done once we are in its foreground. t.mu is
// held.
func (t *terminal) take() error {
	if !foreground(t.tty) {
		t.raw = false
		if !t.looks {
			t.looks = true
			t.guard(t.awaitForeground)
		}
		return nil
	}
	saved, err := term.MakeRaw(int(t.tty.Fd()))
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
func (t *terminal) awaitForeground() {
	tick := time.NewTicker(foregroundPause)
	defer tick.Stop()
	for range tick.C {
		if t.found() {
			return
		}
	}
}

// found reports whether there is nothing more to wait for in awaitForeground.
func (t *terminal) found() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked && !t.raw {
		if !foreground(t.tty) {
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

// pressed reports whether a signal is that of a key which was pressed before
// the terminal became raw.
func (t *terminal) pressed(sig syscall.Signal) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tty == nil || keyOf(sig) == 0 || !foreground(t.tty) {
		return false
	}
	return !t.raw || time.Since(t.rawAt) < rawAgo
}

// press types the key for a signal, and reports whether there was one to type.
func (t *terminal) press(sig syscall.Signal) bool {
	l := t.connected()
	return t.pressed(sig) && l != nil && l.typed([]byte{keyOf(sig)}) == nil
}

// keyOf returns the key that sends a signal, or 0.
func keyOf(sig syscall.Signal) byte {
	switch int(sig) {
	case sigint:
		return ctrlC
	case sigquit:
		return '\\' & 0x1f
	}
	return 0
}

// isRaw reports whether keys are the other side's just now.
func (t *terminal) isRaw() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.raw && foreground(t.tty) // and not that a shell, which has stopped us, took it back
}

// resetTime is how long the terminal may take to be switched back. One that takes
// no output, as that of a window whose program is stopped, keeps nobody here.
const resetTime = 500 * time.Millisecond

// end takes the terminal back: its modes, and what the other side has switched
// on and not off again, such as the alternate screen. It may be called again,
// and the terminal handed over again.
func (t *terminal) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tty == nil {
		return
	}
	if t.raw && foreground(t.tty) {
		_ = term.Restore(int(t.tty.Fd()), t.saved)
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

// cutOff has no Write wait any longer for the user's terminal to take output.
func (t *terminal) cutOff() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cut = true; t.paper != nil {
		_ = t.paper.SetWriteDeadline(time.Now().Add(resetTime))
	}
}

// isStuck reports whether the user's terminal did not take what it was to show. A
// message would not get there either, and would wait for ever.
func (t *terminal) isStuck() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stuck
}

// again makes the terminal raw again after a shell had it, which has put its own
// modes back (SIGCONT). In the background it leaves the terminal to the shell. One that
// has hung up, which sends SIGCONT too, stays as it is: its keys were the other side's
// to the end.
func (t *terminal) again() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.asked {
		_ = t.take()
	}
}

// hungUp reports whether a stream is a terminal that has gone away: its window is
// closed, the connection to it is lost.
func hungUp(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := term.GetState(int(f.Fd()))
	return errors.Is(err, syscall.EIO)
}

// noteTerminals notes which of our streams are terminals, for hungUp.
func (a *app) noteTerminals() {
	for _, stream := range []any{a.in, a.out, a.errOut} {
		if isTerminal(stream) {
			a.terminals = append(a.terminals, stream)
		}
	}
}

// hungUp reports whether a terminal that was ours has gone away since noteTerminals.
func (a *app) hungUp() bool { return slices.ContainsFunc(a.terminals, hungUp) }

// awaitReady waits for the first connect, or for f, a terminal for which Go's poller
// waits, to hang up; not ready: it has, or ctx has ended. What is typed is left there.
func (t *terminal) awaitReady(ctx context.Context, f *os.File) (ready bool) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	t.guard(func() {
		select {
		case <-ctx.Done():
		case <-t.ready:
		}
		_ = f.SetReadDeadline(time.Now()) // ends the wait
	})
	_ = raw.Read(func(uintptr) bool { return hungUp(t.tty) })
	select {
	case <-t.ready:
		_ = f.SetReadDeadline(time.Time{})
		return ctx.Err() == nil
	default:
		return false
	}
}

// Write shows what the other side writes.
func (t *terminal) Write(p []byte) (int, error) {
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

const (
	ctrlC = 'C' & 0x1f
	ctrlD = 'D' & 0x1f
	// keyPause is how long the first of the detach keys waits for the next before
	// the job gets it. The next may still come later.
	keyPause = 300 * time.Millisecond
)

// typing hands what is typed to the line until ctx ends; detach is called when
// the detach keys are, giveUp when Ctrl-C is while there is no line, gone when the
// terminal hangs up. Where the input is no terminal its end is typed as Ctrl-D. A Read
// that cannot be ended may outlive ctx: then it ends with the process.
func (t *terminal) typing(ctx context.Context, detach, giveUp, gone func()) {
	if t.mute {
		return
	}
	in, polled := t.in, false
	if isTerminal(t.in) {
		k := newKeyboard(ctx, t.in.(*os.File))
		in = k
		if k.anew != nil {
			polled = true
			defer k.anew.Close()
			defer context.AfterFunc(ctx, func() { _ = k.anew.Close() })()
			if t.tty != nil && !t.awaitReady(ctx, k.anew) {
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
			_ = l.typed(p) // the one who follows the job learns why it is cut
		}
	}
	flush := func() {
		mu.Lock()
		defer mu.Unlock()
		send(match.flush())
	}
	pause := time.AfterFunc(time.Hour, func() { t.guard(flush) })
	defer pause.Stop()
	typed := func(p []byte) (leave func()) {
		mu.Lock()
		defer mu.Unlock()
		if t.connected() == nil && t.tty != nil && bytes.IndexByte(p, ctrlC) >= 0 {
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
			if flush(); t.tty == nil {
				mu.Lock()
				defer mu.Unlock()
				send(endOfInput(last))
			} else if hungUp(t.tty) {
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

// keyboard reads a terminal while we are in its foreground.
type keyboard struct {
	ctx  context.Context
	tty  *os.File // that was given to us
	anew *os.File // it, opened anew; nil: it could not be
	in   io.Reader
}

func newKeyboard(ctx context.Context, tty *os.File) *keyboard {
	k := &keyboard{ctx: ctx, tty: tty, in: tty}
	if f, r := reopen(tty, os.O_RDONLY); f != nil {
		k.anew, k.in = f, r
	}
	return k
}

// Read waits for something to be typed, and in the background for the foreground.
func (k *keyboard) Read(p []byte) (int, error) {
	for {
		if err := k.await(); err != nil {
			return 0, err
		}
		if foreground(k.tty) {
			return k.in.Read(p)
		}
		select {
		case <-k.ctx.Done():
			return 0, k.ctx.Err()
		case <-time.After(foregroundPause):
		}
	}
}

// await waits until there is something to read, or the terminal has hung up.
func (k *keyboard) await() error {
	if k.anew == nil {
		readable(k.tty.Fd(), true)
		return nil
	}
	raw, err := k.anew.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool { return readable(fd, false) })
}

// stdin is our standard input. From a terminal only keyboards read.
func (a *app) stdin() io.Reader {
	if !isTerminal(a.in) {
		return a.in
	}
	return newKeyboard(context.Background(), a.in.(*os.File)) // until rnx ends
}

// watchWindow tells the line of changes of the window's size until ctx ends, also
// of those that came before there was one.
func (t *terminal) watchWindow(ctx context.Context) {
	changes := windowChanges(ctx, t)
	for {
		select {
		case <-t.other:
		case _, ok := <-changes:
			if !ok {
				return
			}
		}
		if l, w := t.connected(), t.window(); l != nil && w != l.size && l.resize(w) == nil {
			l.size = w
		}
	}
}

// matcher looks for keys in what is typed, and holds back the beginning of them.
type matcher struct {
	keys    []byte
	matched int // of keys, typed last
	passed  int // of those, handed on already
}

// next returns what of p is to be handed on, and whether the keys are complete.
func (m *matcher) next(p []byte) (pass []byte, detached bool) {
	if len(m.keys) == 0 {
		return p, false
	}
	for _, c := range p {
		if c == m.keys[m.matched] {
			if m.matched++; m.matched == len(m.keys) {
				return pass, true
			}
			continue
		}
		// What was held is not the keys; but it may end with their beginning.
		held := append(append([]byte{}, m.keys[:m.matched]...), c)
		keep := len(held) - 1
		for keep > 0 && string(held[len(held)-keep:]) != string(m.keys[:keep]) {
			keep--
		}
		if upto := len(held) - keep; upto > m.passed {
			pass = append(pass, held[m.passed:upto]...)
		}
		m.passed = max(0, m.passed-(len(held)-keep))
		m.matched = keep
	}
	return pass, false
}

// held reports whether something is held back.
func (m *matcher) held() bool { return m.matched > m.passed }

// flush returns what is held back, for it has waited long enough; it still
// counts as typed.
func (m *matcher) flush() []byte {
	held := m.keys[m.passed:m.matched]
	m.passed = m.matched
	return held
}

const defaultDetachKeys = "ctrl-p,ctrl-q"

// parseKeys reads keys such as "ctrl-p,ctrl-q" or "ctrl-],d"; none: "".
func parseKeys(s string) (keys []byte, err error) {
	if s == "" {
		return nil, nil
	}
	for key := range strings.SplitSeq(s, ",") {
		name, ctrl := strings.CutPrefix(strings.ToLower(key), "ctrl-")
		switch {
		case ctrl && len(name) == 1 && (name[0] >= '@' && name[0] <= '_' || name[0] >= 'a' && name[0] <= 'z'):
			keys = append(keys, name[0]&0x1f)
		case !ctrl && len(key) == 1 && key[0] > ' ' && key[0] < 0x7f:
			keys = append(keys, key[0])
		default:
			return nil, joblet.Errorf(joblet.InvalidArgument, "detach keys %s: %s is none: give keys such as %s, or a letter", strconv.Quote(s), strconv.Quote(key), defaultDetachKeys)
		}
	}
	return keys, nil
}
