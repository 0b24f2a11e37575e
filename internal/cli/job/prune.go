package job

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
)

type pruneOptions struct {
	olderThan      string
	all, dryRun    bool
	status, labels []string
}

func newPruneCommand(a *app.App) *cobra.Command {
	var opt pruneOptions
	cmd := &cobra.Command{
		Use:   "prune --older-than=DURATION|--all [flags]",
		Short: "Delete old ended jobs",
		Long:  `Delete ended jobs that match all flags, with their records, output and files.` + app.ExitStatusHelp,
		Example: `  rnx job prune --older-than=7d
  rnx job prune --older-than=24h --status=completed --label=team=a --dry-run`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := opt.filter(time.Now())
			if err != nil {
				return err
			}
			return a.With(cmd.Context(), func(c *client.Client) error {
				deleted, freed, err := c.Prune(cmd.Context(), filter, opt.dryRun)
				if err != nil {
					return err
				}
				if a.JSON {
					return a.WriteJSON(struct {
						Deleted int   `json:"deleted_count"`
						Freed   int64 `json:"freed_bytes"`
						DryRun  bool  `json:"dry_run,omitempty"`
					}{deleted, freed, opt.dryRun})
				}
				return a.Println(pruneText(deleted, freed, opt.dryRun))
			})
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&opt.olderThan, "older-than", "", "only jobs that ended at least `DURATION` ago, such as 12h or 7d")
	f.BoolVar(&opt.all, "all", false, "regardless of when they ended")
	f.StringSliceVar(&opt.status, "status", nil, "only jobs in `STATE` (repeatable)")
	f.StringArrayVarP(&opt.labels, "label", "l", nil, "only jobs with label `NAME=VALUE`, or NAME with any value (repeatable)")
	f.BoolVar(&opt.dryRun, "dry-run", false, "count the jobs and delete none")
	_ = cmd.RegisterFlagCompletionFunc("status", app.CompleteStates(app.FinalStates...))
	return cmd
}

func (o pruneOptions) filter(now time.Time) (f joblet.Filter, err error) {
	switch {
	case o.all && o.olderThan != "":
		return f, joblet.Errorf(joblet.InvalidArgument, "--all and --older-than exclude each other")
	case o.olderThan != "":
		age, err := flags.ParseSpan(o.olderThan)
		if err != nil {
			return f, joblet.Errorf(joblet.InvalidArgument, "--older-than: %w", err)
		}
		f.EndedBefore = now.Add(-age)
	case !o.all:
		return f, joblet.Errorf(joblet.InvalidArgument, "which jobs? Give --older-than=DURATION, such as 7d, or --all")
	}
	if f.States, err = flags.ParseStates(o.status); err != nil {
		return f, err
	}
	for _, s := range f.States {
		if !s.Final() {
			return f, joblet.Errorf(joblet.InvalidArgument, "--status: a job that is %v has not ended", s)
		}
	}
	f.Labels, err = flags.ParseLabelMatches(o.labels)
	return f, err
}

func pruneText(deleted int, freed int64, dryRun bool) string {
	if dryRun {
		return fmt.Sprintf("%s would be deleted, %s freed", countJobs(deleted), joblet.ReadableSize(freed))
	}
	return fmt.Sprintf("%s deleted, %s freed", countJobs(deleted), joblet.ReadableSize(freed))
}

// countJobs returns "1 job", "2 jobs" and so on.
func countJobs(n int) string {
	if n == 1 {
		return "1 job"
	}
	return fmt.Sprintf("%d jobs", n)
}
