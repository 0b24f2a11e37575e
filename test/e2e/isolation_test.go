package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/joblet/joblet"
)

// TestSeparation has jobs look for the host and for each other.
func TestSeparation(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, script, want string // want: regular expression over stdout
	}{
		{"only its own processes", `ls /proc | grep -c '^[0-9]'`, `^[1-5]\n$`},
		{"no file of the host", `cat ` + secret + ` /etc/shadow /root/.profile /root/.bashrc 2>/dev/null; ls -A /home /root /run /var/log /mnt /boot 2>/dev/null | grep -v -e : -e '^$'`, `^joblet\nlock\n$`},
		{"network: lo and nothing else", `grep -c : /proc/net/dev; grep -c 'lo:' /proc/net/dev; ping -c1 -W1 127.0.0.1 >/dev/null 2>&1; (echo x > /dev/tcp/10.0.0.1/80) 2>/dev/null || echo unreachable`, `^1\n1\nunreachable\n$`},
		{"loopback works", `python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); c = socket.create_connection(s.getsockname()); print("ok")'`, `^ok\n$`},
		{"own name resolves", `python3 -c 'import socket; print(socket.gethostbyname(socket.gethostname()))'`, `^127\.0\.`},
		{"programs are read-only", `touch /usr/x /etc/passwd /usr/bin/env /dev/x /proc/sys/kernel/hostname 2>&1 | grep -c -e 'Read-only' -e denied -e permitted`, `^[345]\n$`},
		{"private places are writable", `for d in / /tmp /work /run /home /root /var/tmp /dev/shm; do touch $d/x || echo $d; done`, `^$`},
		{"devices: the harmless ones", `cd /dev; ls`, `^fd\nfull\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n$`},
		{"devices work", `head -c 4 /dev/zero | od -An -tx1; head -c 4 /dev/urandom | wc -c; echo x > /dev/null; echo x 2>/dev/null > /dev/full || echo full`, `^ 00 00 00 00\n4\nfull\n$`},
		{"no new devices", `mknod /tmp/sda b 8 0 2>/dev/null || echo refused`, `^refused\n$`},
		{"no mounts", `mount -t tmpfs x /tmp 2>/dev/null || echo refused; unshare -U true 2>/dev/null || echo refused`, `^refused\nrefused\n$`},
		{"descriptors: 0, 1 and 2", `ls /proc/self/fd | tr '\n' ' '`, `^0 1 2 3 $`}, // 3 is ls's own
		{"no new privileges", `grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status`, `^NoNewPrivs:\t1\nSeccomp:\t2\n$`},
		{"capabilities", `grep -E '^Cap(Inh|Prm|Bnd|Amb)' /proc/self/status`, `^CapInh:\t0000000000000000\nCapPrm:\t00000000000405fb\nCapBnd:\t00000000000405fb\nCapAmb:\t0000000000000000\n$`},
		{"signals are at their defaults", `cat /proc/self/status`, `\nSigBlk:\t0{16}\nSigIgn:\t0{16}\nSigCgt:\t0{16}\n`},
		{"a session of its own, no terminal", `ps -o sid=,tty= -p 1 | tr -s ' '`, `^ 1 \?\n$`},
		{"the view of cgroups ends at its own", `cut -d: -f3 /proc/self/cgroup | sort -u | grep -v '^/$'; true`, `^$`},
		{"ids", `id -u; id -g; cut -c1-10 /proc/self/uid_map; awk '{print $1, $3, ($2 >= 1879048192)}' /proc/self/uid_map`, `^0\n0\n.*\n0 65536 1\n$`},
		{"places in /proc are masked", `for f in kcore keys kallsyms timer_list; do [ ! -s /proc/$f ] || echo $f; done; (echo h > /proc/sysrq-trigger) 2>/dev/null; true`, `^$`},
		{"the host's root cannot be reached", `ls /proc/1/root/ | grep -c -e '^boot$' -e '^mnt$'; cat /proc/1/mountinfo | grep -c ` + "' / / '", `^0\n`},
		{"no cores", `ulimit -c`, `^0\n$`},
		{"descriptors: the usual limit", `ulimit -Sn`, `^1024\n$`},
		{"umask", `umask`, `^0022\n$`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := d.job(t, "bash", "-c", test.script)
			if !regexp.MustCompile(test.want).MatchString(r.stdout) {
				t.Errorf("%v\nwant %s", r, test.want)
			}
		})
	}
}

