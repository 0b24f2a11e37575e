// Package client talks to a joblet daemon. rnx does all that it does through it.
//
// [Dial] connects to the daemon of this machine, [DialTLS] to one elsewhere, and
// [Node.Dial] to one that the configuration of rnx names ([LoadConfig]). A [Client]
// is one connection, for any number of goroutines; it is made again when it breaks.
//
// [Client.Run] submits a job and leaves it alone; [Client.RunAttached] and
// [Client.Submit] follow it to its end. A job is named by its id, by the first
// letters of it when no other has them, or by its name, which means the caller's
// own job first. Jobs never depend on who looks at them: to leave a loop over
// events, to cancel its context or to close the client ends the call and not the
// job, and [Client.Follow] goes on at any offset.
//
// Errors of the daemon are [*joblet.Error] with the kind that it gave them
// ([joblet.KindOf]): NotFound, PermissionDenied, Unavailable and so on. Over TLS,
// calls that change nothing are made again a few times when the connection breaks,
// and all that were refused for their rate when the daemon says that there is room;
// none that might start a job twice is, but [joblet.Spec.IdempotencyKey] makes
// that harmless.
package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/rawio"
	"github.com/joblet/joblet/internal/wire"
)

// DefaultHost is where a daemon listens that was not told otherwise.
const DefaultHost = "unix:///run/joblet/joblet.sock"

const (
	maxMessage = 128 << 20 // the API's limit on one message
	maxHeaders = 256 << 10 // an error's text is in them

	// window is how many bytes of output may be under way unread. gRPC's 64 KiB
	// would cost a round trip for each chunk of a flood.
	window = 4 << 20
)

// reconnect says how often a daemon that went away is looked for: a call in
// between fails at once, and to ask a socket costs little.
var reconnect = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
	MinConnectTimeout: 20 * time.Second,
}

// Client is a connection to one daemon. Its methods may be called at the same
// time. A broken connection is made again by the next call.
type Client struct {
	remote     bool
	dialer     dialer
	conn       *grpc.ClientConn
	jobs       api.JobServiceClient
	runtimes   api.RuntimeServiceClient
	monitoring api.MonitoringServiceClient
}

// Dial connects to the daemon at host: "unix:///path/of/socket". A daemon that
// does not answer is an Unavailable error, whose chain holds the error of
// connect(2).
func Dial(ctx context.Context, host string) (*Client, error) {
	path, err := SocketPath(host)
	if err != nil {
		return nil, err
	}
	c := &Client{dialer: dialer{network: "unix", address: path}}
	// The socket's peers know each other by SO_PEERCRED.
	return c.open(ctx, insecure.NewCredentials())
}

// open makes the connection, or nothing.
func (c *Client) open(ctx context.Context, creds credentials.TransportCredentials, opts ...grpc.DialOption) (_ *Client, err error) {
	c.conn, err = grpc.NewClient("passthrough:///joblet", append([]grpc.DialOption{ // a name only: the dialer has the address
		grpc.WithContextDialer(c.dialer.dial),
		grpc.WithTransportCredentials(creds),
		grpc.WithAuthority("joblet"),
		grpc.WithUserAgent("joblet/" + joblet.Build().Version),
		grpc.WithUnaryInterceptor(c.unary),
		grpc.WithStreamInterceptor(c.stream),
		grpc.WithConnectParams(reconnect),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(), // a job must not be started twice
		grpc.WithIdleTimeout(0),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithMaxHeaderListSize(maxHeaders),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to the daemon: %w", err)
	}
	if err := c.connect(ctx); err != nil {
		_ = c.conn.Close() // nothing is under way on it
		return nil, err
	}
	c.jobs = api.NewJobServiceClient(c.conn)
	c.runtimes = api.NewRuntimeServiceClient(c.conn)
	c.monitoring = api.NewMonitoringServiceClient(c.conn)
	return c, nil
}

// connect returns once the daemon has answered, or could not be reached.
func (c *Client) connect(ctx context.Context) error {
	for {
		state := c.conn.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.Idle:
			c.conn.Connect()
		case connectivity.TransientFailure:
			return cmp.Or(c.dialer.failure(),
				joblet.Errorf(joblet.Unavailable, "cannot connect to the daemon: the server at %s does not speak gRPC", c.dialer.address))
		}
		if !c.conn.WaitForStateChange(ctx, state) {
			return joblet.Errorf(joblet.Unavailable, "cannot connect to the daemon at %s: %w", c.dialer.address, ctx.Err())
		}
	}
}

// SocketPath returns the path in a "unix://" host.
func SocketPath(host string) (string, error) {
	scheme, rest, ok := strings.Cut(host, "://")
	switch {
	case !ok:
		return "", joblet.Errorf(joblet.InvalidArgument, "host %q: must have the form %s", host, DefaultHost)
	case scheme != "unix":
		return "", joblet.Errorf(joblet.InvalidArgument, "host %q: must be a unix socket, such as %s", host, DefaultHost)
	}
	return rest, joblet.ValidPath("host's path", rest)
}

// dialer connects to a daemon. It keeps why it could not the last time, of
// which gRPC hands on the text only.
type dialer struct {
	network, address string

	last atomic.Pointer[error]
}

func (d *dialer) dial(ctx context.Context, _ string) (net.Conn, error) {
	net := net.Dialer{Timeout: handshakeTime}
	conn, err := net.DialContext(ctx, d.network, d.address)
	if err == nil {
		d.last.Store(nil)
		return rawio.Conn(conn), nil
	}
	kind := joblet.Unavailable
	if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) {
		kind = joblet.PermissionDenied
	}
	err = joblet.Errorf(kind, "cannot connect to the daemon: %w", err)
	d.last.Store(&err)
	return nil, err
}

