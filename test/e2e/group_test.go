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

	"github.com/joblet/joblet"
)

// groupDaemon returns a daemon with a group, its number, and a way to run a program
// as somebody.
func groupDaemon(t *testing.T) (d *daemon, gid uint32, as func(uid, own uint32, groups []uint32, name string, args ...string) result) {
	t.Helper()
	const group = "games" // every Debian and Ubuntu has it
	g, err := user.LookupGroup(group)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(g.Gid)
	if err != nil {
		t.Fatal(err)
	}
	d = newDaemon(t, "--group="+group)
	for dir := filepath.Dir(d.run); dir != os.TempDir(); dir = filepath.Dir(dir) { // which t.TempDir keeps to root
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return d, uint32(n), func(uid, own uint32, groups []uint32, name string, args ...string) result {
		t.Helper()
		cmd := exec.CommandContext(patient(t), name, args...)
		cmd.Env = []string{"RNX_HOST=" + d.host(), "PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: own, Groups: groups}}
		return finish(cmd)
	}
}

// TestGroup: members of the daemon's group use the socket as developers, each with
// jobs of his own, and nobody else does.
func TestGroup(t *testing.T) {
	t.Parallel()
	d, gid, as := groupDaemon(t)
	rnx := binDir + "/rnx"
	alice := func(args ...string) result { return as(61001, 61001, []uint32{7, gid}, rnx, args...) }
	bob := func(args ...string) result { return as(61002, gid, nil, rnx, args...) }

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
		{bob, []string{"runtime", "remove", "python-3.11-ml"}, "uid:61002 has the role developer, and this call requires admin"},
		{alice, []string{"runtime", "build", "/dev/null"}, "uid:61001 has the role developer, and this call requires maintainer"},
		{func(args ...string) result { return as(61003, 61003, []uint32{7}, rnx, args...) }, []string{"job", "list"}, "members of the group"},
	} {
		if r := test.who(test.args...); !strings.Contains(r.stdout+r.stderr, test.want) {
			t.Errorf("%q: want %q, got %v", test.args, test.want, r)
		}
	}
	// What the daemon keeps for itself is out of their reach, and root's word counts.
	r = as(61001, 61001, []uint32{gid}, "find", d.run, d.state+"/", "-type", "f", "-readable", "-not", "-path", "*/runtimes/*", "-not", "-path", "*/etc*/*")
	if r.stdout != "" {
		t.Errorf("a member can read %s", r.stdout)
	}
	r = as(61001, 61001, []uint32{gid}, "find", d.run, d.state+"/", "(", "-type", "f", "-o", "-type", "d", "-o", "-type", "s", ")", "-writable", "-not", "-path", "*/dev/*")
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

// TestGroupNotNamed: members of a group that only happens to be called joblet are
// nobody to a daemon whose configuration names none, and see nothing of its state.
func TestGroupNotNamed(t *testing.T) {
	t.Parallel()
	const gid = 61999
	dir := t.TempDir()
	groups, err := os.ReadFile("/etc/group")
	if err != nil {
		t.Fatal(err)
	}
	var other []byte
	for line := range strings.Lines(string(groups)) {
		if !strings.HasPrefix(line, "joblet:") {
			other = append(other, line...)
		}
	}
	own := filepath.Join(dir, "group")
	if err := os.WriteFile(own, append(other, "joblet:x:61999:alice\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	start := filepath.Join(dir, "joblet")
	script := "#!/bin/sh\nexec unshare -m --propagation slave sh -c 'mount --bind " + own + " /etc/group; exec " + binDir + "/joblet \"$@\"' joblet \"$@\"\n"
	if err := os.WriteFile(start, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	d := withState(t)
	d.bin = start
	d.serve(t)
	for dir := filepath.Dir(d.run); dir != os.TempDir(); dir = filepath.Dir(dir) { // which t.TempDir keeps to root
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat(d.state); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("state directory: %v, %v", fi.Mode(), err)
	}
	cmd := exec.CommandContext(patient(t), binDir+"/rnx", "job", "run", "id")
	cmd.Env = []string{"RNX_HOST=" + d.host(), "PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 61001, Gid: 61001, Groups: []uint32{gid}}}
	if r := finish(cmd); r.status == 0 || !strings.Contains(r.stderr, "only root may use the daemon") {
		t.Errorf("a member of the host's group: %v", r)
	}
}

// TestGroupNames: a name means the caller's own job, whoever else uses it.
func TestGroupNames(t *testing.T) {
	t.Parallel()
	d, gid, as := groupDaemon(t)
	rnx := binDir + "/rnx"
	type caller func(args ...string) result
	alice := caller(func(args ...string) result { return as(61001, gid, nil, rnx, args...) })
	bob := caller(func(args ...string) result { return as(61002, gid, nil, rnx, args...) })
	root := caller(func(args ...string) result { return d.rnx(patient(t), args...) })
	start := func(who caller, args ...string) string {
		t.Helper()
		r := who(append([]string{"job", "run", "-d"}, args...)...)
		if r.status != 0 {
			t.Fatalf("%q: %v", args, r)
		}
		return strings.TrimSpace(r.stdout)
	}
	says := func(who caller, status int, want string, args ...string) {
		t.Helper()
		if r := who(args...); r.status != status || !strings.Contains(r.stdout+r.stderr, want) {
			t.Errorf("%q: want %d, %q, got %v", args, status, want, r)
		}
	}
	short := joblet.ShortID
	hers := start(alice, "--name=nn", "sh", "-c", "echo hers > f; echo hers; sleep 1000")
	his := start(bob, "--name=nn", "sh", "-c", "echo his > f; echo his; sleep 1000")

	says(alice, 0, hers, "--json", "job", "status", "nn")
	says(bob, 0, his, "--json", "job", "status", "nn")
	says(alice, 0, "box", "job", "exec", "nn", "echo", "box")
	for _, args := range [][]string{
		{"job", "status", "nn"}, {"job", "log", "nn"}, {"job", "cp", "nn:f", "-"}, {"job", "exec", "nn", "true"}, {"job", "attach", "nn"}, {"job", "stop", "nn"},
		{"job", "cancel", "nn"}, {"job", "rerun", "nn"}, {"job", "pause", "nn"}, {"job", "wait", "nn"}, {"job", "tree", "nn"}, {"job", "metrics", "--history", "nn"},
		{"job", "list", "--parent=nn"}, {"job", "list", "--before=nn"}, {"job", "run", "-d", "--depends-on=nn", "true"},
	} {
		r := root(args...)
		if r.status == 0 || !strings.Contains(r.stderr, "job nn is ambiguous") ||
			!strings.Contains(r.stderr, short(hers)+" (RUNNING, uid:61001), "+short(his)+" (RUNNING, uid:61002)") {
			t.Errorf("root's %q: %v", args, r)
		}
	}
	mine := start(root, "--name=nn", "sleep", "1000")
	says(root, 0, mine, "--json", "job", "status", "nn")
	says(root, 0, "", "job", "kill", "nn")
	says(root, 0, mine, "--json", "job", "status", "nn") // it has ended, and goes before theirs

	// What waits for a name waits for the own job of that name.
	waits := start(alice, "--depends-on=nn", "true")
	says(alice, 0, hers, "--json", "job", "status", waits)
	says(alice, 0, "", "job", "kill", "nn")
	d.ends(t, waits, joblet.Canceled)
	says(bob, 0, "RUNNING", "job", "status", "nn")
	says(bob, 0, "", "job", "kill", "nn")

	// A repeating one of the own.
	cron := start(alice, "--name=tick", "--schedule=0 0 1 1 *", "true")
	his = start(bob, "--name=tick", "--schedule=0 0 1 1 *", "true")
	says(root, 1, short(cron), "job", "cancel", "tick")
	says(alice, 0, "", "job", "cancel", "tick")
	says(bob, 0, "SCHEDULED", "job", "status", his)
	says(root, 1, "several other owners", "job", "cancel", "tick")
	says(bob, 0, "", "job", "cancel", "tick")

	// Nobody else has it: then it is the other's, if the caller may.
	only := start(alice, "--name=only", "sleep", "1000")
	says(bob, 1, "belongs to uid:61001", "job", "stop", "only")
	says(root, 0, only, "--json", "job", "status", "only")
	// A name that another has given does not stand before the id that is meant.
	evil := start(bob, "--name="+only[:5], "sleep", "1000")
	says(root, 0, only, "--json", "job", "status", only[:5])
	says(alice, 0, "", "job", "kill", only[:5])
	says(bob, 0, evil, "--json", "job", "status", only[:5])
	says(bob, 0, "", "job", "kill", only[:5])
}
