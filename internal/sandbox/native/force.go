package native

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// silence is how long a shim that should be at work may show no sign of it
	// before Force goes on without it.
	silence = 2 * time.Second
	// writingTime is the same for one that writes to disk what an ended job left:
	// one fsync may take that long.
	writingTime = 30 * time.Second
	forceEvery  = 100 * time.Millisecond
	// wakeTime is for one that was woken to end the job after all.
	wakeTime = 200 * time.Millisecond
)

// Wake lets a sandbox's shim go on if it was stopped or frozen.
func (e *Engine) Wake(id string) {
	group := e.groups.group(id)
	_ = group.ThawShims() // it was not frozen, or is gone
	for _, pid := range e.shims(id) {
		_ = unix.Kill(pid, unix.SIGCONT)
	}
}

// shims returns the shims of a sandbox's job and of its further processes.
func (e *Engine) shims(id string) []int {
	group := e.groups.group(id)
	if group.Shim == "" { // cgroup v1 alone has no place for it
		if pid := shimOf(id); pid != 0 {
			return []int{pid}
		}
		return nil
	}
	pids, err := group.Shims()
	if err != nil {
		return nil
	}
	return pids
}

// Forced is what Force had to do.
type Forced struct {
	// NoRecord: the shim has not written the exit record, and will not.
	NoRecord bool
	// Exit is the status of PID 1, if that had ended before; nil: it was killed
	// with SIGKILL, or only the shim knows (Taken).
	Exit  *unix.WaitStatus
	Taken bool
}

// Force ends the job in a sandbox, whose PID 1 is pid, from outside, because its
// shim has not done so in time. The shim may still write down the job's end,
// and is waited for as long as it is seen to work; it has ended when over is
// closed.
func (e *Engine) Force(ctx context.Context, id string, pid int, over <-chan struct{}) (f Forced, err error) {
	group := e.groups.group(id)
	shims := e.shims(id)
	f.Exit, f.Taken = exitOf(pid, shims), len(stat(pid)) == 0
	e.Wake(id)
	select { // perhaps it needs no more
	case <-over:
		return f, nil
	case <-time.After(wakeTime):
	}
	if err := group.KillJob(); err != nil {
		return f, err
	}
	seen, at := observe(shims), time.Now()
	for {
		select {
		case <-over:
			return f, nil
		case <-ctx.Done():
			return f, context.Cause(ctx)
		case <-time.After(forceEvery):
		}
		now := observe(shims)
		if now.alive == 0 {
			f.NoRecord = !isOver(over)
			return f, nil
		}
		if now.work != seen.work {
			seen, at = now, time.Now()
		}
		limit := silence
		if now.waits && len(stat(pid)) == 0 { // it has taken PID 1's status, and waits for a disk
			limit = writingTime
		}
		if time.Since(at) > limit {
			break
		}
	}
	f.NoRecord = true
	return f, nil
}

// KillShims kills a sandbox's shims, and what may be left of its job. Release
// would, but for shims that no cgroup of the sandbox holds (cgroup v1).
func (e *Engine) KillShims(id string) error {
	err := e.groups.group(id).Kill()
	for _, pid := range e.shims(id) {
		err = errors.Join(err, ignoreGone(unix.Kill(pid, unix.SIGKILL)))
	}
	return err
}

func isOver(over <-chan struct{}) bool {
	select {
	case <-over:
		return true
	default:
		return false
	}
}

func ignoreGone(err error) error {
	if err == unix.ESRCH {
		return nil
	}
	return err
}

// Stalled reports whether the job's PID 1 has ended and its shim, because it is
// stopped or waits in the kernel, takes no note of it.
func (p *Process) Stalled() bool {
	fields := stat(p.PID)
	taken := len(fields) == 0
	if !taken && fields[0] != "Z" {
		return false
	}
	at := observe(p.engine.shims(p.ID))
	// One that has taken PID 1's status may well wait for a disk.
	return at.alive > 0 && (at.stopped || at.waits && !taken)
}

// isStopped reports whether the job's shim, or that of one of its further
// processes, is stopped: it would do later, or never, what it is asked for.
func (p *Process) isStopped() bool { return observe(p.engine.shims(p.ID)).stopped }

// activity is what processes do at one moment.
type activity struct {
	alive   int
	work    uint64 // grows as they work
	stopped bool   // one is stopped
	waits   bool   // one waits in the kernel, where no signal reaches it
}

func observe(pids []int) (s activity) {
	for _, pid := range pids {
		fields := stat(pid)
		if len(fields) < 13 || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		s.alive++
		s.stopped = s.stopped || fields[0] == "T" || fields[0] == "t"
		s.waits = s.waits || fields[0] == "D"
		for _, f := range fields[11:13] { // utime, stime
			n, _ := strconv.ParseUint(f, 10, 64)
			s.work += n
		}
		// What it reads and writes, for less than a tick of the processor's time.
		data, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/io")
		for line := range bytes.Lines(data) {
			name, value, _ := bytes.Cut(line, []byte(": "))
			if string(name) == "rchar" || string(name) == "wchar" {
				n, _ := strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 64)
				s.work += n
			}
		}
	}
	return s
}

// stat returns the fields of proc_pid_stat(5) from the third, the state, on.
func stat(pid int) []string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	var fields []string
	for f := range bytes.FieldsSeq(data[bytes.LastIndexByte(data, ')')+1:]) {
		fields = append(fields, string(f))
	}
	return fields
}

// exitOf returns the status of a process that has ended, if one of parents has to
// take it and has not yet; nil for any other.
func exitOf(pid int, parents []int) *unix.WaitStatus {
	fields := stat(pid)
	if len(fields) < 50 || fields[0] != "Z" {
		return nil
	}
	if parent, err := strconv.Atoi(fields[1]); err != nil || !slices.Contains(parents, parent) {
		return nil
	}
	code, err := strconv.ParseUint(fields[49], 10, 32)
	if err != nil {
		return nil
	}
	status := unix.WaitStatus(code)
	return &status
}
