package rawio

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns both ends of a connection, of which the first is ours.
func pair(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	theirs, err = net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ours = Conn(c)
	if _, ok := ours.(*conn); !ok {
		t.Fatalf("%T", ours)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// TestConn: more than the socket holds goes both ways at once, and ends.
func TestConn(t *testing.T) {
	t.Parallel()
	ours, theirs := pair(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	go func() {
		if n, err := ours.Write(data); n != len(data) || err != nil {
			t.Errorf("wrote %d: %v", n, err)
		}
	}()
	go func() {
		_, _ = theirs.Write(data)
		_ = theirs.(*net.UnixConn).CloseWrite()
	}()
	received := make(chan [32]byte)
	go func() {
		time.Sleep(50 * time.Millisecond) // the writer waits
		got := make([]byte, len(data))
		_, _ = io.ReadFull(theirs, got)
		received <- sha256.Sum256(got)
	}()
	got, err := io.ReadAll(ours)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes: %v", len(got), err)
	}
	if <-received != sha256.Sum256(data) {
		t.Error("what was written came out as something else")
	}
	_ = theirs.Close()
	if _, err := ours.Write(data); !errors.Is(err, unix.EPIPE) {
		t.Errorf("write to nobody: %v", err)
	}
}

// TestConnEnds: what waits is ended by Close and by a deadline.
func TestConnEnds(t *testing.T) {
	t.Parallel()
	ours, _ := pair(t)
	_ = ours.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := ours.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d: %v", n, err)
	}
	_ = ours.SetReadDeadline(time.Time{})
	ends := make(chan error, 2)
	go func() { _, err := ours.Read(make([]byte, 1)); ends <- err }()
	go func() { _, err := ours.Write(make([]byte, 16<<20)); ends <- err }()
	time.Sleep(50 * time.Millisecond)
	_ = ours.Close()
	for range 2 {
		select {
		case err := <-ends:
			if err == nil {
				t.Error("no error")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("it goes on to wait")
		}
	}
}

// TestTermios reads a terminal's modes.
func TestTermios(t *testing.T) {
	t.Parallel()
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(master)
	want, err := unix.IoctlGetTermios(master, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Termios(master); err != nil || got != *want || got.Lflag&unix.ISIG == 0 {
		t.Errorf("%+v %v, want %+v", got, err, *want)
	}
	if _, err := Termios(-1); err != unix.EBADF {
		t.Errorf("of nothing: %v", err)
	}
}
