// Package hostcheck tries out on a host whether it has all that jobs need or use, and says
// what it costs not to have it.
package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/hostinfo"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/sandbox/native/rootfs"
)

// Finding is what Check found out about one feature of the host.
type Finding struct {
	Feature string       `json:"feature"`
	Status  FindingState `json:"status"`
	Found   string       `json:"found"`          // what is there, or why it is not
	Cost    string       `json:"cost"`           // what it costs not to have it
	Mend    string       `json:"mend,omitempty"` // how to get it, if it lacks
}

// FindingState says whether a feature is there.
type FindingState string

// The states of a feature. Of one that is Untried it is unknown before a daemon
// starts.
const (
	Present FindingState = "ok"
	Lacking FindingState = "lacking" // and jobs run without it
	Missing FindingState = "MISSING" // and no job can run
	Untried FindingState = "untried"
)

// Features that a kernel has from some version on need no version of ours: they
// are tried out. This is for the error that says what to install.
const minKernel = "5.14"

// minFree is the space below which a daemon soon can't keep logs any more.
const minFree = 1 << 30

// errUntried is what a probe returns that can't find out.
var errUntried = errors.New("not tried")

// Check tries out on this host whatever jobs need or use, for a daemon with this
// state directory that would be started like this process. It leaves nothing
// behind, and does not disturb a daemon that runs. An error means that it could
// not check.
func Check(ctx context.Context, stateDir string) (_ []Finding, err error) {
	tmp, err := os.MkdirTemp("", "joblet-check-")
	if err != nil {
		return nil, err
	}
	c := &checker{stateDir: existing(stateDir), tmp: tmp}
	defer func() { err = errors.Join(err, c.close()) }()
	c.shim, c.shimErr = native.LoadShim()
	if c.groups, c.groupsErr = cgroup.OpenProbe(); c.groupsErr == nil {
		c.group, c.groupsErr = c.groups.Try(joblet.NewID())
	}
	var found []Finding
	for _, f := range c.features() {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		found = append(found, f.find(ctx))
	}
	return found, nil
}

const (
	releaseTimeout = 10 * time.Second // for processes that were killed to go
	freezeTimeout  = 5 * time.Second  // for one that is frozen to stand still
)

// existing returns the directory, or the one above it in which it would be made.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" || dir == "." {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// feature is a row of the table: what it is for, and how to find out.
type feature struct {
	name   string
	needed bool
	cost   string
	mend   string
	probe  func(context.Context) (found string, err error)
}

func (f feature) find(ctx context.Context) Finding {
	found, err := f.probe(ctx)
	r := Finding{Feature: f.name, Status: Present, Found: found, Cost: f.cost}
	switch {
	case errors.Is(err, errUntried):
		r.Status, r.Found = Untried, found
	case err != nil:
		r.Status, r.Found, r.Mend = Lacking, err.Error(), f.mend
		if f.needed {
			r.Status = Missing
		}
	}
	return r
}

// checker has what the probes share.
type checker struct {
	stateDir, tmp string

	shim      *os.File
	shimErr   error
	groups    *cgroup.Hierarchy
	group     *cgroup.Group // empty, for trying things out
	groupsErr error
}

func (c *checker) close() error {
	var errs []error
	if c.group != nil {
		ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
		defer cancel()
		errs = append(errs, c.group.Kill(), c.group.Remove(ctx))
	}
	if c.groups != nil {
		c.groups.RemoveEmpty()
	}
	if c.shim != nil {
		errs = append(errs, c.shim.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(c.tmp))...)
}

// spawn starts a shim that does nothing but wait for its sandbox, until the
// returned function is called.
func (c *checker) spawn(sys *syscall.SysProcAttr) (*os.Process, func(), error) {
	if c.shimErr != nil {
		return nil, nil, c.shimErr
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "shim")
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, errors.Join(err, ours.Close())
	}
	defer null.Close()
	proc, err := os.StartProcess("/proc/self/fd/"+strconv.Itoa(int(c.shim.Fd())), []string{"joblet-shim"},
		&os.ProcAttr{Dir: "/", Env: []string{"GOMAXPROCS=1"}, Files: []*os.File{null, null, null, theirs, null}, Sys: sys})
	if err != nil {
		return nil, nil, errors.Join(err, ours.Close())
	}
	return proc, func() {
		_ = ours.Close()
		_ = proc.Kill()
		_, _ = proc.Wait()
	}, nil
}

