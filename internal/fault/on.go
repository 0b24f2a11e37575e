//go:build fault

package fault

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// The environment variable JOBLET_FAULT names a point and, behind a colon, how
// many times it is passed before the process dies there: "end.recorded:3".
var (
	name, count = parse(os.Getenv("JOBLET_FAULT"))
	passed      atomic.Int64
)

func parse(s string) (string, int64) {
	name, times, ok := strings.Cut(s, ":")
	if !ok {
		return name, 0
	}
	n, err := strconv.ParseInt(times, 10, 64)
	if err != nil {
		panic("JOBLET_FAULT: " + err.Error())
	}
	return name, n
}

// Point kills the process with SIGKILL if it is the point that the environment
// names and has been passed often enough.
func Point(at string) {
	if at != name || passed.Add(1) <= count {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way
}
