package wire

import (
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/testenv"
)

// overWire is m as the other side reads it.
func overWire[M proto.Message](t *testing.T, m M) M {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out.(M)
}

func TestSpecRoundTrip(t *testing.T) {
	t.Parallel()
	want := testenv.Filled[joblet.Spec](t)
	p, err := SpecToProto(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := SpecFromProto(overWire(t, p))
	if err != nil {
		t.Fatal(err)
	}
	want.Uploads, want.Warnings = nil, nil // part of a job's record, not of what is asked
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestJobRoundTrip(t *testing.T) {
	t.Parallel()
	ran := testenv.Filled[joblet.Job](t)
	neverRan := ran
	neverRan.Exit = nil
	var empty joblet.Job
	empty.State = joblet.Scheduled
	for name, job := range map[string]joblet.Job{"ran": ran, "never ran": neverRan, "empty": empty} {
		want := job
		want.Spec = want.Spec.Redacted()
		if job.Exit != nil {
			want.Failure = joblet.Internal // the exit says it
		}
		got, err := JobFromProto(overWire(t, JobToProto(job)))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: Job:\ngot  %+v, %v\nwant %+v", name, got, err, want)
		}
		got, err = StatusFromProto(overWire(t, StatusToProto(JobToProto(job))))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: GetJobStatusResponse:\ngot  %+v, %v\nwant %+v", name, got, err, want)
		}
	}
}

// TestJobMessages: the two messages that hold a job have the same fields, so
// that none is lost on the way from one to the other.
func TestJobMessages(t *testing.T) {
	t.Parallel()
	job, status := (&api.Job{}).ProtoReflect().Descriptor().Fields(), (&api.GetJobStatusResponse{}).ProtoReflect().Descriptor().Fields()
	for i := range job.Len() {
		f := job.Get(i)
		same := status.ByName(f.Name())
		if same == nil || same.Kind() != f.Kind() || same.Cardinality() != f.Cardinality() || same.Message() != f.Message() && !f.IsMap() {
			t.Errorf("%s: GetJobStatusResponse has %v", f.Name(), same)
		}
	}
}

// TestBytes: what need not be UTF-8 arrives as it was, and clients that know nothing of
// it see a text.
func TestBytes(t *testing.T) {
	t.Parallel()
	const odd = "a\xff\xed\xa0\x80"
	for name, s := range map[string]joblet.Spec{
		"command":  {Command: odd},
		"argument": {Command: "a", Args: []string{"", odd, "ü"}},
		"workdir":  {Command: "a", WorkDir: "/" + odd},
		"value":    {Command: "a", Env: map[string]string{"A": odd, "B": "ü=", "C": ""}},
		"name":     {Command: "a", Env: map[string]string{odd: "1", odd + "\xfe": "2", joblet.Text(odd): "3"}},
		"secret":   {Command: "a", SecretEnv: map[string]string{"A": odd, odd: "x"}},
		"upload":   {Command: "a", Uploads: []string{odd, "b"}},
	} {
		p, err := SpecToProto(s)
		if err != nil {
			t.Fatal(err)
		}
		got, err := SpecFromProto(overWire(t, p))
		want := s
		if want.Uploads = nil; err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, want)
		}
		job, want := joblet.Job{State: joblet.Running, Spec: s}, s.Redacted()
		if got, err := JobFromProto(overWire(t, JobToProto(job))); err != nil || !reflect.DeepEqual(got.Spec, want) {
			t.Errorf("%s: Job: got %+v, %v; want %+v", name, got.Spec, err, want)
		}
		if got, err := StatusFromProto(overWire(t, StatusToProto(JobToProto(job)))); err != nil || !reflect.DeepEqual(got.Spec, want) {
			t.Errorf("%s: GetJobStatusResponse: got %+v, %v; want %+v", name, got.Spec, err, want)
		}
	}
	p, err := SpecToProto(joblet.Spec{Command: odd, Args: []string{"\xff", "b"}, Env: map[string]string{"A": "\xff"}})
	if err != nil || p.Command != "a\ufffd" || !slices.Equal(p.Args, []string{"\ufffd", "b"}) || p.Environment["A"] != "\ufffd" {
		t.Errorf("as text: %v, %v", p, err)
	}
	plain, err := SpecToProto(joblet.Spec{Command: "a", Args: []string{"ü"}, Env: map[string]string{"A": "ü"}, SecretEnv: map[string]string{"B": ""}, WorkDir: "/"})
	if err != nil || plain.CommandBytes != nil || plain.ArgsBytes != nil || plain.EnvironmentBytes != nil || plain.SecretEnvironmentBytes != nil || plain.WorkDirBytes != nil {
		t.Errorf("bytes of what is text: %v, %v", plain, err)
	}
	for _, patterns := range [][]string{nil, {"a"}, {"a", "\xff"}} {
		if got := PatternsFromProto(overWire(t, FilesToProto("x", patterns))); !slices.Equal(got, patterns) {
			t.Errorf("patterns: got %q, want %q", got, patterns)
		}
	}
	for _, secrets := range []map[string]string{nil, {"A": "b"}, {"A": "\xff", "\xfe": ""}} {
		if got := SecretsFromProto(overWire(t, RerunToProto("x", secrets))); !maps.Equal(got, secrets) {
			t.Errorf("secrets: got %q, want %q", got, secrets)
		}
	}
}

