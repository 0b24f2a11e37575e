package native

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/testenv"
)

// TestAdoptHostile: whatever listens in the place of a shim, to adopt its job takes
// no longer than it may.
func TestAdoptHostile(t *testing.T) {
	e := openEngine(t, 0)
	for name, test := range map[string]struct {
		talk func(net.Conn) // nil: connections are not accepted, and their queue is full
		want error          // nil: any
	}{
		"full":   {nil, os.ErrDeadlineExceeded},
		"silent": {func(net.Conn) {}, os.ErrDeadlineExceeded},
		"slow": {func(c net.Conn) {
			for _, b := range []byte("\x00\x00\x01\x00{\"started\": {\"pid\": 1") {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(300 * time.Millisecond)
			}
		}, os.ErrDeadlineExceeded},
		"garbage":   {func(c net.Conn) { _, _ = c.Write([]byte("\x00\x00\x00\x05hello")) }, nil},
		"endless":   {func(c net.Conn) { _, _ = c.Write([]byte("\xff\xff\xff\xffhello")) }, nil},
		"something": {func(c net.Conn) { _, _ = c.Write([]byte("\x00\x00\x00\x02{}")) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			id := joblet.NewID()
			f, err := e.groups.sockets.listen(id)
			if err != nil {
				t.Fatal(err)
			}
			defer e.groups.sockets.remove(id)
			if test.talk == nil {
				fillQueue(t, e, id, f)
			} else {
				talkTo(t, f, test.talk)
			}
			began := time.Now()
			_, err = e.Adopt(id, time.Time{})
			if took := time.Since(began); err == nil || test.want != nil && !errors.Is(err, test.want) || took > 3*greetTimeout {
				t.Errorf("after %v: %v, want %v", took, err, test.want)
			}
			if !HasShim([]string{e.cfg.RunDir}, id) {
				t.Error("it is not there")
			}
		})
	}
	gone := joblet.NewID()
	if _, err := e.Adopt(gone, time.Time{}); !errors.Is(err, unix.ECONNREFUSED) || HasShim([]string{e.cfg.RunDir}, gone) {
		t.Errorf("no shim: %v", err)
	}
	f, err := e.groups.sockets.listen(gone)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := e.Adopt(gone, time.Time{}); !errors.Is(err, unix.ECONNREFUSED) || HasShim([]string{e.cfg.RunDir}, gone) {
		t.Errorf("a shim that is gone: %v", err)
	}
	if err := e.groups.sockets.clear(nil); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(e.cfg.RunDir, socketsName)); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// fillQueue connects to a socket that nothing accepts from until its queue is full.
func fillQueue(t *testing.T, e *Engine, id string, f *os.File) {
	t.Helper()
	t.Cleanup(func() { f.Close() })
	for {
		fd, err := e.groups.sockets.dial(id)
		if err == unix.EAGAIN {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
	}
}

// talkTo accepts connections to a socket until the end of the test.
func talkTo(t *testing.T, f *os.File, talk func(net.Conn)) {
	t.Helper()
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			talk(c)
		}
	}()
}

// TestSocketsOfOthers: the directory must be root's alone.
func TestSocketsOfOthers(t *testing.T) {
	testenv.RequireRoot(t)
	for name, change := range map[string]func(string) error{
		"mode":  func(dir string) error { return os.Chmod(dir, 0o750) },
		"owner": func(dir string) error { return os.Chown(dir, 65534, 0) },
		"link": func(dir string) error {
			return errors.Join(os.Remove(dir), os.Symlink(t.TempDir(), dir))
		},
	} {
		run := t.TempDir()
		s, err := makeSockets(run, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.close(), change(filepath.Join(run, socketsName))); err != nil {
			t.Fatal(err)
		}
		if s, err := makeSockets(run, nil); err == nil {
			s.close()
			t.Errorf("%s: taken", name)
		}
	}
}
