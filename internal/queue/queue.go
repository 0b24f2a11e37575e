// Package queue orders the jobs that wait: for a time, for the end of other jobs,
// or for room on the node. It knows neither states nor records, and does no I/O.
//
// An item waits in one place at a time: in a heap by time (Schedule), on other
// jobs (Block), or in a heap by priority and age (Ready). Next takes the first
// item of the latter when the node has room for all that the item needs; an item
// that does not fit holds back those behind it, so that no item starves.
//
// A Queue is not safe for concurrent use: its owner's lock protects it.
package queue

import (
	"container/heap"
	"slices"
	"time"
)

// Item is one job as the queue sees it. The owner fills the exported fields before
// the item's first use and then changes none but Needs, which count from the next
// time that the item is given something.
type Item[J any] struct {
	Job      J
	ID       string
	Created  time.Time // of two equal items the older one goes first
	Priority int       // higher goes first
	Needs    Amounts   // what the job takes while it runs

	due   time.Time
	in    *itemHeap[J] // nil: in neither heap
	index int          // in that heap
	on    []string     // ids of the jobs that it waits for
	held  Amounts      // what it has taken and not given back
}

// Waits reports whether the item is in a heap or waits for other jobs.
func (it *Item[J]) Waits() bool { return it.in != nil || len(it.on) > 0 }

// Blocked reports whether the item waits for other jobs.
func (it *Item[J]) Blocked() bool { return len(it.on) > 0 }

func (it *Item[J]) older(other *Item[J]) bool {
	if !it.Created.Equal(other.Created) {
		return it.Created.Before(other.Created)
	}
	return it.ID < other.ID
}

// Dependency is the end of another job, for which an item waits.
type Dependency struct {
	On     string // id of the other job
	AnyEnd bool   // however it ends; otherwise it must complete
}

type waiter[J any] struct {
	item   *Item[J]
	anyEnd bool
}

// Queue holds the jobs that wait, and counts what the running ones take.
type Queue[J any] struct {
	ready   itemHeap[J]
	timed   itemHeap[J]
	waiters map[string][]waiter[J] // by the id of the job that they wait for
	blocked int                    // items that wait for other jobs
	pool    pool
}

// New returns an empty queue without limits.
func New[J any]() *Queue[J] {
	return &Queue[J]{
		ready: itemHeap[J]{less: func(a, b *Item[J]) bool {
			if a.Priority != b.Priority {
				return a.Priority > b.Priority
			}
			return a.older(b)
		}},
		timed: itemHeap[J]{less: func(a, b *Item[J]) bool {
			if !a.due.Equal(b.due) {
				return a.due.Before(b.due)
			}
			return a.older(b)
		}},
		waiters: map[string][]waiter[J]{},
	}
}

// SetLimits sets what the running jobs may take in all; 0 is no limit. What they
// have taken stays theirs.
func (q *Queue[J]) SetLimits(limits Amounts) { q.pool.limits = limits }

// Used returns what the running jobs take in all.
func (q *Queue[J]) Used(r Resource) int64 { return q.pool.used[r] }

// Lacks returns a resource of which there is too little to run the item now.
func (q *Queue[J]) Lacks(it *Item[J]) (r Resource, lacking bool) { return q.pool.lacks(it.Needs) }

// Counts returns how many items are ready to run, wait for their time, and wait
// for other jobs.
func (q *Queue[J]) Counts() (ready, timed, blocked int) {
	return len(q.ready.items), len(q.timed.items), q.blocked
}

// Schedule lets the item wait until due.
func (q *Queue[J]) Schedule(it *Item[J], due time.Time) {
	q.Remove(it)
	it.due = due
	q.timed.add(it)
}

// Due takes an item whose time has come out of the queue.
func (q *Queue[J]) Due(now time.Time) (job J, ok bool) {
	if len(q.timed.items) == 0 || q.timed.items[0].due.After(now) {
		return job, false
	}
	it := q.timed.items[0]
	q.timed.remove(it)
	return it.Job, true
}

// NextDue returns when the next item is due.
func (q *Queue[J]) NextDue() (due time.Time, ok bool) {
	if len(q.timed.items) == 0 {
		return due, false
	}
	return q.timed.items[0].due, true
}

