package hostinfo

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Processes are all processes of the host, kernel threads too.
type Processes struct {
	Total    int
	Running  int
	Sleeping int // also uninterruptibly, and idle kernel threads
	Stopped  int // also by a debugger
	Zombies  int
	Threads  int

	ByCPU, ByMemory []Process // the first ten
}

// Process is one of them.
type Process struct {
	PID, PPID int
	Name      string
	Command   string  // its arguments, the first KiB of them; "[name]" when it has none
	CPU       float64 // percent of all processors, since the previous sample or else since it began
	Memory    float64 // percent
	Resident  int64   // bytes in memory, shared ones too
	State     string  // a letter as ps shows it: R, S, D, T, Z, I
	Started   time.Time

	start uint64 // ticks since boot
}

const (
	topProcesses = 10
	maxStat      = 2 << 10 // a line of /proc/PID/stat is 52 numbers and a short name
	maxCommand   = 1 << 10

	// commandTime, twice, bounds how long the arguments of a process are waited for:
	// the kernel takes them from a process's memory, which one that hangs may have
	// locked. commandsTime bounds it for many together.
	commandTime  = 100 * time.Millisecond
	commandsTime = 2 * time.Second

	maxReading = 8  // processes whose arguments are read at once for one sample
	maxLate    = 64 // that hang; with more of them, no arguments are read

	tick = 100 // of the clock in which the kernel tells processes' times, each second
)

// process is a line of /proc/PID/stat.
type process struct {
	pid, ppid int
	name      string
	state     byte
	ticks     uint64 // of processors
	threads   int
	start     uint64 // ticks since boot
	pages     int64
}

type processReading struct {
	all    []process // sorted by pid
	uptime float64   // seconds
	boot   time.Time
	cores  int
	memory int64
}

// readProcesses goes once over /proc: three system calls for each process.
func (r *Reader) readProcesses() (out processReading, err error) {
	cpu, err := r.cpu.get(r.readCPU)
	if err != nil {
		return out, err
	}
	memory, err := r.memory.get(r.readMemory)
	if err != nil {
		return out, err
	}
	if cpu == nil || memory == nil {
		return out, fmt.Errorf("%s: %w", r.proc, os.ErrNotExist)
	}
	out.cores, out.memory = len(cpu.value.stat.CPU), memory.value.Total
	up, err := uptime()
	if err != nil {
		return out, err
	}
	out.uptime, out.boot = up.Seconds(), time.Now().Add(-up)

	dir, err := os.Open(r.proc)
	if err != nil {
		return out, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return out, err
	}
	out.all = make([]process, 0, len(names))
	buf := make([]byte, maxStat)
	for _, name := range names {
		if c := name[0]; c < '0' || c > '9' {
			continue
		}
		n, err := readAt(int(dir.Fd()), name+"/stat", buf)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrPermission) {
			continue // it has ended, or is hidden from us
		}
		if err != nil {
			return out, err
		}
		if p, ok := parseStat(buf[:n]); ok {
			out.all = append(out.all, p)
		}
	}
	slices.SortFunc(out.all, func(a, b process) int { return cmp.Compare(a.pid, b.pid) })
	return out, nil
}

// readAt fills buf from the start of a file of the kernel, for a fifth of what
// os.ReadFile costs.
func readAt(dir int, name string, buf []byte) (int, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	for err == unix.EINTR {
		fd, err = unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, buf)
	for err == unix.EINTR {
		n, err = unix.Read(fd, buf)
	}
	if err != nil {
		return 0, &os.PathError{Op: "read", Path: name, Err: err}
	}
	return n, nil
}

