package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/testenv"
)

// probe is a resource that notes what is asked of it.
type probe struct {
	asked  []string
	attach func(context.Context, sandbox.Attachment) error
	swept  map[string]sandbox.Lease
}

func (p *probe) Name() string { return "probe" }

func (p *probe) Claim(_ context.Context, id string, plan *sandbox.Plan) (sandbox.Lease, error) {
	p.asked = append(p.asked, "claim for "+plan.Command)
	return sandbox.Lease(`{"of":"` + id + `"}`), nil
}

func (p *probe) Attach(ctx context.Context, a sandbox.Attachment) error {
	p.asked = append(p.asked, "attach "+string(a.Lease))
	return p.attach(ctx, a)
}

func (p *probe) Release(_ context.Context, id string, lease sandbox.Lease) error {
	p.asked = append(p.asked, "release "+string(lease))
	return nil
}

func (p *probe) Sweep(_ context.Context, live map[string]sandbox.Lease) error {
	p.swept = live
	return nil
}

// startPlan is start with what change makes of the plan.
func startPlan(t *testing.T, e *Engine, dir string, change func(*sandbox.Plan), command string, args ...string) (*Sandbox, *Process, error) {
	t.Helper()
	v, err := e.HostView()
	if err != nil {
		t.Fatal(err)
	}
	plan := planOf(v, dir, command, args...)
	change(&plan)
	run, err := Compile(plan)
	if err != nil {
		t.Fatal(err)
	}
	sb, err := e.Take(t.Context(), run)
	if err != nil {
		t.Fatal(err)
	}
	p, err := sb.Start(run)
	return sb, p, err
}

