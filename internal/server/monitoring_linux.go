package server

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/hostinfo"
	"github.com/joblet/joblet/internal/server/admission"
	"github.com/joblet/joblet/internal/service"
)

const (
	defaultInterval = 5 // seconds between the messages of StreamSystemMetrics
	maxInterval     = 3600

	// maxMetricTypes is more than there are.
	maxMetricTypes = 32
)

// metricTypes are the words of StreamMetricsRequest.
var metricTypes = map[string]hostinfo.Parts{
	"cpu":     hostinfo.PartCPU,
	"memory":  hostinfo.PartMemory,
	"disk":    hostinfo.PartDisks,
	"network": hostinfo.PartNetworks,
	"io":      hostinfo.PartIO,
	"process": hostinfo.PartProcesses,
	"host":    hostinfo.PartMachine,
}

type monitoringService struct {
	api.UnimplementedMonitoringServiceServer
	host *service.Host
}

// GetSystemStatus says what the daemon is and how its host does. Usage and rates
// are those since the previous call, or of the last fifth of a second when that
// was long ago.
func (s *monitoringService) GetSystemStatus(ctx context.Context, _ *api.EmptyRequest) (*api.SystemStatusResponse, error) {
	m, err := s.host.Status(ctx, identityOf(ctx))
	if err != nil {
		return nil, err
	}
	p := metricsToProto(m)
	return &api.SystemStatusResponse{
		Timestamp:     p.GetTimestamp(),
		Available:     true,
		Host:          p.GetHost(),
		Cpu:           p.GetCpu(),
		Memory:        p.GetMemory(),
		Disks:         p.GetDisks(),
		Networks:      p.GetNetworks(),
		Io:            p.GetIo(),
		Processes:     p.GetProcesses(),
		Cloud:         p.GetCloud(),
		ServerVersion: serverVersion(),
	}, nil
}

func (s *monitoringService) GetServerVersion(ctx context.Context, _ *api.EmptyRequest) (*api.ServerVersionInfo, error) {
	c, v := identityOf(ctx), serverVersion()
	active, err := s.host.Version(ctx, c)
	if err != nil {
		return nil, err
	}
	v.Caller, v.Role, v.ActiveJobs = c.Name, c.Role.String(), int64(active)
	return v, nil
}

func serverVersion() *api.ServerVersionInfo {
	b := joblet.Build()
	return &api.ServerVersionInfo{
		Version: b.Version, GitCommit: b.Commit, BuildDate: b.Date, Component: "joblet", GoVersion: b.Go, Platform: b.Platform,
	}
}

// StreamSystemMetrics sends metrics of the host, at once and then after each interval,
// over which usage and rates are measured. A slow client misses some.
func (s *monitoringService) StreamSystemMetrics(r *api.StreamMetricsRequest, out grpc.ServerStreamingServer[api.SystemMetricsResponse]) error {
	interval, parts, err := metricsRequest(r)
	if err != nil {
		return err
	}
	ctx := out.Context()
	reply := admission.ResponseOf(ctx)
	return s.host.Watch(ctx, identityOf(ctx), parts, interval,
		func() error { return reply.Reserve(ctx, reply.Piece(), nil) }, // nothing is measured for a client that does not read
		func(m hostinfo.Sample) error { return out.Send(metricsToProto(m)) })
}

func metricsRequest(r *api.StreamMetricsRequest) (interval time.Duration, parts hostinfo.Parts, err error) {
	seconds := r.GetIntervalSeconds()
	if seconds == 0 {
		seconds = defaultInterval
	}
	if seconds < 1 || seconds > maxInterval {
		return 0, 0, joblet.Errorf(joblet.InvalidArgument, "interval of %d seconds: must be between 1 and %d", seconds, maxInterval)
	}
	if n := len(r.GetMetricTypes()); n > maxMetricTypes {
		return 0, 0, joblet.Errorf(joblet.InvalidArgument, "%d metric types: at most %d are possible", n, maxMetricTypes)
	}
	for _, name := range r.GetMetricTypes() {
		part, ok := metricTypes[name]
		if !ok {
			return 0, 0, joblet.Errorf(joblet.InvalidArgument, "unknown metric type %.40q: must be cpu, memory, disk, network, io, process or host", name)
		}
		parts |= part
	}
	if parts == 0 {
		parts = hostinfo.AllParts
	}
	return time.Duration(seconds) * time.Second, parts, nil
}

