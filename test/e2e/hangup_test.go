package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

// isRaw reports whether the terminal passes every key on.
func (term *terminal) isRaw(t *testing.T) bool {
	t.Helper()
	var modes *unix.Termios
	raw, err := term.master.SyscallConn()
	if err == nil {
		controlErr := raw.Control(func(fd uintptr) { modes, err = unix.IoctlGetTermios(int(fd), unix.TCGETS) })
		if err == nil {
			err = controlErr
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return modes.Lflag&(unix.ICANON|unix.ISIG) == 0
}

// start starts a command on the terminal, of which nobody else has the other side
// then.
func (term *terminal) start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = term.slave, term.slave, term.slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := term.slave.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestTerminalGone: however its terminal goes away, rnx ends with 129 and the job runs
// on.
func TestTerminalGone(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	blocker := d.detach(t, "sleep", "infinity")
	controlling := &syscall.SysProcAttr{Setsid: true, Setctty: true}
	holders := []struct {
		name  string
		sys   *syscall.SysProcAttr
		shell []string // that runs a script which survives; nil: there is none
		typed string
	}{
		{"rnx leads the session", controlling, nil, ""},
		{"a script leads the session", controlling, []string{"bash", "SCRIPT"}, ""}, // it alone gets a signal
		{"a shell with job control", controlling, []string{"bash", "--norc", "-i"}, "bash SCRIPT\n"},
		{"no session has it", &syscall.SysProcAttr{Setsid: true}, nil, ""}, // nobody gets a signal
	}
	commands := []struct {
		name  string
		args  []string // NAME: the job's
		state joblet.State
		raw   bool
		shows string
	}{
		{"sleep", []string{"run", "--name=NAME", "sleep", "600"}, joblet.Running, true, ""},
		{"cat", []string{"run", "--name=NAME", "cat"}, joblet.Running, true, ""},
		{"bash", []string{"run", "--name=NAME", "bash", "--norc"}, joblet.Running, true, "bash-"},
		{"yes", []string{"run", "--name=NAME", "yes"}, joblet.Running, true, "y\r\ny\r\n"},
		{"waiting", []string{"run", "--name=NAME", "--depends-on=" + blocker, "sleep", "600"}, joblet.Pending, false, "waits"},
		{"no terminal", []string{"run", "-T", "--name=NAME", "sh", "-c", "trap \"\" HUP; while :; do echo line; sleep 0.1; done"}, joblet.Running, false, "line"},
		{"attach", []string{"attach", "NAME"}, joblet.Running, true, ""},
		{"exec", []string{"exec", "NAME", "sleep", "600"}, joblet.Running, true, ""},
		{"exec yes", []string{"exec", "NAME", "yes"}, joblet.Running, true, "y\r\ny\r\n"},
	}
	for i, holder := range holders {
		for k, command := range commands {
			t.Run(holder.name+"/"+command.name, func(t *testing.T) {
				t.Parallel()
				name := fmt.Sprintf("gone-%d-%d", i, k)
				if command.args[0] != "run" {
					d.detach(t, "-t", "--name="+name, "sleep", "600")
				}
				args := []string{binDir + "/rnx", "job"}
				for _, arg := range command.args {
					args = append(args, strings.ReplaceAll(arg, "NAME", name))
				}
				dir := t.TempDir()
				script, status := filepath.Join(dir, "script"), filepath.Join(dir, "status")
				if holder.shell != nil {
					text := fmt.Sprintf("trap : HUP\n'%s'\necho $? > %s\n", strings.Join(args, "' '"), status)
					if strings.Contains(strings.Join(args, ""), "''") {
						t.Fatalf("cannot quote %q", args)
					}
					if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
					args = nil
					for _, arg := range holder.shell {
						args = append(args, strings.ReplaceAll(arg, "SCRIPT", script))
					}
				}
				cmd := exec.CommandContext(patient(t), args[0], args[1:]...)
				cmd.Env = append(os.Environ(), "RNX_HOST="+d.host())
				cmd.SysProcAttr = holder.sys
				term := newTerminal(t, 80, 24)
				term.start(t, cmd)
				if _, err := term.master.WriteString(strings.ReplaceAll(holder.typed, "SCRIPT", script)); err != nil {
					t.Fatal(err)
				}
				if !eventually(patience, func() bool {
					return term.isRaw(t) == command.raw && strings.Contains(term.seen.String(), command.shows)
				}) {
					t.Errorf("it shows %.500q", term.seen.String())
				}
				if err := term.master.Close(); err != nil {
					t.Fatal(err)
				}
				err := cmd.Wait()
				if got := cmd.ProcessState.ExitCode(); holder.shell == nil && got != 129 {
					t.Errorf("status %d: %v", got, err)
				}
				if holder.shell != nil {
					var got []byte
					if !eventually(patience, func() bool { got, err = os.ReadFile(status); return len(got) > 0 }) || string(got) != "129\n" {
						t.Errorf("status %q: %v", got, err)
					}
				}
				r := d.rnx(t.Context(), "job", "list", "-q", "--name="+name)
				if job := d.get(t, strings.TrimSpace(r.stdout)); job.State != command.state {
					t.Errorf("the job is %v", job.State)
				}
			})
		}
	}
}
