package joblet

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Limits is what a job may take of its host, all of its processes together.
// Zero means the daemon's default, and without one, no limit.
type Limits struct {
	CPUPercent int64  `json:"cpu_percent,omitempty"` // of one processor: 250 is two and a half
	CPUCores   string `json:"cpu_cores,omitempty"`   // the processors it may run on: "0-1,3"
	CPUWeight  int64  `json:"cpu_weight,omitempty"`  // its share when processors are short, beside 100 for others

	// MemoryBytes bounds all memory that is charged to the job: of processes, of
	// files in its root, of the page cache and of the kernel on its behalf.
	// SwapBytes is how much more may be swapped out; without it nothing is.
	MemoryBytes     int64 `json:"memory_bytes,omitempty"`
	MemoryHighBytes int64 `json:"memory_high_bytes,omitempty"` // beyond it the job is slowed down, not killed
	SwapBytes       int64 `json:"swap_bytes,omitempty"`

	MaxPIDs int64 `json:"max_pids,omitempty"` // processes and threads

	// In bytes and operations a second, on each device that holds the job's files.
	// IOBps is for reading and for writing, unless ReadBps or WriteBps says
	// otherwise; IOps for each of both.
	IOBps    int64 `json:"io_bps,omitempty"`
	ReadBps  int64 `json:"read_bps,omitempty"`
	WriteBps int64 `json:"write_bps,omitempty"`
	IOps     int64 `json:"iops,omitempty"`

	DiskBytes int64 `json:"disk_bytes,omitempty"` // what it may write to its root, /work included
	ShmBytes  int64 `json:"shm_bytes,omitempty"`  // the size of /dev/shm; without it, half of its memory

	// Rlimits are per process, getrlimit(2), by the name in lower case without
	// RLIMIT_.
	Rlimits map[string]Rlimit `json:"rlimits,omitempty"`
}

