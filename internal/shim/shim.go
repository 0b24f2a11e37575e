// Package shim is the keeper of one job: a small program of its own (see
// cmd/joblet-shim) that has the job's sandbox built, becomes the parent of its
// PID 1, moves its output into the log, and writes down how it ended. It
// outlives the daemon: whatever happens to that, the job's output and exit
// status end up in the job's directory.
//
// The daemon starts a shim ahead of time, with a Sandbox on its control
// descriptor: what is known before there is a job. What runs in the new
// namespaces up to execve is package setup's.
//
// Once the command runs, the shim is one poll(2) loop over the job's pipes, its
// pidfd, a timer and the control connections.
package shim

import (
	"encoding/json"
	"errors"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/shim/setup"
)

// Main is the shim's life. It returns its exit status.
func Main() int {
	if len(os.Args) > 1 && os.Args[1] == unpackArg {
		return unpack(os.Args[2:])
	}
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&[]byte("joblet-shim\x00")[0])), 0, 0, 0)
	unix.CloseOnExec(protocol.ControlFD)
	unix.CloseOnExec(protocol.ListenFD)
	s := &shim{
		conns: []*conn{{fd: protocol.ControlFD}}, listen: protocol.ListenFD,
		stdin: noStdin, terminal: terminal{master: -1}, denied: denied{listener: -1}, oomEvents: -1,
	}
	if err := s.run(); err != nil {
		os.Stderr.WriteString("joblet-shim: " + err.Error() + "\n")
		return 1
	}
	return 0
}

// shim is the shim of a job, or of a further process of one.
type shim struct {
	conns  []*conn
	listen int

	process   setup.Process // PID 1, or the further process
	idBase    uint32
	cgroup    cgroup.Dirs
	oomEvents int // readable when memory is used up; -1: the kernel ends the job by itself

	dir        int // the job's directory
	recordFile recordFile
	record     protocol.Record
	started    protocol.Started

	out      output
	stdin    stdin
	terminal terminal
	denied   denied
	workMax  int64 // bytes of /work that are kept

	endedBy  syscall.Signal // what has ended PID 1 in place of the kernel; 0: nothing
	deadline time.Time      // of the run; zero: none
	grace    time.Duration  // between the signal and the kill at the deadline
	killAt   time.Time      // after a stop or the deadline; zero: not yet
	hurry    bool           // a caller waits for the end: what finds no room on a full disk is given up
}

func (s *shim) run() error {
	daemon := s.conns[0]
	var req protocol.Request
	err := protocol.ReadMessage(daemon, &req)
	switch {
	case err == nil && (req.Exec != nil && req.Exec.Version != protocol.Version || req.Sandbox != nil && req.Sandbox.Version != protocol.Version):
		return errors.New("the daemon speaks another version of the protocol: the embedded shim is not of this build")
	case err == nil && req.Exec != nil:
		req.Exec.Run.Unpack()
		return s.exec(req.Exec)
	case err != nil || req.Sandbox == nil:
		return errors.Join(errors.New("no sandbox on the control socket"), err)
	}
	run, err := s.prepare(daemon, req.Sandbox)
	if err == nil && run == nil {
		s.process.Kill() // not needed: the daemon stops, or is gone
		return nil
	}
	if err == nil {
		err = s.startJob(run)
	}
	if err != nil {
		s.process.Kill()
		failure := s.failure(err)
		if s.recordFile.fd > 0 { // the daemon may be gone: the next one finds it here
			s.record.Failure = failure
			_ = s.recordFile.write(&s.record)
		}
		return protocol.WriteMessage(daemon, protocol.Event{Failed: failure})
	}
	s.tell(protocol.Event{Started: &s.started})
	s.watch()
	s.finish()
	return nil
}

// prepare builds a sandbox and waits for its job; nil: there is none.
func (s *shim) prepare(daemon *conn, sandbox *protocol.Sandbox) (*protocol.Run, error) {
	if err := s.buildSandbox(sandbox); err != nil {
		return nil, err
	}
	warmUp()
	return s.awaitRun(daemon)
}

// buildSandbox has the first process begin to build the sandbox.
func (s *shim) buildSandbox(sandbox *protocol.Sandbox) (err error) {
	s.idBase, s.cgroup = sandbox.IDBase, sandbox.Cgroup
	if s.oomEvents, err = sandbox.Cgroup.OOMEvents(); err != nil {
		return setup.Step("listen for the end of the job's memory", err)
	}
	ends, err := s.out.makePipes(sandbox.IDBase)
	if err != nil {
		return err
	}
	return s.process.Start(sandbox, ends[0], ends[1])
}

// awaitRun waits for the job that the daemon has for the sandbox; nil: it has none.
func (s *shim) awaitRun(daemon *conn) (*protocol.Run, error) {
	for {
		var req protocol.Request
		if err := protocol.ReadMessage(daemon, &req); err != nil {
			return nil, nil //nolint:nilerr // its end says that there will be none
		}
		if req.Run != nil {
			req.Run.Unpack()
			return req.Run, nil
		}
		if !req.Ready {
			return nil, nil
		}
		if err := s.process.AwaitSandbox(); err != nil {
			return nil, err
		}
		if err := s.sendReady(daemon); err != nil {
			return nil, err
		}
	}
}

