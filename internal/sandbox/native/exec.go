package native

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// Exec is a further process in a running job.
type Exec struct {
	PID int // as the host numbers it
	// Stdin is where it reads from, nil for a process without input; Stdout and
	// Stderr what it writes. With a terminal all that is the terminal, and Stderr
	// nil; also when its output is merged.
	Stdin, Stdout, Stderr *os.File

	conn    *os.File
	shim    *os.Process
	gone    <-chan struct{} // closed when the shim has ended
	process *os.Process     // PID; nil: it had ended already
	send    sync.Mutex      // one document at a time
	closing sync.Once
	done    chan struct{}
	end     *protocol.Exit // set before done is closed; nil: its shim died
}

// ErrPaused says that one more process would not get to run either.
var ErrPaused = joblet.Errorf(joblet.FailedPrecondition, "cannot start a process in a paused job: resume the job first")

// joinTimeout bounds how long joining a job may take.
const joinTimeout = time.Minute

// Exec starts a further process in the job, as any process of the job is: in its
// namespaces and cgroups, under its limits. Of run
// its command counts; Stdin.Stream says that the process has an input.
func (e *Engine) Exec(ctx context.Context, p *Process, run *Run) (_ *Exec, err error) {
	if frozen, err := p.group.Frozen(); err == nil && frozen {
		return nil, ErrPaused
	}
	terminal := run.Terminal != (joblet.WindowSize{})
	uid, gid := run.Security.IDs()
	x := &Exec{done: make(chan struct{})}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
		if err != nil {
			_ = x.Close()
		}
	}()
	control, err := socketpair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	x.conn = control[0]
	masters, err := socketpair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, errors.Join(err, control[1].Close())
	}
	defer masters[0].Close()
	theirs = append(theirs, control[1], masters[1])
	stdio := []*os.File{e.null, e.null, e.null}
	if !terminal {
		for i, ours := range []**os.File{&x.Stdin, &x.Stdout, &x.Stderr} {
			if i == 0 && !run.Stdin.Stream {
				continue
			}
			if i == 2 && run.MergeOutput {
				stdio[2] = stdio[1]
				continue
			}
			r, w, err := os.Pipe()
			if err != nil {
				return nil, fmt.Errorf("cannot make a pipe: %w", err)
			}
			mine, job, mode := r, w, os.FileMode(protocol.OutputMode)
			if i == 0 {
				mine, job, mode = w, r, protocol.InputMode
			}
			*ours, stdio[i] = mine, job
			theirs = append(theirs, job)
			// So that the process may open /dev/stdout, which leads to the pipe's inode.
			if err := errors.Join(job.Chown(int(p.IDBase+uid), int(p.IDBase+gid)), job.Chmod(mode)); err != nil {
				return nil, fmt.Errorf("cannot give the process its pipe: %w", err)
			}
		}
	}
	if x.shim, x.gone, err = e.startExecShim(p, append([]*os.File{control[1], masters[1]}, stdio...)); err != nil {
		return nil, err
	}
	for _, f := range theirs {
		_ = f.Close()
	}
	theirs = nil
	config := protocol.Exec{Version: protocol.Version, PID: p.PID, IDBase: p.IDBase, IDCount: IDCount, Cgroup: p.group.Dirs, Run: run.process()}
	// The caller may go away while the process joins the job.
	deadline := time.Now().Add(joinTimeout)
	_ = x.conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = x.conn.SetDeadline(time.Unix(0, 1)) })
	err = x.greet(config, masters[0], terminal)
	if !stop() {
		return nil, errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return nil, err
	}
	_ = x.conn.SetDeadline(time.Time{})
	x.process = find(x.PID, p.IDBase)
	go x.listen()
	go x.guard()
	return x, nil
}

