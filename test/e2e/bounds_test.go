package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

// TestManyArguments: a job has as many arguments and variables as the kernel takes, and
// beyond that an error names the bound.
func TestManyArguments(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c, err := client.Dial(t.Context(), d.host())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const many = 150_000
	env := make(map[string]string)
	for i := range 60_000 {
		env[fmt.Sprintf("V%d", i)] = "x"
	}
	for _, tt := range []struct {
		name string
		spec joblet.Spec
		want string
	}{
		{"arguments", joblet.Spec{Command: "sh", Args: append([]string{"-c", "echo $#", "sh"}, make([]string, many)...)}, fmt.Sprintln(many)},
		{"variables", joblet.Spec{Command: "sh", Args: []string{"-c", "env | grep -c '^V[0-9]*=x$'"}, Env: env}, "60000\n"},
		{"a long argument", joblet.Spec{Command: "sh", Args: []string{"-c", "echo ${#1}", "sh", strings.Repeat("x", joblet.MaxStringLen)}}, fmt.Sprintln(joblet.MaxStringLen)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := ""
			for event, err := range c.RunAttached(t.Context(), tt.spec) {
				if err != nil {
					t.Fatal(err)
				}
				if e, ok := event.(client.Output); ok {
					out += string(e.Data)
				}
			}
			if out != tt.want {
				t.Errorf("%.200q, want %.200q", out, tt.want)
			}
		})
	}
	// Through rnx, whose own arguments have the same bound.
	args := []string{"sh", "-c", "echo $#", "sh"}
	for i := range 100_000 {
		args = append(args, fmt.Sprint(i%10))
	}
	if out := d.must(t, args...); out != "100000\n" {
		t.Errorf("%q", out)
	}
	file := filepath.Join(t.TempDir(), "env")
	text := strings.Builder{}
	for i := range 200_000 {
		fmt.Fprintf(&text, "V%d=x\n", i)
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	d.says(t, 125, ``, `rnx: .*arguments and environment take \d+ bytes .*: at most \d+ are possible; .*\n`, "job", "run", "--env-file="+file, "true")
}

// TestLongNames: of a long name a message shows the ends, and what is wrong with it.
func TestLongNames(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	deep, long, longer := strings.Repeat("/dir", 900), strings.Repeat("a", 5000), strings.Repeat("b", 100_000)
	for _, tt := range []struct {
		why  string
		args []string
	}{
		{"name too long", []string{"job", "run", "/" + long}},
		{"not found", []string{"job", "run", deep}},
		{"not found", []string{"job", "run", longer}},
		{"must be an absolute path", []string{"job", "run", "--workdir=" + deep[1:], "true"}},
		{"must not contain", []string{"job", "run", "--workdir=" + deep + "/..", "true"}},
		{"no such file", []string{"job", "run", "--upload=" + deep, "true"}},
		{"name too long", []string{"job", "run", "--upload-dir=" + long, "true"}},
		{"no such file", []string{"job", "run", "--stdin=" + deep, "true"}},
		{"no such file", []string{"job", "run", "--env-file=" + deep, "true"}},
		{"detach keys", []string{"job", "run", "--detach-keys=" + longer, "true"}},
		{"is not a valid size", []string{"job", "run", "--max-memory=" + longer, "true"}},
		{"unknown flag", []string{"job", "run", "--" + longer, "true"}},
		{"unknown command", []string{longer}},
		{"unknown state", []string{"job", "list", "--status=" + longer}},
		{"unknown signal", []string{"job", "signal", "x", longer}},
		{"no job", []string{"job", "status", longer}},
		{"no job", []string{"job", "kill", longer, longer + "c"}},
		{"", []string{"--host=" + long, "job", "list"}},
		{"no such file", []string{"runtime", "build", deep}},
		{"only files in /work", []string{"job", "cp", "x:" + deep, "."}},
		{"no such file", []string{"--json", "job", "run", "--upload=" + deep, "true"}},
	} {
		r := d.rnx(patient(t), tt.args...)
		if r.status == 0 || len(r.stderr) > 1000 || !strings.Contains(r.stderr, tt.why) {
			t.Errorf("%.60q: status %d, %d bytes: %.300q", tt.args, r.status, len(r.stderr), r.stderr)
		}
	}
	// Of a job that waited first the record has the reason.
	first := d.detach(t, "true")
	id := d.detach(t, "--depends-on="+first, deep)
	if job := d.ends(t, id, joblet.Failed); len(job.Reason) > 1000 || !strings.Contains(job.Reason, "not found") {
		t.Errorf("its reason has %d bytes: %.300q", len(job.Reason), job.Reason)
	}
}

// TestManyItems: too many of anything is an error that names the bound.
func TestManyItems(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	each := func(n int, format string) (flags []string) {
		for i := range n {
			flags = append(flags, fmt.Sprintf(format, i))
		}
		return flags
	}
	for name, flags := range map[string][]string{
		"labels":       each(20_000, "--label=l%d=x"),
		"dependencies": each(20_000, "--depends-on=j%d"),
		"capabilities": each(20_000, "--cap-add=c%d"),
		"rlimits":      each(20_000, "--rlimit=r%d=1"),
		"excludes":     append(each(20_000, "--exclude=x%d"), "--upload-dir="+t.TempDir()),
		"downloads":    each(20_000, "--download=x%d"),
		"uploads":      each(20_000, "--upload=/proc/self/../%d"),
		"files":        each(20_000, "--env-file=/nowhere/%d"),
		"statuses":     {"--retry=1", "--retry-on=" + strings.Repeat("1,", 50_000) + "256"},
	} {
		args := append(append([]string{"job", "run"}, flags...), "true")
		if r := d.rnx(patient(t), args...); r.status != 125 || len(r.stderr) > 1000 || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%s: %.600v", name, r)
		}
	}
}

// TestDeepFiles: files lie as deep as names can be long, in an upload, a result and a
// copy of a running job's.
func TestDeepFiles(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const depth = 2040
	up, left, copied := t.TempDir(), t.TempDir(), t.TempDir()
	at, err := os.OpenRoot(up)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		if err := at.Mkdir("d", 0o755); err != nil {
			t.Fatal(err)
		}
		sub, err := at.OpenRoot("d")
		if err != nil {
			t.Fatal(err)
		}
		_ = at.Close()
		at = sub
	}
	if err := at.WriteFile("f", []byte("deep\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_ = at.Close()
	name := strings.Repeat("d/", depth) + "f"
	check := func(dir string) {
		t.Helper()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if got, err := root.ReadFile(name); string(got) != "deep\n" {
			t.Errorf("%q, %.100v", got, err)
		}
	}
	r := d.job(t, "--upload-dir="+up, "--download=d", "--download-to="+left, "sh", "-c", "find . -name f -exec cat {} +")
	if r.status != 0 || r.stdout != "deep\n" {
		t.Errorf("%v", r)
	}
	check(left)
	id := d.detach(t, "--upload-dir="+up, "sleep", "600")
	if r := d.rnx(patient(t), "job", "cp", id+":d", copied); r.status != 0 {
		t.Errorf("%v", r)
	}
	check(copied)
}
