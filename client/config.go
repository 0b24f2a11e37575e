package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/spelling"
)

// ConfigName is the name of the file that says where daemons are.
const ConfigName = "rnx-config.yml"

const maxConfig = 4 << 20

// Config is what a client knows of daemons: rnx-config.yml.
//
//	nodes:
//	  default:
//	    address: "node1.example.org:50051"
//	    ca: |
//	      -----BEGIN CERTIFICATE-----
//	      …
//	    cert: alice.crt
//	    key: alice.key
type Config struct {
	Path    string          `yaml:"-"` // the file
	Version string          `yaml:"version,omitempty"`
	Nodes   map[string]Node `yaml:"nodes"`

	// Fallback is the default node if no other rule names one; see Default.
	Fallback string `yaml:"default_node,omitempty"`
}

// Node is a daemon and the client's identity there. CA, Cert and Key are PEM, or the
// path of a file that holds it, relative to the configuration's.
type Node struct {
	Address    string `yaml:"address"` // "HOST:PORT", "HOST", or "unix:///PATH"
	NodeID     string `yaml:"nodeId,omitempty"`
	IsDefault  bool   `yaml:"isDefault,omitempty"`  // of one node at most
	ServerName string `yaml:"serverName,omitempty"` // in its certificate; empty: "joblet"
	CA         string `yaml:"ca,omitempty"`
	Cert       string `yaml:"cert,omitempty"`
	Key        string `yaml:"key,omitempty"`

	config string // the file
}

// DefaultNode is the name of the node that is used if none is named and none is
// marked with isDefault.
const DefaultNode = "default"

// ConfigPaths returns where a configuration is looked for, in this order.
func ConfigPaths() []string {
	paths := []string{ConfigName, filepath.Join("config", ConfigName)}
	if home, err := os.UserHomeDir(); err == nil {
		paths = append(paths, filepath.Join(home, ".rnx", ConfigName))
	}
	return append(paths, filepath.Join("/etc/joblet", ConfigName), filepath.Join("/opt/joblet/config", ConfigName))
}

// LoadConfig reads the configuration at path, or without one that at $RNX_CONFIG,
// or else the first of ConfigPaths that there is. With none it returns an error
// that is fs.ErrNotExist.
func LoadConfig(path string) (Config, error) {
	if path = cmp.Or(path, os.Getenv("RNX_CONFIG")); path != "" {
		return readConfig(path)
	}
	for _, path := range ConfigPaths() {
		c, err := readConfig(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return c, err
		}
	}
	return Config{}, fmt.Errorf("no %s in %s: %w", ConfigName, strings.Join(ConfigPaths(), ", "), fs.ErrNotExist)
}

func readConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, err
	}
	defer f.Close()
	// A file of another user could send our jobs to that user's host.
	if err := trustedFile(f); err != nil {
		return Config{}, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return Config{}, err
	}
	if len(text) > maxConfig {
		return Config{}, joblet.Errorf(joblet.InvalidArgument, "%s: longer than %d bytes", path, maxConfig)
	}
	c, err := ParseConfig(text)
	if err != nil {
		return Config{}, joblet.Errorf(joblet.InvalidArgument, "%s: %w", path, err)
	}
	if c.Path, err = filepath.Abs(path); err != nil {
		return Config{}, err
	}
	for name, n := range c.Nodes {
		n.config = c.Path
		c.Nodes[name] = n
	}
	return c, nil
}

// The keys of a configuration and of a node: those that count, and those of other
// programs that read the same file, which mean nothing here. persistAddress once
// was where a daemon served what it had kept of ended jobs; address serves that.
var (
	configKeys  = []string{"nodes", "version", "default_node"}
	nodeKeys    = []string{"address", "ca", "cert", "key", "serverName", "nodeId", "isDefault"}
	otherConfig = []string{"global", "preferences"}
	otherNode   = []string{"persistAddress", "timeout", "keepalive", "retry"}
)

// ParseConfig reads a configuration. A key that it does not know is an error: with
// "nodez" there would be no nodes, and this machine would be meant.
func ParseConfig(text []byte) (Config, error) {
	var c Config
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return c, joblet.Errorf(joblet.InvalidArgument, "%w", err)
	}
	if err := knownKeys(&doc); err != nil {
		return c, err
	}
	if err := doc.Decode(&c); err != nil {
		return c, joblet.Errorf(joblet.InvalidArgument, "%w", err)
	}
	var defaults []string
	for name, n := range c.Nodes {
		if err := validNode(name); err != nil {
			return c, err
		}
		if n.IsDefault {
			defaults = append(defaults, strconv.Quote(name))
		}
		if n.Address == "" {
			return c, joblet.Errorf(joblet.InvalidArgument, "node %s: has no address", name)
		}
		if n.local() {
			continue
		}
		if _, err := hostPort(n.Address); err != nil {
			return c, joblet.Errorf(joblet.InvalidArgument, "node %s: %w", name, err)
		}
	}
	if len(defaults) > 1 {
		slices.Sort(defaults)
		return c, joblet.Errorf(joblet.InvalidArgument, "the nodes %s all have isDefault: true: keep it for one of them", strings.Join(defaults, ", "))
	}
	return c, nil
}

