package job

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/archive"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
	"github.com/joblet/joblet/internal/cli/jobview"
	"github.com/joblet/joblet/internal/cli/session"
	"github.com/joblet/joblet/internal/cli/term"
	"github.com/joblet/joblet/internal/cli/transfer"
	"github.com/joblet/joblet/internal/help"
	"github.com/joblet/joblet/internal/schedule"
)

type runOptions struct {
	detach             bool
	env, secretEnv     flags.Variables
	labels             []string
	schedule, overlap  string
	retryOn            string
	logMax             string
	stdin              string // "": none; "-": ours; else a file
	uploads, uploadDir []string
	exclude            []string
	download           []string
	downloadTo         string
	security           flags.Security
	spec               joblet.Spec
	ttyFlags
	detachKeys string
}

const runHelp = `Run a command as PID 1 of a new job and stay attached to it. Its stdout and
stderr appear here, byte for byte, while it runs.

If stdin and stdout are a terminal, the job gets a terminal of its own; -t and -T
override this. All keys then go to the job, and the detach keys (Ctrl-P Ctrl-Q)
leave it running: see "rnx job attach".

Flags end at the command; everything after it belongs to the job. Without a
terminal, rnx passes on SIGINT, SIGTERM and SIGHUP. A command that does not handle
the signal ends by it and is not retried; a second Ctrl-C within two seconds kills
the job. A job that still waits is canceled by any of these signals. When the
reader of the output exits, as in "| head -1", rnx kills the job. When the daemon
restarts, rnx reconnects.

--schedule takes a time ("2026-03-01 09:00", "tomorrow 09:00", RFC 3339), a delay
("30min", "1h30m", "+2d"), or the five fields of a crontab ("0 3 * * mon-fri",
"@daily") for a repeating job, whose runs are jobs of their own. rnx prints
the id and returns, as with --detach.

--upload and --upload-dir copy files into the job's /work before it starts.
--exclude, and a .jobletignore file in the directory, leave files out by patterns
as in .gitignore. Sockets, devices and FIFOs are always left out. --download
fetches files from /work into the current directory, or that of --download-to,
when the job has ended, whatever its result. Patterns are paths below /work with
*, ?, [a-z], and ** for any number of directories.

With --json each line on stdout is an object with an event: "waiting", "started",
"output", "gap" or "ended". Output has stream, offset, time, and data, or
data_base64 for bytes that are not UTF-8. With --detach one object describes the
job.

Exit status: that of the job; 128+N if signal N ended it, 124 if it timed out,
125 if Joblet failed, 126 if the command cannot be executed, 127 if it does not
exist.`

const runExamples = `  rnx job run ps aux
  rnx job run --runtime=python-3.11-ml bash -c "sleep 30 & sleep 40 & ps aux"
  rnx job run -d --name=web -l team=a --timeout=1h python3 -m http.server
  rnx job run --env-file=app.env -e LANG=C --secret-env=TOKEN env
  rnx job run --upload=sum.py --upload=in.csv --download=out.csv python3 sum.py
  rnx job run --stdin sort -u < words.txt
  rnx job run --max-cpu=150 --max-memory=2G --max-pids=100 make -j
  rnx job run -it bash
  rnx job run --retry=3 --retry-on=1,100-110 --upload=get.sh sh get.sh
  rnx job run --schedule='0 3 * * *' --upload=backup.sh sh backup.sh
  rnx job run -d --depends-on=$(rnx job run -d sleep 10) echo done`

func newRunCommand(a *app.App) *cobra.Command {
	var opt runOptions
	cmd := &cobra.Command{
		Use:     "run [flags] COMMAND [ARG…]",
		Short:   "Run a command as a job",
		Long:    runHelp,
		Example: runExamples,
		Args:    app.AtLeastOne("command"),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := opt.run(cmd.Context(), a, args)
			if joblet.KindOf(err) == joblet.CommandNotFound {
				err = explainMissing(cmd.Context(), a, args, err)
			}
			return err
		},
		ValidArgsFunction: app.CompleteFiles,
	}
	opt.addFlags(cmd.Flags())
	addDetachKeys(cmd, &opt.detachKeys)
	help.Sections(cmd, runSections)
	completeRunFlags(a, cmd)
	return cmd
}

