package native

import (
	"errors"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/shim/protocol"
)

// OpenWork opens the running job's /work. What is in it is the job's: names may
// change at any time and lead anywhere but, through an os.Root, out of it. A job that can
// mount may have covered directories in it (archive.PackTree stays out of those).
func (p *Process) OpenWork() (*os.Root, error) {
	dir, err := p.workOfShim()
	if errors.Is(err, os.ErrDeadlineExceeded) { // a job of a release whose shims have no answer
		dir, err = p.workOfProcess()
	}
	if err != nil {
		return nil, joblet.Errorf(joblet.FailedPrecondition, "cannot open the job's /work: %w; perhaps the job has ended", err)
	}
	defer dir.Close()
	return os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())))
}

// workOfShim asks the shim for the directory that it opened before any code of the
// job's ran: what the job mounts over /work later is not on the way to it.
func (p *Process) workOfShim() (*os.File, error) {
	c, err := p.engine.connect(p.ID, time.Time{})
	if err != nil {
		return nil, err
	}
	defer c.conn.Close()
	_ = c.conn.SetDeadline(time.Now().Add(greetTimeout))
	if err := protocol.WriteMessage(c.conn, protocol.Request{Work: true}); err != nil {
		return nil, err
	}
	return receiveDescriptor(c.conn, "/work")
}

// workOfProcess finds the directory through the job's PID 1.
func (p *Process) workOfProcess() (*os.File, error) {
	root, err := unix.Open("/proc/"+strconv.Itoa(p.PID)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, "work", &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, err
	}
	work := os.NewFile(uintptr(fd), "work")
	// The process may have ended, and its number be another's by now. But no
	// directory of anybody else's belongs to this job's ids.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Uid < p.IDBase || st.Uid-p.IDBase >= IDCount {
		return nil, errors.Join(errors.New("it is not the job's own"), err, work.Close())
	}
	return work, nil
}
