// Package setup starts a job's processes: it is what runs between clone3 and execve.
// A [Process] is a clone of the shim with a single thread, in which no Go code may run
// but one loop. The loop works through a table of raw system calls (a program, see
// program.go) that the shim writes into memory that both share.
//
//	shim                                   first process
//	  clone3 ────────────────────────────────► joins the cgroup v1 hierarchies
//	  writes uid_map, gid_map
//	  "go" ──────────────────────────────────► becomes uid 0; hostname, lo, /proc, /dev, pivot_root
//	  … waits for the daemon's Run …            … waits …
//	  opens the trees, idmaps them
//	  writes the second program
//	  "go" + descriptors of the trees ───────► attaches them; workdir, descriptors, capabilities, seccomp
//	  ◄── end of file on the status pipe ─────  execve: PID 1 is the user's command
//
// A further process of a running job joins the namespaces instead (join.go).
package setup

import (
	"errors"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// timeout bounds each half of the set-up. A half takes a millisecond, and is only ever
// slow when something that it needs hangs, such as a network file system below a runtime.
const timeout = 30 * time.Second

// Process is a process of a job, from its clone to the command. The zero value is one
// that was not started. Descriptors are close-on-exec and last as long as the shim, unless
// a method says otherwise.
type Process struct {
	PID   int // as the host numbers it; 0: there is none
	PIDFD int

	// Of a first process, once Start has returned.
	User       int    // the user namespace, until Release
	Namespaces [4]int // mnt, net, ipc, uts

	// Directories of a first process, once AwaitSandbox has returned.
	Root int
	Shm  int // /dev/shm
	Work int // /work

	shared   *arena
	programs [2]*program
	sandbox  *protocol.Sandbox // nil: of a further process
	socket   int               // the shim's end of the go socket
	status   int               // end of file: the command runs, or the set-up has failed
}

// StepError is a failed step of the set-up.
type StepError struct {
	Step  string
	Errno syscall.Errno
}

func (e *StepError) Error() string { return e.Step + ": " + e.Errno.Error() }
func (e *StepError) Unwrap() error { return e.Errno }

// Step says of an error at which step it came up: a StepError where it is one of the
// kernel's.
func Step(name string, err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return &StepError{name, errno}
	}
	return errors.Join(errors.New(name), err)
}

// Start clones the first process of a sandbox, which begins to build it. Its standard
// output and error are the given write ends of pipes, which Start closes. After an error
// the process may exist: Kill ends it.
func (p *Process) Start(sandbox *protocol.Sandbox, stdout, stderr int) error {
	tasks, err := p.prepare(sandbox.Cgroup)
	defer closeAll(tasks)
	if err != nil {
		return err
	}
	p.sandbox = sandbox
	dev, err := openTree(protocol.Tree{Source: protocol.Name(sandbox.DevDir)}, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, -1)
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	p.shared.slots[slotDev] = uintptr(dev)
	sys, err := openSys(sandbox.Cgroup.Views())
	if err != nil {
		return err
	}
	defer closeSys(sys)
	args := cloneArgs{
		flags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET |
			unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		exitSignal: uint64(syscall.SIGCHLD),
	}
	theirs, err := p.connect()
	if err != nil {
		return err
	}
	// What the first process has of the shim's it closes before anything else. (A
	// daemon also takes a sandbox whose connection is open for one whose shim lives.)
	keep := append(tasks, dev, stdout, stderr, theirs.socket, theirs.status)
	for i, mount := range sys {
		p.shared.slots[slotTree+i] = uintptr(mount.tree)
		keep = append(keep, mount.tree)
	}
	first := p.programs[0]
	first.closeAllBut(keep...)
	connectOutput(first, stdout, stderr)
	sandboxProgram(first, sandbox, sys)
	if first.full {
		return &StepError{"write the set-up program", unix.E2BIG}
	}
	if err := p.clone(&args, sandbox.Cgroup, theirs, sandbox.IDBase); err != nil {
		return err
	}
	p.PIDFD = int(p.shared.pidfd)
	unix.Close(stdout)
	unix.Close(stderr)
	if err := p.mapIDs(); err != nil {
		return err
	}
	if err := p.fixOOMScore(); err != nil {
		return err
	}
	return p.letGo(nil)
}

