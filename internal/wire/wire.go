// Package wire translates between the words of package joblet and the messages
// of package api, once each way. Clients of all systems link it, so it knows
// nothing of the daemon's insides; what only the daemon has (its log's chunks,
// its runtimes) package server turns into messages.
package wire

import (
	"cmp"
	"math"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

// SpecToProto returns the request that asks for s. It contains the secrets, but not
// s.Uploads and s.Warnings, which the daemon sets. Only arguments, variables and paths
// may be other bytes than UTF-8.
func SpecToProto(s joblet.Spec) (*api.RunJobRequest, error) {
	for name, value := range s.Labels {
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return nil, joblet.Errorf(joblet.InvalidArgument, "label %.100q: not UTF-8", name)
		}
	}
	for what, text := range map[string]string{
		"job name": s.Name, "runtime name": s.Runtime, "schedule": s.Schedule,
		"overlap": string(s.Overlap), "idempotency key": s.IdempotencyKey, "standard input": string(s.Stdin),
		"dependency": strings.Join(s.DependsOn, " "), "processors": s.Limits.CPUCores,
		"security": securityText(s.Security),
	} {
		if !utf8.ValidString(text) {
			return nil, joblet.Errorf(joblet.InvalidArgument, "%s %.100q: not UTF-8", what, text)
		}
	}
	return &api.RunJobRequest{
		Command:           text(s.Command),
		Args:              joblet.Texts(s.Args),
		Name:              s.Name,
		Runtime:           s.Runtime,
		WorkDir:           text(s.WorkDir),
		Environment:       joblet.TextEnv(s.Env),
		SecretEnvironment: joblet.TextEnv(s.SecretEnv),
		TimeoutMs:         toMillis(s.Timeout),
		Init:              s.Init,
		Labels:            s.Labels,
		Schedule:          s.Schedule,
		Overlap:           string(s.Overlap),
		Retries:           toInt32(s.Retries),
		RetryDelayMs:      toMillis(s.RetryDelay),
		RetryOn:           toInt32s(s.RetryOn),
		RetryOnLost:       s.RetryOnLost,
		DependsOn:         s.DependsOn,
		Priority:          toInt32(s.Priority),
		IdempotencyKey:    s.IdempotencyKey,
		Stdin:             string(s.Stdin),
		LogMaxBytes:       s.LogMax,
		Limits:            LimitsToProto(s.Limits),
		Security:          securityToProto(s.Security),
		Terminal:          WindowToProto(s.Terminal),
		MergeOutput:       s.MergeOutput,

		CommandBytes: joblet.RawText(s.Command), ArgsBytes: joblet.RawTexts(s.Args), WorkDirBytes: joblet.RawText(s.WorkDir),
		EnvironmentBytes: joblet.RawEnv(s.Env), SecretEnvironmentBytes: joblet.RawEnv(s.SecretEnv),
	}, nil
}

