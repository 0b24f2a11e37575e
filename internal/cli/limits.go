package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

// limitFlag is a flag that is one of the limits, by the same name.
type limitFlag struct {
	limits *joblet.Limits
	name   string
	value  string // that it takes, for the help
	text   string // as it was given
}

func (f *limitFlag) String() string { return f.text }
func (f *limitFlag) Type() string   { return f.value }

func (f *limitFlag) Set(s string) error {
	f.text = s
	err := f.limits.Set(f.name, s)
	if err != nil { // pflag says which flag it is
		return joblet.Errorf(joblet.InvalidArgument, "%s", strings.TrimPrefix(err.Error(), "--"+f.name+": "))
	}
	return nil
}

// addLimits adds a flag for each limit that l can have but those of single
// processes.
func addLimits(f *pflag.FlagSet, l *joblet.Limits) {
	for _, doc := range joblet.LimitDocs() {
		f.Var(&limitFlag{limits: l, name: doc.Name, value: doc.Value}, doc.Name, doc.Help)
	}
}

// addRlimits adds flags for the limits of each process.
func addRlimits(f *pflag.FlagSet, l *joblet.Limits) {
	f.Var(&limitFlag{limits: l, name: "nofile", value: "SOFT[:HARD]"}, "nofile", "open files per process")
	f.Var(&rlimitFlag{l}, "rlimit", "other limit per process: "+strings.Join(slices.DeleteFunc(joblet.RlimitNames(), func(n string) bool { return n == "nofile" }), ", ")+" (repeatable)")
}

// rlimitFlag is NAME=SOFT[:HARD], again and again.
type rlimitFlag struct{ limits *joblet.Limits }

func (f *rlimitFlag) String() string { return "" }
func (f *rlimitFlag) Type() string   { return "NAME=SOFT[:HARD]" }

func (f *rlimitFlag) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok || !slices.Contains(joblet.RlimitNames(), name) {
		return joblet.Errorf(joblet.InvalidArgument, "%.40q: give NAME=SOFT[:HARD], NAME one of %s", s, strings.Join(joblet.RlimitNames(), ", "))
	}
	return f.limits.Set(name, value)
}

func newUpdateCommand(a *app) *cobra.Command {
	var limits joblet.Limits
	cmd := a.jobsCommand(&cobra.Command{
		Use:   "update --LIMIT=VALUE… JOB…",
		Short: "Change limits of jobs",
		Long: `Change limits of running or waiting jobs. Limits that are not given stay as they
are. Either all given limits change or none. A memory limit below what the job
cannot release is refused.` + jobRefHelp,
		Example: `  rnx job update --max-memory=2G --max-cpu=150 3f2a
  rnx job update --max-iobps=20M web`,
		ValidArgsFunction: a.completeJobs(aliveStates...),
	}, func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		return a.shown(c.Update(ctx, ref, limits))
	})
	cmd.Flags().SortFlags = false
	addLimits(cmd.Flags(), &limits)
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if limits.IsZero() {
			return joblet.Errorf(joblet.InvalidArgument, "no limit given: name at least one, such as --max-memory=2G")
		}
		return nil
	}
	return cmd
}

func newPauseCommand(a *app) *cobra.Command {
	return a.jobsCommand(&cobra.Command{
		Use:   "pause JOB…",
		Short: "Pause all processes of jobs",
		Long: `Freeze all processes of jobs. They keep their memory, and their time limit runs on:
a --timeout also ends a paused job.` + jobRefHelp,
		Example:           `  rnx job pause 3f2a && rnx job resume 3f2a`,
		ValidArgsFunction: a.completeJobs(joblet.Running),
	}, func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		return a.shown(c.Pause(ctx, ref))
	})
}

func newResumeCommand(a *app) *cobra.Command {
	return a.jobsCommand(&cobra.Command{
		Use:               "resume JOB…",
		Aliases:           []string{"unpause"},
		Short:             "Resume paused jobs",
		Long:              "Let jobs go on that were paused." + jobRefHelp,
		Example:           `  rnx job resume 3f2a`,
		ValidArgsFunction: a.completeJobs(joblet.Paused),
	}, func(ctx context.Context, c *client.Client, ref string) (func() error, error) {
		return a.shown(c.Resume(ctx, ref))
	})
}

// limitWords are a job's limits, as flags.
func limitWords(l joblet.Limits) string {
	var words []string
	l.Each(func(name, value string) { words = append(words, "--"+name+"="+value) })
	return strings.Join(words, " ")
}
