package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/joblet/joblet/client"
)

// docs/MIGRATING.md says what of the public programs is here. Its tables are held to
// what the programs do: the column in the middle names what there is.

// none is in the middle column where there is nothing.
const none = "–"

// docRow is a row of a table.
type docRow struct {
	heading, public, here, note string
}

var codeSpan = regexp.MustCompile("`([^`]+)`")

// spans returns the pieces of code in a cell.
func spans(cell string) []string {
	var all []string
	for _, m := range codeSpan.FindAllStringSubmatch(cell, -1) {
		all = append(all, strings.ReplaceAll(m[1], `\|`, "|"))
	}
	return all
}

// readMigrating returns the rows of all tables with three columns, and what else of
// the document is code.
func readMigrating(t *testing.T) (rows []docRow, code []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/MIGRATING.md")
	if err != nil {
		t.Fatal(err)
	}
	heading := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "#"):
			heading = strings.TrimLeft(line, "# ")
		case strings.HasPrefix(line, "    "):
			code = append(code, strings.TrimSpace(line))
		case strings.HasPrefix(line, "|"):
			cells := strings.Split(strings.ReplaceAll(strings.Trim(line, "|"), `\|`, "\x00"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(strings.ReplaceAll(cells[i], "\x00", "|"))
			}
			if cells[0] == "public" || strings.HasPrefix(cells[0], "---") {
				continue
			}
			if len(cells) == 3 {
				rows = append(rows, docRow{heading, cells[0], cells[1], cells[2]})
				code = append(code, append(spans(cells[1]), spans(cells[2])...)...)
			} else {
				code = append(code, spans(line)...)
			}
		default:
			code = append(code, spans(line)...)
		}
	}
	if len(rows) < 150 {
		t.Fatalf("%d rows", len(rows))
	}
	return rows, code
}

// helps runs the programs with --help, each command once.
type helps map[string]string

var word = regexp.MustCompile(`^[a-z][a-z-]*$`)

// of returns the help of a command line, and its flags. It is an error if there is
// no such command.
func (h helps) of(t *testing.T, line string) (help string, flags []string) {
	t.Helper()
	line, _, _ = strings.Cut(line, " | ")
	line, _, _ = strings.Cut(line, "  #")
	words := strings.Fields(line)
	command, stopped := words[:1:1], false
	for _, w := range words[1:] {
		switch {
		case w == "-":
		case strings.HasPrefix(w, "-"):
			flag, _, _ := strings.Cut(w, "=")
			flags = append(flags, flag)
		case word.MatchString(w) && !stopped:
			command = append(command, w)
		default:
			stopped = true
		}
	}
	name := strings.Join(command, " ")
	if _, known := h[name]; !known {
		out, err := exec.Command(filepath.Join(binDir, command[0]), append(command[1:], "--help")...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "\nUsage:\n  "+name) {
			t.Errorf("%q: no such command: %v\n%.200s", line, err, out)
		}
		h[name] = string(out)
	}
	return h[name], flags
}

// hasFlag reports whether a help names a flag.
func hasFlag(help, flag string) bool {
	return regexp.MustCompile(`(?m)^ +(-[a-zA-Z], )?` + regexp.QuoteMeta(flag) + `\b`).MatchString(help)
}

// publicCommands are those of rnx 6 and server 5, and older ones.
var publicCommands = []string{
	"rnx job run", "rnx job list", "rnx job status", "rnx job log", "rnx job metrics", "rnx job telematics", "rnx job visibility", "rnx job stop", "rnx job cancel", "rnx job delete", "rnx job delete-all",
	"rnx network create", "rnx network list", "rnx network remove", "rnx volume create", "rnx volume list", "rnx volume remove",
	"rnx runtime list", "rnx runtime info", "rnx runtime build", "rnx runtime validate", "rnx runtime test", "rnx runtime remove", "rnx runtime install",
	"rnx monitor status", "rnx monitor top", "rnx monitor watch", "rnx nodes", "rnx config-help", "rnx help", "rnx version",
	"rnx run", "rnx list", "rnx status", "rnx log", "rnx stop", "rnx workflow run", "rnx workflow list", "rnx workflow status", "rnx workflow delete", "joblet",
}

// publicFlags are theirs, by the command.
var publicFlags = map[string][]string{
	"Global flags":                  {"--config", "--node", "--json", "--version", "-v", "--help", "-h"},
	"Flags of `rnx job run`":        {"--max-cpu", "--cpu-cores", "--max-memory", "--max-iobps", "--upload", "--upload-dir", "--schedule", "--network", "--volume", "--runtime", "--env", "-e", "--secret-env", "-s", "--gpu", "--gpu-memory", "--timeout", "--workflow"},
	"Flags of `rnx job log`":        {"--follow", "-f"},
	"Flags of `rnx job telematics`": {"--types"},
	"Flags of `rnx runtime build`":  {"--force", "-f", "--verbose", "-v"},
	"Flags of `rnx runtime list`":   {"--registry", "--github-repo"},
	"Flags of `rnx monitor watch`":  {"--interval", "--filter", "--compact"},
	"Flags of `rnx monitor top`":    {"--filter"},
	"Flags of `rnx network create`": {"--cidr"},
	"Flags of `rnx volume create`":  {"--size", "--type"},
}

