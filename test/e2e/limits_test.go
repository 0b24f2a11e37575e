package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"math"
	"os"
	"path/filepath"
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

// Jobs that take what they can get. Those tests that measure how fast the daemon answers,
// or how fast a job is, run alone. The tests here run on this host, and on pure
// cgroup v2 in a virtual machine (test/vm), whose processor is emulated: there
// JOBLET_TEST_SLOW says how much more time things take.
var slow = func() time.Duration {
	n, err := strconv.Atoi(os.Getenv("JOBLET_TEST_SLOW"))
	if err != nil || n < 1 {
		return 1
	}
	return time.Duration(n)
}()

// answerTime is how soon "rnx job list" must have answered, whatever jobs do.
const answerTime = 200 * time.Millisecond

// listEvery is the time between two lists beside a job: each takes 60 ms of a processor.
const listEvery = 100 * time.Millisecond

// hostile runs a job to its end, and meanwhile lists jobs as a user would, over
// and over. It returns the job, and what it wrote.
func (d *daemon) hostile(t *testing.T, args ...string) (joblet.Job, string) {
	t.Helper()
	for try := 1; ; try++ {
		job, out, late, limit := d.hostileOnce(t, args...)
		if late <= limit {
			return job, out
		}
		if try == 3 { // others who load this host do not always do it just then
			t.Errorf("rnx job list took %v while the job ran, more than %v", late, limit)
			return job, out
		}
	}
}

// hostileOnce returns as well how late an answer was, and may have been.
func (d *daemon) hostileOnce(t *testing.T, args ...string) (job joblet.Job, out string, late, limit time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), slow*time.Minute)
	defer cancel()
	list := func() time.Duration {
		begin := time.Now()
		if r := d.rnx(ctx, "job", "list"); r.status != 0 && ctx.Err() == nil {
			t.Errorf("rnx job list: %v", r)
		}
		return time.Since(begin)
	}
	// Other tests and programs share the processors: what makes an answer late
	// without the job is not the job's doing.
	limit = answerTime * slow
	interval := listEvery
	control := func() {
		for range 10 {
			limit = max(limit, 3*list())
		}
	}
	if slow > 1 { // an emulated processor says little of speed, but of a daemon that hangs
		limit *= 20
		interval *= slow * 5
		control = func() {}
	}
	control()
	id := d.detach(t, args...)
	var answers []time.Duration
	stop := make(chan struct{})
	var lister sync.WaitGroup
	lister.Go(func() {
		for {
			answers = append(answers, list())
			select {
			case <-stop:
				return
			case <-time.After(interval):
			}
		}
	})
	c := d.dial(t)
	job, err := c.Wait(ctx, id)
	close(stop)
	lister.Wait()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(answers)
	t.Logf("%d answers, median %v, worst %v", len(answers), answers[len(answers)/2], answers[len(answers)-1])
	control()
	stdout, stderr := d.output(t, id)
	return job, stdout + stderr, answers[len(answers)-1-len(answers)/50], limit // one in fifty may be late because of other load
}

// needs skips a test of a limit that this host cannot enforce, which another
// test shows to be an error.
func (d *daemon) needs(t *testing.T, limit string) {
	t.Helper()
	if r := d.job(t, limit, "true"); strings.Contains(r.stderr, "this host cannot enforce it") {
		t.Skipf("requires a host that can enforce %s", limit)
	}
}

func TestLimitForkBomb(t *testing.T) {
	d := newDaemon(t)
	job, _ := d.hostile(t, "--max-pids=64", "timeout", "-s", "KILL", strconv.Itoa(int(min(slow, 5))*3), "bash", "-c", ":(){ :|:& }; : 2>/dev/null; sleep 1; while :; do :|: & done 2>/dev/null")
	if job.Usage.PIDsPeak > 64 || job.Usage.PIDsPeak < 32 {
		t.Errorf("%d processes at once", job.Usage.PIDsPeak)
	}
}

const bomb = "x = []\nwhile True: x.append(bytearray(1 << 20))"

