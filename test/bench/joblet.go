package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The contenders that are Joblet's. Jobs of rnx stand for both in the memory
// table.
const (
	rnxName    = "rnx"
	clientName = "client"
)

// whenIdle begins the moments at which the daemon had no job.
const whenIdle = "idle"

// idleAfter is how long it has had nothing to do then.
const idleAfter = 5 * time.Second

// daemon is a joblet of the bench's own.
type daemon struct {
	cmd  *exec.Cmd
	host string // where clients find it
	log  *os.File
	rnx  string
}

// daemonMemory is the daemon's proportional set size at one moment.
type daemonMemory struct {
	When string `json:"when"`
	PSS  int64  `json:"pss_bytes"`
}

// startDaemon starts the daemon, on the first call.
func (b *bench) startDaemon(ctx context.Context) (*daemon, error) {
	if b.daemon == nil && b.daemonErr == nil {
		b.daemon, b.daemonErr = b.newDaemon(ctx)
		b.noteDaemonMemory(whenIdle + ", after start")
	}
	return b.daemon, b.daemonErr
}

func (b *bench) newDaemon(ctx context.Context) (*daemon, error) {
	joblet, rnx, err := b.programs(ctx)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(b.dir, "joblet.log"))
	if err != nil {
		return nil, err
	}
	ready, readyW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	run := filepath.Join(b.dir, "run")
	d := &daemon{host: "unix://" + filepath.Join(run, "joblet.sock"), log: log, rnx: rnx}
	// The first of ExtraFiles is the child's descriptor 3.
	d.cmd = exec.Command(joblet, "serve", "--state-dir", filepath.Join(b.dir, "state"), "--run-dir", run, "--ready-fd", "3")
	d.cmd.ExtraFiles = []*os.File{readyW}
	d.cmd.Env = b.env
	d.cmd.Stdout, d.cmd.Stderr = log, log
	// Out of reach of the terminal's Ctrl-C: jobs are ended first.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = d.cmd.Start()
	readyW.Close()
	if err != nil {
		return nil, fmt.Errorf("start joblet serve: %w", err)
	}
	if err := d.awaitReady(ready); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

// stateNote tells the reader if job records and logs are not on a disk.
func (b *bench) stateNote() []string {
	var fs unix.Statfs_t
	if err := unix.Statfs(b.dir, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		return nil
	}
	return []string{"its state directory is in memory (TMPDIR chooses the place)"}
}

func (d *daemon) awaitReady(ready *os.File) error {
	if err := ready.SetReadDeadline(time.Now().Add(runTimeout)); err != nil {
		return err
	}
	const word = "ok\n"
	said, err := io.ReadAll(io.LimitReader(ready, int64(len(word))))
	if err == nil && string(said) != word {
		err = fmt.Errorf("it said %q", said)
	}
	if err != nil {
		return fmt.Errorf("wait until joblet serve is ready: %w; the end of its log: %s", err, d.lastLog())
	}
	return nil
}

func (d *daemon) lastLog() string {
	data, err := os.ReadFile(d.log.Name())
	if err != nil {
		return err.Error()
	}
	return lastLine(data)
}

func (d *daemon) stop() error {
	defer d.log.Close()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop joblet serve: %w", err)
	}
	kill := time.AfterFunc(runTimeout, func() { _ = d.cmd.Process.Kill() })
	defer kill.Stop()
	if err := d.cmd.Wait(); err != nil {
		return fmt.Errorf("joblet serve: %w: %s", err, d.lastLog())
	}
	return nil
}

// daemonPIDs returns the children that stay for the whole run.
func (b *bench) daemonPIDs() []int {
	if b.daemon == nil {
		return nil
	}
	return []int{b.daemon.cmd.Process.Pid}
}

func (b *bench) noteDaemonMemory(when string) {
	if b.daemon == nil {
		return
	}
	if strings.HasPrefix(when, whenIdle) {
		time.Sleep(idleAfter)
	}
	pss, err := pssOf(b.daemon.cmd.Process.Pid)
	if err != nil {
		b.note("memory of joblet serve: %v", err)
		return
	}
	b.daemonPSS = append(b.daemonPSS, daemonMemory{When: when, PSS: pss})
}

func prepareRnx(ctx context.Context, b *bench, c *contender) error {
	d, err := b.startDaemon(ctx)
	if err != nil {
		return err
	}
	c.ns = b.host
	c.notes = b.stateNote()
	run := func(flags ...string) func(string, job) []string {
		base := append([]string{d.rnx, "--host", d.host, "job", "run"}, flags...)
		return func(_ string, j job) []string { return append(base[:len(base):len(base)], j.argv()...) }
	}
	c.command, c.detached = run(), run("--detach")
	return b.try(ctx, c)
}
