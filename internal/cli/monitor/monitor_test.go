package monitor

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
)

// hostPeer is a daemon on a host that never changes.
type hostPeer struct {
	api.UnimplementedMonitoringServiceServer
	messages int // of a stream, which then ends; -1: one, and it goes on
	asked    chan *api.StreamMetricsRequest
}

func (p *hostPeer) GetSystemStatus(context.Context, *api.EmptyRequest) (*api.SystemStatusResponse, error) {
	m := recordedMetrics()
	return &api.SystemStatusResponse{
		Timestamp: m.Timestamp, Available: true, Host: m.Host, Cpu: m.Cpu, Memory: m.Memory, Disks: m.Disks, Networks: m.Networks, Io: m.Io,
		Processes: m.Processes, Cloud: m.Cloud, ServerVersion: &api.ServerVersionInfo{Version: "1.2.3", GoVersion: "go1.26", Platform: "linux/amd64"},
	}, nil
}

func (p *hostPeer) StreamSystemMetrics(r *api.StreamMetricsRequest, out grpc.ServerStreamingServer[api.SystemMetricsResponse]) error {
	p.asked <- r
	for range max(1, p.messages) {
		if err := out.Send(recordedMetrics()); err != nil {
			return err
		}
	}
	if p.messages < 0 {
		<-out.Context().Done()
	}
	return nil
}

func serveHost(t *testing.T, messages int) (p *hostPeer, host string) {
	t.Helper()
	p = &hostPeer{messages: messages, asked: make(chan *api.StreamMetricsRequest, 10)}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	api.RegisterMonitoringServiceServer(s, p)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return p, "unix://" + socket
}

// recordedMetrics has a value of its own in every field.
func recordedMetrics() *api.SystemMetricsResponse {
	return &api.SystemMetricsResponse{
		Timestamp: "2026-01-02T03:04:05Z",
		Host: &api.HostInfo{
			Hostname: "web\x1b[31m1", Os: "linux", KernelVersion: "6.18.4", Architecture: "amd64", BootTime: "2026-01-01T00:00:00Z", Uptime: 97445,
			NodeId: "0b9c", ServerIps: []string{"10.0.0.2", "2001:db8::2"}, MacAddresses: []string{"02:00:00:00:00:01"},
		},
		Cpu: &api.CPUMetrics{
			Cores: 2, UsagePercent: 40.25, UserTime: 11.5, SystemTime: 62, IdleTime: 7200, IoWaitTime: 3, StealTime: 1,
			LoadAverage: []float64{0.5, 0.25, 0.125}, PerCoreUsage: []float64{75, 5.5},
		},
		Memory: &api.MemoryMetrics{
			TotalBytes: 16 << 30, UsedBytes: 4 << 30, FreeBytes: 2 << 30, AvailableBytes: 12 << 30, UsagePercent: 25,
			CachedBytes: 6 << 30, BufferedBytes: 500 << 20, SwapTotal: 4 << 30, SwapUsed: 1 << 30, SwapFree: 3 << 30,
		},
		Disks: []*api.DiskMetrics{
			{
				Device: "/dev/vda1", MountPoint: "/", Filesystem: "ext4", TotalBytes: 100 << 30, UsedBytes: 60 << 30, FreeBytes: 35 << 30, UsagePercent: 63.2,
				InodesTotal: 1000, InodesUsed: 250, InodesFree: 750, InodesUsagePercent: 25,
			},
			{Device: "/dev/vdb", MountPoint: "/srv/\u202edata", Filesystem: "xfs", TotalBytes: 1 << 40, UsedBytes: 1 << 30, FreeBytes: 1023 << 30, UsagePercent: 0.1},
		},
		Networks: []*api.NetworkMetrics{
			{
				Interface: "eth0", BytesReceived: 5 << 20, BytesSent: 4 << 20, PacketsReceived: 20, PacketsSent: 40, ErrorsIn: 1, ErrorsOut: 3,
				DropsIn: 2, DropsOut: 5, ReceiveRate: 2048, TransmitRate: 1000.5, IpAddresses: []string{"10.0.0.2"}, MacAddress: "02:00:00:00:00:01",
			},
			{Interface: "ifb0"},
		},
		Io: &api.IOMetrics{
			TotalReads: 111, TotalWrites: 202, ReadBytes: 3 << 20, WriteBytes: 4 << 20, ReadRate: 1 << 20, WriteRate: 512,
			DiskIo: []*api.DiskIOMetrics{{
				Device: "vda", ReadsCompleted: 111, WritesCompleted: 202, ReadBytes: 3 << 20, WriteBytes: 4 << 20, ReadTime: 70, WriteTime: 90, IoTime: 1500, Utilization: 50,
			}},
		},
		Processes: &api.ProcessMetrics{
			TotalProcesses: 7, RunningProcesses: 1, SleepingProcesses: 2, StoppedProcesses: 3, ZombieProcesses: 4, TotalThreads: 9,
			TopByCpu: []*api.ProcessInfo{
				{
					Pid: 300, Ppid: 1, Name: "bad\x1b]0;x\a", Command: "bad -a\n\x1b[2J" + strings.Repeat("long ", 100), CpuPercent: 33.3, MemoryPercent: 0.6,
					MemoryBytes: 100 << 20, Status: "R", StartTime: "2026-01-02T01:00:00Z",
				},
				{Pid: 2, Name: "kthreadd", Command: "[kthreadd]", Status: "S"},
			},
			TopByMemory: []*api.ProcessInfo{{Pid: 301, Ppid: 300, Name: "big", Command: "big", MemoryPercent: 50, MemoryBytes: 8 << 30, Status: "S"}},
		},
		Cloud: &api.CloudInfo{
			Provider: "AWS", Region: "r1", Zone: "z1", InstanceId: "i-0abc", InstanceType: "m5.large", HypervisorType: "kvm", Metadata: map[string]string{"vendor": "v"},
		},
	}
}

