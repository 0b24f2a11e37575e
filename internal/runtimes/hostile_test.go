package runtimes

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// hostile is what the script of a package might try, as root and outside of the
// tree even. Each line that begins with "REACHED" is something of the host's.
const hostile = `
reached() { echo "REACHED $*"; }
[ -e @PRECIOUS@ ] && reached "a file of the host's"
(echo x > /proc/1/root@PRECIOUS@) 2>/dev/null && reached "a file of the host's by /proc/1/root"
echo x > "/usr/@NAME@" 2>/dev/null && reached "the host's /usr"
echo x > "/etc/@NAME@" 2>/dev/null && [ -e "/etc/@NAME@" ] && echo "note: /etc is the sandbox's own"
(exec 3<>/dev/tcp/127.0.0.1/@PORT@) 2>/dev/null && reached "a port of the host's"
kill -0 @PID@ 2>/dev/null && reached "a process of the host's"
mount -t sysfs none /mnt 2>/dev/null && [ -w /mnt/kernel ] && reached "a sysfs"
mount -o remount,suid,bind "$(dirname "$target")" 2>/dev/null && reached "a mount with set-id programs"
mount -o remount,rw,bind /usr 2>/dev/null && reached "a writable /usr"
mknod /tmp/disk b 8 0 2>/dev/null && reached "a device node"
(echo 1 > /proc/sys/kernel/sysrq) 2>/dev/null && reached "a sysctl"
for f in $(find /proc -maxdepth 3 -type f -path '/proc/[!0-9s]*' 2>/dev/null) /proc/sysrq-trigger; do
  [ -f "$f" ] && (exec 3>>"$f") 2>/dev/null && reached "$f for writing"
done
unshare --user true 2>/dev/null && reached "a user namespace"
for way in root cwd fd/0 mem; do (: < /proc/1/$way) 2>/dev/null && reached "/proc/1/$way"; done
ip link add dummy0 type dummy 2>/dev/null && reached "the network's set-up"
[ "$(ls /proc | grep -c '^[0-9]')" -gt 50 ] && reached "the host's processes"
for fd in /proc/1/fd/* /proc/self/fd/*; do
  case $(readlink "$fd") in pipe:*|/dev/null|/build/*|/proc/*|@TOOL@*|socket:*|"") ;; *) reached "descriptor $fd: $(readlink "$fd")";; esac
done
grep -q '^CapEff:.*0000003f' /proc/self/status && reached "all capabilities"
grep -q 4294967295 /proc/self/uid_map && reached "the host's root"
env | grep -i proxy && reached "the proxy's password"
cat /proc/1/environ 2>/dev/null | tr '\0' '\n' | grep HOST_SECRET && reached "the daemon's environment"
cp /bin/true "$target/usr/bin/setid"; chmod 6755 "$target/usr/bin/setid"
setcap cap_sys_admin+ep "$target/usr/bin/setid" 2>/dev/null || true
chown 1000:2000 "$target/usr/lib/private"; ln "$target/usr/lib/private" "$target/usr/lib/linked"; ln -s /etc/shadow "$target/usr/lib/link"; chown -h 5:6 "$target/usr/lib/link"
mkdir -p "$target/usr/lib/deep"; chmod 2777 "$target/usr/lib/deep"
if [ -n "@WAIT@" ]; then echo > @WAIT@started; read -r _ < @WAIT@go; fi
echo "tried everything"
`

