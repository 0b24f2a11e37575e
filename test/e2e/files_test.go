package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/testenv"
)

// makeTree makes files of all sorts in a new directory.
func makeTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "src")
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(os.MkdirAll(filepath.Join(dir, "sub", "deep"), 0o755))
	do(os.Mkdir(filepath.Join(dir, "empty"), 0o700))
	for name, mode := range map[string]fs.FileMode{
		"plain": 0o644, "run.sh": 0o755, "secret": 0o600, "sub/two words": 0o640, "sub/deep/größe ✓": 0o444, "sub/line\nbreak": 0o644, "-flag": 0o644,
	} {
		do(os.WriteFile(filepath.Join(dir, name), []byte("content of "+name+"\n"), 0o600))
		do(os.Chmod(filepath.Join(dir, name), mode))
	}
	do(os.WriteFile(filepath.Join(dir, "sub", "nothing"), nil, 0o644))
	do(os.Symlink("../plain", filepath.Join(dir, "sub", "link")))
	do(os.Symlink("sub/deep", filepath.Join(dir, "dirlink")))
	do(os.Symlink("missing", filepath.Join(dir, "dangling")))
	return dir
}

// listTree prints the type, permissions, content and link target of all below a
// directory; the same as script does in a job.
func listTree(t *testing.T, dir string) string {
	t.Helper()
	cmd := exec.Command("bash", "-c", treeScript)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

const treeScript = `export LC_ALL=C; find . -mindepth 1 -printf '%y %m %p %l\0' | sort -z | tr '\0' '\n'; find . -type f -print0 | sort -z | xargs -0 sha256sum --`

// in runs rnx in a directory.
func (d *daemon) in(t *testing.T, dir string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := d.command(ctx, args...)
	cmd.Dir = dir
	return finish(cmd)
}

func TestFilesUpload(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	src := makeTree(t)
	want := listTree(t, src)
	if out := d.must(t, "--upload-dir="+src, "bash", "-c", treeScript); out != want {
		t.Errorf("--upload-dir:\n%s\nwant:\n%s", out, want)
	}
	if out := d.must(t, "--upload="+src, "--workdir=/work/src", "bash", "-c", treeScript); out != want {
		t.Errorf("--upload of a directory:\n%s\nwant:\n%s", out, want)
	}
	// Several; they belong to the job's root; a link as argument is followed.
	link := filepath.Join(t.TempDir(), "alias")
	if err := os.Symlink(filepath.Join(src, "run.sh"), link); err != nil {
		t.Fatal(err)
	}
	if r := d.in(t, src, "job", "run", "--upload=plain", "--upload="+filepath.Join(src, "sub"), "--upload="+link, "bash", "-c",
		`stat -c '%a %u:%g %F %n' * && cat plain sub/link alias && rm plain && echo x > sub/nothing`); r.status != 0 ||
		r.stdout != "755 0:0 regular file alias\n644 0:0 regular file plain\n755 0:0 directory sub\ncontent of plain\ncontent of plain\ncontent of run.sh\n" {
		// sub/link leads to ../plain, which is /work/plain
		t.Errorf("--upload: %v", r)
	}
	job := d.get(t, d.detach(t, "--upload="+filepath.Join(src, "plain"), "--upload="+filepath.Join(src, "sub"), "true"))
	if !slices.Equal(job.Spec.Uploads, []string{"plain", "sub"}) {
		t.Errorf("uploads %q", job.Spec.Uploads)
	}
	d.ends(t, job.ID, joblet.Completed)
}

// TestFilesRefused: what cannot or must not be sent is told in one line, and
// nothing is left.
func TestFilesRefused(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	make := func(f func(dir string) error) string {
		dir := filepath.Join(t.TempDir(), "dir")
		if err := errors.Join(os.Mkdir(dir, 0o755), f(dir)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	fifo := make(func(dir string) error { return unix.Mkfifo(filepath.Join(dir, "f"), 0o644) })
	// So many holes that what is behind them counts as data.
	large := make(func(dir string) error {
		f, err := os.Create(filepath.Join(dir, "x"))
		if err != nil {
			return err
		}
		for i := range int64(17_000) {
			if _, err := f.WriteAt([]byte("x"), i*8192); err != nil {
				return err
			}
		}
		return errors.Join(f.Truncate(2<<30), f.Close())
	})
	for _, test := range []struct{ flag, stderr string }{
		{"--upload=" + filepath.Join(fifo, "f"), `rnx: .*/f: is a named pipe: .*\n`},
		{"--upload=/dev/null", `rnx: .*/dev/null: is a device: .*\n`},
		{"--upload-dir=" + large, `rnx: .*x".*too large: at most 1073741824 bytes are possible in all.*; leave files out with --exclude or .jobletignore\n`},
		{"--exclude=x", `rnx: --exclude: nothing is uploaded; .*\n`},
		{"--upload=/no/such", `rnx: --upload: .*no such file.*\n`},
		{"--upload=/", `rnx: --upload /: it has no name; --upload-dir .*\n`},
		{"--upload-dir=/etc/passwd", `rnx: --upload-dir: /etc/passwd is not a directory\n`},
		{"--upload-dir=", `rnx: --upload-dir: .*\n`},
	} {
		d.says(t, 125, ``, test.stderr, "job", "run", test.flag, "touch", "/work/ran")
	}
	d.nothing(t)
}

// nothing checks that there is no job and nothing of one.
func (d *daemon) nothing(t *testing.T) {
	t.Helper()
	if ids := d.ids(t); len(ids) != 0 {
		t.Errorf("jobs %q", ids)
	}
	left := func() []os.DirEntry { l, _ := os.ReadDir(filepath.Join(d.state, "jobs")); return l }
	if !eventually(patience, func() bool { return len(left()) == 0 }) {
		t.Errorf("left: %v", left())
	}
}

// TestFilesHostileArchives: what no rnx sends.
func TestFilesHostileArchives(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.dial(t)
	file := func(name string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Size: 3, Mode: 0o644}
	}
	link := func(name, target string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
	}
	archive := func(entries ...tar.Header) func(io.Writer) error {
		return func(w io.Writer) error {
			tw := tar.NewWriter(w)
			for _, h := range entries {
				if err := tw.WriteHeader(&h); err != nil {
					return nil // the call has ended
				}
				if _, err := tw.Write(make([]byte, h.Size)); err != nil {
					return nil
				}
			}
			_ = tw.Close()
			return nil
		}
	}
	tests := map[string]func(io.Writer) error{
		"absolute":              archive(file("/etc/x")),
		"above":                 archive(file("../x")),
		"above, hidden":         archive(file("a/../../x")),
		"hard link, later":      archive(tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "a"}, file("a")),
		"hard link to a link":   archive(link("a", "/etc/shadow"), tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "a"}),
		"hard link, through":    archive(link("a", "/etc"), tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "a/shadow"}),
		"hard link outside":     archive(tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "/etc/shadow"}),
		"device":                archive(tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8, Mode: 0o666}),
		"character device":      archive(tar.Header{Typeflag: tar.TypeChar, Name: "mem", Devmajor: 1, Devminor: 1}),
		"fifo":                  archive(tar.Header{Typeflag: tar.TypeFifo, Name: "f"}),
		"link, then through":    archive(link("l", "d"), file("l/x")),
		"link outside, through": archive(link("l", "/etc"), file("l/cron.d/x")),
		"file, then below":      archive(file("a"), file("a/b")),
		"twice":                 archive(file("a"), file("a")),
		"no tar": func(w io.Writer) error {
			_, _ = w.Write(bytes.Repeat([]byte("rubbish"), 1000))
			return nil
		},
		"cut off": func(w io.Writer) error {
			var b bytes.Buffer
			_ = archive(file("a"), file("b"))(&b)
			_, _ = w.Write(b.Bytes()[:700])
			return nil
		},
		"nothing at all": func(io.Writer) error { return nil },
		"too large":      archive(tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: 1<<30 + 1, Mode: 0o644}),
	}
	for name, files := range tests {
		var got error
		for event, err := range c.Submit(t.Context(), joblet.Spec{Command: "true"}, client.Input{Files: files}, false) {
			if got = err; err == nil {
				t.Errorf("%s: %T %+v", name, event, event)
			}
		}
		if joblet.KindOf(got) != joblet.InvalidArgument || strings.Contains(got.Error(), "\n") {
			t.Errorf("%s: %v (%v)", name, got, joblet.KindOf(got))
		}
	}
	// An archive whose sender goes away in the middle.
	ctx, cancel := context.WithCancel(t.Context())
	for _, err := range c.Submit(ctx, joblet.Spec{Command: "true"}, client.Input{Files: func(w io.Writer) error {
		var b bytes.Buffer
		_ = archive(file("a"), file("b"))(&b)
		_, _ = w.Write(append(b.Bytes()[:700], make([]byte, 300000)...))
		cancel()
		return errors.New("interrupted")
	}}, false) {
		if err == nil {
			t.Error("an archive that was cut was accepted")
		}
	}
	cancel()
	d.nothing(t)
}

