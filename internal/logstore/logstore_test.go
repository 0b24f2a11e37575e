package logstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/testenv"
)

// TestMain makes the test binary a writer or a source of lines as well, for
// tests that need a process of their own.
func TestMain(m *testing.M) {
	switch os.Getenv("LOGSTORE_TEST") {
	case "drain": // standard input into the log in the working directory
		fatal := func(err error) {
			if err != nil {
				println(err.Error())
				os.Exit(1)
			}
		}
		dir, err := unix.Open(".", unix.O_PATH|unix.O_DIRECTORY, 0)
		fatal(err)
		w, err := Create(dir, Options{})
		fatal(err)
		fatal(drainAll(w, 0, Stdout, func(int) {}))
		fatal(w.End(time.Now()))
		os.Exit(0)
	case "lines": // so many lines of 100 bytes, one write each
		n, _ := strconv.Atoi(os.Getenv("LOGSTORE_LINES"))
		line := []byte(strings.Repeat("x", 99) + "\n")
		for range n {
			if _, err := unix.Write(1, line); err != nil {
				os.Exit(1)
			}
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// drainAll does what the shim's loop does with one pipe, until its end.
func drainAll(w *Writer, fd int, s Stream, took func(n int)) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return err
		}
		n, err := w.Drain(fd, s, maxPiece, time.Now())
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		took(n)
	}
}

func openDir(t testing.TB, dir string) int {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// newLog returns a Writer and its directory.
func newLog(t testing.TB, opt Options) (*Writer, string) {
	t.Helper()
	dir := t.TempDir()
	w, err := Create(openDir(t, dir), opt)
	check(t, err)
	t.Cleanup(func() { _ = w.Close() })
	return w, dir
}

// mountFS returns a file system of its own that is mounted nowhere, and so
// gone with its descriptor.
func mountFS(t testing.TB, fstype, size string) (dirfd int, dir string) {
	t.Helper()
	testenv.RequireRoot(t)
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	testenv.Require(t, err == nil, "a kernel with fsopen and %s: %v", fstype, err)
	defer unix.Close(fs)
	if size != "" {
		check(t, unix.FsconfigSetString(fs, "size", size))
	}
	check(t, unix.FsconfigCreate(fs))
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd, "/proc/self/fd/" + strconv.Itoa(fd)
}

func openLog(t testing.TB, dir string) *Reader {
	t.Helper()
	r, err := Open(dir)
	check(t, err)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// read returns what r has now, with the chunks' data copied.
func read(t testing.TB, r *Reader) (all []byte, chunks []Chunk) {
	t.Helper()
	for {
		c, err := r.Next()
		if err == io.EOF {
			return all, chunks
		}
		check(t, err)
		if len(c.Data) > maxChunk || (len(c.Data) == 0) != (c.Dropped > 0) {
			t.Fatalf("chunk of %d bytes, %d dropped", len(c.Data), c.Dropped)
		}
		c.Data = bytes.Clone(c.Data)
		all = append(all, c.Data...)
		chunks = append(chunks, c)
	}
}

func of(s Stream, chunks []Chunk) (b []byte) {
	for _, c := range chunks {
		if c.Stream == s {
			b = append(b, c.Data...)
		}
	}
	return b
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: got %d bytes %.60q, want %d bytes %.60q", what, len(got), got, len(want), want)
	}
}

func pipe(t testing.TB) (r, w int) {
	t.Helper()
	var p [2]int
	check(t, unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
	t.Cleanup(func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) })
	return p[0], p[1]
}

func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = "abcdefg \n"[rng.IntN(9)]
	}
	return b
}

