// Package native isolates and runs one process tree at a time: namespaces, id
// maps, cgroups, the root file system, the start and the end. It is the only
// package that knows clone flags, together with package shim, which is the
// other side of it: the program that becomes the job's parent.
package native

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/sandbox/native/rootfs"
	"github.com/joblet/joblet/internal/shim/protocol"
)

//go:embed embed
var embedded embed.FS

// Config says where an Engine keeps what a reboot may forget.
type Config struct {
	RunDir string
	// Spares is how many boxes are kept ready: a box costs milliseconds to
	// build and a new job gets a ready one.
	Spares int
	Log    *slog.Logger

	// Tag, of twelve hexadecimal digits, marks the boxes that are built for one
	// state directory. Boxes with another tag are not touched.
	Tag string
	// FormerRunDirs are other run directories below whose cgroups there may be
	// boxes with the tag.
	FormerRunDirs []string

	// Resources are what boxes hold beside their ids and their cgroups. They are claimed
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

	spares  chan *Box
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
		spares:  make(chan *Box, cfg.Spares),
		refill:  make(chan struct{}, 1),
	}
	for _, dir := range []string{cfg.RunDir, e.newRoot} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make the run directory: %w", err)
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
	boxes, err := e.groups.own.Boxes() // of whatever state directory
	if err != nil {
		return nil, err
	}
	if e.views, err = rootfs.Open(filepath.Join(cfg.RunDir, "etc"), len(boxes) == 0, cfg.Log); err != nil {
		return nil, err
	}
	if e.shim, err = LoadShim(); err != nil {
		return nil, err
	}
	if e.null, err = os.OpenFile("/dev/null", os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if e.log, err = os.OpenFile(filepath.Join(cfg.RunDir, "shims.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, fmt.Errorf("open the log of the shims: %w", err)
	}
	return e, nil
}

// StartSpares prepares the host for jobs, and begins to keep boxes ready.
func (e *Engine) StartSpares() {
	if ok, err := raiseFileMax(fileMaxPath); !ok {
		e.cfg.Log.Warn("one job can use up the open files of this host: raise fs.file-max", "error", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.stop = cancel
	e.stopped.Go(e.views.Prepare)
	if inheritsOrphans() {
		e.stopped.Go(func() { reapOrphans(ctx) })
	}
	if e.cfg.Spares > 0 {
		e.stopped.Go(func() { e.keepSpares(ctx) })
		e.refill <- struct{}{}
	}
}

// Close gives up the spare boxes. Running jobs go on.
func (e *Engine) Close() error {
	if e.stop != nil {
		e.stop()
		e.stopped.Wait()
	}
	for {
		select {
		case b := <-e.spares:
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

// sealTime is how long the kernel may refuse to seal a file because it is handling
// one of its pages itself, to reclaim or migrate it: it looks for a moment and then
// says EBUSY (memfd_wait_for_pins in mm/memfd.c).
const sealTime = 10 * time.Second

// ShimName is the shim's program, and the title of its process.
const ShimName = "joblet-shim"

// builtin is set by SetBuiltinShim.
var builtin bool

// SetBuiltinShim says that this program is the shim when it is started as ShimName.
// Engines then start it where no shim is embedded. It is called before Open.
func SetBuiltinShim() { builtin = true }

// LoadShim puts the shim's program into a sealed memfd: there is no file
// to be overwritten through /proc/PID/exe (CVE-2019-5736), and no path to get
// wrong.
func LoadShim() (*os.File, error) {
	program, err := embedded.Open("embed/" + ShimName)
	if err != nil && builtin { // a plain go build or go install
		program, err = os.Open("/proc/self/exe")
	}
	if err != nil {
		return nil, errors.New("this joblet was built without its shim: build it with make build")
	}
	defer program.Close()
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(ShimName, flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate(ShimName, flags)
	}
	if err != nil {
		return nil, fmt.Errorf("make a memfd for the shim: %w", err)
	}
	// Beyond the descriptors that a new shim's own take the place of.
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 64)
	unix.Close(fd)
	if err != nil {
		return nil, fmt.Errorf("move the shim's memfd: %w", err)
	}
	f := os.NewFile(uintptr(high), ShimName)
	if _, err := io.Copy(f, program); err != nil { // and not through one large piece of memory
		return nil, errors.Join(fmt.Errorf("fill the shim's memfd: %w", err), f.Close())
	}
	// Root's alone: to the process that sets a job up this is /proc/self/exe, which the
	// kernel would execute as the interpreter of a script.
	if err := f.Chmod(0o500); err != nil {
		return nil, errors.Join(fmt.Errorf("restrict the shim's memfd: %w", err), f.Close())
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	for until := time.Now().Add(sealTime); ; time.Sleep(10 * time.Millisecond) {
		_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
		if err == nil {
			return f, nil
		}
		if err != unix.EBUSY || time.Now().After(until) {
			return nil, errors.Join(fmt.Errorf("seal the shim's memfd: %w", err), f.Close())
		}
	}
}

// makeDev makes the directory that every job has as /dev, read-only. The nodes
// work there although the run directory may be mounted nodev, because a
// shim clears that on the copy it gives to the job.
func (e *Engine) makeDev() error {
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, dir := range []string{e.devDir, filepath.Join(e.devDir, "pts"), filepath.Join(e.devDir, "shm")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make /dev for jobs: %w", err)
		}
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9, "tty": 0} {
		major := uint32(1)
		if name == "tty" {
			major = 5
		}
		err := unix.Mknod(filepath.Join(e.devDir, name), unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor)))
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("make /dev/%s for jobs: %w", name, err)
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, filepath.Join(e.devDir, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make /dev/%s for jobs: %w", name, err)
		}
	}
	return nil
}

// Steps of a StartError that the caller's input may cause.
const (
	StepWorkDir = protocol.StepWorkDir
	StepFiles   = protocol.StepFiles
	StepJoin    = protocol.StepJoin // the job has ended

	StepArguments = protocol.StepArguments
	StepReaper    = protocol.StepReaper
	StepKilled    = protocol.StepKilled
)

// HostView returns the view of a job without a runtime.
func (e *Engine) HostView() (rootfs.View, error) { return e.views.Host() }

// RuntimeView returns the view of a job whose programs come from the tree at root.
func (e *Engine) RuntimeView(root string) (rootfs.View, error) { return e.views.Runtime(root) }

// Box is a job's box, built and waiting for its command.
type Box struct {
	ID     string
	IDBase uint32
	Leases sandbox.Leases // on what it holds of the host

	engine *Engine
	group  *cgroup.Group
	conn   *os.File // control connection
}

// Take returns a box, ready or newly built, that holds what a run needs of
// Config.Resources; nil: nothing. Its leases belong in the job's record before Start.
func (e *Engine) Take(ctx context.Context, run *Run) (*Box, error) {
	b, err := e.take()
	if err != nil || run == nil {
		return b, err
	}
	for _, r := range e.cfg.Resources {
		if err := b.claim(ctx, r, &run.Plan); err != nil {
			return nil, errors.Join(fmt.Errorf("claim %s: %w", r.Name(), err), b.Discard())
		}
	}
	return b, nil
}

func (e *Engine) take() (*Box, error) {
	for {
		select {
		case b := <-e.spares:
			if b.alive() {
				return b, nil
			}
			e.giveUp(b)
		default:
			return e.build()
		}
	}
}

// alive reports whether the box's shim still has its end of the connection:
// a spare waits for long, and somebody may have killed it.
func (b *Box) alive() bool {
	raw, err := b.conn.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	err = raw.Control(func(fd uintptr) {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		ok = err == unix.EAGAIN
	})
	return ok && err == nil
}

// Refill lets the engine build a spare box for one that was taken. The caller
// says when, because building one beside a job that starts would slow that
// down.
func (e *Engine) Refill() {
	select {
	case e.refill <- struct{}{}:
	default:
	}
}

func (e *Engine) keepSpares(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.refill:
		}
		for len(e.spares) < cap(e.spares) && ctx.Err() == nil {
			b, err := e.build()
			if err != nil {
				e.cfg.Log.Warn("no spare box could be built; the next job says why", "error", err)
				break
			}
			e.spares <- b // this goroutine alone sends, and there is room
		}
	}
}

// build makes a box: its id, id range, cgroups and shim.
func (e *Engine) build() (_ *Box, err error) {
	b := &Box{ID: e.newBoxID(), Leases: sandbox.Leases{}, engine: e}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("build a box: %w", err), e.Release(b.ID, b.Leases))
		}
	}()
	for _, r := range []sandbox.Resource{e.ids, e.groups} {
		if err := b.claim(context.Background(), r, nil); err != nil {
			return nil, err
		}
	}
	b.IDBase, b.group = IDBase(b.Leases), e.groups.group(b.ID)
	fault.Point("box.grouped")
	if err := b.startShim(); err != nil {
		return nil, err
	}
	fault.Point("box.begun")
	box := protocol.Sandbox{
		Version: protocol.Version,
		IDBase:  b.IDBase, IDCount: IDCount,
		NewRoot: e.newRoot, DevDir: e.devDir, DiskBytes: joblet.DefaultDiskBytes, ShmBytes: shmBytes(joblet.Limits{}),
		Cgroup: b.group.Dirs, ProcReadOnly: e.frozen,
	}
	if err := protocol.WriteMessage(b.conn, protocol.Request{Sandbox: &box}); err != nil {
		_ = b.conn.Close()
		return nil, fmt.Errorf("send the box to the shim: %w", err)
	}
	return b, nil
}

