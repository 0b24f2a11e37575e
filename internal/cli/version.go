package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
)

func newVersionCommand(a *app.App) *cobra.Command {
	var only bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of rnx and the daemon",
		Long:  "Print rnx's version, and the daemon's when one answers." + app.ExitStatusHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var server *client.Version
			if !only {
				server = serverVersion(cmd.Context(), a)
			}
			if a.JSON {
				return a.WriteJSON(struct {
					Client joblet.BuildInfo `json:"client"`
					Server *client.Version  `json:"server,omitempty"`
				}{joblet.Build(), server})
			}
			if _, err := fmt.Fprintln(a.Out, "rnx   ", joblet.Build()); err != nil {
				return err
			}
			if server != nil {
				b := joblet.BuildInfo{Version: server.Version, Commit: server.Commit, Go: server.Go, Platform: server.Platform}
				_, err := fmt.Fprintln(a.Out, "joblet", b)
				return err
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&only, "client", false, "print the version of rnx only")
	return cmd
}

// serverVersion returns nil when no daemon answers.
func serverVersion(ctx context.Context, a *app.App) *client.Version {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := a.ConnectRunning(ctx)
	if err != nil {
		return nil
	}
	defer c.Close()
	v, err := c.ServerVersion(ctx)
	if err != nil {
		return nil
	}
	return &v
}
