// Package metrics is what Prometheus may read of the daemon: it holds all of the
// daemon's counters and serves them as /metrics (docs/METRICS.md lists them).
//
// Events are counted as they happen. What is true at one moment (jobs by state,
// what each takes) the supervisor publishes once a second, from what it samples
// anyway: a scrape reads the latest, and so takes none of the supervisor's locks
// and reads no cgroup, however often somebody scrapes.
package metrics

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/joblet/joblet"
)

// Metrics are the metrics of one daemon. Nil is good, and counts nothing: that
// is how they are off.
type Metrics struct {
	registry *prometheus.Registry
	jobs     atomic.Pointer[Jobs]

	accepted      prometheus.Counter
	ended         [joblet.Lost + 1]prometheus.Counter // by state
	retries       prometheus.Counter
	outOfMemory   prometheus.Counter
	startFailures *prometheus.CounterVec
	queueTime     prometheus.Histogram
	startTime     prometheus.Histogram
	runTime       prometheus.Histogram
	cpu           prometheus.Counter
	logBytes      prometheus.Counter

	calls    *prometheus.CounterVec
	callTime *prometheus.HistogramVec
	inFlight prometheus.Gauge

	warnings, errors prometheus.Counter
}

// Upper bounds of the histograms, in seconds. Each is a series to keep, of each
// method even, so there are no more than decisions need.
var (
	startBuckets = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10}
	queueBuckets = []float64{0.01, 0.1, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600}
	runBuckets   = []float64{0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600}
	callBuckets  = []float64{0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60}
)

// New returns Metrics in which nothing has happened yet.
func New() *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		buildInfo(),
		jobsCollector{m},
	)
	m.accepted = m.counter("joblet_jobs_accepted_total", "Jobs that were accepted, each run of a repeating job included.")
	ended := m.counters("joblet_jobs_ended_total", "Jobs that have ended, by final state.", "state")
	for _, state := range joblet.States() {
		if state.Final() {
			m.ended[state] = ended.WithLabelValues(state.String())
		}
	}
	m.retries = m.counter("joblet_job_retries_total", "Runs that failed and are followed by another attempt.")
	m.outOfMemory = m.counter("joblet_job_out_of_memory_total", "Runs that were ended because their memory was used up, those included that are tried again.")
	m.startFailures = m.counters("joblet_job_start_failures_total", "Jobs whose command could not be run, by kind of error.", "kind")
	m.startFailures.WithLabelValues(label(joblet.Internal)) // the one to watch, also before the first
	m.queueTime = m.histogram("joblet_job_queue_seconds", "Time that a run waited for a place among --max-concurrent; 0 for one that did not wait.", queueBuckets)
	m.startTime = m.histogram("joblet_job_start_seconds", "Time from the acceptance of a job, or from its turn if it waited, until its command ran and that was on record.", startBuckets)
	m.runTime = m.histogram("joblet_job_run_seconds", "Time that a run's command took, from start to end.", runBuckets)
	m.cpu = m.counter("joblet_jobs_cpu_seconds_total", "Processor time of all jobs together, ended ones included.")
	m.logBytes = m.counter("joblet_jobs_log_bytes_total", "Output of all jobs together that was taken into their logs.")

	m.calls = m.counters("joblet_api_calls_total", "Calls of the API that have ended, by gRPC status code.", "method", "code")
	m.callTime = m.histograms("joblet_api_call_seconds", "Time that calls of the API took; one that follows or waits takes as long as its caller likes.", callBuckets, "method")
	m.inFlight = prometheus.NewGauge(prometheus.GaugeOpts{Name: "joblet_api_calls_in_flight", Help: "Calls of the API that are under way."})
	m.registry.MustRegister(m.inFlight)

	logged := m.counters("joblet_log_messages_total", "Messages in the daemon's own log, by level.", "level")
	m.warnings, m.errors = logged.WithLabelValues("warn"), logged.WithLabelValues("error")
	m.Publish(Jobs{})
	return m
}

