package joblet_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSymptoms: the messages of Joblet that the troubleshooting table of docs/HOWTO.md
// quotes are those of the programs.
func TestSymptoms(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("docs/HOWTO.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "| symptom |")
	if !found {
		t.Fatal("docs/HOWTO.md has no table of symptoms")
	}
	var messages []string
	for _, row := range regexp.MustCompile("(?m)^\\| ([^|]*`[^|`]*`[^|]*) \\|").FindAllStringSubmatch(table, -1) {
		message := strings.Split(row[1], "`")[1]
		if after := strings.Split(row[1], "`")[2]; !strings.HasPrefix(after, " in the job") && !strings.HasPrefix(after, " for a file") {
			messages = append(messages, message)
		}
	}
	if len(messages) < 10 {
		t.Fatalf("docs/HOWTO.md quotes only %q", messages)
	}
	missing := map[string]bool{}
	for _, m := range messages {
		missing[m] = true
	}
	for _, dir := range []string{"client", "internal"} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			for m := range missing {
				if bytes.Contains(source, []byte(m)) {
					delete(missing, m)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for m := range missing {
		t.Errorf("docs/HOWTO.md quotes %q, which no program says", m)
	}
}
