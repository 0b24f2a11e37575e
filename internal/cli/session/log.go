package session

import (
	"cmp"
	"context"
	"errors"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
)

// FollowLog writes a job's log. With Follow it survives that the daemon, or the way
// to it, goes away for a while: it goes on where it was.
func FollowLog(ctx context.Context, a *app.App, ref string, opt joblet.LogOptions, out *Output) error {
	var tries search
	for {
		met := false
		err := a.With(ctx, func(c *client.Client) error {
			for event, err := range c.Follow(ctx, ref, opt) {
				if err != nil {
					return err
				}
				met = true
				switch e := event.(type) {
				case client.Waiting:
					ref = e.Job.ID // the name may be another job's by then
				case client.Started:
					ref = e.Job.ID
				case client.Output:
					opt.Offset, opt.Tail = e.Offset+int64(len(e.Data)), 0
				case client.Gap:
					opt.Offset, opt.Tail = e.Offset+e.Length, 0
				}
				if err := out.event(event); err != nil {
					return &writeError{err}
				}
			}
			return nil
		})
		if w, ok := errors.AsType[*writeError](err); ok {
			return w.err
		}
		if !opt.Follow || joblet.KindOf(err) != joblet.Unavailable || tries.deadline.IsZero() && !met {
			return err
		}
		if met {
			tries.found()
		}
		if more, ended := tries.pause(ctx); !more {
			return cmp.Or(ended, err)
		}
	}
}
