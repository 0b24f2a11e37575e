package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// workerCounts are the numbers of jobs at once of the throughput table.
var workerCounts = []int{1, 2, 8}

// giveUpAfter is how many runs of a contender may fail before it is left out
// of the rest.
const giveUpAfter = 5

// runOnce runs true to its end.
func (b *bench) runOnce(ctx context.Context, c *contender, l *lane) (time.Duration, error) {
	if c.call == nil {
		return l.run(ctx, c.ns, c.command(b.id(), jobTrue))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), runTimeout)
	defer cancel()
	start := time.Now()
	err := c.call(ctx, jobTrue)
	return time.Since(start), err
}

// settle waits for what a contender has left running.
func (b *bench) settle(c *contender) {
	if !c.orphans {
		return
	}
	if err := waitOrphans(b.daemonPIDs()...); err != nil {
		b.fail(c, err)
	}
}

func (b *bench) fail(c *contender, err error) {
	c.failures++
	c.lastErr = err
	b.note("%s: %v", c.name, err)
	if c.failures == giveUpAfter {
		c.reason = fmt.Errorf("given up after %d failed runs, last: %w", giveUpAfter, err)
	}
}

// rounds runs every contender n times, in turns, and hands on the times.
func (b *bench) rounds(ctx context.Context, n int, idle time.Duration, record func(*contender, time.Duration)) {
	for range n {
		order := b.able()
		rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, c := range order {
			if idle > 0 {
				select {
				case <-ctx.Done():
				case <-time.After(idle):
				}
			}
			if ctx.Err() != nil {
				return
			}
			took, err := b.runOnce(ctx, c, b.lanes[0])
			if err != nil {
				b.fail(c, err)
			} else {
				record(c, took)
			}
			b.settle(c)
		}
	}
}

func (b *bench) warmUp(ctx context.Context) {
	b.rounds(ctx, b.warmup, 0, func(*contender, time.Duration) {})
}

func (b *bench) measureLatency(ctx context.Context) {
	b.note("start to exit of true, %d rounds", b.runs)
	b.rounds(ctx, b.runs, 0, func(c *contender, d time.Duration) { c.latency = append(c.latency, d) })
	b.noteDaemonMemory(whenIdle + ", after the runs of the first table")
}

func (b *bench) measureIdleLatency(ctx context.Context) {
	if b.idleRuns == 0 || b.idle == 0 {
		return
	}
	b.note("start to exit of true after %v of idleness, %d rounds", b.idle, b.idleRuns)
	b.rounds(ctx, b.idleRuns, b.idle, func(c *contender, d time.Duration) { c.idle = append(c.idle, d) })
}

func (b *bench) measureThroughput(ctx context.Context) {
	if b.duration == 0 {
		return
	}
	b.note("jobs per second, %v each", b.duration)
	for _, workers := range workerCounts {
		order := b.able()
		rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, c := range order {
			// The kernel takes network namespaces apart in the background: let
			// it finish with the last contender's.
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
			rate, err := b.jobsPerSecond(ctx, c, workers)
			b.settle(c)
			if err != nil {
				b.fail(c, fmt.Errorf("%d at once: %w", workers, err))
				continue
			}
			if c.perSec == nil {
				c.perSec = map[int]float64{}
			}
			c.perSec[workers] = rate
		}
	}
	b.noteDaemonMemory(whenIdle + ", after the jobs per second")
}

// jobsPerSecond runs true in a number of workers, over and over, for the set
// time. It counts all jobs over all the time until the last one has ended.
func (b *bench) jobsPerSecond(ctx context.Context, c *contender, workers int) (float64, error) {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // protects done and errs
		done  int
		errs  error
		start = time.Now()
	)
	for i := range workers {
		wg.Go(func() {
			n := 0
			var err error
			for err == nil && ctx.Err() == nil && time.Since(start) < b.duration {
				if _, err = b.runOnce(ctx, c, b.lanes[i]); err == nil {
					n++
				}
			}
			mu.Lock()
			defer mu.Unlock()
			done += n
			errs = errors.Join(errs, err)
		})
	}
	wg.Wait()
	return float64(done) / time.Since(start).Seconds(), errs
}

// jobMemory is what stays in memory beside a running job.
type jobMemory struct {
	Jobs      int     `json:"jobs"`
	Processes float64 `json:"processes_per_job"`
	PerJob    int64   `json:"pss_bytes_per_job"`
	Largest   int64   `json:"pss_bytes_largest_process"`
}

func (b *bench) measureMemory(ctx context.Context) {
	if b.memJobs == 0 {
		return
	}
	b.note("memory beside %d running jobs", b.memJobs)
	for _, c := range b.able() {
		if c.command == nil {
			continue // the same jobs as those of another row
		}
		if ctx.Err() != nil {
			return
		}
		m, err := b.memoryOf(ctx, c)
		if err != nil {
			b.fail(c, fmt.Errorf("memory: %w", err))
			continue
		}
		c.memory = m
	}
}

