package job

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/jobview"
)

func newWaitCommand(a *app.App) *cobra.Command {
	var last int
	cmd := jobsCommand(a, &cobra.Command{
		Use:   "wait JOB…",
		Short: "Wait for jobs to end",
		Long: `Wait for each job to end and print its exit status, or the job itself with --json.

Exit status: that of the last job, as of "rnx job run"; 1 if an error occurred.`,
		Example:           "  rnx job wait $(rnx job run -d sleep 5)",
		ValidArgsFunction: a.CompleteJobs(app.AliveStates...),
	}, func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		j, err := c.Wait(ctx, ref)
		if err != nil {
			return nil, err
		}
		return func() error {
			if last, _ = j.Status(); a.JSON {
				return a.WriteJSON(jobview.NewJSON(j))
			}
			return a.Println(strconv.Itoa(last))
		}, nil
	})
	wait := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := wait(cmd, args); err != nil || last == 0 {
			return err
		}
		return &app.ExitError{Status: last}
	}
	return cmd
}
