package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/joblet/joblet"
)

// odd is no UTF-8.
const odd = "\xff\xfe o\xed\xa0\x80"

// TestBytes: arguments, variables and names of files are bytes on every way.
func TestBytes(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	dir := t.TempDir()
	secret := "\xfdsecret"
	// It shows each byte that it got.
	const show = `printf %s "$1" | od -An -tx1; tr '\0' '\n' < /proc/1/environ | LC_ALL=C grep -a '^odd\|^secret\|^discovery' | LC_ALL=C sort | od -An -tx1; pwd | od -An -tx1; LC_ALL=C ls -A | od -An -tx1`
	hex := func(s string) string {
		cmd := exec.Command("od", "-An", "-tx1")
		cmd.Stdin = strings.NewReader(s)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	file := filepath.Join(dir, odd+"file")
	if err := os.WriteFile(file, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	envFile := filepath.Join(dir, "env")
	if err := os.WriteFile(envFile, []byte("odd\xf1=file\xf1\ndiscovery.type=single\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	env := []string{"discovery.type=single", "odd=" + odd, "odd-\xf0=1", "odd\xf1=file\xf1", "secret-\xf2=" + secret}
	slices.Sort(env)
	in := func(workDir string, names ...string) string {
		ls := ""
		if len(names) > 0 {
			ls = hex(strings.Join(names, "\n") + "\n")
		}
		return hex(odd) + hex(strings.Join(env, "\n")+"\n") + hex(workDir+"\n") + ls
	}
	flags := []string{
		"--name=odd", "--workdir=/work/" + odd, "--upload=" + file, "--env-file=" + envFile, "-e", "odd=" + odd, "-e", "odd-\xf0=1",
		"-s", "secret-\xf2=" + secret,
	}
	run := func(more ...string) []string {
		return slices.Concat(flags, more, []string{"sh", "-c", show, "sh", odd})
	}
	want := in("/work/" + odd)
	if out := d.must(t, run()...); out != want {
		t.Errorf("run:\n%s\nwant:\n%s", out, want)
	}
	// What is shown is safe and says which bytes they are.
	status := d.rnx(t.Context(), "job", "status", "odd").stdout
	for _, line := range []string{
		`Command:    sh -c '.*' sh \$'\\xff\\xfe o\\xed\\xa0\\x80'`, `Work dir:   /work/\\xff\\xfe o\\xed\\xa0\\x80`, `Uploads:    \\xff\\xfe o\\xed\\xa0\\x80file`,
		`Env:        odd-\\xf0=1`, `Env:        secret-\\xf2=\*\*\*`, `Env:        discovery.type=single`,
	} {
		if !regexp.MustCompile("(?m)^" + line + "$").MatchString(status) {
			t.Errorf("%s is not in\n%s", line, status)
		}
	}
	if list := d.rnx(t.Context(), "job", "list", "--name=odd").stdout; !strings.Contains(list, `sh $'\xff\xfe o\xed\xa0\x80'`) {
		t.Errorf("list:\n%s", list)
	}
	var shown struct {
		Args   []string
		Base64 struct{ Args, Environment [][]byte }
	}
	if r := d.rnx(t.Context(), "job", "status", "--json", "odd"); json.Unmarshal([]byte(r.stdout), &shown) != nil || len(shown.Args) != 4 || !utf8.ValidString(r.stdout) ||
		len(shown.Base64.Args) != 4 || string(shown.Base64.Args[3]) != odd || len(shown.Base64.Environment) != 4 {
		t.Errorf("--json: %v", r)
	}
	if job := d.get(t, "odd"); job.Spec.Args[3] != odd || job.Spec.Env["odd-\xf0"] != "1" || job.Spec.WorkDir != "/work/"+odd || job.Spec.Uploads[0] != odd+"file" {
		t.Errorf("to a client: %+v", job.Spec)
	}

	again := d.rnx(t.Context(), "job", "rerun", "--follow", "-s", "secret-\xf2="+secret, "odd")
	if again.status != 0 || again.stdout != want {
		t.Errorf("rerun: %v", again)
	}
	// What waits is in the database, and a retry begins with another daemon.
	waits := d.detach(t, run("--schedule=+2s")...)
	fails := slices.Concat(flags, []string{"--retry=1", "--retry-delay=2s", "sh", "-c", `[ "$JOBLET_ATTEMPT" = 2 ] || exit 1; ` + show, "sh", odd})
	retried := d.detach(t, fails...)
	d.await(t, retried, "waits for its retry", func(j joblet.Job) bool { return len(j.Past) == 1 })
	d.kill(t)
	d.restart(t)
	for _, id := range []string{waits, retried} {
		d.ends(t, id, joblet.Completed)
		if out := d.rnx(t.Context(), "job", "log", id).stdout; out != want {
			t.Errorf("log of %s:\n%s\nwant:\n%s", id, out, want)
		}
	}

	t.Run("command", func(t *testing.T) {
		script := filepath.Join(dir, odd+".sh")
		if err := os.WriteFile(script, []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if r := d.job(t, "--upload="+script, "./"+odd+".sh"); r.status != 0 || r.stdout != "ran\n" {
			t.Errorf("%v", r)
		}
		// Found on a search path that is none of UTF-8 either.
		if r := d.job(t, "--upload="+script, "-e", "PATH=/work/"+odd+":/work:/bin:/usr/bin", odd+".sh"); r.status != 0 || r.stdout != "ran\n" {
			t.Errorf("%v", r)
		}
		d.says(t, 127, ``, `rnx: .*\n`, "job", "run", "no-"+odd)
	})
	t.Run("files", func(t *testing.T) {
		read := func(path string) string {
			data, _ := os.ReadFile(path)
			return string(data)
		}
		into := t.TempDir()
		const make = `mkdir "$1"; echo a > "$1/$1"; ln "$1/$1" "$1/hard"; ln -s "$1" "$1/link"`
		if r := d.in(t, into, "job", "run", "--name=maker", "--download="+odd+"/*", "sh", "-c", make, "sh", odd); r.status != 0 || read(into+"/"+odd+"/"+odd) != "a\n" {
			t.Errorf("download: %v", r)
		}
		running := d.detach(t, "sh", "-c", make+"; echo ready; sleep 600", "sh", odd)
		if !d.wrote(t, running, "ready\n") {
			t.Fatal("not ready")
		}
		for _, id := range []string{"maker", running} {
			into := t.TempDir()
			if r := d.in(t, into, "job", "cp", id+":"+odd+"/"+odd, "to-"+odd); r.status != 0 || read(into+"/to-"+odd) != "a\n" {
				t.Errorf("cp: %v", r)
			}
			if r := d.in(t, into, "job", "cp", id+":"+odd, "."); r.status != 0 || read(into+"/"+odd+"/"+odd) != "a\n" {
				t.Errorf("cp: %v", r)
			}
			if target, err := os.Readlink(into + "/" + odd + "/link"); err != nil || target != odd {
				t.Errorf("link: %q %v", target, err)
			}
		}
		d.says(t, 1, ``, `rnx: job \S+: there is no ".*" in /work\n`, "job", "cp", "maker:no-"+odd, ".")
	})
	t.Run("exec", func(t *testing.T) {
		id := d.detach(t, slices.Concat(flags, []string{"sleep", "600"})...)
		d.becomes(t, id, joblet.Running)
		if r := d.rnx(t.Context(), "job", "exec", id, "sh", "-c", show, "sh", odd); r.status != 0 || r.stdout != in("/work/"+odd) {
			t.Errorf("%v", r)
		}
		if r := d.rnx(t.Context(), "job", "exec", "-w", "/tmp", "-e", "odd-\xf0=2", "-e", "odd\xf1=", id, "cat", "/proc/self/environ"); r.status != 0 ||
			!containsAll(r.stdout, "\x00odd-\xf0=2\x00", "\x00odd\xf1=\x00", "\x00secret-\xf2="+secret+"\x00", "\x00odd="+odd+"\x00") {
			t.Errorf("%q", r)
		}
		if r := d.rnx(t.Context(), "job", "exec", "-w", "/work/"+odd, id, "pwd"); r.stdout != "/work/"+odd+"\n" {
			t.Errorf("%q", r)
		}
	})
	t.Run("names of variables", func(t *testing.T) {
		if out := d.must(t, "-e", "discovery.type=1", "-e", "my-var=2", "-e", "2=3", "-e", "a b=4", "-e", "%=", "cat", "/proc/self/environ"); !containsAll(out, "\x00discovery.type=1\x00", "\x00my-var=2\x00", "2=3\x00", "\x00a b=4\x00", "%=\x00") {
			t.Errorf("%q", out)
		}
		for _, flag := range []string{"-e", "-s"} {
			d.says(t, 125, ``, `rnx: --(secret-)?env: .*names that begin with JOBLET_ are reserved.*\n`, "job", "run", flag, "JOBLET_JOB_ID=1", "true")
			d.says(t, 125, ``, `rnx: --(secret-)?env: environment variable without a name\n`, "job", "run", flag, "=1", "true")
		}
	})
}

// containsAll reports whether s contains all parts.
func containsAll(s string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(s, part) })
}
