package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/testenv"
)

func TestHierarchies(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		table string
		want  []Mount
	}{
		"pure v2": {`
22 28 0:21 / /proc rw,nosuid - proc proc rw
30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot`,
			[]Mount{{Path: "/sys/fs/cgroup", Root: "/", V2: true}}},
		"hybrid": {`
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw`,
			[]Mount{
				{Path: "/sys/fs/cgroup/cpu,cpuacct", Root: "/", Controllers: []string{"cpu", "cpuacct"}},
				{Path: "/sys/fs/cgroup/memory", Root: "/", Controllers: []string{"memory"}},
				{Path: "/sys/fs/cgroup/unified", Root: "/", V2: true},
			}},
		"v1, and a container's copies of it": {`
33 31 0:33 / /sys/fs/cgroup/pids rw,relatime shared:9 master:1 - cgroup cgroup rw,pids
34 31 0:34 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
90 80 0:33 /docker/1 /var/lib/c/rootfs/sys/fs/cgroup/pids ro - cgroup cgroup rw,pids`,
			[]Mount{{Path: "/sys/fs/cgroup/pids", Root: "/", Controllers: []string{"pids"}}, {Path: "/sys/fs/cgroup/blkio", Root: "/", Controllers: []string{"blkio"}}}},
		"read-only in a container": {`
90 80 0:33 /docker/1 /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw`,
			[]Mount{{Path: "/sys/fs/cgroup", Root: "/docker/1", V2: true, ReadOnly: true}}},
		"one over another": {`
30 23 0:26 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw
31 30 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw`,
			[]Mount{{Path: "/sys/fs/cgroup", Root: "/", V2: true}}},
		"blanks": {`
30 23 0:26 /a\040b /my\040cgroups\134\011 rw - cgroup2 cgroup2 rw`,
			[]Mount{{Path: "/my cgroups\\\t", Root: "/a b", V2: true}}},
		"other file systems": {`
22 28 0:21 / /proc rw,nosuid - proc proc rw`, nil},
	} {
		table, err := mountinfo.GetMountsFromReader(strings.NewReader(strings.TrimPrefix(test.table, "\n")), mountinfo.FSTypeFilter("cgroup", "cgroup2"))
		got := hierarchies(table)
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %+v, %v\nwant %+v", name, got, err, test.want)
		}
	}
}

func TestSeen(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ root, own, want string }{
		{"/", "/", "/"},
		{"/", "/system.slice/joblet.service", "/system.slice/joblet.service"},
		{"/", "/system.slice/joblet.service/daemon", "/system.slice/joblet.service"},
		{"/", "/daemon", "/"},
		{"/docker/1", "/docker/1", "/"},
		{"/docker/1", "/docker/1/daemon", "/"},
		{"/docker/1", "/docker/1/a/b", "/a/b"},
		{"/docker/1", "/docker/12/a", ""},
		{"/docker/1", "/", ""},
		{"/..", "/../unit", "/unit"},
		{"/..", "/unit", ""},
	} {
		got, err := Mount{Root: test.root}.seen(test.own)
		if got != test.want || (err != nil) != (test.want == "") {
			t.Errorf("%s in %s: got %q, %v, want %q", test.own, test.root, got, err, test.want)
		}
	}
}

func TestName(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, dir := range []string{"/run/joblet", "/run/joblet2", "/tmp/a/run", "/tmp/b/run"} {
		name := Name(dir)
		if other, twice := seen[name]; twice || strings.ContainsAny(name, "/ ") || !strings.HasPrefix(name, "joblet") || name != Name(dir) {
			t.Errorf("%s: %q, as %s", dir, name, other)
		}
		seen[name] = dir
	}
	if seen["joblet"] != "/run/joblet" {
		t.Errorf("got %v", seen)
	}
}

