package joblet_test

import (
	"testing"
	"time"

	"github.com/joblet/joblet"
)

func TestProcessesSince(t *testing.T) {
	t.Parallel()
	at := time.Unix(1000, 0)
	process := func(pid, host int, cpu time.Duration, started time.Time) joblet.Process {
		return joblet.Process{PID: pid, HostPID: host, CPUTime: cpu, CPUPercent: 7, Started: started}
	}
	before := joblet.Processes{Time: at, All: []joblet.Process{
		process(1, 101, time.Second, at), process(2, 102, time.Second, at), process(3, 103, time.Second, at), process(4, 104, time.Second, at), process(5, 105, 0, at),
	}}
	now := joblet.Processes{Time: at.Add(2 * time.Second), Omitted: 3, All: []joblet.Process{
		process(1, 101, 4*time.Second, at.Add(time.Millisecond)), // two threads, say
		process(2, 102, time.Second, at),                         // it slept
		process(3, 103, 500*time.Millisecond, at),                // cannot be the same
		process(9, 104, 2*time.Second, at),                       // another has its number
		process(5, 105, time.Second, at.Add(2*time.Second)),      // also in the job
		process(6, 106, time.Second, at),                         // new
	}}
	got := now.Since(before)
	for i, want := range []float64{150, 0, 7, 7, 7, 7} {
		if got.All[i].CPUPercent != want {
			t.Errorf("process %d: got %v%%, want %v%%", got.All[i].PID, got.All[i].CPUPercent, want)
		}
	}
	if !got.Time.Equal(now.Time) || got.Omitted != 3 || now.All[0].CPUPercent != 7 {
		t.Errorf("got %+v of %+v", got, now)
	}
	for _, first := range []joblet.Processes{{}, {Time: now.Time, All: now.All}} { // no time has passed
		if got := now.Since(first); got.All[0].CPUPercent != 7 {
			t.Errorf("since %v: got %+v", first.Time, got.All[0])
		}
	}
}
