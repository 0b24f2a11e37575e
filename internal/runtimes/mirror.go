package runtimes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/joblet/joblet"
)

// HostMirrors, in a list of mirrors, stands for those that the host's own apt uses.
const HostMirrors = "host"

// DefaultMirrors returns where recipes may take packages from when the
// configuration does not say.
func DefaultMirrors() []string {
	return []string{"deb.debian.org", "security.debian.org", "snapshot.debian.org", HostMirrors}
}

// ValidMirror reports what is wrong with an entry of the list of mirrors: it must
// be HOST, HOST:PORT, an http or https URL, or HostMirrors.
func ValidMirror(entry string) error {
	if entry == HostMirrors {
		return nil
	}
	u, err := url.Parse(entry)
	if err != nil || u.Scheme == "" || u.Host == "" {
		u, err = url.Parse("http://" + entry)
		if err == nil && u.Path != "" {
			return fmt.Errorf("%.100q: must be HOST, HOST:PORT, an http or https URL, or %q", entry, HostMirrors)
		}
	}
	if err != nil || u.Hostname() == "" || u.User != nil || !matches(mirrorRE, u.String()) {
		return fmt.Errorf("%.100q: must be HOST, HOST:PORT, an http or https URL, or %q", entry, HostMirrors)
	}
	return nil
}

// allowedMirror reports whether one of the entries covers a URL: its host, or, for
// an entry that is a URL, what lies below that.
func allowedMirror(entries []string, u *url.URL) bool {
	if hasDots(u.Path) {
		return false
	}
	return slices.ContainsFunc(entries, func(entry string) bool {
		e, err := url.Parse(entry)
		if err != nil || e.Scheme == "" || e.Host == "" { // HOST or HOST:PORT
			return strings.EqualFold(u.Host, entry)
		}
		return u.Scheme == e.Scheme && strings.EqualFold(u.Host, e.Host) && isBelow(u.Path, e.Path)
	})
}

// isBelow reports whether a path is base or lies below it.
func isBelow(p, base string) bool {
	base = strings.TrimSuffix(base, "/")
	return p == base || strings.HasPrefix(p, base+"/")
}

func hasDots(p string) bool {
	return slices.ContainsFunc(strings.Split(p, "/"), func(elem string) bool { return elem == "." || elem == ".." })
}

// checkMirror refuses a recipe whose mirror the configuration does not allow.
func checkMirror(r Recipe, allowed []string) error {
	if r.Mirror == "" {
		return nil
	}
	u, err := url.Parse(r.Mirror)
	if err != nil {
		return err
	}
	if slices.Contains(allowed, HostMirrors) {
		for _, s := range hostSources("/", r.Suite, r.Components) {
			allowed = append(slices.Clone(allowed), s.uri)
		}
	}
	if !allowedMirror(allowed, u) {
		return joblet.Errorf(joblet.FailedPrecondition, "the daemon does not allow the mirror %s, only %s: add it to \"mirror\" in the daemon's configuration",
			r.Mirror, strings.Join(allowed, ", "))
	}
	return nil
}

// fetchPort is where the sandbox finds the fetcher, on its loopback address.
const (
	fetchPort     = 3128
	fetchAddrPort = "3128" // for apt
)

const (
	// sealURL ends the fetcher: the packages are there.
	sealURL = "http://joblet.invalid/seal"
	// maxFetched bounds what one build may download.
	maxFetched = 16 << 30
	// maxFetches is how many files it may download at once.
	maxFetches = 16
)

// fetcher is the sandbox's only way out: a proxy that answers GET and HEAD for
// what lies below the build's own mirrors, until it is sealed. apt asks for
// http://, also where a mirror is reached over https: the connection is the
// daemon's, with the host's proxy and authorities, of which the sandbox learns
// nothing.
type fetcher struct {
	upstream map[string]*url.URL // "host/path" as apt asks → the mirror
	allowed  []string            // where a mirror may redirect to
	client   *http.Client
	server   *http.Server
	slots    chan struct{}
	sealed   atomic.Bool
	left     atomic.Int64 // bytes
}

