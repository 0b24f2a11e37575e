// Package app has what the commands of rnx share: the global flags, the streams, the
// connection to the daemon, and the form of errors, notes and exit statuses.
package app

import (
	"bufio"
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
	"github.com/joblet/joblet/internal/cli/term"
	"github.com/joblet/joblet/internal/help"
	"github.com/joblet/joblet/internal/spelling"
)

// App is what the commands share.
type App struct {
	Host     string // --host; empty: not given
	Node     string // --node
	config   string // --config
	JSON     bool   // --json or --format=json
	Template string // --format, if it is a template; see AllowTemplate
	NoColor  bool   // --no-color
	warned   bool   // WarnOfKey has printed its note

	In          io.Reader
	Out, ErrOut io.Writer
	terminals   []any // those of the streams that NoteTerminals found to be terminals
}

// Colors reports whether output to w may have colors: w is a terminal, and neither the
// user nor the environment objects.
func (a *App) Colors(w io.Writer) bool { return !a.NoColor && term.Colors(w) }

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

// StatusFailed is the exit status after an error; "job run" has statuses of its own.
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

// Report prints an error that ends rnx with status.
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

// AddGlobalFlags adds to root the flags that all commands have.
func (a *App) AddGlobalFlags(root *cobra.Command) {
	root.SetVersionTemplate("rnx {{.Version}}\n")
	f := root.PersistentFlags()
	f.StringVar(&a.Host, "host", "", "address of the daemon: unix:///path, or HOST:PORT with the node's certificates (default $RNX_HOST, then the node)")
	f.StringVar(&a.Node, "node", "", "node in the configuration, or \"local\" (default $RNX_NODE, then the node with isDefault, or called default)")
	f.StringVar(&a.config, "config", "", "configuration `FILE` (default $RNX_CONFIG, then rnx-config.yml in ., config, ~/.rnx, /etc/joblet)")
	f.BoolVar(&a.JSON, "json", false, "print JSON, including errors")
	f.Var((*formatFlag)(a), "format", "\"json\", the same as --json, or a Go `TEMPLATE` where a command takes one")
	f.BoolVar(&a.NoColor, "no-color", false, "print no colors (default when $NO_COLOR is set or $TERM is dumb)")
	_ = root.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"json"}, cobra.ShellCompDirectiveNoFileComp))
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case a.Template != "" && cmd.Annotations[templateAnnotation] == "":
			return joblet.Errorf(joblet.InvalidArgument, "--format: %q takes no template, only --format=json", cmd.CommandPath())
		case a.Template != "" && a.JSON:
			return joblet.Errorf(joblet.InvalidArgument, "--format and --json exclude each other")
		}
		return nil
	}
	root.SetFlagErrorFunc(flagError)
}

// formatFlag is --format.
type formatFlag App

func (f *formatFlag) String() string { return f.Template }

func (f *formatFlag) Type() string { return "FORMAT" }

func (f *formatFlag) Set(s string) error {
	switch {
	case s == "json":
		f.JSON, f.Template = true, ""
	case s == "" || strings.Contains(s, "{{"):
		f.Template = s
	default:
		return fmt.Errorf("%.40q is not a valid format: use json, or a template such as {{.Name}}", s)
	}
	return nil
}

// templateAnnotation marks the commands that print records by a template.
const templateAnnotation = "template"

// AllowTemplate marks cmd as a command that prints its records by App.Template.
func AllowTemplate(cmd *cobra.Command) {
	if cmd.Annotations == nil {
		cmd.Annotations = map[string]string{}
	}
	cmd.Annotations[templateAnnotation] = "yes"
}

// ExitStatusHelp ends the help of every command but job run.
const ExitStatusHelp = `

Exit status: 0, or 1 if an error occurred.`

// Group is a command that only holds others.
func Group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return unknownCommand(cmd, args[0])
}

// unknownCommand is the error for a word that is no command below cmd.
func unknownCommand(cmd *cobra.Command, word string) error {
	msg := fmt.Sprintf("unknown command %q", strings.TrimSpace(cmd.CommandPath()+" "+word))
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if hint := commandHints[word]; hint != "" {
		msg += "; " + hint
	} else if meant := byMeaning(cmd, word); meant != nil {
		msg += fmt.Sprintf("; did you mean %q?", meant.CommandPath())
	} else if s := cmd.SuggestionsFor(word); len(s) > 0 {
		msg += fmt.Sprintf("; did you mean %q?", cmd.CommandPath()+" "+s[0])
	} else {
		msg += fmt.Sprintf("; see %q", cmd.CommandPath()+" --help")
	}
	return joblet.Errorf(joblet.InvalidArgument, "%s", msg)
}

