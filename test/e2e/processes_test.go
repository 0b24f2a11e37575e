package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/testenv"
)

// process is one as "rnx job tree --json" and "rnx job top --json" show it.
type process struct {
	PID        int     `json:"pid"`
	HostPID    int     `json:"host_pid"`
	PPID       int     `json:"ppid"`
	UID        int     `json:"uid"`
	State      string  `json:"state"`
	Threads    int     `json:"threads"`
	CPUPercent float64 `json:"cpu_percent"`
	CPUMS      float64 `json:"cpu_ms"`
	Memory     int64   `json:"memory_bytes"`
	Name       string  `json:"name"`
	Command    string  `json:"command"`
	Depth      int     `json:"depth"`
}

// processes returns what "rnx job tree --json" shows.
func (d *daemon) processes(t *testing.T, id string) []process {
	t.Helper()
	r := d.rnx(t.Context(), "job", "tree", "--json", id)
	var v struct {
		UUID      string
		Processes []process
		Omitted   int
	}
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil || r.status != 0 || r.stderr != "" || v.UUID != id || v.Omitted != 0 {
		t.Fatalf("rnx job tree --json %s: %v, %v", id, r, err)
	}
	return v.Processes
}

// numbers returns what a process of the host is called in its PID namespaces, nil
// when there is none.
func numbers(hostPID int) []string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", hostPID))
	if err != nil {
		return nil
	}
	_, after, _ := bytes.Cut(status, []byte("\nNSpid:"))
	line, _, _ := bytes.Cut(after, []byte{'\n'})
	return strings.Fields(string(line))
}

// restless runs processes in all the ways in which they try to get away: the
// sleeps of 1000 s and more tell which is which.
const restless = `
(setsid sh -c 'sleep 1000 & exec sleep 1001' &)
sh -c '(sleep 1002 &)'
sh -c 'trap "" HUP INT QUIT TERM USR1; exec sleep 1003' &
sh -c 'sleep 0.2 & exec sleep 1008' &
sh -c 'sleep 1004; :' &
setpriv --reuid=1000 sleep 1005 &
cp /usr/bin/sleep "$(printf '/tmp/a\nb\033[2J')"
"$(printf '/tmp/a\nb\033[2J')" 1006 &
bash -c 'exec -a "$(printf "\033]0;x\a\n|-init(1)  1  ")" sleep 1007' &
wait`

