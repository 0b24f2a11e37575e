package client

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/wire"
)

func started(p *api.Job) *api.JobEvent {
	return &api.JobEvent{Event: &api.JobEvent_Started{Started: p}}
}
func waiting(p *api.Job) *api.JobEvent {
	return &api.JobEvent{Event: &api.JobEvent_Waiting{Waiting: p}}
}
func ended(p *api.Job) *api.JobEvent { return &api.JobEvent{Event: &api.JobEvent_Ended{Ended: p}} }

func output(data []byte) *api.JobEvent {
	return &api.JobEvent{Event: &api.JobEvent_Output{Output: &api.JobOutput{Stream: 1, Data: data}}}
}

// SubmitJob does what the job's command says. "cat" gives the files and standard
// input back as output.
func (p *peer) SubmitJob(s grpc.BidiStreamingServer[api.JobInput, api.JobEvent]) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	r := first.GetRun()
	switch r.GetCommand() {
	case "refuse": // in the middle of the archive, then of standard input
		if _, err := s.Recv(); err != nil {
			return err
		}
		err, _ := wire.ErrorToStatus(joblet.Errorf(joblet.InvalidArgument, "the archive leads out of /work"))
		return err
	case "true": // reads nothing
		if err := s.Send(started(&api.Job{Status: "RUNNING"})); err != nil {
			return err
		}
		return s.Send(ended(&api.Job{Status: "COMPLETED"}))
	case "sleep":
		if err := s.Send(started(&api.Job{Status: "RUNNING"})); err != nil {
			return err
		}
		p.begun <- struct{}{}
		<-p.wake
		return s.Send(ended(&api.Job{Status: "COMPLETED"}))
	}
	var in bytes.Buffer
	collect := func(part func(*api.JobInput) ([]byte, bool)) error {
		for {
			m, err := s.Recv()
			if err != nil {
				return err
			}
			data, last := part(m)
			if last {
				return nil
			}
			if len(data) == 0 || len(data) > inputPiece {
				return status.Errorf(codes.Internal, "a piece of %d bytes: %v", len(data), m)
			}
			in.Write(data)
		}
	}
	if r.GetFiles() {
		err = collect(func(m *api.JobInput) ([]byte, bool) { return m.GetFiles(), m.GetFilesEnd() })
	}
	if err == nil {
		err = s.Send(waiting(&api.Job{Status: "PENDING", Stdin: r.GetStdin()}))
		if err == nil && r.GetDetach() {
			return nil
		}
		if err == nil { // the caller may have left already
			err = s.Send(started(&api.Job{Status: "RUNNING"}))
		}
		if err == nil {
			err = collect(func(m *api.JobInput) ([]byte, bool) { return m.GetStdin(), false })
		}
	}
	if err != io.EOF { // the caller's side did not end as it should
		p.cut <- err
		return err
	}
	for piece := range bytes.SplitAfterSeq(in.Bytes(), []byte{0}) {
		if err := s.Send(output(piece)); err != nil {
			return err
		}
	}
	return s.Send(ended(&api.Job{Status: "COMPLETED"}))
}

func (p *peer) CancelJob(_ context.Context, r *api.CancelJobRequest) (*api.CancelJobResponse, error) {
	return &api.CancelJobResponse{Job: &api.Job{Uuid: r.GetUuid(), Status: "CANCELED"}}, nil
}

func (p *peer) RerunJob(_ context.Context, r *api.RerunJobRequest) (*api.RunJobResponse, error) {
	return &api.RunJobResponse{Job: &api.Job{Uuid: "new", Status: "RUNNING", Command: r.GetUuid(), SecretEnvironment: r.GetSecretEnvironment()}}, nil
}

func (p *peer) PruneJobs(_ context.Context, r *api.PruneJobsRequest) (*api.PruneJobsResponse, error) {
	if !r.GetDryRun() || r.GetEndedBefore() == "" {
		return nil, status.Errorf(codes.Internal, "got %v", r)
	}
	return &api.PruneJobsResponse{DeletedCount: int32(len(r.GetLabels())), FreedBytes: 1 << 40}, nil
}

