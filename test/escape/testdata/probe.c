// The attempts of this package, one function each: "probe NAME [ARG…]". The test
// runs them in jobs, where all must fail, and as a child of its own, where they must
// get through: else they would prove nothing.
//
// None does harm where it gets through: a file is opened and not written, a call is
// made with an argument that is refused only behind the check of privileges, and
// what is made for a moment is a process's own.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/rtnetlink.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#ifdef __x86_64__
#include <sys/io.h>
#include <sys/user.h>
#endif

enum { THROUGH = 0, BROKEN = 2, REFUSED = 10, ABSENT = 11 };

static int say(int verdict, const char *word, const char *format, va_list ap)
{
	printf("%s: ", word);
	vprintf(format, ap);
	return verdict;
}

static int through(const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	say(THROUGH, "through", format, ap);
	va_end(ap);
	printf("\n");
	return THROUGH;
}

static int broken(const char *what)
{
	printf("broken: %s: %s\n", what, strerror(errno));
	return BROKEN;
}

// no says that what failed, by errno: refused, or that there is no such thing.
static int no(const char *what)
{
	int absent = errno == ENOSYS || errno == ENOENT || errno == EAFNOSUPPORT || errno == EPROTONOSUPPORT ||
	             errno == ENODEV || errno == ENXIO || errno == ESRCH || errno == ENOTDIR || errno == ECONNREFUSED;
	printf("%s: %s: %s\n", absent ? "absent" : "refused", what, strerror(errno));
	return absent ? ABSENT : REFUSED;
}

// gate is the verdict on a call whose arguments are wrong on purpose: any error
// but that of a check of privileges says that it went past it.
static int gate(const char *what, long result)
{
	if (result >= 0)
		return through("%s", what);
	if (errno == EPERM || errno == EACCES || errno == ENOSYS)
		return no(what);
	return through("%s: past the check: %s", what, strerror(errno));
}

static int made(const char *what, long result)
{
	return result < 0 ? no(what) : through("%s", what);
}

static pid_t pid_of(char **arg) { return (pid_t)atol(arg[0]); }

// --- files

static int openw(char **arg)
{
	struct stat st;
	int fd = open(arg[0], O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && !fstat(fd, &st) && S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3)) {
		errno = ENOENT; // /dev/null lies over it
		fd = -1;
	}
	return made(arg[0], fd);
}

static int readable(char **arg)
{
	char c;
	int fd = open(arg[0], O_RDONLY);
	if (fd < 0)
		return no(arg[0]);
	ssize_t n = read(fd, &c, 1);
	if (n < 0)
		return no(arg[0]);
	if (n == 0) {
		errno = ENOENT;
		return no("read: empty");
	}
	return through("%s has something", arg[0]);
}

// lease takes one on a file of its own, as root in a job has the files of a runtime:
// whoever opens the file has to wait until it is given back.
static int lease(char **arg)
{
	(void)arg;
	close(open("leased", O_CREAT | O_WRONLY, 0644));
	return made("F_SETLEASE", fcntl(open("leased", O_RDONLY), F_SETLEASE, F_WRLCK));
}

static int dnotify(char **arg)
{
	if (access("/proc/sys/fs/dir-notify-enable", F_OK))
		return no("F_NOTIFY");
	return made("F_NOTIFY", fcntl(open(arg[0], O_RDONLY | O_DIRECTORY), F_NOTIFY, DN_CREATE));
}

// any_openw tries each argument.
static int any_openw(char **arg)
{
	for (; *arg; arg++)
		if (open(*arg, O_WRONLY | O_CLOEXEC) >= 0)
			return through("%s", *arg);
	return no("all");
}

static int any_device(char **arg)
{
	static const char *const names[] = {"mem", "kmem", "port", "kmsg", "vda", "sda", "nvme0n1", "kvm", "fuse", "loop-control",
		"net/tun", "vsock", "vhost-net", "vhost-vsock", "uinput", "rtc0", "hpet", "nvram", "snapshot", "autofs", "userfaultfd",
		"mapper/control", "ptp0", "console", "tty0", "ttyS0", "watchdog", "cuse", "btrfs-control", "mei0", 0};
	char path[64];
	(void)arg;
	for (const char *const *n = names; *n; n++) {
		snprintf(path, sizeof path, "/dev/%s", *n);
		if (open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY) >= 0)
			return through("%s", path);
	}
	return no("all");
}

static int nonempty(char **arg)
{
	DIR *d = opendir(arg[0]);
	if (!d)
		return no(arg[0]);
	struct dirent *e;
	while ((e = readdir(d)))
		if (e->d_name[0] != '.')
			return through("%s holds %s", arg[0], e->d_name);
	errno = ENOENT;
	return no("anything in it");
}

static int kallsyms(char **arg)
{
	(void)arg;
	FILE *f = fopen("/proc/kallsyms", "r");
	unsigned long at;
	if (!f)
		return no("/proc/kallsyms");
	for (int i = 0; i < 2000 && fscanf(f, "%lx %*[^\n]", &at) == 1; i++)
		if (at > 0x1000000)
			return through("an address of the kernel");
	errno = EPERM;
	return no("addresses");
}

