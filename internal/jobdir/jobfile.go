package jobdir

import (
	"encoding/json"
	"errors"
	"fmt"
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
	"github.com/joblet/joblet/internal/shim/protocol"
)

// FileName is the file in a job's directory that says what was asked: enough
// to make the job's record again when the database has lost it. It is there
// before a shim hears of the job. It is not synced: it is for the day on which
// the database is gone, and the disk has it half a minute later.
const FileName = "job.json"

// maxJobFile bounds it: most of it is a spec.
const maxJobFile = 24 << 20

// File is the content of FileName.
type File struct {
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
	End *End `json:"end,omitempty"`
}

type End struct {
	State   joblet.State `json:"state"`
	Ended   time.Time    `json:"ended"`
	Reason  string       `json:"reason,omitempty"`
	Failure joblet.Kind  `json:"failure,omitempty"`
	Exit    *joblet.Exit `json:"exit,omitempty"`
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

// ReadFile reads what a job's directory says of what was asked.
func ReadFile(dir string) (f File, err error) {
	if err := ReadSealed(filepath.Join(dir, FileName), maxJobFile, &f); err != nil {
		return File{}, err
	}
	if id := filepath.Base(dir); f.ID != id || f.Created.IsZero() || f.Spec.Command == "" {
		return File{}, fmt.Errorf("%w: %s does not belong to job %s", ErrDamaged, FileName, joblet.ShortID(id))
	}
	return f, nil
}

// Traces are what a job's directory shows of its runs.
type Traces struct {
	Attempts int  // the number of the latest that has begun
	Output   bool // there is a log
}

// TracesIn looks for runs in a job's directory.
func TracesIn(dir string) (t Traces, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return t, err
	}
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".tmp")
		switch number, ok := strings.CutPrefix(strings.TrimSuffix(name, ".json"), "exit-"); {
		case name == logstore.LogName, name == logstore.IndexName:
			t.Output = true
		case name == protocol.ExitName(1):
			t.Attempts = max(t.Attempts, 1)
		case ok:
			if n, err := strconv.Atoi(number); err == nil && n > 1 && name == protocol.ExitName(n) {
				t.Attempts = max(t.Attempts, n)
			}
		}
	}
	return t, nil
}

// WriteFile writes the file of the job whose directory dir is. It makes the directory
// if there is none. A full disk is of kind ResourceExhausted.
func WriteFile(dir string, f File) error {
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	data = protocol.Seal(data)
	made := true
	if err := os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) {
		made = false
	} else if err != nil {
		return noRoom("make the job's directory", err)
	}
	name := filepath.Join(dir, FileName)
	if made { // nobody can have read an older one
		return noRoom("write the job's file", writeNew(name, data))
	}
	if err := os.Remove(name + ".tmp"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeNew(name+".tmp", data); err != nil {
		return noRoom("write the job's file", err)
	}
	return os.Rename(name+".tmp", name)
}