func metricsToProto(m hostinfo.Sample) *api.SystemMetricsResponse {
	out := &api.SystemMetricsResponse{Timestamp: rfc3339(m.Time)}
	if h := m.Machine; h != nil {
		out.Host = &api.HostInfo{
			Hostname: h.Hostname, Os: h.OS, KernelVersion: h.Kernel, Architecture: h.Architecture,
			BootTime: rfc3339(h.Boot), Uptime: int64(h.Uptime / time.Second),
			NodeId: h.NodeID, ServerIps: h.Addresses, MacAddresses: h.MACs,
		}
	}
	if c := m.Cloud; c != nil {
		out.Cloud = &api.CloudInfo{
			Provider: c.Provider, InstanceId: c.InstanceID, InstanceType: c.InstanceType, HypervisorType: c.Hypervisor, Metadata: c.Metadata,
		}
	}
	if c := m.CPU; c != nil {
		out.Cpu = &api.CPUMetrics{
			Cores: int32(c.Cores), UsagePercent: c.Usage,
			UserTime: c.User, SystemTime: c.System, IdleTime: c.Idle, IoWaitTime: c.IOWait, StealTime: c.Steal,
			LoadAverage: c.Load[:], PerCoreUsage: c.PerCore,
		}
	}
	if y := m.Memory; y != nil {
		out.Memory = &api.MemoryMetrics{
			TotalBytes: y.Total, UsedBytes: y.Used, FreeBytes: y.Free, AvailableBytes: y.Available, UsagePercent: y.Usage,
			CachedBytes: y.Cached, BufferedBytes: y.Buffered, SwapTotal: y.SwapTotal, SwapUsed: y.SwapUsed, SwapFree: y.SwapFree,
		}
	}
	for _, d := range m.Disks {
		out.Disks = append(out.Disks, &api.DiskMetrics{
			Device: d.Device, MountPoint: d.MountPoint, Filesystem: d.FileSystem,
			TotalBytes: d.Total, UsedBytes: d.Used, FreeBytes: d.Free, UsagePercent: d.Usage,
			InodesTotal: d.Inodes, InodesUsed: d.InodesUsed, InodesFree: d.InodesFree, InodesUsagePercent: d.InodesUsage,
		})
	}
	for _, n := range m.Networks {
		out.Networks = append(out.Networks, &api.NetworkMetrics{
			Interface: n.Name, BytesReceived: n.BytesIn, BytesSent: n.BytesOut, PacketsReceived: n.PacketsIn, PacketsSent: n.PacketsOut,
			ErrorsIn: n.ErrorsIn, ErrorsOut: n.ErrorsOut, DropsIn: n.DropsIn, DropsOut: n.DropsOut,
			ReceiveRate: n.RateIn, TransmitRate: n.RateOut, IpAddresses: n.Addresses, MacAddress: n.MAC,
		})
	}
	if o := m.IO; o != nil {
		out.Io = &api.IOMetrics{
			TotalReads: o.Reads, TotalWrites: o.Writes, ReadBytes: o.ReadBytes, WriteBytes: o.WriteBytes,
			ReadRate: o.ReadRate, WriteRate: o.WriteRate,
		}
		for _, d := range o.Disks {
			out.Io.DiskIo = append(out.Io.DiskIo, &api.DiskIOMetrics{
				Device: d.Device, ReadsCompleted: d.Reads, WritesCompleted: d.Writes, ReadBytes: d.ReadBytes, WriteBytes: d.WriteBytes,
				ReadTime: d.ReadTime, WriteTime: d.WriteTime, IoTime: d.Time, Utilization: d.Utilization,
			})
		}
	}
	if p := m.Processes; p != nil {
		out.Processes = &api.ProcessMetrics{
			TotalProcesses: int32(p.Total), RunningProcesses: int32(p.Running), SleepingProcesses: int32(p.Sleeping),
			StoppedProcesses: int32(p.Stopped), ZombieProcesses: int32(p.Zombies), TotalThreads: int32(p.Threads),
			TopByCpu: processesToProto(p.ByCPU), TopByMemory: processesToProto(p.ByMemory),
		}
	}
	return out
}

func processesToProto(all []hostinfo.Process) []*api.ProcessInfo {
	out := make([]*api.ProcessInfo, len(all))
	for i, p := range all {
		out[i] = &api.ProcessInfo{
			Pid: int32(p.PID), Ppid: int32(p.PPID), Name: p.Name, Command: p.Command, CpuPercent: p.CPU, MemoryPercent: p.Memory,
			MemoryBytes: p.Resident, Status: p.State, StartTime: rfc3339(p.Started),
		}
	}
	return out
}

func rfc3339(t time.Time) string { return t.UTC().Format(time.RFC3339) }