// by_proc opens a path of the host by what hangs on each process: the root, the
// working directory, descriptors.
static int by_proc(char **arg)
{
	static const char *const ways[] = {"root", "cwd/../../../../../../../..", "fd/0/../../../../../../../..", "fd/3/../../../../../../../..",
		"fd/4/../../../../../../../..", "fd/5/../../../../../../../..", "task/1/root", "map_files/..", 0};
	DIR *d = opendir("/proc");
	struct dirent *e;
	int tried = 0;
	if (!d)
		return no("/proc");
	while ((e = readdir(d))) {
		if (e->d_name[0] < '0' || e->d_name[0] > '9')
			continue;
		tried++;
		for (const char *const *w = ways; *w; w++) {
			char path[4096];
			snprintf(path, sizeof path, "/proc/%s/%s%s", e->d_name, *w, arg[0]);
			if (open(path, O_RDONLY) >= 0)
				return through("%s", path);
		}
	}
	if (!tried)
		return broken("no process in /proc");
	errno = ENOENT;
	return no(arg[0]);
}

// proc_tells looks for a word in what /proc tells of other processes. It is given
// backwards, so that our own arguments do not hold it.
static int proc_tells(char **arg)
{
	char word[256] = "", self[32];
	size_t n = strlen(arg[0]);
	for (size_t i = 0; i < n && i < sizeof word - 1; i++)
		word[i] = arg[0][n - 1 - i];
	snprintf(self, sizeof self, "%d", getpid());
	DIR *d = opendir("/proc");
	struct dirent *e;
	if (!d)
		return no("/proc");
	while ((e = readdir(d))) {
		if (e->d_name[0] < '0' || e->d_name[0] > '9' || !strcmp(e->d_name, self))
			continue;
		static const char *const names[] = {"environ", "cmdline", "mountinfo", "maps", "comm", 0};
		for (const char *const *name = names; *name; name++) {
			static char buf[1 << 17];
			char path[300];
			snprintf(path, sizeof path, "/proc/%s/%s", e->d_name, *name);
			int fd = open(path, O_RDONLY | O_CLOEXEC);
			if (fd < 0)
				continue;
			ssize_t got = read(fd, buf, sizeof buf);
			close(fd);
			if (got > 0 && memmem(buf, got, word, strlen(word)))
				return through("%s", path);
		}
	}
	errno = ENOENT;
	return no("the word");
}

static int leaked(char **arg)
{
	(void)arg;
	int found = 0;
	for (int fd = 3; fd < 4096; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			found = fd;
	if (found)
		return through("descriptor %d", found);
	errno = ENOENT;
	return no("descriptors");
}

static int chroot_twice(char **arg)
{
	if (mkdir("/joblet-escape", 0700) && errno != EEXIST)
		return no("mkdir");
	if (chroot("/joblet-escape"))
		return no("chroot");
	for (int i = 0; i < 64; i++)
		if (chdir(".."))
			return no("chdir ..");
	if (chroot("."))
		return no("chroot .");
	return made(arg[0], open(arg[0], O_RDONLY));
}

static int pivot(char **arg)
{
	(void)arg;
	mkdir("new", 0700);
	mount("x", "new", "tmpfs", 0, "");
	mkdir("new/old", 0700);
	return made("pivot_root", syscall(SYS_pivot_root, "new", "new/old"));
}

static int make_node(char **arg)
{
	unlink("node");
	int r = mknod("node", (arg[0][0] == 'b' ? S_IFBLK : S_IFCHR) | 0600, makedev(atoi(arg[1]), atoi(arg[2])));
	int keep = errno;
	if (!r)
		unlink("node");
	errno = keep;
	return made("mknod", r);
}

static int mount_fs(char **arg)
{
	mkdir("at", 0700);
	return made(arg[0], mount("x", "at", arg[0], 0, arg[1]));
}

static int bind_mount(char **arg)
{
	mkdir("at", 0700);
	return made("bind", mount(arg[0], "at", 0, MS_BIND, 0));
}

static int remount(char **arg)
{
	return made("remount", mount(0, arg[0], 0, MS_REMOUNT | MS_BIND, 0));
}

static int unmount(char **arg) { return made(arg[0], umount2(arg[0], MNT_DETACH)); }

static int fsopen_(char **arg)
{
	(void)arg;
	return made("fsopen", syscall(430, "tmpfs", 0));
}

static int open_tree_(char **arg)
{
	(void)arg;
	return made("open_tree", syscall(428, AT_FDCWD, "/", 1 | O_CLOEXEC));
}

static int mount_attr(char **arg)
{
	uint64_t attr[4] = {0, 1, 0, 0}; // clear MOUNT_ATTR_RDONLY
	return made("mount_setattr", syscall(442, AT_FDCWD, arg[0], 0, attr, sizeof attr));
}

static int release_agent_host(char **arg)
{
	static const char *const controllers[] = {"memory", "pids", "freezer", "cpu", "rdma", "net_cls", 0};
	(void)arg;
	mkdir("at", 0700);
	for (const char *const *c = controllers; *c; c++) {
		if (mount("x", "at", "cgroup", 0, *c))
			continue;
		int fd = open("at/release_agent", O_WRONLY | O_CLOEXEC);
		umount2("at", MNT_DETACH);
		if (fd >= 0)
			return through("release_agent of %s", *c);
	}
	if (errno != EPERM && errno != EACCES)
		errno = ENODEV; // no controller is for v1: EINVAL, EBUSY
	return no("cgroup v1");
}

// release_agent of a v1 hierarchy that is mounted in namespaces of one's own.
static int release_agent(char **arg)
{
	unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP); // not as root of the host: it needs none
	return release_agent_host(arg);
}