// claim claims a resource for the box.
func (b *Box) claim(ctx context.Context, r sandbox.Resource, plan *sandbox.Plan) error {
	lease, err := r.Claim(ctx, b.ID, plan)
	if lease != nil {
		b.Leases[r.Name()] = lease
	}
	return err
}

// spareFiles is how many descriptors new boxes leave free, if the limit allows so
// many: for calls, so that the daemon can be asked to end jobs when it can start
// no more, and for the files of jobs that just begin.
const spareFiles = 64

// spared reports whether enough descriptors are free beside fd, a new one: the
// kernel gives out the lowest that is free.
func spared(fd int) bool {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return true
	}
	return uint64(fd)+min(spareFiles, limit.Cur/4) < limit.Cur
}

// startShim starts the shim, in the box's cgroup.
func (b *Box) startShim() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	if !spared(pair[0]) {
		return errors.Join(os.NewSyscallError("socketpair", unix.EMFILE), unix.Close(pair[0]), unix.Close(pair[1]))
	}
	theirs := os.NewFile(uintptr(pair[1]), "shim")
	defer theirs.Close()
	_ = unix.SetNonblock(pair[0], true) // so that os.File waits in the poller
	b.conn = os.NewFile(uintptr(pair[0]), "control")
	listener, err := b.engine.groups.sockets.listen(b.ID)
	if err != nil {
		return errors.Join(err, b.conn.Close())
	}
	defer listener.Close()

	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"GOMAXPROCS=1", "GODEBUG=madvdontneed=1"},
		Files: []*os.File{b.engine.null, b.engine.null, b.engine.log, theirs, listener},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if b.group.Shim != "" {
		dir, err := os.Open(b.group.Shim)
		if err != nil {
			return errors.Join(err, b.conn.Close())
		}
		defer dir.Close()
		attr.Sys.UseCgroupFD = true
		attr.Sys.CgroupFD = int(dir.Fd())
	}
	path := "/proc/self/fd/" + strconv.Itoa(int(b.engine.shim.Fd()))
	proc, err := os.StartProcess(path, []string{ShimName, b.ID}, attr)
	if err != nil {
		return errors.Join(fmt.Errorf("start the shim: %w", err), b.conn.Close())
	}
	// The shim is this process's child as long as both live: somebody must
	// take its status. What it has to say comes over the connection.
	go func() { _, _ = proc.Wait() }()
	return nil
}

