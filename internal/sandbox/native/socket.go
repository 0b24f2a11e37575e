package native

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
// sandbox, so that a later daemon finds its shim. Only root can enter it, so a
// name in there is the shim's, and no other process can keep it busy.
const socketsName = "shims"

// formerSocketsName is what earlier releases called it.
const formerSocketsName = "monitors"

// sockets is that directory. Names are looked up from its descriptor, because
// sun_path (unix(7)) is too short for the path of just any run directory.
type sockets struct {
	dir    *os.File  // nil: there is none
	former []sockets // of former run directories and of earlier releases
}

// makeSockets makes the directory, or takes over the one that is there, and opens those
// of former run directories.
func makeSockets(runDir string, former []string) (_ sockets, err error) {
	path := filepath.Join(runDir, socketsName)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return sockets{}, fmt.Errorf("cannot make the directory of the shims' sockets: %w", err)
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
		return sockets{}, errors.Join(fmt.Errorf("cannot use %s, which belongs to uid %d and has mode %04o: it must belong to root with mode 0700; remove it", path, st.Uid, st.Mode&0o7777), s.close())
	}
	return s, nil
}

// openSockets opens the directory in the first of these run directories, and the
// other ones in which there may be sockets of running jobs, where there are any.
func openSockets(runDirs []string) (s sockets, err error) {
	for i, runDir := range runDirs {
		for _, name := range []string{socketsName, formerSocketsName} {
			path := filepath.Join(runDir, name)
			fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err == unix.ENOENT {
				continue
			}
			if err != nil {
				return sockets{}, errors.Join(&os.PathError{Op: "open", Path: path, Err: err}, s.close())
			}
			dir := os.NewFile(uintptr(fd), path)
			if i == 0 && name == socketsName {
				s.dir = dir
			} else {
				s.former = append(s.former, sockets{dir: dir})
			}
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

// listen makes a sandbox's socket. Release removes it.
func (s sockets) listen(id string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "shim socket")
	if err := unix.Bind(fd, s.addr(id)); err != nil {
		return nil, errors.Join(os.NewSyscallError("bind", err), f.Close())
	}
	if err := unix.Listen(fd, 8); err != nil {
		return nil, errors.Join(os.NewSyscallError("listen", err), f.Close())
	}
	return f, nil
}

// remove removes a sandbox's socket; one that is gone is no error.
func (s sockets) remove(id string) error {
	var errs []error
	for _, d := range s.all() {
		if err := unix.Unlinkat(int(d.dir.Fd()), id, 0); err != nil && err != unix.ENOENT {
			errs = append(errs, &os.PathError{Op: "remove", Path: filepath.Join(d.dir.Name(), id), Err: err})
		}
	}
	return errors.Join(errs...)
}

// clear removes the sockets of all but these sandboxes: a run directory on disk
// survives a reboot, and the sandboxes do not.
func (s sockets) clear(sandboxes []string) error {
	entries, err := os.ReadDir(s.dir.Name())
	if err != nil {
		return fmt.Errorf("cannot list the shims' sockets: %w", err)
	}
	keep := make(map[string]bool, len(sandboxes))
	for _, id := range sandboxes {
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

// errNoShim says that a sandbox has no shim, or none any more.
var errNoShim = fmt.Errorf("the sandbox has no shim: %w", unix.ECONNREFUSED)

// dial makes one attempt to connect to a sandbox's shim, without waiting. EAGAIN:
// it is there, and as many connections wait for it already as may.
func (s sockets) dial(id string) (fd int, err error) {
	for _, d := range s.all() {
		fd, err = dialAddr(d.addr(id))
		if err != unix.ENOENT {
			return fd, noShim(err)
		}
	}
	// The shims of earlier releases listen on an abstract socket, whose name any
	// user of the host can take once the shim is gone.
	fd, err = dialAddr(&unix.SockaddrUnix{Name: "@joblet/" + id})
	if err == unix.EAGAIN && shimOf(id) == 0 {
		err = unix.ECONNREFUSED
	}
	return fd, noShim(err)
}

func noShim(err error) error {
	if err == unix.ECONNREFUSED {
		return errNoShim
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

// dialRetry is how often a shim with too many connections is tried again.
const dialRetry = 20 * time.Millisecond

// connect connects to a sandbox's shim. The error is ECONNREFUSED when it has none,
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
			return nil, fmt.Errorf("cannot connect to the job's shim: %w", os.ErrDeadlineExceeded)
		}
		time.Sleep(dialRetry)
	}
}

// HasShim reports whether a sandbox of a daemon with one of these run directories has a
// shim, of which it asks nothing.
func HasShim(runDirs []string, id string) bool {
	s, err := openSockets(runDirs)
	if err != nil {
		return true // unknown: nothing may be removed
	}
	defer s.close()
	return s.hasShim(id)
}

func (s sockets) hasShim(id string) bool {
	fd, err := s.dial(id)
	if err == nil {
		unix.Close(fd)
	}
	return !errors.Is(err, unix.ECONNREFUSED)
}

// isShim reports whether a program is a shim, perhaps of an earlier release.
func isShim(program string) bool { return program == ShimName || program == "joblet-monitor" }

// shimOf returns the process that is a sandbox's shim, or 0. It goes through all
// processes of the host.
func shimOf(id string) int {
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0
	}
	want := []byte("\x00" + id + "\x00")
	for _, name := range names {
		argv, err := os.ReadFile(name)
		title, ok := bytes.CutSuffix(argv, want)
		if err != nil || !ok || !isShim(string(title)) {
			continue
		}
		proc := filepath.Dir(name)
		// Anybody can call his program so, but it does not come out of a memfd and
		// run as root.
		exe, err := os.Readlink(proc + "/exe")
		if memfd, ok := strings.CutPrefix(exe, "/memfd:"); err != nil || !ok || !isShim(strings.TrimSuffix(memfd, " (deleted)")) {
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
