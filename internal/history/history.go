// Package history keeps what a job took over time: samples in a file of bounded
// size in the job's directory. When the file is full, every two neighbours
// become one, and from then on samples are taken half as often: a job of a week
// has as many as one of a quarter of an hour, further apart.
package history

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/joblet/joblet"
)

// Name is the file in a job's directory.
const Name = "metrics"

const (
	// MaxSamples bounds a file, at 144 bytes each.
	MaxSamples = 1024
	// flushAfter is how many samples wait to be written together: what a crash of
	// the daemon loses.
	flushAfter = 10

	headerSize = 16 // magic, version, stride
	recordSize = 18 * 8
	version    = 1
)

var magic = [8]byte{'J', 'O', 'B', 'M', 'E', 'T', 'R', 'I'}

// A Writer adds samples to a job's history. Not for several goroutines at once.
type Writer struct {
	dir     string
	stride  uint32 // every so many samples given to Add become one
	count   int    // in the file
	waiting []joblet.Sample
	merged  joblet.Sample // of the stride that is under way
	inside  uint32        // samples that merged holds
}

// NewWriter goes on with the history in a job's directory, or begins one with the
// first sample that is written. A damaged one is begun anew: it is of less worth
// than the job.
func NewWriter(dir string) *Writer {
	w := &Writer{dir: dir, stride: 1}
	if f, err := os.Open(filepath.Join(dir, Name)); err == nil {
		defer f.Close()
		if stride, count, err := readHeader(f); err == nil {
			w.stride, w.count = stride, count
		}
	}
	return w
}

// Add takes a sample. It is in the file at the latest ten samples later, or with
// Flush.
func (w *Writer) Add(s joblet.Sample) error {
	if w.inside == 0 {
		w.merged = s
	} else {
		w.merged = merge(w.merged, s, float64(w.inside))
	}
	if w.inside++; w.inside < w.stride {
		return nil
	}
	w.inside = 0
	w.waiting = append(w.waiting, w.merged)
	if len(w.waiting) < flushAfter {
		return nil
	}
	return w.Flush()
}

// merge makes one sample of two that follow each other, the first of which stands
// for n. What is counted from the job's start is the later one's; of what goes up
// and down it keeps the most.
func merge(a, b joblet.Sample, n float64) joblet.Sample {
	b.CPUPercent = (a.CPUPercent*n + b.CPUPercent) / (n + 1)
	b.Memory, b.Swap, b.PIDs = max(a.Memory, b.Memory), max(a.Swap, b.Swap), max(a.PIDs, b.PIDs)
	return b
}

// Flush writes what waits. After an error it is lost, and the history has a gap.
func (w *Writer) Flush() error {
	waiting := w.waiting
	w.waiting = w.waiting[:0]
	if len(waiting) == 0 {
		return nil
	}
	if w.count+len(waiting) > MaxSamples {
		return w.halve(waiting)
	}
	flags := os.O_WRONLY | os.O_CREATE
	if w.count == 0 {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(filepath.Join(w.dir, Name), flags, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if w.count == 0 {
		if _, err := f.WriteAt(header(w.stride), 0); err != nil {
			return err
		}
	}
	if _, err := f.WriteAt(encode(waiting), headerSize+int64(w.count)*recordSize); err != nil {
		return err
	}
	w.count += len(waiting)
	return nil
}

// halve writes the history anew with half of the samples.
func (w *Writer) halve(waiting []joblet.Sample) error {
	all, err := Read(w.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		all = nil
	}
	all = append(all, waiting...)
	half := all[:0]
	for i := 0; i < len(all); i += 2 {
		s := all[i]
		if i+1 < len(all) {
			s = merge(s, all[i+1], 1)
		}
		half = append(half, s)
	}
	name := filepath.Join(w.dir, Name)
	data := append(header(2*w.stride), encode(half)...)
	if err := os.WriteFile(name+".tmp", data, 0o600); err != nil {
		return errors.Join(err, os.Remove(name+".tmp"))
	}
	if err := os.Rename(name+".tmp", name); err != nil {
		return errors.Join(err, os.Remove(name+".tmp"))
	}
	w.stride, w.count = 2*w.stride, len(half)
	return nil
}

func header(stride uint32) []byte {
	h := make([]byte, 0, headerSize)
	h = append(h, magic[:]...)
	h = binary.LittleEndian.AppendUint32(h, version)
	return binary.LittleEndian.AppendUint32(h, stride)
}

// readHeader returns the stride and how many whole records a file has.
func readHeader(f *os.File) (stride uint32, count int, err error) {
	var h [headerSize]byte
	if _, err := f.ReadAt(h[:], 0); err != nil {
		return 0, 0, err
	}
	stride = binary.LittleEndian.Uint32(h[12:])
	if !bytes.Equal(h[:8], magic[:]) || binary.LittleEndian.Uint32(h[8:]) != version || stride == 0 || stride > 1<<30 {
		return 0, 0, errors.New("it is not a history of this version")
	}
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	return stride, int(min((info.Size()-headerSize)/recordSize, MaxSamples)), nil
}

// Read returns the samples in a job's directory, oldest first. The error is
// fs.ErrNotExist when there are none: the job took less time than one takes.
func Read(dir string) ([]joblet.Sample, error) {
	f, err := os.Open(filepath.Join(dir, Name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	_, count, err := readHeader(f)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", f.Name(), err)
	}
	data := make([]byte, count*recordSize)
	if _, err := f.ReadAt(data, headerSize); err != nil && err != io.EOF {
		return nil, err
	}
	all := make([]joblet.Sample, count)
	for i := range all {
		all[i] = decode(data[i*recordSize:])
	}
	return all, nil
}

// fields are a sample's numbers in the order of the file.
func fields(s *joblet.Sample) (durations [6]*time.Duration, counts [8]*int64) {
	return [6]*time.Duration{&s.CPUUser, &s.CPUSystem, &s.Throttled, &s.CPUStall, &s.MemoryStall, &s.IOStall},
		[8]*int64{&s.MemoryPeak, &s.ReadBytes, &s.WriteBytes, &s.ReadOps, &s.WriteOps, &s.Memory, &s.MemoryLimit, &s.Swap}
}

func encode(all []joblet.Sample) []byte {
	out := make([]byte, 0, len(all)*recordSize)
	put := func(n int64) { out = binary.LittleEndian.AppendUint64(out, uint64(n)) }
	for _, s := range all {
		put(s.Time.UnixNano())
		put(int64(math.Float64bits(s.CPUPercent)))
		put(int64(s.PIDs))
		put(int64(s.PIDsPeak))
		durations, counts := fields(&s)
		for _, d := range durations {
			put(int64(*d))
		}
		for _, n := range counts {
			put(*n)
		}
	}
	return out
}

func decode(data []byte) (s joblet.Sample) {
	next := func() int64 {
		n := binary.LittleEndian.Uint64(data)
		data = data[8:]
		return int64(n)
	}
	s.Time = time.Unix(0, next())
	s.CPUPercent = math.Float64frombits(uint64(next()))
	s.PIDs = int(next())
	s.PIDsPeak = int(next())
	durations, counts := fields(&s)
	for _, d := range durations {
		*d = time.Duration(next())
	}
	for _, n := range counts {
		*n = next()
	}
	return s
}
