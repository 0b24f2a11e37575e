package joblet

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"
)

// Job is a job's record: what was asked and what became of it.
type Job struct {
	ID      string // UUID in its canonical form
	Spec    Spec
	Owner   string // the submitting user, "uid:0", or the name of a certificate
	State   State
	Created time.Time // accepted
	Started time.Time // the command ran from then on, in the latest attempt; zero before
	Ended   time.Time // zero while it has not ended

	// Scheduled is when a SCHEDULED job runs, next if it repeats; later, when it
	// was to run. Zero for a job that was to run at once.
	Scheduled time.Time
	Parent    string // id of the repeating job of which this is one run

	Attempt int       // number of the latest run, from 1; 0 before the first
	Past    []Attempt // the runs before that, oldest first

	// Exit says how PID 1 ended; nil while it runs and when it never ran.
	Exit *Exit
	// Reason says in words why the state is what it is when the exit status does
	// not: why a job FAILED, was CANCELED or is LOST, what it waits for.
	Reason string
	// Failure is the kind of error for which a FAILED job without an Exit could
	// not be run.
	Failure Kind

	// PID is PID 1 as the host numbers it; 0 before the start. After the end it
	// is history: the number may belong to another process.
	PID int
	// IDBase is the first of the job's 65,536 subordinate uids and gids on the
	// host.
	IDBase uint32
	// LogBytes is how many bytes of output the job has written, as far as the
	// record knows: exact once it has ended.
	LogBytes int64
	// WorkBytes is how many bytes the files are that an ended job left in /work.
	WorkBytes int64
	// Usage is what the latest attempt took: in all once that has ended, so far
	// while it runs.
	Usage Usage
	// OutOfMemory: the latest attempt was ended because its memory was used up.
	OutOfMemory bool
	// Denied has the system calls that the latest attempt was refused, the most
	// frequent first, once it has ended and if Spec.Security.LogDenied.
	Denied []DeniedCall
}

// Attempt is a run of a job that was followed by another.
type Attempt struct {
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
	State   State     `json:"state"` // FAILED or TIMEOUT
	Exit    *Exit     `json:"exit,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Usage   Usage     `json:"usage,omitzero"`
}

// Status returns the exit status that a user of the job sees, as rnx gives it:
// PID 1's own, or one of the Status constants; ended is false as long as there
// is none.
func (j Job) Status() (status int, ended bool) {
	switch {
	case !j.State.Final():
		return 0, false
	case j.State == TimedOut:
		return StatusTimeout, true
	case j.State == Lost:
		return StatusFailure, true
	case j.OutOfMemory && j.Exit != nil && j.Exit.Status() == 0: // it ended just before it was killed
		return 128 + sigkill, true
	case j.Exit != nil:
		return j.Exit.Status(), true
	case j.Failure == CommandNotFound:
		return StatusNotFound, true
	case j.Failure == NotExecutable:
		return StatusNotExecutable, true
	}
	return StatusFailure, true
}

const sigkill = 9 // on every Linux, also where this program runs on another system

// Exit is how a process ended: with a code, or by a signal.
type Exit struct {
	Code   int `json:"code"`             // exit code, 0 to 255; 0 when a signal ended it
	Signal int `json:"signal,omitempty"` // the signal that ended it, or 0
}

// Status returns what a shell would show in $?: the code, or 128 plus the
// signal's number.
func (e Exit) Status() int {
	if e.Signal != 0 {
		return 128 + e.Signal
	}
	return e.Code
}

// The exit statuses that rnx gives for a job beside the job's own
// (docker-run(1) and timeout(1) use the same).
const (
	StatusTimeout       = 124 // the job timed out
	StatusFailure       = 125 // Joblet failed, not the job
	StatusNotExecutable = 126
	StatusNotFound      = 127
)

// NewID returns a random (version 4) UUID.
func NewID() string {
	var b [16]byte
	// Ids need not be secret. (crypto/rand would come into the shim with this.)
	binary.LittleEndian.PutUint64(b[:], rand.Uint64())
	binary.LittleEndian.PutUint64(b[8:], rand.Uint64())
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// ShortID returns the first eight characters of an id, which tables show and
// which is the job's host name.
func ShortID(id string) string { return id[:min(8, len(id))] }

// ValidID reports whether id is a UUID in the form that NewID gives.
func ValidID(id string) bool {
	if len(id) != 36 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return false
			}
		} else if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
