package native

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/sandbox"
)

// Subordinate ids. Each job has a range of its own, from the part of the 32-bit
// space that nothing else uses: systemd's container range ends below it, and
// ids from 2^31 on trouble some programs (systemd.io/UIDS-GIDS).
const (
	IDCount   = 65536
	firstBase = 0x70000000
	LastIDs   = 0x7FFD0000                      // first of the last range
	numRanges = (LastIDs-firstBase)/IDCount + 1 // 4094
)

// idRanges is the resource that hands out ranges of subordinate ids, each to one
// sandbox at a time. A host has one daemon as a rule; daemons beside each other, with run
// directories of their own, begin at random places.
//
// Its record of what is taken is in memory: a range is of use to the processes of a
// sandbox alone, so after a crash those that the live sandboxes have are all there are.
type idRanges struct {
	mu   sync.Mutex
	used map[uint32]string // base → sandbox
	base map[string]uint32 // sandbox → base
	next int               // round robin: a range rests as long as possible before its next job
}

const idsName = "ids"

// idLease is the lease on a range.
type idLease struct {
	Base  uint32 `json:"base"`
	Count uint32 `json:"count"`
}

// IDLease returns the leases of a sandbox of which only the first of its ids is known, as
// records of earlier releases have it; 0: not even that.
func IDLease(base uint32) sandbox.Leases {
	leases := sandbox.Leases{}
	if base != 0 {
		leases[idsName] = idLease{base, IDCount}.encode()
	}
	return leases
}

// IDBase returns the first of the ids in a sandbox's leases; 0: they have none.
func IDBase(leases sandbox.Leases) uint32 { return baseOf(leases[idsName]) }

func (l idLease) encode() sandbox.Lease {
	return fmt.Appendf(nil, `{"base":%d,"count":%d}`, l.Base, l.Count)
}

func newIDRanges(next int) *idRanges {
	return &idRanges{used: map[uint32]string{}, base: map[string]uint32{}, next: next}
}

// baseOf returns the first id of a lease; 0: it says none.
func baseOf(lease sandbox.Lease) uint32 {
	if lease == nil {
		return 0
	}
	var l idLease
	if err := json.Unmarshal(lease, &l); err != nil {
		return 0
	}
	return l.Base
}

func (r *idRanges) Name() string { return idsName }

func (r *idRanges) Claim(_ context.Context, id string, _ *sandbox.Plan) (sandbox.Lease, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if base := r.base[id]; base != 0 {
		return idLease{base, IDCount}.encode(), nil
	}
	for range numRanges {
		base := uint32(firstBase + r.next*IDCount)
		r.next = (r.next + 1) % numRanges
		if _, taken := r.used[base]; !taken {
			r.set(id, base)
			return idLease{base, IDCount}.encode(), nil
		}
	}
	return nil, joblet.Errorf(joblet.ResourceExhausted, "all %d ranges of subordinate ids are in use: as many jobs run", numRanges)
}

// set notes that a sandbox has the range at base. r.mu is held.
func (r *idRanges) set(id string, base uint32) { r.used[base], r.base[id] = id, base }

// Attach has nothing to do: the shim maps the ids when it builds the sandbox.
func (r *idRanges) Attach(context.Context, sandbox.Attachment) error { return nil }

// Release goes by the sandbox's id: Sweep and hold have noted the ranges of those that
// this daemon did not build.
func (r *idRanges) Release(_ context.Context, id string, _ sandbox.Lease) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	base := r.base[id]
	delete(r.base, id)
	if r.used[base] == id {
		delete(r.used, base)
	}
	return nil
}

func (r *idRanges) Sweep(_ context.Context, live map[string]sandbox.Lease) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.used)
	clear(r.base)
	for id, lease := range live {
		if base := baseOf(lease); base != 0 {
			r.set(id, base)
		}
	}
	return nil
}

// hold marks the range of a sandbox that was found running.
func (r *idRanges) hold(id string, base uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set(id, base)
}
