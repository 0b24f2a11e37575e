// Package cli is the command line of rnx: its commands, and what they print.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/spelling"
)

// Run executes a command line of rnx with the given streams and returns the status
// to exit with.
func Run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := &app{in: in, out: out, errOut: errOut}
	return a.run(ctx, args)
}

// app is what the commands share.
type app struct {
	host   string // --host; empty: not given
	node   string // --node
	config string // --config
	json   bool
	warned bool // that others may read our key

	in          io.Reader
	out, errOut io.Writer
	terminals   []any // those of these that were terminals at the start; see hungUp
}

// exitError ends rnx with a status. Without an error it ends quietly.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("status %d", e.status)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// statusFailed is how rnx ends when it fails; job run has statuses of its own.
const statusFailed = 1

// run executes a command line and returns the status to exit with.
func (a *app) run(ctx context.Context, args []string) int {
	root := newRootCommand(a)
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.errOut)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	status := statusFailed
	switch cmd.Name() {
	case "run", "attach", "exec", "shell": // these end as something in a job does
		status = runStatus(err)
	}
	if errors.Is(err, syscall.EPIPE) { // the reader of our output has seen enough
		return 128 + int(syscall.SIGPIPE)
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		if status = e.status; e.err == nil {
			return status
		}
	}
	a.report(status, err)
	return status
}

// report prints the one line that says why rnx fails.
func (a *app) report(status int, err error) {
	if !a.json {
		fmt.Fprintf(a.errOut, "rnx: %s\n", printable(joblet.Shorten(err.Error())))
		return
	}
	_ = json.NewEncoder(a.errOut).Encode(struct {
		Error      string `json:"error"`
		Kind       string `json:"kind"`
		ExitStatus int    `json:"exit_status"`
	}{joblet.Shorten(err.Error()), joblet.KindOf(err).String(), status})
}

// writeJSON prints v as one line of JSON.
func (a *app) writeJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "rnx",
		Short: "Run any command on a Linux host as an isolated job",
		Long: `Run any command on a Linux host as an isolated job.

rnx talks to the daemon on this machine, unless --host, RNX_HOST or a configuration
file (rnx-config.yml, see "rnx login") names another. If none answers, rnx started
by root starts one, which exits after ten idle minutes.`,
		Example: `  rnx job run ps aux
  rnx job run --runtime=python-3.11-ml python3 -c 'import numpy; print(numpy.pi)'
  rnx job list
  rnx runtime build recipes/python-3.11.yaml`,
		Version:       joblet.Build().String(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs, // group refuses them in one line
		RunE:          group,
	}
	root.SetVersionTemplate("rnx {{.Version}}\n")
	f := root.PersistentFlags()
	f.StringVar(&a.host, "host", "", "address of the daemon: unix:///path, or HOST:PORT with the node's certificates (default $RNX_HOST, then the node)")
	f.StringVar(&a.node, "node", "", "node in the configuration, or \"local\" (default $RNX_NODE, then the node with isDefault, or called default)")
	f.StringVar(&a.config, "config", "", "configuration `FILE` (default $RNX_CONFIG, then rnx-config.yml in ., config, ~/.rnx, /etc/joblet)")
	f.BoolVar(&a.json, "json", false, "print JSON, including errors")
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(newJobCommand(a), newRuntimeCommand(a), newMonitorCommand(a), newNodesCommand(a), newLoginCommand(a), newVersionCommand(a))
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	return root
}

// exitStatusHelp ends the help of every command but job run.
const exitStatusHelp = `

Exit status: 0, or 1 if an error occurred.`

// group is a command that only holds others.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	msg := fmt.Sprintf("unknown command %q", strings.TrimSpace(cmd.CommandPath()+" "+args[0]))
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		msg += fmt.Sprintf("; did you mean %q?", cmd.CommandPath()+" "+s[0])
	} else {
		msg += fmt.Sprintf("; see %q", cmd.CommandPath()+" --help")
	}
	return joblet.Errorf(joblet.InvalidArgument, "%s", msg)
}

// flagError adds the flag that was perhaps meant.
func flagError(cmd *cobra.Command, err error) error {
	msg := err.Error()
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		var flags []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { flags = append(flags, f.Name) })
		best := spelling.Nearest(e.GetSpecifiedName(), slices.Values(flags), 3)
		if best != "" && len(e.GetSpecifiedName()) > 1 {
			msg += "; did you mean --" + best + "?"
		} else {
			msg += fmt.Sprintf("; see %q", cmd.CommandPath()+" --help")
		}
	}
	return joblet.Errorf(joblet.InvalidArgument, "%s", msg)
}

// doing is how many arguments something is done with at once, where it may be.
const doing = 16

// each does something with every argument, with at most limit of them at once. In
// the order of the arguments it shows what came of it and says what failed, and goes on.
func (a *app) each(args []string, limit int, do func(string) (show func() error, err error)) error {
	type result struct {
		show func() error
		err  error
	}
	given := len(args)
	args = slices.Compact(slices.Clone(args))
	results := make([]chan result, len(args))
	for i := range results {
		results[i] = make(chan result, 1)
	}
	var next atomic.Int64
	for range min(limit, len(args)) {
		go func() { // ends when all is done, or with the process
			for i := int(next.Add(1)) - 1; i < len(args); i = int(next.Add(1)) - 1 {
				show, err := do(args[i])
				results[i] <- result{show, err}
			}
		}()
	}
	var failed *exitError
	for i, arg := range args {
		r := <-results[i]
		if r.err == nil && r.show != nil {
			r.err = r.show()
		}
		if r.err == nil {
			continue
		}
		if given == 1 {
			return r.err
		}
		a.report(statusFailed, fmt.Errorf("%s: %w", arg, r.err))
		failed = &exitError{status: statusFailed}
	}
	if failed != nil {
		return failed
	}
	return nil
}

// atLeastOne is cobra.MinimumNArgs(1) in a sentence.
func atLeastOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return joblet.Errorf(joblet.InvalidArgument, "no %s given; see %q", what, cmd.CommandPath()+" --help")
		}
		return nil
	}
}

func exactlyOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return joblet.Errorf(joblet.InvalidArgument, "%d arguments given: exactly one %s is needed; see %q", len(args), what, cmd.CommandPath()+" --help")
		}
		return nil
	}
}
