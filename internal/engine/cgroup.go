package engine

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/fault"
)

// DefaultMaxPIDs is how many processes and threads a job may have at once.
const DefaultMaxPIDs = 4096

// hierarchy is where the daemon keeps the cgroups of its jobs.
//
// On a host with cgroup v2, each job has one cgroup there with two children:
// "job", which holds the job's processes and its limits, and "monitor". A host
// with v1 controllers has a cgroup for the job in each v1 hierarchy that Joblet
// uses; if it has a v2 hierarchy too, that has no controllers, and one cgroup in
// it holds job and monitor together, to be killed as one.
type hierarchy struct {
	v2          string            // our directory in the v2 hierarchy; empty: the host has none
	controllers []string          // enabled for our children in v2
	v1          map[string]string // controller → our directory in its hierarchy
}

// v1Controllers are the v1 hierarchies that a job enters: those whose limits it
// has. Each costs a directory made and removed per job.
var v1Controllers = []string{"pids"}

// openHierarchy finds the host's cgroup hierarchies in mountinfo, never at a
// fixed place, and makes the daemon's own directory in each. name is that
// directory's name.
func openHierarchy(name string) (*hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := &hierarchy{v1: map[string]string{}}
	var v2Mount string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// 32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu (proc_pid_mountinfo(5))
		before, after, _ := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if len(left) < 5 || len(right) < 3 {
			continue
		}
		mount := left[4] // the first of each kind is the host's; later ones are copies of it
		switch right[0] {
		case "cgroup2":
			v2Mount = cmp.Or(v2Mount, mount)
		case "cgroup":
			for opt := range strings.SplitSeq(right[2], ",") {
				if slices.Contains(v1Controllers, opt) && h.v1[opt] == "" {
					h.v1[opt] = filepath.Join(mount, name)
				}
			}
		}
	}
	if v2Mount == "" && h.v1["pids"] == "" {
		return nil, errors.New("no cgroup hierarchy is mounted that could hold jobs: mount cgroup2 on /sys/fs/cgroup")
	}
	for controller, dir := range h.v1 {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make the cgroup of controller %s: %w", controller, err)
		}
	}
	if v2Mount != "" {
		if err := h.openV2(v2Mount, name); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// openV2 makes our directory below the daemon's own cgroup if that was
// delegated to it (systemd's Delegate=yes marks it with an extended
// attribute), and at the top otherwise, with the controllers enabled for the
// jobs.
func (h *hierarchy) openV2(mount, name string) error {
	parent := mount
	if own, err := ownCgroup(); err == nil && delegated(filepath.Join(mount, own)) {
		parent = filepath.Join(mount, own)
		// A cgroup with processes of its own can't have controllers enabled for
		// children ("no internal processes", cgroups(7)): the daemon moves down.
		leaf := filepath.Join(parent, "daemon")
		if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make the daemon's cgroup: %w", err)
		}
		if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("enter the daemon's cgroup: %w", err)
		}
	}
	h.v2 = filepath.Join(parent, name)
	if err := os.Mkdir(h.v2, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the cgroup for jobs: %w", err)
	}
	available, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read the available controllers: %w", err)
	}
	for _, c := range []string{"cpu", "memory", "pids", "io", "cpuset"} {
		if slices.Contains(strings.Fields(string(available)), c) {
			h.controllers = append(h.controllers, c)
		}
	}
	for _, dir := range []string{parent, h.v2} {
		if err := enableControllers(dir, h.controllers); err != nil {
			return err
		}
	}
	return nil
}

// removeEmpty removes our directories if no job is in them; the next daemon makes
// them again.
func (h *hierarchy) removeEmpty() {
	for _, dir := range h.dirs() {
		_ = unix.Rmdir(dir) // EBUSY: there are jobs
	}
}

// dirs returns our directory in each hierarchy.
func (h *hierarchy) dirs() []string {
	dirs := slices.Collect(maps.Values(h.v1))
	if h.v2 != "" {
		dirs = append(dirs, h.v2)
	}
	return dirs
}

func enableControllers(dir string, controllers []string) error {
	if len(controllers) == 0 {
		return nil
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+strings.Join(controllers, " +")), 0); err != nil {
		return fmt.Errorf("enable cgroup controllers: %w", err)
	}
	return nil
}

// ownCgroup returns the daemon's cgroup in the v2 hierarchy: the line "0::/…"
// of /proc/self/cgroup.
func ownCgroup() (string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return strings.TrimSuffix(p, "/daemon"), nil // after a restart inside the same unit
		}
	}
	return "", errors.New("not in a v2 cgroup")
}

