package e2e

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/joblet/joblet/internal/testenv"
)

// scraper is a Prometheus of a test's own.
type scraper struct {
	t      *testing.T
	client *http.Client
	url    string
}

var metricsAt = regexp.MustCompile(`serving metrics" address=(\S+)`)

// scraper returns one of a daemon that was started with --metrics-addr.
func (d *daemon) scraper(t *testing.T) *scraper {
	t.Helper()
	var at string
	if !eventually(patience, func() bool {
		all := metricsAt.FindAllStringSubmatch(d.stderr.String(), -1)
		if len(all) > 0 {
			at = all[len(all)-1][1]
		}
		return at != ""
	}) {
		t.Fatal("the daemon does not say where its metrics are")
	}
	s := &scraper{t: t, client: http.DefaultClient, url: "http://" + at + "/metrics"}
	if path, ok := strings.CutPrefix(at, "unix:"); ok {
		s.url = "http://joblet/metrics"
		s.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", path)
		}}}
	}
	return s
}

// scraped is what one scrape gave.
type scraped map[string]*dto.MetricFamily

func (s *scraper) scrape() scraped {
	s.t.Helper()
	resp, err := s.client.Get(s.url)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %v", resp.Status, err)
	}
	return families
}

// find returns the series that has these labels among others, or nil.
func (s scraped) find(name string, labels ...string) *dto.Metric {
	for _, m := range s[name].GetMetric() {
		found := 0
		for _, l := range m.GetLabel() {
			for i := 0; i < len(labels); i += 2 {
				if l.GetName() == labels[i] && l.GetValue() == labels[i+1] {
					found++
				}
			}
		}
		if found == len(labels)/2 {
			return m
		}
	}
	return nil
}

// value returns a counter, a gauge, or how much a histogram has seen; NaN if
// there is none.
func (s scraped) value(name string, labels ...string) float64 {
	switch m := s.find(name, labels...); {
	case m == nil:
		return math.NaN()
	case m.Counter != nil:
		return m.GetCounter().GetValue()
	case m.Histogram != nil:
		return float64(m.GetHistogram().GetSampleCount())
	default:
		return m.GetGauge().GetValue()
	}
}

// until scrapes until ok says so, and fails the test if that takes too long.
func (s *scraper) until(what string, ok func(scraped) bool) (last scraped) {
	s.t.Helper()
	if !eventually(time.Minute, func() bool {
		last = s.scrape()
		return ok(last)
	}) {
		s.t.Errorf("metrics never show %s", what)
	}
	return last
}

// TestMetrics runs jobs of all kinds, one after the other.
func TestMetrics(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "--metrics-addr=127.0.0.1:0")
	s := d.scraper(t)
	first := s.scrape()
	for _, series := range [][]string{
		{"joblet_jobs", "state", "RUNNING"}, {"joblet_jobs_ended_total", "state", "FAILED"}, {"joblet_jobs_accepted_total"},
		{"joblet_job_start_seconds"}, {"joblet_queue_jobs", "queue", "ready"}, {"joblet_job_out_of_memory_total"}, {"joblet_jobs_unlisted"},
	} {
		if v := first.value(series[0], series[1:]...); v != 0 {
			t.Errorf("%v is %v before there was a job", series, v)
		}
	}
	if first.value("joblet_build_info") != 1 || first.value("joblet_state_dir_free_bytes") > first.value("joblet_state_dir_size_bytes") ||
		!(first.value("process_resident_memory_bytes") > 1<<20) || !(first.value("go_goroutines") > 1) {
		t.Error("no build, disk, process or Go metrics")
	}

	for range 3 {
		d.must(t, "true")
	}
	d.must(t, "head", "-c", "100000", "/dev/zero")
	for status, args := range map[int][]string{
		3:   {"sh", "-c", "exit 3"},
		1:   {"--retry=2", "--retry-delay=10ms", "sh", "-c", "exit 1"},
		124: {"--timeout=200ms", "sleep", "20"},
		127: {"no-such-command"},
		137: {"--max-memory=32M", "sh", "-c", `x=$(head -c 100000000 /dev/zero | tr '\0' x); echo "$x"`},
	} {
		if r := d.job(t, args...); r.status != status {
			t.Errorf("%q: want status %d: %v", args, status, r)
		}
	}
	const completed, failed, runs = 4, 3, 4 + 1 + 3 + 1 + 1
	got := s.until("the ends of all jobs", func(m scraped) bool {
		return m.value("joblet_jobs_ended_total", "state", "COMPLETED") == completed &&
			m.value("joblet_jobs_ended_total", "state", "FAILED") == failed && m.value("joblet_jobs_ended_total", "state", "TIMEOUT") == 1
	})
	for _, tt := range []struct {
		want   float64
		series []string
	}{
		{completed + failed + 1, []string{"joblet_jobs_accepted_total"}},
		{0, []string{"joblet_jobs_ended_total", "state", "LOST"}},
		{2, []string{"joblet_job_retries_total"}},
		{1, []string{"joblet_job_out_of_memory_total"}},
		{1, []string{"joblet_job_start_failures_total", "kind", "command_not_found"}},
		{0, []string{"joblet_job_start_failures_total", "kind", "internal"}},
		{runs, []string{"joblet_job_start_seconds"}},
		{runs, []string{"joblet_job_queue_seconds"}},
		{runs, []string{"joblet_job_run_seconds"}},
		{100_000, []string{"joblet_jobs_log_bytes_total"}},
		{1, []string{"joblet_api_calls_total", "method", "joblet.JobService/RunJobAttached", "code", "InvalidArgument"}},
		{completed + failed + 1, []string{"joblet_api_calls_total", "method", "joblet.JobService/RunJobAttached", "code", "OK"}},
		{completed + failed + 2, []string{"joblet_api_call_seconds", "method", "joblet.JobService/RunJobAttached"}},
		{0, []string{"joblet_api_calls_in_flight"}},
	} {
		if v := got.value(tt.series[0], tt.series[1:]...); v != tt.want {
			t.Errorf("%v is %v, want %v", tt.series, v, tt.want)
		}
	}
	if v := got.value("joblet_jobs_cpu_seconds_total"); !(v > 0) {
		t.Errorf("all jobs took %v s of CPU", v)
	}
	if sum := got.find("joblet_job_run_seconds").GetHistogram().GetSampleSum(); sum < 0.2 || sum > 60 {
		t.Errorf("all runs took %v s", sum)
	}
}