// id0 maps root of a new user namespace to ids of a job.
var id0 = []syscall.SysProcIDMap{{ContainerID: 0, HostID: native.LastIDs, Size: native.IDCount}}

func (c *checker) namespace(name string, flag uintptr) feature {
	sysctl := "user.max_" + name + "_namespaces"
	return feature{
		name: name + " namespace", needed: true, cost: "no jobs: each has its own",
		mend: "sysctl " + sysctl + "=100000, if it is low; in a container, allow it to make namespaces (docker run --privileged); else a kernel with CONFIG_" + map[string]string{
			"user": "USER_NS", "pid": "PID_NS", "mnt": "NAMESPACES", "net": "NET_NS", "ipc": "IPC_NS", "uts": "UTS_NS", "cgroup": "CGROUPS"}[name],
		probe: func(context.Context) (string, error) {
			_, end, err := c.spawn(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | flag, UidMappings: id0, GidMappings: id0})
			if err != nil {
				return "", err
			}
			end()
			most, err := readSysctl(sysctl)
			if err != nil {
				return "", err
			}
			if n, err := strconv.Atoi(most); err == nil && n < 1000 {
				return "", fmt.Errorf("%s is %d: no more jobs at once", sysctl, n)
			}
			return "at most " + most, nil
		},
	}
}

func readSysctl(name string) (string, error) {
	data, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	return strings.TrimSpace(string(data)), err
}

// features are all rows, in the order in which a job comes to need them.
func (c *checker) features() []feature {
	const newKernel = "a kernel of " + minKernel + " or newer"
	const inContainer = "; in a container, docker run --privileged"
	all := []feature{
		{"Linux " + minKernel, true, "no jobs", "install " + newKernel, probeKernel},
		{"capabilities", true, "no jobs: the daemon sets up namespaces, mounts, devices and id maps", "run it as root of the host" + inContainer, probeCapabilities},
		{"memfd, executable", true, "no jobs: their shim's program lies in one", "sysctl vm.memfd_noexec=1", c.probeMemfd},
	}
	for _, ns := range []struct {
		name string
		flag uintptr
	}{{"user", 0}, {"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS}, {"net", unix.CLONE_NEWNET}, {"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS}, {"cgroup", unix.CLONE_NEWCGROUP}} {
		all = append(all, c.namespace(ns.name, ns.flag))
	}
	all = append(all,
		feature{"user namespaces of users", false, "nothing: the daemon makes them as root; jobs cannot make any", "", probeUserSysctls},
		feature{"open_tree, mount_setattr", true, "no jobs: their trees are attached so", "install " + newKernel + inContainer, c.probeTrees},
		feature{"move_mount", true, "no jobs: their trees are attached so", "install " + newKernel, probeMoveMount},
		feature{"fspick", false, "--max-disk, --max-memory and --shm-size, which resize a job's root and /dev/shm", "install " + newKernel, probeFspick},
		feature{"tmpfs", true, "no jobs: their root is one", "a kernel with CONFIG_TMPFS", func(context.Context) (string, error) {
			return "", tryMount("tmpfs", map[string]string{"size": "1M", "nr_inodes": "16"})
		}},
		feature{"devpts, newinstance", true, "no jobs: each has terminals of its own", "a kernel with CONFIG_UNIX98_PTYS", func(context.Context) (string, error) {
			return "", tryMount("devpts", map[string]string{"newinstance": "", "ptmxmode": "0666"})
		}},
		feature{"idmapped mounts of " + c.stateDir, false, "in jobs, the files of runtimes belong to the user nobody", "keep the state directory on ext4, xfs or btrfs", c.probeIDMap},
		feature{"overlayfs", false, "what a runtime has in /var, /home, /root, /run and /tmp is missing", "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS", probeOverlay},
		feature{"seccomp filter", true, "no jobs: each has a filter of system calls", "a kernel with CONFIG_SECCOMP_FILTER", probeSeccomp},
		feature{"no core dumps outside", false, "a job can have the kernel run, or tell, a program of the host that takes core dumps", "sysctl kernel.core_pattern=core, or one with \"|\"; with that the daemon needs a hard limit on core dumps of at least 1, or CAP_SYS_RESOURCE", probeCore},
		feature{"pidfd_open", true, "no jobs", "install " + newKernel, probePidfd},
		feature{"close_range", true, "no jobs: nothing of the daemon's may stay open in them", "install " + newKernel, probeCloseRange},
		feature{"openat2", false, "programs in jobs that look for it take slower ways", "install " + newKernel, probeOpenat2},
		feature{"CAP_SYS_RESOURCE", false, "--nofile and other limits of processes cannot be above the daemon's own", "give it to the daemon: docker run --cap-add=SYS_RESOURCE", probeResource},
	)
	all = append(all, c.cgroupFeatures()...)
	return append(all,
		feature{"space in " + c.stateDir, false, "jobs wait when their logs cannot be written", "make room, or use joblet serve --retain-size", c.probeSpace},
		feature{"device of " + c.stateDir, false, "--max-iobps and its like, which are set on a block device", "keep the state directory on a disk of this host", c.probeDevice},
		feature{"mmdebstrap", false, "no runtimes can be built; those that are there work", "apt-get install mmdebstrap debian-archive-keyring", probeMmdebstrap},
		feature{"a whole sandbox", true, "no jobs: this was one, running true", "look above for what is missing; if all is there, report this as a bug", c.probeBox},
	)
}

