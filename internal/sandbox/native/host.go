package native

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/joblet/joblet"
)

// procReadOnly are the places in /proc that a job gets read-only whatever is in them:
// the settings of the kernel.
var procReadOnly = []string{"sys", "irq", "bus", "fs"}

// worldWritable returns the files below a proc file system, but for those of processes,
// that everybody may write to, whom the job's ids are: /proc/pressure, where each
// trigger that a process has set delays its end. /proc/sys is left out: it asks for
// privileges, or is of the caller's own namespaces.
func worldWritable(proc string) (files []string, err error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", proc, err)
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil || e.Name() == "sys" || e.Type()&fs.ModeSymlink != 0 {
			continue
		}
		err := filepath.WalkDir(filepath.Join(proc, e.Name()), func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil //nolint:nilerr // what the daemon cannot read it has no business in; what is gone is gone
			}
			if info, err := d.Info(); err == nil && info.Mode().IsRegular() && info.Mode()&0o002 != 0 {
				files = append(files, name)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}

// freezeProc returns what a sandbox's /proc has read-only: procReadOnly, and the top of
// whatever has a file that everybody may write to.
func freezeProc(proc string, writable []string) []string {
	names := slices.Clone(procReadOnly)
	for _, file := range writable {
		rel, err := filepath.Rel(proc, file)
		if err != nil {
			continue
		}
		if name, _, _ := strings.Cut(rel, "/"); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// closeProc takes everybody's permission to write away from the files that the host's
// /proc gives to all. A job with the profile nested mounts a proc of its own, over which
// no mount can stand (mount_too_revealing in fs/namespace.c), but a mode holds in all.
func (e *Engine) closeProc() error {
	files, err := worldWritable("/proc")
	if err != nil {
		return err
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if err == nil && info.Mode()&0o022 != 0 {
			err = os.Chmod(file, info.Mode().Perm()&^0o022)
			e.cfg.Log.Info("made a file of the kernel's writable for root alone: a nested job could delay the end of jobs with it", "file", file)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return joblet.Errorf(joblet.FailedPrecondition, "cannot run a job with --security=nested: every user of this host may write to %s: %w; run chmod o-w %s on the host", file, err, file)
		}
	}
	return nil
}

// fileMaxPath bounds the open files of the whole host: who reaches it leaves none for
// others but root.
const fileMaxPath = "/proc/sys/fs/file-max"

// filesPerJob is how many files a job can have open at its default limits, when each of
// its processes has as many as its hard limit allows.
func filesPerJob(hard uint64) uint64 { return hard * joblet.DefaultMaxPIDs }

// raiseFileMax lifts the bound, as systemd does: open files are memory, which is what
// bounds them for each job. It reports whether no job can reach the bound.
func raiseFileMax(name string) (bool, error) {
	have, err := readNumber(name)
	if err != nil {
		return false, err
	}
	if have/2 >= filesPerJob(maxFilesDefault) {
		return true, nil
	}
	if err := os.WriteFile(name, []byte(strconv.FormatInt(math.MaxInt64, 10)), 0o644); err != nil {
		return false, err
	}
	return true, nil
}

// maxFilesDefault bounds the default hard limit of a process's open files, which is
// otherwise the daemon's own; leastFiles is what programs need.
const (
	maxFilesDefault = 1 << 20
	leastFiles      = 1024
)

// fileLimit returns a job's default hard limit where a process may have so many and the
// whole host fileMax.
func fileLimit(have, fileMax uint64) uint64 {
	have = min(have, maxFilesDefault)
	if filesPerJob(have) <= fileMax/2 {
		return have
	}
	return min(have, max(leastFiles, fileMax/2/joblet.DefaultMaxPIDs))
}

func readNumber(name string) (uint64, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}