// completeRunFlags registers completions for the values of flags.
func completeRunFlags(a *app.App, cmd *cobra.Command) {
	_ = cmd.RegisterFlagCompletionFunc("runtime", a.CompleteRuntimes)
	_ = cmd.RegisterFlagCompletionFunc("depends-on", a.CompleteJobs(app.AliveStates...))
	_ = cmd.RegisterFlagCompletionFunc("overlap", cobra.FixedCompletions(
		[]string{string(joblet.OverlapSkip), string(joblet.OverlapQueue)}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("security", flags.CompleteProfiles)
	_ = cmd.RegisterFlagCompletionFunc("cap-add", flags.CompleteCapabilities)
	_ = cmd.RegisterFlagCompletionFunc("cap-drop", flags.CompleteCapabilities)
	for _, flag := range []string{"env-file", "secret-env-file", "stdin", "upload"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, app.CompleteFiles)
	}
	for _, flag := range []string{"upload-dir", "download-to"} {
		_ = cmd.MarkFlagDirname(flag)
	}
}

// run runs the job, and follows it unless it is detached.
func (o *runOptions) run(ctx context.Context, a *app.App, args []string) error {
	spec, err := o.makeSpec(args, os.LookupEnv, time.Now())
	if err != nil {
		return err
	}
	t, err := o.terminal(a, &spec)
	if err != nil {
		return err
	}
	in, err := o.input(spec, a.Stdin, a.Note)
	if err != nil {
		return err
	}
	if o.detached() {
		return runDetached(ctx, a, spec, in)
	}
	var fetch session.FetchFunc
	if len(o.download) > 0 {
		get := &transfer.Download{Patterns: o.download, Dir: o.downloadTo}
		if err := get.Open(); err != nil {
			return err
		}
		defer get.Root.Close()
		fetch = func(ctx context.Context, c *client.Client, id string) error { return get.Fetch(ctx, a, c, id) }
	}
	return session.Run(ctx, a, spec, in, fetch, t)
}

func (o *runOptions) addFlags(f *pflag.FlagSet) {
	f.SetInterspersed(false)
	f.SortFlags = false // what belongs together stands together
	f.BoolVarP(&o.detach, "detach", "d", false, "print the job's id and return at once")
	f.StringVar(&o.spec.Name, "name", "", "job `NAME`")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "label `NAME=VALUE` to select jobs by (repeatable)")
	f.StringVar(&o.spec.Runtime, "runtime", "", "installed runtime: `NAME`, NAME@VERSION or LANGUAGE:VERSION (default: the host's programs)")
	f.StringVarP(&o.spec.WorkDir, "workdir", "w", "", "working directory `DIR` in the job (default "+joblet.DefaultWorkDir+")")
	flags.DurationVar(f, &o.spec.Timeout, "timeout", "", 0, fmt.Sprintf("send SIGTERM after this time, such as 90s or 2h, and SIGKILL %v later; 0 disables", joblet.DefaultGrace))
	f.BoolVar(&o.spec.Init, "init", false, "run a small reaper as PID 1 and the command as its child")

	flags.AddLimits(f, &o.spec.Limits)
	flags.AddDockerLimits(f, &o.spec.Limits)
	flags.AddRlimits(f, &o.spec.Limits)
	o.security.AddFlags(f)

	f.StringArrayVarP(&o.env.Given, "env", "e", nil, "set variable `NAME=VALUE`, or pass on NAME from here (repeatable)")
	f.StringArrayVar(&o.env.Files, "env-file", nil, "read variables from `FILE`, with # comments; --env takes precedence (repeatable)")
	o.secretEnv.AddSecretFlags(f)

	f.StringVar(&o.schedule, "schedule", "", "run at `WHEN`: a time, a delay such as 30min, or five crontab fields to repeat")
	f.StringVar(&o.overlap, "overlap", "", "policy for a run that is due while the last one still runs: `skip|queue` (default skip)")
	f.StringSliceVar(&o.spec.DependsOn, "depends-on", nil, "wait for `JOB` to complete first (repeatable)")
	f.IntVar(&o.spec.Priority, "priority", 0, fmt.Sprintf("priority `N` in the queue, %d to %d; higher runs first", -joblet.MaxPriority, joblet.MaxPriority))
	f.StringVar(&o.spec.IdempotencyKey, "idempotency-key", "", "return the existing job with this `KEY` instead of starting another")

	f.IntVar(&o.spec.Retries, "retry", 0, "retry a failed job up to `N` times")
	flags.DurationVar(f, &o.spec.RetryDelay, "retry-delay", "", 0, fmt.Sprintf("delay before the first retry, doubled for each further one (default %v)", joblet.DefaultRetryDelay))
	f.StringVar(&o.retryOn, "retry-on", "", "exit `STATUSES` to retry, such as 1,3,100-110, and \"lost\" for a lost attempt (default: all but 0)")

	o.ttyFlags.add(f)
	f.Lookup("interactive").Usage = "the same as --stdin; with -t, what is typed"
	f.StringVar(&o.stdin, "stdin", "", "standard input of the job: that of rnx, or with --stdin=`FILE` a file")
	f.Lookup("stdin").NoOptDefVal = "-"
	f.StringArrayVar(&o.uploads, "upload", nil, "copy file or directory `PATH` into /work (repeatable)")
	f.StringArrayVar(&o.uploadDir, "upload-dir", nil, "copy the contents of `DIR` into /work (repeatable)")
	f.StringArrayVar(&o.exclude, "exclude", nil, "leave out files in uploaded directories that match `PATTERN` (repeatable)")
	f.StringArrayVar(&o.download, "download", nil, "fetch files in /work that match `PATTERN` at the end (repeatable)")
	f.StringVar(&o.downloadTo, "download-to", "", "fetch them into `DIR` (default: the current directory)")
	f.BoolVar(&o.spec.MergeOutput, "merge", false, "merge stderr into stdout, in exact order, as 2>&1 does")
	f.StringVar(&o.logMax, "log-max", "", "keep the newest `SIZE` of output, such as 64M (default "+joblet.ReadableSize(joblet.DefaultLogMax)+")")
}

