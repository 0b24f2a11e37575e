package shim

import (
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestEndsBy(t *testing.T) {
	t.Parallel()
	const handles = "SigBlk:\t0000000000000200\nSigIgn:\t0000000000000001\nSigCgt:\t0000000000004002\n" // USR1, HUP, INT and TERM
	for _, tt := range []struct {
		status string
		sig    syscall.Signal
		want   bool
	}{
		{handles, unix.SIGHUP, false}, {handles, unix.SIGUSR1, false}, {handles, unix.SIGINT, false}, {handles, unix.SIGTERM, false},
		{handles, unix.SIGQUIT, true}, {handles, unix.SIGUSR2, true}, {handles, 40, true}, {handles, 64, true},
		{handles, unix.SIGCHLD, false}, {handles, unix.SIGCONT, false}, {handles, unix.SIGWINCH, false}, {handles, unix.SIGURG, false},
		{handles, unix.SIGTSTP, false}, {handles, unix.SIGSTOP, false}, {handles, unix.SIGKILL, false},
		{"", unix.SIGQUIT, false}, // nothing is known
	} {
		if got := endsBy([]byte(tt.status), tt.sig); got != tt.want {
			t.Errorf("%q by %v: %v", tt.status, tt.sig, got)
		}
	}
}

func TestStatusMask(t *testing.T) {
	t.Parallel()
	status := []byte("Name:\tsh\nSigBlk:\t0000000000010000\nSigCgt:\t00000000280b2603\nCapInh:\t0\n")
	if got := statusMask(status, "SigCgt:\t"); got != 0x280b2603 {
		t.Errorf("SigCgt %#x", got)
	}
	if got := statusMask(status, "SigBlk:\t"); got != 0x10000 {
		t.Errorf("SigBlk %#x", got)
	}
	if got := statusMask(status, "SigIgn:\t"); got != 0 {
		t.Errorf("an absent field is %#x", got)
	}
	if got := statusMask([]byte("SigCgt:\t"), "SigCgt:\t"); got != 0 {
		t.Errorf("a cut field is %#x", got)
	}
}
