package command

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet/client"
)

// cli runs the program's command line.
func cli(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := New()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestPKI(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := []string{"--dir=" + filepath.Join(dir, "pki"), "--ca-dir=" + filepath.Join(dir, "ca")}
	run := func(args ...string) string {
		t.Helper()
		out, err := cli(t, append(append([]string{"pki"}, args...), at...)...)
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return out
	}
	fail := func(want string, args ...string) {
		t.Helper()
		if _, err := cli(t, append(append([]string{"pki"}, args...), at...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", args, err, want)
		}
	}
	fail("joblet pki init", "list")
	fail("joblet pki init", "issue", "alice")
	admin := filepath.Join(dir, "admin.yml")
	run("init", "--name=node1.example.org", "--out="+admin, "--address=node1.example.org")
	fail("already exists", "init")
	text, err := os.ReadFile(admin)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(admin); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	conf, err := client.ParseConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	node, err := conf.Node("")
	if err != nil {
		t.Fatal(err)
	}
	name, role, until, err := node.Identity()
	if err != nil || name != "admin" || role != "admin" || time.Until(until) < 364*24*time.Hour || node.Address != "node1.example.org:50051" {
		t.Errorf("%s %s %v %s %v", name, role, until, node.Address, err)
	}
	if out := run("issue", "alice", "--role=reader", "--days=2"); !strings.HasPrefix(out, "# alice, reader until ") || !strings.Contains(out, "BEGIN PRIVATE KEY") {
		t.Errorf("got %s", out)
	}
	fail("already exists", "issue", "alice")
	fail("file exists", "rotate", "alice", "--out="+admin)
	fail("must be one of", "issue", "bob", "--role=god")
	for _, days := range []string{"0", "-1", "3651", "213505"} { // the last is a day too much for 64 bits of nanoseconds
		fail("must be between 1 and 3650", "issue", "bob", "--days="+days)
	}
	fail("must be between 1 and 3650", "rotate", "--ca", "--days=213505")
	fail("address", "issue", "bob", "--address=a b")
	fail("exactly one", "rotate")
	fail("exactly one", "rotate", "alice", "--server")
	fail("not found", "rotate", "bob")
	if text := run("rotate", "alice"); !strings.HasPrefix(text, "# alice, reader until ") {
		t.Errorf("got %s", text)
	}
	run("rotate", "--ca")
	run("rotate", "--server")
	fail("no client with the role admin would be left", "rotate", "--retire-ca")
	fail("admin (admin), alice (reader)", "rotate", "--retire-ca")
	run("rotate", "admin")
	if out := run("rotate", "--retire-ca"); !strings.HasPrefix(out, "removed 1 old") || !strings.HasSuffix(out, ": alice (reader)\n") {
		t.Errorf("got %s", out)
	}
	if out := run("list"); strings.Count(out, "untrusted") != 1 {
		t.Errorf("got %s", out)
	}
	if out := run("revoke", "alice"); strings.Count(out, "revoked") != 1 {
		t.Errorf("got %s", out)
	}
	fail("not found", "revoke", "bob")
	if out := run("list"); strings.Count(out, "revoked") != 3 || strings.Count(out, "valid") != 2 {
		t.Errorf("got %s", out)
	}
	if out := run("list", "--json"); strings.Count(out, `"state":"valid"`) != 2 {
		t.Errorf("got %s", out)
	}
	run("rotate", "--ca")
	if out := run("rotate", "--retire-ca", "--force"); !strings.HasSuffix(out, ": admin (admin)\n") {
		t.Errorf("got %s", out)
	}
}

// TestPKIBundlePrivate: the shell makes "> alice.yml" for everybody to read.
func TestPKIBundlePrivate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := "--dir=" + filepath.Join(dir, "pki")
	if _, err := cli(t, "pki", "init", at); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"issue", "alice"}, {"rotate", "alice"}} {
		f, err := os.Create(filepath.Join(dir, args[0]+".yml"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Chmod(0o644); err != nil {
			t.Fatal(err)
		}
		cmd := New()
		cmd.SetArgs(append([]string{"pki", at}, args...))
		cmd.SetOut(f)
		if err := cmd.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st, err := f.Stat(); err != nil || st.Mode() != 0o600 || st.Size() == 0 {
			t.Errorf("%q: %v %v", args, st.Mode(), err)
		}
	}
}
