package job

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/help"
)

// TestRunHelp: each flag of "rnx job run" has its section, and the lines fit.
func TestRunHelp(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	a := &app.App{Out: &out, ErrOut: &out}
	if status := a.Execute(t.Context(), newRootCommand(a), []string{"job", "run", "--help"}); status != 0 {
		t.Fatalf("status %d: %s", status, out.String())
	}
	_, flags, ok := strings.Cut(out.String(), "\nIdentity:\n")
	_, other, ok2 := strings.Cut(out.String(), "\nOther:\n")
	other, _, _ = strings.Cut(other, "\n\n")
	if !ok || !ok2 || strings.Count(other, "--") != 1 || !strings.Contains(other, "--help") {
		t.Errorf("flags without a section: %s", other)
	}
	for line := range strings.Lines(flags) {
		if utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > help.Width {
			t.Errorf("too long: %s", line)
		}
	}
	for _, s := range runSections {
		for _, name := range s.Flags {
			if !strings.Contains(flags, "--"+name) {
				t.Errorf("%s: there is no --%s", s.Title, name)
			}
		}
	}
}

// TestDockerLimits: flags of docker run mean the limits of Joblet.
func TestDockerLimits(t *testing.T) {
	t.Parallel()
	var opt runOptions
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	opt.addFlags(f)
	if err := f.Parse([]string{"-m", "64m", "--cpus=1.5", "--timeout=1w2d"}); err != nil {
		t.Fatal(err)
	}
	if l := opt.spec.Limits; l.MemoryBytes != 64<<20 || l.CPUPercent != 150 || opt.spec.Timeout != 9*24*time.Hour {
		t.Errorf("got %+v, %v", l, opt.spec.Timeout)
	}
}
