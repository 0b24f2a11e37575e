package e2e

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/testenv"
)

// leastKills is how many times TestKill has to kill a daemon at a named point.
const leastKills = 100

// killRounds is how often each point has its turn, with one killer or the other.
// JOBLET_TEST_ROUNDS asks for more. A point that nobody has died at by then gets
// extraRounds: which of those in recovery is passed depends on what the jobs do.
var killRounds = func() int {
	n, _ := strconv.Atoi(os.Getenv("JOBLET_TEST_ROUNDS")) // 0 if there is none
	return max(n, 1)
}()

const extraRounds = 4

// TestKill kills the daemon with SIGKILL at every fault.Point of the source, in
// the middle of a mixed workload, and looks after each restart whether all that
// was promised is kept: no job lost or run twice, no byte of a log and no exit
// code missing, nothing left on the host.
func TestKill(t *testing.T) {
	t.Parallel()
	points := faultPoints(t)
	var tally tally
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed) // of what the clients do; each run tries something else
	// The group ends when its parallel tests have.
	t.Run("kill", func(t *testing.T) {
		t.Run("all at once", func(t *testing.T) {
			t.Parallel()
			newKiller(t, &tally, seed, 1).rounds(t, points, 0, int(seed%2))
		})
		t.Run("two at a time", func(t *testing.T) {
			t.Parallel()
			newKiller(t, &tally, seed, 2, "--max-concurrent=2").rounds(t, points, 1, int(seed%2))
		})
		t.Run("repeating", func(t *testing.T) {
			t.Parallel()
			newKiller(t, &tally, seed, 3).repeating(t)
		})
		t.Run("without records", func(t *testing.T) {
			t.Parallel()
			newKiller(t, &tally, seed, 4).withoutRecords(t)
		})
	})
	if t.Failed() {
		return
	}
	t.Logf("%d kills at %d points:\n%s", tally.total(), len(points), tally.String())
	for _, p := range points {
		if tally.count[p] == 0 {
			t.Errorf("no daemon was killed at %s: no scenario leads there", p)
		}
	}
	if n := tally.total(); n < leastKills {
		t.Errorf("%d kills, want at least %d", n, leastKills)
	}
}

// faultPoints returns the names of all points in the source.
func faultPoints(t *testing.T) []string {
	t.Helper()
	mark := regexp.MustCompile(`\bfault\.Point\("([^"]+)"\)`)
	found := map[string]bool{}
	err := filepath.WalkDir("../../internal", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range mark.FindAllSubmatch(source, -1) {
			found[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Fatal("there are no points in the source")
	}
	return slices.Sorted(maps.Keys(found))
}

// tally counts the kills at each point.
type tally struct {
	mu    sync.Mutex
	count map[string]int
}

func (c *tally) add(point string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count == nil {
		c.count = map[string]int{}
	}
	c.count[point]++
}

// missed reports whether no daemon has died at the point.
func (c *tally) missed(point string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count[point] == 0
}

func (c *tally) total() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.count {
		n += k
	}
	return n
}

func (c *tally) String() string {
	var b strings.Builder
	for _, p := range slices.Sorted(maps.Keys(c.count)) {
		fmt.Fprintf(&b, "%5d  %s\n", c.count[p], p)
	}
	return b.String()
}

// faultDaemon builds the daemon with the points in it, and with a shim of
// the same source, once. It has no race detector, which would double the time of each
// life of a daemon.
var faultDaemon = sync.OnceValues(func() (string, error) {
	top, err := filepath.Abs("../..")
	if err != nil {
		return "", err
	}
	run := func(env string, args ...string) error {
		cmd := exec.Command("go", args...)
		cmd.Dir, cmd.Env = top, append(os.Environ(), env)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	shim, overlay, program := binDir+"/fault-shim", binDir+"/fault-overlay.json", binDir+"/joblet-fault"
	if err := run("CGO_ENABLED=0", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", shim, "./cmd/joblet-shim"); err != nil {
		return "", err
	}
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{top + "/internal/sandbox/native/embed/joblet-shim": shim}})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		return "", err
	}
	return program, run("CGO_ENABLED=0", "build", "-trimpath", "-tags", "grpcnotrace fault", "-overlay", overlay, "-o", program, "./cmd/joblet")
})

// killer drives one daemon through many lives that end by force.
type killer struct {
	d       *daemon
	tally   *tally
	random  *rand.Rand
	names   string // distinguishes this killer's jobs from the others'
	witness string // the FIFO to which each run says that it has begun
	seq     atomic.Int64
	last    *life

	mu       sync.Mutex
	promises []*promise
	starts   map[string][]start // by tag
}

// start is a run of a job, as the job itself has told outside of all that Joblet
// keeps.
type start struct{ id, attempt string }

// newKiller makes a daemon's directories, with a runtime that holds a shell and
// the witness. The daemon does not run yet.
func newKiller(t *testing.T, tally *tally, seed, number uint64, args ...string) *killer {
	t.Helper()
	program, err := faultDaemon()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	k := &killer{
		d:     &daemon{state: filepath.Join(dir, "state"), run: filepath.Join(dir, "run"), args: args, bin: program},
		tally: tally, random: rand.New(rand.NewPCG(seed, number)), names: fmt.Sprint("k", number), starts: map[string][]start{},
	}
	t.Cleanup(func() {
		if k.last != nil && k.last.isGone() {
			k.d.cmd = nil
		}
		if k.d.cmd == nil { // jobs of the last one that was killed may still run
			k.d.env = nil
			if err := k.d.start(); err != nil {
				t.Error(err)
			}
		}
		if k.d.cmd != nil {
			k.d.stop()
		}
		if t.Failed() {
			t.Logf("the last daemons said:\n%s", k.d.stderr.String())
		}
		testenv.CheckLeaks(t, k.d.run)
	})
	root := filepath.Join(k.d.state, "runtimes", "witness", "rootfs")
	if err := os.Mkdir(dir+"/state", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"bin", "witness"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "../runtime.yaml"), []byte("format: 1\nname: witness\nversion: \"1\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"sh", "sleep", "cat"} {
		copyProgram(t, program, root)
	}
	k.witness = filepath.Join(root, "witness", "starts")
	if err := syscall.Mkfifo(k.witness, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(k.witness, 0o666); err != nil { // whatever the umask
		t.Fatal(err)
	}
	fifo, err := os.OpenFile(k.witness, os.O_RDWR, 0) // so that it never ends
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fifo.Close() })
	go func() {
		for lines := bufio.NewScanner(fifo); lines.Scan(); {
			f := strings.Fields(lines.Text())
			k.mu.Lock()
			k.starts[f[0]] = append(k.starts[f[0]], start{f[1], f[2]})
			k.mu.Unlock()
		}
	}()
	return k
}

