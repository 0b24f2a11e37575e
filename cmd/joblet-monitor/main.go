// Command joblet-monitor is the keeper of one job. The daemon carries it
// inside itself and starts it from a sealed memfd; see package monitor.
package main

import (
	"os"

	"github.com/joblet/joblet/internal/monitor"
)

func main() { os.Exit(monitor.Main()) }
