package job

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/jobview"
)

func newStatusCommand(a *app.App) *cobra.Command {
	first := true
	cmd := jobsCommand(a, &cobra.Command{
		Use:     "status JOB…",
		Aliases: []string{"inspect"},
		Short:   "Show details of jobs",
		Long:    "Show details of jobs. With --json each line is an object." + formatHelp + jobRefHelp,
		Example: `  rnx job status 3f2a
  rnx job status --format='{{.Status}} {{.ExitCode}}' 3f2a
  rnx job status --json 3f2a | jq .exit_code`,
		ValidArgsFunction: a.CompleteJobs(),
	}, func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		t, err := parseFormat(a.Template) // without an error, after PreRunE
		if err != nil {
			return nil, err
		}
		j, err := c.Job(ctx, ref)
		if err != nil {
			return nil, err
		}
		return func() error {
			switch {
			case t != nil:
				return writeFormat(a, t, j)
			case a.JSON:
				return a.WriteJSON(jobview.NewJSON(j))
			}
			if !first {
				if err := a.Println(""); err != nil {
					return err
				}
			}
			first = false
			return jobview.WriteStatus(a.Out, a.Colors(a.Out), j, time.Now())
		}, nil
	})
	app.AllowTemplate(cmd)
	cmd.PreRunE = func(*cobra.Command, []string) error {
		_, err := parseFormat(a.Template)
		return err
	}
	return cmd
}
