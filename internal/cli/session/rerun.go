package session

import (
	"context"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
)

// Rerun runs a job again and follows the new one to its end.
func Rerun(ctx context.Context, a *app.App, ref string, secrets map[string]string) error {
	c, err := a.Connect(ctx)
	if err != nil {
		return err
	}
	at := newAttachment(a, c)
	return at.run(ctx, nil, func(ctx context.Context) eventSeq {
		return func(yield func(client.Event, error) bool) {
			j, err := c.Rerun(ctx, ref, secrets)
			if err != nil {
				yield(nil, err)
				return
			}
			at.meet(j, j.State == joblet.Pending || j.State == joblet.Scheduled)
			c.Follow(ctx, j.ID, joblet.LogOptions{Follow: true})(yield)
		}
	})
}