// TestViews: a job sees its cgroups in the places where programs look for them.
func TestViews(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		dirs Dirs
		want []View
	}{
		"v2": {Dirs{V2: "/v2/job", Controllers: []string{"pids", "cpu"}}, []View{{Dir: "/v2/job"}}},
		"v1": {Dirs{V1: map[string]string{"cpuset": "/s", "memory": "/m", "cpu": "/c", "cpuacct": "/c", "freezer": "/f"}}, []View{
			{Name: "memory", Dir: "/m"}, {Name: "cpu,cpuacct", Dir: "/c", Aliases: []string{"cpu", "cpuacct"}}, {Name: "cpuset", Dir: "/s"}, {Name: "freezer", Dir: "/f"},
		}},
		"v1, and v2 without controllers": {Dirs{V2: "/v2/job", V1: map[string]string{"cpu": "/c", "cpuacct": "/a"}}, []View{
			{Name: "cpu", Dir: "/c"}, {Name: "cpuacct", Dir: "/a"},
		}},
		"both": {Dirs{V2: "/v2/job", Controllers: []string{"pids"}, V1: map[string]string{"memory": "/m"}}, []View{
			{Name: "memory", Dir: "/m"}, {Name: "unified", Dir: "/v2/job"},
		}},
	} {
		if got := test.dirs.Views(); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %+v, want %+v", name, got, test.want)
		}
	}
}

// TestOmitMissing: the groups of a job of an earlier version, which made fewer, are
// those that are there.
func TestOmitMissing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	g := &Group{Dirs: Dirs{V1: map[string]string{"cpu": dir, "cpuacct": dir + "/missing"}}}
	if g.OmitMissing(); !reflect.DeepEqual(g.V1, map[string]string{"cpu": dir}) {
		t.Errorf("got %v", g.V1)
	}
}

// openHost makes hierarchies of the test's own on the host.
func openHost(t *testing.T) *Hierarchy {
	t.Helper()
	testenv.RequireRoot(t)
	h, err := Open(Name(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.RemoveEmpty()
		for _, dir := range h.Dirs() {
			if exists(dir) {
				t.Errorf("%s is left", dir)
			}
		}
	})
	return h
}

// sleeper runs a process that ignores what it can in the job's cgroups.
func sleeper(t *testing.T, g *Group) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", `trap "" TERM INT HUP; for f in "$@"; do echo 0 >"$f"; done; sleep 1000 & echo in; wait`, "sh")
	cmd.Args = append(cmd.Args, g.TaskFiles()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if g.V2 != "" {
		dir, err := os.Open(g.V2)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// TestGroup takes the cgroups of a job through its life.
func TestGroup(t *testing.T) {
	h := openHost(t)
	id := joblet.NewID()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	g, err := h.Create(id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.Kill(), g.Remove(context.WithoutCancel(ctx))); err != nil {
			t.Error(err)
		}
	})
	if _, err := h.Create(id); err == nil {
		t.Fatal("made twice")
	}
	// That has removed what the first made.
	if g, err = h.Create(id); err != nil {
		t.Fatal(err)
	}
	if sandboxes, err := h.Sandboxes(); err != nil || !slices.Equal(sandboxes, []string{id}) {
		t.Errorf("sandboxes: %v, %v", sandboxes, err)
	}

	limits := joblet.Limits{CPUPercent: 50, CPUWeight: 200, CPUCores: "0", MemoryBytes: 64 << 20, MaxPIDs: 10}
	if err := h.Check(limits); err != nil {
		t.Fatal(err)
	}
	if err := g.Limit(limits, nil); err != nil {
		t.Fatal(err)
	}
	checkLimits(t, g)

	cmd := sleeper(t, g)
	pids, err := g.PIDs()
	if err != nil || !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("processes: %v, %v, want %d", pids, err, cmd.Process.Pid)
	}
	if err := g.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if frozen, err := g.Frozen(); !frozen {
		t.Errorf("not frozen: %v", err)
	}
	checkUpdate(t, g, limits)
	if err := g.Thaw(); err != nil {
		t.Error(err)
	}
	if frozen, err := g.Frozen(); frozen || err != nil {
		t.Errorf("frozen: %v, %v", frozen, err)
	}
	if err := g.Freeze(ctx); err != nil { // also a frozen job can be killed
		t.Fatal(err)
	}
	meter := NewMeter(g.Dirs)
	defer meter.Close()
	if s := meter.Total(); s.PIDs < 2 || s.PIDsPeak < 2 || s.Memory == 0 || s.MemoryPeak < s.Memory || s.CPU() == 0 {
		t.Errorf("usage: %+v", s)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	// Our child stays a zombie until we take its status, and is in the group.
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("it ended with: %v", cmd.ProcessState)
	}
	for range 2 { // what is gone already is no error
		if err := errors.Join(g.Kill(), g.Remove(ctx)); err != nil {
			t.Error(err)
		}
	}
	if sandboxes, err := h.Sandboxes(); err != nil || len(sandboxes) != 0 {
		t.Errorf("sandboxes: %v, %v", sandboxes, err)
	}
}

