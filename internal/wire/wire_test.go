package wire

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

// fill sets every field of the struct that v points to, so that a field which
// a conversion forgets shows as a difference.
func fill(t *testing.T, v reflect.Value, seed *int64) {
	t.Helper()
	*seed++
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1_700_000_000+*seed, 123_456_789).UTC()))
		return
	case time.Duration:
		v.SetInt(*seed * int64(time.Second))
		return
	case joblet.State:
		v.Set(reflect.ValueOf(joblet.Failed))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), seed)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), seed)
	case reflect.String:
		v.SetString(fmt.Sprintf("text-%d", *seed))
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(*seed % 64)
	case reflect.Uint32:
		v.SetUint(uint64(*seed))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(t, v.Index(i), seed)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf(fmt.Sprintf("KEY_%d", *seed)), reflect.ValueOf("value"))
	default:
		t.Fatalf("fill: no rule for %s", v.Type())
	}
	if v.IsZero() {
		t.Fatalf("fill: %s is still zero", v.Type())
	}
}

func filled[T any](t *testing.T) T {
	t.Helper()
	var v T
	var seed int64
	fill(t, reflect.ValueOf(&v).Elem(), &seed)
	return v
}

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
	want := filled[joblet.Spec](t)
	p, err := SpecToProto(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := SpecFromProto(overWire(t, p))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestJobRoundTrip(t *testing.T) {
	t.Parallel()
	job := filled[joblet.Job](t)
	want := job
	want.Spec = want.Spec.Redacted()
	for name, p := range map[string]record{
		"Job":                  overWire(t, JobToProto(job)),
		"GetJobStatusResponse": overWire(t, StatusToProto(job)),
	} {
		got, err := JobFromProto(p)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, want)
		}
	}
}

func TestSecretsNeverShown(t *testing.T) {
	t.Parallel()
	job := joblet.Job{ID: joblet.NewID(), State: joblet.Running, Spec: joblet.Spec{
		Command: "true", SecretEnv: map[string]string{"TOKEN": "hunter2"},
	}}
	for _, m := range []proto.Message{JobToProto(job), StatusToProto(job)} {
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
	for _, tt := range []struct {
		state joblet.State
		exit  *joblet.Exit
		want  int32
	}{
		{joblet.Running, nil, 0},
		{joblet.Completed, &joblet.Exit{}, 0},
		{joblet.Failed, &joblet.Exit{Code: 3}, 3},
		{joblet.Failed, &joblet.Exit{Signal: 9}, 137},
		{joblet.Failed, nil, -1},
		{joblet.Lost, nil, -1},
		{joblet.Canceled, nil, -1},
		{joblet.TimedOut, &joblet.Exit{Signal: 15}, 124},
	} {
		if got := JobToProto(joblet.Job{State: tt.state, Exit: tt.exit}).GetExitCode(); got != tt.want {
			t.Errorf("%v %v: got %d, want %d", tt.state, tt.exit, got, tt.want)
		}
	}
}

func TestOptionsRoundTrip(t *testing.T) {
	t.Parallel()
	t.Run("filter", func(t *testing.T) {
		want := filled[joblet.Filter](t)
		got, err := FilterFromProto(overWire(t, FilterToProto(want)))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	})
	t.Run("log", func(t *testing.T) {
		want := filled[joblet.LogOptions](t)
		got, err := LogOptionsFromProto(overWire(t, FollowToProto("x", want)))
		if err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	})
	t.Run("stop", func(t *testing.T) {
		for _, want := range []joblet.StopOptions{
			filled[joblet.StopOptions](t), {Signal: 2, Grace: 0}, {Grace: -1},
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
		"huge timeout":     kind(SpecFromProto(&api.RunJobRequest{TimeoutMs: 1 << 62})),
		"not UTF-8":        kind(SpecToProto(joblet.Spec{Command: "a\xff"})),
		"env not UTF-8":    kind(SpecToProto(joblet.Spec{Command: "a", Env: map[string]string{"A": "\xff"}})),
		"signal":           kind(StopFromProto(&api.StopJobRequest{Signal: 65})),
		"signal 0":         kind(SignalFromProto(&api.SignalJobRequest{})),
		"grace":            kind(StopFromProto(&api.StopJobRequest{GraceMs: &ms})),
		"offset":           kind(LogOptionsFromProto(&api.GetJobLogsRequest{Offset: -1})),
		"limit":            kind(FilterFromProto(&api.QueryJobsRequest{Limit: -1})),
		"state":            kind(FilterFromProto(&api.QueryJobsRequest{States: []string{"x"}})),
		"since":            kind(FilterFromProto(&api.QueryJobsRequest{Since: "yesterday"})),
		"status":           kind(JobFromProto(&api.Job{Status: "?"})),
		"time":             kind(JobFromProto(&api.Job{Status: "RUNNING", StartTime: "?"})),
	} {
		if got != joblet.InvalidArgument {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

// TestUnbuiltFields sets each field of the request alone: it must be carried
// into the spec or be refused by name.
func TestUnbuiltFields(t *testing.T) {
	t.Parallel()
	empty, _ := SpecFromProto(&api.RunJobRequest{})
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
			m.Mutable(f).List().Append(protoString("x"))
		default:
			m.Set(f, protoScalar(t, f))
		}
		spec, err := SpecFromProto(r)
		switch {
		case err == nil && reflect.DeepEqual(spec, empty):
			t.Errorf("%s is passed over", f.Name())
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
