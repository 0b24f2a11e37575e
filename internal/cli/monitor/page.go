package monitor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/term"
	"github.com/joblet/joblet/internal/table"
)

// coresInLine is how many cores are shown in one line.
const coresInLine = 16

// metricsPage is a page for the parts that are there, a compact one with a line
// for each and the busiest processes.
func metricsPage(m client.HostMetrics, width int, compact bool) string {
	p := &metricsText{m: m, width: width}
	p.host(compact)
	p.cpu(compact)
	p.memory()
	if io := m.IO; io != nil {
		p.line("I/O", "%s read, %s written", term.FormatRate(io.ReadRate), term.FormatRate(io.WriteRate))
	}
	if s := m.Processes; s != nil {
		p.line("Processes", "%d: %d running, %d sleeping, %d stopped, %d zombies; %d threads",
			s.Total, s.Running, s.Sleeping, s.Stopped, s.Zombies, s.Threads)
	}
	if compact {
		p.brief()
	} else {
		p.tables()
	}
	return p.b.String()
}

type metricsText struct {
	m     client.HostMetrics
	width int
	b     strings.Builder
}

func (p *metricsText) line(name, format string, args ...any) {
	fmt.Fprintf(&p.b, "%-10s %s\n", name, fmt.Sprintf(format, args...))
}

// table is a block of its own; in a terminal that is too narrow the columns in
// drop are left out, and then the ends of lines.
func (p *metricsText) table(rows [][]string, drop ...int) {
	if len(rows) < 2 {
		return
	}
	p.b.WriteByte('\n')
	_ = table.Write(&p.b, p.width, rows, drop...) // a Builder takes everything
}

func (p *metricsText) host(compact bool) {
	p.line("Time", "%s", term.FormatTime(p.m.Time))
	if h := p.m.Host; h != nil {
		p.line("Host", "%s: %s %s, %s, up %s", joblet.Printable(h.Hostname), joblet.Printable(h.OS), joblet.Printable(h.KernelVersion), joblet.Printable(h.Architecture),
			term.FormatDuration(h.Uptime))
		if !compact {
			p.line("Booted", "%s", term.FormatTime(h.BootTime))
			p.list("Addresses", h.IPs)
			p.list("MACs", h.MACs)
			if h.NodeID != "" {
				p.line("Node", "%s", joblet.Printable(h.NodeID))
			}
		}
	}
	if c := p.m.Cloud; c != nil && !compact {
		where := strings.Join(slices.DeleteFunc([]string{c.Provider, c.Region, c.Zone, c.InstanceType, c.InstanceID},
			func(s string) bool { return s == "" }), " ")
		if where == "" {
			where = "none known"
		}
		if c.HypervisorType != "" {
			where += " (hypervisor: " + c.HypervisorType + ")"
		}
		p.line("Cloud", "%s", joblet.Printable(where))
	}
}

func (p *metricsText) list(name string, all []string) {
	if len(all) > 0 {
		p.line(name, "%s", joblet.Printable(strings.Join(all, " ")))
	}
}

func (p *metricsText) cpu(compact bool) {
	c := p.m.CPU
	if c == nil {
		return
	}
	var load strings.Builder
	for _, l := range c.Load {
		fmt.Fprintf(&load, " %.2f", l)
	}
	p.line("CPU", "%s of %d cores, load%s", term.FormatPercent(c.Usage), c.Cores, load.String())
	if compact {
		return
	}
	for some := range slices.Chunk(c.PerCore, coresInLine) {
		var b strings.Builder
		for _, usage := range some {
			fmt.Fprintf(&b, "%3.0f%% ", usage)
		}
		p.line("Each core", "%s", b.String())
	}
	p.line("CPU time", "user %s, system %s, idle %s, I/O wait %s, stolen %s since boot", term.FormatDuration(c.User), term.FormatDuration(c.System),
		term.FormatDuration(c.Idle), term.FormatDuration(c.IOWait), term.FormatDuration(c.Steal))
}

func (p *metricsText) memory() {
	m := p.m.Memory
	if m == nil {
		return
	}
	p.line("Memory", "%s: %s of %s used, %s available, %s free, %s cached, %s buffers", term.FormatPercent(m.Usage), joblet.ReadableSize(m.Used),
		joblet.ReadableSize(m.Total), joblet.ReadableSize(m.Available), joblet.ReadableSize(m.Free), joblet.ReadableSize(m.Cached), joblet.ReadableSize(m.Buffered))
	if m.SwapTotal > 0 {
		p.line("Swap", "%s: %s of %s used", term.FormatPercent(100*float64(m.SwapUsed)/float64(m.SwapTotal)), joblet.ReadableSize(m.SwapUsed), joblet.ReadableSize(m.SwapTotal))
	}
}

