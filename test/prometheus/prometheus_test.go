// Package prometheus checks deploy and docs/METRICS.md with the parser of Prometheus
// itself. It is a module of its own: Joblet does not depend on Prometheus.
package prometheus

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/codes"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/metrics"
)

// series are what a Prometheus makes of a scrape, by name; instance and job it
// adds itself.
type series struct {
	labels map[string][]map[string]string
	types  map[string]dto.MetricType
}

func seriesOf(families map[string]*dto.MetricFamily) series {
	s := series{map[string][]map[string]string{}, map[string]dto.MetricType{}}
	add := func(name string, typ dto.MetricType, m *dto.Metric, more ...string) {
		all := map[string]string{}
		for _, l := range m.GetLabel() {
			all[l.GetName()] = l.GetValue()
		}
		for _, l := range more {
			all[l] = "+Inf"
		}
		s.labels[name] = append(s.labels[name], all)
		s.types[name] = typ
	}
	for name, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetType() != dto.MetricType_HISTOGRAM {
				add(name, f.GetType(), m)
				continue
			}
			add(name+"_bucket", dto.MetricType_COUNTER, m, "le")
			add(name+"_count", dto.MetricType_COUNTER, m)
			add(name+"_sum", dto.MetricType_COUNTER, m)
		}
	}
	add("up", dto.MetricType_GAUGE, nil) // Prometheus' own
	return s
}

// scrape returns what a scrape of the handler gives, by name.
func scrape(t *testing.T, m *metrics.Metrics) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler(slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest(http.MethodGet, metrics.Path, nil))
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

func gigabyteRun(id string, started time.Time) metrics.Run {
	return metrics.Run{ID: id, Name: "name-" + id, Started: started, Sample: joblet.Sample{
		Usage: joblet.Usage{CPUUser: 1500 * time.Millisecond, CPUSystem: time.Second}, Memory: 1 << 30, MemoryLimit: 2 << 30, PIDs: 3,
	}}
}

// busy returns Metrics to which everything has happened at least once.
func busy() *metrics.Metrics {
	m := metrics.New()
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
	jobs := metrics.Jobs{Ready: 5, Scheduled: 6, Blocked: 7, DiskFree: 80, DiskSize: 100, Runs: []metrics.Run{gigabyteRun("one", start), gigabyteRun("two", start)}}
	jobs.States[joblet.Running], jobs.States[joblet.Pending], jobs.States[joblet.Completed] = 2, 12, 1
	m.Publish(jobs)
	return m
}

var fromPrometheus = []string{"instance", "job"}

// plainAlternatives is a pattern that is only a choice of values.
var plainAlternatives = regexp.MustCompile(`^\w+(\|\w+)*$`)

// check tests an expression: each metric, label and value in it exists, counters
// are looked at by their growth and gauges are not. It returns the labels of what
// it results in, and what is wrong.
func (s series) check(text string) (result, problems []string) {
	c := &check{series: s}
	e, err := parser.ParseExpr(strings.ReplaceAll(text, "$__rate_interval", "5m"))
	if err != nil {
		return nil, []string{err.Error()}
	}
	parser.Inspect(e, func(n parser.Node, path []parser.Node) error {
		sel, ok := n.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		growth := false
		for _, p := range path {
			if call, ok := p.(*parser.Call); ok {
				growth = growth || slices.Contains([]string{"rate", "increase"}, call.Func.Name)
			}
		}
		if counter := s.types[sel.Name] == dto.MetricType_COUNTER; counter != growth {
			c.errorf("%s: counter: %v, looked at by its growth: %v", sel.Name, counter, growth)
		}
		for _, choice := range choices(sel.LabelMatchers) {
			if !slices.ContainsFunc(s.labels[sel.Name], func(l map[string]string) bool { return matches(choice, l) }) {
				c.errorf("nothing is %s", sel)
			}
		}
		return nil
	})
	result = c.result(e)
	return result, c.problems
}

// check is what is found out about one expression.
type check struct {
	series
	problems []string
}

