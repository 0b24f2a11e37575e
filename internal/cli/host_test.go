package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joblet/joblet/internal/cli/app"
)

// TestWrongConfig: a configuration that was named and is not right is an error, and
// does not stand for this machine.
func TestWrongConfig(t *testing.T) {
	t.Setenv("RNX_CONFIG", "")
	t.Setenv("RNX_HOST", "")
	t.Setenv("RNX_NODE", "")
	t.Setenv("JOBLET_RUN_DIR", t.TempDir())
	path := filepath.Join(t.TempDir(), "rnx-config.yml")
	for text, want := range map[string]string{
		"nodez: {lab: {address: a}}": `unknown key "nodez"; did you mean "nodes"?`,
		"nodes: {}":                  "has no nodes",
		"":                           "has no nodes",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		check := func(args ...string) {
			t.Helper()
			var out, errOut bytes.Buffer
			a := &app.App{In: strings.NewReader(""), Out: &out, ErrOut: &errOut}
			if status := a.Execute(t.Context(), newRootCommand(a), args); status == 0 || !strings.Contains(errOut.String(), want) {
				t.Errorf("%q, %q: got %d, %s%s", text, args, status, out.String(), errOut.String())
			}
		}
		check("--config="+path, "job", "list")
		check("--config="+path, "nodes")
		t.Setenv("RNX_CONFIG", path)
		check("job", "list")
		check("nodes")
		t.Setenv("RNX_CONFIG", path+".none")
		want = "no such file"
		check("job", "list")
		check("nodes")
		t.Setenv("RNX_CONFIG", "")
	}
}
