package server

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

type monitoringService struct {
	api.UnimplementedMonitoringServiceServer
}

// GetSystemStatus says what the daemon is and the basics of its host. The parts
// that are not measured are absent.
func (monitoringService) GetSystemStatus(context.Context, *api.EmptyRequest) (*api.SystemStatusResponse, error) {
	host, err := hostInfo()
	if err != nil {
		return nil, err
	}
	b := joblet.Build()
	return &api.SystemStatusResponse{
		Timestamp: time.Now().UTC().Format(time.RFC3339),
		Available: true,
		Host:      host,
		ServerVersion: &api.ServerVersionInfo{
			Version: b.Version, GitCommit: b.Commit, BuildDate: b.Date, Component: "joblet", GoVersion: b.Go, Platform: b.Platform,
		},
	}, nil
}

func hostInfo() (*api.HostInfo, error) {
	name, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("read host name: %w", err)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, os.NewSyscallError("uname", err)
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return nil, os.NewSyscallError("clock_gettime", err)
	}
	uptime := time.Duration(up.Nano())
	return &api.HostInfo{
		Hostname:      name,
		Os:            runtime.GOOS,
		KernelVersion: unix.ByteSliceToString(uts.Release[:]),
		Architecture:  runtime.GOARCH,
		BootTime:      time.Now().Add(-uptime).UTC().Format(time.RFC3339),
		Uptime:        int64(uptime / time.Second),
	}, nil
}
