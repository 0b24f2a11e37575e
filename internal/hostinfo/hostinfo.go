// Package hostinfo measures the host: its processors, memory, file systems,
// network, disks and processes, as /proc and /sys tell them.
//
// A [Reader] reads counters, and reads none again before that is worth its
// cost. A [Sampler] turns two readings into usage and rates.
//
// Percentages are from 0 to 100; those of processors are of all of them
// together, but for [CPU.PerCore]. Texts are valid UTF-8 and otherwise as they
// come: a process chooses its own name.
package hostinfo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/procfs"
	"github.com/prometheus/procfs/blockdevice"
	"golang.org/x/sys/unix"
)

// Parts says what of a host is measured.
type Parts uint8

// The parts of a host.
const (
	PartMachine Parts = 1 << iota // what the host is, and its cloud
	PartCPU
	PartMemory
	PartDisks
	PartNetworks
	PartIO
	PartProcesses

	AllParts  Parts = 1<<iota - 1
	partsRate       = PartCPU | PartNetworks | PartIO | PartProcesses // measured between two readings
)

const (
	// window is over how long the first usage and rates are measured: 20 of the
	// kernel's ticks.
	window = 200 * time.Millisecond

	// fresh is how long a reading is as good as a new one. It is less than window.
	fresh = 150 * time.Millisecond

	// rest is how many times as long as a reading had a processor there is no new one
	// of the same part, so that a host with very many processes spends at most a tenth
	// of one processor on it, at any rate of calls.
	rest = 10
)

// Reader reads the host's counters for any number of Samplers. Its methods may
// be called at the same time.
type Reader struct {
	proc, sys, etc string
	procfs         procfs.FS
	block          blockdevice.FS
	links          func() ([]link, error)
	identity       func() identity

	cpu       part[cpuReading]
	memory    part[Memory]
	disks     part[[]Disk]
	networks  part[networkReading]
	io        part[[]blockdevice.Diskstats]
	processes part[processReading]
	commands  commands
}

// NewReader returns a Reader of this host. It fails where /proc or /sys is
// missing.
func NewReader() (*Reader, error) { return newReader("/proc", "/sys", "/etc", links) }

func newReader(proc, sys, etc string, links func() ([]link, error)) (*Reader, error) {
	r := &Reader{proc: proc, sys: sys, etc: etc, links: links}
	var err error
	if r.procfs, err = procfs.NewFS(proc); err != nil {
		return nil, fmt.Errorf("cannot measure the host: %w", err)
	}
	if r.block, err = blockdevice.NewFS(proc, sys); err != nil {
		return nil, fmt.Errorf("cannot measure the host: %w", err)
	}
	r.identity = sync.OnceValue(r.readIdentity)
	r.commands.proc = proc
	return r, nil
}

// reading is what a part was at a time. Its value is shared and not changed.
type reading[T any] struct {
	at    time.Time
	took  time.Duration // of a processor
	value T
}

// part keeps the latest reading of one part.
type part[T any] struct {
	mu   sync.Mutex
	last *reading[T]
}

// get returns the latest reading when it is recent enough, or a new one; nil
// where the kernel does not have what it reads.
func (p *part[T]) get(read func() (T, error)) (*reading[T], error) {
	asked := time.Now() // a caller that waits for a slow reading does not need a later one
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last != nil && asked.Sub(p.last.at) < max(fresh, rest*p.last.took) {
		return p.last, nil
	}
	start := time.Now()
	// It keeps to one thread, whose clock stands while others have the processors:
	// else an overloaded host would have no usage, from one reading taken twice.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadTime()
	value, err := read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot measure the host: %w", err)
	}
	p.last = &reading[T]{start, threadTime() - before, value}
	return p.last, nil
}

// threadTime is how long this thread has had a processor.
func threadTime() time.Duration {
	var used unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &used) // every kernel has it
	return time.Duration(used.Nano())
}

