package cli

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
		Long: `Run each job again as a new job with the same command, settings, uploads and
standard input, and print the id of the new job. Secrets are not kept: pass all
secrets of the job again. With --follow, attach to the new job as "rnx job run"
does.

JOB is an id, a unique prefix of an id, or a name. A name refers to your own job
first, then to that of another owner.

Exit status: 0, or 1 if any job failed to start; with --follow that of
"rnx job run".`,
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
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "attach to the new job; for a single job only")
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
