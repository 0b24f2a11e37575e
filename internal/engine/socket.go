package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
)

// socketsName is the directory in the run directory that holds a socket for each
// box, by which a later daemon finds its monitor. Only root can enter it, so a
// name in there is the monitor's, and nobody else can keep it busy.
const socketsName = "monitors"

// sockets is that directory. Names are looked up from its descriptor, because
// sun_path (unix(7)) is too short for the path of just any run directory.
type sockets struct {
	dir    *os.File  // nil: there is none
	former []sockets // of former run directories
}

// makeSockets makes the directory, or takes over the one that is there, and opens those
// of former run directories.
func makeSockets(runDir string, former []string) (_ sockets, err error) {
	path := filepath.Join(runDir, socketsName)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return sockets{}, fmt.Errorf("make the directory of the monitors' sockets: %w", err)
	}
	s, err := openSockets(append([]string{runDir}, former...))
	if err != nil {
		return sockets{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(s.dir.Fd()), &st); err != nil {
		return sockets{}, errors.Join(&os.PathError{Op: "stat", Path: path, Err: err}, s.close())
	}
	if st.Uid != uint32(os.Geteuid()) || st.Mode&0o077 != 0 {
		return sockets{}, errors.Join(fmt.Errorf("%s belongs to uid %d and has mode %04o: it must be root's alone: remove it", path, st.Uid, st.Mode&0o7777), s.close())
	}
	return s, nil
}

// openSockets opens the directory in the first of these run directories, and those of
// the others, where there are any.
func openSockets(runDirs []string) (s sockets, err error) {
	for i, runDir := range runDirs {
		path := filepath.Join(runDir, socketsName)
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return sockets{}, errors.Join(&os.PathError{Op: "open", Path: path, Err: err}, s.close())
		}
		dir := os.NewFile(uintptr(fd), path)
		if i == 0 {
			s.dir = dir
		} else {
			s.former = append(s.former, sockets{dir: dir})
		}
	}
	return s, nil
}

func (s sockets) close() error {
	var errs []error
	for _, d := range s.all() {
		errs = append(errs, d.dir.Close())
	}
	return errors.Join(errs...)
}

// all returns the directories that there are, each by itself.
func (s sockets) all() []sockets {
	if s.dir == nil {
		return s.former
	}
	return append([]sockets{{dir: s.dir}}, s.former...)
}

func (s sockets) addr(id string) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(int(s.dir.Fd())) + "/" + id}
}

// listen makes a box's socket. Release removes it.
func (s sockets) listen(id string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "monitor socket")
	if err := unix.Bind(fd, s.addr(id)); err != nil {
		return nil, errors.Join(os.NewSyscallError("bind", err), f.Close())
	}
	if err := unix.Listen(fd, 8); err != nil {
		return nil, errors.Join(os.NewSyscallError("listen", err), f.Close())
	}
	return f, nil
}

// remove removes a box's socket; one that is gone is no error.
func (s sockets) remove(id string) error {
	var errs []error
	for _, d := range s.all() {
		if err := unix.Unlinkat(int(d.dir.Fd()), id, 0); err != nil && err != unix.ENOENT {
			errs = append(errs, &os.PathError{Op: "remove", Path: filepath.Join(d.dir.Name(), id), Err: err})
		}
	}
	return errors.Join(errs...)
}

// clear removes the sockets of all but these boxes: a run directory on disk
// survives a reboot, and the boxes do not.
func (s sockets) clear(boxes []string) error {
	entries, err := os.ReadDir(s.dir.Name())
	if err != nil {
		return fmt.Errorf("list the monitors' sockets: %w", err)
	}
	keep := make(map[string]bool, len(boxes))
	for _, id := range boxes {
		keep[id] = true
	}
	for _, e := range entries {
		if joblet.ValidID(e.Name()) && !keep[e.Name()] {
			if err := s.remove(e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// errNoMonitor says that a box has no monitor, or none any more.
var errNoMonitor = fmt.Errorf("the box has no monitor: %w", unix.ECONNREFUSED)

// dial makes one attempt to connect to a box's monitor, without waiting. EAGAIN:
// it is there, and as many connections wait for it already as may.
func (s sockets) dial(id string) (fd int, err error) {
	for _, d := range s.all() {
		fd, err = dialAddr(d.addr(id))
		if err != unix.ENOENT {
			return fd, noMonitor(err)
		}
	}
	// The monitors of earlier releases listen on an abstract socket, whose name any
	// user of the host can take once the monitor is gone.
	fd, err = dialAddr(&unix.SockaddrUnix{Name: "@joblet/" + id})
	if err == unix.EAGAIN && monitorOf(id) == 0 {
		err = unix.ECONNREFUSED
	}
	return fd, noMonitor(err)
}

func noMonitor(err error) error {
	if err == unix.ECONNREFUSED {
		return errNoMonitor
	}
	return err
}

// dialAddr connects to a socket of root's. ECONNREFUSED: there is none.
func dialAddr(addr unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, addr); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil || peer.Uid != 0 {
		unix.Close(fd)
		return -1, unix.ECONNREFUSED
	}
	return fd, nil
}

// dialRetry is how often a monitor with too many connections is tried again.
const dialRetry = 20 * time.Millisecond

// connect connects to a box's monitor. The error is ECONNREFUSED when it has none,
// and os.ErrDeadlineExceeded when that takes no connection in time.
func (s sockets) connect(id string, deadline time.Time) (*os.File, error) {
	for {
		fd, err := s.dial(id)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), "control"), nil
		case err != unix.EAGAIN:
			return nil, os.NewSyscallError("connect", err)
		case time.Now().After(deadline):
			return nil, fmt.Errorf("connect to the job's monitor: %w", os.ErrDeadlineExceeded)
		}
		time.Sleep(dialRetry)
	}
}

// HasMonitor reports whether a box of a daemon with one of these run directories has a
// monitor, of which it asks nothing.
func HasMonitor(runDirs []string, id string) bool {
	s, err := openSockets(runDirs)
	if err != nil {
		return true // nobody knows: nothing may be removed
	}
	defer s.close()
	return s.hasMonitor(id)
}

func (s sockets) hasMonitor(id string) bool {
	fd, err := s.dial(id)
	if err == nil {
		unix.Close(fd)
	}
	return !errors.Is(err, unix.ECONNREFUSED)
}

// monitorOf returns the process that is a box's monitor, or 0. It goes through all
// processes of the host.
func monitorOf(id string) int {
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0
	}
	want := []byte("joblet-monitor\x00" + id + "\x00")
	for _, name := range names {
		argv, err := os.ReadFile(name)
		if err != nil || !bytes.Equal(argv, want) {
			continue
		}
		proc := filepath.Dir(name)
		// Anybody can call his program so, but it does not come out of a memfd and
		// run as root.
		exe, err := os.Readlink(proc + "/exe")
		if err != nil || !strings.HasPrefix(exe, "/memfd:joblet-monitor") {
			continue
		}
		status, err := os.ReadFile(proc + "/status")
		if err != nil || !bytes.Contains(status, []byte("\nUid:\t0\t0\t0\t0\n")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(proc)); err == nil {
			return pid
		}
	}
	return 0
}
