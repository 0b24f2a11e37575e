package escape

import (
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/testenv"
)

// attempt is one way out, as testdata/probe.c tries it.
type attempt struct {
	name string
	ref  string // what made it known
	args []string

	flags []string // of the job

	// Of the control.
	control    []string // other arguments than in the job
	prepare    string   // shell commands before it
	namespaces uintptr  // that it has for itself beside that of mounts
	chroot     bool     // it runs in one
	leak       bool     // it inherits a directory of the host

	// Why the control may fail on a host where the attempt proves nothing: missing says why.
	option  string   // kernel configuration option of the feature
	mayLack bool     // the feature has no option of its own, or can be off in spite of it
	needs   int      // capability that the control needs and root in a container may lack
	off     []string // settings, "FILE VALUE", with which the kernel refuses everyone
	amd64   bool     // x86-64 only
}

// reversed returns a word backwards, so that the arguments of an attempt that looks for
// it do not hold it.
func reversed(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return string(b)
}

func (w *world) attempts() []attempt {
	const netNS = unix.CLONE_NEWNET
	groups := testenv.Groups(w.run)
	if len(groups) == 0 {
		w.t.Fatal("the daemon has no cgroup below /sys/fs/cgroup")
	}
	own := []string{"/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/cpuset", "/sys/fs/cgroup/blkio", "/sys/fs/cgroup/unified"}
	// files returns the arguments of an attempt on these files, of a job's own cgroups or,
	// as the control, of the daemon's.
	files := func(attempt string, dirs []string, names ...string) []string {
		args := []string{attempt}
		for _, dir := range dirs {
			for _, name := range names {
				args = append(args, filepath.Join(dir, name))
			}
		}
		return args
	}
	limitFiles := []string{"memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us", "pids.max", "cpuset.cpus"}
	noticeFiles := []string{"cgroup.event_control", "memory.pressure", "memory.pressure_level", "notify_on_release"}
	noPtrace := []string{"/proc/sys/kernel/yama/ptrace_scope 3"}
	lockdown := []string{"/sys/kernel/security/lockdown [integrity]", "/sys/kernel/security/lockdown [confidentiality]"}
	return []attempt{
		// Processes of the host and of other jobs.
		{name: "ptrace a process of the host", ref: "CVE-2019-13272", args: []string{"ptrace", w.pid}, needs: unix.CAP_SYS_PTRACE, off: noPtrace},
		{name: "signal a process of the host", ref: "kill(2)", args: []string{"signal", w.pid}},
		{name: "pidfd of a process of the host", ref: "pidfd_open(2)", args: []string{"pidfd", w.pid}},
		{name: "descriptors of a process of the host", ref: "pidfd_getfd(2)", args: []string{"getfd", w.pid}, needs: unix.CAP_SYS_PTRACE, off: noPtrace},
		{name: "memory of a process of the host", ref: "process_vm_readv(2)", args: []string{"vm-read", w.pid}, option: "CROSS_MEMORY_ATTACH", needs: unix.CAP_SYS_PTRACE, off: noPtrace},
		{name: "/proc/PID/mem of the host", ref: "CVE-2012-0056", args: []string{"proc-mem", w.pid}, needs: unix.CAP_SYS_PTRACE, off: noPtrace},
		{name: "priority of a process of the host", ref: "setpriority(2)", args: []string{"priority", w.pid}},
		{name: "affinity of a process of the host", ref: "sched_getaffinity(2)", args: []string{"affinity", w.pid}},
		{name: "limits of a process of the host", ref: "prlimit(2)", args: []string{"limits-of", w.pid}},
		{name: "oom_score_adj of a process of the host", ref: "proc_pid_oom_score_adj(5)", args: []string{"oom-adj", w.pid, "500"}},
		{name: "a lower oom_score_adj of its own", ref: "proc_pid_oom_score_adj(5)", args: []string{"oom-adj", "self", "-500"}, needs: unix.CAP_SYS_RESOURCE},
		{name: "arguments and environment of others", ref: "CWE-214", args: []string{"proc-tells", reversed(w.mark)}},
		{name: "the host's files through /proc/*/root, cwd and fd", ref: "proc_pid_root(5)", args: []string{"by-proc", w.secret}},

		// Descriptors and programs of ours.
		{name: "descriptors that were left open", ref: "CVE-2024-21626", args: []string{"leaked"}, leak: true},
		{name: "overwrite the set-up's program", ref: "CVE-2019-5736", args: []string{"overwrite-exe", "1"}, flags: []string{"--init"}, control: []string{"overwrite-exe", w.pid}},

		// The root.
		{name: "chroot twice", ref: "chroot(2)", args: []string{"chroot-twice", w.secret}, chroot: true},
		{name: "pivot_root", ref: "pivot_root(2)", args: []string{"pivot"}},
		{name: "mount a tmpfs", ref: "mount(2)", args: []string{"mount", "tmpfs"}},
		{name: "mount another proc", ref: "mount_namespaces(7)", args: []string{"mount", "proc"}},
		{name: "mount sysfs", ref: "user_namespaces(7)", args: []string{"mount", "sysfs"}},
		{name: "mount cgroup2", ref: "CVE-2022-0492", args: []string{"mount", "cgroup2"}},
		{name: "mount devpts", ref: "devpts(5)", args: []string{"mount", "devpts"}},
		{name: "mount mqueue", ref: "mq_overview(7)", args: []string{"mount", "mqueue"}, option: "POSIX_MQUEUE"},
		{name: "bind the root elsewhere", ref: "CVE-2017-1002101", args: []string{"bind", "/"}},
		{name: "make /usr writable again", ref: "mount(2)", args: []string{"remount", "/usr"}, prepare: "mount --bind /usr /usr && mount -o remount,bind,ro /usr"},
		{name: "make /usr writable by mount_setattr", ref: "mount_setattr(2)", args: []string{"mount-attr", "/usr"}, prepare: "mount --bind /usr /usr && mount -o remount,bind,ro /usr"},
		{name: "unmask /proc/kallsyms", ref: "CVE-2023-28642", args: []string{"unmount", "/proc/kallsyms"}, prepare: "mount --bind /dev/null /proc/kallsyms"},
		{name: "unmount /usr", ref: "umount(2)", args: []string{"unmount", "/usr"}, prepare: "mount --bind /usr /usr"},
		{name: "fsopen", ref: "CVE-2022-0185", args: []string{"fsopen"}},
		{name: "open_tree of the root", ref: "open_tree(2)", args: []string{"open-tree"}},
		{name: "files by handle", ref: "shocker (2014); CVE-2014-3519", args: []string{"by-handle", "/etc"}, option: "FHANDLE", needs: unix.CAP_DAC_READ_SEARCH},
		{name: "a block device by mknod", ref: "mknod(2)", args: []string{"mknod", "b", "8", "0"}, needs: unix.CAP_MKNOD},
		{name: "/dev/mem by mknod", ref: "mknod(2)", args: []string{"mknod", "c", "1", "1"}, needs: unix.CAP_MKNOD},
		{name: "devices that are there", ref: "mem(4), kmsg(4)", args: []string{"any-device"}, mayLack: true},
		{name: "write to the host's /usr", ref: "hier(7)", args: []string{"openw", "/usr/lib/os-release"}},
		{name: "write to the job's own /etc", ref: "hier(7)", args: []string{"any-openw", "/etc/passwd", "/etc/ld.so.cache"}},
		{name: "a lease on a file that others open", ref: "fcntl(2), F_SETLEASE", args: []string{"lease"}, option: "FILE_LOCKING", off: []string{"/proc/sys/fs/leases-enable 0"}},
		{name: "signals for what others do in a directory", ref: "fcntl(2), F_NOTIFY", args: []string{"dnotify", "/usr"}, option: "DNOTIFY", off: []string{"/proc/sys/fs/dir-notify-enable 0"}},
		{name: "write to a device node's directory", ref: "mount(2)", args: []string{"mknod", "c", "1", "3"}, needs: unix.CAP_MKNOD},

		// Namespaces.
		{name: "a user namespace by unshare", ref: "CVE-2022-0492", args: []string{"unshare", "user"}},
		{name: "a mount namespace by unshare", ref: "CVE-2022-0185", args: []string{"unshare", "mount"}},
		{name: "a network namespace by unshare", ref: "CVE-2022-34918", args: []string{"unshare", "net"}},
		{name: "a PID namespace by unshare", ref: "CVE-2019-20794", args: []string{"unshare", "pid"}},
		{name: "an IPC namespace by unshare", ref: "unshare(2)", args: []string{"unshare", "ipc"}},
		{name: "a UTS namespace by unshare", ref: "unshare(2)", args: []string{"unshare", "uts"}},
		{name: "a cgroup namespace by unshare", ref: "cgroup_namespaces(7)", args: []string{"unshare", "cgroup"}},
		{name: "a time namespace by unshare", ref: "time_namespaces(7)", args: []string{"unshare", "time"}, option: "TIME_NS", off: []string{"/proc/sys/user/max_time_namespaces 0"}},
		{name: "a user namespace by clone", ref: "CVE-2013-1858", args: []string{"clone", "user"}},
		{name: "a user namespace by clone3", ref: "clone3(2)", args: []string{"clone3", "user"}},
		{name: "a mount namespace by clone3", ref: "clone3(2)", args: []string{"clone3", "mount"}},
		{name: "setns", ref: "setns(2)", args: []string{"setns", "/proc/1/ns/net"}, control: []string{"setns", "/proc/self/ns/net"}},
		{name: "another map of user ids", ref: "CVE-2018-18955", args: []string{"uid-map", "0"}, control: []string{"uid-map", "0", "new"}},
		{name: "an id beyond its own", ref: "user_namespaces(7)", args: []string{"foreign-uid", "70000"}},
		{name: "capabilities that were dropped", ref: "capabilities(7)", args: []string{"regain"}},
		{name: "ambient capabilities", ref: "CVE-2022-24769", args: []string{"ambient"}},
		{name: "a setuid program of its own", ref: "execve(2)", args: []string{"setuid-gain"}},
		{name: "a program in a memfd", ref: "memfd_create(2)", args: []string{"memfd-exec"}},
		{name: "core dumps", ref: "core(5); cprm.limit in fs/coredump.c", args: []string{"core-limit"}, prepare: "ulimit -c unlimited", needs: unix.CAP_SYS_RESOURCE},

		// Kernel settings that have the kernel run a program, or end the machine.
		{name: "release_agent", ref: "CVE-2022-0492", args: []string{"release-agent"}, control: []string{"release-agent-host"}, mayLack: true},
		{name: "core_pattern", ref: "CVE-2022-0811; CVE-2025-31133", args: []string{"openw", "/proc/sys/kernel/core_pattern"}},
		{name: "modprobe", ref: "CVE-2022-27666", args: []string{"openw", "/proc/sys/kernel/modprobe"}, option: "MODULES"},
		{name: "uevent_helper", ref: "CVE-2022-0492 tells of its like", args: []string{"openw", "/sys/kernel/uevent_helper"}, option: "UEVENT_HELPER"},
		{name: "binfmt_misc", ref: "binfmt_misc, Linux admin guide", args: []string{"binfmt"}, option: "BINFMT_MISC"},
		{name: "sysrq-trigger", ref: "CVE-2025-52565", args: []string{"openw", "/proc/sysrq-trigger"}, option: "MAGIC_SYSRQ"},
		{name: "the last process number", ref: "pid_namespaces(7)", args: []string{"openw", "/proc/sys/kernel/ns_last_pid"}, option: "CHECKPOINT_RESTORE"},
		{name: "drop_caches", ref: "proc_sys_vm(5)", args: []string{"openw", "/proc/sys/vm/drop_caches"}},
		{name: "affinity of interrupts", ref: "proc_irq(5)", args: []string{"openw", "/proc/irq/default_smp_affinity"}, mayLack: true},
		{name: "cgroup.procs of other cgroups", ref: "CVE-2021-4197", args: []string{"cgroup-procs"}},
		{name: "its own limits", ref: "cgroups(7)", args: files("any-openw", own, limitFiles...), control: files("any-openw", groups, limitFiles...)},
		{name: "notices of its own cgroup", ref: "cgroup-v1/memory.rst; psi.rst", args: files("any-openw", own, noticeFiles...), control: files("any-openw", groups, noticeFiles...)},
		{name: "kill and freeze by its own cgroup", ref: "cgroup-v2.rst", args: files("any-openw", own, "cgroup.kill", "cgroup.freeze"), control: files("any-openw", groups, "cgroup.kill", "cgroup.freeze"), mayLack: true},
		{name: "a cgroup below its own", ref: "CVE-2022-0492", args: append([]string{"own-cgroup"}, own...), control: append([]string{"own-cgroup"}, groups...)},
		{name: "cgroups of others", ref: "cgroup_namespaces(7)", args: []string{"other-cgroups", "/sys/fs/cgroup"}},
		{name: "where its cgroup is on the host", ref: "cgroup_namespaces(7)", args: []string{"tells", "/proc/self/mountinfo", reversed(filepath.Base(groups[0]))},
			prepare: "mkdir group; mount --bind " + groups[0] + " group"},
		{name: "make /sys writable again", ref: "mount(2)", args: []string{"remount", "/sys"}, prepare: "mount --bind /sys /sys && mount -o remount,bind,ro /sys"},
		{name: "load a module", ref: "finit_module(2)", args: []string{"module"}, option: "MODULES", needs: unix.CAP_SYS_MODULE, off: []string{"/proc/sys/kernel/modules_disabled 1"}},
		{name: "unload a module", ref: "delete_module(2)", args: []string{"unload"}, option: "MODULE_UNLOAD", needs: unix.CAP_SYS_MODULE, off: []string{"/proc/sys/kernel/modules_disabled 1"}},
		{name: "kexec", ref: "CVE-2015-7837", args: []string{"kexec"}, option: "KEXEC", needs: unix.CAP_SYS_BOOT, off: append([]string{"/proc/sys/kernel/kexec_load_disabled 1"}, lockdown...)},
		{name: "reboot", ref: "reboot(2)", args: []string{"reboot"}, needs: unix.CAP_SYS_BOOT},
		{name: "swapon", ref: "swapon(2)", args: []string{"swapon"}, option: "SWAP"},
		{name: "acct", ref: "acct(2)", args: []string{"acct"}, option: "BSD_PROCESS_ACCT", needs: unix.CAP_SYS_PACCT},
		{name: "set the clock", ref: "settimeofday(2)", args: []string{"set-time"}, needs: unix.CAP_SYS_TIME},
		{name: "adjust the clock", ref: "adjtimex(2)", args: []string{"adjust-time"}, needs: unix.CAP_SYS_TIME},
		{name: "quotactl", ref: "quotactl(2)", args: []string{"quota"}, option: "QUOTACTL"},
		{name: "write to any file of the kernel's", ref: "psi(7); proc(5)", args: []string{"open-kernel", ""}},
		{name: "write to the kernel's files that are everybody's", ref: "Documentation/accounting/psi.rst", args: []string{"open-kernel", "/proc/sys"}},
		{name: "rename the machine", ref: "sethostname(2)", args: []string{"hostname"}, namespaces: unix.CLONE_NEWUTS},

		// What the kernel tells.
		{name: "/proc/kcore", ref: "proc_kcore(5)", args: []string{"readable", "/proc/kcore"}, option: "PROC_KCORE", needs: unix.CAP_SYS_RAWIO, off: lockdown},
		{name: "/proc/kallsyms", ref: "proc_kallsyms(5)", args: []string{"kallsyms"}, option: "KALLSYMS", needs: unix.CAP_SYSLOG, off: []string{"/proc/sys/kernel/kptr_restrict 2"}},
		{name: "/proc/timer_list", ref: "CVE-2017-5967", args: []string{"readable", "/proc/timer_list"}, mayLack: true},
		{name: "/proc/keys", ref: "keyrings(7)", args: []string{"readable", "/proc/key-users"}, option: "KEYS"},
		{name: "the kernel's log", ref: "syslog(2)", args: []string{"dmesg"}, option: "PRINTK", needs: unix.CAP_SYSLOG},
		{name: "the rest of /sys", ref: "CVE-2018-10892; CVE-2020-8694", args: []string{"sys-beyond", "/sys/fs/cgroup", "/sys/devices/system/cpu", "/sys/devices/system/memory",
			"/sys/devices/system/node", "/sys/kernel/mm/hugepages", "/sys/kernel/mm/transparent_hugepage", "/sys/devices/virtual/net/lo"}},
		{name: "what only root may read in /sys", ref: "ppin, ABI/stable/sysfs-devices-system-cpu", args: []string{"sys-roots"}},
		{name: "take a processor away", ref: "cpu_hotplug.rst", args: []string{"openw", "/sys/devices/system/cpu/cpu1/online"}, mayLack: true},
		{name: "forge an event of a device", ref: "CVE-2009-1185; sysfs(5), uevent", args: []string{"openw", "/sys/devices/system/cpu/cpu0/uevent"}},
		{name: "settings of huge pages", ref: "transhuge.rst", args: []string{"openw", "/sys/kernel/mm/transparent_hugepage/enabled"}, option: "TRANSPARENT_HUGEPAGE"},
		{name: "make a part of /sys writable again", ref: "mount(2)", args: []string{"remount", "/sys/devices/system/cpu"},
			prepare: "mount --bind /sys/devices/system/cpu /sys/devices/system/cpu && mount -o remount,bind,ro /sys/devices/system/cpu"},

		// Interfaces of the kernel with a record.
		{name: "bpf", ref: "CVE-2021-3490", args: []string{"bpf"}, option: "BPF_SYSCALL"},
		{name: "perf_event_open", ref: "CVE-2013-2094", args: []string{"perf"}, option: "PERF_EVENTS"},
		{name: "userfaultfd", ref: "userfaultfd(2)", args: []string{"uffd"}, option: "USERFAULTFD"},
		{name: "io_uring", ref: "CVE-2022-29582", args: []string{"uring"}, option: "IO_URING", off: []string{"/proc/sys/kernel/io_uring_disabled 2"}},
		{name: "asynchronous I/O out of the host's pool", ref: "io_setup(2), aio-max-nr", args: []string{"aio"}, option: "AIO"},
		{name: "add_key", ref: "CVE-2016-0728", args: []string{"add-key"}, option: "KEYS"},
		{name: "keyctl", ref: "keyctl(2)", args: []string{"keyring"}, option: "KEYS"},
		{name: "request_key", ref: "CVE-2015-7872", args: []string{"request-key"}, option: "KEYS"},
		{name: "fanotify", ref: "fanotify_init(2)", args: []string{"fanotify"}, option: "FANOTIFY"},
		{name: "READ_IMPLIES_EXEC", ref: "CVE-2009-1895", args: []string{"personality"}},
		{name: "type into a terminal", ref: "CVE-2017-5226", args: []string{"terminal", "TIOCSTI"}, mayLack: true},
		{name: "a line discipline", ref: "CVE-2017-2636", args: []string{"terminal", "TIOCSETD"}},
		{name: "system calls of i386", ref: "seccomp(2), on architectures", args: []string{"int80"}, mayLack: true, amd64: true},
		{name: "system calls of x32", ref: "CVE-2014-0038", args: []string{"x32"}, mayLack: true, amd64: true},
		{name: "a call swapped behind the filter", ref: "seccomp(2), Linux before 4.8", args: []string{"swap-call"}, option: "USERFAULTFD", needs: unix.CAP_SYS_PTRACE, off: noPtrace, amd64: true},
		{name: "I/O ports by ioperm", ref: "ioperm(2)", args: []string{"ioperm"}, option: "X86_IOPL_IOPERM", needs: unix.CAP_SYS_RAWIO, off: lockdown, amd64: true},
		{name: "I/O ports by iopl", ref: "iopl(2)", args: []string{"iopl"}, option: "X86_IOPL_IOPERM", needs: unix.CAP_SYS_RAWIO, off: lockdown, amd64: true},
		{name: "modify_ldt", ref: "CVE-2017-17053", args: []string{"ldt"}, option: "MODIFY_LDT_SYSCALL", amd64: true},

		// Sockets and IPC.
		{name: "an abstract socket of the host", ref: "CVE-2020-15257", args: []string{"abstract", w.name[1:]}},
		{name: "packet sockets", ref: "CVE-2017-7308", args: []string{"socket", strconv.Itoa(unix.AF_PACKET), "3", "0"}, namespaces: netNS, option: "PACKET"},
		{name: "raw sockets", ref: "CVE-2017-17712", args: []string{"socket", "2", "3", "1"}, namespaces: netNS},
		{name: "vsock", ref: "CVE-2021-26708", args: []string{"socket", strconv.Itoa(unix.AF_VSOCK), "1", "0"}, option: "VSOCKETS"},
		{name: "alg sockets", ref: "CVE-2019-8912", args: []string{"socket", strconv.Itoa(unix.AF_ALG), "5", "0"}, mayLack: true},
		{name: "all odd families of sockets", ref: "CVE-2021-3609", args: []string{"odd-sockets"}, namespaces: netNS, option: "PACKET"},
		{name: "netlink: packet filter", ref: "CVE-2024-1086", args: []string{"socket", "16", "3", "12"}, namespaces: netNS, option: "NETFILTER_NETLINK"},
		{name: "netlink: xfrm", ref: "CVE-2017-16939", args: []string{"socket", "16", "3", "6"}, namespaces: netNS, option: "XFRM_USER"},
		{name: "netlink: uevents", ref: "CVE-2009-1185", args: []string{"socket", "16", "2", "15"}, namespaces: netNS},
		{name: "netlink: audit", ref: "netlink(7)", args: []string{"socket", "16", "3", "9"}, option: "AUDIT"},
		{name: "netlink: a new address", ref: "rtnetlink(7)", args: []string{"netlink-address"}, namespaces: netNS},
		{name: "System V shared memory of the host", ref: "shmget(2)", args: []string{"sysv-shm", w.key}, option: "SYSVIPC"},
		{name: "System V semaphores of the host", ref: "semget(2)", args: []string{"sysv-sem", w.key}, option: "SYSVIPC"},
		{name: "POSIX shared memory of the host", ref: "shm_overview(7)", args: []string{"shm", w.name}},
		{name: "a message queue of the host", ref: "mq_overview(7)", args: []string{"mq", w.name}, option: "POSIX_MQUEUE"},
	}
}