static int cgroup_procs(char **arg)
{
	static const char *const dirs[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/init", 0};
	(void)arg;
	for (const char *const *d = dirs; *d; d++) {
		char path[128];
		snprintf(path, sizeof path, "%s/cgroup.procs", *d);
		if (open(path, O_WRONLY | O_CLOEXEC) >= 0)
			return through("%s", path);
	}
	return no("cgroup.procs");
}

// own_cgroup makes a cgroup below one of the arguments.
static int own_cgroup(char **arg)
{
	for (; *arg; arg++) {
		char path[4096];
		snprintf(path, sizeof path, "%s/probe", *arg);
		if (!mkdir(path, 0755)) {
			rmdir(path);
			return through("%s", path);
		}
	}
	return no("mkdir");
}

// two_cgroups looks below dir for a cgroup in another: one of those who made it, or of
// others.
static int two_cgroups(const char *dir, int in_one)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/cgroup.procs", dir);
	int is_one = !access(path, F_OK), found = is_one && in_one;
	DIR *d = opendir(dir);
	struct dirent *e;
	if (found)
		through("%s", dir);
	while (d && !found && (e = readdir(d)))
		if (e->d_type == DT_DIR && strcmp(e->d_name, ".") && (strcmp(e->d_name, "..") || is_one)) {
			if (!strcmp(e->d_name, "..")) {
				snprintf(path, sizeof path, "%s/../cgroup.procs", dir);
				found = !access(path, F_OK);
				if (found)
					through("%s", path);
				continue;
			}
			snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
			found = two_cgroups(path, is_one);
		}
	if (d)
		closedir(d);
	return found;
}

static int other_cgroups(char **arg)
{
	if (two_cgroups(arg[0], 0))
		return THROUGH;
	errno = ENOENT;
	return no("more than one cgroup");
}

// tells looks in a file for a word, which is given backwards.
static int tells(char **arg)
{
	static char buf[1 << 17];
	char word[256] = "";
	size_t n = strlen(arg[1]);
	for (size_t i = 0; i < n && i < sizeof word - 1; i++)
		word[i] = arg[1][n - 1 - i];
	int fd = open(arg[0], O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return no(arg[0]);
	size_t got = 0;
	for (ssize_t r; got < sizeof buf && (r = read(fd, buf + got, sizeof buf - got)) > 0;)
		got += r;
	if (memmem(buf, got, word, strlen(word)))
		return through("%s", arg[0]);
	errno = EACCES;
	return no("the word");
}

static int binfmt(char **arg)
{
	(void)arg;
	mkdir("at", 0700);
	if (open("/proc/sys/fs/binfmt_misc/register", O_WRONLY) >= 0)
		return through("register");
	if (mount("x", "at", "binfmt_misc", 0, 0))
		return no("mount binfmt_misc");
	return made("register", open("at/register", O_WRONLY));
}

static int by_handle(char **arg)
{
	struct { struct file_handle h; unsigned char bytes[128]; } h = {.h = {.handle_bytes = 128}};
	int id;
	if (name_to_handle_at(AT_FDCWD, arg[0], &h.h, &id, 0)) {
		if (errno == EOPNOTSUPP || errno == EPERM) {
			// shocker guesses one: inode 2 of the file system of what it may open
			h.h.handle_bytes = 8;
			h.h.handle_type = 1;
			memcpy(h.bytes, "\2\0\0\0\0\0\0\0", 8);
		} else {
			return no("name_to_handle_at");
		}
	}
	int at = open(arg[0], O_RDONLY);
	return gate("open_by_handle_at", open_by_handle_at(at, &h.h, O_RDONLY));
}

static int overwrite_exe(char **arg)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%s/exe", arg[0]);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	// Busy is busy for as long as it runs: the attack waits.
	if (fd >= 0 || errno == ETXTBSY)
		return through("%s", path);
	return no(path);
}

static int foreign_uid(char **arg)
{
	return made("setuid", setuid((uid_t)strtoul(arg[0], 0, 10)));
}

static int uid_map(char **arg)
{
	char line[64];
	if (arg[1] && unshare(CLONE_NEWUSER))
		return no("unshare");
	int fd = open("/proc/self/uid_map", O_WRONLY);
	if (fd < 0)
		return no("/proc/self/uid_map");
	int n = snprintf(line, sizeof line, "0 %s 1", arg[0]);
	return made("write a map", write(fd, line, n) == n ? 0 : -1);
}

// setuid_gain gives up uid 0 and tries to get it back from a program of its own
// with the setuid bit.
static int setuid_gain(char **arg)
{
	if (arg[0]) {
		if (geteuid() == 0)
			return through("euid 0");
		errno = EPERM;
		return no("euid");
	}
	char self[4096], copy[] = "setuid-probe";
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	if (n < 0)
		return broken("readlink");
	self[n] = 0;
	int in = open(self, O_RDONLY), out = open(copy, O_CREAT | O_TRUNC | O_WRONLY, 0755);
	char buf[65536];
	while ((n = read(in, buf, sizeof buf)) > 0)
		if (write(out, buf, n) != n)
			return broken("copy");
	fchmod(out, 04755);
	close(out);
	if (setgroups(0, 0) || setresgid(1000, 1000, 1000) || setresuid(1000, 1000, 1000))
		return no("become uid 1000");
	execl(copy, copy, "setuid-gain", "again", (char *)0);
	return no("execute it");
}

static int memfd_exec(char **arg)
{
	if (arg[0]) {
		char status[8192] = "";
		int fd = open("/proc/self/status", O_RDONLY);
		if (read(fd, status, sizeof status - 1) < 0)
			return broken("status");
		if (strstr(status, "NoNewPrivs:\t1") && strstr(status, "Seccomp:\t2")) {
			errno = EPERM;
			return no("confined as before");
		}
		return through("unconfined");
	}
	char buf[65536];
	ssize_t n;
	int in = open("/proc/self/exe", O_RDONLY), out = syscall(SYS_memfd_create, "x", 0);
	if (in < 0 || out < 0)
		return no("memfd");
	while ((n = read(in, buf, sizeof buf)) > 0)
		if (write(out, buf, n) != n)
			return broken("copy");
	char *argv[] = {"x", "memfd-exec", "again", 0}, *envp[] = {0};
	syscall(SYS_execveat, out, "", argv, envp, AT_EMPTY_PATH);
	return no("execveat");
}

