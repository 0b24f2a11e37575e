package supervisor

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/sandbox/native/rootfs"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// defaultTerm is the kind of a terminal of which the caller does not say it.
const defaultTerm = "xterm"

// jobVariables tell a process which job it is in.
func jobVariables(job joblet.Job) []string {
	return []string{"JOBLET_JOB_ID=" + job.ID, fmt.Sprintf("JOBLET_ATTEMPT=%d", job.Attempt)}
}

// resolve turns the names in a spec into facts for the engine.
func (s *Supervisor) resolve(spec joblet.Spec) (*native.Run, error) {
	view := s.engine.HostView
	var runtimeEnv map[string]string
	if spec.Runtime != "" {
		rt, err := s.runtimes.Get(spec.Runtime)
		if err != nil {
			return nil, err
		}
		runtimeEnv = rt.Environment
		view = func() (rootfs.View, error) { return s.engine.RuntimeView(rt.RootFS) }
	}
	v, err := view()
	if err != nil {
		return nil, fmt.Errorf("open runtime %s: %w", spec.Runtime, err)
	}
	plan := sandbox.Plan{
		Mounts: v.Mounts, Dirs: v.Dirs, Links: v.Links,
		Command: spec.Command, Args: spec.Args, WorkDir: spec.WorkDir, Init: spec.Init,
		Terminal: spec.Terminal, MergeOutput: spec.MergeOutput,
		Security: spec.Security, Limits: spec.Limits,
		Timeout: spec.Timeout, Grace: joblet.DefaultGrace,
		LogMaxBytes: cmp.Or(spec.LogMax, joblet.DefaultLogMax), LogShrinks: s.cfg.LogShrinks,
		WorkMaxBytes: cmp.Or(spec.Limits.DiskBytes, joblet.DefaultDiskBytes),
	}
	user, home := rootfs.AddUser(&plan)
	env := map[string]string{"PATH": strings.Join(append([]string{rootfs.DefaultPath}, v.Path...), ":"), "HOME": home, "USER": user, "LOGNAME": user, "LANG": "C.UTF-8"}
	maps.Copy(env, runtimeEnv)
	if spec.Terminal != (joblet.WindowSize{}) {
		env["TERM"] = defaultTerm
	}
	maps.Copy(env, spec.Env)
	maps.Copy(env, spec.SecretEnv)
	plan.Path = env["PATH"]
	for _, name := range slices.Sorted(maps.Keys(env)) {
		plan.Env = append(plan.Env, name+"="+env[name])
	}
	run, err := native.Compile(plan)
	if err != nil {
		return nil, err
	}
	run.IODevices, err = s.ioDevices(run.Mounts, spec.Limits)
	return run, err
}

// prepare adds to run what it is of one job: its directory, name and input.
func (s *Supervisor) prepare(run *native.Run, job joblet.Job) error {
	run.Dir = s.records.Dir(job.ID)
	run.Attempt = job.Attempt
	// Not the short id alone: one of digits would be a number of a host (inet_aton(3)).
	run.Network.Hostname = "job-" + joblet.ShortID(job.ID)
	run.Env = append(run.Env, jobVariables(job)...)
	run.Stdin.Stream = job.Spec.Stdin == joblet.StdinStream
	if job.Spec.Stdin == joblet.StdinFile {
		run.Stdin.Path = filepath.Join(run.Dir, jobdir.StdinName)
	}
	if len(job.Spec.Uploads) > 0 {
		run.FilesPath = filepath.Join(run.Dir, jobdir.FilesName)
	}
	if jobdir.Begun(run.Dir, job.Attempt) { // its log and its end would be written over
		return fmt.Errorf("attempt %d has begun already, by what is in %s", job.Attempt, run.Dir)
	}
	if job.Attempt > 1 { // what the one before left in /work is not this one's
		if err := os.Remove(filepath.Join(run.Dir, protocol.WorkName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
