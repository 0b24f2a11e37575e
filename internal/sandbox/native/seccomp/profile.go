package seccomp

import (
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/joblet/joblet"
)

// Profiles of the system call filter: what they decide otherwise than
// seccompCalls.

// strictCalls leaves out what few programs need and what has a record: debugging
// others, raw sockets, terminals' oddities,
// whatever needs a capability.
var strictCalls = map[string]seccompVerdict{
	"ptrace": seccompEPERM, "process_vm_readv": seccompEPERM, "process_vm_writev": seccompEPERM, "pidfd_getfd": seccompEPERM,
	"process_madvise": seccompEPERM, "process_mrelease": seccompEPERM,
	"socket": seccompPlainSocket, "personality": seccompEPERM,
	"mbind": seccompEPERM, "set_mempolicy": seccompEPERM, "set_mempolicy_home_node": seccompENOSYS, "get_mempolicy": seccompEPERM,
	"adjtimex": seccompEPERM, "clock_adjtime": seccompEPERM,
	"chroot": seccompEPERM, "mknod": seccompEPERM, "mknodat": seccompEPERM,
	"remap_file_pages": seccompENOSYS, "vmsplice": seccompENOSYS, "map_shadow_stack": seccompENOSYS,
	"ioprio_set": seccompEPERM,
}

// nestedCalls lets a job make namespaces and mount in them. It has no privileges
// over its own mounts, so it begins with a user namespace, in which all that it
// has of ours is locked (mount_namespaces(7)): read-only stays read-only. The newer
// calls to mount stay away, as libraries have the older way.
var nestedCalls = map[string]seccompVerdict{
	"clone": seccompAllow, "unshare": seccompAllow, "setns": seccompAllow,
	"mount": seccompAllow, "umount2": seccompAllow, "pivot_root": seccompAllow,
	"sethostname": seccompAllow, "setdomainname": seccompAllow,
}

// grantableCalls are those that no profile allows and a user's own may: they are
// large or loose, but what they do ends with the job. What is not here acts on the
// machine as a whole or on what jobs share.
//
// Not quite so: io_setup and what goes with it take from a pool of the host, but give
// it back at the job's end, and some databases want it. migrate_pages and move_pages
// disturb every CPU while they run, no more than mbind, which is allowed. io_uring is
// for the role admin alone (joblet.AdminCalls). memfd_secret is not here: what it does
// to the kernel's memory map stays.
var grantableCalls = []string{
	"cachestat", "file_getattr", "file_setattr", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_setup", "io_submit",
	"io_uring_enter", "io_uring_register", "io_uring_setup", "kcmp", "listmount", "lsm_get_self_attr", "lsm_list_modules",
	"migrate_pages", "modify_ldt", "move_pages", "name_to_handle_at", "statmount", "userfaultfd",
}

var seccompByName = sync.OnceValue(func() map[string]seccompVerdict {
	all := make(map[string]seccompVerdict, len(seccompCalls))
	for _, c := range seccompCalls {
		all[c.name] = c.verdict
	}
	return all
})

var profileFilters = map[joblet.Profile]func() Filter{
	"":                    Default,
	joblet.ProfileDefault: Default,
	joblet.ProfileStrict:  sync.OnceValue(func() Filter { return seccompAssemble(runtime.GOARCH, strictCalls) }),
	joblet.ProfileNested:  sync.OnceValue(func() Filter { return seccompAssemble(runtime.GOARCH, nestedCalls) }),
}

// compile returns the filter that s asks for.
func compile(s joblet.Security) (Filter, error) {
	if len(s.AllowCalls)+len(s.DenyCalls) == 0 {
		return profileFilters[s.Profile](), nil
	}
	changes := map[string]seccompVerdict{}
	switch s.Profile {
	case joblet.ProfileStrict:
		maps.Copy(changes, strictCalls)
	case joblet.ProfileNested:
		maps.Copy(changes, nestedCalls)
	}
	for _, name := range s.AllowCalls {
		usual, known := seccompByName()[name]
		switch {
		case !known:
			return nil, unknownCall(name)
		case usual != seccompEPERM && usual != seccompENOSYS:
			if changes[name] != seccompAllow { // the profile may allow more than the usual look at the arguments
				changes[name] = usual
			}
		case changes[name] == seccompAllow:
		case !slices.Contains(grantableCalls, name):
			return nil, joblet.Errorf(joblet.InvalidArgument, "cannot allow system call %s: it acts on more than the job, or hides from the filter what it does; calls that can be added to a profile: %s", name, strings.Join(grantableCalls, ", "))
		default:
			changes[name] = seccompAllow
		}
	}
	for _, name := range s.DenyCalls {
		switch _, known := seccompByName()[name]; {
		case !known:
			return nil, unknownCall(name)
		case slices.Contains(startCalls, name):
			return nil, joblet.Errorf(joblet.InvalidArgument, "cannot deny system call %s: no command can start without it", name)
		}
		changes[name] = seccompEPERM
	}
	return seccompAssemble(runtime.GOARCH, changes), nil
}

// startCalls are made between the installation of the filter and the command.
var startCalls = []string{"execve", "exit_group", "rt_sigprocmask", "faccessat", "clone", "close_range", "prctl", "rt_sigtimedwait", "kill", "wait4", "setsid"}

// sendCall is made there too when denied calls are logged.
const sendCall = "sendmsg"

func unknownCall(name string) error {
	return joblet.Errorf(joblet.InvalidArgument, "unknown system call %s", name)
}

// Compile returns the filter that s asks for. An error of kind InvalidArgument says which
// call cannot be allowed or denied, one of kind FailedPrecondition that this kernel cannot
// log denied calls. The filter is shared and not to be changed.
func Compile(s joblet.Security) (Filter, error) {
	if s.LogDenied {
		if slices.Contains(s.DenyCalls, sendCall) {
			return nil, joblet.Errorf(joblet.InvalidArgument, "cannot deny system call %s with --log-denied: no command can start without it", sendCall)
		}
		if err := canLogDenied(); err != nil {
			return nil, err
		}
	}
	return compile(s)
}
