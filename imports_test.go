package joblet_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestImports keeps the direction of imports (ARCHITECTURE.md, Packages).
func TestImports(t *testing.T) {
	const module = "github.com/joblet/joblet"
	const prometheus = "github.com/prometheus/client_golang"
	heavy := []string{"google.golang.org/grpc", "google.golang.org/protobuf", "modernc.org/sqlite", prometheus}
	tests := []struct {
		pkg    string
		never  []string
		reason string
	}{
		{".", []string{"golang.org/", "google.golang.org/", "github.com/", module + "/"}, "the words are for everybody"},
		{"./cmd/joblet", []string{"=" + module + "/internal/shim", "=" + module + "/internal/shim/setup"}, "the set-up of jobs is the shim's, a program of its own"},
		{"./internal/shim/setup", append(heavy, "="+module+"/internal/shim", module+"/internal/logstore", module+"/internal/archive"), "it starts processes, and keeps nothing of their output"},
		{"./cmd/joblet-shim", append(heavy, "os/exec", "net", "crypto/", "log"), "each is paid once per running job"},
		{"./internal/sandbox", append(heavy, module+"/internal/", "golang.org/"), "a contract touches nothing"},
		{"./internal/sandbox/native/seccomp", append(heavy, "="+module+"/internal/sandbox/native", module+"/internal/store"), "a filter is a function of a job's security"},
		{"./internal/sandbox/native/rootfs", append(heavy, "="+module+"/internal/sandbox/native", module+"/internal/store"), "it makes views, and no sandboxes"},
		{"./internal/hostcheck", append(heavy, module+"/internal/store", module+"/internal/runtimes", module+"/internal/supervisor"), "it needs no jobs to try the host"},
		{"./internal/sandbox/native", append(heavy, module+"/internal/store", module+"/internal/runtimes"), "the engine isolates, and no more"},
		{"./internal/service", []string{"google.golang.org/grpc", module + "/api", module + "/internal/wire", module + "/internal/server"}, "the service knows no transport"},
		{"./internal/logstore", []string{module + "/internal/", "google.golang.org/"}, "leaves do not import each other"},
		{"./internal/store", []string{module + "/internal/", "google.golang.org/"}, "leaves do not import each other"},
		{"./internal/pki", []string{module + "/internal/", "google.golang.org/", "golang.org/"}, "leaves do not import each other"},
		{"./internal/supervisor/records", append(heavy[:2:2], prometheus, "="+module+"/internal/supervisor"), "records start and end no job"},
		{"./internal/supervisor/staging", append(heavy[:2:2], prometheus, "="+module+"/internal/supervisor"), "uploads exist before jobs do"},
		{"./internal/supervisor/plan", append(heavy, "="+module+"/internal/supervisor", module+"/internal/store"), "a plan is made of a spec"},
		{"./internal/supervisor/sampling", []string{"google.golang.org/grpc", "modernc.org/sqlite", "=" + module + "/internal/supervisor", module + "/internal/store"}, "a sample needs no record"},
		{"./internal/supervisor/guard", append(heavy, "="+module+"/internal/supervisor", module+"/internal/store"), "a guard ends runs, and records nothing else"},
		{"./internal/supervisor/output", append(heavy, "="+module+"/internal/supervisor", module+"/internal/store"), "output is read without records"},
		{"./internal/supervisor/retention", append(heavy[:2:2], prometheus, "="+module+"/internal/supervisor"), "retention is told how to delete"},
		{"./internal/supervisor/budget", []string{module + "/internal/"}, "leaves do not import each other"},
		{"./internal/supervisor/keylock", []string{module + "/", "golang.org/"}, "leaves do not import each other"},
		{"./internal/supervisor/proclist", append(heavy, "="+module+"/internal/supervisor", module+"/internal/store"), "a list of processes needs no record"},
		{"./internal/jobdir", append(heavy, module+"/internal/store", module+"/internal/sandbox/native", module+"/internal/supervisor"), "a job's directory is readable without the rest"},
		{"./internal/statedir", append(heavy, module+"/internal/store", module+"/internal/sandbox/native", module+"/internal/supervisor"), "the state directory is readable without the rest"},
		{"./internal/secrets", []string{module + "/internal/store", module + "/internal/sandbox/native", module + "/internal/supervisor", "google.golang.org/"}, "secrets need no records"},
		{"./internal/outcome", []string{module + "/internal/supervisor", "google.golang.org/"}, "imports point downwards"},
		{"./internal/fsck", []string{module + "/internal/supervisor", "google.golang.org/"}, "a check needs no supervisor"},
		{"./internal/queue", []string{module + "/", "google.golang.org/", "golang.org/", "os", "net"}, "the queue is pure"},
		{"./internal/events", []string{module + "/internal/", "google.golang.org/", "golang.org/"}, "leaves do not import each other"},
		{"./internal/schedule", []string{module + "/internal/", "google.golang.org/"}, "leaves do not import each other"},
		{"./internal/archive", []string{module + "/internal/", "google.golang.org/"}, "leaves do not import each other"},
		{"./internal/hostinfo", []string{module + "/internal/", "google.golang.org/"}, "leaves do not import each other"},
		{"./internal/metrics", []string{module + "/internal/", "google.golang.org/grpc"}, "leaves do not import each other"},
		{"./internal/runtimes", []string{module + "/internal/", "google.golang.org/"}, "leaves do not import each other"},
		{"./cmd/rnx", []string{module + "/internal/server", module + "/internal/supervisor", module + "/internal/sandbox", "modernc.org/", prometheus}, "rnx reaches the daemon through client only"},
		{"./internal/cli", []string{module + "/internal/server", module + "/internal/supervisor", module + "/internal/sandbox", "modernc.org/", prometheus}, "rnx reaches the daemon through client only"},
		{"./internal/table", append(heavy, module+"/internal/", "golang.org/"), "leaves do not import each other"},
		{"./internal/cli/term", []string{module + "/internal/cli", module + "/client", module + "/api", "google.golang.org/", "github.com/spf13/"}, "the terminal knows neither commands nor the daemon"},
		{"./internal/cli/session", []string{module + "/internal/cli/job", "=" + module + "/internal/cli"}, "a command calls a session, and not the other way"},
	}
	// One list for all: each call of go list reads hundreds of packages.
	out, err := exec.Command("go", "list", "-tags=jobletshim", "-f", `{{.ImportPath}} {{join .Deps " "}}`, "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		deps[words[0]] = words[1:]
	}
	for _, test := range tests {
		t.Run(test.pkg, func(t *testing.T) {
			t.Parallel()
			self := module + strings.TrimPrefix(test.pkg, ".")
			if _, ok := deps[self]; !ok {
				t.Fatalf("no package %s", self)
			}
			for _, dep := range deps[self] {
				for _, bad := range test.never {
					one, exact := strings.CutPrefix(bad, "=")
					if dep != self && (dep == one || !exact && strings.HasPrefix(dep, strings.TrimSuffix(bad, "/")+"/")) {
						t.Errorf("imports %s: %s", dep, test.reason)
					}
				}
			}
		})
	}
}