// cgroupFeatures are the rows on cgroups.
func (c *checker) cgroupFeatures() []feature {
	const v2 = "boot without v1 controllers: systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all on the kernel's command line"
	hierarchies := feature{"cgroups", true, "no jobs: each has its own", "mount cgroup2 on /sys/fs/cgroup, read-write", func(context.Context) (string, error) {
		if c.groupsErr != nil {
			return "", c.groupsErr
		}
		if c.groups.Parent() == "" {
			return "v1 alone", nil
		}
		return "v2 in " + c.groups.Parent(), nil
	}}
	if c.groupsErr != nil { // nothing else can be said
		return []feature{hierarchies}
	}
	all := []feature{hierarchies}
	versions := c.groups.Controllers()
	for _, w := range []struct{ name, cost string }{
		{"pids", "no jobs: one could start processes without limit"},
		{"memory", "--max-memory and its like are refused; memory is not counted"},
		{"cpu", "--max-cpu and --cpu-weight are refused"},
		{"cpuset", "--cpu-cores is refused"},
		{"io", "--max-iobps and its like are refused; input and output is not counted"},
	} {
		all = append(all, feature{"controller " + w.name, w.name == "pids", w.cost,
			"enable it: remove cgroup_disable=" + w.name + " from the kernel's command line, or have it delegated (systemd: Delegate=yes)",
			func(context.Context) (string, error) {
				switch {
				case slices.Contains(c.groups.Untried(), w.name):
					return fmt.Sprintf("v2, and processes are in %s; a daemon would move them", c.groups.Parent()), errUntried
				case versions[w.name] == 0:
					return "", errors.New("no hierarchy has it")
				}
				return "v" + strconv.Itoa(versions[w.name]), nil
			}})
	}
	all = append(all,
		feature{"clone3, CLONE_INTO_CGROUP", c.group.V2 != "", "no jobs on cgroup v2: they are born in their cgroup", "install a kernel of " + minKernel + " or newer; in a container, have it allow clone3", c.probeIntoCgroup},
		feature{"cgroup.freeze", false, "rnx job pause is refused", "mount cgroup2, or the v1 controller freezer", c.probeFreeze},
		feature{"cgroup.kill", false, "jobs are killed process by process, which takes longer", v2, c.probeKill},
	)
	for _, w := range []struct{ name, controller, v2, v1, cost, mend string }{
		{"peak memory", "memory", "memory.peak", "memory.max_usage_in_bytes", "the peak is that of samples: a short one is overlooked", "Linux 5.19 or newer"},
		{"peak of processes", "pids", "pids.peak", "pids.peak", "the peak is that of samples: a short one is overlooked", "Linux 6.6 or newer"},
		{"counting of swap", "memory", "memory.swap.max", "memory.memsw.limit_in_bytes", "--max-memory is refused if this host has swap", "boot with swapaccount=1"},
		{"memory.high", "memory", "memory.high", "", "--memory-high is refused", v2},
		{"memory.oom.group", "memory", "memory.oom.group", "memory.oom_control", "one process may be killed where the job should be", v2},
		{"memory.reclaim", "memory", "memory.reclaim", "memory.limit_in_bytes", "rnx job update --max-memory to less than what is in use is refused more often", "Linux 5.19 or newer"},
		{"pressure (PSI)", "", "memory.pressure", "", "time lost to waiting is not counted", "a kernel with CONFIG_PSI, psi=1 on its command line, and cgroup v2"},
	} {
		all = append(all, feature{w.name, false, w.cost, w.mend, func(context.Context) (string, error) {
			if slices.Contains(c.groups.Untried(), w.controller) {
				return "as the controller " + w.controller, errUntried
			}
			file := w.v2
			if w.controller != "" && versions[w.controller] != 2 {
				file = w.v1
			}
			if file == "" {
				return "", errors.New("cgroup v2 alone has it")
			}
			if !c.group.Has(w.controller, file) {
				return "", fmt.Errorf("no %s", file)
			}
			return file, nil
		}})
	}
	return all
}

