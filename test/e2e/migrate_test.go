package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/joblet/joblet/client"
)

// What users of the public programs bring along: their configuration files.

// TestPublicClientConfig: an rnx-config.yml as public installers and documents have it.
func TestPublicClientConfig(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "")
	r.issue(t, "alice", "developer")
	r.issue(t, "bob", "viewer")
	pem := func(name string) string {
		conf, err := client.LoadConfig(r.bundle(name))
		if err != nil {
			t.Fatal(err)
		}
		n := conf.Nodes["default"]
		block := func(key, text string) string {
			return "    " + key + ": |\n      " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n      ") + "\n"
		}
		return block("cert", n.Cert) + block("key", n.Key) + block("ca", n.CA)
	}
	write := func(format string, args ...any) {
		if err := os.WriteFile(r.bundle("public"), fmt.Appendf(nil, format, args...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`version: "3.0"

default_node: "viewer"
global:
  timeout: "30s"
  keepalive: "120s"

nodes:
  viewer:
    address: "%[1]s"
    nodeId: "8f94c5b2-1234-5678-9abc-def012345678"
%[2]s
    timeout: "30s"
    retry:
      enabled: true
      max_attempts: 3

  production:
    address: "%[1]s"
    persistAddress: "127.0.0.1:50052"
    nodeId: "a1b2c3d4-5678-9abc-def0-123456789012"
    isDefault: true
%[3]s
preferences:
  output_format: "table"
`, r.address, pem("bob"), pem("alice"))
	if res := r.as(t, "public", "job", "run", "echo", "hello"); res.status != 0 || res.stdout != "hello\n" {
		t.Errorf("the default node: %v", res)
	}
	mustFail(t, r.as(t, "public", "--node=viewer", "job", "run", "true"), "cert:bob is reader, and this call needs developer")
	mustOK(t, r.as(t, "public", "--node=viewer", "job", "list"), "the viewer's list")
	for line := range strings.Lines(mustOK(t, r.as(t, "public", "nodes", "--json"), "nodes")) {
		var n struct {
			Name, Address, NodeID, Status string
			Default, Reachable            bool
		}
		if err := json.Unmarshal([]byte(line), &n); err != nil || n.Default != (n.Name == "production") || !n.Reachable || n.Address != r.address || len(n.NodeID) != 36 {
			t.Errorf("%s: %v", line, err)
		}
	}

	// Without a mark default_node counts.
	write("default_node: b\nnodes:\n  a:\n    address: %s\n%s  b:\n    address: %[1]s\n%[3]s", r.address, pem("bob"), pem("alice"))
	mustOK(t, r.as(t, "public", "job", "run", "true"), "default_node")
	write("nodes:\n  a:\n    address: %s\n    isDefault: true\n  b:\n    address: %[1]s\n    isDefault: true\n", r.address)
	mustFail(t, r.as(t, "public", "job", "list"), `isDefault: true is set for the nodes "a", "b": leave it with one of them`)
	write("nodes:\n  a:\n    address: %s\n    colour: red\n", r.address)
	mustFail(t, r.as(t, "public", "job", "list"), `line 4: unknown key "colour" of node "a"; remove it: the keys there are address, ca, cert, key, serverName, nodeId, isDefault`)
}
