package e2e

import (
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// shmSize prints the size of /dev/shm in bytes.
const shmSize = `import os; s = os.statvfs("/dev/shm"); print(s.f_blocks * s.f_frsize)`

// TestSharedMemory: /dev/shm is as large as the job asks, and otherwise as half of its
// memory; what lies there is the job's memory.
func TestSharedMemory(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.needs(t, "--max-memory=1G")
	// By mmap, where a file system that is full means SIGBUS.
	const fill = `
import mmap, os
size = 100 << 20
fd = os.open("/dev/shm/x", os.O_RDWR | os.O_CREAT)
os.truncate(fd, size)
m = mmap.mmap(fd, size)
for at in range(0, size, mmap.PAGESIZE):
    m[at] = 1
print("filled")
`
	for _, test := range []struct {
		flags  []string
		status int
		stdout string
	}{
		{nil, 0, "filled\n"},
		{[]string{"--max-memory=300M"}, 0, "filled\n"},
		{[]string{"--max-memory=150M", "--shm-size=120M"}, 0, "filled\n"},
		{[]string{"--shm-size=64M"}, 128 + int(unix.SIGBUS), ""},
		{[]string{"--max-memory=64M", "--shm-size=120M"}, 128 + int(unix.SIGKILL), ""}, // out of memory
	} {
		if r := d.job(t, append(test.flags, "--init", "python3", "-c", fill)...); r.status != test.status || r.stdout != test.stdout {
			t.Errorf("%q: %v", test.flags, r)
		}
	}

	// The size is kept with the job: for its status, and for a rerun.
	id := d.detach(t, "--shm-size=33M", "python3", "-c", shmSize)
	d.says(t, 0, `34603008\n`, ``, "job", "log", "-f", id)
	d.says(t, 0, `(?s).*--shm-size=33M.*`, ``, "job", "status", id)
	d.says(t, 0, `(?s).*"shm_bytes": ?34603008.*`, ``, "job", "status", "--json", id)
	again := strings.TrimSpace(d.says(t, 0, `\S+\n`, ``, "job", "rerun", id).stdout)
	d.says(t, 0, `34603008\n`, ``, "job", "log", "-f", again)

	// It follows changes, of its own and of the memory.
	d.must(t, "-d", "--name=grow", "--max-memory=128M", "sleep", "600")
	size := func(want string) {
		t.Helper()
		var r result
		if !eventually(patience, func() bool {
			r = d.rnx(t.Context(), "job", "exec", "grow", "python3", "-c", shmSize)
			return r.stdout == want
		}) {
			t.Errorf("got %v, want %s", r, want)
		}
	}
	size("67108864\n")
	d.says(t, 0, `(?s).*`, ``, "job", "update", "--max-memory=256M", "grow")
	size("134217728\n")
	d.kill(t)
	d.restart(t)
	d.says(t, 0, `(?s).*`, ``, "job", "update", "--shm-size=16M", "grow")
	size("16777216\n")
	d.says(t, 0, `(?s).*`, ``, "job", "update", "--max-memory=128M", "grow")
	size("16777216\n")

	if r := d.job(t, "--shm-size=1B", "true"); r.status != 125 || !strings.Contains(r.stderr, "--shm-size") || !strings.Contains(r.stderr, "must be between") {
		t.Errorf("a size that cannot be: %v", r)
	}
}

// TestNetworkOfUsers: every user of a job can serve on a port below 1024 and send an
// echo request, as in a container; and no job can change that.
func TestNetworkOfUsers(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const serve = `
import socket
for family, address in (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"):
    if family == socket.AF_INET6 and not socket.has_dualstack_ipv6():
        continue
    s = socket.socket(family, socket.SOCK_STREAM)
    s.bind((address, 80))
    s.listen()
    socket.create_connection((address, 80))
print("served")
`
	const ping = `
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
s.settimeout(30)
s.sendto(b"\x08\0\0\0\0\0\0\x01joblet", ("127.0.0.1", 0))
print(s.recv(100)[8:].decode())
`
	const freeze = `echo 1024 >/proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range`
	for _, flags := range [][]string{{"--user=1000"}, {"--user=65535:77"}, {"--cap-drop=all"}, {"--user=1000", "--security=nested"}} {
		if r := d.job(t, append(flags, "python3", "-c", serve)...); r.stdout != "served\n" {
			t.Errorf("%q: a port below 1024: %v", flags, r)
		}
		if r := d.job(t, append(flags, "python3", "-c", ping)...); r.stdout != "joblet\n" {
			t.Errorf("%q: an echo request: %v", flags, r)
		}
	}
	if r := d.job(t, "bash", "-c", freeze); !regexp.MustCompile(`^0\n0\s65535\n$`).MatchString(r.stdout) {
		t.Errorf("the settings: %v", r)
	}
}