func probeKernel(context.Context) (string, error) {
	release, have, err := hostinfo.KernelVersion()
	if err != nil {
		return "", err
	}
	var want [2]int
	_, _ = fmt.Sscanf(minKernel, "%d.%d", &want[0], &want[1])
	if slices.Compare(have[:], want[:]) < 0 {
		return "", fmt.Errorf("this is %s", release)
	}
	return release, nil
}

// ownCapabilities are what the daemon and its shims use outside of a job's user
// namespace: mounts and namespaces; the owner of pipes and files; /dev's nodes;
// signals; id maps; looking into a job by /proc.
var ownCapabilities = map[string]int{
	"SYS_ADMIN": unix.CAP_SYS_ADMIN, "CHOWN": unix.CAP_CHOWN, "DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "FOWNER": unix.CAP_FOWNER,
	"MKNOD": unix.CAP_MKNOD, "KILL": unix.CAP_KILL, "SETUID": unix.CAP_SETUID, "SETGID": unix.CAP_SETGID, "SYS_PTRACE": unix.CAP_SYS_PTRACE,
}

func probeCapabilities(context.Context) (string, error) {
	var missing []string
	for _, name := range slices.Sorted(maps.Keys(ownCapabilities)) {
		if !native.HasCapability(ownCapabilities[name]) {
			missing = append(missing, "CAP_"+name)
		}
	}
	if missing != nil {
		return "", fmt.Errorf("lacks %s", strings.Join(missing, ", "))
	}
	return strconv.Itoa(len(ownCapabilities)) + " of them", nil
}

func (c *checker) probeMemfd(context.Context) (string, error) {
	_, end, err := c.spawn(&syscall.SysProcAttr{})
	if err != nil {
		return "", err
	}
	end()
	return "", nil
}

// probeUserSysctls tells of settings that are often suspected.
func probeUserSysctls(context.Context) (string, error) {
	var closed []string
	for name, off := range map[string]string{"kernel.unprivileged_userns_clone": "0", "kernel.apparmor_restrict_unprivileged_userns": "1"} {
		if value, err := readSysctl(name); err == nil && value == off {
			closed = append(closed, name+"="+value)
		}
	}
	if closed == nil {
		return "open", nil
	}
	slices.Sort(closed)
	return "closed: " + strings.Join(closed, ", "), nil
}

