// Package help is the form of the command lines of rnx and joblet: help texts, 80 columns
// wide, and errors of usage.
package help

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Width is the number of columns that help takes at most, but for words and lines of
// examples that are longer.
const Width = 80

// Section is a part of a command's flags.
type Section struct {
	Title string
	Flags []string
}

// Install has a command and those below it write their help in this package's form.
func Install(root *cobra.Command) {
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		out := cmd.OutOrStdout()
		text := cmd.Long
		if text == "" {
			text = cmd.Short
		}
		if text = strings.TrimSpace(text); text != "" {
			fmt.Fprintf(out, "%s\n\n", Fill(text, Width))
		}
		if cmd.Runnable() || cmd.HasSubCommands() {
			fmt.Fprint(out, cmd.UsageString())
		}
	})
	root.SetUsageFunc(func(cmd *cobra.Command) error {
		out := cmd.OutOrStderr()
		writeHead(out, cmd)
		writeCommands(out, cmd)
		writeFlags(out, "Flags", cmd.LocalFlags())
		writeFlags(out, "Global flags", cmd.InheritedFlags())
		if cmd.HasAvailableSubCommands() {
			fmt.Fprintf(out, "\n\"%s COMMAND --help\" describes a command.\n", cmd.CommandPath())
		}
		return nil
	})
}

// Sections shows the flags of a command in sections. Flags in none of them come last.
func Sections(cmd *cobra.Command, sections []Section) {
	cmd.SetUsageFunc(func(cmd *cobra.Command) error {
		out := cmd.OutOrStderr()
		writeHead(out, cmd)
		shown := map[string]bool{}
		local := cmd.LocalFlags()
		for _, s := range sections {
			set := newSet()
			for _, name := range s.Flags {
				if f := local.Lookup(name); f != nil {
					set.AddFlag(f)
					shown[name] = true
				}
			}
			writeFlags(out, s.Title, set)
		}
		rest := newSet()
		local.VisitAll(func(f *pflag.Flag) {
			if !shown[f.Name] {
				rest.AddFlag(f)
			}
		})
		writeFlags(out, "Other", rest)
		writeFlags(out, "Global flags", cmd.InheritedFlags())
		return nil
	})
}

func newSet() *pflag.FlagSet {
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	set.SortFlags = false
	return set
}

func writeHead(out io.Writer, cmd *cobra.Command) {
	fmt.Fprint(out, "Usage:\n")
	if cmd.Runnable() && !cmd.HasAvailableSubCommands() {
		fmt.Fprintf(out, "  %s\n", cmd.UseLine())
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(out, "  %s COMMAND\n", cmd.CommandPath())
	}
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(out, "\nAliases:\n  %s\n", cmd.NameAndAliases())
	}
	if cmd.HasExample() {
		fmt.Fprintf(out, "\nExamples:\n%s\n", cmd.Example)
	}
}

// writeCommands lists the commands below a command, by their groups.
func writeCommands(out io.Writer, cmd *cobra.Command) {
	write := func(title, group string) {
		var lines []string
		for _, sub := range cmd.Commands() {
			if sub.GroupID == group && (sub.IsAvailableCommand() || sub.Name() == "help") {
				lines = append(lines, fmt.Sprintf("  %-*s  %s", sub.NamePadding(), sub.Name(), sub.Short))
			}
		}
		if len(lines) > 0 {
			fmt.Fprintf(out, "\n%s\n%s\n", title, strings.Join(lines, "\n"))
		}
	}
	for _, g := range cmd.Groups() {
		write(g.Title, g.ID)
	}
	title := "Commands:"
	if len(cmd.Groups()) > 0 {
		title = "Other:"
	}
	write(title, "")
}

func writeFlags(out io.Writer, title string, set *pflag.FlagSet) {
	if set.HasAvailableFlags() {
		fmt.Fprintf(out, "\n%s:\n%s", title, set.FlagUsagesWrapped(Width))
	}
}

// Fill breaks the lines of a text's paragraphs at a width. Lines that begin with a space
// stay as they are.
func Fill(text string, width int) string {
	var out []string
	var words []string
	flush := func() {
		line := ""
		for _, w := range words {
			switch {
			case line == "":
				line = w
			case len([]rune(line))+1+len([]rune(w)) <= width:
				line += " " + w
			default:
				out = append(out, line)
				line = w
			}
		}
		if line != "" {
			out = append(out, line)
		}
		words = nil
	}
	for line := range strings.SplitSeq(text, "\n") {
		if line == "" || line[0] == ' ' {
			flush()
			out = append(out, line)
			continue
		}
		words = append(words, strings.Fields(line)...)
	}
	flush()
	return strings.Join(out, "\n")
}
