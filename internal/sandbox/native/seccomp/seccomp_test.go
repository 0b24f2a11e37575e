package seccomp

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

var seccompArchs = map[string]struct {
	audit, other uint32 // its own audit number, and that of the 32-bit calls on the same kernel
	number       func(seccompCall) int16
}{
	"amd64": {unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, func(c seccompCall) int16 { return c.amd64 }},
	"arm64": {unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM, func(c seccompCall) int16 { return c.arm64 }},
}

// seccompCallNumber is the number of a call on an architecture.
func seccompCallNumber(t *testing.T, goarch, name string) uint32 {
	t.Helper()
	for _, c := range seccompCalls {
		if c.name == name && seccompArchs[goarch].number(c) >= 0 {
			return uint32(seccompArchs[goarch].number(c))
		}
	}
	t.Fatalf("no call %s on %s", name, goarch)
	return 0
}

// Every call x/sys knows has a decision, under its number, on both architectures.
func TestSeccompCallsComplete(t *testing.T) {
	t.Parallel()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-f", "{{.Dir}}", "golang.org/x/sys/unix").Output()
	if err != nil {
		t.Fatalf("find x/sys: %v", err)
	}
	for goarch, arch := range seccompArchs {
		src, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "zsysnum_linux_"+goarch+".go"))
		if err != nil {
			t.Fatal(err)
		}
		want := make(map[string]int)
		for _, m := range regexp.MustCompile(`(?m)^\tSYS_(\w+)\s*= (\d+)`).FindAllSubmatch(src, -1) {
			want[strings.ToLower(string(m[1]))], _ = strconv.Atoi(string(m[2]))
		}
		delete(want, "arch_specific_syscall") // where an architecture's own would begin; arm64 has none
		if len(want) < 300 {
			t.Fatalf("%s: found only %d calls in x/sys", goarch, len(want))
		}
		for _, c := range seccompCalls {
			if arch.number(c) < 0 {
				continue
			}
			nr, ok := want[c.name]
			if !ok || nr != int(arch.number(c)) {
				t.Errorf("%s: %s is listed, once or again, as %d; x/sys has %d, %v", goarch, c.name, arch.number(c), nr, ok)
			}
			delete(want, c.name)
		}
		for name, nr := range want {
			t.Errorf("%s: nothing is decided on %s (%d)", goarch, name, nr)
		}
	}
}

// The kernel takes 4096 instructions and jumps forwards only; with at most 256 each
// jump fits in its 8 bits. The codes are those that the kernel's walk at install
// (seccomp_is_const_allow) understands: another would keep it from its shortcut.
func TestSeccompShape(t *testing.T) {
	t.Parallel()
	for goarch := range seccompArchs {
		f := seccompAssemble(goarch, nil)
		t.Logf("%s: %d instructions", goarch, len(f))
		if len(f) > 256 {
			t.Errorf("%s: %d instructions", goarch, len(f))
		}
		reached := map[int]bool{0: true}
		for i, in := range f {
			if !reached[i] {
				t.Errorf("%s: instruction %d %+v is never reached", goarch, i, in)
			}
			switch in.Code {
			case unix.BPF_RET | unix.BPF_K:
			case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
				reached[i+1] = true
				if in.K%4 != 0 || uintptr(in.K) >= unsafe.Sizeof(seccompData{}) {
					t.Errorf("%s: instruction %d loads from offset %d", goarch, i, in.K)
				}
			case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
				reached[i+1] = true
			case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K,
				unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
				reached[i+1+int(in.Jt)], reached[i+1+int(in.Jf)] = true, true
			default:
				t.Errorf("%s: instruction %d: unexpected code %#x", goarch, i, in.Code)
			}
		}
		for i := range reached {
			if i >= len(f) {
				t.Errorf("%s: a way leads to %d, past the end", goarch, i)
			}
		}
	}
}

func seccompRun(f Filter, d seccompData) uint32 {
	verdict, _, _ := protocol.RunFilter(f, &d)
	return verdict
}

