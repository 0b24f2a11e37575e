package supervisor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/hostinfo"
	"github.com/joblet/joblet/internal/sandbox/native"
)

// maxProcesses bounds how many processes of a job are looked at for one answer.
const maxProcesses = 5000

// Processes returns the processes of a running job. It looks at them from
// outside: nothing is run in the job, and whatever they do they are in its cgroup.
// Of very many only those with the lowest numbers are looked at.
func (s *Supervisor) Processes(ctx context.Context, id string) (joblet.Processes, error) {
	proc, err := s.process(ctx, id)
	if err != nil {
		return joblet.Processes{}, err
	}
	// One after the other: a job of many processes costs one processor at most,
	// however many want to see them.
	unlock, err := s.keys.lock(ctx, "processes\x00"+proc.ID)
	if err != nil {
		return joblet.Processes{}, err
	}
	defer unlock()
	out := joblet.Processes{Time: time.Now()}
	pids, err := proc.PIDs()
	if err == nil {
		out.All, out.Omitted, err = s.observe(proc, pids, out.Time)
	}
	select {
	case <-proc.Done(): // its cgroup, ids and numbers may be another's by now
		return joblet.Processes{}, joblet.Errorf(joblet.FailedPrecondition, "list the job's processes: it has ended meanwhile")
	default:
	}
	if err != nil {
		return joblet.Processes{}, fmt.Errorf("list the job's processes: %w", err)
	}
	return out, nil
}

func (s *Supervisor) observe(proc *native.Process, pids []int, now time.Time) (all []joblet.Process, omitted int, err error) {
	slices.Sort(pids)
	pids = slices.Compact(pids) // cgroup v1 may name one twice
	if len(pids) > maxProcesses {
		omitted = len(pids) - maxProcesses
		pids = pids[:maxProcesses]
	}
	// By now a number may be that of another process. But only the job's own
	// have its ids, and are in a PID namespace below ours.
	first := int(proc.IDBase)
	own := func(p *hostinfo.Observed) bool {
		return len(p.Numbers) > 1 && p.Numbers[0] == p.PID && p.UID >= first && p.UID < first+native.IDCount
	}
	seen, late, err := s.observer.Observe(pids, own)
	if err != nil {
		return nil, 0, err
	}
	omitted += late
	if omitted == 0 && countThreads(seen) < current(proc) { // the difference is those that nobody has waited for
		dead := s.observer.Children(pids)
		slices.Sort(dead)
		dead = slices.DeleteFunc(slices.Compact(dead), func(pid int) bool {
			_, listed := slices.BinarySearch(pids, pid)
			return listed
		})
		if room := maxProcesses - len(seen); len(dead) > room {
			omitted, dead = len(dead)-room, dead[:room]
		}
		zombies, late, err := s.observer.Observe(dead, func(p *hostinfo.Observed) bool { return p.State == "Z" && own(p) })
		if err != nil {
			return nil, 0, err
		}
		seen, omitted = append(seen, zombies...), omitted+late
	}
	numbers := make(map[int]int, len(seen))
	for _, p := range seen {
		numbers[p.PID] = p.Numbers[1]
	}
	all = make([]joblet.Process, len(seen))
	for i, p := range seen {
		if p.Started.Before(proc.Started) { // PID 1 waited for the job in a ready box
			p.Started = proc.Started
		}
		all[i] = joblet.Process{
			PID: p.Numbers[1], HostPID: p.PID, PPID: numbers[p.PPID], UID: p.UID - first,
			State: p.State, Name: p.Name, Command: p.Command, Threads: p.Threads, Started: p.Started,
			CPUTime: p.CPUTime, Memory: p.Resident,
		}
		ran := max(now.Sub(p.Started), 10*time.Millisecond) // in which the kernel counts both
		all[i].CPUPercent = 100 * float64(p.CPUTime) / float64(ran)
	}
	slices.SortFunc(all, func(a, b joblet.Process) int { return cmp.Compare(a.PID, b.PID) })
	return all, omitted, nil
}

func countThreads(all []hostinfo.Observed) (n int) {
	for _, p := range all {
		n += p.Threads
	}
	return n
}

// current returns how many processes and threads the job's cgroup counts, 0 where
// the host does not.
func current(proc *native.Process) int {
	meter := proc.Meter()
	defer meter.Close()
	return meter.Sample().PIDs
}