// TestRoundTrip writes random pieces of both streams in every way there is and
// reads them from random places, while they are written and afterwards.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 1))
		w, dir := newLog(t, Options{})
		pr, pw := pipe(t)
		live := openLog(t, dir)
		var liveChunks []Chunk
		var all []byte
		want := map[Stream][]byte{}
		start := time.Unix(1_700_000_000, 0)
		for i := range 150 {
			s := Stream(1 + rng.IntN(2))
			p := noise(rng, 1+rng.IntN(60))
			if rng.IntN(10) == 0 {
				p = noise(rng, 1+rng.IntN(60_000))
			}
			// The clock goes back at times; the log's must not.
			now := start.Add(time.Duration(i*300-rng.IntN(1000)) * time.Microsecond)
			if rng.IntN(2) == 0 {
				n, err := w.Append(p, s, now)
				if check(t, err); n != len(p) {
					t.Fatalf("took %d of %d bytes", n, len(p))
				}
			} else {
				k, err := unix.Write(pw, p)
				check(t, err)
				p = p[:k]
				for n := 0; n < k; {
					d, err := w.Drain(pr, s, maxPiece, now)
					check(t, err)
					n += d
				}
			}
			all = append(all, p...)
			want[s] = append(want[s], p...)
			if rng.IntN(5) == 0 {
				_, c := read(t, live)
				liveChunks = append(liveChunks, c...)
				if live.Offset() != w.Size() {
					t.Fatalf("read up to %d of %d", live.Offset(), w.Size())
				}
			}
		}
		if live.Ended() {
			t.Fatal("ended before its end")
		}
		if n, err := w.Drain(pr, Stdout, maxPiece, start); n != 0 || err != nil {
			t.Fatalf("empty pipe: %d, %v", n, err)
		}
		if !w.Dirty() {
			t.Fatal("not dirty")
		}
		check(t, w.End(start))
		check(t, w.End(start))
		check(t, w.Sync())
		if w.Dirty() {
			t.Fatal("dirty after Sync")
		}
		if _, err := w.Append([]byte("x"), Stdout, start); !errors.Is(err, ErrEnded) {
			t.Fatalf("Append after End: %v", err)
		}
		_, c := read(t, live)
		liveChunks = append(liveChunks, c...)
		got, chunks := read(t, openLog(t, dir))
		equal(t, "all", got, all)
		for _, list := range [][]Chunk{liveChunks, chunks} {
			var off, last int64
			for _, c := range list {
				if c.Offset != off || c.Time.UnixNano() < last {
					t.Fatalf("chunk at %d, %v: want offset %d and no earlier time", c.Offset, c.Time, off)
				}
				off, last = off+int64(len(c.Data)), c.Time.UnixNano()
			}
			equal(t, "stdout", of(Stdout, list), want[Stdout])
			equal(t, "stderr", of(Stderr, list), want[Stderr])
		}
		for _, s := range []Stream{Stdout, Stderr} {
			r := openLog(t, dir)
			r.Only(s)
			got, _ := read(t, r)
			equal(t, "filtered", got, want[s])
			if !r.Ended() || r.Damaged() {
				t.Fatalf("ended %v, damaged %v", r.Ended(), r.Damaged())
			}
		}
		r := openLog(t, dir)
		for range 50 {
			off := rng.Int64N(int64(len(all)) + 1)
			check(t, r.From(off))
			got, list := read(t, r)
			equal(t, "from an offset", got, all[off:])
			skipped := 0 // of stderr before off
			for _, c := range chunks {
				if c.Stream == Stderr && c.Offset < off {
					skipped += int(min(off-c.Offset, int64(len(c.Data))))
				}
			}
			equal(t, "stderr from an offset", of(Stderr, list), want[Stderr][skipped:])
		}
		info, err := Stat(dir)
		check(t, err)
		if info.Size != int64(len(all)) || info.Start != 0 || !info.Ended || info.Last.UnixNano() != w.last {
			t.Fatalf("Stat: %+v", info)
		}
	}
}

