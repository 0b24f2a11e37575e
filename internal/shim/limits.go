package shim

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// measure notes what the job took, now that all of it has ended.
func (m *shim) measure() {
	meter := cgroup.NewMeter(m.cgroup)
	m.record.Usage = meter.Total().Usage
	meter.Close()
	m.record.OutOfMemory = m.record.OutOfMemory || m.outOfMemory()
}

// outOfMemory reports whether the kernel has killed one of the job's processes
// for want of memory.
func (m *shim) outOfMemory() bool { return m.cgroup.OOMKills() > 0 }

// endOutOfMemory ends the whole job when its memory is used up, as
// memory.oom.group does in v2: the kernel picks one process, which need not be
// the one without which the others make no sense.
func (m *shim) endOutOfMemory() {
	_, _ = unix.Read(m.oomEvents, make([]byte, 8))
	m.record.OutOfMemory = true
	m.signal(syscall.SIGKILL)
}

// resizeFileSystems gives the job's root and its /dev/shm these sizes; 0: the one they
// have.
func (m *shim) resizeFileSystems(disk, shm int64) error {
	return errors.Join(resizeTmpfs(m.root, "root", disk), resizeTmpfs(m.shm, "/dev/shm", shm))
}

// resizeTmpfs changes the size of a file system of the job's from outside: its
// superblock is the job's user namespace's, over which the shim has all
// privileges (fspick(2)).
func resizeTmpfs(dir int, what string, bytes int64) error {
	if bytes <= 0 {
		return nil
	}
	fd, err := unix.Fspick(dir, "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return step("open the job's "+what, err)
	}
	defer unix.Close(fd)
	for name, value := range map[string]int64{"size": bytes, "nr_inodes": inodes(bytes)} {
		if err := unix.FsconfigSetString(fd, name, itoa(value)); err != nil {
			return step("set the "+name+" of the job's "+what, err)
		}
	}
	if err := unix.FsconfigReconfigure(fd); err != nil {
		return step("resize the job's "+what+" to "+itoa(bytes)+" bytes", err)
	}
	return nil
}

// raiseLimits raises the hard limits of the first process where the job's are
// higher: that takes a privilege that the process itself, in its user namespace,
// does not have. It sets the limits themselves just before the command. It has the
// shim's own ones until then, and to read those takes no privilege.
func (m *shim) raiseLimits(limits []protocol.Rlimit) error {
	for _, l := range limits {
		var have unix.Rlimit
		if err := unix.Getrlimit(l.Resource, &have); err != nil {
			return step("read limit "+itoa(int64(l.Resource)), err)
		}
		if l.Hard <= have.Max {
			continue
		}
		have.Max = l.Hard
		if err := unix.Prlimit(m.child, l.Resource, &have, nil); err != nil {
			return step("raise limit "+itoa(int64(l.Resource)), err)
		}
	}
	return nil
}

// oomScore is the oom_score_adj of jobs, whatever that of the daemon is: when the
// host's memory is used up, a job ends before what keeps the host alive.
const oomScore = "100"

// fixOOMScore sets it from outside, which makes it the least that the job itself may
// set (with CAP_SYS_RESOURCE, which a shim in a container may lack; then it may
// go back to the daemon's).
func (m *shim) fixOOMScore() error {
	name := "/proc/" + itoa(int64(m.child)) + "/oom_score_adj"
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return step("open "+name, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(oomScore)); err != nil && err != unix.EACCES { // it was even higher, and may not be lowered
		return step("write "+name, err)
	}
	return nil
}
