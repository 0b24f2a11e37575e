package runtimes

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

// The tests of Build replace mmdebstrap by this script: what it does besides
// is the value of FAKE_STEP. A build with the real one is part of the
// end-to-end tests.
const fakeMmdebstrap = `#!/bin/bash
set -eu
if [ "$1" = --version ]; then echo mmdebstrap 0.0-fake; exit; fi
printf 'argument %s\n' "$@"
sources="${@: -1}"; target="${@: -2:1}"
mkdir -p "$target"/usr/{bin,lib/py/numpy/tests} "$target"/etc/apt "$target"/var/{lib/dpkg,log/www,cache/{fontconfig,apt/archives}} "$target"/srv/www "$target"/dev "$target"/proc "$target"/tmp
ln -s usr/bin "$target/bin"
cp "$sources" "$target/etc/apt/"
echo secret > "$target/etc/shadow"; chmod 600 "$target/etc/shadow"
echo builder > "$target/etc/hostname"
echo x > "$target/usr/bin/su"; chmod 4700 "$target/usr/bin/su"
echo x > "$target/usr/lib/py/numpy/tests/t.py"
echo x > "$target/usr/lib/private"; chmod 600 "$target/usr/lib/private"
for f in var/log/dpkg.log var/log/www/error.log var/cache/fontconfig/fonts var/cache/apt/pkgcache.bin srv/www/index; do echo x > "$target/$f"; done
mknod "$target/usr/lib/disk" b 8 0 2>/dev/null || true
mkfifo "$target/usr/lib/pipe"
printf 'Package: bash\nStatus: install ok installed\nVersion: 5.2\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: dash\nStatus: install ok installed\nVersion: 0.5\n' > "$target/var/lib/dpkg/status"
echo "I: extracting archives..."
echo "I: running --extract-hook directly: /build/download /build/rootfs"
echo "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded."
echo "Get:1 http://deb.debian.org/debian bookworm/main amd64 bash amd64 5.2 [1 kB]"
echo "I: installing remaining packages inside the chroot..."
@STEP@
echo "Setting up bash (5.2) ..."
`

// fake puts the script into the PATH and returns its directory, which is the one
// of the test's that the sandbox sees.
func fake(t *testing.T, step string) (dir string) {
	t.Helper()
	requireRoot(t)
	dir = t.TempDir()
	fakeIn(t, dir, step)
	return dir
}

