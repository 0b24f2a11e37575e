// Package session connects rnx to a running job or process until it ends: signals,
// terminal, output, reconnection, and the exit status.
package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
	"github.com/joblet/joblet/internal/cli/jobview"
	"github.com/joblet/joblet/internal/cli/term"
)

// attachment is rnx while it follows a job.
type attachment struct {
	local
	out Output
	in  *Input // what goes along with the job; nil: nothing
	tty bool   // the notes go to a terminal
	off int64  // output up to here is written

	guest   bool          // the job was there before
	repaint *term.Repaint // the screen so far is being taken; nil: it is not

	lastNote  string // of those on what the job waits for
	inputLost bool   // that has been said
	heard     bool   // the daemon has told of the job since it was found again

	mu      sync.Mutex // protects what follows
	client  *client.Client
	id      string // empty until the job is accepted
	waiting bool   // it does not run yet, or not again

	known    chan struct{}       // closed when id is set
	retried  chan syscall.Signal // that has ended an attempt behind which another waits
	passed   atomic.Int32        // the last signal that the job got from us
	canceled atomic.Int32        // the signal that canceled the job
}

func newAttachment(a *app.App, c *client.Client) *attachment {
	a.NoteTerminals()
	return &attachment{
		local: local{app: a}, client: c, known: make(chan struct{}), retried: make(chan syscall.Signal, 1), tty: term.Width(a.ErrOut) > 0,
		out: Output{JSON: a.JSON},
	}
}

// FetchFunc fetches files of a job that has ended.
type FetchFunc func(ctx context.Context, c *client.Client, id string) error

// Run runs a job and follows it; fetch, if it is not nil, fetches its files; t is the user's terminal, for a job that
// has one.
func Run(ctx context.Context, a *app.App, spec joblet.Spec, in *Input, fetch FetchFunc, t *term.Terminal) error {
	c, err := a.Connect(ctx)
	if err != nil {
		return err
	}
	at := newAttachment(a, c)
	at.in = in
	if spec.Terminal != (joblet.WindowSize{}) {
		at.term = t
		return at.run(ctx, fetch, func(ctx context.Context) eventSeq { return at.runTerminal(ctx, spec) })
	}
	return at.run(ctx, fetch, func(ctx context.Context) eventSeq { return submit(ctx, c, spec, in) })
}

// eventSeq is what client's methods return.
type eventSeq = iter.Seq2[client.Event, error]

// run follows the job that begin starts to its end, fetches files of it, and
// ends as the job did.
func (at *attachment) run(ctx context.Context, fetch FetchFunc, begin func(context.Context) eventSeq) error {
	// The connections end with the process, whose next act is to exit. Before the request: from then on a signal must not leave the job alone.
	ctx = at.open(ctx)
	defer at.cancel(nil)
	at.out.Stdout, at.out.Stderr = at.writer(client.Stdout), at.writer(client.Stderr)
	defer at.takeTerminal(ctx)()
	at.goGuarded(func() { at.forward(ctx) })
	if at.term != nil {
		at.goGuarded(func() {
			at.term.Typing(ctx, func() { at.cancel(errDetached) }, func() { at.cancel(at.endedBy("Ctrl-C", flags.SIGINT)) }, func() { at.hangUp(ctx) })
		})
	}

	job, err := at.follow(begin(ctx))
	for err != nil && at.lost(err) {
		if job, err = at.reattach(ctx, err); err != nil {
			err = fmt.Errorf("lost the connection to the daemon: %w", err)
			break
		}
	}
	if at.term != nil {
		at.term.End()
	}
	if end, yes := at.stuck(ctx); yes {
		return end
	}
	if end, yes := at.endsEarly(ctx, err); yes {
		return end
	}
	at.release() // from now on they end us
	if !at.guest {
		noteDenied(at.app, job)
	}
	if fetch != nil && !job.Started.IsZero() {
		if err := fetch(ctx, at.conn(), job.ID); err != nil {
			if status, _ := job.Status(); status == 0 {
				return err
			}
			at.app.Report(joblet.StatusFailure, err)
		}
	}
	if sig := at.canceled.Load(); sig != 0 && (job.State == joblet.Canceled || job.State == joblet.Stopped) {
		return &app.ExitError{Status: 128 + int(sig)}
	}
	status, err := verdict(job)
	if at.app.JSON && job.State.Final() { // the last event has said it
		err = nil
	}
	return at.endWith(status, err)
}

