// Package cgroup gives each job its places in the host's cgroup hierarchies: it
// finds the hierarchies, makes and removes a job's groups, sets limits, freezes,
// kills, and reads what the groups count. It is the only package that knows
// where a controller lives, cgroup v1 or v2.
package cgroup

import (
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

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/fault"
)

// Hierarchy is where the daemon keeps the cgroups of its jobs.
//
// Where the host has cgroup v2, each job has one cgroup there with two children:
// "job", which holds the job's processes and its limits, and "shim". Each v1
// hierarchy with a controller that Joblet uses has one cgroup for the job. On a
// hybrid host a job has both: limits where the controllers are, and freezing,
// killing and counting processor time in v2, which need none.
type Hierarchy struct {
	v2          string            // our directory in the v2 hierarchy; empty: the host has none
	controllers []string          // enabled for our children in v2
	v1          map[string]string // controller → our directory in its hierarchy

	parent string // of v2
	probe  probe  // what OpenProbe found, and has to undo
}

// The controllers that Joblet uses.
var (
	controllers = []string{"pids", "memory", "cpu", "cpuset", "io"}
	// v1Controllers are what v1 calls them, in the order in which a job enters
	// them. cpuacct is for the view of the job alone where a v2 hierarchy is mounted:
	// programs take a set of hierarchies without it for none (Java). The one behind
	// them is v2's own feature, and needed only where no v2 hierarchy is mounted.
	v1Controllers = []string{"pids", "memory", "cpu", "cpuset", "blkio", "cpuacct"}
	v1Alone       = []string{"freezer"}
)

// Mount is a cgroup hierarchy of the host.
type Mount struct {
	Path        string
	Root        string // which cgroup is at Path: "/", or in a container perhaps another one
	V2          bool
	ReadOnly    bool
	Controllers []string // of a v1 hierarchy
}

// HostMounts returns the host's cgroup hierarchies. The first mount of each is the
// host's; later ones are copies of it, or a container's.
func HostMounts() ([]Mount, error) {
	table, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	return hierarchies(table), nil
}

// hierarchies returns the hierarchies in a table of mounts of cgroup file systems.
func hierarchies(table []*mountinfo.Info) (all []Mount) {
	for _, info := range table {
		m := Mount{Path: info.Mountpoint, Root: info.Root, ReadOnly: isReadOnly(info.Options) || isReadOnly(info.VFSOptions)}
		// One in the same place lies below it, out of sight.
		all = slices.DeleteFunc(all, func(other Mount) bool { return other.Path == m.Path })
		if info.FSType == "cgroup2" {
			if !slices.ContainsFunc(all, func(m Mount) bool { return m.V2 }) {
				m.V2 = true
				all = append(all, m)
			}
			continue
		}
		for opt := range strings.SplitSeq(info.VFSOptions, ",") {
			known := slices.Contains(v1Controllers, opt) || slices.Contains(v1Alone, opt)
			if known && !slices.ContainsFunc(all, func(m Mount) bool { return slices.Contains(m.Controllers, opt) }) {
				m.Controllers = append(m.Controllers, opt)
			}
		}
		if m.Controllers != nil {
			all = append(all, m)
		}
	}
	return all
}

func isReadOnly(options string) bool { return slices.Contains(strings.Split(options, ","), "ro") }

// Open finds the host's hierarchies and makes the daemon's own directory in
// each. name is that directory's name.
func Open(name string) (*Hierarchy, error) { return open(name, (*Hierarchy).openV2) }

