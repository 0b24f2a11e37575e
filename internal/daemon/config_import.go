package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/help"
	"github.com/joblet/joblet/internal/pki"
)

// A joblet-config.yml of the public daemon has sections, ours has one key for each
// flag. What the keys of one become in the other is the table publicKeys.

const (
	maxPublicKeys  = 10_000
	maxPublicDepth = 32
)

// publicKey is a key of the public configuration, or a section with all below it.
type publicKey struct {
	path string
	all  bool // and everything below

	// to sets ours. It returns what it has set, or why the key is dropped.
	to  func(m *migration, value any) (set, why string, err error)
	why string // without to: why the key is dropped
}

const (
	whyTLS      = "clients of listen always need TLS 1.3 and a certificate"
	whyMessage  = "a message has 128 MiB at most"
	whyPing     = "a client that does not answer a ping within 20 s is cut off"
	whyNetworks = "networks are not built yet: jobs have a loopback interface only"
	whyVolumes  = "volumes are not built yet: use --upload, --download and rnx job cp"
	whyState    = "the daemon itself keeps records, output and samples, in state-dir"
	whyFiles    = "certificates in files are not imported: put their text into serverCert, serverKey and caCert, or make new ones with joblet pki init"
	whyCgroup   = "the daemon finds its cgroup and the controllers by itself"
	whyMounts   = "a job sees the host's programs or its runtime, read-only; no key adds paths"
	whyRuntimes = "runtimes are built with rnx runtime build, and kept in state-dir"
	whyIsolated = "all jobs have namespaces, ids and a root of their own; rnx job run --security and --user change the rest"
	whyRetain   = "nothing is deleted by itself; retain-age and retain-size delete whole jobs"
)

