package server

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"

	"google.golang.org/grpc"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/engine"
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
	var k *engine.Keyboard
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
	return s.follow(ctx, job.ID, joblet.LogOptions{Offset: opt.Offset, Follow: true}, call.Send)
}

// typing connects a caller to the job's terminal: what it types and the size of
// its window, until it has no more to send or its call has ended. A run of the
// job that has ended takes nothing any more; what comes then is for the next. k
// is a keyboard of it, or nil.
func (s *jobService) typing(ctx context.Context, id string, size joblet.WindowSize, redraw bool, k *engine.Keyboard, recv func() (*api.JobInput, error)) {
	board := keyboard{now: k, open: func() (*engine.Keyboard, error) { return s.sup.Keyboard(ctx, id) }}
	defer board.close()
	stop := context.AfterFunc(ctx, board.close) // a write waits as long as the job does not read
	defer stop()
	// Whoever only has no more to type still looks at it.
	context.AfterFunc(ctx, func() { s.resize(context.WithoutCancel(ctx), id, &board, joblet.WindowSize{}, false) })
	if size != (joblet.WindowSize{}) || redraw {
		s.resize(ctx, id, &board, size, redraw)
	}
	for {
		m, err := recv()
		if err != nil {
			return
		}
		switch m := m.GetInput().(type) {
		case *api.JobInput_Resize:
			if size := wire.WindowFromProto(m.Resize); size.Validate() == nil {
				s.resize(ctx, id, &board, size, false)
			}
		case *api.JobInput_Stdin:
			board.write(m.Stdin)
		}
	}
}

// windows are the sizes of the windows that are attached to jobs. A terminal is
// as large as the smallest of them: what does not fit into a window is drawn
// over itself there.
type windows struct {
	mu    sync.Mutex
	byJob map[string]map[*keyboard]joblet.WindowSize
}

// set notes the size of one window, zero for none, and returns that of the
// terminal, zero if nobody looks at it.
func (w *windows) set(id string, board *keyboard, size joblet.WindowSize) (least joblet.WindowSize) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if size == (joblet.WindowSize{}) {
		if delete(w.byJob[id], board); len(w.byJob[id]) == 0 {
			delete(w.byJob, id)
		}
	} else {
		if w.byJob == nil {
			w.byJob = map[string]map[*keyboard]joblet.WindowSize{}
		}
		if w.byJob[id] == nil {
			w.byJob[id] = map[*keyboard]joblet.WindowSize{}
		}
		w.byJob[id][board] = size
	}
	for _, size := range w.byJob[id] {
		if least == (joblet.WindowSize{}) {
			least = size
		}
		least = joblet.WindowSize{Rows: min(least.Rows, size.Rows), Columns: min(least.Columns, size.Columns)}
	}
	return least
}

// resize gives the job's terminal the size that suits all who look at it, of
// whom one's window has another now; zero says that it is gone.
func (s *jobService) resize(ctx context.Context, id string, board *keyboard, size joblet.WindowSize, redraw bool) {
	if size = s.windows.set(id, board, size); size != (joblet.WindowSize{}) || redraw {
		_ = s.sup.Resize(ctx, id, size, redraw) // it has ended, and the follower says how
	}
}

// keyboard is a caller's connection to the terminal of a job's current run.
type keyboard struct {
	open func() (*engine.Keyboard, error)

	mu     sync.Mutex // protects what follows; not held while a write waits
	now    *engine.Keyboard
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
	send := func(e *api.ExecEvent) error {
		sending.Lock()
		defer sending.Unlock()
		return call.Send(e)
	}
	if err := send(&api.ExecEvent{Event: &api.ExecEvent_Started{Started: &api.ExecStarted{HostPid: int64(x.PID)}}}); err != nil {
		return err
	}
	go execInput(x, call.Recv) // ends with the call
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
	exit := &joblet.Exit{Signal: int(syscall.SIGKILL)} // its monitor died, and it with that
	if end := x.End(); end != nil {
		exit = &joblet.Exit{Code: end.Code, Signal: end.Signal}
	}
	return send(&api.ExecEvent{Event: &api.ExecEvent_Ended{Ended: wire.ExitToProto(exit)}})
}

func execOutput(x *engine.Exec, f *os.File, stream int32, send func(*api.ExecEvent) error) error {
	if f == nil { // a terminal is one stream
		return nil
	}
	return x.Copy(f, func(b []byte) error {
		return send(&api.ExecEvent{Event: &api.ExecEvent_Output{Output: &api.ExecOutput{Stream: stream, Data: b}}})
	})
}

// execInput hands on what the caller sends until it has no more.
func execInput(x *engine.Exec, recv func() (*api.ExecInput, error)) {
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			_ = x.CloseStdin() // that it has none left is all there is to say
		}
		if err != nil {
			return
		}
		switch m := m.GetInput().(type) {
		case *api.ExecInput_Stdin:
			if x.Stdin != nil {
				_, _ = x.Stdin.Write(m.Stdin) // EPIPE: it reads no more
			}
		case *api.ExecInput_Resize:
			if size := wire.WindowFromProto(m.Resize); size.Validate() == nil {
				_ = x.Resize(engine.WindowSize{Rows: uint16(size.Rows), Columns: uint16(size.Columns)})
			}
		case *api.ExecInput_Signal:
			if m.Signal >= 1 && m.Signal <= 64 {
				_ = x.Signal(syscall.Signal(m.Signal))
			}
		}
	}
}
