package setup

import (
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A program is the set-up of the job's first process: a table of raw system
// calls that the shim writes and the process works through (child).
//
// Why so: the process is a clone of the shim with one thread. The Go
// scheduler, collector and signal handling are dead in it, so Go code may
// neither allocate, nor grow its stack, nor block in the runtime there. A loop
// over a table needs none of that, and everything else (strings, structs,
// decisions) is ordinary code in the shim. The table lies in memory shared
// by both, so that the shim can write the second half after the clone and
// read from it how far the process got.

// op is one step.
type op struct {
	kind  opKind
	nr    uintptr
	args  [6]uintptr
	slots uint8 // bit i: argument i is the value of slot args[i]
	save  uint8 // the result goes into this slot; 0: nowhere
	allow uint8 // what may fail: one of allow…
	name  int32 // index into program.names, for the error
}

type opKind uint8

const (
	opCall       opKind = iota // a system call
	opReceive                  // recvmsg on the go socket: one byte and descriptors, into slots from save on
	opExec                     // execve the first of the candidates that exists
	opReaper                   // clone; the child goes on, the parent reaps until the child has ended
	opSend                     // sendmsg on the go socket: one byte and the descriptor in slot save
	opSibling                  // clone; the child, a sibling of the process, goes on, and the process ends
	opHome                     // opWalk for a directory that the command can do without
	opCover                    // attach the tree in slot save over a file of the job, if there is one
	opWalk                     // open a directory of the job, made where it is missing, into slot save
	opInRoot                   // fail unless the working directory lies in the root
	opCandidates               // note which of the candidates lead through a magic link
)

const (
	allowNone = iota
	allowAll
	allowExist // EEXIST
)

const (
	maxOps   = 768
	maxSlots = 64
	// arenaSize bounds what both programs and their strings take: the strings
	// of one execve are 2 MiB at most (joblet.MaxArgEnvSize); the rest is never
	// touched and so never allocated.
	arenaSize = 8 << 20
)

// arena is the shared memory: its fields first, strings and structs behind.
type arena struct {
	pidfd int32 // of the first process; the kernel writes it

	// Written by the first process.
	failedOp  int32 // 1 + index of the step that failed, in program failedIn
	failedIn  int32
	errno     uintptr
	execBegan int32 // the last step was reached: what ends the process now is no set-up
	status    int32 // of the command, when the reaper is PID 1
	reaped    int32 // status is valid

	ops   [2][maxOps]op
	nops  [2]int
	slots [maxSlots]uintptr

	how   unix.OpenHow // of jobPath
	cwd   [4096]byte   // getcwd(2) gives no more (PATH_MAX)
	exec  uintptr      // array of nexec candidates
	nexec uintptr

	// What the first process saw of the candidate that the kernel could not execute.
	mayInspect bool
	inspected  uintptr // its path
	nfiles     int
	files      [maxScripts]execFile
	stat       unix.Stat_t
	table      [tableSize]byte // of the program's segments

	argv uintptr // **byte; the first pointer is overwritten by each candidate
	envp uintptr

	msg     unix.Msghdr
	iov     unix.Iovec
	goByte  byte
	control [256]byte

	// The reaper's name in the process table, and where the shim's own
	// arguments lie, which it replaces.
	initName [16]byte
	args     uintptr
	argsLen  uintptr

	siblingPID int32 // as the shim numbers it

	sigset  uint64
	siginfo [128]byte
}

type candidate struct {
	path  uintptr
	magic bool // it leads through a magic link
}

// candidate returns the path that is tried after i others.
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) candidate(i uintptr) *candidate {
	return (*candidate)(pointer(a.exec + i*unsafe.Sizeof(candidate{})))
}

// program builds one table in the arena.
type program struct {
	shared *arena
	index  int // 0: the sandbox; 1: the job
	next   *uintptr
	end    uintptr
	names  []string
	full   bool
}

// newArena maps the shared memory; the two programs share its heap.
func newArena() (*arena, [2]*program, error) {
	addr, _, errno := syscall.RawSyscall6(unix.SYS_MMAP, 0, arenaSize, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE, ^uintptr(0), 0)
	if errno != 0 {
		return nil, [2]*program{}, &StepError{"map the shared memory", errno}
	}
	a := *(**arena)(unsafe.Pointer(&addr)) // memory outside the Go heap: the collector neither moves nor frees it
	heap := addr + unsafe.Sizeof(*a)
	end := addr + arenaSize
	var p [2]*program
	for i := range p {
		p[i] = &program{shared: a, index: i, next: &heap, end: end}
	}
	return a, p, nil
}

