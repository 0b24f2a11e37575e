// Package wire translates between the words of package joblet and the messages
// of package api, once each way. Clients of all systems link it, so it knows
// nothing of the daemon's insides; what only the daemon has (its log's chunks,
// its runtimes) package server turns into messages.
package wire

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

// SpecToProto returns the request that asks for s. Secrets are in it. Protobuf
// texts are UTF-8, so a spec that holds other bytes is refused.
func SpecToProto(s joblet.Spec) (*api.RunJobRequest, error) {
	for i, a := range slices.Concat([]string{s.Command}, s.Args) {
		if !utf8.ValidString(a) {
			return nil, joblet.Errorf(joblet.InvalidArgument, "argument %d: %.100q is not UTF-8, and the API carries nothing else", i, a)
		}
	}
	for _, env := range []map[string]string{s.Env, s.SecretEnv} {
		for name, value := range env {
			if !utf8.ValidString(name) || !utf8.ValidString(value) {
				return nil, joblet.Errorf(joblet.InvalidArgument, "environment variable %.100q: not UTF-8, and the API carries nothing else", name)
			}
		}
	}
	for what, text := range map[string]string{"job name": s.Name, "runtime name": s.Runtime, "workdir": s.WorkDir} {
		if !utf8.ValidString(text) {
			return nil, joblet.Errorf(joblet.InvalidArgument, "%s %.100q: not UTF-8", what, text)
		}
	}
	return &api.RunJobRequest{
		Command:           s.Command,
		Args:              s.Args,
		Name:              s.Name,
		Runtime:           s.Runtime,
		WorkDir:           s.WorkDir,
		Environment:       s.Env,
		SecretEnvironment: s.SecretEnv,
		TimeoutMs:         toMillis(s.Timeout),
		Init:              s.Init,
	}, nil
}

// SpecFromProto returns the spec that r asks for, not yet validated. A field
// that is set and not built is an Unimplemented error that names it: what a
// user asks for is done or refused, never passed over.
func SpecFromProto(r *api.RunJobRequest) (joblet.Spec, error) {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"max_cpu", r.GetMaxCpu() != 0},
		{"cpu_cores", r.GetCpuCores() != ""},
		{"max_memory", r.GetMaxMemory() != 0},
		{"max_io_bps", r.GetMaxIoBps() != 0},
		{"uploads", len(r.GetUploads()) != 0},
		{"schedule", r.GetSchedule() != ""},
		{"network", r.GetNetwork() != "" && r.GetNetwork() != "none"},
		{"volumes", len(r.GetVolumes()) != 0},
		{"gpu_count", r.GetGpuCount() != 0},
		{"gpu_memory_mb", r.GetGpuMemoryMb() != 0},
	} {
		if f.set {
			return joblet.Spec{}, joblet.Errorf(joblet.Unimplemented, "%s: this version of joblet cannot do that yet", f.name)
		}
	}
	timeout, err := fromMillis("timeout_ms", r.GetTimeoutMs())
	if err != nil {
		return joblet.Spec{}, err
	}
	return joblet.Spec{
		Command:   r.GetCommand(),
		Args:      r.GetArgs(),
		Name:      r.GetName(),
		Runtime:   r.GetRuntime(),
		WorkDir:   r.GetWorkDir(),
		Env:       r.GetEnvironment(),
		SecretEnv: r.GetSecretEnvironment(),
		Timeout:   timeout,
		Init:      r.GetInit(),
	}, nil
}

// JobToProto returns j as lists show it, its secrets masked.
func JobToProto(j joblet.Job) *api.Job {
	s := j.Spec.Redacted()
	return &api.Job{
		Uuid:              j.ID,
		Command:           text(s.Command),
		Args:              texts(s.Args),
		Status:            j.State.String(),
		StartTime:         formatTime(j.Started),
		EndTime:           formatTime(j.Ended),
		ExitCode:          exitCode(j),
		Runtime:           s.Runtime,
		Environment:       textMap(s.Env),
		SecretEnvironment: s.SecretEnv,
		Name:              s.Name,
		Exit:              exitToProto(j.Exit),
		Reason:            text(j.Reason),
		CreatedTime:       formatTime(j.Created),
		Owner:             j.Owner,
		HostPid:           int64(j.PID),
		LogBytes:          j.LogBytes,
		TimeoutMs:         toMillis(s.Timeout),
		Init:              s.Init,
		IdBase:            j.IDBase,
		WorkDir:           text(s.WorkDir),
	}
}