func TestProcesses(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := d.detach(t, "--name=restless", "sh", "-c", restless)
	var all []process
	find := func(seconds int) (p process) {
		i := slices.IndexFunc(all, func(p process) bool {
			return strings.HasSuffix(p.Command, fmt.Sprintf(" %d", seconds)) && p.Name != "sh" && p.Name != "bash" && p.Name != "setpriv"
		})
		if i < 0 {
			return p
		}
		return all[i]
	}
	isZombie := func(p process) bool { return p.State == "Z" }
	if !eventually(patience, func() bool {
		all = d.processes(t, id)
		for seconds := 1000; seconds <= 1008; seconds++ {
			if find(seconds).PID == 0 {
				return false
			}
		}
		return slices.ContainsFunc(all, isZombie)
	}) {
		t.Fatalf("not all are listed: %+v", all)
	}

	byPID := map[int]process{}
	for _, p := range all {
		byPID[p.PID] = p
		if got := numbers(p.HostPID); len(got) != 2 || got[0] != strconv.Itoa(p.HostPID) || got[1] != strconv.Itoa(p.PID) {
			t.Errorf("the host calls %+v %v", p, got)
		}
		if p.Threads != 1 || p.State == "" || p.UID != map[bool]int{true: 1000}[p == find(1005)] {
			t.Errorf("got %+v", p)
		}
		if parent, ok := byPID[p.PPID]; p.PID == 1 && (p.PPID != 0 || p.Depth != 0) || p.PID != 1 && (!ok || p.Depth != parent.Depth+1) {
			t.Errorf("%+v is not below its parent", p)
		}
	}
	// What is orphaned is PID 1's.
	for _, seconds := range []int{1001, 1002} {
		if p := find(seconds); p.PPID != 1 {
			t.Errorf("got %+v", p)
		}
	}
	if a, b := find(1000), find(1001); a.PPID != b.PID {
		t.Errorf("got %+v and %+v", a, b)
	}
	if p := find(1006); p.Name != "a\nb\x1b[2J" || p.Command != "/tmp/a\nb\x1b[2J 1006" {
		t.Errorf("got %+v", p)
	}
	// One has ended, and whose child it is does not want to know.
	if zombie := all[slices.IndexFunc(all, isZombie)]; zombie.PPID != find(1008).PID || zombie.Command != "[sleep]" {
		t.Errorf("got %+v", zombie)
	}
	if len(all) != 12 { // PID 1, nine sleeps, the shell that waits for one, and the zombie
		t.Errorf("got %+v", all)
	}
	// All are counted as well.
	r := d.rnx(t.Context(), "job", "top", "--json", "--once", "restless")
	var top struct {
		Metrics   struct{ PIDs int }
		Processes []process
	}
	if err := json.Unmarshal([]byte(r.stdout), &top); err != nil || r.status != 0 || top.Metrics.PIDs != len(all) || len(top.Processes) != len(all) {
		t.Errorf("%d processes: %v, %v", len(all), r, err)
	}

	tree := d.rnx(t.Context(), "job", "tree", id)
	if tree.status != 0 || strings.Count(tree.stdout, "\n") != len(all)+1 || strings.ContainsFunc(tree.stdout, func(r rune) bool { return r < ' ' && r != '\n' }) {
		t.Errorf("%d processes: %v", len(all), tree)
	}
	for _, shape := range []string{
		`^PROCESS +HOST-PID  COMMAND\n` + fmt.Sprintf(`sh\(1\) +%d +/usr/bin/sh -c \\n`, byPID[1].HostPID),
		fmt.Sprintf("\n[|`]-sleep\\(%d\\) +%d +sleep 1002\n", find(1002).PID, find(1002).HostPID),
		"\n[|`]-sh\\(\\d+\\) +\\d+ +sh -c sleep 1004; :\n[| ] `-sleep\\(\\d+\\) +\\d+ +sleep 1004\n",
		"\n[|`]-sleep\\(\\d+\\) +\\d+ +sleep 1001\n[| ] `-sleep\\(\\d+\\) +\\d+ +sleep 1000\n",
		`-a\\nb\\x1b\[2J\(\d+\) +\d+ +/tmp/a\\nb\\x1b\[2J 1006` + "\n",
		`-sleep\(\d+\) +\d+ +\\x1b\]0;x\\a\\n\|-init\(1\)  1 +1007` + "\n",
	} {
		if !regexp.MustCompile(shape).MatchString(tree.stdout) {
			t.Errorf("no %q in\n%s", shape, tree.stdout)
		}
	}
	table := d.rnx(t.Context(), "job", "top", "--sort=pid", id)
	if table.status != 0 || !regexp.MustCompile(`\nPID +HOST-PID +UID +STATE +THREADS +CPU% +MEMORY +TIME +COMMAND\n`+fmt.Sprintf(`1 +%d +0 +S +1 `, byPID[1].HostPID)).MatchString(table.stdout) ||
		strings.Count(table.stdout, "\n") != len(all)+7 || strings.ContainsFunc(table.stdout, func(r rune) bool { return r < ' ' && r != '\n' }) {
		t.Errorf("got %v", table)
	}

	// A paused job's are still there to be seen.
	d.says(t, 0, id+"\n", "", "job", "pause", id)
	if paused := d.processes(t, id); len(paused) != len(all) {
		t.Errorf("paused: %+v", paused)
	}
	d.says(t, 0, id+"\n", "", "job", "resume", id)

	d.says(t, 0, "(?s).*", "", "job", "stop", "--grace=100ms", id)
	for _, p := range all {
		if got := numbers(p.HostPID); len(got) == 2 && got[1] == strconv.Itoa(p.PID) && !eventually(patience, func() bool { return numbers(p.HostPID) == nil }) {
			t.Errorf("%+v lives on", p)
		}
	}
	waits := d.detach(t, "--schedule=+1h", "true")
	for _, command := range []string{"tree", "top"} {
		d.says(t, 1, "", fmt.Sprintf("rnx: job %.8s has ended: STOPPED\n", id), "job", command, id)
		d.says(t, 1, "", fmt.Sprintf("rnx: job %.8s does not run: it is SCHEDULED\n", waits), "job", command, waits)
		d.says(t, 1, "", "rnx: no job none: see rnx job list\n", "job", command, "none")
	}
}