// publicFields are the fields and columns of what the public client prints.
var publicFields = map[string][]string{
	"Columns of `rnx job list`":         {"ID", "NAME", "NODE ID", "STATUS", "START TIME", "COMMAND"},
	"Fields of `rnx job list --json`":   {"id", "uuid", "name", "node_id", "status", "start_time", "end_time", "command", "args", "exit_code", "max_cpu", "max_memory", "max_iobps", "cpu_cores", "scheduled_time"},
	"Fields of `rnx job status --json`": {"uuid", "name", "nodeId", "command", "args", "status", "startTime", "endTime", "exitCode", "scheduledTime", "environment", "secretEnvironment", "network", "volumes", "runtime", "workDir", "uploads", "dependencies", "workflowUuid", "maxCPU", "maxMemory", "maxIOBPS", "cpuCores", "gpuCount", "gpuMemoryMb", "gpuIndices"},
	"Fields of `rnx job run -d --json`": {"job_uuid", "command", "args", "status", "start_time", "schedule", "schedule_input", "scheduled_time", "files_uploaded", "env_vars", "secret_env_vars"},
	"rnx-config.yml":                    {"version", "nodes", "address", "nodeId", "isDefault", "persistAddress", "cert", "key", "ca", "default_node", "timeout", "keepalive", "retry", "global", "preferences", "RNX_CONFIG", "RNX_NODE"},
	"Roles":                             {"admin", "maintainer", "developer", "reader", "viewer"},
	"Recipes of runtimes":               {"schema_version", "name", "version", "description", "base.language", "base.version", "pip", "npm", "pip_options", "environment", "libraries", "requirements", "platforms", "hooks"},
}

// TestMigratingTables needs no daemon: commands and flags that the document names.
func TestMigratingTables(t *testing.T) {
	t.Parallel()
	rows, code := readMigrating(t)
	help := helps{}
	for _, line := range code {
		program, _, _ := strings.Cut(line, " ")
		if program != "rnx" && program != "joblet" {
			continue
		}
		text, flags := help.of(t, line)
		for _, flag := range flags {
			if !hasFlag(text, flag) {
				t.Errorf("%q: no flag %s", line, flag)
			}
		}
	}

	under := func(heading, cell string) (docRow, bool) {
		for _, r := range rows {
			if r.heading == heading && slices.ContainsFunc(spans(r.public), func(s string) bool {
				return s == cell || strings.HasPrefix(s, cell+"=") || strings.HasPrefix(s, cell+" ") && cell[0] == '-'
			}) {
				return r, true
			}
		}
		return docRow{}, false
	}
	for _, name := range publicCommands {
		if r, ok := under("Commands", name); !ok || r.here == "" || r.here == none && r.note == "" {
			t.Errorf("no row, or nothing to do instead, for the command %s", name)
		}
	}
	all := ""
	for _, text := range help {
		all += text
	}
	for heading, flags := range publicFlags {
		command := "rnx"
		if s := spans(heading); s != nil {
			command = s[0]
		}
		for _, flag := range flags {
			r, ok := under(heading, flag)
			switch {
			case !ok:
				t.Errorf("%s: no row for %s", heading, flag)
			case r.here != none:
				if text, _ := help.of(t, command); !slices.Contains(spans(r.here), flag) || !hasFlag(text, flag) {
					t.Errorf("%s: there is no %s (%s)", command, flag, r.here)
				}
			default:
				out, err := exec.Command(binDir+"/rnx", append(strings.Fields(command)[1:], flag)...).CombinedOutput()
				if err == nil || !bytes.Contains(out, []byte("unknown ")) {
					t.Errorf("%s %s: %v %s", command, flag, err, out)
				}
			}
		}
	}
	for heading, fields := range publicFields {
		for _, field := range fields {
			if _, ok := under(heading, field); !ok {
				t.Errorf("%s: no row for %s", heading, field)
			}
		}
	}
	for _, r := range rows {
		if r.public == "" && r.here == "" || !strings.HasPrefix(r.here, none) && strings.Contains(r.here, none) {
			t.Errorf("%s: %+v", r.heading, r)
		}
		for _, s := range append(spans(r.here), spans(r.note)...) {
			if flag, _, _ := strings.Cut(s, "="); strings.HasPrefix(s, "--") && !hasFlag(all, flag) {
				t.Errorf("%s: no command has %s", r.public, s)
			}
		}
	}

	// Variables of the environment.
	config := filepath.Join(t.TempDir(), "joblet-config.yml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		for _, name := range append(spans(r.public), spans(r.here)...) {
			switch {
			case strings.HasPrefix(name, "RNX_") && r.heading == "rnx-config.yml":
				if known := strings.Contains(help["rnx"], name); known != slices.Contains(spans(r.here), name) {
					t.Errorf("%s: the help of rnx names it: %v", name, known)
				}
			case strings.HasPrefix(name, "JOBLET_") && r.heading == "The daemon's configuration":
				cmd := exec.Command(binDir+"/joblet", "config", "check", config)
				cmd.Env = append(os.Environ(), name+"=")
				out, err := cmd.CombinedOutput()
				if unknown := bytes.Contains(out, []byte("unknown environment variable "+name)); err != nil || unknown == slices.Contains(spans(r.here), name) {
					t.Errorf("%s: %v %s", name, err, out)
				}
			}
		}
	}

	// Keys of a client's configuration.
	top := []string{"version", "nodes", "default_node", "global", "preferences"}
	for _, r := range rows {
		for _, key := range spans(r.here) {
			if r.heading != "rnx-config.yml" || strings.HasPrefix(key, "RNX_") {
				continue
			}
			text := fmt.Sprintf("nodes: {a: {address: x, %s: null}}", key)
			switch {
			case key == "nodes" || key == "address":
				continue
			case slices.Contains(top, key):
				text = key + ": null\nnodes: {a: {address: x}}"
			}
			if _, err := client.ParseConfig([]byte(text)); err != nil {
				t.Errorf("%s: %v", key, err)
			}
		}
	}
}

