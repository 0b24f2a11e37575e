package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/fault"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// Steps of a StartError that the caller's input may cause.
const (
	StepWorkDir = protocol.StepWorkDir
	StepFiles   = protocol.StepFiles
	StepJoin    = protocol.StepJoin // the job has ended

	StepArguments = protocol.StepArguments
	StepReaper    = protocol.StepReaper
	StepKilled    = protocol.StepKilled
)

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

// Start runs a job in the sandbox and returns once its command runs. An error means
// that nothing of it is left but the sandbox's cgroups, which Discard removes.
func (b *Sandbox) Start(run *Run) (*Process, error) {
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

// attach gives the sandbox what was claimed for it.
func (b *Sandbox) attach(plan *sandbox.Plan) error {
	ctx := context.Background()
	if len(b.engine.cfg.Resources) > 0 { // the sandbox's own need no time
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
func (b *Sandbox) namespaces(ctx context.Context) (*sandbox.Namespaces, error) {
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
	return nil, fmt.Errorf("cannot get the namespaces of the sandbox: %w", err)
}

// askReady has the shim say that the sandbox is built.
func (b *Sandbox) askReady() (*sandbox.Namespaces, error) {
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
		return nil, errors.New("cannot start the job: unexpected answer from its shim")
	}
	f, err := receiveDescriptors(b.conn, protocol.ReadyDescriptors...)
	if err != nil {
		return nil, err
	}
	return &sandbox.Namespaces{PID: ev.Ready.PID, PIDFD: f[0], User: f[1], Mount: f[2], Net: f[3], IPC: f[4], UTS: f[5]}, nil
}

// start has the shim run the job.
func (b *Sandbox) start(run *protocol.Run) (*Process, error) {
	limit := startTime(run.FilesPath)
	// A sandbox waits for its job for long, and its shim may have been stopped meanwhile.
	defer time.AfterFunc(wakeAfter, func() { b.engine.Wake(b.ID) }).Stop()
	_ = b.conn.SetDeadline(time.Now().Add(limit))
	if err := protocol.WriteMessage(b.conn, protocol.Request{Run: run}); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot send the job to its shim: %w", late(err, limit)), b.conn.Close())
	}
	fault.Point("sandbox.sent")
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
// of its own for the steps of the set-up, but may be stopped or wait in the kernel. To unpack
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
		return joblet.Errorf(joblet.Unavailable, "the job's shim did not answer within %v: it is stopped or waits in the kernel: %w", limit, err)
	}
	return err
}
