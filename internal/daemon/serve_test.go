package daemon

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joblet/joblet/internal/testenv"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	good := DefaultOptions()
	if err := good.validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for want, change := range map[string]func(*Options){
		"--state-dir":  func(o *Options) { o.StateDir = "x" },
		"--run-dir":    func(o *Options) { o.RunDir = "/" + strings.Repeat("x", 100) },
		"--idle-exit":  func(o *Options) { o.IdleExit = -1 },
		"--log-level":  func(o *Options) { o.LogLevel = "loud" },
		"--log-format": func(o *Options) { o.LogFormat = "xml" },

		"--metrics-addr": func(o *Options) { o.MetricsAddr = "9090" },
	} {
		o := good
		change(&o)
		if err := o.validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	testenv.RequireRoot(t)
	o := Options{RunDir: t.TempDir()}
	first, err := o.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l, err := listen(o.socket(), 0)
	if err != nil {
		t.Fatal(err)
	}
	// A daemon that serves is not waited for.
	if _, err := o.lock(t.Context()); err == nil || !strings.Contains(err.Error(), "another daemon (process ") {
		t.Errorf("second: got %v", err)
	}
	// One that does not answer any more is.
	l.Close()
	second := make(chan error, 1)
	go func() {
		f, err := o.lock(t.Context())
		if err == nil {
			f.Close()
		}
		second <- err
	}()
	first.Close()
	if err := <-second; err != nil {
		t.Errorf("after the first: got %v", err)
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	testenv.RequireRoot(t)
	path := filepath.Join(t.TempDir(), socketName)
	for range 2 { // the second finds what the first left
		l, err := listen(path, 0)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil || st.Mode() != os.ModeSocket|0o660 {
			t.Errorf("got %v, %v", st, err)
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		l.Close()
	}
}

func TestReadyFD(t *testing.T) {
	t.Parallel()
	if _, err := (Options{ReadyFD: 1}).ready(); err == nil {
		t.Error("stdout was taken")
	}
	none, err := (Options{ReadyFD: -1}).ready()
	if err != nil {
		t.Fatal(err)
	}
	none.tell(nil)
	none.tell(os.ErrInvalid)
}

func TestLogger(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log, err := Options{Reloadable: Reloadable{LogLevel: "warn"}, LogFormat: "json"}.logger(&b)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("no")
	log.Warn("yes", "job", "x")
	if got := b.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"job":"x"`) {
		t.Errorf("got %s", got)
	}
}
