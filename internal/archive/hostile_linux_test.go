package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/testenv"
)

const secret = "the host's secret"

// within fails the test if do waits, for a fifo say.
func within(t *testing.T, limit time.Duration, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); do() }()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("still not done after %v", limit)
	}
}

func TestPackTreeHostile(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), t.TempDir()
	write(t, 0o644, secret, outside, "file")
	write(t, 0o644, "good", dir, "good")
	write(t, 0o644, "huge", dir, "huge")
	if err := os.Truncate(filepath.Join(dir, "huge"), 1<<40); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "good"), filepath.Join(dir, "good too")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	// A socket's address is short; the directory's name may not be.
	short, err := os.MkdirTemp("", "a")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(short)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Rename(short+"/s", filepath.Join(dir, "socket")); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"absolute": "/etc/passwd", "out": "../" + filepath.Base(outside) + "/file", "outdir": outside, "tricky": "x/../..", "loop": "loop",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	deep := openRoot(t, dir)
	for range 105 { // os.MkdirAll would do, if names could be any length
		if err := deep.Mkdir("d", 0o755); err != nil {
			t.Fatal(err)
		}
		if deep, err = deep.OpenRoot("d"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { deep.Close() })
	}
	var buf bytes.Buffer
	within(t, 20*time.Second, func() {
		stats, err := PackTree(&buf, openRoot(t, dir), nil, generous)
		// Left out: fifo, socket, four links. Of huge, all but its beginning is a hole. A
		// further name counts nothing.
		if err != nil || stats.Entries != 3+1+105 || stats.Bytes != 4+4096 || stats.Skipped != 6 {
			t.Errorf("got %+v %v", stats, err)
		}
	})
	if strings.Contains(buf.String(), secret) {
		t.Error("the archive holds a file from outside")
	}
	if err := Verify(bytes.NewReader(buf.Bytes())); err != nil {
		t.Error(err)
	}
	// What is left out is named, on each way that the archive goes.
	left := map[string]string{
		"fifo": "is a named pipe", "socket": "is a socket", "absolute": `is a link to "/etc/passwd", which may be outside the directory`,
		"out": `is a link to "../` + filepath.Base(outside) + `/file", which may be outside the directory`, "outdir": `is a link to "` + outside + `", which may be outside the directory`,
		"tricky": `is a link to "x/../..", which may be outside the directory`,
	}
	named := func(way string, stats Stats, err error) {
		t.Helper()
		if err != nil || stats.Skipped != 6 || len(stats.LeftOut) != 6 {
			t.Errorf("%s: got %+v %v", way, stats, err)
		}
		for _, l := range stats.LeftOut {
			if l.Why != left[l.Name] {
				t.Errorf("%s: %.100q %s", way, l.Name, l.Why)
			}
		}
	}
	var selected, some bytes.Buffer
	stats, err := Select(&selected, bytes.NewReader(buf.Bytes()), nil)
	named("Select", stats, err)
	stats, err = Unpack(openRoot(t, t.TempDir()), &selected, generous)
	named("Unpack", stats, err)
	match, err := NewMatcher([]string{"good", "fifo"})
	if err != nil {
		t.Fatal(err)
	}
	if stats, err := Select(&some, bytes.NewReader(buf.Bytes()), match.Match); err != nil || stats.Skipped != 1 || len(stats.LeftOut) != 1 || stats.LeftOut[0].Name != "fifo" {
		t.Errorf("some: got %+v %v", stats, err)
	}
	if _, err := Check(io.Discard, &buf, generous); joblet.KindOf(err) != joblet.InvalidArgument {
		t.Errorf("as an upload: got %v", err) // it comes from a job alone
	}
	for _, name := range []string{"fifo", "socket"} {
		within(t, 20*time.Second, func() {
			_, err := PackPaths(io.Discard, []Source{{Path: filepath.Join(dir, name)}}, Filter{}, generous)
			if joblet.KindOf(err) != joblet.InvalidArgument || !strings.Contains(fmt.Sprint(err), name) {
				t.Errorf("%s: got %v", name, err)
			}
		})
	}
	within(t, 20*time.Second, func() { // in a directory, they are left out and named
		left := map[string]string{}
		_, err := PackPaths(io.Discard, []Source{{Path: dir}}, Filter{Exclude: []string{"d"}, LeftOut: func(file string, why error) {
			left[filepath.Base(file)] = why.Error()
		}}, generous)
		if left["fifo"] != "is a named pipe" || left["socket"] != "is a socket" {
			t.Errorf("got %v %v", left, err)
		}
	})
}

