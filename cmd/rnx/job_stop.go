package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

func newStopCommand(a *app) *cobra.Command {
	var signal string
	var grace time.Duration
	cmd := a.jobsCommand(&cobra.Command{
		Use:   "stop [flags] JOB…",
		Short: "End jobs: a signal, some time, then a kill",
		Long: `End jobs: PID 1 gets a signal, and what is left of the job after the grace
period is killed. The kernel drops a signal for which a job's PID 1 has no
handler: such a job, sleep for one, is killed at once.
Prints the id of each job once it has ended.` + jobRefHelp,
		Example: `  rnx job stop 3f2a
  rnx job stop --signal=INT --grace=1m web`,
		ValidArgsFunction: a.completeJobs(aliveStates...),
	}, func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		sig, err := parseSignal(signal)
		if err != nil {
			return nil, err
		}
		if grace < 0 {
			return nil, joblet.Errorf(joblet.InvalidArgument, "--grace %v: must not be negative", grace)
		}
		return a.shown(c.Stop(ctx, ref, joblet.StopOptions{Signal: sig, Grace: grace}))
	})
	cmd.Flags().StringVarP(&signal, "signal", "s", "TERM", "first signal")
	cmd.Flags().DurationVarP(&grace, "grace", "g", joblet.DefaultGrace, "time from the signal to the kill")
	return cmd
}
