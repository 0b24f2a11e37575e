package client

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joblet/joblet"
)

// TestConfigKeys: an unknown key is an error, and a key of another program that reads
// the same file is not.
func TestConfigKeys(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"nodez: {default: {address: a}}":                                                         `line 1: unknown key "nodez"; did you mean "nodes"?`,
		"nodes:\n  lab:\n    address: a\n    serverNme: b":                                       `line 4: unknown key "serverNme" of node "lab"; did you mean "serverName"?`,
		"nodes: {lab: &a {address: a}, two: {<<: *a, adress: b}}":                                `unknown key "adress" of node "two"; did you mean "address"?`,
		"nodes: {lab: {address: a}}\nwhatever: 1":                                                `line 2: unknown key "whatever"; remove it: the valid keys are nodes, version, default_node`,
		"nodes: {lab: {address: a, colour: red}}":                                                `line 1: unknown key "colour" of node "lab"; remove it: the valid keys are address, ca, cert, key, serverName, nodeId, isDefault`,
		"nodes: {lab: {address: a, persistAdress: b}}":                                           `unknown key "persistAdress" of node "lab"`,
		"nodes: {lab: {address: a, isDefault: perhaps}}":                                         "line 1: cannot unmarshal",
		"nodes: {b: &b {address: a, isDefault: true}, a: *b, c: {address: a, isDefault: false}}": `the nodes "a", "b" all have isDefault: true: keep it for one of them`,
		"[nodes]": "cannot unmarshal",
	} {
		if _, err := ParseConfig([]byte(text)); joblet.KindOf(err) != joblet.InvalidArgument || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
	c, err := ParseConfig([]byte(`
version: "3.0"
default_node: lab
global: {timeout: 30s}
preferences: {output_format: table}
nodes:
  lab: &lab {address: a, nodeId: x, isDefault: false, persistAddress: "a:50052", serverName: s, ca: c, cert: d, key: e, timeout: 30s, keepalive: 120s, retry: {enabled: true}}
  two: {<<: *lab, address: b}
  three: *lab
`))
	if err != nil || len(c.Nodes) != 3 || c.Nodes["two"].ServerName != "s" || c.Nodes["two"].Address != "b" || c.Nodes["three"].Cert != "d" {
		t.Errorf("got %+v, %v", c, err)
	}
	for _, text := range []string{"", "# nothing\n", "nodes:\n", "nodes: {}\n"} {
		if c, err := ParseConfig([]byte(text)); err != nil || len(c.Nodes) > 0 {
			t.Errorf("%q: got %+v, %v", text, c, err)
		}
	}
}

// TestDefaultNode: the first rule that names a node counts.
func TestDefaultNode(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"nodes: {a: {address: x}, default: {address: y}, b: {address: z, isDefault: true}}":  "z",
		"nodes: {a: {address: x}, default: {address: y}, b: {address: z, isDefault: false}}": "y",
		"default_node: a\nnodes: {a: {address: x}, default: {address: y}}":                   "y",
		"default_node: a\nnodes: {a: {address: x}, b: {address: y, isDefault: true}}":        "y",
		"default_node: b\nnodes: {a: {address: x}, b: {address: y}}":                         "y",
		"nodes: {a: {address: x}}":                                                              "x",
		"default_node: b\nnodes: {a: {address: x}}":                                             "x",
		"nodes: {a: &a {address: x}, b: {<<: *a, address: y, isDefault: true}}":                 "y",
		"version: 3.0\nnodes: {a: {address: x}, b: {address: y, isDefault: yes, nodeId: null}}": "y",
		"nodes: {a: {address: x}, b: {address: y}}":                                             "",
		"default_node: c\nnodes: {a: {address: x}, b: {address: y, isDefault: null}}":           "",
	} {
		c, err := ParseConfig([]byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		n, err := c.Node("")
		if n.Address != want || want == "" && (joblet.KindOf(err) != joblet.NotFound || !strings.Contains(err.Error(), "has no default node (nodes: a, b): name a node with --node, or mark one with isDefault: true")) {
			t.Errorf("%q: got %q, %v, want %q", text, n.Address, err, want)
		}
		if n, err := c.Node("a"); err != nil || n.Address != "x" {
			t.Errorf("%q: --node=a: got %v, %v", text, n, err)
		}
	}
}

// TestAddDefault: nodes that are added do not change which one is the default.
func TestAddDefault(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), ConfigName)
	add := func(replace bool, nodes map[string]Node) {
		t.Helper()
		if err := AddNodes(path, nodes, replace); err != nil {
			t.Fatal(err)
		}
	}
	add(false, map[string]Node{"lab": {Address: "a", IsDefault: true}})
	add(false, map[string]Node{"default": {Address: "b"}, "other": {Address: "c", IsDefault: true}})
	add(true, map[string]Node{"lab": {Address: "d"}})
	c, err := LoadConfig(path)
	if err != nil || len(c.Nodes) != 3 || c.Default() != "lab" || c.Nodes["lab"].Address != "d" || c.Nodes["other"].IsDefault {
		t.Errorf("got %+v, %v", c, err)
	}
}

// TestEmbed: what a node names by paths goes along with it.
func TestEmbed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const pem = "-----BEGIN CERTIFICATE-----\n"
	for name, text := range map[string]string{"ca.pem": pem, "none.pem": "nothing"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n, err := Node{Address: "a", CA: "ca.pem", Cert: filepath.Join(dir, "ca.pem"), Key: pem + "x"}.Embed(dir)
	if err != nil || n.CA != pem || n.Cert != pem || n.Key != pem+"x" {
		t.Errorf("got %+v, %v", n, err)
	}
	for want, n := range map[string]Node{
		"node at a: ca: none.pem contains no PEM": {Address: "a", CA: "none.pem", Cert: pem, Key: pem},
		"has no key":   {Address: "a", CA: pem, Cert: pem},
		"no such file": {Address: "a", CA: "gone.pem", Cert: pem, Key: pem},
	} {
		if _, err := n.Embed(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	local := Node{Address: "unix:///run/x"}
	if n, err := local.Embed(dir); err != nil || n != local {
		t.Errorf("local: %+v, %v", n, err)
	}
}

func TestHostPort(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"host": "host:50051", "host:7": "host:7", "::1": "[::1]:50051", "[::1]:7": "[::1]:7", "192.0.2.7": "192.0.2.7:50051",
		"[fe80::1%eth0]:50051": "[fe80::1%eth0]:50051", "fe80::1%eth0": "[fe80::1%eth0]:50051", "[fe80::1%eth0]": "[fe80::1%eth0]:50051",
		"": "", "a b": "", ":7": "", "a:b:c": "", "[fe80::1%]:7": "",
	} {
		if got, err := hostPort(in); got != want || (err != nil) != (want == "") {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
}
