package native

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/shim/protocol"
)

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
		return fmt.Errorf("cannot hear from the job's shim: %w", err)
	case err != nil:
		return fmt.Errorf("cannot start the job: its shim has ended: %w", err)
	case ev.Failed != nil:
		return &StartError{*ev.Failed}
	case ev.Started == nil:
		return errors.New("cannot start the job: unexpected answer from its shim")
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

// A request waits for room on its way to the shim, which is there at once, except
// when the shim is stopped or waits in the kernel, and many requests came before.
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

// greetTimeout bounds how long a shim of a former daemon may take to answer.
const greetTimeout = 2 * time.Second

// Adopt finds the running job of a former daemon in the sandbox with this id. The
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

// JobDir returns the directory of the job that runs in a sandbox of a former daemon.
// The errors are those of Adopt.
func (e *Engine) JobDir(id string) (string, error) {
	p, err := e.connect(id, time.Time{})
	if err != nil {
		return "", err
	}
	return p.dir, p.conn.Close()
}

// connect makes one more connection to the shim of a sandbox with a running job. It
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
		return nil, joblet.Errorf(joblet.FailedPrecondition, "cannot open the job's standard input: %w", err)
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(requestTime))
	if err := protocol.WriteMessage(c.conn, protocol.Request{StdinBegin: true}); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open the job's standard input: %w", err), c.conn.Close())
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
