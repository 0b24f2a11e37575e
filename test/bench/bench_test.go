package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet/internal/testenv"
)

func TestQuantile(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for _, tt := range []struct {
		name  string
		times []time.Duration
		q     float64
		want  time.Duration
	}{
		{"one", []time.Duration{7 * ms}, 0.9, 7 * ms},
		{"odd median", []time.Duration{9 * ms, ms, 2 * ms}, 0.5, 2 * ms},
		{"even median", []time.Duration{4 * ms, ms, 2 * ms, 9 * ms}, 0.5, 3 * ms},
		{"least", []time.Duration{4 * ms, ms, 2 * ms}, 0, ms},
		{"greatest", []time.Duration{4 * ms, ms, 2 * ms}, 1, 4 * ms},
		{"between", []time.Duration{0, 10 * ms}, 0.9, 9 * ms},
		{"exact", []time.Duration{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 0.1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			before := slices.Clone(tt.times)
			if got := quantile(tt.times, tt.q); got != tt.want {
				t.Errorf("quantile(%v, %v) = %v, want %v", tt.times, tt.q, got, tt.want)
			}
			if !slices.Equal(tt.times, before) {
				t.Errorf("quantile changed its argument to %v", tt.times)
			}
		})
	}
}

func TestSummarize(t *testing.T) {
	t.Parallel()
	if got := summarize(nil); got != nil {
		t.Errorf("summarize(nil) = %+v, want nil", got)
	}
	got := summarize([]time.Duration{time.Millisecond, 3 * time.Millisecond})
	want := summary{Runs: 2, P10: 1.2, Median: 2, P90: 2.8}
	if *got != want {
		t.Errorf("summarize = %+v, want %+v", *got, want)
	}
}

