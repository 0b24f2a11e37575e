package monitor

import (
	"time"

	"github.com/joblet/joblet/client"
)

// metricsJSON is a sample as --json shows it. Fields that the messages of the API have
// have the same names here.
type metricsJSON struct {
	Timestamp     time.Time       `json:"timestamp,omitzero"`
	Available     *bool           `json:"available,omitempty"`
	Host          *hostJSON       `json:"host,omitempty"`
	CPU           *cpuJSON        `json:"cpu,omitempty"`
	Memory        *memoryJSON     `json:"memory,omitempty"`
	Disks         []diskJSON      `json:"disks,omitempty"`
	Networks      []networkJSON   `json:"networks,omitempty"`
	IO            *ioJSON         `json:"io,omitempty"`
	Processes     *processesJSON  `json:"processes,omitempty"`
	Cloud         *cloudJSON      `json:"cloud,omitempty"`
	ServerVersion *client.Version `json:"server_version,omitempty"`
}

type hostJSON struct {
	Hostname      string    `json:"hostname"`
	OS            string    `json:"os"`
	KernelVersion string    `json:"kernel_version"`
	Architecture  string    `json:"architecture"`
	BootTime      time.Time `json:"boot_time,omitzero"`
	Uptime        int64     `json:"uptime"` // seconds
	NodeID        string    `json:"node_id,omitempty"`
	ServerIPs     []string  `json:"server_ips"`
	MACAddresses  []string  `json:"mac_addresses"`
}

type cloudJSON struct {
	Provider       string            `json:"provider,omitempty"`
	Region         string            `json:"region,omitempty"`
	Zone           string            `json:"zone,omitempty"`
	InstanceID     string            `json:"instance_id,omitempty"`
	InstanceType   string            `json:"instance_type,omitempty"`
	HypervisorType string            `json:"hypervisor_type,omitempty"`
	Metadata       map[string]string `json:"metadata,omitempty"`
}

// Times are seconds since boot.
type cpuJSON struct {
	Cores        int       `json:"cores"`
	UsagePercent float64   `json:"usage_percent"`
	UserTime     float64   `json:"user_time"`
	SystemTime   float64   `json:"system_time"`
	IdleTime     float64   `json:"idle_time"`
	IOWaitTime   float64   `json:"io_wait_time"`
	StealTime    float64   `json:"steal_time"`
	LoadAverage  []float64 `json:"load_average"`
	PerCoreUsage []float64 `json:"per_core_usage"` // percent
}

type memoryJSON struct {
	TotalBytes     int64   `json:"total_bytes"`
	UsedBytes      int64   `json:"used_bytes"`
	FreeBytes      int64   `json:"free_bytes"`
	AvailableBytes int64   `json:"available_bytes"`
	UsagePercent   float64 `json:"usage_percent"`
	CachedBytes    int64   `json:"cached_bytes"`
	BufferedBytes  int64   `json:"buffered_bytes"`
	SwapTotal      int64   `json:"swap_total"` // bytes
	SwapUsed       int64   `json:"swap_used"`
	SwapFree       int64   `json:"swap_free"`
}

type diskJSON struct {
	Device             string  `json:"device"`
	MountPoint         string  `json:"mount_point"`
	FileSystem         string  `json:"filesystem"`
	TotalBytes         int64   `json:"total_bytes"`
	UsedBytes          int64   `json:"used_bytes"`
	FreeBytes          int64   `json:"free_bytes"`
	UsagePercent       float64 `json:"usage_percent"`
	InodesTotal        int64   `json:"inodes_total"`
	InodesUsed         int64   `json:"inodes_used"`
	InodesFree         int64   `json:"inodes_free"`
	InodesUsagePercent float64 `json:"inodes_usage_percent"`
}

type networkJSON struct {
	Interface       string   `json:"interface"`
	BytesReceived   int64    `json:"bytes_received"`
	BytesSent       int64    `json:"bytes_sent"`
	PacketsReceived int64    `json:"packets_received"`
	PacketsSent     int64    `json:"packets_sent"`
	ErrorsIn        int64    `json:"errors_in"`
	ErrorsOut       int64    `json:"errors_out"`
	DropsIn         int64    `json:"drops_in"`
	DropsOut        int64    `json:"drops_out"`
	ReceiveRate     float64  `json:"receive_rate"` // bytes per second
	TransmitRate    float64  `json:"transmit_rate"`
	IPAddresses     []string `json:"ip_addresses"`
	MACAddress      string   `json:"mac_address,omitempty"`
}

type ioJSON struct {
	TotalReads  int64        `json:"total_reads"`
	TotalWrites int64        `json:"total_writes"`
	ReadBytes   int64        `json:"read_bytes"`
	WriteBytes  int64        `json:"write_bytes"`
	ReadRate    float64      `json:"read_rate"` // bytes per second
	WriteRate   float64      `json:"write_rate"`
	DiskIO      []diskIOJSON `json:"disk_io"`
}

