// Package shim is the keeper of one job: a small program of its own (see
// cmd/joblet-shim) that builds the job's box, becomes the parent of its
// PID 1, moves its output into the log, and writes down how it ended. It
// outlives the daemon: whatever happens to that, the job's output and exit
// status end up in the job's directory.
//
// # Theory of operation
//
// The daemon starts a shim ahead of time, with a Box on its control
// descriptor: the things that are known before there is a job. The shim
// clones the job's first process into new namespaces and its cgroup. That
// process is a copy of the shim with a single thread, in which no Go code
// may run but one loop: it works through a table of raw system calls (a
// program, see program.go) that the shim has written into memory that both
// share. So the set-up needs no second Go runtime, takes no process number in
// the job's PID namespace, and each step that fails has a name.
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
// From then on the shim is one poll(2) loop over the job's pipes, its
// pidfd, a timer and the control connections.
package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// setupTimeout bounds the second half of the set-up: it takes a millisecond,
// and is only ever slow when something it needs hangs, such as a network file
// system below a runtime.
const setupTimeout = 30 * time.Second

// Main is the shim's life. It returns its exit status.
func Main() int {
	if len(os.Args) > 1 && os.Args[1] == unpackArg {
		return unpack(os.Args[2:])
	}
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&[]byte("joblet-shim\x00")[0])), 0, 0, 0)
	unix.CloseOnExec(protocol.ControlFD)
	unix.CloseOnExec(protocol.ListenFD)
	m := &shim{
		conns: []*conn{{fd: protocol.ControlFD}}, listen: protocol.ListenFD,
		stdin: noStdin, terminal: terminal{master: -1}, denied: denied{listener: -1}, oomEvents: -1,
	}
	if err := m.run(); err != nil {
		os.Stderr.WriteString("joblet-shim: " + err.Error() + "\n")
		return 1
	}
	return 0
}

type shim struct {
	conns  []*conn
	listen int

	shared      *arena
	programs    [2]*program
	box         *protocol.Box // nil: of a further process
	idBase      uint32
	cgroup      cgroup.Dirs
	oomEvents   int // readable when memory is used up; -1: the kernel ends the job by itself
	child       int // PID 1 as the host numbers it
	pidfd       int
	goSocket    int    // our end
	statusRead  int    // end of file: the command runs, or the set-up has failed
	output      [2]int // read ends of stdout and stderr; -1 once at their end
	arrivals    arrivals
	writeEnds   [2]int
	userns      int
	namespaces  [4]int // mnt, net, ipc, uts
	log         *logstore.Writer
	dir         int // the job's directory
	recordName  string
	recordFD    int // recordName+".tmp" in dir; 0: not yet
	renamed     bool
	root        int // the job's root
	shm         int // the job's /dev/shm
	work        int // the job's /work
	workMax     int64
	stdin       stdin
	terminal    terminal
	denied      denied
	endedBy     syscall.Signal // what has ended PID 1 in place of the kernel; 0: nothing
	logShrinks  bool
	started     protocol.Started
	record      protocol.Record
	deadline    time.Time // of the run; zero: none
	grace       time.Duration
	killAt      time.Time // after a stop or the deadline; zero: not yet
	syncAt      time.Time // output waits for fsync until then; zero: none does
	retryLogAt  time.Time // the disk was full: output waits in the pipes until then
	logGiveUpAt time.Time // once the job has ended
	hurry       bool      // somebody waits for the end: what finds no room on a full disk is given up
}

// conn is a connection to a daemon.
type conn struct{ fd int }

