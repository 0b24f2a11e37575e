package monitor

import (
	"time"

	"github.com/joblet/joblet/client"
)

// metricsJSON is a sample as --json shows it, in the groups and with the names
// that existing programs read.
type metricsJSON struct {
	Timestamp     time.Time       `json:"timestamp,omitzero"`
	Available     *bool           `json:"available,omitempty"`
	HostInfo      *hostJSON       `json:"hostInfo,omitempty"`
	CPUInfo       *cpuJSON        `json:"cpuInfo,omitempty"`
	MemoryInfo    *memoryJSON     `json:"memoryInfo,omitempty"`
	DisksInfo     *disksJSON      `json:"disksInfo,omitempty"`
	NetworkInfo   *networksJSON   `json:"networkInfo,omitempty"`
	IOInfo        *ioJSON         `json:"ioInfo,omitempty"`
	ProcessesInfo *processesJSON  `json:"processesInfo,omitempty"`
	ServerVersion *client.Version `json:"serverVersion,omitempty"`
}

type hostJSON struct {
	Hostname       string            `json:"hostname"`
	Platform       string            `json:"platform"`
	Arch           string            `json:"arch"`
	Release        string            `json:"release"` // the kernel's
	BootTime       time.Time         `json:"bootTime,omitzero"`
	Uptime         int64             `json:"uptime"` // seconds
	NodeID         string            `json:"nodeId,omitempty"`
	ServerIPs      []string          `json:"serverIps"`
	MACAddresses   []string          `json:"macAddresses"`
	CloudProvider  string            `json:"cloudProvider,omitempty"`
	Region         string            `json:"region,omitempty"`
	Zone           string            `json:"zone,omitempty"`
	InstanceID     string            `json:"instanceId,omitempty"`
	InstanceType   string            `json:"instanceType,omitempty"`
	HypervisorType string            `json:"hypervisorType,omitempty"`
	CloudMetadata  map[string]string `json:"cloudMetadata,omitempty"`
}

// Times are seconds since boot.
type cpuJSON struct {
	Cores        int       `json:"cores"`
	Usage        float64   `json:"usage"` // from 0 to 1
	UsagePercent float64   `json:"usagePercent"`
	PerCoreUsage []float64 `json:"perCoreUsage"` // percent
	LoadAverage  []float64 `json:"loadAverage"`
	UserTime     float64   `json:"userTime"`
	SystemTime   float64   `json:"systemTime"`
	IdleTime     float64   `json:"idleTime"`
	IOWaitTime   float64   `json:"ioWaitTime"`
	StealTime    float64   `json:"stealTime"`
}

// Sizes are bytes.
type memoryJSON struct {
	Total     int64    `json:"total"`
	Used      int64    `json:"used"`
	Free      int64    `json:"free"`
	Available int64    `json:"available"`
	Percent   float64  `json:"percent"`
	Cached    int64    `json:"cached"`
	Buffers   int64    `json:"buffers"`
	Swap      swapJSON `json:"swap"`
}

type swapJSON struct {
	Total   int64   `json:"total"`
	Used    int64   `json:"used"`
	Free    int64   `json:"free"`
	Percent float64 `json:"percent"`
}

type disksJSON struct {
	Disks      []diskJSON `json:"disks"`
	TotalSpace int64      `json:"totalSpace"`
	UsedSpace  int64      `json:"usedSpace"`
}

type diskJSON struct {
	Name          string  `json:"name"`
	MountPoint    string  `json:"mountpoint"`
	FileSystem    string  `json:"filesystem"`
	Size          int64   `json:"size"`
	Used          int64   `json:"used"`
	Available     int64   `json:"available"`
	Percent       float64 `json:"percent"`
	Inodes        int64   `json:"inodes"`
	InodesUsed    int64   `json:"inodesUsed"`
	InodesFree    int64   `json:"inodesFree"`
	InodesPercent float64 `json:"inodesPercent"`
}

type networksJSON struct {
	Interfaces   []networkJSON `json:"interfaces"`
	TotalRxBytes int64         `json:"totalRxBytes"`
	TotalTxBytes int64         `json:"totalTxBytes"`
}

type networkJSON struct {
	Name        string   `json:"name"`
	IPAddresses []string `json:"ipAddresses"`
	MACAddress  string   `json:"macAddress,omitempty"`
	RxBytes     int64    `json:"rxBytes"`
	TxBytes     int64    `json:"txBytes"`
	RxPackets   int64    `json:"rxPackets"`
	TxPackets   int64    `json:"txPackets"`
	RxErrors    int64    `json:"rxErrors"`
	TxErrors    int64    `json:"txErrors"`
	RxDrops     int64    `json:"rxDrops"`
	TxDrops     int64    `json:"txDrops"`
	RxRate      float64  `json:"rxRate"` // bytes in a second
	TxRate      float64  `json:"txRate"`
}

type ioJSON struct {
	Reads      int64        `json:"reads"`
	Writes     int64        `json:"writes"`
	ReadBytes  int64        `json:"readBytes"`
	WriteBytes int64        `json:"writeBytes"`
	ReadRate   float64      `json:"readRate"` // bytes in a second
	WriteRate  float64      `json:"writeRate"`
	Disks      []diskIOJSON `json:"disks"`
}

// Times are milliseconds.
type diskIOJSON struct {
	Device      string  `json:"device"`
	Reads       int64   `json:"reads"`
	Writes      int64   `json:"writes"`
	ReadBytes   int64   `json:"readBytes"`
	WriteBytes  int64   `json:"writeBytes"`
	ReadTime    int64   `json:"readTime"`
	WriteTime   int64   `json:"writeTime"`
	IOTime      int64   `json:"ioTime"`
	Utilization float64 `json:"utilization"` // percent
}

