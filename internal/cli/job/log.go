package job

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
	"github.com/joblet/joblet/internal/cli/session"
)

func newLogCommand(a *app.App) *cobra.Command {
	var opt joblet.LogOptions
	var timestamps bool
	var since, until string
	cmd := &cobra.Command{
		Use:   "log [flags] JOB",
		Short: "Show a job's output",
		Long: `Print the output of a job, byte for byte: its stdout to stdout and its stderr to
stderr. With --json each line is an object with event, stream, offset, time, and
data, or data_base64 for bytes that are not UTF-8.

--since and --until take a time (2026-01-31T15:04, RFC 3339) or an age (90s,
2h30m, 3d).` + jobRefHelp,
		Example: `  rnx job log 3f2a
  rnx job log -f --tail=20 web
  rnx job log --stderr --timestamps 3f2a
  rnx job log --since=2h --until=1h web`,
		Args:              app.ExactlyOne("job"),
		ValidArgsFunction: a.CompleteJobs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if opt.Tail < 0 {
				return joblet.Errorf(joblet.InvalidArgument, "--tail %d: must not be negative", opt.Tail)
			}
			now := time.Now()
			var err error
			if opt.Since, err = flags.MomentFlag("--since", since, now); err != nil {
				return err
			}
			if opt.Until, err = flags.MomentFlag("--until", until, now); err != nil {
				return err
			}
			if !opt.Since.IsZero() && !opt.Until.IsZero() && !opt.Until.After(opt.Since) {
				return joblet.Errorf(joblet.InvalidArgument, "--until %s: must be later than --since %s", until, since)
			}
			app.CatchPipeSignal()
			out := &session.Output{Stdout: a.Out, Stderr: a.ErrOut, JSON: a.JSON, Timestamps: timestamps}
			return session.FollowLog(cmd.Context(), a, args[0], opt, out)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&opt.Follow, "follow", "f", false, "follow the output until the job ends")
	f.Int64VarP(&opt.Tail, "tail", "n", 0, "only the last `N` lines; 0: all")
	f.StringVar(&since, "since", "", "only output written at or after `TIME`")
	f.StringVar(&until, "until", "", "only output written before `TIME`")
	f.BoolVar(&opt.Stdout, "stdout", false, "only stdout")
	f.BoolVar(&opt.Stderr, "stderr", false, "only stderr")
	f.BoolVarP(&timestamps, "timestamps", "t", false, "prefix each line with its time")
	return cmd
}
