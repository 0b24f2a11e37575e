// Command joblet is the daemon: it runs jobs and answers rnx.
package main

import (
	"fmt"
	"os"
	_ "time/tzdata" // the zones of schedules, also on a host without them

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/daemon/command"
	"github.com/joblet/joblet/internal/runtimes"
)

func main() {
	runBuiltinShim()
	runtimes.SandboxInit() // the daemon starts its own program to build runtimes
	if err := command.New().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "joblet:", joblet.Shorten(err.Error()))
		os.Exit(1)
	}
}
