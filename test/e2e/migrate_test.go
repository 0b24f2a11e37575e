package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet/client"
)

// What users of the public programs bring along: their configuration files.

// TestPublicClientConfig: an rnx-config.yml as public installers and documents have it.
func TestPublicClientConfig(t *testing.T) {
	t.Parallel()
	r := newRemoteDaemon(t, "")
	r.issue(t, "alice", "developer")
	r.issue(t, "bob", "viewer")
	certificates := func(name string) string {
		conf, err := client.LoadConfig(r.bundle(name))
		if err != nil {
			t.Fatal(err)
		}
		n := conf.Nodes["default"]
		return yamlBlock("    ", "cert", n.Cert) + yamlBlock("    ", "key", n.Key) + yamlBlock("    ", "ca", n.CA)
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
`, r.address, certificates("bob"), certificates("alice"))
	if res := r.as(t, "public", "job", "run", "echo", "hello"); res.status != 0 || res.stdout != "hello\n" {
		t.Errorf("the default node: %v", res)
	}
	mustFail(t, r.as(t, "public", "--node=viewer", "job", "run", "true"), "cert:bob has the role reader, and this call requires developer")
	mustOK(t, r.as(t, "public", "--node=viewer", "job", "list"), "the viewer's list")
	for line := range strings.Lines(mustOK(t, r.as(t, "public", "nodes", "--json"), "nodes")) {
		var n struct {
			Name, Address, Status string
			NodeID                string `json:"node_id"`
			Default, Reachable    bool
		}
		if err := json.Unmarshal([]byte(line), &n); err != nil || n.Default != (n.Name == "production") || !n.Reachable || n.Address != r.address || len(n.NodeID) != 36 {
			t.Errorf("%s: %v", line, err)
		}
	}

	// Without a mark default_node counts.
	write("default_node: b\nnodes:\n  a:\n    address: %s\n%s  b:\n    address: %[1]s\n%[3]s", r.address, certificates("bob"), certificates("alice"))
	mustOK(t, r.as(t, "public", "job", "run", "true"), "default_node")
	write("nodes:\n  a:\n    address: %s\n    isDefault: true\n  b:\n    address: %[1]s\n    isDefault: true\n", r.address)
	mustFail(t, r.as(t, "public", "job", "list"), `the nodes "a", "b" all have isDefault: true: keep it for one of them`)
	write("nodes:\n  a:\n    address: %s\n    colour: red\n", r.address)
	mustFail(t, r.as(t, "public", "job", "list"), `line 4: unknown key "colour" of node "a"; remove it: the valid keys are address, ca, cert, key, serverName, nodeId, isDefault`)
}

// publicAuthority makes certificates as the public installer does: RSA keys, the role
// as the organizational unit, and an authority whose key is thrown away.
type publicAuthority struct {
	cert *x509.Certificate
	key  *rsa.PrivateKey
}

func newPublicAuthority(t *testing.T) publicAuthority {
	t.Helper()
	a := publicAuthority{key: newRSA(t)}
	a.cert = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Joblet-CA", Organization: []string{"Joblet"}, Country: []string{"US"}}, IsCA: true, BasicConstraintsValid: true}
	a.cert, _ = a.sign(t, a.cert, a.key)
	return a
}

func newRSA(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a publicAuthority) sign(t *testing.T, template *x509.Certificate, key *rsa.PrivateKey) (*x509.Certificate, string) {
	t.Helper()
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(365*24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// issue returns a certificate and its key, in PEM.
func (a publicAuthority) issue(t *testing.T, template *x509.Certificate) (cert, key string) {
	t.Helper()
	own := newRSA(t)
	_, cert = a.sign(t, template, own)
	der, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return cert, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// yamlBlock returns a key whose value has lines.
func yamlBlock(indent, key, text string) string {
	return indent + key + ": |\n" + indent + "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n"+indent+"  ") + "\n"
}

// TestPublicServerConfig: a daemon with what was imported from a public configuration
// serves the clients of that time, with the limits of that time.
func TestPublicServerConfig(t *testing.T) {
	t.Parallel()
	a := newPublicAuthority(t)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
	server, serverKey := a.issue(t, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "joblet-server", Organization: []string{"Joblet"}}, DNSNames: []string{"joblet", "localhost", "joblet-server"}})
	admin, adminKey := a.issue(t, &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "admin-client", OrganizationalUnit: []string{"admin"}, Organization: []string{"Joblet"}}})
	viewer, viewerKey := a.issue(t, &x509.Certificate{SerialNumber: big.NewInt(4), Subject: pkix.Name{CommonName: "viewer-client", OrganizationalUnit: []string{"viewer"}, Organization: []string{"Joblet"}}})

	r := &remoteDaemon{dir: t.TempDir(), address: freeAddress(t)}
	host, port, err := net.SplitHostPort(r.address)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		path := filepath.Join(r.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	public := write("public.yml", fmt.Sprintf(`version: "3.0"
server:
  address: %q
  port: %s
  mode: "server"
  nodeId: "8f94c5b2-1234-5678-9abc-def012345678"
joblet:
  defaultCpuLimit: 100
  defaultMemoryLimit: 96
  maxConcurrentJobs: 100
  jobTimeout: "1h"
network:
  enabled: true
logging:
  level: "DEBUG"
security:
`, host, port)+yamlBlock("  ", "serverCert", server)+yamlBlock("  ", "serverKey", serverKey)+yamlBlock("  ", "caCert", ca))

	// As it is, the daemon refuses it, and says what to do.
	joblet := func(args ...string) result {
		return finish(exec.CommandContext(t.Context(), binDir+"/joblet", args...))
	}
	mustFail(t, joblet("serve", "--config="+public), "joblet config import")

	ours, pkiDir := filepath.Join(r.dir, "joblet-config.yml"), filepath.Join(r.dir, "pki")
	res := joblet("config", "import", "--pki-dir="+pkiDir, "--output="+ours, public)
	if res.status != 0 || res.stdout != "" || !strings.Contains(res.stderr, "changed joblet.defaultMemoryLimit: default: {max-memory: 96M}\n") || !strings.Contains(res.stderr, "dropped network.enabled: networks are not built yet") {
		t.Fatalf("import: %v", res)
	}
	mustOK(t, joblet("config", "check", ours), "check")

	r.daemon = newDaemon(t, "--config="+ours)
	client := func(name, cert, key string) {
		write(name+".yml", "version: \"3.0\"\nnodes:\n  default:\n    address: \""+r.address+"\"\n    persistAddress: \"127.0.0.1:50052\"\n"+yamlBlock("    ", "cert", cert)+yamlBlock("    ", "key", key)+yamlBlock("    ", "ca", ca))
	}
	client("admin", admin, adminKey)
	client("viewer", viewer, viewerKey)
	if res := r.as(t, "admin", "job", "run", "--name=one", "echo", "hello"); res.status != 0 || res.stdout != "hello\n" {
		t.Errorf("admin: %v", res)
	}
	var job struct {
		Owner  string
		Limits struct {
			Memory int64 `json:"memory_bytes"`
			CPU    int64 `json:"cpu_percent"`
		}
	}
	if err := json.Unmarshal([]byte(mustOK(t, r.as(t, "viewer", "job", "status", "--json", "one"), "viewer")), &job); err != nil || job.Owner != "cert:admin-client" || job.Limits.Memory != 96<<20 || job.Limits.CPU != 100 {
		t.Errorf("%+v, %v", job, err)
	}
	mustFail(t, r.as(t, "viewer", "job", "run", "true"), "cert:viewer-client has the role reader, and this call requires developer")
}