func TestEmptyAndMissing(t *testing.T) {
	t.Parallel()
	if _, err := Open(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("no log: %v", err)
	}
	w, dir := newLog(t, Options{})
	if _, err := Create(openDir(t, dir), Options{}); !errors.Is(err, os.ErrExist) {
		t.Fatalf("second Create: %v", err)
	}
	for _, name := range []string{LogName, IndexName} {
		st, err := os.Stat(filepath.Join(dir, name))
		if check(t, err); st.Mode() != 0o600 {
			t.Fatalf("%s: mode %v", name, st.Mode())
		}
	}
	r := openLog(t, dir)
	if _, err := r.Next(); err != io.EOF || r.Ended() {
		t.Fatalf("empty: %v, ended %v", err, r.Ended())
	}
	check(t, r.Tail(t.Context(), 3))
	check(t, r.Since(time.Now()))
	check(t, w.End(time.Now()))
	if _, err := r.Next(); err != io.EOF || !r.Ended() {
		t.Fatalf("ended: %v, ended %v", err, r.Ended())
	}
	if r.From(-1) == nil {
		t.Fatal("negative offset")
	}
	check(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	check(t, os.Rename(filepath.Join(dir, "fifo"), filepath.Join(dir, IndexName)))
	if _, err := Open(dir); !errors.Is(err, unix.EINVAL) {
		t.Fatalf("a pipe as index: %v", err)
	}
	if _, err := Create(openDir(t, t.TempDir()), Options{MaxBytes: -1}); !errors.Is(err, unix.EINVAL) {
		t.Fatalf("negative limit: %v", err)
	}
}

// TestSources drains what is not a pipe.
func TestSources(t *testing.T) {
	t.Parallel()
	t.Run("socket", func(t *testing.T) {
		w, dir := newLog(t, Options{})
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		defer unix.Close(p[0])
		if n, err := w.Drain(p[0], Stdout, maxPiece, time.Now()); n != 0 || err != nil {
			t.Fatalf("empty: %d, %v", n, err)
		}
		_, err = unix.Write(p[1], []byte("hello"))
		check(t, err)
		check(t, unix.Close(p[1]))
		check(t, drainAll(w, p[0], Stderr, func(int) {}))
		_, chunks := read(t, openLog(t, dir))
		equal(t, "stderr", of(Stderr, chunks), []byte("hello"))
	})
	t.Run("terminal", func(t *testing.T) {
		w, dir := newLog(t, Options{})
		master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		testenv.Require(t, err == nil, "pseudo-terminals: %v", err)
		defer unix.Close(master)
		check(t, unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0))
		n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
		check(t, err)
		slave, err := unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		check(t, err)
		_, err = unix.Write(slave, []byte("hello\n"))
		check(t, err)
		check(t, unix.Close(slave))
		check(t, drainAll(w, master, Stdout, func(int) {}))
		got, _ := read(t, openLog(t, dir))
		equal(t, "terminal", got, []byte("hello\r\n"))
	})
}

// naiveTail is what Tail should do.
func naiveTail(b []byte, lines int) []byte {
	for i := len(b) - 2; i >= 0; i-- {
		if b[i] == '\n' {
			if lines--; lines == 0 {
				return b[i+1:]
			}
		}
	}
	return b
}

func TestTail(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(7, 7))
	for i := range 15 {
		w, dir := newLog(t, Options{})
		now := time.Now()
		var all []byte
		want := map[Stream][]byte{}
		for range rng.IntN(300) {
			s, p := Stream(1+rng.IntN(2)), noise(rng, 1+rng.IntN(20))
			if rng.IntN(50) == 0 {
				p = noise(rng, maxChunk+rng.IntN(3*maxChunk))
			}
			_, err := w.Append(p, s, now)
			check(t, err)
			all, want[s] = append(all, p...), append(want[s], p...)
		}
		if i%2 == 0 {
			check(t, w.End(now))
		}
		for _, lines := range []int{1, 2, 3, 10, 100, 1000, 100_000} {
			r := openLog(t, dir)
			check(t, r.Tail(t.Context(), int64(lines)))
			got, _ := read(t, r)
			equal(t, "both streams", got, naiveTail(all, lines))
			for s := range want {
				r := openLog(t, dir)
				r.Only(s)
				check(t, r.Tail(t.Context(), int64(lines)))
				got, _ := read(t, r)
				equal(t, "one stream", got, naiveTail(want[s], lines))
			}
		}
		r := openLog(t, dir)
		check(t, r.Tail(t.Context(), 0))
		if got, _ := read(t, r); len(got) != 0 {
			t.Fatalf("no lines: %q", got)
		}
	}
	w, dir := newLog(t, Options{})
	_, err := w.Append([]byte("line\n"), Stdout, time.Now())
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := openLog(t, dir).Tail(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
}

