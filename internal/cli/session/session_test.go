package session

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/testenv/peer"
)

// TestPass: which calls a signal becomes.
func TestPass(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		id      string
		waiting bool
		again   bool
		sig     syscall.Signal
		asked   string
		note    string
	}{
		{peer.IDA, true, false, syscall.SIGINT, "cancel aaaa", "rnx: canceling job aaaaaaaa, which has not started\n"},
		{peer.IDB, true, false, syscall.SIGTERM, "cancel bbbb; stop bbbb with 15", "rnx: canceling job bbbbbbbb, which has not started\n"},
		{peer.IDA, false, false, syscall.SIGINT, "interrupt aaaa with 2", "rnx: sent SIGINT to job aaaaaaaa; Ctrl-C again within 2s kills it\n"},
		{peer.IDA, false, true, syscall.SIGINT, "stop aaaa with 9", "rnx: killing job aaaaaaaa\n"},
		{peer.IDA, false, false, syscall.SIGHUP, "interrupt aaaa with 1", "rnx: sent SIGHUP to job aaaaaaaa\n"},
	} {
		p := peer.Serve(t)
		c, err := client.Dial(t.Context(), p.Host)
		if err != nil {
			t.Fatal(err)
		}
		var errOut bytes.Buffer
		at := newAttachment(&app.App{ErrOut: &errOut}, c)
		at.meet(joblet.Job{ID: tt.id}, true)
		at.meet(joblet.Job{ID: tt.id}, tt.waiting)
		if err := at.pass(t.Context(), tt.sig, tt.again); err != nil || p.Asked() != tt.asked || errOut.String() != tt.note {
			t.Errorf("%+v: got %v, %s, %q", tt, err, p.Asked(), errOut.String())
		}
		c.Close()
	}
}

// TestInterruptedInput: as long as its input is on the way a job cannot have been
// accepted, and the first Ctrl-C ends rnx.
func TestInterruptedInput(t *testing.T) {
	t.Parallel()
	at := newAttachment(&app.App{ErrOut: io.Discard}, nil)
	at.in = &Input{stdin: strings.NewReader("x"), keep: true}
	at.in.sending.Store(true)
	var ctx context.Context
	ctx, at.cancel = context.WithCancelCause(t.Context())
	defer at.cancel(nil)
	at.signals = make(chan os.Signal, 1)
	at.signals <- syscall.SIGINT
	at.forward(ctx)
	if e, ok := errors.AsType[*app.ExitError](context.Cause(ctx)); !ok || e.Status != 130 {
		t.Errorf("got %v", context.Cause(ctx))
	}
	if _, err := io.ReadAll(at.in); err != nil || at.in.sending.Load() || !at.in.ended.Load() {
		t.Errorf("at its end: %v", err)
	}
}

// TestNotes: what a job waits for is told once, and to a terminal whenever it changes.
func TestNotes(t *testing.T) {
	t.Parallel()
	events := func(yield func(client.Event, error) bool) {
		busy := client.Waiting{Job: joblet.Job{ID: peer.IDA, State: joblet.Pending, Reason: "busy"}}
		retry := client.Waiting{Job: joblet.Job{ID: peer.IDA, State: joblet.Scheduled, Attempt: 1, Scheduled: time.Now().Add(-time.Second),
			Past: []joblet.Attempt{{State: joblet.Failed, Exit: &joblet.Exit{Code: 3}}}, Spec: joblet.Spec{Retries: 3}}}
		for _, e := range []client.Event{busy, busy, client.Started{Job: joblet.Job{ID: peer.IDA}}, retry, client.Started{Job: joblet.Job{ID: peer.IDA}}, client.Ended{Job: joblet.Job{ID: peer.IDA}}} {
			if !yield(e, nil) {
				return
			}
		}
	}
	for tty, want := range map[bool]string{
		true:  "rnx: job aaaaaaaa waits: busy\nrnx: job aaaaaaaa: attempt 1 of 4 failed with status 3; next now\n",
		false: "rnx: job aaaaaaaa waits: busy\n",
	} {
		var errOut bytes.Buffer
		at := newAttachment(&app.App{Out: io.Discard, ErrOut: &errOut}, nil)
		at.tty = tty
		if _, err := at.follow(events); err != nil || errOut.String() != want {
			t.Errorf("terminal %v: got %v, %q", tty, err, errOut.String())
		}
	}
}
