package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

// execute runs rnx with a host at which nobody answers.
func execute(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	a := &app{out: &out, errOut: &errOut}
	status = a.run(t.Context(), append([]string{"--host=unix:///nonexistent/joblet.sock"}, args...))
	return status, out.String(), errOut.String()
}

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args   string
		status int
		want   string
	}{
		{"jbo", 1, `rnx: unknown command "rnx jbo"; did you mean "rnx job"?`},
		{"job rnu", 1, `rnx: unknown command "rnx job rnu"; did you mean "rnx job run"?`},
		{"job frobnicate", 1, `rnx: unknown command "rnx job frobnicate"; see "rnx job --help"`},
		{"job run", 125, `rnx: no command given; see "rnx job run --help"`},
		{"job run --rumtime=x true", 125, `rnx: unknown flag: --rumtime; did you mean --runtime?`},
		{"job run --timeout=soon true", 125, `rnx: invalid argument "soon" for "--timeout" flag`},
		{"job run --timeout=-1s true", 125, `rnx: timeout -1s: must be between`},
		{"job run -e JOBLET_A=b true", 125, `rnx: --env: environment variable name "JOBLET_A"`},
		{"job run --label==a true", 125, `rnx: --label: label is empty`},
		{"job run --env-file=/nonexistent/x true", 125, `rnx: --env-file: open /nonexistent/x: no such file`},
		{"job run --secret-env-file=/nonexistent/x true", 125, `rnx: --secret-env-file: open`},
		{"job run --retry-on=0 --retry=1 true", 125, `rnx: --retry-on: "0": give exit statuses from 1 to 255`},
		{"job run --retry-delay=1s true", 125, `rnx: --retry-delay and --retry-on say how to retry: add --retry=N`},
		{"job run --retry=101 true", 125, `rnx: retries 101: must be between`},
		{"job run --overlap=skip true", 125, `rnx: overlap skip: only a job that repeats`},
		{"job run --priority=1001 true", 125, `rnx: priority 1001: must be`},
		{"job run --log-max=1 true", 125, `rnx: log limit of 1 bytes: must be`},
		{"job run --log-max=lots true", 125, `rnx: --log-max: "lots" is no size`},
		{"job run --schedule=whenever true", 125, `rnx: schedule "whenever": `},
		{"job run -d --download=x true", 125, `rnx: --download: rnx does not wait for the end of this job; fetch its files with "rnx job cp" then`},
		{"job run --schedule=+1h --download=x true", 125, `rnx: --download: rnx does not wait`},
		{"job run --download-to=x true", 125, `rnx: --download-to: no --download says what`},
		{"job run --upload=/nonexistent/x true", 125, `rnx: --upload: stat /nonexistent/x: no such file`},
		{"job run --upload=/ true", 125, `rnx: --upload /: it has no name`},
		{"job run --upload=/usr/bin --upload=/bin/../bin true", 125, `rnx: --upload /usr/bin and /bin/../bin: both would arrive as /work/bin`},
		{"job run --upload-dir=/etc/passwd true", 125, `rnx: --upload-dir: /etc/passwd is no directory`},
		{"job run --stdin=/nonexistent/x true", 125, `rnx: --stdin: open /nonexistent/x`},
		{"job run --stdin=/etc true", 125, `rnx: --stdin: /etc is a directory`},
		{"job run -e NOT_SET_AT_ALL true", 125, `rnx: --env NOT_SET_AT_ALL: there is no such variable here`},
		{"job run --workdir=../x true", 125, `rnx: workdir "../x": must be an absolute path`},
		{"job run true", 125, `rnx: no daemon answers at unix:///nonexistent/joblet.sock: `},
		{"job list", 1, `rnx: no daemon answers at`},
		{"job list --status=busy", 1, `rnx: --status: unknown state "busy"`},
		{"job list --limit=-1", 1, `rnx: --limit -1: must not be negative`},
		{"job list --label==x", 1, `rnx: --label: label is empty`},
		{"job list --since=yesterday", 1, `rnx: --since: "yesterday" is no time`},
		{"job list --format={{.Nope}}", 1, `rnx: --format:1:2: executing "--format" at <.Nope>: can't evaluate field Nope`},
		{"job list --format={{nope}}", 1, `rnx: --format:1: function "nope" not defined`},
		{"job list -q --format=x", 1, `rnx: --format, --quiet and --json exclude each other`},
		{"job status --format={{ x", 1, `rnx: --format:1: `},
		{"job log --since=1h --until=2h x", 1, `rnx: --until 2h: must be later than --since 1h`},
		{"job log --until=x y", 1, `rnx: --until: "x" is no time`},
		{"job cancel", 1, `rnx: no job given`},
		{"job prune", 1, `rnx: which jobs? Give --older-than=DURATION`},
		{"job prune --all --older-than=1d", 1, `rnx: --all and --older-than exclude each other`},
		{"job prune --older-than=-1h", 1, `rnx: --older-than: "-1h" is no duration`},
		{"job prune --all --status=running", 1, `rnx: --status: a job that is RUNNING has not ended`},
		{"job rerun -f a b", 1, `rnx: --follow: 2 jobs given`},
		{"job rerun -f a", 125, `rnx: no daemon answers at`},
		{"job cp a:b", 1, `rnx: 1 arguments given: JOB:PATH and DEST are needed`},
		{"job cp data.csv 3f2a:/work", 1, `rnx: files go into a job before it starts: rnx job run --upload=data.csv`},
		{"job cp ./x:y z", 1, `rnx: "./x:y" names no job`},
		{"job cp a:/etc/passwd .", 1, `rnx: a:/etc/passwd: only files in /work`},
		{"job cp a:x/../../y .", 1, `rnx: a:x/../../y: must not hold ".."`},
		{"job metrics", 1, `rnx: 0 arguments given: exactly one job is needed`},
		{"job metrics --interval=10ms a", 1, `rnx: --interval: "10ms": must be from 100ms to 1h`},
		{"job metrics --since=1h --until=2h a", 1, `rnx: --until 2h: must be later than --since 1h`},
		{"job metrics --until=x a", 1, `rnx: --until: "x" is no time`},
		{"job metrics --limit=-1 a", 1, `rnx: --limit -1: must not be negative`},
		{"job metrics --history --interval=2s a", 1, `rnx: --interval is for the samples to come`},
		{"job metrics a", 1, `rnx: no daemon answers at`},
		{"job top a b", 1, `rnx: 2 arguments given: exactly one job is needed`},
		{"job top --sort=name a", 1, `rnx: --sort: "name": must be cpu, mem or pid`},
		{"job top --interval=0 a", 1, `rnx: --interval: "0": must be from 100ms to 1h`},
		{"job tree", 1, `rnx: 0 arguments given: exactly one job is needed`},
		{"job log a b", 1, `rnx: 2 arguments given: exactly one job is needed`},
		{"job log --tail=-1 a", 1, `rnx: --tail -1: must not be negative`},
		{"job stop", 1, `rnx: no job given; see "rnx job stop --help"`},
		{"runtime build /nonexistent/x.yaml", 1, `rnx: read recipe: open /nonexistent/x.yaml: no such file`},
	} {
		status, stdout, stderr := execute(t, strings.Fields(tt.args)...)
		if status != tt.status || stdout != "" || !strings.HasPrefix(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("rnx %s: got %d, %q, %q; want %d, %q", tt.args, status, stdout, stderr, tt.status, tt.want)
		}
	}
}

