package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

func newKillCommand(a *app) *cobra.Command {
	var signal string
	cmd := a.jobsCommand(&cobra.Command{
		Use:   "kill [flags] JOB…",
		Short: "Kill jobs, or send them a signal",
		Long: `Kill all processes of jobs and print the id of each once it has ended. With another
--signal, send that signal to PID 1 and do nothing else.` + jobRefHelp,
		Example: `  rnx job kill 3f2a
  rnx job kill --signal=HUP web`,
		ValidArgsFunction: a.completeJobs(aliveStates...),
	}, func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		sig, err := parseSignal(signal)
		if err != nil {
			return nil, err
		}
		if sig != sigkill {
			return nil, c.Signal(ctx, ref, sig)
		}
		return a.shown(c.Stop(ctx, ref, joblet.StopOptions{Signal: sigkill, Grace: 0}))
	})
	cmd.Flags().StringVarP(&signal, "signal", "s", "KILL", "signal to send")
	return cmd
}
