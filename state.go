package joblet

import (
	"fmt"
	"slices"
	"strings"
)

// State is where a job is in its life. The zero value is not a valid state.
type State uint8

// The states of a job. PENDING, SCHEDULED and INITIALIZING come before the
// command runs; from COMPLETED on a state is final.
const (
	Pending      State = iota + 1 // accepted, waits in the queue
	Scheduled                     // accepted, waits for its time
	Initializing                  // the box is being built
	Running                       // the command runs
	Paused                        // it is frozen, until it is resumed
	Stopping                      // asked to end, still running
	Completed                     // ended by itself with status 0
	Failed                        // ended with another status, by a signal, or could not be run (Reason)
	Stopped                       // ended because a user asked for it
	Canceled                      // never ran because a user asked for it
	TimedOut                      // timed out
	Lost                          // its shim is gone and left no exit record
)

var stateNames = [...]string{
	"", "PENDING", "SCHEDULED", "INITIALIZING", "RUNNING", "PAUSED", "STOPPING",
	"COMPLETED", "FAILED", "STOPPED", "CANCELED", "TIMEOUT", "LOST",
}

// States returns all states in the order of a job's life.
func States() []State {
	all := make([]State, 0, len(stateNames)-1)
	for s := Pending; s <= Lost; s++ {
		all = append(all, s)
	}
	return all
}

// String returns the state as the API and the tables spell it.
func (s State) String() string {
	if s >= Pending && s <= Lost {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// MarshalText spells the state as String does.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is ParseState.
func (s *State) UnmarshalText(text []byte) error {
	v, err := ParseState(string(text))
	if err == nil {
		*s = v
	}
	return err
}

// ParseState reads a state's name, in any case.
func ParseState(name string) (State, error) {
	i := slices.Index(stateNames[:], strings.ToUpper(name))
	if i <= 0 {
		return 0, Errorf(InvalidArgument, "unknown state %q: must be one of %s", name, strings.Join(stateNames[1:], ", "))
	}
	return State(i), nil
}

// Final reports whether a job in this state has ended.
func (s State) Final() bool { return s >= Completed && s <= Lost }

// Alive reports whether processes of a job in this state may exist.
func (s State) Alive() bool { return s >= Initializing && s <= Stopping }

// transitions lists, for each state, the states that may follow it (docs/JOBS.md tells
// what each means). A run that is retried leads back to SCHEDULED; a start that a crash
// of the daemon interrupted leads back to PENDING.
var transitions = map[State][]State{
	0:            {Pending, Scheduled, Initializing},
	Pending:      {Initializing, Canceled, Failed, Stopped},
	Scheduled:    {Pending, Canceled, Failed, Stopped},
	Initializing: {Pending, Running, Failed, Lost, Canceled, Stopped},
	Running:      {Scheduled, Paused, Stopping, Completed, Failed, TimedOut, Stopped, Lost},
	Paused:       {Scheduled, Running, Stopping, Completed, Failed, TimedOut, Stopped, Lost},
	Stopping:     {Stopped, TimedOut, Lost},
}

// MayBecome reports whether next may follow s.
func (s State) MayBecome(next State) bool { return slices.Contains(transitions[s], next) }