func TestPackTreeLimits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 10 {
		write(t, 0o644, "12345", dir, "d", fmt.Sprint(i))
	}
	root := openRoot(t, dir)
	for _, tt := range []struct {
		lim  Limits
		want Stats
	}{
		{Limits{50, 11}, Stats{Bytes: 50, Entries: 11, Skipped: 0}},
		{Limits{49, 11}, Stats{Bytes: 45, Entries: 10, Skipped: 1}},
		{Limits{50, 10}, Stats{Bytes: 45, Entries: 10, Skipped: 1}},
		// Ten names are looked at: the directory and nine files; the rest counts as one.
		{Limits{50, 1}, Stats{Bytes: 0, Entries: 1, Skipped: 10}},
	} {
		var buf bytes.Buffer
		got, err := PackTree(&buf, root, nil, tt.lim)
		tt.want.Top, tt.want.Beyond = []string{"d"}, tt.want.Skipped
		if len(got.LeftOut) != tt.want.Skipped {
			t.Errorf("%+v: left out: %v", tt.lim, got.LeftOut)
		}
		if got.LeftOut = nil; err != nil || fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%+v: got %+v %v, want %+v", tt.lim, got, err, tt.want)
		}
		if err := Verify(&buf); err != nil {
			t.Errorf("%+v: %v", tt.lim, err)
		}
	}
	var buf bytes.Buffer
	m, err := NewMatcher([]string{"d/[37]", "none"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := PackTree(&buf, root, m.Match, generous); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(names(t, buf.Bytes()), " "); got != "d/ d/3 d/7" {
		t.Errorf("selected: got %q", got)
	}
	if got := m.Unmatched(); len(got) != 1 || got[0] != "none" {
		t.Errorf("unmatched: got %q", got)
	}
}

// TestPackTreeChanging packs a tree that a hostile job changes all the time:
// what is in the archive is never from outside, and the archive is whole.
func TestPackTreeChanging(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), t.TempDir()
	write(t, 0o644, secret, outside, "file")
	write(t, 0o644, secret, outside, "dir/file")
	write(t, 0o644, "inside", dir, "sub/dir/file")
	write(t, 0o644, "inside", dir, "spare")

	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	in := func(name string) string { return filepath.Join(dir, name) }
	swap := func(steps ...func() error) {
		wg.Go(func() {
			for {
				for _, step := range steps {
					select {
					case <-stop:
						return
					default:
					}
					if err := step(); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	swap( // a file becomes a link to a secret, a fifo, a file again
		func() error { return os.WriteFile(in("tmp1"), []byte("inside"), 0o644) },
		func() error { return os.Rename(in("tmp1"), in("file")) },
		func() error { return os.Symlink(filepath.Join(outside, "file"), in("tmp1")) },
		func() error { return os.Rename(in("tmp1"), in("file")) },
		func() error { return syscall.Mkfifo(in("tmp1"), 0o644) },
		func() error { return os.Rename(in("tmp1"), in("file")) },
	)
	swap( // a directory becomes a link, a fifo, a directory again
		func() error { return os.Rename(in("sub/dir"), in("sub/hidden")) },
		func() error { return os.Symlink(filepath.Join(outside, "dir"), in("sub/dir")) },
		func() error { return os.Remove(in("sub/dir")) },
		func() error { return syscall.Mkfifo(in("sub/dir"), 0o644) },
		func() error { return os.Remove(in("sub/dir")) },
		func() error { return os.Rename(in("sub/hidden"), in("sub/dir")) },
	)
	swap( // a file grows and shrinks
		func() error { return os.WriteFile(in("size"), bytes.Repeat([]byte("x"), 100_000), 0o644) },
		func() error { return os.Truncate(in("size"), 10) },
	)
	root := openRoot(t, dir)
	within(t, 60*time.Second, func() {
		files := 0
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
			var buf bytes.Buffer
			if _, err := PackTree(&buf, root, nil, generous); err != nil {
				t.Error(err)
				return
			}
			if bytes.Contains(buf.Bytes(), []byte(secret)) {
				t.Error("the archive holds a file from outside")
				return
			}
			if err := Verify(bytes.NewReader(buf.Bytes())); err != nil {
				t.Error(err)
				return
			}
			files += strings.Count(strings.Join(names(t, buf.Bytes()), "\n"), "file")
		}
		if files == 0 {
			t.Error("never saw a file that comes and goes")
		}
	})
}

// TestUnpackEscapes unpacks archives that tar(1) of old would have let out.
func TestUnpackEscapes(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	write(t, 0o644, secret, parent, "victim/file")
	before := list(t, filepath.Join(parent, "victim"))
	for i, headers := range [][]tar.Header{
		{linkOf("l", "../victim"), fileOf("l/file", "evil")},
		{linkOf("l", parent+"/victim"), fileOf("l/file", "evil")},
		{fileOf("../victim/file", "evil")},
		{fileOf("a/../../victim/file", "evil")},
		{fileOf(parent+"/victim/file", "evil")},
		{linkOf("file", "../victim/file"), fileOf("file", "evil")},
		{dirOf("a/b/c"), linkOf("a/b/c/x", "../../.."), linkOf("a/b/c/y", "x/../victim"), fileOf("a/b/c/y/file", "evil")},
		{{Typeflag: tar.TypeLink, Name: "h", Linkname: "../victim/file"}, fileOf("h", "evil")},
		{{Typeflag: tar.TypeLink, Name: "h", Linkname: parent + "/victim/file"}},
	} {
		dir := filepath.Join(parent, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := Unpack(openRoot(t, dir), bytes.NewReader(tarOf(t, headers...)), generous); joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("%d: got %v", i, err)
		}
		diff(t, list(t, filepath.Join(parent, "victim")), before)
	}
}

// TestUnpackUmask: modes are the archive's without what the umask takes away, also of
// directories that the user himself cannot write to, or whose entry comes late.
func TestUnpackUmask(t *testing.T) { // not parallel: the umask is the process's
	testenv.RequireRoot(t)
	dirWith := func(name string, mode int64) tar.Header {
		return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}
	}
	fileWith := func(name string, mode int64) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}
	}
	archive := tarOf(t, dirWith("open", 0o2777), fileWith("open/f", 0o6777), fileWith("open/r", 0o444), dirWith("sticky", 0o1777),
		dirWith("closed", 0o577), fileWith("closed/f", 0o666), dirWith("closed/none", 0), fileWith("closed/none/f", 0o66),
		fileWith("late/f", 0o600), dirWith("late", 0o775), fileWith("implied/f", 0o600), fileWith("later/f", 0o600), dirWith("later", 0o570))
	for umask, want := range map[int]map[string]string{
		0o000: {"open": "drwxrwxrwx", "open/f": "-rwxrwxrwx ", "open/r": "-r--r--r-- ", "sticky": "drwxrwxrwx", "closed": "dr-xrwxrwx", "closed/f": "-rw-rw-rw- ",
			"closed/none": "d---------", "closed/none/f": "----rw-rw- ", "late": "drwxrwxr-x", "late/f": "-rw------- ", "implied": "drwxr-xr-x", "implied/f": "-rw------- ",
			"later": "dr-xrwx---", "later/f": "-rw------- "},
		0o027: {"open": "drwxr-x---", "open/f": "-rwxr-x--- ", "open/r": "-r--r----- ", "sticky": "drwxr-x---", "closed": "dr-xr-x---", "closed/f": "-rw-r----- ",
			"closed/none": "d---------", "closed/none/f": "----r----- ", "late": "drwxr-x---", "late/f": "-rw------- ", "implied": "drwxr-x---", "implied/f": "-rw------- ",
			"later": "dr-xr-x---", "later/f": "-rw------- "},
	} {
		dir := t.TempDir()
		old := syscall.Umask(umask)
		_, err := Unpack(openRoot(t, dir), bytes.NewReader(archive), generous)
		syscall.Umask(old)
		if err != nil {
			t.Errorf("%03o: %v", umask, err)
		}
		diff(t, list(t, dir), want)
	}
}

// TestLeftOutIsBounded: a job with many odd files does not make the list of them long.
func TestLeftOutIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 2 * maxLeftOut {
		if err := os.Symlink("/"+strings.Repeat("x", 3000), filepath.Join(dir, fmt.Sprintf("%03d", i)+strings.Repeat("n", 200)+"\xff")); err != nil {
			t.Fatal(err)
		}
	}
	var buf bytes.Buffer
	stats, err := PackTree(&buf, openRoot(t, dir), nil, generous)
	if err != nil || stats.Skipped != 2*maxLeftOut || len(stats.LeftOut) != maxLeftOut || buf.Len() > 2*maxLeftOutText {
		t.Errorf("got %d bytes, %d of %d, %v", buf.Len(), len(stats.LeftOut), stats.Skipped, err)
	}
	if got, err := Unpack(openRoot(t, t.TempDir()), &buf, generous); err != nil || got.Skipped != stats.Skipped || fmt.Sprint(got.LeftOut) != fmt.Sprint(stats.LeftOut) {
		t.Errorf("unpacked: %v %v", got, err)
	}
	for _, text := range []string{
		"x", commentPrefix, commentPrefix + "{}", commentPrefix + `{"skipped":0,"files":[["YQ==","Yg=="]]}`, commentPrefix + `{"skipped":-1,"files":[["YQ==","Yg=="]]}`,
		commentPrefix + `{"skipped":1,"files":[["YQ==","/w=="]]}`, commentPrefix + `{"skipped":1000,"files":[` + strings.Repeat(`["",""],`, maxLeftOut) + `["",""]]}`,
	} {
		archive := tarOf(t, tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{keyComment: text}})
		if _, err := Unpack(openRoot(t, t.TempDir()), bytes.NewReader(archive), generous); joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("%.100s: %v", text, err)
		}
	}
}

