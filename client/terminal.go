package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/wire"
)

// Attached is the first event of a Session that Attach has opened.
type Attached struct {
	LogBytes int64             // output before this offset is older
	Window   joblet.WindowSize // of the terminal, before it got the caller's
}

func (Attached) isEvent() {}

// Session is a terminal connected to a job that has one. Its methods may be
// called at the same time.
type Session struct {
	events interface{ Recv() (*api.JobEvent, error) }
	stream inputStream // nil: the call takes no input
	cancel context.CancelFunc
	send   sync.Mutex    // gRPC wants one Send at a time
	packed chan struct{} // closed when the files are sent
	broken chan error    // why the input could not be sent
}

// Attach connects to the terminal of the job that ref names. Close, or the end
// of ctx, leaves the job running.
func (c *Client) Attach(ctx context.Context, ref string, opt joblet.AttachOptions) (*Session, error) {
	s := newSession()
	close(s.packed)
	err := s.open(ctx, func(ctx context.Context) (inputStream, error) { return c.jobs.AttachJob(ctx) },
		&api.JobInput{Input: &api.JobInput_Attach{Attach: wire.AttachToProto(ref, opt)}})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// RunTerminal submits a job that has a terminal (spec.Terminal) and connects to
// it. files is as Input.Files; its error is one of Events.
func (c *Client) RunTerminal(ctx context.Context, spec joblet.Spec, files func(io.Writer) error) (*Session, error) {
	return c.start(ctx, submission{spec: spec, input: &Input{Files: files}, typed: true})
}

// submission is a job to start, and what goes along with it.
type submission struct {
	spec   joblet.Spec
	detach bool   // it is left alone once it is accepted
	input  *Input // nil: the call takes none, which costs less
	typed  bool   // more input follows, instead of standard input
}

// start submits a job in a call that follows it.
func (c *Client) start(ctx context.Context, sub submission) (*Session, error) {
	r, err := wire.SpecToProto(sub.spec)
	if err != nil {
		return nil, err
	}
	s := newSession()
	if sub.input == nil {
		close(s.packed)
		ctx, s.cancel = context.WithCancel(ctx)
		if s.events, err = c.jobs.RunJobAttached(ctx, r); err != nil {
			s.cancel()
			return nil, err
		}
		return s, nil
	}
	r.Files, r.Detach = sub.input.Files != nil, sub.detach
	if err := s.open(ctx, func(ctx context.Context) (inputStream, error) { return c.jobs.SubmitJob(ctx) },
		&api.JobInput{Input: &api.JobInput_Run{Run: r}}); err != nil {
		return nil, err
	}
	if sub.typed && sub.input.Files == nil {
		close(s.packed)
		return s, nil
	}
	s.send.Lock()  // what is typed goes behind the files
	go s.feed(sub) // ends with the input, or when the call has ended
	return s, nil
}

// feed sends the input. s.send is locked; it is not when the files are sent.
func (s *Session) feed(sub submission) {
	sent, err := sendFiles(s.stream, sub.input.Files)
	s.send.Unlock()
	close(s.packed)
	if err == nil && sent && !sub.typed {
		err = sendStdin(s.stream, sub.input.Stdin)
	}
	if err != nil {
		s.broken <- err
		s.cancel() // closing this side would mean the end of the input
	}
}

// finish ends the call, and returns when no more of the files is read.
func (s *Session) finish() {
	s.cancel()
	<-s.packed
}

func newSession() *Session {
	return &Session{packed: make(chan struct{}), broken: make(chan error, 1)}
}

func (s *Session) open(ctx context.Context, call func(context.Context) (inputStream, error), first *api.JobInput) error {
	ctx, s.cancel = context.WithCancel(ctx)
	var err error
	if s.stream, err = call(ctx); err != nil {
		s.cancel()
		return err
	}
	s.events = s.stream
	if err := s.stream.Send(first); err != nil && !errors.Is(err, io.EOF) { // EOF: the daemon has answered, and Events tells
		s.cancel()
		return err
	}
	return nil
}

// Events returns what happens to the job, to its end. It can be ranged over
// once.
func (s *Session) Events() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		events(s.events, nil, func(e Event, err error) bool {
			if err != nil {
				select {
				case err = <-s.broken:
				default:
				}
			}
			return yield(e, err)
		})
	}
}

// Type sends what was typed. It waits as long as the job does not read. Why the
// session has ended is for Events to tell.
func (s *Session) Type(p []byte) error {
	return s.put(&api.JobInput{Input: &api.JobInput_Stdin{Stdin: p}})
}

// Resize says that the caller's window has this size now.
func (s *Session) Resize(size joblet.WindowSize) error {
	return s.put(&api.JobInput{Input: &api.JobInput_Resize{Resize: wire.WindowToProto(size)}})
}

func (s *Session) put(m *api.JobInput) error {
	s.send.Lock()
	defer s.send.Unlock()
	return s.stream.Send(m)
}