// Rlimit is a resource limit of each process; Unlimited is none.
type Rlimit struct {
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// Unlimited is RLIM_INFINITY.
const Unlimited = math.MaxUint64

// String returns what ParseRlimit reads.
func (r Rlimit) String() string {
	one := func(n uint64) string {
		if n == Unlimited {
			return "unlimited"
		}
		return strconv.FormatUint(n, 10)
	}
	if r.Soft == r.Hard {
		return one(r.Soft)
	}
	return one(r.Soft) + ":" + one(r.Hard)
}

// ParseRlimit reads "SOFT:HARD", or one number for both.
func ParseRlimit(s string) (Rlimit, error) {
	soft, hard, two := strings.Cut(s, ":")
	if !two {
		hard = soft
	}
	one := func(s string) (uint64, error) {
		if s == "unlimited" || s == "infinity" {
			return Unlimited, nil
		}
		n, err := strconv.ParseUint(s, 10, 63)
		if err != nil {
			return 0, Errorf(InvalidArgument, "%.40q is not a valid limit: use a number, SOFT:HARD or unlimited", s)
		}
		return n, nil
	}
	var r Rlimit
	var err error
	if r.Soft, err = one(soft); err != nil {
		return r, err
	}
	if r.Hard, err = one(hard); err != nil {
		return r, err
	}
	return r, r.validate("limit")
}

func (r Rlimit) validate(what string) error {
	if r.Soft > r.Hard {
		return Errorf(InvalidArgument, "%s %v: the soft limit must not exceed the hard limit", what, r)
	}
	return nil
}

// RlimitNames are the limits that a job may set. (nice, rtprio and nproc are
// bounded by other means, and sigpending and msgqueue count by host user.)
func RlimitNames() []string {
	return []string{"as", "core", "cpu", "data", "fsize", "memlock", "nofile", "nproc", "rss", "rttime", "sigpending", "stack"}
}

// Bounds of what a limit can be on any host. What is possible on one that has
// so many processors, the daemon knows.
const (
	MaxCPUs       = 8192 // CONFIG_NR_CPUS at its largest
	MaxCPUPercent = 100 * MaxCPUs
	MaxCPUWeight  = 10000   // cpu.weight in cgroup-v2.rst
	MinMemory     = 4 << 20 // less does not hold the start of a program
	MaxMemory     = 1 << 50
	MinPIDs       = 1
	MaxPIDs       = 4 << 20 // PID_MAX_LIMIT, proc_sys_kernel(5)
	MinIOBps      = 4096
	MaxIOBps      = 1 << 50
	MaxIOps       = 1 << 31
	MinDisk       = 1 << 20
	MaxDisk       = 1 << 50
	MinShm        = 4096 // a page
	MaxShm        = 1 << 50
)

// DefaultMaxPIDs and DefaultDiskBytes hold for a job for which neither it nor
// the daemon's configuration says otherwise.
const (
	DefaultMaxPIDs   = 4096
	DefaultDiskBytes = 1 << 30
)

// limitKind is one limit: how it is called and read, and where it lies.
type limitKind struct {
	name, value, help string
	field             func(*Limits) *int64
	min, max          int64
	parse             func(string) (int64, error)
	format            func(int64) string
}

const cpuCores = "cpu-cores"

// limitKinds are all limits but the processors and the rlimits, by the names
// that flags, the daemon's configuration and errors have for them.
var limitKinds = []limitKind{
	{"max-cpu", "PERCENT", "CPU time in percent of one processor, such as 150", func(l *Limits) *int64 { return &l.CPUPercent }, 1, MaxCPUPercent, parseNumber, formatNumber},
	{"cpu-weight", "N", "CPU weight under contention, 1 to 10000 (default 100)", func(l *Limits) *int64 { return &l.CPUWeight }, 1, MaxCPUWeight, parseNumber, formatNumber},
	{"max-memory", "SIZE", "memory, including page cache and files in the job's root, in MiB or as 512M", func(l *Limits) *int64 { return &l.MemoryBytes }, MinMemory, MaxMemory, parseMiB, formatMiB},
	{"memory-high", "SIZE", "memory above which the kernel throttles and reclaims, in MiB or as 512M", func(l *Limits) *int64 { return &l.MemoryHighBytes }, MinMemory, MaxMemory, parseMiB, formatMiB},
	{"max-swap", "SIZE", "swap in addition to memory, in MiB or as 512M (default: none if --max-memory is set)", func(l *Limits) *int64 { return &l.SwapBytes }, 4096, MaxMemory, parseMiB, formatMiB},
	{"max-pids", "N", "processes and threads", func(l *Limits) *int64 { return &l.MaxPIDs }, MinPIDs, MaxPIDs, parseNumber, formatNumber},
	{"max-iobps", "RATE", "bytes per second, for reads and for writes, such as 10M", func(l *Limits) *int64 { return &l.IOBps }, MinIOBps, MaxIOBps, ParseSize, FormatSize},
	{"max-read-bps", "RATE", "bytes read per second, such as 10M", func(l *Limits) *int64 { return &l.ReadBps }, MinIOBps, MaxIOBps, ParseSize, FormatSize},
	{"max-write-bps", "RATE", "bytes written per second, such as 10M", func(l *Limits) *int64 { return &l.WriteBps }, MinIOBps, MaxIOBps, ParseSize, FormatSize},
	{"max-iops", "N", "operations per second, for reads and for writes", func(l *Limits) *int64 { return &l.IOps }, 1, MaxIOps, parseNumber, formatNumber},
	{"max-disk", "SIZE", "size of the job's root file system with /work, in MiB or as 512M; counts as memory", func(l *Limits) *int64 { return &l.DiskBytes }, MinDisk, MaxDisk, parseMiB, formatMiB},
	{"shm-size", "SIZE", "size of /dev/shm, in MiB or as 256M; counts as memory (default: half of --max-memory, else of the host's memory)", func(l *Limits) *int64 { return &l.ShmBytes }, MinShm, MaxShm, parseMiB, formatMiB},
}

// LimitDoc says how a limit is called, what its value is and what it does.
type LimitDoc struct{ Name, Value, Help string }

// LimitDocs describes all limits that Set knows but the rlimits, in the order in
// which help shows them.
func LimitDocs() []LimitDoc {
	docs := make([]LimitDoc, 0, len(limitKinds)+1)
	for i, k := range limitKinds {
		if i == 1 {
			docs = append(docs, LimitDoc{cpuCores, "LIST", "processors to run on, such as 0-1,3"})
		}
		docs = append(docs, LimitDoc{k.name, k.value, k.help})
	}
	return docs
}

// Set reads one limit by its name: one of LimitDocs, or an rlimit's.
func (l *Limits) Set(name, value string) error {
	if name == cpuCores {
		if _, err := ParseCPUs(value); err != nil {
			return Errorf(InvalidArgument, "--%s: %w", name, err)
		}
		l.CPUCores = value
		return nil
	}
	if i := slices.IndexFunc(limitKinds, func(k limitKind) bool { return k.name == name }); i >= 0 {
		k := limitKinds[i]
		n, err := k.parse(value)
		if err == nil {
			err = k.check(n)
		}
		if err != nil {
			return Errorf(InvalidArgument, "--%s: %w", name, err)
		}
		*k.field(l) = n
		return nil
	}
	if !slices.Contains(RlimitNames(), name) {
		return Errorf(InvalidArgument, "unknown limit %.40q", name)
	}
	r, err := ParseRlimit(value)
	if err != nil {
		return Errorf(InvalidArgument, "--%s: %w", name, err)
	}
	l.Rlimits = maps.Clone(l.Rlimits)
	if l.Rlimits == nil {
		l.Rlimits = map[string]Rlimit{}
	}
	l.Rlimits[name] = r
	return nil
}

func (k limitKind) check(n int64) error {
	if n < k.min || n > k.max {
		return Errorf(InvalidArgument, "%s: must be between %s and %s", k.format(n), k.format(k.min), k.format(k.max))
	}
	return nil
}

// Each calls do for each limit that is set, with its name and its value as Set
// reads it.
func (l Limits) Each(do func(name, value string)) {
	for i, k := range limitKinds {
		if i == 1 && l.CPUCores != "" {
			do(cpuCores, l.CPUCores)
		}
		if n := *k.field(&l); n != 0 {
			do(k.name, k.format(n))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.Rlimits)) {
		do(name, l.Rlimits[name].String())
	}
}

// Validate reports the first limit that can never be.
func (l Limits) Validate() error {
	for _, k := range limitKinds {
		if n := *k.field(&l); n != 0 {
			if err := k.check(n); err != nil {
				return Errorf(InvalidArgument, "--%s: %w", k.name, err)
			}
		}
	}
	if l.CPUCores != "" {
		if _, err := ParseCPUs(l.CPUCores); err != nil {
			return Errorf(InvalidArgument, "--%s: %w", cpuCores, err)
		}
	}
	if l.SwapBytes != 0 && l.MemoryBytes == 0 {
		return Errorf(InvalidArgument, "--max-swap: requires --max-memory")
	}
	if l.MemoryHighBytes != 0 && l.MemoryBytes != 0 && l.MemoryHighBytes > l.MemoryBytes {
		return Errorf(InvalidArgument, "--memory-high %s: must not exceed --max-memory %s", FormatSize(l.MemoryHighBytes), FormatSize(l.MemoryBytes))
	}
	if len(l.Rlimits) > len(RlimitNames()) {
		return Errorf(InvalidArgument, "%d resource limits: at most %d are possible", len(l.Rlimits), len(RlimitNames()))
	}
	for name, r := range l.Rlimits {
		if !slices.Contains(RlimitNames(), name) {
			return Errorf(InvalidArgument, "unknown resource limit %.40q: must be one of %s", name, strings.Join(RlimitNames(), ", "))
		}
		if err := r.validate("--" + name); err != nil {
			return err
		}
		if name == "cpu" && (r.Soft == 0 || r.Hard == 0) {
			return Errorf(InvalidArgument, "--rlimit cpu=%v: must be at least 1 second: with 0 the kernel kills the job before its command runs", r)
		}
	}
	return nil
}

// Or returns l with what it does not set taken from other.
func (l Limits) Or(other Limits) Limits {
	for _, k := range limitKinds {
		if f := k.field(&l); *f == 0 {
			*f = *k.field(&other)
		}
	}
	if l.CPUCores == "" {
		l.CPUCores = other.CPUCores
	}
	if len(other.Rlimits) > 0 {
		all := maps.Clone(other.Rlimits)
		maps.Copy(all, l.Rlimits)
		l.Rlimits = all
	}
	return l
}

// Within reports whether l asks for no more than ceiling, where that says
// anything: a limit that is not set is more than any.
func (l Limits) Within(ceiling Limits) error {
	for _, k := range limitKinds {
		most := *k.field(&ceiling)
		n := *k.field(&l)
		switch {
		case most == 0 || n != 0 && n <= most:
		case n == 0 && (k.name == "max-read-bps" || k.name == "max-write-bps") && l.IOBps != 0 && l.IOBps <= most:
		case n == 0 && k.name == "max-swap": // then nothing is swapped out
		default:
			return Errorf(PermissionDenied, "--%s %s: this daemon allows at most %s", k.name, k.formatOrNone(n), k.format(most))
		}
	}
	if ceiling.CPUCores != "" {
		allowed, err := ParseCPUs(ceiling.CPUCores)
		if err != nil {
			return err
		}
		asked, err := ParseCPUs(l.CPUCores)
		if err != nil {
			return err
		}
		for _, cpu := range asked {
			if !slices.Contains(allowed, cpu) {
				return Errorf(PermissionDenied, "--%s %s: this daemon allows only %s", cpuCores, l.CPUCores, ceiling.CPUCores)
			}
		}
	}
	for name, most := range ceiling.Rlimits {
		if r, ok := l.Rlimits[name]; ok && r.Hard > most.Hard {
			return Errorf(PermissionDenied, "--%s %v: this daemon allows at most %v", name, r, most)
		}
	}
	return nil
}

// Capped returns l with what it does not set taken from ceiling, so that a job
// that asks for nothing is within it.
func (l Limits) Capped(ceiling Limits) Limits {
	swap := l.SwapBytes
	l = l.Or(ceiling)
	l.SwapBytes = swap
	for name, most := range ceiling.Rlimits {
		if r := l.Rlimits[name]; r.Soft > most.Hard {
			r.Soft = most.Hard
			l.Rlimits[name] = r
		}
	}
	return l
}

func (k limitKind) formatOrNone(n int64) string {
	if n == 0 {
		return "(no limit)"
	}
	return k.format(n)
}

// IsZero reports whether no limit is set.
func (l Limits) IsZero() bool {
	none := true
	l.Each(func(string, string) { none = false })
	return none
}

// Rates returns the limits on input and output as the kernel has them: bytes and
// operations a second, read and written; 0: none.
func (l Limits) Rates() (readBps, writeBps, readOps, writeOps int64) {
	readBps, writeBps = l.ReadBps, l.WriteBps
	if readBps == 0 {
		readBps = l.IOBps
	}
	if writeBps == 0 {
		writeBps = l.IOBps
	}
	return readBps, writeBps, l.IOps, l.IOps
}

// ParseCPUs reads a list of processors as cpuset(7) has it, "0-1,3", and returns
// their numbers in order.
func ParseCPUs(list string) ([]int, error) {
	var all []int
	for part := range strings.SplitSeq(list, ",") {
		low, high, isRange := strings.Cut(part, "-")
		first, err := strconv.ParseUint(low, 10, 16)
		last := first
		if isRange && err == nil {
			last, err = strconv.ParseUint(high, 10, 16)
		}
		if err != nil || last < first || last >= MaxCPUs {
			return nil, Errorf(InvalidArgument, "%.40q is not a valid list of processors: use numbers and ranges, such as 0-1,3", list)
		}
		for cpu := first; cpu <= last; cpu++ {
			all = append(all, int(cpu))
		}
		if len(all) > MaxCPUs {
			return nil, Errorf(InvalidArgument, "%.40q: names too many processors", list)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// FormatCPUs returns the numbers of processors, which are in order, as ParseCPUs reads
// them.
func FormatCPUs(cpus []int) string {
	var b strings.Builder
	for i := 0; i < len(cpus); {
		end := i
		for end+1 < len(cpus) && cpus[end+1] == cpus[end]+1 {
			end++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(cpus[i]))
		if end > i {
			b.WriteString("-" + strconv.Itoa(cpus[end]))
		}
		i = end + 1
	}
	return b.String()
}

func parseNumber(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, Errorf(InvalidArgument, "%.40q is not a whole number", s)
	}
	return n, nil
}

func formatNumber(n int64) string { return strconv.FormatInt(n, 10) }

// parseMiB is ParseSize where a bare number counts MiB.
func parseMiB(s string) (int64, error) {
	text := s
	if s != "" && strings.Trim(s, "0123456789") == "" {
		text += "M"
	}
	n, err := ParseSize(text)
	if err != nil {
		return 0, Errorf(InvalidArgument, "%.40q is not a valid size: use a number of MiB, or a number with K, M, G or T, such as 64M", s)
	}
	return n, nil
}

// formatMiB is FormatSize where a bare number would count MiB.
func formatMiB(n int64) string {
	s := FormatSize(n)
	if strings.Trim(s, "0123456789") == "" {
		s += "B"
	}
	return s
}

// ParseSize reads a number of bytes: "65536", "64K", "10MiB", "1.5G".
func ParseSize(s string) (int64, error) {
	number := strings.TrimRight(s, "kKmMgGtTiIbB")
	shift := 0
	switch unit := strings.ToUpper(s[len(number):]); unit {
	case "", "B":
	case "K", "KB", "KIB":
		shift = 10
	case "M", "MB", "MIB":
		shift = 20
	case "G", "GB", "GIB":
		shift = 30
	case "T", "TB", "TIB":
		shift = 40
	default:
		number = ""
	}
	if n, err := strconv.ParseUint(number, 10, 63); err == nil && n <= math.MaxInt64>>shift {
		return int64(n) << shift, nil
	}
	whole, fraction, _ := strings.Cut(number, ".")
	if digits := strings.Trim(whole+fraction, "0123456789") == "" && whole != "" && fraction != ""; digits && shift > 0 {
		if f, err := strconv.ParseFloat(number, 64); err == nil && f*float64(int64(1)<<shift) < math.MaxInt64 {
			return int64(f * float64(int64(1)<<shift)), nil
		}
	}
	return 0, Errorf(InvalidArgument, "%.40q is not a valid size: use bytes, or a number with K, M, G or T, such as 64M", s)
}

// FormatSize returns a size that ParseSize reads as exactly n, as short as
// possible: 512M, 1536K, 1000.
func FormatSize(n int64) string {
	unit := ""
	for _, next := range []string{"K", "M", "G", "T"} {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, next
	}
	return fmt.Sprint(n) + unit
}