// SpecFromProto returns the spec that r asks for, not yet validated. A field
// that is set and not built is an Unimplemented error that names it: what a
// user asks for is done or refused, never passed over. What comes along (files,
// uploads) and how the call goes on (detach) is the caller's to read.
func SpecFromProto(r *api.RunJobRequest) (joblet.Spec, error) {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"network", r.GetNetwork() != "" && r.GetNetwork() != "none"},
		{"volumes", len(r.GetVolumes()) != 0},
		{"gpu_count", r.GetGpuCount() != 0},
		{"gpu_memory_mb", r.GetGpuMemoryMb() != 0},
	} {
		if f.set {
			return joblet.Spec{}, joblet.Errorf(joblet.Unimplemented, "%s: not supported by this version of joblet", f.name)
		}
	}
	timeout, err := timeoutFromProto(r)
	if err != nil {
		return joblet.Spec{}, err
	}
	retryDelay, err := fromMillis("retry_delay_ms", r.GetRetryDelayMs())
	if err != nil {
		return joblet.Spec{}, err
	}
	if n := len(r.GetRetryOn()); n > maxRetryOn {
		return joblet.Spec{}, joblet.Errorf(joblet.InvalidArgument, "retry_on has %d exit statuses: at most %d are possible", n, maxRetryOn)
	}
	return joblet.Spec{
		Command:   joblet.FromRaw(r.GetCommand(), r.GetCommandBytes()),
		Args:      joblet.FromRawTexts(r.GetArgs(), r.GetArgsBytes()),
		Name:      cmp.Or(r.GetName(), r.GetOldName()),
		Runtime:   r.GetRuntime(),
		WorkDir:   joblet.FromRaw(r.GetWorkDir(), r.GetWorkDirBytes()),
		Env:       joblet.FromRawEnv(r.GetEnvironment(), r.GetEnvironmentBytes()),
		SecretEnv: joblet.FromRawEnv(r.GetSecretEnvironment(), r.GetSecretEnvironmentBytes()),
		Timeout:   timeout,
		Init:      r.GetInit(),

		Labels:         r.GetLabels(),
		Schedule:       r.GetSchedule(),
		Overlap:        joblet.Overlap(r.GetOverlap()),
		Retries:        int(r.GetRetries()),
		RetryDelay:     retryDelay,
		RetryOn:        fromInt32s(r.GetRetryOn()),
		RetryOnLost:    r.GetRetryOnLost(),
		DependsOn:      r.GetDependsOn(),
		Priority:       int(r.GetPriority()),
		IdempotencyKey: r.GetIdempotencyKey(),
		Stdin:          joblet.Stdin(r.GetStdin()),
		LogMax:         r.GetLogMaxBytes(),
		Limits:         specLimits(r),
		Security:       securityFromProto(r.GetSecurity()),
		Terminal:       WindowFromProto(r.GetTerminal()),
		MergeOutput:    r.GetMergeOutput(),
	}, nil
}

const maxRetryOn = 255 // exit statuses that are not 0

// JobToProto returns j as lists show it, its secrets masked.
func JobToProto(j joblet.Job) *api.Job {
	s := j.Spec.Redacted()
	p := &api.Job{
		Uuid:              j.ID,
		Command:           text(s.Command),
		Args:              joblet.Texts(s.Args),
		Status:            j.State.String(),
		StartTime:         formatSeconds(j.Started),
		EndTime:           formatSeconds(j.Ended),
		ExitCode:          exitCode(j),
		ScheduledTime:     formatSeconds(j.Scheduled),
		StartTimeNs:       exactNano(j.Started),
		EndTimeNs:         exactNano(j.Ended),
		ScheduledTimeNs:   exactNano(j.Scheduled),
		Runtime:           s.Runtime,
		Environment:       joblet.TextEnv(s.Env),
		SecretEnvironment: joblet.TextEnv(s.SecretEnv),
		Name:              s.Name,
		OldName:           s.Name,
		Exit:              exitToProto(j.Exit),
		Reason:            text(j.Reason),
		CreatedTime:       formatTime(j.Created),
		Owner:             j.Owner,
		HostPid:           int64(j.PID),
		LogBytes:          j.LogBytes,
		TimeoutMs:         toMillis(s.Timeout),
		Timeout:           formatDuration(s.Timeout),
		Init:              s.Init,
		IdBase:            j.IDBase,
		WorkDir:           text(s.WorkDir),
		Labels:            joblet.TextEnv(s.Labels),
		Priority:          toInt32(s.Priority),
		Attempt:           toInt32(j.Attempt),
		Retries:           toInt32(s.Retries),
		RetryDelayMs:      toMillis(s.RetryDelay),
		RetryOn:           toInt32s(s.RetryOn),
		RetryOnLost:       s.RetryOnLost,
		DependsOn:         joblet.Texts(s.DependsOn),
		Schedule:          text(s.Schedule),
		Overlap:           text(string(s.Overlap)),
		Parent:            j.Parent,
		IdempotencyKey:    text(s.IdempotencyKey),
		Stdin:             text(string(s.Stdin)),
		Uploads:           joblet.Texts(s.Uploads),
		Warnings:          s.Warnings,
		LogMaxBytes:       s.LogMax,
		WorkBytes:         j.WorkBytes,
		Usage:             usageToProto(j.Usage),
		OutOfMemory:       j.OutOfMemory,
		Denied:            deniedToProto(j.Denied),
		Security:          securityToProto(s.Security),
		Terminal:          WindowToProto(s.Terminal),
		MergeOutput:       s.MergeOutput,

		CommandBytes: joblet.RawText(s.Command), ArgsBytes: joblet.RawTexts(s.Args), WorkDirBytes: joblet.RawText(s.WorkDir),
		EnvironmentBytes: joblet.RawEnv(s.Env), SecretEnvironmentBytes: joblet.RawEnv(s.SecretEnv), UploadsBytes: joblet.RawTexts(s.Uploads),
	}
	showLimits(p, s.Limits)
	if j.State == joblet.Failed && j.Exit == nil {
		p.Failure = reason(j.Failure)
	}
	for _, a := range j.Past {
		p.Past = append(p.Past, &api.JobAttempt{
			StartTime: formatTime(a.Started), EndTime: formatTime(a.Ended),
			Status: a.State.String(), Exit: exitToProto(a.Exit), Reason: text(a.Reason), Usage: usageToProto(a.Usage),
		})
	}
	return p
}