func fakeIn(t *testing.T, dir, step string) {
	t.Helper()
	script := strings.ReplaceAll(fakeMmdebstrap, "@STEP@", step)
	if err := os.WriteFile(filepath.Join(dir, "mmdebstrap"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// fifo makes a pipe that the sandbox can open.
func fifo(t *testing.T, dir, name string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := unix.Mkfifo(p, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p, 0o666); err != nil {
		t.Fatal(err)
	}
	return p
}

func parse(t *testing.T, yaml string) Recipe {
	t.Helper()
	r, err := ParseRecipe([]byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const fakeRecipe = `
name: fake
packages: [bash=5.2]
exclude: [/usr/lib/*/tests]
links: {/usr/bin/sh: /usr/bin/bash, /opt/a/b: /etc/passwd}
environment: {LANG: C.UTF-8}
test: ["true"]
`

func TestBuild(t *testing.T) {
	fake(t, "")
	s := openStore(t)
	r := parse(t, fakeRecipe)
	var steps []Progress
	var log []string
	rt, err := s.Build(t.Context(), r, BuildOptions{
		Progress: func(p Progress) { steps = append(steps, p) },
		Log:      func(l string) { log = append(log, l) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if names := left(t, s); !slices.Equal(names, []string{"fake"}) {
		t.Errorf("left in the store: %q", names)
	}
	if entries, err := os.ReadDir(filepath.Join(s.dir, "fake")); err != nil || len(entries) != 2 {
		t.Errorf("left in the runtime: %v, %v", entries, err)
	}

	given := strings.Join(log, "\n")
	for _, want := range []string{"argument --mode=root\n", "argument --include=usr-is-merged,bash=5.2\nargument --\nargument bookworm\n"} {
		if !strings.Contains(given, want) {
			t.Errorf("arguments %q lack %q", given, want)
		}
	}

	if rt.SizeBytes == 0 || rt.Files == 0 || rt.BuiltAt.IsZero() || rt.BuiltWith != "mmdebstrap 0.0-fake" ||
		rt.Recipe != fakeRecipe || len(rt.RecipeSHA256) != 64 || rt.Environment["LANG"] != "C.UTF-8" {
		t.Errorf("runtime: %+v", rt)
	}
	if !slices.Equal(rt.Packages, []string{"bash=5.2"}) || !slices.Equal(rt.Installed, []string{"bash=5.2", "dash=0.5"}) {
		t.Errorf("packages %q, installed %q", rt.Packages, rt.Installed)
	}
	other, err := Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := other.Get("fake"); err != nil || !again.BuiltAt.Equal(rt.BuiltAt) || again.Recipe != rt.Recipe {
		t.Errorf("read back: %+v, %v", again, err)
	}

	for _, gone := range []string{"etc/shadow", "etc/apt", "usr/lib/disk", "var/log/dpkg.log", "var/log/www/error.log", "var/cache/apt/pkgcache.bin", "usr/lib/py/numpy/tests", "usr/lib/pipe"} {
		if _, err := os.Lstat(filepath.Join(rt.RootFS, gone)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", gone, err)
		}
	}
	for link, want := range map[string]string{
		"bin": "usr/bin", "usr/bin/sh": "/usr/bin/bash", "opt/a/b": "/etc/passwd",
		"etc/hostname": "/run/joblet/hostname", "etc/hosts": "/run/joblet/hosts", "etc/resolv.conf": "/run/joblet/resolv.conf", "etc/mtab": "../proc/self/mounts",
	} {
		if target, err := os.Readlink(filepath.Join(rt.RootFS, link)); err != nil || target != want {
			t.Errorf("%s → %q, %v", link, target, err)
		}
	}
	for p, want := range map[string]os.FileMode{
		"usr/bin/su": 0o755, "usr/lib/private": 0o644, "etc/passwd": 0o644, "var/cache/fontconfig/fonts": 0o644, "srv/www/index": 0o644,
		"var/log/www": 0o755 | os.ModeDir, "var/cache/apt/archives": 0o755 | os.ModeDir,
		"tmp": 0o777 | os.ModeDir | os.ModeSticky, "proc": 0o555 | os.ModeDir, "work": 0o755 | os.ModeDir, "volumes": 0o755 | os.ModeDir,
	} {
		if fi, err := os.Lstat(filepath.Join(rt.RootFS, p)); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", p, fi.Mode(), err, want)
		}
	}

	if last := steps[len(steps)-1]; last.Percent != 100 || last.Phase != Phases {
		t.Errorf("last step %+v", last)
	}
	for i := range steps[1:] {
		if steps[i+1].Percent < steps[i].Percent || steps[i+1].Phase < steps[i].Phase {
			t.Errorf("step %+v after %+v", steps[i+1], steps[i])
		}
	}
	if !slices.Contains(log, "Setting up bash (5.2) ...") {
		t.Errorf("log %q", log)
	}
}

func TestBuildFails(t *testing.T) {
	for _, tt := range []struct {
		name, step, want string
		kind             joblet.Kind
	}{
		{"half-way", "echo 'E: Unable to locate package bsh'; echo 'E: mmdebstrap failed to run'; exit 25", "exit status 25: E: Unable to locate package bsh", joblet.FailedPrecondition},
		{"control characters", `printf 'E: \033[31mred\n'; exit 2`, "E: \uFFFD[31mred", joblet.FailedPrecondition},
		{"without a word", "exit 1", "exit status 1", joblet.FailedPrecondition},
		{"full disk", "echo 'dpkg: error: cannot write: No space left on device'; exit 1", "no space left", joblet.ResourceExhausted},
		{"endless line", "head -c 3000000 /dev/zero | tr '\\0' x; exit 3", "exit status 3", joblet.FailedPrecondition},
		{"without a tree", `rm -r "$target"`, "finish the tree", joblet.Internal},
		{"no packages", `rm "$target/var/lib/dpkg/status"`, "status", joblet.Internal},
		{"tree that leads out", `rm -r "$target/etc"; ln -s ../../../../precious "$target/etc"`, "escapes", joblet.Internal},
		{"mounts", `mount -t tmpfs none "$target/proc"; exit 4`, "exit status 4", joblet.FailedPrecondition},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fake(t, tt.step)
			s := openStore(t)
			precious := filepath.Join(filepath.Dir(s.dir), "precious")
			if err := os.Mkdir(precious, 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(precious, "shadow"), "x")
			_, err := s.Build(t.Context(), parse(t, fakeRecipe), BuildOptions{})
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "cannot build runtime fake: ") || joblet.KindOf(err) != tt.kind {
				t.Errorf("%v: %v", joblet.KindOf(err), err)
			}
			if names := left(t, s); len(names) != 0 {
				t.Errorf("left: %q", names)
			}
			if _, err := os.Stat(filepath.Join(precious, "shadow")); err != nil {
				t.Error(err)
			}
			if m, err := mountsBelow(s.dir); err != nil || len(m) > 0 {
				t.Errorf("mounts: %q, %v", m, err)
			}
		})
	}
}

func TestBuildImpossible(t *testing.T) {
	requireRoot(t)
	s := openStore(t)
	t.Run("architecture", func(t *testing.T) {
		_, err := s.Build(t.Context(), parse(t, fakeRecipe+"architectures: [vax]\n"), BuildOptions{})
		if joblet.KindOf(err) != joblet.FailedPrecondition || !strings.Contains(err.Error(), "vax") {
			t.Error(err)
		}
	})
	t.Run("recipe that was never checked", func(t *testing.T) {
		if _, err := s.Build(t.Context(), Recipe{Name: "../x"}, BuildOptions{}); joblet.KindOf(err) != joblet.InvalidArgument {
			t.Error(err)
		}
	})
	t.Run("no mmdebstrap", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		_, err := s.Build(t.Context(), parse(t, fakeRecipe), BuildOptions{})
		if joblet.KindOf(err) != joblet.FailedPrecondition || !strings.Contains(err.Error(), "apt-get install mmdebstrap") {
			t.Error(err)
		}
	})
	if names := left(t, s); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
}

func TestBuildReplaces(t *testing.T) {
	fake(t, "")
	s := openStore(t)
	r := parse(t, fakeRecipe)
	if _, err := s.Build(t.Context(), r, BuildOptions{}); err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(s.dir, "fake", rootFSName, "old")
	write(t, mark, "")
	if _, err := s.Build(t.Context(), r, BuildOptions{}); joblet.KindOf(err) != joblet.AlreadyExists {
		t.Errorf("without force: %v", err)
	}
	busy := BuildOptions{Force: true, InUse: func(name string) bool { return name == "fake" }}
	if _, err := s.Build(t.Context(), r, busy); joblet.KindOf(err) != joblet.FailedPrecondition {
		t.Errorf("in use: %v", err)
	}
	// In use only once the new tree is ready.
	asked := 0
	busy.InUse = func(string) bool { asked++; return asked > 1 }
	if _, err := s.Build(t.Context(), r, busy); joblet.KindOf(err) != joblet.FailedPrecondition {
		t.Errorf("in use at the end: %v", err)
	}
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the old tree is gone: %v", err)
	}
	if _, err := s.Build(t.Context(), r, BuildOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old tree is still there: %v", err)
	}
	if names := left(t, s); !slices.Equal(names, []string{"fake"}) {
		t.Errorf("left: %q", names)
	}
	// A damaged runtime is replaced as well.
	if err := os.Remove(filepath.Join(s.dir, "fake", metaFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Build(t.Context(), r, BuildOptions{Force: true}); err != nil {
		t.Error(err)
	}
}

func TestBuildCanceled(t *testing.T) {
	dir := t.TempDir()
	alive := fifo(t, dir, "alive")
	requireRoot(t)
	fakeIn(t, dir, "exec 9> "+alive+"; sleep 1000 & sleep 1000")
	s := openStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		f, err := os.Open(alive) // returns when the script is at its step
		cancel()
		if err == nil {
			_, err = io.Copy(io.Discard, f) // and this when all its processes are dead
			_ = f.Close()
		}
		gone <- err
	}()
	_, err := s.Build(ctx, parse(t, fakeRecipe), BuildOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-gone; err != nil {
		t.Error(err)
	}
	if names := left(t, s); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
}

func TestBuildsOfOneName(t *testing.T) {
	dir := t.TempDir()
	started, release := fifo(t, dir, "started"), fifo(t, dir, "release")
	requireRoot(t)
	fakeIn(t, dir, "echo > "+started+"; read -r _ < "+release)
	s := openStore(t)
	r := parse(t, fakeRecipe)
	first := make(chan error, 1)
	go func() {
		_, err := s.Build(t.Context(), r, BuildOptions{})
		first <- err
	}()
	if _, err := os.ReadFile(started); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Build(t.Context(), r, BuildOptions{}); joblet.KindOf(err) != joblet.FailedPrecondition || !strings.Contains(err.Error(), "is running") {
		t.Errorf("second build: %v", err)
	}
	if _, err := Open(s.dir); err != nil { // leaves the live build alone
		t.Error(err)
	}
	if _, err := s.Get("fake"); joblet.KindOf(err) != joblet.NotFound {
		t.Errorf("half-way: %v", err)
	}
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("half-way: %v, %v", list, err)
	}
	if err := os.WriteFile(release, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
	if _, err := s.Get("fake"); err != nil {
		t.Error(err)
	}
}

// builderEnv makes the test binary a program that builds in the directory
// that it names.
const builderEnv = "RUNTIMES_TEST_BUILDER"

func TestMain(m *testing.M) {
	SandboxInit()
	dir := os.Getenv(builderEnv)
	if dir == "" {
		os.Exit(m.Run())
	}
	s, err := Open(dir)
	if err == nil {
		var r Recipe
		if r, err = ParseRecipe([]byte(fakeRecipe)); err == nil {
			_, err = s.Build(context.Background(), r, BuildOptions{Log: func(l string) { fmt.Println(l) }})
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

// A builder that is killed takes mmdebstrap with it, and what it leaves goes
// when the store is next opened.
func TestBuilderKilled(t *testing.T) {
	dir := t.TempDir()
	alive := fifo(t, dir, "alive")
	requireRoot(t)
	fakeIn(t, dir, "exec 9> "+alive+"; echo at the step; sleep 1000 & sleep 1000")
	s := openStore(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	builder := exec.Command(self)
	builder.Env = append(os.Environ(), builderEnv+"="+s.dir)
	out, err := builder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := builder.Start(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(alive)
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "at the step"; {
	}
	if err := builder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, f); err != nil { // returns when all processes of the script are dead
		t.Error(err)
	}
	_ = f.Close()
	_ = builder.Wait()
	if names := left(t, s); !slices.Equal(names, []string{".build-fake"}) {
		t.Errorf("left by the killed builder: %q", names)
	}
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
	if _, err := Open(s.dir); err != nil {
		t.Error(err)
	}
	if names := left(t, s); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
}

func TestBuildOmits(t *testing.T) {
	fake(t, `cp -r "$(dirname "$target")/omitted" "$target/opt-omitted"; cp "$sources" "$target/sources"`)
	s := openStore(t)
	var log []string
	rt, err := s.Build(t.Context(), parse(t, fakeRecipe+"omit: [g++, python3-sympy]\n"), BuildOptions{Log: func(l string) { log = append(log, l) }})
	if err != nil {
		t.Fatal(err)
	}
	if want := "argument --include=joblet-omitted,usr-is-merged,bash=5.2"; !slices.Contains(log, want) {
		t.Errorf("log %q lacks %q", log, want)
	}
	for file, wants := range map[string][]string{
		filepath.Join(rt.RootFS, "opt-omitted/Packages"): {
			"Provides: g++ (= 9999:1), python3-sympy (= 9999:1)\n", "Conflicts: g++, python3-sympy\n", "Filename: ./joblet-omitted.deb\n"},
		filepath.Join(rt.RootFS, "sources"): {"URIs: copy:/build/omitted\nSuites: ./\nTrusted: yes\n"},
	} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		for _, want := range wants {
			if !strings.Contains(string(data), want) {
				t.Errorf("%s lacks %q:\n%s", file, want, data)
			}
		}
	}
	out, err := exec.Command("dpkg-deb", "--field", filepath.Join(rt.RootFS, "opt-omitted/joblet-omitted.deb"), "Provides").Output()
	if err != nil || string(out) != "g++ (= 9999:1), python3-sympy (= 9999:1)\n" {
		t.Errorf("dpkg-deb: %q, %v", out, err)
	}
}

func TestSources(t *testing.T) {
	t.Parallel()
	const (
		stock = "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: %[1]s\n|Types: deb\nURIs: http://deb.debian.org/debian\nSuites: %[1]s-updates\n|" +
			"Types: deb\nURIs: http://deb.debian.org/debian-security\nSuites: %[1]s-security\n"
		debian = "NAME=Debian\nID=debian\n"
	)
	for _, tt := range []struct {
		name, release string
		recipe        Recipe
		files         map[string]string
		want          string // the first three lines of each stanza
	}{
		{name: "no Debian host", release: "ID=ubuntu\n", files: map[string]string{"sources.list": "deb http://mirror.example/debian bookworm main\n"}, want: fmt.Sprintf(stock, "bookworm")},
		{name: "Debian host with another suite", release: debian, recipe: Recipe{Suite: "trixie"}, files: map[string]string{"sources.list": "deb http://mirror.example/debian bookworm main\n"}, want: fmt.Sprintf(stock, "trixie")},
		{name: "sid has no updates", release: debian, recipe: Recipe{Suite: "sid"}, want: "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: sid\n"},
		{name: "mirror of the recipe", release: debian, recipe: Recipe{Mirror: "https://other.example/d"}, files: map[string]string{"sources.list": "deb http://mirror.example/debian bookworm main\n"},
			want: "Types: deb\nURIs: https://other.example/d\nSuites: bookworm\n"},
		{name: "one-line sources", release: debian, files: map[string]string{
			"sources.list": "# deb http://no.example/debian bookworm main\ndeb  [ arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg ] http://mirror.example/debian bookworm main contrib # ours\n" +
				"deb-src http://mirror.example/debian bookworm main\ndeb http://mirror.example/security bookworm-security main\ndeb cdrom:[x]/ bookworm main\n",
			"sources.list.d/docker.list":  "deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.asc] https://download.docker.com/linux/debian bookworm stable\n",
			"sources.list.d/other.list":   "deb [signed-by=/etc/apt/keyrings/other.asc] https://other.example bookworm main\n",
			"sources.list.d/contrib.list": "deb http://contrib.example bookworm contrib\n",
		}, want: "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n|Types: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\n"},
		{name: "deb822 sources", release: debian, files: map[string]string{
			"sources.list.d/debian.sources": "# host\nTypes: deb deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm\n bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n" +
				"Types: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n\n" +
				"Types: deb\nURIs: http://x.example/\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n",
		}, want: "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n|Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-updates\n"},
		{name: "mirror list", release: debian, files: map[string]string{
			"sources.list.d/debian.sources": "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: bookworm\nComponents: main\n",
		}, want: fmt.Sprintf(stock, "bookworm")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			if err := os.MkdirAll(filepath.Join(root, "etc/apt/sources.list.d"), 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(root, "etc/os-release"), tt.release)
			for name, content := range tt.files {
				write(t, filepath.Join(root, "etc/apt", name), content)
			}
			r := tt.recipe
			r.Components = []string{"main"}
			if r.Suite == "" {
				r.Suite = DefaultSuite
			}
			tail := "Components: main\nSigned-By: " + debianKeyring + "\n\n"
			want := strings.ReplaceAll(tt.want, "|", tail) + tail
			if got := sourcesText(sourcesFor(r, root), r.Components); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	var got []string
	p := progress{report: func(p Progress) { got = append(got, fmt.Sprintf("%d %v: %s", p.Percent, p.Phase, p.Message)) }}
	for line := range strings.Lines(`I: chroot architecture amd64 is equal to the host's architecture
I: running apt-get update...
Get:1 http://deb.debian.org/debian bookworm InRelease [151 kB]
I: downloading packages with apt...
0 upgraded, 60 newly installed, 0 to remove and 1 not upgraded.
Get:1 http://deb.debian.org/debian bookworm/main amd64 gcc-12-base amd64 12.2.0 [37.6 kB]
I: extracting archives...
I: running --extract-hook directly: /build/download /build/rootfs
0 upgraded, 4 newly installed, 0 to remove and 0 not upgraded.
Get:1 copy:/build/omitted ./ joblet-omitted 1 [680 B]
Get:4 http://deb.debian.org/debian bookworm/main amd64 procps amd64 2:4.0.2-3 [709 kB]
I: installing essential packages...
Setting up gcc-12-base:amd64 (12.2.0) ...
I: installing remaining packages inside the chroot...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Unpacking libproc2-0:amd64 (2:4.0.2-3) ...
Unpacking procps (2:4.0.2-3) ...
Setting up libproc2-0:amd64 (2:4.0.2-3) ...
Setting up procps (2:4.0.2-3) ...
Setting up more than was announced (1) ...
I: cleaning package lists and apt cache...
`) {
		p.line(strings.TrimSuffix(line, "\n"))
	}
	want := []string{
		"1 prepare: update package lists", "4 download: download base system", "4 download: download gcc-12-base (1 of 60)", "12 download: extract base system",
		"16 download: resolve dependencies", "25 download: download procps (4 of 4)", "25 base system: install base system", "35 install: install packages",
		"50 install: unpack libproc2-0", "65 install: unpack procps", "80 install: set up libproc2-0", "95 install: set up procps",
		"95 install: set up more", "95 finish: clean up",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestDebianArch(t *testing.T) {
	t.Parallel()
	for goarch, want := range map[string]string{"amd64": "amd64", "arm64": "arm64", "arm": "armhf", "386": "i386", "ppc64le": "ppc64el"} {
		if got := debianArch(goarch); got != want {
			t.Errorf("%s: %s, want %s", goarch, got, want)
		}
	}
}