// paths adds the names of all fields in a JSON value, those below others behind a dot.
func paths(v any, prefix string, all map[string]bool) {
	if fields, ok := v.(map[string]any); ok {
		for name, value := range fields {
			all[prefix+name] = true
			paths(value, prefix+name+".", all)
		}
	}
}

// TestMigratingOutput: columns and fields that the document names.
func TestMigratingOutput(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	seen := map[string]map[string]bool{}
	read := func(heading, out string) {
		t.Helper()
		if seen[heading] == nil {
			seen[heading] = map[string]bool{}
		}
		for line := range strings.Lines(out) {
			var v any
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			paths(v, "", seen[heading])
		}
	}
	rnx := func(args ...string) string {
		t.Helper()
		return mustOK(t, d.rnx(t.Context(), args...), strings.Join(args, " "))
	}
	first := rnx("job", "run", "-d", "--json", "--name=one", "--upload="+file, "-e", "A=b", "-s", "S=t", "--max-cpu=50", "--max-memory=64", "--max-iobps=1M", "--cpu-cores=0", "true")
	read("Fields of `rnx job run -d --json`", first)
	read("Fields of `rnx job run -d --json`", rnx("job", "run", "-d", "--json", "--schedule=1hour", "--depends-on=one", "true"))
	rnx("job", "wait", "one")
	read("Fields of `rnx job list --json`", rnx("job", "list", "--json"))
	read("Fields of `rnx job status --json`", rnx("job", "status", "--json", "one"))
	read("Fields of `rnx job status --json`", rnx("job", "status", "--json", strings.Fields(rnx("job", "list", "-q", "--status=scheduled"))[0]))
	header, _, _ := strings.Cut(rnx("job", "list"), "\n")
	read("JSON of other commands", rnx("job", "log", "--json", "one"))
	read("JSON of other commands", rnx("job", "delete-all", "--json"))
	read("JSON of other commands", rnx("nodes", "--json"))
	read("JSON of other commands", rnx("version", "--json"))
	read("JSON of other commands", rnx("monitor", "status", "--json"))

	rows, _ := readMigrating(t)
	for _, r := range rows {
		fields, ok := seen[r.heading]
		for _, name := range spans(r.here) {
			switch {
			case r.heading == "Columns of `rnx job list`":
				if !slices.Contains(strings.Fields(header), name) {
					t.Errorf("%s: no column %s in %s", r.public, name, header)
				}
			case ok && r.heading != "JSON of other commands" && name != "runtime" && !fields[name]: // no runtime is installed here
				t.Errorf("%s: %s: no field %s in %q", r.heading, r.public, name, slices.Sorted(maps.Keys(fields)))
			}
		}
		if strings.HasPrefix(r.public, "`rnx monitor`") || strings.HasPrefix(r.public, "`rnx nodes`") {
			for _, name := range spans(r.note) {
				if !fields[name] && name != "node_id" && name != "ok" { // the machine's own daemon has no id in a configuration
					t.Errorf("%s: no field %s in %q", r.public, name, slices.Sorted(maps.Keys(fields)))
				}
			}
		}
		if strings.HasPrefix(r.public, "`rnx job delete-all`") || strings.HasPrefix(r.public, "`rnx --version`") {
			for _, name := range spans(r.note) {
				if !fields[name] {
					t.Errorf("%s: no field %s", r.public, name)
				}
			}
		}
	}
}
