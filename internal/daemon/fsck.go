package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/fsck"
	"github.com/joblet/joblet/internal/help"
)

// The exit statuses of joblet fsck, which are those of fsck(8).
const (
	fsckClean    = 0
	fsckRepaired = 1
	fsckLeft     = 4
	fsckFailed   = 8
)

// fsckOptions are the flags of joblet fsck.
type fsckOptions struct {
	Options
	Fsck fsck.Options
	JSON bool
}

// NewFsckCommand returns joblet fsck.
func NewFsckCommand() *cobra.Command {
	opt := fsckOptions{Options: DefaultOptions()}
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Check and repair the state directory while no daemon runs",
		Long: `Check the job records, the directories of jobs, and the remains of jobs on the
host, while no daemon runs. Running jobs continue.

Without --repair, only opening the job records changes anything: records of an older version are migrated, and only root keeps access to the file.
A repair never removes the output of a job.

Exit status: 0 if there is no problem, 1 if all problems were repaired, 4 if some
are left, 8 if the check is incomplete.`,
		Example: `  joblet fsck
  joblet fsck --repair --deep`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := help.NoArgs(cmd, args); err != nil {
				opt.fail(cmd.ErrOrStderr(), err)
				os.Exit(fsckFailed)
			}
			return nil
		},
		Run: func(cmd *cobra.Command, _ []string) {
			conf, _, err := opt.Load(given(cmd.Flags()))
			if err != nil {
				os.Exit(opt.fail(cmd.ErrOrStderr(), err))
			}
			opt.StateDir, opt.RunDir = conf.StateDir, conf.RunDir
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGTERM, unix.SIGINT)
			status := opt.run(ctx, cmd.OutOrStdout(), cmd.ErrOrStderr())
			stop()
			os.Exit(status)
		},
	}
	// main's status for an error would say that all was repaired.
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		opt.fail(cmd.ErrOrStderr(), err)
		os.Exit(fsckFailed)
		return nil
	})
	f := cmd.Flags()
	f.StringVar(&opt.StateDir, "state-dir", opt.StateDir, "records, logs and runtimes (default from $JOBLET_STATE_DIR)")
	f.StringVar(&opt.RunDir, "run-dir", opt.RunDir, "socket and lock (default from $JOBLET_RUN_DIR)")
	f.BoolVar(&opt.Fsck.Repair, "repair", false, "repair the problems found where possible")
	f.BoolVar(&opt.Fsck.Deep, "deep", false, "read all logs and archives, not only their indexes")
	f.BoolVar(&opt.JSON, "json", false, "print one JSON object per problem, then a summary")
	return cmd
}

// run checks and returns the exit status.
func (o fsckOptions) run(ctx context.Context, stdout, stderr io.Writer) int {
	out := fsckOutput{w: stdout, json: o.JSON}
	sum, err := o.check(ctx, out.problem)
	if err != nil {
		return o.fail(stderr, err)
	}
	if err := out.summary(sum); err != nil {
		return o.fail(stderr, err)
	}
	switch sum.Problems {
	case 0:
		return fsckClean
	case sum.Repaired:
		return fsckRepaired
	}
	return fsckLeft
}

func (o fsckOptions) fail(stderr io.Writer, err error) int {
	fmt.Fprintln(stderr, "joblet: fsck:", joblet.Shorten(err.Error()))
	return fsckFailed
}

func (o fsckOptions) check(ctx context.Context, report func(fsck.Problem)) (sum fsck.Summary, err error) {
	if err := o.validate(); err != nil {
		return sum, err
	}
	if os.Geteuid() != 0 {
		return sum, errors.New("cannot check: run it as root, as the daemon runs")
	}
	if _, err := os.Stat(o.StateDir); err != nil { // before anything is made
		return sum, fmt.Errorf("cannot open the state directory: %w", err)
	}
	if err := os.MkdirAll(o.RunDir, 0o755); err != nil {
		return sum, fmt.Errorf("cannot create the run directory: %w", err)
	}
	lock, err := o.lock(ctx)
	if err != nil {
		return sum, fmt.Errorf("cannot check while a daemon runs: %w", err)
	}
	defer lock.Close()
	stateLock, err := o.lockState(ctx)
	if err != nil {
		return sum, fmt.Errorf("cannot check while a daemon runs: %w", err)
	}
	defer stateLock.Close()
	return fsck.Run(ctx, fsck.Config{StateDir: o.StateDir, RunDir: o.RunDir, Log: slog.New(slog.DiscardHandler)}, o.Fsck, report)
}

// fsckOutput prints what is found, as lines or as JSON.
type fsckOutput struct {
	w    io.Writer
	json bool
	err  error // the first that writing gave
}

func (out *fsckOutput) problem(p fsck.Problem) {
	if out.json {
		out.print(p)
	} else {
		out.line(p.String())
	}
}

func (out *fsckOutput) summary(sum fsck.Summary) error {
	if out.json {
		out.print(map[string]fsck.Summary{"summary": sum})
	} else {
		out.line(summaryLine(sum))
	}
	if out.err != nil {
		return fmt.Errorf("cannot write the result: %w", out.err)
	}
	return nil
}

func (out *fsckOutput) print(v any) {
	if err := json.NewEncoder(out.w).Encode(v); err != nil && out.err == nil {
		out.err = err
	}
}

func (out *fsckOutput) line(s string) {
	if _, err := fmt.Fprintln(out.w, s); err != nil && out.err == nil {
		out.err = err
	}
}

// summaryLine gives "checked 123 jobs, 4.5 GiB: 2 problems, 1 repaired".
func summaryLine(sum fsck.Summary) string {
	count := func(n int, what string) string {
		if n != 1 {
			what += "s"
		}
		return fmt.Sprintf("%d %s", n, what)
	}
	s := fmt.Sprintf("checked %s, %s: ", count(sum.Jobs, "job"), joblet.ReadableSize(sum.Bytes))
	if sum.Problems == 0 {
		return s + "no problems"
	}
	return s + fmt.Sprintf("%s, %d repaired", count(sum.Problems, "problem"), sum.Repaired)
}