// publicKeys is looked up by the whole path first, then by the sections around it.
var publicKeys = []publicKey{
	{path: "version", why: "it is the version of the other format"},

	{path: "server.address", to: (*migration).listen},
	{path: "server.port", to: (*migration).listen},
	{path: "server.mode", why: "the daemon is joblet serve"},
	{path: "server.nodeId", why: "a node's id comes from the host's /etc/machine-id"},
	{path: "server.timeout", why: "calls have no common time limit"},
	{path: "server.minTlsVersion", why: whyTLS},
	{path: "server.tls", all: true, why: whyTLS},
	{path: "server.max_message_size", why: whyMessage},
	{path: "server.keepalive", all: true, why: whyPing},
	{path: "server.serverCertPath", why: whyFiles},
	{path: "server.serverKeyPath", why: whyFiles},
	{path: "server.caCertPath", why: whyFiles},

	{path: "security.serverCert", to: (*migration).certificate},
	{path: "security.serverKey", to: (*migration).certificate},
	{path: "security.caCert", to: (*migration).certificate},
	{path: "security.serverCertPath", why: whyFiles},
	{path: "security.serverKeyPath", why: whyFiles},
	{path: "security.caCertPath", why: whyFiles},
	{path: "security.require_client_cert", why: whyTLS},
	{path: "security.verify_client_cert", why: whyTLS},
	{path: "security.enable_rbac", why: "the role of a certificate always counts"},
	{path: "security.default_role", why: "a certificate without a role may do nothing"},
	{path: "security.audit.enabled", to: (*migration).audit},
	{path: "security.audit.log_file", to: (*migration).audit},
	{path: "security.audit", all: true, why: "the audit log has each call that may change something, and each that was refused"},

	{path: "joblet.defaultCpuLimit", to: limit("default", "max-cpu", "%d")},
	{path: "joblet.defaultMemoryLimit", to: limit("default", "max-memory", "%dM")},
	{path: "joblet.defaultIoLimit", to: limit("default", "max-iobps", "%d")},
	{path: "joblet.maxCpuLimit", to: limit("ceiling", "max-cpu", "%d")},
	{path: "joblet.maxMemoryLimit", to: limit("ceiling", "max-memory", "%dM")},
	{path: "joblet.maxIoLimit", to: limit("ceiling", "max-iobps", "%d")},
	{path: "joblet.minCpuLimit", why: "limits have no lower bound of their own"},
	{path: "joblet.minMemoryLimit", why: "limits have no lower bound of their own"},
	{path: "joblet.minIoLimit", why: "limits have no lower bound of their own"},
	{path: "joblet.maxConcurrentJobs", to: (*migration).concurrent},
	{path: "joblet.jobTimeout", why: "no key limits the time of all jobs: rnx job run --timeout limits that of one"},
	{path: "joblet.cleanupTimeout", why: "a job has 10 s to end when it is stopped; rnx job stop --grace changes that"},
	{path: "joblet.validateCommands", why: "a command that is not there always is an error, with status 127"},
	{path: "joblet.allowedCommands", why: "developers may run any command: what a job can do is limited by its isolation"},
	{path: "joblet.preserveFailedJobs", why: whyRetain},
	{path: "joblet.isolation", all: true, why: whyIsolated},

	{path: "cgroup", all: true, why: whyCgroup},

	{path: "filesystem.baseDir", why: "jobs are kept in state-dir, /var/lib/joblet by default"},
	{path: "filesystem.tmpDir", why: "/tmp of a job is its own, in memory, within --max-disk"},
	{path: "filesystem.workspaceDir", why: "a job's working directory is /work, unless rnx job run --workdir names another"},
	{path: "filesystem.allowedMounts", why: whyMounts},
	{path: "filesystem.blockDevices", why: "jobs have no block devices"},
	{path: "filesystem.workspace", all: true, why: "/work is within --max-disk, and kept with the job until it is deleted"},
	{path: "filesystem", all: true, why: whyIsolated},
	{path: "process", all: true, why: whyIsolated},

	{path: "grpc.maxRecvMsgSize", why: whyMessage},
	{path: "grpc.maxSendMsgSize", why: whyMessage},
	{path: "grpc.maxHeaderListSize", why: "the headers of a call have 16 KiB at most"},
	{path: "grpc.keepAliveTime", why: whyPing},
	{path: "grpc.keepAliveTimeout", why: whyPing},
	{path: "grpc.maxConcurrentStreams", why: "client-calls bounds the calls of one client, on all its connections"},
	{path: "grpc.connectionTimeout", why: "a connection has 10 s to show its certificate"},
	{path: "grpc.maxConnectionIdle", why: "a connection without a call is closed after 30 min"},
	{path: "grpc", all: true, why: "connections have no maximum age"},

	{path: "logging.level", to: (*migration).logLevel},
	{path: "logging.format", to: (*migration).logFormat},
	{path: "logging.output", why: "the daemon logs to stderr; under systemd, to the journal"},
	{path: "logging.outputs", all: true, why: "the daemon logs to stderr; under systemd, to the journal"},
	{path: "logging.components", all: true, why: "log-level is for all parts of the daemon"},

	{path: "network", all: true, why: whyNetworks},
	{path: "volume", all: true, why: whyVolumes},
	{path: "volumes.default_disk_quota_bytes", why: "a job has 1 GiB for its files; default max-disk changes that"},
	{path: "volumes", all: true, why: whyVolumes},

	{path: "runtime.allowed_mounts", why: whyMounts},
	{path: "runtime", all: true, why: whyRuntimes},
	{path: "gpu", all: true, why: "GPUs are not built yet"},

	{path: "monitoring.bind_address", to: (*migration).metrics},
	{path: "monitoring", all: true, why: "the host is measured when a client asks, at the client's interval"},
	{path: "telemetry", all: true, why: "samples of a job are kept each second; events of the kernel are not built yet"},
	{path: "job_metrics.retention_days", why: whyRetain},
	{path: "job_metrics", all: true, why: "samples of a job are kept each second, with the job"},

	{path: "buffers.log_persistence.retention_days", why: whyRetain},
	{path: "buffers.log_persistence", all: true, why: whyState},
	{path: "buffers", all: true, why: "clients read the log of a job, which needs no buffers"},
	{path: "ipc", all: true, why: whyState},
	{path: "persist", all: true, why: whyState},
	{path: "state", all: true, why: whyState},
}