// --- processes

static int ptrace_(char **arg) { return made("PTRACE_SEIZE", ptrace(PTRACE_SEIZE, pid_of(arg), 0, 0)); }
static int signal_(char **arg) { return made("kill", kill(pid_of(arg), 0)); }
static int pidfd(char **arg) { return made("pidfd_open", syscall(434, pid_of(arg), 0)); }
static int priority(char **arg) { return made("setpriority", setpriority(PRIO_PROCESS, pid_of(arg), 5)); }
static int affinity(char **arg)
{
	cpu_set_t set;
	return made("sched_getaffinity", sched_getaffinity(pid_of(arg), sizeof set, &set));
}

static int limits_of(char **arg)
{
	struct rlimit old;
	return made("prlimit", prlimit(pid_of(arg), RLIMIT_NOFILE, 0, &old));
}

static int vm_read(char **arg)
{
	char path[64], buf[16];
	unsigned long at = 0x400000;
	snprintf(path, sizeof path, "/proc/%s/maps", arg[0]);
	FILE *f = fopen(path, "r");
	if (f && fscanf(f, "%lx", &at) != 1)
		at = 0x400000;
	struct iovec l = {buf, sizeof buf}, r = {(void *)at, sizeof buf};
	return made("process_vm_readv", process_vm_readv(pid_of(arg), &l, 1, &r, 1, 0));
}

static int getfd(char **arg)
{
	int p = syscall(434, pid_of(arg), 0);
	if (p < 0)
		return no("pidfd_open");
	return made("pidfd_getfd", syscall(438, p, 0, 0));
}

static int proc_mem(char **arg)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%s/mem", arg[0]);
	return made(path, open(path, O_RDWR));
}

static int oom_adj(char **arg)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%s/oom_score_adj", arg[0]);
	int fd = open(path, O_WRONLY);
	if (fd < 0)
		return no(path);
	return made(arg[1], write(fd, arg[1], strlen(arg[1])));
}

static int setns_(char **arg)
{
	int fd = open(arg[0], O_RDONLY);
	if (fd < 0)
		return no(arg[0]);
	return made("setns", setns(fd, 0));
}

static const struct { const char *name; long flag; } namespaces[] = {
	{"user", CLONE_NEWUSER}, {"mount", CLONE_NEWNS}, {"net", CLONE_NEWNET}, {"pid", CLONE_NEWPID}, {"ipc", CLONE_NEWIPC},
	{"uts", CLONE_NEWUTS}, {"cgroup", CLONE_NEWCGROUP}, {"time", 0x80}, {0, 0}};

static long namespace(const char *name)
{
	for (int i = 0; namespaces[i].name; i++)
		if (!strcmp(namespaces[i].name, name))
			return namespaces[i].flag;
	exit(BROKEN);
}

// no_namespace is no, for a kernel may have none of that type: the error is EINVAL then.
static int no_namespace(const char *what, const char *name)
{
	char path[64];
	int keep = errno;
	snprintf(path, sizeof path, "/proc/self/ns/%s", !strcmp(name, "mount") ? "mnt" : name);
	errno = keep == EINVAL && access(path, F_OK) ? ENOSYS : keep;
	return no(what);
}

static int unshare_(char **arg)
{
	return unshare(namespace(arg[0])) ? no_namespace("unshare", arg[0]) : through("unshare");
}

static int clone_(char **arg)
{
	long pid = syscall(SYS_clone, namespace(arg[0]) | SIGCHLD, 0, 0, 0, 0);
	if (pid == 0)
		_exit(0);
	return pid < 0 ? no_namespace("clone", arg[0]) : through("clone");
}

static int clone3_(char **arg)
{
	uint64_t args[11] = {namespace(arg[0]), 0, 0, 0, SIGCHLD};
	long pid = syscall(435, args, sizeof args);
	if (pid == 0)
		_exit(0);
	return pid < 0 ? no_namespace("clone3", arg[0]) : through("clone3");
}

static int regain(char **arg)
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct d[2] = {0};
	(void)arg;
	syscall(SYS_capget, &h, d);
	d[0].effective |= 1 << 21; // CAP_SYS_ADMIN
	d[0].permitted |= 1 << 21;
	return made("capset", syscall(SYS_capset, &h, d));
}

static int ambient(char **arg)
{
	(void)arg;
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct d[2] = {0};
	syscall(SYS_capget, &h, d);
	d[0].inheritable |= 1 << 21;
	if (syscall(SYS_capset, &h, d))
		return no("inheritable");
	return made("ambient", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 21, 0, 0));
}

// core_limit tries each way to another limit on core dumps than 1, the only one at
// which the kernel does not run the program of a core_pattern with "|".
static int core_limit(char **arg)
{
	static const struct rlimit none = {0, 0}, soft = {0, 1}, page = {4096, 4096};
	static const struct rlimit *const limits[] = {&none, &soft, &page};
	(void)arg;
	for (int i = 0; i < 9; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			const struct rlimit *l = limits[i % 3];
			struct rlimit now;
			if (i < 3)
				syscall(SYS_setrlimit, RLIMIT_CORE, l);
			else
				syscall(SYS_prlimit64, i < 6 ? 0 : getpid(), RLIMIT_CORE, l, i < 6 ? 0 : &now);
			_exit(getrlimit(RLIMIT_CORE, &now) || now.rlim_cur == 1);
		}
		int status;
		waitpid(pid, &status, 0);
		if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
			return through("way %d", i);
	}
	errno = EPERM;
	return no("setrlimit, prlimit64");
}