// copyProgram copies a program of the host and its libraries below root.
func copyProgram(t *testing.T, name, root string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	needs, _ := exec.Command("ldd", path).Output() // fails for a static program
	files := map[string]string{path: "/bin/" + name}
	for _, lib := range regexp.MustCompile(`/\S+`).FindAllString(string(needs), -1) {
		files[lib] = lib
	}
	for from, to := range files {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		to = filepath.Join(root, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// promise is a job that was asked for, and what must become of it. killer.mu
// protects what changes.
type promise struct {
	tag, kind string
	spec      joblet.Spec
	input     func() client.Input // nil: none comes along
	runs      int                 // the last of them ends with code, those before with 7
	code      int
	forever   bool // runs until it is stopped
	never     bool // its time is far off: it ends by being canceled
	missing   bool // there is no such command
	after     *promise
	out       string // what it writes between its first and its last lines

	id       string     // empty as long as nobody knows
	answered bool       // the daemon said that it was accepted
	refused  bool       // the daemon said that it was not
	deleting bool       // the daemon was asked to delete it
	deleted  bool       // and said that it did
	told     joblet.Job // as somebody was told that it has ended
	verified bool       // all of it, once
}

const (
	failing = 7 // status of a run that is to be retried
	lines   = 30
)

// promise returns a new job that is not submitted yet: a script that tells the
// witness that it runs, writes numbered lines, does what body says in between,
// and ends with code at the given run.
func (k *killer) promise(kind string, runs, code int, body, out string) *promise {
	tag := fmt.Sprintf("%s-%s-%d", k.names, kind, k.seq.Add(1))
	script := fmt.Sprintf(`echo %s $JOBLET_JOB_ID $JOBLET_ATTEMPT >>/witness/starts
echo start $JOBLET_JOB_ID $JOBLET_ATTEMPT
%s
i=0; while [ $i -lt %d ]; do i=$((i+1)); echo line $i of run $JOBLET_ATTEMPT; done
echo stderr of run $JOBLET_ATTEMPT >&2
echo end $JOBLET_ATTEMPT
[ $JOBLET_ATTEMPT -ge %d ] || exit %d
exit %d
`, tag, body, lines, runs, failing, code)
	p := &promise{tag: tag, kind: kind, runs: runs, code: code, out: out}
	p.spec = joblet.Spec{
		Command: "sh", Args: []string{"-c", script}, Runtime: "witness", Name: kind,
		Labels: map[string]string{"tag": tag}, Retries: runs - 1, RetryDelay: 20 * time.Millisecond,
	}
	return p
}

// stdout returns all that the job writes in its runs.
func (p *promise) stdout(id string) string {
	var b strings.Builder
	for run := range p.runs {
		fmt.Fprintf(&b, "start %s %d\n%s", id, run+1, p.out)
		for i := range lines {
			fmt.Fprintf(&b, "line %d of run %d\n", i+1, run+1)
		}
		fmt.Fprintf(&b, "end %d\n", run+1)
	}
	return b.String()
}

func (p *promise) stderr() string {
	var b strings.Builder
	for run := range p.runs {
		fmt.Fprintf(&b, "stderr of run %d\n", run+1)
	}
	return b.String()
}

// life is one life of the daemon.
type life struct {
	*killer
	t     *testing.T
	ctx   context.Context // ends a moment after the daemon
	c     *client.Client
	point string
	gone  chan struct{} // closed when the daemon has died
	how   error         // of which; set before
}

// begin starts a daemon that dies at the point, after it has passed that n
// times; "" is no point. The life is nil if that was before it could be asked.
func (k *killer) begin(t *testing.T, point string, n int) *life {
	t.Helper()
	k.d.env = nil
	if point != "" {
		k.d.env = []string{fmt.Sprintf("JOBLET_FAULT=%s:%d", point, n)}
	}
	k.checkWords(t)
	k.d.stderr.Reset()
	err := k.d.start()
	if point != "" && errors.Is(err, testenv.ErrDied) && isKilled(err) {
		k.tally.add(point)
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l := &life{killer: k, t: t, ctx: ctx, point: point, gone: make(chan struct{})}
	cmd := k.d.cmd
	go func() {
		l.how = cmd.Wait()
		close(l.gone)
		time.AfterFunc(time.Second, cancel) // whoever still waits for an answer then gets none
	}()
	k.last = l
	if l.c, err = client.Dial(ctx, k.d.host()); err != nil {
		if !l.end(30 * time.Second) {
			t.Fatal(err)
		}
		return nil
	}
	return l
}

func isKilled(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// checkWords fails the test for what a daemon must never say.
func (k *killer) checkWords(t *testing.T) {
	t.Helper()
	for _, bad := range []string{"DATA RACE", "panic", "changed its state in an invalid way"} {
		if strings.Contains(k.d.stderr.String(), bad) {
			t.Errorf("a daemon said %q:\n%s", bad, k.d.stderr.String())
		}
	}
}

// died reports whether the daemon has died, or is about to: whoever asks has
// just seen that it does not answer.
func (l *life) died() bool {
	select {
	case <-l.gone:
		return true
	case <-time.After(30 * time.Second):
		return false
	}
}

// isGone reports whether the daemon has died.
func (l *life) isGone() bool {
	select {
	case <-l.gone:
		return true
	default:
		return false
	}
}

// end waits until the daemon has died at its point, at most for the given time,
// and reports whether it did. If not, it lives on.
func (l *life) end(limit time.Duration) bool {
	l.t.Helper()
	select {
	case <-l.gone:
	case <-time.After(limit):
		return false
	}
	l.close()
	if l.point == "" || !isKilled(l.how) {
		l.t.Fatalf("the daemon died, but not at %q: %v\n%s", l.point, l.how, l.d.stderr.String())
	}
	l.tally.add(l.point)
	return true
}

// kill ends the life from outside.
func (l *life) kill() {
	_ = l.d.cmd.Process.Kill()
	<-l.gone
	l.close()
}

func (l *life) close() {
	l.d.cmd = nil
	if l.c != nil {
		_ = l.c.Close()
	}
}

// cut reports whether a call failed because the daemon died. Another error
// fails the test.
func (l *life) cut(what string, err error) bool {
	if err == nil {
		return false
	}
	if !l.died() {
		l.t.Errorf("%s: %v", what, err)
	}
	return true
}

// submit asks for the job and returns its record; ok is false if there was no
// answer, or a refusal.
func (l *life) submit(p *promise) (job joblet.Job, ok bool) {
	l.mu.Lock()
	if !slices.Contains(l.promises, p) {
		l.promises = append(l.promises, p)
	}
	l.mu.Unlock()
	var err error
	if p.input == nil {
		job, err = l.c.Run(l.ctx, p.spec)
	} else {
		for event, e := range l.c.Submit(l.ctx, p.spec, p.input(), true) {
			switch event := event.(type) {
			case client.Waiting:
				job = event.Job
			case client.Started:
				job = event.Job
			case client.Ended:
				job = event.Job
			}
			err = e
		}
	}
	l.answer(p, job, err)
	return job, err == nil
}

// answer notes what the daemon said when it was asked for the job.
func (l *life) answer(p *promise, job joblet.Job, err error) {
	if err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if p.id != "" && p.id != job.ID {
			l.t.Errorf("%s: job %s was asked for again and is now %s", p.tag, p.id, job.ID)
		}
		p.id, p.answered = job.ID, true
		return
	}
	if p.missing && joblet.KindOf(err) == joblet.CommandNotFound {
		l.mu.Lock()
		defer l.mu.Unlock()
		p.refused = true
		return
	}
	l.cut("submit "+p.tag, err)
}

// wait waits for the job's end, which is then a promise, too.
func (l *life) wait(p *promise, id string) bool {
	job, err := l.c.Wait(l.ctx, id)
	if err != nil {
		l.mu.Lock()
		deleting := p.deleting
		l.mu.Unlock()
		return !(deleting && joblet.KindOf(err) == joblet.NotFound) && !l.cut("wait for "+p.tag, err)
	}
	l.tell(p, job)
	return true
}

func (l *life) tell(p *promise, job joblet.Job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.told = job
}

// ops are what clients do all at once. A point's name, or its first word, says
// which of them lead there soonest.
var ops = []struct {
	leadsTo string
	do      func(*life)
}{
	{"start run end accept box release", (*life).opRun},
	{"run end", (*life).opSlow},
	{"start run end", (*life).opAttached},
	{"start end", (*life).opRnx},
	{"start.undone box", (*life).opMissing},
	{"retry end launch", (*life).opRetry},
	{"queue launch end", (*life).opKey},
	{"due queue", (*life).opSoon},
	{"end queue", (*life).opDepend},
	{"cancel", (*life).opCancel},
	{"cancel end.told", (*life).opCancelDepended},
	{"stop", (*life).opStop},
	{"stop", (*life).opStopWaiting},
	{"force.killed force.written", (*life).opStuck},
	{"delete", (*life).opDelete},
	{"stage accept", (*life).opInput},
	{"queue launch", (*life).opSecret},
}

func (l *life) opRun() {
	p := l.promise("run", 1, l.n(4), "", "")
	if job, ok := l.submit(p); ok && l.n(2) == 0 {
		l.wait(p, job.ID)
	}
}

func (l *life) opSlow() {
	var body, out strings.Builder
	for i := range 5 {
		fmt.Fprintf(&body, "echo slow %d; sleep 0.05\n", i)
		fmt.Fprintf(&out, "slow %d\n", i)
	}
	l.submit(l.promise("slow", 1, 3, body.String(), out.String()))
}

// opAttached sees the output as it comes.
func (l *life) opAttached() {
	p := l.promise("attached", 1, 5, "sleep 0.02", "")
	l.mu.Lock()
	l.promises = append(l.promises, p)
	l.mu.Unlock()
	var out bytes.Buffer
	id := ""
	for event, err := range l.c.RunAttached(l.ctx, p.spec) {
		switch e := event.(type) {
		case client.Waiting:
			id = e.Job.ID
			l.answer(p, e.Job, nil)
		case client.Started:
			id = e.Job.ID
			l.answer(p, e.Job, nil)
		case client.Output:
			if e.Stream == client.Stdout {
				out.Write(e.Data)
			}
		case client.Ended:
			l.tell(p, e.Job)
		}
		if l.cut("run "+p.tag, err) {
			break
		}
	}
	if !strings.HasPrefix(p.stdout(id), out.String()) {
		l.t.Errorf("%s: followed it and read %q", p.tag, out.String())
	}
}

// opRnx submits through the real rnx.
func (l *life) opRnx() {
	p := l.promise("rnx", 1, 0, "", "")
	l.mu.Lock()
	l.promises = append(l.promises, p)
	l.mu.Unlock()
	r := l.d.rnx(l.ctx, append([]string{"job", "run", "-d", "--runtime=witness", "--label=tag=" + p.tag, "--", p.spec.Command}, p.spec.Args...)...)
	id := strings.TrimSpace(r.stdout)
	if id == "" {
		l.cut("rnx job run", fmt.Errorf("%v", r))
		return
	}
	l.answer(p, joblet.Job{ID: id}, nil)
}

func (l *life) opMissing() {
	p := l.promise("missing", 1, 0, "", "")
	p.missing, p.spec.Command = true, "no-such-command"
	l.submit(p)
}

func (l *life) opRetry() {
	p := l.promise("retry", 2+l.n(2), 0, "", "")
	if job, ok := l.submit(p); ok {
		l.wait(p, job.ID)
	}
}

// opKey asks for a job twice.
func (l *life) opKey() {
	p := l.promise("key", 1, 4, "", "")
	p.spec.IdempotencyKey = p.tag
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() { l.submit(p) })
	}
	both.Wait()
}

func (l *life) opSoon() {
	p := l.promise("soon", 1, 0, "", "")
	p.spec.Schedule = "+0s" // the next full second
	l.submit(p)
}

func (l *life) opDepend() {
	code := l.n(2) * 9
	first := l.promise("first", 1, code, "sleep 0.03", "")
	job, ok := l.submit(first)
	if !ok {
		return
	}
	then := l.promise("then", 1, 2, "", "")
	then.after, then.spec.DependsOn = first, []string{job.ID}
	l.mu.Lock()
	l.promises = append(l.promises, then)
	l.mu.Unlock()
	if job, err := l.c.Run(l.ctx, then.spec); err == nil {
		l.answer(then, job, nil)
	} else if code != 0 && joblet.KindOf(err) == joblet.FailedPrecondition { // that had failed already
		l.mu.Lock()
		then.refused = true
		l.mu.Unlock()
	} else {
		l.cut("submit "+then.tag, err)
	}
}

func (l *life) opCancel() {
	p := l.promise("cancel", 1, 0, "", "")
	p.never, p.spec.Schedule = true, "+1h"
	if job, ok := l.submit(p); ok {
		l.cancel(p, job.ID)
	}
}

// cancel cancels a job while somebody waits for its end.
func (l *life) cancel(p *promise, id string) {
	var waiting sync.WaitGroup
	defer waiting.Wait()
	waiting.Go(func() { l.wait(p, id) })
	job, err := l.c.Cancel(l.ctx, id)
	if !l.cut("cancel "+p.tag, err) {
		l.tell(p, job)
	}
}

// opCancelDepended cancels a job for which others wait.
func (l *life) opCancelDepended() {
	first := l.promise("depended", 1, 0, "", "")
	first.never, first.spec.Schedule = true, "+1h"
	job, ok := l.submit(first)
	if !ok {
		return
	}
	for range 2 {
		then := l.promise("then", 1, 2, "", "")
		then.after, then.spec.DependsOn = first, []string{job.ID}
		if _, ok := l.submit(then); !ok {
			return
		}
	}
	l.cancel(first, job.ID)
}

func (l *life) opStop() {
	p := l.promise("stop", 2, 0, "trap 'echo bye; exit 3' TERM; sleep 60 & wait $!", "bye\n")
	if l.n(2) == 0 { // cannot be asked nicely
		p = l.promise("stop", 2, 0, "sleep 60", "")
	}
	p.forever = true
	if job, ok := l.submit(p); ok {
		l.stop(p, job.ID)
	}
}

func (l *life) stop(p *promise, id string) {
	job, err := l.c.Stop(l.ctx, id, joblet.StopOptions{Grace: 5 * time.Second})
	if !l.cut("stop "+p.tag, err) {
		l.tell(p, job)
	}
}

// opStuck kills a job whose shim does nothing.
func (l *life) opStuck() {
	p := l.promise("stuck", 1, 0, "sleep 60", "")
	p.forever = true
	job, ok := l.submit(p)
	if !ok {
		return
	}
	if shim := shimOf(job.PID); shim > 0 {
		defer keepStopped(l.t, shim)()
	}
	job, err := l.c.Stop(l.ctx, job.ID, joblet.StopOptions{})
	if !l.cut("kill "+p.tag, err) {
		l.tell(p, job)
	}
}

// opStopWaiting stops a job that waits for its next attempt.
func (l *life) opStopWaiting() {
	p := l.promise("stopwaiting", 2, 0, "", "")
	p.forever, p.spec.RetryDelay = true, time.Hour
	job, ok := l.submit(p)
	if !ok {
		return
	}
	for ; !job.State.Final() && len(job.Past) == 0; time.Sleep(5 * time.Millisecond) {
		var err error
		if job, err = l.c.Job(l.ctx, job.ID); l.cut("status of "+p.tag, err) {
			return
		}
	}
	l.stop(p, job.ID)
}

func (l *life) opDelete() {
	p := l.promise("delete", 1, 0, "", "")
	job, ok := l.submit(p)
	if !ok || !l.wait(p, job.ID) {
		return
	}
	l.mu.Lock()
	p.deleting = true
	l.mu.Unlock()
	err := l.c.Delete(l.ctx, job.ID)
	if !l.cut("delete "+p.tag, err) {
		l.mu.Lock()
		p.deleted = true
		l.mu.Unlock()
	}
}

// opDeleteMany deletes all jobs that have ended.
func (l *life) opDeleteMany() {
	l.mu.Lock()
	var asked []*promise
	for _, p := range l.promises {
		if p.told.State.Final() { // the others might be missed by who waits for them
			asked = append(asked, p)
		}
	}
	for _, p := range asked {
		p.deleting = true
	}
	l.mu.Unlock()
	for _, p := range asked {
		if err := l.c.Delete(l.ctx, p.id); joblet.KindOf(err) == joblet.FailedPrecondition || joblet.KindOf(err) == joblet.NotFound {
			continue // another depends on it, or it is gone
		} else if l.cut("delete "+p.tag, err) {
			return
		}
		l.mu.Lock()
		p.deleted = true
		l.mu.Unlock()
	}
}

// opInput submits a job with files and standard input that must be there in
// each of its runs.
func (l *life) opInput() {
	p := l.promise("input", 1+l.n(2), 6, "cat; cat data.txt; cat data.txt >result.txt", "")
	stdin, data := "standard input of "+p.tag+"\n", strings.Repeat("data of "+p.tag+"\n", 200)
	p.out = stdin + data
	p.spec.Stdin = joblet.StdinFile
	p.input = func() client.Input {
		return client.Input{Stdin: strings.NewReader(stdin), Files: func(w io.Writer) error {
			files := tar.NewWriter(w)
			if err := files.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "data.txt", Mode: 0o644, Size: int64(len(data))}); err != nil {
				return err
			}
			if _, err := io.WriteString(files, data); err != nil {
				return err
			}
			return files.Close()
		}}
	}
	l.submit(p)
}

