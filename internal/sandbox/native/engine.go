// Package native isolates and runs one process tree at a time: namespaces, id
// maps, cgroups, the root file system, the start and the end. It is the only
// package that knows clone flags, together with package shim, which is the
// other side of it: the program that becomes the job's parent.
package native

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/sandbox/native/rootfs"
)

// Config says where an Engine keeps what a reboot may forget.
type Config struct {
	RunDir string
	// Warm is how many sandboxes the warm pool keeps ready: a sandbox costs milliseconds to
	// build and a new job gets a ready one.
	Warm int
	Log  *slog.Logger

	// Tag, of twelve hexadecimal digits, marks the sandboxes that are built for one
	// state directory. Sandboxes with another tag are not touched.
	Tag string
	// FormerRunDirs are other run directories below whose cgroups there may be
	// sandboxes with the tag.
	FormerRunDirs []string

	// Resources are what sandboxes hold beside their ids and their cgroups. They are claimed
	// in this order, and released the other way around.
	Resources []sandbox.Resource

	// Hierarchy is used in place of the one of RunDir, and stays the caller's; nil: there
	// is none.
	Hierarchy *cgroup.Hierarchy
}

// Engine starts jobs.
type Engine struct {
	cfg     Config
	shim    *os.File // the sealed memfd
	null    *os.File
	log     *os.File // what shims say when they fail; not the daemon's own stderr, which they outlive
	ids     *idRanges
	groups  *groups
	newRoot string
	devDir  string
	frozen  []string // in a job's /proc
	views   *rootfs.Views

	// resources are ids, Config.Resources, groups. What comes first is released last, so
	// that a range of ids is free only when nothing of its sandbox exists that could have
	// them.
	resources []sandbox.Resource

	warm    chan *Sandbox
	refill  chan struct{}
	stop    context.CancelFunc
	stopped sync.WaitGroup
}

