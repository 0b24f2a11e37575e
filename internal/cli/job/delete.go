package job

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/term"
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
	var yes bool
	cmd := &cobra.Command{
		Use:   "delete-all",
		Short: "Delete all ended jobs",
		Long: `Delete all jobs that have ended: their records, output and files. On a terminal, rnx
asks first, unless --yes is given.` + app.ExitStatusHelp,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), func(c *client.Client) error {
				if !yes && term.IsTerminal(a.In) && term.IsTerminal(a.ErrOut) {
					if agreed, err := agreesToDelete(cmd.Context(), a, c); err != nil || !agreed {
						return err
					}
				}
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
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// agreesToDelete asks the user on the terminal whether to delete all ended jobs. Without
// such jobs it does not ask.
func agreesToDelete(ctx context.Context, a *app.App, c *client.Client) (bool, error) {
	count, size, err := c.Prune(ctx, joblet.Filter{}, true)
	if err != nil {
		return false, err
	}
	if count == 0 {
		a.Note("no job has ended")
		return false, nil
	}
	question := fmt.Sprintf("Delete %s and %s of output and files?", countJobs(count), joblet.ReadableSize(size))
	if agreed, err := a.Confirm(question); err != nil || agreed {
		return agreed, err
	}
	a.Note("no job was deleted")
	return false, nil
}
