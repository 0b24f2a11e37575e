package main

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

func newRerunCommand(a *app) *cobra.Command {
	var follow bool
	secrets := variables{flag: "--secret-env"}
	cmd := &cobra.Command{
		Use:   "rerun [flags] JOB…",
		Short: "Run jobs again",
		Long: `Run each job again, as a new one with the same command, settings, uploads and
standard input, and print the new job's id. Secrets are not kept: give all that
the job had. With --follow rnx stays attached to the new job as "rnx job run"
does, and ends with its status.

A job is named by its id, by the first letters of it when no other has them, or
by its name: that of your own job, or else of another's.

Exit status: 0, or 1 when something failed; with --follow as "rnx job run" gives
it.`,
		Example: `  rnx job rerun 3f2a
  rnx job rerun --follow --secret-env=TOKEN 3f2a`,
		Args:              atLeastOne("job"),
		ValidArgsFunction: a.completeJobs(finalStates...),
		RunE: func(cmd *cobra.Command, args []string) error {
			env, err := secrets.read(os.LookupEnv)
			if err != nil {
				return err
			}
			if !follow {
				return a.with(cmd.Context(), func(c *client.Client) error {
					return a.each(args, 1, func(ref string) (func() error, error) { // they begin in this order
						j, err := c.Rerun(cmd.Context(), ref, env)
						if err != nil {
							return nil, unanswered(err)
						}
						return a.shown(j, nil)
					})
				})
			}
			if len(args) != 1 {
				return joblet.Errorf(joblet.InvalidArgument, "--follow: %d jobs given, and only one can be followed", len(args))
			}
			if err := a.rerunAttached(cmd.Context(), args[0], env); err != nil {
				return exitAsRun(err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "stay attached to the new job; only with one")
	secrets.addSecretFlags(cmd.Flags())
	return cmd
}

// rerunAttached runs a job again and follows the new one to its end.
func (a *app) rerunAttached(ctx context.Context, ref string, secrets map[string]string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	at := a.attach(c)
	return at.run(ctx, nil, func(ctx context.Context) eventSeq {
		return func(yield func(client.Event, error) bool) {
			j, err := c.Rerun(ctx, ref, secrets)
			if err != nil {
				yield(nil, err)
				return
			}
			at.meet(j, j.State == joblet.Pending || j.State == joblet.Scheduled)
			c.Follow(ctx, j.ID, joblet.LogOptions{Follow: true})(yield)
		}
	})
}

// exitAsRun makes rnx end with the status that "rnx job run" has for err.
func exitAsRun(err error) error {
	if _, ok := errors.AsType[*exitError](err); ok {
		return err
	}
	return &exitError{status: runStatus(err), err: err}
}
