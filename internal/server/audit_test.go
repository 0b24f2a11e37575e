package server

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet/api"
)

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func metadataWith(ctx context.Context, key, value string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, key, value)
}

func readAudit(t *testing.T, path string) (lines []auditLine) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var l auditLine
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		lines = append(lines, l)
	}
	return lines
}

// TestAuditCalls: what changes something and what is refused is in the record, what
// only looks is not.
func TestAuditCalls(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	a, err := OpenAudit(path, 1<<20, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	r := startRemote(t, Options{Audit: a})
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
	lines := readAudit(t, path)
	if len(lines) != 2 {
		t.Fatalf("got %+v", lines)
	}
	if l := lines[0]; l.Caller != "cert:dev" || l.Role != "developer" || l.Method != "JobService/RunJob" || l.Target != "make" ||
		l.Result != "Unimplemented" || !strings.HasPrefix(l.From, "127.0.0.1:") || l.Time.IsZero() {
		t.Errorf("got %+v", l)
	}
	if l := lines[1]; l.Caller != "cert:eye" || l.Job != "x\"\n" || l.Result != "PermissionDenied" || !strings.Contains(l.Error, "needs developer") {
		t.Errorf("got %+v", l)
	}
	if text, _ := os.ReadFile(path); bytes.Contains(text, []byte("hunter2")) {
		t.Error("it holds arguments or variables")
	}
}

func TestAuditRotation(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	const max = 1000
	n := 0
	for range 2 { // the second goes on where the first ended
		a, err := OpenAudit(path, max, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for range 40 {
			n++
			a.write(auditLine{Caller: "cert:x", Method: fmt.Sprint(n), Error: strings.Repeat("e", 100)})
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != auditKept+1 {
		t.Fatalf("%q %v", files, err)
	}
	next := n
	for i := 0; i <= auditKept; i++ { // the newest first
		name := path
		if i > 0 {
			name = fmt.Sprintf("%s.%d", path, i)
		}
		st, err := os.Stat(name)
		if err != nil || st.Mode() != 0o600 || st.Size() > max {
			t.Errorf("%s: %v %v", name, st, err)
		}
		lines := readAudit(t, name)
		for k := len(lines) - 1; k >= 0; k-- {
			if lines[k].Method != fmt.Sprint(next) {
				t.Fatalf("%s: got line %s, want %d", name, lines[k].Method, next)
			}
			next--
		}
	}
}

func TestAuditBadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/etc/passwd", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, link, filepath.Join(dir, "none", "x")} {
		if _, err := OpenAudit(path, 1000, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s was opened", path)
		}
	}
}
