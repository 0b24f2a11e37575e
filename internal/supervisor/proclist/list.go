// Package proclist lists the processes of running jobs, from outside: it runs nothing in
// a job.
package proclist

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/hostinfo"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/supervisor/keylock"
)

// maxProcesses bounds how many processes of a job are read for one answer.
const maxProcesses = 5000

// Lister lists the processes of jobs. It serves the clients that want to see one job in
// turn: a job of many processes costs one processor at most.
type Lister struct {
	observer *hostinfo.Observer
	lock     keylock.Lock // by box
}

// New returns a Lister.
func New() *Lister { return &Lister{observer: hostinfo.NewObserver()} }

// List returns the processes of a running job: all those in its cgroup, or, of very
// many, those with the lowest numbers.
func (l *Lister) List(ctx context.Context, proc *native.Process) (joblet.Processes, error) {
	unlock, err := l.lock.Lock(ctx, proc.ID)
	if err != nil {
		return joblet.Processes{}, err
	}
	defer unlock()
	out := joblet.Processes{Time: time.Now()}
	pids, err := proc.PIDs()
	if err == nil {
		out.All, out.Omitted, err = l.observe(proc, pids, out.Time)
	}
	select {
	case <-proc.Done(): // its cgroup, ids and numbers may be another's by now
		return joblet.Processes{}, joblet.Errorf(joblet.FailedPrecondition, "cannot list the job's processes: the job has ended meanwhile")
	default:
	}
	if err != nil {
		return joblet.Processes{}, fmt.Errorf("cannot list the job's processes: %w", err)
	}
	return out, nil
}

func (l *Lister) observe(proc *native.Process, pids []int, now time.Time) (all []joblet.Process, omitted int, err error) {
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
	seen, late, err := l.observer.Observe(pids, own)
	if err != nil {
		return nil, 0, err
	}
	omitted += late
	if omitted == 0 && countThreads(seen) < countTasks(proc) { // the difference is zombies
		dead := l.observer.Children(pids)
		slices.Sort(dead)
		dead = slices.DeleteFunc(slices.Compact(dead), func(pid int) bool {
			_, listed := slices.BinarySearch(pids, pid)
			return listed
		})
		if room := maxProcesses - len(seen); len(dead) > room {
			omitted, dead = len(dead)-room, dead[:room]
		}
		zombies, late, err := l.observer.Observe(dead, func(p *hostinfo.Observed) bool { return p.State == "Z" && own(p) })
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
		if p.Started.Before(proc.Started) { // PID 1 waited for the job in a warm sandbox
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

// countTasks returns how many processes and threads the job's cgroup counts, 0 where
// the host does not.
func countTasks(proc *native.Process) int {
	meter := proc.Meter()
	defer meter.Close()
	return meter.Sample().PIDs
}