func rnxAt(t *testing.T, host string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	a := &app.App{Out: &out, ErrOut: &errOut}
	status = a.Execute(t.Context(), newRootCommand(a), append([]string{"--host=" + host}, args...))
	return status, out.String(), errOut.String()
}

const recordedJSON = `{
	"timestamp": "2026-01-02T03:04:05Z",
	"host": {"hostname": "web\u001b[31m1", "os": "linux", "architecture": "amd64", "kernel_version": "6.18.4", "boot_time": "2026-01-01T00:00:00Z", "uptime": 97445,
		"node_id": "0b9c", "server_ips": ["10.0.0.2", "2001:db8::2"], "mac_addresses": ["02:00:00:00:00:01"]},
	"cloud": {"provider": "AWS", "region": "r1", "zone": "z1", "instance_id": "i-0abc", "instance_type": "m5.large", "hypervisor_type": "kvm", "metadata": {"vendor": "v"}},
	"cpu": {"cores": 2, "usage_percent": 40.25, "per_core_usage": [75, 5.5], "load_average": [0.5, 0.25, 0.125],
		"user_time": 11.5, "system_time": 62, "idle_time": 7200, "io_wait_time": 3, "steal_time": 1},
	"memory": {"total_bytes": 17179869184, "used_bytes": 4294967296, "free_bytes": 2147483648, "available_bytes": 12884901888, "usage_percent": 25, "cached_bytes": 6442450944, "buffered_bytes": 524288000,
		"swap_total": 4294967296, "swap_used": 1073741824, "swap_free": 3221225472},
	"disks": [
		{"device": "/dev/vda1", "mount_point": "/", "filesystem": "ext4", "total_bytes": 107374182400, "used_bytes": 64424509440, "free_bytes": 37580963840, "usage_percent": 63.2, "inodes_total": 1000, "inodes_used": 250, "inodes_free": 750, "inodes_usage_percent": 25},
		{"device": "/dev/vdb", "mount_point": "/srv/\u202edata", "filesystem": "xfs", "total_bytes": 1099511627776, "used_bytes": 1073741824, "free_bytes": 1098437885952, "usage_percent": 0.1, "inodes_total": 0, "inodes_used": 0, "inodes_free": 0, "inodes_usage_percent": 0}],
	"networks": [
		{"interface": "eth0", "ip_addresses": ["10.0.0.2"], "mac_address": "02:00:00:00:00:01", "bytes_received": 5242880, "bytes_sent": 4194304, "packets_received": 20, "packets_sent": 40,
			"errors_in": 1, "errors_out": 3, "drops_in": 2, "drops_out": 5, "receive_rate": 2048, "transmit_rate": 1000.5},
		{"interface": "ifb0", "ip_addresses": [], "bytes_received": 0, "bytes_sent": 0, "packets_received": 0, "packets_sent": 0,
			"errors_in": 0, "errors_out": 0, "drops_in": 0, "drops_out": 0, "receive_rate": 0, "transmit_rate": 0}],
	"io": {"total_reads": 111, "total_writes": 202, "read_bytes": 3145728, "write_bytes": 4194304, "read_rate": 1048576, "write_rate": 512,
		"disk_io": [{"device": "vda", "reads_completed": 111, "writes_completed": 202, "read_bytes": 3145728, "write_bytes": 4194304, "read_time": 70, "write_time": 90, "io_time": 1500, "utilization": 50}]},
	"processes": {
		"top_by_cpu": [
			{"pid": 300, "ppid": 1, "name": "bad\u001b]0;x\u0007", "command": "", "cpu_percent": 33.3, "memory_percent": 0.6, "memory_bytes": 104857600, "status": "R", "start_time": "2026-01-02T01:00:00Z"},
			{"pid": 2, "ppid": 0, "name": "kthreadd", "command": "[kthreadd]", "cpu_percent": 0, "memory_percent": 0, "memory_bytes": 0, "status": "S"}],
		"top_by_memory": [{"pid": 301, "ppid": 300, "name": "big", "command": "big", "cpu_percent": 0, "memory_percent": 50, "memory_bytes": 8589934592, "status": "S"}],
		"total_processes": 7, "running_processes": 1, "sleeping_processes": 2, "stopped_processes": 3, "zombie_processes": 4, "total_threads": 9}
}`

