package native

import (
	"sync"

	"github.com/joblet/joblet"
)

// Subordinate ids. Each job has a range of its own, from the part of the 32-bit
// space that nobody else uses: systemd's container range ends below it, and
// ids from 2^31 on trouble some programs (systemd.io/UIDS-GIDS).
const (
	IDCount   = 65536
	firstBase = 0x70000000
	lastBase  = 0x7FFD0000
	numRanges = (lastBase-firstBase)/IDCount + 1 // 4094
)

// idRanges hands out ranges, each to one job at a time. A host has one daemon as a
// rule; daemons beside each other, with run directories of their own, begin at
// random places.
type idRanges struct {
	mu   sync.Mutex
	used map[uint32]bool // by base
	next int             // round robin: a range rests as long as possible before its next job
}

func (r *idRanges) take() (uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for range numRanges {
		base := uint32(firstBase + r.next*IDCount)
		r.next = (r.next + 1) % numRanges
		if !r.used[base] {
			r.used[base] = true
			return base, nil
		}
	}
	return 0, joblet.Errorf(joblet.ResourceExhausted, "all %d ranges of subordinate ids are in use: as many jobs run", numRanges)
}

// claim marks the range of a job that was found running.
func (r *idRanges) claim(base uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used[base] = true
}

func (r *idRanges) giveBack(base uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.used, base)
}
