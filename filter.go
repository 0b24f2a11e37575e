package joblet

import (
	"strings"
	"time"
)

// Filter narrows a list of jobs; the zero Filter passes all.
type Filter struct {
	States []State   // any of these
	Name   string    // exactly this name
	Since  time.Time // created at or after
	Owner  string
	Labels []LabelMatch // all of these
	Parent string       // runs of this repeating job
	// EndedBefore passes only jobs that ended before it.
	EndedBefore time.Time
	// Limit is the largest number of jobs returned, newest first; 0 means no limit.
	Limit int
	// Before pages: only jobs older than the job with this ID.
	Before string
}

// LabelMatch is a label that a job must have.
type LabelMatch struct {
	Name, Value string
	Any         bool // whatever its value
}

// ParseLabelMatch reads "name=value" or "name".
func ParseLabelMatch(s string) (LabelMatch, error) {
	name, value, ok := strings.Cut(s, "=")
	return LabelMatch{Name: name, Value: value, Any: !ok}, ValidLabels(map[string]string{name: value})
}

// String returns what ParseLabelMatch reads.
func (m LabelMatch) String() string {
	if m.Any {
		return m.Name
	}
	return m.Name + "=" + m.Value
}

// StopOptions says how to end a job.
type StopOptions struct {
	Signal int           // first signal, to PID 1; 0: SIGTERM
	Grace  time.Duration // from the signal to the kill of the whole job; negative: DefaultGrace; 0: kill at once
}

// DefaultGrace is the time between the stop signal and the kill.
const DefaultGrace = 10 * time.Second

// LogOptions says which part of a job's output is wanted.
type LogOptions struct {
	Offset int64     // first byte wanted, counted over both streams
	Tail   int64     // when positive: only the last Tail lines, instead of Offset
	Since  time.Time // only what was written then or later; with Tail, that bounds it further
	Until  time.Time // only what was written before
	Follow bool      // go on until the job has ended
	Stdout bool      // with neither Stdout nor Stderr set, both
	Stderr bool
}