func TestMonitorJSON(t *testing.T) {
	t.Parallel()
	p, host := serveHost(t, 2)
	decode := func(text string) (v map[string]any) {
		t.Helper()
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		return v
	}
	want := decode(recordedJSON)
	command := recordedMetrics().GetProcesses().GetTopByCpu()[0].GetCommand()
	want["processes"].(map[string]any)["top_by_cpu"].([]any)[0].(map[string]any)["command"] = command

	status, stdout, stderr := rnxAt(t, host, "monitor", "top", "--json", "--filter=cpu,memory", "--filter", "io")
	if got := decode(stdout); status != 0 || stderr != "" || strings.Count(stdout, "\n") != 1 || !reflect.DeepEqual(got, want) {
		t.Errorf("top: %d, %q\ngot  %v\nwant %v", status, stderr, got, want)
	}
	if r := <-p.asked; strings.Join(r.GetMetricTypes(), " ") != "cpu memory io" || r.GetIntervalSeconds() != 0 {
		t.Errorf("top asked for %v", r)
	}
	status, stdout, stderr = rnxAt(t, host, "monitor", "watch", "--json", "-i", "2")
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	if status != 1 || len(lines) != 2 || !reflect.DeepEqual(decode(lines[1]), want) || !strings.Contains(stderr, "the daemon ended the stream of metrics") {
		t.Errorf("watch: %d, %q, %s", status, stderr, stdout)
	}
	if r := <-p.asked; len(r.GetMetricTypes()) != 0 || r.GetIntervalSeconds() != 2 {
		t.Errorf("watch asked for %v", r)
	}
	want["available"] = true
	want["server_version"] = map[string]any{"version": "1.2.3", "go": "go1.26", "platform": "linux/amd64"}
	status, stdout, stderr = rnxAt(t, host, "--json", "monitor", "status")
	if got := decode(stdout); status != 0 || stderr != "" || !reflect.DeepEqual(got, want) {
		t.Errorf("status: %d, %q\ngot  %v\nwant %v", status, stderr, got, want)
	}
}

