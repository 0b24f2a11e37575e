package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet/client"
)

func newDeleteCommand(a *app) *cobra.Command {
	return a.jobsCommand(&cobra.Command{
		Use:               "delete JOB…",
		Aliases:           []string{"rm"},
		Short:             "Delete ended jobs with their output",
		Long:              "Delete jobs that have ended: their records and output." + jobRefHelp,
		Example:           "  rnx job delete 3f2a",
		ValidArgsFunction: a.completeJobs(finalStates...),
	}, func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		return nil, c.Delete(ctx, ref)
	})
}

func newDeleteAllCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "delete-all",
		Short: "Delete all ended jobs",
		Long:  "Delete all jobs that have ended: their records and output." + exitStatusHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *client.Client) error {
				deleted, skipped, err := c.DeleteAll(cmd.Context())
				if err != nil {
					return err
				}
				if a.json {
					return a.writeJSON(struct {
						Deleted int `json:"deleted_count"`
						Skipped int `json:"skipped_count"`
					}{deleted, skipped})
				}
				return a.println(fmt.Sprintf("%d jobs deleted, %d have not ended", deleted, skipped))
			})
		},
	}
}
