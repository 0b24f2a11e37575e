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
	var last, failed int // exit statuses: of the last job, of the first that failed
	cmd := &cobra.Command{
		Use:   "wait JOB…|--label=LABEL",
		Short: "Wait for jobs to end",
		Long: `Wait for each job to end and print its exit status, or the job itself with --json.

With --label and no JOB, the command waits for all jobs that match, those that have
ended included, and prints the id and the exit status of each. It fails if there is
none.

Exit status: that of the last job, as of "rnx job run"; with --label, that of the
first job that failed; 1 if an error occurred.`,
		Example: `  rnx job wait $(rnx job run -d sleep 5)
  rnx job wait --label=sweep=42`,
		ValidArgsFunction: a.CompleteJobs(app.AliveStates...),
	}
	var byLabel selector
	do := func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		j, err := c.Wait(ctx, ref)
		if err != nil {
			return nil, err
		}
		return func() error {
			if last, _ = j.Status(); failed == 0 {
				failed = last
			}
			text := strconv.Itoa(last)
			switch {
			case a.JSON:
				return a.WriteJSON(jobview.NewJSON(j))
			case len(byLabel.labels) > 0:
				text = j.ID + " " + text
			}
			return a.Println(text)
		}, nil
	}
	jobsCommand(a, cmd, do)
	byLabel.add(a, cmd, do)
	wait := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := wait(cmd, args)
		status := last
		if len(byLabel.labels) > 0 {
			status = failed
		}
		if err != nil || status == 0 {
			return err
		}
		return &app.ExitError{Status: status}
	}
	return cmd
}
