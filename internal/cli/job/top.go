package job

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
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
	"github.com/joblet/joblet/internal/table"
)

// onceWindow is over how long what is shown only once is measured: the kernel
// counts a process's time in hundredths of a second.
const onceWindow = 500 * time.Millisecond

func newTopCommand(a *app.App) *cobra.Command {
	var opt topOptions
	var interval string
	cmd := &cobra.Command{
		Use:   "top [flags] JOB",
		Short: "Show live resource usage of a job",
		Long: `Show the resource usage of a running job and of each of its processes, as seen
from the host, until the job ends. On a terminal the table is updated in place: q
or Ctrl-C quits, and c, m and p sort by CPU time, memory and process number.
Otherwise, or with --once, one table is printed.

CPU% is the share of one processor since the last update. The first update, and
new processes, show the average since the start. With --json each update is an
object on a line of its own.` + jobRefHelp,
		Example: `  rnx job top 3f2a
  rnx job top --once --sort=mem web
  rnx job top --json --interval=5s web | jq '.processes | length'`,
		Args:              app.ExactlyOne("job"),
		ValidArgsFunction: a.CompleteJobs(joblet.Running, joblet.Paused, joblet.Stopping),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if opt.interval, err = flags.ParseInterval(interval); err != nil {
				return err
			}
			if processOrders[opt.sort] == nil {
				return joblet.Errorf(joblet.InvalidArgument, "--sort: %.40q: must be cpu, mem or pid", opt.sort)
			}
			app.CatchPipeSignal()
			return a.UntilSignal(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				width, _ := term.Size(a.Out)
				switch {
				case opt.once || !a.JSON && width == 0:
					return topOnce(ctx, a, c, args[0], opt)
				case a.JSON:
					return watchJob(ctx, c, args[0], opt.interval, func(l look) error { return a.WriteJSON(newLookJSON(l, opt.sort)) })
				}
				return topLive(ctx, a, c, args[0], opt)
			})
		},
	}
	addSampleInterval(cmd, &interval)
	f := cmd.Flags()
	f.StringVar(&opt.sort, "sort", "cpu", "sort processes by `KEY`: cpu, mem or pid")
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions([]string{"cpu", "mem", "pid"}, cobra.ShellCompDirectiveNoFileComp))
	f.BoolVar(&opt.once, "once", false, "print once, measured over half a second")
	return cmd
}

type topOptions struct {
	interval time.Duration
	sort     string
	once     bool
}

// processOrders are the values of --sort.
var processOrders = map[string]func(a, b joblet.Process) int{
	"cpu": func(a, b joblet.Process) int {
		return cmp.Or(cmp.Compare(b.CPUPercent, a.CPUPercent), cmp.Compare(b.CPUTime, a.CPUTime), cmp.Compare(a.PID, b.PID))
	},
	"mem": func(a, b joblet.Process) int {
		return cmp.Or(cmp.Compare(b.Memory, a.Memory), cmp.Compare(a.PID, b.PID))
	},
	"pid": func(a, b joblet.Process) int { return cmp.Compare(a.PID, b.PID) },
}

// look is a job and its processes at one moment.
type look struct {
	job       joblet.Job
	sample    joblet.Sample
	rates     rates
	processes joblet.Processes
}

// watchJob hands a look at a running job to emit, at once and after each
// interval, until the job has ended.
func watchJob(ctx context.Context, c *client.Client, ref string, interval time.Duration, emit func(look) error) error {
	id, err := jobID(ctx, c, ref)
	if err != nil {
		return err
	}
	if _, err := c.Processes(ctx, id); err != nil { // it does not run, and this says why
		return err
	}
	var last look
	for s, err := range c.WatchMetrics(ctx, id, interval) {
		if err != nil {
			return err
		}
		next := look{sample: s, rates: ratesBetween(last.sample, s)}
		if next.processes, err = c.Processes(ctx, id); err == nil {
			next.job, err = c.Job(ctx, id)
		}
		if joblet.KindOf(err) == joblet.FailedPrecondition {
			continue // it has ended, and may be tried again: the stream knows
		}
		if err != nil {
			return err
		}
		now := next.processes
		next.processes = now.Since(last.processes)
		if err := emit(next); err != nil {
			return err
		}
		next.processes = now
		last = next
	}
	return nil
}

func topOnce(ctx context.Context, a *app.App, c *client.Client, ref string, opt topOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var looks []look
	err := watchJob(ctx, c, ref, onceWindow, func(l look) error {
		if looks = append(looks, l); len(looks) == 2 {
			return io.EOF
		}
		return nil
	})
	if err != nil && err != io.EOF {
		return err
	}
	if len(looks) == 0 {
		return joblet.Errorf(joblet.FailedPrecondition, "job %s ended before it could be looked at", ref)
	}
	l := looks[len(looks)-1]
	if a.JSON {
		return a.WriteJSON(newLookJSON(l, opt.sort))
	}
	width := term.Width(a.Out)
	_, err = io.WriteString(a.Out, term.Fit(topPage(l, opt.sort, width, 0), width, 0))
	return err
}