func TestMonitorPages(t *testing.T) {
	t.Parallel()
	_, host := serveHost(t, 2)
	status, full, stderr := rnxAt(t, host, "monitor", "status")
	if status != 0 || stderr != "" {
		t.Fatalf("got %d, %q", status, stderr)
	}
	for _, want := range []string{
		`Host       web\x1b[31m1: linux 6.18.4, amd64, up 1d3h` + "\n", "Addresses  10.0.0.2 2001:db8::2\n", "Node       0b9c\n",
		"Cloud      AWS r1 z1 m5.large i-0abc (hypervisor: kvm)\n", "CPU        40.2% of 2 cores, load 0.50 0.25 0.12\n", "Each core   75%   6%\n",
		"CPU time   user 12s, system 1m2s, idle 2h0m, I/O wait 3s, stolen 1s since boot\n",
		"Memory     25.0%: 4.0 GiB of 16 GiB used, 12 GiB available, 2.0 GiB free, 6.0 GiB cached, 500 MiB buffers\n", "Swap       25.0%: 1.0 GiB of 4.0 GiB used\n",
		"I/O        1.0 MiB/s read, 512 B/s written\n", "Processes  7: 1 running, 2 sleeping, 3 stopped, 4 zombies; 9 threads\n",
		"/dev/vda1  ext4  100 GiB  60 GiB   35 GiB    63.2%  25.0%    /\n", `/srv/\u202edata` + "\n",
		"eth0     2.0 KiB/s  1000 B/s  5.0 MiB   4.0 MiB    4       7      10.0.0.2\n", "ifb0     0 B/s", "vda     50.0%  111    202     3.0 MiB  4.0 MiB  1.5s\n",
		"\nBusiest processes:\nPID  PARENT  NAME", `300  1       bad\x1b]0;x\a  33.3  0.6   100 MiB  R `, `bad -a\n\x1b[2Jlong long`, "\nLargest processes:\nPID", "8.0 GiB",
	} {
		if !strings.Contains(full, want) {
			t.Errorf("no %q in\n%s", want, full)
		}
	}
	_, brief, _ := rnxAt(t, host, "monitor", "top")
	for _, want := range []string{"Disks      / 63.2%, /srv/\\u202edata 0.1%\n", "Network    eth0 2.0 KiB/s in, 1000 B/s out\n", "Busiest processes:\n"} {
		if !strings.Contains(brief, want) {
			t.Errorf("no %q in\n%s", want, brief)
		}
	}
	if strings.Contains(brief, "Largest") || strings.Contains(brief, "TYPE") || strings.Contains(brief, "ifb0") || strings.Count(brief, "\n") > 16 {
		t.Errorf("not brief:\n%s", brief)
	}
	for _, page := range []string{full, brief} {
		if strings.ContainsAny(page, "\x1b\a\u202e") {
			t.Errorf("%q", page)
		}
	}
	status, blocks, _ := rnxAt(t, host, "monitor", "watch", "--compact")
	if status != 1 || blocks != brief+"\n"+brief {
		t.Errorf("got %d\n%s", status, blocks)
	}
}

// TestMonitorParts: each part stands for itself, and none is no failure.
func TestMonitorParts(t *testing.T) {
	t.Parallel()
	empty := client.HostMetrics{}
	if page := metricsPage(empty, 0, false); page != "Time       -\n" {
		t.Errorf("got %q", page)
	}
	if b, err := json.Marshal(newMetricsJSON(empty)); err != nil || string(b) != "{}" {
		t.Errorf("got %s, %v", b, err)
	}
	some := client.HostMetrics{CPU: &client.CPUMetrics{Cores: 40, PerCore: make([]float64, 40)}, Cloud: &client.CloudInfo{HypervisorType: "xen"}}
	page := metricsPage(some, 0, false)
	if strings.Count(page, "Each core") != 3 || !strings.Contains(page, "Cloud      none known (hypervisor: xen)\n") || strings.Contains(page, "Memory") {
		t.Errorf("got %s", page)
	}
}

func TestMonitorUsage(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]time.Duration{
		"1": time.Second, "2s": 2 * time.Second, "1m30s": 90 * time.Second, "1h": time.Hour, "3600": time.Hour,
		"0": 0, "": 0, "500ms": 0, "1.5s": 0, "-1s": 0, "-5": 0, "3601": 0, "1d": 0, "soon": 0,
	} {
		if got, err := parseInterval(s); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: got %v, %v", s, got, err)
		}
	}
	for args, want := range map[string]string{
		"monitor watch --interval=0":  `rnx: --interval: "0": must be whole seconds from 1s to 1h`,
		"monitor stauts":              `rnx: unknown command "rnx monitor stauts"; did you mean "rnx monitor status"?`,
		"monitor status now":          `rnx: unknown command "now" for "rnx monitor status"`,
		"monitor top --filter=cpu":    `rnx: no daemon answers at`,
		"monitor watch --fitler=disk": `rnx: unknown flag: --fitler; did you mean --filter?`,
	} {
		if status, stdout, stderr := rnxAt(t, "unix:///nonexistent/joblet.sock", strings.Fields(args)...); status != 1 || stdout != "" || !strings.HasPrefix(stderr, want) {
			t.Errorf("rnx %s: got %d, %q, %q", args, status, stdout, stderr)
		}
	}
}

// newRootCommand returns an rnx that has the commands for the host alone.
func newRootCommand(a *app.App) *cobra.Command {
	root := &cobra.Command{Use: "rnx", SilenceErrors: true, SilenceUsage: true}
	a.AddGlobalFlags(root)
	root.AddCommand(NewCommand(a))
	return root
}
