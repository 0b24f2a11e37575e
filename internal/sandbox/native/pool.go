package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// Sandbox is a job's sandbox, built and waiting for its command.
type Sandbox struct {
	ID     string
	IDBase uint32
	Leases sandbox.Leases // on what it holds of the host

	engine *Engine
	group  *cgroup.Group
	conn   *os.File // control connection
}

// Take returns a sandbox, ready or newly built, that holds what a run needs of
// Config.Resources; nil: nothing. Its leases belong in the job's record before Start.
func (e *Engine) Take(ctx context.Context, run *Run) (*Sandbox, error) {
	b, err := e.take()
	if err != nil || run == nil {
		return b, err
	}
	for _, r := range e.cfg.Resources {
		if err := b.claim(ctx, r, &run.Plan); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot claim %s: %w", r.Name(), err), b.Discard())
		}
	}
	return b, nil
}

func (e *Engine) take() (*Sandbox, error) {
	for {
		select {
		case b := <-e.warm:
			if b.alive() {
				return b, nil
			}
			e.giveUp(b)
		default:
			return e.build()
		}
	}
}

// alive reports whether the sandbox's shim still has its end of the connection:
// it waits in the warm pool for long, and it may have been killed.
func (b *Sandbox) alive() bool {
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

// Refill lets the engine build a sandbox for the warm pool in place of one that was taken. The caller
// says when, because building one beside a job that starts would slow that
// down.
func (e *Engine) Refill() {
	select {
	case e.refill <- struct{}{}:
	default:
	}
}

func (e *Engine) fillPool(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.refill:
		}
		for len(e.warm) < cap(e.warm) && ctx.Err() == nil {
			b, err := e.build()
			if err != nil {
				e.cfg.Log.Warn("cannot build a sandbox for the warm pool", "error", err)
				break
			}
			e.warm <- b // this goroutine alone sends, and there is room
		}
	}
}

// build makes a sandbox: its id, id range, cgroups and shim.
func (e *Engine) build() (_ *Sandbox, err error) {
	b := &Sandbox{ID: e.newSandboxID(), Leases: sandbox.Leases{}, engine: e}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("cannot build a sandbox: %w", err), e.Release(b.ID, b.Leases))
		}
	}()
	for _, r := range []sandbox.Resource{e.ids, e.groups} {
		if err := b.claim(context.Background(), r, nil); err != nil {
			return nil, err
		}
	}
	b.IDBase, b.group = IDBase(b.Leases), e.groups.group(b.ID)
	fault.Point("sandbox.grouped")
	if err := b.startShim(); err != nil {
		return nil, err
	}
	fault.Point("sandbox.begun")
	sb := protocol.Sandbox{
		Version: protocol.Version,
		IDBase:  b.IDBase, IDCount: IDCount,
		NewRoot: e.newRoot, DevDir: e.devDir, DiskBytes: joblet.DefaultDiskBytes, ShmBytes: shmBytes(joblet.Limits{}),
		Cgroup: b.group.Dirs, ProcReadOnly: e.frozen,
	}
	if err := protocol.WriteMessage(b.conn, protocol.Request{Sandbox: &sb}); err != nil {
		_ = b.conn.Close()
		return nil, fmt.Errorf("cannot send the sandbox to the shim: %w", err)
	}
	return b, nil
}

// claim claims a resource for the sandbox.
func (b *Sandbox) claim(ctx context.Context, r sandbox.Resource, plan *sandbox.Plan) error {
	lease, err := r.Claim(ctx, b.ID, plan)
	if lease != nil {
		b.Leases[r.Name()] = lease
	}
	return err
}

// spareFiles is how many descriptors new sandboxes leave free, if the limit allows so
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

// startShim starts the shim, in the sandbox's cgroup.
func (b *Sandbox) startShim() error {
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
		return errors.Join(fmt.Errorf("cannot start the shim: %w", err), b.conn.Close())
	}
	// The shim is this process's child as long as both live: a parent must
	// take its status. What it has to say comes over the connection.
	go func() { _, _ = proc.Wait() }()
	return nil
}

// Discard gives up the sandbox, with what may run in it: its shim ends, and all
// that Release removes goes.
func (b *Sandbox) Discard() error {
	_ = b.conn.Close() // closed already if a job was started in it
	return b.engine.Release(b.ID, b.Leases)
}

// giveUp discards a sandbox of the warm pool.
func (e *Engine) giveUp(b *Sandbox) {
	if err := b.Discard(); err != nil {
		e.cfg.Log.Warn("cannot release a sandbox of the warm pool", "sandbox", b.ID, "error", err)
	}
}

// newSandboxID returns the id of a new sandbox: a random UUID, of version 8 (RFC 9562) if
// it has the tag at its end.
func (e *Engine) newSandboxID() string {
	id := joblet.NewID()
	if e.cfg.Tag == "" {
		return id
	}
	return id[:14] + "8" + id[15:24] + e.cfg.Tag
}
