package app

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestSignalEnd(t *testing.T) {
	t.Parallel()
	for sig, want := range map[syscall.Signal]int{syscall.SIGINT: 0, syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		if got := signalEnd(sig).Status; got != want {
			t.Errorf("%v: got %d, want %d", sig, got, want)
		}
	}
}

func TestClosedPipe(t *testing.T) {
	t.Parallel()
	if !ClosedPipe(&os.PathError{Err: syscall.EPIPE}) || ClosedPipe(syscall.ENOSPC) {
		t.Error("EPIPE, and only that, is a closed pipe")
	}
}

// TestWarnOfKey: others should not read a file that holds our key.
func TestWarnOfKey(t *testing.T) {
	t.Parallel()
	if IsWindows {
		t.Skip("requires permission bits")
	}
	const inside = "-----BEGIN PRIVATE KEY-----"
	for _, tt := range []struct {
		key          string
		config, file os.FileMode
		want         string // the file that is named
	}{
		{inside, 0o600, 0o600, ""},
		{inside, 0o644, 0o600, "rnx-config.yml"},
		{"my.key", 0o644, 0o600, ""},
		{"my.key", 0o600, 0o640, "my.key"},
		{"none.key", 0o644, 0o644, ""},
		{"", 0o644, 0o644, ""},
	} {
		dir := t.TempDir()
		config := filepath.Join(dir, "rnx-config.yml")
		for name, mode := range map[string]os.FileMode{"rnx-config.yml": tt.config, "my.key": tt.file} {
			text := fmt.Sprintf("nodes: {a: {address: x, key: %q}}", tt.key)
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
				t.Fatal(err)
			}
		}
		var errOut bytes.Buffer
		a := &App{ErrOut: &errOut, config: config, Node: "a"}
		for range 2 {
			if _, err := a.target(); err != nil {
				t.Fatal(err)
			}
		}
		want := ""
		if tt.want != "" {
			want = fmt.Sprintf("rnx: %s holds your key, and other users may read it: chmod go-rwx %[1]s\n", filepath.Join(dir, tt.want))
		}
		if errOut.String() != want {
			t.Errorf("%+v: got %q", tt, errOut.String())
		}
	}
}

// TestEach: something is done with many arguments at once, and what came of it is shown
// in their order.
func TestEach(t *testing.T) {
	t.Parallel()
	var args []string
	for i := range 1000 {
		args = append(args, fmt.Sprint(i))
	}
	var under, most atomic.Int32
	all := make(chan struct{}) // closed once as many as may are under way
	var out, errOut bytes.Buffer
	a := &App{Out: &out, ErrOut: &errOut}
	err := a.Each(args, AtOnce, func(arg string) (func() error, error) {
		n := under.Add(1)
		defer under.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		if n == AtOnce {
			select {
			case <-all:
			default:
				close(all)
			}
		}
		select {
		case <-all:
		case <-time.After(time.Minute):
			t.Error("only some are done at once")
		}
		if arg == "7" || arg == "901" {
			return nil, errors.New("is bad")
		}
		return func() error { return a.Println(arg) }, nil
	})
	want := strings.Join(slices.DeleteFunc(slices.Clone(args), func(arg string) bool { return arg == "7" || arg == "901" }), "\n") + "\n"
	if e, ok := errors.AsType[*ExitError](err); !ok || e.Status != 1 || out.String() != want || errOut.String() != "rnx: 7: is bad\nrnx: 901: is bad\n" {
		t.Errorf("%v, %.100q, %q", err, out.String(), errOut.String())
	}
	if got := most.Load(); got != AtOnce {
		t.Errorf("%d at once, want %d", got, AtOnce)
	}
	if err := a.Each([]string{"x"}, AtOnce, func(string) (func() error, error) { return nil, io.EOF }); err != io.EOF {
		t.Errorf("of a single one: %v", err)
	}
}
