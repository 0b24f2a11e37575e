package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

// notifyEnd returns a channel that gets the signals that end rnx, but for those that
// it was started to ignore: as nohup and the background jobs of scripts are.
func notifyEnd() chan os.Signal {
	signals := make(chan os.Signal, 8)
	for _, sig := range endSignals {
		if !signal.Ignored(sig) {
			signal.Notify(signals, sig)
		}
	}
	return signals
}

// catchPipeSignal makes a write to a closed pipe an error (EPIPE) also on
// stdout and stderr, where Go otherwise ends the process. The signal is caught
// and not ignored, so that a daemon that rnx starts does not inherit that.
func catchPipeSignal() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

const (
	secondInterrupt = 2 * time.Second        // Ctrl-C again within it kills
	reattachFor     = 15 * time.Second       // how long a daemon may be away
	reattachPause   = 200 * time.Millisecond // between two tries
)

// attachment is rnx while it follows a job.
type attachment struct {
	app *app
	out output
	in  *input // what goes along with the job; nil: nothing
	tty bool   // somebody reads the notes
	off int64  // output up to here is written

	guest   bool      // the job was there before
	term    *terminal // the user's, when the job has one; nil: it has none
	repaint *repaint  // the screen so far is being taken; nil: it is not

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

func (a *app) attach(c *client.Client) *attachment {
	a.noteTerminals()
	return &attachment{
		app: a, client: c, known: make(chan struct{}), retried: make(chan syscall.Signal, 1), tty: terminalWidth(a.errOut) > 0,
		out: output{stdout: a.out, stderr: a.errOut, json: a.json},
	}
}

// runAttached runs a job and follows it; t is the user's terminal, for a job that
// has one.
func (a *app) runAttached(ctx context.Context, spec joblet.Spec, in *input, get *download, t *terminal) error {
	if get != nil {
		if err := get.open(); err != nil {
			return err
		}
		defer get.root.Close()
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	at := a.attach(c)
	at.in = in
	if spec.Terminal != (joblet.WindowSize{}) {
		at.term = t
		return at.run(ctx, get, func(ctx context.Context) eventSeq { return at.runTerminal(ctx, spec) })
	}
	return at.run(ctx, get, func(ctx context.Context) eventSeq { return submit(ctx, c, spec, in) })
}

// eventSeq is what client's methods return.
type eventSeq = iter.Seq2[client.Event, error]

// run follows the job that begin starts to its end, fetches files of it, and
// ends as the job did.
func (at *attachment) run(ctx context.Context, get *download, begin func(context.Context) eventSeq) error {
	// The connections end with the process, whose next act is to exit.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Before the request: from then on a signal must not leave the job alone.
	signals := notifyEnd()
	catchPipeSignal()
	if at.term != nil {
		signal.Notify(signals, terminalSignals...)
		at.out.stdout, at.out.stderr = at.term, at.term
		defer at.term.end()
		defer context.AfterFunc(ctx, at.term.cutOff)()
		at.term.guard(func() { at.forward(ctx, cancel, signals) })
		at.term.guard(func() {
			at.term.typing(ctx, func() { cancel(errDetached) }, func() { cancel(at.endedBy("Ctrl-C", sigint)) }, func() { at.hangUp(ctx, cancel) })
		})
		at.term.guard(func() { at.term.watchWindow(ctx) })
	} else {
		go at.forward(ctx, cancel, signals)
	}

	job, err := at.follow(begin(ctx))
	for err != nil && at.lost(err) {
		if job, err = at.reattach(ctx, err); err != nil {
			err = fmt.Errorf("lost the daemon: %w", err)
			break
		}
	}
	if at.term != nil {
		at.term.end()
	}
	var w *writeError
	switch cause, _ := errors.AsType[*exitError](context.Cause(ctx)); {
	case at.term != nil && at.term.isStuck() && cause != nil:
		return &exitError{status: cause.status}
	case at.term != nil && at.term.isStuck() && context.Cause(ctx) == errDetached:
		return nil
	case context.Cause(ctx) == errDetached:
		at.app.note("detached from job %s, which goes on; rnx job attach %[1]s comes back to it", joblet.ShortID(at.id))
		return nil
	case at.term != nil && cause != nil: // and not that a Write was cut off
		return cause
	case err != nil && ctx.Err() == nil && at.app.hungUp():
		return at.endedBy(lostTerminal, sighup)
	case errors.As(err, &w) && at.term != nil && (at.guest || at.term.tty != nil): // the window is gone, and the job may be attached to from another
		return w
	case errors.As(err, &w):
		return at.abandon(ctx, w.err)
	case ctx.Err() != nil && context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case err != nil && at.id != "" && joblet.KindOf(err) == joblet.FailedPrecondition && at.hasEnded(ctx):
		return fmt.Errorf("%w; the job itself has ended: see \"rnx job status %s\"", err, joblet.ShortID(at.id))
	case err != nil && at.id == "" && !at.guest:
		return unanswered(err)
	case err != nil && at.id != "" && joblet.KindOf(err) != joblet.NotFound:
		return fmt.Errorf("%w; job %s goes on: see \"rnx job %s %[2]s\"", err, joblet.ShortID(at.id), at.again())
	case err != nil:
		return err
	}
	signal.Stop(signals) // from now on they end us
	if !at.guest {
		at.app.noteDenied(job)
	}
	if get != nil && !job.Started.IsZero() {
		if err := get.fetch(ctx, at.app, at.conn(), job.ID); err != nil {
			if status, _ := job.Status(); status == 0 {
				return err
			}
			at.app.report(joblet.StatusFailure, err)
		}
	}
	if sig := at.canceled.Load(); sig != 0 && (job.State == joblet.Canceled || job.State == joblet.Stopped) {
		return &exitError{status: 128 + int(sig)}
	}
	err = at.app.verdict(job)
	if e, ok := errors.AsType[*exitError](err); ok && at.term != nil && at.term.tty != nil && job.Exit != nil && job.Exit.Status() == 128+sigint {
		// Ctrl-C: the user knows. A shell says nothing either, but begins a new line.
		fmt.Fprintln(at.term.out)
		e.err = nil
	}
	return err
}

// hasEnded reports whether the daemon says that the job has ended.
func (at *attachment) hasEnded(ctx context.Context) bool {
	job, err := at.conn().Job(ctx, at.id)
	return err == nil && job.State.Final()
}

// unanswered says what to do when the daemon went away and a submission got no
// answer: only the daemon's records tell whether there is a job.
func unanswered(err error) error {
	if !errors.Is(err, client.ErrLost) {
		return err
	}
	return joblet.Errorf(joblet.Unavailable, "cannot tell whether the job was accepted: %w: look for it with \"rnx job list\" before you submit it again; with an --idempotency-key the same command never makes a second job", err)
}

// verdict turns the job's end into rnx's.
func (a *app) verdict(j joblet.Job) error {
	status, ended := j.Status()
	if !ended {
		return joblet.Errorf(joblet.Internal, "job %s is %v at the end of its output", joblet.ShortID(j.ID), j.State)
	}
	e := &exitError{status: status}
	switch {
	case j.State == joblet.TimedOut:
		e.err = fmt.Errorf("job %s: its time was up after %v", joblet.ShortID(j.ID), j.Spec.Timeout)
	case j.Reason != "":
		e.err = fmt.Errorf("job %s: %s", joblet.ShortID(j.ID), j.Reason)
	case j.State == joblet.Canceled:
		e.err = fmt.Errorf("job %s was canceled before it ran", joblet.ShortID(j.ID))
	case j.State == joblet.Failed && j.Exit == nil:
		e.err = fmt.Errorf("job %s %s", joblet.ShortID(j.ID), notRunWords(j))
	case j.Exit == nil || j.State == joblet.Lost:
		e.err = fmt.Errorf("job %s is %v and left no exit status", joblet.ShortID(j.ID), j.State)
	case status == 0:
		return nil
	}
	if a.json { // the last event has said it
		e.err = nil
	}
	return e
}

// writeError is a failure to write the job's output here.
type writeError struct{ err error }

func (e *writeError) Error() string { return "write output: " + e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

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
	return joblet.Job{}, joblet.Errorf(joblet.Internal, "the job's output ended without a word on the job")
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
	if runs := attempts(j); len(runs) > 0 && runs[len(runs)-1].Exit != nil {
		if sig := at.passed.Swap(0); sig != 0 && runs[len(runs)-1].Exit.Status() == 128+int(sig) {
			at.retried <- syscall.Signal(sig) // has room: forward has taken the one before
		}
	}
	// A log gets one line: that and why the job does not start at once.
	if !at.tty && (at.lastNote != "" || j.Reason == "" || j.Attempt > 0) {
		return
	}
	if note := waitingNote(j, time.Now()); note != at.lastNote {
		at.lastNote = note
		at.app.note("%s", note)
	}
}

// waitingNote says what a job waits for.
func waitingNote(j joblet.Job, now time.Time) string {
	runs := attempts(j)
	switch {
	case j.State == joblet.Scheduled && len(runs) > 0:
		return fmt.Sprintf("job %s: attempt %d of %d %s; next %s", joblet.ShortID(j.ID),
			len(runs), max(len(runs), j.Spec.Retries)+1, attemptWords(runs[len(runs)-1]), formatDue(j.Scheduled, now))
	case j.State == joblet.Scheduled:
		return scheduledNote(j, now)
	}
	reason := cmp.Or(j.Reason, "waits for its turn")
	if !strings.HasPrefix(reason, "waits ") {
		reason = "waits: " + reason
	}
	return fmt.Sprintf("job %s %s", joblet.ShortID(j.ID), printable(reason))
}

// scheduledNote says when a job runs.
func scheduledNote(j joblet.Job, now time.Time) string {
	verb := "runs"
	if j.Spec.Repeats() {
		verb = "runs next"
	}
	due := formatDue(j.Scheduled, now)
	if at := formatTime(j.Scheduled); at != due {
		due = "at " + at + ", " + due
	} else {
		due = "at " + at
	}
	return fmt.Sprintf("job %s %s %s", joblet.ShortID(j.ID), verb, due)
}

// attemptWords says how an attempt that is followed by another ended.
func attemptWords(a joblet.Attempt) string {
	switch {
	case a.State == joblet.TimedOut:
		return "ran out of time"
	case a.State == joblet.Lost:
		return "was lost"
	case a.Exit != nil && a.Exit.Signal != 0:
		return "was killed by " + signalName(a.Exit.Signal)
	case a.Exit != nil:
		return fmt.Sprintf("failed with status %d", a.Exit.Code)
	case a.Reason != "":
		return "failed: " + printable(a.Reason)
	}
	return "failed"
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
		at.app.note("the daemon went away: the rest of the input is lost to job %s, which waits for it and does not see its end", joblet.ShortID(at.id))
	}
	at.sayLost()
	deadline := time.Now().Add(reattachFor)
	for {
		c, dialErr := at.app.connect(ctx)
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
				deadline = time.Now().Add(reattachFor)
			}
		}
		if time.Now().After(deadline) || joblet.KindOf(dialErr) != joblet.Unavailable {
			return joblet.Job{}, dialErr
		}
		select {
		case <-ctx.Done():
			return joblet.Job{}, ctx.Err()
		case <-time.After(reattachPause):
		}
	}
}