// newFetcher returns a fetcher for the mirrors of a build.
func newFetcher(sources []aptSource, allowed []string, proxy func(*http.Request) (*url.URL, error)) (*fetcher, error) {
	f := &fetcher{upstream: map[string]*url.URL{}, allowed: slices.Clone(allowed), slots: make(chan struct{}, maxFetches)}
	f.left.Store(maxFetched)
	for _, s := range sources {
		u, err := url.Parse(s.uri)
		if err != nil {
			return nil, err
		}
		u.Path = strings.TrimSuffix(u.Path, "/")
		f.upstream[u.Host+u.Path] = u
		f.allowed = append(f.allowed, s.uri)
	}
	f.client = &http.Client{
		Transport: &http.Transport{
			Proxy: proxy, DialContext: (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout: 30 * time.Second, ResponseHeaderTimeout: time.Minute, IdleConnTimeout: 30 * time.Second,
			DisableCompression: true, // what apt gets is what the mirror signed
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) >= 5 {
				return errors.New("too many redirections")
			}
			if !allowedMirror(f.allowed, r.URL) {
				return fmt.Errorf("redirected to %s, a mirror that the daemon does not allow", r.URL.Host)
			}
			return nil
		},
	}
	f.server = &http.Server{Handler: f, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10}
	return f, nil
}

// close ends the fetcher and what it has under way.
func (f *fetcher) close() {
	f.sealed.Store(true)
	_ = f.server.Close()
	f.client.CloseIdleConnections()
}

func (f *fetcher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.String() == sealURL {
		f.sealed.Store(true)
		_, _ = io.WriteString(w, "sealed\n")
		return
	}
	u, err := f.target(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-r.Context().Done():
		return
	}
	req, err := http.NewRequestWithContext(r.Context(), r.Method, u.String(), nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, h := range []string{"Range", "If-Range", "If-Modified-Since", "Cache-Control", "Accept"} {
		if v := r.Header.Get(h); v != "" {
			req.Header.Set(h, v)
		}
	}
	req.Header.Set("User-Agent", "joblet/"+joblet.Build().Version)
	resp, err := f.client.Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	for _, h := range []string{"Content-Type", "Content-Length", "Content-Range", "Accept-Ranges", "Last-Modified", "Date", "Expires", "Cache-Control"} {
		if v := resp.Header.Get(h); v != "" {
			w.Header().Set(h, v)
		}
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, &bounded{resp.Body, &f.left}) // apt notices the truncation
}

// target returns what a request asks of a mirror.
func (f *fetcher) target(r *http.Request) (*url.URL, error) {
	switch {
	case f.sealed.Load():
		return nil, errors.New("all packages are downloaded: this build has no network any more")
	case r.Method != http.MethodGet && r.Method != http.MethodHead, r.URL.Scheme != "http", r.URL.User != nil, r.URL.RawQuery != "", hasDots(r.URL.Path):
		return nil, errors.New("only GET requests for files of mirrors are allowed")
	}
	name := r.URL.Host + r.URL.Path
	for base, mirror := range f.upstream {
		if rest, ok := strings.CutPrefix(name, base+"/"); ok {
			u := *mirror
			u.Path = path.Join("/", mirror.Path, rest)
			return &u, nil
		}
	}
	return nil, fmt.Errorf("%.200s is not on a mirror of this build", name)
}

type bounded struct {
	r    io.Reader
	left *atomic.Int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left.Load() <= 0 {
		return 0, fmt.Errorf("more than %d bytes downloaded", int64(maxFetched))
	}
	n, err := b.r.Read(p)
	b.left.Add(-int64(n))
	return n, err
}

// insideSources returns the sources as apt in the sandbox gets them: over http,
// from the fetcher.
func insideSources(sources []aptSource) []aptSource {
	inside := slices.Clone(sources)
	for i := range inside {
		inside[i].uri = strings.Replace(inside[i].uri, "https://", "http://", 1)
	}
	return inside
}

// hostProxy returns the proxy settings of the environment or, without any, of the
// host's apt.
func hostProxy(ctx context.Context) func(*http.Request) (*url.URL, error) {
	for _, name := range []string{"http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"} {
		if os.Getenv(name) != "" {
			return http.ProxyFromEnvironment
		}
	}
	out, err := exec.CommandContext(ctx, "apt-config", "dump", "--format", "%v%n", "Acquire::http::Proxy").Output()
	if err != nil {
		return nil
	}
	first, _, _ := strings.Cut(string(out), "\n")
	u, err := url.Parse(strings.TrimSpace(first))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil
	}
	return http.ProxyURL(u)
}
