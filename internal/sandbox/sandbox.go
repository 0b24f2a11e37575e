// Package sandbox is the contract between the jobs and what isolates them: what a
// sandbox contains (Plan), and what it holds on the host (Resource, Lease). It touches
// nothing; package native builds sandboxes of Linux namespaces.
package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"os"
)

// Resource is something of the host that sandboxes hold: a range of ids, a cgroup, an
// address of a network, a volume, a device. A sandbox is known to it by its id. All
// methods may be called from any goroutine.
//
// The life of a lease: Claim, then Attach once the sandbox is built and before its
// command runs, then Release. After a crash of the daemon, Sweep takes the place of the
// calls that never came.
type Resource interface {
	// Name is the key of the resource's leases in a job's record. It never changes.
	Name() string

	// Claim takes what a sandbox needs and returns a lease on it, or none if the sandbox
	// needs nothing of the resource. What it takes is on record before Claim returns: in
	// the resource itself, such that Sweep finds it after a crash, whether or not the
	// lease reached a job's record. A second claim of the same sandbox returns the same
	// lease. The plan is nil for a sandbox that is built before its job is known.
	Claim(ctx context.Context, id string, plan *Plan) (Lease, error)

	// Attach gives the sandbox what was claimed. It may add to the plan: mounts, devices,
	// variables of the environment.
	Attach(ctx context.Context, a Attachment) error

	// Release gives back what the sandbox holds. It may be called at any time and any
	// number of times, also without a lease for a sandbox of which there is no record;
	// what is gone already is no error.
	Release(ctx context.Context, id string, lease Lease) error

	// Sweep takes over the leases of the sandboxes in live, of which only those with a
	// lease on this resource are there, and releases what any other sandbox of a former
	// daemon holds. It is called before this daemon claims anything.
	Sweep(ctx context.Context, live map[string]Lease) error
}

// Lease says what a sandbox holds of a resource, in JSON. Only the resource reads it;
// a later version of it reads the leases of earlier ones.
type Lease = json.RawMessage

// Leases are those of one sandbox, by Resource.Name.
type Leases map[string]Lease

// Attachment is a sandbox that is built and waits for its command.
type Attachment struct {
	ID    string // of the sandbox
	Lease Lease
	Plan  *Plan

	// Namespaces returns the namespaces of the sandbox, which are the caller's to close.
	// It costs a round trip to the sandbox, which no other job pays.
	Namespaces func(context.Context) (*Namespaces, error)
}

// Namespaces are those of a sandbox whose command does not run yet.
type Namespaces struct {
	PID   int      // PID 1 of the sandbox as the host numbers it
	PIDFD *os.File // stands for PID 1: setns(2) enters any of its namespaces through it

	User, Mount, Net, IPC, UTS *os.File
}

// Close closes the descriptors.
func (n *Namespaces) Close() error {
	var errs []error
	for _, f := range []*os.File{n.PIDFD, n.User, n.Mount, n.Net, n.IPC, n.UTS} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
