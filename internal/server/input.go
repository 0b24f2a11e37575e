package server

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/server/admission"
	"github.com/joblet/joblet/internal/supervisor"
	"github.com/joblet/joblet/internal/wire"
)

func (s *jobService) SubmitJob(call grpc.BidiStreamingServer[api.JobInput, api.JobEvent]) error {
	ctx := call.Context()
	first, err := call.Recv()
	if err != nil {
		return err
	}
	r := first.GetRun()
	if r == nil {
		return joblet.Errorf(joblet.InvalidArgument, "the first message must hold the job")
	}
	spec, err := s.spec(ctx, r)
	if err != nil {
		return err
	}
	switch {
	case len(r.GetUploads()) > 0:
		return joblet.Errorf(joblet.InvalidArgument, "uploads: SubmitJob takes files as an archive")
	case r.GetDetach() && spec.Stdin == joblet.StdinStream:
		return joblet.Errorf(joblet.InvalidArgument, "standard input as a stream ends with the call: a job that is left alone needs it as a file")
	}
	if err := spec.Validate(); err != nil { // before anything is taken
		return err
	}
	if err := mayHave(callerOf(ctx), spec.Security); err != nil {
		return err
	}
	in := &input{recv: call.Recv}
	staged, err := s.stage(in, callerOf(ctx).name(), r.GetFiles(), spec.Stdin == joblet.StdinFile)
	if err != nil {
		return err
	}
	job, err := s.sup.Submit(ctx, spec, callerOf(ctx).name(), staged)
	if err != nil {
		return err
	}
	if r.GetDetach() {
		return call.Send(jobEvent(job))
	}
	if err := mayHave(callerOf(ctx), job.Spec.Security); err != nil { // an idempotency key may stand for another
		return err
	}
	if spec.Stdin == joblet.StdinStream {
		// It ends with the call: Recv fails when the handler has returned.
		go s.feed(ctx, job.ID, in)
		defer func() {
			if ctx.Err() != nil { // a job that has not begun would wait for input for ever
				_, _ = s.sup.Cancel(context.WithoutCancel(ctx), job.ID)
			}
		}()
	}
	if spec.Terminal != (joblet.WindowSize{}) {
		go s.typing(ctx, job.ID, spec.Terminal, false, nil, in.recv) // as above
		return s.followTerminal(ctx, job.ID, 1, joblet.LogOptions{Follow: true}, call.Send)
	}
	return s.follow(ctx, job.ID, joblet.LogOptions{Follow: true}, call.Send)
}

// stage takes what comes along with a job before it is accepted; nil for
// nothing.
func (s *jobService) stage(in *input, owner string, files, stdin bool) (_ *supervisor.Staged, err error) {
	if !files && !stdin {
		return nil, nil
	}
	staged := s.sup.Stage(owner)
	defer func() {
		if err != nil {
			err = joinDiscard(err, staged)
		}
	}()
	if files {
		r := in.files()
		if err := staged.Files(r); err != nil {
			return nil, err
		}
		if _, err := io.Copy(io.Discard, r); err != nil { // padding behind the archive's end
			return nil, err
		}
	}
	if stdin {
		if err := staged.Stdin(in.stdin()); err != nil {
			return nil, err
		}
	}
	return staged, nil
}

func joinDiscard(err error, staged *supervisor.Staged) error {
	if undo := staged.Discard(); undo != nil {
		return joblet.Errorf(joblet.KindOf(err), "%w (and %w)", err, undo)
	}
	return err
}

// feed hands the caller's standard input to the job. A caller that goes away in
// the middle does not end the job's input: that would look like all of it.
func (s *jobService) feed(ctx context.Context, id string, in *input) {
	w, err := s.sup.OpenStdin(ctx, id)
	if err != nil {
		return // the job has ended, and the follower says how
	}
	defer w.Close()
	defer context.AfterFunc(ctx, func() { _ = w.Close() })() // a write waits as long as the job does not read
	if _, err := io.Copy(w, in.stdin()); err == nil {
		_ = w.CloseWrite() // it has ended
	}
}

// input is what a caller of SubmitJob sends behind the job.
type input struct {
	recv func() (*api.JobInput, error)
}

func (in *input) files() io.Reader {
	return &pieces{next: func() ([]byte, error) {
		m, err := in.recv()
		switch m := m.GetInput().(type) {
		case *api.JobInput_Files:
			return m.Files, nil
		case *api.JobInput_FilesEnd:
			return nil, io.EOF
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = joblet.Errorf(joblet.InvalidArgument, "the archive of files has no end")
		}
		return nil, err
	}}
}

func (in *input) stdin() io.Reader {
	return &pieces{next: func() ([]byte, error) {
		m, err := in.recv()
		if m, ok := m.GetInput().(*api.JobInput_Stdin); ok {
			return m.Stdin, nil
		}
		if err == nil {
			err = joblet.Errorf(joblet.InvalidArgument, "standard input is interrupted by something else")
		}
		return nil, err
	}}
}

// pieces is an io.Reader over messages; its error stays.
type pieces struct {
	next func() ([]byte, error)
	left []byte
	err  error
}

func (p *pieces) Read(b []byte) (int, error) {
	for len(p.left) == 0 && p.err == nil {
		p.left, p.err = p.next()
	}
	if len(p.left) == 0 {
		return 0, p.err
	}
	n := copy(b, p.left)
	p.left = p.left[n:]
	return n, nil
}

// uploads returns the files in a RunJob request as an archive. Of their modes
// the permission bits count.
func uploads(files []*api.FileUpload) *io.PipeReader {
	r, w := io.Pipe()
	go func() { // ends with the archive, or when the reader has an error and closes
		out := bufio.NewWriterSize(w, 64<<10)
		t := tar.NewWriter(out)
		err := func() error {
			for _, f := range files {
				name := joblet.FromRaw(f.GetPath(), f.GetPathBytes())
				h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(f.GetContent())), Mode: int64(f.GetMode() & 0o777)}
				if f.GetIsDirectory() {
					h.Typeflag, h.Name, h.Size = tar.TypeDir, strings.TrimSuffix(h.Name, "/")+"/", 0
				}
				if h.Mode == 0 {
					h.Mode = map[bool]int64{false: 0o644, true: 0o755}[f.GetIsDirectory()]
				}
				if err := t.WriteHeader(h); err != nil {
					return joblet.Errorf(joblet.InvalidArgument, "upload %.100q: %w", name, err)
				}
				if !f.GetIsDirectory() {
					if _, err := t.Write(f.GetContent()); err != nil {
						return err
					}
				}
			}
			return errors.Join(t.Close(), out.Flush())
		}()
		_ = w.CloseWithError(err)
	}()
	return r
}

func (s *jobService) GetJobFiles(r *api.GetJobFilesRequest, out grpc.ServerStreamingServer[api.DataChunk]) error {
	piece := admission.ResponseOf(out.Context()).Piece()
	w := bufio.NewWriterSize(chunkWriter{out, piece}, piece)
	if err := s.sup.Files(out.Context(), r.GetUuid(), wire.PatternsFromProto(r), w); err != nil {
		return err
	}
	return w.Flush()
}

// chunkWriter sends an archive in pieces.
type chunkWriter struct {
	out   grpc.ServerStreamingServer[api.DataChunk]
	piece int
}

func (w chunkWriter) Write(b []byte) (int, error) {
	for piece := range slices.Chunk(b, w.piece) {
		if err := w.out.Send(&api.DataChunk{Payload: piece}); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}