// TestFilesOdd: links go as they are and lead where they lead in the job; what cannot
// go, or shall not, is left out.
func TestFilesOdd(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	src := filepath.Join(t.TempDir(), "src")
	if out, err := exec.Command("bash", "-c", "mkdir -p "+src+` && cd $_ && mkdir -p venv/bin node_modules/m .git/x sub && ln -s /usr/bin/env venv/bin/tool && ln -s /etc etc && ln -s ../../../../.. up
		ln -s /no/such dangling; mkfifo fifo; touch main.c main.o sub/x.o sub/keep.o sub/y.tmp node_modules/m/i.js .git/x/y; mknod null c 1 3
		printf '%s\n' '# built' '*.o' '!keep.o' '/node_modules/' > .jobletignore; for i in {1..12}; do mkfifo sub/fifo$i; done`).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	secret := filepath.Join(filepath.Dir(src), "secret") // of this machine
	if err := errors.Join(os.WriteFile(secret, []byte("secret"), 0o644), os.Symlink(secret, filepath.Join(src, "secret"))); err != nil {
		t.Fatal(err)
	}
	downloaded := t.TempDir()
	r := d.in(t, src, "job", "run", "--name=odd", "--upload-dir=.", "--exclude=.git", "--exclude=*.tmp", "--download=**", "--download-to="+downloaded,
		"bash", "-c", `readlink venv/bin/tool etc up dangling secret; venv/bin/tool echo ran; cat secret; LC_ALL=C; find . -mindepth 1 | sort; ln -s main.c inside; ls etc/ > listed; [ -s listed ]`)
	want := "/usr/bin/env\n/etc\n../../../../..\n/no/such\n" + secret + "\nran\n./.jobletignore\n./dangling\n./etc\n./main.c\n./secret\n./sub\n./sub/keep.o\n./up\n./venv\n./venv/bin\n./venv/bin/tool\n"
	if r.status != 0 || r.stdout != want || !strings.Contains(r.stderr, "cat: secret: No such file") {
		t.Errorf("%v\nwant %s", r, want)
	}
	for text, count := range map[string]int{
		"rnx: left out of the upload: ": 11, "fifo is a named pipe\n": 1, "null is a device\n": 1, "rnx: left out of the upload: 4 more\n": 1,
	} {
		if strings.Count(r.stderr, text) != count {
			t.Errorf("%q comes not %d times: %v", text, count, r)
		}
	}
	// No link of those comes back, but what does not lead outside.
	for name, want := range map[string]string{"inside": "main.c", "etc": "", "up": "", "dangling": "", "secret": "", "venv/bin/tool": ""} {
		if got, _ := os.Readlink(filepath.Join(downloaded, name)); got != want {
			t.Errorf("%s came back as a link to %q", name, got)
		}
	}
	// The same again, from what the daemon has kept.
	if r := d.rnx(t.Context(), "job", "rerun", "--follow", "odd"); r.status != 0 || r.stdout != want {
		t.Errorf("rerun: %v", r)
	}
	// A link that leads elsewhere is the job's directory in the job, if anything.
	if r := d.job(t, "--upload-dir="+src, "--workdir=/work/up", "--exclude=.git", "pwd", "-P"); r.status != 0 || r.stdout != "/\n" {
		t.Errorf("in the directory up: %v", r)
	}
}

