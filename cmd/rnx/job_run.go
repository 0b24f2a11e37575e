package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

type runOptions struct {
	detach    bool
	env       []string
	secretEnv []string
	spec      joblet.Spec
}

func newRunCommand(a *app) *cobra.Command {
	var opt runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] COMMAND [ARG…]",
		Short: "Run a command as a job",
		Long: `Run a command as PID 1 of a job of its own and stay attached to it: what it
writes to stdout and stderr appears here, byte for byte, while it runs.

Flags stop at the command; all behind it is the job's. Ctrl-C sends SIGINT to
the job, a second one within two seconds kills it; SIGTERM and SIGHUP go to the
job as well. When the reader of rnx's output goes away, as in "| head -1", the
job is killed. When the daemon goes away, rnx finds it again, or its successor.

With --json each line on stdout is an object: {"event": "started", "output",
"gap" or "ended", …}; output has stream, offset, time, and data, or data_base64
for bytes that are not UTF-8. With --detach it is one object, the job.

Exit status: the job's own, 128+N when signal N ended it, 124 when its time was
up, 125 when Joblet failed, 126 when the command cannot be executed, 127 when
there is no such command.`,
		Example: `  rnx job run ps aux
  rnx job run --runtime=python-3.11-ml bash -c "sleep 30 & sleep 40 & ps aux"
  rnx job run -d --name=web --env PORT=8080 --timeout=1h ./server --verbose
  rnx job run -e HOME -e LANG=C env`,
		Args: atLeastOne("command"),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := opt.makeSpec(args, os.LookupEnv)
			if err != nil {
				return err
			}
			if opt.detach {
				return a.runDetached(cmd.Context(), spec)
			}
			return a.runAttached(cmd.Context(), spec)
		},
	}
	opt.addFlags(cmd.Flags())
	_ = cmd.RegisterFlagCompletionFunc("runtime", a.completeRuntimes)
	cmd.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault // names of files, as for any command
	}
	return cmd
}

func (o *runOptions) addFlags(f *pflag.FlagSet) {
	f.SetInterspersed(false)
	f.BoolVarP(&o.detach, "detach", "d", false, "print the job's id and leave it running")
	f.StringArrayVarP(&o.env, "env", "e", nil, "NAME=VALUE for the job, or NAME to pass on the one here; may be given again")
	f.StringArrayVarP(&o.secretEnv, "secret-env", "s", nil, "the same, never stored or shown")
	f.StringVarP(&o.spec.WorkDir, "workdir", "w", "", "directory in the job to start in (default "+joblet.DefaultWorkDir+")")
	f.StringVar(&o.spec.Runtime, "runtime", "", "installed runtime to run in (default: the host's programs)")
	f.StringVar(&o.spec.Name, "name", "", "a name to find the job by")
	f.DurationVar(&o.spec.Timeout, "timeout", 0, "end the job after so long, such as 90s or 2h; 0: never")
	f.BoolVar(&o.spec.Init, "init", false, "a small reaper as PID 1, the command as its child")
}

// makeSpec returns what the command line asks for; lookup is os.LookupEnv.
func (o runOptions) makeSpec(args []string, lookup func(string) (string, bool)) (joblet.Spec, error) {
	s := o.spec
	s.Command, s.Args = args[0], args[1:]
	var err error
	if s.Env, err = environment("--env", o.env, lookup); err != nil {
		return s, err
	}
	if s.SecretEnv, err = environment("--secret-env", o.secretEnv, lookup); err != nil {
		return s, err
	}
	return s, s.Validate()
}

func environment(flag string, given []string, lookup func(string) (string, bool)) (map[string]string, error) {
	if len(given) == 0 {
		return nil, nil
	}
	env := make(map[string]string, len(given))
	for _, g := range given {
		name, value, ok := strings.Cut(g, "=")
		if err := joblet.ValidEnvName(name); err != nil {
			return nil, joblet.Errorf(joblet.InvalidArgument, "%s: %w", flag, err)
		}
		if !ok {
			if value, ok = lookup(name); !ok {
				return nil, joblet.Errorf(joblet.InvalidArgument, "%s %s: there is no such variable here to pass on", flag, name)
			}
		}
		env[name] = value
	}
	return env, nil
}

// runStatus returns with which status "job run" ends after err.
func runStatus(err error) int {
	switch joblet.KindOf(err) {
	case joblet.CommandNotFound:
		return joblet.StatusNotFound
	case joblet.NotExecutable:
		return joblet.StatusNotExecutable
	}
	return joblet.StatusFailure
}

