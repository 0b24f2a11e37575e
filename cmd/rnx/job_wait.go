package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet/client"
)

func newWaitCommand(a *app) *cobra.Command {
	var last int
	cmd := a.jobsCommand(&cobra.Command{
		Use:   "wait JOB…",
		Short: "Wait until jobs have ended",
		Long: `Wait until each job has ended and print its status, or the job itself with
--json.

Exit status: that of the last job, as "rnx job run" gives it; 1 when something
failed.`,
		Example:           "  rnx job wait $(rnx job run -d sleep 5)",
		ValidArgsFunction: a.completeJobs(aliveStates...),
	}, func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		j, err := c.Wait(ctx, ref)
		if err != nil {
			return nil, err
		}
		return func() error {
			if last, _ = j.Status(); a.json {
				return a.writeJSON(newJobJSON(j))
			}
			return a.println(strconv.Itoa(last))
		}, nil
	})
	wait := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := wait(cmd, args); err != nil || last == 0 {
			return err
		}
		return &exitError{status: last}
	}
	return cmd
}