// knownKeys reports the first unknown key in a configuration.
func knownKeys(doc *yaml.Node) error {
	if len(doc.Content) == 0 {
		return nil
	}
	top := doc.Content[0]
	if err := oneOf(top, "", configKeys, otherConfig); err != nil {
		return err
	}
	for key, nodes := range pairs(top) {
		if key.Value != "nodes" {
			continue
		}
		for name, n := range pairs(nodes) {
			if err := oneOf(n, fmt.Sprintf(" of node %.100q", name.Value), nodeKeys, otherNode); err != nil {
				return err
			}
		}
	}
	return nil
}

// oneOf reports the first key of a mapping that is neither ours nor another
// program's. It names the key that was perhaps meant, or else all of ours.
func oneOf(mapping *yaml.Node, of string, ours, others []string) error {
	for key := range pairs(mapping) {
		if slices.Contains(ours, key.Value) || slices.Contains(others, key.Value) || key.Tag == "!!merge" { // what is merged is checked where it stands
			continue
		}
		advice := spelling.Meant(key.Value, slices.Values(ours))
		if advice == "" {
			advice = fmt.Sprintf("; remove it: the valid keys are %s", strings.Join(ours, ", "))
		}
		return joblet.Errorf(joblet.InvalidArgument, "line %d: unknown key %.100q%s%s", key.Line, key.Value, of, advice)
	}
	return nil
}

// pairs are the keys and values of a mapping, or of the one that an alias stands for.
func pairs(n *yaml.Node) iter.Seq2[*yaml.Node, *yaml.Node] {
	return func(yield func(key, value *yaml.Node) bool) {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		if n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(n.Content) && yield(n.Content[i], n.Content[i+1]); i += 2 {
		}
	}
}

func validNode(name string) error {
	if name == "" || len(name) > 100 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return joblet.Errorf(joblet.InvalidArgument, "node %.100q: the name must have 1 to 100 bytes and no spaces", name)
	}
	return nil
}

// Names returns the names of the nodes in order.
func (c Config) Names() []string { return slices.Sorted(maps.Keys(c.Nodes)) }

// Default returns the name of the node that is used if none is named: the one with
// isDefault, else the one called "default", else the only one, else what
// default_node says. Empty: there is none.
func (c Config) Default() string {
	for name, n := range c.Nodes {
		if n.IsDefault {
			return name
		}
	}
	if _, ok := c.Nodes[DefaultNode]; ok {
		return DefaultNode
	}
	if len(c.Nodes) == 1 {
		return c.Names()[0]
	}
	if _, ok := c.Nodes[c.Fallback]; ok {
		return c.Fallback
	}
	return ""
}

// Node returns the node that is called so; without a name that of Default.
func (c Config) Node(name string) (Node, error) {
	names := strings.Join(c.Names(), ", ")
	if name == "" {
		if name = c.Default(); name == "" {
			return Node{}, joblet.Errorf(joblet.NotFound, "the configuration %s has no default node (nodes: %s): name a node with --node, or mark one with isDefault: true", c.Path, names)
		}
	}
	n, ok := c.Nodes[name]
	if !ok {
		return n, joblet.Errorf(joblet.NotFound, "unknown node %q: %s has the nodes %s", name, c.Path, names)
	}
	return n, nil
}

func (n Node) local() bool { return strings.HasPrefix(n.Address, "unix://") }

// Dial connects to the node's daemon.
func (n Node) Dial(ctx context.Context) (*Client, error) {
	if n.local() {
		return Dial(ctx, n.Address)
	}
	conf, err := n.TLS()
	if err != nil {
		return nil, err
	}
	return DialTLS(ctx, n.Address, conf)
}

// TLS returns what DialTLS needs.
func (n Node) TLS() (*tls.Config, error) {
	ca, err := n.pem("ca", n.CA)
	if err != nil {
		return nil, err
	}
	cert, err := n.pem("cert", n.Cert)
	if err != nil {
		return nil, err
	}
	key, err := n.pem("key", n.Key)
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: n.ServerName, RootCAs: x509.NewCertPool()}
	if !conf.RootCAs.AppendCertsFromPEM(ca) {
		return nil, joblet.Errorf(joblet.InvalidArgument, "node at %s: ca contains no certificate", n.Address)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, joblet.Errorf(joblet.InvalidArgument, "node at %s: cert and key: %w", n.Address, err)
	}
	conf.Certificates = []tls.Certificate{pair}
	return conf, nil
}

