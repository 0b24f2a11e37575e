package hostinfo

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Observer looks at single processes, from outside. Its methods may be called at
// the same time.
type Observer struct{ commands commands }

// NewObserver returns an Observer of this host's processes.
func NewObserver() *Observer { return &Observer{commands{proc: "/proc"}} }

// Observed is a process as an Observer has seen it.
type Observed struct {
	PID, PPID int
	Numbers   []int // in each of its PID namespaces: PID, then the one in the namespace below the host's, and so on
	UID       int   // effective, of the host
	Name      string
	Command   string // its arguments, the first KiB of them; "[name]" when it has none
	State     string // a letter as ps shows it
	Threads   int
	CPUTime   time.Duration
	Resident  int64 // bytes in memory, shared ones too
	Started   time.Time

	start uint64
}

// observeTime bounds the time to read many processes, without their commands. Most take
// less than 0.1 ms each, but one with the maximum of supplementary groups takes
// milliseconds.
const observeTime = 2 * time.Second

// Observe looks at the processes with these numbers, in their order, without
// those that have ended, and those that keep does not want: a number may be
// another process's by now. omitted is how many there was no time for.
func (o *Observer) Observe(pids []int, keep func(*Observed) bool) (all []Observed, omitted int, err error) {
	up, err := uptime()
	if err != nil {
		return nil, 0, fmt.Errorf("cannot read the processes: %w", err)
	}
	boot := time.Now().Add(-up)
	buf := make([]byte, 4<<10)
	end := time.Now().Add(observeTime)
	ids := make([]processID, 0, len(pids))
	for i, pid := range pids {
		if time.Now().After(end) {
			omitted = len(pids) - i
			break
		}
		p, err := o.look(pid, buf)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return nil, 0, fmt.Errorf("cannot read process %d: %w", pid, err)
		}
		if !keep(&p) {
			continue
		}
		p.Started = boot.Add(time.Duration(p.start) * (time.Second / tick))
		all = append(all, p)
		ids = append(ids, processID{pid, p.start})
	}
	texts := o.commands.of(ids)
	for i := range all {
		all[i].Command = cmp.Or(texts[all[i].PID], "["+all[i].Name+"]")
	}
	return all, omitted, nil
}

// Children returns the children of processes. It is how those are found that have
// ended and are not waited for: no cgroup lists them.
func (o *Observer) Children(parents []int) (all []int) {
	end := time.Now().Add(observeTime)
	for _, pid := range parents {
		tasks := filepath.Join(o.commands.proc, strconv.Itoa(pid), "task")
		threads, err := os.ReadDir(tasks)
		if err != nil {
			continue // it has ended
		}
		for _, thread := range threads {
			if time.Now().After(end) {
				return all
			}
			children, err := os.ReadFile(filepath.Join(tasks, thread.Name(), "children"))
			if err != nil {
				continue // it has ended, or the kernel lacks CONFIG_PROC_CHILDREN
			}
			for f := range bytes.FieldsSeq(children) {
				if child, ok := decimal[int](f); ok {
					all = append(all, child)
				}
			}
		}
	}
	return all
}

func (o *Observer) look(pid int, buf []byte) (out Observed, err error) {
	// Files opened in the directory stay those of this process, even if its number is
	// reused.
	dir, err := unix.Open(o.commands.proc+"/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return out, err
	}
	defer unix.Close(dir)
	n, err := readAt(dir, "stat", buf)
	if err != nil {
		return out, err
	}
	p, ok := parseStat(buf[:n])
	if !ok {
		return out, fmt.Errorf("unexpected format of stat: %.200q", buf[:n])
	}
	out = Observed{
		PID: p.pid, PPID: p.ppid, Name: p.name, State: string(rune(p.state)), Threads: p.threads,
		CPUTime: time.Duration(p.ticks) * (time.Second / tick), Resident: p.pages * int64(os.Getpagesize()), start: p.start,
	}
	return out, readIdentity(dir, buf, &out)
}

// readIdentity reads the identity of a process from its status file
// (proc_pid_status(5)). The wanted fields follow its supplementary groups, up to 65,536
// of them.
func readIdentity(dir int, buf []byte, out *Observed) error {
	fd, err := unix.Openat(dir, "status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "status")
	defer f.Close()
	uid, numbers := false, false
	rest := 0 // at the beginning of buf: of a line whose end has not been read
	for {
		n, err := f.Read(buf[rest:])
		if n == 0 {
			return cmp.Or(err, errors.New("the file is empty"))
		}
		lines := buf[:rest+n]
		for {
			line, after, whole := bytes.Cut(lines, []byte{'\n'})
			if !whole {
				break
			}
			lines = after
			name, value, _ := bytes.Cut(line, []byte{':'})
			switch string(name) {
			case "Uid": // real, effective, saved, of the file system
				if f := bytes.Fields(value); len(f) == 4 {
					out.UID, uid = decimal[int](f[1])
				}
			case "NSpid":
				for f := range bytes.FieldsSeq(value) {
					pid, ok := decimal[int](f)
					if !ok {
						return fmt.Errorf("unexpected format of NSpid: %.200q", value)
					}
					out.Numbers = append(out.Numbers, pid)
				}
				numbers = true
			}
			if uid && numbers {
				return nil
			}
		}
		if len(lines) == len(buf) {
			lines = lines[:0] // a line of many groups
		}
		rest = copy(buf, lines)
	}
}