// secret is the beginning of the secrets' values, which must not be found on
// disk: scripts spell it differently.
const secret = "s3cr3tvalue"

func (l *life) opSecret() {
	p := l.promise("secret", 2, 0, `case $TOKEN in s3cr?tvalue-`+l.names+`-*) echo knows it; esac`, "knows it\n")
	p.spec.SecretEnv = map[string]string{"TOKEN": secret + "-" + p.tag}
	if l.n(2) == 0 {
		p.spec.IdempotencyKey = p.tag
	}
	l.submit(p)
}

// n returns a random number below n.
func (k *killer) n(n int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.random.IntN(n)
}

// clients is how many clients do things at the same time.
const clients = 3

// workload lets clients do things until the daemon has died, those first that
// lead to the point.
func (l *life) workload() {
	word, _, _ := strings.Cut(l.point, ".")
	var first []func(*life)
	named := false // there is one for just this point: all do that
	for _, op := range ops {
		if to := strings.Fields(op.leadsTo); slices.Contains(to, l.point) {
			first, named = []func(*life){op.do}, true
			break
		} else if slices.Contains(to, word) {
			first = append(first, op.do)
		}
	}
	if word == "delete" && l.n(2) == 0 {
		first = append(first, (*life).opDeleteMany)
	}
	var working sync.WaitGroup
	deadline := time.Now().Add(time.Minute)
	for client := range clients {
		working.Go(func() {
			for i := 0; !l.isGone() && time.Now().Before(deadline); i++ {
				switch {
				case named, client == 0 && len(first) > 0: // one does nothing else
					first[l.n(len(first))](l)
				default:
					ops[l.n(len(ops))].do(l)
				}
			}
		})
	}
	working.Wait()
}

