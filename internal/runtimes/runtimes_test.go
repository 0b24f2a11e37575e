package runtimes

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/testenv"
)

func openStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "runtimes"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// plant puts a runtime with the given runtime.yaml into s, as a build or a
// stranger would.
func plant(t testing.TB, s *Store, name, meta string) {
	t.Helper()
	bin := filepath.Join(s.dir, name, rootFSName, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(bin, "sh"), strings.Repeat("x", 8192))
	if meta != "" {
		write(t, filepath.Join(s.dir, name, metaFile), meta)
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// left returns the names in the store's directory.
func left(t testing.TB, s *Store) []string {
	t.Helper()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

const goodMeta = "format: 1\nname: good\nversion: '1'\nenvironment: {A: b}\ntest: [\"true\"]\n"

func TestGet(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	_, err := s.Get("good")
	if joblet.KindOf(err) != joblet.NotFound || !strings.Contains(err.Error(), "rnx runtime build recipes/good.yaml") {
		t.Errorf("empty store: %v", err)
	}
	plant(t, s, "good", goodMeta)
	for range 2 { // read, then cached
		rt, err := s.Get("good")
		if err != nil {
			t.Fatal(err)
		}
		if rt.RootFS != filepath.Join(s.dir, "good", "rootfs") || rt.Version != "1" || rt.Environment["A"] != "b" {
			t.Errorf("got %+v", rt)
		}
	}
	write(t, filepath.Join(s.dir, "good", metaFile), strings.Replace(goodMeta, "'1'", "'2.0'", 1))
	if rt, err := s.Get("good"); err != nil || rt.Version != "2.0" {
		t.Errorf("after a change: %q, %v", rt.Version, err)
	}
	if _, err := s.Get("other"); joblet.KindOf(err) != joblet.NotFound || !strings.Contains(err.Error(), "installed: good)") {
		t.Errorf("unknown name: %v", err)
	}
	for _, name := range []string{"", ".", "..", "../good", "good/", "/etc", ".build-x", "a\x00b", strings.Repeat("a", 64)} {
		if _, err := s.Get(name); joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("name %q: %v", name, err)
		}
		if _, err := s.Remove(name, nil); joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("remove name %q: %v", name, err)
		}
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	for name, rest := range map[string]string{
		"python-3.11-ml": "version: '1.0'\nlanguage: python\nlanguage_version: '3.11'\n",
		"web":            "language: node\nlanguage_version: '20'\n",
		"node-a":         "version: 2.1.0+b\nlanguage: node\nlanguage_version: '18'\n",
		"node-b":         "language: node\nlanguage_version: '18'\n",
		"broken":         "hooks: [x]\n",
	} {
		plant(t, s, name, "format: 1\nname: "+name+"\n"+rest)
	}
	for _, test := range []struct {
		ref, want string
		kind      joblet.Kind
		text      string
	}{
		{ref: "python-3.11-ml", want: "python-3.11-ml"},
		{ref: "python-3.11-ml@1.0", want: "python-3.11-ml"},
		{ref: "python-3.11-ml@1.0.0", want: "python-3.11-ml"},
		{ref: "python-3.11-ml@1", want: "python-3.11-ml"},
		{ref: "python-3.11-ml@latest", want: "python-3.11-ml"},
		{ref: "python:3.11-ml", want: "python-3.11-ml"},
		{ref: "python:3.11", want: "python-3.11-ml"},
		{ref: "python:latest", want: "python-3.11-ml"},
		{ref: "node:20", want: "web"},
		{ref: "node-a@2.1.0+b", want: "node-a"},
		{ref: "python-3.11-ml@1.1.0", kind: joblet.NotFound, text: "runtime python-3.11-ml@1.1.0 is not installed: the installed python-3.11-ml has version 1.0"},
		{ref: "python-3.11-ml@10", kind: joblet.NotFound, text: "has version 1.0"},
		{ref: "web@1.0.0", kind: joblet.NotFound, text: "the installed web has no version"},
		{ref: "web@0.0", kind: joblet.NotFound},
		{ref: "other@1.0.0", kind: joblet.NotFound, text: "runtime other is not installed"},
		{ref: "python:3.12", kind: joblet.NotFound, text: "recipes/python-3.12.yaml"},
		{ref: "node:18", kind: joblet.InvalidArgument, text: "is ambiguous: name one of node-a, node-b"},
		{ref: "broken@1.0", kind: joblet.FailedPrecondition},
		{ref: "web@", kind: joblet.InvalidArgument},
		{ref: "@1.0", kind: joblet.InvalidArgument},
		{ref: ":20", kind: joblet.InvalidArgument},
		{ref: "node:", kind: joblet.InvalidArgument},
		{ref: "node:../x", kind: joblet.InvalidArgument},
		{ref: "web@../x", kind: joblet.InvalidArgument},
		{ref: "web@1@2", kind: joblet.InvalidArgument},
		{ref: "node:20@1.0", kind: joblet.InvalidArgument},
		{ref: "a:b:c", kind: joblet.InvalidArgument},
		{ref: "", kind: joblet.InvalidArgument},
		{ref: "node:" + strings.Repeat("1", 64), kind: joblet.InvalidArgument},
		{ref: "node:" + strings.Repeat("1", 63), kind: joblet.NotFound},
	} {
		rt, err := s.Find(test.ref)
		if rt.Name != test.want || err == nil && test.want == "" || err != nil && (joblet.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.text)) {
			t.Errorf("%s: got %q, %v", test.ref, rt.Name, err)
		}
	}
}

func TestDamagedEntries(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	plant(t, s, "good", goodMeta)
	outside := t.TempDir()
	write(t, filepath.Join(outside, metaFile), "format: 1\nname: link\n")
	if err := os.Mkdir(filepath.Join(outside, rootFSName), 0o755); err != nil {
		t.Fatal(err)
	}

	damaged := map[string]string{ // name → runtime.yaml
		"nothing":   "",
		"empty":     " ",
		"unknown":   "format: 1\nname: unknown\nhooks: [x]\n",
		"othername": goodMeta,
		"newer":     "format: 2\nname: newer\n",
		"noyaml":    "\x00\xff{",
		"badenv":    "format: 1\nname: badenv\nenvironment: {'A=B': c}\n",
		"huge":      "#" + strings.Repeat("x", maxMetaSize),
	}
	for name, meta := range damaged {
		plant(t, s, name, meta)
	}
	plant(t, s, "norootfs", "format: 1\nname: norootfs\n")
	plant(t, s, "linkrootfs", "format: 1\nname: linkrootfs\n")
	for _, name := range []string{"norootfs", "linkrootfs"} {
		if err := os.RemoveAll(filepath.Join(s.dir, name, rootFSName)); err != nil {
			t.Fatal(err)
		}
		damaged[name] = ""
	}
	symlinks := map[string]string{"linkrootfs/rootfs": "/", "link": outside, "dangling": "/nonexistent"}
	for link, target := range symlinks {
		if err := os.Symlink(target, filepath.Join(s.dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(s.dir, "file"), "x")
	for _, name := range []string{"link", "dangling", "file"} {
		damaged[name] = ""
	}
	plant(t, s, "bad name\x1b[2J", goodMeta)

	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != len(damaged)+2 {
		t.Errorf("%d entries, want %d", len(list), len(damaged)+2)
	}
	for _, rt := range list {
		if (rt.Name == "good") != (rt.Err == nil) {
			t.Errorf("%s: error %v", rt.Name, rt.Err)
		}
		if rt.Err != nil && rt.RootFS != "" {
			t.Errorf("%s: damaged, with a tree", rt.Name)
		}
		if strings.ContainsRune(rt.Name, 0x1b) {
			t.Errorf("name %q goes to terminals", rt.Name)
		}
	}
	for name := range damaged {
		if _, err := s.Get(name); joblet.KindOf(err) != joblet.FailedPrecondition || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("get %s: %v", name, err)
		}
		if _, err := s.Remove(name, nil); err != nil {
			t.Errorf("remove %s: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(outside, metaFile)); err != nil {
		t.Errorf("removing a link removed what it leads to: %v", err)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	plant(t, s, "good", goodMeta)
	outside := filepath.Join(t.TempDir(), "precious")
	write(t, outside, "x")
	for link, target := range map[string]string{"up": filepath.Dir(outside), "file": outside} {
		if err := os.Symlink(target, filepath.Join(s.dir, "good", rootFSName, link)); err != nil {
			t.Fatal(err)
		}
	}

	var asked string
	_, err := s.Remove("good", func(name string) bool { asked = name; return true })
	if joblet.KindOf(err) != joblet.FailedPrecondition || asked != "good" {
		t.Errorf("in use: %v, asked for %q", err, asked)
	}
	if _, err := s.Get("good"); err != nil {
		t.Errorf("after a refused removal: %v", err)
	}
	freed, err := s.Remove("good", func(string) bool { return false })
	if err != nil || freed < 8192 {
		t.Errorf("freed %d, %v", freed, err)
	}
	if names := left(t, s); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
	if _, err := s.Remove("good", nil); joblet.KindOf(err) != joblet.NotFound {
		t.Errorf("second removal: %v", err)
	}
	if _, err := s.Get("good"); joblet.KindOf(err) != joblet.NotFound {
		t.Errorf("get after removal: %v", err)
	}
}

func TestRemoveWithMount(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	s := openStore(t)
	plant(t, s, "good", goodMeta)
	bin := filepath.Join(s.dir, "good", rootFSName, "bin")
	if err := unix.Mount(t.TempDir(), bin, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	_, err := s.Remove("good", nil)
	if joblet.KindOf(err) != joblet.FailedPrecondition || !strings.Contains(err.Error(), bin) {
		t.Errorf("with a mount inside: %v", err)
	}
	if err := unix.Unmount(bin, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove("good", nil); err != nil {
		t.Error(err)
	}
}

func TestOpenCleans(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	plant(t, s, "good", goodMeta)
	plant(t, s, ".build-gone", "")
	plant(t, s, ".trash-1", "")
	plant(t, s, ".build-alive", "")
	write(t, filepath.Join(s.dir, ".build-file"), "")
	lock, err := lockDir(filepath.Join(s.dir, ".build-alive"))
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		m := filepath.Join(s.dir, ".build-gone", rootFSName, "bin")
		if err := unix.Mount(t.TempDir(), m, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(s.dir); err != nil {
		t.Fatal(err)
	}
	if names := left(t, s); !slices.Equal(names, []string{".build-alive", "good"}) {
		t.Errorf("left: %q", names)
	}
	_ = lock.Close()
	if _, err := Open(s.dir); err != nil {
		t.Fatal(err)
	}
	if names := left(t, s); !slices.Equal(names, []string{"good"}) {
		t.Errorf("left: %q", names)
	}
	if list, err := s.List(); err != nil || len(list) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
}

func TestOpenFails(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	if _, err := Open(filepath.Join(file, "runtimes")); err == nil {
		t.Error("a file as directory was accepted")
	}
}

// Get, List and Remove at once: a name stands for a whole runtime or for none.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := s.Get("good"); err != nil && joblet.KindOf(err) != joblet.NotFound {
					t.Errorf("get: %v", err)
					return
				}
				if _, err := s.List(); err != nil {
					t.Errorf("list: %v", err)
					return
				}
			}
		})
	}
	for range 50 {
		plant(t, s, ".build-good", goodMeta)
		if _, err := s.publish(filepath.Join(s.dir, ".build-good"), filepath.Join(s.dir, "good"), "good", BuildOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Remove("good", nil); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
}

func TestMeasure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a"), strings.Repeat("x", 1<<20))
	before, _, err := measure(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	after, files, err := measure(dir)
	if err != nil || after != before || files != 3 || before < 1<<20 {
		t.Errorf("%d, with a hard link %d in %d files, %v", before, after, files, err)
	}
	if _, _, err := measure(filepath.Join(dir, "none")); err == nil {
		t.Error("no error for a missing directory")
	}
}

func BenchmarkGet(b *testing.B) {
	s := openStore(b)
	plant(b, s, "good", goodMeta)
	for b.Loop() {
		if _, err := s.Get("good"); err != nil {
			b.Fatal(err)
		}
	}
}

func requireRoot(t testing.TB) {
	t.Helper()
	testenv.RequireRoot(t)
}
