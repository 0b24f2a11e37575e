package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"io"
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

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

// logEvent is a line of "rnx job log --json".
type logEvent struct {
	Event, Stream  string
	Offset, Length int64
	Time           time.Time
	Data           string
	Base64         []byte `json:"data_base64"`
}

func (e logEvent) bytes() []byte {
	if e.Base64 != nil {
		return e.Base64
	}
	return []byte(e.Data)
}

// events returns what "rnx job log --json" says, without the end.
func (d *daemon) events(t *testing.T, id string, flags ...string) (all []logEvent) {
	t.Helper()
	r := d.rnx(t.Context(), append([]string{"job", "log", "--json", id}, flags...)...)
	if r.status != 0 || r.stderr != "" {
		t.Fatalf("rnx job log --json: %v", r)
	}
	for line := range strings.Lines(r.stdout) {
		var e logEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, e)
	}
	if n := len(all); n == 0 || all[n-1].Event != "ended" {
		t.Fatalf("rnx job log --json does not end with the job: %+v", all)
	}
	return all[:len(all)-1]
}

// TestLogBytes: binary output on both streams is read back as it was written.
func TestLogBytes(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := d.detach(t, "bash", "-c", `
		head -c 2000003 /dev/urandom > o; head -c 1000033 /dev/urandom > e
		cat o & cat e >&2 & wait
		printf '\0\r\n\xff\033[2J' | tee -a o; printf '\0\xfe' | tee -a e >&2
		sha256sum < o > sums; sha256sum < e >> sums; rm o e`)
	d.ends(t, id, joblet.Completed)
	r := d.rnx(t.Context(), "job", "log", id)
	sums := func(stdout, stderr string) string {
		return fmt.Sprintf("%x  -\n%x  -\n", sha256.Sum256([]byte(stdout)), sha256.Sum256([]byte(stderr)))
	}
	dest := t.TempDir()
	d.says(t, 0, ``, ``, "job", "cp", id+":sums", dest)
	want, err := os.ReadFile(filepath.Join(dest, "sums"))
	if err != nil {
		t.Fatal(err)
	}
	if got := sums(r.stdout, r.stderr); got != string(want) {
		t.Errorf("log: %d and %d bytes\n%swant\n%s", len(r.stdout), len(r.stderr), got, want)
	}
	one, other := d.rnx(t.Context(), "job", "log", "--stdout", id), d.rnx(t.Context(), "job", "log", "--stderr", id)
	if sums(one.stdout, other.stderr) != string(want) || one.stderr != "" || other.stdout != "" {
		t.Errorf("one stream: %d and %d bytes, and %d and %d bytes of the other", len(one.stdout), len(other.stderr), len(one.stderr), len(other.stdout))
	}
	var streams [2]bytes.Buffer
	next := int64(0)
	for _, e := range d.events(t, id) {
		if e.Event != "output" || e.Offset != next {
			t.Fatalf("%s at %d, want output at %d", e.Event, e.Offset, next)
		}
		streams[map[string]int{"stdout": 0, "stderr": 1}[e.Stream]].Write(e.bytes())
		next += int64(len(e.bytes()))
	}
	if sums(streams[0].String(), streams[1].String()) != string(want) {
		t.Error("--json has other bytes")
	}
	if job := d.get(t, id); job.LogBytes != next {
		t.Errorf("the record says %d bytes of %d", job.LogBytes, next)
	}
}

