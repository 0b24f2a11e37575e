package store

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/joblet/joblet"
)

// benchJob is a job of a size that is usual.
func benchJob(n int) Record {
	job := jobN(n)
	job.Spec = joblet.Spec{
		Command: "bash", Args: []string{"-c", "sleep 30 & sleep 40 & ps aux"}, Runtime: "python-3.11-ml",
		Env: map[string]string{"LANG": "C.UTF-8", "OMP_NUM_THREADS": "4"}, Timeout: time.Hour,
	}
	return job
}

// median reports the median of the durations of b's iterations.
func median(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "µs-median")
	b.ReportMetric(0, "ns/op")
}

func timed(b *testing.B, fn func(n int) error) {
	b.Helper()
	var took []time.Duration
	for n := 0; b.Loop(); n++ {
		start := time.Now()
		if err := fn(n); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	median(b, took)
}

func BenchmarkInsert(b *testing.B) {
	s := openTest(b)
	timed(b, func(n int) error { return s.Insert(b.Context(), benchJob(n)) })
}

// The changes of a job's life.
func BenchmarkLife(b *testing.B) {
	s := openTest(b)
	timed(b, func(n int) error {
		job := benchJob(n)
		if err := s.Insert(b.Context(), job); err != nil {
			return err
		}
		job.State = joblet.Running
		if err := s.UpdateUnsynced(b.Context(), job); err != nil {
			return err
		}
		job.State = joblet.Completed
		return s.UpdateUnsynced(b.Context(), job)
	})
}

// The same with labels.
func BenchmarkLifeLabeled(b *testing.B) {
	s := openTest(b)
	timed(b, func(n int) error {
		job := benchJob(n)
		job.Spec.Labels = map[string]string{"team": "vision", "run": fmt.Sprint(n)}
		if err := s.Insert(b.Context(), job); err != nil {
			return err
		}
		job.State = joblet.Running
		if err := s.UpdateUnsynced(b.Context(), job); err != nil {
			return err
		}
		job.State = joblet.Completed
		return s.UpdateUnsynced(b.Context(), job)
	})
}

func BenchmarkInsert8AtOnce(b *testing.B) {
	s := openTest(b)
	var n atomic.Int64
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := s.Insert(b.Context(), benchJob(int(n.Add(1)))); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "inserts/s")
}

// many returns job records of n jobs, which it makes without an fsync for
// each. One in a thousand failed and one in a hundred thousand was lost.
func many(b *testing.B, n int) *Store {
	b.Helper()
	s := openTest(b)
	end := make(chan error)
	next := atomic.Int64{}
	for range maxBatch {
		go func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					end <- nil
					return
				}
				job := benchJob(i)
				// Ids are random; those of jobN would make the index kinder.
				job.ID = joblet.NewID()
				job.State = joblet.Completed
				switch {
				case i%100_000 == 50_000:
					job.State = joblet.Lost
				case i%1000 == 500:
					job.State = joblet.Failed
				}
				job.Ended = job.Created.Add(time.Minute)
				if i >= n*4/10 && i < n/2 { // a tenth waited long
					job.Ended = epoch.Add(time.Duration(n) * time.Second)
				}
				job.DiskBytes = 4096
				job.Owner = fmt.Sprintf("uid:%d", 1000+i%20)
				job.Spec.Name = []string{"", "train", "eval", "rare"}[min(i%3+i%99_999/99_998*3, 3)]
				// Half of all jobs have a=b, a quarter c=d, a few of them a as well.
				switch i / 20 % 4 {
				case 0:
					job.Spec.Labels = map[string]string{"a": "b"}
				case 1:
					job.Spec.Labels = map[string]string{"a": "b", "run": fmt.Sprint(i)}
				case 2:
					job.Spec.Labels = map[string]string{"c": "d"}
				}
				if i%100_000 == 40 {
					job.Spec.Labels["a"] = "rare"
				}
				if i >= n/2 && i/20%2 == 1 {
					job.Parent = jobN(i / 20 % 10 / 9).ID // one has few runs, one many
				}
				ch, err := newInsert(job)
				if err == nil {
					ch.unsynced = true
					err = s.do(b.Context(), ch)
				}
				if err != nil {
					end <- err
					return
				}
			}
		}()
	}
	for range maxBatch {
		if err := <-end; err != nil {
			b.Fatal(err)
		}
	}
	return s
}

