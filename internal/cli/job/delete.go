package job

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
)

func newDeleteCommand(a *app.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "delete JOB…|--label=LABEL",
		Aliases:           []string{"rm"},
		Short:             "Delete ended jobs with their output",
		Long:              "Delete jobs that have ended: their records and output." + labelHelp + jobRefHelp,
		Example:           "  rnx job delete 3f2a\n  rnx job delete --label=sweep=42",
		ValidArgsFunction: a.CompleteJobs(app.FinalStates...),
	}
	do := func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		return nil, c.Delete(ctx, ref)
	}
	jobsCommand(a, cmd, do)
	(&selector{states: app.FinalStates}).add(a, cmd, do)
	return cmd
}

func newDeleteAllCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:   "delete-all",
		Short: "Delete all ended jobs",
		Long:  "Delete all jobs that have ended: their records and output." + app.ExitStatusHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), func(c *client.Client) error {
				deleted, skipped, err := c.DeleteAll(cmd.Context())
				if err != nil {
					return err
				}
				if a.JSON {
					return a.WriteJSON(struct {
						Deleted int `json:"deleted_count"`
						Skipped int `json:"skipped_count"`
					}{deleted, skipped})
				}
				return a.Println(fmt.Sprintf("%d jobs deleted, %d have not ended", deleted, skipped))
			})
		},
	}
}