// TestBuildHostile: what runs during a build reaches nothing of the host, and what
// it leaves is harmless, also while it is under construction.
func TestBuildHostile(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	open(t, dir)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	precious := filepath.Join(t.TempDir(), "precious")
	write(t, precious, "precious")
	open(t, filepath.Dir(precious))
	if err := os.Chmod(precious, 0o666); err != nil {
		t.Fatal(err)
	}
	t.Setenv("http_proxy", "http://user:password@127.0.0.1:1")
	t.Setenv("HOST_SECRET", "secret")
	wait := filepath.Join(dir, "wait-")
	started, release := fifo(t, dir, "wait-started"), fifo(t, dir, "wait-go")
	fakeIn(t, dir, strings.NewReplacer("@PRECIOUS@", precious, "@NAME@", "joblet-test-"+filepath.Base(filepath.Dir(dir)), "@PORT@", port,
		"@PID@", fmt.Sprint(os.Getpid()), "@TOOL@", dir, "@WAIT@", wait).Replace(hostile))
	s := openStore(t)
	open(t, s.dir)

	var log []string
	done := make(chan error, 1)
	var rt Runtime
	go func() {
		var err error
		rt, err = s.Build(t.Context(), parse(t, fakeRecipe), BuildOptions{Log: func(l string) { log = append(log, l) }})
		done <- err
	}()
	if err := receive(started, done); err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(log, "\n"))
	}
	// Another user of the host finds no way to the set-id program meanwhile.
	find := exec.Command("find", s.dir, "-perm", "/6000")
	find.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 61001, Gid: 61001}}
	if out, err := find.Output(); len(out) > 0 {
		t.Errorf("another user sees %s (%v)", out, err)
	}
	// And if he did, it would not be root's.
	owners, err := exec.Command("find", s.dir, "-perm", "/6000", "-not", "-type", "d", "-uid", "0").Output()
	if len(owners) > 0 || err != nil {
		t.Errorf("set-id programs of root's: %s, %v", owners, err)
	}
	if err := os.WriteFile(release, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(log, "\n"))
	}
	tried := false
	for _, line := range log {
		if strings.HasPrefix(line, "REACHED") {
			t.Error(line)
		}
		tried = tried || line == "tried everything"
	}
	if !tried {
		t.Errorf("the script did not do it all:\n%s", strings.Join(log, "\n"))
	}
	if data, err := os.ReadFile(precious); string(data) != "precious" {
		t.Errorf("the host's file holds %q, %v", data, err)
	}
	if mounts, err := mountsBelow(s.dir); err != nil || len(mounts) > 0 {
		t.Errorf("mounts: %q, %v", mounts, err)
	}

	for name, want := range map[string][3]uint32{ // mode, owner, group
		"usr/bin/setid": {0o755, 0, 0}, "usr/lib/private": {0o644, 1000, 2000}, "usr/lib/linked": {0o644, 1000, 2000}, "usr/lib/deep": {0o777, 0, 0}, "usr/lib/link": {0o777, 5, 6},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(rt.RootFS, name), &st); err != nil {
			t.Error(name, err)
		} else if got := [3]uint32{st.Mode & 0o7777, st.Uid, st.Gid}; got != want {
			t.Errorf("%s: mode, owner, group %o, want %o", name, got, want)
		}
	}
	attr := make([]byte, 64)
	if n, err := unix.Lgetxattr(filepath.Join(rt.RootFS, "usr/bin/setid"), "security.capability", attr); err == nil {
		t.Errorf("capabilities are left: %x", attr[:n])
	}
}

// open makes the directories above a test's visible to other users.
func open(t *testing.T, dir string) {
	t.Helper()
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// receive reads a pipe unless the build ends first.
func receive(pipe string, done <-chan error) error {
	got := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(pipe)
		got <- err
	}()
	select {
	case err := <-got:
		return err
	case err := <-done:
		if f, openErr := os.OpenFile(pipe, os.O_RDWR, 0); openErr == nil { // lets the reader go
			_ = f.Close()
		}
		return fmt.Errorf("the build has ended: %w", err)
	}
}

// TestSanitize: capabilities, access control lists and devices that the host's root
// left in a tree go as well.
func TestSanitize(t *testing.T) {
	requireRoot(t)
	const base = firstBuildID
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	write(t, outside, "x")
	if err := os.Chmod(outside, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "d"), 0o700),
		os.WriteFile(filepath.Join(dir, "d/tool"), nil, 0o600),
		os.Lchown(filepath.Join(dir, "d/tool"), base+7, base+65535),
		unix.Chmod(filepath.Join(dir, "d/tool"), 0o6711),
		unix.Setxattr(filepath.Join(dir, "d/tool"), "security.capability", []byte("\x01\x00\x00\x02\x00\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
		os.Symlink(outside, filepath.Join(dir, "link")),
		os.Lchown(filepath.Join(dir, "link"), base, base),
		unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o666, int(unix.Mkdev(8, 0))),
		unix.Mknod(filepath.Join(dir, "socket"), unix.S_IFSOCK|0o666, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := sanitize(dir, base); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "d/tool"), &st); err != nil || st.Mode&0o7777 != 0o755 || st.Uid != 7 || st.Gid != 65535 {
		t.Errorf("tool: %o %d:%d, %v", st.Mode, st.Uid, st.Gid, err)
	}
	if _, err := unix.Lgetxattr(filepath.Join(dir, "d/tool"), "security.capability", make([]byte, 64)); err != unix.ENODATA {
		t.Errorf("capabilities: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if fi, err := os.Stat(outside); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("behind the link: %v, %v", fi.Mode(), err)
	}

	if err := os.Lchown(filepath.Join(dir, "link"), base-1, 0); err != nil {
		t.Fatal(err)
	}
	if err := sanitize(dir, base); err == nil || !strings.Contains(err.Error(), "not an id of the build") {
		t.Errorf("a file of another user: %v", err)
	}
}

// TestBuildDeep: a tree that is deeper than any package's is refused and removed.
func TestBuildDeep(t *testing.T) {
	fake(t, `mkdir -p "$target/$(printf 'd/%.0s' $(seq 300))"`)
	s := openStore(t)
	if _, err := s.Build(t.Context(), parse(t, fakeRecipe), BuildOptions{}); err == nil || !strings.Contains(err.Error(), "directories deep") {
		t.Error(err)
	}
	if names := left(t, s); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
}
