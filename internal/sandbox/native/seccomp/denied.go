package seccomp

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// canLogDenied reports whether the kernel can ask a shim about calls.
var canLogDenied = sync.OnceValue(func() error {
	action := uint32(unix.SECCOMP_RET_USER_NOTIF)
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	if errno != 0 {
		return joblet.Errorf(joblet.FailedPrecondition, "cannot log denied calls: the kernel of this host cannot report them (seccomp user notification, Linux 5.0): %w", errno)
	}
	return nil
})

// DeniedCalls puts what a shim has counted in a job with this security into
// words, the most frequent first.
func DeniedCalls(s joblet.Security, counted []protocol.Denied) []joblet.DeniedCall {
	var all []joblet.DeniedCall
	index := make(map[joblet.DeniedCall]int) // with Count 0
	remedies := remedies{security: s, filters: make(map[string]Filter)}
	for _, d := range counted {
		name := seccompName(d.Number)
		c := joblet.DeniedCall{Call: name, Errno: unix.ErrnoName(syscall.Errno(d.Errno)), Argument: deniedArgument(name, d.DeniedKey), Remedy: remedies.of(name, d.DeniedKey)}
		if c.Errno == "" {
			c.Errno = fmt.Sprint(d.Errno)
		}
		at, seen := index[c]
		if !seen {
			at = len(all)
			index[c] = at
			all = append(all, c)
		}
		all[at].Count += d.Count
	}
	slices.SortStableFunc(all, func(a, b joblet.DeniedCall) int {
		switch {
		case a.Count > b.Count:
			return -1
		case a.Count < b.Count:
			return 1
		}
		return strings.Compare(a.Call+a.Argument, b.Call+b.Argument)
	})
	return all
}

var seccompNames = sync.OnceValue(func() map[uint32]string {
	names := make(map[uint32]string, len(seccompCalls))
	_, number := seccompArch(runtime.GOARCH)
	for i := range seccompCalls {
		if nr := number(&seccompCalls[i]); nr >= 0 {
			names[uint32(nr)] = seccompCalls[i].name
		}
	}
	return names
})

func seccompName(number uint32) string {
	if name, ok := seccompNames()[number]; ok {
		return name
	}
	if number == protocol.OtherCalls {
		return "others"
	}
	return fmt.Sprintf("#%d", number)
}

// remedies finds out what would let a job make calls by running other filters over
// them, so that it says what is so.
type remedies struct {
	security joblet.Security
	filters  map[string]Filter // by what they are for; nil: cannot be
}

func (r *remedies) of(name string, d protocol.DeniedKey) joblet.Remedy {
	if _, known := seccompByName()[name]; !known {
		return joblet.RemedyNone
	}
	s := r.security
	nested := "nested"
	if slices.Contains(s.DenyCalls, name) {
		s.DenyCalls = slices.DeleteFunc(slices.Clone(s.DenyCalls), func(c string) bool { return c == name })
		// Of a call that is denied altogether no arguments are known.
		if allowed, looked := r.run("deny "+name, s, d); allowed || looked != 0 {
			return joblet.RemedyDeny
		}
		nested = "nested without deny " + name
	}
	other := s
	other.Profile = joblet.ProfileNested
	if !slices.Contains(s.AllowCalls, name) {
		s.AllowCalls = append(slices.Clone(s.AllowCalls), name)
	}
	if allowed, _ := r.run("allow "+name, s, d); allowed {
		return joblet.RemedyAllow
	}
	if allowed, _ := r.run(nested, other, d); allowed {
		return joblet.RemedyNested
	}
	return joblet.RemedyNone
}

// run runs the filter of s over a call; what names the filter.
func (r *remedies) run(what string, s joblet.Security, d protocol.DeniedKey) (allowed bool, looked uint8) {
	filter, made := r.filters[what]
	if !made {
		filter, _ = compile(s) // an error: there is no such profile
		r.filters[what] = filter
	}
	arch, _ := seccompArch(runtime.GOARCH)
	data := protocol.SeccompData{Number: d.Number, Arch: arch}
	for i, a := range d.Args {
		data.Args[i] = uint64(a)
	}
	verdict, looked, _ := protocol.RunFilter(filter, &data)
	return verdict == unix.SECCOMP_RET_ALLOW, looked
}