func (c *conn) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(c.fd, p)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (c *conn) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		n, err := unix.SendmsgN(c.fd, p[written:], nil, nil, unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

func (m *shim) run() error {
	daemon := m.conns[0]
	var req protocol.Request
	err := protocol.ReadMessage(daemon, &req)
	switch {
	case err == nil && (req.Exec != nil && req.Exec.Version != protocol.Version || req.Box != nil && req.Box.Version != protocol.Version):
		return errors.New("the daemon speaks another version of the protocol: the embedded shim is not of this build")
	case err == nil && req.Exec != nil:
		req.Exec.Run.Unpack()
		return m.exec(req.Exec)
	case err != nil || req.Box == nil:
		return errors.Join(errors.New("no box on the control socket"), err)
	}
	boxErr := m.buildBox(req.Box)
	if boxErr == nil {
		warmUp()
		run, err := m.awaitRun(daemon)
		if run == nil && err == nil {
			m.killChild() // not needed: the daemon stops, or is gone
			return nil
		}
		if boxErr = err; boxErr == nil {
			boxErr = m.startJob(run)
		}
	}
	if boxErr != nil {
		m.killChild()
		failure := m.failure(boxErr)
		if m.recordFD > 0 { // the daemon may be gone: the next one finds it here
			m.record.Failure = failure
			_ = m.writeRecord()
		}
		return protocol.WriteMessage(daemon, protocol.Event{Failed: failure})
	}
	m.tell(protocol.Event{Started: &m.started})
	m.watch()
	m.finish()
	return nil
}

// awaitRun waits for the job that the daemon has for the box; nil: it has none.
func (m *shim) awaitRun(daemon *conn) (*protocol.Run, error) {
	for {
		var req protocol.Request
		if err := protocol.ReadMessage(daemon, &req); err != nil {
			return nil, nil //nolint:nilerr // its end says that there will be none
		}
		if req.Run != nil {
			req.Run.Unpack()
			return req.Run, nil
		}
		if !req.Ready {
			return nil, nil
		}
		if err := m.awaitBox(); err != nil {
			return nil, err
		}
		if err := m.sendReady(daemon); err != nil {
			return nil, err
		}
	}
}

// sendReady hands the daemon what protocol.ReadyDescriptors names.
func (m *shim) sendReady(daemon *conn) error {
	if err := protocol.WriteMessage(daemon, protocol.Event{Ready: &protocol.Ready{PID: m.child}}); err != nil {
		return step("say that the box is ready", err)
	}
	return sendDescriptors(daemon.fd, append([]int{m.pidfd, m.userns}, m.namespaces[:]...)...)
}

// warmUp has encoding/json find out, and the kernel page in, what the job's
// documents need, while nobody waits: it takes as long as starting the job.
func warmUp() {
	var req protocol.Request
	_ = json.Unmarshal([]byte(`{"run":{"trees":[{"idmap":true}],"links":[{}],"files":[{}],"args":[""],"filter":"AA==","rlimits":[{}]}}`), &req)
	_, _ = json.Marshal(protocol.Event{Started: &protocol.Started{}, Ended: &protocol.Record{}})
	_, _ = json.Marshal(protocol.Record{})
}

func (m *shim) failure(err error) *protocol.Failure {
	f := &protocol.Failure{Text: err.Error()}
	if se, ok := errors.AsType[*stepError](err); ok {
		f.Step, f.Errno = se.step, se.errno
		if a := m.shared; a != nil && a.execBegan != 0 {
			f.IsExec = true
			f.Why = whyNot(a.files[:a.nfiles], se.errno, runtime.GOARCH)
		}
	}
	f.OutOfMemory = m.child != 0 && m.outOfMemory()
	return f
}

// buildBox clones the first process and has it work through boxProgram.
func (m *shim) buildBox(box *protocol.Box) error {
	shared, programs, err := newArena()
	if err != nil {
		return err
	}
	m.shared, m.programs = shared, programs
	m.box = box
	m.idBase = box.IDBase
	m.cgroup = box.Cgroup
	tasks := box.Cgroup.TaskFiles()
	if len(tasks) > maxTasks {
		return &stepError{"enter cgroups", unix.E2BIG}
	}
	for i, name := range tasks {
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return step("open "+name, err)
		}
		defer unix.Close(fd)
		shared.slots[slotTask+i] = uintptr(fd)
	}
	dev, err := openTree(protocol.Tree{Source: protocol.Name(box.DevDir)}, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, -1)
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	shared.slots[slotDev] = uintptr(dev)
	sys, err := openSys(box.Cgroup.Views())
	if err != nil {
		return err
	}
	defer closeSys(sys)
	for i, mount := range sys {
		shared.slots[slotTree+i] = uintptr(mount.tree)
	}

	args := cloneArgs{
		flags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET |
			unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		exitSignal: uint64(syscall.SIGCHLD),
	}
	if dir := box.Cgroup.V2; dir != "" {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return step("open "+dir, err)
		}
		defer unix.Close(fd)
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(fd)
	}
	if m.oomEvents, err = box.Cgroup.OOMEvents(); err != nil {
		return step("listen for the end of the job's memory", err)
	}

	for i := range m.output {
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			return step("make a pipe", err)
		}
		_ = unix.SetNonblock(pipe[0], true)
		// So that the job may open /dev/stdout, which leads to the pipe's inode: also a
		// process that has changed its user.
		err := unix.Fchown(pipe[1], int(box.IDBase), int(box.IDBase))
		if err == nil {
			err = unix.Fchmod(pipe[1], protocol.OutputMode)
		}
		if err != nil {
			return step("give the job its pipe", err)
		}
		m.output[i], m.writeEnds[i] = pipe[0], pipe[1]
	}
	if m.arrivals, err = newArrivals(m.output); err != nil {
		return err
	}
	sockets, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return step("make the go socket", err)
	}
	var status [2]int
	if err := unix.Pipe2(status[:], unix.O_CLOEXEC); err != nil {
		return step("make the status pipe", err)
	}
	m.goSocket, m.statusRead = sockets[0], status[0]

	shared.iov = unix.Iovec{Base: &shared.goByte, Len: 1}
	shared.msg = unix.Msghdr{Iov: &shared.iov, Iovlen: 1, Control: &shared.control[0]}
	p := programs[0]
	// What the first process has of the shim's it closes before anything else. (A
	// daemon also takes a box whose connection is open for one whose shim lives.)
	keep := []int{dev, m.writeEnds[0], m.writeEnds[1], sockets[1], status[1]}
	for i := range tasks {
		keep = append(keep, int(shared.slots[slotTask+i]))
	}
	for _, mount := range sys {
		keep = append(keep, mount.tree)
	}
	p.closeAllBut(keep...)
	connectOutput(p, m.writeEnds[0], m.writeEnds[1])
	for _, fd := range m.writeEnds {
		p.call("close the pipe", unix.SYS_CLOSE, uintptr(fd))
	}
	boxProgram(p, box, sys)
	if p.full {
		return &stepError{"write the set-up program", unix.E2BIG}
	}
	if m.child, err = shared.fork(&args, sockets[1], box.IDBase); err != nil {
		return err
	}
	m.pidfd = int(shared.pidfd)
	unix.Close(sockets[1])
	unix.Close(status[1])
	for _, fd := range m.writeEnds {
		unix.Close(fd)
	}
	if err := m.mapIDs(box); err != nil {
		return err
	}
	if err := m.fixOOMScore(); err != nil {
		return err
	}
	return m.letGo(nil)
}