func (m *Metrics) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	m.registry.MustRegister(c)
	return c
}

func (m *Metrics) counters(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(c)
	return c
}

func (m *Metrics) histogram(name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	m.registry.MustRegister(h)
	return h
}

func (m *Metrics) histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	m.registry.MustRegister(h)
	return h
}

func buildInfo() prometheus.Collector {
	b := joblet.Build()
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "joblet_build_info",
		Help: "Always 1; the labels say what the daemon was built from.",
		ConstLabels: prometheus.Labels{
			"version": b.Version, "revision": b.Commit, "modified": strconv.FormatBool(b.Modified), "goversion": b.Go, "platform": b.Platform,
		},
	}, func() float64 { return 1 })
}

// label spells a kind of error as a label's value.
func label(k joblet.Kind) string { return strings.ReplaceAll(k.String(), " ", "_") }

// Accepted counts a job.
func (m *Metrics) Accepted() {
	if m != nil {
		m.accepted.Inc()
	}
}

// Started counts a run, which waited for a place and then was started for so long.
func (m *Metrics) Started(queued, starting time.Duration) {
	if m != nil {
		m.queueTime.Observe(queued.Seconds())
		m.startTime.Observe(starting.Seconds())
	}
}

// NotStarted counts a job whose command could not be run.
func (m *Metrics) NotStarted(cause joblet.Kind) {
	if m != nil {
		m.startFailures.WithLabelValues(label(cause)).Inc()
	}
}

// RunEnded counts the end of a run, after which the job is tried again or not.
func (m *Metrics) RunEnded(job joblet.Job, again bool) {
	if m == nil {
		return
	}
	if job.Exit != nil { // else nobody knows when it ended, or it never ran
		m.runTime.Observe(max(0, job.Ended.Sub(job.Started).Seconds())) // the clock may have been set
	}
	if job.OutOfMemory {
		m.outOfMemory.Inc()
	}
	if again {
		m.retries.Inc()
	}
}

// Ended counts the end of a job.
func (m *Metrics) Ended(state joblet.State) {
	if m != nil && state.Final() {
		m.ended[state].Inc()
	}
}

// Used counts what jobs have taken beyond what was counted before.
func (m *Metrics) Used(cpu time.Duration, logBytes int64) {
	if m != nil {
		m.cpu.Add(max(0, cpu.Seconds()))
		m.logBytes.Add(float64(max(0, logBytes)))
	}
}

// CallBegins counts a call of the API in.
func (m *Metrics) CallBegins() {
	if m != nil {
		m.inFlight.Inc()
	}
}

// CallEnded counts it out. There must be few different methods and codes.
func (m *Metrics) CallEnded(method, code string, took time.Duration) {
	if m != nil {
		m.inFlight.Dec()
		m.calls.WithLabelValues(method, code).Inc()
		m.callTime.WithLabelValues(method).Observe(took.Seconds())
	}
}

// LogHandler returns next with its warnings and errors counted, also those that
// it leaves out.
func (m *Metrics) LogHandler(next slog.Handler) slog.Handler {
	if m == nil {
		return next
	}
	return logHandler{m, next}
}

type logHandler struct {
	m    *Metrics
	next slog.Handler
}

func (h logHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn || h.next.Enabled(ctx, level)
}

func (h logHandler) Handle(ctx context.Context, r slog.Record) error {
	switch {
	case r.Level >= slog.LevelError:
		h.m.errors.Inc()
	case r.Level >= slog.LevelWarn:
		h.m.warnings.Inc()
	}
	if !h.next.Enabled(ctx, r.Level) {
		return nil
	}
	return h.next.Handle(ctx, r)
}

func (h logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return logHandler{h.m, h.next.WithAttrs(attrs)}
}

func (h logHandler) WithGroup(name string) slog.Handler {
	return logHandler{h.m, h.next.WithGroup(name)}
}
