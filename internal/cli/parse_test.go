package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet"
)

func TestParseSize(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int64{
		"0": 0, "65536": 65536, "64K": 64 << 10, "64k": 64 << 10, "10MiB": 10 << 20, "10mb": 10 << 20, "1G": 1 << 30, "2t": 2 << 40, "5B": 5,
		"8388607T": 8388607 << 40,
		"":         -1, "K": -1, "-1": -1, "+1": -1, "1.5G": 3 << 29, "1.5": -1, "1.G": -1, ".5G": -1, "-1.5G": -1, "1P": -1, "1KK": -1, "1BK": -1, "1Ki": -1, "8388608T": -1, "99999999999999999999": -1, "1 K": -1, "1i": -1,
	} {
		got, err := joblet.ParseSize(s)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: got %d, %v; want %d", s, got, err, want)
		}
	}
}

func TestParseSpan(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for s, want := range map[string]time.Duration{
		"0": 0, "90s": 90 * time.Second, "2h30m": 150 * time.Minute, "3d": 3 * day, "1w2d3h": 9*day + 3*time.Hour, "1d12h": 36 * time.Hour,
		"": -1, "d": -1, "3": -1, "-1h": -1, "-3d": -1, "1d2w": -1, "1.5d": -1, "1d1d": -1, "9999999w": -1, "1y": -1,
	} {
		got, err := parseSpan(s)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: got %v, %v; want %v", s, got, err, want)
		}
	}
}

func TestParseMoment(t *testing.T) {
	t.Parallel()
	zone := time.FixedZone("here", 2*3600)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, zone)
	for s, want := range map[string]string{
		"2h":                        "2026-01-02T01:04:05+02:00",
		"3d":                        "2025-12-30T03:04:05+02:00",
		"2026-01-01":                "2026-01-01T00:00:00+02:00",
		"2026-01-01 12:30":          "2026-01-01T12:30:00+02:00",
		"2026-01-01T12:30:15":       "2026-01-01T12:30:15+02:00",
		"2026-01-01T12:30:15Z":      "2026-01-01T12:30:15Z",
		"2026-01-01T12:30:15-05:00": "2026-01-01T12:30:15-05:00",
		"2026-13-01":                "",
		"noon":                      "",
		"":                          "",
	} {
		got, err := parseMoment(s, now)
		text := ""
		if err == nil {
			text = got.Format(time.RFC3339)
		}
		if text != want {
			t.Errorf("%q: got %s, %v; want %s", s, text, err, want)
		}
	}
}

func TestParseStatuses(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"1": "1", "3,1": "1,3", "1,3,100-110": "1,3,100-110", "5-5": "5", "1-255": "1-255", "2,1,3-4,4": "1-4", "1, 2": "1-2",
		"": "", "0": "", "256": "", "3-1": "", "1-": "", "-1": "", "a": "", "1,,2": "", "1-300": "", "0-3": "",
	} {
		all, err := parseStatuses(s)
		if got := formatStatuses(all); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v; want %q", s, got, err, want)
		}
	}
}

