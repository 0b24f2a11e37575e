package hostinfo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// recorded is a host as files, which a test changes between two samples.
type recorded struct{ dir string }

func (h recorded) write(t *testing.T, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(h.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (h recorded) reader(t *testing.T) *Reader {
	t.Helper()
	r, err := newReader(h.dir+"/proc", h.dir+"/sys", h.dir+"/etc", func() ([]link, error) {
		return []link{
			{name: "lo", up: true, loopback: true, addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}},
			{name: "eth0", mac: "02:00:00:00:00:01", up: true, addresses: []netip.Addr{
				netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fe80::1"), netip.MustParseAddr("2001:db8::2"),
			}},
			{name: "eth0.7", mac: "02:00:00:00:00:01", up: true},
			{name: "down0", mac: "02:00:00:00:00:09"},
		}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const (
	meminfo = `MemTotal:       16000000 kB
MemFree:         2000000 kB
MemAvailable:   12000000 kB
Buffers:          500000 kB
Cached:          6000000 kB
SwapTotal:       4000000 kB
SwapFree:        3000000 kB
SReclaimable:     250000 kB
`
	statBefore = `cpu  1000 100 500 8000 200 50 50 100 30 0
cpu0 500 50 250 4000 100 25 25 50 30 0
cpu2 500 50 250 4000 100 25 25 50 0 0
intr 5 0 5
ctxt 100
btime 1700000000
processes 50
procs_running 1
procs_blocked 0
softirq 10 1 1 1 1 1 1 1 1 1 1
`
	// cpu0 was busy for 30 of 40 ticks, of which 5 were stolen; cpu2 idled, its
	// iowait fell, and cpu3 has come online.
	statAfter = `cpu  1020 100 505 8045 195 50 50 105 30 0
cpu0 520 50 255 4010 100 25 25 55 30 0
cpu2 500 50 250 4035 95 25 25 50 0 0
cpu3 1 0 0 5 0 0 0 0 0 0
btime 1700000000
`
	netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 9999 9 0 0 0 0 0 0 9999 9 0 0 0 0 0 0
  eth0: %d 20 1 2 0 0 0 0 4000 40 3 4 0 0 0 0
eth0.7: 5 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0
`
	diskstats = `   7       0 loop0 50 0 400 10 0 0 0 0 0 10 10
 259       0 nvme0n1 %d 3 %d 70 200 4 8000 90 0 %d 160 0 0 0 0 0 0
 259       1 nvme0n1p1 90 3 1900 70 200 4 8000 90 0 120 160 0 0 0 0 0 0
 104       0 cciss/c0d0 1 0 8 1 2 0 16 2 0 3 4 0 0 0 0 0 0
`
)

func (h recorded) baseline(t *testing.T) {
	h.write(t, map[string]string{
		"proc/stat": statBefore, "proc/meminfo": meminfo, "proc/loadavg": "0.50 0.25 0.10 1/200 4242\n",
		"proc/net/dev": fmt.Sprintf(netDev, 1000), "proc/diskstats": fmt.Sprintf(diskstats, 100, 2000, 500),
		"proc/self/mountinfo":           "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n",
		"sys/block/nvme0n1/device/x":    "",
		"sys/block/cciss!c0d0/device/x": "",
		"sys/block/loop0/x":             "",
		"etc/machine-id":                "0123456789abcdef0123456789abcdef\n",
		"proc/cpuinfo":                  "processor\t: 0\nflags\t\t: fpu vme\n",
		"proc/1/stat":                   stat(1, "init", 'S', 0, 1000, 500, 1, 100, 2560),
		"proc/1/cmdline":                "/sbin/init\x00--flag\x00",
		"proc/2/stat":                   stat(2, "kthreadd", 'I', 0, 0, 0, 1, 100, 0),
		"proc/2/cmdline":                "",
		"proc/300/stat":                 stat(300, "a) R 1 (b", 'R', 1, 100, 0, 4, 200, 25600),
		"proc/300/cmdline":              "a\xff\x00b c\x00" + strings.Repeat("x", 2000),
		"proc/301/stat":                 stat(301, "gone", 'Z', 300, 0, 0, 1, 300, 0),
		"proc/302/stat":                 stat(302, "held", 'T', 300, 0, 0, 2, 300, 10),
		"proc/notes/stat":               "x",
		"proc/400/stat":                 "broken",
	})
}

func stat(pid int, name string, state byte, ppid, user, system, threads, start, pages int) string {
	return fmt.Sprintf("%d (%s) %c %d 1 1 0 -1 4194560 10 20 0 0 %d %d 3 4 20 0 %d 0 %d 1000000 %d 18446744073709551615 1 1\n",
		pid, name, state, ppid, user, system, threads, start, pages)
}

func near(got, want float64) bool { return math.Abs(got-want) <= 1e-6+math.Abs(want)*0.02 }

// TestRecorded samples recorded counters twice, as if so much time lay between
// that what passes meanwhile does not count.
func TestRecorded(t *testing.T) {
	t.Parallel()
	h := recorded{t.TempDir()}
	h.baseline(t)
	r := h.reader(t)
	s := r.Sampler(AllParts, 0)
	first, err := s.Sample(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c := first.CPU; c.Cores != 2 || c.Usage != 0 || c.User != 11 || c.System != 6 || c.Idle != 80 || c.IOWait != 2 || c.Steal != 1 ||
		c.Load != [3]float64{0.5, 0.25, 0.1} {
		t.Errorf("CPU: %+v", c)
	}
	if want := (Memory{
		Total: 16000000 << 10, Used: 4000000 << 10, Free: 2000000 << 10, Available: 12000000 << 10, Usage: 25,
		Cached: 6250000 << 10, Buffered: 500000 << 10, SwapTotal: 4000000 << 10, SwapUsed: 1000000 << 10, SwapFree: 3000000 << 10,
	}); *first.Memory != want {
		t.Errorf("memory: %+v", *first.Memory)
	}
	if m := first.Machine; m.NodeID == "" || !slices.Equal(m.Addresses, []string{"10.0.0.2", "2001:db8::2"}) ||
		!slices.Equal(m.MACs, []string{"02:00:00:00:00:01"}) || m.Uptime <= 0 || m.Kernel == "" || m.Hostname == "" {
		t.Errorf("machine: %+v", m)
	}
	if first.Cloud != nil {
		t.Errorf("cloud: %+v", first.Cloud)
	}
	p := first.Processes
	if p.Total != 5 || p.Running != 1 || p.Sleeping != 2 || p.Stopped != 1 || p.Zombies != 1 || p.Threads != 9 {
		t.Errorf("processes: %+v", p)
	}
	read := r.cpu.last.at
	if again, err := s.Sample(t.Context()); err != nil || time.Since(read) < fresh && (again.CPU != first.CPU || again.Processes != first.Processes) {
		t.Errorf("a sample right after one: %v", err)
	}

	h.write(t, map[string]string{
		"proc/stat": statAfter, "proc/net/dev": fmt.Sprintf(netDev, 5000), "proc/diskstats": fmt.Sprintf(diskstats, 110, 6000, 1500),
		"proc/1/stat":   stat(1, "init", 'S', 0, 1000, 500, 1, 100, 2560),
		"proc/300/stat": stat(300, "a) R 1 (b", 'R', 1, 200, 100, 4, 200, 25600),
		"proc/302/stat": stat(302, "new", 'S', 300, 40, 0, 1, 9000, 10), // another process of that number
	})
	const ago = 200 * time.Second
	backdate(&r.cpu, ago)
	backdate(&r.memory, ago)
	backdate(&r.networks, ago)
	backdate(&r.io, ago)
	backdate(&r.processes, ago)
	second, err := s.Sample(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c := second.CPU; c.Cores != 3 || !near(c.Usage, 100*30.0/75) || len(c.PerCore) != 3 || !near(c.PerCore[0], 75) || c.PerCore[1] != 0 || c.PerCore[2] != 0 {
		t.Errorf("CPU: %+v", c)
	}
	if len(second.Networks) != 2 {
		t.Fatalf("networks: %+v", second.Networks)
	}
	eth := second.Networks[0]
	if !near(eth.RateIn, 20) || eth.RateOut != 0 {
		t.Errorf("rates %v, %v", eth.RateIn, eth.RateOut)
	}
	eth.RateIn = 0
	if want := (Network{
		Name: "eth0", MAC: "02:00:00:00:00:01", Addresses: []string{"10.0.0.2", "fe80::1", "2001:db8::2"},
		BytesIn: 5000, BytesOut: 4000, PacketsIn: 20, PacketsOut: 40, ErrorsIn: 1, ErrorsOut: 3, DropsIn: 2, DropsOut: 4,
	}); !reflect.DeepEqual(eth, want) {
		t.Errorf("network: %+v", eth)
	}
	d := second.IO
	if len(d.Disks) != 2 || d.Disks[0].Device != "cciss/c0d0" || d.Disks[1].Device != "nvme0n1" {
		t.Fatalf("disks: %+v", d.Disks)
	}
	if d.Reads != 111 || d.Writes != 202 || d.ReadBytes != 512*6008 || d.WriteBytes != 512*8016 || !near(d.ReadRate, 512*20) || d.WriteRate != 0 {
		t.Errorf("I/O: %+v", d)
	}
	if n := d.Disks[1]; n.ReadTime != 70 || n.WriteTime != 90 || n.Time != 1500 || !near(n.Utilization, 0.5) {
		t.Errorf("disk: %+v", n)
	}
	p = second.Processes
	if p.ByCPU[0].PID != 300 || !near(p.ByCPU[0].CPU, 100*2.0/(200*3)) || p.ByCPU[1].PID != 302 || !near(p.ByCPU[1].CPU, 100*0.4/(200*3)) || p.ByCPU[2].CPU != 0 {
		t.Errorf("by CPU: %+v", p.ByCPU)
	}
	a := p.ByMemory[0]
	if a.PID != 300 || a.PPID != 1 || a.Name != "a) R 1 (b" || a.State != "R" || a.Resident != 25600*int64(os.Getpagesize()) ||
		!near(a.Memory, 100*float64(a.Resident)/(16000000<<10)) || !strings.HasPrefix(a.Command, "a\uFFFD b c xxx") || len(a.Command) > maxCommand+2 {
		t.Errorf("by memory: %+v", a)
	}
	if got := first.Machine.Boot.Add(2 * time.Second).Sub(a.Started); got.Abs() > time.Second {
		t.Errorf("started %v", a.Started)
	}
	for _, q := range p.ByCPU {
		if want := map[int]string{1: "/sbin/init --flag", 2: "[kthreadd]", 301: "[gone]"}[q.PID]; want != "" && q.Command != want {
			t.Errorf("command of %d: %q", q.PID, q.Command)
		}
	}
}

// backdate makes the latest reading older.
func backdate[T any](p *part[T], by time.Duration) {
	p.last.at = p.last.at.Add(-by)
}

// TestMissing: a part that the kernel does not have is absent; one that cannot
// be read is an error.
func TestMissing(t *testing.T) {
	t.Parallel()
	h := recorded{t.TempDir()}
	h.baseline(t)
	for _, name := range []string{"diskstats", "net/dev", "self/mountinfo"} {
		if err := os.Remove(filepath.Join(h.dir, "proc", name)); err != nil {
			t.Fatal(err)
		}
	}
	r := h.reader(t)
	m, err := r.Sampler(AllParts, 0).Sample(t.Context())
	if err != nil || m.IO != nil || m.Networks != nil || m.Disks != nil || m.CPU == nil || m.Machine == nil {
		t.Errorf("got %+v, %v", m, err)
	}
	h.write(t, map[string]string{"proc/meminfo": "MemTotal: many kB\n"})
	r = h.reader(t)
	if m, err := r.Sampler(PartMemory, 0).Sample(t.Context()); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %+v, %v", m.Memory, err)
	}
	if m, err := r.Sampler(PartCPU, 0).Sample(t.Context()); err != nil || m.CPU == nil || m.Memory != nil || m.Machine != nil || m.Processes != nil {
		t.Errorf("CPU alone: got %+v, %v", m, err)
	}
	if _, err := newReader(h.dir+"/nothing", h.dir+"/sys", h.dir+"/etc", nil); err == nil {
		t.Error("a host without /proc")
	}
}

func TestReadings(t *testing.T) {
	t.Parallel()
	var p part[int]
	n := 0
	read := func() (int, error) { n++; return n, nil }
	get := func(age, took time.Duration) int {
		if p.last != nil {
			p.last.at, p.last.took = time.Now().Add(-age), took
		}
		r, err := p.get(read)
		if err != nil {
			t.Fatal(err)
		}
		return r.value
	}
	for _, tt := range []struct {
		age, took time.Duration
		want      int
	}{
		{0, 0, 1}, {0, 0, 1}, {fresh / 2, 0, 1}, {window, 0, 2}, {window, time.Second, 2}, {9 * time.Second, time.Second, 2}, {11 * time.Second, time.Second, 3},
	} {
		if got := get(tt.age, tt.took); got != tt.want {
			t.Errorf("%v old, took %v: reading %d, want %d", tt.age, tt.took, got, tt.want)
		}
	}
	waits := func() (int, error) { time.Sleep(fresh); return 0, nil } // for other processes that use the processors
	if r, err := new(part[int]).get(waits); err != nil || r.took > fresh/2 {
		t.Errorf("a reading that had to wait: %+v, %v", r, err)
	}
}

func TestLocalMounts(t *testing.T) {
	t.Parallel()
	const root = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
	for name, tt := range map[string]struct{ mounts, want string }{
		"usual": {
			"20 1 0:20 / /proc rw - proc proc rw\n" + root + "21 1 0:21 / /tmp rw - tmpfs tmpfs rw\n22 1 8:2 / /home rw shared:5 - xfs /dev/sda2 rw\n",
			"/ /home",
		},
		"bind mounts":      {root + "2 1 8:1 /var/x /srv rw - ext4 /dev/sda1 rw\n3 1 8:2 /d /b rw - ext4 /dev/sda2 rw\n4 1 8:2 / /long/path rw - ext4 /dev/sda2 rw\n", "/ /long/path"},
		"only bind mounts": {root + "3 1 8:2 /hosts /etc/hosts rw - ext4 /dev/sda2 rw\n4 1 8:2 /d /d rw - ext4 /dev/sda2 rw\n", "/ /d"},
		"servers":          {root + "2 1 0:30 / /net rw - nfs4 srv:/x rw\n3 1 0:31 / /f rw - fuse.sshfs x rw\n4 1 0:32 / /v rw - 9p x rw\n", "/"},
		"below a server":   {root + "2 1 0:30 / /net rw - nfs4 srv:/x rw\n3 2 8:2 / /net/disk rw - ext4 /dev/sdb rw\n", "/"},
		"over a server":    {root + "2 1 0:30 / /net rw - nfs4 srv:/x rw\n3 2 8:2 / /net rw - ext4 /dev/sdb rw\n", "/"},
		"under a server":   {root + "2 1 8:2 / /data rw - ext4 /dev/sdb rw\n3 2 0:30 / /data rw - nfs4 srv:/x rw\n", "/"},
		"hidden":           {root + "2 1 8:2 / /a/b rw - ext4 /dev/sdb rw\n3 1 8:3 / /a rw - ext4 /dev/sdc rw\n", "/ /a"},
		"in memory":        {root + "2 1 0:9 / /run rw - tmpfs t rw\n3 2 8:2 / /run/media/x rw - vfat /dev/sdb rw\n", "/ /run/media/x"},
		"stacked":          {root + "2 1 8:2 / /data rw - ext4 /dev/sdb rw\n3 2 8:3 / /data rw - ext4 /dev/sdc rw\n", "/ /data"},
		"blank":            {root + "2 1 8:2 / /my\\040disk\\134 rw - ext4 /dev/sdb rw\n", "/ /my disk\\"},
		"container":        {"5 4 0:40 / / rw - overlay overlay rw\n6 5 0:41 / /x rw - overlay overlay rw\n", "/"},
		"no root":          {"5 4 8:2 / /x rw - ext4 /dev/sdb rw\n", ""},
		"circle":           {root + "2 3 8:2 / /a rw - ext4 /dev/sdb rw\n3 2 8:3 / /a rw - ext4 /dev/sdc rw\n", "/"},
		"its own parent":   {"1 1 8:1 / / rw - ext4 /dev/sda1 rw\n2 2 8:2 / /a rw - ext4 /dev/sdb rw\n", "/"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := recorded{t.TempDir()}
			h.write(t, map[string]string{"self/mountinfo": tt.mounts})
			p, err := procfs.NewFS(h.dir)
			if err != nil {
				t.Fatal(err)
			}
			mounts, err := p.GetMounts()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range localMounts(mounts) {
				got = append(got, m.MountPoint)
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("got %q, want %q", s, tt.want)
			}
		})
	}
}

func TestCloud(t *testing.T) {
	t.Parallel()
	const dmi = "sys/class/dmi/id/"
	for name, tt := range map[string]struct {
		files map[string]string
		want  *Cloud
	}{
		"hardware": {map[string]string{dmi + "sys_vendor": "Dell Inc.\n", dmi + "product_name": "PowerEdge\n"}, nil},
		"nothing":  {nil, nil},
		"aws": {
			map[string]string{dmi + "sys_vendor": "Amazon EC2\n", dmi + "product_name": "m5.large\n", dmi + "board_asset_tag": "i-0abc\n"},
			&Cloud{Provider: "AWS", InstanceID: "i-0abc", InstanceType: "m5.large", Hypervisor: "kvm", Metadata: map[string]string{"vendor": "Amazon EC2", "product": "m5.large"}},
		},
		"aws on xen": {
			map[string]string{dmi + "sys_vendor": "Xen\n", dmi + "product_name": "HVM domU\n", dmi + "bios_version": "4.11.amazon\n", "sys/hypervisor/type": "xen\n"},
			&Cloud{Provider: "AWS", Hypervisor: "xen", Metadata: map[string]string{"vendor": "Xen", "product": "HVM domU"}},
		},
		"azure": {
			map[string]string{dmi + "sys_vendor": "Microsoft Corporation\n", dmi + "product_name": "Virtual Machine\n", dmi + "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77\n"},
			&Cloud{Provider: "Azure", Hypervisor: "hyperv", Metadata: map[string]string{"vendor": "Microsoft Corporation", "product": "Virtual Machine"}},
		},
		"gcp": {
			map[string]string{dmi + "sys_vendor": "Google\n", dmi + "product_name": "Google Compute Engine\n"},
			&Cloud{Provider: "GCP", Hypervisor: "kvm", Metadata: map[string]string{"vendor": "Google", "product": "Google Compute Engine"}},
		},
		"own kvm": {
			map[string]string{dmi + "sys_vendor": "QEMU\n", "proc/cpuinfo": "flags : hypervisor\n", "sys/devices/system/clocksource/clocksource0/available_clocksource": "kvm-clock tsc \n"},
			&Cloud{Hypervisor: "qemu", Metadata: map[string]string{"vendor": "QEMU"}},
		},
		"no tables":     {map[string]string{"sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc kvm-clock \n"}, &Cloud{Hypervisor: "kvm", Metadata: map[string]string{}}},
		"only the flag": {map[string]string{"proc/cpuinfo": "processor : 0\nflags\t: fpu hypervisor lahf_lm\n"}, &Cloud{Hypervisor: "unknown", Metadata: map[string]string{}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := recorded{t.TempDir()}
			h.baseline(t)
			h.write(t, tt.files)
			if got := h.reader(t).readCloud(); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestNodeID(t *testing.T) {
	t.Parallel()
	a, b := nodeID("0123456789abcdef0123456789abcdef\n"), nodeID("0123456789abcdef0123456789abcdee")
	if len(a) != 36 || a[14] != '4' || a == b || strings.Contains(a, "0123") {
		t.Errorf("got %s, %s", a, b)
	}
	for _, bad := range []string{"", "uninitialized\n", "0123", strings.Repeat("x", 32)} {
		if got := nodeID(bad); got != "" {
			t.Errorf("%q: got %s", bad, got)
		}
	}
}

// TestHangingProcess: a process whose arguments cannot be read holds up neither
// its sample for long nor the next one at all.
func TestHangingProcess(t *testing.T) {
	t.Parallel()
	h := recorded{t.TempDir()}
	h.write(t, map[string]string{"1/cmdline": "one\x00"})
	pipe := filepath.Join(h.dir, "2/cmdline")
	if err := os.MkdirAll(filepath.Dir(pipe), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(pipe, 0o600); err != nil { // opening it waits for a writer
		t.Fatal(err)
	}
	c := commands{proc: h.dir}
	fill := func() (took time.Duration, list []Process) {
		list = []Process{{PID: 1, Name: "a"}, {PID: 2, Name: "b"}}
		start := time.Now()
		c.fill(list)
		return time.Since(start), list
	}
	if took, list := fill(); took < 2*commandTime || took > 20*time.Second || list[0].Command != "one" || list[1].Command != "[b]" || len(c.late) != 1 {
		t.Errorf("took %v: %+v", took, list)
	}
	if _, list := fill(); list[0].Command != "one" || list[1].Command != "[b]" || len(c.late) != 1 {
		t.Errorf("again: %+v, %d late", list, len(c.late))
	}
	f, err := os.OpenFile(pipe, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	<-c.late[2].done
	if err := os.Remove(pipe); err != nil {
		t.Fatal(err)
	}
	h.write(t, map[string]string{"2/cmdline": "two\x00"})
	if _, list := fill(); list[1].Command != "two" || len(c.late) != 0 {
		t.Errorf("after it: %+v, %d late", list, len(c.late))
	}
}

// TestHere samples this machine while a process does nothing but compute.
func TestHere(t *testing.T) {
	r, err := NewReader()
	if err != nil {
		t.Fatal(err)
	}
	loop := exec.Command("sh", "-c", "while :; do :; done")
	if err := loop.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = loop.Process.Kill()
		_ = loop.Wait() // killed
	}()
	s := r.Sampler(AllParts, 0)
	begin := time.Now()
	var wg sync.WaitGroup
	for range 2 { // two callers at once
		wg.Go(func() {
			for { // a machine that was just paused has nothing to tell
				m, err := s.Sample(t.Context())
				if err == nil && m.CPU.Usage > 0 {
					return
				}
				if err != nil || time.Since(begin) > 30*time.Second {
					t.Errorf("first sample: %+v, %v", m.CPU, err)
					return
				}
				time.Sleep(fresh)
			}
		})
	}
	wg.Wait()
	// Others use this machine as well: what counts is what the loop got of it.
	const got = window
	used := func() time.Duration {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", loop.Process.Pid))
		p, ok := parseStat(line)
		if err != nil || !ok {
			t.Fatalf("%q, %v", line, err)
		}
		return time.Duration(p.ticks) * (time.Second / tick)
	}
	var m Sample
	i := -1 // of the loop; its arguments may not be read in time
	for deadline := time.Now().Add(30 * time.Second); ; {
		for before := used(); used() < before+got; {
			time.Sleep(fresh)
		}
		time.Sleep(fresh) // for a new reading
		if m, err = s.Sample(t.Context()); err != nil {
			t.Fatal(err)
		}
		i = slices.IndexFunc(m.Processes.ByCPU, func(q Process) bool { return q.PID == loop.Process.Pid && q.Command != "[sh]" })
		if i >= 0 && m.CPU.Usage > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the loop is not among %+v, CPU %+v", m.Processes.ByCPU, m.CPU)
		}
	}
	c := m.CPU
	if c.Cores != runtime.NumCPU() || len(c.PerCore) != c.Cores || c.Usage <= 0 || c.Usage > 100 || c.User <= 0 || c.Idle <= 0 {
		t.Errorf("CPU: %+v", c)
	}
	if y := m.Memory; y.Used <= 0 || y.Used > y.Total || y.Free > y.Total || y.Available > y.Total || y.SwapUsed > y.SwapTotal {
		t.Errorf("memory: %+v", y)
	}
	devices := map[string]bool{}
	for _, d := range m.Disks {
		if d.Total <= 0 || d.Used+d.Free > d.Total || d.Usage > 100 || d.InodesUsed > d.Inodes || devices[d.Device] {
			t.Errorf("disk: %+v", d)
		}
		devices[d.Device] = true
	}
	if len(m.Disks) == 0 || m.Disks[0].MountPoint != "/" {
		t.Errorf("disks: %+v", m.Disks)
	}
	for _, n := range m.Networks {
		if n.Name == "lo" || n.RateIn < 0 {
			t.Errorf("network: %+v", n)
		}
	}
	p := m.Processes
	self := os.Getpid()
	least := 100 * got.Seconds() / (time.Since(begin).Seconds() * float64(c.Cores))
	if q := p.ByCPU[i]; q.PPID != self || q.Name != "sh" || q.Command != "sh -c while :; do :; done" || q.CPU < least || c.Usage < least/2 || time.Since(q.Started).Abs() > time.Minute {
		t.Errorf("the loop: %+v", q)
	}
	if p.Total < 3 || p.Running < 1 || p.Threads < p.Total-p.Zombies || p.Running+p.Sleeping+p.Stopped+p.Zombies > p.Total {
		t.Errorf("processes: %+v", p)
	}
	if len(p.ByMemory) == 0 || !slices.IsSortedFunc(p.ByMemory, func(a, b Process) int { return int(b.Resident - a.Resident) }) {
		t.Errorf("by memory: %+v", p.ByMemory)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Sampler(PartCPU, 0).Sample(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add(stat(300, "a) R 1 (b", 'R', 1, 100, 50, 4, 200, 25600))
	f.Add(stat(2, "kworker/0:1-ev\xff", 'I', 0, 0, 0, 1, 9, 0))
	f.Add("1 (x) R")
	f.Add("1 () 99999999999999999999")
	f.Add("1 ()\x00 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0")
	f.Fuzz(func(t *testing.T, line string) {
		p, ok := parseStat([]byte(line))
		if ok && (p.pid <= 0 || p.ppid < 0 || p.threads < 0 || p.pages < 0 || !utf8.ValidString(p.name) || p.state == 0) {
			t.Fatalf("%q gives %+v", line, p)
		}
	})
}

func FuzzUnescape(f *testing.F) {
	f.Add(`/my\040disk\134`)
	f.Add(`\`)
	f.Add(`\777\0`)
	escape := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)
	f.Fuzz(func(t *testing.T, s string) {
		if got := unescape(s); len(got) > len(s) {
			t.Fatalf("%q gives %q", s, got)
		}
		if got := unescape(escape.Replace(s)); got != s {
			t.Fatalf("%q comes back as %q", s, got)
		}
	})
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	all, err := links()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(l link) bool { return l.loopback })
	if i < 0 || !slices.Contains(all[i].addresses, netip.MustParseAddr("127.0.0.1")) || all[i].mac != "" {
		t.Errorf("got %+v", all)
	}
}

func FuzzAddresses(f *testing.F) {
	f.Add([]byte{})
	// One message for 127.0.0.1 on interface 1, little-endian.
	f.Add([]byte{32, 0, 0, 0, 20, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 8, 128, 254, 1, 0, 0, 0, 8, 0, 2, 0, 127, 0, 0, 1})
	f.Add([]byte("\x1f\x00\x00\x00\x14\x00000000000000000000\a\x00000000")) // not padded
	f.Fuzz(func(t *testing.T, table []byte) {
		got, err := parseAddresses(table)
		if err != nil {
			return
		}
		for index, all := range got {
			for _, a := range all {
				if !a.IsValid() {
					t.Fatalf("interface %d: %v", index, all)
				}
			}
		}
	})
}

// BenchmarkSample measures a full sample of this machine; readings are not kept.
func BenchmarkSample(b *testing.B) {
	r, err := NewReader()
	if err != nil {
		b.Fatal(err)
	}
	s := r.Sampler(AllParts, 0)
	m, err := s.Sample(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	for range max(0, 200-m.Processes.Total) {
		idle := exec.Command("sleep", "1000")
		if err := idle.Start(); err != nil {
			b.Fatal(err)
		}
		defer func() {
			_ = idle.Process.Kill()
			_ = idle.Wait() // killed
		}()
	}
	processor := func() float64 {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e6
	}
	b.ReportAllocs()
	before := processor()
	for b.Loop() {
		r.cpu.last, r.memory.last, r.disks.last, r.networks.last, r.io.last, r.processes.last = nil, nil, nil, nil, nil, nil
		if m, err = s.Sample(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((processor()-before)/float64(b.N), "cpu-ms/op")
	b.ReportMetric(float64(m.Processes.Total), "processes")
}