// Block lets the item wait for the ends of other jobs. Without any it is left where
// it is.
func (q *Queue[J]) Block(it *Item[J], on []Dependency) {
	if len(on) == 0 {
		return
	}
	q.Remove(it)
	for _, d := range on {
		it.on = append(it.on, d.On)
		q.waiters[d.On] = append(q.waiters[d.On], waiter[J]{it, d.AnyEnd})
	}
	q.blocked++
}

// Finished tells the items that wait for a job that it has ended. It returns those
// that wait for nothing else now, which are in the queue no more, and those whose
// dependency has failed, which still wait for the rest.
func (q *Queue[J]) Finished(id string, completed bool) (freed, failed []J) {
	for _, w := range q.waiters[id] {
		it := w.item
		if !completed && !w.anyEnd {
			failed = append(failed, it.Job)
			continue // it stays blocked until the owner removes it
		}
		if i := slices.Index(it.on, id); i >= 0 {
			it.on = slices.Delete(it.on, i, i+1)
		}
		if len(it.on) == 0 {
			q.blocked--
			freed = append(freed, it.Job)
		}
	}
	delete(q.waiters, id)
	return freed, failed
}

// Ready lets the item wait for room alone.
func (q *Queue[J]) Ready(it *Item[J]) {
	q.Remove(it)
	q.ready.add(it)
}

// Next takes the first item that is ready out of the queue, if there is room for
// it, and gives it what it needs.
func (q *Queue[J]) Next() (job J, ok bool) {
	if len(q.ready.items) == 0 {
		return job, false
	}
	it := q.ready.items[0]
	if _, lacking := q.Lacks(it); lacking {
		return job, false
	}
	q.ready.remove(it)
	q.Occupy(it)
	return it.Job, true
}

// Admit gives an item that is not in the queue what it needs, if there is room and
// no item waits for that.
func (q *Queue[J]) Admit(it *Item[J]) bool {
	if len(q.ready.items) > 0 {
		return false
	}
	if _, lacking := q.Lacks(it); lacking {
		return false
	}
	q.Occupy(it)
	return true
}

// Occupy gives an item what it needs whether there is room or not: its job runs
// already.
func (q *Queue[J]) Occupy(it *Item[J]) {
	q.Release(it)
	it.held = it.Needs
	q.pool.take(it.held)
}

// Release takes back what an item has been given. Without that it does nothing.
func (q *Queue[J]) Release(it *Item[J]) {
	q.pool.give(it.held)
	it.held = Amounts{}
}

// Remove takes an item out of the queue, wherever in it the item waits. What the
// item has been given stays its own.
func (q *Queue[J]) Remove(it *Item[J]) {
	if it.in != nil {
		it.in.remove(it)
	}
	if len(it.on) == 0 {
		return
	}
	for _, id := range it.on {
		rest := slices.DeleteFunc(q.waiters[id], func(w waiter[J]) bool { return w.item == it })
		if q.waiters[id] = rest; len(rest) == 0 {
			delete(q.waiters, id)
		}
	}
	it.on = nil
	q.blocked--
}

// itemHeap is a heap whose items know their index.
type itemHeap[J any] struct {
	items []*Item[J]
	less  func(a, b *Item[J]) bool
}

func (h *itemHeap[J]) add(it *Item[J]) {
	it.in = h
	heap.Push((*heapOf[J])(h), it)
}

func (h *itemHeap[J]) remove(it *Item[J]) { heap.Remove((*heapOf[J])(h), it.index) }

// heapOf is an itemHeap with the methods that container/heap asks for.
type heapOf[J any] itemHeap[J]

func (h *heapOf[J]) Len() int           { return len(h.items) }
func (h *heapOf[J]) Less(i, j int) bool { return h.less(h.items[i], h.items[j]) }
func (h *heapOf[J]) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].index, h.items[j].index = i, j
}

func (h *heapOf[J]) Push(x any) {
	it := x.(*Item[J])
	it.index = len(h.items)
	h.items = append(h.items, it)
}

func (h *heapOf[J]) Pop() any {
	last := len(h.items) - 1
	it := h.items[last]
	h.items[last] = nil
	h.items = h.items[:last]
	it.in = nil
	return it
}