func (c *checker) probeTrees(context.Context) (string, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, c.tmp, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	return "", os.NewSyscallError("mount_setattr", unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr))
}

// probeMoveMount attaches nothing: there is no such descriptor.
func probeMoveMount(context.Context) (string, error) {
	if err := unix.MoveMount(-1, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != unix.EBADF {
		return "", os.NewSyscallError("move_mount", err)
	}
	return "", nil
}

func probeFspick(context.Context) (string, error) {
	fd, err := unix.Fspick(unix.AT_FDCWD, "/proc", unix.FSPICK_CLOEXEC)
	if err != nil {
		return "", os.NewSyscallError("fspick", err)
	}
	return "", unix.Close(fd)
}

// tryMount makes a file system that no process sees, and that goes with its
// descriptor.
func tryMount(fstype string, options map[string]string) error {
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fd)
	for name, value := range options {
		if value == "" {
			err = unix.FsconfigSetFlag(fd, name)
		} else {
			err = unix.FsconfigSetString(fd, name, value)
		}
		if err != nil {
			return fmt.Errorf("option %s: %w", name, err)
		}
	}
	return os.NewSyscallError("fsconfig", unix.FsconfigCreate(fd))
}

func probeOverlay(context.Context) (string, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", os.NewSyscallError("fsopen", err)
	}
	unix.Close(fd)
	if !hostinfo.KernelHas(5, 19) {
		return "", errors.New("before Linux 5.19, jobs cannot change files that a runtime has there")
	}
	return "", nil
}

func (c *checker) probeIDMap(context.Context) (string, error) {
	proc, end, err := c.spawn(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: id0, GidMappings: id0})
	if err != nil {
		return "", err
	}
	defer end()
	userns, err := unix.Open("/proc/"+strconv.Itoa(proc.Pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("cannot open the user namespace: %w", err)
	}
	defer unix.Close(userns)
	fd, err := unix.OpenTree(unix.AT_FDCWD, c.stateDir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)}
	return "", os.NewSyscallError("mount_setattr", unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr))
}

func probeSeccomp(context.Context) (string, error) {
	const getActionAvail = 2 // SECCOMP_GET_ACTION_AVAIL
	action := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, getActionAvail, 0, uintptr(unsafe.Pointer(&action))); errno != 0 {
		return "", os.NewSyscallError("seccomp", errno)
	}
	return "", nil
}

func probeCore(context.Context) (string, error) { return "", native.CheckCoreDumps() }

func probePidfd(context.Context) (string, error) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return "", os.NewSyscallError("pidfd_open", err)
	}
	return "", unix.Close(fd)
}

// probeCloseRange closes nothing: no descriptor has this number.
func probeCloseRange(context.Context) (string, error) {
	const last = 1<<32 - 1
	return "", os.NewSyscallError("close_range", unix.CloseRange(last, last, 0))
}

func probeOpenat2(context.Context) (string, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return "", os.NewSyscallError("openat2", err)
	}
	return "", unix.Close(fd)
}

func probeResource(context.Context) (string, error) {
	most, err := readSysctl("fs.nr_open")
	if err != nil {
		return "", err
	}
	if native.HasCapability(unix.CAP_SYS_RESOURCE) {
		return "at most " + most + " descriptors (fs.nr_open)", nil
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return "", os.NewSyscallError("getrlimit", err)
	}
	return "", fmt.Errorf("at most %d descriptors", files.Max)
}

func (c *checker) probeIntoCgroup(context.Context) (string, error) {
	if c.group.V2 == "" {
		return "", errors.New("cgroup v2 alone has it; with v1, jobs enter their cgroups themselves")
	}
	_, end, err := c.occupy()
	if err != nil {
		return "", err
	}
	end()
	return "", nil
}