func TestFailure(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		job  joblet.Job
		want string
	}{
		{joblet.Job{State: joblet.Failed, Failure: joblet.CommandNotFound}, "COMMAND_NOT_FOUND"},
		{joblet.Job{State: joblet.Failed}, "INTERNAL"},
		{joblet.Job{State: joblet.Failed, Exit: &joblet.Exit{Code: 1}}, ""},
		{joblet.Job{State: joblet.Lost}, ""},
		{joblet.Job{State: joblet.Running}, ""},
	} {
		if got := JobToProto(tt.job).GetFailure(); got != tt.want {
			t.Errorf("%+v: got %q", tt.job, got)
		}
	}
	if j, err := JobFromProto(&api.Job{Status: "FAILED", Failure: "TO_COME"}); err != nil || j.Failure != joblet.Internal {
		t.Errorf("to come: got %v, %v", j.Failure, err)
	}
}

// TestOldFields: clients before version 2.5 find a job's name and the answer of RunJob
// in the old fields, and no client finds parts of a second in public times.
func TestOldFields(t *testing.T) {
	t.Parallel()
	if s, err := SpecFromProto(&api.RunJobRequest{OldName: "old"}); err != nil || s.Name != "old" {
		t.Errorf("old name: got %q, %v", s.Name, err)
	}
	if s, err := SpecFromProto(&api.RunJobRequest{OldName: "old", Name: "new"}); err != nil || s.Name != "new" {
		t.Errorf("both names: got %q, %v", s.Name, err)
	}
	job := testenv.Filled[joblet.Job](t)
	p := JobToProto(job)
	run, status := RunToProto(p), StatusToProto(p)
	if p.GetOldName() != job.Spec.Name || status.GetOldName() != job.Spec.Name {
		t.Errorf("got names %q and %q", p.GetOldName(), status.GetOldName())
	}
	fields := run.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); !run.ProtoReflect().Has(f) {
			t.Errorf("%s of the answer is not set", f.Name())
		}
	}
	for name, s := range map[string]string{
		"start_time": p.GetStartTime(), "end_time": p.GetEndTime(), "scheduled_time": p.GetScheduledTime(), "the status": status.GetStartTime(), "the answer": run.GetStartTime(),
	} {
		if m, err := time.Parse("2006-01-02T15:04:05Z", s); err != nil || m.Nanosecond() != 0 || strings.Contains(s, ".") {
			t.Errorf("%s: got %q", name, s)
		}
	}
	job.Spec.Args = []string{strings.Repeat("x", 1<<20), strings.Repeat("x", 1<<20)}
	if run := RunToProto(JobToProto(job)); len(run.GetArgs()) != 0 || len(run.GetJob().GetArgs()) != 2 || proto.Size(run) > 4<<20 {
		t.Errorf("long arguments: %d of them, %d bytes", len(run.GetArgs()), proto.Size(run))
	}
	later := joblet.Job{State: joblet.Scheduled, Scheduled: time.Date(2999, 1, 2, 3, 4, 5, 0, time.UTC)}
	if got, err := JobFromProto(JobToProto(later)); err != nil || !got.Scheduled.Equal(later.Scheduled) {
		t.Errorf("a late time: got %v, %v", got.Scheduled, err)
	}
}