// Discard gives up the box, with what may run in it: its shim ends, and all
// that Release removes goes.
func (b *Box) Discard() error {
	_ = b.conn.Close() // closed already if a job was started in it
	return b.engine.Release(b.ID, b.Leases)
}

// giveUp discards a spare.
func (e *Engine) giveUp(b *Box) {
	if err := b.Discard(); err != nil {
		e.cfg.Log.Warn("release a spare box", "box", b.ID, "error", err)
	}
}

// Failure says at which step of its start a job failed, and how.
type Failure = protocol.Failure

// StartError says at which step a job could not be started.
type StartError struct {
	Failure Failure
}

func (e *StartError) Error() string { return e.Failure.Text }

func (e *StartError) Unwrap() error {
	if e.Failure.Errno == 0 {
		return nil
	}
	return e.Failure.Errno
}

// Start runs a job in the box and returns once its command runs. An error means
// that nothing of it is left but the box's cgroups, which Discard removes.
func (b *Box) Start(run *Run) (*Process, error) {
	if run.Security.Profile == joblet.ProfileNested {
		if err := b.engine.closeProc(); err != nil {
			return nil, errors.Join(err, b.conn.Close())
		}
	}
	// Before the shim hears of the job: none of its code runs without limits.
	if err := b.attach(&run.Plan); err != nil {
		return nil, errors.Join(err, b.conn.Close())
	}
	return b.start(run.message())
}