func TestEnvFile(t *testing.T) {
	t.Parallel()
	lookup := func(name string) (string, bool) { return "here", name == "PASSED" }
	for _, tt := range []struct {
		text string
		want map[string]string
		err  string
	}{
		{"", map[string]string{}, ""},
		{"\ufeffA=1\r\n# comment\n\n   \t\n  B= x y \nC=\"q\"=#no comment\nEMPTY=\nPASSED\nA=2", map[string]string{
			"A": "2", "B": " x y ", "C": `"q"=#no comment`, "EMPTY": "", "PASSED": "here",
		}, ""},
		{"A=1\n\nNOT_HERE\n", nil, "f.env:3: there is no variable NOT_HERE here"},
		{"A=1\nhunter2-rest-of-a-secret\n", nil, "f.env:2: not NAME=VALUE"},
		{"discovery.type=single-node\nmy-var=1\nüber=2\n\xff=\xfe\na b=3\n%=\n2=\n", map[string]string{
			"discovery.type": "single-node", "my-var": "1", "über": "2", "\xff": "\xfe", "a b": "3", "%": "", "2": "",
		}, ""},
		{"JOBLET_JOB_ID=1\n", nil, "f.env:1: environment variable name \"JOBLET_JOB_ID\": names that begin with JOBLET_"},
		{"JOBLET_a.b=1\n", nil, "f.env:1: environment variable name \"JOBLET_a.b\": names that begin with JOBLET_"},
		{"joblet_x=1\nJOBLETX=2\nXJOBLET_=3\n", map[string]string{"joblet_x": "1", "JOBLETX": "2", "XJOBLET_": "3"}, ""},
		{"A =1\n", nil, "f.env:1: not NAME=VALUE"},
		{"export A=1\n", nil, "f.env:1: not NAME=VALUE"},
		{"=1\n", nil, "f.env:1: not NAME=VALUE"},
		{"A=\x00hunter2\n", nil, "f.env:1: A holds a NUL"},
		{"hunter2\x00=x\n", nil, "f.env:1: the line holds a NUL"},
		{"A=" + strings.Repeat("x", joblet.MaxStringLen) + "\n", nil, "f.env:1: A is "},
	} {
		env := map[string]string{}
		err := parseEnvFile(env, "f.env", []byte(tt.text), lookup)
		switch {
		case tt.err == "" && (err != nil || !reflect.DeepEqual(env, tt.want)):
			t.Errorf("%.60q: got %q, %v", tt.text, env, err)
		case tt.err != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.err)):
			t.Errorf("%.60q: got %v, want %s", tt.text, err, tt.err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%.60q: the error shows the secret: %v", tt.text, err)
		}
	}
}

// TestEnvOrder: files first, in their order, then what is given.
func TestEnvOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	one, two, large := filepath.Join(dir, "1"), filepath.Join(dir, "2"), filepath.Join(dir, "3")
	for name, text := range map[string]string{one: "A=1\nB=1\nC=1\n", two: "B=2\nC=2\n", large: strings.Repeat("#", maxEnvFile+1)} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	v := variables{flag: "--env", files: []string{one, two}, given: []string{"C=3"}}
	got, err := v.read(os.LookupEnv)
	if want := map[string]string{"A": "1", "B": "2", "C": "3"}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	v.files = []string{large}
	if _, err := v.read(os.LookupEnv); err == nil || !strings.Contains(err.Error(), "is longer than") {
		t.Errorf("large file: got %v", err)
	}
}