// mapIDs writes the maps of the child's user namespace. setgroups stays
// allowed: the maps are written by a privileged process (user_namespaces(7)).
func (m *shim) mapIDs(box *protocol.Box) error {
	proc := "/proc/" + itoa(int64(m.child)) + "/"
	line := "0 " + itoa(int64(box.IDBase)) + " " + itoa(int64(box.IDCount))
	for _, name := range []string{"uid_map", "gid_map"} {
		fd, err := unix.Open(proc+name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return step("open "+name, err)
		}
		_, err = unix.Write(fd, []byte(line))
		unix.Close(fd)
		if err != nil {
			return step("write "+name+" ("+line+")", err)
		}
	}
	fd, err := unix.Open(proc+"ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return step("open the user namespace", err)
	}
	m.userns = fd
	// The last process to leave a namespace takes it apart, and waits for RCU
	// while it does. As long as the shim has these open that is not PID 1 on
	// its way out, whose status somebody waits for, but the shim on its own.
	for i, ns := range []string{"mnt", "net", "ipc", "uts"} {
		if m.namespaces[i], err = unix.Open(proc+"ns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return step("open the "+ns+" namespace", err)
		}
	}
	return nil
}

// letGo sends the byte that the first process waits for.
func (m *shim) letGo(fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, err := unix.SendmsgN(m.goSocket, []byte{1}, rights, nil, unix.MSG_NOSIGNAL); err != nil {
		if setup := m.setupError(); setup != nil {
			return setup // it is gone, and this is why
		}
		return step("tell the first process to go on", err)
	}
	return nil
}

// resolve says how the path of a tree is looked up. That of a runtime's has no
// symbolic links (runtimes.Open), so one in it was put there since.
func resolve(t protocol.Tree) uint64 {
	if t.IDMap || t.Layer {
		return unix.RESOLVE_NO_SYMLINKS
	}
	return unix.RESOLVE_NO_MAGICLINKS
}

// attrsOf returns the attributes of a job's tree.
func attrsOf(t protocol.Tree) uint64 {
	attrs := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV)
	if t.Writable {
		attrs &^= unix.MOUNT_ATTR_RDONLY
	}
	if t.Device {
		attrs &^= unix.MOUNT_ATTR_NODEV
	}
	return attrs
}

