package job

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/session"
	"github.com/joblet/joblet/internal/cli/term"
)

const detachHelp = `

All keys go to the job, including Ctrl-C. Ctrl-P Ctrl-Q detaches and leaves the
job running; --detach-keys or RNX_DETACH_KEYS sets other keys, such as "ctrl-]", or
none. Closing the window, a signal to rnx and a lost connection also leave the job
running.`

func newAttachCommand(a *app.App) *cobra.Command {
	var keys string
	cmd := &cobra.Command{
		Use:   "attach [flags] JOB",
		Short: "Attach this terminal to a job",
		Long: `Attach this terminal to the terminal of a running job. The current screen is drawn
first. Several clients may attach at once: all see the same output and may type, and
the terminal has the size of the smallest window.` + detachHelp + `

JOB is an id, a unique prefix of an id, or a name. A name refers to your own job
first, then to that of another owner.

Exit status: the job's own when it ends, 0 after the detach keys, 128+N when signal
N ended rnx, 125 when rnx failed.`,
		Example: `  rnx job run -dt --name=edit vim notes
  rnx job attach edit`,
		Args:              app.ExactlyOne("job"),
		ValidArgsFunction: a.CompleteJobs(joblet.Running),
		RunE: func(cmd *cobra.Command, args []string) error {
			detach, err := term.ParseKeys(keys)
			if err != nil {
				return err
			}
			if a.JSON {
				return joblet.Errorf(joblet.InvalidArgument, "--json: a terminal shows bytes as they are; see rnx job log --json")
			}
			return session.Attach(cmd.Context(), a, args[0], term.New(a.In, a.Out, detach))
		},
	}
	addDetachKeys(cmd, &keys)
	return cmd
}

func addDetachKeys(cmd *cobra.Command, keys *string) {
	deflt := term.DefaultDetachKeys
	if given, ok := os.LookupEnv("RNX_DETACH_KEYS"); ok {
		deflt = given
	}
	cmd.Flags().StringVar(keys, "detach-keys", deflt, "detach with `KEYS`, such as ctrl-],d, and leave the job running")
}
