package keylock

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestLock(t *testing.T) {
	t.Parallel()
	var k Lock
	n := 0
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			unlock, err := k.Lock(t.Context(), "x")
			if err != nil {
				t.Error(err)
				return
			}
			n++ // the race detector watches
			unlock()
		})
	}
	wg.Wait()
	if n != 50 || len(k.held) != 0 {
		t.Errorf("%d, %d held", n, len(k.held))
	}
	unlock, err := k.Lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.Lock(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
