package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/joblet/joblet/internal/testenv"
)

// TestPlainBuild: a daemon from a plain go build or go install, which has no embedded
// shim and is its own, runs jobs.
func TestPlainBuild(t *testing.T) {
	t.Parallel()
	testenv.RequireProgram(t, "go", "golang")
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// As in a fresh clone: without the shim that scripts/build leaves in the tree.
	text, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(top, "internal/sandbox/native/embed/joblet-shim"): ""}})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, text, 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlay, "-o", filepath.Join(dir, "joblet"), "./cmd/joblet")
	build.Dir = top
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}

	d := withState(t)
	d.bin = filepath.Join(dir, "joblet")
	d.serve(t)
	if out := d.must(t, "sh", "-c", "echo $$"); out != "1\n" {
		t.Errorf("the job printed %q", out)
	}
	if r := d.job(t, "sh", "-c", "exit 3"); r.status != 3 {
		t.Errorf("status of the job: %v", r)
	}
	id := d.detach(t, "--max-memory=64M", "sleep", "600")
	d.says(t, 0, "sleep\n", "", "job", "exec", id, "cat", "/proc/1/comm")
	d.kill(t)
	if err := d.start(); err != nil { // its shim outlives it
		t.Fatal(err)
	}
	d.says(t, 0, "sleep\n", "", "job", "exec", id, "cat", "/proc/1/comm")
	d.says(t, 0, id+"\n", "", "job", "stop", id)
}
