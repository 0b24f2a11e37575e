package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

func newStatusCommand(a *app) *cobra.Command {
	first := true
	return a.jobsCommand(&cobra.Command{
		Use:               "status JOB…",
		Aliases:           []string{"inspect"},
		Short:             "Show all that is known of jobs",
		Long:              "Show all that is known of jobs. With --json each line is an object." + jobRefHelp,
		Example:           "  rnx job status 3f2a\n  rnx job status --json 3f2a | jq .exit_code",
		ValidArgsFunction: a.completeJobs(),
	}, func(ctx context.Context, c *client.Client, ref string) error {
		j, err := c.Job(ctx, ref)
		if err != nil {
			return err
		}
		if a.json {
			return a.writeJSON(newJobJSON(j))
		}
		if !first {
			if err := a.println(""); err != nil {
				return err
			}
		}
		first = false
		return writeStatus(a.out, j, time.Now())
	})
}

func writeStatus(w io.Writer, j joblet.Job, now time.Time) error {
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-10s %s\n", name+":", printable(value))
		}
	}
	status := j.State.String()
	if j.Exit != nil {
		if j.Exit.Signal != 0 {
			status += fmt.Sprintf(" (killed by %s)", signalName(j.Exit.Signal))
		} else {
			status += fmt.Sprintf(" (exit code %d)", j.Exit.Code)
		}
	}
	line("Job", j.ID)
	line("Name", j.Spec.Name)
	line("Status", status)
	line("Reason", j.Reason)
	line("Command", j.Spec.CommandLine())
	line("Runtime", j.Spec.Runtime)
	line("Work dir", j.Spec.WorkDir)
	if j.Spec.Timeout > 0 {
		line("Timeout", j.Spec.Timeout.String())
	}
	if j.Spec.Init {
		line("Init", "yes")
	}
	line("Owner", j.Owner)
	line("Created", formatTime(j.Created))
	if !j.Started.IsZero() {
		line("Started", formatTime(j.Started))
	}
	if !j.Ended.IsZero() {
		line("Ended", formatTime(j.Ended))
	}
	if d := jobDuration(j, now); d != "-" {
		line("Duration", d)
	}
	if j.PID != 0 && j.State.Alive() {
		line("Host PID", fmt.Sprint(j.PID))
	}
	if j.IDBase != 0 {
		line("Host ids", fmt.Sprintf("%d to %d", j.IDBase, j.IDBase+65535))
	}
	line("Output", formatBytes(j.LogBytes))
	for _, env := range []map[string]string{j.Spec.Env, j.Spec.Redacted().SecretEnv} {
		for _, name := range slices.Sorted(maps.Keys(env)) {
			line("Env", name+"="+env[name])
		}
	}
	id := joblet.ShortID(j.ID)
	if j.State.Final() {
		line("Next", fmt.Sprintf("rnx job log %s, rnx job delete %s", id, id))
	} else {
		line("Next", fmt.Sprintf("rnx job log -f %s, rnx job stop %s", id, id))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
