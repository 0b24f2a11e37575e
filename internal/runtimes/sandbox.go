package runtimes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A build runs in a sandbox, because packages bring scripts that run as root:
//
//   - user, PID, mount, network, IPC, UTS and cgroup namespaces of its own, with
//     65,536 subordinate ids, so that its root is nobody on the host;
//   - a root of its own: the host's /usr read-only, the few files of /etc that apt
//     and dpkg need, a small /dev, and the build directory as [sandboxDir] on a
//     nosuid, nodev mount that exists in the sandbox alone;
//   - a network with nothing but loopback, where the daemon answers requests for
//     the files of the build's mirrors until the packages are downloaded, before
//     the first script runs (mirror.go).
//
// The daemon starts its own program for it, which recognises its name
// ([SandboxInit]), builds the root, starts mmdebstrap and reaps.

const (
	sandboxName = "joblet-build"       // argv[0] of the sandbox's first process
	innerName   = "joblet-build-inner" // and of that which becomes the program
	sandboxDir  = "/build"             // where the sandbox sees the build directory

	// Descriptors of the sandbox's first process.
	sandboxConfigFD = 3 // a pipe with the sandboxConfig
	sandboxBuildFD  = 4 // the mount of the build directory
	sandboxToolFD   = 5 // the mount of mmdebstrap's directory, if that is not below /usr

	sandboxIDs = 65536
	// firstBuildID and the ranges behind it end where those of jobs begin.
	firstBuildID = 0x6FF00000
	maxBuilds    = 16
)

// sandboxConfig is what the sandbox's first process is told.
type sandboxConfig struct {
	ToolDir string   // where the mount in sandboxToolFD goes; "": there is none
	Path    string   // of the program that replaces it
	Args    []string // without its name
	Env     []string
}

// buildIDs hands out the ranges of subordinate ids, each to one build at a time.
// Processes of two sandboxes with the same range still cannot see each other.
type buildIDs struct {
	mu   sync.Mutex
	used [maxBuilds]bool
}

func (b *buildIDs) take() (base uint32, giveBack func(), ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.used {
		if !b.used[i] {
			b.used[i] = true
			return firstBuildID + uint32(i)*sandboxIDs, func() {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.used[i] = false
			}, true
		}
	}
	return 0, nil, false
}

// sandbox is a started sandbox whose first process waits to be released.
type sandbox struct {
	cmd    *exec.Cmd
	config *os.File
}

// startSandbox starts the first process of a sandbox. The caller must call
// release or kill and then Wait on cmd, all on the calling thread: the sandbox
// dies with it.
func startSandbox(buildDir, toolDir string, base uint32, output *os.File) (_ *sandbox, err error) {
	program, err := ownProgram()
	if err != nil {
		return nil, fmt.Errorf("cannot copy the program into the sandbox: %w", err)
	}
	defer func() { _ = program.Close() }()
	config, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = config.Close() }()
	defer func() {
		if err != nil {
			_ = theirs.Close()
		}
	}()
	files := []*os.File{config}
	build, err := detachedMount(buildDir, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, err
	}
	defer func() { _ = build.Close() }()
	files = append(files, build)
	if toolDir != "" {
		tool, err := detachedMount(toolDir, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_RDONLY)
		if err != nil {
			return nil, err
		}
		defer func() { _ = tool.Close() }()
		files = append(files, tool)
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: sandboxIDs}}
	cmd := &exec.Cmd{
		Path: "/proc/self/fd/" + strconv.Itoa(int(program.Fd())), Args: []string{sandboxName},
		Dir: "/", Env: []string{"GOMAXPROCS=1"}, Stdout: output, Stderr: output, ExtraFiles: files,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET |
				syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
			UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
			Credential: &syscall.Credential{Uid: 0, Gid: 0},
			Setsid:     true,
			// It fires when the thread that forked ends (go.dev/issue/27505).
			Pdeathsig: syscall.SIGKILL,
		},
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start the sandbox: %w", err)
	}
	return &sandbox{cmd: cmd, config: theirs}, nil
}

