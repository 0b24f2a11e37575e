package cli

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/joblet/joblet/internal/cli/app"
)

func TestShortcuts(t *testing.T) {
	t.Parallel()
	root := newRootCommand(&app.App{})
	for line, want := range map[string]string{
		"run -d x":               "job run -d x",
		"--json run x":           "--json job run x",
		"--host=h --node run ps": "--host=h --node run job list",
		"logs -f run":            "job log -f run",
		"help run":               "help job run",
		"__complete run --na":    "__complete job run --na",
		"__complete ru":          "__complete ru",
		"__complete run":         "__complete run",
		"job run run":            "job run run",
		"runtime list":           "runtime list",
		"--frob run":             "--frob job run",
		"-h":                     "-h",
		"--host":                 "--host",
		"":                       "",
	} {
		if got := expandShortcut(root, strings.Fields(line)); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: got %q, want %s", line, got, want)
		}
	}
	for short, verb := range shortcuts {
		if c, _, err := root.Find([]string{"job", verb}); err != nil || c.Name() != verb {
			t.Errorf("%s: there is no rnx job %s", short, verb)
		}
	}
	for args, want := range map[string]string{
		"run":       `rnx: no command given; see "rnx job run --help"`,
		"kill":      `rnx: no job given; "rnx job list" shows the jobs; in a script, "xargs -r rnx job kill" accepts an empty list`,
		"job logs":  `rnx: unknown command "rnx job logs"; did you mean "rnx job log"?`,
		"job ps":    `rnx: unknown command "rnx job ps"; did you mean "rnx job list"?`,
		"status":    `rnx: unknown command "rnx status"; did you mean "rnx job status"?`,
		"inspect x": `rnx: unknown command "rnx inspect"; did you mean "rnx job status"?`,
		"rm x":      `rnx: unknown command "rnx rm"; did you mean "rnx job delete"?`,
	} {
		var out, errOut bytes.Buffer
		Run(t.Context(), append([]string{"--host=unix:///nonexistent/joblet.sock"}, strings.Fields(args)...), nil, &out, &errOut)
		if out.Len() > 0 || strings.TrimSpace(errOut.String()) != want {
			t.Errorf("rnx %s: got %q, %q", args, out.String(), errOut.String())
		}
	}
	var out bytes.Buffer
	if status := Run(t.Context(), []string{"__complete", "p"}, nil, &out, &out); status != 0 || !strings.Contains(out.String(), "ps\talias of rnx job list\n") {
		t.Errorf("completion: %d, %q", status, out.String())
	}
}
