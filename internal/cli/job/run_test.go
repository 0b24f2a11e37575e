package job

import (
	"reflect"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
)

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
