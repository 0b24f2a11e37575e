// Package cli is the command line of rnx: the root command, and the commands that are
// neither of jobs nor of the host's load.
package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/job"
	"github.com/joblet/joblet/internal/cli/monitor"
	"github.com/joblet/joblet/internal/help"
)

// Run executes a command line of rnx with the given streams and returns the status
// to exit with.
func Run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := &app.App{In: in, Out: out, ErrOut: errOut}
	root := newRootCommand(a)
	return a.Execute(ctx, root, expandShortcut(root, args))
}

// NewCommand returns the command rnx with all its subcommands, for documents about them.
func NewCommand() *cobra.Command { return newRootCommand(&app.App{}) }

func newRootCommand(a *app.App) *cobra.Command {
	root := &cobra.Command{
		Use:   "rnx",
		Short: "Run any command on a Linux host as an isolated job",
		Long: `Run any command on a Linux host as an isolated job.

rnx talks to the daemon on this machine, unless --host, RNX_HOST or a configuration
file (rnx-config.yml, see "rnx login") names another. If none answers, rnx started
by root starts one, which exits after ten idle minutes.

"rnx run", logs, exec, stop, kill, top and cp are aliases of the commands of
"rnx job", and "rnx ps" is an alias of "rnx job list".`,
		Example: `  rnx job run ps aux
  rnx job run --runtime=python-3.11-ml python3 -c 'import numpy'
  rnx job list
  rnx runtime build recipes/python-3.11.yaml`,
		Version:       joblet.Build().String(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs, // group refuses them in one line
		RunE:          app.Group,
	}
	root.ValidArgsFunction = completeShortcuts
	a.AddGlobalFlags(root)
	help.Install(root)
	root.AddCommand(job.NewCommand(a), newRuntimeCommand(a), monitor.NewCommand(a), newNodesCommand(a), newLoginCommand(a), newVersionCommand(a))
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	return root
}
