package job

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cli/term"
	"github.com/joblet/joblet/internal/testenv/peer"
)

func TestTop(t *testing.T) {
	t.Parallel()
	// A has three samples: the first look is ahead of the stream, and the second
	// of those behind it is shown. It lasts a second, in which PID 1 took 250 ms.
	status, stdout, stderr := rnxAt(t, serveWatched(t).host, "job", "top", peer.IDA)
	want := `Job        aaaaaaaa (web): RUNNING for 1m32s: 'sh\x1b[2J'
CPU        1600.0% of 200%; user 5s, system 0s; held back for 1.5s, 1.5s in all
Memory     64 MiB of 128 MiB (50.0%), 0 B at most; 0 B of swap
Processes  11; with threads 1000 of 64, 0 at most
I/O        2.0 MiB/s read, 512 B/s written; 5.0 MiB and 1.0 KiB in all

PID  HOST-PID  UID  STATE  THREADS  CPU%  MEMORY   TIME  COMMAND
1    1001      1    S      1        25.0  9.0 MiB  1.5s  sh -c x
4    1004      4    S      4        0.0   6.0 MiB  4s    [zz]
3    1003      3    S      3        0.0   7.0 MiB  3s    put in
2    1002      2    S      2        0.0   8.0 MiB  2s    a\x1b[2Jb\nc \u202e` + "\uFFFD" + `
and 7 more that were not looked at
`
	if status != 0 || stdout != want || stderr != "" {
		t.Errorf("got %d, %q\n%swant\n%s", status, stderr, stdout, want)
	}
	for order, want := range map[string]string{"cpu": "1432", "mem": "1234", "pid": "1234"} {
		_, stdout, _ := rnxAt(t, serveWatched(t).host, "job", "top", "--sort="+order, peer.IDA)
		got := ""
		_, table, _ := strings.Cut(stdout, "COMMAND\n")
		for line := range strings.Lines(table) {
			got += line[:1]
		}
		if got != want+"a" {
			t.Errorf("by %s: got %s, want %s", order, got, want)
		}
	}
	status, _, stderr = rnxAt(t, serveWatched(t).host, "job", "top", peer.IDC)
	if status != 1 || stderr != "rnx: job cccccccc has ended: COMPLETED\n" {
		t.Errorf("got %d, %q", status, stderr)
	}
}

func TestTopJSON(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args string
		want []float64 // PID 1's CPU%
	}{
		{"job top --json --sort=pid " + peer.IDA, []float64{10, 25, 25}}, // until it has ended
		{"job top --json --sort=pid --once " + peer.IDA, []float64{25}},
	} {
		status, stdout, stderr := rnxAt(t, serveWatched(t).host, strings.Fields(tt.args)...)
		lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
		if status != 0 || stderr != "" || len(lines) != len(tt.want) {
			t.Fatalf("%s: got %d, %q, %q", tt.args, status, stdout, stderr)
		}
		for i, line := range lines {
			var got lookJSON
			if err := json.Unmarshal([]byte(line), &got); err != nil {
				t.Fatal(err)
			}
			if got.UUID != peer.IDA || got.Name != "web" || got.Status != joblet.Running || got.Omitted != 7 || len(got.Processes) != 4 || got.Limits.CPUPercent != 200 ||
				got.Metrics.UUID != peer.IDA || got.Metrics.PIDs == 0 || got.Processes[0].PID != 1 || got.Processes[0].CPUPercent != tt.want[i] || got.Processes[1].Name != "a\nb" {
				t.Errorf("%s: got %s", tt.args, line)
			}
		}
	}
}

// TestTopFits: in a terminal the first lines are those that count.
func TestTopFits(t *testing.T) {
	t.Parallel()
	l := look{job: joblet.Job{ID: peer.IDA, State: joblet.Running, Started: clock(-1), Spec: joblet.Spec{Command: strings.Repeat("x", 300)}}, sample: someSamples()[0]}
	for pid := range 3000 {
		l.processes.All = append(l.processes.All, joblet.Process{PID: pid + 1, Memory: int64(pid), Command: strings.Repeat("y", 1000)})
	}
	for _, height := range []int{1, 2, 5, 9, 24, 100} {
		page := term.Fit(topPage(l, "mem", 60, height), 60, height)
		lines := strings.Split(strings.TrimSuffix(page, "\n"), "\n")
		if len(lines) > max(1, height-1) && height > 1 || height >= 24 && (len(lines) != height-1 || !strings.HasPrefix(lines[7], "3000 ")) {
			t.Errorf("%d lines for %d:\n%s", len(lines), height, page)
		}
		for _, line := range lines {
			if len([]rune(line)) > 60 {
				t.Errorf("a line of %d: %s", len([]rune(line)), line)
			}
		}
	}
}
