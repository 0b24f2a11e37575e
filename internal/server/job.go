package server

import (
	"context"
	"fmt"
	"path"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/hostinfo"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/server/admission"
	"github.com/joblet/joblet/internal/service"
	"github.com/joblet/joblet/internal/wire"
)

const (
	maxListed = 10_000        // jobs in the one message of ListJobs
	maxList   = 4<<20 - 1<<10 // bytes of that message: clients receive 4 MiB by default

	// firstShare is what a job takes at most of a list that has outgrown maxList at
	// first, leastShare when all other jobs of the list take as much.
	firstShare = 64 << 10
	leastShare = maxList / maxListed
)

// nodeID is what the messages of jobs, and the status of the host, call this host.
var nodeID = sync.OnceValue(hostinfo.NodeID)

// jobToProto returns a job of this host as lists show it.
func jobToProto(job joblet.Job) *api.Job {
	p := wire.JobToProto(job)
	p.NodeId = nodeID()
	return p
}

type jobService struct {
	api.UnimplementedJobServiceServer
	jobs    *service.Jobs
	service *service.Service
}

// jobServiceDesc is what protoc makes, but that RunJob is served as a stream of one
// message, which is the same to clients: so a call whose request does not get here
// as a whole can be told why.
func jobServiceDesc() *grpc.ServiceDesc {
	desc := api.JobService_ServiceDesc
	name := path.Base(api.JobService_RunJob_FullMethodName)
	desc.Methods = slices.DeleteFunc(slices.Clone(desc.Methods), func(m grpc.MethodDesc) bool { return m.MethodName == name })
	// As a stream of neither side it would pass by the interceptor, and everybody might call it.
	desc.Streams = append(slices.Clone(desc.Streams), grpc.StreamDesc{StreamName: name, Handler: runJob, ServerStreams: true})
	return &desc
}

func runJob(srv any, call grpc.ServerStream) error {
	r := &api.RunJobRequest{}
	if err := call.RecvMsg(r); err != nil {
		return err
	}
	out, err := srv.(*jobService).RunJob(call.Context(), r)
	if err != nil {
		return err
	}
	return call.SendMsg(out)
}

// submission returns the job that r asks for.
func submission(r *api.RunJobRequest) (service.Submission, error) {
	spec, err := wire.SpecFromProto(r)
	spec.Limits = wire.LimitsFromProto(r.GetLimits())
	return service.Submission{Spec: spec, Public: wire.PublicLimits(r)}, err
}

// submit starts the job that r asks for, which has all that comes along with it.
func (s *jobService) submit(ctx context.Context, r *api.RunJobRequest, keep bool, follow *service.Output) (joblet.Job, error) {
	sub, err := submission(r)
	if err != nil {
		return joblet.Job{}, err
	}
	sub.Keep, sub.Follow = keep, follow
	if len(r.GetUploads()) > 0 {
		archive := uploads(r.GetUploads())
		defer archive.Close()
		sub.Files, r.Uploads = archive, nil // not to be held while the job is followed
	}
	return s.jobs.Submit(ctx, identityOf(ctx), sub)
}

func (s *jobService) RunJob(ctx context.Context, r *api.RunJobRequest) (*api.RunJobResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	job, err := s.submit(ctx, r, len(md.Get(wire.Refuse)) == 0, nil)
	if err != nil {
		return nil, err
	}
	return wire.RunToProto(jobToProto(job)), nil
}

func (s *jobService) RunJobAttached(r *api.RunJobRequest, out grpc.ServerStreamingServer[api.JobEvent]) error {
	follow := events(out.Context(), out.Send)
	return ended(out.Send)(s.submit(out.Context(), r, false, &follow))
}

func (s *jobService) FollowJob(r *api.FollowJobRequest, out grpc.ServerStreamingServer[api.JobEvent]) error {
	opt, err := wire.LogOptionsFromProto(r)
	if err != nil {
		return err
	}
	ctx := out.Context()
	return ended(out.Send)(s.jobs.Follow(ctx, identityOf(ctx), r.GetUuid(), opt, events(ctx, out.Send)))
}

// events sends what happens to a job that is followed.
func events(ctx context.Context, send func(*api.JobEvent) error) service.Output {
	return service.Output{Gate: paced(ctx), Emit: func(e service.Event) error {
		if e.Job != nil {
			return send(jobEvent(*e.Job))
		}
		return send(chunkToProto(e.Chunk))
	}}
}

// ended sends the last event of a job that was followed.
func ended(send func(*api.JobEvent) error) func(joblet.Job, error) error {
	return func(job joblet.Job, err error) error {
		if err != nil {
			return err
		}
		return send(&api.JobEvent{Event: &api.JobEvent_Ended{Ended: jobToProto(job)}})
	}
}

