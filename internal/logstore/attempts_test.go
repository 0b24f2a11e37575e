package logstore

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// reopen continues the log in dir.
func reopen(t testing.TB, dir string, opt Options) *Writer {
	t.Helper()
	opt.Append = true
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(fd)
	w, err := Create(fd, opt)
	check(t, err)
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// put appends s at sec seconds after 1970.
func put(t testing.TB, w *Writer, sec int64, stream Stream, s string) {
	t.Helper()
	_, err := w.Append([]byte(s), stream, time.Unix(sec, 0))
	check(t, err)
}

// eof fails unless r has nothing now, and has ended if it should.
func eof(t testing.TB, r *Reader, ended bool) {
	t.Helper()
	if c, err := r.Next(); err != io.EOF || r.Ended() != ended {
		t.Fatalf("got %q, error %v, ended %v; want EOF, ended %v", c.Data, err, r.Ended(), ended)
	}
}

// modelReader is a reader and what it should give next.
type modelReader struct {
	r   *Reader
	off int64
}

// model is a log as it should be.
type model struct {
	data    []byte
	streams []Stream // of each byte; 0: not known any more
	drops   bool     // what is old may be missing
}

func (m *model) add(p []byte, s Stream) {
	m.data = append(m.data, p...)
	m.streams = append(m.streams, slices.Repeat([]Stream{s}, len(p))...)
}

// read has r read n chunks, or all there are.
func (m *model) read(t *testing.T, mr *modelReader, n int) {
	t.Helper()
	for range n {
		c, err := mr.r.Next()
		if err == io.EOF {
			return
		}
		check(t, err)
		if c.Offset != mr.off+c.Dropped || c.Dropped > 0 && !m.drops || c.Dropped == 0 && len(c.Data) == 0 {
			t.Fatalf("chunk of %d bytes at %d, %d dropped: want offset %d", len(c.Data), c.Offset, c.Dropped, mr.off)
		}
		mr.off = c.Offset + int64(len(c.Data))
		if mr.off > int64(len(m.data)) {
			t.Fatalf("read up to %d of %d", mr.off, len(m.data))
		}
		equal(t, "chunk", c.Data, m.data[c.Offset:mr.off])
		if mr.r.Damaged() {
			continue
		}
		for i, s := range m.streams[c.Offset:mr.off] {
			if s != 0 && s != c.Stream {
				t.Fatalf("byte %d is stream %d's, got as %d's", c.Offset+int64(i), s, c.Stream)
			}
		}
	}
}

// TestAttempts has Writers come and go in every way, while readers that begin
// anywhere read and resume at any time: each gets every byte once and in order,
// unless the limit has dropped it.
func TestAttempts(t *testing.T) {
	t.Parallel()
	for name, opt := range map[string]Options{
		"whole":   {},
		"limited": {MaxBytes: 100},
		"shrinks": {MayShrink: true},
		"both":    {MaxBytes: 200_000, MayShrink: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, fs := mountFS(t, "tmpfs", "64m")
			for seed := range uint64(25) {
				dir := filepath.Join(fs, strconv.FormatUint(seed, 10))
				check(t, os.Mkdir(dir, 0o700))
				attempts(t, dir, opt, rand.New(rand.NewPCG(seed, uint64(len(name)))))
				check(t, os.RemoveAll(dir))
			}
		})
	}
}

