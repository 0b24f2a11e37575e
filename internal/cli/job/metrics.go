package job

import (
	"context"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/flags"
	"github.com/joblet/joblet/internal/cli/jobview"
	"github.com/joblet/joblet/internal/cli/term"
)

func newMetricsCommand(a *app.App) *cobra.Command {
	var opt metricsOptions
	var interval, since, until string
	cmd := &cobra.Command{
		Use:   "metrics [flags] JOB",
		Short: "Show resource usage of a job over time",
		Long: `Show the resource usage of all processes of a job together. For a running job, print
a sample each second until it ends; for a waiting job, begin at its start. For an
ended job, or with --history, print the recorded samples. Their interval is one
second at first and grows with the job's run time; at most a thousand are kept.

CPU% is the share of one processor since the previous sample, MEM% the share of the
job's limit. READ/s and WRITE/s count device I/O. THROTTLED is the time for which
the CPU limit held the job back since the previous sample.

With --json each line is an object with totals since the job's start. --since and
--until take a time (2026-01-31T15:04, RFC 3339) or an age (90s, 2h30m, 3d).` + jobRefHelp,
		Example: `  rnx job metrics 3f2a
  rnx job metrics --interval=10s --json web | jq .memory_bytes
  rnx job metrics --history --since=1h web`,
		Args:              app.ExactlyOne("job"),
		ValidArgsFunction: a.CompleteJobs(),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			now := time.Now()
			if opt.interval, err = flags.ParseInterval(interval); err != nil {
				return err
			}
			if opt.since, err = flags.MomentFlag("--since", since, now); err != nil {
				return err
			}
			if opt.until, err = flags.MomentFlag("--until", until, now); err != nil {
				return err
			}
			switch {
			case !opt.since.IsZero() && !opt.until.IsZero() && !opt.until.After(opt.since):
				return joblet.Errorf(joblet.InvalidArgument, "--until %s: must be later than --since %s", until, since)
			case opt.limit < 0:
				return joblet.Errorf(joblet.InvalidArgument, "--limit %d: must not be negative", opt.limit)
			case since != "" || until != "" || opt.limit > 0:
				opt.history = true
			}
			if opt.history && cmd.Flags().Changed("interval") {
				return joblet.Errorf(joblet.InvalidArgument, "--interval is for the samples to come; --history, --since, --until and --limit ask for those that were kept")
			}
			app.CatchPipeSignal()
			return a.UntilSignal(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return showMetrics(ctx, a, c, args[0], opt)
			})
		},
	}
	f := cmd.Flags()
	addSampleInterval(cmd, &interval)
	f.BoolVar(&opt.history, "history", false, "print recorded samples and exit")
	f.StringVar(&since, "since", "", "only samples from `TIME` on (implies --history)")
	f.StringVar(&until, "until", "", "only samples up to `TIME` (implies --history)")
	f.IntVarP(&opt.limit, "limit", "n", 0, "only the newest `N` samples; 0: all (implies --history)")
	return cmd
}

func addSampleInterval(cmd *cobra.Command, interval *string) {
	cmd.Flags().StringVarP(interval, "interval", "i", "1s", "interval `TIME` between samples, 100ms to 1h")
	_ = cmd.RegisterFlagCompletionFunc("interval", cobra.FixedCompletions([]string{"1s", "2s", "5s", "10s", "1m"}, cobra.ShellCompDirectiveNoFileComp))
}

type metricsOptions struct {
	interval     time.Duration
	history      bool
	since, until time.Time
	limit        int
}

func showMetrics(ctx context.Context, a *app.App, c *client.Client, ref string, opt metricsOptions) error {
	job, err := c.Job(ctx, ref)
	if err != nil {
		return err
	}
	_, height := term.Size(a.Out)
	table := &sampleTable{w: a.Out, page: height - 2}
	show := func(samples iter.Seq2[joblet.Sample, error]) (n int, err error) {
		for s, err := range samples {
			if err == nil && a.JSON {
				err = a.WriteJSON(newSampleJSON(job.ID, s))
			} else if err == nil {
				err = table.add(s)
			}
			if err != nil {
				return n, err
			}
			n++
		}
		return n, nil
	}
	if !opt.history && !job.State.Final() {
		n, err := show(c.WatchMetrics(ctx, job.ID, opt.interval))
		if n > 0 || err != nil {
			return err
		} // it has ended before there was one
	}
	n, err := show(c.Metrics(ctx, job.ID, opt.since, opt.until, opt.limit))
	if n == 0 && err == nil {
		a.Note("no samples of job %s: it did not run in that time, or not for long enough", joblet.ShortID(job.ID))
	}
	return err
}

