package setup

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// elf returns the beginning of a program: of a machine, with a loader that lies far
// behind its segments.
func elf(class byte, kind, machine uint16, loader string) []byte {
	le := binary.LittleEndian
	b := make([]byte, 6000)
	copy(b, "\x7fELF")
	b[4], b[5], b[6] = class, 1, 1
	le.PutUint16(b[16:], kind)
	le.PutUint16(b[18:], machine)
	const table, at = 500, 5000
	copy(b[at:], loader)
	if class == 2 {
		le.PutUint64(b[32:], table)
		le.PutUint16(b[54:], 56)
		le.PutUint16(b[56:], 2)
		le.PutUint32(b[table:], 1)
		le.PutUint32(b[table+56:], 3)
		le.PutUint64(b[table+56+8:], at)
		le.PutUint64(b[table+56+32:], uint64(len(loader)+1))
	} else {
		le.PutUint32(b[28:], table)
		le.PutUint16(b[42:], 32)
		le.PutUint16(b[44:], 2)
		le.PutUint32(b[table:], 1)
		le.PutUint32(b[table+32:], 3)
		le.PutUint32(b[table+32+4:], at)
		le.PutUint32(b[table+32+16:], uint32(len(loader)+1))
	}
	if loader == "" {
		b[table+56], b[table+32] = 1, 1
	}
	return b
}

