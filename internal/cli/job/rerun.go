package job

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
	"github.com/joblet/joblet/internal/cli/session"
)

func newRerunCommand(a *app.App) *cobra.Command {
	var follow bool
	secrets := flags.Variables{Flag: "--secret-env"}
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
		Args:              app.AtLeastOne("job"),
		ValidArgsFunction: a.CompleteJobs(app.FinalStates...),
		RunE: func(cmd *cobra.Command, args []string) error {
			env, err := secrets.Read(os.LookupEnv)
			if err != nil {
				return err
			}
			if !follow {
				return a.With(cmd.Context(), func(c *client.Client) error {
					return a.Each(args, 1, func(ref string) (func() error, error) { // they begin in this order
						j, err := c.Rerun(cmd.Context(), ref, env)
						if err != nil {
							return nil, session.Unanswered(err)
						}
						return shown(a)(j, nil)
					})
				})
			}
			if len(args) != 1 {
				return joblet.Errorf(joblet.InvalidArgument, "--follow: %d jobs given, and only one can be followed", len(args))
			}
			if err := session.Rerun(cmd.Context(), a, args[0], env); err != nil {
				return session.ExitAsRun(err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "attach to the new job; for a single job only")
	secrets.AddSecretFlags(cmd.Flags())
	return cmd
}