// openTree opens a detached copy of the mounts at a directory (open_tree(2))
// that has the given attributes throughout.
func openTree(t protocol.Tree, attrs uint64, userns int) (int, error) {
	source, err := unix.Openat2(unix.AT_FDCWD, string(t.Source), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve(t),
	})
	if err != nil {
		return -1, step("open "+string(t.Source), err)
	}
	defer unix.Close(source)
	fd, err := unix.OpenTree(source, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, step("open "+string(t.Source), err)
	}
	attr := unix.MountAttr{Attr_set: attrs, Attr_clr: unix.MOUNT_ATTR_NODEV &^ attrs, Propagation: unix.MS_PRIVATE}
	if t.IDMap && userns >= 0 {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(userns)
		if err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err == nil {
			return fd, nil
		}
		// The file system knows no idmapped mounts (EINVAL): the job sees the
		// owners as nobody, and reads what everybody may read. What it writes would be
		// nobody's too.
		if t.Writable {
			unix.Close(fd)
			return -1, step("map the ids of "+string(t.Source), err)
		}
		attr.Attr_set &^= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = 0
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		unix.Close(fd)
		return -1, step("restrict "+string(t.Source), err)
	}
	return fd, nil
}

// startJob has the first process work through jobProgram and waits for the
// end of that: the command runs, or an error.
func (m *shim) startJob(run *protocol.Run) error {
	m.grace = time.Duration(run.GraceNanos)
	dir, err := unix.Open(run.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return step("open "+run.Dir, err)
	}
	m.dir = dir
	m.recordName, m.workMax, m.logShrinks = protocol.ExitName(run.Attempt), run.WorkMaxBytes, run.LogShrinks
	if err := m.reserveRecord(run); err != nil { // before anything else is there: it says that this attempt has begun
		return err
	}
	options := logstore.Options{MaxBytes: run.LogMaxBytes, MayShrink: run.LogShrinks, Append: run.Attempt > 1}
	m.log, err = logstore.Create(dir, options)
	if errors.Is(err, logstore.ErrNoHoles) { // then its size is the disk's
		m.logShrinks = false
		m.log, err = logstore.Create(dir, logstore.Options{Append: options.Append})
	}
	if err != nil {
		return step("create the log in "+run.Dir, err)
	}
	if len(run.Trees) > protocol.MaxTrees {
		return &stepError{"attach trees", unix.E2BIG}
	}
	if err := m.awaitBox(); err != nil {
		return err
	}
	if err := m.resizeFileSystems(run.DiskBytes, run.ShmBytes); err != nil {
		return err
	}
	if err := m.raiseLimits(run.Rlimits); err != nil {
		return err
	}
	if err := m.giveToUser(run); err != nil {
		return err
	}
	if run.FilesPath != "" {
		if err := m.unpackFiles(run); err != nil {
			return err
		}
	}
	trees := make([]int, 0, len(run.Trees)+1)
	defer func() {
		for _, fd := range trees {
			unix.Close(fd)
		}
	}()
	for _, t := range run.Trees {
		fd, err := openTree(t, attrsOf(t), m.userns)
		if err != nil {
			return err
		}
		trees = append(trees, fd)
	}
	if fd, err := m.openStdin(run); err != nil {
		return err
	} else if fd >= 0 {
		trees = append(trees, fd)
	}
	jobProgram(m.programs[1], m.box, run)
	if m.programs[1].full {
		return &stepError{protocol.StepArguments, unix.E2BIG}
	}
	if err := m.letGo(trees); err != nil {
		return err
	}
	if err := m.awaitExec(); err != nil {
		return err
	}
	if run.Terminal != nil {
		if err := m.takeTerminal(); err != nil {
			return err
		}
	}
	if run.LogDenied {
		if err := m.takeListener(run); err != nil {
			return err
		}
	}
	now := time.Now()
	m.started = protocol.Started{PID: m.child, IDBase: m.idBase, UnixNanos: now.UnixNano(), Window: m.window(), Version: protocol.Version, Dir: run.Dir}
	m.record.StartedNanos = now.UnixNano()
	if run.TimeoutNanos > 0 {
		m.deadline = now.Add(time.Duration(run.TimeoutNanos))
	}
	unix.Close(m.goSocket)
	unix.Close(m.userns)
	return nil
}

