package setup

import (
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/shim/protocol"
)

func TestCandidates(t *testing.T) {
	t.Parallel()
	tests := []struct {
		command, path, workdir string
		want                   []string
	}{
		{"bash", "/usr/local/bin:/usr/bin:/bin", "/work", []string{"/usr/local/bin/bash", "/usr/bin/bash", "/bin/bash"}},
		{"bash", "/a::b", "/work", []string{"/a/bash", "/work/bash", "/work/b/bash"}},
		{"/bin/../bin/sh", "/usr/bin", "/work", []string{"/bin/../bin/sh"}},
		{"./run", "/usr/bin", "/work/x", []string{"/work/x/run"}},
		{"bin/run", "/usr/bin", "/work", []string{"/work/bin/run"}},
		{"bash", "", "/work", []string{"/work/bash"}},
		{"bash", "/a:/b:/a/:/b", "/work", []string{"/a/bash", "/b/bash"}},
	}
	for _, test := range tests {
		got := candidates(&protocol.Run{Command: test.command, Path: test.path, WorkDir: test.workdir})
		if !slices.Equal(got, test.want) {
			t.Errorf("%s in %q from %s: %q, want %q", test.command, test.path, test.workdir, got, test.want)
		}
	}
}

// testArena returns an arena that lasts as long as the test.
func testArena(t *testing.T) (*arena, [2]*program) {
	t.Helper()
	a, programs, err := newArena()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.MunmapPtr(unsafe.Pointer(a), arenaSize); err != nil {
			t.Error(err)
		}
	})
	return a, programs
}

// TestProgramIsBounded: a program that does not fit says so instead of writing
// beyond its memory, and what is in it comes out again.
func TestProgramIsBounded(t *testing.T) {
	t.Parallel()
	a, programs := testArena(t)
	p := programs[0]
	at := p.str("a string")
	if got := unix.BytePtrToString((*byte)(pointer(at))); got != "a string" {
		t.Errorf("got %q", got)
	}
	list := p.pointers([]string{"one", "two"})
	second := *(*uintptr)(pointer(list + 8))
	if got := unix.BytePtrToString((*byte)(pointer(second))); got != "two" || *(*uintptr)(pointer(list + 16)) != 0 {
		t.Errorf("got %q", got)
	}
	sandbox := &protocol.Sandbox{Cgroup: cgroup.Dirs{V1: map[string]string{"pids": "/t"}}, NewRoot: "/n", DiskBytes: 1 << 30, ShmBytes: 1 << 20}
	sandboxProgram(p, sandbox, []sysMount{{"fs/cgroup/pids", 7}})
	jobProgram(programs[1], sandbox, &protocol.Run{
		Hostname: "x", StdinStream: true, Command: "sh", Args: slices.Repeat([]string{strings.Repeat("x", 100<<10)}, 20), Path: "/usr/bin", WorkDir: "/work", Init: true,
		Trees: slices.Repeat([]protocol.Tree{{Source: "/usr", Target: "/a/b/c"}}, protocol.MaxTrees), Filter: make([]byte, 8*4096), LogDenied: true,
	})
	if p.full || programs[1].full {
		t.Errorf("2 MiB of arguments and %d trees do not fit: %d and %d steps", protocol.MaxTrees, a.nops[0], a.nops[1])
	}
	if p.str(strings.Repeat("x", arenaSize)); !p.full {
		t.Error("a string larger than the memory went in")
	}
	many := programs[1]
	for range maxOps + 1 {
		many.call("x", unix.SYS_GETPID)
	}
	if !many.full || a.nops[1] != maxOps {
		t.Errorf("%d steps went in", a.nops[1])
	}
}