// attach gives the box what was claimed for it.
func (b *Box) attach(plan *sandbox.Plan) error {
	ctx := context.Background()
	if len(b.engine.cfg.Resources) > 0 { // the box's own need no time
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, attachTimeout)
		defer cancel()
	}
	for _, r := range b.engine.resources {
		lease, claimed := b.Leases[r.Name()]
		if !claimed {
			continue
		}
		if err := r.Attach(ctx, sandbox.Attachment{ID: b.ID, Lease: lease, Plan: plan, Namespaces: b.namespaces}); err != nil {
			return err
		}
	}
	return nil
}

// attachTimeout bounds how long the resources of a job may take to be attached.
const attachTimeout = 30 * time.Second

// namespaces is sandbox.Attachment.Namespaces.
func (b *Box) namespaces(ctx context.Context) (*sandbox.Namespaces, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(attachTimeout)
	}
	_ = b.conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = b.conn.SetDeadline(time.Unix(0, 1)) })
	ns, err := b.askReady()
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
	}
	_ = b.conn.SetDeadline(time.Time{})
	if err == nil {
		return ns, nil
	}
	if ns != nil {
		err = errors.Join(err, ns.Close())
	}
	return nil, fmt.Errorf("cannot get the namespaces of the box: %w", err)
}

// askReady has the shim say that the box is built.
func (b *Box) askReady() (*sandbox.Namespaces, error) {
	if err := protocol.WriteMessage(b.conn, protocol.Request{Ready: true}); err != nil {
		return nil, err
	}
	var ev protocol.Event
	switch err := protocol.ReadMessage(b.conn, &ev); {
	case err != nil:
		return nil, err
	case ev.Failed != nil:
		return nil, &StartError{*ev.Failed}
	case ev.Ready == nil:
		return nil, errors.New("unexpected answer from the job's shim")
	}
	f, err := receiveDescriptors(b.conn, protocol.ReadyDescriptors...)
	if err != nil {
		return nil, err
	}
	return &sandbox.Namespaces{PID: ev.Ready.PID, PIDFD: f[0], User: f[1], Mount: f[2], Net: f[3], IPC: f[4], UTS: f[5]}, nil
}

// start has the shim run the job.
func (b *Box) start(run *protocol.Run) (*Process, error) {
	limit := startTime(run.FilesPath)
	// A box waits for its job for long, and its shim may have been stopped meanwhile.
	defer time.AfterFunc(wakeAfter, func() { b.engine.Wake(b.ID) }).Stop()
	_ = b.conn.SetDeadline(time.Now().Add(limit))
	if err := protocol.WriteMessage(b.conn, protocol.Request{Run: run}); err != nil {
		return nil, errors.Join(fmt.Errorf("send the job to its shim: %w", late(err, limit)), b.conn.Close())
	}
	fault.Point("box.sent")
	p := &Process{ID: b.ID, IDBase: b.IDBase, engine: b.engine, group: b.group, conn: b.conn, done: make(chan struct{})}
	if err := p.greet(); err != nil {
		return nil, errors.Join(late(err, limit), b.conn.Close())
	}
	_ = b.conn.SetDeadline(time.Time{})
	go p.listen()
	return p, nil
}

// wakeAfter is when a shim is woken that has not started its job.
const wakeAfter = 3 * time.Second

// startTime bounds how long a shim may take to start a job: it has time limits
// of its own for the steps of the set-up, but may be stopped or stuck. To unpack
// files takes as long as they are large.
func startTime(files string) time.Duration {
	limit := 75 * time.Second
	if info, err := os.Stat(files); files != "" && err == nil {
		limit += time.Duration(info.Size()>>20) * time.Second
	}
	return limit
}

// late says of an error that it is the end of a time limit.
func late(err error, limit time.Duration) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return joblet.Errorf(joblet.Unavailable, "the job's shim did not answer within %v: it is stopped or stuck: %w", limit, err)
	}
	return err
}

