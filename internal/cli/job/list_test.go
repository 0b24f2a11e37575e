package job

import (
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet"
)

func TestTable(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	jobs := []joblet.Job{
		{ID: "11111111-a", State: joblet.Running, Started: now.Add(-90 * time.Second), Spec: joblet.Spec{Command: "sh", Args: []string{"-c", "echo a\nb\x1b[2J"}, Name: "ü"}},
		{ID: "22222222-a", State: joblet.Failed, Started: now.Add(-time.Hour), Ended: now.Add(-time.Hour + 1234*time.Millisecond), Exit: &joblet.Exit{Signal: 9}, Spec: joblet.Spec{Command: "true", Runtime: "python-3.11"}},
		{ID: "33333333-a", State: joblet.Failed, Spec: joblet.Spec{Command: "\xff"}},
	}
	var b strings.Builder
	if err := writeJobs(&b, 0, false, jobs, now); err != nil {
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
	if err := writeJobs(&b, 90, false, jobs, now); err != nil {
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
		if err := writeJobs(&b, width, false, jobs, now); err != nil {
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