// StatusToProto returns j as GetJobStatus shows it: the same as JobToProto in
// the older message.
func StatusToProto(j joblet.Job) *api.GetJobStatusResponse {
	p := JobToProto(j)
	return &api.GetJobStatusResponse{
		Uuid:              p.Uuid,
		Command:           p.Command,
		Args:              p.Args,
		Status:            p.Status,
		StartTime:         p.StartTime,
		EndTime:           p.EndTime,
		ExitCode:          p.ExitCode,
		Runtime:           p.Runtime,
		Environment:       p.Environment,
		SecretEnvironment: p.SecretEnvironment,
		Name:              p.Name,
		Exit:              p.Exit,
		Reason:            p.Reason,
		CreatedTime:       p.CreatedTime,
		Owner:             p.Owner,
		HostPid:           p.HostPid,
		LogBytes:          p.LogBytes,
		TimeoutMs:         p.TimeoutMs,
		Init:              p.Init,
		IdBase:            p.IdBase,
		WorkDir:           p.WorkDir,
	}
}

// record is what api.Job and api.GetJobStatusResponse have in common: the same
// facts under different numbers.
type record interface {
	GetUuid() string
	GetCommand() string
	GetArgs() []string
	GetStatus() string
	GetStartTime() string
	GetEndTime() string
	GetRuntime() string
	GetEnvironment() map[string]string
	GetSecretEnvironment() map[string]string
	GetName() string
	GetExit() *api.JobExit
	GetReason() string
	GetCreatedTime() string
	GetOwner() string
	GetHostPid() int64
	GetLogBytes() int64
	GetTimeoutMs() int64
	GetInit() bool
	GetIdBase() uint32
	GetWorkDir() string
}

// JobFromProto reads an api.Job or an api.GetJobStatusResponse.
func JobFromProto(p record) (joblet.Job, error) {
	state, err := joblet.ParseState(p.GetStatus())
	if err != nil {
		return joblet.Job{}, err
	}
	j := joblet.Job{
		ID: p.GetUuid(),
		Spec: joblet.Spec{
			Command:   p.GetCommand(),
			Args:      p.GetArgs(),
			Name:      p.GetName(),
			Runtime:   p.GetRuntime(),
			WorkDir:   p.GetWorkDir(),
			Env:       p.GetEnvironment(),
			SecretEnv: p.GetSecretEnvironment(),
			Timeout:   time.Duration(p.GetTimeoutMs()) * time.Millisecond,
			Init:      p.GetInit(),
		},
		Owner:    p.GetOwner(),
		State:    state,
		Reason:   p.GetReason(),
		PID:      int(p.GetHostPid()),
		IDBase:   p.GetIdBase(),
		LogBytes: p.GetLogBytes(),
	}
	if e := p.GetExit(); e != nil {
		j.Exit = &joblet.Exit{Code: int(e.GetCode()), Signal: int(e.GetSignal())}
	}
	for _, t := range []struct {
		name string
		to   *time.Time
		from string
	}{
		{"created_time", &j.Created, p.GetCreatedTime()},
		{"start_time", &j.Started, p.GetStartTime()},
		{"end_time", &j.Ended, p.GetEndTime()},
	} {
		if *t.to, err = parseTime(t.from); err != nil {
			return joblet.Job{}, joblet.Errorf(joblet.InvalidArgument, "%s: %w", t.name, err)
		}
	}
	return j, nil
}

// exitCode is the one number that older clients read.
func exitCode(j joblet.Job) int32 {
	switch {
	case j.State == joblet.TimedOut:
		return joblet.StatusTimeout
	case j.Exit != nil:
		return int32(j.Exit.Status())
	case j.State.Final():
		return -1
	}
	return 0
}

func exitToProto(e *joblet.Exit) *api.JobExit {
	if e == nil {
		return nil
	}
	return &api.JobExit{Code: int32(e.Code), Signal: int32(e.Signal)}
}

// StopToProto returns the request to stop the job that ref names.
func StopToProto(ref string, o joblet.StopOptions) *api.StopJobRequest {
	r := &api.StopJobRequest{Uuid: ref, Signal: int32(o.Signal)}
	if o.Grace >= 0 {
		ms := toMillis(o.Grace)
		r.GraceMs = &ms
	}
	return r
}