func TestSince(t *testing.T) {
	t.Parallel()
	w, dir := newLog(t, Options{})
	start := time.Unix(1_700_000_000, 0)
	const n = 1000
	for i := range n {
		_, err := w.Append([]byte(strconv.Itoa(i)+"\n"), Stdout, start.Add(time.Duration(i)*time.Second))
		check(t, err)
	}
	r := openLog(t, dir)
	for _, i := range []int{-5, 0, 1, 126, 127, 128, 500, n - 1, n, n + 7} {
		check(t, r.Since(start.Add(time.Duration(i)*time.Second)))
		got, _ := read(t, r)
		want := ""
		if i < n {
			want = strconv.Itoa(max(i, 0)) + "\n"
		}
		if first, _, _ := strings.Cut(string(got), "\n"); first != strings.TrimSuffix(want, "\n") {
			t.Fatalf("since %d: got %.20q", i, got)
		}
	}
}

// checkWhole fails unless a reader of dir, once the writer is gone, gets all
// bytes of log once and in order, whatever the index says.
func checkWhole(t testing.TB, dir string) *Reader {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(dir, LogName))
	check(t, err)
	r := openLog(t, dir)
	_, chunks := read(t, r)
	r.WriterGone()
	_, rest := read(t, r)
	var off int64
	for _, c := range slices.Concat(chunks, rest) {
		if c.Offset != off+c.Dropped {
			t.Fatalf("chunk at %d, %d dropped: want offset %d", c.Offset, c.Dropped, off)
		}
		if c.Dropped == 0 {
			equal(t, "chunk", c.Data, log[c.Offset:c.Offset+int64(len(c.Data))])
		}
		off = c.Offset + int64(len(c.Data))
	}
	if off != int64(len(log)) {
		t.Fatalf("read up to %d of %d", off, len(log))
	}
	return r
}

// TestCrash cuts and damages both files of a small log at every byte.
func TestCrash(t *testing.T) {
	t.Parallel()
	w, dir := newLog(t, Options{})
	var ends []int
	for i, p := range []string{"one\n", "err\n", "two\n", "x", "three and more\n", "E\n"} {
		_, err := w.Append([]byte(p), Stream(1+i%2), time.Unix(int64(i), 0))
		check(t, err)
		ends = append(ends, int(w.Size()))
	}
	check(t, w.End(time.Unix(9, 0)))
	log, err := os.ReadFile(filepath.Join(dir, LogName))
	check(t, err)
	idx, err := os.ReadFile(filepath.Join(dir, IndexName))
	check(t, err)
	_, intact := read(t, openLog(t, dir))

	_, crashed := mountFS(t, "tmpfs", "1m")
	var former *Reader
	try := func(log, idx []byte) *Reader {
		t.Helper()
		check(t, os.WriteFile(filepath.Join(crashed, LogName), log, 0o600))
		check(t, os.WriteFile(filepath.Join(crashed, IndexName), idx, 0o600))
		if former != nil {
			former.Close()
		}
		r := checkWhole(t, crashed)
		former = r
		check(t, r.Tail(t.Context(), 2))
		got, _ := read(t, r)
		equal(t, "tail", got, naiveTail(log, 2))
		for off := range len(log) {
			check(t, r.From(int64(off)))
			got, _ := read(t, r)
			equal(t, "from", got, log[off:])
		}
		check(t, r.Since(time.Unix(3, 0)))
		read(t, r)
		_, err := Stat(crashed)
		check(t, err)
		return r
	}
	for n := range len(idx) + 1 {
		r := try(log, idx[:n])
		if whole := n == len(idx); r.Ended() != whole {
			t.Fatalf("index of %d bytes: ended %v", n, r.Ended())
		}
		// What records speak of is known as ever.
		if k := (n - headerSize) / recordSize; k > 0 && k <= len(ends) {
			check(t, r.From(0))
			_, chunks := read(t, r)
			for i := range k {
				if c := chunks[i]; c.Stream != intact[i].Stream || !c.Time.Equal(intact[i].Time) {
					t.Fatalf("index of %d bytes: chunk %d is %v at %v", n, i, c.Stream, c.Time)
				}
			}
		}
	}
	for n := range log {
		try(log[:n], idx)
	}
	for i := range idx {
		for _, x := range []byte{0x01, 0x80, 0xff} {
			bad := bytes.Clone(idx)
			bad[i] ^= x
			if r := try(log, bad); !r.Damaged() {
				t.Fatalf("damage at byte %d went unseen", i)
			}
		}
	}
	try(log, make([]byte, len(idx)))
	try(log, bytes.Repeat([]byte("junk"), 100))

	newer := bytes.Clone(idx)
	newer[8] = version + 1
	seal(newer[:headerSize])
	check(t, os.WriteFile(filepath.Join(crashed, IndexName), newer, 0o600))
	if _, err := Open(crashed); !errors.Is(err, ErrVersion) {
		t.Fatalf("newer version: %v", err)
	}
}

