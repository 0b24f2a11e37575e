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

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
	"github.com/joblet/joblet/internal/cli/term"
)

// Exec runs a process in the job that ref names, connected to t if it has a terminal,
// and ends as it does.
func Exec(ctx context.Context, a *app.App, ref string, spec joblet.ExecSpec, t *term.Terminal) error {
	a.NoteTerminals()
	wanted := spec.Terminal != (joblet.WindowSize{})
	err := a.With(ctx, func(c *client.Client) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		signals := notifyEnd()
		defer signal.Stop(signals)
		app.CatchPipeSignal()
		x, err := startExec(ctx, cancel, signals, func() (*client.Exec, error) { return c.Exec(ctx, ref, spec) })
		if err != nil {
			return err
		}
		defer x.Close()
		if wanted {
			signal.Notify(signals, terminalSignals...)
			defer t.End()
			defer context.AfterFunc(ctx, t.CutOff)()
			if err := t.MakeRaw(); err != nil {
				return err
			}
			t.Connect(&term.Line{Typed: func(p []byte) error { _, err := x.Write(p); return err }, Resize: x.Resize, Size: spec.Terminal})
			t.Guard(func() { t.WatchWindow(ctx) })
			if spec.Stdin {
				t.Guard(func() { t.Typing(ctx, func() {}, func() {}, func() { cancel(errExecHungUp) }) })
			}
		} else if spec.Stdin {
			go func() { // ends with the process
				if _, err := io.Copy(x, a.Stdin()); err == nil {
					_ = x.CloseInput() // Wait tells what becomes of the process
				} else if ctx.Err() == nil {
					cancel(fmt.Errorf("the process's standard input: %w", err))
				}
			}()
		}
		t.Guard(func() { forwardSignals(ctx, cancel, signals, x, wanted, spec.Stdin) })
		exit, err := x.Wait(func(s client.Stream, p []byte) error {
			w := a.Out
			switch {
			case wanted:
				w = t
			case s == client.Stderr:
				w = a.ErrOut
			}
			_, err := w.Write(p)
			return err
		})
		t.End()
		switch cause, _ := errors.AsType[*app.ExitError](context.Cause(ctx)); {
		case t.IsStuck() && cause != nil:
			return &app.ExitError{Status: cause.Status}
		case err == nil && exit.Status() == 0:
			return nil
		case err == nil:
			if wanted && t.TTY != nil && exit.Status() == 128+flags.SIGINT { // Ctrl-C, as in attachment.run
				fmt.Fprintln(t.Out)
			}
			return &app.ExitError{Status: exit.Status()}
		case ctx.Err() != nil && context.Cause(ctx) != nil:
			return context.Cause(ctx)
		case joblet.KindOf(err) == joblet.Unavailable:
			return fmt.Errorf("lost the daemon, and the process with it: %w", err)
		case app.ClosedPipe(err):
			return &app.ExitError{Status: 128 + int(syscall.SIGPIPE)}
		}
		return err
	})
	if _, ok := errors.AsType[*app.ExitError](err); err != nil && !ok && a.HungUp() {
		return errExecHungUp
	}
	return err
}

// errExecHungUp is why rnx ends before the process when its terminal has gone away.
var errExecHungUp = &app.ExitError{Status: 128 + flags.SIGHUP, Err: errors.New("ended by " + lostTerminal + ", and the process with rnx")}

// startExec starts a process. A signal meanwhile is for rnx: a job that stops or
// refuses new processes may keep it waiting.
func startExec(ctx context.Context, cancel context.CancelCauseFunc, signals <-chan os.Signal, start func() (*client.Exec, error)) (*client.Exec, error) {
	started, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case s := <-signals:
			sig, _ := s.(syscall.Signal)
			cancel(&app.ExitError{Status: 128 + int(sig), Err: errors.New("interrupted before the process ran")})
		case <-started:
		case <-ctx.Done():
		}
	}()
	x, err := start()
	close(started)
	<-watched
	cause := context.Cause(ctx)
	switch {
	case cause == nil:
		return x, err
	case err == nil:
		x.Close()
	}
	return nil, cause
}

// deliverTime is how long a signal may take to get to a process past its input.
const deliverTime = 3 * time.Second

// forwardSignals hands our signals to the process until ctx ends. With a terminal
// of its own, keys send none to us: those that come are for rnx.
func forwardSignals(ctx context.Context, cancel context.CancelCauseFunc, signals <-chan os.Signal, x *client.Exec, terminal, input bool) {
	var interrupted time.Time
	for {
		var sig syscall.Signal
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			sig, _ = s.(syscall.Signal)
		}
		if terminal || sig == syscall.SIGINT && time.Since(interrupted) < secondInterrupt {
			cancel(&app.ExitError{Status: 128 + int(sig), Err: errors.New("ended by " + flags.SignalName(int(sig)) + ", and the process with rnx")})
			return
		}
		if sig == syscall.SIGINT {
			interrupted = time.Now()
		}
		if !input {
			go func() { _ = x.Signal(int(sig)) }() // why it fails Wait tells
			continue
		}
		go func() {
			ctx, stop := context.WithTimeout(ctx, deliverTime)
			defer stop()
			if err := x.Deliver(ctx, int(sig)); err != nil {
				cancel(&app.ExitError{Status: 128 + int(sig), Err: errors.New("ended by " + flags.SignalName(int(sig)) + ", which could not get to the process past its input, and the process with rnx")})
			}
		}()
	}
}
