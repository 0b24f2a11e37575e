package events

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/joblet/joblet"
)

// read returns the jobs of the events that a subscriber has, with "gap" for a gap.
func read(s *Subscription) (all []string) {
	for {
		e, ok := s.Next()
		switch {
		case !ok:
			return all
		case e.Kind == Gap:
			all = append(all, "gap")
		default:
			all = append(all, e.Job)
		}
	}
}

func ready(s *Subscription) bool {
	select {
	case <-s.Ready():
		return true
	default:
		return false
	}
}

func TestFilters(t *testing.T) {
	f := New(nil)
	tests := []struct {
		filter Filter
		want   []string
	}{
		{Filter{}, []string{"a", "b", "a", ""}},
		{Filter{Job: "a"}, []string{"a", "a"}},
		{Filter{Kinds: Queued}, []string{"b"}},
		{Filter{Job: "a", Kinds: Settled}, []string{"a"}},
		{Filter{Job: "c"}, nil},
	}
	start := f.Last()
	var subs []*Subscription
	for _, test := range tests {
		subs = append(subs, f.Subscribe(start, test.filter))
	}
	f.Publish(Event{Kind: State, Job: "a"})
	f.Publish(Event{Kind: Queued, Job: "b"})
	f.Publish(Event{Kind: Settled, Job: "a"})
	f.Publish(Event{Kind: Freed})
	for i, test := range tests {
		late := f.Subscribe(start, test.filter)
		for _, s := range []*Subscription{subs[i], late} {
			if got := ready(s); got != (len(test.want) > 0) {
				t.Errorf("%+v: ready %v", test.filter, got)
			}
			if got := read(s); !slices.Equal(got, test.want) {
				t.Errorf("%+v: got %q, want %q", test.filter, got, test.want)
			}
			s.Close()
		}
	}
	if len(f.all)+len(f.byJob) != 0 {
		t.Errorf("%d and %d subscriptions are left", len(f.all), len(f.byJob))
	}
}

func TestAfter(t *testing.T) {
	f := New(nil)
	start := f.Last()
	for i := range 5 {
		f.Publish(Event{Kind: State, Job: fmt.Sprint(i)})
	}
	if got := read(f.Subscribe(start+3, Filter{})); !slices.Equal(got, []string{"3", "4"}) {
		t.Errorf("after the third: %q", got)
	}
	now := f.Subscribe(f.Last(), Filter{})
	if ready(now) || len(read(now)) > 0 {
		t.Error("there is something after the last event")
	}
	f.Publish(Event{Kind: State, Job: "next"})
	if e, ok := now.Next(); !ok || e.Seq != start+6 || e.Job != "next" {
		t.Errorf("got %+v, %v", e, ok)
	}
}

// TestSlow: a subscriber that does not read costs the publisher nothing, loses the
// oldest events and is told so.
func TestSlow(t *testing.T) {
	f := New(nil)
	slow := f.Subscribe(f.Last(), Filter{})
	other := f.Subscribe(f.Last(), Filter{Job: "x"})
	for i := range size + 10 {
		f.Publish(Event{Kind: State, Job: fmt.Sprint(i)})
	}
	got := read(slow)
	if len(got) != size+1 || got[0] != "gap" || got[1] != "10" || got[size] != fmt.Sprint(size+9) {
		t.Errorf("%d events: %q … %q", len(got), got[:2], got[len(got)-1])
	}
	if ready(other) {
		t.Error("a subscriber was woken for a job of no concern")
	}
	if got := read(other); !slices.Equal(got, []string{"gap"}) { // it cannot know
		t.Errorf("got %q", got)
	}
	f.Publish(Event{Kind: State, Job: "x"})
	if got := read(other); !ready(other) || !slices.Equal(got, []string{"x"}) {
		t.Errorf("after the gap: %q", got)
	}
}

// TestRestart: a number of another daemon's feed is a gap, whether that is older or,
// after the clock was set back, newer.
func TestRestart(t *testing.T) {
	f := New(nil)
	for _, after := range []uint64{0, f.Last() - 1, f.Last() + 1, f.Last() + 1e9, ^uint64(0)} {
		s := f.Subscribe(after, Filter{Job: "a"})
		if !ready(s) {
			t.Errorf("after %d: not ready", after)
		}
		if got := read(s); !slices.Equal(got, []string{"gap"}) {
			t.Errorf("after %d: got %q", after, got)
		}
	}
}

// TestTap: the tap sees every event, in order, also of publishers side by side.
func TestTap(t *testing.T) {
	var seen []uint64
	f := New(func(e Event) { seen = append(seen, e.Seq) })
	first := f.Last() + 1
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 500 {
				f.Publish(Event{Kind: State, From: joblet.Pending, To: joblet.Running})
			}
		})
	}
	all.Wait()
	for i, seq := range seen {
		if seq != first+uint64(i) {
			t.Fatalf("event %d has the number %d, want %d", i, seq, first+uint64(i))
		}
	}
	if len(seen) != 8*500 {
		t.Errorf("%d events", len(seen))
	}
}

// TestNothingLost: a reader that keeps up sees every event of its job once.
func TestNothingLost(t *testing.T) {
	f := New(nil)
	s := f.Subscribe(f.Last(), Filter{Job: "a", Kinds: Changed})
	defer s.Close()
	const n = 300
	go func() {
		for range n {
			f.Publish(Event{Kind: State, Job: "b"})
			f.Publish(Event{Kind: State, Job: "a"})
			f.Publish(Event{Kind: Queued, Job: "a"})
		}
	}()
	for count := 0; count < n; {
		<-s.Ready()
		for e, ok := s.Next(); ok; e, ok = s.Next() {
			if e.Kind == Gap {
				return // a loaded machine: it was told
			}
			if count++; e.Job != "a" || e.Kind != State {
				t.Fatalf("got %+v", e)
			}
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	f := New(nil)
	defer f.Subscribe(f.Last(), Filter{Job: "a"}).Close()
	b.ReportAllocs()
	for b.Loop() {
		f.Publish(Event{Kind: State, Job: "b", From: joblet.Pending, To: joblet.Running})
	}
}
