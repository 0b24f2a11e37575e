package native

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// rlimits are the kernel's numbers of what joblet.RlimitNames names.
var rlimits = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA,
	"fsize": unix.RLIMIT_FSIZE, "memlock": unix.RLIMIT_MEMLOCK, "nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC,
	"rss": unix.RLIMIT_RSS, "rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

// noCore is a limit at which there are no core dumps at all. At 0 the kernel writes
// no file, but runs the program of a core_pattern with "|" all the same, as root and
// outside of the job; at 1 it does not (cprm.limit == 1 in fs/coredump.c), and writes no
// file that is shorter than a page either (min_coredump). The filter keeps a job from
// changing it.
const noCore = 1

// coreLimit returns what a job gets for a limit on core dumps.
func coreLimit(l joblet.Rlimit) protocol.Rlimit {
	var have unix.Rlimit
	if l.Hard < noCore && unix.Getrlimit(unix.RLIMIT_CORE, &have) == nil && have.Max < noCore && !mayRaise() {
		return protocol.Rlimit{Resource: unix.RLIMIT_CORE} // see CheckCoreDumps
	}
	return protocol.Rlimit{Resource: unix.RLIMIT_CORE, Soft: max(noCore, l.Soft), Hard: max(noCore, l.Hard)}
}

// corePattern is where the kernel says what becomes of a core dump.
var corePattern = "/proc/sys/kernel/core_pattern"

// corePiped reports whether core dumps go to a program of the host, and how.
func corePiped() (pattern string, piped bool) {
	data, err := os.ReadFile(corePattern)
	pattern = strings.TrimSpace(string(data))
	return pattern, err == nil && (strings.HasPrefix(pattern, "|") || strings.HasPrefix(pattern, "@"))
}

// CheckCoreDumps reports whether core dumps of jobs stay out of the host's hands: not
// where a socket gets them (Linux 6.16), for which no limit counts.
func CheckCoreDumps() error {
	pattern, piped := corePiped()
	switch {
	case strings.HasPrefix(pattern, "@"):
		return fmt.Errorf("kernel.core_pattern is a socket: %.100s", pattern)
	case piped && coreLimit(joblet.Rlimit{}).Hard < noCore:
		return fmt.Errorf("kernel.core_pattern is %.100s, and the daemon's limit on core dumps is 0", pattern)
	}
	return nil
}

// defaultRlimits are a job's limits where they differ from the daemon's: no core
// dumps, and the usual number of descriptors, which the Go runtime has raised
// for the daemon and its shims.
func defaultRlimits() []protocol.Rlimit {
	limits := []protocol.Rlimit{coreLimit(joblet.Rlimit{})}
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil {
		hard := files.Max
		if most, err := readNumber(fileMaxPath); err == nil {
			hard = fileLimit(files.Max, most)
		}
		limits = append(limits, protocol.Rlimit{Resource: unix.RLIMIT_NOFILE, Soft: min(1024, hard), Hard: hard})
	}
	return limits
}

// rlimitsOf returns the limits of each process of a job.
func rlimitsOf(l joblet.Limits) []protocol.Rlimit {
	all := defaultRlimits()
	for name, limit := range l.Rlimits {
		set := protocol.Rlimit{Resource: rlimits[name], Soft: limit.Soft, Hard: limit.Hard}
		if name == "core" {
			set = coreLimit(limit)
		}
		replaced := false
		for i := range all {
			if all[i].Resource == set.Resource {
				all[i], replaced = set, true
			}
		}
		if !replaced {
			all = append(all, set)
		}
	}
	return all
}

// shmBytes returns the size of the /dev/shm of a job with these limits: without one of
// its own it is half of the memory, as the kernel has it for a machine (tmpfs(5)).
func shmBytes(l joblet.Limits) int64 {
	if l.ShmBytes > 0 {
		return l.ShmBytes
	}
	memory := l.MemoryBytes
	if memory == 0 {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return joblet.DefaultDiskBytes
		}
		memory = int64(info.Totalram) * int64(info.Unit)
	}
	return max(memory/2, joblet.MinShm)
}

// FitLimits is cgroup.Hierarchy.Fit.
func (e *Engine) FitLimits(l joblet.Limits) (joblet.Limits, []string, error) {
	return e.groups.own.Fit(l)
}

