package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// cgroupMount is a place where a cgroup hierarchy is mounted.
type cgroupMount struct {
	path string
	v2   bool
}

func hostCgroupMounts() ([]cgroupMount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return cgroupMounts(f)
}

// cgroupMounts reads a mountinfo file, proc_pid_mountinfo(5).
func cgroupMounts(mountinfo io.Reader) ([]cgroupMount, error) {
	var mounts []cgroupMount
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		// 31 24 0:27 / /sys/fs/cgroup/pids rw,relatime shared:9 - cgroup cgroup rw,pids
		before, after, ok := strings.Cut(lines.Text(), " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 6 || len(tail) < 2 {
			return nil, fmt.Errorf("mountinfo: malformed line %.200q", lines.Text())
		}
		if tail[0] == "cgroup" || tail[0] == "cgroup2" {
			mounts = append(mounts, cgroupMount{path: head[4], v2: tail[0] == "cgroup2"})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	return mounts, nil
}

// hybridCgroup2 returns where cgroup v2 is mounted if v1 is in use too.
func hybridCgroup2(mounts []cgroupMount) []string {
	if !slices.ContainsFunc(mounts, func(m cgroupMount) bool { return !m.v2 }) {
		return nil
	}
	var paths []string
	for _, m := range mounts {
		if m.v2 {
			paths = append(paths, m.path)
		}
	}
	return paths
}

// removeCgroups removes the cgroups whose name begins with prefix, below the
// top of any hierarchy or below the bench's own cgroup, where runtimes make
// them.
func removeCgroups(prefix string) error {
	mounts, err := hostCgroupMounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		err := filepath.WalkDir(m.path, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					return nil // somebody else's cgroup that has just gone
				}
				return err
			}
			if !d.IsDir() || !strings.HasPrefix(d.Name(), prefix) {
				return nil
			}
			if err := removeCgroup(path); err != nil {
				return err
			}
			return fs.SkipDir
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup and those below it.
func removeCgroup(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(path)
}
