package job

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
)

func newUpdateCommand(a *app.App) *cobra.Command {
	var limits joblet.Limits
	cmd := jobsCommand(a, &cobra.Command{
		Use:   "update --LIMIT=VALUE… JOB…",
		Short: "Change limits of jobs",
		Long: `Change limits of running or waiting jobs. Limits that are not given stay as they
are. Either all given limits change or none. A memory limit below what the job
cannot release is refused.` + jobRefHelp,
		Example: `  rnx job update --max-memory=2G --max-cpu=150 3f2a
  rnx job update --max-iobps=20M web`,
		ValidArgsFunction: a.CompleteJobs(app.AliveStates...),
	}, func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		return shown(a)(c.Update(ctx, ref, limits))
	})
	cmd.Flags().SortFlags = false
	flags.AddLimits(cmd.Flags(), &limits)
	flags.AddDockerLimits(cmd.Flags(), &limits)
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if limits.IsZero() {
			return joblet.Errorf(joblet.InvalidArgument, "no limit given: name at least one, such as --max-memory=2G")
		}
		return nil
	}
	return cmd
}

func newPauseCommand(a *app.App) *cobra.Command {
	return jobsCommand(a, &cobra.Command{
		Use:   "pause JOB…",
		Short: "Pause all processes of jobs",
		Long: `Freeze all processes of jobs. They keep their memory, and their time limit runs on:
a --timeout also ends a paused job.` + jobRefHelp,
		Example:           `  rnx job pause 3f2a && rnx job resume 3f2a`,
		ValidArgsFunction: a.CompleteJobs(joblet.Running),
	}, func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		return shown(a)(c.Pause(ctx, ref))
	})
}

func newResumeCommand(a *app.App) *cobra.Command {
	return jobsCommand(a, &cobra.Command{
		Use:               "resume JOB…",
		Aliases:           []string{"unpause"},
		Short:             "Resume paused jobs",
		Long:              "Let jobs go on that were paused." + jobRefHelp,
		Example:           `  rnx job resume 3f2a`,
		ValidArgsFunction: a.CompleteJobs(joblet.Paused),
	}, func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		return shown(a)(c.Resume(ctx, ref))
	})
}
