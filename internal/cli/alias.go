package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// shortcuts are the commands of "rnx job" that may stand at the top level, by their name
// there.
var shortcuts = map[string]string{
	"run": "run", "ps": "list", "logs": "log", "exec": "exec", "stop": "stop", "kill": "kill", "top": "top", "cp": "cp",
}

// expandShortcut returns the command line with "run" in place of "job run", and the like,
// written out. The command is the first argument that is no global flag; it may stand
// behind "help", and behind the word with which shells ask for completions.
func expandShortcut(root *cobra.Command, args []string) []string {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch name, isFlag := strings.CutPrefix(arg, "--"); {
		case arg == "help" || arg == cobra.ShellCompRequestCmd || arg == cobra.ShellCompNoDescRequestCmd:
		case isFlag && name != "":
			if f := root.PersistentFlags().Lookup(name); f != nil && f.NoOptDefVal == "" {
				i++ // its value
			}
		case shortcuts[arg] != "" && (i+1 < len(args) || !completes(args)):
			return slices.Concat(args[:i], []string{"job", shortcuts[arg]}, args[i+1:])
		default:
			return args
		}
	}
	return args
}

// completes reports whether a shell asks for completions of the last argument.
func completes(args []string) bool {
	return args[0] == cobra.ShellCompRequestCmd || args[0] == cobra.ShellCompNoDescRequestCmd
}

// completeShortcuts offers the shortcuts.
func completeShortcuts(_ *cobra.Command, given []string, prefix string) (offers []string, _ cobra.ShellCompDirective) {
	for name, verb := range shortcuts {
		if len(given) == 0 && strings.HasPrefix(name, prefix) {
			offers = append(offers, name+"\talias of rnx job "+verb)
		}
	}
	slices.Sort(offers)
	return offers, cobra.ShellCompDirectiveNoFileComp
}