// TestLies gives readers an index that is well-formed and wrong.
func TestLies(t *testing.T) {
	t.Parallel()
	data := func(off, n int64) record {
		return record{offset: off, length: n, stream: Stderr, kind: kindData, time: 5}
	}
	for name, recs := range map[string][]record{
		"overlap":        {data(0, 10), data(5, 10), data(0, 3), data(15, 5)},
		"gap":            {data(0, 2), data(10, 2)},
		"beyond":         {data(0, 2), data(1<<40, 1<<31), data(2, 1<<31)},
		"early end":      {data(0, 2), {offset: 2, kind: kindEnd}, data(2, 2)},
		"late end":       {data(0, 2), {offset: 1 << 40, kind: kindEnd}},
		"backwards":      {data(15, 5), data(10, 5), data(5, 5), data(0, 5)},
		"largest":        {data(1<<63-1-1<<32, 1<<32-1)},
		"times reversed": {{0, 9, 2, Stdout, kindData}, {2, 8, 2, Stdout, kindData}, {4, 1, 2, Stdout, kindData}},
	} {
		for _, hdr := range []header{{}, {start: 7}, {start: 1 << 40, first: 1 << 40}, {flags: flagCapped, start: 3, first: 1}} {
			dir := t.TempDir()
			var h [headerSize]byte
			hdr.encode(&h)
			idx := h[:]
			for _, rec := range recs {
				var b [recordSize]byte
				rec.encode(&b)
				idx = append(idx, b[:]...)
			}
			check(t, os.WriteFile(filepath.Join(dir, LogName), []byte("0123456789abcdefghij"), 0o600))
			check(t, os.WriteFile(filepath.Join(dir, IndexName), idx, 0o600))
			t.Log(name, hdr)
			r := checkWhole(t, dir)
			check(t, r.Tail(t.Context(), 1))
			check(t, r.Since(time.Unix(0, 5)))
			read(t, r)
		}
	}
}

// TestHalfRecord has the index end with a part of a record, as a full disk may
// leave it, and goes on.
func TestHalfRecord(t *testing.T) {
	t.Parallel()
	w, dir := newLog(t, Options{})
	_, err := w.Append([]byte("one\n"), Stdout, time.Now())
	check(t, err)
	_, err = unix.Pwrite(w.idx, []byte("half a record"), recordPos(w.records))
	check(t, err)
	r := openLog(t, dir)
	got, _ := read(t, r)
	equal(t, "before", got, []byte("one\n"))
	_, err = w.Append([]byte("two\n"), Stderr, time.Now())
	check(t, err)
	check(t, w.End(time.Now()))
	got, _ = read(t, r)
	equal(t, "after", got, []byte("two\n"))
	if !r.Ended() || r.Damaged() {
		t.Fatalf("ended %v, damaged %v", r.Ended(), r.Damaged())
	}
}

