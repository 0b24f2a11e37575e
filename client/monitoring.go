package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

// HostMetrics is how the daemon's host does. Parts that were not asked for, or
// that the host does not have, are nil. Percentages are from 0 to 100, rates are
// bytes in a second, measured over the time since the message before.
type HostMetrics struct {
	Time      time.Time
	Host      *HostInfo
	Cloud     *CloudInfo // nil when nothing is known of one
	CPU       *CPUMetrics
	Memory    *MemoryMetrics
	Disks     []DiskMetrics // mounted file systems
	Networks  []NetworkMetrics
	IO        *IOMetrics
	Processes *ProcessMetrics
}

// HostInfo is what the host is.
type HostInfo struct {
	Hostname      string
	OS            string
	KernelVersion string
	Architecture  string
	BootTime      time.Time
	Uptime        time.Duration
	NodeID        string // a UUID of this installation; may be empty
	IPs           []string
	MACs          []string
}

// CloudInfo is where the host runs. Fields are empty when unknown.
type CloudInfo struct {
	Provider       string
	Region         string
	Zone           string
	InstanceID     string
	InstanceType   string
	HypervisorType string
	Metadata       map[string]string
}

// CPUMetrics is the work of all processors together; times are since boot.
type CPUMetrics struct {
	Cores   int
	Usage   float64   // percent
	PerCore []float64 // percent of each
	Load    []float64 // averages over 1, 5 and 15 minutes

	User, System, Idle, IOWait, Steal time.Duration
}

// MemoryMetrics are bytes, but for Usage.
type MemoryMetrics struct {
	Total, Used, Free, Available  int64
	Cached, Buffered              int64
	SwapTotal, SwapUsed, SwapFree int64
	Usage                         float64 // percent
}

// DiskMetrics is a file system. Sizes are bytes; Free is what users may have.
type DiskMetrics struct {
	Device     string
	MountPoint string
	FileSystem string

	Total, Used, Free int64
	Usage             float64 // percent

	Inodes, InodesUsed, InodesFree int64
	InodesUsage                    float64 // percent
}

// NetworkMetrics is an interface.
type NetworkMetrics struct {
	Interface string
	MAC       string
	IPs       []string

	BytesReceived, BytesSent     int64
	PacketsReceived, PacketsSent int64
	ErrorsIn, ErrorsOut          int64
	DropsIn, DropsOut            int64
	ReceiveRate, TransmitRate    float64
}

// IOMetrics is what all disks did since boot.
type IOMetrics struct {
	Reads, Writes         int64
	ReadBytes, WriteBytes int64
	ReadRate, WriteRate   float64
	Disks                 []DiskIOMetrics
}

// DiskIOMetrics is what one disk did since boot.
type DiskIOMetrics struct {
	Device                string
	Reads, Writes         int64
	ReadBytes, WriteBytes int64
	ReadTime, WriteTime   time.Duration // summed over all reads and writes
	Time                  time.Duration // with anything under way
	Utilization           float64       // percent of the time, measured as rates are
}

// ProcessMetrics counts the host's processes.
type ProcessMetrics struct {
	Total, Running, Sleeping, Stopped, Zombies, Threads int

	ByCPU, ByMemory []ProcessInfo // the first of them
}

// ProcessInfo is a process. Its name and command are as it chose them.
type ProcessInfo struct {
	PID, PPID int
	Name      string
	Command   string
	CPU       float64 // percent of all processors
	Memory    float64 // percent
	Resident  int64   // bytes
	State     string  // a letter as ps shows it
	Started   time.Time
}

// SystemStatus is what a daemon says of itself and its host.
type SystemStatus struct {
	Available bool
	Version   Version
	HostMetrics
}

// SystemStatus returns the state of the daemon and its host. Unless it was called
// shortly before, it takes a fifth of a second, over which usage is measured.
func (c *Client) SystemStatus(ctx context.Context) (SystemStatus, error) {
	p, err := c.monitoring.GetSystemStatus(ctx, &api.EmptyRequest{})
	if err != nil {
		return SystemStatus{}, err
	}
	return SystemStatus{
		Available: p.GetAvailable(),
		Version:   version(p.GetServerVersion()),
		HostMetrics: hostMetrics(&api.SystemMetricsResponse{
			Timestamp: p.GetTimestamp(), Host: p.GetHost(), Cpu: p.GetCpu(), Memory: p.GetMemory(), Disks: p.GetDisks(),
			Networks: p.GetNetworks(), Io: p.GetIo(), Processes: p.GetProcesses(), Cloud: p.GetCloud(),
		}),
	}, nil
}