// checkLimits compares the files of a group with the limits of TestGroup.
func checkLimits(t *testing.T, g *Group) {
	t.Helper()
	want := map[string]map[string]string{
		"cpu":    {"cpu.max": "50000 100000", "cpu.weight": "200", "cpu.cfs_quota_us": "50000", "cpu.shares": "2048"},
		"cpuset": {"cpuset.cpus": "0"},
		"memory": {"memory.max": "67108864", "memory.limit_in_bytes": "67108864"},
		"pids":   {"pids.max": "10"},
	}
	for controller, files := range want {
		n := 0
		for file, value := range files {
			if g.Has(controller, file) {
				n++
				if got := readFile(g, controller, file); got != value {
					t.Errorf("%s is %q, want %q", file, got, value)
				}
			}
		}
		if n == 0 {
			t.Errorf("nothing is limited by %s", controller)
		}
	}
}

// checkUpdate lowers the limits of a group, then takes most of them away.
func checkUpdate(t *testing.T, g *Group, limits joblet.Limits) {
	t.Helper()
	less := limits
	less.CPUPercent, less.MaxPIDs = 20, 5
	if err := g.Update(limits, less, nil); err != nil {
		t.Error(err)
	}
	if got := readFile(g, "pids", "pids.max"); got != "5" {
		t.Errorf("pids.max is %s after the update, want 5", got)
	}
	if err := g.Update(less, joblet.Limits{CPUPercent: 20}, nil); err != nil {
		t.Error(err)
	}
}

// readFile returns what a file of a group's cgroup says.
func readFile(g *Group, controller, file string) string {
	dir, _ := g.where(controller)
	data, _ := os.ReadFile(filepath.Join(dir, file))
	return strings.TrimSpace(string(data))
}

// TestRemoveInUse shows that the cgroups of a job that lives are not removed.
func TestRemoveInUse(t *testing.T) {
	h := openHost(t)
	g, err := h.Create(joblet.NewID())
	if err != nil {
		t.Fatal(err)
	}
	cmd := sleeper(t, g)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := g.Remove(ctx); !errors.Is(err, unix.EBUSY) {
		t.Errorf("got %v", err)
	}
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if err := g.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestProbe shows that trying a host out leaves everything as it was, also
// beside a daemon.
func TestProbe(t *testing.T) {
	h := openHost(t)
	mounts, err := HostMounts()
	if err != nil {
		t.Fatal(err)
	}
	state := func() (all []string) {
		for _, m := range mounts {
			enabled, _ := os.ReadFile(filepath.Join(m.Path, "cgroup.subtree_control"))
			all = append(all, m.Path+" "+string(enabled))
		}
		return all
	}
	before := state()
	p, err := OpenProbe()
	if err != nil {
		t.Fatal(err)
	}
	defer p.RemoveEmpty()
	if got, want := p.Controllers(), h.Controllers(); !reflect.DeepEqual(got, want) || len(p.Untried()) > 0 {
		t.Errorf("controllers %v, not tried %v, a daemon has %v", got, p.Untried(), want)
	}
	g, err := p.Try(joblet.NewID())
	if err != nil {
		t.Fatal(err)
	}
	if !g.Has("pids", "pids.max") || g.Has("pids", "pids.none") {
		t.Error("pids.max is not seen, or what is not there")
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	p.RemoveEmpty()
	for _, dir := range p.Dirs() {
		if exists(dir) {
			t.Errorf("%s is left", dir)
		}
	}
	if after := state(); !slices.Equal(after, before) {
		t.Errorf("enabled before: %v, after: %v", before, after)
	}
}

// TestLockHeld: a process that holds the lock of a cgroup's directory, which any user can
// open, keeps no daemon from starting.
func TestLockHeld(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	other, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	locked := make(chan error, 1)
	go func() {
		unlock, err := lock(dir)
		if err == nil {
			unlock()
		}
		locked <- err
	}()
	select {
	case err := <-locked:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("it is waited for")
	}
}
