package wire

import (
	"reflect"
	"testing"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/testenv"
)

func TestProcessesRoundTrip(t *testing.T) {
	t.Parallel()
	want := testenv.Filled[joblet.Processes](t)
	got, err := ProcessesFromProto(overWire(t, ProcessesToProto(want)))
	if err != nil {
		t.Fatal(err)
	}
	got.Time = got.Time.UTC()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	// What a process calls itself need not be text.
	got, err = ProcessesFromProto(overWire(t, ProcessesToProto(joblet.Processes{All: []joblet.Process{{Name: "\xff", Command: "a\xffb", PID: -1}}})))
	if err != nil || got.All[0].Name != "\uFFFD" || got.All[0].Command != "a\uFFFDb" {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := ProcessesFromProto(&api.ListJobProcessesResponse{Processes: []*api.JobProcess{{StartTime: "soon"}}}); err == nil {
		t.Errorf("got %+v", got)
	}
}
