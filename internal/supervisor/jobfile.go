package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/logstore"
	"github.com/joblet/joblet/internal/sandbox"
	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim/protocol"
	"github.com/joblet/joblet/internal/store"
)

// jobFileName is the file in a job's directory that says what was asked: enough
// to make the job's record again when the database has lost it. It is there
// before a shim hears of the job. It is not synced: it is for the day on which
// the database is gone, and the disk has it half a minute later.
const jobFileName = "job.json"

// maxJobFile bounds it: most of it is a spec.
const maxJobFile = 24 << 20

// jobFile is the content of jobFileName.
type jobFile struct {
	ID        string      `json:"id"`
	Owner     string      `json:"owner"`
	Created   time.Time   `json:"created"`
	Scheduled time.Time   `json:"scheduled,omitzero"`
	Parent    string      `json:"parent,omitempty"`
	Spec      joblet.Spec `json:"spec"` // secrets masked

	Attempt int            `json:"attempt,omitempty"` // the latest, and where it runs
	Box     string         `json:"box,omitempty"`
	Leases  sandbox.Leases `json:"leases,omitempty"` // on what that holds of the host
	// IDBase is of earlier versions, which had no leases.
	IDBase uint32 `json:"id_base,omitempty"`

	// End is how a job ended that did not run, or did not run again: no exit
	// record says so.
	End *jobEnd `json:"end,omitempty"`
}

type jobEnd struct {
	State   joblet.State `json:"state"`
	Ended   time.Time    `json:"ended"`
	Reason  string       `json:"reason,omitempty"`
	Failure joblet.Kind  `json:"failure,omitempty"`
	Exit    *joblet.Exit `json:"exit,omitempty"`
}

// noteJob writes the job's file, whose directory it makes if there is none.
func (s *Supervisor) noteJob(rec store.Record) error {
	f := jobFile{
		ID: rec.ID, Owner: rec.Owner, Created: rec.Created, Scheduled: rec.Scheduled, Parent: rec.Parent, Spec: rec.Spec.Redacted(),
		Attempt: rec.Attempt, Box: rec.Box, Leases: rec.Leases,
	}
	if rec.State.Final() {
		f.End = &jobEnd{rec.State, rec.Ended, rec.Reason, rec.Failure, rec.Exit}
	}
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	data = protocol.Seal(data)
	dir := s.jobDir(rec.ID)
	made := true
	if err := os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) {
		made = false
	} else if err != nil {
		return noRoom("make the job's directory", err)
	}
	name := filepath.Join(dir, jobFileName)
	if made { // nobody can have read an older one
		return noRoom("write down the job", writeNew(name, data))
	}
	if err := os.Remove(name + ".tmp"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeNew(name+".tmp", data); err != nil {
		return noRoom("write down the job", err)
	}
	return os.Rename(name+".tmp", name)
}

// writeNew creates a file, all of it or nothing.
func writeNew(name string, data []byte) error {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: name, Err: err}
	}
	for len(data) > 0 && err == nil {
		var n int
		if n, err = unix.Write(fd, data); err == unix.EINTR {
			n, err = 0, nil
		}
		data = data[max(n, 0):]
	}
	if closeErr := unix.Close(fd); err == nil {
		err = closeErr
	}
	if err != nil {
		return errors.Join(&os.PathError{Op: "write", Path: name, Err: err}, os.Remove(name))
	}
	return nil
}

// noRoom gives an error of a full disk its kind.
func noRoom(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return joblet.Errorf(joblet.ResourceExhausted, "cannot %s: %w", what, err)
	}
	return fmt.Errorf("cannot %s: %w", what, err)
}

// readSealed reads a JSON object with a checksum, of at most limit bytes, into v.
// The error is fs.ErrNotExist when there is no such file, and errDamaged when it
// is not what was written.
func readSealed(name string, limit int64, v any) error {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: %s is not a regular file", errDamaged, filepath.Base(name))
	case err != nil:
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%w: %s is not a regular file", errDamaged, filepath.Base(name))
	case info.Size() > limit:
		return fmt.Errorf("%w: %s has %d bytes, which is too much", errDamaged, filepath.Base(name), info.Size())
	}
	data, err := io.ReadAll(io.LimitReader(f, limit))
	switch {
	case errors.Is(err, unix.EIO):
		return fmt.Errorf("%w: %w", errDamaged, err)
	case err != nil:
		return err
	case !protocol.Sealed(data):
		return fmt.Errorf("%w: the checksum of %s is wrong", errDamaged, filepath.Base(name))
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %s is incomplete or garbled: %w", errDamaged, filepath.Base(name), err)
	}
	return nil
}

// errDamaged says that a file in a job's directory is not what was written.
var errDamaged = errors.New("damaged")

// readJobFile reads what a job's directory says of what was asked.
func readJobFile(dir string) (f jobFile, err error) {
	if err := readSealed(filepath.Join(dir, jobFileName), maxJobFile, &f); err != nil {
		return jobFile{}, err
	}
	if id := filepath.Base(dir); f.ID != id || f.Created.IsZero() || f.Spec.Command == "" {
		return jobFile{}, fmt.Errorf("%w: %s is not of job %s", errDamaged, jobFileName, joblet.ShortID(id))
	}
	return f, nil
}

// held returns what the latest attempt holds of the host.
func (f jobFile) held() (leases sandbox.Leases, idBase uint32) {
	if f.Leases == nil {
		return nil, f.IDBase
	}
	return f.Leases, native.IDBase(f.Leases)
}

// leasesOf returns what a record's latest attempt holds of the host. Records of earlier
// versions have no leases but the first of its ids.
func leasesOf(rec store.Record) sandbox.Leases {
	if rec.Leases == nil {
		return native.IDLease(rec.IDBase)
	}
	return rec.Leases
}

// traces are what a job's directory shows of its runs.
type traces struct {
	attempts int  // the number of the latest that has begun
	output   bool // there is a log
}

// tracesIn looks for runs in a job's directory.
func tracesIn(dir string) (t traces, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return t, err
	}
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".tmp")
		switch number, ok := strings.CutPrefix(strings.TrimSuffix(name, ".json"), "exit-"); {
		case name == logstore.LogName, name == logstore.IndexName:
			t.output = true
		case name == protocol.ExitName(1):
			t.attempts = max(t.attempts, 1)
		case ok:
			if n, err := strconv.Atoi(number); err == nil && n > 1 && name == protocol.ExitName(n) {
				t.attempts = max(t.attempts, n)
			}
		}
	}
	return t, nil
}