// TestMetricsLive: one job runs and three wait; the daemon dies and comes back;
// the job ends.
func TestMetricsLive(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "--metrics-addr=127.0.0.1:0", "--max-concurrent=1")
	s := d.scraper(t)
	id := strings.TrimSpace(d.must(t, "-d", "--name=burner", "--max-memory=64M", "sh", "-c", "while :; do :; done"))
	burner := []string{"job_id", id, "job_name", "burner"}
	waiting := strings.TrimSpace(d.must(t, "-d", "true"))
	d.must(t, "-d", "--schedule=+1h", "true")
	d.must(t, "-d", "--depends-on=burner", "true")
	got := s.until("what a job takes, and those that wait", func(m scraped) bool {
		return m.value("joblet_job_cpu_seconds_total", burner...) > 0.5 && m.value("joblet_jobs", "state", "RUNNING") == 1 &&
			m.value("joblet_queue_jobs", "queue", "ready") == 1 && m.value("joblet_queue_jobs", "queue", "scheduled") == 1 &&
			m.value("joblet_queue_jobs", "queue", "blocked") == 1 && m.value("joblet_jobs", "state", "PENDING") == 2
	})
	if memory, pids, limit := got.value("joblet_job_memory_bytes", burner...), got.value("joblet_job_pids", burner...),
		got.value("joblet_job_memory_limit_bytes", burner...); !(memory > 0 && memory < 64<<20) || pids != 1 || limit != 64<<20 {
		t.Errorf("a shell has %v bytes of %v, and %v processes", memory, limit, pids)
	}
	if n := len(got["joblet_job_pids"].GetMetric()); n != 1 {
		t.Errorf("series of %d jobs, and one runs", n)
	}

	// What the job took before is not counted again.
	used := got.value("joblet_job_cpu_seconds_total", burner...)
	d.kill(t)
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	s.client.CloseIdleConnections()
	var back *scraper
	if !eventually(patience, func() bool { back = d.scraper(t); return back.url != s.url }) {
		t.Fatal("the daemon does not say where its metrics are now")
	}
	s = back
	got = s.until("the job again", func(m scraped) bool { return m.value("joblet_job_cpu_seconds_total", burner...) >= used })
	if now := got.value("joblet_job_cpu_seconds_total", burner...); !(now >= used) {
		t.Errorf("the job took %v s of CPU, and now %v", used, now)
	} else if all := got.value("joblet_jobs_cpu_seconds_total"); all > now-used+1 {
		t.Errorf("all jobs took %v s of CPU since the daemon came back, when the job had taken %v s before", all, used)
	}

	// Its end takes its series away.
	if r := d.rnx(t.Context(), "job", "stop", id); r.status != 0 {
		t.Fatal(r)
	}
	if r := d.rnx(t.Context(), "job", "wait", waiting); r.status != 0 {
		t.Fatal(r)
	}
	got = s.until("that no job runs", func(m scraped) bool {
		return m.find("joblet_job_cpu_seconds_total") == nil && m.value("joblet_jobs", "state", "RUNNING") == 0 &&
			m.value("joblet_jobs_ended_total", "state", "COMPLETED") == 1 && m.value("joblet_jobs_ended_total", "state", "CANCELED") == 1
	})
	if v := got.value("joblet_jobs_ended_total", "state", "STOPPED"); v != 1 {
		t.Errorf("%v jobs were stopped", v)
	}
	if q := got.find("joblet_job_queue_seconds").GetHistogram(); q.GetSampleCount() != 1 || !(q.GetSampleSum() > 0) {
		t.Errorf("the job that waited for its turn: %v", q)
	}
	for _, name := range []string{"joblet_job_memory_bytes", "joblet_job_memory_limit_bytes", "joblet_job_pids"} {
		if got.find(name) != nil {
			t.Errorf("%s of a job that has ended", name)
		}
	}
}

