package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// result is all that a run has found out.
type result struct {
	Date   time.Time         `json:"date"`
	Kernel string            `json:"kernel"`
	System string            `json:"system"`
	CPUs   int               `json:"cpus"`
	CPU    string            `json:"cpu"`
	Go     string            `json:"go"`
	Load   string            `json:"load_average_before"`
	Peers  map[string]string `json:"peers"` // version by program
	Idle   time.Duration     `json:"idle_ns"`
	Rows   []row             `json:"contenders"`
	Daemon []daemonMemory    `json:"daemon"`
	Echo   []echoRow         `json:"key_to_echo,omitempty"`
}

type row struct {
	Name     string          `json:"name"`
	What     string          `json:"what"`
	Reason   string          `json:"reason,omitempty"` // why it did not run
	Notes    []string        `json:"notes,omitempty"`
	Failures int             `json:"failures"`
	Latency  *summary        `json:"latency,omitempty"`
	Idle     *summary        `json:"latency_after_idle,omitempty"`
	PerSec   map[int]float64 `json:"jobs_per_second,omitempty"`
	Memory   *jobMemory      `json:"memory,omitempty"`
}

func (b *bench) result() result {
	r := result{
		Date:   time.Now().UTC().Truncate(time.Second),
		Kernel: kernelRelease(),
		System: fieldOf("/etc/os-release", "PRETTY_NAME", "="),
		CPUs:   runtime.NumCPU(),
		CPU:    fieldOf("/proc/cpuinfo", "model name", ":"),
		Go:     runtime.Version(),
		Load:   b.load,
		Peers:  map[string]string{},
		Idle:   b.idle,
		Daemon: b.daemonPSS,
		Echo:   b.echo,
	}
	for _, c := range b.contenders {
		row := row{
			Name: c.name, What: c.what, Notes: c.notes, Failures: c.failures,
			Latency: summarize(c.latency), Idle: summarize(c.idle), PerSec: c.perSec, Memory: c.memory,
		}
		if c.reason != nil {
			row.Reason = strings.Join(strings.Fields(c.reason.Error()), " ")
		}
		r.Rows = append(r.Rows, row)
		if c.version != "" {
			name, _, _ := strings.Cut(c.name, "-")
			r.Peers[name] = c.version
		}
	}
	return r
}

func kernelRelease() string {
	data, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return string(bytes.TrimSpace(data))
}

