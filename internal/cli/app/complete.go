package app

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cli/term"
)

// maxCompletions bounds how many jobs a shell offers.
const maxCompletions = 200

// CompleteJobs offers the jobs in the given states, all without any.
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
		for j, err := range c.Jobs(ctx, joblet.Filter{States: states, Limit: maxCompletions}) {
			if err != nil {
				break
			}
			id := joblet.ShortID(j.ID)
			if len(prefix) > len(id) {
				id = j.ID
			}
			if strings.HasPrefix(id, prefix) {
				offers = append(offers, id+"\t"+joblet.Printable(term.Cut(j.State.String()+" "+j.Spec.CommandLine(), 60)))
			}
		}
		return offers, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// States for completions: jobs that can still be ended, those that do not run
// yet, and those that have ended.
var (
	AliveStates   = []joblet.State{joblet.Pending, joblet.Scheduled, joblet.Initializing, joblet.Running, joblet.Paused, joblet.Stopping}
	WaitingStates = []joblet.State{joblet.Pending, joblet.Scheduled}
	FinalStates   = []joblet.State{joblet.Completed, joblet.Failed, joblet.Stopped, joblet.Canceled, joblet.TimedOut, joblet.Lost}
)

// CompleteStates offers the given states, all without any.
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
