package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The time from a key to its echo: an interactive bash is started in a terminal
// of the bench's own, in several ways, and keys are typed in turns, each once
// the one before has come back.

// echoBase and echoOther are what the bar compares with.
const (
	echoBase  = "script"
	echoOther = "ssh"
)

// echoRow is the times of one way.
type echoRow struct {
	Name   string   `json:"name"`
	What   string   `json:"what"`
	Reason string   `json:"reason,omitempty"` // why it could not be measured
	Times  *summary `json:"times,omitempty"`
}

const (
	echoPrompt  = "ready> "
	echoLine    = 40                    // keys before the line is given up
	echoPause   = 20 * time.Millisecond // between two keys, as between those of a fast typist
	echoTimeout = 10 * time.Second
)

// shell is what runs at the other end.
var shell = []string{"bash", "--norc", "--noprofile"}

// typist is an interactive shell that one way has started.
type typist struct {
	row    echoRow
	times  []time.Duration
	master *os.File
	cmd    *exec.Cmd
	typed  int // on this line
}

// measureEcho fills b.echo.
func (b *bench) measureEcho(ctx context.Context) {
	if b.keys == 0 {
		return
	}
	b.note("key to echo, %d keys", b.keys)
	var typists []*typist
	defer func() {
		for _, t := range typists {
			t.close()
			t.row.Times = summarize(t.times)
			b.echo = append(b.echo, t.row)
		}
		slices.SortFunc(b.echo, func(x, y echoRow) int { return strings.Compare(x.Name, y.Name) })
		if err := b.endEchoJob(); err != nil { // while there is a daemon
			b.note("end the job of rnx exec: %v", err)
		}
	}()
	for _, way := range []struct {
		name, what string
		argv       func(context.Context) ([]string, error)
	}{
		{"pty", "bash in a terminal, nothing between", func(context.Context) ([]string, error) { return shell, nil }},
		{echoBase, "`script -qc bash`", func(context.Context) ([]string, error) {
			return []string{"script", "-qc", "exec bash --norc --noprofile", "/dev/null"}, nil
		}},
		{echoOther, "`ssh -tt localhost bash`", b.sshArgv},
		{rnxName, "`rnx job run -t bash`", func(ctx context.Context) ([]string, error) {
			d, err := b.startDaemon(ctx)
			if err != nil {
				return nil, err
			}
			return append([]string{d.rnx, "--host", d.host, "job", "run", "--tty"}, shell...), nil
		}},
		{"rnx exec", "`rnx job exec -t JOB bash`", b.execArgv},
	} {
		t := &typist{row: echoRow{Name: way.name, What: way.what}}
		typists = append(typists, t)
		argv, err := way.argv(ctx)
		if err == nil {
			err = t.start(argv, b.env)
		}
		if err != nil {
			t.row.Reason = err.Error()
			b.note("key to echo, %s: %v", way.name, err)
		}
	}
	for n := range b.keys + 2*echoLine { // the first are not counted
		rand.Shuffle(len(typists), func(i, j int) { typists[i], typists[j] = typists[j], typists[i] })
		for _, t := range typists {
			if t.row.Reason != "" {
				continue
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(echoPause / time.Duration(len(typists))):
			}
			took, err := t.key()
			if err != nil {
				t.row.Reason = err.Error()
			} else if n >= 2*echoLine {
				t.times = append(t.times, took)
			}
		}
	}
}

// start starts a program in a new terminal and waits for its prompt.
func (t *typist) start(argv, env []string) (err error) {
	if t.master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return err
	}
	fd := int(t.master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return os.NewSyscallError("unlock the terminal", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return os.NewSyscallError("number of the terminal", err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 120}); err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer slave.Close()
	// Not through Fd, which has made it blocking: reads have deadlines.
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_ = t.master.Close()
	t.master = os.NewFile(uintptr(dup), "terminal")
	t.cmd = exec.Command(argv[0], argv[1:]...)
	t.cmd.Env = append(env[:len(env):len(env)], "TERM=xterm", "PS1="+echoPrompt)
	t.cmd.Stdin, t.cmd.Stdout, t.cmd.Stderr = slave, slave, slave
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := t.cmd.Start(); err != nil {
		return err
	}
	// What a way does not pass on of the environment is set there.
	if err := t.await([]byte("$ "), []byte("# "), []byte(echoPrompt)); err != nil {
		return fmt.Errorf("wait for the prompt: %w", err)
	}
	if _, err := t.master.WriteString("PS1='" + echoPrompt[:5] + "'\"> \"\r"); err != nil {
		return err
	}
	return t.await([]byte(echoPrompt))
}

