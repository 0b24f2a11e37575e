package monitor

import (
	"errors"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/archive"
)

// workRoot returns the job's /work as an os.Root.
func (m *monitor) workRoot() (*os.Root, error) {
	return os.OpenRoot("/proc/self/fd/" + itoa(int64(m.work)))
}

// giveToUser makes the job's user, if that is not its root, the owner of /work
// and of the pipes that it writes to: /dev/stdout leads to their inodes.
func (m *monitor) giveToUser(run *Run) error {
	if run.UID|run.GID == 0 {
		return nil
	}
	for _, fd := range []int{m.work, m.output[0], m.output[1]} {
		if err := unix.Fchown(fd, int(m.idBase+run.UID), int(m.idBase+run.GID)); err != nil {
			return step("give /work and the output to the job's user", err)
		}
	}
	return nil
}

// unpackFiles puts the files that came along with the job into its /work.
func (m *monitor) unpackFiles(run *Run) error {
	f, err := os.Open(run.FilesPath)
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := m.workRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	// The files must belong to the job's user, and its file system knows no
	// other ids (EOVERFLOW). setfsuid(2) concerns one thread alone: this
	// goroutine stays on it and turns it back before it lets go.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	setFSID(int(m.idBase+run.UID), int(m.idBase+run.GID))
	defer setFSID(0, 0)
	if _, err := archive.Unpack(root, f, archive.DefaultLimits); err != nil {
		if errors.Is(err, unix.ENOSPC) {
			return step(StepFiles, unix.ENOSPC)
		}
		return errors.Join(errors.New(StepFiles), err)
	}
	return nil
}

func setFSID(uid, gid int) {
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
}

// keepFiles writes what the ended job left in /work into the job's directory,
// and waits for room on a full disk for as long as for the log.
func (m *monitor) keepFiles() {
	if empty, err := m.workEmpty(); empty && err == nil {
		return
	}
	for deadline := time.Now().Add(logPatience); ; time.Sleep(logRetry) {
		err := m.packWork()
		if err == nil {
			return
		}
		full := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
		if !full || time.Now().After(deadline) {
			m.record.WorkError = "what it left in /work is lost: " + err.Error()
			return
		}
	}
}

// workEmpty reports whether there is nothing in /work.
func (m *monitor) workEmpty() (bool, error) {
	if _, err := unix.Seek(m.work, 0, unix.SEEK_SET); err != nil {
		return false, err
	}
	buf := make([]byte, 512)
	n, err := unix.Getdents(m.work, buf)
	if err != nil {
		if err == unix.ENOENT { // the job has removed it
			return true, nil
		}
		return false, err
	}
	_, _, names := unix.ParseDirent(buf[:n], 1, nil) // without "." and ".."
	return len(names) == 0, nil
}

func (m *monitor) packWork() (err error) {
	root, err := m.workRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	const tmp = WorkName + ".tmp"
	fd, err := unix.Openat(m.dir, tmp, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), tmp)
	defer func() {
		if err != nil {
			_ = unix.Unlinkat(m.dir, tmp, 0)
		}
	}()
	limits := archive.DefaultLimits
	limits.Bytes = m.workMax
	stats, err := archive.PackTree(f, root, nil, limits)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	m.record.WorkBytes, m.record.WorkBeyond = stats.Bytes, stats.Beyond
	return unix.Renameat(m.dir, tmp, m.dir, WorkName) // fsync of the directory comes with the record's
}
