package supervisor

import (
	"fmt"
	"maps"
	"slices"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/engine"
)

// defaultPath is where a job's commands are looked for.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// logMaxBytes bounds a job's log; beyond it the oldest bytes go.
const logMaxBytes = 1 << 30

// resolve turns the names in a spec into facts for the engine.
func (s *Supervisor) resolve(spec joblet.Spec) (*engine.Run, error) {
	env := map[string]string{"PATH": defaultPath, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8"}
	view := s.engine.HostView
	if spec.Runtime != "" {
		rt, err := s.runtimes.Get(spec.Runtime)
		if err != nil {
			return nil, err
		}
		maps.Copy(env, rt.Environment)
		view = func() (engine.View, error) { return engine.RuntimeView(rt.RootFS) }
	}
	maps.Copy(env, spec.Env)
	maps.Copy(env, spec.SecretEnv)
	v, err := view()
	if err != nil {
		return nil, fmt.Errorf("open runtime %s: %w", spec.Runtime, err)
	}
	run := engine.NewRun(v)
	run.Command, run.Args, run.WorkDir, run.Init = spec.Command, spec.Args, spec.WorkDir, spec.Init
	run.Path = env["PATH"]
	for _, name := range slices.Sorted(maps.Keys(env)) {
		run.Env = append(run.Env, name+"="+env[name])
	}
	run.TimeoutNanos = int64(spec.Timeout)
	run.GraceNanos = int64(joblet.DefaultGrace)
	run.LogMaxBytes = logMaxBytes
	return run, nil
}
