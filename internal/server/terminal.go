package server

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/wire"
)

func (s *jobService) AttachJob(call grpc.BidiStreamingServer[api.JobInput, api.JobEvent]) error {
	ctx := call.Context()
	first, err := call.Recv()
	if err != nil {
		return err
	}
	r := first.GetAttach()
	if r == nil {
		return joblet.Errorf(joblet.InvalidArgument, "the first message must say to which job")
	}
	opt, err := wire.AttachFromProto(r)
	if err != nil {
		return err
	}
	job, err := s.sup.Job(ctx, r.GetUuid())
	if err != nil {
		return err
	}
	short := joblet.ShortID(job.ID)
	switch {
	case job.Spec.Terminal == (joblet.WindowSize{}):
		return joblet.Errorf(joblet.FailedPrecondition, "job %s has no terminal (see rnx job log -f %[1]s, or rnx job shell %[1]s)", short)
	case job.State.Final() && opt.Tail > 0: // one that is lost in the middle learns from the log how it ended
		return joblet.Errorf(joblet.FailedPrecondition, "job %s has ended: %v (see rnx job log %[1]s)", short, job.State)
	}
	size, err := s.sup.LogSize(job.ID)
	if err != nil {
		return err
	}
	if opt.Tail > 0 {
		opt.Offset = max(0, size-opt.Tail)
	}
	attached := &api.JobAttached{LogBytes: size, Size: wire.WindowToProto(job.Spec.Terminal)}
	var k *native.Keyboard
	if job.State.Alive() {
		if k, err = s.sup.Keyboard(ctx, job.ID); err == nil {
			attached.Size = &api.WindowSize{Rows: int32(k.Window.Rows), Columns: int32(k.Window.Columns)}
			defer k.Close()
		} else if joblet.KindOf(err) != joblet.FailedPrecondition { // it ends just now, and Follow says how
			return err
		}
	}
	if err := call.Send(&api.JobEvent{Event: &api.JobEvent_Attached{Attached: attached}}); err != nil {
		return err
	}
	go s.typing(ctx, job.ID, opt.Size, opt.Redraw, k, call.Recv) // ends with the call, as Recv does
	run := job.Attempt
	if !job.State.Alive() {
		run = 0 // typing waits for one
	}
	return s.followTerminal(ctx, job.ID, run, joblet.LogOptions{Offset: opt.Offset, Follow: true}, call.Send)
}

// followTerminal follows a job whose terminal gets the size of the windows again
// in each run of it: a run begins with that of the submission. Those up to the
// given one have it.
func (s *jobService) followTerminal(ctx context.Context, id string, run int, opt joblet.LogOptions, send func(*api.JobEvent) error) error {
	return s.follow(ctx, id, opt, func(e *api.JobEvent) error {
		if j := e.GetStarted(); j != nil && int(j.GetAttempt()) > run {
			run = int(j.GetAttempt())
			go s.fit(ctx, id, false) // not before the run's output
		}
		return send(e)
	})
}

// typing connects a caller to the job's terminal: what it types and the size of
// its window, until it has no more to send or its call has ended. A run of the
// job that has ended takes nothing any more; what comes then is for the next. k
// is a keyboard of it, or nil.
func (s *jobService) typing(ctx context.Context, id string, size joblet.WindowSize, redraw bool, k *native.Keyboard, recv func() (*api.JobInput, error)) {
	board := keyboard{now: k, open: func() (*native.Keyboard, error) { return s.sup.Keyboard(ctx, id) }}
	defer board.close()
	stop := context.AfterFunc(ctx, board.close) // a write waits as long as the job does not read
	defer stop()
	// Whoever only has no more to type still looks at it.
	context.AfterFunc(ctx, func() {
		s.windows.leave(id, &board)
		// Not for a run to come: that gets its size when it starts.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
		defer cancel()
		s.fit(ctx, id, false)
	})
	if s.windows.set(id, &board, size) || redraw {
		s.fit(ctx, id, redraw)
	}
	for {
		m, err := recv()
		if err != nil {
			return
		}
		switch m := m.GetInput().(type) {
		case *api.JobInput_Resize:
			if size := wire.WindowFromProto(m.Resize); size.Validate() == nil && s.windows.set(id, &board, size) {
				s.fit(ctx, id, false)
			}
		case *api.JobInput_Stdin:
			board.write(m.Stdin)
		}
	}
}

