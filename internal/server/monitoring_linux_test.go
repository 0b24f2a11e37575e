package server

import (
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/hostinfo"
)

func TestSystemStatus(t *testing.T) {
	_, path, _ := start(t)
	c := api.NewMonitoringServiceClient(dial(t, path, 0))
	loop := exec.Command("sh", "-c", "while :; do :; done")
	if err := loop.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = loop.Process.Kill()
		_ = loop.Wait() // killed
	}()
	var out *api.SystemStatusResponse
	i := -1 // of the loop; others use this machine as well, so that it may get nothing for a while
	for deadline := time.Now().Add(30 * time.Second); ; {
		var err error
		if out, err = c.GetSystemStatus(t.Context(), &api.EmptyRequest{}); err != nil {
			t.Fatal(err)
		}
		i = slices.IndexFunc(out.GetProcesses().GetTopByCpu(), func(q *api.ProcessInfo) bool {
			return int(q.GetPid()) == loop.Process.Pid && q.GetCpuPercent() > 0 && q.GetCommand() != "[sh]" // which was not read in time
		})
		if i >= 0 && out.GetCpu().GetUsagePercent() > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the loop is not among %v, CPU %v", out.GetProcesses().GetTopByCpu(), out.GetCpu())
		}
	}
	at, err := time.Parse(time.RFC3339, out.GetTimestamp())
	if err != nil || time.Since(at).Abs() > time.Minute || !out.GetAvailable() || out.GetServerVersion().GetComponent() != "joblet" {
		t.Errorf("got %s, %v, %v", out.GetTimestamp(), err, out.GetServerVersion())
	}
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	h := out.GetHost()
	booted, err := time.Parse(time.RFC3339, h.GetBootTime())
	if err != nil || h.GetHostname() != name || h.GetOs() != "linux" || h.GetKernelVersion() == "" || h.GetArchitecture() != runtime.GOARCH ||
		h.GetUptime() <= 0 || at.Sub(booted).Seconds()-float64(h.GetUptime()) > 2 {
		t.Errorf("host: %v, %v", h, err)
	}
	p := out.GetCpu()
	if int(p.GetCores()) != runtime.NumCPU() || len(p.GetPerCoreUsage()) != runtime.NumCPU() || len(p.GetLoadAverage()) != 3 || !percentage(p.GetUsagePercent()) ||
		p.GetUsagePercent() == 0 || p.GetUserTime() <= 0 || p.GetSystemTime() <= 0 || p.GetIdleTime() <= 0 {
		t.Errorf("CPU: %v", p)
	}
	for _, usage := range p.GetPerCoreUsage() {
		if !percentage(usage) {
			t.Errorf("CPU: %v", p)
		}
	}
	m := out.GetMemory()
	if m.GetUsedBytes() <= 0 || m.GetUsedBytes()+m.GetAvailableBytes() != m.GetTotalBytes() || !percentage(m.GetUsagePercent()) ||
		m.GetFreeBytes() <= 0 || m.GetCachedBytes() <= 0 || m.GetSwapUsed()+m.GetSwapFree() != m.GetSwapTotal() {
		t.Errorf("memory: %v", m)
	}
	if len(out.GetDisks()) == 0 || out.GetDisks()[0].GetTotalBytes() <= 0 || out.GetDisks()[0].GetFilesystem() == "" || out.GetDisks()[0].GetDevice() == "" {
		t.Errorf("disks: %v", out.GetDisks())
	}
	if o := out.GetIo(); o == nil || o.GetReadRate() < 0 || o.GetTotalReads() < 0 {
		t.Errorf("I/O: %v", o)
	}
	all := out.GetProcesses()
	if all.GetTotalProcesses() < 3 || all.GetTotalThreads() < 3 || len(all.GetTopByMemory()) < 3 || all.GetTopByMemory()[0].GetMemoryBytes() <= 0 {
		t.Errorf("processes: %v", all)
	}
	q := all.GetTopByCpu()[i]
	if _, err := time.Parse(time.RFC3339, q.GetStartTime()); err != nil || int(q.GetPpid()) != os.Getpid() || q.GetName() != "sh" || !strings.HasPrefix(q.GetCommand(), "sh -c while") ||
		!percentage(q.GetCpuPercent()) || q.GetCpuPercent() == 0 || !percentage(q.GetMemoryPercent()) || q.GetStatus() == "" {
		t.Errorf("the loop: %v, %v", q, err)
	}
}