// TestFilesTimes: times of modification are the same on all ways into a job and out
// of it, to the nanosecond.
func TestFilesTimes(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	src := t.TempDir()
	if out, err := exec.Command("bash", "-c", "cd "+src+`; mkdir -p src/sub; touch src/main.c src/sub/x
		touch -d '2021-03-04 05:06:07.123456789Z' src/main.c; touch -d 2022-03-04Z src/sub/x; touch -d '2020-03-04 05:06:07.5Z' src/sub; touch -d @0 src`).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const (
		show = `TZ=UTC find src -printf '%p %T+\n' | sort`
		want = `src 1970-01-01+00:00:00.0000000000
src/main.c 2021-03-04+05:06:07.1234567890
src/sub 2020-03-04+05:06:07.5000000000
src/sub/x 2022-03-04+00:00:00.0000000000
`
	)
	shown := func(dir string) string {
		t.Helper()
		cmd := exec.Command("bash", "-c", show)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return strings.ReplaceAll(string(out), ".0000000010", ".0000000000") // 0 itself stands for no time
	}
	downloaded := t.TempDir()
	r := d.in(t, src, "job", "run", "--name=times", "--upload=src", "--download=src", "--download-to="+downloaded, "bash", "-c", show)
	if got := strings.ReplaceAll(r.stdout, ".0000000010", ".0000000000"); r.status != 0 || got != want {
		t.Errorf("in the job: %v", r)
	}
	if got := shown(downloaded); got != want {
		t.Errorf("downloaded:\n%s", got)
	}
	running := strings.TrimSpace(d.in(t, src, "job", "run", "-d", "--user=1000", "--upload=src", "sleep", "infinity").stdout)
	d.becomes(t, running, joblet.Running)
	for _, id := range []string{"times", running} {
		into, as := t.TempDir(), t.TempDir()
		for _, r := range []result{d.in(t, into, "job", "cp", id+":src", "."), d.in(t, as, "job", "cp", id+":src/.", "src")} {
			if r.status != 0 {
				t.Errorf("cp from %s: %v", id, r)
			}
		}
		if got := shown(into); got != want {
			t.Errorf("cp from %s:\n%s", id, got)
		}
		if got := shown(as); strings.ReplaceAll(got, strings.SplitN(got, "\n", 2)[0], "") != strings.ReplaceAll(want, strings.SplitN(want, "\n", 2)[0], "") {
			t.Errorf("cp of what is in %s:\n%s", id, got) // DEST itself is not of the job
		}
	}
	// A build does not begin anew: nothing is older than what it was made from.
	if r := d.job(t, "--upload-dir="+src, "bash", "-c", "[ src/main.c -nt src/sub ] && [ src/sub/x -nt src/main.c ]"); r.status != 0 {
		t.Errorf("order: %v", r)
	}
}