// find returns a handle of a job's process; nil: it has ended. The number may be
// another's by then, but only processes of the job have its ids.
func find(pid int, base uint32) *os.Process {
	process, err := os.FindProcess(pid)
	if err != nil {
		return nil
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	_, rest, _ := bytes.Cut(status, []byte("\nUid:\t"))
	real, _, _ := bytes.Cut(rest, []byte("\t"))
	uid, parseErr := strconv.ParseUint(string(real), 10, 32)
	if err != nil || parseErr != nil || uint32(uid)-base >= IDCount {
		_ = process.Release()
		return nil
	}
	return process
}

// guardEvery is how often guard checks whether a process has ended and its shim,
// which is stopped or waits in the kernel, takes no note of it.
const guardEvery = 2 * time.Second

// guard makes sure that the end of the process is known: it wakes the shim, and
// if that is no use, kills it.
func (x *Exec) guard() {
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	for woken := false; ; {
		select {
		case <-x.done:
			return
		case <-tick.C:
		}
		if exitOf(x.PID, []int{x.shim.Pid}) == nil {
			continue
		}
		if woken {
			_ = x.shim.Kill() // listen takes note
			continue
		}
		_ = x.shim.Signal(unix.SIGCONT)
		woken = true
	}
}

// hangUpTime is how long a shim may take to end a process whose caller is gone:
// more than it gives the process between the signals.
const hangUpTime = 4 * time.Second

// endLate ends a process whose caller is gone if its shim does not.
func (x *Exec) endLate() {
	select {
	case <-x.gone:
		return
	case <-time.After(hangUpTime):
	}
	if x.process != nil {
		_ = x.process.Kill()
	}
	_ = x.shim.Kill()
}

// greet tells the shim what to run and hears that it does.
func (x *Exec) greet(config protocol.Exec, terminal *os.File, wanted bool) error {
	if err := protocol.WriteMessage(x.conn, protocol.Request{Exec: &config}); err != nil {
		return fmt.Errorf("cannot send the command to its shim: %w", err)
	}
	var ev protocol.Event
	switch err := protocol.ReadMessage(x.conn, &ev); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return joblet.Errorf(joblet.FailedPrecondition, "cannot join the job within %v: perhaps it is stopped", joinTimeout)
	case err != nil:
		return joblet.Errorf(joblet.FailedPrecondition, "cannot join the job, which has ended: %w", err)
	case ev.Failed != nil:
		return &StartError{*ev.Failed}
	case ev.Started == nil:
		return errors.New("cannot start the process: unexpected answer from its shim")
	}
	x.PID = ev.Started.PID
	if !wanted {
		return nil
	}
	master, err := receiveTerminal(terminal)
	if err != nil {
		return err
	}
	x.Stdin, x.Stdout = master, master
	return nil
}

func (x *Exec) listen() {
	defer close(x.done)
	x.end = awaitEnd(x.conn)
}

// Done is closed when the process has ended.
func (x *Exec) Done() <-chan struct{} { return x.done }

// End returns how the process ended, once Done is closed; nil says that its
// shim died without a word: with the job, say.
func (x *Exec) End() *protocol.Exit { return x.end }

// Signal sends a signal to the process.
func (x *Exec) Signal(sig syscall.Signal) error {
	x.send.Lock()
	defer x.send.Unlock()
	_ = x.conn.SetWriteDeadline(time.Now().Add(requestTime))
	if err := protocol.WriteMessage(x.conn, protocol.Request{Signal: int(sig)}); errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrSilent
	} else if err != nil {
		return err
	}
	return nil
}

// Resize gives the process's terminal another size.
func (x *Exec) Resize(size WindowSize) error {
	if x.Stdin == nil || x.Stdin != x.Stdout {
		return joblet.Errorf(joblet.FailedPrecondition, "the process has no terminal")
	}
	raw, err := x.Stdout.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
	})
	return errors.Join(err, failed)
}

// CloseStdin ends the input of a process without a terminal.
func (x *Exec) CloseStdin() error {
	if x.Stdin == nil || x.Stdin == x.Stdout {
		return nil
	}
	return x.Stdin.Close()
}

// terminalLast bounds how long what an ended process left in its terminal may
// take to come out.
const terminalLast = time.Second