func delegated(dir string) bool {
	var value [8]byte
	for _, attr := range []string{"trusted.delegate", "user.delegate"} {
		if n, err := unix.Getxattr(dir, attr, value[:]); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	return false
}

// cgroup is the cgroups of one job.
type cgroup struct {
	v2      string   // the job's directory in the v2 hierarchy; empty: the host has none
	job     string   // v2 itself or a child of it: for the job's processes
	monitor string   // v2 itself or a child of it: for the monitor
	v1      []string // one directory in each v1 hierarchy
}

func (h *hierarchy) cgroup(id string) *cgroup {
	c := &cgroup{}
	if h.v2 != "" {
		c.v2 = filepath.Join(h.v2, id)
		c.job, c.monitor = c.v2, c.v2
		if len(h.controllers) > 0 { // then only leaves may have processes
			c.job, c.monitor = filepath.Join(c.v2, "job"), filepath.Join(c.v2, "monitor")
		}
	}
	for _, controller := range v1Controllers { // in a fixed order
		dir := h.v1[controller]
		if dir == "" {
			continue
		}
		if dir = filepath.Join(dir, id); !slices.Contains(c.v1, dir) { // cpu,cpuacct may be one hierarchy
			c.v1 = append(c.v1, dir)
		}
	}
	return c
}

// children returns the cgroups below the job's own.
func (c *cgroup) children() []string {
	if c.job == c.v2 {
		return nil
	}
	return []string{c.job, c.monitor}
}

// create makes the cgroups and sets the limits that every job has.
func (h *hierarchy) create(id string) (*cgroup, error) {
	c := h.cgroup(id)
	err := func() error {
		if c.v2 != "" {
			if err := os.Mkdir(c.v2, 0o755); err != nil {
				return err
			}
			if err := enableControllers(c.v2, h.controllers); err != nil {
				return err
			}
			for _, child := range c.children() {
				if err := os.Mkdir(child, 0o755); err != nil {
					return err
				}
			}
		}
		for _, dir := range c.v1 {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
		}
		limit := []byte(strconv.Itoa(DefaultMaxPIDs))
		switch {
		case slices.Contains(h.controllers, "pids"):
			return os.WriteFile(filepath.Join(c.job, "pids.max"), limit, 0)
		case h.v1["pids"] != "":
			return os.WriteFile(filepath.Join(h.v1["pids"], id, "pids.max"), limit, 0)
		}
		return errors.New("this host has no pids controller: a job could start processes without limit")
	}()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the job's cgroup: %w", err), c.remove(context.Background()))
	}
	return c, nil
}

// kill ends every process in the job's cgroup, its monitor included, by the
// kernel's own means where it has them (cgroup.kill, since 5.14).
func (c *cgroup) kill() error {
	if c.v2 != "" {
		err := os.WriteFile(filepath.Join(c.v2, "cgroup.kill"), []byte("1"), 0) // children included
		if err == nil || errors.Is(err, fs.ErrNotExist) && !exists(c.v2) {
			return nil
		}
	}
	dirs := c.v1
	if c.v2 != "" {
		dirs = []string{c.job}
	}
	for _, dir := range dirs[:min(1, len(dirs))] {
		// A process may fork while the list is read: until it is empty. PID 1 is
		// in it, and with PID 1 the kernel ends the whole namespace.
		for range 100 {
			data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil || len(data) == 0 {
				break
			}
			for pid := range strings.FieldsSeq(string(data)) {
				if n, err := strconv.Atoi(pid); err == nil && n > 0 {
					_ = unix.Kill(n, unix.SIGKILL)
				}
			}
		}
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// remove removes the job's cgroups once they are empty; what is gone already is
// no error. It waits for processes that are about to end, not longer than ctx.
func (c *cgroup) remove(ctx context.Context) error {
	var dirs []string
	if c.v2 != "" {
		dirs = append(c.children(), c.v2)
	}
	var errs []error
	for _, dir := range append(dirs, c.v1...) {
		// Jobs cannot make cgroups (their view is read-only), so there are no
		// children but ours.
		if err := removeCgroup(ctx, dir); err != nil {
			errs = append(errs, err)
		}
		fault.Point("release.half")
	}
	return errors.Join(errs...)
}

func removeCgroup(ctx context.Context, dir string) error {
	for {
		err := unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY || ctx.Err() != nil {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		waitEmpty(ctx, dir)
	}
}

// waitEmpty waits for a change of "populated" in cgroup.events, which the
// kernel announces as POLLPRI (cgroup-v2.rst), in v1 for a moment.
func waitEmpty(ctx context.Context, dir string) {
	f, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond): // v1 has no notice to wait for
		}
		return
	}
	defer f.Close()
	data := make([]byte, 256)
	if n, _ := f.Read(data); strings.Contains(string(data[:n]), "populated 0") {
		time.Sleep(time.Millisecond) // empty, and the last process is being taken apart
		return
	}
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
	_, _ = unix.Poll(fds, 100)
}

// groupName returns the name of the daemon's directory in each hierarchy: one
// of its own for each run directory, so that daemons beside each other do not
// meet.
func groupName(runDir string) string {
	if runDir == "/run/joblet" {
		return "joblet"
	}
	sum := fnv.New32a()
	sum.Write([]byte(runDir))
	return fmt.Sprintf("joblet-%08x", sum.Sum32())
}
