package server

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/runtimes"
	"github.com/joblet/joblet/internal/supervisor"
)

const (
	// maxRecipe bounds the text of a recipe.
	maxRecipe = 1 << 20
	// maxTestOutput is how much of a test's output is kept: the end of it.
	maxTestOutput = 64 << 10
	// testTimeout ends a runtime's test that does not end by itself.
	testTimeout = 10 * time.Minute
)

type runtimeService struct {
	api.UnimplementedRuntimeServiceServer
	sup *supervisor.Supervisor
	log *slog.Logger
}

func (s *runtimeService) ListRuntimes(context.Context, *api.EmptyRequest) (*api.ListRuntimesResponse, error) {
	all, err := s.sup.Runtimes().List()
	if err != nil {
		return nil, err
	}
	out := &api.ListRuntimesResponse{Runtimes: make([]*api.RuntimeInfo, len(all))}
	for i, rt := range all {
		out.Runtimes[i] = runtimeToProto(rt)
	}
	return out, nil
}

func (s *runtimeService) GetRuntimeInfo(_ context.Context, r *api.GetRuntimeInfoRequest) (*api.GetRuntimeInfoResponse, error) {
	rt, err := s.sup.Runtimes().Find(r.GetRuntime())
	if joblet.KindOf(err) == joblet.NotFound {
		return &api.GetRuntimeInfoResponse{}, nil // the answer that this API has for it
	}
	if err != nil {
		return nil, err
	}
	return &api.GetRuntimeInfoResponse{Found: true, Runtime: runtimeToProto(rt)}, nil
}

func (s *runtimeService) RemoveRuntime(_ context.Context, r *api.RemoveRuntimeRequest) (*api.RemoveRuntimeResponse, error) {
	name := r.GetRuntime()
	if joblet.ValidName("", name) != nil { // a damaged one is removed by its name alone
		rt, err := s.sup.Runtimes().Find(name)
		if err != nil {
			return nil, err
		}
		name = rt.Name
	}
	freed, err := s.sup.Runtimes().Remove(name, s.sup.RuntimeInUse)
	if err != nil {
		return nil, err
	}
	s.log.Info("runtime removed", "runtime", name, "freed", freed)
	return &api.RemoveRuntimeResponse{Success: true, Message: "removed", FreedSpaceBytes: freed}, nil
}

func parseRecipe(yaml string) (runtimes.Recipe, error) {
	if len(yaml) > maxRecipe {
		return runtimes.Recipe{}, joblet.Errorf(joblet.InvalidArgument, "the recipe is %d bytes long: at most %d are possible", len(yaml), maxRecipe)
	}
	return runtimes.ParseRecipe([]byte(yaml))
}

func (s *runtimeService) ValidateRuntimeYAML(_ context.Context, r *api.ValidateRuntimeYAMLRequest) (*api.ValidateRuntimeYAMLResponse, error) {
	recipe, err := parseRecipe(r.GetYamlContent())
	if err != nil {
		return &api.ValidateRuntimeYAMLResponse{Message: "not valid", Errors: []string{err.Error()}}, nil
	}
	return &api.ValidateRuntimeYAMLResponse{Valid: true, Message: "valid", SpecInfo: &api.RuntimeYAMLInfo{
		Name: recipe.Name, Version: recipe.Version, Description: recipe.Description,
		Language: recipe.Language, LanguageVersion: recipe.LanguageVersion,
	}}, nil
}

func (s *runtimeService) BuildRuntime(r *api.BuildRuntimeRequest, out grpc.ServerStreamingServer[api.BuildRuntimeProgress]) error {
	start := time.Now()
	recipe, err := parseRecipe(r.GetYamlContent())
	if err != nil {
		return err
	}
	if r.GetDryRun() {
		return out.Send(resultToProto("the recipe is valid", runtimes.Runtime{Name: recipe.Name, Version: recipe.Version}, 0))
	}
	ctx, cancel := context.WithCancelCause(out.Context())
	defer cancel(nil)
	send := func(p *api.BuildRuntimeProgress) {
		if err := out.Send(p); err != nil {
			cancel(fmt.Errorf("report progress: %w", err)) // nobody waits for the runtime any more
		}
	}
	opt := runtimes.BuildOptions{
		Force:    r.GetForceRebuild(),
		Progress: func(p runtimes.Progress) { send(phaseToProto(p)) },
	}
	if r.GetVerbose() {
		opt.Log = func(line string) { send(logLineToProto(line)) }
	}
	rt, err := s.sup.BuildRuntime(ctx, recipe, opt)
	if err != nil {
		return err
	}
	s.log.Info("runtime built", "runtime", rt.Name, "size", rt.SizeBytes, "took", time.Since(start))
	return out.Send(resultToProto("built", rt, time.Since(start)))
}

