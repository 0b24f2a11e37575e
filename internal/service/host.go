package service

import (
	"context"
	"sync"
	"time"

	"github.com/joblet/joblet/internal/hostinfo"
	"github.com/joblet/joblet/internal/supervisor"
)

// statusWindow is over how long the usage of a status is measured at most.
const statusWindow = 15 * time.Second

// Host does the operations on this host and its daemon.
type Host struct {
	*policy
	sup *supervisor.Supervisor

	once   sync.Once // an idle daemon measures nothing
	reader *hostinfo.Reader
	status *hostinfo.Sampler // shared by all callers of the status
	err    error
}

func (h *Host) open() error {
	h.once.Do(func() {
		if h.reader, h.err = hostinfo.NewReader(); h.err == nil {
			h.status = h.reader.Sampler(hostinfo.AllParts, statusWindow)
		}
	})
	return h.err
}

// Version says how many jobs are active.
func (h *Host) Version(ctx context.Context, c Caller) (active int, err error) {
	err = h.do(ctx, c, ShowVersion, Subject{}, func(context.Context, *call) error {
		active = h.sup.Active()
		return nil
	})
	return active, err
}

// Status returns how the host does. Usage and rates are those since the previous call, or
// of the last fifth of a second when that was long ago.
func (h *Host) Status(ctx context.Context, c Caller) (m hostinfo.Sample, err error) {
	err = h.do(ctx, c, ShowHost, Subject{}, func(ctx context.Context, _ *call) error {
		if err := h.open(); err != nil {
			return err
		}
		m, err = h.status.Sample(ctx)
		m = shownHost(c, m)
		return err
	})
	return m, err
}

// Watch emits how the host does, at once and then after each interval, in which usage and
// rates are measured. Before it measures it waits for ready.
func (h *Host) Watch(ctx context.Context, c Caller, parts hostinfo.Parts, interval time.Duration, ready func() error, emit func(hostinfo.Sample) error) error {
	return h.do(ctx, c, WatchHost, Subject{}, func(ctx context.Context, _ *call) error {
		if err := h.open(); err != nil {
			return err
		}
		sampler := h.reader.Sampler(parts, 0)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			if err := ready(); err != nil {
				return err
			}
			m, err := sampler.Sample(ctx)
			if err != nil {
				return err
			}
			if err := emit(shownHost(c, m)); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-tick.C:
			}
		}
	})
}

// shownHost returns a sample as the caller may see it: without the arguments of
// processes, which may belong to a job, unless the caller may see all jobs.
func shownHost(c Caller, m hostinfo.Sample) hostinfo.Sample {
	if m.Processes == nil || mayAll(c, reads) {
		return m
	}
	p := *m.Processes
	p.ByCPU, p.ByMemory = withoutArguments(p.ByCPU), withoutArguments(p.ByMemory)
	m.Processes = &p
	return m
}

func withoutArguments(all []hostinfo.Process) []hostinfo.Process {
	out := make([]hostinfo.Process, len(all))
	for i, p := range all {
		p.Command = p.Name
		out[i] = p
	}
	return out
}
