package shim

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/cgroup"
)

// measure notes what the job took, now that all of it has ended.
func (s *shim) measure() {
	meter := cgroup.NewMeter(s.cgroup)
	s.record.Usage = meter.Total().Usage
	meter.Close()
	s.record.OutOfMemory = s.record.OutOfMemory || s.outOfMemory()
}

// outOfMemory reports whether the kernel has killed one of the job's processes
// because its memory was used up.
func (s *shim) outOfMemory() bool { return s.cgroup.OOMKills() > 0 }

// endOutOfMemory ends the whole job when its memory is used up, as
// memory.oom.group does in v2: the kernel picks one process, which need not be
// the one without which the others make no sense.
func (s *shim) endOutOfMemory() {
	_, _ = unix.Read(s.oomEvents, make([]byte, 8))
	s.record.OutOfMemory = true
	s.signal(syscall.SIGKILL)
}