func open(name string, openV2 func(*Hierarchy, Mount, string) error) (_ *Hierarchy, err error) {
	mounts, err := HostMounts()
	if err != nil {
		return nil, fmt.Errorf("cannot look for cgroup hierarchies: %w", err)
	}
	h := &Hierarchy{v1: map[string]string{}}
	defer func() {
		if err != nil {
			h.RemoveEmpty()
		}
	}()
	hasV2 := slices.ContainsFunc(mounts, func(m Mount) bool { return m.V2 })
	for _, m := range mounts {
		if m.V2 {
			if err := m.writable(); err != nil {
				return nil, err
			}
			if err := openV2(h, m, name); err != nil {
				return nil, err
			}
			continue
		}
		for _, controller := range m.Controllers {
			if hasV2 && slices.Contains(v1Alone, controller) {
				continue
			}
			if err := m.writable(); err != nil {
				return nil, err
			}
			dir := filepath.Join(m.Path, name)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, fmt.Errorf("cannot make the cgroup of controller %s: %w", controller, err)
			}
			h.v1[controller] = dir
		}
	}
	if dir := h.v1["cpuset"]; dir != "" { // new cpusets of v1 are empty, and accept no process
		for _, file := range []string{"cpuset.mems", "cpuset.cpus"} {
			if err := inherit(dir, file); err != nil {
				return nil, err
			}
		}
		if err := write(dir, "cgroup.clone_children", "1"); err != nil { // and ours are like their parent
			return nil, err
		}
	}
	if h.where("pids") == "" && !slices.Contains(h.probe.available, "pids") {
		if h.parent != "" {
			return nil, fmt.Errorf("cannot limit the processes of jobs: the cgroup %s lacks the controller pids; enable it in the cgroups above (systemd: Delegate=yes)", h.parent)
		}
		return nil, errors.New("cannot limit the processes of jobs: no cgroup hierarchy with the controller pids is mounted; mount cgroup2 on /sys/fs/cgroup")
	}
	return h, nil
}

// writable reports whether cgroups can be made in the hierarchy.
func (m Mount) writable() error {
	if !m.ReadOnly {
		return nil
	}
	return fmt.Errorf("%s is mounted read-only, but each job needs a cgroup of its own there: mount it read-write (mount -o remount,rw %s; a container has to be started so: docker run --privileged --cgroupns=private)", m.Path, m.Path)
}

// inherit gives a v1 cpuset its parent's processors or nodes.
func inherit(dir, file string) error {
	value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
	if err != nil {
		return fmt.Errorf("cannot set up cpusets: %w", err)
	}
	return write(dir, file, strings.TrimSpace(string(value)))
}

// openV2 makes our directory in the v2 hierarchy, with the controllers enabled
// for the jobs.
func (h *Hierarchy) openV2(m Mount, name string) error {
	parent, leaving := m.place(name)
	unlock, err := lock(parent)
	if err != nil {
		return err
	}
	defer unlock()
	if leaving != noProcess {
		if err := moveDown(parent, leaving == everyProcess); err != nil {
			return err
		}
	}
	available, err := h.makeV2(parent, name)
	if err != nil {
		return err
	}
	h.controllers = available
	for _, dir := range []string{parent, h.v2} {
		if err := enableControllers(dir, h.controllers); err != nil {
			return err
		}
	}
	return nil
}

// makeV2 makes our directory and returns which controllers it could have.
func (h *Hierarchy) makeV2(parent, name string) (available []string, err error) {
	h.parent, h.v2 = parent, filepath.Join(parent, name)
	if err := os.Mkdir(h.v2, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("cannot make the cgroup for jobs: %w", err)
	}
	there, err := readWords(filepath.Join(parent, "cgroup.controllers"))
	if err != nil {
		return nil, fmt.Errorf("cannot read the available controllers: %w", err)
	}
	for _, c := range controllers {
		if slices.Contains(there, c) {
			available = append(available, c)
		}
	}
	return available, nil
}

func readWords(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	return strings.Fields(string(data)), err
}

// Who has to leave the cgroup above our directory.
type leaving int

const (
	noProcess leaving = iota
	theDaemon
	everyProcess
)

// ownSlice is the systemd slice whose unit the daemon may be, deploy/joblet.service.
const ownSlice = "joblet.slice"

