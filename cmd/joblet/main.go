// Command joblet is the daemon: it runs jobs and answers rnx.
package main

import (
	"fmt"
	"os"
	_ "time/tzdata" // the zones of schedules, also on a host without them

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/runtimes"
)

func main() {
	runtimes.SandboxInit() // the daemon starts its own program to build runtimes
	if err := newCommand().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "joblet:", joblet.Shorten(err.Error()))
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "joblet",
		Short:         "Run commands as isolated jobs on this host",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	// Not cobra's own: its templates would keep every method in the program, and
	// 4 MiB more of it in memory.
	version := cmd.Flags().BoolP("version", "v", false, "version for joblet")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *version {
			fmt.Fprintln(cmd.OutOrStdout(), "joblet", joblet.Build())
			return nil
		}
		return cmd.Help()
	}
	cmd.AddCommand(newServeCommand(), newFsckCommand(), newCheckCommand(), newPKICommand(), newConfigCommand(), &cobra.Command{
		Use:   "version",
		Short: "Print version and build information",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), "joblet", joblet.Build())
		},
	})
	return cmd
}
