package job

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// section is a part of a command's flags in its help.
type section struct {
	title string
	flags []string
}

// runSections are the flags of "rnx job run", in the order of its help.
var runSections = []section{
	{"Identity", []string{"name", "label", "idempotency-key", "user"}},
	{"Process", []string{"runtime", "workdir", "init", "timeout", "env", "env-file", "secret-env", "secret-env-file"}},
	{"Resources", []string{"max-cpu", "cpu-weight", "cpu-cores", "max-memory", "memory-high", "max-swap", "max-pids", "max-iobps", "max-read-bps", "max-write-bps", "max-iops", "max-disk", "shm-size", "nofile", "rlimit"}},
	{"Files", []string{"upload", "upload-dir", "exclude", "download", "download-to"}},
	{"Scheduling", []string{"schedule", "overlap", "depends-on", "priority", "retry", "retry-delay", "retry-on"}},
	{"Security", []string{"security", "cap-add", "cap-drop", "log-denied"}},
	{"Terminal and output", []string{"detach", "tty", "no-tty", "interactive", "stdin", "detach-keys", "merge", "log-max"}},
}

// helpWidth is how many columns the help of flags takes.
const helpWidth = 80

// divideFlags shows the flags of a command in sections; those in none come last.
func divideFlags(cmd *cobra.Command, sections []section) {
	cmd.SetUsageFunc(func(cmd *cobra.Command) error {
		out := cmd.OutOrStderr()
		fmt.Fprintf(out, "Usage:\n  %s\n\nExamples:\n%s\n", cmd.UseLine(), cmd.Example)
		shown := map[string]bool{}
		write := func(title string, add func(*pflag.FlagSet)) {
			set := pflag.NewFlagSet(title, pflag.ContinueOnError)
			set.SortFlags = false
			add(set)
			if set.HasAvailableFlags() {
				fmt.Fprintf(out, "\n%s:\n%s", title, set.FlagUsagesWrapped(helpWidth))
			}
		}
		local := cmd.LocalFlags()
		for _, s := range sections {
			write(s.title, func(set *pflag.FlagSet) {
				for _, name := range s.flags {
					if f := local.Lookup(name); f != nil {
						set.AddFlag(f)
						shown[name] = true
					}
				}
			})
		}
		write("Other", func(set *pflag.FlagSet) {
			local.VisitAll(func(f *pflag.Flag) {
				if !shown[f.Name] {
					set.AddFlag(f)
				}
			})
		})
		write("Global flags", func(set *pflag.FlagSet) { set.AddFlagSet(cmd.InheritedFlags()) })
		return nil
	})
}
