//go:build !linux

package app

import (
	"context"

	"github.com/joblet/joblet/client"
)

func startDaemon(_ context.Context, host string) (*client.Client, error) {
	return nil, errNoDaemon(host, "jobs run on Linux, so name the daemon with --host or RNX_HOST")
}