// place chooses the cgroup in which our directory is to be:
//
//   - The slice joblet.slice, if the daemon runs in there. Its unit, delegated
//     or not, will not do: a cgroup whose children have controllers takes no
//     process in, so systemd before 254 could not start the daemon again while
//     jobs run.
//   - The daemon's own cgroup, if it is all that a container has, or was delegated
//     to it (systemd's Delegate=yes marks it with an extended attribute).
//   - Otherwise the top.
//
// But if jobs of a former daemon are elsewhere, their place is ours.
func (m Mount) place(name string) (parent string, _ leaving) {
	parent, who := m.Path, noProcess
	if own, err := m.ownCgroup(); err == nil {
		above, _, inSlice := strings.Cut(own+"/", "/"+ownSlice+"/")
		switch {
		case inSlice:
			parent = filepath.Join(m.Path, above, ownSlice)
		// The root cgroup of the host has no cgroup.events (cgroup-v2.rst): a top that
		// has one is a container's part of the hierarchy.
		case own == "/" && exists(filepath.Join(m.Path, "cgroup.events")):
			who = everyProcess
		case delegated(filepath.Join(m.Path, own)):
			parent, who = filepath.Join(m.Path, own), theDaemon
		}
	}
	for _, other := range []string{filepath.Join(m.Path, ownSlice), m.Path} {
		if other != parent && !hasSandboxes(filepath.Join(parent, name)) && hasSandboxes(filepath.Join(other, name)) {
			return other, noProcess
		}
	}
	return parent, who
}

func hasSandboxes(dir string) bool {
	entries, _ := os.ReadDir(dir)
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return joblet.ValidID(e.Name()) })
}

// lockTime bounds the wait for another daemon that sets up the same cgroup, which
// takes milliseconds. Everybody may open, and so lock, the directory of a cgroup:
// a process that holds it for longer is not such a daemon, and does not keep us waiting.
var lockTime = 2 * time.Second

// lock keeps others away that set up, or try out, the same cgroup, until unlock
// is called.
func lock(dir string) (unlock func(), err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	for deadline := time.Now().Add(lockTime); ; {
		switch err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil, err == unix.EWOULDBLOCK && time.Now().After(deadline):
			return func() { unix.Close(fd) }, nil
		case err == unix.EWOULDBLOCK:
			time.Sleep(5 * time.Millisecond)
		case err != unix.EINTR:
			unix.Close(fd)
			return nil, &os.PathError{Op: "lock", Path: dir, Err: err}
		}
	}
}

// daemonLeaf is the cgroup into which the daemon moves out of one that was
// delegated to it.
const daemonLeaf = "daemon"

// moveDown moves the daemon out of dir: a cgroup with processes of its own can't
// have controllers enabled for children ("no internal processes", cgroups(7)).
// In a container whatever else runs there has to move as well.
func moveDown(dir string, allProcesses bool) error {
	leaf := filepath.Join(dir, daemonLeaf)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot make the daemon's cgroup: %w", err)
	}
	if err := write(leaf, "cgroup.procs", "0"); err != nil {
		return fmt.Errorf("cannot enter the daemon's cgroup: %w", err)
	}
	for range 10 { // a process may fork while the list is read
		pids, err := readPIDs(filepath.Join(dir, "cgroup.procs"))
		if err != nil || len(pids) == 0 || !allProcesses {
			return err
		}
		for _, pid := range pids {
			if err := write(leaf, "cgroup.procs", strconv.Itoa(pid)); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("cannot move process %d to the daemon's cgroup: %w", pid, err)
			}
		}
	}
	return nil
}

// RemoveEmpty removes our directories if no job is in them; the next daemon makes
// them again.
func (h *Hierarchy) RemoveEmpty() {
	for _, dir := range h.Dirs() {
		_ = unix.Rmdir(dir) // EBUSY: there are jobs
	}
	h.probe.undo(h.parent)
}

// Dirs returns our directory in each hierarchy.
func (h *Hierarchy) Dirs() []string {
	dirs := slices.Collect(maps.Values(h.v1))
	if h.v2 != "" {
		dirs = append(dirs, h.v2)
	}
	slices.Sort(dirs)
	return slices.Compact(dirs) // cpu,cpuacct may be one hierarchy
}