// TestLimitMemory: whichever process uses up the memory, in whichever way, the
// whole job ends, as what it is.
func TestLimitMemory(t *testing.T) {
	d := newDaemon(t)
	fill := "import os\nf = open('%s/x', 'wb')\nwhile True: f.write(bytes(1 << 20))"
	for name, args := range map[string][]string{
		"process":    {"python3", "-c", bomb},
		"tmpfs":      {"python3", "-c", fmt.Sprintf(fill, "/work")},
		"shm":        {"--shm-size=1G", "sh", "-c", `python3 -c "$1"; sleep 1000`, "sh", fmt.Sprintf(fill, "/dev/shm")},
		"grandchild": {"sh", "-c", `sh -c 'python3 -c "$1"; true' sh "$1"; sleep 1000`, "sh", bomb},
		"daemon":     {"sh", "-c", `setsid python3 -c "$1" </dev/null >/dev/null 2>&1 & sleep 1000`, "sh", bomb},
		"with init":  {"--init", "sh", "-c", `python3 -c "$1" & sleep 1000`, "sh", bomb},
	} {
		t.Run(name, func(t *testing.T) {
			const limit = 48 << 20
			job, _ := d.hostile(t, append([]string{"--max-memory=48M", "--timeout=" + (slow * 20 * time.Second).String()}, args...)...)
			status, _ := job.Status()
			if job.State != joblet.Failed || !job.OutOfMemory || status != 137 {
				t.Errorf("%v, out of memory %v, status %d, %s", job.State, job.OutOfMemory, status, job.Reason)
			}
			if !strings.HasPrefix(job.Reason, "out of memory") || !strings.Contains(job.Reason, "48.0 MiB") {
				t.Errorf("reason %q", job.Reason)
			}
			// The kernel charges in batches of 64 pages for each processor.
			if peak := job.Usage.MemoryPeak; peak > limit+256<<10 || peak < limit*8/10 {
				t.Errorf("it used %d bytes at most, of %d", peak, limit)
			}
		})
	}
	// Memory that can be taken back is no reason to end a job.
	t.Run("page cache", func(t *testing.T) {
		args := []string{"--max-memory=32M", "--timeout=" + (slow * 20 * time.Second).String(), "sh", "-c", `cat "$@" >/dev/null`, "sh"}
		job, _ := d.hostile(t, append(args, largeFiles(t, 96<<20)...)...)
		if job.State != joblet.Completed || job.Usage.MemoryPeak > 32<<20+256<<10 {
			t.Errorf("%v, %s, %d bytes at most", job.State, job.Reason, job.Usage.MemoryPeak)
		}
	})
}

// largeFiles returns programs and libraries of the host that have so many bytes together.
func largeFiles(t *testing.T, want int64) (paths []string) {
	t.Helper()
	for _, pattern := range []string{"/usr/bin/*", "/usr/lib/*-linux-gnu/*.so*", "/usr/local/go/bin/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			st, err := os.Lstat(path)
			if err != nil || !st.Mode().IsRegular() || st.Size() < 1<<20 || st.Mode().Perm()&0o4 == 0 {
				continue
			}
			paths = append(paths, path)
			if want -= st.Size(); want <= 0 {
				return paths
			}
		}
	}
	t.Skipf("requires %d bytes more in large files of the host", want)
	return nil
}

// fillSockets holds as much as it can in the buffers of TCP or UDP sockets that
// nobody reads from, and writes how many bytes that is. It ends when one
// takes little: the kernel lets each have a packet beyond the limit.
const fillSockets = `import resource, socket, struct, sys, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
keep = []
def tcp():
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    client.setblocking(False)
    keep.append((server, client, server.accept()))
    n = 0
    try:
        while True: n += client.send(bytes(1 << 16))
    except BlockingIOError:
        return n
def udp():
    receiver, sender = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    receiver.bind(("127.0.0.1", 0))
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    for _ in range(400): sender.sendto(bytes(1400), receiver.getsockname())
    keep.append(receiver)
    SO_MEMINFO = 55
    return struct.unpack("I", receiver.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4))[0]
held = 0
for _ in range(500):
    n = tcp() if sys.argv[2] == "tcp" else udp()
    held += n
    print(held, flush=True)
    if n < 1 << 17 or held > 160 << 20: break
time.sleep(float(sys.argv[1]))
`

// heldIn returns the last figure that fillSockets wrote.
func heldIn(out string) (held int) {
	if lines := strings.Fields(out); len(lines) > 0 {
		held, _ = strconv.Atoi(lines[len(lines)-1])
	}
	return held
}

