package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

// cpuPeriod is the time within which a job may use up its share of processors,
// in microseconds: the kernel's default.
const cpuPeriod = 100_000

// setting is one write to a cgroup file.
type setting struct {
	limit      string // whose it is, by the name of its flag
	controller string // by v2's name
	v2         bool   // the file is one of v2 alone
	file       string
	value      string
	reset      string // the value that is no limit
}

// settings returns what the limits are in the kernel's words, in an order in
// which they can be written to a job that had the limits old.
func (d Dirs) settings(l, old joblet.Limits, devices []Device) (list []setting) {
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	add := func(set bool, s setting) {
		if set {
			list = append(list, s)
		}
	}
	if _, v2 := d.where("cpu"); v2 {
		add(l.CPUPercent > 0, setting{"max-cpu", "cpu", false, "cpu.max", fmt.Sprintf("%d %d", l.CPUPercent*cpuPeriod/100, cpuPeriod), "max"})
		add(l.CPUWeight > 0, setting{"cpu-weight", "cpu", false, "cpu.weight", number(l.CPUWeight), "100"})
	} else {
		add(l.CPUPercent > 0, setting{"max-cpu", "cpu", false, "cpu.cfs_period_us", number(cpuPeriod), number(cpuPeriod)})
		add(l.CPUPercent > 0, setting{"max-cpu", "cpu", false, "cpu.cfs_quota_us", number(l.CPUPercent * cpuPeriod / 100), "-1"})
		add(l.CPUWeight > 0, setting{"cpu-weight", "cpu", false, "cpu.shares", number(max(2, l.CPUWeight*1024/100)), "1024"})
	}
	add(l.CPUCores != "", setting{"cpu-cores", "cpuset", false, "cpuset.cpus", l.CPUCores, d.allCPUs()})

	if _, v2 := d.where("memory"); v2 {
		add(l.MemoryBytes > 0, setting{"max-memory", "memory", false, "memory.max", number(l.MemoryBytes), "max"})
		add(l.MemoryBytes > 0 && d.countsSwap(), setting{"max-memory", "memory", false, "memory.swap.max", number(l.SwapBytes), "max"})
	} else if l.MemoryBytes > 0 {
		memory := setting{"max-memory", "memory", false, "memory.limit_in_bytes", number(l.MemoryBytes), "-1"}
		both := setting{"max-memory", "memory", false, "memory.memsw.limit_in_bytes", number(l.MemoryBytes + l.SwapBytes), "-1"}
		pair := []setting{memory, both}
		if !d.countsSwap() {
			pair = pair[:1]
		} else if old.MemoryBytes > 0 && l.MemoryBytes+l.SwapBytes > old.MemoryBytes+old.SwapBytes {
			pair = []setting{both, memory} // the first may never be above the second
		}
		list = append(list, pair...)
		// v1 counts the buffers of TCP and UDP sockets apart, and only once they are
		// limited (cgroup-v1/memory.rst, 2.7.2).
		add(d.countsSockets(), setting{"max-memory", "memory", false, "memory.kmem.tcp.limit_in_bytes", number(l.MemoryBytes), "-1"})
	}
	add(l.MemoryHighBytes > 0, setting{"memory-high", "memory", true, "memory.high", number(l.MemoryHighBytes), "max"})
	add(l.MaxPIDs > 0, setting{"max-pids", "pids", false, "pids.max", number(l.MaxPIDs), number(joblet.DefaultMaxPIDs)})

	readBps, writeBps, readOps, writeOps := l.Rates()
	_, v2 := d.where("io")
	for _, dev := range devices {
		if v2 {
			orMax := func(n int64) string {
				if n == 0 {
					return "max"
				}
				return number(n)
			}
			add(readBps|writeBps|readOps|writeOps != 0, setting{"max-iobps", "io", false, "io.max",
				fmt.Sprintf("%v rbps=%s wbps=%s riops=%s wiops=%s", dev, orMax(readBps), orMax(writeBps), orMax(readOps), orMax(writeOps)),
				fmt.Sprintf("%v rbps=max wbps=max riops=max wiops=max", dev)})
			continue
		}
		for _, f := range []struct {
			limit, file string
			n           int64
		}{
			{"max-read-bps", "blkio.throttle.read_bps_device", readBps}, {"max-write-bps", "blkio.throttle.write_bps_device", writeBps},
			{"max-iops", "blkio.throttle.read_iops_device", readOps}, {"max-iops", "blkio.throttle.write_iops_device", writeOps},
		} {
			add(f.n > 0, setting{f.limit, "io", false, f.file, fmt.Sprintf("%v %d", dev, f.n), fmt.Sprintf("%v 0", dev)})
		}
	}
	return list
}

// allCPUs returns the processors that a job without limit may run on.
func (d Dirs) allCPUs() string {
	dir, v2 := d.where("cpuset")
	if v2 || dir == "" {
		return "\n" // as many as the parent has (cgroup-v2.rst)
	}
	data, _ := os.ReadFile(filepath.Join(filepath.Dir(dir), "cpuset.cpus"))
	return strings.TrimSpace(string(data))
}

