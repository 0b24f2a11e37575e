package escape

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// nestedMay are the attempts that --security=nested is there for: what they reach
// is of namespaces of their own.
var nestedMay = []string{
	"a user namespace by unshare", "a mount namespace by unshare", "a network namespace by unshare", "a PID namespace by unshare",
	"an IPC namespace by unshare", "a UTS namespace by unshare", "a cgroup namespace by unshare", "a time namespace by unshare",
	"a user namespace by clone",
	// Not hidden, so that a proc may be mounted; they tell of the job's own keys, and
	// of the kernel what every user of a host may read.
	"/proc/keys",
	"write to any file of the kernel's", // of /proc/sys, for its own namespaces
	"the last process number",           // its own PID namespace's, and a write wants a privilege that it lacks
}

// TestEscapesByProfile runs the attempts in jobs that were asked for otherwise: all where
// much more is allowed than by default, else a third of them, another one in each run. The
// controls are in TestEscapes.
func TestEscapesByProfile(t *testing.T) {
	profile := filepath.Join(t.TempDir(), "profile")
	if err := os.WriteFile(profile, []byte("allow io_uring_setup io_setup\ndeny ptrace\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		part  bool
		flags []string
		may   []string
	}{
		{name: "strict", part: true, flags: []string{"--security=strict"}},
		{name: "nested", flags: []string{"--security=nested"}, may: nestedMay},
		{name: "user", part: true, flags: []string{"--user=1000:1000"}},
		{name: "denied calls logged", part: true, flags: []string{"--log-denied"}},
		{name: "all capabilities", flags: []string{"--cap-add=all"}, may: []string{"raw sockets", "netlink: a new address"}}, // in its own network namespace
		{name: "a profile of its own", part: true, flags: []string{"--security=" + profile}, may: []string{"io_uring", "asynchronous I/O out of the host's pool"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.start(t, "held", "--env=MARK="+w.mark, "--upload="+probe(), "sh", "-c", `sleep infinity | /work/probe "$@"`, "sh", "hold", w.key, w.name, w.mark)
			for _, a := range w.attempts() {
				if a.amd64 && runtime.GOARCH != "amd64" || test.part && !slices.Contains(test.may, a.name) && rand.IntN(3) > 0 {
					continue
				}
				r := w.try(t, slices.Concat(test.flags, a.flags), a.args...)
				if r.status != refused && r.status != absent && (r.status != through || !slices.Contains(test.may, a.name)) {
					t.Errorf("%s: a way out (%s): %v", a.name, a.ref, r)
				}
			}
		})
	}
}

// TestProfiles has jobs look at how far they are shut in.
func TestProfiles(t *testing.T) {
	w := newWorld(t)
	profile := filepath.Join(t.TempDir(), "profile")
	if err := os.WriteFile(profile, []byte("profile strict\nallow ptrace # for strace\ndeny mkdir mkdirat\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const coreScript = `ulimit -c 0 && ulimit -Sc 0 && ulimit -Hc 0 && ulimit -c unlimited; grep -o "core.*[0-9]" /proc/self/limits | tr -s " "`
	const coreWant = `^core file size 1 1\n$`
	const caps = `grep CapEff /proc/self/status | tail -c 9`
	for _, test := range []struct {
		name   string
		flags  []string
		script string
		want   string // regular expression over stdout
	}{
		{"default", nil, caps, `^000405fb\n$`},
		{"strict", []string{"--security=strict"}, caps, `^00000000\n$`},
		{"nested", []string{"--security=nested"}, caps, `^800405fb\n$`},
		{"more and less", []string{"--cap-add=net_raw", "--cap-drop=chown,CAP_KILL"}, caps, `^000425da\n$`},
		{"none but one", []string{"--cap-drop=all", "--cap-add=kill"}, caps, `^00000020\n$`},
		{"a user", []string{"--user=1000:100"}, `id -u; id -g; id -G; ` + caps, `^1000\n100\n100\n00000000\n$`},
		{"a user's places", []string{"--user=1000"}, `touch /work/x "$HOME/y" /tmp/z && echo >/dev/stdout ok; touch /x /root/x 2>/dev/null || echo no`, `^ok\nno\n$`},
		{"a user's directory", []string{"--user=1000", "--workdir=/work/a/b"}, `touch x && pwd`, `^/work/a/b\n$`},
		{"a user's uploads", []string{"--user=1000", "--upload=" + profile}, `stat -c %u:%g /work /work/profile`, `^1000:1000\n1000:1000\n$`},
		{"a user and a reaper", []string{"--user=1000", "--init"}, `id -u`, `^1000\n$`},
		{"a profile of its own", []string{"--security=" + profile}, `mkdir x 2>/dev/null || echo refused; ` + caps, `^refused\n00000000\n$`},
		{"namespaces in a nested job", []string{"--security=nested"}, `unshare -Urmpf --mount-proc sh -c 'mount -t tmpfs x /tmp && echo $$; touch /usr/x 2>/dev/null || echo no'`, `^1\nno\n$`},
		{"mounts of a nested job stay as they are", []string{"--security=nested"},
			`unshare -Urm sh -c 'mount -o remount,bind,rw /usr || umount /usr || mount --bind /usr /mnt && mount -o remount,bind,rw /mnt' 2>/dev/null || echo refused; mount -o remount,bind,rw /usr 2>/dev/null || echo refused`, `^refused\nrefused\n$`},
		{"mounts of the kernel in a nested job", []string{"--security=nested"},
			`unshare -Urm sh -c 'for d in /sys /sys/fs/cgroup /sys/fs/cgroup/* /sys/devices/system/* /sys/kernel/mm/*; do mountpoint -q $d && (mount -o remount,bind,rw $d || umount $d || mount --bind $d /mnt && mount -o remount,bind,rw /mnt) && echo $d; done' 2>/dev/null; touch /sys/x 2>/dev/null || echo refused`, `^refused\n$`},
		{"oom_score_adj", nil, `cat /proc/self/oom_score_adj`, `^100\n$`},
		{"core dumps", nil, coreScript, coreWant},
		{"core dumps of a nested job", []string{"--security=nested"}, "unshare -Ur sh -c '" + coreScript + "'", coreWant},
		{"core dumps with a limit of 0", []string{"--rlimit=core=0"}, coreScript, coreWant},
		{"core dumps with --log-denied", []string{"--log-denied"}, coreScript, coreWant},
		{"core dumps by name", nil, `python3 -c 'import resource as r
print(r.setrlimit(r.RLIMIT_CORE, (0, 0)), r.getrlimit(r.RLIMIT_CORE), r.prlimit(0, r.RLIMIT_CORE))
try: r.prlimit(0, r.RLIMIT_CORE, (0, 0))
except PermissionError as e: print(e.errno)
print(r.prlimit(0, r.RLIMIT_NOFILE, (99, 99)) and r.getrlimit(r.RLIMIT_NOFILE))'`, `^None \(1, 1\) \(1, 1\)\n1\n\(99, 99\)\n$`},
		{"a crash", nil, `sh -c 'kill -SEGV $$' 2>/dev/null; echo $?; ls -A`, `^139\n$`},
		{"files are moved", nil, `mkdir a b; echo x >a/f; mv a/f b/f; ln b/f a/g; cat a/g; mv /work/b/f /tmp/; ls /tmp`, `^x\nf\n$`},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := w.job(t, append(test.flags, "sh", "-c", test.script)...)
			if !regexp.MustCompile(test.want).MatchString(r.stdout) {
				t.Errorf("%v\nwant %s", r, test.want)
			}
		})
	}
}

// TestExecLimits: what is started in a job later has the same limits, and no more
// ways to change them.
func TestExecLimits(t *testing.T) {
	w := newWorld(t)
	id, _ := w.start(t, "up", "sh", "-c", "echo up; sleep infinity")
	r := w.rnx(t.Context(), "job", "exec", id, "sh", "-c", `ulimit -c 0 && grep -o "core.*[0-9]" /proc/self/limits | tr -s " "`)
	if r.stdout != "core file size 1 1\n" {
		t.Error(r)
	}
	r = w.rnx(t.Context(), "job", "exec", id, "python3", "-c", `import fcntl
f = open("/tmp/x", "w"); f.close()
try: fcntl.fcntl(open("/tmp/x"), fcntl.F_SETLEASE, fcntl.F_WRLCK)
except OSError as e: print(e.errno)`)
	if r.stdout != "22\n" {
		t.Error(r)
	}
}

// TestProfilesRefused: what cannot be had is an error before there is a job.
func TestProfilesRefused(t *testing.T) {
	w := newWorld(t)
	profile := filepath.Join(t.TempDir(), "profile")
	for _, test := range []struct {
		profile string // the file's text
		flags   []string
		want    string
	}{
		{"", []string{"--security=loose"}, "must be one of default, strict, nested"},
		{"", []string{"--security=./no/such"}, "no such file"},
		{"", []string{"--cap-add=sys_admin"}, "a job can have all, or chown"},
		{"", []string{"--user=root"}, "must be UID or UID:GID"},
		{"", []string{"--user=70000"}, "numbers from 0 to 65535"},
		{"", []string{"--user=1", "--cap-add=kill"}, "only user 0 has capabilities"},
		{"allow bpf", nil, "cannot allow system call bpf: it acts on more than the job"},
		{"allow mount", nil, "cannot allow system call mount: it acts on more than the job"},
		{"allow memfd_secret", nil, "cannot allow system call memfd_secret: it acts on more than the job"},
		{"", []string{"--cap-add=lease"}, "a job can have all, or chown"},
		{"deny execve", nil, "cannot deny system call execve"},
		{"deny raed", nil, "unknown system call raed"},
		{"permit read", nil, "line 1: \"permit read\": want"},
		{"", []string{"--security=" + profile}, "says nothing"},
	} {
		if err := os.WriteFile(profile, []byte(test.profile), 0o644); err != nil {
			t.Fatal(err)
		}
		flags := test.flags
		if flags == nil {
			flags = []string{"--security=" + profile}
		}
		if r := w.job(t, append(flags, "true")...); r.status != 125 || !strings.Contains(r.stderr, test.want) {
			t.Errorf("%q %q: %v, want %q", test.profile, flags, r, test.want)
		}
	}
	if r := w.rnx(t.Context(), "job", "list", "-q"); r.stdout != "" {
		t.Errorf("there are jobs: %v", r)
	}
}

// TestLandlock: the second wall stands where the first is open: a user namespace may
// make the device 0:0 (mknod(2)), but nobody under Landlock.
func TestLandlock(t *testing.T) {
	_, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	w := newWorld(t)
	if r := w.try(t, []string{"--security=nested"}, "mknod", "c", "0", "0"); r.status != through {
		t.Errorf("the control: %v", r)
	}
	switch r := w.try(t, nil, "mknod", "c", "0", "0"); {
	case errno != 0:
		t.Skipf("requires a kernel that runs with Landlock: %v", errno)
	case r.status != refused:
		t.Errorf("the kernel has Landlock, and the job is not under it: %v", r)
	}
}

// TestUmask: jobs can read what is theirs to read whatever the umask was with which
// the daemon was started.
func TestUmask(t *testing.T) {
	old := syscall.Umask(0o077)
	w := newWorld(t)
	syscall.Umask(old)
	if r := w.job(t, "--user=1000", "sh", "-c", "head -1 /etc/passwd; cat /etc/hostname >/dev/null && umask"); r.stdout != "root:x:0:0:root:/root:/bin/sh\n0022\n" {
		t.Error(r)
	}
}
