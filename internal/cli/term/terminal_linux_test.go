package term

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/testenv"
)

// panicRaw makes the terminal raw, switches to the other screen, and panics in
// the given place.
func panicRaw(where string) {
	t := New(os.Stdin, os.Stdout, nil)
	defer t.End() // as attachment.run has it
	if err := t.MakeRaw(); err != nil {
		os.Exit(3)
	}
	_, _ = io.WriteString(t, "\x1b[?1049hraw")
	if where == "main" {
		panic("in the goroutine that follows")
	}
	t.Guard(func() { panic("in another") })
	time.Sleep(time.Minute)
}

// TestMain panics with a raw terminal when a test asks for it.
func TestMain(m *testing.M) {
	if where := os.Getenv("RNX_TEST_PANIC"); where != "" {
		panicRaw(where)
	}
	os.Exit(m.Run())
}

// newPty returns the two sides of a new terminal, the second of which is like the
// user's.
func newPty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

// TestPanicRestores: a panic does not leave the terminal raw.
func TestPanicRestores(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"main", "guard"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			master, slave := newPty(t)
			fd := int(master.Fd())
			before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "RNX_TEST_PANIC="+where)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
			// Not its controlling terminal: that hangs up when it ends, which may throw
			// away what it said and reset the modes.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() }).Stop()
			said := make(chan string, 1)
			go func() {
				out, _ := io.ReadAll(io.LimitReader(master, 200)) // the trace goes on
				said <- string(out)
				_, _ = io.Copy(io.Discard, master)
			}()
			var out string
			select {
			case out = <-said:
			case <-time.After(60 * time.Second):
				t.Error("it said too little")
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != 2 {
				t.Errorf("status %d: %q", got, out)
			}
			if !strings.HasPrefix(out, "\x1b[?1049hraw\x1b[?1049l\x1b[m") {
				t.Errorf("the screen got %q", out)
			}
			after, err := unix.IoctlGetTermios(fd, unix.TCGETS)
			if err != nil || !reflect.DeepEqual(after, before) {
				t.Errorf("modes %+v %v, were %+v", after, err, before)
			}
		})
	}
}

// TestStuckTerminal: a terminal that takes no output gets its modes back, and
// holds up nobody.
func TestStuckTerminal(t *testing.T) {
	t.Parallel()
	master, slave := newPty(t)
	fd, masterFD := int(slave.Fd()), int(master.Fd()) // from which nobody reads
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	term := New(slave, slave, nil)
	if term.paper == nil {
		t.Fatal("the terminal is not opened anew")
	}
	if err := term.MakeRaw(); err != nil {
		t.Fatal(err)
	}
	const screen = "\x1b[?1049h"
	if _, err := io.WriteString(term, screen); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		_, err := term.Write(make([]byte, 1<<20))
		written <- err
	}()
	begun := func() bool { // to write more than there is room for
		n, err := unix.IoctlGetInt(masterFD, unix.TIOCINQ)
		return n > len(screen) && err == nil
	}
	if !testenv.Eventually(time.Minute, begun) {
		t.Fatal("nothing is written")
	}
	ended := make(chan struct{})
	go func() {
		term.CutOff()
		if err := <-written; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a write ended with %v", err)
		}
		term.End()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("it waits for the terminal")
	}
	if !term.IsStuck() {
		t.Error("not seen to be stuck")
	}
	if after, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil || !reflect.DeepEqual(after, before) {
		t.Errorf("modes %+v %v, were %+v", after, err, before)
	}
}

// TestWindowBeforeConnect: the other side is told of a change of the window that
// came while there was none, and of none that it knows.
func TestWindowBeforeConnect(t *testing.T) {
	t.Parallel()
	_, slave := newPty(t)
	term := New(slave, slave, nil)
	fd := int(slave.Fd())
	resize := func(rows uint16) {
		t.Helper()
		if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: 80}); err != nil {
			t.Fatal(err)
		}
	}
	type told struct {
		line string
		rows int
	}
	tells := make(chan told)
	connect := func(name string, size joblet.WindowSize, result error) {
		term.Connect(&Line{Size: size, Resize: func(w joblet.WindowSize) error {
			select {
			case tells <- told{name, w.Rows}:
				return result
			case <-t.Context().Done(): // a test that has failed reads no more
				return t.Context().Err()
			}
		}})
	}
	wait := func(want told) {
		t.Helper()
		select {
		case got := <-tells:
			if got != want {
				t.Fatalf("told %+v, want %+v", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("not told %+v", want)
		}
	}
	resize(20)
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // before the terminal is closed
	wg.Go(func() { term.WatchWindow(t.Context()) })
	before := term.Window()
	resize(21) // its signal goes to nobody: no terminal of ours
	connect("first", before, nil)
	wait(told{"first", 21})
	term.Connect(nil)
	resize(22)
	before.Rows = 21
	connect("broken", before, errors.New("no line"))
	wait(told{"broken", 22})
	connect("repaired", before, nil) // the broken one did not pass it on
	wait(told{"repaired", 22})
	connect("current", term.Window(), nil)
	connect("last", before, nil)
	wait(told{"last", 22}) // and the current one nothing
}

func TestEndOfInput(t *testing.T) {
	t.Parallel()
	for last, want := range map[byte]string{'\n': "\x04", '\r': "\x04", 4: "\x04", 'c': "\x04\x04"} {
		if got := string(endOfInput(last)); got != want {
			t.Errorf("behind %q: %q", last, got)
		}
	}
}
