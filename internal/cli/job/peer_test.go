package job

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/testenv/peer"
)

// testPeer is rnx with a daemon of its own.
type testPeer struct{ *peer.Peer }

func servePeer(t *testing.T) testPeer {
	t.Helper()
	return testPeer{peer.Serve(t)}
}

// rnx runs a command line against the peer.
func (p testPeer) rnx(t *testing.T, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	a := &app.App{In: strings.NewReader(stdin), Out: &out, ErrOut: &errOut}
	status = a.Execute(t.Context(), newRootCommand(a), append([]string{"--host=" + p.Host}, args...))
	return status, out.String(), errOut.String()
}

// TestRunning: what rnx asks for, what it prints and how it ends.
func TestRunning(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"up/a.txt", "up/sub/b.txt"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("text"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	up, in := filepath.Join(dir, "up"), filepath.Join(dir, "up", "a.txt")
	for _, tt := range []struct {
		args           []string
		status         int
		stdout, stderr string
		asked          string
	}{
		{[]string{"run", "x"}, 0, "one\n", "two\n", "attached x"},
		{[]string{"run", "fails"}, 3, "", "", "attached fails"},
		{[]string{"run", "cut"}, 5, "again\n", "", "attached cut; follow aaaa from 0"},
		{[]string{"run", "dies"}, 125, "", "rnx: cannot tell whether the job was accepted: the connection to the daemon broke (error reading from server: EOF): " +
			"look for it with \"rnx job list\" before you submit it again; with an --idempotency-key the same command never makes a second job\n", "attached dies"},
		{[]string{"run", "refuses"}, 125, "", "rnx: the daemon is stopping\n", "attached refuses"},
		{[]string{"run", "--schedule=2099-01-02T03:04:05Z", "x"}, 0, peer.IDA + "\n", "", "run x 2099-01-02T03:04:05Z map[]"},
		{[]string{"run", "--stdin", "x"}, 0, "input", "", `submit x stdin="stream" "input" files=[] detach=false`},
		{[]string{"run", "--stdin=" + in, "--retry=1", "x"}, 0, "text", "", `submit x stdin="file" "text" files=[] detach=false`},
		{[]string{"run", "-d", "--stdin", "x"}, 0, peer.IDA + "\n", "", `submit x stdin="file" "input" files=[] detach=true`},
		{[]string{"run", "--upload=" + up, "x"}, 0, "", "", `submit x stdin="" "" files=[up/ up/a.txt up/sub/ up/sub/b.txt] detach=false`},
		{[]string{"run", "--upload=" + in, "--upload-dir=" + filepath.Join(up, "sub"), "x"}, 0, "", "", `submit x stdin="" "" files=[a.txt b.txt] detach=false`},
		{[]string{"cancel", peer.IDA}, 0, peer.IDA + "\n", "", "cancel aaaa"},
		{[]string{"rerun", "-sT=hunter2", peer.IDA}, 0, peer.IDB + "\n", "", "rerun aaaa map[T:hunter2]"},
		{[]string{"rerun", "-f", peer.IDA}, 5, "again\n", "", "rerun aaaa map[]; follow bbbb from 0"},
		{[]string{"prune", "--older-than=1d", "--status=failed", "-l", "a=b"}, 0, "2 jobs deleted, 2.0 KiB freed\n", "", "prune [FAILED] [a=b] before=true dry=false"},
		{[]string{"prune", "--all", "--dry-run", "--json"}, 0, `{"deleted_count":2,"freed_bytes":2048,"dry_run":true}` + "\n", "", "prune [] [] before=false dry=true"},
		{[]string{"list", "-q", "--limit=2", "--before=cc", "--parent=" + peer.IDB, "-l", "a", "--since=1h"}, 0, peer.IDC + "\n" + peer.IDB + "\n", "", "query limit=3 before=cccc parent=bbbb labels=[a] since=true"},
		{[]string{"list", "--format={{short .UUID}} {{.Status}}"}, 0, "cccccccc RUNNING\nbbbbbbbb FAILED\naaaaaaaa COMPLETED\n", "", "query limit=0 before= parent= labels=[] since=false"},
		{[]string{"list", "--before=dd"}, 1, "", "rnx: --before: no job \"dd\"\n", ""},
		{[]string{"status", "--format={{.UUID}}", "aa", "cc"}, 0, peer.IDA + "\n" + peer.IDC + "\n", "", ""},
	} {
		p := servePeer(t)
		status, stdout, stderr := p.rnx(t, "input", append([]string{"job"}, tt.args...)...)
		if status != tt.status || stdout != tt.stdout || stderr != tt.stderr || p.Asked() != tt.asked {
			t.Errorf("rnx %q: got %d, %q, %q, asked for %s\nwant %d, %q, %q, %s", tt.args, status, stdout, stderr, p.Asked(), tt.status, tt.stdout, tt.stderr, tt.asked)
		}
	}
}

func TestRunEvents(t *testing.T) {
	t.Parallel()
	p := servePeer(t)
	status, stdout, _ := p.rnx(t, "", "--json", "job", "run", "x")
	var got []string
	for line := range strings.Lines(stdout) {
		var e struct{ Event string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Event)
	}
	if want := "waiting started output waiting started output ended"; status != 0 || strings.Join(got, " ") != want {
		t.Errorf("got %d, %s", status, got)
	}
}

// tree lists what is below a directory: names, and what is in files.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		switch {
		case d.IsDir():
			rel += "/"
		case d.Type().IsRegular():
			text, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			rel += "=" + string(text)
		}
		all = append(all, filepath.ToSlash(rel))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