// TestEscapes runs each attempt in a job and as a control.
func TestEscapes(t *testing.T) {
	w := newWorld(t)
	// The neighbour has the same things as the host, under the same names.
	w.start(t, "held", "--env=MARK="+w.mark, "--upload="+probe(), "sh", "-c", `sleep infinity | /work/probe "$@"`, "sh", "hold", w.key, w.name, w.mark)
	for _, a := range w.attempts() {
		t.Run(a.name, func(t *testing.T) {
			if a.amd64 && runtime.GOARCH != "amd64" {
				t.Skipf("requires amd64, not %s", runtime.GOARCH)
			}
			args := a.control
			if args == nil {
				args = a.args
			}
			outside, lacking := control(t, a, args), ""
			if outside.status != through {
				var err error
				if lacking, err = thisHost.missing(a, outside); err != nil {
					t.Errorf("the control does not get through (%s): %v: %v", a.ref, err, outside)
				}
			}
			if r := w.try(t, a.flags, a.args...); r.status != refused && r.status != absent {
				t.Errorf("a way out (%s): %v", a.ref, r)
			}
			if lacking != "" && !t.Failed() {
				t.Skipf("proves nothing here: %s: %v", lacking, outside)
			}
		})
	}
	if err := w.victim.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the victim on the host is gone: %v", err)
	}
}