// alloc returns n zeroed bytes of shared memory, aligned for any struct.
func (p *program) alloc(n int) uintptr {
	at := (*p.next + 15) &^ 15
	if at+uintptr(n) > p.end {
		p.full = true
		return p.end - arenaSize // never used: build reports it
	}
	*p.next = at + uintptr(n)
	return at
}

// str returns a NUL-terminated copy of s.
func (p *program) str(s string) uintptr {
	at := p.alloc(len(s) + 1)
	if !p.full {
		copy(unsafe.Slice((*byte)(pointer(at)), len(s)), s)
	}
	return at
}

// put returns a copy of v, which must hold no Go pointers.
func put[T any](p *program, v T) uintptr {
	at := p.alloc(int(unsafe.Sizeof(v)))
	if !p.full {
		*(*T)(pointer(at)) = v
	}
	return at
}

// pointers returns a NULL-terminated array of C strings.
func (p *program) pointers(list []string) uintptr {
	at := p.alloc((len(list) + 1) * int(unsafe.Sizeof(uintptr(0))))
	if p.full {
		return at
	}
	array := unsafe.Slice((*uintptr)(pointer(at)), len(list)+1)
	for i, s := range list {
		array[i] = p.str(s)
	}
	return at
}

// pointer turns an address in the arena into a pointer; the indirection tells
// vet what the comment of newArena tells the reader.
//
//go:nosplit
func pointer(at uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&at)) }

func (p *program) add(name string, o op) *op {
	a := p.shared
	n := a.nops[p.index]
	if n == maxOps {
		p.full = true
		n--
	}
	o.name = int32(len(p.names))
	p.names = append(p.names, name)
	a.ops[p.index][n] = o
	a.nops[p.index] = n + 1
	return &a.ops[p.index][n]
}

// call adds a system call; name is what the error says, as in "mount /proc".
func (p *program) call(name string, nr uintptr, args ...uintptr) *op {
	o := op{nr: nr}
	copy(o.args[:], args)
	return p.add(name, o)
}

// closeAllBut closes all descriptors from 3 on but those in keep. What is marked
// close-on-exec is open until then, and the kernel looks up the interpreter of a script
// before (CVE-2024-21626).
func (p *program) closeAllBut(keep ...int) {
	keep = slices.Sorted(slices.Values(keep))
	from := 3
	for _, fd := range append(keep, maxFD+1) {
		if fd > from {
			p.call("close inherited descriptors", unix.SYS_CLOSE_RANGE, uintptr(from), uintptr(fd-1), 0)
		}
		from = max(from, fd+1)
	}
}

const maxFD = 1<<31 - 1

// slot marks argument i as the number of a slot, whose value is taken.
func (o *op) slot(i int) *op { o.slots |= 1 << i; return o }

// into saves the result in a slot.
func (o *op) into(slot uint8) *op { o.save = slot; return o }

func (o *op) may(allow uint8) *op { o.allow = allow; return o }

// fork clones the first process with the given arguments and lets it work
// through the programs. sock is its end of the go socket; a.pidfd stands for it
// afterwards. A user namespace that the arguments make has the given owner.
func (a *arena) fork(args *cloneArgs, sock int, owner uint32) (pid int, err error) {
	// The first process asks for SIGKILL when its parent, which is this thread,
	// ends (PR_SET_PDEATHSIG, prctl(2)). Go ends a thread only with a goroutine
	// that is locked to it, and the shim locks none: its threads live as long
	// as itself.
	a.slots[slotSocket] = uintptr(sock)

	// No handler of the Go runtime may run in the child: it would look for a
	// scheduler. Signals stay blocked there until the dispositions are reset.
	all := ^uint64(0)
	var old uint64
	rawSigprocmask(unix.SIG_SETMASK, &all, &old)
	args.flags |= unix.CLONE_PIDFD
	args.pidfd = uint64(uintptr(unsafe.Pointer(&a.pidfd))) // not on the stack, which may move
	r, errno := a.cloneAs(args, uintptr(owner))
	rawSigprocmask(unix.SIG_SETMASK, &old, nil)
	if errno != 0 {
		return 0, &StepError{"clone3", errno}
	}
	return int(r), nil
}