func (p *peer) GetJobFiles(r *api.GetJobFilesRequest, out grpc.ServerStreamingServer[api.DataChunk]) error {
	noSuch, _ := wire.ErrorToStatus(joblet.Errorf(joblet.NotFound, "nothing matches"))
	switch r.GetUuid() {
	case "none":
		return noSuch
	case "empty":
		return nil
	case "torn":
		if err := out.Send(&api.DataChunk{Payload: []byte("abc")}); err != nil {
			return err
		}
		return noSuch
	case "endless":
		for {
			if err := out.Send(&api.DataChunk{Payload: make([]byte, 1000)}); err != nil {
				p.left <- struct{}{}
				return err
			}
		}
	}
	for _, piece := range append([]string{""}, r.GetPatterns()...) {
		if err := out.Send(&api.DataChunk{Payload: []byte(piece)}); err != nil {
			return err
		}
	}
	return nil
}

// random returns n bytes that are the same each time.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b) // never fails
	return b
}

// archive writes a tar archive with small and large files.
func archive(w io.Writer) error {
	tw := tar.NewWriter(w)
	for i, size := range []int{0, 10, 3 * inputPiece, 5 << 20} {
		if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Mode: 0o644, Size: int64(size)}); err != nil {
			return err
		}
		if _, err := tw.Write(random(size)); err != nil {
			return err
		}
	}
	return tw.Close()
}

// TestSubmit: what is sent arrives whole and in order, whatever there is of it.
func TestSubmit(t *testing.T) {
	t.Parallel()
	c, _ := serve(t)
	var packed bytes.Buffer
	if err := archive(&packed); err != nil {
		t.Fatal(err)
	}
	stdin := random(6 << 20)
	for _, tt := range []struct {
		name  string
		kind  joblet.Stdin
		in    Input
		want  []byte
		files bool
	}{
		{name: "nothing"},
		{name: "files", in: Input{Files: archive}, want: packed.Bytes()},
		{name: "no bytes", in: Input{Files: func(io.Writer) error { return nil }}},
		{name: "stdin", kind: joblet.StdinStream, in: Input{Stdin: bytes.NewReader(stdin)}, want: stdin},
		{name: "end with data", kind: joblet.StdinFile, in: Input{Stdin: iotest.DataErrReader(bytes.NewReader(stdin))}, want: stdin},
		{name: "both", kind: joblet.StdinStream, in: Input{Files: archive, Stdin: bytes.NewReader(stdin)}, want: append(packed.Bytes(), stdin...)},
		{name: "no reader", kind: joblet.StdinStream},
		{name: "not asked for", in: Input{Stdin: iotest.ErrReader(errors.New("must not be read"))}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var got []byte
			var seen []string
			for event, err := range c.Submit(t.Context(), joblet.Spec{Command: "cat", Stdin: tt.kind}, tt.in, false) {
				if err != nil {
					t.Fatal(err)
				}
				switch e := event.(type) {
				case Output:
					got = append(got, e.Data...)
					continue
				case Waiting:
					if e.Job.State != joblet.Pending || e.Job.Spec.Stdin != tt.kind {
						t.Errorf("waiting: got %+v", e.Job)
					}
				}
				seen = append(seen, fmt.Sprintf("%T", event))
			}
			if s := strings.Join(seen, " "); s != "client.Waiting client.Started client.Ended" {
				t.Errorf("got %s", s)
			}
			if !bytes.Equal(got, tt.want) {
				t.Errorf("got %d bytes, which are not the %d sent", len(got), len(tt.want))
			}
		})
	}
}

func TestSubmitDetached(t *testing.T) {
	t.Parallel()
	c, _ := serve(t)
	for command, want := range map[string]string{"cat": "client.Waiting", "true": "client.Started"} {
		var seen []string
		for event, err := range c.Submit(t.Context(), joblet.Spec{Command: command}, Input{}, true) {
			if err != nil {
				t.Fatal(err)
			}
			seen = append(seen, fmt.Sprintf("%T", event))
		}
		if s := strings.Join(seen, " "); s != want {
			t.Errorf("%s: got %s", command, s)
		}
	}
}

