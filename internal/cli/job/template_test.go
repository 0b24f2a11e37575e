package job

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cli/app"
)

func TestFormatTemplate(t *testing.T) {
	t.Parallel()
	j := joblet.Job{
		ID: "11111111-a", State: joblet.Failed, Exit: &joblet.Exit{Code: 7},
		Spec: joblet.Spec{Command: "x", Args: []string{"a", "<b>"}, Labels: map[string]string{"team": "a"}, RetryOn: []int{1, 2}, SecretEnv: map[string]string{"T": "hunter2"}},
	}
	for text, want := range map[string]string{
		`{{.UUID}}`:                                "11111111-a",
		`{{short .UUID}} {{.ExitCode}}`:            "11111111 7",
		`{{lower .Status}}/{{upper .Command}}`:     "failed/X",
		`{{join .Args ","}} {{join .RetryOn 1}}`:   "ERR",
		`{{join .Args ","}} {{join .RetryOn " "}}`: "a,<b> 1 2",
		`{{json .Args}}{{json .SecretEnv}}`:        `["a","<b>"]{"T":"***"}`,
		`{{.Labels.team}} {{index .Args 1}}`:       "a <b>",
		`{{range .Past}}{{.Status}}{{end}}`:        "",
		`{{(index .Past 0).Nope}}`:                 "ERR",
		`{{join .Command ","}}`:                    "ERR",
		`{{.Nope}}`:                                "BAD",
		`{{`:                                       "BAD",
		`{{frob .UUID}}`:                           "BAD",
	} {
		var out strings.Builder
		got := ""
		format, err := parseFormat(text)
		if err != nil {
			got = "BAD"
		} else if err = writeFormat(&app.App{Out: &out}, format, j); err != nil {
			got = "ERR"
		} else {
			got = strings.TrimSuffix(out.String(), "\n")
		}
		if got != want {
			t.Errorf("%s: got %q, %v; want %q", text, got, err, want)
		}
		if err != nil && joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("%s: kind %v", text, joblet.KindOf(err))
		}
	}
}

func TestPruneFilter(t *testing.T) {
	t.Parallel()
	now := time.Now()
	f, err := pruneOptions{olderThan: "7d", status: []string{"failed", "timeout"}, labels: []string{"a=b", "c"}}.filter(now)
	if err != nil || !f.EndedBefore.Equal(now.Add(-7*24*time.Hour)) || fmt.Sprint(f.States, f.Labels) != "[FAILED TIMEOUT] [a=b c]" {
		t.Errorf("got %+v, %v", f, err)
	}
	if f, err := (pruneOptions{all: true}).filter(now); err != nil || !f.EndedBefore.IsZero() {
		t.Errorf("got %+v, %v", f, err)
	}
	if got := pruneText(1, 2048, true) + "; " + pruneText(3, 0, false); got != "1 job would be deleted, 2.0 KiB freed; 3 jobs deleted, 0 B freed" {
		t.Error(got)
	}
}
