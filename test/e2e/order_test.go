package e2e

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

// alternating writes to both streams in turn, each time after the shim has taken what
// was written before (FIONREAD): a pause that is as short as it can be.
const alternating = `import fcntl, os, struct, sys, termios
for i in range(int(sys.argv[1])):
    fd = 1 + (i * 7 // 3) % 2
    os.write(fd, b"%d\n" % i)
    while struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]: os.sched_yield()
`

func countTo(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

// publicLog returns the output of a job as GetJobLogs has it.
func (d *daemon) publicLog(t *testing.T, id string) string {
	t.Helper()
	logs, err := api.NewJobServiceClient(d.public(t)).GetJobLogs(t.Context(), &api.GetJobLogsRequest{Uuid: id})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for {
		chunk, err := logs.Recv()
		if err == io.EOF {
			return b.String()
		} else if err != nil {
			t.Fatal(err)
		}
		b.Write(chunk.GetPayload())
	}
}

// TestOrder: the two streams stay in order when there are pauses between the writes.
func TestOrder(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const lines = 2000
	attached := d.command(t.Context(), "job", "run", "--name=order", "-T", "python3", "-c", alternating, fmt.Sprint(lines))
	both, err := os.Create(filepath.Join(t.TempDir(), "both")) // as 2>&1: one descriptor for both
	if err != nil {
		t.Fatal(err)
	}
	defer both.Close()
	attached.Stdout, attached.Stderr = both, both
	if err := attached.Run(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(both.Name())
	if err != nil || string(got) != countTo(lines) {
		t.Errorf("attached: %v, %d bytes: %.300q", err, len(got), got)
	}
	if got := d.publicLog(t, d.get(t, "order").ID); got != countTo(lines) {
		t.Errorf("GetJobLogs: %.300q", got)
	}
}

// TestOrderOfFirst: the stream that was written to first comes first, even if the shim
// gets to see both only later.
func TestOrderOfFirst(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for _, writes := range []string{"echo 1 >&2; echo 2", "echo 1; echo 2 >&2"} {
		id := d.detach(t, "sh", "-c", "until [ -e /tmp/go ]; do sleep 0.1; done; "+writes+"; touch /tmp/written; until [ -e /tmp/end ]; do sleep 0.1; done")
		shim := d.shimOf(t, id)
		if err := unix.Kill(shim, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		d.says(t, 0, ``, ``, "job", "exec", id, "sh", "-c", "touch /tmp/go; until [ -e /tmp/written ]; do sleep 0.1; done")
		if err := unix.Kill(shim, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		d.says(t, 0, ``, ``, "job", "exec", id, "touch", "/tmp/end")
		d.ends(t, id, joblet.Completed)
		if got := d.publicLog(t, id); got != "1\n2\n" {
			t.Errorf("%s: got %q", writes, got)
		}
	}
}

// TestMerge: with --merge there is one stream, in exact order, without any pause.
func TestMerge(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const pairs = 3000
	script := fmt.Sprintf(`i=0; while [ $i -lt %d ]; do echo $i; i=$((i+1)); echo $i >&2; i=$((i+1)); done; [ /dev/stdout -ef /dev/stderr ] || exit 1`, 2*pairs)
	want := countTo(2 * pairs)
	for _, flags := range [][]string{nil, {"--init"}, {"--user=1000"}} {
		name := "merge" + fmt.Sprint(len(flags))
		r := d.rnx(t.Context(), slices.Concat([]string{"job", "run", "-T", "--merge", "--name=" + name}, flags, []string{"sh", "-c", script})...)
		if r.status != 0 || r.stderr != "" || r.stdout != want {
			t.Errorf("%v: status %d, stderr %.300q, stdout of %d bytes: %.300q", flags, r.status, r.stderr, len(r.stdout), r.stdout)
		}
		for _, e := range d.events(t, name) {
			if e.Stream != "stdout" {
				t.Errorf("%v: the record has %s at %d", flags, e.Stream, e.Offset)
			}
		}
		if got := d.publicLog(t, d.get(t, name).ID); got != want {
			t.Errorf("%v: GetJobLogs: %.300q", flags, got)
		}
	}
	if job := d.get(t, "merge0"); !job.Spec.MergeOutput {
		t.Error("the status does not say so")
	}
	d.says(t, 0, `(?s).*\nOutput: +merged\n.*`, ``, "job", "status", "merge0")

	// Those that run later or again are the same.
	again := strings.TrimSpace(d.says(t, 0, `.*\n`, ``, "job", "rerun", "merge0").stdout)
	d.ends(t, again, joblet.Completed)
	retried := d.detach(t, "--merge", "--retry=1", "--retry-delay=1ms", "sh", "-c", "echo 1; echo 2 >&2; exit 3")
	d.ends(t, retried, joblet.Failed)
	later := d.detach(t, "--merge", "--schedule=+1s", "sh", "-c", script)
	d.ends(t, later, joblet.Completed)
	for id, want := range map[string]string{again: want, retried: "1\n2\n1\n2\n", later: want} {
		if r := d.rnx(t.Context(), "job", "log", id); r.stdout != want || r.stderr != "" {
			t.Errorf("%v, want %.300q", r, want)
		}
	}

	d.detach(t, "--name=host", "sleep", "600")
	if r := d.rnx(t.Context(), "job", "exec", "-T", "--merge", "host", "sh", "-c", script); r.status != 0 || r.stderr != "" || r.stdout != want {
		t.Errorf("exec: status %d, stderr %.300q, stdout of %d bytes: %.300q", r.status, r.stderr, len(r.stdout), r.stdout)
	}
	run, err := api.NewJobServiceClient(d.public(t)).RunJob(t.Context(), &api.RunJobRequest{Command: "sh", Args: []string{"-c", script}, MergeOutput: true})
	if err != nil || !run.GetJob().GetMergeOutput() {
		t.Fatalf("RunJob: %v, %v", run, err)
	}
	if got := d.publicLog(t, run.GetJobUuid()); got != want {
		t.Errorf("RunJob: %.300q", got)
	}
}
