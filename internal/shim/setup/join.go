package setup

import (
	"bytes"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// A further process of a running job has a shim of its own, which lives as
// long as it does. It makes the process as follows; A runs one thread over the
// table of a program, as a job's first process does:
//
//	shim ──clone3──► A: in the job's cgroup
//	                    closes what it has of the host, takes the user's ids
//	                    setns: all namespaces of PID 1, which the pidfd stands for
//	                    clone, CLONE_PARENT ──► B: child of the shim, in the PID namespace
//	                    exit
//	reaps A, knows B ──────── go ─────────────► streams, limits, capabilities, filter
//	                                            execve
//
// Until execve B has more capabilities in the job's user namespace than the job,
// whose processes see it. They can't touch it: it is not dumpable (ptrace(2)). A takes
// the ids, while it is out of the job's sight, because a change of ids undoes that
// where fs.suid_dumpable is not 0: B changes none.

const joinNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// openInit returns a pidfd of the job's PID 1, after making sure that the number
// is still that process's: no other process has the job's ids and is PID 1.
func openInit(x *protocol.Exec) (int, error) {
	pidfd, err := unix.PidfdOpen(x.PID, 0)
	if err != nil {
		return -1, Step(protocol.StepJoin, err)
	}
	proc := "/proc/" + decimal(x.PID)
	ids, err := os.ReadFile(proc + "/uid_map")
	var status []byte
	if err == nil {
		status, err = os.ReadFile(proc + "/status")
	}
	f := bytes.Fields(ids)
	is := err == nil && len(f) == 3 && string(f[0]) == "0" &&
		string(f[1]) == decimal(x.IDBase) && string(f[2]) == decimal(x.IDCount) && isInit(status)
	// What was read is of this process if that is still there.
	if !is || unix.PidfdSendSignal(pidfd, 0, nil, 0) != nil {
		unix.Close(pidfd)
		return -1, Step(protocol.StepJoin, unix.ESRCH)
	}
	return pidfd, nil
}

// isInit reports whether a status file is that of PID 1 of its namespace.
func isInit(status []byte) bool {
	_, rest, ok := bytes.Cut(status, []byte("\nNSpid:\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return ok && bytes.HasSuffix(line, []byte("\t1"))
}

// Join starts a further process in a running job, and returns once it runs its command.
// The descriptors of its standard streams, protocol.ExecStdinFD and those behind it, are
// the process's own: Join closes them. After an error the process may exist: Kill ends it.
func (p *Process) Join(x *protocol.Exec) error {
	target, err := openInit(x)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	tasks, err := p.prepare(x.Cgroup)
	defer closeAll(tasks)
	if err != nil {
		return err
	}
	theirs, err := p.connect()
	if err != nil {
		return err
	}
	program := p.programs[0]
	program.closeAllBut(append(tasks, target, theirs.socket, theirs.status,
		protocol.ExecStdinFD, protocol.ExecStdoutFD, protocol.ExecStderrFD)...)
	execProgram(program, x, target, theirs.status)
	if program.full {
		return &StepError{protocol.StepArguments, unix.E2BIG}
	}
	args := cloneArgs{exitSignal: uint64(syscall.SIGCHLD)}
	if err := p.clone(&args, x.Cgroup, theirs, 0); err != nil {
		return err
	}
	for fd := protocol.ExecStdinFD; fd <= protocol.ExecStderrFD; fd++ {
		unix.Close(fd)
	}
	if err := p.becomeSibling(); err != nil {
		return err
	}
	if err := p.fixOOMScore(); err != nil {
		return err
	}
	if err := p.RaiseLimits(x.Run.Rlimits); err != nil {
		return err
	}
	if err := p.letGo(nil); err != nil {
		return err
	}
	return p.awaitExec()
}

// becomeSibling waits for the end of the process that was cloned, and makes p the one
// that it has left in the job.
func (p *Process) becomeSibling() error {
	if err := awaitRead(int(p.shared.pidfd), protocol.StepJoin); err != nil {
		return err
	}
	unix.Close(int(p.shared.pidfd))
	p.Kill() // it has ended: its status
	p.PID = int(p.shared.siblingPID)
	if p.PID == 0 {
		if setup := p.setupError(); setup != nil {
			return setup
		}
		return Step(protocol.StepJoin, unix.ESRCH)
	}
	pidfd, err := unix.PidfdOpen(p.PID, 0) // our child, not reaped: the number is its own
	if err != nil {
		return Step("open the process", err)
	}
	p.PIDFD = pidfd
	return nil
}

// execProgram is the set-up of a further process. status is the write end of the
// status pipe.
func execProgram(p *program, x *protocol.Exec, target, status int) {
	run := x.Run
	enterTasks(p, x.Cgroup.TaskFiles())
	takeStreams(p, run, status)
	becomeUser(p, x)
	p.call(protocol.StepJoin, unix.SYS_SETNS, uintptr(target), joinNamespaces)
	p.call("close the pidfd", unix.SYS_CLOSE, uintptr(target))
	hideMemory(p)
	p.add("start a process in the job", op{kind: opSibling})
	guardProcess(p)
	p.add("wait for the shim", op{kind: opReceive})
	if run.Terminal != nil {
		openTerminal(p, run)
	} else if !run.StdinStream {
		connectNull(p)
	}
	leadSession(p, run)
	enterWorkDir(p, run, 0, 0) // what it makes is the user's, whose ids it has
	resetSignals(p)
	limitResources(p, run)
	dropPrivileges(p, run)
	checkPaths(p)
	filterCalls(p, run)
	executeCommand(p, run)
}

// takeStreams puts the process's pipes in the places of its standard streams, while it
// is outside of the job, and, until it has a terminal, the status pipe.
func takeStreams(p *program, run *protocol.Run, status int) {
	for i, fd := range []int{protocol.ExecStdinFD, protocol.ExecStdoutFD, protocol.ExecStderrFD} {
		from := fd
		if run.Terminal != nil {
			from = status
		}
		p.call("connect the standard streams", unix.SYS_DUP3, uintptr(from), uintptr(i), 0)
		p.call("close the stream", unix.SYS_CLOSE, uintptr(fd))
	}
}

// becomeUser gives the process the ids of the command as the host numbers them. It keeps
// its capabilities, by which it joins the job, and then has those of the job's user
// namespace until dropPrivileges (setns(2)).
func becomeUser(p *program, x *protocol.Exec) {
	hideMemory(p)
	p.call("keep the capabilities", unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, noSetuidFixup)
	setIDs(p, x.IDBase+x.Run.UID, x.IDBase+x.Run.GID)
}

// sibling makes a child of the caller's parent, which continues in the caller's
// place.
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) sibling() syscall.Errno {
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_PARENT|uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid == 0 {
		return errno
	}
	a.siblingPID = int32(pid)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}