// Sample is what a host was at a time. Parts that were not asked for, or that
// the kernel does not have, are nil. It is shared and must not be changed.
type Sample struct {
	Time      time.Time
	Machine   *Machine
	Cloud     *Cloud // nil when nothing is known of one
	CPU       *CPU
	Memory    *Memory
	Disks     []Disk
	Networks  []Network
	IO        *IO
	Processes *Processes
}

// Sampler measures usage and rates since its previous sample. Its methods may be
// called at the same time; callers in the same moment get the same values.
type Sampler struct {
	reader  *Reader
	parts   Parts
	longest time.Duration

	mu        sync.Mutex
	last      time.Time // of the previous sample
	cpu       measured[cpuReading, *CPU]
	networks  measured[networkReading, []Network]
	io        measured[[]blockdevice.Diskstats, *IO]
	processes measured[processReading, *Processes]
}

// Sampler returns a Sampler of some parts. A previous sample that is older than
// longest, unless that is 0, is of no use for the next one.
func (r *Reader) Sampler(parts Parts, longest time.Duration) *Sampler {
	return &Sampler{reader: r, parts: parts, longest: longest}
}

// measured holds the latest two readings of a part.
type measured[T, R any] struct {
	last   *reading[T]
	result R
}

// next takes a reading in. before is nil for the first one.
func (m *measured[T, R]) next(now *reading[T], compute func(before, now *reading[T]) R) R {
	if now == nil {
		*m = measured[T, R]{}
	} else if now != m.last {
		m.result = compute(m.last, now)
		m.last = now
	}
	return m.result
}

// Sample measures the host. Without a previous sample that is of use it takes a
// fifth of a second, over which it measures usage and rates.
func (s *Sampler) Sample(ctx context.Context) (Sample, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.longest > 0 && time.Since(s.last) > s.longest
	if s.parts&partsRate != 0 && (s.last.IsZero() || old) {
		if _, err := s.take(s.parts & partsRate); err != nil {
			return Sample{}, err
		}
		select {
		case <-ctx.Done():
			return Sample{}, context.Cause(ctx)
		case <-time.After(window):
		}
	}
	return s.take(s.parts)
}

func (s *Sampler) take(parts Parts) (out Sample, err error) {
	r := s.reader
	out.Time = time.Now()
	if parts&PartMachine != 0 {
		if out.Machine, err = r.machine(out.Time); err != nil {
			return Sample{}, err
		}
		out.Cloud = r.identity().cloud
	}
	if parts&PartCPU != 0 {
		now, err := r.cpu.get(r.readCPU)
		if err != nil {
			return Sample{}, err
		}
		out.CPU = s.cpu.next(now, cpuUsage)
	}
	if parts&PartMemory != 0 {
		now, err := r.memory.get(r.readMemory)
		if err != nil {
			return Sample{}, err
		}
		if now != nil {
			out.Memory = &now.value
		}
	}
	if parts&PartDisks != 0 {
		now, err := r.disks.get(r.readDisks)
		if err != nil {
			return Sample{}, err
		}
		if now != nil {
			out.Disks = now.value
		}
	}
	if parts&PartNetworks != 0 {
		now, err := r.networks.get(r.readNetworks)
		if err != nil {
			return Sample{}, err
		}
		out.Networks = s.networks.next(now, networkRates)
	}
	if parts&PartIO != 0 {
		now, err := r.io.get(r.readIO)
		if err != nil {
			return Sample{}, err
		}
		out.IO = s.io.next(now, ioRates)
	}
	if parts&PartProcesses != 0 {
		now, err := r.processes.get(r.readProcesses)
		if err != nil {
			return Sample{}, err
		}
		out.Processes = s.processes.next(now, r.processUsage)
	}
	s.last = out.Time
	return out, nil
}

// percent is part of whole from 0 to 100; 0 when whole is 0.
func percent(part, whole float64) float64 {
	if whole <= 0 {
		return 0
	}
	return min(100, max(0, 100*part/whole))
}

// growth is how much a counter has grown; 0 when it began again.
func growth(before, now uint64) uint64 {
	if now < before {
		return 0
	}
	return now - before
}

// text makes what the host calls something fit for messages.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