// sendReady hands the daemon what protocol.ReadyDescriptors names.
func (s *shim) sendReady(daemon *conn) error {
	if err := protocol.WriteMessage(daemon, protocol.Event{Ready: &protocol.Ready{PID: s.process.PID}}); err != nil {
		return setup.Step("say that the sandbox is ready", err)
	}
	return sendDescriptors(daemon.fd, append([]int{s.process.PIDFD, s.process.User}, s.process.Namespaces[:]...)...)
}

// warmUp has encoding/json find out, and the kernel page in, what the job's
// documents need, while no caller waits: it takes as long as starting the job.
func warmUp() {
	var req protocol.Request
	_ = json.Unmarshal([]byte(`{"run":{"trees":[{"idmap":true}],"links":[{}],"files":[{}],"args":[""],"filter":"AA==","rlimits":[{}]}}`), &req)
	_, _ = json.Marshal(protocol.Event{Started: &protocol.Started{}, Ended: &protocol.Exit{}})
	_, _ = json.Marshal(protocol.Record{})
}

// failure says why the command does not run.
func (s *shim) failure(err error) *protocol.Failure {
	f := s.process.Failure(err)
	f.OutOfMemory = s.process.PID != 0 && s.outOfMemory()
	return f
}

// startJob runs a job in the sandbox, and returns once its command runs.
func (s *shim) startJob(run *protocol.Run) error {
	s.grace = time.Duration(run.GraceNanos)
	if err := s.openDir(run); err != nil {
		return err
	}
	if len(run.Trees) > protocol.MaxTrees {
		return &setup.StepError{Step: "attach trees", Errno: unix.E2BIG}
	}
	if err := s.process.AwaitSandbox(); err != nil {
		return err
	}
	if err := s.process.Resize(run.DiskBytes, run.ShmBytes); err != nil {
		return err
	}
	if err := s.process.RaiseLimits(run.Rlimits); err != nil {
		return err
	}
	if err := s.giveToUser(run); err != nil {
		return err
	}
	if run.FilesPath != "" {
		if err := s.unpackFiles(run); err != nil {
			return err
		}
	}
	stdin, err := s.openStdin(run)
	if err != nil {
		return err
	}
	err = s.process.Run(run, stdin)
	if stdin >= 0 {
		unix.Close(stdin)
	}
	if err != nil {
		return err
	}
	if run.Terminal != nil {
		if err := s.takeTerminal(); err != nil {
			return err
		}
	}
	if run.LogDenied {
		if err := s.takeListener(run); err != nil {
			return err
		}
	}
	now := time.Now()
	s.started = protocol.Started{
		PID: s.process.PID, IDBase: s.idBase, UnixNanos: now.UnixNano(), Window: s.terminal.window(),
		Version: protocol.Version, Dir: run.Dir,
	}
	s.record.StartedNanos = now.UnixNano()
	if run.TimeoutNanos > 0 {
		s.deadline = now.Add(time.Duration(run.TimeoutNanos))
	}
	s.process.Release()
	return nil
}

// openDir opens the job's directory, with the exit record first: that says that
// this attempt has begun.
func (s *shim) openDir(run *protocol.Run) error {
	dir, err := unix.Open(run.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return setup.Step("open "+run.Dir, err)
	}
	s.dir, s.workMax = dir, run.WorkMaxBytes
	if err := s.recordFile.reserve(dir, run); err != nil {
		return err
	}
	return s.out.openLog(dir, run)
}

// watch is the loop of a running job. It returns when PID 1 has ended, which
// means that the kernel has killed and reaped whatever else was in its
// namespace (pid_namespaces(7)), and all output is in the log.
func (s *shim) watch() {
	const fixed = 7
	for !s.out.ended || !s.out.done() {
		now := time.Now()
		s.checkTimes(now)
		logWaits := now.Before(s.out.retryAt)
		fds := make([]unix.PollFd, fixed, fixed+maxConns)
		fds[0] = unix.PollFd{Fd: int32(s.process.PIDFD), Events: unix.POLLIN}
		fds[1] = unix.PollFd{Fd: int32(s.listen), Events: unix.POLLIN}
		pipes := s.out.pollFds(now)
		copy(fds[2:], pipes[:])
		fds[4] = s.stdin.pollFd()
		fds[5] = unix.PollFd{Fd: int32(s.oomEvents), Events: unix.POLLIN}
		fds[6] = s.denied.pollFd(now)
		if s.out.ended {
			fds[0].Fd = -1
		}
		for _, c := range s.conns {
			fds = append(fds, unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN})
		}
		if _, err := unix.Poll(fds, s.pollTimeout(now)); err != nil && err != unix.EINTR {
			return // no descriptor of ours can be bad
		}
		if !logWaits || s.out.ended {
			if fds[2].Revents != 0 || fds[3].Revents != 0 || s.out.ended || fds[0].Revents != 0 {
				s.out.drainAll()
			}
		}
		if fds[4].Revents != 0 {
			s.stdin.feed()
		}
		if fds[5].Revents != 0 {
			s.endOutOfMemory()
		}
		if fds[6].Revents != 0 {
			s.denied.answer()
		}
		s.out.sync(time.Now()) // and not before poll: its timeout is what brings us here
		if fds[0].Revents != 0 {
			s.reap()
			s.out.ended = true
			s.stdin.close()
			s.denied.close()
			s.out.giveUpAt = time.Now().Add(s.patience())
			s.out.drainAll() // what was written last; no process is left that could write more
		}
		s.serve(fds[fixed:])
		if fds[1].Revents != 0 {
			s.accept()
		}
	}
}

