package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc/codes"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

// scrape returns what a scrape of the handler gives, by name.
func scrape(t *testing.T, m *Metrics) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler(slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest(http.MethodGet, Path, nil))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// value returns the one value of a series: a counter's, a gauge's, the number of
// a histogram's observations. Labels are NAME, VALUE, …; NaN: there is none.
func value(families map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	for _, s := range families[name].GetMetric() {
		has := map[string]string{}
		for _, l := range s.GetLabel() {
			has[l.GetName()] = l.GetValue()
		}
		all := len(has) == len(labels)/2
		for i := 0; i < len(labels); i += 2 {
			all = all && has[labels[i]] == labels[i+1]
		}
		switch {
		case !all:
		case s.Histogram != nil:
			return float64(s.GetHistogram().GetSampleCount())
		case s.Counter != nil:
			return s.GetCounter().GetValue()
		default:
			return s.GetGauge().GetValue()
		}
	}
	return math.NaN()
}

func gigabyteRun(id string, started time.Time) Run {
	return Run{ID: id, Name: "name-" + id, Started: started, Sample: joblet.Sample{
		Usage: joblet.Usage{CPUUser: 1500 * time.Millisecond, CPUSystem: time.Second}, Memory: 1 << 30, MemoryLimit: 2 << 30, PIDs: 3,
	}}
}

// busy returns Metrics to which everything has happened at least once.
func busy() *Metrics {
	m := New()
	m.Accepted()
	m.Started(2*time.Second, 3*time.Millisecond)
	m.NotStarted(joblet.CommandNotFound)
	start := time.Now()
	m.RunEnded(joblet.Job{Started: start, Ended: start.Add(7 * time.Second), Exit: &joblet.Exit{Signal: 9}, OutOfMemory: true}, true)
	m.RunEnded(joblet.Job{Started: start, State: joblet.Lost}, false)
	m.Ended(joblet.Failed)
	m.Used(4*time.Second, 1000)
	m.Used(-1, -1)
	for _, method := range []string{api.JobService_RunJob_FullMethodName, api.JobService_GetJobStatus_FullMethodName, api.JobService_ListJobs_FullMethodName} {
		for _, code := range []codes.Code{codes.OK, codes.Internal, codes.NotFound} {
			m.CallBegins()
			m.CallEnded(strings.TrimPrefix(method, "/"), code.String(), 20*time.Millisecond)
		}
	}
	m.CallBegins()
	log := slog.New(m.LogHandler(slog.DiscardHandler))
	log.Warn("one")
	log.With("a", 1).WithGroup("b").Error("two")
	log.Info("not counted")
	jobs := Jobs{Ready: 5, Scheduled: 6, Blocked: 7, DiskFree: 80, DiskSize: 100, Runs: []Run{gigabyteRun("one", start), gigabyteRun("two", start)}}
	jobs.States[joblet.Running], jobs.States[joblet.Pending], jobs.States[joblet.Completed] = 2, 12, 1
	m.Publish(jobs)
	return m
}

func TestValues(t *testing.T) {
	t.Parallel()
	got := scrape(t, busy())
	one := []string{"job_id", "one", "job_name", "name-one"}
	for _, tt := range []struct {
		name   string
		want   float64
		labels []string
	}{
		{"joblet_jobs_accepted_total", 1, nil},
		{"joblet_jobs_ended_total", 1, []string{"state", "FAILED"}},
		{"joblet_jobs_ended_total", 0, []string{"state", "COMPLETED"}},
		{"joblet_job_retries_total", 1, nil},
		{"joblet_job_out_of_memory_total", 1, nil},
		{"joblet_job_start_failures_total", 1, []string{"kind", "command_not_found"}},
		{"joblet_job_start_failures_total", 0, []string{"kind", "internal"}},
		{"joblet_job_queue_seconds", 1, nil},
		{"joblet_job_start_seconds", 1, nil},
		{"joblet_job_run_seconds", 1, nil},
		{"joblet_jobs_cpu_seconds_total", 4, nil},
		{"joblet_jobs_log_bytes_total", 1000, nil},
		{"joblet_api_calls_total", 1, []string{"method", "joblet.JobService/RunJob", "code", "Internal"}},
		{"joblet_api_call_seconds", 3, []string{"method", "joblet.JobService/RunJob"}},
		{"joblet_api_calls_in_flight", 1, nil},
		{"joblet_log_messages_total", 1, []string{"level", "warn"}},
		{"joblet_log_messages_total", 1, []string{"level", "error"}},
		{"joblet_jobs", 2, []string{"state", "RUNNING"}},
		{"joblet_jobs", 0, []string{"state", "PAUSED"}},
		{"joblet_jobs", math.NaN(), []string{"state", "COMPLETED"}},
		{"joblet_queue_jobs", 5, []string{"queue", "ready"}},
		{"joblet_queue_jobs", 6, []string{"queue", "scheduled"}},
		{"joblet_queue_jobs", 7, []string{"queue", "blocked"}},
		{"joblet_jobs_memory_bytes", 2 << 30, nil},
		{"joblet_jobs_pids", 6, nil},
		{"joblet_jobs_unlisted", 0, nil},
		{"joblet_state_dir_free_bytes", 80, nil},
		{"joblet_state_dir_size_bytes", 100, nil},
		{"joblet_job_cpu_seconds_total", 2.5, one},
		{"joblet_job_memory_bytes", 1 << 30, one},
		{"joblet_job_memory_limit_bytes", 2 << 30, one},
		{"joblet_job_pids", 3, one},
	} {
		if v := value(got, tt.name, tt.labels...); v != tt.want && !(math.IsNaN(v) && math.IsNaN(tt.want)) {
			t.Errorf("%s%v: got %v, want %v", tt.name, tt.labels, v, tt.want)
		}
	}
	if sum := got["joblet_job_run_seconds"].GetMetric()[0].GetHistogram().GetSampleSum(); sum != 7 {
		t.Errorf("run time: %v", sum)
	}
	if got["joblet_build_info"] == nil || got["go_goroutines"] == nil || got["process_resident_memory_bytes"] == nil {
		t.Error("no build, Go or process metrics")
	}
}

