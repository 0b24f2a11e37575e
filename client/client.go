// Package client talks to a joblet daemon.
//
//	c, err := client.Dial(ctx, client.DefaultHost)
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//	for event, err := range c.RunAttached(ctx, joblet.Spec{Command: "ps", Args: []string{"aux"}}) {
//		if err != nil {
//			return err
//		}
//		switch e := event.(type) {
//		case client.Output:
//			os.Stdout.Write(e.Data)
//		case client.Ended:
//			fmt.Println(e.Job.State)
//		}
//	}
//
// Errors of the daemon are [*joblet.Error] with the kind that it gave them.
package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/wire"
)

// DefaultHost is where a daemon listens that was not told otherwise.
const DefaultHost = "unix:///run/joblet/joblet.sock"

// maxMessage is the API's limit on one message.
const maxMessage = 128 << 20

// window is how many bytes of output may be under way unread. gRPC's 64 KiB
// would cost a round trip for each chunk of a flood.
const window = 4 << 20

// Client is a client of one daemon. Its methods may be called at the same time.
// It holds a connection for each call under way and keeps some that are free.
type Client struct{ pool pool }

// Dial connects to the daemon at host: "unix:///path/of/socket". A daemon that
// does not answer is an Unavailable error, whose chain holds the error of
// connect(2).
func Dial(ctx context.Context, host string) (*Client, error) {
	path, err := SocketPath(host)
	if err != nil {
		return nil, err
	}
	var dialer net.Dialer
	c := &Client{pool: pool{dial: func(ctx context.Context) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, "unix", path)
		switch {
		case err == nil:
			return conn, nil
		case errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM):
			return nil, joblet.Errorf(joblet.PermissionDenied, "connect to the daemon: %w", err)
		}
		return nil, joblet.Errorf(joblet.Unavailable, "connect to the daemon: %w", err)
	}}}
	conn, err := c.pool.dial(ctx)
	if err != nil {
		return nil, err
	}
	c.pool.put(newConn(conn))
	return c, nil
}

// SocketPath returns the path in a "unix://" host.
func SocketPath(host string) (string, error) {
	scheme, rest, ok := strings.Cut(host, "://")
	switch {
	case !ok:
		return "", joblet.Errorf(joblet.InvalidArgument, "host %q: must look like %s", host, DefaultHost)
	case scheme != "unix":
		return "", joblet.Errorf(joblet.Unimplemented, "host %q: this version speaks to unix sockets only, such as %s", host, DefaultHost)
	}
	return rest, joblet.ValidPath("host's path", rest)
}

// Close ends the connections that no call uses, and later the others. Jobs go
// on.
func (c *Client) Close() error { return c.pool.close() }

// service is where the methods of a service are found.
const (
	jobService        = "/joblet.JobService/"
	runtimeService    = "/joblet.RuntimeService/"
	monitoringService = "/joblet.MonitoringService/"
)

// stream makes a call whose messages next returns.
func (c *Client) stream(ctx context.Context, method string, request proto.Message) (*call, error) {
	b, err := proto.Marshal(request)
	if err != nil {
		return nil, joblet.Errorf(joblet.InvalidArgument, "%w", err)
	}
	return c.pool.begin(ctx, method, b)
}

// receiveMessage reads a call's next message into answer. It returns io.EOF after the
// last.
func (k *call) receiveMessage(answer proto.Message) error {
	b, err := k.next()
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(b, answer); err != nil {
		return k.fail(err)
	}
	return nil
}

// call makes a call that has one answer.
func (c *Client) call(ctx context.Context, method string, request, answer proto.Message) error {
	k, err := c.stream(ctx, method, request)
	if err != nil {
		return err
	}
	defer k.finish()
	if err := k.receiveMessage(answer); err != nil {
		if errors.Is(err, io.EOF) {
			err = joblet.Errorf(joblet.Internal, "the daemon gave no answer")
		}
		return err
	}
	if _, err := k.next(); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// Run starts a job and returns once its command runs.
func (c *Client) Run(ctx context.Context, spec joblet.Spec) (joblet.Job, error) {
	r, err := wire.SpecToProto(spec)
	if err != nil {
		return joblet.Job{}, err
	}
	var out api.RunJobResponse
	err = c.call(ctx, jobService+"RunJob", r, &out)
	return job(out.GetJob(), err)
}

// Stream says where a job wrote its bytes.
type Stream uint8

// The two streams of a job.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// Event is something that happened to a job: [Started], [Output], [Gap] or
// [Ended].
type Event interface{ isEvent() }

// Started says that the job's command runs.
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

func (Started) isEvent() {}
func (Output) isEvent()  {}
func (Gap) isEvent()     {}
func (Ended) isEvent()   {}

// RunAttached starts a job and follows it to its end. A job that could not be
// started is an error before any event. An error, or leaving the loop, cuts the
// call but not the job: Follow takes it up again.
func (c *Client) RunAttached(ctx context.Context, spec joblet.Spec) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		r, err := wire.SpecToProto(spec)
		if err != nil {
			yield(nil, err)
			return
		}
		c.events(ctx, "RunJobAttached", r, yield)
	}
}