// rounds kills daemons, several in a round if possible: one at a point in the
// middle of a workload, others while they recover from that and go on. part is
// which half of the points is done in a round, beginning with an odd or an even one.
func (k *killer) rounds(t *testing.T, points []string, part, odd int) {
	var recovery, others []string
	for _, p := range points {
		switch word, _, _ := strings.Cut(p, "."); word {
		case "recover":
			recovery = append(recovery, p)
		case "fire": // see repeating
		case "lost": // see withoutRecords
		default:
			others = append(others, p)
		}
	}
	for round := range killRounds + extraRounds {
		for i, point := range others {
			if left := leftFor(point); round >= killRounds && !k.tally.missed(point) && (left == "" || !k.tally.missed(left)) {
				continue
			}
			// Few jobs start at once where there is room for two only.
			if atOnce := strings.HasPrefix(point, "start."); atOnce && part == 1 || !atOnce && (round+i+odd)%2 != part {
				continue
			}
			later := []string{cmp.Or(leftFor(point), recovery[(i/2)%len(recovery)]), recovery[(round+i)%len(recovery)], others[k.n(len(others))]}
			k.round(t, point, k.n(4), later)
			if t.Failed() {
				t.FailNow()
			}
		}
	}
	// Kills that are missing are made at points that chance chooses.
	for part == 0 && k.tally.total() < leastKills {
		k.round(t, others[k.n(len(others))], k.n(4), []string{recovery[k.n(len(recovery))], others[k.n(len(others))]})
		if t.Failed() {
			t.FailNow()
		}
	}
	// What is still there is told to go, and then the state must be a sound one.
	l := k.begin(t, "", 0)
	_ = l.c.Close()
	_ = k.d.cmd.Process.Signal(syscall.SIGTERM)
	<-l.gone
	k.d.cmd = nil
	check := exec.Command(k.d.bin, "fsck", "--deep", "--state-dir", k.d.state, "--run-dir", k.d.run)
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("joblet fsck: %v\n%s", err, out)
	}
}