// parseStat reads a line of /proc/PID/stat (proc_pid_stat(5)). The name may hold
// anything, ")" too.
func parseStat(line []byte) (p process, ok bool) {
	left, right := bytes.IndexByte(line, '('), bytes.LastIndexByte(line, ')')
	if left < 1 || right < left {
		return p, false
	}
	if p.pid, ok = decimal[int](line[:left-1]); !ok || p.pid == 0 {
		return p, false
	}
	p.name = text(string(line[left+1 : right]))
	var user, system uint64
	field := 2 // of the manual page, the latest
	for f := range bytes.FieldsSeq(line[right+1:]) {
		ok := true
		switch field++; field {
		case 3:
			p.state, ok = f[0], len(f) == 1 && f[0] >= 'A' && f[0] <= 'z'
		case 4:
			p.ppid, ok = decimal[int](f)
		case 14:
			user, ok = decimal[uint64](f)
		case 15:
			system, ok = decimal[uint64](f)
		case 20:
			p.threads, ok = decimal[int](f)
		case 22:
			p.start, ok = decimal[uint64](f)
		case 24:
			p.pages, ok = decimal[int64](f)
			p.ticks = user + system
			return p, ok
		}
		if !ok {
			return p, false
		}
	}
	return p, false
}

// decimal reads a number that is not negative and has at most 18 digits; counts
// of that size the kernel does not reach.
func decimal[T int | int64 | uint64](digits []byte) (n T, ok bool) {
	if len(digits) == 0 || len(digits) > 18 {
		return 0, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + T(c-'0')
	}
	return n, true
}

func (r *Reader) processUsage(before, now *reading[processReading]) *Processes {
	out := &Processes{Total: len(now.value.all)}
	all := make([]Process, len(now.value.all))
	var old []process
	if before != nil {
		old = before.value.all
	}
	for i, p := range now.value.all {
		switch p.state {
		case 'R':
			out.Running++
		case 'S', 'D', 'I':
			out.Sleeping++
		case 'T', 't':
			out.Stopped++
		case 'Z':
			out.Zombies++
		}
		out.Threads += p.threads
		for len(old) > 0 && old[0].pid < p.pid {
			old = old[1:]
		}
		ticks, seconds := p.ticks, now.value.uptime-float64(p.start)/tick
		if before != nil {
			seconds = now.at.Sub(before.at).Seconds()
			if len(old) > 0 && old[0].pid == p.pid && old[0].start == p.start {
				ticks = growth(old[0].ticks, p.ticks)
			}
		}
		resident := p.pages * int64(os.Getpagesize())
		all[i] = Process{
			PID: p.pid, PPID: p.ppid, Name: p.name, State: string(rune(p.state)),
			CPU:      percent(float64(ticks)/tick, seconds*float64(now.value.cores)),
			Memory:   percent(float64(resident), float64(now.value.memory)),
			Resident: resident,
			Started:  now.value.boot.Add(time.Duration(p.start) * (time.Second / tick)),
			start:    p.start,
		}
	}
	out.ByCPU = top(all, func(a, b Process) int {
		return cmp.Or(cmp.Compare(b.CPU, a.CPU), cmp.Compare(b.Resident, a.Resident), cmp.Compare(a.PID, b.PID))
	})
	out.ByMemory = top(all, func(a, b Process) int {
		return cmp.Or(cmp.Compare(b.Resident, a.Resident), cmp.Compare(b.CPU, a.CPU), cmp.Compare(a.PID, b.PID))
	})
	r.commands.fill(out.ByCPU, out.ByMemory)
	return out
}

// top returns the first few of all in an order, without sorting the others.
func top(all []Process, order func(a, b Process) int) []Process {
	var out []Process
	for _, p := range all {
		i, _ := slices.BinarySearchFunc(out, p, order)
		if i == topProcesses {
			continue
		}
		if len(out) == topProcesses {
			out = out[:topProcesses-1]
		}
		out = slices.Insert(out, i, p)
	}
	return out
}

// commands reads the arguments of processes, a few at a time. It remembers whose
// are still waited for, so that a process that hangs costs one goroutine and not
// one for each sample.
type commands struct {
	proc string
	mu   sync.Mutex
	late map[int]*command // by pid
}

