package main

import (
	"io"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// panicRaw makes the terminal raw, switches to the other screen, and panics in
// the given place.
func panicRaw(where string) {
	a := &app{in: os.Stdin, out: os.Stdout, errOut: os.Stderr}
	t := a.terminal(nil)
	defer t.end() // as attachment.run has it
	if err := t.makeRaw(); err != nil {
		os.Exit(3)
	}
	_, _ = io.WriteString(t, "\x1b[?1049hraw")
	if where == "main" {
		panic("in the goroutine that follows")
	}
	t.guard(func() { panic("in another") })
	time.Sleep(time.Minute)
}

// TestPanicRestores: a panic does not leave the terminal raw.
func TestPanicRestores(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"main", "guard"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer master.Close()
			fd := int(master.Fd())
			if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
				t.Fatal(err)
			}
			n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
			if err != nil {
				t.Fatal(err)
			}
			slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer slave.Close()
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
