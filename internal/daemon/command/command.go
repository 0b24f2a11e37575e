// Package command is the command line of joblet.
package command

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/daemon"
	"github.com/joblet/joblet/internal/help"
)

// New returns the command joblet with all its subcommands.
func New() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "joblet",
		Short:         "Run commands as isolated jobs on this host",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	// Not cobra's own: its templates would keep every method in the program, and
	// 4 MiB more of it in memory.
	version := cmd.Flags().BoolP("version", "v", false, "version for joblet")
	cmd.Args = cobra.ArbitraryArgs // refused by help.Group
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *version {
			fmt.Fprintln(cmd.OutOrStdout(), "joblet", joblet.Build())
			return nil
		}
		return help.Group(cmd, args)
	}
	cmd.SetFlagErrorFunc(help.FlagError)
	cmd.AddCommand(daemon.NewServeCommand(), daemon.NewFsckCommand(), newCheckCommand(), newPKICommand(), daemon.NewConfigCommand(), &cobra.Command{
		Use:   "version",
		Short: "Print version and build information",
		Args:  help.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), "joblet", joblet.Build())
		},
	})
	help.Install(cmd)
	return cmd
}