type seccompData = protocol.SeccompData

const seccompAllowed = unix.SECCOMP_RET_ALLOW

func seccompErrno(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }

// seccompWant says what the filter must do with a call, in plain Go.
func seccompWant(goarch string, d seccompData) uint32 {
	arch := seccompArchs[goarch]
	if d.Arch != arch.audit {
		return unix.SECCOMP_RET_KILL_PROCESS
	}
	verdict := seccompENOSYS
	for _, c := range seccompCalls {
		if n := arch.number(c); n >= 0 && uint32(n) == d.Number {
			verdict = c.verdict
		}
	}
	allowIf := func(ok bool, otherwise unix.Errno) uint32 {
		if ok {
			return seccompAllowed
		}
		return seccompErrno(otherwise)
	}
	arg := func(i int) uint32 { return uint32(d.Args[i]) }
	switch verdict {
	case seccompAllow:
		return seccompAllowed
	case seccompEPERM:
		return seccompErrno(unix.EPERM)
	case seccompENOSYS:
		return seccompErrno(unix.ENOSYS)
	case seccompNamespaces:
		return allowIf(arg(0)&0x7e020080 == 0, unix.EPERM)
	case seccompIoctl:
		return allowIf(arg(1) != 0x5412 && arg(1) != 0x541c && arg(1) != 0x5423, unix.EPERM)
	case seccompPersonality:
		return allowIf(arg(0) == 0xffffffff || arg(0)&^(0x40000|0x20000|0x8) == 0, unix.EPERM)
	case seccompFcntl:
		return allowIf(arg(1) != 1024 && arg(1) != 1026 && arg(1) != 1040, unix.EINVAL)
	case seccompSetrlimit:
		return allowIf(arg(0) != 4, 0)
	case seccompPrlimit:
		switch {
		case arg(1) != 4 || d.Args[2] == 0:
			return seccompAllowed
		case d.Args[3] == 0:
			return seccompErrno(0)
		}
		return seccompErrno(unix.EPERM)
	case seccompSocketpair:
		return allowIf(arg(0) == 1, unix.EAFNOSUPPORT)
	case seccompSocket:
		switch arg(0) {
		case unix.AF_UNIX:
			return seccompAllowed
		case unix.AF_INET, unix.AF_INET6:
			kind := arg(1) & 0xf
			switch arg(2) {
			case 0, 1, 6, 17, 58, 255, 262:
				return allowIf(kind <= 3, unix.EPROTONOSUPPORT)
			}
			return seccompErrno(unix.EPROTONOSUPPORT)
		case unix.AF_NETLINK:
			return allowIf(arg(2) == 0, unix.EPROTONOSUPPORT)
		}
		return seccompErrno(unix.EAFNOSUPPORT)
	}
	panic(fmt.Sprintf("verdict %d", verdict))
}

// The program agrees with seccompWant on every number, with arguments that lie on and
// off what it looks for, in either half.
func TestSeccompAgrees(t *testing.T) {
	t.Parallel()
	edges := []uint64{
		0, 1, 2, 3, 4, 5, 6, 8, 10, 16, 17, 33, 38, 58, 132, 255, 256, 262, 1024, 1025, 1026, 1030, 1040, 0x5401, 0x5412, 0x541c, 0x5423,
		0x80801, 0x8000a, 0x20000, 0x20008, 0x40000, 0x60008, 0x400000, 0x10000000, 0x7e020080, 0xffffffff,
	}
	for goarch, arch := range seccompArchs {
		f := seccompAssemble(goarch, nil)
		rnd := rand.New(rand.NewPCG(1, 2))
		check := func(d seccompData) {
			if got, want := seccompRun(f, d), seccompWant(goarch, d); got != want {
				t.Fatalf("%s: %#v: %#x, want %#x", goarch, d, got, want)
			}
		}
		random := func(nr uint32) seccompData {
			d := seccompData{Number: nr, Arch: arch.audit, IP: rnd.Uint64()}
			for i := range d.Args {
				switch rnd.IntN(4) {
				case 0:
					d.Args[i] = rnd.Uint64()
				case 1:
					d.Args[i] = 1 << rnd.IntN(64)
				default:
					d.Args[i] = edges[rnd.IntN(len(edges))] | uint64(rnd.Uint32()&1)<<32
				}
			}
			return d
		}
		for nr := range uint32(601) {
			for range 50 {
				check(random(nr))
			}
			check(seccompData{Number: nr, Arch: arch.other})
			check(seccompData{Number: nr | 1<<30, Arch: arch.audit}) // x32
		}
		for range 20_000 {
			check(random(rnd.Uint32()))
			check(seccompData{Number: rnd.Uint32N(600), Arch: rnd.Uint32()})
		}
		for _, c := range seccompCalls {
			if c.verdict > seccompAllow && arch.number(c) >= 0 {
				for range 5000 {
					check(random(uint32(arch.number(c))))
				}
			}
		}
	}
}