// leaveTime is how long the size of the windows that stay may take to get to the
// terminal of a job that runs.
const leaveTime = 10 * time.Second

// fit gives the job's terminal the size that suits all who look at it.
func (s *jobService) fit(ctx context.Context, id string, redraw bool) {
	s.windows.fit(ctx, id, func(size joblet.WindowSize) {
		if size != (joblet.WindowSize{}) || redraw {
			_ = s.sup.Resize(ctx, id, size, redraw) // it has ended, and the follower says how
		}
	})
}

// windows are the sizes of the windows that are attached to jobs. A terminal is
// as large as the smallest of them: what does not fit into a window is drawn
// over itself there.
type windows struct {
	mu    sync.Mutex
	byJob map[string]*jobWindows
}

// jobWindows are those of one job. They are kept as long as there is one, or a
// size is on its way.
type jobWindows struct {
	sizes   map[*keyboard]joblet.WindowSize
	fitting int
	turn    chan struct{} // full while a size is on its way: the next one goes behind it
}

// of returns the windows of a job; mu is held.
func (w *windows) of(id string) *jobWindows {
	j := w.byJob[id]
	if j == nil {
		if w.byJob == nil {
			w.byJob = map[string]*jobWindows{}
		}
		j = &jobWindows{sizes: map[*keyboard]joblet.WindowSize{}, turn: make(chan struct{}, 1)}
		w.byJob[id] = j
	}
	return j
}

// drop forgets a job without windows; mu is held.
func (w *windows) drop(id string) {
	if j := w.byJob[id]; j != nil && len(j.sizes) == 0 && j.fitting == 0 {
		delete(w.byJob, id)
	}
}

// set notes the size of one window, and reports whether there is one: zero is
// none, and whoever has left has none any more.
func (w *windows) set(id string, board *keyboard, size joblet.WindowSize) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if board.gone || size == (joblet.WindowSize{}) {
		return false
	}
	w.of(id).sizes[board] = size
	return true
}

// leave forgets the window of a caller who is gone, for good: what it has sent
// before may still be on its way.
func (w *windows) leave(id string, board *keyboard) {
	w.mu.Lock()
	defer w.mu.Unlock()
	board.gone = true
	if j := w.byJob[id]; j != nil {
		delete(j.sizes, board)
		w.drop(id)
	}
}

// fit hands the size of the job's terminal to send, zero if nobody looks at it.
// One at a time, so that the last one to arrive is the latest: send may wait.
func (w *windows) fit(ctx context.Context, id string, send func(joblet.WindowSize)) {
	w.mu.Lock()
	j := w.of(id)
	j.fitting++
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		j.fitting--
		w.drop(id)
	}()
	select {
	case j.turn <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-j.turn }()
	w.mu.Lock()
	var least joblet.WindowSize
	for _, size := range j.sizes {
		if least == (joblet.WindowSize{}) {
			least = size
		}
		least = joblet.WindowSize{Rows: min(least.Rows, size.Rows), Columns: min(least.Columns, size.Columns)}
	}
	w.mu.Unlock()
	send(least)
}

// keyboard is a caller's connection to the terminal of a job's current run.
type keyboard struct {
	open func() (*native.Keyboard, error)
	gone bool // it is no window any more; protected by windows.mu

	mu     sync.Mutex // protects what follows; not held while a write waits
	now    *native.Keyboard
	closed bool
}

// write types; what the job does not take because it has ended is dropped.
func (b *keyboard) write(p []byte) {
	for range 2 { // the second time it is perhaps the next run's
		b.mu.Lock()
		k, closed := b.now, b.closed
		b.mu.Unlock()
		if closed {
			return
		}
		if k == nil {
			opened, err := b.open()
			if err != nil {
				return
			}
			b.mu.Lock()
			if k, b.now = opened, opened; b.closed {
				_ = k.Close()
			}
			b.mu.Unlock()
		}
		if _, err := k.Write(p); err == nil {
			return
		}
		b.mu.Lock()
		_ = k.Close()
		b.now = nil
		b.mu.Unlock()
	}
}