func attempts(t *testing.T, dir string, opt Options, rng *rand.Rand) {
	m := &model{drops: opt != Options{}}
	var readers []*modelReader
	open := func(mr *modelReader) {
		t.Helper()
		if mr.r != nil {
			mr.r.Close()
		}
		mr.r = openLog(t, dir)
		mr.off = min(mr.off, int64(len(m.data)))
		check(t, mr.r.From(mr.off))
	}
	last := 1 + rng.IntN(6)
	for attempt := range last + 1 {
		w := reopen(t, dir, opt)
		if w.Size() != int64(len(m.data)) {
			t.Fatalf("attempt %d continues at %d of %d", attempt, w.Size(), len(m.data))
		}
		pieces := rng.IntN(400)
		for range pieces {
			p := noise(rng, 1+rng.IntN(50))
			if rng.IntN(20) == 0 {
				p = noise(rng, 1+rng.IntN(40_000))
			}
			s := Stream(1 + rng.IntN(2))
			n, err := w.Append(p, s, time.Now())
			if check(t, err); n != len(p) {
				t.Fatalf("took %d of %d bytes", n, len(p))
			}
			m.add(p, s)
			if rng.IntN(100) == 0 {
				_, err := w.Shrink()
				check(t, err)
			}
			if rng.IntN(40) == 0 && len(readers) < 8 {
				mr := &modelReader{off: rng.Int64N(int64(len(m.data) + 1))}
				open(mr)
				readers = append(readers, mr)
			}
			if len(readers) > 0 && rng.IntN(4) == 0 {
				mr := readers[rng.IntN(len(readers))]
				if rng.IntN(3) == 0 {
					mr.r.Resume()
				}
				m.read(t, mr, rng.IntN(40))
			}
		}
		how := rng.IntN(6)
		switch {
		case attempt == last || how <= 1:
			check(t, w.End(time.Now()))
		case how == 2: // killed
		default: // killed between data and record, or in a record
			if how != 3 {
				p := noise(rng, 1+rng.IntN(5000))
				_, err := unix.Pwrite(w.log, p, w.size)
				check(t, err)
				m.add(p, Stdout)
			}
			if how != 4 {
				_, err := unix.Pwrite(w.idx, noise(rng, 1+rng.IntN(recordSize-1)), recordPos(w.records))
				check(t, err)
			}
		}
		if how > 1 && attempt < last && rng.IntN(3) == 0 {
			crash(t, w, m, rng)
			for _, mr := range readers {
				open(mr)
			}
		}
		check(t, w.Close())
		for _, mr := range readers {
			if attempt < last && rng.IntN(2) == 0 {
				if mr.r.Ended() && rng.IntN(2) == 0 {
					continue // resumes later
				}
				mr.r.Resume()
				mr.r.WriterGone()
				m.read(t, mr, 1<<30)
				if mr.off != int64(len(m.data)) {
					t.Fatalf("attempt %d ended (%d): read up to %d of %d", attempt, how, mr.off, len(m.data))
				}
				if rng.IntN(2) == 0 {
					mr.r.Resume()
				}
			}
		}
	}
	readers = append(readers, &modelReader{})
	open(readers[len(readers)-1])
	for _, mr := range readers {
		if mr.r.Ended() && mr.off < int64(len(m.data)) {
			mr.r.Resume()
		}
		m.read(t, mr, 1<<30)
		if mr.off != int64(len(m.data)) || !mr.r.Ended() {
			t.Fatalf("read up to %d of %d, ended %v", mr.off, len(m.data), mr.r.Ended())
		}
		mr.r.Close()
	}
	info, err := Stat(dir)
	check(t, err)
	if info.Size != int64(len(m.data)) || !info.Ended {
		t.Fatalf("Stat: %+v, want %d bytes", info, len(m.data))
	}
	if kept := info.Size - info.Start; opt.MaxBytes > 0 && kept > opt.MaxBytes+minSlack+blockSize {
		t.Fatalf("%d bytes kept", kept)
	}
}

// crash does to the log of a killed Writer what a crash of the host may do.
func crash(t *testing.T, w *Writer, m *model, rng *rand.Rand) {
	t.Helper()
	if cut := min(rng.Int64N(3000), w.size-w.hdr.start); rng.IntN(2) == 0 {
		m.data = m.data[:w.size-cut]
		check(t, unix.Ftruncate(w.log, w.size-cut))
	}
	m.streams = make([]Stream, len(m.data))
	size := recordPos(w.records)
	switch rng.IntN(5) {
	case 0: // nothing
	case 1: // the end of the index is missing
		check(t, unix.Ftruncate(w.idx, size-rng.Int64N(size-recordPos(w.hdr.first)+1)))
	case 2: // or was not written
		n := rng.Int64N(min(size-recordPos(w.hdr.first), 1000) + 1)
		_, err := unix.Pwrite(w.idx, make([]byte, n), size-n)
		check(t, err)
	case 3: // the header
		_, err := unix.Pwrite(w.idx, make([]byte, headerSize), 0)
		check(t, err)
		m.drops = m.drops || w.hdr.start > 0
	case 4: // all of it
		check(t, unix.Ftruncate(w.idx, rng.Int64N(headerSize)))
	}
}

