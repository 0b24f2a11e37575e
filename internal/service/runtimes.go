package service

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/joblet/joblet"
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

// Runtimes does the operations on runtimes.
type Runtimes struct {
	*policy
	sup *supervisor.Supervisor
	log *slog.Logger
}

// List returns the installed runtimes.
func (s *Runtimes) List(ctx context.Context, c Caller) (all []runtimes.Runtime, err error) {
	err = s.do(ctx, c, ListRuntimes, Subject{}, func(context.Context, *call) error {
		all, err = s.sup.Runtimes().List()
		return err
	})
	return all, err
}

// Show returns the runtime with this name.
func (s *Runtimes) Show(ctx context.Context, c Caller, name string) (rt runtimes.Runtime, err error) {
	err = s.do(ctx, c, ShowRuntime, Subject{Target: name}, func(context.Context, *call) error {
		rt, err = s.sup.Runtimes().Find(name)
		return err
	})
	return rt, err
}

// Remove removes a runtime, and returns how many bytes that freed.
func (s *Runtimes) Remove(ctx context.Context, c Caller, name string) (freed int64, err error) {
	err = s.do(ctx, c, RemoveRuntime, Subject{Target: name}, func(context.Context, *call) error {
		if joblet.ValidName("", name) != nil { // a damaged one is removed by its name alone
			rt, err := s.sup.Runtimes().Find(name)
			if err != nil {
				return err
			}
			name = rt.Name
		}
		if freed, err = s.sup.Runtimes().Remove(name, s.sup.RuntimeInUse); err != nil {
			return err
		}
		s.log.Info("runtime removed", "runtime", name, "freed", freed)
		return nil
	})
	return freed, err
}

func parseRecipe(yaml string) (runtimes.Recipe, error) {
	if len(yaml) > maxRecipe {
		return runtimes.Recipe{}, joblet.Errorf(joblet.InvalidArgument, "the recipe is %d bytes long: at most %d are possible", len(yaml), maxRecipe)
	}
	return runtimes.ParseRecipe([]byte(yaml))
}

// RecipeName returns the name of the runtime that a recipe is for; empty if it is not
// valid.
func RecipeName(yaml string) string {
	recipe, err := parseRecipe(yaml)
	if err != nil {
		return ""
	}
	return recipe.Name
}

// Validate reads a recipe. What is wrong with it is invalid; err is about the call.
func (s *Runtimes) Validate(ctx context.Context, c Caller, yaml string) (recipe runtimes.Recipe, invalid, err error) {
	err = s.do(ctx, c, ValidateRecipe, Subject{}, func(_ context.Context, open *call) error {
		if recipe, invalid = parseRecipe(yaml); invalid == nil {
			open.subject.Target = recipe.Name
		}
		return nil
	})
	return recipe, invalid, err
}

// Build is a runtime to build.
type Build struct {
	Recipe   string // in YAML
	DryRun   bool   // only reads the recipe
	Force    bool   // builds it again
	Progress func(runtimes.Progress) error
	Log      func(line string) error // may be nil
}

// Built is a runtime that was built.
type Built struct {
	Runtime runtimes.Runtime
	Took    time.Duration
}

// Build builds a runtime. It gives up when the progress cannot be told.
func (s *Runtimes) Build(ctx context.Context, c Caller, b Build) (built Built, err error) {
	err = s.do(ctx, c, BuildRuntime, Subject{Detail: buildDetail(b)}, func(ctx context.Context, open *call) error {
		start := time.Now()
		recipe, err := parseRecipe(b.Recipe)
		if err != nil {
			return err
		}
		open.subject.Target = recipe.Name
		if b.DryRun {
			built.Runtime = runtimes.Runtime{Name: recipe.Name, Version: recipe.Version}
			return nil
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		told := func(err error) {
			if err != nil {
				cancel(fmt.Errorf("cannot report progress: %w", err)) // the caller is gone
			}
		}
		opt := runtimes.BuildOptions{Force: b.Force, Progress: func(p runtimes.Progress) { told(b.Progress(p)) }}
		if b.Log != nil {
			opt.Log = func(line string) { told(b.Log(line)) }
		}
		if built.Runtime, err = s.sup.BuildRuntime(ctx, recipe, opt); err != nil {
			return err
		}
		built.Took = time.Since(start)
		s.log.Info("runtime built", "runtime", built.Runtime.Name, "size", built.Runtime.SizeBytes, "took", built.Took)
		return nil
	})
	return built, err
}

// Tested is how the test of a runtime ended.
type Tested struct {
	Job    joblet.Job
	Output []byte // the end of it
}

// Test runs the runtime's own test command as a job, which leaves nothing.
func (s *Runtimes) Test(ctx context.Context, c Caller, name string) (t Tested, err error) {
	err = s.do(ctx, c, TestRuntime, Subject{Target: name}, func(ctx context.Context, _ *call) error {
		t, err = s.test(ctx, c, name)
		return err
	})
	return t, err
}

func (s *Runtimes) test(ctx context.Context, c Caller, name string) (t Tested, err error) {
	rt, err := s.sup.Runtimes().Find(name)
	if err != nil {
		return t, err
	}
	if len(rt.Test) == 0 {
		return t, joblet.Errorf(joblet.FailedPrecondition, "cannot test runtime %s: its recipe has no test command", rt.Name)
	}
	job, err := s.sup.Submit(ctx, joblet.Spec{
		Command: rt.Test[0], Args: rt.Test[1:], Runtime: rt.Name, Timeout: testTimeout,
	}, c.Name, nil)
	if err != nil {
		return t, err
	}
	defer s.discard(job.ID)
	var output []byte
	t.Job, err = s.sup.Follow(ctx, job.ID, joblet.LogOptions{Follow: true}, nil, func(e Event) error {
		output = append(output, e.Chunk.Data...)
		if len(output) > 2*maxTestOutput {
			output = append(output[:0], output[len(output)-maxTestOutput:]...)
		}
		return nil
	})
	t.Output = output[max(0, len(output)-maxTestOutput):]
	return t, err
}

// discard ends and deletes a job whose caller may be gone.
func (s *Runtimes) discard(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := s.sup.Stop(ctx, id, joblet.StopOptions{}); err != nil && joblet.KindOf(err) != joblet.FailedPrecondition {
		s.log.Error("cannot end the test of a runtime", "job", id, "error", err)
	}
	if err := s.sup.Delete(ctx, id); err != nil {
		s.log.Error("cannot delete the test of a runtime", "job", id, "error", err)
	}
}
