package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet/internal/cli/app"
)

// execute runs rnx with a host at which nobody answers.
func execute(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	status = Run(t.Context(), append([]string{"--host=unix:///nonexistent/joblet.sock"}, args...), nil, &out, &errOut)
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
		{"job run --timeout=soon true", 125, `rnx: --timeout: "soon" is not a valid duration; examples: 90s, 2h30m, 3d`},
		{"job run --timeout=-1s true", 125, `rnx: --timeout: "-1s" is not a valid duration`},
		{"job run -e JOBLET_A=b true", 125, `rnx: --env: environment variable name "JOBLET_A"`},
		{"job run --timeout=2000w true", 125, `rnx: timeout `},
		{"job run --timeout=90 true", 125, `rnx: --timeout: "90" is not a valid duration`},
		{"job run --priority=high true", 125, `rnx: --priority: "high" is not a whole number`},
		{"job run --priority=99999999999999999999 true", 125, `rnx: --priority: "99999999999999999999" is out of range`},
		{"job run --init=perhaps true", 125, `rnx: --init: "perhaps" must be true or false`},
		{"job run --max-pids=some true", 125, `rnx: --max-pids: `},
		{"job run -v /a:/b true", 125, `rnx: unknown shorthand flag: 'v' in -v; jobs have no volumes; --upload and --upload-dir copy`},
		{"run --rm true", 125, `rnx: unknown flag: --rm; the record and output of a job stay until`},
		{"run --network=host true", 125, `rnx: unknown flag: --network; jobs have no networks`},
		{"run --entrypoint=x true", 125, `rnx: unknown flag: --entrypoint; the words after the flags are the command`},
		{"run --format={{.UUID}} true", 125, `rnx: --format: "rnx job run" takes no template, only --format=json`},
		{"ps --filter=x", 1, `rnx: unknown flag: --filter; use --status`},
		{"ps -a", 1, `rnx: no daemon answers`},
		{"stop -t 5 x", 1, `rnx: unknown shorthand flag: 't' in -t; use --grace`},
		{"update -m 1g x", 1, `rnx: unknown command "rnx update"; did you mean "rnx job update"?`},
		{"job update -m 1g x", 1, `rnx: no daemon answers`},
		{"images", 1, `rnx: unknown command "rnx images"; did you mean "rnx runtime list"?`},
		{"pull x", 1, `rnx: unknown command "rnx pull"; did you mean "rnx runtime build"?`},
		{"container ls", 1, `rnx: unknown command "rnx container"; did you mean "rnx job"?`},
		{"network ls", 1, `rnx: unknown command "rnx network"; jobs have no networks`},
		{"start x", 1, `rnx: unknown command "rnx start"; "rnx job run" starts a new job, "rnx job rerun" runs one again`},
		{"monitor top --format={{.CPU}}", 1, `rnx: --format: "rnx monitor top" takes no template`},
		{"ps --format=jsn", 1, `rnx: --format: "jsn" is not a valid format: use json, or a template`},
		{"ps --format={{.UUID}} --json", 1, `{"error":"--format and --json exclude each other"`},
		{"run --memory=5 true", 125, `rnx: --memory: "5": give a size with a unit, such as 512m`},
		{"run -m 64m --cpus=1.5 true", 125, `rnx: no daemon answers`},
		{"run --cpus=0 true", 125, `rnx: --cpus: "0": give a number of processors, such as 1.5`},
		{"job stop --grace=-1s a", 1, `rnx: --grace: "-1s" is not a valid duration`},
		{"job run --label==a true", 125, `rnx: --label: label is empty`},
		{"job run --env-file=/nonexistent/x true", 125, `rnx: --env-file: open /nonexistent/x: no such file`},
		{"job run --secret-env-file=/nonexistent/x true", 125, `rnx: --secret-env-file: open`},
		{"job run --retry-on=0 --retry=1 true", 125, `rnx: --retry-on: "0" is not a list of exit statuses: use numbers from 1 to 255`},
		{"job run --retry-delay=1s true", 125, `rnx: --retry-delay and --retry-on need --retry=N`},
		{"job run --retry=101 true", 125, `rnx: retries 101: must be between`},
		{"job run --overlap=skip true", 125, `rnx: overlap skip: requires a repeating job`},
		{"job run --priority=1001 true", 125, `rnx: priority 1001: must be`},
		{"job run --log-max=1 true", 125, `rnx: log limit 1: must be`},
		{"job run --log-max=lots true", 125, `rnx: --log-max: "lots" is not a valid size`},
		{"job run --schedule=whenever true", 125, `rnx: schedule "whenever": `},
		{"job run -d --download=x true", 125, `rnx: --download: rnx does not wait for the end of this job; use "rnx job cp" when it has ended`},
		{"job run --schedule=+1h --download=x true", 125, `rnx: --download: rnx does not wait`},
		{"job run --download-to=x true", 125, `rnx: --download-to needs --download=PATTERN`},
		{"job run --upload=/nonexistent/x true", 125, `rnx: --upload: stat /nonexistent/x: no such file`},
		{"job run --upload=/ true", 125, `rnx: --upload /: it has no name`},
		{"job run --upload=/usr/bin --upload=/bin/../bin true", 125, `rnx: --upload /usr/bin and /bin/../bin: both would arrive as /work/bin`},
		{"job run --upload-dir=/etc/passwd true", 125, `rnx: --upload-dir: /etc/passwd is not a directory`},
		{"job run --stdin=/nonexistent/x true", 125, `rnx: --stdin: open /nonexistent/x`},
		{"job run --stdin=/etc true", 125, `rnx: --stdin: /etc is a directory`},
		{"job run -e NOT_SET_AT_ALL true", 125, `rnx: --env NOT_SET_AT_ALL: the environment of rnx has no such variable`},
		{"job run --workdir=../x true", 125, `rnx: workdir "../x": must be an absolute path`},
		{"job run true", 125, `rnx: no daemon answers at unix:///nonexistent/joblet.sock: `},
		{"job list", 1, `rnx: no daemon answers at`},
		{"job list --status=busy", 1, `rnx: --status: unknown state "busy"`},
		{"job list --limit=-1", 1, `rnx: --limit -1: must not be negative`},
		{"job list --label==x", 1, `rnx: --label: label is empty`},
		{"job list --since=yesterday", 1, `rnx: --since: "yesterday" is not a valid time`},
		{"job list --format={{.Nope}}", 1, `rnx: --format: there is no field Nope; see`},
		{"job list --format={{nope}}", 1, `rnx: --format:1: function "nope" not defined`},
		{"job list -q --format={{.UUID}}", 1, `rnx: --format, --quiet and --json exclude each other`},
		{"job status --format={{ x", 1, `rnx: --format:1: `},
		{"job log --since=1h --until=2h x", 1, `rnx: --until 2h: must be later than --since 1h`},
		{"job log --until=x y", 1, `rnx: --until: "x" is not a valid time`},
		{"job cancel", 1, `rnx: no job given`},
		{"job prune", 1, `rnx: which jobs? Give --older-than=DURATION`},
		{"job prune --all --older-than=1d", 1, `rnx: --all and --older-than exclude each other`},
		{"job prune --older-than=-1h", 1, `rnx: --older-than: "-1h" is not a valid duration`},
		{"job prune --all --status=running", 1, `rnx: --status: a job that is RUNNING has not ended`},
		{"job rerun -f a b", 1, `rnx: --follow: 2 jobs given`},
		{"job rerun -f a", 125, `rnx: no daemon answers at`},
		{"job cp a:b", 1, `rnx: 1 arguments given: JOB:PATH and DEST are needed`},
		{"job cp data.csv 3f2a:/work", 1, `rnx: files go into a job before it starts: rnx job run --upload=data.csv`},
		{"job cp ./x:y z", 1, `rnx: "./x:y" names no job`},
		{"job cp a:/etc/passwd .", 1, `rnx: a:/etc/passwd: only files in /work`},
		{"job cp a:x/../../y .", 1, `rnx: a:x/../../y: must not contain ".."`},
		{"job metrics", 1, `rnx: no job given; "rnx job list" shows them`},
		{"job metrics --interval=10ms a", 1, `rnx: --interval: "10ms": must be from 100ms to 1h`},
		{"job metrics --since=1h --until=2h a", 1, `rnx: --until 2h: must be later than --since 1h`},
		{"job metrics --until=x a", 1, `rnx: --until: "x" is not a valid time`},
		{"job metrics --limit=-1 a", 1, `rnx: --limit -1: must not be negative`},
		{"job metrics --history --interval=2s a", 1, `rnx: --interval is for the samples to come`},
		{"job metrics a", 1, `rnx: no daemon answers at`},
		{"job top a b", 1, `rnx: 2 arguments given, but the command takes one job`},
		{"job top --sort=name a", 1, `rnx: --sort: "name": must be cpu, mem or pid`},
		{"job top --interval=0 a", 1, `rnx: --interval: "0": must be from 100ms to 1h`},
		{"job tree", 1, `rnx: no job given; "rnx job list" shows them`},
		{"job log a b", 1, `rnx: 2 arguments given, but the command takes one job`},
		{"job log --tail=-1 a", 1, `rnx: --tail -1: must not be negative`},
		{"job stop", 1, `rnx: no job given; "rnx job list" shows the jobs; in a script, "xargs -r rnx job stop" accepts`},
		{"runtime build /nonexistent/x.yaml", 1, `rnx: cannot read the recipe: open /nonexistent/x.yaml: no such file`},
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
	walk(newRootCommand(&app.App{}))
	for _, args := range []string{"", "job", "runtime", "job run --help", "help job run", "completion bash"} {
		if status, stdout, stderr := execute(t, strings.Fields(args)...); status != 0 || stdout == "" || stderr != "" {
			t.Errorf("rnx %s: got %d, %d bytes, %q", args, status, len(stdout), stderr)
		}
	}
}