// release lets the sandbox go on and become the program.
func (s *sandbox) release(c sandboxConfig) error {
	data, err := json.Marshal(c)
	if err == nil {
		_, err = s.config.Write(data)
	}
	if err = errors.Join(err, s.config.Close()); err != nil {
		return fmt.Errorf("cannot start the sandbox's set-up: %w", err)
	}
	return nil
}

// kill ends the sandbox; with its first process the kernel ends all others.
func (s *sandbox) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.config.Close()
}

// listen returns a listener on the sandbox's loopback address.
func (s *sandbox) listen() (net.Listener, error) {
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		// The thread stays in the sandbox's network namespace and therefore
		// ends with this goroutine.
		runtime.LockOSThread()
		l, err := listenInNetwork("/proc/" + strconv.Itoa(s.cmd.Process.Pid) + "/ns/net")
		done <- result{l, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("cannot set up the sandbox's network: %w", r.err)
	}
	return r.l, nil
}

func listenInNetwork(ns string) (net.Listener, error) {
	fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: ns, Err: err}
	}
	err = unix.Setns(fd, unix.CLONE_NEWNET)
	_ = unix.Close(fd)
	if err != nil {
		return nil, os.NewSyscallError("setns", err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	socket := os.NewFile(uintptr(s), "listener")
	defer func() { _ = socket.Close() }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return nil, err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr); err != nil {
		return nil, os.NewSyscallError("bring lo up", err)
	}
	if err := unix.Bind(s, &unix.SockaddrInet4{Port: fetchPort, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(s, 64); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	return net.FileListener(socket)
}

// detachedMount returns a copy of the mount at dir that is in no namespace yet.
func detachedMount(dir string, attrs uint64) (*os.File, error) {
	source, err := unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(source) }()
	fd, err := unix.OpenTree(source, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir)
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attrs, Propagation: unix.MS_PRIVATE}); err != nil {
		_ = f.Close()
		return nil, &os.PathError{Op: "mount_setattr", Path: dir, Err: err}
	}
	return f, nil
}

// ownProgram returns a sealed copy of the running program, which the sandbox's
// ids may execute whatever the modes of the original and of the directories above.
func ownProgram() (*os.File, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer func() { _ = self.Close() }()
	fd, err := unix.MemfdCreate(sandboxName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 every memfd is executable
		fd, err = unix.MemfdCreate(sandboxName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	writer := os.NewFile(uintptr(fd), sandboxName)
	defer func() { _ = writer.Close() }()
	if _, err := io.Copy(writer, self); err != nil {
		return nil, err
	}
	if err := unix.Fchmod(fd, 0o555); err != nil {
		return nil, os.NewSyscallError("fchmod", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return nil, os.NewSyscallError("seal", err)
	}
	// Opened again for reading: a program that is open for writing cannot be
	// executed. The number is above those that the child gives to its own.
	path := "/proc/self/fd/" + strconv.Itoa(fd)
	reader, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	high, err := unix.FcntlInt(uintptr(reader), unix.F_DUPFD_CLOEXEC, 64)
	_ = unix.Close(reader)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	return os.NewFile(uintptr(high), sandboxName), nil
}

// SandboxInit is the life of a sandbox's first two processes. It returns at once
// in any other process; main calls it before all else.
func SandboxInit() {
	if len(os.Args) != 1 {
		return
	}
	var err error
	switch {
	case os.Args[0] == sandboxName && os.Getpid() == 1:
		var status int
		if status, err = beSandboxInit(); err == nil {
			os.Exit(status)
		}
	case os.Args[0] == innerName && os.Getppid() == 1:
		err = becomeProgram()
	default:
		return
	}
	fmt.Fprintf(os.Stderr, "E: sandbox: %v\n", err)
	os.Exit(1)
}

// beSandboxInit builds the sandbox's root and starts the program, in a user and a
// mount namespace inside the sandbox's: there the flags of mounts are locked, and
// the network and the first process are out of reach. It reaps until the program
// ends and returns that one's status.
func beSandboxInit() (int, error) {
	runtime.LockOSThread() // capabilities are a thread's
	data, err := io.ReadAll(os.NewFile(sandboxConfigFD, "configuration"))
	if err != nil {
		return 0, err
	}
	if len(data) == 0 {
		return 0, errors.New("the daemon ended the build")
	}
	var c sandboxConfig
	if err := json.Unmarshal(data, &c); err != nil {
		return 0, err
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"build the root", func() error { return sandboxRoot(c) }},
		{"mask /proc", maskProc},
		{"set limits", limitSandbox},
	} {
		if err := step.do(); err != nil {
			return 0, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	same := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: sandboxIDs}}
	inner, err := os.StartProcess("/proc/self/exe", []string{innerName}, &os.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=1"}, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, r},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: same, GidMappings: same, GidMappingsEnableSetgroups: true,
			Credential: &syscall.Credential{Uid: 0, Gid: 0},
		},
	})
	if err != nil {
		return 0, err
	}
	// Scripts run with the same ids, but not in this user namespace.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, os.NewSyscallError("prctl PR_SET_DUMPABLE", err)
	}
	if err := dropSandboxPrivileges(0); err != nil {
		return 0, err
	}
	_ = r.Close()
	_, err = w.Write(data)
	if err = errors.Join(err, w.Close()); err != nil {
		return 0, err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, os.NewSyscallError("wait4", err)
		case pid != inner.Pid:
		case status.Signaled():
			return 128 + int(status.Signal()), nil
		default:
			return status.ExitStatus(), nil
		}
	}
}

