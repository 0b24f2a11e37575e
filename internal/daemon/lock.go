package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// holder is the process that has a directory locked, as its lock file says. The
// file is for error messages: what counts is the lock.
type holder struct {
	pid    string
	runDir string
	pidNS  string // its PID namespace: elsewhere its number means nothing
}

func readHolder(f *os.File) (h holder) {
	text := make([]byte, 2*unix.PathMax)
	n, _ := f.ReadAt(text, 0)
	lines := strings.Split(string(text[:n]), "\n")
	for i, field := range []*string{&h.pid, &h.runDir, &h.pidNS} {
		if i < len(lines) {
			*field = strings.TrimSpace(lines[i])
		}
	}
	return h
}

func (h holder) String() string {
	text := "process " + cmp.Or(h.pid, "unknown")
	if h.pidNS != "" && h.pidNS != ownPIDNS() {
		text += " of another PID namespace"
	}
	return text
}

// serves reports whether the holder answers on its socket.
func (h holder) serves(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return !h.died()
}

// died reports whether the daemon that wrote its number into the lock is gone. A
// daemon that is killed while it starts a shim leaves a child that, until its
// execve, still has the lock and the socket.
func (h holder) died() bool {
	if h.pidNS != "" && h.pidNS != ownPIDNS() {
		return false
	}
	pid, err := strconv.Atoi(h.pid)
	return err == nil && pid > 0 && unix.Kill(pid, 0) == unix.ESRCH
}

// ownPIDNS names the PID namespace of this process, or is empty.
func ownPIDNS() string {
	name, _ := os.Readlink("/proc/self/ns/pid")
	return name
}

// checkOwn returns an error if other users can add or replace files in the run
// directory.
func checkOwn(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("cannot inspect the run directory %s: %w", dir, err)
	}
	if st.Uid != uint32(os.Geteuid()) || st.Mode&0o022 != 0 {
		return fmt.Errorf("cannot use the run directory %s, of user %d and with mode %04o: other users can change its files: choose another directory, or run chown root %[1]s and chmod go-w %[1]s", dir, st.Uid, st.Mode&0o7777)
	}
	return nil
}

// lock makes this the only daemon of the run directory for as long as the file
// is open. A daemon that is stopping is waited for, one that serves is not.
func (o Options) lock(ctx context.Context) (*os.File, error) {
	name := filepath.Join(o.RunDir, lockName)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock of the run directory: %w", err)
	}
	err = lockFile(ctx, f, func() bool { return readHolder(f).serves(o.socket()) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		by := readHolder(f)
		f.Close()
		return nil, fmt.Errorf("another daemon (%v) uses the run directory %s: stop it first, or choose another --run-dir", by, o.RunDir)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", name, err)
	}
	o.writeHolder(f)
	return f, nil
}

// lockState makes this the only process that changes the state directory, for as long
// as the returned file is open: whatever its run directory, its mount and PID
// namespaces, and the name by which it reaches the directory. The directory itself is
// locked, so that removing a file does not end the lock.
func (o Options) lockState(ctx context.Context) (_ *os.File, err error) {
	dir, err := os.Open(o.StateDir)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the state directory: %w", err)
	}
	info, err := os.OpenFile(filepath.Join(o.StateDir, stateLockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("cannot lock the state directory: %w", err)
	}
	lock, other := dir, info
	defer func() {
		if other.Close(); err != nil {
			lock.Close()
		}
	}()
	serves := func() bool {
		h := readHolder(info)
		return h.runDir != "" && h.serves(filepath.Join(h.runDir, socketName))
	}
	err = lockFile(ctx, lock, serves)
	if errors.Is(err, unix.EBADF) { // NFS locks only what is open for writing
		lock, other = info, dir
		err = lockFile(ctx, lock, serves)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		h := readHolder(info)
		return nil, fmt.Errorf("another daemon (%v, run directory %s) uses the state directory %s: stop it first, or choose another --state-dir",
			h, cmp.Or(h.runDir, "unknown"), o.StateDir)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot lock the state directory: %w", err)
	}
	o.writeHolder(info)
	return lock, nil
}

// lockFile locks f. As long as another has the lock, it waits, unless that serves.
func lockFile(ctx context.Context, f *os.File, serves func() bool) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) && !serves() {
		err = waitLock(ctx, f)
	}
	return err
}

// writeHolder records the holder of the lock. If that fails, on a full disk, the lock
// still holds.
func (o Options) writeHolder(f *os.File) {
	text := fmt.Sprintf("%d\n%s\n%s\n", os.Getpid(), o.RunDir, ownPIDNS())
	if _, err := f.WriteAt([]byte(text), 0); err == nil {
		_ = f.Truncate(int64(len(text)))
	}
}

// waitLock waits for the lock for lockWait and then returns EWOULDBLOCK; the
// goroutine that still waits then ends with the process.
func waitLock(ctx context.Context, f *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	fd := int(f.Fd())
	locked := make(chan error, 1)
	go func() { locked <- unix.Flock(fd, unix.LOCK_EX) }()
	select {
	case err := <-locked:
		return err
	case <-ctx.Done():
		return unix.EWOULDBLOCK
	}
}