// deniedArgument names the argument for which a call was refused.
func deniedArgument(name string, d protocol.DeniedKey) string {
	if d.Looked == 0 {
		return ""
	}
	switch name {
	case "socket", "socketpair":
		words := []string{nameOf(socketFamilies, d.Args[0], "family %d")}
		if d.Looked&2 != 0 {
			words = append(words, nameOf(socketTypes, d.Args[1]&seccompSockTypeMask, "type %d"))
		}
		if d.Looked&4 != 0 {
			words = append(words, fmt.Sprintf("protocol %d", d.Args[2]))
		}
		return strings.Join(words, ", ")
	case "clone", "unshare":
		var flags []string
		for _, f := range namespaceFlags {
			if d.Args[0]&f.flag != 0 {
				flags = append(flags, f.name)
			}
		}
		return strings.Join(flags, "|")
	case "ioctl":
		return nameOf(deniedIoctls, d.Args[1], "%#x")
	case "fcntl":
		return nameOf(deniedFcntls, d.Args[1], "%d")
	case "prlimit64":
		return nameOf(deniedRlimits, d.Args[1], "%d")
	}
	var words []string
	for i, a := range d.Args {
		if d.Looked&(1<<i) != 0 {
			words = append(words, fmt.Sprintf("%#x", a))
		}
	}
	return strings.Join(words, ", ")
}

func nameOf(names map[uint32]string, n uint32, otherwise string) string {
	if name, ok := names[n]; ok {
		return name
	}
	return fmt.Sprintf(otherwise, n)
}

var namespaceFlags = []struct {
	flag uint32
	name string
}{
	{unix.CLONE_NEWUSER, "CLONE_NEWUSER"}, {unix.CLONE_NEWNS, "CLONE_NEWNS"}, {unix.CLONE_NEWPID, "CLONE_NEWPID"}, {unix.CLONE_NEWNET, "CLONE_NEWNET"},
	{unix.CLONE_NEWIPC, "CLONE_NEWIPC"}, {unix.CLONE_NEWUTS, "CLONE_NEWUTS"}, {unix.CLONE_NEWCGROUP, "CLONE_NEWCGROUP"}, {unix.CLONE_NEWTIME, "CLONE_NEWTIME"},
}

var deniedIoctls = map[uint32]string{unix.TIOCSTI: "TIOCSTI", unix.TIOCLINUX: "TIOCLINUX", unix.TIOCSETD: "TIOCSETD"}

var deniedFcntls = map[uint32]string{unix.F_SETLEASE: "F_SETLEASE", unix.F_NOTIFY: "F_NOTIFY", seccompFSetDeleg: "F_SETDELEG"}

var deniedRlimits = map[uint32]string{unix.RLIMIT_CORE: "RLIMIT_CORE"}

var socketTypes = map[uint32]string{
	unix.SOCK_STREAM: "SOCK_STREAM", unix.SOCK_DGRAM: "SOCK_DGRAM", unix.SOCK_RAW: "SOCK_RAW", unix.SOCK_RDM: "SOCK_RDM",
	unix.SOCK_SEQPACKET: "SOCK_SEQPACKET", unix.SOCK_DCCP: "SOCK_DCCP", unix.SOCK_PACKET: "SOCK_PACKET",
}

var socketFamilies = map[uint32]string{
	unix.AF_UNIX: "AF_UNIX", unix.AF_INET: "AF_INET", unix.AF_INET6: "AF_INET6", unix.AF_NETLINK: "AF_NETLINK",
	unix.AF_ALG: "AF_ALG", unix.AF_AX25: "AF_AX25", unix.AF_BLUETOOTH: "AF_BLUETOOTH", unix.AF_CAN: "AF_CAN", unix.AF_IB: "AF_IB",
	unix.AF_IUCV: "AF_IUCV", unix.AF_KCM: "AF_KCM", unix.AF_KEY: "AF_KEY", unix.AF_LLC: "AF_LLC", unix.AF_MCTP: "AF_MCTP", unix.AF_MPLS: "AF_MPLS",
	unix.AF_NFC: "AF_NFC", unix.AF_PACKET: "AF_PACKET", unix.AF_PPPOX: "AF_PPPOX", unix.AF_QIPCRTR: "AF_QIPCRTR", unix.AF_RDS: "AF_RDS",
	unix.AF_SMC: "AF_SMC", unix.AF_TIPC: "AF_TIPC", unix.AF_VSOCK: "AF_VSOCK", unix.AF_X25: "AF_X25", unix.AF_XDP: "AF_XDP",
}
