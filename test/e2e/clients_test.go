package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet/client"
)

// Clients in other languages, which run the whole life of a job over mutual TLS, with
// the calls, deadlines and defaults of existing ones:
// one that protoc makes, with Debian's python3-grpcio, and one with @grpc/grpc-js.
// scripts/test installs what the first needs, and in CI what the second does; where
// what one needs is not there, it is left out, or fails if JOBLET_TEST_CLIENTS is set,
// as it is in CI.

// credentialFiles writes a client's certificates where other languages read them.
func (r *remoteDaemon) credentialFiles(t *testing.T, name string) (ca, cert, key string) {
	t.Helper()
	conf, err := client.LoadConfig(r.bundle(name))
	if err != nil {
		t.Fatal(err)
	}
	n, err := conf.Node("")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for file, text := range map[string]string{"ca.crt": n.CA, "client.crt": n.Cert, "client.key": n.Key} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "ca.crt"), filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key")
}

func top(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// needs leaves a test out, or fails it, when what it needs does not work.
func needs(t *testing.T, what string, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		if os.Getenv("JOBLET_TEST_CLIENTS") != "" {
			t.Fatalf("%s is needed: %v %s", what, err, out)
		}
		t.Skipf("requires %s", what)
	}
}

func runClient(t *testing.T, dir, program string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	if res := finish(cmd); res.status != 0 || strings.TrimSpace(res.stdout) != "ok" {
		t.Errorf("got %v", res)
	}
}

// The distribution's, which go together.
const python, pythonPlugin = "/usr/bin/python3", "/usr/bin/grpc_python_plugin"

func TestPythonClient(t *testing.T) {
	t.Parallel()
	needs(t, "python3-grpcio", exec.Command(python, "-c", "import grpc"))
	needs(t, "protobuf-compiler-grpc", exec.Command("sh", "-c", "protoc --version && command -v "+pythonPlugin))
	dir := t.TempDir()
	protoc := exec.Command("protoc", "-I"+top(t)+"/api", "--python_out="+dir, "--grpc_python_out="+dir, "--plugin=protoc-gen-grpc_python="+pythonPlugin, "joblet.proto")
	if out, err := protoc.CombinedOutput(); err != nil {
		t.Fatalf("protoc: %v %s", err, out)
	}
	script, err := os.ReadFile(top(t) + "/test/clients/python/life.py")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "life.py"), script, 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRemoteDaemon(t, "")
	r.issue(t, "py", "developer")
	ca, cert, key := r.credentialFiles(t, "py")
	runClient(t, dir, python, "life.py", r.address, ca, cert, key)
}

func TestNodeClient(t *testing.T) {
	t.Parallel()
	needs(t, "node and npm", exec.Command("sh", "-c", "node --version && npm --version"))
	dir := t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "life.js"} {
		text, err := os.ReadFile(filepath.Join(top(t), "test/clients/node", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	install := exec.CommandContext(ctx, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	install.Dir = dir
	needs(t, "the packages of package-lock.json", install)
	r := newRemoteDaemon(t, "")
	r.issue(t, "js", "developer")
	ca, cert, key := r.credentialFiles(t, "js")
	runClient(t, dir, "node", "life.js", top(t)+"/api/joblet.proto", r.address, ca, cert, key)
}