// TestAppendTo continues logs in all states in which one may be found.
func TestAppendTo(t *testing.T) {
	t.Parallel()
	type files struct{ log, idx string } // "-": there is none
	build := func(opt Options, fill func(w *Writer)) files {
		w, dir := newLog(t, opt)
		fill(w)
		log, err := os.ReadFile(filepath.Join(dir, LogName))
		check(t, err)
		idx, err := os.ReadFile(filepath.Join(dir, IndexName))
		check(t, err)
		return files{string(log), string(idx)}
	}
	ended := build(Options{}, func(w *Writer) {
		put(t, w, 1, Stdout, "one\n")
		put(t, w, 2, Stderr, "two\n")
		check(t, w.End(time.Unix(3, 0)))
	})
	killed := files{ended.log, ended.idx[:len(ended.idx)-recordSize]}
	capped := build(Options{MayShrink: true}, func(w *Writer) { put(t, w, 1, Stderr, "one\ntwo\n") })
	zeros := func(s string, from, n int) string { return s[:from] + strings.Repeat("\x00", n) + s[from+n:] }

	const both = "out:one\nerr:two\nnew\n"
	for name, test := range map[string]struct {
		files
		want    string
		damaged bool
	}{
		"nothing":           {files{"-", "-"}, "err:new\n", false},
		"no index":          {files{"one\ntwo\n", "-"}, "out:one\ntwo\nerr:new\n", false},
		"no log":            {files{"-", ended.idx}, "err:new\n", true},
		"empty":             {files{"", ""}, "err:new\n", false},
		"empty index":       {files{"one\ntwo\n", ""}, "out:one\ntwo\nerr:new\n", false},
		"half a header":     {files{"one\ntwo\n", ended.idx[:headerSize/2]}, "out:one\ntwo\nerr:new\n", false},
		"no records":        {files{"one\ntwo\n", ended.idx[:headerSize]}, "out:one\ntwo\nerr:new\n", false},
		"ended":             {ended, both, false},
		"killed":            {killed, both, false},
		"capped":            {capped, "err:one\ntwo\nnew\n", false},
		"half a record":     {files{ended.log, ended.idx[:len(ended.idx)-1]}, both, false},
		"unpublished":       {files{ended.log + "x\n", killed.idx}, "out:one\nerr:two\nout:x\nerr:new\n", false},
		"unpublished, half": {files{ended.log + "x\n", ended.idx[:len(ended.idx)-5]}, "out:one\nerr:two\nout:x\nerr:new\n", false},
		"behind an end":     {files{ended.log + "x\n", ended.idx}, "out:one\nerr:two\nout:x\nerr:new\n", false},
		"log cut in record": {files{ended.log[:6], ended.idx}, "out:one\nerr:twnew\n", true},
		"log cut":           {files{ended.log[:3], ended.idx}, "out:oneerr:new\n", true},
		"log empty":         {files{"", ended.idx}, "err:new\n", true},
		"header damaged":    {files{ended.log, zeros(ended.idx, 0, headerSize)}, both, false},
		"first damaged":     {files{ended.log, zeros(ended.idx, headerSize, recordSize)}, both, true},
		"last damaged":      {files{ended.log, zeros(killed.idx, headerSize+recordSize, recordSize)}, "out:one\ntwo\nerr:new\n", true},
		"junk":              {files{"one\ntwo\n", strings.Repeat("junk", 100)}, "out:one\ntwo\nerr:new\n", true},
	} {
		for _, opt := range []Options{{}, {MayShrink: true}, {MaxBytes: 100}} {
			dir := t.TempDir()
			if test.log != "-" {
				check(t, os.WriteFile(filepath.Join(dir, LogName), []byte(test.log), 0o600))
			}
			if test.idx != "-" {
				check(t, os.WriteFile(filepath.Join(dir, IndexName), []byte(test.idx), 0o600))
			}
			w := reopen(t, dir, opt)
			put(t, w, 1, Stderr, "new\n") // after a clock that went back
			check(t, w.End(time.Unix(4, 0)))
			check(t, w.Close())
			r := openLog(t, dir)
			_, chunks := read(t, r)
			var got string
			var last time.Time
			var of Stream
			for _, c := range chunks {
				if c.Stream != of {
					got, of = got+map[Stream]string{Stdout: "out:", Stderr: "err:"}[c.Stream], c.Stream
				}
				got += string(c.Data)
				if c.Time.Before(last) {
					t.Errorf("%s: %v after %v", name, c.Time, last)
				}
				last = c.Time
			}
			if got != test.want || !r.Ended() || r.Damaged() != test.damaged {
				t.Errorf("%s: got %q, ended %v, damaged %v; want %q, damaged %v", name, got, r.Ended(), r.Damaged(), test.want, test.damaged)
			}
			for _, f := range []string{LogName, IndexName} {
				st, err := os.Stat(filepath.Join(dir, f))
				if check(t, err); st.Mode() != 0o600 {
					t.Errorf("%s: %s has mode %v", name, f, st.Mode())
				}
			}
		}
	}
}

