package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

func newMonitorCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "Show the load of the daemon's host",
		Example: `  rnx monitor status
  rnx monitor top
  rnx monitor watch --interval=2s --filter=cpu,memory`,
		RunE: group,
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

func newMonitorStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "status",
		Short:             "Show details of the host",
		Long:              "Show all that is known of the host, once. With --json it is one object." + usageHelp + exitStatusHelp,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *client.Client) error {
				s, err := c.SystemStatus(cmd.Context())
				if err != nil {
					return err
				}
				if a.json {
					v := newMetricsJSON(s.HostMetrics)
					v.Available, v.ServerVersion = &s.Available, &s.Version
					return a.writeJSON(v)
				}
				width := terminalWidth(a.out)
				_, err = io.WriteString(a.out, fit(metricsPage(s.HostMetrics, width, false), width, 0))
				return err
			})
		},
	}
}

func newMonitorTopCommand(a *app) *cobra.Command {
	var filter []string
	cmd := &cobra.Command{
		Use:               "top",
		Short:             "Show the host's load and busiest processes",
		Long:              "Show the host's load and busiest processes in brief, once. With --json it is one\nobject." + filterHelp + usageHelp + exitStatusHelp,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *client.Client) error {
				for m, err := range c.SystemMetrics(cmd.Context(), 0, filter...) {
					if err != nil {
						return err
					}
					if a.json {
						return a.writeJSON(newMetricsJSON(m))
					}
					width := terminalWidth(a.out)
					_, err = io.WriteString(a.out, fit(metricsPage(m, width, true), width, 0))
					return err
				}
				return nil
			})
		},
	}
	addFilterFlag(cmd, &filter)
	return cmd
}

func newMonitorWatchCommand(a *app) *cobra.Command {
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
  rnx monitor watch --json --interval=10s --filter=cpu | jq .cpuInfo.usagePercent`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			every, err := parseInterval(interval)
			if err != nil {
				return err
			}
			return a.watch(cmd.Context(), every, compact, filter)
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
	d, err := parseSpan(text)
	if err != nil || d < time.Second || d > time.Hour || d%time.Second != 0 {
		return 0, joblet.Errorf(joblet.InvalidArgument, "--interval: %.40q: must be whole seconds from 1s to 1h", s)
	}
	return d, nil
}

// watch shows the host's metrics until a signal ends it.
func (a *app) watch(ctx context.Context, interval time.Duration, compact bool, filter []string) error {
	s := &screen{w: a.out, size: func() (int, int) { return terminalSize(a.out) }}
	defer s.close()
	return a.untilSignal(ctx, func(ctx context.Context, c *client.Client) error {
		for m, err := range c.SystemMetrics(ctx, interval, filter...) {
			if err == nil && a.json {
				err = a.writeJSON(newMetricsJSON(m))
			} else if err == nil {
				err = s.show(func(width int) string { return metricsPage(m, width, compact) })
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// untilSignal calls do with a connection and a context that a signal ends.
func (a *app) untilSignal(ctx context.Context, do func(context.Context, *client.Client) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	go func() {
		select {
		case sig := <-signals:
			cancel(signalEnd(sig))
		case <-ctx.Done():
		}
	}()
	err := a.with(ctx, func(c *client.Client) error { return do(ctx, c) })
	if end, ok := errors.AsType[*exitError](context.Cause(ctx)); ok {
		if end.status == 0 {
			return nil
		}
		return end
	}
	return err
}

// signalEnd is how a watch ends by a signal: Ctrl-C is the usual way to do it.
func signalEnd(sig os.Signal) *exitError {
	n, ok := sig.(syscall.Signal)
	if !ok || n == syscall.SIGINT {
		return &exitError{}
	}
	return &exitError{status: 128 + int(n)}
}

const (
	showCursor = "\x1b[?25h"
	hideCursor = "\x1b[?25l"
	clearAll   = "\x1b[H\x1b[2J"
)

// screen shows one page after the other: on a terminal in the same place.
type screen struct {
	w     io.Writer
	size  func() (width, height int) // 0, 0: no terminal
	raw   bool                       // a terminal that takes us literally: lines end with \r\n
	drawn bool                       // something is shown
	inUse bool                       // a terminal, whose cursor is hidden
}

func (s *screen) show(page func(width int) string) error {
	width, height := s.size()
	text := fit(page(width), width, height)
	switch {
	case width > 0 && !s.inUse:
		s.inUse = true
		text = hideCursor + clearAll + text
	case width > 0:
		text = clearAll + text
	case s.drawn:
		text = "\n" + text
	}
	s.drawn = true
	if s.raw {
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	_, err := io.WriteString(s.w, text)
	return err
}

// close gives the terminal back. A failure to write to it was told by show.
func (s *screen) close() {
	if s.inUse {
		_, _ = io.WriteString(s.w, showCursor)
	}
}

func terminalSize(w io.Writer) (width, height int) {
	f, ok := w.(*os.File)
	if !ok {
		return 0, 0
	}
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0, 0
	}
	return width, height
}

// fit cuts a page to a terminal; 0 is no limit. The last row stays free for the
// cursor.
func fit(page string, width, height int) string {
	var b strings.Builder
	n := 0
	for line := range strings.Lines(page) {
		if n++; height > 1 && n == height {
			break
		}
		line = strings.TrimSuffix(line, "\n")
		if width > 0 {
			line = cut(line, width)
		}
		b.WriteString(strings.TrimRight(line, " "))
		b.WriteByte('\n')
	}
	return b.String()
}
