package native

import (
	"context"
	"testing"

	"github.com/joblet/joblet/internal/sandbox"
)

// TestIDRanges: the ids of a job that was not found yet, or that is another daemon's, go
// to no sandbox, and are free again once the job's sandbox is released.
func TestIDRanges(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := newIDRanges(0)
	const base = firstBase + 5*IDCount
	held := IDLease(base)[r.Name()]
	if err := r.Sweep(ctx, map[string]sandbox.Lease{"old": held, "older": nil}); err != nil {
		t.Fatal(err)
	}
	name := func(n int) string { return string(rune('A' + n)) }
	for n := range numRanges - 1 {
		lease, err := r.Claim(ctx, name(n), nil)
		if got := baseOf(lease); err != nil || got == base {
			t.Fatalf("got %#x, %v", got, err)
		}
		if again, err := r.Claim(ctx, name(n), nil); err != nil || string(again) != string(lease) {
			t.Fatalf("claimed again: %s, %v, not %s", again, err, lease)
		}
	}
	if _, err := r.Claim(ctx, "new", nil); err == nil {
		t.Error("got a range that is held")
	}
	for _, of := range []string{"another", "new"} { // neither has it
		if err := r.Release(ctx, of, held); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Claim(ctx, "new", nil); err == nil {
		t.Error("got a range that another sandbox held when it was released")
	}
	for range 2 {
		if err := r.Release(ctx, "old", held); err != nil {
			t.Error(err)
		}
	}
	if lease, err := r.Claim(ctx, "new", nil); err != nil || baseOf(lease) != base {
		t.Errorf("got %s, %v", lease, err)
	}
}