const noSetuidFixup = 1 << 2 // SECBIT_NO_SETUID_FIXUP of linux/securebits.h

// cloneAs clones with the owner as effective uid, which the kernel takes for the owner
// of the new user namespace, and counts for it what is limited by user: inotify
// instances, signals and timers that wait, bytes in message queues, namespaces
// (inc_ucount and inc_rlimit_ucounts in kernel/ucount.c). All namespaces that root
// owned would take from root's share together.
//
// The thread keeps its capabilities (SECBIT_NO_SETUID_FIXUP, capabilities(7)), and its
// file system uid, by which the first process finds its way; that process gets
// capabilities and bits of its own with its namespace. Ids are a thread's in the kernel,
// and nothing here lets Go change the thread.
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) cloneAs(args *cloneArgs, owner uintptr) (uintptr, syscall.Errno) {
	if owner == 0 {
		return a.clone(args)
	}
	const same = ^uintptr(0)
	bits, _, errno := syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_GET_SECUREBITS, 0, 0, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	if _, _, errno = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, bits|noSetuidFixup, 0, 0, 0, 0); errno != 0 {
		return 0, errno
	}
	var r uintptr
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETRESUID, same, owner, same); errno == 0 {
		syscall.RawSyscall(unix.SYS_SETFSUID, 0, 0, 0)
		r, errno = a.clone(args)
		syscall.RawSyscall(unix.SYS_SETRESUID, same, 0, same) // back to the real uid: this cannot fail
	}
	syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, bits, 0, 0, 0, 0)
	return r, errno
}

// clone returns in the parent only.
//
//go:norace
//go:nocheckptr
//go:nosplit
//go:noinline
func (a *arena) clone(args *cloneArgs) (uintptr, syscall.Errno) {
	r, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if errno == 0 && r == 0 {
		a.child()
	}
	return r, errno
}

//go:nosplit
func rawSigprocmask(how uintptr, set, old *uint64) {
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, how, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
}

// child works through the programs. It never returns: it ends in execve or in
// exit.
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) child() {
	for prog := 0; prog < 2; prog++ {
		for i := 0; i < a.nops[prog]; i++ {
			o := &a.ops[prog][i]
			var r uintptr
			var errno syscall.Errno
			switch o.kind {
			case opCall:
				var v [6]uintptr
				for j := range v {
					v[j] = o.args[j]
					if o.slots&(1<<j) != 0 {
						v[j] = a.slots[o.args[j]]
					}
				}
				r, _, errno = syscall.RawSyscall6(o.nr, v[0], v[1], v[2], v[3], v[4], v[5])
				if errno == 0 && o.save != 0 {
					a.slots[o.save] = r
				}
			case opReceive:
				errno = a.receive(uintptr(o.save))
			case opExec:
				errno = a.execute()
				if a.mayInspect && a.inspected != 0 { // here, since there is little stack
					a.inspect(a.inspected)
				}
			case opReaper:
				errno = a.reaper()
			case opSend:
				errno = a.send(uintptr(o.save))
			case opSibling:
				errno = a.sibling()
			case opHome:
				a.home(o)
			case opCover:
				errno = a.cover(o)
			case opWalk:
				errno = a.walk(o)
			case opInRoot:
				errno = a.inRoot()
			case opCandidates:
				a.lookUpCandidates()
			}
			if errno != 0 && o.allow != allowAll && (o.allow != allowExist || errno != syscall.EEXIST) {
				a.errno = uintptr(errno)
				a.failedIn = int32(prog)
				a.failedOp = int32(i) + 1
				for {
					syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
				}
			}
		}
	}
	for { // a program without execve at its end
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 126, 0, 0)
	}
}

