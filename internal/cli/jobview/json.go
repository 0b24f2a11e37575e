// Package jobview shows jobs to people and programs: as JSON, as a page and in words.
package jobview

import (
	"reflect"
	"time"

	"github.com/joblet/joblet"
)

// JSON is a job as --json shows it, and what --format templates get. JSON texts are
// UTF-8: what is not has U+FFFD there, and stands in Base64 as well.
type JSON struct {
	UUID           string              `json:"uuid"`
	Name           string              `json:"name,omitempty"`
	Status         joblet.State        `json:"status"`
	Command        string              `json:"command"`
	Args           []string            `json:"args"`
	Runtime        string              `json:"runtime,omitempty"`
	WorkDir        string              `json:"work_dir,omitempty"`
	Env            map[string]string   `json:"environment,omitempty"`
	SecretEnv      map[string]string   `json:"secret_environment,omitempty"`
	TimeoutMS      int64               `json:"timeout_ms,omitempty"`
	Init           bool                `json:"init,omitempty"`
	Labels         map[string]string   `json:"labels,omitempty"`
	Owner          string              `json:"owner"`
	Created        time.Time           `json:"created_time,omitzero"`
	Started        time.Time           `json:"start_time,omitzero"` // of the latest attempt
	Ended          time.Time           `json:"end_time,omitzero"`
	ExitCode       *int                `json:"exit_code"`        // as a shell shows it; null until it has ended
	Signal         int                 `json:"signal,omitempty"` // that ended it
	Reason         string              `json:"reason,omitempty"`
	Failure        string              `json:"failure,omitempty"` // the kind of error for which it could not be run
	HostPID        int                 `json:"host_pid,omitempty"`
	LogBytes       int64               `json:"log_bytes"`
	LogMaxBytes    int64               `json:"log_max_bytes,omitempty"`
	WorkBytes      int64               `json:"work_bytes,omitempty"`
	DurationMS     int64               `json:"duration_ms,omitempty"`
	Schedule       string              `json:"schedule,omitempty"`
	Overlap        joblet.Overlap      `json:"overlap,omitempty"`
	Scheduled      time.Time           `json:"scheduled_time,omitzero"` // next, as long as it waits
	Parent         string              `json:"parent,omitempty"`
	Attempt        int                 `json:"attempt,omitempty"` // number of the latest
	Past           []attemptJSON       `json:"past,omitempty"`    // the attempts before that
	Retries        int                 `json:"retries,omitempty"`
	RetryDelayMS   int64               `json:"retry_delay_ms,omitempty"`
	RetryOn        []int               `json:"retry_on,omitempty"`
	RetryOnLost    bool                `json:"retry_on_lost,omitempty"`
	DependsOn      []string            `json:"depends_on,omitempty"`
	Priority       int                 `json:"priority,omitempty"`
	IdempotencyKey string              `json:"idempotency_key,omitempty"`
	Stdin          joblet.Stdin        `json:"stdin,omitempty"`
	Uploads        []string            `json:"uploads,omitempty"`
	Terminal       joblet.WindowSize   `json:"terminal,omitzero"` // its size at first
	MergeOutput    bool                `json:"merge_output,omitempty"`
	Warnings       []string            `json:"warnings,omitempty"` // on limits
	Limits         joblet.Limits       `json:"limits,omitzero"`
	Security       joblet.Security     `json:"security,omitzero"`
	OutOfMemory    bool                `json:"out_of_memory,omitempty"`
	Usage          *UsageJSON          `json:"usage,omitempty"` // of the latest attempt, so far or in all
	Denied         []joblet.DeniedCall `json:"denied,omitempty"`
	Base64         *bytesJSON          `json:"base64,omitempty"`
}

// bytesJSON is what of a job is not UTF-8, exactly: lists as a whole, variables as
// NAME=VALUE.
type bytesJSON struct {
	Command   []byte   `json:"command,omitempty"`
	Args      [][]byte `json:"args,omitempty"`
	WorkDir   []byte   `json:"work_dir,omitempty"`
	Env       [][]byte `json:"environment,omitempty"`
	SecretEnv [][]byte `json:"secret_environment,omitempty"`
	Uploads   [][]byte `json:"uploads,omitempty"`
}

func newBytesJSON(s joblet.Spec) *bytesJSON {
	b := bytesJSON{
		Command: joblet.RawText(s.Command), Args: joblet.RawTexts(s.Args), WorkDir: joblet.RawText(s.WorkDir),
		Env: joblet.RawEnv(s.Env), SecretEnv: joblet.RawEnv(s.Redacted().SecretEnv), Uploads: joblet.RawTexts(s.Uploads),
	}
	if reflect.ValueOf(b).IsZero() {
		return nil
	}
	return &b
}

