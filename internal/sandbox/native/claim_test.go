package native

import "testing"

// TestClaim: the ids of a job that was not found yet, or that is another
// daemon's, go to no box, and are free again once the job's box is released.
func TestClaim(t *testing.T) {
	t.Parallel()
	e := &Engine{ids: idRanges{used: map[uint32]bool{}}}
	const base = firstBase + 5*IDCount
	e.Claim(base)
	e.Claim(0) // of a job that has none
	for range numRanges - 1 {
		if got, err := e.ids.take(); err != nil || got == base {
			t.Fatalf("got %#x, %v", got, err)
		}
	}
	if _, err := e.ids.take(); err == nil {
		t.Error("got a range that is claimed")
	}
	e.ids.giveBack(base)
	if got, err := e.ids.take(); err != nil || got != base {
		t.Errorf("got %#x, %v", got, err)
	}
}