// CheckLimits reports whether this host can enforce the limits, and whether what
// they ask for is possible on it.
func (e *Engine) CheckLimits(l joblet.Limits) error {
	if err := e.groups.own.Check(l); err != nil {
		return err
	}
	for name, limit := range l.Rlimits {
		if err := checkRlimit(name, limit); err != nil {
			return err
		}
	}
	return nil
}

// checkRlimit reports whether the shim can give a job this limit: to raise a
// hard limit takes CAP_SYS_RESOURCE (getrlimit(2)), which a daemon in a container
// may lack.
func checkRlimit(name string, limit joblet.Rlimit) error {
	if name == "nofile" {
		data, err := os.ReadFile("/proc/sys/fs/nr_open")
		if err != nil {
			return fmt.Errorf("cannot read the most descriptors of a process: %w", err)
		}
		if most, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64); err == nil && limit.Hard > most {
			return joblet.Errorf(joblet.InvalidArgument, "--nofile %v: this host allows at most %d (fs.nr_open)", limit, most)
		}
	}
	if pattern, piped := corePiped(); name == "core" && limit.Hard > noCore && piped {
		return joblet.Errorf(joblet.FailedPrecondition, "--%s %v: this host hands core dumps to a program outside of the job (kernel.core_pattern is %.100q)", name, limit, pattern)
	}
	var have unix.Rlimit
	if err := unix.Getrlimit(rlimits[name], &have); err != nil {
		return fmt.Errorf("cannot read limit %s: %w", name, err)
	}
	if limit.Hard > have.Max && !mayRaise() {
		return joblet.Errorf(joblet.FailedPrecondition, "--%s %v: this host does not allow the daemon to raise it above %v (it lacks CAP_SYS_RESOURCE)",
			name, limit, joblet.Rlimit{Soft: have.Max, Hard: have.Max})
	}
	return nil
}

func mayRaise() bool { return HasCapability(unix.CAP_SYS_RESOURCE) }

// HasCapability reports whether this process can use a capability (CAP_… of capability.h).
func HasCapability(c int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[c/32].Effective&(1<<(c%32)) != 0
}

// CountIO makes sure that what jobs read from and write to these devices is
// counted.
func (e *Engine) CountIO(devices []cgroup.Device) error { return e.groups.own.CountIO(devices) }

// Controllers tells which cgroup controllers limit jobs; see cgroup.Hierarchy.
func (e *Engine) Controllers() map[string]int { return e.groups.own.Controllers() }

// Meter returns a new reader of what the job takes. It is the caller's to close.
func (p *Process) Meter() *cgroup.Meter { return cgroup.NewMeter(p.group.Dirs) }

// PIDs returns the job's processes as the host numbers them.
func (p *Process) PIDs() ([]int, error) { return p.group.PIDs() }

// freezeTimeout bounds how long processes may take to stand still: one that is in
// an uninterruptible wait does not.
const freezeTimeout = 5 * time.Second

// Pause freezes all of the job's processes.
func (p *Process) Pause(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	return p.group.Freeze(ctx)
}

// Resume lets them go on.
func (p *Process) Resume() error {
	if err := p.group.Thaw(); err != nil {
		return fmt.Errorf("cannot resume the job: %w", err)
	}
	return nil
}

// Paused reports whether all of the job's processes stand still.
func (p *Process) Paused() (bool, error) { return p.group.Frozen() }

// Update changes the running job's limits from old to l, all or none.
func (p *Process) Update(old, l joblet.Limits, devices []cgroup.Device) error {
	if l.ShmBytes != old.ShmBytes && p.version < 2 {
		return joblet.Errorf(joblet.FailedPrecondition, "--shm-size: the job was started by an earlier version of joblet, and its /dev/shm keeps its size")
	}
	asked := l.DiskBytes != old.DiskBytes || l.ShmBytes != old.ShmBytes
	if asked && p.isStopped() {
		return ErrSilent // before anything is changed
	}
	if err := p.group.Update(old, l, devices); err != nil {
		return err
	}
	// The shim answers nothing: the kernel refuses only what is less than is in
	// use, and tells in statfs(2) what holds.
	var req protocol.Request
	if l.DiskBytes != old.DiskBytes {
		req.DiskBytes = l.DiskBytes
	}
	if size := shmBytes(l); size != shmBytes(old) {
		req.ShmBytes = size
	}
	if req.DiskBytes|req.ShmBytes == 0 {
		return nil
	}
	if err := p.request(req); asked {
		return err
	}
	return nil // /dev/shm that keeps its size is no reason to refuse a limit that holds
}
