package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/joblet/joblet"
)

// fakeDirs returns directories that look like a job's, all controllers in v2 or
// all in v1, the memory controller with or without the files that kernels may lack.
func fakeDirs(t *testing.T, v2, swap, sockets bool) Dirs {
	t.Helper()
	top := t.TempDir()
	d := Dirs{V1: map[string]string{}}
	file := func(name, text string) {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if v2 {
		d.V2, d.Controllers = filepath.Join(top, "job"), controllers
		file(d.V2+"/cgroup.procs", "")
		if swap {
			file(d.V2+"/memory.swap.max", "max")
		}
		return d
	}
	for _, c := range v1Controllers {
		d.V1[c] = filepath.Join(top, c, "job")
		file(d.V1[c]+"/tasks", "")
	}
	file(filepath.Join(top, "cpuset", "cpuset.cpus"), "0-7\n")
	if sockets {
		file(d.V1["memory"]+"/memory.kmem.tcp.limit_in_bytes", "-1")
	}
	if swap {
		file(d.V1["memory"]+"/memory.memsw.limit_in_bytes", "-1")
	}
	return d
}

func TestSettings(t *testing.T) {
	t.Parallel()
	disk := []Device{{259, 0}}
	for name, test := range map[string]struct {
		v2, noSwap, noSockets bool
		l, old                joblet.Limits
		want                  []string
	}{
		"v2: none": {v2: true},
		"v2: cpu": {v2: true, l: joblet.Limits{CPUPercent: 250, CPUWeight: 10, CPUCores: "0-1,3"}, want: []string{
			"cpu.max=250000 100000 (max)", "cpu.weight=10 (100)", "cpuset.cpus=0-1,3 (\n)"}},
		"v1: cpu": {l: joblet.Limits{CPUPercent: 250, CPUWeight: 10, CPUCores: "0-1,3"}, want: []string{
			"cpu.cfs_period_us=100000 (100000)", "cpu.cfs_quota_us=250000 (-1)", "cpu.shares=102 (1024)", "cpuset.cpus=0-1,3 (0-7)"}},
		"v1: the smallest weight": {l: joblet.Limits{CPUWeight: 1}, want: []string{"cpu.shares=10 (1024)"}},
		"v2: memory": {v2: true, l: joblet.Limits{MemoryBytes: 1 << 30, MemoryHighBytes: 1 << 29}, want: []string{
			"memory.max=1073741824 (max)", "memory.swap.max=0 (max)", "memory.high=536870912 (max)"}},
		"v2: swap":       {v2: true, l: joblet.Limits{MemoryBytes: 8192, SwapBytes: 4096}, want: []string{"memory.max=8192 (max)", "memory.swap.max=4096 (max)"}},
		"v2: no swap":    {v2: true, noSwap: true, l: joblet.Limits{MemoryBytes: 8192}, want: []string{"memory.max=8192 (max)"}},
		"v1: memory":     {l: joblet.Limits{MemoryBytes: 8192, SwapBytes: 4096}, want: []string{"memory.limit_in_bytes=8192 (-1)", "memory.memsw.limit_in_bytes=12288 (-1)", "memory.kmem.tcp.limit_in_bytes=8192 (-1)"}},
		"v1: no swap":    {noSwap: true, l: joblet.Limits{MemoryBytes: 8192}, want: []string{"memory.limit_in_bytes=8192 (-1)", "memory.kmem.tcp.limit_in_bytes=8192 (-1)"}},
		"v1: no sockets": {noSwap: true, noSockets: true, l: joblet.Limits{MemoryBytes: 8192}, want: []string{"memory.limit_in_bytes=8192 (-1)"}},
		"v1: more memory": {l: joblet.Limits{MemoryBytes: 16384}, old: joblet.Limits{MemoryBytes: 8192},
			want: []string{"memory.memsw.limit_in_bytes=16384 (-1)", "memory.limit_in_bytes=16384 (-1)", "memory.kmem.tcp.limit_in_bytes=16384 (-1)"}},
		"v1: less memory": {l: joblet.Limits{MemoryBytes: 4096}, old: joblet.Limits{MemoryBytes: 8192},
			want: []string{"memory.limit_in_bytes=4096 (-1)", "memory.memsw.limit_in_bytes=4096 (-1)", "memory.kmem.tcp.limit_in_bytes=4096 (-1)"}},
		"v1: from none": {l: joblet.Limits{MemoryBytes: 4096}, want: []string{"memory.limit_in_bytes=4096 (-1)", "memory.memsw.limit_in_bytes=4096 (-1)", "memory.kmem.tcp.limit_in_bytes=4096 (-1)"}},
		"pids":          {l: joblet.Limits{MaxPIDs: 7}, want: []string{"pids.max=7 (4096)"}},
		"v2: io": {v2: true, l: joblet.Limits{ReadBps: 4096, IOps: 9}, want: []string{
			"io.max=259:0 rbps=4096 wbps=max riops=9 wiops=9 (259:0 rbps=max wbps=max riops=max wiops=max)"}},
		"v1: io": {l: joblet.Limits{IOBps: 4096, WriteBps: 8192}, want: []string{
			"blkio.throttle.read_bps_device=259:0 4096 (259:0 0)", "blkio.throttle.write_bps_device=259:0 8192 (259:0 0)"}},
	} {
		d := fakeDirs(t, test.v2, !test.noSwap, !test.noSockets)
		var got []string
		for _, s := range d.settings(test.l, test.old, disk) {
			got = append(got, s.file+"="+s.value+" ("+s.reset+")")
			if dir, v2 := d.where(s.controller); dir == "" || s.v2 && !v2 {
				t.Errorf("%s: %s is in %q, v2 %v", name, s.file, dir, v2)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

// TestMeterSockets shows that v1's count of socket buffers is part of the memory.
func TestMeterSockets(t *testing.T) {
	t.Parallel()
	d := fakeDirs(t, false, true, true)
	for file, value := range map[string]string{
		"memory.usage_in_bytes": "100", "memory.memsw.usage_in_bytes": "130", "memory.max_usage_in_bytes": "110",
		"memory.kmem.tcp.usage_in_bytes": "50", "memory.kmem.tcp.max_usage_in_bytes": "400",
	} {
		if err := os.WriteFile(filepath.Join(d.V1["memory"], file), []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := NewMeter(d)
	defer m.Close()
	if s := m.Sample(); s.Memory != 150 || s.Swap != 30 || s.MemoryPeak != 150 {
		t.Errorf("memory %d, swap %d, at most %d", s.Memory, s.Swap, s.MemoryPeak)
	}
	if s := m.Total(); s.MemoryPeak != 400 {
		t.Errorf("in all at most %d", s.MemoryPeak)
	}
}

// TestCheckLacking shows which limit can't be enforced without a controller.
func TestCheckLacking(t *testing.T) {
	t.Parallel()
	bare := &Hierarchy{v1: map[string]string{"pids": "/nowhere"}}
	for want, l := range map[string]joblet.Limits{
		"--max-cpu: this host cannot enforce it, because it lacks the cgroup controller cpu (joblet check tells how to get it)":        {CPUPercent: 10},
		"--cpu-cores: this host cannot enforce it, because it lacks the cgroup controller cpuset (joblet check tells how to get it)":   {CPUCores: "0"},
		"--max-memory: this host cannot enforce it, because it lacks the cgroup controller memory (joblet check tells how to get it)":  {MemoryBytes: 1 << 30},
		"--max-read-bps: this host cannot enforce it, because it lacks the cgroup controller io (joblet check tells how to get it)":    {ReadBps: 4096},
		"--memory-high: this host cannot enforce it, because it lacks the cgroup controller memory (joblet check tells how to get it)": {MemoryHighBytes: 1 << 30},
	} {
		if err := bare.Check(l); err == nil || err.Error() != want || joblet.KindOf(err) != joblet.FailedPrecondition {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	v1 := &Hierarchy{v1: map[string]string{"memory": t.TempDir()}}
	want := "--memory-high: this host cannot enforce it, because only cgroup v2 has memory.high, and its controller memory is one of v1"
	if err := v1.Check(joblet.Limits{MemoryHighBytes: 1 << 30}); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := v1.Check(joblet.Limits{}); err != nil {
		t.Errorf("no limits: %v", err)
	}
}