func TestSignificant(t *testing.T) {
	t.Parallel()
	for in, want := range map[float64]string{0.456: "0.46", 9.876: "9.88", 12.34: "12.3", 99.9: "99.9", 1234.5: "1234"} {
		if got := significant(in); got != want {
			t.Errorf("significant(%v) = %q, want %q", in, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	got := table{head: []string{"", "way", "ms"}, rows: [][]string{{"a", "x | y", "1"}}}.String()
	want := "|  | way | ms |\n| --- | --- | ---: |\n| a | x \\| y | 1 |\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestMarkdown(t *testing.T) {
	t.Parallel()
	r := result{
		Date: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC), Idle: 100 * time.Millisecond, Peers: map[string]string{"crun": "1.2"},
		Rows: []row{
			{Name: baseline, What: "the base", Latency: &summary{Runs: 3, Median: 10}, PerSec: map[int]float64{1: 90, 2: 150}},
			{Name: clientName, What: "ours", Latency: &summary{Runs: 3, Median: 4}, Notes: []string{"remark"}, Failures: 2},
			{Name: rnxName, What: "ours", Latency: &summary{Runs: 3, Median: 12}, Memory: &jobMemory{Jobs: 20, Processes: 1, PerJob: 1 << 20, Largest: 3 << 19}},
			{Name: "podman", What: "big", Reason: "not installed"},
		},
		Daemon: []daemonMemory{{whenIdle + ", after start", 10 << 20}, {whenIdle + ", later", 12 << 20}, {"20 jobs running", 99 << 20}},
	}
	got := r.markdown()
	for _, want := range []string{
		"crun 1.2",
		"| client | ours | 3 | 0.00 | 4.00 | 0.00 | 0.40 |\n",
		"| podman | big: not installed | 0 | – | – | – | – |\n",
		"| crun | the base | 90.0 | 150 | failed |\n",
		"| rnx | ours | 1 | 1.00 | 1.50 |\n",
		"| median of client ÷ median of crun | met | 0.50 | 0.40 |\n",
		"| median of rnx ÷ median of crun | **missed** | 1.00 | 1.20 |\n",
		"| PSS of the idle daemon, MiB | met | 30.00 | 12.00 |\n",
		"- client: remark.\n- client: 2 runs failed.\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "idleness") {
		t.Errorf("a table after idleness without figures:\n%s", got)
	}
}

func TestCgroupMounts(t *testing.T) {
	t.Parallel()
	const (
		root   = "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
		v1     = "31 24 0:27 / /sys/fs/cgroup/pids rw,relatime shared:9 - cgroup cgroup rw,pids\n"
		hybrid = "33 24 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
		pure   = "33 24 0:29 / /sys/fs/cgroup rw,relatime shared:3 master:1 - cgroup2 cgroup2 rw\n"
	)
	for _, tt := range []struct {
		name, mountinfo string
		want            []cgroupMount
		hidden          []string
		wantErr         bool
	}{
		{name: "none", mountinfo: root},
		{name: "v1", mountinfo: root + v1, want: []cgroupMount{{"/sys/fs/cgroup/pids", false}}},
		{
			name: "hybrid", mountinfo: v1 + root + hybrid,
			want:   []cgroupMount{{"/sys/fs/cgroup/pids", false}, {"/sys/fs/cgroup/unified", true}},
			hidden: []string{"/sys/fs/cgroup/unified"},
		},
		{name: "v2", mountinfo: pure, want: []cgroupMount{{"/sys/fs/cgroup", true}}},
		{name: "malformed", mountinfo: "31 24\n", wantErr: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := cgroupMounts(strings.NewReader(tt.mountinfo))
			if !slices.Equal(got, tt.want) || (err != nil) != tt.wantErr {
				t.Fatalf("cgroupMounts = %v, %v, want %v, error %v", got, err, tt.want, tt.wantErr)
			}
			if hidden := hybridCgroup2(got); !slices.Equal(hidden, tt.hidden) {
				t.Errorf("hybridCgroup2 = %v, want %v", hidden, tt.hidden)
			}
		})
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		stat    string
		want    process
		wantErr bool
	}{
		{stat: "7 (sleep) S 1 7 7", want: process{pid: 7, parent: 1, comm: "sleep"}},
		{stat: "8 (a) b (c) Z 1", want: process{pid: 8, parent: 1, comm: "a) b (c", zombie: true}},
		{stat: "", wantErr: true},
		{stat: "7 (sleep)", wantErr: true},
		{stat: "x (sleep) S", wantErr: true},
	} {
		got, err := parseStat(tt.stat)
		if got != tt.want || (err != nil) != tt.wantErr {
			t.Errorf("parseStat(%q) = %+v, %v, want %+v, error %v", tt.stat, got, err, tt.want, tt.wantErr)
		}
	}
}

func TestParsePSS(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		rollup  string
		want    int64
		wantErr bool
	}{
		{rollup: "00400000-7fff [rollup]\nRss:    1200 kB\nPss:     512 kB\nPss_Dirty:  4 kB\n", want: 512 << 10},
		{rollup: "Rss: 1 kB\n", wantErr: true},
		{rollup: "Pss: many kB\n", wantErr: true},
	} {
		got, err := parsePSS(tt.rollup)
		if err == nil && got != tt.want || (err != nil) != tt.wantErr {
			t.Errorf("parsePSS(%q) = %d, %v, want %d, error %v", tt.rollup, got, err, tt.want, tt.wantErr)
		}
	}
}

func TestParseOptions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args    string
		wantErr bool
	}{
		{"", false},
		{"-n 3 -peers bwrap,crun -json", false},
		{"-n 0", true},
		{"-idle -1s", true},
		{"-jobs 100000", true},
		{"-peers docker", true},
		{"stray", true},
	} {
		if _, err := parseOptions(strings.Fields(tt.args)); (err != nil) != tt.wantErr {
			t.Errorf("parseOptions(%q): %v, want error %v", tt.args, err, tt.wantErr)
		}
	}
	o, err := parseOptions([]string{"-peers", "bwrap"})
	if err != nil || !o.wants("bwrap") || o.wants("crun") {
		t.Errorf("-peers bwrap: %+v, %v", o, err)
	}
}

// TestOneRun runs the cheapest contender through the whole program, as root.
func TestOneRun(t *testing.T) {
	if testing.Short() {
		t.Skip("requires time: it starts programs, and -short is given")
	}
	testenv.RequireRoot(t)
	o, err := parseOptions(strings.Fields("-n 2 -idle-n 1 -idle 1ms -warmup 1 -duration 5ms -jobs 2 -peers fork+exec"))
	if err != nil {
		t.Fatal(err)
	}
	var out, progress strings.Builder
	if err := run(t.Context(), o, &out, &progress); err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	if !strings.Contains(out.String(), "| fork+exec | no isolation: the floor | 2 |") {
		t.Errorf("no row of fork+exec in\n%s", out.String())
	}
}
