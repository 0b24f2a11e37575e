package follow

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/logstore"
)

// TestMain makes the test binary a writer as well: it appends so many lines to
// the log in the working directory, and then ends it or is killed.
func TestMain(m *testing.M) {
	n, err := strconv.Atoi(os.Getenv("FOLLOW_TEST_LINES"))
	if err != nil {
		os.Exit(m.Run())
	}
	fatal := func(err error) {
		if err != nil {
			println(err.Error())
			os.Exit(1)
		}
	}
	dir, err := unix.Open(".", unix.O_PATH|unix.O_DIRECTORY, 0)
	fatal(err)
	w, err := logstore.Create(dir, logstore.Options{Append: true})
	fatal(err)
	for i := range n {
		_, err := w.Append([]byte(strconv.Itoa(i)+"\n"), logstore.Stream(1+i%2), time.Now())
		fatal(err)
	}
	if os.Getenv("FOLLOW_TEST_KILL") == "" {
		fatal(w.End(time.Now()))
		os.Exit(0)
	}
	log, err := os.OpenFile(logstore.LogName, os.O_WRONLY|os.O_APPEND, 0)
	fatal(err)
	_, err = log.WriteString("not published\n")
	fatal(err)
	fatal(unix.Kill(os.Getpid(), unix.SIGKILL))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newLog(t testing.TB) (*logstore.Writer, string) {
	t.Helper()
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(fd)
	w, err := logstore.Create(fd, logstore.Options{})
	check(t, err)
	t.Cleanup(func() { _ = w.Close() })
	return w, dir
}

func openLog(t testing.TB, dir string) *logstore.Reader {
	t.Helper()
	r, err := logstore.Open(dir)
	check(t, err)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func newWatcher(t testing.TB) *Watcher {
	t.Helper()
	w, err := NewWatcher()
	check(t, err)
	t.Cleanup(func() {
		w.mu.Lock()
		n := len(w.watches)
		w.mu.Unlock()
		if n != 0 {
			t.Errorf("%d watches left", n)
		}
		check(t, w.Close())
		check(t, w.Close())
	})
	return w
}

// follower is a Follow in a goroutine. It sends what it gets.
type follower struct {
	got  chan string
	done chan error
}

func start(ctx context.Context, w *Watcher, r *logstore.Reader, gone <-chan struct{}) follower {
	f := follower{make(chan string), make(chan error, 1)}
	go func() {
		f.done <- w.Follow(ctx, r, gone, func(c logstore.Chunk) error {
			select {
			case f.got <- string(c.Data):
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	}()
	return f
}

func write(t testing.TB, w *logstore.Writer, s string) {
	t.Helper()
	_, err := w.Append([]byte(s), logstore.Stdout, time.Now())
	check(t, err)
}

// waits returns once so many followers wait on w.
func waits(t testing.TB, w *Watcher, n int) {
	t.Helper()
	for {
		w.mu.Lock()
		k := 0
		for _, all := range w.watches {
			k += len(all)
		}
		w.mu.Unlock()
		if k == n {
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("no follower came to wait")
		}
		time.Sleep(time.Millisecond) // there is nothing to be woken by: the test polls from outside
	}
}

// TestFollowers has ten followers of one log that is being written, from
// different moments on, one of which gives up half-way.
func TestFollowers(t *testing.T) {
	t.Parallel()
	watcher := newWatcher(t)
	w, dir := newLog(t)
	rng := rand.New(rand.NewPCG(1, 2))
	const total = 4 << 20
	want := make([]byte, total)
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	errStop := errors.New("enough")
	type result struct {
		n   int
		got []byte
		err error
	}
	results := make(chan result)
	const followers = 10
	follow := func(n int) {
		r := openLog(t, dir)
		go func() {
			var got []byte
			err := watcher.Follow(t.Context(), r, nil, func(c logstore.Chunk) error {
				got = append(got, c.Data...)
				if n == 3 && len(got) > total/2 {
					return errStop
				}
				return nil
			})
			results <- result{n, got, err}
		}()
	}
	next := 0
	for off := 0; off < total; {
		if next < followers && off >= next*total/(2*followers) {
			follow(next)
			next++
		}
		n := min(1+rng.IntN(2000), total-off)
		_, err := w.Append(want[off:off+n], logstore.Stream(1+rng.IntN(2)), time.Now())
		check(t, err)
		off += n
	}
	check(t, w.End(time.Now()))
	for range followers {
		res := <-results
		if res.n == 3 {
			if !errors.Is(res.err, errStop) {
				t.Errorf("follower 3: %v", res.err)
			}
			continue
		}
		check(t, res.err)
		if !bytes.Equal(res.got, want) {
			t.Errorf("follower %d got %d bytes, want %d", res.n, len(res.got), total)
		}
	}
}

func TestLiveThenEnd(t *testing.T) {
	t.Parallel()
	watcher := newWatcher(t)
	w, dir := newLog(t)
	write(t, w, "history")
	f := start(t.Context(), watcher, openLog(t, dir), nil)
	if got := <-f.got; got != "history" {
		t.Fatalf("got %q", got)
	}
	for i := range 1000 { // each written when its follower may just be going to wait
		s := strconv.Itoa(i)
		write(t, w, s)
		if got := <-f.got; got != s {
			t.Fatalf("got %q, want %q", got, s)
		}
	}
	check(t, w.End(time.Now()))
	check(t, <-f.done)
}

// TestGone ends followers whose writer died between data and record.
func TestGone(t *testing.T) {
	t.Parallel()
	watcher := newWatcher(t)
	w, dir := newLog(t)
	write(t, w, "published")
	gone := make(chan struct{})
	f := start(t.Context(), watcher, openLog(t, dir), gone)
	<-f.got
	waits(t, watcher, 1)
	fd, err := unix.Open(dir+"/"+logstore.LogName, unix.O_WRONLY|unix.O_APPEND, 0)
	check(t, err)
	_, err = unix.Write(fd, []byte("not published"))
	check(t, err)
	check(t, unix.Close(fd))
	close(gone)
	if got := <-f.got; got != "not published" {
		t.Fatalf("got %q", got)
	}
	check(t, <-f.done)
}

func TestCancelAndClose(t *testing.T) {
	t.Parallel()
	watcher := newWatcher(t)
	_, dir := newLog(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	f := start(ctx, watcher, openLog(t, dir), nil)
	waits(t, watcher, 1)
	why := errors.New("why")
	cancel(why)
	if err := <-f.done; !errors.Is(err, why) {
		t.Fatalf("cancelled: %v", err)
	}
	f = start(t.Context(), watcher, openLog(t, dir), nil)
	waits(t, watcher, 1)
	check(t, watcher.Close())
	if err := <-f.done; !errors.Is(err, ErrClosed) {
		t.Fatalf("closed: %v", err)
	}
	if err := watcher.Follow(t.Context(), openLog(t, dir), nil, nil); !errors.Is(err, ErrClosed) {
		t.Fatalf("after close: %v", err)
	}
}

// TestWithoutWatch takes the watch away, as the end of a file system does, so that
// followers poll, as on systems without watches.
func TestWithoutWatch(t *testing.T) {
	t.Parallel()
	watcher := newWatcher(t)
	w, dir := newLog(t)
	a := start(t.Context(), watcher, openLog(t, dir), nil)
	waits(t, watcher, 1)
	watcher.mu.Lock()
	for wd := range watcher.watches {
		_, err := unix.InotifyRmWatch(watcher.fd, uint32(wd))
		check(t, err)
	}
	watcher.deaf = true
	watcher.mu.Unlock()
	waits(t, watcher, 0)
	b := start(t.Context(), watcher, openLog(t, dir), nil)
	write(t, w, "x")
	for _, f := range []follower{a, b} {
		if got := <-f.got; got != "x" {
			t.Fatalf("got %q", got)
		}
	}
	check(t, w.End(time.Now()))
	check(t, <-a.done)
	check(t, <-b.done)
}

// TestOverflow has more events than the kernel queues, so that the last log's
// are among those lost.
func TestOverflow(t *testing.T) {
	t.Parallel()
	watcher := newWatcher(t)
	w1, dir1 := newLog(t)
	w2, dir2 := newLog(t)
	w3, dir3 := newLog(t)
	gone := make(chan struct{})
	for _, dir := range []string{dir1, dir2} {
		r := openLog(t, dir)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = watcher.Follow(t.Context(), r, gone, func(logstore.Chunk) error { return nil })
		}()
		t.Cleanup(func() { <-done })
	}
	f := start(t.Context(), watcher, openLog(t, dir3), nil)
	waits(t, watcher, 3)
	watcher.mu.Lock() // so that nothing is taken from the queue, but for one buffer
	for range 10_000 {
		write(t, w1, "1") // events of one file in a row would be merged
		write(t, w2, "2")
	}
	write(t, w3, "3")
	watcher.mu.Unlock()
	if got := <-f.got; got != "3" {
		t.Fatalf("got %q", got)
	}
	check(t, w3.End(time.Now()))
	check(t, <-f.done)
	close(gone)
}

// TestResume follows a log through attempts of which each is a process, some of
// them killed: once to the end of each, then on.
func TestResume(t *testing.T) {
	t.Parallel()
	watcher := newWatcher(t)
	w, dir := newLog(t)
	write(t, w, "first\n")
	check(t, w.End(time.Now()))
	const attempts, followers = 8, 4
	var gone [attempts]chan struct{}
	for i := range gone {
		gone[i] = make(chan struct{})
	}
	type result struct {
		got []byte
		err error
	}
	results := make(chan result, followers)
	for range followers {
		r := openLog(t, dir)
		go func() {
			var res result
			for i := 0; i < attempts && res.err == nil; i++ {
				r.Resume()
				res.err = watcher.Follow(t.Context(), r, gone[i], func(c logstore.Chunk) error {
					res.got = append(res.got, c.Data...)
					return nil
				})
				<-gone[i] // its end may have been seen before
			}
			results <- res
		}()
	}
	want := "first\n"
	for i := range attempts {
		lines := []int{0, 1, 50, 3000}[i%4]
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Dir, cmd.Stderr = dir, os.Stderr
		cmd.Env = append(os.Environ(), "FOLLOW_TEST_LINES="+strconv.Itoa(lines))
		for n := range lines {
			want += strconv.Itoa(n) + "\n"
		}
		if i%3 == 1 {
			cmd.Env = append(cmd.Env, "FOLLOW_TEST_KILL=1")
			want += "not published\n"
		}
		if err := cmd.Run(); (err != nil) != (i%3 == 1) {
			t.Fatal(err)
		}
		close(gone[i])
	}
	for range followers {
		res := <-results
		check(t, res.err)
		if string(res.got) != want {
			t.Errorf("got %d bytes, want %d", len(res.got), len(want))
		}
	}
}

// TestResumeWakes has a follower wait, after the end, for the next Writer's
// output: what wakes it is the watch, not the clock.
func TestResumeWakes(t *testing.T) {
	t.Parallel()
	watcher := newWatcher(t)
	w, dir := newLog(t)
	r := openLog(t, dir)
	for i := range 20 {
		f := start(t.Context(), watcher, r, nil)
		waits(t, watcher, 1)
		s := strconv.Itoa(i)
		write(t, w, s)
		if got := <-f.got; got != s {
			t.Fatalf("got %q, want %q", got, s)
		}
		check(t, w.End(time.Now()))
		check(t, <-f.done)
		waits(t, watcher, 0)
		r.Resume()
		check(t, w.Close())
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		check(t, err)
		w, err = logstore.Create(fd, logstore.Options{Append: true})
		check(t, err)
		check(t, unix.Close(fd))
	}
	check(t, w.Close())
}

func TestUntil(t *testing.T) {
	t.Parallel()
	watcher := newWatcher(t)
	t.Run("silence", func(t *testing.T) {
		w, dir := newLog(t)
		write(t, w, "x")
		r := openLog(t, dir)
		until := time.Now().Add(200 * time.Millisecond)
		r.Until(until)
		f := start(t.Context(), watcher, r, nil)
		<-f.got
		check(t, <-f.done)
		if late := time.Since(until); late < 0 || !r.Done() || r.Ended() {
			t.Fatalf("%v late, done %v, ended %v", late, r.Done(), r.Ended())
		}
	})
	t.Run("output", func(t *testing.T) {
		w, dir := newLog(t)
		r := openLog(t, dir)
		until := time.Now().Add(time.Hour)
		r.Until(until)
		f := start(t.Context(), watcher, r, nil)
		for _, at := range []time.Duration{-time.Second, -1, 0, 1} {
			_, err := w.Append([]byte(at.String()), logstore.Stdout, until.Add(at))
			check(t, err)
		}
		var got []string
		for len(got) < 2 {
			got = append(got, <-f.got)
		}
		check(t, <-f.done)
		if s := strings.Join(got, ","); s != "-1s,-1ns" || !r.Done() {
			t.Fatalf("got %s, done %v", s, r.Done())
		}
	})
	t.Run("past", func(t *testing.T) {
		_, dir := newLog(t)
		r := openLog(t, dir)
		r.Until(time.Unix(1, 0))
		check(t, watcher.Follow(t.Context(), r, nil, nil))
	})
}

// BenchmarkLatency is the time from Append to the follower's having it.
func BenchmarkLatency(b *testing.B) {
	watcher := newWatcher(b)
	w, dir := newLog(b)
	ctx, cancel := context.WithCancel(b.Context())
	f := start(ctx, watcher, openLog(b, dir), nil)
	for b.Loop() {
		write(b, w, "a line\n")
		<-f.got
	}
	cancel()
	<-f.done
}