// receive waits for the shim's byte and stores the descriptors that come
// with it in the slots from first on. End of file means that the shim is
// gone or does not want the job: the process ends.
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) receive(first uintptr) syscall.Errno {
	a.msg.Controllen = uint64(len(a.control))
	n, _, errno := syscall.RawSyscall(unix.SYS_RECVMSG, a.slots[slotSocket], uintptr(unsafe.Pointer(&a.msg)), unix.MSG_CMSG_CLOEXEC)
	if errno != 0 {
		return errno
	}
	if n == 0 {
		return syscall.EPIPE
	}
	if a.msg.Controllen < unix.SizeofCmsghdr {
		return 0
	}
	if a.msg.Flags&unix.MSG_CTRUNC != 0 {
		return syscall.EMSGSIZE
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&a.control))
	count := (uintptr(h.Len) - unix.SizeofCmsghdr) / 4
	for i := uintptr(0); i < count && first+i < maxSlots; i++ {
		a.slots[first+i] = uintptr(*(*int32)(unsafe.Pointer(uintptr(unsafe.Pointer(h)) + unix.SizeofCmsghdr + 4*i)))
	}
	return 0
}

// execute tries the candidates as execvp(3) does: what does not exist is passed
// over, what may not be executed is remembered, anything else ends the search.
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) execute() syscall.Errno {
	result := syscall.ENOENT
	for i := uintptr(0); i < a.nexec; i++ {
		a.execBegan = 1
		c := a.candidate(i)
		if c.magic {
			return syscall.ELOOP
		}
		path := c.path
		*(*uintptr)(pointer(a.argv)) = path // argv[0] is the resolved path
		_, _, errno := syscall.RawSyscall(unix.SYS_EXECVE, path, a.argv, a.envp)
		switch errno {
		case syscall.ENOENT, syscall.ENOTDIR:
			// An existing script or program whose interpreter is missing gives
			// ENOENT too (execve(2)); it is found, and cannot be executed.
			if !a.mayInspect {
				continue
			}
			if _, _, e := syscall.RawSyscall6(unix.SYS_FACCESSAT, atFDCWD, path, unix.F_OK, 0, 0, 0); e == 0 {
				a.inspected = path
				return syscall.ELIBACC
			}
		case syscall.ENAMETOOLONG:
			if a.nexec == 1 {
				return errno
			}
		case syscall.EACCES:
			result = errno
			a.inspected = path
		default:
			a.inspected = path
			return errno
		}
	}
	return result
}

// reaper makes the calling process, PID 1, the parent of the command: it
// returns in the child alone. Signals that PID 1 gets are passed on, orphans
// are reaped, and when the command has ended so does PID 1, with the status a
// shell would show; the full status goes to the arena.
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) reaper() syscall.Errno {
	child, errno := rawFork()
	if errno != 0 {
		return errno
	}
	if child == 0 {
		return 0
	}
	syscall.RawSyscall(unix.SYS_CLOSE_RANGE, 0, ^uintptr(0)>>32, 0)
	syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&a.initName)), 0)
	for i := uintptr(0); i < a.argsLen; i++ {
		c := byte(0)
		if i < uintptr(len(a.initName)) {
			c = a.initName[i]
		}
		*(*byte)(pointer(a.args + i)) = c
	}
	for {
		sig, _, errno := syscall.RawSyscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&a.sigset)), uintptr(unsafe.Pointer(&a.siginfo)), 0, 8, 0, 0)
		if errno != 0 {
			continue
		}
		if syscall.Signal(sig) != syscall.SIGCHLD {
			syscall.RawSyscall(unix.SYS_KILL, child, sig, 0)
			continue
		}
		for {
			status := int32(0)
			pid, _, errno := syscall.RawSyscall6(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&status)), unix.WNOHANG, 0, 0, 0)
			if errno != 0 || pid == 0 {
				break
			}
			if pid == child {
				a.status = status
				a.reaped = 1
				code := status >> 8 & 0xff
				if status&0x7f != 0 {
					code = 128 + status&0x7f
				}
				syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(code), 0, 0)
			}
		}
	}
}

//go:norace
//go:nosplit
func rawFork() (uintptr, syscall.Errno) {
	r, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	return r, errno
}

const atFDCWD = ^uintptr(99) // AT_FDCWD, -100

// cloneArgs is struct clone_args (clone3(2)).
type cloneArgs struct {
	flags      uint64
	pidfd      uint64
	childTID   uint64
	parentTID  uint64
	exitSignal uint64
	stack      uint64
	stackSize  uint64
	tls        uint64
	setTID     uint64
	setTIDSize uint64
	cgroup     uint64
}