// deepTree makes directories below each other, as many as given, with a file in the
// deepest.
func deepTree(t *testing.T, dir string, depth int) {
	t.Helper()
	at := openRoot(t, dir)
	for range depth { // os.MkdirAll would do, if names could be any length
		err := at.Mkdir("d", 0o755)
		if err != nil {
			t.Fatal(err)
		}
		sub, err := at.OpenRoot("d")
		if err != nil {
			t.Fatal(err)
		}
		_ = at.Close()
		at = sub
	}
	defer at.Close()
	if err := at.WriteFile("f", []byte("deep"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestDeep: a file may be as deep as names can be long, each way; beyond that, the error
// names the bound.
func TestDeep(t *testing.T) {
	t.Parallel()
	const depth = maxName / 2 // of names of one byte
	name := strings.Repeat("d/", depth) + "f"
	dir := t.TempDir()
	deepTree(t, dir, depth)
	check := func(what string, stats Stats, err error) {
		t.Helper()
		if err != nil || stats.Entries != depth+1 || stats.Bytes != 4 || stats.Skipped != 0 {
			t.Fatalf("%s: %+v, %v", what, stats, err)
		}
	}
	within(t, 5*time.Minute, func() {
		var up, checked, left, selected bytes.Buffer
		stats, err := PackPaths(&up, []Source{{Path: dir}}, Filter{}, generous)
		check("pack", stats, err)
		stats, err = Check(&checked, &up, generous)
		check("check", stats, err)
		root := openRoot(t, t.TempDir())
		stats, err = UnpackForJob(root, &checked, generous)
		check("unpack", stats, err)
		stats, err = PackTree(&left, root, nil, generous)
		check("pack what is left", stats, err)
		stats, err = Select(&selected, bytes.NewReader(left.Bytes()), nil)
		check("select", stats, err)
		back := openRoot(t, t.TempDir())
		stats, err = Unpack(back, &selected, generous)
		check("unpack again", stats, err)
		if got, err := back.ReadFile(name); string(got) != "deep" {
			t.Errorf("%q, %v", got, err)
		}
	})
	deeper := t.TempDir()
	deepTree(t, deeper, depth+1)
	_, err := PackPaths(io.Discard, []Source{{Path: deeper}}, Filter{}, generous)
	if joblet.KindOf(err) != joblet.InvalidArgument || !strings.Contains(fmt.Sprint(err), "at most 4095 are possible") {
		t.Errorf("beyond: %.100v", err)
	}
}

// TestDeepWalks: only some walks are in deep directories at once.
func TestDeepWalks(t *testing.T) {
	dir := t.TempDir()
	deepTree(t, dir, deepDepth+1)
	for range maxDeep {
		deepWalks <- struct{}{}
	}
	_, err := PackTree(io.Discard, openRoot(t, dir), nil, generous)
	if joblet.KindOf(err) != joblet.ResourceExhausted || !strings.Contains(fmt.Sprint(err), "try again") {
		t.Errorf("%v", err)
	}
	for range maxDeep {
		<-deepWalks
	}
	if _, err := PackTree(io.Discard, openRoot(t, dir), nil, generous); err != nil || len(deepWalks) != 0 {
		t.Errorf("%v, %d are left", err, len(deepWalks))
	}
}
