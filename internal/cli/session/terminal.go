package session

import (
	"context"
	"errors"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/term"
)

// errDetached is why rnx leaves a job alone whose user has typed the detach keys.
var errDetached = errors.New("detached")

// Attach connects t to the terminal of the running job that ref names.
func Attach(ctx context.Context, a *app.App, ref string, t *term.Terminal) error {
	c, err := a.Connect(ctx)
	if err != nil {
		return err
	}
	at := newAttachment(a, c)
	at.guest, at.term = true, t
	return at.run(ctx, nil, func(ctx context.Context) eventSeq {
		return at.session(t.Window(), func(size joblet.WindowSize) (*client.Session, error) {
			return c.Attach(ctx, ref, joblet.AttachOptions{Tail: term.ScreenTail, Size: at.visible(size), Redraw: true})
		}, true)
	})
}

// visible is the size that the job's terminal is to get for our window: none if
// that is no terminal.
func (at *attachment) visible(window joblet.WindowSize) joblet.WindowSize {
	if at.term.TTY == nil {
		return joblet.WindowSize{}
	}
	return window
}

// runTerminal submits a job that has a terminal and connects ours to it.
func (at *attachment) runTerminal(ctx context.Context, spec joblet.Spec) eventSeq {
	return at.session(spec.Terminal, func(joblet.WindowSize) (*client.Session, error) {
		if at.in == nil {
			return at.conn().RunTerminal(ctx, spec, nil)
		}
		return at.conn().RunTerminal(ctx, spec, at.in.forClient().Files)
	}, false)
}

// followAgain takes the job up where the output was cut.
func (at *attachment) followAgain(ctx context.Context, c *client.Client) eventSeq {
	if at.term == nil {
		return c.Follow(ctx, at.id, joblet.LogOptions{Offset: at.off, Follow: true})
	}
	return at.session(at.term.Window(), func(size joblet.WindowSize) (*client.Session, error) {
		return c.Attach(ctx, at.id, joblet.AttachOptions{Offset: at.off, Size: at.visible(size)})
	}, false)
}

// session opens a session for a window of this size and types into it as long as
// its events are followed. With paint the output so far becomes a screen that is
// drawn.
func (at *attachment) session(size joblet.WindowSize, open func(joblet.WindowSize) (*client.Session, error), paint bool) eventSeq {
	return func(yield func(client.Event, error) bool) {
		s, err := open(size)
		if err != nil {
			yield(nil, err)
			return
		}
		defer s.Close()
		defer at.term.Connect(nil)
		// Until the job runs Ctrl-C is a signal, and what is typed waits in the
		// terminal.
		l := &term.Line{Typed: s.Type, Resize: s.Resize, Size: size}
		for event, err := range s.Events() {
			switch e := event.(type) {
			case client.Attached:
				if paint {
					at.repaint = term.NewRepaint(e.Window, e.LogBytes)
				}
			case client.Started:
				if err := at.term.MakeRaw(); err != nil {
					yield(nil, err)
					return
				}
				at.term.Connect(l)
			case client.Waiting:
				at.term.Connect(nil)
				at.term.End()
			}
			if !yield(event, err) {
				return
			}
		}
	}
}

// show writes an event; while the screen so far is being taken, nothing.
func (at *attachment) show(event client.Event) error {
	if at.term == nil {
		return at.out.event(event)
	}
	r := at.repaint
	switch e := event.(type) {
	case client.Attached:
		if r != nil && e.LogBytes == 0 {
			at.repaint = nil
		}
	case client.Output:
		if r != nil {
			rest, done := r.Write(e.Offset, e.Data)
			if !done {
				return nil
			}
			if err := at.drawn(r); err != nil {
				return err
			}
			e.Data = rest
		}
		return at.out.event(e)
	case client.Gap:
		if r != nil && e.Offset+e.Length >= r.Until {
			return at.drawn(r)
		}
	}
	return nil
}

// drawn draws the screen so far, behind which the job's output goes on.
func (at *attachment) drawn(r *term.Repaint) error {
	at.repaint = nil
	if at.term.TTY == nil { // nobody sees a screen
		return nil
	}
	_, err := at.term.Write([]byte(r.Paint(at.term.Window())))
	return err
}