// TestLimitSockets: what waits in sockets is memory. On v1 it has a limit of its
// own, which is as high.
func TestLimitSockets(t *testing.T) {
	d := newDaemon(t)
	for _, kind := range []string{"tcp", "udp"} {
		t.Run(kind, func(t *testing.T) {
			job, out := d.hostile(t, "--max-memory=32M", "--timeout="+(min(slow, 6)*10*time.Second).String(), "python3", "-c", fillSockets, "2.5", kind) // a sample is taken meanwhile
			// On v2 it may be ended, or have so little left that it reads its program again and again.
			if job.State != joblet.Completed && job.State != joblet.TimedOut && !job.OutOfMemory {
				t.Fatalf("%v, %s\n%s", job.State, job.Reason, out)
			}
			held := heldIn(out)
			t.Logf("%v, it held %d bytes, used %d", job.State, held, job.Usage.MemoryPeak)
			if held > 64<<20 || held < 8<<20 {
				t.Errorf("it held %d bytes in sockets", held)
			}
			if job.Usage.MemoryPeak < int64(held)*8/10 {
				t.Errorf("it held %d bytes, %d were counted", held, job.Usage.MemoryPeak)
			}
		})
	}
	// A running job may get more, and keeps what it has.
	id := d.detach(t, "--max-memory=32M", "sh", "-c", `while [ ! -e /tmp/go ]; do sleep 0.05; done; exec python3 -c "$0" 1000 tcp`, fillSockets)
	if r := d.rnx(t.Context(), "job", "update", "--max-memory=1G", id); r.status != 0 {
		t.Fatal(r)
	}
	d.says(t, 0, ``, ``, "job", "exec", id, "touch", "/tmp/go")
	if !eventually(slow*20*time.Second, func() bool {
		return heldIn(d.stdout(t, id)) > 64<<20
	}) {
		t.Error("with 1 GiB it does not hold 64 MiB")
	}
	if r := d.rnx(t.Context(), "job", "update", "--max-memory=48M", id); r.status == 0 || !strings.Contains(r.stderr, "in use") {
		t.Errorf("less than is in use: %v", r)
	}
	if r := d.rnx(t.Context(), "job", "kill", id); r.status != 0 {
		t.Error(r)
	}
}

// TestLimitSwap: what a job may use of memory is all that it gets.
func TestLimitSwap(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	if r := d.job(t, "--max-swap=1M", "true"); r.status != 125 || !strings.Contains(r.stderr, "--max-memory") {
		t.Errorf("swap without memory: %v", r)
	}
	if r := d.job(t, "--max-memory=64M", "--max-swap=16M", "true"); r.status != 0 {
		t.Errorf("swap: %v", r)
	}
}

// TestLimitCPU: over ten seconds a job gets its share, within 3 %, be its
// processes one or several.
func TestLimitCPU(t *testing.T) {
	d := newDaemon(t)
	span := 10 * time.Second
	if slow > 1 { // it is not measured so well there anyway
		span = 4 * time.Second
	}
	for _, test := range []struct{ percent, loops int }{{25, 1}, {120, 4}} {
		t.Run(fmt.Sprint(test.percent), func(t *testing.T) {
			script := fmt.Sprintf("for i in $(seq %d); do while :; do :; done & done; sleep %d; kill $(jobs -p)", test.loops, span/time.Second)
			if test.percent > 100 && slow > 1 {
				t.Skip("requires a processor that is not emulated")
			}
			for try := 1; ; try++ {
				before := idleTime(t)
				// The weight: others may run here too.
				job, _ := d.hostile(t, "--max-cpu="+strconv.Itoa(test.percent), "--cpu-weight=10000", "bash", "-c", script)
				unused := idleTime(t) - before
				wall := job.Ended.Sub(job.Started)
				limit := wall * time.Duration(test.percent) / 100
				got := job.Usage.CPU()
				t.Logf("%.4f of the limit in %v, held back for %v; the host was idle for %v", float64(got)/float64(limit), wall, job.Usage.Throttled, unused)
				if test.percent < 50 && got > limit*90/100 && job.Usage.Throttled == 0 {
					t.Error("it was never held back")
				}
				most := limit * 103 / 100
				if slow > 1 { // ticks of an emulated processor come late, and with them the throttling
					most = limit * 110 / 100
				}
				if got > most {
					t.Errorf("it got %v, its limit is %v", got, limit)
				}
				// Other programs may leave it less than its share, and what they leave later
				// does not make up for it. What they left all the time was its to take.
				if got >= limit*97/100 || try > 1 && unused <= (limit-got)/2+wall/10 || slow > 1 && got >= limit*80/100 {
					break
				}
				if try == 4 {
					t.Errorf("it got %v, its limit is %v, and the host was idle for %v", got, limit, unused)
					break
				}
			}
		})
	}
}

