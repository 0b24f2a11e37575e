package job

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
)

func newCancelCommand(a *app.App) *cobra.Command {
	return jobsCommand(a, &cobra.Command{
		Use:   "cancel JOB…",
		Short: "Cancel waiting and repeating jobs",
		Long: `Cancel jobs that wait in the queue or for their time. Runs of a repeating job that
have started continue. To end a running job, use "rnx job stop". Prints the id of
each job.` + jobRefHelp,
		Example: `  rnx job cancel 3f2a
  rnx job cancel $(rnx job list -q --status=pending)`,
		ValidArgsFunction: a.CompleteJobs(app.WaitingStates...),
	}, func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		return shown(a)(c.Cancel(ctx, ref))
	})
}
