package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// job is a command that contenders run.
type job int

const (
	jobTrue  job = iota // ends at once, measures time
	jobSleep            // stays, measures memory
)

func (j job) argv() []string {
	if j == jobSleep {
		return []string{"/usr/bin/sleep", "600"}
	}
	return []string{"/usr/bin/true"}
}

// spareName is what it calls a job's shim, and a box that joblet keeps ready.
const spareName = "joblet-shim"

// sleepName is what the kernel calls a jobSleep's process.
const sleepName = "sleep"

// contender is one way to run a command.
type contender struct {
	name string
	what string // for the reader of the table

	// prepare makes ready what the contender needs and sets what follows.
	// Its error is the reason why the contender cannot run here.
	prepare func(ctx context.Context, b *bench, c *contender) error

	command  func(id string, j job) []string        // a program to start, or
	call     func(ctx context.Context, j job) error // a call within this process
	detached func(id string, j job) []string        // for command: starts the job and returns, so that the job has no program in front
	ns       *os.File                               // mount namespace to start the program in
	orphans  bool                                   // leaves processes behind that clean up
	version  string                                 // as it says itself
	notes    []string                               // deviations from the row's promise

	reason   error
	latency  []time.Duration
	idle     []time.Duration
	perSec   map[int]float64 // by number of workers
	memory   *jobMemory
	failures int
	lastErr  error
}

// contenders returns all contenders in the order of the table.
func contenders() []*contender {
	return []*contender{
		{name: "fork+exec", what: "no isolation: the floor", prepare: prepareForkExec},
		{name: "unshare", what: "`unshare`, the same namespaces, no root of its own", prepare: prepareUnshare},
		{name: "bwrap", what: "`bwrap --unshare-all`", prepare: prepareBwrap},
		{name: "crun-nocg", what: "`crun --cgroup-manager=disabled run`", prepare: prepareOCI("crun", "--cgroup-manager=disabled")},
		{name: baseline, what: "`crun run`", prepare: prepareOCI("crun")},
		{name: "runc", what: "`runc run`", prepare: prepareOCI("runc")},
		{name: "podman", what: "`podman run --rm`, with crun", prepare: preparePodman},
		{name: rnxName, what: "`rnx job run true`, the whole process", prepare: prepareRnx},
		{name: clientName, what: "Go client, connection open", prepare: prepareClient},
	}
}

// baseline is the contender that the others are compared with.
const baseline = "crun"

func contenderNames() []string {
	var names []string
	for _, c := range contenders() {
		names = append(names, c.name)
	}
	return names
}

// Ids of the host that user namespaces of the peers map root to.
const (
	mapFirst = 1_000_000
	mapSize  = 65_536
)

var lastID atomic.Int64

// id returns a name for a container that no other has.
func (b *bench) id() string { return fmt.Sprintf("%s%d", b.prefix, lastID.Add(1)) }

func prepareForkExec(ctx context.Context, b *bench, c *contender) error {
	c.ns = b.host
	c.command = func(_ string, j job) []string { return j.argv() }
	return b.try(ctx, c)
}

func prepareUnshare(ctx context.Context, b *bench, c *contender) error {
	path, err := exec.LookPath("unshare")
	if err != nil {
		return err
	}
	c.ns = b.host
	c.version = versionOf(ctx, path, "--version")
	c.command = func(_ string, j job) []string {
		return append([]string{path, "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--net", "--ipc", "--uts", "--cgroup"}, j.argv()...)
	}
	return b.try(ctx, c)
}

func prepareBwrap(ctx context.Context, b *bench, c *contender) error {
	path, err := exec.LookPath("bwrap")
	if err != nil {
		return err
	}
	args := []string{path, "--unshare-all", "--uid", "0", "--gid", "0", "--hostname", "bench", "--ro-bind", "/usr", "/usr"}
	for link, target := range rootLinks() {
		args = append(args, "--symlink", target, link)
	}
	args = append(args, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp")
	c.ns = b.host
	c.version = versionOf(ctx, path, "--version")
	c.command = func(_ string, j job) []string { return append(slices.Clip(args), j.argv()...) }
	return b.try(ctx, c)
}

// prepareOCI prepares crun or runc: a bundle for each job.
func prepareOCI(name string, flags ...string) func(context.Context, *bench, *contender) error {
	return func(ctx context.Context, b *bench, c *contender) error {
		path, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		state := filepath.Join(b.dir, c.name+"-state")
		bundles := map[job]string{
			jobTrue:  filepath.Join(b.dir, c.name+"-true"),
			jobSleep: filepath.Join(b.dir, c.name+"-sleep"),
		}
		b.undo = append(b.undo, func() error { return deleteContainers(path, state) })
		base := append([]string{path, "--root", state}, flags...)
		c.ns = b.peersNS
		c.version = versionOf(ctx, path, "--version")
		c.command = func(id string, j job) []string {
			return append(slices.Clip(base), "run", "--bundle", bundles[j], id)
		}
		var refused error
		for _, userNS := range []bool{true, false} {
			for j, dir := range bundles {
				if err := writeBundle(dir, b.root(), j, userNS); err != nil {
					return fmt.Errorf("write bundle: %w", err)
				}
			}
			err := b.try(ctx, c)
			if err == nil {
				if refused != nil {
					c.notes = append(c.notes, fmt.Sprintf("without a user namespace, which it refuses here: %v", refused))
				}
				return nil
			}
			refused = errors.Join(refused, err)
		}
		return refused
	}
}

// deleteContainers removes what interrupted runs have left in an OCI runtime's
// state directory.
func deleteContainers(runtime, state string) error {
	entries, err := os.ReadDir(state)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		if out, err := exec.Command(runtime, "--root", state, "delete", "--force", e.Name()).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("delete container %s: %w: %s", e.Name(), err, lastLine(out)))
		}
	}
	return errors.Join(errs...)
}

