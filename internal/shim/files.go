package shim

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/archive"
	"github.com/joblet/joblet/internal/cgroup"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/shim/setup"
)

// workRoot returns the job's /work as an os.Root.
func (s *shim) workRoot() (*os.Root, error) {
	return os.OpenRoot("/proc/self/fd/" + strconv.Itoa(s.process.Work))
}

// giveToUser makes the job's user, if that is not its root, the owner of /work
// and of the pipes that it writes to: /dev/stdout leads to their inodes.
func (s *shim) giveToUser(run *protocol.Run) error {
	if run.UID|run.GID == 0 {
		return nil
	}
	for _, fd := range []int{s.process.Work, s.out.pipes[0], s.out.pipes[1]} {
		if err := unix.Fchown(fd, int(s.idBase+run.UID), int(s.idBase+run.GID)); err != nil {
			return setup.Step("give /work and the output to the job's user", err)
		}
	}
	return nil
}

// unpackArg, as its first argument, makes the shim's program one that unpacks
// files and ends.
const unpackArg = "unpack"

// Descriptors of that program.
const (
	unpackArchive = 0
	unpackResult  = 1 // a Failure as JSON; nothing: it went well
	unpackWork    = 3
)

// unpackFiles puts the files that came along with the job into its /work. A
// process of its own does it, in the job's cgroups: what is written there is
// memory, and has to count as the job's.
func (s *shim) unpackFiles(run *protocol.Run) (err error) {
	f, err := os.Open(run.FilesPath)
	if err != nil {
		return err
	}
	defer f.Close()
	result, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer result.Close()
	defer theirs.Close()
	work, err := unix.FcntlInt(uintptr(s.process.Work), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return setup.Step(protocol.StepFiles, err)
	}
	dir := os.NewFile(uintptr(work), "work")
	defer dir.Close()
	where, err := json.Marshal(s.cgroup)
	if err != nil {
		return err
	}
	attr := &os.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=1"}, Files: []*os.File{f, theirs, os.Stderr, dir}, Sys: &syscall.SysProcAttr{},
	}
	if v2 := s.cgroup.V2; v2 != "" {
		group, err := os.Open(v2)
		if err != nil {
			return err
		}
		defer group.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(group.Fd())
	}
	// No process of the job's runs yet, and its limit may be one.
	restore, err := s.cgroup.LiftPIDs()
	if err != nil {
		return setup.Step(protocol.StepFiles, err)
	}
	defer func() { err = errors.Join(err, restore()) }()
	proc, err := os.StartProcess("/proc/self/exe", []string{
		"joblet-shim", unpackArg, strconv.Itoa(int(s.idBase + run.UID)), strconv.Itoa(int(s.idBase + run.GID)), string(where),
	}, attr)
	if err != nil {
		return errors.Join(errors.New(protocol.StepFiles), err)
	}
	theirs.Close()
	said, readErr := io.ReadAll(io.LimitReader(result, maxFailure))
	state, err := proc.Wait()
	if err != nil {
		return errors.Join(errors.New(protocol.StepFiles), err)
	}
	if state.Success() {
		return nil
	}
	var failure protocol.Failure
	if readErr != nil || json.Unmarshal(said, &failure) != nil {
		return &setup.StepError{Step: protocol.StepFiles, Errno: unix.ECHILD} // it was killed: as a rule because its memory was used up
	}
	if failure.Errno != 0 {
		return setup.Step(protocol.StepFiles, failure.Errno)
	}
	return errors.New(failure.Text)
}

const maxFailure = 64 << 10

// unpack is that process's life; args are its arguments behind unpackArg.
func unpack(args []string) (status int) {
	err := errors.New("three arguments are needed")
	if len(args) == 3 {
		err = unpackInto(args[0], args[1], args[2])
	}
	if err == nil {
		return 0
	}
	failure := protocol.Failure{Step: protocol.StepFiles, Text: protocol.StepFiles + ": " + err.Error()}
	if errors.Is(err, unix.ENOSPC) {
		failure.Errno = unix.ENOSPC
	}
	_ = json.NewEncoder(os.NewFile(unpackResult, "result")).Encode(failure)
	return 1
}

func unpackInto(user, group, where string) error {
	uid, err := strconv.Atoi(user)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(group)
	if err != nil {
		return err
	}
	var dirs cgroup.Dirs
	if err := json.Unmarshal([]byte(where), &dirs); err != nil {
		return err
	}
	if err := dirs.EnterV1(); err != nil {
		return err
	}
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(unpackWork))
	if err != nil {
		return err
	}
	defer root.Close()
	unix.Umask(0) // of this process: modes are to be as they were sent
	// The files must belong to the job's user, and its file system knows no
	// other ids (EOVERFLOW). setfsuid(2) concerns one thread alone: this
	// goroutine stays on it.
	runtime.LockOSThread()
	setFSID(uid, gid)
	_, err = archive.UnpackForJob(root, os.NewFile(unpackArchive, "archive"), archive.DefaultLimits)
	return err
}

func setFSID(uid, gid int) {
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
}

// keepFiles writes what the ended job left in /work into the job's directory,
// and waits for room on a full disk for as long as for the log.
func (s *shim) keepFiles() {
	if empty, err := s.workEmpty(); empty && err == nil {
		return
	}
	for began := time.Now(); ; s.listenFor(logRetry) {
		err := s.packWork()
		if err == nil {
			return
		}
		if !isFull(err) || time.Since(began) > s.patience() {
			s.record.WorkError = "what it left in /work is lost: " + err.Error()
			return
		}
	}
}

// workEmpty reports whether there is nothing in /work.
func (s *shim) workEmpty() (bool, error) {
	if _, err := unix.Seek(s.process.Work, 0, unix.SEEK_SET); err != nil {
		return false, err
	}
	buf := make([]byte, 512)
	n, err := unix.Getdents(s.process.Work, buf)
	if err != nil {
		if err == unix.ENOENT { // the job has removed it
			return true, nil
		}
		return false, err
	}
	_, _, names := unix.ParseDirent(buf[:n], 1, nil) // without "." and ".."
	return len(names) == 0, nil
}

func (s *shim) packWork() (err error) {
	root, err := s.workRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	const tmp = protocol.WorkName + ".tmp"
	fd, err := unix.Openat(s.dir, tmp, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), tmp)
	defer func() {
		if err != nil {
			_ = unix.Unlinkat(s.dir, tmp, 0)
		}
	}()
	limits := archive.DefaultLimits
	limits.Bytes = s.workMax
	stats, err := archive.PackTree(f, root, nil, limits)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	s.record.WorkBytes, s.record.WorkBeyond = stats.Bytes, stats.Beyond
	return unix.Renameat(s.dir, tmp, s.dir, protocol.WorkName) // fsync of the directory comes with the record's
}
