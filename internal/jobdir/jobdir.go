// Package jobdir is the directory of a job: the names of its files, what they take on
// disk, and the reading and writing of those that say what was asked of the job and
// how its attempts ended.
package jobdir

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/joblet/joblet/internal/shim/protocol"
)

// What comes along with a job is kept in its directory, for retries and reruns.
const (
	FilesName = "files.tar" // for /work
	StdinName = "stdin"     // standard input that is a file
)

// IsExitName reports whether protocol.ExitName gives name for some attempt.
func IsExitName(name string) bool {
	ok, _ := filepath.Match("exit*.json", name)
	return ok
}

// IsLeftover reports whether a file in the directory of a job that has ended is one
// that a shim did not finish.
func IsLeftover(name string) bool {
	of, ok := strings.CutSuffix(name, ".tmp")
	return ok && (of == protocol.WorkName || of == FileName || IsExitName(of))
}

// DeletingSuffix is behind the name of a job's directory while it is deleted.
const DeletingSuffix = ".deleting"

// Size returns what the files in a job's directory take on disk.
func Size(dir string) (n int64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0 // there is none
	}
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(dir, e.Name()), &st) == nil {
			n += st.Blocks * 512
		}
	}
	return n
}

// ClearOutput removes what takes room in the directory of a job that is being
// deleted: all but what says whose it is and how it ended, which must be there as
// long as its record may be.
func ClearOutput(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !IsExitName(e.Name()) && e.Name() != FileName {
			_ = os.RemoveAll(filepath.Join(dir, e.Name())) // what stays takes no less room than before
		}
	}
}

// InputSize is what came along with a job.
func InputSize(dir string) (n int64) {
	for _, name := range []string{FilesName, StdinName} {
		if fi, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			n += fi.Size()
		}
	}
	return n
}
