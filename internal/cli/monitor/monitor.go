// Package monitor has the commands of "rnx monitor", which show the load of a host.
package monitor

import (
	"context"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
	"github.com/joblet/joblet/internal/cli/term"
)

// NewCommand returns "rnx monitor" with its subcommands.
func NewCommand(a *app.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "Show the load of the daemon's host",
		Example: `  rnx monitor status
  rnx monitor top
  rnx monitor watch --interval=2s --filter=cpu,memory`,
		RunE: app.Group,
	}
	cmd.AddCommand(newMonitorStatusCommand(a), newMonitorTopCommand(a), newMonitorWatchCommand(a))
	return cmd
}

const (
	filterHelp = `

--filter selects parts: cpu, memory, disk, network, io, process, host.`

	// usageHelp says how the numbers are meant.
	usageHelp = `

Usage and rates are measured since the previous request to the daemon, or over a
fifth of a second. CPU% of a process is its share of all cores.`
)

var metricTypes = []string{"cpu", "memory", "disk", "network", "io", "process", "host"}

func newMonitorStatusCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:               "status",
		Short:             "Show details of the host",
		Long:              "Show details of the host, once. With --json it is one object." + usageHelp + app.ExitStatusHelp,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), func(c *client.Client) error {
				s, err := c.SystemStatus(cmd.Context())
				if err != nil {
					return err
				}
				if a.JSON {
					v := newMetricsJSON(s.HostMetrics)
					v.Available, v.ServerVersion = &s.Available, &s.Version
					return a.WriteJSON(v)
				}
				width := term.Width(a.Out)
				_, err = io.WriteString(a.Out, term.Fit(metricsPage(s.HostMetrics, width, false), width, 0))
				return err
			})
		},
	}
}

func newMonitorTopCommand(a *app.App) *cobra.Command {
	var filter []string
	cmd := &cobra.Command{
		Use:               "top",
		Short:             "Show the host's load and busiest processes",
		Long:              "Show the host's load and busiest processes in brief, once. With --json it is one\nobject." + filterHelp + usageHelp + app.ExitStatusHelp,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.With(cmd.Context(), func(c *client.Client) error {
				for m, err := range c.SystemMetrics(cmd.Context(), 0, filter...) {
					if err != nil {
						return err
					}
					if a.JSON {
						return a.WriteJSON(newMetricsJSON(m))
					}
					width := term.Width(a.Out)
					_, err = io.WriteString(a.Out, term.Fit(metricsPage(m, width, true), width, 0))
					return err
				}
				return nil
			})
		},
	}
	addFilterFlag(cmd, &filter)
	return cmd
}

func newMonitorWatchCommand(a *app.App) *cobra.Command {
	var filter []string
	var interval string
	var compact bool
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show the host's load continuously",
		Long: `Show the load of the host until Ctrl-C: updated in place on a terminal, otherwise
one block after another. With --json each line is an object.` + filterHelp + `

Exit status: 0 after Ctrl-C, or 1 when something failed.`,
		Example: `  rnx monitor watch --compact
  rnx monitor watch --json --filter=cpu | jq .cpu.usage_percent`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			every, err := parseInterval(interval)
			if err != nil {
				return err
			}
			return watchHost(cmd.Context(), a, every, compact, filter)
		},
	}
	cmd.Flags().StringVarP(&interval, "interval", "i", "5s", "interval `TIME` between updates, 1s to 1h")
	cmd.Flags().BoolVar(&compact, "compact", false, "compact output, as of top")
	addFilterFlag(cmd, &filter)
	return cmd
}

func addFilterFlag(cmd *cobra.Command, filter *[]string) {
	cmd.Flags().StringSliceVar(filter, "filter", nil, "only these `PARTS`, comma-separated")
	_ = cmd.RegisterFlagCompletionFunc("filter", cobra.FixedCompletions(metricTypes, cobra.ShellCompDirectiveNoFileComp))
}

// parseInterval reads "2s", "1m", or "2" for seconds.
func parseInterval(s string) (time.Duration, error) {
	text := s
	if _, err := strconv.Atoi(s); err == nil {
		text += "s"
	}
	d, err := flags.ParseSpan(text)
	if err != nil || d < time.Second || d > time.Hour || d%time.Second != 0 {
		return 0, joblet.Errorf(joblet.InvalidArgument, "--interval: %.40q: must be whole seconds from 1s to 1h", s)
	}
	return d, nil
}

// watchHost shows the host's metrics until a signal ends it.
func watchHost(ctx context.Context, a *app.App, interval time.Duration, compact bool, filter []string) error {
	s := &term.Screen{W: a.Out, Size: func() (int, int) { return term.Size(a.Out) }}
	defer s.Close()
	return a.UntilSignal(ctx, func(ctx context.Context, c *client.Client) error {
		for m, err := range c.SystemMetrics(ctx, interval, filter...) {
			if err == nil && a.JSON {
				err = a.WriteJSON(newMetricsJSON(m))
			} else if err == nil {
				err = s.Show(func(width int) string { return metricsPage(m, width, compact) })
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}