// hungUpRetry is how often a terminal that no process has open is read again: a
// process may open it again.
const hungUpRetry = 100 * time.Millisecond

// execPiece is how much of the output is read at once: with what is around it, it fits
// into a quarter of the window that HTTP/2 gives to a stream at first.
const execPiece = 15 << 10

// Copy hands what the process writes into f, which is Stdout or Stderr, to emit,
// and returns when all that it wrote before its end is handed on. What children
// of its write later, to whom it left the other end, is not waited for.
func (x *Exec) Copy(f *os.File, emit func([]byte) error) error {
	copied := make(chan struct{})
	defer close(copied)
	go func() { // ends with the process, or with Copy
		select {
		case <-x.done:
			last := time.Unix(0, 1)
			if f == x.Stdin { // the kernel hangs it up once all is read
				last = time.Now().Add(terminalLast)
			}
			_ = f.SetReadDeadline(last)
		case <-copied:
		}
	}()
	buf := make([]byte, execPiece)
	for {
		ended := false
		select {
		case <-x.done:
			ended = true
		default:
		}
		n, err := f.Read(buf)
		if n > 0 {
			if err := emit(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return x.rest(f, buf, emit)
		case errors.Is(err, unix.EIO) && !ended:
			select {
			case <-x.done:
			case <-time.After(hungUpRetry):
			}
		case errors.Is(err, io.EOF), errors.Is(err, unix.EIO), errors.Is(err, os.ErrClosed):
			return nil
		default:
			return fmt.Errorf("cannot read the output of the process: %w", err)
		}
	}
}

// rest hands on what is in f just now: at least all that the ended process left
// there.
func (x *Exec) rest(f *os.File, buf []byte, emit func([]byte) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil //nolint:nilerr // closed meanwhile
	}
	for left := 1 << 20; left > 0; { // more than a pipe holds: others may go on writing
		n := 0
		if err := raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) }); err != nil || n <= 0 {
			return nil //nolint:nilerr // nothing is left
		}
		if err := emit(buf[:n]); err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// Close lets go of the process: if it has not ended, it is hung up and then
// killed.
func (x *Exec) Close() error {
	for _, f := range []*os.File{x.conn, x.Stdin, x.Stdout, x.Stderr} {
		if f != nil {
			_ = f.Close() // once or twice; nothing of it is to be known
		}
	}
	if x.shim != nil {
		x.closing.Do(func() { go x.endLate() })
	}
	return nil
}

// startExecShim starts the shim of a further process beside the job's own. The
// channel is closed when that has ended.
func (e *Engine) startExecShim(p *Process, files []*os.File) (*os.Process, <-chan struct{}, error) {
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"GOMAXPROCS=1", "GODEBUG=madvdontneed=1"},
		Files: append([]*os.File{e.null, e.null, e.log}, files...),
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if p.group.Shim != "" {
		dir, err := os.Open(p.group.Shim)
		if err != nil {
			return nil, nil, joblet.Errorf(joblet.FailedPrecondition, "the job has ended: %w", err)
		}
		defer dir.Close()
		attr.Sys.UseCgroupFD = true
		attr.Sys.CgroupFD = int(dir.Fd())
	}
	path := "/proc/self/fd/" + strconv.Itoa(int(e.shim.Fd()))
	proc, err := os.StartProcess(path, []string{ShimName, p.ID, "exec"}, attr)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot start the shim of the process: %w", err)
	}
	gone := make(chan struct{})
	go func() { // a parent must take its status; what it says comes over the connection
		defer close(gone)
		_, _ = proc.Wait()
	}()
	return proc, gone, nil
}

// socketpair returns two connected sockets, the first for our side.
func socketpair(kind int) (pair [2]*os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return pair, os.NewSyscallError("socketpair", err)
	}
	_ = unix.SetNonblock(fds[0], true) // so that os.File waits in the poller
	return [2]*os.File{os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "shim")}, nil
}