// memoryOf runs jobs that stay and adds up the proportional set size of all
// processes that came up with them and are not the jobs' own.
func (b *bench) memoryOf(ctx context.Context, c *contender) (_ *jobMemory, err error) {
	before, err := descendants(os.Getpid())
	if err != nil {
		return nil, err
	}
	// A box that joblet keeps ready is there before and becomes a job by execve;
	// one that it builds meanwhile is no part of a job.
	isNew := func(p process) bool { return before[p.pid].comm != p.comm }

	var fronts sync.WaitGroup // of the programs that stay in front of their jobs
	defer func() {
		all, listErr := descendants(os.Getpid())
		for _, p := range all {
			if p.comm == sleepName && isNew(p) {
				if kerr := unix.Kill(p.pid, unix.SIGKILL); kerr != nil && kerr != unix.ESRCH {
					err = errors.Join(err, fmt.Errorf("kill job %d: %w", p.pid, kerr))
				}
			}
		}
		fronts.Wait()
		b.settle(c)
		// Keepers of detached jobs end by themselves when their job has.
		gone := b.await(context.WithoutCancel(ctx), func() (bool, error) {
			all, err := descendants(os.Getpid())
			for _, p := range all {
				if isNew(p) && !p.zombie && p.comm != spareName {
					return false, err
				}
			}
			return true, err
		})
		if gone != nil {
			gone = fmt.Errorf("wait for what stays beside jobs to end: %w", gone)
		}
		err = errors.Join(err, listErr, gone)
	}()

	for range b.memJobs {
		if c.detached != nil {
			if _, err := b.lanes[0].run(ctx, c.ns, c.detached(b.id(), jobSleep)); err != nil {
				return nil, err
			}
			continue
		}
		cmd, err := b.lanes[0].start(context.WithoutCancel(ctx), c.ns, c.command(b.id(), jobSleep))
		if err != nil {
			return nil, err
		}
		fronts.Go(func() { _ = cmd.Wait() }) // ends as killed, once its job is
	}

	var all map[int]process
	err = b.await(ctx, func() (bool, error) {
		if all, err = descendants(os.Getpid()); err != nil {
			return false, err
		}
		jobs := 0
		for _, p := range all {
			if p.comm == sleepName && isNew(p) {
				jobs++
			}
		}
		return jobs == b.memJobs, nil
	})
	if err != nil {
		return nil, fmt.Errorf("wait for %d jobs to run: %w", b.memJobs, err)
	}

	m := &jobMemory{Jobs: b.memJobs}
	n, sum := 0, int64(0)
	ofJob := map[int]bool{} // the jobs' parents
	for _, p := range all {
		ofJob[p.parent] = ofJob[p.parent] || p.comm == sleepName
	}
	for _, p := range all {
		if p.comm == sleepName || p.zombie || p.comm != spareName && !isNew(p) || p.comm == spareName && !ofJob[p.pid] {
			continue
		}
		pss, err := pssOf(p.pid)
		if err != nil {
			return nil, err
		}
		n++
		sum += pss
		m.Largest = max(m.Largest, pss)
	}
	m.Processes = float64(n) / float64(b.memJobs)
	m.PerJob = sum / int64(b.memJobs)
	if c.name == rnxName {
		b.noteDaemonMemory(fmt.Sprintf("%d jobs running", b.memJobs))
	}
	return m, nil
}

// await asks until the answer is yes, for at most runTimeout.
func (b *bench) await(ctx context.Context, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if yes, err := ask(); err != nil || yes {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

type process struct {
	pid    int
	parent int
	comm   string
	zombie bool
}

// descendants returns the processes below pid.
func descendants(pid int) (map[int]process, error) {
	all := map[int]process{}
	queue := []int{pid}
	for len(queue) > 0 {
		pids, err := children(queue[0])
		if err != nil {
			return nil, err
		}
		queue = append(queue[1:], pids...)
		for _, pid := range pids {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil {
				continue // it has just ended
			}
			if p, err := parseStat(string(stat)); err != nil {
				return nil, err
			} else {
				all[pid] = p
			}
		}
	}
	return all, nil
}

// parseStat reads a process's stat file, proc_pid_stat(5).
func parseStat(stat string) (process, error) {
	// The name is in parentheses and may itself hold anything.
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 1 || end < open || len(stat) < end+3 {
		return process{}, fmt.Errorf("stat: malformed %.200q", stat)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(stat[:open]))
	if err != nil {
		return process{}, fmt.Errorf("stat: %w", err)
	}
	state := stat[end+2]
	parent, _, _ := strings.Cut(strings.TrimLeft(stat[end+3:], " "), " ")
	ppid, err := strconv.Atoi(strings.TrimSpace(parent))
	if err != nil {
		return process{}, fmt.Errorf("stat: %w", err)
	}
	return process{pid: pid, parent: ppid, comm: stat[open+1 : end], zombie: state == 'Z' || state == 'X'}, nil
}

// pssOf returns the proportional set size of a process in bytes: its memory,
// with pages that n processes share counted as one n-th.
func pssOf(pid int) (int64, error) {
	path := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pss, err := parsePSS(string(data))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return pss, nil
}

func parsePSS(rollup string) (int64, error) {
	for line := range strings.Lines(rollup) {
		if value, ok := strings.CutPrefix(line, "Pss:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("no line Pss")
}
