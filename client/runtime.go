package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

// Runtime is an installed runtime.
type Runtime struct {
	Name            string            `json:"name"`
	Version         string            `json:"version"`
	Description     string            `json:"description,omitempty"`
	Language        string            `json:"language,omitempty"`
	LanguageVersion string            `json:"language_version,omitempty"`
	SizeBytes       int64             `json:"size_bytes"`
	Packages        []string          `json:"packages,omitempty"`  // those that its recipe asks for
	Libraries       []string          `json:"libraries,omitempty"` // all that are in it
	Environment     map[string]string `json:"environment,omitempty"`
	BuiltAt         string            `json:"built_at,omitempty"` // RFC 3339
	Platform        string            `json:"platform,omitempty"`
	Suite           string            `json:"suite,omitempty"`
	Test            []string          `json:"test,omitempty"`   // its test command
	Recipe          string            `json:"recipe,omitempty"` // the YAML that it was built from
	Error           string            `json:"error,omitempty"`  // why it cannot be used
}

// Runtimes lists the installed runtimes.
func (c *Client) Runtimes(ctx context.Context) ([]Runtime, error) {
	out, err := c.runtimes.ListRuntimes(ctx, &api.EmptyRequest{})
	if err != nil {
		return nil, err
	}
	all := make([]Runtime, 0, len(out.GetRuntimes()))
	for _, p := range out.GetRuntimes() {
		all = append(all, runtimeFromProto(p))
	}
	return all, nil
}

// Runtime returns one installed runtime.
func (c *Client) Runtime(ctx context.Context, name string) (Runtime, error) {
	out, err := c.runtimes.GetRuntimeInfo(ctx, &api.GetRuntimeInfoRequest{Runtime: name})
	if err != nil {
		return Runtime{}, err
	}
	if !out.GetFound() {
		return Runtime{}, joblet.Errorf(joblet.NotFound, "runtime %q is not installed", name)
	}
	return runtimeFromProto(out.GetRuntime()), nil
}

func runtimeFromProto(p *api.RuntimeInfo) Runtime {
	return Runtime{
		Name:            p.GetName(),
		Version:         p.GetVersion(),
		Description:     p.GetDescription(),
		Language:        p.GetLanguage(),
		LanguageVersion: p.GetLanguageVersion(),
		SizeBytes:       p.GetSizeBytes(),
		Packages:        p.GetPackages(),
		Environment:     p.GetEnvironment(),
		BuiltAt:         p.GetBuildInfo().GetBuiltAt(),
		Platform:        p.GetBuildInfo().GetPlatform(),
		Libraries:       p.GetLibraries(),
		Suite:           p.GetSuite(),
		Test:            p.GetTest(),
		Recipe:          p.GetOriginalYaml(),
		Error:           p.GetError(),
	}
}

// BuildProgress is a step of a build: a phase that begins, or a line of its log.
type BuildProgress struct {
	Phase, Phases int    // counted from 1; 0 for a log line
	Name          string // the phase
	Percent       int    // of the whole build, estimated
	Message       string
}

// BuildRuntime builds a runtime from a recipe in YAML and calls progress, which
// may be nil, as it goes on. With force it replaces an installed one.
func (c *Client) BuildRuntime(ctx context.Context, recipe string, force bool, progress func(BuildProgress)) (Runtime, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.runtimes.BuildRuntime(ctx, &api.BuildRuntimeRequest{YamlContent: recipe, ForceRebuild: force})
	if err != nil {
		return Runtime{}, err
	}
	for {
		p, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return Runtime{}, joblet.Errorf(joblet.Unavailable, "the daemon closed the stream before the build ended")
		}
		if err != nil {
			return Runtime{}, err
		}
		var step BuildProgress
		switch p := p.GetProgressType().(type) {
		case *api.BuildRuntimeProgress_Phase:
			step = BuildProgress{
				Phase: int(p.Phase.GetPhaseNumber()), Phases: int(p.Phase.GetTotalPhases()),
				Name: p.Phase.GetPhaseName(), Message: p.Phase.GetMessage(),
				Percent: int(p.Phase.GetPercent()),
			}
		case *api.BuildRuntimeProgress_Log:
			step = BuildProgress{Message: p.Log.GetMessage()}
		case *api.BuildRuntimeProgress_Result:
			if !p.Result.GetSuccess() {
				return Runtime{}, fmt.Errorf("cannot build the runtime: %s", p.Result.GetMessage())
			}
			return Runtime{
				Name: p.Result.GetRuntimeName(), Version: p.Result.GetRuntimeVersion(), SizeBytes: p.Result.GetSizeBytes(),
			}, nil
		}
		if progress != nil {
			progress(step)
		}
	}
}

// RuntimeTest is what became of a runtime's own test.
type RuntimeTest struct {
	Passed bool
	Output string // what it wrote, the end of it when it is long
	Reason string // why it did not pass
	Status int    // as a shell shows it
}

// TestRuntime runs a runtime's own test command as a job.
func (c *Client) TestRuntime(ctx context.Context, name string) (RuntimeTest, error) {
	out, err := c.runtimes.TestRuntime(ctx, &api.TestRuntimeRequest{Runtime: name})
	if err != nil {
		return RuntimeTest{}, err
	}
	return RuntimeTest{
		Passed: out.GetSuccess(), Output: out.GetOutput(), Reason: out.GetError(), Status: int(out.GetExitCode()),
	}, nil
}

// RemoveRuntime removes a runtime that no job uses and returns the bytes that it
// took.
func (c *Client) RemoveRuntime(ctx context.Context, name string) (freed int64, err error) {
	out, err := c.runtimes.RemoveRuntime(ctx, &api.RemoveRuntimeRequest{Runtime: name})
	return out.GetFreedSpaceBytes(), err
}

// Version says what a daemon was built from.
type Version struct {
	Version   string `json:"version"`
	Commit    string `json:"commit,omitempty"`
	BuildDate string `json:"build_date,omitempty"`
	Go        string `json:"go"`
	Platform  string `json:"platform"`

	Caller string `json:"caller,omitempty"` // the client's name at the daemon
	Role   string `json:"role,omitempty"`
	Jobs   int64  `json:"active_jobs,omitempty"` // that have not ended
}

// ServerVersion returns the daemon's version.
func (c *Client) ServerVersion(ctx context.Context) (Version, error) {
	v, err := c.monitoring.GetServerVersion(ctx, &api.EmptyRequest{})
	if err != nil {
		return Version{}, err
	}
	return version(v), nil
}

func version(v *api.ServerVersionInfo) Version {
	return Version{
		Version: v.GetVersion(), Commit: v.GetGitCommit(), BuildDate: v.GetBuildDate(),
		Go: v.GetGoVersion(), Platform: v.GetPlatform(),
		Caller: v.GetCaller(), Role: v.GetRole(), Jobs: v.GetActiveJobs(),
	}
}
