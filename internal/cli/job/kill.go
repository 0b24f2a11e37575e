package job

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
)

func newKillCommand(a *app.App) *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use:   "kill [flags] JOB…|--label=LABEL",
		Short: "Kill jobs, or send them a signal",
		Long: `Kill all processes of jobs and print the id of each once it has ended. With another
--signal, send that signal to PID 1 and do nothing else.` + labelHelp + jobRefHelp,
		Example: `  rnx job kill 3f2a
  rnx job kill --signal=HUP web
  rnx job kill --label=sweep=42`,
		ValidArgsFunction: a.CompleteJobs(app.AliveStates...),
	}
	do := func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		sig, err := flags.ParseSignal(signal)
		if err != nil {
			return nil, err
		}
		if sig != flags.SIGKILL {
			return nil, c.Signal(ctx, ref, sig)
		}
		return shown(a)(c.Stop(ctx, ref, joblet.StopOptions{Signal: flags.SIGKILL, Grace: 0}))
	}
	jobsCommand(a, cmd, do)
	byLabel := &selector{states: app.AliveStates}
	byLabel.add(a, cmd, do)
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if sig, err := flags.ParseSignal(signal); err != nil {
			return err
		} else if sig != flags.SIGKILL { // a job that waits has no process
			byLabel.states = []joblet.State{joblet.Running, joblet.Paused, joblet.Stopping}
		}
		return nil
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", "KILL", "signal to send")
	return cmd
}