// awaitBox waits until the first process has built the box, and then opens its
// /dev/shm and /work: as long as no code of the job's has run, nothing else can be there.
// Once it was successful it does nothing more.
func (m *shim) awaitBox() error {
	if m.root != 0 {
		return nil
	}
	if err := awaitRead(m.goSocket, "build the box"); err != nil {
		return err
	}
	if n, err := unix.Read(m.goSocket, make([]byte, 1)); n != 1 {
		if setup := m.setupError(); setup != nil {
			return setup
		}
		return step("hear from the first process", err)
	}
	root, err := unix.Open("/proc/"+itoa(int64(m.child))+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return step("open the job's root", err)
	}
	m.root = root
	m.shm, err = unix.Openat(root, "dev/shm", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return step("open the job's /dev/shm", err)
	}
	m.work, err = unix.Openat(root, "work", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return step("open the job's /work", err)
	}
	return nil
}

// awaitExec waits for the end of file that closing the status pipe on execve
// gives.
func (m *shim) awaitExec() error {
	if err := awaitRead(m.statusRead, "set the job up"); err != nil {
		return err
	}
	unix.Close(m.statusRead)
	return m.setupError()
}

// awaitRead waits until there is something to read, or the end, for as long as a
// part of the set-up may take; what names that for the error.
func awaitRead(fd int, what string) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(setupTimeout); ; {
		n, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		switch {
		case err == unix.EINTR:
		case n == 0:
			return step(what+" within "+setupTimeout.String(), unix.ETIMEDOUT)
		default:
			return nil
		}
	}
}

// setupError says how the set-up failed, or nil if the last step was reached
// and did not fail.
func (m *shim) setupError() error {
	a := m.shared
	if a.failedOp != 0 {
		o := a.ops[a.failedIn][a.failedOp-1]
		return &stepError{m.programs[a.failedIn].names[o.name], syscall.Errno(a.errno)}
	}
	if a.execBegan == 0 {
		return &stepError{protocol.StepKilled, unix.ECHILD}
	}
	return nil
}

func step(what string, err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return &stepError{what, errno}
	}
	return errors.Join(errors.New(what), err)
}

func (m *shim) killChild() {
	if m.child == 0 {
		return
	}
	_ = unix.Kill(m.child, unix.SIGKILL) // not reaped yet, so the number is still its own
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(m.child, &ws, 0, nil); err != unix.EINTR {
			return
		}
	}
}

// tell sends an event to every daemon; those that do not take it are dropped.
func (m *shim) tell(e protocol.Event) {
	kept := m.conns[:0]
	for _, c := range m.conns {
		if err := protocol.WriteMessage(c, e); err != nil {
			unix.Close(c.fd)
			continue
		}
		kept = append(kept, c)
	}
	m.conns = kept
}

// watch is the loop of a running job. It returns when PID 1 has ended, which
// means that the kernel has killed and reaped whatever else was in its
// namespace (pid_namespaces(7)), and all output is in the log.
func (m *shim) watch() {
	const fixed = 7
	ended := false
	for !ended || !m.logDone() {
		now := time.Now()
		m.checkTimes(now)
		logWaits := now.Before(m.retryLogAt)
		fds := make([]unix.PollFd, fixed, fixed+maxConns)
		fds[0] = unix.PollFd{Fd: int32(m.pidfd), Events: unix.POLLIN}
		fds[1] = unix.PollFd{Fd: int32(m.listen), Events: unix.POLLIN}
		for i, fd := range m.output {
			fds[2+i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
			if logWaits {
				fds[2+i].Fd = -1
			}
		}
		if !ended && now.Before(m.terminal.retryAt) {
			fds[2].Fd = -1
		}
		fds[4] = m.stdin.pollFd()
		fds[5] = unix.PollFd{Fd: int32(m.oomEvents), Events: unix.POLLIN}
		fds[6] = m.denied.pollFd(now)
		if ended {
			fds[0].Fd = -1
		}
		for _, c := range m.conns {
			fds = append(fds, unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN})
		}
		if _, err := unix.Poll(fds, m.pollTimeout(now)); err != nil && err != unix.EINTR {
			return // no descriptor of ours can be bad
		}
		if !logWaits || ended {
			if fds[2].Revents != 0 || fds[3].Revents != 0 || ended || fds[0].Revents != 0 {
				m.drainOutput()
			}
		}
		if fds[4].Revents != 0 {
			m.stdin.feed()
		}
		if fds[5].Revents != 0 {
			m.endOutOfMemory()
		}
		if fds[6].Revents != 0 {
			m.denied.answer()
		}
		m.syncLog(time.Now()) // and not before poll: its timeout is what brings us here
		if fds[0].Revents != 0 {
			m.reap()
			ended = true
			m.stdin.close()
			m.denied.close()
			m.logGiveUpAt = time.Now().Add(m.patience())
			m.drainOutput() // what was written last; nobody is left who could write more
		}
		m.serve(fds[fixed:])
		if fds[1].Revents != 0 {
			m.accept()
		}
	}
}