// TestAppendRefused leaves a log that cannot be continued as it is.
func TestAppendRefused(t *testing.T) {
	t.Parallel()
	var h [headerSize]byte
	header{}.encode(&h)
	h[8] = version + 1
	seal(h[:])
	contents := func(dir string) (all string) {
		for _, f := range []string{LogName, IndexName} {
			b, err := os.ReadFile(dir + "/" + f)
			check(t, err)
			all += string(b) + "|"
		}
		return all
	}
	newerfd, newer := mountFS(t, "tmpfs", "1m")
	check(t, os.WriteFile(newer+"/"+LogName, []byte("output"), 0o600))
	check(t, os.WriteFile(newer+"/"+IndexName, h[:], 0o600))

	ramfd, ram := mountFS(t, "ramfs", "")
	w, err := Create(ramfd, Options{})
	check(t, err)
	put(t, w, 1, Stdout, "output")
	check(t, w.Close())

	for _, test := range []struct {
		dirfd int
		dir   string
		opt   Options
		want  error
	}{
		{newerfd, newer, Options{Append: true}, ErrVersion},
		{newerfd, newer, Options{}, unix.EEXIST},
		{ramfd, ram, Options{Append: true, MaxBytes: 1}, ErrNoHoles},
		{ramfd, ram, Options{Append: true, MayShrink: true}, ErrNoHoles},
	} {
		before := contents(test.dir)
		if _, err := Create(test.dirfd, test.opt); !errors.Is(err, test.want) {
			t.Errorf("%+v: %v, want %v", test.opt, err, test.want)
		}
		if after := contents(test.dir); after != before {
			t.Errorf("%+v: the log was changed", test.opt)
		}
	}
	w = reopen(t, ram, Options{})
	put(t, w, 1, Stdout, ", more")
	if got, _ := read(t, openLog(t, ram)); string(got) != "output, more" {
		t.Errorf("got %q", got)
	}
	emptyfd, empty := mountFS(t, "ramfs", "")
	if _, err := Create(emptyfd, Options{Append: true, MayShrink: true}); !errors.Is(err, ErrNoHoles) {
		t.Errorf("no log: %v", err)
	}
	if list, err := os.ReadDir(empty); err != nil || len(list) > 0 {
		t.Errorf("%v left, %v", list, err)
	}
	fifo := t.TempDir()
	check(t, unix.Mkfifo(filepath.Join(fifo, LogName), 0o600))
	if _, err := Create(openDir(t, fifo), Options{Append: true}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a pipe as log: %v", err)
	}
}

// TestAppendUnlimited appends with a limit to a log whose readers know that
// there is none.
func TestAppendUnlimited(t *testing.T) {
	t.Parallel()
	w, dir := newLog(t, Options{})
	big := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	put(t, w, 1, Stdout, string(big))
	r := openLog(t, dir)
	check(t, w.Close())
	w = reopen(t, dir, Options{MaxBytes: 1000, MayShrink: true})
	put(t, w, 2, Stdout, string(big))
	if freed, err := w.Shrink(); freed || err != nil {
		t.Fatalf("Shrink: %v, %v", freed, err)
	}
	got, _ := read(t, r)
	equal(t, "all", got, slices.Concat(big, big))
}

// TestAppendGivesBack has the former Writer killed when it had written the new
// start and had not yet given back what is before it.
func TestAppendGivesBack(t *testing.T) {
	t.Parallel()
	dirfd, dir := mountFS(t, "tmpfs", "4m")
	w, err := Create(dirfd, Options{MayShrink: true})
	check(t, err)
	const n = 5000
	for i := range int64(n) {
		put(t, w, i, Stdout, "0123456789\n")
	}
	w.hdr = header{flags: flagCapped, start: (n - 10) * 11, first: n - 10}
	check(t, w.writeHeader())
	check(t, w.Close())
	w = reopen(t, dir, Options{MayShrink: true})
	for _, f := range []string{LogName, IndexName} {
		if a := allocated(t, dir+"/"+f); a > 3*blockSize {
			t.Errorf("%s takes %d bytes", f, a)
		}
	}
	check(t, w.End(time.Unix(n, 0)))
	r := openLog(t, dir)
	got, _ := read(t, r)
	equal(t, "kept", got, bytes.Repeat([]byte("0123456789\n"), 10))
	if !r.Ended() || r.Damaged() {
		t.Fatalf("ended %v, damaged %v", r.Ended(), r.Damaged())
	}
}

