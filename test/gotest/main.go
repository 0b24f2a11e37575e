// Command gotest runs "go test" and shows what it shows. At the end it also lists the
// slowest tests and those that were skipped, with their reasons. A test that runs
// longer than -limit is named, and its process ends with the stacks of its goroutines:
// go test itself knows only a time for a whole package.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	limit := flag.Duration("limit", 10*time.Minute, "time for one test without its subtests")
	slowest := flag.Int("slowest", 20, "slow tests to list")
	list := flag.String("list", "", "append the slow tests to this file instead of printing them")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: gotest [-limit TIME] [-slowest N] [-list FILE] -- ARGUMENTS-OF-GO-TEST…")
		flag.PrintDefaults()
	}
	flag.Parse()
	slow := io.Writer(os.Stdout)
	if *list != "" {
		f, err := os.OpenFile(*list, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			fmt.Fprintf(os.Stderr, "cannot list the slow tests: %v\n", err)
			os.Exit(1)
		}
		defer f.Close()
		slow = f
	}
	status, err := run(os.Stdout, slow, *limit, *slowest, flag.Args())
	if err != nil {
		fmt.Fprintf(os.Stderr, "cannot run go test: %v\n", err)
		os.Exit(1)
	}
	os.Exit(status)
}

// run runs go test to its end and returns its status. It lists the slowest tests in slow.
func run(out, slow io.Writer, limit time.Duration, slowest int, args []string) (int, error) {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	r := newReport(out)
	r.verbose = slices.Contains(args, "-v") || slices.Contains(args, "-test.v")
	done := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		tick := time.NewTicker(min(limit/4, time.Second))
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case now := <-tick.C:
				for _, h := range r.hung(now, limit) {
					h.end(cmd.Process.Pid)
				}
			}
		}
	})
	err = r.read(stdout)
	if err != nil {
		_ = cmd.Process.Kill()
	}
	err = errors.Join(err, cmd.Wait())
	close(done)
	watcher.Wait()
	r.summary(slow, slowest)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exit.ExitCode(), nil
	} else if err != nil {
		return 0, err
	}
	if r.failed { // go test has said so too
		return 1, nil
	}
	return 0, nil
}

// event is one of "go doc test2json".
type event struct {
	Time          time.Time
	Action        string
	Package, Test string
	Elapsed       float64 // seconds
	Output        string
	ImportPath    string
}

// report collects events.
type report struct {
	out     io.Writer
	verbose bool // all output is shown when it comes

	mu       sync.Mutex // protects what follows
	packages map[string]*packageRun
	ended    []ended
	skipped  []string
	failed   bool
}

type ended struct {
	name    string
	elapsed float64
}

// packageRun is the run of a package's test program.
type packageRun struct {
	since    time.Time // the program runs and no test does
	running  map[string]*testRun
	said     strings.Builder // what go test shows if the package fails
	result   string          // the line that it shows if not
	reported time.Time       // of a test that hangs
}

type testRun struct {
	since  time.Time // it runs itself, not a subtest of it; zero: it waits in the queue
	output strings.Builder
	reason string // line of output that came last
}

func newReport(out io.Writer) *report { return &report{out: out, packages: map[string]*packageRun{}} }

// read takes events until there are no more.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		switch {
		case len(line) > 0 && json.Unmarshal(line, &e) == nil && e.Action != "":
			r.take(e)
		case len(line) > 0:
			_, _ = r.out.Write(line)
		}
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// chatter are lines that only "go test -v" shows.
var chatter = regexp.MustCompile(`^=== (RUN|PAUSE|CONT|NAME) `)

func (r *report) take(e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Package == "" { // of a build
		fmt.Fprint(r.out, e.Output)
		return
	}
	p := r.packages[e.Package]
	if p == nil {
		p = &packageRun{running: map[string]*testRun{}}
		r.packages[e.Package] = p
	}
	p.since = e.Time
	if r.verbose {
		fmt.Fprint(r.out, e.Output)
	}
	if e.Test == "" {
		r.takePackage(p, e)
		return
	}
	t := p.running[e.Test]
	if t == nil {
		t = &testRun{}
		p.running[e.Test] = t
	}
	switch e.Action {
	case "run", "cont":
		t.since = e.Time
	case "pause":
		t.since = time.Time{}
	case "output":
		if !chatter.MatchString(e.Output) {
			t.output.WriteString(e.Output)
			if !strings.HasPrefix(strings.TrimSpace(e.Output), "--- ") {
				t.reason = strings.TrimSpace(e.Output)
			}
		}
	case "pass", "fail", "skip":
		delete(p.running, e.Test)
		if parent, _ := p.parent(e.Test); parent != nil && !parent.since.IsZero() {
			parent.since = e.Time
		}
		if e.Action == "fail" {
			p.said.WriteString(t.output.String())
		}
		if e.Action == "skip" {
			r.skipped = append(r.skipped, fmt.Sprintf("%s %s: %s", e.Package, e.Test, t.reason))
		}
		if !strings.Contains(e.Test, "/") {
			r.ended = append(r.ended, ended{e.Package + " " + e.Test, e.Elapsed})
		}
	}
}

