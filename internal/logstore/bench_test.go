package logstore

import (
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkDrain moves what another process writes to the log, beside what cat
// makes of the same.
func BenchmarkDrain(b *testing.B) {
	const lines = 2_000_000
	for _, src := range []struct {
		name  string
		bytes int64
		cmd   func() *exec.Cmd
	}{
		{"1GiB", 1 << 30, func() *exec.Cmd { return exec.Command("head", "-c", "1G", "/dev/zero") }},
		{"100-byte-lines", lines * 100, func() *exec.Cmd {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), "LOGSTORE_TEST=lines", "LOGSTORE_LINES="+strconv.Itoa(lines))
			return cmd
		}},
	} {
		run := func(b *testing.B, drain func(out *os.File)) {
			b.SetBytes(src.bytes)
			for b.Loop() {
				cmd := src.cmd()
				pr, pw, err := os.Pipe()
				check(b, err)
				cmd.Stdout, cmd.Stderr = pw, os.Stderr
				check(b, cmd.Start())
				pw.Close()
				drain(pr)
				pr.Close()
				check(b, cmd.Wait())
			}
		}
		b.Run(src.name+"/log", func(b *testing.B) {
			var calls int
			run(b, func(out *os.File) {
				b.StopTimer()
				w, dir := newLog(b, Options{})
				b.StartTimer()
				check(b, unix.SetNonblock(int(out.Fd()), true))
				check(b, drainAll(w, int(out.Fd()), Stdout, func(int) { calls++ }))
				check(b, w.End(time.Now()))
				if w.Size() != src.bytes {
					b.Fatalf("%d bytes", w.Size())
				}
				b.StopTimer()
				check(b, w.Close())
				check(b, os.RemoveAll(dir))
				b.StartTimer()
			})
			b.ReportMetric(float64(calls)/float64(b.N), "records/op")
		})
		b.Run(src.name+"/cat", func(b *testing.B) {
			run(b, func(out *os.File) {
				path := b.TempDir() + "/out"
				f, err := os.Create(path)
				check(b, err)
				cat := exec.Command("cat")
				cat.Stdin, cat.Stdout = out, f
				check(b, cat.Run())
				b.StopTimer()
				f.Close()
				check(b, os.Remove(path))
				b.StartTimer()
			})
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	w, _ := newLog(b, Options{})
	p := make([]byte, 100)
	now := time.Now()
	b.ReportAllocs()
	b.SetBytes(100)
	for b.Loop() {
		_, err := w.Append(p, Stdout, now)
		check(b, err)
	}
}

// BenchmarkNext reads lines of 100 bytes, one record each.
func BenchmarkNext(b *testing.B) {
	w, dir := newLog(b, Options{})
	p := make([]byte, 100)
	start := time.Now()
	const lines = 100_000
	for i := range lines {
		_, err := w.Append(p, Stdout, start.Add(time.Duration(i)*2*time.Microsecond))
		check(b, err)
	}
	r := openLog(b, dir)
	b.SetBytes(lines * 100)
	b.ReportAllocs()
	for b.Loop() {
		check(b, r.From(0))
		for {
			if _, err := r.Next(); err != nil {
				break
			}
		}
	}
}