func TestResume(t *testing.T) {
	t.Parallel()
	w, dir := newLog(t, Options{})
	put(t, w, 10, Stdout, "a1\na2\n")
	early, late := openLog(t, dir), openLog(t, dir)
	next := func(r *Reader, want string) {
		t.Helper()
		c, err := r.Next()
		if err != nil || string(c.Data) != want {
			t.Fatalf("got %q, %v, want %q", c.Data, err, want)
		}
	}
	next(early, "a1\na2\n")
	eof(t, early, false)
	early.Resume() // before an end: to no effect
	check(t, w.End(time.Unix(11, 0)))
	check(t, w.Close())
	eof(t, early, true)
	eof(t, early, true)

	w = reopen(t, dir, Options{})
	eof(t, early, true) // the next attempt has no output yet
	early.Resume()
	eof(t, early, false)
	put(t, w, 20, Stdout, "b1\n")
	next(early, "b1\n")
	eof(t, early, false)
	check(t, w.End(time.Unix(21, 0)))
	check(t, w.Close())
	eof(t, early, true)
	early.Resume()

	w = reopen(t, dir, Options{}) // an attempt without output
	check(t, w.End(time.Unix(22, 0)))
	check(t, w.Close())
	eof(t, early, true)
	early.Resume()
	eof(t, early, false)

	w = reopen(t, dir, Options{}) // one that is killed between data and record
	_, err := unix.Pwrite(w.log, []byte("c1\n"), w.size)
	check(t, err)
	check(t, w.Close())
	eof(t, early, false)
	info, err := Stat(dir)
	if check(t, err); info.Ended || info.Size != 12 {
		t.Fatalf("Stat: %+v", info)
	}
	next(late, "a1\na2\n")
	next(late, "b1\n")  // over an end
	eof(t, late, false) // what is behind the last end is not published
	late.WriterGone()
	next(late, "c1\n")
	eof(t, late, false)

	early.WriterGone()
	early.Resume() // its writer lives: what is not published may yet be
	eof(t, early, false)
	w = reopen(t, dir, Options{})
	next(early, "c1\n")
	_, err = unix.Pwrite(w.log, []byte("d"), w.size)
	check(t, err)
	eof(t, late, false) // it was not there when the writer was gone
	late.Resume()
	eof(t, late, false)
	put(t, w, 30, Stderr, "d1\nd2\n")
	next(late, "d1\nd2\n")
	check(t, w.End(time.Unix(31, 0)))
	eof(t, late, true)
	next(early, "d1\nd2\n")
	eof(t, early, true)

	const all = "a1\na2\nb1\nc1\nd1\nd2\n"
	info, err = Stat(dir)
	if check(t, err); !info.Ended || info.Size != int64(len(all)) || !info.Last.Equal(time.Unix(31, 0)) && info.Last.Before(time.Unix(31, 0)) {
		t.Fatalf("Stat: %+v", info)
	}
	r := openLog(t, dir)
	got, _ := read(t, r)
	equal(t, "all", got, []byte(all))
	for off := range len(all) + 1 {
		check(t, r.From(int64(off)))
		got, _ := read(t, r)
		equal(t, "from", got, []byte(all[off:]))
		eof(t, r, true)
	}
	for n := range 8 {
		check(t, r.Tail(t.Context(), int64(n)))
		got, _ := read(t, r)
		want := ""
		if n > 0 {
			want = string(naiveTail([]byte(all), n))
		}
		equal(t, "tail", got, []byte(want))
		eof(t, r, true)
	}
	r.Only(Stdout)
	check(t, r.Tail(t.Context(), 2))
	got, _ = read(t, r)
	equal(t, "tail of stdout", got, []byte("b1\nc1\n"))
}

