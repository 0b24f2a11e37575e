package service

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/sandbox/native"
)

// Keys is what a caller sends to a terminal: what is typed, or else the size of its window.
type Keys struct {
	Typed  []byte
	Window joblet.WindowSize // zero: not changed
}

// Attached is what a caller learns at first of the terminal that it attaches to.
type Attached struct {
	LogBytes int64 // output before this offset is older
	Window   joblet.WindowSize
}

// Attachment is the caller's end of a terminal.
type Attachment struct {
	Keys     func() (Keys, error)   // as in Submission
	Attached func(a Attached) error // called first
	Follow   Output
}

// Attach connects the caller to the terminal of a job, and returns the job once it has
// ended.
func (s *Jobs) Attach(ctx context.Context, c Caller, ref string, opt joblet.AttachOptions, with Attachment) (job joblet.Job, err error) {
	err = s.onJob(ctx, c, AttachJob, ref, Subject{}, func(ctx context.Context, open *call, id string) error {
		job, err = s.attach(ctx, open, id, opt, with)
		return err
	})
	return job, err
}

func (s *Jobs) attach(ctx context.Context, open *call, id string, opt joblet.AttachOptions, with Attachment) (joblet.Job, error) {
	job, err := s.sup.Job(ctx, id)
	if err != nil {
		return job, err
	}
	short := joblet.ShortID(job.ID)
	switch {
	case job.Spec.Terminal == (joblet.WindowSize{}):
		return job, joblet.Errorf(joblet.FailedPrecondition, "cannot attach to job %s: it has no terminal; use rnx job log -f %[1]s or rnx job shell %[1]s", short)
	case job.State.Final() && opt.Tail > 0: // one that is lost in the middle learns from the log how it ended
		return job, joblet.Errorf(joblet.FailedPrecondition, "cannot attach to job %s: it has ended (%v); use rnx job log %[1]s", short, job.State)
	}
	size, err := s.sup.LogSize(job.ID)
	if err != nil {
		return job, err
	}
	if opt.Tail > 0 {
		opt.Offset = max(0, size-opt.Tail)
	}
	attached := Attached{LogBytes: size, Window: job.Spec.Terminal}
	var k *native.Keyboard
	if job.State.Alive() {
		if k, err = s.sup.Keyboard(ctx, job.ID); err == nil {
			attached.Window = joblet.WindowSize{Rows: int(k.Window.Rows), Columns: int(k.Window.Columns)}
			defer k.Close()
		} else if joblet.KindOf(err) != joblet.FailedPrecondition { // it ends just now, and Follow says how
			return job, err
		}
	}
	s.record(open, nil)
	if err := with.Attached(attached); err != nil {
		return job, err
	}
	go s.typing(ctx, job.ID, opt.Size, opt.Redraw, k, with.Keys) // ends with the call, as Keys does
	run := job.Attempt
	if !job.State.Alive() {
		run = 0 // typing waits for one
	}
	return s.followTerminal(ctx, job.ID, run, joblet.LogOptions{Offset: opt.Offset, Follow: true}, with.Follow)
}

// followTerminal follows a job whose terminal gets the size of the windows again
// in each run of it: a run begins with that of the submission. Those up to the
// given one have it.
func (s *Jobs) followTerminal(ctx context.Context, id string, run int, opt joblet.LogOptions, out Output) (joblet.Job, error) {
	return s.sup.Follow(ctx, id, opt, out.Gate, func(e Event) error {
		if e.Job != nil && e.Job.State.Alive() && e.Job.Attempt > run {
			run = e.Job.Attempt
			go s.fit(ctx, id, false) // not before the run's output
		}
		return out.Emit(e)
	})
}

// typing connects a caller to the job's terminal: what it types and the size of
// its window, until it has no more to send or its call has ended. A run of the
// job that has ended takes nothing any more; what comes then is for the next. k
// is a keyboard of it, or nil.
func (s *Jobs) typing(ctx context.Context, id string, size joblet.WindowSize, redraw bool, k *native.Keyboard, keys func() (Keys, error)) {
	board := keyboard{now: k, open: func() (*native.Keyboard, error) { return s.sup.Keyboard(ctx, id) }}
	defer board.close()
	stop := context.AfterFunc(ctx, board.close) // a write waits as long as the job does not read
	defer stop()
	// A caller whose input has ended still watches the output.
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
		m, err := keys()
		if err != nil {
			return
		}
		if m.Window != (joblet.WindowSize{}) && m.Window.Validate() == nil && s.windows.set(id, &board, m.Window) {
			s.fit(ctx, id, false)
		}
		if len(m.Typed) > 0 {
			board.write(m.Typed)
		}
	}
}

// leaveTime is how long the size of the windows that stay may take to get to the
// terminal of a job that runs.
const leaveTime = 10 * time.Second