// Close ends the session; the job goes on.
func (s *Session) Close() { s.cancel() }

// Exec is a further process in a running job. Its methods may be called at the
// same time.
type Exec struct {
	stream interface {
		Send(*api.ExecInput) error
		Recv() (*api.ExecEvent, error)
		CloseSend() error
	}
	cancel  context.CancelFunc
	ctx     context.Context
	answers bool       // the daemon knows wire.ExecAnswers
	send    sync.Mutex // gRPC wants one Send at a time

	mu   sync.Mutex      // protects what follows
	sent []chan struct{} // for each signal on its way; closed when the process has it
}

// Exec runs a further process in the job that ref names and returns once its
// command runs. Close, or the end of ctx, ends it.
func (c *Client) Exec(ctx context.Context, ref string, spec joblet.ExecSpec) (*Exec, error) {
	ctx, cancel := context.WithCancel(ctx)
	x := &Exec{ctx: ctx, cancel: cancel}
	err := func() error {
		stream, err := c.jobs.ExecJob(ctx)
		if err != nil {
			return err
		}
		x.stream = stream
		if err := stream.Send(&api.ExecInput{Input: &api.ExecInput_Run{Run: wire.ExecToProto(ref, spec)}}); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		first, err := stream.Recv()
		if err == nil && first.GetStarted() == nil {
			err = joblet.Errorf(joblet.Internal, "the daemon did not report whether the command runs")
		}
		if err != nil {
			return err
		}
		header, err := stream.Header() // it has arrived: headers precede the first message
		x.answers = len(header.Get(wire.ExecAnswers)) > 0
		return err
	}()
	if err != nil {
		cancel()
		return nil, err
	}
	return x, nil
}

// Wait hands what the process writes to output, in order, and returns how it
// ended.
func (x *Exec) Wait(output func(Stream, []byte) error) (joblet.Exit, error) {
	for {
		m, err := x.stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return joblet.Exit{}, joblet.Errorf(joblet.Unavailable, "the daemon closed the stream before the process ended")
		case err != nil:
			return joblet.Exit{}, err
		}
		switch e := m.GetEvent().(type) {
		case *api.ExecEvent_Output:
			if len(e.Output.GetData()) == 0 {
				x.answered()
				continue
			}
			if err := output(Stream(e.Output.GetStream()), e.Output.GetData()); err != nil {
				return joblet.Exit{}, err
			}
		case *api.ExecEvent_Ended:
			return *wire.ExitFromProto(e.Ended), nil
		}
	}
}

// Write sends input, or what was typed. It waits as long as the process does not
// read. Why the process has ended is for Wait to tell.
func (x *Exec) Write(p []byte) (int, error) {
	if len(p) == 0 { // that would be the end of it
		return 0, nil
	}
	if err := x.put(&api.ExecInput{Input: &api.ExecInput_Stdin{Stdin: p}}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseInput says that the input ends here.
func (x *Exec) CloseInput() error {
	if x.answers { // signals may follow
		return x.put(&api.ExecInput{Input: &api.ExecInput_Stdin{}})
	}
	x.send.Lock()
	defer x.send.Unlock()
	return x.stream.CloseSend()
}

// Resize says that the caller's window has this size now.
func (x *Exec) Resize(size joblet.WindowSize) error {
	return x.put(&api.ExecInput{Input: &api.ExecInput_Resize{Resize: wire.WindowToProto(size)}})
}

// Signal sends a signal, by its Linux number, to the process.
func (x *Exec) Signal(signal int) error {
	_, err := x.signal(signal)
	return err
}

// Deliver is Signal, and waits until the process has got the signal: input that
// was sent before and that the process does not read may be in its way. Wait must
// be running meanwhile.
func (x *Exec) Deliver(ctx context.Context, signal int) error {
	done := make(chan error, 1)
	go func() { // ends with the process, or with Close
		passed, err := x.signal(signal)
		if err == nil {
			select {
			case <-passed:
			case <-x.ctx.Done():
				err = x.ctx.Err()
			}
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (x *Exec) signal(signal int) (passed chan struct{}, err error) {
	x.send.Lock()
	defer x.send.Unlock()
	passed = make(chan struct{})
	if x.answers {
		x.mu.Lock()
		x.sent = append(x.sent, passed)
		x.mu.Unlock()
	} else {
		close(passed) // there will be no further signal
	}
	return passed, x.stream.Send(&api.ExecInput{Input: &api.ExecInput_Signal{Signal: int32(signal)}})
}

// answered notes that the first of the signals on their way has arrived.
func (x *Exec) answered() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.sent) > 0 {
		close(x.sent[0])
		x.sent = x.sent[1:]
	}
}

func (x *Exec) put(m *api.ExecInput) error {
	x.send.Lock()
	defer x.send.Unlock()
	return x.stream.Send(m)
}

// Close lets go of the process: if it has not ended, it is hung up and killed.
func (x *Exec) Close() { x.cancel() }
