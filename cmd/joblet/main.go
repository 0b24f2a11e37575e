// Command joblet is the daemon: it runs jobs and answers rnx.
package main

import (
	"fmt"
	"os"
	_ "time/tzdata" // the zones of schedules, also on a host without them

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
)

func main() {
	if err := newCommand().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "joblet:", err)
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "joblet",
		Short:         "Run commands as isolated jobs on this host",
		Version:       joblet.Build().String(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	cmd.SetVersionTemplate("joblet {{.Version}}\n")
	cmd.AddCommand(newServeCommand(), newFsckCommand(), newCheckCommand(), newPKICommand(), newConfigCommand(), &cobra.Command{
		Use:   "version",
		Short: "Print what this program was built from",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), "joblet", joblet.Build())
		},
	})
	return cmd
}