func TestErrorAsJSON(t *testing.T) {
	t.Parallel()
	status, _, stderr := execute(t, "job", "run", "--json", "--workdir=x", "true")
	var got struct {
		Error, Kind string
		ExitStatus  int `json:"exit_status"`
	}
	if err := json.Unmarshal([]byte(stderr), &got); err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	if status != 125 || got.ExitStatus != 125 || got.Kind != "invalid argument" || !strings.HasPrefix(got.Error, "workdir") {
		t.Errorf("got %d %+v", status, got)
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || !c.HasAvailableSubCommands() && !strings.Contains(c.Long, "Exit status") && c.Name() != "help" && c.Parent().Name() != "completion" {
			t.Errorf("%s: no summary, or no exit status in its help", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand(&app{}))
	for _, args := range []string{"", "job", "runtime", "job run --help", "help job run", "completion bash"} {
		if status, stdout, stderr := execute(t, strings.Fields(args)...); status != 0 || stdout == "" || stderr != "" {
			t.Errorf("rnx %s: got %d, %d bytes, %q", args, status, len(stdout), stderr)
		}
	}
}

// TestFlagsStopAtCommand: all behind the command is the job's.
func TestFlagsStopAtCommand(t *testing.T) {
	t.Parallel()
	lookup := func(name string) (string, bool) { return "here", name == "PASSED" }
	for _, tt := range []struct {
		args []string
		want joblet.Spec
	}{
		{[]string{"ps", "--help", "-e", "x"}, joblet.Spec{Command: "ps", Args: []string{"--help", "-e", "x"}}},
		{[]string{"--", "--odd", "--", "x"}, joblet.Spec{Command: "--odd", Args: []string{"--", "x"}}},
		{
			[]string{"-w", "/tmp", "--runtime=py", "--name", "n", "--timeout", "90s", "--init", "-e", "A=b=c", "-e", "PASSED", "-e", "EMPTY=", "-s", "T=s", "x", "--init"},
			joblet.Spec{
				Command: "x", Args: []string{"--init"}, Runtime: "py", Name: "n", WorkDir: "/tmp", Timeout: 90 * time.Second, Init: true,
				Env: map[string]string{"A": "b=c", "PASSED": "here", "EMPTY": ""}, SecretEnv: map[string]string{"T": "s"},
			},
		},
		{
			[]string{"-l", "team=a", "--label=urgent", "--retry=3", "--retry-delay=2s", "--retry-on", "7,1-3,lost,2", "--depends-on=a,b", "--depends-on", "c", "--priority=-5", "--idempotency-key=k", "--log-max=64M", "--stdin", "x"},
			joblet.Spec{
				Command: "x", Labels: map[string]string{"team": "a", "urgent": ""}, Retries: 3, RetryDelay: 2 * time.Second, RetryOn: []int{1, 2, 3, 7}, RetryOnLost: true,
				DependsOn: []string{"a", "b", "c"}, Priority: -5, IdempotencyKey: "k", LogMax: 64 << 20, Stdin: joblet.StdinFile,
			},
		},
		{[]string{"--stdin", "x"}, joblet.Spec{Command: "x", Stdin: joblet.StdinStream}},
		{[]string{"--stdin=in.txt", "x"}, joblet.Spec{Command: "x", Stdin: joblet.StdinStream}},
		{[]string{"-d", "--stdin", "x"}, joblet.Spec{Command: "x", Stdin: joblet.StdinFile}},
	} {
		var opt runOptions
		flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
		opt.addFlags(flags)
		if err := flags.Parse(tt.args); err != nil {
			t.Errorf("%q: %v", tt.args, err)
			continue
		}
		got, err := opt.makeSpec(flags.Args(), lookup, time.Now())
		if err != nil {
			t.Errorf("%q: %v", tt.args, err)
		}
		if len(got.Args) == 0 {
			got.Args = nil
		}
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q:\ngot  %+v\nwant %+v", tt.args, got, tt.want)
		}
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	job := func(s joblet.State, e *joblet.Exit, reason string) joblet.Job {
		return joblet.Job{ID: "12345678-x", State: s, Exit: e, Reason: reason, Spec: joblet.Spec{Timeout: time.Second}}
	}
	failed := func(k joblet.Kind, reason string) joblet.Job {
		j := job(joblet.Failed, nil, reason)
		j.Failure = k
		return j
	}
	for _, tt := range []struct {
		job    joblet.Job
		status int
		text   string
	}{
		{job(joblet.Completed, &joblet.Exit{}, ""), 0, ""},
		{job(joblet.Failed, &joblet.Exit{Code: 3}, ""), 3, ""},
		{job(joblet.Failed, &joblet.Exit{Signal: 9}, ""), 137, ""},
		{job(joblet.Failed, &joblet.Exit{Signal: 9}, "out of memory"), 137, "job 12345678: out of memory"},
		{job(joblet.Stopped, &joblet.Exit{Signal: 15}, ""), 143, ""},
		{job(joblet.TimedOut, &joblet.Exit{Signal: 9}, ""), 124, "job 12345678: its time was up after 1s"},
		{job(joblet.Lost, nil, "its shim was killed"), 125, "job 12345678: its shim was killed"},
		{job(joblet.Canceled, nil, ""), 125, "job 12345678 was canceled before it ran"},
		{job(joblet.Canceled, nil, "canceled by uid:0"), 125, "job 12345678: canceled by uid:0"},
		{failed(joblet.CommandNotFound, "no such command: x"), 127, "job 12345678: no such command: x"},
		{failed(joblet.NotExecutable, ""), 126, "job 12345678 could not be run: not executable"},
		{failed(joblet.Internal, ""), 125, "job 12345678 could not be run"},
		{job(joblet.Running, nil, ""), 125, "job 12345678 is RUNNING at the end of its output"},
	} {
		err := (&app{}).verdict(tt.job)
		status, text := 0, ""
		if e, ok := errors.AsType[*exitError](err); ok {
			status = e.status
			if e.err != nil {
				text = e.Error()
			}
		} else if err != nil {
			status, text = runStatus(err), err.Error()
		}
		if status != tt.status || text != tt.text {
			t.Errorf("%v %v: got %d %q", tt.job.State, tt.job.Exit, status, text)
		}
	}
	for kind, want := range map[joblet.Kind]int{joblet.CommandNotFound: 127, joblet.NotExecutable: 126, joblet.NotFound: 125, joblet.Internal: 125} {
		if got := runStatus(joblet.Errorf(kind, "x")); got != want {
			t.Errorf("%v: got %d", kind, got)
		}
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	jobs := []joblet.Job{
		{ID: "11111111-a", State: joblet.Running, Started: now.Add(-90 * time.Second), Spec: joblet.Spec{Command: "sh", Args: []string{"-c", "echo a\nb\x1b[2J"}, Name: "ü"}},
		{ID: "22222222-a", State: joblet.Failed, Started: now.Add(-time.Hour), Ended: now.Add(-time.Hour + 1234*time.Millisecond), Exit: &joblet.Exit{Signal: 9}, Spec: joblet.Spec{Command: "true", Runtime: "python-3.11"}},
		{ID: "33333333-a", State: joblet.Failed, Spec: joblet.Spec{Command: "\xff"}},
	}
	var b strings.Builder
	if err := writeJobs(&b, 0, jobs, now); err != nil {
		t.Fatal(err)
	}
	want := `ID        NAME  STATUS   EXIT  STARTED              DURATION  RUNTIME      COMMAND
11111111  ü     RUNNING  -     2026-01-02 03:02:35  1m30s     -            sh -c 'echo a\nb\x1b[2J'
22222222  -     FAILED   137   2026-01-02 02:04:05  1.23s     python-3.11  true
33333333  -     FAILED   -     -                    -         -            $'\xff'
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
	b.Reset()
	if err := writeJobs(&b, 90, jobs, now); err != nil {
		t.Fatal(err)
	}
	if first := strings.Split(b.String(), "\n")[1]; !strings.HasSuffix(first, "sh -c 'echo a\\…") || len([]rune(first)) != 90 {
		t.Errorf("got %q, %d wide", first, len([]rune(first)))
	}
}

// TestTableWidths: a table fits its terminal down to what cannot be left out.
func TestTableWidths(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	jobs := []joblet.Job{
		{ID: "11111111-a", State: joblet.Initializing, Started: now, Spec: joblet.Spec{Command: strings.Repeat("c", 200), Name: strings.Repeat("n", 40), Runtime: "python-3.11-ml"}},
		{ID: "22222222-a", State: joblet.Scheduled, Scheduled: now.Add(5 * time.Minute), Spec: joblet.Spec{Command: "x"}},
	}
	for width, want := range map[int]string{
		200: "ID NAME STATUS EXIT STARTED DURATION RUNTIME COMMAND",
		110: "ID NAME STATUS EXIT STARTED DURATION COMMAND",
		80:  "ID STATUS EXIT STARTED DURATION COMMAND",
		66:  "ID STATUS EXIT STARTED COMMAND",
		45:  "ID STATUS EXIT COMMAND",
		36:  "ID STATUS COMMAND",
	} {
		var b strings.Builder
		if err := writeJobs(&b, width, jobs, now); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
		if got := strings.Join(strings.Fields(lines[0]), " "); got != want {
			t.Errorf("width %d: got %s, want %s", width, got, want)
		}
		if n := len([]rune(lines[1])); n != width {
			t.Errorf("width %d: a line of %d:\n%s", width, n, b.String())
		}
		if strings.Contains(want, "STARTED") != strings.Contains(lines[2], " in 5m ") {
			t.Errorf("width %d: %s", width, lines[2])
		}
	}
}

func TestFormats(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		123456: "123µs", 4567 * time.Microsecond: "5ms", 59 * time.Second: "59s", 192 * time.Second: "3m12s",
		125 * time.Minute: "2h5m", 99 * time.Hour: "4d3h",
	} {
		if got := formatDuration(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	for d, want := range map[time.Duration]string{
		-time.Hour: "now", time.Millisecond: "now", 2 * time.Second: "in 2s", 90 * time.Second: "in 1m30s", 5 * time.Minute: "in 5m",
		2 * time.Hour: "in 2h", 125 * time.Minute: "in 2h5m", 48 * time.Hour: "2026-01-04 03:04:05",
	} {
		if got := formatDue(now.Add(d), now); got != want {
			t.Errorf("due in %v: got %s, want %s", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 12 << 20: "12 MiB", 1 << 50: "1024 TiB"} {
		if got := formatBytes(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
	for s, want := range map[string]int{"TERM": 15, "sigint": 2, "9": 9, "64": 64, "SIGRTMIN": 34, "rtmin+3": 37, "SIGRTMAX-1": 63, "RTMAX": 64,
		"RTMIN-1": 0, "RTMAX+1": 0, "RTMIN3": 0, "RTMIN+": 0, "RTMIN+99999999999999999999": 0, "0": 0, "65": 0, "NOPE": 0, "": 0} {
		if got, err := parseSignal(s); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: got %d, %v", s, got, err)
		}
	}
	if got := signalName(15) + " " + signalName(40); got != "SIGTERM signal 40" {
		t.Errorf("got %s", got)
	}
}

func TestStatusText(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	status := func(j joblet.Job) string {
		var b strings.Builder
		if err := writeStatus(&b, j, now); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	tests := map[string]struct {
		job   joblet.Job
		want  []string
		never []string
	}{
		"failed": {
			joblet.Job{
				ID: "11111111-a", State: joblet.Failed, Reason: "bad\x1b[0m", Exit: &joblet.Exit{Signal: 11}, LogBytes: 2048, WorkBytes: 4096,
				Spec: joblet.Spec{Command: "x", SecretEnv: map[string]string{"TOKEN": "hunter2"}},
			},
			[]string{
				"Status:     FAILED (killed by SIGSEGV)\n", "Note:       abort() and a failed assertion of PID 1 end it like this too; with --init it is SIGABRT\n", `bad\x1b[0m`, "TOKEN=***", "Output:     2.0 KiB\n", "Files:      4.0 KiB in /work\n",
				"Next:       rnx job log 11111111, rnx job cp 11111111:. DIRECTORY, rnx job rerun 11111111, rnx job delete 11111111\n",
			},
			[]string{"hunter2", "Attempt:", "Labels:", "Stdin:"},
		},
		"everything": {
			joblet.Job{
				ID: "11111111-a", State: joblet.Completed, Exit: &joblet.Exit{}, Attempt: 2, LogBytes: 3 << 20,
				Started: now.Add(-2 * time.Minute), Ended: now.Add(-time.Minute), Scheduled: now.Add(-time.Hour), Parent: "33333333-b",
				Past: []joblet.Attempt{{
					State: joblet.Failed, Exit: &joblet.Exit{Code: 3}, Started: now.Add(-4 * time.Minute), Ended: now.Add(-3 * time.Minute), Reason: "why",
				}},
				Spec: joblet.Spec{
					Command: "x", Labels: map[string]string{"team": "a", "b": ""}, Priority: 5, IdempotencyKey: "k1", DependsOn: []string{"aa", "bb"},
					Retries: 3, RetryOn: []int{3, 1, 2, 9}, Stdin: joblet.StdinFile, Uploads: []string{"data", "x.csv"}, LogMax: 1 << 20,
				},
			},
			[]string{
				"Label:      b=\nLabel:      team=a\n", "Priority:   5\n", "Key:        k1\n", "Depends on: aa bb\n", "Parent:     33333333-b\n",
				"Retry:      up to 3 times, after 1s, doubled each time, on status 1-3,9\n", "Stdin:      sent along", "Uploads:    data x.csv\n",
				"Attempt:    1: FAILED (exit code 3), 2026-01-02 03:00:05, 1m0s, why\nAttempt:    2: COMPLETED (exit code 0), 2026-01-02 03:02:05, 1m0s\n",
				"Output:     3.0 MiB, of which the newest 1.0 MiB are kept\n",
				"Next:       rnx job log 11111111, rnx job delete 11111111\n",
			},
			nil,
		},
		"denied calls": {
			joblet.Job{
				ID: "11111111-a", State: joblet.Completed, Exit: &joblet.Exit{}, Spec: joblet.Spec{Command: "x", Security: joblet.Security{Profile: joblet.ProfileStrict, LogDenied: true}},
				Denied: []joblet.DeniedCall{
					{Call: "ptrace", Errno: "EPERM", Count: 12, Remedy: joblet.RemedyAllow}, {Call: "socket", Argument: "AF_ALG", Errno: "EAFNOSUPPORT", Count: 2},
					{Call: "mount", Errno: "EPERM", Count: 1, Remedy: joblet.RemedyNested}, {Call: "kill", Errno: "EPERM", Count: 1, Remedy: joblet.RemedyDeny},
				},
			},
			[]string{
				"Security:   --security=strict --log-denied\n",
				"Denied:     ptrace: 12 × EPERM, allowed by \"allow ptrace\" in a --security=FILE\nDenied:     socket(AF_ALG): 2 × EAFNOSUPPORT, no profile allows it\n",
				"Denied:     mount: 1 × EPERM, allowed by --security=nested\nDenied:     kill: 1 × EPERM, its own profile says \"deny kill\"\n",
			},
			nil,
		},
		"repeats": {
			joblet.Job{
				ID: "11111111-a", State: joblet.Scheduled, Scheduled: now.Add(90 * time.Second),
				Spec: joblet.Spec{Command: "x", Schedule: "0 3 * * *", Overlap: joblet.OverlapQueue},
			},
			[]string{
				"Schedule:   0 3 * * * (a run that is due too early waits)\n", "Next run:   2026-01-02 03:05:35 (in 1m30s)\n",
				"Next:       rnx job list --parent=11111111, rnx job cancel 11111111\n",
			},
			nil,
		},
		"was due": {
			joblet.Job{ID: "11111111-a", State: joblet.Running, Scheduled: now.Add(-time.Hour), Started: now, Spec: joblet.Spec{Command: "x"}},
			[]string{"Was due:    2026-01-02 02:04:05\n", "Next:       rnx job log -f 11111111, rnx job stop 11111111\n"},
			nil,
		},
		"waits": {
			joblet.Job{ID: "11111111-a", State: joblet.Pending, Reason: "waits for a place", Spec: joblet.Spec{Command: "x"}},
			[]string{"Status:     PENDING\nReason:     waits for a place\n", "Next:       rnx job wait 11111111, rnx job cancel 11111111\n"},
			nil,
		},
		"could not be run": {
			joblet.Job{ID: "11111111-a", State: joblet.Failed, Failure: joblet.CommandNotFound, Spec: joblet.Spec{Command: "x"}},
			[]string{"Status:     FAILED (could not be run: command not found)\n"},
			nil,
		},
	}
	for name, tt := range tests {
		got := status(tt.job)
		for _, want := range tt.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", name, want, got)
			}
		}
		for _, never := range tt.never {
			if strings.Contains(got, never) {
				t.Errorf("%s: %q in\n%s", name, never, got)
			}
		}
	}
}

func TestOutput(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)
	events := []client.Event{
		client.Waiting{Job: joblet.Job{ID: "x", State: joblet.Pending, Reason: "busy"}},
		client.Started{Job: joblet.Job{ID: "x", State: joblet.Running}},
		client.Output{Stream: client.Stdout, Time: at, Data: []byte("one\ntw")},
		client.Output{Stream: client.Stderr, Offset: 6, Time: at.Add(time.Second), Data: []byte("err\n")},
		client.Output{Stream: client.Stdout, Offset: 10, Time: at.Add(2 * time.Second), Data: []byte("o\n\xff\x00")},
		client.Gap{Offset: 14, Length: 3},
		client.Ended{Job: joblet.Job{ID: "x", State: joblet.Failed, Exit: &joblet.Exit{Code: 7}}},
	}
	play := func(o output) (string, string) {
		var stdout, stderr bytes.Buffer
		o.stdout, o.stderr = &stdout, &stderr
		for _, e := range events {
			if err := o.event(e); err != nil {
				t.Fatal(err)
			}
		}
		return stdout.String(), stderr.String()
	}
	const gap = "rnx: 3 bytes of older output are gone (the log's limit)\n"
	if stdout, stderr := play(output{}); stdout != "one\ntwo\n\xff\x00" || stderr != "err\n"+gap {
		t.Errorf("got %q, %q", stdout, stderr)
	}
	stdout, stderr := play(output{timestamps: true})
	if stdout != "2026-01-02T03:04:05.678901Z one\n2026-01-02T03:04:05.678901Z two\n2026-01-02T03:04:07.678901Z \xff\x00" ||
		stderr != "2026-01-02T03:04:06.678901Z err\n"+gap {
		t.Errorf("got %q, %q", stdout, stderr)
	}
	stdout, stderr = play(output{json: true})
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	if len(lines) != len(events) || stderr != "" {
		t.Fatalf("got %q, %q", stdout, stderr)
	}
	for i, want := range []string{
		`"event":"waiting"`, `"event":"started"`, `"stream":"stdout","offset":0,`, `"stream":"stderr"`, `"data_base64":"bwr/AA=="`, `"event":"gap","offset":14,"length":3`, `"exit_status":7`,
	} {
		if !json.Valid([]byte(lines[i])) || !strings.Contains(lines[i], want) {
			t.Errorf("no %s in %s", want, lines[i])
		}
	}
}

func TestClosedPipe(t *testing.T) {
	t.Parallel()
	if !closedPipe(&os.PathError{Err: syscall.EPIPE}) || closedPipe(syscall.ENOSPC) {
		t.Error("EPIPE, and only that, is a closed pipe")
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("plain")
	f.Add("a\x1b]0;x\a\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		p := printable(s)
		for _, r := range p {
			if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\u202e' {
				t.Fatalf("%q gives %q", s, p)
			}
		}
	})
}

// TestWarnOfKey: others should not read a file that holds our key.
func TestWarnOfKey(t *testing.T) {
	t.Parallel()
	if isWindows {
		t.Skip("has no such bits")
	}
	const inside = "-----BEGIN PRIVATE KEY-----"
	for _, tt := range []struct {
		key          string
		config, file os.FileMode
		want         string // the file that is named
	}{
		{inside, 0o600, 0o600, ""},
		{inside, 0o644, 0o600, "rnx-config.yml"},
		{"my.key", 0o644, 0o600, ""},
		{"my.key", 0o600, 0o640, "my.key"},
		{"none.key", 0o644, 0o644, ""},
		{"", 0o644, 0o644, ""},
	} {
		dir := t.TempDir()
		config := filepath.Join(dir, "rnx-config.yml")
		for name, mode := range map[string]os.FileMode{"rnx-config.yml": tt.config, "my.key": tt.file} {
			text := fmt.Sprintf("nodes: {a: {address: x, key: %q}}", tt.key)
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
				t.Fatal(err)
			}
		}
		var errOut bytes.Buffer
		a := &app{errOut: &errOut, config: config, node: "a"}
		for range 2 {
			if _, err := a.target(); err != nil {
				t.Fatal(err)
			}
		}
		want := ""
		if tt.want != "" {
			want = fmt.Sprintf("rnx: others may read %s, which holds your key: chmod go-rwx\n", filepath.Join(dir, tt.want))
		}
		if errOut.String() != want {
			t.Errorf("%+v: got %q", tt, errOut.String())
		}
	}
}

// TestEach: something is done with many arguments at once, and what came of it is shown
// in their order.
func TestEach(t *testing.T) {
	t.Parallel()
	var args []string
	for i := range 1000 {
		args = append(args, fmt.Sprint(i))
	}
	var under, most atomic.Int32
	all := make(chan struct{}) // closed once as many as may are under way
	var out, errOut bytes.Buffer
	a := &app{out: &out, errOut: &errOut}
	err := a.each(args, doing, func(arg string) (func() error, error) {
		n := under.Add(1)
		defer under.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		if n == doing {
			select {
			case <-all:
			default:
				close(all)
			}
		}
		select {
		case <-all:
		case <-time.After(time.Minute):
			t.Error("only some are done at once")
		}
		if arg == "7" || arg == "901" {
			return nil, errors.New("is bad")
		}
		return func() error { return a.println(arg) }, nil
	})
	want := strings.Join(slices.DeleteFunc(slices.Clone(args), func(arg string) bool { return arg == "7" || arg == "901" }), "\n") + "\n"
	if e, ok := errors.AsType[*exitError](err); !ok || e.status != 1 || out.String() != want || errOut.String() != "rnx: 7: is bad\nrnx: 901: is bad\n" {
		t.Errorf("%v, %.100q, %q", err, out.String(), errOut.String())
	}
	if got := most.Load(); got != doing {
		t.Errorf("%d at once, want %d", got, doing)
	}
	if err := a.each([]string{"x"}, doing, func(string) (func() error, error) { return nil, io.EOF }); err != io.EOF {
		t.Errorf("of a single one: %v", err)
	}
}