// TestNames: Prometheus' own linter has nothing to say.
func TestNames(t *testing.T) {
	t.Parallel()
	problems, err := testutil.GatherAndLint(busy().registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "joblet_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// TestOff: nil Metrics count nothing and cost next to nothing.
func TestOff(t *testing.T) {
	var m *Metrics
	all := func() {
		m.Accepted()
		m.Started(1, 1)
		m.NotStarted(joblet.Internal)
		m.RunEnded(joblet.Job{}, true)
		m.Ended(joblet.Failed)
		m.Used(1, 1)
		m.CallBegins()
		m.CallEnded("x", "OK", 1)
		m.Publish(Jobs{})
	}
	if n := testing.AllocsPerRun(10, all); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if h := slog.DiscardHandler; m.LogHandler(h) != h {
		t.Error("the log is wrapped")
	}
}

// TestManyRuns: the series stay bounded, and the oldest runs have them.
func TestManyRuns(t *testing.T) {
	t.Parallel()
	m := New()
	start := time.Now()
	var jobs Jobs
	for i := range 1000 {
		jobs.Runs = append(jobs.Runs, gigabyteRun(fmt.Sprint(i), start.Add(-time.Duration(i)*time.Second)))
	}
	m.Publish(jobs)
	got := scrape(t, m)
	if n := len(got["joblet_job_cpu_seconds_total"].GetMetric()); n != maxListed {
		t.Errorf("%d series", n)
	}
	for id, listed := range map[string]bool{"999": true, "800": true, "799": false, "0": false} {
		if v := value(got, "joblet_job_pids", "job_id", id, "job_name", "name-"+id); math.IsNaN(v) == listed {
			t.Errorf("run %s: %v", id, v)
		}
	}
	if rest, pids := value(got, "joblet_jobs_unlisted"), value(got, "joblet_jobs_pids"); rest != 800 || pids != 3000 {
		t.Errorf("%v unlisted, %v processes", rest, pids)
	}
	m.Publish(Jobs{})
	if got := scrape(t, m); got["joblet_job_pids"] != nil || value(got, "joblet_jobs_unlisted") != 0 {
		t.Error("series of jobs that have ended")
	}
}

// TestLogHandler: what the log leaves out is counted, and no more is let through.
func TestLogHandler(t *testing.T) {
	t.Parallel()
	m := New()
	var b bytes.Buffer
	log := slog.New(m.LogHandler(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelError})))
	log.Warn("quiet")
	log.With("job", "x").Error("loud")
	if s := b.String(); strings.Contains(s, "quiet") || !strings.Contains(s, "job=x") {
		t.Errorf("log: %s", s)
	}
	if got := scrape(t, m); value(got, "joblet_log_messages_total", "level", "warn") != 1 {
		t.Error("the warning is not counted")
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- busy().Serve(ctx, l, slog.New(slog.DiscardHandler)) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, tt := range []struct {
		method, path string
		header       int
		status       int
	}{
		{http.MethodGet, Path, 0, http.StatusOK},
		{http.MethodHead, Path, 0, http.StatusOK},
		{http.MethodPost, Path, 0, http.StatusMethodNotAllowed},
		{http.MethodGet, "/", 0, http.StatusNotFound},
		{http.MethodGet, "/debug/vars", 0, http.StatusNotFound},
		{http.MethodGet, Path, 2 * maxHeaders, http.StatusRequestHeaderFieldsTooLarge},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, "http://"+l.Addr().String()+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X", strings.Repeat("x", tt.header))
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if tt.header > 0 { // of a request that it does not read on, the rest is in the way
			err = nil
		}
		if err != nil || resp.StatusCode != tt.status {
			t.Errorf("%s %s: %v %v", tt.method, tt.path, resp.Status, err)
		}
	}
	// Somebody who connects and says nothing does not hold the daemon up.
	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	cancel()
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it still serves")
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("it still listens")
	}
}

// TestServeFails: an end that nobody asked for is an error.
func TestServeFails(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := New().Serve(t.Context(), l, slog.New(slog.DiscardHandler)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// BenchmarkScrape is what a scrape of a daemon with 1000 running jobs costs.
func BenchmarkScrape(b *testing.B) {
	m := busy()
	var jobs Jobs
	for i := range 1000 {
		jobs.Runs = append(jobs.Runs, gigabyteRun(fmt.Sprint(i), time.Now()))
	}
	m.Publish(jobs)
	h := m.Handler(slog.New(slog.DiscardHandler))
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, Path, nil))
		b.ReportMetric(float64(w.Body.Len()), "bytes/scrape")
	}
}