func (c *check) errorf(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

// choices takes the alternatives in matchers apart: each must exist.
func choices(all []*labels.Matcher) [][]*labels.Matcher {
	out := [][]*labels.Matcher{nil}
	for _, m := range all {
		if slices.Contains(append(fromPrometheus, model.MetricNameLabel), m.Name) {
			continue
		}
		with := []*labels.Matcher{m}
		if m.Type == labels.MatchRegexp && plainAlternatives.MatchString(m.Value) {
			with = nil
			for v := range strings.SplitSeq(m.Value, "|") {
				with = append(with, labels.MustNewMatcher(labels.MatchEqual, m.Name, v))
			}
		}
		var next [][]*labels.Matcher
		for _, before := range out {
			for _, w := range with {
				next = append(next, append(slices.Clone(before), w))
			}
		}
		out = next
	}
	return out
}

func matches(all []*labels.Matcher, l map[string]string) bool {
	return !slices.ContainsFunc(all, func(m *labels.Matcher) bool { return !m.Matches(l[m.Name]) })
}

// result returns the labels of what an expression results in.
func (c *check) result(e parser.Expr) []string {
	known := func(has, wanted []string) {
		for _, l := range wanted {
			if !slices.Contains(has, l) {
				c.errorf("there is no label %s in %s", l, e)
			}
		}
	}
	switch e := e.(type) {
	case *parser.VectorSelector:
		if all := c.labels[e.Name]; len(all) > 0 {
			return append(slices.Collect(maps.Keys(all[0])), fromPrometheus...)
		}
	case *parser.MatrixSelector:
		return c.result(e.VectorSelector)
	case *parser.ParenExpr:
		return c.result(e.Expr)
	case *parser.AggregateExpr:
		has := c.result(e.Expr)
		if e.Op == parser.TOPK {
			return has
		}
		known(has, e.Grouping)
		return e.Grouping
	case *parser.Call:
		has := c.result(e.Args[len(e.Args)-1])
		if e.Func.Name == "predict_linear" {
			has = c.result(e.Args[0])
		}
		if e.Func.Name == "histogram_quantile" {
			known(has, []string{"le"})
			has = slices.DeleteFunc(slices.Clone(has), func(l string) bool { return l == "le" })
		}
		return has
	case *parser.BinaryExpr:
		left, right := c.result(e.LHS), c.result(e.RHS)
		if left == nil { // a number
			return right
		}
		switch match := e.VectorMatching; {
		case right == nil:
		case match != nil && match.On:
			known(left, match.MatchingLabels)
			known(right, match.MatchingLabels)
		case !sameSet(left, right):
			c.errorf("two sides never match: %v and %v in %s", left, right, e)
		}
		return left
	}
	return nil
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// shows checks the labels that a text shows, as pattern finds them.
func shows(t *testing.T, where, text string, pattern *regexp.Regexp, has []string) {
	t.Helper()
	for _, m := range pattern.FindAllStringSubmatch(text, -1) {
		if !slices.Contains(has, m[1]) {
			t.Errorf("%s: %q shows the label %s, and there are %v", where, text, m[1], has)
		}
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("../../" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestAlerts(t *testing.T) {
	t.Parallel()
	s := seriesOf(scrape(t, busy()))
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr         string
				For                 time.Duration
				Labels, Annotations map[string]string
			}
		}
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(read(t, "deploy/alerts.yml"))))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		t.Fatal(err)
	}
	label := regexp.MustCompile(`\$labels\.(\w+)`)
	names := map[string]bool{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if !strings.HasPrefix(r.Alert, "Joblet") || names[r.Alert] {
				t.Errorf("alert %q: not ours, or twice", r.Alert)
			}
			names[r.Alert] = true
			if !slices.Contains([]string{"info", "warning", "critical"}, r.Labels["severity"]) || r.Annotations["summary"] == "" {
				t.Errorf("%s: severity %q, summary %q", r.Alert, r.Labels["severity"], r.Annotations["summary"])
			}
			has, problems := s.check(r.Expr)
			for _, p := range problems {
				t.Errorf("%s: %s", r.Alert, p)
			}
			for _, text := range r.Annotations {
				shows(t, r.Alert, text, label, has)
			}
		}
	}
	if len(names) < 10 {
		t.Errorf("only %d alerts were found", len(names))
	}
}