// TestSinceUntil reads windows of time out of a log of three attempts.
func TestSinceUntil(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	type piece struct {
		sec  int64
		text string
	}
	var pieces []piece
	for attempt := range int64(3) {
		w := reopen(t, dir, Options{})
		for i := range int64(3) {
			p := piece{attempt*10 + i*2, strconv.FormatInt(attempt*10+i*2, 10) + "\n"}
			put(t, w, p.sec, Stdout, p.text)
			pieces = append(pieces, p)
		}
		check(t, w.End(time.Unix(attempt*10+5, 0)))
		check(t, w.Close())
	}
	r := openLog(t, dir)
	for since := int64(-1); since < 30; since++ {
		for until := int64(-1); until < 30; until++ {
			var want []string
			for _, p := range pieces {
				if since <= p.sec && p.sec < until {
					want = append(want, p.text)
				}
			}
			r.Until(time.Unix(until, 0))
			check(t, r.Since(time.Unix(since, 0)))
			got, _ := read(t, r)
			equal(t, "window", got, []byte(strings.Join(want, "")))
			if !r.Done() {
				t.Fatalf("from %d until %d: not done", since, until)
			}
			eof(t, r, r.Ended())
			if since < 0 {
				check(t, r.Tail(t.Context(), 2))
				got, _ = read(t, r)
				equal(t, "tail", got, []byte(strings.Join(want[max(0, len(want)-2):], "")))
			}
			r.Until(time.Time{})
			got, _ = read(t, r)
			if n := len(got); r.Done() || since < 0 && n == 0 != (until > 24) {
				t.Fatalf("from %d, after until %d was taken back: %d bytes, done %v", since, until, n, r.Done())
			}
			eof(t, r, true)
		}
	}
	for _, far := range []time.Time{time.Unix(1<<40, 0), time.Unix(-1<<40, 0)} {
		r.Until(far)
		check(t, r.From(0))
		got, _ := read(t, r)
		if past := far.Before(time.Unix(0, 0)); (len(got) == 0) != past || r.Done() != past {
			t.Fatalf("until %v: %d bytes, done %v", far, len(got), r.Done())
		}
		r.Until(time.Time{})
		check(t, r.Since(far))
		if got, _ := read(t, r); (len(got) == 0) == far.Before(time.Unix(0, 0)) || !r.Ended() {
			t.Fatalf("since %v: %d bytes, ended %v", far, len(got), r.Ended())
		}
	}
}

// TestUntilMerge has a piece that Next would join with the one before it.
func TestUntilMerge(t *testing.T) {
	t.Parallel()
	w, dir := newLog(t, Options{})
	start := time.Now().Add(time.Hour)
	for i := range 10 {
		_, err := w.Append([]byte{'0' + byte(i)}, Stdout, start.Add(time.Duration(i)*time.Microsecond))
		check(t, err)
	}
	r := openLog(t, dir)
	r.Until(start.Add(5 * time.Microsecond))
	got, _ := read(t, r)
	equal(t, "before", got, []byte("01234"))
	if !r.Done() {
		t.Fatal("not done")
	}
}

// TestUntilLate has no output after the moment, which is reached all the same.
func TestUntilLate(t *testing.T) {
	t.Parallel()
	w, dir := newLog(t, Options{})
	put(t, w, 1, Stdout, "x")
	r := openLog(t, dir)
	if _, ok := r.DoneAt(); ok {
		t.Fatal("a moment without Until")
	}
	r.Until(time.Now().Add(time.Hour))
	read(t, r)
	if r.Done() {
		t.Fatal("done an hour early")
	}
	r.Until(time.Now().Add(-time.Hour))
	if at, ok := r.DoneAt(); !ok || at.After(time.Now()) {
		t.Fatalf("done at %v, %v", at, ok)
	}
	if eof(t, r, false); !r.Done() {
		t.Fatal("not done")
	}
}

