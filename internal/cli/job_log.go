package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

func newLogCommand(a *app) *cobra.Command {
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
		Args:              exactlyOne("job"),
		ValidArgsFunction: a.completeJobs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if opt.Tail < 0 {
				return joblet.Errorf(joblet.InvalidArgument, "--tail %d: must not be negative", opt.Tail)
			}
			now := time.Now()
			var err error
			if opt.Since, err = momentFlag("--since", since, now); err != nil {
				return err
			}
			if opt.Until, err = momentFlag("--until", until, now); err != nil {
				return err
			}
			if !opt.Since.IsZero() && !opt.Until.IsZero() && !opt.Until.After(opt.Since) {
				return joblet.Errorf(joblet.InvalidArgument, "--until %s: must be later than --since %s", until, since)
			}
			catchPipeSignal()
			out := &output{stdout: a.out, stderr: a.errOut, json: a.json, timestamps: timestamps}
			return a.followLog(cmd.Context(), args[0], opt, out)
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

// followLog writes a job's log. With Follow it survives that the daemon, or the way
// to it, goes away for a while: it goes on where it was.
func (a *app) followLog(ctx context.Context, ref string, opt joblet.LogOptions, out *output) error {
	var deadline time.Time
	for {
		met := false
		err := a.with(ctx, func(c *client.Client) error {
			for event, err := range c.Follow(ctx, ref, opt) {
				if err != nil {
					return err
				}
				met = true
				switch e := event.(type) {
				case client.Waiting:
					ref = e.Job.ID // the name may be another job's by then
				case client.Started:
					ref = e.Job.ID
				case client.Output:
					opt.Offset, opt.Tail = e.Offset+int64(len(e.Data)), 0
				case client.Gap:
					opt.Offset, opt.Tail = e.Offset+e.Length, 0
				}
				if err := out.event(event); err != nil {
					return &writeError{err}
				}
			}
			return nil
		})
		if w, ok := errors.AsType[*writeError](err); ok {
			return w.err
		}
		if !opt.Follow || joblet.KindOf(err) != joblet.Unavailable || deadline.IsZero() && !met {
			return err
		}
		if met {
			deadline = time.Now().Add(reattachFor)
		}
		if time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(reattachPause):
		}
	}
}