// TestOnlyImporters: what is heavy stays in the packages that are made for it.
func TestOnlyImporters(t *testing.T) {
	t.Parallel()
	const module = "github.com/joblet/joblet"
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range []struct {
		what string
		only []string
	}{
		{"google.golang.org/", []string{"/api", "/client", "/internal/server", "/internal/server/admission", "/internal/testenv/peer", "/internal/wire"}},
	} {
		var found []string
		for line := range strings.Lines(string(out)) {
			words := strings.Fields(line)
			if slices.ContainsFunc(words[1:], func(dep string) bool { return strings.HasPrefix(dep, rule.what) }) {
				found = append(found, strings.TrimPrefix(words[0], module))
			}
		}
		if !slices.Equal(found, rule.only) {
			t.Errorf("%q import %s, and only %q are to", found, rule.what, rule.only)
		}
	}
}

// TestDirectImports: what rnx asks of a daemon, it asks as any other program can.
func TestDirectImports(t *testing.T) {
	const module = "github.com/joblet/joblet"
	const form = `{{join .Imports "\n"}}`
	out, err := exec.Command("go", "list", "-f", form, "./cmd/rnx", "./internal/cli/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Fields(string(out))
	if !slices.Contains(all, module+"/client") {
		t.Errorf("no client in %q", all)
	}
	for _, dep := range all {
		if dep == module+"/api" || dep == module+"/internal/wire" || strings.HasPrefix(dep, "google.golang.org/") {
			t.Errorf("imports %s: rnx reaches the daemon through client only", dep)
		}
	}
}
