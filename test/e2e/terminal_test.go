package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a screen may take to show something: these tests run
// beside others, and so do the machines.
const patience = 60 * time.Second

// patient returns a context that ends when a command takes too long.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	return ctx
}

// screen is a real terminal: a window of tmux with a shell in it.
type screen struct {
	t    *testing.T
	dir  string // of tmux's socket
	pane string
}

const prompt = "here$ "

// newScreen opens a terminal whose shell finds rnx, and rnx the daemon.
func newScreen(t *testing.T, d *daemon, columns, rows int) *screen {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Fatal("tmux is needed: scripts/test installs it")
	}
	dir, err := os.MkdirTemp("", "tmux-") // a short name: it is part of a socket's
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{t: t, dir: dir}
	t.Cleanup(func() {
		_ = s.command("kill-server").Run() // it is gone when its last shell is
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	rc := filepath.Join(dir, "rc")
	text := fmt.Sprintf("PS1='%s'\nexport RNX_HOST=%s PATH=%s:$PATH LANG=C.UTF-8\nunset PROMPT_COMMAND\ncd %s\n", prompt, d.host(), binDir, dir)
	if err := os.WriteFile(rc, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.tmux("new-session", "-d", "-s", "s", "-x", strconv.Itoa(columns), "-y", strconv.Itoa(rows), "bash --noprofile --rcfile "+rc)
	s.tmux("set-option", "-g", "window-size", "manual")
	s.pane = "s"
	s.wait(`here\$`)
	return s
}

func (s *screen) command(args ...string) *exec.Cmd {
	cmd := exec.Command("tmux", append([]string{"-u", "-f", "/dev/null", "-S", filepath.Join(s.dir, "s")}, args...)...)
	cmd.Env = append(os.Environ(), "TERM=xterm-256color")
	return cmd
}

func (s *screen) tmux(args ...string) string {
	s.t.Helper()
	out, err := s.command(args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return string(out)
}

// keys presses keys by tmux's names: Enter, C-c, Escape.
func (s *screen) keys(keys ...string) {
	s.t.Helper()
	s.tmux(append([]string{"send-keys", "-t", s.pane}, keys...)...)
}

// line types a line, as it is.
func (s *screen) line(text string) {
	s.t.Helper()
	s.tmux("send-keys", "-t", s.pane, "-l", text)
	s.keys("Enter")
}

// text is what the screen shows, without spaces at the ends of its lines and
// without the empty lines below. A line that was too long is one line.
func (s *screen) text() string {
	s.t.Helper()
	var b strings.Builder
	for line := range strings.Lines(s.tmux("capture-pane", "-J", "-p", "-t", s.pane)) {
		b.WriteString(strings.TrimRight(line, " \n"))
		b.WriteByte('\n')
	}
	return strings.TrimRight(b.String(), "\n")
}

// wait waits until the screen shows something and returns it.
func (s *screen) wait(pattern string) string {
	s.t.Helper()
	re := regexp.MustCompile("(?m)" + pattern)
	text := ""
	if !eventually(patience, func() bool { text = s.text(); return re.MatchString(text) }) {
		s.t.Fatalf("the screen does not show %s:\n%s", pattern, text)
	}
	return text
}

// clear empties the screen at a shell's prompt.
func (s *screen) clear() {
	s.t.Helper()
	s.line("clear")
	if !eventually(patience, func() bool { return len(strings.Fields(s.text())) <= 2 }) {
		s.t.Fatalf("the screen does not get empty:\n%s", s.text())
	}
}

// modes returns the terminal's modes, as the shell's child finds them.
func (s *screen) modes() string {
	s.t.Helper()
	s.clear()
	s.line(`stty -g > modes; echo "modes"; echo "written"`)
	s.wait(`^written`)
	data, err := os.ReadFile(filepath.Join(s.dir, "modes"))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(data)
}

// status checks the status of the command before.
func (s *screen) status(want int) {
	s.t.Helper()
	s.wait(`here\$\z`)
	s.line(`echo "status=$?."`)
	s.wait(fmt.Sprintf(`^status=%d\.`, want))
}

func (s *screen) resize(columns, rows int) {
	s.t.Helper()
	s.tmux("resize-window", "-t", s.pane, "-x", strconv.Itoa(columns), "-y", strconv.Itoa(rows))
}

// running returns the one job that runs.
func (d *daemon) running(t *testing.T) string {
	t.Helper()
	var ids []string
	if !eventually(patience, func() bool {
		ids = strings.Fields(d.rnx(t.Context(), "job", "list", "-q", "--status=RUNNING").stdout)
		return len(ids) == 1
	}) {
		t.Fatalf("%d jobs run", len(ids))
	}
	return ids[0]
}

// foreground waits until a program of the job is the foreground of its terminal.
func (d *daemon) foreground(t *testing.T, id, args string) {
	t.Helper()
	is := regexp.MustCompile(`(?m)^S\S*\+\S* +` + args + `$`)
	var r result
	if !eventually(patience, func() bool {
		r = d.rnx(t.Context(), "job", "exec", id, "ps", "ax", "-o", "stat=,args=")
		return is.MatchString(r.stdout)
	}) {
		t.Fatalf("%s is not in the foreground: %v", args, r)
	}
}

// TestTerminalCommands types the commands of the specification as a user would.
func TestTerminalCommands(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	s := newScreen(t, d, 100, 30)
	before := s.modes()
	run := "rnx job run " + runtime + " "

	s.line(run + "ps aux")
	s.wait(`(?s)root +1 .* pts/0 +\S+ .*ps aux.*here\$\z`)

	s.clear()
	s.line(run + "top -d 0.5")
	first := s.wait(`(?s)^top - .*PID USER.* 1 root`)
	clock := func(text string) string { return regexp.MustCompile(`(?m)^top - \S+`).FindString(text) }
	if !eventually(patience, func() bool { now := clock(s.text()); return now != "" && now != clock(first) }) {
		t.Errorf("top does not refresh:\n%s", s.text())
	}
	s.keys("q")
	s.wait(`here\$\z`)
	for range 3 { // whatever the moment
		s.clear()
		s.line(run + "sleep 60")
		d.running(t)
		s.keys("C-c")
		s.wait(`^(\^C)+\s+here\$`) // twice, if the outer terminal was not raw yet
		s.status(130)
	}
	s.clear()
	s.line(run + "sleep 60")
	d.running(t)
	s.keys(`C-\`)
	s.wait(`SIGQUIT`)
	s.status(131)
	// One that handles it is not ended.
	s.clear()
	s.line(run + `bash -c 'trap "echo got it; exit 5" INT; echo ready; while :; do sleep 0.05; done'`)
	s.wait(`^ready`)
	s.keys("C-c")
	s.wait(`got it`)
	s.status(5)
	// One that ignores it neither; and quoted, the key is a letter.
	s.clear()
	s.line(run + `bash -c 'trap "" INT; echo ready; sleep 1; cat'`)
	s.wait(`^ready`)
	s.keys("C-c")
	s.line("typed")
	s.wait(`typed\ntyped\z`)
	s.keys("C-d")
	s.status(0)
	if after := s.modes(); after != before {
		t.Errorf("terminal modes: %q, were %q", after, before)
	}
}

// TestTerminalShell: bash has job control.
func TestTerminalShell(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	s := newScreen(t, d, 100, 40)
	s.line("rnx job run " + runtime + " bash --norc")
	s.wait(`bash-5\S*#\z`)
	id := d.running(t)
	for _, step := range []struct{ line, shows, runs string }{ // runs: what a key is for
		{"tty", `^/dev/pts/0`, ""},
		{"sleep 60 &", `^\[1\] \d+`, ""},
		{"jobs", `^\[1\]\+  Running +sleep 60 &`, ""},
		{"kill %1; wait %1; echo status=$?.", `^status=143\.`, ""}, // a bare wait forgets a job that ended before it, unreported
		{"wait; sleep 61", ``, ""},
		{"C-z", `^\[\d\]\+  Stopped +sleep 61`, "sleep 61"},
		{"bg; jobs", `^\[\d\]\+  Running +sleep 61 &`, ""},
		{"fg", `\nsleep 61\z`, ""},
		{"C-c", `\^C\s+bash`, "sleep 61"},
		{"echo status=$?.", `^status=130\.`, ""},
		{"cat", ``, ""},
		{"C-c", `(?s)\^C.*\^C\s+bash`, "cat"},
		{"echo $(stty size)", `^40 100`, ""},
		{"echo $TERM.", `^(tmux|screen|xterm)\S*\.`, ""},
		{"echo äö; printf 'x\\n'", `^äö`, ""},
	} {
		if step.runs != "" {
			d.foreground(t, id, step.runs)
			s.keys(step.line)
		} else {
			s.line(step.line)
		}
		if step.shows != "" {
			s.wait(step.shows)
		}
	}
	if text := s.text(); strings.Contains(text, "cannot set terminal process group") || strings.Contains(text, "no job control") {
		t.Errorf("bash complains:\n%s", text)
	}
	s.line("exit 3")
	s.wait(`exit\s+here\$`)
	s.status(3)
}

// TestTerminalPrograms: programs that take the whole screen.
func TestTerminalPrograms(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	s := newScreen(t, d, 200, 30)
	t.Run("python", func(t *testing.T) {
		s.line("rnx job run " + runtime + " python3 -q")
		s.wait(`^>>>\z`)
		s.line("6 * 7")
		s.wait(`^42`)
		s.keys("C-c")
		s.wait(`KeyboardInterrupt\n>>>\z`)
		s.keys("C-d")
		s.wait(`here\$\z`)
		s.status(0)
	})
	t.Run("less", func(t *testing.T) {
		s.clear()
		s.line("rnx job run sh -c 'seq 1 1000 | sed s/$/-`printf %0180d 7`/ | less -S'")
		s.wait(`(?s)^1-0{179}7\n.*^29-`) // 200 columns are used
		s.keys("G")
		s.wait(`(?s)^1000-.*END`)
		s.resize(90, 12)
		text := s.wait(`^\d+-0{80,87}>\n:\z`)
		if lines := strings.Count(strings.TrimRight(text, "\n"), "\n"); lines > 11 {
			t.Errorf("%d lines after a resize to 12:\n%s", lines+1, text)
		}
		s.keys("q")
		s.wait(`here\$\z`)
		s.resize(200, 30)
	})
	t.Run("vim", func(t *testing.T) {
		s.clear()
		s.line("rnx job run --download=notes vim.tiny -u NONE notes")
		s.wait(`^~\n~\n~`)
		s.keys("i", "first", "Enter", "second", "Escape")
		s.wait(`(?s)^first\nsecond\n~`)
		s.resize(100, 20)
		if !eventually(patience, func() bool { return strings.Count(s.text(), "\n~") == 17 }) {
			t.Errorf("vim does not use the 20 lines that it has:\n%s", s.text())
		}
		s.keys(":wq", "Enter")
		s.wait(`here\$\z`)
		s.status(0)
		if got, err := os.ReadFile(filepath.Join(s.dir, "notes")); string(got) != "first\nsecond\n" {
			t.Errorf("vim wrote %q %v", got, err)
		}
		s.resize(200, 30)
	})
	t.Run("a flood and Ctrl-C", func(t *testing.T) {
		s.clear()
		s.line("rnx job run yes")
		s.wait(`(?s)^y\ny\ny\ny`)
		s.keys("C-c")
		s.wait(`here\$\z`)
		s.status(130)
	})
}

// TestTerminalAttach: a job outlives the window, and others see the same.
func TestTerminalAttach(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	s := newScreen(t, d, 90, 24)
	before := s.modes()
	s.clear()
	s.line("rnx job run --name=ed vim.tiny -u NONE notes")
	s.wait(`^~\n~\n~`)
	s.keys("i", "one line")
	s.wait(`^one line`)
	s.keys("C-p", "C-q")
	s.wait(`detached from job`)
	s.status(0)
	if after := s.modes(); after != before {
		t.Errorf("terminal modes after detaching: %q, were %q", after, before)
	}
	if got := strings.TrimSpace(s.tmux("display-message", "-p", "-t", "s", "#{alternate_on}")); got != "0" {
		t.Error("the alternate screen stays after detaching")
	}
	s.line("rnx job attach ed")
	s.wait(`(?s)\Aone line\n~\n`)
	// Another window, larger, sees the same; both type.
	other := newScreen(t, d, 120, 40)
	other.line("rnx job attach --detach-keys=ctrl-] ed")
	other.wait(`(?s)\Aone line\n~\n`)
	s.keys(" and", " more")
	other.wait(`\Aone line and more\n`)
	other.keys(" here")
	s.wait(`one line and more here`)
	other.keys("C-]")
	other.wait(`detached`)
	s.keys("Escape", ":q!", "Enter")
	s.wait(`here\$\z`)
	s.status(0)

	// A shell: its lines are there again, no question is asked of this terminal.
	s.clear()
	s.line("rnx job run --name=sh --detach-keys=ctrl-a,d bash --norc")
	s.wait(`bash-5\S*#\z`)
	s.line(`stty -echo; printf '\033[6n\033[c'; read -t 60 -s -d c answer; stty echo; printf 'mark\n'; PS1='in# '`)
	s.wait(`^in#\z`)
	s.keys("C-a", "d")
	s.wait(`detached from job`)
	s.clear()
	s.line("RNX_DETACH_KEYS=ctrl-x rnx job attach sh")
	text := s.wait(`(?s)^mark.*^in#\z`)
	time.Sleep(300 * time.Millisecond)
	if now := s.text(); strings.Contains(now, ";1R") || strings.Contains(now, "[?6") {
		t.Errorf("the terminal has answered questions of the past: %s\n%s", text, now)
	}
	s.keys("C-p") // no prefix of the keys here: bash's
	s.wait(`^in# stty`)
	s.keys("C-u")
	s.line("exit 4")
	s.wait(`here\$\z`)
	s.status(4)
	// The keys' first waits for the second, but not for ever.
	s.clear()
	s.line("rnx job run cat -v")
	d.running(t)
	if !eventually(patience, s.rawMode) {
		t.Error("the terminal does not pass its keys on")
	}
	s.keys("C-p", "Enter")
	s.wait(`^\^P\n?`)
	s.keys("C-d")
	s.wait(`here\$\z`)

	for _, args := range [][]string{{"job", "attach", "sh"}, {"job", "attach", "nope"}} {
		if r := d.rnx(t.Context(), args...); r.status != 125 || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%q: %v", args, r)
		}
	}
	id := strings.TrimSpace(d.must(t, "-d", "sleep", "60"))
	if r := d.rnx(t.Context(), "job", "attach", id); r.status != 125 || !strings.Contains(r.stderr, "has no terminal") {
		t.Errorf("attach to a job without a terminal: %v", r)
	}
}

// TestTerminalRestored: however it ends, the terminal is as it was.
func TestTerminalRestored(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	s := newScreen(t, d, 100, 30)
	before := s.modes()
	check := func(how string) {
		t.Helper()
		if after := s.modes(); after != before {
			t.Errorf("after %s: terminal modes %q, were %q", how, after, before)
		}
	}
	begin := func(command string) string {
		t.Helper()
		s.clear()
		s.line("rnx job run " + command)
		id := d.running(t)
		if !eventually(patience, func() bool { return s.rawMode() }) {
			t.Fatal("the terminal does not get raw")
		}
		return id
	}
	stop := func(id string) {
		t.Helper()
		if r := d.rnx(t.Context(), "job", "kill", id); r.status != 0 {
			t.Errorf("kill: %v", r)
		}
	}

	id := begin("sleep 600")
	stop(id)
	s.wait(`here\$\z`)
	s.status(137)
	check("the job was killed")

	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT} {
		id = begin("sleep 600")
		time.Sleep(1500 * time.Millisecond) // before that it could be a key's
		// From beside the terminal; the job goes on.
		if err := syscall.Kill(s.child(), sig); err != nil {
			t.Fatal(err)
		}
		s.wait(`continues: see "rnx job attach`)
		check(sig.String())
		stop(id)
	}

	// Full screen, and modes that stay on.
	id = begin(`sh -c 'printf "\033[?1049h\033[?1000h\033[?2004h\033[?25l\033=full"; exec sleep 600'`)
	s.wait(`^full`)
	stop(id)
	s.wait(`here\$\z`)
	check("a full screen")
	if got := strings.TrimSpace(s.tmux("display-message", "-p", "-t", "s", "#{alternate_on}#{mouse_any_flag}#{cursor_flag}#{keypad_flag}")); got != "0010" {
		t.Errorf("alternate screen, mouse, cursor, keypad: %s, want 0010", got)
	}

	// The daemon dies, and another comes: the window goes on where it was.
	begin("bash --norc")
	s.wait(`bash-5\S*#\z`)
	d.kill(t)
	s.wait(`lost the connection to the daemon`)
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	s.keys("Enter")
	time.Sleep(time.Second)
	s.line("echo still-$((40 + 2))")
	if !eventually(patience, func() bool {
		if strings.Contains(s.text(), "still-42") {
			return true
		}
		time.Sleep(time.Second)
		s.line("echo still-$((40 + 2))") // what was typed while no daemon was there is lost
		return false
	}) {
		t.Errorf("the shell does not go on:\n%s", s.text())
	}
	// The daemon dies, and none comes.
	d.kill(t)
	s.wait(`(?s)lost the connection to the daemon.*still-42.*lost the connection to the daemon`)
	s.keys("C-c")
	s.wait(`ended by Ctrl-C; job \S+ continues`)
	s.status(130)
	check("the daemon was killed")
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	s.clear()
	id = d.running(t)
	s.line("rnx job attach " + id)
	s.wait(`(?s)still-42.*bash-5\S*#\z`)
	// The same without a key: after a while.
	d.kill(t)
	s.wait(`continues: see`)
	check("the daemon was gone for long")
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	// The window is closed: the job goes on.
	s.line("rnx job attach " + id)
	s.wait(`(?s)still-42.*bash-5\S*#\z`)
	s.tmux("kill-session", "-t", "s")
	if got := d.running(t); got != id {
		t.Errorf("job %s runs", got)
	}
}

// rawMode reports whether the terminal passes every key on.
func (s *screen) rawMode() bool {
	out, err := exec.Command("stty", "-F", "/dev/"+s.tty(), "-a").Output()
	return err == nil && strings.Contains(string(out), "-icanon") && strings.Contains(string(out), "-isig")
}

// child is the process that the shell waits for.
func (s *screen) child() int {
	s.t.Helper()
	shell := strings.TrimSpace(s.tmux("display-message", "-p", "-t", s.pane, "#{pane_pid}"))
	data, err := os.ReadFile("/proc/" + shell + "/task/" + shell + "/children")
	pid, convErr := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || convErr != nil {
		s.t.Fatalf("the shell's child: %q %v", data, err)
	}
	return pid
}

// tty is the terminal's name, as in pts/3.
func (s *screen) tty() string {
	return strings.TrimPrefix(strings.TrimSpace(s.tmux("display-message", "-p", "-t", s.pane, "#{pane_tty}")), "/dev/")
}

// TestTerminalIsTheJobsOwn: a job cannot reach the caller's terminal, nor that of
// another job, nor keep its own.
func TestTerminalIsTheJobsOwn(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	s := newScreen(t, d, 100, 30)
	script := `
import fcntl, os, termios
for name in "/dev/tty", "/proc/self/fd/0", "/proc/self/fd/1":
    try:
        fd = os.open(name, os.O_RDWR)
    except OSError as e:
        print(name, "open", e.errno)
        continue
    for c in b"echo pushed > pushed\n":
        try:
            fcntl.ioctl(fd, termios.TIOCSTI, bytes([c]))
        except OSError as e:
            print(name, os.ttyname(fd), "TIOCSTI", e.errno)
            break
print(sorted(os.listdir("/dev/pts")), os.ttyname(0))
if os.fork() == 0:
    os.setsid()
    import time
    time.sleep(600)
print("end")
`
	if err := os.WriteFile(filepath.Join(s.dir, "try.py"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	// Another job's terminal is there, and out of sight: each has a pts/0.
	other := strings.TrimSpace(d.must(t, "-dt", "sleep", "600"))
	s.line("rnx job run " + runtime + " --upload=try.py python3 try.py")
	text := s.wait(`(?s)^end\n.*here\$\z`)
	for _, want := range []string{
		"/dev/tty /dev/tty TIOCSTI 1\n", "/proc/self/fd/0 /dev/pts/0 TIOCSTI 1\n", "['0', 'ptmx'] /dev/pts/0\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the screen does not show %q:\n%s", want, text)
		}
	}
	time.Sleep(300 * time.Millisecond)
	s.status(0)
	if _, err := os.Stat(filepath.Join(s.dir, "pushed")); err == nil {
		t.Error("a job has typed into the caller's shell")
	}
	if r := d.rnx(t.Context(), "job", "exec", "-t", other, "ls", "/dev/pts"); strings.Join(strings.Fields(r.stdout), " ") != "0 1 ptmx" {
		t.Errorf("the other job's terminals: %v", r)
	}
	// No job's terminal is one of the host's.
	if out, err := exec.Command("sh", "-c", "ls /dev/pts").Output(); err != nil || strings.Contains(string(out), "joblet") {
		t.Errorf("%s %v", out, err)
	}
}

// TestTerminalWithoutOne: what rnx does when its own streams are no terminal.
func TestTerminalWithoutOne(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	if out := d.must(t, "sh", "-c", "test -t 0 || test -t 1 || echo none"); out != "none\n" {
		t.Errorf("with pipes: %q", out)
	}
	if out := d.must(t, "-t", "sh", "-c", "test -t 0 && test -t 1 && test -t 2 && stty size && echo $TERM"); !regexp.MustCompile(`^24 80\r\n\S+\r\n$`).MatchString(out) {
		t.Errorf("-t: %q", out)
	}
	cmd := d.command(patient(t), "job", "run", "-it", "sh", "-c", "read x; echo got=$x; cat")
	cmd.Stdin = strings.NewReader("typed\nmore\n")
	if r := finish(cmd); r.status != 0 || !strings.Contains(r.stdout, "got=typed\r\n") || !strings.HasSuffix(r.stdout, "more\r\n") {
		t.Errorf("-it with a pipe: %v", r)
	}
	cmd = d.command(patient(t), "job", "run", "-it", "cat")
	cmd.Stdin = strings.NewReader("no line") // its end is one all the same
	if r := finish(cmd); r.status != 0 || !strings.Contains(r.stdout, "no line") {
		t.Errorf("-it with an unfinished line: %v", r)
	}
	// All that was written last arrives, however fast the job ends.
	for range 20 {
		if out := d.must(t, "-t", "sh", "-c", `printf "%060000d" 5`); len(out) != 60000 {
			t.Fatalf("%d bytes of 60000", len(out))
		}
	}
	if out := d.must(t, "-t", "--init", "sh", "-c", "tty; ps -o tty=,comm= ax"); !regexp.MustCompile(`^/dev/pts/0\r\n\?\s+joblet-init\r\npts/0 +sh\r\npts/0 +ps\r\n$`).MatchString(out) {
		t.Errorf("--init: %q", out)
	}
	for _, args := range [][]string{{"-t", "-T", "true"}, {"-t", "--stdin", "true"}, {"--detach-keys=ctrl-1", "true"}, {"--detach-keys=,", "true"}} {
		if r := d.job(t, args...); r.status != 125 || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%q: %v", args, r)
		}
	}
	if r := d.rnx(t.Context(), "--json", "job", "run", "-t", "true"); r.status != 125 {
		t.Errorf("--json -t: %v", r)
	}
	// Detached, with a terminal for later.
	id := strings.TrimSpace(d.must(t, "-dt", "--name=later", "sh", "-c", "read x; echo got=$x; exit 6"))
	cmd = d.command(patient(t), "job", "attach", "later")
	cmd.Stdin = strings.NewReader("typed\n")
	if r := finish(cmd); r.status != 6 || !strings.Contains(r.stdout, "got=typed") {
		t.Errorf("attach with a pipe: %v", r)
	}
	if r := d.rnx(t.Context(), "job", "log", id); !strings.Contains(r.stdout, "got=typed\r\n") {
		t.Errorf("the log: %v", r)
	}
}

// TestTerminalSize: the job's terminal follows the window also before the job runs,
// and in each run of it; whoever is gone leaves no size behind.
func TestTerminalSize(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	s := newScreen(t, d, 100, 30)
	first := strings.TrimSpace(d.must(t, "-d", "sh", "-c", "until [ -e /work/go ]; do sleep 0.1; done"))
	script := `until [ "$(stty size)" = "21 90" ]; do sleep 0.05; done; echo attempt=$JOBLET_ATTEMPT; exit 1`
	s.line("rnx job run -t --depends-on=" + first + " --retry=1 --retry-delay=1s sh -c '" + script + "'")
	s.wait(`waits`)
	s.resize(90, 21)
	if r := d.rnx(patient(t), "job", "exec", first, "touch", "/work/go"); r.status != 0 {
		t.Fatalf("%v", r)
	}
	s.wait(`attempt=1(?s).*attempt=2`)
	s.status(1)

	s.clear()
	s.line("rnx job run --name=sized cat")
	d.running(t)
	if !eventually(patience, s.rawMode) {
		t.Fatal("the terminal does not get raw")
	}
	size := func(want string) {
		t.Helper()
		got := ""
		if !eventually(patience, func() bool {
			got = d.rnx(patient(t), "job", "exec", "sized", "sh", "-c", "stty size < /dev/pts/0").stdout
			return got == want
		}) {
			t.Errorf("size %q, want %q", got, want)
		}
	}
	for range 3 {
		other := newScreen(t, d, 70, 15)
		other.line("rnx job attach sized")
		size("15 70\n")
		other.resize(60, 10) // and gone at once
		if err := syscall.Kill(other.child(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		size("21 90\n")
	}
	s.keys("C-d")
	s.status(0)
}

// TestManyAttached: more than a shim has other connections, all with the same
// output; a slow one holds up nobody.
func TestManyAttached(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := strings.TrimSpace(d.must(t, "-dt", "sh", "-c", "read x; seq 1 20000; echo last"))
	const many = 20
	results := make(chan result, many)
	for range many {
		cmd := d.command(patient(t), "job", "attach", id)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		defer r.Close()
		cmd.Stdin = r
		go func() { results <- finish(cmd) }()
	}
	slow := d.command(patient(t), "job", "attach", id)
	if _, err := slow.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	pipe, err := slow.StdoutPipe() // nobody reads it
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	if err := slow.Start(); err != nil {
		t.Fatal(err)
	}
	// A line is there with the first answer, behind which nothing can be missed.
	if !eventually(patience, func() bool {
		audit, _ := os.ReadFile(filepath.Join(d.state, "audit.log"))
		return strings.Count(string(audit), `"method":"JobService/AttachJob"`) == many+1
	}) {
		t.Fatal("not all are attached")
	}
	cmd := d.command(patient(t), "job", "attach", id)
	cmd.Stdin = strings.NewReader("\n")
	if r := finish(cmd); !strings.HasSuffix(r.stdout, "last\r\n") {
		t.Errorf("the one that types: %d bytes, %v", len(r.stdout), r.stderr)
	}
	for range many {
		select {
		case r := <-results:
			if !strings.HasSuffix(r.stdout, "20000\r\nlast\r\n") || r.status != 0 {
				t.Errorf("attached: status %d, %d bytes, %s", r.status, len(r.stdout), r.stderr)
			}
		case <-time.After(patience):
			t.Fatal("one that is attached does not end")
		}
	}
	_ = slow.Process.Signal(syscall.SIGKILL)
	_ = slow.Wait()
}

// TestTerminalSurvivesCrash: the daemon is killed and its successor finds the
// terminal, with what was written meanwhile.
func TestTerminalSurvivesCrash(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := strings.TrimSpace(d.must(t, "-dt", "sh", "-c", "sleep 1; echo meanwhile; read x; echo got=$x"))
	d.kill(t)
	time.Sleep(1500 * time.Millisecond)
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	if !d.wrote(t, id, "meanwhile\r\n") {
		t.Error("what was written meanwhile is not there")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := d.command(ctx, "job", "attach", id)
	cmd.Stdin = strings.NewReader("typed\n")
	r := finish(cmd)
	if r.status != 0 || !strings.Contains(r.stdout, "got=typed") {
		t.Errorf("%v", r)
	}
	if log := d.rnx(ctx, "job", "log", id).stdout; log != "meanwhile\r\ntyped\r\ngot=typed\r\n" {
		t.Errorf("log %q", log)
	}
}

// TestTerminalNetworkCut: the way to the daemon is cut, and later there again.
func TestTerminalNetworkCut(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	s := newScreen(t, d, 100, 30)
	before := s.modes()
	way := newRelay(t, d.run+"/joblet.sock", filepath.Join(s.dir, "relay"))
	s.line("export RNX_HOST=unix://" + way.path)
	s.line("rnx job run bash --norc")
	s.wait(`bash-5\S*#\z`)
	way.cut()
	s.wait(`lost the connection to the daemon`)
	way.mend(t)
	// It comes back by itself, at the place where it was.
	if !eventually(patience, func() bool {
		s.line("echo again-$((40 + 2))")
		time.Sleep(time.Second)
		return strings.Contains(s.text(), "again-42")
	}) {
		t.Fatalf("the terminal does not come back:\n%s", s.text())
	}
	way.cut()
	s.wait(`(?s)continues: see "rnx job attach.*here\$\z`) // and the shell reads again
	if after := s.modes(); after != before {
		t.Errorf("terminal modes: %q, were %q", after, before)
	}
	d.running(t)
}

// relay stands between rnx and the daemon.
type relay struct {
	path, to string
	mu       sync.Mutex
	l        net.Listener
	conns    []net.Conn
}

func newRelay(t *testing.T, to, path string) *relay {
	t.Helper()
	r := &relay{path: path, to: to}
	r.mend(t)
	t.Cleanup(r.cut)
	return r
}

// mend lets connections through.
func (r *relay) mend(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.l = l
	r.mu.Unlock()
	go func() { // ends with cut
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", r.to)
			if err != nil {
				c.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, c, far)
			r.mu.Unlock()
			go io.Copy(c, far)
			go io.Copy(far, c)
		}
	}()
}

// cut ends all connections and lets no new ones through.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.l.Close()
	for _, c := range r.conns {
		c.Close()
	}
	r.conns = nil
}

// TestTerminalPaste: much more is typed at once than a terminal holds, and the
// program takes its time: it waits on the way and all of it comes.
func TestTerminalPaste(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	data := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(data)
	cmd := d.command(patient(t), "job", "run", "-it", "--detach-keys=", "sh", "-c", fmt.Sprintf("stty raw -echo; echo ready; sleep 1; head -c %d | sha256sum", len(data)))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); !strings.HasPrefix(line, "ready") {
		t.Fatalf("%q %v", line, err)
	}
	if _, err := in.Write(data); err != nil {
		t.Fatal(err)
	}
	sum, _ := lines.ReadString('\n')
	if want := fmt.Sprintf("%x", sha256.Sum256(data)); !strings.HasPrefix(sum, want) {
		t.Errorf("%q, want %s", sum, want)
	}
	_ = in.Close()
	_, _ = io.Copy(io.Discard, lines)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestTerminalNotOpenedAnew: where rnx can't open the terminal a second time, it
// makes do with the one it has.
func TestTerminalNotOpenedAnew(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	s := newScreen(t, d, 100, 30)
	s.line(`unshare -m sh -c 'mount --make-rprivate / && mount -t tmpfs none /proc && exec rnx job run bash --norc'`)
	s.wait(`bash-5\S*#\z`)
	s.line("echo got-$((40 + 2))")
	s.wait(`(?m)^got-42$`)
	s.line("exit 3")
	s.wait(`exit\s+here\$`)
	s.status(3)
}
