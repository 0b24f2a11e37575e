// Package seccomp makes the system call filter of a job: a classic BPF program that the kernel runs
// over struct seccomp_data at each system call, see seccomp(2). It stands beside
// the capability checks of the job's user namespace, not in their place: its task
// is to keep kernel code out of reach that no ordinary program needs.
//
// It is an allow-list. The decision on each call is in seccompCalls. A number not
// listed there gets ENOSYS, below and above the newest we know of: what the
// filter does not know does not exist, and libc takes its older way. A known call
// that is refused gets EPERM, as from a kernel that wants a capability for it, or
// ENOSYS where callers go on without it only then.
//
// Decisions on the program as a whole:
//
//   - A call by another architecture's table (int 0x80 on amd64, a 32-bit program)
//     kills the process with SIGSYS: the numbers mean other calls there.
//   - The x32 calls of amd64 (bit 30 set) are numbers not listed: ENOSYS, as from
//     a kernel built without CONFIG_X86_X32_ABI.
//   - Arguments are compared by their low 32 bits alone, because each of those we
//     look at is a 32-bit integer to the kernel, which drops the upper half.
//     Comparing 64 bits would let a call through that differs only there
//     (CVE-2019-10063). Of pointers it is asked whether they are NULL, in both halves.
//   - A limit on core dumps stays what it is, but to set one seems to succeed (error 0):
//     scripts and programs with secrets go on only then.
//   - No SECCOMP_FILTER_FLAG_LOG or SECCOMP_RET_LOG: a job could flood the audit log of
//     the host, or have it limit what others log. A job whose denied calls are to be
//     known asks its shim instead (protocol.AskShim).
//   - SECCOMP_FILTER_FLAG_SPEC_ALLOW: see Flags.
//
// Cost. Since Linux 5.11 the kernel, when a filter is installed, walks it once for
// each call number of each table, and from then on allows what is allowed whatever
// its arguments without running the filter. So the install is what counts, and it
// is on the way of each job's start. The numbers are merged into ranges with one
// verdict and the program is a binary search over these, weighted so that a walk
// for every number is short.
//
// Measured on Linux 6.18 (amd64, two cores, medians of 200 forks each): to install a
// filter of one instruction takes 26 µs, this one (105 instructions) 100 µs, and a chain
// of one compare per allowed call, without the looks at arguments (314 instructions),
// 530 µs. An ioctl, which does run the filter, takes 25 ns longer than without one.
package seccomp

