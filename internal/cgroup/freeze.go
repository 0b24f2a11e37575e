package cgroup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/joblet/joblet"
)

// Freeze stops all of the job's processes where they are, and returns once they
// stand still.
func (g *Group) Freeze(ctx context.Context) error {
	if g.V2 == "" && g.V1["freezer"] == "" {
		return joblet.Errorf(joblet.FailedPrecondition, "cannot pause the job: this host has neither cgroup v2 nor the controller freezer; mount cgroup2")
	}
	if err := g.freezing(true); err != nil {
		return fmt.Errorf("cannot pause the job: %w", err)
	}
	for {
		frozen, err := g.Frozen()
		if err != nil || frozen {
			return err
		}
		select {
		case <-ctx.Done():
			if err := g.freezing(false); err != nil {
				return fmt.Errorf("cannot pause the job: %w (resuming it also failed: %w)", ctx.Err(), err)
			}
			return joblet.Errorf(joblet.Unavailable, "cannot pause the job: a process did not stop in time: %w", ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Thaw lets them go on. It returns at once.
func (d Dirs) Thaw() error { return d.freezing(false) }

func (d Dirs) freezing(yes bool) error {
	switch {
	case d.V2 != "" && yes:
		return write(d.V2, "cgroup.freeze", "1")
	case d.V2 != "":
		return write(d.V2, "cgroup.freeze", "0")
	case d.V1["freezer"] == "":
		return nil
	case yes:
		return write(d.V1["freezer"], "freezer.state", "FROZEN")
	}
	return write(d.V1["freezer"], "freezer.state", "THAWED")
}

// Frozen reports whether all of the job's processes stand still.
func (d Dirs) Frozen() (bool, error) {
	if d.V2 != "" {
		data, err := os.ReadFile(filepath.Join(d.V2, "cgroup.events"))
		return strings.Contains(string(data), "frozen 1"), err
	}
	if d.V1["freezer"] == "" {
		return false, nil
	}
	data, err := os.ReadFile(filepath.Join(d.V1["freezer"], "freezer.state"))
	return strings.TrimSpace(string(data)) == "FROZEN", err
}