// pem returns the PEM in a value, or in the file that it names.
func (n Node) pem(key, value string) ([]byte, error) {
	switch {
	case value == "":
		return nil, joblet.Errorf(joblet.InvalidArgument, "node at %s: has no %s: get a bundle (joblet pki issue) and import it with rnx login", n.Address, key)
	case inline(value):
		return []byte(value), nil
	}
	f, err := os.Open(n.path(value))
	if err != nil {
		return nil, fmt.Errorf("node at %s: %s: %w", n.Address, key, err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxConfig))
}

func inline(value string) bool { return strings.Contains(value, "-----BEGIN") }

func (n Node) path(value string) string {
	if filepath.IsAbs(value) || n.config == "" {
		return value
	}
	return filepath.Join(filepath.Dir(n.config), value)
}

// KeyFile returns the path of the file that holds our key: one of its own, or that
// of the configuration. Empty: none does.
func (n Node) KeyFile() string {
	switch {
	case n.Key == "" || n.local():
		return ""
	case inline(n.Key):
		return n.config
	}
	return n.path(n.Key)
}

// Embed returns the node with the contents of the files that it names, so that it
// can be written elsewhere. Relative paths are relative to dir.
func (n Node) Embed(dir string) (Node, error) {
	if n.local() {
		return n, nil
	}
	from := n
	from.config = filepath.Join(dir, ConfigName)
	for _, f := range []struct {
		key   string
		value *string
	}{{"ca", &n.CA}, {"cert", &n.Cert}, {"key", &n.Key}} {
		text, err := from.pem(f.key, *f.value)
		if err != nil {
			return n, err
		}
		if !inline(string(text)) {
			return n, joblet.Errorf(joblet.InvalidArgument, "node at %s: %s: %.200s contains no PEM", n.Address, f.key, *f.value)
		}
		*f.value = string(text)
	}
	return n, nil
}

// Identity returns by which name and role the node's daemon knows us, and until
// when; of a local one nothing is known.
func (n Node) Identity() (name, role string, until time.Time, err error) {
	if n.local() {
		return "", "", time.Time{}, nil
	}
	conf, err := n.TLS()
	if err != nil {
		return "", "", time.Time{}, err
	}
	leaf := conf.Certificates[0].Leaf
	if len(leaf.Subject.OrganizationalUnit) > 0 {
		role = leaf.Subject.OrganizationalUnit[0]
	}
	return leaf.Subject.CommonName, role, leaf.NotAfter, nil
}

// Marshal returns the configuration as the text of its file.
func (c Config) Marshal() ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(c); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// AddNodes writes nodes into the configuration at path, whose other contents stay
// as they are, also which node is marked as the default. A node that is there
// already is an error unless replace is set.
func AddNodes(path string, nodes map[string]Node, replace bool) (err error) {
	doc := yaml.Node{}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return joblet.Errorf(joblet.InvalidArgument, "%s: %w", path, err)
	}
	if doc.Kind == 0 {
		doc = yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{{Kind: yaml.MappingNode}}}
	}
	all := child(doc.Content[0], "nodes")
	if all == nil {
		return joblet.Errorf(joblet.InvalidArgument, "%s is not a configuration of rnx", path)
	}
	isDefault := ""
	for key, value := range pairs(all) {
		var n Node
		if value.Decode(&n) == nil && n.IsDefault {
			isDefault = key.Value
		}
	}
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		if err := validNode(name); err != nil {
			return err
		}
		node := nodes[name]
		if isDefault != "" { // it stays
			node.IsDefault = name == isDefault
		}
		var value yaml.Node
		if err := value.Encode(node); err != nil {
			return err
		}
		known := len(all.Content)
		n := child(all, name)
		if n == nil {
			return joblet.Errorf(joblet.InvalidArgument, "%s: nodes: must be a mapping", path)
		}
		if len(all.Content) == known && !replace {
			return joblet.Errorf(joblet.AlreadyExists, "%s already has a node %q: give the new node another name with --node, or replace it with --force", path, name)
		}
		*n = value
	}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(&doc), e.Close()); err != nil {
		return err
	}
	return replaceFile(path, b.Bytes())
}

// child returns the value of a key, a new mapping if there is none, or nil if parent is
// not a mapping.
func child(parent *yaml.Node, key string) *yaml.Node {
	if parent.Kind == yaml.ScalarNode && parent.Tag == "!!null" {
		*parent = yaml.Node{Kind: yaml.MappingNode}
	}
	if parent.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(parent.Content); i += 2 {
		if parent.Content[i].Value == key {
			return parent.Content[i+1]
		}
	}
	value := &yaml.Node{Kind: yaml.MappingNode}
	parent.Content = append(parent.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, value)
	return value
}

// replaceFile writes a file that only its owner may read, as a whole.
func replaceFile(path string, text []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
