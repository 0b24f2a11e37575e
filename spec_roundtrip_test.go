package joblet_test

import (
	"encoding/json"
	"path/filepath"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/store"
	"github.com/joblet/joblet/internal/testenv"
	"github.com/joblet/joblet/internal/wire"
)

// TestSpecEverywhere takes a Spec with every field set through each of its forms:
// JSON, the request and the job of the API, and the record in the store. A new field
// that one of them forgets fails here.
func TestSpecEverywhere(t *testing.T) {
	t.Parallel()
	full := testenv.Filled[joblet.Spec](t)
	asked := full
	asked.Uploads, asked.Warnings = nil, nil // the daemon adds them to the job's record

	for name, form := range map[string]struct {
		want joblet.Spec
		pass func(*testing.T, joblet.Spec) (joblet.Spec, error)
	}{
		"JSON":               {full, throughJSON},
		"request of the API": {asked, throughRequest},
		"job of the API":     {full.Redacted(), throughJob},
		"store":              {full.Redacted(), throughStore},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := form.pass(t, full)
			if err != nil {
				t.Fatal(err)
			}
			for i := range reflect.TypeFor[joblet.Spec]().NumField() {
				field := reflect.TypeFor[joblet.Spec]().Field(i).Name
				if got, want := reflect.ValueOf(got).Field(i).Interface(), reflect.ValueOf(form.want).Field(i).Interface(); !reflect.DeepEqual(got, want) {
					t.Errorf("%s is %+v, want %+v", field, got, want)
				}
			}
		})
	}
}

func throughJSON(_ *testing.T, s joblet.Spec) (out joblet.Spec, err error) {
	text, err := json.Marshal(s)
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	return out, err
}

func throughRequest(_ *testing.T, s joblet.Spec) (out joblet.Spec, err error) {
	sent, err := wire.SpecToProto(s)
	if err != nil {
		return out, err
	}
	received := new(api.RunJobRequest)
	if err := overWire(sent, received); err != nil {
		return out, err
	}
	return wire.SpecFromProto(received)
}

func throughJob(_ *testing.T, s joblet.Spec) (out joblet.Spec, err error) {
	received := new(api.Job)
	if err := overWire(wire.JobToProto(joblet.Job{State: joblet.Pending, Spec: s}), received); err != nil {
		return out, err
	}
	job, err := wire.JobFromProto(received)
	return job.Spec, err
}

func overWire(sent, received proto.Message) error {
	raw, err := proto.Marshal(sent)
	if err != nil {
		return err
	}
	return proto.Unmarshal(raw, received)
}

func throughStore(t *testing.T, s joblet.Spec) (out joblet.Spec, err error) {
	records, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "joblet.db"))
	if err != nil {
		return out, err
	}
	defer records.Close()
	job := testenv.Filled[joblet.Job](t)
	job.ID, job.Spec = "12345678-1234-4234-8234-123456789abc", s
	if err := records.Insert(t.Context(), store.Record{Job: job}); err != nil {
		return out, err
	}
	rec, err := records.Get(t.Context(), job.ID)
	return rec.Spec, err
}