// StatusToProto returns the job that p shows as GetJobStatus does, in the older
// message.
func StatusToProto(p *api.Job) *api.GetJobStatusResponse {
	status := &api.GetJobStatusResponse{}
	copyFields(status, p)
	return status
}

// RunToProto returns the answer of a call that accepted the job that p shows.
func RunToProto(p *api.Job) *api.RunJobResponse {
	r := &api.RunJobResponse{}
	copyFields(r, p)
	r.JobUuid, r.Job = p.GetUuid(), p
	const most = 2 << 20 // clients receive 4 MiB by default
	if proto.Size(r) > most {
		r.Args = nil // the job has them as well
	}
	return r
}

// copyFields sets dst's fields to those of the same name in src, which it shares
// afterwards: the two messages that hold a job tell the same facts under
// different numbers.
func copyFields(dst, src proto.Message) {
	to := dst.ProtoReflect()
	fields := to.Descriptor().Fields()
	src.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if same := fields.ByName(f.Name()); same != nil {
			to.Set(same, v)
		}
		return true
	})
}

// StatusFromProto is JobFromProto for the older message.
func StatusFromProto(p *api.GetJobStatusResponse) (joblet.Job, error) {
	job := &api.Job{}
	copyFields(job, p)
	return JobFromProto(job)
}