static int fork_(char **arg)
{
	(void)arg;
	pid_t pid = fork();
	if (pid == 0)
		_exit(0);
	return made("fork", pid);
}

#ifdef __x86_64__
static int in_child(const char *what, int (*f)(void))
{
	pid_t pid = fork();
	if (pid == 0)
		_exit(f());
	int status;
	if (waitpid(pid, &status, 0) < 0)
		return broken("wait");
	if (WIFSIGNALED(status)) {
		printf("signal %d ", WTERMSIG(status));
		// SIGSYS is a filter's. A kernel without such calls has no gate for them.
		errno = WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGILL ? ENOSYS : EPERM;
		return no(what);
	}
	return WEXITSTATUS(status) == 0 ? through("%s", what) : (errno = ENOSYS, no(what));
}

static int int80_getpid(void)
{
	long r;
	__asm__ volatile("int $0x80" : "=a"(r) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
	return r > 0 ? 0 : 1;
}

static int int80(char **arg)
{
	(void)arg;
	return in_child("int 0x80", int80_getpid);
}

static int x32_getpid(void) { return syscall(0x40000000 | SYS_getpid) > 0 ? 0 : 1; }

static int x32(char **arg)
{
	(void)arg;
	return in_child("x32", x32_getpid);
}

// swap_call has a tracer turn a harmless call of its child into userfaultfd, behind
// the point at which kernels before 4.8 had asked the filter.
static int swap_call(char **arg)
{
	(void)arg;
	pid_t pid = fork();
	if (pid == 0) {
		if (ptrace(PTRACE_TRACEME, 0, 0, 0))
			_exit(1);
		raise(SIGSTOP);
		long r = syscall(SYS_getppid);
		_exit(r >= 0 ? 0 : errno == ENOSYS ? 2 : 1);
	}
	int status, swapped = 0;
	waitpid(pid, &status, 0);
	if (WIFEXITED(status)) {
		errno = EPERM;
		return no("trace");
	}
	for (;;) {
		if (ptrace(PTRACE_SYSCALL, pid, 0, 0) || waitpid(pid, &status, 0) < 0)
			return broken("trace");
		if (WIFEXITED(status))
			break;
		struct user_regs_struct r;
		ptrace(PTRACE_GETREGS, pid, 0, &r);
		if (!swapped && r.orig_rax == SYS_getppid) {
			r.orig_rax = SYS_userfaultfd;
			r.rdi = 0;
			ptrace(PTRACE_SETREGS, pid, 0, &r);
			swapped = 1;
		}
	}
	if (!swapped)
		return broken("the call did not come");
	errno = WEXITSTATUS(status) == 2 ? ENOSYS : EPERM;
	return WEXITSTATUS(status) == 0 ? through("userfaultfd") : no("userfaultfd");
}

static int ioperm_(char **arg) { (void)arg; return made("ioperm", ioperm(0x80, 1, 1)); }
static int iopl_(char **arg) { (void)arg; return made("iopl", iopl(3)); }

static int ldt(char **arg)
{
	char buf[64];
	(void)arg;
	return made("modify_ldt", syscall(SYS_modify_ldt, 0, buf, sizeof buf));
}
#endif

static int personality_(char **arg) { (void)arg; return made("READ_IMPLIES_EXEC", personality(READ_IMPLIES_EXEC)); }

// --- kernel interfaces

static int bpf_(char **arg)
{
	(void)arg;
	union bpf_attr a = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
	return made("bpf", syscall(SYS_bpf, BPF_MAP_CREATE, &a, sizeof a));
}

static int perf(char **arg)
{
	(void)arg;
	struct perf_event_attr a = {.type = PERF_TYPE_SOFTWARE, .size = sizeof a, .config = PERF_COUNT_SW_CPU_CLOCK};
	return made("perf_event_open", syscall(SYS_perf_event_open, &a, -1, 0, -1, 0));
}

static int uffd(char **arg) { (void)arg; return made("userfaultfd", syscall(SYS_userfaultfd, 0)); }

static int uring(char **arg)
{
	(void)arg;
	char params[120] = {0};
	return made("io_uring_setup", syscall(425, 1, params));
}

static int aio(char **arg)
{
	unsigned long context = 0;
	(void)arg;
	return made("io_setup", syscall(SYS_io_setup, 1, &context));
}

static int add_key(char **arg) { (void)arg; return made("add_key", syscall(SYS_add_key, "user", "joblet-escape", "x", 1, -2)); }
static int keyring(char **arg) { (void)arg; return made("keyctl", syscall(SYS_keyctl, 0 /* GET_KEYRING_ID */, -3, 1)); }
static int request_key(char **arg) { (void)arg; return gate("request_key", syscall(SYS_request_key, "user", "joblet-none", 0, 0)); }
static int fanotify(char **arg) { (void)arg; return made("fanotify_init", syscall(SYS_fanotify_init, 0, 0)); }
static int dmesg(char **arg) { char b[128]; (void)arg; return made("syslog", klogctl(3, b, sizeof b)); }
static int swap(char **arg) { (void)arg; return gate("swapon", syscall(SYS_swapon, "/", 1 << 30)); }
static int reboot_(char **arg) { (void)arg; return gate("reboot", syscall(SYS_reboot, 1, 1, 1, 0)); }
static int kexec(char **arg) { (void)arg; return gate("kexec_load", syscall(SYS_kexec_load, 0, 0, 0, 1L << 40)); }
static int module(char **arg) { (void)arg; return gate("finit_module", syscall(SYS_finit_module, -1, "", 0)); }
static int unload(char **arg) { (void)arg; return gate("delete_module", syscall(SYS_delete_module, "joblet_escape", O_NONBLOCK)); }
static int set_time(char **arg) { (void)arg; return made("settimeofday", syscall(SYS_settimeofday, 0, 0)); }
static int acct_(char **arg) { (void)arg; return gate("acct", syscall(SYS_acct, "/no/such/joblet-escape")); }
static int quota(char **arg) { (void)arg; return gate("quotactl", syscall(SYS_quotactl, 0x800001 << 8, 0, 0, 0)); }
static int hostname(char **arg) { (void)arg; return made("sethostname", sethostname("escaped", 7)); }

static int adjust_time(char **arg)
{
	(void)arg;
	struct timex t = {0};
	if (adjtimex(&t) < 0)
		return no("adjtimex");
	t.modes = ADJ_STATUS;
	return made("adjtimex", adjtimex(&t));
}

static int terminal(char **arg)
{
	int m = open("/dev/ptmx", O_RDWR | O_NOCTTY);
	if (m < 0)
		return no("/dev/ptmx");
	grantpt(m);
	unlockpt(m);
	pid_t pid = fork();
	if (pid)
	{
		int status;
		waitpid(pid, &status, 0);
		return WIFEXITED(status) ? WEXITSTATUS(status) : BROKEN;
	}
	setsid();
	int s = ioctl(m, 0x5441 /* TIOCGPTPEER */, O_RDWR);
	int verdict = BROKEN, disc = 3;
	char c = 'x';
	if (s < 0)
		verdict = broken("the terminal's other end");
	else if (!strcmp(arg[0], "TIOCSTI"))
		verdict = made(arg[0], (ioctl(s, TIOCSCTTY, 0), ioctl(s, TIOCSTI, &c)));
	else if (!strcmp(arg[0], "TIOCSETD"))
		verdict = gate(arg[0], ioctl(s, TIOCSETD, &disc));
	fflush(stdout);
	_exit(verdict);
}

// --- sockets and IPC

static int abstract(char **arg)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	strncpy(a.sun_path + 1, arg[0], sizeof a.sun_path - 2);
	return made("connect", connect(fd, (void *)&a, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(arg[0])));
}