// endsEarly returns how rnx ends when it did not follow the job to its end, err being
// why it could not; not yes: it did.
func (at *attachment) endsEarly(ctx context.Context, err error) (end error, yes bool) {
	var w *writeError
	switch cause, _ := errors.AsType[*app.ExitError](context.Cause(ctx)); {
	case context.Cause(ctx) == errDetached:
		at.app.Note("detached from job %s, which continues to run; rnx job attach %[1]s returns to it", joblet.ShortID(at.id))
		return nil, true
	case at.term != nil && cause != nil: // and not that a Write was cut off
		return cause, true
	case err != nil && ctx.Err() == nil && at.app.HungUp():
		return at.endedBy(lostTerminal, flags.SIGHUP), true
	case errors.As(err, &w) && at.term != nil && (at.guest || at.term.TTY != nil): // the window is gone, and the job may be attached to from another
		return w, true
	case errors.As(err, &w):
		return at.abandon(ctx, w.err), true
	case ctx.Err() != nil && context.Cause(ctx) != nil:
		return context.Cause(ctx), true
	case err != nil && at.id != "" && joblet.KindOf(err) == joblet.FailedPrecondition && at.hasEnded(ctx):
		return fmt.Errorf("%w; the job itself has ended: see \"rnx job status %s\"", err, joblet.ShortID(at.id)), true
	case err != nil && at.id == "" && !at.guest:
		return Unanswered(err), true
	case err != nil && at.id != "" && joblet.KindOf(err) != joblet.NotFound:
		return fmt.Errorf("%w; job %s continues: see \"rnx job %s %[2]s\"", err, joblet.ShortID(at.id), at.again()), true
	case err != nil:
		return err, true
	}
	return nil, false
}

// hasEnded reports whether the daemon says that the job has ended.
func (at *attachment) hasEnded(ctx context.Context) bool {
	job, err := at.conn().Job(ctx, at.id)
	return err == nil && job.State.Final()
}

// follow writes the events and returns the job at its end.
func (at *attachment) follow(events eventSeq) (joblet.Job, error) {
	for event, err := range events {
		if err != nil {
			return joblet.Job{}, err
		}
		switch e := event.(type) {
		case client.Waiting:
			at.meet(e.Job, true)
		case client.Started:
			at.meet(e.Job, false)
		case client.Ended:
			at.meet(e.Job, false) // perhaps the first that we hear of it
		}
		if err := at.show(event); err != nil {
			return joblet.Job{}, &writeError{err}
		}
		switch e := event.(type) {
		case client.Output:
			at.off = e.Offset + int64(len(e.Data))
		case client.Gap:
			at.off = e.Offset + e.Length
		case client.Ended:
			return e.Job, nil
		}
	}
	return joblet.Job{}, joblet.Errorf(joblet.Internal, "the output of the job ended before the daemon reported its state")
}

// meet takes note of what the daemon says of the job.
func (at *attachment) meet(j joblet.Job, waiting bool) {
	at.mu.Lock()
	at.heard = true
	first := at.id == ""
	if first {
		at.id = j.ID
		close(at.known)
	}
	at.waiting = waiting
	at.mu.Unlock()
	if !waiting {
		return
	}
	if runs := jobview.Attempts(j); len(runs) > 0 && runs[len(runs)-1].Exit != nil {
		if sig := at.passed.Swap(0); sig != 0 && runs[len(runs)-1].Exit.Status() == 128+int(sig) {
			at.retried <- syscall.Signal(sig) // has room: forward has taken the one before
		}
	}
	// A log gets one line: that and why the job does not start at once.
	if !at.tty && (at.lastNote != "" || j.Reason == "" || j.Attempt > 0) {
		return
	}
	if note := jobview.WaitingNote(j, time.Now()); note != at.lastNote {
		at.lastNote = note
		at.app.Note("%s", note)
	}
}

func (at *attachment) conn() *client.Client {
	at.mu.Lock()
	defer at.mu.Unlock()
	return at.client
}

// lost reports whether err is the daemon's going away once it has the job.
func (at *attachment) lost(err error) bool {
	return at.id != "" && joblet.KindOf(err) == joblet.Unavailable
}

// reattach finds the daemon, or its successor, and goes on where the output
// was cut.
func (at *attachment) reattach(ctx context.Context, err error) (joblet.Job, error) {
	if at.in != nil && at.in.stdin != nil && !at.in.keep && !at.in.ended.Load() && !at.inputLost {
		at.inputLost = true
		at.app.Note("lost the connection to the daemon: the rest of the input does not reach job %s, which waits for it and does not see its end", joblet.ShortID(at.id))
	}
	at.sayLost()
	var tries search
	tries.found()
	for {
		c, dialErr := at.app.Connect(ctx)
		if dialErr == nil {
			at.mu.Lock()
			at.client.Close()
			at.client = c
			at.mu.Unlock()
			at.heard = false
			job, followErr := at.follow(at.followAgain(ctx, c))
			if followErr == nil || !at.lost(followErr) {
				return job, followErr
			}
			if dialErr = followErr; at.heard { // it was there, and went away again
				at.sayLost()
				tries.found()
			}
		}
		if joblet.KindOf(dialErr) != joblet.Unavailable {
			return joblet.Job{}, dialErr
		}
		if more, err := tries.pause(ctx); !more {
			return joblet.Job{}, cmp.Or(err, dialErr)
		}
	}
}

