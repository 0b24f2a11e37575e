package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
	"github.com/joblet/joblet/internal/cli/term"
)

// execution is rnx while it follows a process that it has started in a job.
type execution struct {
	local
	spec joblet.ExecSpec
	x    *client.Exec
}

// Exec runs a process in the job that ref names, connected to t if it has a terminal,
// and ends as it does.
func Exec(ctx context.Context, a *app.App, ref string, spec joblet.ExecSpec, t *term.Terminal) error {
	a.NoteTerminals()
	e := &execution{local: local{app: a}, spec: spec}
	if spec.Terminal != (joblet.WindowSize{}) {
		e.term = t
	}
	err := a.With(ctx, func(c *client.Client) error { return e.run(ctx, c, ref) })
	if _, ok := errors.AsType[*app.ExitError](err); err != nil && !ok && a.HungUp() {
		return errExecHungUp
	}
	return err
}

func (e *execution) run(ctx context.Context, c *client.Client, ref string) error {
	ctx = e.open(ctx)
	defer e.cancel(nil)
	defer e.release()
	if err := e.start(ctx, func() (*client.Exec, error) { return c.Exec(ctx, ref, e.spec) }); err != nil {
		return err
	}
	defer e.x.Close()
	defer e.takeTerminal(ctx)()
	if err := e.connect(ctx); err != nil {
		return err
	}
	e.goGuarded(func() { e.forward(ctx) })
	exit, err := e.x.Wait(func(s client.Stream, p []byte) error {
		_, err := e.writer(s).Write(p)
		return err
	})
	if e.term != nil {
		e.term.End()
	}
	if end, yes := e.stuck(ctx); yes {
		return end
	}
	switch {
	case err == nil:
		return e.endWith(exit.Status(), nil)
	case ctx.Err() != nil && context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case joblet.KindOf(err) == joblet.Unavailable:
		return fmt.Errorf("lost the connection to the daemon, and the process with it: %w", err)
	}
	return pipeVerdict(err)
}

// connect hands the user's terminal to the process, or its standard input.
func (e *execution) connect(ctx context.Context) error {
	switch {
	case e.term != nil:
		if err := e.term.MakeRaw(); err != nil {
			return err
		}
		e.term.Connect(&term.Line{Typed: func(p []byte) error { _, err := e.x.Write(p); return err }, Resize: e.x.Resize, Size: e.spec.Terminal})
		if e.spec.Stdin {
			e.goGuarded(func() { e.term.Typing(ctx, func() {}, func() {}, func() { e.cancel(errExecHungUp) }) })
		}
	case e.spec.Stdin:
		go func() { // ends with the process
			if _, err := io.Copy(e.x, e.app.Stdin()); err == nil {
				_ = e.x.CloseInput() // Wait tells what becomes of the process
			} else if ctx.Err() == nil {
				e.cancel(fmt.Errorf("the process's standard input: %w", err))
			}
		}()
	}
	return nil
}

// errExecHungUp is why rnx ends before the process when its terminal has gone away.
var errExecHungUp = &app.ExitError{Status: 128 + flags.SIGHUP, Err: errors.New("ended by " + lostTerminal + ", and the process with rnx")}

// start starts the process. A signal meanwhile is for rnx: a job that stops or refuses
// new processes may keep it waiting.
func (e *execution) start(ctx context.Context, start func() (*client.Exec, error)) error {
	started, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case s := <-e.signals:
			sig, _ := s.(syscall.Signal)
			e.endBy(sig, "interrupted before the process ran")
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
		e.x = x
		return err
	case err == nil:
		x.Close()
	}
	return cause
}

// deliverTime is how long a signal may take to get to a process past its input.
const deliverTime = 3 * time.Second

// forward hands our signals to the process until ctx ends. With a terminal of its own,
// keys send none to us: those that come are for rnx.
func (e *execution) forward(ctx context.Context) {
	for {
		sig, ok := e.next(ctx, nil)
		switch {
		case !ok:
			return
		case e.term != nil || e.second(sig):
			e.endBy(sig, "ended by "+flags.SignalName(int(sig))+", and the process with rnx")
			return
		case !e.spec.Stdin:
			go func() { _ = e.x.Signal(int(sig)) }() // why it fails Wait tells
			continue
		}
		go func() {
			ctx, stop := context.WithTimeout(ctx, deliverTime)
			defer stop()
			if err := e.x.Deliver(ctx, int(sig)); err != nil {
				e.endBy(sig, "ended by "+flags.SignalName(int(sig))+", which could not get to the process past its input, and the process with rnx")
			}
		}()
	}
}