// StopFromProto returns what r asks for.
func StopFromProto(r *api.StopJobRequest) (joblet.StopOptions, error) {
	o := joblet.StopOptions{Signal: int(r.GetSignal()), Grace: -1}
	if o.Signal < 0 || o.Signal > maxSignal {
		return o, joblet.Errorf(joblet.InvalidArgument, "signal %d: must be between 1 and %d", o.Signal, maxSignal)
	}
	if r.GraceMs == nil {
		return o, nil
	}
	var err error
	o.Grace, err = fromMillis("grace_ms", r.GetGraceMs())
	return o, err
}

const maxSignal = 64 // SIGRTMAX on Linux

// SignalFromProto returns the signal that r names.
func SignalFromProto(r *api.SignalJobRequest) (int, error) {
	if s := int(r.GetSignal()); s >= 1 && s <= maxSignal {
		return s, nil
	}
	return 0, joblet.Errorf(joblet.InvalidArgument, "signal %d: must be between 1 and %d", r.GetSignal(), maxSignal)
}

// FilterToProto returns the request for the jobs that pass f.
func FilterToProto(f joblet.Filter) *api.QueryJobsRequest {
	r := &api.QueryJobsRequest{
		Name: f.Name, Owner: f.Owner, Before: f.Before,
		Since: formatTime(f.Since), Limit: int32(f.Limit),
	}
	for _, s := range f.States {
		r.States = append(r.States, s.String())
	}
	return r
}

// FilterFromProto returns the filter that r asks for.
func FilterFromProto(r *api.QueryJobsRequest) (joblet.Filter, error) {
	f := joblet.Filter{Name: r.GetName(), Owner: r.GetOwner(), Before: r.GetBefore(), Limit: int(r.GetLimit())}
	if f.Limit < 0 {
		return f, joblet.Errorf(joblet.InvalidArgument, "limit %d: must not be negative", f.Limit)
	}
	if n := len(joblet.States()); len(r.GetStates()) > n {
		return f, joblet.Errorf(joblet.InvalidArgument, "%d states: there are only %d", len(r.GetStates()), n)
	}
	for _, name := range r.GetStates() {
		s, err := joblet.ParseState(name)
		if err != nil {
			return f, err
		}
		f.States = append(f.States, s)
	}
	var err error
	if f.Since, err = parseTime(r.GetSince()); err != nil {
		return f, joblet.Errorf(joblet.InvalidArgument, "since: %w", err)
	}
	return f, nil
}

// FollowToProto returns the request for the output of the job that ref names.
func FollowToProto(ref string, o joblet.LogOptions) *api.FollowJobRequest {
	return &api.FollowJobRequest{
		Uuid: ref, Offset: o.Offset, Tail: o.Tail, NoFollow: !o.Follow, Stdout: o.Stdout, Stderr: o.Stderr,
	}
}

// LogOptionsFromProto reads an api.FollowJobRequest or an api.GetJobLogsRequest.
func LogOptionsFromProto(r interface {
	GetOffset() int64
	GetTail() int64
	GetNoFollow() bool
	GetStdout() bool
	GetStderr() bool
}) (joblet.LogOptions, error) {
	o := joblet.LogOptions{
		Offset: r.GetOffset(), Tail: r.GetTail(), Follow: !r.GetNoFollow(), Stdout: r.GetStdout(), Stderr: r.GetStderr(),
	}
	if o.Offset < 0 || o.Tail < 0 {
		return o, joblet.Errorf(joblet.InvalidArgument, "offset %d, tail %d: must not be negative", o.Offset, o.Tail)
	}
	return o, nil
}

// toMillis rounds up, so that a positive duration stays positive.
func toMillis(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}

func fromMillis(field string, ms int64) (time.Duration, error) {
	if limit := joblet.MaxTimeout.Milliseconds(); ms < 0 || ms > limit {
		return 0, joblet.Errorf(joblet.InvalidArgument, "%s %d: must be between 0 and %d", field, ms, limit)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func parseTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("time %.50q is not RFC 3339", s)
	}
	return t, nil
}

// text makes what may hold any bytes (a path, an error's text) fit for a
// protobuf string.
func text(s string) string { return strings.ToValidUTF8(s, "\ufffd") }

func texts(all []string) []string {
	if !slices.ContainsFunc(all, func(s string) bool { return !utf8.ValidString(s) }) {
		return all
	}
	all = slices.Clone(all)
	for i := range all {
		all[i] = text(all[i])
	}
	return all
}

func textMap(m map[string]string) map[string]string {
	m = maps.Clone(m)
	for k, v := range m {
		m[k] = text(v)
	}
	return m
}
