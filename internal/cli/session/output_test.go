package session

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

func TestOutput(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)
	events := []client.Event{
		client.Waiting{Job: joblet.Job{ID: "x", State: joblet.Pending, Reason: "busy"}},
		client.Started{Job: joblet.Job{ID: "x", State: joblet.Running}},
		client.Output{Stream: client.Stdout, Time: at, Data: []byte("one\ntw")},
		client.Output{Stream: client.Stderr, Offset: 6, Time: at.Add(time.Second), Data: []byte("err\n")},
		client.Output{Stream: client.Stdout, Offset: 10, Time: at.Add(2 * time.Second), Data: []byte("o\n\xff\x00")},
		client.Gap{Offset: 14, Length: 3},
		client.Ended{Job: joblet.Job{ID: "x", State: joblet.Failed, Exit: &joblet.Exit{Code: 7}}},
	}
	play := func(o Output) (string, string) {
		var stdout, stderr bytes.Buffer
		o.Stdout, o.Stderr = &stdout, &stderr
		for _, e := range events {
			if err := o.event(e); err != nil {
				t.Fatal(err)
			}
		}
		return stdout.String(), stderr.String()
	}
	const gap = "rnx: 3 bytes of older output are gone (the log's limit)\n"
	if stdout, stderr := play(Output{}); stdout != "one\ntwo\n\xff\x00" || stderr != "err\n"+gap {
		t.Errorf("got %q, %q", stdout, stderr)
	}
	stdout, stderr := play(Output{Timestamps: true})
	if stdout != "2026-01-02T03:04:05.678901Z one\n2026-01-02T03:04:05.678901Z two\n2026-01-02T03:04:07.678901Z \xff\x00" ||
		stderr != "2026-01-02T03:04:06.678901Z err\n"+gap {
		t.Errorf("got %q, %q", stdout, stderr)
	}
	stdout, stderr = play(Output{JSON: true})
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	if len(lines) != len(events) || stderr != "" {
		t.Fatalf("got %q, %q", stdout, stderr)
	}
	for i, want := range []string{
		`"event":"waiting"`, `"event":"started"`, `"stream":"stdout","offset":0,`, `"stream":"stderr"`, `"data_base64":"bwr/AA=="`, `"event":"gap","offset":14,"length":3`, `"exit_status":7`,
	} {
		if !json.Valid([]byte(lines[i])) || !strings.Contains(lines[i], want) {
			t.Errorf("no %s in %s", want, lines[i])
		}
	}
}