func percentage(v float64) bool { return v >= 0 && v <= 100 && !math.IsNaN(v) }

func TestStreamSystemMetrics(t *testing.T) {
	t.Parallel()
	s, path, _ := start(t)
	c := api.NewMonitoringServiceClient(dial(t, path, 0))
	begin := time.Now()
	stream, err := c.StreamSystemMetrics(t.Context(), &api.StreamMetricsRequest{IntervalSeconds: 1, MetricTypes: []string{"cpu", "memory", "cpu"}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		// The others' tests run at the same time: early is wrong, late is not.
		if d := time.Since(begin); d < time.Duration(i)*900*time.Millisecond {
			t.Errorf("message %d came after %v", i, d)
		}
		if m.GetCpu().GetCores() == 0 || m.GetMemory().GetTotalBytes() == 0 || m.GetHost() != nil || m.GetDisks() != nil || m.GetNetworks() != nil ||
			m.GetIo() != nil || m.GetProcesses() != nil || m.GetCloud() != nil {
			t.Errorf("message %d: %v", i, m)
		}
	}
	hourly, err := c.StreamSystemMetrics(t.Context(), &api.StreamMetricsRequest{IntervalSeconds: 3600})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := hourly.Recv(); err != nil || m.GetHost() == nil || m.GetCpu() == nil || m.GetMemory() == nil || m.GetIo() == nil || m.GetProcesses() == nil {
		t.Errorf("the first message of an hourly stream: %v, %v", m, err)
	}
	s.Shutdown()
	if _, err := hourly.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("when the daemon stops: %v", err)
	}
}

func TestMetricsRequest(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		request  *api.StreamMetricsRequest
		interval time.Duration // 0: invalid
		parts    hostinfo.Parts
	}{
		"defaults":  {&api.StreamMetricsRequest{}, 5 * time.Second, hostinfo.AllParts},
		"all words": {&api.StreamMetricsRequest{MetricTypes: []string{"cpu", "memory", "disk", "network", "io", "process", "host"}}, 5 * time.Second, hostinfo.AllParts},
		"one":       {&api.StreamMetricsRequest{IntervalSeconds: 1, MetricTypes: []string{"disk"}}, time.Second, hostinfo.PartDisks},
		"longest":   {&api.StreamMetricsRequest{IntervalSeconds: 3600}, time.Hour, hostinfo.AllParts},
		"too long":  {&api.StreamMetricsRequest{IntervalSeconds: 3601}, 0, 0},
		"negative":  {&api.StreamMetricsRequest{IntervalSeconds: -1}, 0, 0},
		"unknown":   {&api.StreamMetricsRequest{MetricTypes: []string{"cpu", "gpu"}}, 0, 0},
		"empty":     {&api.StreamMetricsRequest{MetricTypes: []string{""}}, 0, 0},
		"too many":  {&api.StreamMetricsRequest{MetricTypes: slices.Repeat([]string{"cpu"}, 33)}, 0, 0},
		"long":      {&api.StreamMetricsRequest{MetricTypes: []string{strings.Repeat("x", 1<<20)}}, 0, 0},
	} {
		interval, parts, err := metricsRequest(tt.request)
		if interval != tt.interval || parts != tt.parts || (err == nil) != (tt.interval != 0) || err != nil && len(err.Error()) > 200 {
			t.Errorf("%s: got %v, %b, %v", name, interval, parts, err)
		}
	}
	_, path, _ := start(t)
	stream, err := api.NewMonitoringServiceClient(dial(t, path, 0)).StreamSystemMetrics(t.Context(), &api.StreamMetricsRequest{MetricTypes: []string{"gpu"}})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `"gpu"`) {
		t.Errorf("got %v", err)
	}
}