// olderSections are what sections were called before.
var olderSections = map[string]string{"worker": "joblet"}

// isPublicSection reports whether the public configuration has such a key at its top.
func isPublicSection(name string) bool {
	name = cmp.Or(olderSections[name], name)
	return slices.ContainsFunc(publicKeys, func(k publicKey) bool {
		first, _, _ := strings.Cut(k.path, ".")
		return first == name
	})
}

// findPublicKey returns how to convert a key, or nil for an unknown key.
func findPublicKey(path string) *publicKey {
	first, rest, more := strings.Cut(path, ".")
	if now, ok := olderSections[first]; ok && more {
		path = now + "." + rest
	}
	for at, whole := path, true; at != ""; whole = false {
		i := slices.IndexFunc(publicKeys, func(k publicKey) bool { return k.path == at && (whole || k.all) })
		if i >= 0 {
			return &publicKeys[i]
		}
		at = at[:max(0, strings.LastIndexByte(at, '.'))]
	}
	return nil
}

// migration is one import.
type migration struct {
	pkiDir string

	keys   map[string]any // of the public file, by path
	flags  *pflag.FlagSet // of options: ours
	from   map[string][]string
	report []string

	options Options
}

// importOptions are the flags of joblet config import.
type importOptions struct {
	output string
	pkiDir string
	force  bool
}