// failure is nil when the last connection could be made.
func (d *dialer) failure() error {
	if err := d.last.Load(); err != nil {
		return *err
	}
	return nil
}

// Close ends the connection, and the calls under way with it. Jobs go on.
func (c *Client) Close() error { return c.conn.Close() }

// unary is what every call without a stream passes through.
func (c *Client) unary(ctx context.Context, method string, request, answer any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	for try := 1; ; try++ {
		err := invoke(ctx, method, request, answer, conn, opts...)
		if wait, ok := again(method, try, err); ok && c.remote && pause(ctx, wait) {
			continue
		}
		return c.failure(request, err)
	}
}

// pause reports whether so much time has passed before ctx was done.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// stream is the same for the others.
func (c *Client) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, c.failure(nil, err)
	}
	return callStream{s, c}, nil
}

type callStream struct {
	grpc.ClientStream
	client *Client
}

func (s callStream) SendMsg(m any) error { return s.client.failure(m, s.ClientStream.SendMsg(m)) }
func (s callStream) RecvMsg(m any) error { return s.client.failure(nil, s.ClientStream.RecvMsg(m)) }

// failure turns a call's error into the one that the daemon gave. Errors of the
// daemon have details: those without are gRPC's, about this side, the request
// that was to be sent or the connection.
func (c *Client) failure(request any, err error) error {
	if s, ok := status.FromError(err); ok && len(s.Proto().GetDetails()) == 0 {
		switch s.Code() {
		case codes.Canceled:
			if c.conn.GetState() == connectivity.Shutdown {
				return joblet.Errorf(joblet.FailedPrecondition, "the client is closed")
			}
		case codes.Unavailable:
			if err := c.dialer.failure(); err != nil {
				return lostError{err}
			}
			return joblet.Errorf(joblet.Unavailable, "%w (%s)", ErrLost, s.Message())
		case codes.Internal, codes.ResourceExhausted:
			if m, ok := request.(proto.Message); ok {
				if bad := sendable(m); bad != nil {
					return bad
				}
			}
		}
	}
	return wire.ErrorFromStatus(err)
}

// sendable returns why a request can never be sent.
func sendable(request proto.Message) error {
	if n := proto.Size(request); n > maxMessage {
		return joblet.Errorf(joblet.InvalidArgument, "the request is %d bytes long: at most %d are possible", n, maxMessage)
	}
	if _, err := proto.Marshal(request); err != nil { // a text that is not UTF-8
		return joblet.Errorf(joblet.InvalidArgument, "cannot encode the request: %w", err)
	}
	return nil
}

// ErrLost is in the chain of errors of calls that got no answer, because the daemon
// or the way to it went away: whether the daemon did what was asked is not known.
var ErrLost = errors.New("the connection to the daemon broke")

// lostError is why a new connection could not be made: the call got no answer
// from the old one.
type lostError struct{ error }