func TestFilesDownload(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const make = `mkdir -p out/deep "out/two words"; echo a > out/a.txt; echo b > out/deep/b.txt; printf '\0\377' > "out/two words/c"; ln -s a.txt out/link
		chmod 750 out/deep; chmod 755 out/a.txt; echo top > top.txt; echo other > other`
	read := func(path string) string {
		data, err := os.ReadFile(path)
		if err != nil {
			return err.Error()
		}
		return string(data)
	}
	files := func(dir string) string {
		out, err := exec.Command("find", dir, "-mindepth", "1", "-printf", "%P\n").Output()
		if err != nil {
			t.Fatal(err)
		}
		names := strings.Split(strings.TrimSpace(string(out)), "\n")
		slices.Sort(names)
		return strings.Join(names, ", ")
	}
	dir := t.TempDir()
	if r := d.in(t, dir, "job", "run", "--name=maker", "--download=out/**", "--download=*.txt", "bash", "-c", make+"; echo done; exit 3"); r.status != 3 || r.stdout != "done\n" || r.stderr != "" {
		t.Errorf("%v", r) // also of a job that fails
	}
	const out = "out, out/a.txt, out/deep, out/deep/b.txt, out/link, out/two words, out/two words/c"
	if got := files(dir); got != out+", top.txt" {
		t.Errorf("fetched %q", got)
	}
	if read(filepath.Join(dir, "out/two words/c")) != "\x00\xff" || read(filepath.Join(dir, "out/link")) != "a\n" {
		t.Error("with other content")
	}
	for name, mode := range map[string]fs.FileMode{"out/deep": 0o750, "out/a.txt": 0o755, "out/deep/b.txt": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v, want %v", name, info.Mode(), err, mode)
		}
	}
	// Nothing of the sort is an error of its own.
	if r := d.in(t, dir, "job", "run", "--download=nope", "true"); r.status != 125 || !strings.Contains(r.stderr, "left no files in /work") {
		t.Errorf("%v", r)
	}
	if r := d.in(t, dir, "job", "run", "--download=nope", "touch", "x"); r.status != 125 || !strings.Contains(r.stderr, `there is no "nope" in /work`) {
		t.Errorf("%v", r)
	}
	d.says(t, 125, ``, `rnx: --download: .*\n`, "job", "run", "-d", "--download=x", "true")
	if r := d.in(t, dir, "job", "run", "--download=x", "--download-to=new/dir", "sh", "-c", "echo there > x"); r.status != 0 || read(filepath.Join(dir, "new/dir/x")) != "there\n" {
		t.Errorf("--download-to: %v", r)
	}

	t.Run("cp", func(t *testing.T) {
		cp := func(from, to string) string {
			t.Helper()
			dir := t.TempDir()
			if r := d.in(t, dir, "job", "cp", from, to); r.status != 0 || r.stderr != "" {
				t.Errorf("cp %s %s: %v", from, to, r)
			}
			return dir
		}
		if dir := cp("maker:out/a.txt", "."); files(dir) != "a.txt" || read(dir+"/a.txt") != "a\n" {
			t.Errorf("a file: %s", files(dir))
		}
		if dir := cp("maker:/work/out/a.txt", "new-name"); files(dir) != "new-name" || read(dir+"/new-name") != "a\n" {
			t.Errorf("a file with a new name: %s", files(dir))
		}
		if dir := cp("maker:out/deep", "."); files(dir) != "deep, deep/b.txt" {
			t.Errorf("a directory: %s", files(dir))
		}
		if dir := cp("maker:out/deep", "copy"); files(dir) != "copy, copy/b.txt" {
			t.Errorf("a directory with a new name: %s", files(dir))
		}
		if dir := cp("maker:out/deep/.", "."); files(dir) != "b.txt" {
			t.Errorf("what is in a directory: %s", files(dir))
		}
		if dir := cp("maker:*.txt", "."); files(dir) != "top.txt" {
			t.Errorf("a pattern: %s", files(dir))
		}
		if dir := cp("maker:out/**/*.txt", "all"); files(dir) != "all, all/a.txt, all/deep, all/deep/b.txt" {
			t.Errorf("a pattern: %s", files(dir))
		}
		r := d.rnx(t.Context(), "job", "cp", "maker:.", "-")
		names := []string{}
		for tr := tar.NewReader(strings.NewReader(r.stdout)); ; {
			h, err := tr.Next()
			if err != nil {
				break
			}
			names = append(names, h.Name)
		}
		slices.Sort(names)
		if want := []string{"other", "out/", "out/a.txt", "out/deep/", "out/deep/b.txt", "out/link", "out/two words/", "out/two words/c", "top.txt"}; !slices.Equal(names, want) {
			t.Errorf("the archive holds %q, want %q", names, want)
		}
		d.says(t, 1, ``, `rnx: job \S+: there is no "nope" in /work\n`, "job", "cp", "maker:nope", ".")
		d.says(t, 1, ``, `rnx: maker:../x: must not contain ".."\n`, "job", "cp", "maker:../x", ".")
		d.says(t, 1, ``, `rnx: maker:/etc/passwd: only files in /work can be copied\n`, "job", "cp", "maker:/etc/passwd", ".")
		waits := d.detach(t, "--schedule=+1h", "true")
		d.says(t, 1, ``, `rnx: job \S+ has not run: it is SCHEDULED\n`, "job", "cp", waits+":x", ".")
	})
	t.Run("modes", func(t *testing.T) {
		const make = "umask 0; mkdir -m 2777 open; echo > open/f; chmod 6777 open/f; mkdir -m 577 closed; echo > closed/f"
		fetched := func(dir, script string, want string) {
			t.Helper()
			out, err := exec.Command("sh", "-c", "cd "+dir+" && umask 027 && "+script+" && find . -mindepth 1 -printf '%P %m\\n' | sort | tr '\\n' ' '").CombinedOutput()
			if err != nil || string(out) != want {
				t.Errorf("%s: %v %q, want %q", script, err, out, want)
			}
		}
		rnx := binDir + "/rnx --host=" + d.host() + " job "
		const want = "closed 550 closed/f 640 open 750 open/f 750 "
		fetched(t.TempDir(), rnx+"run --download=open --download=closed sh -c '"+make+"'", want)
		id := d.detach(t, "sh", "-c", make)
		d.ends(t, id, joblet.Completed)
		dir := t.TempDir()
		fetched(dir, rnx+"cp "+id+":. .", want)
		fetched(t.TempDir(), rnx+"cp "+id+":open/f new", "new 750 ")
		// What goes into a job has the bits that it has here, whatever umask anybody has.
		for name, mode := range map[string]fs.FileMode{"open": 0o777, "open/f": 0o666} {
			if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
				t.Fatal(err)
			}
		}
		if r := d.in(t, dir, "job", "run", "--upload=open", "stat", "-c", "%a", "open", "open/f"); r.stdout != "777\n666\n" {
			t.Errorf("uploaded: %v", r)
		}
	})
	t.Run("of a running job", func(t *testing.T) {
		id := d.detach(t, "bash", "-c", make+"; echo ready; sleep 600")
		if !d.wrote(t, id, "ready\n") {
			t.Fatal("not ready")
		}
		dir := t.TempDir()
		if r := d.in(t, dir, "job", "cp", id+":out", "."); r.status != 0 || files(dir) != out {
			t.Errorf("%v: %s", r, files(dir))
		}
		if read(dir+"/out/two words/c") != "\x00\xff" {
			t.Error("with other content")
		}
		d.says(t, 0, id+"\n", ``, "job", "kill", id)
		// A job that was killed leaves its files as well.
		if r := d.in(t, dir, "job", "cp", id+":top.txt", "killed"); r.status != 0 || read(dir+"/killed") != "top\n" {
			t.Errorf("%v", r)
		}
	})
	t.Run("through links of ours", func(t *testing.T) {
		// What stands in the way here is replaced and never written through.
		dir := t.TempDir()
		precious := fileWith(t, "precious")
		if err := os.Symlink(precious, filepath.Join(dir, "top.txt")); err != nil {
			t.Fatal(err)
		}
		if r := d.in(t, dir, "job", "cp", "maker:top.txt", "."); r.status != 0 || read(filepath.Join(dir, "top.txt")) != "top\n" || read(precious) != "precious" {
			t.Errorf("%v: %q, %q", r, read(filepath.Join(dir, "top.txt")), read(precious))
		}
	})
}

