package help

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/spelling"
)

// Group is the action of a command that only holds others: its help, or an error that
// names the nearest of its commands.
func Group(cmd *cobra.Command, args []string) error {
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
		msg += see(cmd)
	}
	return joblet.Errorf(joblet.InvalidArgument, "%s", msg)
}

// FlagError is the FlagErrorFunc of a root command: it turns an error of pflag into one
// sentence, with the nearest flag in place of an unknown one.
func FlagError(cmd *cobra.Command, err error) error {
	msg := err.Error()
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		msg = fmt.Sprintf("--%s: %v", e.GetFlag().Name, ValueError(e.GetValue(), e.Unwrap()))
	}
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		var flags []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { flags = append(flags, f.Name) })
		best := spelling.Nearest(e.GetSpecifiedName(), slices.Values(flags), 3)
		if best != "" && len(e.GetSpecifiedName()) > 1 {
			msg += "; did you mean --" + best + "?"
		} else {
			msg += see(cmd)
		}
	}
	return joblet.Errorf(joblet.InvalidArgument, "%s", msg)
}

// ValueError returns the error of a flag's Set for value without the names of Go's
// functions.
func ValueError(value string, err error) error {
	n, ok := errors.AsType[*strconv.NumError](err)
	switch {
	case !ok:
		return err
	case n.Func == "ParseBool":
		return fmt.Errorf("%.40q must be true or false", value)
	case errors.Is(n, strconv.ErrRange):
		return fmt.Errorf("%.40q is out of range", value)
	}
	return fmt.Errorf("%.40q is not a whole number", value)
}

// NoArgs refuses all arguments.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return joblet.Errorf(joblet.InvalidArgument, "unexpected argument %.40q%s", args[0], see(cmd))
	}
	return nil
}

// OneArg refuses any other number of arguments than one, which errors call what.
func OneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return joblet.Errorf(joblet.InvalidArgument, "no %s given%s", what, see(cmd))
		}
		return NoArgs(cmd, args[1:])
	}
}

// AtMostOneArg refuses more than one argument.
func AtMostOneArg(cmd *cobra.Command, args []string) error {
	return NoArgs(cmd, args[min(len(args), 1):])
}

func see(cmd *cobra.Command) string { return fmt.Sprintf("; see %q", cmd.CommandPath()+" --help") }