func TestSecretsNeverShown(t *testing.T) {
	t.Parallel()
	job := joblet.Job{ID: joblet.NewID(), State: joblet.Running, Spec: joblet.Spec{
		Command: "true", SecretEnv: map[string]string{"TOKEN": "hunter2"},
	}}
	for _, m := range []proto.Message{JobToProto(job), StatusToProto(JobToProto(job))} {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "hunter2") {
			t.Errorf("%T holds the secret", m)
		}
	}
	if job.Spec.SecretEnv["TOKEN"] != "hunter2" {
		t.Error("the job itself was changed")
	}
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	started := time.Unix(1, 0)
	for _, tt := range []struct {
		job  joblet.Job
		want int32
	}{
		{joblet.Job{State: joblet.Running, Started: started}, 0},
		{joblet.Job{State: joblet.Scheduled}, 0},
		{joblet.Job{State: joblet.Completed, Started: started, Exit: &joblet.Exit{}}, 0},
		{joblet.Job{State: joblet.Failed, Started: started, Exit: &joblet.Exit{Code: 3}}, 3},
		{joblet.Job{State: joblet.Failed, Started: started, Exit: &joblet.Exit{Signal: 9}}, 137},
		{joblet.Job{State: joblet.Failed, Failure: joblet.CommandNotFound}, -1},
		{joblet.Job{State: joblet.Lost}, -1},
		{joblet.Job{State: joblet.Lost, Started: started}, joblet.StatusFailure},
		{joblet.Job{State: joblet.Canceled}, -1},
		{joblet.Job{State: joblet.TimedOut, Started: started, Exit: &joblet.Exit{Signal: 15}}, 124},
	} {
		if got := JobToProto(tt.job).GetExitCode(); got != tt.want {
			t.Errorf("%+v: got %d, want %d", tt.job, got, tt.want)
		}
	}
}

func TestTimeoutField(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		request *api.RunJobRequest
		want    time.Duration
	}{
		{&api.RunJobRequest{Timeout: "30s"}, 30 * time.Second},
		{&api.RunJobRequest{Timeout: "1h30m"}, 90 * time.Minute},
		{&api.RunJobRequest{Timeout: "1ns"}, time.Millisecond},
		{&api.RunJobRequest{Timeout: "0"}, 0},
		{&api.RunJobRequest{Timeout: "30s", TimeoutMs: 5}, 5 * time.Millisecond},
	} {
		if got, err := SpecFromProto(tt.request); err != nil || got.Timeout != tt.want {
			t.Errorf("%v: got %v, %v", tt.request, got.Timeout, err)
		}
	}
	for timeout, want := range map[time.Duration]string{0: "", 30 * time.Second: "30s", 90 * time.Minute: "1h30m0s"} {
		job := joblet.Job{Spec: joblet.Spec{Timeout: timeout}}
		if got, status := JobToProto(job).GetTimeout(), StatusToProto(JobToProto(job)).GetTimeout(); got != want || status != want {
			t.Errorf("%v: got %q and %q", timeout, got, status)
		}
	}
}