// detached reports whether rnx returns at once; it does not wait for a scheduled job.
func (o *runOptions) detached() bool { return o.detach || o.schedule != "" }

// makeSpec returns the job that the command line asks for; lookup is os.LookupEnv.
func (o *runOptions) makeSpec(args []string, lookup func(string) (string, bool), now time.Time) (joblet.Spec, error) {
	s := o.spec
	s.Command, s.Args = args[0], args[1:]
	o.env.Flag, o.secretEnv.Flag = "--env", "--secret-env"
	var err error
	if s.Env, err = o.env.Read(lookup); err != nil {
		return s, err
	}
	if s.SecretEnv, err = o.secretEnv.Read(lookup); err != nil {
		return s, err
	}
	if s.Labels, err = flags.ParseLabels(o.labels); err != nil {
		return s, err
	}
	if s.Security, err = o.security.Read(); err != nil {
		return s, err
	}
	if o.schedule != "" {
		when, err := schedule.Parse(o.schedule, now)
		if err != nil {
			return s, err
		}
		s.Schedule = when.String()
	}
	s.Overlap = joblet.Overlap(strings.ToLower(o.overlap))
	if o.retryOn != "" {
		if s.RetryOn, s.RetryOnLost, err = flags.ParseRetryOn(o.retryOn); err != nil {
			return s, joblet.Errorf(joblet.InvalidArgument, "--retry-on: %w", err)
		}
	}
	if o.logMax != "" {
		if s.LogMax, err = joblet.ParseSize(o.logMax); err != nil {
			return s, joblet.Errorf(joblet.InvalidArgument, "--log-max: %w", err)
		}
	}
	if o.interactive && !o.tty && o.stdin == "" {
		o.stdin = "-"
	}
	if o.stdin != "" {
		// A job that may start after rnx is gone, or more than once, needs all of its
		// input beforehand.
		s.Stdin = joblet.StdinStream
		if o.detached() || s.Retries > 0 || s.IdempotencyKey != "" {
			s.Stdin = joblet.StdinFile
		}
	}
	switch {
	case s.Retries == 0 && (s.RetryDelay != 0 || s.RetryOn != nil || s.RetryOnLost):
		return s, joblet.Errorf(joblet.InvalidArgument, "--retry-delay and --retry-on need --retry=N")
	case len(o.download) > 0 && o.detached():
		return s, joblet.Errorf(joblet.InvalidArgument, `--download: rnx does not wait for the end of this job; use "rnx job cp" when it has ended`)
	case len(o.download) == 0 && o.downloadTo != "":
		return s, joblet.Errorf(joblet.InvalidArgument, "--download-to needs --download=PATTERN")
	}
	return s, s.Validate()
}

