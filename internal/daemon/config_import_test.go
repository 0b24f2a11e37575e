package daemon

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/pki"
)

// imports runs joblet config import.
func imports(t *testing.T, stdin string, args ...string) (out, report string, err error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := root()
	cmd.SetArgs(append([]string{"config", "import"}, args...))
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&stdout)
	cmd.SetErr(&stderr)
	err = cmd.ExecuteContext(t.Context())
	return stdout.String(), stderr.String(), err
}

// TestImportFiles: each file of testdata/import becomes the .config beside it, with
// the .report on stderr, and what it becomes is right.
func TestImportFiles(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/import/*.yml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		base := strings.TrimSuffix(file, ".yml")
		out, report, err := imports(t, "", file)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		for name, got := range map[string]string{base + ".config": out, base + ".report": report} {
			if want, err := os.ReadFile(name); err != nil || got != string(want) {
				t.Errorf("%s: %v: got\n%s", name, err, got)
			}
		}
		for line := range strings.Lines(report) {
			if what, rest, _ := strings.Cut(line, " "); what != "changed" && what != "dropped" || !strings.Contains(rest, ": ") {
				t.Errorf("%s: %q", file, line)
			}
		}
		if ok, err := cli(t, "config", "check", writeFile(t, out)); err != nil || ok != "ok\n" {
			t.Errorf("%s: %s%v", file, ok, err)
		}
	}
}

// publicCertificates returns the section security of a public file.
func publicCertificates(t *testing.T) string {
	t.Helper()
	d := pki.Dir{Path: filepath.Join(t.TempDir(), "pki")}
	b, err := d.Init(nil, "admin", pki.DefaultValid)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(d.Path, "server.pem"))
	if err != nil {
		t.Fatal(err)
	}
	var s strings.Builder
	s.WriteString("security:\n")
	key := func(name string, text []byte) {
		fmt.Fprintf(&s, "  %s: |\n    %s\n", name, strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", "\n    "))
	}
	key("caCert", b.CA)
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		name := "serverCert"
		if block.Type != "CERTIFICATE" {
			name = "serverKey"
		}
		key(name, pem.EncodeToMemory(block))
	}
	return s.String()
}

func TestImportCertificates(t *testing.T) {
	t.Parallel()
	security := publicCertificates(t)
	dir := t.TempDir()
	pkiDir, output := filepath.Join(dir, "new", "pki"), filepath.Join(dir, "joblet-config.yml")
	out, report, err := imports(t, "version: '3.0'\n"+security, "--pki-dir="+pkiDir, "--output="+output, "-")
	if err != nil || out != "" {
		t.Fatalf("%q, %v", out, err)
	}
	if want := strings.ReplaceAll("changed security.caCert: a file in DIR\nchanged security.serverCert: a file in DIR\nchanged security.serverKey: a file in DIR\ndropped version: it is the version of the other format\n", "DIR", pkiDir); report != want {
		t.Errorf("got %s", report)
	}
	text, err := os.ReadFile(output)
	if want := "listen: 0.0.0.0:50051\n\n# from security.caCert, security.serverCert, security.serverKey\npki-dir: " + pkiDir + "\n"; err != nil || !strings.HasSuffix(string(text), want) || strings.Contains(string(text), "BEGIN") {
		t.Errorf("%v: got %s", err, text)
	}
	for name, mode := range map[string]os.FileMode{output: 0o644, pkiDir: 0o700, pkiDir + "/ca.crt": 0o600, pkiDir + "/server.pem": 0o600, pkiDir + "/index.json": 0o600} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if ok, err := cli(t, "config", "check", output); err != nil || ok != "ok\n" {
		t.Errorf("%s%v", ok, err)
	}
	if list, err := (pki.Dir{Path: pkiDir}).List(); err != nil || len(list) != 1 || list[0].Name != pki.ServerName {
		t.Errorf("%v, %v", list, err)
	}

	// Neither the certificates nor the file are replaced.
	for _, args := range [][]string{{"--pki-dir=" + pkiDir}, {"--output=" + output}, {"--pki-dir=" + filepath.Join(dir, "other"), "--output=" + output}} {
		if out, report, err := imports(t, security, append(args, "-")...); err == nil || !strings.Contains(err.Error(), "cannot import -: ") || !strings.Contains(err.Error(), "exists") || out+report != "" {
			t.Errorf("%q: %s%s%v", args, out, report, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "other")); err == nil {
		t.Error("certificates are left")
	}
	if _, _, err := imports(t, "logging: {level: debug}", "--output="+output, "--force", "-"); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(output); err != nil || !strings.HasSuffix(string(text), "log-level: debug\n") {
		t.Errorf("%s%v", text, err)
	}
	entries, err := os.ReadDir(dir)
	if names := fmt.Sprint(entries); err != nil || len(entries) != 2 {
		t.Errorf("left: %s, %v", names, err)
	}

	// Without the flag nothing of them is anywhere.
	out, report, err = imports(t, security, "-")
	if err != nil || strings.Contains(out+report, "BEGIN") || strings.Contains(out, "pki-dir") || !strings.Contains(out, "joblet pki init") || strings.Count(report, "dropped security.") != 3 {
		t.Errorf("%s%s%v", out, report, err)
	}
}

func TestImportErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	security := publicCertificates(t)
	many := "joblet:\n"
	for i := range maxPublicKeys + 1 {
		many += fmt.Sprintf("  k%d: 1\n", i)
	}
	bomb := "joblet:\n  a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := range 9 {
		bomb += fmt.Sprintf("  a%d: &a%[1]d [%s]\n", i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i), 10), ","))
	}
	for _, tt := range []struct {
		text string
		args []string
		want string
	}{
		{"", []string{fifo}, "it is not a regular file; use - for stdin"},
		{"", []string{dir}, "it is not a regular file"},
		{"", []string{dir + "/none"}, "no such file"},
		{"", nil, "it is not a joblet-config.yml"},
		{"- x", nil, "it is not a joblet-config.yml"},
		{"{", nil, "yaml"},
		{"nodes: {default: {address: a}}", nil, "it is an rnx-config.yml, which rnx reads unchanged"},
		{"listen: :50051\nlog-level: warn", nil, "it already has the format of this daemon"},
		{"services: {web: {image: x}}", nil, "it has none of the sections"},
		{"server: {port: 1}\n---\nserver: {port: 2}", nil, "more than one document"},
		{"server: {port: 1, port: 2}", nil, `"port" already defined at line 1`},
		{"server: {port: many}", nil, `server.port: "many" is not a whole number`},
		{"server: {port: 70000}", nil, `server.port: --listen "0.0.0.0:70000"`},
		{"server: {address: 'a b'}", nil, `server.address: --listen "a b:50051"`},
		{"server: {address: [a]}", nil, `server.address: must be one value`},
		{"joblet: {defaultCpuLimit: -1}", nil, "joblet.defaultCpuLimit: -1: must not be negative"},
		{"joblet: {defaultMemoryLimit: 1.5}", nil, `joblet.defaultMemoryLimit: "1.5" is not a whole number`},
		{"joblet: {defaultMemoryLimit: 99999999999999}", nil, "joblet.defaultMemoryLimit: "},
		{"joblet: {defaultIoLimit: 1}", nil, "joblet.defaultIoLimit: "},
		{"joblet: {maxConcurrentJobs: 99999999999999999999}", nil, "joblet.maxConcurrentJobs: "},
		{"joblet: {defaultCpuLimit: 400, maxCpuLimit: 200}", nil, "--default exceeds --ceiling"},
		{"security: {audit: {enabled: perhaps}}", nil, `security.audit.enabled: "perhaps" must be true or false`},
		{"security: {audit: {log_file: log}}", nil, `--audit-log "log": must be an absolute path`},
		{"server: " + strings.Repeat("{a: ", 40) + "1" + strings.Repeat("}", 40), nil, "nested more than 32 levels deep"},
		{many, nil, "it has more than 10000 keys"},
		{bomb, nil, "excessive aliasing"},
		{"joblet: &a {b: *a}", nil, "contains itself"},
		{"server: {port: 1} #" + strings.Repeat("x", maxConfigFile), nil, "it is longer than"},
		{"server: {port: 1}", []string{"--pki-dir=pki", "-"}, `--pki-dir "pki": must be an absolute path`},
		{"server: {port: 1}", []string{"--pki-dir=" + dir + "/pki", "-"}, "--pki-dir: the file has no security.caCert"},
		{strings.ReplaceAll(security, "serverKey", "key"), []string{"--pki-dir=" + dir + "/pki", "-"}, "--pki-dir: the file has no security.serverKey"},
		{"security: {caCert: x, serverCert: y, serverKey: z}", []string{"--pki-dir=" + dir + "/pki", "-"}, "cannot use the authority's certificate: it contains no certificate"},
		{"server: {port: 1}", []string{"--force", "-"}, "--force requires --output"},
		{"server: {port: 1}", []string{"--output=" + dir + "/none/x", "-"}, "no such file"},
	} {
		args := tt.args
		if args == nil {
			args = []string{"-"}
		}
		out, report, err := imports(t, tt.text, args...)
		if err == nil || !strings.HasPrefix(err.Error(), "cannot import "+args[len(args)-1]+": ") || !strings.Contains(err.Error(), tt.want) || out+report != "" {
			t.Errorf("%.80q %q: got %s%s%v, want %s", tt.text, args, out, report, err, tt.want)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestImportKeys: names come from outside, and may be anything.
func TestImportKeys(t *testing.T) {
	t.Parallel()
	out, report, err := imports(t, "server: {port: ~, \"a\\e[31m\\nchanged x\": 1, 7: {b: 2}}\njoblet:\nsecurity: {serverKey: hunter2, other: hunter2}\n"+strings.Repeat("y", 300)+": 1\n", "-")
	want := "dropped joblet: it has no value\n"
	if err != nil || !strings.Contains(report, want) || strings.Contains(report, "\x1b") || strings.Contains(out+report, "hunter2") ||
		!strings.Contains(report, "dropped server.7.b: the key is unknown\n") || !strings.Contains(report, "dropped server.port: it has no value\n") ||
		!strings.Contains(report, `dropped "server.a\x1b[31m\nchanged x": the key is unknown`+"\n") || strings.Contains(report, strings.Repeat("y", 201)) {
		t.Errorf("%s%s%v", out, report, err)
	}
	for line := range strings.Lines(report) {
		if !strings.HasPrefix(line, "dropped ") {
			t.Errorf("%q", line)
		}
	}
}

// TestPublicKeys: the table does not contradict itself.
func TestPublicKeys(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, k := range publicKeys {
		if name := fmt.Sprint(k.path, k.all); seen[name] || (k.to == nil) == (k.why == "") {
			t.Errorf("%s", name)
		} else {
			seen[name] = true
		}
		if found := findPublicKey(k.path); found == nil || found.path != k.path {
			t.Errorf("%s: found %v", k.path, found)
		}
	}
	if k := findPublicKey("network.networks.bridge.cidr"); k == nil || k.path != "network" {
		t.Errorf("got %v", k)
	}
	for _, path := range []string{"server.colour", "colour", "security.other.x", "", "."} {
		if k := findPublicKey(path); k != nil {
			t.Errorf("%s: got %v", path, k)
		}
	}
}

// TestServePublicConfig: a daemon started with a public file reports the remedy.
func TestServePublicConfig(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"version: '3.0'\nserver: {port: 1}", "worker: {}", "joblet:\n  defaultCpuLimit: 1"} {
		if _, err := cli(t, "config", "check", writeFile(t, text)); err == nil || !strings.Contains(err.Error(), "joblet config import") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if slices.ContainsFunc([]string{"listen", "default", "group"}, isPublicSection) {
		t.Error("a key of ours is taken for a public one")
	}
	if _, err := client.ParseConfig([]byte("version: '3.0'\nserver: {port: 1}")); err == nil || !strings.Contains(err.Error(), `unknown key "server"`) {
		t.Errorf("as rnx-config.yml: %v", err)
	}
}

// TestMigratingKeys: docs/MIGRATING.md has a row for each key of the public file, which
// says what import does with it, and no other.
func TestMigratingKeys(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/MIGRATING.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## The daemon's configuration\n")
	section, _, _ = strings.Cut(section, "\nVariables of the environment")
	defaults, err := cli(t, "config", "default")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !strings.Contains(cells[1], "`") {
			continue
		}
		path := strings.Trim(cells[1], " `")
		rows[path] = strings.TrimSpace(cells[2])
		if k := findPublicKey(path); k == nil || k.path != path {
			t.Errorf("%s: is in the document alone", path)
		} else if (k.to == nil) != (rows[path] == "–") {
			t.Errorf("%s: the document says %q", path, rows[path])
		}
		for i, key := range strings.Fields(strings.ReplaceAll(strings.Trim(rows[path], "–"), "`", "")) {
			limit := i > 0 && slices.Contains(limitNames(), key)
			if !limit && !strings.Contains(defaults, "\n#"+key+":") {
				t.Errorf("%s: there is no key %q", path, key)
			}
		}
	}
	for _, k := range publicKeys {
		if rows[k.path] == "" {
			t.Errorf("%s: is not in the document", k.path)
		}
	}
}
