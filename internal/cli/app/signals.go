package app

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/joblet/joblet/client"
)

// CatchPipeSignal makes a write to a closed pipe an error (EPIPE) also on
// stdout and stderr, where Go otherwise ends the process. The signal is caught
// and not ignored, so that a daemon that rnx starts does not inherit that.
func CatchPipeSignal() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// ClosedPipe reports whether a write failed because its reader is gone.
func ClosedPipe(err error) bool {
	// ERROR_BROKEN_PIPE and ERROR_NO_DATA are Windows' words for it.
	return errors.Is(err, syscall.EPIPE) || IsWindows && (errors.Is(err, syscall.Errno(109)) || errors.Is(err, syscall.Errno(232)))
}

// IsWindows reports whether rnx runs on Windows.
const IsWindows = runtime.GOOS == "windows"

// UntilSignal calls do with a connection and a context that a signal ends.
func (a *App) UntilSignal(ctx context.Context, do func(context.Context, *client.Client) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	go func() {
		select {
		case sig := <-signals:
			cancel(signalEnd(sig))
		case <-ctx.Done():
		}
	}()
	err := a.With(ctx, func(c *client.Client) error { return do(ctx, c) })
	if end, ok := errors.AsType[*ExitError](context.Cause(ctx)); ok {
		if end.Status == 0 {
			return nil
		}
		return end
	}
	return err
}

// signalEnd is how a watch ends by a signal: Ctrl-C is the usual way to do it.
func signalEnd(sig os.Signal) *ExitError {
	n, ok := sig.(syscall.Signal)
	if !ok || n == syscall.SIGINT {
		return &ExitError{}
	}
	return &ExitError{Status: 128 + int(n)}
}