// fit sets the job's terminal to the smallest size of all attached windows.
func (s *Jobs) fit(ctx context.Context, id string, redraw bool) {
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

// set notes the size of one window, and reports whether there is one: zero is none, and
// a caller that has left has none any more.
func (w *windows) set(id string, board *keyboard, size joblet.WindowSize) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if board.gone || size == (joblet.WindowSize{}) {
		return false
	}
	w.of(id).sizes[board] = size
	return true
}

// leave removes the window of a caller for good: its earlier messages may still arrive.
func (w *windows) leave(id string, board *keyboard) {
	w.mu.Lock()
	defer w.mu.Unlock()
	board.gone = true
	if j := w.byJob[id]; j != nil {
		delete(j.sizes, board)
		w.drop(id)
	}
}

// fit passes the size of the job's terminal to send, zero if there is no window. Calls
// are serialized, so that the last size to arrive is the latest: send may block.
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
	gone bool // the window is removed; protected by windows.mu

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

// ExecInput is what a caller sends to a process that it has started in a job: one of
// these.
type ExecInput struct {
	Stdin  []byte
	EOF    bool              // the input ends here
	Window joblet.WindowSize // of the caller
	Signal *int              // by its Linux number
}

// Execution is the caller's end of a further process in a job. Its functions, but for
// Input, are not called at the same time.
type Execution struct {
	Started func(hostPID int) error            // called first
	Input   func() (ExecInput, error)          // fails at the end of the input, and soon after Exec has returned
	Output  func(stream int32, p []byte) error // of the stdout (1) or stderr (2) of the process
	Passed  func() error                       // a signal was sent to the process
}

// Exec runs a further process in a job, and returns how it ended.
func (s *Jobs) Exec(ctx context.Context, c Caller, ref string, spec joblet.ExecSpec, with Execution) (exit joblet.Exit, err error) {
	err = s.onJob(ctx, c, ExecJob, ref, Subject{Target: spec.Command}, func(ctx context.Context, open *call, id string) error {
		exit, err = s.exec(ctx, open, id, spec, with)
		return err
	})
	return exit, err
}

func (s *Jobs) exec(ctx context.Context, open *call, id string, spec joblet.ExecSpec, with Execution) (joblet.Exit, error) {
	x, err := s.sup.Exec(ctx, id, spec)
	if err != nil {
		return joblet.Exit{}, err
	}
	defer x.Close()
	defer context.AfterFunc(ctx, func() { _ = x.Close() })() // a caller that is gone leaves nothing running
	s.record(open, nil)
	var sending sync.Mutex
	over := false // nothing may be sent when the call has ended
	send := func(f func() error) error {
		sending.Lock()
		defer sending.Unlock()
		if over {
			return io.ErrClosedPipe
		}
		return f()
	}
	defer func() {
		sending.Lock()
		defer sending.Unlock()
		over = true
	}()
	if err := send(func() error { return with.Started(x.PID) }); err != nil {
		return joblet.Exit{}, err
	}
	go execInput(ctx, x, with.Input, func() { _ = send(with.Passed) }) // ends with the call
	output := func(f *os.File, stream int32) error {
		if f == nil { // there is one stream
			return nil
		}
		return x.Copy(f, func(b []byte) error { return send(func() error { return with.Output(stream, b) }) })
	}
	copied := make(chan error, 2)
	go func() { copied <- output(x.Stdout, 1) }()
	go func() { copied <- output(x.Stderr, 2) }()
	err = errors.Join(<-copied, <-copied)
	if err == nil {
		<-x.Done()
		err = context.Cause(ctx)
	}
	if err != nil {
		return joblet.Exit{}, err
	}
	if end := x.End(); end != nil {
		return joblet.Exit{Code: end.Code, Signal: end.Signal}, nil
	}
	return joblet.Exit{Signal: int(syscall.SIGKILL)}, nil // its shim died, and it with that
}

// execQueue is how many messages of input that the process does not read are
// taken in, so that what comes behind them gets past.
const execQueue = 16

// execInput hands on what the caller sends until it has no more.
func execInput(ctx context.Context, x *native.Exec, recv func() (ExecInput, error), signaled func()) {
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
	go func() { // a caller that does not read the output can still send input
		for range passed {
			signaled()
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
		switch {
		case m.EOF:
			write(nil)
		case len(m.Stdin) > 0:
			write(m.Stdin)
		case m.Window != (joblet.WindowSize{}):
			if m.Window.Validate() == nil {
				_ = x.Resize(native.WindowSize{Rows: uint16(m.Window.Rows), Columns: uint16(m.Window.Columns)})
			}
		case m.Signal != nil:
			if *m.Signal >= 1 && *m.Signal <= 64 {
				_ = x.Signal(syscall.Signal(*m.Signal))
			}
			select {
			case passed <- struct{}{}:
			case <-ctx.Done():
			}
		}
	}
}