// sayLost tells the user of a terminal, in which nothing else shows it.
func (at *attachment) sayLost() {
	if at.term != nil && at.term.isRaw() {
		fmt.Fprintf(at.term, "\r\nrnx: lost the daemon; looking for it (Ctrl-C gives up)\r\n")
	}
}

// abandon ends the job because its output has nowhere to go: what SIGPIPE does
// to a program in a pipeline.
func (at *attachment) abandon(ctx context.Context, cause error) error {
	if at.id != "" {
		_, err := at.conn().Stop(ctx, at.id, joblet.StopOptions{Signal: sigkill})
		if err != nil && joblet.KindOf(err) != joblet.FailedPrecondition {
			return fmt.Errorf("stop job %s: %w", at.id, err)
		}
	}
	if closedPipe(cause) {
		return &exitError{status: 128 + int(syscall.SIGPIPE)}
	}
	return &writeError{cause}
}

func closedPipe(err error) bool {
	// ERROR_BROKEN_PIPE and ERROR_NO_DATA are Windows' words for it.
	return errors.Is(err, syscall.EPIPE) || isWindows && (errors.Is(err, syscall.Errno(109)) || errors.Is(err, syscall.Errno(232)))
}

// forward hands our signals to the job. One that comes before the job is
// accepted waits until it is, unless it cannot be yet; a second one then gives
// up. One that has ended an attempt ends the job, too.
func (at *attachment) forward(ctx context.Context, cancel context.CancelCauseFunc, signals <-chan os.Signal) {
	var interrupted time.Time
	for {
		var sig syscall.Signal
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			sig, _ = s.(syscall.Signal)
		case sig = <-at.retried:
		}
		if sig == syscall.SIGHUP && (at.term != nil && at.term.tty != nil || at.app.hungUp()) {
			at.hangUp(ctx, cancel)
			return
		}
		// While keys are the job's none is a signal, and whoever only looks on has none
		// to send: it is meant for rnx.
		if raw := at.term != nil && at.term.isRaw(); raw && !at.term.pressed(sig) || at.guest && !raw {
			cancel(at.endedBy(signalName(int(sig)), sig))
			return
		}
		if at.in != nil && at.in.sending.Load() {
			cancel(&exitError{status: 128 + int(sig), err: errors.New("interrupted before the job was accepted")})
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-at.known:
		case <-signals:
			cancel(&exitError{status: 128 + int(sig), err: errors.New("interrupted before the job ran")})
			return
		}
		again := sig == syscall.SIGINT && time.Since(interrupted) < secondInterrupt
		if sig == syscall.SIGINT {
			interrupted = time.Now()
		}
		err := at.pass(ctx, sig, again)
		if err != nil && ctx.Err() == nil && joblet.KindOf(err) != joblet.FailedPrecondition {
			at.app.note("job %s: %v", joblet.ShortID(at.id), err)
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
func (at *attachment) hangUp(ctx context.Context, cancel context.CancelCauseFunc) {
	if !at.guest && (at.in == nil || !at.in.sending.Load()) {
		select {
		case <-ctx.Done():
		case <-at.known:
		case <-time.After(acceptTime):
		}
	}
	cancel(at.endedBy(lostTerminal, sighup))
}

// endedBy is why rnx ends before its job.
func (at *attachment) endedBy(what string, sig syscall.Signal) error {
	at.mu.Lock()
	defer at.mu.Unlock()
	if at.id == "" {
		return &exitError{status: 128 + int(sig), err: fmt.Errorf("ended by %s", what)}
	}
	return &exitError{status: 128 + int(sig), err: fmt.Errorf("ended by %s; job %s goes on: see \"rnx job %s %[2]s\"", what, joblet.ShortID(at.id), at.again())}
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
	case !waiting && at.term != nil && at.term.press(sig): // Ctrl-C just before the job got the keys
		return nil
	case waiting:
		at.app.note("job %s does not run: canceling it", short)
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
		at.app.note("killing job %s", short)
		_, err := c.Stop(ctx, id, joblet.StopOptions{Signal: sigkill})
		return err
	case sig == syscall.SIGINT:
		at.app.note("sent SIGINT to job %s; Ctrl-C again within %v kills it", short, secondInterrupt)
	default:
		at.app.note("sent %s to job %s", signalName(int(sig)), short)
	}
	at.passed.Store(int32(sig))
	return c.Interrupt(ctx, id, int(sig))
}

// note tells the user something that is no failure.
func (a *app) note(format string, args ...any) {
	if !a.json {
		fmt.Fprintf(a.errOut, "rnx: %s\n", joblet.Shorten(fmt.Sprintf(format, args...)))
	}
}

const isWindows = runtime.GOOS == "windows"
