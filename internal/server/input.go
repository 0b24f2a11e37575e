package server

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/server/admission"
	"github.com/joblet/joblet/internal/service"
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
		return joblet.Errorf(joblet.InvalidArgument, "the first message must contain the job")
	}
	sub, err := submission(r)
	if err != nil {
		return err
	}
	if len(r.GetUploads()) > 0 {
		return joblet.Errorf(joblet.InvalidArgument, "uploads: SubmitJob accepts files as an archive only")
	}
	in := &input{recv: call.Recv}
	sub.Stdin, sub.Keys = in.stdin(), in.keys
	if r.GetFiles() {
		sub.Files = in.files()
	}
	if r.GetDetach() {
		job, err := s.jobs.Submit(ctx, identityOf(ctx), sub)
		if err != nil {
			return err
		}
		return call.Send(jobEvent(job))
	}
	follow := events(ctx, call.Send)
	sub.Follow = &follow
	return ended(call.Send)(s.jobs.Submit(ctx, identityOf(ctx), sub))
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
			err = joblet.Errorf(joblet.InvalidArgument, "the archive of files is incomplete")
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
			err = joblet.Errorf(joblet.InvalidArgument, "expected more standard input, got another message")
		}
		return nil, err
	}}
}

// keys returns what the caller does at a terminal: what is typed, or a window's size.
func (in *input) keys() (service.Keys, error) {
	m, err := in.recv()
	switch m := m.GetInput().(type) {
	case *api.JobInput_Resize:
		return service.Keys{Window: wire.WindowFromProto(m.Resize)}, err
	case *api.JobInput_Stdin:
		return service.Keys{Typed: m.Stdin}, err
	}
	return service.Keys{}, err
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
	ctx := out.Context()
	piece := admission.ResponseOf(ctx).Piece()
	w := bufio.NewWriterSize(chunkWriter{out, piece}, piece)
	if err := s.jobs.Files(ctx, identityOf(ctx), r.GetUuid(), wire.PatternsFromProto(r), w); err != nil {
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
