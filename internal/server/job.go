package server

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/hostinfo"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/server/admission"
	"github.com/joblet/joblet/internal/supervisor"
	"github.com/joblet/joblet/internal/wire"
)

const (
	maxListed = 10_000        // jobs in the one message of ListJobs
	maxList   = 4<<20 - 1<<10 // bytes of that message: clients receive 4 MiB by default

	// firstShare is what a job takes at most of a list that has outgrown maxList at
	// first, leastShare when all other jobs of the list take as much.
	firstShare = 64 << 10
	leastShare = maxList / maxListed

	historyBatch = 100 // samples that GetJobMetrics holds

	// stopAnswer is after what time StopJob answers at the latest: existing clients
	// wait for 10 s.
	stopAnswer = 8 * time.Second
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
	sup     *supervisor.Supervisor
	srv     *Server
	windows windows
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

// spec returns the job that r asks for, with limits of the public API as this host can
// give them.
func (s *jobService) spec(ctx context.Context, r *api.RunJobRequest) (joblet.Spec, error) {
	spec, err := wire.SpecFromProto(r)
	if err != nil {
		return spec, err
	}
	public, warnings, err := s.sup.Fit(wire.PublicLimits(r))
	if err != nil {
		return spec, err
	}
	spec.Limits, spec.Warnings = wire.LimitsFromProto(r.GetLimits()).Or(public), warnings
	return spec, s.srv.checkDependencies(ctx, &spec)
}

// submit runs the job that r asks for. Whether one whose command cannot be run is kept is
// for run to say.
func (s *jobService) submit(ctx context.Context, r *api.RunJobRequest, run runFunc) (joblet.Job, error) {
	spec, err := s.spec(ctx, r)
	if err != nil {
		return joblet.Job{}, err
	}
	var staged *supervisor.Staged
	if spec.Stdin != joblet.StdinNone {
		return joblet.Job{}, joblet.Errorf(joblet.InvalidArgument, "standard input: only SubmitJob can carry it")
	}
	if err := mayHave(callerOf(ctx), spec.Security); err != nil {
		return joblet.Job{}, err
	}
	if len(r.GetUploads()) > 0 {
		staged = s.sup.Stage(callerOf(ctx).name())
		archive := uploads(r.GetUploads())
		defer archive.Close()
		if err := staged.Files(archive); err != nil {
			return joblet.Job{}, joinDiscard(err, staged)
		}
		r.Uploads = nil // not to be held as long as somebody follows the job
	}
	return run(ctx, spec, callerOf(ctx).name(), staged)
}

// runFunc is Supervisor.Submit or Supervisor.Record.
type runFunc func(ctx context.Context, spec joblet.Spec, owner string, input *supervisor.Staged) (joblet.Job, error)

func (s *jobService) RunJob(ctx context.Context, r *api.RunJobRequest) (*api.RunJobResponse, error) {
	run := s.sup.Record
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get(wire.Refuse)) > 0 {
		run = s.sup.Submit
	}
	job, err := s.submit(ctx, r, run)
	if err != nil {
		return nil, err
	}
	return wire.RunToProto(jobToProto(job)), nil
}

func (s *jobService) RunJobAttached(r *api.RunJobRequest, out grpc.ServerStreamingServer[api.JobEvent]) error {
	job, err := s.submit(out.Context(), r, s.sup.Submit)
	if err != nil {
		return err
	}
	return s.follow(out.Context(), job.ID, joblet.LogOptions{Follow: true}, out.Send)
}

func (s *jobService) FollowJob(r *api.FollowJobRequest, out grpc.ServerStreamingServer[api.JobEvent]) error {
	opt, err := wire.LogOptionsFromProto(r)
	if err != nil {
		return err
	}
	return s.follow(out.Context(), r.GetUuid(), opt, out.Send)
}

func (s *jobService) follow(ctx context.Context, id string, opt joblet.LogOptions, send func(*api.JobEvent) error) error {
	job, err := s.sup.Follow(ctx, id, opt, paced(ctx), func(e supervisor.Event) error {
		if e.Job != nil {
			return send(jobEvent(*e.Job))
		}
		return send(chunkToProto(e.Chunk))
	})
	if err != nil {
		return err
	}
	return send(&api.JobEvent{Event: &api.JobEvent_Ended{Ended: jobToProto(job)}})
}

// paced lets pieces of output through for which a call has room.
func paced(ctx context.Context) supervisor.Gate {
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
	_, err = s.sup.Follow(out.Context(), r.GetUuid(), opt, paced(out.Context()), func(e supervisor.Event) error {
		if len(e.Chunk.Data) == 0 {
			return nil // DataChunk has no way to tell a gap, nor anything else
		}
		return out.Send(&api.DataChunk{Payload: e.Chunk.Data})
	})
	return err
}

