package cli

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

// errDetached is why rnx leaves a job alone whose user has typed the detach keys.
var errDetached = errors.New("detached")

const detachHelp = `

All keys go to the job, including Ctrl-C. Ctrl-P Ctrl-Q detaches and leaves the
job running; --detach-keys or RNX_DETACH_KEYS sets other keys, such as "ctrl-]", or
none. Closing the window, a signal to rnx and a lost connection also leave the job
running.`

func newAttachCommand(a *app) *cobra.Command {
	var keys string
	cmd := &cobra.Command{
		Use:   "attach [flags] JOB",
		Short: "Attach this terminal to a job",
		Long: `Attach this terminal to the terminal of a running job. The current screen is drawn
first. Several clients may attach at once: all see the same output and may type, and
the terminal has the size of the smallest window.` + detachHelp + `

JOB is an id, a unique prefix of an id, or a name. A name refers to your own job
first, then to that of another owner.

Exit status: the job's own when it ends, 0 after the detach keys, 128+N when signal
N ended rnx, 125 when rnx failed.`,
		Example: `  rnx job run -dt --name=edit vim notes
  rnx job attach edit`,
		Args:              exactlyOne("job"),
		ValidArgsFunction: a.completeJobs(joblet.Running),
		RunE: func(cmd *cobra.Command, args []string) error {
			detach, err := parseKeys(keys)
			if err != nil {
				return err
			}
			if a.json {
				return joblet.Errorf(joblet.InvalidArgument, "--json: a terminal shows bytes as they are; see rnx job log --json")
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			at := a.attach(c)
			at.guest, at.term = true, a.terminal(detach)
			return at.run(cmd.Context(), nil, func(ctx context.Context) eventSeq {
				return at.session(at.term.window(), func(size joblet.WindowSize) (*client.Session, error) {
					return c.Attach(ctx, args[0], joblet.AttachOptions{Tail: screenTail, Size: at.visible(size), Redraw: true})
				}, true)
			})
		},
	}
	addDetachKeys(cmd, &keys)
	return cmd
}

func addDetachKeys(cmd *cobra.Command, keys *string) {
	deflt := defaultDetachKeys
	if given, ok := os.LookupEnv("RNX_DETACH_KEYS"); ok {
		deflt = given
	}
	cmd.Flags().StringVar(keys, "detach-keys", deflt, "detach with `KEYS`, such as ctrl-],d, and leave the job running")
}

// visible is the size that the job's terminal is to get for our window: none if
// that is no terminal.
func (at *attachment) visible(window joblet.WindowSize) joblet.WindowSize {
	if at.term.tty == nil {
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
	return at.session(at.term.window(), func(size joblet.WindowSize) (*client.Session, error) {
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
		defer at.term.connect(nil)
		// Until the job runs Ctrl-C is a signal, and what is typed waits in the
		// terminal.
		l := &line{typed: s.Type, resize: s.Resize, size: size}
		for event, err := range s.Events() {
			switch e := event.(type) {
			case client.Attached:
				if paint {
					at.repaint = newRepaint(e.Window, e.LogBytes)
				}
			case client.Started:
				if err := at.term.makeRaw(); err != nil {
					yield(nil, err)
					return
				}
				at.term.connect(l)
			case client.Waiting:
				at.term.connect(nil)
				at.term.end()
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
			rest, done := r.write(e.Offset, e.Data)
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
		if r != nil && e.Offset+e.Length >= r.until {
			return at.drawn(r)
		}
	}
	return nil
}

// drawn draws the screen so far, behind which the job's output goes on.
func (at *attachment) drawn(r *repaint) error {
	at.repaint = nil
	if at.term.tty == nil { // nobody sees a screen
		return nil
	}
	_, err := at.term.Write([]byte(r.paint(at.term.window())))
	return err
}