// Follow returns the output of the job that ref names, as opt wishes, and then
// its end.
func (c *Client) Follow(ctx context.Context, ref string, opt joblet.LogOptions) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		c.events(ctx, "FollowJob", wire.FollowToProto(ref, opt), yield)
	}
}

func (c *Client) events(ctx context.Context, method string, request proto.Message, yield func(Event, error) bool) {
	k, err := c.stream(ctx, jobService+method, request)
	if err != nil {
		yield(nil, err)
		return
	}
	defer k.finish()
	for err == nil {
		var p api.JobEvent
		if err = k.receiveMessage(&p); err != nil {
			break
		}
		var e Event
		switch p := p.GetEvent().(type) {
		case *api.JobEvent_Output:
			o := p.Output
			e = Output{Stream: Stream(o.GetStream()), Offset: o.GetOffset(), Time: time.Unix(0, o.GetTimeNs()), Data: o.GetData()}
		case *api.JobEvent_Gap:
			e = Gap{Offset: p.Gap.GetOffset(), Length: p.Gap.GetLength()}
		case *api.JobEvent_Started:
			var j joblet.Job
			if j, err = wire.JobFromProto(p.Started); err == nil {
				e = Started{Job: j}
			}
		case *api.JobEvent_Ended:
			var j joblet.Job
			if j, err = wire.JobFromProto(p.Ended); err == nil {
				_, _ = k.next() // the call's own end, so that the connection is free again
				yield(Ended{Job: j}, nil)
				return
			}
		}
		if e != nil && !yield(e, nil) {
			return
		}
	}
	if errors.Is(err, io.EOF) {
		err = joblet.Errorf(joblet.Unavailable, "the daemon ended the stream before the job's end")
	}
	yield(nil, err)
}

// Job returns the job that ref names: an id, an unambiguous prefix of one, or a
// name.
func (c *Client) Job(ctx context.Context, ref string) (joblet.Job, error) {
	var out api.GetJobStatusResponse
	if err := c.call(ctx, jobService+"GetJobStatus", &api.GetJobStatusRequest{Uuid: ref}, &out); err != nil {
		return joblet.Job{}, err
	}
	return wire.JobFromProto(&out)
}

// Jobs lists the jobs that pass f, newest first.
func (c *Client) Jobs(ctx context.Context, f joblet.Filter) iter.Seq2[joblet.Job, error] {
	return func(yield func(joblet.Job, error) bool) {
		k, err := c.stream(ctx, jobService+"QueryJobs", wire.FilterToProto(f))
		if err != nil {
			yield(joblet.Job{}, err)
			return
		}
		defer k.finish()
		for {
			var batch api.Jobs
			if err = k.receiveMessage(&batch); err != nil {
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
	var out api.StopJobResponse
	err := c.call(ctx, jobService+"StopJob", wire.StopToProto(ref, opt), &out)
	return job(out.GetJob(), err)
}

// Signal sends a signal, by its Linux number, to the job's PID 1.
func (c *Client) Signal(ctx context.Context, ref string, signal int) error {
	return c.call(ctx, jobService+"SignalJob", &api.SignalJobRequest{Uuid: ref, Signal: int32(signal)}, &api.SignalJobResponse{})
}

// Wait returns the job once it has ended.
func (c *Client) Wait(ctx context.Context, ref string) (joblet.Job, error) {
	var out api.WaitJobResponse
	err := c.call(ctx, jobService+"WaitJob", &api.WaitJobRequest{Uuid: ref}, &out)
	return job(out.GetJob(), err)
}

// Delete removes a job that has ended: its record and its output.
func (c *Client) Delete(ctx context.Context, ref string) error {
	return c.call(ctx, jobService+"DeleteJob", &api.DeleteJobRequest{Uuid: ref}, &api.DeleteJobResponse{})
}

// DeleteAll removes all jobs that have ended and returns how many it removed and
// how many have not ended.
func (c *Client) DeleteAll(ctx context.Context) (deleted, skipped int, err error) {
	var out api.DeleteAllJobsResponse
	err = c.call(ctx, jobService+"DeleteAllJobs", &api.DeleteAllJobsRequest{}, &out)
	return int(out.GetDeletedCount()), int(out.GetSkippedCount()), err
}

func job(p *api.Job, err error) (joblet.Job, error) {
	if err != nil {
		return joblet.Job{}, err
	}
	return wire.JobFromProto(p)
}