func (s *jobService) GetJobStatus(ctx context.Context, r *api.GetJobStatusRequest) (*api.GetJobStatusResponse, error) {
	job, err := s.sup.Measured(ctx, r.GetUuid())
	if err != nil {
		return nil, err
	}
	return wire.StatusToProto(jobToProto(job)), nil
}

func (s *jobService) ListJobs(ctx context.Context, _ *api.EmptyRequest) (*api.Jobs, error) {
	var l jobList
	if err := s.sup.EachJob(ctx, joblet.Filter{Limit: maxListed}, nil, func(job joblet.Job) error {
		job, _ = s.srv.shown(ctx, joblet.Filter{}, job)
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
	outline.Command = cutCommand(p.Command, 256)
	outline.OldName, outline.Owner, outline.Attempt, outline.Parent, outline.CreatedTime = p.OldName, p.Owner, p.Attempt, p.Parent, p.CreatedTime
	outline.StartTimeNs, outline.EndTimeNs, outline.ScheduledTimeNs = p.StartTimeNs, p.EndTimeNs, p.ScheduledTimeNs
	outline.Exit, outline.Failure, outline.OutOfMemory = p.Exit, p.Failure, p.OutOfMemory
	outline.MaxCpu, outline.MaxMemory, outline.MaxIoBps = p.MaxCpu, p.MaxMemory, p.MaxIoBps
	if entrySize(outline) > share {
		least.Command = cutCommand(p.Command, 64)
		outline = least
	}
	proto.Reset(p)
	proto.Merge(p, outline)
}

// cutCommand returns the beginning of a command that is longer than most.
func cutCommand(command string, most int) string {
	if len(command) <= most {
		return command
	}
	return strings.ToValidUTF8(command[:most], "") + "…"
}

// errEnough ends a list that has as many jobs as were wanted.
var errEnough = errors.New("enough")

func (s *jobService) QueryJobs(r *api.QueryJobsRequest, out grpc.ServerStreamingServer[api.Jobs]) error {
	f, err := wire.FilterFromProto(r)
	if err != nil {
		return err
	}
	for _, ref := range []*string{&f.Parent, &f.Before} {
		if *ref == "" {
			continue
		}
		job, err := s.sup.Find(out.Context(), *ref, callerOf(out.Context()).name())
		if err != nil {
			return err
		}
		*ref = job.ID
	}
	left := f.Limit
	if len(f.Labels) > 0 && !mayAll(callerOf(out.Context()), reads) {
		f.Limit = 0 // of those that pass by their labels not all may be shown
	}
	reply := admission.ResponseOf(out.Context())
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
		return most, reply.Reserve(out.Context(), most+admission.PieceHead, nil)
	}
	if err := s.sup.EachJob(out.Context(), f, read, func(job joblet.Job) error {
		job, ok := s.srv.shown(out.Context(), f, job)
		if !ok {
			return nil
		}
		p := jobToProto(job)
		n := proto.Size(p)
		if size+n > most {
			if err := send(); err != nil {
				return err
			}
		}
		batch.Jobs, size = append(batch.Jobs, p), size+n
		if left--; left == 0 {
			return errEnough
		}
		return nil
	}); err != nil && !errors.Is(err, errEnough) {
		return err
	}
	return send()
}

func (s *jobService) StopJob(ctx context.Context, r *api.StopJobRequest) (*api.StopJobResponse, error) {
	opt, err := wire.StopFromProto(r)
	if err != nil {
		return nil, err
	}
	job, err := s.sup.StopWithin(ctx, r.GetUuid(), opt, stopAnswer)
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
	job, err := s.sup.Cancel(ctx, r.GetUuid())
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
	if err := s.sup.Signal(ctx, r.GetUuid(), syscall.Signal(sig), r.GetDefaultAction()); err != nil {
		return nil, err
	}
	return &api.SignalJobResponse{}, nil
}

func (s *jobService) WaitJob(ctx context.Context, r *api.WaitJobRequest) (*api.WaitJobResponse, error) {
	job, err := s.sup.Wait(ctx, r.GetUuid())
	if err != nil {
		return nil, err
	}
	return &api.WaitJobResponse{Job: jobToProto(job)}, nil
}

func (s *jobService) DeleteJob(ctx context.Context, r *api.DeleteJobRequest) (*api.DeleteJobResponse, error) {
	if err := s.sup.Delete(ctx, r.GetUuid()); err != nil {
		return nil, err
	}
	return &api.DeleteJobResponse{Uuid: r.GetUuid(), Success: true, Message: "deleted"}, nil
}

// DeleteAllJobs deletes every job that has ended.
func (s *jobService) DeleteAllJobs(ctx context.Context, _ *api.DeleteAllJobsRequest) (*api.DeleteAllJobsResponse, error) {
	f := own(ctx, joblet.Filter{})
	deleted, _, err := s.sup.Prune(ctx, f, false)
	if err != nil {
		return nil, err
	}
	skipped := s.sup.ActiveOf(f.Owner)
	return &api.DeleteAllJobsResponse{
		Success: true, DeletedCount: int32(deleted), SkippedCount: int32(skipped),
		Message: fmt.Sprintf("%d jobs deleted, %d have not ended", deleted, skipped),
	}, nil
}

func (s *jobService) PruneJobs(ctx context.Context, r *api.PruneJobsRequest) (*api.PruneJobsResponse, error) {
	f, err := wire.PruneFromProto(r)
	if err != nil {
		return nil, err
	}
	deleted, freed, err := s.sup.Prune(ctx, own(ctx, f), r.GetDryRun())
	if err != nil {
		return nil, err
	}
	return &api.PruneJobsResponse{DeletedCount: int32(deleted), FreedBytes: freed}, nil
}

func (s *jobService) RerunJob(ctx context.Context, r *api.RerunJobRequest) (*api.RunJobResponse, error) {
	job, err := s.sup.Rerun(ctx, r.GetUuid(), callerOf(ctx).name(), wire.SecretsFromProto(r))
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
	var next time.Time
	replay := func() (err error) {
		if !r.GetNoReplay() {
			next, err = s.replay(out, r.GetJobUuid(), next, time.Time{}, 0)
		}
		return err
	}
	if err := replay(); err != nil {
		return err
	}
	watched := false
	if err := s.sup.Watch(out.Context(), r.GetJobUuid(), interval, func(id string, sample joblet.Sample) error {
		watched = true
		return out.Send(wire.SampleToProto(id, sample))
	}); err != nil || watched {
		return err
	}
	return replay() // what was kept until the job ended, which was before it could be watched
}

func (s *jobService) GetJobMetrics(r *api.GetJobMetricsRequest, out grpc.ServerStreamingServer[api.JobMetricsEvent]) error {
	from, to, limit, err := wire.ValidRange(r)
	if err != nil {
		return err
	}
	_, err = s.replay(out, r.GetJobUuid(), from, to, limit)
	return err
}

// replay sends the samples that were kept of a job between two moments, the newest
// limit of them, and returns from when on there are more.
func (s *jobService) replay(out grpc.ServerStreamingServer[api.JobMetricsEvent], id string, from, to time.Time, limit int) (next time.Time, err error) {
	reply := admission.ResponseOf(out.Context())
	defer reply.Release()
	for left := -1; left != 0; {
		// The samples are read again for each batch, not held until there is room for them.
		if err := reply.Reserve(out.Context(), admission.PieceHead, nil); err != nil {
			return from, err
		}
		all, err := s.sup.History(out.Context(), id, from, to, limit)
		if err != nil {
			return from, err
		}
		if left < 0 {
			left = len(all)
		}
		batch := slices.Clone(all[:min(len(all), left, historyBatch)])
		if len(batch) == 0 {
			break
		}
		for _, sample := range batch {
			if err := out.Send(wire.SampleToProto(id, sample)); err != nil {
				return from, err
			}
		}
		left -= len(batch)
		from, limit = batch[len(batch)-1].Time.Add(1), 0
	}
	return from, nil
}

func (s *jobService) ListJobProcesses(ctx context.Context, r *api.ListJobProcessesRequest) (*api.ListJobProcessesResponse, error) {
	all, err := s.sup.Processes(ctx, r.GetUuid())
	if err != nil {
		return nil, err
	}
	return wire.ProcessesToProto(all), nil
}

func (s *jobService) PauseJob(ctx context.Context, r *api.PauseJobRequest) (*api.PauseJobResponse, error) {
	job, err := s.sup.Pause(ctx, r.GetUuid())
	if err != nil {
		return nil, err
	}
	return &api.PauseJobResponse{Job: jobToProto(job)}, nil
}

func (s *jobService) ResumeJob(ctx context.Context, r *api.ResumeJobRequest) (*api.ResumeJobResponse, error) {
	job, err := s.sup.Resume(ctx, r.GetUuid())
	if err != nil {
		return nil, err
	}
	return &api.ResumeJobResponse{Job: jobToProto(job)}, nil
}

func (s *jobService) UpdateJob(ctx context.Context, r *api.UpdateJobRequest) (*api.UpdateJobResponse, error) {
	job, err := s.sup.Update(ctx, r.GetUuid(), wire.LimitsFromProto(r.GetLimits()))
	if err != nil {
		return nil, err
	}
	return &api.UpdateJobResponse{Job: jobToProto(job)}, nil
}

func (s *jobService) StreamJobTelematics(*api.StreamJobTelematicsRequest, grpc.ServerStreamingServer[api.TelematicsEvent]) error {
	return errUnbuilt("telematics")
}

func (s *jobService) GetJobTelematics(*api.GetJobTelematicsRequest, grpc.ServerStreamingServer[api.TelematicsEvent]) error {
	return errUnbuilt("telematics")
}