// cpu returns the processor time that the daemon has used.
func (d *daemon) cpu(t *testing.T) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	ticks := 0
	for _, field := range fields[11:13] { // user and system (proc_pid_stat(5))
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// TestProcessesMany: a job of very many processes is listed in a moment, and
// neither it nor the daemon is held up by who wants to see them.
func TestProcessesMany(t *testing.T) {
	t.Parallel()
	const n = 3000
	d := newDaemon(t)
	id := d.detach(t, "sh", "-c", fmt.Sprintf(`mkfifo /tmp/f; exec 3<>/tmp/f; i=0; while [ $i -lt %d ]; do (read x <&3; :) & i=$((i+1)); done; echo ready; wait`, n))
	if !eventually(3*time.Minute, func() bool { return strings.Contains(d.stdout(t, id), "ready") }) {
		t.Fatal("they are not there")
	}
	c := d.dial(t)
	// What counts is the daemon's own time: others use this machine as well.
	looks, untold := 0, n
	before, start := d.cpu(t), time.Now()
	for looks < 5 || untold > 0 && looks < 30 { // on a busy host it may not have the time for all at first
		looks++
		p, err := c.Processes(t.Context(), id)
		if err != nil || len(p.All)+p.Omitted != n+1 {
			t.Fatalf("%d and %d more: %v", len(p.All), p.Omitted, err)
		}
		without := p.Omitted // there was no time for them, or for their commands
		for _, q := range p.All {
			if q.Command == "[sh]" {
				without++
			} else if !strings.HasPrefix(q.Command, "/usr/bin/sh -c mkfifo ") {
				t.Fatalf("got %+v", q)
			}
		}
		untold = min(untold, without)
	}
	used := (d.cpu(t) - before) / time.Duration(looks)
	t.Logf("%d processes in %v, of which the daemon worked %v", n, time.Since(start)/time.Duration(looks), used)
	if used > time.Second || untold > 0 {
		t.Errorf("it took %v, and %d were left out", used, untold)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if p, err := c.Processes(ctx, id); err == nil && len(p.All)+p.Omitted != n+1 || err != nil && ctx.Err() == nil {
					t.Errorf("%d: %v", len(p.All), err)
				}
			}
		})
	}
	best := time.Hour
	for range 5 {
		start := time.Now()
		if got := d.must(t, "echo", "x"); got != "x\n" {
			t.Errorf("got %q", got)
		}
		best = min(best, time.Since(start))
	}
	cancel()
	wg.Wait()
	t.Logf("a job in %v meanwhile", best)
	if best > 2*time.Second {
		t.Errorf("a job took %v", best)
	}
	if got := d.get(t, id); got.State != joblet.Running {
		t.Errorf("got %+v", got)
	}
}