static int socket_(char **arg)
{
	return made("socket", socket(atoi(arg[0]), atoi(arg[1]), atoi(arg[2])));
}

// odd_sockets asks for each family that no ordinary program needs.
static int odd_sockets(char **arg)
{
	static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET};
	(void)arg;
	for (int family = 1; family < 50; family++) {
		if (family == AF_UNIX || family == AF_INET || family == AF_INET6 || family == AF_NETLINK)
			continue;
		for (unsigned i = 0; i < 4; i++)
			if (socket(family, types[i], 0) >= 0)
				return through("family %d", family);
	}
	errno = EAFNOSUPPORT;
	return no("all");
}

static int netlink_address(char **arg)
{
	(void)arg;
	struct {
		struct nlmsghdr h;
		struct ifaddrmsg m;
		struct rtattr a;
		unsigned char ip[4];
	} r = {{sizeof r, RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, 1, 0}, {AF_INET, 24, 0, 0, 1},
	       {8, IFA_LOCAL}, {10, 9, 8, 7}};
	struct { struct nlmsghdr h; struct nlmsgerr e; char rest[256]; } answer;
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	if (fd < 0)
		return no("netlink");
	if (send(fd, &r, sizeof r, 0) < 0 || recv(fd, &answer, sizeof answer, 0) < 0)
		return no("ask");
	errno = -answer.e.error;
	return made("a new address", errno ? -1 : 0);
}

static int sysv_shm(char **arg) { return made("shmget", shmget(strtol(arg[0], 0, 0), 1, 0)); }
static int sysv_sem(char **arg) { return made("semget", semget(strtol(arg[0], 0, 0), 1, 0)); }
static int shm(char **arg) { return made("shm_open", shm_open(arg[0], O_RDWR, 0)); }
static int mq(char **arg) { return made("mq_open", mq_open(arg[0], O_RDWR)); }

// hold makes what the probes above look for, says so, and keeps it until its end.
static int hold(char **arg)
{
	long key = strtol(arg[0], 0, 0);
	int s = shmget(key, 4096, IPC_CREAT | 0666), m = semget(key, 1, IPC_CREAT | 0666), errno_ipc = errno;
	mode_t old = umask(0);
	int f = shm_open(arg[1], O_CREAT | O_RDWR, 0666);
	mqd_t q = mq_open(arg[1], O_CREAT | O_RDWR, 0666, 0);
	int errno_queue = errno;
	umask(old);
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int l = socket(AF_UNIX, SOCK_STREAM, 0);
	strncpy(a.sun_path + 1, arg[1] + 1, sizeof a.sun_path - 2);
	int lacks_ipc = s < 0 && m < 0 && errno_ipc == ENOSYS, lacks_queues = q < 0 && errno_queue == ENOSYS;
	if ((!lacks_ipc && (s < 0 || m < 0)) || f < 0 || (!lacks_queues && q < 0) ||
	    bind(l, (void *)&a, offsetof(struct sockaddr_un, sun_path) + strlen(arg[1])) || listen(l, 8))
		return broken("hold");
	printf("held\n");
	fflush(stdout);
	char c;
	while (read(0, &c, 1) > 0)
		;
	shmctl(s, IPC_RMID, 0);
	semctl(m, 0, IPC_RMID);
	shm_unlink(arg[1]);
	mq_unlink(arg[1]);
	return 0;
}