// JobFromProto returns the job that p shows. A failure of a kind that this
// version does not know is Internal; a state must be known.
func JobFromProto(p *api.Job) (joblet.Job, error) {
	state, err := joblet.ParseState(p.GetStatus())
	if err != nil {
		return joblet.Job{}, err
	}
	failure, _ := kindFromReason(p.GetFailure())
	j := joblet.Job{
		ID: p.GetUuid(),
		Spec: joblet.Spec{
			Command:   joblet.FromRaw(p.GetCommand(), p.GetCommandBytes()),
			Args:      joblet.FromRawTexts(p.GetArgs(), p.GetArgsBytes()),
			Name:      p.GetName(),
			Runtime:   p.GetRuntime(),
			WorkDir:   joblet.FromRaw(p.GetWorkDir(), p.GetWorkDirBytes()),
			Env:       joblet.FromRawEnv(p.GetEnvironment(), p.GetEnvironmentBytes()),
			SecretEnv: joblet.FromRawEnv(p.GetSecretEnvironment(), p.GetSecretEnvironmentBytes()),
			Timeout:   time.Duration(p.GetTimeoutMs()) * time.Millisecond,
			Init:      p.GetInit(),

			Labels:         p.GetLabels(),
			Schedule:       p.GetSchedule(),
			Overlap:        joblet.Overlap(p.GetOverlap()),
			Retries:        int(p.GetRetries()),
			RetryDelay:     time.Duration(p.GetRetryDelayMs()) * time.Millisecond,
			RetryOn:        fromInt32s(p.GetRetryOn()),
			RetryOnLost:    p.GetRetryOnLost(),
			DependsOn:      p.GetDependsOn(),
			Priority:       int(p.GetPriority()),
			IdempotencyKey: p.GetIdempotencyKey(),
			Stdin:          joblet.Stdin(p.GetStdin()),
			Uploads:        joblet.FromRawTexts(p.GetUploads(), p.GetUploadsBytes()),
			Warnings:       p.GetWarnings(),
			LogMax:         p.GetLogMaxBytes(),
			Limits:         LimitsFromProto(p.GetLimits()),
			Security:       securityFromProto(p.GetSecurity()),
			Terminal:       WindowFromProto(p.GetTerminal()),
			MergeOutput:    p.GetMergeOutput(),
		},
		Usage:       usageFromProto(p.GetUsage()),
		OutOfMemory: p.GetOutOfMemory(),
		Denied:      deniedFromProto(p.GetDenied()),
		Owner:       p.GetOwner(),
		State:       state,
		Parent:      p.GetParent(),
		Attempt:     int(p.GetAttempt()),
		Exit:        exitFromProto(p.GetExit()),
		Reason:      p.GetReason(),
		Failure:     failure,
		PID:         int(p.GetHostPid()),
		IDBase:      p.GetIdBase(),
		LogBytes:    p.GetLogBytes(),
		WorkBytes:   p.GetWorkBytes(),
	}
	if err := parseTimes([]timeField{
		{"created_time", &j.Created, p.GetCreatedTime()},
		{"start_time", &j.Started, p.GetStartTime()},
		{"end_time", &j.Ended, p.GetEndTime()},
		{"scheduled_time", &j.Scheduled, p.GetScheduledTime()},
	}); err != nil {
		return joblet.Job{}, err
	}
	for _, exact := range []struct {
		to *time.Time
		ns int64
	}{{&j.Started, p.GetStartTimeNs()}, {&j.Ended, p.GetEndTimeNs()}, {&j.Scheduled, p.GetScheduledTimeNs()}} {
		if exact.ns != 0 {
			*exact.to = time.Unix(0, exact.ns).UTC()
		}
	}
	for _, past := range p.GetPast() {
		a := joblet.Attempt{Exit: exitFromProto(past.GetExit()), Reason: past.GetReason(), Usage: usageFromProto(past.GetUsage())}
		if a.State, err = joblet.ParseState(past.GetStatus()); err != nil {
			return joblet.Job{}, err
		}
		if err := parseTimes([]timeField{
			{"start_time", &a.Started, past.GetStartTime()},
			{"end_time", &a.Ended, past.GetEndTime()},
		}); err != nil {
			return joblet.Job{}, err
		}
		j.Past = append(j.Past, a)
	}
	return j, nil
}

// exitCode is the one number that older clients read: -1 for a job that ended
// without its command having run.
func exitCode(j joblet.Job) int32 {
	if j.State.Final() && j.State != joblet.TimedOut && j.Exit == nil && j.Started.IsZero() {
		return -1
	}
	status, _ := j.Status()
	return int32(status)
}

func exitToProto(e *joblet.Exit) *api.JobExit {
	if e == nil {
		return nil
	}
	return &api.JobExit{Code: int32(e.Code), Signal: int32(e.Signal)}
}

func exitFromProto(p *api.JobExit) *joblet.Exit {
	if p == nil {
		return nil
	}
	return &joblet.Exit{Code: int(p.GetCode()), Signal: int(p.GetSignal())}
}

