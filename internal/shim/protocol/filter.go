package protocol

import (
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OtherCalls is the Number of a DeniedKey that stands for all calls that are beyond
// what is counted apart. No kernel has it.
const OtherCalls = 1<<32 - 1

// SeccompData is struct seccomp_data of linux/seccomp.h.
type SeccompData struct {
	Number uint32
	Arch   uint32
	IP     uint64
	Args   [6]uint64
}

// Instructions returns the program that is Filter.
func (r *Run) Instructions() []unix.SockFilter {
	filter := make([]unix.SockFilter, len(r.Filter)/int(unsafe.Sizeof(unix.SockFilter{})))
	if len(filter) > 0 {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&filter[0])), len(r.Filter)), r.Filter)
	}
	return filter
}

// RunFilter interprets a filter as the kernel does; looked has bit i set when the
// verdict depends on argument i, pointers too when it does on no more of it than
// whether it is NULL: the filter has looked at the high half. It knows the instructions
// that the assembler of package seccomp makes, and refuses at any other. A filter only jumps forwards, so it ends.
func RunFilter(filter []unix.SockFilter, d *SeccompData) (verdict uint32, looked, pointers uint8) {
	const refused = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	image := (*[unsafe.Sizeof(*d) / 4]uint32)(unsafe.Pointer(d)) // both architectures are little-endian
	firstArg := uint32(unsafe.Offsetof(d.Args))
	var a uint32
	for pc := 0; pc < len(filter); pc++ {
		in := &filter[pc]
		yes := false
		switch in.Code {
		case unix.BPF_RET | unix.BPF_K:
			return in.K, looked, pointers
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if in.K%4 != 0 || int(in.K/4) >= len(image) {
				return refused, looked, pointers
			}
			a = image[in.K/4]
			if in.K >= firstArg {
				arg := uint8(1) << ((in.K - firstArg) / 8)
				if looked |= arg; (in.K-firstArg)%8 != 0 {
					pointers |= arg
				}
			}
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= in.K
			continue
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(in.K)
			continue
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			yes = a == in.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			yes = a >= in.K
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			yes = a > in.K
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			yes = a&in.K != 0
		default:
			return refused, looked, pointers
		}
		if yes {
			pc += int(in.Jt)
		} else {
			pc += int(in.Jf)
		}
	}
	return refused, looked, pointers
}

// AskShim returns a filter that asks the shim wherever the given one refuses.
// Error 0, of what seems to succeed, is no refusal.
func AskShim(filter []unix.SockFilter) []unix.SockFilter {
	asking := slices.Clone(filter)
	for i := range asking {
		if in := &asking[i]; in.Code == unix.BPF_RET|unix.BPF_K && in.K&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO && in.K&unix.SECCOMP_RET_DATA != 0 {
			in.K = unix.SECCOMP_RET_USER_NOTIF
		}
	}
	return asking
}