// occupy starts a process in the v2 cgroup.
func (c *checker) occupy() (_ *os.Process, end func(), err error) {
	dir, err := os.Open(c.group.V2)
	if err != nil {
		return nil, nil, err
	}
	defer dir.Close()
	return c.spawn(&syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())})
}

// probeKill is the last to use the group's v2 cgroup: once killed, some kernels
// let no process in any more.
func (c *checker) probeKill(context.Context) (string, error) {
	if !c.group.Has("", "cgroup.kill") {
		return "", errors.New("no cgroup.kill")
	}
	proc, end, err := c.occupy()
	if err != nil {
		return "", err
	}
	defer end()
	if err := c.group.Kill(); err != nil {
		return "", err
	}
	state, err := proc.Wait()
	if err == nil && state.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		err = fmt.Errorf("a process in the cgroup ended with: %v", state)
	}
	return "", err
}

func (c *checker) probeFreeze(ctx context.Context) (string, error) {
	found := "freezer (v1)"
	if c.group.V2 != "" {
		found = ""
		_, end, err := c.occupy()
		if err != nil {
			return "", err
		}
		defer end()
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	if err := c.group.Freeze(ctx); err != nil {
		return "", err
	}
	return found, c.group.Thaw()
}

func (c *checker) probeSpace(context.Context) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(c.stateDir, &st); err != nil {
		return "", &os.PathError{Op: "statfs", Path: c.stateDir, Err: err}
	}
	free := int64(st.Bavail) * st.Bsize
	if free < minFree {
		return "", fmt.Errorf("%d MiB are free", free>>20)
	}
	return fmt.Sprintf("%.1f GiB are free", float64(free)/(1<<30)), nil
}

func (c *checker) probeDevice(context.Context) (string, error) {
	dev, err := cgroup.DeviceOf(c.stateDir)
	if err != nil {
		return "", err
	}
	if name, err := os.Readlink("/sys/dev/block/" + dev.String()); err == nil {
		return filepath.Base(name) + " (" + dev.String() + ")", nil
	}
	return dev.String(), nil
}

func probeMmdebstrap(context.Context) (string, error) {
	path, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return "", errors.New("it is not in PATH")
	}
	const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	if _, err := os.Stat(keyring); errors.Is(err, fs.ErrNotExist) {
		return "", errors.New("no " + keyring)
	}
	return path, nil
}

// boxTimeout bounds how long a job may take that does nothing.
const boxTimeout = time.Minute

// probeBox runs a job as a daemon would.
func (c *checker) probeBox(ctx context.Context) (found string, err error) {
	if c.groupsErr != nil {
		return "", errors.New("there are no cgroups for the sandbox")
	}
	if len(c.groups.Untried()) > 0 {
		return "missing controllers, see there", errUntried
	}
	began := time.Now()
	e, err := native.Open(native.Config{RunDir: filepath.Join(c.tmp, "run"), Hierarchy: c.groups})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	view := rootfs.HostPrograms()
	sb, err := e.Take(ctx, nil)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, sb.Discard()) }()
	run, err := native.Compile(sandbox.Plan{
		Dir: filepath.Join(c.tmp, "job"), Network: sandbox.Network{Hostname: "check"}, Mounts: view.Mounts, Links: view.Links,
		Command: "true", WorkDir: "/work", Path: "/usr/bin:/bin",
	})
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(run.Dir, 0o700); err != nil {
		return "", err
	}
	p, err := sb.Start(run)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, boxTimeout)
	defer cancel()
	select {
	case <-p.Done():
	case <-ctx.Done():
		return "", fmt.Errorf("cannot wait for the end of true: %w", ctx.Err())
	}
	end, err := jobdir.ReadExit(run.Dir, 1)
	if err != nil {
		return "", fmt.Errorf("cannot read how true ended: %w", err)
	}
	if end.Code != 0 || end.Signal != 0 || end.Failure != nil {
		return "", fmt.Errorf("true ended with status %d, signal %d", end.Code, end.Signal)
	}
	return fmt.Sprintf("in %d ms", time.Since(began).Milliseconds()), nil
}