// TestShrink has a full disk on which the newest output takes the place of the
// oldest, over several attempts.
func TestShrink(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 30, 3000, 60_000} { // of one write, about
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			t.Parallel()
			const disk = 512 << 10
			dirfd, dir := mountFS(t, "tmpfs", strconv.Itoa(disk))
			opt := Options{MayShrink: true, Append: true}
			w, err := Create(dirfd, opt)
			check(t, err)
			defer func() { w.Close() }()
			pr, pw := pipe(t)
			rng := rand.New(rand.NewPCG(uint64(size), 1))
			readers := []*modelReader{{r: openLog(t, dir)}, {r: openLog(t, dir)}, {r: openLog(t, dir)}}
			m := &model{drops: true}
			shrunk := map[string]int{}
			shrink := func(err error) {
				t.Helper()
				if err == nil {
					return
				}
				if !errors.Is(err, unix.ENOSPC) {
					t.Fatal(err)
				}
				freed, err := w.Shrink()
				if check(t, err); !freed {
					t.Fatalf("nothing freed: %d bytes kept, %d records", w.size-w.hdr.start, w.records-w.hdr.first)
				}
				shrunk["all"]++
			}
			writes := min(3*disk/size, 60_000)
			for i := range writes {
				p := noise(rng, size/2+1+rng.IntN(size))
				s := Stream(1 + rng.IntN(2))
				m.add(p, s)
				if i%2 == 0 {
					for len(p) > 0 {
						n, err := w.Append(p, s, time.Now())
						p = p[n:]
						shrink(err)
					}
				} else {
					for len(p) > 0 {
						k, err := unix.Write(pw, p)
						check(t, err)
						p = p[k:]
						for k > 0 {
							n, err := w.Drain(pr, s, maxPiece, time.Now())
							k -= n
							shrink(err)
						}
					}
				}
				if mr := readers[rng.IntN(2)]; rng.IntN(2+200/size) == 0 && mr == readers[0] || rng.IntN(max(writes/20, 1)) == 0 {
					m.read(t, mr, 1+rng.IntN(50))
				}
				if rng.IntN(max(writes/4, 1)) == 0 {
					for w.End(time.Now()) != nil {
						shrink(unix.ENOSPC)
					}
					check(t, w.Close())
					w, err = Create(dirfd, opt)
					check(t, err)
					for _, mr := range readers {
						mr.r.Resume()
					}
				}
			}
			for w.End(time.Now()) != nil {
				shrink(unix.ENOSPC)
			}
			if freed, err := w.Shrink(); freed || err != nil {
				t.Fatalf("after End: %v, %v", freed, err)
			}
			if shrunk["all"] == 0 {
				t.Fatal("the disk was never full")
			}
			for i, mr := range readers {
				m.read(t, mr, 1<<30)
				if mr.off != int64(len(m.data)) || !mr.r.Ended() || mr.r.Damaged() {
					t.Fatalf("reader %d: up to %d of %d, ended %v, damaged %v", i, mr.off, len(m.data), mr.r.Ended(), mr.r.Damaged())
				}
			}
			info, err := Stat(dir)
			check(t, err)
			used := allocated(t, dir+"/"+LogName) + allocated(t, dir+"/"+IndexName)
			if info.Size != int64(len(m.data)) || info.Start == 0 || used < disk/3 {
				t.Fatalf("Stat: %+v, %d bytes of disk used: more than needed was dropped", info, used)
			}
			t.Logf("%d of %d bytes kept, shrunk %d times", info.Size-info.Start, info.Size, shrunk["all"])
		})
	}
}

// TestShrinkNothing has another's files fill the disk: what little output there
// is is kept, and comes through when there is room.
func TestShrinkNothing(t *testing.T) {
	t.Parallel()
	dirfd, dir := mountFS(t, "tmpfs", "400k")
	w, err := Create(dirfd, Options{MayShrink: true})
	check(t, err)
	defer w.Close()
	if freed, err := w.Shrink(); freed || err != nil {
		t.Fatalf("an empty log: %v, %v", freed, err)
	}
	want := noise(rand.New(rand.NewPCG(1, 1)), 5*blockSize)
	put(t, w, 1, Stdout, string(want))
	ballast, err := os.Create(dir + "/ballast")
	check(t, err)
	defer ballast.Close()
	if _, err := ballast.Write(make([]byte, 1<<20)); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	n, err := w.Append(want, Stdout, time.Unix(2, 0))
	if !errors.Is(err, unix.ENOSPC) || n > 0 {
		t.Fatalf("on a full disk: %d, %v", n, err)
	}
	if freed, err := w.Shrink(); freed || err != nil {
		t.Fatalf("little output: %v, %v", freed, err)
	}
	check(t, ballast.Truncate(0))
	put(t, w, 3, Stdout, string(want))
	got, _ := read(t, openLog(t, dir))
	equal(t, "all", got, slices.Concat(want, want))
}
