package session

import (
	"context"
	"io"
	"sync/atomic"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

// Input is what goes along with a job, and how much of it is gone.
type Input struct {
	files func(io.Writer) error // nil: there are none
	stdin io.Reader             // nil: it is empty
	keep  bool                  // stdin is sent as a whole before the job is accepted

	sending atomic.Bool // the job cannot have been accepted: not all that it needs is sent
	ended   atomic.Bool // stdin has been read to its end
}

// NewInput returns what goes along with a job: files, and stdin, which with keep is sent
// as a whole before the job is accepted. It returns nil when both are nil.
func NewInput(files func(io.Writer) error, stdin io.Reader, keep bool) *Input {
	if files == nil && stdin == nil {
		return nil
	}
	in := &Input{files: files, stdin: stdin, keep: keep}
	in.sending.Store(files != nil || keep)
	return in
}

// forClient returns it as the client wants it.
func (in *Input) forClient() client.Input {
	var out client.Input
	if in.files != nil {
		out.Files = func(w io.Writer) error {
			err := in.files(w)
			if err == nil && (in.stdin == nil || !in.keep) {
				in.sending.Store(false)
			}
			return err
		}
	}
	if in.stdin != nil {
		out.Stdin = in
	}
	return out
}

// Read reads stdin.
func (in *Input) Read(p []byte) (int, error) {
	n, err := in.stdin.Read(p)
	if err == io.EOF { // a Reader's own word for it is never wrapped
		in.ended.Store(true)
		in.sending.Store(false)
	}
	return n, err
}

// submit runs a job with what goes along with it and follows it.
func submit(ctx context.Context, c *client.Client, spec joblet.Spec, in *Input) eventSeq {
	if in == nil {
		return c.RunAttached(ctx, spec)
	}
	return c.Submit(ctx, spec, in.forClient(), false)
}

// Accept submits a job and returns it once the daemon has it.
func Accept(ctx context.Context, c *client.Client, spec joblet.Spec, in *Input) (joblet.Job, error) {
	if in == nil {
		return c.Run(ctx, spec)
	}
	for event, err := range c.Submit(ctx, spec, in.forClient(), true) {
		if err != nil {
			return joblet.Job{}, err
		}
		switch e := event.(type) {
		case client.Waiting:
			return e.Job, nil
		case client.Started:
			return e.Job, nil
		case client.Ended:
			return e.Job, nil
		}
	}
	return joblet.Job{}, joblet.Errorf(joblet.Internal, "the daemon did not say whether it has accepted the job")
}
