package queue

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// item makes an item that is created so many seconds after epoch.
func item(id string, created, priority int, needs Amounts) *Item[string] {
	return &Item[string]{Job: id, ID: id, Created: epoch.Add(time.Duration(created) * time.Second), Priority: priority, Needs: needs}
}

var oneSlot = Amounts{Slots: 1}

// started takes all that can run out of the queue.
func started(q *Queue[string]) string {
	var all []string
	for {
		id, ok := q.Next()
		if !ok {
			return strings.Join(all, " ")
		}
		all = append(all, id)
	}
}

func TestReadyOrder(t *testing.T) {
	items := []*Item[string]{
		item("old", 1, 0, oneSlot), item("young", 3, 0, oneSlot), item("urgent", 5, 7, oneSlot),
		item("low", 0, -3, oneSlot), item("a", 2, 0, oneSlot), item("b", 2, 0, oneSlot),
	}
	for range 20 {
		rand.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
		q := New[string]()
		for _, it := range items {
			q.Ready(it)
		}
		if got, want := started(q), "urgent old a b young low"; got != want {
			t.Fatalf("order %q, want %q", got, want)
		}
		for _, it := range items {
			q.Release(it)
		}
		if q.pool.used != (Amounts{}) {
			t.Fatalf("%v used after all were released", q.pool.used)
		}
	}
}

func TestDue(t *testing.T) {
	q := New[string]()
	if _, ok := q.NextDue(); ok {
		t.Error("something is due in an empty queue")
	}
	late, soon, same := item("late", 0, 9, oneSlot), item("soon", 2, 0, oneSlot), item("same", 1, 0, oneSlot)
	q.Schedule(late, epoch.Add(time.Hour))
	q.Schedule(soon, epoch.Add(time.Minute))
	q.Schedule(same, epoch.Add(time.Minute))
	if due, ok := q.NextDue(); !ok || !due.Equal(epoch.Add(time.Minute)) {
		t.Errorf("next due at %v, %v", due, ok)
	}
	if id, ok := q.Due(epoch.Add(time.Minute - 1)); ok {
		t.Errorf("%s is due too early", id)
	}
	var got []string
	for {
		id, ok := q.Due(epoch.Add(time.Minute))
		if !ok {
			break
		}
		got = append(got, id)
	}
	if !slices.Equal(got, []string{"same", "soon"}) {
		t.Errorf("due: %v", got)
	}
	q.Schedule(late, epoch) // moved
	if id, _ := q.Due(epoch); id != "late" || late.Waits() {
		t.Errorf("due %q, waits %v", id, late.Waits())
	}
}

func TestDependencies(t *testing.T) {
	tests := []struct {
		name          string
		on            []Dependency
		ends          string // of a job: its id, with ! unless it completed
		freed, failed string
		blocked       int
	}{
		{"one", []Dependency{{On: "a"}}, "a", "x", "", 0},
		{"failed", []Dependency{{On: "a"}}, "a!", "", "x", 1},
		{"any end", []Dependency{{On: "a", AnyEnd: true}}, "a!", "x", "", 0},
		{"first of two", []Dependency{{On: "a"}, {On: "b"}}, "a", "", "", 1},
		{"both", []Dependency{{On: "a"}, {On: "b"}}, "a b", "x", "", 0},
		{"second failed", []Dependency{{On: "a"}, {On: "b"}}, "a b!", "", "x", 1},
		{"another", []Dependency{{On: "a"}}, "c", "", "", 1},
		{"none", nil, "a", "", "", 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			q := New[string]()
			it := item("x", 0, 0, oneSlot)
			q.Block(it, test.on)
			var freed, failed []string
			for end := range strings.FieldsSeq(test.ends) {
				id, not := strings.CutSuffix(end, "!")
				nowFree, nowFailed := q.Finished(id, !not)
				freed, failed = append(freed, nowFree...), append(failed, nowFailed...)
			}
			if _, _, n := q.Counts(); strings.Join(freed, " ") != test.freed || strings.Join(failed, " ") != test.failed || n != test.blocked {
				t.Errorf("freed %v, failed %v, %d blocked", freed, failed, n)
			}
			if it.Blocked() != (test.blocked > 0) {
				t.Errorf("blocked: %v", it.Blocked())
			}
			q.Remove(it)
			if _, _, n := q.Counts(); n != 0 || len(q.waiters) != 0 || it.Waits() {
				t.Errorf("removed, and %d blocked, %d waiters", n, len(q.waiters))
			}
		})
	}
}

