package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

func prepareClient(ctx context.Context, b *bench, c *contender) error {
	d, err := b.startDaemon(ctx)
	if err != nil {
		return err
	}
	// The connection outlives the cancellation of ctx: close ends it.
	b.client, err = client.Dial(context.WithoutCancel(ctx), d.host)
	if err != nil {
		return err
	}
	c.notes = b.stateNote()
	c.call = func(ctx context.Context, j job) error {
		argv := j.argv()
		for event, err := range b.client.RunAttached(ctx, joblet.Spec{Command: argv[0], Args: argv[1:]}) {
			if err != nil {
				return err
			}
			if ended, ok := event.(client.Ended); ok {
				if ended.Job.State != joblet.Completed {
					return fmt.Errorf("the job ended as %s: %s", ended.Job.State, ended.Job.Reason)
				}
				return nil
			}
		}
		return errors.New("no end of the job")
	}
	return b.try(ctx, c)
}