// TestFilesHostileWork: a job that does its worst to those who copy out of it.
func TestFilesHostileWork(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	shadow, err := os.ReadFile("/etc/shadow")
	if err != nil {
		t.Fatal(err)
	}
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	// Inside and outside swap places all the time, files and directories.
	id := d.detach(t, "python3", "-c", `
import os
os.mkfifo("fifo"); os.mkfifo("dir-or-fifo.f")
with open("sparse", "wb") as f: f.truncate(900 << 30)
os.symlink("/etc/passwd", "evil"); os.symlink("/proc/1/root", "root"); os.symlink("..", "up")
os.makedirs("real"); open("real/shadow", "w").write("mine"); open("real/passwd", "w").write("mine")
os.makedirs("a/b/c"); open("a/b/c/x", "w").write("x")
open("fine", "w").write("fine")
print("ready", flush=True)
i = 0
while True:
    i += 1
    os.symlink("/etc/shadow", "t1"); os.rename("t1", "victim")
    open("t2", "w").write("mine"); os.rename("t2", "victim")
    os.symlink("/etc", "t3")
    try:
        os.rename("real", "hidden"); os.rename("t3", "real")
        os.unlink("real"); os.rename("hidden", "real")
    except OSError: pass
    try: os.rename("a/b", "moved"); os.rename("moved", "a/b")
    except OSError: pass
    try: os.rename("fifo", "was"); os.mkdir("fifo"); os.rmdir("fifo"); os.rename("was", "fifo")
    except OSError: pass
`)
	if !d.wrote(t, id, "ready\n") {
		t.Fatal("not ready")
	}
	check := func(t *testing.T, data string) {
		t.Helper()
		if strings.Contains(data, string(shadow)) || strings.Contains(data, string(passwd)) {
			t.Fatal("files of the host are delivered")
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for n := 0; time.Now().Before(deadline) || n < 5; n++ {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		r := d.rnx(ctx, "job", "cp", id+":.", "-")
		if ctx.Err() != nil || r.status != 0 {
			t.Fatalf("cp: status %d, %.500s %v", r.status, r.stderr, ctx.Err())
		}
		cancel()
		check(t, r.stdout)
		fine := false
		for tr := tar.NewReader(strings.NewReader(r.stdout)); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			fine = fine || h.Name == "fine"
			if h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeFifo {
				t.Errorf("it holds %s %q -> %q", string(h.Typeflag), h.Name, h.Linkname)
			}
		}
		if !fine {
			t.Error("what is fine is not there")
		}
		for _, file := range []string{"victim", "real/shadow", "real/passwd", "fifo", "evil", "root/etc/passwd", "up/etc/passwd"} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			r := d.rnx(ctx, "job", "cp", id+":"+file, "-") // an error is fine
			if ctx.Err() != nil {
				t.Fatalf("cp %s hangs", file)
			}
			cancel()
			check(t, r.stdout)
		}
	}
	d.says(t, 0, id+"\n", ``, "job", "kill", id)
	// Neither are they in what was kept at the end.
	r := d.rnx(t.Context(), "job", "cp", id+":.", "-")
	check(t, r.stdout)
	job := d.get(t, id)
	if r.status != 0 || job.Reason != "" {
		t.Errorf("status %d, %s; %+v", r.status, r.stderr, job)
	}

	t.Run("links left behind", func(t *testing.T) {
		id := d.detach(t, "bash", "-c", `ln -s /etc/passwd evil; ln -s ../../../../etc up; mkdir d; ln -s ../x d/inside; echo x > x; ln -s x good`)
		d.ends(t, id, joblet.Completed)
		dir := t.TempDir()
		r := d.in(t, dir, "job", "cp", id+":.", ".")
		out, err := exec.Command("find", dir, "-mindepth", "1", "-printf", "%P>%l ").Output()
		names := strings.Fields(string(out))
		slices.Sort(names)
		if want := []string{"d/inside>../x", "d>", "good>x", "x>"}; err != nil || r.status != 0 || !slices.Equal(names, want) {
			t.Errorf("%v; %q, want %q", r, names, want)
		}
		d.says(t, 1, ``, `rnx: left out of the copy: evil is a link to "/etc/passwd", which may be outside the directory\nrnx: nothing was copied: .*\n`, "job", "cp", id+":evil", ".")
		if now, _ := os.ReadFile("/etc/passwd"); !bytes.Equal(now, passwd) {
			t.Fatal("/etc/passwd has changed")
		}
	})
	t.Run("too large", func(t *testing.T) {
		d.says(t, 0, ``, `rnx: job \S+: 1 files in /work could not be kept: .*\n`, "job", "run", "--name=large", "--max-disk=100M", "python3", "-c", `
with open("big", "wb") as f: # so many holes that what is behind them counts as data
	for i in range(17000):
		f.seek(i * 8192)
		f.write(b"x")
	f.truncate(2 << 30)
open("small", "w").write("small")`)
		id := "large"
		job := d.ends(t, id, joblet.Completed)
		if job.WorkBytes != 5 || job.Reason != "1 files in /work could not be kept: they are too many or too large" {
			t.Errorf("%+v", job)
		}
		dir := t.TempDir()
		if r := d.in(t, dir, "job", "cp", id+":.", "."); r.status != 0 || !strings.HasPrefix(r.stderr, "rnx: left out of the copy: big does not fit: too large: ") {
			t.Errorf("%v", r)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "small")); err != nil || string(data) != "small" {
			t.Errorf("%q %v", data, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "big")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("big: %v", err)
		}
	})
}

