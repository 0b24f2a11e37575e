package job

import (
	"context"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
	"github.com/joblet/joblet/internal/cli/session"
	"github.com/joblet/joblet/internal/cli/term"
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
	env   flags.Variables
	dir   string
	merge bool
}

func newExecCommand(a *app.App) *cobra.Command {
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
		ValidArgsFunction: a.CompleteFirstJob(joblet.Running),
		RunE: func(cmd *cobra.Command, args []string) error {
			return opt.exec(cmd.Context(), a, args[0], args[1:])
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	opt.add(f)
	f.StringArrayVarP(&opt.env.Given, "env", "e", nil, "set variable `NAME=VALUE` in addition to the job's, or pass on NAME from here (repeatable)")
	f.StringArrayVar(&opt.env.Files, "env-file", nil, "read variables from `FILE`, with # comments; --env takes precedence (repeatable)")
	f.BoolVar(&opt.merge, "merge", false, "merge stderr into stdout, in exact order, as 2>&1 does")
	f.StringVarP(&opt.dir, "workdir", "w", "", "working directory `DIR` in the job (default: the job's)")
	_ = cmd.RegisterFlagCompletionFunc("env-file", app.CompleteFiles)
	return cmd
}

func newShellCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:   "shell JOB",
		Short: "Open a shell in a running job",
		Long: `Open a shell in a running job: bash, or sh if there is no bash. The same as
"rnx job exec -it JOB bash".

JOB is an id, a unique prefix of an id, or a name.

Exit status: that of the shell; 128+N if signal N ended it, 125 if Joblet failed.`,
		Example:           `  rnx job shell web`,
		Args:              app.ExactlyOne("job"),
		ValidArgsFunction: a.CompleteFirstJob(joblet.Running),
		RunE: func(cmd *cobra.Command, args []string) error {
			opt := execOptions{ttyFlags: ttyFlags{tty: true, interactive: true}}
			err := opt.exec(cmd.Context(), a, args[0], []string{"bash"})
			if joblet.KindOf(err) == joblet.CommandNotFound {
				err = opt.exec(cmd.Context(), a, args[0], []string{"sh"})
			}
			return err
		},
	}
}

// exec runs a process in the job that ref names and ends as it does.
func (opt execOptions) exec(ctx context.Context, a *app.App, ref string, command []string) error {
	if a.JSON {
		return joblet.Errorf(joblet.InvalidArgument, "--json: what the process writes is shown as it is")
	}
	spec := joblet.ExecSpec{Command: command[0], Args: command[1:], WorkDir: opt.dir, MergeOutput: opt.merge}
	opt.env.Flag = "--env"
	var err error
	if spec.Env, err = opt.env.Read(os.LookupEnv); err != nil {
		return err
	}
	wanted, err := opt.wanted(term.IsTerminal(a.In) && term.IsTerminal(a.Out))
	if err != nil {
		return err
	}
	t := term.New(a.In, a.Out, nil)
	if wanted {
		spec.Terminal = t.Window()
		passTerm(&spec.Env)
	}
	// Only what is typed here is input that was not asked for.
	spec.Stdin = opt.interactive || wanted && t.TTY != nil
	if err := spec.Validate(); err != nil {
		return err
	}
	return session.Exec(ctx, a, ref, spec, t)
}
