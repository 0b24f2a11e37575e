package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

// TestFilesHardLinks: names of one file, and holes, stay what they are on all ways into a
// job and out of it.
func TestFilesHardLinks(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	src := t.TempDir()
	const (
		make = `mkdir -p src/sub && echo one > src/a && ln src/a src/b && ln src/a src/sub/c && truncate -s 1G src/holes && ln src/holes src/sub/holes && echo end >> src/holes`
		// Each file's number of names and content, which names lead to one, and what is on disk.
		show = `cd src && find . -type f -printf '%p %n %s\n' | sort && cat a b sub/c && [ a -ef b ] && [ b -ef sub/c ] && [ holes -ef sub/holes ] && tail -c 4 holes && [ "$(du -sm . | cut -f1)" -lt 5 ] && echo small`
		want = "./a 3 4\n./b 3 4\n./holes 2 1073741828\n./sub/c 3 4\n./sub/holes 2 1073741828\none\none\none\nend\nsmall\n"
	)
	shown := func(dir string) string {
		t.Helper()
		cmd := exec.Command("bash", "-c", show)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return string(out)
	}
	if out, err := exec.Command("bash", "-c", "cd "+src+" && "+make).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	downloaded := t.TempDir()
	if r := d.in(t, src, "job", "run", "--name=links", "--upload=src", "--download=src", "--download-to="+downloaded, "bash", "-c", show); r.status != 0 || r.stdout != want || r.stderr != "" {
		t.Errorf("--upload and --download: %v", r)
	}
	if got := shown(downloaded); got != want {
		t.Errorf("--download:\n%s", got)
	}
	if r := d.in(t, src, "job", "run", "--user=1000", "--upload-dir=.", "bash", "-c", show); r.status != 0 || r.stdout != want {
		t.Errorf("--upload-dir, as another user: %v", r)
	}
	if r := d.rnx(t.Context(), "job", "rerun", "--follow", "links"); r.status != 0 || r.stdout != want {
		t.Errorf("rerun: %v", r)
	}
	if job := d.get(t, "links"); job.WorkBytes > 1<<20 {
		t.Errorf("%d bytes in /work", job.WorkBytes)
	}
	running := d.detach(t, "bash", "-c", make+"; echo ready; sleep 600")
	if !d.wrote(t, running, "ready\n") {
		t.Fatal("not ready")
	}
	for _, id := range []string{"links", running} {
		into, as, some := t.TempDir(), t.TempDir(), t.TempDir()
		if r := d.in(t, into, "job", "cp", id+":src", "."); r.status != 0 || r.stderr != "" || shown(into) != want {
			t.Errorf("cp: %v", r)
		}
		if r := d.in(t, as, "job", "cp", id+":src/.", "src"); r.status != 0 || r.stderr != "" || shown(as) != want {
			t.Errorf("cp with another name: %v", r)
		}
		// Of some of the names, and of one alone.
		if r := d.in(t, some, "job", "cp", id+":src/sub/*", "."); r.status != 0 || r.stderr != "" {
			t.Errorf("cp of some: %v", r)
		}
		if r := d.in(t, some, "job", "cp", id+":src/b", "new"); r.status != 0 || r.stderr != "" {
			t.Errorf("cp of one: %v", r)
		}
		out, err := exec.Command("bash", "-c", "cd "+some+" && cat c new && tail -c 4 holes && stat -c %h c holes new && [ $(du -sm . | cut -f1) -lt 5 ]").CombinedOutput()
		if err != nil || string(out) != "one\none\nend\n1\n1\n1\n" {
			t.Errorf("some of them: %v %s", err, out)
		}
	}
	d.says(t, 0, running+"\n", ``, "job", "kill", running)
	if job := d.ends(t, running, joblet.Stopped); strings.Contains(job.Reason, "could not be kept") {
		t.Error(job.Reason)
	}
}

