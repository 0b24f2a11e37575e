package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/joblet/joblet/internal/help"
)

var record = flag.Bool("record", false, "write docs/cli and testdata/errors anew")

// TestReference: docs/cli has the --help of every command, so that a change of its
// wording or layout is reviewed as a change of a document.
func TestReference(t *testing.T) {
	const dir = "../../docs/cli"
	if *record {
		if err := write(dir, ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, root := range programs() {
		want, err := os.ReadFile(filepath.Join(dir, root.Name()+".md"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := reference(root)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("docs/cli/%s.md differs from --help (go test ./internal/reference -record):\n%s", root.Name(), diff)
		}
	}
}

// TestHelpFits: the help of every command fits a terminal of 80 columns, and each of its
// commands and flags says what it does.
func TestHelpFits(t *testing.T) {
	for _, root := range programs() {
		err := walk(root, func(cmd *cobra.Command) error {
			text, err := helpOf(cmd)
			for line := range strings.Lines(text) {
				line = strings.TrimSuffix(line, "\n")
				// A default that is one word cannot be broken.
				if n := utf8.RuneCountInString(line); n > help.Width && strings.Contains(strings.TrimSpace(line), " ") {
					t.Errorf("%s --help: %d columns: %q", cmd.CommandPath(), n, line)
				}
			}
			if cmd.Short == "" {
				t.Errorf("%s has no short description", cmd.CommandPath())
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// TestManualPages: each command has a page.
func TestManualPages(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("SOURCE_DATE_EPOCH", "1000000000")
	if err := write("", dir); err != nil {
		t.Fatal(err)
	}
	for _, page := range []string{"rnx.1", "rnx-job-run.1", "joblet.1", "joblet-serve.1"} {
		text, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil {
			t.Error(err)
		}
		if !strings.HasPrefix(string(text), ".") || !strings.Contains(string(text), "2001") {
			t.Errorf("%s is not a manual page of 2001:\n%.300s", page, text)
		}
	}
}