// TestWhyNot: what the process reads of a file that the kernel does not execute, and
// what is said of it.
func TestWhyNot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name string, data []byte, mode os.FileMode) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, data, mode); err != nil {
			t.Fatal(err)
		}
		return name
	}
	long := "/" + strings.Repeat("x", 300)
	plain := write("plain", []byte("text\n"), 0o644)
	lost := write("lost", []byte("#!/no/such\n"), 0o755)
	musl := write("musl", elf(2, 3, 62, "/lib/ld-musl-x86_64.so.1"), 0o755)
	magic := filepath.Join(dir, "magic")
	if err := os.Symlink("/proc/self/fd/0", magic); err != nil {
		t.Fatal(err)
	}
	loop := filepath.Join(dir, "loop")
	tests := []struct {
		name  string
		data  string
		mode  os.FileMode
		errno syscall.Errno
		want  string
	}{
		{"missing", "#!/no/such -x\n", 0o755, unix.ELIBACC, `its interpreter "/no/such" does not exist in the job`},
		{"no line end", "#! \t /no/such", 0o755, unix.ELIBACC, `its interpreter "/no/such" does not exist in the job`},
		{"carriage return", "#!/bin/bash\r\necho\r\n", 0o755, unix.ELIBACC, `its interpreter "/bin/bash\r" does not exist in the job: the lines of the script end in a carriage return, as on Windows, which "sed -i 's/\r$//' FILE" removes`},
		{"control bytes", "#!/\x1b[2J\xff\n", 0o755, unix.ELIBACC, `its interpreter "/\x1b[2J\xff" does not exist in the job`},
		{"below a file", "#!" + plain + "/x\n", 0o755, unix.ELIBACC, `its interpreter "` + plain + `/x" does not exist in the job`},
		{"script of a script", "#!" + lost + "\n", 0o755, unix.ELIBACC, `its interpreter "` + lost + `" is a script, whose interpreter "/no/such" does not exist in the job`},
		{"magic link", "#!" + magic + "\n", 0o755, unix.EACCES, `its interpreter "` + magic + `" leads through a link such as /proc/self/fd/3 or /proc/self/exe, or through too many`},
		{"endless", "#!" + loop + "\n", 0o755, unix.ELOOP, `its interpreter is a script, whose interpreter is a script, and so on: the kernel follows 5 of them`},
		{"not executable", "#!" + plain + "\n", 0o755, unix.EACCES, `its interpreter "` + plain + `" is not marked executable`},
		{"a directory", "#!" + dir + "\n", 0o755, unix.EACCES, `its interpreter "` + dir + `" is not a regular file`},
		{"itself not executable", "#!/bin/sh\n", 0o644, unix.EACCES, ``},
		{"text", "echo hello\n", 0o755, unix.ENOEXEC, `it is text, and its first line does not begin with #! and an interpreter, such as #!/bin/sh: add one, or name the interpreter in the command`},
		{"text in another language", strings.Repeat("ä", 300), 0o755, unix.ENOEXEC, `it is text, and`},
		{"blank line first", "\n#!/bin/sh\n", 0o755, unix.ENOEXEC, `it is text, and its first line does not begin with #!`},
		{"byte order mark", "\xef\xbb\xbf#!/bin/sh\n", 0o755, unix.ENOEXEC, `it begins with a byte order mark in front of #!: save it as UTF-8 without one`},
		{"UTF-16", "\xff\xfe#\x00!\x00", 0o755, unix.ENOEXEC, `it is text in UTF-16: save`},
		{"empty", "", 0o755, unix.ENOEXEC, `it is empty, or may not be read`},
		{"no name", "#! \n", 0o755, unix.ENOEXEC, `it names no interpreter behind #!`},
		{"long line", "#!" + long, 0o755, unix.ENOEXEC, `it begins with #! and a line that is too long: the kernel reads 256 bytes`},
		{"data", "\x1f\x8b\x08\x00\x00", 0o755, unix.ENOEXEC, ``},
		{"Windows", "MZ\x90\x00\x03\x00", 0o755, unix.ENOEXEC, `it is a program for Windows`},
		{"macOS", "\xcf\xfa\xed\xfe\x0c\x00", 0o755, unix.ENOEXEC, `it is a program for macOS`},
		{"loader", string(elf(2, 3, 62, "/lib/ld-musl-x86_64.so.1")), 0o755, unix.ELIBACC, `its loader "/lib/ld-musl-x86_64.so.1" does not exist in the job: use a runtime that has it, or link the program statically`},
		{"32-bit loader", string(elf(1, 2, 3, "/lib/ld-linux.so.2")), 0o755, unix.ELIBACC, `it is a 32-bit program for i386, and jobs execute 64-bit programs only`},
		{"long loader", string(elf(2, 3, 62, long)), 0o755, unix.ELIBACC, `its loader "` + long[:128] + `"… does not exist in the job: use`},
		{"interpreter's loader", "#!" + musl + "\n", 0o755, unix.ELIBACC, `its interpreter "` + musl + `" is a program, whose loader "/lib/ld-musl-x86_64.so.1" does not exist in the job: use`},
		{"bad loader", string(elf(2, 3, 62, "/etc/passwd")), 0o755, unix.ELIBBAD, `its loader "/etc/passwd" is not a loader for this machine`},
		{"loader not executable", string(elf(2, 3, 62, "/etc/passwd")), 0o755, unix.EACCES, `its loader "/etc/passwd" is not marked executable`},
		{"program not executable", string(elf(2, 3, 62, "/etc/passwd")), 0o644, unix.EACCES, ``},
		{"other machine", string(elf(2, 3, 183, "/lib/ld-linux-aarch64.so.1")), 0o755, unix.ENOEXEC, `it is a program for aarch64, and this machine is x86_64`},
		{"other machine, emulated", string(elf(2, 3, 183, "/lib/ld-linux-aarch64.so.1")), 0o755, unix.ELIBACC, `it is a program for aarch64, and this machine is x86_64`},
		{"unknown machine", string(elf(2, 3, 999, "")), 0o755, unix.ENOEXEC, `it is a program for another machine (ELF machine 999), and this machine is x86_64`},
		{"big-endian", "\x7fELF\x02\x02" + strings.Repeat("\x00", 10) + "\x00\x02\x00\x16" + strings.Repeat("\x00", 60), 0o755, unix.ENOEXEC, `it is a program for s390x, and this machine is x86_64`},
		{"32-bit", string(elf(1, 2, 3, "")), 0o755, unix.ENOEXEC, `it is a 32-bit program for i386, and jobs execute 64-bit programs only`},
		{"object file", string(elf(2, 1, 62, "")), 0o755, unix.ENOEXEC, `it is an ELF file, but not a program`},
		{"cut", "\x7fELF\x02\x01", 0o755, unix.ENOEXEC, `it is a damaged program`},
		{"wild table", string(slices.Concat(elf(2, 3, 62, "")[:32], slices.Repeat([]byte{255}, 100))), 0o755, unix.ENOEXEC, `it is a damaged program`},
		{"other errors", string(elf(2, 3, 62, "")), 0o755, unix.ENOMEM, ``},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a, programs := testArena(t)
			name := write("file", []byte(test.data), test.mode)
			defer os.Remove(name)
			if test.name == "endless" {
				name = write("loop", []byte(test.data), test.mode)
			}
			a.inspect(programs[0].str(name))
			got := whyNot(a.files[:a.nfiles], test.errno, "amd64")
			if got != test.want && (!strings.HasPrefix(got, test.want) || test.want == "") {
				t.Errorf("%q\nwant %q", got, test.want)
			}
		})
	}
}

// TestMayInspect: a call that the filter would ask the shim about is not made.
func TestMayInspect(t *testing.T) {
	t.Parallel()
	const allow, refuse = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	filter := func(denied uint32) []byte {
		code := []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS},
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: denied, Jf: 1},
			{Code: unix.BPF_RET | unix.BPF_K, K: refuse},
			{Code: unix.BPF_RET | unix.BPF_K, K: allow},
		}
		return unsafe.Slice((*byte)(unsafe.Pointer(&code[0])), len(code)*int(unsafe.Sizeof(code[0])))
	}
	for denied, want := range map[uint32]bool{unix.SYS_OPENAT2: false, unix.SYS_PREAD64: false, unix.SYS_FACCESSAT: false, unix.SYS_GETPID: true} {
		if got := mayInspect(&protocol.Run{Filter: filter(denied), LogDenied: true}); got != want {
			t.Errorf("without call %d: %v", denied, got)
		}
		if !mayInspect(&protocol.Run{Filter: filter(denied)}) {
			t.Errorf("without call %d and a listener: false", denied)
		}
	}
}
