package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

func newJobCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "job",
		Short: "Run and manage jobs",
		Example: `  rnx job run ps aux
  rnx job list
  rnx job log -f 3f2a`,
		RunE: group,
	}
	cmd.AddCommand(
		newRunCommand(a), newListCommand(a), newStatusCommand(a), newLogCommand(a), newMetricsCommand(a), newTopCommand(a), newTreeCommand(a), newCopyCommand(a), newWaitCommand(a),
		newCancelCommand(a), newStopCommand(a), newKillCommand(a), newRerunCommand(a),
		newPauseCommand(a), newResumeCommand(a), newUpdateCommand(a),
		newAttachCommand(a), newExecCommand(a), newShellCommand(a), newSignalCommand(a),
		newDeleteCommand(a), newDeleteAllCommand(a), newPruneCommand(a),
	)
	return cmd
}

const jobRefHelp = `

JOB is an id, a unique prefix of an id, or a name. A name refers to your own job
first, then to that of another owner.` + exitStatusHelp

// maxCompletions bounds how many jobs a shell offers.
const maxCompletions = 200

// completeJobs offers the jobs in the given states, all without any.
func (a *app) completeJobs(states ...joblet.State) cobra.CompletionFunc {
	return func(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
		defer cancel()
		c, err := a.connectRunning(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		var offers []string
		for j, err := range c.Jobs(ctx, joblet.Filter{States: states, Limit: maxCompletions}) {
			if err != nil {
				break
			}
			id := joblet.ShortID(j.ID)
			if len(prefix) > len(id) {
				id = j.ID
			}
			if strings.HasPrefix(id, prefix) {
				offers = append(offers, id+"\t"+printable(cut(j.State.String()+" "+j.Spec.CommandLine(), 60)))
			}
		}
		return offers, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// States for completions: jobs that can still be ended, those that do not run
// yet, and those that have ended.
var (
	aliveStates   = []joblet.State{joblet.Pending, joblet.Scheduled, joblet.Initializing, joblet.Running, joblet.Paused, joblet.Stopping}
	waitingStates = []joblet.State{joblet.Pending, joblet.Scheduled}
	finalStates   = []joblet.State{joblet.Completed, joblet.Failed, joblet.Stopped, joblet.Canceled, joblet.TimedOut, joblet.Lost}
)

// completeStates offers the given states, all without any.
func completeStates(states ...joblet.State) cobra.CompletionFunc {
	if states == nil {
		states = joblet.States()
	}
	names := make([]string, len(states))
	for i, s := range states {
		names[i] = s.String()
	}
	return cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)
}

// jobsCommand does one thing to each job named on the command line, to some at once;
// what do returns shows the result, if it is not nil.
func (a *app) jobsCommand(cmd *cobra.Command, do func(ctx context.Context, c *client.Client, ref string) (show func() error, err error)) *cobra.Command {
	cmd.Args = atLeastOne("job")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.with(cmd.Context(), func(c *client.Client) error {
			return a.each(args, doing, func(ref string) (func() error, error) { return do(cmd.Context(), c, ref) })
		})
	}
	return cmd
}

// jobID returns the id of the job that ref names.
func jobID(ctx context.Context, c *client.Client, ref string) (string, error) {
	if joblet.ValidID(ref) {
		return ref, nil // also of one that is not there any more
	}
	j, err := c.Job(ctx, ref)
	return j.ID, err
}

// shown returns what shows a job that a command has changed, unless it failed.
func (a *app) shown(j joblet.Job, err error) (func() error, error) {
	if err != nil {
		return nil, err
	}
	return func() error { return a.show(j) }, nil
}

// show prints a job that a command has changed: its id, or all as JSON.
func (a *app) show(j joblet.Job) error {
	if a.json {
		return a.writeJSON(newJobJSON(j))
	}
	return a.println(j.ID)
}
