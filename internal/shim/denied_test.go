package shim

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// TestDeniedIsBounded: whatever a job calls, the kinds stay few, nothing is lost of
// their sum, made-up numbers keep none of the kernel's out, and all goes into the
// record.
func TestDeniedIsBounded(t *testing.T) {
	t.Parallel()
	d := denied{calls: make(map[protocol.DeniedKey]*tally)}
	const made = 100_000
	for i := range uint64(made) {
		d.count(&protocol.SeccompData{Number: uint32(1<<20 + i)}, uint32(unix.ENOSYS), 0)
		d.count(&protocol.SeccompData{Number: 41, Args: [6]uint64{i, i << 32, i}}, uint32(unix.EAFNOSUPPORT), 0b111)
	}
	const calls = 500
	for nr := range uint32(calls) {
		d.count(&protocol.SeccompData{Number: nr}, uint32(unix.EPERM), 0)
	}
	all := d.list()
	var sum uint64
	apart := make(map[uint32]bool)
	for i, kind := range all {
		if sum += kind.Count; kind.Errno == uint32(unix.EPERM) && kind.Count == 1 {
			apart[kind.Number] = true
		}
		if i > 0 && all[i-1].Count < kind.Count {
			t.Errorf("%d before %d", all[i-1].Count, kind.Count)
		}
	}
	if sum != 2*made+calls || len(apart) != calls {
		t.Errorf("%d calls, %d of the kernel's apart", sum, len(apart))
	}
	if limit := deniedDetailed + calls + 2; len(all) > limit {
		t.Errorf("%d kinds, want at most %d", len(all), limit)
	}
	for i := range all {
		all[i].Count = math.MaxUint64
	}
	body, err := json.Marshal(protocol.Record{Denied: all})
	if err != nil || len(body) > deniedRecordSize {
		t.Errorf("a record of %d bytes, %v", len(body), err)
	}
	// What is folded has the arguments of its first call.
	for _, kind := range all {
		if kind.Number == 41 && kind.Looked == 0 && kind.Errno == uint32(unix.EAFNOSUPPORT) && (kind.Args[0] == 0 || kind.Args[0] != kind.Args[2] || kind.Args[1] != 0) {
			t.Errorf("%+v", kind)
		}
	}
}

func TestDeniedRate(t *testing.T) {
	t.Parallel()
	now := time.Now()
	d := denied{tokens: deniedBurst, filledAt: now}
	answers := func(until time.Time) (n int) {
		for ; !now.After(until); now = now.Add(time.Millisecond) {
			if !now.Before(d.retryAt) {
				for d.mayAnswer(now) {
					n++
				}
			}
		}
		return n
	}
	if n := answers(now.Add(10 * time.Second)); n < deniedBurst+10*deniedPerSec*9/10 || n > deniedBurst+10*deniedPerSec {
		t.Errorf("%d answers in ten seconds", n)
	}
	now = now.Add(time.Hour) // in which nothing is asked
	if n := answers(now); n != deniedBurst {
		t.Errorf("%d answers after an hour", n)
	}
}

// A program that engine's assembler would not make lets nothing through.
func TestRunFilterRefuses(t *testing.T) {
	t.Parallel()
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	for _, filter := range [][]unix.SockFilter{
		nil,
		{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 64}, allow},
		{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 2}, allow},
		{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: math.MaxUint32 &^ 3}, allow},
		{{Code: unix.BPF_JMP | unix.BPF_JA, K: 7}, allow},
		{{Code: unix.BPF_MISC | unix.BPF_TAX}, allow},
	} {
		if verdict, _, _ := protocol.RunFilter(filter, &protocol.SeccompData{}); verdict != unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM) {
			t.Errorf("%+v: %#x", filter, verdict)
		}
	}
}
