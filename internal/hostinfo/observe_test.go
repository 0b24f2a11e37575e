package hostinfo

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// status is a status file; groups stand ahead of what is read of it.
func status(name string, uid int, groups, numbers string) string {
	return fmt.Sprintf("Name:\t%s\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t7\nUid:\t%d\t%d\t0\t0\nGid:\t0\t0\t0\t0\nFDSize:\t64\nGroups:\t%s \nNStgid:\t9\t9\nNSpid:\t%s\nThreads:\t1\n",
		name, uid+1, uid, groups, numbers)
}

// TestObserve looks at recorded processes, whose names, arguments and groups are
// as hostile as they can be.
func TestObserve(t *testing.T) {
	t.Parallel()
	h := recorded{t.TempDir()}
	h.write(t, map[string]string{
		"7/stat":    stat(7, "a) R 1 (b\n", 'S', 1, 100, 50, 4, 1000, 2),
		"7/status":  status(`Uid:\n0`, 1000, "", "7\t1"),
		"7/cmdline": "a\x00\x1b[2J\nb\x00" + strings.Repeat("\xff", 3) + "\x00\x00",
		// The kernel lets a process have 65,536 supplementary groups.
		"8/stat":    stat(8, "groups", 'R', 7, 0, 0, 1, 1100, 3),
		"8/status":  status("x", 1001, strings.Repeat("4294967294 ", 65536), "8\t2\t1"),
		"8/cmdline": strings.Repeat("é", 2000),
		"9/stat":    stat(9, "other", 'R', 7, 0, 0, 1, 1100, 3),
		"9/status":  status("x", 0, "", "9"),
		"9/cmdline": "secret",
		"10/stat":   stat(10, "half", 'R', 7, 0, 0, 1, 1100, 3), // it ended then
		// It ends when its arguments are asked for, and another gets its number.
		"12/stat":    stat(12, "reused", 'R', 7, 0, 0, 1, 1100, 3),
		"12/status":  status("x", 1001, "", "12\t3"),
		"12/cmdline": "secret",
	})
	o := Observer{commands{proc: h.dir}}
	all, omitted, err := o.Observe([]int{7, 8, 9, 10, 11, 12}, func(p *Observed) bool {
		if p.PID == 12 {
			h.write(t, map[string]string{"12/stat": stat(12, "thief", 'R', 1, 0, 0, 1, 1101, 3)})
		}
		return len(p.Numbers) > 1
	})
	if err != nil || omitted != 0 || len(all) != 3 {
		t.Fatalf("%+v, %d, %v", all, omitted, err)
	}
	up, err := uptime()
	if err != nil {
		t.Fatal(err)
	}
	if got := time.Since(all[0].Started) - (up - 10*time.Second); got.Abs() > 10*time.Second {
		t.Errorf("started %v wrong", got)
	}
	for i := range all {
		all[i].Started, all[i].start = time.Time{}, 0
	}
	want := []Observed{
		{PID: 7, PPID: 1, Numbers: []int{7, 1}, UID: 1000, Name: "a) R 1 (b\n", Command: "a \x1b[2J\nb \uFFFD", State: "S", Threads: 4, CPUTime: 1500 * time.Millisecond, Resident: 2 * int64(os.Getpagesize())},
		{PID: 8, PPID: 7, Numbers: []int{8, 2, 1}, UID: 1001, Name: "groups", Command: strings.Repeat("é", maxCommand/2), State: "R", Threads: 1, Resident: 3 * int64(os.Getpagesize())},
		{PID: 12, PPID: 7, Numbers: []int{12, 3}, UID: 1001, Name: "reused", Command: "[reused]", State: "R", Threads: 1, Resident: 3 * int64(os.Getpagesize())},
	}
	if !reflect.DeepEqual(all, want) {
		t.Errorf("got\n%+v\nwant\n%+v", all, want)
	}

	for name, content := range map[string]string{"stat": "broken", "status": "Uid:\t1\t1\t1\t1\nNSpid:\tx\n"} {
		h.write(t, map[string]string{"20/stat": stat(20, "a", 'R', 1, 0, 0, 1, 1, 1), "20/status": status("x", 1, "", "20\t1"), "20/cmdline": ""})
		h.write(t, map[string]string{"20/" + name: content})
		if all, _, err := o.Observe([]int{20}, func(*Observed) bool { return true }); err == nil {
			t.Errorf("%s %q: got %+v", name, content, all)
		}
	}
}

