package job

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
)

func newStopCommand(a *app.App) *cobra.Command {
	var signal string
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "stop [flags] JOB…|--label=LABEL",
		Short: "Stop jobs: signal, grace period, kill",
		Long: `Stop jobs: send a signal to PID 1, and kill all processes that remain after the
grace period. The kernel drops signals that PID 1 does not handle, so a job such as
"sleep 60" is killed at once. Prints the id of each job once it has ended.` + labelHelp + jobRefHelp,
		Example: `  rnx job stop 3f2a
  rnx job stop --signal=INT --grace=1m web
  rnx job stop --label=sweep=42`,
		ValidArgsFunction: a.CompleteJobs(app.AliveStates...),
	}
	do := func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		sig, err := flags.ParseSignal(signal)
		if err != nil {
			return nil, err
		}
		return shown(a)(c.Stop(ctx, ref, joblet.StopOptions{Signal: sig, Grace: grace}))
	}
	jobsCommand(a, cmd, do)
	(&selector{states: app.AliveStates}).add(a, cmd, do)
	cmd.Flags().StringVarP(&signal, "signal", "s", "TERM", "first signal")
	flags.DurationVar(cmd.Flags(), &grace, "grace", "g", joblet.DefaultGrace, "time between the signal and the kill")
	return cmd
}
