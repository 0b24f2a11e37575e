package wire

import (
	"math"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

// LimitsToProto returns l as a message; nil: none is set.
func LimitsToProto(l joblet.Limits) *api.JobLimits {
	if l.IsZero() {
		return nil
	}
	p := &api.JobLimits{
		CpuPercent: l.CPUPercent, CpuCores: text(l.CPUCores), CpuWeight: l.CPUWeight,
		MemoryBytes: l.MemoryBytes, MemoryHighBytes: l.MemoryHighBytes, SwapBytes: l.SwapBytes, MaxPids: l.MaxPIDs,
		IoBps: l.IOBps, ReadBps: l.ReadBps, WriteBps: l.WriteBps, Iops: l.IOps, DiskBytes: l.DiskBytes, ShmBytes: l.ShmBytes,
	}
	for name, r := range l.Rlimits {
		if p.Rlimits == nil {
			p.Rlimits = map[string]*api.JobRlimit{}
		}
		p.Rlimits[text(name)] = &api.JobRlimit{Soft: r.Soft, Hard: r.Hard}
	}
	return p
}

// LimitsFromProto returns the limits that p sets, not yet validated.
func LimitsFromProto(p *api.JobLimits) joblet.Limits {
	l := joblet.Limits{
		CPUPercent: p.GetCpuPercent(), CPUCores: p.GetCpuCores(), CPUWeight: p.GetCpuWeight(),
		MemoryBytes: p.GetMemoryBytes(), MemoryHighBytes: p.GetMemoryHighBytes(), SwapBytes: p.GetSwapBytes(), MaxPIDs: p.GetMaxPids(),
		IOBps: p.GetIoBps(), ReadBps: p.GetReadBps(), WriteBps: p.GetWriteBps(), IOps: p.GetIops(), DiskBytes: p.GetDiskBytes(), ShmBytes: p.GetShmBytes(),
	}
	for name, r := range p.GetRlimits() {
		if l.Rlimits == nil {
			l.Rlimits = map[string]joblet.Rlimit{}
		}
		l.Rlimits[name] = joblet.Rlimit{Soft: r.GetSoft(), Hard: r.GetHard()}
	}
	return l
}

// specLimits reads what a request asks for, in the fields of older clients as
// well: whole MiB of memory, and one rate for reading and writing.
func specLimits(r *api.RunJobRequest) joblet.Limits {
	return LimitsFromProto(r.GetLimits()).Or(PublicLimits(r))
}

// PublicLimits returns the limits that a request asks for in fields of the public API
// and not in those of our own, which take precedence.
func PublicLimits(r *api.RunJobRequest) (l joblet.Limits) {
	own := r.GetLimits()
	if own.GetCpuPercent() == 0 {
		l.CPUPercent = int64(r.GetMaxCpu())
	}
	if own.GetCpuCores() == "" {
		l.CPUCores = r.GetCpuCores()
	}
	if own.GetMemoryBytes() == 0 {
		l.MemoryBytes = int64(r.GetMaxMemory()) << 20
	}
	if own.GetIoBps() == 0 {
		l.IOBps = int64(r.GetMaxIoBps())
	}
	return l
}

// showLimits sets what a job's message tells of its limits.
func showLimits(p *api.Job, l joblet.Limits) {
	p.Limits = LimitsToProto(l)
	p.MaxCpu, p.CpuCores = clamp(l.CPUPercent), text(l.CPUCores)
	p.MaxMemory, p.MaxIoBps = clamp((l.MemoryBytes+1<<20-1)>>20), clamp(l.IOBps)
}

func clamp(n int64) int32 { return int32(min(max(n, math.MinInt32), math.MaxInt32)) }

func usageToProto(u joblet.Usage) *api.JobUsage {
	if u == (joblet.Usage{}) {
		return nil
	}
	return &api.JobUsage{
		CpuUserUs: u.CPUUser.Microseconds(), CpuSystemUs: u.CPUSystem.Microseconds(), ThrottledUs: u.Throttled.Microseconds(),
		MemoryPeakBytes: u.MemoryPeak, PidsPeak: int64(u.PIDsPeak),
		ReadBytes: u.ReadBytes, WriteBytes: u.WriteBytes, ReadOps: u.ReadOps, WriteOps: u.WriteOps,
		CpuStallUs: u.CPUStall.Microseconds(), MemoryStallUs: u.MemoryStall.Microseconds(), IoStallUs: u.IOStall.Microseconds(),
	}
}

func usageFromProto(p *api.JobUsage) joblet.Usage {
	us := func(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
	return joblet.Usage{
		CPUUser: us(p.GetCpuUserUs()), CPUSystem: us(p.GetCpuSystemUs()), Throttled: us(p.GetThrottledUs()),
		MemoryPeak: p.GetMemoryPeakBytes(), PIDsPeak: int(p.GetPidsPeak()),
		ReadBytes: p.GetReadBytes(), WriteBytes: p.GetWriteBytes(), ReadOps: p.GetReadOps(), WriteOps: p.GetWriteOps(),
		CPUStall: us(p.GetCpuStallUs()), MemoryStall: us(p.GetMemoryStallUs()), IOStall: us(p.GetIoStallUs()),
	}
}

// SampleToProto returns a sample of the job with this id.
func SampleToProto(id string, s joblet.Sample) *api.JobMetricsEvent {
	return &api.JobMetricsEvent{
		Timestamp: s.Time.UnixNano(), TimestampNs: s.Time.UnixNano(), JobUuid: id,
		CpuPercent: s.CPUPercent, MemoryBytes: s.Memory, MemoryLimit: s.MemoryLimit, SwapBytes: s.Swap, Pids: toInt32(s.PIDs),
		DiskReadBytes: s.ReadBytes, DiskWriteBytes: s.WriteBytes, Usage: usageToProto(s.Usage),
	}
}

// SampleFromProto returns the sample that p shows.
func SampleFromProto(p *api.JobMetricsEvent) joblet.Sample {
	return joblet.Sample{
		Time: time.Unix(0, p.GetTimestampNs()), Usage: usageFromProto(p.GetUsage()),
		CPUPercent: p.GetCpuPercent(), Memory: p.GetMemoryBytes(), MemoryLimit: p.GetMemoryLimit(), Swap: p.GetSwapBytes(), PIDs: int(p.GetPids()),
	}
}

// ProcessToProto returns p as a message.
func ProcessToProto(p joblet.Process) *api.JobProcess {
	return &api.JobProcess{
		Pid: toInt32(p.PID), HostPid: toInt32(p.HostPID), Ppid: toInt32(p.PPID), Uid: toInt32(p.UID),
		State: text(p.State), Name: text(p.Name), Command: text(p.Command), Threads: toInt32(p.Threads), StartTime: formatTime(p.Started),
		CpuUs: p.CPUTime.Microseconds(), CpuPercent: p.CPUPercent, MemoryBytes: p.Memory,
	}
}

// ProcessFromProto returns the process that p shows.
func ProcessFromProto(p *api.JobProcess) (joblet.Process, error) {
	out := joblet.Process{
		PID: int(p.GetPid()), HostPID: int(p.GetHostPid()), PPID: int(p.GetPpid()), UID: int(p.GetUid()),
		State: p.GetState(), Name: p.GetName(), Command: p.GetCommand(), Threads: int(p.GetThreads()),
		CPUTime: time.Duration(p.GetCpuUs()) * time.Microsecond, CPUPercent: p.GetCpuPercent(), Memory: p.GetMemoryBytes(),
	}
	return out, parseTimes([]timeField{{"start_time", &out.Started, p.GetStartTime()}})
}

// ProcessesToProto returns p as a message.
func ProcessesToProto(p joblet.Processes) *api.ListJobProcessesResponse {
	out := &api.ListJobProcessesResponse{Processes: make([]*api.JobProcess, len(p.All)), Omitted: int64(p.Omitted), TimestampNs: p.Time.UnixNano()}
	for i, q := range p.All {
		out.Processes[i] = ProcessToProto(q)
	}
	return out
}

// ProcessesFromProto returns the processes that p shows.
func ProcessesFromProto(p *api.ListJobProcessesResponse) (joblet.Processes, error) {
	out := joblet.Processes{Time: time.Unix(0, p.GetTimestampNs()), Omitted: int(p.GetOmitted())}
	for _, m := range p.GetProcesses() {
		q, err := ProcessFromProto(m)
		if err != nil {
			return out, err
		}
		out.All = append(out.All, q)
	}
	return out, nil
}

// MaxInterval and MinInterval bound how often a stream of samples has one.
const (
	DefaultInterval = time.Second
	MinInterval     = 100 * time.Millisecond
	MaxInterval     = time.Hour
)

// IntervalFromProto returns the time between two samples that r asks for.
func IntervalFromProto(r *api.StreamJobMetricsRequest) (time.Duration, error) {
	ms := r.GetIntervalMs()
	if ms == 0 {
		return DefaultInterval, nil
	}
	if ms < MinInterval.Milliseconds() || ms > MaxInterval.Milliseconds() {
		return 0, joblet.Errorf(joblet.InvalidArgument, "interval of %d ms: must be between %v and %v", ms, MinInterval, MaxInterval)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// RangeToProto returns the request for the samples that were kept of a job between
// two moments, the newest limit of them.
func RangeToProto(ref string, from, to time.Time, limit int) *api.GetJobMetricsRequest {
	return &api.GetJobMetricsRequest{JobUuid: ref, StartTime: unixNano(from), EndTime: unixNano(to), Limit: int32(min(max(limit, 0), 1<<30))}
}

// ValidRange reads the bounds of a request for samples, Unix time in nanoseconds;
// 0: none.
func ValidRange(r *api.GetJobMetricsRequest) (from, to time.Time, limit int, err error) {
	if r.GetStartTime() < 0 || r.GetEndTime() < 0 || r.GetLimit() < 0 {
		return from, to, 0, joblet.Errorf(joblet.InvalidArgument, "start_time, end_time and limit must not be negative")
	}
	if ns := r.GetStartTime(); ns > 0 {
		from = time.Unix(0, ns)
	}
	if ns := r.GetEndTime(); ns > 0 {
		to = time.Unix(0, ns)
	}
	return from, to, int(r.GetLimit()), nil
}

// exactNano returns the Unix time of t; 0 if the field cannot hold it.
func exactNano(t time.Time) int64 {
	if n := unixNano(t); n > 1 && n < math.MaxInt64 {
		return n
	}
	return 0
}

// unixNano returns 0 for the zero time, and the nearest bound for one that the
// field cannot hold.
func unixNano(t time.Time) int64 {
	switch {
	case t.IsZero():
		return 0
	case !t.After(time.Unix(0, 1)):
		return 1
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	}
	return t.UnixNano()
}
