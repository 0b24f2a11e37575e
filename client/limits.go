package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/wire"
)

// Pause freezes all processes of a running job; Resume lets them go on.
func (c *Client) Pause(ctx context.Context, ref string) (joblet.Job, error) {
	r, err := c.jobs.PauseJob(ctx, &api.PauseJobRequest{Uuid: ref})
	return job(r.GetJob(), err)
}

// Resume lets a paused job go on.
func (c *Client) Resume(ctx context.Context, ref string) (joblet.Job, error) {
	r, err := c.jobs.ResumeJob(ctx, &api.ResumeJobRequest{Uuid: ref})
	return job(r.GetJob(), err)
}

// Update changes those limits of a job that has not ended which l sets, all or
// none of them.
func (c *Client) Update(ctx context.Context, ref string, l joblet.Limits) (joblet.Job, error) {
	r, err := c.jobs.UpdateJob(ctx, &api.UpdateJobRequest{Uuid: ref, Limits: wire.LimitsToProto(l)})
	return job(r.GetJob(), err)
}

// Processes returns the processes of a running job, as seen from outside.
func (c *Client) Processes(ctx context.Context, ref string) (joblet.Processes, error) {
	r, err := c.jobs.ListJobProcesses(ctx, &api.ListJobProcessesRequest{Uuid: ref})
	if err != nil {
		return joblet.Processes{}, err
	}
	return wire.ProcessesFromProto(r)
}

// WatchMetrics yields what a job takes: at once, and after each interval (0: a
// second), until it has ended.
func (c *Client) WatchMetrics(ctx context.Context, ref string, interval time.Duration) iter.Seq2[joblet.Sample, error] {
	return func(yield func(joblet.Sample, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.jobs.StreamJobMetrics(ctx, &api.StreamJobMetricsRequest{JobUuid: ref, IntervalMs: interval.Milliseconds(), NoReplay: true})
		samples(stream, err, yield)
	}
}

// Metrics yields the samples that were kept of a job between two moments (zero:
// no bound), the newest limit of them (0: all), oldest first.
func (c *Client) Metrics(ctx context.Context, ref string, from, to time.Time, limit int) iter.Seq2[joblet.Sample, error] {
	return func(yield func(joblet.Sample, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := c.jobs.GetJobMetrics(ctx, wire.RangeToProto(ref, from, to, limit))
		samples(stream, err, yield)
	}
}

func samples(stream interface {
	Recv() (*api.JobMetricsEvent, error)
}, err error, yield func(joblet.Sample, error) bool) {
	for err == nil {
		var e *api.JobMetricsEvent
		if e, err = stream.Recv(); errors.Is(err, io.EOF) {
			return
		}
		if err == nil && !yield(wire.SampleFromProto(e), nil) {
			return
		}
	}
	yield(joblet.Sample{}, err)
}
