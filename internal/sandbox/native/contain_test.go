package native

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/joblet/joblet"
)

// TestContain: what the daemon runs beside jobs has limits and ends with them.
func TestContain(t *testing.T) {
	e := openEngine(t, 0)
	cmd := exec.Command("sh", "-c", "read -r _; sleep 1000 & sleep 1000")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	defer func() { _ = cmd.Process.Kill() }()
	release, err := e.Contain(cmd.Process.Pid, joblet.Limits{MemoryBytes: 1 << 30, MaxPIDs: 100})
	if err != nil {
		t.Fatal(err)
	}
	sandboxes, err := e.groups.own.Sandboxes()
	if err != nil || len(sandboxes) != 1 {
		t.Fatalf("sandboxes %q, %v", sandboxes, err)
	}
	where, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/cgroup")
	if err != nil || !strings.Contains(string(where), sandboxes[0]) {
		t.Errorf("it is in %s, %v, want %s", where, err, sandboxes[0])
	}
	for _, controller := range []string{"memory", "pids"} {
		for line := range strings.Lines(string(where)) {
			if f := strings.SplitN(line, ":", 3); len(f) == 3 && f[1] == controller && !strings.Contains(f[2], sandboxes[0]) {
				t.Errorf("%s: %s", controller, line)
			}
		}
	}
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- cmd.Wait() }()
	if err := release(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("it ended: %v", err)
	}
	if sandboxes, err := e.groups.own.Sandboxes(); err != nil || len(sandboxes) != 0 {
		t.Errorf("left: %q, %v", sandboxes, err)
	}

	// A process that is not there leaves nothing.
	if _, err := e.Contain(cmd.Process.Pid, joblet.Limits{MemoryBytes: 1 << 30}); err == nil {
		t.Error("a process that has ended is contained")
	}
	if sandboxes, err := e.groups.own.Sandboxes(); err != nil || len(sandboxes) != 0 {
		t.Errorf("left: %q, %v", sandboxes, err)
	}
}