// leftFor returns the point in recovery to which being killed at another leads.
func leftFor(point string) string {
	return map[string]string{
		"accept.planned":  "recover.swept",
		"stage.taken":     "recover.swept",
		"delete.record":   "recover.swept",
		"start.inserted":  "recover.requeued",
		"launch.recorded": "recover.requeued",
		"run.recorded":    "recover.adopted",
		"run.ended":       "recover.over",
		"end.concluded":   "recover.concluded",
		"end.released":    "recover.over",
		"queue.inserted":  "recover.waits",
		"sandbox.begun":   "recover.released",
	}[point]
}

// round kills a daemon at a point that it has passed n times, those after it at
// the later ones if they get there, and checks what has become of all jobs.
func (k *killer) round(t *testing.T, point string, n int, later []string) {
	t.Helper()
	killed := fmt.Sprintf("%s:%d", point, n)
	if l := k.begin(t, point, n); l != nil {
		l.workload()
		if !l.end(time.Second) {
			t.Errorf("the daemon did not die at %s", killed)
			l.kill()
			return
		}
	}
	for later = append(later, ""); ; later = later[1:] {
		if l := k.begin(t, later[0], 0); l != nil {
			problems, ok := l.settle()
			if ok {
				var more []string
				more, ok = l.verify()
				problems = append(problems, more...)
			}
			for _, p := range problems {
				t.Errorf("after %s, with %q: %s", killed, later[0], p)
			}
			if ok || !l.isGone() {
				if t.Failed() {
					t.Logf("the daemon said:\n%s", k.d.stderr.String())
				}
				l.kill()
				return
			}
			l.end(time.Second)
		}
		killed += ", " + later[0]
	}
}

