package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/joblet/joblet/client"
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
		p.line("I/O", "%s read, %s written", formatRate(io.ReadRate), formatRate(io.WriteRate))
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
	_ = writeTable(&p.b, p.width, rows, drop...) // a Builder takes everything
}

func (p *metricsText) host(compact bool) {
	p.line("Time", "%s", formatTime(p.m.Time))
	if h := p.m.Host; h != nil {
		p.line("Host", "%s: %s %s, %s, up %s", printable(h.Hostname), printable(h.OS), printable(h.KernelVersion), printable(h.Architecture),
			formatDuration(h.Uptime))
		if !compact {
			p.line("Booted", "%s", formatTime(h.BootTime))
			p.list("Addresses", h.IPs)
			p.list("MACs", h.MACs)
			if h.NodeID != "" {
				p.line("Node", "%s", printable(h.NodeID))
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
		p.line("Cloud", "%s", printable(where))
	}
}

func (p *metricsText) list(name string, all []string) {
	if len(all) > 0 {
		p.line(name, "%s", printable(strings.Join(all, " ")))
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
	p.line("CPU", "%s of %d cores, load%s", formatPercent(c.Usage), c.Cores, load.String())
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
	p.line("CPU time", "user %s, system %s, idle %s, I/O wait %s, stolen %s since boot", formatDuration(c.User), formatDuration(c.System),
		formatDuration(c.Idle), formatDuration(c.IOWait), formatDuration(c.Steal))
}

func (p *metricsText) memory() {
	m := p.m.Memory
	if m == nil {
		return
	}
	p.line("Memory", "%s: %s of %s used, %s available, %s free, %s cached, %s buffers", formatPercent(m.Usage), formatBytes(m.Used),
		formatBytes(m.Total), formatBytes(m.Available), formatBytes(m.Free), formatBytes(m.Cached), formatBytes(m.Buffered))
	if m.SwapTotal > 0 {
		p.line("Swap", "%s: %s of %s used", formatPercent(100*float64(m.SwapUsed)/float64(m.SwapTotal)), formatBytes(m.SwapUsed), formatBytes(m.SwapTotal))
	}
}

// brief shows the rest of a compact page.
func (p *metricsText) brief() {
	var disks, networks []string
	for _, d := range p.m.Disks {
		disks = append(disks, printable(d.MountPoint)+" "+formatPercent(d.Usage))
	}
	if len(disks) > 0 {
		p.line("Disks", "%s", strings.Join(disks, ", "))
	}
	for _, n := range p.m.Networks {
		if n.BytesReceived > 0 || n.BytesSent > 0 {
			networks = append(networks, fmt.Sprintf("%s %s in, %s out", printable(n.Interface), formatRate(n.ReceiveRate), formatRate(n.TransmitRate)))
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
			dash(d.Device, maxNameColumn), dash(d.FileSystem, maxNameColumn), formatBytes(d.Total), formatBytes(d.Used), formatBytes(d.Free),
			formatPercent(d.Usage), formatPercent(d.InodesUsage), printable(d.MountPoint),
		})
	}
	p.table(rows, 6, 1, 3, 0)

	rows = [][]string{{"NETWORK", "IN", "OUT", "TOTAL IN", "TOTAL OUT", "ERRORS", "DROPS", "ADDRESSES"}}
	for _, n := range p.m.Networks {
		rows = append(rows, []string{
			dash(n.Interface, maxNameColumn), formatRate(n.ReceiveRate), formatRate(n.TransmitRate), formatBytes(n.BytesReceived), formatBytes(n.BytesSent),
			formatCount(n.ErrorsIn + n.ErrorsOut), formatCount(n.DropsIn + n.DropsOut), dash(strings.Join(n.IPs, " "), 1<<10),
		})
	}
	p.table(rows, 6, 5, 4, 3)

	if io := p.m.IO; io != nil {
		rows = [][]string{{"DEVICE", "BUSY", "READS", "WRITES", "READ", "WRITTEN", "BUSY SINCE BOOT"}}
		for _, d := range io.Disks {
			rows = append(rows, []string{
				dash(d.Device, maxNameColumn), formatPercent(d.Utilization), formatCount(d.Reads), formatCount(d.Writes),
				formatBytes(d.ReadBytes), formatBytes(d.WriteBytes), formatDuration(d.Time),
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
			strconv.Itoa(q.PID), strconv.Itoa(q.PPID), dash(q.Name, 16), strconv.FormatFloat(q.CPU, 'f', 1, 64), strconv.FormatFloat(q.Memory, 'f', 1, 64),
			formatBytes(q.Resident), dash(q.State, 8), formatTime(q.Started), printable(q.Command),
		})
	}
	p.table(rows, 7, 1, 6, 5)
}

func formatPercent(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) + "%" }

func formatRate(v float64) string { return formatBytes(int64(v)) + "/s" }

func formatCount(n int64) string { return strconv.FormatInt(n, 10) }
