// Package job has the commands of "rnx job", a file per command.
package job

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/jobview"
)

// NewCommand returns "rnx job" with its subcommands.
func NewCommand(a *app.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "job",
		Short: "Run and manage jobs",
		Example: `  rnx job run ps aux
  rnx job list
  rnx job log -f 3f2a`,
		RunE: app.Group,
	}
	cmd.SuggestFor = []string{"container", "containers", "jobs"}
	for _, g := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{"Run", []*cobra.Command{newRunCommand(a), newRerunCommand(a), newWaitCommand(a)}},
		{"Inspect", []*cobra.Command{newListCommand(a), newStatusCommand(a), newLogCommand(a), newMetricsCommand(a), newTopCommand(a), newTreeCommand(a)}},
		{"Control", []*cobra.Command{newCancelCommand(a), newStopCommand(a), newKillCommand(a), newSignalCommand(a), newPauseCommand(a), newResumeCommand(a), newUpdateCommand(a)}},
		{"Interact", []*cobra.Command{newAttachCommand(a), newExecCommand(a), newShellCommand(a), newCopyCommand(a)}},
		{"Clean up", []*cobra.Command{newDeleteCommand(a), newDeleteAllCommand(a), newPruneCommand(a)}},
	} {
		cmd.AddGroup(&cobra.Group{ID: g.title, Title: g.title + ":"})
		for _, c := range g.commands {
			c.GroupID = g.title
			c.SuggestFor = otherNames[c.Name()]
		}
		cmd.AddCommand(g.commands...)
	}
	return cmd
}

// otherNames are the names of the commands in other programs.
var otherNames = map[string][]string{
	"run":    {"create", "submit"},
	"list":   {"ps", "queue"},
	"status": {"show", "info", "describe", "get"},
	"log":    {"logs", "output", "tail"},
	"top":    {"stats"},
	"tree":   {"pstree"},
	"update": {"set", "limit"},
	"stop":   {"terminate", "end"},
	"rerun":  {"retry"},
	"shell":  {"sh", "bash", "enter"},
	"cp":     {"copy", "download"},
	"delete": {"remove", "del"},
	"prune":  {"gc", "clean"},
}

const jobRefHelp = `

JOB is an id, a unique prefix of an id, or a name. A name refers to your own job
first, then to that of another owner.` + app.ExitStatusHelp

// jobAction does something to a job. show prints the result; it may be nil.
type jobAction func(ctx context.Context, c *client.Client, ref string) (show func() error, err error)

// jobsCommand makes cmd call do for each job named on the command line, for some at once.
func jobsCommand(a *app.App, cmd *cobra.Command, do jobAction) *cobra.Command {
	cmd.Args = app.AtLeastOne("job")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.With(cmd.Context(), func(c *client.Client) error {
			return a.Each(args, app.AtOnce, func(ref string) (func() error, error) { return do(cmd.Context(), c, ref) })
		})
	}
	return cmd
}

// jobID returns the id of the job that ref refers to.
func jobID(ctx context.Context, c *client.Client, ref string) (string, error) {
	if joblet.ValidID(ref) {
		return ref, nil // without a call, even if the job does not exist
	}
	j, err := c.Job(ctx, ref)
	return j.ID, err
}

// shown turns the result of a call that changes a job into what jobsCommand expects.
func shown(a *app.App) func(joblet.Job, error) (func() error, error) {
	return func(j joblet.Job, err error) (func() error, error) {
		if err != nil {
			return nil, err
		}
		return func() error { return showJob(a, j) }, nil
	}
}

// showJob prints the id of a changed job, or all of it as JSON.
func showJob(a *app.App, j joblet.Job) error {
	if a.JSON {
		return a.WriteJSON(jobview.NewJSON(j))
	}
	return a.Println(j.ID)
}
