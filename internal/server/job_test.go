package server

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

// TestJobList: the one message of ListJobs has room for all jobs: large jobs are
// shortened, and the others are complete.
func TestJobList(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("x", joblet.MaxStringLen)
	ordinary := &api.Job{Uuid: joblet.NewID(), Command: "true", Args: []string{"a"}, Environment: map[string]string{"A": "b"}, Status: "RUNNING", Owner: "uid:1"}
	var l jobList
	for i := range maxListed {
		p := &api.Job{Uuid: joblet.NewID(), Owner: "cert:" + large[:60], Command: "sleep", Args: []string{"1"}, Environment: map[string]string{"A": large}}
		switch i % 4 {
		case 1:
			p.Args = []string{large}
		case 2:
			p.Command, p.Labels = large, map[string]string{"a": large[:255]}
		case 3:
			p = proto.CloneOf(ordinary)
		}
		l.add(p)
	}
	if n := proto.Size(&api.Jobs{Jobs: l.jobs}); len(l.jobs) != maxListed || n > maxList {
		t.Errorf("%d jobs, %d bytes", len(l.jobs), n)
	}
	for i, p := range l.jobs[:8] {
		switch {
		case p.Uuid == "" || p.Owner == "":
			t.Errorf("%d: got %v", i, p)
		case i%4 == 3 && !proto.Equal(p, ordinary),
			i%4 == 0 && (p.Environment != nil || len(p.Args) != 1),
			i%4 == 1 && (p.Args != nil || p.Command != "sleep"),
			i%4 == 2 && len(p.Command) > 300:
			t.Errorf("%d: got %.500v", i, p)
		}
	}
	var longest jobList
	at := "2026-01-02T03:04:05Z"
	for range maxListed {
		longest.add(&api.Job{
			Uuid: joblet.NewID(), Name: large[:joblet.MaxNameLen], OldName: large[:joblet.MaxNameLen], Runtime: large[:joblet.MaxNameLen], NodeId: joblet.NewID(),
			Owner: large[:60], Command: large, Status: "INITIALIZING", ExitCode: -1, CreatedTime: at, StartTime: at, EndTime: at, ScheduledTime: at,
			StartTimeNs: 1 << 62, EndTimeNs: 1 << 62, ScheduledTimeNs: 1 << 62, Failure: "COMMAND_NOT_FOUND", Parent: joblet.NewID(),
		})
	}
	if n := proto.Size(&api.Jobs{Jobs: longest.jobs}); n > maxList {
		t.Errorf("jobs with everything: %d bytes", n)
	}
	if p := longest.jobs[maxListed-1]; len(p.Uuid) != 36 || len(p.Name) != joblet.MaxNameLen || p.Status == "" || p.StartTime != at || !strings.HasPrefix(p.Command, "xxx") {
		t.Errorf("a job with everything: got %v", p)
	}
	var few jobList
	few.add(&api.Job{Environment: map[string]string{"A": large}})
	if few.jobs[0].Environment == nil {
		t.Error("shortened without need")
	}
}
