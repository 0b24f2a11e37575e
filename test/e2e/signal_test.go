package e2e

import (
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/testenv"
)

// TestPassedSignals: a signal that rnx passes on ends a job as it would have ended the
// command outside, and so rnx.
func TestPassedSignals(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	box := d.detach(t, "sleep", "infinity")
	for _, tt := range []struct {
		name   string
		args   []string
		sig    syscall.Signal
		status int
	}{
		{"TERM", []string{"run", "tail", "-f", "/etc/passwd"}, syscall.SIGTERM, 143},
		{"TERM twice", []string{"run", "tail", "-f", "/etc/passwd"}, syscall.SIGTERM, 143},
		{"HUP", []string{"run", "tail", "-f", "/etc/passwd"}, syscall.SIGHUP, 129},
		{"INT", []string{"run", "tail", "-f", "/etc/passwd"}, syscall.SIGINT, 130},
		{"QUIT", []string{"run", "tail", "-f", "/etc/passwd"}, syscall.SIGQUIT, 131},
		{"with a reaper", []string{"run", "--init", "tail", "-f", "/etc/passwd"}, syscall.SIGTERM, 143},
		{"another attempt", []string{"run", "--retry=3", "--retry-delay=1h", "tail", "-f", "/etc/passwd"}, syscall.SIGTERM, 143},
		{"handled", []string{"run", "bash", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"}, syscall.SIGTERM, 5},
		{"exec", []string{"exec", box, "tail", "-f", "/etc/passwd"}, syscall.SIGTERM, 143},
		{"exec handled", []string{"exec", box, "bash", "-c", "trap 'exit 5' HUP; echo ready; while :; do sleep 0.05; done"}, syscall.SIGHUP, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"job"}, tt.args...)
			if tt.args[0] == "run" {
				args = append([]string{"job", "run", "--label=test=" + strings.ReplaceAll(tt.name, " ", "-")}, tt.args[1:]...)
			}
			cmd := d.command(patient(t), args...)
			startReady(t, cmd)
			if err := cmd.Process.Signal(tt.sig); err != nil {
				t.Fatal(err)
			}
			if tt.name == "TERM twice" { // as timeout(1) does: to its child and to its group
				_ = cmd.Process.Signal(tt.sig)
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != tt.status {
				t.Errorf("status %d, want %d", got, tt.status)
			}
			if tt.args[0] != "run" {
				return
			}
			ids := d.ids(t, "--label=test="+strings.ReplaceAll(tt.name, " ", "-"))
			if len(ids) != 1 {
				t.Fatalf("jobs %q", ids)
			}
			job := d.get(t, ids[0])
			if tt.name == "another attempt" {
				if !job.State.Final() {
					t.Errorf("the job is %v", job.State)
				}
				return
			}
			if status, ended := job.Status(); !ended || job.State != joblet.Failed || status != tt.status {
				t.Errorf("the job is %v with %d: %s", job.State, status, job.Reason)
			}
		})
	}
}

// TestSignalsThatEndNothing: a signal that the command ignores, one that rnx was started
// to ignore, and those of "rnx job signal" and "rnx job kill --signal" end nothing.
func TestSignalsThatEndNothing(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	// begin runs rnx with pipes and sends it a signal, behind which the job ends with 4.
	begin := func(t *testing.T, cmd *exec.Cmd, sig syscall.Signal) *testenv.Output {
		t.Helper()
		cmd.Env = append(cmd.Environ(), "RNX_HOST="+d.host())
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var errOut testenv.Output
		cmd.Stderr = &errOut
		startReady(t, cmd)
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if sig != syscall.SIGHUP && !eventually(patience, func() bool { return strings.Contains(errOut.String(), "sent SIG") }) {
			t.Errorf("it says %q", errOut.String())
		}
		if _, err := io.WriteString(in, "go on\n"); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != 4 {
			t.Errorf("status %d: %s", got, errOut.String())
		}
		return &errOut
	}
	t.Run("ignored", func(t *testing.T) {
		t.Parallel()
		begin(t, exec.CommandContext(patient(t), binDir+"/rnx", "job", "run", "-i", "sh", "-c", "trap '' TERM; echo ready; read x; exit 4"), syscall.SIGTERM)
	})
	t.Run("nohup", func(t *testing.T) {
		t.Parallel()
		script := `trap "" HUP; exec ` + binDir + `/rnx job run -i sh -c 'echo ready; read x; exit 4'`
		if said := begin(t, exec.CommandContext(patient(t), "sh", "-c", script), syscall.SIGHUP).String(); said != "" {
			t.Errorf("it says %q", said)
		}
	})
	t.Run("signal", func(t *testing.T) {
		t.Parallel()
		id := d.detach(t, "sleep", "600")
		d.says(t, 0, ``, ``, "job", "signal", id, "TERM")
		d.says(t, 0, ``, ``, "job", "kill", "--signal=HUP", id)
		d.says(t, 0, `here\n`, ``, "job", "exec", id, "echo", "here")
	})
}
