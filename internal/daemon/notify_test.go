package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestNotify has a socket as systemd's.
func TestNotify(t *testing.T) {
	path := t.TempDir() + "/notify"
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	notify(log, "READY=1")
	buf := make([]byte, 100)
	if n, err := l.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("got %s, %v", buf[:n], err)
	}
	t.Setenv("NOTIFY_SOCKET", "")
	notify(log, "READY=1")
	if said.Len() > 0 {
		t.Errorf("logged %s", &said)
	}
	t.Setenv("NOTIFY_SOCKET", path+"-not")
	notify(log, "READY=1")
	if !strings.Contains(said.String(), "cannot notify systemd") {
		t.Errorf("logged %s", &said)
	}
}

// TestKeepAlive: a daemon that does not work does not ping, and one that works
// again does.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var pings atomic.Int64
		var state atomic.Value
		state.Store("works")
		works := func(ctx context.Context) error {
			switch state.Load() {
			case "fails":
				return errors.New("no records")
			case "hangs":
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			keepAlive(ctx, time.Minute, works, func() { pings.Add(1) }, slog.New(slog.DiscardHandler))
		}()
		after := func(more time.Duration, want int64) {
			t.Helper()
			time.Sleep(more)
			synctest.Wait()
			if got := pings.Load(); got != want {
				t.Errorf("%s: got %d pings, want %d", state.Load(), got, want)
			}
		}
		after(time.Second, 1)
		after(2*time.Minute, 3)
		state.Store("hangs")
		after(3*time.Minute, 3)
		state.Store("fails")
		after(3*time.Minute, 3)
		state.Store("works")
		after(2*time.Minute, 5)
		cancel()
		<-done
	})
}

// activatedChild has this test program as the daemon that systemd starts with
// sockets: it serves one connection on the one that it takes.
const activatedChild = "JOBLET_TEST_ACTIVATED"

func TestActivatedChild(t *testing.T) {
	runDir := os.Getenv(activatedChild)
	if runDir == "" {
		t.Skip("requires TestActivated, which runs this")
	}
	// systemd knows the process number of its child; exec.Cmd does not, before it runs.
	t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	l, err := Options{RunDir: runDir}.activated()
	if err != nil {
		os.Stdout.WriteString("error: " + err.Error() + "\n")
		return
	}
	if l == nil {
		os.Stdout.WriteString("none\n")
		return
	}
	if os.Getenv("LISTEN_FDS") != "" {
		t.Error("programs that the daemon starts would take the sockets as theirs")
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("hello"))
	conn.Close()
	l.Close()
}

// TestActivated passes descriptors as systemd does.
func TestActivated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	unixSocket := func(name string) *os.File {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tcpFile, err := tcp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer tcpFile.Close()
	file, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	own, other := unixSocket(socketName), unixSocket("other.sock")

	child := func(files ...*os.File) (*exec.Cmd, *bytes.Buffer) {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestActivatedChild$")
		cmd.Env = append(os.Environ(), activatedChild+"="+dir, "LISTEN_FDS="+strconv.Itoa(len(files)))
		cmd.ExtraFiles = files
		out := new(bytes.Buffer)
		cmd.Stdout, cmd.Stderr = out, out
		return cmd, out
	}
	for want, files := range map[string][]*os.File{
		"none": nil,
		"error: cannot serve on the socket that systemd passed: it passed 2 sockets": {own, other},
		"it is " + dir + "/other.sock":                         {other},
		"it is not a listening unix socket: set ListenStream=": {tcpFile},
		"passed: it is not a listening":                        {file},
	} {
		cmd, out := child(files...)
		if err := cmd.Run(); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("got %s, %v, want %s", out, err, want)
		}
	}

	cmd, out := child(own)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	said := make([]byte, 5)
	if _, err := conn.Read(said); err != nil || string(said) != "hello" {
		t.Errorf("got %q, %v", said, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, socketName)); err != nil {
		t.Errorf("the socket is systemd's, and must stay: %v", err)
	}
}