func (e lostError) Unwrap() []error { return []error{e.error, ErrLost} }

// Run submits a job and returns once it is accepted: its command runs, or it is
// PENDING or SCHEDULED. A job that gets files or standard input is for Submit.
func (c *Client) Run(ctx context.Context, spec joblet.Spec) (joblet.Job, error) {
	r, err := wire.SpecToProto(spec)
	if err != nil {
		return joblet.Job{}, err
	}
	out, err := c.jobs.RunJob(metadata.AppendToOutgoingContext(ctx, wire.Refuse, "1"), r)
	return job(out.GetJob(), err)
}

// Stream says where a job wrote its bytes.
type Stream uint8

// The two streams of a job.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// Event is something that happened to a job: [Waiting], [Started], [Output],
// [Gap] or [Ended], and [Attached] at first of a [Session].
type Event interface{ isEvent() }

// Waiting says that the job is PENDING or SCHEDULED; its Reason says for what
// it waits.
type Waiting struct{ Job joblet.Job }

// Started says that the job's command runs; each attempt tells.
type Started struct{ Job joblet.Job }

// Output is a piece of what the job wrote, byte for byte.
type Output struct {
	Stream Stream
	Offset int64 // of its first byte, counted over both streams
	Time   time.Time
	Data   []byte
}

// Gap is output that is lost: so many bytes at this offset.
type Gap struct{ Offset, Length int64 }

// Ended is the last event: the job as it is then.
type Ended struct{ Job joblet.Job }

func (Waiting) isEvent() {}
func (Started) isEvent() {}
func (Output) isEvent()  {}
func (Gap) isEvent()     {}
func (Ended) isEvent()   {}

// RunAttached submits a job and follows it to its end. A job that was not
// accepted is an error before any event. An error, or leaving the loop, cuts the
// call but not the job: Follow takes it up again.
func (c *Client) RunAttached(ctx context.Context, spec joblet.Spec) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		s, err := c.start(ctx, submission{spec: spec})
		if err != nil {
			yield(nil, err)
			return
		}
		defer s.finish()
		s.Events()(yield)
	}
}

// Follow returns the output of the job that ref names, as opt wishes, and then
// its end.
func (c *Client) Follow(ctx context.Context, ref string, opt joblet.LogOptions) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.jobs.FollowJob(ctx, wire.FollowToProto(ref, opt))
		events(stream, err, yield)
	}
}

func events(stream interface{ Recv() (*api.JobEvent, error) }, err error, yield func(Event, error) bool) {
	for err == nil {
		var p *api.JobEvent
		if p, err = stream.Recv(); err != nil {
			break
		}
		var e Event
		switch p := p.GetEvent().(type) {
		case *api.JobEvent_Output:
			o := p.Output
			e = Output{Stream: Stream(o.GetStream()), Offset: o.GetOffset(), Time: time.Unix(0, o.GetTimeNs()), Data: o.GetData()}
		case *api.JobEvent_Gap:
			e = Gap{Offset: p.Gap.GetOffset(), Length: p.Gap.GetLength()}
		case *api.JobEvent_Attached:
			e = Attached{LogBytes: p.Attached.GetLogBytes(), Window: wire.WindowFromProto(p.Attached.GetSize())}
		case *api.JobEvent_Waiting:
			var j joblet.Job
			if j, err = wire.JobFromProto(p.Waiting); err == nil {
				e = Waiting{Job: j}
			}
		case *api.JobEvent_Started:
			var j joblet.Job
			if j, err = wire.JobFromProto(p.Started); err == nil {
				e = Started{Job: j}
			}
		case *api.JobEvent_Ended:
			var j joblet.Job
			if j, err = wire.JobFromProto(p.Ended); err == nil {
				yield(Ended{Job: j}, nil)
				return
			}
		}
		if e != nil && !yield(e, nil) {
			return
		}
	}
	if errors.Is(err, io.EOF) {
		err = joblet.Errorf(joblet.Unavailable, "the daemon closed the stream before the job ended")
	}
	yield(nil, err)
}

// Job returns the job that ref names: an id, an unambiguous prefix of one, or a
// name, of the caller's own job or else of another's.
func (c *Client) Job(ctx context.Context, ref string) (joblet.Job, error) {
	out, err := c.jobs.GetJobStatus(ctx, &api.GetJobStatusRequest{Uuid: ref})
	if err != nil {
		return joblet.Job{}, err
	}
	return wire.StatusFromProto(out)
}

