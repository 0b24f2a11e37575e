package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

// ttyFlags say whether something runs in a terminal.
type ttyFlags struct {
	tty, noTTY, interactive bool
}

func (o *ttyFlags) add(f *pflag.FlagSet) {
	f.BoolVarP(&o.tty, "tty", "t", false, "allocate a terminal (default when stdin and stdout are terminals)")
	f.BoolVarP(&o.noTTY, "no-tty", "T", false, "allocate no terminal")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "connect standard input; with -t, the keyboard")
}

// wanted reports whether it gets a terminal; byDefault, when nothing is said.
func (o *ttyFlags) wanted(byDefault bool) (bool, error) {
	switch {
	case o.tty && o.noTTY:
		return false, joblet.Errorf(joblet.InvalidArgument, "--tty and --no-tty: one of them")
	case o.tty || o.noTTY:
		return o.tty, nil
	}
	return byDefault && !o.interactive, nil
}

type execOptions struct {
	ttyFlags
	env   variables
	dir   string
	merge bool
}

func newExecCommand(a *app) *cobra.Command {
	var opt execOptions
	cmd := &cobra.Command{
		Use:   "exec [flags] JOB COMMAND [ARG…]",
		Short: "Run another process in a running job",
		Long: `Run another process in a running job. The process sees the job's processes and
files, has its environment and counts against its limits. Its output appears here
and not in the job's log.

If stdin and stdout are a terminal, the process gets a terminal of its own.
Otherwise it gets none, and standard input only with -i. The process ends with the
job, and when rnx or the daemon exits: it gets SIGHUP, and SIGKILL two seconds
later.

Flags end at JOB; everything after it belongs to the process. Without a terminal,
Ctrl-C sends SIGINT, and a second one within two seconds abandons the process, as
does a signal that cannot be delivered because the process does not read its input.

Exit status: that of the process; 128+N if signal N ended it, 125 if Joblet
failed, 126 if the command cannot be executed, 127 if it does not exist.`,
		Example: `  rnx job exec web ps aux
  rnx job exec -it web bash
  rnx job exec -i web sh -c 'cat > /tmp/x' < file`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return joblet.Errorf(joblet.InvalidArgument, "a job and a command are needed; see %q", cmd.CommandPath()+" --help")
			}
			return nil
		},
		ValidArgsFunction: a.completeFirstJob(joblet.Running),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.exec(cmd.Context(), opt, args[0], args[1:])
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	opt.add(f)
	f.StringArrayVarP(&opt.env.given, "env", "e", nil, "set variable `NAME=VALUE` in addition to the job's, or pass on NAME from here (repeatable)")
	f.StringArrayVar(&opt.env.files, "env-file", nil, "read variables from `FILE`, with # comments; --env takes precedence (repeatable)")
	f.BoolVar(&opt.merge, "merge", false, "merge stderr into stdout, in exact order, as 2>&1 does")
	f.StringVarP(&opt.dir, "workdir", "w", "", "working directory `DIR` in the job (default: the job's)")
	_ = cmd.RegisterFlagCompletionFunc("env-file", completeFiles)
	return cmd
}

func newShellCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "shell JOB",
		Short: "Open a shell in a running job",
		Long: `Open a shell in a running job: bash, or sh if there is no bash. The same as
"rnx job exec -it JOB bash".

JOB is an id, a unique prefix of an id, or a name.

Exit status: that of the shell; 128+N if signal N ended it, 125 if Joblet failed.`,
		Example:           `  rnx job shell web`,
		Args:              exactlyOne("job"),
		ValidArgsFunction: a.completeFirstJob(joblet.Running),
		RunE: func(cmd *cobra.Command, args []string) error {
			opt := execOptions{ttyFlags: ttyFlags{tty: true, interactive: true}}
			err := a.exec(cmd.Context(), opt, args[0], []string{"bash"})
			if joblet.KindOf(err) == joblet.CommandNotFound {
				err = a.exec(cmd.Context(), opt, args[0], []string{"sh"})
			}
			return err
		},
	}
}

// completeFirstJob offers jobs for the first argument and files for the others.
func (a *app) completeFirstJob(states ...joblet.State) cobra.CompletionFunc {
	jobs := a.completeJobs(states...)
	return func(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(given) > 0 {
			return completeFiles(cmd, given, prefix)
		}
		return jobs(cmd, given, prefix)
	}
}

