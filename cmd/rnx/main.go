// Command rnx runs jobs on a joblet daemon and looks after them.
package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/joblet/joblet/internal/cli"
	"github.com/joblet/joblet/internal/schedule"
)

func main() {
	cli.HideSecrets() // before anything else
	// A process that lives for milliseconds has no use for a collection; one
	// that follows a log for days still gets some.
	debug.SetGCPercent(800)
	// One goroutine works at a time: threads that look for more only cost time.
	runtime.GOMAXPROCS(1)
	// Go takes a POSIX time zone in TZ for UTC.
	if zone, err := schedule.Local(); err == nil {
		time.Local = zone
	}
	os.Exit(cli.Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