// prepare maps the shared memory, and opens the files by which the process enters its
// cgroups of v1 hierarchies.
func (p *Process) prepare(dirs cgroup.Dirs) (tasks []int, err error) {
	if p.shared, p.programs, err = newArena(); err != nil {
		return nil, err
	}
	files := dirs.TaskFiles()
	if len(files) > maxTasks {
		return nil, &StepError{"enter cgroups", unix.E2BIG}
	}
	for i, name := range files {
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return tasks, Step("open "+name, err)
		}
		tasks = append(tasks, fd)
		p.shared.slots[slotTask+i] = uintptr(fd)
	}
	return tasks, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// ends are the process's ends of its connections to the shim.
type ends struct{ socket, status int }

// connect makes the go socket and the status pipe.
func (p *Process) connect() (theirs ends, err error) {
	sockets, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return theirs, Step("make the go socket", err)
	}
	var status [2]int
	if err := unix.Pipe2(status[:], unix.O_CLOEXEC); err != nil {
		return theirs, Step("make the status pipe", err)
	}
	p.socket, p.status = sockets[0], status[0]
	a := p.shared
	a.iov = unix.Iovec{Base: &a.goByte, Len: 1}
	a.msg = unix.Msghdr{Iov: &a.iov, Iovlen: 1, Control: &a.control[0]}
	return ends{sockets[1], status[1]}, nil
}

// clone makes the process, in the cgroup of the v2 hierarchy, and closes its ends. A user
// namespace that the arguments make has the given owner.
func (p *Process) clone(args *cloneArgs, dirs cgroup.Dirs, theirs ends, owner uint32) error {
	if dir := dirs.V2; dir != "" {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return Step("open "+dir, err)
		}
		defer unix.Close(fd)
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(fd)
	}
	pid, err := p.shared.fork(args, theirs.socket, owner)
	if err != nil {
		return err
	}
	p.PID = pid
	unix.Close(theirs.socket)
	unix.Close(theirs.status)
	return nil
}

// mapIDs writes the maps of the process's user namespace. setgroups stays
// allowed: the maps are written by a privileged process (user_namespaces(7)).
func (p *Process) mapIDs() error {
	proc := p.proc()
	line := "0 " + decimal(p.sandbox.IDBase) + " " + decimal(p.sandbox.IDCount)
	for _, name := range []string{"uid_map", "gid_map"} {
		fd, err := unix.Open(proc+name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return Step("open "+name, err)
		}
		_, err = unix.Write(fd, []byte(line))
		unix.Close(fd)
		if err != nil {
			return Step("write "+name+" ("+line+")", err)
		}
	}
	fd, err := unix.Open(proc+"ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Step("open the user namespace", err)
	}
	p.User = fd
	// The last process to leave a namespace takes it apart, and waits for RCU
	// while it does. As long as the shim has these open that is not PID 1 on
	// its way out, whose status a caller waits for, but the shim on its own.
	for i, ns := range []string{"mnt", "net", "ipc", "uts"} {
		if p.Namespaces[i], err = unix.Open(proc+"ns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return Step("open the "+ns+" namespace", err)
		}
	}
	return nil
}

// proc is the process's directory in /proc.
func (p *Process) proc() string { return "/proc/" + decimal(p.PID) + "/" }

// decimal returns a number, which is not negative, as text.
func decimal[T ~int | ~int64 | ~uint16 | ~uint32](n T) string { return strconv.FormatInt(int64(n), 10) }

// letGo sends the byte that the process waits for.
func (p *Process) letGo(fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, err := unix.SendmsgN(p.socket, []byte{1}, rights, nil, unix.MSG_NOSIGNAL); err != nil {
		if setup := p.setupError(); setup != nil {
			return setup // it is gone, and this is why
		}
		return Step("tell the first process to go on", err)
	}
	return nil
}