const (
	maxConns = 64 // of which most last for a moment
	// syncDelay bounds how old output may be that a crash of the host loses.
	syncDelay = time.Second
	// logRetry is how often a full disk is tried again.
	logRetry = 100 * time.Millisecond
	// logPatience is how long an ended job's last output, at most two pipes
	// full, waits for room on a full disk before it is given up and the record
	// says so.
	logPatience = time.Minute
	// stopPatience is the same for a job that somebody stops and waits for.
	stopPatience = 300 * time.Millisecond
)

// patience is how long what an ended job has left waits for room on a full disk.
func (m *shim) patience() time.Duration {
	if m.hurry {
		return stopPatience
	}
	return logPatience
}

func (m *shim) pollTimeout(now time.Time) int {
	next := time.Time{}
	for _, t := range []time.Time{m.deadline, m.killAt, m.retryLogAt, m.syncAt, m.terminal.retryAt, m.denied.retryAt} {
		if t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if next.IsZero() {
		return -1
	}
	return int(min(next.Sub(now).Milliseconds()+1, 1<<30))
}

// checkTimes acts on the times that have come.
func (m *shim) checkTimes(now time.Time) {
	if !m.deadline.IsZero() && !now.Before(m.deadline) {
		m.deadline = time.Time{}
		m.stop(protocol.CauseTimeout, syscall.SIGTERM, m.grace)
	}
	if !m.killAt.IsZero() && !now.Before(m.killAt) {
		m.signal(syscall.SIGKILL)
		m.killAt = now.Add(time.Second) // never needed twice; harmless
	}
}

// stop begins the end of the job: the signal now, SIGKILL after the grace
// period. A PID 1 that does not handle the signal never gets it (the kernel
// spares a namespace's init the default actions: pid_namespaces(7)), so there
// is nothing to wait for.
func (m *shim) stop(cause protocol.Cause, sig syscall.Signal, grace time.Duration) {
	if m.record.Cause == "" {
		m.record.Cause = cause
	}
	if grace <= 0 || !m.handles(sig) {
		sig = syscall.SIGKILL
		grace = time.Second
	}
	m.signal(sig)
	_ = m.cgroup.Thaw() // a paused job could not heed it; ENOENT: the job is being removed
	if at := time.Now().Add(grace); m.killAt.IsZero() || at.Before(m.killAt) {
		m.killAt = at
	}
}

// handles reports whether PID 1 catches sig or waits for it (SigCgt and SigBlk
// in proc_pid_status(5)).
func (m *shim) handles(sig syscall.Signal) bool {
	status, err := os.ReadFile("/proc/" + itoa(int64(m.child)) + "/status")
	if err != nil {
		return true
	}
	mask := statusMask(status, "SigCgt:\t") | statusMask(status, "SigBlk:\t")
	return mask&(1<<(sig-1)) != 0
}

// endingSignals has a bit for each signal whose default action ends a process
// (signal(7)).
const endingSignals = ^uint64(1<<(unix.SIGCHLD-1) | 1<<(unix.SIGCONT-1) | 1<<(unix.SIGSTOP-1) | 1<<(unix.SIGTSTP-1) |
	1<<(unix.SIGTTIN-1) | 1<<(unix.SIGTTOU-1) | 1<<(unix.SIGURG-1) | 1<<(unix.SIGWINCH-1) | 1<<(unix.SIGKILL-1))

// spares reports whether the kernel drops a signal for PID 1 that would end any other
// process (pid_namespaces(7)): PID 1 neither handles nor blocks nor ignores it.
func (m *shim) spares(sig syscall.Signal) bool {
	if m.record.EndedNanos != 0 {
		return false
	}
	status, err := os.ReadFile("/proc/" + itoa(int64(m.child)) + "/status")
	return err == nil && endsBy(status, sig)
}

// endsBy is spares for a proc_pid_status(5).
func endsBy(status []byte, sig syscall.Signal) bool {
	if !bytes.Contains(status, []byte("SigIgn:\t")) {
		return false
	}
	mask := statusMask(status, "SigCgt:\t") | statusMask(status, "SigBlk:\t") | statusMask(status, "SigIgn:\t")
	return endingSignals&^mask&(1<<(sig-1)) != 0
}

// endAs ends the job as a signal would have ended PID 1, were it not that. The record
// says the signal.
func (m *shim) endAs(sig syscall.Signal) {
	if m.endedBy == 0 {
		m.endedBy = sig
	}
	m.signal(syscall.SIGKILL)
}

func statusMask(status []byte, field string) (mask uint64) {
	for i := 0; i+len(field) <= len(status); i++ {
		if string(status[i:i+len(field)]) != field {
			continue
		}
		for _, c := range status[i+len(field):] {
			switch {
			case c >= '0' && c <= '9':
				mask = mask<<4 | uint64(c-'0')
			case c >= 'a' && c <= 'f':
				mask = mask<<4 | uint64(c-'a'+10)
			default:
				return mask
			}
		}
	}
	return mask
}

func (m *shim) signal(sig syscall.Signal) {
	_ = unix.PidfdSendSignal(m.pidfd, sig, nil, 0) // ESRCH: it has ended, and poll tells
}

// shrinkLog makes room for new output on a full disk, if it is one, by giving up
// the oldest.
func (m *shim) shrinkLog(err error) bool {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return false
	}
	freed, err := m.log.Shrink()
	return freed && err == nil
}

