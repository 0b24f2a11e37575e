// Package app is what the commands of rnx share: the global flags, the streams, the
// connection to the daemon, and the form of errors, notes and exit statuses.
package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/spelling"
)

// App is what the commands share.
type App struct {
	Host   string // --host; empty: not given
	Node   string // --node
	config string // --config
	JSON   bool
	warned bool // that others may read our key

	In          io.Reader
	Out, ErrOut io.Writer
	terminals   []any // those of these that were terminals at the start; see hungUp
}

// ExitError ends rnx with a status. Without an error it ends quietly.
type ExitError struct {
	Status int
	Err    error
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("status %d", e.Status)
	}
	return e.Err.Error()
}

func (e *ExitError) Unwrap() error { return e.Err }

// StatusFailed is how rnx ends when it fails; job run has statuses of its own.
const StatusFailed = 1

// Execute executes a command line and returns the status to exit with.
func (a *App) Execute(ctx context.Context, root *cobra.Command, args []string) int {
	root.SetArgs(args)
	root.SetOut(a.Out)
	root.SetErr(a.ErrOut)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	status := StatusFailed
	switch cmd.Name() {
	case "run", "attach", "exec", "shell": // these end as something in a job does
		status = RunStatus(err)
	}
	if errors.Is(err, syscall.EPIPE) { // the reader of our output has seen enough
		return 128 + int(syscall.SIGPIPE)
	}
	if e, ok := errors.AsType[*ExitError](err); ok {
		if status = e.Status; e.Err == nil {
			return status
		}
	}
	a.Report(status, err)
	return status
}

// Report prints the one line that says why rnx fails.
func (a *App) Report(status int, err error) {
	if !a.JSON {
		fmt.Fprintf(a.ErrOut, "rnx: %s\n", joblet.Printable(joblet.Shorten(err.Error())))
		return
	}
	_ = json.NewEncoder(a.ErrOut).Encode(struct {
		Error      string `json:"error"`
		Kind       string `json:"kind"`
		ExitStatus int    `json:"exit_status"`
	}{joblet.Shorten(err.Error()), joblet.KindOf(err).String(), status})
}

// WriteJSON prints v as one line of JSON.
func (a *App) WriteJSON(v any) error {
	e := json.NewEncoder(a.Out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// AddGlobalFlags makes root the root of all commands: with the flags that all have.
func (a *App) AddGlobalFlags(root *cobra.Command) {
	root.SetVersionTemplate("rnx {{.Version}}\n")
	f := root.PersistentFlags()
	f.StringVar(&a.Host, "host", "", "address of the daemon: unix:///path, or HOST:PORT with the node's certificates (default $RNX_HOST, then the node)")
	f.StringVar(&a.Node, "node", "", "node in the configuration, or \"local\" (default $RNX_NODE, then the node with isDefault, or called default)")
	f.StringVar(&a.config, "config", "", "configuration `FILE` (default $RNX_CONFIG, then rnx-config.yml in ., config, ~/.rnx, /etc/joblet)")
	f.BoolVar(&a.JSON, "json", false, "print JSON, including errors")
	root.SetFlagErrorFunc(flagError)
}

// ExitStatusHelp ends the help of every command but job run.
const ExitStatusHelp = `

Exit status: 0, or 1 if an error occurred.`

// Group is a command that only holds others.
func Group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	msg := fmt.Sprintf("unknown command %q", strings.TrimSpace(cmd.CommandPath()+" "+args[0]))
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if meant := byMeaning(cmd, args[0]); meant != nil {
		msg += fmt.Sprintf("; did you mean %q?", meant.CommandPath())
	} else if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		msg += fmt.Sprintf("; did you mean %q?", cmd.CommandPath()+" "+s[0])
	} else {
		msg += fmt.Sprintf("; see %q", cmd.CommandPath()+" --help")
	}
	return joblet.Errorf(joblet.InvalidArgument, "%s", msg)
}