func becomeProgram() error {
	runtime.LockOSThread()
	var c sandboxConfig
	if err := json.NewDecoder(os.NewFile(sandboxConfigFD, "configuration")).Decode(&c); err != nil {
		return err
	}
	if err := dropSandboxPrivileges(sandboxCaps); err != nil {
		return fmt.Errorf("cannot drop privileges: %w", err)
	}
	unix.Umask(0o022)
	// Nothing else stays open; 0 is /dev/null, 1 and 2 are the log's pipe.
	if err := unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return os.NewSyscallError("close_range", err)
	}
	return os.NewSyscallError("execve "+c.Path, unix.Exec(c.Path, append([]string{c.Path}, c.Args...), c.Env))
}

// sandboxEtc are the files of the host's /etc that apt, dpkg and perl read: names
// of users, and where libraries and alternatives are.
var sandboxEtc = []string{"passwd", "group", "nsswitch.conf", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "debian_version", "dpkg/origins", "perl"}

var sandboxDevices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// sandboxRootBytes bounds what is written to the sandbox's root outside the build
// directory.
const sandboxRootBytes = "size=64m,nr_inodes=16k,mode=0755"

func sandboxRoot(c sandboxConfig) error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	const root = "/tmp" // every host has it, and nothing else is needed of it
	if err := mount("joblet-build", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, sandboxRootBytes); err != nil {
		return err
	}
	for _, d := range []struct {
		name string
		mode os.FileMode
	}{
		{"usr", 0o755}, {"etc", 0o755}, {"etc/dpkg", 0o755}, {"dev", 0o755}, {"dev/pts", 0o755}, {"dev/shm", 0o1777}, {"proc", 0o555}, {"tmp", 0o1777},
		{"run", 0o755}, {"root", 0o700}, {"var", 0o755}, {"var/tmp", 0o1777}, {"var/lib", 0o755}, {"var/lib/dpkg", 0o755}, {sandboxDir[1:], 0o755},
	} {
		p := filepath.Join(root, d.name)
		if err := os.Mkdir(p, 0o700); err != nil {
			return err
		}
		if err := unix.Chmod(p, uint32(d.mode)); err != nil {
			return &os.PathError{Op: "chmod", Path: p, Err: err}
		}
	}
	if err := bindReadOnly("/usr", root+"/usr"); err != nil {
		return err
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		if err := sameInRoot("/"+name, root+"/"+name); err != nil {
			return err
		}
	}
	for _, name := range sandboxEtc {
		if err := sameInRoot("/etc/"+name, root+"/etc/"+name); err != nil {
			return err
		}
	}
	for _, name := range sandboxDevices {
		target := root + "/dev/" + name
		if _, err := os.Stat("/dev/" + name); err != nil {
			continue // a container without it
		}
		if err := os.WriteFile(target, nil, 0o644); err != nil {
			return err
		}
		if err := mount("/dev/"+name, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"} {
		if err := os.Symlink(target, root+"/dev/"+link); err != nil {
			return err
		}
	}
	if err := mount("devpts", root+"/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
		return err
	}
	if err := mount("proc", root+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := attach(sandboxBuildFD, root+sandboxDir); err != nil {
		return err
	}
	if c.ToolDir != "" {
		if err := os.MkdirAll(root+c.ToolDir, 0o755); err != nil {
			return err
		}
		if err := attach(sandboxToolFD, root+c.ToolDir); err != nil {
			return err
		}
	}
	// With both arguments the same directory, the old root lies on top of the
	// new one, and umount takes it away (pivot_root(2)).
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return os.NewSyscallError("detach the host's root", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return os.NewSyscallError("sethostname", unix.Sethostname([]byte("joblet-build")))
}

func attach(fd int, target string) error {
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: target, Err: err}
	}
	return unix.Close(fd)
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return &os.PathError{Op: "mount", Path: target, Err: err}
	}
	return nil
}