// Open prepares the host: directories, the shim's program, cgroups. It
// touches no job of a former daemon; Adopt and Release do.
func Open(cfg Config) (_ *Engine, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{
		cfg:     cfg,
		ids:     newIDRanges(rand.IntN(numRanges)),
		newRoot: filepath.Join(cfg.RunDir, "newroot"),
		devDir:  filepath.Join(cfg.RunDir, "dev"),
		warm:    make(chan *Sandbox, cfg.Warm),
		refill:  make(chan struct{}, 1),
	}
	for _, dir := range []string{cfg.RunDir, e.newRoot} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("cannot make the run directory: %w", err)
		}
	}
	if err := e.makeDev(); err != nil {
		return nil, err
	}
	writable, err := worldWritable("/proc")
	if err != nil {
		return nil, err
	}
	e.frozen = freezeProc("/proc", writable)
	defer func() {
		if err != nil {
			err = errors.Join(err, e.closeAll())
		}
	}()
	if e.groups, err = openGroups(cfg); err != nil {
		return nil, err
	}
	e.resources = slices.Concat([]sandbox.Resource{e.ids}, cfg.Resources, []sandbox.Resource{e.groups})
	sandboxes, err := e.groups.own.Sandboxes() // of whatever state directory
	if err != nil {
		return nil, err
	}
	if e.views, err = rootfs.Open(filepath.Join(cfg.RunDir, "etc"), len(sandboxes) == 0, cfg.Log); err != nil {
		return nil, err
	}
	if e.shim, err = LoadShim(); err != nil {
		return nil, err
	}
	if e.null, err = os.OpenFile("/dev/null", os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if e.log, err = os.OpenFile(filepath.Join(cfg.RunDir, "shims.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, fmt.Errorf("cannot open the log of the shims: %w", err)
	}
	return e, nil
}

// StartPool prepares the host for jobs, and begins to fill the warm pool.
func (e *Engine) StartPool() {
	if ok, err := raiseFileMax(fileMaxPath); !ok {
		e.cfg.Log.Warn("cannot raise fs.file-max: one job can use up the open files of this host", "error", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.stop = cancel
	e.stopped.Go(e.views.Prepare)
	if inheritsOrphans() {
		e.stopped.Go(func() { reapOrphans(ctx) })
	}
	if e.cfg.Warm > 0 {
		e.stopped.Go(func() { e.fillPool(ctx) })
		e.refill <- struct{}{}
	}
}

// Close gives up the warm pool. Running jobs go on.
func (e *Engine) Close() error {
	if e.stop != nil {
		e.stop()
		e.stopped.Wait()
	}
	for {
		select {
		case b := <-e.warm:
			e.giveUp(b)
			continue
		default:
		}
		break
	}
	return e.closeAll()
}

// closeAll undoes Open, however far that came.
func (e *Engine) closeAll() error {
	var errs []error
	if e.groups != nil {
		if e.cfg.Hierarchy == nil {
			e.groups.removeEmpty()
		}
		errs = append(errs, e.groups.sockets.close())
	}
	if e.views != nil {
		e.views.Close()
	}
	for _, f := range []*os.File{e.shim, e.null, e.log} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// makeDev makes the directory that every job has as /dev, read-only. The nodes
// work there although the run directory may be mounted nodev, because a
// shim clears that on the copy it gives to the job.
func (e *Engine) makeDev() error {
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, dir := range []string{e.devDir, filepath.Join(e.devDir, "pts"), filepath.Join(e.devDir, "shm")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("cannot make /dev for jobs: %w", err)
		}
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9, "tty": 0} {
		major := uint32(1)
		if name == "tty" {
			major = 5
		}
		err := unix.Mknod(filepath.Join(e.devDir, name), unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor)))
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("cannot make /dev/%s for jobs: %w", name, err)
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, filepath.Join(e.devDir, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("cannot make /dev/%s for jobs: %w", name, err)
		}
	}
	return nil
}

// HostView returns the view of a job without a runtime.
func (e *Engine) HostView() (rootfs.View, error) { return e.views.Host() }

// RuntimeView returns the view of a job whose programs come from the tree at root.
func (e *Engine) RuntimeView(root string) (rootfs.View, error) { return e.views.Runtime(root) }

// Sandboxes returns the ids of the sandboxes that have a cgroup: those of this daemon,
// and what former ones with the same state directory left, or, of versions without
// tags, with the same run directory; and unused ones. foreign is how many there are
// of other state directories.
func (e *Engine) Sandboxes() (ids []string, foreign int, err error) { return e.groups.list() }

// UsedRunDirs returns those of FormerRunDirs below whose cgroups there are still
// sandboxes of ours.
func (e *Engine) UsedRunDirs() []string { return e.groups.usedRunDirs() }

// Sweep takes over the sandboxes in live, by id, from a former daemon: a sandbox that this daemon
// builds gets nothing of what they hold. It releases what all others hold, of which an
// error says what could not be.
func (e *Engine) Sweep(ctx context.Context, live map[string]sandbox.Leases) error {
	var errs []error
	for _, r := range slices.Backward(e.resources) {
		leases := make(map[string]sandbox.Lease, len(live))
		for id, all := range live {
			if lease, ok := all[r.Name()]; ok || r == sandbox.Resource(e.groups) { // of which older records say nothing
				leases[id] = lease
			}
		}
		errs = append(errs, r.Sweep(ctx, leases))
	}
	return errors.Join(errs...)
}

// Contain moves a process of the daemon's, which is no job, into a cgroup with
// limits of its own. release ends what is in there and removes it. After a crash
// recovery does, as for any sandbox without a job.
func (e *Engine) Contain(pid int, limits joblet.Limits) (release func() error, err error) {
	id := joblet.NewID()
	if _, err := e.groups.Claim(context.Background(), id, nil); err != nil {
		return nil, err
	}
	release = func() error { return e.Release(id, nil) }
	group := e.groups.group(id)
	if err = group.Limit(limits, nil); err == nil {
		err = group.Enter(pid)
	}
	if err != nil {
		return nil, errors.Join(err, release())
	}
	return release, nil
}

// releaseTimeout bounds how long processes that were killed may take to go.
const releaseTimeout = 10 * time.Second

// Release ends whatever is left of a sandbox and gives back what it holds. It may be called
// at any time and any number of times; what is gone already is no error. A failed start,
// a normal end and the recovery after a crash all end here.
func (e *Engine) Release(id string, leases sandbox.Leases) error {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	for _, r := range slices.Backward(e.resources) {
		if err := r.Release(ctx, id, leases[r.Name()]); err != nil {
			return fmt.Errorf("cannot release what is left of sandbox %s: %w", id, err)
		}
	}
	return nil
}