func newConfigImportCommand() *cobra.Command {
	var opt importOptions
	cmd := &cobra.Command{
		Use:   "import FILE|-",
		Short: "Convert a joblet-config.yml of the public daemon",
		Long: `Convert a joblet-config.yml of the public daemon (format 3.0) into a configuration of
this daemon, on stdout. Report each key of the file on stderr:
"changed KEY: its new form", or "dropped KEY: why".

The public file holds the daemon's certificate and key. With --pki-dir they are
written to that directory, which only root can read, and existing clients keep
their certificates. Without it they are dropped: create new ones with "joblet pki
init" and "joblet pki issue", because the file does not contain the signing key.

An rnx-config.yml needs no import: rnx reads it unchanged.`,
		Example: `  joblet config import /opt/joblet/config/joblet-config.yml
  joblet config import --output=` + configPath + ` old-config.yml
  joblet config check ` + configPath,
		Args: help.OneArg("file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := opt.run(cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0]); err != nil {
				return fmt.Errorf("cannot import %s: %w", args[0], err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&opt.output, "output", "o", "", "write the configuration to `FILE` (default: stdout)")
	f.StringVar(&opt.pkiDir, "pki-dir", "", "create `DIR` for the certificates in the file and set pki-dir to it")
	f.BoolVar(&opt.force, "force", false, "replace the file that --output names")
	return cmd
}

func (o importOptions) run(stdin io.Reader, stdout, stderr io.Writer, file string) error {
	if o.force && o.output == "" {
		return errors.New("--force requires --output")
	}
	if o.pkiDir != "" && !filepath.IsAbs(o.pkiDir) {
		return fmt.Errorf("--pki-dir %q: must be an absolute path", o.pkiDir)
	}
	text, err := readPublicConfig(stdin, file)
	if err != nil {
		return err
	}
	m, err := migrate(text, o.pkiDir)
	if err != nil {
		return err
	}
	config := m.text(file)
	done := func() error { _, err := io.WriteString(stdout, config); return err }
	if o.output != "" {
		out, err := newOutput(o.output, config, o.force)
		if err != nil {
			return err
		}
		defer out.discard()
		done = out.publish
	}
	if o.pkiDir != "" {
		if err := m.writeCertificates(); err != nil {
			return err
		}
	}
	if err := done(); err != nil {
		if o.pkiDir != "" {
			err = fmt.Errorf("%w (the certificates have been written to %s)", err, o.pkiDir)
		}
		return err
	}
	_, err = io.WriteString(stderr, strings.Join(m.report, "\n")+"\n")
	return err
}

// readPublicConfig reads the file, or with "-" stdin.
func readPublicConfig(stdin io.Reader, file string) ([]byte, error) {
	in := stdin
	if file != "-" {
		st, err := os.Stat(file) // to open a FIFO would wait for a writer
		if err != nil {
			return nil, err
		}
		if !st.Mode().IsRegular() {
			return nil, errors.New("it is not a regular file; use - for stdin")
		}
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxConfigFile+1))
	if err == nil && len(text) > maxConfigFile {
		err = fmt.Errorf("it is longer than %d bytes", maxConfigFile)
	}
	return text, err
}

// migrate reads a public configuration and sets ours.
func migrate(text []byte, pkiDir string) (*migration, error) {
	m := &migration{pkiDir: pkiDir, keys: map[string]any{}, from: map[string][]string{}, options: builtinOptions()}
	m.flags = pflag.NewFlagSet("serve", pflag.ContinueOnError)
	m.options.flags(m.flags)
	m.flags.SortFlags = false

	d := yaml.NewDecoder(strings.NewReader(string(text)))
	var top any
	if err := d.Decode(&top); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("it contains more than one document")
	}
	sections, ok := top.(map[string]any)
	if !ok {
		return nil, errors.New("it is not a joblet-config.yml: it has no sections such as \"server:\"")
	}
	if err := recognize(sections); err != nil {
		return nil, err
	}
	if err := m.flatten("", sections, 0); err != nil {
		return nil, err
	}
	for _, path := range slices.Sorted(maps.Keys(m.keys)) {
		if err := m.key(path, m.keys[path]); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if _, given := m.keys["server.address"]; !given && m.keys["server.port"] == nil && m.has("security") {
		if _, _, err := m.listen(nil); err != nil { // the public default
			return nil, err
		}
	}
	if pkiDir != "" {
		for _, path := range certificateKeys {
			if text, _ := m.keys[path].(string); text == "" {
				return nil, fmt.Errorf("--pki-dir: the file has no %s", path)
			}
		}
		if err := m.set("pki-dir", pkiDir, "security"); err != nil {
			return nil, err
		}
	}
	return m, m.options.validate()
}

// recognize says of another file what it is.
func recognize(sections map[string]any) error {
	names := slices.Sorted(maps.Keys(sections))
	if _, nodes := sections["nodes"]; nodes {
		return errors.New("it is an rnx-config.yml, which rnx reads unchanged")
	}
	if slices.ContainsFunc(names, isPublicSection) {
		return nil
	}
	o := builtinOptions()
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	o.flags(f)
	if slices.ContainsFunc(names, func(name string) bool { return f.Lookup(name) != nil }) {
		return errors.New("it already has the format of this daemon: validate it with joblet config check")
	}
	return errors.New("it is not a joblet-config.yml: it has none of the sections, such as server, security and joblet")
}

// flatten notes the values below a section by their paths.
func (m *migration) flatten(path string, value any, depth int) error {
	if depth > maxPublicDepth {
		return fmt.Errorf("%.100s: nested more than %d levels deep", path, maxPublicDepth)
	}
	below := map[string]any{}
	switch v := value.(type) {
	case map[string]any:
		below = v
	case map[any]any:
		for key, value := range v {
			below[fmt.Sprint(key)] = value
		}
	default:
		if m.keys[path] = value; len(m.keys) > maxPublicKeys {
			return fmt.Errorf("it has more than %d keys", maxPublicKeys)
		}
		return nil
	}
	for name, value := range below {
		if path != "" {
			name = path + "." + name
		}
		if err := m.flatten(name, value, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// has reports whether the file has something in a section.
func (m *migration) has(section string) bool {
	for path := range m.keys {
		if strings.HasPrefix(path, section+".") {
			return true
		}
	}
	return false
}

// key looks at one key, and reports what has become of it.
func (m *migration) key(path string, value any) error {
	k := findPublicKey(path)
	set, why := "", ""
	_, list := value.([]any)
	switch {
	case value == nil:
		why = "it has no value"
	case k == nil:
		why = "the key is unknown"
	case k.to == nil:
		why = k.why
	case list:
		return errors.New("must be one value")
	default:
		var err error
		if set, why, err = k.to(m, value); err != nil {
			return err
		}
	}
	name := path
	if len(name) > 200 || strconv.Quote(name) != `"`+name+`"` {
		name = strconv.Quote(name[:min(len(name), 200)])
	}
	if set == "" {
		m.report = append(m.report, fmt.Sprintf("dropped %s: %s", name, why))
		return nil
	}
	if ours, _, _ := strings.Cut(set, ":"); m.flags.Lookup(ours) != nil && m.flags.Lookup(ours).Changed {
		m.from[ours] = append(m.from[ours], name)
	}
	m.report = append(m.report, fmt.Sprintf("changed %s: %s", name, set))
	return nil
}

// set gives a key of ours its value.
func (m *migration) set(name, value string, from ...string) error {
	m.from[name] = append(m.from[name], from...)
	return m.flags.Set(name, value)
}

func number(value any) (int64, error) {
	n, err := strconv.ParseInt(fmt.Sprint(value), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%.40q is not a whole number", fmt.Sprint(value))
	}
	if n < 0 {
		return 0, fmt.Errorf("%d: must not be negative", n)
	}
	return n, nil
}

func truth(value any) (bool, error) {
	b, ok := value.(bool)
	if !ok {
		return false, fmt.Errorf("%.40q must be true or false", fmt.Sprint(value))
	}
	return b, nil
}

// limit returns what makes a public limit one of ours. The format brings its unit.
func limit(key, name, format string) func(*migration, any) (string, string, error) {
	return func(m *migration, value any) (string, string, error) {
		n, err := number(value)
		switch {
		case err != nil:
			return "", "", err
		case n == 0:
			return "", "0 is no limit, as without the key here", nil
		}
		text := fmt.Sprintf(format, n)
		if err := m.set(key, name+"="+text); err != nil {
			return "", "", err
		}
		return fmt.Sprintf("%s: {%s: %s}", key, name, text), "", nil
	}
}

// listen makes one key of server.address and server.port.
func (m *migration) listen(any) (string, string, error) {
	port := cmp.Or(m.keys["server.port"], any(client.DefaultPort))
	address := "0.0.0.0"
	if a, given := m.keys["server.address"]; given && a != nil {
		address = fmt.Sprint(a)
	}
	n, err := number(port)
	if err != nil {
		return "", "", err
	}
	listen := net.JoinHostPort(strings.Trim(address, "[]"), strconv.FormatInt(n, 10))
	if _, err := (Options{Listen: listen}).listenAddress(); err != nil {
		return "", "", err
	}
	return "listen: " + listen, "", m.set("listen", listen)
}

var certificateKeys = []string{"security.caCert", "security.serverCert", "security.serverKey"}

func (m *migration) certificate(any) (string, string, error) {
	if m.pkiDir == "" {
		return "", "give --pki-dir to keep the certificates, or make new ones with joblet pki init", nil
	}
	return "a file in " + m.pkiDir, "", nil
}

func (m *migration) writeCertificates() error {
	pem := func(i int) []byte { return []byte(fmt.Sprint(m.keys[certificateKeys[i]])) }
	c, err := pki.Dir{Path: m.pkiDir}.Import(pem(0), pem(1), pem(2))
	if err != nil {
		return err
	}
	if left := time.Until(c.NotAfter); left < 30*24*time.Hour {
		m.report = append(m.report, fmt.Sprintf("warning: the daemon's certificate expires on %s", c.NotAfter.Format(time.DateOnly)))
	}
	return nil
}

// audit looks at both keys of the audit log.
func (m *migration) audit(any) (string, string, error) {
	path, on := m.keys["security.audit.log_file"], true
	if enabled := m.keys["security.audit.enabled"]; enabled != nil {
		var err error
		if on, err = truth(enabled); err != nil {
			return "", "", err
		}
	}
	switch {
	case !on:
		return "audit-log: off", "", m.set("audit-log", auditOff)
	case path == nil:
		return "", "the audit log is on without a key", nil
	}
	return "audit-log: " + fmt.Sprint(path), "", m.set("audit-log", fmt.Sprint(path))
}

func (m *migration) concurrent(value any) (string, string, error) {
	n, err := number(value)
	switch {
	case err != nil:
		return "", "", err
	case n == 0:
		return "", "0 is no limit, as without the key here", nil
	}
	text := strconv.FormatInt(n, 10)
	return "max-concurrent: " + text + ", and further jobs wait", "", m.set("max-concurrent", text)
}

func (m *migration) logLevel(value any) (string, string, error) {
	level := strings.ToLower(fmt.Sprint(value))
	switch level {
	case "trace":
		level = "debug"
	case "warning":
		level = "warn"
	case "fatal", "panic":
		level = "error"
	}
	if _, err := (Options{Reloadable: Reloadable{LogLevel: level}}).level(); err != nil {
		return "", fmt.Sprintf("%.40q must be debug, info, warn or error", fmt.Sprint(value)), nil
	}
	return "log-level: " + level, "", m.set("log-level", level)
}

func (m *migration) logFormat(value any) (string, string, error) {
	format := strings.ToLower(fmt.Sprint(value))
	if format != "text" && format != "json" {
		return "", fmt.Sprintf("%.40q must be text or json", fmt.Sprint(value)), nil
	}
	return "log-format: " + format, "", m.set("log-format", format)
}

func (m *migration) metrics(value any) (string, string, error) {
	if on, ok := m.keys["monitoring.enabled"].(bool); ok && !on {
		return "", "monitoring is off", nil
	}
	address := fmt.Sprint(value)
	if _, err := (Options{MetricsAddr: address}).metricsAddr(); err != nil {
		return "", err.Error(), nil
	}
	return "metrics-addr: " + address, "", m.set("metrics-addr", address)
}

// text returns our configuration, with where each value comes from.
func (m *migration) text(file string) string {
	var b strings.Builder
	if file == "-" {
		file = "stdin"
	}
	fmt.Fprintf(&b, "# Configuration of joblet serve, imported from %s.\n# \"joblet config default\" prints all keys and their meaning.\n", strconv.Quote(filepath.Base(file)))
	m.flags.VisitAll(func(flag *pflag.Flag) {
		if !flag.Changed {
			return
		}
		from := slices.Compact(m.from[flag.Name])
		switch {
		case len(from) == 0:
			from = []string{"the public default"}
		case flag.Name == "pki-dir":
			from = certificateKeys
		}
		fmt.Fprintf(&b, "\n# %s\n", wrap("from "+strings.Join(from, ", "), 95))
		if flag.Name == "listen" && m.pkiDir == "" {
			b.WriteString("# Needs certificates: create them with joblet pki init.\n")
		}
		fmt.Fprintf(&b, "%s:%s\n", flag.Name, configText(flag))
	})
	return b.String()
}

// output is a file that is being written under another name.
type output struct {
	path, temporary string
	replace         bool
}

func newOutput(path, text string, replace bool) (_ *output, err error) {
	if _, err := os.Lstat(path); err == nil && !replace {
		return nil, fmt.Errorf("%s already exists: replace it with --force", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	return &output{path, f.Name(), replace}, nil
}

// publish gives the file its name.
func (o *output) publish() error {
	if o.replace {
		return os.Rename(o.temporary, o.path)
	}
	return os.Link(o.temporary, o.path) // never in place of another
}

// discard removes what publish has not renamed.
func (o *output) discard() { _ = os.Remove(o.temporary) }