// parent returns the test of which a test is a subtest. A name may have more slashes.
func (p *packageRun) parent(name string) (*testRun, string) {
	for {
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return nil, ""
		}
		name = name[:i]
		if t := p.running[name]; t != nil {
			return t, name
		}
	}
}

func (r *report) takePackage(p *packageRun, e event) {
	switch e.Action {
	case "output":
		p.said.WriteString(e.Output)
		if strings.HasPrefix(e.Output, "ok ") || strings.HasPrefix(e.Output, "? ") || strings.Contains(e.Output, "[no test files]") {
			p.result = e.Output
		}
	case "pass", "skip":
		if !r.verbose {
			fmt.Fprint(r.out, p.result)
		}
		delete(r.packages, e.Package)
	case "fail":
		r.failed = true
		delete(r.packages, e.Package)
		if r.verbose {
			return
		}
		for _, name := range slices.Sorted(maps.Keys(p.running)) { // they did not end
			fmt.Fprintf(r.out, "--- UNFINISHED: %s\n%s", name, p.running[name].output.String())
		}
		fmt.Fprint(r.out, p.said.String())
	}
}

// hung is a package whose test does not end.
type hung struct {
	pkg, test string
	first     bool // it is found just now
}

// hung returns the packages with a test that has run for longer than the limit.
func (r *report) hung(now time.Time, limit time.Duration) (found []hung) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for pkg, p := range r.packages {
		late := ""
		busy := map[string]bool{} // tests with subtests that are not over
		for name := range p.running {
			if _, parent := p.parent(name); parent != "" {
				busy[parent] = true
			}
		}
		for _, name := range slices.Sorted(maps.Keys(p.running)) {
			if t := p.running[name]; !busy[name] && !t.since.IsZero() && now.Sub(t.since) > limit {
				late = name
				break
			}
		}
		if late == "" && len(p.running) == 0 && now.Sub(p.since) > limit {
			late = "TestMain"
		}
		if late == "" {
			continue
		}
		first := p.reported.IsZero()
		if first {
			p.reported = now
			fmt.Fprintf(r.out, "HANG: %s of %s has run for more than %v; the stacks of its goroutines follow\n", late, pkg, limit)
		}
		if first || now.Sub(p.reported) > time.Minute {
			found = append(found, hung{pkg, late, first})
		}
	}
	return found
}

// end ends the test programs of the package below the process of go test.
func (h hung) end(goTest int) {
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", h.pkg).Output()
	if err != nil {
		return
	}
	sig := syscall.SIGKILL
	if h.first {
		sig = syscall.SIGQUIT
	}
	for _, pid := range programs(goTest, strings.TrimSpace(string(dir))) {
		_ = syscall.Kill(pid, sig)
	}
}

// programs returns the children of a process that are test programs in a directory.
func programs(parent int, dir string) (pids []int) {
	found, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range found {
		stat, err := os.ReadFile(proc + "/stat")
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		exe, _ := os.Readlink(proc + "/exe")
		cwd, _ := os.Readlink(proc + "/cwd")
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) && strings.HasSuffix(exe, ".test") && cwd == dir {
			pid, _ := strconv.Atoi(filepath.Base(proc))
			pids = append(pids, pid)
		}
	}
	return pids
}

// summary lists the skipped tests, and in slow the slowest.
func (r *report) summary(slow io.Writer, slowest int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.Sort(r.skipped)
	for _, s := range r.skipped {
		fmt.Fprintf(r.out, "SKIP  %s\n", s)
	}
	slices.SortStableFunc(r.ended, func(a, b ended) int { return cmp.Compare(b.elapsed, a.elapsed) })
	for _, e := range r.ended[:min(slowest, len(r.ended))] {
		fmt.Fprintf(slow, "%7.1fs  %s\n", e.elapsed, e.name)
	}
}
