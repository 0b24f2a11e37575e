package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"google.golang.org/grpc"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/wire"
)

// inputPiece is how many bytes of input one message carries at most.
const inputPiece = 128 << 10

// Input is what goes along with a job.
type Input struct {
	// Files writes a tar archive of directories, files and symbolic links for
	// the job's /work; nil: there are none. Its writes fail once the call has
	// ended, and it has to return then: Submit waits for it.
	Files func(w io.Writer) error
	// Stdin is the job's standard input, to its end, when spec.Stdin is not none;
	// nil: it is empty. A Read that is under way when the job ends is left to
	// itself, and what it reads is lost.
	Stdin io.Reader
}

// Submit is RunAttached for a job with input, and can be ranged over once: the input is
// sent while the events come. With detach the only event is the one that says that the
// job was accepted: Waiting or Started, or Ended if it was quick. When the input cannot
// be read, the call is canceled and that is the error: a job whose files, or standard
// input of the kind "file", were not complete is never accepted. Standard input as a
// stream ends with the call.
func (c *Client) Submit(ctx context.Context, spec joblet.Spec, in Input, detach bool) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		if spec.Stdin == joblet.StdinNone {
			in.Stdin = nil
		}
		s, err := c.start(ctx, submission{spec: spec, detach: detach, input: &in})
		if err != nil {
			yield(nil, err)
			return
		}
		defer s.finish()
		s.Events()(func(e Event, err error) bool { return yield(e, err) && !detach })
	}
}

type inputStream = grpc.BidiStreamingClient[api.JobInput, api.JobEvent]

// sendStdin sends standard input and closes this side of the stream. It returns an error
// of the input only: why the call ended while it was sent is for the receiver to tell.
func sendStdin(stream inputStream, stdin io.Reader) error {
	if stdin != nil {
		buf := make([]byte, inputPiece)
		for {
			n, err := stdin.Read(buf)
			if n > 0 && stream.Send(&api.JobInput{Input: &api.JobInput_Stdin{Stdin: buf[:n]}}) != nil {
				return nil
			}
			if err == io.EOF { // not a wrapped one: that is a reader that failed
				break
			}
			if err != nil {
				return fmt.Errorf("cannot read the job's standard input: %w", err)
			}
		}
	}
	_ = stream.CloseSend() // always nil
	return nil
}

// sendFiles sends the archive that files writes. It is not sent when the call
// has ended before.
func sendFiles(stream inputStream, files func(io.Writer) error) (sent bool, err error) {
	if files == nil {
		return true, nil
	}
	w := &archiveWriter{stream: stream}
	pieces := bufio.NewWriterSize(w, inputPiece) // a tar.Writer writes headers of 512 bytes
	err = files(pieces)
	if err == nil {
		err = pieces.Flush()
	}
	switch {
	case w.ended:
		return false, nil
	case err != nil:
		return false, fmt.Errorf("cannot read the job's files: %w", err)
	}
	return stream.Send(&api.JobInput{Input: &api.JobInput_FilesEnd{FilesEnd: true}}) == nil, nil
}

// archiveWriter sends what is written to it.
type archiveWriter struct {
	stream inputStream
	ended  bool // the call: nothing can be sent any more
}

func (w *archiveWriter) Write(p []byte) (n int, err error) {
	for piece := range slices.Chunk(p, inputPiece) {
		if err := w.stream.Send(&api.JobInput{Input: &api.JobInput_Files{Files: piece}}); err != nil {
			w.ended = true
			return n, errors.New("the call has ended")
		}
		n += len(piece)
	}
	return n, nil
}

// Files returns files of a job's /work as a tar archive: of a running job as
// they are, of an ended one as it left them. Patterns are paths relative to
// /work, with "**" for any directories; a directory stands for all in it; without
// patterns it is everything. One that matches nothing is a NotFound error. What
// goes wrong after the first bytes is an error of Read. Close cuts the call.
func (c *Client) Files(ctx context.Context, ref string, patterns []string) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.jobs.GetJobFiles(ctx, wire.FilesToProto(ref, patterns))
	if err != nil {
		cancel()
		return nil, err
	}
	r := &archiveReader{stream: stream, cancel: cancel}
	if r.receive(); r.err != nil && !errors.Is(r.err, io.EOF) {
		cancel()
		return nil, r.err
	}
	return r, nil
}

type archiveReader struct {
	stream grpc.ServerStreamingClient[api.DataChunk]
	cancel context.CancelFunc
	piece  []byte // what is left of the last message
	err    error
}

func (r *archiveReader) receive() {
	var p *api.DataChunk
	p, r.err = r.stream.Recv()
	r.piece = p.GetPayload()
}

func (r *archiveReader) Read(p []byte) (int, error) {
	for len(r.piece) == 0 && r.err == nil {
		r.receive()
	}
	if len(r.piece) == 0 {
		return 0, r.err
	}
	n := copy(p, r.piece)
	r.piece = r.piece[n:]
	return n, nil
}

func (r *archiveReader) Close() error {
	r.cancel()
	return nil
}