// idleTime is how long the host's processors had nothing to do, added up.
func idleTime(t *testing.T) time.Duration {
	t.Helper()
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	ticks, err := strconv.ParseInt(strings.Fields(string(stat))[4], 10, 64) // of 10 ms, proc_stat(5)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// TestLimitNeighbour: a job with limits of its own keeps its speed while another
// one burns all processors.
func TestLimitNeighbour(t *testing.T) {
	d := newDaemon(t)
	c := d.dial(t)
	speed := func() float64 { // processor time, and a weight beside which the burner is nothing: others may run here too
		id := d.detach(t, "--max-cpu=50", "--cpu-weight=10000", "python3", "-c", "import time\nend = time.monotonic() + 3\nwhile time.monotonic() < end: pass")
		job, err := c.Wait(t.Context(), id)
		if err != nil || job.State != joblet.Completed {
			t.Fatal(job.State, err)
		}
		return job.Usage.CPU().Seconds()
	}
	best := 0.0
	for range 5 {
		alone := speed()
		burner := d.detach(t, "bash", "-c", "for i in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait")
		beside := speed()
		if r := d.rnx(t.Context(), "job", "kill", burner); r.status != 0 {
			t.Fatal(r)
		}
		best = max(best, beside/alone)
		t.Logf("%.2f s alone, %.2f s beside a burner: %.3f", alone, beside, beside/alone)
		if best >= 0.9 {
			return
		}
	}
	t.Errorf("beside a burner it has %.2f of its speed", best)
}

func TestLimitDisk(t *testing.T) {
	d := newDaemon(t)
	job, out := d.hostile(t, "--max-disk=16M", "sh", "-c", "dd if=/dev/zero of=/work/x bs=1M count=100; dd if=/dev/zero of=/tmp/y bs=1M count=1")
	if !strings.Contains(out, "No space left on device") || job.State != joblet.Failed {
		t.Errorf("disk filler: %v\n%s", job.State, out)
	}
	if job.WorkBytes > 16<<20 {
		t.Errorf("%d bytes were left", job.WorkBytes)
	}
	script := `import os, sys
n = 0
try:
    while n < 200000:
        open("/work/%d" % n, "w").close()
        n += 1
except OSError as e:
    os.system("rm -rf /work/* 2>/dev/null")
    print(n, e.strerror)`
	job, out = d.hostile(t, "--max-disk=16M", "python3", "-c", script)
	var n int
	if _, err := fmt.Sscan(out, &n); err != nil || n > 4096 || n < 3000 || !strings.Contains(out, "No space left") {
		t.Errorf("inode eater: %v %s: %v", job.State, out, err)
	}
}

func TestLimitLog(t *testing.T) {
	d := newDaemon(t)
	job, _ := d.hostile(t, "--log-max=1M", "--timeout="+(slow*30*time.Second).String(), "sh", "-c", "yes | head -c "+strconv.Itoa(200<<20/int(slow)))
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(d.state, "jobs", job.ID, "log"), &st); err != nil {
		t.Fatal(err)
	}
	if kept := st.Blocks * 512; job.State != joblet.Completed || kept > 3<<20 {
		t.Errorf("%v, %d bytes are kept", job.State, kept)
	}
}

func TestLimitDescriptors(t *testing.T) {
	d := newDaemon(t)
	script := `import os
n = 0
try:
    while True:
        os.open("/dev/null", os.O_RDONLY)
        n += 1
except OSError as e:
    print(n, e.strerror)`
	if _, out := d.hostile(t, "--nofile=64", "python3", "-c", script); out != "61 Too many open files\n" {
		t.Errorf("got %s", out)
	}
	out := d.must(t, "--nofile=32:64", "--rlimit=stack=1048576", "--rlimit", "core=0", "sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -s")
	if out != "32\n64\n1024\n" {
		t.Errorf("got %s", out)
	}
}