type processesJSON struct {
	Processes         []processJSON `json:"processes"` // the busiest
	TopByMemory       []processJSON `json:"topByMemory"`
	TotalProcesses    int           `json:"totalProcesses"`
	RunningProcesses  int           `json:"runningProcesses"`
	SleepingProcesses int           `json:"sleepingProcesses"`
	StoppedProcesses  int           `json:"stoppedProcesses"`
	ZombieProcesses   int           `json:"zombieProcesses"`
	TotalThreads      int           `json:"totalThreads"`
}

type processJSON struct {
	PID         int       `json:"pid"`
	PPID        int       `json:"ppid"`
	Name        string    `json:"name"`
	Command     string    `json:"command"`
	CPU         float64   `json:"cpu"`    // percent of all cores
	Memory      float64   `json:"memory"` // percent
	MemoryBytes int64     `json:"memoryBytes"`
	Status      string    `json:"status"`
	StartTime   time.Time `json:"startTime,omitzero"`
}

func newMetricsJSON(m client.HostMetrics) metricsJSON {
	out := metricsJSON{Timestamp: m.Time}
	if h := m.Host; h != nil {
		out.HostInfo = &hostJSON{
			Hostname: h.Hostname, Platform: h.OS, Arch: h.Architecture, Release: h.KernelVersion, BootTime: h.BootTime,
			Uptime: int64(h.Uptime / time.Second), NodeID: h.NodeID, ServerIPs: list(h.IPs), MACAddresses: list(h.MACs),
		}
		if c := m.Cloud; c != nil {
			v := out.HostInfo
			v.CloudProvider, v.Region, v.Zone, v.InstanceID = c.Provider, c.Region, c.Zone, c.InstanceID
			v.InstanceType, v.HypervisorType, v.CloudMetadata = c.InstanceType, c.HypervisorType, c.Metadata
		}
	}
	if c := m.CPU; c != nil {
		out.CPUInfo = &cpuJSON{
			Cores: c.Cores, Usage: c.Usage / 100, UsagePercent: c.Usage, PerCoreUsage: list(c.PerCore), LoadAverage: list(c.Load),
			UserTime: c.User.Seconds(), SystemTime: c.System.Seconds(), IdleTime: c.Idle.Seconds(),
			IOWaitTime: c.IOWait.Seconds(), StealTime: c.Steal.Seconds(),
		}
	}
	if y := m.Memory; y != nil {
		out.MemoryInfo = &memoryJSON{
			Total: y.Total, Used: y.Used, Free: y.Free, Available: y.Available, Percent: y.Usage, Cached: y.Cached, Buffers: y.Buffered,
			Swap: swapJSON{Total: y.SwapTotal, Used: y.SwapUsed, Free: y.SwapFree},
		}
		if y.SwapTotal > 0 {
			out.MemoryInfo.Swap.Percent = 100 * float64(y.SwapUsed) / float64(y.SwapTotal)
		}
	}
	if len(m.Disks) > 0 {
		out.DisksInfo = &disksJSON{}
	}
	for _, d := range m.Disks {
		out.DisksInfo.TotalSpace += d.Total
		out.DisksInfo.UsedSpace += d.Used
		out.DisksInfo.Disks = append(out.DisksInfo.Disks, diskJSON{
			d.Device, d.MountPoint, d.FileSystem, d.Total, d.Used, d.Free, d.Usage, d.Inodes, d.InodesUsed, d.InodesFree, d.InodesUsage,
		})
	}
	if len(m.Networks) > 0 {
		out.NetworkInfo = &networksJSON{}
	}
	for _, n := range m.Networks {
		out.NetworkInfo.TotalRxBytes += n.BytesReceived
		out.NetworkInfo.TotalTxBytes += n.BytesSent
		out.NetworkInfo.Interfaces = append(out.NetworkInfo.Interfaces, networkJSON{
			Name: n.Interface, IPAddresses: list(n.IPs), MACAddress: n.MAC, RxBytes: n.BytesReceived, TxBytes: n.BytesSent,
			RxPackets: n.PacketsReceived, TxPackets: n.PacketsSent, RxErrors: n.ErrorsIn, TxErrors: n.ErrorsOut,
			RxDrops: n.DropsIn, TxDrops: n.DropsOut, RxRate: n.ReceiveRate, TxRate: n.TransmitRate,
		})
	}
	if o := m.IO; o != nil {
		out.IOInfo = &ioJSON{o.Reads, o.Writes, o.ReadBytes, o.WriteBytes, o.ReadRate, o.WriteRate, []diskIOJSON{}}
		for _, d := range o.Disks {
			out.IOInfo.Disks = append(out.IOInfo.Disks, diskIOJSON{
				d.Device, d.Reads, d.Writes, d.ReadBytes, d.WriteBytes, d.ReadTime.Milliseconds(), d.WriteTime.Milliseconds(), d.Time.Milliseconds(), d.Utilization,
			})
		}
	}
	if s := m.Processes; s != nil {
		out.ProcessesInfo = &processesJSON{
			processList(s.ByCPU), processList(s.ByMemory), s.Total, s.Running, s.Sleeping, s.Stopped, s.Zombies, s.Threads,
		}
	}
	return out
}

// list makes an empty JSON array of nothing.
func list[T any](all []T) []T {
	if all == nil {
		return []T{}
	}
	return all
}

func processList(all []client.ProcessInfo) []processJSON {
	out := []processJSON{}
	for _, p := range all {
		out = append(out, processJSON{p.PID, p.PPID, p.Name, p.Command, p.CPU, p.Memory, p.Resident, p.State, p.Started})
	}
	return out
}
