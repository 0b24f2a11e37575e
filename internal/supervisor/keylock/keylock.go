// Package keylock is a mutex for each key of an open set.
package keylock

import (
	"context"
	"sync"
)

// Lock has a mutex for each key. The zero value is ready for use.
type Lock struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// Lock locks the mutex of a key and returns a function that unlocks it. It waits as
// long as ctx lasts.
func (k *Lock) Lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		if k.held == nil {
			k.held = map[string]chan struct{}{}
		}
		other, taken := k.held[key]
		if !taken {
			mine := make(chan struct{})
			k.held[key] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				defer k.mu.Unlock()
				delete(k.held, key)
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