// TestLogOrder: the order of the two streams, the times of lines, and what can be
// chosen by them.
func TestLogOrder(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	before := time.Now()
	// It goes on when what it has written was taken (FIONREAD): only then is there a
	// pause in the log, too, and an order of two streams.
	id := d.detach(t, "python3", "-c", `import fcntl, os, struct, termios, time
for i in range(1, 5):
    for fd, name in (1, "out"), (2, "err"):
        os.write(fd, ("%s %d\n" % (name, i)).encode())
        while struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]: time.sleep(0.01)
        time.sleep(0.15)`)
	d.ends(t, id, joblet.Completed)
	events := d.events(t, id)
	var got []string
	last := before
	for _, e := range events {
		got = append(got, e.Stream+" "+string(e.bytes()))
		if e.Time.Before(last) || e.Time.After(time.Now()) {
			t.Errorf("%q at %v, after %v", e.bytes(), e.Time, last)
		}
		last = e.Time.Add(100 * time.Millisecond) // there is a pause between any two
	}
	var want []string
	for i := range 4 {
		want = append(want, fmt.Sprintf("stdout out %d\n", i+1), fmt.Sprintf("stderr err %d\n", i+1))
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%q, want %q", got, want)
	}
	third, seventh := events[2].Time.Format(time.RFC3339Nano), events[6].Time.Format(time.RFC3339Nano)
	for _, test := range []struct{ flags, stdout, stderr string }{
		{"--since=" + third, "out 2\nout 3\nout 4\n", "err 2\nerr 3\nerr 4\n"},
		{"--until=" + third, "out 1\n", "err 1\n"},
		{"--since=" + third + " --until=" + seventh, "out 2\nout 3\n", "err 2\nerr 3\n"},
		{"--since=1h --stderr", "", "err 1\nerr 2\nerr 3\nerr 4\n"},
		{"--until=1h", "", ""},
		{"--tail=1", "", "err 4\n"},
		{"--tail=3", "out 4\n", "err 3\nerr 4\n"},
		{"-n 2 --stdout", "out 3\nout 4\n", ""},
		{"--tail=100", "out 1\nout 2\nout 3\nout 4\n", "err 1\nerr 2\nerr 3\nerr 4\n"},
		{"--tail=5 --since=" + seventh, "out 4\n", "err 4\n"},
		{"-f --tail=1 --stdout", "out 4\n", ""},
	} {
		r := d.rnx(t.Context(), append([]string{"job", "log", id}, strings.Fields(test.flags)...)...)
		if r.stdout != test.stdout || r.stderr != test.stderr || r.status != 0 {
			t.Errorf("log %s: %v\nwant %q and %q", test.flags, r, test.stdout, test.stderr)
		}
	}
	stamp := func(i int) string { return events[i].Time.UTC().Format("2006-01-02T15:04:05.000000Z ") }
	if r := d.rnx(t.Context(), "job", "log", "--timestamps", "--tail=2", id); r.stdout != stamp(6)+"out 4\n" || r.stderr != stamp(7)+"err 4\n" {
		t.Errorf("--timestamps: %v", r)
	}
	d.says(t, 1, ``, `rnx: --until 2h: must be later than --since 1h\n`, "job", "log", "--since=1h", "--until=2h", id)
	d.says(t, 1, ``, `rnx: --since: .*\n`, "job", "log", "--since=whenever", id)
	d.says(t, 1, ``, `rnx: --tail -1: .*\n`, "job", "log", "--tail=-1", id)
}

// TestLogMax: the newest output is kept, and what is gone is told.
func TestLogMax(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.says(t, 125, ``, `rnx: log limit 1K: .*\n`, "job", "run", "--log-max=1K", "true")
	var all strings.Builder
	for i := range 300000 {
		fmt.Fprintln(&all, i+1)
	}
	id := d.detach(t, "--log-max=128K", "seq", "300000")
	d.ends(t, id, joblet.Completed)
	r := d.rnx(t.Context(), "job", "log", id)
	m := regexp.MustCompile(`^rnx: (\d+) bytes of older output are gone \(the log's limit\)\n$`).FindStringSubmatch(r.stderr)
	if m == nil || r.status != 0 {
		t.Fatalf("stderr %q, status %d", r.stderr, r.status)
	}
	gone, _ := strconv.Atoi(m[1])
	if gone+len(r.stdout) != all.Len() || r.stdout != all.String()[gone:] || len(r.stdout) < 128<<10 || len(r.stdout) > 192<<10 {
		t.Errorf("%d bytes are gone and %d are there, of %d", gone, len(r.stdout), all.Len())
	}
	events := d.events(t, id)
	if e := events[0]; e.Event != "gap" || e.Offset != 0 || e.Length != int64(gone) || events[1].Offset != int64(gone) {
		t.Errorf("--json begins with %+v", e)
	}
	for _, e := range events[1:] {
		if e.Event != "output" {
			t.Errorf("a second gap: %+v", e)
		}
	}
	d.says(t, 0, "299999\n300000\n", ``, "job", "log", "--tail=2", id) // nothing of that is gone
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(d.state, "jobs", id, "log"), &st); err != nil || st.Blocks*512 > 256<<10 {
		t.Errorf("the log takes %d bytes on disk: %v", st.Blocks*512, err)
	}
	d.says(t, 0, `(?s).*\nOutput: +1\.9 MiB, the newest 128 KiB kept\n.*`, ``, "job", "status", id)
}