// Times are milliseconds.
type diskIOJSON struct {
	Device          string  `json:"device"`
	ReadsCompleted  int64   `json:"reads_completed"`
	WritesCompleted int64   `json:"writes_completed"`
	ReadBytes       int64   `json:"read_bytes"`
	WriteBytes      int64   `json:"write_bytes"`
	ReadTime        int64   `json:"read_time"`
	WriteTime       int64   `json:"write_time"`
	IOTime          int64   `json:"io_time"`
	Utilization     float64 `json:"utilization"` // percent
}

type processesJSON struct {
	TotalProcesses    int           `json:"total_processes"`
	RunningProcesses  int           `json:"running_processes"`
	SleepingProcesses int           `json:"sleeping_processes"`
	StoppedProcesses  int           `json:"stopped_processes"`
	ZombieProcesses   int           `json:"zombie_processes"`
	TotalThreads      int           `json:"total_threads"`
	TopByCPU          []processJSON `json:"top_by_cpu"`
	TopByMemory       []processJSON `json:"top_by_memory"`
}

type processJSON struct {
	PID           int       `json:"pid"`
	PPID          int       `json:"ppid"`
	Name          string    `json:"name"`
	Command       string    `json:"command"`
	CPUPercent    float64   `json:"cpu_percent"` // of all cores
	MemoryPercent float64   `json:"memory_percent"`
	MemoryBytes   int64     `json:"memory_bytes"`
	Status        string    `json:"status"`
	StartTime     time.Time `json:"start_time,omitzero"`
}

func newMetricsJSON(m client.HostMetrics) metricsJSON {
	out := metricsJSON{Timestamp: m.Time}
	if h := m.Host; h != nil {
		out.Host = &hostJSON{
			Hostname: h.Hostname, OS: h.OS, KernelVersion: h.KernelVersion, Architecture: h.Architecture, BootTime: h.BootTime,
			Uptime: int64(h.Uptime / time.Second), NodeID: h.NodeID, ServerIPs: list(h.IPs), MACAddresses: list(h.MACs),
		}
	}
	if c := m.Cloud; c != nil {
		out.Cloud = &cloudJSON{c.Provider, c.Region, c.Zone, c.InstanceID, c.InstanceType, c.HypervisorType, c.Metadata}
	}
	if c := m.CPU; c != nil {
		out.CPU = &cpuJSON{
			Cores: c.Cores, UsagePercent: c.Usage, PerCoreUsage: list(c.PerCore), LoadAverage: list(c.Load),
			UserTime: c.User.Seconds(), SystemTime: c.System.Seconds(), IdleTime: c.Idle.Seconds(),
			IOWaitTime: c.IOWait.Seconds(), StealTime: c.Steal.Seconds(),
		}
	}
	if y := m.Memory; y != nil {
		out.Memory = &memoryJSON{y.Total, y.Used, y.Free, y.Available, y.Usage, y.Cached, y.Buffered, y.SwapTotal, y.SwapUsed, y.SwapFree}
	}
	for _, d := range m.Disks {
		out.Disks = append(out.Disks, diskJSON{
			d.Device, d.MountPoint, d.FileSystem, d.Total, d.Used, d.Free, d.Usage, d.Inodes, d.InodesUsed, d.InodesFree, d.InodesUsage,
		})
	}
	for _, n := range m.Networks {
		out.Networks = append(out.Networks, networkJSON{
			Interface: n.Interface, BytesReceived: n.BytesReceived, BytesSent: n.BytesSent,
			PacketsReceived: n.PacketsReceived, PacketsSent: n.PacketsSent, ErrorsIn: n.ErrorsIn, ErrorsOut: n.ErrorsOut,
			DropsIn: n.DropsIn, DropsOut: n.DropsOut, ReceiveRate: n.ReceiveRate, TransmitRate: n.TransmitRate,
			IPAddresses: list(n.IPs), MACAddress: n.MAC,
		})
	}
	if o := m.IO; o != nil {
		out.IO = &ioJSON{o.Reads, o.Writes, o.ReadBytes, o.WriteBytes, o.ReadRate, o.WriteRate, []diskIOJSON{}}
		for _, d := range o.Disks {
			out.IO.DiskIO = append(out.IO.DiskIO, diskIOJSON{
				d.Device, d.Reads, d.Writes, d.ReadBytes, d.WriteBytes, d.ReadTime.Milliseconds(), d.WriteTime.Milliseconds(), d.Time.Milliseconds(), d.Utilization,
			})
		}
	}
	if s := m.Processes; s != nil {
		out.Processes = &processesJSON{
			s.Total, s.Running, s.Sleeping, s.Stopped, s.Zombies, s.Threads, processList(s.ByCPU), processList(s.ByMemory),
		}
	}
	return out
}

// list returns all, or an empty list for nil, which JSON shows as [].
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