// sayLost tells the user of a terminal, in which nothing else shows it.
func (at *attachment) sayLost() {
	if at.term != nil && at.term.IsRaw() {
		fmt.Fprintf(at.term, "\r\nrnx: lost the connection to the daemon; reconnecting (Ctrl-C gives up)\r\n")
	}
}

// abandon ends the job because its output has nowhere to go: what SIGPIPE does
// to a program in a pipeline.
func (at *attachment) abandon(ctx context.Context, cause error) error {
	if at.id != "" {
		_, err := at.conn().Stop(ctx, at.id, joblet.StopOptions{Signal: flags.SIGKILL})
		if err != nil && joblet.KindOf(err) != joblet.FailedPrecondition {
			return fmt.Errorf("cannot stop job %s: %w", at.id, err)
		}
	}
	return pipeVerdict(&writeError{cause})
}

// forward hands our signals to the job. One that comes before the job is
// accepted waits until it is, unless it cannot be yet; a second one then gives
// up. One that has ended an attempt ends the job, too.
func (at *attachment) forward(ctx context.Context) {
	for {
		sig, ok := at.next(ctx, at.retried)
		if !ok {
			return
		}
		if sig == syscall.SIGHUP && (at.term != nil && at.term.TTY != nil || at.app.HungUp()) {
			at.hangUp(ctx)
			return
		}
		// Keys that go to the job are not signals, and a client that only watches sends none
		// to send: it is meant for rnx.
		if raw := at.term != nil && at.term.IsRaw(); raw && !at.term.Pressed(sig) || at.guest && !raw {
			at.cancel(at.endedBy(flags.SignalName(int(sig)), sig))
			return
		}
		if at.in != nil && at.in.sending.Load() {
			at.endBy(sig, "interrupted before the job was accepted")
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-at.known:
		case <-at.signals:
			at.endBy(sig, "interrupted before the job ran")
			return
		}
		err := at.pass(ctx, sig, at.second(sig))
		if err != nil && ctx.Err() == nil && joblet.KindOf(err) != joblet.FailedPrecondition {
			at.app.Note("job %s: %v", joblet.ShortID(at.id), err)
		}
	}
}

// lostTerminal is what has ended rnx when its terminal has gone away.
const lostTerminal = "the loss of the terminal"

// acceptTime is how long rnx waits, once its terminal has gone away, for the daemon
// to accept the job.
const acceptTime = 10 * time.Second

// hangUp ends rnx because its terminal has gone away. The job, which may be on its way
// to the daemon, goes on.
func (at *attachment) hangUp(ctx context.Context) {
	if !at.guest && (at.in == nil || !at.in.sending.Load()) {
		select {
		case <-ctx.Done():
		case <-at.known:
		case <-time.After(acceptTime):
		}
	}
	at.cancel(at.endedBy(lostTerminal, flags.SIGHUP))
}

// endedBy is why rnx ends before its job.
func (at *attachment) endedBy(what string, sig syscall.Signal) error {
	at.mu.Lock()
	defer at.mu.Unlock()
	if at.id == "" {
		return &app.ExitError{Status: 128 + int(sig), Err: fmt.Errorf("ended by %s", what)}
	}
	return &app.ExitError{Status: 128 + int(sig), Err: fmt.Errorf("ended by %s; job %s continues: see \"rnx job %s %[2]s\"", what, joblet.ShortID(at.id), at.again())}
}

// again names the command that comes back to the job.
func (at *attachment) again() string {
	if at.term != nil {
		return "attach"
	}
	return "log -f"
}

// pass hands a signal to the job; again: it is the second Ctrl-C.
func (at *attachment) pass(ctx context.Context, sig syscall.Signal, again bool) error {
	at.mu.Lock()
	c, id, short, waiting := at.client, at.id, joblet.ShortID(at.id), at.waiting
	at.mu.Unlock()
	switch {
	case !waiting && at.term != nil && at.term.Press(sig): // Ctrl-C just before the job got the keys
		return nil
	case waiting:
		at.app.Note("canceling job %s, which has not started", short)
		at.canceled.Store(int32(sig))
		_, err := c.Cancel(ctx, id)
		if err != nil {
			at.canceled.Store(0)
		}
		if joblet.KindOf(err) == joblet.FailedPrecondition { // it just begins to run
			_, err = c.Stop(ctx, id, joblet.StopOptions{Signal: int(sig), Grace: joblet.DefaultGrace})
		}
		return err
	case again:
		at.app.Note("killing job %s", short)
		_, err := c.Stop(ctx, id, joblet.StopOptions{Signal: flags.SIGKILL})
		return err
	case sig == syscall.SIGINT:
		at.app.Note("sent SIGINT to job %s; Ctrl-C again within %v kills it", short, secondInterrupt)
	default:
		at.app.Note("sent %s to job %s", flags.SignalName(int(sig)), short)
	}
	at.passed.Store(int32(sig))
	return c.Interrupt(ctx, id, int(sig))
}