// paced lets pieces of output through for which a call has room.
func paced(ctx context.Context) func(yield func()) (int, error) {
	p := admission.ResponseOf(ctx)
	return func(yield func()) (int, error) {
		size := p.Piece()
		return size, p.Reserve(ctx, size+admission.PieceHead, yield)
	}
}

// jobEvent says that a job waits or runs.
func jobEvent(job joblet.Job) *api.JobEvent {
	p := jobToProto(job)
	switch {
	case job.State.Final():
		return &api.JobEvent{Event: &api.JobEvent_Ended{Ended: p}}
	case job.State.Alive():
		return &api.JobEvent{Event: &api.JobEvent_Started{Started: p}}
	}
	return &api.JobEvent{Event: &api.JobEvent_Waiting{Waiting: p}}
}

// chunkToProto returns a piece of output, or a gap in it, as an event. It refers
// to c.Data, which Send no longer needs when it returns.
func chunkToProto(c logstore.Chunk) *api.JobEvent {
	if c.Dropped > 0 {
		return &api.JobEvent{Event: &api.JobEvent_Gap{Gap: &api.JobLogGap{Offset: c.Offset - c.Dropped, Length: c.Dropped}}}
	}
	return &api.JobEvent{Event: &api.JobEvent_Output{Output: &api.JobOutput{
		Stream: int32(c.Stream), Offset: c.Offset, TimeNs: c.Time.UnixNano(), Data: c.Data,
	}}}
}

func (s *jobService) GetJobLogs(r *api.GetJobLogsRequest, out grpc.ServerStreamingServer[api.DataChunk]) error {
	opt, err := wire.LogOptionsFromProto(r)
	if err != nil {
		return err
	}
	ctx := out.Context()
	_, err = s.jobs.Follow(ctx, identityOf(ctx), r.GetUuid(), opt, service.Output{Gate: paced(ctx), Emit: func(e service.Event) error {
		if len(e.Chunk.Data) == 0 {
			return nil // DataChunk has no way to tell a gap, nor anything else
		}
		return out.Send(&api.DataChunk{Payload: e.Chunk.Data})
	}})
	return err
}

func (s *jobService) GetJobStatus(ctx context.Context, r *api.GetJobStatusRequest) (*api.GetJobStatusResponse, error) {
	job, err := s.jobs.Show(ctx, identityOf(ctx), r.GetUuid())
	if err != nil {
		return nil, err
	}
	return wire.StatusToProto(jobToProto(job)), nil
}

func (s *jobService) ListJobs(ctx context.Context, _ *api.EmptyRequest) (*api.Jobs, error) {
	var l jobList
	if err := s.jobs.List(ctx, identityOf(ctx), joblet.Filter{Limit: maxListed}, nil, func(job joblet.Job) error {
		l.add(jobToProto(job))
		return nil
	}); err != nil {
		return nil, err
	}
	return &api.Jobs{Jobs: l.jobs}, nil
}

// jobList is the one message of ListJobs. When it outgrows maxList, the jobs that
// take most are shortened, until it does not.
type jobList struct {
	jobs  []*api.Job
	size  int
	share int // of the message, that a job takes at most; 0: no bound
}

func (l *jobList) add(p *api.Job) {
	if l.share > 0 {
		shorten(p, l.share)
	}
	l.jobs, l.size = append(l.jobs, p), l.size+entrySize(p)
	for l.size > maxList && l.share != leastShare {
		if l.share == 0 {
			l.share = firstShare
		} else {
			l.share = max(l.share/2, leastShare)
		}
		l.size = 0
		for _, p := range l.jobs {
			shorten(p, l.share)
			l.size += entrySize(p)
		}
	}
}

// entrySize is what a job takes of a list.
func entrySize(p *api.Job) int {
	return protowire.SizeTag(1) + protowire.SizeBytes(proto.Size(p))
}

