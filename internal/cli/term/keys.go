package term

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/joblet/joblet"
)

// PressedKeys returns the keys that are pressed in our terminal, each at once and not
// shown, and what gives the terminal back; nil when stdin is none.
func PressedKeys(in io.Reader) (keys <-chan byte, restore func(), err error) {
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, func() {}, nil
	}
	before, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read keys from the terminal: %w", err)
	}
	pressed := make(chan byte)
	go func() { // ends with the process: nothing interrupts a read from a terminal
		defer close(pressed)
		var key [1]byte
		for {
			if n, err := f.Read(key[:]); n == 0 || err != nil {
				return
			}
			pressed <- key[0]
		}
	}()
	return pressed, func() { _ = term.Restore(int(f.Fd()), before) }, nil
}

const (
	ctrlC = 'C' & 0x1f
	ctrlD = 'D' & 0x1f
	// keyPause is how long the first of the detach keys waits for the next before
	// the job gets it. The next may still come later.
	keyPause = 300 * time.Millisecond
)

// keyboard reads a terminal while we are in its foreground.
type keyboard struct {
	ctx  context.Context
	tty  *os.File // that was given to us
	anew *os.File // it, opened anew; nil: it could not be
	in   io.Reader
}

// NewKeyboard returns the keyboard of a terminal, which is read until ctx ends.
func NewKeyboard(ctx context.Context, tty *os.File) *keyboard {
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

// DefaultDetachKeys detach unless the user names others.
const DefaultDetachKeys = "ctrl-p,ctrl-q"

// ParseKeys reads keys such as "ctrl-p,ctrl-q" or "ctrl-],d"; none: "".
func ParseKeys(s string) (keys []byte, err error) {
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
			return nil, joblet.Errorf(joblet.InvalidArgument, "detach keys %s: %s is none: give keys such as %s, or a letter", strconv.Quote(s), strconv.Quote(key), DefaultDetachKeys)
		}
	}
	return keys, nil
}