// TestLogGapReattached: rnx that was told of a gap goes on at the right place
// with the next daemon.
func TestLogGapReattached(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const lines = 4000000 // 31 MB: more than is under way to a reader that does not read
	cmd := d.command(t.Context(), "job", "run", "--name=flood", "--log-max=128K", "sh", "-c", fmt.Sprintf("w() { while [ ! -e /tmp/$1 ]; do sleep 0.1; done; }; echo begin; w a; seq %d; echo done; w b; echo end", lines))
	var out safeBuffer
	var errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !eventually(patience, func() bool { return out.Len() > 0 }) {
		t.Fatal("no output")
	}
	_ = cmd.Process.Signal(syscall.SIGSTOP)
	d.says(t, 0, ``, ``, "job", "exec", "flood", "touch", "/tmp/a")
	if !eventually(patience, func() bool { return d.rnx(t.Context(), "job", "log", "--tail=1", "flood").stdout == "done\n" }) {
		t.Fatal("the job does not go on without its reader")
	}
	_ = cmd.Process.Signal(syscall.SIGCONT)
	if !eventually(patience, func() bool { return bytes.HasSuffix(out.Bytes(), []byte("\ndone\n")) }) {
		t.Fatal("the reader does not go on")
	}
	d.kill(t)
	d.restart(t)
	d.says(t, 0, ``, ``, "job", "exec", "flood", "touch", "/tmp/b")
	err := cmd.Wait()
	total := len("begin\ndone\nend\n")
	for i := range lines {
		total += len(strconv.Itoa(i+1)) + 1
	}
	gone := 0
	for _, m := range regexp.MustCompile(`rnx: (\d+) bytes of older output are gone`).FindAllStringSubmatch(errOut.String(), -1) {
		n, _ := strconv.Atoi(m[1])
		gone += n
	}
	if err != nil || gone == 0 || gone+out.Len() != total || !bytes.HasSuffix(out.Bytes(), []byte("\ndone\nend\n")) {
		t.Errorf("%v: %d bytes are gone and %d are here, of %d; %q", err, gone, out.Len(), total, errOut.String())
	}
}

// safeBuffer can be looked at while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) Len() int { return len(b.Bytes()) }

// Bytes returns what was written so far, which does not change any more.
func (b *safeBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Bytes()
}

// floodLine is what yes(1) writes again and again.
const floodLine = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-the-quick-brown-fox-jumps-over-the-lazy-dog"