// shorten leaves of p what takes at most a share, no less than leastShare, of a list:
// all of it, all but the environment, the outline, or what every list shows.
func shorten(p *api.Job, share int) {
	if entrySize(p) <= share {
		return
	}
	p.Environment, p.SecretEnvironment, p.EnvironmentBytes, p.SecretEnvironmentBytes = nil, nil, nil, nil
	if entrySize(p) <= share {
		return
	}
	least := &api.Job{
		Uuid: p.Uuid, Name: p.Name, Status: p.Status, NodeId: p.NodeId, Runtime: p.Runtime,
		ScheduledTime: p.ScheduledTime, StartTime: p.StartTime, EndTime: p.EndTime, ExitCode: p.ExitCode,
	}
	outline := proto.CloneOf(least)
	outline.Command = joblet.ShortenTo(p.Command, 256)
	outline.OldName, outline.Owner, outline.Attempt, outline.Parent, outline.CreatedTime = p.OldName, p.Owner, p.Attempt, p.Parent, p.CreatedTime
	outline.StartTimeNs, outline.EndTimeNs, outline.ScheduledTimeNs = p.StartTimeNs, p.EndTimeNs, p.ScheduledTimeNs
	outline.Exit, outline.Failure, outline.OutOfMemory = p.Exit, p.Failure, p.OutOfMemory
	outline.MaxCpu, outline.MaxMemory, outline.MaxIoBps = p.MaxCpu, p.MaxMemory, p.MaxIoBps
	if entrySize(outline) > share {
		least.Command = joblet.ShortenTo(p.Command, 64)
		outline = least
	}
	proto.Reset(p)
	proto.Merge(p, outline)
}

func (s *jobService) QueryJobs(r *api.QueryJobsRequest, out grpc.ServerStreamingServer[api.Jobs]) error {
	f, err := wire.FilterFromProto(r)
	if err != nil {
		return err
	}
	ctx := out.Context()
	reply := admission.ResponseOf(ctx)
	batch, size, most := &api.Jobs{}, 0, reply.Piece()
	send := func() error {
		if len(batch.Jobs) == 0 {
			return nil
		}
		err := out.Send(batch)
		batch, size = &api.Jobs{}, 0
		return err
	}
	read := func() (int, error) {
		if err := send(); err != nil {
			return 0, err
		}
		return most, reply.Reserve(ctx, most+admission.PieceHead, nil)
	}
	if err := s.jobs.List(ctx, identityOf(ctx), f, read, func(job joblet.Job) error {
		p := jobToProto(job)
		n := proto.Size(p)
		if size+n > most {
			if err := send(); err != nil {
				return err
			}
		}
		batch.Jobs, size = append(batch.Jobs, p), size+n
		return nil
	}); err != nil {
		return err
	}
	return send()
}

func (s *jobService) StopJob(ctx context.Context, r *api.StopJobRequest) (*api.StopJobResponse, error) {
	opt, err := wire.StopFromProto(r)
	if err != nil {
		return nil, err
	}
	job, err := s.jobs.Stop(ctx, identityOf(ctx), r.GetUuid(), opt)
	if err != nil {
		return nil, err
	}
	p := jobToProto(job)
	answer := &api.StopJobResponse{Uuid: p.Uuid, Status: p.Status, EndTime: p.EndTime, ExitCode: p.ExitCode, Job: p}
	if !job.State.Final() {
		answer.Status = joblet.Stopping.String() // of one that has not begun to run, too
	}
	return answer, nil
}

func (s *jobService) CancelJob(ctx context.Context, r *api.CancelJobRequest) (*api.CancelJobResponse, error) {
	job, err := s.jobs.Cancel(ctx, identityOf(ctx), r.GetUuid())
	if err != nil {
		return nil, err
	}
	return &api.CancelJobResponse{Uuid: job.ID, Status: job.State.String(), Job: jobToProto(job)}, nil
}

func (s *jobService) SignalJob(ctx context.Context, r *api.SignalJobRequest) (*api.SignalJobResponse, error) {
	sig, err := wire.SignalFromProto(r)
	if err != nil {
		return nil, err
	}
	if err := s.jobs.Signal(ctx, identityOf(ctx), r.GetUuid(), sig, r.GetDefaultAction()); err != nil {
		return nil, err
	}
	return &api.SignalJobResponse{}, nil
}

func (s *jobService) WaitJob(ctx context.Context, r *api.WaitJobRequest) (*api.WaitJobResponse, error) {
	job, err := s.jobs.Wait(ctx, identityOf(ctx), r.GetUuid())
	if err != nil {
		return nil, err
	}
	return &api.WaitJobResponse{Job: jobToProto(job)}, nil
}

func (s *jobService) DeleteJob(ctx context.Context, r *api.DeleteJobRequest) (*api.DeleteJobResponse, error) {
	id, err := s.jobs.Delete(ctx, identityOf(ctx), r.GetUuid())
	if err != nil {
		return nil, err
	}
	return &api.DeleteJobResponse{Uuid: id, Success: true, Message: "deleted"}, nil
}

