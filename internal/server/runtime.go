package server

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/runtimes"
	"github.com/joblet/joblet/internal/service"
)

type runtimeService struct {
	api.UnimplementedRuntimeServiceServer
	runtimes *service.Runtimes
}

func (s *runtimeService) ListRuntimes(ctx context.Context, _ *api.EmptyRequest) (*api.ListRuntimesResponse, error) {
	all, err := s.runtimes.List(ctx, identityOf(ctx))
	if err != nil {
		return nil, err
	}
	out := &api.ListRuntimesResponse{Runtimes: make([]*api.RuntimeInfo, len(all))}
	for i, rt := range all {
		out.Runtimes[i] = runtimeToProto(rt)
	}
	return out, nil
}

func (s *runtimeService) GetRuntimeInfo(ctx context.Context, r *api.GetRuntimeInfoRequest) (*api.GetRuntimeInfoResponse, error) {
	rt, err := s.runtimes.Show(ctx, identityOf(ctx), r.GetRuntime())
	if joblet.KindOf(err) == joblet.NotFound {
		return &api.GetRuntimeInfoResponse{}, nil // the answer that this API has for it
	}
	if err != nil {
		return nil, err
	}
	return &api.GetRuntimeInfoResponse{Found: true, Runtime: runtimeToProto(rt)}, nil
}

func (s *runtimeService) RemoveRuntime(ctx context.Context, r *api.RemoveRuntimeRequest) (*api.RemoveRuntimeResponse, error) {
	freed, err := s.runtimes.Remove(ctx, identityOf(ctx), r.GetRuntime())
	if err != nil {
		return nil, err
	}
	return &api.RemoveRuntimeResponse{Success: true, Message: "removed", FreedSpaceBytes: freed}, nil
}

func (s *runtimeService) ValidateRuntimeYAML(ctx context.Context, r *api.ValidateRuntimeYAMLRequest) (*api.ValidateRuntimeYAMLResponse, error) {
	recipe, invalid, err := s.runtimes.Validate(ctx, identityOf(ctx), r.GetYamlContent())
	switch {
	case err != nil:
		return nil, err
	case invalid != nil:
		return &api.ValidateRuntimeYAMLResponse{Message: "not valid", Errors: []string{invalid.Error()}}, nil
	}
	return &api.ValidateRuntimeYAMLResponse{Valid: true, Message: "valid", SpecInfo: &api.RuntimeYAMLInfo{
		Name: recipe.Name, Version: recipe.Version, Description: recipe.Description,
		Language: recipe.Language, LanguageVersion: recipe.LanguageVersion,
	}}, nil
}

func (s *runtimeService) BuildRuntime(r *api.BuildRuntimeRequest, out grpc.ServerStreamingServer[api.BuildRuntimeProgress]) error {
	b := service.Build{
		Recipe: r.GetYamlContent(), DryRun: r.GetDryRun(), Force: r.GetForceRebuild(),
		Progress: func(p runtimes.Progress) error { return out.Send(phaseToProto(p)) },
	}
	if r.GetVerbose() {
		b.Log = func(line string) error { return out.Send(logLineToProto(line)) }
	}
	built, err := s.runtimes.Build(out.Context(), identityOf(out.Context()), b)
	if err != nil {
		return err
	}
	message := "built"
	if b.DryRun {
		message = "the recipe is valid"
	}
	return out.Send(resultToProto(message, built.Runtime, built.Took))
}

func (s *runtimeService) TestRuntime(ctx context.Context, r *api.TestRuntimeRequest) (*api.TestRuntimeResponse, error) {
	tested, err := s.runtimes.Test(ctx, identityOf(ctx), r.GetRuntime())
	if err != nil {
		return nil, err
	}
	p := jobToProto(tested.Job)
	answer := &api.TestRuntimeResponse{
		Success:  tested.Job.State == joblet.Completed,
		Output:   strings.ToValidUTF8(string(tested.Output), "\ufffd"),
		ExitCode: p.ExitCode,
	}
	if !answer.Success {
		answer.Error = cmp.Or(p.Reason, fmt.Sprintf("the test ended with status %d (%s)", p.ExitCode, p.Status))
	}
	return answer, nil
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