// TestMetricsLog: the output of a job that goes on is counted while it does.
func TestMetricsLog(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "--metrics-addr=127.0.0.1:0")
	s := d.scraper(t)
	id := strings.TrimSpace(d.must(t, "-d", "sh", "-c", "head -c 5000 /dev/zero; exec sleep 100"))
	s.until("5000 bytes of output", func(m scraped) bool { return m.value("joblet_jobs_log_bytes_total") == 5000 })
	if r := d.rnx(t.Context(), "job", "kill", id); r.status != 0 {
		t.Fatal(r)
	}
	got := s.until("its end", func(m scraped) bool { return m.value("joblet_jobs_ended_total", "state", "STOPPED") == 1 })
	if v := got.value("joblet_jobs_log_bytes_total"); v != 5000 {
		t.Errorf("counted %v bytes", v)
	}
}

// TestMetricsSocket: the metrics through a unix socket that only root may open,
// which is gone with the daemon, even when somebody holds a connection.
func TestMetricsSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "metrics.sock")
	d := newDaemon(t, "--metrics-addr=unix:"+path)
	s := d.scraper(t)
	if v := s.scrape().value("joblet_build_info"); v != 1 {
		t.Errorf("build info: %v", v)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("socket: %v, %v", info, err)
	}
	held, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	start := time.Now()
	d.stop()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the daemon took %v to stop", took)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	d.kill(t) // leaves the socket
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	if v := d.scraper(t).scrape().value("joblet_build_info"); v != 1 {
		t.Errorf("build info after a crash: %v", v)
	}
}

// TestMetricsRefused: an address that cannot be is told before anything starts.
func TestMetricsRefused(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for want, addr := range map[string]string{
		"another program listens there": l.Addr().String(),
		"add --metrics-remote":          "0.0.0.0:0",
		"must be HOST:PORT":             "9090",
	} {
		dir := t.TempDir()
		d := &daemon{state: filepath.Join(dir, "state"), run: filepath.Join(dir, "run"), args: []string{"--metrics-addr=" + addr}}
		err := d.start()
		if err == nil {
			d.stop()
			t.Errorf("%s: it started", addr)
		} else if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: said %q, want %q", addr, err, want)
		}
		if _, err := os.Stat(d.state); !os.IsNotExist(err) {
			t.Errorf("%s: it made its state directory: %v", addr, err)
		}
		testenv.CheckLeaks(t, d.run)
	}
}

// TestMetricsOff: unless it is asked to, a daemon listens on no network.
func TestMetricsOff(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	dir := fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var sockets []string
	for _, fd := range fds {
		if to, _ := os.Readlink(filepath.Join(dir, fd.Name())); strings.HasPrefix(to, "socket:[") {
			sockets = append(sockets, strings.Trim(to, "socket:[]"))
		}
	}
	if len(sockets) == 0 {
		t.Error("it has no socket at all")
	}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, err := os.ReadFile(table)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			for _, inode := range sockets {
				if fields := strings.Fields(line); len(fields) > 9 && fields[9] == inode {
					t.Errorf("a TCP socket: %s", line)
				}
			}
		}
	}
	if strings.Contains(d.stderr.String(), "serving metrics") {
		t.Error("it serves metrics")
	}
}
