package setup

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Landlock, a second wall behind the namespaces and the filter (landlock(7)). A
// process that is under it, with whatever privileges, can change no mounts, make no
// devices, trace no process outside; and, from ABI 6 on, not connect to abstract sockets
// there. What is outside begins where landlock_restrict_self was called: at the job.
// A further process of the job (rnx job exec) comes later, and no process can be
// put into a domain that exists: it is under the other walls alone, and signals are
// not scoped, because it has to get those of the job.
//
// Reading and writing files is left to the mounts: rights are for whole trees, and
// all of the job's root is its own.

// Of linux/landlock.h, beside what x/sys has.
const (
	landlockScopeAbstract = 1 << 0
	landlockScopeABI      = 6
	// landlockReferABI is the first with LANDLOCK_ACCESS_FS_REFER: before, a
	// process under Landlock could move no file from one directory to another.
	landlockReferABI = 2
)

// makeRuleset prepares what confine puts the process under, if the kernel has a
// version that does not get in the way of ordinary programs. It is a part of the
// sandbox, as it takes longer than all else that a job's privileges do.
func makeRuleset(p *program) {
	abi, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 || abi < landlockReferABI { // not built in, or not switched on: the other walls stand
		return
	}
	attr := struct{ fs, net, scoped uint64 }{
		fs: unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_REFER,
	}
	size := uintptr(8) // older kernels know fewer fields
	if abi >= landlockScopeABI {
		attr.scoped, size = landlockScopeAbstract, 24
	}
	p.call("make a Landlock ruleset", unix.SYS_LANDLOCK_CREATE_RULESET, put(p, attr), size, 0).into(slotRuleset)
	p.call("open the root", unix.SYS_OPENAT, atFDCWD, p.str("/"), unix.O_PATH|unix.O_CLOEXEC, 0).into(slotRule + 1)
	// Two slots one behind the other are a struct landlock_path_beneath_attr: 8
	// bytes of access, 4 of a descriptor that only the process itself knows.
	p.shared.slots[slotRule] = unix.LANDLOCK_ACCESS_FS_REFER
	rule := uintptr(unsafe.Pointer(&p.shared.slots[slotRule]))
	p.call("allow moving files", unix.SYS_LANDLOCK_ADD_RULE, slotRuleset, unix.LANDLOCK_RULE_PATH_BENEATH, rule, 0).slot(0)
	p.call("close the root", unix.SYS_CLOSE, slotRule+1).slot(0)
}

// confine puts the process under Landlock where there is a ruleset.
func confine(p *program) {
	if p.shared.slots[slotRuleset] != 0 {
		p.call("restrict by Landlock", unix.SYS_LANDLOCK_RESTRICT_SELF, slotRuleset, 0).slot(0)
		p.call("close the Landlock ruleset", unix.SYS_CLOSE, slotRuleset).slot(0)
	}
}
