package runtimes

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet"
)

func TestAllowedMirror(t *testing.T) {
	t.Parallel()
	entries := []string{"deb.debian.org", "cache.example:3142", "https://mirror.example/debian/", HostMirrors}
	for _, entry := range entries {
		if err := ValidMirror(entry); err != nil {
			t.Errorf("%s: %v", entry, err)
		}
	}
	for u, want := range map[string]bool{
		"http://deb.debian.org/debian":            true,
		"https://DEB.debian.org/debian":           true,
		"http://deb.debian.org:81/debian":         false,
		"http://deb.debian.org.evil.example/":     false,
		"http://evil.example/deb.debian.org":      false,
		"http://cache.example:3142/debian":        true,
		"http://cache.example/debian":             false,
		"https://mirror.example/debian":           true,
		"https://mirror.example/debian/pool":      true,
		"https://mirror.example/debian/../secret": false,
		"https://mirror.example/debian/%2e%2e/x":  false,
		"https://mirror.example/debian-other":     false,
		"http://mirror.example/debian":            false,
		"http://host/debian":                      false,
		"http://169.254.169.254/latest":           false,
	} {
		parsed, err := url.Parse(u)
		if err != nil {
			t.Fatal(err)
		}
		if got := allowedMirror(slices.DeleteFunc(slices.Clone(entries), func(e string) bool { return e == HostMirrors }), parsed); got != want {
			t.Errorf("%s: %v, want %v", u, got, want)
		}
	}
	for _, bad := range []string{"", "a b", "ftp://x/", "http://", "http://user:secret@x/", "x/y", "http://x/?q", "-x", "http://x/#f"} {
		if ValidMirror(bad) == nil {
			t.Errorf("%q is allowed in the list", bad)
		}
	}
}

// TestBuildMirror: a recipe cannot have the daemon ask any server.
func TestBuildMirror(t *testing.T) {
	fake(t, "")
	s := openStore(t)
	r := parse(t, fakeRecipe+"mirror: http://127.0.0.1:1/debian\n")
	_, err := s.Build(t.Context(), r, BuildOptions{Mirrors: DefaultMirrors()})
	if joblet.KindOf(err) != joblet.FailedPrecondition || !strings.Contains(err.Error(), `add it to "mirror"`) {
		t.Errorf("a mirror that is not allowed: %v", err)
	}
	if _, err := s.Build(t.Context(), r, BuildOptions{Mirrors: []string{"127.0.0.1:1"}}); err != nil {
		t.Errorf("one that is: %v", err)
	}
}

// TestBuildTimeout: a build that does not end is ended.
func TestBuildTimeout(t *testing.T) {
	fake(t, "sleep 1000 & sleep 1000")
	s := openStore(t)
	_, err := s.Build(t.Context(), parse(t, fakeRecipe), BuildOptions{Timeout: time.Second})
	if joblet.KindOf(err) != joblet.ResourceExhausted || !strings.Contains(err.Error(), "timed out after 1s") {
		t.Error(err)
	}
	if names := left(t, s); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
}

// TestFetcher: the sandbox gets files below its mirrors, until it is sealed, and
// nothing else.
func TestFetcher(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "internal") }))
	defer other.Close()
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/debian/elsewhere":
			http.Redirect(w, r, other.URL+"/", http.StatusFound)
		case "/debian/moved":
			http.Redirect(w, r, "/debian/file", http.StatusFound)
		case "/debian/file":
			if r.Header.Get("Cookie") != "" {
				t.Error("a header of the sandbox's is passed on")
			}
			_, _ = io.WriteString(w, "content")
		default:
			_, _ = io.WriteString(w, "secret")
		}
	}))
	defer mirror.Close()
	f, err := newFetcher([]aptSource{{mirror.URL + "/debian/", "bookworm"}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = f.server.Serve(l) }()
	defer func() { f.close(); <-done }()
	proxy := &url.URL{Scheme: "http", Host: l.Addr().String()}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy), DisableKeepAlives: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	ask := func(method, u string) (int, string) {
		t.Helper()
		// apt's proxy is asked for addresses of this host as well.
		r, err := http.NewRequestWithContext(t.Context(), method, u, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Cookie", "x")
		client.Transport.(*http.Transport).Proxy = func(*http.Request) (*url.URL, error) { return proxy, nil }
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	for _, tt := range []struct {
		method, url string
		status      int
		body        string
	}{
		{"GET", mirror.URL + "/debian/file", 200, "content"},
		{"HEAD", mirror.URL + "/debian/file", 200, ""},
		{"GET", mirror.URL + "/debian/moved", 200, "content"},
		{"POST", mirror.URL + "/debian/file", 403, "only GET"},
		{"GET", mirror.URL + "/other", 403, "not on a mirror"},
		{"GET", mirror.URL + "/debian/%2e%2e/other", 403, "only GET"},
		{"GET", mirror.URL + "/debian/file?q=1", 403, "only GET"},
		{"GET", other.URL + "/debian/file", 403, "not on a mirror"},
		{"GET", mirror.URL + "/debian/elsewhere", 502, "a mirror that the daemon does not allow"},
		{"GET", sealURL, 200, "sealed"},
		{"GET", mirror.URL + "/debian/file", 403, "no network any more"},
	} {
		if status, body := ask(tt.method, tt.url); status != tt.status || !strings.Contains(body, tt.body) {
			t.Errorf("%s %s: %d %q, want %d %q", tt.method, tt.url, status, body, tt.status, tt.body)
		}
	}
}