func preparePodman(ctx context.Context, b *bench, c *contender) error {
	path, err := exec.LookPath("podman")
	if err != nil {
		return err
	}
	// podman asks for limits of its own, above the inherited ones, which a host
	// without CAP_SYS_RESOURCE refuses: ask for less.
	limits := []string{"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}
	base := []string{
		path, "--root", filepath.Join(b.dir, "podman"), "--runroot", filepath.Join(b.dir, "podman-run"), "--tmpdir", filepath.Join(b.dir, "podman-tmp"),
		"--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", "crun",
	}
	c.ns = b.peersNS
	c.orphans = true
	c.version = versionOf(ctx, path, "--version")
	run := func(flags []string) func(string, job) []string {
		return func(id string, j job) []string {
			mapping := fmt.Sprintf("0:%d:%d", mapFirst, mapSize)
			return slices.Concat(base, []string{
				"run", "--rm", "--name", id, "--network", "none", "--uidmap", mapping, "--gidmap", mapping, "--cgroupns", "private",
				"--cgroup-parent", "/" + b.prefix + "podman", "--log-driver", "k8s-file",
			}, limits, flags, []string{"bench"}, j.argv())
		}
	}
	c.command, c.detached = run(nil), run([]string{"--detach"})

	image := filepath.Join(b.dir, "image.tar")
	if err := writeImage(ctx, image); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	if _, err := b.lanes[0].run(ctx, c.ns, slices.Concat(base, []string{"import", image, "bench"})); err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	return b.try(ctx, c)
}

// try runs the contender once, to see whether it can.
func (b *bench) try(ctx context.Context, c *contender) error {
	_, err := b.runOnce(ctx, c, b.lanes[0])
	return err
}

var versionNumber = regexp.MustCompile(`\d+(\.\d+)+\S*`)

// versionOf returns the version number that a program prints, or "?".
func versionOf(ctx context.Context, argv ...string) string {
	out, _ := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if v := versionNumber.Find(out); v != nil {
		return string(v)
	}
	return "?"
}

// Directories that stand at the top of the root, next to those of rootLinks.
var rootDirs = []string{"usr", "proc", "dev", "tmp"}

// rootLinks returns the links that lead from the host's root into /usr, such
// as /bin to usr/bin, by name.
func rootLinks() map[string]string {
	links := map[string]string{}
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64"} {
		if target, err := os.Readlink("/" + name); err == nil && strings.HasPrefix(target, "usr/") {
			links["/"+name] = target
		}
	}
	return links
}

func (b *bench) root() string { return filepath.Join(b.dir, "root") }

// makeRoot makes the root directory of the OCI bundles, whose /usr is the
// host's.
func (b *bench) makeRoot() error {
	for _, d := range rootDirs {
		if err := os.MkdirAll(filepath.Join(b.root(), d), 0o755); err != nil {
			return err
		}
	}
	for link, target := range rootLinks() {
		if err := os.Symlink(target, filepath.Join(b.root(), link)); err != nil {
			return err
		}
	}
	return nil
}

// The parts of an OCI runtime configuration that the bundles use.
type (
	ociSpec struct {
		Version  string     `json:"ociVersion"`
		Process  ociProcess `json:"process"`
		Root     ociRoot    `json:"root"`
		Hostname string     `json:"hostname"`
		Mounts   []ociMount `json:"mounts"`
		Linux    ociLinux   `json:"linux"`
	}
	ociProcess struct {
		User            ociUser  `json:"user"`
		Args            []string `json:"args"`
		Env             []string `json:"env"`
		Cwd             string   `json:"cwd"`
		NoNewPrivileges bool     `json:"noNewPrivileges"`
		Capabilities    struct{} `json:"capabilities"`
	}
	ociUser struct {
		UID int `json:"uid"`
		GID int `json:"gid"`
	}
	ociRoot struct {
		Path     string `json:"path"`
		Readonly bool   `json:"readonly"`
	}
	ociMount struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type"`
		Source      string   `json:"source"`
		Options     []string `json:"options,omitempty"`
	}
	ociLinux struct {
		UIDMappings []ociMapping   `json:"uidMappings,omitempty"`
		GIDMappings []ociMapping   `json:"gidMappings,omitempty"`
		Namespaces  []ociNamespace `json:"namespaces"`
	}
	ociMapping struct {
		ContainerID int `json:"containerID"`
		HostID      int `json:"hostID"`
		Size        int `json:"size"`
	}
	ociNamespace struct {
		Type string `json:"type"`
	}
)

