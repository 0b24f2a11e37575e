package shim

import (
	"bytes"
	"os"
	"syscall"
	"time"

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

// Descriptors that the shim of a further process inherits, beside ControlFD.
const (
	ExecTerminalFD = 4 // the master of its terminal is sent there
	ExecStdinFD    = 5
	ExecStdoutFD   = 6
	ExecStderrFD   = 7
)

const (
	joinNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET |
		unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	// hangUpGrace is how long a process whose caller is gone has between SIGHUP
	// and SIGKILL.
	hangUpGrace = 2 * time.Second
)

// exec is the life of the shim of a further process.
func (m *shim) exec(x *protocol.Exec) error {
	daemon := m.conns[0]
	for fd := ExecTerminalFD; fd <= ExecStderrFD; fd++ {
		unix.CloseOnExec(fd)
	}
	pidfd, err := m.startExec(x)
	if err != nil {
		m.killChild()
		return protocol.WriteMessage(daemon, protocol.Event{Failed: m.failure(err)})
	}
	now := time.Now().UnixNano()
	m.record.StartedNanos = now
	if err := protocol.WriteMessage(daemon, protocol.Event{Started: &protocol.Started{PID: m.child, IDBase: x.IDBase, UnixNanos: now}}); err != nil {
		m.killChild()
		return nil // nobody waits for it
	}
	m.watchExec(daemon, pidfd)
	m.reap()
	_ = protocol.WriteMessage(daemon, protocol.Event{Ended: &m.record})
	return nil
}

// openInit returns a pidfd of the job's PID 1, after making sure that the number
// is still that process's: no other process has the job's ids and is PID 1.
func openInit(x *protocol.Exec) (int, error) {
	pidfd, err := unix.PidfdOpen(x.PID, 0)
	if err != nil {
		return -1, step(protocol.StepJoin, err)
	}
	proc := "/proc/" + itoa(int64(x.PID))
	ids, err := os.ReadFile(proc + "/uid_map")
	var status []byte
	if err == nil {
		status, err = os.ReadFile(proc + "/status")
	}
	f := bytes.Fields(ids)
	is := err == nil && len(f) == 3 && string(f[0]) == "0" &&
		string(f[1]) == itoa(int64(x.IDBase)) && string(f[2]) == itoa(int64(x.IDCount)) && isInit(status)
	// What was read is of this process if that is still there.
	if !is || unix.PidfdSendSignal(pidfd, 0, nil, 0) != nil {
		unix.Close(pidfd)
		return -1, step(protocol.StepJoin, unix.ESRCH)
	}
	return pidfd, nil
}

// isInit reports whether a status file is that of PID 1 of its namespace.
func isInit(status []byte) bool {
	_, rest, ok := bytes.Cut(status, []byte("\nNSpid:\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return ok && bytes.HasSuffix(line, []byte("\t1"))
}

// startExec makes the process and returns its pidfd once it runs the command.
func (m *shim) startExec(x *protocol.Exec) (int, error) {
	target, err := openInit(x)
	if err != nil {
		return -1, err
	}
	defer unix.Close(target)
	shared, programs, err := newArena()
	if err != nil {
		return -1, err
	}
	m.shared, m.programs = shared, programs
	tasks := x.Cgroup.TaskFiles()
	if len(tasks) > maxTasks {
		return -1, &stepError{"enter cgroups", unix.E2BIG}
	}
	for i, name := range tasks {
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, step("open "+name, err)
		}
		defer unix.Close(fd)
		shared.slots[slotTask+i] = uintptr(fd)
	}
	args := cloneArgs{exitSignal: uint64(syscall.SIGCHLD)}
	if dir := x.Cgroup.V2; dir != "" {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, step("open "+dir, err)
		}
		defer unix.Close(fd)
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(fd)
	}
	sockets, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, step("make the go socket", err)
	}
	var status [2]int
	if err := unix.Pipe2(status[:], unix.O_CLOEXEC); err != nil {
		return -1, step("make the status pipe", err)
	}
	m.goSocket, m.statusRead = sockets[0], status[0]
	shared.iov = unix.Iovec{Base: &shared.goByte, Len: 1}
	shared.msg = unix.Msghdr{Iov: &shared.iov, Iovlen: 1, Control: &shared.control[0]}
	p := programs[0]
	keep := []int{target, sockets[1], status[1], ExecStdinFD, ExecStdoutFD, ExecStderrFD}
	for i := range tasks {
		keep = append(keep, int(shared.slots[slotTask+i]))
	}
	p.closeAllBut(keep...)
	execProgram(p, x, target, status[1])
	if p.full {
		return -1, &stepError{protocol.StepArguments, unix.E2BIG}
	}

	a, err := shared.fork(&args, sockets[1], 0)
	if err != nil {
		return -1, err
	}
	m.child = a
	unix.Close(sockets[1])
	unix.Close(status[1])
	for fd := ExecStdinFD; fd <= ExecStderrFD; fd++ {
		unix.Close(fd) // the process's own
	}
	if err := awaitRead(int(shared.pidfd), protocol.StepJoin); err != nil {
		return -1, err
	}
	unix.Close(int(shared.pidfd))
	m.killChild() // it has ended: its status
	m.child = int(shared.siblingPID)
	if m.child == 0 {
		if setup := m.setupError(); setup != nil {
			return -1, setup
		}
		return -1, step(protocol.StepJoin, unix.ESRCH)
	}
	pidfd, err := unix.PidfdOpen(m.child, 0) // our child, not reaped: the number is its own
	if err != nil {
		return -1, step("open the process", err)
	}
	if err := m.fixOOMScore(); err != nil {
		return -1, err
	}
	if err := m.raiseLimits(x.Run.Rlimits); err != nil {
		return -1, err
	}
	if err := m.letGo(nil); err != nil {
		return -1, err
	}
	if err := m.awaitExec(); err != nil {
		return -1, err
	}
	if x.Run.Terminal != nil {
		return pidfd, m.handOverTerminal()
	}
	return pidfd, nil
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
	for i, fd := range []int{ExecStdinFD, ExecStdoutFD, ExecStderrFD} {
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

// sibling makes a child of the caller's parent, which goes on in the caller's
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

// handOverTerminal sends the master to the daemon, which then alone has it:
// whatever ends the daemon hangs the process up.
func (m *shim) handOverTerminal() error {
	fd, err := receiveMaster(m.goSocket)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return sendDescriptor(ExecTerminalFD, fd)
}

// watchExec passes signals on until the process has ended. When the daemon is
// gone, nobody reads what the process says: it is hung up, then killed.
func (m *shim) watchExec(daemon *conn, pidfd int) {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}, {Fd: int32(daemon.fd), Events: unix.POLLIN}}
	timeout := -1
	for {
		n, err := unix.Poll(fds, timeout)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return // no descriptor of ours can be bad
		case fds[0].Revents != 0:
			return
		case n == 0:
			_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		default:
			var req protocol.Request
			if err := protocol.ReadMessage(daemon, &req); err != nil {
				fds[1].Fd = -1
				timeout = int(hangUpGrace.Milliseconds())
				for _, sig := range []syscall.Signal{unix.SIGHUP, unix.SIGCONT} {
					_ = unix.PidfdSendSignal(pidfd, sig, nil, 0)
				}
			} else if req.Signal > 0 {
				_ = unix.PidfdSendSignal(pidfd, syscall.Signal(req.Signal), nil, 0)
			}
		}
	}
}
