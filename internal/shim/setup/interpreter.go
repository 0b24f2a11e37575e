package setup

import (
	"bytes"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// When the kernel cannot execute a file, its error does not say what is wrong with the
// file, or that it is another one: the interpreter of a script, the loader of a program.
// So the process reads the beginning of the file, and of the interpreters, before it
// ends: in the job's root, with the job's rights, and through our own look-ups (path.go).
// The shim makes words of what it has read.

const (
	headSize   = 256 // that the kernel looks at (BINPRM_BUF_SIZE in linux/binfmts.h)
	maxScripts = 6   // that lead to each other, for the kernel (exec_binprm in fs/exec.c)
	tableSize  = 4096
)

// execFile is the command's file, or the interpreter that the one before it names.
type execFile struct {
	errno  uintptr // of the look-up
	mode   uint32
	access uintptr // error of executing it, as access(2) has it
	n      uintptr // bytes in head; 0: it is empty, or cannot be read
	head   [headSize]byte
	interp [headSize]byte // its interpreter or loader, behind it NUL; none: it names none
}

// inspect reads the file that the kernel could not execute, and its interpreters.
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) inspect(path uintptr) {
	for i := range a.files {
		f := &a.files[i]
		a.nfiles = i + 1
		a.readFile(f, path)
		if f.n == 0 || !f.isScript() {
			return
		}
		path = uintptr(unsafe.Pointer(&f.interp))
	}
}

//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) readFile(f *execFile, path uintptr) {
	*f = execFile{}
	fd, errno := a.openPath(atFDCWD, path, pathFlags)
	f.errno = uintptr(errno)
	if errno != 0 {
		return
	}
	syscall.RawSyscall(unix.SYS_FSTAT, fd, uintptr(unsafe.Pointer(&a.stat)), 0)
	syscall.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
	f.mode = a.stat.Mode
	_, _, errno = syscall.RawSyscall6(unix.SYS_FACCESSAT, atFDCWD, path, unix.X_OK, 0, 0, 0)
	f.access = uintptr(errno)
	if f.mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	fd, errno = a.openPath(atFDCWD, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return
	}
	n, _, errno := syscall.RawSyscall6(unix.SYS_PREAD64, fd, uintptr(unsafe.Pointer(&f.head)), headSize, 0, 0, 0)
	if errno == 0 {
		f.n = n
		f.findInterpreter()
		a.findLoader(f, fd)
	}
	syscall.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
}

//go:norace
//go:nosplit
func (f *execFile) isScript() bool { return f.head[0] == '#' && f.interp[0] != 0 }

// findInterpreter finds what the first line of a script names, as the kernel does
// (load_script in fs/binfmt_script.c).
//
//go:norace
//go:nosplit
func (f *execFile) findInterpreter() {
	if f.head[0] != '#' || f.head[1] != '!' {
		return
	}
	at := uintptr(2)
	for at < headSize && (f.head[at] == ' ' || f.head[at] == '\t') {
		at++
	}
	for to := 0; at < headSize; at++ {
		c := f.head[at]
		if c == ' ' || c == '\t' || c == '\n' || c == 0 {
			return
		}
		f.interp[to] = c
		to++
	}
	f.interp[0] = 0 // the name does not end: the kernel takes none
}

// findLoader finds the loader that a program of either size names (elf(5)).
//
//go:norace
//go:nocheckptr
//go:nosplit
func (a *arena) findLoader(f *execFile, fd uintptr) {
	if f.n < 64 || f.head[0] != 0x7f || f.head[1] != 'E' || f.head[2] != 'L' || f.head[3] != 'F' || f.head[5] != 1 {
		return
	}
	head, table := uintptr(unsafe.Pointer(&f.head)), uintptr(unsafe.Pointer(&a.table))
	offset, size, count := little(head+28, 4), little(head+42, 2), little(head+44, 2)
	where, length, least := uintptr(4), uintptr(16), uintptr(32)
	word := uintptr(4)
	if f.head[4] == 2 {
		offset, size, count = little(head+32, 8), little(head+54, 2), little(head+56, 2)
		where, length, least = 8, 32, 56
		word = 8
	}
	if size < least || size > tableSize {
		return
	}
	n, _, errno := syscall.RawSyscall6(unix.SYS_PREAD64, fd, table, min(size*count, tableSize), offset, 0, 0)
	if errno != 0 {
		return
	}
	for at := uintptr(0); at+size <= n; at += size {
		const ptInterp = 3
		if little(table+at, 4) == ptInterp {
			syscall.RawSyscall6(unix.SYS_PREAD64, fd, uintptr(unsafe.Pointer(&f.interp)),
				min(little(table+at+length, word), headSize-1), little(table+at+where, word), 0, 0)
			return
		}
	}
}