// Jobs lists the jobs that pass f, newest first.
func (c *Client) Jobs(ctx context.Context, f joblet.Filter) iter.Seq2[joblet.Job, error] {
	return func(yield func(joblet.Job, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.jobs.QueryJobs(ctx, wire.FilterToProto(f))
		for err == nil {
			var batch *api.Jobs
			if batch, err = stream.Recv(); err != nil {
				break
			}
			for _, p := range batch.GetJobs() {
				j, err := wire.JobFromProto(p)
				if !yield(j, err) || err != nil {
					return
				}
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(joblet.Job{}, err)
		}
	}
}

// Stop ends a job and returns it once it has ended.
func (c *Client) Stop(ctx context.Context, ref string, opt joblet.StopOptions) (joblet.Job, error) {
	out, err := c.jobs.StopJob(ctx, wire.StopToProto(ref, opt))
	j, err := job(out.GetJob(), err)
	if err != nil || j.State.Final() {
		return j, err
	}
	return c.Wait(ctx, j.ID)
}

// Cancel takes back a job that is PENDING or SCHEDULED and returns it.
func (c *Client) Cancel(ctx context.Context, ref string) (joblet.Job, error) {
	out, err := c.jobs.CancelJob(ctx, &api.CancelJobRequest{Uuid: ref})
	return job(out.GetJob(), err)
}

// Rerun submits a job like the one that ref names, with its files, and returns
// the new one as Run does. Secrets are not kept: they are to be given again, all
// that the job had.
func (c *Client) Rerun(ctx context.Context, ref string, secrets map[string]string) (joblet.Job, error) {
	out, err := c.jobs.RerunJob(ctx, wire.RerunToProto(ref, secrets))
	return job(out.GetJob(), err)
}

// Signal sends a signal, by its Linux number, to the job's PID 1.
func (c *Client) Signal(ctx context.Context, ref string, signal int) error {
	_, err := c.jobs.SignalJob(ctx, &api.SignalJobRequest{Uuid: ref, Signal: int32(signal)})
	return err
}

// Interrupt is Signal with the default action, which the kernel spares PID 1: a signal
// that ends other processes ends the job when PID 1 neither handles nor blocks nor
// ignores it.
func (c *Client) Interrupt(ctx context.Context, ref string, signal int) error {
	_, err := c.jobs.SignalJob(ctx, &api.SignalJobRequest{Uuid: ref, Signal: int32(signal), DefaultAction: true})
	return err
}

// Wait returns the job once it has ended.
func (c *Client) Wait(ctx context.Context, ref string) (joblet.Job, error) {
	out, err := c.jobs.WaitJob(ctx, &api.WaitJobRequest{Uuid: ref})
	return job(out.GetJob(), err)
}

// Delete removes a job that has ended: its record and its output.
func (c *Client) Delete(ctx context.Context, ref string) error {
	_, err := c.jobs.DeleteJob(ctx, &api.DeleteJobRequest{Uuid: ref})
	return err
}

// DeleteAll removes all jobs that have ended and returns how many it removed and
// how many have not ended.
func (c *Client) DeleteAll(ctx context.Context) (deleted, skipped int, err error) {
	out, err := c.jobs.DeleteAllJobs(ctx, &api.DeleteAllJobsRequest{})
	return int(out.GetDeletedCount()), int(out.GetSkippedCount()), err
}

// Prune deletes the jobs that have ended and pass f, of which EndedBefore,
// States and Labels may be set. It returns how many they are and how many bytes
// their output and files took; with dryRun, without deleting them.
func (c *Client) Prune(ctx context.Context, f joblet.Filter, dryRun bool) (deleted int, freed int64, err error) {
	r, err := wire.PruneToProto(f, dryRun)
	if err != nil {
		return 0, 0, err
	}
	out, err := c.jobs.PruneJobs(ctx, r)
	return int(out.GetDeletedCount()), out.GetFreedBytes(), err
}

func job(p *api.Job, err error) (joblet.Job, error) {
	if err != nil {
		return joblet.Job{}, err
	}
	return wire.JobFromProto(p)
}