// settle checks what must be so at once after a restart, brings those jobs to
// their end that do not come to it by themselves, and waits for all. ok is false
// when the daemon died.
func (l *life) settle() (problems []string, ok bool) {
	failf := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	jobs, err := l.list()
	if err != nil {
		return nil, l.callFailed(&problems, err)
	}
	byTag := map[string]joblet.Job{}
	for _, job := range jobs {
		byTag[job.Spec.Labels["tag"]] = job
	}
	for _, p := range l.promises {
		job, found := byTag[p.tag]
		if p.told.State.Final() && !p.deleting && (!found || job.State != p.told.State) {
			failf("%s %s: was said to be %v, and after the restart is %v", p.tag, p.id, p.told.State, job.State)
		}
		if found && job.State == joblet.Canceled && p.after != nil {
			if other, found := byTag[p.after.tag]; found && !other.State.Final() {
				failf("%s %s: is CANCELED because %s ended, but that is %v", p.tag, job.ID, p.after.tag, other.State)
			}
		}
		if found && p.id == "" {
			p.id = job.ID
		}
	}
	for _, p := range l.promises {
		job, found := byTag[p.tag]
		switch {
		case p.spec.IdempotencyKey != "" && !p.deleting:
			if job, err := l.c.Run(l.ctx, p.spec); err != nil {
				return problems, l.callFailed(&problems, fmt.Errorf("submit again: %w", err))
			} else {
				l.answer(p, job, nil)
			}
		case found && !job.State.Final() && p.never:
			_, err = l.c.Cancel(l.ctx, job.ID)
		case found && !job.State.Final() && p.forever:
			_, err = l.c.Stop(l.ctx, job.ID, joblet.StopOptions{Grace: 5 * time.Second})
		}
		if err != nil && joblet.KindOf(err) != joblet.FailedPrecondition {
			return problems, l.callFailed(&problems, fmt.Errorf("%s: %w", p.tag, err))
		}
		err = nil
	}
	var open []string
	var listErr error
	eventually(2*patience, func() bool {
		open = nil
		jobs, listErr = l.list()
		for _, job := range jobs {
			if !job.State.Final() && !job.Spec.Repeats() {
				open = append(open, fmt.Sprintf("%s %s %v %s", job.Spec.Labels["tag"], job.ID, job.State, job.Reason))
			}
		}
		return len(open) == 0 || listErr != nil
	})
	if listErr != nil {
		return problems, l.callFailed(&problems, listErr)
	}
	for _, o := range open {
		failf("does not end: %s", o)
	}
	return problems, true
}

// callFailed notes an error unless the daemon has died.
func (l *life) callFailed(problems *[]string, err error) bool {
	if l.died() {
		return false
	}
	*problems = append(*problems, err.Error())
	return false
}

func (l *life) list() (jobs []joblet.Job, err error) {
	for job, err := range l.c.Jobs(l.ctx, joblet.Filter{}) {
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, job)
	}
	return jobs, nil
}

// verify checks, once all jobs have ended, that each promise was kept. ok is
// false when the daemon died.
func (l *life) verify() (problems []string, ok bool) {
	jobs, err := l.list()
	if err != nil {
		return nil, l.callFailed(&problems, err)
	}
	byTag := map[string][]joblet.Job{}
	for _, job := range jobs {
		tag := job.Spec.Labels["tag"]
		byTag[tag] = append(byTag[tag], job)
	}
	var kept []*promise
	for _, p := range l.promises {
		found := byTag[p.tag]
		delete(byTag, p.tag)
		var wrong []string
		if len(found) != 1 || !p.verified || p.deleted || found[0].State != p.told.State {
			if wrong, err = l.verifyPromise(p, found); err != nil {
				return nil, l.callFailed(&problems, fmt.Errorf("%s: %w", p.tag, err))
			}
		}
		problems = append(problems, wrong...)
		if len(found) > 0 {
			kept = append(kept, p)
			p.told, p.verified = found[0], len(wrong) == 0
		}
	}
	for tag, jobs := range byTag {
		problems = append(problems, fmt.Sprintf("job %s of %q: nobody asked for it, or it was gone", jobs[0].ID, tag))
	}
	if left := l.leaks(jobs); len(left) > 0 {
		if l.isGone() {
			return nil, false
		}
		problems = append(problems, left...)
	}
	r := l.d.rnx(l.ctx, "job", "list", "-q")
	ids := strings.Fields(r.stdout)
	slices.Sort(ids)
	var want []string
	for _, job := range jobs {
		want = append(want, job.ID)
	}
	slices.Sort(want)
	if r.status != 0 || !slices.Equal(ids, want) {
		if r.status != 0 && l.died() || l.isGone() {
			return nil, false
		}
		problems = append(problems, fmt.Sprintf("rnx job list: %v\nwant %v", r, want))
	}
	if l.isGone() {
		return nil, false
	}
	l.promises = kept
	return problems, true
}