// TestResource: a resource is claimed with the plan, attached to the built sandbox before
// the command runs, and released; what it adds to the plan is there.
func TestResource(t *testing.T) {
	testenv.RequireRoot(t)
	r := &probe{}
	e, err := Open(Config{RunDir: t.TempDir(), Resources: []sandbox.Resource{r}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	r.attach = func(ctx context.Context, a sandbox.Attachment) error {
		ns, err := a.Namespaces(ctx)
		if err != nil {
			return err
		}
		defer ns.Close()
		for name, f := range map[string]*os.File{"user": ns.User, "mnt": ns.Mount, "net": ns.Net, "ipc": ns.IPC, "uts": ns.UTS} {
			var of, have, own unix.Stat_t
			if err := errors.Join(unix.Fstat(int(f.Fd()), &have), unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", ns.PID, name), &of), unix.Stat("/proc/self/ns/"+name, &own)); err != nil {
				return err
			}
			if have.Ino != of.Ino || have.Ino == own.Ino {
				t.Errorf("namespace %s: %d, of PID 1 %d, our own %d", name, have.Ino, of.Ino, own.Ino)
			}
		}
		if err := unix.PidfdSendSignal(int(ns.PIDFD.Fd()), 0, nil, 0); err != nil {
			t.Errorf("pidfd: %v", err)
		}
		// It is built, and its command does not run.
		if root, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", ns.PID)); err != nil || !slices.ContainsFunc(root, func(e os.DirEntry) bool { return e.Name() == "work" }) {
			t.Errorf("root %v, %v", root, err)
		}
		if _, err := os.Stat(filepath.Join(a.Plan.Dir, "log")); err == nil {
			t.Error("the command runs already")
		}
		a.Plan.Env = append(a.Plan.Env, "PROBE=attached")
		return nil
	}
	dir := t.TempDir()
	sb, p, err := startPlan(t, e, dir, func(*sandbox.Plan) {}, "sh", "-c", "echo $PROBE")
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if log, _ := os.ReadFile(filepath.Join(dir, "log")); string(log) != "attached\n" {
		t.Errorf("log %q", log)
	}
	if err := sb.Discard(); err != nil {
		t.Error(err)
	}
	lease := `{"of":"` + sb.ID + `"}`
	if want := []string{"claim for sh", "attach " + lease, "release " + lease}; !slices.Equal(r.asked, want) {
		t.Errorf("asked %q, want %q", r.asked, want)
	}

	// A start that a resource fails leaves nothing.
	r.attach = func(context.Context, sandbox.Attachment) error { return errors.New("no address is left") }
	sb, _, err = startPlan(t, e, t.TempDir(), func(*sandbox.Plan) {}, "true")
	if err == nil || !strings.Contains(err.Error(), "no address is left") {
		t.Errorf("start: %v", err)
	}
	if err := sb.Discard(); err != nil {
		t.Error(err)
	}
}

// TestSweep: a later daemon takes over the leases of live sandboxes and ends all others.
func TestSweep(t *testing.T) {
	testenv.RequireRoot(t)
	r := &probe{attach: func(context.Context, sandbox.Attachment) error { return nil }}
	runDir := t.TempDir()
	former, err := Open(Config{RunDir: runDir, Resources: []sandbox.Resource{r}})
	if err != nil {
		t.Fatal(err)
	}
	live, p, err := startPlan(t, former, t.TempDir(), func(*sandbox.Plan) {}, "sleep", "600")
	if err != nil {
		t.Fatal(err)
	}
	_, dead, err := startPlan(t, former, t.TempDir(), func(*sandbox.Plan) {}, "sleep", "600")
	if err != nil {
		t.Fatal(err)
	}
	if err := former.Close(); err != nil {
		t.Fatal(err)
	}
	e, err := Open(Config{RunDir: runDir, Resources: []sandbox.Resource{r}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	old := joblet.NewID() // as records of earlier releases have it
	if err := e.Sweep(t.Context(), map[string]sandbox.Leases{live.ID: live.Leases, old: IDLease(firstBase)}); err != nil {
		t.Error(err)
	}
	<-dead.Done()
	if sandboxes, _, err := e.Sandboxes(); err != nil || !slices.Equal(sandboxes, []string{live.ID}) {
		t.Errorf("left: %q, %v", sandboxes, err)
	}
	if unix.Kill(p.PID, 0) != nil {
		t.Error("the live one has ended")
	}
	if len(r.swept) != 1 || string(r.swept[live.ID]) != string(live.Leases["probe"]) {
		t.Errorf("swept %s", r.swept)
	}
	if e.ids.used[live.IDBase] != live.ID || e.ids.used[firstBase] != old || len(e.ids.used) != 2 {
		t.Errorf("ids %v", e.ids.used)
	}
	if err := e.Release(live.ID, live.Leases); err != nil {
		t.Error(err)
	}
	if <-p.Done(); len(e.ids.used) != 1 {
		t.Errorf("ids %v", e.ids.used)
	}
}

// TestPlan: mounts are read-only, or as they say; a sandbox with devices has a /dev of its
// own.
func TestPlan(t *testing.T) {
	e := openEngine(t, 0)
	src := t.TempDir()
	for _, name := range []string{"ro", "rw", "mapped", "dev"} {
		if err := os.Mkdir(filepath.Join(src, name), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	zero := int(unix.Mkdev(1, 5))
	for _, node := range []string{"ro/zero", "dev/zero", "node"} {
		if err := errors.Join(unix.Mknod(filepath.Join(src, node), unix.S_IFCHR|0o666, zero), os.Chmod(filepath.Join(src, node), 0o666)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(src, "rw"), 0o777); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	change := func(plan *sandbox.Plan) {
		for _, m := range []sandbox.Mount{
			{Target: "ro"}, {Target: "rw", Writable: true}, {Target: "mapped", Writable: true, IDMapped: true}, {Target: "dev", Device: true},
		} {
			m.Source, m.Target = filepath.Join(src, m.Target), "/data/"+m.Target
			plan.Mounts = append(plan.Mounts, m)
		}
		plan.Devices = []sandbox.Device{{Source: filepath.Join(src, "node"), Path: "/dev/accel/accel0"}}
	}
	sb, p, err := startPlan(t, e, dir, change, "sh", "-c", `
		say() { echo "$1: $(shift; "$@" 2>&1 >/dev/null && echo yes || echo no)"; }
		say ro touch /data/ro/x
		say rw touch /data/rw/x
		say mapped touch /data/mapped/x
		say nodev head -c 1 /data/ro/zero
		say dev head -c 1 /data/dev/zero
		say accel head -c 1 /dev/accel/accel0
		say null sh -c 'echo > /dev/null; head -c 1 /dev/urandom; head -c 1 < /dev/zero'
		say shm touch /dev/shm/x
		say pts ls /dev/pts/ptmx
		say links test -e /dev/fd/0 -a -L /dev/ptmx
		say masked test ! -s /proc/kcore
		say own touch /dev/mine
		say mknod mknod /dev/mem c 1 1
		ls /dev; grep -c ' /dev ' /proc/mounts`)
	defer sb.Discard()
	if err != nil {
		if errno, ok := errors.AsType[syscall.Errno](err); ok && errno == unix.EINVAL && strings.Contains(err.Error(), "map the ids") {
			t.Skipf("requires a file system with idmapped mounts at %s", src)
		}
		t.Fatal(err)
	}
	<-p.Done()
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"ro: *no", "rw: yes", "mapped: yes", "nodev: *no", "dev: yes", "accel: yes", "null: yes", "shm: yes", "pts: yes", "links: yes", "masked: yes", "own: yes", "mknod: *no",
	} {
		checkAnswer(t, string(log), want)
	}
	if !strings.HasSuffix(string(log), "\n1\n") {
		t.Errorf("there is more than one /dev: %s", log)
	}
	for name, uid := range map[string]uint32{"rw/x": p.IDBase, "mapped/x": 0} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(src, name), &st); err != nil || st.Uid != uid {
			t.Errorf("%s belongs to %s, %v, want %d", name, strconv.Itoa(int(st.Uid)), err, uid)
		}
	}
	if _, err := os.Stat(filepath.Join(src, "node")); err != nil {
		t.Error(err)
	}
}

// checkAnswer looks in a log for the last answer to a question; want is its name and
// "yes", or "*no" for any answer but yes.
func checkAnswer(t *testing.T, log, want string) {
	t.Helper()
	name, is, _ := strings.Cut(want, ": ")
	said := ""
	for line := range strings.Lines(log) {
		if rest, ok := strings.CutPrefix(line, name+": "); ok {
			said = strings.TrimSpace(rest)
		}
	}
	if strings.HasPrefix(is, "*") {
		// The reason comes before.
		if said == "yes" || said == "" {
			t.Errorf("%s: %q, want no", name, said)
		}
	} else if said != is {
		t.Errorf("%s: %q, want %q", name, said, is)
	}
}
