package escape

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
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
	mayLack    bool     // not every kernel has this; test/vm/suite runs it on one that has
	needs      int      // the capability that the control needs, which root in a container may lack
	amd64      bool     // there is no such thing on other machines
}

func (w *world) attempts() []attempt {
	word := []byte(w.mark)
	slices.Reverse(word)
	backwards := string(word)
	const netNS = unix.CLONE_NEWNET
	return []attempt{
		// Processes of the host and of other jobs.
		{name: "ptrace a process of the host", ref: "CVE-2019-13272", args: []string{"ptrace", w.pid}},
		{name: "signal a process of the host", ref: "kill(2)", args: []string{"signal", w.pid}},
		{name: "pidfd of a process of the host", ref: "pidfd_open(2)", args: []string{"pidfd", w.pid}},
		{name: "descriptors of a process of the host", ref: "pidfd_getfd(2)", args: []string{"getfd", w.pid}},
		{name: "memory of a process of the host", ref: "process_vm_readv(2)", args: []string{"vm-read", w.pid}},
		{name: "/proc/PID/mem of the host", ref: "CVE-2012-0056", args: []string{"proc-mem", w.pid}},
		{name: "priority of a process of the host", ref: "setpriority(2)", args: []string{"priority", w.pid}},
		{name: "affinity of a process of the host", ref: "sched_getaffinity(2)", args: []string{"affinity", w.pid}},
		{name: "limits of a process of the host", ref: "prlimit(2)", args: []string{"limits-of", w.pid}},
		{name: "oom_score_adj of a process of the host", ref: "proc_pid_oom_score_adj(5)", args: []string{"oom-adj", w.pid, "500"}},
		{name: "a lower oom_score_adj of its own", ref: "proc_pid_oom_score_adj(5)", args: []string{"oom-adj", "self", "-500"}, needs: unix.CAP_SYS_RESOURCE},
		{name: "arguments and environment of others", ref: "CWE-214", args: []string{"proc-tells", backwards}},
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
		{name: "mount mqueue", ref: "mq_overview(7)", args: []string{"mount", "mqueue"}},
		{name: "bind the root elsewhere", ref: "CVE-2017-1002101", args: []string{"bind", "/"}},
		{name: "make /usr writable again", ref: "mount(2)", args: []string{"remount", "/usr"}, prepare: "mount --bind /usr /usr && mount -o remount,bind,ro /usr"},
		{name: "make /usr writable by mount_setattr", ref: "mount_setattr(2)", args: []string{"mount-attr", "/usr"}, prepare: "mount --bind /usr /usr && mount -o remount,bind,ro /usr"},
		{name: "unmask /proc/kallsyms", ref: "CVE-2023-28642", args: []string{"unmount", "/proc/kallsyms"}, prepare: "mount --bind /dev/null /proc/kallsyms"},
		{name: "unmount /usr", ref: "umount(2)", args: []string{"unmount", "/usr"}, prepare: "mount --bind /usr /usr"},
		{name: "fsopen", ref: "CVE-2022-0185", args: []string{"fsopen"}},
		{name: "open_tree of the root", ref: "open_tree(2)", args: []string{"open-tree"}},
		{name: "files by handle", ref: "shocker (2014); CVE-2014-3519", args: []string{"by-handle", "/etc"}},
		{name: "a block device by mknod", ref: "mknod(2)", args: []string{"mknod", "b", "8", "0"}},
		{name: "/dev/mem by mknod", ref: "mknod(2)", args: []string{"mknod", "c", "1", "1"}},
		{name: "devices that are there", ref: "mem(4), kmsg(4)", args: []string{"any-device"}},
		{name: "write to the host's /usr", ref: "hier(7)", args: []string{"openw", "/usr/lib/os-release"}},
		{name: "write to the job's own /etc", ref: "hier(7)", args: []string{"any-openw", "/etc/passwd", "/etc/ld.so.cache"}},
		{name: "a lease on a file that others open", ref: "fcntl(2), F_SETLEASE", args: []string{"lease"}},
		{name: "signals for what others do in a directory", ref: "fcntl(2), F_NOTIFY", args: []string{"dnotify", "/usr"}, mayLack: true},
		{name: "write to a device node's directory", ref: "mount(2)", args: []string{"mknod", "c", "1", "3"}},

		// Namespaces.
		{name: "a user namespace by unshare", ref: "CVE-2022-0492", args: []string{"unshare", "user"}},
		{name: "a mount namespace by unshare", ref: "CVE-2022-0185", args: []string{"unshare", "mount"}},
		{name: "a network namespace by unshare", ref: "CVE-2022-34918", args: []string{"unshare", "net"}},
		{name: "a PID namespace by unshare", ref: "CVE-2019-20794", args: []string{"unshare", "pid"}},
		{name: "an IPC namespace by unshare", ref: "unshare(2)", args: []string{"unshare", "ipc"}},
		{name: "a UTS namespace by unshare", ref: "unshare(2)", args: []string{"unshare", "uts"}},
		{name: "a cgroup namespace by unshare", ref: "cgroup_namespaces(7)", args: []string{"unshare", "cgroup"}},
		{name: "a time namespace by unshare", ref: "time_namespaces(7)", args: []string{"unshare", "time"}, mayLack: true},
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
		{name: "core dumps", ref: "core(5); cprm.limit in fs/coredump.c", args: []string{"core-limit"}, prepare: "[ $(ulimit -Hc) = unlimited ]"},

		// Kernel settings that have the kernel run a program, or end the machine.
		{name: "release_agent", ref: "CVE-2022-0492", args: []string{"release-agent"}, control: []string{"release-agent-host"}, mayLack: true},
		{name: "core_pattern", ref: "CVE-2022-0811; CVE-2025-31133", args: []string{"openw", "/proc/sys/kernel/core_pattern"}},
		{name: "modprobe", ref: "CVE-2022-27666", args: []string{"openw", "/proc/sys/kernel/modprobe"}, mayLack: true},
		{name: "uevent_helper", ref: "CVE-2022-0492 tells of its like", args: []string{"openw", "/sys/kernel/uevent_helper"}, mayLack: true},
		{name: "binfmt_misc", ref: "binfmt_misc, Linux admin guide", args: []string{"binfmt"}, mayLack: true},
		{name: "sysrq-trigger", ref: "CVE-2025-52565", args: []string{"openw", "/proc/sysrq-trigger"}, mayLack: true},
		{name: "the last process number", ref: "pid_namespaces(7)", args: []string{"openw", "/proc/sys/kernel/ns_last_pid"}, mayLack: true},
		{name: "drop_caches", ref: "proc_sys_vm(5)", args: []string{"openw", "/proc/sys/vm/drop_caches"}},
		{name: "affinity of interrupts", ref: "proc_irq(5)", args: []string{"openw", "/proc/irq/default_smp_affinity"}, mayLack: true},
		{name: "cgroup.procs of other cgroups", ref: "CVE-2021-4197", args: []string{"cgroup-procs"}},
		{name: "load a module", ref: "finit_module(2)", args: []string{"module"}, mayLack: true},
		{name: "unload a module", ref: "delete_module(2)", args: []string{"unload"}, mayLack: true},
		{name: "kexec", ref: "CVE-2015-7837", args: []string{"kexec"}, mayLack: true},
		{name: "reboot", ref: "reboot(2)", args: []string{"reboot"}},
		{name: "swapon", ref: "swapon(2)", args: []string{"swapon"}},
		{name: "acct", ref: "acct(2)", args: []string{"acct"}},
		{name: "set the clock", ref: "settimeofday(2)", args: []string{"set-time"}},
		{name: "adjust the clock", ref: "adjtimex(2)", args: []string{"adjust-time"}},
		{name: "quotactl", ref: "quotactl(2)", args: []string{"quota"}},
		{name: "write to any file of the kernel's", ref: "psi(7); proc(5)", args: []string{"open-kernel", ""}},
		{name: "write to the kernel's files that are everybody's", ref: "Documentation/accounting/psi.rst", args: []string{"open-kernel", "/proc/sys"}},
		{name: "rename the machine", ref: "sethostname(2)", args: []string{"hostname"}, namespaces: unix.CLONE_NEWUTS},

		// What the kernel tells.
		{name: "/proc/kcore", ref: "proc_kcore(5)", args: []string{"readable", "/proc/kcore"}, mayLack: true},
		{name: "/proc/kallsyms", ref: "proc_kallsyms(5)", args: []string{"kallsyms"}},
		{name: "/proc/timer_list", ref: "CVE-2017-5967", args: []string{"readable", "/proc/timer_list"}, mayLack: true},
		{name: "/proc/keys", ref: "keyrings(7)", args: []string{"readable", "/proc/key-users"}, mayLack: true},
		{name: "the kernel's log", ref: "syslog(2)", args: []string{"dmesg"}},
		{name: "/sys", ref: "CVE-2018-10892", args: []string{"nonempty", "/sys/kernel"}},

		// Interfaces of the kernel with a record.
		{name: "bpf", ref: "CVE-2021-3490", args: []string{"bpf"}},
		{name: "perf_event_open", ref: "CVE-2013-2094", args: []string{"perf"}},
		{name: "userfaultfd", ref: "userfaultfd(2)", args: []string{"uffd"}, mayLack: true},
		{name: "io_uring", ref: "CVE-2022-29582", args: []string{"uring"}, mayLack: true},
		{name: "asynchronous I/O out of the host's pool", ref: "io_setup(2), aio-max-nr", args: []string{"aio"}, mayLack: true},
		{name: "add_key", ref: "CVE-2016-0728", args: []string{"add-key"}, mayLack: true},
		{name: "keyctl", ref: "keyctl(2)", args: []string{"keyring"}, mayLack: true},
		{name: "request_key", ref: "CVE-2015-7872", args: []string{"request-key"}, mayLack: true},
		{name: "fanotify", ref: "fanotify_init(2)", args: []string{"fanotify"}, mayLack: true},
		{name: "READ_IMPLIES_EXEC", ref: "CVE-2009-1895", args: []string{"personality"}},
		{name: "type into a terminal", ref: "CVE-2017-5226", args: []string{"terminal", "TIOCSTI"}, mayLack: true},
		{name: "a line discipline", ref: "CVE-2017-2636", args: []string{"terminal", "TIOCSETD"}},
		{name: "system calls of i386", ref: "seccomp(2), on architectures", args: []string{"int80"}, mayLack: true, amd64: true},
		{name: "system calls of x32", ref: "CVE-2014-0038", args: []string{"x32"}, mayLack: true, amd64: true},
		{name: "a call swapped behind the filter", ref: "seccomp(2), Linux before 4.8", args: []string{"swap-call"}, amd64: true},
		{name: "I/O ports by ioperm", ref: "ioperm(2)", args: []string{"ioperm"}, mayLack: true, amd64: true},
		{name: "I/O ports by iopl", ref: "iopl(2)", args: []string{"iopl"}, mayLack: true, amd64: true},
		{name: "modify_ldt", ref: "CVE-2017-17053", args: []string{"ldt"}, amd64: true},

		// Sockets and IPC.
		{name: "an abstract socket of the host", ref: "CVE-2020-15257", args: []string{"abstract", w.name[1:]}},
		{name: "packet sockets", ref: "CVE-2017-7308", args: []string{"socket", strconv.Itoa(unix.AF_PACKET), "3", "0"}, namespaces: netNS},
		{name: "raw sockets", ref: "CVE-2017-17712", args: []string{"socket", "2", "3", "1"}, namespaces: netNS},
		{name: "vsock", ref: "CVE-2021-26708", args: []string{"socket", strconv.Itoa(unix.AF_VSOCK), "1", "0"}, mayLack: true},
		{name: "alg sockets", ref: "CVE-2019-8912", args: []string{"socket", strconv.Itoa(unix.AF_ALG), "5", "0"}, mayLack: true},
		{name: "all odd families of sockets", ref: "CVE-2021-3609", args: []string{"odd-sockets"}, namespaces: netNS},
		{name: "netlink: packet filter", ref: "CVE-2024-1086", args: []string{"socket", "16", "3", "12"}, namespaces: netNS, mayLack: true},
		{name: "netlink: xfrm", ref: "CVE-2017-16939", args: []string{"socket", "16", "3", "6"}, namespaces: netNS, mayLack: true},
		{name: "netlink: uevents", ref: "CVE-2009-1185", args: []string{"socket", "16", "2", "15"}, namespaces: netNS},
		{name: "netlink: audit", ref: "netlink(7)", args: []string{"socket", "16", "3", "9"}, mayLack: true},
		{name: "netlink: a new address", ref: "rtnetlink(7)", args: []string{"netlink-address"}, namespaces: netNS},
		{name: "System V shared memory of the host", ref: "shmget(2)", args: []string{"sysv-shm", w.key}},
		{name: "System V semaphores of the host", ref: "semget(2)", args: []string{"sysv-sem", w.key}},
		{name: "POSIX shared memory of the host", ref: "shm_overview(7)", args: []string{"shm", w.name}},
		{name: "a message queue of the host", ref: "mq_overview(7)", args: []string{"mq", w.name}},
	}
}