// DeleteAllJobs deletes every job that has ended.
func (s *jobService) DeleteAllJobs(ctx context.Context, _ *api.DeleteAllJobsRequest) (*api.DeleteAllJobsResponse, error) {
	deleted, skipped, err := s.jobs.DeleteAll(ctx, identityOf(ctx))
	if err != nil {
		return nil, err
	}
	return &api.DeleteAllJobsResponse{
		Success: true, DeletedCount: int32(deleted), SkippedCount: int32(skipped),
		Message: fmt.Sprintf("%d jobs deleted, %d skipped as they have not ended", deleted, skipped),
	}, nil
}

func (s *jobService) PruneJobs(ctx context.Context, r *api.PruneJobsRequest) (*api.PruneJobsResponse, error) {
	f, err := wire.PruneFromProto(r)
	if err != nil {
		return nil, err
	}
	deleted, freed, err := s.jobs.Prune(ctx, identityOf(ctx), f, r.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &api.PruneJobsResponse{DeletedCount: int32(deleted), FreedBytes: freed}, nil
}

func (s *jobService) RerunJob(ctx context.Context, r *api.RerunJobRequest) (*api.RunJobResponse, error) {
	job, err := s.jobs.Rerun(ctx, identityOf(ctx), r.GetUuid(), wire.SecretsFromProto(r))
	if err != nil {
		return nil, err
	}
	return wire.RunToProto(jobToProto(job)), nil
}

func (s *jobService) StreamJobMetrics(r *api.StreamJobMetricsRequest, out grpc.ServerStreamingServer[api.JobMetricsEvent]) error {
	interval, err := wire.IntervalFromProto(r)
	if err != nil {
		return err
	}
	return s.jobs.Watch(out.Context(), identityOf(out.Context()), r.GetJobUuid(), interval, !r.GetNoReplay(), samples(out))
}

func (s *jobService) GetJobMetrics(r *api.GetJobMetricsRequest, out grpc.ServerStreamingServer[api.JobMetricsEvent]) error {
	from, to, limit, err := wire.ValidRange(r)
	if err != nil {
		return err
	}
	return s.jobs.History(out.Context(), identityOf(out.Context()), r.GetJobUuid(), from, to, limit, samples(out))
}

// samples sends samples of what a job takes.
func samples(out grpc.ServerStreamingServer[api.JobMetricsEvent]) service.Samples {
	reply := admission.ResponseOf(out.Context())
	return service.Samples{
		Ready:   func() error { return reply.Reserve(out.Context(), admission.PieceHead, nil) },
		Release: reply.Release,
		Emit:    func(id string, sample joblet.Sample) error { return out.Send(wire.SampleToProto(id, sample)) },
	}
}

func (s *jobService) ListJobProcesses(ctx context.Context, r *api.ListJobProcessesRequest) (*api.ListJobProcessesResponse, error) {
	all, err := s.jobs.Processes(ctx, identityOf(ctx), r.GetUuid())
	if err != nil {
		return nil, err
	}
	return wire.ProcessesToProto(all), nil
}

func (s *jobService) PauseJob(ctx context.Context, r *api.PauseJobRequest) (*api.PauseJobResponse, error) {
	job, err := s.jobs.Pause(ctx, identityOf(ctx), r.GetUuid())
	if err != nil {
		return nil, err
	}
	return &api.PauseJobResponse{Job: jobToProto(job)}, nil
}

func (s *jobService) ResumeJob(ctx context.Context, r *api.ResumeJobRequest) (*api.ResumeJobResponse, error) {
	job, err := s.jobs.Resume(ctx, identityOf(ctx), r.GetUuid())
	if err != nil {
		return nil, err
	}
	return &api.ResumeJobResponse{Job: jobToProto(job)}, nil
}

func (s *jobService) UpdateJob(ctx context.Context, r *api.UpdateJobRequest) (*api.UpdateJobResponse, error) {
	job, err := s.jobs.Update(ctx, identityOf(ctx), r.GetUuid(), wire.LimitsFromProto(r.GetLimits()))
	if err != nil {
		return nil, err
	}
	return &api.UpdateJobResponse{Job: jobToProto(job)}, nil
}

func (s *jobService) StreamJobTelematics(_ *api.StreamJobTelematicsRequest, out grpc.ServerStreamingServer[api.TelematicsEvent]) error {
	return s.service.Unbuilt(out.Context(), identityOf(out.Context()), service.ReadTelemetry, "telematics", "")
}

func (s *jobService) GetJobTelematics(_ *api.GetJobTelematicsRequest, out grpc.ServerStreamingServer[api.TelematicsEvent]) error {
	return s.service.Unbuilt(out.Context(), identityOf(out.Context()), service.ReadTelemetry, "telematics", "")
}