func TestDashboard(t *testing.T) {
	t.Parallel()
	s := seriesOf(scrape(t, busy()))
	var board struct {
		Title, UID string
		Templating struct {
			List []struct{ Name, Definition string }
		}
		Panels []struct {
			ID          int
			Type, Title string
			GridPos     struct{ X, Y, W, H int }
			FieldConfig struct{ Defaults struct{ Unit string } }
			Targets     []struct{ RefID, Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(read(t, "deploy/grafana-dashboard.json"), &board); err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{"__rate_interval": true}
	for _, v := range board.Templating.List {
		known[v.Name] = true
		if name, _, ok := strings.Cut(strings.TrimPrefix(v.Definition, "label_values("), ","); ok && len(s.labels[name]) == 0 {
			t.Errorf("variable %s: there is no %s", v.Name, name)
		}
	}
	label, variable := regexp.MustCompile(`{{(\w+)}}`), regexp.MustCompile(`\$(\w+)`)
	ids, taken, exprs := map[int]bool{}, map[[2]int]string{}, 0
	for _, p := range board.Panels {
		if ids[p.ID] || p.Title == "" {
			t.Errorf("panel %d %q: no title, or an id that another has", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if taken[at] != "" || at[0] >= 24 {
					t.Errorf("panel %s lies on %q or outside", p.Title, taken[at])
				}
				taken[at] = p.Title
			}
		}
		if (p.Type == "row") != (len(p.Targets) == 0) || p.Type != "row" && p.FieldConfig.Defaults.Unit == "" {
			t.Errorf("panel %s: a %s with %d expressions, unit %q", p.Title, p.Type, len(p.Targets), p.FieldConfig.Defaults.Unit)
		}
		for _, target := range p.Targets {
			exprs++
			has, problems := s.check(target.Expr)
			for _, problem := range problems {
				t.Errorf("%s: %s", p.Title, problem)
			}
			shows(t, p.Title, target.LegendFormat, label, has)
			for _, m := range variable.FindAllStringSubmatch(target.Expr, -1) {
				if !known[m[1]] {
					t.Errorf("panel %s: there is no variable %s", p.Title, m[1])
				}
			}
		}
	}
	if exprs < 30 {
		t.Errorf("only %d expressions were found", exprs)
	}
}

// TestCheckFinds: the check above finds what it is for.
func TestCheckFinds(t *testing.T) {
	t.Parallel()
	s := seriesOf(scrape(t, busy()))
	for _, bad := range []string{
		`joblet_job`,
		`joblet_jobs{state="running"}`,
		`joblet_jobs{state=~"RUNNING|ASLEEP"}`,
		`joblet_jobs{status="RUNNING"}`,
		`sum by (status) (joblet_jobs)`,
		`joblet_jobs_accepted_total`,
		`rate(joblet_jobs[5m])`,
		`histogram_quantile(0.9, sum by (instance) (rate(joblet_job_run_seconds_bucket[5m])))`,
		`joblet_job_pids / joblet_jobs_pids`,
		`joblet_jobs and on (state) joblet_jobs_pids`,
		`sum(`,
	} {
		if _, problems := s.check(bad); len(problems) == 0 {
			t.Errorf("%s passes", bad)
		}
	}
	const good = `sum by (state) (joblet_jobs{state=~"RUNNING|PAUSED", instance="x"})`
	if has, problems := s.check(good); !sameSet(has, []string{"state"}) || len(problems) > 0 {
		t.Errorf("%s: %v %q", good, has, problems)
	}
}

// TestDocs: docs/METRICS.md lists the metrics that there are, with their types
// and labels.
func TestDocs(t *testing.T) {
	t.Parallel()
	families := scrape(t, busy())
	row := regexp.MustCompile("(?m)^\\| (`joblet_.*`) \\| (\\w+) \\|")
	name := regexp.MustCompile("`(joblet_\\w+)(?:{([\\w,]+)})?`")
	listed := map[string]bool{}
	for _, r := range row.FindAllStringSubmatch(string(read(t, "docs/METRICS.md")), -1) {
		for _, n := range name.FindAllStringSubmatch(r[1], -1) {
			listed[n[1]] = true
			f := families[n[1]]
			if f == nil || !strings.EqualFold(f.GetType().String(), r[2]) {
				t.Errorf("%s is no %s, but %v", n[1], r[2], f.GetType())
				continue
			}
			var has, wanted []string
			for _, l := range f.GetMetric()[0].GetLabel() {
				has = append(has, l.GetName())
			}
			if n[2] != "" {
				wanted = strings.Split(n[2], ",")
			}
			if !sameSet(has, wanted) {
				t.Errorf("%s has the labels %v, not %v", n[1], has, wanted)
			}
		}
	}
	for n := range families {
		if strings.HasPrefix(n, "joblet_") && !listed[n] {
			t.Errorf("%s is not in docs/METRICS.md", n)
		}
	}
}
