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
	"github.com/joblet/joblet/internal/sandbox/native"
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
		view = func() (native.View, error) { return s.engine.RuntimeView(rt.RootFS) }
	}
	v, err := view()
	if err != nil {
		return nil, fmt.Errorf("open runtime %s: %w", spec.Runtime, err)
	}
	run := native.NewRun(v)
	if err := run.SetSecurity(spec.Security); err != nil {
		return nil, err
	}
	user, home := run.AddUser()
	env := map[string]string{"PATH": strings.Join(append([]string{native.DefaultPath}, v.Path...), ":"), "HOME": home, "USER": user, "LOGNAME": user, "LANG": "C.UTF-8"}
	maps.Copy(env, runtimeEnv)
	if spec.Terminal != (joblet.WindowSize{}) {
		env["TERM"] = defaultTerm
	}
	maps.Copy(env, spec.Env)
	maps.Copy(env, spec.SecretEnv)
	run.Command, run.Args, run.WorkDir, run.Init = spec.Command, spec.Args, spec.WorkDir, spec.Init
	run.MergeOutput = spec.MergeOutput
	run.Path = env["PATH"]
	for _, name := range slices.Sorted(maps.Keys(env)) {
		run.Env = append(run.Env, name+"="+env[name])
	}
	run.TimeoutNanos = int64(spec.Timeout)
	run.GraceNanos = int64(joblet.DefaultGrace)
	run.LogMaxBytes = cmp.Or(spec.LogMax, joblet.DefaultLogMax)
	run.LogShrinks = s.cfg.LogShrinks
	run.WorkMaxBytes = cmp.Or(spec.Limits.DiskBytes, joblet.DefaultDiskBytes)
	if t := spec.Terminal; t != (joblet.WindowSize{}) {
		run.Terminal = &native.WindowSize{Rows: uint16(t.Rows), Columns: uint16(t.Columns)}
	}
	return run, s.limit(run, spec.Limits)
}

// prepare adds to run what it is of one job: its directory, name and input.
func (s *Supervisor) prepare(run *native.Run, job joblet.Job) error {
	run.Dir = s.jobDir(job.ID)
	run.Attempt = job.Attempt
	// Not the short id alone: one of digits would be a number of a host (inet_aton(3)).
	run.Hostname = "job-" + joblet.ShortID(job.ID)
	run.Files = append(run.Files, native.IdentityFiles(run.Hostname)...)
	run.Env = append(run.Env, jobVariables(job)...)
	run.StdinStream = job.Spec.Stdin == joblet.StdinStream
	if job.Spec.Stdin == joblet.StdinFile {
		run.StdinPath = filepath.Join(run.Dir, jobdir.StdinName)
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