// syncLog makes output survive a crash of the host, a second after it came.
func (m *shim) syncLog(now time.Time) {
	switch {
	case !m.log.Dirty():
	case m.syncAt.IsZero():
		m.syncAt = now.Add(syncDelay)
	case !now.Before(m.syncAt):
		m.syncAt = time.Time{}
		if err := m.log.Sync(); err != nil {
			m.syncAt = now.Add(syncDelay)
		}
	}
}

func (m *shim) logDone() bool { return m.output[0] < 0 && m.output[1] < 0 }

// reap takes PID 1's exit status.
func (m *shim) reap() {
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(m.child, &ws, 0, nil); err != unix.EINTR {
			break
		}
	}
	if a := m.shared; a.reaped != 0 {
		ws = unix.WaitStatus(a.status)
	}
	if ws.Signaled() && ws.Signal() == syscall.SIGKILL && m.endedBy != 0 {
		m.record.Signal = int(m.endedBy)
	} else if ws.Signaled() {
		m.record.Signal = int(ws.Signal())
	} else {
		m.record.Code = ws.ExitStatus()
	}
	m.record.EndedNanos = time.Now().UnixNano()
	m.measure()
	m.deadline, m.killAt = time.Time{}, time.Time{}
}

// serve reads the requests that have come.
func (m *shim) serve(fds []unix.PollFd) {
	kept := m.conns[:0]
	for i, c := range m.conns {
		if i < len(fds) && fds[i].Revents != 0 {
			var req protocol.Request
			if err := protocol.ReadMessage(c, &req); err != nil {
				unix.Close(c.fd) // the daemon is gone; another will come
				continue
			}
			if req.StdinBegin {
				m.stdin.take(c.fd)
				continue
			}
			if req.Terminal || req.Work {
				fd := m.work
				if req.Terminal {
					fd = m.terminal.master
				}
				if fd >= 0 {
					_ = sendDescriptor(c.fd, fd) // or the end tells the daemon
				}
				unix.Close(c.fd)
				continue
			}
			m.handle(&req)
		}
		kept = append(kept, c)
	}
	m.conns = kept
}

func (m *shim) handle(req *protocol.Request) {
	if sig := syscall.Signal(req.Signal); sig > 0 && req.DefaultAction && m.spares(sig) {
		m.endAs(sig)
	} else if sig > 0 {
		m.signal(sig)
	}
	if req.Interrupt > 0 {
		m.interrupt(syscall.Signal(req.Interrupt))
	}
	if req.Resize != nil {
		m.resize(req.Resize)
	}
	if req.StdinEnd != nil {
		m.stdin.endAt(*req.StdinEnd)
	}
	if s := req.Stop; s != nil {
		m.hurry = true
		if at := time.Now().Add(stopPatience); m.logGiveUpAt.After(at) {
			m.logGiveUpAt = at
		}
		if m.record.EndedNanos == 0 { // it has not ended by itself meanwhile
			m.stop(protocol.CauseStop, syscall.Signal(s.Signal), time.Duration(s.GraceNanos))
		}
	}
	if err := m.resizeFileSystems(req.DiskBytes, req.ShmBytes); err != nil {
		os.Stderr.WriteString("joblet-shim: " + err.Error() + "\n")
	}
}