// command is arguments that are being read.
type command struct {
	done chan struct{}
	text string
	late bool // its first reader waits for others now
}

// processID is a process, and no other that gets its number later.
type processID struct {
	pid   int
	start uint64 // ticks since boot; 0: whatever process has the number
}

// fill sets the commands of processes.
func (c *commands) fill(lists ...[]Process) {
	var all []processID
	for _, list := range lists {
		for _, p := range list {
			all = append(all, processID{p.PID, p.start})
		}
	}
	texts := c.of(all)
	for _, list := range lists {
		for i := range list {
			p := &list[i]
			p.Command = cmp.Or(texts[p.PID], "["+p.Name+"]")
		}
	}
}

// of returns the arguments of processes by pid, without those that have none,
// have ended, or do not let them be read in time.
func (c *commands) of(all []processID) map[int]string {
	texts := make(map[int]string, len(all))
	todo := c.fresh(all)
	done := make(chan int, len(todo)) // room for abandoned readings
	reading := map[int]*command{}
	busy := 0 // of those the ones that are not late yet
	take := func(pid int) {
		cmd := reading[pid]
		texts[pid] = cmd.text
		delete(reading, pid)
		if !cmd.late {
			busy--
		}
	}
	stalls := 0 // in a row
	stalled := time.NewTimer(commandTime)
	defer stalled.Stop()
	for end := time.Now().Add(commandsTime); len(todo)+busy > 0 && len(reading)-busy < maxLate && time.Now().Before(end); {
		for ; len(todo) > 0 && busy < maxReading; todo = todo[1:] {
			id, cmd := todo[0], &command{done: make(chan struct{})}
			reading[id.pid] = cmd
			busy++
			go func() {
				cmd.text = readCommand(c.proc, id)
				close(cmd.done)
				done <- id.pid
			}()
		}
		select {
		case pid := <-done:
			take(pid)
			stalls = 0
		case <-stalled.C:
			// Either they hang or we got no processor, and then the timer is seen
			// before those that could read: they have another time.
			if stalls++; stalls < 2 {
				break
			}
			for _, cmd := range reading {
				cmd.late = true
			}
			busy, stalls = 0, 0
		}
		stalled.Reset(commandTime)
	}
	for len(done) > 0 {
		take(<-done)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for pid, cmd := range reading {
		if c.late == nil {
			c.late = map[int]*command{}
		}
		c.late[pid] = cmd
	}
	return texts
}

// fresh returns those of the processes that are not waited for since an earlier
// sample, each once.
func (c *commands) fresh(all []processID) []processID {
	c.mu.Lock()
	defer c.mu.Unlock()
	for pid, late := range c.late {
		select {
		case <-late.done:
			delete(c.late, pid)
		default:
		}
	}
	if len(c.late) >= maxLate {
		return nil
	}
	seen := make(map[int]bool, len(all))
	return slices.DeleteFunc(slices.Clone(all), func(id processID) bool {
		skip := seen[id.pid] || c.late[id.pid] != nil
		seen[id.pid] = true
		return skip
	})
}

// readCommand returns "" for a process that has no arguments or has ended.
func readCommand(proc string, id processID) string {
	// Files opened in a process's directory stay those of that process, even if its
	// number is reused.
	dir, err := os.Open(filepath.Join(proc, strconv.Itoa(id.pid)))
	if err != nil {
		return ""
	}
	defer dir.Close()
	buf := make([]byte, maxStat)
	if id.start != 0 {
		n, err := readAt(int(dir.Fd()), "stat", buf)
		if err != nil {
			return ""
		}
		if p, ok := parseStat(buf[:n]); !ok || p.start != id.start {
			return ""
		}
	}
	n, err := readAt(int(dir.Fd()), "cmdline", buf[:maxCommand])
	if err != nil {
		return ""
	}
	b := bytes.TrimRight(buf[:n], "\x00")
	return text(string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
}