// verifyPromise checks what has become of one job. An error is one of a call.
func (l *life) verifyPromise(p *promise, found []joblet.Job) (wrong []string, err error) {
	failf := func(format string, args ...any) {
		wrong = append(wrong, fmt.Sprintf("%s %s: ", p.tag, p.id)+fmt.Sprintf(format, args...))
	}
	l.mu.Lock()
	starts := slices.Clone(l.starts[p.tag])
	l.mu.Unlock()
	switch {
	case len(found) > 1:
		failf("there are %d jobs", len(found))
		return wrong, nil
	case len(found) == 0 && p.answered && !p.deleting:
		failf("is lost")
		return wrong, nil
	case len(found) == 0:
		// One that was never promised may have begun to run, unless asking again
		// must be harmless.
		if !p.deleting && len(starts) > 0 && (len(starts) > 1 || p.spec.IdempotencyKey != "") {
			failf("there is no such job, but it ran: %v", starts)
		}
		return wrong, nil
	case p.deleted || p.refused:
		failf("was deleted, or refused, and is there: %v", found[0].State)
		return wrong, nil
	}
	job := found[0]
	if p.id != "" && p.id != job.ID {
		failf("is now %s", job.ID)
	}
	out, errOut, err := l.read(job.ID)
	if err != nil {
		return nil, err
	}
	var want []joblet.State
	switch {
	case p.forever && job.Attempt == 0:
		want = []joblet.State{joblet.Canceled}
	case p.forever:
		want = []joblet.State{joblet.Stopped}
	case p.never, p.after != nil && (p.after.never || p.after.code != 0):
		want = []joblet.State{joblet.Canceled}
	case p.missing, p.code != 0:
		want = []joblet.State{joblet.Failed}
	default:
		want = []joblet.State{joblet.Completed}
	}
	if !slices.Contains(want, job.State) {
		failf("is %v (%s), want %v: %+v", job.State, job.Reason, want, job)
		return wrong, nil
	}
	if n := int64(len(out) + len(errOut)); job.LogBytes != n {
		failf("has %d bytes of log by its record, and %d were read", job.LogBytes, n)
	}
	var attempts []string
	for _, s := range starts {
		if s.id != job.ID {
			failf("ran as %s, too", s.id)
		}
		attempts = append(attempts, s.attempt)
	}
	ran := job.Attempt
	if p.missing {
		ran = 0
	} else if p.forever && len(attempts) == ran-1 { // stopped before its first word
		ran = len(attempts)
	}
	for i := range max(ran, len(attempts)) {
		if i >= len(attempts) || i >= ran || attempts[i] != fmt.Sprint(i+1) {
			failf("had the runs %v, want 1 to %d", attempts, ran)
			break
		}
	}
	if job.State == joblet.Canceled || p.missing {
		if p.missing && job.Failure != joblet.CommandNotFound {
			failf("failed as %v: %s", job.Failure, job.Reason)
		}
		if job.State == joblet.Canceled && (job.Attempt != 0 || out+errOut != "") {
			failf("was canceled and has run %d times", job.Attempt)
		}
		return wrong, nil
	}
	if job.State == joblet.Stopped {
		if full := p.stdout(job.ID); !strings.HasPrefix(full, out) {
			failf("its log is %q", out)
		}
		if p.out != "" && job.Exit != nil && job.Exit.Code == 3 && !strings.HasSuffix(out, p.out) {
			failf("its last words are missing: %q", out)
		}
		if job.Exit == nil {
			failf("has no exit status")
		}
		return wrong, nil
	}
	if job.Exit == nil || *job.Exit != (joblet.Exit{Code: p.code}) {
		failf("ended with %+v, want code %d", job.Exit, p.code)
	}
	if job.Attempt != p.runs || len(job.Past) != p.runs-1 {
		failf("has %d attempts, %d of them past, want %d", job.Attempt, len(job.Past), p.runs)
	}
	for i, a := range job.Past {
		if a.Exit == nil || a.Exit.Code != failing || a.State != joblet.Failed {
			failf("attempt %d was %+v", i+1, a)
		}
	}
	if out != p.stdout(job.ID) {
		failf("wrote %q, want %q", out, p.stdout(job.ID))
	}
	if errOut != p.stderr() {
		failf("wrote to stderr\n%s\nwant\n%s", errOut, p.stderr())
	}
	if p.kind == "input" {
		files, err := l.c.Files(l.ctx, job.ID, []string{"result.txt"})
		if err != nil {
			return nil, err
		}
		defer files.Close()
		archive := tar.NewReader(files)
		if _, err := archive.Next(); err != nil {
			failf("what it left in /work: %v", err)
		} else if data, err := io.ReadAll(archive); err != nil || !strings.HasSuffix(p.out, string(data)) || len(data) == 0 {
			failf("left %q: %v", data, err)
		}
	}
	return wrong, nil
}

// read returns a job's output.
func (l *life) read(id string) (out, errOut string, err error) {
	var both [2]strings.Builder
	for event, err := range l.c.Follow(l.ctx, id, joblet.LogOptions{}) {
		if err != nil {
			return "", "", err
		}
		if o, ok := event.(client.Output); ok {
			both[o.Stream-client.Stdout].Write(o.Data)
		}
	}
	return both[0].String(), both[1].String(), nil
}

// spares is how many boxes a daemon keeps ready for the next jobs.
const spares = 2

// leaks returns what is left of jobs that have ended. What is about to go has a
// moment.
func (l *life) leaks(jobs []joblet.Job) (left []string) {
	known := map[string]bool{}
	for _, job := range jobs {
		known[job.ID] = true
	}
	eventually(20*time.Second, func() bool {
		left = nil
		boxes := map[string]bool{}
		for _, group := range testenv.Groups(l.d.run) {
			found, _ := filepath.Glob(group + "/*-*")
			if len(found) > spares {
				left = append(left, fmt.Sprintf("%d cgroups in %s and no job", len(found), group))
			}
			for _, b := range found {
				boxes[filepath.Base(b)] = true
			}
		}
		if len(boxes) > spares {
			left = append(left, fmt.Sprintf("boxes %v and no job", slices.Sorted(maps.Keys(boxes))))
		}
		if n := l.shims(); n > 2*spares { // each with the first process of its box
			left = append(left, fmt.Sprintf("%d processes of shims and no job", n))
		}
		dirs, err := os.ReadDir(filepath.Join(l.d.state, "jobs"))
		if err != nil {
			left = append(left, err.Error())
		}
		for _, dir := range dirs {
			if !known[dir.Name()] {
				left = append(left, "directory of no job: "+dir.Name())
			}
		}
		if found, _ := filepath.Glob(l.d.state + "/lost+found/*"); len(found) > 0 {
			left = append(left, fmt.Sprintf("taken for lost: %v", found))
		}
		if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(l.d.run)) {
			left = append(left, "a mount below "+l.d.run)
		}
		return len(left) == 0 || l.isGone()
	})
	for _, name := range []string{"joblet.db", "joblet.db-wal"} {
		if data, err := os.ReadFile(filepath.Join(l.d.state, name)); err != nil || bytes.Contains(data, []byte(secret)) {
			left = append(left, fmt.Sprintf("a secret in %s, or %v", name, err))
		}
	}
	return left
}

