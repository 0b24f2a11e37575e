package joblet

import (
	"slices"
	"time"
)

// Usage is what a job has taken of its host since it started, all of its
// processes together, those included that are gone. What a host does not count
// is zero.
type Usage struct {
	CPUUser   time.Duration `json:"cpu_user,omitempty"`
	CPUSystem time.Duration `json:"cpu_system,omitempty"`
	Throttled time.Duration `json:"throttled,omitempty"` // it waited because its processor time was used up

	MemoryPeak int64 `json:"memory_peak,omitempty"` // bytes
	PIDsPeak   int   `json:"pids_peak,omitempty"`   // most processes and threads at once

	// From and to devices, not the page cache.
	ReadBytes  int64 `json:"read_bytes,omitempty"`
	WriteBytes int64 `json:"write_bytes,omitempty"`
	ReadOps    int64 `json:"read_ops,omitempty"`
	WriteOps   int64 `json:"write_ops,omitempty"`

	// Time in which at least one process waited for the resource (pressure stall
	// information, psi.rst).
	CPUStall    time.Duration `json:"cpu_stall,omitempty"`
	MemoryStall time.Duration `json:"memory_stall,omitempty"`
	IOStall     time.Duration `json:"io_stall,omitempty"`
}

// CPU returns the processor time in all.
func (u Usage) CPU() time.Duration { return u.CPUUser + u.CPUSystem }

// Max returns u with each figure at least as large as in other: none of them
// ever falls.
func (u Usage) Max(other Usage) Usage {
	return Usage{
		CPUUser: max(u.CPUUser, other.CPUUser), CPUSystem: max(u.CPUSystem, other.CPUSystem), Throttled: max(u.Throttled, other.Throttled),
		MemoryPeak: max(u.MemoryPeak, other.MemoryPeak), PIDsPeak: max(u.PIDsPeak, other.PIDsPeak),
		ReadBytes: max(u.ReadBytes, other.ReadBytes), WriteBytes: max(u.WriteBytes, other.WriteBytes),
		ReadOps: max(u.ReadOps, other.ReadOps), WriteOps: max(u.WriteOps, other.WriteOps),
		CPUStall: max(u.CPUStall, other.CPUStall), MemoryStall: max(u.MemoryStall, other.MemoryStall), IOStall: max(u.IOStall, other.IOStall),
	}
}

// Sample is a job's use of its host at one moment.
type Sample struct {
	Time time.Time `json:"time"`
	Usage

	CPUPercent  float64 `json:"cpu_percent"`            // of one processor, since the sample before
	Memory      int64   `json:"memory"`                 // bytes now
	MemoryLimit int64   `json:"memory_limit,omitempty"` // bytes; 0: none
	Swap        int64   `json:"swap,omitempty"`         // bytes now
	PIDs        int     `json:"pids"`                   // processes and threads now
}

// Process is one process of a job, as seen from outside.
type Process struct {
	PID     int // as the job numbers it
	HostPID int
	PPID    int // as the job numbers it; 0: the parent is not of the job
	UID     int // in the job
	State   string
	Name    string
	Command string // its arguments, truncated if long
	Threads int
	Started time.Time

	CPUTime    time.Duration
	CPUPercent float64 // of one processor, since it started, or see [Processes.Since]
	Memory     int64   // bytes that are resident, shared ones too
}

// Processes are those of a job at one moment.
type Processes struct {
	Time    time.Time
	All     []Process // by number in the job
	Omitted int       // there are so many more
}

// Since returns p with the CPUPercent of each process that was there before
// measured since then.
func (p Processes) Since(before Processes) Processes {
	old := make(map[int]Process, len(before.All))
	for _, q := range before.All {
		old[q.HostPID] = q
	}
	out := p
	out.All = slices.Clone(p.All)
	passed := p.Time.Sub(before.Time)
	for i := range out.All {
		q := &out.All[i]
		b, there := old[q.HostPID]
		// The kernel counts a process's start in hundredths of a second.
		if there && b.PID == q.PID && b.Started.Sub(q.Started).Abs() < time.Second && q.CPUTime >= b.CPUTime && passed > 0 {
			q.CPUPercent = 100 * float64(q.CPUTime-b.CPUTime) / float64(passed)
		}
	}
	return out
}