// TestFilesLeftOut: what does not come out of a job is named, by a running job and by one
// that has ended, whatever daemon is asked.
func TestFilesLeftOut(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const make = `mkdir out; cd out; echo a > a; ln -s a in; ln -s /etc/passwd abs; mkfifo "$1" pipe; for i in {1..15}; do ln -s ../../x l$i; done; ln -s ../a up`
	notes := func(of, stderr string) {
		t.Helper()
		for text, count := range map[string]int{
			"rnx: left out of the " + of + ": out/": 10, "rnx: left out of the " + of + ": 8 more\n": 1, "\xff": 0,
		} {
			if strings.Count(stderr, text) != count {
				t.Errorf("%q comes not %d times:\n%s", text, count, stderr)
			}
		}
	}
	run := []string{"bash", "-c", make, "bash", "odd\xff"}
	dir := t.TempDir()
	if r := d.in(t, dir, append([]string{"job", "run", "--name=ended", "--download=out", "--download-to=."}, run...)...); r.status != 0 {
		t.Errorf("%v", r)
	} else {
		notes("download", r.stderr)
	}
	running := d.detach(t, "bash", "-c", make+"; echo ready; sleep 600", "bash", "odd\xff")
	if !d.wrote(t, running, "ready\n") {
		t.Fatal("not ready")
	}
	d.kill(t)
	d.restart(t)
	for _, id := range []string{"ended", running} {
		r := d.in(t, t.TempDir(), "job", "cp", id+":.", "copy")
		if r.status != 0 {
			t.Errorf("%v", r)
		}
		notes("copy", r.stderr)
		r = d.rnx(t.Context(), "job", "cp", id+":.", "-")
		if r.status != 0 {
			t.Errorf("%v", r)
		}
		notes("archive", r.stderr)
		// Other programs take it.
		list := exec.Command("tar", "-t")
		list.Stdin = strings.NewReader(r.stdout)
		if out, err := list.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "out/\n") || strings.Contains(string(out), "left") {
			t.Errorf("tar: %v %s", err, out)
		}
		for file, why := range map[string]string{
			"pipe": `out/pipe is a named pipe`, "odd\xff": `out/odd\xff is a named pipe`, "abs": `out/abs is a link to "/etc/passwd", which may be outside the directory`,
			"l1": `out/l1 is a link to "../../x", which may be outside the directory`,
		} {
			r := d.in(t, t.TempDir(), "job", "cp", id+":out/"+file, ".")
			if want := "rnx: left out of the copy: " + why + "\nrnx: nothing was copied: all that matches was left out\n"; r.status != 1 || r.stderr != want {
				t.Errorf("%q: %v\nwant %s", file, r, want)
			}
		}
		r = d.in(t, t.TempDir(), "--json", "job", "cp", id+":out", ".")
		if !strings.Contains(r.stdout, `"skipped":18,"left_out":[{"name":"out/`) || r.stderr != "" {
			t.Errorf("--json: %v", r)
		}
		// up leads out of out/, which is what this copies.
		if r := d.in(t, t.TempDir(), "job", "cp", id+":out/up", "."); r.status != 1 || r.stderr != "rnx: left out of the copy: out/up is a link to \"../a\", which leads out of what is copied\nrnx: nothing was copied: all that matches was left out\n" {
			t.Errorf("%v", r)
		}
	}
	if r := d.in(t, t.TempDir(), "job", "cp", "ended:out/a", "."); r.status != 0 || r.stderr != "" {
		t.Errorf("nothing of it: %v", r)
	}
}

// TestFilesKeptOnce: what comes along with a job is on the disk once for all jobs that run
// with it, as long as there is one of them.
func TestFilesKeptOnce(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	input := fileWith(t, "input")
	upload := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(upload, bytes.Repeat([]byte("content\n"), 1<<17), 0o644); err != nil {
		t.Fatal(err)
	}
	const want = "1048576 f\ninput"
	first := d.detach(t, "--upload="+upload, "--stdin="+input, "--retry=1", "--retry-delay=10ms", "sh", "-c", `wc -c f; cat; [ "$JOBLET_ATTEMPT" = 2 ]`)
	d.ends(t, first, joblet.Completed)
	if out := d.rnx(t.Context(), "job", "log", first).stdout; out != want+want {
		t.Errorf("with a retry: %q", out)
	}
	all := []string{first}
	rerun := func(of string) {
		t.Helper()
		r := d.rnx(t.Context(), "job", "rerun", of)
		id := strings.TrimSpace(r.stdout)
		if r.status != 0 {
			t.Fatal(r)
		}
		d.ends(t, id, joblet.Completed)
		if out := d.rnx(t.Context(), "job", "log", id).stdout; out != want+want {
			t.Errorf("a rerun: %q", out)
		}
		all = append(all, id)
	}
	names := func(id, file string) (inode, links uint64) {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(d.state, "jobs", id, file), &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino, uint64(st.Nlink)
	}
	rerun(first)
	rerun(all[1])
	for _, file := range []string{"files.tar", "stdin"} {
		inode, _ := names(first, file)
		for _, id := range all {
			if i, n := names(id, file); i != inode || n != 3 {
				t.Errorf("%s of %s: inode %d with %d names, want %d with 3", file, id, i, n, inode)
			}
		}
	}
	d.says(t, 0, ``, ``, "job", "delete", first)
	d.kill(t)
	d.restart(t)
	rerun(all[2])
	if _, n := names(all[3], "files.tar"); n != 3 {
		t.Errorf("%d names after one was deleted", n)
	}
	if r := d.rnx(t.Context(), append([]string{"job", "delete"}, all[1:]...)...); r.status != 0 {
		t.Error(r)
	}
	d.nothing(t)
}