// little returns the little-endian number of n bytes at an address in the arena.
//
//go:norace
//go:nocheckptr
//go:nosplit
func little(at, n uintptr) (v uintptr) {
	for n > 0 {
		n--
		v = v<<8 | uintptr(*(*byte)(pointer(at + n)))
	}
	return v
}

// inspectCalls are the system calls that inspect makes.
var inspectCalls = []uint32{unix.SYS_FACCESSAT, unix.SYS_OPENAT2, unix.SYS_FSTAT, unix.SYS_PREAD64, unix.SYS_CLOSE}

// mayInspect reports whether the process can look at what it could not execute. A call
// that the filter asks the shim about would wait for ever: until the command runs,
// the shim does not answer.
func mayInspect(run *protocol.Run) bool {
	if !run.LogDenied {
		return true
	}
	arch := uint32(unix.AUDIT_ARCH_X86_64)
	if runtime.GOARCH == "arm64" {
		arch = unix.AUDIT_ARCH_AARCH64
	}
	filter := run.Instructions()
	return !slices.ContainsFunc(inspectCalls, func(nr uint32) bool {
		verdict, _, _ := protocol.RunFilter(filter, &protocol.SeccompData{Number: nr, Arch: arch})
		return verdict != unix.SECCOMP_RET_ALLOW
	})
}

// whyNot says why the kernel could not execute the first of the files with this error;
// "": they do not tell.
func whyNot(files []execFile, errno syscall.Errno, arch string) string {
	if len(files) == 0 || files[0].errno != 0 || files[0].access != 0 {
		return ""
	}
	missing := errno == unix.ELIBACC || errno == unix.ENOENT || errno == unix.ENOTDIR
	for i := range files[1:] {
		// A look-up that fails ends the list.
		name, why := subject(files, i+1), ""
		switch f := &files[i+1]; {
		case missing && (f.errno == uintptr(unix.ENOENT) || f.errno == uintptr(unix.ENOTDIR)):
			why = "does not exist in the job"
			if bytes.HasSuffix(interpreter(&files[i]), []byte("\r")) {
				why += `: the lines of the script end in a carriage return, as on Windows, which "sed -i 's/\r$//' FILE" removes`
			}
		case f.errno == uintptr(unix.ELOOP):
			why = "leads through a link such as /proc/self/fd/3 or /proc/self/exe, or through too many"
		case errno == unix.EACCES && f.errno == 0 && f.mode&unix.S_IFMT != unix.S_IFREG:
			why = "is not a regular file"
		case errno == unix.EACCES && f.errno == 0 && f.access != 0:
			why = "is not marked executable"
		}
		if why != "" {
			return name + " " + why
		}
	}
	last := &files[len(files)-1]
	name := subject(files, len(files)-1)
	switch {
	case last.errno != 0:
		return ""
	case errno == unix.ELOOP && len(files) == maxScripts:
		return "its interpreter is a script, whose interpreter is a script, and so on: the kernel follows " + decimal(maxScripts-1) + " of them"
	case bytes.HasPrefix(last.head[:last.n], elfMagic):
		return whyNotELF(name, last, errno, arch)
	case errno != unix.ENOEXEC:
		return ""
	}
	if why := whyNoScript(last.head[:last.n]); why != "" {
		return name + " " + why
	}
	return ""
}

// interpreter returns the interpreter or loader that a file names.
func interpreter(f *execFile) []byte {
	name, _, _ := bytes.Cut(f.interp[:], []byte{0})
	return name
}

// quote shows every byte of a name, and not too many.
func quote(name []byte) string {
	const most = 128
	if len(name) > most {
		return strconv.Quote(string(name[:most])) + "…"
	}
	return strconv.Quote(string(name))
}

// subject names a file in a sentence about the first.
func subject(files []execFile, i int) string {
	if i == 0 {
		return "it"
	}
	name := "its"
	for j := range files[:i] {
		if j > 0 {
			name += " is a script, whose"
		}
		name += " interpreter " + quote(interpreter(&files[j]))
	}
	return name
}

// elfMagic begins a program, machMagic one for macOS.
var (
	elfMagic  = []byte("\x7fELF")
	machMagic = []string{"\xcf\xfa\xed\xfe", "\xce\xfa\xed\xfe", "\xca\xfe\xba\xbe"}
)

