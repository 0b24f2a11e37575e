package seccomp

import (
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

// A call that a profile or a user's list decides on has that verdict, all others
// the usual one.
func TestProfileFilters(t *testing.T) {
	t.Parallel()
	every := map[string]seccompVerdict{} // the longest program that a list can make
	for i, c := range seccompCalls {
		if i%2 == 0 {
			every[c.name] = seccompEPERM
		} else {
			every[c.name] = seccompAllow
		}
	}
	for name, changes := range map[string]map[string]seccompVerdict{"strict": strictCalls, "nested": nestedCalls, "every other": every} {
		for goarch, arch := range seccompArchs {
			f := seccompAssemble(goarch, changes)
			t.Logf("%s, %s: %d instructions", name, goarch, len(f))
			if len(f) > 4096 { // BPF_MAXINSNS
				t.Errorf("%s, %s: %d instructions", name, goarch, len(f))
			}
			for _, c := range seccompCalls {
				nr := arch.number(c)
				if nr < 0 {
					continue
				}
				d := seccompData{Number: uint32(nr), Arch: arch.audit, Args: [6]uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW}}
				want := seccompWant(goarch, d)
				if v, ok := changes[c.name]; ok {
					want = map[seccompVerdict]uint32{
						seccompAllow: seccompAllowed, seccompEPERM: seccompErrno(unix.EPERM), seccompENOSYS: seccompErrno(unix.ENOSYS),
						seccompPlainSocket: seccompErrno(unix.EPROTONOSUPPORT),
					}[v]
				}
				if got := seccompRun(f, d); got != want {
					t.Errorf("%s, %s: %s: %#x, want %#x", name, goarch, c.name, got, want)
				}
			}
		}
	}
	for name := range strictCalls {
		if _, ok := seccompByName()[name]; !ok {
			t.Errorf("strict: %s is no system call", name)
		}
	}
	for _, name := range slices.Concat(grantableCalls, startCalls) {
		if _, ok := seccompByName()[name]; !ok {
			t.Errorf("%s is no system call", name)
		}
	}
	d := seccompData{Number: seccompCallNumber(t, runtime.GOARCH, "socket"), Arch: seccompArchs[runtime.GOARCH].audit, Args: [6]uint64{unix.AF_INET, unix.SOCK_STREAM}}
	if got := seccompRun(seccompAssemble(runtime.GOARCH, strictCalls), d); got != seccompAllowed {
		t.Errorf("strict: a TCP socket: %#x", got)
	}
}

func TestSyscallLists(t *testing.T) {
	t.Parallel()
	strict := joblet.ProfileStrict
	tests := []struct {
		security joblet.Security
		want     string // of the error; empty: none
	}{
		{joblet.Security{AllowCalls: []string{"io_uring_setup", "read"}, DenyCalls: []string{"ptrace"}}, ""},
		{joblet.Security{Profile: strict, AllowCalls: []string{"ptrace", "socket", "io_setup"}}, ""},
		{joblet.Security{AllowCalls: []string{"fcntl", "setrlimit", "prlimit64"}}, ""},
		{joblet.Security{Profile: joblet.ProfileNested, AllowCalls: []string{"mount"}}, ""},
		{joblet.Security{AllowCalls: []string{"mount"}}, "cannot allow system call"},
		{joblet.Security{AllowCalls: []string{"bpf"}}, "cannot allow system call"},
		{joblet.Security{AllowCalls: []string{"clone3"}}, "cannot allow system call"},
		{joblet.Security{AllowCalls: []string{"memfd_secret"}}, "cannot allow system call"},
		{joblet.Security{Profile: strict, AllowCalls: []string{"keyctl"}}, "cannot allow system call"},
		{joblet.Security{AllowCalls: []string{"raed"}}, "unknown system call"},
		{joblet.Security{DenyCalls: []string{"raed"}}, "unknown system call"},
		{joblet.Security{DenyCalls: []string{"execve"}}, "cannot deny system call"},
	}
	for _, test := range tests {
		f, err := compile(test.security)
		switch {
		case test.want == "" && (err != nil || len(f) == 0):
			t.Errorf("%+v: %v", test.security, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%+v: %v, want %q", test.security, err, test.want)
		}
	}
}

// No profile, and no list of a user's, lets a job take a lease or change its limit on
// core dumps.
func TestAlwaysRefused(t *testing.T) {
	t.Parallel()
	all := []string{"fcntl", "setrlimit", "prlimit64"}
	for _, s := range []joblet.Security{
		{}, {Profile: joblet.ProfileStrict}, {Profile: joblet.ProfileNested}, {AllowCalls: all},
		{Profile: joblet.ProfileStrict, AllowCalls: all}, {Profile: joblet.ProfileNested, AllowCalls: all},
	} {
		f, err := compile(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			call string
			args [6]uint64
			want uint32
		}{
			{"fcntl", [6]uint64{3, unix.F_SETLEASE}, seccompErrno(unix.EINVAL)},
			{"setrlimit", [6]uint64{unix.RLIMIT_CORE, 1}, seccompErrno(0)},
			{"prlimit64", [6]uint64{0, unix.RLIMIT_CORE, 1}, seccompErrno(0)},
			{"prlimit64", [6]uint64{0, unix.RLIMIT_CORE, 1, 1}, seccompErrno(unix.EPERM)},
		} {
			d := seccompData{Number: seccompCallNumber(t, runtime.GOARCH, c.call), Arch: seccompArchs[runtime.GOARCH].audit, Args: c.args}
			if got := seccompRun(f, d); got != c.want {
				t.Errorf("%+v: %s%v: %#x, want %#x", s, c.call, c.args, got, c.want)
			}
		}
	}
}

// All that the role admin is needed for can be allowed at all, and is no part of a profile.
func TestAdminCalls(t *testing.T) {
	t.Parallel()
	for _, name := range joblet.AdminCalls() {
		if !slices.Contains(grantableCalls, name) || seccompByName()[name] != seccompENOSYS || strictCalls[name] == seccompAllow || nestedCalls[name] == seccompAllow {
			t.Errorf("%s: %v", name, seccompByName()[name])
		}
	}
}