// terminal decides whether the job gets a terminal, and returns the user's if it does.
func (o *runOptions) terminal(a *app.App, spec *joblet.Spec) (*term.Terminal, error) {
	keys, err := term.ParseKeys(o.detachKeys)
	if err != nil {
		return nil, err
	}
	// A job that runs later or again, and one whose events a program reads, gets none.
	byDefault := term.IsTerminal(a.In) && term.IsTerminal(a.Out) && o.stdin == "" && !o.detached() && spec.Retries == 0 && !a.JSON
	wanted, err := o.wanted(byDefault)
	switch {
	case err != nil || !wanted:
		return nil, err
	case a.JSON && !o.detached():
		return nil, joblet.Errorf(joblet.InvalidArgument, "--tty and --json exclude each other: the output of a terminal is not JSON")
	case o.stdin != "":
		return nil, joblet.Errorf(joblet.InvalidArgument, "--tty and --stdin exclude each other: the terminal is the job's standard input; -it passes on that of rnx")
	}
	t := term.New(a.In, a.Out, keys)
	spec.Terminal = t.Window()
	if _, secret := spec.SecretEnv["TERM"]; !secret {
		passTerm(&spec.Env)
	}
	t.Mute = t.TTY == nil && !o.interactive
	return t, spec.Validate()
}

// input opens the files and the standard input that are sent with the job; nil: there are
// none. It notes the files that are left out.
func (o *runOptions) input(spec joblet.Spec, stdin func() io.Reader, note func(format string, args ...any)) (*session.Input, error) {
	var files func(io.Writer) error
	var input io.Reader
	var sources []archive.Source
	seen := make(map[string]string)
	for _, path := range o.uploads {
		full, err := filepath.Abs(path)
		if err != nil {
			return nil, fmt.Errorf("--upload %s: %w", path, err)
		}
		name := filepath.Base(full)
		if _, err = os.Stat(path); err != nil {
			return nil, joblet.Errorf(joblet.InvalidArgument, "--upload: %w", err)
		}
		if filepath.Dir(full) == full {
			return nil, joblet.Errorf(joblet.InvalidArgument, "--upload %s: it has no name; --upload-dir copies its contents", path)
		}
		if other, ok := seen[name]; ok {
			return nil, joblet.Errorf(joblet.InvalidArgument, "--upload %s and %s: both would arrive as /work/%s", other, path, name)
		}
		seen[name] = path
		sources = append(sources, archive.Source{Path: path, Name: name})
	}
	for _, path := range o.uploadDir {
		info, err := os.Stat(path)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is not a directory", path)
		}
		if err != nil {
			return nil, joblet.Errorf(joblet.InvalidArgument, "--upload-dir: %w", err)
		}
		sources = append(sources, archive.Source{Path: path})
	}
	if sources == nil && len(o.exclude) > 0 {
		return nil, joblet.Errorf(joblet.InvalidArgument, "--exclude: nothing is uploaded; add --upload or --upload-dir")
	}
	if sources != nil {
		leftOut := 0
		stats, err := archive.CheckPaths(sources, archive.Filter{Exclude: o.exclude, LeftOut: func(file string, why error) {
			if leftOut++; leftOut <= transfer.MaxLeftOutNotes {
				note("left out of the upload: %s %s", joblet.Printable(file), joblet.Printable(why.Error()))
			}
		}}, archive.DefaultLimits)
		if err != nil {
			return nil, err
		}
		if more := stats.Skipped - transfer.MaxLeftOutNotes; more > 0 {
			note("left out of the upload: %d more", more)
		}
		files = func(w io.Writer) error {
			_, err := archive.PackPaths(w, sources, archive.Filter{Exclude: o.exclude}, archive.DefaultLimits)
			return err
		}
	}
	switch o.stdin {
	case "":
	case "-":
		input = stdin()
	default:
		f, err := os.Open(o.stdin)
		if err != nil {
			return nil, joblet.Errorf(joblet.InvalidArgument, "--stdin: %w", err)
		}
		if info, err := f.Stat(); err == nil && info.IsDir() {
			return nil, joblet.Errorf(joblet.InvalidArgument, "--stdin: %s is a directory", o.stdin)
		}
		input = f // until rnx ends
	}
	return session.NewInput(files, input, spec.Stdin == joblet.StdinFile), nil
}

func runDetached(ctx context.Context, a *app.App, spec joblet.Spec, in *session.Input) error {
	return a.With(ctx, func(c *client.Client) error {
		j, err := session.Accept(ctx, c, spec, in)
		if err != nil {
			return session.Unanswered(err)
		}
		if j.State == joblet.Scheduled && term.Width(a.ErrOut) > 0 {
			a.Note("%s", jobview.ScheduledNote(j, time.Now()))
		}
		return showJob(a, j)
	})
}

// passTerm adds the TERM of rnx to a job's variables, unless they have one.
func passTerm(env *map[string]string) {
	if _, given := (*env)["TERM"]; given {
		return
	}
	if kind := os.Getenv("TERM"); kind != "" {
		if *env == nil {
			*env = map[string]string{}
		}
		(*env)["TERM"] = kind
	}
}