// countsSwap is Hierarchy.countsSwap for one job.
func (d Dirs) countsSwap() bool {
	dir, v2 := d.where("memory")
	if v2 {
		return exists(filepath.Join(dir, "memory.swap.max"))
	}
	return exists(filepath.Join(dir, "memory.memsw.limit_in_bytes"))
}

// countsSockets reports whether v1 can limit the buffers of sockets: a kernel may
// be built without.
func (d Dirs) countsSockets() bool {
	return exists(filepath.Join(d.V1["memory"], "memory.kmem.tcp.limit_in_bytes"))
}

// Check reports whether this host can enforce the limits, and whether what they
// ask for is possible on it.
func (h *Hierarchy) Check(l joblet.Limits) error {
	d := h.Group("").Dirs
	for _, s := range d.settings(l, joblet.Limits{}, []Device{{}}) {
		dir, v2 := d.where(s.controller)
		switch {
		case dir == "":
			return joblet.Errorf(joblet.FailedPrecondition, "--%s: this host cannot enforce it, because it lacks the cgroup controller %s (joblet check tells how to get it)", s.limit, s.controller)
		case s.v2 && !v2:
			return joblet.Errorf(joblet.FailedPrecondition, "--%s: this host cannot enforce it, because only cgroup v2 has %s, and its controller %s is one of v1", s.limit, s.file, s.controller)
		}
	}
	if l.CPUPercent > 0 {
		online, err := OnlineCPUs()
		if err != nil {
			return err
		}
		if most := int64(100 * len(online)); l.CPUPercent > most {
			return joblet.Errorf(joblet.InvalidArgument, "--max-cpu %d: this host has %d processors: at most %d", l.CPUPercent, len(online), most)
		}
	}
	if l.CPUCores != "" {
		if err := h.checkCores(l.CPUCores); err != nil {
			return err
		}
	}
	if l.MemoryBytes > 0 && !h.countsSwap() && hasSwap() {
		return joblet.Errorf(joblet.FailedPrecondition, "--max-memory: this host has swap, which it does not count for each job, so the limit could be evaded: boot it with swapaccount=1, or turn swap off")
	}
	return nil
}

// countsSwap reports whether the kernel can limit swap for each job.
func (h *Hierarchy) countsSwap() bool {
	if slices.Contains(h.controllers, "memory") {
		return exists(filepath.Join(h.v2, "memory.swap.max"))
	}
	return exists(filepath.Join(h.v1["memory"], "memory.memsw.limit_in_bytes"))
}

func hasSwap() bool {
	data, err := os.ReadFile("/proc/swaps")
	return err == nil && bytes.Count(data, []byte("\n")) > 1 // behind a header
}

// OnlineCPUs returns the numbers of the host's processors.
func OnlineCPUs() ([]int, error) {
	data, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, fmt.Errorf("cannot count the processors: %w", err)
	}
	return joblet.ParseCPUs(strings.TrimSpace(string(data)))
}

// checkCores reports whether all of the processors are there for jobs.
func (h *Hierarchy) checkCores(list string) error {
	asked, err := joblet.ParseCPUs(list)
	if err != nil {
		return err
	}
	cpus, there, err := h.jobCPUs()
	if err != nil {
		return err
	}
	for _, cpu := range asked {
		if !slices.Contains(cpus, cpu) {
			return joblet.Errorf(joblet.InvalidArgument, "--cpu-cores %s: this host has no processor %d for jobs: it has %s", list, cpu, there)
		}
	}
	return nil
}

// jobCPUs returns the processors that jobs may have, as a list and as text.
func (h *Hierarchy) jobCPUs() (cpus []int, list string, err error) {
	dir := h.where("cpuset")
	var data []byte
	for _, file := range []string{"cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"} {
		if data, err = os.ReadFile(filepath.Join(dir, file)); err == nil {
			break
		}
	}
	if err != nil {
		return nil, "", fmt.Errorf("cannot read the processors that jobs may have: %w", err)
	}
	list = strings.TrimSpace(string(data))
	if cpus, err = joblet.ParseCPUs(list); err != nil {
		return nil, "", fmt.Errorf("%s: %w", dir, err)
	}
	return cpus, list, nil
}

