package server

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/server/admission"
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

// newAudit opens an audit log of the test's own.
func newAudit(t *testing.T) (a *Audit, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "audit.log")
	a, err := OpenAudit(path, 1<<20, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a, path
}

// TestAuditCalls: what changes something and what is refused is in the record, what
// only looks is not.
func TestAuditCalls(t *testing.T) {
	t.Parallel()
	a, path := newAudit(t)
	r := startRemote(t, Options{Audit: a})
	dev := api.NewJobServiceClient(r.dial(t, r.issue(t, "dev", "developer")))
	eye := r.dial(t, r.issue(t, "eye", "reader"))
	if err := ask(t.Context(), eye, "/grpc.health.v1.Health/Check"); err != nil {
		t.Fatal(err)
	}
	_, err := dev.RunJob(t.Context(), &api.RunJobRequest{Command: "make", Args: []string{"token=hunter2"}, GpuCount: 1, Environment: map[string]string{"A": "hunter2"}})
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

// TestAuditDetails: the record says what a call asks for, and what was done.
func TestAuditDetails(t *testing.T) {
	t.Parallel()
	a, path := newAudit(t)
	grace := int64(0)
	many := &api.PruneJobsRequest{States: slices.Repeat([]string{strings.Repeat("ä", 200)}, 100)}
	rlimits := map[string]*api.JobRlimit{}
	for i := range 1000 {
		rlimits[fmt.Sprint(i)] = &api.JobRlimit{}
	}
	tests := []struct {
		request, answer any
		err             error
		job             string
		target, detail  string
	}{
		{request: &api.RerunJobRequest{Uuid: "old", SecretEnvironment: map[string]string{"A": "hunter2"}}, answer: &api.RunJobResponse{JobUuid: "new"}, job: "new", detail: "rerun of old"},
		{request: &api.SignalJobRequest{Uuid: "j", Signal: 10}, answer: &api.SignalJobResponse{}, job: "j", detail: "SIGUSR1"},
		{request: &api.SignalJobRequest{Uuid: "j", Signal: 99}, err: admission.ErrTooMuch, job: "j", detail: "signal 99"},
		{request: &api.StopJobRequest{Uuid: "j"}, job: "j"},
		{request: &api.StopJobRequest{Uuid: "j", Signal: 2, GraceMs: &grace}, job: "j", detail: "SIGINT grace=0s"},
		{request: &api.UpdateJobRequest{Uuid: "j", Limits: &api.JobLimits{MemoryBytes: 1 << 30, MaxPids: 7, Rlimits: map[string]*api.JobRlimit{"nofile": {Soft: 1, Hard: 2}}}}, job: "j", detail: "max-memory=1G max-pids=7 nofile=1:2"},
		{request: &api.UpdateJobRequest{Uuid: "j", Limits: &api.JobLimits{Rlimits: rlimits}}, job: "j", detail: "1000 resource limits"},
		{request: &api.PruneJobsRequest{DryRun: true, States: []string{"FAILED"}, Labels: []string{"a=b"}, EndedBefore: "2026-01-02T03:04:05Z"},
			answer: &api.PruneJobsResponse{DeletedCount: 3, FreedBytes: 7}, detail: "3 jobs, 7 bytes; dry-run ended-before=2026-01-02T03:04:05Z state=FAILED label=a=b"},
		{request: many, answer: &api.PruneJobsResponse{}, detail: "0 jobs, 0 bytes; " + strings.TrimSpace(strings.Repeat("state="+strings.Repeat("ä", 97)+" ", 4))},
		{request: &api.DeleteAllJobsRequest{}, answer: &api.DeleteAllJobsResponse{DeletedCount: 2, SkippedCount: 1}, detail: "2 jobs, 1 skipped"},
		{request: &api.BuildRuntimeRequest{YamlContent: "name: py\nversion: \"1\"\nlanguage: python\nlanguage_version: \"3\"\npackages: [bash]\n", ForceRebuild: true}, target: "py", detail: "force"},
		{request: &api.BuildRuntimeRequest{YamlContent: "name: [", DryRun: true}, detail: "dry-run"},
		{request: &api.RemoveRuntimeRequest{Runtime: "py"}, answer: &api.RemoveRuntimeResponse{}, target: "py"},
	}
	for _, tt := range tests {
		a.write(auditLine{}) // each has a time of its own
		a.record(caller{known: true}, "/joblet.X/Y", about(tt.request), about(tt.answer), time.Now(), tt.err)
	}
	lines := readAudit(t, path)
	for i, tt := range tests {
		if l := lines[2*i+1]; l.Job != tt.job || l.Target != tt.target || l.Detail != tt.detail {
			t.Errorf("%T: got job %q, target %q, detail %q", tt.request, l.Job, l.Target, l.Detail)
		}
	}
	if text, _ := os.ReadFile(path); bytes.Contains(text, []byte("hunter2")) {
		t.Error("it holds variables")
	}
}

// TestAuditTorn: a line that the disk did not hold as a whole, or that a daemon was
// killed at, does not take the next one with it.
func TestAuditTorn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("needs root: ", err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	path, ballast := filepath.Join(dir, "audit.log"), filepath.Join(dir, "ballast")
	open := func() *Audit {
		t.Helper()
		a, err := OpenAudit(path, 1<<20, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := open()
	a.write(auditLine{Method: "first"})
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	for range 3 { // more than the rest of a page
		a.write(auditLine{Method: "lost", Error: strings.Repeat("e", 100_000)})
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	a.write(auditLine{Method: "second"})
	a.write(auditLine{Method: "third"})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(`{"time":`)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	a = open()
	a.write(auditLine{Method: "fourth"})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var whole []string
	torn := 0
	for line := range bytes.Lines(text) {
		var l auditLine
		if err := json.Unmarshal(line, &l); err != nil {
			torn++
			continue
		}
		whole = append(whole, l.Method)
	}
	if !slices.Equal(whole, []string{"first", "second", "third", "fourth"}) || torn != 2 {
		t.Errorf("got %q and %d that are torn in %d bytes", whole, torn, len(text))
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