// listenFor does what daemons ask for for some time, once the job has ended.
func (m *shim) listenFor(d time.Duration) {
	for deadline := time.Now().Add(d); ; {
		left := time.Until(deadline)
		if left <= 0 || m.hurry {
			return
		}
		fds := []unix.PollFd{{Fd: int32(m.listen), Events: unix.POLLIN}}
		for _, c := range m.conns {
			fds = append(fds, unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN})
		}
		if n, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil || n == 0 {
			continue
		}
		m.serve(fds[1:])
		if fds[0].Revents != 0 {
			m.accept()
		}
	}
}

// accept takes a later daemon's connection and greets it.
func (m *shim) accept() {
	fd, _, err := unix.Accept4(m.listen, unix.SOCK_CLOEXEC)
	if err != nil {
		return
	}
	if peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil || peer.Uid != 0 {
		unix.Close(fd) // nobody else can reach the socket; to be sure
		return
	}
	// A request that stops half-way must not stop the job's output.
	timeout := unix.Timeval{Sec: 1}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)
	c := &conn{fd: fd}
	m.started.StdinBytes, m.started.Window = m.stdin.taken, m.window()
	if len(m.conns) == maxConns || protocol.WriteMessage(c, protocol.Event{Started: &m.started}) != nil {
		unix.Close(fd)
		return
	}
	m.conns = append(m.conns, c)
}

// reserveRecord makes room for the exit record before there is a job, so that
// a full disk cannot keep it from being written.
func (m *shim) reserveRecord(run *protocol.Run) error {
	fd, err := unix.Openat(m.dir, m.recordName+".tmp", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return step("create the exit record", err)
	}
	m.recordFD = fd
	size := int64(recordSize)
	if run.LogDenied {
		size = deniedRecordSize
	}
	if err := unix.Fallocate(fd, 0, 0, size); err != nil && err != unix.EOPNOTSUPP {
		return step("reserve room for the exit record", err)
	}
	return nil
}

// recordSize is more than a Record without denied calls takes as JSON.
const recordSize = 4096

// finish closes the log, makes the record durable, and tells.
func (m *shim) finish() {
	m.record.LogBytes = m.log.Size()
	m.record.Denied = m.denied.list()
	for _, fd := range m.output {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	m.terminal.master = -1 // it was one of these
	if err := m.endLog(); err != nil && m.record.LogError == "" {
		m.record.LogError = "close the log: " + err.Error()
	}
	m.keepFiles()
	for {
		err := m.writeRecord()
		if err == nil {
			break
		}
		if errors.Is(err, unix.ENOENT) {
			break // somebody has removed the job's directory: nobody waits for a record
		}
		os.Stderr.WriteString("joblet-shim: " + err.Error() + "\n")
		if m.hurry {
			return // the daemon, which waits, finds out and says what it knows
		}
		m.listenFor(time.Second) // the job is over; its record is all that is left to do
	}
	m.tell(protocol.Event{Ended: &m.record})
}

// endLog completes the log and makes it durable. An empty one needs no fsync:
// the exit record says that it is empty.
func (m *shim) endLog() error {
	err := m.log.End(time.Now())
	for m.logShrinks && err != nil && m.shrinkLog(err) {
		err = m.log.End(time.Now())
	}
	if m.log.Size() > 0 {
		err = errors.Join(err, m.log.Sync())
	}
	return errors.Join(err, m.log.Close())
}

// writeRecord writes the exit record into the reserved file and renames it.
// Rename before fsync: a reader takes an incomplete record for none, and one
// fsync then commits both (the second, of the directory, says so to file
// systems other than ext4).
func (m *shim) writeRecord() error {
	body, err := json.Marshal(m.record)
	if err != nil {
		return err
	}
	body = protocol.Seal(body)
	if _, err := unix.Pwrite(m.recordFD, body, 0); err != nil {
		return step("write the exit record", err)
	}
	if err := unix.Ftruncate(m.recordFD, int64(len(body))); err != nil {
		return step("write the exit record", err)
	}
	if !m.renamed {
		if err := unix.Renameat(m.dir, m.recordName+".tmp", m.dir, m.recordName); err != nil {
			return step("rename the exit record", err)
		}
		m.renamed = true
	}
	for _, fd := range []int{m.recordFD, m.dir} {
		if err := unix.Fsync(fd); err != nil {
			return step("sync the exit record", err)
		}
	}
	return nil
}