// fieldOf returns the first value of a key in a file of key-value lines.
func fieldOf(file, key, separator string) string {
	data, _ := os.ReadFile(file)
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(line, separator); ok && strings.TrimSpace(k) == key {
			return strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return "unknown"
}

// markdown returns the tables for people.
func (r result) markdown() string {
	var out strings.Builder
	versions := make([]string, 0, len(r.Peers))
	for _, name := range slices.Sorted(maps.Keys(r.Peers)) {
		versions = append(versions, name+" "+r.Peers[name])
	}
	fmt.Fprintf(&out, "%s: %s, Linux %s, %d × %s, %s, load average before the run %s; %s.\n", r.Date.Format(time.DateOnly), r.System, r.Kernel, r.CPUs, r.CPU, r.Go, r.Load, strings.Join(versions, ", "))

	fmt.Fprintf(&out, "\n### Start to exit of `true`, milliseconds\n\n")
	out.WriteString(r.latencyTable(func(r row) *summary { return r.Latency }, true))
	if slices.ContainsFunc(r.Rows, func(r row) bool { return r.Idle != nil }) {
		fmt.Fprintf(&out, "\n### The same, each run after %v of idleness, milliseconds\n\n", r.Idle)
		out.WriteString(r.latencyTable(func(r row) *summary { return r.Idle }, false))
	}
	if slices.ContainsFunc(r.Rows, func(r row) bool { return r.PerSec != nil }) {
		t := table{head: []string{"", "way"}}
		for _, n := range workerCounts {
			t.head = append(t.head, fmt.Sprintf("%d at once", n))
		}
		for _, row := range r.Rows {
			if row.PerSec == nil {
				continue
			}
			cells := []string{row.Name, row.What}
			for _, n := range workerCounts {
				if rate, ok := row.PerSec[n]; ok {
					cells = append(cells, significant(rate))
				} else {
					cells = append(cells, "failed")
				}
			}
			t.rows = append(t.rows, cells)
		}
		fmt.Fprintf(&out, "\n### Jobs per second\n\n%s", t)
	}
	if i := slices.IndexFunc(r.Rows, func(r row) bool { return r.Memory != nil }); i >= 0 {
		t := table{head: []string{"", "way", "processes per job", "PSS per job, MiB", "largest process, MiB"}}
		for _, row := range r.Rows {
			if m := row.Memory; m != nil {
				t.rows = append(t.rows, []string{row.Name, row.What, fmt.Sprintf("%.3g", m.Processes), mebibytes(m.PerJob), mebibytes(m.Largest)})
			}
		}
		fmt.Fprintf(&out, "\n### Memory that stays beside a running job (PSS, %d jobs running)\n\n%s", r.Rows[i].Memory.Jobs, t)
	}
	if len(r.Daemon) > 0 {
		t := table{head: []string{"daemon", "", "PSS, MiB"}}
		for _, m := range r.Daemon {
			t.rows = append(t.rows, []string{"joblet serve", m.When, mebibytes(m.PSS)})
		}
		fmt.Fprintf(&out, "\n### Memory of the daemon\n\n%s", t)
	}
	if len(r.Echo) > 0 {
		t := table{head: []string{"", "way", "keys", "p10", "median", "p90"}}
		for _, e := range r.Echo {
			if e.Times == nil {
				t.rows = append(t.rows, []string{e.Name, e.What + ": " + e.Reason, "0", "", "", ""})
				continue
			}
			t.rows = append(t.rows, []string{e.Name, e.What, fmt.Sprint(e.Times.Runs), significant(e.Times.P10), significant(e.Times.Median), significant(e.Times.P90)})
		}
		fmt.Fprintf(&out, "\n### Key to echo in an interactive bash, milliseconds\n\n%s", t)
	}
	if bars := r.bars(); len(bars) > 0 {
		t := table{head: []string{"bar", "", "limit", "measured"}}
		for _, b := range bars {
			verdict := "met"
			if b.measured > b.limit {
				verdict = "**missed**"
			}
			t.rows = append(t.rows, []string{b.what, verdict, fmt.Sprintf("%.2f", b.limit), fmt.Sprintf("%.2f", b.measured)})
		}
		fmt.Fprintf(&out, "\n### Bars\n\n%s", t)
	}
	out.WriteString(r.remarks())
	return out.String()
}

// bar is a promise of Joblet's about a figure: at most limit.
type bar struct {
	what            string
	limit, measured float64
}

// bars returns the promises that the run can judge.
func (r result) bars() []bar {
	var bars []bar
	rows := map[string]row{}
	for _, row := range r.Rows {
		rows[row.Name] = row
	}
	if base := rows[baseline].Latency; base != nil {
		for name, limit := range map[string]float64{clientName: 0.5, rnxName: 1} {
			if s := rows[name].Latency; s != nil {
				bars = append(bars, bar{fmt.Sprintf("median of %s ÷ median of %s", name, baseline), limit, s.Median / base.Median})
			}
		}
	}
	if s := r.echoOf(rnxName); s != nil {
		// Of the two the slower: which that is differs between machines.
		slower := 0.0
		for _, name := range []string{echoBase, echoOther} {
			if other := r.echoOf(name); other != nil {
				slower = max(slower, other.Median)
			}
		}
		if slower > 0 {
			bars = append(bars, bar{"key to echo: median of rnx ÷ the slower median of script and ssh", 2, s.Median / slower})
		}
	}
	if m := rows[rnxName].Memory; m != nil {
		bars = append(bars, bar{"PSS beside a running job, MiB, largest process", 2, float64(m.Largest) / (1 << 20)})
	}
	var idle int64
	for _, m := range r.Daemon {
		if strings.HasPrefix(m.When, whenIdle) {
			idle = max(idle, m.PSS)
		}
	}
	if idle > 0 {
		bars = append(bars, bar{"PSS of the idle daemon, MiB", 30, float64(idle) / (1 << 20)})
	}
	slices.SortFunc(bars, func(a, b bar) int { return strings.Compare(a.what, b.what) })
	return bars
}

// echoOf returns the times from a key to its echo in one way, or nil.
func (r result) echoOf(name string) *summary {
	for _, e := range r.Echo {
		if e.Name == name {
			return e.Times
		}
	}
	return nil
}

// latencyTable returns the table of the times that of finds in a row, with or
// without those that have none.
func (r result) latencyTable(of func(row) *summary, withFailed bool) string {
	var base float64
	for _, row := range r.Rows {
		if s := of(row); row.Name == baseline && s != nil {
			base = s.Median
		}
	}
	t := table{head: []string{"", "way", "runs", "p10", "median", "p90", "× " + baseline}}
	for _, row := range r.Rows {
		s := of(row)
		if s == nil && !withFailed {
			continue
		}
		if s == nil {
			reason := row.Reason
			if reason == "" {
				reason = "no run succeeded"
			}
			t.rows = append(t.rows, []string{row.Name, row.What + ": " + reason, "0", "–", "–", "–", "–"})
			continue
		}
		ratio := "–"
		if base > 0 {
			ratio = fmt.Sprintf("%.2f", s.Median/base)
		}
		t.rows = append(t.rows, []string{row.Name, row.What, fmt.Sprint(s.Runs), significant(s.P10), significant(s.Median), significant(s.P90), ratio})
	}
	return t.String()
}

// remarks lists what a reader of the tables must know.
func (r result) remarks() string {
	var out strings.Builder
	for _, row := range r.Rows {
		for _, n := range row.Notes {
			fmt.Fprintf(&out, "- %s: %s.\n", row.Name, n)
		}
		if row.Failures > 0 {
			fmt.Fprintf(&out, "- %s: %d runs failed.\n", row.Name, row.Failures)
		}
	}
	if out.Len() == 0 {
		return ""
	}
	return "\n" + out.String()
}

// significant prints a number with three significant digits.
func significant(f float64) string {
	switch {
	case f >= 100:
		return fmt.Sprintf("%.0f", f)
	case f >= 10:
		return fmt.Sprintf("%.1f", f)
	default:
		return fmt.Sprintf("%.2f", f)
	}
}

func mebibytes(n int64) string { return fmt.Sprintf("%.2f", float64(n)/(1<<20)) }

// table is a Markdown table. Its first two columns hold words, the others
// figures.
type table struct {
	head []string
	rows [][]string
}

func (t table) String() string {
	var out strings.Builder
	line := func(cells []string) {
		for _, c := range cells {
			out.WriteString("| " + strings.ReplaceAll(c, "|", `\|`) + " ")
		}
		out.WriteString("|\n")
	}
	line(t.head)
	for i := range t.head {
		if i < 2 {
			out.WriteString("| --- ")
		} else {
			out.WriteString("| ---: ")
		}
	}
	out.WriteString("|\n")
	for _, r := range t.rows {
		line(r)
	}
	return out.String()
}