// TestProcessesZombies: processes that have ended and that nobody waits for count,
// and are listed.
func TestProcessesZombies(t *testing.T) {
	t.Parallel()
	const n = 1500
	d := newDaemon(t)
	id := d.detach(t, "sh", "-c", fmt.Sprintf(`mkfifo /tmp/f; exec 3<>/tmp/f
i=0; while [ $i -lt %[1]d ]; do (read x <&3) & i=$((i+1)); done
(sleep 0.5; i=0; while [ $i -lt %[1]d ]; do echo; i=$((i+1)); done >&3) &
exec sleep 1000`, n))
	c := d.dial(t)
	zombies := 0
	if !eventually(patience, func() bool {
		p, err := c.Processes(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		zombies = 0
		for _, q := range p.All {
			if q.State == "Z" && q.PPID == 1 && q.Command == "[sh]" {
				zombies++
			}
		}
		return zombies == n+1 && len(p.All) == n+2
	}) {
		t.Errorf("%d zombies", zombies)
	}
}

// sample is one as "rnx job metrics --json" shows it.
type sample struct {
	UUID       string    `json:"uuid"`
	Time       time.Time `json:"time"`
	CPUPercent float64   `json:"cpu_percent"`
	Memory     int64     `json:"memory_bytes"`
	Limit      int64     `json:"memory_limit_bytes"`
	PIDs       int       `json:"pids"`
	User       float64   `json:"cpu_user_ms"`
	System     float64   `json:"cpu_system_ms"`
	Throttled  float64   `json:"throttled_ms"`
	PIDsPeak   int       `json:"pids_peak"`
}

// samples reads lines of "rnx job metrics --json", whose counts never fall.
func samples(t *testing.T, id, lines string) (all []sample) {
	t.Helper()
	for line := range strings.Lines(lines) {
		var s sample
		if err := json.Unmarshal([]byte(line), &s); err != nil || s.UUID != id {
			t.Fatalf("%q: %v", line, err)
		}
		if n := len(all); n > 0 && (!s.Time.After(all[n-1].Time) || s.User < all[n-1].User || s.System < all[n-1].System || s.Throttled < all[n-1].Throttled || s.PIDsPeak < all[n-1].PIDsPeak) {
			t.Errorf("%+v follows %+v", s, all[n-1])
		}
		all = append(all, s)
	}
	return all
}

func TestMetricsOfBurner(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	begin := time.Now()
	id := d.detach(t, "--max-cpu=50", "--max-memory=64M", "sh", "-c", `timeout 5 sh -c 'while :; do :; done'; sleep 0.1`)
	r := d.rnx(t.Context(), "job", "metrics", "--json", "--interval=200ms", id) // until it has ended
	job := d.ends(t, id, joblet.Completed)
	all := samples(t, id, r.stdout)
	for n := len(all); n > 0 && (all[n-1].PIDs == 0 || all[n-1].Time.After(job.Ended)); n-- { // its shim was writing down how it ended
		all = all[:n-1]
	}
	if r.status != 0 || r.stderr != "" || len(all) < 5 {
		t.Fatalf("got %v", r)
	}
	last := all[len(all)-1]
	const ms = float64(time.Millisecond)
	if used := float64(job.Usage.CPU()) / ms; last.User+last.System > used || used < 100 || last.User+last.System < used/2 || last.Limit != 64<<20 || last.PIDsPeak < 3 {
		t.Errorf("the last is %+v, the job's %+v", last, job.Usage)
	}
	for i, s := range all[1:] {
		// It gets half of a processor, and what it saved in the period before. (What is
		// seen late comes close behind the next, and says nothing of speed.)
		if s.CPUPercent < 0 || s.CPUPercent > 150 && s.Time.Sub(all[i].Time) > 100*time.Millisecond || s.Memory <= 0 || s.PIDs < 1 || s.Time.Before(begin) || s.Time.After(job.Ended) {
			t.Errorf("got %+v", s)
		}
	}
	if mean := (last.User + last.System - all[0].User - all[0].System) / float64(last.Time.Sub(all[0].Time)) * ms * 100; mean < 1 || mean > 60 {
		t.Errorf("%.1f%% on average", mean)
	}

	kept := samples(t, id, d.rnx(t.Context(), "job", "metrics", "--json", id).stdout)
	if len(kept) < 3 || kept[len(kept)-1].User < kept[0].User+50 {
		t.Errorf("kept is %+v", kept)
	}
	table := d.rnx(t.Context(), "job", "metrics", id)
	if table.status != 0 || strings.Count(table.stdout, "\n") != len(kept)+1 || !regexp.MustCompile(`^TIME +CPU% +MEMORY +MEM% +PIDS +READ/s +WRITE/s +THROTTLED\n\d{4}-`).MatchString(table.stdout) {
		t.Errorf("got %v", table)
	}
	newest := samples(t, id, d.rnx(t.Context(), "job", "metrics", "--json", "-n2", id).stdout)
	if !slices.Equal(newest, kept[len(kept)-2:]) {
		t.Errorf("the newest are %+v of %+v", newest, kept)
	}
	if none := d.rnx(t.Context(), "job", "metrics", "--until=1h", id); none.status != 0 || none.stdout != "" || !strings.HasPrefix(none.stderr, "rnx: no samples of job") {
		t.Errorf("got %v", none)
	}
	if some := samples(t, id, d.rnx(t.Context(), "job", "metrics", "--json", "--since="+kept[2].Time.UTC().Format(time.RFC3339), id).stdout); len(some) >= len(kept) || len(some) < len(kept)-2 {
		t.Errorf("%d of %d since the third", len(some), len(kept))
	}
}

// TestMetricsEnds: Ctrl-C and a reader that has seen enough end a live view, and
// a job that waits is waited for.
func TestMetricsEnds(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := d.detach(t, "sleep", "1000")
	for _, command := range [][]string{{"metrics", "--interval=100ms", id}, {"top", "--json", "--interval=100ms", id}} {
		cmd := d.command(t.Context(), append([]string{"job"}, command...)...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		for _, interrupt := range []bool{true, false} {
			if !interrupt { // another run: its reader goes away
				cmd = d.command(t.Context(), append([]string{"job"}, command...)...)
				if out, err = cmd.StdoutPipe(); err != nil {
					t.Fatal(err)
				}
				cmd.Stderr = &errOut
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(out)
			for range 2 {
				if _, err := lines.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
			if interrupt {
				if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, lines); err != nil {
					t.Error(err)
				}
			} else if err := out.Close(); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); cmd.ProcessState.ExitCode() != map[bool]int{true: 0, false: 141}[interrupt] || errOut.String() != "" {
				t.Errorf("%q, interrupted %v: %v, %s", command, interrupt, err, errOut.String())
			}
		}
	}
	waits := d.detach(t, "--schedule=+2s", "sleep", "1")
	if r := d.rnx(t.Context(), "job", "metrics", "--interval=100ms", "--json", waits); r.status != 0 || len(samples(t, waits, r.stdout)) < 2 {
		t.Errorf("got %v", r)
	}
}

// terminal is a pseudo-terminal and what a program has written to it.
type terminal struct {
	master, slave *os.File
	seen          testenv.Output
	read          chan struct{} // closed when nobody holds the slave any more
}

func newTerminal(t *testing.T, columns, rows uint16) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	raw, err := master.SyscallConn() // Fd would make it blocking, and Close wait for the reader
	if err != nil {
		t.Fatal(err)
	}
	var number int
	if controlErr := raw.Control(func(fd uintptr) {
		number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		if err == nil {
			err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		}
		if err == nil {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows})
		}
	}); errors.Join(controlErr, err) != nil {
		t.Fatal(errors.Join(controlErr, err))
	}
	term := &terminal{master: master, read: make(chan struct{})}
	if term.slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(term.read)
		_, _ = io.Copy(&term.seen, master) // EIO at the end
	}()
	return term
}

