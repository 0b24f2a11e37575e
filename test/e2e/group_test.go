package e2e

import (
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestGroup: members of the daemon's group use the socket as developers, each with
// jobs of his own, and nobody else does.
func TestGroup(t *testing.T) {
	t.Parallel()
	const group = "games" // every Debian and Ubuntu has it
	g, err := user.LookupGroup(group)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, "--group="+group)
	for dir := filepath.Dir(d.run); dir != os.TempDir(); dir = filepath.Dir(dir) { // which t.TempDir keeps to root
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	as := func(uid, own uint32, groups []uint32, name string, args ...string) result {
		t.Helper()
		cmd := exec.CommandContext(patient(t), name, args...)
		cmd.Env = []string{"RNX_HOST=" + d.host(), "PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: own, Groups: groups}}
		return finish(cmd)
	}
	rnx := binDir + "/rnx"
	alice := func(args ...string) result { return as(61001, 61001, []uint32{7, uint32(gid)}, rnx, args...) }
	bob := func(args ...string) result { return as(61002, uint32(gid), nil, rnx, args...) }

	r := alice("job", "run", "-d", "--name=hers", "sh", "-c", "id -u; sleep 1000")
	if r.status != 0 {
		t.Fatal(r)
	}
	id := strings.TrimSpace(r.stdout)
	if r := d.rnx(patient(t), "job", "list", "--format", "{{.Owner}} {{.Name}}"); r.stdout != "uid:61001 hers\n" {
		t.Errorf("root sees %v", r)
	}
	for _, test := range []struct {
		who  func(...string) result
		args []string
		want string // in what it says
	}{
		{alice, []string{"job", "exec", "hers", "echo", "inside"}, "inside"},
		{bob, []string{"job", "run", "echo", "mine"}, "mine"},
		{bob, []string{"job", "log", "hers"}, "belongs to uid:61001"},
		{bob, []string{"job", "exec", "hers", "true"}, "belongs to uid:61001"},
		{bob, []string{"job", "attach", id}, "belongs to uid:61001"},
		{bob, []string{"job", "kill", id}, "belongs to uid:61001"},
		{bob, []string{"runtime", "remove", "python-3.11-ml"}, "uid:61002 is developer, and this call needs admin"},
		{alice, []string{"runtime", "build", "/dev/null"}, "uid:61001 is developer, and this call needs maintainer"},
		{func(args ...string) result { return as(61003, 61003, []uint32{7}, rnx, args...) }, []string{"job", "list"}, "members of the group"},
	} {
		if r := test.who(test.args...); !strings.Contains(r.stdout+r.stderr, test.want) {
			t.Errorf("%q: want %q, got %v", test.args, test.want, r)
		}
	}
	// What the daemon keeps for itself is out of their reach, and root's word counts.
	r = as(61001, 61001, []uint32{uint32(gid)}, "find", d.run, d.state+"/", "-type", "f", "-readable", "-not", "-path", "*/runtimes/*", "-not", "-path", "*/etc*/*")
	if r.stdout != "" {
		t.Errorf("a member can read %s", r.stdout)
	}
	r = as(61001, 61001, []uint32{uint32(gid)}, "find", d.run, d.state+"/", "(", "-type", "f", "-o", "-type", "d", "-o", "-type", "s", ")", "-writable", "-not", "-path", "*/dev/*")
	if r.stdout != d.run+"/joblet.sock\n" {
		t.Errorf("a member can write to %s", r.stdout)
	}
	if r := alice("job", "kill", "hers"); r.status != 0 {
		t.Error(r)
	}
}

// TestGroupUnknown: a group that is named must be there.
func TestGroupUnknown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := &daemon{state: dir + "/state", run: dir + "/run", args: []string{"--group=no-such-group"}}
	if err := d.start(); err == nil {
		d.stop()
		t.Error("it starts")
	} else if !strings.Contains(err.Error(), "no-such-group") || !strings.Contains(err.Error(), "groupadd") {
		t.Error(err)
	}
}