// TestLimitIO: what a job reads from a device is held to its rate within 10 %, and
// counted.
func TestLimitIO(t *testing.T) {
	const mib, rate = 1 << 20, 4 << 20
	// A runtime of a program and a file to read, on the disk that this test may use:
	// what is to be limited is the way to the device, not the page cache.
	d := newDaemon(t)
	d.needs(t, "--max-read-bps=4M")
	if err := os.Remove(filepath.Join(d.state, "runtimes")); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(d.state, "runtimes", "disk")
	root := filepath.Join(dir, "rootfs")
	copyProgram(t, "dd", root)
	data := make([]byte, 48*mib)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "data"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	unix.Sync()
	if err := os.WriteFile(filepath.Join(dir, "runtime.yaml"), []byte("format: 1\nname: disk\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.kill(t) // one that opens this directory
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	read := func(count int, args ...string) joblet.Job {
		args = append(args, "--runtime=disk", "dd", "if=/data", "of=/dev/null", "bs=128K", "iflag=direct", "count="+strconv.Itoa(count*8))
		job, out := d.hostile(t, args...)
		if job.State != joblet.Completed {
			t.Fatalf("%v: %s\n%s", job.State, job.Reason, out)
		}
		if n := int64(count * mib); job.Usage.ReadBytes < n || job.Usage.ReadBytes > n+4*mib || job.Usage.ReadOps == 0 {
			t.Errorf("%d MiB were counted as %d bytes and %d operations", count, job.Usage.ReadBytes, job.Usage.ReadOps)
		}
		return job
	}
	free := read(8)
	limited := read(40, "--max-read-bps=4M")
	seconds := limited.Ended.Sub(limited.Started).Seconds()
	got := 40 * mib / seconds
	t.Logf("%.2f MiB/s without a limit, %.2f with one of 4", 8/free.Ended.Sub(free.Started).Seconds(), got/mib)
	if math.Abs(got/rate-1) > 0.1 {
		t.Errorf("it read %.0f bytes a second, its limit is %d", got, rate)
	}
	if byCount := read(10, "--max-iops=20"); byCount.Ended.Sub(byCount.Started).Seconds() < 0.9*80/20 {
		t.Errorf("80 operations at 20 a second took %v", byCount.Ended.Sub(byCount.Started))
	}
	// The older name is for both directions, and a job's limits can be changed as it
	// runs.
	id := d.detach(t, "--max-iobps=64K", "--runtime=disk", "dd", "if=/data", "of=/dev/null", "bs=128K", "iflag=direct", "count=80")
	if r := d.rnx(t.Context(), "job", "update", "--max-iobps=1G", id); r.status != 0 {
		t.Fatal(r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), slow*20*time.Second)
	defer cancel()
	if job, err := d.dial(t).Wait(ctx, id); err != nil || job.State != joblet.Completed {
		t.Errorf("after the update: %v %v", job.State, err)
	}
}

// TestLimitRefused: what cannot be is told before anything is made.
func TestLimitRefused(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for _, test := range []struct{ flag, want string }{
		{"--max-cpu=0", "between 1 and"}, {"--max-cpu=1000000000", "between 1 and"}, {"--max-cpu=-1", "between 1 and"},
		{"--max-cpu=x", "not a whole number"}, {"--max-cpu=819200", "this host has"},
		{"--cpu-cores=8000", "no processor 8000"}, {"--cpu-cores=", "is not a valid list of processors"}, {"--cpu-cores=1-0", "is not a valid list of processors"},
		{"--cpu-weight=10001", "between 1 and 10000"},
		{"--max-memory=1K", "between 4M and"}, {"--max-memory=0", "between 4M and"}, {"--max-memory=12X", "not a valid size"},
		{"--max-pids=0", "between 1 and"}, {"--max-disk=1", "between"}, {"--max-iobps=1", "between"}, {"--max-iops=0", "between"},
		{"--nofile=64:32", "must not exceed the hard limit"}, {"--nofile=99999999", "this host allows at most"},
		{"--rlimit=nice=1", "NAME one of"}, {"--rlimit=core", "NAME one of"},
	} {
		if test.flag == "--max-disk=1" {
			test.flag = "--max-disk=1B"
		}
		r := d.job(t, test.flag, "true")
		flag, _, _ := strings.Cut(test.flag, "=")
		if r.status != 125 || !strings.Contains(r.stderr, test.want) || !strings.Contains(r.stderr, flag) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%s: want %q: %v", test.flag, test.want, r)
		}
	}
	if r := d.job(t, "--memory-high=64M", "--max-memory=32M", "true"); r.status != 125 || !strings.Contains(r.stderr, "must not exceed --max-memory") {
		t.Errorf("high above max: %v", r)
	}
	if r := d.rnx(t.Context(), "job", "list", "-q"); r.stdout != "" {
		t.Errorf("refused jobs left records: %v", r)
	}
	// Files that come along count as the job's memory, and a limit that does not hold
	// them is the call's error.
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, make([]byte, 40<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := d.job(t, "--max-memory=16M", "--upload="+big, "true"); r.status != 125 || !strings.Contains(r.stderr, "out of memory before the command ran") {
		t.Errorf("40 MiB of files in 16 MiB: %v", r)
	}
	if r := d.job(t, "--max-memory=64M", "--max-pids=1", "--upload="+big, "cat", "big"); r.status != 0 || len(r.stdout) != 40<<20 {
		t.Errorf("40 MiB of files in 64 MiB: status %d, %d bytes, %s", r.status, len(r.stdout), r.stderr)
	}
	if r := d.job(t, "--max-disk=16M", "--upload="+big, "true"); r.status != 125 || !strings.Contains(r.stderr, "do not fit") {
		t.Errorf("40 MiB of files on 16 MiB: %v", r)
	}
}

// TestLimitAPI: fields of older clients are limits, and bad values errors.
func TestLimitAPI(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "--default=max-memory=512M", "--default=nofile=256", "--ceiling=max-memory=1G", "--ceiling=max-cpu=150")
	c := d.dial(t)
	id := d.detach(t, "--max-cpu=50", "sleep", "1000")
	job := d.get(t, id)
	if l := job.Spec.Limits; l.MemoryBytes != 512<<20 || l.CPUPercent != 50 || l.Rlimits["nofile"].Hard != 256 {
		t.Errorf("limits %+v", l)
	}
	if l := d.get(t, d.detach(t, "true")).Spec.Limits; l.CPUPercent != 150 {
		t.Errorf("a job that asks for nothing has %+v", l)
	}
	if r := d.job(t, "--max-memory=2G", "true"); r.status != 125 || !strings.Contains(r.stderr, "allows at most 1G") {
		t.Errorf("above the ceiling: %v", r)
	}
	_, err := c.Update(t.Context(), id, joblet.Limits{MemoryBytes: 2 << 30})
	if joblet.KindOf(err) != joblet.PermissionDenied {
		t.Errorf("update above the ceiling: %v", err)
	}
	_, err = c.Run(t.Context(), joblet.Spec{Command: "true", Limits: joblet.Limits{CPUPercent: -5}})
	if joblet.KindOf(err) != joblet.InvalidArgument {
		t.Errorf("a negative limit: %v", err)
	}
	for _, args := range [][]string{{"--default=max-memory=2G", "--ceiling=max-memory=1G"}, {"--ceiling=max-memory"}, {"--default=colour=red"}} {
		bad := &daemon{state: filepath.Join(t.TempDir(), "s"), run: filepath.Join(t.TempDir(), "r"), args: args}
		if err := bad.start(); err == nil {
			bad.stop()
			t.Errorf("a daemon starts with %q", args)
		}
	}
}

// TestLimitUpdate changes a running job's limits.
func TestLimitUpdate(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	script := `import sys
x = bytearray(40 << 20)
print("ready", flush=True)
sys.stdin.readline()
y = bytearray(100 << 20)
print("done", flush=True)`
	cmd := d.command(t.Context(), "job", "run", "--name=grow", "--max-memory=64M", "--stdin", "python3", "-c", script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out testenv.Output
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !eventually(slow*20*time.Second, func() bool { return strings.Contains(out.String(), "ready") }) {
		t.Fatal(out.String())
	}
	update := func(args ...string) result {
		return d.rnx(t.Context(), append(append([]string{"job", "update"}, args...), "grow")...)
	}
	if r := update("--max-memory=8M"); r.status == 0 || !strings.Contains(r.stderr, "in use") {
		t.Errorf("less than is in use: %v", r)
	}
	if r := update("--max-memory=300M", "--cpu-cores=8000"); r.status == 0 {
		t.Errorf("a processor that is not there: %v", r)
	}
	if got := d.get(t, "grow").Spec.Limits.MemoryBytes; got != 64<<20 {
		t.Errorf("a refused update left a limit of %d", got)
	}
	if r := update("--max-memory=300M", "--max-cpu=150", "--max-pids=50", "--max-disk=32M"); r.status != 0 {
		t.Errorf("%v", r)
	}
	if r := update(); r.status == 0 || !strings.Contains(r.stderr, "no limit given") {
		t.Errorf("an update of nothing: %v", r)
	}
	d.kill(t) // what was changed is remembered
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	if l := d.get(t, "grow").Spec.Limits; l.MemoryBytes != 300<<20 || l.CPUPercent != 150 || l.MaxPIDs != 50 || l.DiskBytes != 32<<20 {
		t.Errorf("after a restart: %+v", l)
	}
	// The input goes on through the daemon that is there now.
	_ = in.Close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if r := d.rnx(t.Context(), "job", "kill", "grow"); r.status != 0 {
		t.Error(r)
	}

	// With more memory than at first it comes to its end.
	id := d.detach(t, "--max-memory=64M", "sh", "-c", `while [ ! -e /tmp/go ]; do sleep 0.05; done; exec python3 -c 'x = bytearray(100 << 20); print("done")'`)
	if r := d.rnx(t.Context(), "job", "update", "--max-memory=300M", id); r.status != 0 {
		t.Fatal(r)
	}
	d.says(t, 0, ``, ``, "job", "exec", id, "touch", "/tmp/go")
	if job, err := d.dial(t).Wait(t.Context(), id); err != nil || job.State != joblet.Completed {
		t.Errorf("%v %v %s", job.State, err, job.Reason)
	}
	if r := d.rnx(t.Context(), "job", "update", "--max-memory=300M", id); r.status == 0 || !strings.Contains(r.stderr, "has ended") {
		t.Errorf("update of an ended job: %v", r)
	}
}

// TestLimitPause: a paused job stands still, through a killed daemon as well, and
// goes on or ends as asked.
func TestLimitPause(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := d.detach(t, "bash", "-c", "trap 'echo term; exit 3' TERM; (while :; do echo child; sleep 0.05; done) & while :; do echo x; sleep 0.05; done")
	size := func() int { return len(d.stdout(t, id)) }
	grows := func() bool {
		before := size()
		return eventually(patience, func() bool { return size() > before })
	}
	if !grows() {
		t.Fatal("it writes nothing")
	}
	rnx := func(args ...string) result { return d.rnx(t.Context(), append([]string{"job"}, args...)...) }
	if r := rnx("resume", id); r.status == 0 || !strings.Contains(r.stderr, "not paused") {
		t.Errorf("resume of a job that runs: %v", r)
	}
	if r := rnx("pause", id); r.status != 0 {
		t.Fatal(r)
	}
	stands := func() {
		t.Helper()
		if !eventually(patience, func() bool { // what was in its pipe may come yet
			before := size()
			time.Sleep(slow * 300 * time.Millisecond)
			return size() == before
		}) {
			t.Error("a paused job writes on")
		}
		if state := d.get(t, id).State; state != joblet.Paused {
			t.Errorf("a paused job is %v", state)
		}
	}
	stands()
	d.kill(t)
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	stands()
	if r := rnx("resume", id); r.status != 0 || !grows() {
		t.Errorf("resume: %v", r)
	}
	if r := rnx("pause", id); r.status != 0 {
		t.Fatal(r)
	}
	if r := rnx("stop", id); r.status != 0 {
		t.Fatal(r)
	}
	if job := d.get(t, id); job.State != joblet.Stopped || job.Exit == nil || job.Exit.Code != 3 {
		t.Errorf("a paused job that was stopped is %v with %+v", job.State, job.Exit)
	}
	if r := rnx("pause", id); r.status == 0 || !strings.Contains(r.stderr, "has ended") {
		t.Errorf("pause of an ended job: %v", r)
	}
	// Its time goes on.
	for timeout := min(slow, 4) * time.Second; ; timeout *= 4 {
		id = d.detach(t, "--timeout="+timeout.String(), "sleep", "1000")
		r := rnx("pause", id)
		if r.status == 0 {
			break
		}
		if timeout > slow*10*time.Second || !strings.Contains(r.stderr, "has ended") { // it was too late
			t.Fatal(r)
		}
	}
	if job, err := d.dial(t).Wait(t.Context(), id); err != nil || job.State != joblet.TimedOut {
		t.Errorf("%v %v", job.State, err)
	}
}

// TestLimitUsage: figures of an ended job are those of all its processes.
func TestLimitUsage(t *testing.T) {
	d := newDaemon(t)
	loops := 300000 / min(slow, 5)
	job, out := d.hostile(t, "bash", "-c", fmt.Sprintf(`(for ((i = 0; i < %d; i++)); do :; done) & (x=$(head -c 20000000 /dev/zero | tr '\0' x); sleep 2.2) & sleep 2.2 & sleep 2.2 & wait; times`, loops))
	u := job.Usage
	// "times" has, on two lines, the shell's own time and that of its children.
	var told time.Duration
	for _, field := range strings.Fields(out) {
		n, err := time.ParseDuration(field)
		if err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		told += n
	}
	if cpu := u.CPU(); cpu < 200*time.Millisecond || cpu < told*9/10 || cpu > told*11/10+slow*100*time.Millisecond {
		t.Errorf("processor time %v, the shell knows of %v", cpu, told)
	}
	if u.MemoryPeak < 20<<20 || u.MemoryPeak > 400<<20 {
		t.Errorf("memory %d", u.MemoryPeak)
	}
	if u.PIDsPeak < 4 || u.PIDsPeak > 20 {
		t.Errorf("%d processes", u.PIDsPeak)
	}
	r := d.rnx(t.Context(), "job", "status", job.ID)
	for _, want := range []string{"CPU: ", "Memory: ", "Processes: ", "Duration: "} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("status lacks %s: %v", want, r)
		}
	}
	r = d.rnx(t.Context(), "job", "status", "--json", job.ID)
	for _, want := range []string{`"cpu_user_ms":`, `"memory_peak_bytes":`, `"throttled_ms":`, `"read_ops":`, `"pids_peak":`, `"duration_ms":`} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("JSON lacks %s: %v", want, r)
		}
	}
	// So far, while it runs.
	id := d.detach(t, "sh", "-c", "while :; do :; done")
	if !eventually(slow*20*time.Second, func() bool { return d.get(t, id).Usage.CPU() > 100*time.Millisecond }) {
		t.Errorf("a running job's processor time is %v", d.get(t, id).Usage.CPU())
	}
}

