package job

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
	"github.com/joblet/joblet/internal/cli/jobview"
	"github.com/joblet/joblet/internal/cli/term"
	"github.com/joblet/joblet/internal/table"
)

type listOptions struct {
	quiet          bool
	status, labels []string
	name           string
	since          string
	parent, before string // ids, prefixes of ids, or names of jobs
	limit          int
}

func newListCommand(a *app.App) *cobra.Command {
	var opt listOptions
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List jobs, newest first",
		Long: `List jobs, newest first. EXIT is the status as a shell reports it: 128+N if signal
N ended the job, 124 if it timed out. STARTED of a SCHEDULED job is its next start.
A terminal shows the columns that fit it. With --json each line is an object.

--since takes a time (2026-01-31T15:04, RFC 3339) or an age (90s, 2h30m, 3d). Use
--limit and --before for pages: pass the last job of one page to get the next.` + formatHelp + app.ExitStatusHelp,
		Example: `  rnx job list --status=running
  rnx job list --label=team=a --since=2h
  rnx job list --limit=20 --before=3f2a
  rnx job list --format='{{short .UUID}} {{.ExitCode}} {{join .Args " "}}'
  rnx job list --limit=10 --json | jq -r .uuid
  rnx job delete $(rnx job list -q --status=failed)`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return listJobs(cmd.Context(), a, opt) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringSliceVar(&opt.status, "status", nil, "only jobs in `STATE` (repeatable)")
	f.StringVar(&opt.name, "name", "", "only jobs called `NAME`")
	f.StringArrayVarP(&opt.labels, "label", "l", nil, "only jobs with label `NAME=VALUE`, or NAME with any value (repeatable)")
	f.StringVar(&opt.since, "since", "", "only jobs created at or after `TIME`")
	f.StringVar(&opt.parent, "parent", "", "only runs of the repeating `JOB`")
	f.IntVarP(&opt.limit, "limit", "n", 0, "at most `N` jobs; 0: all")
	f.StringVar(&opt.before, "before", "", "only jobs older than `JOB`")
	f.BoolVarP(&opt.quiet, "quiet", "q", false, "print full ids only")
	f.BoolP("all", "a", true, "list all jobs, as without it")
	f.Lookup("all").Hidden = true // docker ps -a
	app.AllowTemplate(cmd)
	_ = cmd.RegisterFlagCompletionFunc("status", app.CompleteStates())
	_ = cmd.RegisterFlagCompletionFunc("parent", a.CompleteJobs())
	_ = cmd.RegisterFlagCompletionFunc("before", a.CompleteJobs())
	return cmd
}

// filter returns what the flags select, without --parent and --before.
func (o listOptions) filter(now time.Time) (f joblet.Filter, err error) {
	f = joblet.Filter{Name: o.name}
	if o.limit < 0 {
		return f, joblet.Errorf(joblet.InvalidArgument, "--limit %d: must not be negative", o.limit)
	}
	if f.States, err = flags.ParseStates(o.status); err != nil {
		return f, err
	}
	if f.Labels, err = flags.ParseLabelMatches(o.labels); err != nil {
		return f, err
	}
	f.Since, err = flags.MomentFlag("--since", o.since, now)
	return f, err
}

func listJobs(ctx context.Context, a *app.App, opt listOptions) error {
	filter, err := opt.filter(time.Now())
	if err != nil {
		return err
	}
	format, err := parseFormat(a.Template)
	switch {
	case err != nil:
		return err
	case format != nil && (a.JSON || opt.quiet):
		return joblet.Errorf(joblet.InvalidArgument, "--format, --quiet and --json exclude each other")
	}
	return a.With(ctx, func(c *client.Client) error {
		for _, named := range []struct {
			flag, ref string
			id        *string
		}{{"--parent", opt.parent, &filter.Parent}, {"--before", opt.before, &filter.Before}} {
			if named.ref == "" {
				continue
			}
			if *named.id, err = jobID(ctx, c, named.ref); err != nil {
				return fmt.Errorf("%s: %w", named.flag, err)
			}
		}
		if opt.limit > 0 {
			filter.Limit = opt.limit + 1 // whether there are more
		}
		var jobs []joblet.Job // the columns' widths need all of them
		count, last, more := 0, "", false
		for j, err := range c.Jobs(ctx, filter) {
			if err == nil && opt.limit > 0 && count == opt.limit {
				more = true
				break
			}
			switch {
			case err != nil:
				return err
			case opt.quiet:
				err = a.Println(j.ID)
			case a.JSON:
				err = a.WriteJSON(jobview.NewJSON(j))
			case format != nil:
				err = writeFormat(a, format, j)
			default:
				jobs = append(jobs, j)
			}
			if err != nil {
				return err
			}
			count, last = count+1, j.ID
		}
		interactive := term.Width(a.ErrOut) > 0
		if table := !opt.quiet && !a.JSON && format == nil; table {
			if len(jobs) == 0 && interactive {
				_, err := fmt.Fprintln(a.ErrOut, "no jobs")
				return err
			}
			if err := writeJobs(a.Out, term.Width(a.Out), a.Colors(a.Out), jobs, time.Now()); err != nil {
				return err
			}
		}
		if more && interactive {
			a.Note("there are more jobs; --before=%s shows the next page", joblet.ShortID(last))
		}
		return nil
	})
}

func writeJobs(w io.Writer, width int, colors bool, jobs []joblet.Job, now time.Time) error {
	rows := [][]string{{"ID", "NAME", "STATUS", "EXIT", "STARTED", "DURATION", "RUNTIME", "COMMAND"}}
	for _, j := range jobs {
		started := term.FormatTime(j.Started)
		if j.State == joblet.Scheduled {
			started = term.FormatDue(j.Scheduled, now)
		}
		rows = append(rows, []string{
			joblet.ShortID(j.ID), table.Dash(j.Spec.Name, table.MaxNameColumn), j.State.String(), jobview.ExitText(j),
			started, jobview.Duration(j, now), table.Dash(j.Spec.Runtime, table.MaxNameColumn), joblet.Printable(j.Spec.CommandLine()),
		})
	}
	const name, status, exit, start, duration, runtime = 1, 2, 3, 4, 5, 6
	t := table.Table{Rows: rows, Width: width, Drop: []int{runtime, name, duration, start, exit}}
	if colors {
		t.Paint = func(column int, cell string) string {
			if column != status {
				return cell
			}
			return jobview.PaintState(cell)
		}
	}
	return t.Write(w)
}
