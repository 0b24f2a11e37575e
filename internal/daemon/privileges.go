package daemon

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// needed are the capabilities that the daemon and what it starts use: for
// namespaces and mounts, for ids and their files, and for looking at jobs. What
// root has beside them goes: modules, raw devices, the clock, reboot, the kernel's
// log, BPF, accounting, audit.
//
// SYS_NICE is for cgroup v2: enabling cpuset where others have processes that may do
// more than we changes what these run on (cpuset_can_attach in
// kernel/cgroup/cpuset.c, cap_task_setscheduler in security/commoncap.c).
//
// Jobs lose nothing: a new user namespace has a full set of its own
// (user_namespaces(7)), and every capability that a job can have is here.
//
// deploy/joblet.service has the same list.
var needed = []cap.Value{
	cap.SYS_ADMIN, cap.SYS_PTRACE, cap.SYS_RESOURCE, cap.SYS_NICE, cap.SYS_CHROOT,
	cap.NET_ADMIN, cap.NET_BIND_SERVICE, cap.NET_RAW,
	cap.SETUID, cap.SETGID, cap.SETPCAP, cap.SETFCAP,
	cap.CHOWN, cap.DAC_OVERRIDE, cap.DAC_READ_SEARCH, cap.FOWNER, cap.FSETID,
	cap.KILL, cap.MKNOD, cap.IPC_OWNER,
}

// dropPrivileges makes this process, all its threads and whatever it starts from
// now on hold only the capabilities that jobs need, and gain none by execve(2).
// What it did not have before it does not get.
func dropPrivileges() error {
	var others []cap.Value
	for c := cap.Value(0); c < cap.MaxBits(); c++ {
		if slices.Contains(needed, c) {
			continue
		}
		others = append(others, c)
		has, err := cap.GetBound(c)
		if err == nil && has {
			err = cap.DropBound(c)
		}
		if err != nil {
			return fmt.Errorf("cannot drop %v from the bounding set: %w", c, err)
		}
	}
	set := cap.GetProc()
	err := errors.Join(set.SetFlag(cap.Permitted, false, others...), set.SetFlag(cap.Effective, false, others...), set.ClearFlag(cap.Inheritable))
	if err == nil {
		err = set.SetProc()
	}
	if err != nil {
		return fmt.Errorf("cannot drop capabilities: %w", err)
	}
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot set no_new_privs: %w", err)
	}
	return nil
}
