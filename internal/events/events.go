// Package events is the feed of what happens to the jobs of one daemon: one
// sequence of small events, which names the job and what changed. An event says
// that there is something to look at; the job's record says what it is now.
//
// The feed keeps the latest events, a fixed number of them. A subscriber reads at
// its own pace: one that falls behind, or that asks for events which the feed does
// not have, receives an event of kind Gap and has to look at everything anew.
// Publish never waits for a subscriber.
//
// Sequence numbers live as long as the feed and are not durable. They begin with
// the time at which the feed was made, in nanoseconds: a subscriber that continues
// after a restart of the daemon asks for a number that the new feed never had, and
// receives a Gap.
package events

import (
	"slices"
	"sync"
	"time"

	"github.com/joblet/joblet"
)

// Kind says what an event is about.
type Kind uint16

// The kinds of events, which a Filter combines.
const (
	// State: the job is in another state.
	State Kind = 1 << iota
	// Detail: something else about the job changed, such as when it runs, why it
	// waits, or that it was withdrawn.
	Detail
	// Accepted: the job is accepted.
	Accepted
	// Started: the command of a run runs.
	Started
	// NotStarted: the command could not be run.
	NotStarted
	// Settled: the end of the job is durable.
	Settled
	// Queued: the job waits, and may be the next one to run.
	Queued
	// Freed: there is room for another job.
	Freed

	// Gap: the subscriber has missed events, perhaps of its own jobs. A filter
	// cannot leave it out.
	Gap

	// Changed is all that a user sees of a job.
	Changed = State | Detail | Settled
)

// Event is one thing that has happened.
type Event struct {
	Seq  uint64
	Kind Kind
	Job  string // id; empty: no particular one

	From, To joblet.State // for State and Settled

	Failure joblet.Kind // for NotStarted: why

	// For Started: for how long the job waited for room, and how long its start took.
	Queued, Starting time.Duration
}

// size is how many events the feed keeps.
const size = 1024

// Feed is a sequence of events. Its methods may be called from any goroutine.
type Feed struct {
	tap func(Event)

	mu   sync.Mutex // protects what follows
	ring [size]Event
	base uint64 // the number before the first event
	last uint64 // the number of the latest event

	byJob map[string][]*Subscription // those that want the events of one job
	all   []*Subscription            // the others
}

// New returns an empty feed. tap, if not nil, is called for each event, in order,
// before Publish returns: it serves what has to count every event. It must neither
// block nor use the feed.
func New(tap func(Event)) *Feed {
	base := uint64(time.Now().UnixNano())
	return &Feed{tap: tap, base: base, last: base, byJob: map[string][]*Subscription{}}
}

// Publish appends an event, to which it gives a number, and wakes the subscribers
// that want the event.
func (f *Feed) Publish(e Event) (seq uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last++
	e.Seq = f.last
	f.ring[e.Seq%size] = e
	if f.tap != nil {
		f.tap(e)
	}
	if e.Job != "" {
		for _, s := range f.byJob[e.Job] {
			s.offer(e)
		}
	}
	for _, s := range f.all {
		s.offer(e)
	}
	return e.Seq
}

// Last returns the number of the latest event.
func (f *Feed) Last() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// Filter says which events a subscriber wants.
type Filter struct {
	Job   string // id; empty: those of all jobs
	Kinds Kind   // 0: all kinds
}

func (f Filter) passes(e Event) bool {
	return (f.Kinds == 0 || f.Kinds&e.Kind != 0) && (f.Job == "" || f.Job == e.Job)
}

// Subscription is one reader of a feed. It belongs to one goroutine.
type Subscription struct {
	feed   *Feed
	filter Filter
	ready  chan struct{}

	next uint64 // the number of the next event to look at; Feed.mu protects it
	gap  bool   // the reader has to be told of a gap; Feed.mu protects it
}

// Subscribe returns a subscription to the events after the one with the number
// after. The caller closes it.
func (f *Feed) Subscribe(after uint64, filter Filter) *Subscription {
	s := &Subscription{feed: f, filter: filter, ready: make(chan struct{}, 1), next: after + 1}
	f.mu.Lock()
	defer f.mu.Unlock()
	if filter.Job != "" {
		f.byJob[filter.Job] = append(f.byJob[filter.Job], s)
	} else {
		f.all = append(f.all, s)
	}
	s.catchUp()
	if s.advance() {
		s.wake()
	}
	return s
}

// Close ends the subscription.
func (s *Subscription) Close() {
	f := s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	without := func(all []*Subscription) []*Subscription {
		return slices.DeleteFunc(all, func(other *Subscription) bool { return other == s })
	}
	if s.filter.Job == "" {
		f.all = without(f.all)
		return
	}
	if rest := without(f.byJob[s.filter.Job]); len(rest) > 0 {
		f.byJob[s.filter.Job] = rest
	} else {
		delete(f.byJob, s.filter.Job)
	}
}

// Ready receives when there may be something for Next.
func (s *Subscription) Ready() <-chan struct{} { return s.ready }

// Next returns the next event that the subscriber wants, or a Gap; ok is false when
// there is none yet.
func (s *Subscription) Next() (e Event, ok bool) {
	f := s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	s.catchUp()
	if s.gap {
		s.gap = false
		return Event{Seq: s.next - 1, Kind: Gap}, true
	}
	if !s.advance() {
		return Event{}, false
	}
	e = f.ring[s.next%size]
	s.next++
	return e, true
}

// catchUp notes a gap if the feed does not have the events from next on. Feed.mu
// is held.
func (s *Subscription) catchUp() {
	f := s.feed
	oldest := f.base + 1
	if f.last-f.base > size {
		oldest = f.last - size + 1
	}
	if s.next < oldest || s.next > f.last+1 {
		s.next, s.gap = oldest, true
	}
}

// advance moves next to an event that the subscriber wants and reports whether
// there is one, or a gap. Feed.mu is held.
func (s *Subscription) advance() bool {
	for ; !s.gap && s.next <= s.feed.last; s.next++ {
		if s.filter.passes(s.feed.ring[s.next%size]) {
			return true
		}
	}
	return s.gap
}

// offer wakes the reader if it wants the event. Feed.mu is held.
func (s *Subscription) offer(e Event) {
	if s.filter.passes(e) {
		s.wake()
	}
}

func (s *Subscription) wake() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}
