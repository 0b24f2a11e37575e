package session

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/joblet/joblet/client"
	"github.com/joblet/joblet/internal/cli/jobview"
)

// Output writes what a job wrote: its stdout to ours and its stderr to ours,
// in the order and the pieces in which it comes.
type Output struct {
	Stdout, Stderr io.Writer
	JSON           bool // events as objects, one a line, on stdout
	Timestamps     bool // before each line, when its first byte was read from the job

	midLine [2]bool // by stream: the last byte was not a newline
	line    []byte
}

// eventJSON is an event as --json shows it.
type eventJSON struct {
	Event  string    `json:"event"` // waiting, started, output, gap, ended
	Stream string    `json:"stream,omitempty"`
	Offset *int64    `json:"offset,omitempty"`
	Length int64     `json:"length,omitempty"` // of a gap
	Time   time.Time `json:"time,omitzero"`
	// Data is the bytes as text; Base64 has them when they are not UTF-8.
	Data   string        `json:"data,omitempty"`
	Base64 []byte        `json:"data_base64,omitempty"`
	Job    *jobview.JSON `json:"job,omitempty"`
	Status *int          `json:"exit_status,omitempty"` // with which rnx exits
}

func (o *Output) event(e client.Event) error {
	if !o.JSON {
		switch e := e.(type) {
		case client.Output:
			return o.write(e)
		case client.Gap:
			_, err := fmt.Fprintf(o.Stderr, "rnx: %d bytes of older output are gone (the log's limit)\n", e.Length)
			return err
		}
		return nil
	}
	var v eventJSON
	switch e := e.(type) {
	case client.Waiting:
		j := jobview.NewJSON(e.Job)
		v = eventJSON{Event: "waiting", Job: &j}
	case client.Started:
		j := jobview.NewJSON(e.Job)
		v = eventJSON{Event: "started", Job: &j}
	case client.Output:
		v = eventJSON{Event: "output", Stream: streamName(e.Stream), Offset: &e.Offset, Time: e.Time}
		if utf8.Valid(e.Data) {
			v.Data = string(e.Data)
		} else {
			v.Base64 = e.Data
		}
	case client.Gap:
		v = eventJSON{Event: "gap", Offset: &e.Offset, Length: e.Length}
	case client.Ended:
		j := jobview.NewJSON(e.Job)
		v = eventJSON{Event: "ended", Job: &j}
		if status, ended := e.Job.Status(); ended {
			v.Status = &status
		}
	}
	enc := json.NewEncoder(o.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func streamName(s client.Stream) string {
	if s == client.Stderr {
		return "stderr"
	}
	return "stdout"
}

func (o *Output) write(e client.Output) error {
	w := o.Stdout
	if e.Stream == client.Stderr {
		w = o.Stderr
	}
	if !o.Timestamps {
		_, err := w.Write(e.Data)
		return err
	}
	o.line = o.line[:0]
	mid := &o.midLine[e.Stream&1]
	for piece := range bytes.Lines(e.Data) {
		if !*mid {
			o.line = e.Time.UTC().AppendFormat(o.line, "2006-01-02T15:04:05.000000Z ")
		}
		o.line = append(o.line, piece...)
		*mid = piece[len(piece)-1] != '\n'
	}
	_, err := w.Write(o.line)
	return err
}
