package server

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/service"
	"github.com/joblet/joblet/internal/wire"
)

func (s *jobService) AttachJob(call grpc.BidiStreamingServer[api.JobInput, api.JobEvent]) error {
	ctx := call.Context()
	first, err := call.Recv()
	if err != nil {
		return err
	}
	r := first.GetAttach()
	if r == nil {
		return joblet.Errorf(joblet.InvalidArgument, "the first message must name the job")
	}
	opt, err := wire.AttachFromProto(r)
	if err != nil {
		return err
	}
	in := input{recv: call.Recv}
	return ended(call.Send)(s.jobs.Attach(ctx, identityOf(ctx), r.GetUuid(), opt, service.Attachment{
		Keys: in.keys, Follow: events(ctx, call.Send),
		Attached: func(a service.Attached) error {
			return call.Send(&api.JobEvent{Event: &api.JobEvent_Attached{Attached: &api.JobAttached{LogBytes: a.LogBytes, Size: wire.WindowToProto(a.Window)}}})
		},
	}))
}

func (s *jobService) ExecJob(call grpc.BidiStreamingServer[api.ExecInput, api.ExecEvent]) error {
	ctx := call.Context()
	first, err := call.Recv()
	if err != nil {
		return err
	}
	r := first.GetRun()
	if r == nil {
		return joblet.Errorf(joblet.InvalidArgument, "the first message must contain the command")
	}
	exit, err := s.jobs.Exec(ctx, identityOf(ctx), r.GetUuid(), wire.ExecFromProto(r), service.Execution{
		Started: func(hostPID int) error {
			if err := call.SetHeader(metadata.Pairs(wire.ExecAnswers, "1")); err != nil {
				return err
			}
			return call.Send(&api.ExecEvent{Event: &api.ExecEvent_Started{Started: &api.ExecStarted{HostPid: int64(hostPID)}}})
		},
		Input: func() (service.ExecInput, error) { return execInput(call.Recv()) },
		Output: func(stream int32, p []byte) error {
			return call.Send(&api.ExecEvent{Event: &api.ExecEvent_Output{Output: &api.ExecOutput{Stream: stream, Data: p}}})
		},
		Passed: func() error {
			return call.Send(&api.ExecEvent{Event: &api.ExecEvent_Output{Output: &api.ExecOutput{}}})
		},
	})
	if err != nil {
		return err
	}
	return call.Send(&api.ExecEvent{Event: &api.ExecEvent_Ended{Ended: wire.ExitToProto(&exit)}})
}

func execInput(m *api.ExecInput, err error) (in service.ExecInput, _ error) {
	switch m := m.GetInput().(type) {
	case *api.ExecInput_Stdin:
		in.Stdin, in.EOF = m.Stdin, len(m.Stdin) == 0
	case *api.ExecInput_Resize:
		in.Window = wire.WindowFromProto(m.Resize)
	case *api.ExecInput_Signal:
		signal := int(m.Signal)
		in.Signal = &signal
	}
	return in, err
}
