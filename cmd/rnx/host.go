package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

func runDir() string { return cmp.Or(os.Getenv("JOBLET_RUN_DIR"), "/run/joblet") }

// hostName returns the daemon to talk to and whether the user named it.
func (a *app) hostName() (host string, named bool) {
	if host = cmp.Or(a.host, os.Getenv("RNX_HOST")); host != "" {
		return host, true
	}
	return "unix://" + filepath.Join(runDir(), "joblet.sock"), false
}

// connect returns a connection to the daemon. When none answers here and the
// user named none, it starts one where it may.
func (a *app) connect(ctx context.Context) (*client.Client, error) {
	host, named := a.hostName()
	c, err := client.Dial(ctx, host)
	switch {
	case err == nil:
		return c, nil
	case joblet.KindOf(err) == joblet.PermissionDenied:
		return nil, joblet.Errorf(joblet.PermissionDenied, "%w: only root may use the daemon, so try sudo", err)
	case !silent(err):
		return nil, err
	case named:
		return nil, joblet.Errorf(joblet.Unavailable, "no daemon answers at %s: %w", host, err)
	}
	return startDaemon(ctx, host)
}

// connectRunning is connect for what needs no daemon of its own.
func (a *app) connectRunning(ctx context.Context) (*client.Client, error) {
	host, _ := a.hostName()
	return client.Dial(ctx, host)
}

// silent reports whether a connection failed because nobody listens.
func silent(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}

// with calls do with a connection.
func (a *app) with(ctx context.Context, do func(*client.Client) error) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	// Nothing is buffered on our side, so that a failure to close loses nothing.
	defer c.Close()
	return do(c)
}

func errNoDaemon(host, advice string) error {
	return joblet.Errorf(joblet.Unavailable, "%s", fmt.Sprintf("no daemon answers at %s: %s", host, advice))
}