// await reads until one of the texts has come.
func (t *typist) await(texts ...[]byte) error {
	if err := t.master.SetReadDeadline(time.Now().Add(echoTimeout)); err != nil {
		return err
	}
	var seen []byte
	buf := make([]byte, 4096)
	for {
		n, err := t.master.Read(buf)
		if err != nil {
			return fmt.Errorf("%w after %.200q", err, seen)
		}
		seen = append(seen, buf[:n]...)
		for _, text := range texts {
			if bytes.Contains(seen, text) {
				return nil
			}
		}
	}
}

// key types one key and returns how long its echo takes.
func (t *typist) key() (time.Duration, error) {
	if t.typed == echoLine { // Ctrl-U is not measured: the line goes
		t.typed = 0
		if _, err := t.master.Write([]byte{'U' & 0x1f}); err != nil {
			return 0, err
		}
		time.Sleep(echoPause)
		_ = t.master.SetReadDeadline(time.Now().Add(echoPause))
		if _, err := io.Copy(io.Discard, t.master); !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, fmt.Errorf("read what is left: %w", err)
		}
	}
	t.typed++
	begin := time.Now()
	if _, err := t.master.Write([]byte{'x'}); err != nil {
		return 0, err
	}
	err := t.await([]byte{'x'})
	return time.Since(begin), err
}

func (t *typist) close() {
	if t.master != nil {
		_ = t.master.Close() // hangs it up
	}
	if t.cmd != nil && t.cmd.Process != nil {
		kill := time.AfterFunc(time.Second, func() { _ = t.cmd.Process.Kill() })
		defer kill.Stop()
		_ = t.cmd.Wait()
	}
}

// execArgv starts a job for rnx job exec.
func (b *bench) execArgv(ctx context.Context) ([]string, error) {
	d, err := b.startDaemon(ctx)
	if err != nil {
		return nil, err
	}
	id, err := exec.CommandContext(ctx, d.rnx, "--host", d.host, "job", "run", "--detach", "sleep", "3600").Output()
	if err != nil {
		return nil, err
	}
	b.echoJob = string(bytes.TrimSpace(id))
	return append([]string{d.rnx, "--host", d.host, "job", "exec", "--tty", "--interactive", b.echoJob}, shell...), nil
}

// endEchoJob ends the job that execArgv has started, if it has.
func (b *bench) endEchoJob() error {
	if b.echoJob == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
	defer cancel()
	return exec.CommandContext(ctx, b.daemon.rnx, "--host", b.daemon.host, "job", "kill", b.echoJob).Run()
}

// sshArgv starts an sshd of the bench's own on the loopback interface.
func (b *bench) sshArgv(ctx context.Context) (_ []string, err error) {
	sshd := "/usr/sbin/sshd"
	if _, err := os.Stat(sshd); err != nil {
		return nil, errors.New("no sshd here: install openssh-server")
	}
	dir := filepath.Join(b.dir, "ssh")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	for _, key := range []string{"host", "user"} {
		if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ssh-keygen: %w: %s", err, lastLine(out))
		}
	}
	const separation = "/run/sshd" // sshd will not do without it
	if err := os.Mkdir(separation, 0o755); err == nil {
		b.undo = append(b.undo, func() error { return os.Remove(separation) })
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	_ = l.Close() // sshd takes it in a moment
	log := filepath.Join(dir, "log")
	cmd := exec.Command(sshd, "-D", "-f", "/dev/null", "-E", log, "-o", "ListenAddress=127.0.0.1", "-o", "Port="+port,
		"-o", "HostKey="+filepath.Join(dir, "host"), "-o", "AuthorizedKeysFile="+filepath.Join(dir, "user.pub"),
		"-o", "StrictModes=no", "-o", "UsePAM=no", "-o", "PidFile=none", "-o", "PermitRootLogin=prohibit-password", "-o", "PrintMotd=no")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.undo = append(b.undo, func() error {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		return nil
	})
	for deadline := time.Now().Add(echoTimeout); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = c.Close()
			break
		}
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(log)
			return nil, fmt.Errorf("sshd does not listen: %w: %s", err, lastLine(said))
		}
	}
	return append([]string{"ssh", "-F", "none", "-q", "-tt", "-i", filepath.Join(dir, "user"), "-p", port,
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", "root@127.0.0.1"}, shell...), nil
}
