package e2e

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestOwnCgroup: a job sees its own limits where programs look for them, as they are,
// and nothing else of the host's cgroups.
func TestOwnCgroup(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.needs(t, "--max-memory=1G")
	d.needs(t, "--max-cpu=50")
	const look = `cd /sys/fs/cgroup; cat $(find . -name memory.max -o -name memory.limit_in_bytes) $(find . -name cpu.max -o -name cpu.cfs_quota_us) $(find . -name pids.max)`
	limits := []string{"--max-memory=300M", "--max-cpu=50", "--max-pids=77"}
	shown := regexp.MustCompile(`^314572800\n50000( 100000)?\n77\n$`)
	for _, flags := range [][]string{nil, {"--user=1000"}, {"--security=strict"}, {"--security=nested"}} {
		if r := d.job(t, append(append(flags, limits...), "sh", "-c", look)...); !shown.MatchString(r.stdout) {
			t.Errorf("%q: %v", flags, r)
		}
	}

	d.must(t, append(append([]string{"-d", "--name=box"}, limits...), "sleep", "600")...)
	inBox := func(args ...string) result {
		return d.rnx(patient(t), append([]string{"job", "exec", "box"}, args...)...)
	}
	if r := inBox("sh", "-c", look); !shown.MatchString(r.stdout) {
		t.Errorf("a further process: %v", r)
	}
	d.says(t, 0, `(?s).*`, ``, "job", "update", "--max-memory=400M", "--max-cpu=25", "--max-pids=88", "box")
	if r := inBox("sh", "-c", look); !regexp.MustCompile(`^419430400\n25000( 100000)?\n88\n$`).MatchString(r.stdout) {
		t.Errorf("after a change: %v", r)
	}
	d.kill(t)
	d.restart(t)
	if r := inBox("cut", "-d:", "-f3", "/proc/self/cgroup"); r.status != 0 || strings.Trim(r.stdout, "/\n") != "" {
		t.Errorf("the cgroups of a further process after a restart: %v", r)
	}

	// Each mount begins at the job's own cgroup and is read-only, as is what they lie in.
	r := d.job(t, "sh", "-c", `awk '$5 == "/sys" || $5 ~ "^/sys/fs/cgroup" {print $4, $6}' /proc/self/mountinfo; cat $(find /sys/fs/cgroup/ -name cgroup.procs) | sort -u | tr '\n' ' '`)
	if !regexp.MustCompile(`^(/ ro,nosuid,nodev,noexec(,\w+)?\n){2,}1 [1-9 ]+$`).MatchString(r.stdout) {
		t.Errorf("the mounts, and the processes in its cgroups: %v", r)
	}
}

// TestLimitsSeenByPrograms: language runtimes set themselves up for the limits of the
// job.
func TestLimitsSeenByPrograms(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.needs(t, "--max-memory=1G")
	d.needs(t, "--max-cpu=50")
	for _, test := range []struct {
		name, script string
		most         int64
	}{
		{"nproc", `nproc`, 1}, // by its affinity
		{"python3", `python3 -c 'import os; print(len(os.sched_getaffinity(0)))'`, 1},
		{"java, heap", `java -XX:+PrintFlagsFinal -version 2>/dev/null | awk '$2 == "MaxHeapSize" {print $4}'`, 200 << 20},
		{"java, memory", `java -XshowSettings:system -version 2>&1 | awk '/Memory Limit:/ {print $3 + 0}'`, 300},
		{"java, processors", `java -XshowSettings:system -version 2>&1 | awk '/Effective CPU Count:/ {print $4}'`, 1},
		{"node, memory", `node -p 'process.constrainedMemory()'`, 300 << 20},
		{"node, heap", `node -p 'require("v8").getHeapStatistics().heap_size_limit'`, 300 << 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			limits := []string{"--max-memory=300M", "--max-cpu=100"}
			if test.most == 1 && !strings.HasPrefix(test.name, "java") {
				limits = append(limits, "--cpu-cores=0")
			}
			program, _, _ := strings.Cut(test.name, ",")
			if r := d.job(t, "sh", "-c", "command -v "+program); r.status != 0 {
				t.Skipf("requires %s on the host", program)
			}
			r := d.job(t, append(limits, "sh", "-c", test.script)...)
			if n, err := strconv.ParseInt(strings.TrimSpace(r.stdout), 10, 64); err != nil || n < 1 || n > test.most {
				t.Errorf("%v, want %d at most", r, test.most)
			}
		})
	}
}

// TestSys: programs that look at the hardware find processors and memory in /sys, and no
// devices.
func TestSys(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const files = `cd /sys; cat devices/system/cpu/online devices/system/node/online devices/system/cpu/cpu0/topology/core_cpus_list; ls -A block class/block dev/block bus/pci/devices | grep -v -e : -e '^$'; ls class/net; cat class/net/lo/mtu`
	want := ""
	for _, name := range []string{"cpu/online", "node/online", "cpu/cpu0/topology/core_cpus_list"} {
		data, err := os.ReadFile("/sys/devices/system/" + name)
		if err != nil {
			t.Skipf("requires a host that tells of its processors and nodes: %v", err)
		}
		want += string(data)
	}
	d.must(t, "-d", "--name=box", "sleep", "600")
	for what, args := range map[string][]string{
		"a job": {"job", "run"}, "a user": {"job", "run", "--user=1000"}, "a nested job": {"job", "run", "--security=nested"},
		"a further process": {"job", "exec", "box"},
	} {
		if r := d.rnx(patient(t), append(args, "sh", "-c", files)...); r.stdout != want+"lo\n65536\n" {
			t.Errorf("%s: %v\nwant %s", what, r, want)
		}
	}
	for _, test := range []struct{ program, args, want string }{
		{"lscpu", "", `(?m)^CPU\(s\): +\d+$`},
		{"lsmem", "", `Total online memory`},
		{"lsblk", "", `^$`},
		{"lspci", "", `^$`},
		{"numactl", "--hardware", `node 0 cpus`},
		{"lstopo-no-graphics", "", `PU L#0`},
	} {
		t.Run(test.program, func(t *testing.T) {
			outside, err := exec.CommandContext(t.Context(), test.program, strings.Fields(test.args)...).CombinedOutput()
			if err != nil {
				t.Skipf("requires %s on the host, and a kernel for it: %v %s", test.program, err, outside)
			}
			if r := d.job(t, "sh", "-c", test.program+" "+test.args); r.status != 0 || !regexp.MustCompile(test.want).MatchString(r.stdout) {
				t.Errorf("%v\nwant %s", r, test.want)
			}
		})
	}
}