// bindReadOnly makes source, which the target has the type of, visible there.
func bindReadOnly(source, target string) error {
	if err := mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW, &attr); err != nil {
		return &os.PathError{Op: "mount_setattr", Path: target, Err: err}
	}
	return nil
}

// sameInRoot gives the sandbox a file, directory or link of the host, if there is
// one.
func sameInRoot(source, target string) error {
	fi, err := os.Lstat(source)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case fi.Mode()&os.ModeSymlink != 0:
		link, err := os.Readlink(source)
		if err != nil {
			return err
		}
		return os.Symlink(link, target)
	case fi.IsDir():
		err = os.Mkdir(target, 0o755)
	default:
		err = os.WriteFile(target, nil, 0o644)
	}
	if err != nil {
		return err
	}
	return bindReadOnly(source, target)
}

// maskProc takes away what is writable in /proc without privileges on the host,
// or tells of it, and the right to make user namespaces, but for one.
func maskProc() error {
	err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if fi, err := os.Stat("/proc/pressure"); err == nil && fi.IsDir() {
		if err := mount("none", "/proc/pressure", "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k,mode=0555"); err != nil {
			return err
		}
	}
	for _, name := range []string{"sys", "irq", "bus", "fs", "sysrq-trigger", "kcore", "keys", "key-users", "kallsyms"} {
		p := "/proc/" + name
		fi, err := os.Stat(p)
		if err != nil {
			continue // this kernel lacks it
		}
		if fi.IsDir() || name == "sysrq-trigger" {
			err = bindReadOnly(p, p)
		} else {
			err = mount("/dev/null", p, "", unix.MS_BIND, "")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Limits of a single process of a build; those of all together are the cgroup's.
const (
	sandboxFileSize  = 8 << 30
	sandboxProcesses = 4096
)

func limitSandbox() error {
	for resource, limit := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_FSIZE: sandboxFileSize, unix.RLIMIT_NPROC: sandboxProcesses, unix.RLIMIT_MSGQUEUE: 0} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
	}
	return nil
}

// sandboxCaps is what installing packages takes. They hold in the sandbox's user
// namespace alone.
const sandboxCaps = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
	1<<unix.CAP_KILL | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETFCAP | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_SYS_ADMIN

// dropSandboxPrivileges leaves the thread, and what it executes, these capabilities.
func dropSandboxPrivileges(keep uint64) error {
	_, _ = unix.KeyctlJoinSessionKeyring("") // ENOSYS where the kernel has no keys
	for c := range uintptr(64) {
		if keep&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // beyond the kernel's last
			return os.NewSyscallError("drop from the bounding set", err)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	low, high := uint32(keep), uint32(keep>>32)
	set := [2]unix.CapUserData{{Effective: low, Permitted: low}, {Effective: high, Permitted: high}}
	if err := unix.Capset(&header, &set[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
}

// toolDirOf returns the directory of a program that the sandbox does not have
// anyway, or "".
func toolDirOf(program string) string {
	for _, dir := range []string{"/usr/", "/bin/", "/sbin/"} {
		if strings.HasPrefix(program, dir) {
			return ""
		}
	}
	return filepath.Dir(program)
}
