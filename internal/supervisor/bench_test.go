package supervisor

import (
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/metrics"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/supervisor/records"
)

// BenchmarkCollect samples 100 running jobs once per iteration, which a daemon
// does each second. "%core" is what that takes of one processor: time in this
// process, the writing of the history included.
func BenchmarkCollect(b *testing.B) {
	b.Run("kept", func(b *testing.B) { benchmarkCollect(b, nil) })
	b.Run("and for Prometheus", func(b *testing.B) { benchmarkCollect(b, metrics.New()) })
}

func benchmarkCollect(b *testing.B, m *metrics.Metrics) {
	s := open(b, b.TempDir(), func(c *Config) { c.Metrics = m })
	defer closing(b, s)
	var ids []string
	for range 100 {
		job, err := s.Submit(b.Context(), joblet.Spec{Command: "sh", Args: []string{"-c", "while sleep 0.2; do :; done"}}, "bench", nil)
		if err != nil {
			b.Fatal(err)
		}
		ids = append(ids, job.ID)
	}
	defer func() {
		for _, id := range ids {
			if _, err := s.Stop(b.Context(), id, joblet.StopOptions{}); err != nil {
				b.Error(err)
			}
		}
	}()
	s.sampler.Sample(true) // opens the files
	var before, after unix.Rusage
	used, n := time.Duration(0), 0
	for b.Loop() {
		if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
			b.Fatal(err)
		}
		n++
		s.sampler.Sample(n%10 == 0) // as often as the sampler measures the logs
		if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
			b.Fatal(err)
		}
		used += cpuOf(after) - cpuOf(before)
	}
	b.ReportMetric(100*used.Seconds()/float64(b.N), "%core")
}

func cpuOf(u unix.Rusage) time.Duration {
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkNoteJob is what a start takes longer for the job's file.
func BenchmarkNoteJob(b *testing.B) {
	r, err := records.Open(b.Context(), b.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	rec := store.Record{Job: joblet.Job{
		Spec:  joblet.Spec{Command: "bash", Args: []string{"-c", "sleep 30 & sleep 40 & ps aux"}, Env: map[string]string{"LANG": "C.UTF-8"}, WorkDir: "/work"},
		Owner: "uid:0", Created: time.Now(), State: joblet.Initializing, Attempt: 1,
	}, Box: joblet.NewID()}
	for b.Loop() {
		rec.ID = joblet.NewID()
		if err := r.WriteFile(rec); err != nil {
			b.Fatal(err)
		}
	}
}