// TestRuntime runs the runtime's own test command as a job, which leaves
// nothing.
func (s *runtimeService) TestRuntime(ctx context.Context, r *api.TestRuntimeRequest) (*api.TestRuntimeResponse, error) {
	rt, err := s.sup.Runtimes().Find(r.GetRuntime())
	if err != nil {
		return nil, err
	}
	if len(rt.Test) == 0 {
		return nil, joblet.Errorf(joblet.FailedPrecondition, "runtime %s has no test command in its recipe", rt.Name)
	}
	job, err := s.sup.Submit(ctx, joblet.Spec{
		Command: rt.Test[0], Args: rt.Test[1:], Runtime: rt.Name, Timeout: testTimeout,
	}, callerOf(ctx).name(), nil)
	if err != nil {
		return nil, err
	}
	defer s.discard(job.ID)
	var output []byte
	job, err = s.sup.Follow(ctx, job.ID, joblet.LogOptions{Follow: true}, nil, func(e supervisor.Event) error {
		output = append(output, e.Chunk.Data...)
		if len(output) > 2*maxTestOutput {
			output = append(output[:0], output[len(output)-maxTestOutput:]...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	output = output[max(0, len(output)-maxTestOutput):]
	p := jobToProto(job)
	answer := &api.TestRuntimeResponse{
		Success:  job.State == joblet.Completed,
		Output:   strings.ToValidUTF8(string(output), "\ufffd"),
		ExitCode: p.ExitCode,
	}
	if !answer.Success {
		answer.Error = cmp.Or(p.Reason, fmt.Sprintf("the test ended with status %d (%s)", p.ExitCode, p.Status))
	}
	return answer, nil
}

// discard ends and deletes a job whose caller may be gone.
func (s *runtimeService) discard(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := s.sup.Stop(ctx, id, joblet.StopOptions{}); err != nil && joblet.KindOf(err) != joblet.FailedPrecondition {
		s.log.Error("end the test of a runtime", "job", id, "error", err)
	}
	if err := s.sup.Delete(ctx, id); err != nil {
		s.log.Error("delete the test of a runtime", "job", id, "error", err)
	}
}

func runtimeToProto(rt runtimes.Runtime) *api.RuntimeInfo {
	p := &api.RuntimeInfo{
		Name:            rt.Name,
		Language:        rt.Language,
		Version:         rt.Version,
		Description:     rt.Description,
		SizeBytes:       rt.SizeBytes,
		Packages:        rt.Packages,
		Available:       rt.Err == nil,
		LanguageVersion: rt.LanguageVersion,
		Libraries:       rt.Installed,
		Environment:     rt.Environment,
		OriginalYaml:    rt.Recipe,
		Test:            rt.Test,
		Suite:           rt.Suite,
	}
	if rt.Err != nil {
		p.Error = rt.Err.Error()
		return p
	}
	p.Requirements = &api.RuntimeRequirements{Architectures: []string{rt.Architecture}}
	p.BuildInfo = &api.RuntimeBuildInfo{
		BuiltAt:   rt.BuiltAt.UTC().Format(time.RFC3339),
		BuiltWith: rt.BuiltWith,
		Platform:  runtime.GOOS + "/" + rt.Architecture,
	}
	return p
}

func phaseToProto(p runtimes.Progress) *api.BuildRuntimeProgress {
	return &api.BuildRuntimeProgress{ProgressType: &api.BuildRuntimeProgress_Phase{Phase: &api.BuildPhaseProgress{
		PhaseNumber: int32(p.Phase), TotalPhases: int32(runtimes.Phases),
		PhaseName: p.Phase.String(), Message: p.Message, Percent: int32(p.Percent),
	}}}
}

func logLineToProto(line string) *api.BuildRuntimeProgress {
	return &api.BuildRuntimeProgress{ProgressType: &api.BuildRuntimeProgress_Log{Log: &api.BuildLogLine{
		Level: "info", Message: strings.ToValidUTF8(line, "\ufffd"), Timestamp: time.Now().UnixNano(),
	}}}
}

func resultToProto(message string, rt runtimes.Runtime, took time.Duration) *api.BuildRuntimeProgress {
	return &api.BuildRuntimeProgress{ProgressType: &api.BuildRuntimeProgress_Result{Result: &api.BuildResult{
		Success: true, Message: message, RuntimeName: rt.Name, RuntimeVersion: rt.Version,
		InstallPath: rt.RootFS, SizeBytes: rt.SizeBytes, BuildDurationMs: took.Milliseconds(),
	}}}
}