// byMeaning returns the command below cmd, or below one of its groups, that does what
// word is elsewhere the name for.
func byMeaning(cmd *cobra.Command, word string) *cobra.Command {
	for _, sub := range cmd.Commands() {
		if slices.Contains(sub.SuggestFor, word) {
			return sub
		}
	}
	for _, sub := range cmd.Commands() {
		for _, c := range sub.Commands() {
			if c.Name() == word || c.HasAlias(word) || slices.Contains(c.SuggestFor, word) {
				return c
			}
		}
	}
	return nil
}

// flagError adds the flag that was perhaps meant.
func flagError(cmd *cobra.Command, err error) error {
	msg := err.Error()
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		msg = fmt.Sprintf("--%s: %s", e.GetFlag().Name, valueError(e))
	}
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		if hint := dockerHints[e.GetSpecifiedName()]; hint != "" && cmd.Name() == "run" {
			return joblet.Errorf(joblet.InvalidArgument, "%s; %s", msg, hint)
		}
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

// valueError says what is wrong with the value of a flag.
func valueError(e *pflag.InvalidValueError) string {
	n, ok := errors.AsType[*strconv.NumError](e.Unwrap())
	switch {
	case !ok:
		return e.Unwrap().Error()
	case n.Func == "ParseBool":
		return fmt.Sprintf("%.40q: give true or false", e.GetValue())
	case errors.Is(n, strconv.ErrRange):
		return fmt.Sprintf("%.40q is out of range", e.GetValue())
	}
	return fmt.Sprintf("%.40q is not a whole number", e.GetValue())
}

// dockerHints say what to use for flags of docker run that Joblet does not have.
var dockerHints = map[string]string{
	"v":       "files go into a job with --upload or --upload-dir, and come out with --download",
	"volume":  "files go into a job with --upload or --upload-dir, and come out with --download",
	"mount":   "files go into a job with --upload or --upload-dir, and come out with --download",
	"p":       "ports of a job cannot be published",
	"publish": "ports of a job cannot be published",
	"rm":      "the record and output of a job stay until \"rnx job delete\" or \"rnx job prune\"",
}

// AtOnce is how many arguments something is done with at once, where it may be.
const AtOnce = 16

// Each does something with every argument, with at most limit of them at once. In
// the order of the arguments it shows what came of it and says what failed, and goes on.
func (a *App) Each(args []string, limit int, do func(string) (show func() error, err error)) error {
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
	var failed *ExitError
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
		a.Report(StatusFailed, fmt.Errorf("%s: %w", arg, r.err))
		failed = &ExitError{Status: StatusFailed}
	}
	if failed != nil {
		return failed
	}
	return nil
}

// AtLeastOne is cobra.MinimumNArgs(1) in a sentence.
func AtLeastOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return joblet.Errorf(joblet.InvalidArgument, "no %s given; see %q", what, cmd.CommandPath()+" --help")
		}
		return nil
	}
}

// ExactlyOne refuses any other number of arguments than one.
func ExactlyOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return joblet.Errorf(joblet.InvalidArgument, "%d arguments given: exactly one %s is needed; see %q", len(args), what, cmd.CommandPath()+" --help")
		}
		return nil
	}
}

// Note tells the user something that is no failure.
func (a *App) Note(format string, args ...any) {
	if !a.JSON {
		fmt.Fprintf(a.ErrOut, "rnx: %s\n", joblet.Shorten(fmt.Sprintf(format, args...)))
	}
}

// Println writes a line to standard output.
func (a *App) Println(s string) error {
	_, err := io.WriteString(a.Out, s+"\n")
	return err
}

// RunStatus returns with which status "job run" ends after err.
func RunStatus(err error) int {
	switch joblet.KindOf(err) {
	case joblet.CommandNotFound:
		return joblet.StatusNotFound
	case joblet.NotExecutable:
		return joblet.StatusNotExecutable
	}
	return joblet.StatusFailure
}
