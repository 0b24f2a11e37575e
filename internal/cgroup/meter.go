package cgroup

import (
	"bytes"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

// A Meter reads what a job's cgroups count. It keeps their files open, because
// opening one costs more than reading it, as long as this process has descriptors
// to spare. Not for use by several goroutines at once.
type Meter struct {
	dirs  Dirs
	fds   map[string]int // by path; -1: there is no such file
	buf   []byte
	last  joblet.Sample
	lower map[string]bool // "device device": whether the first lies below the second
}

// NewMeter returns a Meter for a job's groups. It opens nothing yet.
func NewMeter(d Dirs) *Meter {
	return &Meter{dirs: d, fds: map[string]int{}, buf: make([]byte, 4096), lower: map[string]bool{}}
}

// Close closes the files.
func (m *Meter) Close() {
	for path, fd := range m.fds {
		if fd >= 0 {
			unix.Close(fd)
		}
		delete(m.fds, path)
	}
}

// file returns what is in a cgroup file, nil when there is none. It is valid
// until the next call.
func (m *Meter) file(dir, name string) []byte {
	if dir == "" {
		return nil
	}
	path := dir + "/" + name
	fd, known := m.fds[path]
	if !known {
		var err error
		switch fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); {
		case err == nil && scarce(fd):
			defer unix.Close(fd)
		case err == nil:
			m.fds[path] = fd
		case err == unix.ENOENT:
			m.fds[path] = -1
		default: // EMFILE, for one: the next sample may have more luck
			return nil
		}
	}
	if fd < 0 {
		return nil
	}
	return m.read(fd)
}

// scarce reports whether fd, just opened, is in the upper half of the descriptors
// that this process may have: those are for what does not keep them, such as calls.
// The kernel gives out the lowest that is free.
func scarce(fd int) bool {
	var limit unix.Rlimit
	return unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil && uint64(fd) >= limit.Cur/2
}

// read returns what is in an open file. It is valid until the next call.
func (m *Meter) read(fd int) []byte {
	total := 0
	for {
		n, err := unix.Pread(fd, m.buf[total:], int64(total))
		if err == unix.EINTR {
			continue
		}
		if err != nil { // ENODEV: the group is gone
			return nil
		}
		if total += n; n == 0 || total < len(m.buf) {
			return m.buf[:total]
		}
		if len(m.buf) >= 1<<20 {
			return m.buf[:total]
		}
		m.buf = append(m.buf, make([]byte, len(m.buf))...)
	}
}

// Sample reads what changes all the time. What is dear to read, and of use only
// at the end, is in Total.
func (m *Meter) Sample() joblet.Sample {
	d := m.dirs
	s := joblet.Sample{Time: time.Now(), Usage: m.last.Usage}
	m.cpu(&s)
	if dir, v2 := d.where("memory"); v2 {
		s.Memory = number(m.file(dir, "memory.current"))
		s.Swap = number(m.file(dir, "memory.swap.current"))
	} else if dir != "" {
		s.Memory = number(m.file(dir, "memory.usage_in_bytes"))
		if both := number(m.file(dir, "memory.memsw.usage_in_bytes")); both > s.Memory {
			s.Swap = both - s.Memory
		}
		s.Memory += number(m.file(dir, "memory.kmem.tcp.usage_in_bytes")) // not in the others; 0 without a limit
	}
	s.MemoryPeak = max(s.MemoryPeak, s.Memory)
	dir, _ := d.where("pids")
	s.PIDs = int(number(m.file(dir, "pids.current")))
	s.PIDsPeak = max(s.PIDsPeak, s.PIDs)
	m.io(&s)
	if since := s.Time.Sub(m.last.Time); !m.last.Time.IsZero() && since > 0 {
		s.CPUPercent = 100 * float64(s.CPU()-m.last.CPU()) / float64(since)
	}
	s.Usage = s.Usage.Max(m.last.Usage)
	m.last = s
	return s
}

// Total is Sample with everything: the largest figures that the kernel has kept,
// and time lost to waiting.
func (m *Meter) Total() joblet.Sample {
	d := m.dirs
	s := m.Sample()
	if dir, v2 := d.where("memory"); v2 {
		s.MemoryPeak = max(s.MemoryPeak, number(m.file(dir, "memory.peak"))) // since 5.19
	} else if dir != "" {
		// When both were highest is unknown: their sum may be more than ever was.
		s.MemoryPeak = max(s.MemoryPeak, number(m.file(dir, "memory.max_usage_in_bytes")), number(m.file(dir, "memory.kmem.tcp.max_usage_in_bytes")))
	}
	dir, _ := d.where("pids")
	s.PIDsPeak = max(s.PIDsPeak, int(number(m.file(dir, "pids.peak")))) // since 6.6
	for name, stall := range map[string]*time.Duration{"cpu.pressure": &s.CPUStall, "memory.pressure": &s.MemoryStall, "io.pressure": &s.IOStall} {
		// some avg10=0.00 avg60=0.00 avg300=0.00 total=0 (psi.rst)
		some, _, _ := bytes.Cut(m.file(d.V2, name), []byte("\n"))
		_, total, _ := bytes.Cut(some, []byte("total="))
		*stall = max(*stall, time.Duration(number(total))*time.Microsecond)
	}
	m.last = s
	return s
}

