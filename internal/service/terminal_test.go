package service

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/joblet/joblet"
)

// TestWindows: a terminal is as large as the smallest attached window.
func TestWindows(t *testing.T) {
	t.Parallel()
	var w windows
	fit := func() (got joblet.WindowSize) {
		w.fit(t.Context(), "job", func(size joblet.WindowSize) { got = size })
		return got
	}
	var a, b keyboard
	for _, step := range []struct {
		change func() bool
		looks  bool
		want   joblet.WindowSize
	}{
		{func() bool { return w.set("job", &a, joblet.WindowSize{}) }, false, joblet.WindowSize{}},
		{func() bool { return w.set("job", &a, joblet.WindowSize{Rows: 40, Columns: 80}) }, true, joblet.WindowSize{Rows: 40, Columns: 80}},
		{func() bool { return w.set("job", &b, joblet.WindowSize{Rows: 20, Columns: 100}) }, true, joblet.WindowSize{Rows: 20, Columns: 80}},
		{func() bool { w.leave("job", &b); return false }, false, joblet.WindowSize{Rows: 40, Columns: 80}},
		// What b sent last was still on its way.
		{func() bool { return w.set("job", &b, joblet.WindowSize{Rows: 1, Columns: 1}) }, false, joblet.WindowSize{Rows: 40, Columns: 80}},
		{func() bool { w.leave("job", &a); return false }, false, joblet.WindowSize{}},
	} {
		if looks := step.change(); looks != step.looks {
			t.Errorf("looks at it: %v, want %v", looks, step.looks)
		}
		if got := fit(); got != step.want {
			t.Errorf("size %v, want %v", got, step.want)
		}
	}
	if len(w.byJob) != 0 {
		t.Errorf("left behind: %v", w.byJob)
	}
}

// TestWindowsOrder: the last size to arrive is the latest, although each call may
// block, and a caller that gives up waiting does not block others.
func TestWindowsOrder(t *testing.T) {
	t.Parallel()
	var w windows
	var board keyboard
	entered, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	var arrived []joblet.WindowSize // one at a time
	w.set("job", &board, joblet.WindowSize{Rows: 1, Columns: 1})
	wg.Go(func() {
		w.fit(t.Context(), "job", func(size joblet.WindowSize) {
			close(entered)
			<-release
			arrived = append(arrived, size)
		})
	})
	<-entered
	for n := range 5 {
		w.set("job", &board, joblet.WindowSize{Rows: n + 2, Columns: 1})
		wg.Go(func() {
			w.fit(t.Context(), "job", func(size joblet.WindowSize) { arrived = append(arrived, size) })
		})
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	w.fit(ended, "job", func(joblet.WindowSize) { t.Error("one that has given up is handed on") })
	w.fit(t.Context(), "other", func(joblet.WindowSize) {}) // is not held up
	w.leave("job", &keyboard{})
	close(release)
	wg.Wait()
	if got, want := fmt.Sprint(arrived), "[{1 1} {6 1} {6 1} {6 1} {6 1} {6 1}]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if w.leave("job", &board); len(w.byJob) != 0 {
		t.Errorf("left behind: %v", w.byJob)
	}
}