func TestSeccompVerdicts(t *testing.T) {
	t.Parallel()
	const (
		perm, nosys      = unix.EPERM, unix.ENOSYS
		family, protocol = unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT
		high             = 1 << 32 // beyond what the kernel takes
		done             = unix.Errno(1 << 16)
		core             = unix.RLIMIT_CORE
	)
	type args = [6]uint64
	tests := []struct {
		calls string // several with the same arguments
		args  args
		want  unix.Errno // 0: allowed; done: not made, and no error
	}{
		{calls: "read write openat close mmap mprotect futex execve execveat exit exit_group rt_sigreturn wait4 sendmsg recvmsg"},
		{calls: "ptrace process_vm_readv process_vm_writev seccomp prctl prlimit64 setuid setgroups capset chroot mknodat"},
		{calls: "mbind get_mempolicy set_mempolicy adjtimex clock_adjtime clock_gettime sched_setaffinity pidfd_open rseq"},
		{calls: "mount umount2 pivot_root setns open_by_handle_at name_to_handle_at", want: perm},
		{calls: "bpf perf_event_open userfaultfd fanotify_init kcmp add_key keyctl request_key", want: perm},
		{calls: "kexec_load kexec_file_load init_module finit_module delete_module reboot swapon swapoff acct quotactl", want: perm},
		{calls: "settimeofday clock_settime syslog vhangup sethostname setdomainname move_pages migrate_pages", want: perm},
		{calls: "clone3 io_uring_setup io_uring_enter io_uring_register memfd_secret nfsservctl lookup_dcookie", want: nosys},
		{calls: "io_setup io_submit io_cancel io_destroy io_getevents io_pgetevents", want: nosys},
		{calls: "fsopen fsmount fsconfig fspick move_mount open_tree open_tree_attr mount_setattr quotactl_fd", want: nosys},

		{calls: "clone", args: args{unix.CLONE_VM | unix.CLONE_VFORK | uint64(unix.SIGCHLD)}},
		{calls: "clone", args: args{0x3d0f00}}, // pthread_create of glibc
		{calls: "unshare", args: args{unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SYSVSEM}},
		{calls: "clone unshare", args: args{unix.CLONE_NEWUSER}, want: perm},
		{calls: "clone unshare", args: args{unix.CLONE_NEWNS}, want: perm},
		{calls: "clone unshare", args: args{unix.CLONE_NEWPID}, want: perm},
		{calls: "clone unshare", args: args{unix.CLONE_NEWNET | unix.CLONE_FS}, want: perm},
		{calls: "clone unshare", args: args{unix.CLONE_NEWIPC}, want: perm},
		{calls: "clone unshare", args: args{unix.CLONE_NEWUTS}, want: perm},
		{calls: "clone unshare", args: args{unix.CLONE_NEWCGROUP}, want: perm},
		{calls: "unshare", args: args{unix.CLONE_NEWTIME}, want: perm},
		{calls: "clone", args: args{high | unix.CLONE_NEWUSER}, want: perm},

		{calls: "ioctl", args: args{0, unix.TCGETS}},
		{calls: "ioctl", args: args{0, unix.TIOCGWINSZ}},
		{calls: "ioctl", args: args{0, unix.TIOCSTI}, want: perm},
		{calls: "ioctl", args: args{0, high | unix.TIOCSTI}, want: perm},
		{calls: "ioctl", args: args{0, unix.TIOCLINUX}, want: perm},
		{calls: "ioctl", args: args{0, unix.TIOCSETD}, want: perm},

		{calls: "fcntl", args: args{3, unix.F_GETFL}},
		{calls: "fcntl", args: args{3, unix.F_OFD_SETLKW}},
		{calls: "fcntl", args: args{3, unix.F_GETLEASE}},
		{calls: "fcntl", args: args{3, unix.F_DUPFD_CLOEXEC}},
		{calls: "fcntl", args: args{3, unix.F_ADD_SEALS}},
		{calls: "fcntl", args: args{3, unix.F_SETLEASE, unix.F_WRLCK}, want: unix.EINVAL},
		{calls: "fcntl", args: args{3, unix.F_SETLEASE, unix.F_UNLCK}, want: unix.EINVAL},
		{calls: "fcntl", args: args{3, high | unix.F_SETLEASE}, want: unix.EINVAL},
		{calls: "fcntl", args: args{3, unix.F_NOTIFY}, want: unix.EINVAL},
		{calls: "fcntl", args: args{3, 1040}, want: unix.EINVAL},

		{calls: "setrlimit", args: args{unix.RLIMIT_NOFILE, 1}},
		{calls: "setrlimit", args: args{core, 1}, want: done},
		{calls: "setrlimit", args: args{high | core, 1}, want: done},
		{calls: "prlimit64", args: args{0, unix.RLIMIT_NOFILE, 1, 1}},
		{calls: "prlimit64", args: args{0, core}},
		{calls: "prlimit64", args: args{7, core, 0, 1}},
		{calls: "prlimit64", args: args{0, core, 1}, want: done},
		{calls: "prlimit64", args: args{7, high | core, high}, want: done},
		{calls: "prlimit64", args: args{7, core, 1, 1}, want: perm},
		{calls: "prlimit64", args: args{0, core, high, high}, want: perm},

		{calls: "personality", args: args{0}},
		{calls: "personality", args: args{0xffffffff}},
		{calls: "personality", args: args{0x40000}},
		{calls: "personality", args: args{0x20008}},
		{calls: "personality", args: args{0x400000}, want: perm},
		{calls: "personality", args: args{0x100000}, want: perm},
		{calls: "personality", args: args{0x440000}, want: perm},

		{calls: "socket socketpair", args: args{unix.AF_UNIX, unix.SOCK_STREAM}},
		{calls: "socketpair", args: args{unix.AF_INET, unix.SOCK_STREAM}, want: family},
		{calls: "socketpair", args: args{unix.AF_TIPC, unix.SOCK_STREAM}, want: family},
		{calls: "socket", args: args{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC}},
		{calls: "socket", args: args{unix.AF_INET6, unix.SOCK_DGRAM | unix.SOCK_NONBLOCK, unix.IPPROTO_UDP}},
		{calls: "socket", args: args{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}},
		{calls: "socket", args: args{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}},
		{calls: "socket", args: args{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, want: protocol},
		{calls: "socket", args: args{unix.AF_INET, unix.SOCK_SEQPACKET}, want: protocol},
		{calls: "socket", args: args{unix.AF_INET, unix.SOCK_DCCP, unix.IPPROTO_DCCP}, want: protocol},
		{calls: "socket", args: args{unix.AF_INET, unix.SOCK_PACKET, 3}, want: protocol},
		{calls: "socket", args: args{unix.AF_INET, unix.SOCK_PACKET | unix.SOCK_CLOEXEC}, want: protocol},
		{calls: "socket", args: args{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}},
		{calls: "socket", args: args{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC}, want: protocol},
		{calls: "socket", args: args{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, want: protocol},
		{calls: "socket", args: args{unix.AF_UNSPEC}, want: family},
		{calls: "socket", args: args{unix.AF_ALG, unix.SOCK_SEQPACKET}, want: family},
		{calls: "socket", args: args{unix.AF_VSOCK, unix.SOCK_STREAM}, want: family},
		{calls: "socket", args: args{unix.AF_PACKET, unix.SOCK_RAW}, want: family},
		{calls: "socket", args: args{unix.AF_BLUETOOTH, unix.SOCK_RAW}, want: family},
		{calls: "socket", args: args{unix.AF_CAN, unix.SOCK_RAW}, want: family},
		{calls: "socket", args: args{unix.AF_XDP, unix.SOCK_RAW}, want: family},
		{calls: "socket", args: args{high | unix.AF_ALG}, want: family},
	}
	for goarch, arch := range seccompArchs {
		f := seccompAssemble(goarch, nil)
		for _, tt := range tests {
			want := uint32(seccompAllowed)
			switch tt.want {
			case 0:
			case done:
				want = seccompErrno(0)
			default:
				want = seccompErrno(tt.want)
			}
			for name := range strings.FieldsSeq(tt.calls) {
				d := seccompData{Number: seccompCallNumber(t, goarch, name), Arch: arch.audit, Args: tt.args}
				if got := seccompRun(f, d); got != want {
					t.Errorf("%s: %s%#x: %#x, want %#x", goarch, name, tt.args, got, want)
				}
			}
		}
	}
}

// seccompHelper is the command that runs argv under the filter, put on by the thread
// that execs, as a job's set-up does. It is this test binary, see TestSeccompHelper.
func seccompHelper(t *testing.T, argv ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(t.Context(), exe, append([]string{"-test.run=^TestSeccompHelper$", "--", "seccomp-exec"}, argv...)...)
}

// TestSeccompHelper is no test: it is what the tests below run in processes of their own.
func TestSeccompHelper(t *testing.T) {
	switch flag.Arg(0) {
	case "seccomp-exec":
		argv := flag.Args()[1:]
		path, err := exec.LookPath(argv[0])
		if err == nil {
			err = seccompInstall(Default())
		}
		if err == nil {
			err = syscall.Exec(path, argv, os.Environ())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(125)
	case "seccomp-probe":
		runtime.LockOSThread()
		got := make(map[string]int)
		for _, p := range seccompProbes() {
			_, _, e := unix.Syscall6(uintptr(seccompCallNumber(t, runtime.GOARCH, p.call))|p.flags, p.args[0], p.args[1], p.args[2], p.args[3], 0, 0)
			got[p.name] = int(e)
		}
		_ = json.NewEncoder(os.Stdout).Encode(got)
		os.Exit(0)
	}
}

// seccompInstall puts the filter on the calling thread, which must go on to exec.
func seccompInstall(f Filter) error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot set no_new_privs: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, Flags, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return fmt.Errorf("install system call filter: %w", e)
	}
	return nil
}

// seccompProbe is a call tried for real, with arguments that do no harm even to a host
// on which the filter does not hold.
type seccompProbe struct {
	name, call string
	flags      uintptr // added to the number
	args       [4]uintptr
	want       unix.Errno
}

var seccompPair [2]int32

func seccompProbes() []seccompProbe {
	type args = [4]uintptr
	const high = uintptr(1) << 32
	return []seccompProbe{
		{"bpf", "bpf", 0, args{0xffff}, unix.EPERM},
		{"keyctl", "keyctl", 0, args{0xffff}, unix.EPERM},
		{"mount", "mount", 0, args{}, unix.EPERM},
		{"setns", "setns", 0, args{^uintptr(0)}, unix.EPERM},
		{"reboot", "reboot", 0, args{}, unix.EPERM},
		{"sethostname", "sethostname", 0, args{0, 1 << 16}, unix.EPERM},
		{"unshare NEWUSER", "unshare", 0, args{unix.CLONE_NEWUSER | 1<<40}, unix.EPERM},
		{"unshare FILES", "unshare", 0, args{unix.CLONE_FS | unix.CLONE_FILES}, 0},
		{"clone NEWUSER", "clone", 0, args{unix.CLONE_NEWUSER | unix.CLONE_THREAD}, unix.EPERM},
		{"clone3", "clone3", 0, args{}, unix.ENOSYS},
		{"io_uring_setup", "io_uring_setup", 0, args{}, unix.ENOSYS},
		{"fsopen", "fsopen", 0, args{}, unix.ENOSYS},
		{"unknown", "read", 1 << 12, args{}, unix.ENOSYS},
		{"x32 read", "read", 1 << 30, args{}, unix.ENOSYS},
		{"TIOCSTI", "ioctl", 0, args{^uintptr(0), unix.TIOCSTI}, unix.EPERM},
		{"TIOCSTI with a high half", "ioctl", 0, args{^uintptr(0), high | unix.TIOCSTI}, unix.EPERM},
		{"TIOCLINUX", "ioctl", 0, args{^uintptr(0), unix.TIOCLINUX}, unix.EPERM},
		{"TCGETS", "ioctl", 0, args{^uintptr(0), unix.TCGETS}, unix.EBADF},
		{"F_SETLEASE", "fcntl", 0, args{^uintptr(0), unix.F_SETLEASE}, unix.EINVAL},
		{"F_GETFL", "fcntl", 0, args{^uintptr(0), unix.F_GETFL}, unix.EBADF},
		{"io_setup", "io_setup", 0, args{}, unix.ENOSYS},
		{"setrlimit CORE", "setrlimit", 0, args{unix.RLIMIT_CORE}, 0}, // from nowhere
		{"prlimit64 CORE", "prlimit64", 0, args{0, unix.RLIMIT_CORE, 1}, 0},
		{"prlimit64 CORE, and the old", "prlimit64", 0, args{0, unix.RLIMIT_CORE, 1, 1}, unix.EPERM},
		{"prlimit64 NOFILE", "prlimit64", 0, args{0, unix.RLIMIT_NOFILE, 1}, unix.EFAULT},
		{"personality get", "personality", 0, args{0xffffffff}, 0},
		{"personality READ_IMPLIES_EXEC", "personality", 0, args{0x400000}, unix.EPERM},
		{"socketpair", "socketpair", 0, args{unix.AF_UNIX, unix.SOCK_STREAM, 0, uintptr(unsafe.Pointer(&seccompPair))}, 0},
		{"AF_UNIX", "socket", 0, args{unix.AF_UNIX, unix.SOCK_STREAM}, 0},
		{"AF_INET", "socket", 0, args{unix.AF_INET, unix.SOCK_STREAM}, 0},
		{"NETLINK_ROUTE", "socket", 0, args{unix.AF_NETLINK, unix.SOCK_RAW}, 0},
		{"NETLINK_GENERIC", "socket", 0, args{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC}, unix.EPROTONOSUPPORT},
		{"AF_ALG", "socket", 0, args{unix.AF_ALG, unix.SOCK_SEQPACKET}, unix.EAFNOSUPPORT},
		{"AF_VSOCK", "socket", 0, args{unix.AF_VSOCK, unix.SOCK_STREAM}, unix.EAFNOSUPPORT},
		{"AF_PACKET", "socket", 0, args{unix.AF_PACKET, unix.SOCK_RAW}, unix.EAFNOSUPPORT},
		{"SOCK_PACKET", "socket", 0, args{unix.AF_INET, unix.SOCK_PACKET}, unix.EPROTONOSUPPORT},
		{"SCTP", "socket", 0, args{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, unix.EPROTONOSUPPORT},
		{"process_vm_readv", "process_vm_readv", 0, args{uintptr(os.Getpid())}, 0},
	}
}

// A Go program, with its threads, tries it.
func TestSeccompRefuses(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := seccompHelper(t, exe, "-test.run=^TestSeccompHelper$", "--", "seccomp-probe").CombinedOutput()
	got := make(map[string]int)
	if err != nil || json.Unmarshal(out, &got) != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, p := range seccompProbes() {
		if e, ok := got[p.name]; !ok || unix.Errno(e) != p.want {
			t.Errorf("%s: %d (%v), want %d (%v)", p.name, e, unix.Errno(e), p.want, p.want)
		}
	}
}

func TestSeccompOrdinaryPrograms(t *testing.T) {
	t.Parallel()
	tests := []struct {
		argv []string
		want string
	}{
		{[]string{"bash", "-c", `sleep 0 & wait; x=$(echo a | tr a b); (exit 3) || echo "$x $?" > >(cat); wait`}, "b 3\n"},
		{[]string{"sh", "-c", `d=$(mktemp -d) && cd "$d" && mkfifo p && mkdir q && ln -s p r && tar cf - . | tar tf - | wc -l && rm -r "$d"`}, "4\n"},
		{[]string{"grep", "Seccomp:", "/proc/self/status"}, "Seccomp:\t2\n"},
		{[]string{"python3", "-c", `
import socket, subprocess, tempfile, threading
a, b = socket.socketpair()
server = socket.create_server(("127.0.0.1", 0))
threads = [threading.Thread(target=a.send, args=(b"x",)) for _ in range(20)]
[t.start() for t in threads]
[t.join() for t in threads]
with socket.create_connection(server.getsockname()), tempfile.TemporaryFile() as f:
    f.write(b.recv(100))
    print(len(threads), subprocess.run(["echo", "ok"], capture_output=True, text=True).stdout.strip())
`}, "20 ok\n"},
	}
	for _, tt := range tests {
		t.Run(tt.argv[0], func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(tt.argv[0]); err != nil {
				t.Skipf("requires %s", tt.argv[0])
			}
			out, err := seccompHelper(t, tt.argv...).CombinedOutput()
			if err != nil || string(out) != tt.want {
				t.Errorf("%v: %q, want %q", err, out, tt.want)
			}
		})
	}
}

// A 64-bit program that calls by the 32-bit table (number 20 is getpid there, writev
// here) is killed. Not parallel: a fork elsewhere while the file is open for writing
// would make exec fail with ETXTBSY.
func TestSeccompForeignTable(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("requires amd64")
	}
	code := []byte{
		0xb8, 20, 0, 0, 0, 0xcd, 0x80, // mov eax, 20; int 0x80
		0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05, // xor edi, edi; mov eax, 60 (exit); syscall
	}
	const base, head = 0x400000, 64 + 56
	var elf bytes.Buffer
	for _, v := range []any{
		[16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, uint16(2), uint16(62), uint32(1), // executable, x86-64
		uint64(base + head), uint64(64), uint64(0), uint32(0), // entry, program headers, no sections, flags
		uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), // load all of the file, readable and executable
		uint64(head + len(code)), uint64(head + len(code)), uint64(0x1000),
		code,
	} {
		if err := binary.Write(&elf, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "int80")
	if err := os.WriteFile(path, elf.Bytes(), 0o700); err != nil {
		t.Fatal(err)
	}
	err := exec.CommandContext(t.Context(), path).Run()
	ee, ok := errors.AsType[*exec.ExitError](err)
	if ok && slices.Contains([]syscall.Signal{syscall.SIGSEGV, syscall.SIGILL, syscall.SIGSYS}, ee.Sys().(syscall.WaitStatus).Signal()) {
		t.Skipf("requires a kernel with 32-bit calls: %v", err)
	} else if err != nil {
		t.Fatalf("the control: %v", err)
	}
	err = seccompHelper(t, path).Run()
	ee, ok = errors.AsType[*exec.ExitError](err)
	if !ok || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGSYS {
		t.Errorf("%v, want killed by SIGSYS", err)
	}
}

// BenchmarkSeccompAssemble is what the daemon pays once.
func BenchmarkSeccompAssemble(b *testing.B) {
	for b.Loop() {
		seccompAssemble(runtime.GOARCH, nil)
	}
}
