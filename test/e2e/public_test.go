package e2e

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet/api"
)

// Calls as existing clients make them, with nothing but the fields of the public API.

// public returns a connection with the options of a client that sets none.
func (d *daemon) public(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(d.host(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// runToEnd runs a job and returns its status at the end.
func runToEnd(ctx context.Context, t *testing.T, jobs api.JobServiceClient, r *api.RunJobRequest) *api.GetJobStatusResponse {
	t.Helper()
	run, err := jobs.RunJob(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jobs.WaitJob(ctx, &api.WaitJobRequest{Uuid: run.GetJobUuid()}); err != nil {
		t.Fatal(err)
	}
	job, err := jobs.GetJobStatus(ctx, &api.GetJobStatusRequest{Uuid: run.GetJobUuid()})
	if err != nil {
		t.Fatal(err)
	}
	return job
}

func TestPublicTimeout(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	jobs := api.NewJobServiceClient(d.public(t))
	job := runToEnd(t.Context(), t, jobs, &api.RunJobRequest{Command: "sleep", Args: []string{"1000"}, Timeout: "300ms"})
	if job.GetStatus() != "TIMEOUT" || job.GetExitCode() != 124 || job.GetTimeout() != "300ms" {
		t.Errorf("got %v", job)
	}
	list, err := jobs.ListJobs(t.Context(), &api.EmptyRequest{})
	if err != nil || len(list.GetJobs()) != 1 || list.GetJobs()[0].GetTimeout() != "300ms" {
		t.Errorf("got %v, %v", list, err)
	}
	if _, err := jobs.RunJob(t.Context(), &api.RunJobRequest{Command: "true", Timeout: "soon"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("timeout soon: %v", err)
	}
}
