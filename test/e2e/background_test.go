package e2e

import (
	"strings"
	"syscall"
	"testing"

	"github.com/joblet/joblet"
)

// TestBackground: in the background of a shell with job control rnx leaves the terminal
// to the shell, and in its foreground has it as from the start.
func TestBackground(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	box := d.detach(t, "sleep", "infinity")
	ed := d.detach(t, "-t", "sh", "-c", "read x; echo got=$x; exit 4")
	const ask = `sh -c 'echo out-$((40+2)); read x; echo got=$x; exit 4'`

	// shell checks that the terminal is the shell's and rnx in a state.
	shell := func(t *testing.T, s *screen, state string) {
		t.Helper()
		s.line("echo shell-$((1+1)); jobs")
		s.wait(`(?s)^shell-2.*^\[1\].*` + state + ` .*rnx`)
		if s.rawMode() {
			t.Errorf("the terminal is raw:\n%s", s.text())
		}
	}
	raw := func(t *testing.T, s *screen) {
		t.Helper()
		if !eventually(patience, s.rawMode) {
			t.Fatalf("the terminal does not get raw:\n%s", s.text())
		}
	}
	each := func(t *testing.T, name string, test func(t *testing.T, s *screen)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScreen(t, d, 120, 30)
			before := s.modes()
			s.clear()
			test(t, s)
			if after := s.modes(); after != before {
				t.Errorf("terminal modes %q, were %q", after, before)
			}
		})
	}
	for _, tt := range []struct{ name, command string }{
		{"run", "run " + ask},
		{"attach", "attach " + ed},
		{"exec", "exec " + box + " " + ask},
	} {
		each(t, tt.name, func(t *testing.T, s *screen) {
			s.line("rnx job " + tt.command + " &")
			if tt.name != "attach" {
				s.wait(`out-42`)
			}
			shell(t, s, "Running")
			s.line("fg")
			raw(t, s)
			s.line("typed")
			s.wait(`^got=typed`)
			s.status(4)
		})
	}
	for _, tt := range []struct{ name, command string }{
		{"run with a terminal", "run " + ask},
		{"run with input", "run -i " + ask},
		{"run with typed input", "run -it " + ask + " | cat"},
		{"exec with a terminal", "exec " + box + " " + ask},
		{"exec with input", "exec -i " + box + " " + ask},
	} {
		each(t, "kill, "+tt.name, func(t *testing.T, s *screen) {
			s.line("(exec rnx job " + tt.command + ") &")
			s.wait(`out-42`)
			shell(t, s, "Running")
			s.line("kill %1; wait %1")
			if !strings.Contains(tt.command, "|") { // there it is that of cat
				s.status(143)
			}
			s.line("wait; jobs; echo none-$((1+1))")
			s.wait(`^none-2`)
		})
	}
	each(t, "input", func(t *testing.T, s *screen) {
		s.line("rnx job run -i sh -c 'echo out-$((40+2)); cat; exit 5' &")
		s.wait(`out-42`)
		shell(t, s, "Running")
		s.line("fg")
		s.wait(`\nrnx job run -i .*\z`)
		s.line("typed")
		s.wait(`^typed\ntyped\z`)
		s.keys("C-z")
		s.wait(`Stopped .*rnx`)
		s.line("bg")
		s.clear()
		shell(t, s, "Running")
		s.line("fg")
		s.line("again")
		s.wait(`^again\nagain\z`)
		s.keys("C-d")
		s.status(5)
	})
	each(t, "stop", func(t *testing.T, s *screen) {
		s.line("rnx job run --name=stopped sh -c 'echo out-$((40+2)); cat; exit 5'")
		s.wait(`out-42`)
		raw(t, s)
		for range 2 {
			if err := syscall.Kill(s.child(), syscall.SIGTSTP); err != nil {
				t.Fatal(err)
			}
			s.wait(`Stopped .*rnx`)
			s.clear()
			shell(t, s, "Stopped")
			s.line("bg")
			s.clear()
			shell(t, s, "Running")
			s.line("fg")
			raw(t, s)
		}
		s.line("typed")
		s.wait(`^typed\ntyped\z`)
		s.keys("C-d")
		s.status(5)
	})
	// The job ends while the terminal is not ours, which was raw before.
	each(t, "end", func(t *testing.T, s *screen) {
		s.line(`rnx job run --name=ends sh -c 'printf "\033[?1049hout-$((40+2))"; exec sleep 600'`)
		s.wait(`out-42`)
		raw(t, s)
		if err := syscall.Kill(s.child(), syscall.SIGTSTP); err != nil {
			t.Fatal(err)
		}
		s.wait(`Stopped .*rnx`)
		d.says(t, 0, `.*\n`, ``, "job", "kill", "ends")
		s.line("bg; wait %1")
		s.status(137)
		if got := strings.TrimSpace(s.tmux("display-message", "-p", "-t", "s", "#{alternate_on}")); got != "0" {
			t.Error("the alternate screen stays")
		}
	})
	// Stopped and raw, it passes the signal of kill on.
	each(t, "kill what is stopped", func(t *testing.T, s *screen) {
		s.line("rnx job run --name=killed sleep 600")
		raw(t, s)
		pid := s.child()
		if err := syscall.Kill(pid, syscall.SIGTSTP); err != nil {
			t.Fatal(err)
		}
		s.wait(`Stopped .*rnx`)
		s.line("kill %1")
		s.wait(`killed by SIGTERM`)
		if !eventually(patience, func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH }) {
			t.Error("rnx stays")
		}
		s.keys("Enter") // the shell tells at its next prompt
		s.wait(`Exit 143 .*rnx`)
		if job := d.get(t, d.ids(t, "--name=killed")[0]); job.State != joblet.Failed {
			t.Errorf("the job is %v", job.State)
		}
	})
	// The window is closed: the job goes on.
	t.Run("close", func(t *testing.T) {
		t.Parallel()
		s := newScreen(t, d, 120, 30)
		s.line("rnx job run --name=closed sh -c 'echo out-$((40+2)); exec sleep 600' &")
		s.wait(`out-42`)
		pid := s.child()
		s.tmux("kill-session", "-t", "s")
		if !eventually(patience, func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH }) {
			t.Error("rnx stays")
		}
		if job := d.get(t, d.ids(t, "--name=closed")[0]); job.State != joblet.Running {
			t.Errorf("the job is %v", job.State)
		}
	})
}