// TestTopTerminal drives "rnx job top" as somebody at a terminal does.
func TestTopTerminal(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for _, tt := range []struct {
		name string
		end  func(id string, term *terminal)
		last string // of what is on the terminal
	}{
		{"q", func(_ string, term *terminal) { _, _ = term.master.WriteString("q") }, ""},
		{"Ctrl-C", func(_ string, term *terminal) { _, _ = term.master.WriteString("\x03") }, ""},
		{"the job ends", func(id string, _ *terminal) { d.rnx(t.Context(), "job", "kill", id) }, "rnx: job ID has ended: STOPPED (killed by SIGKILL)\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			id := d.detach(t, "sh", "-c", "while :; do sleep 1000; done & sleep 1001 & wait")
			if !eventually(patience, func() bool { return len(d.processes(t, id)) == 4 }) {
				t.Fatal("its processes are not there")
			}
			term := newTerminal(t, 80, 12)
			before, err := unix.IoctlGetTermios(int(term.slave.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := d.command(ctx, "job", "top", "--interval=100ms", id)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = term.slave, term.slave, term.slave
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			pages := func() []string { return strings.Split(term.seen.String(), "\x1b[H\x1b[2J") }
			shows := func(what string) {
				t.Helper()
				last := ""
				if !eventually(patience, func() bool {
					all := pages()
					last = all[max(0, len(all)-2)] // a whole one
					return regexp.MustCompile(what).MatchString(last)
				}) {
					t.Errorf("no %q in %q", what, last)
				}
			}
			shows(`COMMAND\r\n`)
			if _, err := term.master.WriteString("p"); err != nil {
				t.Fatal(err)
			}
			shows(`COMMAND *\r\n1 (.*\r\n)2 (.*\r\n)3 `)
			tt.end(id, term)
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v: %q", err, term.seen.String())
			}
			after, err := unix.IoctlGetTermios(int(term.slave.Fd()), unix.TCGETS)
			if err != nil || *after != *before {
				t.Errorf("the terminal is left as %+v, was %+v: %v", after, before, err)
			}
			if err := term.slave.Close(); err != nil {
				t.Fatal(err)
			}
			<-term.read
			all := pages()
			want := strings.ReplaceAll(tt.last, "ID", id[:8]) + "\x1b[?25h"
			if all[0] != "\x1b[?25l" || !strings.HasSuffix(all[len(all)-1], want) {
				t.Errorf("got %q … %q, want %q", all[0], all[len(all)-1], want)
			}
			for _, page := range all[1:] {
				lines := strings.Split(strings.TrimSuffix(page, want), "\r\n")
				if len(lines) > 12 || strings.Contains(strings.Join(lines, ""), "\n") {
					t.Errorf("a page of %d lines: %q", len(lines), page)
				}
				for _, line := range lines {
					if len([]rune(line)) > 80 {
						t.Errorf("%q is too long", line)
					}
				}
			}
		})
	}
}