func TestFilesStdin(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	run := func(t *testing.T, stdin io.Reader, args ...string) result {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := d.command(ctx, append([]string{"job", "run"}, args...)...)
		cmd.Stdin = stdin
		return finish(cmd)
	}
	t.Run("64 MiB", func(t *testing.T) {
		t.Parallel()
		data := make([]byte, 64<<20)
		_, _ = rand.Read(data)
		want := fmt.Sprintf("%x  -\n", sha256.Sum256(data))
		// The job sleeps first, so that all that lies between is full.
		if r := run(t, bytes.NewReader(data), "--stdin", "sh", "-c", "sleep 1; sha256sum"); r.stdout != want || r.status != 0 || r.stderr != "" {
			t.Errorf("%v, want %s", r, want)
		}
		file := fileWith(t, string(data[:16<<20]))
		id := d.detach(t, "--stdin="+file, "sha256sum")
		d.ends(t, id, joblet.Completed)
		d.says(t, 0, fmt.Sprintf("%x  -\n", sha256.Sum256(data[:16<<20])), ``, "job", "log", id)
	})
	t.Run("sorts", func(t *testing.T) {
		t.Parallel()
		for _, test := range []struct {
			name   string
			stdin  io.Reader
			args   []string
			stdout string
			status int
		}{
			{"none asked for", strings.NewReader("x"), []string{"sh", "-c", "wc -c; readlink /proc/self/fd/0"}, "0\n/dev/null\n", 0},
			{"empty", strings.NewReader(""), []string{"--stdin", "wc", "-c"}, "0\n", 0},
			{"an empty file", nil, []string{"--stdin=/dev/null", "wc", "-c"}, "0\n", 0},
			{"not read", strings.NewReader(strings.Repeat("x", 8<<20)), []string{"--stdin", "echo", "done"}, "done\n", 0},
			{"early end", strings.NewReader("first\n" + strings.Repeat("more\n", 4<<20)), []string{"--stdin", "head", "-1"}, "first\n", 0},
			{"closed by the job", strings.NewReader(strings.Repeat("x", 8<<20)), []string{"--stdin", "sh", "-c", "exec <&-; sleep 0.3; echo closed; exit 3"}, "closed\n", 3},
			{"retried", strings.NewReader("same\n"), []string{"--retry=2", "--retry-delay=10ms", "--stdin", "sh", "-c", "cat; exit 1"}, "same\nsame\nsame\n", 1},
			{"read through /dev/stdin", strings.NewReader("x\n"), []string{"--stdin", "cat", "/dev/stdin"}, "x\n", 0},
			{"scheduled", strings.NewReader("later\n"), []string{"--schedule=+1s", "--name=later", "--stdin", "cat"}, "", 0},
		} {
			r := run(t, test.stdin, test.args...)
			if test.name == "scheduled" { // it printed the id
				d.ends(t, "later", joblet.Completed)
				r = d.rnx(t.Context(), "job", "log", "later")
				test.stdout = "later\n"
			}
			if r.stdout != test.stdout || r.status != test.status || r.stderr != "" {
				t.Errorf("%s: %v\nwant status %d and %q", test.name, r, test.status, test.stdout)
			}
		}
		d.says(t, 125, ``, `rnx: --stdin: .*no such file.*\n`, "job", "run", "--stdin=/no/such", "true")
		d.says(t, 125, ``, `rnx: --stdin: /etc is a directory\n`, "job", "run", "--stdin=/etc", "true")
	})
}

