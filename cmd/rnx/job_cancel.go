package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet/client"
)

func newCancelCommand(a *app) *cobra.Command {
	return a.jobsCommand(&cobra.Command{
		Use:   "cancel JOB…",
		Short: "Cancel jobs that do not run yet, or repeat",
		Long: `Cancel jobs that wait for their turn or their time: they will not run. Of a job
that repeats, runs under way go on. A job that runs is ended by "rnx job stop".
Prints the id of each job.` + jobRefHelp,
		Example: `  rnx job cancel 3f2a
  rnx job cancel $(rnx job list -q --status=pending)`,
		ValidArgsFunction: a.completeJobs(waitingStates...),
	}, func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		return a.shown(c.Cancel(ctx, ref))
	})
}
