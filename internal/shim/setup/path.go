package setup

import (
	"path"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Paths that the caller, a runtime or the job itself has a say in are looked up by a
// process that is not the job's yet. Two walls keep such a path in the job, and either
// of them is enough:
//
//   - The process holds no descriptor with a path on the host: its standard streams, the
//     go socket and the status pipe are all that it has (closeAllBut). So a magic link
//     (/proc/self/fd/7, proc_pid_fd(5)) has nowhere to lead, not even in the look-ups that
//     the kernel does at execve, of the interpreter of a script and the loader of a program.
//   - Our own look-ups refuse magic links (RESOLVE_NO_MAGICLINKS, openat2(2)).

// jobPath is how a path of the job is looked up.
const jobPath = unix.RESOLVE_NO_MAGICLINKS

const (
	pathFlags      = unix.O_PATH | unix.O_CLOEXEC
	directoryFlags = pathFlags | unix.O_DIRECTORY
)

// openIn adds a look-up of an absolute path of the job. The error is ELOOP where it
// leads through a magic link.
func (p *program) openIn(name, file string, flags, resolve uint64) *op {
	how := put(p, unix.OpenHow{Flags: flags, Resolve: resolve})
	return p.call(name, unix.SYS_OPENAT2, atFDCWD, p.str(file), how, unsafe.Sizeof(unix.OpenHow{}))
}

// walk adds a step that opens a directory of the job into a slot and makes it, and those
// above it, where they are missing. A directory that is there and cannot be entered, or
// not be made, is the error of the step. The directory itself gets the owner, unless that
// is 0:0, where the file system can give it.
func (p *program) walk(name, dir string, slot uint8, uid, gid uint32) {
	p.walkAs(opWalk, name, dir, slot, uid, gid)
}

func (p *program) walkAs(kind opKind, name, dir string, slot uint8, uid, gid uint32) {
	dir = path.Clean("/" + dir)
	elems := strings.Split(strings.TrimPrefix(dir, "/"), "/")
	names := p.alloc(len(dir) + 2)
	if !p.full {
		at := names
		for _, e := range elems {
			copy(unsafe.Slice((*byte)(pointer(at)), len(e)), e)
			at += uintptr(len(e) + 1)
		}
	}
	p.add(name, op{kind: kind, save: slot, args: [6]uintptr{names, p.str("/"), uintptr(uid), uintptr(gid)}})
}

// walk does one such step. The names follow each other, each with its NUL; an empty one
// ends them.
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) walk(o *op) syscall.Errno {
	dir, errno := a.openDir(atFDCWD, o.args[1])
	if errno != 0 {
		return errno
	}
	for name := o.args[0]; *(*byte)(pointer(name)) != 0; {
		next := name
		for *(*byte)(pointer(next)) != 0 {
			next++
		}
		next++
		sub, errno := a.openDir(dir, name)
		if errno == syscall.ENOENT {
			syscall.RawSyscall(unix.SYS_MKDIRAT, dir, name, 0o755)
			sub, errno = a.openDir(dir, name)
		}
		if errno == 0 && o.args[2]|o.args[3] != 0 && *(*byte)(pointer(next)) == 0 {
			// Not through a link, which the job may have put here. EROFS: it stays as it is.
			syscall.RawSyscall6(unix.SYS_FCHOWNAT, dir, name, o.args[2], o.args[3], unix.AT_SYMLINK_NOFOLLOW, 0)
		}
		syscall.RawSyscall(unix.SYS_CLOSE, dir, 0, 0)
		if errno != 0 {
			return errno
		}
		dir, name = sub, next
	}
	a.slots[o.save] = dir
	return 0
}

// home makes a directory. What is in the way leaves the job without it.
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) home(o *op) {
	if a.walk(o) == 0 {
		syscall.RawSyscall(unix.SYS_CLOSE, a.slots[o.save], 0, 0)
	}
}

// cover attaches a tree over a file.
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) cover(o *op) syscall.Errno {
	file, errno := a.openPath(atFDCWD, o.args[0], pathFlags)
	if errno == syscall.ENOENT {
		return 0
	}
	if errno != 0 {
		return errno
	}
	_, _, errno = syscall.RawSyscall6(unix.SYS_MOVE_MOUNT, a.slots[o.save], o.args[1], file, o.args[1],
		unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH, 0)
	syscall.RawSyscall(unix.SYS_CLOSE, file, 0, 0)
	return errno
}

//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) openDir(dir, name uintptr) (uintptr, syscall.Errno) {
	return a.openPath(dir, name, directoryFlags)
}

// openPath looks a path of the job up.
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) openPath(dir, name uintptr, flags uint64) (uintptr, syscall.Errno) {
	a.how.Flags = flags
	a.how.Resolve = jobPath
	fd, _, errno := syscall.RawSyscall6(unix.SYS_OPENAT2, dir, name, uintptr(unsafe.Pointer(&a.how)), unsafe.Sizeof(a.how), 0, 0)
	return fd, errno
}

// inRoot fails with EXDEV unless the working directory can be reached from the root: the
// kernel gives a path that cannot as "(unreachable)/…" (getcwd(2)).
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) inRoot() syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_GETCWD, uintptr(unsafe.Pointer(&a.cwd)), unsafe.Sizeof(a.cwd), 0)
	if errno == 0 && a.cwd[0] != '/' {
		return syscall.EXDEV
	}
	return errno
}

// lookUpCandidates finds those of the candidates that lead through a magic link, for the
// sake of a clear error: execve itself cannot refuse them. It comes before the filter,
// which may forbid openat2.
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) lookUpCandidates() {
	for i := uintptr(0); i < a.nexec; i++ {
		c := a.candidate(i)
		fd, errno := a.openPath(atFDCWD, c.path, pathFlags)
		if errno == 0 {
			syscall.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
		}
		c.magic = errno == syscall.ELOOP
	}
}