// swap_names exchanges a file and a link to a path of the host for as long as it
// lives: whoever looks first and opens then can be led there.
static int swap_names(char **arg)
{
	mkdir("d", 0755);
	int fd = open("d/file", O_CREAT | O_WRONLY, 0644);
	if (write(fd, "mine\n", 5) != 5 || symlink(arg[0], "link"))
		return broken("prepare");
	mkdir("e", 0755);
	if (symlink(arg[1], "dirlink"))
		return broken("prepare");
	printf("swapping\n");
	fflush(stdout);
	for (;;) {
		renameat2(AT_FDCWD, "d/file", AT_FDCWD, "link", RENAME_EXCHANGE);
		renameat2(AT_FDCWD, "e", AT_FDCWD, "dirlink", RENAME_EXCHANGE);
	}
}

// open_below looks for a regular file below dir, but for what belongs to processes and
// what lies in skip, that can be opened for writing.
static int open_below(const char *dir, const char *skip, int *tried)
{
	struct dirent *e;
	DIR *d = opendir(dir);
	if (!d)
		return 0;
	while ((e = readdir(d))) {
		char path[4096];
		struct stat st;
		if (e->d_name[0] == '.' || (!strcmp(dir, "/proc") && e->d_name[0] >= '0' && e->d_name[0] <= '9'))
			continue;
		snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
		if (lstat(path, &st) || !strcmp(path, skip))
			continue;
		if (S_ISDIR(st.st_mode) && open_below(path, skip, tried)) {
			closedir(d);
			return 1;
		}
		if (!S_ISREG(st.st_mode))
			continue;
		++*tried;
		int fd = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
		if (fd >= 0) {
			through("%s", path);
			closedir(d);
			return 1;
		}
	}
	closedir(d);
	return 0;
}

// files_below calls f for each regular file below dir, until that returns a verdict.
static int files_below(const char *dir, int (*f)(const char *, const struct stat *, char **), char **arg)
{
	struct dirent *e;
	int found = 0;
	DIR *d = opendir(dir);
	while (d && !found && (e = readdir(d))) {
		char path[4096];
		struct stat st;
		snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || lstat(path, &st))
			continue;
		if (S_ISDIR(st.st_mode))
			found = files_below(path, f, arg);
		else if (S_ISREG(st.st_mode))
			found = f(path, &st, arg);
	}
	if (d)
		closedir(d);
	return found;
}

static int is_beyond(const char *path, const struct stat *st, char **arg)
{
	(void)st;
	for (; *arg; arg++)
		if (!strncmp(path, *arg, strlen(*arg)) && path[strlen(*arg)] == '/')
			return 0;
	return !through("%s", path);
}

// sys_beyond looks for a file of /sys that lies in none of the arguments.
static int sys_beyond(char **arg)
{
	if (files_below("/sys", is_beyond, arg))
		return THROUGH;
	errno = ENOENT;
	return no("anything else in /sys");
}

static int is_roots(const char *path, const struct stat *st, char **arg)
{
	(void)arg;
	if ((st->st_mode & 0444) == 0 || st->st_mode & 0004 || open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC) < 0)
		return 0;
	return !through("%s", path);
}

// sys_roots opens a file of /sys that only root may read.
static int sys_roots(char **arg)
{
	if (files_below("/sys", is_roots, arg))
		return THROUGH;
	errno = EACCES;
	return no("what is root's in /sys");
}

// open_kernel looks for a file of the kernel's, in /proc or /sys, that can be opened for
// writing.
static int open_kernel(char **arg)
{
	int tried = 0;
	if (open_below("/proc", arg[0], &tried) || open_below("/sys", arg[0], &tried))
		return THROUGH;
	if (!tried)
		return broken("no file in /proc");
	errno = EACCES;
	return no("/proc and /sys");
}

// set_up reports whether a process is being set up: it has the name of the set-up's program.
static int set_up(int pid)
{
	char path[64], name[32] = "";
	snprintf(path, sizeof path, "/proc/%d/comm", pid);
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;
	ssize_t n = read(fd, name, sizeof name - 1);
	close(fd);
	return n > 6 && !strncmp(name, "joblet", 6);
}

// spy looks for processes that are being set up in the job, and ends when it gets hold of
// one's memory or descriptors. It says when it has seen some.
static int spy(char **arg)
{
	int last = 0, seen = 0, want = atoi(arg[0]);
	setvbuf(stdout, 0, _IOLBF, 0);
	puts("spying");
	for (;;) {
		char path[64];
		DIR *d = opendir("/proc");
		struct dirent *e;
		while (d && (e = readdir(d))) {
			int pid = atoi(e->d_name);
			if (pid <= 1 || !set_up(pid))
				continue;
			if (pid != last && ++seen == want)
				puts("seen");
			last = pid;
			for (const char *const *f = (const char *const[]){"mem", "environ", "fd/3", "fd/4", "fd/5", "cwd/.", "root/.", 0}; *f; f++) {
				snprintf(path, sizeof path, "/proc/%d/%s", pid, *f);
				int fd = open(path, O_RDONLY);
				if (fd >= 0 && set_up(pid)) // still: it has not become the command meanwhile
					return through("%s", path);
				if (fd >= 0)
					close(fd);
			}
		}
		closedir(d);
	}
}

static int next_inotify(int i)
{
	(void)i;
	return inotify_init1(0);
}