func (b *keyboard) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed = true; b.now != nil {
		_ = b.now.Close()
	}
}

func (s *jobService) ExecJob(call grpc.BidiStreamingServer[api.ExecInput, api.ExecEvent]) error {
	ctx := call.Context()
	first, err := call.Recv()
	if err != nil {
		return err
	}
	r := first.GetRun()
	if r == nil {
		return joblet.Errorf(joblet.InvalidArgument, "the first message must hold the command")
	}
	x, err := s.sup.Exec(ctx, r.GetUuid(), wire.ExecFromProto(r))
	if err != nil {
		return err
	}
	defer x.Close()
	defer context.AfterFunc(ctx, func() { _ = x.Close() })() // a caller that is gone leaves nothing running
	var sending sync.Mutex
	over := false // nothing may be sent when the handler has returned
	send := func(e *api.ExecEvent) error {
		sending.Lock()
		defer sending.Unlock()
		if over {
			return io.ErrClosedPipe
		}
		return call.Send(e)
	}
	defer func() {
		sending.Lock()
		defer sending.Unlock()
		over = true
	}()
	if err := call.SetHeader(metadata.Pairs(wire.ExecAnswers, "1")); err != nil {
		return err
	}
	if err := send(&api.ExecEvent{Event: &api.ExecEvent_Started{Started: &api.ExecStarted{HostPid: int64(x.PID)}}}); err != nil {
		return err
	}
	go execInput(ctx, x, call.Recv, send) // ends with the call
	copied := make(chan error, 2)
	go func() { copied <- execOutput(x, x.Stdout, 1, send) }()
	go func() { copied <- execOutput(x, x.Stderr, 2, send) }()
	err = errors.Join(<-copied, <-copied)
	if err == nil {
		<-x.Done()
		err = context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	exit := &joblet.Exit{Signal: int(syscall.SIGKILL)} // its shim died, and it with that
	if end := x.End(); end != nil {
		exit = &joblet.Exit{Code: end.Code, Signal: end.Signal}
	}
	return send(&api.ExecEvent{Event: &api.ExecEvent_Ended{Ended: wire.ExitToProto(exit)}})
}

func execOutput(x *native.Exec, f *os.File, stream int32, send func(*api.ExecEvent) error) error {
	if f == nil { // there is one stream
		return nil
	}
	return x.Copy(f, func(b []byte) error {
		return send(&api.ExecEvent{Event: &api.ExecEvent_Output{Output: &api.ExecOutput{Stream: stream, Data: b}}})
	})
}

// execQueue is how many messages of input that the process does not read are
// taken in, so that what comes behind them gets past.
const execQueue = 16

// execInput hands on what the caller sends until it has no more.
func execInput(ctx context.Context, x *native.Exec, recv func() (*api.ExecInput, error), send func(*api.ExecEvent) error) {
	stdin, passed := make(chan []byte, execQueue), make(chan struct{}, execQueue)
	defer close(stdin)
	defer close(passed)
	go func() { // ends with the process: a write fails then
		for p := range stdin {
			if len(p) == 0 {
				_ = x.CloseStdin() // that it has none left is all there is to say
			} else if x.Stdin != nil {
				_, _ = x.Stdin.Write(p) // EPIPE: it reads no more
			}
		}
	}()
	go func() { // who does not read what the process writes can still send
		for range passed {
			_ = send(&api.ExecEvent{Event: &api.ExecEvent_Output{Output: &api.ExecOutput{}}})
		}
	}()
	write := func(p []byte) {
		select {
		case stdin <- p:
		case <-ctx.Done():
		}
	}
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			write(nil)
		}
		if err != nil {
			return
		}
		switch m := m.GetInput().(type) {
		case *api.ExecInput_Stdin:
			write(m.Stdin)
		case *api.ExecInput_Resize:
			if size := wire.WindowFromProto(m.Resize); size.Validate() == nil {
				_ = x.Resize(native.WindowSize{Rows: uint16(size.Rows), Columns: uint16(size.Columns)})
			}
		case *api.ExecInput_Signal:
			if m.Signal >= 1 && m.Signal <= 64 {
				_ = x.Signal(syscall.Signal(m.Signal))
			}
			select {
			case passed <- struct{}{}:
			case <-ctx.Done():
			}
		}
	}
}