func TestAdmission(t *testing.T) {
	const gib = 1 << 30
	tests := []struct {
		name   string
		limits Amounts
		needs  []Amounts // of jobs 0, 1, …, which are ready in this order
		want   string    // those that start
		lacks  Resource  // of which the next one has too little
	}{
		{"no limits", Amounts{}, []Amounts{{1, 99 * gib}, {1, 99 * gib}}, "0 1", 0},
		{"slots", Amounts{Slots: 2}, []Amounts{{1, 0}, {1, 0}, {1, 0}}, "0 1", Slots},
		{"memory", Amounts{Memory: 4 * gib}, []Amounts{{1, 3 * gib}, {1, 1 * gib}, {1, 1}}, "0 1", Memory},
		{"memory before slots", Amounts{Slots: 9, Memory: gib}, []Amounts{{1, gib}, {1, gib}}, "0", Memory},
		{"no need", Amounts{Memory: gib}, []Amounts{{1, gib}, {1, 0}}, "0 1", 0},
		{"a large one holds back small ones", Amounts{Memory: 4 * gib}, []Amounts{{1, gib}, {1, 4 * gib}, {1, gib}}, "0", Memory},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			q := New[string]()
			q.SetLimits(test.limits)
			var items []*Item[string]
			for i, needs := range test.needs {
				it := item(fmt.Sprint(i), i, 0, needs)
				items = append(items, it)
				q.Ready(it)
			}
			if got := started(q); got != test.want {
				t.Fatalf("started %q, want %q", got, test.want)
			}
			n := len(strings.Fields(test.want))
			if n == len(items) {
				return
			}
			if r, lacking := q.Lacks(items[n]); !lacking || r != test.lacks {
				t.Errorf("lacks %v, %v", r, lacking)
			}
			if q.Admit(item("new", 99, 99, Amounts{})) {
				t.Error("a new job overtook those that wait")
			}
			for _, it := range items[:n] {
				q.Release(it)
				q.Release(it) // once is enough
			}
			if got := started(q); !strings.HasPrefix(got, items[n].ID) {
				t.Errorf("then started %q", got)
			}
		})
	}
}

// TestOccupy: what runs already counts, and lowering a limit ends nothing.
func TestOccupy(t *testing.T) {
	q := New[string]()
	q.SetLimits(Amounts{Slots: 1})
	first, second := item("first", 0, 0, oneSlot), item("second", 1, 0, oneSlot)
	q.Occupy(first)
	q.Occupy(second)
	if n := q.Used(Slots); n != 2 || q.Admit(item("third", 2, 0, oneSlot)) {
		t.Errorf("%d slots used, and a third job was admitted", n)
	}
	q.Occupy(first) // again: it does not count twice
	q.Release(first)
	q.Release(second)
	if !q.Admit(item("third", 2, 0, oneSlot)) || q.Used(Slots) != 1 {
		t.Errorf("%d slots used", q.Used(Slots))
	}
}

// TestRandom compares the queue with a list.
func TestRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	q := New[string]()
	all := map[string]*Item[string]{}
	for i := range 2000 {
		id := fmt.Sprint(r.IntN(50))
		it := all[id]
		if it == nil {
			it = item(id, i, r.IntN(3), oneSlot)
			all[id] = it
		}
		switch r.IntN(5) {
		case 0:
			q.Schedule(it, epoch.Add(time.Duration(r.IntN(100))))
		case 1:
			q.Ready(it)
		case 2:
			q.Block(it, []Dependency{{On: fmt.Sprint(r.IntN(50))}, {On: "never"}})
		case 3:
			q.Remove(it)
		default:
			q.Finished(id, true)
		}
		ready, timed, blocked := q.Counts()
		waits := 0
		for _, it := range all {
			if it.Waits() {
				waits++
			}
			if it.in != nil && it.in.items[it.index] != it {
				t.Fatal("an item does not know its index")
			}
		}
		if ready+timed+blocked != waits {
			t.Fatalf("%d ready, %d timed, %d blocked, and %d wait", ready, timed, blocked, waits)
		}
	}
}

// TestRun looks at when start is called, on a clock of the test's own.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		wake := make(chan struct{}, 1)
		began := time.Now()
		var at []time.Duration
		again := []time.Duration{time.Second, time.Hour, time.Hour, -time.Second, time.Hour}
		done := make(chan struct{})
		go func() {
			defer close(done)
			Run(ctx, wake, func(now time.Time) time.Duration {
				at = append(at, now.Sub(began))
				return again[len(at)-1]
			})
		}()
		time.Sleep(3 * time.Second)
		wake <- struct{}{}
		synctest.Wait()
		time.Sleep(ClockCheck + time.Second)
		cancel()
		<-done
		want := []time.Duration{0, time.Second, 3 * time.Second, 3*time.Second + ClockCheck, 3*time.Second + ClockCheck}
		if !slices.Equal(at, want) {
			t.Errorf("looked at %v, want %v", at, want)
		}
	})
}