// byMeaning returns the command below cmd, or below one of its groups, for which other
// programs use the name word; nil: there is none.
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

// flagError is the error for a wrong flag of cmd, with what to use instead.
func flagError(cmd *cobra.Command, err error) error {
	msg := err.Error()
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		msg = fmt.Sprintf("--%s: %v", e.GetFlag().Name, help.ValueError(e.GetValue(), e.Unwrap()))
	}
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		if words := cmd.Flags().Args(); cmd.HasSubCommands() && len(words) > 0 { // the flag belongs to an unknown command
			return unknownCommand(cmd, words[0])
		}
		if hint := flagHint(cmd.Name(), e.GetSpecifiedName()); hint != "" {
			return joblet.Errorf(joblet.InvalidArgument, "%s; %s", msg, hint)
		}
		var flags []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				flags = append(flags, f.Name)
			}
		})
		best := spelling.Nearest(e.GetSpecifiedName(), slices.Values(flags), 3)
		if best != "" && len(e.GetSpecifiedName()) > 1 {
			msg += "; did you mean --" + best + "?"
		} else {
			msg += fmt.Sprintf("; see %q", cmd.CommandPath()+" --help")
		}
	}
	return joblet.Errorf(joblet.InvalidArgument, "%s", msg)
}

// AtOnce is the usual limit of Each.
const AtOnce = 16

// Each calls do for every argument, for at most limit of them at once. In the order of
// the arguments it shows the results and reports the errors.
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

// AtLeastOne refuses a command line without arguments, which are called what.
func AtLeastOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return noneGiven(cmd, what, true)
		}
		return nil
	}
}

// noneGiven is the error for a command line without what the command is for.
func noneGiven(cmd *cobra.Command, what string, many bool) error {
	hint := fmt.Sprintf("see %q", cmd.CommandPath()+" --help")
	switch {
	case what == "job" && many: // perhaps $(rnx job list -q …), and the list is empty
		hint = fmt.Sprintf(`"rnx job list" shows the jobs; in a script, "xargs -r %s" accepts an empty list`, cmd.CommandPath())
	case what == "job", what == "runtime":
		hint = fmt.Sprintf(`"rnx %s list" shows them`, what)
	}
	return joblet.Errorf(joblet.InvalidArgument, "no %s given; %s", what, hint)
}

// ExactlyOne refuses any number of arguments but one, which is called what.
func ExactlyOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch len(args) {
		case 0:
			return noneGiven(cmd, what, false)
		case 1:
			return nil
		default:
			return joblet.Errorf(joblet.InvalidArgument, "%d arguments given, but the command takes one %s; see %q", len(args), what, cmd.CommandPath()+" --help")
		}
	}
}

// Note prints a line about something that is not an error, unless the output is JSON.
func (a *App) Note(format string, args ...any) {
	if !a.JSON {
		fmt.Fprintf(a.ErrOut, "rnx: %s\n", joblet.Shorten(fmt.Sprintf(format, args...)))
	}
}

// Confirm asks the user on the terminal and reports whether the answer is yes.
func (a *App) Confirm(question string) (bool, error) {
	if _, err := fmt.Fprintf(a.ErrOut, "%s [y/N] ", question); err != nil {
		return false, err
	}
	answer, err := bufio.NewReader(a.In).ReadString('\n')
	if err != nil && err != io.EOF {
		return false, fmt.Errorf("cannot read the answer: %w", err)
	}
	if err == io.EOF {
		fmt.Fprintln(a.ErrOut)
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes", nil
}

// Println writes a line to standard output.
func (a *App) Println(s string) error {
	_, err := io.WriteString(a.Out, s+"\n")
	return err
}

// RunStatus returns the exit status of "job run" after err.
func RunStatus(err error) int {
	switch joblet.KindOf(err) {
	case joblet.CommandNotFound:
		return joblet.StatusNotFound
	case joblet.NotExecutable:
		return joblet.StatusNotExecutable
	}
	return joblet.StatusFailure
}