const (
	// logPatience is how long an ended job's last output, at most two pipes
	// full, waits for room on a full disk before it is given up and the record
	// says so.
	logPatience = time.Minute
	// stopPatience is the same for a job whose end a caller waits for.
	stopPatience = 300 * time.Millisecond
)

// patience is how long what an ended job has left waits for room on a full disk.
func (s *shim) patience() time.Duration {
	if s.hurry {
		return stopPatience
	}
	return logPatience
}

func (s *shim) pollTimeout(now time.Time) int {
	next := time.Time{}
	for _, t := range []time.Time{s.deadline, s.killAt, s.out.retryAt, s.out.syncAt, s.out.reopenAt, s.denied.retryAt} {
		if t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if next.IsZero() {
		return -1
	}
	return int(min(next.Sub(now).Milliseconds()+1, 1<<30))
}

// checkTimes acts on the times that have come.
func (s *shim) checkTimes(now time.Time) {
	if !s.deadline.IsZero() && !now.Before(s.deadline) {
		s.deadline = time.Time{}
		s.stop(protocol.CauseTimeout, syscall.SIGTERM, s.grace)
	}
	if !s.killAt.IsZero() && !now.Before(s.killAt) {
		s.signal(syscall.SIGKILL)
		s.killAt = now.Add(time.Second) // never needed twice; harmless
	}
}

// stop begins the end of the job: the signal now, SIGKILL after the grace
// period. A PID 1 that does not handle the signal never gets it (the kernel
// spares a namespace's init the default actions: pid_namespaces(7)), so there
// is nothing to wait for.
func (s *shim) stop(cause protocol.Cause, sig syscall.Signal, grace time.Duration) {
	if s.record.Cause == "" {
		s.record.Cause = cause
	}
	if grace <= 0 || !handles(s.process.PID, sig) {
		sig = syscall.SIGKILL
		grace = time.Second
	}
	s.signal(sig)
	_ = s.cgroup.Thaw() // a paused job could not heed it; ENOENT: the job is being removed
	if at := time.Now().Add(grace); s.killAt.IsZero() || at.Before(s.killAt) {
		s.killAt = at
	}
}

// endAs ends the job as a signal would have ended PID 1, were it not that. The record
// says the signal.
func (s *shim) endAs(sig syscall.Signal) {
	if s.endedBy == 0 {
		s.endedBy = sig
	}
	s.signal(syscall.SIGKILL)
}

// signal sends a signal to PID 1.
func (s *shim) signal(sig syscall.Signal) {
	_ = unix.PidfdSendSignal(s.process.PIDFD, sig, nil, 0) // ESRCH: it has ended, and poll tells
}

// reap takes the exit status of PID 1.
func (s *shim) reap() {
	ws := s.process.Wait()
	if ws.Signaled() && ws.Signal() == syscall.SIGKILL && s.endedBy != 0 {
		s.record.Signal = int(s.endedBy)
	} else if ws.Signaled() {
		s.record.Signal = int(ws.Signal())
	} else {
		s.record.Code = ws.ExitStatus()
	}
	s.record.EndedNanos = time.Now().UnixNano()
	s.measure()
	s.deadline, s.killAt = time.Time{}, time.Time{}
}

// finish closes the log, makes the record durable, and tells.
func (s *shim) finish() {
	s.record.LogBytes = s.out.log.Size()
	s.record.Denied = s.denied.list()
	s.out.close()
	s.record.LogError = s.out.lost
	s.terminal.master = -1 // it was one of the pipes
	s.keepFiles()
	for {
		err := s.recordFile.write(&s.record)
		if err == nil {
			break
		}
		if errors.Is(err, unix.ENOENT) {
			break // the job's directory was removed: no daemon waits for a record
		}
		os.Stderr.WriteString("joblet-shim: " + err.Error() + "\n")
		if s.hurry {
			return // the daemon, which waits, finds out and says what it knows
		}
		s.listenFor(time.Second) // the job is over; its record is all that is left to do
	}
	s.tell(protocol.Event{Ended: &protocol.Exit{}})
}