// Sandboxes returns the ids of all sandboxes that have a cgroup in any hierarchy: a
// daemon may have died when only some were made, or removed.
func (h *Hierarchy) Sandboxes() ([]string, error) {
	ids := map[string]bool{}
	for _, dir := range h.Dirs() {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("cannot list the jobs' cgroups: %w", err)
		}
		for _, entry := range entries {
			if joblet.ValidID(entry.Name()) {
				ids[entry.Name()] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(ids)), nil
}

// where returns our directory in the hierarchy that has the controller, by the
// name that v2 gives it; "": there is none.
func (h *Hierarchy) where(controller string) string {
	if slices.Contains(h.controllers, controller) {
		return h.v2
	}
	if controller == "io" {
		controller = "blkio"
	}
	return h.v1[controller]
}

// Controllers returns which controllers limit jobs, by the names of v2, each with
// 1 or 2 for the version that has it.
func (h *Hierarchy) Controllers() map[string]int {
	all := map[string]int{}
	for _, c := range controllers {
		switch {
		case slices.Contains(h.controllers, c):
			all[c] = 2
		case h.where(c) != "":
			all[c] = 1
		}
	}
	return all
}

func enableControllers(dir string, controllers []string) error {
	if len(controllers) == 0 {
		return nil
	}
	err := write(dir, "cgroup.subtree_control", "+"+strings.Join(controllers, " +"))
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("cannot enable cgroup controllers: %w: the daemon cannot move some processes of %s into a cgroup below it, and until they are gone no cgroup below it can have controllers", err, dir)
	}
	if err != nil {
		return fmt.Errorf("cannot enable cgroup controllers: %w", err)
	}
	return nil
}

// ownCgroup returns the daemon's cgroup in the v2 hierarchy, as seen from the
// mount: it is in the line "0::/…" of /proc/self/cgroup.
func (m Mount) ownCgroup() (string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return m.seen(p)
		}
	}
	return "", errors.New("this process is not in a v2 cgroup")
}

