package seccomp

import (
	"math/rand/v2"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// A filter that asks the shim does so for exactly those calls that the plain one
// refuses, of all profiles.
func TestAskShim(t *testing.T) {
	t.Parallel()
	for name, changes := range map[string]map[string]seccompVerdict{"default": nil, "strict": strictCalls, "nested": nestedCalls} {
		for goarch, arch := range seccompArchs {
			plain := seccompAssemble(goarch, changes)
			asking := Filter(protocol.AskShim(plain))
			rnd := rand.New(rand.NewPCG(1, 2))
			asked, unasked := 0, 0
			check := func(d seccompData) {
				want := seccompRun(plain, d)
				if want == seccompErrno(0) { // no refusal: the caller shall notice nothing
					unasked++
				} else if want&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO {
					want = unix.SECCOMP_RET_USER_NOTIF
					asked++
				}
				if got := seccompRun(asking, d); got != want {
					t.Fatalf("%s, %s: %#v: %#x, want %#x", name, goarch, d, got, want)
				}
			}
			for nr := range uint32(600) {
				for range 100 {
					d := seccompData{Number: nr, Arch: arch.audit}
					for i := range d.Args {
						d.Args[i] = uint64(rnd.Uint32N(64)) << rnd.IntN(32)
					}
					check(d)
				}
				check(seccompData{Number: nr, Arch: arch.other})
				check(seccompData{Number: nr | 1<<30, Arch: arch.audit})
			}
			for _, name := range []string{"setrlimit", "prlimit64"} {
				check(seccompData{Number: seccompCallNumber(t, goarch, name), Arch: arch.audit, Args: [6]uint64{unix.RLIMIT_CORE, unix.RLIMIT_CORE, 1}})
			}
			if asked < 10_000 || unasked < 2 {
				t.Errorf("%s, %s: only %d calls are asked about, %d seem to succeed", name, goarch, asked, unasked)
			}
		}
	}
}

func TestDeniedCalls(t *testing.T) {
	t.Parallel()
	type args = [6]uint32
	mine := joblet.Security{AllowCalls: []string{"kcmp"}, DenyCalls: []string{"ptrace", "mount", "socket"}}
	strict := joblet.Security{Profile: joblet.ProfileStrict}
	nested := joblet.Security{Profile: joblet.ProfileNested}
	tests := []struct {
		security joblet.Security
		call     string
		args     args
		want     joblet.DeniedCall // without Call, if that is the same, and Count
	}{
		{call: "bpf", want: joblet.DeniedCall{Errno: "EPERM"}},
		{call: "clone3", want: joblet.DeniedCall{Errno: "ENOSYS"}},
		{call: "kcmp", want: joblet.DeniedCall{Errno: "EPERM", Remedy: joblet.RemedyAllow}},
		{call: "io_uring_setup", want: joblet.DeniedCall{Errno: "ENOSYS", Remedy: joblet.RemedyAllow}},
		{call: "mount", want: joblet.DeniedCall{Errno: "EPERM", Remedy: joblet.RemedyNested}},
		{call: "unshare", args: args{unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_FS}, want: joblet.DeniedCall{Argument: "CLONE_NEWUSER|CLONE_NEWNS", Errno: "EPERM", Remedy: joblet.RemedyNested}},
		{call: "clone", args: args{unix.CLONE_NEWNET | uint32(unix.SIGCHLD)}, want: joblet.DeniedCall{Argument: "CLONE_NEWNET", Errno: "EPERM", Remedy: joblet.RemedyNested}},
		{call: "socket", args: args{unix.AF_ALG, unix.SOCK_SEQPACKET}, want: joblet.DeniedCall{Argument: "AF_ALG", Errno: "EAFNOSUPPORT"}},
		{call: "socket", args: args{77}, want: joblet.DeniedCall{Argument: "family 77", Errno: "EAFNOSUPPORT"}},
		{call: "socket", args: args{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP}, want: joblet.DeniedCall{Argument: "AF_INET, SOCK_STREAM, protocol 132", Errno: "EPROTONOSUPPORT"}},
		{call: "socket", args: args{unix.AF_INET, unix.SOCK_PACKET}, want: joblet.DeniedCall{Argument: "AF_INET, SOCK_PACKET", Errno: "EPROTONOSUPPORT"}},
		{call: "socketpair", args: args{unix.AF_TIPC}, want: joblet.DeniedCall{Argument: "AF_TIPC", Errno: "EAFNOSUPPORT"}},
		{call: "ioctl", args: args{0, unix.TIOCSTI}, want: joblet.DeniedCall{Argument: "TIOCSTI", Errno: "EPERM"}},
		{call: "personality", args: args{0x400000}, want: joblet.DeniedCall{Argument: "0x400000", Errno: "EPERM"}},

		{call: "fcntl", args: args{3, unix.F_SETLEASE}, want: joblet.DeniedCall{Argument: "F_SETLEASE", Errno: "EINVAL"}},
		{call: "prlimit64", args: args{0, unix.RLIMIT_CORE, 0x7ffe, 0x7fff}, want: joblet.DeniedCall{Argument: "RLIMIT_CORE", Errno: "EPERM"}},
		{call: "io_setup", want: joblet.DeniedCall{Errno: "ENOSYS", Remedy: joblet.RemedyAllow}},

		{security: strict, call: "ptrace", want: joblet.DeniedCall{Errno: "EPERM", Remedy: joblet.RemedyAllow}},
		{security: strict, call: "socket", args: args{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, want: joblet.DeniedCall{Argument: "AF_INET, SOCK_RAW", Errno: "EPROTONOSUPPORT", Remedy: joblet.RemedyAllow}},
		{security: strict, call: "mount", want: joblet.DeniedCall{Errno: "EPERM", Remedy: joblet.RemedyNested}},
		{security: nested, call: "bpf", want: joblet.DeniedCall{Errno: "EPERM"}},
		{security: nested, call: "kcmp", want: joblet.DeniedCall{Errno: "EPERM", Remedy: joblet.RemedyAllow}},

		{security: mine, call: "ptrace", want: joblet.DeniedCall{Errno: "EPERM", Remedy: joblet.RemedyDeny}},
		{security: mine, call: "socket", args: args{unix.AF_INET, unix.SOCK_STREAM}, want: joblet.DeniedCall{Errno: "EPERM", Remedy: joblet.RemedyDeny}}, // whose arguments the filter does not check
		{security: mine, call: "mount", want: joblet.DeniedCall{Errno: "EPERM", Remedy: joblet.RemedyNested}},
	}
	for _, test := range tests {
		filter, err := compile(test.security)
		if err != nil {
			t.Fatal(err)
		}
		d := seccompData{Number: seccompCallNumber(t, runtime.GOARCH, test.call), Arch: seccompArchs[runtime.GOARCH].audit}
		key := protocol.DeniedKey{Number: d.Number}
		for i, a := range test.args {
			d.Args[i] = uint64(a)
		}
		verdict, looked, pointers := protocol.RunFilter(filter, &d)
		if key.Errno, key.Looked = verdict&unix.SECCOMP_RET_DATA, looked; verdict&unix.SECCOMP_RET_ACTION_FULL != unix.SECCOMP_RET_ERRNO {
			t.Fatalf("%+v: %#x", test, verdict)
		}
		for i, a := range test.args { // as the shim keeps them
			if looked&(1<<i) != 0 {
				if key.Args[i] = a; pointers&(1<<i) != 0 {
					key.Args[i] = min(a, 1)
				}
			}
		}
		test.want.Call, test.want.Count = test.call, 3
		got := DeniedCalls(test.security, []protocol.Denied{{DeniedKey: key, Count: 3}})
		if len(got) != 1 || got[0] != test.want {
			t.Errorf("%+v, %s%v: %+v, want %+v", test.security, test.call, test.args, got, test.want)
		}
	}
}

// TestDeniedCallsSummary: kinds that read the same are counted together, the most frequent
// first.
func TestDeniedCallsSummary(t *testing.T) {
	t.Parallel()
	type args = [6]uint32
	unshare := seccompCallNumber(t, runtime.GOARCH, "unshare")
	perm := uint32(unix.EPERM)
	got := DeniedCalls(joblet.Security{}, []protocol.Denied{
		{DeniedKey: protocol.DeniedKey{Number: protocol.OtherCalls, Errno: uint32(unix.ENOSYS)}, Count: 9},
		{DeniedKey: protocol.DeniedKey{Number: unshare, Errno: perm, Looked: 1, Args: args{unix.CLONE_NEWUSER}}, Count: 5},
		{DeniedKey: protocol.DeniedKey{Number: unshare, Errno: perm, Looked: 1, Args: args{unix.CLONE_NEWUSER | unix.CLONE_FS}}, Count: 5}, // the same in words
		{DeniedKey: protocol.DeniedKey{Number: unshare, Errno: perm, Args: args{unix.CLONE_NEWNET}}, Count: 3},                             // several in one
		{DeniedKey: protocol.DeniedKey{Number: 4711, Errno: uint32(unix.ENOSYS)}, Count: 2},
	})
	want := []joblet.DeniedCall{
		{Call: "unshare", Argument: "CLONE_NEWUSER", Errno: "EPERM", Count: 10, Remedy: joblet.RemedyNested},
		{Call: "others", Errno: "ENOSYS", Count: 9},
		{Call: "unshare", Errno: "EPERM", Count: 3, Remedy: joblet.RemedyNested},
		{Call: "#4711", Errno: "ENOSYS", Count: 2},
	}
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%+v, want %+v", got[i], want[i])
		}
	}
}

func TestLogDenied(t *testing.T) {
	t.Parallel()
	if _, err := Compile(joblet.Security{LogDenied: true, DenyCalls: []string{"sendmsg"}}); joblet.KindOf(err) != joblet.InvalidArgument {
		t.Errorf("without sendmsg: %v", err)
	}
	if _, err := Compile(joblet.Security{LogDenied: true}); err != nil {
		t.Error(err)
	}
}
