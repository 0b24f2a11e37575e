package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
	"github.com/joblet/joblet/internal/cli/term"
)

// local is rnx's own side of a session with a job or a process: the signals that rnx
// gets, the user's terminal and streams, and the exit status.
type local struct {
	app  *app.App
	term *term.Terminal // the user's, when the other side has one; nil: it has none

	signals     chan os.Signal
	cancel      context.CancelCauseFunc // ends the session before the other side does, with the reason
	interrupted time.Time               // when the last Ctrl-C came
}

// open begins a session: from now on the signals that would end rnx arrive in signals,
// and a write to a closed pipe is an error. The context ends when cancel is called.
func (l *local) open(ctx context.Context) context.Context {
	ctx, l.cancel = context.WithCancelCause(ctx)
	l.signals = notifyEnd()
	app.CatchPipeSignal()
	return ctx
}

// release lets signals end rnx again.
func (l *local) release() { signal.Stop(l.signals) }

// takeTerminal watches over the user's terminal until the session ends or release is
// called; what is typed goes to the other side, once it is connected. It does nothing
// without a terminal on the other side.
func (l *local) takeTerminal(ctx context.Context) (release func()) {
	if l.term == nil {
		return func() {}
	}
	signal.Notify(l.signals, terminalSignals...)
	stop := context.AfterFunc(ctx, l.term.CutOff)
	l.goGuarded(func() { l.term.WatchWindow(ctx) })
	return func() {
		stop()
		l.term.End()
	}
}

// goGuarded runs f in a goroutine that does not leave the terminal raw when it panics.
func (l *local) goGuarded(f func()) {
	if l.term == nil {
		go f()
		return
	}
	l.term.Guard(f)
}

// next waits for a signal of our own, or for one in more; not ok: ctx has ended.
func (l *local) next(ctx context.Context, more <-chan syscall.Signal) (sig syscall.Signal, ok bool) {
	select {
	case <-ctx.Done():
		return 0, false
	case s := <-l.signals:
		sig, _ = s.(syscall.Signal)
	case sig = <-more:
	}
	return sig, true
}

// second reports whether sig is the second Ctrl-C within secondInterrupt.
func (l *local) second(sig syscall.Signal) bool {
	if sig != syscall.SIGINT {
		return false
	}
	again := time.Since(l.interrupted) < secondInterrupt
	l.interrupted = time.Now()
	return again
}

// endBy ends the session because of a signal to rnx.
func (l *local) endBy(sig syscall.Signal, why string) {
	l.cancel(&app.ExitError{Status: 128 + int(sig), Err: errors.New(why)})
}

// writer is where a stream of the other side goes: a terminal has only one.
func (l *local) writer(s client.Stream) io.Writer {
	switch {
	case l.term != nil:
		return l.term
	case s == client.Stderr:
		return l.app.ErrOut
	}
	return l.app.Out
}

// stuck reports whether the user's terminal takes no more output. It does not take a
// message either: rnx ends with nothing but the status for its reason.
func (l *local) stuck(ctx context.Context) (end error, yes bool) {
	if l.term == nil || !l.term.IsStuck() {
		return nil, false
	}
	cause := context.Cause(ctx)
	if e, ok := errors.AsType[*app.ExitError](cause); ok {
		return &app.ExitError{Status: e.Status}, true
	}
	return nil, cause == errDetached
}

// endWith ends rnx with the status of the other side and a message, which may be nil.
// The user who pressed Ctrl-C in a terminal knows: a shell says nothing either, but
// begins a new line.
func (l *local) endWith(status int, why error) error {
	if l.term != nil && l.term.TTY != nil && status == 128+flags.SIGINT {
		fmt.Fprintln(l.term.Out)
		why = nil
	}
	if status == 0 && why == nil {
		return nil
	}
	return &app.ExitError{Status: status, Err: why}
}

// pipeVerdict ends rnx as SIGPIPE does a program in a pipeline, or with err when that
// is not a closed pipe.
func pipeVerdict(err error) error {
	if app.ClosedPipe(err) {
		return &app.ExitError{Status: 128 + int(syscall.SIGPIPE)}
	}
	return err
}

// search spaces out and bounds the tries to find a daemon that went away.
type search struct{ deadline time.Time }

// found begins the time anew: the daemon was there.
func (s *search) found() { s.deadline = time.Now().Add(reattachFor) }

// pause waits before the next try. It reports false when there is none: the time is up,
// which leaves err nil, or ctx has ended.
func (s *search) pause(ctx context.Context) (more bool, err error) {
	if time.Now().After(s.deadline) {
		return false, nil
	}
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-time.After(reattachPause):
		return true, nil
	}
}