// seen returns where in the mount a cgroup is whose path is one of this process's
// cgroup namespace, as Root is: both may begin with "/..".
func (m Mount) seen(own string) (string, error) {
	rest, ok := strings.CutPrefix(own, strings.TrimSuffix(m.Root, "/"))
	if !ok || rest != "" && rest[0] != '/' {
		return "", fmt.Errorf("cgroup %s is not below %s, which is mounted at %s", own, m.Root, m.Path)
	}
	return cmp.Or(strings.TrimSuffix(rest, "/"+daemonLeaf), "/"), nil // after a restart inside the same unit
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

// Dirs says where the cgroups of one job are, to the code that reads them. It crosses
// to the job's shim as JSON.
type Dirs struct {
	V2          string            `json:"v2,omitempty"` // for the job's processes; empty: the host has no v2 hierarchy
	Controllers []string          `json:"controllers,omitempty"`
	V1          map[string]string `json:"v1,omitempty"` // by controller
}

// where returns the directory that has a controller, by the name that v2 gives
// it, and whether that is a v2 one; "": the host lacks it.
func (d Dirs) where(controller string) (dir string, v2 bool) {
	if slices.Contains(d.Controllers, controller) {
		return d.V2, true
	}
	if controller == "io" {
		controller = "blkio"
	}
	return d.V1[controller], false
}

// TaskFiles returns the tasks files of the v1 groups: the first process enters
// each before anything else.
func (d Dirs) TaskFiles() []string {
	var files []string
	for _, controller := range slices.Concat(v1Controllers, v1Alone) {
		if dir := d.V1[controller]; dir != "" && !slices.Contains(files, filepath.Join(dir, "tasks")) {
			files = append(files, filepath.Join(dir, "tasks"))
		}
	}
	return files
}

// EnterV1 moves the calling process into those v1 groups of the job that charge for
// what it does: of memory and of devices. (A new process can be born in v2's.)
func (d Dirs) EnterV1() error {
	for _, controller := range []string{"memory", "blkio"} {
		if dir := d.V1[controller]; dir != "" {
			if err := write(dir, "cgroup.procs", "0"); err != nil {
				return err
			}
		}
	}
	return nil
}

// Enter moves another process into all of the job's groups.
func (d Dirs) Enter(pid int) error {
	dirs := make([]string, 0, 8)
	if d.V2 != "" {
		dirs = append(dirs, d.V2)
	}
	for _, file := range d.TaskFiles() {
		dirs = append(dirs, filepath.Dir(file))
	}
	for _, dir := range dirs {
		if err := write(dir, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

// LiftPIDs takes the limit on processes away, for something of ours that has to
// run beside the first process, until restore is called.
func (d Dirs) LiftPIDs() (restore func() error, err error) {
	dir, v2 := d.where("pids")
	if !v2 {
		return func() error { return nil }, nil // EnterV1 does not enter that group
	}
	limit, err := os.ReadFile(filepath.Join(dir, "pids.max"))
	if err != nil {
		return nil, err
	}
	return func() error { return write(dir, "pids.max", strings.TrimSpace(string(limit))) }, write(dir, "pids.max", "max")
}

// View is one of a job's cgroups as the job sees it.
type View struct {
	Name    string   // below /sys/fs/cgroup; empty: it is there itself
	Dir     string   // on the host
	Aliases []string // other names beside Name
}

// Views returns how a job sees its own cgroups: in the places where they are on a
// machine of its own, by what systemd calls them.
func (d Dirs) Views() []View {
	if len(d.V1) == 0 {
		return []View{{Dir: d.V2}}
	}
	var views []View
	for _, file := range d.TaskFiles() {
		dir := filepath.Dir(file)
		var names []string
		for _, controller := range slices.Concat(v1Controllers, v1Alone) {
			if d.V1[controller] == dir {
				names = append(names, controller)
			}
		}
		v := View{Name: strings.Join(names, ","), Dir: dir}
		if len(names) > 1 {
			v.Aliases = names
		}
		views = append(views, v)
	}
	if len(d.Controllers) > 0 {
		views = append(views, View{Name: "unified", Dir: d.V2})
	}
	return views
}

// Group is the cgroups of one job.
type Group struct {
	Dirs
	top  string // its directory in the v2 hierarchy, above that of its processes
	Shim string // the v2 cgroup of its shim; empty: the host has none
}

// Group returns the cgroups of the sandbox with this id, which may or may not be
// there.
func (h *Hierarchy) Group(id string) *Group {
	g := &Group{Dirs: Dirs{Controllers: h.controllers, V1: map[string]string{}}}
	if h.v2 != "" {
		g.top = filepath.Join(h.v2, id)
		g.V2, g.Shim = filepath.Join(g.top, "job"), filepath.Join(g.top, "shim")
		if former := filepath.Join(g.top, "monitor"); exists(former) { // of an earlier release
			g.Shim = former
		}
	}
	for controller, dir := range h.v1 {
		g.V1[controller] = filepath.Join(dir, id)
	}
	return g
}

// Beside returns the hierarchy of another name in the same places. It makes
// nothing there, and is only for sandboxes that exist.
func (h *Hierarchy) Beside(name string) *Hierarchy {
	other := &Hierarchy{controllers: h.controllers, v1: map[string]string{}, parent: h.parent}
	if h.v2 != "" {
		other.v2 = filepath.Join(filepath.Dir(h.v2), name)
	}
	for controller, dir := range h.v1 {
		other.v1[controller] = filepath.Join(filepath.Dir(dir), name)
	}
	return other
}

// Exists reports whether any of the cgroups does.
func (g *Group) Exists() bool {
	return g.top != "" && exists(g.top) || slices.ContainsFunc(g.v1Dirs(), exists)
}

// OmitMissing leaves out the v1 groups that the job has not got: one of an earlier
// version has fewer.
func (g *Group) OmitMissing() {
	maps.DeleteFunc(g.V1, func(_, dir string) bool { return !exists(dir) })
}

// v1Dirs returns the job's v1 directories, each once, in a fixed order.
func (g *Group) v1Dirs() []string {
	var dirs []string
	for _, file := range g.TaskFiles() {
		dirs = append(dirs, filepath.Dir(file))
	}
	return dirs
}

// Create makes the cgroups and sets what holds for every job.
func (h *Hierarchy) Create(id string) (*Group, error) {
	g := h.Group(id)
	err := g.makeDirs()
	if dir, v2 := g.where("memory"); err == nil && v2 {
		// When its memory is used up, the job ends as one unit. (v1 has no such
		// thing: there the shim sees to it.)
		err = write(dir, "memory.oom.group", "1")
	}
	if err == nil {
		err = g.set("pids", "pids.max", strconv.Itoa(joblet.DefaultMaxPIDs))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make the job's cgroup: %w", err), g.Remove(context.Background()))
	}
	return g, nil
}

func (g *Group) makeDirs() error {
	if g.top != "" {
		if err := os.Mkdir(g.top, 0o755); err != nil {
			return err
		}
		if err := enableControllers(g.top, g.Controllers); err != nil {
			return err
		}
		for _, child := range []string{g.V2, g.Shim} {
			if err := os.Mkdir(child, 0o755); err != nil {
				return err
			}
		}
	}
	for _, dir := range g.v1Dirs() {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// set writes a file of a controller that has the same name in v1 and v2.
func (g *Group) set(controller, file, value string) error {
	dir, _ := g.where(controller)
	return write(dir, file, value)
}

// write writes a cgroup file in one system call, as the kernel wants it.
func write(dir, file, value string) error {
	fd, err := unix.Open(filepath.Join(dir, file), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Join(dir, file), Err: err}
	}
	defer unix.Close(fd)
	for {
		_, err = unix.Write(fd, []byte(value))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "write " + value + " to", Path: filepath.Join(dir, file), Err: err}
		}
		return nil
	}
}

// readPIDs reads a list of processes.
func readPIDs(file string) ([]int, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(string(data)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// PIDs returns the job's processes as the host numbers them.
func (g *Group) PIDs() ([]int, error) {
	dir := g.V2
	if dir == "" {
		dir = g.V1["pids"]
	}
	return readPIDs(filepath.Join(dir, "cgroup.procs"))
}

// Shims returns the shims of the job and of its further processes as the
// host numbers them; none where the host has no v2 hierarchy.
func (g *Group) Shims() ([]int, error) {
	if g.Shim == "" {
		return nil, nil
	}
	return readPIDs(filepath.Join(g.Shim, "cgroup.procs"))
}

// ThawShims lets the shims go on if their cgroup is frozen.
func (g *Group) ThawShims() error {
	if g.top == "" {
		return nil
	}
	return errors.Join(write(g.top, "cgroup.freeze", "0"), write(g.Shim, "cgroup.freeze", "0"))
}

// Kill ends every process in the job's cgroup, its shim included, by the
// kernel's own means where it has them (cgroup.kill, since 5.14).
func (g *Group) Kill() error { return g.kill(g.top) }

// KillJob is Kill without the shims.
func (g *Group) KillJob() error { return g.kill(g.V2) }

func (g *Group) kill(top string) error {
	if top != "" {
		err := write(top, "cgroup.kill", "1") // children included
		if err == nil || errors.Is(err, fs.ErrNotExist) && !exists(top) {
			return nil
		}
	}
	if err := g.Thaw(); err != nil && !errors.Is(err, fs.ErrNotExist) { // no process dies frozen in v1
		return err
	}
	// A process may fork while the list is read: until it is empty. PID 1 is in
	// it, and with PID 1 the kernel ends the whole namespace.
	for range 100 {
		pids, err := g.PIDs()
		if err != nil || len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// Remove removes the job's cgroups once they are empty; what is gone already is
// no error. It waits for processes that are about to end, not longer than ctx.
func (g *Group) Remove(ctx context.Context) error {
	var dirs []string
	if g.top != "" {
		dirs = append(dirs, g.V2, g.Shim, g.top)
	}
	var errs []error
	for _, dir := range append(dirs, g.v1Dirs()...) {
		// Jobs cannot make cgroups (their view is read-only), so there are no
		// children but ours.
		if err := removeDir(ctx, dir); err != nil {
			errs = append(errs, err)
		}
		fault.Point("release.half")
	}
	return errors.Join(errs...)
}

func removeDir(ctx context.Context, dir string) error {
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

// Name returns the name of the daemon's directory in each hierarchy: one of its
// own for each run directory, so that daemons beside each other do not meet.
func Name(runDir string) string {
	if runDir == "/run/joblet" {
		return "joblet"
	}
	sum := fnv.New32a()
	sum.Write([]byte(runDir))
	return fmt.Sprintf("joblet-%08x", sum.Sum32())
}
