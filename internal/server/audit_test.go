package server

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/service"
)

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func metadataWith(ctx context.Context, key, value string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, key, value)
}

// auditLine is what these tests read of a line.
type auditLine struct {
	Time                                                   time.Time
	Caller, Role, From, Method, Job, Target, Result, Error string
}

// TestAuditCalls: what changes something and what is refused is in the record, what
// only looks is not.
func TestAuditCalls(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	a, err := service.OpenAudit(path, 1<<20, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	r := startAudited(t, Options{}, a)
	dev := api.NewJobServiceClient(r.dial(t, r.issue(t, "dev", "developer")))
	eye := r.dial(t, r.issue(t, "eye", "reader"))
	if err := ask(t.Context(), eye, "/grpc.health.v1.Health/Check"); err != nil {
		t.Fatal(err)
	}
	_, err = dev.RunJob(t.Context(), &api.RunJobRequest{Command: "make", Args: []string{"token=hunter2"}, GpuCount: 1, Environment: map[string]string{"A": "hunter2"}})
	if status.Code(err) != codes.Unimplemented {
		t.Fatal(err)
	}
	if _, err := api.NewJobServiceClient(eye).StopJob(t.Context(), &api.StopJobRequest{Uuid: "x\"\n"}); status.Code(err) != codes.PermissionDenied {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var lines []auditLine
	for line := range bytes.Lines(text) {
		var l auditLine
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l)
	}
	if len(lines) != 2 {
		t.Fatalf("got %+v", lines)
	}
	if l := lines[0]; l.Caller != "cert:dev" || l.Role != "developer" || l.Method != "JobService/RunJob" || l.Target != "make" ||
		l.Result != "Unimplemented" || !strings.HasPrefix(l.From, "127.0.0.1:") || l.Time.IsZero() {
		t.Errorf("got %+v", l)
	}
	if l := lines[1]; l.Caller != "cert:eye" || l.Job != "x\"\n" || l.Result != "PermissionDenied" || !strings.Contains(l.Error, "requires developer") {
		t.Errorf("got %+v", l)
	}
	if bytes.Contains(text, []byte("hunter2")) {
		t.Error("it holds arguments or variables")
	}
}