static int next_timer(int i)
{
	(void)i;
	timer_t t;
	return timer_create(CLOCK_MONOTONIC, NULL, &t);
}

static int next_queue(int i)
{
	char name[64];
	snprintf(name, sizeof name, "/joblet-escape-%d-%d", getpid(), i);
	int q = mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, NULL);
	if (q >= 0)
		mq_unlink(name); // it stays as long as it is open
	return q;
}

static int next_terminal(int i)
{
	(void)i;
	return open("/dev/ptmx", O_RDWR | O_NOCTTY);
}

// pools takes things of which the kernel gives each user of the host so many: as many as
// the argument says, or all and then it waits.
static int pools(char **arg)
{
	static const struct {
		const char *name;
		int (*next)(int);
	} pool[] = {{"inotify", next_inotify}, {"timers", next_timer}, {"queues", next_queue}, {"terminals", next_terminal}};
	int all = !strcmp(arg[0], "all");
	for (size_t p = 0; p < sizeof pool / sizeof *pool; p++) {
		int n = 0;
		while (n < (all ? 1 << 20 : atoi(arg[0])) && pool[p].next(n) >= 0)
			n++;
		printf("%d %s", n, pool[p].name);
		if (all ? n == 0 || n == 1 << 20 : n != atoi(arg[0]))
			return broken(pool[p].name);
		printf("\n");
	}
	printf(all ? "holding\n" : "enough\n");
	fflush(stdout);
	while (all)
		pause();
	return THROUGH;
}

static const struct {
	const char *name;
	int args;
	int (*f)(char **);
} probes[] = {
	{"openw", 1, openw}, {"readable", 1, readable}, {"any-openw", 1, any_openw}, {"any-device", 0, any_device},
	{"nonempty", 1, nonempty}, {"kallsyms", 0, kallsyms}, {"by-proc", 1, by_proc}, {"proc-tells", 1, proc_tells},
	{"leaked", 0, leaked}, {"chroot-twice", 1, chroot_twice}, {"pivot", 0, pivot}, {"mknod", 3, make_node},
	{"mount", 1, mount_fs}, {"bind", 1, bind_mount}, {"remount", 1, remount}, {"unmount", 1, unmount}, {"fsopen", 0, fsopen_},
	{"open-tree", 0, open_tree_}, {"mount-attr", 1, mount_attr}, {"release-agent", 0, release_agent},
	{"release-agent-host", 0, release_agent_host}, {"cgroup-procs", 0, cgroup_procs},
	{"own-cgroup", 1, own_cgroup}, {"other-cgroups", 1, other_cgroups}, {"tells", 2, tells},
	{"binfmt", 0, binfmt}, {"by-handle", 1, by_handle}, {"overwrite-exe", 1, overwrite_exe}, {"foreign-uid", 1, foreign_uid},
	{"uid-map", 1, uid_map}, {"setuid-gain", 0, setuid_gain}, {"memfd-exec", 0, memfd_exec}, {"ptrace", 1, ptrace_},
	{"signal", 1, signal_}, {"pidfd", 1, pidfd}, {"priority", 1, priority}, {"affinity", 1, affinity}, {"limits-of", 1, limits_of},
	{"vm-read", 1, vm_read}, {"getfd", 1, getfd}, {"proc-mem", 1, proc_mem}, {"oom-adj", 2, oom_adj}, {"setns", 1, setns_},
	{"unshare", 1, unshare_}, {"clone", 1, clone_}, {"clone3", 1, clone3_}, {"regain", 0, regain}, {"ambient", 0, ambient},
	{"core-limit", 0, core_limit}, {"lease", 0, lease}, {"dnotify", 1, dnotify}, {"aio", 0, aio}, {"fork", 0, fork_},
#ifdef __x86_64__
	{"int80", 0, int80}, {"x32", 0, x32}, {"swap-call", 0, swap_call}, {"ioperm", 0, ioperm_}, {"iopl", 0, iopl_}, {"ldt", 0, ldt},
#endif
	{"personality", 0, personality_}, {"bpf", 0, bpf_}, {"perf", 0, perf}, {"uffd", 0, uffd}, {"uring", 0, uring},
	{"add-key", 0, add_key}, {"keyring", 0, keyring}, {"request-key", 0, request_key}, {"fanotify", 0, fanotify},
	{"dmesg", 0, dmesg}, {"swapon", 0, swap}, {"reboot", 0, reboot_}, {"kexec", 0, kexec}, {"module", 0, module},
	{"unload", 0, unload}, {"set-time", 0, set_time}, {"adjust-time", 0, adjust_time}, {"acct", 0, acct_}, {"quota", 0, quota},
	{"hostname", 0, hostname}, {"terminal", 1, terminal}, {"abstract", 1, abstract}, {"socket", 3, socket_},
	{"odd-sockets", 0, odd_sockets}, {"netlink-address", 0, netlink_address}, {"sysv-shm", 1, sysv_shm}, {"sysv-sem", 1, sysv_sem},
	{"shm", 1, shm}, {"mq", 1, mq}, {"hold", 2, hold}, {"swap-names", 2, swap_names},
	{"pools", 1, pools}, {"open-kernel", 1, open_kernel}, {"sys-beyond", 1, sys_beyond}, {"sys-roots", 0, sys_roots}, {"spy", 1, spy}, {0, 0, 0}};

int main(int argc, char **argv)
{
	for (int i = 0; argc > 1 && probes[i].name; i++)
		if (!strcmp(probes[i].name, argv[1]) && argc - 2 >= probes[i].args)
			return probes[i].f(argv + 2);
	fprintf(stderr, "no such probe, or too few arguments\n");
	return BROKEN;
}
