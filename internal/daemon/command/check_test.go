package command

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/joblet/joblet/internal/hostcheck"
)

func TestPrintFindings(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := printFindings(&out, []hostcheck.Finding{
		{Feature: "tmpfs", Status: hostcheck.Present, Cost: "no jobs"},
		{Feature: "memory.high", Status: hostcheck.Lacking, Found: "v1", Cost: "no --memory-high", Mend: "boot with v2"},
	})
	want := `FEATURE      STATUS   FOUND  WITHOUT IT
tmpfs        ok       -      no jobs
memory.high  lacking  v1     no --memory-high

To mend:
  memory.high: boot with v2

2 features, 1 lacking
`
	if err != nil || out.String() != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, &out, want)
	}
}

func TestCheckJSON(t *testing.T) {
	var out bytes.Buffer
	if err := (checkOptions{StateDir: t.TempDir(), JSON: true}).run(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	var found []hostcheck.Finding
	if err := json.Unmarshal(out.Bytes(), &found); err != nil || len(found) < 30 {
		t.Errorf("%d features, %v", len(found), err)
	}
	out.Reset()
	if err := (checkOptions{StateDir: "relative"}).run(t.Context(), &out); err == nil || !strings.Contains(err.Error(), "--state-dir") || out.Len() > 0 {
		t.Errorf("got %v, %s", err, &out)
	}
}