// TestObserveHanging: processes whose arguments cannot be read, as many as there
// are, are told without; and the others with, as long as not too many hang.
func TestObserveHanging(t *testing.T) {
	t.Parallel()
	h := recorded{t.TempDir()}
	o := Observer{commands{proc: h.dir}}
	var pids []int
	for pid := 1; pid <= 40; pid++ {
		h.write(t, map[string]string{
			fmt.Sprintf("%d/stat", pid):   stat(pid, "n", 'D', 1, 0, 0, 1, 1000, 2),
			fmt.Sprintf("%d/status", pid): status("n", 1, "", fmt.Sprintf("%d\t%d", pid, pid)),
		})
		if pid%2 == 0 {
			h.write(t, map[string]string{fmt.Sprintf("%d/cmdline", pid): "x"})
		} else if err := unix.Mkfifo(filepath.Join(h.dir, fmt.Sprint(pid), "cmdline"), 0o600); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	told := map[int]bool{}
	for range 4 {
		start := time.Now()
		all, omitted, err := o.Observe(pids, func(*Observed) bool { return true })
		if took := time.Since(start); err != nil || omitted != 0 || len(all) != len(pids) || took > 20*time.Second {
			t.Fatalf("%d of %d after %v: %v", len(all), len(pids), took, err)
		}
		for _, p := range all {
			told[p.PID] = told[p.PID] || p.Command == "x"
			if p.PID%2 == 1 && p.Command != "[n]" {
				t.Errorf("got %+v", p)
			}
		}
	}
	for _, pid := range pids {
		if hangs := pid%2 == 1; !hangs && !told[pid] {
			t.Errorf("%d is not told", pid)
		} else if hangs && o.commands.late[pid] == nil {
			t.Errorf("%d is not late", pid)
		}
	}
	for pid := 1; pid <= 40; pid += 2 { // lets the readers go
		f, err := os.OpenFile(filepath.Join(h.dir, fmt.Sprint(pid), "cmdline"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	for _, late := range o.commands.late {
		<-late.done
	}
}

// TestObserveHere looks at real processes: a child, one that has ended and is not
// reaped, and one that is gone.
func TestObserveHere(t *testing.T) {
	t.Parallel()
	loop := exec.Command("sh", "-c", "while :; do :; done")
	zombie, gone := exec.Command("true"), exec.Command("true")
	for _, cmd := range []*exec.Cmd{loop, zombie, gone} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		_ = loop.Process.Kill()
		_, _ = loop.Wait(), zombie.Wait() // killed, or of no interest
	}()
	if err := gone.Wait(); err != nil {
		t.Fatal(err)
	}
	o := NewObserver()
	pids := []int{loop.Process.Pid, zombie.Process.Pid, gone.Process.Pid}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		all, _, err := o.Observe(pids, func(*Observed) bool { return true })
		if err != nil || len(all) != 2 {
			t.Fatalf("%+v, %v", all, err)
		}
		l, z := all[0], all[1]
		if l.State == "R" && l.CPUTime > 0 && l.Command != "[sh]" && z.State == "Z" {
			if l.PPID != os.Getpid() || l.Command != "sh -c while :; do :; done" || l.UID != os.Geteuid() || l.Numbers[0] != l.PID || l.Threads != 1 || l.Resident <= 0 ||
				time.Since(l.Started).Abs() > time.Minute || z.Command != "[true]" {
				t.Errorf("%+v", all)
			}
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%+v", all)
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	o := NewObserver()
	pid := []int{os.Getpid()}
	for b.Loop() {
		if all, _, err := o.Observe(pid, func(*Observed) bool { return true }); err != nil || len(all) != 1 {
			b.Fatal(all, err)
		}
	}
}

func TestChildren(t *testing.T) {
	t.Parallel()
	h := recorded{t.TempDir()}
	h.write(t, map[string]string{
		"1/task/1/children": "2 3 ", "1/task/5/children": "", "1/task/6/x": "", "2/task/2/children": strings.Repeat("123 ", 5000) + "x -1 4",
	})
	got := (&Observer{commands{proc: h.dir}}).Children([]int{1, 2, 3})
	if len(got) != 5003 || got[0] != 2 || got[1] != 3 || got[5001] != 123 || got[5002] != 4 {
		t.Errorf("%d: %v …", len(got), got[:min(len(got), 5)])
	}
}