// whyNoScript says why the kernel does not take a file that is no program for a script;
// "": it is neither.
func whyNoScript(head []byte) string {
	const bom = "\xef\xbb\xbf"
	text := string(head)
	switch {
	case text == "":
		return "is empty, or may not be read"
	case strings.HasPrefix(text, "#!") && !strings.Contains(text, "\n") && len(head) == headSize:
		return "begins with #! and a line that is too long: the kernel reads " + decimal(headSize) + " bytes"
	case strings.HasPrefix(text, "#!"):
		return "names no interpreter behind #!"
	case strings.HasPrefix(text, bom+"#!"):
		return "begins with a byte order mark in front of #!: save it as UTF-8 without one"
	case strings.HasPrefix(text, "\xff\xfe") || strings.HasPrefix(text, "\xfe\xff"):
		return "is text in UTF-16: save a script as UTF-8 without a byte order mark"
	case isText(head):
		return "is text, and its first line does not begin with #! and an interpreter, such as #!/bin/sh: add one, or name the interpreter in the command"
	case strings.HasPrefix(text, "MZ"):
		return "is a program for Windows"
	case slices.ContainsFunc(machMagic, func(magic string) bool { return strings.HasPrefix(text, magic) }):
		return "is a program for macOS"
	}
	return ""
}

// isText reports whether a file that begins so is for people to read.
func isText(head []byte) bool {
	for len(head) > 0 {
		r, size := utf8.DecodeRune(head)
		switch {
		case r == utf8.RuneError && size == 1 && utf8.FullRune(head),
			r < ' ' && !strings.ContainsRune("\t\n\v\f\r\b\x1b", r):
			return false
		}
		head = head[size:]
	}
	return true
}

// machineName names the machine of a program, by e_machine (elf(5)). It is no map: a
// map is made whenever a shim starts.
func machineName(machine uint16) string {
	switch machine {
	case 2:
		return "sparc"
	case 3:
		return "i386"
	case 8:
		return "mips"
	case 20:
		return "ppc"
	case 21:
		return "ppc64"
	case 22:
		return "s390x"
	case 40:
		return "arm"
	case 43:
		return "sparc64"
	case 62:
		return "x86_64"
	case 183:
		return "aarch64"
	case 243:
		return "riscv"
	case 258:
		return "loongarch64"
	}
	return "another machine (ELF machine " + decimal(machine) + ")"
}

// hostMachines returns the machines of a host's 64-bit and 32-bit programs; 0: unknown.
func hostMachines(arch string) (own, narrow uint16) {
	switch arch {
	case "amd64":
		return 62, 3
	case "arm64":
		return 183, 40
	}
	return 0, 0
}

func whyNotELF(name string, f *execFile, errno syscall.Errno, arch string) string {
	if errno == unix.ENOEXEC && f.n < 64 {
		return name + " is a damaged program"
	}
	order := func(at int) uint16 { return uint16(f.head[at]) | uint16(f.head[at+1])<<8 }
	if f.head[5] == 2 { // big-endian
		order = func(at int) uint16 { return uint16(f.head[at])<<8 | uint16(f.head[at+1]) }
	}
	kind, machine := order(16), order(18)
	what := machineName(machine)
	own, narrow := hostMachines(arch)
	loader := "its loader"
	if name != "it" {
		loader = name + " is a program, whose loader"
	}
	if at := interpreter(f); len(at) > 0 {
		loader += " " + quote(at)
	}
	missing := errno == unix.ELIBACC || errno == unix.ENOENT || errno == unix.ENOTDIR
	switch {
	case (missing || errno == unix.ENOEXEC) && own != 0 && machine != own && machine != narrow:
		return name + " is a program for " + what + ", and this machine is " + machineName(own)
	case (missing || errno == unix.ENOEXEC) && f.head[4] == 1:
		return name + " is a 32-bit program for " + what + ", and jobs execute 64-bit programs only"
	case missing:
		return loader + " does not exist in the job: use a runtime that has it, or link the program statically"
	case errno == unix.ELIBBAD:
		return loader + " is not a loader for this machine"
	case errno == unix.EACCES && len(interpreter(f)) > 0:
		return loader + " is not marked executable"
	case errno != unix.ENOEXEC && errno != unix.EINVAL:
		return ""
	case kind != 2 && kind != 3:
		return name + " is an ELF file, but not a program"
	}
	return name + " is a damaged program"
}