// TestSubmitRefused: the daemon's word, not what sending into an ended call says.
func TestSubmitRefused(t *testing.T) {
	t.Parallel()
	c, _ := serve(t)
	endless := func(w io.Writer) error {
		for {
			if _, err := w.Write(make([]byte, 1000)); err != nil {
				return fmt.Errorf("pack: %w", err)
			}
		}
	}
	for name, in := range map[string]Input{
		"files":           {Files: endless},
		"files, no error": {Files: func(w io.Writer) error { _ = endless(w); return nil }},
		"stdin":           {Stdin: zeros{}},
	} {
		n := 0
		for _, err := range c.Submit(t.Context(), joblet.Spec{Command: "refuse", Stdin: joblet.StdinFile}, in, false) {
			if n++; joblet.KindOf(err) != joblet.InvalidArgument || err.Error() != "the archive leads out of /work" {
				t.Errorf("%s: got %v %v", name, joblet.KindOf(err), err)
			}
		}
		if n != 1 {
			t.Errorf("%s: %d events", name, n)
		}
	}
	tooLong := joblet.Spec{Command: strings.Repeat("x", maxMessage)}
	for _, err := range c.Submit(t.Context(), tooLong, Input{}, false) {
		if joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("too long: got %v", err)
		}
	}
	for _, err := range c.Submit(t.Context(), joblet.Spec{Command: "a", IdempotencyKey: "\xff"}, Input{}, false) {
		if joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("not UTF-8: got %v", err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestSubmitBrokenInput: input that cannot be read is the caller's error, and
// the daemon must not take it for the input's end.
func TestSubmitBrokenInput(t *testing.T) {
	t.Parallel()
	c, p := serve(t)
	broken := joblet.Errorf(joblet.PermissionDenied, "open x: permission denied")
	anEOF := fmt.Errorf("%w: %w", io.EOF, broken)
	part := func() io.Reader { return io.LimitReader(zeros{}, 2*window) } // so that the daemon has begun to read
	for _, tt := range []struct {
		name string
		in   Input
		part bool // of it is sent
	}{
		{"part of files", Input{Files: func(w io.Writer) error { return errors.Join(archive(w), broken) }}, true},
		{"files, EOF", Input{Files: func(w io.Writer) error { return errors.Join(archive(w), anEOF) }}, true},
		{"part of stdin", Input{Stdin: io.MultiReader(part(), iotest.ErrReader(broken))}, true},
		{"stdin, EOF", Input{Stdin: io.MultiReader(part(), iotest.ErrReader(anEOF))}, true},
		{"files, then stdin", Input{Files: archive, Stdin: iotest.ErrReader(broken)}, true},
		{"files", Input{Files: func(io.Writer) error { return broken }}, false},
		{"stdin", Input{Stdin: iotest.ErrReader(broken)}, false},
	} {
		var last error
		for _, err := range c.Submit(t.Context(), joblet.Spec{Command: "cat", Stdin: joblet.StdinStream}, tt.in, false) {
			last = err
		}
		if !errors.Is(last, broken) || joblet.KindOf(last) != joblet.PermissionDenied {
			t.Errorf("%s: got %v", tt.name, last)
		}
		if !tt.part {
			continue // perhaps the daemon heard nothing of it
		}
		if err := <-p.cut; status.Code(err) != codes.Canceled {
			t.Errorf("%s: the daemon got %v", tt.name, err)
		}
	}
}

// counter counts what is read from it.
type counter struct {
	io.Reader
	n atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// TestSubmitBackpressure: a job that does not read blocks its own input, and no other
// call on the connection.
func TestSubmitBackpressure(t *testing.T) {
	t.Parallel()
	c, p := serve(t)
	endless := &counter{Reader: zeros{}}
	checked := make(chan struct{})
	go func() {
		defer close(checked)
		defer func() { p.wake <- struct{}{} }()
		<-p.begun
		before := int64(0)
		for deadline := time.Now().Add(30 * time.Second); (before == 0 || before != endless.n.Load()) && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			before = endless.n.Load()
		}
		if n := endless.n.Load(); n == 0 || n > window {
			t.Errorf("%d bytes were read ahead", n)
		}
		if _, err := c.Cancel(t.Context(), "x"); err != nil {
			t.Error(err)
		}
	}()
	var last Event
	for event, err := range c.Submit(t.Context(), joblet.Spec{Command: "sleep", Stdin: joblet.StdinStream}, Input{Stdin: endless}, false) {
		if err != nil {
			t.Fatal(err)
		}
		last = event
	}
	<-checked
	if e, ok := last.(Ended); !ok || e.Job.State != joblet.Completed {
		t.Errorf("got %+v", last)
	}
}

// TestSubmitEarlyEnd: neither a job that ends before its input nor a loop that
// is left waits for a Read, and no goroutine stays once that returns. It counts
// all goroutines, so it runs alone.
func TestSubmitEarlyEnd(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("calls", func(t *testing.T) {
		c, p := serve(t)
		silent, typed := io.Pipe() // a terminal without input
		n := 0
		for event, err := range c.Submit(t.Context(), joblet.Spec{Command: "true", Stdin: joblet.StdinStream}, Input{Stdin: silent}, false) {
			if n++; err != nil {
				t.Fatal(err)
			}
			_, isEnd := event.(Ended)
			if isEnd != (n == 2) {
				t.Errorf("event %d: %T", n, event)
			}
		}
		typed.Write([]byte("too late"))

		silent, typed = io.Pipe()
		for range c.Submit(t.Context(), joblet.Spec{Command: "cat", Stdin: joblet.StdinStream}, Input{Stdin: silent}, false) {
			break
		}
		<-p.cut
		typed.Close()

		ctx, cancel := context.WithCancel(t.Context())
		packing, returned := make(chan struct{}), false
		go func() {
			<-packing
			cancel()
		}()
		for _, err := range c.Submit(ctx, joblet.Spec{Command: "cat"}, Input{Files: func(w io.Writer) error {
			close(packing)
			for {
				if _, err := w.Write(make([]byte, 1000)); err != nil {
					time.Sleep(10 * time.Millisecond)
					returned = true
					return err
				}
			}
		}}, false) {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		}
		if !returned {
			t.Error("Submit did not wait for Files")
		}
	})
	for deadline := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	c, p := serve(t)
	r, err := c.Files(t.Context(), "x", []string{"one ", "", "two"})
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(r, []byte("one two")); err != nil {
		t.Error(err)
	}
	r.Close()
	if r, err = c.Files(t.Context(), "empty", nil); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); len(got) != 0 || err != nil {
		t.Errorf("empty: got %q, %v", got, err)
	}
	if _, err := c.Files(t.Context(), "none", nil); joblet.KindOf(err) != joblet.NotFound {
		t.Errorf("none: got %v", err)
	}
	if r, err = c.Files(t.Context(), "torn", nil); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); string(got) != "abc" || joblet.KindOf(err) != joblet.NotFound {
		t.Errorf("torn: got %q, %v", got, err)
	}
	if r, err = c.Files(t.Context(), "endless", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 2500)); err != nil {
		t.Error(err)
	}
	r.Close()
	<-p.left
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, context.Canceled) {
		t.Errorf("closed: got %v", err)
	}
}