// shims counts the processes of shims in the daemon's cgroups.
func (l *life) shims() (n int) {
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		comm, _ := os.ReadFile(name)
		if string(comm) != "joblet-shim\n" {
			continue
		}
		groups, _ := os.ReadFile(filepath.Dir(name) + "/cgroup")
		for _, own := range testenv.Groups(l.d.run) {
			if strings.Contains(string(groups), "/"+filepath.Base(own)+"/") {
				n++
				break
			}
		}
	}
	return n
}

// repeating kills daemons while they make the runs of jobs that repeat, most of
// them when these are due and one has begun to: it waits for the minute.
func (k *killer) repeating(t *testing.T) {
	const parents = 14
	if now := time.Now(); now.Second() > 30 { // all of them before the minute
		time.Sleep(now.Truncate(time.Minute).Add(time.Minute).Sub(now))
	}
	due := time.Now().Truncate(time.Minute).Add(time.Minute)
	l := k.begin(t, "", 0)
	all := map[string]*promise{}
	for i := range parents {
		p := k.promise("cron", 1, i%3, "cat; cat data.txt", "")
		if i%2 == 0 {
			p = k.promise("cron", 2, 0, "sleep 0.1; cat; cat data.txt", "")
		}
		p.out = "in\nfile\n"
		p.spec.Schedule, p.spec.Stdin = fmt.Sprintf("CRON_TZ=UTC %d * * * *", due.UTC().Minute()), joblet.StdinFile // once in this test
		if i%3 == 0 {
			p.spec.Overlap = joblet.OverlapQueue
		}
		p.input = func() client.Input {
			return client.Input{Stdin: strings.NewReader("in\n"), Files: func(w io.Writer) error {
				files := tar.NewWriter(w)
				if err := files.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "data.txt", Mode: 0o644, Size: 5}); err != nil {
					return err
				}
				if _, err := io.WriteString(files, "file\n"); err != nil {
					return err
				}
				return files.Close()
			}}
		}
		if _, ok := l.submit(p); !ok {
			t.Fatal("not accepted")
		}
		all[p.id] = p
	}
	l.kill()
	for _, at := range []struct {
		point string
		n     int
	}{
		{"fire.linked", 0}, {"fire.made", 0}, {"fire.recorded", 0}, {"fire.linked", 1}, {"fire.made", 1}, {"fire.recorded", 1},
		{"fire.made", 0}, {"fire.linked", 0}, {"fire.recorded", 0}, {"fire.made", 2}, {"fire.recorded", 0},
	} {
		if l := k.begin(t, at.point, at.n); l != nil && !l.end(max(time.Until(due), 0)+time.Minute) {
			t.Fatalf("the daemon did not die at %s:%d", at.point, at.n)
		}
	}
	l = k.begin(t, "", 0)
	defer l.kill()
	runs := func() (made int, all []joblet.Job) {
		jobs, err := l.list()
		if err != nil {
			t.Fatal(err)
		}
		ended := 0
		for _, job := range jobs {
			if job.Parent != "" {
				made++
				if job.State.Final() {
					ended++
				}
			}
		}
		if ended < made {
			made = 0
		}
		return made, jobs
	}
	if !eventually(patience, func() bool { made, _ := runs(); return made >= parents }) {
		t.Error("not all runs were made and ended")
	}
	for id, p := range all {
		if job, err := l.c.Cancel(l.ctx, id); err != nil || job.State != joblet.Canceled {
			t.Errorf("cancel %s: %v %v", p.tag, job.State, err)
		}
	}
	_, jobs := runs()
	seen := map[string]int{}
	for _, job := range jobs {
		p := all[job.Parent]
		if p == nil {
			continue
		}
		seen[job.Parent]++
		child := *p
		child.id, child.spec.IdempotencyKey, child.answered = job.ID, "", true
		wrong, err := l.verifyPromise(&child, []joblet.Job{job})
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range wrong {
			t.Error(w)
		}
	}
	for id, p := range all {
		if seen[id] != 1 {
			t.Errorf("%s: %d runs, want 1", p.tag, seen[id])
		}
	}
	for _, left := range l.leaks(jobs) {
		t.Error(left)
	}
}

// withoutRecords takes the database away from jobs that have ended, run and wait,
// and kills daemons while they make the records again.
func (k *killer) withoutRecords(t *testing.T) {
	l := k.begin(t, "", 0)
	for range 3 {
		if job, ok := l.submit(l.promise("run", 1, l.n(4), "", "")); !ok || !l.wait(l.promises[len(l.promises)-1], job.ID) {
			t.Fatal("not accepted, or no end")
		}
		l.opSlow()
		l.opKey()
		l.opCancel()
		l.opSoon()
	}
	l.kill()
	files, err := filepath.Glob(filepath.Join(k.d.state, "joblet.*"))
	if err != nil || len(files) < 3 {
		t.Fatalf("the records are in %v: %v", files, err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 4 {
		if l := k.begin(t, "lost.recorded", 2*n%5); l != nil {
			t.Fatal("the daemon did not die while it made the records again")
		}
	}
	l = k.begin(t, "", 0)
	defer l.kill()
	problems, ok := l.settle()
	if ok {
		var more []string
		more, ok = l.verify()
		problems = append(problems, more...)
	}
	for _, p := range problems {
		t.Error(p)
	}
	if !ok {
		t.Error("the daemon died")
	}
}