// TestOwnIDs: two jobs at once have different ids on the host.
func TestOwnIDs(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	seen := map[string]bool{}
	for range 3 {
		id := strings.TrimSpace(d.must(t, "-d", "sleep", "30"))
		r := d.rnx(t.Context(), "job", "status", "--json", id)
		m := regexp.MustCompile(`"(?:host_pid|hostPid|pid)": *(\d+)`).FindStringSubmatch(r.stdout)
		if m == nil {
			t.Fatalf("no pid in %v", r)
		}
		status, err := os.ReadFile("/proc/" + m[1] + "/status")
		if err != nil {
			t.Fatal(err)
		}
		uid := regexp.MustCompile(`(?m)^Uid:\t(\d+)`).FindStringSubmatch(string(status))[1]
		if uid == "0" || seen[uid] {
			t.Errorf("uid %s on the host", uid)
		}
		seen[uid] = true
	}
}

// TestLimitsHold: the private file systems are bounded, and so is the number of
// processes, at the default or as it is asked for.
func TestLimitsHold(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	out := d.must(t, "--shm-size=64M", "bash", "-c", `
		head -c 70000000 /dev/zero > /dev/shm/x 2>/dev/null || echo shm full; rm /dev/shm/x
		df -B1 --output=size / | tail -1 | tr -d ' '
		cat $(find /sys/fs/cgroup/ -name pids.max)`)
	if out != fmt.Sprintf("shm full\n1073741824\n%d\n", joblet.DefaultMaxPIDs) {
		t.Errorf("got %q", out)
	}
	r := d.job(t, "--max-pids=400", "python3", "-c", `
import os, time
n = 0
try:
    while n < 500:
        if os.fork() == 0:
            time.sleep(30); os._exit(0)
        n += 1
except OSError as e:
    print(n, e.errno)
`)
	if !regexp.MustCompile(`^39\d 11\n$`).MatchString(r.stdout) {
		t.Errorf("a job can have this many processes: %v", r)
	}
}

// TestDaemonPrivileges: the daemon, and the shims that it starts, hold what the
// unit allows and nothing more.
func TestDaemonPrivileges(t *testing.T) {
	t.Parallel()
	unit, err := os.ReadFile("../../deploy/joblet.service")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.+)$`).FindStringSubmatch(string(unit))
	if line == nil {
		t.Fatal("the unit has no bounding set")
	}
	var allowed uint64
	for _, name := range strings.Fields(line[1]) {
		c, err := cap.FromName(strings.ToLower(name))
		if err != nil {
			t.Fatal(err)
		}
		allowed |= 1 << c
	}
	var own uint64 // a container may have less
	for c := cap.Value(0); c < cap.MaxBits(); c++ {
		if has, err := cap.GetBound(c); err == nil && has {
			own |= 1 << c
		}
	}
	want := map[string]uint64{"CapInh": 0, "CapPrm": allowed & own, "CapEff": allowed & own, "CapBnd": allowed & own, "CapAmb": 0, "NoNewPrivs": 1}
	d := newDaemon(t)
	id := d.detach(t, "sleep", "60")
	d.becomes(t, id, joblet.Running)
	for who, pid := range map[string]int{"daemon": d.cmd.Process.Pid, "shim": d.shimOf(t, id)} {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("%s: no threads (%v)", who, err)
		}
		for _, thread := range threads {
			status, err := os.ReadFile(thread)
			if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) { // it has ended meanwhile
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			fields := regexp.MustCompile(`(?m)^(Cap\w+|NoNewPrivs):\s+(\w+)$`).FindAllStringSubmatch(string(status), -1)
			if len(fields) != len(want) {
				t.Fatalf("%s: %s has %q", who, thread, fields)
			}
			for _, f := range fields {
				if set, err := strconv.ParseUint(f[2], 16, 64); err != nil || set != want[f[1]] {
					t.Errorf("%s: %s, want %x", who, f[0], want[f[1]])
				}
			}
		}
	}
}
