package daemon

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joblet/joblet/internal/testenv"
)

func TestMetricsAddr(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		addr   string
		remote bool
		want   string // the address, or what the error says
	}{
		{"127.0.0.1:9090", false, "127.0.0.1:9090"},
		{"127.3.2.1:0", false, "127.3.2.1:0"},
		{"localhost:9090", false, "127.0.0.1:9090"},
		{"[::1]:9090", false, "[::1]:9090"},
		{"[::ffff:127.0.0.1]:9090", false, "[::ffff:127.0.0.1]:9090"},
		{"unix:/run/m.sock", false, "unix:/run/m.sock"},
		{"unix:///run//m.sock", false, "unix:/run/m.sock"},
		{"192.0.2.1:9090", true, "192.0.2.1:9090"},
		{":9090", true, "[::]:9090"},

		{"192.0.2.1:9090", false, "--metrics-remote"},
		{":9090", false, "--metrics-remote"},
		{"0.0.0.0:9090", false, "--metrics-remote"},
		{"[::]:9090", false, "--metrics-remote"},
		{"[::ffff:192.0.2.1]:9090", false, "--metrics-remote"},
		{"", true, "requires --metrics-addr"},
		{"9090", false, "must be HOST:PORT"},
		{"127.0.0.1", false, "must be HOST:PORT"},
		{"127.0.0.1:70000", false, "port 70000"},
		{"127.0.0.1:-1", false, "port -1"},
		{"127.0.0.1:http", false, "port http"},
		{"example.org:9090", true, "must be an IP address"},
		{"unix:m.sock", false, "must be absolute"},
		{"unix:/" + strings.Repeat("x", 103), false, "at most 103 bytes"},
		{"unix:/run/joblet/../joblet/joblet.sock", false, "the socket of the API"},
	} {
		o := DefaultOptions()
		o.RunDir, o.MetricsAddr, o.MetricsRemote = "/run/joblet", tt.addr, tt.remote
		a, err := o.metricsAddr()
		if err != nil && strings.Contains(err.Error(), tt.want) && strings.HasPrefix(err.Error(), "--metrics-") {
			continue
		}
		if err != nil || a.String() != tt.want {
			t.Errorf("%q: got %v, %v; want %s", tt.addr, a, err, tt.want)
		}
	}
}

func TestMetricsListen(t *testing.T) {
	t.Parallel()
	testenv.RequireRoot(t)
	for _, addr := range []string{"127.0.0.1:0", "unix:" + filepath.Join(t.TempDir(), "m.sock")} {
		o := DefaultOptions()
		o.MetricsAddr = addr
		a, err := o.metricsAddr()
		if err != nil {
			t.Fatal(err)
		}
		l, cleanup, err := a.listen()
		if err != nil {
			t.Fatal(err)
		}
		if a.unix == "" {
			o.MetricsAddr = l.Addr().String()
			if a, err = o.metricsAddr(); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := a.listen(); err == nil || !strings.Contains(err.Error(), "another program listens there") || !strings.Contains(err.Error(), a.String()) {
			t.Errorf("second: got %v", err)
		}
		if a.unix == "" {
			cleanup()
		} else {
			l.Close() // a daemon that dies leaves its socket
		}
		_, cleanup, err = a.listen()
		if err != nil {
			t.Errorf("after the first: %v", err)
			continue
		}
		cleanup()
		if a.unix != "" {
			if _, err := os.Lstat(a.unix); !os.IsNotExist(err) {
				t.Errorf("the socket is left: %v", err)
			}
		}
	}
}

// TestMetricsListenRefuses: files and addresses of other programs are left alone.
func TestMetricsListenRefuses(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := (metricsAddr{unix: file}).listen(); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("got %v", err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "data" {
		t.Errorf("the file: %q, %v", data, err)
	}
	if _, _, err := (metricsAddr{unix: "/nonexistent/m.sock"}).listen(); err == nil || !strings.Contains(err.Error(), "/nonexistent/m.sock") {
		t.Errorf("got %v", err)
	}
	o := Options{MetricsAddr: "192.0.2.1:1", MetricsRemote: true} // RFC 5737: reserved for documentation
	a, err := o.metricsAddr()
	if err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	if l, _, err = a.listen(); err == nil || !strings.Contains(err.Error(), "does not have that address") {
		t.Errorf("got %v, %v", l, err)
	}
}