// Process is a running job.
type Process struct {
	ID      string
	IDBase  uint32
	PID     int // PID 1 of the job as the host numbers it
	Started time.Time

	dir        string      // the job's
	window     *WindowSize // of its terminal then; nil: it has none
	stdinBytes int64       // of a streamed standard input, taken when we connected
	version    int         // of the shim's protocol
	group      *cgroup.Group
	engine     *Engine

	conn *os.File
	send sync.Mutex // one document at a time; protects deaf
	deaf bool       // the latest request found no room
	done chan struct{}
}

func (p *Process) greet() error {
	var ev protocol.Event
	switch err := protocol.ReadMessage(p.conn, &ev); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("hear from the job's shim: %w", err)
	case err != nil:
		return fmt.Errorf("the job's shim ended before it could start the job: %w", err)
	case ev.Failed != nil:
		return &StartError{*ev.Failed}
	case ev.Started == nil:
		return errors.New("unexpected answer from the job's shim")
	}
	p.PID = ev.Started.PID
	p.IDBase = ev.Started.IDBase
	p.Started = time.Unix(0, ev.Started.UnixNanos)
	p.stdinBytes = ev.Started.StdinBytes
	p.window = ev.Started.Window
	p.dir = ev.Started.Dir
	p.version = max(ev.Started.Version, 1)
	return nil
}

// listen waits for the end: of the job, or of its shim.
func (p *Process) listen() {
	defer close(p.done)
	defer p.conn.Close()
	awaitEnd(p.conn)
}

// awaitEnd waits until a shim says how its process ended; nil: it died without
// a word.
func awaitEnd(conn *os.File) *protocol.Exit {
	for {
		var ev protocol.Event
		if err := protocol.ReadMessage(conn, &ev); err != nil {
			return nil
		}
		if ev.Ended != nil {
			return ev.Ended
		}
	}
}

// Done is closed when the job has ended, or its shim. How the job ended is in the exit
// record in its directory, which is there by then unless the shim died.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal to PID 1. With defaultAction one that PID 1 is spared ends the
// job.
func (p *Process) Signal(sig syscall.Signal, defaultAction bool) error {
	if p.isStopped() {
		return ErrSilent
	}
	return p.request(protocol.Request{Signal: int(sig), DefaultAction: defaultAction})
}

// Stop begins to end the job: the signal, then after the grace period SIGKILL.
func (p *Process) Stop(sig syscall.Signal, grace time.Duration) error {
	return p.request(protocol.Request{Stop: &protocol.Stop{Signal: int(sig), GraceNanos: int64(grace)}})
}

// A request waits for room on its way to the shim, which is there at once but
// when that is stopped or stuck and many requests came before.
const (
	requestTime = 2 * time.Second
	deafTime    = 50 * time.Millisecond // when the one before has waited in vain
)

// ErrSilent says that a job's shim does not take a request. Stop and kill do
// without it.
var ErrSilent = joblet.Errorf(joblet.Unavailable, "the job's shim does not answer: it is stopped, or waits in the kernel, for a disk perhaps: try again")

func (p *Process) request(req protocol.Request) error {
	p.send.Lock()
	defer p.send.Unlock()
	limit := requestTime
	if p.deaf {
		limit = deafTime
	}
	_ = p.conn.SetWriteDeadline(time.Now().Add(limit))
	err := protocol.WriteMessage(p.conn, req) // small enough to go whole or not at all
	if p.deaf = errors.Is(err, os.ErrDeadlineExceeded); p.deaf {
		return ErrSilent
	}
	if err != nil {
		return joblet.Errorf(joblet.FailedPrecondition, "the job has ended: %w", err)
	}
	return nil
}

// newBoxID returns the id of a new box: a random UUID, of version 8 (RFC 9562) if
// it has the tag at its end.
func (e *Engine) newBoxID() string {
	id := joblet.NewID()
	if e.cfg.Tag == "" {
		return id
	}
	return id[:14] + "8" + id[15:24] + e.cfg.Tag
}

// Boxes returns the ids of the boxes that have a cgroup: those of this daemon,
// and what former ones with the same state directory left, or, of versions without
// tags, with the same run directory; and what nobody uses. foreign is how many there are
// of other state directories.
func (e *Engine) Boxes() (ids []string, foreign int, err error) { return e.groups.list() }