// StopToProto returns the request to stop the job that ref names.
func StopToProto(ref string, o joblet.StopOptions) *api.StopJobRequest {
	r := &api.StopJobRequest{Uuid: ref, Signal: toInt32(o.Signal)}
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

// Refuse is a header of RunJob: see there.
const Refuse = "joblet-refuse"

// ExecAnswers is a header of ExecJob: see there.
const ExecAnswers = "joblet-exec-answers"

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
	return &api.QueryJobsRequest{
		Name: f.Name, Owner: f.Owner, Parent: f.Parent, Before: f.Before,
		Since: formatTime(f.Since), EndedBefore: formatTime(f.EndedBefore), Limit: toInt32(f.Limit),
		States: statesToProto(f.States), Labels: labelsToProto(f.Labels),
	}
}

// FilterFromProto returns the filter that r asks for.
func FilterFromProto(r *api.QueryJobsRequest) (joblet.Filter, error) {
	f := joblet.Filter{
		Name: r.GetName(), Owner: r.GetOwner(), Parent: r.GetParent(), Before: r.GetBefore(), Limit: int(r.GetLimit()),
	}
	if f.Limit < 0 {
		return f, joblet.Errorf(joblet.InvalidArgument, "limit %d: must not be negative", f.Limit)
	}
	var err error
	if f.States, err = statesFromProto(r.GetStates()); err != nil {
		return f, err
	}
	if f.Labels, err = labelsFromProto(r.GetLabels()); err != nil {
		return f, err
	}
	return f, parseTimes([]timeField{{"since", &f.Since, r.GetSince()}, {"ended_before", &f.EndedBefore, r.GetEndedBefore()}})
}

// PruneToProto returns the request to delete the jobs that pass f, of which only
// EndedBefore, States and Labels may be set: to pass over another would delete
// more than was asked for.
func PruneToProto(f joblet.Filter, dryRun bool) (*api.PruneJobsRequest, error) {
	rest := f
	rest.EndedBefore, rest.States, rest.Labels = time.Time{}, nil, nil
	if !reflect.ValueOf(rest).IsZero() {
		return nil, joblet.Errorf(joblet.InvalidArgument, "cannot prune by these fields: only the time of the end, states and labels select jobs")
	}
	return &api.PruneJobsRequest{
		EndedBefore: formatTime(f.EndedBefore), States: statesToProto(f.States), Labels: labelsToProto(f.Labels), DryRun: dryRun,
	}, nil
}

// PruneFromProto returns the filter of the jobs that r wants deleted.
func PruneFromProto(r *api.PruneJobsRequest) (joblet.Filter, error) {
	var f joblet.Filter
	var err error
	if f.States, err = statesFromProto(r.GetStates()); err != nil {
		return f, err
	}
	if f.Labels, err = labelsFromProto(r.GetLabels()); err != nil {
		return f, err
	}
	return f, parseTimes([]timeField{{"ended_before", &f.EndedBefore, r.GetEndedBefore()}})
}

func statesToProto(states []joblet.State) []string {
	var names []string
	for _, s := range states {
		names = append(names, s.String())
	}
	return names
}

func statesFromProto(names []string) ([]joblet.State, error) {
	if n := len(joblet.States()); len(names) > n {
		return nil, joblet.Errorf(joblet.InvalidArgument, "%d states: at most %d are possible", len(names), n)
	}
	var states []joblet.State
	for _, name := range names {
		s, err := joblet.ParseState(name)
		if err != nil {
			return nil, err
		}
		states = append(states, s)
	}
	return states, nil
}

func labelsToProto(labels []joblet.LabelMatch) []string {
	var all []string
	for _, m := range labels {
		all = append(all, m.String())
	}
	return all
}

func labelsFromProto(all []string) ([]joblet.LabelMatch, error) {
	if len(all) > joblet.MaxLabels {
		return nil, joblet.Errorf(joblet.InvalidArgument, "%d labels: at most %d are possible", len(all), joblet.MaxLabels)
	}
	var labels []joblet.LabelMatch
	for _, s := range all {
		m, err := joblet.ParseLabelMatch(s)
		if err != nil {
			return nil, err
		}
		labels = append(labels, m)
	}
	return labels, nil
}

