package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joblet/joblet/client"
)

// nodes writes a configuration with a node for each client, named after it.
func (r *remoteDaemon) nodes(t *testing.T, names ...string) (path string) {
	t.Helper()
	all := client.Config{Nodes: map[string]client.Node{}}
	for _, name := range names {
		conf, err := client.LoadConfig(r.bundle(name))
		if err != nil {
			t.Fatal(err)
		}
		if all.Nodes[name], err = conf.Node(""); err != nil {
			t.Fatal(err)
		}
	}
	text, err := all.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(r.dir, "nodes.yml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRemoteTerminal: a job's terminal over mutual TLS, typed at in one of tmux's.
func TestRemoteTerminal(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "")
	for name, role := range map[string]string{"alice": "developer", "bob": "developer", "mona": "maintainer"} {
		r.issue(t, name, role)
	}
	s := newScreen(t, r.daemon, 100, 30)
	before := s.modes()
	s.line("unset RNX_HOST; export RNX_CONFIG=" + r.nodes(t, "alice", "bob", "mona"))
	s.clear()
	s.line("rnx --node alice job run -t --name=sh bash --norc")
	s.wait(`bash-5\S*#\z`)
	s.line(`PS1='in# '; echo $(tty) $(stty size)`)
	s.wait(`^/dev/pts/0 30 100\nin#\z`)
	s.resize(90, 25)
	if !eventually(patience, func() bool { s.line("echo now $(stty size)"); return strings.Contains(s.text(), "now 25 90") }) {
		t.Errorf("the terminal keeps its size:\n%s", s.text())
	}
	s.line("sleep 60")
	s.wait(`^in# sleep 60\z`)
	r.foreground(t, "sh", "sleep 60")
	s.keys("C-c")
	s.wait(`\^C\s+in#\z`)

	// The daemon dies and another takes its place.
	r.kill(t)
	s.wait(`lost the connection to the daemon`)
	if err := r.start(); err != nil {
		t.Fatal(err)
	}
	if !eventually(patience, func() bool { s.line("echo again-$((40 + 2))"); return strings.Contains(s.text(), "again-42") }) {
		t.Fatalf("the terminal does not come back:\n%s", s.text())
	}
	s.keys("C-p", "C-q")
	s.wait(`detached from job`)
	s.status(0)

	s.clear()
	s.line("rnx --node bob job attach sh")
	s.wait(`belongs to cert:alice: cert:bob may not change it`)
	s.status(125)
	s.clear()
	s.line("rnx --node mona job attach sh")
	s.wait(`^in#\z`)
	s.keys("C-p", "C-q")
	s.wait(`detached from job`)
	s.clear()
	s.line("rnx --node mona job exec -t sh sh -c 'echo $(tty) $(stty size); exit 6'")
	s.wait(`^/dev/pts/1 25 90`)
	s.status(6)
	s.clear()
	s.line("rnx --node alice job attach sh")
	s.wait(`^in#\z`)
	s.line("exit 4")
	s.wait(`here\$\z`)
	s.status(4)
	if after := s.modes(); after != before {
		t.Errorf("terminal modes: %q, were %q", after, before)
	}
}

// TestRemoteAttachExec: whoever may not end a job may not type into it either, nor
// run something in it.
func TestRemoteAttachExec(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "")
	for name, role := range map[string]string{"alice": "developer", "bob": "developer", "eye": "reader", "mona": "maintainer"} {
		r.issue(t, name, role)
	}
	id := strings.TrimSpace(mustOK(t, r.as(t, "alice", "job", "run", "-dt", "--name=sh", "sh", "-c", `while read x; do echo "got=$x"; done`), "run"))
	attach := func(name, typed string) result {
		cmd := r.commandAs(patient(t), name, "job", "attach", "sh")
		cmd.Stdin = strings.NewReader(typed)
		return finish(cmd)
	}
	exec := func(name string) result {
		cmd := r.commandAs(patient(t), name, "job", "exec", "-i", "sh", "sh", "-c", "cat; echo err >&2; exit 7")
		cmd.Stdin = strings.NewReader("through")
		return finish(cmd)
	}
	denied := "belongs to cert:alice: cert:bob may not change it"
	mustFail(t, attach("bob", "stolen\n"), denied)
	mustFail(t, exec("bob"), denied)
	mustFail(t, attach("eye", "stolen\n"), "cert:eye has the role reader, and this call requires developer")
	mustFail(t, exec("eye"), "cert:eye has the role reader, and this call requires developer")
	for _, args := range [][]string{{"job", "shell", "sh"}, {"job", "signal", "sh", "WINCH"}} {
		mustFail(t, r.as(t, "bob", args...), denied)
	}
	for _, args := range [][]string{{"job", "top", "--once", "sh"}, {"job", "metrics", "sh"}, {"job", "tree", "sh"}} {
		mustFail(t, r.as(t, "bob", args...), "belongs to cert:alice: cert:bob may not see it")
	}
	for _, name := range []string{"alice", "mona"} {
		if res := exec(name); res.status != 7 || res.stdout != "through" || res.stderr != "err\n" {
			t.Errorf("%s runs: %v", name, res)
		}
	}
	r.reload(t, "allow: [bob read alice]\n")
	mustFail(t, attach("bob", "stolen\n"), denied)
	mustFail(t, exec("bob"), denied)
	r.reload(t, "allow: [bob control alice]\n")
	if res := exec("bob"); res.status != 7 {
		t.Errorf("what the rule grants: %v", res)
	}
	if res := attach("mona", "from mona\n\x04"); res.status != 0 || !strings.Contains(res.stdout, "got=from mona\r\n") {
		t.Errorf("mona attaches: %v", res)
	}
	if log := mustOK(t, r.as(t, "alice", "job", "log", id), "log"); strings.Contains(log, "stolen") || strings.Contains(log, "through") {
		t.Errorf("the log: %q", log)
	}

	audit, err := os.ReadFile(filepath.Join(r.state, "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for line := range bytes.Lines(audit) {
		var l struct{ Caller, Method, Job, Target, Result string }
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if l.Method != "JobService/AttachJob" && l.Method != "JobService/ExecJob" {
			continue
		}
		if l.Result == "OK" && l.Job != id || l.Method == "JobService/ExecJob" && l.Result == "OK" && l.Target != "sh" {
			t.Errorf("audit: %s", line)
		}
		count[strings.TrimPrefix(l.Method, "JobService/")+" "+l.Caller+" "+l.Result]++
	}
	for what, n := range map[string]int{
		"AttachJob cert:bob PermissionDenied": 2, "AttachJob cert:eye PermissionDenied": 1, "AttachJob cert:mona OK": 1,
		"ExecJob cert:alice OK": 1, "ExecJob cert:mona OK": 1, "ExecJob cert:bob OK": 1, "ExecJob cert:eye PermissionDenied": 1, "ExecJob cert:bob PermissionDenied": 3,
	} {
		if count[what] != n {
			t.Errorf("audit has %d times %s, want %d", count[what], what, n)
		}
	}
}