// cpu reads processor time: in v2 there is one without any controller.
func (m *Meter) cpu(s *joblet.Sample) {
	d := m.dirs
	if d.V2 != "" {
		stat := m.file(d.V2, "cpu.stat")
		s.CPUUser = time.Duration(field(stat, "user_usec")) * time.Microsecond
		s.CPUSystem = time.Duration(field(stat, "system_usec")) * time.Microsecond
		s.Throttled = time.Duration(field(stat, "throttled_usec")) * time.Microsecond
	} else if dir := d.V1["cpuacct"]; dir != "" {
		s.CPUUser = time.Duration(number(m.file(dir, "cpuacct.usage_user")))
		s.CPUSystem = time.Duration(number(m.file(dir, "cpuacct.usage_sys")))
	}
	if dir, v2 := d.where("cpu"); dir != "" && !v2 {
		s.Throttled = time.Duration(field(m.file(dir, "cpu.stat"), "throttled_time"))
	}
}

// io adds up what all devices have done for the job.
func (m *Meter) io(s *joblet.Sample) {
	dir, v2 := m.dirs.where("io")
	if dir == "" {
		return
	}
	if !v2 {
		s.ReadBytes, s.WriteBytes = m.readAndWritten(dir, "blkio.throttle.io_service_bytes")
		s.ReadOps, s.WriteOps = m.readAndWritten(dir, "blkio.throttle.io_serviced")
		return
	}
	// 254:0 rbytes=180224 wbytes=0 rios=3 wios=0 dbytes=0 dios=0
	stat := string(m.file(dir, "io.stat"))
	lines := strings.Split(strings.TrimSpace(stat), "\n")
	var u joblet.Usage
	for _, line := range lines {
		dev, values, _ := strings.Cut(line, " ")
		if values == "" || m.countedAbove(dev, lines) {
			continue
		}
		for value := range strings.FieldsSeq(values) {
			name, n, _ := strings.Cut(value, "=")
			switch name {
			case "rbytes":
				u.ReadBytes += number([]byte(n))
			case "wbytes":
				u.WriteBytes += number([]byte(n))
			case "rios":
				u.ReadOps += number([]byte(n))
			case "wios":
				u.WriteOps += number([]byte(n))
			}
		}
	}
	s.ReadBytes, s.WriteBytes, s.ReadOps, s.WriteOps = u.ReadBytes, u.WriteBytes, u.ReadOps, u.WriteOps
}

// readAndWritten adds up a file of v1: lines such as "254:0 Read 25821184".
func (m *Meter) readAndWritten(dir, file string) (read, written int64) {
	for line := range bytes.Lines(m.file(dir, file)) {
		fields := bytes.Fields(line)
		switch {
		case len(fields) < 3:
		case string(fields[1]) == "Read":
			read += number(fields[2])
		case string(fields[1]) == "Write":
			written += number(fields[2])
		}
	}
	return read, written
}

// countedAbove reports whether what a device did is counted at another one, too,
// that lies on it.
func (m *Meter) countedAbove(dev string, lines []string) bool {
	for _, line := range lines {
		other, _, _ := strings.Cut(line, " ")
		if other == dev {
			continue
		}
		key := dev + " " + other
		is, known := m.lower[key]
		if !known {
			is = below(dev, other)
			m.lower[key] = is
		}
		if is {
			return true
		}
	}
	return false
}

// number reads the decimal number at the beginning of data; 0 when there is none.
func number(data []byte) (n int64) {
	for _, c := range data {
		if c < '0' || c > '9' || n > 1<<59 {
			break
		}
		n = n*10 + int64(c-'0')
	}
	return n
}

// field returns the number behind a name at the beginning of a line.
func field(data []byte, name string) int64 {
	for line := range bytes.Lines(data) {
		if rest, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			return number(rest)
		}
	}
	return 0
}

// OOMKills returns how many of the job's processes the kernel has killed because
// memory was used up.
func (d Dirs) OOMKills() int64 {
	m := NewMeter(d)
	defer m.Close()
	dir, v2 := d.where("memory")
	if v2 {
		return field(m.file(dir, "memory.events"), "oom_kill")
	}
	return field(m.file(dir, "memory.oom_control"), "oom_kill")
}

// OOMEvents returns a descriptor that becomes readable when the job runs out of
// memory, -1 where the kernel ends the whole job by itself (v2).
func (d Dirs) OOMEvents() (int, error) {
	dir, v2 := d.where("memory")
	if v2 || dir == "" {
		return -1, nil
	}
	// An eventfd registered with the group (cgroup-v1/memory.rst, "OOM Control").
	control, err := unix.Open(filepath.Join(dir, "memory.oom_control"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(control)
	events, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, err
	}
	if err := write(dir, "cgroup.event_control", strconv.Itoa(events)+" "+strconv.Itoa(control)); err != nil {
		unix.Close(events)
		return -1, err
	}
	return events, nil
}
