package app

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/table"
)

// maxCompletions is the most jobs that a shell offers.
const maxCompletions = 200

// CompleteJobs offers the names and ids of jobs in the given states; none: in all.
func (a *App) CompleteJobs(states ...joblet.State) cobra.CompletionFunc {
	return func(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
		defer cancel()
		c, err := a.ConnectRunning(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		var offers []string
		names := map[string]bool{} // those offered: of jobs with the same name the newest has it
		for j, err := range c.Jobs(ctx, joblet.Filter{States: states, Limit: maxCompletions}) {
			if err != nil {
				break
			}
			if offer := offerJob(j, prefix, names); offer != "" {
				offers = append(offers, offer)
			}
		}
		return offers, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// offerJob returns the completion for a job, with a description, or "" if prefix begins
// neither its name nor its id. The name is offered if it can be, and added to names.
func offerJob(j joblet.Job, prefix string, names map[string]bool) string {
	id, name := joblet.ShortID(j.ID), j.Spec.Name
	what := j.Spec.CommandLine()
	word := id
	switch {
	case name != "" && strings.HasPrefix(name, prefix) && !names[name]:
		names[name] = true
		word, what = name, id+" "+what
	case !strings.HasPrefix(j.ID, prefix):
		return ""
	case len(prefix) > len(id):
		word = j.ID
	case name != "":
		what = name + " " + what
	}
	return word + "\t" + joblet.Printable(table.Cut(j.State.String()+" "+what, 60))
}

// The states of jobs that have not ended, that wait, and that have ended.
var (
	AliveStates   = []joblet.State{joblet.Pending, joblet.Scheduled, joblet.Initializing, joblet.Running, joblet.Paused, joblet.Stopping}
	WaitingStates = []joblet.State{joblet.Pending, joblet.Scheduled}
	FinalStates   = []joblet.State{joblet.Completed, joblet.Failed, joblet.Stopped, joblet.Canceled, joblet.TimedOut, joblet.Lost}
)

// CompleteStates offers the given states; none: all.
func CompleteStates(states ...joblet.State) cobra.CompletionFunc {
	if states == nil {
		states = joblet.States()
	}
	names := make([]string, len(states))
	for i, s := range states {
		names[i] = s.String()
	}
	return cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)
}

// CompleteFirstJob offers jobs for the first argument and files for the others.
func (a *App) CompleteFirstJob(states ...joblet.State) cobra.CompletionFunc {
	jobs := a.CompleteJobs(states...)
	return func(cmd *cobra.Command, given []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(given) > 0 {
			return CompleteFiles(cmd, given, prefix)
		}
		return jobs(cmd, given, prefix)
	}
}

// CompleteFiles offers names of files.
func CompleteFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

// CompleteRuntimes offers the installed runtimes.
func (a *App) CompleteRuntimes(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	c, err := a.ConnectRunning(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer c.Close()
	all, err := c.Runtimes(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var offers []string
	for _, rt := range all {
		if strings.HasPrefix(rt.Name, prefix) {
			offers = append(offers, rt.Name+"\t"+joblet.Printable(rt.Description))
		}
	}
	return offers, cobra.ShellCompDirectiveNoFileComp
}