func floodSum(size int64) string {
	h := sha256.New()
	block := bytes.Repeat([]byte(floodLine+"\n"), 1000)
	for size > 0 {
		n := min(size, int64(len(block)))
		h.Write(block[:n])
		size -= n
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// counted is a hash that knows how far it is.
type counted struct {
	hash.Hash
	n atomic.Int64
}

func (c *counted) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.Hash.Write(p)
}

// TestLogFlood: a job writes 128 MiB as fast as it can; ten followers have all of
// it, one of which is stopped half-way while the others go on.
func TestLogFlood(t *testing.T) {
	t.Parallel()
	size := int64(32 << 20)
	d := newDaemon(t)
	var disk unix.Statfs_t
	if err := unix.Statfs(d.state, &disk); err != nil {
		t.Fatal(err)
	}
	if free := int64(disk.Bavail) * disk.Bsize; free < 2*size+512<<20 {
		size = 32 << 20
	}
	sum := floodSum(size)
	start := time.Now()
	id := d.detach(t, "--log-max=2G", "sh", "-c", fmt.Sprintf("yes %s | head -c %d", floodLine, size))
	var wg sync.WaitGroup
	follow := func(flags ...string) (*exec.Cmd, *counted, func()) {
		cmd := d.command(t.Context(), append([]string{"job", "log", id}, flags...)...)
		sum256 := &counted{Hash: sha256.New()}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, sum256, func() {
			_, err := io.Copy(sum256, out)
			waitErr := cmd.Wait()
			if got := fmt.Sprintf("%x", sum256.Sum(nil)); err != nil || waitErr != nil || stderr.Len() > 0 || sum256.n.Load() != size || got != sum {
				t.Errorf("follower %q: %d bytes of %d with sum %s, want %s; %v %v %s", flags, sum256.n.Load(), size, got, sum, err, waitErr, stderr.String())
			}
		}
	}
	slow, slowSum, slowRead := follow("-f")
	slowDone := make(chan struct{})
	go func() { defer close(slowDone); slowRead() }()
	for range 9 {
		_, _, read := follow("-f")
		wg.Go(read)
	}
	if !eventually(time.Minute, func() bool { return slowSum.n.Load() > size/8 }) {
		t.Fatal("no output")
	}
	if err := slow.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	wg.Wait() // nobody waits for the one that is stopped
	if at := slowSum.n.Load(); at == size {
		t.Error("the slow follower was never behind")
	} else {
		t.Logf("nine followers have %d MiB after %v, the stopped one %d MiB", size>>20, time.Since(start), at>>20)
	}
	d.ends(t, id, joblet.Completed)
	if err := slow.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	<-slowDone
	_, _, read := follow() // alone, afterwards
	read()
	t.Logf("all after %v", time.Since(start))
}

// TestLogFullDisk: with --log-full=shrink a job does not wait for room; it keeps
// its newest output and tells what is gone.
func TestLogFullDisk(t *testing.T) {
	t.Parallel()
	d := newDaemonOnDisk(t, "--log-full=shrink")
	const lines = 1000000 // 6.9 MB on 4 MiB, less what the database takes
	id := d.detach(t, "sh", "-c", fmt.Sprintf("while [ ! -e /tmp/go ]; do sleep 0.1; done; seq %d; exit 4", lines))
	ballast := filepath.Join(d.state, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d.says(t, 0, ``, ``, "job", "exec", id, "touch", "/tmp/go")
	d.says(t, 4, "4\n", ``, "job", "wait", id) // nobody has made room
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	r := d.rnx(t.Context(), "job", "log", id)
	m := regexp.MustCompile(`^rnx: (\d+) bytes of older output are gone \(the log's limit\)\n$`).FindStringSubmatch(r.stderr)
	if m == nil {
		t.Fatalf("nothing is said of the gap: status %d, %d bytes, stderr %q", r.status, len(r.stdout), r.stderr)
	}
	var all strings.Builder
	for i := range lines {
		fmt.Fprintln(&all, i+1)
	}
	gone, _ := strconv.Atoi(m[1])
	if gone+len(r.stdout) != all.Len() || r.stdout != all.String()[gone:] || len(r.stdout) < 256<<10 {
		t.Errorf("%d bytes are gone and %d are there, of %d", gone, len(r.stdout), all.Len())
	}
	if job := d.ends(t, id, joblet.Failed); job.LogBytes != int64(all.Len()) || job.Exit.Code != 4 {
		t.Errorf("%+v", job)
	}
}
