package setup

import (
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// Slots that programs use.
const (
	slotSocket = iota + 1 // the first process's end of the go socket
	slotDev               // the tree for /dev
	slotLo                // a socket to bring the loopback interface up
	slotStdin
	slotRuleset       // of Landlock
	slotRule          // and the one behind it
	_                 //
	slotMaster        // the job's terminal, two ends
	slotTerminal      //
	slotListener      // of the system call filter
	slotPath          // a directory or file of the job's
	slotTask     = 12 // the tasks files of the v1 hierarchies
	slotTree     = 20 // the trees of /sys, then of the job
	maxTasks     = slotTree - slotTask

	_ = uint(maxSlots - slotTree - 1 - protocol.MaxTrees) // all trees, and standard input, have a slot
)

const (
	ttyGroup = 5  // Debian's and everybody's gid of tty, for devpts
	lastSig  = 64 // _NSIG, signal(7)
	maxCap   = 63 // capabilities are 64 bits, capget(2)

	maxTerminals = 128 // of the 3072 that all on the host have outside of the first devpts (kernel.pty.max)
)

// sandboxProgram is the first half of the set-up, which needs no job: it ends with
// the process in its own empty root, waiting.
func sandboxProgram(p *program, sandbox *protocol.Sandbox, sys []sysMount) {
	enterCgroups(p, sandbox.Cgroup.TaskFiles())
	p.add("wait for the id maps", op{kind: opReceive})
	openNetDevices(p, sandbox, slotTree+len(sys))
	mountRoot(p, sandbox)
	becomeRoot(p)
	bringLoopbackUp(p)
	buildRoot(p)
	mountProc(p)
	openNetwork(p, sandbox)
	mountDev(p, sandbox)
	mountSys(p, sandbox, sys)
	leaveHost(p)
	makeRuleset(p)
	p.call("say that the sandbox is ready", unix.SYS_WRITE, slotSocket, p.str("r"), 1).slot(0)
	p.add("wait for the job", op{kind: opReceive, save: slotTree})
}

// jobProgram is the second half: it ends in execve. The job's standard input, if it
// has one, comes behind the trees. Before the first look-up of a path that the caller
// chose, all descriptors of the host are closed (path.go).
func jobProgram(p *program, sandbox *protocol.Sandbox, run *protocol.Run) {
	nameHost(p, run.Hostname)
	if run.Nested {
		unmaskProc(p, sandbox)
	}
	if run.OwnDev {
		makeOwnDev(p)
	}
	attachTrees(p, run)
	connectInput(p, run)
	if run.MergeOutput {
		p.call("merge standard error into standard output", unix.SYS_DUP3, 1, 2, 0)
	}
	leadSession(p, run)
	coverFiles(p, run)
	if run.Home != "" {
		p.walkAs(opHome, "make "+run.Home, run.Home, slotPath, run.UID, run.GID)
	}
	enterWorkDir(p, run, run.UID, run.GID)
	resetSignals(p)
	limitResources(p, run)
	dropPrivileges(p, run)
	checkPaths(p)
	filterCalls(p, run)
	executeCommand(p, run)
}

// enterCgroups joins the cgroups of v1 hierarchies; clone3 itself has put the
// process into that of the v2 hierarchy. Writing 0 to tasks moves the writing
// thread and spares the lock over all thread groups that a pid in cgroup.procs
// takes, which stalls for 10 ms after idle.
func enterCgroups(p *program, tasks []string) {
	enterTasks(p, tasks)
	// From inside, so that the root of the namespace is the job's cgroup and
	// not the shim's (cgroup_namespaces(7)).
	p.call("unshare the cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
}

func enterTasks(p *program, files []string) {
	zero := p.str("0")
	for i := range files {
		p.call("enter cgroup "+files[i], unix.SYS_WRITE, uintptr(slotTask+i), zero, 1).slot(0)
		p.call("close tasks", unix.SYS_CLOSE, uintptr(slotTask+i)).slot(0)
	}
}

// mountRoot mounts the job's root, a private tmpfs of limited size, and enters
// it. The process still has the host's ids then, without privileges there, and
// so finds its way to directories that only the host's root may enter.
func mountRoot(p *program, sandbox *protocol.Sandbox) {
	p.call("mount the root file system", unix.SYS_MOUNT, p.str("joblet"), p.str(sandbox.NewRoot), p.str("tmpfs"), unix.MS_NOSUID|unix.MS_NODEV,
		p.str("mode=0755,uid=0,gid=0,size="+decimal(sandbox.DiskBytes)+",nr_inodes="+decimal(inodes(sandbox.DiskBytes))))
	p.call("enter the root file system", unix.SYS_CHDIR, p.str(sandbox.NewRoot))
}

// inodes is how many files a tmpfs of so many bytes may have. It bounds what empty
// ones cost: an inode takes about 1 KiB of kernel memory that size does not
// count.
func inodes(bytes int64) int64 { return max(bytes/4096, 4096) }

// becomeRoot makes the process uid and gid 0 of its user namespace, now that
// the shim has written the maps.
func becomeRoot(p *program) {
	setIDs(p, 0, 0)
	guardProcess(p)
}

// setIDs gives the process these ids and no supplementary groups.
func setIDs(p *program, uid, gid uint32) {
	p.call("setgroups", unix.SYS_SETGROUPS, 0, 0)
	p.call("setresgid", unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
	p.call("setresuid", unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
}

// guardProcess has the kernel kill the process when the shim ends, and keeps the
// job's other processes from tracing it and from looking into its memory, which is a
// copy of the shim's. A change of ids takes both back: the signal always, and the
// other where fs.suid_dumpable is not 0 (commit_creds in kernel/cred.c). So this
// follows each change.
func guardProcess(p *program) {
	p.call("prctl PR_SET_PDEATHSIG", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL))
	hideMemory(p)
}

func hideMemory(p *program) {
	p.call("prctl PR_SET_DUMPABLE", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
}

func nameHost(p *program, name string) {
	p.call("sethostname", unix.SYS_SETHOSTNAME, p.str(name), uintptr(len(name)))
}

func bringLoopbackUp(p *program) {
	var ifr struct { // struct ifreq (netdevice(7))
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(ifr.name[:], "lo")
	ifr.flags = unix.IFF_UP | unix.IFF_RUNNING
	p.call("open a socket for lo", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0).into(slotLo)
	p.call("bring lo up", unix.SYS_IOCTL, slotLo, unix.SIOCSIFFLAGS, put(p, ifr)).slot(0)
	p.call("close the socket for lo", unix.SYS_CLOSE, slotLo).slot(0)
}

// openNetwork lets every user of the job do in its network namespace what takes a
// privilege on a host: serve on ports below 1024 and send echo requests (ping(8),
// icmp(7)). The settings are written before /proc/sys is frozen. Without them the job
// has fewer ways, so a kernel that refuses them does not end the start.
func openNetwork(p *program, sandbox *protocol.Sandbox) {
	p.shared.slots[slotPath] = ^uintptr(0) // no descriptor, should open fail
	for _, s := range []struct{ file, value string }{
		{"proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
		{"proc/sys/net/ipv4/ping_group_range", "0 " + decimal(sandbox.IDCount-1)}, // groups of the job, whatever others there are
	} {
		p.call("open /"+s.file, unix.SYS_OPENAT, atFDCWD, p.str(s.file), unix.O_WRONLY|unix.O_CLOEXEC, 0).into(slotPath).may(allowAll)
		p.call("write /"+s.file, unix.SYS_WRITE, slotPath, p.str(s.value), uintptr(len(s.value))).slot(0).may(allowAll)
		p.call("close /"+s.file, unix.SYS_CLOSE, slotPath).slot(0).may(allowAll)
	}
}

func (p *program) mount(source, target, fstype string, flags uintptr, data string) {
	p.call("mount "+fstype+" on "+"/"+target, unix.SYS_MOUNT, p.str(source), p.str(target), p.str(fstype), flags, p.str(data))
}

func (p *program) mkdir(dir string, mode uintptr) *op {
	return p.call("mkdir "+dir, unix.SYS_MKDIRAT, atFDCWD, p.str(dir), mode)
}

func (p *program) symlink(target, name string) {
	p.call("symlink "+name, unix.SYS_SYMLINKAT, p.str(target), atFDCWD, p.str(name))
}

var rootDirs = []struct {
	name string
	mode uintptr
}{
	{"proc", 0o555}, {"sys", 0o555}, {"dev", 0o755}, {"tmp", 0o1777}, {"work", 0o755}, {"run", 0o755}, {"root", 0o700},
	{"home", 0o755}, {"etc", 0o755}, {"usr", 0o755}, {"var", 0o755}, {"var/tmp", 0o1777}, {"var/log", 0o755},
	{"var/lib", 0o755}, {"var/cache", 0o755}, {"run/lock", 0o1777}, {"run/joblet", 0o755},
}

var rootLinks = []struct{ name, target string }{{"var/run", "/run"}}

// buildRoot makes the directories of the job's root: the places where the job
// may write, and where trees are attached later.
func buildRoot(p *program) {
	p.call("umask", unix.SYS_UMASK, 0)
	for _, d := range rootDirs {
		p.mkdir(d.name, d.mode)
	}
	for _, l := range rootLinks {
		p.symlink(l.target, l.name)
	}
}

// procMasked are places in /proc that tell of the host or change it. Most of
// them want privileges in the initial user namespace, which no job has; hiding
// them is the second wall. (Compare the "maskedPaths" and "readonlyPaths" of
// the OCI runtime specification.)
var procMasked = []string{"kcore", "keys", "key-users", "timer_list", "sched_debug", "kallsyms", "sysrq-trigger"}

// mountProc mounts the proc of the new PID namespace, while the host's is
// still there: the kernel grants a user namespace a new one only if it sees a
// whole one (mount_too_revealing in fs/namespace.c).
func mountProc(p *program) {
	p.mount("proc", "proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// maskProc hides or freezes the places above. It needs /dev/null, so it comes
// after mountDev.
func maskProc(p *program, sandbox *protocol.Sandbox) {
	null := p.str("dev/null")
	for _, name := range procMasked {
		p.call("mask /proc/"+name, unix.SYS_MOUNT, null, p.str("proc/"+name), 0, unix.MS_BIND).may(allowAll) // absent: nothing to hide
	}
	for _, name := range sandbox.ProcReadOnly {
		dir := p.str("proc/" + name)
		p.call("bind /proc/"+name, unix.SYS_MOUNT, dir, dir, 0, unix.MS_BIND|unix.MS_REC).may(allowAll)
		p.call("freeze /proc/"+name, unix.SYS_MOUNT, 0, dir, 0,
			unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, 0).may(allowAll)
	}
}

// unmaskProc takes maskProc back: a user namespace that sees a part of proc only
// may not mount it (mount_too_revealing). What is dangerous there belongs to the
// host's root.
func unmaskProc(p *program, sandbox *protocol.Sandbox) {
	for _, name := range slices.Concat(procMasked, sandbox.ProcReadOnly) {
		p.call("unmask /proc/"+name, unix.SYS_UMOUNT2, p.str("proc/"+name), unix.MNT_DETACH).may(allowAll) // EINVAL: it was not masked
	}
}

// mountDev attaches the device nodes that the daemon keeps for all jobs (a
// user namespace can't make any: mknod(2)), and the job's own terminals and
// shared memory in them.
func mountDev(p *program, sandbox *protocol.Sandbox) {
	p.call("attach /dev", unix.SYS_MOVE_MOUNT, slotDev, p.str(""), atFDCWD, p.str("dev"), unix.MOVE_MOUNT_F_EMPTY_PATH).slot(0)
	p.call("close the tree of /dev", unix.SYS_CLOSE, slotDev).slot(0)
	p.mount("devpts", "dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,max="+decimal(maxTerminals)+",ptmxmode=0666,mode=0620,gid="+decimal(ttyGroup))
	p.mount("shm", "dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC,
		"mode=1777,size="+decimal(sandbox.ShmBytes)+",nr_inodes="+decimal(inodes(sandbox.ShmBytes)))
	maskProc(p, sandbox)
}

// The names in every /dev, as the daemon makes them in Sandbox.DevDir.
var (
	devNodes = []string{"null", "zero", "full", "random", "urandom", "tty"}
	devLinks = []struct{ name, target string }{
		{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"},
	}
)

// makeOwnDev gives the job a /dev that it can write to, and in which further nodes can be
// attached, in place of the one that all jobs share: a tmpfs with the same nodes and the
// job's own terminals and shared memory. It is made beside the old one, then put in its
// place. The process is in the root.
func makeOwnDev(p *program) {
	const dir = "run/joblet/dev/"
	p.mkdir(dir, 0o755)
	p.mount("dev", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=64k,nr_inodes=512")
	for _, name := range devNodes {
		p.call("make /dev/"+name, unix.SYS_MKNODAT, atFDCWD, p.str(dir+name), unix.S_IFREG|0o666, 0)
		p.call("bind /dev/"+name, unix.SYS_MOUNT, p.str("dev/"+name), p.str(dir+name), 0, unix.MS_BIND)
	}
	for _, name := range []string{"pts", "shm"} {
		p.mkdir(dir+name, 0o755)
		p.call("move /dev/"+name, unix.SYS_MOUNT, p.str("dev/"+name), p.str(dir+name), 0, unix.MS_MOVE)
	}
	for _, l := range devLinks {
		p.symlink(l.target, dir+l.name)
	}
	p.call("detach the shared /dev", unix.SYS_UMOUNT2, p.str("dev"), unix.MNT_DETACH)
	p.call("move /dev", unix.SYS_MOUNT, p.str(dir), p.str("dev"), 0, unix.MS_MOVE)
	p.call("rmdir /"+dir, unix.SYS_UNLINKAT, atFDCWD, p.str(dir), unix.AT_REMOVEDIR)
}

// leaveHost makes the new root the root and lets go of the host's file
// systems. With both arguments of pivot_root the same directory, the old root
// lies on top of the new one, and umount takes it away (pivot_root(2)).
func leaveHost(p *program) {
	dot := p.str(".")
	p.call("pivot_root", unix.SYS_PIVOT_ROOT, dot, dot)
	p.call("detach the host's root", unix.SYS_UMOUNT2, dot, unix.MNT_DETACH)
	p.call("enter the new root", unix.SYS_CHDIR, p.str("/"))
}

// attachTrees puts the job's read-only trees in their places. The shim has
// opened them and sent their descriptors, which wait in the slots from
// slotTree on, in order.
func attachTrees(p *program, run *protocol.Run) {
	for i, t := range run.Trees {
		tree, target := uintptr(slotTree+i), string(t.Target)
		if t.File {
			p.file(target, "")
		} else {
			p.walk("make "+target, target, slotPath, 0, 0)
		}
		if t.Layer {
			p.call("enter "+target, unix.SYS_FCHDIR, slotPath).slot(0)
		}
		p.call("attach "+target, unix.SYS_MOVE_MOUNT, tree, p.str(""), slotPath, p.str(""),
			unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH).slot(0).slot(2)
		p.call("close "+target, unix.SYS_CLOSE, slotPath).slot(0)
		p.call("close the tree of "+target, unix.SYS_CLOSE, tree).slot(0)
		if t.Layer {
			addLayer(p, target)
		}
	}
	for _, d := range run.Dirs {
		p.mkdir(string(d.Path), uintptr(d.Mode)).may(allowExist)
	}
	for _, l := range run.Links {
		dir, name := path.Split(path.Clean(string(l.Path)))
		p.walk("make "+dir, dir, slotPath, 0, 0)
		p.call("symlink "+string(l.Path), unix.SYS_SYMLINKAT, p.str(string(l.Target)), slotPath, p.str(name)).slot(1)
		p.call("close "+dir, unix.SYS_CLOSE, slotPath).slot(0)
	}
	for _, f := range run.Files {
		p.file(f.Path, f.Text)
		p.call("close "+f.Path, unix.SYS_CLOSE, slotPath).slot(0)
	}
}

// addLayer makes a directory to which a tree was attached writable: what the job changes
// lies on its root file system, in the directory below the tree, which is the working
// directory and which no path leads to any more. What every job has in the directory
// comes first.
func addLayer(p *program, dir string) {
	const upper, work = "upper", "work"
	below := strings.TrimPrefix(dir, "/")
	for _, d := range rootDirs {
		if d.name == below {
			p.mkdir(upper, d.mode)
		} else if name, ok := strings.CutPrefix(d.name, below+"/"); ok {
			p.mkdir(upper+"/"+name, d.mode)
		}
	}
	for _, l := range rootLinks {
		if name, ok := strings.CutPrefix(l.name, below+"/"); ok {
			p.symlink(l.target, upper+"/"+name)
		}
	}
	p.mkdir(work, 0o700)
	p.call("mount a writable layer on "+dir, unix.SYS_MOUNT, p.str("joblet"), p.str(dir), p.str("overlay"), unix.MS_NOSUID|unix.MS_NODEV,
		p.str("lowerdir="+dir+",upperdir="+upper+",workdir="+work+",userxattr,index=off"))
	p.call("return to the root", unix.SYS_CHDIR, p.str("/"))
}

// coverFiles puts files of the job's own over those of its trees, read-only: each is a
// file in /run/joblet that is mounted there.
func coverFiles(p *program, run *protocol.Run) {
	for _, f := range run.Covers {
		p.file("/run/joblet/"+path.Base(f.Path), f.Text)
		p.call("copy the mount of "+f.Path, unix.SYS_OPEN_TREE, slotPath, p.str(""),
			unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH).slot(0).into(slotTree)
		p.call("close "+f.Path, unix.SYS_CLOSE, slotPath).slot(0)
		attr := put(p, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC})
		p.call("restrict "+f.Path, unix.SYS_MOUNT_SETATTR, slotTree, p.str(""), unix.AT_EMPTY_PATH, attr, unsafe.Sizeof(unix.MountAttr{})).slot(0)
		p.add("attach "+f.Path, op{kind: opCover, save: slotTree, args: [6]uintptr{p.str(f.Path), p.str("")}})
		p.call("close the mount of "+f.Path, unix.SYS_CLOSE, slotTree).slot(0)
	}
}

// file makes a file in the job's root, with the directories above it, and leaves it
// open in slotPath.
func (p *program) file(name, text string) {
	dir, base := path.Split(path.Clean(name))
	p.walk("make "+dir, dir, slotStdin, 0, 0)
	const flags = unix.O_CREAT | unix.O_WRONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW
	p.call("create "+name, unix.SYS_OPENAT, slotStdin, p.str(base), flags, 0o644).slot(0).into(slotPath)
	p.call("close "+dir, unix.SYS_CLOSE, slotStdin).slot(0)
	if text != "" {
		p.call("write "+name, unix.SYS_WRITE, slotPath, p.str(text), uintptr(len(text))).slot(0)
	}
}

// enterWorkDir enters the working directory, made where it is missing. One that not
// every job has gets the owner.
func enterWorkDir(p *program, run *protocol.Run, uid, gid uint32) {
	for _, d := range rootDirs {
		if dir := path.Clean(run.WorkDir); dir == "/" || dir == "/"+d.name {
			uid, gid = 0, 0
		}
	}
	p.walk(protocol.StepWorkDir, run.WorkDir, slotPath, uid, gid)
	p.call(protocol.StepWorkDir, unix.SYS_FCHDIR, slotPath).slot(0)
	p.call("close the working directory", unix.SYS_CLOSE, slotPath).slot(0)
	p.call("umask", unix.SYS_UMASK, 0o022)
}

// connectOutput puts the write ends of the job's pipes in the places of all three
// standard streams: nothing of the host stays there until connectInput has the input.
func connectOutput(p *program, out, err int) {
	p.call("connect standard input", unix.SYS_DUP3, uintptr(out), 0, 0)
	p.call("connect standard output", unix.SYS_DUP3, uintptr(out), 1, 0)
	p.call("connect standard error", unix.SYS_DUP3, uintptr(err), 2, 0)
}

func connectInput(p *program, run *protocol.Run) {
	if run.Terminal != nil {
		openTerminal(p, run)
		return
	}
	if run.StdinPath == "" && !run.StdinStream {
		connectNull(p)
		return
	}
	slot := uintptr(slotTree + len(run.Trees))
	p.call("connect standard input", unix.SYS_DUP3, slot, 0, 0).slot(0)
	p.call("close the input", unix.SYS_CLOSE, slot).slot(0)
}

// connectNull makes the job's /dev/null standard input. A job with mounts of its own
// may have put a FIFO there, which must not make us wait.
func connectNull(p *program) {
	const flags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK
	p.openIn("open /dev/null", "/dev/null", flags, jobPath|unix.RESOLVE_NO_SYMLINKS).into(slotStdin)
	p.call("fcntl F_SETFL", unix.SYS_FCNTL, slotStdin, unix.F_SETFL, 0).slot(0)
	p.call("connect standard input", unix.SYS_DUP3, slotStdin, 0, 0).slot(0)
	p.call("close /dev/null", unix.SYS_CLOSE, slotStdin).slot(0)
}

// leadSession makes the process the leader of a session, of the job's terminal if it
// has one.
func leadSession(p *program, run *protocol.Run) {
	p.call("mark descriptors close-on-exec", unix.SYS_CLOSE_RANGE, 3, maxFD, unix.CLOSE_RANGE_CLOEXEC)
	p.call("setsid", unix.SYS_SETSID)
	if run.Terminal != nil && !run.Init { // the reaper is no process for a terminal
		controlTerminal(p)
	}
}

// resetSignals gives the command what a login would: default actions, nothing
// blocked. (The Go runtime has handlers for all signals; execve would reset
// those, but not what is ignored.)
func resetSignals(p *program) {
	deflt := p.alloc(32) // struct kernel_sigaction: SIG_DFL, no flags
	for sig := uintptr(1); sig <= lastSig; sig++ {
		if s := syscall.Signal(sig); s != syscall.SIGKILL && s != syscall.SIGSTOP {
			p.call("rt_sigaction", unix.SYS_RT_SIGACTION, sig, deflt, 0, 8)
		}
	}
}

func limitResources(p *program, run *protocol.Run) {
	for _, l := range run.Rlimits {
		p.call("prlimit "+decimal(l.Resource), unix.SYS_PRLIMIT64, 0, uintptr(l.Resource), put(p, unix.Rlimit{Cur: l.Soft, Max: l.Hard}), 0)
	}
}

// dropPrivileges leaves the command the capabilities in run, none of them
// ambient or inheritable, and no way to gain more.
func dropPrivileges(p *program, run *protocol.Run) {
	// A keyring of its own instead of the one of the user who started the daemon;
	// ENOSYS where the kernel has no keys.
	p.call("join a new session keyring", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0).may(allowAll)
	for c := range uintptr(maxCap + 1) {
		if run.Capabilities&(1<<c) == 0 {
			p.call("drop from the bounding set", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c).may(allowAll) // EINVAL beyond the kernel's last
		}
	}
	capabilities := run.Capabilities
	if run.UID|run.GID != 0 {
		p.call("setresgid", unix.SYS_SETRESGID, uintptr(run.GID), uintptr(run.GID), uintptr(run.GID))
		p.call("setresuid", unix.SYS_SETRESUID, uintptr(run.UID), uintptr(run.UID), uintptr(run.UID))
	}
	if run.UID != 0 {
		capabilities = 0 // setresuid has taken them
	}
	header := put(p, unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3})
	low, high := uint32(capabilities), uint32(capabilities>>32)
	data := put(p, [2]unix.CapUserData{{Effective: low, Permitted: low}, {Effective: high, Permitted: high}})
	p.call("capset", unix.SYS_CAPSET, header, data)
	p.call("prctl PR_SET_NO_NEW_PRIVS", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	guardProcess(p)
	if run.Landlock {
		confine(p)
	}
}

// checkPaths makes sure that the working directory lies in the job's root, and notes
// which paths of the command lead through magic links. The filter may forbid the calls
// that this takes.
func checkPaths(p *program) {
	p.add(protocol.StepWorkDir, op{kind: opInRoot})
	p.add("look the command up", op{kind: opCandidates})
}

func filterCalls(p *program, run *protocol.Run) {
	if len(run.Filter) > 0 {
		filter, flags := run.Instructions(), uintptr(run.FilterFlags)
		if run.LogDenied {
			filter, flags = protocol.AskShim(filter), flags|unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
		}
		code := p.alloc(len(run.Filter))
		if !p.full {
			copy(unsafe.Slice((*unix.SockFilter)(pointer(code)), len(filter)), filter)
		}
		prog := put(p, struct {
			n    uint16
			code uintptr
		}{uint16(len(filter)), code})
		install := p.call("install the system call filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, prog)
		if run.LogDenied { // what is refused from here on waits for the shim, which listens once the command runs
			install.into(slotListener)
			p.add("send the filter's listener to the shim", op{kind: opSend, save: slotListener})
		}
	}
}

func executeCommand(p *program, run *protocol.Run) {
	a := p.shared
	if run.Init {
		// The reaper waits for signals instead of handling them, so they stay
		// blocked in it.
		a.sigset = ^uint64(0)
		copy(a.initName[:], "joblet-init")
		for _, arg := range os.Args { // one behind the other on the stack (execve(2))
			if a.args == 0 {
				a.args = uintptr(unsafe.Pointer(unsafe.StringData(arg)))
			}
			a.argsLen += uintptr(len(arg) + 1)
		}
		p.add(protocol.StepReaper, op{kind: opReaper})
		p.call("setsid", unix.SYS_SETSID)
		if run.Terminal != nil {
			controlTerminal(p)
		}
	}
	none := p.alloc(8)
	p.call("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, none, 0, 8)
	a.argv = p.pointers(append([]string{run.Command}, run.Args...))
	a.envp = p.pointers(run.Env)
	a.mayInspect = mayInspect(run)
	list := candidates(run)
	a.exec = p.alloc(len(list) * int(unsafe.Sizeof(candidate{})))
	a.nexec = uintptr(len(list))
	for i, c := range list {
		at := p.str(c)
		if p.full {
			break
		}
		*a.candidate(uintptr(i)) = candidate{path: at}
	}
	p.add("execute "+run.Command, op{kind: opExec})
}

// candidates returns the paths that the command may have, as execvp(3) looks
// for it; all are absolute, as the command sees its own name.
func candidates(run *protocol.Run) []string {
	if strings.Contains(run.Command, "/") {
		if !path.IsAbs(run.Command) {
			return []string{path.Join(run.WorkDir, run.Command)}
		}
		return []string{run.Command}
	}
	var list []string
	seen := map[string]bool{}
	for dir := range strings.SplitSeq(run.Path, ":") {
		if !path.IsAbs(dir) {
			dir = path.Join(run.WorkDir, dir) // an empty element is the working directory
		}
		if c := path.Join(dir, run.Command); !seen[c] {
			seen[c] = true
			list = append(list, c)
		}
	}
	return list
}
