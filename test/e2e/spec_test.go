package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

// The commands of the specification, each with the result it describes.

// table is the job's process table as ps prints it: the lines' USER, PID and
// COMMAND.
func table(t *testing.T, out string) (rows [][3]string) {
	t.Helper()
	_, body, ok := strings.Cut(out, "COMMAND\n")
	if !ok {
		t.Fatalf("no process table in:\n%s", out)
	}
	for line := range strings.Lines(body) {
		f := strings.Fields(line)
		if len(f) < 11 || (f[0] != "root" && f[0] != "0") {
			break
		}
		rows = append(rows, [3]string{f[0], f[1], strings.Join(f[10:], " ")})
	}
	return rows
}

func checkTable(t *testing.T, out string, want ...string) {
	t.Helper()
	rows := table(t, out)
	var got []string
	for _, r := range rows {
		got = append(got, r[1]+" "+r[2])
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("process table:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestSpecProcessTable(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	start := time.Now()
	out := d.must(t, runtime, "bash", "-c", "sleep 30 & sleep 40 & ps aux")
	early := func() bool { return strings.Contains(out, " [sleep]\n") || strings.Count(out, "bash -c sleep 30 ") > 1 }
	for end := time.Now().Add(patience); early() && time.Now().Before(end); {
		// ps saw it before execve or within, before its arguments were in place, as
		// it may on any host that is busy.
		start = time.Now()
		out = d.must(t, runtime, "bash", "-c", "sleep 30 & sleep 40 & ps aux")
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("the job ended after %v: its sleeps must die with PID 1", took)
	}
	checkTable(t, out, "1 /usr/bin/bash -c sleep 30 & sleep 40 & ps aux", "2 sleep 30", "3 sleep 40", "4 ps aux")
}

func TestSpecComplexJob(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	// The shell reads this as three background lists and then "… && wait"; the
	// first is `echo && sleep 60`, so the job lasts a minute unless sleep is
	// shorter. The specification's own words are used but for that number.
	script := `echo 'Starting processes...' && sleep 6 & echo 'Sleep started' && python3 -c 'import time; [print(f"Python process {i}") or time.sleep(1) for i in range(5)]' & echo 'Python started' && ps aux && echo 'Waiting for processes...' && wait`
	out := d.must(t, runtime, "bash", "-c", script)
	for _, want := range []string{"Starting processes...", "Sleep started", "Python started", "Waiting for processes...",
		"Python process 0", "Python process 4"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	rows := table(t, out)
	if len(rows) < 4 || rows[0][1] != "1" || !strings.HasPrefix(rows[0][2], "/usr/bin/bash -c echo") {
		t.Errorf("process table: %q", rows)
	}
	for i, r := range rows { // two subshells, what they run, and ps: nothing else, nothing of the host
		if !strings.Contains(r[2], "bash") && !strings.Contains(r[2], "sleep 6") && !strings.Contains(r[2], "python3") && r[2] != "ps aux" && r[2] != "[sleep]" {
			t.Errorf("row %d is a process of somebody else: %q", i, r)
		}
	}
}

func TestSpecSynchronization(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	start := time.Now()
	out := d.must(t, runtime, "bash", "-c", "(sleep 10; echo 'Child 1 done') & (sleep 15; echo 'Child 2 done') & echo 'Both children started' && ps aux && wait && echo 'All processes completed'")
	took := time.Since(start)
	if took < 15*time.Second || took > 25*time.Second {
		t.Errorf("took %v, want about 15 s", took)
	}
	for _, want := range []string{"Both children started\n", "Child 1 done\nChild 2 done\nAll processes completed\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	for _, r := range table(t, out)[1:] {
		if !strings.Contains(r[2], "bash -c (sleep 10") && !strings.HasPrefix(r[2], "sleep 1") && r[2] != "ps aux" && r[2] != "[sleep]" {
			t.Errorf("a process of somebody else: %q", r)
		}
	}
}

func TestSpecManagement(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	tests := []struct {
		name   string
		args   []string
		want   string // regular expression over stdout
		status int
	}{
		{"ps", []string{"ps", "aux"}, `(?s)^USER.*\n(root|0) +1 .* /usr/bin/ps aux\n$`, 0},
		{"top", []string{"top", "-b", "-n1"}, `(?s)Tasks: +1 total.*\n +1 (root|0) .* top\n`, 0},
		{"background", []string{"bash", "-c", "sleep 1 &"}, `^$`, 0},
		{"background and wait", []string{"bash", "-c", "(sleep 0.2; echo done) & wait"}, `^done\n$`, 0},
		{"kill by job number", []string{"bash", "-c", "sleep 60 & kill %1"}, `^$`, 0},
		{"kill by job number, seen by wait", []string{"bash", "-c", "sleep 60 & kill %1; wait %1; echo $?"}, `^143\n$`, 0},
		{"kill by process number", []string{"bash", "-c", "sleep 60 & kill 2; wait 2; echo $?"}, `^143\n$`, 0},
		{"trap", []string{"bash", "-c", "trap 'kill $(jobs -p)' EXIT; sleep 60 & sleep 0.1 & wait -n; echo leaving"}, `^leaving\n$`, 0},
		{"wait in the middle", []string{"bash", "-c", "sleep 0.1 & sleep 0.2 & wait; echo both"}, `^both\n$`, 0},
		{"error handling", []string{"bash", "-c", "false & wait $! || echo 'Task failed'"}, `^Task failed\n$`, 0},
		{"top of one process", []string{"bash", "-c", "sleep 5 & top -b -n1 -p $!"}, `(?s) +2 (root|0) .* (sleep|bash)\n`, 0},
		{"hostname has the short id", []string{"bash", "-c", `[ "$(hostname)" = "job-${JOBLET_JOB_ID:0:8}" ] && echo same`}, `^same\n$`, 0},
		{"status", []string{"bash", "-c", "exit 42"}, `^$`, 42},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := d.job(t, append([]string{runtime}, test.args...)...)
			if r.status != test.status || !regexp.MustCompile(test.want).MatchString(r.stdout) {
				t.Errorf("%v\nwant status %d and %s", r, test.status, test.want)
			}
		})
	}
}

func TestRuntimePython(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	out := d.must(t, runtime, "python3", "-c", `
import sys, numpy, scipy, pandas, sklearn, matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
from sklearn.linear_model import LinearRegression
m = LinearRegression().fit(numpy.arange(10).reshape(-1, 1), numpy.arange(10) * 2 + 1)
plt.plot([1, 2]); plt.savefig("/work/plot.png")
print(sys.version_info[:2], round(m.coef_[0], 6), int(numpy.linalg.det(numpy.eye(3))), pandas.Series([1, 2]).sum())
`)
	if out != "(3, 11) 2.0 1 3\n" {
		t.Errorf("got %q", out)
	}
	if out := d.must(t, runtime, "bash", "-c", "which python python3 ps top && python --version"); !strings.Contains(out, "Python 3.11") {
		t.Errorf("got %q", out)
	}
	if r := d.job(t, runtime, "touch", "/usr/x"); r.status == 0 {
		t.Error("a job can write to its runtime")
	}
}
