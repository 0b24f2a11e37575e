package setup

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// Resize gives the root of a sandbox and its /dev/shm these sizes in bytes; 0: the one
// they have.
func (p *Process) Resize(disk, shm int64) error {
	return errors.Join(resizeTmpfs(p.Root, "root", disk), resizeTmpfs(p.Shm, "/dev/shm", shm))
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
		return Step("open the job's "+what, err)
	}
	defer unix.Close(fd)
	for name, value := range map[string]int64{"size": bytes, "nr_inodes": inodes(bytes)} {
		if err := unix.FsconfigSetString(fd, name, decimal(value)); err != nil {
			return Step("set the "+name+" of the job's "+what, err)
		}
	}
	if err := unix.FsconfigReconfigure(fd); err != nil {
		return Step("resize the job's "+what+" to "+decimal(bytes)+" bytes", err)
	}
	return nil
}

// RaiseLimits raises the hard limits of the process where the job's are
// higher: that takes a privilege that the process itself, in its user namespace,
// does not have. It sets the limits themselves just before the command. It has the
// shim's own ones until then, and to read those takes no privilege.
func (p *Process) RaiseLimits(limits []protocol.Rlimit) error {
	for _, l := range limits {
		var have unix.Rlimit
		if err := unix.Getrlimit(l.Resource, &have); err != nil {
			return Step("read limit "+decimal(l.Resource), err)
		}
		if l.Hard <= have.Max {
			continue
		}
		have.Max = l.Hard
		if err := unix.Prlimit(p.PID, l.Resource, &have, nil); err != nil {
			return Step("raise limit "+decimal(l.Resource), err)
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
func (p *Process) fixOOMScore() error {
	name := p.proc() + "oom_score_adj"
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Step("open "+name, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(oomScore)); err != nil && err != unix.EACCES { // it was even higher, and may not be lowered
		return Step("write "+name, err)
	}
	return nil
}