// TestFullDisk fills a file system at every step and gives it a page at a time.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	page := int64(os.Getpagesize())
	for _, source := range []string{"pipe", "append", "socket"} {
		t.Run(source, func(t *testing.T) {
			dirfd, dir := mountFS(t, "tmpfs", "400k")
			w, err := Create(dirfd, Options{})
			check(t, err)
			defer w.Close()
			ballast, err := os.OpenFile(dir+"/ballast", os.O_CREATE|os.O_WRONLY, 0o600)
			check(t, err)
			defer ballast.Close()
			filled, err := ballast.Write(make([]byte, 1<<20))
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("filling the disk: %v", err)
			}
			free := int64(filled)

			pr, pw := pipe(t)
			if source == "socket" {
				p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				check(t, err)
				t.Cleanup(func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) })
				pr, pw = p[0], p[1]
			}
			rng := rand.New(rand.NewPCG(3, 4))
			var sent []byte
			var took int64
			full := map[string]int{}
			retry := func(err error) {
				t.Helper()
				if err == nil {
					return
				}
				if !errors.Is(err, unix.ENOSPC) {
					t.Fatal(err)
				}
				op, _, _ := strings.Cut(err.Error(), ":")
				full[op]++
				if free -= page; free < 0 {
					t.Fatal("no space left to give")
				}
				check(t, ballast.Truncate(free))
			}
			for range 1500 {
				p := noise(rng, 1+rng.IntN(200))
				sent = append(sent, p...)
				if source == "append" {
					for len(p) > 0 {
						n, err := w.Append(p, Stderr, time.Now())
						took += int64(n)
						p = p[n:]
						retry(err)
					}
					continue
				}
				_, err := unix.Write(pw, p)
				check(t, err)
				for took < int64(len(sent)) {
					n, err := w.Drain(pr, Stderr, maxPiece, time.Now())
					took += int64(n)
					retry(err)
				}
			}
			for {
				err := w.End(time.Now())
				if err == nil {
					break
				}
				retry(err)
			}
			if took != int64(len(sent)) || w.Size() != took {
				t.Fatalf("took %d, size %d, sent %d", took, w.Size(), len(sent))
			}
			if len(full) < 2 {
				t.Fatalf("want both files to meet the full disk: %v", full)
			}
			r := openLog(t, dir)
			_, chunks := read(t, r)
			equal(t, "stderr", of(Stderr, chunks), sent)
			if !r.Ended() || r.Damaged() {
				t.Fatalf("ended %v, damaged %v", r.Ended(), r.Damaged())
			}
		})
	}
}

// allocated returns how many bytes a file takes on disk.
func allocated(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	check(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

func TestLimit(t *testing.T) {
	t.Parallel()
	const limit = 256 << 10
	for _, size := range []int{7, 100, 5000, 300_000} { // of one write
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			dirfd, dir := mountFS(t, "tmpfs", "16m")
			w, err := Create(dirfd, Options{MaxBytes: limit})
			check(t, err)
			defer w.Close()
			slow := openLog(t, dir)
			rng := rand.New(rand.NewPCG(5, 6))
			var all []byte
			var dropped int64
			readSome := func(n int) {
				t.Helper()
				for range n {
					c, err := slow.Next()
					if err == io.EOF {
						return
					}
					check(t, err)
					dropped += c.Dropped
					equal(t, "slow reader", c.Data, all[c.Offset:c.Offset+int64(len(c.Data))])
				}
			}
			for i := range min(max(3<<20/size, 8), 40_000) {
				p := noise(rng, size)
				all = append(all, p...)
				_, err := w.Append(p, Stream(1+i%2), time.Now())
				check(t, err)
				if rng.IntN(40) == 0 {
					readSome(rng.IntN(30))
				}
			}
			check(t, w.End(time.Now()))
			const most = limit + minSlack + 2*blockSize
			if a := allocated(t, dir+"/"+LogName); a > most {
				t.Errorf("log takes %d bytes, want at most %d", a, most)
			}
			if a := allocated(t, dir+"/"+IndexName); a > most {
				t.Errorf("index takes %d bytes, want at most %d", a, most)
			}
			readSome(1 << 30)
			if dropped == 0 || !slow.Ended() || slow.Damaged() {
				t.Errorf("slow reader: dropped %d, ended %v, damaged %v", dropped, slow.Ended(), slow.Damaged())
			}
			r := checkWhole(t, dir)
			if !r.Ended() || r.Damaged() {
				t.Errorf("ended %v, damaged %v", r.Ended(), r.Damaged())
			}
			info, err := Stat(dir)
			check(t, err)
			if kept := info.Size - info.Start; info.Size != int64(len(all)) || kept > most || size > 32 && kept < limit {
				t.Errorf("Stat: %+v: %d kept", info, kept)
			}
			check(t, r.Tail(t.Context(), 1<<30))
			if got, _ := read(t, r); int64(len(got)) != info.Size-info.Start {
				t.Errorf("tail: %d bytes", len(got))
			}
		})
	}
	t.Run("impossible", func(t *testing.T) {
		dirfd, dir := mountFS(t, "ramfs", "")
		if _, err := Create(dirfd, Options{MaxBytes: limit}); !errors.Is(err, ErrNoHoles) {
			t.Fatalf("on ramfs: %v", err)
		}
		w, err := Create(dirfd, Options{})
		check(t, err)
		defer w.Close()
		_, err = w.Append([]byte("x"), Stdout, time.Now())
		check(t, err)
		checkWhole(t, dir)
	})
}

