package native

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/sandbox/native/rootfs"
	"github.com/joblet/joblet/internal/testenv"
)

func openEngine(t testing.TB, warm int) *Engine {
	t.Helper()
	testenv.RequireRoot(t)
	e, err := Open(Config{RunDir: t.TempDir(), Warm: warm})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		for _, dir := range e.groups.own.Dirs() {
			if _, err := os.Lstat(dir); err == nil {
				t.Errorf("%s is left", dir)
			}
		}
	})
	return e
}

// start runs a command in a sandbox without a runtime.
func start(t testing.TB, e *Engine, dir string, command string, args ...string) (*Sandbox, *Process, error) {
	t.Helper()
	sb, err := e.Take(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := e.HostView()
	if err != nil {
		t.Fatal(err)
	}
	run, err := Compile(planOf(v, dir, command, args...))
	if err != nil {
		t.Fatal(err)
	}
	p, err := sb.Start(run)
	return sb, p, err
}

func planOf(v rootfs.View, dir, command string, args ...string) sandbox.Plan {
	const path = "/usr/local/bin:/usr/bin:/bin"
	return sandbox.Plan{
		Mounts: v.Mounts, Dirs: v.Dirs, Links: v.Links, Dir: dir,
		Command: command, Args: args, WorkDir: "/work", Path: path, Env: []string{"PATH=" + path},
	}
}

func TestProcess(t *testing.T) {
	e := openEngine(t, 0)
	dir := t.TempDir()
	sb, p, err := start(t, e, dir, "sh", "-c", "echo $$; cat /proc/1/cmdline; exit 7")
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if err := e.Release(sb.ID, sb.Leases); err != nil {
		t.Error(err)
	}
	if end, err := jobdir.ReadExit(dir, 1); err != nil || end.Code != 7 {
		t.Errorf("exit record %+v, %v; want code 7", end, err)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "1\n/usr/bin/sh\x00-c"; !strings.HasPrefix(string(log), want) {
		t.Errorf("log %q, want prefix %q", log, want)
	}
}

// TestProcessNumbers shows that the set-up uses up no process number.
func TestProcessNumbers(t *testing.T) {
	e := openEngine(t, 0)
	dir := t.TempDir()
	sb, p, err := start(t, e, dir, "bash", "-c", "sleep 9 & sleep 9 & echo $(jobs -p)")
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if err := e.Release(sb.ID, sb.Leases); err != nil {
		t.Error(err)
	}
	if log, _ := os.ReadFile(filepath.Join(dir, "log")); string(log) != "2 3\n" {
		t.Errorf("the first children have the numbers %q, want 2 and 3", log)
	}
}

// BenchmarkTrue is one job from the sandbox to the exit record on disk, with the
// sandbox built before (warm) and in the way (cold).
func BenchmarkTrue(b *testing.B) {
	for name, warm := range map[string]int{"cold": 0, "warm": 2} {
		b.Run(name, func(b *testing.B) {
			e := openEngine(b, warm)
			e.StartPool()
			base := b.TempDir()
			for i := 0; b.Loop(); i++ {
				dir := filepath.Join(base, fmt.Sprint(i))
				if err := os.Mkdir(dir, 0o700); err != nil {
					b.Fatal(err)
				}
				sb, p, err := start(b, e, dir, "/usr/bin/true")
				if err != nil {
					b.Fatal(err)
				}
				e.Refill()
				select {
				case <-p.Done():
				case <-time.After(10 * time.Second):
					b.Fatal("the job did not end")
				}
				b.StopTimer()
				if err := e.Release(sb.ID, sb.Leases); err != nil {
					b.Error(err)
				}
				for len(e.warm) < warm {
					time.Sleep(time.Millisecond)
				}
				time.Sleep(10 * time.Millisecond) // its shim goes on building when the sandbox is in stock
				b.StartTimer()
			}
		})
	}
}

// BenchmarkBox builds sandboxes and gives them up: what is done ahead of each job.
func BenchmarkBox(b *testing.B) {
	e := openEngine(b, 0)
	for b.Loop() {
		sb, err := e.Take(b.Context(), nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := sb.Discard(); err != nil {
			b.Fatal(err)
		}
	}
}