func TestOptionsRoundTrip(t *testing.T) {
	t.Parallel()
	t.Run("filter", func(t *testing.T) {
		want := testenv.Filled[joblet.Filter](t)
		got, err := FilterFromProto(overWire(t, FilterToProto(want)))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	})
	t.Run("log", func(t *testing.T) {
		want := testenv.Filled[joblet.LogOptions](t)
		got, err := LogOptionsFromProto(overWire(t, FollowToProto("x", want)))
		if err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	})
	t.Run("range", func(t *testing.T) {
		at := func(s string) time.Time {
			m, err := time.Parse(time.RFC3339Nano, s)
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		now, never := at("2026-01-02T03:04:05.123456789Z"), time.Time{}
		for _, tt := range []struct{ from, to, wantFrom, wantTo time.Time }{
			{now, now.Add(1), now, now.Add(1)},
			{never, never, never, never},
			{at("1960-01-01T00:00:00Z"), at("2300-01-01T00:00:00Z"), time.Unix(0, 1), time.Unix(0, math.MaxInt64)},
		} {
			from, to, limit, err := ValidRange(overWire(t, RangeToProto("x", tt.from, tt.to, 7)))
			if err != nil || !from.Equal(tt.wantFrom) || !to.Equal(tt.wantTo) || limit != 7 {
				t.Errorf("%v to %v: got %v to %v, %d, %v", tt.from, tt.to, from, to, limit, err)
			}
		}
	})
	t.Run("prune", func(t *testing.T) {
		all := testenv.Filled[joblet.Filter](t)
		want := joblet.Filter{EndedBefore: all.EndedBefore, States: all.States, Labels: all.Labels}
		p, err := PruneToProto(want, true)
		if err != nil {
			t.Fatal(err)
		}
		got, err := PruneFromProto(overWire(t, p))
		if err != nil || !p.GetDryRun() || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, dry run %v, %v; want %+v", got, p.GetDryRun(), err, want)
		}
		for field, value := range reflect.ValueOf(all).Fields() {
			var one joblet.Filter
			reflect.ValueOf(&one).Elem().FieldByIndex(field.Index).Set(value)
			carried := slices.Contains([]string{"EndedBefore", "States", "Labels"}, field.Name)
			if _, err := PruneToProto(one, false); (err == nil) != carried {
				t.Errorf("by %s alone: got %v", field.Name, err)
			}
		}
	})
	t.Run("stop", func(t *testing.T) {
		for _, want := range []joblet.StopOptions{
			testenv.Filled[joblet.StopOptions](t), {Signal: 2, Grace: 0}, {Grace: -1},
		} {
			got, err := StopFromProto(overWire(t, StopToProto("x", want)))
			if err != nil || got != want {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
		}
	})
}

func TestRefused(t *testing.T) {
	t.Parallel()
	kind := func(_ any, err error) joblet.Kind { return joblet.KindOf(err) }
	ms := int64(-1)
	for name, got := range map[string]joblet.Kind{
		"negative timeout": kind(SpecFromProto(&api.RunJobRequest{TimeoutMs: -1})),
		"timeout":          kind(SpecFromProto(&api.RunJobRequest{Timeout: "30"})),
		"timeout below 0":  kind(SpecFromProto(&api.RunJobRequest{Timeout: "-1s"})),
		"timeout too long": kind(SpecFromProto(&api.RunJobRequest{Timeout: "87601h"})),
		"huge timeout":     kind(SpecFromProto(&api.RunJobRequest{TimeoutMs: 1 << 62})),
		"label not UTF-8":  kind(SpecToProto(joblet.Spec{Command: "a", Labels: map[string]string{"A": "\xff"}})),
		"dependency":       kind(SpecToProto(joblet.Spec{Command: "a", DependsOn: []string{"x", "\xff"}})),
		"key":              kind(SpecToProto(joblet.Spec{Command: "a", IdempotencyKey: "\xff"})),
		"retry delay":      kind(SpecFromProto(&api.RunJobRequest{RetryDelayMs: -1})),
		"retry on":         kind(SpecFromProto(&api.RunJobRequest{RetryOn: make([]int32, 256)})),
		"signal":           kind(StopFromProto(&api.StopJobRequest{Signal: 65})),
		"signal 0":         kind(SignalFromProto(&api.SignalJobRequest{})),
		"grace":            kind(StopFromProto(&api.StopJobRequest{GraceMs: &ms})),
		"offset":           kind(LogOptionsFromProto(&api.GetJobLogsRequest{Offset: -1})),
		"limit":            kind(FilterFromProto(&api.QueryJobsRequest{Limit: -1})),
		"state":            kind(FilterFromProto(&api.QueryJobsRequest{States: []string{"x"}})),
		"huge signal":      kind(StopFromProto(StopToProto("x", joblet.StopOptions{Signal: 1<<32 + 15}))),
		"states":           kind(PruneFromProto(&api.PruneJobsRequest{States: make([]string, 100)})),
		"pruned state":     kind(PruneFromProto(&api.PruneJobsRequest{States: []string{"x"}})),
		"pruned label":     kind(PruneFromProto(&api.PruneJobsRequest{Labels: []string{"="}})),
		"ended before":     kind(PruneFromProto(&api.PruneJobsRequest{EndedBefore: "1h"})),
		"label":            kind(FilterFromProto(&api.QueryJobsRequest{Labels: []string{"a b=c"}})),
		"labels":           kind(FilterFromProto(&api.QueryJobsRequest{Labels: slices.Repeat([]string{"a"}, joblet.MaxLabels+1)})),
		"log since":        kind(LogOptionsFromProto(&api.GetJobLogsRequest{Since: "1h"})),
		"log until":        kind(LogOptionsFromProto(&api.FollowJobRequest{Until: "1h"})),
		"since":            kind(FilterFromProto(&api.QueryJobsRequest{Since: "yesterday"})),
		"status":           kind(JobFromProto(&api.Job{Status: "?"})),
		"past status":      kind(JobFromProto(&api.Job{Status: "FAILED", Past: []*api.JobAttempt{{}}})),
		"past time":        kind(JobFromProto(&api.Job{Status: "FAILED", Past: []*api.JobAttempt{{Status: "FAILED", EndTime: "?"}}})),
		"time":             kind(JobFromProto(&api.Job{Status: "RUNNING", StartTime: "?"})),
	} {
		if got != joblet.InvalidArgument {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

// TestOutOfBounds: a number that its field cannot hold must not become one that
// is fine.
func TestOutOfBounds(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]joblet.Spec{
		"retries":  {Retries: 1<<32 + 1},
		"priority": {Priority: -1<<32 + 1},
		"retry on": {RetryOn: []int{1<<32 + 1}},
	} {
		s.Command = "true"
		p, err := SpecToProto(s)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := SpecFromProto(p); err != nil || got.Validate() == nil {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

// TestUnbuiltFields sets each field of the request alone: it must be carried
// into the spec or be refused by name, but for what the server reads itself.
func TestUnbuiltFields(t *testing.T) {
	t.Parallel()
	empty, _ := SpecFromProto(&api.RunJobRequest{})
	servers := map[protoreflect.Name]bool{"uploads": true, "files": true, "detach": true}
	fields := (&api.RunJobRequest{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		r := &api.RunJobRequest{}
		m := r.ProtoReflect()
		switch {
		case f.IsMap():
			m.Mutable(f).Map().Set(protoString("K").MapKey(), protoString("v"))
		case f.IsList() && f.Message() != nil:
			m.Mutable(f).List().AppendMutable()
		case f.IsList():
			m.Mutable(f).List().Append(protoScalar(t, f))
		case f.Name() == "timeout":
			m.Set(f, protoString("30s"))
		case f.Name() == "security": // TestSpecRoundTrip has each of its fields, and of limits
			m.Set(f, protoreflect.ValueOfMessage((&api.JobSecurity{Profile: "strict"}).ProtoReflect()))
		case f.Name() == "limits":
			m.Set(f, protoreflect.ValueOfMessage((&api.JobLimits{MaxPids: 1}).ProtoReflect()))
		case f.Message() != nil:
			m.Mutable(f)
		default:
			m.Set(f, protoScalar(t, f))
		}
		spec, err := SpecFromProto(r)
		switch {
		case err == nil && reflect.DeepEqual(spec, empty) != servers[f.Name()]:
			t.Errorf("%s: got %+v", f.Name(), spec)
		case err != nil && (joblet.KindOf(err) != joblet.Unimplemented || !strings.Contains(err.Error(), string(f.Name()))):
			t.Errorf("%s: %v", f.Name(), err)
		}
	}
	if _, err := SpecFromProto(&api.RunJobRequest{Network: "none"}); err != nil {
		t.Errorf("network none: %v", err)
	}
}

func protoString(s string) protoreflect.Value { return protoreflect.ValueOfString(s) }

func protoScalar(t *testing.T, f protoreflect.FieldDescriptor) protoreflect.Value {
	t.Helper()
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("x"))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1)
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	}
	t.Fatalf("%s: no rule for %v", f.Name(), f.Kind())
	return protoreflect.Value{}
}

// FuzzSpecFromProto: any request gives a spec that asks for the same again, or
// an error that blames the request.
func FuzzSpecFromProto(f *testing.F) {
	for _, r := range []*api.RunJobRequest{
		{Command: "true", RetryOn: []int32{-1, 300}, Labels: map[string]string{"a": "b"}, RetryDelayMs: 1},
		{TimeoutMs: 1 << 62, Retries: -1, DependsOn: []string{""}},
		{Command: "true", Timeout: "1m0.0001s"},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r api.RunJobRequest
		if proto.Unmarshal(b, &r) != nil {
			return
		}
		spec, err := SpecFromProto(&r)
		if err != nil {
			if k := joblet.KindOf(err); k != joblet.InvalidArgument && k != joblet.Unimplemented {
				t.Fatal(k, err)
			}
			return
		}
		p, err := SpecToProto(spec)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := SpecFromProto(p); err != nil || !reflect.DeepEqual(again, spec) {
			t.Fatalf("got %+v, %v; want %+v", again, err, spec)
		}
	})
}