// SystemMetrics returns how the daemon's host does, at once and then after each
// interval, until the loop is left or an error ends it. Intervals are whole
// seconds up to an hour; 0 is the daemon's default, five seconds. Types are any
// of "cpu", "memory", "disk", "network", "io", "process" and "host"; none are
// all.
func (c *Client) SystemMetrics(ctx context.Context, interval time.Duration, types ...string) iter.Seq2[HostMetrics, error] {
	return func(yield func(HostMetrics, error) bool) {
		if interval < 0 || interval > time.Hour || interval%time.Second != 0 {
			yield(HostMetrics{}, joblet.Errorf(joblet.InvalidArgument, "interval %v: must be whole seconds, at most an hour", interval))
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.monitoring.StreamSystemMetrics(ctx, &api.StreamMetricsRequest{
			IntervalSeconds: int32(interval / time.Second), MetricTypes: types,
		})
		for err == nil {
			var p *api.SystemMetricsResponse
			if p, err = stream.Recv(); err == nil && !yield(hostMetrics(p), nil) {
				return
			}
		}
		if errors.Is(err, io.EOF) {
			err = joblet.Errorf(joblet.Unavailable, "the daemon closed the stream of metrics")
		}
		yield(HostMetrics{}, err)
	}
}

func hostMetrics(p *api.SystemMetricsResponse) HostMetrics {
	out := HostMetrics{Time: timeOf(p.GetTimestamp())}
	if h := p.GetHost(); h != nil {
		out.Host = &HostInfo{
			Hostname: h.GetHostname(), OS: h.GetOs(), KernelVersion: h.GetKernelVersion(), Architecture: h.GetArchitecture(),
			BootTime: timeOf(h.GetBootTime()), Uptime: time.Duration(h.GetUptime()) * time.Second,
			NodeID: h.GetNodeId(), IPs: h.GetServerIps(), MACs: h.GetMacAddresses(),
		}
	}
	if c := p.GetCloud(); c != nil {
		out.Cloud = &CloudInfo{
			Provider: c.GetProvider(), Region: c.GetRegion(), Zone: c.GetZone(), InstanceID: c.GetInstanceId(),
			InstanceType: c.GetInstanceType(), HypervisorType: c.GetHypervisorType(), Metadata: c.GetMetadata(),
		}
	}
	if c := p.GetCpu(); c != nil {
		seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
		out.CPU = &CPUMetrics{
			Cores: int(c.GetCores()), Usage: c.GetUsagePercent(), PerCore: c.GetPerCoreUsage(), Load: c.GetLoadAverage(),
			User: seconds(c.GetUserTime()), System: seconds(c.GetSystemTime()), Idle: seconds(c.GetIdleTime()),
			IOWait: seconds(c.GetIoWaitTime()), Steal: seconds(c.GetStealTime()),
		}
	}
	if m := p.GetMemory(); m != nil {
		out.Memory = &MemoryMetrics{
			Total: m.GetTotalBytes(), Used: m.GetUsedBytes(), Free: m.GetFreeBytes(), Available: m.GetAvailableBytes(),
			Cached: m.GetCachedBytes(), Buffered: m.GetBufferedBytes(), Usage: m.GetUsagePercent(),
			SwapTotal: m.GetSwapTotal(), SwapUsed: m.GetSwapUsed(), SwapFree: m.GetSwapFree(),
		}
	}
	for _, d := range p.GetDisks() {
		out.Disks = append(out.Disks, DiskMetrics{
			Device: d.GetDevice(), MountPoint: d.GetMountPoint(), FileSystem: d.GetFilesystem(),
			Total: d.GetTotalBytes(), Used: d.GetUsedBytes(), Free: d.GetFreeBytes(), Usage: d.GetUsagePercent(),
			Inodes: d.GetInodesTotal(), InodesUsed: d.GetInodesUsed(), InodesFree: d.GetInodesFree(), InodesUsage: d.GetInodesUsagePercent(),
		})
	}
	for _, n := range p.GetNetworks() {
		out.Networks = append(out.Networks, NetworkMetrics{
			Interface: n.GetInterface(), MAC: n.GetMacAddress(), IPs: n.GetIpAddresses(),
			BytesReceived: n.GetBytesReceived(), BytesSent: n.GetBytesSent(),
			PacketsReceived: n.GetPacketsReceived(), PacketsSent: n.GetPacketsSent(),
			ErrorsIn: n.GetErrorsIn(), ErrorsOut: n.GetErrorsOut(), DropsIn: n.GetDropsIn(), DropsOut: n.GetDropsOut(),
			ReceiveRate: n.GetReceiveRate(), TransmitRate: n.GetTransmitRate(),
		})
	}
	if o := p.GetIo(); o != nil {
		out.IO = &IOMetrics{
			Reads: o.GetTotalReads(), Writes: o.GetTotalWrites(), ReadBytes: o.GetReadBytes(), WriteBytes: o.GetWriteBytes(),
			ReadRate: o.GetReadRate(), WriteRate: o.GetWriteRate(),
		}
		for _, d := range o.GetDiskIo() {
			out.IO.Disks = append(out.IO.Disks, DiskIOMetrics{
				Device: d.GetDevice(), Reads: d.GetReadsCompleted(), Writes: d.GetWritesCompleted(),
				ReadBytes: d.GetReadBytes(), WriteBytes: d.GetWriteBytes(),
				ReadTime: milliseconds(d.GetReadTime()), WriteTime: milliseconds(d.GetWriteTime()), Time: milliseconds(d.GetIoTime()),
				Utilization: d.GetUtilization(),
			})
		}
	}
	if m := p.GetProcesses(); m != nil {
		out.Processes = &ProcessMetrics{
			Total: int(m.GetTotalProcesses()), Running: int(m.GetRunningProcesses()), Sleeping: int(m.GetSleepingProcesses()),
			Stopped: int(m.GetStoppedProcesses()), Zombies: int(m.GetZombieProcesses()), Threads: int(m.GetTotalThreads()),
			ByCPU: processes(m.GetTopByCpu()), ByMemory: processes(m.GetTopByMemory()),
		}
	}
	return out
}

func processes(all []*api.ProcessInfo) []ProcessInfo {
	var out []ProcessInfo
	for _, p := range all {
		out = append(out, ProcessInfo{
			PID: int(p.GetPid()), PPID: int(p.GetPpid()), Name: p.GetName(), Command: p.GetCommand(),
			CPU: p.GetCpuPercent(), Memory: p.GetMemoryPercent(), Resident: p.GetMemoryBytes(),
			State: p.GetStatus(), Started: timeOf(p.GetStartTime()),
		})
	}
	return out
}

// timeOf reads an RFC 3339 time; the zero time stands for anything else.
func timeOf(s string) time.Time {
	t, _ := time.Parse(time.RFC3339, s)
	return t
}

func milliseconds(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