// UsedRunDirs returns those of FormerRunDirs below whose cgroups there are still
// boxes of ours.
func (e *Engine) UsedRunDirs() []string { return e.groups.usedRunDirs() }

// Sweep takes over the boxes in live, by id, from a former daemon: a box that this daemon
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

// greetTimeout bounds how long a shim of a former daemon may take to answer.
const greetTimeout = 2 * time.Second

// Adopt finds the running job of a former daemon in the box with this id. The
// error is ECONNREFUSED when that has no shim any more, and
// os.ErrDeadlineExceeded when the shim has not answered by the given time, or
// within greetTimeout.
func (e *Engine) Adopt(id string, by time.Time) (*Process, error) {
	p, err := e.connect(id, by)
	if err != nil {
		return nil, err
	}
	p.group = e.groups.group(id)
	p.group.OmitMissing()
	e.ids.hold(id, p.IDBase)
	go p.listen()
	return p, nil
}

// JobDir returns the directory of the job that runs in a box of a former daemon.
// The errors are those of Adopt.
func (e *Engine) JobDir(id string) (string, error) {
	p, err := e.connect(id, time.Time{})
	if err != nil {
		return "", err
	}
	return p.dir, p.conn.Close()
}

// connect makes one more connection to the shim of a box with a running job. It
// takes no longer than until by, if that is given.
func (e *Engine) connect(id string, by time.Time) (*Process, error) {
	deadline := time.Now().Add(greetTimeout)
	if !by.IsZero() && by.Before(deadline) {
		deadline = by
	}
	conn, err := e.groups.sockets.connect(id, deadline)
	if err != nil {
		return nil, err
	}
	p := &Process{ID: id, engine: e, conn: conn, done: make(chan struct{})}
	_ = p.conn.SetDeadline(deadline)
	if err := p.greet(); err != nil {
		return nil, errors.Join(err, p.conn.Close())
	}
	_ = p.conn.SetDeadline(time.Time{})
	return p, nil
}

// Stdin is a connection that carries a job's standard input: see
// Process.OpenStdin.
type Stdin struct {
	process *Process
	conn    *os.File
	end     int64 // of what was written, counted from the input's beginning
}

// OpenStdin returns a writer to the job's standard input, if that is a stream,
// behind what was written before. A write waits as long as the job does not
// read. There is one at a time: a new one takes the place of the old.
func (p *Process) OpenStdin() (*Stdin, error) {
	c, err := p.engine.connect(p.ID, time.Time{})
	if err != nil {
		return nil, joblet.Errorf(joblet.FailedPrecondition, "open the job's standard input: %w", err)
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(requestTime))
	if err := protocol.WriteMessage(c.conn, protocol.Request{StdinBegin: true}); err != nil {
		return nil, errors.Join(fmt.Errorf("open the job's standard input: %w", err), c.conn.Close())
	}
	_ = c.conn.SetWriteDeadline(time.Time{}) // from now on the job decides when it reads
	return &Stdin{process: p, conn: c.conn, end: c.stdinBytes}, nil
}

// Write implements io.Writer. The error is EPIPE when the job reads no more, or
// has ended.
func (in *Stdin) Write(b []byte) (int, error) {
	n, err := in.conn.Write(b)
	in.end += int64(n)
	return n, err
}

// CloseWrite says that the input ends behind what was written.
func (in *Stdin) CloseWrite() error {
	return in.process.request(protocol.Request{StdinEnd: &in.end})
}

// Close closes the connection. Without CloseWrite the job goes on waiting for
// input.
func (in *Stdin) Close() error { return in.conn.Close() }

// Contain moves a process of the daemon's, which is no job, into a cgroup with
// limits of its own. release ends what is in there and removes it. After a crash
// recovery does, as for any box without a job.
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

// Release ends whatever is left of a box and gives back what it holds. It may be called
// at any time and any number of times; what is gone already is no error. A failed start,
// a normal end and the recovery after a crash all end here.
func (e *Engine) Release(id string, leases sandbox.Leases) error {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	for _, r := range slices.Backward(e.resources) {
		if err := r.Release(ctx, id, leases[r.Name()]); err != nil {
			return fmt.Errorf("release what is left of box %s: %w", id, err)
		}
	}
	return nil
}