// brief shows the rest of a compact page.
func (p *metricsText) brief() {
	var disks, networks []string
	for _, d := range p.m.Disks {
		disks = append(disks, joblet.Printable(d.MountPoint)+" "+term.FormatPercent(d.Usage))
	}
	if len(disks) > 0 {
		p.line("Disks", "%s", strings.Join(disks, ", "))
	}
	for _, n := range p.m.Networks {
		if n.BytesReceived > 0 || n.BytesSent > 0 {
			networks = append(networks, fmt.Sprintf("%s %s in, %s out", joblet.Printable(n.Interface), term.FormatRate(n.ReceiveRate), term.FormatRate(n.TransmitRate)))
		}
	}
	if len(networks) > 0 {
		p.line("Network", "%s", strings.Join(networks, "; "))
	}
	if s := p.m.Processes; s != nil {
		p.processes("Busiest", s.ByCPU)
	}
}

func (p *metricsText) tables() {
	rows := [][]string{{"DISK", "TYPE", "SIZE", "USED", "FREE", "USED%", "INODES%", "MOUNTED ON"}}
	for _, d := range p.m.Disks {
		rows = append(rows, []string{
			table.Dash(d.Device, table.MaxNameColumn), table.Dash(d.FileSystem, table.MaxNameColumn), joblet.ReadableSize(d.Total), joblet.ReadableSize(d.Used), joblet.ReadableSize(d.Free),
			term.FormatPercent(d.Usage), term.FormatPercent(d.InodesUsage), joblet.Printable(d.MountPoint),
		})
	}
	p.table(rows, 6, 1, 3, 0)

	rows = [][]string{{"NETWORK", "IN", "OUT", "TOTAL IN", "TOTAL OUT", "ERRORS", "DROPS", "ADDRESSES"}}
	for _, n := range p.m.Networks {
		rows = append(rows, []string{
			table.Dash(n.Interface, table.MaxNameColumn), term.FormatRate(n.ReceiveRate), term.FormatRate(n.TransmitRate), joblet.ReadableSize(n.BytesReceived), joblet.ReadableSize(n.BytesSent),
			term.FormatCount(n.ErrorsIn + n.ErrorsOut), term.FormatCount(n.DropsIn + n.DropsOut), table.Dash(strings.Join(n.IPs, " "), 1<<10),
		})
	}
	p.table(rows, 6, 5, 4, 3)

	if io := p.m.IO; io != nil {
		rows = [][]string{{"DEVICE", "BUSY", "READS", "WRITES", "READ", "WRITTEN", "BUSY SINCE BOOT"}}
		for _, d := range io.Disks {
			rows = append(rows, []string{
				table.Dash(d.Device, table.MaxNameColumn), term.FormatPercent(d.Utilization), term.FormatCount(d.Reads), term.FormatCount(d.Writes),
				joblet.ReadableSize(d.ReadBytes), joblet.ReadableSize(d.WriteBytes), term.FormatDuration(d.Time),
			})
		}
		p.table(rows, 3, 2)
	}
	if s := p.m.Processes; s != nil {
		p.processes("Busiest", s.ByCPU)
		p.processes("Largest", s.ByMemory)
	}
}

func (p *metricsText) processes(which string, all []client.ProcessInfo) {
	if len(all) > 0 {
		fmt.Fprintf(&p.b, "\n%s processes:", which)
	}
	rows := [][]string{{"PID", "PARENT", "NAME", "CPU%", "MEM%", "MEMORY", "STATE", "STARTED", "COMMAND"}}
	for _, q := range all {
		rows = append(rows, []string{
			strconv.Itoa(q.PID), strconv.Itoa(q.PPID), table.Dash(q.Name, 16), strconv.FormatFloat(q.CPU, 'f', 1, 64), strconv.FormatFloat(q.Memory, 'f', 1, 64),
			joblet.ReadableSize(q.Resident), table.Dash(q.State, 8), term.FormatTime(q.Started), joblet.Printable(q.Command),
		})
	}
	p.table(rows, 7, 1, 6, 5)
}
