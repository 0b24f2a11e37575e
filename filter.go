package joblet

import "time"

// Filter narrows a list of jobs; the zero Filter passes all.
type Filter struct {
	States []State   // any of these
	Name   string    // exactly this name
	Since  time.Time // created at or after
	Owner  string
	// Limit is the largest number of jobs returned, newest first; 0 means no limit.
	Limit int
	// Before pages: only jobs older than the job with this ID.
	Before string
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
	Offset int64 // first byte wanted, counted over both streams
	Tail   int64 // when positive: only the last Tail lines, instead of Offset
	Follow bool  // go on until the job has ended
	Stdout bool  // with neither Stdout nor Stderr set, both
	Stderr bool
}
