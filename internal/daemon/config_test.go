package daemon

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"time"

	"github.com/joblet/joblet/internal/runtimes"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "joblet-config.yml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// root has the commands of this package below it.
func root() *cobra.Command {
	cmd := &cobra.Command{Use: "joblet", SilenceErrors: true, SilenceUsage: true}
	cmd.AddCommand(NewServeCommand(), NewConfigCommand())
	return cmd
}

// cli runs the commands of this package.
func cli(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := root()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestConfigFile(t *testing.T) {
	o := builtinOptions()
	o.MaxConcurrent = 3 // by a flag
	o.Config = writeFile(t, `# a comment
state-dir: /srv/joblet
max-concurrent: 7
max-per-owner: 5
retain-age: 720h
log-level: warn
default:
  max-memory: 1G
  max-pids: 100
allow:
  - alice read bob
  - "carol control *"
listen: :50051
audit-max: 1M
`)
	t.Setenv("JOBLET_LOG_LEVEL", "debug")
	t.Setenv("JOBLET_CEILING", "max-memory=2G; max-cpu=400")
	o, from, err := o.Load(map[string]bool{"max-concurrent": true})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.validate(); err != nil {
		t.Fatal(err)
	}
	if o.StateDir != "/srv/joblet" || o.MaxConcurrent != 3 || o.MaxPerOwner != 5 || o.RetainAge != 720*time.Hour || o.LogLevel != "debug" ||
		o.Defaults.MemoryBytes != 1<<30 || o.Defaults.MaxPIDs != 100 || o.Ceiling.CPUPercent != 400 || o.Ceiling.MemoryBytes != 2<<30 ||
		!slices.Equal(o.Allow, []string{"alice read bob", "carol control *"}) || o.AuditMax != 1<<20 {
		t.Errorf("got %+v", o)
	}
	for name, want := range map[string]string{
		"state-dir": ":2", "max-concurrent": "flag", "log-level": "environment JOBLET_LOG_LEVEL", "run-dir": "default", "default": ":7",
	} {
		if got := string(from[name]); got != want && !strings.HasSuffix(got, "joblet-config.yml"+want) {
			t.Errorf("%s comes from %s", name, got)
		}
	}
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"max-concurent: 3":              `:1: unknown key "max-concurent"; did you mean "max-concurrent"?`,
		"a: 1":                          `:1: unknown key "a"; see "joblet config default"`,
		"ready-fd: 3":                   `unknown key "ready-fd"`,
		"log_level: warn":               `did you mean "log-level"?`,
		"log-level: warn\nlog-level: x": `:2: duplicate key "log-level", first in line 1`,
		"max-concurrent: many":          `:1: max-concurrent: "many" is not a whole number`,
		"max-concurrent: [1]":           "must be a single value",
		"max-concurrent:":               "has no value",
		"default: max-memory=1G":        "must have lines of LIMIT: VALUE",
		"default: {max-memory: [1]}":    "max-memory: must be a single value",
		"default: {max-memorie: 1G}":    `unknown limit "max-memorie"; did you mean "max-memory"?`,
		"ceiling: {nofil: 1}":           `did you mean "nofile"?`,
		"ceiling: {zzzzzz: 1}":          `unknown limit "zzzzzz"`,
		"default:\n  max-pids: 10\n  max-cpu: 1\n  max-pids: 20": `default: duplicate key "max-pids" in line 4, first in line 2`,
		"listen: 50051":                   "joblet-config.yml:1: listen \"50051\": must be HOST:PORT, such as :50051 or 0.0.0.0:50051",
		"listen: true":                    "listen \"true\": must be HOST:PORT",
		"listen: 50051:50051":             ":1: listen",
		"listen: 1.2.3":                   ":1: listen",
		"listen: a b":                     ":1: listen",
		"group: no-such-group":            "groupadd --system no-such-group",
		"allow: [[x]]":                    "must be a list of strings",
		"- x":                             "KEY: VALUE",
		"state-dir: /x\n---\nrun-dir: /y": "more than one document",
		"{":                               "joblet-config.yml",
		"allow: [alice read]":             `rule "alice read": must be CLIENT read|control OWNER`,
		"allow: [alice write bob]":        `"write" must be read or control`,
		"listen: 'x:y:z'":                 ":1: listen",
		"listen: ':99999'":                ":1: listen",
		"client-rate: 0":                  ":1: client-rate 0",
		"audit-log: x":                    ":1: audit-log",
		"pki-dir: x":                      ":1: pki-dir",
		"mirror: ftp://x/":                ":1: mirror",
		"mirror: [deb.debian.org, 'a b']": ":1: mirror",
		"mirror: ['http://u:p@x/']":       ":1: mirror",
		"mirror: [host/path]":             ":1: mirror",
		"build-timeout: 0s":               ":1: build-timeout",
		"build-timeout: 10":               "build-timeout: ",
		"audit-max: 1":                    ":1: audit-max",
		"max-per-owner: -1":               ":1: max-per-owner",
		"request-memory: 128M":            ":1: request-memory",
		"response-memory: 16M":            ":1: response-memory",
	} {
		path := writeFile(t, text)
		if _, err := cli(t, "config", "check", path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
	path := writeFile(t, "log-level: warn")
	if out, err := cli(t, "config", "check", path); err != nil || out != "ok\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if err := os.Chmod(path, 0o622); err != nil {
		t.Fatal(err)
	}
	if _, err := cli(t, "config", "check", path); err == nil || !strings.Contains(err.Error(), "other users may write it") {
		t.Errorf("writable: %v", err)
	}
	if _, err := cli(t, "config", "check", path+".none"); err == nil {
		t.Error("a file that is not there is right")
	}
}

// TestConfigCheckAll: all errors of a file are listed by line.
func TestConfigCheckAll(t *testing.T) {
	t.Parallel()
	path := writeFile(t, "idle-exit: soon\nlog-full: x\nnope: 1\nlisten: a b\nretain-age: 2w\ndefault: {max-cpu: x}\n")
	out, err := cli(t, "config", "check", path)
	if err == nil || err.Error() != "cannot use the configuration: it has 5 errors" {
		t.Errorf("got %v", err)
	}
	var lines []string
	for line := range strings.Lines(strings.ReplaceAll(out, path, "F")) {
		lines = append(lines, strings.Join(strings.SplitAfter(line, ":")[:2], ""))
	}
	if want := []string{"F:1:", "F:2:", "F:3:", "F:4:", "F:6:"}; !slices.Equal(lines, want) {
		t.Errorf("got %q, want %q:\n%s", lines, want, out)
	}
}

// TestMirrors: a list in the file replaces the default, also by nothing.
func TestMirrors(t *testing.T) {
	for text, want := range map[string][]string{
		"":            runtimes.DefaultMirrors(),
		"mirror: []":  {},
		"mirror: [x]": {"x"},
		"mirror: [host, 'http://x/y']\nbuild-timeout: 5m": {"host", "http://x/y"},
	} {
		opt := builtinOptions()
		opt.Config = writeFile(t, text)
		got, _, err := opt.Load(nil)
		if err != nil || !slices.Equal(got.Mirrors, want) {
			t.Errorf("%q: %q, %v, want %q", text, got.Mirrors, err, want)
		}
	}
}

// TestNoGroup: no group may use the socket unless one is named, whatever groups
// the host has.
func TestNoGroup(t *testing.T) {
	t.Parallel()
	opt := builtinOptions()
	if gid, err := opt.group(); opt.Group != "" || gid != 0 || err != nil {
		t.Errorf("group %q, %d, %v", opt.Group, gid, err)
	}
}

// TestConfigDefault: the printed defaults are a configuration that says what the
// program does without one, and has every key.
func TestConfigDefault(t *testing.T) {
	t.Parallel()
	text, err := cli(t, "config", "default")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(text) {
		if s, ok := strings.CutPrefix(line, "#"); ok && (!strings.HasPrefix(s, " ") || strings.HasPrefix(s, "  ")) {
			lines = append(lines, s)
		}
	}
	o := builtinOptions()
	o.Config = writeFile(t, strings.Join(lines, ""))
	got, from, err := o.Load(nil)
	if err != nil {
		t.Fatalf("%v in\n%s", err, strings.Join(lines, ""))
	}
	if names := changed(o, got); len(names) > 0 {
		t.Errorf("differ: %q", names)
	}
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	o.flags(f)
	f.VisitAll(func(flag *pflag.Flag) {
		if !slices.Contains(notConfigured, flag.Name) && !strings.HasPrefix(string(from[flag.Name]), o.Config) && !strings.HasPrefix(string(from[flag.Name]), "environment") {
			t.Errorf("%s is not in it: %s", flag.Name, from[flag.Name])
		}
	})
	for _, name := range reloadableNames() {
		if f.Lookup(name) == nil {
			t.Errorf("%s can be changed and is no key", name)
		}
	}
}

func TestConfigShow(t *testing.T) {
	t.Parallel()
	path := writeFile(t, "default: {max-memory: 1G, nofile: 100:200}\nallow: [alice read bob]")
	out, err := cli(t, "config", "show", "--config="+path, "--max-concurrent=4", "--state-dir=/srv/x", "--run-dir=/run/x")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"  max-memory: 1G\n  nofile: 100:200\n", "  - alice read bob\n", "max-concurrent: 4", "# flag\n", "# " + path + ":2\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	again := writeFile(t, out) // it can be read
	if second, err := cli(t, "config", "show", "--config="+again); err != nil || !strings.Contains(second, "nofile: 100:200") {
		t.Errorf("%s %v", second, err)
	}
}

// TestUnknownVariables: a variable that looks like ours is spoken of, and changes
// nothing.
func TestUnknownVariables(t *testing.T) {
	for _, variable := range os.Environ() { // of the user that runs the tests
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, envPrefix) {
			t.Setenv(name, "") // is restored
			os.Unsetenv(name)
		}
	}
	for _, name := range []string{"JOBLET_LOG_LEVEL", "JOBLET_CONFIG", "JOBLET_JOB_ID", "JOBLET_FAULT", "JOBLET_TEST_SLOW", "OTHER"} {
		t.Setenv(name, "")
	}
	path := writeFile(t, "log-level: warn")
	if out, err := cli(t, "config", "check", path); err != nil || out != "ok\n" {
		t.Errorf("got %q, %v", out, err)
	}
	t.Setenv("JOBLET_MAX_CONCURENT", "secret")
	t.Setenv("JOBLET_QQQQ", "secret")
	out, err := cli(t, "config", "check", path)
	if want := "warning: unknown environment variable JOBLET_MAX_CONCURENT ignored; did you mean JOBLET_MAX_CONCURRENT?\n" +
		"warning: unknown environment variable JOBLET_QQQQ ignored\nok\n"; err != nil || out != want {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestListenAddress(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": "", ":1": ":1", "127.0.0.1": "127.0.0.1:50051", "::1": "[::1]:50051", "[fe80::1%eth0]:50051": "[fe80::1%eth0]:50051", "fe80::1%eth0": "[fe80::1%eth0]:50051", "[::1]": "[::1]:50051", "[::1]:7": "[::1]:7", "host:": "host:50051", "0.0.0.0:50052": "0.0.0.0:50052",
	} {
		if got, err := (Options{Listen: in}).listenAddress(); got != want || err != nil {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
}
