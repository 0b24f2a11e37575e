package job

import (
	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
)

func newSignalCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:   "signal JOB SIGNAL",
		Short: "Send a signal to a job",
		Long: `Send a signal, by name or number, to PID 1 of a job. The kernel delivers only signals
that PID 1 handles, except KILL and STOP (pid_namespaces(7)).` + jobRefHelp,
		Example: `  rnx job signal web HUP
  rnx job signal 3f2a SIGUSR1`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return joblet.Errorf(joblet.InvalidArgument, "%d arguments given: a job and a signal are needed; see %q", len(args), cmd.CommandPath()+" --help")
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(given) == 1 {
				return []string{"HUP", "INT", "QUIT", "USR1", "USR2", "TERM", "STOP", "CONT", "WINCH", "KILL"}, cobra.ShellCompDirectiveNoFileComp
			}
			return a.CompleteJobs(app.AliveStates...)(cmd, given, prefix)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			sig, err := flags.ParseSignal(args[1])
			if err != nil {
				return err
			}
			return a.With(cmd.Context(), func(c *client.Client) error { return c.Signal(cmd.Context(), args[0], sig) })
		},
	}
}