import (
	"math"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// Filter is a classic BPF program in the layout of struct sock_filter, as
// SECCOMP_SET_MODE_FILTER takes it.
type Filter []unix.SockFilter

// Flags are the flags to install a filter with.
//
// Up to Linux 5.15 a filter without SPEC_ALLOW takes speculative store bypass and
// indirect branch speculation from the process, for good, which costs some programs
// a good part of their speed. That protects against code within the same process,
// and a job is no such sandbox; a program that is one can ask for it by
// prctl(PR_SET_SPECULATION_CTRL). Linux 5.16 made that the default, and the flag has
// no effect there unless the command line says otherwise. It exists since 4.17.
const Flags = unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW

// Default is the filter of a job that asks for nothing else, on the
// running architecture. It is assembled at the first call; the slice is shared and
// must not be changed.
//
// To install it, a process must have no_new_privs set or CAP_SYS_ADMIN in its user
// namespace. It permits what follows: reporting a failed execve and exiting.
func Default() Filter { return seccompDefault() }

var seccompDefault = sync.OnceValue(func() Filter {
	return seccompAssemble(runtime.GOARCH, nil)
})

// seccompVerdict is what the filter does with a call. Those after seccompENOSYS
// look at the arguments.
type seccompVerdict uint8

const (
	seccompENOSYS seccompVerdict = iota // also of numbers not listed
	seccompEPERM
	seccompAllow
	seccompNamespaces  // clone, unshare: no new namespace
	seccompSocket      // families and protocols of ordinary networking
	seccompSocketpair  // AF_UNIX
	seccompIoctl       // all but a few of terminals
	seccompPersonality // only values that weaken nothing but the caller's own layout
	seccompPlainSocket // as seccompSocket, and no raw ones
	seccompFcntl       // no leases, no signals for what others do in a directory
	seccompSetrlimit   // none on core dumps
	seccompPrlimit     // as that
)

// seccompNewNamespace has the CLONE_NEW* flags. CLONE_NEWTIME is of unshare only:
// in clone(2) it lies within the number of the exit signal, where it is no valid
// signal and so nothing is lost by refusing it as well.
const seccompNewNamespace = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWTIME

// seccompPersonalityMask has the flags and execution domains that may be set:
// ADDR_NO_RANDOMIZE for gdb, setarch -R and the thread sanitizer, PER_LINUX32 and
// UNAME26 for what uname says. READ_IMPLIES_EXEC, MMAP_PAGE_ZERO and others are refused.
const seccompPersonalityMask = seccompAddrNoRandomize | seccompPerLinux32 | seccompUname26

// Of linux/personality.h; x/sys has none of them.
const (
	seccompPerLinux32      = 0x0000008
	seccompUname26         = 0x0020000
	seccompAddrNoRandomize = 0x0040000
	seccompPersonalityGet  = 0xffffffff // changes nothing, returns the present value
)

// seccompInetProtocols may be asked for with AF_INET and AF_INET6. Others (SCTP,
// DCCP, SMC, L2TP) would have the kernel load a seldom used module for any user who
// asks; CVE-2017-6074 was one.
var seccompInetProtocols = []uint32{
	unix.IPPROTO_IP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_MPTCP, // Go listens on MPTCP where it can
	unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6, unix.IPPROTO_RAW,
}

// seccompPlainProtocols are those of a job that may not make raw sockets.
var seccompPlainProtocols = []uint32{unix.IPPROTO_IP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_MPTCP}

// seccompIoctls are refused: TIOCSTI and TIOCLINUX put input into a terminal that
// its other readers take for typed (CVE-2017-5226, CVE-2023-1523), TIOCSETD attaches
// line disciplines, which are kernel modules with a record (CVE-2017-2636).
var seccompIoctls = []uint32{unix.TIOCSTI, unix.TIOCLINUX, unix.TIOCSETD}

// seccompFcntls are refused. A lease makes a process that opens the file, of another job or the
// host's root, wait for up to fs.lease-break-time, and a job's root owns the files of its
// runtime, which jobs share; a delegation (Linux 6.19) does so too. F_NOTIFY tells of
// directories as inotify does, by signals. The error is that of a file system without
// leases and of a kernel without the others.
var seccompFcntls = []uint32{unix.F_SETLEASE, unix.F_NOTIFY, seccompFSetDeleg}

const seccompFSetDeleg = 1024 + 16 // F_SETDELEG, from F_LINUX_SPECIFIC_BASE; x/sys does not have it

// seccompAssemble makes the filter for an architecture by its Go name. Any can be
// made anywhere, so that tests see all. changes are other verdicts than those of
// seccompCalls, by the call's name.
func seccompAssemble(goarch string, changes map[string]seccompVerdict) Filter {
	arch, number := seccompArch(goarch)
	var verdicts []seccompVerdict // by number; ends in one that stands for all above the highest
	for i := range seccompCalls {
		c := &seccompCalls[i]
		nr := int(number(c))
		if nr < 0 {
			continue
		}
		for len(verdicts) < nr+2 {
			verdicts = append(verdicts, seccompENOSYS)
		}
		verdicts[nr] = c.verdict
		if v, ok := changes[c.name]; ok {
			verdicts[nr] = v
		}
	}
	var ranges []seccompRange
	for nr, v := range verdicts {
		if nr == 0 || v != verdicts[nr-1] {
			ranges = append(ranges, seccompRange{first: uint32(nr), verdict: v})
		}
	}

	var p seccompProgram
	kill := p.ret(unix.SECCOMP_RET_KILL_PROCESS)
	tree := p.search(ranges, uint32(len(verdicts)), p.verdicts(func(v seccompVerdict) bool { return slices.Contains(verdicts, v) }))
	p.jump(unix.BPF_JEQ, arch, p.load(seccompOffNumber, tree), kill)
	p.load(seccompOffArch, p.here())
	slices.Reverse(p.code)
	return Filter(p.code)
}

// seccompArch returns what an architecture is to the kernel's audit, and which of a
// call's numbers is its own.
func seccompArch(goarch string) (audit uint32, number func(*seccompCall) int16) {
	switch goarch {
	case "amd64":
		return unix.AUDIT_ARCH_X86_64, func(c *seccompCall) int16 { return c.amd64 }
	case "arm64":
		return unix.AUDIT_ARCH_AARCH64, func(c *seccompCall) int16 { return c.arm64 }
	}
	panic("engine: no system call numbers for " + goarch)
}

// Offsets in struct seccomp_data.
const (
	seccompOffNumber = uint32(unsafe.Offsetof(protocol.SeccompData{}.Number))
	seccompOffArch   = uint32(unsafe.Offsetof(protocol.SeccompData{}.Arch))
	seccompOffArgs   = uint32(unsafe.Offsetof(protocol.SeccompData{}.Args))
)

// seccompArg is the offset of the low half of an argument; both architectures are
// little-endian.
func seccompArg(i uint32) uint32 { return seccompOffArgs + 8*i }

// seccompArgHigh is that of the high half.
func seccompArgHigh(i uint32) uint32 { return seccompArg(i) + 4 }

// seccompRange is a run of numbers with one verdict, up to the next range.
type seccompRange struct {
	first   uint32
	verdict seccompVerdict
}

// seccompProgram is a program under construction, from its last instruction to its
// first: BPF jumps only forwards, so all that an instruction may jump to is there
// already.
type seccompProgram struct {
	code []unix.SockFilter // reversed
}

// seccompLabel is an instruction, by its distance from the program's end.
type seccompLabel int

// seccompVerdicts says where the code of each verdict begins.
type seccompVerdicts map[seccompVerdict]seccompLabel

// here is the instruction put in last, which the next one is to precede.
func (p *seccompProgram) here() seccompLabel { return seccompLabel(len(p.code)) }

func (p *seccompProgram) put(code uint16, k uint32, jt, jf uint8) seccompLabel {
	p.code = append(p.code, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
	return p.here()
}

func (p *seccompProgram) ret(action uint32) seccompLabel {
	return p.put(unix.BPF_RET|unix.BPF_K, action, 0, 0)
}

func (p *seccompProgram) errno(e unix.Errno) seccompLabel {
	return p.ret(unix.SECCOMP_RET_ERRNO | uint32(e))
}

// load puts a word of struct seccomp_data into the accumulator and goes on at next,
// which must be the instruction put in last.
func (p *seccompProgram) load(offset uint32, next seccompLabel) seccompLabel {
	if next != p.here() {
		panic("engine: seccomp: a load does not jump")
	}
	return p.put(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset, 0, 0)
}

// jump compares the accumulator with k and goes on at yes or at no.
func (p *seccompProgram) jump(op uint16, k uint32, yes, no seccompLabel) seccompLabel {
	yes = p.near(yes)
	no = p.near(no)
	return p.put(unix.BPF_JMP|op|unix.BPF_K, k, uint8(p.here()-yes), uint8(p.here()-no))
}

// near is a label from which the program gets to another one, and that the next
// instruction or the one after it can jump to: such a jump has 8 bits.
func (p *seccompProgram) near(to seccompLabel) seccompLabel {
	if p.here()-to < math.MaxUint8 {
		return to
	}
	return p.put(unix.BPF_JMP|unix.BPF_JA, uint32(p.here()-to), 0, 0)
}

// oneOf goes on at yes when the accumulator is one of values, else at no.
func (p *seccompProgram) oneOf(values []uint32, yes, no seccompLabel) seccompLabel {
	for _, v := range slices.Backward(values) {
		no = p.jump(unix.BPF_JEQ, v, yes, no)
	}
	return no
}

// null goes on at yes when an argument is a null pointer, else at no. The high half
// comes first: by it protocol.RunFilter knows that this is a pointer.
func (p *seccompProgram) null(arg uint32, yes, no seccompLabel) seccompLabel {
	low := p.load(seccompArg(arg), p.jump(unix.BPF_JEQ, 0, yes, no))
	return p.load(seccompArgHigh(arg), p.jump(unix.BPF_JEQ, 0, low, no))
}

// verdicts puts in the end of each way through the program: a return, or the look
// at the arguments. uses says which of those the program needs.
func (p *seccompProgram) verdicts(uses func(seccompVerdict) bool) seccompVerdicts {
	family := p.errno(unix.EAFNOSUPPORT)
	protocol := p.errno(unix.EPROTONOSUPPORT)
	nosys := p.errno(unix.ENOSYS)
	perm := p.errno(unix.EPERM)
	allow := p.ret(unix.SECCOMP_RET_ALLOW)
	at := seccompVerdicts{seccompENOSYS: nosys, seccompEPERM: perm, seccompAllow: allow}

	if uses(seccompNamespaces) {
		at[seccompNamespaces] = p.load(seccompArg(0),
			p.jump(unix.BPF_JSET, seccompNewNamespace, perm, allow))
	}
	if uses(seccompIoctl) {
		at[seccompIoctl] = p.load(seccompArg(1), p.oneOf(seccompIoctls, perm, allow))
	}
	if uses(seccompFcntl) {
		invalid := p.errno(unix.EINVAL)
		at[seccompFcntl] = p.load(seccompArg(1), p.oneOf(seccompFcntls, invalid, allow))
	}
	if uses(seccompSetrlimit) || uses(seccompPrlimit) {
		done := p.errno(0)
		if uses(seccompSetrlimit) {
			at[seccompSetrlimit] = p.load(seccompArg(0), p.jump(unix.BPF_JEQ, unix.RLIMIT_CORE, done, allow))
		}
		if uses(seccompPrlimit) {
			set := p.null(3, done, perm) // a caller that wants the old limit would take what it finds there for it
			other := p.null(2, allow, set)
			at[seccompPrlimit] = p.load(seccompArg(1), p.jump(unix.BPF_JEQ, unix.RLIMIT_CORE, other, allow))
		}
	}
	if uses(seccompPersonality) {
		other := p.jump(unix.BPF_JSET, ^uint32(seccompPersonalityMask), perm, allow)
		at[seccompPersonality] = p.load(seccompArg(0),
			p.jump(unix.BPF_JEQ, seccompPersonalityGet, allow, other))
	}
	if uses(seccompSocketpair) {
		at[seccompSocketpair] = p.load(seccompArg(0),
			p.jump(unix.BPF_JEQ, unix.AF_UNIX, allow, family))
	}
	for _, v := range []struct {
		verdict   seccompVerdict
		highest   uint32 // type of an IP socket
		protocols []uint32
	}{
		{seccompSocket, unix.SOCK_RAW, seccompInetProtocols},
		{seccompPlainSocket, unix.SOCK_DGRAM, seccompPlainProtocols},
	} {
		if !uses(v.verdict) {
			continue
		}
		// Netlink: addresses and routes, which getifaddrs(3) asks for. The error is that
		// of a kernel without the protocol; libaudit, in useradd and su, goes on at it.
		netlink := p.load(seccompArg(2), p.jump(unix.BPF_JEQ, unix.NETLINK_ROUTE, allow, protocol))
		// Stream, datagram and raw, whose protocol 0 can mean only those listed. Of the
		// others SOCK_PACKET makes an AF_PACKET socket out of an AF_INET one.
		listed := p.load(seccompArg(2), p.oneOf(v.protocols, allow, protocol))
		p.jump(unix.BPF_JGT, v.highest, protocol, listed)
		inet := p.load(seccompArg(1), p.put(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, seccompSockTypeMask, 0, 0))
		no := p.jump(unix.BPF_JEQ, unix.AF_NETLINK, netlink, family)
		no = p.oneOf([]uint32{unix.AF_INET, unix.AF_INET6}, inet, no)
		at[v.verdict] = p.load(seccompArg(0), p.jump(unix.BPF_JEQ, unix.AF_UNIX, allow, no))
	}
	return at
}

// seccompSockTypeMask parts the type of a socket from its flags: SOCK_TYPE_MASK of
// linux/net.h.
const seccompSockTypeMask = 0xf

// search goes on at the verdict of the range that the accumulator lies in; the last
// range ends before end. Each step halves the numbers, not the ranges, as well as the
// borders allow: an install walks the program for every number.
func (p *seccompProgram) search(ranges []seccompRange, end uint32, at seccompVerdicts) seccompLabel {
	if len(ranges) == 1 {
		return at[ranges[0].verdict]
	}
	middle := ranges[0].first + (end-ranges[0].first)/2
	upper := 1 // the range that starts nearest to the middle
	for i, r := range ranges {
		if i > 0 && seccompDistance(r.first, middle) < seccompDistance(ranges[upper].first, middle) {
			upper = i
		}
	}
	border := ranges[upper].first
	yes := p.search(ranges[upper:], end, at)
	no := p.search(ranges[:upper], border, at)
	return p.jump(unix.BPF_JGE, border, yes, no)
}

func seccompDistance(a, b uint32) uint32 { return max(a, b) - min(a, b) }