// TestLimitConcurrent has readers that a fast writer overtakes again and again,
// and its successors: none may take a hole for output.
func TestLimitConcurrent(t *testing.T) {
	t.Parallel()
	opt := Options{MaxBytes: 64 << 10, MayShrink: true}
	w, dir := newLog(t, opt)
	const total = 8 << 20
	at := func(off int64) byte { return byte(off%251) + 1 }
	done := make(chan error, 4)
	for i := range 4 {
		r := openLog(t, dir)
		go func() {
			var last int64
			for !r.Ended() || last < total {
				c, err := r.Next()
				if err == io.EOF {
					if last < total {
						r.Resume()
					}
					continue
				}
				if err != nil {
					done <- err
					return
				}
				if c.Offset != last+c.Dropped {
					done <- errors.New("a gap that was not told")
					return
				}
				for j, b := range c.Data {
					if b != at(c.Offset+int64(j)) {
						done <- errors.New("wrong byte at " + strconv.FormatInt(c.Offset+int64(j), 10))
						return
					}
				}
				last = c.Offset + int64(len(c.Data))
				if i%2 == 1 && last < total/2 {
					if err := r.From(max(0, last-int64(i)*1000)); err != nil {
						done <- err
						return
					}
					last = r.Offset()
				}
			}
			done <- nil
		}()
	}
	p := make([]byte, 0, 4096)
	rng := rand.New(rand.NewPCG(8, 9))
	for w.Size() < total {
		p = p[:1+rng.IntN(cap(p)-1)]
		for j := range p {
			p[j] = at(w.Size() + int64(j))
		}
		_, err := w.Append(p[:min(len(p), int(total-w.Size()))], Stream(1+rng.IntN(2)), time.Now())
		check(t, err)
		switch rng.IntN(200) {
		case 0:
			_, err := w.Shrink()
			check(t, err)
		case 1:
			check(t, w.End(time.Now()))
			check(t, w.Close())
			w = reopen(t, dir, opt)
		}
	}
	check(t, w.End(time.Now()))
	for range 4 {
		check(t, <-done)
	}
}