// topLive shows one look after the other in the terminal, and obeys its keys.
func topLive(ctx context.Context, a *app.App, c *client.Client, ref string, opt topOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &term.Screen{W: a.Out, Size: func() (int, int) { return term.Size(a.Out) }}
	defer s.Close()
	keys, restore, err := term.PressedKeys(a.In)
	if err != nil {
		return err
	}
	defer restore()
	s.Raw = keys != nil

	looks := make(chan look)
	watched := make(chan error, 1)
	go func() {
		watched <- watchJob(ctx, c, ref, opt.interval, func(l look) error {
			select {
			case looks <- l:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	defer func() {
		cancel()
		if watched != nil {
			<-watched
		}
	}()
	var l look
	for {
		select {
		case l = <-looks:
		case key, open := <-keys:
			if !open { // the terminal is gone, and the next page will say so
				keys = nil
				continue
			}
			switch key {
			case 'q', 'Q', 3, 4: // Ctrl-C and Ctrl-D, which are keys like others now
				return nil
			case 'c', 'C', 'P':
				opt.sort = "cpu"
			case 'm', 'M':
				opt.sort = "mem"
			case 'p', 'n', 'N':
				opt.sort = "pid"
			default:
				continue
			}
		case err := <-watched:
			watched = nil
			if err == nil {
				restore()
				noteEnd(ctx, a, c, l.job.ID)
			}
			return err
		}
		if l.job.ID == "" {
			continue // a key came before the first look
		}
		_, height := s.Size()
		if err := s.Show(func(width int) string { return topPage(l, opt.sort, width, height) }); err != nil {
			return err
		}
	}
}

// noteEnd says how a job has ended that was watched.
func noteEnd(ctx context.Context, a *app.App, c *client.Client, id string) {
	if job, err := c.Job(ctx, id); err == nil {
		a.Note("job %s has ended: %s", joblet.ShortID(id), joblet.Printable(jobview.StateWords(job)))
	}
}

// topPage shows a look. Of more processes than fit in height lines, 0 being no
// limit, it shows the first.
func topPage(l look, sort string, width, height int) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	j, s, u := l.job, l.sample, l.sample.Usage
	limits := j.Spec.Limits
	name := joblet.ShortID(j.ID)
	if j.Spec.Name != "" {
		name += " (" + joblet.Printable(j.Spec.Name) + ")"
	}
	line("Job", "%s: %v for %s: %s", name, j.State, jobview.Duration(j, s.Time), joblet.Printable(j.Spec.CommandLine()))
	cpu := term.FormatPercent(s.CPUPercent)
	if limits.CPUPercent > 0 {
		cpu += fmt.Sprintf(" of %d%%", limits.CPUPercent)
	}
	read, write, throttled := l.rates.words()
	line("CPU", "%s; user %s, system %s; held back for %s, %s in all", cpu, term.FormatDuration(u.CPUUser), term.FormatDuration(u.CPUSystem), throttled, term.FormatDuration(u.Throttled))
	memory := joblet.ReadableSize(s.Memory)
	if s.MemoryLimit > 0 {
		memory += fmt.Sprintf(" of %s (%s%%)", joblet.ReadableSize(s.MemoryLimit), partOf(s.Memory, s.MemoryLimit))
	}
	line("Memory", "%s, %s at most; %s of swap", memory, joblet.ReadableSize(u.MemoryPeak), joblet.ReadableSize(s.Swap))
	pids := strconv.Itoa(s.PIDs)
	if limits.MaxPIDs > 0 {
		pids += " of " + term.FormatCount(limits.MaxPIDs)
	}
	line("Processes", "%d; with threads %s, %d at most", len(l.processes.All)+l.processes.Omitted, pids, u.PIDsPeak)
	line("I/O", "%s read, %s written; %s and %s in all", read, write, joblet.ReadableSize(u.ReadBytes), joblet.ReadableSize(u.WriteBytes))

	b.WriteByte('\n')
	room := len(l.processes.All)
	if height > 0 {
		room = max(0, min(room, height-strings.Count(b.String(), "\n")-2)) // the header, and the cursor's line
	}
	omitted := l.processes.Omitted
	rows := [][]string{{"PID", "HOST-PID", "UID", "STATE", "THREADS", "CPU%", "MEMORY", "TIME", "COMMAND"}}
	for _, p := range slices.SortedFunc(slices.Values(l.processes.All), processOrders[sort])[:room] {
		rows = append(rows, []string{
			strconv.Itoa(p.PID), strconv.Itoa(p.HostPID), strconv.Itoa(p.UID), table.Dash(p.State, 8), strconv.Itoa(p.Threads),
			strconv.FormatFloat(p.CPUPercent, 'f', 1, 64), joblet.ReadableSize(p.Memory), term.FormatDuration(p.CPUTime), joblet.Printable(p.Command),
		})
	}
	_ = table.Write(&b, width, rows, 4, 1, 2, 7) // a Builder takes everything
	if omitted > 0 {
		b.WriteString(omittedLine(omitted))
	}
	return b.String()
}

// lookJSON is a look as --json shows it.
type lookJSON struct {
	UUID      string           `json:"uuid"`
	Name      string           `json:"name,omitempty"`
	Status    joblet.State     `json:"status"`
	Time      time.Time        `json:"time"`
	Metrics   sampleJSON       `json:"metrics"`
	Limits    joblet.Limits    `json:"limits,omitzero"`
	Processes []jobProcessJSON `json:"processes"`
	Omitted   int              `json:"omitted"` // there are so many more
}

func newLookJSON(l look, sort string) lookJSON {
	out := lookJSON{
		UUID: l.job.ID, Name: l.job.Spec.Name, Status: l.job.State, Time: l.processes.Time, Metrics: newSampleJSON(l.job.ID, l.sample),
		Limits: l.job.Spec.Limits, Processes: make([]jobProcessJSON, 0, len(l.processes.All)), Omitted: l.processes.Omitted,
	}
	for _, p := range slices.SortedFunc(slices.Values(l.processes.All), processOrders[sort]) {
		out.Processes = append(out.Processes, newJobProcessJSON(p))
	}
	return out
}