func BenchmarkRecords(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := many(b, n)
			if info, err := os.Stat(s.path); err == nil {
				b.Logf("%d records take %d MB", n, info.Size()/1e6)
			}
			start := time.Now()
			if err := s.Check(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.Logf("a check of all takes %v", time.Since(start))
			page, err := s.List(b.Context(), joblet.Filter{Limit: 1000})
			if err != nil {
				b.Fatal(err)
			}
			b.Run("get", func(b *testing.B) {
				timed(b, func(int) error { _, err := s.Get(b.Context(), page[rand.N(len(page))].ID); return err })
			})
			b.Run("resolve", func(b *testing.B) {
				timed(b, func(int) error {
					_, err := s.Resolve(b.Context(), page[rand.N(len(page))].ID[:13], "uid:0")
					return err
				})
			})
			// "train" belongs to all twenty owners, "rare" to few.
			for _, r := range []struct{ name, ref, owner string }{
				{"name", "train", "uid:1007"}, {"name-of-others", "rare", "uid:0"}, {"name-of-many", "train", "uid:0"}, {"no-such-name", "none", "uid:0"},
			} {
				b.Run("resolve/"+r.name, func(b *testing.B) {
					timed(b, func(int) error {
						if _, err := s.Resolve(b.Context(), r.ref, r.owner); joblet.KindOf(err) == joblet.Internal && err != nil {
							return err
						}
						return nil
					})
				})
			}
			b.Run("insert", func(b *testing.B) {
				timed(b, func(i int) error {
					job := benchJob(n + i)
					job.ID = joblet.NewID()
					return s.Insert(b.Context(), job)
				})
			})
			failed, lost, running := []joblet.State{joblet.Failed}, []joblet.State{joblet.Lost}, []joblet.State{joblet.Running}
			at := func(second int) time.Time { return epoch.Add(time.Duration(second) * time.Second) }
			for _, l := range []struct {
				name string
				f    joblet.Filter
			}{
				{"all", joblet.Filter{}},
				{"failed", joblet.Filter{States: failed}},
				{"lost", joblet.Filter{States: lost}},
				{"every-state", joblet.Filter{States: joblet.States()}},
				{"ended", joblet.Filter{States: []joblet.State{joblet.Completed, joblet.Failed, joblet.Lost}}},
				{"name", joblet.Filter{Name: "train"}},
				{"rare-name", joblet.Filter{Name: "rare"}},
				{"no-such-name", joblet.Filter{Name: "none"}},
				{"owner", joblet.Filter{Owner: "uid:1007"}},
				{"owner-lost", joblet.Filter{Owner: "uid:1007", States: lost}},
				{"owner-name-failed", joblet.Filter{Owner: "uid:1000", Name: "eval", States: failed}},
				{"since", joblet.Filter{Since: epoch.Add(time.Duration(n-20) * time.Second)}},
				{"since-name-failed", joblet.Filter{Since: epoch, Name: "train", States: failed}},
				{"page", joblet.Filter{Before: page[999].ID}},
				{"page-failed", joblet.Filter{Before: page[999].ID, States: failed}},
				{"label", joblet.Filter{Labels: labels("a=b")}},
				{"label-running", joblet.Filter{Labels: labels("a=b"), States: running}},
				{"label-lost", joblet.Filter{Labels: labels("a=b"), States: lost}},
				{"label-any", joblet.Filter{Labels: labels("a")}},
				{"label-any-of-many", joblet.Filter{Labels: labels("run")}},
				{"label-one", joblet.Filter{Labels: labels("run=5")}},
				{"label-rare", joblet.Filter{Labels: labels("a=rare")}},
				{"label-none", joblet.Filter{Labels: labels("a=none")}},
				{"label-owner-name-failed", joblet.Filter{Labels: labels("a=b"), Owner: "uid:1000", Name: "train", States: failed}},
				{"label-name", joblet.Filter{Labels: labels("a=b"), Name: "train"}},
				{"label-rare-name", joblet.Filter{Labels: labels("a=b"), Name: "rare"}},
				{"label-parent", joblet.Filter{Labels: labels("a=b"), Parent: jobN(0).ID}},
				{"labels", joblet.Filter{Labels: labels("a=b", "run")}},
				{"labels-one", joblet.Filter{Labels: labels("a=b", "run=5")}},
				{"labels-rare", joblet.Filter{Labels: labels("a=rare", "c=d")}},
				{"labels-disjoint", joblet.Filter{Labels: labels("a=b", "c=d")}},
				{"label-since", joblet.Filter{Labels: labels("a=b"), Since: at(n - 20)}},
				{"label-page-failed", joblet.Filter{Labels: labels("a=b"), States: failed, Before: page[999].ID}},
				{"label-ended-before", joblet.Filter{Labels: labels("a=b"), EndedBefore: at(n / 2)}},
				{"label-ended-before-none", joblet.Filter{Labels: labels("a=b"), EndedBefore: at(0)}},
				{"parent", joblet.Filter{Parent: jobN(0).ID}},
				{"parent-running", joblet.Filter{Parent: jobN(0).ID, States: running}},
				{"parent-lost", joblet.Filter{Parent: jobN(1).ID, States: lost}},
				{"parent-none", joblet.Filter{Parent: jobN(2).ID}},
				{"parent-ended-before", joblet.Filter{Parent: jobN(0).ID, EndedBefore: at(n * 3 / 4)}},
				{"ended-before", joblet.Filter{EndedBefore: at(n / 2)}},
				{"ended-before-none", joblet.Filter{EndedBefore: at(0)}},
				{"ended-before-all", joblet.Filter{EndedBefore: at(2 * n)}},
				{"ended-before-failed", joblet.Filter{EndedBefore: at(n / 2), States: failed}},
				{"ended-before-running", joblet.Filter{EndedBefore: at(n / 2), States: running}},
				{"ended-before-owner-name", joblet.Filter{EndedBefore: at(n / 2), Owner: "uid:1007", Name: "train"}},
				{"ended-before-since", joblet.Filter{EndedBefore: at(n / 2), Since: at(n/2 - 70)}},
				{"ended-before-page", joblet.Filter{EndedBefore: at(n / 2), Before: page[999].ID}},
			} {
				l.f.Limit = 50
				b.Run("list/"+l.name, func(b *testing.B) {
					timed(b, func(int) error { _, err := s.List(b.Context(), l.f); return err })
				})
			}
			b.Run("oldest-ended", func(b *testing.B) {
				timed(b, func(int) error { _, err := s.OldestEnded(b.Context(), 50); return err })
			})
			b.Run("disk-bytes", func(b *testing.B) {
				timed(b, func(int) error { _, err := s.DiskBytes(b.Context()); return err })
			})
			b.Run("unfinished", func(b *testing.B) {
				timed(b, func(int) error { _, err := s.Unfinished(b.Context()); return err })
			})
		})
	}
}

// What an open store with its readers adds to the process, in KiB.
func BenchmarkMemory(b *testing.B) {
	resident := func() (kib float64) {
		status, err := os.ReadFile("/proc/self/smaps_rollup")
		if err != nil {
			b.Fatal(err)
		}
		_, after, _ := strings.Cut(string(status), "\nPss:")
		_, _ = fmt.Sscan(after, &kib)
		return kib
	}
	before := resident()
	for b.Loop() {
		s := reopen(b, filepath.Join(b.TempDir(), "joblet.db"))
		opened := resident()
		for n := range 1000 {
			mustInsert(b, s, benchJob(n))
		}
		if _, err := s.List(b.Context(), joblet.Filter{Limit: 50}); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(before, "KiB-before")
		b.ReportMetric(opened, "KiB-opened")
		b.ReportMetric(resident(), "KiB-1000-inserts")
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