func TestCopy(t *testing.T) {
	t.Parallel()
	const whole = "out/ out/a.txt=out/a.txt out/deep/ out/deep/b.txt=out/deep/b.txt out/deep/in out/deep/up top.txt=top.txt"
	for _, tt := range []struct {
		from, to string
		want     string // what is in the directory then
		err      string
	}{
		{"aa:.", ".", "f=old " + whole, ""},
		{"aa:", "new", "f=old new/ new/out/ new/out/a.txt=out/a.txt new/out/deep/ new/out/deep/b.txt=out/deep/b.txt new/out/deep/in new/out/deep/up new/top.txt=top.txt", ""},
		{"aa:out/a.txt", ".", "a.txt=out/a.txt f=old", ""},
		{"aa:/work/out/a.txt", "./", "a.txt=out/a.txt f=old", ""},
		{"aa:out/a.txt", "b.txt", "b.txt=out/a.txt f=old", ""},
		{"aa:out/a.txt", "f", "f=out/a.txt", ""},
		{"aa:out/a.txt", "new/", "f=old new/ new/a.txt=out/a.txt", ""},
		{"aa:out/a.txt", "no/b.txt", "f=old", "copy to no/b.txt: "},
		{"aa:out/deep", ".", "deep/ deep/b.txt=out/deep/b.txt deep/in f=old", ""},
		{"aa:out/deep", "new", "f=old new/ new/b.txt=out/deep/b.txt new/in", ""},
		{"aa:out/deep/.", ".", "b.txt=out/deep/b.txt f=old in", ""},
		{"aa:out", "new", "f=old new/ new/a.txt=out/a.txt new/deep/ new/deep/b.txt=out/deep/b.txt new/deep/in", ""},
		{"aa:out/deep", "f", "f=old", "copy to f: there is a file of that name"},
		{"aa:top.txt/.", ".", "f=old", "top.txt is not a directory"},
		{"aa:nope", ".", "f=old", `nothing matches "nope"`},
	} {
		p := servePeer(t)
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte("old"), 0o666); err != nil {
			t.Fatal(err)
		}
		to := dir + "/" + tt.to
		status, stdout, stderr := p.rnx(t, "", "job", "cp", tt.from, to)
		stderr = strings.ReplaceAll(stderr, dir+"/", "")
		if got := tree(t, dir); got != tt.want || stdout != "" || (status != 0) != (tt.err != "") || tt.err != "" && !strings.Contains(stderr, tt.err) {
			t.Errorf("cp %s %s: got %d, %q, %q, tree\n%s, want %q, tree\n%s", tt.from, tt.to, status, stdout, stderr, got, tt.err, tt.want)
		}
		if links := strings.Contains(tt.want, "deep/b.txt") && !strings.Contains(tt.want, "deep/up"); links != strings.Contains(stderr, "left out of the copy: out/deep/up is a link to ") {
			t.Errorf("cp %s %s: got %q", tt.from, tt.to, stderr)
		}
	}
	p := servePeer(t)
	status, stdout, stderr := p.rnx(t, "", "job", "cp", "aa:out/a.txt", "-")
	var names []string
	for h, err := range peer.Entries(strings.NewReader(stdout)) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if status != 0 || stderr != "" || strings.Join(names, " ") != "out/ out/a.txt" {
		t.Errorf("cp to stdout: got %d, %q, %s", status, names, stderr)
	}
}

// TestDownload: files are fetched however the job ended, and a job's own failure
// is what rnx ends with.
func TestDownload(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		command, pattern string
		status           int
		tree, stderr     string
	}{
		{"x", "out/a.txt", 0, "out/ out/a.txt=out/a.txt", ""},
		{"fails", "top.txt", 3, "top.txt=top.txt", ""},
		{"x", "nope", 125, "", "rnx: cannot download from job aaaaaaaa: nothing matches"},
		{"fails", "nope", 3, "", "rnx: cannot download from job aaaaaaaa: nothing matches"},
	} {
		p := servePeer(t)
		dir := filepath.Join(t.TempDir(), "to", "here")
		status, _, stderr := p.rnx(t, "", "job", "run", "--download="+tt.pattern, "--download-to="+dir, tt.command)
		if got := tree(t, dir); status != tt.status || got != tt.tree || !strings.Contains(stderr, tt.stderr) {
			t.Errorf("%s %s: got %d, %s, %q", tt.command, tt.pattern, status, got, stderr)
		}
	}
}

// TestLogAgain: a log that is taken up again is the same job's, whatever has its name
// by then.
func TestLogAgain(t *testing.T) {
	t.Parallel()
	p := servePeer(t)
	status, stdout, stderr := p.rnx(t, "", "job", "log", "-f", "cut")
	if want := "follow cut from 0; follow aaaa from 6"; status != 0 || stdout != "begun\nagain\n" || p.Asked() != want {
		t.Errorf("%d %q %q, asked %.300q, want %q", status, stdout, stderr, p.Asked(), want)
	}
}
