package native

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// BenchmarkWalls takes the walls away, by turns in one run: what a job's start, from
// a ready sandbox to the running command, takes at the median, and how much more
// each costs.
func BenchmarkWalls(b *testing.B) {
	const warm = 1
	walls := []struct {
		name   string
		change func(*protocol.Run)
	}{
		{"all", func(*protocol.Run) {}},
		{"no-filter", func(r *protocol.Run) { r.Filter = nil }},
		{"no-landlock", func(r *protocol.Run) { r.Landlock = false }},
		{"no-capdrop", func(r *protocol.Run) { r.Capabilities = math.MaxUint64 }},
		{"log-denied", func(r *protocol.Run) { r.LogDenied = true }}, // one more
		{"none", func(r *protocol.Run) { r.Filter, r.Landlock, r.Capabilities = nil, false, math.MaxUint64 }},
	}
	e := openEngine(b, warm)
	e.StartPool()
	base := b.TempDir()
	times := make([][]float64, len(walls))
	for n := 0; b.Loop(); n++ {
		for i, wall := range walls {
			for len(e.warm) < warm {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(10 * time.Millisecond) // its shim goes on building when the sandbox is in stock
			sb, err := e.Take(b.Context(), nil)
			if err != nil {
				b.Fatal(err)
			}
			v, err := e.HostView()
			if err != nil {
				b.Fatal(err)
			}
			run, err := Compile(planOf(v, filepath.Join(base, fmt.Sprintf("%d-%d", n, i)), "/usr/bin/true"))
			if err != nil {
				b.Fatal(err)
			}
			if err := os.Mkdir(run.Dir, 0o700); err != nil {
				b.Fatal(err)
			}
			message := run.message()
			wall.change(message)
			began := time.Now()
			p, err := sb.start(message)
			if err != nil {
				b.Fatal(err)
			}
			times[i] = append(times[i], float64(time.Since(began).Microseconds()))
			e.Refill()
			<-p.Done()
			if err := e.Release(sb.ID, sb.Leases); err != nil {
				b.Error(err)
			}
		}
	}
	for i, wall := range walls {
		slices.Sort(times[i])
		b.ReportMetric(times[i][len(times[i])/2], wall.name+"-µs")
	}
}