// TestEscapes runs each attempt in a job and as a control.
func TestEscapes(t *testing.T) {
	w := newWorld(t)
	// The neighbour has the same things as the host, under the same names.
	w.start(t, "held", "--env=MARK="+w.mark, "--upload="+probe(), "sh", "-c", `sleep infinity | /work/probe "$@"`, "sh", "hold", w.key, w.name, w.mark)
	lacking := 0
	attempts := w.attempts()
	for _, a := range attempts {
		t.Run(a.name, func(t *testing.T) {
			if a.amd64 && runtime.GOARCH != "amd64" {
				t.Logf("not of %s", runtime.GOARCH)
				return
			}
			args := a.control
			if args == nil {
				args = a.args
			}
			switch r := control(t, a, args); {
			case r.status == through:
			case r.status == absent && a.mayLack:
				lacking++
				t.Logf("this kernel has none, so this proves nothing here: %v", r)
			case r.status == refused && a.needs != 0 && !mayUse(a.needs):
				lacking++
				t.Logf("root lacks capability %d here, so this proves nothing: %v", a.needs, r)
			default:
				t.Errorf("the attempt does not get through outside of a job either (%s): %v", a.ref, r)
			}
			if r := w.try(t, a.flags, a.args...); r.status != refused && r.status != absent {
				t.Errorf("a way out (%s): %v", a.ref, r)
			}
		})
	}
	t.Logf("%d attempts, of which the kernel lacks what %d try", len(attempts), lacking)
	if err := w.victim.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the victim on the host is gone: %v", err)
	}
}

func mayUse(capability int) bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	_, mask, _ := strings.Cut(string(status), "\nCapEff:\t")
	mask, _, _ = strings.Cut(mask, "\n")
	caps, err := strconv.ParseUint(mask, 16, 64)
	return err != nil || caps&(1<<capability) != 0
}