// UsageJSON is what a job took. What the host does not count is 0.
type UsageJSON struct {
	CPUUserMS   float64 `json:"cpu_user_ms"`
	CPUSystemMS float64 `json:"cpu_system_ms"`
	ThrottledMS float64 `json:"throttled_ms"` // it waited because its processor time was used up
	MemoryPeak  int64   `json:"memory_peak_bytes"`
	PIDsPeak    int     `json:"pids_peak"`
	ReadBytes   int64   `json:"read_bytes"`
	WriteBytes  int64   `json:"write_bytes"`
	ReadOps     int64   `json:"read_ops"`
	WriteOps    int64   `json:"write_ops"`

	CPUStallMS    float64 `json:"cpu_stall_ms"` // at least one process waited for it
	MemoryStallMS float64 `json:"memory_stall_ms"`
	IOStallMS     float64 `json:"io_stall_ms"`
}

func newUsageJSON(u joblet.Usage) *UsageJSON {
	if u == (joblet.Usage{}) {
		return nil
	}
	v := MakeUsageJSON(u)
	return &v
}

// MakeUsageJSON returns what a job took as --json shows it.
func MakeUsageJSON(u joblet.Usage) UsageJSON {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return UsageJSON{
		CPUUserMS: ms(u.CPUUser), CPUSystemMS: ms(u.CPUSystem), ThrottledMS: ms(u.Throttled), MemoryPeak: u.MemoryPeak, PIDsPeak: u.PIDsPeak,
		ReadBytes: u.ReadBytes, WriteBytes: u.WriteBytes, ReadOps: u.ReadOps, WriteOps: u.WriteOps,
		CPUStallMS: ms(u.CPUStall), MemoryStallMS: ms(u.MemoryStall), IOStallMS: ms(u.IOStall),
	}
}

// attemptJSON is a run of a job that was followed by another.
type attemptJSON struct {
	Status   joblet.State `json:"status"`
	Started  time.Time    `json:"start_time,omitzero"`
	Ended    time.Time    `json:"end_time,omitzero"`
	ExitCode *int         `json:"exit_code"`
	Signal   int          `json:"signal,omitempty"`
	Reason   string       `json:"reason,omitempty"`
	Usage    *UsageJSON   `json:"usage,omitempty"`
}

// NewJSON returns a job as --json shows it.
func NewJSON(j joblet.Job) JSON {
	s := j.Spec
	out := JSON{
		UUID: j.ID, Name: s.Name, Status: j.State, Command: s.Command, Args: s.Args,
		Runtime: s.Runtime, WorkDir: s.WorkDir, Env: s.Env, SecretEnv: s.Redacted().SecretEnv,
		TimeoutMS: s.Timeout.Milliseconds(), Init: s.Init, Labels: s.Labels, Owner: j.Owner,
		Created: j.Created, Started: j.Started, Ended: j.Ended,
		Reason: j.Reason, HostPID: j.PID, LogBytes: j.LogBytes, LogMaxBytes: s.LogMax, WorkBytes: j.WorkBytes,
		Schedule: s.Schedule, Overlap: s.Overlap, Scheduled: j.Scheduled, Parent: j.Parent, Attempt: j.Attempt,
		Retries: s.Retries, RetryDelayMS: s.RetryDelay.Milliseconds(), RetryOn: s.RetryOn, RetryOnLost: s.RetryOnLost,
		DependsOn: s.DependsOn, Priority: s.Priority, IdempotencyKey: s.IdempotencyKey, Stdin: s.Stdin, Uploads: s.Uploads,
		Limits: s.Limits, Security: s.Security, OutOfMemory: j.OutOfMemory, Usage: newUsageJSON(j.Usage), Denied: j.Denied,
		Terminal: s.Terminal, MergeOutput: s.MergeOutput, Warnings: s.Warnings, Base64: newBytesJSON(s),
	}
	if out.Args == nil {
		out.Args = []string{}
	}
	if status, ended := j.Status(); ended {
		out.ExitCode = &status
	}
	if j.Exit != nil {
		out.Signal = j.Exit.Signal
	}
	if j.State == joblet.Failed && j.Exit == nil {
		out.Failure = j.Failure.String()
	}
	if !j.Started.IsZero() && !j.Ended.IsZero() {
		out.DurationMS = j.Ended.Sub(j.Started).Milliseconds()
	}
	for _, p := range j.Past {
		a := attemptJSON{Status: p.State, Started: p.Started, Ended: p.Ended, Reason: p.Reason, Usage: newUsageJSON(p.Usage)}
		if status, ended := (joblet.Job{State: p.State, Exit: p.Exit}).Status(); ended {
			a.ExitCode = &status
		}
		if p.Exit != nil {
			a.Signal = p.Exit.Signal
		}
		out.Past = append(out.Past, a)
	}
	return out
}