// TestLimitSurvivors: nothing outlives a job, however much it tries.
func TestLimitSurvivors(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	script := `trap '' TERM INT HUP QUIT USR1
(setsid bash -c "trap '' TERM INT HUP; sleep 1000 & exec sleep 1001" &)
python3 -c 'import os, signal, time
for s in range(1, 32):
    try: signal.signal(s, signal.SIG_IGN)
    except OSError: pass
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1000)
    os._exit(0)
print("ready", flush=True)
time.sleep(1000)' &
wait`
	for _, how := range []string{"stop", "end"} {
		t.Run(how, func(t *testing.T) {
			id := d.detach(t, "bash", "-c", script)
			if !eventually(slow*20*time.Second, func() bool { return d.stdout(t, id) == "ready\n" }) {
				t.Fatal("it did not begin")
			}
			job := d.get(t, id)
			var alive []int
			if !eventually(slow*10*time.Second, func() bool {
				alive = processesOf(job.IDBase)
				return len(alive) >= 5 && d.get(t, id).Usage.PIDsPeak >= 5
			}) {
				t.Errorf("%d processes live, %d were counted", len(alive), d.get(t, id).Usage.PIDsPeak)
			}
			if how == "stop" {
				if r := d.rnx(t.Context(), "job", "stop", "--grace=200ms", id); r.status != 0 {
					t.Fatal(r)
				}
			} else if err := syscall.Kill(job.PID, syscall.SIGKILL); err != nil { // PID 1 ends by itself
				t.Fatal(err)
			}
			if _, err := d.dial(t).Wait(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if left := processesOf(job.IDBase); len(left) > 0 {
				t.Errorf("processes %v outlive the job", left)
			}
		})
	}
}

// processesOf returns the processes of the host that have a job's ids.
func processesOf(base uint32) (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		status, err := os.ReadFile("/proc/" + e.Name() + "/status")
		if err != nil {
			continue
		}
		_, rest, _ := bytes.Cut(status, []byte("\nUid:\t"))
		fields := bytes.Fields(rest)
		if len(fields) == 0 || bytes.Contains(status, []byte("\nState:\tZ")) {
			continue
		}
		if uid, err := strconv.ParseUint(string(fields[0]), 10, 32); err == nil && uint32(uid) >= base && uint32(uid) < base+65536 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestLimitMetrics: samples while a job runs, and kept afterwards.
func TestLimitMetrics(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.dial(t)
	id := d.detach(t, "--max-memory=256M", "bash", "-c", "while :; do :; done & sleep 1000")
	n := 0
	for s, err := range c.WatchMetrics(t.Context(), id, 200*time.Millisecond) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n < 3 {
			continue
		}
		if s.CPUPercent >= 5 && s.CPUPercent <= 120 && s.Memory > 0 && s.PIDs == 3 && s.MemoryLimit == 256<<20 && s.CPU() > 0 {
			break
		}
		if n > int(100*slow) { // on a busy host not the first
			t.Errorf("sample %+v", s)
			break
		}
	}
	if !eventually(slow*20*time.Second, func() bool { return count(c.Metrics(t.Context(), id, time.Time{}, time.Time{}, 0)) >= 3 }) {
		t.Error("no history of a job that runs")
	}
	d.kill(t)
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	c = d.dial(t)
	// Of a job that another daemon goes on watching.
	samples := func() int { return count(c.Metrics(t.Context(), id, time.Time{}, time.Time{}, 0)) }
	if before := samples(); !eventually(slow*20*time.Second, func() bool { return samples() >= before+2 }) {
		t.Errorf("still %d samples with another daemon", before)
	}
	if r := d.rnx(t.Context(), "job", "kill", id); r.status != 0 {
		t.Fatal(r)
	}
	if n := count(c.WatchMetrics(t.Context(), id, time.Second)); n != 0 {
		t.Errorf("an ended job has %d live samples", n)
	}
	var last joblet.Sample
	for s, err := range c.Metrics(t.Context(), id, time.Time{}, time.Time{}, 0) {
		if err != nil || !s.Time.After(last.Time) || s.CPU() < last.CPU() {
			t.Fatalf("%+v behind %+v: %v", s, last, err)
		}
		last = s
	}
	if all := count(c.Metrics(t.Context(), id, time.Time{}, time.Time{}, 0)); all < 4 || count(c.Metrics(t.Context(), id, time.Time{}, time.Time{}, 2)) != 2 || count(c.Metrics(t.Context(), id, last.Time.Add(time.Hour), time.Time{}, 0)) != 0 {
		t.Errorf("%d samples are kept", all)
	}
	if _, err := c.Job(t.Context(), id); err != nil {
		t.Error(err)
	}
	for _, err := range c.WatchMetrics(t.Context(), id, time.Millisecond) {
		if joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("a sample each millisecond: %v", err)
		}
	}
}

func count(samples func(func(joblet.Sample, error) bool)) (n int) {
	for _, err := range samples {
		if err != nil {
			return -1
		}
		n++
	}
	return n
}