// AwaitSandbox waits until a first process has built its sandbox, and then opens its
// directories: as long as no code of the job has run, nothing else can be there.
// Once it was successful it does nothing more.
func (p *Process) AwaitSandbox() error {
	if p.Root != 0 {
		return nil
	}
	if err := awaitRead(p.socket, "build the sandbox"); err != nil {
		return err
	}
	if n, err := unix.Read(p.socket, make([]byte, 1)); n != 1 {
		if setup := p.setupError(); setup != nil {
			return setup
		}
		return Step("hear from the first process", err)
	}
	root, err := unix.Open(p.proc()+"root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Step("open the job's root", err)
	}
	p.Root = root
	p.Shm, err = unix.Openat(root, "dev/shm", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Step("open the job's /dev/shm", err)
	}
	p.Work, err = unix.Openat(root, "work", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Step("open the job's /work", err)
	}
	return nil
}

// Run has a first process, whose sandbox is built, execute the command of a job, and
// returns once the command runs. stdin is its standard input, which stays open here;
// -1 stands for /dev/null.
func (p *Process) Run(run *protocol.Run, stdin int) error {
	fds := make([]int, 0, len(run.Trees)+1)
	defer func() { closeAll(fds) }()
	for _, t := range run.Trees {
		fd, err := openTree(t, attrsOf(t), p.User)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	jobProgram(p.programs[1], p.sandbox, run)
	if p.programs[1].full {
		return &StepError{protocol.StepArguments, unix.E2BIG}
	}
	sent := fds
	if stdin >= 0 {
		sent = append(sent, stdin)
	}
	if err := p.letGo(sent); err != nil {
		return err
	}
	return p.awaitExec()
}

// awaitExec waits for the end of file that closing the status pipe on execve
// gives.
func (p *Process) awaitExec() error {
	if err := awaitRead(p.status, "set the job up"); err != nil {
		return err
	}
	unix.Close(p.status)
	return p.setupError()
}

// awaitRead waits until there is something to read, or the end, for as long as a
// half of the set-up may take; what names that for the error.
func awaitRead(fd int, what string) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(timeout); ; {
		n, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		switch {
		case err == unix.EINTR:
		case n == 0:
			return Step(what+" within "+timeout.String(), unix.ETIMEDOUT)
		default:
			return nil
		}
	}
}

// setupError says how the set-up failed, or nil if the last step was reached
// and did not fail.
func (p *Process) setupError() error {
	a := p.shared
	if a.failedOp != 0 {
		o := a.ops[a.failedIn][a.failedOp-1]
		return &StepError{p.programs[a.failedIn].names[o.name], syscall.Errno(a.errno)}
	}
	if a.execBegan == 0 {
		return &StepError{protocol.StepKilled, unix.ECHILD}
	}
	return nil
}

// Failure describes why the process did not get to run its command.
func (p *Process) Failure(err error) *protocol.Failure {
	f := &protocol.Failure{Text: err.Error()}
	if step, ok := errors.AsType[*StepError](err); ok {
		f.Step, f.Errno = step.Step, step.Errno
		if a := p.shared; a != nil && a.execBegan != 0 {
			f.IsExec = true
			f.Why = whyNot(a.files[:a.nfiles], step.Errno, runtime.GOARCH)
		}
	}
	return f
}

// Release closes what only the set-up needs, once the command runs.
func (p *Process) Release() {
	unix.Close(p.socket)
	unix.Close(p.User)
}

// Kill ends the process, if there is one, and reaps it.
func (p *Process) Kill() {
	if p.PID == 0 {
		return
	}
	_ = unix.Kill(p.PID, unix.SIGKILL) // not reaped yet, so the number is still its own
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(p.PID, &ws, 0, nil); err != unix.EINTR {
			return
		}
	}
}

// Wait reaps the process and returns the status of its command.
func (p *Process) Wait() (ws unix.WaitStatus) {
	for {
		if _, err := unix.Wait4(p.PID, &ws, 0, nil); err != unix.EINTR {
			break
		}
	}
	if a := p.shared; a.reaped != 0 { // PID 1 is the reaper, whose status is another
		ws = unix.WaitStatus(a.status)
	}
	return ws
}
