package job

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
)

const labelHelp = `

With --label and no JOB, the command acts on all jobs of the caller's that match, and
on those of other owners that the caller may change, and prints the id of each. It
fails if there is none.`

// selector lets a command act on jobs by their labels instead of their names.
type selector struct {
	labels []string
	states []joblet.State // jobs in other states do not match; nil: all match

	denied atomic.Int64 // matching jobs that the caller may not change
	gone   atomic.Int64 // matching jobs that were deleted, or ended, before their turn came
}

// add gives the command of jobsCommand, which does something to each job, the flag --label.
func (s *selector) add(a *app.App, cmd *cobra.Command, do jobAction) {
	byName := cmd.RunE
	cmd.Flags().StringArrayVarP(&s.labels, "label", "l", nil, "act on all jobs with label `NAME=VALUE`, or NAME with any value (repeatable: all must match)")
	atLeastOne := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		switch {
		case len(s.labels) == 0:
			return atLeastOne(cmd, args)
		case len(args) > 0:
			return joblet.Errorf(joblet.InvalidArgument, "--label and the names of jobs exclude each other")
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(s.labels) == 0 {
			return byName(cmd, args)
		}
		labels, err := flags.ParseLabelMatches(s.labels)
		if err != nil {
			return err
		}
		return a.With(cmd.Context(), func(c *client.Client) error { return s.run(cmd.Context(), a, c, labels, do) })
	}
}

// run does something to each job that matches: to those that wait first, so that none of
// them starts in place of one that ends, then to the others, the oldest first.
func (s *selector) run(ctx context.Context, a *app.App, c *client.Client, labels []joblet.LabelMatch, do jobAction) error {
	var waiting, ids []string
	for j, err := range c.Jobs(ctx, joblet.Filter{Labels: labels, States: s.states}) {
		if err != nil {
			return err
		}
		if slices.Contains(app.WaitingStates, j.State) {
			waiting = append(waiting, j.ID)
		} else {
			ids = append(ids, j.ID)
		}
	}
	slices.Reverse(waiting)
	slices.Reverse(ids)
	ids = slices.Concat(waiting, ids)
	err := a.Each(ids, app.AtOnce, func(id string) (func() error, error) {
		show, err := do(ctx, c, id)
		switch {
		case err != nil && s.skip(ctx, c, id, err):
			return nil, nil
		case err == nil && show == nil:
			show = func() error { return showID(a, id) }
		}
		return show, err
	})
	denied, skipped := int(s.denied.Load()), int(s.denied.Load()+s.gone.Load())
	switch {
	case err != nil || skipped < len(ids) && denied == 0:
		return err
	case skipped < len(ids):
		a.Note("%d more matching %s to other owners and stayed as they are", denied, plural(denied, "job belongs", "jobs belong"))
		return nil
	case denied > 0:
		return joblet.Errorf(joblet.PermissionDenied, "no matching job is yours: %d %s to other owners", denied, plural(denied, "job belongs", "jobs belong"))
	}
	return joblet.Errorf(joblet.NotFound, "no job matches %s%s", strings.Join(s.labels, ", "), s.inState())
}

// skip reports whether a job that matched is not to be counted as a failure: it belongs
// to another owner, or there is nothing left to do.
func (s *selector) skip(ctx context.Context, c *client.Client, id string, err error) bool {
	switch joblet.KindOf(err) {
	case joblet.PermissionDenied:
		s.denied.Add(1)
		return true
	case joblet.NotFound:
		s.gone.Add(1)
		return true
	case joblet.FailedPrecondition:
		if j, err := c.Job(ctx, id); s.states != nil && (err == nil && !slices.Contains(s.states, j.State) || joblet.KindOf(err) == joblet.NotFound) {
			s.gone.Add(1)
			return true
		}
	}
	return false
}

// inState says which states match, for an error.
func (s *selector) inState() string {
	switch {
	case s.states == nil:
		return ""
	case s.states[0].Final():
		return " and has ended"
	}
	return " and has not ended"
}

// showID prints the id of a job that a command has acted on.
func showID(a *app.App, id string) error {
	if a.JSON {
		return a.WriteJSON(struct {
			UUID string `json:"uuid"`
		}{id})
	}
	return a.Println(id)
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
