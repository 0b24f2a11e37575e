package main

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
	cmd := newCommand()
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
	fail("exists already", "init")
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
	fail("exists already", "issue", "alice")
	fail("file exists", "rotate", "alice", "--out="+admin)
	fail("must be one of", "issue", "bob", "--role=god")
	fail("between an hour and 3650 days", "issue", "bob", "--days=0")
	fail("address", "issue", "bob", "--address=a b")
	fail("one thing", "rotate")
	fail("one thing", "rotate", "alice", "--server")
	fail("not found", "rotate", "bob")
	if text := run("rotate", "alice"); !strings.HasPrefix(text, "# alice, reader until ") {
		t.Errorf("got %s", text)
	}
	run("rotate", "--ca")
	run("rotate", "--server")
	if out := run("rotate", "--retire-ca"); !strings.HasPrefix(out, "1 old") {
		t.Errorf("got %s", out)
	}
	if out := run("revoke", "alice"); strings.Count(out, "revoked") != 1 {
		t.Errorf("got %s", out)
	}
	fail("not found", "revoke", "bob")
	if out := run("list"); strings.Count(out, "revoked") != 2 || strings.Count(out, "valid") != 2 {
		t.Errorf("got %s", out)
	}
	if out := run("list", "--json"); strings.Count(out, `"state":"valid"`) != 2 {
		t.Errorf("got %s", out)
	}
}