func (a *app) runDetached(ctx context.Context, spec joblet.Spec) error {
	return a.with(ctx, func(c *client.Client) error {
		j, err := c.Run(ctx, spec)
		if err != nil {
			return err
		}
		return a.show(j)
	})
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

// attachment is rnx while it follows the job that it has started.
type attachment struct {
	app *app
	out output
	off int64 // output up to here is written

	mu     sync.Mutex // protects what follows
	client *client.Client
	id     string // empty until the job has started

	known chan struct{} // closed when id is set
}

func (a *app) runAttached(ctx context.Context, spec joblet.Spec) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	at := &attachment{
		app: a, client: c, known: make(chan struct{}),
		out: output{stdout: a.out, stderr: a.errOut, json: a.json},
	}
	// The connections end with the process, whose next act is to exit.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Before the request: from then on a signal must not leave the job alone.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	catchPipeSignal()
	go at.forward(ctx, cancel, signals)

	job, err := at.follow(c.RunAttached(ctx, spec))
	for err != nil && at.lost(err) {
		if job, err = at.reattach(ctx, err); err != nil {
			err = fmt.Errorf("lost the daemon: %w; job %s goes on: see \"rnx job log -f %[2]s\"", err, joblet.ShortID(at.id))
			break
		}
	}
	var w *writeError
	switch {
	case errors.As(err, &w):
		return at.abandon(ctx, w.err)
	case ctx.Err() != nil && context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	}
	return a.verdict(job)
}

// verdict turns the job's end into rnx's.
func (a *app) verdict(j joblet.Job) error {
	status, ended := jobStatus(j)
	if !ended {
		return joblet.Errorf(joblet.Internal, "job %s is %v at the end of its output", joblet.ShortID(j.ID), j.State)
	}
	e := &exitError{status: status}
	switch {
	case j.State == joblet.TimedOut:
		e.err = fmt.Errorf("job %s: its time was up after %v", joblet.ShortID(j.ID), j.Spec.Timeout)
	case j.Reason != "":
		e.err = fmt.Errorf("job %s: %s", joblet.ShortID(j.ID), j.Reason)
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
func (at *attachment) follow(events func(func(client.Event, error) bool)) (joblet.Job, error) {
	for event, err := range events {
		if err != nil {
			return joblet.Job{}, err
		}
		if e, ok := event.(client.Started); ok {
			at.mu.Lock()
			at.id = e.Job.ID
			at.mu.Unlock()
			close(at.known)
		}
		if err := at.out.event(event); err != nil {
			return joblet.Job{}, &writeError{err}
		}
		switch e := event.(type) {
		case client.Output:
			at.off = e.Offset + int64(len(e.Data))
		case client.Ended:
			return e.Job, nil
		}
	}
	return joblet.Job{}, joblet.Errorf(joblet.Internal, "the job's output ended without a word on the job")
}

func (at *attachment) conn() *client.Client {
	at.mu.Lock()
	defer at.mu.Unlock()
	return at.client
}

// lost reports whether err is the daemon's going away while the job runs.
func (at *attachment) lost(err error) bool {
	return at.id != "" && joblet.KindOf(err) == joblet.Unavailable
}

// reattach finds the daemon, or its successor, and goes on where the output
// was cut.
func (at *attachment) reattach(ctx context.Context, err error) (joblet.Job, error) {
	deadline := time.Now().Add(reattachFor)
	for {
		c, dialErr := at.app.connect(ctx)
		if dialErr == nil {
			at.mu.Lock()
			at.client.Close()
			at.client = c
			at.mu.Unlock()
			before := at.off
			job, followErr := at.follow(c.Follow(ctx, at.id, joblet.LogOptions{Offset: at.off, Follow: true}))
			if followErr == nil || !at.lost(followErr) || at.off > before {
				return job, followErr
			}
			dialErr = followErr
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

// forward hands our signals to the job. One that comes before the job runs
// waits until it does; a second one then gives up.
func (at *attachment) forward(ctx context.Context, cancel context.CancelCauseFunc, signals <-chan os.Signal) {
	var interrupted time.Time
	for {
		var sig syscall.Signal
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			sig, _ = s.(syscall.Signal)
		}
		select {
		case <-ctx.Done():
			return
		case <-at.known:
		case <-signals:
			cancel(&exitError{status: 128 + int(sig), err: errors.New("interrupted before the job ran")})
			return
		}
		id, short := at.id, joblet.ShortID(at.id)
		var err error
		if sig == syscall.SIGINT && time.Since(interrupted) < secondInterrupt {
			at.app.note("killing job %s", short)
			_, err = at.conn().Stop(ctx, id, joblet.StopOptions{Signal: sigkill})
		} else {
			if sig == syscall.SIGINT {
				interrupted = time.Now()
				at.app.note("sent SIGINT to job %s; Ctrl-C again within %v kills it", short, secondInterrupt)
			} else {
				at.app.note("sent %s to job %s", signalName(int(sig)), short)
			}
			err = at.conn().Signal(ctx, id, int(sig))
		}
		if err != nil && ctx.Err() == nil && joblet.KindOf(err) != joblet.FailedPrecondition {
			at.app.note("job %s: %v", short, err)
		}
	}
}

// note tells the user something that is no failure.
func (a *app) note(format string, args ...any) {
	if !a.json {
		fmt.Fprintf(a.errOut, "rnx: "+format+"\n", args...)
	}
}

const isWindows = runtime.GOOS == "windows"
