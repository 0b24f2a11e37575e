package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

// TestClientBadInput: what cannot pass through a command line can come through
// the API, from any client; the daemon refuses it and nothing is left.
func TestClientBadInput(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c, err := client.Dial(t.Context(), d.host())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tests := []struct {
		name string
		spec joblet.Spec
		kind joblet.Kind
	}{
		{"empty", joblet.Spec{}, joblet.InvalidArgument},
		{"NUL in an argument", joblet.Spec{Command: "echo", Args: []string{"a\x00b"}}, joblet.InvalidArgument},
		{"NUL in the command", joblet.Spec{Command: "ec\x00ho"}, joblet.InvalidArgument},
		{"10 MiB of arguments", joblet.Spec{Command: "true", Args: slices.Repeat([]string{strings.Repeat("x", 100<<10)}, 103)}, joblet.InvalidArgument},
		{"10 MiB in one argument", joblet.Spec{Command: "true", Args: []string{strings.Repeat("x", 10<<20)}}, joblet.InvalidArgument},
		{"many arguments", joblet.Spec{Command: "true", Args: make([]string, joblet.MaxArgEnvSize/joblet.StringCost)}, joblet.InvalidArgument},
		{"runtime outside", joblet.Spec{Command: "true", Runtime: "../../etc"}, joblet.InvalidArgument},
		{"unknown runtime", joblet.Spec{Command: "true", Runtime: "nope"}, joblet.NotFound},
		{"workdir outside", joblet.Spec{Command: "true", WorkDir: "/work/../.."}, joblet.InvalidArgument},
		{"not found", joblet.Spec{Command: "no-such"}, joblet.CommandNotFound},
		{"a directory", joblet.Spec{Command: "/usr"}, joblet.NotExecutable},
	}
	for _, test := range tests {
		_, err := c.Run(t.Context(), test.spec)
		if err == nil || joblet.KindOf(err) != test.kind || len(err.Error()) > 500 || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v (%v), want one line of kind %v", test.name, err, joblet.KindOf(err), test.kind)
		}
	}
	if left, err := os.ReadDir(filepath.Join(d.state, "jobs")); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
	// As much as execve takes passes.
	large := slices.Repeat([]string{strings.Repeat("x", 100<<10)}, 15)
	job, err := c.Run(t.Context(), joblet.Spec{Command: "sh", Args: append([]string{"-c", "exit $#", "sh"}, large...)})
	if err != nil {
		t.Fatal(err)
	}
	if job, err = c.Wait(t.Context(), job.ID); err != nil || job.Exit == nil || job.Exit.Code != 15 {
		t.Errorf("1.5 MiB of arguments: %+v %v", job.Exit, err)
	}
}

// TestSecretsStaySecret: a secret reaches the job and nothing else.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const secret = "hunter2-7f3a9c"
	c, err := client.Dial(t.Context(), d.host())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	job, err := c.Run(t.Context(), joblet.Spec{Command: "sh", Args: []string{"-c", `test "$TOKEN" = hunter2-7f"3a9c"`}, SecretEnv: map[string]string{"TOKEN": secret}})
	if err != nil {
		t.Fatal(err)
	}
	if job, err = c.Wait(t.Context(), job.ID); err != nil || job.State != joblet.Completed {
		t.Errorf("the job has no secret: %+v %v", job, err)
	}
	if job.Spec.SecretEnv["TOKEN"] != joblet.Mask {
		t.Errorf("answer: %q", job.Spec.SecretEnv)
	}
	d.kill(t)
	err = filepath.WalkDir(d.state, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), secret) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
}