// TestKilled kills a writer at some moment: what it took is in the log, and
// the rest is still in the pipe.
func TestKilled(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	for range 10 {
		dir := t.TempDir()
		pr, pw := pipe(t)
		in := os.NewFile(uintptr(must(unix.Dup(pr))), "pipe")
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Dir, cmd.Stdin, cmd.Stderr = dir, in, os.Stderr
		cmd.Env = append(os.Environ(), "LOGSTORE_TEST=drain")
		check(t, cmd.Start())
		in.Close()

		var sent []byte
		fds := []unix.PollFd{{Fd: int32(pw), Events: unix.POLLOUT}}
		for len(sent) < 100_000+rng.IntN(1<<20) {
			p := noise(rng, 1+rng.IntN(300))
			n, err := unix.Write(pw, p)
			switch err {
			case nil:
				sent = append(sent, p[:n]...)
			case unix.EAGAIN:
				_, _ = unix.Poll(fds, 1000)
			default:
				t.Fatal(err)
			}
		}
		check(t, cmd.Process.Kill())
		_ = cmd.Wait()
		checkWhole(t, dir)
		got, err := os.ReadFile(filepath.Join(dir, LogName))
		check(t, err)
		buf := make([]byte, 2<<20)
		for {
			n, err := unix.Read(pr, buf)
			if err == unix.EAGAIN {
				break
			}
			check(t, err)
			got = append(got, buf[:n]...)
		}
		equal(t, "log and rest", got, sent)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// FuzzIndex reads logs with any index: whatever it says, nothing panics and
// the bytes from the start it names are delivered once and in order.
func FuzzIndex(f *testing.F) {
	var h [headerSize]byte
	header{flags: flagCapped, start: 2, first: 1}.encode(&h)
	idx := bytes.Clone(h[:])
	for _, r := range []record{{0, 1, 3, Stdout, kindData}, {3, 2, 4, Stderr, kindData}, {offset: 7, kind: kindEnd, time: 3}} {
		var b [recordSize]byte
		r.encode(&b)
		idx = append(idx, b[:]...)
	}
	f.Add(idx, []byte("abc\nde\n"), int64(1), int64(1))
	f.Add(append(bytes.Clone(idx), idx[len(idx)-2*recordSize:]...), []byte("abc\nde\n"), int64(3), int64(2))
	f.Add(idx[:70], []byte("abc\nde\n"), int64(0), int64(2))
	f.Add(slices.Concat(idx[:headerSize], make([]byte, recordSize), idx[len(idx)-recordSize:]), []byte("ab"), int64(3), int64(-1))
	f.Add([]byte{}, []byte("abc"), int64(5), int64(0))
	f.Add([]byte(magic), []byte{}, int64(5), int64(0))
	_, dir := mountFS(f, "tmpfs", "64m")
	f.Fuzz(func(t *testing.T, idx, log []byte, off, lines int64) {
		// Checksums are right here, for the code behind them to be reached.
		if len(idx) >= headerSize {
			seal(idx[:headerSize])
			for b := range slices.Chunk(idx[headerSize:], recordSize) {
				if len(b) == recordSize && b[22] == 0 {
					seal(b)
				}
			}
		}
		check(t, os.WriteFile(filepath.Join(dir, LogName), log, 0o600))
		check(t, os.WriteFile(filepath.Join(dir, IndexName), idx, 0o600))
		if r, err := Open(dir); err != nil {
			if !errors.Is(err, ErrVersion) {
				t.Fatal(err)
			}
			return
		} else {
			r.Close()
		}
		r := checkWhole(t, dir)
		if off >= 0 && off <= int64(len(log)) {
			check(t, r.From(off))
			got, _ := read(t, r)
			equal(t, "from", got, log[max(off, r.hdr.start):])
		}
		check(t, r.Tail(t.Context(), lines))
		got, _ := read(t, r)
		if lines > 0 {
			equal(t, "tail", got, naiveTail(log[r.hdr.start:], int(lines)))
		}
		check(t, r.Since(time.Unix(0, off)))
		read(t, r)
		check(t, r.From(0))
		r.Until(time.Unix(0, off))
		got, _ = read(t, r)
		if kept := log[r.hdr.start:]; !bytes.HasPrefix(kept, got) || !r.Done() && len(got) < len(kept) {
			t.Fatalf("until %d: got %q, done %v", off, got, r.Done())
		}
		_, err := Stat(dir)
		check(t, err)

		// Another Writer goes on, whatever it finds.
		opt := Options{MayShrink: lines%2 == 0}
		w := reopen(t, dir, opt)
		if w.Size() != int64(len(log)) {
			t.Fatalf("appends at %d of %d", w.Size(), len(log))
		}
		put(t, w, off, Stderr, "more")
		_, err = w.Shrink()
		check(t, err)
		check(t, w.End(time.Unix(lines, 0)))
		check(t, w.Close())
		more := checkWhole(t, dir)
		if !more.Ended() || more.Damaged() && !r.Damaged() {
			t.Fatalf("appended: ended %v, damaged %v", more.Ended(), more.Damaged())
		}
		more.Close()
		r.Close()
	})
}