// Fit returns limits of the public API with what this host cannot give changed to what
// comes next to it, and says what it has changed. What can never be is left for Check and
// Limits.Validate.
func (h *Hierarchy) Fit(l joblet.Limits) (joblet.Limits, []string, error) {
	var changed []string
	note := func(format string, args ...any) { changed = append(changed, fmt.Sprintf(format, args...)) }
	if l.CPUPercent > 0 {
		online, err := OnlineCPUs()
		if err != nil {
			return l, nil, err
		}
		if most := int64(100 * len(online)); l.CPUPercent > most {
			note("max_cpu %d: this host has %d processors; the job gets %d", l.CPUPercent, len(online), most)
			l.CPUPercent = most
		}
	}
	if asked, err := joblet.ParseCPUs(l.CPUCores); err == nil && h.where("cpuset") != "" {
		cpus, there, err := h.jobCPUs()
		if err != nil {
			return l, nil, err
		}
		have := slices.DeleteFunc(slices.Clone(asked), func(cpu int) bool { return !slices.Contains(cpus, cpu) })
		if len(have) == 0 {
			have = cpus
		}
		if !slices.Equal(have, asked) {
			got := joblet.FormatCPUs(have)
			note("cpu_cores %s: this host has the processors %s for jobs; the job gets %s", l.CPUCores, there, got)
			l.CPUCores = got
		}
	}
	if l.MemoryBytes > 0 && l.MemoryBytes < joblet.MinMemory {
		note("max_memory %d: the least is %d; the job gets that", l.MemoryBytes>>20, joblet.MinMemory>>20)
		l.MemoryBytes = joblet.MinMemory
	}
	if l.MemoryBytes > joblet.MaxMemory {
		note("max_memory %d: the most is %d; the job gets that", l.MemoryBytes>>20, joblet.MaxMemory>>20)
		l.MemoryBytes = joblet.MaxMemory
	}
	if l.IOBps > 0 && l.IOBps < joblet.MinIOBps {
		note("max_io_bps %d: the least is %d; the job gets that", l.IOBps, joblet.MinIOBps)
		l.IOBps = joblet.MinIOBps
	}
	return l, changed, nil
}

// Limit sets the limits of a job that has none but those of Create.
func (g *Group) Limit(l joblet.Limits, devices []Device) error {
	for _, s := range g.settings(l, joblet.Limits{}, devices) {
		if err := g.set(s.controller, s.file, s.value); err != nil {
			return fmt.Errorf("cannot set --%s: %w", s.limit, err)
		}
	}
	return nil
}

// Update changes the limits of a running job from old to l, all or none.
func (g *Group) Update(old, l joblet.Limits, devices []Device) error {
	if err := g.makeRoom(old, l); err != nil {
		return err
	}
	before := g.settings(old, l, devices)
	for i, s := range g.settings(l, old, devices) {
		if slices.Contains(before, s) {
			continue
		}
		err := g.set(s.controller, s.file, s.value)
		if err == nil {
			continue
		}
		if errors.Is(err, unix.EBUSY) && s.controller == "memory" {
			err = g.tooLow(l.MemoryBytes)
		}
		errs := []error{fmt.Errorf("cannot set --%s: %w", s.limit, err)}
		for _, undo := range slices.Backward(g.settings(l, old, devices)[:i]) {
			value := undo.reset
			if j := slices.IndexFunc(before, func(b setting) bool { return b.file == undo.file && sameDevice(b, undo) }); j >= 0 {
				value = before[j].value
			}
			if err := g.set(undo.controller, undo.file, value); err != nil {
				errs = append(errs, fmt.Errorf("cannot take --%s back: %w", undo.limit, err))
			}
		}
		return errors.Join(errs...)
	}
	return nil
}

// sameDevice reports whether two settings of a file are for the same device:
// their first words are the same, or they have none.
func sameDevice(a, b setting) bool {
	return a.controller != "io" || strings.Fields(a.value)[0] == strings.Fields(b.value)[0]
}

// makeRoom has the kernel take back what a lower limit on memory does not allow.
// Without that it would kill the job; it refuses if not enough can be taken.
func (g *Group) makeRoom(old, l joblet.Limits) error {
	dir, v2 := g.where("memory")
	if !v2 || l.MemoryBytes == 0 || l.MemoryBytes == old.MemoryBytes {
		return nil // v1 does it by itself
	}
	for range 5 {
		used, err := readNumber(filepath.Join(dir, "memory.current"))
		if err != nil || used <= l.MemoryBytes {
			return err
		}
		_ = write(dir, "memory.reclaim", strconv.FormatInt(used-l.MemoryBytes, 10)) // EAGAIN: only a part; before 5.19 there is none
	}
	return g.tooLow(l.MemoryBytes)
}

func (g *Group) tooLow(limit int64) error {
	used := int64(0)
	if dir, v2 := g.where("memory"); v2 {
		used, _ = readNumber(filepath.Join(dir, "memory.current"))
	} else {
		used, _ = readNumber(filepath.Join(dir, "memory.usage_in_bytes"))
		sockets, _ := readNumber(filepath.Join(dir, "memory.kmem.tcp.usage_in_bytes"))
		used += sockets
	}
	return joblet.Errorf(joblet.FailedPrecondition, "--max-memory %s: the job has %s MiB in use that cannot be taken from it",
		joblet.FormatSize(limit), strconv.FormatInt(used>>20, 10))
}

func readNumber(name string) (int64, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
}

// CountIO makes a v1 hierarchy count what jobs read from and write to the
// devices. Since Linux 6.9 it begins to count at a device with the first limit
// on it, and goes on when that is taken away again.
func (h *Hierarchy) CountIO(devices []Device) error {
	dir := h.v1["blkio"]
	if dir == "" {
		return nil
	}
	const never = 1 << 60
	for _, dev := range devices {
		for _, n := range []int64{never, 0} {
			if err := write(dir, "blkio.throttle.read_bps_device", fmt.Sprintf("%v %d", dev, n)); err != nil {
				return fmt.Errorf("count input and output: %w", err)
			}
		}
	}
	return nil
}