// sampleJSON is a sample as --json shows it.
type sampleJSON struct {
	UUID        string    `json:"uuid"`
	Time        time.Time `json:"time"`
	CPUPercent  float64   `json:"cpu_percent"` // of one processor, since the sample before
	Memory      int64     `json:"memory_bytes"`
	MemoryLimit int64     `json:"memory_limit_bytes"` // 0: none
	Swap        int64     `json:"swap_bytes"`
	PIDs        int       `json:"pids"` // processes and threads
	jobview.UsageJSON
}

func newSampleJSON(id string, s joblet.Sample) sampleJSON {
	return sampleJSON{
		UUID: id, Time: s.Time, CPUPercent: round(s.CPUPercent), Memory: s.Memory, MemoryLimit: s.MemoryLimit, Swap: s.Swap, PIDs: s.PIDs,
		UsageJSON: jobview.MakeUsageJSON(s.Usage),
	}
}

// round leaves three digits behind the point.
func round(v float64) float64 {
	r, err := strconv.ParseFloat(strconv.FormatFloat(v, 'f', 3, 64), 64)
	if err != nil {
		return v
	}
	return r
}

// rates is what a job took from one sample to the next.
type rates struct {
	known       bool // there was one before, of the same run
	read, write float64
	throttled   time.Duration
}

func ratesBetween(before, now joblet.Sample) rates {
	passed := now.Time.Sub(before.Time).Seconds()
	if before.Time.IsZero() || passed <= 0 || now.CPU() < before.CPU() || now.ReadBytes < before.ReadBytes || now.WriteBytes < before.WriteBytes || now.Throttled < before.Throttled {
		return rates{}
	}
	return rates{
		known: true, throttled: now.Throttled - before.Throttled,
		read: float64(now.ReadBytes-before.ReadBytes) / passed, write: float64(now.WriteBytes-before.WriteBytes) / passed,
	}
}

func (r rates) words() (read, write, throttled string) {
	if !r.known {
		return "-", "-", "-"
	}
	return term.FormatRate(r.read), term.FormatRate(r.write), term.FormatDuration(r.throttled.Round(100 * time.Microsecond))
}

// sampleTable writes samples as they come: columns have their widths before all
// of them are known.
type sampleTable struct {
	w      io.Writer
	page   int // lines after which a terminal shows the header again; not positive: none
	lines  int
	before joblet.Sample
}

const sampleFormat = "%-19s  %7s  %9s  %6s  %5s  %10s  %10s  %9s\n"

func (t *sampleTable) add(s joblet.Sample) error {
	var b strings.Builder
	if t.lines == 0 || t.page > 0 && t.lines%t.page == 0 {
		fmt.Fprintf(&b, sampleFormat, "TIME", "CPU%", "MEMORY", "MEM%", "PIDS", "READ/s", "WRITE/s", "THROTTLED")
	}
	read, write, throttled := ratesBetween(t.before, s).words()
	fmt.Fprintf(&b, sampleFormat, term.FormatTime(s.Time), strconv.FormatFloat(s.CPUPercent, 'f', 1, 64), joblet.ReadableSize(s.Memory),
		partOf(s.Memory, s.MemoryLimit), strconv.Itoa(s.PIDs), read, write, throttled)
	t.before = s
	t.lines++
	_, err := io.WriteString(t.w, b.String())
	return err
}

// partOf is n in percent of a limit, "-" without one.
func partOf(n, limit int64) string {
	if limit <= 0 {
		return "-"
	}
	return strconv.FormatFloat(100*float64(n)/float64(limit), 'f', 1, 64)
}
