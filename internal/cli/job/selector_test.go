package job

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/testenv/peer"
	"github.com/joblet/joblet/internal/wire"
)

// labelPeer has jobs with labels: of "many" 1500, of "mixed" two of the caller's, one of
// another owner and one that has just been deleted, of "others" only another's, of "gone"
// one that ends before it can be stopped.
type labelPeer struct{ peer.Peer }

func (p *labelPeer) QueryJobs(r *api.QueryJobsRequest, out grpc.ServerStreamingServer[api.Jobs]) error {
	p.Note("query %v %v", r.GetLabels(), len(r.GetStates()) > 0)
	var ids []string
	switch r.GetLabels()[0] {
	case "many":
		for i := range 1500 {
			ids = append(ids, fmt.Sprintf("%08d-0000-4000-8000-000000000000", 1500-i))
		}
	case "mixed":
		ids = []string{peer.IDC, peer.IDB, peer.IDA, foreignID, deletedID}
	case "others":
		ids = []string{foreignID}
	case "gone":
		ids = []string{endedID}
	}
	for _, id := range ids {
		state := joblet.Running
		if id == peer.IDB && len(r.GetLabels()) == 2 {
			state = joblet.Pending
		}
		if err := out.Send(&api.Jobs{Jobs: []*api.Job{peer.Record(id, state, nil)}}); err != nil {
			return err
		}
	}
	return nil
}

const (
	foreignID = "dddddddd-0000-4000-8000-000000000000"
	deletedID = "eeeeeeee-0000-4000-8000-000000000000"
	endedID   = "ffffffff-0000-4000-8000-000000000000"
)

// refuse returns what the daemon says to any change of a job.
func (p *labelPeer) refuse(id string) error {
	var err error
	switch id {
	case foreignID:
		err, _ = wire.ErrorToStatus(joblet.Errorf(joblet.PermissionDenied, "it belongs to another"))
	case deletedID:
		err, _ = wire.ErrorToStatus(joblet.Errorf(joblet.NotFound, "no such job"))
	case endedID:
		err, _ = wire.ErrorToStatus(joblet.Errorf(joblet.FailedPrecondition, "it has ended"))
	}
	return err
}

func (p *labelPeer) GetJobStatus(_ context.Context, r *api.GetJobStatusRequest) (*api.GetJobStatusResponse, error) {
	return wire.StatusToProto(peer.Record(r.GetUuid(), joblet.Completed, &joblet.Exit{})), nil
}

func (p *labelPeer) StopJob(_ context.Context, r *api.StopJobRequest) (*api.StopJobResponse, error) {
	return &api.StopJobResponse{Job: peer.Record(r.GetUuid(), joblet.Stopped, nil)}, p.refuse(r.GetUuid())
}

func (p *labelPeer) SignalJob(_ context.Context, r *api.SignalJobRequest) (*api.SignalJobResponse, error) {
	return &api.SignalJobResponse{}, p.refuse(r.GetUuid())
}

func (p *labelPeer) DeleteJob(_ context.Context, r *api.DeleteJobRequest) (*api.DeleteJobResponse, error) {
	return &api.DeleteJobResponse{Uuid: r.GetUuid(), Success: true}, p.refuse(r.GetUuid())
}

// WaitJob ends job A with 3, B with 4 and the others with 0.
func (p *labelPeer) WaitJob(_ context.Context, r *api.WaitJobRequest) (*api.WaitJobResponse, error) {
	code := map[string]int{peer.IDA: 3, peer.IDB: 4}[r.GetUuid()]
	return &api.WaitJobResponse{Job: peer.Record(r.GetUuid(), joblet.Failed, &joblet.Exit{Code: code})}, p.refuse(r.GetUuid())
}

func TestByLabel(t *testing.T) {
	t.Parallel()
	const mine = peer.IDA + "\n" + peer.IDB + "\n" + peer.IDC + "\n"
	const note = "rnx: 1 more matching job belongs to other owners and stayed as they are\n"
	for _, tt := range []struct {
		args           string
		status         int
		stdout, stderr string
	}{
		{"stop -l mixed", 0, mine, note},
		{"kill --label=mixed", 0, mine, note},
		{"stop --label=mixed -l waiting", 0, peer.IDB + "\n" + peer.IDA + "\n" + peer.IDC + "\n", note},
		{"kill --signal=HUP --label=mixed", 0, mine, note},
		{"delete --label=mixed", 0, mine, note},
		{"wait --label=mixed", 3, peer.IDA + " 3\n" + peer.IDB + " 4\n" + peer.IDC + " 0\n", note},
		{"stop -l others", 1, "", "rnx: no matching job is yours: 1 job belongs to other owners\n"},
		{"stop -l none -l team=a", 1, "", "rnx: no job matches none, team=a and has not ended\n"},
		{"delete -l none", 1, "", "rnx: no job matches none and has ended\n"},
		{"wait -l none", 1, "", "rnx: no job matches none\n"},
		{"stop -l gone", 1, "", "rnx: no job matches gone and has not ended\n"},
		{"stop -l mixed " + peer.IDA, 1, "", "rnx: --label and the names of jobs exclude each other\n"},
		{"stop -l =x", 1, "", "rnx: --label: "},
		{"stop -l ", 1, "", "rnx: --label: "},
		{"stop", 1, "", "rnx: no job given; \"rnx job list\" shows the jobs; in a script, \"xargs -r rnx job stop\" accepts an empty list\n"},
	} {
		host := peer.ServeJobs(t, &labelPeer{})
		status, stdout, stderr := rnxAt(t, host, append([]string{"job"}, strings.Split(tt.args, " ")...)...)
		exact := strings.HasSuffix(tt.stderr, "\n") || tt.stderr == ""
		if status != tt.status || stdout != tt.stdout || exact && stderr != tt.stderr || !strings.HasPrefix(stderr, tt.stderr) {
			t.Errorf("rnx job %s: got %d, %q, %q", tt.args, status, stdout, stderr)
		}
	}
	host := peer.ServeJobs(t, &labelPeer{})
	status, stdout, stderr := rnxAt(t, host, "--json", "job", "delete", "--label=many")
	if lines := strings.Split(stdout, "\n"); status != 0 || stderr != "" || len(lines) != 1501 || lines[0] != `{"uuid":"00000001-0000-4000-8000-000000000000"}` {
		t.Errorf("many: got %d, %q, %d lines, %.200q", status, stderr, len(lines), stdout)
	}
}
