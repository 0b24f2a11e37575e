package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet"
)

// deniedPython has calls that the default profile refuses: each prints its error.
const deniedPython = `
import ctypes, errno, os, platform, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
numbers = dict(bpf=(321, 280), io_uring_setup=(425, 425), unshare=(272, 97), clone3=(435, 435), kcmp=(312, 272), mount=(165, 40))
def call(name, *args):
    nr = numbers[name][platform.machine() != "x86_64"]
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(nr, *map(ctypes.c_long, args)) == -1 else "done"
def alg():
    try:
        return socket.socket(38, 5, 0) and "done"
    except OSError as e:
        return errno.errorcode[e.errno]
def flood(n):
    return sum(call("bpf", 0, 0, 0) == "EPERM" for _ in range(n))
`

// denied returns a job's denied calls by name and argument.
func denied(t *testing.T, job joblet.Job) map[string]joblet.DeniedCall {
	t.Helper()
	calls := make(map[string]joblet.DeniedCall)
	for i, c := range job.Denied {
		if i > 0 && job.Denied[i-1].Count < c.Count {
			t.Errorf("%+v is behind %+v", c, job.Denied[i-1])
		}
		calls[c.Call+" "+c.Argument] = c
	}
	return calls
}

// TestLogDenied: a job gets the same errors whether its denied calls are logged or
// not, and each is counted, whichever of its processes and threads makes it.
func TestLogDenied(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	script := deniedPython + `
def few():
    for _ in range(10):
        call("kcmp", 1, 1, 0, 0, 0)
print(call("bpf", 0, 0, 0), call("io_uring_setup", 1, 0), call("unshare", 0x10000000), alg(), call("mount", 0, 0, 0, 0, 0))
print(call("clone3", 0, 0), errno.errorcode.get(libc.syscall(9999) and ctypes.get_errno()), call("unshare", 0))
threads = [threading.Thread(target=few) for _ in range(5)]
[t.start() for t in threads]
[t.join() for t in threads]
for _ in range(4):
    if os.fork() == 0:
        if os.fork() == 0:
            few()
            os._exit(0)
        os.wait()
        os._exit(0)
for _ in range(4):
    os.wait()
sys.exit(3)
`
	const errors = "EPERM ENOSYS EPERM EAFNOSUPPORT EPERM\nENOSYS ENOSYS done\n"
	d.says(t, 3, errors, ``, "job", "run", "python3", "-c", script)

	notes := `(?s)rnx: denied kcmp: 90 × EPERM, allowed by "allow kcmp" in a --security=FILE
rnx: denied clone3: \d+ × ENOSYS, no profile allows it
.*rnx: denied mount: 1 × EPERM, allowed by --security=nested
.*rnx: denied socket\(AF_ALG\): 1 × EAFNOSUPPORT, no profile allows it
.*rnx: denied unshare\(CLONE_NEWUSER\): 1 × EPERM, allowed by --security=nested
`
	d.says(t, 3, errors, notes, "job", "run", "--name=logged", "--log-denied", "python3", "-c", script)
	job := d.get(t, "logged")
	got := denied(t, job)
	for name, want := range map[string]joblet.DeniedCall{
		"bpf ":                  {Call: "bpf", Errno: "EPERM", Count: 1},
		"io_uring_setup ":       {Call: "io_uring_setup", Errno: "ENOSYS", Count: 1, Remedy: joblet.RemedyAllow},
		"unshare CLONE_NEWUSER": {Call: "unshare", Argument: "CLONE_NEWUSER", Errno: "EPERM", Count: 1, Remedy: joblet.RemedyNested},
		"socket AF_ALG":         {Call: "socket", Argument: "AF_ALG", Errno: "EAFNOSUPPORT", Count: 1},
		"mount ":                {Call: "mount", Errno: "EPERM", Count: 1, Remedy: joblet.RemedyNested},
		"kcmp ":                 {Call: "kcmp", Errno: "EPERM", Count: 90, Remedy: joblet.RemedyAllow},
		"#9999 ":                {Call: "#9999", Errno: "ENOSYS", Count: 1},
	} {
		if got[name] != want {
			t.Errorf("%+v, want %+v", got[name], want)
		}
	}
	// clone3: one, and those of libc's threads, by its version.
	if c := got["clone3 "]; c.Count < 1 || c.Count > 6 || c.Errno != "ENOSYS" || len(got) != 8 {
		t.Errorf("%+v in %+v", c, job.Denied)
	}
	r := d.says(t, 0, `(?s).*`, ``, "job", "status", "logged")
	for _, want := range []string{"\nSecurity:   --log-denied\n", "\nDenied:     kcmp: 90 × EPERM, allowed by \"allow kcmp\" in a --security=FILE\nDenied: "} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in %v", want, r)
		}
	}
	var status struct {
		Denied []joblet.DeniedCall `json:"denied"`
	}
	r = d.says(t, 0, `.*\n`, ``, "job", "status", "--json", "logged")
	if err := json.Unmarshal([]byte(r.stdout), &status); err != nil || fmt.Sprint(status.Denied) != fmt.Sprint(job.Denied) {
		t.Errorf("%v: %v", err, r)
	}

	// With the remedies taken the calls go through, or fail for another reason.
	profile := filepath.Join(t.TempDir(), "profile")
	if err := os.WriteFile(profile, []byte("allow kcmp\ndeny ptrace\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.says(t, 0, "done\n", ``, "job", "run", "--log-denied", "--security="+profile, "python3", "-c", deniedPython+`print(call("kcmp", 1, 1, 0, 0, 0))`)
	d.says(t, 0, "done\n", ``, "job", "run", "--log-denied", "--security=nested", "python3", "-c", deniedPython+`print(call("unshare", 0x10000000))`)
	d.says(t, 255, ``, `rnx: denied ptrace: 1 × EPERM, its own profile says "deny ptrace"\n`, "job", "run", "--log-denied", "--security="+profile,
		"python3", "-c", `import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(0, 0, 0, 0))`)

	// More kinds than are told apart, and than are told at the end.
	d.says(t, 0, ``, `rnx: denied others: 7\d × ENOSYS, no profile allows it\n(rnx: denied #\d+: 1 × ENOSYS, no profile allows it\n){9}rnx: and 1\d\d more: rnx job status [0-9a-f]{8}\n`, "job", "run", "--log-denied",
		"python3", "-c", deniedPython+"for nr in range(2000, 2200): libc.syscall(nr)")
}

// TestLogDeniedStarts: it goes with all ways in which a process is started.
func TestLogDeniedStarts(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const bpf = deniedPython + `print(call("bpf", 0, 0, 0))`
	const note = `rnx: denied bpf: 1 × EPERM, no profile allows it\n`
	d.says(t, 0, "EPERM\n", note, "job", "run", "--log-denied", "--init", "python3", "-c", bpf)
	d.says(t, 0, "EPERM\n", note, "job", "run", "--log-denied", "--user=1000", "python3", "-c", bpf)
	d.says(t, 0, "EPERM\n", note, "job", "run", "--log-denied", "--security=strict", "python3", "-c", bpf)
	d.says(t, 0, "EPERM\r\n", note, "job", "run", "--log-denied", "--tty", "--init", "python3", "-c", bpf)
	d.says(t, 127, ``, `rnx: no-such: command not found.*\n`, "job", "run", "--log-denied", "no-such")
	d.says(t, 126, ``, `rnx: .*\n`, "job", "run", "--log-denied", "/etc/passwd")
	// Nothing of the listener is in the job.
	d.says(t, 0, "0 1 2 3 \n?", ``, "job", "run", "--log-denied", "sh", "-c", `ls /proc/self/fd | tr '\n' ' '`)

	// A further process is refused in the same way, and not counted.
	id := d.detach(t, "--log-denied", "sh", "-c", "while [ ! -e /tmp/end ]; do sleep 0.1; done")
	d.says(t, 0, "EPERM\n", ``, "job", "exec", id, "python3", "-c", bpf)
	d.rnx(patient(t), "job", "exec", id, "touch", "/tmp/end") // which may end with the job
	if job := d.ends(t, id, joblet.Completed); len(denied(t, job)) > 0 {
		for _, c := range job.Denied {
			if c.Call != "clone3" { // the shell's own
				t.Errorf("%+v", c)
			}
		}
	}

	// Each attempt has its own.
	id = d.detach(t, "--log-denied", "--retry=1", "--retry-delay=10ms", "python3", "-c", deniedPython+`sys.exit(flood(7 if os.environ["JOBLET_ATTEMPT"] == "1" else 2))`)
	if got := denied(t, d.ends(t, id, joblet.Failed)); got["bpf "].Count != 2 {
		t.Errorf("%+v", got)
	}
}

// TestLogDeniedFlood: a job that makes nothing but denied calls costs its shim
// little, keeps nobody from stopping, pausing or timing it out, and all its calls
// are refused rightly.
func TestLogDeniedFlood(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	t.Run("slowed", func(t *testing.T) {
		t.Parallel()
		const seconds = 10
		id := d.detach(t, "--log-denied", "python3", "-c", deniedPython+fmt.Sprintf(`
for _ in range(3):
    if os.fork() == 0:
        break
end = time.monotonic() + %d
while time.monotonic() < end:
    if call("bpf", 0, 0, 0) != "EPERM":
        print("let through")
`, seconds))
		job := d.ends(t, id, joblet.Completed)
		// 2000 at once, 200 each second; a shim that is not let to run gives fewer.
		took := job.Ended.Sub(job.Started)
		if n := denied(t, job)["bpf "].Count; n < 2100 || n > 2000+uint64(200*took.Seconds())+500 {
			t.Errorf("%d calls in %v", n, took)
		}
		d.says(t, 0, ``, ``, "job", "log", id)
	})
	const endless = deniedPython + `
import signal
if os.environ.get("HANDLES"):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
flood(2000) # the burst
print("begun", flush=True)
while True:
    flood(1000)
`
	begun := func(t *testing.T, args ...string) string {
		t.Helper()
		id := d.detach(t, append(args, "python3", "-c", endless)...)
		if !d.wrote(t, id, "begun\n") {
			t.Fatal("it does not begin")
		}
		return id
	}
	t.Run("stop", func(t *testing.T) {
		t.Parallel()
		for _, test := range []struct {
			verb, handles string
			want          int
		}{{"stop", "", 137}, {"stop", "1", 7}, {"kill", "1", 137}} {
			id := begun(t, "--log-denied", "--env=HANDLES="+test.handles)
			d.says(t, 0, `.*\n`, ``, "job", test.verb, id)
			job := d.ends(t, id, joblet.Stopped)
			if status, _ := job.Status(); status != test.want {
				t.Errorf("%+v: status %d", test, status)
			}
			if n := denied(t, job)["bpf "].Count; n < 1000 {
				t.Errorf("%d calls", n)
			}
		}
	})
	t.Run("timeout", func(t *testing.T) {
		t.Parallel()
		d.ends(t, d.detach(t, "--log-denied", "--timeout=2s", "python3", "-c", endless), joblet.TimedOut)
	})
	t.Run("pause", func(t *testing.T) {
		t.Parallel()
		// Calls that wait while the job is frozen are made again, and counted once.
		id := d.detach(t, "--log-denied", "python3", "-c", deniedPython+`
n = 0
while not os.path.exists("/tmp/end"):
    n += flood(100)
print(n, n % 100)
`)
		const pauses = 5
		for range pauses {
			time.Sleep(300 * time.Millisecond)
			d.says(t, 0, `.*\n`, ``, "job", "pause", id)
			time.Sleep(300 * time.Millisecond)
			d.says(t, 0, `.*\n`, ``, "job", "resume", id)
		}
		d.rnx(patient(t), "job", "exec", id, "touch", "/tmp/end") // which may end with the job
		job := d.ends(t, id, joblet.Completed)
		var made, odd uint64
		r := d.rnx(t.Context(), "job", "log", id)
		if _, err := fmt.Sscan(r.stdout, &made, &odd); err != nil || odd != 0 {
			t.Fatalf("not all calls were refused: %v: %v", err, r)
		}
		// The kernel may freeze a call in the instant of its answer, and make it again.
		if n := denied(t, job)["bpf "].Count; n < made || n > made+pauses {
			t.Errorf("%d calls were counted, want %d", n, made)
		}
	})
}

// TestLogDeniedSurvives: what is denied while no daemon runs is counted too.
func TestLogDeniedSurvives(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := d.detach(t, "--log-denied", "python3", "-c", deniedPython+`
flood(5)
print("begun", flush=True)
time.sleep(2)
print(flood(6))
`)
	if !eventually(patience, func() bool { return strings.HasPrefix(d.stdout(t, id), "begun\n") }) {
		t.Fatal("it does not begin")
	}
	d.kill(t)
	record := filepath.Join(d.state, "jobs", id, "exit.json")
	if !eventually(patience, func() bool { _, err := os.Stat(record); return err == nil }) {
		t.Fatal("no exit record")
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	job := d.ends(t, id, joblet.Completed)
	if n := denied(t, job)["bpf "].Count; n != 11 {
		t.Errorf("%d calls", n)
	}
	if r := d.rnx(t.Context(), "job", "log", id); !regexp.MustCompile(`^begun\n6\n$`).MatchString(r.stdout) {
		t.Errorf("%v", r)
	}
}