func FuzzEnvFile(f *testing.F) {
	f.Add([]byte("A=1\n#x\n B\r\n=\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		env := map[string]string{}
		if parseEnvFile(env, "f", text, func(string) (string, bool) { return "v", true }) != nil {
			return
		}
		for name, value := range env {
			if joblet.ValidEnvName(name) != nil || strings.ContainsAny(value, "\x00\n") {
				t.Errorf("%q gives %q=%q", text, name, value)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("1,3,100-110")
	f.Add("64M")
	f.Add("1w2d3h")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := joblet.ParseSize(s); err == nil && n < 0 {
			t.Errorf("size %q: %d", s, n)
		}
		if d, err := parseSpan(s); err == nil && d < 0 {
			t.Errorf("span %q: %d", s, d)
		}
		all, err := parseStatuses(s)
		if err != nil {
			return
		}
		again, err := parseStatuses(formatStatuses(all))
		if err != nil || !reflect.DeepEqual(all, again) {
			t.Errorf("statuses %q: %v, then %v, %v", s, all, again, err)
		}
	})
}

func TestFormatTemplate(t *testing.T) {
	t.Parallel()
	j := joblet.Job{
		ID: "11111111-a", State: joblet.Failed, Exit: &joblet.Exit{Code: 7},
		Spec: joblet.Spec{Command: "x", Args: []string{"a", "<b>"}, Labels: map[string]string{"team": "a"}, RetryOn: []int{1, 2}, SecretEnv: map[string]string{"T": "hunter2"}},
	}
	for text, want := range map[string]string{
		`{{.UUID}}`:                                "11111111-a",
		`{{short .UUID}} {{.ExitCode}}`:            "11111111 7",
		`{{lower .Status}}/{{upper .Command}}`:     "failed/X",
		`{{join .Args ","}} {{join .RetryOn 1}}`:   "ERR",
		`{{join .Args ","}} {{join .RetryOn " "}}`: "a,<b> 1 2",
		`{{json .Args}}{{json .SecretEnv}}`:        `["a","<b>"]{"T":"***"}`,
		`{{.Labels.team}} {{index .Args 1}}`:       "a <b>",
		`{{range .Past}}{{.Status}}{{end}}`:        "",
		`{{(index .Past 0).Nope}}`:                 "ERR",
		`{{join .Command ","}}`:                    "ERR",
		`{{.Nope}}`:                                "BAD",
		`{{`:                                       "BAD",
		`{{frob .UUID}}`:                           "BAD",
	} {
		var out strings.Builder
		got := ""
		format, err := parseFormat(text)
		if err != nil {
			got = "BAD"
		} else if err = (&app{out: &out}).writeFormat(format, j); err != nil {
			got = "ERR"
		} else {
			got = strings.TrimSuffix(out.String(), "\n")
		}
		if got != want {
			t.Errorf("%s: got %q, %v; want %q", text, got, err, want)
		}
		if err != nil && joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("%s: kind %v", text, joblet.KindOf(err))
		}
	}
}

// TestJobJSON: all that a job has is there, secrets without their values.
func TestJobJSON(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	text, err := json.Marshal(newJobJSON(joblet.Job{
		ID: "i", State: joblet.Failed, Failure: joblet.CommandNotFound, Scheduled: now, Parent: "p", Attempt: 2, WorkBytes: 5,
		Past:   []joblet.Attempt{{Started: now, Ended: now, State: joblet.Failed, Exit: &joblet.Exit{Signal: 9}, Reason: "oom"}},
		Denied: []joblet.DeniedCall{{Call: "mount", Errno: "EPERM", Count: 3, Remedy: joblet.RemedyNested}},
		Spec: joblet.Spec{
			Command: "x", Labels: map[string]string{"l": "v"}, Schedule: "0 3 * * *", Overlap: joblet.OverlapSkip, Retries: 3, RetryDelay: time.Second, RetryOn: []int{1},
			DependsOn: []string{"d"}, Priority: 7, IdempotencyKey: "k", Stdin: joblet.StdinFile, Uploads: []string{"u"}, LogMax: 1 << 20, SecretEnv: map[string]string{"T": "hunter2"},
		},
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"labels":{"l":"v"}`, `"schedule":"0 3 * * *"`, `"overlap":"skip"`, `"scheduled_time":"2026-01-02T03:04:05Z"`, `"parent":"p"`, `"attempt":2`,
		`"past":[{"status":"FAILED","start_time":"2026-01-02T03:04:05Z","end_time":"2026-01-02T03:04:05Z","exit_code":137,"signal":9,"reason":"oom"}]`,
		`"retries":3`, `"retry_delay_ms":1000`, `"retry_on":[1]`, `"depends_on":["d"]`, `"priority":7`, `"idempotency_key":"k"`, `"stdin":"file"`,
		`"uploads":["u"]`, `"log_max_bytes":1048576`, `"work_bytes":5`, `"failure":"command not found"`, `"exit_code":127`, `"secret_environment":{"T":"***"}`,
		`"denied":[{"call":"mount","errno":"EPERM","count":3,"remedy":"nested"}]`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}

func TestCopySource(t *testing.T) {
	t.Parallel()
	for from, want := range map[string]struct {
		source copySource
		above  string
	}{
		"j:out.csv":         {copySource{"j", "out.csv", false}, ""},
		"j:a/b/c":           {copySource{"j", "a/b/c", false}, "a/b"},
		"j:/work/a/b":       {copySource{"j", "a/b", false}, "a"},
		"j:a/":              {copySource{"j", "a", false}, ""},
		"j:a/.":             {copySource{"j", "a", true}, ""},
		"j:./a//b/./.":      {copySource{"j", "a/b", true}, "a"},
		"j:":                {copySource{"j", "", true}, ""},
		"j:.":               {copySource{"j", "", true}, ""},
		"j:/work":           {copySource{"j", "", true}, ""},
		"j:/work/":          {copySource{"j", "", true}, ""},
		"j:out/**/*.png":    {copySource{"j", "out/**/*.png", false}, "out"},
		"j:*.txt":           {copySource{"j", "*.txt", false}, ""},
		"j:a/b?c/d":         {copySource{"j", "a/b?c/d", false}, "a"},
		"j:a:b":             {copySource{"j", "a:b", false}, ""},
		"my.job:work/x":     {copySource{"my.job", "work/x", false}, "work"},
		"j:worker":          {copySource{"j", "worker", false}, ""},
		"j:/work/../work/x": {},
		"j:/workers/x":      {},
		"j:/":               {},
		":x":                {},
		"x":                 {},
		"./j:x":             {},
	} {
		got, err := parseCopySource(from, ".")
		if (err != nil) != (want.source.ref == "") || err == nil && (got != want.source || got.above() != want.above) {
			t.Errorf("%s: got %+v, above %q, %v", from, got, got.above(), err)
		}
	}
	for _, to := range []string{"3f2a:", "web:/work/x"} {
		if _, err := parseCopySource("x", to); err == nil || !strings.Contains(err.Error(), "--upload=x") {
			t.Errorf("to %s: got %v", to, err)
		}
	}
}

func TestWaitingNote(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	failed := func(e *joblet.Exit) joblet.Attempt { return joblet.Attempt{State: joblet.Failed, Exit: e} }
	soon := now.Add(2 * time.Second)
	spec := joblet.Spec{Retries: 3}
	for i, tt := range []struct {
		job  joblet.Job
		want string
	}{
		{joblet.Job{State: joblet.Pending, Reason: "busy\x1b"}, `job 3f2a waits: busy\x1b`},
		{joblet.Job{State: joblet.Pending, Reason: "waits for 1234"}, "job 3f2a waits for 1234"},
		{joblet.Job{State: joblet.Pending}, "job 3f2a waits for its turn"},
		{joblet.Job{State: joblet.Scheduled, Scheduled: soon}, "job 3f2a runs at 2026-01-02 03:04:07, in 2s"},
		{joblet.Job{State: joblet.Scheduled, Scheduled: now.Add(96 * time.Hour), Spec: joblet.Spec{Schedule: "0 3 * * *"}}, "job 3f2a runs next at 2026-01-06 03:04:05"},
		{joblet.Job{State: joblet.Scheduled, Scheduled: soon, Spec: spec, Attempt: 1, Past: []joblet.Attempt{failed(&joblet.Exit{Code: 3})}}, "job 3f2a: attempt 1 of 4 failed with status 3; next in 2s"},
		{joblet.Job{State: joblet.Scheduled, Scheduled: soon, Spec: spec, Attempt: 1, Exit: &joblet.Exit{Code: 3}}, "job 3f2a: attempt 1 of 4 failed with status 3; next in 2s"},
		{joblet.Job{State: joblet.Scheduled, Scheduled: now, Spec: spec, Attempt: 2, Past: []joblet.Attempt{failed(nil), failed(&joblet.Exit{Signal: 9})}}, "job 3f2a: attempt 2 of 4 was killed by SIGKILL; next now"},
		{joblet.Job{State: joblet.Scheduled, Scheduled: soon, Spec: spec, Attempt: 1, Past: []joblet.Attempt{{State: joblet.TimedOut, Exit: &joblet.Exit{Signal: 9}}}}, "job 3f2a: attempt 1 of 4 ran out of time; next in 2s"},
		{joblet.Job{State: joblet.Pending, Reason: "busy", Spec: spec, Attempt: 1, Past: []joblet.Attempt{failed(nil)}}, "job 3f2a waits: busy"},
	} {
		tt.job.ID = "3f2a"
		if got := waitingNote(tt.job, now); got != tt.want {
			t.Errorf("%d: got %q, want %q", i, got, tt.want)
		}
	}
}

func TestPruneFilter(t *testing.T) {
	t.Parallel()
	now := time.Now()
	f, err := pruneOptions{olderThan: "7d", status: []string{"failed", "timeout"}, labels: []string{"a=b", "c"}}.filter(now)
	if err != nil || !f.EndedBefore.Equal(now.Add(-7*24*time.Hour)) || fmt.Sprint(f.States, f.Labels) != "[FAILED TIMEOUT] [a=b c]" {
		t.Errorf("got %+v, %v", f, err)
	}
	if f, err := (pruneOptions{all: true}).filter(now); err != nil || !f.EndedBefore.IsZero() {
		t.Errorf("got %+v, %v", f, err)
	}
	if got := pruneText(1, 2048, true) + "; " + pruneText(3, 0, false); got != "1 job would be deleted, 2.0 KiB freed; 3 jobs deleted, 0 B freed" {
		t.Error(got)
	}
}