// exec runs a process in the job that ref names and ends as it does.
func (a *app) exec(ctx context.Context, opt execOptions, ref string, command []string) error {
	if a.json {
		return joblet.Errorf(joblet.InvalidArgument, "--json: what the process writes is shown as it is")
	}
	a.noteTerminals()
	spec := joblet.ExecSpec{Command: command[0], Args: command[1:], WorkDir: opt.dir, MergeOutput: opt.merge}
	opt.env.flag = "--env"
	var err error
	if spec.Env, err = opt.env.read(os.LookupEnv); err != nil {
		return err
	}
	wanted, err := opt.wanted(isTerminal(a.in) && isTerminal(a.out))
	if err != nil {
		return err
	}
	t := a.terminal(nil)
	if wanted {
		spec.Terminal = t.window()
		passTerm(&spec.Env)
	}
	// Only what is typed here is input that was not asked for.
	spec.Stdin = opt.interactive || wanted && t.tty != nil
	if err := spec.Validate(); err != nil {
		return err
	}
	err = a.with(ctx, func(c *client.Client) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		signals := notifyEnd()
		defer signal.Stop(signals)
		catchPipeSignal()
		x, err := startExec(ctx, cancel, signals, func() (*client.Exec, error) { return c.Exec(ctx, ref, spec) })
		if err != nil {
			return err
		}
		defer x.Close()
		if wanted {
			signal.Notify(signals, terminalSignals...)
			defer t.end()
			defer context.AfterFunc(ctx, t.cutOff)()
			if err := t.makeRaw(); err != nil {
				return err
			}
			t.connect(&line{typed: func(p []byte) error { _, err := x.Write(p); return err }, resize: x.Resize, size: spec.Terminal})
			t.guard(func() { t.watchWindow(ctx) })
			if spec.Stdin {
				t.guard(func() { t.typing(ctx, func() {}, func() {}, func() { cancel(errExecHungUp) }) })
			}
		} else if spec.Stdin {
			go func() { // ends with the process
				if _, err := io.Copy(x, a.stdin()); err == nil {
					_ = x.CloseInput() // Wait tells what becomes of the process
				} else if ctx.Err() == nil {
					cancel(fmt.Errorf("the process's standard input: %w", err))
				}
			}()
		}
		t.guard(func() { forwardSignals(ctx, cancel, signals, x, wanted, spec.Stdin) })
		exit, err := x.Wait(func(s client.Stream, p []byte) error {
			w := a.out
			switch {
			case wanted:
				w = t
			case s == client.Stderr:
				w = a.errOut
			}
			_, err := w.Write(p)
			return err
		})
		t.end()
		switch cause, _ := errors.AsType[*exitError](context.Cause(ctx)); {
		case t.isStuck() && cause != nil:
			return &exitError{status: cause.status}
		case err == nil && exit.Status() == 0:
			return nil
		case err == nil:
			if wanted && t.tty != nil && exit.Status() == 128+sigint { // Ctrl-C, as in attachment.run
				fmt.Fprintln(t.out)
			}
			return &exitError{status: exit.Status()}
		case ctx.Err() != nil && context.Cause(ctx) != nil:
			return context.Cause(ctx)
		case joblet.KindOf(err) == joblet.Unavailable:
			return fmt.Errorf("lost the daemon, and the process with it: %w", err)
		case closedPipe(err):
			return &exitError{status: 128 + int(syscall.SIGPIPE)}
		}
		return err
	})
	if _, ok := errors.AsType[*exitError](err); err != nil && !ok && a.hungUp() {
		return errExecHungUp
	}
	return err
}

// errExecHungUp is why rnx ends before the process when its terminal has gone away.
var errExecHungUp = &exitError{status: 128 + sighup, err: errors.New("ended by " + lostTerminal + ", and the process with rnx")}

// startExec starts a process. A signal meanwhile is for rnx: a job that stops or
// refuses new processes may keep it waiting.
func startExec(ctx context.Context, cancel context.CancelCauseFunc, signals <-chan os.Signal, start func() (*client.Exec, error)) (*client.Exec, error) {
	started, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case s := <-signals:
			sig, _ := s.(syscall.Signal)
			cancel(&exitError{status: 128 + int(sig), err: errors.New("interrupted before the process ran")})
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
			cancel(&exitError{status: 128 + int(sig), err: errors.New("ended by " + signalName(int(sig)) + ", and the process with rnx")})
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
				cancel(&exitError{status: 128 + int(sig), err: errors.New("ended by " + signalName(int(sig)) + ", which could not get to the process past its input, and the process with rnx")})
			}
		}()
	}
}

// passTerm adds the kind of our terminal to a job's variables, unless they say
// one.
func passTerm(env *map[string]string) {
	if _, given := (*env)["TERM"]; given {
		return
	}
	if kind := os.Getenv("TERM"); kind != "" {
		if *env == nil {
			*env = map[string]string{}
		}
		(*env)["TERM"] = kind
	}
}
