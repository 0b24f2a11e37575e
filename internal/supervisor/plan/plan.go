// Package plan turns the specs of jobs into what the engine runs: it finds the runtime,
// grants the limits, makes the environment, and names the block devices whose rates are
// limited.
package plan

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
	"sync"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/runtimes"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/sandbox/native/rootfs"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// Planner plans the runs of jobs on this host. Its methods may be called from any
// goroutine.
type Planner struct {
	Engine     *native.Engine
	Runtimes   *runtimes.Store
	JobsDir    string
	LogShrinks bool // on a full disk a job's log gives up its older half

	mu       sync.Mutex // protects what follows
	settings Settings
	using    map[string]int // runtime → jobs that use it, or are about to
}

// Settings are what can change while jobs run. Jobs keep what they were granted.
type Settings struct {
	Defaults     joblet.Limits // of jobs that do not say otherwise
	Ceiling      joblet.Limits // what a job may ask for at most
	Mirrors      []string      // where runtimes may be built from (runtimes.ValidMirror)
	BuildTimeout time.Duration // how long the build of a runtime may take
}

// Configure changes the settings.
func (p *Planner) Configure(settings Settings) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settings = settings
}

// Grant returns the limits of a job that asks for l: with the daemon's defaults, and not
// above its ceiling. It is an error if this host cannot enforce them.
func (p *Planner) Grant(l joblet.Limits) (joblet.Limits, error) {
	p.mu.Lock()
	defaults, ceiling := p.settings.Defaults, p.settings.Ceiling
	p.mu.Unlock()
	l = l.Or(defaults).Capped(ceiling)
	if err := l.Within(ceiling); err != nil {
		return l, err
	}
	if err := l.Validate(); err != nil { // together with the defaults
		return l, err
	}
	return l, p.Engine.CheckLimits(l)
}

// defaultTerm is TERM in a terminal whose caller does not say it.
const defaultTerm = "xterm"

// variables tell a process which job it belongs to.
func variables(job joblet.Job) []string {
	return []string{"JOBLET_JOB_ID=" + job.ID, fmt.Sprintf("JOBLET_ATTEMPT=%d", job.Attempt)}
}

// Run plans a run of a job with this spec. Prepare completes the plan.
func (p *Planner) Run(spec joblet.Spec) (*native.Run, error) {
	view := p.Engine.HostView
	var runtimeEnv map[string]string
	if spec.Runtime != "" {
		rt, err := p.Runtimes.Get(spec.Runtime)
		if err != nil {
			return nil, err
		}
		runtimeEnv = rt.Environment
		view = func() (rootfs.View, error) { return p.Engine.RuntimeView(rt.RootFS) }
	}
	v, err := view()
	if err != nil {
		return nil, fmt.Errorf("cannot open runtime %s: %w", spec.Runtime, err)
	}
	plan := sandbox.Plan{
		Mounts: v.Mounts, Dirs: v.Dirs, Links: v.Links,
		Command: spec.Command, Args: spec.Args, WorkDir: spec.WorkDir, Init: spec.Init,
		Terminal: spec.Terminal, MergeOutput: spec.MergeOutput,
		Security: spec.Security, Limits: spec.Limits,
		Timeout: spec.Timeout, Grace: joblet.DefaultGrace,
		LogMaxBytes: cmp.Or(spec.LogMax, joblet.DefaultLogMax), LogShrinks: p.LogShrinks,
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
	devices, err := p.devices(run.Mounts, spec.Limits)
	for _, d := range devices {
		run.IODevices = append(run.IODevices, sandbox.BlockDevice(d))
	}
	return run, err
}

// Prepare adds to a planned run what belongs to one attempt of a job: its directory,
// hostname and input.
func (p *Planner) Prepare(run *native.Run, job joblet.Job) error {
	run.Dir = filepath.Join(p.JobsDir, job.ID)
	run.Attempt = job.Attempt
	// Not the short id alone: one of digits would be a number of a host (inet_aton(3)).
	run.Network.Hostname = "job-" + joblet.ShortID(job.ID)
	run.Env = append(run.Env, variables(job)...)
	run.Stdin.Stream = job.Spec.Stdin == joblet.StdinStream
	if job.Spec.Stdin == joblet.StdinFile {
		run.Stdin.Path = filepath.Join(run.Dir, jobdir.StdinName)
	}
	if len(job.Spec.Uploads) > 0 {
		run.FilesPath = filepath.Join(run.Dir, jobdir.FilesName)
	}
	if jobdir.Begun(run.Dir, job.Attempt) { // its log and its end would be overwritten
		return fmt.Errorf("attempt %d has begun already, according to the files in %s", job.Attempt, run.Dir)
	}
	if job.Attempt > 1 { // the results in /work of the attempt before are not this one's
		if err := os.Remove(filepath.Join(run.Dir, protocol.WorkName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Exec plans a further process in a running job. spec is the job's, with its secrets,
// which are in the environment of its other processes; it is returned as the spec of
// the process.
func (p *Planner) Exec(job joblet.Job, spec joblet.Spec, e joblet.ExecSpec) (*native.Run, joblet.Spec, error) {
	spec.Command, spec.Args, spec.Init, spec.Terminal = e.Command, e.Args, false, e.Terminal
	spec.MergeOutput = e.MergeOutput
	spec.Security.LogDenied = false // its shim writes no record
	if e.WorkDir != "" {
		spec.WorkDir = e.WorkDir
	}
	spec.Env, spec.SecretEnv = maps.Clone(spec.Env), maps.Clone(spec.SecretEnv)
	for name, value := range e.Env {
		if delete(spec.SecretEnv, name); spec.Env == nil {
			spec.Env = map[string]string{}
		}
		spec.Env[name] = value
	}
	run, err := p.Run(spec)
	if err != nil {
		return nil, spec, err
	}
	run.Env = append(run.Env, variables(job)...)
	run.Stdin.Stream = e.Stdin && e.Terminal == (joblet.WindowSize{})
	return run, spec, nil
}

// Devices returns the devices that hold the files of a job with this spec, if there
// are limits on input and output.
func (p *Planner) Devices(spec joblet.Spec, l joblet.Limits) ([]cgroup.Device, error) {
	run, err := p.Run(spec)
	if err != nil {
		return nil, err
	}
	return p.devices(run.Mounts, l)
}

// devices returns the devices of the programs and the input of a job. (What it writes
// is in memory.)
func (p *Planner) devices(mounts []sandbox.Mount, l joblet.Limits) ([]cgroup.Device, error) {
	if a, b, c, d := l.Rates(); a|b|c|d == 0 {
		return nil, nil
	}
	paths := []string{p.JobsDir}
	for _, m := range mounts {
		paths = append(paths, m.Source)
	}
	devices, err := cgroup.Devices(paths...)
	if err != nil {
		return nil, fmt.Errorf("cannot limit input and output: %w", err)
	}
	if len(devices) == 0 {
		return nil, joblet.Errorf(joblet.FailedPrecondition, "cannot limit input and output: the job's files are on no block device of this host")
	}
	return devices, nil
}

// CountIO makes the host count what jobs read from the devices that may hold their
// files.
func (p *Planner) CountIO() error {
	devices, err := cgroup.Devices(p.JobsDir, "/usr")
	if err != nil {
		return err
	}
	return p.Engine.CountIO(devices)
}