func ociConfig(root string, j job, userNS bool) ociSpec {
	s := ociSpec{
		Version:  "1.0.0",
		Process:  ociProcess{Args: j.argv(), Env: []string{"PATH=/usr/bin:/bin"}, Cwd: "/", NoNewPrivileges: true},
		Root:     ociRoot{Path: root, Readonly: true},
		Hostname: "bench",
		Mounts: []ociMount{
			{"/usr", "bind", "/usr", []string{"rbind", "ro", "nosuid"}},
			{"/proc", "proc", "proc", nil},
			{"/dev", "tmpfs", "tmpfs", []string{"nosuid", "mode=755", "size=64k"}},
			{"/dev/pts", "devpts", "devpts", []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{"/dev/shm", "tmpfs", "shm", []string{"nosuid", "noexec", "nodev", "mode=1777"}},
			{"/tmp", "tmpfs", "tmpfs", []string{"nosuid", "nodev", "mode=1777"}},
		},
	}
	for _, ns := range []string{"pid", "mount", "network", "ipc", "uts", "cgroup"} {
		s.Linux.Namespaces = append(s.Linux.Namespaces, ociNamespace{ns})
	}
	if userNS {
		s.Linux.Namespaces = append(s.Linux.Namespaces, ociNamespace{"user"})
		s.Linux.UIDMappings = []ociMapping{{0, mapFirst, mapSize}}
		s.Linux.GIDMappings = s.Linux.UIDMappings
	}
	return s
}

func writeBundle(dir, root string, j job, userNS bool) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	config, err := json.Marshal(ociConfig(root, j, userNS))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), config, 0o644)
}

// writeImage writes a root file system with the jobs' programs and the shared
// libraries that they need, as a tar file.
func writeImage(ctx context.Context, path string) (err error) {
	files := map[string]bool{}
	for _, j := range []job{jobTrue, jobSleep} {
		program := j.argv()[0]
		files[program] = true
		// A static program makes ldd fail and needs no libraries.
		out, _ := exec.CommandContext(ctx, "ldd", program).Output()
		for field := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(field, "/") {
				files[field] = true
			}
		}
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	for _, d := range append(slices.Clone(rootDirs), "etc") {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	for link, target := range rootLinks() {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: link[1:], Linkname: target, Mode: 0o777}); err != nil {
			return err
		}
	}
	for file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		// The directory's true name, for a tar must not go through its own links.
		dir, err := filepath.EvalSymlinks(filepath.Dir(file))
		if err != nil {
			return err
		}
		name := filepath.Join(dir, filepath.Base(file))[1:]
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(data))}); err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	return w.Close()
}

// makePeersNamespace makes a mount namespace in which the peers find what they
// insist on and leave nothing on the host:
//
//   - crun refuses a host with cgroup v1 and v2 side by side, so cgroup v2 is
//     unmounted there;
//   - podman keeps things outside the directories that it is told to use, so
//     those places are file systems in memory.
func (b *bench) makePeersNamespace() error {
	mounts, err := hostCgroupMounts()
	if err != nil {
		return err
	}
	hidden := hybridCgroup2(mounts)
	var covered []string
	if b.wants("podman") {
		for _, dir := range []string{"/run/crun", "/var/lib/containers"} {
			if err := os.Mkdir(dir, 0o700); err == nil {
				b.undo = append(b.undo, func() error { return os.Remove(dir) })
			} else if !errors.Is(err, fs.ErrExist) {
				return err
			}
			covered = append(covered, dir)
		}
		covered = append(covered, "/dev/shm")
	}

	made := make(chan error)
	go func() {
		made <- func() error {
			runtime.LockOSThread() // and never unlocked: the thread ends here
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return os.NewSyscallError("unshare", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return &os.PathError{Op: "make private", Path: "/", Err: err}
			}
			for _, dir := range hidden {
				if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
					return &os.PathError{Op: "unmount", Path: dir, Err: err}
				}
			}
			for _, dir := range covered {
				if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
					return &os.PathError{Op: "mount tmpfs", Path: dir, Err: err}
				}
			}
			b.peersNS, err = os.Open("/proc/thread-self/ns/mnt")
			return err
		}()
	}()
	return <-made
}
