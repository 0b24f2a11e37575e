package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

type listOptions struct {
	quiet  bool
	status []string
	name   string
	limit  int
}

func newListCommand(a *app) *cobra.Command {
	var opt listOptions
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List jobs, newest first",
		Long: `List jobs, newest first. EXIT is the status as a shell shows it: 128 plus the
signal's number for a job that a signal ended, 124 for one whose time was up.
With --json each line is an object.` + exitStatusHelp,
		Example: `  rnx job list --status=running
  rnx job list --limit=10 --json | jq -r .uuid
  rnx job delete $(rnx job list -q --status=failed)`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.list(cmd, opt) },
	}
	f := cmd.Flags()
	f.BoolVarP(&opt.quiet, "quiet", "q", false, "only the ids, in full")
	f.StringSliceVar(&opt.status, "status", nil, "only jobs in this state; may be given again")
	f.StringVar(&opt.name, "name", "", "only jobs of this name")
	f.IntVarP(&opt.limit, "limit", "n", 0, "at most so many; 0: all")
	states := joblet.States()
	names := make([]string, len(states))
	for i, s := range states {
		names[i] = s.String()
	}
	_ = cmd.RegisterFlagCompletionFunc("status", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (o listOptions) filter() (joblet.Filter, error) {
	f := joblet.Filter{Name: o.name, Limit: o.limit}
	if o.limit < 0 {
		return f, joblet.Errorf(joblet.InvalidArgument, "--limit %d: must not be negative", o.limit)
	}
	for _, name := range o.status {
		s, err := joblet.ParseState(name)
		if err != nil {
			return f, joblet.Errorf(joblet.InvalidArgument, "--status: %w", err)
		}
		f.States = append(f.States, s)
	}
	return f, nil
}

func (a *app) list(cmd *cobra.Command, opt listOptions) error {
	filter, err := opt.filter()
	if err != nil {
		return err
	}
	return a.with(cmd.Context(), func(c *client.Client) error {
		var jobs []joblet.Job // the columns' widths need all of them
		for j, err := range c.Jobs(cmd.Context(), filter) {
			switch {
			case err != nil:
				return err
			case opt.quiet:
				err = a.println(j.ID)
			case a.json:
				err = a.writeJSON(newJobJSON(j))
			default:
				jobs = append(jobs, j)
			}
			if err != nil {
				return err
			}
		}
		if opt.quiet || a.json {
			return nil
		}
		if len(jobs) == 0 && terminalWidth(a.errOut) > 0 {
			_, err := fmt.Fprintln(a.errOut, "no jobs")
			return err
		}
		return writeJobs(a.out, terminalWidth(a.out), jobs, time.Now())
	})
}

const maxNameColumn = 24

func writeJobs(w io.Writer, width int, jobs []joblet.Job, now time.Time) error {
	rows := [][]string{{"ID", "NAME", "STATUS", "EXIT", "STARTED", "DURATION", "RUNTIME", "COMMAND"}}
	for _, j := range jobs {
		rows = append(rows, []string{
			joblet.ShortID(j.ID), dash(j.Spec.Name, maxNameColumn), j.State.String(), exitText(j),
			formatTime(j.Started), jobDuration(j, now), dash(j.Spec.Runtime, maxNameColumn), printable(j.Spec.CommandLine()),
		})
	}
	return writeTable(w, width, rows)
}

// dash is s fit for a column, or "-".
func dash(s string, n int) string {
	if s == "" {
		return "-"
	}
	return cut(printable(s), n)
}

func (a *app) println(s string) error {
	_, err := io.WriteString(a.out, s+"\n")
	return err
}