// TestFilesStdinCut: a client or a daemon that is killed in the middle is no end
// of the job's input.
func TestFilesStdinCut(t *testing.T) {
	t.Parallel()
	for _, killed := range []string{"client", "daemon"} {
		t.Run(killed, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t)
			cmd := d.command(t.Context(), "job", "run", "--name=reader", "--stdin", "bash", "-c", `while read -r line; do echo "line $line"; done; echo EOF`)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			var out, errOut bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errOut
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(stdin, "one\ntwo\n"); err != nil {
				t.Fatal(err)
			}
			if !d.wrote(t, "reader", "line one\nline two\n") {
				t.Fatal("the lines do not arrive")
			}
			if killed == "client" {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			} else {
				d.kill(t)
				d.restart(t)
			}
			time.Sleep(time.Second)
			job := d.get(t, "reader")
			if log := d.rnx(t.Context(), "job", "log", "reader").stdout; log != "line one\nline two\n" || job.State != joblet.Running {
				t.Errorf("the job sees the end of its input: %q, %+v", log, job)
			}
			d.says(t, 0, job.ID+"\n", ``, "job", "kill", "reader")
			if killed == "daemon" { // rnx finds the new one, says what is lost, and ends with the job
				if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 137 || out.String() != "line one\nline two\n" || !strings.Contains(errOut.String(), "the rest of the input does not reach job") {
					t.Errorf("status %d, %q, %q", cmd.ProcessState.ExitCode(), out.String(), errOut.String())
				}
			}
		})
	}
	t.Run("while it waits", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t, "--max-concurrent=1")
		d.detach(t, "sleep", "600")
		start := func(name string) (*exec.Cmd, *testenv.Output) {
			cmd := d.command(t.Context(), "job", "run", "--json", "--name="+name, "--stdin", "cat")
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = stdin.Close() })
			var out testenv.Output
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if !eventually(patience, func() bool { return strings.Contains(out.String(), `"event":"waiting"`) }) {
				t.Fatal("it does not wait")
			}
			return cmd, &out
		}
		// Without its client it would wait for its input for ever.
		one, _ := start("one")
		_ = one.Process.Kill()
		_ = one.Wait()
		d.ends(t, "one", joblet.Canceled)
		two, said := start("two")
		d.kill(t)
		d.restart(t)
		_ = two.Wait()
		if job := d.ends(t, "two", joblet.Canceled); two.ProcessState.ExitCode() != 125 || !strings.HasPrefix(job.Reason, "its standard input was a stream") ||
			!strings.Contains(said.String(), job.Reason) {
			t.Errorf("status %d, %q, %+v", two.ProcessState.ExitCode(), said.String(), job)
		}
	})
	t.Run("before it is accepted", func(t *testing.T) {
		t.Parallel()
		d := newDaemon(t)
		cmd := d.command(t.Context(), "job", "run", "-d", "--stdin", "cat")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := stdin.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		if !eventually(patience, func() bool { l, _ := filepath.Glob(d.state + "/jobs/*/stdin"); return len(l) == 1 }) {
			t.Error("nothing is taken")
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		d.nothing(t) // half of its input is no job
	})
}
