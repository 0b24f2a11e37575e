package job

import (
	"strings"
	"testing"
)

func TestMissingHint(t *testing.T) {
	t.Parallel()
	runtimes := func() []string { return []string{"python-3.11"} }
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"ls -l"}, "give each word as an argument of its own: rnx run ls -l; to run a shell command line: rnx run bash -c 'ls -l'"},
		{[]string{"ls | wc"}, "to run a shell command line: rnx run bash -c 'ls | wc'"},
		{[]string{"cd", "/tmp"}, "cd is a shell builtin: use --workdir=/tmp to set the working directory"},
		{[]string{"export", "A=b"}, "export is a shell builtin: rnx run bash -c 'export A=b'"},
		{[]string{"A=b", "env"}, "use --env=A=b to set a variable"},
		{[]string{"ubuntu", "ls"}, "Joblet runs no images"},
		{[]string{"python:3.12", "python3"}, "Joblet runs no images"},
		{[]string{"registry.example.com/x"}, "Joblet runs no images"},
		{[]string{"python-3.11", "python3"}, "python-3.11 is a runtime: rnx run --runtime=python-3.11 COMMAND"},
		{[]string{"./x/y"}, ""},
		{[]string{"/nope"}, ""},
		{[]string{"nope"}, ""},
	} {
		if got := missingHint(tt.args, runtimes); !strings.HasPrefix(got, tt.want) || tt.want == "" && got != "" {
			t.Errorf("%q: got %q, want %q", tt.args, got, tt.want)
		}
	}
}