// FollowToProto returns the request for the output of the job that ref names.
func FollowToProto(ref string, o joblet.LogOptions) *api.FollowJobRequest {
	return &api.FollowJobRequest{
		Uuid: ref, Offset: o.Offset, Tail: o.Tail, Since: formatTime(o.Since), Until: formatTime(o.Until),
		NoFollow: !o.Follow, Stdout: o.Stdout, Stderr: o.Stderr,
	}
}

// LogOptionsFromProto reads an api.FollowJobRequest or an api.GetJobLogsRequest.
func LogOptionsFromProto(r interface {
	GetOffset() int64
	GetTail() int64
	GetSince() string
	GetUntil() string
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
	return o, parseTimes([]timeField{{"since", &o.Since, r.GetSince()}, {"until", &o.Until, r.GetUntil()}})
}

// toInt32 keeps a number that is out of bounds out of bounds: validation refuses it.
func toInt32(n int) int32 { return int32(min(max(n, math.MinInt32), math.MaxInt32)) }

func toInt32s(all []int) []int32 {
	var out []int32
	for _, n := range all {
		out = append(out, toInt32(n))
	}
	return out
}

func fromInt32s(all []int32) []int {
	var out []int
	for _, n := range all {
		out = append(out, int(n))
	}
	return out
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

// timeoutFromProto reads timeout_ms, or else timeout, in whole milliseconds.
func timeoutFromProto(r *api.RunJobRequest) (time.Duration, error) {
	if r.GetTimeoutMs() != 0 || r.GetTimeout() == "" {
		return fromMillis("timeout_ms", r.GetTimeoutMs())
	}
	d, err := time.ParseDuration(r.GetTimeout())
	if err != nil {
		return 0, joblet.Errorf(joblet.InvalidArgument, "timeout %.50q: must be a duration such as 30s or 1h30m", r.GetTimeout())
	}
	if d < 0 || d > joblet.MaxTimeout {
		return 0, joblet.Errorf(joblet.InvalidArgument, "timeout %.50q: must be between 0 (none) and %s", r.GetTimeout(), joblet.ReadableDuration(joblet.MaxTimeout))
	}
	return time.Duration(toMillis(d)) * time.Millisecond, nil
}

// formatDuration returns d as timeoutFromProto reads it.
func formatDuration(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// formatSeconds is formatTime for fields of the public API, whose clients read
// whole seconds.
func formatSeconds(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

type timeField struct {
	name string
	to   *time.Time
	from string
}

// parseTimes reads each time that is given.
func parseTimes(fields []timeField) error {
	for _, f := range fields {
		if f.from == "" {
			continue
		}
		t, err := time.Parse(time.RFC3339Nano, f.from)
		if err != nil {
			return joblet.Errorf(joblet.InvalidArgument, "%s: %.50q is not a valid time: use RFC 3339, such as 2026-03-01T09:00:00Z", f.name, f.from)
		}
		*f.to = t
	}
	return nil
}

// text makes what may hold any bytes (a path, an error's text) fit for a
// protobuf string.
func text(s string) string { return joblet.Text(s) }

// FilesToProto returns the request for those files of the job that ref names that
// match the patterns.
func FilesToProto(ref string, patterns []string) *api.GetJobFilesRequest {
	return &api.GetJobFilesRequest{Uuid: ref, Patterns: joblet.Texts(patterns), PatternsBytes: joblet.RawTexts(patterns)}
}

// PatternsFromProto returns the patterns that r asks for.
func PatternsFromProto(r *api.GetJobFilesRequest) []string {
	return joblet.FromRawTexts(r.GetPatterns(), r.GetPatternsBytes())
}

// RerunToProto returns the request to run the job that ref names again.
func RerunToProto(ref string, secrets map[string]string) *api.RerunJobRequest {
	return &api.RerunJobRequest{Uuid: ref, SecretEnvironment: joblet.TextEnv(secrets), SecretEnvironmentBytes: joblet.RawEnv(secrets)}
}

// SecretsFromProto returns the secrets that r gives.
func SecretsFromProto(r *api.RerunJobRequest) map[string]string {
	return joblet.FromRawEnv(r.GetSecretEnvironment(), r.GetSecretEnvironmentBytes())
}