func TestLife(t *testing.T) {
	t.Parallel()
	c, _ := serve(t)
	if j, err := c.Cancel(t.Context(), "x"); err != nil || j.ID != "x" || j.State != joblet.Canceled {
		t.Errorf("cancel: got %+v, %v", j, err)
	}
	secrets := map[string]string{"TOKEN": "t"}
	if j, err := c.Rerun(t.Context(), "x", secrets); err != nil || j.ID != "new" || j.Spec.Command != "x" || !reflect.DeepEqual(j.Spec.SecretEnv, secrets) {
		t.Errorf("rerun: got %+v, %v", j, err)
	}
	f := joblet.Filter{EndedBefore: time.Now(), Labels: []joblet.LabelMatch{{Name: "a", Any: true}, {Name: "b"}}}
	if n, freed, err := c.Prune(t.Context(), f, true); n != 2 || freed != 1<<40 || err != nil {
		t.Errorf("prune: got %d, %d, %v", n, freed, err)
	}
	f.Name = "x"
	if _, _, err := c.Prune(t.Context(), f, true); joblet.KindOf(err) != joblet.InvalidArgument {
		t.Errorf("prune by name: got %v", err)
	}
	n := 0
	for event, err := range c.Follow(t.Context(), "scheduled", joblet.LogOptions{}) {
		if e, ok := event.(Waiting); !ok || err != nil || e.Job.State != joblet.Scheduled {
			t.Errorf("follow: got %+v, %v", event, err)
		}
		n++
		break
	}
	if n != 1 {
		t.Error("follow: no event")
	}
}
